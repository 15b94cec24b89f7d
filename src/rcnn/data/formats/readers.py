"""The formats of data sets, each with the module that finds, reads and, if it is written, writes it."""

from types import ModuleType

from rcnn.data.formats import coco, csv_labels, voc, yolo

FORMATS: dict[str, ModuleType] = {"voc": voc, "coco": coco, "yolo": yolo, "csv": csv_labels}
"""Name of a format -> its module, with `find`, `read` and perhaps `write`."""
