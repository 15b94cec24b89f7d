from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn.config import Data
from rcnn.data.check import check
from rcnn.data.formats import openimages
from rcnn.data.formats.find import find_layout, open_dataset, open_lists, open_splits
from rcnn.errors import DataError
from tests.data import sets
from tests.limits import MB, in_child

HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
DOG, CAT = "/m/0bt9lr", "/m/01yrx"
BOX = "0.25,0.5,0.1,0.9"


def row(image: str, number: str = DOG, box: str = BOX, confidence: str = "1", group: str = "0") -> str:
    return f"{image},xclick,{number},{confidence},{box},0,1,{group},0,0"


def open_images(root: Path, classes: str = "class-descriptions-boxable.csv", images: str = "{split}") -> Path:
    """Write two lists with two images each, and the file that names the classes."""
    for split, ids in (("train", ("0a", "0b")), ("validation", ("0c",))):
        for name in ids:
            sets.image(root / images.format(split=split) / f"{name}.jpg")
        rows = [*(row(name) for name in ids), row(ids[0], CAT, "0,1,0,1")]
        sets.csv(root / f"{split}-annotations-bbox.csv", rows, HEADER)
    if classes:
        (root / classes).write_text(f"{CAT},Cat\n/m/0,Tree\n{DOG},Dog\n")
    return root


@pytest.mark.parametrize(
    "images", ["{split}", "images", "images/{split}", "{split}/images", "{split}/data", "data", "."]
)
def test_boxes_are_fractions_with_both_x_first(tmp_path: Path, images: str) -> None:
    root = open_images(tmp_path, images=images)
    train, val = open_splits(root, Data())
    assert (train.format, train.names, train.faults, val.faults) == ("openimages", ("Cat", "Dog"), (), ())
    first = train.records[0]
    assert (first.path, first.id) == (root / images.format(split="train") / "0a.jpg", "0a")
    assert first.boxes.tolist() == [[15, 4, 30, 36], [0, 0, 60, 40]]
    assert first.labels.tolist() == [1, 0]
    assert [record.id for record in val.records] == ["0c"]
    assert [data.split for data in open_lists(root, Data())] == ["train", "val"]


