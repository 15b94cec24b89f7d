"""An image gives the same detections alone, in any batch, and beside an empty or a crowded image: to the last bit."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from rcnn.detector import Detector
from rcnn.model.structures import Batch
from rcnn.presets import build, settings_of

SHAPES = [(120, 160), (160, 120), (100, 200), (150, 150)]


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    settings = settings_of("mobilenet-fpn", ["preprocess.short=128", "preprocess.long=224", "roi.score=0.0"])
    model = build(settings, 4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rpn.head" in name or "predictor" in name:
                parameter.normal_(std=0.1)
    return Detector(model, settings, ["a", "b", "c", "d"], device="cpu")


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 255, (*SHAPES[i % 4], 3), dtype=np.uint8) for i in range(12)]
    noise[5][:] = 0  # an empty image
    noise[7][::7, ::5] = 255  # a crowded one
    return noise


def assert_equal(a, b):
    for field in ("boxes", "scores", "labels"):
        assert np.array_equal(getattr(a, field), getattr(b, field)), field


@pytest.mark.parametrize("size", [2, 4, 8])
def test_companions_change_nothing(detector, pictures, size):
    alone = detector.predict(pictures, score=0.0)
    assert sum(len(result) for result in alone) > 100
    order = np.random.default_rng(size).permutation(len(pictures)).tolist()
    order.sort(key=lambda i: i % 4)  # a batch holds one bucket; the order within it is random
    together = detector.predict([pictures[i] for i in order], score=0.0, batch=size)
    for i, result in zip(order, together, strict=True):
        assert_equal(alone[i], result)


def test_padding_to_the_largest_image_would_fail(detector, pictures):
    """The counter-test: what others do, pad to the batch's largest image, changes boxes."""
    preprocessor = detector.preprocessor
    small, large = pictures[0], pictures[2]
    batch = preprocessor.collate([preprocessor.resize(small)], [small.shape[:2]])
    other = preprocessor.collate([preprocessor.resize(large)], [large.shape[:2]])
    height, width = (max(a, b) for a, b in zip(batch.images.shape[2:], other.images.shape[2:], strict=True))
    assert (height, width) != tuple(batch.images.shape[2:])
    more = (0, width - batch.images.shape[3], 0, height - batch.images.shape[2])
    padded = Batch(functional.pad(batch.images, more), *batch[1:])
    assert not np.array_equal(detector.detect(padded)[0].boxes, detector.detect(batch)[0].boxes)
