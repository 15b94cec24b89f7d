"""Explain what a detector does on labelled images: `rcnn why`, `rcnn explain`, `rcnn anchors`, and label errors."""
