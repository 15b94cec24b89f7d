"""The Triton kernels without a GPU: run by an interpreter, and compiled for real ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rcnn.ops import operator

if not operator.find_spec("triton"):
    pytest.skip("torch comes with Triton on Linux only", allow_module_level=True)

SPILLS: dict[tuple[str, int], str] = {}
"""Kernel and compute capability -> why it may spill registers."""


@pytest.mark.slow
def test_kernels_give_the_answers_of_the_cpu() -> None:
    script = Path(__file__).with_name("interpreted.py")
    # numpy warns about 0 / 0, whose result the kernels do not use.
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", "--durations=0"]
    command = [sys.executable, "-m", "pytest", *options, str(script)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=script.parents[3])
    assert done.returncode == 0, done.stdout + done.stderr


def assert_no_spills(capability: int, dtype: str) -> None:
    """Print the resources of each kernel; `dtype` is the type of the features."""
    from tests.ops.triton.compiled import (
        compiled_for,
        launch_matching,
        launch_pooling,
        launch_suppression,
        use_of,
    )

    with compiled_for(capability) as made:
        launch_matching(20)
        launch_suppression(20)
        launch_pooling(getattr(torch, dtype), 3, 16, 24)
        count = len(made)
        launch_matching(32)
        launch_suppression(32)
        launch_pooling(getattr(torch, dtype), 1, 32, 48)
        assert len(made) == count, "a kernel is compiled anew for another size"
    for kernel, registers, spilled in map(use_of, made):
        print(f"{kernel:32} {dtype:8} sm_{capability:<4} {registers:4} registers {spilled:5} bytes spilled")
        assert not spilled or (kernel, capability) in SPILLS, f"{kernel} spills {spilled} bytes"


def test_kernels_compile_once_for_all_sizes_and_spill_no_register() -> None:
    assert_no_spills(90, "bfloat16")


def test_a_spill_is_detected() -> None:
    from tests.ops.triton.compiled import compiled_for, launch_suppression, use_of

    with compiled_for(90, maxnreg=64) as made:
        launch_suppression(20)
    assert any(use_of(kernel).spilled for kernel in made)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "dtype"), [(75, "float16"), (80, "bfloat16"), (89, "bfloat16"), (90, "float32"), (100, "bfloat16")]
)
def test_kernels_compile_for_every_gpu(capability: int, dtype: str) -> None:
    assert_no_spills(capability, dtype)
