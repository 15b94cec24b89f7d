"""Checkpoints: everything that a run needs to resume bit for bit, in one file without executable code.

Weights, their average and the state of the optimiser are stored as safetensors, progress and the lengths of the logs as
JSON in the header. The schedule and the random numbers (`distributed.seed_generators`) follow from the step. The file
is written atomically, and older ones are deleted afterwards, so a complete checkpoint exists whenever a run is killed.
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
"""Maximum number of steps, epochs or seconds of a run."""
_NAME = re.compile(r"step-[0-9]+\.safetensors")
_PROGRESS = TypeAdapter(Progress)
_LENGTHS = TypeAdapter(dict[str, Annotated[int, Field(ge=0)]])


def save_checkpoint(folder: Path, state: TrainState, log_lengths: Mapping[str, int]) -> None:
    """Write `folder/step-N.safetensors`, and delete older ones and what was left over when a write was killed.

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
    for old in (*folder.glob("step-*.safetensors"), *folder.glob(".step-*.tmp")):
        if old != path:
            old.unlink()


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder, or None."""
    paths = (path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))
    return max(paths, key=lambda path: int(path.stem.removeprefix("step-")), default=None)


def read_stage(path: Path, stages: int) -> int:
    """Return the stage (0, 1, ..., stages - 1) of a checkpoint.

    Raises:
        WeightsError: the file is damaged, or belongs to a scheme with more stages.
    """
    number = read_progress(path).stage
    with reading(path, MAX_BYTES):
        if number >= stages:
            raise ValueError(f"it belongs to stage {number + 1}, and the run has {stages}")
        return number


def read_progress(path: Path) -> Progress:
    """Read the progress of a run from its checkpoint.

    Raises:
        WeightsError: the file is damaged.
    """
    with reading(path, MAX_BYTES):
        return _progress(load_weights(path)[1])


def restore(path: Path, state: TrainState) -> dict[str, int]:
    """Load a checkpoint into the state; return the lengths of the logs, as `RunFolder.log_lengths` does.

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
        # Like `load_state_dict`, but moments take their parameter's memory format, which fused kernels rely on.
        parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
        for name, tensor in parts.get("optimizer", {}).items():
            index, _, key = name.partition("/")
            parameter = parameters[int(index)]
            moment = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
            state.optimizer.state[parameter][key] = moment.detach().copy_(tensor)
        lengths = _LENGTHS.validate_python(metadata["logs"])
        state.progress = _progress(metadata)
        return lengths


def _progress(metadata: Mapping[str, Any]) -> Progress:
    """Return the progress in the metadata of a checkpoint.

    Raises:
        ValueError: no run can have this progress.
        KeyError: the metadata hold no progress.
    """
    progress = _PROGRESS.validate_python(metadata["progress"])
    counts = (progress.step, progress.epoch, progress.place, progress.best_epoch, progress.seconds, progress.stage)
    if min(counts) < 0 or max(counts) > MAX_COUNT or (progress.sums and not progress.place):
        raise ValueError("no run can have this progress")
    return progress
