"""Checkpoints: everything that a run needs to resume bit for bit, in one file without code in it.

Tensors (weights, average, optimiser) as safetensors; progress and the lengths of the logs as JSON in its header. The
schedule follows from the step, and so do the random numbers (`distributed.seed_generators`). The file appears whole or
not at all, and older ones are deleted only then: whenever a run is killed, a whole checkpoint is left.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from rcnn.errors import TrainingError
from rcnn.training.ema import copy_into
from rcnn.training.stages import Progress, TrainState
from rcnn.weights.file import MAX_BYTES, load_weights, reading, save_weights

MAX_COUNT = 10**12
"""Steps, epochs or seconds of a run."""
_NAME = re.compile(r"step-[0-9]+\.safetensors")
_PROGRESS = TypeAdapter(Progress)
_LENGTHS = TypeAdapter(dict[str, Annotated[int, Field(ge=0)]])


def save_checkpoint(folder: Path, state: TrainState, log_lengths: Mapping[str, int]) -> None:
    """Write `folder/step-N.safetensors` and delete older ones.

    Raises:
        TrainingError: the weights are not finite; the last good checkpoint stays.
        OSError: it can't be written, for example because the disk is full; the last good checkpoint stays.
    """
    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}
    if bad := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise TrainingError(
            f"the weights are not finite after step {state.progress.step} ({bad[0]} and {len(bad) - 1} more); "
            "try a lower train.lr or train.clip"
        )
    if state.ema:
        tensors |= {f"ema/{name}": tensor for name, tensor in state.ema.shadow.items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in values.items() if value is not None}
    path = folder / f"step-{state.progress.step}.safetensors"
    save_weights(path, tensors, {"kind": "checkpoint", "progress": asdict(state.progress), "logs": dict(log_lengths)})
    for old in folder.glob("step-*.safetensors"):
        if old != path:
            old.unlink()


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a folder."""
    return max(
        (path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name)), key=_step, default=None
    )


def read_stage(folder: Path, stages: int) -> int:
    """The stage (0, 1, ..., stages - 1) of the newest checkpoint of a folder; 0 if there is none.

    Raises:
        WeightsError: the file is damaged, or of a scheme of more stages.
    """
    path = latest(folder)
    if path is None:
        return 0
    number = read_progress(path).stage
    with reading(path, MAX_BYTES):
        if number >= stages:
            raise ValueError(f"it is of stage {number + 1}, and the run has {stages}")
        return number


def read_progress(path: Path) -> Progress:
    """Read the progress of the run that a checkpoint is of.

    Raises:
        WeightsError: the file is damaged.
    """
    with reading(path, MAX_BYTES):
        return _progress(load_weights(path)[1])


def restore(path: Path, state: TrainState) -> dict[str, int]:
    """Load a checkpoint into the state; return how long the logs of the run were.

    Raises:
        WeightsError: the file is damaged.
    """
    with reading(path, MAX_BYTES):
        tensors, metadata = load_weights(path)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        copy_into(state.model, parts["model"])
        if state.ema:
            for name, tensor in parts["ema"].items():
                state.ema.shadow[name].copy_(tensor)
        _restore_optimizer(state.optimizer, parts.get("optimizer", {}))
        lengths = _LENGTHS.validate_python(metadata["logs"])
        state.progress = _progress(metadata)
        return lengths


def _progress(metadata: Mapping[str, Any]) -> Progress:
    """The progress in the metadata of a checkpoint.

    Raises:
        ValueError: no run can have such a progress.
        KeyError: there is none.
    """
    progress = _PROGRESS.validate_python(metadata["progress"])
    counts = (progress.step, progress.epoch, progress.place, progress.best_epoch, progress.seconds, progress.stage)
    if min(counts) < 0 or max(counts) > MAX_COUNT or (progress.sums and not progress.place):
        raise ValueError("no run can have such a progress")
    return progress


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Like `load_state_dict`, but moments get their parameter's memory format, which fused kernels rely on."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        parameter = parameters[int(index)]
        moment = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
        optimizer.state[parameter][key] = moment.detach().copy_(tensor)
