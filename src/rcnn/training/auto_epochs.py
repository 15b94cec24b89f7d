"""The number of epochs of a new run with `train.epochs=auto`."""

import math

from rcnn.config import Settings, override
from rcnn.errors import plural

IMAGES, EPOCHS = 300, 30
"""A training list of this length gets this many epochs."""
MIN_EPOCHS, MAX_EPOCHS = 10, 100
EXPONENT = 1 / 3
"""Power of the number of images by which longer lists get fewer epochs."""


def epochs_for(images: int) -> int:
    """Return the number of epochs for a number of training images.

    Up to `IMAGES`, all lists get the same number of steps, up to `MAX_EPOCHS` epochs. For longer lists the number of
    steps grows with the power 2/3 of the number of images.
    """
    ratio = IMAGES / max(1, images)
    epochs = EPOCHS * (ratio if ratio > 1 else ratio**EXPONENT)
    return min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(epochs)))


def settle_epochs(settings: Settings, images: int) -> tuple[Settings, tuple[str, ...]]:
    """Return settings in which `train.epochs` is a number, and a sentence for the log if it was auto."""
    if settings.train.epochs != "auto":
        return settings, ()
    epochs = epochs_for(images)
    note = f"train.epochs=auto: {plural(epochs, 'epoch')} for {plural(images, 'image')}"
    return override(settings, {"train": {"epochs": epochs}}), () if settings.train.steps else (note,)
