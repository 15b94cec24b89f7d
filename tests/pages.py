"""Fixtures of the tests of pages: folders of results of plain names and of hostile ones, and a browser."""

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from rcnn.cli.files import fresh_folder
from rcnn.config import to_yaml
from rcnn.data.dataset import Dataset, Record
from rcnn.detector import Detector
from rcnn.look.album import Album
from rcnn.look.guard import Guard
from rcnn.look.labels import LabelReview, VerdictFile
from rcnn.look.runs import Runs
from rcnn.look.server import application
from rcnn.look.thumbnails import Thumbnails
from rcnn.metrics.coco import coco_metrics
from rcnn.metrics.proposal_recall import proposal_recall
from rcnn.metrics.table import Metrics
from rcnn.metrics.types import Prediction, Truth
from rcnn.metrics.voc import voc_ap
from rcnn.presets import build, settings_of
from rcnn.report.page import keep_scores, write_report
from rcnn.report.scores import ScoredDetector

PLAIN = ("circle", "square", "star")
HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>{{7*7}}&amp;",
)
THRESHOLD = 0.35
HOST = "127.0.0.1:8765"
SIZE = (90, 120)


class Made(NamedTuple):
    """A folder of results and what it was made from."""

    folder: Path
    detector: Detector
    dataset: Dataset
    metrics: Metrics


def scored(folder: Path, names: tuple[str, ...], images: int = 14, seed: int = 0) -> tuple[Dataset, Metrics]:
    """Images of noise with random objects, and detections that find many of them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records, truths, predictions = [], [], []
    for index in range(images):
        file = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(file)
        corners = rng.uniform(0, 60, (4, 2))
        boxes = np.concatenate((corners, corners + rng.uniform(8, 30, (4, 2))), axis=1)
        labels, ignore = rng.integers(0, len(names), 4), rng.random(4) < 0.1
        moved = np.concatenate((boxes + rng.normal(0, 2, boxes.shape), boxes[:2] + 40))
        said = np.where(rng.random(6) < 0.8, np.concatenate((labels, labels[:2])), rng.integers(0, len(names), 6))
        records.append(Record(file, f"{names[index % len(names)]}/{index}.png", index, SIZE, boxes, labels, ignore))
        truths.append(Truth(boxes, labels, ignore))
        predictions.append(Prediction(moved, rng.random(6).round(3), said))
    dataset = Dataset(folder, "voc", "val", names, tuple(range(1, len(names) + 1)), tuple(records))
    proposals = [(prediction.boxes, prediction.scores) for prediction in predictions]
    number = len(names)
    coco, voc = coco_metrics(truths, predictions, number), voc_ap(truths, predictions, number)
    return dataset, Metrics(names, coco, voc, proposal_recall(truths, proposals), {}, truths, predictions)


def made(folder: Path, names: tuple[str, ...], seed: int = 0, images: int = 14, **changes: Any) -> Made:
    """The folder of a training of two epochs, as far as a page reads it."""
    dataset, metrics = scored(folder.parent / f"images-{folder.name}", names, images, seed)
    settings = settings_of("tiny-fpn", {"train": {"epochs": 2, **changes}, "data": {"path": f"/home/me/{names[0]}"}})
    detector = Detector(build(settings, len(names)), settings, names, threshold=THRESHOLD, device="cpu")
    folder.mkdir()
    rows = [
        {
            "epoch": epoch,
            "seconds": 60.0 * epoch,
            "train_rpn_box": 1 / epoch,
            "val_rpn_box": 2 / epoch,
            "ap": 0.3 * epoch,
        }
        for epoch in (1, 2)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(to_yaml(settings))
    (folder / "train.txt").write_text("a\nb\n")
    told = {
        "command": f"rcnn train {names[0]}",
        "python": "3.11",
        "packages": {"rcnn": names[1]},
        "processor": names[2],
        "threads": 1,
    }
    (folder / "environment.json").write_text(json.dumps(told))
    loss = {"count": 2, "by_class": {names[0]: 2}, "by_size": {"small": 2}, "ap_if_mended": 0.5}
    why = {
        "split": "val",
        "images": 14,
        "iou": 0.5,
        "score": 0.3,
        "objects": 50,
        "found": 48,
        "ap": 0.4,
        "advice": f"Look at {names[1]}.",
        "lost": {"no_box": loss},
        "false_alarms": {"duplicate": loss},
    }
    (folder / "why.json").write_text(json.dumps(why))
    keep_scores(folder, dataset, metrics, ScoredDetector.of(detector, epoch=2))
    write_report(folder)
    return Made(folder, detector, dataset, metrics)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("plain") / "shapes-1", PLAIN)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("other") / "shapes-2", PLAIN, seed=1, lr=0.5)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("hostile") / "a<b>&'\"", HOSTILE)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium: `CHROMIUM`, or on the PATH. Without one its tests are skipped, or fail if it has to be there."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        if os.environ.get("BROWSER_REQUIRED"):
            pytest.fail("no Chromium is found by CHROMIUM or on the PATH, and BROWSER_REQUIRED is set")
        pytest.skip("no Chromium is found by CHROMIUM or on the PATH; `apt-get install chromium` brings one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root, as in a container, has no other sandbox; the pages are files of these tests.
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Tab:
    """A page of a browser, in a context of its own: what it asks for and what it says.

    Attributes:
        page: the page. Its clock can be put forward.
        asked: addresses that it asked for, its own ones among them.
        said: messages on the console, faults and dialogs.
    """

    def __init__(self, browser: Any, **context: Any) -> None:
        self.page = browser.new_context(**context).new_page()
        self.page.clock.install()
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        for event in ("console", "pageerror", "dialog"):
            self.page.on(event, lambda message: self.said.append(str(message)))

    def open(self, address: str, ready: str = "body", width: int = 1280, scheme: str = "light") -> Any:
        """Show what is at an address, as soon as the page holds an element that says that it is ready."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)
        if "#" in address:
            self.leave()  # another fragment of the same address would not load it anew
        self.page.goto(address)
        self.page.wait_for_selector(ready)
        return self.page

    def enter(self, served: Any, path: str, ready: str = "body", **looks: Any) -> Any:
        """Show a page of a server of `test_look_browser.py`, which lets a browser in by its own address."""
        self.open(served.guard.address)
        return self.open(served.root + path, ready, **looks)

    def strangers(self, root: str) -> list[str]:
        """What was asked for elsewhere than below `root`."""
        return [address for address in self.asked if not address.startswith((root, "data:image/"))]

    def leave(self) -> None:
        """Show nothing; else the page would tell that its server has ended."""
        self.page.goto("about:blank")

    def close(self) -> None:
        self.page.context.close()


