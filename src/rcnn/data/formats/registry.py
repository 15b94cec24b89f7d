"""List the formats of data sets."""

from collections.abc import Callable
from types import ModuleType

from rcnn.data.formats import (
    coco,
    csv_labels,
    cvat,
    huggingface,
    label_studio,
    labelme,
    openimages,
    via,
    voc,
    yolo,
)
from rcnn.data.formats.beside import listed_once
from rcnn.data.formats.draft import Layout
from rcnn.images.storage import Location

FORMATS: dict[str, ModuleType] = {
    "voc": voc,
    "coco": coco,
    "yolo": yolo,
    "labelme": labelme,
    "via": via,
    "cvat": cvat,
    "csv": csv_labels,
    "huggingface": huggingface,
    "label_studio": label_studio,
    "openimages": openimages,
}
"""Name of a format -> the module that finds, reads and perhaps writes it."""

WRITERS = {name: reader for name, reader in FORMATS.items() if hasattr(reader, "write")}
"""The formats that can be written."""

TABLES = ("csv", "openimages")
"""The formats of tables, which are often made of other annotations in the same folder."""

LABELS_BESIDE: dict[str, Callable[[Location], Location | None]] = {"yolo": yolo.labels_beside}
"""Formats with a folder of labels beside each folder of images -> the function that returns it."""


def recognise(path: Location) -> list[Layout]:
    """Return the data sets that the readers recognise at a path, each of another format, without those of `TABLES`.

    Raises:
        DataError: a reader recognises its format, and refuses what is there.
        OSError: the path can't be read.
    """
    with listed_once():
        layouts = [layout for name in FORMATS if name not in TABLES and (layout := FORMATS[name].find(path))]
    if len(layouts) > 1 and not path.is_dir():  # any json that is given may be COCO's
        layouts = [layout for layout in layouts if layout.format != "coco"]
    return layouts
