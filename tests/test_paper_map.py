"""docs/PAPER_MAP.md names code, settings, tests and commands that exist."""

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from rcnn.config import keys
from rcnn.presets import PRESETS
from tests.test_docs import is_command

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "PAPER_MAP.md").read_text(encoding="utf-8")
ROWS = {cells[0]: cells[1:] for cells in ([c.strip() for c in r.split("|")[1:-1]] for r in PAGE.splitlines()) if cells}
SUBJECTS = [f"S{number}" for number in range(1, 69)]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def look_up(name: str) -> Any:
    """Return the object of a dotted name under `rcnn.`, a module or an object in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing: Any = import_module(".".join(["rcnn", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            thing = getattr(thing, part)
        return thing
    raise AssertionError(f"rcnn.{name} does not exist")


def test_every_subject_has_a_row_with_code_and_a_test_in_order() -> None:
    assert [name for name in ROWS if re.fullmatch(r"S\d+", name)] == SUBJECTS
    for subject in SUBJECTS:
        what, code, _, test, _ = ROWS[subject]
        assert what
        assert quoted(code), f"{subject} names no code"
        assert quoted(test), f"{subject} names no test"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_a_row_names_exists(subject: str) -> None:
    _, code, settings, tests, commands = ROWS[subject]
    for name in quoted(code):
        look_up(name)
    assert set(quoted(settings)) <= set(keys())
    for test in quoted(tests):
        file, _, name = test.partition("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not name or f"\ndef {name}(" in text, f"{test} is no test"
    for command in quoted(commands):
        check_command(command)


def test_the_papers_experiments_are_commands() -> None:
    commands = [command for command in quoted(PAGE) if command.startswith("rcnn paper")]
    assert {shlex.split(command)[2] for command in commands} == {
        *("mean-proposals", "proposals", "top-n", "time", "per-class", "anchors", "lambda", "one-stage", "recall"),
        "schemes",
    }
    for command in commands:
        check_command(command)


def check_command(command: str) -> None:
    assert command.startswith("rcnn ")
    assert is_command(command), f"`{command}` is no command"
    words = shlex.split(command)
    assert {word.partition("=")[0] for word in words if "=" in word} <= set(keys())
    assert all(words[i + 1] in PRESETS for i, word in enumerate(words) if word == "--model")
