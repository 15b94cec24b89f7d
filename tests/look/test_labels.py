"""The page of label errors: what is suggested, what a verdict writes and undoes, and the page in a browser."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset
from rcnn.diagnose.label_errors import SUGGESTIONS, Suggestion, apply_suggestions, find_label_errors
from rcnn.look.album import Album
from rcnn.look.finder import judge_detections
from rcnn.look.labels import Key, LabelReview, Verdict, VerdictFile
from rcnn.metrics.types import Prediction, Truth
from tests.pages import HOST, HOSTILE, Looked, Tab, client_of, coco, png
from tests.report.test_browser import OVERLAPPING, assert_open_to_all

from .test_look_browser import Served, start, stop, until

READY = "#suggestion:not([hidden])"
SAME = {"origin": f"http://{HOST}"}
OBJECTS = [([10.0, 10, 30, 30], 0), ([40.0, 10, 60, 30], 0), ([70.0, 10, 90, 30], 1), ([10.0, 50, 30, 70], 1)]
SEEN = [
    ([10, 10, 30, 30], 0, 0.5),
    ([70, 11, 90, 30], 2, 0.8),
    ([16, 57, 37, 78], 1, 0.7),
    ([60, 60, 80, 80], 0, 0.9),
    ([90, 60, 125, 80], 0, 0.6),
]
"""A right detection, one of another class, one shifted, two where nothing is labelled; the last sticks out."""
EXPECTED = [("missing_label", 3), ("missing_label", 4), ("wrong_class", 1), ("bad_box", 2)]


def prediction_of(detections: list[tuple[list[int], int, float]]) -> Prediction:
    boxes, labels, scores = zip(*sorted(detections, key=lambda one: -one[2]), strict=True)
    return Prediction(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels))


def key_of(suggestion: dict[str, Any]) -> Key:
    return Key(suggestion["picture"], suggestion["detection"])


def order(detection: int) -> int:
    """Place of one of `SEEN` among the predictions, which are sorted."""
    return sorted(range(len(SEEN)), key=lambda at: -SEEN[at][2]).index(detection)


def data_of(folder: Path, names: tuple[str, ...]) -> Path:
    """Two images to train on and one to validate, all labelled alike; one object is a crowd."""

    def objects(_: Path, number: int) -> list[tuple[list[float], int, bool]]:
        return [(box, label, row == 3 and number == 3) for row, (box, label) in enumerate(OBJECTS)]

    return coco(folder, names, {"train": (7, 3), "val": (5,)}, objects)


def with_errors(looked: Looked, folder: Path) -> Album:
    """The first and the last image have faults, as the detections of `SEEN` tell."""
    album = Album(lambda: looked.detector, data_of(folder / "data", HOSTILE))
    album.open()
    for index, seen in enumerate((SEEN, SEEN[:1], SEEN)):
        album.judged[index] = judge_detections(prediction_of(seen), album.pictures[index].truth)
    return album


@pytest.fixture
def album(looked: Looked, tmp_path: Path) -> Album:
    return with_errors(looked, tmp_path)


class Desk(NamedTuple):
    """A browser with access."""

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
    """Start a server: again and again, as on other days."""
    return lambda shown=album: Desk(client_of(shown, tmp_path), tmp_path)


@pytest.fixture
def desk(start_server: Start) -> Desk:
    return start_server()


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


def test_suggestions_are_those_of_why_and_change_their_own_label() -> None:
    boxes, labels = zip(*OBJECTS, strict=True)
    truth = Truth(np.array(boxes, np.float64), np.array(labels), np.zeros(4, bool))
    suggestions = find_label_errors([truth], [prediction_of(SEEN)], score=0.3)
    assert [(one.kind, one.detection) for one in suggestions] == [(kind, order(at)) for kind, at in EXPECTED]
    assert not find_label_errors([truth], [prediction_of(SEEN)], score=0.95)
    after = apply_suggestions(truth, suggestions, (90, 120))
    assert after.labels.tolist() == [0, 0, 2, 1, 0, 0]
    assert after.boxes[4:].tolist() == [[60, 60, 80, 80], [90, 60, 120, 80]]
    assert after.boxes[3].tolist() == [16, 57, 37, 78]
    np.testing.assert_array_equal(after.boxes[:3], truth.boxes[:3])
    assert truth.labels.tolist() == list(labels)


def test_what_is_right_is_written_to_a_copy_and_nothing_else_is(desk: Desk, album: Album, tmp_path: Path) -> None:
    before = fingerprint(tmp_path / "data")
    told = desk.state()
    assert told["waiting"] == 8
    assert [one["kind"] for one in told["suggestions"]] == [kind for kind, _ in EXPECTED for _ in range(2)]
    assert {one["text"] for one in told["suggestions"]} == set(SUGGESTIONS.values())
    for verdict in ("wrong", "skip"):
        told = desk.judge(told["suggestions"][0], verdict)
    assert not (tmp_path / "copy").exists()
    missing = next(one for one in desk.state()["suggestions"] if one["kind"] == "wrong_class" and one["picture"] == 0)
    told = desk.judge(missing, "right")
    assert (told["waiting"], told["verdicts"]) == (5, {"right": 1, "wrong": 1, "skip": 1})
    assert told["folder"] == str(tmp_path / "copy")
    copy = desk.copy()
    assert same(copy, album.sets[0], but=0)
    assert not copy.faults
    assert copy.records[0].labels.tolist() == [0, 0, 2, 1]
    np.testing.assert_allclose(copy.records[0].boxes, album.sets[0].records[0].boxes)
    assert same(desk.copy("val"), album.sets[1])
    assert fingerprint(tmp_path / "data") == before


def test_undo_takes_back_one_verdict_after_the_other(desk: Desk, album: Album) -> None:
    first, second = desk.state()["suggestions"][:2]
    desk.judge(first, "right")
    desk.judge(second, "right")
    assert [len(desk.copy(split).records[0].labels) for split in ("train", "val")] == [5, 5]
    told = desk.undo()
    assert key_of(told["suggestions"][0]) == key_of(second)
    assert [len(desk.copy(split).records[0].labels) for split in ("train", "val")] == [5, 4]
    desk.undo()
    assert same(desk.copy(), album.sets[0])
    assert same(desk.copy("val"), album.sets[1])
    assert desk.client.post("/api/labels/undo", headers=SAME).status_code == 409


def test_a_copy_that_can_not_be_written_changes_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    suggestion = desk.state()["suggestions"][0]
    with monkeypatch.context() as patch:
        patch.setattr("rcnn.look.labels.atomic_write", refuse)
        assert "No space left" in desk.judge(suggestion, "right")["error"]
    told = desk.state()
    assert (told["verdicts"]["right"], told["folder"]) == (0, "")
    assert desk.judge(suggestion, "right")["verdicts"]["right"] == 1


def test_what_is_no_verdict_is_refused(desk: Desk) -> None:
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


@pytest.mark.parametrize("what", ["model", "labels", "proposals"])
def test_what_is_missing_is_told(what: str, looked: Looked, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    album = Album(None if what == "model" else lambda: looked.detector, tmp_path)
    album.open()
    if what == "proposals":
        album.finder = None
    state = Desk(client_of(album, tmp_path), tmp_path).state()
    words = {"model": "no model", "labels": "no labels", "proposals": "only proposes"}
    assert words[what] in state["fault"]
    assert state["suggestions"] == []


def kept(folder: Path) -> list[list[object]]:
    (file,) = (folder / "verdicts").iterdir()
    return json.loads(file.read_text())["verdicts"]


def test_wrong_and_skipped_are_not_asked_again_and_undo_goes_on(start_server: Start, tmp_path: Path) -> None:
    first = start_server()
    suggestions = first.state()["suggestions"]
    for suggestion, verdict in zip(suggestions, ("wrong", "skip", "right", "wrong"), strict=False):
        first.judge(suggestion, verdict)
    assert len(kept(tmp_path)) == 3
    again = start_server()
    told = again.state()
    assert (told["waiting"], told["verdicts"]) == (5, {"right": 0, "wrong": 2, "skip": 1})
    assert told["note"] == ""
    assert key_of(told["suggestions"][0]) == key_of(suggestions[2])
    again.judge(told["suggestions"][-1], "skip")
    left = ({"wrong": 2, "skip": 1}, {"wrong": 1, "skip": 1}, {"wrong": 1, "skip": 0}, {"wrong": 0, "skip": 0})
    expected = (told["suggestions"][-1], suggestions[3], suggestions[1], suggestions[0])
    for number, (said, suggestion) in enumerate(zip(left, expected, strict=True)):
        told = again.undo()
        assert {word: told["verdicts"][word] for word in ("wrong", "skip")} == said
        assert key_of(told["suggestions"][0])[:1] == key_of(suggestion)[:1]
        assert told["suggestions"][0]["box"] == suggestion["box"]
        assert len(kept(tmp_path)) == 3 - number
    assert again.client.post("/api/labels/undo", headers={"origin": f"http://{HOST}"}).status_code == 409
    assert start_server().state()["waiting"] == 8


def test_the_corrected_copy_and_another_detector_do_not_ask_again(
    looked: Looked, start_server: Start, tmp_path: Path
) -> None:
    first = start_server()
    for verdict in ("wrong", "wrong", "right"):
        first.judge(first.state()["suggestions"][0], verdict)
    after = Album(lambda: looked.detector, tmp_path / "copy")
    after.open()
    moved = [([side + 1 for side in box], label, score) for box, label, score in SEEN]
    for index, seen in enumerate((moved, moved[:1], moved)):
        after.judged[index] = judge_detections(prediction_of(seen), after.pictures[index].truth)
    told = start_server(after).state()
    assert told["verdicts"] == {"right": 0, "wrong": 2, "skip": 0}
    assert told["waiting"] == 5


def test_a_suggestion_is_known_again_by_kind_class_and_box() -> None:
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
def test_a_damaged_file_is_set_aside_and_told(content: bytes, start_server: Start, tmp_path: Path) -> None:
    first = start_server()
    first.judge(first.state()["suggestions"][0], "wrong")
    (file,) = (tmp_path / "verdicts").iterdir()
    for number in (1, 2):
        file.write_bytes(content)
        told = start_server().state()
        aside = file.with_name(f"{file.stem}.damaged-{number}.json")
        assert told["waiting"] == 8
        assert str(aside) in told["note"]
        assert aside.read_bytes() == content
        assert not file.exists()
    again = start_server()
    assert again.state()["note"] == ""
    again.judge(again.state()["suggestions"][0], "skip")
    assert start_server().state()["waiting"] == 7


def test_what_can_not_be_kept_is_told_and_holds_today(start_server: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: bytes, **__: bool) -> None:
        raise OSError(28, "No space left on device", str(path))

    desk = start_server()
    first, second = desk.state()["suggestions"][:2]
    with monkeypatch.context() as patch:
        patch.setattr("rcnn.look.labels.atomic_write", refuse)
        told = desk.judge(first, "wrong")
        assert "No space left" in told["note"]
        assert told["waiting"] == 7
    told = desk.judge(second, "wrong")
    assert (told["waiting"], told["note"]) == (6, "")


def test_two_servers_keep_the_verdicts_of_each_other(start_server: Start, tmp_path: Path) -> None:
    one, other = start_server(), start_server()
    first, second = one.state()["suggestions"][:2]
    other.state()
    one.judge(first, "wrong")
    other.judge(second, "skip")
    assert len(kept(tmp_path)) == 2
    one.undo()
    assert [entry[-1] for entry in kept(tmp_path)] == ["skip"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(("right", "wrong", "skip", "undo", "again")), max_size=12))
def test_whenever_the_server_ends_the_same_is_left_to_judge(album: Album, steps: list[str]) -> None:
    """Compare with a list of verdicts, oldest first. A new server asks again about accepted suggestions only."""
    with TemporaryDirectory() as folder:

        def start() -> LabelReview:
            return LabelReview(album, lambda: Path(folder), VerdictFile(Path(folder) / "verdicts"))

        desk, said = start(), dict[Key, str]()
        everything = [key_of(one) for one in desk.state()["suggestions"]]
        for step in steps:
            waiting = [key for key in everything if key not in said]
            if step == "again":
                desk, said = start(), {key: word for key, word in said.items() if word != "right"}
            elif step != "undo" and waiting:
                desk.judge(waiting[-1], step)
                said[waiting[-1]] = step
            elif step == "undo" and said:
                key, _ = said.popitem()
                assert desk.undo() == key
            told = desk.state()
            assert [key_of(one) for one in told["suggestions"]] == [key for key in everything if key not in said]
            assert sum(told["verdicts"].values()) == len(said)


@pytest.fixture
def served(album: Album, tmp_path: Path) -> Iterator[Served]:
    served = start(album, tmp_path)
    yield served
    stop(served)


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
    with page.expect_response(lambda one: "/api/labels/undo" in one.url):  # it waits for the verdict and is not lost
        page.evaluate("['r', 'u'].forEach((key) => dispatchEvent(new KeyboardEvent('keydown', { key })))")
    until(count).to_have_text("1 to judge")
    second.close()
    assert not second.said


def test_nothing_overlaps_and_the_page_is_accessible(served: Served, tab_without_policy: Tab) -> None:
    for width, scheme in ((1280, "light"), (1280, "dark"), (2560, "light")):
        page = tab_without_policy.enter(served, "/labels", READY, width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not page.evaluate(OVERLAPPING.replace("main, section", "main, header, aside, .verdicts, .split"))
        if width == 1280:
            assert_open_to_all(page, scheme)
