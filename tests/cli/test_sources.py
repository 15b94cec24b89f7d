"""What `predict` and `propose` take, and what `train` makes of their results."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL, Outcome

Run = Callable[..., Outcome]


@pytest.mark.parametrize("command", ["predict", "propose"])
@pytest.mark.parametrize(("split", "stems"), [("val", "45"), ("train", "0123"), ("all", "012345")])
def test_a_list_of_a_data_set_is_a_source(
    run: Run, data: Path, weights: Path, command: str, split: str, stems: str
) -> None:
    outcome = run(command, weights, data, "--split", split, "--format", "json", "--json")
    assert outcome.code == 0, outcome.err
    assert [Path(row["path"]).stem for row in outcome.json()] == list(stems)


def test_a_coco_json_gives_the_ids_of_its_images(run: Run, data: Path, weights: Path, tmp_path: Path) -> None:
    run("data", "convert", data, "--to", "coco", "--out", tmp_path / "copy")
    file = tmp_path / "copy/annotations/val.json"
    tree = json.loads(file.read_text())
    for key, rows in (("id", tree["images"]), ("image_id", tree["annotations"])):
        for row in rows:
            row[key] += 70
    file.write_text(json.dumps(tree))
    assert run("predict", weights, file, "--format", "coco", "--out", "out").code == 0
    assert {row["image_id"] for row in json.loads(Path("out/coco.json").read_text())} == {71, 72}


@pytest.mark.parametrize(
    ("words", "said"),
    [(("{data}", "--split", "test"), "no `test` list"), (("{data}/ImageSets", "--split", "val"), "no data set")],
)
def test_a_source_that_is_no_data_set_is_told(
    run: Run, data: Path, weights: Path, words: tuple[str, ...], said: str
) -> None:
    outcome = run("predict", weights, *(word.format(data=data) for word in words))
    assert (outcome.code, said in outcome.err) == (3, True)


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_what_predict_writes_is_a_data_set(run: Run, data: Path, weights: Path, form: str) -> None:
    (data / "JPEGImages/5.jpg").rename(data / "JPEGImages/4.jpeg")  # two images of one stem
    assert run("predict", weights, data / "JPEGImages", "--format", form, "--out", "out").code == 0
    checked = run("data", "check", f"out/{form}")
    assert (checked.code, "no faults" in checked.out, "6 images" in checked.out) == (0, True, True), checked.out
    planned = run("train", f"out/{form}", "--model", "tiny-fpn", *SMALL, "--dry-run", "--json")
    assert planned.json()["train"]["images"] == 5
