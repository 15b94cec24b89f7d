"""Training schemes: the losses that a step minimises, and the stages that each scheme is made of.

A loss is a module (so that DDP can wrap it) whose forward returns the losses. A new scheme is a list of stages in
`SCHEMES`, perhaps with a loss of its own, and its name in the settings (`train.scheme`).
"""

from torch import Tensor, nn

from rcnn.config import Settings
from rcnn.errors import SettingsError
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import AnyBatch, Keys, Proposals, Targets
from rcnn.training.stages import GIVEN, RECALL, Stage


class Joint(nn.Module):
    """Approximate joint training (paper section 3.2, way ii): all four losses in one step.

    "Approximate": no gradient flows through the coordinates of the proposals.
    """

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: AnyBatch, targets: Targets, keys: Keys) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> (sum, count) of every loss, not yet divided."""
        return dict(self.model.loss(batch, targets, keys))


class JointFull(Joint):
    """Joint training with the gradient through the coordinates of the proposals (paper section 3.2, way iii)."""

    def forward(self, batch: AnyBatch, targets: Targets, keys: Keys) -> dict[str, tuple[Tensor, Tensor]]:
        """The losses of `Joint`, with another gradient."""
        target_gradient = self.model.settings.train.target_gradient
        return dict(self.model.loss(batch, targets, keys, box_gradient=True, target_gradient=target_gradient))


class Second(Joint):
    """Fast R-CNN on given proposals."""

    def forward(  # pyrefly: ignore[bad-override]
        self, batch: AnyBatch, targets: Targets, keys: Keys, proposals: Proposals
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The second stage's two losses."""
        return dict(self.model.loss(batch, targets, keys, proposals=proposals))


SCHEMES: dict[str, tuple[Stage, ...]] = {
    "joint": (Stage(Joint, needs_second=False),),
    "joint-full": (Stage(JointFull),),
    "alternating": (
        Stage(Joint, "RPN", ("backbone", "rpn"), rpn_alone=True, best=RECALL),
        Stage(
            Second,
            "Fast R-CNN, begun anew, on the proposals of stage 1",
            ("backbone", "fast_rcnn"),
            proposals=1,
            own_rpn=False,
        ),
        Stage(
            Joint,
            "a new RPN on the backbone of stage 2, which stays",
            ("rpn",),
            rpn_alone=True,
            start={"backbone": 2},
            best=RECALL,
        ),
        Stage(
            Second,
            "Fast R-CNN on the proposals of stage 3; the backbone stays",
            ("fast_rcnn",),
            start={"backbone": 2, "fast_rcnn": 2, "rpn": 3},
            proposals=3,
        ),
    ),
    "fast-rcnn": (Stage(Second, trained=("backbone", "fast_rcnn"), proposals=GIVEN, own_rpn=False),),
}
"""Scheme -> its stages, in their order. Alternating: the paper's four steps (section 3.2). Fast-rcnn: its table 2."""


def stages_of(settings: Settings) -> tuple[Stage, ...]:
    """The stages of a run's scheme."""
    return SCHEMES[settings.train.scheme]


def takes_proposals(scheme: str) -> bool:
    """Is any stage of a scheme trained on `train.proposals`?"""
    return any(stage.proposals == GIVEN for stage in SCHEMES[scheme])


def check(settings: Settings) -> None:
    """Check that the scheme of a run can train what the settings describe.

    Raises:
        SettingsError: it can't, and what to change.
    """
    scheme, proposals, roi = settings.train.scheme, settings.train.proposals, settings.roi
    if proposals is None and takes_proposals(scheme):
        raise SettingsError(f"train.scheme={scheme} needs train.proposals: a file, selective-search or sliding-windows")
    if proposals is not None and not takes_proposals(scheme):
        readers = " or ".join(name for name in SCHEMES if takes_proposals(name))
        raise SettingsError(f"train.proposals={proposals} is read by train.scheme={readers} alone (got {scheme})")
    if roi.head == "none" and any(stage.needs_second for stage in stages_of(settings)):
        raise SettingsError(f"train.scheme={scheme} needs a second stage, and roi.head=none has none")
    if settings.predict.tile != "off" and any(stage.proposals is not None for stage in stages_of(settings)):
        raise SettingsError(
            f"train.scheme={scheme} works on proposals of whole pictures, not of windows: leave out train.tile, and "
            "set predict.tile=off"
        )
    boxes_learn = any(issubclass(stage.loss, JointFull) for stage in stages_of(settings))
    if boxes_learn and (roi.pool == "max" or roi.sampling_ratio == 0):
        raise SettingsError(
            f"train.scheme={scheme} needs features with a gradient in the boxes: roi.pool=align or warp, "
            f"with roi.sampling_ratio of 1 or more (got {roi.pool} with {roi.sampling_ratio})"
        )
