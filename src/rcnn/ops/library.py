"""Load torchvision's compiled operators without its Python package, whose import takes about as long as torch's."""

from contextlib import suppress
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

import torch


def load_operators() -> None:
    """Register torchvision's operators as `torch.ops.torchvision`.

    Importing torchvision does the same, before or after this. It is imported here only if its library can't be loaded
    by itself.
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
