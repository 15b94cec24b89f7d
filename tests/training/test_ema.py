import pytest
import torch
from torch import nn

from rcnn.training.ema import EMA
from tests.training.pieces import assert_equal


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def test_decay_starts_low_and_rises_to_the_setting() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    ema = EMA(layer, 0.5)
    expected = 0.0
    for step in range(1, 20):
        nn.init.constant_(layer.weight, float(step))
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-5)


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    net = model()
    ema = EMA(net, 0.9)
    net.train()(torch.randn(4, 1, 8, 8))
    ema.update(1000)
    torch.testing.assert_close(ema.shadow["1.running_mean"], 0.1 * net[1].running_mean)
    assert ema.shadow["1.num_batches_tracked"].item() == 1


def test_applied_restores_the_weights_to_the_bit() -> None:
    net = model()
    ema = EMA(net, 0.9)
    nn.init.normal_(net[0].weight)
    own = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with ema.applied():
        assert_equal(net.state_dict(), ema.shadow)
    assert_equal(net.state_dict(), own)


def test_the_memory_format_of_the_model_is_kept() -> None:
    net = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    with EMA(net, 0.9).applied():
        assert net.weight.is_contiguous(memory_format=torch.channels_last)
    assert net.weight.is_contiguous(memory_format=torch.channels_last)
