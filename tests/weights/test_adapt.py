import pytest
import torch
from torch import Tensor, nn

from rcnn.errors import WeightsError
from rcnn.model.boxes import Normal, decode
from rcnn.presets import build, settings_of
from rcnn.weights.adapt import Architecture, adapt, fill, some

SMALL = "model.backbone=tiny model.channels=8 model.levels=[3,4,5] anchors.sizes=[[32],[64],[128]] roi.hidden=12"
CLS, REG = "fast_rcnn.predictor.cls.", "fast_rcnn.predictor.reg."


class Case:
    """A detector of cats and dogs, and a model that it is adapted to. Names and settings are separated by spaces."""

    def __init__(self, names: str, changes: str = "", source: str = "") -> None:
        self.theirs, self.ours = (
            Architecture(settings_of("mobilenet-fpn", f"{SMALL} {settings}".split()), tuple(classes.split()))
            for settings, classes in ((source, "cat dog"), (changes, names))
        )
        torch.manual_seed(1)
        filled = build(self.theirs.settings, 2).state_dict()
        self.source = {name: torch.randn_like(tensor.float()).abs().to(tensor.dtype) for name, tensor in filled.items()}
        self.model = build(self.ours.settings, len(self.ours.names))
        self.before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def run(self) -> str:
        return "\n".join(adapt(self.model, self.source, self.theirs, self.ours, "pets.safetensors"))

    @property
    def after(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def fresh(self) -> set[str]:
        """Return the layers that share no tensor with the source."""
        after = self.after
        shared = {
            name.rpartition(".")[0]
            for name in after
            if name in self.source and after[name].shape == self.source[name].shape
            if torch.equal(after[name], self.source[name])
        }
        return {name.rpartition(".")[0] for name in after} - shared


ONE_STAGE, FOCAL = "rpn.classify=classes roi.head=none", "rpn.classify=classes roi.head=none rpn.loss=focal"
SEVERAL = "anchors.sizes=[[24,32],[48,64],[96,128]] rpn.kernel=[3,5]"
BY_RATIO = f"{SEVERAL} anchors.order=ratio"
RATIOS = "height / width of a cell's anchors: [0.5, 1, 2], here [0.5, 1]"
LAST = {"rpn.head.cls", "rpn.head.reg"}
HEADS = {f"rpn.head.windows.{i}.{layer}" for i in range(2) for layer in ("conv", "cls", "reg")}
SCORES = {"rpn.head.windows.0.cls", "rpn.head.windows.1.cls"}
LAST_OF_WINDOWS = {*SCORES, "rpn.head.windows.0.reg", "rpn.head.windows.1.reg"}
SECOND_STAGE = {f"fast_rcnn.{layer}" for layer in ("head.fc6", "head.fc7", "predictor.cls", "predictor.reg")}


@pytest.mark.parametrize(
    ("changes", "source"),
    [("", ""), ("anchors.ratios=[2,1,0.5] anchors.ratio=w/h", ""), (SEVERAL, SEVERAL), (BY_RATIO, BY_RATIO)],
)
def test_a_detector_whose_layers_mean_the_same_keeps_all_weights(changes: str, source: str) -> None:
    case = Case("cat dog", changes, source)
    assert case.run() == "all weights from pets.safetensors"
    assert case.fresh() == set()


@pytest.mark.parametrize(
    ("changes", "source", "notes", "fresh"),
    [
        ("roi.class_agnostic=true", "", [f"{REG[:-1]} (8x12 there, 4x12 here)"], {"fast_rcnn.predictor.reg"}),
        ("roi.hidden=16", "", ["fast_rcnn.head.fc7 (12x12 there, 16x16 here)"], SECOND_STAGE),
        ("rpn.logits=2", "", ["rpn.head.cls ("], {"rpn.head.cls"}),
        (ONE_STAGE, "", ["rpn.head.cls (other logits)"], {"rpn.head.cls"}),
        (ONE_STAGE, FOCAL, ["rpn.head.cls (other logits)"], {"rpn.head.cls"}),
        ("anchors.ratios=[0.5,1]", "", [f"rpn.head.cls ({RATIOS})"], LAST),
        ("anchors.ratios=[2,1,0.5]", "", ["rpn.head.cls (", "rpn.head.reg ("], LAST),
        ("anchors.sizes=[[16],[32],[64]]", "", ["anchors.sizes=[[32], [64], [128]] (here [[16], [32], [64]])"], set()),
        (
            "model.levels=[2,3,4] roi.levels=[2,3,4]",
            "",
            [
                "backbone.neck.lateral.p2 (not in it)",
                "no place here: backbone.neck.output.p5",
                "model.levels=[3, 4, 5] (here [2, 3, 4])",
            ],
            {"backbone.neck.lateral.p2", "backbone.neck.output.p2"},
        ),
        (SEVERAL, "", ["rpn.head.windows.0.conv (not in it)"], HEADS),
        ("", SEVERAL, ["layers that have no place here: rpn.head.windows.0.cls, "], {"rpn.head.conv", *LAST}),
        (f"{SEVERAL} anchors.ratios=[0.5,1]", SEVERAL, [f"rpn.head.windows.1.cls ({RATIOS})"], LAST_OF_WINDOWS),
        (f"{BY_RATIO} anchors.ratios=[0.5,1]", BY_RATIO, [f"rpn.head.windows.1.cls ({RATIOS})"], LAST_OF_WINDOWS),
        (f"{SEVERAL} rpn.logits=2", SEVERAL, ["rpn.head.windows.1.cls ("], SCORES),
        (f"{BY_RATIO} rpn.logits=2", BY_RATIO, ["rpn.head.windows.1.cls ("], SCORES),
    ],
)
def test_layers_that_do_not_fit_or_mean_something_else_start_anew_and_are_named(
    changes: str, source: str, notes: list[str], fresh: set[str]
) -> None:
    case = Case("cat dog", changes, source)
    written = case.run()
    assert all(note in written for note in notes)
    assert case.fresh() == fresh


def test_rows_of_classes_are_kept_by_name_and_so_is_the_background() -> None:
    case = Case("dog cow cat")
    notes = case.run()
    after, source = case.after, case.source
    for part in ("weight", "bias"):
        expected = [source[CLS + part][1], case.before[CLS + part][1], source[CLS + part][0], source[CLS + part][2]]
        assert torch.equal(after[CLS + part], torch.stack(expected))
        boxes = [source[REG + part][4:8], case.before[REG + part][4:8], source[REG + part][0:4]]
        assert torch.equal(after[REG + part], torch.cat(boxes))
    assert "classes that keep their weights: dog, cat\nnew classes: cow" in notes
    assert "dropped" not in notes
    assert case.fresh() == {"fast_rcnn.predictor.cls", "fast_rcnn.predictor.reg"}


def test_without_a_common_class_the_background_is_kept_and_boxes_start_anew() -> None:
    case = Case("cow pig")
    notes = case.run()
    assert torch.equal(case.after[CLS + "weight"][2], case.source[CLS + "weight"][2])
    assert torch.equal(case.after[CLS + "weight"][:2], case.before[CLS + "weight"][:2])
    assert torch.equal(case.after[REG + "weight"], case.before[REG + "weight"])
    assert "new classes: cow, pig\nclasses that are dropped: cat, dog" in notes
    assert "start anew: fast_rcnn.predictor.reg (no class in common)" in notes


@pytest.mark.parametrize("settings", ["roi.class_agnostic=true", "roi.stages=3"])
def test_boxes_that_know_no_class_are_kept_whatever_the_classes(settings: str) -> None:
    case = Case("cow", settings, settings)
    case.run()
    regressors = [name for name in case.after if name.endswith("predictor.reg.weight")]
    assert len(regressors) == case.ours.settings.roi.stages
    assert all(torch.equal(case.after[name], case.source[name]) for name in regressors)


def test_every_head_of_a_cascade_keeps_the_rows_of_its_classes_and_a_new_head_starts_anew() -> None:
    case = Case("dog pig", "roi.stages=3", "roi.stages=2")
    notes = case.run()
    for head in ("fast_rcnn.", "fast_rcnn.later.0."):
        after, source = (tensors[f"{head}predictor.cls.weight"] for tensors in (case.after, case.source))
        assert torch.equal(after[[0, 2]], source[[1, 2]])
    assert case.fresh() >= {f"fast_rcnn.later.1.{layer.removeprefix('fast_rcnn.')}" for layer in SECOND_STAGE}
    assert "roi.stages=2 (here 3)" in notes


@pytest.mark.parametrize(("there", "here"), [(3, 1), (1, 3), (3, 5), (4, 3)])
def test_the_first_convolution_sees_grey_as_it_did(there: int, here: int) -> None:
    channels = "preprocess.mean=[0.5] preprocess.std=[0.5] preprocess.in_channels="
    case = Case("cat dog", f"{channels}{here}", f"{channels}{there}")
    notes = case.run()
    name = next(name for name, tensor in case.source.items() if tensor.dim() == 4)
    grey = torch.randn(1, 1, 9, 9)

    def seen(weight: Tensor) -> Tensor:
        return nn.functional.conv2d(grey.expand(-1, weight.shape[1], -1, -1), weight)

    if here % there == 0 or here == 1:  # else the channels can't all count the same
        torch.testing.assert_close(seen(case.after[name]), seen(case.source[name]))
    assert case.after[name].shape[1] == here
    assert f"made for {there} channels, is adapted to {here}" in notes
    assert case.fresh() == {name.rpartition(".")[0]}


def test_boxes_are_kept_where_their_deltas_are_normalised_by_other_numbers() -> None:
    case = Case("cat dog", "roi.box_std=[1,0.5,0.2,0.4] roi.box_mean=[0.1,0,-0.2,0.3]")
    assert case.run() == "all weights from pets.safetensors"
    rois, features = torch.tensor([[10.0, 20, 50, 80]]), torch.randn(7, 12)

    def boxes(source: dict[str, Tensor], architecture: Architecture) -> Tensor:
        deltas = nn.functional.linear(features / 50, source[REG + "weight"], source[REG + "bias"])
        roi = architecture.settings.roi
        normal = Normal(torch.tensor(roi.box_mean), torch.tensor(roi.box_std))
        return decode(deltas.unflatten(1, (2, 4)), rois, normal)

    torch.testing.assert_close(boxes(case.after, case.ours), boxes(case.source, case.theirs))


def test_half_precision_is_widened() -> None:
    case = Case("cat dog")
    case.source = {name: t.half() if t.is_floating_point() else t for name, t in case.source.items()}
    case.run()
    assert torch.equal(case.after[CLS + "bias"], case.source[CLS + "bias"].float())
    assert case.after[CLS + "bias"].dtype == torch.float32


def test_another_backbone_is_refused_and_changes_nothing() -> None:
    case = Case("cat dog", "model.backbone=resnet18 model.frozen_stages=0")
    with pytest.raises(WeightsError, match=r"pets\.safetensors is a detector made as .* another backbone .* --model"):
        case.run()
    assert all(torch.equal(tensor, case.before[name]) for name, tensor in case.after.items())


def test_filling_takes_every_tensor_and_nothing_else() -> None:
    case = Case("cat dog")
    whole = dict(case.source)
    fill(case.model, whole, "x")
    assert case.fresh() == set()
    for change, message in (
        ({CLS + "bias": None}, "`fast_rcnn.predictor.cls.bias` is missing"),
        ({"more": torch.zeros(1)}, "`more` has no place"),
        ({CLS + "bias": torch.zeros(2)}, r"has the shape \(2,\), not \(3,\)"),
    ):
        tensors = {name: tensor for name, tensor in {**whole, **change}.items() if tensor is not None}
        with pytest.raises(WeightsError, match=message):
            fill(case.model, tensors, "x")


def test_long_lists_are_cut() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(list("abcdefg")) == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
@pytest.mark.parametrize(("windows", "layers"), [("", {"rpn.head.cls"}), (SEVERAL, SCORES)])
def test_rows_of_one_stage_detectors_are_kept_by_name_anchor_by_anchor(
    loss: str, windows: str, layers: set[str]
) -> None:
    one_stage = f"{ONE_STAGE} rpn.loss={loss} {windows}"
    case = Case("dog cow cat", one_stage, one_stage)
    assert "classes that keep their weights: dog, cat\nnew classes: cow" in case.run()
    for name in (f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")):
        source, before = (tensors[name].unflatten(0, (-1, 3)) for tensors in (case.source, case.before))
        expected = [source[1], before[1], source[0], *([] if loss == "focal" else [source[2]])]
        assert torch.equal(case.after[name].unflatten(0, (-1, 3)), torch.stack(expected))
    assert case.fresh() == layers
