"""COCO detection json: one file a list, images beside it or in the usual folders."""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcnn.config import Data
from rcnn.data.dataset import DataError, Fault
from rcnn.data.draft import Draft, Layout, Reading, Row, relative_name, unknown_class
from rcnn.data.folders import Folders
from rcnn.data.json_array import JsonFault, Located, read_arrays

_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
_SPLIT = re.compile(r"(?<![a-z])(trainval|train|validation|valid|val|test)(?![a-z])")
_HEAD = 1 << 20


def find(path: Path) -> Layout | None:
    """The COCO data set at a json file, or at a folder with annotations/*.json, *.json or train/_annotations.coco.json.

    Raises:
        DataError: several files could be one list.
    """
    if path.is_file():
        if path.suffix.lower() != ".json":
            return None
        return Layout("coco", _root(path), _lists_of_file(path), found=path.name)
    for folder in (path / "annotations", path / "Annotations", path):
        files = [file for file in sorted(folder.glob("*.json")) if _is_coco(file)]
        if files:
            return Layout("coco", path, _lists(files), found=", ".join(relative_name(file, path) for file in files))
    files = [file for name in ("train", "valid", "val", "test") for file in sorted((path / name).glob("*.json"))]
    lists = {_split_of(file.parent.name): (file,) for file in files if _is_coco(file)}
    return Layout("coco", path, lists, found=", ".join(relative_name(file, path) for file in files)) if lists else None


def _is_coco(path: Path) -> bool:
    """Whether a json file looks like COCO detection, by its name and its beginning or end."""
    if path.name.startswith(_OTHER_TASKS):
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, path.stat().st_size - _HEAD))
        text = head + file.read()
    return any(key in text for key in (b'"images"', b'"annotations"', b'"categories"'))


def _root(path: Path) -> Path:
    """The data set's folder: the one above `annotations`, else the file's own."""
    return path.parent.parent if path.parent.name.lower() == "annotations" else path.parent


def _split_of(stem: str) -> str:
    """train, val, trainval, test or all, by the name of a list."""
    found = _SPLIT.findall(stem.lower())
    return "all" if not found else "val" if found[-1] in ("valid", "validation") else found[-1]


def _lists_of_file(path: Path) -> dict[str, tuple[Path, ...]]:
    """One file alone: a list to evaluate on serves as val and as test."""
    split = _split_of(path.stem)
    return dict.fromkeys(("val", "test") if split in ("val", "test") else (split,), (path,))


