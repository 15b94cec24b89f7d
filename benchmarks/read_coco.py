"""Time and memory of reading a COCO json as large as that of train2017, by rcnn and by pycocotools.

    python benchmarks/read_coco.py [--images 118287] [--annotations 860001] [--turns 2]

The json is synthetic: 118,287 images, 860,001 annotations with a box and a polygon, about 200 MB. Each program reads it
in its own process, in turn. rcnn looks for every image file; the files exist but are empty, as no image is opened: its
size is the one in the json. The command fails if a program does not find all of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CLASSES = 80
WIDTH, HEIGHT = 640, 480


def peak() -> float:
    """Return the peak memory of this process in GB (Linux). `ru_maxrss` would include that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def make(
    root: Path,
    images: int,
    annotations: int,
    add: Callable[[Path], None] = Path.touch,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Path:
    """Write the json for images of a size, and with `add` the image files, which are empty by default."""
    rng = np.random.default_rng(0)
    file = root / "annotations" / "instances_train2017.json"
    for folder in (file.parent, root / "train2017"):
        folder.mkdir()
    corners = rng.uniform(0, (size[0] - 1, size[1] - 1), (annotations, 2)).round(2)
    sides = (rng.uniform(0.01, 1, (annotations, 2)) * (size - corners)).round(2)
    owners, classes = rng.integers(images, size=annotations), rng.integers(CLASSES, size=annotations)
    with file.open("w", encoding="utf-8") as out:
        out.write('{"info": {"year": 2017}, "images": [')
        for index in range(images):
            name = f"{index:012}.jpg"
            add(root / "train2017" / name)
            image = {"license": 3, "file_name": name, "coco_url": f"http://images.cocodataset.org/train2017/{name}"}
            image |= {"height": size[1], "width": size[0], "date_captured": "2013-11-14 11:18:45", "id": index}
            out.write(", " * (index > 0) + json.dumps(image))
        out.write('], "annotations": [')
        for index, ((x, y), (w, h)) in enumerate(zip(corners.tolist(), sides.tolist(), strict=True)):
            polygon = [round(value, 2) for value in (x, y, x + w, y, x + w, y + h, x, y + h)]
            row = {"segmentation": [polygon], "area": round(w * h, 2), "iscrowd": 0, "image_id": int(owners[index])}
            row |= {"bbox": [x, y, w, h], "category_id": int(classes[index]) + 1, "id": 900_000 + index}
            out.write(", " * (index > 0) + json.dumps(row))
        categories = [{"supercategory": "thing", "id": k + 1, "name": f"class {k}"} for k in range(CLASSES)]
        out.write(f'], "categories": {json.dumps(categories)}}}\n')
    return file


def ours(file: Path) -> tuple[int, int]:
    """Print the time of rcnn, and return how many images and boxes it found."""
    from rcnn.config import Data
    from rcnn.data import image_checks
    from rcnn.data.formats.find import open_dataset

    image_checks.image_size = lambda *_, **__: (HEIGHT, WIDTH)
    before = peak()
    start = time.perf_counter()
    data = open_dataset(file, "all", Data(), decode=False)
    seconds = time.perf_counter() - start
    boxes = sum(len(record.boxes) for record in data.records)
    counts = f"{len(data)} images, {boxes} boxes"
    print(f"rcnn: {counts} in {seconds:.1f} s, peak {peak():.2f} GB ({before:.2f} at the start)")
    return len(data), boxes


def pycocotools(file: Path) -> tuple[int, int]:
    """Like `ours`, for pycocotools."""
    from pycocotools.coco import COCO

    before = peak()
    start = time.perf_counter()
    data = COCO(str(file))
    seconds = time.perf_counter() - start
    counts = f"{len(data.imgs)} images, {len(data.anns)} boxes"
    print(f"pycocotools: {counts} in {seconds:.1f} s, peak {peak():.2f} GB ({before:.2f} at the start)")
    return len(data.imgs), len(data.anns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--annotations", type=int, default=860_001)
    parser.add_argument("--turns", type=int, default=2, help="how often each reads it")
    parser.add_argument("--one", nargs=2, metavar=("PROGRAM", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, file = options.one
        found = {"rcnn": ours, "pycocotools": pycocotools}[name](Path(file))
        if found != (options.images, options.annotations):
            sys.exit(f"{name} read {found} images and boxes of {options.images} and {options.annotations}.")
        return
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder), options.images, options.annotations)
        print(f"{made.stat().st_size / 1e6:.1f} MB of json", flush=True)
        for turn, name in enumerate(("rcnn", "pycocotools") * options.turns):
            words = [sys.executable, __file__, *sys.argv[1:], "--one", name, str(made)]
            environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache-{turn}"}  # nothing is remembered
            if subprocess.run(words, env=environment).returncode:
                sys.exit(f"{name} failed, so the times can't be compared.")


if __name__ == "__main__":
    main()
