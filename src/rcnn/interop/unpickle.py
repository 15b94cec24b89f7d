"""Read arrays from a pickle, as in detectron2's model zoo, without running its code.

A pickle is a program that names the functions it wants called. Here it gets none of them: the few names that pickled
arrays need are replaced by stand-ins that check their arguments, and any other name is refused. Not even numpy's own
classes are used, since their `__setstate__` trusts its input.
"""

import io
import pickle
import re
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from rcnn.config.files import MB
from rcnn.errors import WeightsError
from rcnn.weights.file import reading
from rcnn.weights.pickles import MAX_NAME_LETTERS, check_pickle

MAX_PICKLE_BYTES = 1_500 * MB
"""Bytes of a pickle."""
_DTYPE = re.compile(r"(b1|[iu][1248]|f[248])")
_BYTE_ORDERS = ("<", ">", "|", "=")


class _RefusedError(pickle.UnpicklingError):
    """The pickle asks for something that weights do not need. The message continues `FILE ...`."""


def _shown(value: object) -> str:
    """Text as it is, cut; of anything else its type: lists in lists may take for ever to write out."""
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__


class _Dtype:
    """Stands for `numpy.dtype`: plain numbers only."""

    __slots__ = ("dtype",)

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            objects = ", which are Python objects" if isinstance(code, str) and code.startswith("O") else ""
            raise _RefusedError(f"holds arrays of type {_shown(code)}{objects}; weights are plain numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        byte_order = state[1]
        if byte_order not in _BYTE_ORDERS:
            raise _RefusedError(f"holds arrays of byte order {_shown(byte_order)}")
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """Stands for `numpy.ndarray`: empty until its state is set."""

    __slots__ = ("array",)
    array: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _read(data, dtype, shape, "F" if fortran else "C")


class _Dict(dict[Any, Any]):
    """Stands for `collections.OrderedDict`; attributes, such as the versions of modules, are not kept."""

    def __setstate__(self, state: object) -> None:
        pass


class _Function:
    """A function that a pickle may call, but not change, as the BUILD instruction would."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise _RefusedError("would change a function instead of calling it")


def _read(data: Any, dtype: Any, shape: Any, order: str, axes: Any = None) -> np.ndarray:
    """Return a native, contiguous copy; the data may be text (Python 2), of another byte order or read-only."""
    if not isinstance(dtype, _Dtype):
        raise _RefusedError(f"holds an array of type {type(dtype).__name__}; weights are plain numbers")
    raw = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(raw, bytes | bytearray):
        raise _RefusedError(f"holds an array whose data are {type(raw).__name__} instead of bytes")
    array = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    if axes is not None:
        array = array.transpose(axes)
    return np.array(array, dtype=dtype.dtype.newbyteorder("="), order="C")


def _reconstruct(kind: Any, *_: object) -> _Array:
    if kind is not _Array:
        raise _RefusedError(f"would make an array of {_shown(kind)}")
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    stand_in = _Array()
    stand_in.array = _read(data, dtype, shape, order, axes if order == "K" else None)
    return stand_in


def _encode(text: Any, encoding: object = None, *_: object) -> bytes:
    """Encode text to bytes, which is how protocol 2 writes bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise _RefusedError(f"asks `_codecs.encode` for {_shown(encoding)}; bytes are written as 'latin1'")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Function(_reconstruct)),
            ("multiarray", "scalar", _Function(lambda dtype, data: _frombuffer(data, dtype, (), "C"))),
            ("numeric", "_frombuffer", _Function(_frombuffer)),
        )
    },
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Function(_encode),
    ("collections", "OrderedDict"): _Dict,
}
"""Module and name -> what the pickle gets. Module names changed with numpy 2."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ADMITTED:
            raise _RefusedError(f"asks for `{f'{module}.{name}'[:MAX_NAME_LETTERS]}`, which weights have no use for")
        return _ADMITTED[module, name]


def read_pickle(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a pickled dictionary of numpy arrays, or of its entry `model`; no code in it is run.

    Raises:
        WeightsError: the file is missing, damaged, not such a pickle, or asks for anything but arrays.
    """
    path = Path(path)
    with reading(path, MAX_PICKLE_BYTES, "no pickle of arrays"):
        try:
            data = path.read_bytes()
            check_pickle(data)
            content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        except _RefusedError as error:
            raise WeightsError(f"{path} {error}. It was not opened, and nothing of it was run") from None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(_is_named_array(*item) for item in content.items()):
        raise WeightsError(f"{path} holds no dictionary of arrays, so it is no checkpoint")
    return {name: torch.from_numpy(value.array) for name, value in content.items()}


def _is_named_array(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, _Array) and hasattr(value, "array")
