"""The interface of a runtime: what a detector needs from the program that runs its network."""

from collections.abc import Collection
from typing import Protocol

import torch

from rcnn.config import Settings
from rcnn.images.batch import Size
from rcnn.model.structures import AnyBatch, Pass, Proposals
from rcnn.model.suppress import Suppression


class Runtime(Protocol):
    """Runs a network on batches.

    Attributes:
        name: `eager`, `onnxruntime` or `openvino`.
        precision: of the convolutions and matrix products: `float32` or `bf16`.
        size: (height, width) of all images, padding included; None: any multiples of `preprocess.multiple`.
    """

    name: str
    precision: str
    size: Size | None

    @property
    def classes(self) -> int:
        """Number of classes, background not counted."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs, and where its results are."""
        ...

    @property
    def suppression(self) -> Suppression:
        """What chooses proposals and detections."""
        ...

    def with_settings(self, settings: Settings) -> "Runtime":
        """Return the runtime of the same weights with other settings.

        Raises:
            SettingsError: a setting needs other layers than those of the weights, or is fixed in an exported file.
        """
        ...

    def check_takes_proposals(self) -> None:
        """Check that `execute` takes proposals.

        Raises:
            SettingsError: it does not.
        """
        ...

    def execute(
        self,
        batch: AnyBatch,
        proposals: Proposals | None = None,
        *,
        fields: Collection[str] = ("proposals", "detections"),
    ) -> Pass:
        """One pass over a batch, as `FasterRCNN.execute` makes it; what the runtime does not give is None.

        Args:
            batch: images, on any device.
            proposals: given ones in place of the RPN's, in pixels of the resized images.
            fields: of the record, that are needed.

        Raises:
            SettingsError: the runtime can't do this: given proposals, a size that its file does not allow, images that
                are normalised already or of another type than it takes.
        """
        ...
