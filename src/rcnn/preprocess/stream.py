"""Stream a user's images, in order, as batches. Memory does not grow with their number."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby, islice, tee
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcnn.config import Settings
from rcnn.errors import ImageError
from rcnn.model.structures import Batch
from rcnn.preprocess.ahead import ahead, spare_cores
from rcnn.preprocess.batch import Preprocessor, Size
from rcnn.preprocess.decode import as_array, read_image
from rcnn.preprocess.sources import files

Picture = str | Path | np.ndarray | Image.Image | Tensor
"""An image, or as text a file, folder or glob."""

Skip = Callable[[ImageError], None]


Paths = tuple[str | None, ...]
Made = TypeVar("Made")
READERS = 8
"""Threads that read images for a GPU, at most."""


class Resized(NamedTuple):
    """An image that was read.

    Attributes:
        path: of its file; None if it has none.
        views: (C, h, w) as `Preprocessor.resize` returns them, one per preprocessor.
        size: (height, width) of the file, pixels.
    """

    path: str | None
    views: tuple[Tensor, ...]
    size: Size


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


def read_resized(
    images: Any, settings: Settings, doors: Sequence[Preprocessor], *, skip: Skip | None = None, threads: int = 0
) -> Iterator[Resized]:
    """Yield every image, resized by every preprocessor, in order.

    Args:
        images: as `Detector.predict` takes them.
        settings: how files are read.
        doors: the preprocessors.
        skip: called with the error of a file that can't be read, which is left out. None: the error is raised.
        threads: that read and resize ahead; each holds one image in its full size. 0: an image is read when it is asked
            for.
    """
    for one in ahead(partial(_load, settings, doors), _each(images), threads):
        if isinstance(one, Resized):
            yield one
        elif skip is None:
            raise one
        else:
            skip(one)


def _each(images: Any) -> Iterator[Any]:
    """Yield files as paths, and images in memory as they are."""
    if isinstance(images, str | Path):
        yield from files(images)
    elif isinstance(images, np.ndarray | Image.Image | Tensor):
        yield images
    else:
        for image in images:
            yield from _each(image)


def _load(settings: Settings, doors: Sequence[Preprocessor], image: Any) -> Resized | ImageError:
    """Read and resize an image; the error of a file is returned."""
    if isinstance(image, Path):
        try:
            array = read_picture(image, settings)
        except ImageError as error:
            return error
    else:
        array = as_array(image, settings.preprocess.in_channels, settings.data.white)
    path = str(image) if isinstance(image, Path) else None
    return Resized(path, tuple(door.resize(array) for door in doors), (array.shape[0], array.shape[1]))


def batches(
    preprocessor: Preprocessor, shown: Iterator[Resized], limit: int, view: int = 0
) -> Iterator[tuple[Paths, Batch]]:
    """Yield the paths and the batch of up to `limit` consecutive images of the same bucket.

    Args:
        preprocessor: that made the views.
        shown: the images.
        limit: images in a batch.
        view: which of their views.
    """
    for _, members in groupby(shown, key=lambda one: preprocessor.bucket(one.size)):
        while group := list(islice(members, limit)):
            images, sizes = [one.views[view] for one in group], [one.size for one in group]
            yield tuple(one.path for one in group), preprocessor.collate(images, sizes)


def overlapped(
    images: Any,
    settings: Settings,
    doors: Sequence[Preprocessor],
    limit: int,
    make: Callable[[Batch, Paths], Sequence[Made]],
    skip: Skip | None,
    device: torch.device,
) -> Iterator[tuple[str | None, tuple[Made, ...]]]:
    """Yield the path of every image and what was made of it through each preprocessor, in order.

    Threads read images while `make` runs, for a GPU in a thread of its own, and the caller uses what came before. Where
    this would not pay or not be wanted (a single image, a single core, an iterator), everything happens in the caller's
    thread. So does `make` on a CPU: with a second thread that computes, OpenMP has more threads than there are cores,
    which then sleep between operations (measured: 1.4 times the time).

    Args:
        images: as `Detector.predict` takes them.
        settings: how files are read.
        doors: the preprocessors.
        limit: images in a batch.
        make: (batch, paths) -> one thing per image.
        skip: as for `read_resized`.
        device: where `make` computes: for a GPU several threads read, for the CPU, whose cores all compute, one.
    """
    on_gpu = device.type == "cuda"
    readers = min(spare_cores(), READERS if on_gpu else 1) if several(images) else 0
    shown = read_resized(images, settings, doors, skip=skip, threads=readers)
    # A tee holds on to images, so that a single preprocessor does without, and has a thread for what is made.
    parts = tee(shown, len(doors)) if len(doors) > 1 else (shown,)
    makers = 1 if readers and on_gpu and len(doors) == 1 else 0

    def run(one: tuple[Paths, Batch]) -> list[tuple[str | None, Made]]:
        paths, batch = one
        return list(zip(paths, make(batch, paths), strict=True))

    scales = [
        chain.from_iterable(ahead(run, batches(door, part, limit, view), makers))
        for view, (door, part) in enumerate(zip(doors, parts, strict=True))
    ]
    for results in zip(*scales, strict=True):
        yield results[0][0], tuple(made for _, made in results)
