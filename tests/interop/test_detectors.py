"""Checkpoints as files, as users have them."""

from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from rcnn.config import Settings, override
from rcnn.errors import WeightsError
from rcnn.interop.detectors import from_torchvision, import_weights, to_torchvision
from rcnn.interop.torchvision_export import export_state, program
from rcnn.presets import PRESETS, build, settings_of
from rcnn.weights.imported import coco_names

ARCH = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    return fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=91)


@pytest.fixture(scope="module")
def expected(theirs):
    return from_torchvision(theirs)


def old_name(name):
    """Return torchvision's name before version 0.13."""
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    for i in "01":
        name = name.replace(f"_blocks.{i}.0.", f"_blocks.{i}.")
    return name


def test_a_training_checkpoint_of_parallel_training_and_old_names(theirs, expected, tmp_path):
    state = {f"module.{old_name(name)}": tensor for name, tensor in theirs.state_dict().items()}
    file = tmp_path / "model_25.pth"
    torch.save({"model": state, "optimizer": {"lr": 0.02}, "args": Namespace(epochs=26), "epoch": 25}, file)
    found = import_weights(file, ARCH)
    assert found.settings == expected.settings
    torch.testing.assert_close(found.model.state_dict(), expected.model.state_dict(), rtol=0, atol=0)
    assert found.names == expected.names == coco_names()


def test_a_file_of_frozen_norms_gives_frozen_norms(theirs, tmp_path):
    state = {name: tensor for name, tensor in theirs.state_dict().items() if "num_batches_tracked" not in name}
    save_file(state, tmp_path / "frozen.safetensors")
    found = import_weights(tmp_path / "frozen.safetensors", ARCH)
    model = found.settings.model
    assert (model.norm, model.norm_eps, model.frozen_stages) == ("frozen", 1e-5, 3)
    assert "variances" in found.summary["notes"][0]


def test_coco_names_are_one_for_every_id():
    names = coco_names()
    assert len(set(names)) == len(names) == 90
    assert (names[0], names[11], names[89]) == ("person", "unused_12", "toothbrush")


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("fasterrcnn_resnet50_fpn", "this is not fasterrcnn_resnet50_fpn: size mismatch"),
        ("fasterrcnn_resnet50", "did you mean `fasterrcnn_resnet50_fpn"),
    ],
)
def test_another_architecture_is_refused(theirs, tmp_path, arch, message):
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=message):
        import_weights(tmp_path / "weights.pth", arch)


def test_a_classifier_is_no_detector(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"weights\.pth: there is no `roi_heads.*fc\.weight"):
        import_weights(tmp_path / "weights.pth", ARCH)


def test_settings_that_torchvision_can_not_hold_are_named():
    settings = settings_of("mobilenet-fpn", {"model": {"channels": 8}, "roi": {"hidden": 16}})
    state = build(settings, 2).state_dict()
    with pytest.raises(WeightsError) as error:
        export_state(state, settings)
    for name in ("preprocess.resize", "anchors.offset", "roi.aligned"):
        assert f"`{name}` is" in str(error.value)
    changes = ["model.levels=[4,5]", "anchors.sizes=[[32],[64]]", "roi.levels=[4,5]"]
    with pytest.raises(WeightsError, match=r"`model\.levels`"):
        export_state(state, settings_of("mobilenet-fpn", changes))
    sizes = [(size, 1.5 * size) for (size,) in settings.anchors.sizes]
    several = {"anchors": {"sizes": sizes}, "rpn": {"kernel": [3, 5]}}
    with pytest.raises(WeightsError, match=r"`rpn\.kernel` is \[3, 5\], in torchvision it is 3"):
        export_state(state, override(settings, several))
    with pytest.raises(WeightsError, match="its RPN is untrained"):
        export_state(state, override(settings, {"train": {"scheme": "fast-rcnn", "proposals": "boxes.json"}}))


def test_exported_background_is_first_and_its_boxes_are_zero(theirs, expected):
    state = to_torchvision(expected)
    assert state.keys() == theirs.state_dict().keys()
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(state[name], theirs.state_dict()[name])
    assert not state["roi_heads.box_predictor.bbox_pred.weight"][:4].any()


HELD = {"mobilenet-fpn", "resnet18-fpn", "resnet34-fpn", "resnet50-fpn", "resnet101-fpn"}
"""Presets that torchvision can represent if they are trained with its rules."""


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_exported_by_torchvisions_rules_or_refused(preset: str):
    with pytest.raises(WeightsError, match=r"can't hold this detector: `"):
        program(settings_of(preset), 2)
    settings = with_torchvisions_rules(model=preset)
    with torch.device("meta"):
        state = build(settings, 2).state_dict()
    tensors = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}
    if preset not in HELD:
        with pytest.raises(WeightsError, match=r"`(model.backbone|model.neck|roi.head)` is"):
            export_state(tensors, settings)
        return
    space: dict = {}
    with torch.device("meta"):
        exec(program(settings, 2), space)
    space["model"].load_state_dict(export_state(tensors, settings), strict=True, assign=True)


def with_torchvisions_rules(*more: str, model: str = "resnet18-fpn") -> Settings:
    rules = (
        "preprocess.resize=interpolate preprocess.round=floor anchors.offset=0 anchors.round=half anchors.order=ratio "
        "anchors.stride=image//grid roi.aligned=false roi.min_size=0.01 model.channels=16 roi.hidden=8"
    )
    return settings_of(model, [*rules.split(), *more])


def test_a_resnet_trained_with_torchvisions_rules_can_be_exported():
    settings = with_torchvisions_rules()
    model = build(settings, 2)
    space: dict = {}
    exec(program(settings, 2), space)
    space["model"].load_state_dict(export_state(model.state_dict(), settings), strict=True)
    again = from_torchvision(space["model"], ("a", "b"))
    torch.testing.assert_close(again.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert again.settings.model.norm == "frozen"


def test_a_mean_of_box_targets_which_torchvision_does_not_have_goes_into_the_bias():
    settings = with_torchvisions_rules()
    mean = with_torchvisions_rules("roi.box_mean=[0.01,-0.02,0.06,0.04]")
    state = build(settings, 2).state_dict()
    bias = "roi_heads.box_predictor.bbox_pred.bias"  # whose deltas there are 10, 10, 5 and 5 times as large
    moved, still = (export_state(state, changed)[bias][4:] for changed in (mean, settings))
    torch.testing.assert_close(moved - still, torch.tensor([0.1, -0.2, 0.3, 0.2] * 2))
