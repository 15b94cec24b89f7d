"""Pages to look at: `report.html`, one self-contained file for a run."""
