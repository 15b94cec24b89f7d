"""Find and read the exports and projects of the VGG Image Annotator, versions 1 and 2: json and csv."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rcnn.config import Data
from rcnn.config.files import MB
from rcnn.data.dataset import Fault
from rcnn.data.formats.beside import SPLIT_FOLDERS, first_files
from rcnn.data.formats.csv_labels import MAX_CSV_BYTES, MAX_TABLE_ROWS
from rcnn.data.formats.draft import MAX_LISTED_CLASSES, Draft, Layout, Reading, corners_of_xyxy, relative_name
from rcnn.data.formats.folders import one_file_per_list, root_of, split_of
from rcnn.data.formats.json_tree import MalformedJson, load_json
from rcnn.data.formats.named_images import NamedImages, usual_places
from rcnn.data.formats.shapes import ellipse, finite
from rcnn.errors import DataError, plural
from rcnn.images.storage import Location, is_address, read_ends, read_start, read_text, shown

MAX_VIA_BYTES = 500 * MB
"""Maximum size of a json file, bytes."""

UNNAMED = "object"
"""Name of the class if no region has an attribute."""

_HEAD_BYTES = 1 << 16
_KEYS = (b'"filename"', b'"regions"')
_OWN_KEY = re.compile(rb'"(file|shape)_attributes"\s*:\s*\{')
_PROJECT = re.compile(rb'"_via_(img_metadata|settings|attributes)"\s*:')
_VIA_3 = re.compile(rb'"project"\s*:\s*\{[^{}]*"pid"\s*:|CSV_HEADER\s*=.*spatial_coordinates')
_METADATA = "_via_img_metadata"
_SHAPE, _ATTRIBUTES = "region_shape_attributes", "region_attributes"
_COLUMNS = ("filename", _SHAPE, _ATTRIBUTES)


def find(path: Location) -> Layout | None:
    """Return the set of an export, of a folder with exports, or with one in each of train/, val/ and test/.

    Raises:
        DataError: several files could be one list.
    """
    if path.is_file():
        return Layout.of_file("via", path, split_of(path.stem)) if _is_via(path) else None
    for folder in (path / "annotations", path / "Annotations", path):
        files, tables = _exports(folder)
        if files:
            lists = one_file_per_list(path, files, "exports of VIA")
            return Layout("via", root_of(folder), lists, evidence=_named(files, path), notes=_not_read(tables))
    lists, unread = dict[str, tuple[Location, ...]](), list[Location]()
    for split, names in SPLIT_FOLDERS.items():
        for folder in (path / name for name in names):
            files, tables = _exports(folder)
            if len(files) > 1 or (files and split in lists):
                several = _named([*lists.get(split, ()), *files], path)
                what = f"several exports of VIA could be the list `{split}`"
                raise DataError(f"{path}: {what}: {several}; give one of them")
            if files:
                lists[split] = (files[0],)
                unread += tables
    evidence = _named([file for files in lists.values() for file in files], path)
    return Layout("via", path, lists, evidence=evidence, notes=_not_read(unread)) if lists else None


def _exports(folder: Location) -> tuple[list[Location], list[Location]]:
    """Return the exports of a folder, json if there is one, else csv; and those in csv that are left out for json."""
    files, tables = ([file for file in first_files(folder, suffix) if _is_via(file)] for suffix in (".json", ".csv"))
    return (files, tables) if files else (tables, [])


def _named(files: Sequence[Location], path: Location) -> str:
    return ", ".join(relative_name(file, path) for file in files)


def _not_read(tables: Sequence[Location]) -> tuple[str, ...]:
    """Return notes on tables that are left out."""
    return tuple(f"{file}: not read, since there is a json of VIA; give the table itself to read it" for file in tables)


def _is_via(path: Location) -> bool:
    """Return whether a file is an export or a project of VIA, by its first and last bytes or its columns."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        start = read_start(path, _HEAD_BYTES)
        header = start.decode("utf-8-sig", errors="replace").partition("\n")[0]
        return set(_COLUMNS) <= set(_header(header.split(","))) or _VIA_3.search(start) is not None
    if suffix != ".json":
        return False
    text = read_ends(path, _HEAD_BYTES)
    is_list = all(key in text for key in _KEYS) and _OWN_KEY.search(text) is not None
    return is_list or any(pattern.search(text) for pattern in (_PROJECT, _VIA_3))


