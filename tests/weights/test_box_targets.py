import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rcnn.config import RoI
from rcnn.weights.box_targets import LAYER, PLAIN, renormalise

number = st.floats(-4, 4, width=32)
means = st.tuples(number, number, number, number)
deviation = st.floats(0.01, 3)
deviations = st.tuples(deviation, deviation, deviation, deviation)
rows = st.lists(number, min_size=8, max_size=8).map(torch.tensor)


@given(rows, means, deviations)
def test_folding_into_float64_is_undone_to_the_last_bit(row, mean, std):
    """For two classes. Weights, which are only divided, are restored exactly; biases up to the rounding by the mean."""
    tensors = {f"{LAYER}.weight": row[:, None].repeat(1, 3), f"{LAYER}.bias": row, "fast_rcnn.head.fc6.bias": row}
    ours = RoI(box_mean=mean, box_std=std)
    folded = renormalise(tensors, ours, PLAIN, torch.float64)
    assert folded["fast_rcnn.head.fc6.bias"] is row
    expected = row.view(2, 4).double() * torch.tensor(std, dtype=torch.float64)
    torch.testing.assert_close(folded[f"{LAYER}.weight"][:, 0].view(2, 4), expected, rtol=1e-15, atol=0)
    expected = expected + torch.tensor(mean, dtype=torch.float64)
    torch.testing.assert_close(folded[f"{LAYER}.bias"].view(2, 4), expected, rtol=1e-15, atol=1e-15)
    back = renormalise(folded, PLAIN, ours)
    assert torch.equal(back[f"{LAYER}.weight"], tensors[f"{LAYER}.weight"])
    torch.testing.assert_close(back[f"{LAYER}.bias"], row, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("mean", "off"), [((0.0, 0.0, 0.0, 0.0), 0.0), ((0.01, -0.02, 0.06, 0.04), 5e-17)])
def test_a_tiny_bias_is_restored_as_far_as_float64_holds_it_beside_the_mean(mean, off):
    ours = RoI(box_mean=mean)
    bias = torch.cat([torch.randn(4000) * 10.0**-power for power in range(13)])
    folded = renormalise({f"{LAYER}.bias": bias}, ours, PLAIN, torch.float64)
    back = renormalise(folded, PLAIN, ours)[f"{LAYER}.bias"]
    large = bias.abs() > 1e-2
    assert torch.equal(back[large], bias[large])
    assert (back - bias).double().abs().max() <= off


def test_each_head_of_a_cascade_is_folded_by_its_own_deviations():
    names = [f"{LAYER}.weight", *(f"fast_rcnn.later.{number}.predictor.reg.weight" for number in range(2))]
    ours = RoI(stages=3)
    tensors = {name: torch.randn(4, 3) for name in names} | {"fast_rcnn.later.0.predictor.cls.weight": torch.ones(2, 3)}
    folded = renormalise(tensors, ours, PLAIN, torch.float64)
    for number, name in enumerate(names, start=1):
        std = torch.tensor(ours.box_std, dtype=torch.float64)[:, None] / number
        torch.testing.assert_close(folded[name], tensors[name] * std, rtol=1e-15, atol=0)
    back = renormalise(folded, PLAIN, ours)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_equally_normalised_layers_are_not_changed():
    tensors = {f"{LAYER}.bias": torch.randn(4).half()}
    assert renormalise(tensors, PLAIN, PLAIN, torch.float64)[f"{LAYER}.bias"] is tensors[f"{LAYER}.bias"]
