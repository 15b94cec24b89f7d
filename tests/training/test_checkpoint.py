from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn.errors import TrainingError, WeightsError
from rcnn.training.checkpoint import latest, read_stage, restore, save_checkpoint
from rcnn.training.stages import Progress, TrainState
from rcnn.weights.file import load_weights, save_weights
from tests.model import tiny
from tests.training import pieces


def tensors_of(state: TrainState) -> dict[str, torch.Tensor]:
    assert state.ema is not None
    own = {f"own {name}": tensor for name, tensor in state.model.state_dict().items()}
    average = {f"average {name}": tensor for name, tensor in state.ema.shadow.items()}
    return {name: tensor.clone() for name, tensor in {**own, **average}.items()}


def new_state(seed: int = 0, kind: str = "sgd", step: int = 1) -> TrainState:
    model = tiny.model(seed=seed).to(memory_format=torch.channels_last)
    state = pieces.state(model, optimizer=kind, ema=0.9)
    state.progress = Progress(step=step)
    return state


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_restored_training_continues_to_the_bit(tmp_path: Path, kind: str) -> None:
    state = new_state(0, kind)
    trainer = pieces.trainer(state)
    for step in range(3):
        trainer.step([pieces.item(step)], step)
    state.progress = Progress(step=3, epoch=1, place=2, sums={"rpn_box": 0.1 + 0.2}, best_ap=1 / 3, best_epoch=1)
    save_checkpoint(tmp_path, state, {"log.txt": 7})
    for step in range(3, 6):
        trainer.step([pieces.item(step)], step)

    resumed = new_state(1, kind)
    assert restore(tmp_path / "step-3.safetensors", resumed) == {"log.txt": 7}
    assert asdict(resumed.progress) == asdict(state.progress)
    for step in range(3, 6):
        pieces.trainer(resumed).step([pieces.item(step)], step)
    pieces.assert_equal(tensors_of(resumed), tensors_of(state))


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, new_state(step=step), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-100.safetensors"]


def test_what_a_killed_write_left_over_is_deleted(tmp_path: Path) -> None:
    """The resumed run may not save at the same step, so that nothing would replace the file."""
    (tmp_path / ".step-3.safetensors.tmp").write_bytes(b"half")
    save_checkpoint(tmp_path, new_state(step=4), {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-4.safetensors"]


def test_weights_that_are_not_finite_leave_the_last_good_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, new_state(), {})
    state = new_state(step=2)
    with torch.no_grad():
        next(state.model.parameters())[0] = torch.inf
    with pytest.raises(TrainingError, match="not finite after step 2"):
        save_checkpoint(tmp_path, state, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1.safetensors"]


def test_a_damaged_checkpoint_is_reported(tmp_path: Path) -> None:
    state = new_state()
    save_checkpoint(tmp_path, state, {})
    path = tmp_path / "step-1.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="damaged"):
        restore(path, state)


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
    state = new_state()
    save_checkpoint(tmp_path, state, {})
    path = tmp_path / "step-1.safetensors"
    tensors, entry = load_weights(path)
    save_weights(path, tensors, {**entry, **changes})
    with pytest.raises(WeightsError, match=r"step-1\.safetensors .*is damaged"):
        read_stage(path, 1) if "progress" in changes else restore(path, state)
    save_weights(path, {"model/x": torch.zeros(1)}, entry)
    with pytest.raises(WeightsError, match=r"step-1\.safetensors .*is damaged"):
        restore(path, state)
    path.rename(tmp_path / "step-new.safetensors")
    assert latest(tmp_path) is None
