"""Statistics of a data set: images, boxes, classes, sizes."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rcnn.data.dataset import Dataset

SMALL, LARGE = 32.0, 96.0
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Stats:
    """Statistics of a split. Sizes are in pixels of the image files; quantiles are at 0, 5, 25, 50, 75, 95 and 100%.

    Attributes:
        images, empty: number of images, and of images without a box.
        boxes, ignored: number of boxes, and of boxes that are crowd or difficult.
        classes: number of boxes per class name.
        class_images: number of images per class name that show the class.
        small, medium, large: number of boxes with an area under 32^2, up to 96^2 and above, as COCO counts them.
        box_sizes: quantiles of the square root of the area.
        aspect_ratios: quantiles of height / width.
        boxes_per_image: number of images by number of boxes.
        heights, widths: quantiles of the images' sides.
    """

    images: int
    empty: int
    boxes: int
    ignored: int
    classes: dict[str, int]
    class_images: dict[str, int]
    small: int
    medium: int
    large: int
    box_sizes: tuple[float, ...]
    aspect_ratios: tuple[float, ...]
    boxes_per_image: dict[int, int]
    heights: tuple[float, ...]
    widths: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as plain JSON values."""
        return asdict(self)


def statistics(dataset: Dataset) -> Stats:
    """Compute the statistics of one split."""
    records = dataset.records
    boxes, labels, counts, classes = records.boxes, records.labels, records.counts, len(dataset.names)
    shown = np.unique(np.repeat(np.arange(len(records)), counts) * classes + labels) % classes
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area = width * height
    numbers, images = np.unique(counts, return_counts=True)
    small, large = int((area < SMALL**2).sum()), int((area > LARGE**2).sum())
    return Stats(
        images=len(records),
        empty=int((counts == 0).sum()),
        boxes=len(boxes),
        ignored=int(records.ignore.sum()),
        classes=dict(zip(dataset.names, np.bincount(labels, minlength=classes).tolist(), strict=True)),
        class_images=dict(zip(dataset.names, np.bincount(shown, minlength=classes).tolist(), strict=True)),
        small=small,
        medium=len(boxes) - small - large,
        large=large,
        box_sizes=_quantiles(np.sqrt(area)),
        aspect_ratios=_quantiles(height / width),
        boxes_per_image=dict(zip(numbers.tolist(), images.tolist(), strict=True)),
        heights=_quantiles(records.sizes[:, 0]),
        widths=_quantiles(records.sizes[:, 1]),
    )


def _quantiles(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.quantile(values, _QUANTILES).tolist()) if len(values) else ()
