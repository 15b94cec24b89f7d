"""What the detector says of one image, in the image's own pixels: numbers, pictures, and the formats of other tools."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from rcnn.config import Settings
from rcnn.draw import colour, draw_boxes, shade
from rcnn.preprocess.stream import read_picture

MANY = 60
"""From more boxes than this of a single class, the picture leaves out their names."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Detections, or proposals (`names` is then `("object",)`), of one image, best first.

    Attributes:
        boxes: (n, 4) float32, continuous xyxy in pixels of the original image, inside it.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int64, index into `names`.
        names: class names.
        path: the image file; None where the image came as an array.
        size: (height, width) in pixels.
        features: (n, F) float32, the vectors that the classes were read from; None unless asked for.
        category_ids: the data set's own number of each class; None for 1..K.
        settings: what `path` was read with; None for the defaults.
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
        found = ", ".join(f"{count} {name}" for name, count in self.counts().items()) or "nothing"
        return f"Result({self.path or 'array'}, {self.size[1]}x{self.size[0]}: {found})"

    def counts(self) -> dict[str, int]:
        """Name -> number of boxes, for the classes that were found, in the order of `names`."""
        found = Counter(self.labels.tolist())
        return {self.names[label]: found[label] for label in sorted(found)}

    def filter(
        self, score: float | None = None, classes: Collection[str] | None = None, top: int | None = None
    ) -> Self:
        """The boxes of at least this score, of these classes, and of those the `top` best.

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
        """The image with its boxes, classes and scores; many boxes of one class in colours of their scores instead.

        Args:
            image: uint8 array (H, W[, C]) or Pillow image of the same size; None reads `path`. Of more than three
                channels the first three are shown, of two the first as grey.
            score: lower-scored boxes are left out.

        Raises:
            ValueError: neither an image nor a path, or an image of another size.
            ImageError: the file can't be read any more.
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
        if len(self.names) == 1 and len(shown) > MANY:  # names and classes would tell nothing
            inks, tags = [shade(value) for value in shown.scores.tolist()], [""] * len(shown)
        else:
            rows = list(zip(shown.labels.tolist(), shown.scores.tolist(), strict=True))
            inks, tags = [colour(k) for k, _ in rows], [f"{self.names[k]} {value:.2f}" for k, value in rows]
        return draw_boxes(image, shown.boxes, inks, tags)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and texts: path, height, width, boxes by class, and detections with their boxes as xyxy."""
        detections: list[dict[str, Any]] = [
            {"name": self.names[label], "label": label, "score": round(score, 5), "box": box}
            for label, score, box in zip(
                self.labels.tolist(), self.scores.tolist(), self._rounded(self.boxes), strict=True
            )
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
            image_id: the data set's id of the image; None takes the file name.

        Raises:
            ValueError: neither an id nor a path.
        """
        if image_id is None and self.path is None:
            raise ValueError("this result came from an array: give its id, `result.to_coco(image_id)`")
        image = Path(self.path or "").name if image_id is None else image_id
        ids = self.category_ids or range(1, len(self.names) + 1)
        boxes = self.boxes.astype(np.float64)
        corners = self._rounded(np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1))
        return [
            {"image_id": image, "category_id": ids[label], "bbox": box, "score": round(score, 5)}
            for label, score, box in zip(self.labels.tolist(), self.scores.tolist(), corners, strict=True)
        ]

    def to_yolo(self, scores: bool = False) -> str:
        """Lines of a YOLO label file: label, centre x, centre y, width, height as shares of the image.

        Args:
            scores: adds the score as a sixth column, which labelling tools do not read.
        """
        height, width = self.size
        boxes = self.boxes.astype(np.float64) / (width, height, width, height)
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)  # as zero it would be a box without size
        columns = [(boxes[:, :2] + boxes[:, 2:]) / 2, sides]
        columns += [self.scores[:, None]] if scores else []
        rows = np.concatenate(columns, axis=1).tolist()
        return "".join(
            f"{label} {' '.join(f'{value:.6f}' for value in row)}\n"
            for label, row in zip(self.labels.tolist(), rows, strict=True)
        )

    def to_voc(self) -> str:
        """The text of a VOC annotation: whole pixels, the first of them 1, the last inclusive, two a side at least.

        A side of a single pixel has xmin = xmax, which `rcnn.data.voc`, as others, takes for a box without size.
        """
        height, width = self.size
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = Path(self.path or "").name
        size = ElementTree.SubElement(root, "size")
        for key, value in (("width", width), ("height", height), ("depth", 3)):
            ElementTree.SubElement(size, key).text = str(value)
        low, high = np.rint(self.boxes[:, :2]), np.rint(self.boxes[:, 2:])
        least = np.rint((self.boxes[:, :2] + self.boxes[:, 2:]) / 2 - 1).clip(0, np.maximum((width - 2, height - 2), 0))
        thin = high - low < 2
        low, high = np.where(thin, least, low).astype(int) + 1, np.where(thin, least + 2, high).astype(int)
        for label, corners in zip(self.labels.tolist(), np.concatenate((low, high), axis=1).tolist(), strict=True):
            entry = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(entry, "name").text = self.names[label]
            for key, value in (("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
                ElementTree.SubElement(entry, key).text = value
            box = ElementTree.SubElement(entry, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
                ElementTree.SubElement(box, key).text = str(value)
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode") + "\n"

    @staticmethod
    def _rounded(boxes: np.ndarray) -> list[list[float]]:
        """(n, 4) -> lists of hundredths of a pixel, more than which no detector knows."""
        return boxes.astype(np.float64).round(2).tolist()
