"""Conduct an experiment: every measurement for every seed, saved as it finishes, so that the same command resumes."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rcnn.config import Settings, dump, override
from rcnn.data.dataset import Dataset
from rcnn.errors import SettingsError, TrainingError
from rcnn.images.sources import mark_results
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
from rcnn.paper.budget import cut_epochs
from rcnn.paper.experiment import MAP, Experiment, Measurement
from rcnn.paper.lab import Lab
from rcnn.paper.ledger import Ledger
from rcnn.paper.verdict import Judgement, Scores, judge_all
from rcnn.weights.file import atomic_write

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
"""Name -> function that makes the experiment from settings."""

OF_RPN = ("mean-proposals", "recall")
"""Experiments that need no second stage."""

KEY = ("row", "seed")
"""Columns of the results that tell them apart; the seed is empty where nothing depends on it."""


@dataclass(frozen=True)
class ExperimentResult:
    """The result of an experiment.

    Attributes:
        name: name of the experiment.
        experiment: its table.
        settings: settings of all trainings.
        dataset: the images that were scored.
        seeds: seeds asked for.
        scores: the measured numbers.
        judgements: judgements of the paper's orderings.
        failures: message of each measurement that failed.
    """

    name: str
    experiment: Experiment
    settings: Settings
    dataset: Dataset
    seeds: tuple[int, ...]
    scores: Scores
    judgements: list[Judgement]
    failures: tuple[str, ...]


def conduct(
    name: str,
    settings: Settings,
    folder: Path,
    *,
    seeds: Sequence[int] = (0,),
    split: str = "val",
    budget: float | None = None,
    leave_out: Sequence[str] = (),
    say: Callable[[str], None] = print,
    quiet: bool = False,
) -> ExperimentResult:
    """Conduct an experiment, or what is left of it.

    Args:
        name: a key of `EXPERIMENTS`.
        settings: settings of all trainings; `data.path` is set.
        folder: folder for results and trainings; experiments on the same data may share it.
        seeds: seeds of the trainings.
        split: images that are scored: train, val or test.
        budget: minutes that everything may take. None: epochs as in `settings`.
        leave_out: parts of the names of rows that are not measured.
        say: called with a sentence before each step.
        quiet: whether trainings print nothing.

    Raises:
        SettingsError: the folder holds results of the experiment with other settings; it has no second stage or no AP
            to measure by the rule that was asked for; a text in `leave_out` is part of no row's name, or all rows are
            left out; or `data.edge_model` names no file.
        DataError: the data can't be read, or is faulty.
        Interrupted: Ctrl-C; the same call goes on.
    """
    if settings.roi.head == "none" and name not in OF_RPN:
        raise SettingsError(f"the experiment `{name}` is of a second stage, and roi.head=none has none")
    experiment = without(EXPERIMENTS[name](settings), leave_out)
    if settings.val.voc_ap == "11-point" and name != "per-class":  # which has both rules
        if not any(column.key == MAP.key for column in experiment.columns):
            raise SettingsError(f"the experiment `{name}` measures no AP: leave val.voc_ap=11-point out")
        experiment = experiment.eleven_point()
    folder.mkdir(parents=True, exist_ok=True)
    mark_results(folder)
    ledger = Ledger(folder / f"{name}.csv", KEY)
    for row, lacks in experiment.lacking.items():
        say(f"not measured: {row}: {lacks}")
    lab = Lab(settings, folder, split, say, quiet=quiet)
    lab.settings = _planned(lab, experiment, folder / f"{name}.json", seeds, budget)
    failures = []
    for seed in seeds:
        for run in experiment.done:
            try:
                _do(lab, run, seed, ledger)
            except TrainingError as error:
                say(f"failed: {error}")
                failures.append(f"{', '.join(run.rows)}, seed {seed}: {error}")
    scores = read_scores(ledger, experiment, seeds)
    judgements = judge_all(experiment, scores, seeds)
    failures = tuple(dict.fromkeys(failures))
    return ExperimentResult(name, experiment, lab.settings, lab.dataset, tuple(seeds), scores, judgements, failures)


def without(experiment: Experiment, parts: Sequence[str]) -> Experiment:
    """The experiment without the runs all of whose rows have one of `parts` in their names.

    Raises:
        SettingsError: one of them leaves nothing out, or together they leave nothing.
    """
    runs = list(experiment.runs)
    for part in parts:
        out = [index for index, run in enumerate(runs) if all(part in row for row in run.rows)]
        if not out:
            raise SettingsError(
                f"--leave-out {part}: no row that is measured on its own has this in its name; there are "
                f"{'; '.join(experiment.rows)}"
            )
        for index in out:
            runs[index] = runs[index]._replace(lacks="left out")
    if all(run.lacks for run in runs):
        raise SettingsError(f"--leave-out {' '.join(parts)}: no row would be left")
    return replace(experiment, runs=tuple(runs))


def _planned(lab: Lab, experiment: Experiment, path: Path, seeds: Sequence[int], budget: float | None) -> Settings:
    """The settings with the epochs that fit into the budget, as they were planned when the experiment began."""
    # Only the rows of EdgeBoxes need the model file, which may be given later.
    settings = override(lab.settings, {"data": {"edge_model": None}})
    asked = {"settings": dump(settings), "split": lab.split, "budget": budget}
    if path.exists():
        plan = json.loads(path.read_text(encoding="utf-8"))
        if different := _differences(plan["asked"], asked):
            raise SettingsError(
                f"{path} is of an experiment with other settings ({', '.join(different)}). Choose another --name, or "
                "move it and the csv beside it away"
            )
        epochs = plan["epochs"]
    else:
        epochs = lab.settings.train.epochs if budget is None else cut_epochs(lab, experiment, seeds, budget)
        atomic_write(path, json.dumps({"asked": asked, "epochs": epochs}, indent=2).encode())
    return override(lab.settings, {"train": {"epochs": epochs}})


def _differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Names of what differs between two trees."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = list(dict.fromkeys((*one, *other)))
        below = [_differences(one.get(key), other.get(key), f"{where}.{key}".strip(".")) for key in keys]
        return [name.removeprefix("settings.") for names in below for name in names]
    return [] if one == other else [where]


def _do(lab: Lab, run: Measurement, seed: int, ledger: Ledger) -> None:
    """Do a measurement unless it is already done."""
    mark = seed if run.seeded else ""
    if all((row, mark) in ledger for row in run.rows):
        return
    lab.say(f"measuring {', '.join(run.rows)}" + (f"; seed {seed}" if run.seeded else ""))
    numbers = run.measure(lab, seed)
    ledger.add(*({"row": row, "seed": mark, **numbers[row]} for row in run.rows))


def read_scores(ledger: Ledger, experiment: Experiment, seeds: Sequence[int]) -> Scores:
    """Read the results of the rows of an experiment for these seeds."""
    scores: defaultdict[str, dict[int | None, dict[str, float]]] = defaultdict(dict)
    for entry in ledger:
        seed = int(entry["seed"]) if entry["seed"] else None
        if entry["row"] in experiment.rows and (seed is None or seed in seeds):
            numbers = {key: float(value) for key, value in entry.items() if key not in KEY and value}
            scores[entry["row"]][seed] = {key: value for key, value in numbers.items() if not math.isnan(value)}
    return dict(scores)
