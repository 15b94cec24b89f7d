"""Doubtful labels: what is suggested, what a verdict writes and undoes, and the page in a browser."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from starlette.testclient import TestClient

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset
from rcnn.diagnose.labels import DOUBTS, corrected, find_doubts
from rcnn.look.album import Album
from rcnn.look.finder import judged
from rcnn.metrics.types import Prediction, Truth
from tests.pages import HOST, HOSTILE, Looked, Tab, guarded, png
from tests.report.test_browser import OVERLAPPING, assert_open_to_all

from .test_look_browser import Served, start, stop, until

READY = "#doubt:not([hidden])"
SAME = {"origin": f"http://{HOST}"}
OBJECTS = [([10, 10, 30, 30], 0), ([40, 10, 60, 30], 0), ([70, 10, 90, 30], 1), ([10, 50, 30, 70], 1)]
SEEN = [
    ([10, 10, 30, 30], 0, 0.5),
    ([70, 11, 90, 30], 2, 0.8),
    ([16, 57, 37, 78], 1, 0.7),
    ([60, 60, 80, 80], 0, 0.9),
    ([90, 60, 125, 80], 0, 0.6),
]
"""A right detection, one of another class, one shifted, two where nothing is labelled; the last sticks out."""
EXPECTED = [("missing_label", 3), ("missing_label", 4), ("wrong_class", 1), ("bad_box", 2)]


def told_by(detections: list[tuple[list[int], int, float]]) -> Prediction:
    boxes, labels, scores = zip(*sorted(detections, key=lambda one: -one[2]), strict=True)
    return Prediction(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels))


def order(detection: int) -> int:
    """Place of one of `SEEN` among the predictions, which are sorted."""
    return sorted(range(len(SEEN)), key=lambda at: -SEEN[at][2]).index(detection)


def data_of(folder: Path, names: tuple[str, ...]) -> Path:
    """Two images to train on and one to validate, all labelled alike."""
    categories = [{"id": 10 + number, "name": name} for number, name in enumerate(names)]
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    for split, numbers in (("train", (7, 3)), ("val", (5,))):
        images, annotations = [], []
        for number in numbers:
            (folder / f"images/{number}.png").write_bytes(png(number))
            images.append({"id": number, "file_name": f"{number}.png", "height": 90, "width": 120})
            for at, ((left, top, right, bottom), label) in enumerate(OBJECTS):
                entry = {"id": len(annotations) + 1, "image_id": number, "iscrowd": int(at == 3 and number == 3)}
                box = [left, top, right - left, bottom - top]
                annotations.append({**entry, "category_id": 10 + label, "bbox": box, "area": 400})
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"annotations/{split}.json").write_text(json.dumps(document))
    return folder


def doubted(looked: Looked, folder: Path) -> Album:
    """The first and the last image have faults, as the detections of `SEEN` tell."""
    album = Album(lambda: looked.detector, data_of(folder / "data", HOSTILE))
    album.open()
    for place, seen in enumerate((SEEN, SEEN[:1], SEEN)):
        album.found[place] = judged(told_by(seen), album.pictures[place].truth)
    return album


@pytest.fixture
def album(looked: Looked, tmp_path: Path) -> Album:
    return doubted(looked, tmp_path)


class Desk(NamedTuple):
    """A browser that was let in."""

    client: TestClient
    folder: Path

    def told(self) -> dict[str, Any]:
        return self.client.get("/api/doubts").json()

    def say(self, doubt: dict[str, Any], verdict: str) -> dict[str, Any]:
        body = {"place": doubt["place"], "detection": doubt["detection"], "verdict": verdict}
        return self.client.post("/api/doubts", json=body, headers=SAME).json()

    def undo(self) -> dict[str, Any]:
        return self.client.post("/api/doubts/undo", headers=SAME).json()

    def copy(self, split: str = "train") -> Dataset:
        return open_dataset(self.folder / "copy", split, Settings().data)  # type: ignore[arg-type]


@pytest.fixture
def desk(album: Album, tmp_path: Path) -> Desk:
    client = TestClient(guarded(album, tmp_path), base_url=f"http://{HOST}")
    client.get(client.app.address)  # type: ignore[attr-defined]
    return Desk(client, tmp_path)


def fingerprint(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def same(one: Dataset, other: Dataset, *, but: int = -1) -> bool:
    pairs = enumerate(zip(one.records, other.records, strict=True))
    return one.names == other.names and all(
        first.path == second.path
        and first.id == second.id
        and (at == but or first.labels.tolist() == second.labels.tolist())
        and (at == but or np.allclose(first.boxes, second.boxes, atol=1e-9))
        and (at == but or first.ignore.tolist() == second.ignore.tolist())
        for at, (first, second) in pairs
    )


def test_doubts_are_those_of_why_and_change_their_own_label() -> None:
    boxes, labels = zip(*OBJECTS, strict=True)
    truth = Truth(np.array(boxes, np.float64), np.array(labels), np.zeros(4, bool))
    doubts = find_doubts([truth], [told_by(SEEN)], score=0.3)
    assert [(doubt.kind, doubt.detection) for doubt in doubts] == [(kind, order(at)) for kind, at in EXPECTED]
    assert not find_doubts([truth], [told_by(SEEN)], score=0.95)
    after = corrected(truth, doubts, (90, 120))
    assert after.labels.tolist() == [0, 0, 2, 1, 0, 0]
    assert after.boxes[4:].tolist() == [[60, 60, 80, 80], [90, 60, 120, 80]]
    assert after.boxes[3].tolist() == [16, 57, 37, 78]
    np.testing.assert_array_equal(after.boxes[:3], truth.boxes[:3])
    assert truth.labels.tolist() == list(labels)


def test_what_is_right_is_written_to_a_copy_and_nothing_else_is(desk: Desk, album: Album, tmp_path: Path) -> None:
    before = fingerprint(tmp_path / "data")
    told = desk.told()
    assert told["waiting"] == 8
    assert [one["kind"] for one in told["doubts"]] == [kind for kind, _ in EXPECTED for _ in range(2)]
    assert {one["says"] for one in told["doubts"]} == set(DOUBTS.values())
    for verdict in ("wrong", "skip"):
        told = desk.say(told["doubts"][0], verdict)
    assert not (tmp_path / "copy").exists()
    missing = next(one for one in desk.told()["doubts"] if one["kind"] == "wrong_class" and one["place"] == 0)
    told = desk.say(missing, "right")
    assert (told["waiting"], told["said"]) == (5, {"right": 1, "wrong": 1, "skip": 1})
    assert told["folder"] == str(tmp_path / "copy")
    copy = desk.copy()
    assert same(copy, album.sets[0], but=0)
    assert not copy.faults
    assert copy.records[0].labels.tolist() == [0, 0, 2, 1]
    np.testing.assert_allclose(copy.records[0].boxes, album.sets[0].records[0].boxes)
    assert same(desk.copy("val"), album.sets[1])
    assert fingerprint(tmp_path / "data") == before


def test_undo_takes_back_one_verdict_after_the_other(desk: Desk, album: Album) -> None:
    first, second = desk.told()["doubts"][:2]
    desk.say(first, "right")
    desk.say(second, "right")
    assert [len(desk.copy(split).records[0].labels) for split in ("train", "val")] == [5, 5]
    told = desk.undo()
    assert (told["doubts"][0]["place"], told["doubts"][0]["detection"]) == (second["place"], second["detection"])
    assert [len(desk.copy(split).records[0].labels) for split in ("train", "val")] == [5, 4]
    desk.undo()
    assert same(desk.copy(), album.sets[0])
    assert same(desk.copy("val"), album.sets[1])
    assert desk.client.post("/api/doubts/undo", headers=SAME).status_code == 409


def test_a_copy_that_can_not_be_written_changes_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    doubt = desk.told()["doubts"][0]
    with monkeypatch.context() as patch:
        patch.setattr("rcnn.look.corrections.atomic_write", refuse)
        assert "No space left" in desk.say(doubt, "right")["error"]
    told = desk.told()
    assert (told["said"]["right"], told["folder"]) == (0, "")
    assert desk.say(doubt, "right")["said"]["right"] == 1


def test_what_is_no_verdict_is_refused(desk: Desk) -> None:
    doubt = desk.told()["doubts"][0]
    body = {"place": doubt["place"], "detection": doubt["detection"], "verdict": "right"}
    for status, changes in (
        (400, {"verdict": "maybe"}),
        (400, {"place": "0"}),
        (400, {"place": True}),
        (400, {"detection": None}),
        (404, {"place": 99}),
        (404, {"detection": -1}),
        (413, {"more": "x" * 1000}),
    ):
        assert desk.client.post("/api/doubts", json={**body, **changes}, headers=SAME).status_code == status
    for content in (b"", b"[]", b"{", b"\xff", b'"x"', b"[" * 900):
        assert desk.client.post("/api/doubts", content=content, headers=SAME).status_code == 400
    for headers in ({}, {"origin": "http://evil.example"}):
        assert desk.client.post("/api/doubts", json=body, headers=headers).status_code == 403
        assert desk.client.post("/api/doubts/undo", headers=headers).status_code == 403
    assert not (desk.folder / "copy").exists()


@pytest.mark.parametrize("what", ["model", "labels", "proposals"])
def test_what_is_missing_is_told(what: str, looked: Looked, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    album = Album(None if what == "model" else lambda: looked.detector, tmp_path)
    album.open()
    if what == "proposals":
        album.finder = None
    told = Desk(TestClient(guarded(album, tmp_path), base_url=f"http://{HOST}"), tmp_path)
    told.client.get(told.client.app.address)  # type: ignore[attr-defined]
    words = {"model": "no model", "labels": "no labels", "proposals": "only proposes"}
    assert words[what] in told.told()["fault"]
    assert told.told()["doubts"] == []


@pytest.fixture
def served(album: Album, tmp_path: Path) -> Iterator[Served]:
    served = start(album, tmp_path)
    yield served
    stop(served)


def test_keys_judge_and_undo_and_two_browsers_agree(browser: Any, served: Served, tab: Tab, tmp_path: Path) -> None:
    second = Tab(browser)
    page, other = (one.enter(served, "/doubts", READY) for one in (tab, second))
    count = page.locator("#count")
    until(count).to_have_text("8 to judge")
    assert HOSTILE[0] in page.locator("#says").inner_text()
    assert page.locator("#stage rect.doubt").count() == 1
    assert page.locator("#stage rect.truth").count() == 4
    for key, left in (("r", 7), ("w", 6), ("s", 5)):
        page.keyboard.press(key)
        until(count).to_have_text(f"{left} to judge")
    assert page.locator("#sums dd").all_inner_texts() == ["1", "1", "1"]
    assert page.locator("#copy code").first.inner_text() == str(tmp_path / "copy")
    other.clock.fast_forward(2000)
    until(other.locator("#count")).to_have_text("5 to judge")
    other.get_by_role("button", name="Right").click()
    until(other.locator("#count")).to_have_text("4 to judge")
    page.clock.fast_forward(2000)
    until(count).to_have_text("4 to judge")
    page.keyboard.press("u")
    until(count).to_have_text("5 to judge")
    for left in (4, 3, 2, 1):
        page.keyboard.press("r")
        until(count).to_have_text(f"{left} to judge")
    page.keyboard.press("r")
    until(page.locator("#opening")).to_contain_text("nothing to judge any more")
    page.keyboard.press("u")
    until(count).to_have_text("1 to judge")
    with page.expect_response(lambda one: "/api/doubts/undo" in one.url):  # it waits for the verdict and is not lost
        page.evaluate("['r', 'u'].forEach((key) => dispatchEvent(new KeyboardEvent('keydown', { key })))")
    until(count).to_have_text("1 to judge")
    second.close()
    assert not second.said


def test_nothing_overlaps_and_nobody_is_shut_out(served: Served, tab_without_policy: Tab) -> None:
    for width, scheme in ((1280, "light"), (1280, "dark"), (2560, "light")):
        page = tab_without_policy.enter(served, "/doubts", READY, width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not page.evaluate(OVERLAPPING.replace("main, section", "main, header, aside, .verdicts, .split"))
        if width == 1280:
            assert_open_to_all(page, scheme)
