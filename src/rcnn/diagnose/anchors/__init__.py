"""Anchors against the boxes of a data set: `rcnn anchors`."""
