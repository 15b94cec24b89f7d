"""Checkpoints of detectron2 give its own results (`detectron2/README.md`), and every tensor is imported."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnn.config import override
from rcnn.detector import Detector
from rcnn.errors import WeightsError
from rcnn.interop.detectron2 import ARCHITECTURES, import_state
from rcnn.model.structures import Batch
from rcnn.presets import build
from rcnn.weights.backbone import read_tensors
from rcnn.weights.pickles import read_pickle

FIXTURES = Path(__file__).parent / "detectron2"
TINY = {"fpn": "faster_rcnn_R_50_FPN_1x", "c4": "faster_rcnn_R_50_C4_1x", "rpn": "rpn_R_50_FPN_1x"}
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def detector(state: Mapping[str, Tensor], arch: str) -> Detector:
    imported = import_state(state, arch)
    model = build(imported.settings, len(imported.names))
    model.load_state_dict(imported.tensors, strict=True)
    return Detector(model, imported.settings, imported.names, device="cpu")


def batch_of(found: Detector, image_bgr_chw: np.ndarray) -> Batch:
    """Prepare the image without resizing, by our own preprocessing, which takes red first."""
    height, width = image_bgr_chw.shape[1:]
    unresized = override(found.settings, {"preprocess": {"short": height, "long": width}})
    preprocessor = Detector(found.model, unresized, found.names, device="cpu").preprocessor
    array = np.ascontiguousarray(image_bgr_chw[::-1].transpose(1, 2, 0))
    return preprocessor.collate([preprocessor.resize(array)], [(height, width)])


def assert_same(boxes: np.ndarray, scores: np.ndarray, expected_boxes: np.ndarray, expected_scores: np.ndarray) -> None:
    """The boxes agree within 1e-3, in order; only neighbours of equal scores in float32 may be swapped."""
    assert boxes.shape == expected_boxes.shape
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=2e-6)
    distance = np.abs(boxes[:, None] - expected_boxes).max(axis=2) + 1e3 * (
        np.abs(scores[:, None] - expected_scores) > 1e-5
    )
    nearest = distance.argmin(axis=1)
    assert sorted(nearest) == list(range(len(boxes)))
    assert distance.min(axis=1).max() < 1e-3
    assert (nearest != np.arange(len(boxes))).sum() <= 4


def answered(name: str) -> tuple[Detector, dict[str, np.ndarray]]:
    """Return a detector of the fixtures, and the results of detectron2."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        return detector(read_pickle(FIXTURES / f"{name}.pkl"), TINY[name]), dict(file)


@pytest.mark.parametrize("name", TINY)
def test_proposals_are_those_of_detectron2(name: str) -> None:
    found, answer = answered(name)
    with torch.inference_mode():
        proposals = found.runner.propose(batch_of(found, answer["image_bgr_chw"]))
    boxes, scores = (part[0][proposals.valid[0]].numpy() for part in proposals[:2])
    assert_same(boxes, scores, answer["proposals"], torch.from_numpy(answer["objectness_logits"]).sigmoid().numpy())


@pytest.mark.parametrize("name", ["fpn", "c4"])
def test_detections_are_those_of_detectron2(name: str) -> None:
    found, answer = answered(name)
    batch = batch_of(found, answer["image_bgr_chw"])
    with torch.inference_mode():
        for model in (found.runner, found.model.eval()):
            detections = model(batch)
            valid = detections.valid[0]
            np.testing.assert_array_equal(detections.labels[0][valid].numpy(), answer["classes"])
            np.testing.assert_allclose(detections.boxes[0][valid].numpy(), answer["boxes"], rtol=0, atol=1e-3)
            np.testing.assert_allclose(detections.scores[0][valid].numpy(), answer["scores"], rtol=0, atol=1e-5)


def test_a_pth_checkpoint_is_the_same(tmp_path: Path) -> None:
    state = read_pickle(FIXTURES / "fpn.pkl")
    torch.save({"model": state, "optimizer": {"state": {}}, "iteration": 7}, tmp_path / "model_final.pth")
    again = import_state(read_tensors(tmp_path / "model_final.pth"), TINY["fpn"])
    expected = import_state(state, TINY["fpn"])
    assert again.settings == expected.settings
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in expected.tensors.items())


