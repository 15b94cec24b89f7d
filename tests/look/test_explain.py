"""The page "Explain": its numbers are the library's, on the server and in the file of `rcnn explain --html`."""

import base64
import gzip
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnn.detector import Detector
from rcnn.diagnose.explain.follow import Explanation, follow, thresholds
from rcnn.images.stream import read_picture
from rcnn.look.album import Album, AlbumImage
from rcnn.look.explain import write_page
from rcnn.presets import build, settings_of
from tests.pages import HOSTILE, Looked, Tab, assert_accessible, assert_fits, client_of, png

from .test_look_browser import Served, serving, until

Open = Callable[..., Any]
READY = "#counts dd"


@pytest.fixture(scope="module")
def explanation(looked: Looked) -> Explanation:
    picture = looked.album.pictures[1]
    image = read_picture(picture.path, looked.detector.settings)
    assert picture.truth is not None
    middle = float(np.median(looked.album.judged[1].scores_of(len(picture.truth.labels))))
    return follow(looked.detector, image, picture.truth, score=middle)


@pytest.fixture(scope="module")
def file(explanation: Explanation, looked: Looked, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("explain") / "inside.html"
    return write_page(explanation, looked.detector.settings.rpn, page, HOSTILE[0], HOSTILE[1])


@pytest.fixture
def show(tab: Tab, file: Path) -> Iterator[Open]:
    """Open a view of the file from disk, and check at the end that it made no requests."""
    yield lambda view="": tab.open(f"{file.as_uri()}{view}", READY)
    assert not tab.strangers(file.as_uri())


def test_the_server_sends_the_steps_of_the_library(looked: Looked, explanation: Explanation, tmp_path: Path) -> None:
    body = client_of(looked.album, tmp_path).get("/api/pictures/1/explain").json()
    content, arrays, start = gzip.decompress(base64.b64decode(body["arrays"])), {}, 0
    for name, kind, length in body["layout"]:
        arrays[name] = np.frombuffer(content, np.dtype(kind), length, start)
        start += arrays[name].nbytes
    assert start == len(content)
    unit = max(body["width"], body["height"]) / 65535
    assert body["fault"] == ""
    assert body["counts"] | {"detections": 0} == explanation.counts() | {"detections": 0}
    assert body["proposals"] == explanation.proposals.anchor.tolist()
    np.testing.assert_array_equal(arrays["before"], explanation.before.anchor)
    np.testing.assert_allclose(arrays["moved"].reshape(-1, 4) * unit, explanation.steps.decoded, atol=unit)
    np.testing.assert_allclose(arrays["objectness"] / 65535, explanation.objectness, atol=1e-5)
    kept = explanation.survivors(looked.detector.settings.rpn)
    np.testing.assert_array_equal(arrays["kept"].reshape(kept.shape), kept)
    assert explanation.truth is not None
    np.testing.assert_array_equal(arrays["label"], explanation.truth.label)
    for anchor in (0, 5, 1000, len(explanation.anchors) - 1):
        level, row, column, which = explanation.cell_of(anchor)
        cell, steps = (body["levels"][level][key] for key in ("cell", "steps"))
        box = np.array(cell[which]) + np.array([column * steps[0], row * steps[1]] * 2)
        np.testing.assert_allclose(box, explanation.anchors[anchor], atol=1e-3)
    picture = looked.album.pictures[1]
    again = follow(looked.detector, read_picture(picture.path, looked.detector.settings), picture.truth)
    assert [one["where"] for one in body["objects"]] == [outcome.where for outcome, _ in again.outcomes]


def test_unsuitable_models_and_pictures_are_reported(looked: Looked, tmp_path: Path) -> None:
    settings = settings_of("tiny-fpn", {"rpn": {"classify": "classes"}, "roi": {"head": "none"}})
    one_stage = Detector(build(settings, 3), settings, HOSTILE, device="cpu")
    (tmp_path / "a.png").write_bytes(png())
    album = Album(None, tmp_path / "a.png")
    album.open()
    client = client_of(album, tmp_path)
    for detector, text in ((None, "no model here"), (one_stage, "one-stage detector"), (looked.detector, "")):
        album.detector = detector
        fault = client.get("/api/pictures/0/explain").json()["fault"]
        assert text in fault if text else not fault
    album.pictures.append(AlbumImage(tmp_path / "gone.png", "gone.png", "all", None))
    body = client.get("/api/pictures/1/explain").json()
    assert "gone.png" in body["fault"]
    assert str(tmp_path) not in body["fault"]
    assert client.get("/api/pictures/2/explain").status_code == 404


def test_the_file_shows_nms_cells_and_detections(explanation: Explanation, show: Open, looked: Looked) -> None:
    page = show("#show=nms")
    kept = explanation.survivors(looked.detector.settings.rpn)
    for index in (0, 8, len(thresholds(0.7)) - 1):
        page.get_by_label("IoU of NMS").fill(str(index))
        numbers = [int(text.replace(",", "")) for text in page.locator("#panel dd").all_inner_texts()[:3]]
        assert numbers == [kept.shape[1], (~kept[index]).sum(), kept[index].sum()]
    page.get_by_text("Cells", exact=True).click()
    page.locator("#stage").focus()
    page.get_by_label("level").select_option("1")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    row, column = map(int, re.findall(r"\d+", page.locator("#panel dd").first.inner_text()))
    cells = page.locator("#panel tbody tr")
    for which, anchor in enumerate(explanation.anchors_of(1, row, column).tolist()):
        words = cells.nth(which).locator("td").all_inner_texts()
        assert float(words[3]) == pytest.approx(float(explanation.objectness[anchor]), abs=6e-4)
        left, top, right, bottom = explanation.anchors[anchor].tolist()
        assert words[0] == f"{right - left:.0f} x {bottom - top:.0f}"
    page.get_by_text("Detections", exact=True).click()
    page.locator("#panel tbody button").nth(1).click()
    assert explanation.detections is not None
    level, row, column, which = explanation.cell_of(
        int(explanation.proposals.anchor[explanation.detections.proposal[1]])
    )
    facts = page.locator("#panel dd").all_inner_texts()
    assert facts[1:] == [f"{which}", f"row {row}, column {column}", f"stride {explanation.strides[level]}"]
    page.get_by_role("button", name="Show this cell").click()
    assert page.locator("#panel dd").first.inner_text() == f"row {row}, column {column}"
    page.wait_for_url("**#show=cells*")


def test_a_lost_object_has_a_remedy_and_every_number_a_tip(explanation: Explanation, show: Open) -> None:
    outcome, remedy = next(pair for pair in explanation.outcomes if pair[1] is not None)
    page = show(f"#show=objects&object={outcome.truth}")
    text = page.locator("#panel").inner_text()
    assert remedy is not None
    assert remedy.text in text
    assert f"{remedy.setting}={remedy.value:g}" in text
    for view in ("cells", "nms", "detections", "detections&detection=0", "objects", f"objects&object={outcome.truth}"):
        page.goto(f"{page.url.partition('#')[0]}#show={view}")
        page.wait_for_timeout(50)
        bare = page.evaluate(
            "[...document.querySelectorAll('aside td, aside dd, aside output')]"
            ".filter((one) => /\\d/.test(one.textContent) && !one.closest('[data-tip]')).map((one) => one.outerHTML)"
        )
        assert not bare
    page.locator("#counts dt").first.hover()
    assert "section" in page.locator("#tip").inner_text()


def test_every_tip_refers_to_the_paper(show: Open) -> None:
    source = (Path(__file__).parents[2] / "src/rcnn/look/static/tips.js").read_text(encoding="utf-8")
    tips = dict(re.findall(r'^  (\w+): "(.*)",$', source, re.MULTILINE))
    used = show().evaluate("[...document.querySelectorAll('[data-tip]')].map((one) => one.dataset.tip)")
    assert set(used) <= set(tips)
    assert all(re.search(r"Paper, sections? 3", text) for text in tips.values())


def test_the_file_is_small_and_its_names_are_text(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert HOSTILE[0] not in text
    assert HOSTILE[1] not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (2560, "light")])
