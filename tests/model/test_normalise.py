"""The first step of the network: normalisation, order of channels, mask of the padding."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rcnn.config import Predict, Preprocess
from rcnn.errors import SettingsError
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.normalise import Pixels
from rcnn.model.structures import AnyBatch, Batch, NormalisedBatch, to_device
from rcnn.runtime.eager import Eager
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
    images = torch.randint(0, 256, (2, 3, 6, 8), dtype=torch.uint8, generator=generator)  # padding may hold any value
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


def test_normalised_images_do_not_change() -> None:
    images = torch.randn(1, 3, 4, 4)
    read = batch(images, [[2.0, 2.0]])
    for changes in ({}, {"order": "bgr"}, {"resize": "interpolate"}):
        assert pixels(**changes)(NormalisedBatch(*read)) is images


def test_a_filler_is_all_padding() -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert not pixels()(batch(images, [[0.0, 0.0]])).any()


def test_a_network_in_float64_normalises_in_float64() -> None:
    images = torch.full((1, 3, 2, 2), 77, dtype=torch.uint8)
    found = pixels().double()(batch(images, [[2.0, 2.0]]))
    assert found.dtype == torch.float64


def test_the_network_sees_the_same_in_pixels_and_in_normalised_images() -> None:
    net = tiny.model().eval()
    assert not [name for name in net.state_dict() if name.startswith("pixels")]  # files of weights do not change
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    read = batch(images, [[64.0, 90.0], [60.0, 96.0]])
    with torch.no_grad():
        normalised = NormalisedBatch(net.pixels(read), *read[1:])
        torch.testing.assert_close(net(read), net(normalised), rtol=0, atol=0)


def test_an_imported_network_normalises_floats_of_a_batch_and_not_those_of_a_normalised_one() -> None:
    """The type of the batch alone decides, for equal networks, shapes and types of numbers."""
    net = tiny.model({"preprocess": {"resize": "interpolate"}}).eval()
    images = 255 * torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    read = batch(images, [[64.0, 96.0]])
    with torch.no_grad():
        found, other = net(read), net(NormalisedBatch(*read))
        expected = net(NormalisedBatch((images / 255 - net.pixels.mean) / net.pixels.std, *read[1:]))
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found.scores, other.scores)
    whole = images.round()
    first, second = (net.pixels(batch(pixels, [[64.0, 96.0]])) for pixels in (whole, whole.to(torch.uint8)))
    assert torch.equal(first, second)


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
OTHERS = (torch.bool, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64)


def refused(net: FasterRCNN, invalid: AnyBatch, sentence: str) -> None:
    """Check every entry point of a network, for any values: the meta device has none."""
    targets = tiny.batch(1)[1]
    loss = partial(net.loss, targets=targets, keys=tiny.keys(net, invalid, targets))
    for data in (invalid, to_device(invalid, torch.device("meta"))):
        for call in (net, net.propose, partial(net.execute, fields=()), loss):
            with pytest.raises(SettingsError, match=sentence):
                call(data)


@pytest.mark.parametrize("dtype", [*FLOATS, *OTHERS])
def test_a_batch_of_another_type_than_pixels_have_is_refused(dtype: torch.dtype) -> None:
    invalid = batch(torch.zeros(1, 3, 64, 96, dtype=dtype), [[64.0, 96.0]])
    name = rf"these are {dtype}; prepare images with .* or put images that are normalised already into a Normalised"
    refused(tiny.model(), invalid, "which this network takes as torch.uint8, but " + name)
    imported = tiny.model({"preprocess": {"resize": "interpolate"}})
    if dtype.is_floating_point:
        imported.pixels.check(invalid)
    else:
        refused(imported, invalid, "takes as torch.uint8, or as floating-point numbers of 0..255, but " + name)


@pytest.mark.parametrize("resize", ["pillow", "interpolate"])
@pytest.mark.parametrize("dtype", [torch.uint8, *OTHERS])
def test_normalised_images_are_floating_point(dtype: torch.dtype, resize: str) -> None:
    invalid = NormalisedBatch(*batch(torch.zeros(1, 3, 64, 96, dtype=dtype), [[64.0, 96.0]]))
    net = tiny.model({"preprocess": {"resize": resize}})
    refused(net, invalid, rf"floating-point images, but these are {dtype}; put pixels of 0\.\.255 into a Batch")


def test_a_compiled_or_prepared_network_takes_both_kinds_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal types and shapes in one runtime, the program of one kind must not be used for the other."""
    net = tiny.model({"preprocess": {"resize": "interpolate"}}).eval()
    read = batch(255 * torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)), [[64.0, 96.0]])
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    plain = Eager(net, torch.device("cpu"))
    compiled = Eager(net, torch.device("cpu"), Predict(compile=True))
    seen = []
    for kind in (Batch, NormalisedBatch, Batch):
        expected = plain.execute(kind(*read))
        seen.append(compiled.execute(kind(*read)))
        assert seen[-1].detections is not None
        assert expected.detections is not None
        torch.testing.assert_close(seen[-1].detections[:4], expected.detections[:4])
    assert not torch.equal(seen[0].detections.scores, seen[1].detections.scores)
    for runtime in (plain, compiled):
        with pytest.raises(SettingsError, match="a NormalisedBatch holds floating-point images"):
            runtime.execute(NormalisedBatch(read.images.to(torch.uint8), *read[1:]))
