"""torchvision's compiled operators, without its Python, whose import takes about as long as that of torch."""

from contextlib import suppress
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import torch


def load_operators() -> None:
    """Register torchvision's operators as `torch.ops.torchvision`.

    Its package does the same when it is imported, before this or after. It is imported here only where its library
    can't be loaded alone.
    """
    spec = find_spec("torchvision")
    folder = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path()
    for suffix in EXTENSION_SUFFIXES:
        for library in sorted(folder.glob(f"_C*{suffix}")):
            with suppress(OSError):
                torch.ops.load_library(library)
                if hasattr(torch.ops.torchvision, "nms"):
                    return
    import_module("torchvision")
