"""The packages that write and run exported files: optional, imported at first use, and kept from telling anybody."""

import importlib
import sys
from typing import Any

from rcnn.errors import UnavailableError


def onnx() -> Any:
    """The package `onnx`.

    Raises:
        UnavailableError: it is not installed.
    """
    return _package("onnx", "onnx")


def onnxscript() -> Any:
    """The package `onnxscript`, with which our operators are translated.

    Raises:
        UnavailableError: it is not installed.
    """
    return _package("onnxscript", "onnx")


def onnxruntime() -> Any:
    """The package `onnxruntime`, with its events switched off.

    Raises:
        UnavailableError: it is not installed.
    """
    package = _package("onnxruntime", "onnx")
    package.disable_telemetry_events()
    return package


def openvino() -> Any:
    """The package `openvino`, which reports every import and conversion over the network unless it is kept from it.

    It does so through `openvino_telemetry`, and goes on without where that can't be imported. The entry below stays:
    `convert_model` imports it again.

    Raises:
        UnavailableError: it is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return _package("openvino", "openvino")


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(
            f"the package {name}, which writes or runs such files, can't be imported here ({error}); get it by: "
            f"pip install 'rcnn[{extra}]'"
        ) from None