def test_nothing_overlaps_and_the_page_is_accessible(
    tab_without_policy: Tab, file: Path, width: int, scheme: str
) -> None:
    for view in ("cells", "nms", "objects&object=0"):
        page = tab_without_policy.open(f"{file.as_uri()}#show={view}", READY, width, scheme)
        assert_fits(page, width)
        assert page.evaluate(
            "document.querySelector('aside').scrollWidth <= document.querySelector('aside').clientWidth"
        )
        if width == 1280:
            assert_accessible(page, scheme)
    assert not tab_without_policy.strangers(file.as_uri())


@pytest.fixture(scope="module")
def served(looked: Looked, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serving(looked.album, tmp_path_factory.mktemp("served"))


def test_the_served_page_moves_from_picture_to_picture(looked: Looked, served: Served, tab: Tab) -> None:
    page = tab.enter(served, "/pictures/1")
    page.locator("#to-explain").click()
    page.wait_for_selector(READY)
    assert page.locator("#name").inner_text() == looked.album.pictures[1].name
    page.locator("#stage").hover(position={"x": 300, "y": 300})
    page.locator("#stage").click(position={"x": 320, "y": 310})
    page.wait_for_url("**#show=cells*row=*")
    page.get_by_role("button", name="Next").click()
    until(page.locator("#name")).to_have_text(looked.album.pictures[2].name)
    page.go_back()
    until(page.locator("#name")).to_have_text(looked.album.pictures[1].name)
