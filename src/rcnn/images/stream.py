"""Stream a user's images, in order, as batches. Memory does not grow with their number."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rcnn.config import Settings
from rcnn.cores import METER, spare_cores
from rcnn.errors import ImageError
from rcnn.images.batch import Preprocessor, Size
from rcnn.images.decode import MAX_PIXELS, as_array, read_encoded, read_image
from rcnn.images.large import large_size, open_windows
from rcnn.images.sources import Encoded, NamedImage, open_source
from rcnn.images.storage import Location, RemotePath, image_location
from rcnn.images.views import Views
from rcnn.model.structures import Batch, NormalisedBatch

Picture = str | Location | Encoded | np.ndarray | Image.Image | Tensor | NamedImage | tuple[str | int, Any]
"""An image, its encoded file, the path or address of a file or folder, a glob, or in a sequence a key with an image."""
Skip = Callable[[ImageError], None]
ViewsOf = Callable[[Size], Views]
"""(height, width) of an image -> its views."""
Paths = tuple[str | None, ...]
Argument = TypeVar("Argument")
Made = TypeVar("Made")

MAX_READERS = 8
"""Maximum number of threads that read images for a GPU."""
MAX_KEPT_BYTES = 1 << 30
"""Maximum size of the decoded images that are kept until the caller has used them, bytes. Others are read again."""


def ahead(make: Callable[[Argument], Made], arguments: Iterable[Argument], threads: int) -> Generator[Made, None, None]:
    """Yield `make(argument)` for every argument, in order, computed in threads, each at most two results ahead.

    Args:
        make: called in the threads. An exception is raised in place of the result.
        arguments: iterated in the caller's thread. An exception is raised after the results of earlier arguments.
        threads: number of threads; 0 calls `make` in the caller's thread, when the result is requested.
    """
    if not threads:
        yield from map(make, arguments)
        return
    waiting: deque[Future[Made]] = deque()
    remaining, failure = iter(arguments), None
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            while failure is None:
                try:
                    waiting.append(pool.submit(make, next(remaining)))
                except BaseException as error:  # raised after the results of earlier arguments
                    failure = error
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if not isinstance(failure, StopIteration):
        raise failure


class ReadOptions(NamedTuple):
    """How image files are read: the arguments of `read_image`."""

    white: int | None = None
    max_pixels: int = MAX_PIXELS
    in_channels: int = 3

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return `data.white`, `data.max_pixels` and `preprocess.in_channels`."""
        return cls(settings.data.white, settings.data.max_pixels, settings.preprocess.in_channels)

    def read(self, path: str | Location) -> np.ndarray:
        """Read an image file as (H, W, in_channels) uint8.

        Raises:
            ImageError: as for `read_image`.
        """
        return read_image(path, **self._asdict())


DEFAULT_OPTIONS = ReadOptions()


def read_picture(path: str | Location, settings: Settings) -> np.ndarray:
    """Read an image file as (H, W, preprocess.in_channels) uint8, according to the settings.

    Raises:
        ImageError: as for `read_image`.
    """
    return ReadOptions.of(settings).read(path)


class Opened(NamedTuple):
    """An image that was read.

    Attributes:
        origin: the image as in its source, but `image` is the file, or the decoded pixels (H, W, C) if they are kept,
            or None.
        path: the file, or its address without a signature; None for an image in memory.
        size: (height, width) of the image, pixels.
        views: what the network sees of it.
        pixels: (C, h, w) of each view, as `Preprocessor.resize` returns them; can be iterated once.
    """

    origin: NamedImage
    path: str | None
    size: Size
    views: Views
    pixels: Iterable[Tensor]


class KeptPixels:
    """Keeps decoded images for the caller of `overlapped`, at most `MAX_KEPT_BYTES` of them. Thread-safe."""

    def __init__(self) -> None:
        self._bytes, self._lock = 0, Lock()

    def keep(self, source: NamedImage, pixels: np.ndarray) -> NamedImage:
        """Return the image with its pixels, or unchanged if it is a file and there is no room."""
        with self._lock:
            if isinstance(source.image, Location) and self._bytes + pixels.nbytes > MAX_KEPT_BYTES:
                return source
            self._bytes += pixels.nbytes
        return source._replace(image=pixels)

    def release(self, source: NamedImage) -> None:
        """Release the pixels of an image that the caller has used."""
        if isinstance(source.image, np.ndarray):
            with self._lock:
                self._bytes -= source.image.nbytes


