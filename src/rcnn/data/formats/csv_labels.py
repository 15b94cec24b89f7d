"""Find, read and write CSV labels: a row per object, with a header, as Roboflow and TensorFlow's examples have them."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rcnn.config import Data
from rcnn.config.files import MB, check_regular, read_text
from rcnn.data.dataset import Dataset, Fault
from rcnn.data.formats.draft import MAX_FAULTS, Draft, Layout, Reading, relative_name, unknown_class
from rcnn.data.formats.folders import Folder, Folders, copy_images, is_file, root_of, write_text
from rcnn.errors import DataError
from rcnn.images.sources import is_image

MAX_CSV_BYTES = 256 * MB
"""Bytes of a table."""

MAX_TABLE_ROWS = 500_000
"""Lines of a table; those of 5,000 images take 6 s of one core's time."""

COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
NEEDED = ("filename", "class", "xmin", "ymin", "xmax", "ymax")
_HEAD = 4096
_SPLITS = {"train": "train", "valid": "val", "validation": "val", "val": "val", "test": "test"}
_IMAGE_FOLDERS = (".", "images", "Images", "imgs", "JPEGImages")


class _Row(NamedTuple):
    """A row that has as many columns as the header, and its place, `file:line`."""

    where: str
    cells: Mapping[str, str]


def find(path: Path) -> Layout | None:
    """Return the set of a table, or of a folder that holds tables or has one in each of train/, valid/ and test/.

    Raises:
        DataError: several tables could be one list.
    """
    if path.is_file():
        if path.suffix.lower() != ".csv" or not _is_table(path):
            return None
        split = _split_of(path.stem)
        splits = ("val", "test") if split in ("val", "test") else (split,)  # a list to evaluate on serves as both
        return Layout("csv", root_of(path.parent), dict.fromkeys(splits, (path,)), evidence=path.name)
    files = _tables(path)
    named = [(_split_of(file.stem), file) for file in files]
    if not files:
        named = [(split, file) for name, split in _SPLITS.items() for file in _tables(path / name)]
    lists: dict[str, tuple[Path, ...]] = {}
    for split, file in named:
        if split in lists:
            names = ", ".join(str(other) for name, other in named if name == split)
            raise DataError(f"{path}: several tables could be the list `{split}`: {names}; give one of them")
        lists[split] = (file,)
    lists = {split: lists[split] for split in ("train", "val", "test") if split in lists} or lists
    evidence = ", ".join(relative_name(file, path) for _, file in named)
    return Layout("csv", root_of(path), lists, evidence=evidence) if lists else None


def _tables(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name.lower().endswith(".csv") and not entry.name.startswith(".")]
    names = sorted(entry.name for entry in found if is_file(entry))
    return [folder / name for name in names if _is_table(folder / name)]


def _is_table(path: Path) -> bool:
    """Whether the first row of a file names the columns of labels."""
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8-sig", errors="replace")
    try:
        return set(NEEDED) <= set(_header(next(csv.reader(io.StringIO(head, newline="")), [])))
    except csv.Error:
        return False


