"""Folds divide the images, keep groups together, and spread each class."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.auditing.folds import assign_folds
from rcnn.config import Data
from rcnn.data.groups import groups_of, hold_out
from rcnn.errors import DataError, SettingsError

PATTERN = r"^(p\d+)_"
sets = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.integers(0, 2), max_size=5)), min_size=12, max_size=40
).filter(lambda images: len({patient for patient, _ in images}) >= 6)


@given(sets, st.integers(2, 3), st.randoms())
def test_each_group_is_in_one_fold_whatever_the_order_of_the_images(
    images: list[tuple[int, list[int]]], folds: int, random: "np.random.Generator"
) -> None:
    named = [
        (f"p{patient}_{number}.jpg", np.array(labels, np.int64)) for number, (patient, labels) in enumerate(images)
    ]
    assigned = assign_folds(*map(list, zip(*named, strict=True)), folds, PATTERN)  # type: ignore[arg-type]
    assert {*assigned.tolist()} == {*range(folds)}
    of_group: dict[str, int] = {}
    for (name, _), fold in zip(named, assigned.tolist(), strict=True):
        assert of_group.setdefault(name.split("_")[0], fold) == fold
    shuffled = list(named)
    random.shuffle(shuffled)
    again = assign_folds(*map(list, zip(*shuffled, strict=True)), folds, PATTERN)  # type: ignore[arg-type]
    of_name = dict(zip((name for name, _ in named), assigned.tolist(), strict=True))
    assert [of_name[name] for name, _ in shuffled] == again.tolist()


def test_classes_and_images_without_objects_are_spread() -> None:
    labels = [[0]] * 20 + [[1, 1, 1]] * 10 + [[]] * 10
    names = [f"{number}.jpg" for number in range(40)]
    folds = assign_folds(names, [np.array(row, np.int64) for row in labels], 5)
    for kind in ([0], [1, 1, 1], []):
        rows = [fold for fold, row in zip(folds.tolist(), labels, strict=True) if row == kind]
        assert np.bincount(rows, minlength=5).tolist() == [len(rows) // 5] * 5


def test_too_few_images_or_groups_for_the_folds() -> None:
    names, labels = [f"p{n % 3}_{n}" for n in range(8)], [np.zeros(1, np.int64)] * 8
    with pytest.raises(DataError, match="8 images are too few for 5 folds: at least 10 are needed"):
        assign_folds(names, labels, 5)
    with pytest.raises(DataError, match="3 groups are too few for 2 folds: at least 4 are needed"):
        assign_folds(names, labels, 2, PATTERN)


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("(", SettingsError, r"data\.group=\(: not a regular expression"),
        ("p[0-9]+", SettingsError, r"data\.group=p\[0-9\]\+: has no group; put the part that .* in parentheses"),
        ("(q)", DataError, r"matches nothing in the names of 2 images, such as p1_a"),
        ("p1_a|(p2)", DataError, r"matches nothing in the names of 1 image, such as p1_a"),
        ("(p)", DataError, r"puts all 2 images into one group, `p`"),
    ],
)
def test_a_pattern_that_does_not_divide_the_images(pattern: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        groups_of(["p1_a", "p2_b"], pattern)


@given(sets, st.floats(0, 1))
def test_groups_are_held_out_together(images: list[tuple[int, list[int]]], share: float) -> None:
    names = [f"p{patient}_{number}.jpg" for number, (patient, _) in enumerate(images)]
    held = hold_out(names, Data(holdout=share, group=PATTERN), ".")  # type: ignore[arg-type]
    groups = {name: name.split("_")[0] for name in names}
    assert not {groups[name] for name in held} & {groups[name] for name in names if name not in held}
    assert 0 < len(held) < len(names)
