"""Results, scores, runs and detectors as `print` and notebooks show them, and results as tables."""

import csv
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image, ImageShow

import rcnn
from rcnn.config import Data
from rcnn.data.convert import convert
from rcnn.data.formats.find import open_dataset
from rcnn.errors import UnavailableError
from rcnn.metrics.coco import coco_metrics
from rcnn.metrics.proposal_recall import proposal_recall
from rcnn.metrics.table import Metrics
from rcnn.metrics.types import Prediction, Truth
from rcnn.metrics.voc import voc_ap
from rcnn.result import COLUMNS, MAX_PRINTED_BOXES, Result
from rcnn.training.train import Run

from .test_result import empty, result


def metrics(classes: int) -> Metrics:
    """One object of each class but the last, alternately found and missed; the first name is HTML code."""
    names = ("<b>", *(f"class {k}" for k in range(1, classes)))
    boxes = np.array([[10.0 * k, 0, 10.0 * k + 9, 20] for k in range(max(1, classes - 1))])
    labels = np.arange(len(boxes))
    truths = [Truth(boxes, labels, np.zeros(len(boxes), bool))]
    found = [Prediction(boxes[::2], np.ones(len(boxes[::2])), labels[::2])]
    return Metrics(
        names=names,
        coco=coco_metrics(truths, found, classes),
        voc=voc_ap(truths, found, classes),
        proposals=proposal_recall(truths, [(boxes, np.ones(len(boxes)))]),
        losses=dict.fromkeys(("rpn_objectness", "rpn_box", "roi_class", "roi_box", "loss"), 1.25),
        truths=truths,
        predictions=found,
    )


def notebook(shown: object) -> dict[str, Any]:
    """Mime type -> data that a notebook gets for the last value in a cell."""
    return DisplayFormatter().format(shown)[0]


def many(count: int) -> Result:
    """A result with `count` boxes and classes."""
    return empty(
        boxes=np.tile(np.array([[1, 2, 30, 40]], np.float32), (count, 1)),
        scores=np.linspace(1, 0, count, dtype=np.float32),
        labels=np.arange(count),
        names=tuple(f"class {k}" for k in range(count)),
    )


def test_a_result_is_a_sequence_of_detections() -> None:
    best, *others = result()
    assert (best.name, best.label, best.score) == ("dog", 1, pytest.approx(0.9))
    assert best.box.tolist() == [10, 20, 60, 70.25]
    assert [other.name for other in others] == ["cat", "dog"]
    assert list(empty()) == []


def test_print_lists_the_best_boxes_of_a_result() -> None:
    assert str(result(path="a.jpg")).splitlines() == [
        "Result(a.jpg, 100x80: 1 cat, 2 dog)",
        "  dog  0.90  [10.0, 20.0, 60.0, 70.2]",
        "  cat  0.75  [0.0, 0.0, 100.0, 80.0]",
        "  dog  0.30  [90.1, 70.0, 100.0, 80.0]",
    ]
    assert str(empty()) == "Result(array, 100x80: nothing)"
    lines = str(many(80)).splitlines()
    assert len(lines) == MAX_PRINTED_BOXES + 2
    assert lines[0].endswith("70 more classes)")
    assert lines[-1] == "  ... and 70 more"


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_print_of_scores_fits_a_screen(classes: int) -> None:
    lines = str(metrics(classes)).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("Metrics of 1 image, ")
    assert lines[1].startswith("AP ")
    assert "nan" not in "".join(lines)
    rows = [line for line in lines if line.startswith(("<b>", "class "))]
    assert len(rows) == min(classes, 16) + 1
    if classes == 80:  # one of them without an object
        assert "... 63 classes in between" in lines
        assert rows[1].split()[-3:] == ["1.000"] * 3  # the best first
        assert rows[-1].startswith("class 77 ")


def test_a_notebook_shows_scores_of_all_classes_as_a_table() -> None:
    shown = notebook(metrics(80))
    assert shown["text/html"].count("<tr>") == 81
    assert '<td style="text-align:left">&lt;b&gt;</td><td style="text-align:right">1</td>' in shown["text/html"]
    assert shown["text/plain"] == str(metrics(80))


def test_a_notebook_shows_the_picture_of_a_result(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (3000, 100), "white").save(path)
    shown = notebook(result(path=str(path), size=(100, 3000)))
    assert Image.open(io.BytesIO(shown["image/png"])).size == (1200, 40)
    path.unlink()  # only the text remains
    assert list(notebook(result(path=str(path), size=(100, 3000)))) == ["text/plain"]
    assert list(notebook(result())) == ["text/plain"]


