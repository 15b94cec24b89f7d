"""Compile Triton kernels for GPUs that are not present, and report the registers that each uses."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from rcnn.ops.operator import kernels_of
from tests.ops.test_match import scene as match_scene
from tests.ops.test_nms import crowd

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]


@contextmanager
def compiled_for(capability: int, **options: Any) -> Iterator[list[Any]]:
    """Compile the kernels that the block launches instead of launching them; yields a list with each kernel once.

    Triton's own launcher reads types and sizes off the arguments, which may lie on the CPU. `options` go to the
    compiler.
    """
    made: list[Any] = []
    run = JITFunction.run

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **constants: Any) -> None:
        found = run(kernel, *arguments, grid=grid, warmup=True, **constants, **options)
        if all(found is not one for one in made):
            made.append(found)

    target = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: capability,  # the launcher keeps what it has compiled by device
        get_current_stream=lambda device: 0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", target)
        patch.setattr(JITFunction, "run", compile_only)
        yield made


def launch_matching(count: int) -> None:
    """Launch every kernel of matching, on `count` anchors."""
    anchors, boxes, valid = match_scene(0, 2, count, 3)
    kernels_of("match")(anchors, boxes, valid, torch.ones(2, count, dtype=torch.bool), ~valid)


def launch_suppression(count: int) -> None:
    """Launch every kernel of suppression, on `count` boxes."""
    kernels_of("nms")(*crowd(0, count=count), 0.5, 40)


def launch_pooling(dtype: torch.dtype, rois: int, height: int, width: int) -> None:
    """Launch every kernel of pooling, on four levels of 256 channels."""
    sizes = [(height // step, width // step) for step in (1, 2, 4, 8)]
    levels = [torch.zeros(2, 256, *size, dtype=dtype) for size in sizes]
    where = (torch.zeros(2, rois, 4), torch.zeros(2, rois, dtype=torch.int64), SCALES)
    out = kernels_of("roi_align")(levels, *where, 7, 2, True)
    kernels_of("roi_align")(levels, *where, 7, 0, False)
    kernels_of("roi_align_backward")(out, levels, *where, 2, True, [True, True])
    pooled, source = kernels_of("roi_pool")(levels, *where, 7)
    kernels_of("roi_pool_backward")(pooled, source, levels, *where)


class Use(NamedTuple):
    """Resources of a kernel: registers per thread, and bytes that are spilled."""

    kernel: str
    registers: int
    spilled: int


def use_of(made: Any) -> Use:
    """Read the resources from the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Use(f"{made.src.fn.module.split('.')[-1]}.{made.src.fn.__name__}", int(found[1]), int(found[2]))
