"""External proposals: boxes from a file, checked, or from a search, in pixels of the image files.

A .json file holds one of
    {"000005.jpg": [[x1, y1, x2, y2], ...], ...}, where a fifth number is a score;
    what `rcnn propose` writes: [{"path": ..., "detections": [{"box": [x1, y1, x2, y2], "score": ...}, ...]}, ...];
    COCO's results: [{"image_id": ..., "bbox": [x, y, w, h], "score": ...}, ...].
A .npz file holds one array (n, 4) or (n, 5) of such rows per image, under the image's name.
A .mat file holds the cells `images` and `boxes` of Selective Search, with rows (y1, x1, y2, x2). The first pixel is 1,
and the last one belongs to the box; a fifth number is a score.
"""

import json
import lzma
import math
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rcnn.config import SLIDING_WINDOWS, Data, Settings
from rcnn.config.files import MB, check_regular, read_text
from rcnn.data.dataset import Dataset, Record
from rcnn.data.image_checks import ProgressCallback
from rcnn.data.proposals.external import NOTHING, ImageProposals, ranked
from rcnn.data.proposals.mat import read_mat
from rcnn.data.proposals.search import SEARCHES, search_files
from rcnn.errors import DataError, ImageError, SettingsError
from rcnn.images.sources import files
from rcnn.images.storage import Location, RemotePath, local_copy, location, slashed

MAX_OVERHANG = 1.0
"""Pixels by which a box may reach beyond the image. It is clipped, since files hold rounded numbers."""

MAX_PROPOSAL_BYTES, MAX_ARRAY_BYTES, MAX_PACKING = 1500 * MB, 100 * MB, 100
"""Maximum size of a .json or .mat and of one image's array in a .npz, bytes, and how tightly a .npz may be packed."""

WORDS = (*SEARCHES, SLIDING_WINDOWS)
"""Sources of proposals that are not files."""

MAX_LISTED_FAULTS = 20
"""Maximum number of faults of a file that are listed one by one."""


_DAMAGE = (zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, OverflowError, MemoryError)
"""What zipfile raises for damaged, locked and unusual archives besides its own errors."""


class _Part(NamedTuple):
    """The rows (n, 4) or (n, 5) of one image, xyxy and perhaps a score; `numbers` are the row numbers in the file."""

    image: str
    rows: np.ndarray
    numbers: Sequence[int]


def open_proposals(
    source: str, dataset: Dataset, settings: Settings, progress: ProgressCallback | None = None
) -> list[ImageProposals]:
    """Return the proposals of every image of a data set, in the order of its records.

    Args:
        source: a .json, .npz or .mat file, or the name of a search in `SEARCHES`.
        dataset: the images.
        settings: `data` is read: `white`, `max_pixels`, and `edge_model` by `edge-boxes`.
        progress: called with (images done, images in total) by a search.

    Raises:
        SettingsError: the search is not installed, or lacks its model file, or the source is `sliding-windows`, which
            have no ranking.
        DataError: as for `read_proposals`, or an image can't be read.
    """
    return find_proposals(source, dataset.records, dataset.root, settings.data, progress)


def find_proposals(
    source: str,
    records: Sequence[Record],
    root: Location | None,
    settings: Data,
    progress: ProgressCallback | None = None,
    skip: Callable[[ImageError], None] | None = None,
) -> list[ImageProposals]:
    """Like `open_proposals`, for images in the folder `root`; `skip` is called for those that a search can't read."""
    if source == SLIDING_WINDOWS:
        raise SettingsError(
            f"{SLIDING_WINDOWS} have no ranking, which is needed here to choose the best boxes: give a file or "
            f"{' or '.join(SEARCHES)}"
        )
    if source not in SEARCHES:
        return read_proposals(source, records, root)
    found: list[ImageProposals] = []
    for result in search_files([record.path for record in records], source, settings):
        if isinstance(result, ImageProposals):
            found.append(result)
        elif skip is None:
            raise DataError(str(result))
        else:
            skip(result)
            found.append(NOTHING)
        if progress:
            progress(len(found), len(records))
    return found