def layout(arch: str, widths: tuple[int, int, int] = (8, 4, 16), classes: int = 5, wide: int = 16) -> dict[str, Tensor]:
    """Return tensors with the names and shapes of a configuration of detectron2, which take no memory."""
    pyramid, proposals, groups = "FPN" in arch, arch.startswith("rpn"), 32 if "X_101" in arch else 1
    shapes: dict[str, tuple[int, ...]] = {}
    cascade = arch.startswith("cascade")
    heads = ("0.", "1.", "2.") if cascade else ("",)

    def conv(name: str, out: int, into: int, kernel: int, norm: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, into, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var") if norm else ():
            shapes[f"{name}.norm.{part}"] = (out,)
        if not norm:
            shapes[f"{name}.bias"] = (out,)

    def linear(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    trunk = "backbone.bottom_up." if pyramid else "backbone."
    stem, inner, into = widths[0], widths[1], widths[0]
    conv(f"{trunk}stem.conv1", stem, 3, 7)
    for i, blocks in enumerate(BLOCKS[101 if "101" in arch else 50]):
        if i == 3 and not pyramid and proposals:
            break
        stage = "roi_heads.res5" if i == 3 and not pyramid else f"{trunk}res{i + 2}"
        middle, out = inner * 2**i, widths[2] * 2**i
        conv(f"{stage}.0.shortcut", out, into, 1)
        for block in range(blocks):
            conv(f"{stage}.{block}.conv1", middle, into, 1)
            conv(f"{stage}.{block}.conv2", middle, middle // groups, 3)
            conv(f"{stage}.{block}.conv3", out, middle, 1)
            into = out
        if pyramid:
            conv(f"backbone.fpn_lateral{i + 2}", wide, out, 1, norm=False)
            conv(f"backbone.fpn_output{i + 2}", wide, wide, 3, norm=False)
    features, anchors = (wide, 3) if pyramid else (4 * widths[2], 15)
    conv("proposal_generator.rpn_head.conv", features, features, 3, norm=False)
    conv("proposal_generator.rpn_head.objectness_logits", anchors, features, 1, norm=False)
    conv("proposal_generator.rpn_head.anchor_deltas", 4 * anchors, features, 1, norm=False)
    if not proposals:
        hidden = 2 * wide if pyramid else 8 * widths[2]
        if pyramid:
            for head in heads:
                linear(f"roi_heads.box_head.{head}fc1", hidden, 49 * wide)
                linear(f"roi_heads.box_head.{head}fc2", hidden, hidden)
        for head in heads:
            linear(f"roi_heads.box_predictor.{head}cls_score", classes + 1, hidden)
            linear(f"roi_heads.box_predictor.{head}bbox_pred", 4 * (1 if cascade else classes), hidden)
    if cascade:
        conv("roi_heads.mask_head.predictor", classes, wide, 1, norm=False)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_tensor_is_imported(arch: str) -> None:
    state = layout(arch, (8, 32, 16) if "X_101" in arch else (8, 4, 16))
    imported = import_state(state, arch)
    assert imported.settings.model.widths is not None
    assert shapes_of(imported.tensors) == shapes_of(build(imported.settings, len(imported.names)).state_dict())
    counters = [name for name in imported.tensors if name.endswith("num_batches_tracked")]
    masks = [name for name in state if name.startswith("roi_heads.mask_head.")]
    assert len(imported.tensors) == len(state) + len(counters) - len(masks)
    assert ("its masks were left out" in imported.notes) == bool(masks) == arch.startswith("cascade")


def test_the_layout_above_is_that_of_the_checkpoints() -> None:
    for name, arch in TINY.items():
        assert shapes_of(layout(arch)) == shapes_of(read_pickle(FIXTURES / f"{name}.pkl"))


@pytest.mark.parametrize(
    ("arch", "widths"), [("faster_rcnn_R_50_FPN_3x", (64, 64, 256)), ("faster_rcnn_X_101_32x8d_FPN_3x", (64, 256, 256))]
)
def test_the_zoos_own_sizes_are_the_standard_ones_and_its_classes_coco(arch: str, widths: tuple) -> None:
    imported = import_state(layout(arch, widths, classes=80, wide=256), arch)
    assert imported.settings.model.widths is None
    assert imported.settings.model.channels == 256
    assert len(imported.names) == 80
    assert imported.category_ids is not None
    pairs = dict(zip(imported.names, imported.category_ids, strict=True))
    assert (pairs["person"], pairs["stop sign"], pairs["toothbrush"]) == (1, 13, 90)
    assert any("CC BY-SA" in note for note in imported.notes)


def test_names_are_the_users_or_numbers() -> None:
    state, arch = layout(TINY["c4"], classes=2), TINY["c4"]
    assert import_state(state, arch).names == ("class_1", "class_2")
    assert import_state(state, arch, ["cat", "dog"])[2:4] == (("cat", "dog"), None)
    with pytest.raises(WeightsError, match="2 classes"):
        import_state(state, arch, ["cat"])


def test_an_rpn_alone_has_one_class_and_no_second_stage() -> None:
    imported = import_state(layout("rpn_R_50_C4_1x"), "rpn_R_50_C4_1x")
    assert imported.names == ("object",)
    assert imported.settings.roi.head == "none"
    assert (imported.settings.rpn.pre_test, imported.settings.rpn.post_test) == (12000, 2000)


def test_conventions_of_the_networks() -> None:
    settings = {arch: import_state(layout(arch, (8, 32, 16)), arch).settings for arch in ARCHITECTURES}
    resnet, c4, resnext = (settings[f"faster_rcnn_{name}_3x"] for name in ("R_101_FPN", "R_101_C4", "X_101_32x8d_FPN"))
    assert (resnet.model.stride_in, resnext.model.stride_in) == ("1x1", "3x3")
    assert (resnet.preprocess.multiple, c4.preprocess.multiple) == (32, 1)
    assert resnet.preprocess.std == pytest.approx((1 / 255,) * 3)
    assert resnext.preprocess.std == pytest.approx((0.225, 0.224, 0.229))
    assert resnext.preprocess.mean == pytest.approx((0.406, 0.456, 0.485))
    assert c4.rpn.pre_test == 6000
    assert c4.roi.size == 14


def test_buffers_that_hold_constants_are_read_and_not_left_over() -> None:
    state, arch = layout(TINY["fpn"]), TINY["fpn"]
    plain = import_state(state, arch)
    state["pixel_mean"] = torch.tensor([51.0, 102.0, 153.0]).reshape(3, 1, 1)
    state["pixel_std"] = torch.full((3, 1, 1), 25.5)
    sizes = [32 * 2**level for level in range(5)]
    for level, size in enumerate(sizes):
        flat, tall = size / 2 / 2**0.5, size / 2 * 2**0.5
        halves = torch.tensor([[tall, flat], [size / 2, size / 2], [flat, tall]])
        state[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = torch.cat((-halves, halves), dim=1)
    imported = import_state(state, arch)
    assert imported.tensors.keys() == plain.tensors.keys()
    assert imported.settings.preprocess.mean == pytest.approx((0.2, 0.4, 0.6))
    assert imported.settings.preprocess.std == pytest.approx((0.1, 0.1, 0.1))
    state["proposal_generator.anchor_generator.cell_anchors.3"] *= 2
    with pytest.raises(WeightsError, match=r"other anchors than .*cell_anchors\.3"):
        import_state(state, arch)


def test_other_architectures_are_named() -> None:
    with pytest.raises(WeightsError, match=r"DC5\) are not supported.*faster_rcnn_R_50_C4_1x"):
        import_state({}, "faster_rcnn_R_50_DC5_3x")
    with pytest.raises(WeightsError, match="`retinanet_R_50_FPN_1x` can't be imported"):
        import_state({}, "retinanet_R_50_FPN_1x")


def test_a_tensor_too_many_or_too_few_is_named() -> None:
    arch = TINY["fpn"]
    state = layout(arch)
    with pytest.raises(WeightsError, match=r"`roi_heads\.mask_head\.deconv\.weight`"):
        import_state({**state, "roi_heads.mask_head.deconv.weight": torch.zeros(1)}, arch)
    del state["roi_heads.box_head.fc1.weight"]
    with pytest.raises(WeightsError, match=r"no `roi_heads\.box_head\.fc1\.weight`"):
        import_state(state, arch)
    with pytest.raises(WeightsError, match=r"no `backbone\.bottom_up\.stem"):
        import_state(layout(TINY["c4"]), arch)
