"""The answer of `why` as tables, as one sentence of advice, and as a document for programs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.diagnose.why.mend import ap_of, mended
from rcnn.diagnose.why.outcomes import ALARMS, FOUND, MIN_ALARM_IOU, MISS_REASONS, Alarm, Outcome, Why
from rcnn.images.batch import Preprocessor
from rcnn.metrics.curves import best_threshold, precision_recall
from rcnn.metrics.proposal_recall import SIZES


class WhyReport(NamedTuple):
    """The answer, the AP after corrections, and advice.

    Attributes:
        why: the answer.
        ap: mean AP over classes at the IoU of the answer; NaN without a second stage.
        mended: kind of loss or false alarm -> AP if all of that kind were corrected.
        advice: one sentence for the kind that costs most.
    """

    why: Why
    ap: float
    mended: dict[str, float]
    advice: str

    def gain(self, kind: str) -> float:
        """Return the AP that correcting all errors of a kind would add."""
        return self.mended.get(kind, float("nan")) - self.ap


class CountedByKind(NamedTuple):
    """Objects or false alarms of a class or size, counted by kind."""

    section: str
    title: str
    counts: Counter[str]


def report(why: Why, dataset: Dataset, settings: Settings) -> WhyReport:
    """Return the answer with the AP if each kind were corrected, and the advice."""
    ap = ap_of(why.truths, why.predictions, len(why.names), why.iou) if why.predicts_classes else float("nan")
    answer = WhyReport(why, ap, mended(why), "")
    return answer._replace(advice=_advice(answer, dataset, settings))


def count_by_kind(items: Sequence[Outcome] | Sequence[Alarm], names: Sequence[str]) -> list[CountedByKind]:
    """Return the counts of all together (`all`), then of each class (`class`), then of each size (`size`)."""
    rows = [(item.where if isinstance(item, Outcome) else item.kind, item.label, item.size) for item in items]
    return [
        CountedByKind("all", "all", Counter(kind for kind, _, _ in rows)),
        *(
            CountedByKind("class", name, Counter(kind for kind, own, _ in rows if own == label))
            for label, name in enumerate(names)
        ),
        *(CountedByKind("size", size, Counter(kind for kind, _, own in rows if own == size)) for size in SIZES),
    ]


def possible_reasons(why: Why) -> dict[str, str]:
    """Return the reasons that can occur, with their titles: without a second stage only those of the first."""
    return MISS_REASONS if why.predicts_classes else dict(list(MISS_REASONS.items())[:3])


def document(answer: WhyReport, dataset: Dataset) -> dict[str, Any]:
    """Return all results as a tree: counts by class and size, AP if corrected, every lost object and false alarm."""
    why = answer.why

    def kinds(counted: Sequence[CountedByKind], kinds: Iterable[str]) -> dict[str, Any]:
        return {
            kind: {
                "count": counted[0].counts[kind],
                "by_class": {group.title: group.counts[kind] for group in counted if group.section == "class"},
                "by_size": {group.title: group.counts[kind] for group in counted if group.section == "size"},
                "ap_if_mended": answer.mended.get(kind, float("nan")),
            }
            for kind in kinds
        }

    def entry(item: Outcome | Alarm, box: np.ndarray) -> dict[str, Any]:
        name = dataset.records[item.image].name
        return {"image": name, "class": why.names[item.label], "size": item.size, "box": box.round(2)}

    return {
        "split": dataset.split,
        "images": len(dataset),
        "iou": why.iou,
        "score": why.score,
        "objects": len(why.outcomes),
        "found": len(why.lost(FOUND)),
        "ap": answer.ap,
        "advice": answer.advice,
        "lost": kinds(count_by_kind(why.outcomes, why.names), possible_reasons(why)),
        "false_alarms": kinds(count_by_kind(why.alarms, why.names), ALARMS if why.predicts_classes else ()),
        "lost_objects": [
            {
                **entry(outcome, why.truths[outcome.image].boxes[outcome.truth]),
                "where": outcome.where,
                "detail": outcome.detail or None,
                "taken_for": why.names[outcome.taken_for] if outcome.taken_for >= 0 else None,
                "score": outcome.score,
            }
            for outcome in why.all_lost()
        ],
        "false_detections": [
            {
                **entry(alarm, why.predictions[alarm.image].boxes[alarm.detection].astype(np.float64)),
                "kind": alarm.kind,
                "score": alarm.score,
                "iou": alarm.iou,
                "object": why.truths[alarm.image].boxes[alarm.truth].round(2) if alarm.truth >= 0 else None,
            }
            for alarm in why.alarms
        ],
    }


def _advice(answer: WhyReport, dataset: Dataset, settings: Settings) -> str:
    """Return one sentence on the kind whose correction adds most AP, or without AP on the most frequent."""
    why, rpn, roi, score = answer.why, settings.rpn, settings.roi, answer.why.score
    counts = Counter(outcome.where for outcome in why.all_lost()) + Counter(alarm.kind for alarm in why.alarms)
    if not counts:
        return "No object is lost and no detection is wrong: try a higher IoU (--iou 0.75), or harder images."
    kind = max(counts, key=lambda kind: (np.nan_to_num(answer.gain(kind)), counts[kind]))
    lost, alarms = why.lost(kind), why.false_alarms(kind)
    majority = _majority(lost or alarms, why.names)
    objects = f"{len(lost)} object{'s' * (len(lost) != 1)}"
    these = f"{objects}, {majority}" if lost else f"{len(alarms)} false alarms, {majority},"
    larger = f"images larger (`preprocess.short`, now {settings.preprocess.short})"
    weigh_boxes = f"Train longer, or weigh boxes more (`roi.box_weight`, now {roi.box_weight:g})"
    if kind == "no_anchor":
        sides, preprocessor, whole_images = [], Preprocessor(settings.preprocess), settings.predict.tile == "off"
        for outcome in lost:
            size, box = dataset.records[outcome.image].size, why.truths[outcome.image].boxes[outcome.truth]
            scale = np.divide(preprocessor.resized(size), size)[::-1] if whole_images else 1.0
            sides.append((box[2:] - box[:2]) * scale)
        width, height = np.median(sides, axis=0)
        sizes = ", ".join(f"{size:g}" for level in settings.anchors.sizes for size in level)
        return (
            f"Add sizes or ratios to `anchors.sizes` (now {sizes}) and `anchors.ratios`, and train again: no anchor "
            f"overlaps {objects} (median {width:.0f} x {height:.0f} px in the "
            f"{'resized image' if whole_images else 'file'})."
        )
    if kind == "not_in_top_k":
        cut = sum(outcome.detail == "cut" for outcome in lost)
        if 2 * cut > len(lost):
            return (
                f"Raise `rpn.pre_test` (now {rpn.pre_test}): the RPN's boxes fit {cut} of {objects} that it loses, "
                "but are not among the best of their level."
            )
        return f"Train longer, or show {larger}: the RPN has no box for {these}."
    if kind in ("no_proposal", "suppressed"):
        stage, own, limit, things = (
            ("rpn", rpn, f"rpn.post_test` (now {rpn.post_test}", "proposals")
            if kind == "no_proposal"
            else ("roi", roi, f"roi.detections` (now {roi.detections}", "boxes")
        )
        detail, _ = Counter(outcome.detail for outcome in lost).most_common(1)[0]
        advice = {
            "cut": f"Raise `{limit}): better-scored {things} crowd out",
            "score": f"Lower `{stage}.score` (now {own.score:g}): {things} of too low a score are all there is for",
            "nms": f"Raise `{stage}.nms` (now {own.nms:g}): neighbours' {things} suppress those of",
            "small": f"Lower `{stage}.min_size` (now {own.min_size:g}): it drops the {things} of",
            "shared": f"Show {larger} and train again, and look for labels given twice: one "
            f"{'proposal' if stage == 'rpn' else 'box'} stands for two at",
        }
        return f"{advice[detail]} {these}."
    if kind == "no_box":
        return f"{weigh_boxes}: proposals reach {these}, but the second stage's boxes leave them."
    if kind == "bad_box":
        return f"{weigh_boxes}: {these} are of the right class but overlap their object by less than {why.iou:g}."
    if kind in ("other_class", "wrong_class"):
        pairs = [(outcome.label, outcome.taken_for) for outcome in lost]
        pairs += [(int(why.truths[alarm.image].labels[alarm.truth]), alarm.label) for alarm in alarms]
        labels, count = Counter(pairs).most_common(1)[0]
        true, taken_for = (why.names[label] for label in labels)
        return (
            f"Look at the labels of {true} and {taken_for}, and train on more of both: {count} of {len(pairs)} "
            f"confusions are {true} taken for {taken_for}."
        )
    if kind == "duplicate":
        return f"Lower `roi.nms` (now {roi.nms:g}): {these} are second boxes on objects that are found already."
    label, _ = Counter(item.label for item in lost or alarms).most_common(1)[0]
    if kind == "missing_label":
        return (
            f"Look at the labels of {why.names[label]}: {len(alarms)} detections, {majority}, score above half of the "
            "right ones of their class where nothing is labelled."
        )
    curves = precision_recall(why.truths, why.predictions, len(why.names), why.iou)
    f1, best = curves.f1[curves.counts > 0].mean(axis=0), best_threshold(curves, score)
    better = f1.max() > np.interp(score, curves.thresholds, f1) + 0.01
    change = f"the threshold from {score:.2f} to {best:.2f} (`predict.score`): F1 is best there, and"
    if kind == "low_score":
        if better and best < score:
            gained = sum(outcome.score >= best for outcome in lost)
            return f"Lower {change} {gained} of {objects} that score too low are found."
        return (
            f"Train longer or on more images: {these}, are boxed and classed right but score under {score:.2f}, and F1 "
            "is no better at any other threshold."
        )
    if better and best > score:
        removed = sum(alarm.score < best for alarm in alarms)
        return f"Raise {change} {removed} of {len(alarms)} false alarms on background go."
    return (
        f"Look at the labels of {why.names[label]}, and if they are complete train longer: {these} overlap no labelled "
        f"object of their class by {MIN_ALARM_IOU:g}."
    )


def _majority(items: Sequence[Outcome | Alarm], names: Sequence[str]) -> str:
    """Return `150 of them RBC and 160 medium`; of a single class `160 of them medium`."""
    size, of_size = Counter(item.size for item in items).most_common(1)[0]
    label, of_class = Counter(item.label for item in items).most_common(1)[0]
    if len(names) == 1:
        return f"{'all' if of_size == len(items) else of_size} of them {size}"
    return f"{of_class} of them {names[label]} and {of_size} {size}"
