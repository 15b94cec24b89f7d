from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.formats import csv_labels
from rcnn.data.formats.find import open_dataset, open_lists, open_splits
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


@pytest.mark.parametrize(
    "header",
    [
        "label,image_path,xmin,ymin,xmax,ymax",
        "class_name,image_id,x_min,y_min,x_max,y_max",
        "Category;Image;X1;Y1;X2;Y2",
        "label name\tfile name\tleft\ttop\tright\tbottom",
        '"class";"path";"xmin";"ymin";"xmax";"ymax"',
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_columns_may_have_other_names_and_delimiters(tmp_path: Path, header: str, suffix: str) -> None:
    images(tmp_path, "a")
    delimiter = next(letter for letter in ",;\t" if letter in header)
    table = sets.csv(tmp_path / f"x{suffix}", [delimiter.join(("dog", "a.jpg", "5", "6", "20", "30"))], header)
    for path in (tmp_path, table):
        data = open_dataset(path, "all", Data())
        assert (data.format, data.names, data.faults) == ("csv", ("dog",), ())
        assert data.records[0].boxes.tolist() == [[5, 6, 20, 30]]


def test_images_without_objects_in_tables_of_deepforest(tmp_path: Path) -> None:
    images(tmp_path, "a", "b")
    rows = ["a.jpg,5,6,20,30,Tree", "b.jpg,0,0,0,0,Tree"]
    sets.csv(tmp_path / "x.csv", rows, "image_path,xmin,ymin,xmax,ymax,label")
    data = open_dataset(tmp_path, "all", Data())
    assert [len(record.boxes) for record in data.records] == [1, 0]
    assert [(fault.kind, "has no size; dropped" in fault.reason) for fault in data.faults] == [("mendable", True)]


def test_names_of_images_may_lack_the_suffix(tmp_path: Path) -> None:
    images(tmp_path / "images", "a.b", "c")
    sets.csv(tmp_path / "x.csv", ["a.b,dog,1,2,3,4", "c,dog,1,2,3,4"], "image_id,label,x1,y1,x2,y2")
    assert [record.name for record in open_dataset(tmp_path, "all", Data()).records] == [
        "images/a.b.jpg",
        "images/c.jpg",
    ]


def test_two_columns_that_could_be_the_same_are_refused_unless_one_has_the_exact_name(tmp_path: Path) -> None:
    images(tmp_path, "a")
    row = "a.jpg,none,dog,5,6,20,30"
    sets.csv(tmp_path / "x.csv", [row], "image,path,label,x1,y1,x2,y2")
    could = "the columns `image` and `path` could both be the `filename`; rename the one that is meant to `filename`"
    with pytest.raises(DataError, match=f"x.csv:1: {could}"):
        open_dataset(tmp_path, "all", Data())
    sets.csv(tmp_path / "x.csv", [row], "filename,path,label,x1,y1,x2,y2")
    assert len(open_dataset(tmp_path, "all", Data())) == 1


@pytest.mark.parametrize("beside", ["images", "."])
def test_keras_retinanet_has_no_header_and_a_file_of_classes(tmp_path: Path, beside: str) -> None:
    images(tmp_path / beside, "a", "b", "c")
    prefix = "" if beside == "." else f"{beside}/"
    for name, rows in (
        ("annotations.csv", [f"{prefix}a.jpg,5,6,20,30,dog", f"{prefix}a.jpg,1,2,9,9,cat", f"{prefix}b.jpg,,,,,"]),
        ("val_annotations.csv", [f"/data/{prefix}c.jpg,5,6,20,30.5,dog"]),
    ):
        (tmp_path / name).write_text("\n".join(rows))
    train, val = open_splits(tmp_path, Data())
    assert (train.format, train.names, train.faults, val.faults) == ("csv", ("cat", "dog"), (), ())
    assert [record.labels.tolist() for record in train.records] == [[1, 0], []]
    assert val.records[0].boxes.tolist() == [[5, 6, 20, 30.5]]
    (tmp_path / "class_mapping.csv").write_text("dog,0\ncat,2\nbird,1\n")
    train, val = open_splits(tmp_path, Data())
    assert (train.names, val.names) == (("dog", "bird", "cat"),) * 2
    assert [record.labels.tolist() for record in (*train.records, *val.records)] == [[0, 2], [], [0]]
    (tmp_path / "class_mapping.csv").write_text("dog,0\n")
    with pytest.raises(DataError, match=r"annotations\.csv:2: class `cat` is not among the classes dog"):
        open_splits(tmp_path, Data())


def test_roboflow_has_tables_without_a_header_and_classes_in_each_folder(tmp_path: Path) -> None:
    for split, stem in (("train", "a"), ("valid", "b"), ("test", "c")):
        images(tmp_path / split, stem)
        (tmp_path / split / "_annotations.csv").write_text(f"{stem}.jpg,5,6,20,30,dog\n")
        (tmp_path / split / "_classes.csv").write_text("dog,0\ncat,1\n")
    for path in (tmp_path, tmp_path / "train", tmp_path / "train/_annotations.csv"):
        data = open_dataset(path, "all", Data())
        assert (data.format, data.names, data.notes) == ("csv", ("dog", "cat"), ())
    assert [item.split for item in open_lists(tmp_path, Data())] == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg,20,6,5,30,dog", "is inverted"),
        ("a.jpg,5,6,20,30", "expected 6 columns path,x1,y1,x2,y2,class, found 5"),
        ("a.jpg,5,6,20,30,", "the class is empty"),
        ("a.jpg,,,,,dog", "xmin, ymin, xmax, ymax must be numbers; found , , , "),
        ("b.jpg,5,6,20,30,dog", "image `b.jpg` is missing"),
    ],
)
def test_a_faulty_row_of_a_table_without_a_header_is_named(tmp_path: Path, row: str, message: str) -> None:
    images(tmp_path, "a")
    (tmp_path / "x.csv").write_text(f"{row}\na.jpg,5,6,20,30,dog\n")
    (fault,) = [fault for fault in check(tmp_path, Data()).faults if fault.kind == "fatal"]
    assert fault.where == f"{tmp_path / 'x.csv'}:1"
    assert message in fault.reason


