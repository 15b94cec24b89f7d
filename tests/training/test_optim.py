import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rcnn.config import Train
from rcnn.training.optim import build_optimizer, learning_rate, lr_factor


def test_cosine_falls_from_one_to_almost_zero() -> None:
    course = Train(schedule="cosine", warmup=0)
    factors = [lr_factor(step, 100, course) for step in range(100)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.5)
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 3e-4


def test_step_divides_by_ten_at_its_milestones() -> None:
    course = Train(schedule="step", warmup=0, milestones=(0.6, 0.9))
    assert [round(lr_factor(step, 10, course), 6) for step in range(10)] == [1] * 6 + [0.1] * 3 + [0.01]


def test_warmup_rises_linearly_over_its_epochs() -> None:
    course = Train(schedule="constant", warmup=1, epochs=10)  # 40 steps, 4 an epoch
    assert [lr_factor(step, 40, course) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_warmup_takes_a_fifth_of_all_steps_at_most() -> None:
    course = Train(schedule="constant", warmup=3, epochs=3)
    assert [lr_factor(step, 20, course) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


@settings(deadline=None, max_examples=50)
@given(
    total=st.integers(1, 500),
    share=st.floats(0, 1, exclude_max=True),
    schedule=st.sampled_from(["cosine", "step", "constant"]),
    warmup=st.floats(0, 5),
    epochs=st.integers(1, 50),
)
def test_factor_lies_in_zero_to_one(total: int, share: float, schedule: str, warmup: float, epochs: int) -> None:
    course = Train.model_validate({"schedule": schedule, "warmup": warmup, "epochs": epochs})
    assert 0 < lr_factor(int(share * total), total, course) <= 1


def test_learning_rate_grows_with_the_images_of_a_step() -> None:
    def rate(batch: int, accumulate: int) -> float:
        course = Train(schedule="constant", warmup=0, lr=0.02, lr_batch=16, batch=batch, accumulate=accumulate)
        return learning_rate(0, 1, course)

    assert (rate(16, 1), rate(8, 1), rate(8, 4)) == (0.02, 0.01, 0.04)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_biases_and_norms_do_not_decay_and_frozen_weights_are_left_out(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model[2].requires_grad_(False)
    optimizer = build_optimizer(model, Train.model_validate({"optimizer": kind, "weight_decay": 0.1}))
    decayed, plain = optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3)]
    assert decayed["weight_decay"] == 0.1
    assert [tuple(p.shape) for p in plain["params"]] == [(4,), (4,), (4,)]
    assert plain["weight_decay"] == 0


def test_sgd_step_is_the_textbook_one() -> None:
    layer = nn.Linear(2, 1, bias=False)
    start = layer.weight.detach().clone()
    optimizer = build_optimizer(layer, Train(optimizer="sgd", momentum=0.9, weight_decay=0.01))
    gradient = torch.tensor([[1.0, -2.0]])
    velocity = torch.zeros(1, 2)
    expected = start.clone()
    for lr in (0.1, 0.05):
        optimizer.param_groups[0]["lr"] = lr
        layer.weight.grad = gradient.clone()
        optimizer.step()
        velocity = 0.9 * velocity + gradient + 0.01 * expected
        expected = expected - lr * velocity
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_biases_may_decay_and_learn_twice_as_fast() -> None:
    layer = nn.Linear(2, 3)
    starts = [p.detach().clone() for p in (layer.weight, layer.bias)]
    course = Train(optimizer="sgd", momentum=0.0, weight_decay=0.5, bias_decay=True, bias_lr=2.0)
    optimizer = build_optimizer(layer, course)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["rate"]
    for p in (layer.weight, layer.bias):
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p, start, lr in zip((layer.weight, layer.bias), starts, (0.1, 0.2), strict=True):
        torch.testing.assert_close(p.detach(), start - lr * (1 + 0.5 * start))
