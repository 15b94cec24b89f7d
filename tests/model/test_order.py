"""The oracle is a full stable sort, with any ties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rcnn.model.order import stable_topk

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NUMBERS = [0.0, -0.0, 1.0, -1.5, 1e-7, torch.inf, -torch.inf, torch.nan]


def assert_same(values: Tensor, expected: Tensor) -> None:
    """Compare values, where -0 differs from 0 and NaN equals NaN."""
    assert torch.equal(values.isnan(), expected.isnan())
    values, expected = values.nan_to_num(0.5, torch.inf, -torch.inf), expected.nan_to_num(0.5, torch.inf, -torch.inf)
    assert torch.equal(values, expected)
    assert torch.equal(values.signbit(), expected.signbit())


@given(st.data())
def test_it_begins_as_a_full_stable_sort_does(data: st.DataObject) -> None:
    few = data.draw(st.lists(st.sampled_from(NUMBERS) | st.floats(-1e4, 1e4), min_size=1, max_size=5))
    columns = data.draw(st.integers(1, 40))
    rows = data.draw(st.lists(st.lists(st.sampled_from(few), min_size=columns, max_size=columns), max_size=3))
    scores = torch.tensor(rows, dtype=torch.float64).view(len(rows), columns).to(data.draw(st.sampled_from(DTYPES)))
    count = data.draw(st.integers(1, columns + 2))
    values, indices = stable_topk(scores, count)
    expected = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(indices, expected.indices[:, :count])
    assert_same(values, expected.values[:, :count])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["distinct", "rounded", "equal"])
def test_it_does_so_at_full_size(name: str, dtype: torch.dtype) -> None:
    """With many scores, `topk` uses other algorithms and returns any of equal scores."""
    scores = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = {"distinct": scores, "rounded": (8 * scores).round(), "equal": torch.zeros_like(scores)}[name].to(dtype)
    expected = scores.sort(dim=1, descending=True, stable=True)
    for count in (1, 1000, 6000, 50_000):
        values, indices = stable_topk(scores, count)
        assert torch.equal(indices, expected.indices[:, :count])
        assert torch.equal(values, expected.values[:, :count])


def test_values_have_a_gradient_in_the_scores() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]], requires_grad=True)
    values, _ = stable_topk(scores, 2)
    (values * torch.tensor([10.0, 20.0])).sum().backward()
    assert torch.equal(scores.grad, torch.tensor([[0.0, 10.0, 20.0, 0.0, 0.0]]))
