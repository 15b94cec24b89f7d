"""Find where a detector lost each object of a data set, and what each false alarm is.

An object is found if the metric matches it. Every other object is assigned to the first step that lost it
(`MISS_REASONS`), so that the parts sum to the objects that the metric counts.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np

from rcnn.data.dataset import Dataset
from rcnn.data.loading.loader import Loader
from rcnn.data.loading.windows import cut_into_views
from rcnn.detector import Detector
from rcnn.diagnose.why.outcomes import MissReason, Outcome, Rules, Why, find_alarms, miss_reason, outcomes_of
from rcnn.diagnose.why.steps import check_has_steps, run_steps
from rcnn.errors import DataError, SettingsError
from rcnn.images.views import clearest
from rcnn.metrics.proposal_recall import IOUS
from rcnn.metrics.types import Prediction, Truth
from rcnn.result import Result


def analyse(
    detector: Detector,
    dataset: Dataset,
    *,
    iou: float = 0.5,
    score: float | None = None,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Why:
    """Find where the detector lost each object of an opened data set, and what each false alarm is.

    Args:
        detector: with its settings for prediction.
        dataset: labelled images of the detector's classes.
        iou: lowest IoU of a correct box, 0.1 to 1; at least 0.5 without a second stage.
        score: lowest score of a detection that counts, 0 to 1. None: the threshold stored with the weights.
        batch: images per batch.
        progress: called with (batches done, all) after each.

    Raises:
        DataError: there are no images, or one can't be read.
        SettingsError: a number is out of its range, or the detector has no steps to examine: a one-stage detector, an
            exported file, or an untrained RPN.
        NonFiniteError: the network's output is not finite.
    """
    for name, value, low in (("iou", iou, 0.1), ("score", score, 0)):
        if value is not None and not low <= value <= 1:
            raise SettingsError(f"{name} must lie between {low} and 1, got {value}")
    if batch < 1:
        raise SettingsError(f"batch must be at least 1, got {batch}")
    detector.check_proposals(given=False)
    if not len(dataset):
        raise DataError(f"{dataset.root}: the {dataset.split} split has no images to explain")
    check_has_steps(detector)
    settings, predicts_classes = detector.settings, detector.settings.predicts_classes
    if not predicts_classes and iou < IOUS[0]:
        raise SettingsError(f"recall of proposals is counted from an IoU of {IOUS[0]} on, got {iou}; give a higher one")
    rules = Rules(iou, detector.threshold if score is None else score, settings.rpn, settings.roi, detector.suppression)
    loader = Loader(cut_into_views(dataset, detector.viewer.views), settings, training=False, batch=batch)
    truths = [Truth(record.boxes, record.labels, record.ignore) for record in dataset.records]
    views = [detector.viewer.views(record.size) for record in dataset.records]
    image_and_view = [(image, view) for image, own in enumerate(views) for view in range(len(own))]
    parts = defaultdict[int, dict[int, Result]](dict)
    reasons = defaultdict[int, dict[int, Callable[[], MissReason]]](dict)
    predictions: dict[int, Prediction] = {}
    outcomes: dict[int, list[Outcome]] = {}
    for step, item in enumerate(loader.epoch(0)):
        steps, results = run_steps(detector, item.batch)
        for row, index in enumerate(item.index.tolist()):
            if index < 0:
                continue
            image, view = image_and_view[index]
            truth, own = truths[image], views[image]
            scale = item.batch.scales[row].flip(0).repeat(2).numpy()  # (4,) resized size / size of the window
            parts[image][view] = results[row]
            for truth_row in np.flatnonzero((clearest(truth.boxes, own) == view) & ~truth.ignore).tolist():
                box = own[view].from_file(truth.boxes[truth_row]) * scale
                reason = partial(miss_reason, box[None], int(truth.labels[truth_row]), steps[row], rules)
                if len(own) > 1:  # found now, since the steps of all windows would fill the memory
                    reason = partial(MissReason, *reason())
                reasons[image][truth_row] = reason
            if len(parts[image]) == len(own):
                ordered, size = [part for _, part in sorted(parts.pop(image).items())], dataset.records[image].size
                if predicts_classes:
                    result = detector.pooler.detections(ordered, own, size, detector.threshold)
                else:
                    result = detector.pooler.proposals(ordered, own, size)
                prediction = Prediction(result.boxes, result.scores, result.labels)
                predictions[image] = prediction
                outcomes[image] = outcomes_of(
                    image, truth, prediction, reasons.pop(image, {}), rules, predicts_classes=predicts_classes
                )
        if progress:
            progress(step + 1, loader.steps)
    ordered_predictions = tuple(predictions[index] for index in range(len(dataset)))
    alarms = find_alarms(truths, ordered_predictions, iou, rules.score) if predicts_classes else []
    return Why(
        dataset.names,
        iou,
        rules.score,
        predicts_classes,
        tuple(truths),
        ordered_predictions,
        tuple(outcome for index in range(len(dataset)) for outcome in outcomes[index]),
        tuple(alarms),
    )
