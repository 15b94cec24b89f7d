"""Find, read and write Pascal VOC: an xml per image, with lists in ImageSets/Main or next to the images."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from rcnn.config import Data
from rcnn.data.dataset import Dataset, Fault
from rcnn.data.formats.beside import (
    SPLIT_FOLDERS,
    first_files,
    folders_in,
    has_images,
    images_above,
    sibling_images,
)
from rcnn.data.formats.draft import Draft, Layout, Reading, relative_name, unknown_class
from rcnn.data.formats.folders import (
    Folder,
    Folders,
    cached_folders,
    copy_images,
    lost_classes,
    read_lines,
    write_text,
)
from rcnn.data.formats.xml_tree import MAX_XML_BYTES, MalformedXml, Node, is_cvat, parse_xml
from rcnn.errors import DataError
from rcnn.images.sources import is_image
from rcnn.images.storage import Location, read_bytes, read_start, slashed

_LISTS = ("train", "val", "trainval", "test")
_SUFFIX = ".xml"
_HEAD_BYTES = 4096
"""Number of bytes per xml file that are inspected to recognise annotations."""


def find(path: Location) -> Layout | None:
    """Return the VOC data set at a folder: VOCdevkit, VOC2007, its annotations, split folders, or xml next to images.

    A folder of annotations is `Annotations`, or any folder beside images that holds xml files with `<annotation>`. It
    may contain a folder per split: `annotations/train` with `images/train`.

    Raises:
        DataError: the folder holds several data sets.
    """
    if not path.is_dir():
        return None
    has_xml = _has_xml(path)
    if has_xml and not has_images(path) and sibling_images(path, _SUFFIX) is not None:
        return _layout(path.parent, path)
    inner, lists = folders_in(path), dict[str, tuple[Location, ...]]()
    for split, names in SPLIT_FOLDERS.items():
        usual = (path / name / below for name in names for below in (".", "Annotations", "annotations"))
        with_images = filter(images_above, filter(_has_xml, (folder / name for folder in inner for name in names)))
        if found := next(chain(filter(_has_xml, usual), with_images), None):
            lists[split] = (found,)
    if any(folder.parent == path and images_above(folder) for (folder,) in lists.values()):
        path = path.parent  # the folder of annotations was given
    annotations = _annotation_folder(path)
    if annotations is None and not lists:
        sets = [(child, found) for child in folders_in(path) if (found := _annotation_folder(child)) is not None]
        if len(sets) > 1:
            names = ", ".join(str(child) for child, _ in sets)
            raise DataError(f"{path}: several VOC data sets are here: {names}; give one of them")
        path, annotations = sets[0] if sets else (path, None)
    if annotations is not None:
        return _layout(path, annotations)
    if lists:
        named = "/, ".join(relative_name(folder, path) for (folder,) in lists.values())
        return Layout("voc", path, lists, evidence=f"{named}/ with *.xml")
    return Layout("voc", path, {"all": (path,)}, evidence="*.xml") if has_xml else None


def _layout(root: Location, annotations: Location) -> Layout:
    """Return the data set of a folder of annotations, with the lists of ImageSets/Main if there are any."""
    files = {name: root / "ImageSets" / "Main" / f"{name}.txt" for name in _LISTS}
    lists = {name: (file,) for name, file in files.items() if file.is_file()}
    evidence = f"{annotations.name}/*.xml"
    return Layout("voc", root, lists or {"all": (annotations,)}, evidence=evidence, annotations=annotations)


def _annotation_folder(path: Location) -> Location | None:
    """Return the folder of annotations in a folder: `Annotations`, or else another one beside images.

    Raises:
        DataError: there are several.
    """
    if _has_xml(path / "Annotations"):
        return path / "Annotations"
    if _has_xml(path):  # next to the images, which may have other sets below them
        return None
    splits = {name for names in SPLIT_FOLDERS.values() for name in names}
    folders = [folder for folder in folders_in(path) if folder.name not in splits and _has_annotations(folder)]
    beside = [folder for folder in folders if has_images(path) or sibling_images(folder, _SUFFIX) is not None]
    chosen = [folder for folder in beside if folder.name.lower() == "annotations"] or beside
    if len(chosen) > 1:
        names = ", ".join(map(str, chosen))
        raise DataError(f"{path}: several folders here hold xml annotations: {names}; give one of them")
    return chosen[0] if chosen else None


def _has_xml(folder: Location) -> bool:
    """Return whether one of the first xml files of a folder is not CVAT's, which has the labels of all images in it."""
    return not all(map(is_cvat, first_files(folder, _SUFFIX)))


