"""The benchmark for GPUs, which prints a message without one, and runs completely on a CPU."""

import pytest
import torch
from benchmarks.gpu_vs_torchvision import main


def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("There is no GPU here")


def test_every_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    sizes = ["--size", "64", "64", "--batches", "1", "--train-batch", "1", "--proposals", "20"]
    try:
        assert main(["--device", "cpu", *sizes, "--runs", "1", "--files", "1"]) == 0
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32
    output = capsys.readouterr().out
    for title in ("predict, batch 1", "files, batch 1", "train, batch 1"):
        assert title in output
    for name in ("torchvision  ", "torchvision at its best", "rcnn, float32", "rcnn, bf16"):
        assert output.count(f"\n{name}") == 3
