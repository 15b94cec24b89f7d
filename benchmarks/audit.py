"""Plant faults into the labels of a data set, audit it, and count the faults among the first suggestions.

    python benchmarks/audit.py DATA [--share 0.1] [--seed 0] [--folds 5] [--model NAME] [--set section.key=value ...]
        [--out runs/audit-benchmark] [--objectlab]

Of all labels, `--share` get a fault: a quarter are removed, a quarter get another class, a quarter a box that has an
IoU of 0.3 to 0.45 with the right one, and for the last quarter a label is added where there is none. A fault is found
by a suggestion of any kind about its label, or about the object under it, among the first n (or 2n), where n
is the number of faults. For a single kind, the suggestions and faults of that kind count. Natural faults of the data
count as wrong here, so the numbers are lower bounds.

`--objectlab` ranks the same detections with cleanlab's ObjectLab, which has to be installed, and prints its numbers.
The audit is continued if it was interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from os.path import abspath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rcnn.auditing.audit import Audit, audit
from rcnn.data.dataset import Dataset, Record, Records
from rcnn.data.formats.coco import as_json
from rcnn.data.formats.find import open_dataset
from rcnn.diagnose.label_errors import KINDS, Suggestion
from rcnn.metrics.overlap import box_iou

TRIES = 2000
"""Number of random boxes that are tried for each planted box."""

SAME = 0.3
"""Lowest IoU of a suggestion with the label or the object of the fault that it finds."""


class Fault(NamedTuple):
    """A planted fault.

    Attributes:
        image: index of the image.
        kind: a key of `KINDS`.
        boxes: (1 or 2, 4) the planted label, and the object under it, where there are any.
    """

    image: int
    kind: str
    boxes: np.ndarray


def plant(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, list[Fault]]:
    """Return the data set with faulty labels, and the faults."""
    rng = np.random.default_rng(seed)
    records = list(dataset.records)
    places = [(i, j) for i, record in enumerate(records) for j in np.flatnonzero(~record.ignore).tolist()]
    chosen = [places[k] for k in rng.permutation(len(places))[: round(share * len(places))].tolist()]
    faults: list[Fault] = []
    changes: dict[int, list[tuple[str, int]]] = {}
    kinds = [kind for kind in KINDS if kind != "wrong_class" or len(dataset.names) > 1]
    for number, (i, j) in enumerate(chosen):
        changes.setdefault(i, []).append((kinds[number % len(kinds)], j))
    sides = dataset.records.boxes[:, 2:] - dataset.records.boxes[:, :2]
    for i, wanted in changes.items():
        records[i], found = _with_faults(i, records[i], wanted, sides, len(dataset.names), rng)
        faults += found
    return replace(dataset, records=Records(records)), faults


def _with_faults(
    image: int, record: Record, wanted: Sequence[tuple[str, int]], sides: np.ndarray, classes: int, rng: Any
) -> tuple[Record, list[Fault]]:
    """Return an image with faults of these kinds at these labels, and the faults."""
    boxes, labels, removed = record.boxes.copy(), record.labels.copy(), list[int]()
    faults: list[Fault] = []
    height, width = record.size
    for kind, row in wanted:
        before = record.boxes[row]
        if kind == "missing_label":
            removed.append(row)
            faults.append(Fault(image, kind, before[None]))
        elif kind == "wrong_class":
            labels[row] = (labels[row] + rng.integers(1, classes)) % classes
            faults.append(Fault(image, kind, before[None]))
        elif kind == "bad_box":
            size = before[2:] - before[:2]
            centre = (before[:2] + before[2:]) / 2 + rng.uniform(-0.6, 0.6, (TRIES, 2)) * size
            half = size / 2 * rng.uniform(0.7, 1.4, (TRIES, 2))
            moved = np.concatenate([centre - half, centre + half], axis=1)
            moved = np.clip(moved, 0, [width, height, width, height])
            iou = box_iou(moved, before[None])[:, 0]
            rest = np.delete(record.boxes, row, axis=0)
            fits = (iou >= 0.3) & (iou <= 0.45) & (box_iou(moved, rest).max(axis=1, initial=0) < iou)
            if fits.any():
                boxes[row] = moved[np.argmax(fits)]
                faults.append(Fault(image, kind, np.stack([boxes[row], before])))
        else:
            size = sides[rng.integers(len(sides), size=TRIES)]
            low = rng.uniform(0, 1, (TRIES, 2)) * np.maximum([width, height] - size, 0)
            added = np.clip(np.concatenate([low, low + size], axis=1), 0, [width, height, width, height])
            free = box_iou(added, np.concatenate([record.boxes, boxes])).max(axis=1, initial=0) < 0.05
            if free.any():
                box = added[np.argmax(free)]
                boxes, labels = np.concatenate([boxes, box[None]]), np.append(labels, rng.integers(classes))
                faults.append(Fault(image, kind, box[None]))
    ignore = np.append(record.ignore, np.zeros(len(boxes) - len(record.ignore), bool))
    kept = [np.delete(column, removed, axis=0) for column in (boxes, labels, ignore)]
    return replace(record, boxes=kept[0], labels=kept[1], ignore=kept[2]), faults


def finds(suggestion: Suggestion, fault: Fault, audited: Audit) -> bool:
    """Return whether a suggestion is about the label of a fault, or the object under it."""
    if suggestion.image != fault.image:
        return False
    boxes = [suggestion.box]
    if suggestion.truth >= 0:
        boxes.append(audited.dataset.records[suggestion.image].boxes[suggestion.truth])
    return bool((box_iou(np.stack(boxes), fault.boxes) >= SAME).any())


def shares(suggestions: Sequence[Suggestion], faults: Sequence[Fault], audited: Audit) -> tuple[float, float]:
    """Return the shares of faults that the first n and 2n suggestions find, where n is the number of faults."""
    by_image: dict[int, list[tuple[int, Suggestion]]] = {}
    for place, suggestion in enumerate(suggestions):
        by_image.setdefault(suggestion.image, []).append((place, suggestion))
    places = [
        min((place for place, found in by_image.get(fault.image, []) if finds(found, fault, audited)), default=10**9)
        for fault in faults
    ]
    n = max(len(faults), 1)
    return sum(place < n for place in places) / n, sum(place < 2 * n for place in places) / n


def objectlab(audited: Audit) -> dict[str, list[Suggestion]]:
    """Return the ranking of ObjectLab for each kind; its badly located labels serve for those without an object too."""
    from cleanlab.object_detection import rank

    records, classes = audited.dataset.records, range(len(audited.dataset.names))
    labels = [{"bboxes": record.boxes, "labels": record.labels} for record in records]
    order = [np.argsort(prediction.labels, kind="stable") for prediction in audited.predictions]
    predictions = []
    for prediction in audited.predictions:
        rows = np.concatenate((prediction.boxes, prediction.scores[:, None]), axis=1)
        by_class = np.empty(len(classes), object)
        by_class[:] = [rows[prediction.labels == label] for label in classes]
        predictions.append(by_class)
    given = {"labels": labels, "predictions": predictions}
    overlooked = rank.compute_overlooked_box_scores(**given)
    of_kind = {
        "missing_label": [
            Suggestion(i, int(row), "missing_label", prediction.boxes[row], int(prediction.labels[row]), 1 - score, -1)
            for i, prediction in enumerate(audited.predictions)
            for row, score in zip(order[i].tolist(), overlooked[i].tolist(), strict=True)
            if np.isfinite(score)
        ]
    }
    swapped, badly_located = rank.compute_swap_box_scores(**given), rank.compute_badloc_box_scores(**given)
    for kind, scores in (("wrong_class", swapped), ("bad_box", badly_located), ("spurious_label", badly_located)):
        of_kind[kind] = [
            Suggestion(i, -1, kind, record.boxes[row], int(record.labels[row]), 1 - score, row)
            for i, record in enumerate(records)
            for row, score in enumerate(scores[i].tolist())
        ]
    return {kind: sorted(found, key=lambda one: -one.score) for kind, found in of_kind.items()}


def write(dataset: Dataset, folder: Path) -> Path:
    """Write the annotations of all images as COCO, which refers to the image files."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    paths = {record.path: abspath(str(record.path)) for record in dataset.records}
    (folder / "annotations" / "all.json").write_text(as_json(dataset, paths), encoding="utf-8")
    return folder


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--model")
    parser.add_argument("--split", default="train", help="list of the data to use, or all")
    parser.add_argument("--set", nargs="+", default=[], dest="settings", metavar="section.key=value")
    parser.add_argument("--objectlab", action="store_true", help="compare with cleanlab")
    parser.add_argument("--out", type=Path, default=Path("runs/audit-benchmark"))
    options = parser.parse_args(words)
    clean = open_dataset(options.data, options.split)
    faulty, faults = plant(clean, options.share, options.seed)
    data = write(faulty, options.out / "data")
    found = audit(
        data, options.out / "audit", folds=options.folds, model=options.model, overrides=options.settings, say=print
    )
    assert [record.path for record in found.dataset.records] == [record.path for record in clean.records]
    print(f"{len(clean)} images, {len(clean.records.labels)} labels, {len(faults)} faults")
    others = objectlab(found) if options.objectlab else {}
    print("| faults | n | found in n | in 2n |" + " ObjectLab in n | in 2n |" * options.objectlab)
    print("|---|---|---|---|" + "---|---|" * options.objectlab)
    for kind in ("all", *KINDS):
        of_kind = [fault for fault in faults if kind in ("all", fault.kind)]
        ranked = [suggestion for suggestion in found.suggestions if kind in ("all", suggestion.kind)]
        cells = [*shares(ranked, of_kind, found), *(shares(others[kind], of_kind, found) if kind in others else ())]
        print(f"| {kind} | {len(of_kind)} | " + " | ".join(f"{share:.3f}" for share in cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
