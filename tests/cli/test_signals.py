"""SIGTERM and SIGHUP end commands as Ctrl-C does."""

import itertools
import signal
from pathlib import Path
from unittest.mock import patch

import pytest

from rcnn.detector import Detector
from rcnn.training.trainer import Trainer

from .conftest import Run, read_json

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
signals = pytest.mark.parametrize("number", CODES)


@signals
@pytest.mark.parametrize(("command", "method"), [("predict", "detect"), ("propose", "region_proposals")])
def test_finished_results_are_kept(
    run: Run, images: Path, weights: Path, command: str, method: str, number: signal.Signals
) -> None:
    original, calls = getattr(Detector, method), itertools.count(1)

    def stop(self: Detector, *arguments: object, **options: object) -> object:
        if next(calls) == 4:
            signal.raise_signal(number)
        return original(self, *arguments, **options)

    with patch.object(Detector, method, stop):
        outcome = run.fails(CODES[number], "", command, weights, images, "--format", "json")
    assert f"results of 3 images are in runs/{command}" in outcome.out
    assert len(read_json(f"runs/{command}/results.json")) == 3


@signals
def test_val_ends_with_the_code_of_the_signal(
    run: Run, data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr("rcnn.evaluate._score", lambda *_: signal.raise_signal(number))
    run.fails(CODES[number], "", "val", weights, data)


@signals
def test_a_training_finishes_its_step_and_names_the_command_to_resume(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def stop(trainer: Trainer) -> bool:
        if trainer.state.progress.step == 1:
            signal.raise_signal(number)
            if number != signal.SIGINT:
                signal.raise_signal(number)  # schedulers and torchrun send it twice
        return False

    monkeypatch.setattr(Trainer, "is_late", stop)
    monkeypatch.setattr("rcnn.training.start.draw_start", lambda *_: None)
    settings = ("--model", "tiny-fpn", "--init", "none", "--device", "cpu", "--batch", 1, "--epochs", 1)
    message = "Resume with: rcnn train --resume runs/train/try-1"
    run.fails(CODES[number], message, "train", data, *settings, "--name", "try")
    assert (tmp_path / "runs/train/try-1/checkpoints/step-2.safetensors").is_file()
