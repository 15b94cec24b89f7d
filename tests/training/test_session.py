import math
import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rcnn.config import Settings, override
from rcnn.data.loader import Item
from rcnn.presets import settings_of
from rcnn.training import session
from rcnn.training.distributed import Team
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
    one = SimpleNamespace(saved=1000.0, run=SimpleNamespace(team=Team(torch.device("cpu"), rank, 2)), settings=settings)
    assert session.is_late(one) == late  # type: ignore[arg-type]


def session_of(engine: Engine, items: Iterable[Item], progress: Progress, **fields: Any) -> Any:
    """What `train_epoch` reads of a session, without a data set and a run folder."""
    settings = override(Settings(), {"train": {"accumulate": engine.settings.accumulate}})
    steps: list[dict[str, float]] = []
    run = SimpleNamespace(recorders=SimpleNamespace(step=steps.append), stages=(None,), team=engine.team, steps=steps)
    loader = SimpleNamespace(steps=9, epoch=lambda *_: (item for item in items))
    return SimpleNamespace(
        run=run, engine=engine, loader=loader, progress=progress, settings=settings, saved=math.inf, **fields
    )


def test_an_epoch_counts_batches_and_steps_and_averages_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, taken, items = pieces.engine(tiny.model(), accumulate=2), list[Step](), list(map(pieces.item, range(3)))
    monkeypatch.setattr(session, "train_step", lambda *given: taken.append(train_step(*given)) or taken[-1])
    one = session_of(engine, items, Progress(step=4))
    session.train_epoch(one, threading.Event())
    assert (one.progress.step, one.progress.place) == (6, 3)
    assert [numbers["step"] for numbers in one.run.steps] == [5, 6]
    for name, mean in one.progress.means().items():
        assert mean == pytest.approx(sum(step.sums[name] for step in taken) / 3)
        assert one.run.steps[-1][f"train_{name}"] == mean


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
