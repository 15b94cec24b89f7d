"""Convert detectors from and to other libraries: torchvision's Faster R-CNN, detectron2 and Caffe."""

from argparse import Namespace
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import rcnn.weights.caffe_detector as caffe_detector
from rcnn.detector import Detector
from rcnn.errors import WeightsError
from rcnn.interop import detectron2, torchvision, torchvision_export
from rcnn.presets import build, settings_of
from rcnn.runtime.by_suffix import is_exported
from rcnn.weights.adapt import fill, weights_follow
from rcnn.weights.backbone import read_tensors
from rcnn.weights.caffe import read_arrays
from rcnn.weights.file import first_line
from rcnn.weights.imported import Imported
from rcnn.weights.pickles import read_pickle

ARCHITECTURES = (*torchvision.ARCHITECTURES, *caffe_detector.ARCHITECTURES, *detectron2.ARCHITECTURES)
"""Names for `import_weights`: torchvision's detectors, the paper's networks, configurations of detectron2."""


def from_torchvision(model: nn.Module, names: Sequence[str] | None = None) -> Detector:
    """Make a detector with the same boxes, labels and scores as an instance of torchvision's `FasterRCNN`.

    Sizes, anchors, thresholds and heads are read from the instance. A backbone or a head that is not torchvision's own
    is kept unchanged; `Detector.load` then needs such a module again, as
    `rcnn.interop.torchvision.as_backbone(MODULE)` or `rcnn.interop.torchvision.UserHead(MODULE, features)`.

    Args:
        model: made by one of torchvision's functions, or assembled from its parts. It is not changed.
        names: class names, without the background. None: COCO's for 91 classes, else `class_1`, ...

    Raises:
        WeightsError: no setting expresses what the model does; the message names the attribute.
    """
    return detector_of(torchvision.import_model(model, names))


def import_weights(
    path: str | Path, arch: str, names: Sequence[str] | None = None, *, device: str | torch.device = "auto"
) -> Detector:
    """Make a detector from a checkpoint of torchvision (.pth, .safetensors), detectron2 (.pkl, .pth) or Caffe (.npz).

    Code in the file is not run.

    Args:
        path: the file.
        arch: one of `ARCHITECTURES`.
        names: class names, without the background. None: COCO's if there are as many classes.
        device: where to run; `auto` is CUDA if available.

    Raises:
        WeightsError: the architecture is unknown, or the file is missing, damaged or of another architecture.
        SettingsError: the device can't be used here.
    """
    return detector_of(read(path, arch, names), device)


def read(path: str | Path, arch: str, names: Sequence[str] | None = None) -> Imported:
    """Read the settings and tensors from which `import_weights` makes a detector.

    Raises:
        WeightsError: as for `import_weights`.
    """
    if arch not in ARCHITECTURES:
        near = get_close_matches(arch, ARCHITECTURES, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(ARCHITECTURES)}"
        raise WeightsError(f"no architecture is called `{arch}`; {hint}")
    path = Path(path)
    if is_exported(path):
        raise WeightsError(f"{path}: a graph can't be imported, only weights can")
    if arch in caffe_detector.ARCHITECTURES:
        return caffe_detector.import_arrays(read_arrays(path), settings_of(arch), names)
    # torchvision's training script keeps its options next to the state, in a Namespace.
    with torch.serialization.safe_globals([Namespace]):
        state = read_pickle(path) if path.suffix == ".pkl" else read_tensors(path)
    library = torchvision if arch in torchvision.ARCHITECTURES else detectron2
    try:
        return library.import_state(state, arch, names)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except Exception as error:  # the right names may have tensors of any shape and type
        raise WeightsError(f"{path}: this is not {arch}: {first_line(error)}") from None


def detector_of(imported: Imported, device: str | torch.device = "auto") -> Detector:
    """Make a detector from imported settings and tensors.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape.
    """
    classes = len(imported.names)
    with weights_follow():
        model = build(imported.settings, classes, backbone=imported.backbone, head=imported.head)
    fill(model, imported.tensors, "the checkpoint")
    summary = {"notes": list(imported.notes)} if imported.notes else {}
    return Detector(
        model, imported.settings, imported.names, category_ids=imported.category_ids, summary=summary, device=device
    )


def to_torchvision(detector: Detector) -> dict[str, Tensor]:
    """Return the detector's weights as a state dictionary of torchvision's `FasterRCNN`, on the CPU.

    `rcnn.interop.torchvision_export.program` shows how to build the instance that loads it.

    Raises:
        WeightsError: torchvision can't represent this detector; the message names the settings.
    """
    return torchvision_export.export_state(detector.model.state_dict(), detector.settings)


def to_caffe(detector: Detector) -> dict[str, np.ndarray]:
    """Return a detector of the paper as arrays under Caffe's names, which `import_weights` reads from an .npz file.

    `roi.box_mean` and `roi.box_std` are folded into the box layer.

    Raises:
        WeightsError: the network is not one of the paper's; the message names the settings.
    """
    return caffe_detector.export_arrays(detector.model.state_dict(), detector.settings)
