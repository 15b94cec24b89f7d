"""Well-formed files that take far more work than their pixels and bytes suggest are refused, all others are read."""

import contextlib
import io
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rcnn.config import Settings, override
from rcnn.errors import ImageError
from rcnn.images import large
from rcnn.images.decode import as_array, image_size, open_image, read_image, read_rgb, verify_image
from rcnn.images.jpeg2000 import check_jpeg2000
from rcnn.images.views import View
from rcnn.images.work import MAX_CHUNKS, MAX_COMMENTS, MAX_SCANS, check_decoding
from tests.images.hostile import jpeg, jpeg_segment, tiff, tiled
from tests.limits import MB, in_child

READERS = (read_image, read_rgb, verify_image)
TILED = ["predict.tile=800"]
GREY_PAGE = {
    **{256: (4, [8]), 257: (4, [8]), 258: (3, [8]), 259: (3, [1]), 262: (3, [1])},
    **{273: (4, [16]), 277: (3, [1]), 278: (3, [8]), 279: (4, [64])},
}
"""The tags of a page of 8 x 8 grey pixels, which are the 64 bytes after the header."""


def refused(path: Path, reason: str) -> None:
    """Check that each reader refuses a file in a few seconds, and in little memory."""

    def do() -> None:
        for read in READERS:
            with pytest.raises(ImageError, match=rf"{path.name}: .*{reason}"):
                read(path)

    in_child(do, seconds=8, resident=150 * MB)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    "content",
    [
        jpeg((4000, 4000), 30_000),
        jpeg((4000, 4000), 30_000, refine=False),
        jpeg((3000, 4000), 2_000, interval=1000),
        jpeg((1, 4000), 1_000_000),  # coded in units of 8 x 8
        jpeg((8, 8), 700_000),
        jpeg((4000, 4000), 1500, between=jpeg_segment(0xFE, b"a comment")),
        jpeg((4000, 4000), 1500, before=b"\xff\xff\xff"),
    ],
    ids=["refining", "first bits", "restarts", "thin", "tiny", "comments", "filled"],
)
def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert image_size(tmp_path / "a.jpg")
    refused(tmp_path / "a.jpg", r"the JPEG has more than [\d,]+ scans")


def test_scans_of_one_channel_each_are_counted_too(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg((800, 800), 18_500, progressive=False))
    refused(tmp_path / "a.jpg", "the JPEG has more than 17,895 scans")


def test_an_image_of_pillow_that_is_not_decoded_yet_is_refused_as_its_file_is(tmp_path: Path) -> None:
    content = jpeg((4000, 4000), 1500)
    (tmp_path / "a.jpg").write_bytes(content)
    for file in (tmp_path / "a.jpg", io.BytesIO(content)):
        with Image.open(file) as image, pytest.raises(ImageError, match="more than 715 scans"):
            as_array(image)


def test_libvips_gets_no_such_jpeg(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg((2000, 2000), 10_000))
    with pytest.raises(ImageError, match=r"a\.jpg: the JPEG has more than"):
        large.open_windows(tmp_path / "a.jpg", (800, 800), override(Settings(), TILED))


