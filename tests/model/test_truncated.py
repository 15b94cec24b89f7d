"""Truncated SVD: the best approximation of a given rank, against the singular values of `torch.linalg.svdvals`."""

import pytest
import torch
from torch import nn

from rcnn.errors import SettingsError
from rcnn.model.truncated import check_ranks, linear_layers, truncate_head, truncated
from rcnn.presets import build, settings_of
from rcnn.training.schemes import SCHEMES

SMALL = ["model.channels=8", "roi.size=3", "roi.hidden=20", "train.init=none"]


def layer(rows: int, columns: int, *, bias: bool = True, rank: int | None = None) -> nn.Linear:
    """A layer of random weights in float64, perhaps of a lower rank."""
    torch.manual_seed(rows)
    made = nn.Linear(columns, rows, bias=bias, dtype=torch.float64)
    if rank is not None:
        made.weight.data = torch.randn(rows, rank, dtype=torch.float64) @ torch.randn(rank, columns).double()
    return made


def product(pair: nn.Sequential) -> torch.Tensor:
    return pair[1].weight @ pair[0].weight


@pytest.mark.parametrize(("rows", "columns"), [(12, 30), (30, 12), (15, 15), (1, 7)])
def test_no_approximation_of_the_rank_is_better(rows: int, columns: int) -> None:
    """Eckart and Young: the minimum distance is the norm of the singular values that are left out."""
    whole = layer(rows, columns)
    values = torch.linalg.svdvals(whole.weight)
    for rank in range(1, min(rows, columns) + 1):
        difference = whole.weight - product(truncated(whole, rank))
        assert torch.linalg.matrix_rank(product(truncated(whole, rank))) <= rank
        left_out = values[rank:]
        torch.testing.assert_close(difference.norm() ** 2, (left_out**2).sum(), rtol=1e-9, atol=1e-12)
        largest = left_out.max() if len(left_out) else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(torch.linalg.matrix_norm(difference, 2), largest, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(12, 30), (30, 12)])
def test_at_full_rank_it_is_the_same_layer(rows: int, columns: int, bias: bool) -> None:
    whole, x = layer(rows, columns, bias=bias), torch.randn(5, columns, dtype=torch.float64)
    torch.testing.assert_close(truncated(whole, min(rows, columns))(x), whole(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("rows", "columns"), [(12, 30), (30, 12)])
def test_a_layer_of_a_lower_rank_is_reproduced_exactly(rows: int, columns: int) -> None:
    whole = layer(rows, columns, rank=3)
    torch.testing.assert_close(product(truncated(whole, 3)), whole.weight, rtol=1e-8, atol=1e-8)
    assert product(truncated(whole, 5)).isfinite().all()


def test_the_pair_has_t_times_the_sum_of_the_sides_and_the_bias() -> None:
    whole = layer(12, 30)
    pair = truncated(whole, 4)
    assert sum(parameter.numel() for parameter in pair.parameters()) == 4 * (12 + 30) + 12
    assert pair[0].bias is None
    assert torch.equal(pair[1].bias, whole.bias)
    assert not any(parameter.requires_grad for parameter in pair.parameters())
    assert {parameter.dtype for parameter in truncated(layer(12, 30).float(), 4).parameters()} == {torch.float32}


@pytest.mark.parametrize(("head", "ranks"), [("fc", [7, 5]), ("conv-fc", [6])])
def test_the_layers_of_each_head_are_replaced(head: str, ranks: list[int]) -> None:
    torch.manual_seed(0)
    model = build(settings_of("tiny-fpn", [*SMALL, f"roi.head={head}"]), 2)
    assert model.fast_rcnn is not None
    features = torch.randn(4, 8, 3, 3)
    own = model.fast_rcnn.head.eval()
    assert len(linear_layers(own)) == len(ranks)
    truncate_head(own, ranks)
    assert [part.in_features for part in linear_layers(own).values()][1::2] == ranks
    assert own(features).shape == (4, 20)


@pytest.mark.parametrize(
    ("change", "ranks", "message"),
    [
        ("roi.head=fc", [20, 21], "21 is larger than the rank of fc7 of 20 x 20: give 20 at most"),
        ("roi.head=fc", [21, 20], "21 is larger than the rank of fc6 of 20 x 72: give 20 at most"),
        ("roi.head=fc", [20], "give one rank for each of the head's layers: fc6 of 20 x 72, fc7 of 20 x 20"),
        ("roi.head=conv-fc", [20, 20], "give one rank for each of the head's layers: fc6 of 20 x 72"),
        ("roi.head=none", [20, 20], "this detector has none there"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(change: str, ranks: list[int], message: str) -> None:
    settings = settings_of("tiny-fpn", [*SMALL, change, f"predict.svd={ranks}"])
    with pytest.raises(SettingsError, match=message):
        build(settings, 2)


def test_a_head_of_convolutions_has_nothing_to_truncate() -> None:
    with pytest.raises(SettingsError, match="this detector has none there"):
        check_ranks(nn.Sequential(nn.Conv2d(8, 8, 3)), [4])
    with pytest.raises(SettingsError, match="this detector has none there"):
        build(settings_of("resnet50-c4", ["model.backbone=resnet18", "predict.svd=[4, 4]", "train.init=none"]), 2)


def test_stages_without_a_head_do_not_truncate_it() -> None:
    settings = settings_of("tiny-fpn", [*SMALL, "predict.svd=[4, 4]"])
    stages = [stage.model_settings(settings) for stage in SCHEMES["alternating"]]
    assert [stage.predict.svd for stage in stages] == [(), (4, 4), (), (4, 4)]
