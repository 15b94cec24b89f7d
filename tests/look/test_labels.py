"""The page of label errors: questions, what a verdict writes and undoes, and the page in a browser."""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import groupby
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
from rcnn.diagnose.label_errors import Suggestion
from rcnn.look.album import Album
from rcnn.look.finder import judge_detections
from rcnn.look.labels import MAX_BYTES, MAX_NAME, Key, LabelReview, Verdict, VerdictFile
from rcnn.metrics.types import Prediction
from tests.pages import HOST, HOSTILE, PLAIN, Looked, Tab, assert_accessible, assert_fits, client_of, coco, png

from .test_look_browser import Served, serving, until

READY = "#suggestion:not([hidden])"
SAME = {"origin": f"http://{HOST}"}
FULL_DISK = patch("rcnn.look.labels.atomic_write", side_effect=OSError(28, "No space left on device"))
OBJECTS = [([10.0, 10, 30, 30], 0), ([40.0, 10, 60, 30], 0), ([70.0, 10, 90, 30], 1), ([10.0, 50, 30, 70], 1)]
SEEN = [
    ([10, 10, 30, 30], 0, 0.5),
    ([70, 11, 90, 30], 2, 0.8),
    ([14, 54, 34, 74], 1, 0.7),
    ([60, 60, 80, 80], 0, 0.9),
    ([90, 60, 125, 80], 0, 0.6),
]
"""A right detection, one of another class, one shifted, and two without a label, the last partly outside the image."""
EXPECTED = [("bad_box", 2, 3), ("wrong_class", 1, 2), ("missing_label", 3, -1), ("missing_label", 4, -1)]
"""Kind, index in `SEEN` and index in `OBJECTS` of the suggestions for `SEEN`; then the second object has none."""
TOTAL = 12
"""Number of suggestions: five for the first and the last picture, and two for the second, which come last."""


def prediction_of(detections: list[tuple[list[int], int, float]]) -> Prediction:
    boxes, labels, scores = zip(*sorted(detections, key=lambda one: -one[2]), strict=True)
    return Prediction(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels))


def key_of(suggestion: dict[str, Any]) -> Key:
    return Key(suggestion["picture"], suggestion["detection"], suggestion["object"])


def keys_of(state: dict[str, Any]) -> list[Key]:
    return [key_of(suggestion) for suggestion in state["suggestions"]]


def one_of(state: dict[str, Any], kind: str, picture: int = 0) -> dict[str, Any]:
    """Return the first suggestion of a kind for a picture."""
    return next(one for one in state["suggestions"] if (one["kind"], one["picture"]) == (kind, picture))


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
        return self.judge_all([suggestion], verdict)

    def judge_all(self, suggestions: list[dict[str, Any]], verdict: str) -> dict[str, Any]:
        body = {"keys": [[*key_of(one)] for one in suggestions], "verdict": verdict}
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


def test_questions_and_answers_name_what_happens(album: Album, tmp_path: Path) -> None:
    album.names = PLAIN
    state = Desk(client_of(album, tmp_path), tmp_path).state()
    found = {one["kind"]: [one[word] for word in ("question", "change", "keep")] for one in state["suggestions"]}
    assert found == {
        "wrong_class": ["Star instead of square?", "Change to star", "Keep square"],
        "bad_box": ["Another box for square?", "Use the new box", "Keep the box"],
        "missing_label": ["Circle without a label?", "Add circle", "Add nothing"],
        "spurious_label": ["No square here?", "Remove square", "Keep square"],
    }


def test_long_names_are_cut_in_questions(album: Album, tmp_path: Path) -> None:
    album.names = ("a" * 500, *HOSTILE[1:])
    question = one_of(Desk(client_of(album, tmp_path), tmp_path).state(), "missing_label")["question"]
    assert question == f"A{'a' * (MAX_NAME - 1)}... without a label?"


