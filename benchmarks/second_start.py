"""CPU time and memory of the first and the second start of a training, up to its first step.

    python benchmarks/second_start.py [--images 118287] [--annotations 860001] [--folder DIR]

The data are as large as train2017 of COCO: a synthetic json, and links to a few JPEGs of 160 x 120 pixels. A training
of `tiny-fpn` is started with an empty cache, then again, and then as two processes with gloo, each time in fresh
processes. For every process, the script prints its CPU seconds, imports included, up to the end of the first step, and
its peak memory before the model is built, above that after `import torch`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from read_coco import make, peak

JPEGS, SIZE = 50, (160, 120)
SETTINGS = ("preprocess.short=64", "preprocess.long=96", "train.batch=2", "train.steps=[1]", "data.workers=0")


def make_data(root: Path, images: int, annotations: int) -> None:
    """Write a COCO set whose images are links to a few files, and wait until these are old enough for the cache."""
    rng, sources = np.random.default_rng(0), root / "sources"
    (root / "data").mkdir()
    sources.mkdir()
    for number in range(JPEGS):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize(SIZE, Image.Resampling.BICUBIC).save(sources / f"{number}.jpg", quality=90)
    numbers = count()
    make(root / "data", images, annotations, lambda path: os.link(sources / f"{next(numbers) % JPEGS}.jpg", path), SIZE)
    time.sleep(2.5)


def start(data: Path, runs: Path) -> None:
    """Start a training in this process and end the process after the first step."""
    import torch  # noqa: F401 - its memory is not counted

    before, began = peak(), time.perf_counter()
    from rcnn.training import train, trainer

    open_run, step = train.open_run, trainer.Trainer.step
    built = [0.0]

    def measured(*arguments):
        built[0] = peak()
        return open_run(*arguments)

    def one_step(self, *arguments):
        step(self, *arguments)
        seconds, waited = time.process_time(), time.perf_counter() - began
        lines = self.distributed.gather(
            f"  process {self.distributed.rank}: first step after {seconds:.1f} s of CPU time, {waited:.1f} s in all; "
            f"peak memory before the model {1024 * (built[0] - before):.0f} MB above `import torch`"
        )
        if self.distributed.writer:
            print(*lines, sep="\n", flush=True)
        self.distributed.gather(None)  # so that no process misses another one
        os._exit(0)

    train.open_run, trainer.Trainer.step = measured, one_step
    train.train(data, model="tiny-fpn", overrides=SETTINGS, runs=runs, init="none", ema=None, device="cpu", quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--folder", type=Path, help="where the data are made; default: the system's temporary folder")
    parser.add_argument("--one", nargs=2, metavar=("DATA", "RUNS"), type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        start(*options.one)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        make_data(root, options.images, options.annotations)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        environment = {**os.environ, "XDG_CACHE_HOME": str(root / "cache"), "OMP_NUM_THREADS": "1"}
        arguments = [__file__, "--one", str(root / "data"), str(root / "runs")]
        for name, words in (("first start", []), ("second start", []), ("third start, two processes", launcher)):
            print(f"{name}:", flush=True)
            if subprocess.run([sys.executable, *words, *arguments], env=environment).returncode:
                sys.exit("The training failed.")


if __name__ == "__main__":
    main()
