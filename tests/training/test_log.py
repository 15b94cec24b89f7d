import io

from rich.console import Console

from rcnn.training.log import Log, duration


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def run(log: Log) -> None:
    log.say("begin [here]")
    log.start(2, 4, 0)
    for step in range(1, 5):
        log.step((step + 1) // 2, step, {"rpn_objectness": 0.5, "lr": 1e-4, "images/s": 12.0})
        if step % 2 == 0:
            log.epoch(step // 2, step, {"rpn_objectness": 0.5, "lr": 1e-4, "AP": 0.25 * step})
    log.stop()
    log.table(
        "AP by class", [{"class": "cat", "boxes": 7, "ap": 0.5}, {"class": "dog", "boxes": 0, "ap": float("nan")}]
    )


def test_plain_lines_where_it_is_no_terminal() -> None:
    screen, kept = console(terminal=False), list[str]()
    run(Log(kept.append, screen))
    shown = text(screen)
    assert "\x1b" not in shown
    assert "begin [here]" in shown
    heading, first, second = [line for line in kept if "AP" in line or "1.0000" in line or "0.5000" in line][1:4]
    assert heading.split()[:3] == ["epoch", "rpn", "obj"]
    assert first.split()[:2] == ["1/2", "0.5000"]
    assert second.split()[0] == "2/2"
    assert "1.0000" in second
    assert "cat" in shown
    assert "dog" in kept[-1]
    assert "ap -" in kept[-1]


def test_a_terminal_gets_a_live_line_and_the_same_epochs() -> None:
    screen = console(terminal=True)
    run(Log(None, screen))
    assert "1/2" in text(screen)
    assert "\x1b" in text(screen)


def test_other_processes_are_silent() -> None:
    run(Log(None, None))


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3725)] == ["0:00", "1:00", "1:02:05"]
