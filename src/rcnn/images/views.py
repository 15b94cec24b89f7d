"""Views: the parts of a picture that the network sees. A view is a window and a scale; the settings call it *tile*.

A picture has one view, or one for each scale of an image pyramid, or windows that overlap, or windows at each scale.
Each view goes through the network like a separate picture. H and W are those of a picture's file, in pixels.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple, overload

import numpy as np

from rcnn.config import MAX_SIDE, MIN_TILE, Settings
from rcnn.errors import SettingsError
from rcnn.images.batch import Preprocessor, Size

EDGE = 2.0
"""Pixels of the network's input. A box that ends this close to an inner edge of its window counts as cut by it."""
MIN_TRAINING_SHARE = 0.5
"""A picture is beyond the training scale if its scale is below this share of the scale of training pictures."""


class View(NamedTuple):
    """A window of a picture, in pixels of its file, and the size at which the network sees it.

    Attributes:
        top: first row.
        left: first column.
        height: rows.
        width: columns.
        resized: (height, width) after resizing.
    """

    top: int
    left: int
    height: int
    width: int
    resized: Size

    @property
    def size(self) -> Size:
        """(height, width) of the window."""
        return self.height, self.width

    def crop(self, array: np.ndarray) -> np.ndarray:
        """Return the pixels of the window, (H, W, C) -> (height, width, C), without a copy."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]

    def to_file(self, boxes: np.ndarray) -> np.ndarray:
        """Convert (n, 4) boxes from pixels of the window to pixels of the file."""
        return boxes + np.array([self.left, self.top] * 2, boxes.dtype)

    def from_file(self, boxes: np.ndarray) -> np.ndarray:
        """Convert (..., 4) boxes from pixels of the file to pixels of the window, and clip them to it."""
        return (boxes - [self.left, self.top] * 2).clip(0, [self.width, self.height] * 2)

    def is_cut(self, boxes: np.ndarray, size: Size) -> np.ndarray:
        """Return (n,) bool: which boxes, in pixels of a file of this size, end at an inner edge of the window."""
        height, width = size
        down, across = (EDGE * side / seen for side, seen in zip(self.size, self.resized, strict=True))
        bottom, right = self.top + self.height, self.left + self.width
        return (
            ((self.left > 0) & (boxes[:, 0] <= self.left + across))
            | ((self.top > 0) & (boxes[:, 1] <= self.top + down))
            | ((right < width) & (boxes[:, 2] >= right - across))
            | ((bottom < height) & (boxes[:, 3] >= bottom - down))
        )


class WindowGrid(NamedTuple):
    """Windows of one size at one scale: their first rows, their first columns, and their size before and after."""

    tops: Sequence[int]
    lefts: Sequence[int]
    height: int
    width: int
    resized: Size


class Views(Sequence[View]):
    """The views of a picture, scale by scale, windows from top to bottom and left to right.

    Each view is made on request: a picture may have millions of windows.
    """

    def __init__(self, grids: Sequence[WindowGrid]) -> None:
        self._grids = grids

    @property
    def sizes(self) -> frozenset[Size]:
        """All (height, width) after resizing."""
        return frozenset(grid.resized for grid in self._grids)

    def __len__(self) -> int:
        return sum(len(grid.tops) * len(grid.lefts) for grid in self._grids)

    @overload
    def __getitem__(self, index: int) -> View: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[View]: ...
    def __getitem__(self, index: int | slice) -> View | Sequence[View]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        for grid in self._grids:
            count = len(grid.tops) * len(grid.lefts)
            if number < count:
                row, column = divmod(number, len(grid.lefts))
                return View(grid.tops[row], grid.lefts[column], grid.height, grid.width, grid.resized)
            number -= count
        raise AssertionError

    def __iter__(self) -> Iterator[View]:
        for grid in self._grids:
            for top, left in product(grid.tops, grid.lefts):
                yield View(top, left, grid.height, grid.width, grid.resized)


class Viewer:
    """Decides which views of a picture the network sees.

    With `predict.tile=N`, pictures that are larger than N pixels are cut into windows of that side, which are resized
    like pictures of N x N pixels. With `auto`, windows are resized by the scale of the training, and are as large as
    `preprocess.long` allows; only pictures beyond that scale are cut: those that would be shrunk to less than half the
    size of the training's. After training on windows (`train.tile`), all pictures that are larger than a window are
    cut, and smaller ones are resized by the same scale.

    Args:
        preprocessor: sizes of pictures that are not cut.
        settings: `predict` and `train.tile` are read.
        scale: factor by which training resized its pictures, from the weights file; unknown if it is not a number.

    Raises:
        SettingsError: `auto`, and the scale is unknown.
    """

    def __init__(self, preprocessor: Preprocessor, settings: Settings, scale: object) -> None:
        self.preprocessor, self.tile, self._scales = preprocessor, settings.predict.tile, settings.predict.scales
        self.scale = float(scale) if isinstance(scale, int | float) and 0 < scale < MAX_SIDE else None
        self.overlap, self._trained = settings.predict.overlap, settings.train.tile
        if self.tile == "auto" and self.scale is None:
            raise SettingsError(
                "predict.tile=auto needs the scale of the training, which these weights do not hold; give the side of "
                "the windows in pixels of the file, such as predict.tile=800"
            )

    @property
    def side(self) -> int | None:
        """Side of the windows, pixels of the file; None if the training scale is unknown."""
        if isinstance(self.tile, int):
            return self.tile
        if self.scale is None:
            return None
        longest = min((self.preprocessor.settings.long, *(self.preprocessor.within or ())))
        return max(MIN_TILE, int(longest / self.scale))

    @property
    def cut_remark(self) -> str:
        """Remark for the user on objects that no window contains entirely."""
        return (
            f"some objects are larger than the overlap of the windows, {round((self.side or 0) * self.overlap)} "
            "pixels, and cut by their edges; raise predict.overlap or predict.tile"
        )

    def remark(self, size: Size) -> str | None:
        """Return a remark for the user on how a picture of this size is processed, or None."""
        height, width = size
        if self.tile == "off" and self.beyond(size):
            scale = self.preprocessor.resized(size)[0] / height
            return (
                f"{width}x{height} pixels are resized by {scale:.2g}, those of the training by {self.scale:.2g}, so "
                "that small objects may be lost; predict.tile=auto looks at such pictures in windows"
            )
        if isinstance(self.tile, int) and not self.windowed(size):
            return f"{width}x{height} pixels fit into a window (predict.tile={self.tile}), so the picture is not cut"
        return None

    def beyond(self, size: Size) -> bool:
        """Return whether the training scale is known and a picture of this size is beyond it."""
        resized, side = self.preprocessor.resized(size), min(size)
        return self.scale is not None and min(resized) < MIN_TRAINING_SHARE * self.scale * side * (1 - 1e-3)

    def windowed(self, size: Size) -> bool:
        """Return whether a picture of this size is cut into windows, of which there may be one."""
        if self.tile == "off" or self.side is None:
            return False
        if self.tile == "auto" and self._trained is not None:
            return True
        return max(size) > self.side and (self.tile != "auto" or self.beyond(size))

    def pyramid(self, size: Size) -> Views:
        """Return all views of a picture at each of `predict.scales`."""
        return self.views(size, self._scales)

    def views(self, size: Size, scales: Sequence[float] = (1.0,)) -> Views:
        """Return all views of a picture, scale by scale, windows from top to bottom and left to right.

        Args:
            size: of the picture, pixels of the file.
            scales: factors of the sides after resizing, as `predict.scales`.
        """
        preprocessors = [self.preprocessor.at_scale(scale) for scale in scales]
        side = self.side
        if side is None or not self.windowed(size):
            return Views([WindowGrid([0], [0], *size, preprocessor.resized(size)) for preprocessor in preprocessors])
        height, width = min(side, size[0]), min(side, size[1])
        grids: list[WindowGrid] = []
        for preprocessor, factor in zip(preprocessors, scales, strict=True):
            # The scale is the same for windows that end with the picture.
            scale = (
                factor * self.scale
                if self.tile == "auto" and self.scale
                else preprocessor.resized((side, side))[0] / side
            )
            resized = max(1, round(scale * height)), max(1, round(scale * width))
            # An object as large as the overlap must lie in one window, away from its edges.
            overlap = round(side * self.overlap) + 2 * math.ceil(EDGE / scale) + 1
            tops, lefts = (window_starts(length, side, overlap) for length in size)
            grids.append(WindowGrid(tops, lefts, height, width, resized))
        return Views(grids)


def clearest(boxes: np.ndarray, views: Sequence[View]) -> np.ndarray:
    """Return (n,) int64: for each box (n, 4), in pixels of the file, the view that shows most of it, most centrally."""
    windows = np.array([[view.left, view.top, view.left + view.width, view.top + view.height] for view in views])
    low, high = np.maximum(boxes[:, None, :2], windows[:, :2]), np.minimum(boxes[:, None, 2:], windows[:, 2:])
    visible = (high - low).clip(min=0).prod(axis=2)  # (n, views)
    away = np.abs((boxes[:, None, :2] + boxes[:, None, 2:] - windows[:, :2] - windows[:, 2:]) / 2).max(axis=2)
    return np.where(visible == visible.max(axis=1, keepdims=True), away, np.inf).argmin(axis=1)


def window_starts(length: int, side: int, overlap: int) -> list[int]:
    """Return the starts of the windows along one side of a picture: evenly spaced, the first and last at its ends.

    Args:
        length: of the picture's side, pixels.
        side: of the windows, pixels.
        overlap: of neighbours at least, pixels; at most seven eighths of `side` count.
    """
    if length <= side:
        return [0]
    gaps = -(-(length - side) // max(side - overlap, -(-side // 8)))
    return [gap * (length - side) // gaps for gap in range(gaps + 1)]
