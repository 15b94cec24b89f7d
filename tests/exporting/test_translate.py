"""Our operators translated to ONNX: onnxruntime gives the same results."""

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rcnn.ops as ops
from rcnn.exporting.translate import table
from rcnn.model.order import stable_topk

pytestmark = pytest.mark.filterwarnings("ignore")  # packages warn about one another


class Program(nn.Module):
    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)


def session(function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], path: Path):
    """The function as a graph with a free batch size, in onnxruntime: tensors in, tensors out."""
    batch = Dim("batch", min=1)
    program = torch.export.export(Program(function), inputs, dynamic_shapes=(({0: batch},) * len(inputs),))
    names = [f"x{i}" for i in range(len(inputs))]
    options = {"dynamo": True, "opset_version": 18, "custom_translation_table": table(), "verbose": False}
    torch.onnx.export(program, (), path, input_names=names, **options)
    runtime = onnxruntime.InferenceSession(str(path))
    return lambda *given: [
        torch.from_numpy(out) for out in runtime.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})
    ]


def crowd(images: int, boxes: int, groups: int, seed: int) -> tuple[Tensor, ...]:
    """Boxes (B, N, 4) in clusters, in images of some 1333 px; scores; groups; and which are valid."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.rand(images, 1 + boxes // 20, 2, generator=g).repeat_interleave(20, dim=1)[:, :boxes] * 1100
    low = centre + 30 * torch.rand(images, boxes, 2, generator=g)
    high = low + 20 + 150 * torch.rand(images, boxes, 2, generator=g)
    group = torch.randint(0, groups, (images, boxes), generator=g)
    scores = torch.rand(images, boxes, generator=g)
    return torch.cat((low, high), dim=-1), scores, group, torch.rand(images, boxes, generator=g) < 0.9


@pytest.mark.parametrize("groups", [1, 5, 91])
def test_suppression_keeps_the_same_boxes_in_the_same_order(groups: int, tmp_path: Path) -> None:
    """With 91 classes as well, where float32 boxes shifted apart in one row would lose bits."""
    program = session(lambda *x: ops.nms(*x, 0.5, 60), crowd(2, 400, groups, 0), tmp_path / "nms.onnx")
    for seed, images in enumerate((1, 2, 5)):
        given = crowd(images, 400, groups, seed)
        for found, expected in zip(program(*given), ops.nms(*given, 0.5, 60), strict=True):
            assert torch.equal(found, expected)


def test_suppression_of_few_or_no_boxes_and_of_separate_images(tmp_path: Path) -> None:
    """In an image nothing is valid, scores are NaN or equal, there are fewer boxes than room for them, or huge ones."""
    program = session(lambda *x: ops.nms(*x, 0.3, 50), crowd(2, 40, 3, 0), tmp_path / "nms.onnx")
    boxes, scores, _, valid = given = crowd(5, 40, 3, 1)
    valid[0], scores[1], scores[2] = False, torch.nan, 0.5
    valid[3, 3:] = False
    boxes[4] *= 500
    for found, expected in zip(program(*given), ops.nms(*given, 0.3, 50), strict=True):
        assert torch.equal(found, expected)


def tied(images: int, columns: int, seed: int) -> Tensor:
    """Scores (B, N) of few values, one row all equal."""
    scores = torch.randn(images, columns, generator=torch.Generator().manual_seed(seed)).mul(4).round()
    scores[0] = 0.25
    return scores


@pytest.mark.parametrize("count", [1, 300, 5000])
def test_the_best_of_equal_scores_are_the_same(count: int, tmp_path: Path) -> None:
    """In onnxruntime in the same order; OpenVINO's TopK, as it reads ONNX's, may return equal scores in any order."""
    program = session(lambda scores: stable_topk(scores, count), (tied(2, 4000, 0),), tmp_path / "best.onnx")
    other = openvino.compile_model(tmp_path / "best.onnx", "CPU")
    for seed, images in enumerate((1, 2, 5)):
        scores = tied(images, 4000, seed)
        values, indices = stable_topk(scores, count)
        for found, expected in zip(program(scores), (values, indices), strict=True):
            assert torch.equal(found, expected)
        best, chosen = (torch.from_numpy(other([scores.numpy()])[i]) for i in (0, 1))
        assert torch.equal(best, values)
        assert torch.equal(scores.gather(1, chosen), values)
        assert torch.equal(chosen.sort(dim=1).values, indices.sort(dim=1).values)


LEVELS = ((3, 40, 56), (3, 20, 28), (3, 10, 14))


def regions(images: int, seed: int, levels: int) -> tuple[Tensor, ...]:
    """Maps of some levels, boxes (B, R, 4), also outside and empty ones, and the level of each."""
    g = torch.Generator().manual_seed(seed)
    maps = [torch.randn(images, *shape, generator=g) for shape in LEVELS[:levels]]
    low = torch.rand(images, 9, 2, generator=g) * 160 - 20
    boxes = torch.cat((low, low + 80 * torch.rand(images, 9, 2, generator=g)), dim=-1)
    boxes[:, 0, 2:] = boxes[:, 0, :2]
    return *maps, boxes, torch.randint(0, levels, (images, 9), generator=g)


POOLS: dict[str, Callable[..., Tensor]] = {
    "align": lambda *x: ops.roi_align(*x, 5, 2, True),
    "align, not by half a pixel": lambda *x: ops.roi_align(*x, 5, 2, False),
    "align, adaptive": lambda *x: ops.roi_align(*x, 5, 0, True),
    "max": lambda *x: ops.roi_pool(*x, 5),
    "warp": lambda *x: ops.roi_warp(*x, 5, 2, True),
}


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("name", POOLS)
def test_pooled_features_are_the_same(name: str, levels: int, tmp_path: Path) -> None:
    def pool(*given: Tensor) -> tuple[Tensor, ...]:
        return (POOLS[name](given[:-2], *given[-2:], (4, 8, 16)[:levels]),)

    program = session(pool, regions(2, 0, levels), tmp_path / "pool.onnx")
    for seed, images in enumerate((1, 3)):
        *given, level = regions(images, seed, levels)
        level = level.clamp(max=levels - images % 2 - 1) if levels > 1 else level  # once a level has no box
        torch.testing.assert_close(program(*given, level), list(pool(*given, level)), atol=1e-5, rtol=1e-5)
