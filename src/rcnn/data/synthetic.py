"""Images of shapes on textured backgrounds, generated from a seed, for the demo and for checking an entire pipeline.

Colours are drawn in the same way for all classes, so that only outlines differ. Shapes may hide parts of each other;
the ground truth is still the box of the entire shape. At least a fifth of the shapes are covered by 10% to 50%, and at
least a fifth are smaller than 32 px.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from rcnn.config import Data
from rcnn.data.convert import convert
from rcnn.data.formats.find import open_lists

Place = tuple[int, int]

CLASSES = ("disc", "square", "triangle")
SUPERSAMPLING = 4
CONTRAST = 60.0
"""Minimum difference of luma (0..255) between a shape and its background."""
_LUMA = np.array([0.299, 0.587, 0.114])
_SMALL_SHARE, _COVERING_SHARE = 0.3, 0.5
_TRIES = 60
_TURN = math.radians(20)


def _circle(radius: float) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


_CROSS = [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
_OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "disc": (_circle(1),),
    "square": (np.array([(-1.0, -1), (1, -1), (1, 1), (-1, 1)]),),
    "triangle": (np.array([(0.0, -1), (1, 0.8), (-1, 0.8)]),),
    "ring": (_circle(1), _circle(0.5)),
    "cross": (np.array(_CROSS) / 3,),
}
"""Outline of each class, with y pointing down; a second outline is a hole."""


class Scene(NamedTuple):
    """One image with its ground truth.

    Attributes:
        image: (H, W, 3) uint8.
        boxes: (n, 4) float64 integers, tight around each shape, including its covered parts.
        labels: (n,) int64, index into the classes.
        covered: (n,) share of each shape's pixels that are hidden by others, 0..0.5.
        colours: (n, 3) mean colour of each shape, 0..255.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    covered: np.ndarray
    colours: np.ndarray


def scenes(
    images: int, *, size: tuple[int, int] = (256, 256), seed: int = 0, classes: Sequence[str] = CLASSES
) -> Iterator[Scene]:
    """Yield images of 1 to 5 shapes each; every tenth is empty.

    Args:
        images: number of images.
        size: (height, width) in pixels; the largest shapes take up 0.43 of the shorter side.
        seed: image i depends on the seed and i alone.
        classes: some of disc, square, triangle, ring, cross.
    """
    for index in range(images):
        generator = np.random.default_rng((seed, index))
        count = 0 if index % 10 == 9 else int(generator.integers(1, 6))
        yield _scene(size, classes, generator, count)


def synthesise(
    folder: Path,
    images: int,
    *,
    split: str = "train",
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
) -> None:
    """Write `scenes` as one split of a COCO data set: `images/SPLIT/*.jpg` and `annotations/instances_SPLIT.json`.

    Further splits, with other seeds, can be added to the same folder. A seed always gives the same bytes.
    """
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    rows, annotations = [], []
    for index, scene in enumerate(scenes(images, size=size, seed=seed, classes=classes)):
        name = f"{split}_{index:05}.jpg"
        Image.fromarray(scene.image).save(folder / "images" / split / name, quality=92, subsampling=0)
        rows.append({"id": index + 1, "file_name": name, "height": size[0], "width": size[1]})
        for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "category_id": label + 1}
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, "iscrowd": 0, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    tree = {"images": rows, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree), encoding="utf-8")


def synthesise_set(folder: Path, splits: Mapping[str, tuple[int, int]], form: str = "coco") -> None:
    """Write several splits, name -> (images, seed), as a new data set in the format `voc`, `coco` or `yolo`.

    Raises:
        SettingsError: the folder is not empty, or there is no such format.
    """
    with TemporaryDirectory() as temporary:
        for split, (images, seed) in splits.items():
            synthesise(Path(temporary), images, split=split, seed=seed)
        convert(open_lists(temporary, Data(), decode=False), form, folder)


