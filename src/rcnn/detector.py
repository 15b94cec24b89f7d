"""A model with its classes and preprocessing: predict, propose, save, load."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

import rcnn.config as config
from rcnn.config.aliases import suggest_settings
from rcnn.errors import NonFiniteError, check_number, plural
from rcnn.images.batch import Preprocessor
from rcnn.images.stream import Picture, ReadOptions, Skip, overlapped
from rcnn.images.views import Viewer
from rcnn.merge_views import Pooler
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import AnyBatch, Batch, Detections, Proposals, take, to_host
from rcnn.model.suppress import Suppression, Suppressor
from rcnn.result import Result
from rcnn.runtime.by_suffix import open_file
from rcnn.runtime.eager import Eager, choose_device
from rcnn.runtime.protocol import Runtime
from rcnn.weights.metadata import Metadata, as_text, save_detector

Propose = Callable[[Sequence[str | None], Batch], Proposals]
"""Function of (paths of the images of a batch, the batch) that returns proposals in pixels of the resized images."""


class Detector:
    """A trained detector: predict, propose, save, load.

    Args:
        model: the network, or a runtime that runs one.
        settings: settings of the model and its training.
        names: class names; label k is `names[k]`.
        category_ids: the data set's number for each class. None: 1..K.
        threshold: default score threshold; boxes with a lower score are left out.
        summary: facts about the training, saved with the weights.
        licence: licence of the training data. None: `data.licence` of the settings.
        device: device to run the network on; `auto` is CUDA if available.

    Attributes:
        viewer: chooses the views of an image that the network processes.
        pooler: combines the results of all views of an image, and makes remarks on them.

    Raises:
        SettingsError: the number of `names` or `category_ids` differs from the network's number of classes, `threshold`
            is not in [0, 1], or `predict.tile=auto` is set and `summary` lacks the `scale` of the training.
    """

    def __init__(
        self,
        model: FasterRCNN | Runtime,
        settings: config.Settings,
        names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        threshold: float = 0.5,
        summary: Mapping[str, Any] | None = None,
        licence: str | None = None,
        device: str | torch.device = "auto",
    ) -> None:
        self.settings, self.names = settings, tuple(names)
        self.category_ids = tuple(category_ids) if category_ids else tuple(range(1, len(self.names) + 1))
        self.threshold, self.summary = threshold, dict(summary or {})
        self.licence = licence or settings.data.licence
        if isinstance(model, nn.Module):
            model = Eager(model, choose_device(device), settings.predict)
        self.runtime: Runtime = model
        check_number("threshold", threshold, 0, 1)
        for argument, values in (("names", self.names), ("category_ids", self.category_ids)):
            if len(values) != self.runtime.classes:
                raise config.SettingsError(
                    f"{argument}: the network has {plural(self.runtime.classes, 'class')}, got {len(values)}"
                )
        self.preprocessor = Preprocessor(settings.preprocess, self.runtime.size)
        self._read_options = ReadOptions.of(settings)
        self.viewer = Viewer(self.preprocessor, settings, self.summary.get("scale"))
        self.pooler = Pooler(self.viewer, settings, self.suppression)

    def __repr__(self) -> str:
        return as_text(self)

    @property
    def has_network(self) -> bool:
        """False for an exported file."""
        return isinstance(self.runtime, Eager)

    @property
    def network(self) -> Eager:
        """The PyTorch runtime, for training, losses, features and inspection.

        Raises:
            SettingsError: the detector is an exported file.
        """
        if not isinstance(self.runtime, Eager):
            raise config.SettingsError(
                f"this needs the network itself, and a file for {self.runtime.name} only detects and proposes; "
                "use the .safetensors file that it was exported from"
            )
        return self.runtime

    @property
    def model(self) -> FasterRCNN:
        """The network."""
        return self.network.model

    @property
    def runner(self) -> FasterRCNN:
        """A copy of the network that is optimised for prediction (see `Eager`)."""
        return self.network.runner

    @property
    def suppression(self) -> Suppression:
        """The suppressors of proposals and detections."""
        return self.runtime.suppression

    @property
    def device(self) -> torch.device:
        """The device of the runtime."""
        return self.runtime.device

    @property
    def two_stage(self) -> bool:
        """True if the detector has a second stage."""
        return self.settings.two_stage

    def with_settings(self, changes: Sequence[str] | Mapping[str, Any]) -> "Detector":
        """Return a new detector with the same weights and other settings. This detector is unchanged.

        For an exported file, only the settings in `data`, `predict`, `val`, `train` and `augment` can change, and the
        image sizes, unless it was exported for one size.

        Args:
            changes: `section.key=value` texts, or a tree of settings, applied to those of this detector.

        Raises:
            SettingsError: a setting is wrong, requires different layers from the weights, or is fixed in a file.
        """
        settings = config.override(self.settings, changes)
        return self._of(self.runtime.with_settings(settings), settings, self)

    def with_suppression(
        self, *, proposals: Suppressor | None = None, detections: Suppressor | None = None
    ) -> "Detector":
        """Return a new detector with the same weights and other suppression. Weights files do not contain it.

        Args:
            proposals: suppressor of the RPN's proposals. None: unchanged.
            detections: suppressor of detections. None: unchanged.

        Raises:
            SettingsError: the detector is an exported file.
        """
        model = copy.copy(self.model)  # shares the parameters
        model.suppression = Suppression(
            proposals or self.suppression.proposals, detections or self.suppression.detections
        )
        return self._of(Eager(model, self.device, self.settings.predict), self.settings, self)

    @suggest_settings
    def predict(
        self, images: Picture | Iterable[Picture], *, score: float | None = None, batch: int = 1, features: bool = False
    ) -> list[Result]:
        """Detect objects in images.

        Args:
            images: paths, folders, globs, bytes of image files, binary file objects, PIL images, (H, W, C) uint8
                arrays, (C, H, W) tensors, or a sequence of them. In a sequence, a tuple (key, image) names the image:
                the key, a string or an integer, is `origin.name` of its result, as a string.
            score: boxes with a lower score are left out. None: the threshold stored with the weights.
            batch: number of images that run together if they are in the same shape bucket.
            features: also return the second stage's feature vector of each box.

        Raises:
            ImageError: an image can't be read. The message names it.
            SettingsError: `score` is not in [0, 1], `batch` is not a positive integer, or the model does not detect or
                has no features.
            NonFiniteError: the network's output is not finite.
        """
        return list(self.stream(images, score=score, batch=batch, features=features))

    @suggest_settings
    def stream(
        self,
        images: Picture | Iterable[Picture],
        *,
        score: float | None = None,
        batch: int = 1,
        features: bool = False,
        skip: Skip | None = None,
        proposals: Propose | None = None,
        keep_pixels: bool = False,
    ) -> Iterator[Result]:
        """Yield the results of `predict` lazily and in input order. Memory use does not grow with the number of images.

        Args:
            images: as for `predict`, or a source: an iterable of `NamedImage`, such as a `Dataset`.
            score: as for `predict`.
            batch: as for `predict`.
            features: as for `predict`.
            skip: called with the error of each image that can't be read and is left out. None: the error is raised.
            proposals: replaces the RPN.
            keep_pixels: keep the decoded image in each result, so that `Result.draw` doesn't read the file again.
        """
        least = self.threshold if score is None else score
        check_number("score", least, 0, 1)
        check_number("batch", batch, 1, kind=Integral)

        def detect(collated: Batch, paths: Sequence[str | None]) -> list[Result]:
            given = proposals(paths, collated) if proposals else None
            return self.detect(collated, features=features, proposals=given)

        preprocessor, views = self.preprocessor, self.viewer.pyramid
        all_opened = overlapped(
            images, self.settings, preprocessor, views, batch, detect, skip, self.device, keep_pixels=keep_pixels
        )
        return (
            replace(
                self.pooler.detections(parts, opened.views, opened.size, least).filter(score=least),
                path=opened.path,
                origin=opened.origin,
            )
            for opened, parts in all_opened
        )

    @suggest_settings
    def propose(self, images: Picture | Iterable[Picture], *, top: int = 300, batch: int = 1) -> list[Result]:
        """Return class-agnostic boxes with objectness scores, at most `top` per image, best first."""
        return list(self.stream_proposals(images, top=top, batch=batch))

    def stream_proposals(
        self,
        images: Picture | Iterable[Picture],
        *,
        top: int = 300,
        batch: int = 1,
        skip: Skip | None = None,
        keep_pixels: bool = False,
    ) -> Iterator[Result]:
        """Yield the results of `propose` lazily and in input order. `skip` and `keep_pixels` are those of `stream`."""

        def propose(collated: Batch, _: Sequence[str | None]) -> list[Result]:
            return self.region_proposals(collated)

        check_number("top", top, 1, kind=Integral)
        check_number("batch", batch, 1, kind=Integral)
        preprocessor, views = self.preprocessor, self.viewer.views
        all_opened = overlapped(
            images, self.settings, preprocessor, views, batch, propose, skip, self.device, keep_pixels=keep_pixels
        )
        return (
            replace(
                self.pooler.proposals(parts, opened.views, opened.size).filter(top=top),
                path=opened.path,
                origin=opened.origin,
            )
            for opened, parts in all_opened
        )

    def check_proposals(self, *, given: bool) -> None:
        """Check that this detector can work on external proposals (`given`), or on its own.

        Raises:
            SettingsError: there is no second stage for external proposals, the RPN is untrained, or external proposals
                are used with an exported file or with windows.
        """
        if given:
            self.runtime.check_takes_proposals()
        if given and self.settings.predict.tile != "off":
            raise config.SettingsError("external proposals are for full images, not for windows: add predict.tile=off")
        if given and not self.two_stage:
            raise config.SettingsError("proposals are for a second stage, and this detector has none (`roi.head=none`)")
        if not given and self.settings.train.proposals is not None:
            windows = self.settings.train.proposals == config.SLIDING_WINDOWS
            sources = config.SLIDING_WINDOWS if windows else "FILE or --proposals selective-search"
            raise config.SettingsError(
                f"the RPN of this detector is untrained (train.scheme={self.settings.train.scheme}): it works only "
                f"with external proposals, which `predict` and `val` take as --proposals {sources}"
            )

    def detect(self, batch: AnyBatch, *, features: bool = False, proposals: Proposals | None = None) -> list[Result]:
        """Return the results of a collated batch, in pixels of the original images, without applying `threshold`.

        `proposals`, in pixels of the resized images, replace the RPN.

        Raises:
            SettingsError: the model does not detect, has no features, or can't use these proposals or images of this
                type.
            NonFiniteError: the network's output is not finite.
        """
        if not self.settings.predicts_classes:
            raise config.SettingsError(
                "this detector has no second stage (`roi.head=none`), so it can't predict classes; use its proposals: "
                "`propose` instead of `predict`, or the command rcnn propose"
            )
        if features and not self.two_stage:
            raise config.SettingsError("a one-stage detector has no feature vectors of boxes; omit features=True")
        self.check_proposals(given=proposals is not None)
        pass_ = (self.network.record if features else self.runtime.execute)(batch, proposals, fields=("detections",))
        assert pass_.detections is not None
        vectors = None
        if features and pass_.rois:
            vectors = take(pass_.rois[-1].features, pass_.detections.proposal)
        return self.results(batch, pass_.detections, vectors)

    def results(self, batch: AnyBatch, detections: Detections, vectors: Tensor | None = None) -> list[Result]:
        """Return the network's detections as one Result per image, in pixels of the original image."""
        more = () if vectors is None else (vectors,)
        scales, originals, *here = to_host([batch.scales, batch.originals, *detections, *more])
        detections, vectors, back = Detections(*here[:6]), here[6] if more else None, self.preprocessor.boxes_back
        _check_finite(detections.finite)
        return [
            Result(
                boxes=back(detections.boxes[i][keep], scales[i], originals[i]).float().numpy(),
                scores=detections.scores[i][keep].float().numpy(),
                labels=detections.labels[i][keep].numpy(),
                names=self.names,
                path=None,
                size=(int(originals[i, 0]), int(originals[i, 1])),
                features=None if vectors is None else vectors[i][keep].float().numpy(),
                category_ids=self.category_ids,
                read_options=self._read_options,
            )
            for i, keep in enumerate(detections.valid)
        ]

    def region_proposals(self, batch: AnyBatch) -> list[Result]:
        """Return the proposals of a collated batch, in pixels of the original images.

        Raises:
            SettingsError: the RPN is untrained, or the network does not accept images of this type.
            NonFiniteError: the network's output is not finite.
        """
        self.check_proposals(given=False)
        pass_ = self.runtime.execute(batch, fields=("proposals",))
        assert pass_.proposals is not None
        finite, *proposals = to_host([pass_.finite, *pass_.proposals])
        _check_finite(finite)
        return self.proposal_results(batch, Proposals(*proposals))

    def proposal_results(self, batch: AnyBatch, proposals: Proposals) -> list[Result]:
        """Return the network's proposals as one Result per image, in pixels of the original image."""
        scales, originals, *here = to_host([batch.scales, batch.originals, *proposals])
        (boxes, scores, valid), back = here[:3], self.preprocessor.boxes_back
        return [
            Result(
                boxes=back(boxes[i][keep], scales[i], originals[i]).float().numpy(),
                scores=scores[i][keep].float().numpy(),
                labels=np.zeros(int(keep.sum()), dtype=np.int64),
                names=("object",),
                path=None,
                size=(int(originals[i, 0]), int(originals[i, 1])),
                read_options=self._read_options,
            )
            for i, keep in enumerate(valid)
        ]

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write weights, settings, classes and threshold as one safetensors file, atomically.

        `roi.box_mean` and `roi.box_std` are folded into the box layer, and `load` reverses this bit for bit. Only the
        biases may differ, by one rounding in float64, if a mean is not 0. Only the last part of the paths `data.path`
        and `train.init` is saved.

        Args:
            path: the file, in an existing folder.
            half: save as float16, in half the space. Loading converts the weights back to float32.

        Raises:
            WeightsError: a number is too large for float16.
            SettingsError: the detector is an exported file.
            OSError: the folder is missing or not writable, or the disk is full. An existing file is left unchanged.
        """
        save_detector(path, self.model.state_dict(), self, half=half)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        *,
        backbone: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> "Detector":
        """Load a detector from a file written by `save` or `rcnn export`.

        Args:
            path: a .safetensors file, or an exported .onnx or .xml file, of which only the graph is run.
            device: device to run on; `auto` is CUDA if available, and the CPU for an exported file.
            backbone: the module to load weights into if the detector has a custom one (`model.backbone=custom`).
            head: likewise, the head of the second stage.

        Raises:
            WeightsError: the file is missing, damaged, or not one of our detectors, or it needs a custom module or a
                package that is not installed.
            SettingsError: the device can't be used.
        """
        runtime, metadata = open_file(path, device, backbone=backbone, head=head)
        return cls._of(runtime, metadata.settings, metadata)

    @classmethod
    def _of(cls, runtime: Runtime, settings: config.Settings, about: Metadata | Self) -> "Detector":
        """Return a detector with the classes and metadata of another detector or of a file."""
        return cls(
            runtime,
            settings,
            about.names,
            category_ids=about.category_ids,
            threshold=about.threshold,
            summary=about.summary,
            licence=about.licence,
        )


def _check_finite(finite: Tensor) -> None:
    """Raise if any output is not finite; it would otherwise look like an image without objects."""
    if not bool(finite.all()):
        raise NonFiniteError(
            "the network's output is not finite (NaN or infinity): the weights are damaged or the training diverged; "
            "use an earlier checkpoint, or train again with a lower train.lr"
        )
