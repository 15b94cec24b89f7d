"""Compare fitted anchors with the default: the same trainings with `anchors.fit=off` and `auto`, once per seed.

    python benchmarks/fitted_anchors.py DATA|shapes [--epochs 3] [--seeds 3] [--init imagenet|FILE]
        [--out runs/fitted-anchors] [--images 240 80] [section.key=value ...]

`shapes` is a synthetic data set of large and thin objects, which is written to OUT (240 images to train on, 80 to
validate). For each training, the validation scores of its best epoch are printed. Where `auto` keeps the anchors, both
trainings are the same, so only one is run.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import rcnn
from rcnn.config import Settings, override
from rcnn.data.formats.find import open_splits
from rcnn.diagnose.anchors.advice import advise
from rcnn.presets import settings_of

SIDE = 320
OBJECTS = {"plank": (140, 290, 12, 26), "post": (12, 26, 140, 290), "disc": (150, 280, 150, 280)}
"""Smallest and largest width, then height, in pixels."""


def write_shapes(folder: Path, images: int, split: str, seed: int) -> None:
    """Write up to three planks, posts and discs per image on noise, as a split of a COCO data set."""
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    rows, annotations = [], []
    for index in range(images):
        noise = generator.integers(60, 200, (20, 20, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        draw, name = ImageDraw.Draw(image), f"{split}-{index:03}.png"
        for _ in range(int(generator.integers(1, 4))):
            label = int(generator.integers(len(OBJECTS)))
            widest, highest = list(OBJECTS.values())[label][:2], list(OBJECTS.values())[label][2:]
            width, height = (int(generator.integers(*bounds)) for bounds in (widest, highest))
            x, y = (int(generator.integers(0, SIDE - side)) for side in (width, height))
            colour = tuple(generator.integers(0, 256, 3).tolist())
            shape = draw.ellipse if label == 2 else draw.rectangle
            shape((x, y, x + width - 1, y + height - 1), fill=colour)
            box = {"bbox": [x, y, width, height], "area": width * height, "category_id": label + 1, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **box})
        image.save(folder / "images" / split / name)
        rows.append({"id": index + 1, "file_name": name, "height": SIDE, "width": SIDE})
    categories = [{"id": number, "name": name} for number, name in enumerate(OBJECTS, start=1)]
    tree = {"images": rows, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree), encoding="utf-8")


def settings_for(data: Path, options: argparse.Namespace) -> Settings:
    """Return the settings of `mobilenet-fpn` for a data set."""
    chosen = {"data": {"path": str(data)}, "train": {"epochs": options.epochs, "init": options.init}}
    return override(settings_of("mobilenet-fpn", options.settings), chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--init", default="imagenet")
    parser.add_argument("--out", type=Path, default=Path("runs/fitted-anchors"))
    images = {"type": int, "nargs": 2, "default": (240, 80), "metavar": ("TRAIN", "VAL")}
    parser.add_argument("--images", **images, help="of `shapes`")
    options = parser.parse_intermixed_args()
    data = Path(options.data)
    if options.data == "shapes":
        data = options.out / "shapes"
        write_shapes(data, options.images[0], "train", seed=1)
        write_shapes(data, options.images[1], "val", seed=2)
    settings = settings_for(data, options)
    advice = advise(open_splits(data, settings.data)[0], settings)
    print(f"{data.name}: recall of the anchors at IoU 0.5 {advice.now:.3f}, of fitted ones {advice.fitted:.3f}")
    kinds = ("off",) if advice.anchors is None else ("off", "auto")
    if len(kinds) == 1:
        print("auto keeps the anchors: both trainings are the same")
    scores: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for seed in range(options.seeds):
        for kind in kinds:
            changes = [*options.settings, f"anchors.fit={kind}"]
            same = {"init": options.init, "epochs": options.epochs, "seed": seed, "quiet": True}
            run = rcnn.train(data, overrides=changes, name=f"{data.name}-{kind}-{seed}", runs=options.out, **same)
            scores[kind].append((run.metrics.ap, run.metrics.ap50))
            print(f"seed {seed}  {kind:4}  AP {run.metrics.ap:.4f}  AP50 {run.metrics.ap50:.4f}", flush=True)
    for kind, found in scores.items():
        ap, ap50 = (statistics.mean(column) for column in zip(*found, strict=True))
        print(f"mean    {kind:4}  AP {ap:.4f}  AP50 {ap50:.4f}")


if __name__ == "__main__":
    main()
