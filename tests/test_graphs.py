"""Check that every preset compiles to one graph and exports with dynamic batch size, height and width."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import Batch, Detections
from rcnn.presets import PRESETS, build, settings_of
from rcnn.runtime.eager import Eager, execute_fields
from rcnn.training.schemes import JointFull, StageLoss
from tests.model import tiny
from tests.test_presets import scene

SMALLER = ["rpn.post_test=20", "roi.hidden=256"]
"""Changes that save time where graphs are run and saved. The operators are the same."""
DEEP = {"resnet101-fpn"}
"""Presets whose tests take more than 10 seconds."""
EVERY_PRESET = [pytest.param(name, marks=[pytest.mark.slow] if name in DEEP else []) for name in PRESETS]
KINDS = {"paper-zf-one-stage", "tiny-fpn", "resnet50-c4", "paper-zf"}
"""One preset for each kind of part that a saved file can hold."""


def preset(name: str, *changes: str) -> FasterRCNN:
    """Return a preset with random weights that give different scores and boxes and small activations."""
    torch.manual_seed(0)
    net = build(settings_of(name, ["roi.score=0.001", *changes]), 3)
    with torch.no_grad():
        for path, tensor in net.state_dict().items():
            if path.endswith(("rpn.head.cls.weight", "rpn.head.reg.weight", "predictor.cls.weight")):
                tensor.normal_(std=0.05)
            elif path.endswith("bn3.weight"):  # activations would grow over the 33 blocks of a deep ResNet
                tensor.fill_(0.2)
    return net


class Traced(Exception):
    """Raised instead of running a graph: the second stage for 1,000 RoIs alone takes seconds."""


def operators_of(function: Callable[..., Any], *arguments: Any) -> set[str]:
    """Compile a function to one graph and return our operators in it. The graph is not run."""
    graphs: list[torch.fx.GraphModule] = []

    def stop(*_: Any) -> None:
        raise Traced

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., None]:
        graphs.append(graph)
        return stop

    torch._dynamo.reset()
    with pytest.raises(Traced):
        torch.compile(function, fullgraph=True, backend=backend, dynamic=False)(*arguments)
    (graph,) = graphs
    targets = {str(node.target) for node in graph.graph.nodes}
    return {target.removeprefix("rcnn.").removesuffix(".default") for target in targets if target.startswith("rcnn.")}


@pytest.mark.parametrize("name", EVERY_PRESET)
def test_every_preset_is_one_graph(name: str) -> None:
    net = preset(name, *SMALLER[1:])
    batch, targets = scene()
    keys = net.keys(batch, targets, torch.tensor([1, 2]))
    pool = {"align": {"roi_align"}, "max": {"roi_pool"}}[net.settings.roi.pool] if net.fast_rcnn else set()
    with torch.no_grad():
        assert operators_of(net.eval().forward, batch) == {"nms"} | pool
        if name in KINDS:  # `propose` is half of `forward`; `prepared` is what `predict.compile` compiles
            assert operators_of(net.propose, batch) == {"nms"}
            runner = Eager(preset(name, *SMALLER), torch.device("cpu")).runner
            prepared = partial(execute_fields, runner, Batch, ("proposals", "detections"))
            assert operators_of(prepared, batch.images, batch.sizes) == {"nms"} | pool
    proposed = {"nms"} if net.fast_rcnn else set()  # training needs no proposals without a second stage
    assert operators_of(net.train().loss, batch, targets, keys) == {"match"} | proposed | pool


@pytest.mark.parametrize("scheme", [StageLoss, JointFull])
def test_a_compiled_training_step_equals_the_eager_one(scheme: type[StageLoss]) -> None:
    """Compare losses and gradients of the entire step, including the backward pass, as one graph by AOTAutograd."""
    net = preset("tiny-fpn").double()
    data, targets = tiny.batch(2, 64, 96, dtype=torch.float64)
    loss = scheme(net.train())
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)
    tiny.assert_same_losses(net, loss, compiled, data, targets)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # PyTorch 2.11 itself uses it
@pytest.mark.more
def test_inductor_compiles_the_operators() -> None:
    net = tiny.model({}).double().eval()  # in float32, its different order of sums reorders equal scores
    batch, _ = tiny.batch(2, 64, 96, dtype=torch.float64)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net.forward, fullgraph=True)(batch), net(batch))


class Program(nn.Module):
    """A detector for `torch.export`: takes tensors and returns detections and proposals as tensors."""

    def __init__(self, net: FasterRCNN) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, sizes: Tensor, scales: Tensor, originals: Tensor) -> tuple[Tensor, ...]:
        pass_ = self.net.execute(Batch(images, sizes, scales, originals), fields=("proposals", "detections"))
        return (*pass_.detections, *pass_.proposals)


def exported(program: Program) -> torch.export.ExportedProgram:
    """Export a detector with dynamic batch size, height and width from one example shape, as in docs/python.md."""
    multiple = program.net.settings.preprocess.multiple
    count = torch.export.Dim("count", min=1, max=64)
    height, width = (multiple * torch.export.Dim(name, min=3, max=100) for name in ("height", "width"))
    example, _ = tiny.batch(2, 4 * multiple, 5 * multiple, dtype=torch.uint8)
    free = ({0: count, 2: height, 3: width}, {0: count}, {0: count}, {0: count})
    return torch.export.export(program, tuple(example), dynamic_shapes=free)


def assert_agrees(run: nn.Module, program: Program, *shapes: tuple[int, int, int]) -> None:
    """Check equal, non-empty results for shapes (images, height, width) in multiples of `preprocess.multiple`."""
    multiple = program.net.settings.preprocess.multiple
    for seed, (count, height, width) in enumerate(shapes, start=1):
        batch, _ = tiny.batch(count, height * multiple, width * multiple, seed=seed, dtype=torch.uint8)
        with torch.no_grad():
            expected = program(*batch)
            torch.testing.assert_close(run(*batch), expected)
        assert Detections(*expected[:6]).valid.any()


# torch.export.save warns about channels-last weights, as if they were slices of a larger tensor; torch.export.load of
# PyTorch 2.11 warns that its own buffer is not writable.
@pytest.mark.filterwarnings("ignore:No complete tensor found", "ignore:The given buffer is not writable")
@pytest.mark.parametrize("name", EVERY_PRESET)
def test_every_preset_exports_and_each_kind_can_be_saved(name: str, tmp_path: Path) -> None:
    program = Program(preset(name, *SMALLER).eval())
    made = exported(program)
    if name in KINDS:
        torch.export.save(made, tmp_path / "net.pt2")
        made = torch.export.load(tmp_path / "net.pt2")
    odd_and_even = torch.__version__ >= "2.13"
    shapes = ((1, 3, 4), (3, 6, 3), (1, 5, 5)) if odd_and_even else ((1, 4, 3), (3, 6, 3), (1, 4, 5))
    assert_agrees(made.module(), program, *shapes)
