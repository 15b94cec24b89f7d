"""Find, read and write CSV labels: one row per object, with a header, or without one as keras-retinanet has them."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rcnn.config import Data
from rcnn.config.files import MB
from rcnn.data.dataset import Dataset
from rcnn.data.formats.draft import Draft, Layout, Reading, corners_of_xyxy
from rcnn.data.formats.folders import copy_images, lost_classes, write_text
from rcnn.data.formats.lists import MAX_INSPECTED, find_lists
from rcnn.data.formats.named_images import NamedImages, usual_places
from rcnn.data.formats.seen_classes import SeenClasses
from rcnn.data.formats.table_rows import first_rows, rows, wrong_length
from rcnn.errors import DataError
from rcnn.images.sources import is_image
from rcnn.images.storage import Location

MAX_CSV_BYTES = 256 * MB
"""Maximum size of a table, bytes."""

MAX_TABLE_ROWS = 500_000
"""Maximum number of lines of a table below its header."""

COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
SCORE = "score"
"""Column of a table of results, in which texts are `guarded`."""

GUARDED = ("=", "+", "-", "@", "\t", "\r", "'")
"""First characters of a text that gets an apostrophe in results: a formula to a spreadsheet, or an apostrophe."""

CORNERS = ("xmin", "ymin", "xmax", "ymax")
NEEDED = ("filename", "class", *CORNERS)
SYNONYMS = {
    "filename": ("file_name", "file", "image", "image_path", "image_name", "image_file", "image_filename", "image_id")
    + ("img", "img_path", "path", "filepath", "file_path"),
    "class": ("class_name", "classname", "label", "label_name", "category", "category_name"),
    "width": ("image_width", "img_width"),
    "height": ("image_height", "img_height"),
    "xmin": ("x_min", "x1", "left"),
    "ymin": ("y_min", "y1", "top"),
    "xmax": ("x_max", "x2", "right"),
    "ymax": ("y_max", "y2", "bottom"),
}
"""Column -> other names of it, which count if there is no column of this name."""

QUADRILATERAL = {"x3", "y3"}
"""Columns of tables in which x1, y1, x2, y2 are not two opposite corners."""

HEADERLESS = ("filename", *CORNERS, "class")
"""Columns of a table without a header."""

DELIMITERS = (",", ";", "\t")
SUFFIXES = (".csv", ".tsv")
ID_SUFFIXES = (".jpg", ".jpeg", ".png")
"""Suffixes of images that a table names without their suffix."""


@dataclass(frozen=True)
class Dialect:
    """How a table is to be read.

    Attributes:
        delimiter: between cells.
        header: names of the columns, in lower case and with underscores.
        has_header: whether the first row contains them.
        columns: names of `COLUMNS` -> indices of the columns that could be meant.
    """

    delimiter: str
    header: Sequence[str]
    has_header: bool
    columns: Mapping[str, Sequence[int]]


def dialect_of(path: Location) -> Dialect | None:
    """Return the dialect of a table of labels; None if a file is something else."""
    for delimiter in DELIMITERS:
        head = first_rows(path, delimiter)
        header = [cell.lower().replace(" ", "_") for cell in head[0]] if head else []
        columns = _columns(header)
        if columns.keys() >= {*NEEDED} and not QUADRILATERAL & {*header}:
            return Dialect(delimiter, header, True, columns)
        if head and is_image(head[0][0]) and any(map(_is_object, head)):
            return Dialect(delimiter, HEADERLESS, False, _columns(HEADERLESS))
    return None


def _columns(header: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of the columns that have the name of each of `COLUMNS`, or else a synonym of it."""
    columns: dict[str, list[int]] = {}
    for name in COLUMNS:
        exact = [index for index, cell in enumerate(header) if cell == name]
        found = exact or [index for index, cell in enumerate(header) if cell in SYNONYMS[name]]
        if found:
            columns[name] = found
    return columns


