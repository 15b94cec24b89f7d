"""Reading, the network and the use of results overlap, without an effect on order or results."""

import io
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


def read(images: object, skip: list[str] | None = None) -> list[tuple[str, int]]:
    """Return (name, brightness) of each image that can be read; append the messages of the others to `skip`."""
    opened = stream.overlapped(
        images,
        SETTINGS,
        PREPROCESSOR,
        VIEWER.views,
        2,
        brightness,
        None if skip is None else lambda error: skip.append(str(error)),
        CPU,
    )
    return [(image.origin.name, made) for image, (made,) in opened]


def test_encoded_images_file_objects_and_pairs_with_keys_are_read_as_their_files(folder: Path) -> None:
    file = folder / "3.png"
    content = file.read_bytes()
    ((_, expected),) = read(file)
    for image in (content, bytearray(content), memoryview(content), io.BytesIO(content)):
        assert read(image) == read([image if isinstance(image, bytes) else content]) == [("", expected)]
    with file.open("rb") as opened:
        assert read(opened) == [(str(file), expected)]
    pairs = [("a", content), (7, file), ("c", str(file)), ("d", np.full((32, 32, 3), 30, np.uint8))]
    assert read(iter(pairs)) == [(key, expected) for key in ("a", "7", "c", "d")]


def test_unreadable_images_in_memory_are_left_out_with_their_key(folder: Path) -> None:
    content = (folder / "3.png").read_bytes()
    closed, errors = io.BytesIO(content), list[str]()
    closed.close()
    texts = {
        "cut": (content[:60], "cut: the image can't be read"),
        "empty": (b"", "empty: the file is empty"),
        "text": (io.StringIO("a"), "text: the file object returns text; open the file in binary mode"),
        "closed": (closed, "closed: the file object can't be read"),
        "foreign": (b"%PDF-1.4", "foreign: this is PDF: convert it to PNG or JPEG"),
        "several": ([content, content], "several: expected one image with this key, got a list"),
        "number": (5, "number: int is not an image"),
        "missing": (folder / "9.png", f"{folder / '9.png'}: there is no such file"),
    }
    images = [("good", content), *((key, image) for key, (image, _) in texts.items()), content[:50], ("last", content)]
    assert [name for name, _ in read(images, errors)] == ["good", "last"]
    assert len(errors) == len(texts) + 1
    for found, (_, start) in zip(errors, texts.values(), strict=False):
        assert found.startswith(start)
