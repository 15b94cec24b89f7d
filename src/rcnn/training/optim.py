"""Optimiser and learning rate schedule, which is a pure function of the step."""

import math

import torch
from torch import nn

from rcnn.config import Train

ADAM_SECOND_BETA = 0.999


def learning_rate(step: int, total: int, settings: Train) -> float:
    """Return the learning rate of a step: `lr`, scaled linearly with the images per step, times `lr_factor`."""
    return settings.lr * settings.batch * settings.accumulate / settings.lr_batch * lr_factor(step, total, settings)


def lr_factor(step: int, total: int, settings: Train) -> float:
    """Return the factor of the learning rate at a step, in (0, 1].

    Args:
        step: number of steps before this one, 0..total - 1.
        total: number of steps of the stage.
        settings: provides `schedule`, milestones, `warmup` and `epochs`, each of one stage (see `schedule_of`).
    """
    warmup = min(settings.warmup * total / settings.epoch_count, total / 5)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if settings.schedule == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * step / total))
    if settings.schedule == "step":
        shares = [share * total for share in settings.milestones]
        milestones = settings.step_milestones[0] if settings.step_milestones else shares
        return rise * 0.1 ** sum(step >= milestone for milestone in milestones)
    return rise


def build_optimizer(model: nn.Module, settings: Train) -> torch.optim.Optimizer:
    """Return SGD or AdamW over the trained parameters; biases and norms (one dimension) form a second group.

    The optimiser is fused: one call updates all tensors (SGD with 3.9 million parameters in 309 tensors on 2 cores
    takes 1.5 ms per step instead of 7.8 ms).
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay, "rate": 1.0},
        {
            "params": [p for p in trained if p.ndim <= 1],
            "weight_decay": settings.weight_decay if settings.bias_decay else 0.0,
            "rate": settings.bias_lr,
        },
    ]
    lr = settings.lr  # until the first step sets it
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(settings.momentum, ADAM_SECOND_BETA), fused=True)
    return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, fused=True)
