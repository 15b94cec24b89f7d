"""Settings that are `auto` become values when a training starts: `train.epochs` and `anchors.fit`."""

import math

from rcnn.config import SLIDING_WINDOWS, Settings, override
from rcnn.data.dataset import Dataset
from rcnn.diagnose.anchors.advice import GOOD_RECALL, MIN_OBJECTS, Advice, advise
from rcnn.diagnose.anchors.fit import setting_words
from rcnn.errors import plural
from rcnn.training.init import local_weights
from rcnn.training.schemes import takes_proposals
from rcnn.weights.backbone import IMAGENET
from rcnn.weights.file import is_detector
from rcnn.weights.packaged import PACKAGED

IMAGES, EPOCHS = 300, 30
"""With `train.epochs=auto`, so many training images get so many epochs."""
MIN_EPOCHS, MAX_EPOCHS = 10, 100
EXPONENT = 1 / 3
"""Power of the number of images by which longer lists get fewer epochs."""


def settle(settings: Settings, dataset: Dataset) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings of a new run with values in place of `auto`, and sentences about them for the log.

    Args:
        settings: settings that the user has chosen.
        dataset: training images, or their windows.
    """
    settings, epoch_notes = settle_epochs(settings, len(dataset))
    settings, anchor_notes = settle_anchors(settings, dataset)
    return settings, (*epoch_notes, *anchor_notes)


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


def settle_anchors(settings: Settings, dataset: Dataset) -> tuple[Settings, tuple[str, ...]]:
    """Return the settings of a new run with its final anchors, and sentences about them for the log.

    With `anchors.fit=auto` the anchors are fitted if that helps (see `Advice`). `anchors.fit` then becomes `off`, so
    that the settings repeat the run.
    """
    auto = settings.anchors.fit == "auto"
    decided = override(settings, {"anchors": {"fit": "off"}})
    if takes_proposals(settings.train.scheme) and settings.train.proposals != SLIDING_WINDOWS:
        return settings, ()
    if _starts_from_detector(settings.train.init):
        note = "anchors.fit=auto: the run starts from a detector and keeps its anchors"
        return decided, (note,) if auto else ()
    advice = advise(dataset, settings)
    if not auto:
        return settings, _advice_notes(advice)
    if advice.anchors is None:
        few = f"{advice.objects} objects are too few to fit anchors to (fewer than {MIN_OBJECTS})"
        good = f"the anchors are kept: recall at IoU 0.5 is {advice.now:.2f}, and fitted ones would hardly raise it"
        return decided, (f"anchors.fit=auto: {few if advice.objects < MIN_OBJECTS else good}",)
    rule = advice.anchors
    note = (
        f"anchors.fit=auto: anchors fitted to {advice.objects:,} objects raise recall at IoU 0.5 from "
        f"{advice.now:.2f} to {advice.fitted:.2f}: {' '.join(setting_words(rule))}"
    )
    return override(decided, {"anchors": {"sizes": rule.sizes, "ratios": rule.ratios}}), (note,)


def _starts_from_detector(init: str) -> bool:
    """Return whether `train.init` names a detector, and not weights of a backbone."""
    if init in PACKAGED or init.startswith("torchvision/"):
        return True
    if init in (*IMAGENET, "none"):
        return False
    path = local_weights(init)
    return path.suffix == ".safetensors" and path.is_file() and is_detector(path)


def _advice_notes(advice: Advice) -> tuple[str, ...]:
    """Return a warning about anchors that miss objects, for a run that keeps its anchors."""
    if advice.now >= GOOD_RECALL:
        return ()
    missed = f"{1 - advice.now:.0%} of the objects have no anchor of IoU 0.5 or more"
    if advice.anchors is not None:
        return (
            f"{missed}. Fitted anchors would raise this recall from {advice.now:.2f} to {advice.fitted:.2f}; to train "
            f"with them, stop and add: {' '.join(setting_words(advice.anchors))}",
        )
    size, inside, count = advice.missed
    return (
        f"{missed}, and fitted anchors would change little. {inside:,} of these {count:,} objects have a side of "
        f"{size} pixels after resizing: preprocess.short or model.levels can bring them nearer to the anchors "
        "(rcnn anchors DATA)",
    )
