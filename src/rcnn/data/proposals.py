"""Proposals from elsewhere: boxes of a data set's images from a file, checked, in pixels of the images.

.json holds one of
    {"000005.jpg": [[x1, y1, x2, y2], ...], ...}, a fifth number is a score;
    what `rcnn propose` writes: [{"path": ..., "detections": [{"box": [x1, y1, x2, y2], "score": ...}, ...]}, ...];
    COCO's results: [{"image_id": ..., "bbox": [x, y, w, h], "score": ...}, ...].
.npz holds an array (n, 4) or (n, 5) of such rows an image, under its name.
.mat holds Selective Search's cells `images` and `boxes` of rows (y1, x1, y2, x2), whose first pixel is 1 and whose last
belongs to the box.
"""

import json
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rcnn.data.dataset import DataError, Record
from rcnn.model.structures import Batch, Proposals

OVERHANG = 1.0
"""Pixels that a box may reach over the image's edge: there it is clipped, since files hold rounded numbers."""


class Given(NamedTuple):
    """Proposals of one image, best first: boxes (n, 4) in pixels of its file, scores (n,); float64."""

    boxes: np.ndarray
    scores: np.ndarray


class _Part(NamedTuple):
    """The rows (n, 4) or (n, 5) of one image, xyxy and perhaps a score; `numbers` are those of the rows in the file."""

    image: str
    rows: np.ndarray
    numbers: Sequence[int]


def read_proposals(path: str | Path, records: Sequence[Record]) -> list[Given]:
    """The boxes of every record, in the order of the records; where the file has no scores its order is the ranking.

    An image is called by its name, its file's name or stem, or its id, where these are one image's alone.

    Raises:
        DataError: the file can't be read; a box is outside its image, empty or not finite; an image is none of the
            records, comes twice, or is missing. The message names the file and the row.
    """
    path = Path(path)
    if path.suffix.lower() not in _READERS:
        raise DataError(f"{path}: proposals come as {', '.join(_READERS)}")
    names = _names(records)
    found: dict[int, Given] = {}
    for part in _READERS[path.suffix.lower()](path):
        index = names.get(part.image, names.get(Path(part.image).name))
        where = f"{path}: image `{part.image}`"
        if index is None:
            near = get_close_matches(part.image, names, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise DataError(f"{where}, row {next(iter(part.numbers), 0)}: the data has no such image{hint}")
        if index in found:
            raise DataError(f"{where}: `{records[index].name}` came before, under this or another name")
        found[index] = _checked(part, records[index].size, where)
    missing = [record.name for index, record in enumerate(records) if index not in found]
    if missing:
        raise DataError(f"{path}: {len(missing)} of {len(records)} images have no proposals, such as `{missing[0]}`")
    return [found[index] for index in range(len(records))]


def place(given: Sequence[Given], batch: Batch, count: int) -> Proposals:
    """The `count` best proposals of each image of a batch, in pixels of the resized images; without augmentation.

    Args:
        given: of each image; fillers have none.
        batch: the images.
        count: P, what is missing is padded.
    """
    boxes, scores = torch.zeros(len(given), count, 4), torch.zeros(len(given), count)
    for row, (found, scale) in enumerate(zip(given, batch.scales.cpu(), strict=True)):
        best = torch.from_numpy(found.boxes[:count])
        boxes[row, : len(best)] = (best * scale.flip(0).repeat(2)).float()
        scores[row, : len(best)] = torch.from_numpy(found.scores[:count]).float()
    boxes, scores = boxes.to(batch.images.device), scores.to(batch.images.device)
    none = torch.zeros_like(scores, dtype=torch.int64)
    return Proposals(boxes, scores, (boxes[..., 2:] > boxes[..., :2]).all(dim=-1), none, none)


def _names(records: Sequence[Record]) -> dict[str, int]:
    """What an image may be called -> its index; short names that two images share are left out."""
    short: defaultdict[str, set[int]] = defaultdict(set)
    for index, record in enumerate(records):
        path = Path(record.name)
        for name in (path.name, path.stem, str(path.with_suffix("")), str(record.id)):
            short[name].add(index)
    names = {name: min(owners) for name, owners in short.items() if len(owners) == 1}
    for index, record in enumerate(records):
        names |= dict.fromkeys((record.name, str(record.path), str(record.path.resolve())), index)
    return names


def _checked(part: _Part, size: tuple[int, int], where: str) -> Given:
    """The part's boxes clipped and in the order of their scores."""
    rows = part.rows
    if rows.size == 0:
        rows = np.zeros((0, 4))
    if rows.ndim != 2 or rows.shape[1] not in (4, 5):
        raise DataError(f"{where}: expected rows of 4 numbers, or 5 with a score; found the shape {rows.shape}")
    boxes, (height, width) = rows[:, :4], size
    limit = np.array([width, height, width, height], dtype=np.float64)
    finite = np.isfinite(rows).all(axis=1)
    with np.errstate(invalid="ignore"):
        inside = (boxes >= -OVERHANG).all(axis=1) & (boxes <= limit + OVERHANG).all(axis=1)
        clipped = np.clip(boxes, 0, limit)
        solid = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    for good, fault in (
        (finite, "is not finite"),
        (inside, f"is outside the image of {width} x {height} pixels"),
        (solid, "has no area: x1 < x2 and y1 < y2 are needed"),
    ):
        if not good.all():
            row = int(np.argmin(good))
            numbers = ", ".join(f"{number:g}" for number in rows[row])
            raise DataError(f"{where}, row {part.numbers[row]}: the box ({numbers}) {fault}")
    scores = rows[:, 4] if rows.shape[1] == 5 else np.linspace(1, 0, len(rows), endpoint=False)
    order = np.argsort(-scores, kind="stable")
    return Given(clipped[order], scores[order])


def _read_json(path: Path) -> Iterator[_Part]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: can't be read as json: {error}") from None
    if isinstance(content, Mapping):
        for image, rows in content.items():
            yield _part(path, image, rows)
    elif isinstance(content, list) and all(isinstance(entry, Mapping) for entry in content):
        yield from _entries(path, content)
    else:
        raise DataError(f"{path}: expected images with their boxes, or a list of objects; found {str(content)[:40]}")


def _entries(path: Path, entries: list[Mapping[str, Any]]) -> Iterator[_Part]:
    """Images of a list: with their detections, or one box an entry."""
    loose: dict[str, tuple[list[Any], list[int]]] = {}
    for number, entry in enumerate(entries, 1):
        try:
            if "detections" in entry:
                yield _part(path, str(entry["path"]), [[*d["box"], d["score"]] for d in entry["detections"]])
            else:
                rows, numbers = loose.setdefault(str(entry["image_id"]), ([], []))
                x, y, w, h = (float(value) for value in entry["bbox"])
                rows.append([x, y, x + w, y + h, entry.get("score", 0.0)])
                numbers.append(number)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: row {number}: expected `image_id` and a `bbox` of 4 numbers, or `path` and `detections` with "
                f"`box` and `score`; {type(error).__name__}: {error}"
            ) from None
    for image, (rows, numbers) in loose.items():
        yield _part(path, image, rows)._replace(numbers=numbers)


