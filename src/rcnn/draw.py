"""Boxes on images: frames in the colours of their classes, and name tags that stay inside and apart."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#F0E442",
    "#882255",
    "#44AA99",
    "#999933",
    "#AA4499",
    "#6699CC",
)
"""Distinguishable with any kind of colour vision: Okabe and Ito's seven, then five of Paul Tol's."""

SHADES = ("#440154", "#3B528B", "#21918C", "#5EC962", "#FDE725")
"""Five colours of viridis, which rises evenly in brightness."""

MAX_HIDDEN_SHARE = 0.2
"""A tag that would cover more than this share of its area in others is left out."""

MAX_LEGEND_ENTRIES = 12
"""Number of classes in a legend: as many as there are colours."""

Rectangle = tuple[float, float, float, float]


def colour(label: int) -> str:
    """Return the colour of a class as `#RRGGBB`; the palette repeats."""
    return PALETTE[label % len(PALETTE)]


def shade(score: float) -> str:
    """A colour for a score in [0, 1]: from dark violet over green to bright yellow."""
    place = min(max(score, 0.0), 1.0) * (len(SHADES) - 1)
    low = min(int(place), len(SHADES) - 2)
    pairs = zip(_channels(SHADES[low]), _channels(SHADES[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02X}" for a, b in pairs)


def as_rgb(image: np.ndarray | Image.Image) -> Image.Image:
    """A new RGB image of a Pillow image or a uint8 array (H, W) or (H, W, C); the first 3 channels are shown."""
    if isinstance(image, Image.Image):
        return image.convert("RGB").copy()
    channels = image.reshape(*image.shape[:2], -1)[..., :3]
    if channels.shape[-1] < 3:
        channels = channels[..., :1].repeat(3, axis=-1)
    return Image.fromarray(np.ascontiguousarray(channels, dtype=np.uint8))


def font_for(texts: Iterable[str], size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font, or for texts beyond ASCII, which that lacks, DejaVu Sans, which comes with matplotlib."""
    wide = None if all(text.isascii() for text in texts) else _dejavu()
    return ImageFont.truetype(wide, size) if wide else cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))


@cache
def _dejavu() -> Path | None:
    """The file of the font, found without importing matplotlib; None in packages of matplotlib that leave it out."""
    spec = find_spec("matplotlib")
    file = Path(spec.origin or "").parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if spec else None
    return file if file and file.is_file() else None


def draw_boxes(
    image: np.ndarray | Image.Image,
    boxes: np.ndarray,
    inks: Sequence[str],
    tags: Sequence[str],
    dashed: np.ndarray | None = None,
    legend: Mapping[str, str] | None = None,
) -> Image.Image:
    """Return a copy of the image with its boxes; the first ones lie on top and choose the place of their tags first.

    Args:
        image: see `as_rgb`.
        boxes: (n, 4) xyxy in pixels of the image.
        inks: (n,) colours as `#RRGGBB`.
        tags: (n,) text at each box, left out where there is no room; empty for none.
        dashed: (n,) bool, boxes to draw with broken lines.
        legend: text -> colour, shown in the emptiest corner if a box is left without a tag; of a single text only if
            there are no tags at all.
    """
    picture = as_rgb(image)
    pen = ImageDraw.Draw(picture)
    unit = (picture.width * picture.height) ** 0.5
    width = max(2, round(unit / 240))
    font = font_for([*tags, *(legend or ())], min(max(11, round(unit / 36)), 48))
    places = _places(pen, boxes, tags, font, width)
    broken = np.zeros(len(boxes), bool) if dashed is None else dashed
    for index in reversed(range(len(boxes))):
        _frame(pen, boxes[index].tolist(), inks[index], width, bool(broken[index]))
    for index in reversed(range(len(boxes))):
        if place := places[index]:
            _tag(pen, place, tags[index], inks[index], font)
    if legend and not all(places) and (len(legend) > 1 or not any(places)):
        _legend(pen, legend, [*map(tuple, boxes.tolist()), *filter(None, places)], font)
    return picture


def entries(names: Sequence[str], labels: Sequence[int]) -> dict[str, str]:
    """A legend of the classes that occur, the commonest first: name -> colour."""
    common = [names[label] for label, _ in Counter(labels).most_common()]
    inks = {names[label]: colour(label) for label in set(labels)}
    more = {f"{len(common) - MAX_LEGEND_ENTRIES} more": "#808080"} if len(common) > MAX_LEGEND_ENTRIES else {}
    return {name: inks[name] for name in common[:MAX_LEGEND_ENTRIES]} | more


