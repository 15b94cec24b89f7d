"""The worst and the best pictures of a data set, as small WebP files with their right, wrong and lost boxes."""

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

MIN_SIDE = 300
"""Longest side below which no picture is made smaller, px."""

MAX_BYTES = 90_000
"""Size of a file above which a picture is made smaller."""

INKS = {"right": "#009E73", "wrong": "#D55E00", "lost": "#56B4E9"}
"""Colours that people with any colour vision can distinguish. Lost objects also have dashed lines."""

MAX_NAME = 24
"""Number of characters of a class name on a picture."""


class Judged(NamedTuple):
    """The detections and objects of one image at a threshold.

    Attributes:
        image: index into the records.
        shown: (n,) indices of the detections at the threshold, best first, without those on ignored objects.
        right: (n,) bool, whether they are right.
        lost: (m,) indices of the objects that are neither ignored nor found.
    """

    image: int
    shown: np.ndarray
    right: np.ndarray
    lost: np.ndarray

    @property
    def mistakes(self) -> int:
        """The number of wrong detections and lost objects."""
        return int((~self.right).sum()) + len(self.lost)


def judge(image: int, truth: Truth, prediction: Prediction, threshold: float) -> Judged:
    """Return which detections of an image are right and which wrong, and which objects are lost."""
    sure = np.flatnonzero(prediction.scores >= threshold)
    sure = sure[np.argsort(-prediction.scores[sure], kind="stable")]
    matches, ignored = match(truth, Prediction(*(field[sure] for field in prediction)), IOU)
    found = np.isin(np.arange(len(truth.labels)), matches)
    return Judged(image, sure[~ignored], matches[~ignored] >= 0, np.flatnonzero(~found & ~truth.ignore))


def choose(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """Return the images with most mistakes, and of the others those with fewest mistakes and most right detections."""
    worst = sorted((image for image in judged if image.mistakes), key=lambda image: -image.mistakes)[:WORST]
    chosen = {image.image for image in worst}
    rest = [image for image in judged if image.image not in chosen and image.right.any()]
    best = sorted(rest, key=lambda image: (image.mistakes, -int(image.right.sum())))[:BEST]
    return {"worst": worst, "best": best}


def save_pictures(
    folder: Path, dataset: Dataset, metrics: Metrics, scored: ScoredDetector
) -> tuple[GalleryPicture, ...]:
    """Write the worst and the best pictures into a folder, except those that can no longer be read."""
    truths, predictions = metrics.truths, metrics.predictions
    pairs = enumerate(zip(truths, predictions, strict=True))
    chosen = choose([judge(image, truth, prediction, scored.threshold) for image, (truth, prediction) in pairs])
    pictures = []
    for kind, images in chosen.items():
        for number, judged in enumerate(images, 1):
            record = dataset.records[judged.image]
            try:
                pixels = read_picture(record.path, scored.settings)
            except ImageError:  # it was changed or removed after scoring
                continue
            file = f"{kind}-{number}.webp"
            drawn = _drawn(pixels, judged, truths[judged.image], predictions[judged.image], dataset.names)
            atomic_write(folder / file, as_webp(drawn))
            right, wrong = int(judged.right.sum()), int((~judged.right).sum())
            pictures.append(
                GalleryPicture(file=file, name=record.name, kind=kind, right=right, wrong=wrong, lost=len(judged.lost))
            )
    return tuple(pictures)


def as_webp(picture: Image.Image) -> bytes:
    """Return a WebP of at most `SIDE` px, made smaller until it has at most `MAX_BYTES` or `MIN_SIDE` px."""
    side = SIDE
    while True:
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        small.save(file, "WEBP", quality=78, method=4)
        if file.tell() <= MAX_BYTES or max(small.size) <= MIN_SIDE:
            return file.getvalue()
        side = max(MIN_SIDE, int(max(small.size) * min(0.85, (MAX_BYTES / file.tell()) ** 0.5)))


def _drawn(
    pixels: np.ndarray, judged: Judged, truth: Truth, prediction: Prediction, names: Sequence[str]
) -> Image.Image:
    """Return the image with its boxes. Mistakes come first, so they lie on top and are the first to have names."""
    image = as_rgb(pixels)
    scale = min(1.0, SIDE / max(image.size))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    wrong, right, lost = judged.shown[~judged.right], judged.shown[judged.right], judged.lost
    boxes = np.concatenate((truth.boxes[lost], prediction.boxes[wrong], prediction.boxes[right])) * scale
    kinds = ["lost"] * len(lost) + ["wrong"] * len(wrong) + ["right"] * len(right)
    labels = np.concatenate((truth.labels[lost], prediction.labels[wrong], prediction.labels[right]))
    tags = [
        f"{'' if kind == 'right' else f'{kind}: '}{names[k][:MAX_NAME]}" for kind, k in zip(kinds, labels, strict=True)
    ]
    dashed = np.array([kind == "lost" for kind in kinds], bool)
    return draw_boxes(image, boxes, [INKS[kind] for kind in kinds], tags, dashed)
