"""Memory of training and of prediction, each in a process of its own.

    python benchmarks/memory.py

Training: `mobilenet-fpn`, batch 8 of 448 x 608 images, ten steps; the peak of the process. Prediction: the same image
2,000 times from a folder of links; the process's memory after 200 and after 2,000 images.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def peak() -> float:
    """GB that this process has used at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resident() -> float:
    """MB that this process uses now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def training() -> None:
    import torch

    from rcnn.model.structures import Batch, Targets
    from rcnn.presets import build, settings_of
    from rcnn.training.optim import build_optimizer

    settings = settings_of("mobilenet-fpn")
    model = build(settings, 3).to(memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, settings.train)
    size = torch.tensor([[448.0, 597.0]]).repeat(8, 1)
    batch = Batch(torch.randn(8, 3, 448, 608), size, torch.ones(8, 2), size)
    corner = torch.rand(8, 24, 2) * 300
    boxes = torch.cat((corner, corner + 60), dim=-1)
    yes = torch.ones(8, 24, dtype=torch.bool)
    targets = Targets(boxes, torch.zeros(8, 24, dtype=torch.int64), yes, ~yes)
    for _ in range(10):
        losses = model.loss(batch, targets, model.keys(batch, targets, torch.arange(8)))
        optimizer.zero_grad(set_to_none=True)
        torch.stack([total / count for total, count in losses.values()]).sum().backward()
        optimizer.step()
    print(f"training, float32, batch 8 of 448 x 608: peak {peak():.2f} GB")


def prediction() -> None:
    from rcnn.detector import Detector
    from rcnn.presets import build, settings_of

    settings = settings_of("mobilenet-fpn")
    detector = Detector(build(settings, 3), settings, ("a", "b", "c"), device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.jpg"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)).save(image)
        (Path(folder) / "all").mkdir()
        for i in range(2000):
            (Path(folder) / "all" / f"{i:04}.jpg").symlink_to(image)
        for number, _ in enumerate(detector.stream(Path(folder) / "all", score=0.0), 1):
            if number in (200, 2000):
                print(f"prediction after {number} images: {resident():.0f} MB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        {"training": training, "prediction": prediction}[sys.argv[1]]()
    else:
        for part in ("training", "prediction"):
            subprocess.run([sys.executable, __file__, part], check=True)
