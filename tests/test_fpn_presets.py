"""The presets with a feature pyramid: strides and sizes of their anchors, and the levels that RoIs are read from."""

import math

import pytest
import torch

from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import Batch
from rcnn.presets import PRESETS, build, settings_of

PAPER = {2: 32, 3: 64, 4: 128, 5: 256, 6: 512}
"""Level -> size of its anchors, the square root of their area (Lin et al., 2017, section 4.1)."""
SIZES = {
    **{f"resnet{depth}-fpn": PAPER for depth in (18, 34, 50, 101)},
    "mobilenet-fpn": {3: 32, 4: 64, 5: 128, 6: 256},
    "mobilenet-one-stage": {3: 32, 4: 64, 5: 128, 6: 256},
    "tiny-fpn": {2: 16, 3: 32, 4: 64, 5: 128},
}
RATIOS = (0.5, 1.0, 2.0)
IMAGE = (128, 192)


def built(name: str) -> FasterRCNN:
    """The preset's model; a small second stage, since it has no part in the anchors."""
    return build(settings_of(name, ["roi.hidden=8"]), 3).eval()


def test_every_preset_with_a_pyramid_is_here() -> None:
    assert set(SIZES) == {name for name in PRESETS if settings_of(name).model.neck == "fpn"}


@pytest.mark.parametrize("name", [*SIZES, "timm/resnet18.a1_in1k"])
def test_anchors_are_set_as_stated(name: str) -> None:
    settings = settings_of(name)
    sizes = SIZES.get(name, PAPER)
    assert dict(zip(settings.model.levels, settings.anchors.sizes, strict=True)) == {
        level: (size,) for level, size in sizes.items()
    }
    assert settings.anchors.ratios == RATIOS


@pytest.mark.parametrize("name", SIZES)
def test_the_model_makes_these_anchors_on_maps_of_these_strides(name: str) -> None:
    """Everything is measured on the boxes: the distance of neighbours, the area, height over width."""
    net = built(name)
    zeros = torch.zeros(1, 3, *IMAGE, dtype=torch.uint8)
    with torch.inference_mode():
        out = net.execute(Batch(zeros, torch.tensor([IMAGE]).float(), torch.ones(1, 2), torch.tensor([IMAGE]).float()))
    assert out.rpn is not None
    assert len(out.levels) == len(out.rpn.anchors) == len(SIZES[name])
    for (level, size), features, anchors in zip(SIZES[name].items(), out.levels, out.rpn.anchors, strict=True):
        stride = 2**level
        rows, columns = (math.ceil(side / stride) for side in IMAGE)
        assert features.shape[2:] == (rows, columns)
        boxes = anchors.view(rows, columns, len(RATIOS), 4).double()
        wide, high = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
        torch.testing.assert_close((wide * high).sqrt(), torch.full_like(wide, size), rtol=1e-5, atol=0)
        torch.testing.assert_close(high / wide, torch.tensor(RATIOS).double().expand_as(wide), rtol=1e-5, atol=0)
        centres = (boxes[..., :2] + boxes[..., 2:]) / 2
        x, y = (torch.arange(count).double() * stride + stride / 2 for count in (columns, rows))
        torch.testing.assert_close(centres[..., 0], x[None, :, None].expand(rows, columns, 3), rtol=0, atol=1e-3)
        torch.testing.assert_close(centres[..., 1], y[:, None, None].expand(rows, columns, 3), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [name for name, sizes in SIZES.items() if sizes is PAPER])
def test_rois_are_read_from_the_levels_of_the_fpn_paper(name: str) -> None:
    """K = floor(4 + log2(sqrt(wh) / 224)), from P2 to P5."""
    with torch.device("meta"):
        second = build(settings_of(name), 3).fast_rcnn
    assert second is not None
    assert second.strides == (4, 8, 16, 32)
    sides = torch.tensor([112.0, 223, 224, 448, 32, 900])
    boxes = torch.stack((torch.zeros(6), torch.zeros(6), sides, sides), dim=-1)
    assert (second.level_of(boxes) + 2).tolist() == [3, 3, 4, 5, 2, 5]
