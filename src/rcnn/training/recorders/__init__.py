"""Where a run's numbers go: a recorder per destination, each told the same four things. A person's own are told too."""

from rcnn.training.recorders.recorder import About, Recorder, Recorders, Row

__all__ = ["About", "Recorder", "Recorders", "Row"]
