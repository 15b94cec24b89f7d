"""Memory of training and of prediction, each in its own process.

    python benchmarks/memory.py [--batch 8] [--size 448 608] [--steps 10] [--images 2000] [--part windows]

Training: `mobilenet-fpn`, batch 8 of 448 x 608 images, ten steps; the peak of the process. Prediction: the same image
2,000 times from a folder of links; the process's memory after a tenth of them and after all. Windows: `paper-vgg16` on
the 21,546 sliding windows of one image of 600 x 1000, which takes minutes; the peak of the process.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def peak() -> float:
    """Return the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resident() -> float:
    """Return the memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def training(options: argparse.Namespace) -> None:
    import torch

    from rcnn.model.structures import Batch, Targets
    from rcnn.presets import build, settings_of
    from rcnn.training.optim import build_optimizer

    settings = settings_of("mobilenet-fpn")
    model = build(settings, 3).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, settings.train)
    count, (height, width) = options.batch, options.size
    size = torch.tensor([[float(height), width - 11.0]]).repeat(count, 1)
    pixels = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    batch = Batch(pixels, size, torch.ones(count, 2), size)
    corner = torch.rand(count, 24, 2) * 0.67 * min(height, width)
    boxes = torch.cat((corner, corner + 60), dim=-1)
    yes = torch.ones(count, 24, dtype=torch.bool)
    targets = Targets(boxes, torch.zeros(count, 24, dtype=torch.int64), yes, ~yes)
    for _ in range(options.steps):
        losses = model.loss(batch, targets, model.keys(batch, targets, torch.arange(count)))
        optimizer.zero_grad(set_to_none=True)
        torch.stack([total / number for total, number in losses.values()]).sum().backward()
        optimizer.step()
    print(f"training, float32, batch {count} of {height} x {width}: peak {peak():.2f} GB")


def prediction(options: argparse.Namespace) -> None:
    from rcnn.detector import Detector
    from rcnn.presets import build, settings_of

    settings = settings_of("mobilenet-fpn")
    detector = Detector(build(settings, 3), settings, ("a", "b", "c"), device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.jpg"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)).save(image)
        (Path(folder) / "all").mkdir()
        for i in range(options.images):
            (Path(folder) / "all" / f"{i:04}.jpg").symlink_to(image)
        for number, _ in enumerate(detector.stream(Path(folder) / "all", score=0.0), 1):
            if number in (options.images // 10, options.images):
                print(f"prediction after {number} images: {resident():.0f} MB")


def windows(options: argparse.Namespace) -> None:
    from rcnn.data.proposals.external import SlidingWindows
    from rcnn.detector import Detector
    from rcnn.presets import build, settings_of

    settings = settings_of(options.model, ["predict.precision=float32"])
    detector = Detector(build(settings, 20), settings, tuple("abcdefghijklmnopqrst"), device="cpu")
    height, width = options.picture
    preprocessor, picture = detector.preprocessor, np.zeros((height, width, 3), np.uint8)
    pixels = preprocessor.resize(picture, (height, width))
    batch = preprocessor.collate([pixels], [(height, width)], preprocessor.padded((height, width)))
    given = SlidingWindows.of(detector.model).of_batch(batch)
    detector.runtime.execute(batch, fields=())
    before, now = peak(), resident() / 2**10
    detector.runtime.execute(batch, given, fields=("detections",))
    print(
        f"{int(given.valid.sum()):,} windows of {height} x {width}, {options.model}: peak {peak():.2f} GB; before the "
        f"second stage {before:.2f} GB, of which {now:.2f} GB stay (weights, libraries)"
    )


PARTS = {"training": training, "prediction": prediction, "windows": windows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images of a training step")
    size = {"type": int, "nargs": 2, "default": (448, 608), "metavar": ("HEIGHT", "WIDTH")}
    parser.add_argument("--size", **size, help="of the images of a training step, multiples of 32")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--images", type=int, default=2000, help="to predict, ten at least")
    parser.add_argument("--model", default="paper-vgg16", help="of the windows, with random weights")
    picture = {**size, "default": (600, 1000)}
    parser.add_argument("--picture", **picture, help="of the image with windows")
    parser.add_argument("--part", choices=tuple(PARTS), help="in this process; by default each in its own")
    options = parser.parse_args()
    if options.part:
        PARTS[options.part](options)
    else:
        for part in PARTS:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part], check=True)


if __name__ == "__main__":
    main()
