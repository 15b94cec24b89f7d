"""The script that compares two versions notices a single bit."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rcnn.weights.file import load_weights, save_weights


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("same_results", Path(__file__).parents[1] / "scripts" / "same_results.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def outs(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of equal results; times and checkpoints differ, which does not count."""
    for number in (0, 1):
        run = tmp_path / str(number) / "joint-1"
        (run / "weights").mkdir(parents=True)
        (run / "checkpoints").mkdir()
        weights = {"a": torch.tensor([1.0, float("nan"), 0.0]), "b": torch.tensor(3)}
        save_weights(run / "weights" / "best.safetensors", weights, {"threshold": 0.5, "settings": {"new": number}})
        save_weights(run / "checkpoints" / "step-1.safetensors", {"a": torch.tensor(number)}, {})
        (run / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "ap": 0.1, "seconds": number}) + "\n")
    return tmp_path / "0", tmp_path / "1"


def test_equal_results_are_equal(script: ModuleType, outs: tuple[Path, Path]) -> None:
    assert list(script.compare(*outs)) == []


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bit_of_one_weight_is_noticed(script: ModuleType, outs: tuple[Path, Path], place: int) -> None:
    path = outs[1] / "joint-1" / "weights" / "best.safetensors"
    tensors, metadata = load_weights(path)
    tensors["a"].view(torch.int32)[place] ^= 1
    save_weights(path, tensors, metadata)
    (line,) = script.compare(*outs)
    assert line.startswith("joint-1/weights/best.safetensors: a: 1 of 3 differ")


def test_numbers_and_files_are_compared(script: ModuleType, outs: tuple[Path, Path]) -> None:
    run = outs[1] / "joint-1"
    (run / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "ap": 0.1 + 2**-56, "new": 1}) + "\n")
    tensors, metadata = load_weights(run / "weights" / "best.safetensors")
    save_weights(run / "weights" / "best.safetensors", tensors, {**metadata, "threshold": 0.25})
    save_weights(run / "weights" / "last.safetensors", tensors, metadata)
    assert list(script.compare(*outs)) == [
        "joint-1/weights/last.safetensors: only in one of the two",
        "joint-1/metrics.jsonl: 0.new: only in one of the two",
        "joint-1/metrics.jsonl: 0.ap: 0.1 and 0.10000000000000002",
        "joint-1/weights/best.safetensors: threshold: 0.5 and 0.25",
    ]
