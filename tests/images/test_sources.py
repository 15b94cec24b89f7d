import tracemalloc
from collections import deque
from cProfile import Profile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.errors import ImageError
from rcnn.images.sources import FileList, NamedImage, files, mark_results, open_source, walk


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
        ("rtsp://camera/1", r"rtsp:...: addresses of this kind are not opened; there are s3://"),
        ("ftp://server/a.jpg", "addresses of this kind are not opened"),
        ("data:image/png;base64,AAAA", "addresses of this kind are not opened"),
        ("https://user:password@example.org/a.jpg", "a user, a password or a signature"),
        ("simplecache::s3://bucket/a.jpg", "chain several schemes"),
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


def test_a_list_of_files_makes_its_images_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = ["a/1.png", str(tmp_path / "b/2.png"), "a/../b/3..png"]
    listed = FileList(paths)
    assert [image.name for image in listed] == paths
    assert listed[1:][0] == listed[1] == listed[-2] == NamedImage(Path(paths[1]), paths[1], 1)
    assert [image.name for image in listed.below(tmp_path)] == ["a/1.png", "b/2.png", "b/3..png"]
    assert [image.name for image in listed.below("/")[1:]] == [
        str(tmp_path / f"b/{name}")[1:] for name in ("2.png", "3..png")
    ]
    with pytest.raises(IndexError):
        listed[3]


@given(
    st.lists(st.lists(st.sampled_from("a-0.\N{LATIN SMALL LETTER E WITH ACUTE}"), min_size=1, max_size=3), max_size=12)
)
def test_images_are_found_in_the_order_of_their_paths(names: list[list[str]]) -> None:
    with TemporaryDirectory() as folder:
        made = {Path(folder, *(f"{part}x" for part in parts[:-1]), f"{parts[-1]}x.png") for parts in names}
        make(Path(folder), *map(str, made))
        assert [Path(path) for path in walk(folder)] == sorted(made)


def test_listing_takes_one_call_per_file_and_little_memory(tmp_path: Path) -> None:
    """Strings of up to 100 characters, and the entries of one folder."""
    counts, memory = [], []
    for number in (100, 2_000):
        top = tmp_path / str(number)
        make(top, *(f"{file % 10}/{file:06}.jpg" for file in range(number)))
        tracemalloc.start()
        found = open_source(top)
        memory.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        profile = Profile()
        profile.runcall(lambda top=top: deque(open_source(top).below(top), maxlen=0))
        counts.append(sum(entry.callcount for entry in profile.getstats()) / number)
        assert len(found) == number
    assert counts[1] < 1.05 * counts[0]
    assert (memory[1] - memory[0]) / 1_900 < 250
