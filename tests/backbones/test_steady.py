import pytest
import torch
from torch import nn

from rcnn.backbones.build import build_backbone
from rcnn.backbones.norm import fold_batch_norm
from rcnn.backbones.resnet import conv5_head
from rcnn.backbones.steady import SteadyConv2d, make_steady, steady_head
from rcnn.config import Settings
from rcnn.presets import settings_of


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


def test_state_and_values_stay():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, stride=2)
    x = torch.randn(1, 3, 9, 9)
    before, names = conv(x), list(conv.state_dict())
    make_steady(conv)
    assert isinstance(conv, SteadyConv2d)
    torch.testing.assert_close(conv(x), before)
    assert conv(x).shape == before.shape
    assert list(conv.state_dict()) == names


def test_a_head_of_convolutions_gives_a_roi_the_same_bits_however_many_there_are():
    torch.manual_seed(0)
    head = conv5_head(settings_of("resnet50-c4")).eval()
    steady = steady_head(head)
    rois = torch.randn(48, 1024, 14, 14).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        together = steady(rois)
        torch.testing.assert_close(together[:12], head(rois[:12]))
        for some in (slice(0, 12), slice(12, 24), slice(0, 0)):
            assert torch.equal(steady(rois[some]), together[some])
    linear = nn.Linear(3, 4)
    assert steady_head(linear) is linear
