"""Between a batch and its detections or losses, the host never waits for a GPU, and few kernels run (needs no GPU)."""

import math
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from rcnn import ops
from rcnn.config import Train
from rcnn.data.loading.loader import Item
from rcnn.detector import Detector
from rcnn.evaluate import _score
from rcnn.model.fast_rcnn import BLOCK
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import Batch, Proposals, Targets
from rcnn.ops.roi_align_matrix import taps_of
from rcnn.presets import PRESETS, build, settings_of
from rcnn.runtime.folded import folded
from rcnn.training.distributed import Distributed
from rcnn.training.ema import EMA
from rcnn.training.optim import build_optimizer
from rcnn.training.step import backward
from tests.no_sync import HAS_KERNELS, Record, faked, recorded
from tests.training import pieces

CUDA = torch.device("cuda:0")


class Kernels(NamedTuple):
    """Maximum numbers of kernels for two images of 64 x 96, outside our operators.

    The anchors of this shape, and scale and shift of frozen norms, have been computed before.

    Attributes:
        forward, propose: methods of the folded network.
        loss: loss of the network in training.
        backward: gradients of the loss.
    """

    forward: int
    propose: int
    loss: int
    backward: int


MAX_KERNELS = {
    "mobilenet-fpn": Kernels(307, 235, 583, 218),
    "mobilenet-one-stage": Kernels(280, 259, 299, 231),
    "tiny-fpn": Kernels(233, 161, 448, 127),
    "resnet18-fpn": Kernels(283, 211, 504, 149),
    "resnet34-fpn": Kernels(323, 251, 560, 198),
    "resnet50-fpn": Kernels(356, 284, 610, 237),
    "resnet101-fpn": Kernels(475, 403, 780, 407),
    "resnet50-c4": Kernels(253, 163, 491, 209),
    **dict.fromkeys(("paper-vgg16", "paper-vgg16-alternating", "paper-vgg16-coco"), Kernels(170, 99, 365, 115)),
    **dict.fromkeys(("paper-zf", "paper-zf-alternating"), Kernels(166, 93, 361, 137)),
    "paper-zf-one-stage": Kernels(117, 95, 188, 82),
}
MAX_KEY_KERNELS = 124
"""Maximum number of kernels that compute the keys of a step."""
MAX_UPDATE_KERNELS = 14
"""Maximum number of kernels of clipping, optimiser and average; each kernel may update all tensors."""


def network(name: str) -> FasterRCNN:
    with torch.device("meta"):  # random weights would take time
        return build(settings_of(name), 3)


@cache
def on_cuda(name: str, *, training: bool) -> Any:
    return faked(network(name) if training else folded(network(name)), str(CUDA))