def test_suggestions_come_picture_by_picture_the_most_likely_first(desk: Desk) -> None:
    state = desk.state()
    of_picture = [(kind, order(seen), label) for kind, seen, label in EXPECTED] + [("spurious_label", -1, 1)]
    first, last = (
        [(one["kind"], *key_of(one)[1:]) for one in state["suggestions"] if one["picture"] == index] for index in (0, 2)
    )
    assert first == last == of_picture
    assert [(key, len([*group])) for key, group in groupby(key.picture for key in keys_of(state))] == [
        (0, 5),
        (2, 5),
        (1, 2),
    ]
    scores = [one["score"] for one in state["suggestions"][:5]]
    assert scores == sorted(scores, reverse=True)
    assert state["waiting"] == TOTAL


def test_accepted_suggestions_alone_are_written_to_a_copy(desk: Desk, album: Album, tmp_path: Path) -> None:
    before = fingerprint(tmp_path / "data")
    state = desk.state()
    state = desk.judge(one_of(state, "bad_box"), "keep")
    state = desk.judge(one_of(state, "missing_label"), "later")
    assert not (tmp_path / "copy").exists()
    state = desk.judge(one_of(state, "wrong_class"), "change")
    assert (state["waiting"], state["verdicts"]) == (TOTAL - 2, {"change": 1, "keep": 1, "later": 1})
    assert state["folder"] == str(tmp_path / "copy")
    copy = desk.copy()
    assert same(copy, album.sets[0], but=0)
    assert not copy.faults
    assert copy.records[0].labels.tolist() == [0, 0, 2, 1]
    np.testing.assert_allclose(copy.records[0].boxes, album.sets[0].records[0].boxes)
    assert same(desk.copy("val"), album.sets[1])
    assert fingerprint(tmp_path / "data") == before


def objects_of(record: Record) -> list[tuple[list[float], int]]:
    return list(zip(record.boxes.tolist(), record.labels.tolist(), strict=True))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=st.permutations(range(5)), number=st.integers(1, 5), steps=st.lists(st.integers(1, 5), max_size=4))
def test_the_order_of_accepting_does_not_matter(album: Album, chosen: list[int], number: int, steps: list[int]) -> None:
    """Compare with labels that are changed one by one, each under its own number."""
    expected: dict[int, tuple[list[float], int]] = dict(enumerate(OBJECTS))
    changes: list[tuple[int, tuple[list[float], int] | None]] = [
        (3, ([14.0, 54, 34, 74], 1)),
        (2, ([70.0, 10, 90, 30], 2)),
        (10, ([60.0, 60, 80, 80], 0)),
        (11, ([90.0, 60, 120, 80], 0)),
        (1, None),
    ]
    for index in chosen[:number]:
        label, change = changes[index]
        expected.pop(label, None)
        if change is not None:
            expected[label] = change
    with TemporaryDirectory() as folder:
        desk = LabelReview(album, lambda: Path(folder), VerdictFile(Path(folder) / "verdicts"))
        keys = keys_of(desk.state())[:5]
        left = [keys[index] for index in chosen[:number]]
        for size in (*steps, 5):  # in steps of several at once
            if left[:size]:
                desk.judge(left[:size], "change")
            left = left[size:]
        record = open_dataset(folder, "train").records[0]
        assert objects_of(record) == [expected[label] for label in sorted(expected)]
        labels = desk.state(keys[0])["picture"]["labels"] if number < 5 else []
        assert not labels or [(one["box"], one["label"]) for one in labels] == objects_of(record)
        for label in labels:  # an open suggestion finds its label
            if label["object"] in (0, 1):
                assert (label["box"], label["label"]) == OBJECTS[label["object"]]
        while desk.state()["undo"]:
            desk.undo()
        assert objects_of(open_dataset(folder, "train").records[0]) == OBJECTS


def test_undo_reverts_one_verdict_after_the_other(desk: Desk, album: Album) -> None:
    first, second = (one_of(desk.state(), "missing_label", picture) for picture in (0, 2))
    desk.judge(first, "change")
    desk.judge(second, "change")
    assert [len(desk.copy(split).records[0].labels) for split in ("train", "val")] == [5, 5]
    state = desk.undo()
    assert key_of(state["suggestions"][0]) == key_of(second)
    assert [len(desk.copy(split).records[0].labels) for split in ("train", "val")] == [5, 4]
    assert not desk.undo()["undo"]
    assert same(desk.copy(), album.sets[0])
    assert same(desk.copy("val"), album.sets[1])
    assert desk.client.post("/api/labels/undo", headers=SAME).status_code == 409


