"""The first step of the network: normalisation, order of channels, mask of the padding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rcnn.config import Preprocess
from rcnn.model.pixels import Pixels
from rcnn.model.structures import Batch
from tests.model import tiny

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


def batch(images: Tensor, sizes: list[list[float]]) -> Batch:
    return Batch(images, torch.tensor(sizes), torch.ones(len(images), 2), torch.tensor(sizes))


def pixels(**changes: Any) -> Pixels:
    return Pixels(Preprocess(mean=MEAN, std=STD, **changes))


@pytest.mark.parametrize("resize", ["pillow", "interpolate"])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pixels_are_normalised_and_the_padding_is_zero(resize: str, order: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8, generator=generator)  # whatever the padding holds
    sizes = [[5.0, 8.0], [6.0, 3.0]]
    read = images.float() if resize == "interpolate" else images
    found = pixels(resize=resize, order=order)(batch(read, sizes))
    assert found.dtype == torch.float32
    for image, row, (height, width) in zip(images, found, sizes, strict=True):
        for channel in range(3):
            colour = image[2 - channel if order == "bgr" else channel].double()
            expected = (colour / 255 - MEAN[channel]) / STD[channel]
            expected[int(height) :], expected[:, int(width) :] = 0, 0
            torch.testing.assert_close(row[channel].double(), expected, atol=1e-6, rtol=0)


def test_normalised_images_stay_what_they_are() -> None:
    images = torch.randn(1, 3, 4, 4)
    assert pixels()(batch(images, [[2.0, 2.0]])) is images


def test_a_filler_is_all_padding() -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert not pixels()(batch(images, [[0.0, 0.0]])).any()


def test_a_network_in_float64_normalises_in_float64() -> None:
    images = torch.full((1, 3, 2, 2), 77, dtype=torch.uint8)
    found = pixels().double()(batch(images, [[2.0, 2.0]]))
    assert found.dtype == torch.float64


def test_the_network_sees_the_same_in_pixels_and_in_normalised_images() -> None:
    net = tiny.model().eval()
    assert not [name for name in net.state_dict() if name.startswith("pixels")]  # files of weights stay as they are
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    read = batch(images, [[64.0, 90.0], [60.0, 96.0]])
    with torch.no_grad():
        normalised = read._replace(images=net.pixels(read))
        for first, second in zip(net(read), net(normalised), strict=True):
            assert torch.equal(first, second)
