import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from rcnn.backbones.fpn import FeaturePyramid

WIDTHS = {2: 4, 3: 6, 4: 8, 5: 10}


def maps(height: int = 97, width: int = 130) -> dict[int, torch.Tensor]:
    torch.manual_seed(0)
    return {n: torch.randn(2, c, -(-height // 2**n), -(-width // 2**n)) for n, c in WIDTHS.items()}


def test_equals_torchvision_on_odd_sizes():
    ours = FeaturePyramid(WIDTHS, 5, (2, 3, 4, 5, 6))
    theirs = FeaturePyramidNetwork(list(WIDTHS.values()), 5, LastLevelMaxPool())
    state = ours.state_dict()
    names = {"lateral": "inner_blocks", "output": "layer_blocks"}
    theirs.load_state_dict(
        {f"{names[a]}.{int(b[1:]) - 2}.0.{c}": state[f"{a}.{b}.{c}"] for a, b, c in (key.split(".") for key in state)}
    )
    found, expected = ours(maps()), theirs({str(n): m for n, m in maps().items()})
    assert list(found) == ["p2", "p3", "p4", "p5", "p6"]
    for a, b in zip(found.values(), expected.values(), strict=True):
        torch.testing.assert_close(a, b)


def test_biases_start_at_zero():
    assert all(p.abs().max() == 0 for name, p in FeaturePyramid(WIDTHS, 5, (2, 3)).named_parameters() if "bias" in name)


@pytest.mark.parametrize("levels", [(2,), (2, 3), (3, 4, 5, 6), (4, 6), (5, 6, 7), (3, 7)])
def test_any_levels_are_those_of_the_whole_pyramid(levels: tuple[int, ...]):
    whole = FeaturePyramid(WIDTHS, 5, (2, 3, 4, 5, 6, 7))
    part = FeaturePyramid(WIDTHS, 5, levels)
    part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    expected, found = whole(maps()), part(maps())
    assert list(found) == [f"p{level}" for level in levels]
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_every_parameter_is_used():
    for levels in ((2,), (3, 4, 5, 6), (4, 6)):
        pyramid = FeaturePyramid(WIDTHS, 5, levels)
        sum(m.sum() for m in pyramid(maps()).values()).backward()  # type: ignore[union-attr]
        assert all(p.grad is not None for p in pyramid.parameters())


def test_top_levels_take_every_second_cell():
    found = FeaturePyramid(WIDTHS, 5, (5, 6, 7))(maps())
    assert torch.equal(found["p6"], found["p5"][..., ::2, ::2])
    assert torch.equal(found["p7"], found["p6"][..., ::2, ::2])
