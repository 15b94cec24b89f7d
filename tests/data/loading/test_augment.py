from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional

from rcnn.config import Augment
from rcnn.data.loading.augment import Plan, apply_to_boxes, apply_to_image, apply_to_picture, draw_plan

STILL = {"flip": 0, "scale": (1, 1), "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
CANVAS = (60, 90)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def draw(seed: int, boxes: np.ndarray | None = None, **changes: Any) -> Plan:
    boxes = np.array([[40.0, 20, 60, 44]]) if boxes is None else boxes
    return draw_plan(CANVAS, boxes, Augment(**{**STILL, **changes}), generator(seed))


def colour_plan(**changes: float) -> Plan:
    factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, **changes}
    return Plan(CANVAS, (0, 0, *CANVAS), flip=False, vertical_flip=False, transpose=False, **factors)


def photo(low: int = 60, high: int = 180, channels: int = 3) -> torch.Tensor:
    return torch.randint(low, high, (channels, *CANVAS), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@given(st.integers(0, 2**40), st.integers(5, 60), st.integers(5, 30), st.integers(8, 28), st.integers(8, 28))
@settings(deadline=None, max_examples=150)
def test_boxes_stay_on_the_pixels_they_frame(seed: int, left: int, top: int, width: int, height: int) -> None:
    box = np.array([[left, top, left + width, top + height]], dtype=np.float64)
    pixels = np.zeros((*CANVAS, 3), dtype=np.uint8)
    pixels[top : top + height, left : left + width] = 255
    plan = draw(seed, box, flip=0.5, vertical_flip=0.5, transpose=0.5, scale=(0.7, 1.4), crop=0.5)
    resized = Image.fromarray(pixels).resize((plan.resized[1], plan.resized[0]), Image.Resampling.BILINEAR)
    image = apply_to_image(plan, torch.tensor(np.array(resized)).permute(2, 0, 1))
    boxes, visible = apply_to_boxes(plan, box, CANVAS)

    bright = image[0].numpy() > 127
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    assert rows.size  # the only object's centre is never lost
    tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(boxes[0], tight, atol=1.5)
    assert 0.2 < visible[0] <= 1 + 1e-9


@given(st.integers(0, 2**40), st.floats(0.3, 1), st.floats(1, 3))
@settings(deadline=None, max_examples=100)
def test_the_image_never_leaves_its_canvas(seed: int, low: float, high: float) -> None:
    plan = draw(seed, np.zeros((0, 4)), scale=(low, high), crop=0.5, transpose=0.5)
    top, left, height, width = plan.window
    assert 0 <= top <= plan.resized[0] - height
    assert 0 <= left <= plan.resized[1] - width
    shape = apply_to_image(plan, torch.zeros(3, *plan.resized, dtype=torch.uint8)).shape
    assert shape == (3, width, height) if plan.transpose else (3, height, width)
    assert 1 <= shape[1] <= CANVAS[0]
    assert 1 <= shape[2] <= CANVAS[1]


@given(st.integers(0, 2**40))
@settings(deadline=None, max_examples=50)
def test_a_crop_keeps_the_centre_of_an_object(seed: int) -> None:
    corners = np.sort(generator(seed).random((4, 2, 2)), axis=1) * (CANVAS[1], CANVAS[0])
    boxes = corners.reshape(4, 4)
    plan = draw(seed, boxes, crop=1, scale=(1, 2))
    top, left, height, width = plan.window
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 * (plan.resized[1] / CANVAS[1], plan.resized[0] / CANVAS[0])
    inside = (centres >= (left, top)) & (centres <= (left + width, top + height))
    assert inside.all(1).any()


def test_one_pixel_images_survive() -> None:
    for seed in range(20):
        plan = draw_plan((1, 1), np.array([[0.0, 0, 1, 1]]), Augment(scale=(0.3, 3), crop=1), generator(seed))
        assert plan.window[2:] == (1, 1)


def test_without_settings_nothing_changes() -> None:
    plan, image = draw(3), photo()
    boxes = np.array([[1.5, 2, 30, 40]])
    assert torch.equal(apply_to_image(plan, image), image)
    moved, visible = apply_to_boxes(plan, boxes, CANVAS)
    assert np.array_equal(moved, boxes)
    assert visible.tolist() == [1.0]


def test_visible_share_worked_by_hand() -> None:
    plan = Plan((60, 90), (10, 20, 40, 50), True, False, False, 1, 1, 1, 0)
    boxes = np.array([[10.0, 20, 30, 40], [0, 0, 20, 10], [60, 45, 80, 55], [30, 20, 40, 30]])
    moved, visible = apply_to_boxes(plan, boxes, CANVAS)
    np.testing.assert_allclose(visible, [0.5, 0, 0.25, 1])
    np.testing.assert_allclose(moved[[0, 2, 3]], [[40, 10, 50, 30], [0, 35, 10, 40], [30, 10, 40, 20]])
    moved, visible = apply_to_boxes(plan._replace(transpose=True), boxes, CANVAS)
    np.testing.assert_allclose(visible, [0.5, 0, 0.25, 1])
    np.testing.assert_allclose(moved[[0, 2, 3]], [[10, 40, 30, 50], [35, 0, 40, 10], [10, 30, 20, 40]])


def test_flips_and_transposition_make_all_eight_orientations() -> None:
    square = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4)
    orientations = Augment(**{**STILL, "flip": 0.5, "vertical_flip": 0.5, "transpose": 0.5})
    plans = [draw_plan((4, 4), np.zeros((0, 4)), orientations, generator(seed)) for seed in range(100)]
    seen = {tuple(apply_to_image(plan, square).flatten().tolist()) for plan in plans}
    turned = [torch.rot90(image, k, (1, 2)) for image in (square, square.flip(2)) for k in range(4)]
    assert seen == {tuple(image.flatten().tolist()) for image in turned}


