"""The intermediate results of a detector for each image, computed by the detector's own parts.

For one image: A anchors of all levels, of which M enter the RPN's NMS, P proposals, K classes, D final boxes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rcnn.detector import Detector
from rcnn.errors import SettingsError
from rcnn.model import boxes as box_ops
from rcnn.model.structures import AnyBatch, Detections, Pass, to_device
from rcnn.result import Result


@dataclass(frozen=True, slots=True)
class ImageSteps:
    """One image, step by step. Boxes are in pixels of the resized image.

    Attributes:
        anchors: (A, 4).
        decoded: (A, 4) the RPN's box of each anchor, clipped to the image.
        objectness: (A,) its probability.
        level: (A,) its pyramid level.
        entered: (M,) anchors whose boxes enter the RPN's NMS.
        proposed: (P,) anchors whose boxes leave it, best first.
        refined: (P, K, 4) box of each proposal and class, clipped to the image; K is 0 without a second stage.
        scores: (P, K) probability of each class.
        detected: (D, 2) proposal and class of each final box, best first.
    """

    anchors: np.ndarray
    decoded: np.ndarray
    objectness: np.ndarray
    level: np.ndarray
    entered: np.ndarray
    proposed: np.ndarray
    refined: np.ndarray
    scores: np.ndarray
    detected: np.ndarray


def check_has_steps(detector: Detector) -> None:
    """Check that the detector has a network and two stages, or an RPN alone.

    Raises:
        SettingsError: it is a one-stage detector, or an exported file.
    """
    _ = detector.network
    if detector.settings.predicts_classes and not detector.two_stage:
        raise SettingsError(
            "a one-stage detector (`rpn.classify=classes`) has no stages to follow an object through; this needs a "
            "detector with a second stage, or an RPN alone"
        )


def run_steps(detector: Detector, batch: AnyBatch, pass_: Pass | None = None) -> tuple[list[ImageSteps], list[Result]]:
    """Run the network; return the steps of every image of a batch, and its detections in pixels of the file.

    Without a second stage the detections are the proposals, all of class 0.

    Args:
        detector: with its network.
        batch: the images.
        pass_: the pass of the network over the batch, which is then on its device. None: the network is run.

    Raises:
        NonFiniteError: the network's output is not finite.
    """
    model, batch = detector.runner, to_device(batch, detector.device)
    with torch.inference_mode():
        pass_ = model.execute(batch) if pass_ is None else pass_
        out, proposals, detections = pass_.rpn, pass_.proposals, pass_.detections
        assert out is not None
        assert proposals is not None
        assert detections is not None
        if model.fast_rcnn is None:
            zeros = torch.zeros_like(proposals.level)
            detections = Detections(proposals.boxes, proposals.scores, zeros, proposals.valid, zeros, detections.finite)
            refined, scores = detections.boxes[:, :, None][:, :, :0], detections.scores[..., None][..., :0]
        else:
            refined = model.fast_rcnn.refined(pass_.rois, batch.sizes)
            refined = refined.expand(-1, -1, model.fast_rcnn.classes, -1)
            scores = model.fast_rcnn.probabilities(pass_.rois)
        results = detector.results(batch, detections)
        anchors = torch.cat(out.anchors)
        decoded = box_ops.clip(box_ops.decode(torch.cat(out.deltas, dim=1), anchors), batch.sizes)
        objectness = torch.cat([model.rpn.scores(logits) for logits in out.logits], dim=1).sigmoid()
        entered = model.rpn.candidates(out, batch.sizes, model.settings.rpn.pre_test).anchor
    steps = [
        ImageSteps(
            anchors=_numpy(anchors),
            decoded=_numpy(decoded[i]),
            objectness=_numpy(objectness[i]),
            level=np.repeat(np.arange(len(out.anchors)), [len(level) for level in out.anchors]),
            entered=_numpy(entered[i]),
            proposed=_numpy(proposals.anchor[i][proposals.valid[i]]),
            refined=_numpy(refined[i][proposals.valid[i]]),
            scores=_numpy(scores[i][proposals.valid[i]]),
            detected=_numpy(torch.stack((detections.proposal[i], detections.labels[i]), dim=1)[detections.valid[i]]),
        )
        for i in range(len(results))
    ]
    return steps, results


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
