"""Predict batches of columns, as engines for large data pass them: Ray Data, Daft, Spark and Dask."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from rcnn.detector import Detector
from rcnn.errors import ImageError, SettingsError
from rcnn.images.sources import NamedImage
from rcnn.images.storage import Location, RemotePath, image_location
from rcnn.open_model import load

COLUMNS = ("boxes", "scores", "labels", "names", "error")
"""Names of the columns that a prediction adds."""

_LOADING = Lock()
"""Held while a detector is loaded, so that the threads of a worker share it. A lock can't be pickled."""


class BatchPredictor:
    """Detects objects in batches of columns. Each input row gives one output row, in the same order.

    Engines make one predictor per worker and call it with batches. The pickle of a predictor holds its arguments and no
    weights: an unpickled predictor loads the detector at its first batch, so every worker needs the file of the model.

    Args:
        model: as for `rcnn.load`.
        column: name of the column with the images: bytes of image files, paths, addresses, (H, W, C) uint8 arrays or
            Pillow images.
        score: as for `Detector.predict`.
        batch: as for `Detector.predict`; independent of the number of rows per call.
        device: as for `rcnn.load`.
        **settings: sections of settings that change, such as `predict={"precision": "float32"}`.

    Raises:
        WeightsError: as for `rcnn.load`.
        SettingsError: a setting is wrong, or fixed in an exported file.
    """

    def __init__(
        self,
        model: str | Path,
        column: str = "bytes",
        *,
        score: float | None = None,
        batch: int = 1,
        device: str = "auto",
        **settings: Mapping[str, Any],
    ) -> None:
        self.model, self.column, self.score, self.batch, self.device = model, column, score, batch, device
        self.settings = settings
        self._detector: Detector | None = None
        self.detector.stream([], score=score, batch=batch)  # checks the arguments

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_detector": None}

    @property
    def detector(self) -> Detector:
        """The detector, which is loaded at the first use.

        Raises:
            WeightsError, SettingsError: as for the constructor.
        """
        with _LOADING:
            if self._detector is None:
                detector = load(self.model, self.device)
                self._detector = detector.with_settings(self.settings) if self.settings else detector
            return self._detector

    def __call__(self, columns: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
        """Return the columns and those of the detections.

        An image that can't be read has an `error` and no detections; it does not affect the other rows.

        Args:
            columns: name -> values, as a mapping or a pandas frame. There may be no rows.

        Returns:
            All columns of the input, and per row `boxes`, a list of [x1, y1, x2, y2] in pixels of the image, best
            first; `scores` in [0, 1], `labels`, indices of the classes, and `names`, their names; and `error`, the
            reason why the image can't be read, or None.

        Raises:
            SettingsError: the column with the images is missing, or the input already has a column of the result.
            NonFiniteError: the network's output is not finite.
        """
        names = [str(name) for name in columns.keys()]  # noqa: SIM118 - a frame iterates over its columns as well
        if self.column not in names:
            raise SettingsError(
                f"the batch has no column `{self.column}`; it has {', '.join(names) or 'none'}. Name the column with "
                "the images: BatchPredictor(model, column=NAME)"
            )
        if taken := [name for name in COLUMNS if name in names]:
            raise SettingsError(f"the batch already has a column `{taken[0]}`, which predictions add; rename it")
        values = list(columns[self.column])
        sources, failed, errors = list[NamedImage](), list[ImageError](), dict[int, str]()
        for row, value in enumerate(values):
            try:
                sources.append(named_row(value, row))
            except ImageError as error:
                errors[row] = str(error)
        found = {
            result.origin.frame: result.to_columns()
            for result in self.detector.stream(sources, score=self.score, batch=self.batch, skip=failed.append)
        }
        unread = [source.frame for source in sources if source.frame not in found]
        errors |= {row: str(error) for row, error in zip(unread, failed, strict=True) if row is not None}
        rows = [found.get(row, {}) for row in range(len(values))]
        return {
            **{name: columns[name] for name in names},
            **{name: [row.get(name, []) for row in rows] for name in COLUMNS if name != "error"},
            "error": [errors.get(row) for row in range(len(values))],
        }


def named_row(value: Any, row: int) -> NamedImage:
    """Return the image of a row.

    Raises:
        ImageError: the value is not an image.
    """
    if isinstance(value, str | Location):
        file = image_location(value)
        return NamedImage(file, str(file) if isinstance(file, RemotePath) else str(value), row)
    if isinstance(value, bytes | bytearray | memoryview | np.ndarray | Image.Image | Tensor):
        return NamedImage(value, f"row {row}", row)
    raise ImageError(f"row {row}: {type(value).__name__} is not an image; expected bytes, a path or an array")
