"""Images with other channels or depths than three times 8 bits, in the commands that read and draw them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import NAMES, SMALL, Run, save_detector

XML = (
    "<annotation><object><name>{}</name><bndbox><xmin>11</xmin><ymin>11</ymin><xmax>50</xmax><ymax>40</ymax></bndbox>"
    "</object></annotation>"
)


def written(root: Path, save: Callable[[Path, np.ndarray], object], channels: int) -> Path:
    """A VOC folder of four images of 60 x 80 pixels whose left half is dark and right half bright."""
    root.mkdir()
    pixels = np.full((60, 80, channels), 40, np.uint8)
    pixels[:, 40:] = 250
    for index in range(4):
        save(root / str(index), pixels)
        (root / f"{index}.xml").write_text(XML.format(NAMES[index % 2]))
    return root


def brightness(picture: Path, box: tuple[int, int, int, int]) -> float:
    """Mean of the part of a picture within left, top, right, bottom."""
    with Image.open(picture) as image:
        return float(np.asarray(image.convert("L").crop(box)).mean())


@pytest.mark.parametrize("channels", [2, 5])
def test_arrays_of_n_channels_are_trained_on_scored_and_drawn(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    for name in ("confusion", "curves", "labels", "proposal_recall"):  # no image is in these
        monkeypatch.setattr(f"rcnn.training.run_pictures.plot_{name}", lambda *_, **__: None)
    monkeypatch.setattr("rcnn.training.recorders.standard.plot_history", lambda *_: None)
    data = written(tmp_path / "data", lambda path, pixels: np.save(path, pixels), channels)
    settings = [f"preprocess.in_channels={channels}", "preprocess.mean=[0.5]", "preprocess.std=[0.25]"]
    if channels == 5:
        words = ("--model=tiny-fpn", "--epochs=1", "--batch=4", *SMALL, *settings)
        weights = run.json("train", data, *words)["best"]
    else:
        weights = save_detector(tmp_path / "two.safetensors", "tiny-fpn", *SMALL, *settings)
    for words in (
        ("predict", weights, data, "--score=1"),
        ("propose", weights, data, "--score=1", "--format=drawn", "--out=proposed"),
        ("val", weights, data),
        ("data", "show", data),
        ("data", "show", data, *settings),
    ):
        run.ok(*words)
    for folder in ("runs/predict", "proposed"):
        assert brightness(Path(folder, "drawn/0.npy.png"), (0, 0, 40, 60)) == pytest.approx(40, abs=1)
        assert brightness(Path(folder, "drawn/0.npy.png"), (40, 0, 80, 60)) == pytest.approx(250, abs=1)


def test_images_are_drawn_with_the_settings_that_read_them(run: Run, weights: Path, tmp_path: Path) -> None:
    """Images of twelve bits per pixel: with white at 65535 they would be drawn almost black."""

    def save(path: Path, pixels: np.ndarray) -> None:
        Image.fromarray((pixels[..., 0] / 255 * 4095).astype(np.uint16)).save(path.with_suffix(".png"))

    data = written(tmp_path / "data", save, 1)
    run.ok("predict", weights, data, "--score=1", "data.white=4095")
    assert brightness(Path("runs/predict/drawn/0.png"), (40, 0, 80, 60)) == pytest.approx(250, abs=1)
    run.fails(3, "80x60 is more than 4000 pixels", "predict", weights, data, "--on-fault=stop", "data.max_pixels=4000")
