"""The paper's two networks, layer by layer."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file
from torch import nn

from rcnn.backbones.zf import WithinChannelNorm
from rcnn.config import Augment, override
from rcnn.detector import Detector
from rcnn.images.batch import Preprocessor
from rcnn.model.anchors import cell_anchors, grid_anchors, inside
from rcnn.model.boxes import decode
from rcnn.model.fast_rcnn import FCHead, UnscaledDropout
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.losses import smooth_l1
from rcnn.model.normalise import Pixels
from rcnn.model.rpn import RegionProposalNetwork
from rcnn.model.structures import RoIOutput
from rcnn.presets import PRESETS, build, settings_of
from rcnn.training.optim import build_optimizer, learning_rate
from tests.model import worked
from tests.test_presets import scene

NETWORKS = ("paper-vgg16", "paper-zf")
BACKGROUND_BOXES = 4 * 4097


def paper(name: str) -> FasterRCNN:
    with torch.device("meta"):
        return build(settings_of(name), 20)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(layers: Iterable[nn.Module]) -> list[tuple]:
    """Return a description of each layer."""
    found: list[tuple] = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            assert layer.groups == layer.dilation[0] == 1
            found.append(("conv", layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0]))
        elif isinstance(layer, nn.MaxPool2d):
            assert layer.ceil_mode
            found.append(("pool", layer.kernel_size, layer.stride, layer.padding))
        elif isinstance(layer, WithinChannelNorm):
            found.append(("norm", layer.alpha, layer.beta))
        else:
            assert isinstance(layer, nn.ReLU)
            found.append(("relu",))
    return found


def conv(width: int, kernel: int = 3, stride: int = 1) -> list[tuple]:
    return [("conv", width, kernel, stride, kernel // 2), ("relu",)]


POOL = ("pool", 2, 2, 0)
VGG = [*conv(64) * 2, POOL, *conv(128) * 2, POOL, *conv(256) * 3, POOL, *conv(512) * 3, POOL, *conv(512) * 3]
NORM_POOL = [("norm", 5e-5, 0.75), ("pool", 3, 2, 1)]
ZF = [*conv(96, 7, 2), *NORM_POOL, *conv(256, 5, 2), *NORM_POOL, *conv(384) * 2, *conv(256)]


@pytest.mark.parametrize(("name", "layers"), list(zip(NETWORKS, (VGG, ZF), strict=True)))
def test_trunks_have_the_papers_layers(name: str, layers: list[tuple]):
    assert shapes(paper(name).backbone.trunk.features) == layers


@pytest.mark.parametrize(
    ("name", "parts", "total"),
    [
        ("paper-vgg16", (14_714_688, 2_359_808, 9_234, 18_468, 102_764_544, 16_781_312, 86_037), 137_078_239),
        ("paper-zf", (3_726_464, 590_080, 4_626, 9_252, 37_752_832, 16_781_312, 86_037), 59_294_751),
    ],
)
def test_parameters_are_counted_as_in_the_paper(name: str, parts: tuple[int, ...], total: int):
    net = paper(name)
    rpn, head, predictor = net.rpn.head, net.fast_rcnn.head, net.fast_rcnn.predictor
    layers = (net.backbone, rpn.conv, rpn.cls, rpn.reg, head.fc6, head.fc7, predictor.cls)
    assert tuple(count(layer) for layer in layers) == parts
    assert count(predictor.reg) == 344_148 - BACKGROUND_BOXES
    assert count(net) == total - BACKGROUND_BOXES


@pytest.mark.parametrize(("name", "grid"), [("paper-vgg16", (38, 63)), ("paper-zf", (39, 64))])
def test_an_image_of_600_by_1000_has_the_papers_grid(name: str, grid: tuple[int, int]):
    net, settings = paper(name), settings_of(name)
    assert net.backbone.strides == net.rpn.strides == (16,)
    assert net.rpn.per_cell == 9
    preprocessor = Preprocessor(settings.preprocess)
    assert preprocessor.resized((375, 500)) == (600, 800)
    assert preprocessor.resized((500, 2000)) == (250, 1000)
    assert preprocessor.bucket((600, 1000)) == (608, 1008)
    for size in ((600, 1000), (608, 1008)):  # padding to a multiple of 16 adds no cells
        assert net.backbone(torch.empty(1, 3, *size, device="meta"))["c4"].shape[2:] == grid


def test_an_image_of_10000_by_6000_may_keep_its_size():
    """A text on the method names this as the usual input size (docs/references.md, 001); the paper resizes images."""
    net, settings = paper("paper-vgg16"), settings_of("paper-vgg16")
    assert Preprocessor(settings.preprocess).resized((6000, 10_000)) == (600, 1000)
    preprocessor = Preprocessor(override(settings, {"preprocess": {"short": 6000, "long": 10_000}}).preprocess)
    assert preprocessor.resized((6000, 10_000)) == preprocessor.bucket((6000, 10_000)) == (6000, 10_000)
    assert net.backbone(torch.empty(1, 3, 6000, 10_000, device="meta"))["c4"].shape[2:] == (6000 // 16, 10_000 // 16)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("size", "cells"), [((600, 1000), 38 * 63), ((600, 800), 38 * 50), ((608, 1008), 38 * 63)])
def test_the_box_loss_is_divided_by_the_cells_that_an_image_reaches_into(name: str, size: tuple[int, int], cells: int):
    """600 x 1000 has 2394 cells (the paper: about 2400): cells cut by the edge count, padding does not."""
    settings = settings_of(name)
    rpn = RegionProposalNetwork(4, (16,), settings.anchors, settings.rpn)
    out = rpn([torch.randn(1, 4, 38, 63)], (608, 1008))
    keys = torch.rand(1, 38 * 63 * 9, dtype=torch.float64)
    losses = rpn.loss(out, worked.targets(), torch.tensor([size]), keys)
    assert losses["rpn_box"][1] == cells


def test_pixels_are_bgr_in_0_to_255_minus_the_mean():
    preprocessor = Preprocessor(settings_of("paper-vgg16").preprocess)
    red, green, blue = 10, 130, 250
    batch = preprocessor.collate(
        [preprocessor.resize(np.array([[[red, green, blue]]], dtype=np.uint8), (1, 1))], [(1, 1)]
    )
    (image,) = Pixels(preprocessor.settings)(batch)
    expected = torch.tensor([blue - 102.9801, green - 115.9465, red - 122.7717])
    torch.testing.assert_close(image[:, 0, 0], expected, rtol=0, atol=1e-4)


def test_anchors_are_the_papers_code_and_8151_fit_inside():
    anchors = settings_of("paper-zf").anchors
    cells = cell_anchors(anchors, 0)
    inclusive = cells + 8 - torch.tensor([0.0, 0, 1, 1])
    assert inclusive[[0, 2, 4, 8]].tolist() == [
        [-84, -40, 99, 55],
        [-360, -184, 375, 199],
        [-120, -120, 135, 135],
        [-168, -344, 183, 359],
    ]
    for (height, width), fit in {(600, 1000): 8151, (600, 800): 5944}.items():
        grid = grid_anchors(cells, (math.ceil(height / 16), math.ceil(width / 16)), (16, 16), anchors.offset)
        assert anchors.border == 0
        assert inside(grid, torch.tensor([[float(height), float(width)]]), 0.0).sum() == fit


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("paper-")])
def test_anchors_are_rounded_as_in_the_papers_code_and_a_setting_gives_the_exact_areas(name: str) -> None:
    def sides(*changes: str) -> torch.Tensor:
        cells = cell_anchors(settings_of(name, changes).anchors, 0, torch.float64)
        return (cells[:, 2:] - cells[:, :2]).unflatten(0, (3, -1))[:, -3:]  # ratio, size (COCO's 64 first), (w, h)

    assert sides().tolist() == [
        [[184, 96], [368, 192], [736, 384]],
        [[128, 128], [256, 256], [512, 512]],
        [[88, 176], [176, 352], [352, 704]],
    ]
    exact = sides("anchors.round=none")
    areas = torch.tensor([128**2, 256**2, 512**2], dtype=torch.float64).expand(3, 3)
    torch.testing.assert_close(exact.prod(dim=-1), areas, rtol=1e-12, atol=0)
    ratios = torch.tensor([0.5, 1, 2], dtype=torch.float64)[:, None].expand(3, 3)
    torch.testing.assert_close(exact[..., 1] / exact[..., 0], ratios, rtol=1e-12, atol=0)


def test_layers_below_conv3_1_are_frozen_in_vgg_and_none_in_zf():
    for name, frozen in (("paper-vgg16", {"0", "2", "5", "7"}), ("paper-zf", set())):
        found = {n for n, p in paper(name).named_parameters() if not p.requires_grad}
        assert found == {f"backbone.trunk.features.{layer}.{leaf}" for layer in frozen for leaf in ("weight", "bias")}


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_a_half_and_scales_as_in_the_original_network(name: str):
    dropout = paper(name).fast_rcnn.head.dropout
    assert dropout.p == 0.5
    torch.manual_seed(0)
    x = torch.full((10_000,), 3.0)
    kept = 3.0 if name == "paper-zf" else 6.0
    assert set(dropout.train()(x).tolist()) == {0.0, kept}
    assert dropout.eval()(x).unique().tolist() == [kept / 2]


@pytest.mark.parametrize("name", NETWORKS)
def test_fc6_and_fc7_are_each_followed_by_relu_and_dropout(name: str):
    torch.manual_seed(0)
    roi = settings_of(name).roi
    head, rois, seen = FCHead(2, 3, 64, roi.dropout, roi.dropout_scale).train(), torch.randn(5, 2, 3, 3), []
    head.dropout.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    found = head(rois)
    (behind_fc6, dropped), (behind_fc7, last) = seen
    assert torch.equal(behind_fc6, head.fc6(rois.flatten(1)).relu())
    assert torch.equal(behind_fc7, head.fc7(dropped).relu())
    assert torch.equal(found, last)
    assert all((before != after).any() for before, after in seen)


def test_unscaled_dropout_has_the_same_mean_in_training_and_prediction():
    torch.manual_seed(0)
    dropout, x = UnscaledDropout(0.3), torch.ones(200_000)
    assert dropout.train()(x).mean().item() == pytest.approx(dropout.eval()(x).mean().item(), abs=0.01)
    head = FCHead(2, 3, 4, 0.0, "prediction")
    rois = torch.randn(5, 2, 3, 3)
    assert torch.equal(head.train()(rois), head.eval()(rois))


def test_mean_and_deviation_of_box_targets_are_folded_into_the_weights_on_saving(tmp_path: Path):
    """The layer in the file predicts plain deltas, as in the paper's code; loading restores the original weights."""
    torch.manual_seed(0)
    normal = ["roi.box_mean=[0.01,-0.02,0.05,0.03]", "roi.box_std=[0.1,0.1,0.3,0.2]"]
    settings = settings_of("paper-zf", ["roi.hidden=16", *normal])
    detector = Detector(build(settings, 2), settings, ("cat", "dog"), device="cpu")
    detector.save(tmp_path / "zf.safetensors")
    arrays, layer = load_file(tmp_path / "zf.safetensors"), "fast_rcnn.predictor.reg"
    features, rois = torch.randn(9, 16).double(), torch.tensor([[[10.0, 20, 50, 80]]]).double().expand(1, 9, -1)
    plain = nn.functional.linear(features, *(arrays[f"{layer}.{leaf}"].double() for leaf in ("weight", "bias")))
    stage = detector.model.fast_rcnn.double()
    out = RoIOutput(rois, torch.zeros(1, 9, 3), stage.predictor.reg(features).view(1, 9, 2, 4), features)
    boxes = stage.refine(out, torch.tensor([[1000.0, 1000]]).double())
    torch.testing.assert_close(boxes, decode(plain.view(1, 9, 2, 4), rois[:, :, None]), rtol=1e-9, atol=0)

    loaded = Detector.load(tmp_path / "zf.safetensors", "cpu").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in detector.model.float().state_dict().items())


