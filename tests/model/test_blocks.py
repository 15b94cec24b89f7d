"""The second stage on more RoIs than its head processes together."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import rcnn.model.fast_rcnn as fast_rcnn_file
from rcnn.model.fast_rcnn import AT_ONCE, BLOCK, FastRCNN
from rcnn.model.structures import Proposals
from rcnn.presets import PRESETS, build, settings_of
from rcnn.runtime.steady import make_steady
from tests.model import tiny

WINDOWS = 21_546
"""9 windows at every cell of a map of stride 16, for 600 x 1000 pixels."""
TWO_STAGES = [name for name in PRESETS if settings_of(name).two_stage]


def random_proposals(data: Any, count: int) -> Proposals:
    """Random boxes, the last of which are padding."""
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(len(data.images), count, 2, generator=generator) * torch.tensor([60.0, 40.0])
    boxes = torch.cat((corner, corner + 2 + 30 * torch.rand(corner.shape, generator=generator)), dim=2)
    none = torch.zeros(boxes.shape[:2], dtype=torch.int64)
    valid = (torch.arange(count) < count - 5).expand(len(boxes), -1)
    return Proposals(boxes * valid[..., None], valid.float(), valid, none, none)


def watch_pooling(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Return a list that receives the shape (B, R, C, S, S) of the result of every call."""
    shapes: list[torch.Size] = []
    pool = FastRCNN.pool

    def watched(self: FastRCNN, levels: Any, boxes: Tensor) -> Tensor:
        out = pool(self, levels, boxes)
        shapes.append(out.shape)
        return out

    monkeypatch.setattr(FastRCNN, "pool", watched)
    return shapes


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split more than ten RoIs of the tiny detector into blocks of at most 16."""
    monkeypatch.setattr(fast_rcnn_file, "AT_ONCE", 10)
    monkeypatch.setattr(fast_rcnn_file, "BLOCK", 16 * 8 * 3**2)


@pytest.mark.parametrize("head", ["fc", "conv-fc"])
@pytest.mark.parametrize("pool", ["align", "warp", "max"])
def test_blocks_give_the_same_results_as_a_single_pass(pool: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny.model({"roi": {"pool": pool, "head": head, "convs": 1}, "model": {"channels": 8}}).eval()
    data, _ = tiny.batch(2)
    proposals = random_proposals(data, 100)
    with torch.inference_mode():
        whole = net.execute(data, proposals)
        shapes = watch_pooling(monkeypatch)
        small_blocks(monkeypatch)
        blocks = net.execute(data, proposals)
    assert [rois for _, rois, *_ in shapes] == [15] * 6 + [10]
    torch.testing.assert_close(blocks.rois, whole.rois)
    torch.testing.assert_close(blocks.detections, whole.detections)


def test_an_image_has_the_same_bits_in_any_batch_in_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny.model().eval()
    make_steady(net)
    data, _ = tiny.batch(3)
    proposals = random_proposals(data, 100)
    small_blocks(monkeypatch)
    with torch.inference_mode():
        together = net.execute(data, proposals)
        for i in range(3):
            alone = net.execute(tiny.rows(data, [i]), tiny.rows(proposals, [i]))
            torch.testing.assert_close(alone.rois[0], tiny.rows(together.rois[0], [i]), rtol=0, atol=0)


def test_with_a_gradient_all_rois_are_processed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    net, shapes = tiny.model({"roi": {"samples": 30}}), watch_pooling(monkeypatch)
    small_blocks(monkeypatch)
    net.loss(*tiny.scene(net, 2))
    ((_, rois, *_),) = shapes
    assert rois > 16


@pytest.mark.parametrize("name", TWO_STAGES)
def test_sliding_windows_go_through_every_presets_head_in_bounded_memory(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On device `meta`, without computation."""
    shapes = watch_pooling(monkeypatch)
    with torch.device("meta"), torch.no_grad():
        net = build(settings_of(name), 20).eval()
        width = net.backbone.channels
        maps = [torch.empty(1, width, 608 // stride, 1008 // stride) for stride in net.fast_rcnn.strides]
        for count, blocks in ((1, False), (AT_ONCE, False), (WINDOWS, True)):
            shapes.clear()
            out = net.fast_rcnn(maps, torch.empty(1, count, 4))
            assert out.logits.shape == (1, count, 21)
            assert sum(rois for _, rois, *_ in shapes) == count
            if blocks:
                assert max(map(math.prod, shapes)) <= BLOCK
                assert len(shapes) == math.ceil(WINDOWS / (BLOCK // math.prod(shapes[0][2:])))
            else:
                assert len(shapes) == 1


def test_blocks_are_part_of_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny.model().eval()
    data, _ = tiny.batch(2)
    proposals = random_proposals(data, 40)
    small_blocks(monkeypatch)
    with torch.no_grad():
        program = tiny.one_graph(lambda *parts: net.execute(*parts).detections)
        torch.testing.assert_close(program(data, proposals), net.execute(data, proposals).detections)
