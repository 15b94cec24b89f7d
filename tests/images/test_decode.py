import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rcnn.errors import ImageError
from rcnn.images import decode
from rcnn.images.decode import Look, as_array, image_size, read_rgb, verify_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def read_image(path: Path, *, in_channels: int | None = 3, **more: int) -> np.ndarray:
    """Call `decode.read_image`. With three channels, check that `read_rgb` gives the same pixels and errors."""
    try:
        array = decode.read_image(path, in_channels=in_channels, **more)
    except ImageError as error:
        if in_channels == 3:
            with pytest.raises(ImageError, match=re.escape(str(error))):
                read_rgb(path, **more)
        raise
    if in_channels == 3:
        np.testing.assert_array_equal(np.array(read_rgb(path, **more)), array)
    return array


def saved(path: Path, image: Image.Image, **more: object) -> Path:
    image.save(path, **more)
    return path


PALETTE = Image.fromarray(COLOUR).quantize(8)


@pytest.mark.parametrize(
    ("image", "in_channels", "expected", "tolerance"),
    [
        (Image.fromarray(COLOUR), 3, COLOUR, 0),
        (Image.fromarray(COLOUR), 1, (COLOUR @ [0.299, 0.587, 0.114])[..., None], 1),
        (Image.fromarray(GREY), 3, np.dstack([GREY] * 3), 0),
        (Image.fromarray(GREY), 1, GREY[..., None], 0),
        (Image.fromarray(GREY > 127), 3, np.dstack([(GREY > 127) * 255] * 3), 0),
        (PALETTE, 3, np.array(PALETTE.convert("RGB")), 0),
    ],
    ids=["colour", "colour to grey", "grey to colour", "grey", "one bit", "palette"],
)
def test_colours_are_kept_or_converted(
    tmp_path: Path, image: Image.Image, in_channels: int, expected: np.ndarray, tolerance: float
) -> None:
    array = read_image(saved(tmp_path / "a.png", image), in_channels=in_channels)
    assert array.dtype == np.uint8
    assert array.flags.writeable
    np.testing.assert_allclose(array, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("transparency", [2, b"\xff\x80\x00"])
def test_transparent_palette_is_composed_onto_white(tmp_path: Path, transparency: object) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode=None).convert("P")
    image.putpalette([10, 20, 30, 100, 100, 100, 0, 0, 0])
    path = saved(tmp_path / "a.png", image, transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        array = read_image(path)
    assert array[0, 0].tolist() == [10, 20, 30]
    assert array[0, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composed_onto_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (3, 1), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    image.putpixel((1, 0), (100, 100, 100, 255) if mode == "RGBA" else (100, 255))
    image.putpixel((2, 0), (0, 0, 0, 51) if mode == "RGBA" else (0, 51))
    path = saved(tmp_path / "a.png", image)
    assert read_image(path)[0, :, 0].tolist() == [255, 100, 204]
    assert read_image(path, in_channels=1)[0, :, 0].tolist() == [255, 100, 204]
    assert verify_image(path) == Look(transparent=True)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "P"])
def test_opaque_images_are_not_called_transparent(tmp_path: Path, mode: str) -> None:
    assert verify_image(saved(tmp_path / "a.png", Image.fromarray(COLOUR).convert(mode))) == Look()


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    array = read_image(saved(tmp_path / "a.jpg", image, quality=95))
    assert array.shape == (16, 16, 3)
    np.testing.assert_allclose(array[8, 8], [255, 0, 0], atol=6)


@pytest.mark.parametrize(("suffix", "mode"), [("png", "I;16"), ("tif", "I;16"), ("tif", "I;16B")])
def test_16_bit_is_scaled_not_cut(tmp_path: Path, suffix: str, mode: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    data = values.astype(">u2" if mode.endswith("B") else "<u2").tobytes()
    path = saved(tmp_path / f"a.{suffix}", Image.frombytes(mode, (4, 1), data))
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert read_image(path, white=32896)[0, :, 2].tolist() == [0, 2, 255, 255]
    assert verify_image(path) == Look(largest=65535)


def test_32_bit_integers_are_scaled_as_16_bit(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, 4095]], dtype=np.int32)))
    assert read_image(path, white=4095)[0, :, 0].tolist() == [0, 255]


