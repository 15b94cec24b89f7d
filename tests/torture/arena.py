"""Kill, stop and starve trainings, resume them, and compare bits: `python -m tests.torture.arena`.

One process with one thread forks a child for each training. A trial passes if every end has the right exit code and
sentence, and if the run, once it has been resumed to its end, has the weights, checkpoints, rows and pictures of a run
that nothing happened to, to the bit, and no other files.
"""

import argparse
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch

from rcnn.locks import FILE_NAME
from rcnn.training.checkpoint import latest, read_progress
from tests.cli.conftest import digests
from tests.torture.compare import differences
from tests.torture.victim import BALLAST, Act, Training
from tests.training.pieces import FEW_PROPOSALS, SMALL, shapes, write_random_proposals

NAME, PROPOSALS = "run", "PROPOSALS"
COMMON = (
    *("--model=tiny-fpn", "--init=none", "--device=cpu", "--batch=2", "--epochs=3", "--lr=0.02"),
    *(*SMALL, *FEW_PROPOSALS, "roi.dropout=0.2", "train.amp=float32", "train.ema=0.9"),
)
SCHEMES = {
    "joint": (),
    "joint-full": ("train.scheme=joint-full", "train.target_gradient=true"),
    "alternating": ("train.scheme=alternating", "train.ema=null"),
    "fast-rcnn": ("train.scheme=fast-rcnn", f"train.proposals={PROPOSALS}", "roi.levels=[2,3,4,5]"),
    "rpn": ("roi.head=none",),
    "one-stage": ("rpn.classify=classes", "roi.head=none"),
}
"""Name -> its settings: all of `rcnn.training.schemes.SCHEMES`, and models of one stage."""
MANY_CHECKPOINTS = "train.checkpoint_minutes=0.00001"
MAX_KILLS = 3
"""Maximum number of times that a run is disturbed."""
TRIES = 5
"""Number of times that a trial is repeated in which the run was over before anything happened."""
DISK_BYTES = 32_000_000
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGHUP: 129}
ENDED_EARLY = ("Resume with: rcnn train --resume", "start again", "Start again")
NAMESPACE = ("unshare", "-rm")
"""Command that starts another one in a namespace in which it may mount disks, on most systems."""
MAY_MOUNT = "RCNN_TORTURE_MAY_MOUNT"
"""Variable that is set in such a namespace."""


class FaultShown(Exception):
    """A trial has shown a fault."""


class NothingHappened(Exception):
    """The run was over before anything happened to it."""


class Reference(NamedTuple):
    """A run that nothing happened to.

    Attributes:
        run: its folder.
        seconds: CPU time of one process.
        changes: number of times that it changed files.
    """

    run: Path
    seconds: float
    changes: int


class Tally(NamedTuple):
    """The trials of a kind.

    Attributes:
        trials: their number.
        disturbed: number of times that something happened to a run in them.
        failures: number of each trial that failed, and the reason.
        seconds: CPU time.
    """

    trials: int
    disturbed: int
    failures: list[tuple[int, str]]
    seconds: float


