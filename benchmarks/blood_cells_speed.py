"""`blood-cells` on one 640 x 480 picture, warm, and the command from start to saved picture.

    python benchmarks/blood_cells_speed.py [PICTURE] [--runs 7] [--size 480 640] [--short 800]

For comparison: torchvision's ResNet-50 detector, and the import of torch and torchvision. Programs run in turn; medians
are printed. torchvision's weights are random: they affect its time only by the number of detections, at most 100.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.transforms.v2.functional import to_dtype, to_image

import rcnn


def medians(programs: dict[str, Callable[[], object]], runs: int, uncounted: int = 0) -> dict[str, float]:
    """Return the median seconds of each program, run in turn, after `uncounted` rounds."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(-uncounted, runs):
        for name, program in programs.items():
            begun = time.perf_counter()
            program()
            if number >= 0:
                times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    size = {"type": int, "nargs": 2, "default": (480, 640), "metavar": ("HEIGHT", "WIDTH")}
    parser.add_argument("--size", **size, help="of the picture that is made up if none is given")
    parser.add_argument("--short", type=int, default=800, help="shorter side that torchvision's detector resizes to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = options.picture or Path(folder) / "noise.png"
        if options.picture is None:
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (*options.size, 3), dtype=np.uint8)).save(picture)
        image = Image.open(picture).convert("RGB")
        ours, theirs = (
            rcnn.load("blood-cells", device="cpu"),
            fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, min_size=options.short).eval(),
        )

        def torchvision_predicts() -> None:
            with torch.inference_mode():
                theirs([to_dtype(to_image(image), torch.float32, scale=True)])

        def command() -> None:
            words = ["predict", "blood-cells", str(picture), "--out", f"{folder}/out"]
            subprocess.run([sys.executable, "-m", "rcnn", *words], check=True, capture_output=True)

        def imports() -> None:
            subprocess.run([sys.executable, "-c", "import torch, torchvision"], check=True)

        warm = medians({"ours": lambda: ours.predict(image), "torchvision": torchvision_predicts}, options.runs, 1)
        cold = medians({"command": command, "imports": imports}, options.runs)
    print(f"{torch.get_num_threads()} threads, medians of {options.runs}")
    print(
        f"warm: blood-cells {warm['ours']:.3f} s, torchvision's fasterrcnn_resnet50_fpn {warm['torchvision']:.3f} s, ",
        end="",
    )
    print(f"ratio {warm['ours'] / warm['torchvision']:.3f}")
    print(f"rcnn predict, start to saved picture {cold['command']:.2f} s, ", end="")
    print(f"import torch, torchvision {cold['imports']:.2f} s, ratio {cold['command'] / cold['imports']:.2f}")


if __name__ == "__main__":
    main()
