"""Fine-tune a detector that exists: its network, preprocessing and weights, for the classes of other data."""

from pathlib import Path
from typing import Any

from rcnn.config import Settings, dump, merge, validate
from rcnn.runtime.by_suffix import refuse_exported
from rcnn.weights.file import weights_of_run

NETWORK = ("preprocess", "model", "anchors", "rpn", "roi")
"""Sections that are the detector's; the others are the defaults, but for `RECIPE`."""
FROZEN = 2
"""First stages that are not trained, where the detector trained all."""
RECIPE: dict[str, dict[str, Any]] = {"train": {"epochs": 15, "lr": 1e-3}}
"""Half of the defaults, which begin with new layers on a backbone."""


def fine_tuning_settings(source: str | Path) -> Settings:
    """The settings of a run that starts from a detector, as `rcnn.load` takes it.

    Batch norms become constants (or stay `affine`), because batches are small and their statistics are known.

    Raises:
        WeightsError: as for `rcnn.load`, or it is an exported file.
    """
    from rcnn import open_model  # imports torchvision's models, which takes as long as all else

    refuse_exported(source)
    theirs = open_model.load(source, "cpu").settings
    init = str(source) if str(source) in open_model.NAMES else str(weights_of_run(Path(source).expanduser().resolve()))
    tree = dump(theirs)
    norm = "affine" if theirs.model.norm == "affine" else "frozen"
    adapted = {"model": {"norm": norm, "frozen_stages": theirs.model.frozen_stages or FROZEN}, "train": {"init": init}}
    return validate(merge(merge({section: tree[section] for section in NETWORK}, RECIPE), adapted))
