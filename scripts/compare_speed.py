"""Compare the speed of two versions of the program: a prediction, and a training step.

    python scripts/compare_speed.py OLD NEW      # revisions of git; `.` is the working tree as it is

For each pair, both versions run in fresh processes of one thread, which warm up and then work in turns of half a second
while the other one waits; the pairs alternate in which version comes first. Imports and warm-up are not timed. Fresh
processes are needed because addresses in memory, which differ between processes, change speeds by up to a percent.
Printed are medians over the pairs of CPU time and of wall-clock time, and the median of NEW / OLD with its 95% interval
(order statistics). The exit status is 1 if the lower end of an interval of CPU time is above 1 + `--limit`.

Only `rcnn.load`, `Detector.predict`, `rcnn.train` with a recorder, and `rcnn.data.synthetic.synthesise` are used.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import comb
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PICTURES, SIZE = 4, (480, 640)
STEPS, BATCH = 8, 2
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
"""Environment in which processes keep freed memory; otherwise turns of one process differ by 10%."""
WARM_UP = 3
"""Turns of each process that are not counted."""
TRAINING: dict[str, Any] = {
    **{"model": "tiny-fpn", "init": "none", "device": "cpu", "batch": BATCH, "epochs": 10_000, "workers": 0},
    "overrides": ["preprocess.short=256", "preprocess.long=256", "val.every=10000", "train.warmup=0", "train.lr=0.001"],
}


class Times(NamedTuple):
    """Seconds of some work."""

    cpu: float
    wall: float


class Interval(NamedTuple):
    """A median, and the ends of its 95% interval."""

    median: float
    low: float
    high: float


def main() -> int:
    """Measure both versions side by side, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs=2, metavar="REVISION", help="of git, or . for the working tree")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--turns", type=int, default=8, help="turns of each version in a pair")
    parser.add_argument("--limit", type=float, default=0.01, help="slowdown that is allowed")
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK))
    options = parser.parse_args()
    slower = False
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pictures(folder / "pictures")
        with tree(options.revisions[0], folder / "old") as old, tree(options.revisions[1], folder / "new") as new:
            for name in options.only:
                pairs = [pair(name, (old, new), folder, number, options.turns) for number in range(options.pairs)]
                slower |= report(name, pairs, options.limit)
    return 1 if slower else 0


def write_pictures(folder: Path) -> None:
    """Write JPEG files of smooth noise, which compress like photographs."""
    folder.mkdir()
    for number in range(PICTURES):
        coarse = np.random.default_rng(number).integers(0, 255, (SIZE[0] // 8, SIZE[1] // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)


@contextmanager
def tree(revision: str, path: Path) -> Iterator[Path]:
    """Provide the source of a revision in a separate work tree."""
    if revision == ".":
        yield ROOT
        return
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "--quiet", "--detach", path, revision], check=True)
    try:
        yield path
    finally:
        subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", path], check=True)


def pair(name: str, trees: Sequence[Path], folder: Path, number: int, turns: int) -> tuple[Times, Times]:
    """Return the median times of a turn of the old version and of the new one."""
    order = (0, 1) if number % 2 == 0 else (1, 0)
    workers = {side: start(name, trees[side], folder) for side in order}
    try:
        for side in order:
            see_version(workers[side], trees[side])
        for side in order * WARM_UP:
            take_turn(workers[side])
        times: dict[int, list[Times]] = {0: [], 1: []}
        for turn in range(turns):
            for side in order if turn % 2 == 0 else order[::-1]:
                times[side].append(take_turn(workers[side]))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.communicate()
    old, new = (Times(*map(statistics.median, zip(*times[side], strict=True))) for side in (0, 1))
    return old, new


def start(name: str, source: Path, folder: Path) -> "subprocess.Popen[str]":
    """Start a worker of a version."""
    paths = {"PYTHONPATH": str(source / "src"), "RCNN_OFFLINE": "1"}
    environment = {**os.environ, **paths, "OMP_NUM_THREADS": "1", **KEPT_MEMORY}
    words = [sys.executable, __file__, f"--{name}", str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, cwd=folder, **pipes)  # type: ignore[call-overload]


