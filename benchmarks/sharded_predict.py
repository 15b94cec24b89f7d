"""CPU time and memory that a prediction in shards takes per picture, besides decoding and the network.

    python benchmarks/sharded_predict.py [--names 1000 1000000] [--form folder]

Each number of names is predicted in its own process by `rcnn.shards.predict_shard`, with a detector whose decoder
returns one small array, and whose network returns one box. `--form folder` lists empty files that the script makes, and
`--form list` a list of made-up names. The script fails if the time per picture at the largest number is over 1 ms or
more than 20% above that at the smallest one, or if the memory grows by more than 50 MB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

MAX_MS, MAX_RATIO, MAX_MB = 1.0, 1.2, 50.0
REPEATS = 20_000
"""Names below which a shard is predicted several times, so that the time can be measured."""


def measure(number: int, form: str, folder: Path) -> dict[str, float]:
    """Return the milliseconds per picture, and the peak of resident memory in MB above that of a shard of 1,000."""
    import numpy as np
    import torch

    from rcnn.detector import Detector
    from rcnn.images import stream
    from rcnn.presets import build, settings_of
    from rcnn.result import Result
    from rcnn.shards import predict_shard

    torch.set_num_threads(1)
    settings = settings_of("tiny-fpn", ["preprocess.short=32", "preprocess.long=32"])
    detector = Detector(build(settings, 1), settings, ("object",), device="cpu")
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    box = np.array([[1, 2, 30, 31]], dtype=np.float32)

    def detect(batch: object, **_: object) -> list[Result]:
        return [Result(box, np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.int64), ("object",), None, (32, 32))]

    def names() -> Iterator[str]:
        return (f"photos/{name // 1000:04}/{name:09}.jpg" for name in range(number))

    def predict(turn: int) -> None:
        source = folder / "photos" if form == "folder" else names()
        predict_shard(detector, source, folder / f"out-{turn}")

    with patch.object(stream, "read_picture", lambda *_: picture), patch.object(detector, "detect", detect):
        predict_shard(detector, (f"{name}.jpg" for name in range(1000)), folder / "warm")
        before, began = peak(), time.process_time()
        turns = max(1, REPEATS // number)
        for turn in range(turns):
            predict(turn)
    seconds = time.process_time() - began
    return {"ms": 1000 * seconds / (turns * number), "mb": peak() - before}


def peak() -> float:
    """Return the peak of resident memory of this process, MB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1e3


def in_process(number: int, form: str) -> dict[str, float]:
    """Run `measure` in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        if form == "folder":
            for name in range(number):
                file = Path(folder, f"photos/{name // 1000:04}/{name:09}.jpg")
                if name % 1000 == 0:
                    file.parent.mkdir(parents=True)
                file.touch()
        words = [sys.executable, __file__, "--names", str(number), "--form", form, "--one", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(ended.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, nargs="+", default=[1_000, 1_000_000], help="numbers of names")
    parser.add_argument("--form", choices=["folder", "list"], default="folder", help="how the names are listed")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.names[0], options.form, options.one)))
        return
    found = {}
    for number in sorted(options.names):
        found[number] = in_process(number, options.form)
        print("{:,} names: {ms:.3f} ms per picture, {mb:.1f} MB".format(number, **found[number]), flush=True)
    first, last = found[min(found)], found[max(found)]
    if last["ms"] > MAX_MS or last["ms"] > MAX_RATIO * first["ms"]:
        sys.exit(
            f"A picture takes {last['ms']:.3f} ms; at most {MAX_MS} and {MAX_RATIO} times {first['ms']:.3f} expected"
        )
    if last["mb"] - first["mb"] > MAX_MB:
        sys.exit(f"Memory grew by {last['mb'] - first['mb']:.0f} MB; at most {MAX_MB} expected")


if __name__ == "__main__":
    main()
