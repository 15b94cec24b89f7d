"""Pictures of more than `data.max_pixels` in windows; those of tiled TIFFs are read one by one."""

import struct
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
from PIL import Image

from rcnn.config import Settings, override
from rcnn.detector import Detector
from rcnn.errors import ImageError
from rcnn.images import large
from rcnn.images.decode import read_image
from rcnn.images.views import View
from rcnn.presets import build, settings_of
from tests.cli.conftest import SMALL, Outcome, run, weights
from tests.test_detector import same

__all__ = ["run", "weights"]  # fixtures

SIZE = (150, 170)
"""(height, width) of the pictures; windows are of 64 x 64."""
TILED = ["predict.tile=64", "data.max_pixels=20000"]
RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
HALVES = ("preprocess.mean=[0.5]", "preprocess.std=[0.5]")
GREY = ("preprocess.in_channels=1", *HALVES)
Run = Callable[..., Outcome]


def settings(*changes: str) -> Settings:
    return override(Settings(), [*TILED, *changes])


def tiff(path: Path, array: np.ndarray, **options: object) -> Path:
    tiles = {"tile": True, "tile_width": 32, "tile_height": 16}
    pyvips.Image.new_from_array(array).tiffsave(str(path), **tiles | options)
    return path


def windows_of(path: Path, chosen: Settings) -> np.ndarray:
    """Return the entire picture, assembled from windows that are read in any order."""
    whole = read_image(path, white=chosen.data.white, in_channels=chosen.preprocess.in_channels)
    size = (whole.shape[0], whole.shape[1])
    assert large.large_size(path, chosen) == size
    read, found = large.open_windows(path, (64, 64), chosen), np.zeros_like(whole)
    for top, left in product((size[0] - 64, 0, 60), (60, size[1] - 64, 0)):
        found[top : top + 64, left : left + 64] = read(View(top, left, 64, 64, (64, 64)))
    np.testing.assert_array_equal(found, whole)
    return found


@pytest.mark.parametrize("compression", ["none", "deflate"])
def test_windows_of_a_tiled_tiff_are_its_pixels(tmp_path: Path, compression: str) -> None:
    path = tiff(tmp_path / "a.tif", COLOUR, compression=compression)
    np.testing.assert_array_equal(windows_of(path, settings()), COLOUR)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("tile", [True, False])
def test_a_turned_tiff_is_upright(tmp_path: Path, orientation: int, tile: bool) -> None:
    image = pyvips.Image.new_from_array(COLOUR).copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    image.tiffsave(str(tmp_path / "a.tif"), tile=tile, tile_width=32, tile_height=16)
    windows_of(tmp_path / "a.tif", settings())


