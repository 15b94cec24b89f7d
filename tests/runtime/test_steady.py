import copy

import pytest
import torch
from torch import Tensor, nn

from rcnn.backbones.build import build_backbone
from rcnn.backbones.norm import fold_batch_norm
from rcnn.config import Settings
from rcnn.model.fast_rcnn import FastRCNN
from rcnn.runtime.steady import SteadyConv2d, make_steady


@pytest.mark.parametrize("shape", [(32, 64), (97, 130), (224, 320)])
def test_an_image_alone_gives_the_bits_that_it_gives_in_a_batch(shape: tuple[int, int]):
    torch.manual_seed(0)
    backbone = build_backbone(Settings()).eval()
    fold_batch_norm(backbone)
    make_steady(backbone)
    images = torch.randn(4, 3, *shape)
    with torch.inference_mode():
        together = backbone(images)
        for i in range(4):
            for name, alone in backbone(images[i : i + 1]).items():
                assert torch.equal(alone, together[name][i : i + 1]), name


def test_state_and_values_do_not_change():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=2)
    x = torch.randn(1, 3, 9, 9)
    before, names = conv(x), list(conv.state_dict())
    make_steady(conv)
    assert isinstance(conv, SteadyConv2d)
    torch.testing.assert_close(conv(x), before)
    assert conv(x).shape == before.shape
    assert list(conv.state_dict()) == names


class Head(nn.Module):
    out_features = 512

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.fc = first, nn.Linear(64 * 7 * 7, self.out_features)

    def forward(self, rois: Tensor) -> Tensor:
        return self.fc(self.first(rois).flatten(1)).relu()


@pytest.mark.parametrize("count", [0, 1, 12, 100])
@pytest.mark.parametrize("first", [nn.Identity(), nn.Conv2d(64, 64, 3, padding=1)], ids=["products", "convolutions"])
def test_the_second_stage_gives_an_image_the_same_bits_in_any_batch(first: nn.Module, count: int) -> None:
    torch.manual_seed(0)
    stage = FastRCNN(Head(first), (8,), 3, Settings().roi).eval()
    steady = copy.deepcopy(stage)
    make_steady(steady)
    level = torch.randn(4, 64, 20, 30)
    corner = torch.rand(4, count, 2) * 100
    boxes = torch.cat((corner, corner + 1 + torch.rand(4, count, 2) * 60), dim=2)
    with torch.inference_mode():
        together = steady([level], boxes)
        torch.testing.assert_close(together, stage([level], boxes))
        for i in range(4):
            for alone, field in zip(steady([level[i : i + 1]], boxes[i : i + 1]), together, strict=True):
                assert torch.equal(alone, field[i : i + 1])
