"""Pictures of every stage for one image: `rcnn explain`."""