def test_floats_must_lie_in_0_to_1(tmp_path: Path) -> None:
    good = saved(tmp_path / "good.tif", Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)))
    assert read_image(good)[0, :, 0].tolist() == [0, 128, 255]
    for name, values, reason in (("large", [[0.0, 200.0]], "0 to 200"), ("nan", [[0.0, np.nan]], "not finite")):
        bad = saved(tmp_path / f"{name}.tif", Image.fromarray(np.array(values, dtype=np.float32)))
        with pytest.raises(ImageError, match=reason):
            read_image(bad)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_rotation_is_applied_to_pixels_and_size(tmp_path: Path, orientation: int, suffix: str) -> None:
    corner = np.zeros((16, 32, 3), dtype=np.uint8)
    corner[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(corner), exif=exif)
    array = read_image(path)
    turns = [corner, corner[:, ::-1], corner[::-1, ::-1], corner[::-1]]
    across = [side.transpose(1, 0, 2) for side in turns]
    # By the EXIF standard, 5 and 7 mirror along a diagonal, 6 and 8 turn by 90 degrees.
    expected = [*turns, across[0], across[3], across[2], across[1]][orientation - 1]
    assert array.shape == expected.shape
    np.testing.assert_allclose(array.astype(int), expected, atol=12)
    assert image_size(path) == expected.shape[:2]


def test_damaged_exif_does_not_hide_good_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(COLOUR), exif=b"Exif\x00\x00MM\x00*garbage")
    assert read_image(path).shape == (6, 9, 3)
    assert image_size(path) == (6, 9)


def test_an_image_in_memory_follows_the_same_rules() -> None:
    np.testing.assert_array_equal(as_array(COLOUR), COLOUR)
    np.testing.assert_array_equal(as_array(torch.from_numpy(COLOUR).permute(2, 0, 1)), COLOUR)
    np.testing.assert_array_equal(as_array(torch.from_numpy(COLOUR).permute(2, 0, 1) / 255), COLOUR)
    np.testing.assert_array_equal(as_array(Image.fromarray(GREY), 1), GREY[..., None])
    np.testing.assert_array_equal(as_array(COLOUR.astype(np.uint16) * 257), COLOUR)
    with pytest.raises(ImageError, match="0 to 255"):
        as_array(np.linspace(0, 255, 30).reshape(5, 6))
    with pytest.raises(ImageError, match=r"shape \(4,\)"):
        as_array(np.zeros(4, dtype=np.uint8))


def test_arrays_of_any_number_of_channels(tmp_path: Path) -> None:
    cube = RNG.integers(0, 256, (6, 9, 5), dtype=np.uint8)
    np.save(tmp_path / "a.npy", cube)
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy", in_channels=5), cube)
    assert image_size(tmp_path / "a.npy") == (6, 9)
    with pytest.raises(ImageError, match="5 channels"):
        read_image(tmp_path / "a.npy")


def test_bands_and_pages_make_channels(tmp_path: Path) -> None:
    four = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)
    bands = saved(tmp_path / "bands.tif", Image.fromarray(four, mode=None))
    np.testing.assert_array_equal(read_image(bands, in_channels=4), four)
    pages = [Image.fromarray(four[..., band]) for band in range(4)] + [Image.fromarray(GREY)]
    stack = saved(tmp_path / "pages.tif", pages[0], save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(stack, in_channels=5), np.dstack([four, GREY]))


def test_arrays_with_objects_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"a\.npy"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "gif", "webp"])
def test_truncated_files_are_refused_whatever_is_missing(tmp_path: Path, suffix: str) -> None:
    pixels = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(pixels))
    content = path.read_bytes()
    for share in (0.05, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(ImageError, match=f"a.{suffix}"):
            read_image(path)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jpg", b"", "the file is empty"),
        ("a.jpg", b"hello, I am text", "this is not an image"),
        ("nowhere.jpg", None, "there is no such file"),
        ("bomb.png", png_header(100_000, 100_000), "100000x100000 .*max_pixels"),
    ],
)
def test_a_file_that_is_not_an_image_or_too_large_is_named(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for read in (read_image, image_size, verify_image):
        with pytest.raises(ImageError, match=f"{name}: {reason}"):
            read(tmp_path / name)


def test_the_limit_is_an_argument_and_pillows_own_stays(tmp_path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    path = saved(tmp_path / "a.png", Image.fromarray(COLOUR))
    assert read_image(path, max_pixels=54).shape == (6, 9, 3)
    with pytest.raises(ImageError, match="53 pixels"):
        read_image(path, max_pixels=53)
    huge = tmp_path / "huge.png"
    huge.write_bytes(png_header(20_000, 20_000))
    assert image_size(huge, max_pixels=10**9) == (20_000, 20_000)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("size", [(1, 1), (1, 1000)])
def test_the_smallest_images_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", size))
    assert read_image(path).shape == (size[1], size[0], 3)
