import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.metrics import flat
from rcnn.metrics.flat import flat_predictions, flat_truths, pairs

from .cases import coarse_images


@given(seed=st.integers(0, 10_000), images=st.integers(0, 5), classes=st.integers(1, 3), limit=st.integers(1, 40))
def test_every_pair_of_one_image_and_class_comes_once_and_in_order(
    seed: int, images: int, classes: int, limit: int
) -> None:
    truths, predictions = coarse_images(seed, images, classes)
    objects, found = flat_truths(truths, classes), flat_predictions(predictions, classes)
    expected = [
        (row, place)
        for row, key in enumerate(found.keys.tolist())
        for place, other in enumerate(objects.keys.tolist())
        if key == other
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "PAIRS", limit)
        parts = [list(zip(rows.tolist(), places.tolist(), strict=True)) for rows, places in pairs(found, objects)]
    assert [pair for part in parts for pair in part] == expected
    for part in parts:  # one detection with more pairs than the limit is not cut
        assert len(part) <= limit or len({row for row, _ in part}) == 1


@given(seed=st.integers(0, 10_000), classes=st.integers(1, 3))
def test_objects_of_one_class_keep_their_order(seed: int, classes: int) -> None:
    truths, _ = coarse_images(seed, 4, classes)
    objects = flat_truths(truths, classes)
    for image, truth in enumerate(truths):
        for label in range(classes):
            here = objects.keys == image * classes + label
            np.testing.assert_array_equal(objects.boxes[here], truth.boxes[truth.labels == label])
            np.testing.assert_array_equal(objects.ignore[here], truth.ignore[truth.labels == label])