def read_opened(
    images: Any,
    settings: Settings,
    preprocessor: Preprocessor,
    views_of: ViewsOf,
    *,
    skip: Skip | None = None,
    threads: int = 0,
    kept: KeptPixels | None = None,
) -> Iterator[Opened]:
    """Yield every image with its views, in order.

    Args:
        images: as `Detector.predict` takes them.
        settings: how files are read.
        preprocessor: resizes.
        views_of: (height, width) of an image -> its views.
        skip: called with the error of an image that can't be read, which is left out. None: the error is raised.
        threads: number of threads that read ahead, each holding one decoded image. 0 reads on request.
        kept: keeps the decoded pixels for the caller. None: they are dropped after resizing.
    """

    def load(source: NamedImage | ImageError) -> Opened | ImageError:
        if isinstance(source, ImageError):
            return source
        try:
            return _load(source, settings, preprocessor, views_of, kept)
        except ImageError as error:
            named = isinstance(source.image, Location) or not source.name
            return error if named else ImageError(f"{source.name}: {error}")

    for outcome in ahead(load, _each(images), threads):
        if isinstance(outcome, Opened):
            yield outcome
        elif skip is None:
            raise outcome
        else:
            skip(outcome)


def _each(images: Any) -> Iterator[NamedImage | ImageError]:
    """Yield the images of files, folders, globs, arrays and sources, and of sequences of these.

    A path in a sequence that can't be opened is yielded as its error, so that the caller can skip it.

    Raises:
        ImageError: `images` is a path that can't be opened, not an image, or a batch, whose images are resized already.
    """
    if isinstance(images, Batch | NormalisedBatch):
        raise ImageError(
            f"a {type(images).__name__} was given where images are expected; give its images as they were before they "
            "were resized and padded, or give the batch to `Detector.detect` or `Detector.region_proposals`"
        )
    if isinstance(images, NamedImage):
        yield images
    elif isinstance(images, str | Location):
        yield from open_source(images)
    elif isinstance(images, np.ndarray | Image.Image | Tensor | bytes | bytearray | memoryview):
        yield NamedImage(images)
    elif hasattr(images, "read"):
        name = getattr(images, "name", "")
        yield NamedImage(images, name if isinstance(name, str) else "")
    elif isinstance(images, Iterable):
        for image in images:
            try:
                yield from [_keyed(*image)] if _is_pair(image) else _each(image)
            except ImageError as error:
                yield error
    else:
        raise ImageError(
            f"{type(images).__name__} is not an image: give a path, bytes, a file object, an array, a tensor or a "
            "Pillow image"
        )


def _is_pair(item: Any) -> bool:
    """Return whether an item of a sequence is a key and an image."""
    return type(item) is tuple and len(item) == 2 and isinstance(item[0], str | int)


def _keyed(key: str | int, image: Any) -> NamedImage:
    """Return an image under its key. A path is that of a file."""
    try:
        sources = [NamedImage(image_location(image))] if isinstance(image, str | Location) else [*_each(image)]
    except ImageError as error:
        raise ImageError(f"{key}: {error}") from None
    if len(sources) != 1 or isinstance(sources[0], ImageError):
        raise ImageError(f"{key}: expected one image with this key, got a {type(image).__name__}")
    return sources[0]._replace(name=str(key))


