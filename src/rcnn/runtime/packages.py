"""The packages that write and run exported files: optional, imported at first use, and kept from telling anybody."""

import importlib
import sys
from functools import cache
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


def openvino_core() -> Any:
    """The one `openvino.Core` of this process.

    At its first compilation a core gives the calling thread another stack for signals, and restores the one before when
    it is gone. Of two cores the second would restore the stack of the first, which is there no more, and the next
    signal, such as that of Ctrl-C, would end the process by a segmentation fault.

    Raises:
        UnavailableError: openvino is not installed.
    """
    return _core(openvino())


@cache
def _core(package: Any) -> Any:
    return package.Core()


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(
            f"the package {name}, which writes or runs such files, can't be imported here ({error}); get it by: "
            f"pip install 'rcnn[{extra}]'"
        ) from None
