"""Find, read and write CSV labels: one row per object, with a header, as in Roboflow's and TensorFlow's examples."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rcnn.config import Data
from rcnn.config.files import MB
from rcnn.data.dataset import Dataset
from rcnn.data.formats.draft import Draft, Layout, Reading, relative_name, unknown_class
from rcnn.data.formats.folders import Folder, copy_images, lost_classes, root_of, write_text
from rcnn.data.formats.named_images import NamedImages, usual_places
from rcnn.errors import DataError
from rcnn.images.storage import Location, read_start, read_text

MAX_CSV_BYTES = 256 * MB
"""Maximum size of a table, bytes."""

MAX_TABLE_ROWS = 500_000
"""Maximum number of lines of a table; those of 5,000 images take 6 s on one core."""

COLUMNS = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
SCORE = "score"
"""Column of a table of results, in which texts are `guarded`."""

GUARDED = ("=", "+", "-", "@", "\t", "\r", "'")
"""First characters of a text that gets an apostrophe in results: a formula to a spreadsheet, or an apostrophe."""

NEEDED = ("filename", "class", "xmin", "ymin", "xmax", "ymax")
_HEAD_BYTES = 4096
_SPLITS = {"train": "train", "valid": "val", "validation": "val", "val": "val", "test": "test"}


def find(path: Location) -> Layout | None:
    """Return the set of a table, or of a folder that holds tables or has one in each of train/, valid/ and test/.

    Raises:
        DataError: several tables could be one list.
    """
    if path.is_file():
        if path.suffix.lower() != ".csv" or not _is_table(path):
            return None
        return Layout.of_file("csv", path, _split_of(path.stem))
    files = _tables(path)
    named = [(_split_of(file.stem), file) for file in files]
    if not files:
        named = [(split, file) for name, split in _SPLITS.items() for file in _tables(path / name)]
    lists: dict[str, tuple[Location, ...]] = {}
    for split, file in named:
        if split in lists:
            names = ", ".join(str(other) for name, other in named if name == split)
            raise DataError(f"{path}: several tables could be the list `{split}`: {names}; give one of them")
        lists[split] = (file,)
    lists = {split: lists[split] for split in ("train", "val", "test") if split in lists} or lists
    evidence = ", ".join(relative_name(file, path) for _, file in named)
    return Layout("csv", root_of(path), lists, evidence=evidence) if lists else None


def guarded(text: str) -> str:
    """Return a text for a table of results: with an apostrophe before it if a spreadsheet would run it as a formula.

    A text that begins with an apostrophe gets another one, so that `unguarded` returns every text.
    """
    return f"'{text}" if text.startswith(GUARDED) else text


def unguarded(text: str) -> str:
    """Return the text that `guarded` was given."""
    return text[1:] if text.startswith("'") and text[1:].startswith(GUARDED) else text


def _tables(folder: Location) -> list[Location]:
    files = (folder / name for name in Folder(folder).names if name.lower().endswith(".csv"))
    return [file for file in files if _is_table(file)]


def _is_table(path: Location) -> bool:
    """Return whether the first row of a file names the columns of labels."""
    head = read_start(path, _HEAD_BYTES).decode("utf-8-sig", errors="replace")
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


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images that tables name. Without `names`, the classes are those that occur, sorted."""
    tables = _Tables(layout, Reading(_corners))
    rows = [(tables.draft(source, *row), *row) for source in sources for row in tables.rows(source)]
    reading = tables.reading
    drafts = reading.drafts = list(tables.drafts.values())
    if drafts and not any(draft.path for draft in drafts):
        raise DataError(f"{sources[0]}: none of its images exists. {drafts[0].faults[0][1]}")
    reading.count_more(sources[0])
    labels = reading.label_classes(sorted({cells["class"] for _, _, cells in rows} - {""}), names)
    for row in rows:
        _add_row(*row, labels)
    return reading


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
    drafts: dict[str, Draft] = field(default_factory=dict)
    known: dict[str, Draft] = field(default_factory=dict)
    images: dict[Location, NamedImages] = field(default_factory=dict)

    def rows(self, source: Location) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the place, `file:line`, and the cells by column of each row; rows that can't be read become faults.

        Raises:
            OSError, UnicodeDecodeError: the file is too large or not text.
            DataError: a column is missing or occurs twice.
        """
        reader = csv.reader(io.StringIO(read_text(source, MAX_CSV_BYTES), newline=""), skipinitialspace=True)
        header: list[str] | None = None
        try:
            for cells in reader:
                where = f"{source}:{reader.line_num}"
                if header is None:
                    header = _checked(_header(cells), where)
                elif reader.line_num > MAX_TABLE_ROWS + 1:
                    return self.reading.fault(
                        where, f"the table continues here, but only {MAX_TABLE_ROWS:,} lines are read"
                    )
                elif len(cells) == len(header):
                    row = dict(zip(header, map(str.strip, cells), strict=True))
                    texts = {name: unguarded(row[name]) for name in ("filename", "class")} if SCORE in row else {}
                    yield where, row | texts
                elif cells:
                    mismatch = f"expected {len(header)} columns as in the header, found {len(cells)}"
                    self.reading.fault(where, f"{mismatch}: {', '.join(cells):.200}")
        except csv.Error as error:
            self.reading.fault(f"{source}:{reader.line_num}", f"malformed csv: {error}")

    def draft(self, source: Location, where: str, cells: Mapping[str, str]) -> Draft:
        """Return the image of a row of a table. It is searched for only once."""
        name = cells["filename"]
        if name not in self.known:
            draft = Draft(name or "?", name or "?", None)
            if source.parent not in self.images:
                places = usual_places(source.parent, self.layout.root)
                self.images[source.parent] = NamedImages(self.layout, places)
            self.images[source.parent].find(draft, where, name)
            draft.id = draft.path.stem if draft.path else draft.id
            self.known[name] = self.drafts.setdefault(draft.name, draft)  # its path may be written in two ways
        return self.known[name]


def _checked(header: list[str], where: str) -> list[str]:
    """Return the names of the columns.

    Raises:
        DataError: a required column is missing, or one occurs twice.
    """
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise DataError(f"{where}: there is no column `{'`, `'.join(missing)}`; expected {','.join(COLUMNS)}")
    twice = [name for name in COLUMNS if header.count(name) > 1]
    if twice:
        raise DataError(f"{where}: the column `{twice[0]}` occurs twice; keep one of the two")
    return header


def _add_row(draft: Draft, where: str, cells: Mapping[str, str], labels: Mapping[str, int]) -> None:
    """Add the object of a row, or its faults, to its image. A row with the filename alone has no object."""
    _read_size(draft, where, cells)
    corners = [cells[name] for name in NEEDED[2:]]
    if not any(corners) and not cells["class"]:
        return
    label = labels.get(cells["class"])
    if not cells["class"]:
        draft.fault(where, "the class is empty")
    elif label is None:
        draft.fault(where, unknown_class(cells["class"], list(labels), draft))
    try:
        draft.add(where, label, [float(corner) for corner in corners])
    except ValueError:
        draft.fault(where, f"xmin, ymin, xmax, ymax must be numbers; found {', '.join(corners):.200}")


def _read_size(draft: Draft, where: str, cells: Mapping[str, str]) -> None:
    """Read the declared size; zeros and empty cells declare none."""
    texts = [cells.get(name) or "0" for name in ("height", "width")]
    try:
        height, width = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        draft.fault(where, f"width and height must be numbers; found {', '.join(texts[::-1]):.200}")
        return
    if height <= 0 or width <= 0:
        return
    before = draft.declared or (height, width)
    if before == (height, width):
        draft.declared, draft.source = before, draft.source or where
    else:
        draft.fault(where, f"the image is {width}x{height} pixels here, and {before[1]}x{before[0]} in a row before")


def _corners(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 4) xyxy as they are, and (n,) bool: which boxes have no size."""
    return numbers, (numbers[:, :2] == numbers[:, 2:]).any(axis=1)


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
            rows = [[*start, dataset.names[label], *box] for label, box in boxes]
            table.writerows(rows or [[*start, "", "", "", "", ""]])
        write_text(folder / "_annotations.csv", text.getvalue())
    remark = f"a table has no crowd or difficult boxes: {ignored} were left out"
    return [*([remark] if ignored else []), *lost_classes(datasets, "a table")]
