"""CPU time of loading a training image: reading, resizing, augmenting, and its share of a batch.

    python benchmarks/loading.py DATA [--sides 448,800] [--epochs 3] [--against SRC]

`--against` names the `src` folder of another version, which is measured in turn with this one. Each measurement runs in
its own process with one thread and `data.workers=0`, and counts the CPU time of the process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parents[1] / "src"
LONG = 1.667
"""Limit of the longer side over the shorter one, as in 800 and 1,333."""


def measure(data: str, side: int) -> float:
    """Return the milliseconds per image over one epoch, after a warm-up of one batch."""
    import torch

    from rcnn.data.formats.find import open_splits
    from rcnn.data.loading.loader import Loader
    from rcnn.presets import settings_of

    torch.set_num_threads(1)
    sizes = [f"preprocess.short={side}", f"preprocess.long={round(LONG * side)}"]
    settings = settings_of("mobilenet-fpn", [*sizes, "data.workers=0"])
    train, _ = open_splits(data, settings.data)
    loader = Loader(train, settings, training=True, batch=8)
    next(loader.epoch(0))
    began, images = time.process_time(), 0
    for item in loader.epoch(1):
        images += len(item.seeds)
    return 1000 * (time.process_time() - began) / images


def of_version(source: Path, data: str, side: int) -> float:
    """Run `measure` in a process that imports another version."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, data, "--one", str(side)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="data set, as for `rcnn train`")
    parser.add_argument("--sides", default="448,800", help="shorter sides to measure, pixels")
    parser.add_argument("--epochs", type=int, default=3, help="measurements of each; the median counts")
    parser.add_argument("--against", type=Path, help="`src` of another version")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.data, options.one)))
        return
    versions = [HERE, *([options.against.resolve()] if options.against else [])]
    for side in map(int, options.sides.split(",")):
        times = [[of_version(source, options.data, side) for source in versions] for _ in range(options.epochs)]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        told = f"{side} px: {medians[0]:.2f} ms per image"
        print(
            told + (f", the other {medians[1]:.2f} ms, ratio {medians[0] / medians[1]:.2f}" if options.against else "")
        )


if __name__ == "__main__":
    main()