def _scene(size: tuple[int, int], classes: Sequence[str], generator: np.random.Generator, count: int) -> Scene:
    """Draw a background with up to `count` shapes; a shape that finds no free place is left out."""
    canvas = _ground(size, generator)
    owner = np.full(size, -1)  # index of the shape that is visible at a pixel
    boxes, labels, areas, colours = [], [], [], []
    for _ in range(count):
        label = int(generator.integers(len(classes)))
        alpha = _shape(classes[label], _side(min(size), generator), generator)
        solid = alpha >= 0.5
        known = np.array(areas, dtype=np.int64)
        place = _place_over(solid, owner, known, generator) if generator.random() < _COVERING_SHARE else None
        free = (place for place, under in _places(solid, owner, generator) if (under < 0).all())
        place = place or next(free, None)
        if place is None:
            continue
        height, width = alpha.shape
        window = np.s_[place[0] : place[0] + height, place[1] : place[1] + width]
        texture = _paint(canvas[window], generator)
        canvas[window] += alpha[..., None] * (texture - canvas[window])
        owner[window][solid] = len(boxes)
        boxes.append((place[1], place[0], place[1] + width, place[0] + height))
        labels.append(label)
        areas.append(solid.sum())
        colours.append(texture[solid].mean(0))
    seen = np.bincount(owner[owner >= 0], minlength=len(boxes))
    return Scene(
        canvas.round().clip(0, 255).astype(np.uint8),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        1 - seen / np.array(areas, dtype=np.float64),
        np.array(colours).reshape(-1, 3),
    )


def _side(shorter: int, generator: np.random.Generator) -> float:
    """Draw the longer side of a shape in pixels: 18..31 if small, else up to 0.43 of the image's shorter side."""
    if generator.random() < _SMALL_SHARE:
        return generator.uniform(18, 31)
    return math.exp(generator.uniform(math.log(32), math.log(max(33, 0.43 * shorter))))


def _ground(size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Return (H, W, 3) float64: noise at several scales around a random colour."""
    ground = np.broadcast_to(generator.uniform(70, 185, 3), (*size, 3)).copy()
    for cell, strength in ((96, 24), (32, 14), (8, 8), (2, 6)):
        grid = generator.normal(0, strength, (size[0] // cell + 2, size[1] // cell + 2, 3)).astype(np.float32)
        channels = [
            Image.fromarray(grid[..., c]).resize((size[1], size[0]), Image.Resampling.BICUBIC) for c in range(3)
        ]
        ground += np.stack([np.asarray(channel) for channel in channels], axis=-1)
    return ground


def _shape(name: str, side: float, generator: np.random.Generator) -> np.ndarray:
    """Return (h, w) coverage 0..1 of a rotated and stretched outline, cropped to pixels at least half covered."""
    angle, stretch = generator.uniform(-_TURN, _TURN), math.exp(generator.uniform(-0.15, 0.15))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    outlines = [points * (stretch, 1 / stretch) @ turn for points in _OUTLINES[name]]
    low, extent = outlines[0].min(0), np.ptp(outlines[0], axis=0)
    scale, cells = side / extent.max(), math.ceil(side) + 2
    mask = Image.new("L", (cells * SUPERSAMPLING, cells * SUPERSAMPLING))
    pen = ImageDraw.Draw(mask)
    for outline, fill in zip(outlines, (255, 0), strict=False):
        points = ((outline - low) * scale + 1) * SUPERSAMPLING
        pen.polygon([(x, y) for x, y in points.tolist()], fill=fill)
    alpha = np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float64) / 255
    rows, columns = (np.flatnonzero((alpha >= 0.5).any(axis)) for axis in (1, 0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _places(solid: np.ndarray, owner: np.ndarray, generator: np.random.Generator) -> Iterator[tuple[Place, np.ndarray]]:
    """Yield random places of a shape (top, left), and the shapes (-1: none) that are visible where it would lie."""
    height, width = solid.shape
    for _ in range(_TRIES):
        top = int(generator.integers(owner.shape[0] - height + 1))
        left = int(generator.integers(owner.shape[1] - width + 1))
        yield (top, left), owner[top : top + height, left : left + width][solid]


def _place_over(
    solid: np.ndarray, owner: np.ndarray, areas: np.ndarray, generator: np.random.Generator
) -> Place | None:
    """Return a place where the shape hides 12% to 45% of one uncovered shape and no part of any other, or None."""
    uncovered = np.bincount(owner[owner >= 0], minlength=len(areas)) == areas
    for place, under in _places(solid, owner, generator):
        hidden = np.bincount(under[under >= 0], minlength=len(areas)) / areas
        touched = np.flatnonzero(hidden)
        if len(touched) == 1 and uncovered[touched[0]] and 0.12 <= hidden[touched[0]] <= 0.45:
            return place
    return None


def _paint(under: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return (h, w, 3): a random colour that contrasts with the pixels `under` it, with grain and a light gradient."""
    mean, height, width = float((under @ _LUMA).mean()), *under.shape[:2]
    colours = generator.uniform(10, 245, (64, 3))
    colour = colours[np.argmax(np.abs(colours @ _LUMA - mean) >= CONTRAST)]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    light = generator.uniform(-10, 10, 2)
    shade = light[0] * y + light[1] * x + generator.normal(0, 5, (height, width))
    return colour + shade[..., None]