def test_subtracting_a_mean_from_targets_equals_starting_with_it_as_bias():
    """This is how `roi.box_mean` works: after one step, both layers give the same boxes."""
    torch.manual_seed(0)
    std, mean = torch.tensor([0.1, 0.1, 0.2, 0.2]).double(), torch.tensor([0.01, -0.02, 0.05, 0.03]).double()
    features, deltas = torch.randn(9, 6).double(), 0.1 * torch.randn(9, 4).double()
    shifted, plain = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()
    with torch.no_grad():
        plain.weight.copy_(shifted.weight)
        plain.bias.copy_(shifted.bias + mean / std)
    for layer, targets in ((shifted, (deltas - mean) / std), (plain, deltas / std)):
        smooth_l1(layer(features) - targets, 1.0).sum().backward()
        torch.optim.SGD(layer.parameters(), 0.1).step()
    torch.testing.assert_close(shifted(features) * std + mean, plain(features) * std)


def test_every_convolution_has_the_number_of_parameters_of_its_window_and_channels():
    """Window x input channels x output channels, and a bias for each output: conv1_1 has 9 x 3 x 64 + 64."""
    vgg = [1_792, 36_928, 73_856, 147_584, 295_168, *[590_080] * 2, 1_180_160, *[2_359_808] * 5]
    zf = [14_208, 614_656, 885_120, 1_327_488, 884_992]
    for name, expected in zip(NETWORKS, (vgg, zf), strict=True):
        layers = [layer for layer in paper(name).backbone.modules() if isinstance(layer, nn.Conv2d)]
        assert [count(layer) for layer in layers] == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_the_training_settings_are_the_papers(name: str):
    settings = settings_of(name)
    rpn, roi, train = settings.rpn, settings.roi, settings.train
    assert (rpn.positive_iou, rpn.negative_iou, rpn.samples, rpn.positive_fraction) == (0.7, 0.3, 256, 0.5)
    assert (rpn.normaliser, rpn.lambda_, rpn.beta, rpn.logits) == ("paper", 10, 1, 2)
    assert (rpn.nms, rpn.post_train, rpn.pre_test, rpn.post_test) == (0.7, 2000, 6000, 300)
    assert (roi.samples, roi.positive_fraction, roi.negative_iou, roi.nms) == (128, 0.25, (0.1, 0.5), 0.3)
    assert (rpn.ignore, roi.ignore, roi.pool, roi.size) == ("drop", "drop", "max", 7 if "vgg" in name else 6)
    assert (rpn.min_size, roi.beta, roi.box_loss, rpn.box_loss) == (16, 1, "smooth_l1", "smooth_l1")
    assert (train.clip, train.ema, train.amp, settings.preprocess.resize) == (None, None, "float32", "interpolate")
    rates = [learning_rate(step, 80_000, train) for step in (0, 59_999, 60_000, 79_999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    assert round(train.epochs * 5011, -3) == 80_000  # images of VOC 2007 trainval
    optimizer = build_optimizer(nn.Linear(2, 2), train)
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], train.batch) == (0.9, 1)
    assert [(group["weight_decay"], group["rate"]) for group in optimizer.param_groups] == [(0.0005, 1), (0.0005, 2)]
    mirrored_alone = Augment(flip=0.5, scale=(1, 1), brightness=0, contrast=0, saturation=0, hue=0)
    assert settings.augment == mirrored_alone


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("paper-")])
def test_new_layers_start_from_the_papers_normal_distributions(name: str):
    """N(0, 0.01), N(0, 0.001) for the second stage's boxes, biases 0; all other layers belong to the backbone.

    Each bound is exceeded by chance in less than one of a million draws: 5 standard errors of mean and standard
    deviation, and Kolmogorov's distance sqrt(ln(2 / p) / 2n) of the empirical distribution from the normal one.
    """
    torch.manual_seed(0)
    net = build(settings_of(name), 20)
    stds = {"rpn.head.conv": 0.01, "rpn.head.cls": 0.01, "rpn.head.reg": 0.01}
    if net.fast_rcnn is not None:
        stds |= {"fast_rcnn.predictor.cls": 0.01, "fast_rcnn.predictor.reg": 0.001}
    layers = {layer for layer, _, _ in (parameter.rpartition(".") for parameter, _ in net.named_parameters())}
    assert {layer for layer in layers if not layer.startswith(("backbone.", "fast_rcnn.head."))} == set(stds)
    for layer, std in stds.items():
        weights = net.get_submodule(layer).weight.detach().double().numpy().ravel()
        count = len(weights)
        assert abs(weights.mean()) < 5 * std / math.sqrt(count), layer
        assert abs(weights.std() / std - 1) < 5 / math.sqrt(2 * count), layer
        assert scipy.stats.kstest(weights / std, "norm").statistic < math.sqrt(math.log(2e6) / (2 * count)), layer
        assert not net.get_submodule(layer).bias.any(), layer


def test_zf_computes_finite_gradients_for_every_weight():
    torch.manual_seed(0)
    net = build(settings_of("paper-zf", ["roi.hidden=64", "anchors.sizes=[[32,48,64]]", "model.frozen_stages=0"]), 3)
    batch, targets = scene(96, 128)
    losses = net.loss(batch, targets, net.keys(batch, targets, torch.tensor([1, 2])))
    total = torch.stack([value / number for value, number in losses.values()]).sum()
    assert total.isfinite()
    total.backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for n, p in net.named_parameters() if "weight" in n)
