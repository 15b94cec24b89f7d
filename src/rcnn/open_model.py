"""Load detectors by name or file: packaged ones, torchvision's from its server, and weights files."""

from difflib import get_close_matches
from pathlib import Path

import torch
from torch import nn

from rcnn.detector import Detector
from rcnn.errors import UnavailableError, WeightsError
from rcnn.images.storage import Location, RemotePath, downloaded, is_remote, location
from rcnn.interop.torchvision_names import ARCHITECTURES
from rcnn.runtime.by_suffix import is_exported, runtime_of
from rcnn.runtime.eager import choose_device
from rcnn.weights.file import weights_of_run
from rcnn.weights.hub import fetch, is_offline
from rcnn.weights.packaged import PACKAGED, packaged_path

NAMES = (*PACKAGED, *(f"torchvision/{arch}" for arch in ARCHITECTURES))
"""Names that `load` accepts."""


def load(
    path_or_name: str | Location,
    device: str | torch.device = "auto",
    *,
    backbone: nn.Module | None = None,
    head: nn.Module | None = None,
) -> Detector:
    """Load a detector, ready to predict.

    Args:
        path_or_name: a run folder, such as `runs/train/exp-1`, for its best weights, or its last ones with
            `train.keep=last`; a weights file; an .onnx or .xml file from `rcnn export`; `blood-cells`, which comes with
            the package; or `torchvision/fasterrcnn_resnet50_fpn_v2` or one of torchvision's other three detectors, with
            its newest COCO weights, which are downloaded on first use (see `rcnn.weights.hub.fetch`). A name takes
            precedence over a file of the same name; use `./NAME` for the file. The address of a weights file, such as
            `s3://bucket/model.safetensors`, is downloaded to the cache, and again if it has changed.
        device: device to predict on. `auto` is CUDA if available, and the CPU for an exported file.
        backbone: the module to load weights into if the file's `model.backbone` is `custom`.
        head: likewise, the head of the second stage.

    Raises:
        WeightsError: the name is unknown, or the file is missing, damaged or not one of our detectors.
        UnavailableError: the weights are not in the cache and can't be downloaded, or the package that runs an exported
            file is not installed. The message says what to do. It is a WeightsError.
        SettingsError: the device can't be used, or the address can't be opened.
        StorageError: the address can't be reached, or may not be read, or a package that opens it is missing.
    """
    name = str(path_or_name)
    if is_remote(path_or_name):
        name = str(_download(path_or_name))
    if is_exported(name):
        return Detector.load(_file(name), device)
    device = choose_device(device)
    if name in PACKAGED:
        return Detector.load(packaged_path(name), device)
    if name in NAMES:
        from torchvision.models import get_model_weights

        from rcnn.interop.detectors import import_weights

        arch = name.removeprefix("torchvision/")
        return import_weights(fetch(get_model_weights(arch)["DEFAULT"].url), arch, device=device)
    return Detector.load(_file(name), device, backbone=backbone, head=head)


def _download(address: str | Location) -> Path:
    """Return the local copy of a remote weights file.

    Raises:
        WeightsError: there is no such file, or it would need another one.
        SettingsError, StorageError: as for `load`.
    """
    path = location(address)
    assert isinstance(path, RemotePath)
    if is_offline():
        raise UnavailableError(f"{path} can't be downloaded: RCNN_OFFLINE is set; give a local copy of it")
    if is_exported(path.name) and runtime_of(path.name).companions:
        raise WeightsError(
            f"{path}: this exported file belongs to a second file; download both, and give the local one"
        )
    try:
        return downloaded(path)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file") from None


def _file(name: str) -> Path:
    """Return the path of the file, or raise an error with a suggestion."""
    if not name:
        raise WeightsError(f"the name of the model is empty; give a file, a run, or a name: {', '.join(NAMES)}")
    path = weights_of_run(Path(name).expanduser())
    if path.is_dir():
        what = "has no weights yet" if (path / "config.yaml").is_file() else "is a folder"
        raise WeightsError(f"{name} {what}; give a weights file, a trained run, or a name: {', '.join(NAMES)}")
    if path.exists():
        return path
    near = get_close_matches(name.lower(), NAMES, n=1)
    if near:
        raise WeightsError(f"{name}: no such file or known name; did you mean `{near[0]}`?")
    raise WeightsError(f"{name}: no such file. Known names are {', '.join(NAMES)}")


def names_weights(model: str) -> bool:
    """Return whether a model is a file or name that `rcnn.load` loads, and not a preset."""
    return model in NAMES or model.endswith(".safetensors") or is_remote(model) or Path(model).is_file()
