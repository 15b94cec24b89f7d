from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.formats import csv_labels
from rcnn.data.formats.find import open_dataset, open_splits
from rcnn.errors import DataError
from tests.data import sets

ROW = "a.jpg,60,40,dog,5,6,20,30"


def images(folder: Path, *stems: str) -> Path:
    for stem in stems:
        sets.image(folder / f"{stem}.jpg")
    return folder


@given(st.text() | st.text(st.sampled_from("=+-@\t\r'a"), max_size=4))
def test_every_text_of_a_result_comes_back_and_none_is_a_formula(text: str) -> None:
    cell = csv_labels.guarded(text)
    assert csv_labels.unguarded(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert cell in (text, f"'{text}")


def test_an_apostrophe_belongs_to_the_name_in_tables_that_are_not_results(tmp_path: Path) -> None:
    images(tmp_path, "a")
    row = ROW.replace("dog", "'=dog")
    table = sets.csv(tmp_path / "x.csv", [row])
    assert open_dataset(table, "all", Data()).names == ("'=dog",)
    sets.csv(table, [f"{row},0.5"], "filename,width,height,class,xmin,ymin,xmax,ymax,score")
    assert open_dataset(table, "all", Data()).names == ("=dog",)


def test_roboflow_has_a_table_in_each_folder(tmp_path: Path) -> None:
    for split, stem in (("train", "a"), ("valid", "b"), ("test", "c")):
        images(tmp_path / split, stem)
        sets.csv(tmp_path / split / "_annotations.csv", [ROW.replace("a.jpg", f"{stem}.jpg")])
    train, val = open_splits(tmp_path, Data())
    (record,) = train.records
    assert (train.format, train.names, record.name, record.id) == ("csv", ("dog",), "train/a.jpg", "a")
    assert record.boxes.tolist() == [[5, 6, 20, 30]]
    assert [record.name for record in val.records] == ["valid/b.jpg"]
    assert [record.name for record in open_dataset(tmp_path, "test", Data()).records] == ["test/c.jpg"]


@pytest.mark.parametrize("given", [".", "labels", "labels/train_labels.csv"])
def test_tensorflow_has_a_table_per_list_and_all_images_in_a_folder(tmp_path: Path, given: str) -> None:
    images(tmp_path / "images", "a", "b")
    folder = tmp_path if given == "." else tmp_path / "labels"
    sets.csv(folder / "train_labels.csv", [ROW, ROW.replace("dog,5", "cat,7")])
    sets.csv(folder / "test_labels.csv", [ROW.replace("a.jpg", "b.jpg")])
    data = open_dataset(tmp_path / given, "all", Data())
    assert data.names == ("cat", "dog")
    assert data.faults == ()
    assert data.notes == ()
    assert data.records[0].labels.tolist() == [1, 0]


def test_the_columns_may_be_in_any_order_with_others_among_them(tmp_path: Path) -> None:
    images(tmp_path, "a")
    row = '7,20,5,"a dog, black",30,6,/home/ann/a.jpg'
    sets.csv(tmp_path / "x.csv", [row], "id,xmax,Xmin, CLASS ,ymax,ymin,filename")
    (record,) = open_dataset(tmp_path, "all", Data()).records
    assert record.boxes.tolist() == [[5, 6, 20, 30]]
    assert open_dataset(tmp_path / "x.csv", "all", Data()).names == ("a dog, black",)


def test_an_image_whose_path_is_written_in_two_ways_is_one_image(tmp_path: Path) -> None:
    images(tmp_path, "a")
    sets.csv(tmp_path / "x.csv", [ROW, f"C:\\pictures\\{ROW.replace('dog', 'cat')}"])
    (record,) = open_dataset(tmp_path, "all", Data()).records
    assert record.labels.tolist() == [1, 0]


def test_images_without_objects_have_a_row_with_their_name(tmp_path: Path) -> None:
    images(tmp_path, "a", "b", "c")
    sets.csv(tmp_path / "x.csv", [ROW, "b.jpg,,,,,,,"])
    data = open_dataset(tmp_path, "all", Data())
    assert [len(record.boxes) for record in data.records] == [1, 0]
    assert any(f"1 image in {tmp_path} is not in any list of labels, such as c.jpg" in note for note in data.notes)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg,60,40,dog,5", "expected 8 columns as in the header, found 5: a.jpg, 60, 40, dog, 5"),
        (f"{ROW},9", "expected 8 columns as in the header, found 9"),
        (ROW.replace("a.jpg", "b.jpg"), "image `b.jpg` is missing; looked in"),
        ("a.jpg,60,40,dog,0.1,0.2,0.5,0.9", "has normalised coordinates? Pixels are expected"),
        ("a.jpg,60,40,dog,20,6,5,30", "is inverted"),
        (ROW.replace("dog", " "), "the class is empty"),
        (ROW.replace("5,6", "five,6"), "xmin, ymin, xmax, ymax must be numbers; found five, 6, 20, 30"),
        (ROW.replace("60,40", "50,40"), "the image is 50x40 pixels here, and 60x40 in a row before"),
        (ROW.replace("60,40", "wide,40"), "width and height must be numbers; found wide, 40"),
        (ROW.replace("dog", "x" * 140_000), "malformed csv: field larger than field limit"),
        (ROW.replace("5", "inf"), "is not finite"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    images(tmp_path, "a")
    sets.csv(tmp_path / "x.csv", [ROW, row])
    report = check(tmp_path, Data())
    fatal = [str(fault) for fault in report.faults if fault.kind == "fatal"]
    assert len(fatal) == 1
    assert fatal[0].startswith(f"{tmp_path / 'x.csv'}:3: ")
    assert message in fatal[0]


def test_a_table_is_read_up_to_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, "a")
    sets.csv(tmp_path / "x.csv", [ROW] * 9)
    monkeypatch.setattr(csv_labels, "MAX_TABLE_ROWS", 5)
    reason = "x.csv:7: the table continues here, but only 5 lines are read"
    assert reason in "\n".join(map(str, check(tmp_path, Data()).faults))
    monkeypatch.setattr(csv_labels, "MAX_CSV_BYTES", 100)
    assert "are too many" in str(check(tmp_path, Data()).faults[0])


def test_a_table_of_other_images_and_one_with_a_column_twice_are_refused(tmp_path: Path) -> None:
    for more, reason in (
        ("", r": none of its images exists\. image `a\.jpg` is missing"),
        (",class", ":1: the column `class` occurs twice"),
    ):
        sets.csv(tmp_path / "x.csv", [ROW + more], ",".join(csv_labels.COLUMNS) + more)
        with pytest.raises(DataError, match=rf"x\.csv{reason}"):
            open_dataset(tmp_path, "all", Data())


def test_a_table_beside_another_format_is_not_read_unless_it_is_given(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", (5, 5, 20, 20))]})
    sets.csv(root / "labels.csv", [ROW.replace("dog", "cat")])
    data = open_dataset(root, "all", Data())
    assert (data.format, data.names) == ("voc", ("dog",))
    assert any("labels.csv: not read, since there is Annotations/*.xml" in note for note in data.notes)
    assert open_dataset(root / "labels.csv", "all", Data()).names == ("cat",)
