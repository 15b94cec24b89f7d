"""Charts as inline SVG: lines on two axes, and bars of parts. Colours are classes, which the style sheet gives values.

Nothing here has a style attribute, which the page's content policy would refuse. Text is escaped.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

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
        points: (x, y) from left to right; y that is None is a gap.
        ink: class of its colour.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    ink: str


class Axes(NamedTuple):
    """The plane of a chart: titles, and the least and the largest value of both directions."""

    x_title: str
    y_title: str
    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies in the picture."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def chart(title: str, text: str, axes: Axes, lines: Sequence[Line], extra: Markup = NOTHING) -> Markup:
    """A chart of lines, with its title and legend outside of the picture.

    Args:
        title: of the chart.
        text: what it shows in words, for those who do not see it.
        axes: its plane.
        lines: the later ones lie on top.
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
    """Names with a sample of their colour."""
    sample = '<li><svg class="sample" viewBox="0 0 12 12" aria-hidden="true"><rect width="12" height="12" rx="3" '
    items = NOTHING.join(
        Markup(sample + 'class="fill {}"/></svg>{}</li>').format(ink, short(name)) for name, ink in entries
    )
    return Markup('<ul class="legend">{}</ul>').format(items) if items else NOTHING


def bar(parts: Sequence[tuple[str, float, str]], whole: float) -> Markup:
    """A bar divided into parts, (name, size, class of the colour), of a whole of this size."""
    pieces, left = [], 0.0
    for name, size, ink in parts:
        width = 100 * size / whole if whole else 0.0
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
    """Round numbers from `low` to `high`, about so many; whole ones only, if asked for."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    step = max(1.0, math.ceil(step)) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(name: str, most: int = 32) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _grid(axes: Axes) -> Markup:
    """Lines and numbers of both axes, and their titles."""
    parts = []
    (left, bottom), (right, top) = axes.place(axes.x[0], axes.y[0]), axes.place(axes.x[1], axes.y[1])
    for value in ticks(*axes.y):
        _, y = axes.place(axes.x[0], value)
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>').format(left, y, right))
        parts.append(Markup('<text class="tick end" x="{:.1f}" y="{:.1f}">{:g}</text>').format(left - 5, y + 4, value))
    for value in ticks(*axes.x, whole=axes.x[1] > 1):
        x, _ = axes.place(value, axes.y[0])
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}V{:.1f}"/>').format(x, bottom, top))
        parts.append(
            Markup('<text class="tick middle" x="{:.1f}" y="{:.1f}">{:g}</text>').format(x, bottom + 14, value)
        )
    middle = (left + right) / 2
    parts.append(
        Markup('<text class="tick middle" x="{:.1f}" y="{}">{}</text>').format(middle, HEIGHT - 5, axes.x_title)
    )
    turned = Markup('<text class="tick middle" transform="translate(11 {:.1f}) rotate(-90)">{}</text>')
    return NOTHING.join([*parts, turned.format((top + bottom) / 2, axes.y_title)])


def _path(axes: Axes, line: Line) -> Markup:
    """The line, and a dot on each of its points if they are few."""
    places = [None if y is None else axes.place(x, y) for x, y in line.points]
    steps, pen = [], "M"
    for place in places:
        if place is not None:
            steps.append(f"{pen}{place[0]:.1f} {place[1]:.1f}")
        pen = "M" if place is None else "L"
    drawn = [place for place in places if place is not None]
    ink = escape(line.ink)
    dots = [
        Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.5" class="fill {}"/>').format(*place, ink)
        for place in drawn
        if len(drawn) <= 30
    ]
    return Markup('<path class="line {}" d="{}"/>{}').format(ink, "".join(steps), NOTHING.join(dots))
