"""Draw boxes on images: frames in the colours of their classes, and name tags that stay inside and apart."""

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

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
"""Five colours of viridis, whose brightness rises evenly."""

MAX_HIDDEN_SHARE = 0.2
"""A tag is left out if other tags overlap more than this share of its area."""

MAX_LEGEND_ENTRIES = 12
"""Number of classes in a legend: as many as there are colours."""

Rectangle = tuple[float, float, float, float]


def colour(label: int) -> str:
    """Return the colour of a class as `#RRGGBB`; the palette repeats."""
    return PALETTE[label % len(PALETTE)]


def shade(score: float) -> str:
    """Return a colour for a score in [0, 1]: from dark violet through green to bright yellow."""
    position = min(max(score, 0.0), 1.0) * (len(SHADES) - 1)
    low = min(int(position), len(SHADES) - 2)
    pairs = zip(ImageColor.getrgb(SHADES[low]), ImageColor.getrgb(SHADES[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (position - low)):02X}" for a, b in pairs)


def as_rgb(image: np.ndarray | Image.Image) -> Image.Image:
    """Return a new RGB image of a Pillow image or a uint8 array (H, W) or (H, W, C), of which 3 channels are shown."""
    if isinstance(image, Image.Image):
        return image.convert("RGB").copy()
    channels = image.reshape(*image.shape[:2], -1)[..., :3]
    if channels.shape[-1] < 3:
        channels = channels[..., :1].repeat(3, axis=-1)
    return Image.fromarray(np.ascontiguousarray(channels, dtype=np.uint8))


def font_for(texts: Iterable[str], size: float) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, which is ASCII only, or for other texts DejaVu Sans, which comes with matplotlib."""
    wide = None if all(text.isascii() for text in texts) else _dejavu()
    return ImageFont.truetype(wide, size) if wide else cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))


@cache
def _dejavu() -> Path | None:
    """Return the font file, found without importing matplotlib, or None if the package of matplotlib lacks it."""
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
    """Return a copy of the image with boxes drawn on it; the first ones are on top, and their tags are placed first.

    Args:
        image: see `as_rgb`.
        boxes: (n, 4) xyxy in pixels of the image.
        inks: (n,) colours as `#RRGGBB`.
        tags: (n,) text at each box, left out where there is no room; empty for none.
        dashed: (n,) bool, boxes to draw with dashed lines.
        legend: text -> colour, shown in the emptiest corner if a box is left without a tag, or if it has a single text,
            only if there are no tags at all.
    """
    picture = as_rgb(image)
    pen = ImageDraw.Draw(picture)
    unit = (picture.width * picture.height) ** 0.5
    width = max(2, round(unit / 240))
    font = font_for([*tags, *(legend or ())], min(max(11, round(unit / 36)), 48))
    places = _places(pen, boxes, tags, font, width)
    for index in reversed(range(len(boxes))):
        _frame(pen, boxes[index].tolist(), inks[index], width, dashed is not None and bool(dashed[index]))
    for index in reversed(range(len(boxes))):
        if place := places[index]:
            left, top, right, bottom = place
            pen.rectangle((left, top, right - 1, bottom - 1), fill=inks[index])
            middle = ((left + right) / 2, (top + bottom) / 2)
            pen.text(middle, tags[index], fill=text_colour(inks[index]), font=font, anchor="mm")
    if legend and not all(places) and (len(legend) > 1 or not any(places)):
        _legend(pen, legend, [*map(tuple, boxes.tolist()), *filter(None, places)], font)
    return picture


def entries(names: Sequence[str], labels: Sequence[int]) -> dict[str, str]:
    """Return a legend of the classes that occur, the most frequent first: name -> colour."""
    legend = {names[label]: colour(label) for label, _ in Counter(labels).most_common(MAX_LEGEND_ENTRIES)}
    omitted = len(set(labels)) - MAX_LEGEND_ENTRIES
    return {**legend, f"{omitted} more": "#808080"} if omitted > 0 else legend


def text_colour(background: str) -> str:
    """Return black or white, whichever is more legible on the background (sRGB luma)."""
    red, green, blue = ImageColor.getrgb(background)[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _frame(pen: ImageDraw.ImageDraw, box: list[float], ink: str, width: int, dashed: bool) -> None:
    """Draw a frame whose outer edge is the box; a dark line inside keeps it visible on any background."""
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


def _legend(
    pen: ImageDraw.ImageDraw, legend: Mapping[str, str], taken: Sequence[Rectangle], font: ImageFont.FreeTypeFont
) -> None:
    """Draw the legend in the corner where it hides least, in letters small enough to fit."""
    wide, high = pen.im.size
    while font.size > 6 and len(legend) * font.size * 1.3 > high / 2:
        font = font_for(legend, font.size - 1)
    line = font.size * 1.3
    width, height = max(pen.textlength(text, font=font) for text in legend) + 2 * line, len(legend) * line + line / 2
    corners = [(x, y, x + width, y + height) for y in (0, high - height) for x in (wide - width, 0)]
    left, top, right, bottom = min(corners, key=lambda corner: _hidden(corner, taken))
    pen.rectangle((left, top, right, bottom), fill="white", outline="#808080")
    for row, (text, ink) in enumerate(legend.items()):
        y = top + line * (row + 0.75)
        pen.rectangle((left + line * 0.4, y - line * 0.3, left + line, y + line * 0.3), fill=ink)
        pen.text((left + line * 1.4, y), text, fill="black", font=font, anchor="lm")


def _places(
    pen: ImageDraw.ImageDraw, boxes: np.ndarray, tags: Sequence[str], font: ImageFont.FreeTypeFont, width: int
) -> list[Rectangle | None]:
    """Return the place of each tag: the first candidate that is free, else the most free one if it hides little."""
    places: list[Rectangle | None] = []
    for box, text in zip(boxes.tolist(), tags, strict=True):
        size = (pen.textlength(text, font=font) + 4 * width, font.size * 1.25)
        taken = [place for place in places if place]
        options = [(_hidden(place, taken), place) for place in _candidates(box, size, pen.im.size)]
        hidden, place = min(options, key=lambda option: option[0])
        places.append(place if text and hidden <= MAX_HIDDEN_SHARE * size[0] * size[1] else None)
    return places


def _candidates(box: list[float], size: tuple[float, float], picture: tuple[int, int]) -> list[Rectangle]:
    """Return places of a tag of (width, height) at a box, best first: above, inside at the top, below, on the right."""
    left, top, right, bottom = box
    wide, high = size
    columns = [min(max(x, 0), max(picture[0] - wide, 0)) for x in (left, right - wide)]
    rows = [min(max(y, 0), max(picture[1] - high, 0)) for y in (top - high, top, bottom, bottom - high)]
    return [(round(x), round(y), round(x + wide), round(y + high)) for x in columns for y in rows]


def _hidden(place: Rectangle, taken: Sequence[Rectangle]) -> float:
    """Return the area that a tag at this place shares with the rectangles that are taken."""
    return sum(
        max(min(place[2], other[2]) - max(place[0], other[0]), 0)
        * max(min(place[3], other[3]) - max(place[1], other[1]), 0)
        for other in taken
    )


def save_picture(picture: Image.Image, path: Path, **options: object) -> None:
    """Save a picture in the format given by the suffix.

    Pillow writes to a file without noticing that a full disk took only the beginning, so the picture is encoded first.

    Args:
        picture: the picture.
        path: the file, which is replaced.
        options: of the format, such as `quality`.

    Raises:
        ValueError: the suffix is not that of an image format.
        OSError: the folder is missing or not writable, or the disk is full.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"unknown file extension: {path.suffix}")
    encoded = io.BytesIO()
    picture.save(encoded, kind, **options)
    path.write_bytes(encoded.getbuffer())
