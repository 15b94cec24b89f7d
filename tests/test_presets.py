import pytest
import torch

from rcnn.config import SettingsError
from rcnn.model.structures import Batch, Targets
from rcnn.presets import PRESETS, build, settings_of

SMALL = ("rpn.pre_train=50", "rpn.post_train=20", "rpn.pre_test=50", "rpn.post_test=20", "roi.samples=16")


def scene(height: int = 64, width: int = 96) -> tuple[Batch, Targets]:
    size = torch.tensor([[float(height), float(width)]] * 2)
    boxes = torch.tensor([[[10.0, 10, 50, 60], [30, 5, 90, 40]]] * 2)
    valid = torch.tensor([[True, True], [False, False]])
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    return Batch(images, size, torch.ones(2, 2), size), Targets(boxes, torch.zeros(2, 2).long(), valid, valid & False)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_detects(preset):
    model = build(settings_of(preset, SMALL), 3)
    batch, targets = scene()
    losses = model.loss(batch, targets, model.keys(batch, targets, torch.tensor([1, 2])))
    torch.stack([total / count for total, count in losses.values()]).sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    with torch.no_grad():
        assert model.eval()(batch).finite.all()


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