def _has_annotations(folder: Location) -> bool:
    """Return whether one of the first xml files of a folder looks like an annotation; the folder has any name."""
    try:
        return any(_looks_like_annotation(file) for file in first_files(folder, _SUFFIX) if not is_cvat(file))
    except OSError:
        return False


def _looks_like_annotation(xml: Location) -> bool:
    return b"<annotation" in read_start(xml, _HEAD_BYTES).replace(b"\0", b"")  # UTF-16 too


_PARENTS = ("size", "object", "bndbox")
_ONCE = {"filename", "size", "width", "height", "name", "bndbox", "difficult", "xmin", "ymin", "xmax", "ymax"}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_MIN_SIDE = 0.01  # pixels
_BELOW_ONE = re.compile(rb"<(?:\w+:)?[xy]min>\s*\+?0*(?:0|0?\.\d*)\s*</")
_FLAG = re.compile(r"\s+-?[01]$")


class _Annotated(NamedTuple):
    """An annotated image: the place that names it, its stem, its xml file, and the folders of the xml and the image."""

    where: str
    stem: str
    xml: Location
    annotations: Folder
    images: Folder


_Object = tuple[Draft, Location, Node]
"""An <object>: its image, the xml file, and the element."""


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images of lists or folders of xml files. Without `names`, the classes are those that occur, sorted."""
    reading = Reading(_corners)
    folders = cached_folders(layout.home or layout.root)
    objects: list[_Object] = []
    drafts: dict[Location, Draft] = {}
    for source in sources:
        here: set[Location] = set()
        for entry in _entries(source, layout.annotations or layout.root, folders, reading):
            if entry.xml in here:
                drafts[entry.xml].fault(entry.where, f"image `{entry.stem}` is listed twice; keep one of the two")
            here.add(entry.xml)
            if entry.xml not in drafts:
                drafts[entry.xml] = _read_image(entry, layout.root, objects)
    reading.drafts = list(drafts.values())
    reading.corners = partial(_corners, origin=_origin(layout, settings, reading))
    labels = reading.label_classes(sorted({node.value("name") for _, _, node in objects} - {""}), names)
    for draft, xml, node in objects:
        _add_row(draft, xml, node, labels)
    return reading


def _origin(layout: Layout, settings: Data, reading: Reading) -> int:
    """Return the coordinate of the first pixel: as set, else 1 unless an xmin or ymin anywhere in the data is 0."""
    if settings.voc_origin != "auto":
        return settings.voc_origin
    sources = {source for sources in layout.lists.values() for source in sources}
    folders = {source if source.is_dir() else layout.annotations or layout.root for source in sources}
    for xml in (xml for folder in sorted(folders) for xml in sorted(folder.glob("*.[xX][mM][lL]"))):
        try:
            content = read_bytes(xml, MAX_XML_BYTES)
        except OSError:  # reported when it is read
            continue
        if _BELOW_ONE.search(content):
            reading.notes.append(f"boxes are read as 0-based, since there is an xmin or ymin of 0 (in {xml.name})")
            return 0
    return 1


def _entries(source: Location, listed: Location, folders: Folders, reading: Reading) -> Iterator[_Annotated]:
    """Yield the images that a list names, with xml files in the folder `listed`, or those of a folder of xml files."""
    if source.is_dir():
        annotations, images = folders(source), _image_folder(source, folders)
        stems = {os.path.splitext(name)[0]: name for name in folders(source).names if name.lower().endswith(".xml")}
        for stem, name in stems.items():
            yield _Annotated(str(source / name), stem, source / name, annotations, images)
        for name in filter(is_image, images.names):
            if not folders(source).find(os.path.splitext(name)[0] + ".xml"):
                reason = "there is no xml of this image; left out (an xml without objects makes it a background image)"
                reading.faults.append(Fault(str(images.path / name), reason, "mendable"))
        return
    annotations = folders(listed)
    images = _image_folder(annotations.path, folders)
    for line, text in read_lines(source):
        stem = _listed_stem(text, annotations, images)
        file = next(iter(annotations.find(f"{stem}.xml")), f"{stem}.xml")
        yield _Annotated(f"{source}:{line}", stem, annotations.path / file, annotations, images)


def _image_folder(annotations: Location, folders: Folders) -> Folder:
    """Return the folder of the images: that of the xml files, or one next to it."""
    if any(map(is_image, folders(annotations).names)):
        return folders(annotations)
    return folders(sibling_images(annotations, _SUFFIX) or annotations)


def _base(text: str) -> str:
    """Return the last part of a path with slashes of either kind."""
    return slashed(text).rsplit("/", 1)[-1]


def _listed_stem(text: str, annotations: Folder, images: Folder) -> str:
    """Return the stem in a line: `name`, `name 1` (a flag of the class lists), `name.jpg` or `folder/name.jpg`."""
    base = _base(text)
    choices = []
    for choice in (base, _FLAG.sub("", base)):
        choices += [choice, os.path.splitext(choice)[0]] if is_image(choice) else [choice]
    there = (choice for choice in choices if annotations.find(f"{choice}.xml") or images.images(choice))
    return next(there, choices[-1])


def _read_image(entry: _Annotated, root: Location, objects: list[_Object]) -> Draft:
    """Read the image of an entry without its boxes, and append its <object>s to `objects`."""
    node, broken = None, None
    if entry.annotations.find(entry.xml.name):
        try:
            node = parse_xml(entry.xml)
        except MalformedXml as error:
            broken = f"{entry.xml}:{error.line}", str(error)
    else:
        near = entry.annotations.near(entry.xml.name)
        broken = entry.where, f"there is no {relative_name(entry.xml, root)}{near}"
    by_stem = entry.images.images(entry.stem)
    names = by_stem or (entry.images.find(_base(node.value("filename"))) if node else [])
    draft = Draft(relative_name(entry.images.path / (names or [entry.stem])[0], root), entry.stem, None)
    if broken:
        draft.fault(*broken)
    folder = entry.images.path
    if not names:
        near = entry.images.near(f"{entry.stem}.jpg")
        draft.fault(entry.where, f"there is no image `{entry.stem}` in {folder}{near}")
    elif len(names) > 1:
        draft.fault(entry.where, f"two images with this name in {folder}: {', '.join(names)}; keep one")
    else:
        draft.path = folder / names[0]
    stems = {entry.stem, entry.xml.stem, *(os.path.splitext(name)[0] for name in by_stem)}
    if len(stems) > 1:
        reason = f"names differ in case, taken to be the same: {', '.join(sorted(stems))}"
        draft.fault(entry.where, reason, "mendable")
    if node is not None:
        _check_repeated(node, entry.xml, draft)
        _read_size(node, entry.xml, draft)
        objects += [(draft, entry.xml, child) for child in node.children if child.tag == "object"]
    return draft


def _check_repeated(node: Node, xml: Location, draft: Draft) -> None:
    """Add faults for tags that occur twice in an element though only one is read."""
    first: dict[str, Node] = {}
    for child in node.children:
        earlier = first.setdefault(child.tag, child)
        if earlier is not child and child.tag in _ONCE:
            same = _content(earlier) == _content(child)
            reason = f"<{child.tag}> occurs twice, first on line {earlier.line}"
            reason += "" if same else ", with different content; keep one of the two"
            draft.fault(f"{xml}:{child.line}", reason, "mendable" if same else "fatal")
    for child in node.children:
        if child.children and child.tag in _PARENTS:
            _check_repeated(child, xml, draft)


def _content(node: Node) -> Any:
    """Return the content of an element, without its line numbers and layout."""
    return node.tag, node.text.strip(), [_content(child) for child in node.children]


def _read_size(root: Node, xml: Location, draft: Draft) -> None:
    """Read the declared size; zeros and a missing <size> declare none."""
    size = root.get("size")
    if size is None:
        return
    draft.source = f"{xml}:{size.line}"
    try:
        height, width = (int(float(size.value(tag, "0"))) for tag in ("height", "width"))
        draft.declared = (height, width) if height > 0 and width > 0 else None
    except (ValueError, OverflowError):
        draft.fault(draft.source, "width and height in <size> must be numbers")


def _add_row(draft: Draft, xml: Location, node: Node, labels: Mapping[str, int]) -> None:
    """Add an <object>, or its faults, to its image."""
    name = node.value("name")
    label = labels.get(name)
    if label is None:
        reason = unknown_class(name, list(labels), draft) if name else "an object has no name"
        draft.fault(f"{xml}:{(node.get('name') or node).line}", reason)
    corners = node.get("bndbox")
    if corners is None:
        draft.fault(f"{xml}:{node.line}", f"object `{name}` has no <bndbox>")
        return
    try:
        numbers = [float(corners.value(tag)) for tag in _CORNERS]
    except ValueError:
        draft.fault(f"{xml}:{corners.line}", "<bndbox> must hold the numbers xmin, ymin, xmax, ymax")
        return
    difficult = node.value("difficult", "0")
    if difficult.lower() not in ("0", "1", "", "false", "true", "unspecified"):
        draft.fault(f"{xml}:{node.line}", f"<difficult> is `{difficult}`; expected 0 or 1")
    draft.add(f"{xml}:{corners.line}", label, numbers, ignore=difficult.lower() in ("1", "true"))


def _corners(numbers: np.ndarray, origin: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Convert (n, 4) xmin, ymin, xmax, ymax, counted from `origin`, to (n, 4) xyxy and (n,) bool: no size."""
    low, high = numbers[:, :2], numbers[:, 2:]
    # With the origin subtracted, integers inverted by 1 would look like a box without size.
    inverted = (numbers == np.rint(numbers)).all(axis=1) & (high < low).any(axis=1)
    return np.concatenate((low - np.where(inverted, 0, origin)[:, None], high), axis=1), (low == high).any(axis=1)


