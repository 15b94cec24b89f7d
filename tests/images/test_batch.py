from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from rcnn.config import Preprocess
from rcnn.images.batch import Preprocessor
from rcnn.model.normalise import Pixels

sides = st.integers(1, 3000)


def make_preprocessor(**changes: Any) -> Preprocessor:
    return Preprocessor(Preprocess(**changes))


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "resized", "bucket"),
    [
        ((480, 640), (448, 597), (448, 608)),
        ((640, 480), (597, 448), (608, 448)),
        ((300, 1200), (192, 768), (192, 768)),  # the long side wins
        ((448, 448), (448, 448), (448, 448)),
        ((1, 10000), (1, 768), (32, 768)),
        ((10000, 1), (768, 1), (768, 32)),
        ((1, 1), (448, 448), (448, 448)),
    ],
)
def test_sizes_worked_by_hand(size: tuple[int, int], resized: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert make_preprocessor().resized(size) == resized
    assert make_preprocessor().bucket(size) == bucket


@given(sides, sides)
@settings(deadline=None, max_examples=50)
def test_floor_rounds_and_scales_as_torchvision_does(height: int, width: int) -> None:
    preprocessor = make_preprocessor(short=50, long=83, round="floor", resize="interpolate", mean=(0.0,), std=(1.0,))
    expected = preprocessor.resized((height, width))
    assume(min(50 / min(height, width), 83 / max(height, width)) * min(height, width) >= 1)  # it fails on empty images
    transform = GeneralizedRCNNTransform(50, 83, [0.0] * 3, [1.0] * 3).eval()
    images, _ = transform([torch.empty(3, height, width, device="meta")])
    assert images.image_sizes == [expected]
    assert tuple(images.tensors.shape[2:]) == preprocessor.bucket((height, width))


def test_short_first_gives_the_sizes_of_detectron2() -> None:
    """Compare a million sizes with detectron2's formula, which rounds other sizes up than `nearest` does."""
    height, width = np.meshgrid(np.arange(100.0, 1100), np.arange(100.0, 1100), indexing="ij")
    scale = 800 / np.minimum(height, width)
    lower = height < width
    new_height, new_width = np.where(lower, 800.0, scale * height), np.where(lower, scale * width, 800.0)
    longer = np.maximum(new_height, new_width)
    shrink = np.where(longer > 1333, 1333 / longer, 1.0)
    expected = np.floor(np.stack((new_height, new_width)) * shrink + 0.5)
    preprocessor = make_preprocessor(short=800, long=1333, round="short-first")
    resized = [preprocessor.resized((h + 100, w + 100)) for h, w in np.ndindex(1000, 1000)]
    sizes = np.array(resized).T.reshape(expected.shape)
    assert np.array_equal(sizes, expected)
    scale = np.minimum(800 / np.minimum(height, width), 1333 / np.maximum(height, width))
    nearest = np.floor(np.stack((height, width)) * scale + 0.5)
    assert (sizes != nearest).any(axis=0).sum() == 186
    assert preprocessor.resized((265, 530)) == (666, 1333)


def test_pixels_of_an_odd_image_are_torchvisions() -> None:
    array = picture(61, 87)
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    preprocessor = make_preprocessor(short=50, long=83, round="floor", resize="interpolate", mean=mean, std=std)
    transform = GeneralizedRCNNTransform(50, 83, list(mean), list(std)).eval()
    images, _ = transform([torch.tensor(array).permute(2, 0, 1) / 255])
    batch = preprocessor.collate([preprocessor.resize(array)], [array.shape[:2]])  # type: ignore[list-item]
    assert batch.sizes.tolist() == [[50, 71]]
    torch.testing.assert_close(Pixels(preprocessor.settings)(batch), images.tensors, rtol=0, atol=1e-5)


@given(sides, sides, st.integers(1, 64))
@settings(deadline=None, max_examples=100)
def test_a_bucket_is_the_least_multiple_that_holds_the_resized_image(height: int, width: int, multiple: int) -> None:
    preprocessor = make_preprocessor(multiple=multiple)
    for side, padded in zip(preprocessor.resized((height, width)), preprocessor.bucket((height, width)), strict=True):
        assert padded % multiple == 0
        assert 0 <= padded - side < multiple
        assert 1 <= side <= 768


def test_colour_images_are_resized_as_pillow_does() -> None:
    array = picture(48, 64)
    preprocessor = make_preprocessor(short=30, long=100)
    expected = np.asarray(Image.fromarray(array).resize((40, 30), Image.Resampling.BILINEAR))
    assert torch.equal(preprocessor.resize(array), torch.tensor(expected).permute(2, 0, 1))


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_channels_is_resized_channel_by_channel(channels: int) -> None:
    array = picture(40, 20, channels)
    image = make_preprocessor(short=10, in_channels=channels, mean=(0.5,), std=(1.0,)).resize(array)
    assert image.shape == (channels, 20, 10)
    for channel in range(channels):
        expected = Image.fromarray(array[:, :, channel]).resize((10, 20), Image.Resampling.BILINEAR)
        assert np.array_equal(image[channel].numpy(), np.asarray(expected))


def test_interpolate_neither_smooths_nor_rounds() -> None:
    array = picture(30, 40)
    image = make_preprocessor(short=10, resize="interpolate").resize(array)
    tensor = torch.tensor(array).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(tensor, size=(10, 13), mode="bilinear", align_corners=False)[0]
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, expected)


