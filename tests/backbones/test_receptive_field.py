import pytest
import torch
from torch import nn

from rcnn.backbones.receptive_field import receptive_field
from rcnn.presets import build, settings_of


@pytest.mark.parametrize(("name", "size", "middle"), [("paper-vgg16", 228, 8.0), ("paper-zf", 171, 0.5)])
def test_a_cell_of_the_papers_networks_sees_228_and_171_pixels(name: str, size: int, middle: float):
    """VGG: 3 + 16 x (2 + 2 + 2 + 2) and so on down to the image; its cells are centred in 16 x 16 squares."""
    with torch.device("meta"):
        net = build(settings_of(name), 20)
    assert receptive_field([*net.backbone.trunk.features, net.rpn.head.conv]) == (size, 16, middle)


def test_worked_by_hand():
    """3 + 2 x 1 + 2 x 4: a 3 x 3 window, a pooling of two cells 2 apart, a 5 x 5 window 4 apart."""
    chain = [nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(1, 1, 5, padding=2)]
    assert receptive_field(chain) == (3 + 2 + 4 * 4, 4, 1.5)
    assert receptive_field([]) == (1, 1, 0.5)


def test_the_gradient_of_a_cell_covers_the_receptive_field():
    chain = nn.Sequential(
        nn.Conv2d(1, 1, 5, stride=2, padding=2), nn.AvgPool2d(3, 2, 1), nn.Conv2d(1, 1, 3, padding=2, dilation=2)
    ).double()
    for parameter in chain.parameters():
        nn.init.constant_(parameter, 1.0)
    image = torch.ones(1, 1, 96, 96, dtype=torch.float64, requires_grad=True)
    field = receptive_field(chain)
    chain(image)[0, 0, 10, 12].backward()
    rows, columns = (image.grad[0, 0].sum(dim=axis).nonzero().flatten() for axis in (1, 0))
    assert (len(rows), len(columns)) == (field.size, field.size)
    for seen, cell in ((rows, 10), (columns, 12)):
        assert (seen[0] + seen[-1] + 1) / 2 == field.middle + cell * field.stride
