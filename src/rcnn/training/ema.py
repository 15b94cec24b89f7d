"""Exponential moving average of the weights: the average is validated and saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """A running average of all parameters and buffers of a model.

    Attributes:
        decay: weight of the old average in an update, reached after some steps.
        shadow: name -> averaged tensor, named as in the model's `state_dict`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the model after `step` steps (1, 2, ...).

        The decay starts low, (1 + step) / (10 + step), so that the first random weights are soon forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = [], []
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                averaged.append(self.shadow[name])
                current.append(tensor)
            else:
                self.shadow[name].copy_(tensor)
        torch._foreach_lerp_(averaged, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Put the average into the model for the block; afterwards it has its own weights again, to the bit."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        copy_into(model, self.shadow)
        try:
            yield
        finally:
            copy_into(model, own)


@torch.no_grad()
def copy_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Overwrite a model's parameters and buffers, keeping their memory format."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(tensors[name])
