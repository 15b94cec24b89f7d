import threading
from types import SimpleNamespace

import pytest
import torch

from rcnn.config import Settings, override
from rcnn.presets import settings_of
from rcnn.training import session
from rcnn.training.distributed import Team
from rcnn.training.loop import Progress


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


@pytest.mark.parametrize("pressed", [True, False])
def test_workers_that_ctrl_c_ends_first_cost_nothing(monkeypatch: pytest.MonkeyPatch, pressed: bool) -> None:
    def die(*_: object, **__: object) -> None:
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    monkeypatch.setattr(session, "train_epoch", die)
    wanted, saved = threading.Event(), list[int]()
    loader = SimpleNamespace(steps=9, epoch=lambda *_: iter(()))
    one = SimpleNamespace(
        progress=Progress(step=4, place=4),
        settings=settings_of("mobilenet-fpn"),
        loader=loader,
        engine=None,
        checkpoint=lambda: saved.append(4),
    )
    if pressed:
        wanted.set()
    with pytest.raises(KeyboardInterrupt if pressed else RuntimeError):
        session._steps(one, wanted)  # type: ignore[arg-type]
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
