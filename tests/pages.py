"""Fixtures of the tests of pages: folders of results with plain and with hostile names, and a browser."""

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
    """Return images of noise with random objects, and the scores of detections that find many of them."""
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
        predicted = np.where(rng.random(6) < 0.8, np.concatenate((labels, labels[:2])), rng.integers(0, len(names), 6))
        records.append(Record(file, f"{names[index % len(names)]}/{index}.png", index, SIZE, boxes, labels, ignore))
        truths.append(Truth(boxes, labels, ignore))
        predictions.append(Prediction(moved, rng.random(6).round(3), predicted))
    dataset = Dataset(folder, "voc", "val", names, tuple(range(1, len(names) + 1)), tuple(records))
    proposals = [(prediction.boxes, prediction.scores) for prediction in predictions]
    number = len(names)
    coco, voc = coco_metrics(truths, predictions, number), voc_ap(truths, predictions, number)
    return dataset, Metrics(names, coco, voc, proposal_recall(truths, proposals), {}, truths, predictions)


def made(folder: Path, names: tuple[str, ...], seed: int = 0, images: int = 14, **changes: Any) -> Made:
    """Write the files of a training of two epochs that a page reads."""
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
    environment = {
        "command": f"rcnn train {names[0]}",
        "python": "3.11",
        "packages": {"rcnn": names[1]},
        "processor": names[2],
        "threads": 1,
    }
    (folder / "environment.json").write_text(json.dumps(environment))
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
    """Chromium, from `CHROMIUM` or the PATH. Without it the tests are skipped, or fail if it is required."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        if os.environ.get("BROWSER_REQUIRED"):
            pytest.fail("no Chromium is found by CHROMIUM or on the PATH, and BROWSER_REQUIRED is set")
        pytest.skip("no Chromium is found by CHROMIUM or on the PATH; `apt-get install chromium` brings one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Root, as in a container, has no sandbox, and the pages come only from these tests.
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Tab:
    """A page of a browser in a separate context, with its requests and messages.

    Attributes:
        page: the page, whose clock can be moved forward.
        asked: addresses of its requests, including its own address.
        said: its console messages, errors and dialogs.
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
        """Open an address, and wait for the element `ready`."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)
        if "#" in address:
            self.leave()  # another fragment of the same address would not reload the page
        self.page.goto(address)
        self.page.wait_for_selector(ready)
        return self.page

    def enter(self, served: Any, path: str, ready: str = "body", **looks: Any) -> Any:
        """Open a page of a `Served` of `test_look_browser.py`, after the address that admits the browser."""
        self.open(served.guard.address)
        return self.open(served.root + path, ready, **looks)

    def strangers(self, root: str) -> list[str]:
        """Return the requests outside `root`."""
        return [address for address in self.asked if not address.startswith((root, "data:image/"))]

    def leave(self) -> None:
        """Open an empty page, so that the last one does not report that its server has ended."""
        self.page.goto("about:blank")

    def close(self) -> None:
        self.page.context.close()


@pytest.fixture(scope="session")
def shared_tab(browser: Any) -> Iterator[Tab]:
    """The tab that the tests share, since a new one takes half a second."""
    tab = Tab(browser)
    yield tab
    tab.close()


@pytest.fixture(scope="session")
def shared_tab_without_policy(browser: Any) -> Iterator[Tab]:
    """As `shared_tab`, without content policies."""
    tab = Tab(browser, bypass_csp=True)
    yield tab
    tab.close()


def lent(tab: Tab) -> Iterator[Tab]:
    """Reset a shared tab, and check at the end that it has no messages."""
    tab.page.context.clear_cookies()
    tab.asked.clear()
    tab.said.clear()
    yield tab
    tab.leave()
    assert not tab.said


@pytest.fixture
def tab(shared_tab: Tab) -> Iterator[Tab]:
    """A tab with the content policies of its pages."""
    yield from lent(shared_tab)


@pytest.fixture
def tab_without_policy(shared_tab_without_policy: Tab) -> Iterator[Tab]:
    """A tab in which scripts of the test may run in spite of the content policy."""
    yield from lent(shared_tab_without_policy)


OVERLAPPING = """() => {
  const found = [];
  const parents = "body, main, section, header, form, aside, .side, .panel, .charts, .pictures, .control, .tiles, "
    + ".tile a, .verdicts, .split, #panel, #views, #sliders, #layers";
  for (const parent of document.querySelectorAll(parents)) {
    const boxes = [...parent.children].map((child) => [child, child.getBoundingClientRect()])
      .filter(([child, box]) => box.width && box.height && !child.matches(".skip"));
    boxes.forEach(([one, a], index) => {
      for (const [other, b] of boxes.slice(index + 1)) {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 1 && down > 1) found.push(`${one.outerHTML.slice(0, 80)} / ${other.outerHTML.slice(0, 80)}`);
      }
    });
  }
  return found;
}"""


def assert_fits(page: Any, width: int) -> None:
    """Check that nothing overlaps, and that nothing is wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not page.evaluate(OVERLAPPING)


def assert_accessible(page: Any, scheme: str) -> None:
    """Check that axe-core finds no serious fault. The dark scheme differs only in its colours."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"], **({"runOnly": ["color-contrast"]} if scheme == "dark" else {})}
    faults = Axe().run(page, options=options).response["violations"]
    serious = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
    assert not [(fault["id"], fault["nodes"][0]["html"]) for fault in serious]


def png(seed: int = 0, size: tuple[int, int] = SIZE) -> bytes:
    """Return a picture of random blocks."""
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
    """Write a COCO data set of numbered pictures; `objects` returns (box, label, is a crowd) of a picture."""
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
    """Return the pages of an album, which write everything into a folder."""
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
    """Return a client with access to the pages of an album."""
    guard = guarded(album, folder, **options)
    client = TestClient(guard, base_url=f"http://{HOST}")
    client.get(guard.address)
    return client


class Looked(NamedTuple):
    """An album, opened and predicted, and its detector."""

    album: Album
    detector: Detector


@pytest.fixture(scope="session")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Looked:
    """A COCO data set with hostile names. Some of its objects are detections of the detector, which is untrained."""
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
