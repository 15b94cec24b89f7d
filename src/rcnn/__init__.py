"""Faster R-CNN from a folder of labelled images to a trained detector, its scores and pictures of what it sees.

The names below are the public interface. Each is imported at first use, so that `import rcnn` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rcnn.batch_predictor import BatchPredictor
    from rcnn.config import Settings
    from rcnn.data.formats.find import open_dataset
    from rcnn.detector import Detector
    from rcnn.diagnose.anchors.study import anchors
    from rcnn.diagnose.why.why import why
    from rcnn.errors import (
        DataError,
        ExportError,
        ImageError,
        Interrupted,
        NonFiniteError,
        PredictionError,
        SettingsError,
        StorageError,
        TrainingError,
        UnavailableError,
        WeightsError,
    )
    from rcnn.evaluate import val
    from rcnn.exporting.export import export
    from rcnn.exporting.int8 import export_int8
    from rcnn.interop.detectors import from_torchvision
    from rcnn.metrics.table import Metrics
    from rcnn.model.faster_rcnn import FasterRCNN
    from rcnn.model.rpn import RegionProposalNetwork
    from rcnn.open_model import load
    from rcnn.result import Result
    from rcnn.training.run import Run
    from rcnn.training.train import train

__version__ = "0.1.0"

__all__ = [
    "BatchPredictor",
    "DataError",
    "Detector",
    "ExportError",
    "FasterRCNN",
    "ImageError",
    "Interrupted",
    "Metrics",
    "NonFiniteError",
    "PredictionError",
    "RegionProposalNetwork",
    "Result",
    "Run",
    "Settings",
    "SettingsError",
    "StorageError",
    "TrainingError",
    "UnavailableError",
    "WeightsError",
    "anchors",
    "audit",
    "export",
    "export_int8",
    "from_torchvision",
    "load",
    "open_dataset",
    "train",
    "val",
    "why",
]

_HOME = {
    "BatchPredictor": "batch_predictor",
    "DataError": "errors",
    "Detector": "detector",
    "ExportError": "errors",
    "FasterRCNN": "model.faster_rcnn",
    "ImageError": "errors",
    "Interrupted": "errors",
    "Metrics": "metrics.table",
    "NonFiniteError": "errors",
    "PredictionError": "errors",
    "RegionProposalNetwork": "model.rpn",
    "Result": "result",
    "Run": "training.run",
    "Settings": "config",
    "SettingsError": "errors",
    "StorageError": "errors",
    "TrainingError": "errors",
    "UnavailableError": "errors",
    "WeightsError": "errors",
    "anchors": "diagnose.anchors.study",
    "audit": "auditing.audit",
    "export": "exporting.export",
    "export_int8": "exporting.int8",
    "from_torchvision": "interop.detectors",
    "load": "open_model",
    "open_dataset": "data.formats.find",
    "train": "training.train",
    "val": "evaluate",
    "why": "diagnose.why.why",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        hint = f"; did you mean `rcnn.load(...).{name}(...)`?" if name in ("predict", "propose", "stream") else ""
        raise AttributeError(f"module 'rcnn' has no attribute '{name}'{hint}")
    return getattr(import_module(f"rcnn.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