def test_the_other_suggestions_of_a_picture_follow_directly(desk: Desk) -> None:
    state = desk.state()
    for number in range(1, 6):
        picture = state["picture"]
        assert (picture["index"], picture["position"], picture["suggestions"], picture["here"]) == (
            0,
            number,
            5,
            6 - number,
        )
        assert [one["picture"] for one in state["suggestions"][: picture["here"]]] == [0] * picture["here"]
        state = desk.judge(state["suggestions"][0], ("change", "keep", "later")[number % 3])
    assert (state["picture"]["index"], state["picture"]["position"]) == (2, 1)


def test_all_suggestions_of_a_picture_are_one_step(desk: Desk, album: Album) -> None:
    state = desk.judge(one_of(desk.state(), "bad_box"), "keep")
    left = state["suggestions"][: state["picture"]["here"]]
    assert len(left) == 4
    state = desk.judge_all(left, "change")
    assert (state["waiting"], state["verdicts"]["change"]) == (TOTAL - 5, 4)
    assert desk.copy().records[0].labels.tolist() == [0, 2, 1, 0, 0]
    state = desk.undo()
    assert keys_of(state)[:4] == list(map(key_of, left))
    with FULL_DISK:
        assert "No space left" in desk.judge_all(left, "change")["error"]
    state = desk.state()
    assert (state["waiting"], state["verdicts"]) == (TOTAL - 1, {"change": 0, "keep": 1, "later": 0})
    assert same(desk.copy(), album.sets[0])


def test_later_suggestions_come_after_the_others_and_again(start_server: Start, tmp_path: Path) -> None:
    desk = start_server()
    first, second, *others = desk.state()["suggestions"]
    desk.judge(first, "later")
    state = desk.judge(second, "later")
    assert (state["waiting"], state["picture"]["position"], state["picture"]["here"]) == (TOTAL, 3, 3)
    assert keys_of(state)[-2:] == [key_of(first), key_of(second)]
    for one in others:
        state = desk.judge(one, "keep")
    assert keys_of(state) == [key_of(first), key_of(second)]
    assert (state["picture"]["position"], state["picture"]["suggestions"], state["picture"]["here"]) == (4, 5, 2)
    state = desk.judge(first, "later")
    assert keys_of(state) == [key_of(second), key_of(first)]
    state = desk.judge(second, "later")
    assert keys_of(state) == [key_of(first), key_of(second)]
    state = desk.judge_all([first, second], "change")
    assert (state["waiting"], state["verdicts"]) == (0, {"change": 2, "keep": TOTAL - 2, "later": 0})
    assert state["picture"] is None
    state = desk.undo()
    assert keys_of(state) == [key_of(first), key_of(second)]
    assert state["verdicts"]["later"] == 2
    state = desk.undo()
    assert keys_of(state)[0] == key_of(second)
    assert len(stored(tmp_path)) == TOTAL - 2
    assert keys_of(start_server().state()) == [key_of(first), key_of(second)]


def test_a_copy_that_can_not_be_written_changes_nothing(desk: Desk) -> None:
    suggestion = desk.state()["suggestions"][0]
    with FULL_DISK:
        assert "No space left" in desk.judge(suggestion, "change")["error"]
    state = desk.state()
    assert (state["verdicts"]["change"], state["folder"], state["undo"]) == (0, "", False)
    assert desk.judge(suggestion, "change")["verdicts"]["change"] == 1
    with FULL_DISK:
        assert "No space left" in desk.undo()["error"]
    assert desk.state()["undo"]


