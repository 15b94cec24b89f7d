"""What each stage of a scheme works with: its settings, the weights it starts from, the proposals that it is given.

Alternating training (paper, section 3.2) leaves in the run folder, besides what every run leaves:

stages/N/best.safetensors, last.safetensors      detectors of stage N but the last; without a second stage if N is odd
stages/N/train.safetensors                       proposals of stage N, an RPN alone, for the images that are trained on
stages/1/val.safetensors                         and those of stage 1 for the images of validation

Fast R-CNN on proposals from elsewhere leaves these: proposals/train.safetensors, val.safetensors. A resumed run reads
them there, whatever has become of the file that they came from.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rcnn.config import Settings, override
from rcnn.data.dataset import Dataset
from rcnn.data.given import GivenProposals
from rcnn.detector import Detector
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.presets import build
from rcnn.training.distributed import Team
from rcnn.training.init import Start, initialise
from rcnn.training.loop import seed_step
from rcnn.training.proposals import load_proposals, write_proposals
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import SCHEMES, Stage
from rcnn.weights.adapt import fill
from rcnn.weights.metadata import read_detector

SPLITS = ("train", "val")


def weights_folder(folder: RunFolder, scheme: str, number: int) -> Path:
    """Where stage `number` (0, 1, ...) keeps its best and last weights: the last one where every run does."""
    return folder.weights if number + 1 == len(SCHEMES[scheme]) else folder.path / "stages" / str(number + 1)


def stage_settings(settings: Settings, number: int) -> Settings:
    """The settings of a stage's model: without a second stage where the stage trains an RPN alone."""
    alone = SCHEMES[settings.train.scheme][number].proposes
    return override(settings, {"roi": {"head": "none"}}) if alone else settings


def stage_start(settings: Settings, number: int, names: Sequence[str], folder: RunFolder) -> Start:
    """What a stage after the first starts from.

    Stage 2 starts as the run did; stage 3 from the backbone of stage 2, with a fresh RPN; stage 4 from all of stage 2
    but its RPN, which is that of stage 3.
    """
    own = stage_settings(settings, number)
    seed_step(settings.train.seed, number)
    if number == 1:
        return initialise(own, names)
    model = build(own, len(names))
    tensors = {**model.state_dict(), **_part(folder, 1, "backbone")}
    if number == 3:
        tensors |= _part(folder, 1, "fast_rcnn") | _part(folder, 2, "rpn")
    fill(model, tensors, folder.path / "stages")
    return Start(model, own)


def _part(folder: RunFolder, number: int, name: str) -> dict[str, Tensor]:
    """The tensors of a part of an earlier stage's model."""
    tensors, _ = read_detector(_best(folder, number))
    return {key: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def _best(folder: RunFolder, number: int) -> Path:
    return folder.path / "stages" / str(number + 1) / "best.safetensors"


def hold(model: FasterRCNN, stage: Stage) -> list[nn.Module]:
    """Stop training the parts of a model that a stage leaves alone; these parts.

    Where the RPN has no loss, parameters that only the RPN's levels come through are not trained either.
    """
    held = [part for name, part in model.named_children() if name not in stage.trained]
    for part in held:
        part.requires_grad_(False)
    for parameter in unread(model) if stage.given else ():
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


def external_files(folder: RunFolder) -> list[Path]:
    """Where the proposals from elsewhere lie, for training and for validation."""
    return [folder.path / "proposals" / f"{name}.safetensors" for name in SPLITS]


def stage_proposals(
    settings: Settings,
    number: int,
    splits: tuple[Dataset, Dataset],
    folder: RunFolder,
    team: Team,
    say: Callable[[str], None],
) -> tuple[GivenProposals | None, GivenProposals | None]:
    """Proposals that a stage trains on, and those that it is validated on where its model has no RPN of its own.

    Those of the stage before are computed where they are not on the disk yet.
    """
    if not SCHEMES[settings.train.scheme][number].given:
        return None, None
    rpn = settings.rpn
    counts = ((rpn.pre_train, rpn.post_train), (rpn.pre_test, rpn.post_test))
    paths = external_files(folder)
    if number > 0:
        best = _best(folder, number - 1)
        # In stage 4 the model's own RPN is that of stage 3, on the same features.
        paths = [best.with_name(f"{name}.safetensors") for name in (SPLITS if number == 1 else SPLITS[:1])]
        for path, dataset, limits in zip(paths, splits, counts, strict=False):
            if not any(team.gather(path.exists())):
                write_proposals(path, Detector.load(best, team.device), dataset, team, limits, say)
    given = [
        GivenProposals(load_proposals(path), dataset, settings, count=count, training=training)
        for path, dataset, (_, count), training in zip(paths, splits, counts, (True, False), strict=False)
    ]
    return given[0], given[1] if len(given) > 1 else None
