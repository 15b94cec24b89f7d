"""The pages that `rcnn look` serves."""
