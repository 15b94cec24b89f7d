"""An exported file in a child process, as files of unknown origin run, compared with the process of the caller.

    python benchmarks/graph_process.py FILE [--size 448 608] [--batch 1] [--runs 60]
        [--weights blood-cells]

FILE is an .onnx or .xml file; if it is missing, the detector of --weights is exported to it. Both processes predict the
same batch in turn, one thread each, in alternating order. Prints the median seconds of each, the median ratio with its
95% interval (1000 resamples of the pairs), and the memory that the child adds: its peak, less the growth of a process
that runs the file itself. The boxes must be equal to the bit, or the command fails in the end. Memory is that of Linux.
This takes a minute.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import rcnn
from rcnn.exporting.export import export
from rcnn.images.batch import Size
from rcnn.model.structures import Batch, Pass
from rcnn.runtime.by_suffix import runtime_of
from rcnn.runtime.graph import GraphRuntime

GROWTH = "--growth"
"""Option with which the script starts itself to measure the memory of a process that runs the file."""


def made_up(runtime: GraphRuntime, size: Size, count: int) -> Batch:
    """Return a batch of noise."""
    channels = runtime.metadata.settings.preprocess.in_channels
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, *size), dtype=np.uint8)
    images = torch.from_numpy(pixels)
    if runtime.metadata.settings.preprocess.resize == "interpolate":
        images = images.float()
    sides = torch.tensor([[float(side) for side in size]] * count)
    return Batch(images, sides, torch.ones_like(sides), sides)


def equal(one: Pass, other: Pass) -> bool:
    """Return whether two runtimes gave the same bits."""
    assert one.detections is not None
    assert other.detections is not None
    return all(torch.equal(*parts) for parts in zip(one.detections, other.detections, strict=True))


def interval(ratios: list[float]) -> tuple[float, float]:
    """Return the 95% interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (1000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def growth(path: Path, size: Size, count: int, runs: int) -> None:
    """Print the bytes by which the peak memory of this process grows when it runs the file itself."""
    runtime = runtime_of(path)
    runtime.read(path)  # with what both processes need
    before = peak()
    here = runtime(path, own=True)
    batch = made_up(here, size, count)
    for _ in range(runs + 1):
        here.execute(batch)
    print(peak() - before)


def peak() -> int:
    """Return the peak resident memory of this process (Linux). That of `getrusage` includes the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(448, 608), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument(GROWTH, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--weights", default="blood-cells")
    options = parser.parse_args()
    if not options.file.exists():
        export(rcnn.load(options.weights, device="cpu"), options.file)
    torch.set_num_threads(1)
    size = options.size[0], options.size[1]
    if options.growth:
        growth(options.file, size, options.batch, options.runs)
        return
    here, child = (runtime_of(options.file)(options.file, own=own) for own in (True, False))
    batch = made_up(here, size, options.batch)
    same = equal(here.execute(batch), child.execute(batch))
    seconds: dict[str, list[float]] = {"this process": [], "a child": []}
    for number in range(options.runs):
        programs = [("this process", here), ("a child", child)]
        for name, runtime in programs[:: 1 if number % 2 else -1]:
            begun = time.perf_counter()
            runtime.execute(batch)
            seconds[name].append(time.perf_counter() - begun)
    for name, times in seconds.items():
        print(f"{name:14} {statistics.median(times) * 1000:8.2f} ms per batch of {options.batch}")
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    low, high = interval(ratios)
    print(f"ratio {statistics.median(ratios):.4f}, 95% of the median {low:.4f} to {high:.4f}")
    words = [sys.executable, __file__, str(options.file), GROWTH, "--size", *map(str, size)]
    words += ["--batch", str(options.batch), "--runs", str(options.runs)]
    grown = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    memory = child.usage_of_child()[1]
    print(f"memory: peak of the child {memory / 1e6:.0f} MB, {(memory - grown) / 1e6:.0f} MB more than in this process")
    if not same:
        sys.exit("The boxes of the child are not those of this process")


if __name__ == "__main__":
    main()
