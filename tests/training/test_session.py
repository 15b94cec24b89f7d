import math
import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rcnn.config import Settings, override
from rcnn.data.loading.loader import Item
from rcnn.errors import TrainingError
from rcnn.presets import settings_of
from rcnn.training import session
from rcnn.training.distributed import Distributed
from rcnn.training.loop import Engine, Progress, Step, train_step
from tests.model import tiny
from tests.training import pieces


@pytest.mark.parametrize(
    ("seconds", "minutes", "rank", "late"),
    [(601, 10, 0, True), (599, 10, 0, False), (601, 10, 1, False), (2, 0.02, 0, True)],
)
def test_a_checkpoint_is_due_by_the_writers_clock(
    monkeypatch: pytest.MonkeyPatch, seconds: float, minutes: float, rank: int, late: bool
) -> None:
    settings = override(settings_of("mobilenet-fpn"), {"train": {"checkpoint_minutes": minutes}})
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: 1000.0 + seconds))
    one = SimpleNamespace(
        saved=1000.0, run=SimpleNamespace(distributed=Distributed(torch.device("cpu"), rank, 2)), settings=settings
    )
    assert session.is_late(one) == late  # type: ignore[arg-type]


def session_of(engine: Engine, items: Iterable[Item], progress: Progress, **fields: Any) -> Any:
    """What `train_epoch` reads of a session, without a data set and a run folder."""
    settings = override(Settings(), {"train": {"accumulate": engine.settings.accumulate}})
    steps: list[dict[str, float]] = []
    run = SimpleNamespace(
        recorders=SimpleNamespace(step=steps.append), stages=(None,), distributed=engine.distributed, steps=steps
    )
    loader = SimpleNamespace(steps=9, epoch=lambda *_: (item for item in items))
    return SimpleNamespace(
        run=run, engine=engine, loader=loader, progress=progress, settings=settings, saved=math.inf, **fields
    )


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_epoch_counts_batches_and_steps_and_averages_losses(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    engine, taken = pieces.engine(tiny.model(), accumulate=2, ahead=ahead), list[Step]()
    monkeypatch.setattr(session, "train_step", lambda *given: taken.append(train_step(*given)) or taken[-1])
    one = session_of(engine, map(pieces.item, range(3)), Progress(step=4))
    session.train_epoch(one, threading.Event())
    assert (one.progress.step, one.progress.place) == (6, 3)
    assert [numbers["step"] for numbers in one.run.steps] == [5, 6]
    for name, mean in one.progress.means().items():
        assert mean == pytest.approx(sum(step.read(engine).sums[name] for step in taken) / 3)
        assert one.run.steps[-1][f"train_{name}"] == mean


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_step_is_read_when_so_many_more_are_queued(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """Ctrl-C at the second step: all that are queued are read before the checkpoint is made."""
    told, wanted, read = list[str](), threading.Event(), Step.read

    def take(engine: Engine, items: list[Item], number: int, requests: tuple[bool, ...]) -> Step:
        told.append(f"queue {number}")
        if number == 1:
            wanted.set()
        return train_step(engine, items, number, requests)

    monkeypatch.setattr(session, "train_step", take)
    monkeypatch.setattr(Step, "read", lambda step, engine: told.append(f"read {step.number}") or read(step, engine))
    engine = pieces.engine(tiny.model(), ahead=ahead)
    one = session_of(
        engine, map(pieces.item, range(9)), Progress(), checkpoint=lambda: told.append(f"save {one.progress.step}")
    )
    with pytest.raises(KeyboardInterrupt):
        session.train_epoch(one, wanted)
    assert (
        told
        == {
            0: ["queue 0", "read 0", "queue 1", "read 1", "queue 2", "read 2", "save 3"],
            1: ["queue 0", "queue 1", "read 0", "queue 2", "read 1", "queue 3", "read 2", "read 3", "save 4"],
        }[ahead]
    )


@pytest.mark.parametrize("error", [RuntimeError, ChildProcessError])
def test_a_loss_that_is_not_finite_is_told_before_what_follows_from_it(error: type[Exception]) -> None:
    def items() -> Iterator[Item]:
        bad = pieces.item()
        bad.batch.images[1] = torch.nan
        yield bad
        raise error("something that the broken weights brought about")

    one = session_of(pieces.engine(tiny.model(), ahead=1), items(), Progress())
    with pytest.raises(TrainingError, match="the loss is not finite at step 1: "):
        session.train_epoch(one, threading.Event())


@pytest.mark.parametrize("pressed", [True, False])
def test_workers_that_ctrl_c_ends_first_cost_nothing(pressed: bool) -> None:
    wanted, saved = threading.Event(), list[int]()

    def items() -> Iterator[Item]:
        if pressed:
            wanted.set()
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
        yield

    one = session_of(
        pieces.engine(tiny.model()), items(), Progress(step=4, place=4), checkpoint=lambda: saved.append(4)
    )
    with pytest.raises(KeyboardInterrupt if pressed else RuntimeError):
        session.train_epoch(one, wanted)
    assert saved == [4] * pressed


@pytest.mark.parametrize(
    ("epoch", "best", "patience", "every", "ended"),
    [
        (5, 1, None, 1, False),
        (9, 1, None, 1, True),
        (3, 1, 3, 1, False),
        (4, 1, 3, 1, True),
        (4, 4, 1, 1, False),
        (4, 0, 1, 1, False),  # nothing validated yet
        (7, 4, 3, 4, False),  # nothing validated since
        (8, 4, 3, 4, True),
    ],
)
def test_a_run_ends_by_its_epochs_or_its_patience(
    epoch: int, best: int, patience: int | None, every: int, ended: bool
) -> None:
    progress = Progress(epoch=epoch, best_epoch=best)
    settings = override(Settings(), {"train": {"epochs": 9, "patience": patience}, "val": {"every": every}})
    assert session.finished(progress, settings) == ended
