import pytest
import torch

from rcnn.config import Train
from rcnn.errors import TrainingError
from rcnn.training.step import backward, tf32_allowed
from tests.model import tiny
from tests.training import pieces
from tests.training.pieces import ALONE


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_gradients_are_those_of_the_summed_mean_losses() -> None:
    model, item = tiny.model(), pieces.item()
    losses, requests = backward(pieces.state(model), ALONE, item, 1, (True, False)).read()
    found = tiny.gradients(model)
    model.zero_grad()
    expected = model.loss(item.batch, item.targets, model.keys(item.batch, item.targets, item.seeds))
    tiny.total(expected).backward()
    assert pieces.difference(found, tiny.gradients(model)) < 1e-5
    assert losses == pytest.approx({name: (a / b.clamp(min=1)).item() for name, (a, b) in expected.items()})
    assert requests == (1, 0)


def test_accumulated_gradients_are_the_mean_of_the_batches() -> None:
    model, items = tiny.model(), [pieces.item(seed) for seed in (0, 1)]
    first, second = (pieces.gradients(model, item) for item in items)
    mean = {name: (gradient + second[name]) / 2 for name, gradient in first.items()}
    assert pieces.difference(pieces.gradients(model, *items), mean) < 1e-5


def test_steps_lower_the_loss_and_move_the_average() -> None:
    model = tiny.model()
    state = pieces.state(model, total=15, lr=0.05, ema=0.9, schedule="constant")
    trainer = pieces.trainer(state)
    steps = [trainer.step([pieces.item()], number) for number in range(15)]
    first, last = (sum(steps[i].read(state, ALONE)[0].values()) for i in (0, -1))
    assert last < first
    assert state.ema is not None
    own = weights(model)
    assert not torch.equal(state.ema.shadow["rpn.head.cls.weight"], own["rpn.head.cls.weight"])


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    model = tiny.model()
    before = weights(model)
    state = pieces.state(model, clip=1e-3, momentum=0, weight_decay=0, lr=1, lr_batch=1, batch=1, schedule="constant")
    pieces.trainer(state).step([pieces.item()], 0)
    moved = torch.cat([(tensor - before[name]).flatten() for name, tensor in model.state_dict().items()])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images() -> None:
    state, item = pieces.state(tiny.model()), pieces.item(seed=3)
    item.batch.images[1] = torch.nan
    step = pieces.trainer(state).step([item], 5)
    with pytest.raises(TrainingError, match=r"step 6: .*rpn_objectness = nan.*learning rate 0\.00") as caught:
        step.read(state, ALONE)
    assert "image-3.png, image-4.png" in str(caught.value)


def test_dropout_depends_on_seed_and_step_alone() -> None:
    def after(draws: int, step: int) -> dict[str, torch.Tensor]:
        model = tiny.model({"roi": {"dropout": 0.5}})
        torch.rand(draws)
        pieces.trainer(pieces.state(model, ema=None)).step([pieces.item()], step)
        return weights(model)

    first, again, other = after(0, 3), after(5, 3), after(0, 4)
    pieces.assert_equal(first, again)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_tf32_is_allowed_on_a_gpu_unless_float32_is_set() -> None:
    def flags() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = flags()
    for device, amp, expected in (
        ("cuda", "auto", ("high", True)),
        ("cuda", "bf16", ("high", True)),
        ("cuda", "float32", ("highest", False)),
        ("cpu", "auto", before),
    ):
        with tf32_allowed(Train.model_validate({"amp": amp}), torch.device(device)):
            assert flags() == expected
        assert flags() == before


def test_with_bf16_losses_are_float32_and_close() -> None:
    model, item = tiny.model(), pieces.item()
    exact, _ = backward(pieces.state(model, amp="float32"), ALONE, item).read()
    model.zero_grad()
    rounded, _ = backward(pieces.state(model, amp="bf16"), ALONE, item).read()
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1, abs=0.05)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
