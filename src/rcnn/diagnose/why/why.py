"""Where was each object lost, and what is each false alarm?

An object is found if the metric matches it. Every other object is assigned to the first stage that lost it (`LOSSES`),
so that the parts sum to the objects that the metric counts.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from rcnn.data.dataset import Dataset
from rcnn.data.loading.loader import Loader
from rcnn.data.loading.windows import cut_into_views
from rcnn.detector import Detector
from rcnn.diagnose.why.outcomes import TOUCHES, Alarm, Outcome, Rules, Why, sizes_of
from rcnn.diagnose.why.steps import ImageTrace, need_stages, trace_images
from rcnn.diagnose.why.trace import Fate, explain, where_lost
from rcnn.errors import DataError, SettingsError
from rcnn.images.batch import Size
from rcnn.images.views import View, clearest
from rcnn.metrics.overlap import box_iou, match
from rcnn.metrics.proposal_recall import IOUS
from rcnn.metrics.types import Prediction, Truth
from rcnn.result import Result


def why(
    detector: Detector,
    dataset: Dataset,
    *,
    iou: float = 0.5,
    score: float | None = None,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Why:
    """Find for every object of a data set where the detector lost it, and for every false alarm what it is.

    Args:
        detector: with its settings for prediction.
        dataset: labelled images of the detector's classes.
        iou: from this IoU on a box is right; at least 0.5 where there is no second stage.
        score: from this score on a detection is shown. None: the threshold stored with the weights.
        batch: images per batch.
        progress: called with (batches done, all) after each.

    Raises:
        DataError: there are no images, or one can't be read.
        SettingsError: `iou` is under 0.5 and there is no second stage; or the detector is a one-stage detector.
        NonFiniteError: the network's output is not finite.
    """
    if not len(dataset):
        raise DataError(f"{dataset.root}: the {dataset.split} split has no images to explain")
    need_stages(detector)
    settings = detector.settings
    if not settings.predicts_classes and iou < IOUS[0]:
        raise SettingsError(f"recall of proposals is counted from an IoU of {IOUS[0]} on, got {iou}; ask for more")
    rules = Rules(iou, detector.threshold if score is None else score, settings.rpn, settings.roi)
    seen = cut_into_views(dataset, detector.viewer.views)
    loader = Loader(seen, settings, training=False, batch=batch, workers=settings.data.workers)
    truths = [Truth(record.boxes, record.labels, record.ignore) for record in dataset.records]
    views = [detector.viewer.views(record.size) for record in dataset.records]
    places = [(image, number) for image, some in enumerate(views) for number in range(len(some))]
    parts = defaultdict[int, dict[int, Result]](dict)
    fates = defaultdict[int, dict[int, Callable[[], Fate]]](dict)
    predictions: dict[int, Prediction] = {}
    outcomes: dict[int, list[Outcome]] = {}
    for step, item in enumerate(loader.epoch(0)):
        traces, results = trace_images(detector, item.batch)
        for row, index in enumerate(item.index.tolist()):
            if index < 0:
                continue
            image, number = places[index]
            truth, scale = truths[image], item.batch.scales[row].flip(0).repeat(2).numpy()
            parts[image][number] = results[row]
            fates[image] |= _fates(truth, views[image], number, scale, traces[row], rules)
            if len(parts[image]) == len(views[image]):
                found = _pooled(detector, parts.pop(image), views[image], dataset.records[image].size)
                predictions[image] = found
                outcomes[image] = explain(
                    image, truth, found, fates.pop(image), rules, predicts_classes=settings.predicts_classes
                )
        if progress:
            progress(step + 1, loader.steps)
    ordered = tuple(predictions[index] for index in range(len(dataset)))
    every = tuple(outcome for index in range(len(dataset)) for outcome in outcomes[index])
    alarms = find_alarms(truths, ordered, iou, rules.score) if settings.predicts_classes else []
    return Why(dataset.names, iou, rules.score, settings.predicts_classes, tuple(truths), ordered, every, tuple(alarms))


def _fates(
    truth: Truth, views: Sequence[View], number: int, scale: np.ndarray, trace: ImageTrace, rules: Rules
) -> dict[int, Callable[[], Fate]]:
    """Row of an object -> what tells where it was lost, for those that one view shows better than the others.

    Args:
        truth: objects of the image, in pixels of the file.
        views: of the image.
        number: of the view.
        scale: (4,) of x, y, x, y: resized size / size of the window.
        trace: the stages of the view.
        rules: what decides.
    """
    fates: dict[int, Callable[[], Fate]] = {}
    for row in np.flatnonzero((clearest(truth.boxes, views) == number) & ~truth.ignore).tolist():
        box = views[number].from_file(truth.boxes[row]) * scale
        fate = partial(where_lost, box[None], int(truth.labels[row]), trace, rules)
        if len(views) > 1:  # told now, since the stages of all windows would fill the memory
            fate = partial(dict, fate())
        fates[row] = fate
    return fates


def _pooled(detector: Detector, parts: Mapping[int, Result], views: Sequence[View], size: Size) -> Prediction:
    """Pool the detections of an image, or its proposals where there is no second stage."""
    every = [parts[number] for number in range(len(views))]
    if detector.settings.predicts_classes:
        result = detector.pooler.detections(every, views, size, detector.threshold)
    else:
        result = detector.pooler.proposals(every, views, size)
    return Prediction(result.boxes, result.scores, result.labels)


def find_alarms(truths: Sequence[Truth], predictions: Sequence[Prediction], iou: float, score: float) -> list[Alarm]:
    """The false alarms of all images; the first kind that holds, missing labels last.

    A duplicate fits an object of its class that is taken; a wrong class fits one of another class; a bad box overlaps
    one of its class by `TOUCHES` at least. The rest is background, and probably a missing label where it touches no
    object and scores above the median of the right detections of its class.
    """
    alarms: list[Alarm] = []
    right = defaultdict[int, list[float]](list)
    for image, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
        shown = np.flatnonzero(prediction.scores >= np.float32(score))
        taken, ignored = match(truth, Prediction(*(field[shown] for field in prediction)), iou)
        for at in shown[taken >= 0].tolist():
            right[int(prediction.labels[at])].append(float(prediction.scores[at]))
        alarms += _alarms_of(image, truth, prediction, shown[(taken < 0) & ~ignored], iou)
    medians = {label: float(np.median(scores)) for label, scores in right.items()}
    return [
        alarm._replace(kind="missing_label")
        if alarm.kind == "background" and alarm.iou < TOUCHES and alarm.score > medians.get(alarm.label, np.inf)
        else alarm
        for alarm in alarms
    ]


def _alarms_of(image: int, truth: Truth, prediction: Prediction, wrong: np.ndarray, iou: float) -> list[Alarm]:
    """The kinds of the detections that are wrong, which are told by their places."""
    boxes, labels = prediction.boxes[wrong], prediction.labels[wrong]
    overlap = np.pad(box_iou(boxes, truth.boxes), ((0, 0), (0, 1)))  # one object at least
    of_class = np.pad(truth.labels == labels[:, None], ((0, 0), (0, 1)))
    same_class, other_class = (overlap * of_class).argmax(axis=1), (overlap * ~of_class).argmax(axis=1)
    columns = (wrong, labels, prediction.scores[wrong], same_class, other_class, overlap.max(axis=1))
    rows = zip(sizes_of(boxes), *(column.tolist() for column in columns), strict=True)
    alarms = []
    for row, (size, at, label, score, same, other, most) in enumerate(rows):
        kind, about = "background", -1
        if of_class[row, same] and overlap[row, same] >= iou:
            kind, about = "duplicate", same
        elif overlap[row, other] >= iou:
            kind, about = "wrong_class", other
        elif of_class[row, same] and overlap[row, same] >= TOUCHES:
            kind, about = "bad_box", same
        alarms.append(Alarm(image, at, label, size, kind, score, about, most))
    return alarms
