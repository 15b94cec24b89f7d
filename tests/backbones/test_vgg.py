import torch
from torchvision.models import vgg16 as torchvision_vgg16

from rcnn.backbones.vgg import vgg16


def test_parameters_and_names_are_torchvisions():
    with torch.device("meta"):
        ours, theirs = vgg16().state_dict(), torchvision_vgg16(init_weights=False).state_dict()
    assert sum(p.numel() for p in ours.values()) == 14_714_688
    assert {name: p.shape for name, p in ours.items()} == {n: p.shape for n, p in theirs.items() if "features" in n}


def test_pooling_rounds_up_as_in_the_paper():
    with torch.device("meta"):
        trunk = vgg16()
        for (height, width), cells in {(600, 1000): (38, 63), (224, 224): (14, 14)}.items():
            assert trunk(torch.empty(1, 3, height, width))[-1].shape == (1, 512, *cells)


def test_each_level_is_read_before_its_pooling():
    torch.manual_seed(0)
    trunk = vgg16()
    assert trunk.levels == (2, 3, 4)
    x = torch.randn(1, 3, 32, 48)
    maps = trunk(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 8, 12), (512, 4, 6), (512, 2, 3)]
    convs = torchvision_vgg16(init_weights=False).features
    convs.load_state_dict({name.removeprefix("features."): p for name, p in trunk.state_dict().items()})
    torch.testing.assert_close(maps[-1], convs[:30](x))
