"""How an operator is registered with PyTorch, which then compiles, exports and differentiates what calls it.

It has one body for every device, and a Triton kernel for the GPUs that Triton compiles for.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

LIBRARY = torch.library.Library("rcnn", "FRAGMENT")
"""Holds what is registered."""
BODIES: dict[str, Callable[..., Any]] = {}
"""Name of an operator, such as `rcnn::nms`, -> what computes it on any device."""
OLDEST = (7, 5)
"""Compute capability of the oldest GPUs that Triton compiles for."""


def operator(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that changes none of its arguments, and returns none of them, as `rcnn::name`.

    On CUDA `rcnn.ops.triton.name.name` runs in its place wherever it can: not where Triton does not start
    (`compiles_for`), not in float64, and not with other arguments that it refuses by returning None.

    Its annotations become the schema. `torch.library.custom_op` would do the same, but imports `torch._dynamo` at the
    first call, which takes as long as importing torch.
    """

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        qualified, tag = f"rcnn::{name}", torch.Tag.pt2_compliant_tag
        torch.library.define(qualified, torch.library.infer_schema(body, mutates_args=()), lib=LIBRARY, tags=tag)
        torch.library.impl(qualified, "default", body, lib=LIBRARY)
        torch.library.impl(qualified, "cuda", on_cuda(name, body), lib=LIBRARY)
        BODIES[qualified] = body
        return getattr(torch.ops.rcnn, name).default

    return register


def on_cuda(name: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """What computes an operator on a GPU: its kernels, or where they can't, its body."""

    def run(*arguments: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        result = None
        if compiles_for(tensors[0].device) and all(tensor.dtype != torch.float64 for tensor in tensors):
            with torch.cuda.device_of(tensors[0]):  # Triton launches on the current device
                result = kernels_of(name)(*arguments)
        return body(*arguments) if result is None else result

    return run


def kernels_of(name: str) -> Callable[..., Any]:
    """The body of `rcnn::name` that launches kernels. Triton is imported by the first call."""
    return getattr(import_module(f"rcnn.ops.triton.{name}"), name)


@cache
def compiles_for(device: torch.device) -> bool:
    """Does Triton compile for this GPU, and start here? It comes with torch on Linux only."""
    if find_spec("triton") is None or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST and starts()


@cache
def starts() -> bool:
    """True if Triton launches kernels. Its first start on a machine builds a module in C; failure is reported once."""
    try:
        import_module("triton.runtime").driver.active.get_current_target()
    except Exception as error:  # whatever a build may raise
        warnings.warn(
            "Triton can't start here, so matching, suppression and pooling take longer on the GPU. It needs a C "
            f"compiler (gcc) and the headers of Python (python3-dev), once: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