def test_changing_one_setting_keeps_what_is_drawn_for_the_others() -> None:
    for seed in range(10):
        both, flip = draw(seed, flip=0.5, hue=0.1), draw(seed, flip=0.5)
        assert both.flip == flip.flip
        assert draw(seed, hue=0.1).hue == both.hue


def test_flips_and_crops_happen_as_often_as_asked() -> None:
    plans = [draw(seed, flip=0.3, vertical_flip=0.1, transpose=0.8, crop=0.6) for seed in range(2000)]
    shares = np.mean([(plan.flip, plan.vertical_flip, plan.transpose) for plan in plans], axis=0)
    np.testing.assert_allclose(shares, (0.3, 0.1, 0.8), atol=0.04)
    cropped = np.mean([plan.window[2:] != CANVAS for plan in plans if not plan.transpose])
    np.testing.assert_allclose(cropped, 0.6, atol=0.06)


def test_some_images_keep_their_scale_and_the_others_what_was_drawn() -> None:
    for seed in range(200):
        scaled, drawn = draw(seed, scale=(1.2, 2)), draw(seed, scale=(1.2, 2), rescale=0.3)
        assert drawn == scaled or drawn.resized == drawn.window[2:] == CANVAS
    kept = [draw(seed, scale=(1.2, 2), rescale=0.3).resized == CANVAS for seed in range(2000)]
    np.testing.assert_allclose(np.mean(kept), 0.7, atol=0.04)


def test_jitter_stays_in_its_range() -> None:
    jitter = Augment(scale=(0.5, 2), brightness=0.1, contrast=0.2, saturation=2.0, hue=0.05)
    plans = [draw_plan(CANVAS, np.zeros((0, 4)), jitter, generator(seed)) for seed in range(500)]
    drawn = np.array([(p.brightness, p.contrast, p.saturation, p.hue, p.resized[0] / CANVAS[0]) for p in plans])
    np.testing.assert_allclose(drawn.min(0), (0.9, 0.8, 0, -0.05, 0.5), atol=0.02)
    np.testing.assert_allclose(drawn.max(0), (1.1, 1.2, 3, 0.05, 2), atol=0.06)
    assert np.isclose(np.median(drawn[:, 4]), 1, atol=0.15)


@given(st.integers(0, 2**40), st.booleans())
@settings(deadline=None, max_examples=60)
def test_pictures_are_changed_as_images_are(seed: int, colours: bool) -> None:
    jitter = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.5) if colours else {}
    plan = draw(seed, flip=0.5, vertical_flip=0.5, transpose=0.5, scale=(0.7, 1.4), crop=0.5, **jitter)
    image = torch.randint(0, 256, (3, *plan.resized), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    picture = apply_to_picture(plan, Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
    changed = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    expected = apply_to_image(plan, image)
    assert changed.shape == expected.shape
    assert (changed.int() - expected.int()).abs().max() <= (1 if colours else 0)


@pytest.mark.parametrize("factor", [0.7, 0.9, 1.3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_equals_torchvision(name: str, factor: float) -> None:
    image = photo()
    expected = getattr(functional, f"adjust_{name}")(image, factor)
    got = apply_to_image(colour_plan(**{name: factor}), image)
    assert got.dtype == torch.uint8
    assert (got.int() - expected.int()).abs().max() <= 2  # torchvision cuts, and takes a mean of whole greys


def test_hue_turns_the_colour_and_keeps_the_grey() -> None:
    image = photo(90, 160)
    third = apply_to_image(colour_plan(hue=1 / 3), apply_to_image(colour_plan(hue=2 / 3), image))
    assert (third.int() - image.int()).abs().max() <= 3
    grey = torch.full((3, *CANVAS), 77, dtype=torch.uint8)
    assert torch.equal(apply_to_image(colour_plan(hue=0.2, saturation=1.7), grey), grey)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    turned = apply_to_image(colour_plan(hue=0.3), image)
    torch.testing.assert_close((turned * luma).sum(0), (image * luma).sum(0), atol=1.0, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_any_number_of_channels_get_brightness_and_contrast(channels: int) -> None:
    image = photo(channels=channels)
    got = apply_to_image(colour_plan(brightness=0.8, contrast=1.1, saturation=3, hue=0.5), image).double()
    dim = image.double() * 0.8
    torch.testing.assert_close(got, dim.mean() + 1.1 * (dim - dim.mean()), atol=1.0, rtol=0)


def test_boxes_and_visible_share_are_defined_without_objects() -> None:
    plan = Plan((10, 10), (0, 0, 10, 10), False, False, False, 1, 1, 1, 0)
    boxes, visible = apply_to_boxes(plan, np.zeros((0, 4)), (10, 10))
    assert boxes.shape == (0, 4)
    assert visible.shape == (0,)
