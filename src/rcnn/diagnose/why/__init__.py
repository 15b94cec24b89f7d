"""Where objects are lost on their way through a detector: `rcnn why`."""