@given(height=st.integers(1, 65500), width=st.integers(1, 65500), components=st.sampled_from([1, 3, 4]))
def test_64_scans_of_any_picture_are_allowed(height: int, width: int, components: int) -> None:
    height = min(height, Settings().data.max_pixels // width)
    content = jpeg((height, width), 2, components=components)
    scan = content[content.rindex(b"\xff\xda") : -2]
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.jpg")
        path.write_bytes(content[:-2] + scan * (MAX_SCANS - 2) + content[-2:])
        with open_image(path, Settings().data.max_pixels) as image:
            check_decoding(image)


@pytest.mark.parametrize("components", [1, 3, 4])
@pytest.mark.parametrize("interval", [0, 7])
def test_jpegs_with_few_scans_are_decoded(tmp_path: Path, components: int, interval: int) -> None:
    for progressive in (True, False):
        scans = MAX_SCANS if progressive or components > 1 else 1  # a single scan with all channels is the only one
        content = jpeg((100, 120), scans, components=components, interval=interval, progressive=progressive)
        (tmp_path / "a.jpg").write_bytes(content)
        assert read_image(tmp_path / "a.jpg").shape == (100, 120, 3)


def test_scans_of_thumbnails_and_of_what_follows_the_picture_do_not_count(tmp_path: Path) -> None:
    thumbnails = jpeg_segment(0xE1, jpeg((64, 64), 4000)[:60_000]) * 3
    content = jpeg((3000, 4000), 10, before=thumbnails) + jpeg((3000, 4000), 2000)
    (tmp_path / "a.jpg").write_bytes(content)
    assert verify_image(tmp_path / "a.jpg")
    frames = [Image.new("RGB", (40, 30), (number, 0, 0)) for number in range(80)]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.mpo").shape == (30, 40, 3)


def test_headers_of_millions_of_parts_are_refused(tmp_path: Path) -> None:
    small = jpeg((8, 8), 1)
    (tmp_path / "filling.jpg").write_bytes(small[:2] + b"\xff" * MB + small[2:])
    (tmp_path / "segments.jpg").write_bytes(jpeg((8, 8), 1, before=jpeg_segment(0xFE) * 200_000))
    (tmp_path / "spaces.ppm").write_bytes(b"P6" + b" " * MB + b"2 2 255\n" + bytes(12))
    for name in ("filling.jpg", "segments.jpg", "spaces.ppm"):
        refused(tmp_path / name, "far more parts than a picture needs")


def test_a_png_with_thousands_of_profiles_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    plain = buffer.getvalue()
    profile = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(MB), 9))
    for place in (33, len(plain) - 12):  # before the pixels, and after them
        (tmp_path / "a.png").write_bytes(plain[:place] + profile * (MAX_CHUNKS + 1) + plain[place:])
        refused(tmp_path / "a.png", "the PNG has more than 1,000 chunks besides its pixels")
    (tmp_path / "a.png").write_bytes(plain[:33] + png_chunk(b"IDAT", b"") * 210_000 + plain[33:])
    refused(tmp_path / "a.png", "far more parts")
    (tmp_path / "a.png").write_bytes(plain[:33] + png_chunk(b"tEXt", b"a\0b") * (MAX_CHUNKS - 9) + plain[33:])
    assert read_image(tmp_path / "a.png").shape == (8, 8, 3)


def test_a_ppm_of_comments_is_refused(tmp_path: Path) -> None:
    for comments in (MAX_COMMENTS, 100_000):
        (tmp_path / "a.ppm").write_bytes(b"P3 100 100 255\n" + b"#\n" * comments + b"1 " * 30_000)
        if comments == MAX_COMMENTS:
            assert read_image(tmp_path / "a.ppm").shape == (100, 100, 3)
        else:
            refused(tmp_path / "a.ppm", "more than 1,000 comments")


def test_a_tiff_of_millions_of_strips_is_refused(tmp_path: Path) -> None:
    strips = 4_000_001
    for big in (False, True):
        page = GREY_PAGE | {273: (4, [16] * strips), 279: (4, [1] * strips)}
        (tmp_path / "a.tif").write_bytes(tiff([page], bytes(64), big=big, order=">" if big else "<"))
        refused(tmp_path / "a.tif", "the TIFF has 4,000,001 strips or tiles")


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("following", [0, 80])  # the end, or the first page again
def test_only_the_pages_that_are_requested_are_looked_for(tmp_path: Path, big: bool, following: int) -> None:
    path, pixels = tmp_path / "a.tif", bytes(range(64))
    path.write_bytes(tiff([GREY_PAGE] * 5, pixels, big=big, following=following))
    assert read_image(path, in_channels=5).shape == (8, 8, 5)
    path.write_bytes(tiff([GREY_PAGE] * 50_000, pixels, big=big))

    def do() -> None:
        with pytest.raises(ImageError, match=r"the image has 1 channels; preprocess\.in_channels is 5"):
            read_image(path, in_channels=5)

    in_child(do, seconds=3)


@pytest.mark.parametrize("raised", [[], ["data.max_pixels_per_byte=1000000000"]])
def test_a_tiff_that_declares_terapixels_in_megabytes_is_refused_by_its_header(
    tmp_path: Path, raised: list[str]
) -> None:
    path, chosen = tmp_path / "a.tif", override(Settings(), [*TILED, *raised])
    path.write_bytes(tiled((4_000_000, 4_000_000), (8000, 8000)))
    reason = r"in 2,\d+,\d+ bytes, .*raise data\.max_pixels_per_byte" if not raised else "take 192,384 MB"

    def do() -> None:
        assert large.large_size(path, chosen) == (4_000_000, 4_000_000)
        with pytest.raises(ImageError, match=rf"a\.tif: .*{reason}"):
            large.open_windows(path, (800, 800), chosen)

    in_child(do, seconds=3, resident=100 * MB)


