"""Pages to look at: `report.html`, one self-contained file for a run, and those that `rcnn look` serves."""
