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
from rcnn.look.server import bind
from rcnn.metrics.types import Prediction
from rcnn.report.gallery import judge
from tests.pages import HOSTILE, Looked, Tab, guarded, png
from tests.report.test_browser import OVERLAPPING, assert_open_to_all

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
    place = bind("127.0.0.1", 21000)
    host = f"127.0.0.1:{place.getsockname()[1]}"
    guard = guarded(album, folder, host, runs=runs)
    server = uvicorn.Server(uvicorn.Config(guard, log_level="error", ws="none", lifespan="off", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    return Served(guard, server, thread)


def stop(served: Served) -> None:
    served.guard.ending.set()
    served.server.should_exit = served.server.force_exit = True
    served.thread.join(10)


@pytest.fixture(scope="module")
def served(looked: Looked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = start(looked.album, tmp_path_factory.mktemp("served"))
    yield served
    stop(served)


def ready(path: str) -> str:
    """What a page holds as soon as it is ready."""
    return ".tile .numbers b" if path == "/pictures" else "#layers input"


@pytest.fixture
def show(tab: Tab, served: Served) -> Iterator[Open]:
    """Open a page of the server; at the end nothing else was asked for."""
    yield lambda path="/pictures", **looks: tab.enter(served, path, ready(path), **looks)
    assert not tab.strangers(served.root)


def until(locator: Any) -> Any:
    """Wait for what is expected of an element."""
    from playwright.sync_api import expect

    return expect(locator)


def counts(page: Any) -> list[int]:
    """Right, wrong and lost, as the layers say."""
    return [int(text) for text in page.locator("#layers .number").all_inner_texts()[:3]]


def expected(looked: Looked, place: int, score: float, nms: float | None = None) -> list[int]:
    picture, detector = looked.album.pictures[place], looked.detector
    assert picture.truth is not None
    other = detector if nms is None else detector.with_settings([f"roi.nms={nms}"])
    (result,) = other.predict(str(picture.path), score=0)
    judged = judge(place, picture.truth, Prediction(result.boxes, result.scores, result.labels), score)
    return [int(judged.right.sum()), int((~judged.right).sum()), len(judged.lost)]


def test_counts_follow_score_and_nms_as_the_library_counts(looked: Looked, show: Open) -> None:
    page = show("/pictures/1")
    score, nms = page.get_by_label("score from"), page.get_by_label("IoU of NMS")
    scores = looked.album.judged[1].prediction.scores
    for value in (0.05, round(float(np.median(scores)), 3), 0.9):
        score.fill(str(value))
        assert counts(page) == expected(looked, 1, value)
    score.fill("0.05")
    for value in (0.1, 0.9, 0.5):
        nms.fill(str(value))
        wanted = [str(number) for number in expected(looked, 1, 0.05, value)]
        until(page.locator("#layers .number")).to_have_text([*wanted, str(len(looked.album.pictures[1].truth.boxes))])
    assert "score=0.05" in page.url


def test_filters_keys_and_the_back_button(looked: Looked, show: Open) -> None:
    page = show()
    assert page.locator(".tile").count() == len(looked.album.pictures)
    page.get_by_label("mistake").select_option("lost")
    until(page.locator("#count")).to_contain_text(" of ")
    places = page.evaluate("[...document.querySelectorAll('.tile')].map(tile => Number(tile.dataset.index))")
    lost = [place for place in range(12) if expected(looked, place, 0.25)[2]]
    assert places == lost
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
    place = int(page.url.partition("?")[0].rsplit("/", 1)[1])
    sure = looked.album.judged[place].prediction.scores >= np.float32(0.25)
    assert counts(page) == [sure.sum()]


@pytest.mark.parametrize("width", [1280, 2560])
def test_nothing_overlaps_or_sticks_out(show: Open, width: int) -> None:
    for path in ("/pictures", "/pictures/1"):
        page = show(path, width=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        parents = "body, main, section, header, form, aside, .tile a, .split, #sliders, #layers"
        assert not page.evaluate(OVERLAPPING.replace("body, main, section, .side", f"{parents}, .side"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(tab_without_policy: Tab, served: Served, scheme: str) -> None:
    for path in ("/pictures", "/pictures/1"):
        assert_open_to_all(tab_without_policy.enter(served, path, ready(path), scheme=scheme), scheme)
    assert not tab_without_policy.strangers(served.root)


def test_a_server_that_has_gone_is_told_of(tab: Tab, looked: Looked, tmp_path: Path) -> None:
    served = start(looked.album, tmp_path)
    page = tab.open(served.guard.address, ".tile .numbers b")
    stop(served)
    page.clock.fast_forward(2000)
    page.wait_for_selector("#gone:not([hidden])")
    tab.said.clear()  # the browser says that nobody answers


def test_the_boxes_follow_a_slider_that_is_dragged(looked: Looked, tab: Tab, show: Open) -> None:
    """One question at a time, however fast the slider moves, and the last value counts."""
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
    wanted = [str(number) for number in expected(looked, 1, 0.05, 0.9)]
    until(page.locator("#layers .number")).to_have_text([*wanted, str(len(looked.album.pictures[1].truth.boxes))])
    assert len([url for url in tab.asked if "nms=" in url]) <= 11
