"""A folder without a data set is answered with the nearest format and what it lacks."""

import json
from pathlib import Path

import pytest

from rcnn.data.formats.find import find_layout
from rcnn.data.formats.unrecognised import RULES, Content
from rcnn.errors import DataError
from rcnn.images.sources import mark_results
from tests.data import sets

CREATE_ML = [{"image": "a.jpg", "annotations": [{"label": "dog", "coordinates": dict.fromkeys(("x", "y"), 9)}]}]
RESULTS = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]
SUPERVISELY = {"size": {"height": 40, "width": 60}, "objects": [{"classTitle": "dog"}]}

FILES = {
    "zip": ("data.zip", "", "`data.zip` is an archive: unpack it and give the folder"),
    "tfrecord": ("train.tfrecord", "", "`train.tfrecord` is a TFRecord.*csv that has the columns filename, class"),
    "shard": ("coco.tfrecord-00001-of-00100", "", "is a TFRecord"),
    "parquet": ("train.parquet", "", r"save them, with a metadata\.jsonl"),
    "mat": ("digitStruct.mat", "", "is MATLAB's: write its boxes into a csv with the columns filename, class"),
    "createml": ("_annotations.createml.json", json.dumps(CREATE_ML), "is CreateML's.*export the data as COCO or VOC"),
    "results": ("predictions.json", json.dumps(RESULTS), "results of a detector in the form of COCO, not labels"),
    "supervisely": ("a.jpg.json", json.dumps(SUPERVISELY), "is Supervisely's: export"),
    "json": ("a.json", '{"pictures": [{"kind": 1}]}', r"a\.json has the keys pictures, kind; a COCO json has `images`"),
    "empty list": ("a.json", "[]", r"a\.json has the keys of no object; a COCO json has"),
    "jsonl": ("metadata.jsonl", '{"file_name": "a.jpg", "text": "a dog"}\n', "must have the keys `file_name` and `obj"),
    "darknet": ("obj.data", "classes = 2\nnames = data/obj.names\n", "`obj.data` is darknet's, and must name files"),
    "yaml": ("data.yaml", "train: images\n", "`data.yaml` names no classes; a data.yaml of YOLO has"),
    "yolo": ("b.txt", "0 0.5 0.5 0.2 0.2\n", r"label files of YOLO such as b\.txt, and no .*: put b\.jpg next to it"),
    "csv": ("x.csv", "photo,a,b,c,d,kind\n", "first line of x.csv must name the columns filename, .*found photo, a"),
    "bars": ("x.csv", "filename|class|xmin|ymin|xmax|ymax\n", "separated by commas, semicolons or tabs; found filen"),
    "xywh": ("x.csv", "path,label,x,y,w,h\n", "can't be told from its columns, path, label, x, y, w, h: .*xmax = xm"),
    "corner": ("x.csv", "image_path,xmin,ymin,width,height,label\na.jpg,1,2,3,4,dog\n", "xmax = xmin \\+ width"),
    "bbox": ("x.csv", 'image_id,width,height,bbox\na,9,9,"[1, 2, 3, 4]"\n', "can't be told from its columns"),
    "eight": ("x.csv", "path,x1,y1,x2,y2,x3,y3,x4,y4,label\n", "has the corners of quadrilaterals"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("with_image", [False, True])
def test_a_file_is_answered_with_the_way_out(tmp_path: Path, name: str, with_image: bool) -> None:
    file, text, message = FILES[name]
    (tmp_path / file).write_text(text)
    if with_image:
        sets.image(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=message) as caught:
        find_layout(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: no data set is recognised here. Found: ")
    if not file.endswith((".json", ".yaml")) or text.startswith("["):  # their readers answer themselves
        with pytest.raises(DataError, match=message) as caught:
            find_layout(tmp_path / file)
        assert str(caught.value).startswith(f"{tmp_path / file}: not a data set. ")


def test_one_xml_is_not_a_data_set(tmp_path: Path) -> None:
    for text, message in (
        (sets.xml([("dog", (1, 2, 3, 4))]), "a.xml is the annotation of one image; give its folder"),
        ('<?xml version="1.0"?><net name="a"/>', "a.xml contains <net>; an annotation of VOC is an <annotation>"),
    ):
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(DataError, match=message):
            find_layout(tmp_path / "a.xml")


def test_text_of_excel_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("filename,class,xmin,ymin,xmax,ymax\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"x\.csv is UTF-16 text; save it as UTF-8"):
        find_layout(tmp_path)


def test_folders_are_answered_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    sets.image(tmp_path / "JPEGImages/a.jpg")
    with pytest.raises(DataError, match=r"Annotations must hold an xml for each image .*; found nothing"):
        find_layout(tmp_path)
    for kind in ("cat", "dog"):
        sets.image(tmp_path / f"classes/{kind}/a.jpg")
    with pytest.raises(DataError, match="as for classification; a detector needs the box of each object"):
        find_layout(tmp_path / "classes")
    (tmp_path / "yolo/labels").mkdir(parents=True)
    (tmp_path / "yolo/labels/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    sets.image(tmp_path / "yolo/images/b.jpg")
    with pytest.raises(DataError, match=r"labels holds label files of YOLO such as a\.txt, and no image has the name"):
        find_layout(tmp_path / "yolo")
    mark_results(tmp_path / "classes")
    with pytest.raises(DataError, match="These are results of rcnn, not data"):
        find_layout(tmp_path / "classes")


def test_a_data_set_in_a_folder_inside_is_named(tmp_path: Path) -> None:
    root = sets.yolo(tmp_path / "unpacked/my set", {"train": {"a": "0 0.5 0.5 0.1 0.1\n"}})
    with pytest.raises(DataError, match=f"There is a data set in the folder {root}; give {root}"):
        find_layout(tmp_path / "unpacked")


def test_folders_and_files_that_can_not_be_read_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "broken.csv").symlink_to("nowhere")
    (tmp_path / "annotations").symlink_to("nowhere")
    (tmp_path / "a.zip").write_text("")
    with pytest.raises(DataError, match="is an archive"):
        find_layout(tmp_path)


def test_what_no_rule_knows_is_answered_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("text")
    for path, message in ((tmp_path, "Found: notes.md. Looked for VOC"), (tmp_path / "notes.md", "There are readers")):
        with pytest.raises(DataError, match=message):
            find_layout(path)


def test_every_rule_about_a_file_names_it() -> None:
    assert all("{}" in rule.sentence for rule in RULES if isinstance(rule, Content))
