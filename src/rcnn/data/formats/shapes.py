"""Convert shapes of annotation tools to points, of which the enclosing box is made, and check their numbers."""

import math
from collections.abc import Sequence
from itertools import chain

MAX_COORDINATE = 1e12
"""Largest coordinate of a shape, so that sums and products of several are finite."""


def finite(values: object) -> list[float] | None:
    """Return a list of numbers as floats; None if it is anything else, or one of them is not finite or very large."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return None
    try:
        numbers = list(map(float, values))
    except OverflowError:
        return None
    return numbers if all(abs(number) <= MAX_COORDINATE for number in numbers) else None


def pairs(values: object) -> list[float] | None:
    """Return a list of points [x, y] as x, y, x, y, ...; None if it is anything else (see `finite`)."""
    if not isinstance(values, list) or not all(isinstance(point, list) and len(point) == 2 for point in values):
        return None
    return finite(list(chain.from_iterable(values)))


def ellipse(cx: float, cy: float, rx: float, ry: float, angle: float = 0) -> list[float]:
    """Return two corners of the box that encloses an ellipse.

    Args:
        cx, cy: its centre.
        rx, ry: half of its axes, not negative.
        angle: by which it is rotated, radians.
    """
    width = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
    height = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
    return [cx - width, cy - height, cx + width, cy + height]


def rotated(box: Sequence[float], degrees: float) -> list[float]:
    """Return the four corners of a box x1, y1, x2, y2 that is rotated around its centre, as x, y, x, y, ..."""
    x1, y1, x2, y2 = box
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = ((x1 - cx, y1 - cy), (x2 - cx, y1 - cy), (x2 - cx, y2 - cy), (x1 - cx, y2 - cy))
    return [number for x, y in corners for number in (cx + x * cos - y * sin, cy + x * sin + y * cos)]


def is_upright(points: Sequence[float]) -> bool:
    """Return whether x, y, ... of four points are the corners of an upright rectangle, in the order around it."""
    x, y = points[::2], points[1::2]
    return (x[0] == x[1] and x[2] == x[3] and y[1] == y[2] and y[3] == y[0]) or (
        y[0] == y[1] and y[2] == y[3] and x[1] == x[2] and x[3] == x[0]
    )
