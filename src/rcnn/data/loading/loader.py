"""Load batches of one shape bucket. Order and augmentation depend only on the seed, the epoch and image names."""

import errno
import math
import os
import pickle
import signal
import sys
import threading
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from itertools import repeat
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from rcnn.config import Settings
from rcnn.data.dataset import Dataset, Record, Records
from rcnn.data.loading.augment import MIN_VISIBLE_SHARE, apply_to_boxes, apply_to_image, apply_to_picture, draw_plan
from rcnn.data.loading.pixel_cache import PixelCache
from rcnn.data.loading.workers import choose_workers
from rcnn.data.proposals.external import (
    NOTHING,
    External,
    ImageProposals,
    ProposalSet,
    SlidingWindows,
    batch_proposals,
    pad_proposals,
)
from rcnn.errors import DataError, ImageError, StorageError
from rcnn.images.batch import Preprocessor, Size, resized_by_pillow
from rcnn.images.decode import read_rgb
from rcnn.images.storage import Location
from rcnn.images.stream import ahead, read_picture
from rcnn.model.structures import Batch, Proposals, Targets
from rcnn.signals import workers_unheard

TIMEOUT = 600
"""Seconds without a batch after which a loader process is taken to be lost."""
POLL_SECONDS = 5
"""Seconds without a batch after which it is checked whether all loader processes are alive."""
LOST, TIMED_OUT = "DataLoader worker", "DataLoader timed out"
"""Starts of torch's messages on loader processes that have ended, or return nothing."""
CPU = torch.device("cpu")
Work = tuple[int, int, list[int]]
"""What makes a batch: the epoch, a draw that determines the bucket, and the draws of the batch (see `Loader.order`)."""
MAX_REPLACED = 0.05
"""Maximum share of the images that training leaves out, since they were replaced while it ran."""
FILLER = -1
"""Index of a filler, an image of zeros that fills up a short batch."""


class Item(NamedTuple):
    """One batch of one process, on the CPU.

    Attributes:
        batch: the images; fillers are zeros, of size 0.
        targets: ground truth in resized pixels; G is the same for all batches of a data set; fillers have no valid box.
        seeds: (B,) int64, derived from the run's seed, the epoch and the image's name; 0 for fillers.
        index: (B,) int64 into `dataset.records`, -1 for fillers.
        proposals: (B, P) external proposals in resized pixels; None if there are none. Boxes of a `ProposalSet` are
            augmented with their images.
        left_out: sentences about images that are fillers, since their files were replaced by images of another size.
    """

    batch: Batch
    targets: Targets
    seeds: Tensor
    index: Tensor  # pyrefly: ignore[bad-override]
    proposals: Proposals | None = None
    left_out: tuple[str, ...] = ()


class ReplacedImage(ImageError):
    """A file holds an image of another size than when the data set was read, which its boxes do not fit."""


