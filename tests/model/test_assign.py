from collections import Counter
from itertools import combinations, permutations
from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rcnn.model.assign import Rule, assign, sample
from rcnn.model.boxes import pairwise_iou
from tests.model import worked

RPN_RULE = Rule(0.7, 0.0, 0.3, force=True)


def labels_of(rpn, targets=None):
    anchors = torch.cat(worked.output(rpn).anchors)
    assignment = rpn.assign(anchors, targets or worked.targets(), worked.SIZES)
    return worked.labels(assignment), assignment.truth


def rows(label, value):
    return (label[0] == value).nonzero().flatten().tolist()


def test_worked_labels():
    label, truth = labels_of(worked.network())
    assert rows(label, 1) == worked.POSITIVE
    assert rows(label, 0) == worked.NEGATIVE
    assert truth[0, worked.POSITIVE].tolist() == [0, 1]


def test_worked_labels_with_anchors_that_cross_the_edge():
    label, _ = labels_of(worked.network(worked.UNBOUNDED))
    assert rows(label, 1) == worked.POSITIVE
    assert len(rows(label, 0)) == 41
    assert rows(label, -1) == [15, 18, 20, 21, 22, 24, 25, 26, 34, 35, 39, 40, 42, 43, 44, 55, 56]


def test_an_object_that_touches_no_anchor_forces_none():
    boxes = torch.cat((worked.OBJECTS, torch.tensor([[[0.0, 0, 4, 4]]], dtype=torch.float64)), dim=1)
    label, _ = labels_of(worked.network(), worked.targets(boxes))
    assert rows(label, 1) == worked.POSITIVE


def test_padding_never_wins():
    boxes = torch.cat((worked.OBJECTS, torch.tensor([[[8.0, 8, 40, 40]]], dtype=torch.float64)), dim=1)
    targets = worked.targets(boxes)
    targets.valid[0, 2] = False
    padded, plain = labels_of(worked.network(), targets), labels_of(worked.network())
    assert all(map(torch.equal, padded, plain))


@pytest.mark.parametrize(("ignore", "negatives"), [("keep", [23, 33]), ("drop", worked.NEGATIVE)])
def test_ignored_objects_are_neither_positive_nor_negative(ignore, negatives):
    crowd = torch.tensor([[[30.0, 26, 64, 64]]], dtype=torch.float64)  # covers half or more of anchors 36, 37, 38
    targets = worked.targets(torch.cat((worked.OBJECTS, crowd), dim=1))
    targets.ignore[0, 2] = True
    label, _ = labels_of(worked.network(ignore=ignore), targets)
    assert rows(label, 1) == worked.POSITIVE
    assert rows(label, 0) == negatives


def test_all_ties_of_an_objects_best_are_positive():
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [100, 100, 110, 110]])
    gt = torch.tensor([[[5.0, 0, 15, 10]]])
    yes, no = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.bool)
    assignment = assign(anchors, yes, gt, ~no, no, RPN_RULE)
    assert worked.labels(assignment).tolist() == [[1, 1, 0]]


box = st.builds(
    lambda x, y, w, h: [x, y, x + w, y + h], *[st.floats(0, 60, width=32)] * 2, *[st.floats(4, 50, width=32)] * 2
)


@settings(max_examples=40, deadline=None)
@given(st.lists(box, min_size=1, max_size=12), st.lists(box, min_size=1, max_size=5))
def test_label_rules_hold_for_any_boxes(anchor_rows, object_rows):
    anchors, objects = torch.tensor(anchor_rows), torch.tensor([object_rows])
    yes = torch.ones(1, len(anchor_rows), dtype=torch.bool)
    valid = torch.ones(1, len(object_rows), dtype=torch.bool)
    assignment = assign(anchors, yes, objects, valid, ~valid, RPN_RULE)
    label, truth = worked.labels(assignment), assignment.truth
    iou = pairwise_iou(anchors, objects[0])
    best = iou.max(dim=1).values
    touched = iou.max(dim=0).values
    for i, value in enumerate(label[0].tolist()):
        forced = (iou[i] >= touched * (1 - 1e-6)) & (touched > 0)
        expected = 1 if best[i] >= 0.7 or forced.any() else 0 if best[i] < 0.3 else -1
        assert value == expected
        if value == 1:
            assert iou[i, truth[0, i]] == best[i]
    for g in (touched > 0).nonzero().flatten():
        assert (label[0, iou[:, g].argmax()] == 1).item()  # each touched object has an anchor


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(200, 1000, (128, 128)), (20, 1000, (20, 236)), (300, 50, (128, 50)), (0, 9, (0, 9))],
)
def test_sampling_counts(positives, negatives, expected):
    label = torch.cat((torch.ones(positives), torch.zeros(negatives), -torch.ones(40))).to(torch.int8)[None]
    drawn = sample(worked.assignment(label), torch.rand(label.shape, dtype=torch.float64), 256, 0.5)
    assert (int(drawn.positive.sum()), int((drawn.valid & ~drawn.positive).sum())) == expected
    chosen = label[0, drawn.indices[0]]
    assert (chosen[drawn.positive[0]] == 1).all()
    assert (chosen[drawn.valid[0] & ~drawn.positive[0]] == 0).all()
    assert len(set(drawn.indices[drawn.valid].tolist())) == sum(expected)


@pytest.mark.parametrize(
    ("positives", "negatives", "count", "fraction"), [(3, 4, 4, 0.5), (5, 2, 4, 0.5), (1, 5, 3, 0.25), (2, 3, 7, 0.5)]
)
def test_sampling_is_exactly_uniform(positives, negatives, count, fraction):
    """Run every order of the keys: each admissible subset is drawn equally often."""
    total = positives + negatives
    orders = torch.tensor(list(permutations(range(total))), dtype=torch.float64) / total
    label = torch.tensor([1] * positives + [0] * negatives, dtype=torch.int8).expand(len(orders), -1)
    drawn = sample(worked.assignment(label), orders, count, fraction)
    subsets = Counter(
        tuple(sorted(index[valid].tolist())) for index, valid in zip(drawn.indices, drawn.valid, strict=True)
    )
    n_positive = min(positives, round(count * fraction))
    n_negative = min(negatives, count - n_positive)
    assert len(subsets) == comb(positives, n_positive) * comb(negatives, n_negative)
    assert len(set(subsets.values())) == 1
    admissible = {
        tuple(sorted(p + n))
        for p in combinations(range(positives), n_positive)
        for n in combinations(range(positives, total), n_negative)
    }
    assert set(subsets) == admissible


def test_more_samples_than_candidates():
    drawn = sample(worked.assignment(torch.tensor([[1, 0]])), torch.rand(1, 2, dtype=torch.float64), 8, 0.5)
    assert drawn.indices.shape == (1, 8)
    assert drawn.valid.sum() == 2
