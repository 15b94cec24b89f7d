from pathlib import Path

import pytest

from .conftest import Run


def test_check_of_sound_data_is_0(run: Run, data: Path) -> None:
    assert "no faults" in run.ok("data", "check", data).out


def move_right_edge(file: Path, xmax: int) -> None:
    file.write_text(file.read_text().replace("<xmax>50", f"<xmax>{xmax}"))


def test_check_lists_every_fault_by_file_and_line(run: Run, data: Path) -> None:
    for index in (1, 2):
        move_right_edge(data / f"Annotations/{index}.xml", 5)
    (data / "JPEGImages/3.jpg").unlink()
    outcome = run("data", "check", data)
    assert outcome.code == 3
    for text in ("Annotations/1.xml:1: ", "Annotations/2.xml:1: ", "3 faults"):
        assert text in outcome.out
    faults = run("data", "check", data, "--json").json()["faults"]
    assert [fault["kind"] for fault in faults] == ["fatal"] * 3


def test_check_of_mendable_data_is_3_as_well(run: Run, data: Path) -> None:
    move_right_edge(data / "Annotations/1.xml", 95)
    outcome = run("data", "check", data)
    assert (outcome.code, "1 mendable" in outcome.out) == (3, True)


def test_show_and_stats_write_to_a_numbered_folder(run: Run, data: Path) -> None:
    for command, names in (("show", {"mosaic.png"}), ("stats", {"train.png", "val.png"})):
        for folder in (command, f"{command}-2"):
            outcome = run.ok("data", command, data, "--out", command)
            assert {path.name for path in Path(folder).glob("*.png")} == names
    assert "circle" in outcome.out
    run.ok("data", "show", data, "--out", "picture.png")
    assert Path("picture.png").exists()
    run.fails(2, "give a folder", "data", "stats", data, "--out", "one.png")


def test_show_leaves_out_unreadable_images(run: Run, data: Path) -> None:
    file = data / "JPEGImages/1.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    run.fails(3, "1.jpg", "data", "show", data, "--on-fault", "stop")
    document = run.json("data", "show", data)
    assert sorted(document["images"]) == ["JPEGImages/0.jpg", "JPEGImages/2.jpg", "JPEGImages/3.jpg"]
    assert document["picture"] == "runs/show/mosaic.png"
    assert Path("runs/show/mosaic.png").exists()


@pytest.mark.parametrize("form", ["voc", "coco", "yolo"])
def test_convert_writes_sound_data_with_the_same_lists(run: Run, data: Path, form: str) -> None:
    outcome = run("data", "convert", data, "--to", form, "--out", "other", "--json")
    assert outcome.json()["lists"] == {"train": 4, "val": 2}
    assert f"other ({form}): 4 images in train, 2 images in val" in outcome.err
    document = run.json("data", "check", "other")
    assert (document["faults"], sum(part["images"] for part in document["lists"].values())) == ([], 6)


def test_convert_writes_only_into_new_folders(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine.txt").touch()
    for out, message in (("taken", "the folder is not empty"), ("shapes/copy", "lies inside the data set")):
        run.fails(2, message, "data", "convert", data, "--to", "coco", "--out", out)
    assert not (data / "copy").exists()
