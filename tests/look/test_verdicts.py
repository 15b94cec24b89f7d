"""What is wrong or skipped stays from day to day: every new `Desk` is a server that was started again."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from rcnn.diagnose.labels import Doubt
from rcnn.look.album import Album
from rcnn.look.corrections import Corrections, Key
from rcnn.look.finder import judged
from rcnn.look.verdicts import Verdict, Verdicts
from tests.pages import HOST, Looked, guarded

from .test_doubts import SEEN, Desk, doubted, told_by

Start = Callable[..., Desk]


@pytest.fixture
def album(looked: Looked, tmp_path: Path) -> Album:
    return doubted(looked, tmp_path)


@pytest.fixture
def start(album: Album, tmp_path: Path) -> Start:
    def start(shown: Album = album) -> Desk:
        client = TestClient(guarded(shown, tmp_path), base_url=f"http://{HOST}")
        client.get(client.app.address)  # type: ignore[attr-defined]
        return Desk(client, tmp_path)

    return start


def kept(folder: Path) -> list[list[object]]:
    (file,) = (folder / "verdicts").iterdir()
    return json.loads(file.read_text())["verdicts"]


def test_wrong_and_skipped_are_not_asked_again_and_undo_goes_on(start: Start, tmp_path: Path) -> None:
    first = start()
    doubts = first.told()["doubts"]
    for doubt, verdict in zip(doubts, ("wrong", "skip", "right", "wrong"), strict=False):
        first.say(doubt, verdict)
    assert len(kept(tmp_path)) == 3
    again = start()
    told = again.told()
    assert (told["waiting"], told["said"]) == (5, {"right": 0, "wrong": 2, "skip": 1})
    assert told["note"] == ""
    assert (told["doubts"][0]["place"], told["doubts"][0]["detection"]) == (doubts[2]["place"], doubts[2]["detection"])
    again.say(told["doubts"][-1], "skip")
    left = ({"wrong": 2, "skip": 1}, {"wrong": 1, "skip": 1}, {"wrong": 1, "skip": 0}, {"wrong": 0, "skip": 0})
    expected = (told["doubts"][-1], doubts[3], doubts[1], doubts[0])
    for number, (said, doubt) in enumerate(zip(left, expected, strict=True)):
        told = again.undo()
        assert {word: told["said"][word] for word in ("wrong", "skip")} == said
        assert (told["doubts"][0]["place"], told["doubts"][0]["box"]) == (doubt["place"], doubt["box"])
        assert len(kept(tmp_path)) == 3 - number
    assert again.client.post("/api/doubts/undo", headers={"origin": f"http://{HOST}"}).status_code == 409
    assert start().told()["waiting"] == 8


def test_the_corrected_copy_and_another_detector_do_not_ask_again(looked: Looked, start: Start, tmp_path: Path) -> None:
    first = start()
    for verdict in ("wrong", "wrong", "right"):
        first.say(first.told()["doubts"][0], verdict)
    after = Album(lambda: looked.detector, tmp_path / "copy")
    after.open()
    moved = [([side + 1 for side in box], label, score) for box, label, score in SEEN]
    for place, seen in enumerate((moved, moved[:1], moved)):
        after.found[place] = judged(told_by(seen), after.pictures[place].truth)
    told = start(after).told()
    assert told["said"] == {"right": 0, "wrong": 2, "skip": 0}
    assert told["waiting"] == 5


def test_a_suggestion_is_known_again_by_kind_class_and_box() -> None:
    doubt = Doubt(0, 3, "bad_box", np.array([10.0, 10, 30, 30]), 1, 0.5, 0)
    verdict = Verdict("/a.png", "bad_box", "b", (12.0, 10.0, 32.0, 30.0), "wrong")
    assert verdict.settles(doubt, "b")
    assert not verdict.settles(doubt, "c")
    assert not verdict.settles(doubt._replace(kind="wrong_class"), "b")
    assert not verdict.settles(doubt._replace(box=np.array([20.0, 10, 40, 30])), "b")


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
def test_a_damaged_file_is_set_aside_and_told(content: bytes, start: Start, tmp_path: Path) -> None:
    first = start()
    first.say(first.told()["doubts"][0], "wrong")
    (file,) = (tmp_path / "verdicts").iterdir()
    for number in (1, 2):
        file.write_bytes(content)
        told = start().told()
        aside = file.with_name(f"{file.stem}.damaged-{number}.json")
        assert told["waiting"] == 8
        assert str(aside) in told["note"]
        assert aside.read_bytes() == content
        assert not file.exists()
    again = start()
    assert again.told()["note"] == ""
    again.say(again.told()["doubts"][0], "skip")
    assert start().told()["waiting"] == 7


def test_what_can_not_be_kept_is_told_and_holds_today(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: bytes, **__: bool) -> None:
        raise OSError(28, "No space left on device", str(path))

    desk = start()
    first, second = desk.told()["doubts"][:2]
    with monkeypatch.context() as patch:
        patch.setattr("rcnn.look.verdicts.atomic_write", refuse)
        told = desk.say(first, "wrong")
        assert "No space left" in told["note"]
        assert told["waiting"] == 7
    told = desk.say(second, "wrong")
    assert (told["waiting"], told["note"]) == (6, "")


def test_two_servers_keep_the_verdicts_of_each_other(start: Start, tmp_path: Path) -> None:
    one, other = start(), start()
    first, second = one.told()["doubts"][:2]
    other.told()
    one.say(first, "wrong")
    other.say(second, "skip")
    assert len(kept(tmp_path)) == 2
    one.undo()
    assert [entry[-1] for entry in kept(tmp_path)] == ["skip"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(("right", "wrong", "skip", "undo", "again")), max_size=12))
def test_whenever_the_server_ends_the_same_is_left_to_judge(album: Album, steps: list[str]) -> None:
    """A model: what was said, oldest first; with a new server, what was right is asked again, as it is in its copy."""
    with TemporaryDirectory() as folder:

        def start() -> Corrections:
            return Corrections(album, lambda: Path(folder), Verdicts(Path(folder) / "verdicts"))

        desk, said = start(), dict[Key, str]()
        everything = [Key(one["place"], one["detection"]) for one in desk.told()["doubts"]]
        for step in steps:
            waiting = [key for key in everything if key not in said]
            if step == "again":
                desk, said = start(), {key: word for key, word in said.items() if word != "right"}
            elif step != "undo" and waiting:
                desk.say(waiting[-1], step)
                said[waiting[-1]] = step
            elif step == "undo" and said:
                key, _ = said.popitem()
                assert desk.undo() == key
            told = desk.told()
            assert [Key(one["place"], one["detection"]) for one in told["doubts"]] == [
                key for key in everything if key not in said
            ]
            assert sum(told["said"].values()) == len(said)
