import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from rcnn.model.structures import Batch
from rcnn.presets import build, settings_of
from rcnn.weights.file import WeightsError
from rcnn.weights.torchvision import SETTINGS, from_torchvision_state


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=6).double().eval()
    with torch.no_grad():  # spread the outputs
        theirs.rpn.head.cls_logits.weight.normal_(std=0.02)
        theirs.roi_heads.box_predictor.cls_score.weight.normal_(std=0.02)
        theirs.roi_heads.box_predictor.bbox_pred.weight.normal_(std=0.01)
    ours = build(settings_of("resnet50-fpn", SETTINGS), 5).double().eval()
    ours.load_state_dict(from_torchvision_state(theirs.state_dict()), strict=True)
    return theirs, ours


@pytest.mark.parametrize("shape", [(160, 224), (192, 128)])
def test_the_same_boxes_labels_and_scores(pair, shape):
    theirs, ours = pair
    images = torch.randn(1, 3, *shape, dtype=torch.float64)
    sizes = torch.tensor([[shape[0] - 7.0, shape[1] - 4.0]], dtype=torch.float64)
    real = [(shape[0] - 7, shape[1] - 4)]
    with torch.no_grad():
        features = theirs.backbone(images)
        proposals, _ = theirs.rpn(ImageList(images, real), features)
        expected, _ = theirs.roi_heads(features, proposals, real)
        found, proposed = ours.detect_and_propose(Batch(images, sizes, torch.ones(1, 2), sizes))
    valid = proposed.valid[0]
    torch.testing.assert_close(proposed.boxes[0][valid], proposals[0], atol=1e-6, rtol=0)
    valid = found.valid[0]
    torch.testing.assert_close(found.boxes[0][valid], expected[0]["boxes"], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.scores[0][valid], expected[0]["scores"], atol=1e-9, rtol=0)
    assert torch.equal(found.labels[0][valid] + 1, expected[0]["labels"])


def test_foreign_names_are_refused():
    with pytest.raises(WeightsError, match=r"roi_heads\.mask_head"):
        from_torchvision_state({"roi_heads.mask_head.0.weight": torch.zeros(1)})
