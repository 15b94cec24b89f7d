import pytest
import torch
from torchvision.ops import nms

from rcnn.model.boxes import clip, decode
from rcnn.model.proposals import crop_regions, filter_proposals
from tests.model import worked

BOXES = torch.tensor(
    [
        *([0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 5], [20, 20, 30, 30]),
        *([21, 20, 31, 30], [5, 5, 15, 15], [0, 0, 10, 10]),
    ]
)
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.95, 0.5, 0.4])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"nms_threshold": 0.3}, [4, 0, 5]),
        ({"nms_threshold": 0.5}, [4, 0, 2, 5]),
        ({}, [4, 0, 1, 2, 5]),
        ({"post_nms_topk": 2}, [4, 0]),
        ({"pre_nms_topk": 3}, [4, 0, 1]),
        ({"score_threshold": 0.7}, [4, 0, 1]),  # more than, not as much: box 2 goes
        ({"score_threshold": 0.96}, []),
    ],
)
def test_worked_example_of_seven_boxes(options: dict, kept: list[int]):
    boxes, scores = filter_proposals(BOXES, SCORES, **options)
    assert torch.equal(boxes, BOXES[kept])
    assert torch.equal(scores, SCORES[kept])


def test_equals_the_steps_one_after_another():
    torch.manual_seed(0)
    low = torch.rand(400, 2) * 80
    boxes, scores = torch.cat((low, low + 5 + torch.rand(400, 2) * 40), dim=1), torch.rand(400)
    above = scores > 0.25
    some, of = boxes[above], scores[above]
    some, of = some[of.topk(200).indices], of.topk(200).values
    kept = nms(some, of, 0.7)[:50]
    found = filter_proposals(boxes, scores, 200, 50, 0.7, 0.25)
    torch.testing.assert_close(found, (some[kept], of[kept]))
    assert len(found[1]) == 50


def test_a_whole_network_filters_the_same_boxes():
    """With clipped boxes of one level and no limit on their size the RPN's own filter says the same."""
    rpn = worked.network(min_size=0.0)
    out = worked.output(rpn)
    whole = rpn.propose(out, worked.SIZES, pre=40, post=20)
    boxes = clip(decode(out.deltas[0], out.anchors[0]), worked.SIZES)[0]
    scores = rpn.scores(out.logits[0])[0].sigmoid()
    plain, best = filter_proposals(boxes, scores, 40, 20)
    assert torch.equal(plain, whole.boxes[0][whole.valid[0]])
    assert torch.equal(best, whole.scores[0][whole.valid[0]])


def test_a_crop_of_its_own_size_is_the_pixels_and_a_larger_one_is_enlarged():
    image = torch.arange(2 * 3 * 8 * 10, dtype=torch.float64).view(2, 3, 8, 10)
    boxes = torch.tensor([[[2.0, 1, 6, 5], [0, 0, 8, 8]], [[5, 3, 9, 7], [1, 0, 9, 8]]], dtype=torch.float64)
    small = crop_regions(image, boxes, 4)
    assert small.shape == (2, 2, 3, 4, 4)
    torch.testing.assert_close(small[0, 0], image[0, :, 1:5, 2:6])
    torch.testing.assert_close(small[1, 0], image[1, :, 3:7, 5:9])
    halved = image[1, :, :8, 1:9].unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean(dim=(2, 4))
    torch.testing.assert_close(small[1, 1], halved)


def test_crops_feed_a_network_of_their_own_once_a_box():
    """The way of R-CNN: anchors are moved by their deltas, cut out of the image and classified each by itself."""
    rpn = worked.network()
    found = rpn.propose(worked.output(rpn), worked.SIZES, pre=60, post=5)
    crops = crop_regions(torch.rand(1, 3, worked.HEIGHT, worked.WIDTH, dtype=torch.float64), found.boxes, 8)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4)).double()
    assert classifier(crops.flatten(0, 1)).shape == (5, 4)


def test_what_moves_by_a_cell_is_proposed_a_stride_further():
    """Translation invariance: of anchors, and of the functions that score and move them."""
    torch.manual_seed(0)
    rpn = worked.network(worked.ANCHORS.model_copy(update={"border": None}))
    for layer in (rpn.head.conv, rpn.head.cls, rpn.head.reg):
        torch.nn.init.normal_(layer.weight, std=0.1)
    here = torch.zeros(1, 8, 20, 20, dtype=torch.float64)
    here[:, :, 8:11, 8:11] = torch.randn(1, 8, 3, 3, dtype=torch.float64)
    there = here.roll((1, 2), dims=(2, 3))
    sizes = torch.full((1, 2), 320.0, dtype=torch.float64)
    first, second = (rpn.propose(rpn([feature], (320, 320)), sizes, pre=30, post=10) for feature in (here, there))
    assert (first.scores > 0.5).all()  # what the features say, and not the background's ties
    torch.testing.assert_close(second.boxes, first.boxes + torch.tensor([32.0, 16, 32, 16]).double())
    torch.testing.assert_close(second.scores, first.scores)
