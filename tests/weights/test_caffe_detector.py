import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rcnn.config import Settings
from rcnn.errors import WeightsError
from rcnn.interop.detectors import import_weights
from rcnn.model.boxes import decode
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.presets import build, settings_of
from rcnn.weights.adapt import fill
from rcnn.weights.caffe import read_arrays
from rcnn.weights.caffe_detector import export_arrays, import_arrays, swap_scores

NARROW = ["roi.hidden=16"]


@pytest.fixture(scope="module")
def zf() -> FasterRCNN:
    torch.manual_seed(0)
    return build(settings_of("paper-zf", NARROW), 3).eval()


@pytest.fixture(scope="module")
def settings() -> Settings:
    return settings_of("paper-zf", NARROW)


@pytest.fixture
def arrays(zf: FasterRCNN, settings: Settings) -> dict[str, np.ndarray]:
    return export_arrays(zf.state_dict(), settings)


def test_a_paper_model_is_exported_and_imported_again(zf: FasterRCNN, settings: Settings, arrays, tmp_path: Path):
    assert arrays["cls_score.weight"].shape == (4, 16)
    assert arrays["bbox_pred.weight"].shape == (16, 16)
    assert arrays["rpn_cls_score.weight"].shape == (18, 256, 1, 1)
    assert arrays["rpn_bbox_pred.weight"].shape == (36, 256, 1, 1)
    np.savez(tmp_path / "zf.npz", **arrays)
    back = import_arrays(read_arrays(tmp_path / "zf.npz"), settings, ["a", "b", "c"])
    assert back.names == ("a", "b", "c")
    state = zf.state_dict()
    assert back.tensors.keys() == state.keys()
    for name, tensor in back.tensors.items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=0, msg=name)


def test_vgg_has_all_thirteen_convolutions():
    torch.manual_seed(0)
    settings = settings_of("paper-vgg16", NARROW)
    net = build(settings, 2)
    arrays = export_arrays(net.state_dict(), settings)
    names = [f"conv{a}_{b}" for a, n in enumerate((2, 2, 3, 3, 3), 1) for b in range(1, n + 1)]
    heads = ["rpn_conv/3x3", "rpn_cls_score", "rpn_bbox_pred", "fc6", "fc7", "cls_score", "bbox_pred"]
    assert list(arrays) == [f"{name}.{leaf}" for name in names + heads for leaf in ("weight", "bias")]
    convs = [layer for layer in net.backbone.trunk.modules() if isinstance(layer, torch.nn.Conv2d)]
    for name, layer in zip(names, convs, strict=True):
        assert np.array_equal(arrays[f"{name}.weight"], layer.weight.detach().numpy())
    fill(net, import_arrays(arrays, settings).tensors, "arrays")


def test_other_networks_are_refused_by_the_setting():
    required = {"anchors.order=size": "ratio", "rpn.score_order=object-first": "background-first", "rpn.convs=2": "1"}
    required |= {"roi.class_agnostic=True": "False", "rpn.kernel=5": "3", "rpn.kernel=[3, 5, 7]": "3"}
    for change, value in required.items():
        words = re.escape(f"{change}, there {value}".replace("[3, 5, 7]", "(3, 5, 7)"))
        with pytest.raises(WeightsError, match=f"can't hold this detector: {words}$"):
            export_arrays({}, settings_of("paper-zf", [*NARROW, change]))
    with pytest.raises(
        WeightsError, match=r"model\.backbone=mobilenet, there vgg16 or zf; model\.neck=fpn, there none; "
    ):
        export_arrays({}, settings_of("mobilenet-fpn"))


