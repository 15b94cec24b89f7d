import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn.data.dataset import Record
from rcnn.data.proposals.external import ImageProposals, batch_proposals
from rcnn.data.proposals.read import read_proposals
from rcnn.errors import DataError
from rcnn.model.structures import Proposals
from tests.model import tiny

BOXES = [[10, 20, 30, 60], [0, 0, 100, 80], [5.5, 6, 7, 8]]


def record(name: str, number: int | str, size: tuple[int, int] = (80, 100)) -> Record:
    none = np.zeros(0)
    return Record(Path("/data") / name, name, number, size, none.reshape(0, 4), none, none)


RECORDS = (record("images/a.jpg", 7), record("images/b.jpg", "b"))


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def corners(given: ImageProposals) -> list[list[float]]:
    return given.boxes.tolist()


@pytest.mark.parametrize(
    "names", [("images/a.jpg", "images/b.jpg"), ("a.jpg", "b"), ("7", "images/b"), ("/data/images/a.jpg", "x/y/b.jpg")]
)
def test_json_of_boxes_by_image(tmp_path: Path, names: tuple[str, str]):
    first, second = read_proposals(written(tmp_path / "p.json", {names[1]: [], names[0]: BOXES}), RECORDS)
    assert corners(first) == BOXES
    assert (np.diff(first.scores) < 0).all()
    assert second.boxes.shape == (0, 4)
    assert second.scores.shape == (0,)


def test_scores_decide_the_order(tmp_path: Path):
    scored = [[*box, score] for box, score in zip(BOXES, (0.2, 3.0, 0.2), strict=True)]
    first, _ = read_proposals(written(tmp_path / "p.json", {"a": scored, "b": scored}), RECORDS)
    assert corners(first) == [BOXES[1], BOXES[0], BOXES[2]]
    assert first.scores.tolist() == [3.0, 0.2, 0.2]


def test_results_of_coco_and_of_rcnn_propose(tmp_path: Path):
    rows = [{"image_id": 7, "bbox": [x, y, u - x, v - y], "score": 1 - i / 9} for i, (x, y, u, v) in enumerate(BOXES)]
    coco = written(tmp_path / "coco.json", [rows[0], {**rows[1], "image_id": "b.jpg"}, *rows[1:]])
    detections = [{"box": box, "score": 1 - i / 9} for i, box in enumerate(BOXES)]
    ours = [{"path": "/data/images/a.jpg", "detections": detections}, {"path": "b.jpg", "detections": detections[1:2]}]
    for path in (coco, written(tmp_path / "ours.json", ours)):
        first, second = read_proposals(path, RECORDS)
        assert corners(first) == BOXES
        assert corners(second) == BOXES[1:2]


def test_npz_of_arrays(tmp_path: Path):
    np.savez(tmp_path / "p.npz", **{"images/a.jpg": np.array(BOXES), "b": np.zeros((0, 5))})
    first, second = read_proposals(tmp_path / "p.npz", RECORDS)
    assert corners(first) == BOXES
    assert len(second.boxes) == 0


def test_mat_of_selective_search(tmp_path: Path):
    """Rows (y1, x1, y2, x2), from 1, the last pixel included: the entire image is (1, 1, 80, 100)."""
    savemat, path = pytest.importorskip("scipy.io").savemat, tmp_path / "ss.mat"
    images, boxes = np.empty((2, 1), dtype=object), np.empty((1, 2), dtype=object)
    images[:, 0] = ["b", "a"]

    def read(rows: np.ndarray, **cells: np.ndarray) -> list[ImageProposals]:
        boxes[0] = [np.zeros((0, 4)), rows]
        savemat(path, {"boxes": boxes, **cells})
        return read_proposals(path, RECORDS)

    first, second = read(np.array([[1, 1, 80, 100], [21, 11, 60, 30]], dtype=np.uint16), images=images)
    assert corners(first) == [[0, 0, 100, 80], [10, 20, 30, 60]]
    assert len(second.boxes) == 0
    first, _ = read(np.array([[1, 1, 80, 100, 0.2], [21, 11, 60, 30, 0.9]]), images=images)
    assert (corners(first), first.scores.round(6).tolist()) == ([[10, 20, 30, 60], [0, 0, 100, 80]], [0.9, 0.2])
    with pytest.raises(DataError, match=r"ss\.mat: image `a`, row 2: the box \(0, 0, 103, 80\) is outside"):
        read(np.array([[1, 1, 80, 100], [1, 1, 80, 103]]), images=images)
    with pytest.raises(DataError, match=r"ss\.mat: image `a`: expected rows of 4 numbers"):
        read(np.zeros((2, 3)), images=images)
    with pytest.raises(DataError, match=r"ss\.mat: expected two cells of equal length, `images` and `boxes`"):
        read(np.zeros((2, 4)))
    for content in (b"", b"MATLAB 5.0 MAT-file" + bytes(110), b"x" * 600):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"ss\.mat: can't be read as \.mat"):
            read_proposals(path, RECORDS)


