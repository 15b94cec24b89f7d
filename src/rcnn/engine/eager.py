"""The network in PyTorch, prepared for prediction."""

import copy
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rcnn.backbones.norm import fold_batch_norm
from rcnn.backbones.steady import make_steady, steady_head
from rcnn.errors import SettingsError
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import Batch, Losses, Pass, Proposals, Targets, to_device
from rcnn.preprocess.batch import Size


class Eager:
    """An `Engine` on a network in this process.

    Args:
        model: the network; it is not changed.
        device: where to run.
        precision: `float32`, or `bf16` for the convolutions and matrix products; boxes and scores stay float32.
    """

    name = "eager"
    size: Size | None = None

    def __init__(self, model: FasterRCNN, device: torch.device, precision: str = "float32") -> None:
        self.model, self.device, self.precision = model, device, precision
        self._runner: FasterRCNN | None = None

    @property
    def runner(self) -> FasterRCNN:
        """A copy of the model made for prediction: eval mode, batch norm folded, channels last. Made at first use.

        On the CPU its convolutions are batch invariant: an image gives the same bits alone and in any batch.
        """
        if self._runner is None:
            runner = folded(self.model)
            if self.device.type == "cpu":
                make_steady(runner)
                if runner.fast_rcnn is not None:
                    runner.fast_rcnn.head = steady_head(runner.fast_rcnn.head)
            self._runner = runner.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert self._runner is not None
        return self._runner

    @property
    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the network runs."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @torch.inference_mode()
    def run(
        self, batch: Batch, proposals: Proposals | None = None, *, wanted: Collection[str] = ("proposals", "detections")
    ) -> Pass:
        """As `Engine.run`, with every field of the record that is wanted."""
        given = None if proposals is None else to_device(proposals, self.device)
        with self.autocast:
            return self.runner.run(to_device(batch, self.device), given, wanted=wanted)

    @torch.inference_mode()
    def loss(self, batch: Batch, targets: Targets, seeds: Tensor, run: Pass) -> Losses:
        """The losses of a batch, from the record of its run; `seeds` as for `FasterRCNN.keys`."""
        batch, targets = to_device(batch, self.device), to_device(targets, self.device)
        given = run.proposals if run.rpn is None else None
        with self.autocast:
            keys = self.runner.keys(batch, targets, seeds)
            return self.runner.loss(batch, targets, keys, proposals=given, run=run)


def folded(model: FasterRCNN) -> FasterRCNN:
    """A copy of the model in eval mode, without gradients, with batch norm folded into the convolutions."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    fold_batch_norm(copied)
    return copied


def has_bf16(device: torch.device) -> bool:
    """Is bfloat16 faster than float32 there? On GPUs from Ampere on; older ones compute it as float32, slowly."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA if available, else the CPU.

    Raises:
        SettingsError: there is no such device, or it has no float64, in which boxes are suppressed.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "mps":
            raise SettingsError(f"train.device: `{name}` has no float64, which suppression needs; take cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"train.device: `{name}` can't be used here: {str(error).splitlines()[0]}") from None
    return device
