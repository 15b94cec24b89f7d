"""How an operator is registered with PyTorch, which then compiles, exports and differentiates what calls it."""

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("rcnn", "FRAGMENT")
"""Holds what is registered."""
BODIES: dict[str, Callable[..., Any]] = {}
"""Name of an operator, such as `rcnn::nms`, -> what computes it on any device."""


def operator(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that changes none of its arguments, and returns none of them, as `rcnn::name`.

    Its annotations become the schema. `torch.library.custom_op` would do the same, but imports `torch._dynamo` at the
    first call, which takes as long as importing torch.
    """

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        qualified = f"rcnn::{name}"
        torch.library.define(qualified, torch.library.infer_schema(body, mutates_args=()), lib=LIBRARY)
        torch.library.impl(qualified, "default", body, lib=LIBRARY)
        BODIES[qualified] = body
        return getattr(torch.ops.rcnn, name).default

    return register
