import pytest
import torch
from torch import Tensor, nn

from rcnn.config import Settings
from rcnn.errors import WeightsError
from rcnn.model.boxes import Normal, decode
from rcnn.presets import build, settings_of
from rcnn.weights.adapt import Architecture, adapt, fill, some

SMALL = (
    "model.backbone=tiny",
    "model.channels=8",
    "model.levels=[3,4,5]",
    "anchors.sizes=[[32],[64],[128]]",
    "roi.hidden=12",
)
CLS, REG = "fast_rcnn.predictor.cls.", "fast_rcnn.predictor.reg."


def settings(*changes: str) -> Settings:
    return settings_of("mobilenet-fpn", [*SMALL, *changes])


class Case:
    """A filled detector of cats and dogs, and a model that it is adapted to."""

    def __init__(self, names: tuple[str, ...], *changes: str, source: tuple[str, ...] = ()) -> None:
        self.theirs = Architecture(settings(*source), ("cat", "dog"))
        self.ours = Architecture(settings(*changes), names)
        torch.manual_seed(1)
        given = build(self.theirs.settings, 2)
        with torch.no_grad():
            for tensor in given.state_dict().values():
                tensor.copy_(torch.randn_like(tensor.float()).abs())
        self.given = {name: tensor.clone() for name, tensor in given.state_dict().items()}
        self.model = build(self.ours.settings, len(names))
        self.before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def run(self) -> str:
        return "\n".join(adapt(self.model, self.given, self.theirs, self.ours, "pets.safetensors"))

    @property
    def after(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def fresh(self) -> set[str]:
        """Layers none of whose tensors are those that were given."""
        after = self.after
        kept = {
            name.rpartition(".")[0]
            for name in after
            if name in self.given and after[name].shape == self.given[name].shape
            if torch.equal(after[name], self.given[name])
        }
        return {name.rpartition(".")[0] for name in after} - kept


def test_the_same_detector_is_taken_whole() -> None:
    case = Case(("cat", "dog"))
    assert case.run() == "all weights from pets.safetensors"
    assert case.fresh() == set()


def test_rows_of_classes_are_kept_by_name_and_so_is_the_background() -> None:
    case = Case(("dog", "cow", "cat"))
    notes = case.run()
    after, given = case.after, case.given
    for part in ("weight", "bias"):
        expected = [given[CLS + part][1], case.before[CLS + part][1], given[CLS + part][0], given[CLS + part][2]]
        assert torch.equal(after[CLS + part], torch.stack(expected))
        boxes = [given[REG + part][4:8], case.before[REG + part][4:8], given[REG + part][0:4]]
        assert torch.equal(after[REG + part], torch.cat(boxes))
    assert "classes that keep their weights: dog, cat\nnew classes: cow" in notes
    assert "dropped" not in notes
    assert case.fresh() == {"fast_rcnn.predictor.cls", "fast_rcnn.predictor.reg"}


def test_without_a_common_class_the_background_is_kept_and_boxes_start_anew() -> None:
    case = Case(("cow", "pig"))
    notes = case.run()
    assert torch.equal(case.after[CLS + "weight"][2], case.given[CLS + "weight"][2])
    assert torch.equal(case.after[CLS + "weight"][:2], case.before[CLS + "weight"][:2])
    assert torch.equal(case.after[REG + "weight"], case.before[REG + "weight"])
    assert "new classes: cow, pig\nclasses that are dropped: cat, dog" in notes
    assert "start anew: fast_rcnn.predictor.reg (no class in common)" in notes


def test_boxes_that_know_no_class_are_kept_whatever_the_classes() -> None:
    case = Case(("cow",), "roi.class_agnostic=true", source=("roi.class_agnostic=true",))
    case.run()
    assert torch.equal(case.after[REG + "weight"], case.given[REG + "weight"])


def test_one_box_for_all_classes_does_not_fit_one_for_each() -> None:
    case = Case(("cat", "dog"), "roi.class_agnostic=true")
    assert "fast_rcnn.predictor.reg (8x12 there, 4x12 here)" in case.run()
    assert case.fresh() == {"fast_rcnn.predictor.reg"}


@pytest.mark.parametrize(("there", "here"), [(3, 1), (1, 3), (3, 5), (4, 3)])
def test_the_first_convolution_sees_grey_as_it_did(there: int, here: int) -> None:
    one = "preprocess.mean=[0.5]", "preprocess.std=[0.5]"
    case = Case(
        ("cat", "dog"), f"preprocess.in_channels={here}", *one, source=(f"preprocess.in_channels={there}", *one)
    )
    notes = case.run()
    name = next(name for name, tensor in case.given.items() if tensor.dim() == 4)
    grey = torch.randn(1, 1, 9, 9)

    def seen(weight: Tensor) -> Tensor:
        return nn.functional.conv2d(grey.expand(-1, weight.shape[1], -1, -1), weight)

    if here % there == 0 or here == 1:  # else the channels can't all count the same
        torch.testing.assert_close(seen(case.after[name]), seen(case.given[name]))
    assert case.after[name].shape[1] == here
    assert f"made for {there} channels, is adapted to {here}" in notes
    assert case.fresh() == {name.rpartition(".")[0]}


def test_other_anchors_of_a_cell_start_the_last_layers_of_the_rpn_anew() -> None:
    case = Case(("cat", "dog"), "anchors.ratios=[0.5,1]")
    notes = case.run()
    assert case.fresh() == {"rpn.head.cls", "rpn.head.reg"}
    assert "rpn.head.cls (height / width of a cell's anchors: [0.5, 1, 2], here [0.5, 1])" in notes


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ("anchors.ratios=[2,1,0.5]", {"rpn.head.cls", "rpn.head.reg"}),
        ("rpn.logits=2", {"rpn.head.cls"}),
    ],
)
def test_layers_whose_outputs_mean_something_else_start_anew(change: str, layers: set[str]) -> None:
    case = Case(("cat", "dog"), change)
    notes = case.run()
    assert case.fresh() == layers
    assert all(f"{layer} (" in notes for layer in layers)


