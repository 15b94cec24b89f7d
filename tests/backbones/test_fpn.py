import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from rcnn.backbones.fpn import FeaturePyramid
from rcnn.backbones.norm import fold_batch_norm, freeze_batch_norm
from tests.backbones.test_norm import randomise

MAPS = [(2, 4), (3, 6), (4, 8), (5, 10)]


def maps(inputs: Sequence[tuple[int, int]] = MAPS, height: int = 97, width: int = 130) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, c, -(-height // 2**n), -(-width // 2**n)) for n, c in inputs]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(
    ("inputs", "levels", "names"),
    [
        (MAPS, (2, 3, 4, 5, 6), ["p2", "p3", "p4", "p5", "p6"]),
        ([(5, 7), (5, 9)], (5, 5, 6), ["p5", "p5b", "p6"]),
    ],
)
def test_equals_torchvision_on_odd_sizes(inputs, levels, names, norm: bool):
    ours = FeaturePyramid(inputs, 5, levels, norm=norm)
    widths = [channels for _, channels in inputs]
    theirs = FeaturePyramidNetwork(widths, 5, LastLevelMaxPool(), nn.BatchNorm2d if norm else None)
    randomise(theirs)
    state = theirs.state_dict()
    kinds = {
        f"{ours_too}{part}.{name}.": f"{block}_blocks.{i}.{place}."
        for ours_too, block in (("lateral", "inner"), ("output", "layer"))
        for place, part in enumerate(("", "_norm"))
        for i, name in enumerate(names[: len(inputs)])
    }
    names_of_ours = {key: key.rpartition(".") for key in ours.state_dict()}
    ours.load_state_dict({key: state[kinds[f"{layer}."] + leaf] for key, (layer, _, leaf) in names_of_ours.items()})
    assert len(names_of_ours) == len(state)
    inputs = maps(inputs)
    expected = theirs.eval()({str(i): m for i, m in enumerate(inputs)})
    frozen, folded = copy.deepcopy(ours), copy.deepcopy(ours)
    freeze_batch_norm(frozen)
    fold_batch_norm(folded)
    assert list(frozen.state_dict()) == list(names_of_ours)
    for module in (frozen, folded):
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    for module in (ours.eval(), frozen, folded):
        found = module(inputs)
        assert list(found) == names
        torch.testing.assert_close(list(found.values()), list(expected.values()), rtol=1e-4, atol=1e-5)


def test_the_last_of_two_maps_of_a_level_is_read_if_there_is_one_output():
    pyramid = FeaturePyramid([(4, 3), (5, 7), (5, 9)], 5, (4, 5, 6))
    assert {name: layer.in_channels for name, layer in pyramid.lateral.items()} == {"p4": 3, "p5": 9}  # type: ignore[union-attr]
    assert list(pyramid(maps([(4, 3), (5, 7), (5, 9)]))) == ["p4", "p5", "p6"]


def test_biases_start_at_zero():
    assert all(p.abs().max() == 0 for name, p in FeaturePyramid(MAPS, 5, (2, 3)).named_parameters() if "bias" in name)


@pytest.mark.parametrize("levels", [(2,), (2, 3), (3, 4, 5, 6), (4, 6), (5, 6, 7), (3, 7)])
def test_any_levels_equal_those_of_the_full_pyramid(levels: tuple[int, ...]):
    whole = FeaturePyramid(MAPS, 5, (2, 3, 4, 5, 6, 7))
    part = FeaturePyramid(MAPS, 5, levels)
    part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    expected, found = whole(maps()), part(maps())
    assert list(found) == [f"p{level}" for level in levels]
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_every_parameter_is_used():
    for levels in ((2,), (3, 4, 5, 6), (4, 6)):
        pyramid = FeaturePyramid(MAPS, 5, levels)
        sum(m.sum() for m in pyramid(maps()).values()).backward()  # type: ignore[union-attr]
        assert all(p.grad is not None for p in pyramid.parameters())


def test_top_levels_take_every_second_cell():
    found = FeaturePyramid(MAPS, 5, (5, 6, 7))(maps())
    assert torch.equal(found["p6"], found["p5"][..., ::2, ::2])
    assert torch.equal(found["p7"], found["p6"][..., ::2, ::2])
