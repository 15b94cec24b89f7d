"""Boxes of COCO's segmentations: polygons, and masks as runs of pixels (RLE)."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

MAX_MASK_SIDE = 1 << 18
"""Maximum number of rows and of columns of a mask; no image that is read has as many."""

MIN_IOU, MAX_DIFFERENCE = 0.5, 2.0
"""Least IoU of a box and its segmentation, and the pixels by which they may differ in any case: boxes are rounded."""

_ALL_POINTS, _CLEAR_SHARE = 32, 0.7
"""Up to so many numbers all points of polygons are compared with a box at first, and every second, third ... of more.

The box fits if they lie inside it and if their own box has at least this share of its area; otherwise all are compared.
"""

_MAX_DIGITS = 12
"""Maximum number of characters of a number in a compressed mask, five bits each."""


class Segment(NamedTuple):
    """The box of a segmentation.

    Attributes:
        kind: `polygon` or `mask`.
        box: x1, y1, x2, y2, continuous; pixel i of a mask covers i to i + 1.
        size: (height, width) of the mask.
    """

    kind: str
    box: tuple[float, float, float, float]
    size: tuple[int, int] | None = None


def segment_of(segmentation: Any) -> Segment:
    """Return the box that encloses polygons, [[x, y, x, y, ...], ...], or a mask, {"counts": ..., "size": ...}.

    Not every coordinate of polygons is checked, since most of a file is made of them. If one is nan, their box is
    undefined; `check_polygons` finds it.

    Raises:
        ValueError: it is neither, or is empty. The message says why.
    """
    if isinstance(segmentation, dict):
        return _mask(segmentation)
    if not isinstance(segmentation, list):
        raise ValueError("it is neither a list of polygons nor a mask")
    left = top = math.inf
    right = bottom = -math.inf
    try:
        for part in segmentation:
            x, y = part[::2], part[1::2]
            x.sort()
            y.sort()
            if len(part) & 1:
                raise ValueError
            left, top = min(left, x[0]), min(top, y[0])
            right, bottom = max(right, x[-1]), max(bottom, y[-1])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise ValueError(_POLYGONS) from None
    return Segment("polygon", (left, top, right, bottom))


_POLYGONS = "each polygon must be a list of finite numbers x, y, x, y, ..."
_FINITE = 1e300  # integers may be larger than every float


def check_polygons(segmentation: Any) -> None:
    """Check that every coordinate of polygons is a finite number.

    Raises:
        ValueError: one is not.
    """
    for part in segmentation if isinstance(segmentation, list) else ():
        known = isinstance(part, list) and {*map(type, part)} <= {int, float}
        if not known or not all(abs(number) < _FINITE for number in part):
            raise ValueError(_POLYGONS)


def _mask(segmentation: dict[str, Any]) -> Segment:
    """Return the box of the pixels of a mask, whose runs of 0 and 1, in turn, go down one column after the other.

    Raises:
        ValueError: it is malformed, or no pixel is set.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and {*map(type, size)} == {int}):
        raise ValueError("the size of the mask must be two integers, height and width")
    height, width = size
    if not (0 < height <= MAX_MASK_SIDE and 0 < width <= MAX_MASK_SIDE):
        raise ValueError(f"the size of the mask, {width}x{height}, is not between 1 and {MAX_MASK_SIDE:,}")
    runs = _runs(counts)
    if (runs < 0).any() or runs.sum(dtype=np.float64) > height * width:
        raise ValueError(f"the runs of the mask do not fit its size of {width}x{height} pixels")
    ends = np.cumsum(runs)[1::2]
    lengths = runs[1::2]
    first, last = (ends - lengths)[lengths > 0], ends[lengths > 0] - 1
    if not len(first):
        raise ValueError("no pixel of the mask is set")
    columns = first // height, last // height
    several = columns[0] < columns[1]  # a run that goes on in the next column has the last row and the first one
    top, bottom = np.where(several, 0, first % height), np.where(several, height - 1, last % height)
    box = columns[0].min(), top.min(), columns[1].max() + 1, bottom.max() + 1
    left, top, right, bottom = map(float, box)
    return Segment("mask", (left, top, right, bottom), (height, width))


def _runs(counts: Any) -> np.ndarray:
    """Return the lengths (n,) int64 of the runs of a mask, which a text holds in COCO's compressed form.

    Raises:
        ValueError: they are malformed.
    """
    if isinstance(counts, str):
        return _decompress(counts)
    if not isinstance(counts, list) or not {*map(type, counts)} <= {int}:
        raise ValueError("the counts of the mask must be a list of integers, or a compressed text")
    try:
        return np.array(counts, np.int64)
    except OverflowError:
        raise ValueError("a count of the mask is too large") from None


def _decompress(text: str) -> np.ndarray:
    """Return the runs (n,) int64 in a compressed text.

    A number is written in characters of five bits, the lowest ones first. Their codes begin at 48; 32 is added if more
    characters follow, and the highest bit of the last one is the sign. From the fourth number on, a number is the
    difference to the one before the last.

    Raises:
        ValueError: it is malformed.
    """
    codes = np.frombuffer(text.encode(errors="replace"), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(codes & 32 == 0)
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the compressed counts of the mask are damaged")
    first = np.concatenate(([0], last[:-1] + 1))
    digits = last - first + 1
    if digits.max() > _MAX_DIGITS:
        raise ValueError("a count of the mask is too large")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(first, digits))
    numbers = np.add.reduceat((codes & 31) << shifts, first) - ((codes[last] >> 4 & 1) << 5 * digits)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def contradiction(box: Sequence[float], segmentation: Any) -> Segment | None:
    """Return a segmentation that a box does not fit, by `MIN_IOU`; None if it does, or if it has no area.

    Args:
        box: x, y, width, height.
        segmentation: as for `segment_of`.

    Raises:
        AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError: one of them is malformed.
    """
    x, y, width, height = box
    right, bottom = x + width, y + height
    if type(segmentation) is list:  # of nearly all boxes, some points of the polygons show that they fit
        points = segmentation[0] if len(segmentation) == 1 else [*chain.from_iterable(segmentation)]
        step = 2 * (1 + len(points) // _ALL_POINTS)
        xs, ys = points[::step], points[1::step]
        xs.sort()  # of floats, this is faster than `min` and `max`
        ys.sort()
        x1, y1, x2, y2 = xs[0], ys[0], xs[-1], ys[-1]
        inside = (
            x - MAX_DIFFERENCE <= x1
            and y - MAX_DIFFERENCE <= y1
            and x2 <= right + MAX_DIFFERENCE
            and y2 <= bottom + MAX_DIFFERENCE
        )
        if inside and (x2 - x1) * (y2 - y1) >= _CLEAR_SHARE * width * height > 0:
            return None
    segment = segment_of(segmentation)
    x1, y1, x2, y2 = segment.box
    differences = abs(x - x1), abs(y - y1), abs(right - x2), abs(bottom - y2)
    overlap = max(min(right, x2) - max(x, x1), 0.0) * max(min(bottom, y2) - max(y, y1), 0.0)
    area = (x2 - x1) * (y2 - y1)
    fits = overlap >= MIN_IOU * (width * height + area - overlap)
    return None if area <= 0 or fits or max(differences) <= MAX_DIFFERENCE else segment
