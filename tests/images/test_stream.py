"""Reading, the network and the use of results overlap, without an effect on order or results."""

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rcnn.images.stream as stream
from rcnn.config import Settings, override
from rcnn.images.batch import Preprocessor, Size
from rcnn.images.views import Viewer, Views, WindowGrid
from rcnn.model.structures import Batch

SETTINGS = override(Settings(), ["preprocess.short=32", "preprocess.long=64"])
PREPROCESSOR = Preprocessor(SETTINGS.preprocess)
VIEWER = Viewer(PREPROCESSOR, SETTINGS, None)
CPU = torch.device("cpu")
PATIENCE = 20
"""Seconds that a step waits for another one that should be running; only a failing test waits so long."""


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "spare_cores", lambda: 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(8):
        pixels = np.full((32 + 16 * (number // 4), 32, 3), 10 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def brightness(batch: Batch, _: Sequence[str | None]) -> list[int]:
    return [int(image.max()) for image in batch.images]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("limit", [1, 3])
def test_order_and_results_are_those_of_one_after_another(folder: Path, limit: int, device: str) -> None:
    for count in (1, 2):
        scales = (1.0, 0.5)[:count]
        views = partial(VIEWER.views, scales=scales)
        results = stream.overlapped(
            folder, SETTINGS, PREPROCESSOR, views, limit, brightness, None, torch.device(device)
        )
        expected = [(str(folder / f"{number}.png"), (10 * number,) * count) for number in range(8)]
        assert [(opened.path, made) for opened, made in results] == expected


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_next_image_is_read_and_on_a_gpu_run_while_a_result_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    read, made = [threading.Event() for _ in range(8)], [threading.Event() for _ in range(8)]
    read_picture = stream.read_picture

    def note(path: Path, settings: Settings) -> np.ndarray:
        read[int(path.stem)].set()
        return read_picture(path, settings)

    def make(batch: Batch, paths: Sequence[str | None]) -> list[int]:
        number = brightness(batch, paths)[0] // 10
        assert read[min(number + 1, 7)].wait(PATIENCE), "the next image was not read meanwhile"
        made[number].set()
        return [number]

    monkeypatch.setattr(stream, "read_picture", note)
    results = stream.overlapped(folder, SETTINGS, PREPROCESSOR, VIEWER.views, 1, make, None, torch.device(device))
    for number, (_, result) in enumerate(results):
        assert result == (number,)
        if device == "cuda":
            assert made[min(number + 1, 7)].wait(PATIENCE), "the next image was not run meanwhile"
        else:
            assert not made[min(number + 1, 7)].is_set() or number == 7, "a CPU ran two at a time"


def test_images_of_an_iterator_are_taken_only_after_the_last_result_is_used() -> None:
    requested: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        for number in range(3):
            requested.append(number)
            yield np.full((32, 32, 3), number, dtype=np.uint8)

    overlapped = stream.overlapped(camera(), SETTINGS, PREPROCESSOR, VIEWER.views, 1, brightness, None, CPU)
    for number, (opened, results) in enumerate(overlapped):
        assert (opened.path, results) == (None, (number,))
        assert requested == list(range(number + 1))


def test_windows_of_several_images_share_batches_in_order_and_are_made_one_by_one(tmp_path: Path) -> None:
    def views(size: Size) -> Views:
        height, width = size
        return Views([WindowGrid(range(0, height, 64), range(0, width, 64), min(64, height), min(64, width), (32, 32))])

    sizes = [(64, 192), (32, 32), (128, 128), (64, 128)]
    for number, size in enumerate(sizes):
        pixels = np.full((*size, 3), 40 * number, dtype=np.uint8)
        pixels[:64, :64] += 5  # the first window is another
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    batches: list[list[int]] = []

    def make(batch: Batch, paths: Sequence[str | None]) -> list[int]:
        batches.append(brightness(batch, paths))
        return batches[-1]

    found = list(stream.overlapped(tmp_path, SETTINGS, PREPROCESSOR, views, 4, make, None, CPU))
    assert [Path(one.path or "").name for one, _ in found] == [f"{number}.png" for number in range(4)]
    assert [made for _, made in found] == [(5, 0, 0), (45,), (85, 80, 80, 80), (125, 120)]
    assert [made for batch in batches for made in batch] == [made for _, images in found for made in images]
    assert [len(batch) for batch in batches] == [4, 4, 2]  # all are resized to one size
    opened = next(iter(stream.read_opened(np.zeros((640, 640, 3), np.uint8), SETTINGS, PREPROCESSOR, views)))
    assert len(opened.views) == 100
    assert not isinstance(opened.pixels, Sequence)
