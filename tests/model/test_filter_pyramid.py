"""Several sliding windows (`rpn.kernel=[3,5,7]`): they equal heads of one window each, for parts of the anchors."""

from typing import Any

import pytest
import torch
from torch import nn

from rcnn.config import RPN, Anchors, validate
from rcnn.errors import SettingsError
from rcnn.model.anchors import cell_anchors
from rcnn.model.rpn import RegionProposalNetwork
from rcnn.model.rpn_head import FilterPyramid, RPNHead
from rcnn.presets import PRESETS, build, settings_of
from tests.model import tiny

RATIOS = (0.5, 1.0, 2.0)
CASES = {
    "one size each": ((3, 5, 7), (128.0, 256.0, 512.0)),
    "two sizes each": ((1, 3), (16.0, 32.0, 64.0, 128.0)),
    "equal windows": ((3, 3), (16.0, 32.0)),
    "large first": ((7, 3), (32.0, 64.0)),
}


def network(case: str, order: Any = "size", **settings: Any) -> RegionProposalNetwork:
    torch.manual_seed(0)
    kernels, sizes = CASES[case]
    anchors = Anchors(sizes=(sizes, sizes), ratios=RATIOS, order=order)
    rpn = RegionProposalNetwork(6, (8, 16), anchors, RPN(kernel=kernels, **settings)).double()
    for parameter in rpn.parameters():
        nn.init.normal_(parameter, std=0.3)
    return rpn


