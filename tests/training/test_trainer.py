import signal
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rcnn.config import Train
from rcnn.data.loading.loader import Item
from rcnn.errors import TrainingError
from rcnn.signals import StopRequest
from rcnn.training.distributed import Distributed
from rcnn.training.recorders import Recorder
from rcnn.training.stages import Progress
from rcnn.training.step import StepLosses
from rcnn.training.trainer import Trainer
from tests.model import tiny
from tests.training import pieces


def trainer_of(
    items: Iterable[Item],
    progress: Progress | None = None,
    ahead: int = 0,
    recorder: Recorder | None = None,
    **train: Any,
) -> Trainer:
    state = pieces.state(tiny.model(), items=items, **train)
    state.progress = progress or Progress()
    trainer = pieces.trainer(state, recorder)
    trainer.ahead = ahead
    return trainer


@pytest.mark.parametrize(
    ("seconds", "minutes", "rank", "late"),
    [(601, 10, 0, True), (599, 10, 0, False), (601, 10, 1, False), (2, 0.02, 0, True)],
)
def test_a_checkpoint_is_due_by_the_writers_clock(
    monkeypatch: pytest.MonkeyPatch, seconds: float, minutes: float, rank: int, late: bool
) -> None:
    clock = iter((1000.0, 1000.0 + seconds))
    monkeypatch.setattr("rcnn.training.trainer.time", SimpleNamespace(monotonic=lambda: next(clock)))
    state = pieces.state(tiny.model(), checkpoint_minutes=minutes)
    assert pieces.trainer(state, distributed=Distributed(torch.device("cpu"), rank, 2)).is_late() == late


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_epoch_counts_batches_and_steps_and_averages_losses(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    recorder, read, losses = pieces.Keeper(), StepLosses.read, list[dict[str, float]]()

    def watched(*arguments: Any) -> Any:
        losses.append(read(*arguments)[0])
        return losses[-1], (0, 0)

    monkeypatch.setattr(StepLosses, "read", watched)
    trainer = trainer_of(map(pieces.item, range(3)), Progress(step=4), ahead, recorder, accumulate=2)
    trainer.run_steps(StopRequest())
    progress = trainer.state.progress
    assert (progress.step, progress.place) == (6, 3)
    steps = recorder.of("step")
    assert [numbers["step"] for numbers in steps] == [5, 6]
    for name, mean in progress.means().items():
        assert mean == pytest.approx(sum(step[name] for step in losses) / 3)
        assert steps[-1][f"train_{name}"] == mean


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_step_is_read_when_enough_later_ones_are_queued(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """After Ctrl-C in the second step, all queued steps are read before the checkpoint is saved."""
    calls, interrupted, step, read = list[str](), StopRequest(), Trainer.step, StepLosses.read

    def queue(trainer: Trainer, items: list[Item], number: int, requests: tuple[bool, ...]) -> StepLosses:
        calls.append(f"queue {number}")
        if number == 1:
            interrupted.set()
        return step(trainer, items, number, requests)

    monkeypatch.setattr(Trainer, "step", queue)
    monkeypatch.setattr(
        StepLosses, "read", lambda losses, *more: calls.append(f"read {losses.number}") or read(losses, *more)
    )
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self: calls.append(f"save {self.state.progress.step}"))
    with pytest.raises(KeyboardInterrupt):
        trainer_of(map(pieces.item, range(9)), ahead=ahead).run_steps(interrupted)
    assert (
        calls
        == {
            0: ["queue 0", "read 0", "queue 1", "read 1", "queue 2", "read 2", "save 3"],
            1: ["queue 0", "queue 1", "read 0", "queue 2", "read 1", "queue 3", "read 2", "read 3", "save 4"],
        }[ahead]
    )


@pytest.mark.parametrize("error", [RuntimeError, ChildProcessError])
def test_a_loss_that_is_not_finite_is_reported_before_its_consequences(error: type[Exception]) -> None:
    def items() -> Iterator[Item]:
        bad = pieces.item()
        bad.batch.images[1] = torch.nan
        yield bad
        raise error("something that the broken weights brought about")

    with pytest.raises(TrainingError, match="the loss is not finite at step 1: "):
        trainer_of(items(), ahead=1).run_steps(StopRequest())


@pytest.mark.parametrize("pressed", [True, False])
def test_ctrl_c_that_ends_the_workers_first_loses_nothing(monkeypatch: pytest.MonkeyPatch, pressed: bool) -> None:
    interrupted, saved = StopRequest(), list[int]()

    def items() -> Iterator[Item]:
        if pressed:
            interrupted.set()
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
        yield

    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self: saved.append(self.state.progress.step))
    with pytest.raises(KeyboardInterrupt if pressed else RuntimeError):
        trainer_of(items(), Progress(step=4, place=4)).run_steps(interrupted)
    assert saved == [4] * pressed


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_worker_that_ends_during_a_step_does_not_interrupt_it(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    interrupted, saved, step = StopRequest(), list[int](), Trainer.step

    def lost(*_: object) -> None:
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    def ends(trainer: Trainer, *arguments: Any) -> StepLosses:
        interrupted.set()
        signal.raise_signal(signal.SIGCHLD)
        return step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "step", ends)
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self: saved.append(self.state.progress.step))
    before = signal.signal(signal.SIGCHLD, lost)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer_of(map(pieces.item, range(9)), ahead=ahead).run_steps(interrupted)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert saved == [1]


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
    assert Progress(epoch=epoch, best_epoch=best).finished(Train(epochs=9, patience=patience), every) == ended
