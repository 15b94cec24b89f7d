"""Find and read Label Studio's exports JSON and JSON-MIN: a list of tasks, with shapes in percent of their image."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote

from rcnn.config import Data
from rcnn.config.files import MB
from rcnn.data.formats.draft import Draft, Layout, Reading, corners_of_xyxy
from rcnn.data.formats.json_tree import MalformedJson, floats, is_int, is_list, is_numbers, load_json
from rcnn.data.formats.lists import find_lists
from rcnn.data.formats.named_images import NamedImages, usual_places
from rcnn.data.formats.seen_classes import SeenClasses
from rcnn.errors import DataError, plural
from rcnn.images.sources import is_image
from rcnn.images.storage import Location, is_address, read_start, shown

MAX_JSON_BYTES = 500 * MB
"""Maximum size of an export, bytes."""

MAX_PERCENT = 200
"""Largest number that can be a coordinate in percent, far outside the image as it is."""

_HEAD_BYTES = 1 << 20
_KEYS = re.compile(rb'"(annotations|completions|data|result|annotation_id|annotator|rectanglelabels)"\s*:')
_HASHED = re.compile(r"[0-9a-f]{8}-(.+)")
"""Names of uploaded files, which begin with a part of a random number."""

_LEFT_OUT = {
    "keypoint": "keypoint",
    "brush": "brush mask",
    "bitmask": "brush mask",
    "vector": "line",
    "videorectangle": "box in a video",
}
"""Kind of region -> name of what it is, of which no box can be made."""


def find(path: Location) -> Layout | None:
    """Return the set of an export, or of a folder that holds one, or one for each list.

    Raises:
        DataError: several exports could be one list.
    """
    return find_lists("label_studio", path, (".json",), _is_export)


def _is_export(path: Location) -> bool:
    """Return whether a file begins like an export: with a list of tasks."""
    head = read_start(path, _HEAD_BYTES)
    keys = {key.decode() for key in _KEYS.findall(head)} if is_list(head) else set()
    whole = keys & {"annotations", "completions"} and keys & {"data", "result"}
    return bool(whole or keys & {"annotation_id", "annotator", "rectanglelabels"})


def read(layout: Layout, sources: Sequence[Location], names: Sequence[str] | None, settings: Data) -> Reading:
    """Read the images of tasks that are labelled. Without `names`, the classes are those that occur, sorted.

    Raises:
        DataError: no image exists, or no task is labelled.
    """
    reading = Reading(corners_of_xyxy, units="share")
    classes = SeenClasses(names)
    drafts: dict[str, Draft] = {}
    left_out: Counter[str] = Counter()
    for source in sources:
        export = _Export(source, layout, reading, classes, drafts, left_out)
        export.read()
        reading.count_more(source)
    reading.drafts = list(drafts.values())
    if reading.drafts and not any(draft.path for draft in reading.drafts):
        raise DataError(f"{sources[0]}: none of its images exists. {reading.drafts[0].faults[0][1]}")
    if not reading.drafts and not reading.faults:
        raise DataError(f"{sources[0]}: none of its tasks has an annotation; predictions are not read as labels")
    classes.settle(reading, reading.drafts, sorted(classes.numbers), names)
    reading.notes += [text.format(plural(count, "task")) for text, count in left_out.items()]
    return reading


UNLABELLED = "{} without an annotation left out"
CANCELLED = "{} with skipped annotations, which are not read"
SEVERAL = "{} with several annotations, of which the ground truth or the last one is read"


class _Task(NamedTuple):
    """A labelled task.

    Attributes:
        where: its place, `file: tasks[index] (id number)`.
        data: what was labelled, by key, such as `image`.
        results: places and regions of the annotation.
    """

    where: str
    data: Mapping[str, Any]
    results: Sequence[tuple[str, dict[str, Any]]]


def _reduce(fields: dict[str, Any]) -> None:
    """Drop what is not read, and is most of some exports."""
    for key in ("rle", "predictions", "drafts"):
        fields.pop(key, None)


@dataclass
class _Export:
    """Adds one export to a reading.

    Attributes:
        left_out: remarks on tasks -> number of those.
    """

    path: Location
    layout: Layout
    reading: Reading
    classes: SeenClasses
    drafts: dict[str, Draft]
    left_out: Counter[str]

    def read(self) -> None:
        """Add the labelled images of the export; what can't be read becomes a fault."""
        try:
            tree = load_json(self.path, MAX_JSON_BYTES, self.reading.faults, _reduce)
        except MalformedJson as error:
            self.reading.fault(error.where, str(error))
            return
        images = NamedImages(self.layout, usual_places(self.path.parent, self.layout.root))
        for task in self._tasks(tree if isinstance(tree, list) else [tree]):
            names = _image_names(task.data)
            if isinstance(names, str):
                self.reading.fault(task.where, names)
                continue
            draft = Draft(shown(names[0]) if is_address(names[0]) else names[0], names[0], None, source=task.where)
            images.find(draft, task.where, *names)
            draft.id = draft.path.stem if draft.path else draft.name
            known = self.drafts.setdefault(draft.name, draft)
            if known is not draft:
                known.fault(task.where, f"the image `{draft.name}` is that of another task, {known.source}; keep one")
            regions = [(where, region, _labels(region)) for where, region in task.results]
            labelled = {str(region["id"]) for _, region, labels in regions if labels and "id" in region}
            for where, region, labels in regions:
                if labels or str(region.get("id")) not in labelled:  # a label may be a region of its own
                    self._add(known, where, region, labels)

    def _tasks(self, tree: list[Any]) -> Iterator[_Task]:
        """Yield the tasks that are labelled."""
        flat: dict[object, _Task] = {}
        for index, task in enumerate(tree):
            where = f"{self.path}: tasks[{index}]"
            if not isinstance(task, dict):
                self.reading.fault(where, f"a task is expected here, found {task!r:.50}")
                continue
            where += f" (id {task['id']})" if is_int(task.get("id")) else ""
            if "annotations" not in task and "completions" not in task:  # JSON-MIN has an entry for each annotation
                key = task["id"] if is_int(task.get("id")) else where
                if key in flat:
                    self.left_out[SEVERAL] += 1
                flat[key] = _Task(where, task, [*self._flat_regions(where, task)])
                continue
            data, result = task.get("data"), self._result(where, task.get("annotations", task.get("completions")))
            if isinstance(data, dict) and result is not None:
                yield _Task(where, data, result)
            elif result is not None:
                self.reading.fault(where, "the task has no `data`, which names its image")
        yield from flat.values()

    def _flat_regions(self, where: str, task: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the places and the regions of an entry of JSON-MIN: the items of all its lists."""
        for key, items in task.items():
            for index, item in enumerate(items) if isinstance(items, list) else ():
                if isinstance(item, dict):
                    yield f"{where} {key:.50}[{index}]", {**item, "value": item}

    def _result(self, where: str, annotations: object) -> list[tuple[str, dict[str, Any]]] | None:
        """Return the places and regions of the annotation of a task that counts; None if there is none."""
        if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
            self.reading.fault(where, f"a list of annotations is expected, found {annotations!r:.50}")
            return None
        kept = [one for one in annotations if not one.get("was_cancelled")]
        self.left_out.update([CANCELLED] * (len(kept) < len(annotations)))
        self.left_out.update([SEVERAL] * (len(kept) > 1))
        if not kept:
            self.left_out[UNLABELLED] += 1
            return None
        last = max(range(len(kept)), key=lambda index: (*_age(kept[index]), index))
        result = kept[last].get("result")
        if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
            self.reading.fault(where, f"an annotation needs a list of regions as `result`, found {result!r:.50}")
            return None
        return [(f"{where} result[{index}]", region) for index, region in enumerate(result)]

    def _add(self, draft: Draft, where: str, region: Mapping[str, Any], labels: Sequence[str]) -> None:
        """Add a region, or its faults, to its image. What is not a region of an image, such as a choice, is ignored."""
        value = region.get("value")
        kind = _kind(region, value) if isinstance(value, dict) else ""
        if kind in _LEFT_OUT:
            self.reading.left_out[_LEFT_OUT[kind]] += 1
        if kind not in _SHAPES or not isinstance(value, dict):
            return
        if region.get("image_rotation"):
            draft.fault(where, "the image was rotated in Label Studio; labels of rotated images are not read")
            return
        size = _size(draft, where, region)
        box = self._box(kind, value, size)
        if isinstance(box, str):
            draft.fault(where, f"{box}; found {value!r:.200}")
            return
        if len(labels) != 1:
            draft.fault(where, f"a region needs one label, and this one has {', '.join(labels) or 'none'}")
        draft.add(where, self.classes.number(labels[0], draft, where) if len(labels) == 1 else None, box)

    def _box(self, kind: str, value: Mapping[str, Any], size: tuple[int, int] | None) -> list[float] | str:
        """Return the x1, y1, x2, y2 of the box that encloses a shape, as fractions of the image, or what is wrong.

        Args:
            kind: one of `_SHAPES`.
            value: numbers of the shape, in percent of width and height.
            size: (height, width) of the image, which rotated shapes need.
        """
        if kind == "polygon":
            points = value.get("points")
            if not isinstance(points, list) or not points or not all(is_numbers(p) and len(p) == 2 for p in points):
                return "a polygon needs points of two numbers each"
            numbers = floats([number for point in points for number in point])
        else:
            four = [value.get(name) for name in _SHAPES[kind]]
            if not is_numbers(four):
                return f"{', '.join(_SHAPES[kind])} must be numbers"
            numbers = floats(four)
        if max(map(abs, numbers)) > MAX_PERCENT:
            return "the numbers must be percents of the width and height of the image"
        rotation = value.get("rotation") or 0
        if not is_numbers([rotation]) or not math.isfinite(floats([rotation])[0]):
            return "`rotation` must be a number of degrees"
        if kind == "polygon":
            return [number / 100 for number in self.reading.enclose("polygon", numbers)]
        x, y, width, height = (number / 100 for number in numbers)
        if rotation and size is None:
            return "a rotated region needs `original_width` and `original_height`"
        ratio = size[0] / size[1] if size else 1.0  # of a length as fraction of the height and of the width
        sine, cosine = (math.sin(math.radians(rotation)), math.cos(math.radians(rotation))) if rotation else (0, 1)
        if kind == "ellipse":
            reach = math.hypot(width * cosine, height * ratio * sine), math.hypot(height * cosine, width / ratio * sine)
            return self.reading.enclose("ellipse", [x - reach[0], y - reach[1], x + reach[0], y + reach[1]])
        if not rotation:
            return [x, y, x + width, y + height]
        corners = list[float]()
        for right, down in ((0, 0), (width, 0), (width, height), (0, height)):  # clockwise about the first one
            corners += [x + right * cosine - down * ratio * sine, y + right / ratio * sine + down * cosine]
        return self.reading.enclose("rotated rectangle", corners)


_SHAPES = {
    "rectangle": ("x", "y", "width", "height"),
    "ellipse": ("x", "y", "radiusX", "radiusY"),
    "polygon": ("points",),
}
"""Kind of region of which a box can be made -> its keys; x and y are the top left corner, or the centre."""


def _age(annotation: Mapping[str, Any]) -> tuple[bool, str]:
    """Return what the annotation of a task that counts has most of: it is the ground truth, or was changed last."""
    return bool(annotation.get("ground_truth")), str(annotation.get("updated_at") or annotation.get("created_at") or "")


def _kind(region: Mapping[str, Any], value: Mapping[str, Any]) -> str:
    """Return the kind of a region, such as `rectangle`; empty if it has no place in an image."""
    named = region.get("type") or next((key for key in value if key.endswith("labels")), "")
    kind = str(named).removesuffix("labels")
    return kind or next((kind for kind, keys in _SHAPES.items() if keys[-1] in value), "")


def _labels(region: Mapping[str, Any]) -> list[str]:
    """Return the classes of a region."""
    value = region.get("value")
    if not isinstance(value, dict):
        return []
    lists = [value[key] for key in value if key.endswith("labels") and isinstance(value[key], list)]
    return [str(label) for labels in lists for label in labels if label]


def _size(draft: Draft, where: str, region: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) of the image as a region has it, which the draft declares, too."""
    height, width = region.get("original_height"), region.get("original_width")
    if not is_int(height) or not is_int(width) or not (0 < height < 1 << 31 and 0 < width < 1 << 31):
        return None
    draft.declared = draft.declared or (height, width)
    if draft.declared != (height, width):
        before = f"{draft.declared[1]}x{draft.declared[0]} in a region before"
        draft.fault(where, f"the image is {width}x{height} pixels here, and {before}")
    return height, width


def _image_names(data: Mapping[str, Any]) -> list[str] | str:
    """Return the names that the image of a task may have, the most exact first, or the reason why there are none.

    Args:
        data: what was labelled, by key: an address, a path, `/data/upload/1/1a2b3c4d-name.jpg` of an uploaded file, or
            `/data/local-files/?d=folder/name.jpg` of one on the server's disk.
    """
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    images = {key: text for key, text in texts.items() if is_image(_path_of(text))}
    key = "image" if "image" in texts else next(iter(images), None)
    if key is None or (key != "image" and len({*images.values()}) > 1):
        found = ", ".join(images) or ", ".join(data) or "nothing"
        return f"one image is expected in the data of a task, under any key; found {found:.200}"
    path = _path_of(texts[key])
    hashed = _HASHED.fullmatch(path.rsplit("/", 1)[-1])
    return [*dict.fromkeys((texts[key], path, unquote(path), *([hashed[1], unquote(hashed[1])] if hashed else [])))]


def _path_of(text: str) -> str:
    """Return the path in an address, without what follows `?`, or the parameter `d` of one of the server's files."""
    path, _, query = text.partition("?")
    return parse_qs(query).get("d", [path])[-1] if path.rstrip("/").endswith("local-files") else path
