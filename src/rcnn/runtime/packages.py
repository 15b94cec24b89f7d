"""The optional packages that write and run exported files, imported at first use, with their telemetry turned off."""

import importlib
import sys
from functools import cache
from typing import Any

from rcnn.errors import UnavailableError


def onnx() -> Any:
    """Return the package `onnx`.

    Raises:
        UnavailableError: it is not installed.
    """
    return _package("onnx", "onnx")


def onnxscript() -> Any:
    """Return the package `onnxscript`, which translates our operators.

    Raises:
        UnavailableError: it is not installed.
    """
    return _package("onnxscript", "onnx")


def onnxruntime() -> Any:
    """Return the package `onnxruntime`, with its telemetry events turned off.

    Raises:
        UnavailableError: it is not installed.
    """
    package = _package("onnxruntime", "onnx")
    package.disable_telemetry_events()
    return package


def openvino() -> Any:
    """Return the package `openvino`, with its telemetry turned off.

    It reports every import and conversion over the network through `openvino_telemetry`, but works without this module.
    The entry below remains, since `convert_model` imports the module again.

    Raises:
        UnavailableError: it is not installed.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return _package("openvino", "openvino")


@cache
def openvino_core() -> Any:
    """Return the only `openvino.Core` of this process.

    At its first compilation a core replaces the signal stack of the calling thread, and it restores the previous stack
    when it is deleted. A second core would restore the stack of the first, which no longer exists, and the next signal,
    such as that of Ctrl-C, would end the process with a segmentation fault.

    Raises:
        UnavailableError: openvino is not installed.
    """
    return openvino().Core()


def nncf() -> Any:
    """Return the package `nncf`, which quantises models of OpenVINO, with its telemetry turned off.

    Raises:
        UnavailableError: it is not installed.
    """
    openvino()  # without its telemetry, which nncf uses too
    return _package("nncf", "int8")


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(
            f"the package {name}, which writes or runs such files, can't be imported here ({error}); get it by: "
            f"pip install 'rcnn[{extra}]'"
        ) from None
