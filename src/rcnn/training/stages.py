"""The stages of a scheme, and the model, initial weights and proposals of each.

A run of several stages leaves these files in its folder, besides those of every run:

stages/N/best.safetensors, last.safetensors      detectors of stage N, except the last; best not with train.keep=last
stages/N/train.safetensors, val.safetensors      proposals of stage N for the images of each list, if a later stage is
                                                 trained or validated on them

Proposals from elsewhere are in proposals/train.safetensors and val.safetensors. A resumed run reads them there, even if
the file that they came from is gone. Sliding windows are computed as they are needed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from rcnn.config import Settings, override
from rcnn.data.dataset import Dataset
from rcnn.data.proposals.external import External, ProposalSet, SlidingWindows
from rcnn.detector import Detector
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.sliding_windows import SLIDING_WINDOWS
from rcnn.presets import build
from rcnn.training.distributed import Distributed
from rcnn.training.init import Start, initialise
from rcnn.training.loop import seed_step
from rcnn.training.proposals import load_proposals, write_proposals
from rcnn.training.run_folder import RunFolder
from rcnn.weights.adapt import fill
from rcnn.weights.file import kept
from rcnn.weights.metadata import read_detector

GIVEN = "given"
"""Proposals from elsewhere, of `train.proposals`."""
AP, RECALL = "ap", "proposal_ar300"
"""Columns of a row that can decide which epoch is best."""


class Stage(NamedTuple):
    """A part of a scheme, trained for `train.epochs` epochs. Stages are numbered 1, 2, ....

    Attributes:
        loss: module class; built around the model, its forward is the loss.
        title: description; empty if there is one stage only.
        trained: parts of the model that are trained; the others stay unchanged, to the bit.
        rpn_alone: the model of this stage is an RPN without a second stage.
        start: part of the model -> the earlier stage whose weights (`kept`) it starts from; other parts start from
            random weights. Empty: the whole model is initialised as `train.init` says.
        proposals: of an earlier stage, or `GIVEN`; the loss reads them instead of the model's own. None: its own.
        needs_second: the model needs a second stage (`roi.head` other than none).
        own_rpn: the model has a trained RPN, which proposes in validation; if not, `proposals` are read there too.
        best: the column of a row whose highest value marks the best epoch, with `train.keep=best`.
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
        """The settings of this stage's model."""
        if not self.rpn_alone:
            return settings
        # An RPN has no AP by any rule, and no layers to truncate.
        return override(settings, {"roi": {"head": "none"}, "val": {"voc_ap": "area"}, "predict": {"svd": ()}})

    def decided_by(self, settings: Settings) -> str:
        """`best`, or recall if the model of the run does not predict classes."""
        return self.best if settings.predicts_classes else RECALL


def stage_start(stage: Stage, number: int, settings: Settings, names: Sequence[str], folder: RunFolder) -> Start:
    """The start of a stage after the first.

    Args:
        stage: the stage.
        number: of the stage, from 1.
        settings: of the run.
        names: of the classes.
        folder: of the run, with the weights of earlier stages.

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
        theirs, _ = read_detector(kept(folder.stage(source)))
        tensors |= {key: tensor for key, tensor in theirs.items() if key.startswith(f"{part}.")}
    fill(model, tensors, folder.path / "stages")
    return Start(model, own)


def hold(model: FasterRCNN, stage: Stage) -> list[nn.Module]:
    """Freeze the parts of a model that a stage does not train, and return them.

    If the RPN has no loss, parameters that only its levels depend on are not trained either.
    """
    held = [part for name, part in model.named_children() if name not in stage.trained]
    for part in held:
        part.requires_grad_(False)
    for parameter in unread(model) if stage.proposals is not None else ():
        parameter.requires_grad_(False)
    return held


def unread(model: FasterRCNN) -> list[nn.Parameter]:
    """The trained parameters of a backbone that no RoI depends on: those of levels that only the RPN reads.

    They are found by the gradients of a black image.
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
    start: Start,
    splits: tuple[Dataset, Dataset],
    folder: RunFolder,
    distributed: Distributed,
    say: Callable[[str], None],
) -> tuple[External | None, External | None]:
    """The proposals that a stage is trained on and those that it is validated on; None: the model's own.

    Those of an earlier stage are computed if they are not on the disk yet. `start` is of this stage.
    """
    if stage.proposals is None:
        return None, None
    if stage.proposals == GIVEN and start.settings.train.proposals == SLIDING_WINDOWS:
        windows = SlidingWindows.of(start.model)
        return windows, windows
    rpn, sets = start.settings.rpn, list[ProposalSet]()
    source = folder.proposals if stage.proposals == GIVEN else folder.stage(stage.proposals)
    limits = ((rpn.pre_train, rpn.post_train), (rpn.pre_test, rpn.post_test))
    needed = 1 if stage.own_rpn else 2  # an RPN of its own proposes for the images of validation
    for dataset, path, counts in list(zip(splits, proposal_files(source), limits, strict=True))[:needed]:
        if stage.proposals != GIVEN and not any(distributed.gather(path.exists())):
            proposer = Detector.load(kept(source), distributed.device)
            write_proposals(path, proposer, dataset, distributed, counts, say)
        sets.append(ProposalSet(load_proposals(path), counts[1]))
    return sets[0], None if stage.own_rpn else sets[1]


def proposal_files(folder: Path) -> list[Path]:
    """The files of a folder with proposals for training and for validation."""
    return [folder / "train.safetensors", folder / "val.safetensors"]
