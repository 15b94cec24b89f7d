"""Check that the detections of an image are the same to the last bit, alone and in any batch.

    python benchmarks/batch_invariance.py WEIGHTS FOLDER [--images 12]

Predicts images of all shapes in the folder, an all-black one and a crowded one, one by one and in shuffled batches of
2, 4 and 8. The command fails if a single number differs. The folder must have images of at least two shape buckets.
"""

import argparse
import sys

import numpy as np
import torch

import rcnn
from rcnn.images.sources import files
from rcnn.images.stream import read_picture


def same(a: rcnn.Result, b: rcnn.Result) -> bool:
    """Return True if all boxes, scores and labels are equal."""
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "scores", "labels"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=12)
    options = parser.parse_args()
    detector = rcnn.load(options.weights)
    by_bucket: dict[tuple[int, int], list[np.ndarray]] = {}
    for path in files(options.folder):
        array = read_picture(path, detector.settings)
        by_bucket.setdefault(detector.preprocessor.bucket(array.shape[:2]), []).append(array)
    if len(by_bucket) < 2:
        sys.exit(f"{options.folder}: all images belong to one shape bucket; at least two are needed to mix them.")
    commonest = sorted(by_bucket.values(), key=len, reverse=True)[: max(3, options.images // 4)]
    images = [image for group in commonest for image in group[: options.images // len(commonest)]]
    images += [np.zeros_like(commonest[0][0]), np.tile(commonest[1][0][::4, ::4], (4, 4, 1))]
    shapes = {image.shape[:2] for image in images}
    buckets = [detector.preprocessor.bucket(image.shape[:2]) for image in images]
    print(f"{len(images)} images, {len(shapes)} shapes, {len(set(buckets))} buckets, on {detector.device}")
    alone, worst = detector.predict(images, score=0.0), len(images)
    for size in (2, 4, 8):
        order = sorted(np.random.default_rng(size).permutation(len(images)).tolist(), key=lambda i: buckets[i])
        together = detector.predict([images[i] for i in order], score=0.0, batch=size)
        equal = sum(same(alone[i], result) for i, result in zip(order, together, strict=True))
        boxes, worst = sum(map(len, together)), min(worst, equal)
        print(f"batches of {size}: {equal} of {len(images)} images equal to the last bit ({boxes} boxes)")
    if worst < len(images):
        sys.exit(f"Detections of {len(images) - worst} images depend on their batch; those of all must be equal.")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
