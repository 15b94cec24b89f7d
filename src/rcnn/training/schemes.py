"""Training schemes: the losses that a step minimises, and the stages that each scheme is made of.

A loss is a module (so that DDP can wrap it) whose forward returns the losses. A new scheme is a list of stages in
`SCHEMES`, perhaps with a loss of its own, and its name in the settings (`train.scheme`).
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from rcnn.config import Settings, Train, override
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.structures import AnyBatch, Keys, Proposals, Targets

EXTERNAL = "external"
"""Proposals of `train.proposals`."""
AP, RECALL = "ap", "proposal_ar300"
"""Columns of a row that can decide which epoch is best."""


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
    """Fast R-CNN on external proposals, or on those of an earlier stage."""

    def forward(  # pyrefly: ignore[bad-override]
        self, batch: AnyBatch, targets: Targets, keys: Keys, proposals: Proposals
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The second stage's two losses."""
        return dict(self.model.loss(batch, targets, keys, proposals=proposals))


class Stage(NamedTuple):
    """A part of a scheme, trained for `train.epochs` epochs or `train.steps` steps. Stages are numbered 1, 2, ....

    Attributes:
        loss: module class; built around the model, its forward is the loss.
        title: description; empty if there is one stage only.
        trained: parts of the model that are trained; the others stay unchanged, to the bit.
        rpn_alone: the model of this stage is an RPN without a second stage.
        start: part of the model -> the earlier stage whose weights (`kept`) it starts from; other parts start from
            random weights. Empty: the whole model is initialised as `train.init` says.
        proposals: of an earlier stage, or `EXTERNAL`; the loss reads them instead of the model's own. None: its own.
        needs_second: the model needs a second stage (`roi.head` other than none).
        own_rpn: the model has a trained RPN, which proposes in validation; if not, `proposals` are read there too.
        best: the column of a row whose highest value marks the best epoch, with `train.keep=best`.
    """

    loss: type[nn.Module]
    title: str = ""
    trained: tuple[str, ...] = ("backbone", "rpn", "fast_rcnn")
    rpn_alone: bool = False
    start: Mapping[str, int] = {}
    proposals: int | Literal["external"] | None = None
    needs_second: bool = True
    own_rpn: bool = True
    best: str = AP

    def model_settings(self, settings: Settings) -> Settings:
        """The settings of this stage's model."""
        if not self.rpn_alone:
            return settings
        # An RPN has no AP by any rule, and no layers to truncate.
        return override(settings, {"roi": {"head": "none"}, "val": {"voc_ap": "area"}, "predict": {"svd": ()}})

    def decided_by(self, settings: Settings) -> str:
        """`best`, or recall if the model of the run predicts no classes."""
        return self.best if settings.predicts_classes else RECALL


SCHEMES: dict[str, tuple[Stage, ...]] = {
    "joint": (Stage(Joint, needs_second=False),),
    "joint-full": (Stage(JointFull),),
    "alternating": (
        Stage(Joint, "RPN", ("backbone", "rpn"), rpn_alone=True, best=RECALL),
        Stage(
            Second,
            "Fast R-CNN with a backbone of its own, on the proposals of this RPN",
            ("backbone", "fast_rcnn"),
            proposals=1,
            own_rpn=False,
        ),
        Stage(
            Joint,
            "a new RPN on the backbone of Fast R-CNN, which stays unchanged",
            ("rpn",),
            rpn_alone=True,
            start={"backbone": 2},
            best=RECALL,
        ),
        Stage(
            Second,
            "Fast R-CNN on the proposals of the new RPN; the backbone stays unchanged",
            ("fast_rcnn",),
            start={"backbone": 2, "fast_rcnn": 2, "rpn": 3},
            proposals=3,
        ),
    ),
    "fast-rcnn": (Stage(Second, trained=("backbone", "fast_rcnn"), proposals=EXTERNAL, own_rpn=False),),
}
"""Scheme -> its stages, in their order. Alternating: the paper's four steps (section 3.2). Fast-rcnn: its table 2."""


def stages_of(settings: Settings) -> tuple[Stage, ...]:
    """The stages of a run: those of its scheme, once per round.

    From the second round on, a stage that would begin with the initial weights begins with the weights of the last
    stage of the round before, in the parts that it trains.
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
    """The section `train` with the steps, milestones and batch of a stage, 0, 1, ... of all rounds."""
    place = stage % len(SCHEMES[train.scheme])
    changes: dict[str, Any] = {}
    for name in ("steps", "step_milestones", "batches"):
        values = getattr(train, name)
        changes[name] = values[place : place + 1] if len(values) > 1 else values
    if train.batches:  # the learning rate is not scaled with them
        (batch,) = changes["batches"]
        changes |= {"batch": batch, "lr_batch": batch * train.accumulate}
    return train.model_copy(update=changes)


def takes_proposals(scheme: str) -> bool:
    """True if a stage of the scheme is trained on `train.proposals`."""
    return any(stage.proposals == EXTERNAL for stage in SCHEMES[scheme])
