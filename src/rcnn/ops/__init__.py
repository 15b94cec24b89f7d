"""Operators with outputs of fixed shape, each with a naive reference."""

from rcnn.ops.match import match
from rcnn.ops.nms import nms
from rcnn.ops.roi_align import roi_align
from rcnn.ops.roi_pool import roi_pool
from rcnn.ops.roi_warp import roi_warp

__all__ = ["match", "nms", "roi_align", "roi_pool", "roi_warp"]
