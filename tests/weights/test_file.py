import json
import os
import pickle
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from rcnn.errors import WeightsError
from rcnn.weights.file import atomic_write, is_detector, load_weights, read_safetensors, save_weights, to_half
from tests.limits import MB, in_child

TENSORS = {
    "b.weight": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "a.count": torch.tensor(7),
    "c.half": torch.ones(3, dtype=torch.bfloat16),
    "d.empty": torch.zeros(0, 4),
    "e.view": torch.arange(10)[2:5],
}
METADATA = {"names": ["cat", "\u00fcber"], "threshold": 0.5, "settings": {"b": 1, "a": [1, 2]}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_weights(tmp_path / "w.safetensors", TENSORS, METADATA)
    return tmp_path / "w.safetensors"


def test_saved_weights_are_loaded(path: Path):
    tensors, metadata = load_weights(path)
    assert metadata == METADATA
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
        assert tensor.is_contiguous()


def test_two_saves_are_byte_identical_whatever_the_order(path: Path, tmp_path: Path):
    turned = {name: TENSORS[name] for name in reversed(TENSORS)}
    save_weights(tmp_path / "again.safetensors", turned, dict(reversed(METADATA.items())))
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["again.safetensors", "w.safetensors"]


def test_bytes_are_those_that_the_library_of_the_format_writes(tmp_path: Path):
    tensors = {"\u00fc.w": torch.rand(3, 2), "a.f": torch.ones(3), "count": torch.tensor(7), "b": torch.ones(3) > 0}
    tensors |= {"turned": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last), "half": torch.ones(3).half()}
    tensors |= {"view": tensors["a.f"][1:], "empty": torch.zeros(0, 4), "again": tensors["a.f"]}
    save_weights(tmp_path / "w.safetensors", tensors, METADATA)
    written = (tmp_path / "w.safetensors").read_bytes()
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        header = file.metadata()
    plain = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    assert written == save(plain, header)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured by Linux's /proc")
def test_tensors_are_written_without_a_copy(tmp_path: Path):
    tensors = {str(number): torch.ones(25_000_000) for number in range(2)}
    in_child(lambda: save_weights(tmp_path / "w.safetensors", tensors, {}), resident=20 * MB)


def test_header_has_one_entry_of_sorted_json(path: Path):
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert list(header) == ["rcnn"]
    entry = json.loads(header["rcnn"])
    assert entry["format"] == 1
    assert list(entry) == sorted(entry)


@given(st.data())
def test_a_truncated_file_is_refused_by_name_and_size(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    path = tmp_path_factory.mktemp("cut") / "w.safetensors"
    save_weights(path, TENSORS, METADATA)
    whole = path.read_bytes()
    length = data.draw(st.integers(0, len(whole) - 1))
    refused(path, rf"\({length:,} bytes\) is damaged", whole[:length])


@given(st.data())
def test_every_changed_byte_is_detected(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    path = tmp_path_factory.mktemp("flip") / "w.safetensors"
    save_weights(path, TENSORS, METADATA)
    content = bytearray(path.read_bytes())
    offset = data.draw(st.integers(0, len(content) - 1))
    content[offset] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    message = ""
    try:
        tensors, entry = load_weights(path)
    except WeightsError as error:
        message = str(error)
    if message:
        assert "w.safetensors" in message
    else:
        assert chr(content[offset]).lower() in "abcdef"  # JSON takes the E of an escape or exponent as an e
        assert entry == METADATA
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in TENSORS.items())


def refused(file: Path, words: str, content: bytes | None = None) -> None:
    """Check that the file, with this content if any, is refused with its name and these words."""
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{re.escape(file.name)}.* {words}"):
        load_weights(file)


def test_a_foreign_safetensors_file_is_named(tmp_path: Path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors", {"format": "pt"})
    refused(tmp_path / "other.safetensors", "not of an rcnn detector")


def test_a_pickle_is_refused_unopened(tmp_path: Path):
    torch.save({"x": torch.zeros(2)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "pickle")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        *((content, "damaged") for content in (b"", b"hello", b"not weights at all, but long enough", bytes(100))),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + bytes(90), "a zip archive"),
        (pickle.dumps({"weights": [1.0, 2.0, 3.0]}), "a pickle"),
        (b"\x89PNG\r\n\x1a\n" + bytes(90), "a PNG image"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(90), "a JPEG image"),
        (b"\x1f\x8b\x08\x00\x11\x22\x33\x44" + bytes(90), "a gzip archive"),
        (b"<!DOCTYPE html><title>Not found</title>", "a web page"),
        (b"<html><body>Not found</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    ],
)
def test_files_of_other_kinds_are_called_by_their_kind_where_it_is_known(tmp_path: Path, content: bytes, kind: str):
    refused(tmp_path / "x.safetensors", rf"\({len(content)} bytes\) is {kind}", content)


ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        json.dumps({"x": {**ROW, "shape": [2**62, 4]}}),
        json.dumps({"x": {**ROW, "shape": [2**40], "data_offsets": [0, 2**42]}}),
        json.dumps({"x": {**ROW, "shape": [0, 2**63, 2**63], "data_offsets": [0, 0]}}),
        json.dumps({"x": {**ROW, "shape": [-2]}}),
        json.dumps({"x": {**ROW, "dtype": "F4"}}),
        json.dumps({"x": ROW, "y": ROW}),
        f'{{"x": {json.dumps(ROW)}, "x": {json.dumps(ROW)}}}',
        "[" * 100_000,
        '{"x": 1}',
        "null",
    ],
)
def test_false_headers_are_refused(tmp_path: Path, header: str):
    content = len(header).to_bytes(8, "little") + header.encode() + bytes(8)
    refused(tmp_path / "x.safetensors", "is damaged", content)


