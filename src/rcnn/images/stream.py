"""Stream a user's images, in order, as batches. Memory does not grow with their number."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcnn.config import Settings
from rcnn.errors import ImageError
from rcnn.images.batch import Preprocessor, Size
from rcnn.images.decode import as_array, read_image
from rcnn.images.large import large_size, open_windows
from rcnn.images.sources import files
from rcnn.images.views import View
from rcnn.model.structures import Batch, NormalisedBatch

Picture = str | Path | np.ndarray | Image.Image | Tensor
"""An image, or as text a file, folder or glob."""

Skip = Callable[[ImageError], None]


Views = Callable[[Size], tuple[View, ...]]
"""Of an image of a size."""
Paths = tuple[str | None, ...]
Made = TypeVar("Made")
READERS = 8
"""Threads that read images for a GPU, at most."""


class Opened(NamedTuple):
    """An image that was read.

    Attributes:
        path: of its file; None if it has none.
        size: (height, width) of the file, pixels.
        views: what the network sees of it.
        pixels: (C, h, w) of each view, as `Preprocessor.resize` returns them; to be read once.
    """

    path: str | None
    size: Size
    views: tuple[View, ...]
    pixels: Iterable[Tensor]


def read_picture(path: str | Path, settings: Settings) -> np.ndarray:
    """Read an image file as (H, W, preprocess.in_channels) uint8, according to the settings.

    Raises:
        ImageError: as for `read_image`.
    """
    data = settings.data
    return read_image(path, white=data.white, max_pixels=data.max_pixels, in_channels=settings.preprocess.in_channels)


def several(images: Any) -> bool:
    """Are there images to be read ahead? Not those of an iterator, which may wait for what was made of the last."""
    if isinstance(images, str | Path):
        return not Path(images).is_file()
    return isinstance(images, Sequence) and len(images) > 1


def read_opened(
    images: Any,
    settings: Settings,
    preprocessor: Preprocessor,
    views: Views,
    *,
    skip: Skip | None = None,
    threads: int = 0,
) -> Iterator[Opened]:
    """Yield every image with its views, in order.

    Args:
        images: as `Detector.predict` takes them.
        settings: how files are read.
        preprocessor: resizes.
        views: of an image of a size.
        skip: called with the error of a file that can't be read, which is left out. None: the error is raised.
        threads: that read ahead; each holds one image in its full size. 0: an image is read when it is asked for.
    """
    for one in ahead(partial(_load, settings, preprocessor, views), _each(images), threads):
        if isinstance(one, Opened):
            yield one
        elif skip is None:
            raise one
        else:
            skip(one)


def _each(images: Any) -> Iterator[Any]:
    """Yield files as paths, and images in memory as they are.

    Raises:
        ImageError: a batch was given, which is what images become here.
    """
    if isinstance(images, Batch | NormalisedBatch):
        raise ImageError(
            f"a {type(images).__name__} was given where images are expected; give its images as they were before they "
            "were resized and padded, or give the batch to `Detector.detect` or `Detector.region_proposals`"
        )
    if isinstance(images, str | Path):
        yield from files(images)
    elif isinstance(images, np.ndarray | Image.Image | Tensor):
        yield images
    else:
        for image in images:
            yield from _each(image)


def _load(settings: Settings, preprocessor: Preprocessor, views_of: Views, image: Any) -> Opened | ImageError:
    """Read an image, and resize it if it is seen whole; the error of a file is returned."""
    try:
        size, views, window = _open(settings, views_of, image)
    except ImageError as error:
        if isinstance(image, Path):
            return error
        raise
    pixels = (preprocessor.resize(window(view), view.resized) for view in views)
    # Windows are made one by one, since together they are larger than the image; nothing else holds its pixels.
    return Opened(
        str(image) if isinstance(image, Path) else None, size, views, pixels if len(views) > 1 else tuple(pixels)
    )


def _open(
    settings: Settings, views_of: Views, image: Any
) -> tuple[Size, tuple[View, ...], Callable[[View], np.ndarray]]:
    """Return the size of an image, its views, and what gives the (h, w, C) uint8 pixels of each."""
    if isinstance(image, Path) and (large := large_size(image, settings)) is not None:
        views = views_of(large)
        return large, views, open_windows(image, views[0].size, settings)
    channels, white = settings.preprocess.in_channels, settings.data.white
    array = read_picture(image, settings) if isinstance(image, Path) else as_array(image, channels, white)
    size = array.shape[0], array.shape[1]
    return size, views_of(size), lambda view: view.crop(array)


class _Piece(NamedTuple):
    """A view on its way to the network: the number of its image, and its own among the views of that."""

    image: int
    number: int
    opened: Opened


Pieces = list[tuple[_Piece, Tensor]]
"""Views of one bucket with their pixels."""


def pieces(preprocessor: Preprocessor, shown: Iterable[Opened], limit: int) -> Iterator[tuple[Size, Pieces]]:
    """Yield views of one bucket, at most `limit` at a time, and the bucket.

    Views of consecutive images are mixed where these need the same buckets, so that no image waits for long.
    """

    def buckets(numbered: tuple[int, Opened]) -> frozenset[Size]:
        return frozenset(preprocessor.padded(view.resized) for view in numbered[1].views)

    for _, images in groupby(enumerate(shown), key=buckets):
        waiting: dict[Size, Pieces] = {}
        for image, opened in images:
            bare = opened._replace(pixels=())
            for number, (view, pixels) in enumerate(zip(opened.views, opened.pixels, strict=True)):
                bucket = preprocessor.padded(view.resized)
                waiting.setdefault(bucket, []).append((_Piece(image, number, bare), pixels))
                if len(waiting[bucket]) == limit:
                    yield bucket, waiting.pop(bucket)
        yield from waiting.items()


def overlapped(
    images: Any,
    settings: Settings,
    preprocessor: Preprocessor,
    views: Views,
    limit: int,
    make: Callable[[Batch, Paths], Sequence[Made]],
    skip: Skip | None,
    device: torch.device,
) -> Iterator[tuple[Opened, tuple[Made, ...]]]:
    """Yield every image (without its pixels) and what was made of each of its views, in order.

    Threads read images while `make` runs, for a GPU in a thread of its own, and the caller uses what came before. Where
    this would not pay or not be wanted (a single image, a single core, an iterator), everything happens in the caller's
    thread. So does `make` on a CPU: with a second thread that computes, OpenMP has more threads than there are cores,
    which then sleep between operations (measured: 1.4 times the time).

    Args:
        images: as `Detector.predict` takes them.
        settings: how files are read.
        preprocessor: resizes and collates.
        views: of an image of a size.
        limit: views in a batch.
        make: (batch, paths) -> one thing per view.
        skip: as for `read_opened`.
        device: where `make` computes: for a GPU several threads read, for the CPU, whose cores all compute, one.
    """
    on_gpu = device.type == "cuda"
    readers = min(spare_cores(), READERS if on_gpu else 1) if several(images) else 0
    shown = read_opened(images, settings, preprocessor, views, skip=skip, threads=readers)

    def run(asked: tuple[Size, Pieces]) -> list[tuple[_Piece, Made]]:
        bucket, some = asked
        sizes = [piece.opened.views[piece.number].size for piece, _ in some]
        batch = preprocessor.collate([pixels for _, pixels in some], sizes, bucket)
        made = make(batch, tuple(piece.opened.path for piece, _ in some))
        return [(piece, one) for (piece, _), one in zip(some, made, strict=True)]

    begun: dict[int, tuple[Opened, dict[int, Made]]] = {}
    turn = 0
    for done in ahead(run, pieces(preprocessor, shown, limit), 1 if readers and on_gpu else 0):
        for piece, one in done:
            begun.setdefault(piece.image, (piece.opened, {}))[1][piece.number] = one
        while turn in begun and len(begun[turn][1]) == len(begun[turn][0].views):
            opened, made = begun.pop(turn)
            turn += 1
            yield opened, tuple(made[number] for number in range(len(made)))


Asked = TypeVar("Asked")
Made = TypeVar("Made")


def ahead(make: Callable[[Asked], Made], asked: Iterable[Asked], threads: int) -> Generator[Made, None, None]:
    """Yield `make` of everything asked, in order, made by threads that are at most two pieces each ahead.

    Args:
        make: is called in threads. What it raises is raised where its result would have come.
        asked: is read in the caller's thread. What it raises is raised after the results of what came before.
        threads: 0: everything is made in the caller's thread when it is wanted.
    """
    if not threads:
        yield from map(make, asked)
        return
    waiting: deque[Future[Made]] = deque()
    more, failed = iter(asked), None
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            while failed is None:
                try:
                    waiting.append(pool.submit(make, next(more)))
                except BaseException as error:  # after the results of what was asked before
                    failed = error
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if not isinstance(failed, StopIteration):
        raise failed


def spare_cores() -> int:
    """Cores of this process but one. Those of a machine are shared by the processes that torchrun started on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)