@pytest.mark.parametrize("resize", ["pillow", "interpolate"])
def test_a_batch_holds_pixels_padded_with_zeros(resize: str) -> None:
    preprocessor = make_preprocessor(short=20, long=40, multiple=16, resize=resize)
    arrays = [picture(40, 60), picture(40, 62, seed=1)]
    images = [preprocessor.resize(array) for array in arrays]
    batch = preprocessor.collate(images, [(40, 60), (40, 62)])
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.sizes.tolist() == [[20, 30], [20, 31]]
    assert batch.originals.tolist() == [[40, 60], [40, 62]]
    assert batch.scales.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    for image, row in zip(images, batch.images, strict=True):
        height, width = image.shape[1:]
        assert row.dtype == image.dtype == (torch.uint8 if resize == "pillow" else torch.float32)
        assert torch.equal(row[:, :height, :width], image)
        assert not row[:, height:].any()
        assert not row[:, :, width:].any()


def test_a_given_bucket_pads_further_and_changes_no_pixel() -> None:
    preprocessor = make_preprocessor(short=32, long=64)
    image = preprocessor.resize(picture(32, 40))
    alone, wide = preprocessor.collate([image], [(32, 40)]), preprocessor.collate([image], [(32, 40)], bucket=(64, 96))
    assert wide.images.shape == (1, 3, 64, 96)
    assert torch.equal(wide.images[:, :, :32, :64], alone.images)


def test_images_of_two_buckets_are_refused() -> None:
    preprocessor = make_preprocessor(short=32, long=64)
    arrays = [picture(32, 32), picture(32, 64)]
    with pytest.raises(ValueError, match=r"one bucket, got \[\(32, 32\), \(32, 64\)\]"):
        preprocessor.collate([preprocessor.resize(array) for array in arrays], [(32, 32), (32, 64)])


@settings(max_examples=60)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from(["nearest", "floor", "short-first"]),
    st.sampled_from([(64, 64), (32, 160), (512, 96)]),
)
@example(39, 193, "nearest", (32, 160))  # fits after rounding, and not before
def test_images_fit_within_a_size(height: int, width: int, rounding: str, within: tuple[int, int]) -> None:
    changes = Preprocess(short=100, long=160, round=rounding)  # type: ignore[arg-type]
    preprocessor = Preprocessor(changes, within)
    free, found = Preprocessor(changes).resized((height, width)), preprocessor.resized((height, width))
    assert preprocessor.bucket((height, width)) == within
    assert all(1 <= side <= most for side, most in zip(found, within, strict=True))
    if all(side <= most for side, most in zip(free, within, strict=True)):
        assert found == free
    else:  # one side fills its own, up to the rounding of the other
        assert any(side >= most - 1 for side, most in zip(found, within, strict=True))
    larger = preprocessor.at_scale(2.0)
    assert larger.within == within
    assert all(side <= most for side, most in zip(larger.resized((height, width)), within, strict=True))


def test_a_thin_image_is_resized_and_padded() -> None:
    preprocessor = make_preprocessor()
    batch = preprocessor.collate([preprocessor.resize(picture(1, 10000))], [(1, 10000)])
    assert batch.images.shape == (1, 3, 32, 768)
    assert batch.sizes.tolist() == [[1, 768]]


@given(sides, sides, st.integers(0, 2**31))
@settings(deadline=None, max_examples=50)
def test_boxes_come_back_to_the_file(height: int, width: int, seed: int) -> None:
    preprocessor = make_preprocessor()
    corners = np.sort(np.random.default_rng(seed).random((5, 2, 2)), axis=1) * (width, height)
    boxes = torch.from_numpy(corners.reshape(5, 4))
    resized = torch.tensor(preprocessor.resized((height, width)), dtype=torch.float64)
    original = torch.tensor((height, width), dtype=torch.float64)
    scale = resized / original
    torch.testing.assert_close(preprocessor.boxes_back(boxes * scale.flip(0).repeat(2), scale, original), boxes)


def test_boxes_beyond_the_file_are_clipped_to_it() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 500.0, 30.0]])
    back = make_preprocessor().boxes_back(boxes, torch.tensor([0.5, 2.0]), torch.tensor([100.0, 200.0]))
    assert back.tolist() == [[0.0, 0.0, 200.0, 60.0]]