def read_proposals(
    path: str | Location, records: Sequence[Record], root: Location | None = None
) -> list[ImageProposals]:
    """Return the boxes of every record, in the order of the records. Without scores, the order in the file ranks them.

    The file may refer to an image by its name, its file's name or stem, or its id, if that is unambiguous. Boxes
    without width or height, which may result from rounding, are dropped.

    Args:
        path: .json, .npz or .mat file, or its address, in one of the forms described at the top of this module.
        records: the images.
        root: folder whose other images, such as those of other lists, may be in the file too and are ignored.

    Raises:
        DataError: the file can't be read; a box is outside its image, inverted or not finite; an image is unknown,
            occurs twice or is missing. The message names file and row of every fault.
    """
    path = location(path)
    path = path.expanduser() if isinstance(path, Path) else path
    if path.suffix.lower() not in _READERS:
        raise DataError(f"{path}: proposals come as {', '.join(_READERS)}, or from {', '.join(WORDS)}")
    images, found, faults = _Images(records, root), dict[int, ImageProposals](), list[str]()
    for part in _parts(path):
        if isinstance(part, str):
            faults.append(part)
            continue
        where, index = f"image `{part.image}`", images.find(part.image)
        if index in found:
            faults.append(f"{where}: `{records[index].name}` was listed before, under this or another name")
        elif index is not None:
            bad, found[index] = _checked(part, records[index].size)
            faults += [f"{where}{fault}" for fault in bad]
        elif not images.passes_over(part.image):
            hint = images.hint(part.image) if len(faults) < MAX_LISTED_FAULTS else ""
            faults.append(f"{where}, row {next(iter(part.numbers), 0)}: the data has no such image{hint}")
    missing = [record.name for index, record in enumerate(records) if index not in found]
    if missing and not faults:  # an image under a wrong name is reported once
        faults.append(f"{len(missing)} of {len(records)} images have no proposals, such as `{missing[0]}`")
    if len(faults) == 1:
        raise DataError(f"{path}: {faults[0]}")
    if faults:
        lines = [f"{path}: {fault}" for fault in faults[:MAX_LISTED_FAULTS]]
        more = [f"and {len(faults) - MAX_LISTED_FAULTS} more"] if len(faults) > MAX_LISTED_FAULTS else []
        raise DataError("\n".join([f"{len(faults)} faults in the proposals:", *lines, *more]))
    return [found[index] for index in range(len(records))]


def _parts(path: Location) -> Iterator["_Part | str"]:
    """Yield what a file says of each image, or a fault of it.

    Raises:
        DataError: it can't be read.
    """
    if isinstance(path, Path):
        yield from _READERS[path.suffix.lower()](path)
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(local_copy(path, MAX_PROPOSAL_BYTES))
        except OSError as error:
            raise DataError(f"{path}: can't be read: {error.strerror or error}") from None
        try:
            yield from _READERS[path.suffix.lower()](file)
        except DataError as error:
            raise DataError(str(error).replace(str(file), str(path))) from None


