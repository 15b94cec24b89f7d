"""The network in PyTorch, prepared for prediction."""

import copy
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Self

import torch
from torch import Tensor, nn

from rcnn.config import NETWORK_SECTIONS, Predict, Settings, changed_keys
from rcnn.errors import SettingsError, WeightsError
from rcnn.images.batch import Size
from rcnn.model.faster_rcnn import FasterRCNN, no_detections
from rcnn.model.structures import AnyBatch, Losses, Pass, Proposals, Targets, to_device
from rcnn.model.suppress import Suppression
from rcnn.presets import build
from rcnn.runtime.cuda_graphs import CudaGraphs
from rcnn.runtime.folded import folded
from rcnn.runtime.precision import TYPES, chosen_precision, limit_threads
from rcnn.runtime.steady import make_steady
from rcnn.weights.adapt import check_shapes, fill, shapes_alone, weights_follow
from rcnn.weights.box_targets import renormalise
from rcnn.weights.file import check_same_file, file_digest
from rcnn.weights.metadata import FOREIGN, Metadata, read_detector

_MAKING = Lock()
"""Held while a runner is made, so that threads share it. A runtime that holds a lock can't be pickled."""


class Eager:
    """A `Runtime` on a network in this process.

    Args:
        model: the network; it is not changed.
        device: on which it runs.
        settings: `precision`, `compile` and `graphs` are read. None: the defaults.
    """

    name = "eager"
    size: Size | None = None

    def __init__(self, model: FasterRCNN, device: torch.device, settings: Predict | None = None) -> None:
        self.model, self.device, self.settings = model, device, settings or Predict()
        self.precision = chosen_precision(self.settings.precision, device)
        self._file: Path | None = None
        self._runner: FasterRCNN | None = None
        self._programs: dict[tuple[type[AnyBatch], frozenset[str]], Callable[[Tensor, Tensor], Pass]] = {}

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device,
        *,
        backbone: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> tuple[Self, Metadata]:
        """Return the network of a detector's file, ready to run, and the metadata of the file.

        Raises:
            WeightsError: as for `Detector.load`.
        """
        models = list[FasterRCNN]()

        def build_and_check(metadata: Metadata, shapes: Mapping[str, Tensor]) -> None:
            """Build the network and check that the file fits it, before memory is taken for its weights."""
            if metadata.settings.model.backbone == "custom" and backbone is None:
                raise WeightsError(
                    f"{path}: this detector was made with a backbone of your own, whose code is not in the file; "
                    "pass the module: load(path, backbone=MODULE)"
                )
            with shapes_alone() if backbone is None and head is None else weights_follow():
                models.append(build(metadata.settings, len(metadata.names), backbone=backbone, head=head))
            check_shapes(models[0], shapes, path)

        try:
            tensors, metadata = read_detector(path, build_and_check)
        except SettingsError as error:
            raise WeightsError(f"{path}: {FOREIGN}: {error}") from None
        fill(models[0], tensors, path)
        runtime = cls(models[0], device, metadata.settings.predict)
        if backbone is None and head is None:
            runtime._file = Path(path).absolute()
        return runtime, metadata

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle a network that equals its file as path and digest of the file, any other one completely.

        The copy for prediction and compiled programs are left out.
        """
        if self._file is not None and self._equals(self._file):
            device = "auto" if self.device == choose_device("auto") else str(self.device)
            return _reopen, (self._file, file_digest(self._file), device, self.model.settings)
        return Eager, (self.model, self.device, self.settings)

    def _equals(self, path: Path) -> bool:
        """Return whether a file, with the settings of this network, has the same weights."""
        try:
            state = Eager.load(path, torch.device("cpu"))[0].with_settings(self.model.settings).model.state_dict()
        except (WeightsError, SettingsError):
            return False
        own = self.model.state_dict()
        return own.keys() == state.keys() and all(torch.equal(own[name].cpu(), state[name]) for name in own)

    @property
    def classes(self) -> int:
        """Number of classes, background not counted."""
        return self.model.classes

    @property
    def suppression(self) -> Suppression:
        """The suppression of proposals and detections."""
        return self.model.suppression

    def with_settings(self, settings: Settings) -> "Eager":
        """As `Runtime.with_settings`: a new network with the same weights."""
        custom = settings.model.backbone == "custom"
        head = self.model.fast_rcnn.head if custom and self.model.fast_rcnn is not None else None
        backbone = copy.deepcopy(self.model.backbone) if custom else None
        with weights_follow():
            model = build(settings, self.model.classes, backbone=backbone, head=copy.deepcopy(head))
        model.suppression = self.suppression.with_settings(settings)
        try:
            model.load_state_dict(renormalise(self.model.state_dict(), self.model.settings.roi, settings.roi))
        except RuntimeError:
            changed = changed_keys(self.model.settings, settings, NETWORK_SECTIONS)
            raise SettingsError(
                f"{', '.join(changed)}: the weights are made for other layers; train again with this setting"
            ) from None
        runtime = Eager(model, self.device, settings.predict)
        runtime._file = self._file
        return runtime

    def check_takes_proposals(self) -> None:
        """As `Runtime.check_takes_proposals`. A network accepts them."""

    @property
    def runner(self) -> FasterRCNN:
        """A copy of the model for prediction: eval mode, batch norm folded, channels last. It is made at the first use.

        On the CPU it is batch invariant: an image gives the same bits alone and in any batch. In half precision the
        weights are stored in it, so that they need no conversion at every use.
        """
        with _MAKING:
            if self._runner is None:
                runner = folded(self.model)
                if self.device.type == "cpu":
                    make_steady(runner)
                if self.precision in TYPES:
                    for layer in runner.modules():
                        if isinstance(layer, (nn.Conv2d, nn.Linear)):
                            layer.to(TYPES[self.precision])
                self._runner = runner.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            assert self._runner is not None
            return self._runner

    @property
    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the network runs."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, TYPES[self.precision])

    @torch.inference_mode()
    def execute(
        self,
        batch: AnyBatch,
        proposals: Proposals | None = None,
        *,
        fields: Collection[str] = ("proposals", "detections"),
    ) -> Pass:
        """As `Runtime.execute`: only the requested fields, compiled or as a CUDA graph, depending on the settings."""
        graphs = self.settings.graphs if self.device.type == "cuda" else 0
        if proposals is not None or not (graphs or self.settings.compile):
            return self.record(batch, proposals, fields=fields)
        self.runner.pixels.check(batch)  # before anything is compiled or captured
        key = type(batch), frozenset(fields)
        if key not in self._programs:
            program = partial(execute_fields, self.runner, *key)
            program = torch.compile(program, dynamic=False) if self.settings.compile else program
            self._programs[key] = CudaGraphs(program, graphs) if graphs else program
        batch = to_device(batch, self.device)
        with self.autocast:
            return self._programs[key](batch.images, batch.sizes)

    @torch.inference_mode()
    def record(
        self,
        batch: AnyBatch,
        proposals: Proposals | None = None,
        *,
        fields: Collection[str] = ("proposals", "rois", "detections"),
    ) -> Pass:
        """As `FasterRCNN.execute`, with all intermediate results, for losses and inspection."""
        proposals = None if proposals is None else to_device(proposals, self.device)
        with self.autocast:
            return self.runner.execute(to_device(batch, self.device), proposals, fields=fields)

    @torch.inference_mode()
    def loss(self, batch: AnyBatch, targets: Targets, seeds: Tensor, pass_: Pass) -> Losses:
        """Return the losses of a batch from its record. `seeds` is as for `FasterRCNN.keys`."""
        batch, targets = to_device(batch, self.device), to_device(targets, self.device)
        external = pass_.proposals if pass_.rpn is None else None
        with self.autocast:
            keys = self.runner.keys(batch, targets, seeds, external)
            return self.runner.loss(batch, targets, keys, proposals=external, pass_=pass_)


def _reopen(path: Path, digest: str, device: str, settings: Settings) -> Eager:
    """Return the network that was pickled as a file.

    Raises:
        WeightsError: the file is missing or has another content.
        SettingsError: the device can't be used.
    """
    check_same_file(path, digest)
    return Eager.load(path, choose_device(device))[0].with_settings(settings)


def execute_fields(
    net: FasterRCNN, kind: type[AnyBatch], fields: Collection[str], images: Tensor, sizes: Tensor
) -> Pass:
    """Return the requested proposals and detections. Without detections, only `finite` is meaningful in them.

    `kind` is the type of the batch of images and sizes.
    """
    pass_ = net.execute(kind(images, sizes, sizes, sizes), fields=fields)
    detections = pass_.detections
    if detections is None:
        assert pass_.rpn is not None
        detections = no_detections(pass_.rpn)
    return Pass((), None, pass_.proposals if "proposals" in fields else None, (), detections)


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device of this name; `auto` is CUDA if available, else the CPU.

    Raises:
        SettingsError: there is no such device, or it lacks float64, which suppression of boxes needs.
    """
    limit_threads()
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "mps":
            raise SettingsError(f"train.device: `{name}` has no float64, which suppression needs; take cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"train.device: `{name}` can't be used here: {str(error).splitlines()[0]}") from None
    return device