@pytest.mark.parametrize(
    ("header", "place"),
    [(False, "oidv7-class-descriptions.csv"), (True, "class-descriptions.csv"), (False, "../class-descriptions.csv")],
)
def test_classes_are_named_by_a_file_beside_the_table_or_above(
    tmp_path: Path, header: bool, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rcnn.data.cache.SETTLING_NS", 0)  # remember lists whose files have just changed
    root = open_images(tmp_path / "set", classes="")
    head = "LabelName,DisplayName\n" if header else ""
    (root / place).write_text(f'{head}{CAT},"Cat, small"\n{DOG},Dog\n')
    for path in (root, root / "train-annotations-bbox.csv"):
        assert open_dataset(path, "all", Data()).names == ("Cat, small", "Dog")
    (root / place).write_text(f"{CAT},Felis\n{DOG},Canis\n")  # also noticed above the folder of the set
    assert open_dataset(root, "all", Data()).names == ("Canis", "Felis")


def test_without_a_file_that_names_them_classes_are_ids(tmp_path: Path) -> None:
    root = open_images(tmp_path, classes="")
    data = open_dataset(root, "all", Data())
    assert data.names == (CAT, DOG)
    assert data.notes == (
        f"2 classes without a name, such as {CAT}: put class-descriptions-boxable.csv of Open Images next to the table "
        "to name them",
    )
    (root / "class-descriptions-boxable.csv").write_text(f"{DOG},Dog\n")
    data = open_dataset(root, "all", Data())
    assert data.names == (CAT, "Dog")
    assert data.notes == (f"1 class without a name, such as {CAT}: not in class-descriptions-boxable.csv",)


def test_two_classes_with_one_name_stay_apart(tmp_path: Path) -> None:
    root = open_images(tmp_path)
    (root / "class-descriptions-boxable.csv").write_text(f"{CAT},Pet\n{DOG},Pet\n")
    assert open_dataset(root, "all", Data()).names == (f"Pet ({CAT})", f"Pet ({DOG})")


def test_rows_of_images_that_are_not_here_are_counted_and_no_fault(tmp_path: Path) -> None:
    root = open_images(tmp_path)
    rows = [row("0a"), *[row("ff")] * 5, row("0b"), row("ee"), row("0a", CAT)]
    sets.csv(root / "train-annotations-bbox.csv", rows, HEADER)
    sets.image(root / "train/unlisted.png")
    train, _ = open_splits(root, Data())
    assert [len(record.boxes) for record in train.records] == [2, 1]
    assert train.faults == ()
    assert "6 rows of train-annotations-bbox.csv name images that are not here; they are left out" in train.notes
    unlisted = "1 image without a row in train-annotations-bbox.csv, such as unlisted.png; left out, as not labelled"
    assert unlisted in train.notes


def test_none_of_the_images_here_is_an_error(tmp_path: Path) -> None:
    root = open_images(tmp_path)
    sets.csv(root / "train-annotations-bbox.csv", [row("ff")], HEADER)
    with pytest.raises(DataError, match=rf"none of its images is here; looked in {root / 'train'}"):
        open_splits(root, Data())
    for image in root.rglob("*.jpg"):
        image.unlink()
    with pytest.raises(DataError, match="looked in the usual folders, where there are no images at all"):
        open_splits(root, Data())


def test_groups_are_ignored_and_denied_objects_left_out(tmp_path: Path) -> None:
    root = open_images(tmp_path)
    rows = [row("0a", group="1"), row("0a", CAT), row("0b", confidence="0"), row("0b", CAT, group="-1")]
    sets.csv(root / "train-annotations-bbox.csv", rows, HEADER)
    train = open_dataset(root, "train", Data())
    assert [record.ignore.tolist() for record in train.records] == [[True, False], [False]]
    assert any("1 row of train-annotations-bbox.csv with the confidence 0 left out" in note for note in train.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (row("0a", box="0.5,0.25,0.1,0.9"), "box (0.5, 0.1, 0.25, 0.9) is inverted"),
        (row("0a", box="15,30,4,36"), "is in pixels? Shares of the image's width and height, 0..1, are expected"),
        (row("0a", box="a,b,c,d"), "XMin, YMin, XMax, YMax must be numbers; found a, c, b, d"),
        (row("0a", box="nan,1,0,1"), "is not finite"),
        (row("0a", ""), "the class is empty"),
        ("0a,xclick", "expected 13 columns as in the header, found 2: 0a, xclick"),
        (row("0a") + "x" * 140_000, "malformed csv: field larger than field limit"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    root = open_images(tmp_path)
    (root / "validation-annotations-bbox.csv").unlink()
    sets.csv(root / "train-annotations-bbox.csv", [row("0b"), text], HEADER)
    (fault,) = [fault for fault in check(root, Data()).faults if fault.kind == "fatal"]
    assert fault.where == f"{root / 'train-annotations-bbox.csv'}:3"
    assert message in fault.reason


def test_a_faulty_file_of_names_and_two_images_of_one_id_are_named(tmp_path: Path) -> None:
    root = open_images(tmp_path)
    (root / "class-descriptions-boxable.csv").write_text(f"{CAT},Cat\n{DOG}\n")
    sets.image(root / "train/0a.png")
    reasons = "\n".join(map(str, check(root, Data()).faults))
    assert "class-descriptions-boxable.csv:2: expected the id of a class and its name, found 1: /m/0bt9lr" in reasons
    assert f"two images with this name in {root / 'train'}: 0a.jpg, 0a.png; keep one" in reasons


def test_fiftyone_has_a_folder_for_each_list(tmp_path: Path) -> None:
    for split, name in (("train", "0a"), ("validation", "0b")):
        sets.image(tmp_path / f"{split}/data/{name}.jpg")
        sets.csv(tmp_path / f"{split}/labels/detections.csv", [row(name), row("ff")], HEADER)
        sets.csv(tmp_path / f"{split}/metadata/classes.csv", [f"{DOG},Dog"], f"{CAT},Cat")
    train, val = open_splits(tmp_path, Data())
    assert (train.names, train.records[0].name, val.records[0].name) == (
        ("Dog",),
        "train/data/0a.jpg",
        "validation/data/0b.jpg",
    )


def test_other_tables_of_open_images_are_not_taken_for_boxes(tmp_path: Path) -> None:
    root = open_images(tmp_path)
    labels = "ImageID,Source,LabelName,Confidence"
    sets.csv(root / "train-annotations-human-imagelabels.csv", ["0a,verification,/m/0,1"], labels)
    sets.csv(root / "train-images-boxable.csv", ["0a,train,https://example.org"], "ImageID,Subset,OriginalURL")
    assert [*find_layout(root).lists] == ["train", "val"]


def test_a_table_beside_another_format_is_not_read(tmp_path: Path) -> None:
    root = open_images(sets.voc(tmp_path / "d", {"0a": [("dog", (5, 5, 20, 20))]}))
    data = open_dataset(root, "all", Data())
    assert data.format == "voc"
    names = "train-annotations-bbox.csv, validation-annotations-bbox.csv"
    assert f"{names}: not read, since there is Annotations/*.xml; give the table itself to read it" in data.notes


def test_the_objects_that_are_kept_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = open_images(tmp_path)
    monkeypatch.setattr(openimages, "MAX_OBJECTS", 2)
    reasons = "\n".join(map(str, check(root, Data()).faults))
    assert "train-annotations-bbox.csv:4: the table continues here, but only 2 objects are read" in reasons
    monkeypatch.setattr(openimages, "MAX_TABLE_ROWS", 1)
    assert "but only 1 lines are read" in "\n".join(map(str, check(root, Data()).faults))


def test_a_large_table_of_which_few_images_are_here_is_read_in_seconds_and_little_memory(tmp_path: Path) -> None:
    root = open_images(tmp_path)
    with (root / "train-annotations-bbox.csv").open("w") as file:
        file.write(f"{HEADER}\n")
        for number in range(400_000):
            file.write(f"{row(f'{number // 8:016x}')}\n")
        file.write(f"{row('0a')}\n")

    def read() -> None:
        data = open_dataset(root, "train", Data(), decode=False)
        assert [record.id for record in data.records] == ["0a"]
        assert any("400,000 rows" in note for note in data.notes)

    in_child(read, seconds=15, resident=40 * MB)


@settings(max_examples=50)
@given(st.lists(st.floats(0.001, 0.999), min_size=4, max_size=4, unique=True), st.permutations(range(7)))
def test_the_order_of_the_columns_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, shares: list[float], order: list[int]
) -> None:
    root = tmp_path_factory.mktemp("law")
    sets.image(root / "a.jpg")
    (x1, x2), (y1, y2) = sorted(shares[:2]), sorted(shares[2:])
    cells = [("ImageID", "a"), ("LabelName", DOG), ("XMin", x1), ("XMax", x2), ("YMin", y1), ("YMax", y2), ("Z", 1)]
    names, values = zip(*(cells[index] for index in order), strict=True)
    sets.csv(root / "x.csv", [",".join(map(str, values))], ",".join(names))
    (record,) = open_dataset(root, "all", Data(), decode=False).records
    assert record.boxes.tolist() == [[60 * x1, 40 * y1, 60 * x2, 40 * y2]]
