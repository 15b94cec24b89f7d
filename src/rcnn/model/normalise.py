"""The first step of the network: normalise pixels to mean 0, on the device and in the graph."""

import torch
from torch import Tensor, nn

from rcnn.config import Preprocess
from rcnn.errors import SettingsError
from rcnn.model.structures import AnyBatch, NormalisedBatch


def pixel_dtype(settings: Preprocess) -> torch.dtype:
    """Return the type of the images of a `Batch`: uint8, or float32 of 0..255 with `preprocess.resize=interpolate`.

    Imported detectors use float32, since rounding would change their pixels.
    """
    return torch.float32 if settings.resize == "interpolate" else torch.uint8


class Pixels(nn.Module):
    """Normalises the images of a `Batch`, puts their channels into the network's order, and sets the padding to zero.

    The images of a `NormalisedBatch` do not change.

    Attributes:
        reverse: whether the network takes blue first.
        dtype: type of the images of a `Batch`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Preprocess) -> None:
        super().__init__()
        self.reverse, self.dtype = settings.order == "bgr", pixel_dtype(settings)
        for name in ("mean", "std"):
            numbers = torch.tensor(getattr(settings, name)).reshape(-1, 1, 1)
            self.register_buffer(name, numbers, persistent=False)

    def check(self, batch: AnyBatch) -> None:
        """Check that the network takes images of the type that a batch holds. The values are not read.

        Raises:
            SettingsError: it does not take them.
        """
        found = batch.images.dtype
        if isinstance(batch, NormalisedBatch):
            if not found.is_floating_point:
                raise SettingsError(
                    f"a NormalisedBatch holds floating-point images, but these are {found}; put pixels of 0..255 into "
                    "a Batch, and the network normalises them"
                )
        elif found != torch.uint8 and not (found.is_floating_point and self.dtype.is_floating_point):
            also = ", or as floating-point numbers of 0..255" if self.dtype.is_floating_point else ""
            raise SettingsError(
                f"a Batch holds pixels as they were read, which this network takes as torch.uint8{also}, but these are "
                f"{found}; prepare images with rcnn.images.batch.Preprocessor, or put images that are normalised "
                "already into a NormalisedBatch"
            )

    def forward(self, batch: AnyBatch) -> Tensor:
        """(B, C, H, W) for the backbone, floating point.

        Raises:
            SettingsError: as for `check`.
        """
        self.check(batch)
        images = batch.images
        if isinstance(batch, NormalisedBatch):
            return images
        if self.reverse:
            images = images.flip(1)
        images = images.to(self.mean.dtype).div(255).sub(self.mean).div(self.std)
        height, width = batch.sizes[:, :, None].unbind(1)  # (B, 1) each
        rows = torch.arange(images.shape[2], device=images.device) < height  # (B, H)
        columns = torch.arange(images.shape[3], device=images.device) < width  # (B, W)
        # Products: in exported graphs they are part of the arithmetic above, whereas a mask takes a pass of its own.
        return images * rows[:, None, :, None] * columns[:, None, None, :]
