"""The hand-worked example of the label rules and losses: an 80 x 64 image, stride 16, 60 anchors, two objects."""

import torch

from rcnn.config import RPN, Anchors
from rcnn.model.assign import Assignment, Sample
from rcnn.model.rpn import RegionProposalNetwork
from rcnn.model.structures import RPNOutput, Targets

HEIGHT, WIDTH = 64, 80
SIZES = torch.tensor([[HEIGHT, WIDTH]], dtype=torch.float64)
ANCHORS = Anchors(sizes=((32.0,),), ratios=(0.5, 1.0, 2.0), round="base", order="ratio", border=0.0)
UNBOUNDED = ANCHORS.model_copy(update={"border": None})
"""The same anchors, including those that cross the edge, which are trained too."""
OBJECTS = torch.tensor([[[9, 9, 40, 44], [44, 14, 76, 62]]], dtype=torch.float64)
POSITIVE, NEGATIVE = [19, 41], [23, 33, 36, 37, 38]
IGNORED = [18, 20, 21, 22, 24, 25, 26, 34, 35, 39, 40]


def targets(boxes: torch.Tensor = OBJECTS) -> Targets:
    zeros = torch.zeros(boxes.shape[:2], dtype=torch.int64)
    return Targets(boxes, zeros, zeros == 0, zeros > 0)


def network(anchors: Anchors = ANCHORS, **settings: object) -> RegionProposalNetwork:
    return RegionProposalNetwork(8, (16,), anchors, RPN.model_validate({"logits": 2, **settings})).double()


def labels(assignment: Assignment) -> torch.Tensor:
    """(B, N): 1 positive, 0 negative, -1 not trained."""
    return torch.where(assignment.positive, 1, torch.where(assignment.negative, 0, -1))


def assignment(labels: torch.Tensor) -> Assignment:
    """Return the assignment of these labels (B, N), all to object 0."""
    return Assignment(labels == 1, labels == 0, torch.zeros_like(labels, dtype=torch.int64))


def fix_sample(rpn: RegionProposalNetwork, assignment: Assignment, drawn: Sample) -> None:
    """Replace the labels and the sample of a network, for any anchors and keys."""
    rpn.assign, rpn.draw = lambda *_: assignment, lambda *_: drawn  # type: ignore[method-assign]


def output(rpn: RegionProposalNetwork) -> RPNOutput:
    """Return logits (0, z_i) and deltas t_ij of the example, in place of the head's."""
    i = torch.arange(60, dtype=torch.float64)
    z = 0.5 * ((7 * i) % 5 - 2)
    logits = torch.stack((torch.zeros_like(z), z), dim=-1)[None]
    deltas = 0.1 * ((3 * i[:, None] + 5 * torch.arange(4)) % 7 - 3)[None]
    real = rpn([torch.zeros(1, 8, 4, 5, dtype=torch.float64)], (HEIGHT, WIDTH))
    return RPNOutput((logits.requires_grad_(),), (deltas.requires_grad_(),), real.anchors)
