"""The experiments by the name that `rcnn paper` takes."""

from collections.abc import Callable

from rcnn.config import Settings
from rcnn.paper import (
    anchors,
    balance,
    mean_proposals,
    one_stage,
    per_class,
    proposals,
    recall,
    schemes,
    timing,
    top_n,
)
from rcnn.paper.experiment import Experiment

EXPERIMENTS: dict[str, Callable[[Settings], Experiment]] = {
    "mean-proposals": mean_proposals.experiment,
    "proposals": proposals.experiment,
    "top-n": top_n.experiment,
    "per-class": per_class.experiment,
    "anchors": anchors.experiment,
    "lambda": balance.experiment,
    "one-stage": one_stage.experiment,
    "recall": recall.experiment,
    "time": timing.experiment,
    "schemes": schemes.experiment,
}
"""Name -> function that builds the experiment from settings."""

RPN_EXPERIMENTS = ("mean-proposals", "recall")
"""Experiments that need no second stage."""
