"""Recognise Pascal VOC by its folders: which holds the xml files, whatever its name, and which the images."""

import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from rcnn.config.files import check_regular
from rcnn.data.formats.draft import Layout
from rcnn.data.formats.folders import Folder, is_file
from rcnn.errors import DataError
from rcnn.images.sources import is_image, is_results

SPLIT_FOLDERS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
_LISTS = ("train", "val", "trainval", "test")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", ".")
_HEAD, _LOOKED_AT = 4096, 20
"""Bytes of an xml file, and files of a folder, that are looked at to recognise annotations."""


def find(path: Path) -> Layout | None:
    """Return the VOC data set at a folder: VOCdevkit, VOC2007, its annotations, split folders, or xml next to images.

    A folder of annotations is `Annotations`, or any beside images that holds xml files with `<annotation>`. The splits
    may be folders in it: `annotations/train` with `images/train`.

    Raises:
        DataError: the folder holds several data sets.
    """
    if not path.is_dir():
        return None
    has_xml = _has_xml(path)
    if has_xml and not _has_images(path) and sibling_images(path) is not None:
        return _layout(path.parent, path)
    inner = _folders(path)
    splits = {split: _split_folder(path, names) or _below(inner, names) for split, names in SPLIT_FOLDERS.items()}
    lists = {split: (folder,) for split, folder in splits.items() if folder is not None}
    if any(folder.parent == path and _images_above(folder) for (folder,) in lists.values()):
        path = path.parent  # the folder of annotations was given
    annotations = _annotation_folder(path)
    if annotations is None and not lists:
        sets = [(child, found) for child in _folders(path) if (found := _annotation_folder(child)) is not None]
        if len(sets) > 1:
            names = ", ".join(str(child) for child, _ in sets)
            raise DataError(f"{path}: several VOC data sets are here: {names}; give one of them")
        path, annotations = sets[0] if sets else (path, None)
    if annotations is not None:
        return _layout(path, annotations)
    if lists:
        named = "/, ".join(str(folder.relative_to(path)) for (folder,) in lists.values())
        return Layout("voc", path, lists, evidence=f"{named}/ with *.xml")
    return Layout("voc", path, {"all": (path,)}, evidence="*.xml") if has_xml else None


def _layout(root: Path, annotations: Path) -> Layout:
    """Return the data set of a folder of annotations, with the lists of ImageSets/Main if there are any."""
    files = {name: root / "ImageSets" / "Main" / f"{name}.txt" for name in _LISTS}
    lists = {name: (file,) for name, file in files.items() if file.is_file()}
    evidence = f"{annotations.name}/*.xml"
    return Layout("voc", root, lists or {"all": (annotations,)}, evidence=evidence, annotations=annotations)


def _annotation_folder(path: Path) -> Path | None:
    """Return the folder of the annotations in a folder: `Annotations`, else another one beside images.

    Raises:
        DataError: there are several.
    """
    if _has_xml(path / "Annotations"):
        return path / "Annotations"
    if _has_xml(path):  # next to the images, which may have other sets below them
        return None
    folders = [folder for folder in _folders(path) if not _is_split(folder) and _has_annotations(folder)]
    beside = [folder for folder in folders if _has_images(path) or sibling_images(folder) is not None]
    chosen = [folder for folder in beside if folder.name.lower() == "annotations"] or beside
    if len(chosen) > 1:
        names = ", ".join(map(str, chosen))
        raise DataError(f"{path}: several folders here hold xml annotations: {names}; give one of them")
    return chosen[0] if chosen else None


def _folders(path: Path) -> list[Path]:
    """Return the folders in a folder that may be part of a data set; none if it can't be read."""
    try:
        with os.scandir(path) as entries:  # of a hundred thousand images, `Path` would take seconds
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return [path / name for name in names if not is_results(path / name)]


def _is_split(folder: Path) -> bool:
    return any(folder.name in names for names in SPLIT_FOLDERS.values())


def _has_xml(folder: Path) -> bool:
    return _has(folder, lambda entry: entry.name.lower().endswith(".xml"))


def _has_images(folder: Path) -> bool:
    return _has(folder, lambda entry: is_image(entry.name) and not entry.name.startswith(".") and is_file(entry))


def _has(folder: Path, fits: Callable[["os.DirEntry[str]"], bool]) -> bool:
    """Whether a folder holds something that fits, which is looked for no further than to the first."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(map(fits, entries))


def _has_annotations(folder: Path) -> bool:
    """Whether one of the first xml files of a folder that is named by nothing known looks like an annotation."""
    try:
        names = (name for name in Folder(folder).names if name.lower().endswith(".xml"))
        return any(_looks_like_annotation(folder / name) for name in islice(names, _LOOKED_AT))
    except OSError:
        return False


def _looks_like_annotation(xml: Path) -> bool:
    check_regular(xml)
    with xml.open("rb") as file:
        return b"<annotation" in file.read(_HEAD).replace(b"\0", b"")  # UTF-16 too


def sibling_images(annotations: Path) -> Path | None:
    """Return the folder beside that of the annotations that holds their images: a usual one, or one of their names."""
    usual = (annotations.parent / name for name in _IMAGE_FOLDERS)
    if known := next(filter(_has_images, usual), None) or _images_above(annotations):
        return known
    stems = (os.path.splitext(name)[0] for name in Folder(annotations).names if name.lower().endswith(".xml"))
    wanted = list(islice(stems, _LOOKED_AT))
    siblings = (Folder(path) for path in _folders(annotations.parent) if path != annotations)
    return next((folder.path for folder in siblings if any(map(folder.images, wanted))), None)


def _images_above(annotations: Path) -> Path | None:
    """Return `images/train` for `annotations/train`, which may also be called otherwise, if it holds images."""
    above = (annotations.parent.parent / name / annotations.name for name in _IMAGE_FOLDERS if name != ".")
    return next(filter(_has_images, above), None)


def _below(inner: Sequence[Path], names: Sequence[str]) -> Path | None:
    """Return a split's folder of xml files in a folder of annotations, `annotations/train`, if images lie alike."""
    folders = (folder / name for folder in inner for name in names)
    return next((folder for folder in folders if _has_xml(folder) and _images_above(folder)), None)


def _split_folder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the folder of a split's xml files."""
    folders = (root / name / inner for name in names for inner in (".", "Annotations", "annotations"))
    return next(filter(_has_xml, folders), None)
