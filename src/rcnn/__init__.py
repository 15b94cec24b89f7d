"""Faster R-CNN from a folder of labelled images to a trained detector."""

__version__ = "0.1.0"
