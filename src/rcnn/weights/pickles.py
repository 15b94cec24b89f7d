"""Check pickles before they are read, and read arrays from them without running their code.

The instructions of a pickle are checked first, since some need more memory or time than any machine has. `read_pickle`
then reads arrays, as in detectron2's model zoo. A pickle is a program that names the functions to call. Here these
functions are not available: the few names that pickled arrays need are replaced by stand-ins that check their
arguments, and any other name is refused. Even numpy's own classes are replaced, since their `__setstate__` trusts its
input.
"""

import io
import math
import pickle
import pickletools
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from rcnn.config.files import MB
from rcnn.errors import WeightsError
from rcnn.weights.file import reading

MAX_STEPS = 1_000_000
"""Instructions of a pickle; the largest checkpoints have about 100,000."""

MAX_PARTS = 1_000_000
"""Parts of a value, counted as often as they occur in it, since its hash or its text takes as many steps."""

MAX_LETTERS = 100_000_000
"""Letters of a value in a file of `torch.save`, counted likewise; the data of its tensors are outside the pickles."""

MAX_DEPTH = 16
"""Nested tuples, each of which is a call on the stack when they are hashed."""

MAX_NAME_LETTERS = 1_000
"""Letters in the name of a function or class."""

_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_CHANGES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_NAMES, _CALLS = ("GLOBAL", "STACK_GLOBAL"), ("REDUCE", "NEWOBJ")
_MARK, _PLAIN, _NAMED = -1, 0, 1


class _Value(NamedTuple):
    """A value that a pickle would make: the numbers of the values that it holds, its letters, and if it is a tuple."""

    parts: list[int]
    letters: int
    is_tuple: bool


def _measure(values: Sequence[_Value]) -> tuple[float, float, float]:
    """Return the most parts, letters and nested tuples of a value; infinite if one holds itself."""
    known, begun = [(math.inf, math.inf, math.inf)] * len(values), bytearray(len(values))
    waiting = list(range(len(values)))
    while waiting:
        number = waiting.pop()
        if number >= 0 and not begun[number]:
            begun[number] = True
            waiting.append(~number)  # measured after its parts; a value that holds one not yet measured holds itself
            waiting += [part for part in values[number].parts if not begun[part]]
        elif number < 0:
            parts, letters, is_tuple = values[~number]
            sizes = [known[part] for part in parts]
            known[~number] = (
                1.0 + sum(size[0] for size in sizes),  # a float, which can't grow beyond its range
                letters + sum(size[1] for size in sizes),
                is_tuple + max((size[2] for size in sizes), default=0),
            )
    parts_of_largest, letters_of_largest, depth = map(max, zip(*known, strict=True))
    return parts_of_largest, letters_of_largest, depth