def _header(cells: Sequence[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def _split_of(stem: str) -> str:
    """Return the split that the name of a table contains, as in `train_labels`; `all` if it contains none."""
    words = "".join(letter if letter.isalpha() else " " for letter in stem.lower()).split()
    return next((_SPLITS[word] for word in words if word in _SPLITS), "all")


def read(layout: Layout, sources: Sequence[Path], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images that tables name. Without `names`, the classes are those that occur, sorted."""
    tables = _Tables(layout, Reading(_corners), cache(Folder))
    rows = [(tables.draft(row), row) for source in sources for row in tables.rows(source)]
    reading = tables.reading
    drafts = reading.drafts = list(tables.drafts.values())
    if drafts and not any(draft.path for draft in drafts):
        raise DataError(f"{sources[0]}: none of its images is there. {drafts[0].faults[0][1]}")
    if tables.more:
        reading.faults.append(Fault(str(sources[0]), f"and {tables.more:,} more faults", "fatal"))
    reading.own = tuple(sorted({row.cells["class"] for _, row in rows} - {""}))
    reading.names = tuple(names) if names is not None else reading.own
    reading.category_ids = tuple(range(1, len(reading.names) + 1))
    labels = {name: label for label, name in enumerate(reading.names)}
    for draft, row in rows:
        _add_row(draft, row, labels)
    if not tables.unlisted:
        return reading
    reading.notes.append(
        f"{len(tables.unlisted)} images next to {sources[0].name} have no row in it, such as {min(tables.unlisted)}; "
        "they are left out (a row with the filename alone makes one a background image)"
    )
    return reading


@dataclass
class _Tables:
    """Reads tables row by row, and finds the images that they name.

    Attributes:
        drafts: by their own names.
        known: by what the tables call them.
        unlisted: names of images next to a table that are not in it.
        more: number of the faults beyond those that are listed.
    """

    layout: Layout
    reading: Reading
    folders: Folders
    drafts: dict[str, Draft] = field(default_factory=dict)
    known: dict[str, Draft] = field(default_factory=dict)
    unlisted: set[str] = field(default_factory=set)
    more: int = 0

    def rows(self, source: Path) -> Iterator[_Row]:
        """Yield the rows of a table; those that can't be read become faults.

        Raises:
            OSError, UnicodeDecodeError: the file is too large or no text.
            DataError: a column is missing, or there twice.
        """
        reader = csv.reader(io.StringIO(read_text(source, MAX_CSV_BYTES), newline=""), skipinitialspace=True)
        header: list[str] | None = None
        try:
            for cells in reader:
                where = f"{source}:{reader.line_num}"
                if header is None:
                    header = _checked(_header(cells), where)
                elif reader.line_num > MAX_TABLE_ROWS + 1:
                    return self._fault(where, f"the table goes on here; {MAX_TABLE_ROWS:,} lines are read")
                elif len(cells) == len(header):
                    yield _Row(where, dict(zip(header, map(str.strip, cells), strict=True)))
                elif cells:
                    wanted = f"expected {len(header)} columns as in the header, found {len(cells)}"
                    self._fault(where, f"{wanted}: {', '.join(cells):.200}")
        except csv.Error as error:
            self._fault(f"{source}:{reader.line_num}", f"malformed csv: {error}")
        images = {name for name in self.folders(source.parent).names if is_image(name)}
        if sum(source.parent == other.parent for files in self.layout.lists.values() for other in files) == 1:
            self.unlisted |= images - {draft.path.name for draft in self.drafts.values() if draft.path}

    def _fault(self, where: str, reason: str) -> None:
        if len(self.reading.faults) < MAX_FAULTS:
            self.reading.faults.append(Fault(where, reason, "fatal"))
        else:
            self.more += 1

    def draft(self, row: _Row) -> Draft:
        """Return the image of a row, found at its first one."""
        name = row.cells["filename"]
        if name not in self.known:
            draft = self._find(name, row.where)
            self.known[name] = self.drafts.setdefault(draft.name, draft)  # its path may be written in two ways
        return self.known[name]

    def _find(self, name: str, where: str) -> Draft:
        """Find an image by its name below the usual folders, or else by the last part of its path."""
        base = name.replace("\\", "/").rsplit("/", 1)[-1]
        table = Path(where.rpartition(":")[0]).parent
        places = [place / inner for place in dict.fromkeys((table, self.layout.root)) for inner in _IMAGE_FOLDERS]
        places += [table.parent / inner for inner in _IMAGE_FOLDERS[1:]]
        tried = [place for place in dict.fromkeys(map(Path, places)) if place.is_dir()]
        for place, wanted in [*((place, Path(name)) for place in tried), *((place, Path(base)) for place in tried)]:
            folder = self.folders((place / wanted).parent)
            names = folder.find(wanted.name)
            if len(names) == 1:
                path = folder.path / names[0]
                draft = Draft(relative_name(path, self.layout.root), path.stem, path)
                if names[0] != wanted.name:
                    draft.mendable(where, f"names differ in case, taken to be the same: {wanted.name}, {names[0]}")
                return draft
        draft = Draft(name or "?", name or "?", None)
        near = next(filter(None, (self.folders(place).near(base) for place in tried)), "")
        draft.fatal(where, f"image `{name:.300}` is missing; looked in {', '.join(map(str, tried))}{near}")
        return draft


def _checked(header: list[str], where: str) -> list[str]:
    """Return the names of the columns.

    Raises:
        DataError: one that is needed is missing, or one is there twice.
    """
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise DataError(f"{where}: there is no column `{'`, `'.join(missing)}`; expected {','.join(COLUMNS)}")
    twice = [name for name in COLUMNS if header.count(name) > 1]
    if twice:
        raise DataError(f"{where}: the column `{twice[0]}` is there twice; keep one of the two")
    return header


def _add_row(draft: Draft, row: _Row, labels: dict[str, int]) -> None:
    """Add the object of a row to its image, or note its faults. With the filename alone, there is no object."""
    where, cells = row
    _read_size(draft, row)
    corners = [cells[name] for name in NEEDED[2:]]
    if not any(corners) and not cells["class"]:
        return
    label = labels.get(cells["class"])
    if not cells["class"]:
        draft.fatal(where, "the class is empty")
    elif label is None:
        draft.fatal(where, unknown_class(cells["class"], list(labels), draft))
    try:
        draft.add(where, label, [float(corner) for corner in corners])
    except ValueError:
        draft.fatal(where, f"xmin, ymin, xmax, ymax must be numbers; found {', '.join(corners):.200}")


def _read_size(draft: Draft, row: _Row) -> None:
    """Read the declared size; zeros and empty cells declare nothing."""
    texts = [row.cells.get(name) or "0" for name in ("height", "width")]
    try:
        height, width = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        return draft.fatal(row.where, f"width and height must be numbers; found {', '.join(texts[::-1]):.200}")
    if height <= 0 or width <= 0:
        return None
    if draft.declared is not None and draft.declared != (height, width):
        before = f"{draft.declared[1]}x{draft.declared[0]}"
        return draft.fatal(row.where, f"the image is {width}x{height} pixels here, and {before} in a row before")
    draft.declared, draft.source = (height, width), draft.source or row.where
    return None


def _corners(given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 4) xyxy as they are, and (n,) bool: which boxes have no size."""
    return given, (given[:, :2] == given[:, 2:]).any(axis=1)


def write(datasets: Sequence[Dataset], out: Path, names: Mapping[Path, str]) -> list[str]:
    """Write LIST/_annotations.csv next to the images. Crowd and difficult boxes are left out, and counted.

    `names` maps each image to its new file name.
    """
    ignored = 0
    folders = {"all": ".", "trainval": "train", "val": "valid"}
    for dataset in datasets:
        folder = out / folders.get(dataset.split, dataset.split)
        copy_images(dataset.records, folder, names)
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for record in dataset.records:
            ignored += int(record.ignore.sum())
            start = [names[record.path], record.size[1], record.size[0]]
            boxes = zip(record.labels[~record.ignore].tolist(), record.boxes[~record.ignore].tolist(), strict=True)
            rows = [[*start, dataset.names[label], *box] for label, box in boxes]
            table.writerows(rows or [[*start, "", "", "", "", ""]])
        write_text(folder / "_annotations.csv", text.getvalue())
    used = {int(label) for dataset in datasets for record in dataset.records for label in record.labels}
    unused = [name for label, name in enumerate(datasets[0].names) if label not in used]
    lost = f"a table has no list of classes, so those without a box are lost: {', '.join(unused)}"
    left = f"a table has no crowd or difficult boxes: {ignored} were left out"
    return [*([left] if ignored else []), *([lost] if unused else [])]