def test_grey_deep_transparent_and_many_channels(tmp_path: Path) -> None:
    grey = tiff(tmp_path / "grey.tif", COLOUR[..., 0])
    windows_of(grey, settings())
    windows_of(grey, settings(*GREY))
    windows_of(tiff(tmp_path / "colour.tif", COLOUR), settings(*GREY))
    deep = tiff(tmp_path / "deep.tif", COLOUR[..., 0].astype(np.uint16) * 16)
    windows_of(deep, settings("data.white=4095"))
    clear = np.dstack([COLOUR, np.where(COLOUR[..., :1] > 128, 255, 0).astype(np.uint8)])
    windows_of(tiff(tmp_path / "clear.tif", clear), settings())
    read = large.open_windows(tmp_path / "colour.tif", (64, 64), settings("preprocess.in_channels=5", *HALVES))
    with pytest.raises(ImageError, match=r"colour\.tif: the image has 3 channels; preprocess\.in_channels is 5"):
        read(View(0, 0, 64, 64, (64, 64)))


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "jpg"])
def test_other_formats_are_decoded_whole(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a.{suffix}"
    smooth = np.asarray(Image.fromarray(COLOUR[:15, :17]).resize(SIZE[::-1]))
    exif = Image.Exif()
    exif[0x0112] = 8
    more = {"exif": exif, "quality": 95, "subsampling": 0} if suffix == "jpg" else {"lossless": True}
    Image.fromarray(smooth).save(path, **more)
    if suffix == "jpg":
        read = large.open_windows(path, (64, 64), settings())
        found = read(View(0, 0, 64, 64, (64, 64))).astype(int)
        assert np.abs(found - read_image(path)[:64, :64]).mean() < 2  # another decoder
    else:
        windows_of(path, settings())
    monkeypatch.setattr(large, "MAX_WHOLE_PIXELS", 20_000)
    reason = rf"windows can only be read from a tiled TIFF; .*new_from_file\('a\.{suffix}'\)"
    with pytest.raises(ImageError, match=rf"a\.{suffix}: .* {reason}"):
        large.open_windows(path, (64, 64), settings())


def test_files_that_can_not_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiff(tmp_path / "a.tif", COLOUR)
    Image.fromarray(COLOUR).save(tmp_path / "a.bmp")
    for name, window in (("a.tif", SIZE), ("a.bmp", (64, 64))):
        with pytest.raises(ImageError, match=f"{name}: 170x150 is more than 20000 pixels"):
            large.open_windows(tmp_path / name, window, settings())
    content = path.read_bytes()
    with Image.open(path) as header:
        offsets = header.tag_v2[324]
    table = struct.pack(f"<{len(offsets)}I", *offsets)
    later = struct.pack(f"<{len(offsets)}I", *offsets[:-1], len(content))
    assert content.count(table) == 1
    (tmp_path / "cut.tif").write_bytes(content.replace(table, later))
    with pytest.raises(ImageError, match=r"cut\.tif: the file is cut off"):
        large.open_windows(tmp_path / "cut.tif", (64, 64), settings())
    tiff(tmp_path / "b.tif", COLOUR, compression="deflate")
    damaged = bytearray((tmp_path / "b.tif").read_bytes())
    damaged[-5000:-4000] = bytes(1000)
    (tmp_path / "b.tif").write_bytes(damaged)
    read = large.open_windows(tmp_path / "b.tif", (64, 64), settings())
    with pytest.raises(ImageError, match=r"b\.tif: the image can't be read: "):
        read(View(0, 0, *SIZE, SIZE))
    monkeypatch.setitem(sys.modules, "pyvips", None)
    with pytest.raises(ImageError, match=r"a\.tif: .* libvips, .* pip install 'rcnn\[large\]'"):
        large.open_windows(path, (64, 64), settings())


def test_a_file_read_by_windows_is_predicted_as_its_pixels_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    chosen = settings_of("mobilenet-fpn", [*SMALL, *TILED])
    detector = Detector(build(chosen, 2), chosen, ("a", "b"), threshold=0.0, device="cpu")
    path = tiff(tmp_path / "a.tif", COLOUR)
    Image.fromarray(COLOUR).save(tmp_path / "b.png")
    (expected,) = detector.predict(COLOUR)
    monkeypatch.setattr("rcnn.images.stream.read_picture", None)
    results = detector.predict([path, tmp_path / "b.png"], batch=4)
    assert all(same(result, expected) for result in results)
    assert len(expected) > 0
    assert same(*detector.propose(path), *detector.propose(COLOUR))


def test_a_command_predicts_it_without_drawing_it(run: Run, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tiff(tmp_path / "in/a.tif", COLOUR)
    Image.fromarray(COLOUR[:60, :80]).save(tmp_path / "in/b.png")
    Image.fromarray(COLOUR).save(tmp_path / "in/c.bmp")
    outcome = run("predict", weights, "in", *TILED, "--out", "out")
    assert outcome.code == 0, outcome.err
    assert "a.tif: not drawn, since 170x150 is more than data.max_pixels" in outcome.out
    assert "c.bmp: 170x150 is more than 20000 pixels" in outcome.out  # left out
    assert "b.png: 80x60 pixels" not in outcome.out
    assert [path.name for path in sorted((tmp_path / "out/drawn").iterdir())] == ["b.png"]
    assert run("predict", weights, "in/a.tif", "data.max_pixels=20000", "--out", "out").code == 3
