"""Metadata in a detector's file: settings, classes, threshold, training, licence."""

from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, ValidationError, model_validator
from torch import Tensor

from rcnn.config import Fraction, Section, Settings, override, validate
from rcnn.errors import SettingsError, WeightsError
from rcnn.weights.box_targets import PLAIN, renormalise
from rcnn.weights.file import load_weights


class Metadata(Section):
    """The JSON entry of a detector's file; keys that later versions add are ignored.

    Attributes:
        settings: architecture, anchors, preprocessing and training.
        names: class names.
        category_ids: number of each class in the data set.
        threshold: score below which boxes are left out by default.
        summary: facts about the training.
        licence: licence of the training data; None if unknown.
    """

    model_config = ConfigDict(extra="ignore")

    settings: Settings
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    threshold: Fraction
    summary: dict[str, Any]
    licence: str | None = None

    @model_validator(mode="after")
    def _one_id_per_class(self) -> Self:
        if len(self.category_ids) != len(self.names):
            raise ValueError(f"{len(self.category_ids)} category ids for {len(self.names)} classes")
        return self


def read_detector(path: str | Path) -> tuple[dict[str, Tensor], Metadata]:
    """Read a detector's file; the box layer is made for `roi.box_mean` and `roi.box_std`.

    Raises:
        WeightsError: the file is missing, damaged, of a later version, or holds something else.
    """
    tensors, entry = load_weights(path)
    if entry.get("kind") == "checkpoint":
        run = Path(path).absolute().parents[1]
        raise WeightsError(
            f"{path}: holds weights, but not a detector: it is a checkpoint of a training. Go on with that by: "
            f"rcnn train --resume {run}"
        )
    try:
        metadata = Metadata.model_validate({**entry, "settings": validate(entry["settings"])})
    except (KeyError, TypeError, SettingsError, ValidationError) as error:
        raise WeightsError(f"{path}: holds weights, but not a detector of this version of rcnn: {error}") from None
    return renormalise(tensors, PLAIN, metadata.settings.roi), metadata


def portable(settings: Settings) -> Settings:
    """Cut the paths in settings to their last part: files of weights travel, folders of this machine do not."""
    data, init, proposals = settings.data.path, settings.train.init, settings.train.proposals
    changes = {
        "data": {"path": data and Path(data).name},
        "train": {"init": Path(init).name, "proposals": proposals and Path(proposals).name},
    }
    return override(settings, changes)
