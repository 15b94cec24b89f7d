"""Arrays are read from a pickle, and its code is not run."""

import builtins
import codecs
import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rcnn.errors import WeightsError
from rcnn.weights.pickles import read_pickle

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 4)),
    "swapped": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": np.arange(10, dtype=np.int64)[::2],
    "half": np.array([1.5, -2], dtype=np.float16),
    "foreign": np.array([1, 256], dtype=">i4"),
    "bool": np.array([True, False]),
    "bytes": np.arange(256, dtype=np.uint8),
    "scalar": np.float32(2.5),
    "zero_dim": np.array(7.0),
}


class Calls:
    """An object that is pickled as a function call with arguments."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.call = (function, args, state)

    def __reduce__(self) -> Any:
        return self.call


def named(module: str, name: str) -> bytes:
    """Return the instruction that loads a name."""
    return f"c{module}\n{name}\n".encode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pkl"


def refused(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        read_pickle(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_arrays_of_every_layout_come_back(file: Path, protocol: int, core: str) -> None:
    dumped = pickle.dumps({"model": OrderedDict(ARRAYS), "__author__": "nobody"}, protocol)
    if protocol < 4:  # names are lines of text
        dumped = dumped.replace(b"cnumpy._core.", f"c{core}.".encode())
    else:  # names have their length before them; frames too, which are optional
        assert dumped[2:3] == b"\x95"
        assert struct.unpack("<Q", dumped[3:11])[0] == len(dumped[11:])
        dumped = dumped[:2] + dumped[11:]
        for module in ("multiarray", "numeric"):
            written, renamed = (f"{prefix}.{module}".encode() for prefix in ("numpy._core", core))
            dumped = dumped.replace(bytes([len(written)]) + written, bytes([len(renamed)]) + renamed)
    assert core.encode() in dumped
    file.write_bytes(dumped)
    tensors = read_pickle(file)
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert tensors[name].shape == array.shape
        np.testing.assert_array_equal(tensors[name].numpy(), array)
        assert tensors[name].numpy().dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", [3, 4, 5])  # protocol 2 would call `bytes`
def test_an_empty_array_comes_back(file: Path, protocol: int) -> None:
    file.write_bytes(pickle.dumps({"a": np.zeros((0, 3), dtype=np.float32)}, protocol))
    assert read_pickle(file)["a"].shape == (0, 3)


def test_a_pickle_of_python_2_holds_its_bytes_as_text(file: Path) -> None:
    data = np.array([1.0, -3.5], dtype="<f4")
    call = named("numpy.core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\x00\x85U\x01b\x87R"
    dtype = named("numpy", "dtype") + b"U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state = b"(K\x01K\x02\x85" + dtype + b"\x89U" + bytes([data.nbytes]) + data.tobytes() + b"tb"
    file.write_bytes(b"\x80\x02}U\x01a" + call + state + b"s.")
    assert torch.equal(read_pickle(file)["a"], torch.tensor([1.0, -3.5]))


def test_a_dictionary_without_model_is_the_state_itself(file: Path) -> None:
    file.write_bytes(pickle.dumps({"a": np.ones(2)}))
    assert torch.equal(read_pickle(file)["a"], torch.ones(2, dtype=torch.float64))


def test_attributes_of_an_ordered_dictionary_are_not_kept(file: Path) -> None:
    state = OrderedDict(a=np.ones(2))
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    file.write_bytes(pickle.dumps({"model": state}))
    assert list(read_pickle(file)) == ["a"]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "args"),
    [
        (os.system, ("touch {path}",)),
        (builtins.eval, ("open({path!r}, 'w')",)),
        (builtins.open, ("{path}", "w")),
        (builtins.getattr, (np.ndarray, "tofile")),
        (np.load, ("{path}",)),
        (codecs.decode, (b"x", "latin1")),
        (torch.load, ("{path}",)),
    ],
)
def test_other_functions_are_refused_and_not_run(file: Path, function: Any, args: tuple, protocol: int) -> None:
    trace = file.with_name("trace")
    args = tuple(arg.format(path=str(trace)) if isinstance(arg, str) else arg for arg in args)
    refused(file, pickle.dumps({"model": {"a": Calls(function, *args)}}, protocol), rf"`\w+.*\.{function.__name__}`")
    assert not trace.exists()


@pytest.mark.parametrize(
    "instructions",
    [
        named("numpy", "ndarray.tofile"),
        named("numpy", "fromfile"),
        named("numpy.core.multiarray", "fromfile"),
        named("numpy._core.multiarray", "_reconstruct.__globals__"),
        named("numpy.core.multiarray", "numpy"),
        named("numpy.lib", "ndarray"),
        named("collections", "OrderedDict.fromkeys"),
        named("rcnn.weights.pickles", "read_pickle"),
        b"\x8c\x05numpy\x8c\x0endarray.tofile\x93",
        b"(inumpy\nndarray.tofile\n",
        b"(inumpy\nfromfile\n",
    ],
)
def test_names_beside_the_admitted_ones_are_refused(file: Path, instructions: bytes) -> None:
    refused(file, b"\x80\x04" + instructions + b".", "names `")


@pytest.mark.parametrize("codec", ["utf-8", "rot13", "zlib", "unicode_escape", "latin-1", None, 3, ("latin1",)])
def test_no_other_codec_is_used(file: Path, codec: Any) -> None:
    refused(file, pickle.dumps({"a": Calls(codecs.encode, "x", codec)}), "calls `_codecs.encode` with")
    refused(file, pickle.dumps({"a": Calls(codecs.encode, "x")}), "calls `_codecs.encode` with None")


TEXTS = ["O", "S4", "U4", "V8", "M8[s]", "c16", "f4,f4", "(2,2)f4", "float32", "f3", "|O"]
OTHERS = [[("a", "f4")], {"names": ["a"], "formats": ["O"]}, None, 3, (b"f4",)]


@pytest.mark.parametrize("args", [*((text, False, True) for text in TEXTS), *((other,) for other in OTHERS)])
def test_arrays_of_anything_but_numbers_are_refused(file: Path, args: tuple[Any, ...]) -> None:
    refused(file, pickle.dumps({"a": Calls(np.dtype, *args)}), "holds arrays of type")


def test_an_array_of_objects_is_refused_before_its_content_is_looked_at(file: Path) -> None:
    objects = np.empty(2, dtype=object)
    objects[:] = [1, Calls(os.system, "true")]
    refused(file, pickle.dumps({"a": objects}), "Python objects|posix.system|nt.system")
    refused(file, pickle.dumps({"a": np.array([None, 1])}), "Python objects")


CHANGES = b"}\x8c\x0c__defaults__)s\x86b"  # the state ({}, {"__defaults__": ()}) sets attributes directly


@pytest.mark.parametrize(
    "instructions",
    [
        named("_codecs", "encode") + b"}" + CHANGES,
        named("numpy.core.multiarray", "scalar") + b"}" + CHANGES,
        named("numpy", "ndarray") + b"}" + CHANGES,
        named("numpy", "dtype") + b"}" + CHANGES,
        named("collections", "OrderedDict") + b"}" + CHANGES,
        named("numpy", "ndarray") + b")\x81}" + CHANGES,
        named("numpy", "ndarray") + b")\x81}\x8c\x05arrayK\x01sb",
        named("numpy", "ndarray") + b"K\x02\x85R",
        named("numpy", "ndarray") + b")\x81" + b"(K\x01K\x02\x85NIO0\nC\x01xtb",
        named("numpy.core.multiarray", "_reconstruct") + named("collections", "OrderedDict") + b"K\x00\x85C\x01b\x87R",
        named("numpy.core.multiarray", "_reconstruct") + b"C\x01bK\x00\x85C\x01b\x87R",
        named("numpy._core.multiarray", "scalar") + b"C\x01bC\x01b\x86R",
        named("numpy", "dtype") + b"\x8c\x02f4\x85R(K\x03\x8c\x01OtbK\x00\x86",
    ],
)
def test_admitted_names_can_be_neither_changed_nor_misused(file: Path, instructions: bytes) -> None:
    refused(file, b"\x80\x04}\x8c\x01a" + instructions + b"s.", r"weights\.pkl")
    file.write_bytes(pickle.dumps({"a": np.ones(2), "b": np.float32(3)}, 2))
    assert torch.equal(read_pickle(file)["a"], torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3,), (-2, -1), (2**62, 4), (1.5,), "2"])
def test_a_shape_that_the_data_do_not_fill_is_damage(file: Path, shape: Any) -> None:
    stream = io.BytesIO()
    pickler = pickle.Pickler(stream, 2)
    pickler.fast = True
    pickler.dump(shape)
    instructions = stream.getvalue()[2:-1]  # without protocol and end
    content = pickle.dumps({"a": np.zeros(5, dtype=np.float32)}, 2).replace(b"K\x05\x85", instructions)
    refused(file, content, "damaged")


def test_a_truncated_file_is_damage_wherever_it_ends(file: Path) -> None:
    for protocol in (2, 5):
        whole = pickle.dumps({"model": {"a": np.zeros((4, 3), dtype=np.float32)}}, protocol)
        for length in range(len(whole)):
            refused(file, whole[:length], "damaged, or no pickle")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"PK\x03\x04" + bytes(64),
        b"not a pickle\n",
        bytes(range(256)),
        b"\x80\x09.",
        b"\x80\x02P1\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x97.",
        b"\x80\x02]r\xff\xff\xff\xff.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_a_file_that_is_no_pickle_of_arrays_is_reported_as_such(file: Path, content: bytes) -> None:
    refused(file, content, "no pickle")


@pytest.mark.parametrize("content", [3, [np.ones(2)], {"model": {"a": 1}}, {1: np.ones(2)}, {"a": {"b": np.ones(2)}}])
def test_a_pickle_of_something_else_is_no_checkpoint(file: Path, content: Any) -> None:
    refused(file, pickle.dumps(content), "holds no dictionary of arrays")


def test_an_array_that_was_never_filled_is_no_checkpoint(file: Path) -> None:
    refused(file, b"\x80\x02}U\x01a" + named("numpy", "ndarray") + b")\x81s.", "holds no dictionary of arrays")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pkl: can't be read"):
        read_pickle(tmp_path / "nowhere.pkl")
