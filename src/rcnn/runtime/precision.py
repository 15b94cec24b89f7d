"""The precision of convolutions and matrix products in a prediction."""

import torch

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