def stable_seed(seed: int, epoch: int, name: str) -> int:
    """Return a number in 0..2^63-1 that is the same in every process and on every machine."""
    digest = blake2b(f"{seed} {epoch} {name}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


class LoadedImage(NamedTuple):
    """One image of a batch before padding.

    Attributes:
        image: (C, h, w), resized and augmented.
        record: its objects, in pixels of `image`.
        proposals: external ones; in training, in pixels of `image`.
    """

    image: Tensor
    record: Record
    proposals: ImageProposals


class Sampler:
    """Decides how often each record is drawn in an epoch and which records make up an item: here, once and itself.

    Used in training only. The decisions of a subclass must depend on its arguments alone, since an item depends only
    on the seed, the epoch and the names of the images, not on the order of the records or the process that loads it.

    Attributes:
        max_members: maximum number of records in an item; the targets have room for that many times the boxes.
    """

    max_members = 1

    def repeats(self, record: Record) -> int:
        """Return how often a record is drawn in an epoch."""
        return 1

    def members(self, index: int, by_name: Sequence[int], generator: np.random.Generator) -> Sequence[int]:
        """Return the indices of the records that make up the item of record `index`, itself first.

        Args:
            index: the drawn record.
            by_name: all indices, in the order of the records' names.
            generator: seeded for this draw.
        """
        return (index,)

    def combine(self, samples: Sequence[LoadedImage], canvas: Size, generator: np.random.Generator) -> LoadedImage:
        """Return one sample, no larger than `canvas`, made of the samples of the members."""
        return samples[0]


ALONE = Sampler()


class Loader:
    """Loads the batches of a data set.

    Args:
        dataset: images and boxes.
        settings: `data`, `preprocess` and `augment` are read.
        training: shuffle and augment, regardless of the order of the records. Otherwise every epoch is epoch 0, in the
            order of the records, bucket by bucket.
        batch: images per step in this process. Short batches are filled up, which keeps the number of shapes small.
        seed: seed of the run. None: `train.seed`.
        device: where the batches will be used; `data.workers=null` depends on it.
        workers: number of loader processes; what is loaded does not depend on it. None: `data.workers`.
        rank: which of the `world` processes this is.
        world: number of processes that share every step; all take the same number of steps, from the same buckets.
        proposals: external proposals to put into the batches.
        within: size of all buckets; None: it depends on the image (see `Preprocessor`).
        sampler: how often records are drawn and how items are made of them, in training.

    Attributes:
        report: called once with a sentence about each image that is left out in training.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: Settings,
        *,
        training: bool,
        batch: int,
        seed: int | None = None,
        device: torch.device = CPU,
        workers: int | None = None,
        rank: int = 0,
        world: int = 1,
        proposals: External | None = None,
        within: Size | None = None,
        sampler: Sampler = ALONE,
    ) -> None:
        self.dataset, self.training = dataset, training
        self.seed = settings.train.seed if seed is None else seed
        self.workers = choose_workers(settings.data.workers if workers is None else workers, device)
        self.batch, self.rank, self.world = batch, rank, world
        preprocessor = Preprocessor(settings.preprocess, within)
        sampler = sampler if training else ALONE
        self._reader = _Reader(dataset.records, settings, training, self.seed, proposals, preprocessor, sampler)
        self._processes: DataLoader[bytes | Exception] | None = None
        self._work: list[Work] = []
        self._left_out = set[str]()
        self.report: Callable[[str], None] | None = None
        self._buckets: dict[Size, list[int]] = defaultdict(list)
        number, bucket = len(dataset), cache(self._reader.bucket)
        sizes = zip(dataset.records.sizes.tolist(), dataset.records.resized.tolist(), strict=True)
        repeats = repeat(1) if sampler is ALONE else map(sampler.repeats, dataset.records)
        for index, ((size, resized), times) in enumerate(zip(sizes, repeats, strict=False)):
            self._buckets[bucket(*size, *resized)] += range(index, index + number * times, number)
        names = [*dataset.records.names()]
        if training:  # shuffling permutes positions, so the order before it must follow from sizes and names alone
            for draws in self._buckets.values():
                draws.sort(key=lambda draw: (names[draw % number], draw))
            self._buckets = dict(sorted(self._buckets.items()))

    @property
    def steps(self) -> int:
        """Number of batches per epoch, the same on every rank."""
        return sum(math.ceil(len(members) / (self.batch * self.world)) for members in self._buckets.values())

    def order(self, epoch: int) -> list[list[int]]:
        """Return the draws of every step, for all processes together and fillers included.

        A draw is the index of a record, plus a multiple of the number of records if the record is drawn repeatedly.
        """
        together = self.batch * self.world
        generator = _generator(stable_seed(self.seed, epoch, "order of images"))
        steps: list[list[int]] = []
        for members in self._buckets.values():
            shuffled = generator.permutation(members).tolist() if self.training else members
            chunks = [shuffled[i : i + together] for i in range(0, len(shuffled), together)]
            steps += [chunk + [FILLER] * (together - len(chunk)) for chunk in chunks]
        return [steps[i] for i in generator.permutation(len(steps))] if self.training else steps

    def epoch(self, epoch: int, start: int = 0) -> Generator[Item, None, None]:
        """Yield the batches of an epoch from step `start` on. They do not depend on whether earlier ones were loaded.

        After a complete epoch of training, loader processes stay for the next one, until `close`. An image of another
        size than before is left out of training, unless `data.on_fault` is `stop`.

        Raises:
            StorageError: a remote image can't be reached, or may not be read.
            DataError: an image can't be read, or one is of another size and not left out, or many are; the message
                names it.
            ChildProcessError: a loader process has ended, can't be started or can't hand over its batches; the message
                names the limit of this machine that was reached.
        """
        epoch = epoch if self.training else 0
        # Every rank knows the step's first image: it determines the bucket even if the rank's share is all fillers.
        work = [(epoch, step[0], step[self.rank :: self.world]) for step in self.order(epoch)[start:]]
        forked = self.workers.kind == "process"
        items = self._from_processes(work) if forked else ahead(self._reader.load, work, self.workers.number)
        with closing(items):
            for item in items:
                if isinstance(item, Exception):
                    raise item
                self._count(item.left_out)
                yield item

    def _count(self, left_out: Sequence[str]) -> None:
        """Report images that are left out.

        Raises:
            DataError: they are more than `MAX_REPLACED` of all images.
        """
        for sentence in left_out:
            if sentence not in self._left_out:
                self._left_out.add(sentence)
                if self.report is not None:
                    self.report(f"left out: {sentence}")
        if left_out and len(self._left_out) > max(1, MAX_REPLACED * len({*self.dataset.records.paths()})):
            raise DataError(f"{len(self._left_out)} images were replaced while they were used, such as {left_out[-1]}")

    def _from_processes(self, work: Sequence[Work]) -> Generator[Item | Exception, None, None]:
        """Load in processes, each of which has two batches ready. Those of a training stay for the next epoch."""
        self._work[:] = work
        complete = False
        try:
            if self._processes is None:
                _check_handles(self.workers.number)
                self._processes = _Processes(
                    self._reader,
                    sampler=self._work,
                    batch_size=None,
                    num_workers=self.workers.number,
                    # Without its own generator it would draw from torch's global one, which a resumed run restores.
                    generator=torch.Generator(),
                    timeout=TIMEOUT,
                    multiprocessing_context="fork",
                    persistent_workers=True,
                    worker_init_fn=_begin_process,
                )
            # torch's handler of SIGCHLD raises an error, which is dropped within the callbacks of a fork.
            with workers_unheard() if self._processes._iterator is None else nullcontext():
                batches = iter(self._processes)
            for item in batches:
                yield _unpacked(item)
            complete = True
        except (RuntimeError, OSError) as error:
            if (reason := lost_worker(error)) is None:
                raise
            raise ChildProcessError(reason) from error
        finally:
            if not (complete and self.training):
                self.close()

    def close(self) -> None:
        """End the loader processes. Until then, one that was killed is reported again, wherever the caller is."""
        if self._processes is not None and self._processes._iterator is not None:
            self._processes._iterator._shutdown_workers()  # pyrefly: ignore[missing-attribute]
        self._processes = None


class _Processes(DataLoader[bytes | Exception]):
    """A DataLoader that notices lost processes within seconds, in whatever way they were lost."""

    def _get_iterator(self) -> "_Batches":
        return _Batches(self)


class _Batches(_MultiProcessingDataLoaderIter):
    """Looks at intervals whether all processes are alive, where torch does so when its timeout ends.

    The handler of SIGCHLD alone does not suffice: torch's does not know a process that is killed right after its start,
    and its error is dropped if it is raised within a callback.
    """

    def _try_get_data(self, timeout: float = TIMEOUT) -> tuple[bool, Any]:  # pyrefly: ignore[bad-override]
        end = time.monotonic() + timeout
        try:
            while True:
                seconds = min(POLL_SECONDS, max(0.0, end - time.monotonic()))
                found, item = super()._try_get_data(seconds)
                if found or time.monotonic() >= end:
                    return found, item
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            raise _handing_over(error) from error


def _unpacked(item: bytes | Exception) -> Item | Exception:
    """Return a batch as it was before it was handed over.

    Raises:
        RuntimeError: the process was lost meanwhile.
    """
    try:
        return pickle.loads(item) if isinstance(item, bytes) else item
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # from the sockets that hand over memory
        raise _handing_over(error) from error


def _handing_over(error: Exception) -> RuntimeError:
    return RuntimeError(f"{LOST} has ended while it handed over a batch: {error}")


def lost_worker(error: Exception) -> str | None:
    """Return a sentence about loader processes that were lost or met a limit, or None for other errors.

    If a process was killed, DataLoader raises the error wherever the main process is at that moment.
    """
    text = str(error).partition("\n")[0]
    if isinstance(error, ChildProcessError):
        return text
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
        limit = "`ulimit -n` sets the limit" if error.errno == errno.EMFILE else "the system has no more"
        what = f"the loader processes (data.workers) need more than is available: {error.strerror} ({limit})"
    elif "shared memory" in text or "No space left on device" in text:
        what = f"the loader processes (data.workers) need more room in /dev/shm, as docker's --shm-size gives: {text}"
    elif text.startswith(LOST):
        what = f"a loader process (data.workers) was lost, perhaps for lack of memory: {text}"
    elif text.startswith(TIMED_OUT):
        what = f"the loader processes (data.workers) returned nothing for {TIMEOUT} seconds"
    else:
        return None
    return f"{what.rstrip('.')}. --workers 0 (data.workers=0) loads without them"


def _begin_process(_: int) -> None:
    """Prepare a loader process for the end of its parent and for signals."""
    _outlive_signals()
    sys.excepthook = _show_unless_left


def _show_unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error in a thread, unless the parent was killed while it received a batch."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _outlive_signals() -> None:
    """Make this loader process ignore signals to end, except those that its parent sends; it also ends with its parent.

    Schedulers, terminals and torchrun send them to all processes at once, and the parent still needs the batches of the
    step that it finishes.
    """
    numbers, parent = {signal.SIGTERM, signal.SIGHUP}, os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)

    def wait() -> None:
        while signal.sigwaitinfo(numbers).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _check_handles(workers: int) -> None:
    """Raise if there are too few file handles, since a process without any left hangs instead of failing."""
    import resource  # not on Windows, where no process is forked

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used, needed = len(os.listdir("/dev/fd")), 64 + 8 * workers
    if limit != resource.RLIM_INFINITY and limit - used < needed:
        raise ChildProcessError(
            f"data.workers={workers} needs about {needed} file handles, but {used} of {limit} (`ulimit -n`) are used. "
            "Raise the limit, or load without such processes: --workers 0 (data.workers=0)"
        )


@dataclass(eq=False)
class _Reader(torch.utils.data.Dataset[bytes | Exception]):
    """Loads batches, in the main process, a thread or a loader process."""

    records: Records
    settings: Settings
    training: bool
    seed: int
    proposals: External | None
    preprocessor: Preprocessor
    sampler: Sampler

    def __post_init__(self) -> None:
        names = [*self.records.names()]
        self._by_name = array("q", sorted(range(len(names)), key=names.__getitem__))
        self._cache = PixelCache.of(self.settings)
        self._last: tuple[Location | None, np.ndarray] = (None, np.zeros(0))
        # Compiled graphs need a fixed number of ground-truth boxes: the maximum per image, rounded up to share graphs.
        max_boxes = int(self.records.counts.max(initial=0))
        self.width = 8 * max(1, math.ceil(self.sampler.max_members * max_boxes / 8))

    def __getitem__(self, work: Work) -> bytes | Exception:  # pyrefly: ignore[bad-override-param-name]
        """Load a batch in a loader process. An error is returned, since DataLoader wraps what is raised.

        The batch is put into shared memory here, since a failure in DataLoader's own thread is not reported.
        """
        try:
            item = self.load(work)
            return item if isinstance(item, Exception) else bytes(ForkingPickler.dumps(item))
        except StorageError as error:
            return error
        except (OSError, RuntimeError, MemoryError) as error:
            reason = lost_worker(error)
            if reason is None and not isinstance(error, MemoryError):
                raise
            return ChildProcessError(reason or "a loader process (data.workers) does not have enough memory")

    def load(self, work: Work) -> Item | DataError:
        """Load a batch. If an image can't be read, the error is returned."""
        epoch, example, draws = work
        number = len(self.records)
        real, seeds, samples, left_out = list[int](), list[int](), list[LoadedImage](), list[str]()
        sizes = list[Size]()
        for draw in draws:
            if draw == FILLER:
                continue
            repeat = f" (draw {draw // number + 1})" if draw >= number else ""
            record = self.records[draw % number]
            seed = stable_seed(self.seed, epoch, record.name + repeat)
            try:
                samples.append(self._item(draw % number, record, seed))
            except ImageError as error:
                if not isinstance(error, ReplacedImage) or not self.training or self.settings.data.on_fault == "stop":
                    return DataError(str(error))
                left_out.append(str(error))
            else:
                real.append(draw)
                seeds.append(seed)
                sizes.append(record.size)
        images, records, external = (list(column) for column in zip(*samples, strict=True)) if samples else ([], [], [])
        record = self.records[example % number]
        bucket = self.bucket(*record.size, *(record.view.resized if record.view else (0, 0)))
        batch = self.preprocessor.collate(images, sizes, bucket)
        fillers = len(draws) - len(real)
        if fillers:  # images of zeros, whose size is 0, so that they do not contribute to training
            black = batch.images.new_zeros(fillers, *batch.images.shape[1:])
            more = Batch(black, torch.zeros(fillers, 2), torch.ones(fillers, 2), torch.zeros(fillers, 2))
            batch = Batch(*(torch.cat(pair) for pair in zip(batch, more, strict=True)))
        proposals = None
        if isinstance(self.proposals, SlidingWindows):  # of what the network sees: they do not move with the image
            proposals = self.proposals.of_batch(batch)
        elif self.proposals is not None:
            external += [NOTHING] * fillers
            count = self.proposals.count
            proposals = pad_proposals(external, count) if self.training else batch_proposals(external, batch, count)
        return Item(
            batch,
            _padded(records, len(draws), self.width),
            torch.tensor(seeds + [0] * fillers),
            torch.tensor([draw % number for draw in real] + [FILLER] * fillers),
            proposals,
            tuple(left_out),
        )

    def _item(self, index: int, record: Record, seed: int) -> LoadedImage:
        """Return the image of a drawn record, or the one that the sampler makes of it and others.

        Args:
            index: of the record.
            record: the record.
            seed: of its random changes.
        """
        generator = _generator(stable_seed(seed, 0, "members"))
        members = self.sampler.members(index, self._by_name, generator)
        seeds = [seed, *(stable_seed(seed, number, self.records[i].name) for number, i in enumerate(members[1:], 1))]
        samples = [self._load(member, own) for member, own in zip(members, seeds, strict=True)]
        return self.sampler.combine(samples, self._canvas(record), generator)

    def bucket(self, height: int, width: int, resized_height: int, resized_width: int) -> Size:
        """Return the bucket of an image, or of a window after resizing; the latter is 0 for an entire image."""
        resized = (resized_height, resized_width) if resized_height else self.preprocessor.resized((height, width))
        return self.preprocessor.padded(resized)

    def _canvas(self, record: Record) -> Size:
        """Return the size of an image after resizing."""
        return self.preprocessor.resized(record.size) if record.view is None else record.view.resized

    def _pixels(self, record: Record) -> np.ndarray:
        """Return the (H, W, C) pixels of an image or window. In evaluation, windows of one file are consecutive."""
        path, array = self._last
        if path != record.path:
            array = self._decoded(record)
            _check_unchanged(record, (array.shape[0], array.shape[1]))
            self._last = (record.path, array) if record.view is not None else (None, array[:0])
        return array if record.view is None else record.view.crop(array)

    def _decoded(self, record: Record) -> np.ndarray:
        """Return the (H, W, C) pixels of the file of a record."""
        return read_picture(record.path, self.settings) if self._cache is None else self._cache.read(record.path)

    def _load(self, index: int, seed: int) -> LoadedImage:
        """Return the resized and, when training, augmented image of a record, with its objects and proposals.

        The objects are in resized pixels. So are the proposals when training, and those without area are dropped;
        otherwise they are unchanged.
        """
        record = self.records[index]
        external = self.proposals.images[index] if isinstance(self.proposals, ProposalSet) else NOTHING
        data, preprocessor, canvas = self.settings.data, self.preprocessor, self._canvas(record)
        scale = np.array([canvas[1] / record.size[1], canvas[0] / record.size[0]] * 2)
        boxes = record.boxes * scale
        if not self.training:
            return LoadedImage(
                preprocessor.resize(self._pixels(record), canvas), replace(record, boxes=boxes), external
            )
        plan = draw_plan(canvas, boxes, self.settings.augment, _generator(seed))
        if self.settings.preprocess.in_channels == 3 and self.settings.preprocess.resize == "pillow":
            if record.view is None:
                if self._cache is None:
                    picture = read_rgb(record.path, white=data.white, max_pixels=data.max_pixels)
                else:
                    picture = Image.fromarray(self._decoded(record))
                _check_unchanged(record, (picture.height, picture.width))
            else:
                picture = Image.fromarray(np.ascontiguousarray(self._pixels(record)))
            picture = apply_to_picture(plan, resized_by_pillow(picture, plan.resized))
            image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        else:
            image = apply_to_image(plan, preprocessor.resize(self._pixels(record), plan.resized))
        boxes, visible = apply_to_boxes(plan, boxes, canvas)
        left, ignore = visible > 0, record.ignore | (visible < MIN_VISIBLE_SHARE)
        record = replace(record, boxes=boxes[left], labels=record.labels[left], ignore=ignore[left])
        with np.errstate(invalid="ignore"):  # 0 / 0: the visible share of a box without area
            moved, _ = apply_to_boxes(plan, external.boxes * scale, canvas)
        shown = np.all(moved[:, 2:] > moved[:, :2], axis=1)
        return LoadedImage(image, record, ImageProposals(moved[shown], external.scores[shown]))


def _check_unchanged(record: Record, size: Size) -> None:
    """Refuse an image whose (height, width) is not what it was when the data set was read."""
    height, width = expected = record.file_size or record.size
    if size != expected:
        raise ReplacedImage(
            f"{record.path}: the image has {size[1]}x{size[0]} pixels now, but had {width}x{height} when the data was "
            "read, so its boxes do not fit; put the old file back, or run the command again if the labels are new too"
        )


def _padded(records: Sequence[Record], rows: int, width: int) -> Targets:
    """Return the targets of `rows` images, starting with the `records`, padded to `width` boxes per image."""
    boxes = torch.zeros(rows, width, 4)
    labels = torch.zeros(rows, width, dtype=torch.int64)
    valid, ignore = torch.zeros(rows, width, dtype=torch.bool), torch.zeros(rows, width, dtype=torch.bool)
    for row, record in enumerate(records):
        count = len(record.boxes)
        boxes[row, :count] = torch.from_numpy(record.boxes)
        labels[row, :count] = torch.from_numpy(record.labels)
        ignore[row, :count] = torch.from_numpy(record.ignore)
        valid[row, :count] = True
    return Targets(boxes, labels, valid, ignore)