class Trial:
    """One run that is disturbed, resumed and compared.

    Args:
        arena: the data and the references.
        folder: a new folder.
        scheme: one of `SCHEMES`.
        random: generator that determines all that happens.
        pictures: whether pictures are drawn.
        world: number of processes that train together.
        workers: number of loader processes.

    Attributes:
        saves_often: whether a checkpoint is saved after every step.
        disturbed: number of times that something has happened to the run.
        seconds: CPU time of all processes so far.
        story: what has happened, for the report of a failure.
    """

    def __init__(
        self,
        arena: "Arena",
        folder: Path,
        scheme: str,
        random: Random,
        *,
        pictures: bool = False,
        world: int = 1,
        workers: int = 0,
    ) -> None:
        self.folder, self.scheme, self.random = folder, scheme, random
        self.pictures, self.world, self.workers = pictures, world, workers
        self.arena, self.reference = arena, arena.reference(scheme, world, pictures)
        self.disk = folder / "disk"
        self.disk.mkdir(parents=True)
        self.disturbed, self.seconds, self.story = 0, 0.0, list[str]()
        self.saves_often = random.random() < 0.5
        self._starts = 0

    # Random numbers

    def moment(self) -> Act:
        """Return a random moment: of the CPU time, or of the changes of files."""
        if self.random.random() < 0.5:
            return Act("signal", "cpu", self.random.random() * self.reference.seconds)
        return Act("signal", "change", self.random.randrange(1, self.reference.changes + 1))

    def death(self) -> Act:
        """Return a random kill; a quarter of them come inside of a write."""
        if self.workers or self.random.random() < 0.75:  # the shared memory of workers counts as files
            return self.moment()
        return self.shortage("limit")

    def shortage(self, does: str) -> Act:
        """Return a lack of space for files, which begins at a random change."""
        size = round(math.exp(self.random.uniform(0, math.log(400_000))))
        change = self.random.randrange(1, self.reference.changes + 1)
        return Act("limit" if does == "limit" else "fill", "change", change, size=size)

    # The run

    @property
    def run(self) -> Path | None:
        """The folder of the run; None before it exists."""
        runs = (self.disk / "runs").glob(f"{NAME}-*")
        return max(runs, key=lambda path: int(path.name.removeprefix(f"{NAME}-")), default=None)

    @property
    def resumable(self) -> bool:
        """Whether the run can be resumed."""
        return self.run is not None and latest(self.run / "checkpoints") is not None

    def words(self) -> list[str]:
        """Return the command that starts the run or, if possible, resumes it."""
        return self.resume() if self.resumable else self.arena.words(self.scheme, self.workers, self.saves_often)

    def resume(self) -> list[str]:
        """Return the command that resumes the run."""
        assert self.run is not None
        workers = [f"--workers={self.workers}"] if self.workers else []
        return ["train", "--resume", str(self.run.relative_to(self.disk)), *workers]

    def start(self, act: Act | None = None, words: Sequence[str] | None = None, **options: object) -> Training:
        """Start a process, to which the options of `Training` apply."""
        self._starts += 1
        words = words or self.words()
        self.story.append(f"rcnn {' '.join(words[:3])} ...: {act or 'undisturbed'}")
        output = self.folder / f"output-{self._starts}"
        return Training(words, self.disk, output, act, pictures=self.pictures, **options)  # type: ignore[arg-type]

    def together(self, acts: Sequence[Act | None]) -> list[Training]:
        """Start processes that train together, and wait for their ends."""
        words, port = self.words(), free_port()
        trainings = []
        for rank, act in enumerate(acts):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(acts), "MASTER_PORT": port}
            environment = {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in numbers.items()}}
            trainings.append(self.start(act, words, environment=environment))
        waiting = list(trainings)
        while waiting:  # each in turn, since a signal is sent by the one who waits
            waiting = [training for training in waiting if not training.poll()]
            time.sleep(0.001)
        for training in trainings:
            self.ended(training)
        return trainings

    def alone(self, act: Act | None = None, words: Sequence[str] | None = None, **options: object) -> Training:
        """Train in one process to its end."""
        training = self.start(act, words, **options)
        training.wait()
        self.ended(training)
        return training

    def ended(self, training: Training) -> None:
        """Check what every end has in common: no traceback, no warning, no hang."""
        self.seconds += training.seconds
        self.story[-1] += f": {training.code}"
        text = training.text
        if training.code is None:
            raise FaultShown("it did not end")
        for bad in ("Traceback", "(unexpected;", "Warning", "Exception ignored"):
            if bad in text:
                raise FaultShown(f"it printed {bad!r}: {text[-2000:]}")

    def finish(self) -> None:
        """Resume the run, or start it anew, until its end, and compare it."""
        if self.world == 1:
            self.complete(self.alone())
        else:
            for training in self.together([None] * self.world):
                self.complete(training)
        self.compare()

    def complete(self, training: Training) -> None:
        """Check that a process has trained to the end."""
        if training.code != 0:
            raise FaultShown(f"exit code {training.code} without a reason: {training.text[-2000:]}")

    def compare(self) -> None:
        """Compare the run with one that nothing happened to."""
        assert self.run is not None
        if lines := list(differences(self.run, self.reference.run)):
            raise FaultShown("; ".join(lines[:5]))

    def see_refusal(self) -> None:
        """Check that a run without a checkpoint is not resumed, with a sentence that says how to start it again."""
        if self.run is not None and not self.resumable:
            training = self.alone(words=self.resume())
            if training.code != 2:
                raise FaultShown(f"resumed without a checkpoint: exit code {training.code}: {training.text}")


# What may happen


def kill(trial: Trial) -> None:
    """Kill the run up to three times at random moments."""
    for _ in range(trial.random.randint(1, MAX_KILLS)):
        training = trial.alone(trial.death())
        if training.code == 0:
            break
        if training.code not in (-signal.SIGKILL, -signal.SIGXFSZ):
            raise FaultShown(f"exit code {training.code}: {training.text}")
        trial.disturbed += 1
        trial.see_refusal()
    if not trial.disturbed:
        raise NothingHappened
    trial.finish()


