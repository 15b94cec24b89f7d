"""The pages of models that lack some of their content, and of no model at all."""

from pathlib import Path
from typing import Any

import pytest

from rcnn.detector import Detector
from rcnn.look.album import Album
from rcnn.presets import build, settings_of
from tests.pages import Tab
from tests.runtime import graphs

from .test_labels import data_of
from .test_look_browser import start, stop, until

NAMES = graphs.NAMES
CHANGES = {
    "one-stage": {"rpn": {"classify": "classes"}, "roi": {"head": "none"}},
    "proposals": {"roi": {"head": "none"}},
}


def detector_of(kind: str, folder: Path) -> Detector:
    if kind == "onnx":
        return Detector.load(graphs.WRITE["onnx"](folder / "a.onnx", graphs.detector()))
    settings = settings_of("tiny-fpn", {**CHANGES[kind], "preprocess": {"short": 64, "long": 96}})
    return Detector(build(settings, 2), settings, NAMES, threshold=0.0, device="cpu")


def texts(page: Any, root: str) -> dict[str, str]:
    """Return the text of each page, once it is complete."""
    found = {}
    for path, ready in (
        ("/pictures/0", "#layers input"),
        ("/explain/0", "#opening:not([hidden]):not(:has-text('Running the network')):not(:has-text('Reading')), dd"),
        ("/labels", "#suggestion:not([hidden]), #opening:not([hidden]):not(:has-text('Reading'))"),
        ("/runs", "#opening:has-text('There are no runs')"),
    ):
        page.goto(root + path)
        page.wait_for_selector(ready)
        found[path] = page.locator("main").inner_text()
    return found


@pytest.mark.parametrize("kind", ["onnx", "one-stage", "proposals"])
def test_each_page_reports_what_a_model_lacks(kind: str, tab: Tab, tmp_path: Path) -> None:
    detector = detector_of(kind, tmp_path)
    album = Album(lambda: detector, data_of(tmp_path / "data", NAMES))
    album.open()
    for index in range(3):
        album.predict(index)
    served = start(album, tmp_path)
    page = tab.open(served.guard.address)
    until(page.locator("#count")).to_contain_text("3 pictures")
    notes = page.locator("#notes").text_content()
    found = texts(page, served.root)
    tab.leave()
    stop(served)
    assert "IoU of NMS" not in found["/pictures/0"]
    if kind == "proposals":
        assert "only proposes" in notes
        assert "score from" not in found["/pictures/0"]
        assert "only proposes" in found["/labels"]
        assert "anchors" in found["/explain/0"]
    else:
        assert "only proposes" not in notes
        assert "lost" in found["/pictures/0"]
        assert "question" in found["/labels"]
        assert {"onnx": "needs the network itself", "one-stage": "one-stage detector"}[kind] in found["/explain/0"]


def test_every_page_reports_that_there_is_nothing(tab: Tab, tmp_path: Path) -> None:
    album = Album(None, None)
    album.open()
    served = start(album, tmp_path)
    page = tab.open(served.guard.address)
    until(page.locator("#opening")).to_contain_text("There are no runs here")
    for path, text in (("/pictures", "Start rcnn look with"), ("/explain/0", "no pictures"), ("/labels", "no model")):
        page.goto(served.root + path)
        until(page.locator("main")).to_contain_text(text)
    tab.leave()
    stop(served)
