import itertools
import json
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn import cores
from rcnn.cli import screen
from rcnn.data.dataset import Dataset, Fault
from rcnn.errors import cell, wrapped

from ..training.pieces import threads
from .conftest import Run

WORDS = st.lists(st.text("abc./-", min_size=1, max_size=30), min_size=1, max_size=30)


@pytest.fixture
def narrow(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Run a command in a terminal of 80 columns, and return its lines without colours."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TTY_INTERACTIVE", "0")

    def call(*words: object) -> list[str]:
        outcome = run(*words)
        return [re.sub(r"\x1b\[[\d;?]*\w", "", line).rstrip() for line in (outcome.out + outcome.err).splitlines()]

    return call


def test_arrays_and_paths_become_json_values() -> None:
    value = {"a": np.array([1.5, np.nan]), 2: Path("x"), "t": (True, None, np.int64(3), float("inf"))}
    assert screen.jsonable(value) == {"a": [1.5, None], "2": "x", "t": [True, None, 3, None]}


def test_with_json_everything_else_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with screen.json_document(True) as document:
        screen.say("hello")
        print("there")
        document["name"] = "caf\u00e9"
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
    assert cell(value) == text


def test_a_bar_is_only_shown_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert not sys.stderr.isatty()
    with screen.progress("scoring") as progress:
        progress(1, 2)
    assert capsys.readouterr().err == ""


@given(WORDS, st.integers(8, 80))
def test_lines_are_broken_only_between_words(words: list[str], width: int) -> None:
    rows = wrapped(" ".join(words), width).split("\n")
    assert [word for row in rows for word in row.split(" ")] == words
    assert all(len(row) <= width or " " not in row for row in rows)
    assert all(len(row) + 1 + len(following.split(" ")[0]) > width for row, following in pairwise(rows))  # full lines


@pytest.mark.parametrize(
    "text",
    [
        "rcnn predict runs/train/a/weights/best.safetensors IMAGE... --score 0.5",
        "`rcnn data check a b c d`",
        "anchors.sizes=[[32],[64]] anchors.ratios=[0.5,1,2]",
    ],
)
def test_text_to_copy_stays_on_one_line(text: str) -> None:
    assert wrapped(f"Then continue with: {text}", 20) == f"Then continue with:\n{text}"
    assert wrapped(f"  a\n   b {text}", 200) == f"  a\n   b {text}"


def test_tables_of_a_narrow_terminal_cut_neither_words_nor_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "60")
    columns = ["class", "objects", "not proposed", "taken for another class", "found elsewhere", "AP if mended"]
    screen.table("title", columns, [["a wine glass of two words", 12345, 1, 1, "12 / 345 / 6789", 0.5]])
    output = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, output.splitlines())) <= 60
    words = {word for text in [*columns, "a wine glass of two words"] for word in text.split()}
    assert words | {"12,345", "0.500"} <= set(output.split())
    assert "12 / 345 / 6789" in output


def test_a_command_to_paste_has_its_path_in_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    faults = (Fault("a.jpg", "small", "mendable"),)
    screen.dataset_line(Dataset(Path("my data"), "voc", "val", ("cat",), (1,), (), faults))
    assert "1 fault mended or left out; `rcnn data check 'my data'` lists it\n" in capsys.readouterr().out


def test_every_line_of_a_command_fits_eighty_columns(
    narrow: Callable[..., list[str]], data: Path, weights: Path
) -> None:
    for words in (
        ("val", weights, "shapes"),
        ("why", weights, "shapes"),
        ("predict", weights, "shapes"),
        ("anchors", "shapes"),
        ("data", "stats", "shapes"),
        ("data", "check", "shapes", "data.max_pixels=100"),
        ("val", weights, "nowhere"),
        ("train", "shapes", "--dry-run"),
    ):
        long = [line for line in narrow(*words) if len(line) > 80 and " " in line.strip()]
        assert not [line for line in long if str(weights) not in line], words


@pytest.mark.parametrize(
    "words",
    [
        "train {data} --model tiny-fpn --epochs 1 --device cpu preprocess.short=64 preprocess.long=96 data.workers=0",
        "predict {weights} {images}",
        "predict {weights} {images} --shard 1/1",
        "propose {weights} {images}",
        "val {weights} {data}",
    ],
    ids=["train", "predict", "predict --shard", "propose", "val"],
)
@pytest.mark.usefixtures("blank_figures")
def test_a_busy_machine_is_remarked_once(
    run: Run, data: Path, images: Path, weights: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece of computing appears to have run for 2 s and waited for a core for 6 s."""
    times = ((2.0 * number, 6.0 * number) for number in itertools.count())
    monkeypatch.setattr(cores, "_times", lambda: next(times))
    for name, value in vars(cores.CoreMeter()).items():
        monkeypatch.setattr(cores.METER, name, value)
    with threads(2):
        outcome = run.ok(*words.format(data=data, images=images, weights=weights).split())
    text = " ".join((outcome.out + outcome.err).split())
    assert text.count("the 2 threads of this process get only 25% of the CPU time") == 1
    assert "OMP_NUM_THREADS=1" in text