def _lists(files: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """The list that each file is; instances_*.json wins over others of the same list."""
    lists: dict[str, list[Path]] = {}
    for file in files:
        lists.setdefault(_split_of(file.stem), []).append(file)
    for split, several in lists.items():
        lists[split] = [file for file in several if file.name.startswith("instances")] or several
        if len(lists[split]) > 1:
            names = ", ".join(file.name for file in lists[split])
            what = f"the `{split}` list" if split != "all" else "the list"
            raise DataError(f"{files[0].parent}: several json files could be {what}: {names}; give one of them")
    return {split: tuple(lists[split]) for split in ("train", "val", "trainval", "test", "all") if split in lists}


def read(layout: Layout, sources: Sequence[Path], names: Sequence[str] | None, settings: Data) -> Reading:
    """The images of json files. Without `names`, classes are the categories of the first file, by id."""
    reading = Reading(tuple(names or ()))
    for source in sources:
        try:
            arrays = read_arrays(source, ("images", "annotations", "categories"))
        except JsonFault as error:
            reading.faults.append(Fault(error.where, error.reason, "fatal"))
            continue
        _File(source, layout, reading).read(arrays, given=names is not None or source != sources[0])
    if names is None and reading.category_ids != tuple(range(1, len(reading.names) + 1)):
        ids = ", ".join(f"{number} {name}" for number, name in zip(reading.category_ids, reading.names, strict=True))
        reading.notes.append(f"category ids become labels 0 to {len(reading.names) - 1} in this order: {ids}")
    return reading


@dataclass
class _File:
    """One json file on its way into a reading."""

    path: Path
    layout: Layout
    reading: Reading

    def read(self, arrays: dict[str, list[Located]], given: bool) -> None:
        """Add the file's images; classes are its own unless they are given."""
        categories = self._categories(arrays["categories"])
        own = {name: number for number, name in categories.items()}
        self.reading.own = tuple(dict.fromkeys((*self.reading.own, *categories.values())))
        if not given:
            self.reading.names = self.reading.own
        if not self.reading.category_ids:
            free = iter(number for number in range(1, 10**9) if number not in categories)
            ids = (own[name] if name in own else next(free) for name in self.reading.names)
            self.reading.category_ids = tuple(ids)
        drafts = self._images(arrays["images"])
        by_name = {draft.name: draft for draft in drafts.values()}
        labels = {name: label for label, name in enumerate(self.reading.names)}
        for item in arrays["annotations"]:
            self._add_row(item, drafts, categories, labels)
        known = {draft.name for draft in self.reading.drafts}
        self.reading.drafts += [draft for name, draft in by_name.items() if name not in known]

    def _fault(self, item: Located, reason: str) -> None:
        self.reading.faults.append(Fault(item.where, reason, "fatal"))

    def _categories(self, items: list[Located]) -> dict[int, str]:
        """Names by id, in the order of ids."""
        names: dict[int, str] = {}
        for item in items:
            number, name = item.get("id"), item.get("name")
            if not _is_int(number) or not isinstance(name, str) or not name:
                self._fault(item, "a category needs a whole number as id and a name")
            elif number in names:
                self._fault(item, f"two categories of id {number}: `{names[number]}` and `{name}`")
            elif name in names.values():
                self._fault(item, f"two categories of the name `{name}`")
            else:
                names[number] = name
        return dict(sorted(names.items()))

    def _images(self, items: list[Located]) -> dict[Any, Draft]:
        """Images by id."""
        drafts: dict[Any, Draft] = {}
        by_name: dict[str, Draft] = {}
        finder = _ImageFinder(self.path, self.layout.root)
        for item in items:
            number, file_name = item.get("id"), item.get("file_name")
            if not isinstance(number, int | str) or not isinstance(file_name, str) or not file_name:
                self._fault(item, "an image needs an id and a file_name")
                continue
            draft = Draft(file_name, number, None, source=item.where)
            finder.find(file_name, draft)
            if number in drafts:
                reason = f"two images of id {number}: `{drafts[number].name}` and `{draft.name}`"
                drafts[number].fatal(item.where, reason)
                continue
            if draft.name in by_name:
                reason = f"two images of the name `{draft.name}`: ids {by_name[draft.name].id} and {number}"
                by_name[draft.name].fatal(item.where, reason)
            drafts[number] = by_name.setdefault(draft.name, draft)
            height, width = item.get("height"), item.get("width")
            if _is_int(height) and _is_int(width) and height > 0 and width > 0:
                draft.declared = (height, width)
        if drafts and not any(draft.path for draft in drafts.values()):
            first = next(iter(drafts.values()))
            raise DataError(f"{self.path}: none of its images is there. {first.found[0][1]}")
        return drafts

    def _add_row(
        self, item: Located, drafts: dict[Any, Draft], categories: dict[int, str], labels: dict[str, int]
    ) -> None:
        """Add an annotation to its image, or note its faults."""
        number = item.get("image_id")
        draft = drafts.get(number) if isinstance(number, int | str) else None
        if draft is None:
            return self._fault(item, f"the annotation's image_id {number!r} is no image of this file")
        category = item.get("category_id")
        name = categories.get(category) if _is_int(category) else None
        if name is None:
            known = ", ".join(f"{key} {value}" for key, value in categories.items())
            draft.fatal(item.where, f"category_id {category!r} is not among the categories {known}")
        elif name not in labels:
            draft.fatal(item.where, unknown_class(name, list(labels)))
        box = item.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            return draft.fatal(item.where, f"bbox must be four numbers x, y, width, height; found {box!r}")
        x, y, width, height = given = _number(box[0]), _number(box[1]), _number(box[2]), _number(box[3])
        ignore = bool(item.get("iscrowd", 0) or item.get("ignore", 0))
        corners = (x, y, x + width, y + height)
        draft.rows.append(Row(item.where, labels.get(name or ""), given, corners, width == 0 or height == 0, ignore))
        return None


class _ImageFinder:
    """Finds images by their file_name in the places where COCO sets keep them."""

    def __init__(self, json_file: Path, root: Path) -> None:
        self._folders = Folders()
        self._root = root
        word = re.sub(r"^instances_", "", json_file.stem)
        here = json_file.parent
        inner = [".", word, f"{word}2017", f"{word}2014", "images", f"images/{word}", f"images/{word}2017"]
        inner += [f"images/{_split_of(word)}", _split_of(word), "JPEGImages", "train2017", "val2017", "imgs", "data"]
        places = [base / name for base in dict.fromkeys((here, root)) for name in inner]
        self.places = [place for place in dict.fromkeys(map(_plain, places)) if place.is_dir()]

    def find(self, file_name: str, draft: Draft) -> None:
        """Set the draft's path and name, or note that the image is missing."""
        file_name = file_name.replace("\\", "/")
        relaxed: tuple[Path, list[str]] | None = None
        for place in self.places:
            wanted = _plain(place / file_name)
            found = self._folders[wanted.parent].find(wanted.name)
            if wanted.name in found:
                return self._set(draft, wanted, place)
            relaxed = relaxed or ((wanted, found) if found else None)
        if relaxed is None:
            draft.fatal(draft.source, f"image `{file_name}` is missing; {self._tried(file_name)}")
            return None
        wanted, found = relaxed
        if len(found) > 1:
            draft.fatal(draft.source, f"image `{file_name}` is missing; several differ from it in case: {found}")
            return None
        draft.mendable(draft.source, f"names differ in case, taken to be the same: {wanted.name}, {found[0]}")
        return self._set(draft, wanted.with_name(found[0]), self.places[0])

    def _set(self, draft: Draft, path: Path, place: Path) -> None:
        """The image is at `path`; the next one is first looked for in the same place."""
        draft.path = path
        draft.name = relative_name(path, self._root)
        self.places.remove(place)
        self.places.insert(0, place)

    def _tried(self, file_name: str) -> str:
        near = (self._folders[_plain(place / file_name).parent].near(Path(file_name).name) for place in self.places)
        tried = ", ".join(str(place) for place in self.places)
        return f"looked in {tried}{next(filter(None, near), '')}"


def _plain(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _number(value: float) -> float:
    """A float, infinite where a whole number is too large for one."""
    return float(value) if abs(value) < 1e308 or value != value else math.inf


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
