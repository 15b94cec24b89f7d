"""Find, read and write COCO detection json: one file per list, with images next to it or in the usual folders."""

import gc
import json
import math
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from rcnn.config import Data
from rcnn.config.files import MB
from rcnn.data.dataset import Dataset, Fault
from rcnn.data.formats.beside import MAX_INSPECTED
from rcnn.data.formats.draft import MAX_FAULTS, Draft, Layout, Reading, listed, relative_name, unknown_class
from rcnn.data.formats.folders import copy_images, root_of, split_of, write_text
from rcnn.data.formats.json_tree import MalformedJson, parse_json
from rcnn.data.formats.named_images import NamedImages
from rcnn.errors import DataError
from rcnn.images.storage import Location, is_address, normal, read_ends, read_text, shown

_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_", "notes.json")  # Label Studio's
_HEAD_BYTES = 1 << 20
_ARRAYS = ("images", "annotations", "categories")
_BEGINS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_LIKELY = re.compile("coco|instances|annotations|train|val|test", re.IGNORECASE)
_FLAGS = (None, 0, 1)
MAX_JSON_BYTES = 1500 * MB
"""Maximum size of a COCO json, bytes."""


def find(path: Location) -> Layout | None:
    """Return the COCO set at a json file, or a folder with annotations/*.json, *.json or train/_annotations.coco.json.

    Raises:
        DataError: several files could be one list.
    """
    if path.is_file():
        if path.suffix.lower() != ".json":
            return None
        return Layout.of_file("coco", path, split_of(path.stem))
    for folder in (path / "annotations", path / "Annotations", path):
        files = _files(folder)
        if files:
            lists, path = _lists(files), root_of(path)
            break
    else:
        files = [file for name in ("train", "valid", "val", "test") for file in _files(path / name)]
        lists = {split_of(file.parent.name): (file,) for file in files}
    names = ", ".join(relative_name(file, path) for file in files)
    return Layout("coco", path, lists, evidence=names) if lists else None


def _files(folder: Location) -> list[Location]:
    """Return the COCO files of a folder, sorted. Few are inspected, since there may be another json for each image."""
    files = [file for file in folder.glob("*.json") if not file.name.startswith(_OTHER_TASKS)]
    files.sort(key=lambda file: (_LIKELY.search(file.name) is None, file))
    return sorted(file for file in files[:MAX_INSPECTED] if _is_coco(file))


def _is_coco(path: Location) -> bool:
    """Return whether a json file looks like COCO detection, by its beginning or end: one of its arrays begins there."""
    return not path.is_dir() and _BEGINS.search(read_ends(path, _HEAD_BYTES)) is not None


def _lists(files: Sequence[Location]) -> dict[str, tuple[Location, ...]]:
    """Assign the files to lists; instances_*.json wins over others for the same list."""
    lists: dict[str, list[Location]] = {}
    for file in files:
        lists.setdefault(split_of(file.stem), []).append(file)
    for split, several in lists.items():
        lists[split] = [file for file in several if file.name.startswith("instances")] or several
        if len(lists[split]) > 1:
            names = ", ".join(file.name for file in lists[split])
            what = f"the `{split}` list" if split != "all" else "the list"
            raise DataError(f"{files[0].parent}: several json files could be {what}: {names}; give one of them")
    return {split: tuple(lists[split]) for split in ("train", "val", "trainval", "test", "all") if split in lists}


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images of json files. Without `names`, classes are the categories of the first file, by id."""
    reading = Reading(_corners, names=tuple(names or ()))
    # Python would search the growing tree for reference cycles. It has none, and this takes a third of the time.
    collects_garbage = gc.isenabled()
    gc.disable()
    try:
        for source in sources:
            tree = _load(source, reading)
            if tree is not None:
                _File(source, layout, reading).read(tree, fixed_names=names is not None or source != sources[0])
    finally:
        if collects_garbage:
            gc.enable()
    if names is None and reading.category_ids != tuple(range(1, len(reading.names) + 1)):
        ids = ", ".join(f"{number} {name}" for number, name in zip(reading.category_ids, reading.names, strict=True))
        reading.notes.append(f"category ids become labels 0 to {len(reading.names) - 1} in this order: {ids}")
    return reading


def _load(path: Location, reading: Reading) -> dict[str, list[Any]] | None:
    """Return the object in a json file; None, and a fault, if it can't be read or lacks an array."""
    try:
        tree = parse_json(path, MAX_JSON_BYTES, partial(_fields, path, reading.faults))
    except MalformedJson as error:
        where, reason = error.where, str(error)
    else:
        arrays = {name for name, value in tree.items() if isinstance(value, list)} if isinstance(tree, dict) else set()
        missing = [name for name in _ARRAYS if name not in arrays]
        if not missing:
            return tree
        where, reason = str(path), f"there is no array `{'`, `'.join(missing)}`; is this COCO detection?"
    reading.faults.append(Fault(where, reason, "fatal"))
    return None