def test_boxes_a_little_over_the_edge_are_clipped(tmp_path: Path):
    path = written(tmp_path / "p.json", {"a": [[-0.6, -1, 100.9, 80.5]], "b": []})
    assert corners(read_proposals(path, RECORDS)[0]) == [[0, 0, 100, 80]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 0, 5, 5], [0, 0, 102, 5]], r"image `a`, row 2: the box \(0, 0, 102, 5\) is outside .* 100 x 80 pixels"),
        ([[-2, 0, 5, 5]], r"row 1: the box \(-2, 0, 5, 5\) is outside"),
        ([[0, 0, 5, 5], [0, 0, 5, float("nan")]], r"row 2: the box \(0, 0, 5, nan\) is not finite"),
        ([[0, 0, float("inf"), 5]], r"row 1: the box \(0, 0, inf, 5\) is not finite"),
        ([[0, 0, 5, 5, float("nan")]], r"row 1: .* is not finite"),
        ([[0, 0, 5, 5], [9, 0, 5, 9]], r"row 2: the box \(9, 0, 5, 9\) is inverted: x1 <= x2 and y1 <= y2 are needed"),
        ([[0, 0, 5, 1e400]], r"row 1: .* is not finite"),
        ([[0, 0, 5, 5], [0, 0, 5]], r"image `a`, row 2: expected 4 numbers, or 5 with a score"),
        ([[0, 0, 5, "x"]], r"image `a`, row 1: expected 4 numbers"),
        ([[0, 0, 5], [1, 2, 3]], r"image `a`: expected rows of 4 numbers, .* shape \(2, 3\)"),
        (5, r"image `a`: expected rows of 4 numbers"),
    ],
)
def test_a_faulty_box_is_named_with_its_file_and_row(tmp_path: Path, rows: Any, message: str):
    with pytest.raises(DataError, match=r"p\.json: .*" + message):
        read_proposals(written(tmp_path / "p.json", {"b": [], "a": rows}), RECORDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": BOXES, "images/c.jpg": BOXES, "b": []}, r"image `images/c.jpg`, row 1: .* did you mean `images/"),
        ({"a": BOXES, "a.jpg": BOXES, "b": []}, "image `a.jpg`: `images/a.jpg` was listed before"),
        ({"a": BOXES}, r"1 of 2 images have no proposals, such as `images/b\.jpg`"),
        ([{"image_id": 7, "bbox": [0, 0, 5, 5]}, {"image_id": 9, "bbox": [0, 0, 5, 5]}], "image `9`, row 2: the data"),
        ([{"image_id": 7, "bbox": [0, 0, 5, 5]}, {"image_id": 7, "bbox": [90, 0, 20, 5]}], r"`7`, row 2: .* outside"),
        ([{"image_id": 7, "bbox": [0, 0, 5]}], "row 1: expected `image_id`"),
        ([{"image_id": 7, "bbox": [0, 0, 5, 5]}, {"id": 7}], "row 2: expected `image_id`.*KeyError"),
        ([{"path": "a", "detections": [{"box": [0, 0, 5, 5]}]}], "row 1: expected"),
        ([1, 2], r"expected images with their boxes, or a list of objects; found \[1, 2\]"),
        ("text", "found text"),
    ],
)
def test_a_faulty_file_is_named_with_what_is_wrong(tmp_path: Path, content: Any, message: str):
    with pytest.raises(DataError, match=r"p\.json: .*" + message):
        read_proposals(written(tmp_path / "p.json", content), RECORDS)


def test_missing_and_unreadable_files_are_named(tmp_path: Path):
    (tmp_path / "p.json").write_text("{", encoding="utf-8")
    np.savez(tmp_path / "p.npz", a=np.array([{}], dtype=object))
    for name, reason in (
        ("p.csv", r"proposals come as \.json, \.npz, \.mat"),
        ("none.json", "can't be read as json"),
        ("p.json", "can't be read as json"),
        ("p.npz", r"can't be read as \.npz of plain arrays"),
    ):
        with pytest.raises(DataError, match=f"{name}: {reason}"):
            read_proposals(tmp_path / name, RECORDS)


def test_an_ambiguous_name_matches_no_image(tmp_path: Path):
    records = (record("x/a.jpg", 1), record("y/a.jpg", 2))
    path = written(tmp_path / "p.json", {"x/a.jpg": BOXES, "y/a": []})
    assert [len(given.boxes) for given in read_proposals(path, records)] == [3, 0]
    with pytest.raises(DataError, match="image `a`, row 1: the data has no such image"):
        read_proposals(written(path, {"a": BOXES}), records)


def detected() -> tuple[Any, ...]:
    net = tiny.model().eval()
    data, targets = tiny.batch(2)
    with torch.no_grad():
        _, _, proposals, _, found = net.execute(data)
    return net, data, targets, found, proposals


def test_external_proposals_equal_to_those_of_the_rpn_give_the_same_detections():
    net, data, targets, expected, proposals = detected()
    data = data._replace(scales=torch.tensor([[0.5, 0.25], [2.0, 1.0]]))
    given = [
        ImageProposals((boxes[valid] / scale.flip(0).repeat(2)).double().numpy(), scores[valid].double().numpy())
        for boxes, scores, valid, scale in zip(*proposals[:3], data.scales, strict=True)
    ]
    placed = batch_proposals(given, data, proposals.boxes.shape[1])
    torch.testing.assert_close(placed.boxes, proposals.boxes)
    assert torch.equal(placed.valid, proposals.valid)
    with torch.no_grad():
        found = net.execute(data, placed).detections
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.labels, expected.labels)
    keys = net.keys(data, targets, torch.tensor([1, 2]))
    losses = net.loss(data, targets, keys)
    of_rpn = net.loss(data, targets, keys, proposals=batch_proposals(given, data, 24))
    torch.testing.assert_close(of_rpn["roi_class"], losses["roi_class"])
    torch.testing.assert_close(of_rpn["roi_box"], losses["roi_box"])


def test_the_best_are_placed_and_the_rest_is_padding():
    data, _ = tiny.batch(2)
    boxes = np.array(BOXES, dtype=np.float64) / 2
    given = [ImageProposals(boxes, np.array([0.9, 0.5, 0.1])), ImageProposals(np.zeros((0, 4)), np.zeros(0))]
    two, five = batch_proposals(given, data, 2), batch_proposals(given, data, 5)
    assert two.valid.tolist() == [[True, True], [False, False]]
    assert five.valid.tolist() == [[True, True, True, False, False], [False] * 5]
    assert torch.equal(five.boxes[0, :2], two.boxes[0])
    assert isinstance(two, Proposals)
    net = tiny.model().eval()
    with torch.no_grad():
        a, b = net.execute(data, two).detections, net.execute(data, five).detections
    assert not a.valid[1].any()
    assert not b.valid[1].any()


def test_other_images_of_the_folder_are_skipped_and_unknown_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file for all lists of a data set serves each of them, even if lists have images with the same name."""
    for name in ("train/a.jpg", "train/b.jpg", "test/a.jpg", "test/c.jpg"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 80)).save(path)
    root = tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    records = [replace(record(f"train/{name}.jpg", name), path=root / f"train/{name}.jpg") for name in "ab"]
    ours = {f"data/{name}": [[0, 0, index, 9]] for index, name in enumerate(("test/a.jpg", "test/c.jpg"), 10)}
    ours |= {"data/train/a.jpg": [[0, 0, 5, 5]], "data/train/b.jpg": [[0, 0, 6, 6]]}
    first, second = read_proposals(written(tmp_path / "p.json", ours), records, root)
    assert (corners(first), corners(second)) == ([[0, 0, 5, 5]], [[0, 0, 6, 6]])
    by_stem = {"a": [[0, 0, 5, 5]], "train/b": [[0, 0, 6, 6]], "c": [[0, 0, 7, 7]], "test/c.jpg": []}
    first, second = read_proposals(written(tmp_path / "p.json", by_stem), records, root)
    assert (corners(first), corners(second)) == ([[0, 0, 5, 5]], [[0, 0, 6, 6]])
    with pytest.raises(DataError, match="image `d`, row 1: the data has no such image"):
        read_proposals(written(tmp_path / "p.json", {**by_stem, "d": [[0, 0, 7, 7]]}), records, root)
    with pytest.raises(DataError, match="image `c`, row 1: the data has no such image"):
        read_proposals(tmp_path / "p.json", records)


def test_all_faults_are_reported_together(tmp_path: Path):
    content = {"a": [[0, 0, 5, 5], [0, 0, 101.5, 5], [float("nan"), 0, 5, 5]], "b": [[9, 0, 5, 9]], "c": [[0, 0, 5]]}
    with pytest.raises(DataError) as error:
        read_proposals(written(tmp_path / "p.json", content), RECORDS)
    assert [line.removeprefix(f"{tmp_path / 'p.json'}: ") for line in str(error.value).splitlines()] == [
        "4 faults in the proposals:",
        "image `a`, row 2: the box (0, 0, 101.5, 5) is outside the image of 100 x 80 pixels",
        "image `a`, row 3: the box (nan, 0, 5, 5) is not finite",
        "image `b`, row 1: the box (9, 0, 5, 9) is inverted: x1 <= x2 and y1 <= y2 are needed",
        "image `c`, row 1: the data has no such image",
    ]
    with pytest.raises(DataError) as error:
        read_proposals(written(tmp_path / "p.json", {"a": [[0, 0, 500, 5]] * 50, "b": []}), RECORDS)
    assert len(str(error.value).splitlines()) == 22
    assert str(error.value).endswith("and 30 more")


def test_boxes_without_area_are_dropped(tmp_path: Path):
    boxes = [[5, 5, 5, 9], [0, 0, 9, 9], [100.5, 0, 101, 9], [3, 4, 8, 4]]
    first, _ = read_proposals(written(tmp_path / "p.json", {"a": boxes, "b": []}), RECORDS)
    assert corners(first) == [[0, 0, 9, 9]]
