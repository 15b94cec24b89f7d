"""The page in a real browser: its requests, its counts, hostile names and accessibility."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rcnn.metrics.curves import precision_recall
from rcnn.metrics.types import Prediction
from rcnn.report.charts import shown
from rcnn.report.gallery import judge
from rcnn.report.page import read_subjects, render
from tests.pages import HOSTILE, PLAIN, THRESHOLD, Made, Tab, assert_accessible, assert_fits

Open = Callable[..., Any]


@pytest.fixture
def show(tab: Tab) -> Iterator[Open]:
    """Open a file from disk, and check at the end that the page made no requests and wrote nothing to the console."""

    def show(file: Path, **looks: Any) -> Any:
        page = tab.open(file.as_uri(), **looks)
        tab.asked.remove(file.as_uri())
        return page

    yield show
    assert not tab.strangers("data:image/webp;")


def row(page: Any, number: int) -> list[str]:
    return page.locator(".counts tbody tr").nth(number).locator("td").all_inner_texts()


def expected(made: Made, label: int, threshold: float) -> list[str]:
    """Return the cells of a class as the library counts them, image by image."""
    metrics = made.metrics
    judged = [
        judge(
            image,
            truth._replace(ignore=truth.ignore | (truth.labels != label)),
            Prediction(*(field[prediction.labels == label] for field in prediction)),
            threshold,
        )
        for image, (truth, prediction) in enumerate(zip(metrics.truths, metrics.predictions, strict=True))
    ]
    right, wrong = (sum(int((image.right == kind).sum()) for image in judged) for kind in (True, False))
    lost = sum(len(image.lost) for image in judged)
    curves = precision_recall(metrics.truths, metrics.predictions, len(PLAIN))
    index = round(threshold * 1000)
    ratios = (shown(values[label, index].item()) for values in (curves.precision, curves.recall, curves.f1))
    return [f"{right + lost}", f"{right}", f"{wrong}", f"{lost}", *ratios]


def test_the_counts_follow_the_threshold(plain: Made, show: Open) -> None:
    page = show(plain.folder / "report.html")
    slider, output = page.get_by_role("slider"), page.locator("output")
    assert output.inner_text() == f"{THRESHOLD:.3f}"
    names = page.locator(".counts tbody th").all_inner_texts()
    for threshold in (THRESHOLD, 0.0, 0.2, 0.618, 1.0):
        slider.fill(f"{threshold * 1000:.0f}")
        assert output.inner_text() == f"{threshold:.3f}"
        for number, name in enumerate(names[:-1]):
            assert row(page, number) == expected(plain, PLAIN.index(name), threshold)
        sums = np.array([[int(cell) for cell in row(page, number)[:4]] for number in range(len(PLAIN))]).sum(axis=0)
        assert [int(cell) for cell in row(page, len(PLAIN))[:4]] == sums.tolist()
    page.get_by_role("button", name="Back to").click()
    assert output.inner_text() == f"{THRESHOLD:.3f}"
    slider.press("ArrowRight")
    assert output.inner_text() == f"{THRESHOLD + 0.001:.3f}"


def test_the_threshold_is_dragged_in_the_chart(plain: Made, show: Open) -> None:
    page = show(plain.folder / "report.html")
    mark, dot = page.locator(".mark"), page.locator(".dot").last
    mark.scroll_into_view_if_needed()
    before, box = dot.get_attribute("cx"), mark.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 100, middle[1], steps=3)
    page.mouse.up()
    page.mouse.move(middle[0] + 200, middle[1])
    assert abs(mark.bounding_box()["x"] - box["x"] - 100) < 2
    assert float(page.locator("output").inner_text()) > THRESHOLD + 0.1
    assert dot.get_attribute("cx") != before


def test_a_picture_opens_large_and_closes_by_key(plain: Made, show: Open) -> None:
    page = show(plain.folder / "report.html")
    picture = page.locator("button.picture").first
    picture.press("Enter")
    assert page.locator("dialog img").get_attribute("alt") == picture.locator("img").get_attribute("alt")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_hostile_names_are_shown_and_do_nothing(hostile: Made, show: Open) -> None:
    page = show(hostile.folder / "report.html")
    assert page.locator("h1").inner_text() == hostile.folder.name
    assert set(page.locator(".matrix thead th").all_inner_texts()) >= {HOSTILE[1], f"{HOSTILE[0][:29]}..."}
    assert page.evaluate("document.scripts.length") == 2
    page.locator("button.picture").first.click()
    assert page.locator("dialog img").get_attribute("alt").startswith(tuple(HOSTILE))


@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "light"), (1280, "light"), (2560, "light"), (390, "dark"), (1280, "dark")]
)
def test_nothing_overlaps_and_the_page_is_accessible(
    plain: Made, other: Made, show: Open, tmp_path: Path, width: int, scheme: str
) -> None:
    both = tmp_path / "both.html"
    both.write_text(render(read_subjects([plain.folder, other.folder])), encoding="utf-8")
    for file, checked_width in ((plain.folder / "report.html", 390), (both, 1280)):
        page = show(file, width=width, scheme=scheme)
        assert_fits(page, width)
        if width == checked_width:
            assert_accessible(page, scheme)