def item(device: torch.device | str, count: int = 2) -> Item:
    """Return a batch without numbers."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(count, *shape, dtype=dtype, device=device)

    batch = Batch(empty(3, 64, 96, dtype=torch.uint8), empty(2), empty(2), empty(2))
    marks = empty(8, dtype=torch.bool)
    targets = Targets(empty(8, 4), empty(8, dtype=torch.int64), marks, marks)
    return Item(batch, targets, empty(dtype=torch.int64), empty(dtype=torch.int64))


@pytest.mark.parametrize("name", PRESETS)
def test_a_pass_never_waits(name: str) -> None:
    net = on_cuda(name, training=False)
    with recorded() as record, torch.inference_mode():
        batch = item(CUDA).batch
        net.forward(batch)
        for what in ("forward", "propose"):
            record.kernels.clear()
            getattr(net, what)(batch)
            assert record.kernels[""] <= getattr(MAX_KERNELS[name], what)
            assert record.kernels["nms"] <= 12
    assert not record.waits


@pytest.mark.parametrize("name", ["paper-zf", "mobilenet-fpn"])
def test_sliding_windows_go_through_in_blocks_and_never_wait(name: str) -> None:
    net, count = on_cuda(name, training=False), 21_546
    with recorded() as record, torch.inference_mode():
        batch, device = item(CUDA).batch, {"device": CUDA}
        whole = torch.empty(2, count, dtype=torch.int64, **device)
        given = Proposals(torch.empty(2, count, 4, **device), whole.float(), whole.bool(), whole, whole)
        found = net.execute(batch, given, fields=("detections",))
        assert found.rois[0].logits.shape == (2, count, 4)
    assert not record.waits
    numbers = net.backbone.channels * net.settings.roi.size**2
    pool = "roi_pool" if net.settings.roi.pool == "max" else "roi_align"
    assert record.operators[pool] == math.ceil(count / (BLOCK // numbers))


@pytest.mark.parametrize("name", PRESETS)
def test_keys_and_losses_never_wait(name: str) -> None:
    net = on_cuda(name, training=True)
    with recorded() as record:
        batch, targets, *_ = item(CUDA)
        seeds = torch.empty(2, dtype=torch.int64)
        record.kernels.clear()
        keys = net.keys(batch, targets, seeds)
        assert record.kernels[""] <= MAX_KEY_KERNELS
        net.loss(batch, targets, keys)
        record.kernels.clear()
        net.loss(batch, targets, keys)
    assert not record.waits
    assert record.kernels[""] <= MAX_KERNELS[name].loss
    assert record.kernels["match"] <= 8


@pytest.mark.parametrize("name", PRESETS)
def test_the_backward_pass_reads_no_number(name: str) -> None:
    net, record = network(name), Record(bodies=False)
    with record:
        batch, targets, seeds, *_ = item("meta")
        losses = net.loss(batch, targets, net.keys(batch, targets, seeds))
        record.kernels.clear()
        torch.stack([total for total, _ in losses.values()]).sum().backward()
    assert not record.waits
    maximum = MAX_KERNELS[name].backward
    if torch.__version__ < "2.13":  # copies gradients of convolutions into another order on device "meta"
        maximum += sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert record.kernels[""] <= maximum


@pytest.mark.parametrize("name", ["mobilenet-fpn", "mobilenet-one-stage", "paper-zf"])
def test_results_of_a_batch_wait_once(name: str) -> None:
    """After the wait, reading the first number raises, since the tensors are fake."""
    settings = settings_of(name)
    detector = Detector(network(name), settings, ("a", "b", "c"), device=CUDA)
    detector.network._runner = on_cuda(name, training=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        cpu_item = item("cpu")
    programs = [
        lambda: detector.detect(cpu_item.batch),
        lambda: detector.region_proposals(cpu_item.batch),
        lambda: _score(detector, cpu_item, {}),
    ]
    if detector.two_stage:
        programs.append(lambda: detector.detect(cpu_item.batch, features=True))
    for program in programs:
        with recorded() as record, pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            program()
        assert record.waits == ["synchronize"]


def test_a_training_step_waits_for_nothing_until_its_losses_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    net: Any = on_cuda("mobilenet-fpn", training=True)
    state = pieces.state(net)  # in float32, because autocast for CUDA needs a GPU
    with FakeTensorMode(allow_non_fake_inputs=True):
        cpu_item = item("cpu")
    with recorded() as record:
        # The backward pass of fake tensors fails in torch 2.15; that of "meta" is tested above.
        monkeypatch.setattr(Tensor, "backward", lambda self: None)
        losses = backward(state, Distributed(CUDA), cpu_item, 1, (False, True))
        assert record.waits == []
        with pytest.raises(DataDependentOutputException):  # reads a number after the wait
            losses.read()
    assert record.waits == ["synchronize"]


def test_an_update_of_weights_and_average_never_waits() -> None:
    net: Any = on_cuda("mobilenet-fpn", training=True)
    settings = Train(ema=0.99, clip=1.0)
    with recorded() as record:
        optimizer, ema = build_optimizer(net, settings), EMA(net, 0.99)
        for parameter in net.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        optimizer.step()  # the first step creates the moments
        record.kernels.clear()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0, foreach=True)
        optimizer.step()
        ema.update(1)
    assert not record.waits
    assert record.kernels[""] <= MAX_UPDATE_KERNELS


@pytest.mark.skipif(not HAS_KERNELS, reason="torch comes with Triton on Linux only")
def test_matching_and_suppression_launch_few_kernels_at_full_size() -> None:
    """For 16 images of 800 x 1344 pixels with five levels; a sort of PyTorch counts as one kernel."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(16, *shape, dtype=dtype, device=CUDA)

    with recorded() as record:
        anchors, marks = torch.empty(268_569, 4, device=CUDA), empty(8, dtype=torch.bool)
        ops.match(anchors, empty(8, 4), marks, empty(268_569, dtype=torch.bool), marks)
        for count, most in ((4_819, 1000), (80_000, 100)):
            groups, valid = empty(count, dtype=torch.int64), empty(count, dtype=torch.bool)
            ops.nms(empty(count, 4), empty(count), groups, valid, 0.7, most)
    assert not record.waits
    assert 3 <= record.kernels["match"] <= 10
    assert 6 <= record.kernels["nms"] <= 2 * 10


def test_gradients_of_boxes_never_wait_for_their_constants() -> None:
    with recorded() as record:
        levels = [torch.empty(2, 8, side, side, device=CUDA) for side in (16, 8)]
        level = torch.empty(2, 5, dtype=torch.int64, device=CUDA)
        taps_of(levels, torch.empty(2, 5, 4, device=CUDA), level, (0.25, 0.125), (7, 2, True))
    assert not record.waits


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
        lambda x: x.__setitem__(x > 0, torch.ones(3, device=x.device)),
    ],
)
def test_a_wait_is_noticed(wait: Any) -> None:
    with recorded() as record:
        wait(torch.empty(3, device=CUDA))
    assert len(record.waits) == 1


@pytest.mark.parametrize("wait", [lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.sum().item(), bool])
def test_operations_that_depend_on_numbers_raise(wait: Any) -> None:
    with recorded(), pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        wait(torch.empty(1, device=CUDA))


def test_arguments_of_kernels_are_not_counted_as_waits() -> None:
    with recorded() as record:
        x = torch.empty(3, device=CUDA)
        torch.zeros(3).to(CUDA, non_blocking=True)
        x[x > 0] = 0.0
        torch.where(x > 0, x, 0.0).clamp_(min=1).add_(torch.tensor(2.0))
    assert not record.waits