def _read_npz(path: Path) -> Iterator[_Part]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                yield _part(path, name, archive[name])
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: can't be read as .npz of plain arrays: {error}") from None


def _read_mat(path: Path) -> Iterator[_Part]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"{path}: reading .mat needs scipy: pip install 'rcnn[proposals]'") from None
    try:
        content = loadmat(path, variable_names=("images", "boxes"))
    except NotImplementedError:
        raise DataError(f"{path}: is of MATLAB's version 7.3; save it with `-v7`") from None
    except Exception as error:  # scipy has no common class for damaged files
        raise DataError(f"{path}: can't be read as .mat: {error}") from None
    images, boxes = (content.get(name, np.zeros(0)).ravel() for name in ("images", "boxes"))
    if images.dtype != object or boxes.dtype != object or len(images) != len(boxes):
        raise DataError(f"{path}: expected two cells of equal length, `images` and `boxes`")
    for image, rows in zip(images, boxes, strict=True):
        part = _part(path, "".join(np.ravel(image).astype(str)), rows)
        if part.rows.shape[1:] == (4,):  # from y1, x1, y2, x2, inclusive and counted from 1
            part = part._replace(rows=part.rows[:, [1, 0, 3, 2]] - np.array([1, 1, 0, 0]))
        yield part


def _part(path: Path, image: str, rows: Any) -> _Part:
    try:
        array = np.atleast_1d(np.asarray(rows, dtype=np.float64))
    except (TypeError, ValueError):
        bad = next((i for i, row in enumerate(rows, 1) if not _numbers(row)), 1)
        raise DataError(f"{path}: image `{image}`, row {bad}: expected 4 numbers, or 5 with a score") from None
    return _Part(image, array, range(1, len(array) + 1))


def _numbers(row: Any) -> bool:
    return isinstance(row, list) and len(row) in (4, 5) and all(isinstance(value, int | float) for value in row)


_READERS = {".json": _read_json, ".npz": _read_npz, ".mat": _read_mat}
