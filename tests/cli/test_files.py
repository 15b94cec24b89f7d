"""No command overwrites a file that it did not write, or writes among the images and labels of a data set."""

import os
from pathlib import Path

import pytest

from rcnn.images.sources import MARK

from .conftest import Run, digests


@pytest.mark.parametrize(
    "name", ["JPEGImages/0.jpg", "JPEGImages/new.png", "Annotations/new.png", "new.png", "a/b.png"]
)
def test_a_picture_is_not_drawn_into_the_data(run: Run, data: Path, name: str) -> None:
    before = digests(data)
    outcome = run("data", "show", data, "--out", data / name)
    assert (outcome.code, digests(data)) == (2, before)
    assert "already exists" in outcome.err or "which is never written to" in outcome.err


def test_a_picture_is_not_drawn_over_a_file_or_through_a_link(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"mine")
    (tmp_path / "link.png").symlink_to("elsewhere.png")
    for name in ("mine.png", "link.png", "mine.gif"):
        assert run("data", "show", data, "--out", name).code == 2
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
    assert not (tmp_path / "elsewhere.png").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["data", "stats", "{data}", "--out", "{out}"],
        ["data", "convert", "{data}", "--to", "coco", "--out", "{out}"],
        ["predict", "{weights}", "{data}", "--out", "{out}", "--format", "drawn,json,coco,yolo,voc"],
        ["propose", "{weights}", "{data}", "--out", "{out}"],
        ["explain", "{weights}", "{data}/JPEGImages/0.jpg", "--out", "{out}"],
        ["why", "{weights}", "{data}", "--out", "{out}"],
        ["anchors", "{data}", "--out", "{out}"],
        ["export", "{weights}", "--out", "{out}"],
        ["demo", "--out", "{out}"],
    ],
    ids=lambda words: "-".join(words[:2]).replace("-{data}", "").replace("-{weights}", ""),
)
@pytest.mark.parametrize("out", ["", "/JPEGImages/0.jpg"])
@pytest.mark.usefixtures("blank_figures")
def test_existing_files_stay(run: Run, data: Path, weights: Path, words: list[str], out: str) -> None:
    """`--out` is the data set, or one of its files: new folders get another name."""
    before = digests(data)
    outcome = run(*(word.format(data=data, weights=weights, out=f"{data}{out}") for word in words))
    assert outcome.code in (0, 2), outcome.err
    after = digests(data)
    assert {name: after.get(name) for name in before} == before
    new = [Path(name) for name in after.keys() - before.keys()]
    assert all(any((folder / MARK).exists() for folder in (path, *path.parents)) for path in new)


def test_results_in_the_folder_of_the_data_are_marked(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    run.ok("data", "stats", ".")
    run.ok("data", "show", ".")
    run.ok("data", "show", ".", "--out", "runs/show/more.png")
    assert "4 images" in run("data", "show", data).out
    assert len(os.listdir(data / "JPEGImages")) == 6
