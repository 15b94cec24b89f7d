"""Real processes under `torchrun --max-restarts`: one is killed, and the run ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rcnn.training import train as training
from rcnn.training.elastic import RECORDS
from rcnn.training.trainer import Trainer
from rcnn.weights import file
from tests.torture.compare import differences
from tests.training.pieces import FEW_PROPOSALS, SMALL
from tests.training.test_peers import before, train

pytestmark = [
    pytest.mark.more,
    pytest.mark.skipif(sys.platform != "linux", reason="loader processes are forked on Linux only"),
]
ROOT = Path(__file__).parents[2]
WORDS = [
    *("--model", "tiny-fpn", "--init", "none", "--epochs", "2", "--batch", "2", "--device", "cpu", "--lr", "0.02"),
    *("--name", "try", "--out", "runs", *SMALL, *FEW_PROPOSALS, "roi.dropout=0.2", "train.ema=0.9"),
]
"""Three steps in each of two epochs, with a checkpoint after each epoch and before the first."""
PROGRAM = """
import json, pkgutil, sys
pkgutil.resolve_name(sys.argv[1])(*json.loads(sys.argv[2]))
"""


class Moment(NamedTuple):
    """When a process is killed, in its first life.

    Attributes:
        owner: `Trainer`, `train` (the module) or `file` (that of weights).
        function: name of a function of it.
        call: number of the call that kills it, 1, 2, ...
        killed: rank of the process.
        restarts: number of restarts before.
    """

    owner: str
    function: str
    call: int
    killed: int
    restarts: int = 0


MOMENTS = {
    "before the first checkpoint": Moment("Trainer", "save_checkpoint", 1, 0),
    "in an epoch": Moment("Trainer", "step", 5, 1),
    "in validation": Moment("Trainer", "validate", 1, 1),
    "while a checkpoint is written": Moment("file", "atomic_write step-3", 1, 0),
    "near the end": Moment("train", "announce_end", 1, 0),
}
OWNERS = {"Trainer": Trainer, "train": training, "file": file}


def die(killed: Path) -> None:
    killed.touch()
    os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(words: Sequence[str], moments: Sequence[Sequence[Any]]) -> None:
    """Train as one of the processes of torchrun, which dies at the moments of its rank and restart."""
    rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    for moment in map(Moment._make, moments):
        if (moment.killed, moment.restarts) != (rank, restarts):
            continue
        kill = partial(die, Path(f"killed-{restarts}"))
        name, _, path = moment.function.partition(" ")
        if path:
            die_in_write(path, kill)
        else:
            before(OWNERS[moment.owner], name, moment.call, kill)
    train(words, rank)


def die_in_write(stem: str, kill: partial[None]) -> None:
    """Die when a part of a file is written."""
    write = file.atomic_write

    def parts(data: Any) -> Iterator[Any]:
        for number, part in enumerate(data):
            if number == 2:
                kill()
            yield part

    def atomic_write(path: Path, data: Any, **options: Any) -> None:
        write(path, parts(data) if Path(path).stem == stem else data, **options)

    file.atomic_write = atomic_write


def torchrun(folder: Path, data: Path, moments: Sequence[Moment]) -> Path:
    """Train in a folder to the end; return the run folder."""
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    module = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3")
    words = ["program.py", f"{__name__}:{train_until_killed.__name__}", json.dumps([[str(data), *WORDS], moments])]
    command = [sys.executable, *module, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    ended = subprocess.run(command, cwd=folder, env=environment, timeout=300, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(list(folder.glob("killed-*"))) == len(moments), ended.stderr
    (record,) = (folder / "runs" / RECORDS).iterdir()
    assert json.loads(record.read_text(encoding="utf-8"))["finished"]
    (run,) = (folder / "runs").glob("[!.]*")
    return run


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torchrun(tmp_path_factory.mktemp("restarts") / "undisturbed", data, [])


def test_a_run_that_is_killed_three_times_ends_to_the_bit(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    moments = [
        Moment("Trainer", "save_checkpoint", 1, 0),
        Moment("Trainer", "step", 5, 1, restarts=1),
        Moment("train", "announce_end", 1, 0, restarts=2),
    ]
    assert not list(differences(torchrun(tmp_path / "killed", data, moments), undisturbed))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_ends_to_the_bit(moment: str, data: Path, tmp_path: Path, undisturbed: Path) -> None:
    assert not list(differences(torchrun(tmp_path / "killed", data, [MOMENTS[moment]]), undisturbed))