def _is_object(cells: Sequence[str]) -> bool:
    """Return whether the cells are those of a row without a header: an image, four numbers or none, and a class."""
    if len(cells) != len(HEADERLESS) or not is_image(cells[0]):
        return False
    return not any(cells[1:]) or (bool(cells[5]) and all(map(_is_number, cells[1:5])))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def find(path: Location) -> Layout | None:
    """Return the set of a table, or of a folder that holds tables or has one in each of train/, valid/ and test/.

    Raises:
        DataError: several tables could be one list.
    """
    return find_lists("csv", path, SUFFIXES, lambda file: dialect_of(file) is not None)


def guarded(text: str) -> str:
    """Return a text for a table of results: with an apostrophe before it if a spreadsheet would run it as a formula.

    A text that begins with an apostrophe gets another one, so that `unguarded` returns every text.
    """
    return f"'{text}" if text.startswith(GUARDED) else text


def unguarded(text: str) -> str:
    """Return the text that `guarded` was given."""
    return text[1:] if text.startswith("'") and text[1:].startswith(GUARDED) else text


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images that tables name.

    Without `names`, the classes are those of a file beside a table without a header, by their number, or those that
    occur, sorted.
    """
    reading = Reading(corners_of_xyxy)
    listed = _listed_classes(sources[0], layout.root, reading)
    classes = SeenClasses(listed if names is None else names)
    tables = _Tables(layout, reading, classes)
    for source in sources:
        tables.read(source)
    drafts = reading.drafts = list(tables.drafts.values())
    if drafts and not any(draft.path for draft in drafts):
        raise DataError(f"{sources[0]}: none of its images exists. {drafts[0].faults[0][1]}")
    reading.count_more(sources[0])
    classes.settle(reading, drafts, sorted(classes.numbers) if listed is None else listed, names)
    return reading


def _listed_classes(table: Location, root: Location, reading: Reading) -> list[str] | None:
    """Return the classes, by their number, in a file of rows `class,number` beside a table without a header.

    None if there is no such file. Rows at fault are added to the faults of the reading.

    Raises:
        DataError: there are several such files.
    """
    dialect = dialect_of(table)
    if dialect is None or dialect.has_header:
        return None
    beside = (sorted(folder.glob("*.csv"))[:MAX_INSPECTED] for folder in (table.parent, root))
    files = next(filter(None, ([*filter(_lists_classes, found)] for found in beside)), [])
    if len(files) > 1:
        named = ", ".join(file.name for file in files)
        raise DataError(f"{table}: several files beside it could name the classes: {named}; keep one")
    names: dict[int, str] = {}
    taken: set[str] = set()
    for line, cells in rows(files[0], reading, MAX_CSV_BYTES, MAX_TABLE_ROWS) if files else ():
        name, number = (cell.strip() for cell in cells) if len(cells) == 2 else ("", "")
        if not name or not number.isdecimal():
            reading.fault(f"{files[0]}:{line}", f"a class and its number are expected, found {', '.join(cells):.200}")
        elif int(number) in names or name in taken:
            reading.fault(f"{files[0]}:{line}", f"the class `{name}` or its number {number} occurs twice")
        else:
            names[int(number)] = name
            taken.add(name)
    return [name for _, name in sorted(names.items())] if files else None


def _lists_classes(file: Location) -> bool:
    """Return whether the first rows of a file are classes and their numbers."""
    head = first_rows(file)
    return bool(head) and all(len(cells) == 2 and cells[1].isdecimal() for cells in head)


@dataclass
class _Tables:
    """Reads tables row by row, and finds the images that they name.

    Attributes:
        drafts: by their own names.
        known: by the names that the tables use.
        images: finds the images of the tables in a folder.
    """

    layout: Layout
    reading: Reading
    classes: SeenClasses
    drafts: dict[str, Draft] = field(default_factory=dict)
    known: dict[str, Draft] = field(default_factory=dict)
    images: dict[Location, NamedImages] = field(default_factory=dict)

    def read(self, source: Location) -> None:
        """Add the objects of a table to their images; rows that can't be read become faults.

        Raises:
            OSError, UnicodeDecodeError: the file is too large or not text.
            DataError: it is not a table of labels, or two of its columns could be the same.
        """
        dialect = dialect_of(source)
        if dialect is None:
            raise DataError(f"{source}: this is not a table of labels with the columns {', '.join(NEEDED)}")
        columns = _chosen(dialect, source)
        limits = MAX_CSV_BYTES, MAX_TABLE_ROWS
        table = rows(source, self.reading, *limits, dialect.delimiter, has_header=dialect.has_header)
        count = len(dialect.header)
        expected = f"{count} columns {'as in the header' if dialect.has_header else 'path,x1,y1,x2,y2,class'}"
        name, label = columns["filename"], columns["class"]
        for line, cells in table:
            where = f"{source}:{line}"
            if len(cells) != count:
                self.reading.fault(where, wrong_length(cells, expected))
                continue
            cells = [cell.strip() for cell in cells]
            if SCORE in dialect.header:
                cells[name], cells[label] = unguarded(cells[name]), unguarded(cells[label])
            draft = self._draft(source, where, cells[name])
            if "width" in columns and "height" in columns:
                _read_size(draft, where, cells[columns["width"]], cells[columns["height"]])
            self._add(draft, where, cells[label], [cells[columns[corner]] for corner in CORNERS])

    def _draft(self, source: Location, where: str, name: str) -> Draft:
        """Return the image of a row of a table. It is searched for only once."""
        if name not in self.known:
            draft = Draft(name or "?", name or "?", None)
            if source.parent not in self.images:
                places = usual_places(source.parent, self.layout.root)
                self.images[source.parent] = NamedImages(self.layout, places)
            also = () if is_image(name) or not name else (f"{name}{suffix}" for suffix in ID_SUFFIXES)
            self.images[source.parent].find(draft, where, name, *also)
            draft.id = draft.path.stem if draft.path else draft.id
            self.known[name] = self.drafts.setdefault(draft.name, draft)  # its path may be written in two ways
        return self.known[name]

    def _add(self, draft: Draft, where: str, label: str, corners: Sequence[str]) -> None:
        """Add the object of a row, or its faults, to its image. A row with the filename alone has no object."""
        if not any(corners) and not label:
            return
        number = self.classes.number(label, draft, where) if label else None
        if not label:
            draft.fault(where, "the class is empty")
        try:
            draft.add(where, number, [float(corner) for corner in corners])
        except ValueError:
            draft.fault(where, f"xmin, ymin, xmax, ymax must be numbers; found {', '.join(corners):.200}")


def _chosen(dialect: Dialect, source: Location) -> dict[str, int]:
    """Return the index of each column.

    Raises:
        DataError: two columns could be the same.
    """
    for name, indices in dialect.columns.items():
        found = list(dict.fromkeys(dialect.header[index] for index in indices))
        if len(found) > 1:
            could = f"the columns `{'` and `'.join(found)}` could both be the `{name}`"
            raise DataError(f"{source}:1: {could}; rename the one that is meant to `{name}`")
        if len(indices) > 1:
            raise DataError(f"{source}:1: the column `{found[0]}` occurs twice; keep one of the two")
    return {name: indices[0] for name, indices in dialect.columns.items()}


def _read_size(draft: Draft, where: str, width: str, height: str) -> None:
    """Read the declared size; zeros and empty cells declare none."""
    try:
        size = int(float(height or "0")), int(float(width or "0"))
    except (ValueError, OverflowError):
        return draft.fault(where, f"width and height must be numbers; found {width:.100}, {height:.100}")
    if min(size) <= 0:
        return None
    if draft.declared is None:
        draft.declared, draft.source = size, where
    elif draft.declared != size:
        before = f"{draft.declared[1]}x{draft.declared[0]} in a row before"
        draft.fault(where, f"the image is {size[1]}x{size[0]} pixels here, and {before}")
    return None


def write(datasets: Sequence[Dataset], out: Path, names: Mapping[Location, str]) -> list[str]:
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
            objects = [[*start, dataset.names[label], *box] for label, box in boxes]
            table.writerows(objects or [[*start, "", "", "", "", ""]])
        write_text(folder / "_annotations.csv", text.getvalue())
    remark = f"a table has no crowd or difficult boxes: {ignored} were left out"
    return [*([remark] if ignored else []), *lost_classes(datasets, "a table")]