def see_version(worker: "subprocess.Popen[str]", source: Path) -> None:
    """Check that a worker has imported its own version."""
    assert worker.stdout is not None
    imported = worker.stdout.readline().strip()
    if not Path(imported).is_relative_to(source):
        raise SystemExit(f"the worker of {source} has imported {imported or 'nothing'}")


def take_turn(worker: "subprocess.Popen[str]") -> Times:
    """Let a worker do a turn of its work."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a worker has ended with exit code {worker.wait()}")
    return Times(*json.loads(line))


def report(name: str, pairs: Sequence[tuple[Times, Times]], limit: float) -> bool:
    """Print the times and ratios of some pairs; return True if the new version is slower than allowed."""
    slower = False
    for clock in Times._fields:
        old, new = ([getattr(times[side], clock) for times in pairs] for side in (0, 1))
        ratio = interval([b / a for a, b in zip(old, new, strict=True)])
        print(
            f"{name}, {clock} time: old {statistics.median(old):.4f} s, new {statistics.median(new):.4f} s, "
            f"new / old {ratio.median:.4f}, 95% interval {ratio.low:.4f} to {ratio.high:.4f}, {len(pairs)} pairs",
            flush=True,
        )
        slower |= clock == "cpu" and ratio.low > 1 + limit
    return slower


def interval(values: Sequence[float]) -> Interval:
    """Return the median of some values and its 95% interval, which assumes nothing about their distribution.

    The interval reaches from the k-th smallest to the k-th largest value, with the largest k for which fewer than 5% of
    all samples have their true median outside; below six values it is the whole range.
    """
    ordered, n, k, outside = sorted(values), len(values), 0, 0.0
    while (outside := outside + 2 * comb(n, k) / 2**n) <= 0.05:
        k += 1
    k = max(k, 1)
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[n - k])


# The workers, which import the version that they measure


def wait_for_turn() -> None:
    """Wait for the other side, and end with it."""
    if not sys.stdin.readline():
        os._exit(0)


def show(cpu: float, wall: float) -> None:
    """Report the seconds of a turn."""
    print(json.dumps([cpu, wall]), flush=True)


def predict(folder: Path) -> None:
    """Predict the pictures once per turn."""
    import rcnn

    print(rcnn.__file__, flush=True)
    detector, pictures = rcnn.load("blood-cells", device="cpu"), sorted((folder / "pictures").iterdir())
    while True:
        wait_for_turn()
        cpu, wall = time.process_time(), time.perf_counter()
        detector.predict(pictures)
        show(time.process_time() - cpu, time.perf_counter() - wall)


def train(folder: Path) -> None:
    """Train an epoch per turn, and time its steps from the end of the first to the end of the last."""
    import rcnn
    from rcnn.data.synthetic import synthesise
    from rcnn.training.recorders import Recorder

    print(rcnn.__file__, flush=True)

    class Clock(Recorder):
        """Reports the times of the steps of each epoch."""

        def __init__(self) -> None:
            self.steps: list[Times] = []

        def step(self, numbers: object) -> None:
            self.steps.append(Times(time.process_time(), time.perf_counter()))

        def epoch(self, row: object) -> None:
            first, last = self.steps[0], self.steps[-1]
            show(last.cpu - first.cpu, last.wall - first.wall)
            self.steps.clear()
            wait_for_turn()

    with TemporaryDirectory(dir=folder) as temporary:
        data = Path(temporary) / "shapes"
        for split, images in (("train", STEPS * BATCH), ("val", 1)):
            synthesise(data, images, split=split, size=(256, 256))
        wait_for_turn()
        rcnn.train(data, runs=temporary, quiet=True, recorders=[Clock()], **TRAINING)


WORK: dict[str, Callable[[Path], None]] = {"predict": predict, "train": train}
"""Name -> function of a worker."""


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].removeprefix("--") in WORK and sys.argv[1].startswith("--"):
        WORK[sys.argv[1].removeprefix("--")](Path(sys.argv[2]))
    else:
        sys.exit(main())
