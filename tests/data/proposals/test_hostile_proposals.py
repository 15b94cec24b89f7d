"""Files of proposals that declare wrong sizes, are too large when unpacked, or are damaged."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rcnn.data.dataset import Record
from rcnn.data.proposals.read import read_proposals
from rcnn.errors import DataError
from tests.limits import MB, in_child

NONE = np.zeros(0)
RECORD = Record(Path("a.jpg"), "a.jpg", "a", (40, 60), NONE.reshape(0, 4), NONE.astype(np.int64), NONE.astype(bool))


def refused(path: Path, reason: str) -> None:
    """Fail unless the file is refused quickly, and without much memory."""

    def do() -> None:
        with pytest.raises(DataError, match=reason):
            read_proposals(path, [RECORD])

    in_child(do, data=1000 * MB, resident=250 * MB)


def member(shape: str, content: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    """Return an array for a .npz, with this header."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = (len(header) if length is None else length).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (member("(10000000000, 4)"), "declares the shape"),
        (member("(4, 10000000000000000000000)"), "declares the shape"),
        (member("(1, 4)", version=2, length=2**32 - 1), r"can't be read as \.npz"),
        (member("(1, 4)", bytes(32), version=3), "version 3"),
        (bytes(200 * MB), "packed by more than 100 to 1|200 MB"),
        (b"\x80\x04.", "magic string"),
    ],
)
def test_an_array_is_checked_before_it_is_read(tmp_path: Path, content: bytes, reason: str) -> None:
    with zipfile.ZipFile(tmp_path / "p.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.jpg.npy", content)
    refused(tmp_path / "p.npz", reason)


@pytest.mark.parametrize("places", [range(100, 1500, 7), range(300, 340)])
def test_a_damaged_archive_is_refused(tmp_path: Path, places: range) -> None:
    path = tmp_path / "p.npz"
    np.savez_compressed(path, a=np.sort(np.random.default_rng(0).random((500, 4)), axis=1))
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 255
    path.write_bytes(content)
    refused(path, r"can't be read as \.npz of plain arrays")


def test_an_archive_that_is_too_large_when_unpacked_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "p.npz", a=np.zeros((4_000_000, 4)))
    refused(tmp_path / "p.npz", "packed by more than 100 to 1")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a.jpg": [[1, 2, 3, 1' + "0" * 400 + "]]}", "row 1: expected 4 numbers"),
        ('{"a.jpg": [[1, 2, 3, 1' + "0" * 5000 + "]]}", "can't be read as json"),
        ('{"a.jpg": %s}' % ("9" * 5000), "can't be read as json"),
        ("[" * 100_000, "can't be read as json"),
        ('{"\udce9": []}', "can't be read as json"),
        ('[{"image_id": %s, "bbox": [1, 2, 3, 4]}]' % ("9" * 400), "the data has no such image"),
        ('[{"image_id": "a", "bbox": [1, 2, 3, %s]}]' % ("9" * 400), "row 1: expected `image_id`"),
        ('{"a.jpg": [[1, 2, 3, 4]], "a.jpg": []}', "the key `a.jpg` occurs twice, with different values"),
        (json.dumps(list(range(1_000_000))), r"found \[0, 1, 2, 3, 4\]$"),
    ],
)
def test_a_hostile_json_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "p.json").write_text(text, errors="surrogateescape")
    refused(tmp_path / "p.json", reason)


@pytest.mark.parametrize("suffix", ["json", "npz", "mat"])
def test_pipes_and_sparse_files_are_refused(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("scipy")
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    refused(tmp_path / f"pipe.{suffix}", "not a regular file")
    (tmp_path / f"p.{suffix}").touch()
    os.truncate(tmp_path / f"p.{suffix}", 5 * 10**9)
    refused(tmp_path / f"p.{suffix}", "5,000 MB are too many|File is not a zip file")
