"""Synthetic data and weights for the tests of the benchmarks."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torchvision.models import mobilenet_v2

CLASSES = ("class_0", "class_1")
"""Class names of the objects, which are those of the random detectors of `runtimes`."""
SIZES = ((96, 128), (128, 96))
"""(height, width) of the smears."""


def smear(size: tuple[int, int], seed: int) -> tuple[Image.Image, list[list[float]]]:
    """Return a picture in which `blood-cells` finds red cells, and their boxes."""
    rng, scale = np.random.default_rng(seed), 4
    height, width = (scale * side for side in size)
    picture = Image.new("RGB", (width, height), (228, 214, 208))
    draw, radius, boxes = ImageDraw.Draw(picture), 0.095 * min(height, width), []
    for _ in range(9):
        x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        for share, colour in ((1.0, (205, 150, 150)), (0.4, (222, 185, 182))):
            part = share * radius
            draw.ellipse((x - part, y - part, x + part, y + part), fill=colour)
        boxes.append([(x - radius) / scale, (y - radius) / scale, (x + radius) / scale, (y + radius) / scale])
    return picture.resize((size[1], size[0]), Image.Resampling.LANCZOS), boxes


def write_smears(root: Path) -> Path:
    """Write a data set in VOC's layout like BCCD: four pictures of the first size, then four of the second."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    names = []
    for index in range(8):
        (height, width), name = SIZES[index // 4], f"{index:03}"
        picture, boxes = smear((height, width), index)
        picture.save(root / f"JPEGImages/{name}.jpg", quality=95)
        objects = "".join(
            f"<object><name>{CLASSES[1 if number else 0]}</name><bndbox>"
            + "".join(
                f"<{key}>{value:.0f}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            )
            + "</bndbox></object>"
            for number, box in enumerate(boxes)
        )
        shape = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{shape}{objects}</annotation>"
        (root / f"Annotations/{name}.xml").write_text(text)
        names.append(name)
    for split, chosen in (("train", names), ("val", names[:2]), ("test", names[:4])):
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(chosen) + "\n")
    return root


def write_mobilenet(path: Path) -> Path:
    """Write random weights in the layout of torchvision's MobileNetV2."""
    torch.manual_seed(0)
    save_file({name: tensor.contiguous() for name, tensor in mobilenet_v2(weights=None).state_dict().items()}, path)
    return path
