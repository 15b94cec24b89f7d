"""Parts sum to the counts of the metric, it matches the `found` objects, and planted faults are recognised."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rcnn.ops as ops
from rcnn.config import keys, merge, validate
from rcnn.data.dataset import Dataset, Record
from rcnn.detector import Detector
from rcnn.diagnose.why.analyse import analyse
from rcnn.diagnose.why.mend import ap_of, mended
from rcnn.diagnose.why.outcomes import (
    ALARMS,
    FOUND,
    MISS_REASONS,
    Alarm,
    MissReason,
    Outcome,
    Rules,
    Why,
    find_alarms,
    miss_reason,
    outcomes_of,
)
from rcnn.diagnose.why.pictures import KINDS, draw_why, draw_worst
from rcnn.diagnose.why.steps import ImageSteps, run_steps
from rcnn.diagnose.why.tables import WhyReport, document, possible_reasons, report
from rcnn.errors import DataError, NonFiniteError, SettingsError
from rcnn.metrics.coco import coco_metrics
from rcnn.metrics.confusion import confusion_matrix
from rcnn.metrics.proposal_recall import proposal_recall
from rcnn.metrics.types import Prediction, Truth
from rcnn.model.suppress import Suppression
from tests.model import tiny

NAMES = ("cat", "dog", "owl")
SIZE = (64, 96)
SMALL = {"preprocess": {"short": 64, "long": 96}}


def detector(changes: dict[str, Any] | None = None, **options: Any) -> Detector:
    tree = {**SMALL, **(changes or {})}
    return Detector(tiny.model(tree), tiny.settings(tree), NAMES, device="cpu", **{"threshold": 0.3, **options})


# --- the stages are the detector's own -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"rpn": {"logits": 2, "score": 0.4, "min_size": 9.0}}, {"roi": {"class_agnostic": True}}],
    ids=["plain", "two logits", "class-agnostic"],
)
def test_stages_lead_to_the_detections(changes: dict[str, Any]) -> None:
    made = detector(changes)
    batch, _ = tiny.batch(2)
    every, predictions = run_steps(made, batch)
    rpn, roi = made.settings.rpn, made.settings.roi
    with torch.inference_mode():
        _, _, proposals, _, detections = made.runner.execute(batch)
    for i, (stages, prediction) in enumerate(zip(every, predictions, strict=True)):
        assert np.array_equal(stages.decoded[stages.proposed], proposals.boxes[i][proposals.valid[i]].numpy())
        boxes, scores = stages.decoded[stages.entered], stages.objectness[stages.entered]
        eligible = ((boxes[:, 2:] - boxes[:, :2]) >= rpn.min_size).all(axis=1) & (scores >= rpn.score)
        inputs = [torch.from_numpy(part)[None] for part in (boxes, scores, stages.level[stages.entered], eligible)]
        survivors, valid = ops.nms(inputs[0], inputs[1], inputs[2], inputs[3], rpn.nms, rpn.post_test)
        assert np.array_equal(stages.entered[survivors[valid].numpy()], stages.proposed)
        assert np.array_equal(stages.proposed, proposals.anchor[i][proposals.valid[i]].numpy())

        proposal, label = stages.detected.T
        assert np.array_equal(stages.scores[proposal, label], prediction.scores)
        assert np.array_equal(stages.refined[proposal, label], detections.boxes[i][detections.valid[i]].numpy())
        (result,) = made.results(row(batch, i), row(detections, i))
        assert np.array_equal(result.boxes, prediction.boxes)
        assert len(proposal) == len(prediction.labels) <= roi.detections


def row(parts: Any, i: int) -> Any:
    """Return the tuple of a batch for image i alone."""
    return type(parts)(*(part[i : i + 1] for part in parts))


def test_broken_weights_are_an_error() -> None:
    made = detector({"roi": {"head": "none"}})
    torch.nn.init.constant_(made.model.rpn.head.reg.weight, torch.nan)
    with pytest.raises(NonFiniteError, match="not finite"):
        run_steps(made, tiny.batch(1)[0])


# --- planted faults are recognised -----------------------------------------------------------------------------------

HERE, ASIDE, AWAY = (40.0, 40, 80, 80), (60.0, 40, 100, 80), (0.0, 0, 30, 30)  # IoU of the first two: 1/3


def stages(**changes: Any) -> ImageSteps:
    """Two anchors; the first becomes a proposal, then a detection of class 0 that fits the object at HERE."""
    healthy: dict[str, Any] = {
        "anchors": (HERE, AWAY),
        "decoded": (HERE, AWAY),
        "objectness": (0.9, 0.8),
        "level": (0, 0),
        "entered": (0, 1),
        "proposed": (0, 1),
        "refined": ((HERE, HERE), (AWAY, AWAY)),
        "scores": ((0.9, 0.05), (0.6, 0.1)),
        "detected": ((0, 0), (1, 0)),
    }
    return ImageSteps(**{name: np.array(value) for name, value in {**healthy, **changes}.items()})


PLANTED: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("no_anchor", "", {"anchors": ((40, 40, 50, 50), AWAY)}, {}),
    ("not_in_top_k", "cut", {"entered": [1]}, {}),
    ("not_in_top_k", "missed", {"decoded": (AWAY, AWAY)}, {}),
    ("no_proposal", "cut", {"proposed": [1]}, {}),
    ("no_proposal", "score", {"proposed": [1]}, {"rpn": {"score": 0.95}}),
    ("no_proposal", "small", {"proposed": [1]}, {"rpn": {"min_size": 50}}),
    ("no_proposal", "nms", {"decoded": (HERE, ASIDE), "objectness": (0.9, 0.95), "proposed": [1]}, {}),
    (
        "no_proposal",
        "cut",  # the neighbour is of another level
        {"decoded": (HERE, ASIDE), "objectness": (0.9, 0.95), "proposed": [1], "level": (0, 1)},
        {},
    ),
    ("no_box", "", {"refined": ((ASIDE, ASIDE), (AWAY, AWAY))}, {}),
    ("other_class", "", {"scores": ((0.3, 0.6), (0.6, 0.1))}, {}),
    ("low_score", "", {"scores": ((0.4, 0.05), (0.6, 0.1))}, {}),
    ("low_score", "", {}, {"roi": {"score": 0.9}}),  # kept where the score is above, not equal
    ("suppressed", "cut", {"detected": ((1, 0),)}, {}),
    ("suppressed", "small", {"detected": ((1, 0),)}, {"roi": {"min_size": 50}}),
    (
        "suppressed",
        "nms",
        {"refined": ((HERE, HERE), (ASIDE, AWAY)), "scores": ((0.9, 0), (0.95, 0)), "detected": ((1, 0),)},
        {},
    ),
    ("suppressed", "shared", {}, {}),
]


def rules(*changes: dict[str, Any]) -> Rules:
    settings = validate(reduce(merge, changes, {"rpn": {"nms": 0.3}, "roi": {"nms": 0.3}}))
    return Rules(0.5, 0.5, settings.rpn, settings.roi, Suppression.of(settings))


@pytest.mark.parametrize(("where", "detail", "changes", "settings"), PLANTED)
def test_a_planted_fault_is_recognised(where: str, detail: str, changes: Any, settings: Any) -> None:
    reason = miss_reason(np.array([HERE]), 0, stages(**changes), rules(settings))
    assert reason.where == where
    assert reason.detail == detail
    assert reason.taken_for == (1 if where == "other_class" else -1)


def test_every_reason_has_a_planted_fault() -> None:
    assert list(dict.fromkeys(where for where, *_ in PLANTED)) == list(MISS_REASONS)


@pytest.mark.parametrize(("where", "detail", "changes", "settings"), PLANTED)
def test_the_first_of_two_faults_is_the_reason(where: str, detail: str, changes: Any, settings: Any) -> None:
    order = list(MISS_REASONS)
    for other, _, more, also in PLANTED:
        if order.index(other) > order.index(where):
            reason = miss_reason(np.array([HERE]), 0, stages(**{**more, **changes}), rules(also, settings))
            assert (reason.where, reason.detail) == (where, detail), other


@pytest.mark.parametrize(("iou", "where"), [(0.29, "no_anchor"), (0.31, "not_in_top_k")])
def test_an_anchor_covers_an_object_from_iou_three_tenths_on(iou: float, where: str) -> None:
    """The anchor lies inside the object, and its box does not fit."""
    inside = (40, 40, 80, 40 + 40 * iou)
    reason = miss_reason(np.array([HERE]), 0, stages(anchors=(inside, AWAY), decoded=(AWAY, AWAY)), rules())
    assert reason.where == where


def test_what_the_metric_matches_is_found_regardless_of_the_steps() -> None:
    truth = Truth(np.array([HERE, HERE]) / 2, np.array([0, 0]), np.array([False, True]))
    prediction = Prediction(np.array([HERE]) / 2, np.array([0.75], np.float32), np.array([0]))
    no_reasons: dict[int, Callable[[], MissReason]] = {}
    outcomes = outcomes_of(3, truth, prediction, no_reasons, rules(), predicts_classes=True)
    assert outcomes == [Outcome(3, 0, 0, "small", FOUND, score=0.75)]
    strict = rules()._replace(score=0.95)
    reasons = {0: lambda: miss_reason(truth.boxes[:1] * 2, 0, stages(), strict)}
    (lost,) = outcomes_of(3, truth, prediction, reasons, strict, predicts_classes=True)
    assert (lost.where, lost.truth) == ("low_score", 0)


def boxes(*starts: float) -> np.ndarray:
    """Return squares of 40 px that start at these places on the diagonal."""
    return np.array([(start, start, start + 40, start + 40) for start in starts], float).reshape(-1, 4)


@pytest.mark.parametrize(
    ("start", "label", "kind"),
    [
        (1, 0, "duplicate"),
        (1, 1, "wrong_class"),  # the object of class 0 fits, that of class 1 does not
        (22, 0, "bad_box"),  # IoU 0.11
        (118, 1, "bad_box"),
        (22, 1, "background"),  # overlaps an object of another class too little
        (300, 0, "missing_label"),
        (300, 1, "background"),  # nothing of class 1 is found
    ],
)
def test_a_planted_false_alarm_gets_its_kind(start: float, label: int, kind: str) -> None:
    truth = Truth(boxes(0, 100), np.array([0, 1]), np.zeros(2, bool))
    prediction = Prediction(boxes(0, start), np.array([0.9, 0.8], np.float32), np.array([0, label]))
    easy = Prediction(boxes(200), np.array([0.6], np.float32), np.array([0]))
    (alarm,) = find_alarms([truth, Truth(boxes(200), np.array([0]), np.zeros(1, bool))], [prediction, easy], 0.5, 0.5)
    assert (alarm.kind, alarm.image, alarm.detection) == (kind, 0, 1)
    assert alarm.truth == {"duplicate": 0, "wrong_class": 0, "bad_box": label}.get(kind, -1)
    assert find_alarms([truth], [prediction], 0.5, 0.85) == []


@pytest.mark.parametrize(
    ("score", "kind"), [(0.65, "background"), (0.7, "background"), (0.72, "missing_label"), (0.95, "missing_label")]
)
def test_a_missing_label_scores_above_the_median_of_the_right_detections(score: float, kind: str) -> None:
    """The correct ones score 0.6, 0.7 and 0.9, with a mean of 0.73; one of another class does not count."""
    truth = Truth(boxes(0, 100, 200, 300), np.array([0, 0, 0, 1]), np.zeros(4, bool))
    scores, labels = np.array([0.6, 0.7, 0.9, 0.99, score], np.float32), np.array([0, 0, 0, 1, 0])
    (alarm,) = find_alarms([truth], [Prediction(boxes(0, 100, 200, 300, 400), scores, labels)], 0.5, 0.5)
    assert (alarm.detection, alarm.kind) == (4, kind)


def test_what_lies_in_an_ignored_object_is_no_false_alarm() -> None:
    truth = Truth(np.array([[0.0, 0, 200, 200]]), np.array([0]), np.array([True]))
    assert find_alarms([truth], [Prediction(boxes(20), np.array([0.9]), np.array([0]))], 0.5, 0.5) == []
    (alarm,) = find_alarms([truth], [Prediction(boxes(20), np.array([0.9]), np.array([1]))], 0.5, 0.5)
    assert alarm.kind == "background"


# --- laws, on a data set that a random detector half knows -----------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images whose objects are the detections, moved about, some of another class, some ignored."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    records = []
    for index in range(5):
        path = folder / f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)).save(path)
        first, second = detector().predict(path, score=0)[0], np.array([[3.0, 3, 6, 60], [50, 10, 60, 20]])
        moved = np.clip(first.boxes + rng.normal(0, 2, first.boxes.shape), 0, (96, 64, 96, 64))
        objects = np.concatenate((moved[(moved[:, 2:] > moved[:, :2]).all(axis=1)], second)) if index else moved[:0]
        labels = np.concatenate((first.labels, (0, 1)))[: len(objects)]
        labels = np.where(rng.random(len(objects)) < 0.3, rng.integers(0, 3, len(objects)), labels)
        records.append(Record(path, path.name, index, SIZE, objects, labels, rng.random(len(objects)) < 0.2))
    return Dataset(folder, "voc", "val", NAMES, (1, 2, 3), tuple(records))


@pytest.fixture(scope="module")
def answer(dataset: Dataset) -> Why:
    return analyse(detector(), dataset, batch=2)  # the last batch has a filler


@pytest.mark.parametrize(("iou", "score"), [(0.5, 0.3), (0.5, 0.33), (0.75, 0.0), (0.3, 0.3)])
def test_the_parts_sum_to_the_objects_and_found_is_what_the_metric_matches(
    dataset: Dataset, iou: float, score: float
) -> None:
    result = analyse(detector(), dataset, iou=iou, score=score)
    metrics = coco_metrics(result.truths, result.predictions, len(NAMES))
    confusion = confusion_matrix(result.truths, result.predictions, len(NAMES), iou=iou, score=score)
    parts = Counter(outcome.where for outcome in result.outcomes)
    assert parts.total() == metrics.counts.sum() > 20
    assert set(parts) <= {FOUND, *MISS_REASONS}
    assert parts[FOUND] == np.trace(confusion[:3, :3]) > 0
    shown = sum((prediction.scores >= np.float32(score)).sum() for prediction in result.predictions)
    ignored = shown - confusion[:, :3].sum()
    assert len(result.alarms) == shown - parts[FOUND] - ignored > 0
    assert np.array_equal(np.bincount([outcome.label for outcome in result.outcomes], minlength=3), metrics.counts)


def test_the_answer_does_not_depend_on_the_batch(dataset: Dataset, answer: Why) -> None:
    alone = analyse(detector(), dataset, batch=1)
    assert repr(alone.outcomes) == repr(answer.outcomes)
    assert alone.alarms == answer.alarms
    done: list[tuple[int, int]] = []
    analyse(detector(), dataset, batch=4, progress=lambda *step: done.append(step))
    assert done == [(1, 2), (2, 2)]


def test_without_a_second_stage_found_is_what_the_proposals_cover(dataset: Dataset) -> None:
    result = analyse(detector({"roi": {"head": "none"}}), dataset)
    proposals = [(prediction.boxes, prediction.scores) for prediction in result.predictions]
    recall = proposal_recall(result.truths, proposals, tops=(1000,)).recall[0, 0]
    objects, found = len(result.outcomes), len(result.lost(FOUND))
    assert found == round(recall * objects)
    assert sum(len(result.lost(kind)) for kind in possible_reasons(result)) == objects - found
    assert list(possible_reasons(result)) == ["no_anchor", "not_in_top_k", "no_proposal"]
    assert (result.alarms, mended(result)) == ((), {})
    with pytest.raises(SettingsError, match=r"from an IoU of 0\.5 on, got 0\.3"):
        analyse(detector({"roi": {"head": "none"}}), dataset, iou=0.3)


def test_no_images_are_an_error(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no images to explain"):
        analyse(detector(), Dataset(dataset.root, "voc", "val", NAMES, (1, 2, 3), ()))


# --- mending ---------------------------------------------------------------------------------------------------------


def test_ap_is_cocos_and_mending_never_lowers_it(answer: Why) -> None:
    ap = ap_of(answer.truths, answer.predictions, 3, answer.iou)
    assert ap == pytest.approx(coco_metrics(answer.truths, answer.predictions, 3).ap50, abs=1e-9)
    after = mended(answer)
    assert set(after) == {*MISS_REASONS, *ALARMS} == set(KINDS)
    for kind, value in after.items():
        count = len(answer.lost(kind)) + len(answer.false_alarms(kind))
        assert value >= ap - 1e-9, kind
        assert count or value == ap, kind


def planted(
    *detections: tuple[float, float, int],
    labels: tuple[int, ...] = (0, 0),
    lost: dict[int, str] | None = None,
    detail: str = "",
) -> Why:
    """The answer for an image of objects at 0, 100, ..., found or lost, and detections (start, score, label)."""
    truth = Truth(boxes(*(100.0 * i for i in range(len(labels)))), np.array(labels), np.zeros(len(labels), bool))
    starts, scores, classes = (np.array(column) for column in zip(*detections, strict=True))
    prediction = Prediction(boxes(*starts), scores.astype(np.float32), classes)
    outcomes = tuple(
        Outcome(0, index, label, "medium", (lost or {}).get(index, FOUND), detail, taken_for=0, score=0.9)
        for index, label in enumerate(labels)
    )
    alarms = tuple(find_alarms([truth], [prediction], 0.5, 0.5))
    return Why(NAMES, 0.5, 0.5, True, (truth,), (prediction,), outcomes, alarms)


def test_what_mending_gives_by_hand() -> None:
    def after(kind: str, *detections: tuple[float, float, int]) -> tuple[float, float]:
        answer = planted(*detections, lost={1: kind if kind in MISS_REASONS else "no_box"})
        assert kind in MISS_REASONS or [alarm.kind for alarm in answer.alarms] == [kind]
        return ap_of(answer.truths, answer.predictions, 3, 0.5), mended(answer)[kind]

    half = 51 / 101  # recalls 0, 0.01 .. 0.5 at precision 1
    low = (half, 1.0)
    assert after("no_anchor", (0, 0.9, 0)) == pytest.approx(low)
    # A match below the threshold moves to the front; left where it was it would be a duplicate.
    between = (51 + 50 * 2 / 3) / 101
    assert after("low_score", (0, 0.9, 0), (300, 0.45, 0), (100, 0.4, 0)) == pytest.approx((between, 1.0))
    # Two alarms of one object: the better one becomes right.
    assert after("bad_box", (0, 0.9, 0), (122, 0.8, 0)) == pytest.approx(low)
    assert after("duplicate", (0, 0.9, 0), (1, 0.8, 0), (100, 0.4, 0)) == pytest.approx((between, 1.0))
    # The alarm moves from class 1 to class 0; class 1 has no object, and no AP.
    assert after("wrong_class", (0, 0.9, 0), (100, 0.8, 1)) == pytest.approx(low)
    assert after("background", (0, 0.9, 0), (300, 0.8, 0), (100, 0.4, 0)) == pytest.approx((between, 1.0))
    # A missing label: three objects, all found.
    assert mended(planted((0, 0.8, 0), (100, 0.7, 0), (300, 0.9, 0)))["missing_label"] == pytest.approx(1.0)


# --- advice and pictures ---------------------------------------------------------------------------------------------

ALARM = {
    "duplicate": (1, 0.8, 0),
    "bad_box": (22, 0.8, 0),
    "wrong_class": (100, 0.8, 0),
    "background": (22, 0.8, 2),
    "missing_label": (300, 0.95, 0),
}
DETAILS = {"not_in_top_k": ("cut", "missed"), "no_proposal": ("nms", "cut", "score", "small", "shared")}
DETAILS |= {"suppressed": ("nms", "cut", "small", "shared")}


@pytest.mark.parametrize(
    ("kind", "detail"), [(k, d) for k in MISS_REASONS for d in DETAILS.get(k, ("",))] + [(k, "") for k in ALARMS]
)
def test_the_advice_is_about_what_costs_most_and_names_settings_that_exist(
    kind: str, detail: str, dataset: Dataset
) -> None:
    detections = [(0, 0.9, 0), (100, 0.4, 1)] + ([ALARM[kind]] if kind in ALARM else [])
    answer = planted(*detections, labels=(0, 1), lost={1: kind} if kind in MISS_REASONS else {}, detail=detail)
    whole_report = report(answer, dataset, tiny.settings())
    advice = whole_report.advice
    assert advice.endswith(".")
    assert advice.count(". ") == 0
    named = advice.split("`")[1::2]
    assert set(named) <= set(keys())
    assert named or "labels" in advice or "onger" in advice
    assert "cat" in advice or "dog" in advice or kind in MISS_REASONS or kind == "background"
    tree = document(whole_report, dataset)
    part = tree["lost"] if kind in MISS_REASONS else tree["false_alarms"]
    assert part[kind]["count"] == sum(part[kind]["by_class"].values()) == sum(part[kind]["by_size"].values()) == 1
    assert len(tree["lost_objects"]) + len(tree["false_detections"]) == 1


@pytest.mark.parametrize("kind", ["no_proposal", "suppressed"])
def test_the_advice_on_one_box_for_two_objects_is_not_about_suppression(kind: str, dataset: Dataset) -> None:
    answer = planted((0, 0.9, 0), (100, 0.4, 1), labels=(0, 1), lost={1: kind}, detail="shared")
    advice = report(answer, dataset, tiny.settings()).advice
    assert advice.startswith("Show images larger")
    assert "nms" not in advice


def test_the_advice_on_a_single_class_does_not_count_it(dataset: Dataset) -> None:
    answer = planted((0, 0.4, 0), (100, 0.4, 0), lost={0: "no_box", 1: "no_box"})
    advice = report(replace(answer, names=("raccoon",)), dataset, tiny.settings()).advice
    assert "raccoon" not in advice
    assert "2 objects, all of them " in advice


def test_a_perfect_detector_gets_other_advice(dataset: Dataset, tmp_path: Path) -> None:
    answer = report(planted((0, 0.9, 0), (100, 0.8, 0)), dataset, tiny.settings())
    assert answer.advice.startswith("No object is lost")
    check_pictures(answer, replace(dataset, records=dataset.records[:1]), tmp_path)


def check_pictures(answer: WhyReport, dataset: Dataset, folder: Path) -> None:
    """Draw both pictures, and check that they are complete."""
    draw_why(answer, folder / "funnel.png")
    draw_worst(answer.why, dataset, tiny.settings(), folder / "worst.jpg")
    assert sorted(path.name for path in folder.iterdir()) == ["funnel.png", "worst.jpg"]
    for path in folder.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert len(picture.convert("L").getcolors() or []) > 5


@pytest.mark.parametrize("head", ["fc", "none"])
def test_pictures_and_document(dataset: Dataset, tmp_path: Path, head: str) -> None:
    made = detector({"roi": {"head": head}})
    answer = report(analyse(made, dataset), dataset, made.settings)
    check_pictures(answer, dataset, tmp_path)
    tree = document(answer, dataset)
    assert tree["found"] + sum(entry["count"] for entry in tree["lost"].values()) == tree["objects"]
    assert len(tree["lost_objects"]) == tree["objects"] - tree["found"]
    assert len(tree["false_detections"]) == sum(entry["count"] for entry in tree["false_alarms"].values())


def test_many_classes_and_names_like_formulas_are_drawn(dataset: Dataset, tmp_path: Path) -> None:
    outcomes = [Outcome(0, i, i, "small", list(MISS_REASONS)[i % 7]) for i in range(40)]
    alarms = [Alarm(0, i, i, "large", list(ALARMS)[i % 5], 0.9, -1, 0.0) for i in range(40)]
    truth = Truth(np.tile(HERE, (40, 1)), np.arange(40), np.zeros(40, bool))
    prediction = Prediction(np.tile(AWAY, (40, 1)), np.full(40, 0.9), np.arange(40))
    names = tuple(rf"$\frac {i} with a very long name" for i in range(40))
    answer = Why(names, 0.5, 0.5, True, (truth,), (prediction,), tuple(outcomes), tuple(alarms))
    check_pictures(report(answer, dataset, tiny.settings()), dataset, tmp_path)
