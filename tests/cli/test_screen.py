import json
import sys
from pathlib import Path

import numpy as np
import pytest

from rcnn.cli import screen


def test_json_holds_what_arrays_and_paths_hold() -> None:
    value = {"a": np.array([1.5, np.nan]), 2: Path("x"), "t": (True, None, np.int64(3), float("inf"))}
    assert screen.jsonable(value) == {"a": [1.5, None], "2": "x", "t": [True, None, 3, None]}


def test_while_json_is_wanted_prints_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.stdout_for_json(True):
        screen.say("hello")
        print("there")
    screen.emit({"name": "caf\u00e9"})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"name": "caf\u00e9"}
    assert captured.err == "hello\nthere\n"


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    screen.say("a [bold] name :smile: " + "x" * 300)
    assert capsys.readouterr().out == "a [bold] name :smile: " + "x" * 300 + "\n"


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (float("nan"), "-"), (12345, "12,345"), ("[x]", "[x]")]
)
def test_cells(value: object, text: str) -> None:
    assert screen.cell(value) == text


def test_a_bar_is_only_shown_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    with screen.progress("scoring") as progress:
        progress(1, 2)
    assert capsys.readouterr().err == ""