def test_invalid_verdicts_are_refused(desk: Desk) -> None:
    first, second = keys_of(desk.state())[4:6]
    assert first.picture != second.picture
    body = {"keys": [first], "verdict": "change"}
    for status, changes in (
        (400, {"verdict": "maybe"}),
        (400, {"verdict": ["change"]}),
        (400, {"keys": []}),
        (400, {"keys": 3}),
        (400, {"keys": [first[:2]]}),
        (400, {"keys": ["abc"]}),
        (400, {"keys": [first._replace(picture="0")]}),
        (400, {"keys": [first._replace(picture=True)]}),
        (400, {"keys": [first._replace(detection=None)]}),
        (400, {"keys": [first, second]}),
        (404, {"keys": [first._replace(picture=99)]}),
        (404, {"keys": [first, first._replace(object=-1)]}),
        (413, {"more": "x" * MAX_BYTES}),
    ):
        assert desk.client.post("/api/labels", json={**body, **changes}, headers=SAME).status_code == status
    for content in (b"", b"[]", b"{", b"\xff", b'"x"', b"[" * 50_000):
        assert desk.client.post("/api/labels", content=content, headers=SAME).status_code == 400
    for headers in ({}, {"origin": "http://evil.example"}):
        assert desk.client.post("/api/labels", json=body, headers=headers).status_code == 403
        assert desk.client.post("/api/labels/undo", headers=headers).status_code == 403
    assert not (desk.folder / "copy").exists()
    for query in (
        "picture=x",
        "picture=1&detection=2",
        "picture=-5&detection=9&object=-1",
        "picture=1&detection=1&object=\u0661",
    ):
        assert desk.client.get(f"/api/labels?{query}").json()["waiting"] == TOTAL


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


def test_kept_labels_are_not_doubted_again_until_undo(start_server: Start, tmp_path: Path) -> None:
    first = start_server()
    suggestions = first.state()["suggestions"]
    for suggestion, verdict in zip(suggestions, ("keep", "later", "change", "keep", "keep"), strict=False):
        first.judge(suggestion, verdict)
    assert len(stored(tmp_path)) == 3
    again = start_server()
    state = again.state()
    assert (state["waiting"], state["verdicts"]) == (TOTAL - 3, {"change": 0, "keep": 3, "later": 0})
    assert state["note"] == ""
    again.judge(state["suggestions"][-1], "keep")
    expected = (state["suggestions"][-1], suggestions[4], suggestions[3], suggestions[0])
    for number, suggestion in enumerate(expected):
        state = again.undo()
        assert state["verdicts"]["keep"] == 3 - number
        assert key_of(state["suggestions"][0]) == key_of(suggestion)
        assert len(stored(tmp_path)) == 3 - number
    assert again.client.post("/api/labels/undo", headers=SAME).status_code == 409
    assert start_server().state()["waiting"] == TOTAL


def test_kept_labels_are_not_doubted_again_for_the_copy_and_another_detector(
    looked: Looked, start_server: Start, tmp_path: Path
) -> None:
    first = start_server()
    state = first.state()
    for kind, verdict in (("missing_label", "keep"), ("spurious_label", "keep"), ("wrong_class", "change")):
        first.judge(one_of(state, kind), verdict)
    moved = [([side + 1 for side in box], label, score) for box, label, score in SEEN]
    state = start_server(album_of(looked, tmp_path / "copy", moved)).state()
    assert state["verdicts"] == {"change": 0, "keep": 2, "later": 0}
    assert sorted(key.picture for key in keys_of(state)) == [0] * 2 + [1] * 2 + [2] * 5


def test_a_suggestion_is_recognised_by_kind_class_and_box() -> None:
    suggestion = Suggestion(0, 3, "bad_box", np.array([10.0, 10, 30, 30]), 1, 0.5, 0)
    verdict = Verdict("/a.png", "bad_box", "b", (12.0, 10.0, 32.0, 30.0))
    assert verdict.is_on("/a.png", suggestion, "b")
    assert not verdict.is_on("/b.png", suggestion, "b")
    assert not verdict.is_on("/a.png", suggestion, "c")
    assert not verdict.is_on("/a.png", suggestion._replace(kind="wrong_class"), "b")
    assert not verdict.is_on("/a.png", suggestion._replace(box=np.array([20.0, 10, 40, 30])), "b")