def test_boxes_are_kept_where_their_deltas_are_normalised_by_other_numbers() -> None:
    case = Case(("cat", "dog"), "roi.box_std=[1,0.5,0.2,0.4]", "roi.box_mean=[0.1,0,-0.2,0.3]")
    assert case.run() == "all weights from pets.safetensors"
    rois, features = torch.tensor([[10.0, 20, 50, 80]]), torch.randn(7, 12)

    def boxes(given: dict[str, Tensor], architecture: Architecture) -> Tensor:
        deltas = nn.functional.linear(features / 50, given[REG + "weight"], given[REG + "bias"])
        roi = architecture.settings.roi
        normal = Normal(torch.tensor(roi.box_mean), torch.tensor(roi.box_std))
        return decode(deltas.unflatten(1, (2, 4)), rois, normal)

    torch.testing.assert_close(boxes(case.after, case.ours), boxes(case.given, case.theirs))


def test_ratios_told_the_other_way_round_are_the_same_anchors() -> None:
    case = Case(("cat", "dog"), "anchors.ratios=[2,1,0.5]", "anchors.ratio=w/h")
    assert case.run() == "all weights from pets.safetensors"


def test_other_sizes_of_anchors_keep_the_layers_and_say_so() -> None:
    case = Case(("cat", "dog"), "anchors.sizes=[[16],[32],[64]]")
    assert "anchors.sizes=[[32], [64], [128]] (here [[16], [32], [64]])" in case.run()
    assert case.fresh() == set()


def test_levels_that_both_have_keep_their_weights() -> None:
    case = Case(("cat", "dog"), "model.levels=[2,3,4]", "roi.levels=[2,3,4]")
    notes = case.run()
    assert case.fresh() == {"backbone.neck.lateral.p2", "backbone.neck.output.p2"}
    assert "backbone.neck.lateral.p2 (not in it)" in notes
    assert "no place here: backbone.neck.output.p5" in notes
    assert "model.levels=[3, 4, 5] (here [2, 3, 4])" in notes


def test_wider_layers_start_anew_and_are_named() -> None:
    case = Case(("cat", "dog"), "roi.hidden=16")
    assert "fast_rcnn.head.fc7 (12x12 there, 16x16 here)" in case.run()
    layers = ("head.fc6", "head.fc7", "predictor.cls", "predictor.reg")
    assert case.fresh() == {f"fast_rcnn.{layer}" for layer in layers}


def test_half_precision_is_widened() -> None:
    case = Case(("cat", "dog"))
    case.given = {name: t.half() if t.is_floating_point() else t for name, t in case.given.items()}
    case.run()
    assert torch.equal(case.after[CLS + "bias"], case.given[CLS + "bias"].float())
    assert case.after[CLS + "bias"].dtype == torch.float32


def test_another_backbone_is_refused_and_changes_nothing() -> None:
    case = Case(("cat", "dog"), "model.backbone=resnet18", "model.frozen_stages=0")
    with pytest.raises(WeightsError, match=r"pets\.safetensors is a detector made as .* another backbone .* --model"):
        case.run()
    assert all(torch.equal(tensor, case.before[name]) for name, tensor in case.after.items())