def apart(rpn: RegionProposalNetwork) -> list[RPNHead]:
    """Return a head of one window for each window of a network, with its weights."""
    settings, heads = rpn.settings, []
    for window, kernel in zip(rpn.head.windows, settings.kernels, strict=True):
        own = rpn.per_cell // len(settings.kernels)
        heads.append(RPNHead(6, 6, own, logits=settings.logits, kernel=kernel, convs=settings.convs).double())
        heads[-1].load_state_dict(window.state_dict())
    return heads


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", ["size", "ratio"])
@pytest.mark.parametrize(("logits", "convs"), [(1, 1), (2, 1), (1, 2)])
def test_every_anchor_is_predicted_by_the_window_of_its_size(case: str, order: str, logits: int, convs: int) -> None:
    rpn = network(case, order, logits=logits, convs=convs)
    feature = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    heads = apart(rpn)
    parts = [[part.unflatten(1, (20, -1)) for part in head(feature)] for head in heads]
    taken, columns, (sizes, _) = [0] * len(heads), [], rpn.anchors.sizes
    sides = (2 * cell_anchors(rpn.anchors, 0, torch.float64)[:, 2:]).prod(dim=1).sqrt()
    for side in sides.tolist():
        window = sizes.index(round(side)) // (len(sizes) // len(heads))  # the smallest sizes belong to the first
        columns.append([part[:, :, taken[window]] for part in parts[window]])
        taken[window] += 1
    assert taken == [rpn.per_cell // len(heads)] * len(heads)
    expected = tuple(torch.stack(part, dim=2).flatten(1, 2) for part in zip(*columns, strict=True))
    torch.testing.assert_close(rpn.head(feature), expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", ["size", "ratio"])
@pytest.mark.parametrize("logits", [1, 2])
def test_values_and_gradients_at_chosen_anchors_equal_the_full_maps(case: str, order: str, logits: int) -> None:
    rpn = network(case, order, logits=logits)
    assert rpn.learns_from_samples
    levels = [torch.randn(2, 6, *grid, dtype=torch.float64, requires_grad=True) for grid in ((4, 5), (2, 3))]
    anchors = (4 * 5 + 2 * 3) * rpn.per_cell
    index = torch.randint(0, anchors, (2, 60))
    index[:, 0], index[:, 1] = 0, anchors - 1
    tiny.assert_same_at_anchors(rpn.head, levels, index)


CHANGES: dict[str, Any] = {
    "anchors": {"sizes": [[12, 16, 24], [32, 48, 64]], "order": "ratio"},
    "rpn": {"kernel": [3, 5, 7]},
}


@pytest.mark.parametrize("change", [{}, {"logits": 2}, {"convs": 2}, {"channels": 5}], ids=str)
def test_a_detector_learns_with_it_and_every_window_does(change: dict[str, Any]) -> None:
    net = tiny.model(CHANGES | {"rpn": CHANGES["rpn"] | change}).double().train()
    data, targets, keys = tiny.scene(net, 2, objects=12, dtype=torch.float64)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.02), []
    before = {name: tensor.clone() for name, tensor in net.rpn.head.named_parameters()}
    for _ in range(8):
        step, _ = tiny.backward(net, net.loss(data, targets, keys))
        optimizer.step()
        losses.append(tiny.total(step).item())
    assert losses[-1] < 0.9 * losses[0]
    assert not [name for name, tensor in net.rpn.head.named_parameters() if torch.equal(tensor, before[name])]


@pytest.mark.parametrize("what", ["no object", "fillers", "empty batch", "absurd padding"])
def test_padding_does_not_affect_gradients(what: str) -> None:
    tiny.assert_padding_reaches_no_gradient(tiny.model(CHANGES), *tiny.batch(), what)


def test_focal_classes_start_at_their_prior_in_every_window() -> None:
    settings = settings_of(
        "mobilenet-one-stage",
        ["model.backbone=tiny", "anchors.sizes=[[16,24],[32,48],[64,96],[128,192]]", "rpn.kernel=[3,5]"],
    )
    head = build(settings, 3).rpn.head
    assert isinstance(head, FilterPyramid)
    for window in head.windows:
        torch.testing.assert_close(window.cls.bias.sigmoid(), torch.full((3 * 3,), 0.01))


@pytest.mark.parametrize("name", ["paper-zf", "paper-vgg16"])
def test_the_papers_networks_take_one_and_new_layers_are_drawn_as_the_papers(name: str) -> None:
    torch.manual_seed(0)
    settings = settings_of(name, ["rpn.kernel=[3,5,7]", "roi.head=none"])
    head = build(settings, 20).rpn.head
    assert isinstance(head, FilterPyramid)
    width = {"paper-zf": 256, "paper-vgg16": 512}[name]
    for window, kernel in zip(head.windows, (3, 5, 7), strict=True):
        assert window.conv.weight.shape == (width, width, kernel, kernel)
        assert window.cls.weight.shape == (2 * 3, width, 1, 1)
        assert window.reg.weight.shape == (4 * 3, width, 1, 1)
        for layer in (window.conv, window.cls, window.reg):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
            assert not layer.bias.any()


@pytest.mark.parametrize("name", PRESETS)
def test_one_window_has_the_layers_that_it_had(name: str) -> None:
    with torch.device("meta"):
        head = build(settings_of(name), 3).rpn.head
    assert type(head) is RPNHead
    assert {key.partition(".")[0] for key in head.state_dict()} == {"conv", "cls", "reg"}


@pytest.mark.parametrize(
    ("kernel", "sizes"),
    [
        ((3, 5, 7), ((128, 256),)),
        ((3, 5, 7), ((128, 256, 512, 640),)),
        ((3, 5), ((128, 256, 512),)),
        ((3, 3), ((32,),)),
    ],
)
def test_sizes_that_cannot_be_divided_among_the_windows_are_refused(kernel: Any, sizes: Any) -> None:
    message = rf"rpn\.kernel=\[{', '.join(map(str, kernel))}\] divides the sizes .* among {len(kernel)} windows"
    with pytest.raises(SettingsError, match=message):
        RegionProposalNetwork(8, (16,), Anchors(sizes=sizes), RPN(kernel=kernel))
    with pytest.raises(SettingsError, match=message):
        validate({"model": {"levels": [4]}, "anchors": {"sizes": sizes}, "rpn": {"kernel": kernel}})


@pytest.mark.parametrize("kernel", [0, 2, 4, 9, -3, 3.0, True, "wide", [], [3], [3, 4], [3, [5]], [3] * 17, None])
def test_other_windows_are_refused_in_one_line(kernel: object) -> None:
    with pytest.raises(SettingsError, match=r"^`rpn\.kernel`: 1, 3, 5 or 7, or a list of 2 to 16 of these \(got .*\)$"):
        validate({"rpn": {"kernel": kernel}})


def test_presets_with_one_size_per_level_raise_an_error_with_advice() -> None:
    with pytest.raises(SettingsError, match=r"give every level 3 sizes or a multiple of that, or set rpn\.kernel to"):
        settings_of("mobilenet-fpn", ["rpn.kernel=[3,5,7]"])
