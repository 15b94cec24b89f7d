"""The boxes found in one image, in pixels of the original image, with drawing and export to other formats."""

import csv
import io
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from PIL import Image

from rcnn.config import shorten
from rcnn.data.formats import coco, csv_labels, voc, yolo
from rcnn.draw import colour, draw_boxes, entries, save_picture, shade
from rcnn.errors import ImageError, UnavailableError, check_number, printable
from rcnn.images.sources import UNNAMED, NamedImage
from rcnn.images.storage import RemotePath, check_local
from rcnn.images.stream import DEFAULT_OPTIONS, ReadOptions

if TYPE_CHECKING:
    import pandas
    import pyarrow
    import supervision

DIGITS = 2
"""Decimals of a written coordinate. Detectors are not more precise than hundredths of a pixel."""
MAX_NAMED_BOXES = 60
"""Largest number of boxes of a single class that are drawn with their names."""
MAX_PRINTED_BOXES = 10
"""Largest number of boxes, and of classes, that `print` shows."""
MAX_NOTEBOOK_SIDE = 1200
"""Largest side of the picture in a notebook, px."""
COLUMNS = (*csv_labels.COLUMNS, csv_labels.SCORE)


class Detection(NamedTuple):
    """One box of a result.

    Attributes:
        name: class name.
        score: in [0, 1].
        box: (4,) float32 xyxy in pixels of the original image.
        label: index into the class names.
    """

    name: str
    score: float
    box: np.ndarray
    label: int


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Detections or proposals of one image, best first. For proposals, `names` is `("object",)`.

    `len` returns the number of boxes, iteration yields a `Detection` for each, and `print` lists the best ones. A
    notebook shows the picture with its boxes.

    Attributes:
        boxes: (n, 4) float32, continuous xyxy in pixels of the original image, clipped to it.
        scores: (n,) float32 in [0, 1].
        labels: (n,) int64, index into `names`.
        names: class names.
        path: the image file, or its address without a signature; None if the image came as an array.
        size: (height, width) in pixels.
        features: (n, F) float32, the second stage's feature vectors; None unless requested.
        category_ids: the data set's number for each class; None for 1..K.
        read_options: how `path` was read.
        origin: the image as named by its source, with its decoded pixels if they were kept.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    path: str | None
    size: tuple[int, int]
    features: np.ndarray | None = None
    category_ids: tuple[int, ...] | None = None
    read_options: ReadOptions = DEFAULT_OPTIONS
    origin: NamedImage = UNNAMED

    @property
    def name(self) -> str:
        """The path of the image file, or the image's name in its source; empty for an array."""
        return self.path or self.origin.name

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        for label, score, box in zip(self.labels.tolist(), self.scores.tolist(), self.boxes, strict=True):
            yield Detection(self.names[label], score, box, label)

    def __repr__(self) -> str:
        counts = [f"{count} {shorten(name)}" for name, count in self.counts().items()] or ["nothing"]
        if len(counts) > MAX_PRINTED_BOXES:
            counts[MAX_PRINTED_BOXES:] = [f"{len(counts) - MAX_PRINTED_BOXES} more classes"]
        return printable(f"Result({self.name or 'array'}, {self.size[1]}x{self.size[0]}: {', '.join(counts)})")

    def __str__(self) -> str:
        best = [
            (shorten(one.name), one.score, ", ".join(f"{side:.1f}" for side in one.box.tolist()))
            for one in self.filter(top=MAX_PRINTED_BOXES)
        ]
        width = max((len(name) for name, _, _ in best), default=0)
        rows = [f"  {name:{width}}  {score:.2f}  [{box}]" for name, score, box in best]
        more = [f"  ... and {len(self) - MAX_PRINTED_BOXES:,} more"] if len(self) > MAX_PRINTED_BOXES else []
        return "\n".join([repr(self), *map(printable, rows), *more])

    def _repr_png_(self) -> bytes | None:
        """Return the picture for a notebook, or None for an array or a missing file; a notebook then shows the text."""
        try:
            picture = self.draw()
        except (ImageError, ValueError):
            return None
        picture.thumbnail((MAX_NOTEBOOK_SIDE, MAX_NOTEBOOK_SIDE))
        file = io.BytesIO()
        picture.save(file, format="png")
        return file.getvalue()

    def counts(self) -> dict[str, int]:
        """Return the number of boxes by class name, in the order of `names`, without classes that have none."""
        counts = Counter(self.labels.tolist())
        return {self.names[label]: counts[label] for label in sorted(counts)}

    def filter(
        self, score: float | None = None, classes: Collection[str] | None = None, top: int | None = None
    ) -> Self:
        """Return the `top` best boxes with at least this score and one of these classes.

        Raises:
            SettingsError: `score` is not in [0, 1], or `top` is negative.
            ValueError: the detector does not have one of the classes.
        """
        if score is not None:
            check_number("score", score, 0, 1)
        if top is not None:
            check_number("top", top, 0, kind=Integral)
        keep = np.ones(len(self), bool)
        if score is not None:
            keep &= self.scores >= np.float32(score)
        if classes is not None:
            if unknown := sorted(set(classes) - set(self.names)):
                raise ValueError(f"unknown classes {', '.join(unknown)}; the detector has {', '.join(self.names)}")
            keep &= np.isin(self.labels, [self.names.index(name) for name in classes])
        index = np.flatnonzero(keep)[:top]
        features = None if self.features is None else self.features[index]
        return replace(
            self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index], features=features
        )

    def draw(self, image: np.ndarray | Image.Image | None = None, score: float | None = None) -> Image.Image:
        """Draw boxes, classes and scores on the image. Many boxes of a single class are coloured by score instead.

        Args:
            image: uint8 array (H, W[, C]) or Pillow image of the same size. None: the kept pixels, or those of `path`.
                With more than three channels, the first three are shown; with two, the first is shown as grey.
            score: boxes with a lower score are not drawn.

        Raises:
            ValueError: there is neither an image nor a path.
            ImageError: the file can't be read, or the image has a different size.
        """
        if image is None:
            if isinstance(self.origin.image, np.ndarray):
                image = self.origin.image
            elif self.path is not None:
                file = self.origin.image
                image = self.read_options.read(file if isinstance(file, RemotePath) else self.path)
            else:
                raise ValueError("this result came from an array: give the image to draw on, `result.draw(image)`")
        height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.size[::-1]
        if (height, width) != tuple(self.size):
            name = f"{self.path}: " if self.path else ""
            raise ImageError(
                f"{name}the image is {width}x{height} pixels, but the result is for {self.size[1]}x{self.size[0]}; "
                "give the image that was used for prediction"
            )
        shown = self.filter(score)
        if len(self.names) == 1 and len(shown) > MAX_NAMED_BOXES:  # names would be redundant
            inks, tags = [shade(value) for value in shown.scores.tolist()], [""] * len(shown)
            legend = {f"{value:.2f}": shade(value) for value in (1.0, 0.75, 0.5, 0.25, 0.0)}
        else:
            rows = list(zip(shown.labels.tolist(), shown.scores.tolist(), strict=True))
            inks, tags = [colour(k) for k, _ in rows], [f"{self.names[k]} {value:.2f}" for k, value in rows]
            legend = entries(self.names, shown.labels.tolist())
        return draw_boxes(image, shown.boxes, inks, tags, legend=legend)

    def show(self, image: np.ndarray | Image.Image | None = None, score: float | None = None) -> None:
        """Show the picture, in a notebook below the cell and otherwise in the system's image viewer.

        `image` and `score` are those of `draw`.

        Raises:
            UnavailableError: there is no image viewer, for example on a server.
        """
        picture = self.draw(image, score)
        shell = sys.modules.get("IPython")
        if shell is not None and getattr(shell.get_ipython(), "kernel", None):
            import_module("IPython.display").display(picture)
        elif not import_module("PIL.ImageShow").show(picture):
            raise UnavailableError("no image viewer was found; save the picture instead: result.save(FILE)")

    def save(self, path: str | Path, image: np.ndarray | Image.Image | None = None, score: float | None = None) -> None:
        """Save the picture in the format given by the suffix. An existing file is replaced.

        `image` and `score` are those of `draw`.

        Raises:
            ValueError: the suffix is not that of an image format, or `path` is the image itself.
            OSError: the folder is missing or not writable, or the disk is full.
        """
        check_local(path, "the picture")
        if self.path is not None and Path(path).resolve() == Path(self.path).resolve():
            raise ValueError(f"{path}: is the image itself, which is never overwritten; give another name")
        save_picture(self.draw(image, score), Path(path))

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and strings: path, height, width, counts by class, and detections with boxes as xyxy."""
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
        return {"path": self.name or None, "height": height, "width": width, "counts": counts, "detections": detections}

    def to_columns(self) -> dict[str, list[Any]]:
        """Return `boxes` as xyxy, `scores`, `labels` and `names` as lists with an element per box, not rounded."""
        return {
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "labels": self.labels.tolist(),
            "names": [self.names[label] for label in self.labels.tolist()],
        }

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Return rows of a COCO results file.

        Args:
            image_id: the data set's id of the image. None: the file name.

        Raises:
            ValueError: there is neither an id nor a path.
        """
        if image_id is None and not self.name:
            raise ValueError("this result came from an array: give its id, `result.to_coco(image_id)`")
        image = Path(self.name).name if image_id is None else image_id
        ids = self.category_ids or range(1, len(self.names) + 1)
        rows = coco.label_rows(image, ids, self.boxes, self.labels, DIGITS)
        return [{**row, "score": round(score, 5)} for row, score in zip(rows, self.scores.tolist(), strict=True)]

    def to_yolo(self, scores: bool = False) -> str:
        """Return lines of a YOLO label file: label, centre x, centre y, width, height as fractions of the image size.

        Args:
            scores: add the score as a sixth column, which labelling tools do not read.
        """
        return yolo.labels_text(self.size, self.boxes, self.labels, self.scores if scores else None, digits=6)

    def to_voc(self) -> str:
        """Return a VOC annotation: corners in hundredths of a pixel, counted from 1, with the last pixel inclusive."""
        return voc.labels_text(Path(self.name), self.size, self.names, self.boxes, self.labels, digits=DIGITS)

    def to_csv(self, header: bool = True) -> str:
        """Return rows of CSV labels, which `rcnn data check` and `rcnn train` read, with the score as the last column.

        An image without boxes gets one row with its name and size. A name that a spreadsheet would run as a formula, or
        that begins with an apostrophe, gets an apostrophe before it, which the reader takes off.

        Args:
            header: start with a row of column names.
        """
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        rows.writerows([COLUMNS] if header else [])
        boxes = self.boxes.astype(np.float64).round(DIGITS).tolist()
        about = (csv_labels.guarded(Path(self.name).name), self.size[1], self.size[0])
        for (name, score, _, _), box in zip(self, boxes, strict=True):
            rows.writerow([*about, csv_labels.guarded(name), *box, round(score, 5)])
        if not len(self):
            rows.writerow([*about, *[""] * (len(COLUMNS) - len(about))])
        return text.getvalue()

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a data frame with a row per box and the columns of `to_csv`.

        Raises:
            UnavailableError: pandas is not installed.
        """
        columns = [
            Path(self.name).name,
            self.size[1],
            self.size[0],
            [self.names[k] for k in self.labels.tolist()],
        ]
        values = dict(zip(COLUMNS, [*columns, *self.boxes.T, self.scores], strict=True))
        return _package("pandas").DataFrame(values, index=range(len(self)), columns=list(COLUMNS))

    def to_arrow(self) -> "pyarrow.Table":
        """Return an Arrow table with a row per box and the columns of `to_csv`, not rounded.

        The types of the columns are always the same, so `pyarrow.concat_tables` joins the tables of many images. In
        names, bytes that are not UTF-8 are written as escapes.

        Raises:
            UnavailableError: pyarrow is not installed.
        """
        arrow, rows = _package("pyarrow", "parquet"), len(self)
        about = [as_utf8(Path(self.name).name)], [self.size[1]], [self.size[0]]
        names = [as_utf8(self.names[k]) for k in self.labels.tolist()]
        values = [*(value * rows for value in about), names, *self.boxes.T, self.scores]
        types = [arrow.string(), arrow.int64(), arrow.int64(), arrow.string(), *[arrow.float32()] * 5]
        schema = arrow.schema(list(zip(COLUMNS, types, strict=True)))
        return arrow.table(dict(zip(COLUMNS, values, strict=True)), schema=schema)

    def to_supervision(self) -> "supervision.Detections":
        """Return detections for Roboflow's supervision, with the class names in `data["class_name"]`.

        Raises:
            UnavailableError: supervision is not installed.
        """
        names = np.array([one.name for one in self], dtype=np.str_)
        return _package("supervision").Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.astype(int),
            data={"class_name": names},
        )


def as_utf8(text: str) -> str:
    """Write bytes of a name that are not UTF-8, which Arrow and JSON can't hold, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _package(name: str, extra: str | None = None) -> Any:
    """Import the optional package of an extra, which has the same name unless it is given.

    Raises:
        UnavailableError: the package is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise UnavailableError(
            f"the package {name} can't be imported ({error}); install it with: pip install 'rcnn[{extra or name}]'"
        ) from None
