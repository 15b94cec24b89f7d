"""List the formats of data sets."""

from collections.abc import Callable
from types import ModuleType

from rcnn.data.formats import coco, csv_labels, huggingface, label_studio, openimages, voc, yolo
from rcnn.images.storage import Location

FORMATS: dict[str, ModuleType] = {
    "voc": voc,
    "coco": coco,
    "yolo": yolo,
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