def holding(*entry: object) -> bytes:
    return json.dumps({"format": 2, "verdicts": [entry]}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"format": 2}',
        b'{"format": 3, "verdicts": []}',
        b'{"format": 1, "verdicts": [["a", "bad_box", "b", [0, 0, 1, 1], "wrong"]]}',
        holding(),
        holding("a", "bad_box", "b", [0, 0, 1]),
        holding("a", "bad_box", "b", [0, 0, 1, None]),
        holding("a", "bad_box", "b", [0, 0, 1, 1], "keep"),
        holding("a", "bad_box", 3, [0, 0, 1, 1]),
    ],
    ids=map(str, range(12)),
)
def test_a_damaged_file_is_renamed_and_reported(content: bytes, start_server: Start, tmp_path: Path) -> None:
    first = start_server()
    first.judge(first.state()["suggestions"][0], "keep")
    (file,) = (tmp_path / "verdicts").iterdir()
    for number in (1, 2):
        file.write_bytes(content)
        state = start_server().state()
        renamed = file.with_name(f"{file.stem}.damaged-{number}.json")
        assert state["waiting"] == TOTAL
        assert str(renamed) in state["note"]
        assert renamed.read_bytes() == content
        assert not file.exists()
    again = start_server()
    assert again.state()["note"] == ""
    again.judge(again.state()["suggestions"][0], "keep")
    assert start_server().state()["waiting"] == TOTAL - 1


def test_verdicts_that_can_not_be_stored_hold_until_the_server_ends(desk: Desk) -> None:
    first, second = desk.state()["suggestions"][:2]
    with FULL_DISK:
        state = desk.judge(first, "keep")
        assert "No space left" in state["note"]
        assert state["waiting"] == TOTAL - 1
    state = desk.judge(second, "keep")
    assert (state["waiting"], state["note"]) == (TOTAL - 2, "")


def test_two_servers_keep_the_verdicts_of_each_other(start_server: Start, tmp_path: Path) -> None:
    one, other = start_server(), start_server()
    first, second = one.state()["suggestions"][:2]
    other.state()
    one.judge(first, "keep")
    other.judge(second, "keep")
    assert len(stored(tmp_path)) == 2
    one.undo()
    assert [entry[3] for entry in stored(tmp_path)] == [second["box"]]


def queue_of(everything: list[dict[str, Any]], answers: dict[Key, str]) -> list[Key]:
    """Return open suggestions in order: by picture, that with the most likely one first; then those for later."""
    fresh = [one for one in everything if key_of(one) not in answers]
    best = {
        one["picture"]: max(other["score"] for other in fresh if other["picture"] == one["picture"]) for one in fresh
    }
    fresh.sort(key=lambda one: (-best[one["picture"]], one["picture"], -one["score"]))
    return [*map(key_of, fresh), *(key for key, word in answers.items() if word == "later")]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(("change", "keep", "later", "all", "undo", "again")), st.integers(0, TOTAL)),
        max_size=14,
    )
)
def test_every_step_is_undone_and_a_new_server_asks_the_rest(album: Album, steps: list[tuple[str, int]]) -> None:
    """Compare with a dict of verdicts, oldest first. Only kept labels are not doubted again by a new server."""
    with TemporaryDirectory() as folder:

        def start() -> LabelReview:
            return LabelReview(album, lambda: Path(folder), VerdictFile(Path(folder) / "verdicts"))

        desk, answers, past = start(), dict[Key, str](), list[dict[Key, str | None]]()
        everything = desk.state()["suggestions"]
        for step, place in steps:
            queue = queue_of(everything, answers)
            if step == "again":
                answers = {key: word for key, word in answers.items() if word == "keep"}
                desk, past = start(), [{key: None} for key in answers]
            elif step == "undo" and past:
                before = past.pop()
                answers = {key: word for key, word in answers.items() if key not in before}
                answers |= {key: word for key, word in before.items() if word is not None}
                assert desk.undo() == next(iter(before))
            elif step != "undo" and queue:
                keys = [queue[place % len(queue)]]
                if step == "all":
                    keys = [
                        key
                        for key in queue
                        if key.picture == keys[0].picture and (key in answers) == (keys[0] in answers)
                    ]
                past.append({key: answers.get(key) for key in keys})
                word = "change" if step == "all" else step
                desk.judge(keys, word)
                answers = {key: word for key, word in answers.items() if key not in keys} | dict.fromkeys(keys, word)
            state = desk.state()
            assert keys_of(state) == queue_of(everything, answers)
            assert state["undo"] == bool(past)
            assert {word: count for word, count in state["verdicts"].items() if count} == {
                word: [*answers.values()].count(word) for word in answers.values()
            }


