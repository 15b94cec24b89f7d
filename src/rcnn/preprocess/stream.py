"""Stream a user's images, in order, as batches. Memory does not grow with their number."""

from collections.abc import Callable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from rcnn.config import Settings
from rcnn.errors import ImageError
from rcnn.model.structures import Batch
from rcnn.preprocess.batch import Preprocessor, Size
from rcnn.preprocess.decode import as_array, read_image
from rcnn.preprocess.sources import files

Picture = str | Path | np.ndarray | Image.Image | Tensor
"""An image, or as text a file, folder or glob."""

Skip = Callable[[ImageError], None]
Shown = Iterator[tuple[str | None, np.ndarray]]
"""Images as pairs (path or None, (H, W, C) uint8)."""


def read_picture(path: str | Path, settings: Settings) -> np.ndarray:
    """Read an image file as (H, W, preprocess.in_channels) uint8, according to the settings.

    Raises:
        ImageError: as for `read_image`.
    """
    data = settings.data
    return read_image(path, white=data.white, max_pixels=data.max_pixels, in_channels=settings.preprocess.in_channels)


def pictures(images: Any, settings: Settings, skip: Skip | None = None) -> Shown:
    """Yield every image, opening one file at a time. `skip` is called with the error if one can't be read."""
    if isinstance(images, str | Path):
        for path in files(images):
            try:
                read = [read_picture(path, settings)]
            except ImageError as error:
                if skip is None:
                    raise
                skip(error)
            else:
                yield str(path), read.pop()  # not held here while others work with it
    elif isinstance(images, np.ndarray | Image.Image | Tensor):
        yield None, as_array(images, settings.preprocess.in_channels, settings.data.white)
    else:
        for image in images:
            yield from pictures(image, settings, skip)


def batches(preprocessor: Preprocessor, shown: Shown, limit: int) -> Iterator[tuple[tuple[str | None, ...], Batch]]:
    """Yield the paths and the batch of up to `limit` consecutive images of the same bucket."""

    def resized() -> Iterator[tuple[str | None, Tensor, Size]]:
        for path, array in shown:
            row = path, preprocessor.resize(array), (array.shape[0], array.shape[1])
            del array  # a large one is not held while the result is drawn
            yield row

    for _, members in groupby(resized(), key=lambda one: preprocessor.bucket(one[2])):
        while group := list(islice(members, limit)):
            paths, images, sizes = zip(*group, strict=True)
            yield paths, preprocessor.collate(images, sizes)
