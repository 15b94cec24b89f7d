import json
import re
from pathlib import Path

import pytest

from rcnn.config import Data
from rcnn.data.formats import coco
from rcnn.data.formats.find import open_dataset, open_lists, open_splits
from rcnn.errors import DataError
from tests.data import sets

IDS = {"dog": 18, "cat": 17, "bird": 16}
TWO = {"a.jpg": [("dog", (0, 0, 20, 30)), ("cat", (10.5, 5, 49.5, 35))], "b.jpg": []}


def test_classes_are_in_the_order_of_ids_and_keep_them(tmp_path: Path) -> None:
    data = open_dataset(sets.coco(tmp_path / "d", {"train": TWO, "val": TWO}, IDS), "train", Data())
    assert (data.format, data.names, data.category_ids) == ("coco", ("bird", "cat", "dog"), (16, 17, 18))
    first, second = data.records
    assert (first.name, first.id, first.size) == ("images/a.jpg", 1, (40, 60))
    assert first.boxes.tolist() == [[0, 0, 20, 30], [10.5, 5, 60, 40]]
    assert first.labels.tolist() == [2, 1]
    assert second.boxes.shape == (0, 4)


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_crowds_are_kept_as_ignored(tmp_path: Path, key: str) -> None:
    root = sets.coco(tmp_path / "d", {"train": TWO}, IDS)
    tree = sets.coco_tree(TWO, IDS)
    tree["annotations"][1][key] = 1
    sets.write_json(root / "annotations/train.json", tree)
    assert open_dataset(root, "all", Data()).records[0].ignore.tolist() == [False, True]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/train.json", "images/train"),
        ("annotations/train.json", "images"),
        ("annotations/train.json", "annotations"),
        ("train.json", "."),
        ("labels.json", "data"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_images_are_found_in_the_usual_places(tmp_path: Path, annotations: str, images: str) -> None:
    for name in TWO:
        sets.image(tmp_path / images / name)
    sets.write_json(tmp_path / annotations, sets.coco_tree(TWO, IDS))
    for path in (tmp_path, tmp_path / annotations):
        data = open_dataset(path, "all", Data())
        assert [record.path for record in data.records] == [tmp_path / images / name for name in TWO]


def test_file_names_may_have_folders_and_backslashes(tmp_path: Path) -> None:
    names = {"day\\one two.jpg": TWO["a.jpg"], "night/\u00fcber.jpg": []}
    sets.image(tmp_path / "images/day/one two.jpg")
    sets.image(tmp_path / "images/night/\u00fcber.jpg")
    sets.write_json(tmp_path / "annotations/train.json", sets.coco_tree(names, IDS))
    records = open_dataset(tmp_path, "all", Data()).records
    assert [record.name for record in records] == ["images/day/one two.jpg", "images/night/\u00fcber.jpg"]


def test_one_file_named_for_evaluation_is_val_and_test(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": TWO, "val": TWO}, IDS)
    file = root / "annotations/val.json"
    assert len(open_dataset(file, "val", Data())) == len(open_dataset(file, "test", Data())) == 2
    with pytest.raises(DataError, match="no `train` list; found val"):
        open_splits(file, Data())
    assert [data.split for data in open_lists(file, Data())] == ["val"]


def test_captions_and_keypoints_are_skipped(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"instances_train2017": TWO, "instances_val2017": TWO}, IDS)
    for name in ("captions_train2017", "person_keypoints_val2017"):
        sets.write_json(root / f"annotations/{name}.json", {"images": [], "annotations": []})
    assert [data.split for data in open_lists(root, Data())] == ["train", "val"]


def test_two_files_for_one_list_are_refused(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train_a": TWO, "train_b": TWO}, IDS)
    with pytest.raises(DataError, match=r"several json files could be the `train` list: train_a\.json, train_b\.json"):
        open_dataset(root, "train", Data())


def test_val_is_read_by_name_not_by_number(tmp_path: Path) -> None:
    root = sets.coco(tmp_path / "d", {"train": TWO}, IDS)
    sets.write_json(root / "annotations/val.json", sets.coco_tree(TWO, {"cat": 1, "dog": 2}))
    train, val = open_splits(root, Data())
    assert val.names == train.names
    assert val.records[0].labels.tolist() == train.records[0].labels.tolist()
    assert val.category_ids == (3, 1, 2)


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ('{"images": [], "annotations": [}', ":1:32", "malformed json: Expecting value"),
        ('{"images": [{"id": 1,}],\n "annotations": [], "categories": []}', ":1:2[0-9]", "malformed json"),
        ('{"images": [],\n\n "annotations": [\u00fc', ":3:18", "malformed json: Expecting value"),
        ('{"images": [] "annotations": []}', ":1:15", "malformed json: Expecting ',' delimiter"),
        ('{"images": []} {}', ":1:16", "malformed json: Extra data"),
        ("", ":1:1", "malformed json: Expecting value"),
        ("{" * 5 + '"a": ' + "[" * 100_000, ":1:2", "malformed json"),
        ('{"a": ' + "[" * 100_000, "", "malformed json: .*recursion"),
        ('{"a": ' + "1" * 5000 + "}", "", "malformed json: .*digits"),
        ('{"images": [], "annotations": {}}', "", "there is no array `annotations`, `categories`; is this COCO"),
        (b'\xef\xbb\xbf{"images": [],\n"annotations": "\xff"}', ":2", r"train\.json:2: this is not UTF-8 text"),
        ("null", "", "there is no array `images`, `annotations`, `categories`; is this COCO detection"),
    ],
)
def test_a_faulty_json_is_named_with_line_and_column(
    tmp_path: Path, text: str | bytes, place: str, reason: str
) -> None:
    file = tmp_path / "train.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=reason) as caught:
        open_dataset(file, "all", Data())
    (fault,) = caught.value.faults
    assert re.fullmatch(place, fault.where.removeprefix(str(file)))


