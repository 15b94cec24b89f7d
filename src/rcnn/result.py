"""The result for one image, in pixels of the original image, with drawing and export to other formats."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from rcnn.config import Settings
from rcnn.data import coco, voc, yolo
from rcnn.draw import colour, draw_boxes, shade
from rcnn.preprocess.stream import read_picture

DIGITS = 2
"""Boxes are written to hundredths of a pixel; detectors are not more precise."""
MANY = 60
"""With more boxes than this of a single class, the picture leaves out their names."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Detections, or proposals (`names` is then `("object",)`), of one image, best first.

    Attributes:
        boxes: (n, 4) float32, continuous xyxy in pixels of the original image, inside it.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int64, index into `names`.
        names: class names.
        path: the image file; None if the image came as an array.
        size: (height, width) in pixels.
        features: (n, F) float32, the second stage's feature vectors; None unless asked for.
        category_ids: the data set's own number of each class; None for 1..K.
        settings: with which `path` was read; None for the defaults.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    path: str | None
    size: tuple[int, int]
    features: np.ndarray | None = None
    category_ids: tuple[int, ...] | None = None
    settings: Settings | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts().items()) or "nothing"
        return f"Result({self.path or 'array'}, {self.size[1]}x{self.size[0]}: {counts})"

    def counts(self) -> dict[str, int]:
        """Name -> number of boxes, for the classes with any, in the order of `names`."""
        counts = Counter(self.labels.tolist())
        return {self.names[label]: counts[label] for label in sorted(counts)}

    def filter(
        self, score: float | None = None, classes: Collection[str] | None = None, top: int | None = None
    ) -> Self:
        """Keep the boxes with at least this score, of these classes, and of those the `top` best.

        Raises:
            ValueError: a class that the detector does not know.
        """
        keep = np.ones(len(self), bool)
        if score is not None:
            keep &= self.scores >= np.float32(score)
        if classes is not None:
            if unknown := sorted(set(classes) - set(self.names)):
                raise ValueError(f"unknown classes {', '.join(unknown)}; this detector knows {', '.join(self.names)}")
            keep &= np.isin(self.labels, [self.names.index(name) for name in classes])
        index = np.flatnonzero(keep)[:top]
        features = None if self.features is None else self.features[index]
        return replace(
            self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index], features=features
        )

    def draw(self, image: np.ndarray | Image.Image | None = None, score: float | None = None) -> Image.Image:
        """Draw boxes, classes and scores on the image; many boxes of a single class are coloured by score instead.

        Args:
            image: uint8 array (H, W[, C]) or Pillow image of the same size. None: `path` is read. Of more than
                three channels the first three are shown, of two the first as grey.
            score: lower-scored boxes are left out.

        Raises:
            ValueError: neither an image nor a path, or an image of another size.
            ImageError: the file can't be read.
        """
        if image is None:
            if self.path is None:
                raise ValueError("this result came from an array: give the image to draw on, `result.draw(image)`")
            image = read_picture(self.path, self.settings or Settings())
        height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
        if (height, width) != tuple(self.size):
            raise ValueError(
                f"the image is {width}x{height} pixels, but the result is of one of {self.size[1]}x{self.size[0]}; "
                "give the image that was predicted on"
            )
        shown = self.filter(score)
        if len(self.names) == 1 and len(shown) > MANY:  # names would add nothing
            inks, tags = [shade(value) for value in shown.scores.tolist()], [""] * len(shown)
        else:
            rows = list(zip(shown.labels.tolist(), shown.scores.tolist(), strict=True))
            inks, tags = [colour(k) for k, _ in rows], [f"{self.names[k]} {value:.2f}" for k, value in rows]
        return draw_boxes(image, shown.boxes, inks, tags)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and texts: path, height, width, number of boxes by class, and detections with boxes as xyxy."""
        boxes = self.boxes.astype(np.float64).round(DIGITS).tolist()
        detections: list[dict[str, Any]] = [
            {"name": self.names[label], "label": label, "score": round(score, 5), "box": box}
            for label, score, box in zip(self.labels.tolist(), self.scores.tolist(), boxes, strict=True)
        ]
        if self.features is not None:
            for detection, row in zip(detections, self.features.tolist(), strict=True):
                detection["features"] = row
        height, width = self.size
        counts = self.counts()
        return {"path": self.path, "height": height, "width": width, "counts": counts, "detections": detections}

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Rows of a COCO results file.

        Args:
            image_id: the data set's id of the image. None: the file name.

        Raises:
            ValueError: neither an id nor a path.
        """
        if image_id is None and self.path is None:
            raise ValueError("this result came from an array: give its id, `result.to_coco(image_id)`")
        image = Path(self.path or "").name if image_id is None else image_id
        ids = self.category_ids or range(1, len(self.names) + 1)
        rows = coco.label_rows(image, ids, self.boxes, self.labels, DIGITS)
        return [{**row, "score": round(score, 5)} for row, score in zip(rows, self.scores.tolist(), strict=True)]

    def to_yolo(self, scores: bool = False) -> str:
        """Lines of a YOLO label file: label, centre x, centre y, width, height as shares of the image.

        Args:
            scores: add the score as a sixth column, which labelling tools do not read.
        """
        return yolo.labels_text(self.size, self.boxes, self.labels, self.scores if scores else None, digits=6)

    def to_voc(self) -> str:
        """The text of a VOC annotation: corners to a hundredth of a pixel, the first pixel is 1, the last inclusive."""
        return voc.labels_text(Path(self.path or ""), self.size, self.names, self.boxes, self.labels, digits=DIGITS)
