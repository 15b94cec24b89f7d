import copy

import pytest
import torch
from torch import nn

from rcnn.backbones.norm import FrozenBatchNorm2d, fold_batch_norm
from rcnn.errors import SettingsError
from rcnn.model.structures import Batch, Targets
from rcnn.presets import build, settings_of
from tests.backbones.test_norm import randomise

SMALL = ("rpn.pre_train=50", "rpn.post_train=20", "rpn.pre_test=50", "rpn.post_test=20", "roi.samples=16")


def scene(height: int = 64, width: int = 96) -> tuple[Batch, Targets]:
    size = torch.tensor([[float(height), float(width)]] * 2)
    boxes = torch.tensor([[[10.0, 10, 50, 60], [30, 5, 90, 40]]] * 2)
    valid = torch.tensor([[True, True], [False, False]])
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Batch(images, size, torch.ones(2, 2), size), Targets(boxes, torch.zeros(2, 2).long(), valid, valid & False)


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_norms_of_neck_and_head_follow_the_backbones_and_are_folded_for_prediction(norm: str):
    torch.manual_seed(0)
    changes = ["model.neck_norm=batch", "roi.head_norm=batch", "roi.head=conv-fc", "roi.convs=2", "rpn.convs=2"]
    model = build(settings_of("tiny-fpn", [*SMALL, *changes, f"model.norm={norm}", "model.norm_eps=0.1"]), 3)
    randomise(model)
    norms = {type(layer) for layer in model.modules() if hasattr(layer, "running_mean")}
    assert norms == {FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d}
    assert {layer.eps for layer in model.modules() if hasattr(layer, "running_mean")} == {0.1}
    expected = {f"backbone.neck.{part}_norm.p5.weight" for part in ("lateral", "output")}
    assert expected | {"fast_rcnn.head.norm.1.running_var", "rpn.head.conv.1.bias"} <= model.state_dict().keys()
    batch, targets = scene()
    losses = model.train().loss(batch, targets, model.keys(batch, targets, torch.tensor([1, 2])))
    torch.stack([total / count for total, count in losses.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    folded = copy.deepcopy(model.eval())
    fold_batch_norm(folded)
    assert not any(hasattr(layer, "running_mean") for layer in folded.modules())
    with torch.no_grad():
        pass_ = model.execute(batch)
        same = folded.execute(batch, pass_.proposals)
        torch.testing.assert_close(folded.execute(batch, fields=()).rpn, pass_.rpn, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(same.rois, pass_.rois, rtol=1e-3, atol=1e-4)


def test_the_default_model_is_small():
    model = build(settings_of("mobilenet-fpn"), 80)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_900_000


def test_evaluation_touches_no_running_statistic():
    model = build(settings_of("tiny-fpn", SMALL), 3)
    batch, targets = scene()
    keys = model.keys(batch, targets, torch.tensor([1, 2]))
    model.train().loss(batch, targets, keys)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    first, again = (model.eval().loss(batch, targets, keys) for _ in range(2))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert first == again


def test_an_unknown_model_gets_the_nearest_name():
    with pytest.raises(SettingsError, match="did you mean `mobilenet-fpn`"):
        settings_of("mobilnet-fpn")