def _fields(path: Location, faults: list[Fault], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a file that is being parsed, without polygons, which are most of it.

    Repeated keys are added to the faults of the file.
    """
    fields = dict(pairs)
    first: dict[str, Any] = {}
    for key, value in pairs if len(fields) < len(pairs) else ():
        if key in first and key != "segmentation" and len(faults) < MAX_FAULTS:
            owner = f" of the object with id {first['id']!r:.50}" if "id" in first else ""
            reason = f"the key `{key:.50}`{owner} occurs twice, as {first[key]!r:.50} and as {value!r:.50}"
            same = first[key] == value
            reason += "" if same else "; keep one of the two"
            faults.append(Fault(str(path), reason, "mendable" if same else "fatal"))
        first.setdefault(key, value)
    fields.pop("segmentation", None)
    return fields


@dataclass
class _File:
    """Adds one json file to a reading."""

    path: Location
    layout: Layout
    reading: Reading

    def read(self, tree: dict[str, list[Any]], fixed_names: bool) -> None:
        """Add the file's images. Its categories become the classes, unless the names are fixed."""
        categories = self._categories(tree["categories"])
        own = {name: number for number, name in categories.items()}
        self.reading.own = tuple(dict.fromkeys((*self.reading.own, *categories.values())))
        if not fixed_names:
            self.reading.names = self.reading.own
        if not self.reading.category_ids:
            free = iter(number for number in range(1, 10**9) if number not in categories)
            ids = (own[name] if name in own else next(free) for name in self.reading.names)
            self.reading.category_ids = tuple(ids)
        drafts = self._images(tree["images"])
        by_name = {draft.name: draft for draft in drafts.values()}
        self._annotations(tree["annotations"], drafts, categories)
        self.reading.count_more(self.path)
        known = {draft.name for draft in self.reading.drafts}
        self.reading.drafts += [draft for name, draft in by_name.items() if name not in known]

    def _objects(self, key: str, items: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the place, `file: key[index] (id number)`, of each object in an array, and the object."""
        for index, item in enumerate(items):
            if isinstance(item, dict):
                number = f" (id {item['id']})" if "id" in item else ""
                yield f"{self.path}: {key}[{index}]{number}", item
            else:
                self.reading.fault(f"{self.path}: {key}[{index}]", f"an object is expected here; found {item!r:.50}")

    def _categories(self, items: list[Any]) -> dict[int, str]:
        """Return names by id, in the order of the ids."""
        names: dict[int, str] = {}
        taken: set[str] = set()
        for where, item in self._objects("categories", items):
            number, name = item.get("id"), item.get("name")
            if not _is_int(number) or not isinstance(name, str) or not name:
                self.reading.fault(where, "a category needs an integer as id and a name")
            elif number in names:
                self.reading.fault(where, f"two categories with the id {number}: `{names[number]}` and `{name}`")
            elif name in taken:
                self.reading.fault(where, f"two categories with the name `{name}`")
            else:
                names[number] = name
                taken.add(name)
        return dict(sorted(names.items()))

    def _images(self, items: list[Any]) -> dict[Any, Draft]:
        """Return images by id."""
        drafts: dict[Any, Draft] = {}
        by_name: dict[str, Draft] = {}
        images = NamedImages(self.layout, _places(self.path, self.layout.root))
        for where, item in self._objects("images", items):
            number, file_name = item.get("id"), item.get("file_name")
            if not _is_id(number) or not isinstance(file_name, str) or not file_name:
                self.reading.fault(where, "an image needs an id and a file_name")
                continue
            draft = Draft(shown(file_name) if is_address(file_name) else file_name, number, None, source=where)
            images.find(draft, where, file_name)
            if number in drafts:
                reason = f"two images with the id {number}: `{drafts[number].name}` and `{draft.name}`"
                drafts[number].fault(where, reason)
                continue
            if draft.name in by_name:
                reason = f"two images with the name `{draft.name}`: ids {by_name[draft.name].id} and {number}"
                by_name[draft.name].fault(where, reason)
            drafts[number] = by_name.setdefault(draft.name, draft)
            height, width = item.get("height"), item.get("width")
            if _is_int(height) and _is_int(width) and height > 0 and width > 0:
                draft.declared = (height, width)
        if drafts and not any(draft.path for draft in drafts.values()):
            first = next(iter(drafts.values()))
            raise DataError(f"{self.path}: none of its images exists. {first.faults[0][1]}")
        return drafts

    def _annotations(self, items: list[Any], drafts: dict[Any, Draft], categories: dict[int, str]) -> None:
        """Add every annotation, or its faults, to its image."""
        labels = {name: label for label, name in enumerate(self.reading.names)}
        for where, item in self._objects("annotations", items):
            number = item.get("image_id")
            draft = drafts.get(number) if _is_id(number) else None
            if draft is None:
                self.reading.fault(
                    where, f"the annotation's image_id {number!r:.50} is not the id of an image in this file"
                )
                continue
            category = item.get("category_id")
            name = categories.get(category) if _is_int(category) else None
            if name is None:
                draft.fault(where, f"category_id {category!r:.50} is not among the categories {listed(categories)}")
            elif name not in labels:
                draft.fault(where, unknown_class(name, list(labels), draft))
            box = item.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or not {*map(type, box)} <= {int, float}:
                draft.fault(where, f"bbox must be four numbers x, y, width, height; found {box!r:.200}")
                continue
            crowd, left_out = item.get("iscrowd"), item.get("ignore")
            if crowd not in _FLAGS or left_out not in _FLAGS:
                draft.fault(where, f"iscrowd and ignore must be 0 or 1; found {crowd!r:.50} and {left_out!r:.50}")
                continue
            if isinstance(item.get("id"), bool):
                draft.fault(where, f"id must be a number; found {item['id']}")
                continue
            draft.add(where, labels.get(name or ""), _floats(box), ignore=bool(crowd or left_out))


def _places(json_file: Location, root: Location) -> list[Location]:
    """Return the folders in which COCO sets keep the images of a json file."""
    word = re.sub(r"^instances_", "", json_file.stem)
    inner = [".", word, f"{word}2017", f"{word}2014", "images", f"images/{word}", f"images/{word}2017"]
    inner += [f"images/{split_of(word)}", split_of(word), "JPEGImages", "train2017", "val2017", "imgs", "data"]
    places = dict.fromkeys(normal(base / name) for base in dict.fromkeys((json_file.parent, root)) for name in inner)
    return [place for place in places if place.is_dir()]


def _floats(box: list[float]) -> Sequence[float]:
    """Return the numbers as floats; integers that are too large for a float become infinite."""
    try:
        return array("d", box)
    except OverflowError:
        return [math.inf if abs(number) > 1e308 else number for number in box]


def _corners(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert (n, 4) x, y, width, height to (n, 4) xyxy and (n,) bool: which boxes have no size."""
    corner, size = numbers[:, :2], numbers[:, 2:]
    return np.concatenate((corner, corner + size), axis=1), (size == 0).any(axis=1)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: object) -> TypeGuard[int | str]:
    return isinstance(value, int | str) and not isinstance(value, bool)


def image_ids(path: Location) -> dict[str, int | str]:
    """Return file name -> id of the images in a json file.

    Raises:
        DataError: the file can't be read, or has no images.
    """
    try:
        return {entry["file_name"]: entry["id"] for entry in json.loads(read_text(path, MAX_JSON_BYTES))["images"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{path}: can't be read as a COCO json with `images`: {error!r}") from None


def label_rows(
    image_id: int | str, ids: Sequence[int], boxes: np.ndarray, labels: np.ndarray, digits: int | None = None
) -> list[dict[str, Any]]:
    """Return image_id, category_id and bbox of each box, the fields that annotations and results share.

    Args:
        image_id: id of the image.
        ids: (K,) category id of each class.
        boxes: (n, 4) continuous xyxy in pixels.
        labels: (n,) class index.
        digits: decimals of pixels; None keeps all digits.
    """
    low, high = np.split(boxes.astype(np.float64), 2, axis=1)
    rows = np.concatenate((low, high - low), axis=1)
    rows = rows if digits is None else rows.round(digits)
    return [
        {"image_id": image_id, "category_id": ids[label], "bbox": row}
        for label, row in zip(labels.tolist(), rows.tolist(), strict=True)
    ]


def write(datasets: Sequence[Dataset], out: Path, names: Mapping[Location, str]) -> list[str]:
    """Write images/ and annotations/LIST.json. `names` maps each image to its new file name."""
    for dataset in datasets:
        copy_images(dataset.records, out / "images", names)
        write_text(out / "annotations" / f"{dataset.split}.json", as_json(dataset, names))
    return []


def as_json(dataset: Dataset, names: Mapping[Location, str]) -> str:
    """Return the annotations of a list as text. `names` maps the path of each image to its file name."""
    own, numbered = [record.id for record in dataset.records], zip(dataset.category_ids, dataset.names, strict=True)
    keep = all(isinstance(number, int) for number in own) and len(set(own)) == len(own)
    ids = own if keep else list(range(1, len(own) + 1))
    tree = {"images": [], "annotations": [], "categories": [{"id": number, "name": name} for number, name in numbered]}
    for number, record in zip(ids, dataset.records, strict=True):
        height, width = record.size
        tree["images"].append({"id": number, "file_name": names[record.path], "width": width, "height": height})
        rows = label_rows(number, dataset.category_ids, record.boxes, record.labels)
        for row, ignore in zip(rows, record.ignore.tolist(), strict=True):
            area = row["bbox"][2] * row["bbox"][3]
            entry = {"id": len(tree["annotations"]) + 1, **row, "area": area, "iscrowd": int(ignore)}
            tree["annotations"].append(entry)
    return json.dumps(tree, ensure_ascii=False) + "\n"