@pytest.mark.parametrize("compression", ["deflate", "webp", "lzw"])
def test_a_blank_slide_is_read_with_the_default_limits(tmp_path: Path, compression: str) -> None:
    path, side = tmp_path / "a.tif", 4096
    blank = (pyvips.Image.black(side, side, bands=3) + 255).cast("uchar").copy(interpretation="srgb")
    blank.tiffsave(str(path), tile=True, tile_width=512, tile_height=512, compression=compression)
    assert 3 * side**2 > 250 * path.stat().st_size
    window = large.open_windows(path, (800, 800), override(Settings(), TILED))(View(3000, 3000, 800, 800, (800, 800)))
    np.testing.assert_array_equal(window, 255)


def test_shared_tiles_are_read_within_the_limits(tmp_path: Path) -> None:
    path, chosen = tmp_path / "a.tif", override(Settings(), [*TILED, "data.max_pixels_per_byte=10000"])
    path.write_bytes(tiled((20_000, 20_000), (256, 256)))
    views = [View(top, left, 800, 800, (800, 800)) for top in (0, 9000, 19_200) for left in range(0, 19_200, 800)]

    def do() -> None:
        read = large.open_windows(path, (800, 800), chosen)
        assert not any(read(view).any() for view in views)

    in_child(do, resident=300 * MB)


def jpeg2000(side: int = 96, declared: int | None = None, layers: int | None = None, **options: Any) -> bytes:
    """Return a JPEG 2000 file of colour noise. Its header may declare another side of the picture, or more layers."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG2000", **options)
    data = bytearray(file.getvalue())
    sizes, coding = data.index(b"\xff\x4f\xff\x51") + 8, data.index(b"\xff\x52")
    if declared is not None:
        struct.pack_into(">2I", data, sizes, declared, declared)
        if "tile_size" not in options:
            struct.pack_into(">2I", data, sizes + 16, declared, declared)
        header = data.find(b"ihdr")
        if header >= 0:
            struct.pack_into(">2I", data, header + 4, declared, declared)
    if layers is not None:
        struct.pack_into(">H", data, coding + 6, layers)
    return bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        jpeg2000(declared=13_000, codeblock_size=(4, 4)),
        jpeg2000(declared=13_000, codeblock_size=(4, 4), no_jp2=True),
        jpeg2000(declared=13_000, codeblock_size=(4, 4), precinct_size=(4, 4)),
        jpeg2000(declared=13_000, precinct_size=(32, 32), codeblock_size=(16, 16), layers=2000),
        jpeg2000(declared=6000, precinct_size=(64, 64), codeblock_size=(32, 32), layers=65_535),
        jpeg2000(declared=13_000, tile_size=(32, 32), codeblock_size=(4, 4)),
    ],
    ids=["blocks", "without boxes", "precincts", "small precincts", "layers", "tiles"],
)
def test_a_jpeg_2000_of_millions_of_parts_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jp2"
    path.write_bytes(content)
    refused(path, "too many parts; if you trust the file, convert it")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"no_jp2": True},
        {"codeblock_size": (4, 4)},
        {"precinct_size": (64, 64), "codeblock_size": (32, 32)},
        {"tile_size": (16, 16), "quality_layers": [40, 20, 10, 5, 2]},
        {"irreversible": True, "progression": "RPCL", "num_resolutions": 3},
    ],
)
def test_a_jpeg_2000_of_usual_parts_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.jp2"
    path.write_bytes(jpeg2000(**options))
    assert read_image(path).shape == (96, 96, 3)


def test_the_codings_of_tile_parts_count(tmp_path: Path) -> None:
    """The header of the file has the usual code-blocks, and that of a tile the smallest."""
    data = bytearray(jpeg2000(declared=13_000, no_jp2=True))
    coding = data.index(b"\xff\x52")
    (length,) = struct.unpack_from(">H", data, coding + 2)
    own = bytearray(data[coding : coding + 2 + length])
    own[10:12] = b"\0\0"  # code-blocks of 4 x 4
    part, body = data.index(b"\xff\x90"), data.index(b"\xff\x93")
    (size,) = struct.unpack_from(">I", data, part + 6)
    struct.pack_into(">I", data, part + 6, size + len(own))
    data[body:body] = own
    path = tmp_path / "a.j2k"
    path.write_bytes(data)
    refused(tmp_path / "a.j2k", "too many parts")


@given(st.data())
def test_a_damaged_jpeg_2000_is_refused_or_left_to_the_decoder(data: st.DataObject) -> None:
    content = bytearray(jpeg2000(side=16, no_jp2=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(200, len(content) - 1)))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        check_jpeg2000(io.BytesIO(content[: data.draw(st.integers(0, len(content)))]), "")
