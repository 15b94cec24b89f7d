"""The interface of a runtime, the program that runs the network of a detector."""

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
        """The device on which it runs, and of its results."""
        ...

    @property
    def suppression(self) -> Suppression:
        """The suppression of proposals and detections."""
        ...

    def with_settings(self, settings: Settings) -> "Runtime":
        """Return the runtime of the same weights with other settings.

        Raises:
            SettingsError: the weights do not fit the layers of a setting, or the setting is fixed in an exported file.
        """
        ...

    def check_takes_proposals(self) -> None:
        """Check that `execute` accepts external proposals.

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
        """Run the network on a batch, as `FasterRCNN.execute`. Fields that the runtime does not compute are None.

        Args:
            batch: images, on any device.
            proposals: external proposals in place of the RPN's, in pixels of the resized images.
            fields: the fields of the result that are needed.

        Raises:
            SettingsError: the runtime does not support external proposals, or images of this size, of this type or that
                are normalised.
        """
        ...
