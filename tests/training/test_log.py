import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rcnn.training.log import Log, duration
from rcnn.training.recorders.console import ConsoleTable
from tests.training.pieces import about


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)


def started(**facts: Any) -> tuple[ConsoleTable, list[str]]:
    """Return a table at the start of a run, and the list of lines that it writes."""
    lines = list[str]()
    table = ConsoleTable(Log(lines.append, None))
    table.start(about(Path(), **facts))
    return table, lines


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run(log: Log) -> None:
    log.say("begin [here]")
    table = ConsoleTable(log)
    table.start(about(Path()))
    for step in range(1, 5):
        numbers = {"epoch": (step + 1) // 2, "step": step, "lr": 1e-4, "train_rpn_objectness": 0.5, "train_loss": 0.5}
        numbers |= {"images_per_second": 12.0, "memory_gb": 0.5}
        table.step(numbers)
        if step % 2 == 0:
            table.epoch({**numbers, "ap": 0.25 * step})
    table.end({})
    log.table("AP by class", ["class", "boxes", "ap"], [["cat", "7", "0.5000"], ["dog", "0", "-"]])


def test_without_a_terminal_lines_are_plain() -> None:
    screen, lines = console(terminal=False), list[str]()
    run(Log(lines.append, screen))
    shown = text(screen)
    assert "\x1b" not in shown
    assert "begin [here]" in shown
    heading, step, first, second = lines[1:5]
    columns = "epoch rpn obj images/s val loss AP AP50 ETA"
    assert heading.split() == columns.split()
    assert step.split()[:6] == ["1/2", "0.5000", "12.0", "-", "-", "-"]
    assert first.split()[:6] == ["1/2", "0.5000", "12.0", "-", "0.5000", "-"]
    assert second.split()[:6] == ["2/2", "0.5000", "12.0", "-", "1.0000", "-"]
    assert "cat" in shown
    assert "dog" in lines[-1]
    assert "ap -" in lines[-1]


def test_a_terminal_gets_a_live_line_and_the_same_epochs() -> None:
    screen = console(terminal=True)
    run(Log(None, screen))
    assert "1/2" in text(screen)
    assert "\x1b" in text(screen)


def test_other_processes_are_silent() -> None:
    run(Log(None, None))


def test_each_stage_has_its_own_columns() -> None:
    """Epochs, scores and remaining time start anew with each stage; rows count the epochs of all stages."""
    table, lines = started(best=("proposal_ar300", "ap"))
    numbers = {"lr": 1e-4, "train_loss": 0.5, "images_per_second": 12.0, "memory_gb": 0.5}
    for stage, epoch, losses, scores in (
        (1, 2, {"train_rpn_box": 0.25}, {"val_loss": 0.5, "proposal_ar300": 0.75, "ap": None}),
        (2, 3, {"train_roi_class": 0.125}, {}),
    ):
        table.step({"epoch": epoch, "step": 1, "stage": stage, **numbers, **losses})
        table.epoch({"epoch": epoch, "step": 2, "stage": stage, **numbers, **losses, **scores})
    shown = [line.split() for line in lines]
    assert shown[0] == ["epoch", "rpn", "box", "images/s", "val", "loss", "AR300", "ETA"]
    assert shown[1][:5] == ["2/2", "0.2500", "12.0", "0.5000", "0.7500"]
    assert shown[2] == ["epoch", "roi", "cls", "images/s", "val", "loss", "AP", "AP50", "ETA"]
    assert shown[3][:6] == ["1/2", "0.1250", "12.0", "-", "-", "-"]


@pytest.mark.parametrize(
    ("epochs", "steps", "loss"),
    [(9, 100, 123.456), (30, 10_000, 123.456), (1000, 10**7, 123.456), (100_000, 10**9, 123.456), (100, 4, 12.34567)],
)
def test_an_epoch_is_one_line_of_eighty_columns(epochs: int, steps: int, loss: float) -> None:
    table, lines = started(epochs=epochs, steps=steps)
    losses = dict.fromkeys(("train_rpn_objectness", "train_rpn_box", "train_roi_class", "train_roi_box"), loss)
    row = {"epoch": epochs, "step": 1, "lr": 1e-4, **losses, "train_loss": 9.0, "images_per_second": 1234.5}
    table.epoch({**row, "memory_gb": 0.5, "val_loss": loss, "ap": 0.25, "ap50": 0.5})
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    assert "0.2500" in lines[1]


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]


def test_names_from_files_cannot_control_the_terminal() -> None:
    plain = console(terminal=False)
    log = Log(None, plain)
    log.say("\x1b[2J\udce9.jpg")
    log.table("AP", ["class", "AP"], [["\x1b[2J\u202e", "0.5"]])
    assert "\\x1b[2J\\udce9.jpg" in text(plain)
    assert "\x1b" not in text(plain)
