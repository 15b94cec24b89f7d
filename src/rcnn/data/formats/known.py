"""The formats of labels that are known."""

from types import ModuleType

from rcnn.data.formats import coco, csv_labels, cvat, labelme, via, voc, yolo

FORMATS: dict[str, ModuleType] = {
    "voc": voc,
    "coco": coco,
    "yolo": yolo,
    "labelme": labelme,
    "via": via,
    "cvat": cvat,
    "csv": csv_labels,
}
"""Name of a format -> the module that finds and reads it. Some also write it."""
WRITERS: dict[str, ModuleType] = {name: module for name, module in FORMATS.items() if hasattr(module, "write")}
"""The formats that can be written."""