def _content(image: Any) -> bytes | bytearray | memoryview:
    """Return the bytes of an image file, which is given as bytes or as a file object.

    Raises:
        ImageError: the file object can't be read, or returns text.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return image
    try:
        data = image.read()
    except (OSError, ValueError) as error:  # a closed file raises ValueError
        raise ImageError(f"the file object can't be read: {error}") from None
    if not isinstance(data, bytes):
        raise ImageError("the file object returns text; open the file in binary mode")
    return data


def _load(
    source: NamedImage, settings: Settings, preprocessor: Preprocessor, views_of: ViewsOf, kept: KeptPixels | None
) -> Opened:
    """Decode an image and resize its views, each on request if there are several."""
    image, path, origin = source.image, None, source
    if isinstance(image, Path):
        path = str(image)
        if (large := large_size(image, settings)) is not None:
            views = views_of(large)
            read = open_windows(image, views[0].size, settings)
            return Opened(source, path, large, views, (preprocessor.resize(read(view), view.resized) for view in views))
        array = read_picture(image, settings)
    elif isinstance(image, RemotePath):
        path, array = str(image), read_picture(image, settings)
    elif image is None:
        raise ImageError("the pixels of this image were not kept")
    elif not isinstance(image, np.ndarray | Image.Image | Tensor):
        array, origin = read_encoded(_content(image), **ReadOptions.of(settings)._asdict()), source._replace(image=None)
    else:
        array = as_array(image, settings.preprocess.in_channels, settings.data.white)
        origin = source._replace(image=None)
    size = array.shape[0], array.shape[1]
    views = views_of(size)
    # Windows are resized one by one, since together they are larger than the image.
    pixels = (preprocessor.resize(view.crop(array), view.resized) for view in views)
    origin = kept.keep(source, array) if kept else origin
    return Opened(origin, path, size, views, pixels if len(views) > 1 else tuple(pixels))


class ViewPosition(NamedTuple):
    """The position of a view: the number of its image, the number of the view in the image, and the image."""

    image: int
    number: int
    opened: Opened


PositionedViews = list[tuple[ViewPosition, Tensor]]
"""Views of one bucket with their pixels (C, h, w)."""


def grouped(preprocessor: Preprocessor, images: Iterable[Opened], limit: int) -> Iterator[tuple[Size, PositionedViews]]:
    """Yield buckets with at most `limit` views each.

    Views of consecutive images share buckets if these images need the same ones, so that results come soon.
    """

    def buckets(numbered: tuple[int, Opened]) -> frozenset[Size]:
        return frozenset(map(preprocessor.padded, numbered[1].views.sizes))

    for _, group in groupby(enumerate(images), key=buckets):
        waiting: dict[Size, PositionedViews] = {}
        for image, opened in group:
            without_pixels = opened._replace(pixels=())
            for number, (view, pixels) in enumerate(zip(opened.views, opened.pixels, strict=True)):
                bucket = preprocessor.padded(view.resized)
                waiting.setdefault(bucket, []).append((ViewPosition(image, number, without_pixels), pixels))
                if len(waiting[bucket]) == limit:
                    yield bucket, waiting.pop(bucket)
        yield from waiting.items()


def overlapped(
    images: Any,
    settings: Settings,
    preprocessor: Preprocessor,
    views_of: ViewsOf,
    limit: int,
    make: Callable[[Batch, Paths], Sequence[Made]],
    skip: Skip | None,
    device: torch.device,
    *,
    keep_pixels: bool = False,
) -> Iterator[tuple[Opened, tuple[Made, ...]]]:
    """Yield every image (without its resized views) and what was made of each of its views, in order.

    Threads read images while `make` runs, for a GPU in a separate thread, and while the caller uses earlier results. A
    single image, all images on a single core, and those of a source without a length, such as a camera, which may wait
    for the last result, are processed in the caller's thread. On a CPU, `make` runs in the caller's thread: with a
    second thread that computes, OpenMP has more threads than cores, and they sleep between operations (measured: 1.4
    times the time).

    Args:
        images: as `Detector.predict` takes them.
        settings: how files are read.
        preprocessor: resizes and collates.
        views_of: (height, width) of an image -> its views.
        limit: maximum number of views in a batch.
        make: (batch, paths) -> one result per view.
        skip: as for `read_opened`.
        device: where `make` computes: several threads read for a GPU, one for the CPU, whose cores all compute.
        keep_pixels: yield the decoded pixels in `Opened.origin`, as far as `MAX_KEPT_BYTES` allows.
    """
    images = open_source(images) if isinstance(images, str | Location) else images
    single = isinstance(
        images, np.ndarray | Tensor | bytes | bytearray | memoryview | NamedImage | Batch | NormalisedBatch
    )
    several = isinstance(images, Sized) and not single and len(images) > 1
    on_gpu = device.type == "cuda"
    readers = min(spare_cores(), MAX_READERS if on_gpu else 1) if several else 0
    kept = KeptPixels() if keep_pixels else None
    opened_images = read_opened(images, settings, preprocessor, views_of, skip=skip, threads=readers, kept=kept)

    def run(views: tuple[Size, PositionedViews]) -> list[tuple[ViewPosition, Made]]:
        bucket, positioned = views
        sizes = [position.opened.views[position.number].size for position, _ in positioned]
        batch = preprocessor.collate([pixels for _, pixels in positioned], sizes, bucket)
        with nullcontext() if on_gpu else METER.computing(torch.get_num_threads()):
            made = make(batch, tuple(position.opened.path for position, _ in positioned))
        return [(position, result) for (position, _), result in zip(positioned, made, strict=True)]

    unfinished: dict[int, tuple[Opened, dict[int, Made]]] = {}
    next_image = 0
    for results in ahead(run, grouped(preprocessor, opened_images, limit), 1 if readers and on_gpu else 0):
        for position, result in results:
            unfinished.setdefault(position.image, (position.opened, {}))[1][position.number] = result
        while next_image in unfinished and len(unfinished[next_image][1]) == len(unfinished[next_image][0].views):
            opened, made = unfinished.pop(next_image)
            next_image += 1
            yield opened, tuple(made[number] for number in range(len(made)))
            if kept:
                kept.release(opened.origin)
