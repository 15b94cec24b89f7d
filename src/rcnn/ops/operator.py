"""Register operators with PyTorch, so that code that calls them can be compiled, exported and differentiated.

An operator has one body for every device, and a Triton kernel for the GPUs that Triton supports.
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
"""The library that operators are registered in."""
BODIES: dict[str, Callable[..., Any]] = {}
"""Name of an operator, such as `rcnn::nms`, -> the function that computes it on any device."""
MIN_CAPABILITY = (7, 5)
"""Lowest compute capability of a GPU that Triton supports."""


def operator(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function, which must neither change nor return its arguments, as `rcnn::name`.

    On CUDA, `rcnn.ops.triton.name.name` runs instead, unless Triton does not start (`compiles_for`), the tensors are
    float64, or the kernel returns None because it does not support the arguments.

    The annotations of the function become the schema. `torch.library.custom_op` does the same, but imports
    `torch._dynamo` at the first call, which takes as long as importing torch.
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
    """Return the function that computes an operator on a GPU: by its kernels, or else by its body."""

    def run(*arguments: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        result = None
        if compiles_for(tensors[0].device) and all(tensor.dtype != torch.float64 for tensor in tensors):
            with torch.cuda.device_of(tensors[0]):  # Triton launches on the current device
                result = kernels_of(name)(*arguments)
        return body(*arguments) if result is None else result

    return run


def kernels_of(name: str) -> Callable[..., Any]:
    """Return the body of `rcnn::name` that launches kernels. The first call imports Triton."""
    return getattr(import_module(f"rcnn.ops.triton.{name}"), name)


@cache
def compiles_for(device: torch.device) -> bool:
    """Return whether Triton supports this GPU and starts on this machine. Torch includes Triton on Linux only."""
    if find_spec("triton") is None or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= MIN_CAPABILITY and starts()


@cache
def starts() -> bool:
    """Return whether Triton can launch kernels. Its first start builds a module in C; a failure is reported once."""
    try:
        import_module("triton.runtime").driver.active.get_current_target()
    except Exception as error:  # whatever a build may raise
        warnings.warn(
            "Triton can't start on this machine, so matching, suppression and pooling take longer on the GPU. Its "
            f"first start needs a C compiler (gcc) and the headers of Python (python3-dev): {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
