"""SIGTERM and SIGHUP end commands as Ctrl-C does."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rcnn.detector import Detector
from rcnn.training.trainer import Trainer

from .conftest import Outcome

Run = Callable[..., Outcome]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
signals = pytest.mark.parametrize("number", CODES)


@signals
@pytest.mark.parametrize(("command", "method"), [("predict", "detect"), ("propose", "region_proposals")])
def test_finished_results_are_kept(
    run: Run,
    data: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    method: str,
    number: signal.Signals,
) -> None:
    original, calls = getattr(Detector, method), list[object]()

    def stop(self: Detector, *arguments: object, **options: object) -> object:
        calls.append(None)
        if len(calls) == 4:
            signal.raise_signal(number)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Detector, method, stop)
    outcome = run(command, weights, data / "JPEGImages", "--out", tmp_path / "o", "--format", "json")
    assert outcome.code == CODES[number], outcome.err
    assert f"results of 3 images are in {tmp_path / 'o'}" in outcome.out
    assert len(json.loads((tmp_path / "o/results.json").read_text())) == 3
    assert "Traceback" not in outcome.err


@signals
def test_val_ends_with_the_code_of_the_signal(
    run: Run, data: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr("rcnn.evaluate._score", lambda *_: signal.raise_signal(number))
    outcome = run("val", weights, data)
    assert (outcome.code, "Traceback" in outcome.err) == (CODES[number], False), outcome.err


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
    outcome = run("train", data, *settings, "--name", "try")
    assert outcome.code == CODES[number], outcome.err
    assert "Resume with: rcnn train --resume runs/train/try-1" in outcome.err
    assert (tmp_path / "runs/train/try-1/checkpoints/step-2.safetensors").is_file()
