"""Find the step of a detector that loses an object: `rcnn why`."""
