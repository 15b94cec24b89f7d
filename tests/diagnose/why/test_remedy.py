"""A suggested setting keeps the lost object, and NMS at other thresholds agrees with the network."""

import numpy as np
import pytest

from rcnn.diagnose.explain.follow import follow, thresholds
from rcnn.diagnose.why.outcomes import FOUND, MISS_REASONS
from rcnn.metrics.types import Truth
from tests.diagnose.explain.test_explain import TRUTH, make

ORDER = [*MISS_REASONS, FOUND]


def objects(seed: int, count: int = 40) -> Truth:
    rng = np.random.default_rng(seed)
    corners, sides = rng.uniform(0, 120, (count, 2)) * (1.3, 1), rng.uniform(8, 60, (count, 2))
    return Truth(np.concatenate((corners, corners + sides), axis=1), rng.integers(0, 2, count), np.zeros(count, bool))


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("rpn.nms=0.2", "roi.detections=5"),
        ("rpn.post_test=200", "roi.nms=0.1", "roi.score=0.0"),
        ("rpn.score=0.5", "rpn.min_size=12", "rpn.pre_test=400", "rpn.post_test=400", "roi.score=0.0"),
    ],
)
def test_a_suggested_setting_keeps_the_object_at_its_stage(changes: tuple[str, ...]) -> None:
    detector = make(*changes)
    image = np.random.default_rng(0).integers(0, 256, (150, 201, 3), dtype=np.uint8)
    truth = objects(1)
    explanation = follow(detector, image, truth, score=0.45)
    tried = set[str]()
    for outcome, remedy in explanation.outcomes:
        if remedy is None:
            continue
        assert remedy.text
        if not remedy.setting or remedy.setting in tried:
            continue
        tried.add(remedy.setting)
        score, other = 0.45, detector
        if remedy.setting == "score":
            score = remedy.value
        else:
            other = detector.with_settings([f"{remedy.setting}={remedy.value:g}"])
        again = follow(other, image, truth, score=score).outcomes[outcome.truth][0]
        later = ORDER.index(again.where) > ORDER.index(outcome.where)
        assert later or (again.where == outcome.where and again.detail == "shared"), (outcome, remedy, again)
    assert tried


def test_what_nms_leaves_is_what_the_detector_proposes_with_that_threshold() -> None:
    detector = make()
    image = np.random.default_rng(0).integers(0, 256, (150, 201, 3), dtype=np.uint8)
    explanation = follow(detector, image, TRUTH)
    survivors = explanation.survivors(detector.settings.rpn)
    for index in (0, 3, 10, thresholds(0.7).index(0.7)):
        other = follow(detector.with_settings([f"rpn.nms={thresholds(0.7)[index]}"]), image)
        assert set(explanation.before.anchor[survivors[index]].tolist()) == set(other.proposals.anchor.tolist())
    assert 0.73 in thresholds(0.73)
