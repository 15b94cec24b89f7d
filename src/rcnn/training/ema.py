"""Exponential moving average of the weights, which is validated and saved in place of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """A moving average of all parameters and buffers of a model, which keep their memory.

    Attributes:
        decay: final weight of the old average in an update.
        shadow: name in the model's `state_dict` -> averaged tensor.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        state: dict[str, Tensor] = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.shadow = {name: tensor.clone() for name, tensor in state.items()}
        # Pairs of lists, of averages and of their tensors, made once because `state_dict` takes longer than an update.
        self._moved: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, tensor in state.items():
            averaged, current = self._moved if tensor.is_floating_point() else self._copied
            averaged.append(self.shadow[name])
            current.append(tensor)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the model after `step` steps (1, 2, ...).

        The decay starts low, at (1 + step) / (10 + step), so that the initial weights soon lose their influence.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(*self._moved, 1 - decay)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for the block, and restore its weights to the bit afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        copy_into(self.model, self.shadow)
        try:
            yield
        finally:
            copy_into(self.model, own)


@torch.no_grad()
def copy_into(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Overwrite a model's parameters and buffers, keeping their memory format."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(tensors[name])
