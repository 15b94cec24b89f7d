import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from rcnn.config import Anchors
from rcnn.model import anchors as A


def rule(name: str, sizes, **settings) -> Anchors:
    return Anchors.model_validate({"sizes": sizes, **A.RULES[name], **settings})


STRIDES, SIZES = (4, 8, 16, 32, 64), ((32,), (64,), (128,), (256,), (512,))


def pyramid(name: str, image: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """The anchors of five levels, one size each."""
    settings = rule(name, SIZES)
    grids = [(-(-image[0] // stride), -(-image[1] // stride)) for stride in STRIDES]
    cells = [A.cell_anchors(settings, level) for level in range(5)]
    return A.pyramid_anchors(settings, grids, STRIDES, image, cells)


def test_py_faster_rcnn_base_anchors():
    boxes = A.grid_anchors(A.cell_anchors(rule("py-faster-rcnn", ((128, 256, 512),)), 0), (1, 1), (16, 16), 0.5)
    inclusive = boxes - torch.tensor([0.0, 0, 1, 1])
    expected = [
        [-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199],
        [-56, -56, 71, 71], [-120, -120, 135, 135], [-248, -248, 263, 263],
        [-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359],
    ]  # fmt: skip
    assert inclusive.tolist() == expected
    coco = A.grid_anchors(A.cell_anchors(rule("py-faster-rcnn", ((64,),)), 0), (1, 1), (16, 16), 0.5)
    expected = [[-38, -16, 53, 31], [-24, -24, 39, 39], [-14, -36, 29, 51]]
    assert (coco - torch.tensor([0.0, 0, 1, 1])).tolist() == expected


def test_torchvision_cell_anchors():
    cells = A.cell_anchors(rule("torchvision", ((128, 256, 512),)), 0)
    half = [(91, 45), (181, 91), (362, 181), (64, 64), (128, 128), (256, 256), (45, 91), (91, 181), (181, 362)]
    assert cells[:, 2:].tolist() == [list(map(float, pair)) for pair in half]
    assert torch.equal(cells[:, :2], -cells[:, 2:])


@pytest.mark.parametrize("image", [(800, 1088), (800, 800), (416, 608)])
def test_torchvision_pyramid(image):
    maps = [torch.zeros(1, 1, -(-image[0] // stride), -(-image[1] // stride)) for stride in STRIDES]
    images = ImageList(torch.zeros(1, 3, *image), [image])
    (theirs,) = AnchorGenerator(SIZES, ((0.5, 1.0, 2.0),) * 5)(images, maps)
    ours = pyramid("torchvision", image)
    torch.testing.assert_close(torch.cat(ours), theirs, rtol=0, atol=0)
    if image == (800, 800):  # the guessed stride of P6 is 61, not 64
        assert ours[4][3, 0] + 362 == 61


def test_detectron2_cell_anchors():
    cells = A.cell_anchors(rule("detectron2", ((128,),)), 0, torch.float64)
    expected = torch.tensor([[90.5097, 45.2548], [64, 64], [45.2548, 90.5097]], dtype=torch.float64)
    torch.testing.assert_close(cells[:, 2:], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("image", "totals"),
    [((800, 1344), (201600, 50400, 12600, 3150, 819)), ((608, 1024), (116736, 29184, 7296, 1824, 480))],
)
def test_pyramid_totals(image, totals):
    assert tuple(map(len, pyramid("ours", image))) == totals


@pytest.mark.parametrize(("image", "count"), [((600, 1000), 8151), ((600, 800), 5944)])
def test_paper_counts_of_anchors_inside(image, count):
    settings = rule("py-faster-rcnn", ((128, 256, 512),))
    grid = (38, -(-image[1] // 16))
    boxes = A.grid_anchors(A.cell_anchors(settings, 0), grid, (16, 16), 0.5)
    assert A.inside(boxes, torch.tensor([image]), 0).sum() == count
    assert A.inside(boxes, torch.tensor([image]), 10_000).all()


def test_ratio_convention_swaps_tall_and_wide():
    tall = A.cell_anchors(rule("ours", ((64,),), ratios=(2.0,)), 0)
    wide = A.cell_anchors(rule("ours", ((64,),), ratios=(2.0,), ratio="w/h"), 0)
    assert tall[0, 3] > tall[0, 2]
    torch.testing.assert_close(tall[0, [1, 0, 3, 2]], wide[0])


def test_anchors_move_with_the_grid():
    """Translation invariance (paper, section 3.1.1): a shift by one cell is a shift by one stride."""
    boxes = A.grid_anchors(A.cell_anchors(rule("ours", ((16, 32),)), 0), (4, 5), (8, 8), 0.5).view(4, 5, -1, 4)
    torch.testing.assert_close(boxes[1:] - boxes[:-1], torch.tensor([0.0, 8, 0, 8]).expand_as(boxes[1:]))
    torch.testing.assert_close(boxes[:, 1:] - boxes[:, :-1], torch.tensor([8.0, 0, 8, 0]).expand_as(boxes[:, 1:]))
