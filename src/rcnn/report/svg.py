"""Charts as inline SVG: lines on two axes, and bars of parts.

Colours are CSS classes of the style sheet, since the content policy of the page refuses style attributes. Text is
escaped.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH, HEIGHT = 380, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 36
"""Margins of the plane, in units of the picture."""

INKS = 8
"""Number of colours of lines; the style sheet has them as `ink-0` to `ink-7`."""

NOTHING = Markup("")


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: in the legend; empty for none.
        points: (x, y) from left to right.
        ink: class of its colour.
    """

    name: str
    points: Sequence[tuple[float, float]]
    ink: str


class Axes(NamedTuple):
    """The plane of a chart: the titles of its axes, and their lowest and highest values."""

    x_title: str
    y_title: str
    x: tuple[float, float]
    y: tuple[float, float]

    def position(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point lies in the picture."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def chart(title: str, text: str, axes: Axes, lines: Sequence[Line], extra: Markup = NOTHING) -> Markup:
    """Return a chart of lines, with its title and legend outside the picture.

    Args:
        title: of the chart.
        text: a description for screen readers.
        axes: the plane.
        lines: each is drawn on top of those before it.
        extra: elements on top of the lines.
    """
    inside = NOTHING.join([_grid(axes), *(_path(axes, line) for line in lines), extra])
    picture = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"{title}. {text}", inside
    )
    return Markup('<figure class="chart"><figcaption>{}</figcaption>{}{}</figure>').format(
        title, picture, legend((line.name, line.ink) for line in lines if line.name)
    )


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """Return names with samples of their colours, (name, CSS class), as a list."""
    sample = '<li><svg class="sample" viewBox="0 0 12 12" aria-hidden="true"><rect width="12" height="12" rx="3" '
    items = NOTHING.join(
        Markup(sample + 'class="fill {}"/></svg>{}</li>').format(ink, short(name)) for name, ink in entries
    )
    return Markup('<ul class="legend">{}</ul>').format(items) if items else NOTHING


def bar(parts: Sequence[tuple[str, float, str]], total: float) -> Markup:
    """Return a bar of parts, (name, size, CSS class of the colour), whose full width stands for `total`."""
    pieces, left = [], 0.0
    for name, size, ink in parts:
        width = 100 * size / total if total else 0.0
        if width:
            rect = '<rect x="{:.2f}" width="{:.2f}" height="10" class="fill {}"><title>{}: {:,}</title></rect>'
            pieces.append(Markup(rect).format(left, width, ink, name, size))
        left += width
    words = ", ".join(f"{name}: {size:,}" for name, size, _ in parts if size) or "nothing"
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect width="100" height="10" class="ground"/>{}</svg>'
    ).format(words, NOTHING.join(pieces))


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Return about `count` round numbers from `low` to `high`; `whole` allows integers only."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    step = max(1.0, math.ceil(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(name: str, max_length: int = 32) -> str:
    """Return a name, cut to at most `max_length` characters."""
    return name if len(name) <= max_length else f"{name[: max_length - 3]}..."


def _grid(axes: Axes) -> Markup:
    """Return the lines, numbers and titles of both axes."""
    parts = []
    (left, bottom), (right, top) = axes.position(axes.x[0], axes.y[0]), axes.position(axes.x[1], axes.y[1])
    line, number = '<path class="grid" d="M{:.1f} {:.1f}', '<text class="tick {}" x="{:.1f}" y="{:.1f}">{:g}</text>'
    for value in ticks(*axes.y):
        _, y = axes.position(axes.x[0], value)
        parts.append(Markup(line + 'H{:.1f}"/>' + number).format(left, y, right, "end", left - 5, y + 4, value))
    for value in ticks(*axes.x, whole=axes.x[1] > 1):
        x, _ = axes.position(value, axes.y[0])
        parts.append(Markup(line + 'V{:.1f}"/>' + number).format(x, bottom, top, "middle", x, bottom + 14, value))
    title = Markup('<text class="tick middle" x="{:.1f}" y="{}">{}</text>')
    turned = Markup('<text class="tick middle" transform="translate(11 {:.1f}) rotate(-90)">{}</text>')
    titles = (
        title.format((left + right) / 2, HEIGHT - 5, axes.x_title),
        turned.format((top + bottom) / 2, axes.y_title),
    )
    return NOTHING.join([*parts, *titles])


def _path(axes: Axes, line: Line) -> Markup:
    """Return a line, with a dot on each of its points unless there are many."""
    points = [axes.position(x, y) for x, y in line.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dot = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.5" class="fill {}"/>')
    dots = [dot.format(x, y, line.ink) for x, y in points] if len(points) <= 30 else []
    return Markup('<path class="line {}" d="{}"/>{}').format(line.ink, path, NOTHING.join(dots))
