"""Find, read and write COCO detection json: one file per list, with images next to it or in the usual folders."""

import gc
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from rcnn.config import Data
from rcnn.config.files import MB
from rcnn.data.dataset import Dataset, Fault
from rcnn.data.formats.beside import MAX_INSPECTED
from rcnn.data.formats.draft import (
    Draft,
    Layout,
    Reading,
    corners_of_xywh,
    listed,
    relative_name,
    unknown_class,
)
from rcnn.data.formats.folders import copy_images, root_of, split_of, write_text
from rcnn.data.formats.json_tree import MalformedJson, floats, is_int, is_list, is_numbers, load_json
from rcnn.data.formats.named_images import NamedImages
from rcnn.data.formats.segments import MIN_IOU, Segment, check_polygons, contradiction, segment_of
from rcnn.errors import DataError
from rcnn.images.storage import Location, is_address, normal, read_ends, read_start, read_text, shown, slashed

_OTHER_TASKS = (
    *("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_"),
    *("notes.json", "dataset_info"),  # beside YOLO sets of Label Studio, and images of Hugging Face
)
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
        if path.suffix.lower() != ".json" or is_list(read_start(path, _HEAD_BYTES)):
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
    if path.is_dir():
        return False
    text = read_ends(path, _HEAD_BYTES)
    return not is_list(text) and _BEGINS.search(text) is not None


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
    reading = Reading(corners_of_xywh, names=tuple(names or ()))
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
    return reading


def _load(path: Location, reading: Reading) -> dict[str, list[Any]] | None:
    """Return the object in a json file; None, and a fault, if it can't be read or lacks an array."""
    try:
        tree = load_json(path, MAX_JSON_BYTES, reading.faults, _reduce)
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


def _reduce(fields: dict[str, Any]) -> None:
    """Keep of a segmentation, which is most of a file, only what `_remainder` returns."""
    segmentation = fields.pop("segmentation", None)
    if segmentation and (remainder := _remainder(segmentation, fields)):
        fields["segmentation"] = remainder


def _remainder(segmentation: Any, fields: dict[str, Any]) -> Segment | str | None:
    """Return what is kept of a segmentation: its box if there is no other one, or if it contradicts the other one.

    Args:
        segmentation: the value in the file.
        fields: the others of the annotation.

    Returns:
        If no box can be made of it but one is needed, the reason. None: nothing is kept.
    """
    box: Any = fields.get("bbox")
    needed = _is_empty(box)
    if not needed and fields.get("iscrowd"):
        return None
    try:
        if not needed:
            return contradiction(box, segmentation)
        check_polygons(segmentation)
        return segment_of(segmentation)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        return str(error) if needed else None  # a bbox without four numbers is reported later


def _is_empty(box: object) -> bool:
    """Return whether a bbox stands for none: it is missing, or all its numbers are 0."""
    return not box or box == [0, 0, 0, 0]


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
        self.reading.groups |= _groups(tree["categories"])
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
        start = f"{self.path}: {key}["
        for index, item in enumerate(items):
            if isinstance(item, dict):
                yield f"{start}{index}] (id {item['id']})" if "id" in item else f"{start}{index}]", item
            else:
                self.reading.fault(f"{start}{index}]", f"an object is expected here; found {item!r:.50}")

    def _categories(self, items: list[Any]) -> dict[int, str]:
        """Return names by id, in the order of the ids."""
        names: dict[int, str] = {}
        taken: set[str] = set()
        for where, item in self._objects("categories", items):
            number, name = item.get("id"), item.get("name")
            if not is_int(number) or not isinstance(name, str) or not name:
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
            if is_int(height) and is_int(width) and height > 0 and width > 0:
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
            name = categories.get(category) if is_int(category) else None
            if name is None:
                draft.fault(where, f"category_id {category!r:.50} is not among the categories {listed(categories)}")
            elif name not in labels:
                draft.fault(where, unknown_class(name, list(labels), draft))
            segmentation = item.get("segmentation")
            box: Any = item.get("bbox")
            if _is_empty(box) and segmentation:
                box = self._enclosing(draft, where, segmentation)
                if box is None:
                    continue
            elif isinstance(segmentation, Segment):
                draft.fault(where, _contradiction(box, segmentation))
                continue
            if not is_numbers(box) or len(box) != 4:
                draft.fault(where, f"bbox must be four numbers x, y, width, height; found {box!r:.200}")
                continue
            crowd, left_out = item.get("iscrowd"), item.get("ignore")
            if crowd not in _FLAGS or left_out not in _FLAGS:
                draft.fault(where, f"iscrowd and ignore must be 0 or 1; found {crowd!r:.50} and {left_out!r:.50}")
                continue
            if isinstance(item.get("id"), bool):
                draft.fault(where, f"id must be a number; found {item['id']}")
                continue
            draft.add(where, labels.get(name or ""), floats(box), ignore=bool(crowd or left_out))

    def _enclosing(self, draft: Draft, where: str, segmentation: Segment | str) -> list[float] | None:
        """Return x, y, width, height of the box of a segmentation; None, and a fault, if there is none."""
        if isinstance(segmentation, str):
            draft.fault(where, f"there is no bbox, and no box can be made of the segmentation: {segmentation}")
            return None
        if segmentation.size and draft.declared and segmentation.size != draft.declared:
            sizes = [f"{width}x{height}" for height, width in (segmentation.size, draft.declared)]
            draft.fault(where, f"the mask has {sizes[0]} pixels, and the image {sizes[1]}")
            return None
        left, top, right, bottom = self.reading.enclose(segmentation.kind, segmentation.box)
        return [left, top, right - left, bottom - top]


def _groups(categories: list[Any]) -> frozenset[str]:
    """Return the names that categories other than the one of that name have as their supercategory."""
    found = ((item.get("name"), item.get("supercategory")) for item in categories if isinstance(item, dict))
    return frozenset(group for name, group in found if isinstance(group, str) and group != name)


def _contradiction(box: Sequence[float], segment: Segment) -> str:
    """Return the reason of the fault that a bbox does not fit its segmentation."""
    x1, y1, x2, y2 = segment.box
    numbers = [", ".join(f"{number:g}" for number in own) for own in (box, (x1, y1, x2 - x1, y2 - y1))]
    return (
        f"bbox ({numbers[0]}) does not fit the segmentation, whose box is ({numbers[1]}): their IoU is below "
        f"{MIN_IOU:g}; is one of them from another size of the image, or another object?"
    )


def _places(json_file: Location, root: Location) -> list[Location]:
    """Return the folders in which COCO sets keep the images of a json file."""
    word = re.sub(r"^instances_", "", json_file.stem)
    inner = [".", word, f"{word}2017", f"{word}2014", "images", f"images/{word}", f"images/{word}2017"]
    inner += [f"images/{split_of(word)}", split_of(word), "JPEGImages", "train2017", "val2017", "imgs", "data"]
    places = dict.fromkeys(normal(base / name) for base in dict.fromkeys((json_file.parent, root)) for name in inner)
    return [place for place in places if place.is_dir()]


def _is_id(value: object) -> TypeGuard[int | str]:
    return type(value) in (int, str)


def image_ids(path: Location) -> dict[str, int | str]:
    """Return file name, with forward slashes, -> id of the images in a json file.

    Raises:
        DataError: the file can't be read, or has no images.
    """
    try:
        images = json.loads(read_text(path, MAX_JSON_BYTES))["images"]
        return {slashed(entry["file_name"]): entry["id"] for entry in images}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
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
