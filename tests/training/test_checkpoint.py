from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn.errors import TrainingError, WeightsError
from rcnn.training import checkpoint
from rcnn.training.loop import Engine, Progress, train_step
from rcnn.weights.file import load_weights, save_weights
from tests.model import tiny
from tests.training import pieces


def state(engine: Engine) -> dict[str, torch.Tensor]:
    assert engine.ema is not None
    own = {f"own {name}": tensor for name, tensor in engine.model.state_dict().items()}
    average = {f"average {name}": tensor for name, tensor in engine.ema.shadow.items()}
    return {name: tensor.clone() for name, tensor in {**own, **average}.items()}


def new_engine(seed: int, kind: str) -> Engine:
    model = tiny.model(seed=seed).to(memory_format=torch.channels_last)
    return pieces.engine(model, optimizer=kind, ema=0.9)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_training_goes_on_to_the_bit(tmp_path: Path, kind: str) -> None:
    engine = new_engine(0, kind)
    for step in range(3):
        train_step(engine, [pieces.item(step)], step)
    progress = Progress(step=3, epoch=1, place=2, sums={"rpn_box": 0.1 + 0.2}, best_ap=1 / 3, best_epoch=1)
    checkpoint.save(tmp_path, engine, progress, {"log.txt": 7})
    for step in range(3, 6):
        train_step(engine, [pieces.item(step)], step)

    resumed = new_engine(1, kind)
    path = checkpoint.latest(tmp_path)
    assert path is not None
    found, lengths = checkpoint.restore(path, resumed)
    assert asdict(found) == asdict(progress)
    assert lengths == {"log.txt": 7}
    for step in range(3, 6):
        train_step(resumed, [pieces.item(step)], step)
    expected = state(engine)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state(resumed).items())


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    engine = new_engine(0, "sgd")
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, engine, Progress(step=step), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-100.safetensors"]


def test_weights_that_are_not_finite_leave_the_last_good_checkpoint(tmp_path: Path) -> None:
    engine = new_engine(0, "sgd")
    checkpoint.save(tmp_path, engine, Progress(step=1), {})
    with torch.no_grad():
        next(engine.model.parameters())[0] = torch.inf
    with pytest.raises(TrainingError, match="not finite after step 2"):
        checkpoint.save(tmp_path, engine, Progress(step=2), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1.safetensors"]


def test_a_damaged_checkpoint_is_said_to_be(tmp_path: Path) -> None:
    engine = new_engine(0, "sgd")
    checkpoint.save(tmp_path, engine, Progress(step=1), {})
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged"):
        checkpoint.restore(path, engine)


@pytest.mark.parametrize(
    "changes",
    [
        {"progress": {"step": -1}},
        {"progress": {"step": 10**400}},
        {"progress": {"stage": 7}},
        {"progress": {"stage": "x"}},
        {"progress": {"sums": {"rpn": 1.0}, "place": 0}},
        {"progress": []},
        {"logs": {"log.txt": -1}},
    ],
)
def test_a_state_that_no_run_can_have_is_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    engine = new_engine(0, "sgd")
    checkpoint.save(tmp_path, engine, Progress(step=1), {})
    path = tmp_path / "step-1.safetensors"
    tensors, entry = load_weights(path)
    save_weights(path, tensors, {**entry, **changes})
    if "progress" in changes:
        with pytest.raises(WeightsError, match=r"step-1\.safetensors .*is damaged"):
            checkpoint.stage(tmp_path, 1)
    else:
        with pytest.raises(WeightsError, match=r"step-1\.safetensors .*is damaged"):
            checkpoint.restore(path, engine)
    save_weights(path, {"model/x": torch.zeros(1)}, entry)
    with pytest.raises(WeightsError, match=r"step-1\.safetensors .*is damaged"):
        checkpoint.restore(path, engine)
    path.rename(tmp_path / "step-new.safetensors")
    assert checkpoint.latest(tmp_path) is None