def terminate(number: signal.Signals, trial: Trial) -> None:
    """Send a signal to end: the last completed step must be saved."""
    act = trial.moment()._replace(number=number)
    training = trial.alone(act)
    if training.code == 0 and (act.when == "cpu" or training["changes"] < act.at):
        raise NothingHappened
    if training.code == -number and trial.run is None:  # before the command had begun
        raise NothingHappened
    if training.code != EXIT_CODES[number]:
        raise FaultShown(f"exit code {training.code}: {training.text}")
    trial.disturbed += 1
    if trial.run is not None and not any(sentence in training.text for sentence in ENDED_EARLY):
        raise FaultShown(f"it did not say how to continue: {training.text}")
    done = training["stage"], training["step"]
    if done != (0, 0):
        assert trial.run is not None
        path = latest(trial.run / "checkpoints")
        progress = read_progress(path) if path else None
        if progress is None or (progress.stage, progress.step) < done:
            raise FaultShown(f"step {done[1]} of stage {done[0] + 1} was not saved, but {path}")
    trial.see_refusal()
    trial.finish()


def lose_worker(trial: Trial) -> None:
    """Kill a loader process, or the process that trains."""
    loses, act = trial.random.random() < 0.5, trial.moment()
    if loses:
        act = Act("signal", "cpu", trial.random.random() * trial.reference.seconds)
    training = trial.alone(act, kills_worker=loses)
    if training.code == 0:
        raise NothingHappened
    if training.code != (1 if loses else -signal.SIGKILL):
        raise FaultShown(f"exit code {training.code}: {training.text}")
    if loses and ("loader process" not in training.text or "--resume" not in training.text):
        raise FaultShown(f"it did not say what was lost, and how to continue: {training.text}")
    trial.disturbed += 1
    trial.finish()


def lose_process(trial: Trial) -> None:
    """Kill or end one of the processes that train together, or all of them."""
    number = trial.random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
    act = Act("signal", "cpu", trial.random.random() * trial.reference.seconds, number)
    both: list[Act | None] = [act] * trial.world
    chosen = trial.random.choice([both, [act, None], [None, act]])
    if chosen[0] and trial.random.random() < 0.5 and number == signal.SIGKILL:
        chosen = [trial.death(), *chosen[1:]]
    trainings = trial.together(chosen)
    if any(training.code == 0 for training in trainings):
        if all(training.code == 0 for training in trainings):
            raise NothingHappened
        trial.story.append("one of them was done")
    for training, act in zip(trainings, chosen, strict=True):
        allowed = {0, 1} if act is None else {0, 1, -signal.SIGKILL, -signal.SIGXFSZ}
        allowed |= {130, *EXIT_CODES.values()} if number == signal.SIGTERM else set()
        if training.code not in allowed:
            raise FaultShown(f"exit code {training.code}: {training.text}")
        if training.code == 1 and trial.resumable and "--resume" not in training.text:
            raise FaultShown(f"it did not say how to continue: {training.text}")
    trial.disturbed += 1
    trial.finish()


def fill_disk(trial: Trial) -> None:
    """Let the disk run full; after space was freed, the run continues."""
    with mounted(trial.disk):
        training = trial.alone(trial.shortage("fill"))
        ballast = trial.disk / BALLAST
        if not ballast.exists():
            raise NothingHappened
        trial.disturbed += 1
        ballast.unlink()
        if training.code == 0:  # there was room for the rest
            trial.compare()
            return
        if training.code != 1:
            raise FaultShown(f"exit code {training.code}: {training.text}")
        if "No space left" not in training.text or not any(sentence in training.text for sentence in ENDED_EARLY):
            raise FaultShown(f"it did not say that the disk is full, and how to continue: {training.text}")
        trial.see_refusal()
        trial.finish()


