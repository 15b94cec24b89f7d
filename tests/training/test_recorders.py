"""The numbers that recorders of new and resumed runs receive, and recorders that fail."""

import json
from pathlib import Path

import pytest

from rcnn.training.recorders import Recorder, Recorders, Row
from rcnn.training.run import Run
from rcnn.training.train import train
from tests.training.pieces import OPTIONS, TIMES, Keeper, about, assert_same, killed
from tests.training.test_train import OVERRIDES

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
STEPS = 3
"""Steps per epoch."""


class Broken(Keeper):
    """Fails in one of its methods."""

    def __init__(self, call: str) -> None:
        super().__init__()

        def fail(fact: object) -> None:
            self.received.append((call, fact))
            raise ZeroDivisionError(f"no {call}")

        setattr(self, call, fail)


@pytest.fixture(scope="module")
def pair() -> tuple[Keeper, Keeper]:
    return Keeper(), Keeper()


@pytest.fixture(scope="module")
def whole(data: Path, pair: tuple[Keeper, Keeper], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was not interrupted, with two recorders."""
    return train(data, overrides=OVERRIDES, runs=tmp_path_factory.mktemp("whole"), recorders=pair, **OPTIONS)


def test_all_recorders_receive_the_same_numbers(whole: Run, pair: tuple[Keeper, Keeper]) -> None:
    first, second = pair
    assert first.received == second.received
    assert first.calls == ["start", *(["step"] * STEPS + ["epoch"]) * 2, "end"]
    assert [row for name, row in first.received if name == "epoch"] == whole.rows
    lines = (whole.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole.rows


def test_recorders_receive_plain_numbers(whole: Run, pair: tuple[Keeper, Keeper]) -> None:
    start, *numbers = [fact for _, fact in pair[0].received]
    assert json.loads(json.dumps(start.settings))["train"]["epochs"] == 2
    facts = {"names": whole.detector.names, "images": (6, 2), "epochs": 2, "steps": 2 * STEPS}
    assert start._replace(settings={}) == about(whole.folder, best=("ap",), **facts)
    for fact in numbers:
        assert {type(name) for name in fact} == {str}
        assert {type(value) for value in fact.values()} <= {int, float, type(None)}
    assert [fact["step"] for fact in pair[0].of("step")] == [1, 2, 3, 4, 5, 6]
    assert [fact["epoch"] for fact in pair[0].of("step")] == [1, 1, 1, 2, 2, 2]
    losses = {"train_rpn_objectness", "train_rpn_box", "train_roi_class", "train_roi_box", "train_loss"}
    assert set(numbers[0]) == {"epoch", "step", "lr", "images_per_second", "memory_gb", *losses}
    last, row = pair[0].of("step")[-1], pair[0].of("epoch")[-1]
    assert last.items() <= row.items()  # means of the epoch
    assert pair[0].of("end")[0]["ap"] == whole.metrics.ap == max(row["ap"] for row in whole.rows)


def test_recorders_of_a_resumed_run_receive_the_rest(
    whole: Run, pair: tuple[Keeper, Keeper], data: Path, tmp_path: Path
) -> None:
    """Broken off in the second epoch, two steps after the first; the table forgets what came after the checkpoint."""
    before, after = Keeper(), Keeper()
    with killed(step=STEPS + 2, saved=STEPS + 1):
        train(data, overrides=OVERRIDES, runs=tmp_path, recorders=[before], **OPTIONS)
    assert before.calls == ["start", *["step"] * STEPS, "epoch", "step", "step", "end"]
    assert before.of("end") == [{}]
    folder = tmp_path / "shapes-1"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "half": true}\n')
    (folder / "results.csv").write_text("epoch\n1\n2\n")
    run = train(resume=folder, quiet=True, recorders=[after])
    assert_same(run, whole)
    start = after.received[0][1]
    assert (start.stage, start.step, len(start.rows)) == (1, STEPS + 1, 1)
    assert [{k: v for k, v in row.items() if k not in TIMES} for row in start.rows] == pair[0].of("epoch")[:1]
    assert [*before.of("step")[:-1], *after.of("step")] == pair[0].of("step")
    assert [*before.of("epoch"), *after.of("epoch")] == pair[0].of("epoch")
    assert after.of("end") == pair[0].of("end")
    assert len((folder / "results.csv").read_text().splitlines()) == 3


def test_a_recorder_that_fails_is_reported_once_and_the_run_completes(whole: Run, data: Path, tmp_path: Path) -> None:
    broken, keeper = [Broken(call) for call in ("start", "step", "epoch", "end")], Keeper()
    run = train(data, overrides=OVERRIDES, runs=tmp_path, recorders=[*broken, keeper], **OPTIONS)
    assert_same(run, whole)
    assert [len(one.received) for one in broken] == [1, 2, 1 + STEPS + 1, len(keeper.received)]
    assert keeper.calls == ["start", *(["step"] * STEPS + ["epoch"]) * 2, "end"]
    log = (run.folder / "log.txt").read_text()
    for call in ("start", "step", "epoch", "end"):
        message = f"the recorder Broken failed in `{call}` and is not called again: ZeroDivisionError: no {call}"
        assert log.count(message) == 1


def test_the_others_continue_if_a_recorder_of_the_run_folder_fails(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr("rcnn.training.recorders.standard.plot_history", fail)
    run = train(data, overrides=OVERRIDES, runs=tmp_path, **OPTIONS)
    assert (run.folder / "log.txt").read_text().count("the recorder History failed in `epoch`") == 1
    assert len(run.rows) == len((run.folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_each_recorder_receives_a_copy_of_the_row(tmp_path: Path) -> None:
    class Greedy(Recorder):
        def epoch(self, row: Row) -> None:
            row.clear()  # type: ignore[attr-defined]

    keeper = Keeper()
    recorders = Recorders([Greedy(), keeper], print)
    with recorders.running(about(tmp_path)):
        recorders.epoch({"ap": 0.5})
    assert keeper.of("epoch") == [{"ap": 0.5}]