@pytest.mark.parametrize("length", [2**63, 2**40, 200_000_000])
def test_a_header_that_claims_to_be_huge_is_refused(tmp_path: Path, length: int):
    refused(tmp_path / "x.safetensors", "is damaged", length.to_bytes(8, "little") + b"{}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child is forked")
@pytest.mark.parametrize("count", [700_000, 300_000])
def test_very_many_tensors_are_refused_quickly(count: int, tmp_path: Path) -> None:
    text = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, separators=(",", ":"))
    header = ("{" + ",".join(f'"{number:x}":{text}' for number in range(count)) + "}").encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)

    def refuse() -> None:
        for read in (load_weights, read_safetensors, is_detector):
            with pytest.raises(WeightsError, match=r"is damaged, or no safetensors file: it(s header)? has over"):
                read(path)

    in_child(refuse, seconds=2, resident=100 * MB)


@pytest.mark.parametrize("entry", ["", "{", "[]", "5", "{}", '{"format": 1}', "[" * 100_000, '"text"'])
def test_an_invalid_entry_is_refused(tmp_path: Path, entry: str):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", {"rcnn": entry})
    refused(tmp_path / "x.safetensors", "is damaged: its `rcnn` entry")


def test_a_removed_renamed_or_added_tensor_is_detected(path: Path):
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in TENSORS}
    less = {name: tensor for name, tensor in tensors.items() if name != "a.count"}
    for changed in (less, {**less, "a.counts": tensors["a.count"]}, {**tensors, "f": torch.zeros(1)}):
        save_file(changed, path, header)
        refused(path, "does not have the checksum")


def test_half_precision_changes_floating_point_tensors_only():
    tensors = {"a": torch.tensor([0.1, 65504.0]), "b": torch.tensor([1 << 40]), "c": torch.tensor([torch.inf])}
    halves = to_half({**tensors, "d": torch.ones(1, dtype=torch.float64)})
    assert [tensor.dtype for tensor in halves.values()] == [torch.float16, torch.int64, torch.float16, torch.float16]
    assert torch.equal(halves["a"].float(), torch.tensor([0.1, 65504.0]).half().float())
    assert torch.equal(halves["b"], tensors["b"])


def test_numbers_too_large_for_half_precision_are_named():
    with pytest.raises(WeightsError, match=r"`b` has numbers up to 70000, float16 ends"):
        to_half({"a": torch.ones(1), "b": torch.tensor([1.0, -7e4])})


def test_missing_file_and_folder_are_named(tmp_path: Path):
    refused(tmp_path / "none.safetensors", "can't be read: No such file")
    refused(tmp_path, "can't be read: this is a folder")


def test_a_later_format_asks_for_an_update(tmp_path: Path):
    header = json.dumps({"format": 2, "sha256": ""})
    save_file({"x": torch.zeros(2)}, tmp_path / "new.safetensors", {"rcnn": header})
    refused(tmp_path / "new.safetensors", "format 2.*update rcnn")


def test_a_process_killed_while_writing_leaves_the_old_file(path: Path):
    code = (
        "import os, signal, sys; from rcnn.weights.file import atomic_write\n"
        "os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic_write(sys.argv[1], b'half')\n"
    )
    before = path.read_bytes()
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    save_weights(path, {}, {})
    assert os.listdir(path.parent) == ["w.safetensors"]  # the next write replaced the temporary file


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, b"half")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["w.safetensors"]


def test_a_detector_is_distinguished_from_other_weights(path: Path, tmp_path: Path):
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert is_detector(path)
    assert not is_detector(tmp_path / "other.safetensors")


def test_headers_of_any_length_are_read(tmp_path: Path):
    path, lengths = tmp_path / "w.safetensors", set()
    for size in range(0, 300, 8):
        save_weights(path, {"x": torch.ones(1)}, {"pad": "x" * size})
        lengths.add(path.read_bytes()[0])
        assert load_weights(path)[1] == {"pad": "x" * size}
    assert 0x80 in lengths  # the first byte of a pickle


def test_a_reader_finds_a_complete_file_while_others_write(tmp_path: Path):
    path, size = tmp_path / "record", 1 << 18
    atomic_write(path, bytes(size), shared=True)

    def write_and_read(number: int) -> None:
        for _ in range(20):
            atomic_write(path, bytes([number]) * size, shared=True)
            found = path.read_bytes()
            assert (len(found), len(set(found))) == (size, 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_and_read, range(4)))
    assert [file.name for file in tmp_path.iterdir()] == ["record"]