class _Images:
    """The names by which a file may refer to the images of a data set."""

    def __init__(self, records: Sequence[Record], root: Location | None) -> None:
        self._root = root
        self._folders = {os.path.abspath(root), os.path.realpath(root)} if isinstance(root, Path) else set[str]()
        self._whole: dict[str, int] = {}
        short: defaultdict[str, set[int]] = defaultdict(set)
        for index, record in enumerate(records):
            paths = [record.path]
            if isinstance(record.path, Path):
                paths += [os.path.abspath(record.path), os.path.realpath(record.path)]
            self._whole |= dict.fromkeys((record.name, *map(str, paths)), index)
            name = Path(record.name)
            for text in (name.name, name.stem, str(name.with_suffix("")), str(record.id)):
                short[text].add(index)
        self._short = {name: min(owners) for name, owners in short.items() if len(owners) == 1}

    def find(self, image: str) -> int | None:
        """Return the index of the image of this name, or None if no record has it."""
        path = os.path.abspath(image)
        index = self._whole.get(image, self._whole.get(path))
        if index is not None or self._has(path):  # another image of the folder may have the short name of a record
            return index
        return self._short.get(image, self._short.get(os.path.basename(slashed(image))))

    def passes_over(self, image: str) -> bool:
        """Return whether an image that is not among the records lies in the folder."""
        if self._root is None:
            return False
        folder = "" if isinstance(self._root, RemotePath) else os.path.abspath(self._root)
        in_folder = self._has(os.path.abspath(image)) or self._has(os.path.join(folder, image))
        return in_folder or not self._others.isdisjoint((image, os.path.basename(slashed(image))))

    def hint(self, image: str) -> str:
        """Return `; did you mean ...?` with the most similar name, or an empty string."""
        near = get_close_matches(image, [*self._whole, *self._short], n=1)
        return f"; did you mean `{near[0]}`?" if near else ""

    def _has(self, path: str) -> bool:
        return os.path.isfile(path) and any(Path(path).is_relative_to(folder) for folder in self._folders)

    @cached_property
    def _others(self) -> set[str]:
        """The names and stems of all images in the folder."""
        return {name for file in files(self._root or ".") for name in (file.name, file.stem)}


def _checked(part: _Part, size: tuple[int, int]) -> tuple[list[str], ImageProposals]:
    """Return the faults of the rows, and their boxes clipped and sorted by score."""
    rows = part.rows if part.rows.size else np.zeros((0, 4))
    if rows.ndim != 2 or rows.shape[1] not in (4, 5):
        return [f": expected rows of 4 numbers, or 5 with a score; found the shape {rows.shape}"], NOTHING
    boxes, (height, width) = rows[:, :4], size
    limit = np.array([width, height, width, height], dtype=np.float64)
    finite = np.isfinite(rows).all(axis=1)
    with np.errstate(invalid="ignore"):
        inside = (boxes >= -MAX_OVERHANG).all(axis=1) & (boxes <= limit + MAX_OVERHANG).all(axis=1)
        upright = (boxes[:, 2:] >= boxes[:, :2]).all(axis=1)
    outside = f"is outside the image of {width} x {height} pixels"
    inverted = "is inverted: x1 <= x2 and y1 <= y2 are needed"
    reasons = np.select([~finite, ~inside, ~upright], ["is not finite", outside, inverted], default="")
    faults = [
        f", row {part.numbers[row]}: the box ({', '.join(f'{number:g}' for number in rows[row])}) {reasons[row]}"
        for row in np.flatnonzero(reasons != "").tolist()
    ]
    scores = rows[:, 4] if rows.shape[1] == 5 else ranked(boxes).scores
    clipped = np.clip(boxes, 0, limit)
    order = np.argsort(-scores, kind="stable")
    order = order[(clipped[order, 2:] > clipped[order, :2]).all(axis=1)]
    return faults, ImageProposals(clipped[order], scores[order])


