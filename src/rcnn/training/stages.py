"""A stage of a scheme: what it says, and what a run makes of that: its model, the weights and proposals it works with.

A run of several stages leaves in its folder, besides what every run leaves:

stages/N/best.safetensors, last.safetensors      detectors of stage N but the last
stages/N/train.safetensors, val.safetensors      proposals of stage N for the images of each list, where a later stage
                                                 is trained or validated on them

Proposals from elsewhere lie in proposals/train.safetensors, val.safetensors. A resumed run reads them there, whatever
has become of the file that they came from.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from rcnn.config import Settings, override
from rcnn.data.dataset import Dataset
from rcnn.data.given import ProposalSet
from rcnn.detector import Detector
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.presets import build
from rcnn.training.distributed import Team
from rcnn.training.init import Start, initialise
from rcnn.training.loop import seed_step
from rcnn.training.proposals import load_proposals, write_proposals
from rcnn.training.run_folder import RunFolder
from rcnn.weights.adapt import fill
from rcnn.weights.metadata import read_detector

GIVEN = "given"
"""Proposals from elsewhere, of `train.proposals`."""
AP, RECALL = "ap", "proposal_ar300"
"""Columns of a row that may choose the best epoch."""


class Stage(NamedTuple):
    """A part of a scheme: what is trained by itself, for `train.epochs` epochs. Stages are numbered 1, 2, ....

    Attributes:
        loss: made of the model, its forward is the loss.
        title: what is done, in words; empty where there is one stage only.
        trained: parts of the model that are trained; the others stay as they are, to the bit.
        rpn_alone: the model of this stage is an RPN without a second stage.
        start: part of the model -> the earlier stage whose best weights it starts from; other parts start from random
            weights. Empty: all of it starts as `train.init` says.
        proposals: what the loss reads in the place of the model's own proposals: those of an earlier stage, or `GIVEN`.
        needs_second: it can't do without a second stage, as a model of `roi.head=none` is.
        own_rpn: the model has a trained RPN, which proposes in validation; else `proposals` are read there too.
        best: the column of a row whose highest value makes an epoch the best one.
    """

    loss: type[nn.Module]
    title: str = ""
    trained: tuple[str, ...] = ("backbone", "rpn", "fast_rcnn")
    rpn_alone: bool = False
    start: Mapping[str, int] = {}
    proposals: int | Literal["given"] | None = None
    needs_second: bool = True
    own_rpn: bool = True
    best: str = AP

    def model_settings(self, settings: Settings) -> Settings:
        """A run's settings as those of this stage's model."""
        return override(settings, {"roi": {"head": "none"}}) if self.rpn_alone else settings

    def decided_by(self, settings: Settings) -> str:
        """`best`, or recall where the model of the run's settings can't tell classes."""
        detects = settings.roi.head != "none" or settings.rpn.classify == "classes"
        return self.best if detects else RECALL


def stage_start(stage: Stage, number: int, settings: Settings, names: Sequence[str], folder: RunFolder) -> Start:
    """What a stage after the first starts from.

    Args:
        stage: the stage.
        number: of the stage, from 1.
        settings: of the run.
        names: of the classes.
        folder: holds the weights of the stages before.

    Raises:
        WeightsError: weights are missing, damaged or do not fit.
    """
    own = stage.model_settings(settings)
    seed_step(settings.train.seed, number - 1)
    if not stage.start:
        return initialise(own, names)
    model = build(own, len(names))
    tensors = model.state_dict()
    for part, source in stage.start.items():
        theirs, _ = read_detector(folder.stage(source) / "best.safetensors")
        tensors |= {key: tensor for key, tensor in theirs.items() if key.startswith(f"{part}.")}
    fill(model, tensors, folder.path / "stages")
    return Start(model, own)


def hold(model: FasterRCNN, stage: Stage) -> list[nn.Module]:
    """Stop training the parts of a model that a stage leaves alone; these parts.

    Where the RPN has no loss, parameters that only the RPN's levels come through are not trained either.
    """
    held = [part for name, part in model.named_children() if name not in stage.trained]
    for part in held:
        part.requires_grad_(False)
    for parameter in unread(model) if stage.proposals is not None else ():
        parameter.requires_grad_(False)
    return held


def unread(model: FasterRCNN) -> list[nn.Parameter]:
    """The trained parameters of a backbone that no RoI's features depend on: those of levels that the RPN alone reads.

    Found by looking at a black image.
    """
    trained = [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]
    if not trained:
        return []
    side = 2 * max(model.rpn.strides)
    image = torch.zeros(1, model.settings.preprocess.in_channels, side, side, device=trained[0].device)
    levels = list(model.backbone.eval()(image).values())  # the next epoch puts it into training mode
    total = torch.stack([levels[i].sum() for i in model.roi_levels]).sum()
    gradients = torch.autograd.grad(total, trained, allow_unused=True)
    return [parameter for parameter, gradient in zip(trained, gradients, strict=True) if gradient is None]


def stage_proposals(
    stage: Stage,
    settings: Settings,
    splits: tuple[Dataset, Dataset],
    folder: RunFolder,
    team: Team,
    say: Callable[[str], None],
) -> tuple[ProposalSet | None, ProposalSet | None]:
    """Proposals that a stage is trained on, and those that it is validated on; None where they are the model's own.

    Those of an earlier stage are computed where they are not on the disk yet. `settings` are of this stage's model.
    """
    if stage.proposals is None:
        return None, None
    rpn, sets = settings.rpn, list[ProposalSet]()
    source = folder.proposals if stage.proposals == GIVEN else folder.stage(stage.proposals)
    limits = ((rpn.pre_train, rpn.post_train), (rpn.pre_test, rpn.post_test))
    needed = 1 if stage.own_rpn else 2  # an RPN of its own proposes for the images of validation
    for dataset, path, counts in list(zip(splits, proposal_files(source), limits, strict=True))[:needed]:
        if stage.proposals != GIVEN and not any(team.gather(path.exists())):
            proposer = Detector.load(source / "best.safetensors", team.device)
            write_proposals(path, proposer, dataset, team, counts, say)
        sets.append(ProposalSet(load_proposals(path), counts[1]))
    return sets[0], None if stage.own_rpn else sets[1]


def proposal_files(folder: Path) -> list[Path]:
    """Where the proposals for training and for validation lie in a folder."""
    return [folder / "train.safetensors", folder / "val.safetensors"]