def text_colour(background: str) -> str:
    """Return black or white, whichever is more legible on the background (sRGB luma)."""
    red, green, blue = _channels(background)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _channels(ink: str) -> tuple[int, int, int]:
    """`#RRGGBB` -> red, green, blue."""
    return int(ink[1:3], 16), int(ink[3:5], 16), int(ink[5:7], 16)


def _frame(pen: ImageDraw.ImageDraw, box: list[float], ink: str, width: int, dashed: bool) -> None:
    """A frame whose outer edge is the box; a dark line inside keeps it visible on any ground."""
    left, top, right, bottom = (round(value) for value in box)
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    if not dashed:
        if min(right - left, bottom - top) > 4 * width + 4:
            inner = (left + width, top + width, right - width, bottom - width)
            pen.rectangle(inner, outline="#202020", width=1)
        pen.rectangle((left, top, right, bottom), outline=ink, width=width)
        return
    dash = 4 * width
    for start in range(left, right + 1, 2 * dash):
        end = min(start + dash, right)
        pen.rectangle((start, top, end, min(top + width - 1, bottom)), fill=ink)
        pen.rectangle((start, max(bottom - width + 1, top), end, bottom), fill=ink)
    for start in range(top, bottom + 1, 2 * dash):
        end = min(start + dash, bottom)
        pen.rectangle((left, start, min(left + width - 1, right), end), fill=ink)
        pen.rectangle((max(right - width + 1, left), start, right, end), fill=ink)


def _tag(pen: ImageDraw.ImageDraw, place: Rectangle, text: str, ink: str, font: ImageFont.FreeTypeFont) -> None:
    left, top, right, bottom = place
    pen.rectangle((left, top, right - 1, bottom - 1), fill=ink)
    middle = ((left + right) / 2, (top + bottom) / 2)
    pen.text(middle, text, fill=text_colour(ink), font=font, anchor="mm")


def _legend(
    pen: ImageDraw.ImageDraw, legend: Mapping[str, str], taken: Sequence[Rectangle], font: ImageFont.FreeTypeFont
) -> None:
    """Draw the legend in the corner that hides least, in letters small enough to fit."""
    wide, high = pen.im.size
    while font.size > 6 and len(legend) * font.size * 1.3 > high / 2:
        font = font_for(legend, font.size - 1)
    line = font.size * 1.3
    width, height = max(pen.textlength(text, font=font) for text in legend) + 2 * line, len(legend) * line + line / 2
    corners = [(x, y, x + width, y + height) for y in (0, high - height) for x in (wide - width, 0)]
    hidden = [_hidden(corner, taken) for corner in corners]
    left, top, right, bottom = corners[int(np.argmin(hidden))]
    pen.rectangle((left, top, right, bottom), fill="white", outline="#808080")
    for row, (text, ink) in enumerate(legend.items()):
        y = top + line * (row + 0.75)
        pen.rectangle((left + line * 0.4, y - line * 0.3, left + line, y + line * 0.3), fill=ink)
        pen.text((left + line * 1.4, y), text, fill="black", font=font, anchor="lm")


def _places(
    pen: ImageDraw.ImageDraw, boxes: np.ndarray, tags: Sequence[str], font: ImageFont.FreeTypeFont, width: int
) -> list[Rectangle | None]:
    """Where each tag goes: the first of its possible places that is free, else the one that hides least, if little."""
    picture = pen.im.size
    places: list[Rectangle | None] = []
    taken: list[Rectangle] = []
    for box, text in zip(boxes.tolist(), tags, strict=True):
        size = (pen.textlength(text, font=font) + 4 * width, font.size * 1.25)
        options = [(_hidden(place, taken), place) for place in _candidates(box, size, picture)]
        hidden, place = min(options, key=lambda option: option[0])
        if text and hidden <= MAX_HIDDEN_SHARE * size[0] * size[1]:
            places.append(place)
            taken.append(place)
        else:
            places.append(None)
    return places


def _candidates(box: list[float], size: tuple[float, float], picture: tuple[int, int]) -> list[Rectangle]:
    """Places of a tag of (width, height) at a box, best first: above, inside at the top, below, and right-aligned."""
    left, top, right, bottom = box
    wide, high = size
    corners = [(x, y) for x in (left, right - wide) for y in (top - high, top, bottom, bottom - high)]
    inside = [
        (min(max(x, 0), max(picture[0] - wide, 0)), min(max(y, 0), max(picture[1] - high, 0))) for x, y in corners
    ]
    return [(round(x), round(y), round(x + wide), round(y + high)) for x, y in inside]


def _hidden(place: Rectangle, taken: Sequence[Rectangle]) -> float:
    """Area that a tag at this place shares with those already placed."""
    return sum(
        max(min(place[2], other[2]) - max(place[0], other[0]), 0)
        * max(min(place[3], other[3]) - max(place[1], other[1]), 0)
        for other in taken
    )
