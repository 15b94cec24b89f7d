"""Every preset gives the same bits in any batch and after saving and loading; bfloat16 numbers are close to float32's.

All layers have their original sizes, except for the widest fully connected ones.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rcnn.detector import Detector
from rcnn.presets import PRESETS, build, settings_of
from rcnn.result import Result
from rcnn.runtime.precision import has_bf16
from tests.training.pieces import threads

OVERRIDES = [
    *("preprocess.short=96", "preprocess.long=128", "roi.score=0", "roi.hidden=512"),
    *("rpn.pre_test=60", "rpn.post_test=12", "rpn.min_size=2", "roi.detections=12"),
]
NAMES = ("a", "b", "c", "d")
PICTURES = [np.random.default_rng(i).integers(0, 255, (90, 120, 3), dtype=np.uint8) for i in range(4)]
PICTURES[1][:] = 0


def calm(detector: Detector) -> None:
    """Scale random layers one after another so that each has an output with a standard deviation of 1.

    Otherwise the outputs of deep networks are zero or the same for all pictures, and equal bits would mean nothing.
    """

    def scale(layer: Any, _: Any, out: Tensor) -> Tensor:
        spread = out.std().clamp(min=1e-6)
        layer.weight.div_(spread)
        return out / spread

    layers = [layer for layer in detector.model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    preprocessor = detector.preprocessor
    with torch.no_grad():
        detector.model.eval()(preprocessor.collate([preprocessor.resize(PICTURES[0])], [PICTURES[0].shape[:2]]))
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module", params=PRESETS)
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    settings = settings_of(request.param, OVERRIDES)
    detector = Detector(build(settings, len(NAMES)), settings, NAMES, threshold=0.0, device="cpu")
    calm(detector)
    return detector


def assert_equal(found: list[Result], expected: list[Result]) -> None:
    for one, other in zip(found, expected, strict=True):
        for field in ("boxes", "scores", "labels", "features"):
            mine, theirs = getattr(one, field), getattr(other, field)
            assert (mine is None and theirs is None) or np.array_equal(mine, theirs), field


def assert_a_batch_changes_no_bit(detector: Detector) -> None:
    features = detector.model.fast_rcnn is not None
    alone = detector.predict(PICTURES, features=features)
    assert_equal(detector.predict(PICTURES, batch=4, features=features), alone)
    assert_equal(detector.propose(PICTURES[:2], batch=2), detector.propose(PICTURES[:2]))
    assert min(len(result.boxes) for result in alone) > 3
    assert not np.array_equal(alone[2].scores, alone[3].scores)


def test_a_batch_changes_no_bit(detector: Detector) -> None:
    with threads(1):
        assert_a_batch_changes_no_bit(detector)


@pytest.mark.parametrize("detector", ["mobilenet-fpn", "tiny-fpn", "paper-zf"], indirect=True)
def test_a_batch_changes_no_bit_on_two_threads(detector: Detector) -> None:
    with threads(2):
        assert_a_batch_changes_no_bit(detector)


def off(found: Tensor, expected: Tensor) -> float:
    """Return the mean difference, relative to the standard deviation."""
    return float((found - expected).abs().mean() / expected.std())


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="bfloat16 takes 12 times as long on this CPU")
def test_bf16_is_close_to_float32_and_a_batch_changes_no_bit(detector: Detector) -> None:
    half, preprocessor = detector.with_settings(["predict.precision=bf16"]), detector.preprocessor
    batch = preprocessor.collate([preprocessor.resize(picture) for picture in PICTURES[:2]], [(90, 120)] * 2)
    exact = detector.network.record(batch)
    # The second stage gets the same proposals, since their choice may depend on the last bit of a score.
    found = half.network.record(batch, exact.proposals if exact.rois else None)
    own = half.network.record(batch)
    assert exact.rpn is not None
    assert own.rpn is not None
    pairs = [*zip(own.rpn.logits + own.rpn.deltas, exact.rpn.logits + exact.rpn.deltas, strict=True)]
    for one, other in zip(found.rois, exact.rois, strict=True):
        pairs += [(one.logits, other.logits), (one.deltas, other.deltas)]
    assert all(0 < off(*pair) < 0.03 for pair in pairs)  # 0.003 to 0.017; 0 would be float32
    for part in (own.proposals, own.detections):
        assert part is not None
        assert part.boxes.dtype == part.scores.dtype == torch.float32
    assert_equal(half.predict(PICTURES[:2], batch=2), half.predict(PICTURES[:2]))


def test_a_saved_detector_is_loaded_as_it_was(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "saved.safetensors")
    loaded = Detector.load(tmp_path / "saved.safetensors", "cpu")
    (tmp_path / "saved.safetensors").unlink()  # pytest would keep half a gigabyte of them
    assert loaded.settings == detector.settings
    state = detector.model.state_dict()
    assert loaded.model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.model.state_dict().items())
    found, trained = (
        {name for name, one in model.named_parameters() if one.requires_grad}
        for model in (loaded.model, detector.model)
    )
    assert found == trained
    assert not any(tensor.is_meta for tensor in (*loaded.model.parameters(), *loaded.model.buffers()))
    assert_equal(loaded.predict(PICTURES[:1]), detector.predict(PICTURES[:1]))