def labels_text(
    image: Path,
    size: tuple[int, int],
    names: Sequence[str],
    boxes: np.ndarray,
    labels: np.ndarray,
    ignore: np.ndarray | None = None,
    digits: int | None = None,
) -> str:
    """Return the annotation of an image. The first pixel is 1 and the last one belongs to the box; fractions are kept.

    A side of exactly 1 pixel would have xmin = xmax, which readers take for no size, so it is written as 1.01 pixels; a
    side of less than 0.01 is written as 0.01. A side under 1 pixel has its xmin above its xmax.

    Args:
        image: the image file, whose folder and name are written.
        size: (height, width) in pixels.
        names: (K,) class names.
        boxes: (n, 4) continuous xyxy in pixels.
        labels: (n,) index into `names`.
        ignore: (n,) bool, which boxes are difficult; None: none.
        digits: decimals of pixels; None writes all digits.
    """
    height, width = size
    lines = ["<annotation>", f"\t<folder>{escape(image.parent.name)}</folder>"]
    lines += [f"\t<filename>{escape(image.name)}</filename>"]
    lines += [f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"]
    corners = boxes.astype(np.float64) + (1, 1, 0, 0)
    low, high = np.split(corners if digits is None else corners.round(digits), 2, axis=1)
    high = np.maximum(high, low - 1 + _MIN_SIDE)
    high = np.where(low == high, high + _MIN_SIDE, high)
    difficult = np.zeros(len(boxes), bool) if ignore is None else ignore
    rows = np.concatenate((low, high), axis=1).tolist()
    for row, label, hard in zip(rows, labels.tolist(), difficult.tolist(), strict=True):
        texts = (repr(value if digits is None else round(value, digits)).removesuffix(".0") for value in row)
        box = "".join(f"<{tag}>{text}</{tag}>" for tag, text in zip(_CORNERS, texts, strict=True))
        lines += ["\t<object>", f"\t\t<name>{escape(names[int(label)])}</name>"]
        lines += ["\t\t<pose>Unspecified</pose>", "\t\t<truncated>0</truncated>"]
        lines += [f"\t\t<difficult>{int(hard)}</difficult>", f"\t\t<bndbox>{box}</bndbox>", "\t</object>"]
    return "\n".join([*lines, "</annotation>", ""])


def write(datasets: Sequence[Dataset], out: Path, names: Mapping[Location, str]) -> list[str]:
    """Write JPEGImages, Annotations and, if there are lists, ImageSets/Main. Return remarks on what VOC can't hold.

    `names` maps each image to its new file name.
    """
    thin = 0
    for dataset in datasets:
        copy_images(dataset.records, out / "JPEGImages", names)
        stems = [os.path.splitext(names[record.path])[0] for record in dataset.records]
        for stem, record in zip(stems, dataset.records, strict=True):
            image = Path("JPEGImages", names[record.path])
            text = labels_text(image, record.size, dataset.names, record.boxes, record.labels, record.ignore)
            write_text(out / "Annotations" / f"{stem}.xml", text)
            thin += int((record.boxes[:, :2] + 1 == record.boxes[:, 2:]).any(axis=1).sum())
        if dataset.split != "all":
            write_text(out / "ImageSets" / "Main" / f"{dataset.split}.txt", "".join(f"{stem}\n" for stem in stems))
    remark = f"{thin} boxes have a side of exactly 1 pixel, which VOC can't tell from no size: 1.01 is written"
    return [*([remark] if thin else []), *lost_classes(datasets, "VOC")]
