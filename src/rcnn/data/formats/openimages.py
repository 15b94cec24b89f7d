"""Find and read Open Images: tables with one row per object, of which only those of images that are here are read."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rcnn.config import Data
from rcnn.config.files import MB
from rcnn.data.formats.draft import Draft, Layout, Reading, corners_of_xyxy, relative_name
from rcnn.data.formats.folders import Folders, cached_folders
from rcnn.data.formats.lists import MAX_INSPECTED, SPLITS, find_lists, split_of
from rcnn.data.formats.seen_classes import SeenClasses
from rcnn.data.formats.table_rows import first_rows, rows, wrong_length
from rcnn.errors import DataError, plural
from rcnn.images.sources import is_image
from rcnn.images.storage import Location, RemotePath, normal, scan

MAX_TABLE_BYTES = 8000 * MB
"""Maximum size of a table, bytes; that of the training images has 2,300 MB."""

MAX_TABLE_ROWS = 50_000_000
"""Maximum number of lines of a table; that of the training images has 14.6 million."""

MAX_OBJECTS = 5_000_000
"""Maximum number of objects of images that are here, which are held in memory."""

MAX_NAMES_BYTES = 64 * MB
"""Maximum size of a file that names the classes, bytes."""

CORNERS = ("xmin", "ymin", "xmax", "ymax")
NEEDED = ("imageid", "labelname", *CORNERS)
IMAGE_FOLDERS = ("images", "data")
"""Names of folders of images, below or above those that are named like a list."""


def find(path: Location) -> Layout | None:
    """Return the set of a table such as train-annotations-bbox.csv, or of a folder that holds one or more.

    Raises:
        DataError: several tables could be one list.
    """
    layout = find_lists("openimages", path, (".csv",), lambda file: _header(file) is not None)
    return layout and replace(layout, classes=_names_files(layout))


def _header(table: Location) -> list[str] | None:
    """Return the names of the columns of a table of boxes, in lower case; None if a file is something else."""
    head = first_rows(table)
    header = [cell.lower() for cell in head[0]] if head else []
    return header if {*NEEDED} <= {*header} else None


def _names_files(layout: Layout) -> tuple[Location, ...]:
    """Return the files that name the classes, in the folder of a table or of the set, or in the folder above."""
    tables = [files[0].parent for files in layout.lists.values()]
    places = [place for folder in (*tables, layout.root) for place in (folder, folder.parent)]
    places += [folder.parent / "metadata" for folder in tables]
    for place in dict.fromkeys(map(normal, places)):
        if isinstance(place, RemotePath) and not place.is_relative_to(layout.root):  # nothing outside a set is opened
            continue
        pattern = "classes.csv" if place.name == "metadata" else "*class-descriptions*.csv"
        found = sorted(place.glob(pattern))[:MAX_INSPECTED]
        if found:
            return tuple(file for file in found if "boxable" in file.name) or tuple(found)
    return ()


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images that are here and have a row. Without `names`, the classes are those that occur, sorted.

    Raises:
        DataError: none of the images is here.
    """
    reading = Reading(corners_of_xyxy, units="share")
    classes, shown = SeenClasses(names), _shown_names(layout.classes, reading)
    tables = _Boxes(layout, reading, cached_folders(layout.home or layout.root), classes, shown)
    for source in sources:
        tables.read(source)
    reading.drafts = list(tables.drafts.values())
    reading.count_more(sources[0])
    if not reading.drafts:
        tried = ", ".join(map(str, tables.places)) or "the usual folders, where there are no images at all"
        raise DataError(f"{sources[0]}: none of its images is here; looked in {tried}", reading.faults)
    if unnamed := [name for name in classes.numbers if name.startswith("/")]:
        known = ", ".join(file.name for file in layout.classes) or "class-descriptions-boxable.csv"
        reason = f"not in {known}" if layout.classes else f"put {known} of Open Images next to the table to name them"
        reading.notes.append(f"{plural(len(unnamed), 'class')} without a name, such as {min(unnamed)}: {reason}")
    classes.settle(reading, reading.drafts, sorted(classes.numbers), names)
    return reading


def _shown_names(files: Sequence[Location], reading: Reading) -> dict[str, str]:
    """Return the name of each class by its id, such as `/m/01g317`; with the id if several have the same name."""
    names: dict[str, str] = {}
    for file in files:
        for line, cells in rows(file, reading, MAX_NAMES_BYTES, MAX_TABLE_ROWS):
            if len(cells) != 2 or not cells[1].strip():
                reading.fault(f"{file}:{line}", wrong_length(cells, "the id of a class and its name"))
            else:
                names.setdefault(cells[0].strip(), cells[1].strip())
    uses = Counter(names.values())
    return {number: name if uses[name] == 1 else f"{name} ({number})" for number, name in names.items()}


class _Image(NamedTuple):
    """An image in one of the folders of a table.

    Attributes:
        folder, name: where it is.
        from_root: path of the folder from that of the data set.
        is_own: whether the folder belongs to the list of the table alone.
        twin: another image of the folder with the same stem; empty if there is none.
    """

    folder: Location
    name: str
    from_root: str
    is_own: bool
    twin: str = ""