def test_a_run_shows_its_scores_and_in_a_notebook_its_curves(tmp_path: Path) -> None:
    run = Run(tmp_path / "shapes-1", metrics(3), [{"epoch": 1}, {"epoch": 2}])
    assert str(run).splitlines()[:3] == [
        f"Run in {tmp_path / 'shapes-1'}, 2 epochs",
        f"weights: {run.best}",
        "Metrics of 1 image, 2 boxes, 3 classes",
    ]
    assert list(notebook(run)) == ["text/plain"]
    (run.folder / "plots").mkdir(parents=True)
    Image.new("RGB", (9, 5)).save(run.folder / "plots" / "history.png")
    assert Image.open(io.BytesIO(notebook(run)["image/png"])).size == (9, 5)


def test_print_describes_a_detector() -> None:
    cells = rcnn.load("blood-cells", device="cpu")
    assert str(cells).splitlines()[:4] == [
        "Detector mobilenet-fpn (mobilenet)",
        "  classes    3: Platelets, RBC, WBC",
        "  images     short side 448 px, long side at most 768 px",
        f"  threshold  {cells.threshold:.2f}",
    ]
    cells.names = tuple(f"class {k}" for k in range(80))
    assert "  classes    80: class 0, class 1, " in str(cells)
    assert "class 11, 68 more\n" in str(cells)


def test_csv_is_a_table_of_labels(tmp_path: Path) -> None:
    image = Image.new("RGB", (100, 80), "white")
    for name in ("a.png", "b.png"):
        image.save(tmp_path / name)
    text = result(path=str(tmp_path / "a.png")).to_csv() + empty(path="b.png").to_csv(header=False)
    (tmp_path / "labels.csv").write_text(text)
    records = open_dataset(tmp_path, "all", Data()).records
    assert [record.name for record in records] == ["a.png", "b.png"]
    np.testing.assert_allclose(records[0].boxes, result().boxes, atol=0.005)
    assert records[0].labels.tolist() == result().labels.tolist()
    assert len(records[1].boxes) == 0
    assert text.splitlines()[1] == "a.png,100,80,dog,10.0,20.0,60.0,70.25,0.9"


def test_formulas_in_results_are_text_and_come_back_when_they_are_read(tmp_path: Path) -> None:
    names = ("'", "''=1+1", "'=1+1", "'tis", "+cat", "-1", '=HYPERLINK("http://a.example")', "@SUM(A1)")
    for file in ("=a.png", "'b.png", "c.png"):
        Image.new("RGB", (100, 80), "white").save(tmp_path / file)
    boxes = np.tile(np.array([[0, 20, 60, 70.25]], np.float32), (len(names), 1))
    columns = {"boxes": boxes, "scores": np.full(len(names), 0.9, np.float32), "labels": np.arange(len(names))}
    parts = [
        result(**columns, names=names, path=file).to_csv(file == "=a.png") for file in ("=a.png", "'b.png", "c.png")
    ]
    (tmp_path / "labels.csv").write_text("".join(parts))
    read = open_dataset(tmp_path, "all", Data())
    assert (read.names, read.faults) == (names, ())
    assert [record.name for record in read.records] == ["=a.png", "'b.png", "c.png"]
    cells = [row[column] for row in csv.reader("".join(parts).splitlines()) for column in (0, 3)]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert ",0.0,20.0,60.0,70.25,0.9\n" in parts[0]
    assert [record.labels.tolist() for record in read.records] == [list(range(len(names)))] * 3
    convert(read, "csv", tmp_path.parent / "converted")
    table = (tmp_path.parent / "converted/_annotations.csv").read_text()
    assert {row["class"] for row in csv.DictReader(io.StringIO(table, newline=""))} == {*names}
    assert open_dataset(tmp_path.parent / "converted", "all", Data()).names == names


def test_data_frames_have_the_columns_of_the_csv() -> None:
    import pandas

    frame = result(path="photos/a.jpg").to_pandas()
    read = pandas.read_csv(io.StringIO(result(path="photos/a.jpg").to_csv()))
    assert list(frame.columns) == list(read.columns) == list(COLUMNS)
    assert frame["class"].tolist() == ["dog", "cat", "dog"]
    np.testing.assert_array_equal(frame[["xmin", "ymin", "xmax", "ymax"]].to_numpy(), result().boxes)
    assert list(empty().to_pandas().columns) == list(COLUMNS)
    both = pandas.concat([frame, empty().to_pandas(), frame])
    assert both.groupby("class").size().to_dict() == {"cat": 2, "dog": 4}


