import signal
from pathlib import Path

import pytest

from rcnn.errors import DataError, ImageError, Interrupted, TrainingError
from rcnn.signals import Terminated
from rcnn.training.ending import explained
from rcnn.training.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "try")


def test_an_interrupted_run_can_be_resumed_from_its_first_checkpoint_on(folder: RunFolder) -> None:
    with pytest.raises(Interrupted, match="before the first step: start again"), explained(folder):
        raise KeyboardInterrupt
    (folder.checkpoints / "step-0.safetensors").touch()
    with pytest.raises(Interrupted, match=r"rcnn train --resume .*try-1"), explained(folder):
        raise KeyboardInterrupt


def test_the_error_of_a_full_disk_says_how_to_resume(folder: RunFolder) -> None:
    with (
        pytest.raises(TrainingError, match=r"try-1: full\. Nothing is lost: free space first\. Start again"),
        explained(folder),
    ):
        raise OSError(28, "full")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (PermissionError(13, "not yours", "weights/last.safetensors"), TrainingError, r"not yours: 'weights/last"),
        (FileNotFoundError(2, "gone", "a.png"), TrainingError, r"gone: 'a\.png'"),
        (ImageError("a.png: no such file"), ImageError, r"a\.png: no such file"),
        (DataError("a.png: no such file"), DataError, r"a\.png: no such file"),
        (RuntimeError("[../gloo/pair.cc:1] Connection closed by peer"), TrainingError, "another process .* was lost"),
        (RuntimeError("DataLoader worker (pid 7) is killed"), TrainingError, "a loader process .* was lost"),
    ],
)
def test_every_fault_names_the_command_to_resume(
    folder: RunFolder, error: Exception, expected: type[Exception], message: str
) -> None:
    (folder.checkpoints / "step-0.safetensors").touch()
    with pytest.raises(expected, match=rf"(?s){message}.*Resume with: rcnn train --resume .*try-1"), explained(folder):
        raise error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_end_has_its_exit_code(folder: RunFolder, number: int, code: int) -> None:
    (folder.checkpoints / "step-0.safetensors").touch()
    with pytest.raises(Interrupted, match=r"^stopped by SIG.* --resume") as ended, explained(folder):
        raise Terminated(number)
    assert ended.value.exit_code == code
