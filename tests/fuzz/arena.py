"""Run commands on mutants, each in a forked child with limits, a timer and canaries: `python -m tests.fuzz.arena`.

One process with one thread forks a child for each mutant (`tests.commands`). A mutant passes if
the command ends in time with one of the exit codes that fit, without a traceback or the word "unexpected", and leaves
the files that it was before as they were.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

os.environ.update(RCNN_OFFLINE="1", NO_COLOR="1", COLUMNS="200", MPLBACKEND="agg")

import torch
from PIL import Image

from tests.commands import BYTES, FILES, Ended, run
from tests.fuzz import kinds
from tests.fuzz.kinds import KINDS
from tests.fuzz.mutate import strange_values
from tests.runtime import graphs

MAX_PRINTED_FAILURES = 10
"""Maximum number of failures per kind that are printed."""


class Failure(NamedTuple):
    """A mutant that did not pass: the reason, and the number that reproduces it."""

    kind: str
    number: int
    reason: str
    output: str


def fuzz(kind: str, numbers: Sequence[int], seed: int, root: Path, *, sound: bool = False) -> Iterator[Failure]:
    """Yield the failures among some mutants of a kind; `sound` files must be read."""
    values = strange_values(200)
    Image.init()  # loads Pillow's formats, which each child would do again
    for number in numbers:
        folder = root / f"{kind.replace(' ', '-')}-{number}"
        folder.mkdir()
        mutant = KINDS[kind](folder, number, Random(f"{seed} {kind} {number}"), values)
        before = digests(folder)
        ended = run(folder, mutant.words)
        reason = verdict(ended, (0,) if sound and mutant.words[0] != "import" else mutant.codes)
        if reason is None:
            after = digests(folder)
            kept = [name for name in before if not name.startswith("runs/")]  # a resumed run writes on its files
            lost = [name for name in kept if after.get(name) != before[name]]
            reason = f"changed {lost}" if lost else None
        if reason is not None:
            yield Failure(kind, number, f"{reason}: rcnn {' '.join(mutant.words)}", ended.output)
        else:
            shutil.rmtree(folder)


@contextmanager
def undamaged() -> Iterator[None]:
    """Disable all damage within the context."""
    damage = kinds.mutate, kinds.mutate_tree, kinds.choose, kinds.assault
    kinds.mutate, kinds.mutate_tree, kinds.choose, kinds.assault = (
        lambda data, _: data,
        lambda tree, *_: tree,
        lambda options, _: options[0],
        lambda path, _: graphs.WRITE[path.suffix[1:]](path, graphs.detector()),
    )
    try:
        yield
    finally:
        kinds.mutate, kinds.mutate_tree, kinds.choose, kinds.assault = damage


def digests(folder: Path) -> dict[str, str]:
    """Return relative name -> digest of every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in FILES
    }


def verdict(ended: Ended, codes: Sequence[int]) -> str | None:
    """Return why the end of a command is a failure, or None if it is not."""
    reasons = {
        "hang": ended.code is None,
        f"must not: {ended.violations.strip()}": ended.violations,
        "traceback": "Traceback (most recent call last)" in ended.output,
        "unexpected": "(unexpected; run the command again" in ended.output,
        "control characters": any(ord(char) < 32 and char not in "\n\t\r" for char in ended.output),
        f"{ended.memory / 1e9:.1f} GB": ended.memory > BYTES,
        f"exit code {ended.code}": ended.code not in codes,
    }
    return next((reason for reason, true in reasons.items() if true), None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=25, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--sound", type=int, default=0, help="so many undamaged files of each kind come first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    total = 0
    for kind in options.kinds:
        began = time.monotonic()
        with undamaged():
            failures = list(fuzz(kind, range(options.sound), options.seed, root, sound=True))
        numbers = range(options.first, options.first + options.count)
        failures += fuzz(kind, numbers, options.seed, root)
        total += len(failures)
        counts = f"{options.count:6} mutants, {len(failures):4} failed"
        print(f"{kind:12} {counts}, {time.monotonic() - began:6.1f} s", flush=True)
        for failure in failures[:MAX_PRINTED_FAILURES]:
            last_line = (failure.output.strip().splitlines() or [""])[-1]
            print(f"  {failure.number}: {failure.reason}\n      {last_line[:300]}", flush=True)
    print(f"failed mutants are kept in {root}" if total else "none failed")
    if not total:
        shutil.rmtree(root)
    sys.exit(total > 0)