def test_background_comes_first_and_deltas_are_unnormalised(settings: Settings, arrays):
    """Scores and boxes as Caffe computes them: [background, classes], four rows per class, not normalised."""
    generator = np.random.default_rng(0)
    arrays |= {name: generator.normal(size=arrays[name].shape) / 9 for name in arrays if name[:4] in ("cls_", "bbox")}
    net = build(settings, 3)
    fill(net, import_arrays(arrays, settings).tensors, "arrays")
    features = torch.randn(5, 16)
    logits, deltas = net.fast_rcnn.predictor(features)
    scores = features.numpy() @ arrays["cls_score.weight"].T + arrays["cls_score.bias"]
    boxes = features.numpy() @ arrays["bbox_pred.weight"].T + arrays["bbox_pred.bias"]
    torch.testing.assert_close(logits, torch.tensor(scores[:, [1, 2, 3, 0]]).float(), rtol=1e-4, atol=1e-5)
    rois = torch.tensor([[10.0, 20, 50, 80]])
    for label in range(3):
        raw = torch.tensor(boxes[:, 4 * label + 4 : 4 * label + 8]).float()
        ours = decode(deltas[:, label], rois, net.fast_rcnn.delta_normal(rois.dtype))
        torch.testing.assert_close(ours, decode(raw, rois), rtol=1e-4, atol=1e-3)


def test_names_may_be_spelled_in_many_ways(settings: Settings, arrays):
    expected = import_arrays(arrays, settings).tensors
    layers = {name.rpartition(".")[0] for name in arrays}
    pairs = {layer: (arrays[f"{layer}.weight"], arrays[f"{layer}.bias"]) for layer in layers}
    old = {n: a.reshape(1, 1, *a.shape) if n in ("fc6.weight", "fc7.weight") else a for n, a in arrays.items()}
    old |= {n: a.reshape(1, 1, 1, -1) for n, a in arrays.items() if n.endswith("bias")}
    matlab = {n.replace("rpn_conv/3x3", "conv_proposal1").replace("rpn_", "proposal_"): a for n, a in arrays.items()}
    slash = {n.replace(".weight", "/weights").replace(".bias", "/biases"): a for n, a in arrays.items()}
    zero = {n.replace(".weight", ".0").replace(".bias", ".1"): a for n, a in arrays.items()}
    zero = {n.replace("rpn_conv/3x3", "rpn_conv1"): a for n, a in zero.items()}
    short = {n.replace(".weight", "_w").replace(".bias", "_b"): a for n, a in arrays.items()}
    for other in (pairs, old, matlab, slash, zero, short):
        found = import_arrays(other, settings).tensors
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_scores_of_the_other_order_are_swapped(settings: Settings, zf: FasterRCNN, arrays):
    other = {n: swap_scores(torch.tensor(a)).numpy() if n.startswith("rpn_cls") else a for n, a in arrays.items()}
    changed = settings_of("paper-zf", [*NARROW, "rpn.score_order=object-first"])
    net = build(changed, 3)
    fill(net, import_arrays(other, changed).tensors, "arrays")
    feature = torch.randn(1, 256, 3, 4)
    expected = zf.rpn.scores(zf.rpn.head(feature)[0])
    torch.testing.assert_close(net.rpn.scores(net.rpn.head(feature)[0]), expected)
    assert expected.any()


def test_missing_foreign_and_invalid_names_are_reported(settings: Settings, arrays):
    less = {name: array for name, array in arrays.items() if name != "rpn_cls_score.bias"}
    with pytest.raises(WeightsError, match="not those of zf: `rpn_cls_score` has no bias"):
        import_arrays(less, settings)
    with pytest.raises(WeightsError, match="`fc8` is no layer of zf"):
        import_arrays({**arrays, "fc8.weight": np.zeros(3)}, settings)
    with pytest.raises(WeightsError, match="`thing` is not named like a layer's weight or bias"):
        import_arrays({"thing": np.zeros(3)}, settings)


def test_an_npz_is_imported_as_a_detector(arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rcnn.interop.detectors.settings_of", lambda arch: settings_of(arch, NARROW))
    np.savez(tmp_path / "zf.npz", **arrays)
    detector = import_weights(tmp_path / "zf.npz", "paper-zf", ["a", "b", "c"])
    assert detector.names == ("a", "b", "c")
    image = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    (found,) = detector.propose(image)
    assert len(found.boxes) > 0
