from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Outcome

Run = Callable[..., Outcome]


def test_check_of_sound_data_is_0(run: Run, data: Path) -> None:
    outcome = run("data", "check", data)
    assert outcome.code == 0, outcome.err
    assert "no faults" in outcome.out


def test_check_lists_every_fault_by_file_and_line(run: Run, data: Path) -> None:
    for index in (1, 2):
        file = data / f"Annotations/{index}.xml"
        file.write_text(file.read_text().replace("<xmax>50", "<xmax>5"))
    (data / "JPEGImages/3.jpg").unlink()
    outcome = run("data", "check", data)
    assert outcome.code == 3
    assert "Annotations/1.xml:1: " in outcome.out
    assert "Annotations/2.xml:1: " in outcome.out
    assert "3 faults" in outcome.out
    document = run("data", "check", data, "--json").json()
    assert len(document["faults"]) == 3
    assert {fault["kind"] for fault in document["faults"]} == {"fatal"}


def test_check_of_mendable_data_is_3_as_well(run: Run, data: Path) -> None:
    file = data / "Annotations/1.xml"
    file.write_text(file.read_text().replace("<xmax>50", "<xmax>95"))
    outcome = run("data", "check", data)
    assert outcome.code == 3
    assert "1 mendable" in outcome.out


def test_stats_counts_boxes_and_draws(run: Run, data: Path, tmp_path: Path) -> None:
    outcome = run("data", "stats", data, "--out", tmp_path / "stats")
    assert outcome.code == 0, outcome.err
    assert "circle" in outcome.out
    assert list((tmp_path / "stats").glob("*.png"))


def test_show_draws_a_mosaic(run: Run, data: Path, tmp_path: Path) -> None:
    outcome = run("data", "show", data, "--out", tmp_path / "mosaic.png")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "mosaic.png").exists()


def test_show_and_stats_take_a_folder_that_is_numbered(run: Run, data: Path, tmp_path: Path) -> None:
    for command, names in (("show", {"mosaic.png"}), ("stats", {"train.png", "val.png"})):
        for folder in (tmp_path / command, tmp_path / f"{command}-2"):
            assert run("data", command, data, "--out", tmp_path / command).code == 0
            assert {path.name for path in folder.glob("*.png")} == names
    outcome = run("data", "stats", data, "--out", "one.png")
    assert (outcome.code, "give a folder" in outcome.err) == (2, True)


def test_show_leaves_out_what_cannot_be_read(run: Run, data: Path) -> None:
    file = data / "JPEGImages/1.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    stopped = run("data", "show", data, "--on-fault", "stop")
    assert (stopped.code, "1.jpg" in stopped.err) == (3, True)
    document = run("data", "show", data, "--json").json()
    assert sorted(document["images"]) == ["JPEGImages/0.jpg", "JPEGImages/2.jpg", "JPEGImages/3.jpg"]
    assert document["picture"] == "runs/show/mosaic.png"
    assert Path(document["picture"]).exists()


@pytest.mark.parametrize("form", ["voc", "coco", "yolo"])
def test_convert_writes_data_of_the_same_boxes(run: Run, data: Path, tmp_path: Path, form: str) -> None:
    outcome = run("data", "convert", data, "--to", form, "--out", tmp_path / "other", "--json")
    assert outcome.json()["lists"] == {"train": 4, "val": 2}
    assert f"other ({form}): 4 images in train, 2 images in val" in outcome.err
    document = run("data", "check", tmp_path / "other", "--json").json()
    assert (document["faults"], sum(part["images"] for part in document["lists"].values())) == ([], 6)


def test_convert_writes_into_new_folders_alone(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").touch()
    for out, said in (("taken", "something is there already"), ("shapes/copy", "lies inside the data set")):
        outcome = run("data", "convert", data, "--to", "coco", "--out", tmp_path / out)
        assert outcome.code == 2
        assert said in outcome.err
    assert not (data / "copy").exists()


@pytest.mark.parametrize(("words", "code"), [(["nowhere"], 3), (["{data}", "data.pth=x"], 2), (["a", "b"], 2)])
def test_bad_input_is_told(run: Run, data: Path, words: list[str], code: int) -> None:
    outcome = run("data", "check", *(word.format(data=data) for word in words))
    assert outcome.code == code
    assert "Traceback" not in outcome.err