def test_every_faulty_entry_is_reported_with_index_and_id(tmp_path: Path) -> None:
    """All are listed, also after a byte order mark; an entry without an id is named by its index."""
    root = sets.coco(tmp_path / "d", {"train": TWO}, IDS)
    file = root / "annotations/train.json"
    tree = sets.coco_tree(TWO, IDS)
    sound = tree["annotations"][0]
    tree["images"] += [{"file_name": "a.jpg"}, 7, {"id": None, "file_name": "c.jpg"}, {"id": [1], "file_name": "c.jpg"}]
    tree["categories"] += ["eel", {"id": True, "name": "eel"}, {"id": 18, "name": "eel"}, {"id": 3, "name": "dog"}]
    tree["categories"] += [{"name": "eel"}]
    tree["annotations"] = [
        {**sound, "id": 93, "bbox": [0, 0, -4, 3]},
        [1],
        {**sound, "id": "x", "bbox": [0, 0, True, 3]},
        {**sound, "id": 4, "image_id": [1]},
        {**sound, "id": 9, "image_id": 99},
        {**sound, "id": 5, "bbox": [0, 0, "4", 3], "category_id": 2},
        {"image_id": 1, "category_id": 18},
        {**sound, "id": 7, "bbox": [0, 0, 10**400, float("nan")]},
        {**sound, "id": 8, "bbox": None},
    ]
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(tree).encode())
    with pytest.raises(DataError) as caught:
        open_dataset(root, "all", Data())
    four = "bbox must be four numbers x, y, width, height; found"
    assert sorted(str(fault).removeprefix(f"{file}: ") for fault in caught.value.faults) == [
        "annotations[0] (id 93): box (0, 0, -4, 3) is inverted",
        "annotations[1]: an object is expected here; found [1]",
        f"annotations[2] (id x): {four} [0, 0, True, 3]",
        "annotations[3] (id 4): the annotation's image_id [1] is not the id of an image in this file",
        "annotations[4] (id 9): the annotation's image_id 99 is not the id of an image in this file",
        f"annotations[5] (id 5): {four} [0, 0, '4', 3]",
        "annotations[5] (id 5): category_id 2 is not among the categories 16 bird, 17 cat, 18 dog",
        f"annotations[6]: {four} None",
        "annotations[7] (id 7): box (0, 0, inf, nan) is not finite",
        f"annotations[8] (id 8): {four} None",
        "categories[3]: an object is expected here; found 'eel'",
        "categories[4] (id True): a category needs an integer as id and a name",
        "categories[5] (id 18): two categories with the id 18: `dog` and `eel`",
        "categories[6] (id 3): two categories with the name `dog`",
        "categories[7]: a category needs an integer as id and a name",
        "images[2]: an image needs an id and a file_name",
        "images[3]: an object is expected here; found 7",
        "images[4] (id None): an image needs an id and a file_name",
        "images[5] (id [1]): an image needs an id and a file_name",
    ]


OUTLINE = [[5, 6, 20, 6.5, 9, 30], [40, 8, 50, 8, 45, 12]]
MASK = {"size": [40, 60], "counts": [5 * 40 + 6, 4, 36, 9, 2400 - 255]}
SQUEEZED = {"size": [40, 60], "counts": "^64T15mQ2"}


def with_segments(root: Path, *segments: tuple[object, object], **more: object) -> Path:
    """Write a COCO set with annotations of (bbox, segmentation); a bbox of `...` is missing."""
    sets.coco(root, {"train": TWO}, IDS)
    tree = sets.coco_tree(TWO, IDS)
    tree["annotations"] = [
        {"id": number, "image_id": 1, "category_id": 18, "segmentation": segmentation, **more}
        | ({} if box is ... else {"bbox": box})
        for number, (box, segmentation) in enumerate(segments, start=1)
    ]
    sets.write_json(root / "annotations/train.json", tree)
    return root


