"""The worst and the best pictures of a data set, as small WebP files with what is right, wrong and lost."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from rcnn.data.dataset import Dataset
from rcnn.draw import as_rgb, draw_boxes
from rcnn.errors import ImageError
from rcnn.images.stream import read_picture
from rcnn.metrics.overlap import match
from rcnn.metrics.table import Metrics
from rcnn.metrics.types import Prediction, Truth
from rcnn.report.scores import IOU, GalleryPicture, ScoredDetector
from rcnn.weights.file import atomic_write

WORST, BEST = 6, 4
"""Numbers of pictures."""

SIDE = 1100
"""Longest side of a picture, px."""

SMALLEST = 300
"""No picture is made smaller than this, px."""

BYTES = 90_000
"""Of a picture, at most; one that takes more is made smaller."""

INKS = {"right": "#009E73", "wrong": "#D55E00", "lost": "#56B4E9"}
"""Told apart with any kind of colour vision; what is lost is drawn with broken lines besides."""

NAME = 24
"""Letters of a class name on a picture."""


class Judged(NamedTuple):
    """One image at a threshold.

    Attributes:
        image: index into the records.
        shown: (n,) detections of at least the threshold, best first, without those on ignored objects.
        right: (n,) bool.
        lost: (m,) objects that count and are not found.
    """

    image: int
    shown: np.ndarray
    right: np.ndarray
    lost: np.ndarray

    @property
    def mistakes(self) -> int:
        """Number of wrong detections and lost objects."""
        return int((~self.right).sum()) + len(self.lost)


def judge(image: int, truth: Truth, prediction: Prediction, threshold: float) -> Judged:
    """What is right, wrong and lost on an image."""
    sure = np.flatnonzero(prediction.scores >= threshold)
    sure = sure[np.argsort(-prediction.scores[sure], kind="stable")]
    matches, ignored = match(truth, Prediction(*(field[sure] for field in prediction)), IOU)
    found = np.isin(np.arange(len(truth.labels)), matches)
    return Judged(image, sure[~ignored], matches[~ignored] >= 0, np.flatnonzero(~found & ~truth.ignore))


def choose(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """The images with most mistakes, worst first, and of the others those with most right and nothing else."""
    worst = sorted((one for one in judged if one.mistakes), key=lambda one: -one.mistakes)[:WORST]
    taken = {one.image for one in worst}
    rest = [one for one in judged if one.image not in taken and one.right.any()]
    best = sorted(rest, key=lambda one: (one.mistakes, -int(one.right.sum())))[:BEST]
    return {"worst": worst, "best": best}


def save_pictures(
    folder: Path, dataset: Dataset, metrics: Metrics, scored: ScoredDetector
) -> tuple[GalleryPicture, ...]:
    """Write the worst and the best pictures into a folder; one that can't be read again is left out."""
    truths, predictions = metrics.truths, metrics.predictions
    threshold, settings = scored.threshold, scored.settings
    pairs = enumerate(zip(truths, predictions, strict=True))
    chosen = choose([judge(image, truth, prediction, threshold) for image, (truth, prediction) in pairs])
    pictures = []
    for kind, images in chosen.items():
        for number, one in enumerate(images, 1):
            record = dataset.records[one.image]
            try:
                pixels = read_picture(record.path, settings)
            except ImageError:  # it has gone since it was scored
                continue
            drawn = _drawn(pixels, one, truths[one.image], predictions[one.image], dataset.names)
            file = f"{kind}-{number}.webp"
            atomic_write(folder / file, drawn)
            right, wrong = int(one.right.sum()), int((~one.right).sum())
            pictures.append(
                GalleryPicture(file=file, name=record.name, kind=kind, right=right, wrong=wrong, lost=len(one.lost))
            )
    return tuple(pictures)


def as_webp(picture: Image.Image, most: int = BYTES) -> bytes:
    """A WebP of at most `SIDE` px, made smaller until it has at most so many bytes or `SMALLEST` px."""
    side = SIDE
    while True:
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=78, method=4)
        if file.tell() <= most or max(small.size) <= SMALLEST:
            return file.getvalue()
        side = max(SMALLEST, int(max(small.size) * min(0.85, (most / file.tell()) ** 0.5)))


def _drawn(pixels: np.ndarray, one: Judged, truth: Truth, prediction: Prediction, names: Sequence[str]) -> bytes:
    """The image with mistakes on top: their names are seen first, and those of right boxes where there is room."""
    image = as_rgb(pixels)
    scale = min(1.0, SIDE / max(image.size))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    wrong, right = one.shown[~one.right], one.shown[one.right]
    boxes = np.concatenate((truth.boxes[one.lost], prediction.boxes[wrong], prediction.boxes[right])) * scale
    kinds = ["lost"] * len(one.lost) + ["wrong"] * len(wrong) + ["right"] * len(right)
    labels = np.concatenate((truth.labels[one.lost], prediction.labels[wrong], prediction.labels[right]))
    tags = [f"{'' if kind == 'right' else f'{kind}: '}{names[k][:NAME]}" for kind, k in zip(kinds, labels, strict=True)]
    dashed = np.array([kind == "lost" for kind in kinds], bool)
    return as_webp(draw_boxes(image, boxes, [INKS[kind] for kind in kinds], tags, dashed))