def test_filling_takes_every_tensor_and_nothing_else() -> None:
    case = Case(("cat", "dog"))
    whole = dict(case.given)
    fill(case.model, whole, "x")
    assert case.fresh() == set()
    for change, said in (
        ({CLS + "bias": None}, "`fast_rcnn.predictor.cls.bias` is missing"),
        ({"more": torch.zeros(1)}, "`more` has no place"),
        ({CLS + "bias": torch.zeros(2)}, r"has the shape \(2,\), not \(3,\)"),
    ):
        tensors = {name: tensor for name, tensor in {**whole, **change}.items() if tensor is not None}
        with pytest.raises(WeightsError, match=said):
            fill(case.model, tensors, "x")


def test_long_lists_are_cut() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(list("abcdefg")) == "a, b, c, d, e and 2 more"


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_rows_of_one_stage_detectors_are_kept_by_name_anchor_by_anchor(loss: str) -> None:
    one_stage = ("rpn.classify=classes", "roi.head=none", f"rpn.loss={loss}")
    case = Case(("dog", "cow", "cat"), *one_stage, source=one_stage)
    notes = case.run()
    for part in ("weight", "bias"):
        name = f"rpn.head.cls.{part}"
        given, before = (tensors[name].unflatten(0, (-1, 3)) for tensors in (case.given, case.before))
        expected = [given[1], before[1], given[0], *([] if loss == "focal" else [given[2]])]
        assert torch.equal(case.after[name].unflatten(0, (-1, 3)), torch.stack(expected))
    assert "classes that keep their weights: dog, cat\nnew classes: cow" in notes
    assert case.fresh() == {"rpn.head.cls"}


SEVERAL = ("anchors.sizes=[[24,32],[48,64],[96,128]]", "rpn.kernel=[3,5]")
HEADS = {f"rpn.head.windows.{i}.{layer}" for i in range(2) for layer in ("conv", "cls", "reg")}


@pytest.mark.parametrize("order", ["size", "ratio"])
def test_a_pyramid_of_filters_is_taken_whole_and_its_last_layers_start_anew_with_other_anchors(order: str) -> None:
    several = (*SEVERAL, f"anchors.order={order}")
    assert Case(("cat", "dog"), *several, source=several).run() == "all weights from pets.safetensors"
    case = Case(("cat", "dog"), *several, "anchors.ratios=[0.5,1]", source=several)
    notes = case.run()
    assert case.fresh() == HEADS - {"rpn.head.windows.0.conv", "rpn.head.windows.1.conv"}
    assert "rpn.head.windows.1.cls (height / width of a cell's anchors: [0.5, 1, 2], here [0.5, 1])" in notes
    case = Case(("cat", "dog"), *several, "rpn.logits=2", source=several)
    case.run()
    assert case.fresh() == {"rpn.head.windows.0.cls", "rpn.head.windows.1.cls"}


def test_one_window_and_several_do_not_fit_each_other() -> None:
    case = Case(("cat", "dog"), *SEVERAL)
    assert "rpn.head.windows.0.conv (not in it)" in case.run()
    assert case.fresh() == HEADS
    case = Case(("cat", "dog"), source=SEVERAL)
    assert "layers that have no place here: rpn.head.windows.0.cls, " in case.run()
    assert case.fresh() == {"rpn.head.conv", "rpn.head.cls", "rpn.head.reg"}


@pytest.mark.parametrize("loss", ["cross-entropy", "focal"])
def test_rows_of_every_window_of_a_one_stage_detector_are_kept_by_name(loss: str) -> None:
    one_stage = (*SEVERAL, "rpn.classify=classes", "roi.head=none", f"rpn.loss={loss}")
    case = Case(("dog", "cow", "cat"), *one_stage, source=one_stage)
    case.run()
    for window in (0, 1):
        name = f"rpn.head.windows.{window}.cls.weight"
        given, before = (tensors[name].unflatten(0, (-1, 3)) for tensors in (case.given, case.before))
        expected = [given[1], before[1], given[0], *([] if loss == "focal" else [given[2]])]
        assert torch.equal(case.after[name].unflatten(0, (-1, 3)), torch.stack(expected))
    assert case.fresh() == {"rpn.head.windows.0.cls", "rpn.head.windows.1.cls"}


@pytest.mark.parametrize("source", [(), ("rpn.classify=classes", "roi.head=none", "rpn.loss=focal")])
def test_logits_of_another_kind_start_anew(source: tuple[str, ...]) -> None:
    case = Case(("cat", "dog"), "rpn.classify=classes", "roi.head=none", source=source)
    assert "rpn.head.cls (other logits)" in case.run()
    assert case.fresh() == {"rpn.head.cls"}
