"""The cache of data sets: what is remembered equals what is read, and every change is noticed."""

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn.config import Data
from rcnn.config.files import cache_folder
from rcnn.data import cache, image_checks, list_cache
from rcnn.data.check import check
from rcnn.data.dataset import Dataset
from rcnn.data.formats import find
from rcnn.data.formats.find import open_dataset, open_lists, open_several, open_splits
from rcnn.errors import DataError
from tests.data import sets
from tests.data.test_pixels import damage

VOC, COCO = [("dog", (5, 5, 20, 20)), ("cat", (9, 9, 30, 30))], [("dog", (5, 5, 20, 20)), ("cat", (9, 9, 5, 5))]
YOLO = "0 0.5 0.5 0.2 0.2\n1 0.3 0.3 0.2 0.2\n"
LISTS = {"train": ["a", "b"], "val": ["c"]}
DEFAULTS = Data()
Open = Callable[[Path, Data], list[Dataset]]
TICK = 0.03
"""Seconds within which a system may give two changes the same time."""


def rows(stems: str) -> list[str]:
    return [f"{stem}.jpg,60,40,{name},5,5,20,20" for stem in stems for name in ("dog", "cat")]


def make(root: Path, form: str) -> Path:
    """Write the images a, b (train) and c (val), each with a dog and a cat."""
    if form == "voc":
        sets.voc(root, dict.fromkeys("abc", VOC), LISTS)
    elif form == "coco":
        images = {name: {f"{stem}.jpg": COCO for stem in stems} for name, stems in LISTS.items()}
        sets.coco(root, images, {"dog": 1, "cat": 2})
    elif form == "yolo":
        sets.yolo(root, {name: dict.fromkeys(stems, YOLO) for name, stems in LISTS.items()})
        for name in LISTS:  # lists of paths
            (root / f"{name}.txt").write_text("".join(f"images/{name}/{stem}.jpg\n" for stem in LISTS[name]))
        (root / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [dog, cat]\n")
    else:
        for name, stems in LISTS.items():
            sets.csv(root / f"{name}.csv", rows("".join(stems)))
        for stem in "abc":
            sets.image(root / f"{stem}.jpg")
    return root


class Opened(NamedTuple):
    """What opening a data set gave: its lists as text, or the message of the error, and what was read for that."""

    content: str
    lists: int
    headers: int
    decoded: int


class Reads:
    """Opens data sets, and counts the lists, headers and images that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self._patch = folder, monkeypatch
        self.counts = {"_read": 0, "image_size": 0, "verify_image": 0}
        for module, name in ((find, "_read"), (image_checks, "image_size"), (image_checks, "verify_image")):
            monkeypatch.setattr(module, name, self._counted(name, getattr(module, name)))
        monkeypatch.setattr(cache, "SETTLING_NS", 0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.counts[name] += 1
            return function(*arguments, **options)

        return counted

    def open(self, path: Path, settings: Data = DEFAULTS, read: Open = open_lists) -> Opened:
        """Open all lists, at a time at which the last change is old enough to be remembered."""
        time.sleep(TICK)
        before = {**self.counts}
        try:
            content = text_of(read(path, settings))
        except DataError as error:
            content = f"{error}"
        return Opened(content, *(self.counts[name] - before[name] for name in self.counts))

    def fresh(self, path: Path, settings: Data = DEFAULTS, read: Open = open_lists) -> Opened:
        """Open all lists with an empty cache."""
        with self._patch.context() as patch, TemporaryDirectory() as folder:
            patch.setenv("XDG_CACHE_HOME", folder)
            return self.open(path, settings, read)


def text_of(datasets: list[Dataset]) -> str:
    """Return everything in some data sets as text."""
    records = [
        [(*record[:4], *(f"{column.dtype} {column.tolist()}" for column in record[4:7]), *record[7:]) for record in own]
        for own in (map(as_tuple, dataset.records) for dataset in datasets)
    ]
    return repr([(d.root, d.format, d.split, d.names, d.category_ids, d.faults, d.notes) for d in datasets] + records)


def as_tuple(record: object) -> tuple[object, ...]:
    return tuple(getattr(record, name) for name in record.__slots__)  # type: ignore[attr-defined]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Reads:
    return Reads(monkeypatch, tmp_path / "cache")


def replace(file: Path, content: bytes) -> None:
    """Replace a file by another one in one step, as editors do."""
    other = file.with_name("other")
    other.write_bytes(content)
    other.replace(file)


def edit(file: Path, old: str, new: str) -> None:
    """Change a text in a file without changing its size or the time of its last change."""
    assert len(old) == len(new)
    text, status = file.read_text(), file.stat()
    assert old in text
    file.write_text(text.replace(old, new))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


IMAGES = {"voc": "JPEGImages", "coco": "images", "yolo": "images/train", "csv": "."}
ANNOTATIONS = {
    "voc": "Annotations/a.xml",
    "coco": "annotations/train.json",
    "yolo": "labels/train/a.txt",
    "csv": "train.csv",
}
LIST_FILES = {
    "voc": "ImageSets/Main/train.txt",
    "coco": "annotations/train.json",
    "yolo": "train.txt",
    "csv": "train.csv",
}
TEXTS = {"voc": ("20", "19"), "coco": ("20", "19"), "yolo": ("0.5", "0.6"), "csv": ("20", "19")}


def image_of(root: Path, form: str) -> Path:
    return root / IMAGES[form] / "a.jpg"


def replaced(root: Path, form: str) -> None:
    file = image_of(root, form)
    other = sets.image(root.parent / "x" / file.name, (44, 33)).read_bytes()
    replace(file, other)


def changed(root: Path, form: str) -> None:
    """Damage an image without changing its size or the time of its last change."""
    file = image_of(root, form)
    status = file.stat()
    file.write_bytes(file.read_bytes()[:-300] + bytes(300))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def touched(root: Path, form: str) -> None:
    image_of(root, form).touch()


def deleted(root: Path, form: str) -> None:
    image_of(root, form).unlink()


def added(root: Path, form: str) -> None:
    sets.image(image_of(root, form).with_name("new.jpg"))


def link(root: Path, form: str) -> None:
    """Make the image a link to another file."""
    file = image_of(root, form)
    target = sets.image(root.parent / "x" / "b.png", (44, 33))
    file.unlink()
    file.symlink_to(target)


def annotation_edited(root: Path, form: str) -> None:
    edit(root / ANNOTATIONS[form], *TEXTS[form])


def annotation_replaced(root: Path, form: str) -> None:
    file = root / ANNOTATIONS[form]
    replace(file, file.read_text().replace(*TEXTS[form]).encode())


def annotation_touched(root: Path, form: str) -> None:
    (root / ANNOTATIONS[form]).touch()


def annotation_deleted(root: Path, form: str) -> None:
    (root / ANNOTATIONS[form]).unlink()


def annotation_added(root: Path, form: str) -> None:
    file = root / ANNOTATIONS[form]
    shutil.copy(file, file.with_stem("new"))


def list_edited(root: Path, form: str) -> None:
    """Name the image c in place of b."""
    if form == "yolo":
        edit(root / "train.txt", "train/b", "train/a")
    elif form == "voc":
        edit(root / LIST_FILES[form], "b", "c")
    else:
        edit(root / LIST_FILES[form], "b.jpg", "c.jpg")


def list_touched(root: Path, form: str) -> None:
    (root / LIST_FILES[form]).touch()


def list_deleted(root: Path, form: str) -> None:
    (root / LIST_FILES[form]).unlink()


def folder_added(root: Path, form: str) -> None:
    (root / "labels" / "new").mkdir(parents=True)


CHANGES = (
    *(replaced, changed, touched, deleted, added, link),
    *(annotation_edited, annotation_replaced, annotation_touched, annotation_deleted, annotation_added),
    *(list_edited, list_touched, list_deleted, folder_added),
)
FORMS = ["voc", "coco", "yolo", "csv"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_noticed(form: str, change: Callable[[Path, str], None], reads: Reads, tmp_path: Path) -> None:
    root = make(tmp_path / "data", form)
    first = reads.open(root)
    assert (first.headers, first.decoded) == (3, 3)
    assert reads.open(root) == (first.content, 0, 0, 0)
    change(root, form)
    then, expected = reads.open(root), reads.fresh(root)
    assert then.content == expected.content
    gone = change in (annotation_deleted, list_deleted) and not expected.lists  # it is no longer recognised
    assert then.lists or gone
    if change in (replaced, changed, touched, link):
        assert then.decoded == 1
    assert reads.open(root).content == expected.content


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "setting",
    [
        Data(max_pixels=60 * 40 - 1),
        Data(white=4095),
        Data(holdout=0.5),
        Data(voc_origin=0),
        Data(outside="refuse"),
        Data(on_fault="stop"),
    ],
    ids=str,
)
def test_every_setting_is_noticed(form: str, setting: Data, reads: Reads, tmp_path: Path) -> None:
    root = make(tmp_path / "data", form)
    for file in (file for file in root.rglob("*.txt") if file.stem in LISTS and form == "voc"):
        file.unlink()  # a share is held out

    def halves(path: Path, settings: Data) -> list[Dataset]:
        return open_several(path, ["train", "val"], settings, decode=False)

    for read in (open_lists, halves):
        first = reads.open(root, DEFAULTS, read)
        assert reads.open(root, setting, read).content == reads.fresh(root, setting, read).content
        assert reads.open(root, DEFAULTS, read) == (first.content, 0, 0, 0)


@pytest.mark.parametrize("name", ["FORMAT", "_code", "_codecs"])
def test_another_version_reads_again(name: str, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "data", "voc")
    first = reads.open(root)
    monkeypatch.setattr(cache, name, 99 if name == "FORMAT" else lambda: "other")
    assert reads.open(root) == first


def test_another_version_of_pillow_and_another_limit_read_again(
    reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "data", "voc")
    first = reads.open(root)
    monkeypatch.setattr("PIL.__version__", "0")
    assert reads.open(root) == first
    monkeypatch.setattr("rcnn.images.work.MAX_SCANS", 3)
    assert reads.open(root) == first
    assert reads.open(root).decoded == 0


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_changed_just_before_its_check_is_read_again(
    form: str, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SETTLING_NS", 60_000_000_000)
    root = make(tmp_path / "data", form)
    first = reads.open(root)
    assert reads.open(root) == first
    assert first.decoded == 3
    assert not cache_folder(cache.FOLDER).exists()


def test_the_time_in_which_files_settle_is_two_seconds() -> None:
    assert cache.SETTLING_NS == 2_000_000_000
    assert cache.settled(10**10, 10**10 + cache.SETTLING_NS + 1)
    assert not cache.settled(10**10, 10**10 + cache.SETTLING_NS)


def test_only_changed_images_are_decoded_again(reads: Reads, tmp_path: Path) -> None:
    root = make(tmp_path / "data", "voc")
    reads.open(root)
    sets.image(root / "JPEGImages/b.jpg", (60, 40))
    calls: list[tuple[int, int]] = []
    time.sleep(TICK)
    open_splits(root, Data(), lambda done, images: calls.append((done, images)))
    assert calls == [(1, 1)]
    open_splits(root, Data(), lambda done, images: calls.append((done, images)))
    assert calls == [(1, 1)]


@pytest.mark.parametrize("form", FORMS)
def test_a_list_is_read_once_for_training_and_validation(form: str, reads: Reads, tmp_path: Path) -> None:
    root = tmp_path / "data"
    if form == "coco":
        sets.coco(root, {"all": {f"{stem}.jpg": COCO for stem in "abc"}}, {"dog": 1, "cat": 2})
    elif form == "csv":
        sets.csv(root / "labels.csv", rows("abc"))
        for stem in "abc":
            sets.image(root / f"{stem}.jpg")
    elif form == "voc":
        sets.voc(root, dict.fromkeys("abc", VOC))
    else:
        sets.yolo(root, {"train": dict.fromkeys("abc", YOLO)})
    train, val = open_splits(root, Data())
    assert reads.counts["_read"] == 1
    assert sorted([*train.records.names(), *val.records.names()]) == sorted(open_dataset(root, "all").records.names())
    assert len(val) == 1


def test_val_is_read_once_if_it_is_taken_out_of_trainval(reads: Reads, tmp_path: Path) -> None:
    root = sets.voc(tmp_path / "data", dict.fromkeys("abc", VOC), {"trainval": ["a", "b", "c"], "val": ["c"]})
    train, val = open_splits(root, Data())
    assert [*train.records.names(), *val.records.names()] == [f"JPEGImages/{stem}.jpg" for stem in "abc"]
    assert reads.counts["_read"] == 2


def test_a_check_decodes_every_image_and_forgets_what_an_earlier_one_found(reads: Reads, tmp_path: Path) -> None:
    root = make(tmp_path / "data", "voc")
    reads.open(root)
    assert check(root, Data()).faults == ()
    assert reads.counts["verify_image"] == 6
    assert reads.open(root).decoded == 0


def test_a_check_finds_damage_that_did_not_change_the_identity_of_a_file(
    reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a failing disk. Afterwards a training finds it too."""
    root = make(tmp_path / "data", "voc")
    sets.image(root / "JPEGImages/b.jpg", (60, 40))
    monkeypatch.setattr(cache.Identity, "of", classmethod(lambda cls, status: cls(1, 1, 1, status.st_ino, 1)))
    reads.open(root)
    file = root / "JPEGImages/b.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    assert "truncated" not in reads.open(root, Data(on_fault="stop")).content
    assert [fault.where for fault in check(root, Data()).faults] == [str(file)]
    assert "truncated" in reads.open(root, Data(on_fault="stop")).content


def test_files_that_can_not_be_read_are_tried_again(
    reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason may have been a lack of memory, or the network."""
    root = make(tmp_path / "data", "voc")
    for name in ("image_size", "verify_image"):
        with monkeypatch.context() as patch:
            patch.setattr(f"rcnn.images.decode.{'load' if name == 'verify_image' else 'open_image'}", no_memory)
            failed = reads.open(root, Data(on_fault="skip"))
        assert "does not fit into the memory" in failed.content
        assert reads.open(root, Data(on_fault="skip")).content == reads.fresh(root, Data(on_fault="skip")).content
        shutil.rmtree(cache_folder(cache.FOLDER))


def no_memory(*_: object, **__: object) -> None:
    raise MemoryError


def test_a_damaged_image_does_not_keep_the_lists_from_being_remembered(reads: Reads, tmp_path: Path) -> None:
    root = make(tmp_path / "data", "voc")
    (root / "JPEGImages/a.jpg").write_bytes(b"")
    damage(root / "JPEGImages/b.jpg")
    first, second = reads.open(root), reads.open(root)
    assert first.content == second.content
    assert (second.lists, second.headers) == (0, 1)


def test_lists_with_a_fatal_fault_are_read_every_time(reads: Reads, tmp_path: Path) -> None:
    """Its reason may be a file that is missing elsewhere."""
    root = make(tmp_path / "data", "voc")
    (root / "JPEGImages/a.jpg").unlink()
    lenient = Data(on_fault="skip")
    first, second = reads.open(root, lenient), reads.open(root, lenient)
    assert first.content == second.content
    assert (second.lists, second.headers, second.decoded) == (2, 0, 0)


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_images_outside_the_data_are_compared(form: str, reads: Reads, tmp_path: Path) -> None:
    outside = tmp_path / "outside/images"
    if form == "coco":
        file = sets.image(outside / "a.jpg")
        names = {str(file): COCO, "b.jpg": COCO}
        root = sets.coco(tmp_path / "data", {"train": {"b.jpg": COCO}}, {"dog": 1, "cat": 2})
        sets.write_json(root / "annotations/train.json", sets.coco_tree(names, {"dog": 1, "cat": 2}))
    else:
        root = sets.yolo(tmp_path / "data", {"train": {"b": YOLO}})
        sets.labelled(outside / "a.jpg", outside.with_name("labels") / "a.txt", YOLO)
        (root / "train.txt").write_text(f"images/train/b.jpg\n{outside}/a.jpg\n")
        (root / "data.yaml").write_text("train: train.txt\nnames: [dog, cat]\n")
    first = reads.open(root)
    assert "outside" in first.content
    assert reads.open(root) == (first.content, 0, 0, 0)
    replace(outside / "a.jpg", sets.image(tmp_path / "x" / "a.jpg", (44, 40)).read_bytes())
    then = reads.open(root)
    assert then.content == reads.fresh(root).content
    assert (then.lists, then.headers, then.decoded) == (1, 1, 1)
    if form == "yolo":
        (outside.with_name("labels") / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
        assert reads.open(root).content == reads.fresh(root).content
        shutil.rmtree(outside.with_name("labels"))
        assert reads.open(root).content == reads.fresh(root).content
        shutil.copytree(root / "labels/train", outside.with_name("labels"))
        (outside.with_name("labels") / "b.txt").rename(outside.with_name("labels") / "a.txt")
        assert reads.open(root).content == reads.fresh(root).content


def test_folders_behind_links_are_compared_and_circles_end(reads: Reads, tmp_path: Path) -> None:
    root = make(tmp_path / "data", "voc")
    (root / "JPEGImages").rename(tmp_path / "elsewhere")
    (root / "JPEGImages").symlink_to(tmp_path / "elsewhere")
    (root / "circle").symlink_to(root)
    first = reads.open(root)
    assert reads.open(root) == (first.content, 0, 0, 0)
    sets.image(tmp_path / "elsewhere/a.jpg", (44, 33))
    assert reads.open(root).content == reads.fresh(root).content


def test_results_among_the_data_are_not_compared(reads: Reads, tmp_path: Path) -> None:
    root = make(tmp_path / "data", "voc")
    (root / "runs").mkdir()
    first = reads.open(root)
    (root / "runs/a").mkdir()
    (root / "runs/a/.rcnn").touch()
    (root / "runs/a/log.txt").touch()
    assert reads.open(root) == (first.content, 0, 0, 0)


def test_data_among_many_other_files_are_read_every_time(
    reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "data", "voc")
    monkeypatch.setattr(list_cache, "MIN_WALKED", 0)
    monkeypatch.setattr(list_cache, "MAX_WALKED", 4)
    first = reads.open(root)
    assert reads.open(root) == (first.content, first.lists, 0, 0)
    monkeypatch.setattr(list_cache, "MAX_WALKED", 8)
    reads.open(root)
    assert reads.open(root) == (first.content, 0, 0, 0)
    for number in range(30):
        (root / f"{number}.txt").touch()
    assert reads.open(root).lists


def test_a_folder_that_changes_while_it_is_read_is_not_remembered(
    reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "data", "voc")
    read, file = find._read, root / "JPEGImages/z.jpg"

    def read_meanwhile(*arguments: object) -> object:
        sets.image(file)
        reading = read(*arguments)  # type: ignore[arg-type]
        file.unlink()
        return reading

    with monkeypatch.context() as patch:
        patch.setattr(find, "_read", read_meanwhile)
        reads.open(root)
    assert reads.open(root).lists
    assert reads.open(root).lists == 0


def test_without_a_folder_for_the_cache_the_data_are_read(
    reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "data", "voc")
    reads.folder.write_text("no folder")
    first = reads.open(root)
    assert reads.open(root) == first
    reads.folder.unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rcnn.weights.file.os.fsync", full)
    assert reads.open(root) == first
    assert reads.open(root) == first
    assert not [*cache_folder(cache.FOLDER).iterdir()]


def test_the_files_that_were_not_used_for_the_longest_time_are_deleted(
    reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [make(tmp_path / f"data-{number}", "voc") for number in range(3)]
    for root in roots[:2]:
        reads.open(root)
    sizes = [file.stat().st_size for file in cache_folder(cache.FOLDER).iterdir()]
    assert len(sizes) == 4
    assert reads.open(roots[0]).lists == 0
    monkeypatch.setattr(cache, "MAX_CACHE_BYTES", sum(sizes) + 100)
    reads.open(roots[2])
    assert len([*cache_folder(cache.FOLDER).iterdir()]) == 4
    assert reads.open(roots[0]).lists == 0
    assert reads.open(roots[1]).lists


def test_the_cache_is_private_and_holds_no_pickle(reads: Reads, tmp_path: Path) -> None:
    reads.open(make(tmp_path / "data", "voc"))
    assert cache_folder(cache.FOLDER).stat().st_mode & 0o777 == 0o700
    assert {file.suffix for file in cache_folder(cache.FOLDER).iterdir()} == {".safetensors"}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Reads, Path, str, dict[Path, bytes]]]:
    """A data set, its content, and its files in the cache."""
    folder = tmp_path_factory.mktemp("damaged")
    with pytest.MonkeyPatch.context() as patch:
        reads = Reads(patch, folder / "cache")
        root = make(folder / "data", "coco")
        content = reads.open(root).content
        assert reads.open(root) == (content, 0, 0, 0)
        files = {file: file.read_bytes() for file in cache_folder(cache.FOLDER).iterdir()}
        assert len(files) == 2
        yield reads, root, content, files


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_files_are_ignored(damaged: tuple[Reads, Path, str, dict[Path, bytes]], data: st.DataObject) -> None:
    _, root, content, files = damaged
    for file, sound in files.items():
        content_now = bytearray(sound)
        for _ in range(data.draw(st.integers(0, 4))):
            content_now[data.draw(st.integers(0, len(sound) - 1))] ^= data.draw(st.integers(1, 255))
        end = data.draw(st.integers(0, len(sound)) | st.just(len(sound)))
        file.write_bytes(content_now[:end])
    assert text_of(open_lists(root, Data())) == content


def open_often(root: Path, expected: str) -> None:
    """Open a data set again and again, and delete files of the cache in between."""
    for turn in range(20):
        assert text_of(open_lists(root, Data(max_pixels=10**6 + turn % 2))) == expected
        for file in list(cache_folder(cache.FOLDER).iterdir())[: turn % 3]:
            file.unlink(missing_ok=True)


def test_processes_that_write_the_cache_at_once_do_no_harm(reads: Reads, tmp_path: Path) -> None:
    root = make(tmp_path / "data", "voc")
    expected = reads.open(root).content
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=open_often, args=(root, expected), daemon=True) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert reads.open(root).content == expected
    assert reads.open(root) == (expected, 0, 0, 0)
    assert not [file for file in cache_folder(cache.FOLDER).iterdir() if file.name.startswith(".")]


def test_numbers_of_boxes_are_the_same_without_records(tmp_path: Path) -> None:
    records = open_dataset(make(tmp_path / "data", "voc"), "train").records
    for some in (records, records[1:], records.select(np.array([False, True])), records[:0]):
        np.testing.assert_array_equal(some.labels, np.concatenate([np.zeros(0, int), *(r.labels for r in some)]))
        np.testing.assert_array_equal(some.boxes, np.concatenate([np.zeros((0, 4)), *(r.boxes for r in some)]))
        assert [*some.paths()] == [str(record.path) for record in some]
