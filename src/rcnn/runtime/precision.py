"""How a device computes: the precision of convolutions and matrix products, and the number of threads."""

import os
from functools import cache

import torch

from rcnn.cores import usable_cores, visible_cores

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Half precisions by their names in the settings."""


def chosen_precision(name: str, device: torch.device) -> str:
    """Return the precision; `auto` is half precision on a GPU that is fast in it, and float32 elsewhere."""
    if name != "auto":
        return name
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (7, 0):
        return "float32"
    return "bf16" if has_bf16(device) else "fp16"


def has_bf16(device: torch.device) -> bool:
    """Return whether bfloat16 is faster than float32 on the device.

    GPUs support it since Ampere; older GPUs convert it to float32, slowly. A CPU needs the instructions of AVX-512, and
    PyTorch must be allowed to use them: `ATEN_CPU_CAPABILITY` can limit it to older instructions.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    kernels = torch.backends.cpu.get_cpu_capability()
    return device.type == "cpu" and kernels.startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()


@cache
def limit_threads() -> None:
    """Let PyTorch use at most `usable_cores` threads: it starts one per visible core, whatever the CPU quota.

    This happens once, so that a number that is set later stays. So does one that OMP_NUM_THREADS sets, or one above the
    number of visible cores, which someone has chosen.
    """
    if "OMP_NUM_THREADS" not in os.environ and usable_cores() < torch.get_num_threads() <= visible_cores():
        torch.set_num_threads(usable_cores())
