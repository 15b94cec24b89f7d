"""Many images with their boxes in one picture: training batches, and ground truth next to predictions."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from rcnn.config import Settings
from rcnn.data.dataset import Record
from rcnn.draw import as_rgb, colour, draw_boxes, entries, font_for, save_picture
from rcnn.images.stream import read_picture
from rcnn.metrics.types import Prediction

CAPTION = 20
"""Height of the line of text above each image, px."""

GAP = 8
"""Space between images, px."""


class Tile(NamedTuple):
    """One image of a contact sheet.

    Attributes:
        image: (H, W[, C]) uint8.
        boxes: (n, 4) xyxy in pixels of the image.
        labels: (n,) int, index into the class names.
        title: text above the image.
        scores: (n,) in [0, 1]; None for ground truth.
        ignore: (n,) bool, boxes drawn with dashed lines; None for no such boxes.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    title: str = ""
    scores: np.ndarray | None = None
    ignore: np.ndarray | None = None


def contact_sheet(tiles: Sequence[Tile], names: Sequence[str], path: Path, columns: int = 4, side: int = 360) -> None:
    """Write a grid of images with their boxes, row by row; the file's suffix chooses the format.

    Args:
        tiles: the images, in order.
        names: class names.
        path: file of the picture, written atomically.
        columns: largest number of images per row.
        side: longest side of each scaled image in the picture, px.
    """
    pictures = [_picture(tile, names, side) for tile in tiles]
    columns = max(1, min(columns, len(pictures)))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) + CAPTION + GAP for row in rows]
    canvas = Image.new("RGB", (columns * (side + GAP) + GAP, sum(heights) + GAP), "white")
    pen = ImageDraw.Draw(canvas)
    top = GAP
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, picture in enumerate(row):
            left = GAP + column * (side + GAP)
            _caption(pen, (left, top), tiles[number * columns + column].title, side)
            canvas.paste(picture, (left + (side - picture.width) // 2, top + CAPTION))
        top += height
    partial = path.with_name(f".part-{path.name}")
    save_picture(canvas, partial, quality=88)
    os.replace(partial, path)


def compare(
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    score: float,
    settings: Settings,
    names: Sequence[str],
    path: Path,
) -> None:
    """Write a sheet with two pairs per row: ground truth on the left, detections of at least `score` on the right."""
    tiles = []
    for record, prediction in zip(records, predictions, strict=True):
        image = read_picture(record.path, settings)
        shown = prediction.scores >= score
        boxes, scores, labels = (column[shown] for column in prediction)
        tiles.append(Tile(image, record.boxes, record.labels, f"truth: {record.name}", ignore=record.ignore))
        tiles.append(Tile(image, boxes, labels, "prediction", scores))
    contact_sheet(tiles, names, path)


def _picture(tile: Tile, names: Sequence[str], side: int) -> Image.Image:
    """Return the scaled image, on which boxes are drawn afterwards, so that names are legible at any scale."""
    image = as_rgb(tile.image)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    boxes = tile.boxes * np.tile(np.divide(size, image.size), 2)
    inks = [colour(int(label)) for label in tile.labels]
    tags = [names[int(label)] for label in tile.labels]
    if tile.scores is not None:
        tags = [f"{tag} {score:.2f}" for tag, score in zip(tags, tile.scores.tolist(), strict=True)]
    legend = entries(names, tile.labels.tolist())
    return draw_boxes(image.resize(size, Image.Resampling.BILINEAR), boxes, inks, tags, tile.ignore, legend)


def _caption(pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int) -> None:
    """Write a line of text, shortened at its start to the width, since the end of a path matters most."""
    font = font_for([text], 13)
    while pen.textlength(text, font=font) > width:
        text = "..." + text.removeprefix("...")[1:]
    pen.text((corner[0], corner[1] + CAPTION / 2), text, fill="#222222", font=font, anchor="lm")
