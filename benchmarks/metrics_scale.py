"""Time and memory of the metrics of a large data set: COCO's beside faster-coco-eval, and VOC's AP of many classes.

    python benchmarks/metrics_scale.py [--images 5000] [--boxes 500000] [--voc 365 80000] [--turns 3]

Ground truth and detections are synthetic: 15 objects per image of three of the classes, detections near them and
elsewhere. Each program runs in its own process, in turn. faster-coco-eval gets COCO's dicts, one per box, and is timed
for `loadRes`, `evaluate` and `accumulate`; rcnn gets one array of boxes per image. Memory is the peak beyond what is
held before. The command fails if any of COCO's numbers differs.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from rcnn.metrics.coco import coco_metrics
from rcnn.metrics.types import Prediction, Truth
from rcnn.metrics.voc import voc_ap

CLASSES = 80
OBJECTS = 15
"""Objects per image."""


def memory(name: str) -> float:
    """Return a figure of /proc/self/status such as VmHWM, in MB (Linux)."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1000


def make(images: int, boxes: int, classes: int) -> tuple[list[Truth], list[Prediction]]:
    """Return the ground truth of the images, and about so many detections in them."""
    rng = np.random.default_rng(0)
    found = max(1, boxes // images)
    kinds = rng.integers(classes, size=(images, 3))

    def apart(count: int) -> np.ndarray:
        low, size = rng.uniform(0, 400, (images, count, 2)), rng.uniform(8, 200, (images, count, 2))
        return np.concatenate((low, low + size), axis=2)

    truth, chosen = apart(OBJECTS), rng.integers(3, size=(images, OBJECTS))
    labels = np.take_along_axis(kinds, chosen, axis=1)
    ignore = rng.random((images, OBJECTS)) < 0.02
    copies = rng.integers(OBJECTS, size=(images, found))
    near = np.take_along_axis(truth, copies[..., None], axis=1) + rng.normal(0, 6, (images, found, 4))
    near[..., 2:] = np.maximum(near[..., 2:], near[..., :2])
    right = rng.random((images, found)) < 0.6
    guesses = np.where(right[..., None], near, apart(found)).astype(np.float32)
    guessed = np.where(right, np.take_along_axis(labels, copies, axis=1), rng.integers(classes, size=(images, found)))
    scores = rng.random((images, found)).round(3).astype(np.float32)
    truths = [Truth(*row) for row in zip(truth, labels, ignore, strict=True)]
    return truths, [Prediction(*row) for row in zip(guesses, scores, guessed, strict=True)]


@contextlib.contextmanager
def measured(title: str) -> Iterator[None]:
    """Print the time, the CPU time and the added peak memory of what is done inside."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before, start, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{title}: {seconds:.2f} s ({cpu:.2f} s of CPU), {memory('VmHWM') - before:.0f} MB", flush=True)


def ours(options: argparse.Namespace) -> list[float]:
    truths, predictions = make(options.images, options.boxes, CLASSES)
    with measured("rcnn, COCO"):
        metrics = coco_metrics(truths, predictions, CLASSES)
    values = [metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_small, metrics.ap_medium, metrics.ap_large]
    return [*values, metrics.ar1, metrics.ar10, metrics.ar100, *metrics.per_class_ap.tolist()]


def theirs(options: argparse.Namespace) -> list[float]:
    from faster_coco_eval import COCO, COCOeval_faster

    truths, predictions = make(options.images, options.boxes, CLASSES)
    objects = list(rows([(truth.boxes, truth.labels, truth.ignore.astype(int)) for truth in truths], "iscrowd"))
    for number, row in enumerate(objects):
        row |= {"id": number + 1, "area": row["bbox"][2] * row["bbox"][3]}
    found = list(rows([(one.boxes, one.labels, one.scores) for one in predictions], "score"))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, "images": [{"id": index} for index in range(len(truths))], "annotations": objects}
        coco.dataset["categories"] = [{"id": label, "name": str(label)} for label in range(CLASSES)]
        coco.createIndex()
    del truths, predictions
    with measured("faster-coco-eval"), contextlib.redirect_stdout(quiet := io.StringIO()):
        evaluation = COCOeval_faster(coco, coco.loadRes(found), "bbox", print_function=quiet.write)
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    of_all = precision[..., 0, 2]
    parts = [of_all, of_all[0], of_all[5], *(precision[..., size, 2] for size in (1, 2, 3))]
    parts += [*(recall[:, :, 0, top] for top in range(3)), *(of_all[:, :, label] for label in range(CLASSES))]
    return [float(known.mean()) if len(known := part[part > -1]) else float("nan") for part in parts]


def rows(images: list[tuple[np.ndarray, np.ndarray, np.ndarray]], field: str) -> Iterator[dict]:
    """Yield COCO's dicts of all boxes; the third array of each image is that of a field."""
    for image, (boxes, labels, values) in enumerate(images):
        boxes = boxes.astype(np.float64)
        sides = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1).tolist()
        for bbox, label, value in zip(sides, labels.tolist(), values.tolist(), strict=True):
            yield {"image_id": image, "category_id": label, "bbox": bbox, field: value}


def voc(options: argparse.Namespace) -> list[float]:
    classes, images = options.voc
    truths, predictions = make(images, images * options.boxes // options.images, classes)
    with measured(f"rcnn, VOC, {classes} classes, {images} images"):
        return voc_ap(truths, predictions, classes).tolist()


PROGRAMS: dict[str, Callable[[argparse.Namespace], list[float]]] = {"ours": ours, "theirs": theirs, "voc": voc}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=500_000, help="detections in all images")
    parser.add_argument("--voc", type=int, nargs=2, default=(365, 80_000), metavar=("CLASSES", "IMAGES"))
    parser.add_argument("--turns", type=int, default=3, help="how often COCO's metrics are computed by each")
    parser.add_argument("--one", choices=PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(PROGRAMS[options.one](options)))
        return
    print(f"{options.images} images, {options.boxes} boxes, {CLASSES} classes", flush=True)
    numbers: dict[str, str] = {}
    for name in [*("ours", "theirs") * options.turns, "voc"]:
        words = [sys.executable, __file__, *sys.argv[1:], "--one", name]
        ended = subprocess.run(words, stdout=subprocess.PIPE, text=True)
        if ended.returncode:
            sys.exit(f"{name} failed, so the times can't be compared.")
        line, numbers[name] = ended.stdout.splitlines()
        print(line, flush=True)
    if numbers["ours"] != numbers["theirs"]:
        sys.exit(f"The numbers of rcnn and of faster-coco-eval differ:\n{numbers['ours']}\n{numbers['theirs']}")
    print("COCO's numbers are the same, bit for bit")


if __name__ == "__main__":
    main()
