import pytest
import torch
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection.backbone_utils import _mobilenet_extractor

from rcnn.backbones.build import build_backbone
from rcnn.config import validate
from rcnn.errors import SettingsError


def settings(levels: tuple[int, ...], **model: object):
    tree = {"backbone": "mobilenet_v3_large", "channels": 16, "levels": levels, "norm": "train", **model}
    return validate({"model": tree, "anchors": {"sizes": [[32]] * len(levels)}, "roi": {"head": "none"}})


@pytest.mark.parametrize(("levels", "returned"), [((5, 5, 6), None), ((3, 4, 5, 5, 6), [2, 3, 4, 5])])
def test_the_maps_are_those_of_torchvisions_extractor(levels: tuple[int, ...], returned: list[int] | None):
    torch.manual_seed(0)
    built = build_backbone(settings(levels, frozen_stages=0)).eval()
    net = mobilenet_v3_large()
    net.features.load_state_dict({name[9:]: tensor for name, tensor in built.trunk.state_dict().items()})
    theirs = _mobilenet_extractor(net, True, 6, returned_layers=returned).eval()
    images = torch.randn(1, 3, 97, 130)
    expected = list(theirs.body(images).values())
    for found, map_ in zip(built.trunk(images)[-len(expected) :], expected, strict=True):
        torch.testing.assert_close(found, map_)
    assert built.strides == tuple(2**level for level in levels)
    assert [tuple(m.shape[2:]) for m in built(images).values()] == [(-(-97 // s), -(-130 // s)) for s in built.strides]


def test_it_has_three_million_parameters_and_tapers_off_at_level_four():
    assert sum(p.numel() for p in build_backbone(settings((5, 6), frozen_stages=0)).trunk.parameters()) == 2_971_952
    cut = build_backbone(
        validate(
            {"model": {"backbone": "mobilenet_v3_large", "neck": "none", "levels": [4]}, "anchors": {"sizes": [[32]]}}
        )
    )
    assert (cut.strides, cut.channels) == ((16,), 80)


def test_a_level_occurs_at_most_as_often_as_in_the_network():
    for levels in ((5, 5, 5), (4, 4, 5), (5, 6, 6)):
        with pytest.raises(SettingsError, match="must ascend, each once for every map that mobilenet_v3_large has"):
            build_backbone(settings(levels))
