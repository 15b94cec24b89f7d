import os
import signal
from pathlib import Path

import pytest

from rcnn.errors import Interrupted, TrainingError
from rcnn.training.ending import explained, patient
from rcnn.training.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "try")


def test_the_first_ctrl_c_waits_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with patient() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_there_is_nothing_to_go_on_with_before_the_first_checkpoint(folder: RunFolder) -> None:
    with pytest.raises(Interrupted, match="before the first step: start again"), explained(folder):
        raise KeyboardInterrupt
    (folder.checkpoints / "step-0.safetensors").touch()
    with pytest.raises(Interrupted, match=r"rcnn train --resume .*try-1"), explained(folder):
        raise KeyboardInterrupt


def test_a_full_disk_says_what_is_left(folder: RunFolder) -> None:
    with (
        pytest.raises(TrainingError, match=r"try-1: full\. Nothing is lost: free space, then start again"),
        explained(folder),
    ):
        raise OSError(28, "full")
    with pytest.raises(PermissionError), explained(folder):
        raise PermissionError(13, "not yours")