def check_pickle(stream: bytes | IO[bytes], max_letters: float = math.inf) -> None:
    """Refuse a pickle that does more than weights need, without running it.

    Args:
        stream: bytes of a pickle, or a file at the pickle's first byte; the file is left after the last byte.
        max_letters: letters of a value, including those of its parts.

    Raises:
        ValueError: the pickle has too many instructions, uses memo indices that are too high, makes values that are too
            large when they are written out, nests tuples too deeply, or is damaged.
        pickle.UnpicklingError: the pickle calls something that it does not name, or uses a very long name, which
            `torch.load` would include in its message and search in quadratic time.
    """
    values = [_Value([], 0, False), _Value([], 0, False)]  # something plain, and a function or class that is named
    stack: list[int] = []
    memo: dict[int, int] = {}
    for step, (code, argument, _) in enumerate(pickletools.genops(stream)):
        if step > MAX_STEPS:
            raise ValueError("it has more steps than weights need")
        if code.name in _PUTS:
            index = len(memo) if code.name == "MEMOIZE" else int(argument or 0)
            if index > step:  # memory for all lower indices would be allocated
                raise ValueError("it remembers more than weights need")
            memo[index] = stack[-1] if stack else _PLAIN
            continue
        if code.name in _GETS:
            stack.append(memo.get(int(argument or 0), _PLAIN))
            continue
        if code.name == "DUP":
            stack += stack[-1:]
            continue
        if code.name in _CALLS and stack[-2:-1] != [_NAMED]:
            raise pickle.UnpicklingError("it calls something that it does not name")
        letters = len(argument) if isinstance(argument, str | bytes | bytearray) else 0
        if code.name == "GLOBAL" and letters > MAX_NAME_LETTERS:
            raise pickle.UnpicklingError(f"it names a function with {letters:,} letters")
        taken: list[int] = []
        if pickletools.markobject in code.stack_before:
            while stack and (value := stack.pop()) != _MARK:
                taken.append(value)
        for kind in code.stack_before:
            if kind not in (pickletools.markobject, pickletools.stackslice) and stack:
                taken.append(stack.pop())
        if code.name in _CHANGES and taken and taken[-1] > _NAMED:
            made = taken[-1]
            values[made].parts.extend(taken[:-1])
        elif code.name in _NAMES:
            made = _NAMED
        elif isinstance(argument, int | float):
            made = _PLAIN
        else:  # also an empty list, which later steps fill
            made = len(values)
            values.append(_Value(taken, letters, code.name in _TUPLES))
        stack += [_MARK if kind is pickletools.markobject else made for kind in code.stack_after]
    parts, letters, depth = _measure(values)
    if parts > MAX_PARTS or letters > max_letters:
        raise ValueError("it holds the same things more often than weights need")
    if depth > MAX_DEPTH:
        raise ValueError("it nests tuples deeper than weights need")


def check_torch_file(path: Path) -> None:
    """Check the pickles of a file of `torch.save`, of either of its forms.

    Raises:
        ValueError, pickle.UnpicklingError: as `check_pickle`.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(5):  # magic number, version, system, tensors, and the keys of their storages
                check_pickle(file, MAX_LETTERS)
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                check_pickle(archive.read(name), MAX_LETTERS)


MAX_PICKLE_BYTES = 1_500 * MB
"""Maximum size of a file of `read_pickle`."""
_DTYPE = re.compile(r"(b1|[iu][1248]|f[248])")
_BYTE_ORDERS = ("<", ">", "|", "=")


class _RefusedError(pickle.UnpicklingError):
    """The pickle uses something that weights do not need. The message continues `FILE ...`."""


def _shown(value: object) -> str:
    """Return a text, shortened, or the type of any other value, since nested lists may take for ever to write out."""
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
    """Stands for `collections.OrderedDict`; attributes, such as the versions of modules, are dropped."""

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
    """Return a native, contiguous copy; the data may be text (Python 2), read-only, or of another byte order."""
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
    """Encode text to bytes, since protocol 2 writes bytes this way."""
    if encoding != "latin1" or not isinstance(text, str):
        raise _RefusedError(f"calls `_codecs.encode` with {_shown(encoding)}; bytes are written as 'latin1'")
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
"""Module and name -> stand-in. Module names changed with numpy 2."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) not in _ADMITTED:
            raise _RefusedError(f"names `{f'{module}.{name}'[:MAX_NAME_LETTERS]}`, which weights do not need")
        return _ADMITTED[module, name]


def read_pickle(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a pickled dictionary of numpy arrays, or of its entry `model`, without running its code.

    Raises:
        WeightsError: the file is missing, damaged, not such a pickle, or needs anything but arrays.
    """
    path = Path(path)
    with reading(path, MAX_PICKLE_BYTES, "no pickle of arrays"):
        try:
            data = path.read_bytes()
            check_pickle(data)
            content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        except _RefusedError as error:
            raise WeightsError(f"{path} {error}. The file was not opened, and none of its code was run") from None
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, _Array) and hasattr(value, "array")
        for name, value in content.items()
    ):
        raise WeightsError(f"{path} holds no dictionary of arrays, so it is no checkpoint")
    return {name: torch.from_numpy(value.array) for name, value in content.items()}