def test_arrow_tables_equal_the_data_frames_and_can_be_joined() -> None:
    import pandas
    import pyarrow

    one, none = result(path="photos/a.jpg"), empty(path="photos/b.jpg")
    pandas.testing.assert_frame_equal(one.to_arrow().to_pandas(), one.to_pandas())
    assert none.to_arrow().schema == one.to_arrow().schema
    joined = pyarrow.concat_tables([one.to_arrow(), none.to_arrow(), one.to_arrow()])
    assert joined.num_rows == 2 * len(one)
    np.testing.assert_array_equal(np.stack(joined.select(COLUMNS[4:8]).columns, 1)[: len(one)], one.boxes)
    assert joined["score"].to_pylist() == [*one.scores.tolist()] * 2
    (name,) = set(result(path="photos/a\udcff.jpg").to_arrow()["filename"].to_pylist())
    assert name == "a\\udcff.jpg"


def test_supervision_gets_the_same_boxes_and_draws_them() -> None:
    import supervision

    detections = result().to_supervision()
    assert len(detections) == 3
    np.testing.assert_array_equal(detections.xyxy, result().boxes)
    assert detections.class_id is not None
    assert detections.class_id.tolist() == [1, 0, 1]
    assert detections["class_name"].tolist() == ["dog", "cat", "dog"]
    assert len(detections[detections.confidence > 0.5]) == 2  # type: ignore[operator]
    drawn = supervision.BoxAnnotator().annotate(np.zeros((80, 100, 3), np.uint8), detections)
    assert np.asarray(drawn).any()
    assert len(empty().to_supervision()) == 0


@pytest.mark.parametrize(
    ("method", "package", "extra"),
    [
        ("to_pandas", "pandas", "pandas"),
        ("to_supervision", "supervision", "supervision"),
        ("to_arrow", "pyarrow", "parquet"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    method: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnavailableError, match=rf"package {package} .*pip install 'rcnn\[{extra}\]'"):
        getattr(result(), method)()


def test_saving_never_overwrites_the_image_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (100, 80), "white").save(path)
    before = path.read_bytes()
    (tmp_path / "link.png").symlink_to(path)
    for name in ("a.png", "link.png", f"../{tmp_path.name}/a.png"):
        with pytest.raises(ValueError, match="is the image itself"):
            result(path=str(path)).save(tmp_path / name)
    result(path=str(path)).save(tmp_path / "found.png")
    assert path.read_bytes() == before
    assert Image.open(tmp_path / "found.png").tobytes() == result(path=str(path)).draw().tobytes()
    with pytest.raises(ValueError, match="unknown file extension"):
        result(path=str(path)).save(tmp_path / "found.doc")


def test_show_opens_a_program_or_raises_if_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    page = np.zeros((80, 100, 3), np.uint8)
    monkeypatch.setattr(ImageShow, "show", lambda picture: shown.append(picture) or True)
    result().show(page, score=0.5)
    assert shown[0].tobytes() == result().draw(page, score=0.5).tobytes()
    monkeypatch.setattr(ImageShow, "show", lambda picture: False)
    with pytest.raises(UnavailableError, match=r"result\.save\(FILE\)"):
        result().show(page)
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=True))
    monkeypatch.setattr("IPython.display.display", shown.append)
    result().show(page)
    assert len(shown) == 2


def test_cells_of_a_notebook_show_pictures_and_tables(tmp_path: Path) -> None:
    import nbclient
    from nbformat.v4 import new_code_cell, new_notebook

    code = (
        "import numpy as np; from rcnn.result import Result; from PIL import Image\n"
        "Image.new('RGB', (100, 80), 'white').save('a.png')\n"
        "box, score, label = np.array([[5, 5, 50, 50]], np.float32), np.ones(1), np.zeros(1, int)\n"
        "result = Result(box, score, label, ('cat',), 'a.png', (80, 100))"
    )
    book = new_notebook(cells=[new_code_cell(cell) for cell in (code, "result", "result.show()", "print(result)")])
    nbclient.NotebookClient(book, resources={"metadata": {"path": tmp_path}}, timeout=60).execute()
    no_output, (value,), (picture,), (text,) = (cell["outputs"] for cell in book.cells)
    assert no_output == []
    assert value["data"].keys() == {"image/png", "text/plain"}
    assert "image/png" in picture["data"]
    assert text["text"].startswith("Result(a.png, 100x80: 1 cat)")