@pytest.mark.parametrize("box", [..., None, [], [0, 0, 0, 0], [0.0, 0, 0, 0]])
def test_without_a_box_a_segmentation_becomes_one(tmp_path: Path, box: object) -> None:
    root = with_segments(tmp_path / "d", (box, OUTLINE), (box, [OUTLINE[0]]), (box, MASK), (box, SQUEEZED))
    data = open_dataset(root, "all", Data())
    expected = [[5, 6, 50, 30], [5, 6, 20, 30], [5, 6, 7, 15], [5, 6, 7, 15]]
    assert data.records[0].boxes.tolist() == expected[:3]  # two are the same
    assert "read as the boxes that enclose them: 2 polygons, 2 masks" in data.notes


def test_a_segmentation_that_gives_no_box_is_a_fault(tmp_path: Path) -> None:
    other = {**MASK, "size": [30, 80]}
    root = with_segments(tmp_path / "d", (..., [[1, 2, 3]]), (None, "text"), ([], other), (..., []), (..., None))
    with pytest.raises(DataError) as caught:
        open_dataset(root, "all", Data())
    reasons = [fault.reason for fault in caught.value.faults]
    none = "there is no bbox, and no box can be made of the segmentation"
    assert reasons == [
        f"{none}: each polygon must be a list of finite numbers x, y, x, y, ...",
        f"{none}: it is neither a list of polygons nor a mask",
        "the mask has 80x30 pixels, and the image 60x40",
        "bbox must be four numbers x, y, width, height; found None",
        "bbox must be four numbers x, y, width, height; found None",
    ]


@pytest.mark.parametrize(
    ("box", "segmentation"),
    [
        ([2, 3, 8, 12], [OUTLINE[0]]),  # of an image of half the size
        ([5, 6, 15, 24], [[10, 12, 40, 12, 40, 36, 10, 36]]),
        ([5, 6, 15, 24], [[25, 6, 40, 6, 40, 30]]),
        ([6, 5, 9, 2], MASK),
        ([10, 12, 4, 18], SQUEEZED),
    ],
)
def test_a_box_that_contradicts_its_segmentation_is_fatal(tmp_path: Path, box: list, segmentation: object) -> None:
    root = with_segments(tmp_path / "d", (box, segmentation))
    with pytest.raises(DataError, match=r"does not fit the segmentation, whose box is \(.*\): their IoU is below 0.5"):
        open_dataset(root, "all", Data())
    crowd = with_segments(tmp_path / "crowd", (box, segmentation), iscrowd=1)
    assert open_dataset(crowd, "all", Data()).records[0].boxes[0, 0] == box[0]


@pytest.mark.parametrize(
    ("box", "segmentation"),
    [
        ([5, 6, 15, 24], [OUTLINE[0]]),
        ([4, 6, 15, 25], [OUTLINE[0]]),
        ([5, 6, 2, 9], MASK),
        ([5, 6, 2, 1], [[5.9, 6.9, 8, 6.9, 8, 8]]),  # rounded
        ([5, 6, 15, 24], [[0, 0, 0, 0, 0, 0]]),  # no segmentation
        ([5, 6, 15, 24], []),
        ([5, 6, 15, 24], None),
        ([5, 6, 15, 24], [[]]),
        ([5, 6, 15, 24], "not read"),
        ([5, 6, 15, 24], [[7, float("nan"), 3]]),
        ([5, 6, 15, 24], {"size": [40, 60], "counts": "damaged"}),
    ],
)
def test_a_box_is_read_whatever_a_segmentation_beside_it_is(tmp_path: Path, box: list, segmentation: object) -> None:
    data = open_dataset(with_segments(tmp_path / "d", (box, segmentation)), "all", Data())
    assert (data.faults, len(data.records[0].boxes)) == ((), 1)
    assert not any("enclose" in note for note in data.notes)


def test_segmentations_do_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are most of a large file."""
    kept: list[object] = []
    read = coco._File.read
    monkeypatch.setattr(
        coco._File, "read", lambda self, tree, **names: (kept.append(tree), read(self, tree, **names))[1]
    )
    open_dataset(with_segments(tmp_path / "d", ([5, 6, 45, 24], OUTLINE), (..., MASK)), "all", Data())
    first, second = kept[0]["annotations"]  # type: ignore[index]
    assert "segmentation" not in first
    assert second["segmentation"] == ("mask", (5, 6, 7, 15), (40, 60))


def test_a_segmentation_that_occurs_twice_is_a_fault(tmp_path: Path) -> None:
    root = with_segments(tmp_path / "d", (..., OUTLINE))
    file = root / "annotations/train.json"
    file.write_text(
        file.read_text().replace('"segmentation": [[', '"segmentation": [[1, 2, 3, 4]], "segmentation": [[')
    )
    with pytest.raises(DataError, match=r"the key `segmentation` of the object with id 1 occurs twice, as .* keep one"):
        open_dataset(root, "all", Data())


def test_missing_all_images_is_one_error_with_the_folders_searched(tmp_path: Path) -> None:
    sets.write_json(tmp_path / "annotations/train.json", sets.coco_tree(TWO, IDS))
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"none of its images exists.*looked in .*annotations.*images"):
        open_dataset(tmp_path, "all", Data())
