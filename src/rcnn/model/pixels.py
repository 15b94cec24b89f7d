"""The first step of the network: pixels as they were read become numbers of mean 0, on the device and in the graph."""

import torch
from torch import Tensor, nn

from rcnn.config import Preprocess
from rcnn.model.structures import Batch


class Pixels(nn.Module):
    """Normalises the images of a batch, puts their channels into the network's order, and sets the padding to zero.

    Images travel as uint8, or as float32 of 0..255 with `preprocess.resize=interpolate`, where rounding would change
    the pixels of imported detectors. Other floating-point images count as normalised, and stay what they are.

    Attributes:
        reverse: whether the network wants blue first.
        floats: whether floating-point images are of 0..255. Set it to False to show such a network normalised ones.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: Preprocess) -> None:
        super().__init__()
        self.reverse, self.floats = settings.order == "bgr", settings.resize == "interpolate"
        for name in ("mean", "std"):
            numbers = torch.tensor(getattr(settings, name)).reshape(-1, 1, 1)
            self.register_buffer(name, numbers, persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """(B, C, H, W) for the backbone, floating point."""
        images = batch.images
        if images.is_floating_point() and not self.floats:
            return images
        if self.reverse:
            images = images.flip(1)
        images = images.to(self.mean.dtype).div(255).sub(self.mean).div(self.std)
        height, width = batch.sizes[:, :, None].unbind(1)  # (B, 1) each
        below = torch.arange(images.shape[2], device=images.device) >= height  # (B, H)
        beside = torch.arange(images.shape[3], device=images.device) >= width  # (B, W)
        return images.masked_fill(below[:, None, :, None] | beside[:, None, None, :], 0.0)