@dataclass
class _Boxes:
    """Reads tables row by row, and keeps the rows of images that are here.

    Attributes:
        shown: name of a class by its id.
        drafts: by their own names.
        places: folders that were searched for images.
        objects: number of objects so far.
    """

    layout: Layout
    reading: Reading
    folders: Folders
    classes: SeenClasses
    shown: Mapping[str, str]
    drafts: dict[str, Draft] = field(default_factory=dict)
    places: list[Location] = field(default_factory=list)
    objects: int = 0

    def read(self, source: Location) -> None:
        """Add the objects of a table to the images that are here, and notes on those that are not.

        Raises:
            OSError, UnicodeDecodeError: the file is too large or not text.
            DataError: it is not a table of boxes.
        """
        header = _header(source)
        if header is None or any(header.count(name) > 1 for name in NEEDED):
            raise DataError(f"{source}: this is not a table with one column ImageID, LabelName, XMin, XMax, YMin, YMax")
        images, columns = self._images(source), {name: index for index, name in enumerate(header)}
        column = columns["imageid"]
        name, draft, missing, denied = None, None, 0, 0
        for line, cells in rows(source, self.reading, MAX_TABLE_BYTES, MAX_TABLE_ROWS, has_header=True):
            if len(cells) != len(header):
                self.reading.fault(f"{source}:{line}", wrong_length(cells, f"{len(header)} columns as in the header"))
                continue
            if cells[column] != name:  # the rows of an image follow each other
                name = cells[column]
                draft = self._draft(name.strip(), images)
            if draft is None:
                missing += 1
            elif self.objects == MAX_OBJECTS:
                reason = f"the table continues here, but only {MAX_OBJECTS:,} objects are read"
                self.reading.fault(f"{source}:{line}", reason)
                break
            else:
                self.objects += 1
                denied += not self._add(draft, f"{source}:{line}", cells, columns)
        self._note(source, images, missing, denied)

    def _images(self, source: Location) -> dict[str, _Image]:
        """Return the images in the folders of a table, by their stems. Folders that come first have precedence."""
        images: dict[str, _Image] = {}
        split, is_only = split_of(source.stem), len({*self.layout.lists.values()}) == 1
        for place in dict.fromkeys(map(normal, _places(source, self.layout.root))):
            folder = self.folders(place)
            if not any(map(is_image, folder.names)):
                continue
            from_root = "." if place == normal(self.layout.root) else relative_name(place, self.layout.root)
            parts = from_root.split("/")
            is_own = ".." not in parts and (is_only or any(SPLITS.get(part) == split for part in parts))
            self.places.append(place)
            for name in filter(is_image, folder.names):
                stem = os.path.splitext(name)[0]
                before = images.setdefault(stem, _Image(place, name, from_root, is_own))
                if before.folder is place and before.name != name:
                    images[stem] = before._replace(twin=name)
        return images

    def _draft(self, name: str, images: Mapping[str, _Image]) -> Draft | None:
        """Return the image of a row; None if it is not here."""
        image = images.get(name) or (images.get(os.path.splitext(name)[0]) if is_image(name) else None)
        if image is None:
            return None
        whole = image.name if image.from_root == "." else f"{image.from_root}/{image.name}"
        if whole not in self.drafts:
            draft = self.drafts[whole] = Draft(whole, os.path.splitext(image.name)[0], image.folder / image.name)
            if image.twin:
                reason = f"two images with this name in {image.folder}: {image.name}, {image.twin}; keep one"
                draft.fault(image.folder / image.name, reason)
        return self.drafts[whole]

    def _add(self, draft: Draft, where: str, cells: Sequence[str], columns: Mapping[str, int]) -> bool:
        """Add the object of a row, or its faults, to its image. Return False if the row denies that there is one."""
        if "confidence" in columns and cells[columns["confidence"]].strip() in ("0", "0.0"):
            return False
        number = cells[columns["labelname"]].strip()
        label = self.classes.number(self.shown.get(number, number), draft, where) if number else None
        if not number:
            draft.fault(where, "the class is empty")
        is_group = "isgroupof" in columns and cells[columns["isgroupof"]].strip() == "1"
        corners = [cells[columns[name]] for name in CORNERS]
        try:
            draft.add(where, label, [float(corner) for corner in corners], ignore=is_group)
        except ValueError:
            draft.fault(where, f"XMin, YMin, XMax, YMax must be numbers; found {', '.join(corners):.200}")
        return True

    def _note(self, source: Location, images: Mapping[str, _Image], missing: int, denied: int) -> None:
        """Add notes on what is in a table and not here, or here and not in a table."""
        notes = self.reading.notes
        if missing:
            notes.append(f"{plural(missing, 'row')} of {source.name} name images that are not here; they are left out")
        if denied:
            notes.append(f"{plural(denied, 'row')} of {source.name} with the confidence 0 left out: no such object")
        stems = {draft.id for draft in self.drafts.values()}
        extra = [image.name for stem, image in images.items() if image.is_own and stem not in stems]
        if extra:
            count = plural(len(extra), "image")
            notes.append(f"{count} without a row in {source.name}, such as {min(extra)}; left out, as not labelled")


def _places(source: Location, root: Location) -> Iterator[Location]:
    """Yield the folders in which the images of a table may be, those that are named like its list first."""
    word = split_of(source.stem)
    words = [name for name, split in SPLITS.items() if word in (split, "all")]
    for base in dict.fromkeys(map(normal, (source.parent, root, source.parent.parent))):
        if isinstance(base, RemotePath) and not base.is_relative_to(root):  # nothing outside a set is opened
            continue
        try:
            with scan(base) as entries:
                inner = {entry.name for entry in entries if entry.name in (*words, *IMAGE_FOLDERS) and entry.is_dir()}
        except PermissionError:  # of the folder above
            continue
        for name in words:
            yield from (base / name / below for below in (".", *IMAGE_FOLDERS) if name in inner)
            yield from (base / above / name for above in IMAGE_FOLDERS if above in inner)
        yield from (base / name for name in IMAGE_FOLDERS if name in inner)
        yield base