def _header(cells: Sequence[str]) -> list[str]:
    """Return the names of columns. VIA 1 writes `#` before the first."""
    return [cell.strip().strip('"').lstrip("#").lower() for cell in cells]


class _Region(NamedTuple):
    """A region with a box: its image, its place, the box x1, y1, x2, y2, and its attributes."""

    draft: Draft
    where: str
    box: list[float]
    attributes: dict[str, Any]


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images of exports. Without `names`, the classes are the values of an attribute of the regions, sorted.

    Raises:
        DataError: a file is of VIA 3, none of its images exists, or several attributes could be the class.
    """
    reading = Reading(corners_of_xyxy)
    drafts: dict[str, Draft] = {}
    regions: list[_Region] = []
    for source in sources:
        file = _ViaFile(source, reading, NamedImages(layout, usual_places(source.parent, layout.root)))
        (file.read_table if source.suffix.lower() == ".csv" else file.read_tree)()
        if file.drafts and not any(draft.path for draft in file.drafts.values()):
            first = next(iter(file.drafts.values()))
            raise DataError(f"{source}: none of its images exists. {first.faults[0][1]}")
        reading.count_more(source)
        regions += file.regions
        drafts = file.drafts | drafts
    reading.drafts = list(drafts.values())
    attribute = _class_attribute(regions, settings, sources)
    if attribute is None and regions and (names is None or UNNAMED in names):
        reading.notes.append(f"no region has an attribute, so all are of one class, `{UNNAMED}`")
        for region in regions:
            region.draft.add(region.where, reading.label(UNNAMED), region.box)
    else:
        for region in regions:
            name = _class(region, attribute)
            region.draft.add(region.where, None if name is None else reading.label(name), region.box)
    reading.settle(names)
    return reading


def _class_attribute(regions: Sequence[_Region], settings: Data, sources: Sequence[Location]) -> str | None:
    """Return the attribute that is the class: as set, else the only one that has values; None if none has.

    Raises:
        DataError: no region has the attribute that is set, or several have values.
    """
    counts = Counter(name for region in regions for name, value in region.attributes.items() if _values(value))
    chosen = settings.class_attribute
    where, found = ", ".join(map(str, sources)), counts.most_common(MAX_LISTED_CLASSES)
    shown_names = ", ".join(f"`{name:.80}` ({plural(count, 'region')})" for name, count in found)
    if chosen is not None:
        if regions and chosen not in counts:
            raise DataError(
                f"{where}: no region has the attribute data.class_attribute={chosen}; found {shown_names or 'none'}"
            )
        return chosen
    if len(counts) > 1:
        raise DataError(
            f"{where}: the regions have several attributes that could be the class: {shown_names}; "
            f"choose one, for example with data.class_attribute={found[0][0]:.80}"
        )
    return next(iter(counts), None)


def _values(value: object) -> list[str] | None:
    """Return the values of an attribute: a text, or the names of the boxes that are checked; None if it is neither."""
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, dict) and all(isinstance(flag, bool) for flag in value.values()):
        return [name for name, flag in value.items() if flag]
    return None


def _class(region: _Region, attribute: str | None) -> str | None:
    """Return the name of the class of a region; None, and a fault, if it has none or several."""
    value = region.attributes.get(attribute, "") if attribute is not None else ""
    values = _values(value)
    if values is not None and len(values) == 1:
        return values[0]
    if values:
        reason = f"several values of `{attribute}` are checked: {', '.join(values):.200}"
    elif values is None:
        reason = f"`{attribute}` must be a text or the state of check boxes; found {value!r:.50}"
    else:
        reason = f"the region has no {f'`{attribute}`' if attribute is not None else 'attribute'}, which is its class"
    region.draft.fault(region.where, reason)
    return None


@dataclass
class _ViaFile:
    """Reads one export.

    Attributes:
        drafts: the images, by name.
        regions: their regions that have a box.
    """

    path: Location
    reading: Reading
    images: NamedImages
    drafts: dict[str, Draft] = field(default_factory=dict)
    regions: list[_Region] = field(default_factory=list)

    def read_tree(self) -> None:
        """Read a json file.

        Raises:
            DataError: it is of VIA 3.
        """
        repeated: list[Fault] = []
        try:
            tree = load_json(self.path, MAX_VIA_BYTES, repeated)
        except MalformedJson as error:
            return self.reading.fault(error.where, str(error))
        for fault in repeated:
            self.reading.fault(self.path, fault.reason)
        if isinstance(tree, dict) and _METADATA not in tree and isinstance(tree.get("project"), dict):
            raise DataError(_refused(self.path))
        entries = tree.get(_METADATA, tree) if isinstance(tree, dict) else tree
        if not isinstance(entries, dict):
            return self.reading.fault(
                self.path, f"an object with an entry per image is expected; found {entries!r:.50}"
            )
        for key, entry in entries.items():
            where = f"{self.path}: {key}"
            name = entry.get("filename") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not name.strip():
                if not key.startswith("_via_"):
                    self.reading.fault(where, "an entry with the `filename` of an image is expected here")
                continue
            draft = self._draft(where, name.strip(), _folder(tree))
            for number, region in self._numbered(draft, where, entry.get("regions")):
                fields = region if isinstance(region, dict) else {}
                place = f"{where} regions[{number}]"
                self._add(draft, place, fields.get("shape_attributes"), fields.get("region_attributes"))
        return None

    def _numbered(self, draft: Draft, where: str, regions: object) -> Iterator[tuple[object, object]]:
        """Yield the regions of an image with their numbers: a list, or in VIA 1 an object."""
        if isinstance(regions, list):
            yield from enumerate(regions)
        elif isinstance(regions, dict):
            yield from regions.items()
        elif regions is not None:
            draft.fault(where, f"`regions` must be a list or an object; found {regions!r:.50}")

    def read_table(self) -> None:
        """Read a csv file.

        Raises:
            OSError, UnicodeDecodeError: the file is too large or not text.
            DataError: it is of VIA 3, or a column is missing.
        """
        text = read_text(self.path, MAX_CSV_BYTES)
        if _VIA_3.search(text[:_HEAD_BYTES].encode()):
            raise DataError(_refused(self.path))
        reader = csv.reader(io.StringIO(text, newline=""))
        known: dict[tuple[str, str], Draft] = {}
        header: list[str] | None = None
        try:
            for cells in reader:
                where = f"{self.path}:{reader.line_num}"
                if header is None:
                    header = _header(cells)
                    if missing := [name for name in _COLUMNS if name not in header]:
                        raise DataError(f"{where}: there is no column `{'`, `'.join(missing)}`")
                elif reader.line_num > MAX_TABLE_ROWS + 1:
                    reason = f"the table continues here, but only {MAX_TABLE_ROWS:,} lines are read"
                    return self.reading.fault(where, reason)
                elif len(cells) == len(header):
                    self._read_row(where, dict(zip(header, cells, strict=True)), known)
                elif cells:
                    mismatch = f"expected {len(header)} columns as in the header, found {len(cells)}"
                    self.reading.fault(where, f"{mismatch}: {', '.join(cells):.200}")
        except csv.Error as error:
            self.reading.fault(f"{self.path}:{reader.line_num}", f"malformed csv: {error}")
        return None

    def _read_row(self, where: str, row: Mapping[str, str], known: dict[tuple[str, str], Draft]) -> None:
        """Add the region of a row, if it has one. Images are `known` by their names and sizes in bytes."""
        name = row["filename"].strip()
        if not name:
            return self.reading.fault(where, "the filename is empty")
        key = name, row.get("file_size", "")
        if key not in known:
            known[key] = self._draft(where, name, "")
        shape, attributes = (_parsed(known[key], where, row, column) for column in (_SHAPE, _ATTRIBUTES))
        if shape != {} or attributes != {}:  # the row of an image without regions has neither
            self._add(known[key], where, shape, attributes)
        return None

    def _draft(self, where: str, name: str, folder: str) -> Draft:
        """Return the image of an entry, which is looked for in a folder that the project names, too."""
        draft = Draft(shown(name) if is_address(name) else name, name, None, source=where)
        self.images.find(draft, where, *dict.fromkeys((f"{folder}{name}", name)))
        draft.id = draft.path.stem if draft.path else draft.name
        if draft.name in self.drafts:
            first = self.drafts[draft.name]
            first.fault(where, f"image `{draft.name:.300}` has another entry, {first.source}; keep one of the two")
            return first
        self.drafts[draft.name] = draft
        return draft

    def _add(self, draft: Draft, where: str, shape: object, attributes: object) -> None:
        """Add a region, or its faults, to its image; a shape that no box encloses is counted."""
        if not isinstance(shape, dict) or not isinstance(attributes, dict):
            draft.fault(where, "a region needs the objects shape_attributes and region_attributes")
            return
        try:
            box = _box(self.reading, shape)
        except ValueError as error:
            draft.fault(where, str(error))
            return
        if box is not None:
            self.regions.append(_Region(draft, where, box, attributes))


def _refused(path: Location) -> str:
    """Return the message for a file of VIA 3."""
    return (
        f"{path}: this is a file of VIA 3, which is not read. Export the project as COCO and give that json, or label "
        "the images in VIA 2, whose json, csv and projects are read"
    )


def _folder(tree: Mapping[str, Any]) -> str:
    """Return what a project writes before the names of its images; an empty text if it writes nothing."""
    below: Any = tree
    for key in ("_via_settings", "core", "default_filepath"):
        below = below.get(key) if isinstance(below, dict) else None
    return below if isinstance(below, str) else ""


def _parsed(draft: Draft, where: str, row: Mapping[str, str], column: str) -> object:
    """Return the object in a cell; None, and a fault, if it is not JSON."""
    try:
        return json.loads(row[column] or "{}")
    except (ValueError, RecursionError) as error:
        draft.fault(where, f"{column} is not JSON ({error}): {row[column]:.100}")
        return None


def _box(reading: Reading, shape: Mapping[str, Any]) -> list[float] | None:
    """Return the x1, y1, x2, y2 of the box that encloses a shape; None if none does, and the shape is counted.

    Raises:
        ValueError: the shape is faulty. The message gives the reason.
    """
    kind = shape.get("name")
    if kind == "rect":
        x, y, width, height = _numbers(shape, "x", "y", "width", "height")
        return [x, y, x + width, y + height]
    if kind == "circle":
        x, y, radius = _numbers(shape, "cx", "cy", "r")
        _check_radii(kind, radius)
        return reading.enclose(kind, ellipse(x, y, radius, radius))
    if kind == "ellipse":
        turned = {"theta": 0, **shape}  # versions before 2.0.6 had no theta, radians
        x, y, width, height, angle = _numbers(turned, "cx", "cy", "rx", "ry", "theta")
        _check_radii(kind, width, height)
        return reading.enclose(kind, ellipse(x, y, width, height, angle))
    if kind in ("polygon", "polyline"):
        return _line(reading, kind, shape)
    if kind == "point":
        reading.left_out[kind] += 1
        return None
    raise ValueError(f"unknown shape {kind!r:.50}; expected rect, circle, ellipse, polygon, polyline or point")


def _line(reading: Reading, kind: str, shape: Mapping[str, Any]) -> list[float] | None:
    """Return the box of a polygon, or of a polyline that ends where it begins. Other polylines are counted."""
    x, y = finite(shape.get("all_points_x")), finite(shape.get("all_points_y"))
    if x is None or y is None or len(x) != len(y):
        raise ValueError(f"a shape `{kind}` needs lists of as many finite numbers, all_points_x and all_points_y")
    if kind == "polyline" and (len(x) < 4 or (x[0], y[0]) != (x[-1], y[-1])):
        reading.left_out["open polyline"] += 1
        return None
    if len(x) < 3:
        raise ValueError(f"a shape `polygon` has at least three points; found {len(x)}")
    points = [number for point in zip(x, y, strict=True) for number in point]
    return reading.enclose("closed polyline" if kind == "polyline" else kind, points)


def _numbers(shape: Mapping[str, Any], *names: str) -> list[float]:
    """Return some numbers of a shape.

    Raises:
        ValueError: one is missing, or is not a finite number.
    """
    values = [shape.get(name) for name in names]
    numbers = finite(values)
    if numbers is None:
        found = ", ".join(f"{value!r:.30}" for value in values)
        raise ValueError(f"a shape `{shape['name']}` needs the finite numbers {', '.join(names)}; found {found}")
    return numbers


def _check_radii(kind: str, *radii: float) -> None:
    """Check the radii of a shape.

    Raises:
        ValueError: one is negative.
    """
    if min(radii) < 0:
        raise ValueError(f"a shape `{kind}` has a negative radius: {min(radii):g}")
