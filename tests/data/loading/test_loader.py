import errno
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn.config import Settings, override
from rcnn.data.dataset import Dataset, Record, Records
from rcnn.data.formats.find import open_dataset
from rcnn.data.loading.loader import Item, Loader, _Reader, stable_seed
from rcnn.data.loading.windows import cut_into_views
from rcnn.errors import DataError
from rcnn.images.batch import Preprocessor
from rcnn.images.views import View
from rcnn.model.structures import Batch
from tests.data import sets
from tests.data.loading.test_augment import STILL as AUGMENT_NOTHING

SETTINGS = override(Settings(), ["preprocess.short=32", "preprocess.long=64", "preprocess.multiple=16"])
STILL = override(SETTINGS, {"augment": AUGMENT_NOTHING})
SIZES = [(40, 60)] * 7 + [(60, 40)] * 3 + [(50, 50)] * 2 + [(40, 59)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    records = []
    for index, (height, width) in enumerate(SIZES):
        path = folder / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        count = index % 4
        corners = np.sort(random.random((count, 2, 2)), axis=1) * (width - 4, height - 4)
        boxes = corners.reshape(count, 4) + (0, 0, 4, 4)
        labels, ignore = random.integers(0, 3, count), random.random(count) < 0.3
        records.append(Record(path, path.name, index, (height, width), boxes, labels, ignore))
    return Dataset(folder, "voc", "train", ("a", "b", "c"), (1, 2, 3), tuple(records))


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork loader processes, regardless of what other tests have loaded."""
    monkeypatch.setattr("rcnn.data.loading.workers.may_fork", lambda: True)


def load(dataset: Dataset, epoch: int = 0, start: int = 0, settings: Settings = SETTINGS, **options: Any) -> list[Item]:
    loader = Loader(dataset, settings, **{"training": True, "batch": 4, "seed": 7, **options})
    return list(loader.epoch(epoch, start))


def same(first: list[Item], second: list[Item]) -> bool:
    def tensors(items: list[Item]) -> list[torch.Tensor]:
        return [tensor for item in items for tensor in (*item.batch, *item.targets, item.seeds, item.index)]

    return len(first) == len(second) and all(map(torch.equal, tensors(first), tensors(second)))


def with_boxes(dataset: Dataset, boxes: np.ndarray, labels: np.ndarray) -> Dataset:
    """Return a data set of the first image alone, with these boxes, none of them ignored."""
    record = replace(dataset.records[0], boxes=boxes, labels=labels, ignore=np.zeros(len(boxes), bool))
    return replace(dataset, records=(record,))


def images_of(items: list[Item]) -> dict[int, torch.Tensor]:
    """Return the pixels of every image by its index."""
    return {int(index): item.batch.images[row] for item in items for row, index in enumerate(item.index) if index >= 0}


@pytest.mark.parametrize("training", [True, False])
def test_every_image_comes_once_an_epoch_in_a_batch_of_its_bucket(dataset: Dataset, training: bool) -> None:
    loader = Loader(dataset, SETTINGS, training=training, batch=4, seed=7)
    items = list(loader.epoch(3))
    preprocessor = Preprocessor(SETTINGS.preprocess)
    assert len(items) == loader.steps == 2 + 1 + 1  # (40, 60) and (40, 59) share a bucket
    seen = Counter(int(index) for item in items for index in item.index)
    assert {index: seen[index] for index in range(len(SIZES))} == dict.fromkeys(range(len(SIZES)), 1)
    assert seen[-1] == 16 - len(SIZES)
    for item in items:
        for row, index in enumerate(item.index.tolist()):
            if index >= 0:
                size = dataset.records[index].size
                assert tuple(item.batch.images.shape[2:]) == preprocessor.bucket(size)
                assert tuple(item.batch.originals[row].tolist()) == size


def test_shapes_are_constant_except_for_the_bucket(dataset: Dataset) -> None:
    for item in load(dataset):
        assert item.batch.images.shape[:2] == (4, 3)
        assert item.targets.boxes.shape == (4, 8, 4)
        assert item.targets.labels.shape == item.targets.valid.shape == item.targets.ignore.shape == (4, 8)
        assert item.batch.images.dtype == torch.uint8
        assert item.targets.boxes.dtype == torch.float32
        assert item.seeds.dtype == item.index.dtype == item.targets.labels.dtype == torch.int64


def test_targets_have_room_for_the_image_with_most_objects(dataset: Dataset) -> None:
    crowded = with_boxes(dataset, np.tile([[1.0, 2, 30, 31]], (9, 1)), np.zeros(9, np.int64))
    (item,) = load(crowded, batch=1, training=False)
    assert item.targets.valid.sum() == 9
    assert item.targets.boxes.shape == (1, 16, 4)


def test_fillers_are_empty(dataset: Dataset) -> None:
    fillers = 0
    for item in load(dataset):
        row = item.index == -1
        fillers += int(row.sum())
        assert not item.batch.images[row].any()
        assert not item.targets.valid[row].any()
        assert not item.seeds[row].any()
        assert not item.batch.sizes[row].any()
        assert (item.batch.scales[row] == 1).all()
        assert type(item.batch) is Batch  # fillers too are pixels as they are read
        assert item.batch.images.dtype == torch.uint8
    assert fillers == 3


def test_the_order_depends_only_on_seed_and_epoch(dataset: Dataset) -> None:
    def order(epoch: int, seed: int = 7, training: bool = True) -> list[list[int]]:
        return Loader(dataset, SETTINGS, training=training, batch=4, seed=seed).order(epoch)

    assert order(2) == order(2)
    assert len({str(order(epoch, seed)) for epoch in range(3) for seed in range(3)}) == 9
    assert order(0, 1, training=False) == order(5, 2, training=False)
    shapes = [tuple(item.batch.images.shape) for epoch in range(6) for item in load(dataset, epoch)]
    assert len({tuple(shapes[i : i + 4]) for i in range(0, len(shapes), 4)}) > 1  # buckets change places


@pytest.mark.parametrize("training", [True, False])
def test_the_order_of_the_records_matters_only_in_validation(dataset: Dataset, training: bool) -> None:
    turned, last = replace(dataset, records=dataset.records[::-1]), len(SIZES) - 1
    straight, other = (
        Loader(data, SETTINGS, training=training, batch=4, seed=7).order(1) for data in (dataset, turned)
    )
    same_images = straight == [[last - i if i >= 0 else i for i in step] for step in other]
    assert same_images is training
    first = next(index for step in other for index in step if index >= 0)
    assert training or first == 0
    images = images_of(load(turned, 1, training=training))
    expected = images_of(load(dataset, 1, training=training))
    assert all(torch.equal(image, expected[last - index]) for index, image in images.items())


def test_lists_of_every_format_may_name_the_images_in_any_order(tmp_path: Path) -> None:
    names = [f"{letter}{i}" for i, letter in enumerate("qwertyuiop")]
    orders = set()
    for number, listed in enumerate((names, sorted(names), names[::-1])):
        root, box = tmp_path / str(number), ("cat", (2, 3, 20, 30))
        voc = sets.voc(root / "voc", {name: [box] for name in listed}, {"train": listed})
        coco = sets.coco(root / "coco", {"train": {f"{name}.jpg": [box] for name in listed}}, {"cat": 1})
        yolo = sets.yolo(root / "yolo", {"train": dict.fromkeys(listed, "0 .5 .5 .2 .2\n")}, "[cat]")
        lines = "".join(f"images/train/{name}.jpg\n" for name in listed)
        (yolo / "train.txt").write_text(lines, encoding="utf-8")
        (yolo / "data.yaml").write_text("train: train.txt\nnames: [cat]\n", encoding="utf-8")
        for path in (voc, coco, yolo):
            opened = open_dataset(path, "train", SETTINGS.data)
            steps = Loader(opened, SETTINGS, training=True, batch=3, seed=0).order(2)
            orders.add(tuple(Path(opened.records[i].name).stem for step in steps for i in step))
    (order,) = orders
    assert set(order) < set(names)  # one of the ten is held out
    assert len(order) == 9


@pytest.mark.parametrize("training", [True, False])
def test_workers_and_resuming_change_nothing(dataset: Dataset, training: bool) -> None:
    whole = load(dataset, 1, training=training)
    for workers in (None, 2):
        assert same(whole, load(dataset, 1, training=training, workers=workers))
        assert same(whole[2:], load(dataset, 1, start=2, training=training, workers=workers))
    assert load(dataset, 1, start=4, training=training) == []


@pytest.mark.parametrize("training", [True, False])
def test_threads_load_the_same(dataset: Dataset, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(dataset, 1, training=training)
    monkeypatch.setattr("rcnn.data.loading.workers.may_fork", lambda: False)
    assert same(whole, load(dataset, 1, training=training, workers=3))


def test_workers_may_be_started_by_pickling(dataset: Dataset) -> None:
    loader = pickle.loads(pickle.dumps(Loader(dataset, SETTINGS, training=True, batch=4, seed=7)))
    assert same(list(loader.epoch(1)), load(dataset, 1))


def test_loading_leaves_the_global_generator_alone(dataset: Dataset) -> None:
    before = torch.get_rng_state()
    load(dataset)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("training", [True, False])
def test_processes_share_every_step(dataset: Dataset, training: bool) -> None:
    alone = load(dataset, 1, training=training, batch=4)
    ranks = [load(dataset, 1, training=training, batch=2, rank=rank, world=2) for rank in range(2)]
    assert len(alone) == len(ranks[0]) == len(ranks[1])
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert {part.batch.images.shape[2:] for part in parts} == {whole.batch.images.shape[2:]}
        assert sorted(whole.index.tolist()) == sorted(torch.cat([part.index for part in parts]).tolist())
    together = images_of(ranks[0] + ranks[1])
    assert all(torch.equal(image, together[index]) for index, image in images_of(alone).items())


def test_a_share_may_be_all_fillers(dataset: Dataset) -> None:
    items = load(dataset, batch=2, rank=8, world=9)
    assert [item.index.tolist() for item in items] == [[-1, -1]] * 3
    shapes = sorted(tuple(item.batch.images.shape) for item in items)
    assert shapes == [(2, 3, 32, 32), (2, 3, 32, 48), (2, 3, 48, 32)]


def test_changes_of_an_image_depend_on_its_name_not_on_the_others(dataset: Dataset) -> None:
    fewer = replace(dataset, records=dataset.records[4:])
    some, every = load(fewer, 1, batch=2), images_of(load(dataset, 1))
    assert all(torch.equal(image, every[index + 4]) for index, image in images_of(some).items())
    for item in some:
        for index, seed in zip(item.index.tolist(), item.seeds.tolist(), strict=True):
            assert index < 0 or seed == stable_seed(7, 1, fewer.records[index].name)


def test_epochs_and_seeds_change_an_image_and_validation_does_not(dataset: Dataset) -> None:
    first = images_of(load(dataset, 0))
    for other in (load(dataset, 1), load(dataset, 0, seed=8)):
        assert sum(torch.equal(image, first[index]) for index, image in images_of(other).items()) < 3
    assert same(load(dataset, 0, training=False), load(dataset, 9, training=False))
    assert load(dataset, 9, training=False)[0].seeds[0] == stable_seed(7, 0, "0.png")


def test_seeds_are_pinned() -> None:
    assert stable_seed(0, 0, "a.jpg") == 7024571746289663599
    assert stable_seed(1, 2, "\udce9.jpg") >= 0  # a file name that is no text


def test_validation_targets_are_the_records_boxes_at_the_network_scale(dataset: Dataset) -> None:
    for item in load(dataset, training=False) + load(dataset, settings=STILL):
        for row, index in enumerate(item.index.tolist()):
            if index < 0:
                continue
            record = dataset.records[index]
            valid = item.targets.valid[row]
            scale = item.batch.scales[row].flip(0).repeat(2).numpy()
            np.testing.assert_allclose(item.targets.boxes[row, valid].numpy(), record.boxes * scale, rtol=1e-5)
            assert item.targets.labels[row, valid].tolist() == record.labels.tolist()
            assert item.targets.ignore[row, valid].tolist() == record.ignore.tolist()


def test_objects_mostly_cut_off_are_ignored_and_lost_ones_leave(dataset: Dataset) -> None:
    single = with_boxes(dataset, np.array([[0.0, 0, 8, 8], [25, 15, 35, 25], [52, 32, 60, 40]]), np.arange(3))
    zoom = override(STILL, {"augment": {"scale": (1.4, 1.4)}})
    kept, ignored = Counter[int](), 0
    for epoch in range(40):
        (item,) = load(single, epoch, settings=zoom, batch=1)
        valid = item.targets.valid[0]
        kept[int(valid.sum())] += 1
        ignored += int(item.targets.ignore[0].sum())
        height, width = item.batch.sizes[0].tolist()
        boxes = item.targets.boxes[0, valid]
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(kept) > 1
    assert ignored


@pytest.mark.parametrize("workers", [None, 0, 2])
def test_an_image_that_cannot_be_read_is_named(dataset: Dataset, tmp_path: Path, workers: int | None) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 not a jpeg")
    record = replace(dataset.records[0], path=broken, name="broken.jpg")
    damaged = replace(dataset, records=(*dataset.records, record))
    with pytest.raises(DataError, match=r"broken\.jpg") as error:
        load(damaged, workers=workers)
    assert "Traceback" not in str(error.value)


def test_grey_images_are_loaded_and_jittered(dataset: Dataset) -> None:
    grey = override(SETTINGS, {"preprocess": {"in_channels": 1, "mean": (0.5,), "std": (0.25,)}})
    assert all(item.batch.images.shape[1] == 1 for item in load(dataset, settings=grey))


def test_too_few_file_handles_are_reported_before_processes_start(dataset: Dataset) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 24, limits[1]))
    try:
        with pytest.raises(ChildProcessError, match=r"data.workers=2 needs about 80 file handles.*-n.*--workers 0"):
            load(dataset, workers=2)
        assert len(load(dataset)) > 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_processes_of_a_training_stay_from_epoch_to_epoch_until_it_is_closed(dataset: Dataset) -> None:
    def alive() -> set[int | None]:
        return {process.pid for process in multiprocessing.active_children()}

    before, loader = alive(), Loader(dataset, SETTINGS, training=True, batch=4, seed=7, workers=2)
    first, started = list(loader.epoch(0)), alive() - before
    second = list(loader.epoch(1, 2))
    assert len(started) == 2
    assert alive() - before == started
    assert same(first, load(dataset))
    assert same(second, load(dataset, 1, 2))
    loader.close()
    assert alive() == before
    assert same(list(loader.epoch(1, 2)), second)
    next(loader.epoch(2))  # left in its middle
    assert alive() == before
    load(dataset, workers=2, training=False)
    assert alive() == before


@pytest.mark.parametrize(
    ("action", "timeout", "reason"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 600, r"a loader process \(data.workers\) was lost"),
        (lambda: time.sleep(2), 1, "returned nothing for 1 seconds"),
    ],
    ids=["killed", "hanging"],
)
def test_a_process_that_is_killed_or_hangs_is_reported(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, action: Callable[[], None], timeout: int, reason: str
) -> None:
    monkeypatch.setattr(_Reader, "load", lambda *_: action())
    monkeypatch.setattr("rcnn.data.loading.loader.TIMEOUT", timeout)
    with pytest.raises(ChildProcessError, match=f"{reason}.*--workers 0"):
        load(dataset, workers=2)


@pytest.fixture
def unheard() -> Iterator[None]:
    """No error comes from torch's handler of SIGCHLD, as if it were raised within a callback, which drops it."""
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("unheard")
@pytest.mark.parametrize("at", ["a batch", "the start of an epoch"])
def test_a_process_whose_end_is_not_signalled_is_missed(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr("rcnn.data.loading.loader.POLL_SECONDS", 0.1)
    # The handler is set once per process, by the first DataLoader.
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._set_SIGCHLD_handler", lambda: None)
    message = r"a loader process \(data.workers\) was lost.*--workers 0"
    with closing(Loader(dataset, SETTINGS, training=True, batch=2, workers=2)) as loader:
        before = set(multiprocessing.active_children())
        if at == "the start of an epoch":
            list(loader.epoch(0))
            (victim, _) = set(multiprocessing.active_children()) - before
            os.kill(victim.pid or 0, signal.SIGKILL)
            victim.join()
        else:
            monkeypatch.setattr(_Reader, "load", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(ChildProcessError, match=message):
            list(loader.epoch(1))


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), EOFError(), FileNotFoundError(2, "no socket")])
def test_a_process_that_is_lost_while_it_hands_over_a_batch_is_reported(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def lost(_: bytes) -> None:
        raise error

    monkeypatch.setattr("rcnn.data.loading.loader.pickle", SimpleNamespace(loads=lost))
    with pytest.raises(ChildProcessError, match=r"a loader process \(data.workers\) was lost.*--workers 0"):
        load(dataset, workers=2)


def test_a_process_prints_nothing_when_its_parent_is_killed(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The thread of multiprocessing that hands over memory gives its errors to `sys.excepthook`."""
    original = _Reader.load

    def load_and_fail(self: _Reader, *arguments: Any) -> Item:
        for error in (EOFError("gone"), ConnectionResetError("gone"), ValueError("a fault")):
            sys.excepthook(type(error), error, None)
        return original(self, *arguments)

    monkeypatch.setattr(_Reader, "load", load_and_fail)
    load(dataset, workers=2)
    errors = capfd.readouterr().err
    assert "a fault" in errors
    assert "gone" not in errors


def test_processes_may_take_longer_than_the_interval_of_checks(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, original = load(dataset), _Reader.load

    def slow(self: _Reader, *arguments: Any) -> Item:
        time.sleep(0.2)
        return original(self, *arguments)

    monkeypatch.setattr("rcnn.data.loading.loader.POLL_SECONDS", 0.01)
    monkeypatch.setattr(_Reader, "load", slow)
    assert same(load(dataset, workers=2), expected)


def test_processes_outlive_a_signal_to_the_whole_group(dataset: Dataset) -> None:
    """They still load what their parent needs to finish its step, and end when it ends them."""
    loader = Loader(dataset, SETTINGS, training=True, batch=2, workers=2)
    with closing(loader):
        batches = loader.epoch(0)
        next(batches)
        workers = multiprocessing.active_children()
        sender = multiprocessing.get_context("fork").Process(
            target=lambda: [
                os.kill(worker.pid or 0, number)
                for worker in workers
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            ]
        )
        sender.start()
        sender.join()
        assert len(list(batches)) == loader.steps - 1
        assert all(worker.is_alive() for worker in workers)
        for worker in workers:
            worker.terminate()
            worker.join(60)
            assert worker.exitcode == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("unable to allocate shared memory(shm) for file: No space left on device (28)"), "in /dev/shm"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (MemoryError(), "not have enough memory"),
    ],
)
def test_a_limit_that_a_process_reaches_is_named(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("rcnn.data.loading.loader.ForkingPickler", SimpleNamespace(dumps=fail))
    with pytest.raises(ChildProcessError, match=message) as caught:
        load(dataset, workers=2)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_missing_file_handles_are_no_fault_of_an_image(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("rcnn.images.decode.open_image", fail)
    with pytest.raises(OSError, match="Too many open files"):
        load(dataset, workers=workers)


def replaced(dataset: Dataset, folder: Path, *indices: int, tile: bool = False) -> Dataset:
    """Return the data set with some images replaced by larger ones after it was read."""
    records = list(dataset.records)
    for index in indices:
        record = records[index]
        path = folder / record.name
        Image.new("RGB", (record.size[1] + 40, record.size[0]), "red").save(path)
        records[index] = replace(record, path=path)
    whole = replace(dataset, records=tuple(records))
    return cut_into_views(whole, lambda size: [View(0, 0, *size, (32, 32))]) if tile else whole


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("resize", ["pillow", "interpolate"])
@pytest.mark.parametrize("tile", [False, True])
def test_an_image_that_was_replaced_by_one_of_another_size_is_left_out_of_training(
    dataset: Dataset, tmp_path: Path, workers: int, resize: str, tile: bool
) -> None:
    settings = override(SETTINGS, [f"preprocess.resize={resize}"])
    changed, said = replaced(dataset, tmp_path, 8, tile=tile), list[str]()
    before = load(replaced(dataset, tmp_path, tile=tile), settings=settings)
    loader = Loader(changed, settings, training=True, batch=4, seed=7, workers=workers)
    loader.report = said.append
    items = [item for epoch in (0, 0) for item in loader.epoch(epoch)][len(before) :]
    loader.close()
    assert len(said) == 1  # in two epochs
    assert said[0].startswith(f"left out: {tmp_path / '8.png'}: the image has 80x60 pixels now, but had 40x60")
    expected, found = images_of(before), images_of(items)
    assert found.keys() == expected.keys() - {8}
    assert all(torch.equal(found[index], expected[index]) for index in found)
    for item in items:
        fillers = item.index < 0
        assert not item.batch.images[fillers].any()
        assert not item.targets.valid[fillers].any()
        assert not item.seeds[fillers].any()


def test_the_records_that_a_batch_reads_do_not_grow_with_the_data(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = Records._record, list[int]()
    monkeypatch.setattr(Records, "_record", lambda *row: made.append(1) or make(*row))
    counts = list[int]()
    for copies in (1, 100):
        records = [replace(record, name=f"{n} {record.name}") for n in range(copies) for record in dataset.records[:6]]
        many = replace(dataset, records=Records(records))
        with closing(Loader(many, SETTINGS, training=True, batch=2, workers=0).epoch(0)) as batches:
            next(batches)
            made.clear()
            next(batches)
        counts.append(len(made))
    assert counts == [2 * 2 + 1] * 2  # two for each image, and one for the size of the batch


def test_replaced_images_are_errors_if_they_are_many_or_used_for_scores_or_if_faults_stop(
    dataset: Dataset, tmp_path: Path
) -> None:
    stop = override(SETTINGS, ["data.on_fault=stop"])
    reason = r"8\.png: the image has 80x60 pixels now, but had 40x60 when the data was read"
    for settings, training in ((stop, True), (SETTINGS, False)):
        with pytest.raises(DataError, match=reason):
            load(replaced(dataset, tmp_path, 8), settings=settings, training=training)
    with pytest.raises(DataError, match="2 images were replaced while they were used, such as"):
        load(replaced(dataset, tmp_path, 8, 2))