@pytest.fixture
def served(album: Album, tmp_path: Path) -> Iterator[Served]:
    yield from serving(album, tmp_path)


def frames(page: Any) -> dict[str, int]:
    """Return the number of frames of each kind."""
    kinds = ("suggested", "suspect", "further", "truth")
    return {kind: page.locator(f"#stage rect.{kind}").count() for kind in kinds}


def test_keys_judge_and_undo_and_two_browsers_agree(browser: Any, served: Served, tab: Tab, tmp_path: Path) -> None:
    second = Tab(browser)
    page, other = (one.enter(served, "/labels", READY) for one in (tab, second))
    count, place = page.locator("#count"), page.locator("#place")
    until(count).to_have_text("12 questions")
    until(place).to_have_text("1 of 5 in this picture")
    assert page.locator("#says").inner_text() == f"Another box for {HOSTILE[1]}?"
    assert page.get_by_role("button", name="Use the new box").count() == 1
    assert frames(page) == {"suggested": 1, "suspect": 1, "further": 4, "truth": 3}
    for key, text in (("c", "11 questions"), ("k", "10 questions"), ("l", "10 questions, 1 of them for later")):
        page.keyboard.press(key)
        until(count).to_have_text(text)
    until(place).to_have_text("4 of 5 in this picture")
    assert page.locator("#sums dd").all_inner_texts() == ["1", "1", "1"]
    assert page.locator("#copy code").first.inner_text() == str(tmp_path / "copy")
    other.clock.fast_forward(2000)
    until(other.locator("#count")).to_have_text("10 questions, 1 of them for later")
    other.get_by_role("button", name="Change all 2 in this picture").click()
    until(other.locator("#count")).to_have_text("8 questions, 1 of them for later")
    until(other.locator("#place")).to_have_text("1 of 5 in this picture")
    page.clock.fast_forward(2000)
    until(count).to_have_text("8 questions, 1 of them for later")
    page.keyboard.press("u")
    until(count).to_have_text("10 questions, 1 of them for later")
    until(place).to_have_text("4 of 5 in this picture")
    for text in (
        "8 questions, 1 of them for later",
        "3 questions, 1 of them for later",
        "1 question, 1 of them for later",
    ):
        page.keyboard.press("a")
        until(count).to_have_text(text)
    until(place).to_have_text("5 of 5 in this picture")
    until(page.locator("#all")).to_be_hidden()
    page.keyboard.press("a")  # nothing happens
    page.keyboard.press("k")
    until(page.locator("#opening")).to_be_visible()
    assert page.locator("#opening").inner_text() == "All questions are answered."
    assert page.get_by_role("button").all_inner_texts() == ["Undo\nu"]
    page.keyboard.press("u")
    until(count).to_have_text("1 question, 1 of them for later")
    with page.expect_response(lambda one: "/api/labels/undo" in one.url):  # it waits for the verdict
        page.evaluate("['c', 'u'].forEach((key) => dispatchEvent(new KeyboardEvent('keydown', { key })))")
    until(count).to_have_text("1 question, 1 of them for later")
    second.close()
    assert not second.said


def test_a_label_without_an_object_is_the_only_suspect(served: Served, tab: Tab) -> None:
    page = tab.enter(served, "/labels", READY)
    for left in (11, 10, 9, 8):
        page.keyboard.press("c")
        until(page.locator("#count")).to_have_text(f"{left} questions")
    until(page.locator("#says")).to_have_text(f"No {HOSTILE[0]} here?")
    assert frames(page) == {"suggested": 0, "suspect": 1, "further": 0, "truth": 5}
    suspect = page.locator("#stage rect.suspect")
    assert [suspect.get_attribute(name) for name in ("x", "y", "width", "height")] == ["40", "10", "20", "20"]


def test_nothing_overlaps_and_the_page_is_accessible(served: Served, tab_without_policy: Tab) -> None:
    for width, scheme in ((1280, "light"), (1280, "dark"), (2560, "light"), (390, "light")):
        page = tab_without_policy.enter(served, "/labels", READY, width=width, scheme=scheme)
        assert_fits(page, width)
        if width == 1280:
            assert_accessible(page, scheme)
