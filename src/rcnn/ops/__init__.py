"""Operators with fixed-shape output and a naive reference beside each."""

from rcnn.ops.match import match
from rcnn.ops.nms import nms
from rcnn.ops.roi_align import roi_align
from rcnn.ops.roi_pool import roi_pool

__all__ = ["match", "nms", "roi_align", "roi_pool"]
