"""Training schemes: which loss a step minimises. A scheme is a module whose forward is that loss (DDP wraps it)."""

from typing import NamedTuple

from torch import Tensor, nn

from rcnn.config import Settings
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import Batch, Keys, Proposals, Targets


class Joint(nn.Module):
    """Approximate joint training (paper section 3.2, way ii): all four losses in one step.

    "Approximate": no gradient flows through the coordinates of the proposals.
    """

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, targets: Targets, keys: Keys) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (sum, count) of every loss, not yet divided."""
        return dict(self.model.loss(batch, targets, keys))


class JointFull(Joint):
    """Joint training with the gradient through the coordinates of the proposals (paper section 3.2, way iii)."""

    def forward(self, batch: Batch, targets: Targets, keys: Keys) -> dict[str, tuple[Tensor, Tensor]]:
        """As of `Joint`: equal losses, of another gradient."""
        target_gradient = self.model.settings.train.target_gradient
        return dict(self.model.loss(batch, targets, keys, box_gradient=True, target_gradient=target_gradient))


class Second(Joint):
    """Fast R-CNN on given proposals."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch: Batch, targets: Targets, keys: Keys, proposals: Proposals
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The second stage's two losses."""
        return dict(self.model.second_loss(batch, targets, keys, proposals))


class Stage(NamedTuple):
    """A part of a scheme: what is trained by itself, for `train.epochs` epochs.

    Attributes:
        loss: made of the model, its forward is the loss.
        title: what is done, in words; empty where there is one stage only.
        trained: parts of the model that are trained; the others stay as they are, to the bit.
        proposes: the model of this stage is an RPN alone, without a second stage.
        given: proposals come from the disk, made by the stage before; in a first stage those of `train.proposals`.
    """

    loss: type[nn.Module]
    title: str = ""
    trained: tuple[str, ...] = ("backbone", "rpn", "fast_rcnn")
    proposes: bool = False
    given: bool = False


SCHEMES: dict[str, tuple[Stage, ...]] = {
    "joint": (Stage(Joint),),
    "joint-full": (Stage(JointFull),),
    "alternating": (
        Stage(Joint, "RPN", ("backbone", "rpn"), proposes=True),
        Stage(Second, "Fast R-CNN, begun anew, on the proposals of stage 1", ("backbone", "fast_rcnn"), given=True),
        Stage(Joint, "a new RPN on the backbone of stage 2, which stays", ("rpn",), proposes=True),
        Stage(Second, "Fast R-CNN on the proposals of stage 3; the backbone stays", ("fast_rcnn",), given=True),
    ),
    "fast-rcnn": (Stage(Second, trained=("backbone", "fast_rcnn"), given=True),),
}
"""Scheme -> its stages, in their order. Alternating: the paper's four steps (section 3.2); fast-rcnn: its table 2."""


def deciding(stage: Stage, settings: Settings) -> str:
    """The column of a row whose highest value makes an epoch the best of a stage: AP, or of an RPN alone recall."""
    detects = settings.roi.head != "none" or settings.rpn.classify == "classes"
    return "ap" if detects and not stage.proposes else "proposal_ar300"