@pytest.mark.parametrize("text", ["a.jpg,5,6,20,30\n", "a.txt,5,6,20,30,dog\n", "a.jpg,5,6,20,wide,dog\n", "\n", '"'])
def test_other_files_are_no_tables_without_a_header(tmp_path: Path, text: str) -> None:
    images(tmp_path, "a")
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match="no data set is recognised"):
        open_dataset(tmp_path, "all", Data())


def test_faults_of_a_file_of_classes_are_named(tmp_path: Path) -> None:
    images(tmp_path, "a")
    (tmp_path / "annotations.csv").write_text("a.jpg,5,6,20,30,dog\n")
    rows = ["dog,0", *(f"class {number},{number}" for number in range(1, 30)), "dog,99", "cat,0", "cat"]
    (tmp_path / "classes.csv").write_text("\n".join(rows))
    reasons = {fault.where.rpartition(":")[2]: fault.reason for fault in check(tmp_path, Data()).faults}
    assert reasons == {
        "31": "the class `dog` or its number 99 occurs twice",
        "32": "the class `cat` or its number 0 occurs twice",
        "33": "a class and its number are expected, found cat",
    }
    (tmp_path / "more.csv").write_text("dog,0\n")
    with pytest.raises(DataError, match=r"several files beside it could name the classes: classes\.csv, more\.csv"):
        open_dataset(tmp_path, "all", Data())


def test_a_list_of_everything_is_not_read_beside_lists(tmp_path: Path) -> None:
    images(tmp_path / "images", "a", "b")
    for name in ("labels.csv", "annotations/labels.csv", "annotations/train.csv", "annotations/test.csv"):
        sets.csv(tmp_path / name, [ROW])
    (note,) = open_dataset(tmp_path, "all", Data()).notes  # those of the folder itself come first
    assert note.startswith("1 image in images/ is not in any list of labels, such as images/b.jpg")
    (tmp_path / "labels.csv").unlink()
    data = open_dataset(tmp_path, "all", Data())
    assert data.records[0].name == "images/a.jpg"
    assert any(
        note.startswith("annotations/labels.csv: not read, since there is annotations/train.csv") for note in data.notes
    )
    sets.csv(tmp_path / "annotations/train_2.csv", [ROW])
    with pytest.raises(DataError, match="several files could be the list `train`"):
        open_dataset(tmp_path, "train", Data())


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


def test_tables_beside_another_format_do_not_have_to_be_clear(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", (5, 5, 20, 20))]})
    for name in ("one.csv", "two.csv"):
        sets.csv(root / name, [ROW])
    data = open_dataset(root, "all", Data())
    assert data.format == "voc"
    assert any(note.startswith("tables: not read, since there is Annotations/*.xml") for note in data.notes)


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1).filter(lambda share: 0.01 < share < 0.99), min_size=4, max_size=4, unique=True))
def test_a_box_is_the_same_in_every_dialect(tmp_path_factory: pytest.TempPathFactory, shares: list[float]) -> None:
    root = images(tmp_path_factory.mktemp("law"), "a")
    x1, x2, y1, y2 = *sorted(60 * share for share in shares[:2]), *sorted(40 * share for share in shares[2:])
    tables = [
        f"filename,class,xmin,ymin,xmax,ymax\na.jpg,dog,{x1},{y1},{x2},{y2}\n",
        f"y2;x2;y1;x1;label;image_path\n{y2};{x2};{y1};{x1};dog;a.jpg\n",
        f"a.jpg,{x1},{y1},{x2},{y2},dog\n",
    ]
    for number, text in enumerate(tables):
        (root / f"{number}.csv").write_text(text)
        (record,) = open_dataset(root / f"{number}.csv", "all", Data(), decode=False).records
        assert record.boxes.tolist() == [[x1, y1, x2, y2]]


def test_a_table_beside_another_format_is_not_read_unless_it_is_given(tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "d", {"a": [("dog", (5, 5, 20, 20))]})
    sets.csv(root / "labels.csv", [ROW.replace("dog", "cat")])
    data = open_dataset(root, "all", Data())
    assert (data.format, data.names) == ("voc", ("dog",))
    assert any("labels.csv: not read, since there is Annotations/*.xml" in note for note in data.notes)
    assert open_dataset(root / "labels.csv", "all", Data()).names == ("cat",)
