"""The anchors of a new run: whether they meet the objects, and fitted ones with `anchors.fit=auto`."""

from pathlib import Path

from rcnn.config import SLIDING_WINDOWS, Settings, override
from rcnn.data.dataset import Dataset
from rcnn.diagnose.anchors.advice import GOOD_RECALL, MIN_OBJECTS, Advice, advise
from rcnn.diagnose.anchors.fit import setting_words
from rcnn.training.schemes import takes_proposals
from rcnn.weights.file import is_detector, weights_of_run
from rcnn.weights.packaged import PACKAGED


def settle_anchors(settings: Settings, dataset: Dataset) -> tuple[Settings, tuple[str, ...]]:
    """The settings of a new run with the anchors that it will have, and sentences about them.

    With `anchors.fit=auto` these are the fitted ones where they help (see `Advice`). Then `anchors.fit` becomes `off`,
    so that the settings repeat the run.
    """
    auto = settings.anchors.fit == "auto"
    if takes_proposals(settings.train.scheme) and settings.train.proposals != SLIDING_WINDOWS:
        return settings, ()
    if _starts_from_detector(settings.train.init):
        kept = "anchors.fit=auto: the run starts from a detector, whose anchors stay"
        return _decided(settings), (kept,) if auto else ()
    advice = advise(dataset, settings)
    if not auto:
        return settings, _said(advice)
    if advice.anchors is None:
        few = f"{advice.objects} objects are too few to fit anchors to (fewer than {MIN_OBJECTS})"
        good = f"the anchors stay: recall at IoU 0.5 is {advice.now:.2f}, and fitted ones would hardly raise it"
        return _decided(settings), (f"anchors.fit=auto: {few if advice.objects < MIN_OBJECTS else good}",)
    rule = advice.anchors
    note = (
        f"anchors.fit=auto: anchors fitted to {advice.objects:,} objects raise recall at IoU 0.5 from "
        f"{advice.now:.2f} to {advice.fitted:.2f}: {' '.join(setting_words(rule))}"
    )
    return override(_decided(settings), {"anchors": {"sizes": rule.sizes, "ratios": rule.ratios}}), (note,)


def _decided(settings: Settings) -> Settings:
    return override(settings, {"anchors": {"fit": "off"}})


def _starts_from_detector(init: str) -> bool:
    path = weights_of_run(Path(init).expanduser())
    is_file = path.suffix == ".safetensors" and path.is_file()
    return init in PACKAGED or init.startswith("torchvision/") or (is_file and is_detector(path))


def _said(advice: Advice) -> tuple[str, ...]:
    """What is worth saying of the anchors of a run that keeps them."""
    if advice.now >= GOOD_RECALL:
        return ()
    begin = f"{1 - advice.now:.0%} of the objects have no anchor of IoU 0.5 or more"
    if advice.anchors is not None:
        return (
            f"{begin}. Fitted anchors would raise this recall from {advice.now:.2f} to {advice.fitted:.2f}; to train "
            f"with them, stop and add: {' '.join(setting_words(advice.anchors))}",
        )
    size, inside, count = advice.missed
    return (
        f"{begin}, and fitted anchors would change little. Of these {count:,}, {inside:,} have a side of {size} pixels "
        "after resizing: preprocess.short or model.levels can bring them nearer to the anchors (rcnn anchors DATA)",
    )
