"""Images per second of a training on cores that other processes use too, with all threads and with as many as advised.

    python benchmarks/busy_machine.py [--busy 2] [--cores 2] [--steps 20] [--turns 3] [--side 256]

Busy processes compute in a loop on the same cores. Trainings of `mobilenet-fpn` on synthetic images with a thread per
core, and with one thread, take turns. Each prints its pace from the third step on, the share of the CPU time that its
threads got, and the number of threads that the command advises. Everything runs on `--cores` cores (Linux). The pace
depends on what else the machine does, so compare within a turn.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
"""Computes until this script ends, however it ends."""


def train(options: argparse.Namespace) -> None:
    """Train for some steps, and print the pace, the share of CPU time and the advice as JSON."""
    import torch

    import rcnn
    from rcnn.cores import METER
    from rcnn.data.synthetic import synthesise
    from rcnn.training.recorders import Recorder, Row

    class Clock(Recorder):
        def __init__(self) -> None:
            self.times: list[float] = []

        def step(self, numbers: Row) -> None:
            self.times.append(time.perf_counter())

    batch, clock = 2, Clock()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "shapes")
        size = (options.side, options.side)
        synthesise(data, batch * options.steps, split="train", size=size)
        synthesise(data, 1, split="val", size=size, seed=1)
        rcnn.train(
            data,
            runs=Path(folder, "runs"),
            recorders=[clock],
            quiet=True,
            overrides=[
                *(f"train.batch={batch}", "train.epochs=1", "train.init=none", "train.device=cpu"),
                *(f"preprocess.short={options.side}", f"preprocess.long={options.side}"),
            ],
        )
    seconds = clock.times[-1] - clock.times[1]
    print(
        json.dumps(
            {
                "images_per_second": batch * (len(clock.times) - 2) / seconds,
                "share": METER.share,
                "advice": METER.advice(torch.get_num_threads()),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2, help="number of busy processes")
    parser.add_argument("--cores", type=int, default=2, help="number of cores that everything runs on")
    parser.add_argument("--steps", type=int, default=20, help="of each training")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--side", type=int, default=256, help="of the images, pixels")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        train(options)
        return
    available = sorted(os.sched_getaffinity(0))[: options.cores]
    os.sched_setaffinity(0, available)
    ratios = []
    for busy in (0, options.busy):
        print(f"{busy} busy processes on {len(available)} cores; load {os.getloadavg()[0]:.1f}", flush=True)
        others = [subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())]) for _ in range(busy)]
        try:
            for _ in range(options.turns):
                paces = []
                for threads in (len(available), 1):
                    variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
                    words = [sys.executable, __file__, *sys.argv[1:], "--one"]
                    ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=variables, check=True)
                    found = json.loads(ended.stdout.splitlines()[-1])
                    paces.append(found["images_per_second"])
                    told = f"share {found['share']:.2f}, advised threads: {found['advice'] or 'these'}"
                    print(f"  threads {threads}: {paces[-1]:.2f} images/s, {told}", flush=True)
                if busy:
                    ratios.append(paces[1] / paces[0])
        finally:
            for other in others:
                other.kill()
                other.wait()
    print(f"one thread / {len(available)} threads beside busy processes: {median(ratios):.2f}, median of {len(ratios)}")


if __name__ == "__main__":
    main()
