"""Turn decoded pixels into a `Batch`, and boxes back into pixels of the file. Images are resized only here."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from rcnn.config import Preprocess
from rcnn.model.structures import Batch

Size = tuple[int, int]
"""(height, width), pixels."""


class Preprocessor:
    """Resizes images, and pads them with zeros to a bucket that depends on the image alone.

    Args:
        settings: sizes, rounding and channels.
        within: (height, width) of all buckets, which every image is made to fit; None: images and buckets of any size.
    """

    def __init__(self, settings: Preprocess, within: Size | None = None) -> None:
        self.settings, self.within = settings, within

    def resized(self, size: Size) -> Size:
        """Return an image's size after resizing: the shorter side is `short` unless the longer would exceed `long`.

        It is smaller if the image would not fit `within`.
        """
        resized = self._resized(size, (math.inf, math.inf))
        if self.within is None or (resized[0] <= self.within[0] and resized[1] <= self.within[1]):
            return resized
        return self._resized(size, self.within)

    def _resized(self, size: Size, within: tuple[float, float]) -> Size:
        short, long, rounding = self.settings.short, self.settings.long, self.settings.round
        height, width = within
        if rounding == "short-first":
            # At exact halves the last bit decides, so the order of operations matters: 265 x 530 becomes 666 x 1333.
            scale = short / min(size)
            sides = (short, scale * size[1]) if size[0] < size[1] else (scale * size[0], short)
            scale = min(1.0, long / max(sides), height / sides[0], width / sides[1])
        else:
            sides, scale = size, min(short / min(size), long / max(size), height / size[0], width / size[1])
        more = 0.0 if rounding == "floor" else 0.5
        resized = tuple(max(1, int(side * scale + more)) for side in sides)
        return resized[0], resized[1]

    def bucket(self, size: Size) -> Size:
        """Return the padded size of an image of `size`: its resized sides, rounded up to `multiple`, or `within`."""
        return self.padded(self.resized(size))

    def padded(self, resized: Size) -> Size:
        """Return the bucket of an image that is resized to this size."""
        if self.within:
            return self.within
        multiple = self.settings.multiple
        height, width = (-(-side // multiple) * multiple for side in resized)
        return height, width

    def resize(self, array: np.ndarray, size: Size | None = None) -> Tensor:
        """Resize an image to the network's scale.

        Args:
            array: (H, W, C) uint8.
            size: target size; None: `resized` of the image.

        Returns:
            (C, h, w) uint8; with `resize=interpolate` float32 in 0..255, as rounding would change imported detectors.
        """
        height, width = size or self.resized((array.shape[0], array.shape[1]))
        if self.settings.resize == "interpolate":
            image = torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32))
            return interpolate(image[None], (height, width), mode="bilinear", align_corners=False)[0]
        parts = [array] if array.shape[2] == 3 else np.moveaxis(array, 2, 0)
        pictures = (Image.fromarray(np.ascontiguousarray(part)) for part in parts)
        resized = np.dstack([np.array(resized_by_pillow(picture, (height, width))) for picture in pictures])
        return torch.from_numpy(resized).permute(2, 0, 1)

    def collate(self, images: Sequence[Tensor], originals: Sequence[Size], bucket: Size | None = None) -> Batch:
        """Pad images of one bucket with zeros at the right and the bottom. The network normalises them.

        Args:
            images: (C, h, w) as `resize` returns them.
            originals: sizes of their files.
            bucket: padded size; None: the images' own.

        Raises:
            ValueError: the images belong to several buckets, and `bucket` is None.
        """
        if bucket is None:
            buckets = {self.bucket(size) for size in originals}
            if len(buckets) != 1:
                raise ValueError(
                    f"a batch must contain images of one bucket, got {sorted(buckets)}; batch them by bucket"
                )
            (bucket,) = buckets
        dtype = np.float32 if self.settings.resize == "interpolate" else np.uint8
        # NumPy copies here, since PyTorch would start its own threads for each copy in a loader's thread.
        padded = np.zeros((len(images), self.settings.in_channels, *bucket), dtype)
        for row, image in zip(padded, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image.numpy()
        sizes = torch.tensor([image.shape[1:] for image in images], dtype=torch.float32).reshape(-1, 2)
        files = torch.tensor(originals, dtype=torch.float32).reshape(-1, 2)
        return Batch(torch.from_numpy(padded), sizes, sizes / files, files)

    def at_scale(self, factor: float) -> "Preprocessor":
        """Return the same preprocessing with `short` and `long` times `factor`, for a level of an image pyramid."""
        sides = {name: max(1, round(getattr(self.settings, name) * factor)) for name in ("short", "long")}
        return Preprocessor(self.settings.model_copy(update=sides), self.within)

    def boxes_back(self, boxes: Tensor, scale: Tensor, original: Tensor) -> Tensor:
        """Convert boxes to pixels of the image file, clipped to it.

        Args:
            boxes: (n, 4) in pixels of the resized image.
            scale: (2,) row of `Batch.scales`.
            original: (2,) row of `Batch.originals`.
        """
        return (boxes / scale.flip(0).repeat(2)).clamp(min=0).minimum(original.flip(0).repeat(2))


def resized_by_pillow(picture: Image.Image, size: Size) -> Image.Image:
    """Resize with Pillow's bilinear filter, which averages when shrinking."""
    height, width = size
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.BILINEAR)
