"""Recorders of a run's numbers, one per destination. `rcnn.train` also takes recorders of your own."""

from rcnn.training.recorders.recorder import About, Recorder, Recorders, Row

__all__ = ["About", "Recorder", "Recorders", "Row"]
