from pathlib import Path

import pytest

from rcnn.errors import ImageError
from rcnn.images.sources import files, mark_results


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_folders_are_searched_to_the_bottom_and_globs_are_sorted(tmp_path: Path) -> None:
    make(tmp_path, "a/b/2.JPG", "a/1.png", "a/3.png", "a/notes.txt")
    assert files(tmp_path / "a") == [tmp_path / "a/1.png", tmp_path / "a/3.png", tmp_path / "a/b/2.JPG"]
    assert files(f"{tmp_path}/a*") == files(tmp_path / "a")
    assert files(f"{tmp_path}/a/[13].png") == [tmp_path / "a/1.png", tmp_path / "a/3.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no image in this folder"):
        files(tmp_path / "empty")
    with pytest.raises(ImageError, match="no such file, folder or glob"):
        files(tmp_path / "*.png")


def test_results_are_skipped_unless_they_are_named(tmp_path: Path) -> None:
    make(tmp_path, "1.png", "runs/predict/drawn/1.png", "runs/predict/drawn/2.png")
    mark_results(tmp_path / "runs/predict")
    for source in (tmp_path, f"{tmp_path}/**/*.png", f"{tmp_path}/*"):
        assert files(source) == [tmp_path / "1.png"]
    for source in (tmp_path / "runs/predict", f"{tmp_path}/runs/predict/drawn/*.png"):
        assert [file.name for file in files(source)] == ["1.png", "2.png"]
    with pytest.raises(ImageError, match="there are only results of rcnn here"):
        files(tmp_path / "runs")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("https://example.org/a.jpg", "addresses are not opened"),
        ("rtsp://camera/1", "addresses are not opened"),
        ("film.mp4", "videos are not read"),
        ("0", "cameras are not read"),
        ("gone.jpg", "no such file, folder or glob"),
        ("a" * 300, "no such file, folder or glob"),
    ],
)
def test_sources_that_other_programs_accept_are_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "film.mp4").touch()
    with pytest.raises(ImageError, match=reason):
        files(source)


def test_an_entire_disk_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcnn.images.sources.MAX_OTHER_FILES", 100)
    (tmp_path / "a.jpg").touch()
    for number in range(150):
        (tmp_path / f"{number}.c").touch()
    with pytest.raises(ImageError, match="there are 1 images among the first 151 files and folders; give a folder of"):
        files(tmp_path)


def test_an_entire_disk_is_not_searched_for_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Circular links count too; folders with many images, and those that a glob does not search, do not."""
    monkeypatch.setattr("rcnn.images.sources.MAX_OTHER_FILES", 100)
    make(tmp_path, *(f"disk/{number // 10}/{number}.txt" for number in range(200)), "disk/a.png")
    make(tmp_path, *(f"photos/{number // 10}/{number}.png" for number in range(200)))
    make(tmp_path, *(f"photos/.hidden/{number}.txt" for number in range(10)))
    (tmp_path / "round/deep").mkdir(parents=True)
    make(tmp_path, "round/a.png", *(f"round/deep/{number}.txt" for number in range(60)))
    (tmp_path / "round/deep/again").symlink_to(tmp_path / "round")
    for pattern in ("disk/**", "d*/**/*.png", "**/a.png", "round/**/*.png"):
        with pytest.raises(ImageError, match=r"images among the first .* give a folder of images"):
            files(f"{tmp_path}/{pattern}")
    assert len(files(f"{tmp_path}/p*/**/*.png")) == 200
    assert files(f"{tmp_path}/disk/*.png") == [tmp_path / "disk/a.png"]