@pytest.fixture(scope="session")
def shared_tab(browser: Any) -> Iterator[Tab]:
    """What `tab` lends to one test after another, since a new one takes half a second."""
    tab = Tab(browser)
    yield tab
    tab.close()


@pytest.fixture(scope="session")
def shared_tab_without_policy(browser: Any) -> Iterator[Tab]:
    """What `tab_without_policy` lends."""
    tab = Tab(browser, bypass_csp=True)
    yield tab
    tab.close()


def lent(tab: Tab) -> Iterator[Tab]:
    """A tab that knows nothing of the test before; at the end it has said nothing."""
    tab.page.context.clear_cookies()
    tab.asked.clear()
    tab.said.clear()
    yield tab
    tab.leave()
    assert not tab.said


@pytest.fixture
def tab(shared_tab: Tab) -> Iterator[Tab]:
    """A tab as anybody opens one."""
    yield from lent(shared_tab)


@pytest.fixture
def tab_without_policy(shared_tab_without_policy: Tab) -> Iterator[Tab]:
    """A tab where scripts of the test may run in spite of the page's policy."""
    yield from lent(shared_tab_without_policy)


def png(seed: int = 0, size: tuple[int, int] = SIZE) -> bytes:
    """A picture of random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 255, (size[0] // 10, size[1] // 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks.repeat(10, axis=0).repeat(10, axis=1)).save(file, "PNG")
    return file.getvalue()


def coco(
    folder: Path,
    names: Sequence[str],
    splits: dict[str, Sequence[int]],
    objects: Callable[[Path, int], Iterable[tuple[list[float], int, bool]]],
    prefix: str = "",
) -> Path:
    """A COCO data set of pictures with these numbers; `objects` gives (box, label, is a crowd) of a picture."""
    categories = [{"id": 10 + label, "name": name} for label, name in enumerate(names)]
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    for split, numbers in splits.items():
        images, annotations = [], []
        for number in numbers:
            file = folder / f"images/{prefix}{number}.png"
            file.write_bytes(png(number))
            images.append({"id": number, "file_name": file.name, "height": SIZE[0], "width": SIZE[1]})
            for (left, top, right, bottom), label, crowd in objects(file, number):
                entry = {"id": len(annotations) + 1, "image_id": number, "iscrowd": int(crowd), "area": 400}
                box = [left, top, right - left, bottom - top]
                annotations.append({**entry, "category_id": 10 + label, "bbox": box})
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"annotations/{split}.json").write_text(json.dumps(document))
    return folder


def guarded(
    album: Album,
    folder: Path,
    host: str = HOST,
    log: Callable[[str], None] = lambda _: None,
    runs: Path | None = None,
) -> Guard:
    """The pages of an album, with everything that they write in a folder."""
    dropped = folder / "dropped"
    dropped.mkdir(exist_ok=True)
    return application(
        album,
        host,
        log,
        thumbnails=Thumbnails(folder / "cache"),
        dropped=dropped,
        review=LabelReview(album, lambda: fresh_folder(folder / "copy"), VerdictFile(folder / "verdicts")),
        runs=Runs(runs),
    )


def client_of(album: Album, folder: Path, **options: Any) -> TestClient:
    """A browser with access to the pages of an album, at the first of them."""
    guard = guarded(album, folder, **options)
    client = TestClient(guard, base_url=f"http://{HOST}")
    client.get(guard.address)
    return client


class Looked(NamedTuple):
    """What `rcnn look` shows: an album, opened and predicted, and its detector."""

    album: Album
    detector: Detector


@pytest.fixture(scope="session")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Looked:
    """A COCO data set of hostile names; some of its objects are where a detector of random weights sees them."""
    folder = tmp_path_factory.mktemp("looked") / "a<b>'"
    changes = {"preprocess": {"short": 96, "long": 128}, "roi": {"detections": 12}}
    settings = settings_of("tiny-fpn", changes)
    torch.manual_seed(0)
    detector = Detector(build(settings, len(HOSTILE)), settings, HOSTILE, threshold=0.25, device="cpu")
    rng = np.random.default_rng(0)

    def objects(file: Path, number: int) -> Iterator[tuple[list[float], int, bool]]:
        result = detector.predict(str(file), score=0)[0] if number % 4 else []
        for row in range(0, len(result), 4):
            label = int(result.labels[row]) if rng.random() < 0.8 else int(rng.integers(3))
            yield result.boxes[row].tolist(), label, False

    coco(folder, HOSTILE, {"train": range(9), "val": range(9, 12)}, objects, "<i>")
    album = Album(lambda: detector, folder)
    album.open()
    for index in range(len(album.pictures)):
        album.predict(index)
    return Looked(album, detector)
