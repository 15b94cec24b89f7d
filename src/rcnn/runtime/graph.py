"""The graph of an exported file, whichever program runs it: inputs, outputs, and what of a detector is fixed in it.

B images, C channels, H x W padded sides, D detections, P proposals. In go `images` (B, C, H, W), uint8 (float32 of
0..255 with `preprocess.resize=interpolate`), and `sizes` (B, 2) float32: (height, width) before padding. Out come
`boxes` (B, D, 4), `scores`, `labels` and `valid` (B, D), `finite` (B,), `proposal_boxes` (B, P, 4), `proposal_scores`
and `proposal_valid` (B, P), the best first, boxes in pixels of the resized images. A region proposal network alone has
no `boxes`, `scores`, `labels` and `valid`.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn, Self

import numpy as np
import torch
from torch import Tensor

from rcnn.config import Settings, dump
from rcnn.errors import SettingsError, WeightsError
from rcnn.model.normalise import pixel_dtype
from rcnn.model.structures import AnyBatch, Detections, NormalisedBatch, Pass, Proposals
from rcnn.runtime.graph_metadata import FOREIGN, FileMetadata
from rcnn.runtime.precision import chosen_precision
from rcnn.weights.file import first_line

Ports = Mapping[str, tuple[str, int]]
"""Name of an input or output -> its type, as numpy names it, and its number of axes."""

PROPOSED: Ports = {
    "finite": ("bool", 1),
    "proposal_boxes": ("float32", 3),
    "proposal_scores": ("float32", 2),
    "proposal_valid": ("bool", 2),
}
DETECTED: Ports = {"boxes": ("float32", 3), "scores": ("float32", 2), "labels": ("int64", 2), "valid": ("bool", 2)}
NAMES = {"images", "sizes", *PROPOSED, *DETECTED}
"""Of inputs and outputs."""
FREE = ("data", "augment", "train", "val", "predict")
"""Sections of the settings that are not part of a graph, but for `predict.svd`."""


class Contents(NamedTuple):
    """What a file holds, besides what it says about itself.

    Attributes:
        metadata: our entry.
        bytes: size of the file, and of the one beside it that holds its weights.
        tensors: number of constants in the graph.
        parameters: number of the floating-point numbers in them.
        types: of these, as in `float32`.
    """

    metadata: FileMetadata
    bytes: int
    tensors: int
    parameters: int
    types: tuple[str, ...]


class GraphRuntime(ABC):
    """A `Runtime` on an exported file. It runs on the CPU, with as many threads as PyTorch has.

    Args:
        path: the file.
        metadata: what it says about itself.
        precision: as `predict.precision`.
    """

    name: str

    def __init__(self, path: Path, metadata: FileMetadata, precision: str) -> None:
        self.path, self.metadata = path, metadata
        self.device, self.size = torch.device("cpu"), metadata.size
        self.precision = chosen_precision(precision, self.device)

    @abstractmethod
    def at_precision(self, precision: str) -> Self:
        """The same file at another precision.

        Raises:
            SettingsError: it does not run at it.
        """

    @abstractmethod
    def infer(self, images: np.ndarray, sizes: np.ndarray) -> Mapping[str, np.ndarray]:
        """Run the graph: its outputs by name."""

    def with_settings(self, settings: Settings) -> Self:
        """The runtime of this detector with other settings.

        Raises:
            SettingsError: a setting is part of the graph.
        """
        old, new = dump(self.metadata.settings), dump(settings)
        changed = [f"{part}.{key}" for part in old for key in old[part] if old[part][key] != new[part][key]]
        free = () if self.size else ("preprocess.short", "preprocess.long")
        fixed = [key for key in changed if key.split(".")[0] not in FREE and key not in free]
        if self.size and "predict.scales" in changed:
            fixed.append("predict.scales")
        if "predict.svd" in changed:
            fixed.append("predict.svd")
        if fixed:
            raise SettingsError(
                f"{', '.join(fixed)}: fixed in the exported file {self.path}; export the detector again with this "
                "setting" + (", and without a size" if self.size else "")
            )
        precision = chosen_precision(settings.predict.precision, self.device)
        return self if precision == self.precision else self.at_precision(precision)

    def execute(
        self,
        batch: AnyBatch,
        proposals: Proposals | None = None,
        *,
        fields: Collection[str] = ("proposals", "detections"),
    ) -> Pass:
        """As `Runtime.execute`: proposals and detections, whatever is asked for. What the graph does not tell is -1.

        Raises:
            SettingsError: proposals are given, or the images are not of a size or type that the file allows, or
                normalised already.
            WeightsError: the graph fails, or gives what no detector gives.
            MemoryError: there is not enough memory.
        """
        if proposals is not None:
            self.refuse_proposals()
        self._check_images(batch)
        shape = tuple(batch.images.shape)
        try:
            found = self.infer(batch.images.cpu().numpy(), batch.sizes.cpu().numpy())
        except Exception as error:  # a stranger's graph may fail anywhere, and the programs raise what they like
            if "alloc" in str(error):
                raise MemoryError(f"{self.path}, images of {shape}: {first_line(error)}") from None
            raise WeightsError(f"{self.path}: fails on images of {shape}: {first_line(error)}") from None
        return self._record({name: torch.from_numpy(np.ascontiguousarray(found[name])) for name in self._outputs()})

    def refuse_proposals(self) -> NoReturn:
        """Raise the error of given proposals."""
        raise SettingsError(
            f"{self.path}: an exported file works on its own proposals alone; for others take the .safetensors file "
            "that it was exported from"
        )

    def _check_images(self, batch: AnyBatch) -> None:
        preprocess = self.metadata.settings.preprocess
        wanted, found = pixel_dtype(preprocess), batch.images.dtype
        if isinstance(batch, NormalisedBatch):
            raise SettingsError(
                f"{self.path}: normalises images itself, but was given a NormalisedBatch; give it a Batch of pixels of "
                f"0..255, {wanted}, or take the .safetensors file that it was exported from, which accepts both"
            )
        if found != wanted:
            raise SettingsError(
                f"{self.path}: takes pixels of 0..255 as {wanted}, but these are {found}; prepare images with the "
                "`preprocessor` of its detector"
            )
        height, width = sides = tuple(batch.images.shape[2:])
        if self.size and sides != self.size:
            raise SettingsError(
                f"{self.path}: exported for images of {self.size[0]} x {self.size[1]}, got {height} x {width}"
            )
        multiple = preprocess.multiple
        if height % multiple or width % multiple:
            raise SettingsError(
                f"{self.path}: takes images whose sides are multiples of {multiple}, got {height} x {width}"
            )

    def _outputs(self) -> Ports:
        return {**DETECTED, **PROPOSED} if self.metadata.settings.predicts_classes else PROPOSED

    def check_ports(self, inputs: Ports, outputs: Ports) -> None:
        """Check that the graph has our inputs and outputs.

        Raises:
            WeightsError: it has not.
        """
        image = str(pixel_dtype(self.metadata.settings.preprocess)).removeprefix("torch.")
        takes: Ports = {"images": (image, 4), "sizes": ("float32", 2)}
        for kind, wanted, there in (("input", takes, inputs), ("output", self._outputs(), outputs)):
            for name, (dtype, axes) in wanted.items():
                if there.get(name) != (dtype, axes):
                    raise WeightsError(
                        f"{self.path}: {FOREIGN}: its graph has no {kind} `{name}` of {dtype} with {axes} axes"
                    )
        if extra := set(inputs) - set(takes):
            raise WeightsError(f"{self.path}: {FOREIGN}: its graph wants an input `{min(extra)}`")

    def _record(self, found: Mapping[str, Tensor]) -> Pass:
        """The record of a run. What detectors never give is refused: others index by it, or write it into files."""
        finite = found["finite"]
        none = torch.zeros(len(finite), 0)
        boxes, scores = found.get("boxes", none[..., None].expand(-1, -1, 4)), found.get("scores", none)
        labels, valid = found.get("labels", none.long()), found.get("valid", none.bool())
        near, objectness, real = (found[f"proposal_{name}"] for name in ("boxes", "scores", "valid"))
        agree = all(
            len(frames) == len(finite)
            and frames.shape == (*mask.shape, 4)
            and all(one.shape == mask.shape for one in rows)
            for frames, mask, rows in ((boxes, valid, (scores, labels)), (near, real, (objectness,)))
        )
        if not agree or bool(((labels < 0) | (labels >= len(self.metadata.names)))[valid].any()):
            raise WeightsError(f"{self.path}: {FOREIGN}: its outputs don't belong together")
        for part in (boxes, scores, near, objectness):
            finite = finite & part.isfinite().flatten(1).all(dim=1)
        unknown = torch.full(real.shape, -1)
        return Pass(
            levels=(),
            rpn=None,
            proposals=Proposals(near, objectness, real, unknown, unknown),
            rois=(),
            detections=Detections(boxes, scores, labels, valid, torch.full_like(labels, -1), finite),
        )
