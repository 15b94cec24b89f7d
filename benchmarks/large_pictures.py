"""Compare the detections on large pictures with those on the small pictures that they consist of.

    python benchmarks/large_pictures.py blood-cells path/to/bccd [--grid 6] [--tile auto] [--overlap 0.2]

Arranges the pictures of a data set on canvases of GRID x GRID, with a margin so that no edge of a window is on a
border between pictures, and scores the detector on the single pictures, on the entire canvases, and in windows. All
boxes count, since a canvas has hundreds of objects. The times of one, two and four canvases show that time is linear.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import rcnn
from rcnn.data.dataset import Dataset, Record
from rcnn.data.formats.find import open_dataset
from rcnn.evaluate import evaluate
from rcnn.images.stream import read_picture
from rcnn.metrics.coco import coco_metrics

MARGIN = 37
"""Pixels around a canvas."""
EVERY = 2000
"""Detections that count per class and image."""


def canvases(detector: rcnn.Detector, dataset: Dataset, grid: int, folder: Path) -> Iterator[Record]:
    """Write canvases of `grid` x `grid` pictures of the size of the first; other pictures are left out."""
    (height, width), most = dataset.records[0].size, grid * grid
    fit = [record for record in dataset.records if record.size == (height, width)]
    for number in range(len(fit) // most):
        canvas = np.full((grid * height + 2 * MARGIN, grid * width + 2 * MARGIN, 3), 128, np.uint8)
        chosen, moved = fit[number * most : (number + 1) * most], []
        for place, record in enumerate(chosen):
            top, left = MARGIN + place // grid * height, MARGIN + place % grid * width
            canvas[top : top + height, left : left + width] = read_picture(record.path, detector.settings)
            moved.append(record.boxes + [left, top, left, top])
        path = folder / f"{number}.png"
        Image.fromarray(canvas).save(path, compress_level=1)
        columns = (np.concatenate([getattr(record, name) for record in chosen]) for name in ("labels", "ignore"))
        yield Record(path, path.name, path.stem, canvas.shape[:2], np.concatenate(moved), *columns)


def edges_on_borders(detector: rcnn.Detector, canvas: Record, picture: Record) -> int:
    """Count the edges of windows that are on a border between pictures."""
    count = 0
    for view in detector.viewer.views(canvas.size):
        for start, length, whole, step in zip(view[:2], view.size, canvas.size, picture.size, strict=True):
            inner = [edge for edge in (start, start + length) if 0 < edge < whole]
            count += sum((edge - MARGIN) % step == 0 for edge in inner)
    return count


def scored(detector: rcnn.Detector, dataset: Dataset) -> tuple[float, float]:
    """Return AP50 and AP with all boxes counted."""
    metrics = evaluate(detector, dataset, batch=4, losses=False)
    coco = coco_metrics(metrics.truths, metrics.predictions, len(dataset.names), EVERY)
    return coco.ap50, coco.ap


def times(detector: rcnn.Detector, canvas: np.ndarray) -> Iterator[tuple[float, int, float]]:
    """Yield megapixels, windows and CPU seconds of one, two and four canvases in one picture."""
    detector.predict(canvas[:1000, :1000])  # one-time work of the first call
    for repeats in ((1, 1, 1), (2, 1, 1), (2, 2, 1)):
        picture = np.tile(canvas, repeats)
        begun = time.process_time()
        detector.predict(picture)
        yield picture.size / 3e6, len(detector.viewer.views(picture.shape[:2])), time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--grid", type=int, default=6)
    parser.add_argument("--tile", default="auto")
    parser.add_argument("--overlap", type=float, default=0.2)
    options = parser.parse_args()
    whole = rcnn.load(options.weights)
    tiled = whole.with_settings([f"predict.tile={options.tile}", f"predict.overlap={options.overlap}"])
    single = open_dataset(options.data, options.split, whole.settings.data, names=whole.names)
    with TemporaryDirectory() as folder:
        records = tuple(canvases(whole, single, options.grid, Path(folder)))
        shown = len(records) * options.grid**2
        single, large = replace(single, records=single.records[:shown]), replace(single, records=records)
        print(f"{shown} pictures on {len(records)} canvases of {records[0].size[1]}x{records[0].size[0]} pixels")
        print(f"windows of {tiled.viewer.side} pixels, {len(tiled.viewer.views(records[0].size))} per canvas")
        print(f"edges on borders: {edges_on_borders(tiled, records[0], single.records[0])}")
        print(f"{'':16}{'AP50':>8}{'AP':>8}")
        reference = scored(whole, single)
        rows = {"single pictures": reference, "canvas, whole": scored(whole, large)}
        rows["canvas, windows"] = scored(tiled, large)
        for name, (ap50, ap) in rows.items():
            print(f"{name:16}{ap50:8.3f}{ap:8.3f}")
        pairs = zip(rows["canvas, windows"], reference, strict=True)
        ap50, ap = (mine / best if best else float("nan") for mine, best in pairs)
        print(f"windows reach {ap50:.3f} of AP50 and {ap:.3f} of AP")
        for megapixels, windows, seconds in times(tiled, np.asarray(Image.open(records[0].path))):
            each = f"{seconds / megapixels:.2f} s per megapixel, {seconds / windows:.2f} s per window"
            print(f"{megapixels:5.1f} megapixels, {windows:3} windows: {seconds:.1f} CPU s, {each}")


if __name__ == "__main__":
    main()