def start_second(trial: Trial) -> None:
    """Start a second training in the run folder of one that is stopped at a random moment."""
    first = trial.start(trial.moment()._replace(number=signal.SIGSTOP))
    first.wait(stopped=True)
    if first.code is not None:
        trial.ended(first)
        raise NothingHappened
    try:
        run = trial.run
        if run is not None and (run / "config.yaml").exists():
            trial.disturbed += 1
            owned, before = (run / FILE_NAME).exists(), digests(run)
            second = trial.alone(words=trial.resume())
            refused = "is being trained" in second.text or "holds no checkpoint" in second.text
            if owned and (second.code != 2 or not refused):
                raise FaultShown(f"the second start was not refused: exit code {second.code}: {second.text}")
            if owned and digests(run) != before:
                raise FaultShown("the second start has changed files")
    finally:
        os.kill(first.pid, signal.SIGCONT)
        first.wait()
    trial.ended(first)
    if not trial.disturbed:
        raise NothingHappened
    trial.complete(first)
    trial.compare()


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """Mount a small disk at a folder, in the namespace of this process."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Arena:
    """Trials, with the data and the undisturbed runs that they share.

    Args:
        root: an empty folder.
        seed: of all trials.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        self.data = shapes(root, 8, 2)
        self.proposals = write_random_proposals(self.data, root / "proposals.json")
        self._references: dict[tuple[str, int, bool], Reference] = {}

    def words(self, scheme: str, workers: int = 0, often: bool = False) -> list[str]:
        """Return the command that starts a run; with `often`, it saves checkpoints all the time."""
        changes = [change.replace(PROPOSALS, str(self.proposals)) for change in SCHEMES[scheme]]
        changes += [MANY_CHECKPOINTS] if often else []
        return ["train", str(self.data), "--name", NAME, "--out", "runs", f"--workers={workers}", *COMMON, *changes]

    def reference(self, scheme: str, world: int = 1, pictures: bool = False) -> Reference:
        """Return a run that nothing happened to, which is trained the first time."""
        key = scheme, world, pictures
        if key not in self._references:
            self._references[key] = Reference(Path(), 0.0, 0)
            trial = Trial(self, self.root / f"reference-{'-'.join(map(str, key))}", scheme, Random(0), world=world)
            trial.pictures, trial.saves_often = pictures, False
            trainings = trial.together([None] * world) if world > 1 else [trial.alone()]
            for training in trainings:
                trial.complete(training)
            assert trial.run is not None
            self._references[key] = Reference(trial.run, trainings[0].seconds, trainings[0]["changes"])
        return self._references[key]

    def trials(self, kind: str, numbers: Sequence[int]) -> Tally:
        """Run trials of a scheme or of a variant, whose schemes take turns."""
        disturbed, failures, seconds = 0, list[tuple[int, str]](), 0.0
        for number in numbers:
            scheme = kind if kind in SCHEMES else list(SCHEMES)[number % len(SCHEMES)]
            happen, options = WHAT.get(kind, (kill, {}))
            for attempt in range(TRIES):
                folder = self.root / f"{kind.replace(' ', '-')}-{number}-{attempt}"
                trial = Trial(self, folder, scheme, Random(f"{self.seed} {kind} {number} {attempt}"), **options)
                try:
                    happen(trial)
                except NothingHappened:
                    shutil.rmtree(folder)
                    continue
                except FaultShown as failure:
                    failures.append((number, f"{scheme}: {' | '.join(trial.story)}\n      {failure} ({folder})"))
                else:
                    shutil.rmtree(folder)
                break
            else:
                failures.append((number, f"{scheme}: nothing happened in {TRIES} tries"))
            disturbed, seconds = disturbed + trial.disturbed, seconds + trial.seconds
        return Tally(len(numbers), disturbed, failures, seconds)


WHAT: dict[str, tuple[Callable[[Trial], None], dict[str, int]]] = {
    "SIGTERM": (lambda trial: terminate(signal.SIGTERM, trial), {}),
    "SIGHUP": (lambda trial: terminate(signal.SIGHUP, trial), {}),
    "pictures": (kill, {"pictures": True}),
    "workers": (lose_worker, {"workers": 2}),
    "two processes": (lose_process, {"world": 2}),
    "full disk": (fill_disk, {}),
    "second start": (start_second, {}),
}
"""Variant -> what happens, and the options of its trials."""


def may_mount() -> bool:
    """Return True if this process may mount disks, or could in a namespace of its own."""
    if MAY_MOUNT in os.environ:
        return True
    words = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return shutil.which(NAMESPACE[0]) is not None and not subprocess.run(words, capture_output=True).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=6, help="trials of each scheme; a third as many of each variant")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=[*SCHEMES, *WHAT], default=[*SCHEMES, *WHAT])
    options = parser.parse_args()
    kinds = list(options.kinds)
    if "full disk" in kinds:
        if not may_mount():
            print("full disk      skipped, since no disks may be mounted here", flush=True)
            kinds.remove("full disk")
        elif MAY_MOUNT not in os.environ:
            os.environ[MAY_MOUNT] = "1"
            os.execvp(NAMESPACE[0], [*NAMESPACE, sys.executable, "-m", "tests.torture.arena", *sys.argv[1:]])
    os.environ.update(RCNN_OFFLINE="1", NO_COLOR="1", COLUMNS="200")
    torch.set_num_threads(1)
    arena = Arena(Path(tempfile.mkdtemp(prefix="torture-")), options.seed)
    failed = 0
    for kind in kinds:
        count = options.count if kind in SCHEMES else math.ceil(options.count / 3)
        tally = arena.trials(kind, range(options.first, options.first + count))
        failed += len(tally.failures)
        good = tally.trials - len(tally.failures)
        counts = f"{good:4} of {tally.trials:4} equal, {tally.disturbed:4} times disturbed"
        print(f"{kind:14} {counts}, {tally.seconds:7.1f} s of CPU time", flush=True)
        for number, reason in tally.failures:
            print(f"  {number}: {reason}", flush=True)
    print(f"failed trials are kept in {arena.root}" if failed else "none failed")
    if not failed:
        shutil.rmtree(arena.root)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
