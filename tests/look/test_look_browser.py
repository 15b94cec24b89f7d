"""The pages of `rcnn look` in a real browser, from a server in a thread of this process."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import uvicorn

from rcnn.look.album import Album
from rcnn.look.guard import Guard
from rcnn.look.server import LookServer, bind
from rcnn.metrics.types import Prediction
from rcnn.report.gallery import judge
from tests.pages import HOSTILE, Looked, Tab, assert_accessible, assert_fits, guarded, png

Open = Callable[..., Any]


class Served(NamedTuple):
    """A server in a thread."""

    guard: Guard
    server: uvicorn.Server
    thread: threading.Thread

    @property
    def root(self) -> str:
        return f"http://{self.guard.host}"


def start(album: Album, folder: Path, runs: Path | None = None) -> Served:
    bound = bind("127.0.0.1", 21000)
    host = f"127.0.0.1:{bound.getsockname()[1]}"
    guard = guarded(album, folder, host, runs=runs)
    server = LookServer(guard)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    return Served(guard, server, thread)


def stop(served: Served) -> None:
    served.guard.ending.set()
    served.server.should_exit = served.server.force_exit = True
    served.thread.join(10)


def serving(album: Album, folder: Path, runs: Path | None = None) -> Iterator[Served]:
    """Yield a server for a fixture."""
    served = start(album, folder, runs)
    yield served
    stop(served)


@pytest.fixture(scope="module")
def served(looked: Looked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serving(looked.album, tmp_path_factory.mktemp("served"))


def ready(path: str) -> str:
    """Return the selector of an element that a page has when it is ready."""
    return ".tile .numbers b" if path == "/pictures" else "#layers input"


@pytest.fixture
def show(tab: Tab, served: Served) -> Iterator[Open]:
    """Open a page of the server, and check at the end that it made no other requests."""
    yield lambda path="/pictures", **looks: tab.enter(served, path, ready(path), **looks)
    assert not tab.strangers(served.root)


def until(locator: Any) -> Any:
    """Return the expectations of an element, which wait."""
    from playwright.sync_api import expect

    return expect(locator)


def counts(page: Any) -> list[int]:
    """Return the right, wrong and lost boxes in the list of layers."""
    return [int(text) for text in page.locator("#layers .number").all_inner_texts()[:3]]


def expected(looked: Looked, index: int, score: float, nms: float | None = None) -> list[int]:
    picture, detector = looked.album.pictures[index], looked.detector
    assert picture.truth is not None
    other = detector if nms is None else detector.with_settings([f"roi.nms={nms}"])
    (result,) = other.predict(str(picture.path), score=0)
    judged = judge(index, picture.truth, Prediction(result.boxes, result.scores, result.labels), score)
    return [int(judged.right.sum()), int((~judged.right).sum()), len(judged.lost)]


def layers(looked: Looked, index: int, score: float, nms: float) -> list[str]:
    """Return the numbers in the list of layers: right, wrong and lost boxes, and objects."""
    objects = len(looked.album.pictures[index].truth.boxes)  # type: ignore[union-attr]
    return [str(number) for number in (*expected(looked, index, score, nms), objects)]


def test_counts_follow_score_and_nms(looked: Looked, show: Open) -> None:
    page = show("/pictures/1")
    score, nms = page.get_by_label("score from"), page.get_by_label("IoU of NMS")
    scores = looked.album.judged[1].prediction.scores
    for value in (0.05, round(float(np.median(scores)), 3), 0.9):
        score.fill(str(value))
        assert counts(page) == expected(looked, 1, value)
    score.fill("0.05")
    for value in (0.1, 0.9, 0.5):
        nms.fill(str(value))
        until(page.locator("#layers .number")).to_have_text(layers(looked, 1, 0.05, value))
    assert "score=0.05" in page.url


def test_filters_keys_and_the_back_button(looked: Looked, show: Open) -> None:
    page = show()
    assert page.locator(".tile").count() == len(looked.album.pictures)
    page.get_by_label("mistake").select_option("lost")
    until(page.locator("#count")).to_contain_text(" of ")
    lost = [index for index in range(12) if expected(looked, index, 0.25)[2]]
    assert page.evaluate("[...document.querySelectorAll('.tile')].map(tile => Number(tile.dataset.index))") == lost
    page.locator(".tile a").first.click()
    page.wait_for_selector("#layers input")
    assert f"/pictures/{lost[0]}?mistake=lost" in page.url
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/pictures/{lost[1]}?*")
    until(page.locator("#name")).to_have_text(looked.album.pictures[lost[1]].name)
    page.keyboard.press("+")
    view = page.locator("#stage svg").get_attribute("viewBox")
    assert float(view.split()[2]) < 120
    page.keyboard.press("0")
    assert page.locator("#stage svg").get_attribute("viewBox") == "0 0 120 90"
    page.keyboard.press("t")
    assert page.locator("#stage rect.truth").count() > 0
    page.go_back()
    page.wait_for_selector("#wall-page:not([hidden]) .tile")
    assert page.get_by_label("mistake").input_value() == "lost"
    page.go_forward()
    page.wait_for_selector("#large-page:not([hidden])")
    page.keyboard.press("Escape")
    page.wait_for_selector("#wall-page:not([hidden])")


def test_a_dropped_picture_opens_with_its_detections(looked: Looked, show: Open) -> None:
    page = show()
    page.evaluate(
        """([bytes, name]) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
          window.dispatchEvent(new DragEvent("dragover", { dataTransfer: data, cancelable: true }));
          window.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
        }""",
        [list(png(seed=9)), HOSTILE[1]],
    )
    page.wait_for_selector("#large-page:not([hidden]) #layers input")
    assert page.locator("#name").inner_text() == HOSTILE[1]
    index = int(page.url.partition("?")[0].rsplit("/", 1)[1])
    sure = looked.album.judged[index].prediction.scores >= np.float32(0.25)
    assert counts(page) == [sure.sum()]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (2560, "light")])
def test_nothing_overlaps_and_the_page_is_accessible(
    tab_without_policy: Tab, served: Served, width: int, scheme: str
) -> None:
    for path in ("/pictures", "/pictures/1"):
        page = tab_without_policy.enter(served, path, ready(path), width=width, scheme=scheme)
        assert_fits(page, width)
        if width == 1280:
            assert_accessible(page, scheme)
    assert not tab_without_policy.strangers(served.root)


def test_the_page_notices_that_the_server_has_ended(tab: Tab, looked: Looked, tmp_path: Path) -> None:
    served = start(looked.album, tmp_path)
    page = tab.open(served.guard.address, ".tile .numbers b")
    stop(served)
    page.clock.fast_forward(2000)
    page.wait_for_selector("#gone:not([hidden])")
    tab.said.clear()  # the browser reports the refused connection


def test_the_boxes_follow_a_slider_that_is_dragged(looked: Looked, tab: Tab, show: Open) -> None:
    """The page sends one request at a time, and shows the last value."""
    page = show("/pictures/1?score=0.05")
    page.evaluate(
        """async () => {
          const input = [...document.querySelectorAll("#sliders input")].at(-1);
          for (let value = 10; value <= 90; value++) {
            input.value = value / 100;
            input.dispatchEvent(new Event("input", { bubbles: true }));
            if (value % 10 === 0) await new Promise((go) => setTimeout(go, 10));
          }
        }"""
    )
    until(page.locator("#layers .number")).to_have_text(layers(looked, 1, 0.05, 0.9))
    assert len([url for url in tab.asked if "nms=" in url]) <= 11
