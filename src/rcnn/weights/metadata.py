"""Metadata in a detector's file: settings, classes, threshold, training, licence."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, Self

import torch
from pydantic import ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from rcnn.config import Fraction, Section, Settings, dump, explain, override, shorten, validate
from rcnn.errors import SettingsError, WeightsError, printable
from rcnn.weights.box_targets import PLAIN, renormalise
from rcnn.weights.file import first_line, load_weights, save_weights, to_half

MAX_CLASSES = 100_000
MAX_NAMES = 12
FOREIGN = "holds weights, but not a detector of this version of rcnn"


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
    format_error: ClassVar[str] = FOREIGN

    settings: Settings
    names: Annotated[tuple[Annotated[str, Field(max_length=1000)], ...], Field(max_length=MAX_CLASSES)]
    category_ids: Annotated[tuple[Annotated[int, Field(ge=-(2**63), lt=2**63)], ...], Field(max_length=MAX_CLASSES)]
    threshold: Fraction
    summary: dict[str, Any]
    licence: str | None = None

    @model_validator(mode="after")
    def _one_id_per_class(self) -> Self:
        if len(self.category_ids) != len(self.names):
            raise ValueError(f"{len(self.category_ids)} category ids for {len(self.names)} classes")
        return self

    @classmethod
    def parse(cls, entry: Mapping[str, Any], path: str | Path) -> Self:
        """Validate the JSON entry of a file.

        Raises:
            WeightsError: it does not describe a detector of this version; the message names `path`.
        """
        try:
            settings = override(validate(entry["settings"]), {"data": {"cache": None}})  # the cache of another user
            return cls.model_validate({**entry, "settings": settings})
        except ValidationError as error:
            reason: object = explain(error)
        except (KeyError, TypeError, SettingsError) as error:
            reason = error
        raise WeightsError(f"{path}: {cls.format_error}: {reason}")


class Described(Protocol):
    """Whatever has the attributes of `Metadata`, such as a detector."""

    settings: Settings
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    threshold: float
    summary: dict[str, Any]
    licence: str | None


def entry_of(detector: Described) -> dict[str, Any]:
    """Return the JSON entry of a detector's file. Paths in the settings are cut to their last part."""
    return {
        "settings": dump(portable(detector.settings)),
        "names": list(detector.names),
        "category_ids": list(detector.category_ids),
        "threshold": detector.threshold,
        "summary": detector.summary,
        "licence": detector.licence,
    }


def as_text(detector: Described) -> str:
    """Return a few lines for `print`: network, sizes, classes, threshold and training."""
    settings, names = detector.settings, detector.names
    shown = [*map(shorten, names[:MAX_NAMES]), *([f"{len(names) - MAX_NAMES:,} more"] if names[MAX_NAMES:] else [])]
    facts = {name: value for name, value in detector.summary.items() if isinstance(value, int | float | str)}
    lines = {
        "classes": f"{len(names):,}: {', '.join(shown)}",
        "images": f"short side {settings.preprocess.short} px, long side at most {settings.preprocess.long} px",
        "threshold": f"{detector.threshold:.2f}",
        "training": ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items()),
        "licence": detector.licence or "",
    }
    rows = [f"  {title:10} {text}" for title, text in lines.items() if text]
    return printable("\n".join([f"Detector {settings.model.preset} ({settings.model.backbone})", *rows]))


def read_detector(
    path: str | Path, check: Callable[[Metadata, Mapping[str, Tensor]], None] | None = None
) -> tuple[dict[str, Tensor], Metadata]:
    """Read a detector's file; its box layer is converted to `roi.box_mean` and `roi.box_std`.

    Args:
        path: the file.
        check: called with the metadata and the tensors on the `meta` device, before the tensors are read.

    Raises:
        WeightsError: the file is missing, damaged, of a later version, or holds something else; or as `check`.
    """
    metadata: list[Metadata] = []

    def validated(entry: Mapping[str, Any], shapes: Mapping[str, Tensor]) -> None:
        if entry.get("kind") == "checkpoint":
            run = Path(path).absolute().parents[1]
            raise WeightsError(
                f"{path}: holds weights, but not a detector: it is a checkpoint of a training. Resume it with: "
                f"rcnn train --resume {run}"
            )
        metadata.append(Metadata.parse(entry, path))
        if check is not None:
            check(metadata[0], shapes)

    tensors, _ = load_weights(path, validated)
    try:
        return renormalise(tensors, PLAIN, metadata[0].settings.roi), metadata[0]
    except (RuntimeError, ValueError) as error:
        raise WeightsError(f"{path}: {FOREIGN}: {first_line(error)}") from None


def save_detector(path: str | Path, weights: Mapping[str, Tensor], detector: Described, *, half: bool = False) -> None:
    """Write a detector's file; its box layer is converted to plain offsets, and `read_detector` undoes that.

    Args:
        path: the file.
        weights: the state of the network.
        detector: that they belong to.
        half: save as float16.

    Raises:
        WeightsError, OSError: as for `Detector.save`.
    """
    # In float64, folding and unfolding leaves float32 weights the same but for tiny biases; in float32 it does not.
    state = renormalise(weights, detector.settings.roi, PLAIN, torch.float64)
    save_weights(path, to_half(state) if half else state, entry_of(detector))


def portable(settings: Settings) -> Settings:
    """Cut the paths in settings to their last part, and leave out those of `data.edge_model` and `data.cache`.

    A file of weights may be used on another machine, where these folders do not exist or hold other files.
    """
    data, init, proposals = settings.data.path, settings.train.init, settings.train.proposals
    changes = {
        "data": {"path": data and Path(data).name, "edge_model": None, "cache": None},
        "train": {"init": Path(init).name, "proposals": proposals and Path(proposals).name},
    }
    return override(settings, changes)