def _read_json(path: Path) -> Iterator[_Part | str]:
    try:
        content = json.loads(read_text(path, MAX_PROPOSAL_BYTES), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{path}: can't be read as json: {error}") from None
    if isinstance(content, Mapping):
        for image, rows in content.items():
            yield _part(image, rows)
    elif isinstance(content, list) and all(isinstance(entry, Mapping) for entry in content):
        yield from _entries(content)
    else:
        found = str(content[:5] if isinstance(content, list | str) else content)[:40]
        raise DataError(f"{path}: expected images with their boxes, or a list of objects; found {found}")


def _entries(entries: list[Mapping[str, Any]]) -> Iterator[_Part | str]:
    """Yield the images of a list whose entries are images with detections, or single boxes."""
    loose: dict[str, tuple[list[Any], list[int]]] = {}
    for number, entry in enumerate(entries, 1):
        try:
            if "detections" in entry:
                yield _part(str(entry["path"]), [[*d["box"], d["score"]] for d in entry["detections"]])
            else:
                x, y, w, h = (float(value) for value in entry["bbox"])
                score = float(entry.get("score", 0.0))
                rows, numbers = loose.setdefault(str(entry["image_id"]), ([], []))
                rows.append([x, y, x + w, y + h, score])
                numbers.append(number)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            yield (
                f"row {number}: expected `image_id` and a `bbox` of 4 numbers, or `path` and `detections` with `box` "
                f"and `score`; {type(error).__name__}: {error}"
            )
    for image, (rows, numbers) in loose.items():
        yield _Part(image, np.array(rows), numbers)


def _read_npz(path: Path) -> Iterator[_Part | str]:
    try:
        size = check_regular(path).st_size
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > max(MAX_PACKING * size, MAX_ARRAY_BYTES):
                raise ValueError(f"it is packed by more than {MAX_PACKING} to 1, which boxes never are")
            for member in archive.infolist():
                yield _part(member.filename.removesuffix(".npy"), _read_member(archive, member))
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, *_DAMAGE) as error:
        raise DataError(f"{path}: can't be read as .npz of plain arrays: {error}") from None


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read an array of an archive, after comparing its shape with its bytes.

    Raises:
        ValueError: it is no plain array, or too large.
    """
    if member.file_size > MAX_ARRAY_BYTES:
        raise ValueError(
            f"`{member.filename}` has {member.file_size / MB:,.0f} MB; an image has {MAX_ARRAY_BYTES // MB}"
        )
    with archive.open(member) as content:
        version = np.lib.format.read_magic(content)
        if version > (2, 0):
            raise ValueError(f"`{member.filename}` is of version {version[0]} of numpy's format; save plain arrays")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(content)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"`{member.filename}` declares the shape {shape}, but has {member.file_size} bytes")
    with archive.open(member) as content:
        return np.lib.format.read_array(content, allow_pickle=False)


def _read_mat(path: Path) -> Iterator[_Part | str]:
    try:
        content = read_mat(path, ("images", "boxes"))
    except NotImplementedError:
        raise DataError(f"{path}: is of MATLAB's version 7.3; save it with `-v7`") from None
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path}: can't be read as .mat: {error or 'too little memory'}") from None
    images, boxes = content.get("images"), content.get("boxes")
    if not isinstance(images, list) or not isinstance(boxes, list) or len(images) != len(boxes):
        raise DataError(f"{path}: expected two cells of equal length, `images` and `boxes`")
    for image, rows in zip(images, boxes, strict=True):
        part = _part("".join(np.ravel(image).astype(str)), rows)
        if isinstance(part, _Part) and part.rows.shape[1:] in ((4,), (5,)):  # y1, x1, y2, x2, inclusive, from 1
            corners = part.rows[:, [1, 0, 3, 2]] - np.array([1, 1, 0, 0])
            part = part._replace(rows=np.hstack([corners, part.rows[:, 4:]]))
        yield part


def _part(image: str, rows: Any) -> _Part | str:
    """Return the rows as an array, or the fault if that is not possible."""
    try:
        array = np.atleast_1d(np.asarray(rows, dtype=np.float64))
    except (TypeError, ValueError, OverflowError):
        bad = next((i for i, row in enumerate(rows, 1) if not _numbers(row)), 1)
        return f"image `{image}`, row {bad}: expected 4 numbers, or 5 with a score"
    return _Part(image, array, range(1, len(array) + 1))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a json file as a dict.

    Raises:
        ValueError: a key occurs twice, with different values.
    """
    fields = dict(pairs)
    repeated = pairs if len(fields) < len(pairs) else []
    if (twice := next((key for key, value in repeated if fields[key] != value), None)) is not None:
        raise ValueError(f"the key `{twice}` occurs twice, with different values; keep one of the two")
    return fields


def _numbers(row: Any) -> bool:
    return isinstance(row, list) and len(row) in (4, 5) and all(isinstance(value, int | float) for value in row)


_READERS = {".json": _read_json, ".npz": _read_npz, ".mat": _read_mat}
