"""The page of label errors: suggestions, what a verdict writes and undoes, and the page in a browser."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from rcnn.config import Settings
from rcnn.data.dataset import Dataset, Record
from rcnn.data.formats.find import open_dataset
from rcnn.diagnose.label_errors import SUGGESTIONS, Suggestion, apply_suggestions, find_label_errors
from rcnn.look.album import Album
from rcnn.look.finder import judge_detections
from rcnn.look.labels import Key, LabelReview, Verdict, VerdictFile
from rcnn.metrics.types import Prediction, Truth
from tests.pages import HOST, HOSTILE, Looked, Tab, assert_accessible, assert_fits, client_of, coco, png

from .test_look_browser import Served, serving, until

READY = "#suggestion:not([hidden])"
SAME = {"origin": f"http://{HOST}"}
FULL_DISK = patch("rcnn.look.labels.atomic_write", side_effect=OSError(28, "No space left on device"))
OBJECTS = [([10.0, 10, 30, 30], 0), ([40.0, 10, 60, 30], 0), ([70.0, 10, 90, 30], 1), ([10.0, 50, 30, 70], 1)]
SEEN = [
    ([10, 10, 30, 30], 0, 0.5),
    ([70, 11, 90, 30], 2, 0.8),
    ([16, 57, 37, 78], 1, 0.7),
    ([60, 60, 80, 80], 0, 0.9),
    ([90, 60, 125, 80], 0, 0.6),
]
"""A right detection, one of another class, one shifted, and two without a label, the last partly outside the image."""
EXPECTED = [("missing_label", 3), ("missing_label", 4), ("wrong_class", 1), ("bad_box", 2)]


def prediction_of(detections: list[tuple[list[int], int, float]]) -> Prediction:
    boxes, labels, scores = zip(*sorted(detections, key=lambda one: -one[2]), strict=True)
    return Prediction(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels))


def key_of(suggestion: dict[str, Any]) -> Key:
    return Key(suggestion["picture"], suggestion["detection"])


def order(detection: int) -> int:
    """Return the index of one of `SEEN` among the predictions, which are sorted by score."""
    return sorted(range(len(SEEN)), key=lambda index: -SEEN[index][2]).index(detection)


def data_of(folder: Path, names: tuple[str, ...]) -> Path:
    """Write two training images and one validation image with the same labels; one object is a crowd."""

    def objects(_: Path, number: int) -> list[tuple[list[float], int, bool]]:
        return [(box, label, row == 3 and number == 3) for row, (box, label) in enumerate(OBJECTS)]

    return coco(folder, names, {"train": (7, 3), "val": (5,)}, objects)


def album_of(looked: Looked, data: Path, seen: list[tuple[list[int], int, float]] = SEEN) -> Album:
    """Open an album whose first and last image have label errors, by their detections."""
    album = Album(lambda: looked.detector, data)
    album.open()
    for index, detections in enumerate((seen, seen[:1], seen)):
        album.judged[index] = judge_detections(prediction_of(detections), album.pictures[index].truth)
    return album


@pytest.fixture
def album(looked: Looked, tmp_path: Path) -> Album:
    return album_of(looked, data_of(tmp_path / "data", HOSTILE))


class Desk(NamedTuple):
    """A client with access to the page."""

    client: TestClient
    folder: Path

    def state(self) -> dict[str, Any]:
        return self.client.get("/api/labels").json()

    def judge(self, suggestion: dict[str, Any], verdict: str) -> dict[str, Any]:
        body = {"picture": suggestion["picture"], "detection": suggestion["detection"], "verdict": verdict}
        return self.client.post("/api/labels", json=body, headers=SAME).json()

    def undo(self) -> dict[str, Any]:
        return self.client.post("/api/labels/undo", headers=SAME).json()

    def copy(self, split: str = "train") -> Dataset:
        return open_dataset(self.folder / "copy", split, Settings().data)  # type: ignore[arg-type]


Start = Callable[..., Desk]


@pytest.fixture
def start_server(album: Album, tmp_path: Path) -> Start:
    """Start a server, which may follow an earlier one."""
    return lambda shown=album: Desk(client_of(shown, tmp_path), tmp_path)


@pytest.fixture
def desk(start_server: Start) -> Desk:
    return start_server()


def fingerprint(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def same(one: Dataset, other: Dataset, *, but: int = -1) -> bool:
    """Compare two lists of records, without the labels of record number `but`."""

    def equal(first: Record, second: Record) -> bool:
        lists = ((first.labels, second.labels), (first.ignore, second.ignore))
        return np.allclose(first.boxes, second.boxes, atol=1e-9) and all(a.tolist() == b.tolist() for a, b in lists)

    return one.names == other.names and all(
        (first.path, first.id) == (second.path, second.id) and (index == but or equal(first, second))
        for index, (first, second) in enumerate(zip(one.records, other.records, strict=True))
    )


def test_suggestions_are_those_of_why_and_change_their_own_label() -> None:
    boxes, labels = zip(*OBJECTS, strict=True)
    truth = Truth(np.array(boxes, np.float64), np.array(labels), np.zeros(4, bool))
    suggestions = find_label_errors([truth], [prediction_of(SEEN)], score=0.3)
    assert [(one.kind, one.detection) for one in suggestions] == [(kind, order(index)) for kind, index in EXPECTED]
    assert not find_label_errors([truth], [prediction_of(SEEN)], score=0.95)
    after = apply_suggestions(truth, suggestions, (90, 120))
    assert after.labels.tolist() == [0, 0, 2, 1, 0, 0]
    assert after.boxes[4:].tolist() == [[60, 60, 80, 80], [90, 60, 120, 80]]
    assert after.boxes[3].tolist() == [16, 57, 37, 78]
    np.testing.assert_array_equal(after.boxes[:3], truth.boxes[:3])
    assert truth.labels.tolist() == list(labels)


def test_accepted_suggestions_alone_are_written_to_a_copy(desk: Desk, album: Album, tmp_path: Path) -> None:
    before = fingerprint(tmp_path / "data")
    state = desk.state()
    assert state["waiting"] == 8
    assert [one["kind"] for one in state["suggestions"]] == [kind for kind, _ in EXPECTED for _ in range(2)]
    assert {one["text"] for one in state["suggestions"]} == set(SUGGESTIONS.values())
    for verdict in ("wrong", "skip"):
        state = desk.judge(state["suggestions"][0], verdict)
    assert not (tmp_path / "copy").exists()
    missing = next(one for one in desk.state()["suggestions"] if one["kind"] == "wrong_class" and one["picture"] == 0)
    state = desk.judge(missing, "right")
    assert (state["waiting"], state["verdicts"]) == (5, {"right": 1, "wrong": 1, "skip": 1})
    assert state["folder"] == str(tmp_path / "copy")
    copy = desk.copy()
    assert same(copy, album.sets[0], but=0)
    assert not copy.faults
    assert copy.records[0].labels.tolist() == [0, 0, 2, 1]
    np.testing.assert_allclose(copy.records[0].boxes, album.sets[0].records[0].boxes)
    assert same(desk.copy("val"), album.sets[1])
    assert fingerprint(tmp_path / "data") == before


def test_undo_reverts_one_verdict_after_the_other(desk: Desk, album: Album) -> None:
    first, second = desk.state()["suggestions"][:2]
    desk.judge(first, "right")
    desk.judge(second, "right")
    assert [len(desk.copy(split).records[0].labels) for split in ("train", "val")] == [5, 5]
    state = desk.undo()
    assert key_of(state["suggestions"][0]) == key_of(second)
    assert [len(desk.copy(split).records[0].labels) for split in ("train", "val")] == [5, 4]
    desk.undo()
    assert same(desk.copy(), album.sets[0])
    assert same(desk.copy("val"), album.sets[1])
    assert desk.client.post("/api/labels/undo", headers=SAME).status_code == 409


def test_a_copy_that_can_not_be_written_changes_nothing(desk: Desk) -> None:
    suggestion = desk.state()["suggestions"][0]
    with FULL_DISK:
        assert "No space left" in desk.judge(suggestion, "right")["error"]
    state = desk.state()
    assert (state["verdicts"]["right"], state["folder"]) == (0, "")
    assert desk.judge(suggestion, "right")["verdicts"]["right"] == 1


def test_invalid_verdicts_are_refused(desk: Desk) -> None:
    suggestion = desk.state()["suggestions"][0]
    body = {"picture": suggestion["picture"], "detection": suggestion["detection"], "verdict": "right"}
    for status, changes in (
        (400, {"verdict": "maybe"}),
        (400, {"picture": "0"}),
        (400, {"picture": True}),
        (400, {"detection": None}),
        (404, {"picture": 99}),
        (404, {"detection": -1}),
        (413, {"more": "x" * 1000}),
    ):
        assert desk.client.post("/api/labels", json={**body, **changes}, headers=SAME).status_code == status
    for content in (b"", b"[]", b"{", b"\xff", b'"x"', b"[" * 900):
        assert desk.client.post("/api/labels", content=content, headers=SAME).status_code == 400
    for headers in ({}, {"origin": "http://evil.example"}):
        assert desk.client.post("/api/labels", json=body, headers=headers).status_code == 403
        assert desk.client.post("/api/labels/undo", headers=headers).status_code == 403
    assert not (desk.folder / "copy").exists()


@pytest.mark.parametrize("message", ["no model", "no labels", "only proposes"])
def test_the_page_reports_what_is_missing(message: str, looked: Looked, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    album = Album(None if message == "no model" else lambda: looked.detector, tmp_path)
    album.open()
    if message == "only proposes":
        album.finder = None
    state = Desk(client_of(album, tmp_path), tmp_path).state()
    assert message in state["fault"]
    assert state["suggestions"] == []


def stored(folder: Path) -> list[list[object]]:
    (file,) = (folder / "verdicts").iterdir()
    return json.loads(file.read_text())["verdicts"]


def test_rejected_suggestions_do_not_return_until_undo(start_server: Start, tmp_path: Path) -> None:
    first = start_server()
    suggestions = first.state()["suggestions"]
    for suggestion, verdict in zip(suggestions, ("wrong", "skip", "right", "wrong"), strict=False):
        first.judge(suggestion, verdict)
    assert len(stored(tmp_path)) == 3
    again = start_server()
    state = again.state()
    assert (state["waiting"], state["verdicts"]) == (5, {"right": 0, "wrong": 2, "skip": 1})
    assert state["note"] == ""
    assert key_of(state["suggestions"][0]) == key_of(suggestions[2])
    again.judge(state["suggestions"][-1], "skip")
    left = ((2, 1), (1, 1), (1, 0), (0, 0))
    expected = (state["suggestions"][-1], suggestions[3], suggestions[1], suggestions[0])
    for number, (counts, suggestion) in enumerate(zip(left, expected, strict=True)):
        state = again.undo()
        assert (state["verdicts"]["wrong"], state["verdicts"]["skip"]) == counts
        assert key_of(state["suggestions"][0])[:1] == key_of(suggestion)[:1]
        assert state["suggestions"][0]["box"] == suggestion["box"]
        assert len(stored(tmp_path)) == 3 - number
    assert again.client.post("/api/labels/undo", headers=SAME).status_code == 409
    assert start_server().state()["waiting"] == 8


def test_rejected_suggestions_do_not_return_for_the_copy_and_another_detector(
    looked: Looked, start_server: Start, tmp_path: Path
) -> None:
    first = start_server()
    for verdict in ("wrong", "wrong", "right"):
        first.judge(first.state()["suggestions"][0], verdict)
    moved = [([side + 1 for side in box], label, score) for box, label, score in SEEN]
    state = start_server(album_of(looked, tmp_path / "copy", moved)).state()
    assert state["verdicts"] == {"right": 0, "wrong": 2, "skip": 0}
    assert state["waiting"] == 5


def test_a_suggestion_is_recognised_by_kind_class_and_box() -> None:
    suggestion = Suggestion(0, 3, "bad_box", np.array([10.0, 10, 30, 30]), 1, 0.5, 0)
    verdict = Verdict("/a.png", "bad_box", "b", (12.0, 10.0, 32.0, 30.0), "wrong")
    assert verdict.is_on("/a.png", suggestion, "b")
    assert not verdict.is_on("/b.png", suggestion, "b")
    assert not verdict.is_on("/a.png", suggestion, "c")
    assert not verdict.is_on("/a.png", suggestion._replace(kind="wrong_class"), "b")
    assert not verdict.is_on("/a.png", suggestion._replace(box=np.array([20.0, 10, 40, 30])), "b")


def holding(*entry: object) -> bytes:
    return json.dumps({"format": 1, "verdicts": [entry]}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"format": 1}',
        b'{"format": 2, "verdicts": []}',
        holding(),
        holding("a", "bad_box", "b", [0, 0, 1], "wrong"),
        holding("a", "bad_box", "b", [0, 0, 1, None], "wrong"),
        holding("a", "bad_box", "b", [0, 0, 1, 1], "right"),
        holding("a", "bad_box", 3, [0, 0, 1, 1], "skip"),
    ],
    ids=map(str, range(11)),
)
def test_a_damaged_file_is_renamed_and_reported(content: bytes, start_server: Start, tmp_path: Path) -> None:
    first = start_server()
    first.judge(first.state()["suggestions"][0], "wrong")
    (file,) = (tmp_path / "verdicts").iterdir()
    for number in (1, 2):
        file.write_bytes(content)
        state = start_server().state()
        renamed = file.with_name(f"{file.stem}.damaged-{number}.json")
        assert state["waiting"] == 8
        assert str(renamed) in state["note"]
        assert renamed.read_bytes() == content
        assert not file.exists()
    again = start_server()
    assert again.state()["note"] == ""
    again.judge(again.state()["suggestions"][0], "skip")
    assert start_server().state()["waiting"] == 7


def test_verdicts_that_can_not_be_stored_hold_until_the_server_ends(desk: Desk) -> None:
    first, second = desk.state()["suggestions"][:2]
    with FULL_DISK:
        state = desk.judge(first, "wrong")
        assert "No space left" in state["note"]
        assert state["waiting"] == 7
    state = desk.judge(second, "wrong")
    assert (state["waiting"], state["note"]) == (6, "")


def test_two_servers_keep_the_verdicts_of_each_other(start_server: Start, tmp_path: Path) -> None:
    one, other = start_server(), start_server()
    first, second = one.state()["suggestions"][:2]
    other.state()
    one.judge(first, "wrong")
    other.judge(second, "skip")
    assert len(stored(tmp_path)) == 2
    one.undo()
    assert [entry[-1] for entry in stored(tmp_path)] == ["skip"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(("right", "wrong", "skip", "undo", "again")), max_size=12))
def test_a_new_server_has_the_same_suggestions_left(album: Album, steps: list[str]) -> None:
    """Compare with a dict of verdicts, oldest first. Only accepted suggestions return with a new server."""
    with TemporaryDirectory() as folder:

        def start() -> LabelReview:
            return LabelReview(album, lambda: Path(folder), VerdictFile(Path(folder) / "verdicts"))

        desk, verdicts = start(), dict[Key, str]()
        everything = [key_of(one) for one in desk.state()["suggestions"]]
        for step in steps:
            waiting = [key for key in everything if key not in verdicts]
            if step == "again":
                desk, verdicts = start(), {key: word for key, word in verdicts.items() if word != "right"}
            elif step != "undo" and waiting:
                desk.judge(waiting[-1], step)
                verdicts[waiting[-1]] = step
            elif step == "undo" and verdicts:
                key, _ = verdicts.popitem()
                assert desk.undo() == key
            state = desk.state()
            assert [key_of(one) for one in state["suggestions"]] == [key for key in everything if key not in verdicts]
            assert sum(state["verdicts"].values()) == len(verdicts)


@pytest.fixture
def served(album: Album, tmp_path: Path) -> Iterator[Served]:
    yield from serving(album, tmp_path)


def test_keys_judge_and_undo_and_two_browsers_agree(browser: Any, served: Served, tab: Tab, tmp_path: Path) -> None:
    second = Tab(browser)
    page, other = (one.enter(served, "/labels", READY) for one in (tab, second))
    count = page.locator("#count")
    until(count).to_have_text("8 to judge")
    assert HOSTILE[0] in page.locator("#says").inner_text()
    assert page.locator("#stage rect.suggested").count() == 1
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
    until(page.locator("#opening")).to_contain_text("nothing left to judge")
    page.keyboard.press("u")
    until(count).to_have_text("1 to judge")
    with page.expect_response(lambda one: "/api/labels/undo" in one.url):  # it waits for the verdict
        page.evaluate("['r', 'u'].forEach((key) => dispatchEvent(new KeyboardEvent('keydown', { key })))")
    until(count).to_have_text("1 to judge")
    second.close()
    assert not second.said


def test_nothing_overlaps_and_the_page_is_accessible(served: Served, tab_without_policy: Tab) -> None:
    for width, scheme in ((1280, "light"), (1280, "dark"), (2560, "light")):
        page = tab_without_policy.enter(served, "/labels", READY, width=width, scheme=scheme)
        assert_fits(page, width)
        if width == 1280:
            assert_accessible(page, scheme)
