"""Files named like images must not start programs, hang or fill the memory."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rcnn.errors import ImageError
from rcnn.images.decode import image_size, read_image, verify_image
from tests.limits import MB, in_child

READERS = (read_image, image_size, verify_image)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n"
OTHERS = {
    "EPS": EPS,
    "PDF": b"%PDF-1.7\n",
    "PSD": b"8BPS\0\1" + bytes(40),
    "ICO": b"\0\0\1\0\1\0" + bytes(40),
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(40),
    "NPY": b"\x93NUMPY\1\0" + bytes(40),
}


def npy(path: Path, shape: tuple[int, ...], dtype: str, size: int) -> Path:
    """Write a sparse array."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + size)
    return path


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that exists once Ghostscript has been started."""
    mark, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {mark}\nsleep 60\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return mark


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused_by_name_and_start_nothing(tmp_path: Path, mark: Path, name: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(OTHERS[name])
    for read in READERS:
        with pytest.raises(ImageError, match=rf"a\.jpg: this is {name}.*convert it to PNG or JPEG"):
            read(path)
    assert not mark.exists()


@pytest.mark.parametrize("suffix", ["avif", "jp2", "gif", "webp", "bmp", "ppm", "jpg", "mpo"])
def test_every_accepted_format_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (32, 16), "red").save(path)
    for name in (path, path.rename(tmp_path / "a.png")):  # the content counts
        if name.exists():
            assert read_image(name).shape == (16, 32, 3)


@pytest.mark.parametrize("suffix", ["jpg", "npy"])
def test_a_pipe_and_a_socket_are_no_regular_files(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(f"pipe.{suffix}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"socket.{suffix}")
        Path(f"zero.{suffix}").symlink_to("/dev/zero")
        for name in ("pipe", "socket", "zero"):
            for read in READERS:
                with pytest.raises(ImageError, match=rf"{name}\.{suffix}: .*not a regular file"):
                    read(f"{name}.{suffix}")


def refused(path: Path, reason: str, in_channels: int | None = 3) -> Callable[[], None]:
    """Return a check that a file is refused."""

    def do() -> None:
        for read in (lambda: read_image(path, in_channels=in_channels), lambda: verify_image(path)):
            with pytest.raises(ImageError, match=reason):
                read()

    return do


def test_an_array_of_many_channels_is_refused_by_its_header(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", (100, 100, 100_000), "<f8", 8 * 10**9)
    for channels, reason in ((3, "100000 channels|more than 4 times"), (None, "more than 4 times")):
        in_child(refused(path, reason, channels), resident=20 * MB)


def test_a_large_array_is_read_in_pieces(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", (2000, 2000, 3), "<f8", 8 * 12_000_000)

    def do() -> None:
        assert not read_image(path).any()
        assert verify_image(path).largest is None

    in_child(do, resident=(12 + 25) * MB)


HEADS = {
    "a.npy": (b"\x93NUMPY\2\0" + (2**32 - 1).to_bytes(4, "little"), b"PK\3\4", b"\x80\4."),
    "a.jpg": (b"RIFF\0\0\0\0WEBPVP8L", b"\0\0\0\x18ftypavif", b"\xff\xd8\xff\xe0", b"GIF89a", b""),
}


@pytest.mark.parametrize(("name", "head"), [(name, head) for name, heads in HEADS.items() for head in heads])
def test_a_sparse_file_of_5_gb_is_refused_by_its_head_or_size(tmp_path: Path, name: str, head: bytes) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(head)
        file.truncate(5 * 10**9)
    array, picture = "(header of the array is too long|not an array)", "this is not an image; .* only TIFF"
    reason, most = (f"a\\.npy: .*{array}", 20) if name == "a.npy" else (f"a\\.jpg: {picture}", 60)
    in_child(refused(tmp_path / name, reason), resident=most * MB)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_transparent_image_takes_8_bytes_a_pixel(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.new("RGBA", (4000, 4000), (9, 9, 9, 128)).save(path, compress_level=1, exif=exif)

    def do() -> None:
        assert (read_image(path) == 132).all(axis=(0, 1)).all()

    read_image(path)  # what is imported late
    in_child(do, resident=8 * 16 * MB)


@pytest.mark.parametrize(("name", "reason"), [(b"caf\xe9.png", "is not UTF-8"), (b"a\nb.png", "has a line end")])
def test_a_name_that_cannot_be_written_is_refused(tmp_path: Path, name: bytes, reason: str) -> None:
    path = tmp_path / os.fsdecode(name)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(path)
    for read in READERS:
        with pytest.raises(ImageError, match=reason):
            read(path)
