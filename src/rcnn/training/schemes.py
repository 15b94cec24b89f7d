"""Training schemes: the loss modules, and the stages of each scheme.

A loss is a module (so that DDP can wrap it) whose forward returns the losses. To add a scheme, add its stages to
`SCHEMES`, with a loss module if needed, and its name to the setting `train.scheme`.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from rcnn.config import Settings, Train, override
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import AnyBatch, Keys, Proposals, Targets

EXTERNAL = "external"
"""Value of `Stage.proposals`: those of `train.proposals`."""
AP, RECALL = "ap", "proposal_ar300"
"""Columns of a row that can decide which epoch is the best."""


class StageLoss(nn.Module):
    """All losses of the model, in one step: approximate joint training (paper section 3.2, way ii).

    "Approximate": no gradient flows through the coordinates of the proposals.
    """

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: AnyBatch, targets: Targets, keys: Keys, proposals: Proposals | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return name -> (sum, count) of every loss, not yet divided. With `proposals`, only the second stage's two."""
        return dict(self.model.loss(batch, targets, keys, proposals=proposals))


class JointFull(StageLoss):
    """Joint training with the gradient through the coordinates of the proposals (paper section 3.2, way iii)."""

    def forward(  # pyrefly: ignore[bad-override]
        self, batch: AnyBatch, targets: Targets, keys: Keys
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the losses of `StageLoss`, with another gradient."""
        target_gradient = self.model.settings.train.target_gradient
        return dict(self.model.loss(batch, targets, keys, box_gradient=True, target_gradient=target_gradient))


class Stage(NamedTuple):
    """A part of a scheme, trained for `train.epochs` epochs or `train.steps` steps. Stages are numbered 1, 2, ....

    Attributes:
        title: description of the stage; empty if it is the only one.
        trained: parts of the model that are trained. The others do not change by a bit.
        rpn_alone: the model of this stage is an RPN without a second stage.
        start: part of the model -> earlier stage whose kept weights it starts from; other parts start from random
            weights. Empty: all parts are initialised according to `train.init`.
        proposals: stage whose proposals the loss uses, or `EXTERNAL`. None: the model's own.
        needs_second: the model needs a second stage (`roi.head` is not none).
        own_rpn: the model has a trained RPN, which proposes in validation; otherwise validation uses `proposals` too.
        best: column of a row whose highest value marks the best epoch, with `train.keep=best`.
        loss: class of the loss module, built around the model.
    """

    title: str = ""
    trained: tuple[str, ...] = ("backbone", "rpn", "fast_rcnn")
    rpn_alone: bool = False
    start: Mapping[str, int] = {}
    proposals: int | Literal["external"] | None = None
    needs_second: bool = True
    own_rpn: bool = True
    best: str = AP
    loss: type[nn.Module] = StageLoss

    def model_settings(self, settings: Settings) -> Settings:
        """Return the settings of this stage's model."""
        if not self.rpn_alone:
            return settings
        # An RPN has no AP and no layers to truncate.
        return override(settings, {"roi": {"head": "none"}, "val": {"voc_ap": "area"}, "predict": {"svd": ()}})

    def decided_by(self, settings: Settings) -> str:
        """Return `best`, or recall if the model of the run predicts no classes."""
        return self.best if settings.predicts_classes else RECALL


SCHEMES: dict[str, tuple[Stage, ...]] = {
    "joint": (Stage(needs_second=False),),
    "joint-full": (Stage(loss=JointFull),),
    "alternating": (
        Stage("RPN", ("backbone", "rpn"), rpn_alone=True, best=RECALL),
        Stage(
            "Fast R-CNN with a backbone of its own, on the proposals of this RPN",
            ("backbone", "fast_rcnn"),
            proposals=1,
            own_rpn=False,
        ),
        Stage(
            "a new RPN on the backbone of Fast R-CNN, which stays unchanged",
            ("rpn",),
            rpn_alone=True,
            start={"backbone": 2},
            best=RECALL,
        ),
        Stage(
            "Fast R-CNN on the proposals of the new RPN; the backbone stays unchanged",
            ("fast_rcnn",),
            start={"backbone": 2, "fast_rcnn": 2, "rpn": 3},
            proposals=3,
        ),
    ),
    "fast-rcnn": (Stage(trained=("backbone", "fast_rcnn"), proposals=EXTERNAL, own_rpn=False),),
}
"""Scheme -> its stages in order. alternating: the paper's four steps (section 3.2); fast-rcnn: its table 2."""


def stages_of(settings: Settings) -> tuple[Stage, ...]:
    """Return the stages of a run: those of its scheme, once per round.

    From the second round on, a stage without `start` takes the parts that it trains from the last stage of the previous
    round.
    """
    scheme = SCHEMES[settings.train.scheme]
    stages = list(scheme)
    for number in range(len(scheme), len(scheme) * settings.train.rounds, len(scheme)):
        for stage in scheme:
            start = {part: source + number for part, source in stage.start.items()}
            proposals = stage.proposals + number if isinstance(stage.proposals, int) else stage.proposals
            title = f"{stage.title} (round {number // len(scheme) + 1})"
            start = start or dict.fromkeys(stage.trained, number)
            stages.append(stage._replace(title=title, start=start, proposals=proposals))
    return tuple(stages)


def schedule_of(train: Train, stage: int) -> Train:
    """Return the section `train` with the steps, milestones and batch of a stage, counted from 0 over all rounds."""
    index = stage % len(SCHEMES[train.scheme])
    changes: dict[str, Any] = {}
    for name in ("steps", "step_milestones", "batches"):
        values = getattr(train, name)
        changes[name] = values[index : index + 1] if len(values) > 1 else values
    if train.batches:  # these do not scale the learning rate
        (batch,) = changes["batches"]
        changes |= {"batch": batch, "lr_batch": batch * train.accumulate}
    return train.model_copy(update=changes)


def takes_proposals(scheme: str) -> bool:
    """Return True if a stage of the scheme is trained on `train.proposals`."""
    return any(stage.proposals == EXTERNAL for stage in SCHEMES[scheme])
