"""Execute an experiment: save every measurement as it finishes, so that the same command resumes."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rcnn.config import Settings, dump, override
from rcnn.errors import SettingsError, TrainingError
from rcnn.images.sources import mark_results
from rcnn.paper.budget import cut_epochs
from rcnn.paper.by_name import EXPERIMENTS, RPN_EXPERIMENTS
from rcnn.paper.experiment import MAP, Experiment
from rcnn.paper.results import ExperimentResult
from rcnn.paper.workspace import ResultsTable, Workspace, training_set
from rcnn.training.settle import settle_epochs
from rcnn.weights.file import atomic_write

KEY = ("row", "seed")
"""Key columns of the results; the seed is empty if the measurement does not depend on it."""


def execute(
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
    """Execute an experiment, or the measurements that are still missing.

    Args:
        name: a key of `EXPERIMENTS`.
        settings: settings of all trainings; `data.path` is set.
        folder: folder for results and trainings; experiments on the same data may share it.
        seeds: seeds of the trainings.
        split: images that are scored: train, val or test.
        budget: minutes available. None: the epochs are those of `settings`.
        leave_out: rows with one of these texts in their names are not measured.
        say: called with a sentence before each step.
        quiet: whether trainings print nothing.

    Raises:
        SettingsError: the folder holds results of the experiment with other settings; the experiment needs a second
            stage, or measures no AP although `val.voc_ap` selects a rule for it; a text in `leave_out` matches no row,
            or all rows are left out; or `data.edge_model` names no file.
        DataError: the data can't be read, or is faulty.
        Interrupted: Ctrl-C; the same call resumes.
    """
    if settings.roi.head == "none" and name not in RPN_EXPERIMENTS:
        raise SettingsError(f"the experiment `{name}` needs a second stage, and roi.head=none has none")
    experiment = without(EXPERIMENTS[name](settings), leave_out)
    if settings.val.voc_ap == "11-point" and name != "per-class":  # it reports both rules
        if not any(column.key == MAP.key for column in experiment.columns):
            raise SettingsError(f"the experiment `{name}` measures no AP; remove val.voc_ap=11-point")
        experiment = experiment.eleven_point()
    folder.mkdir(parents=True, exist_ok=True)
    mark_results(folder)
    table = ResultsTable(folder / f"{name}.csv", KEY)
    for row, reason in experiment.omitted.items():
        say(f"not measured: {row}: {reason}")
    workspace = Workspace(settings, folder, split, say, quiet=quiet)
    workspace.settings = _plan(workspace, experiment, folder / f"{name}.json", seeds, budget)
    failures = []
    for seed in seeds:
        for measurement in experiment.measured:
            seed_cell = seed if measurement.seeded else ""
            if all((row, seed_cell) in table for row in measurement.rows):
                continue
            say(f"measuring {', '.join(measurement.rows)}" + (f"; seed {seed}" if measurement.seeded else ""))
            try:
                numbers = measurement.measure(workspace, seed)
            except TrainingError as error:
                say(f"failed: {error}")
                failures.append(f"{', '.join(measurement.rows)}, seed {seed}: {error}")
            else:
                table.add(*({"row": row, "seed": seed_cell, **numbers[row]} for row in measurement.rows))
    scores: defaultdict[str, dict[int | None, dict[str, float]]] = defaultdict(dict)
    for cells in table:
        row_seed = int(cells["seed"]) if cells["seed"] else None
        if cells["row"] in experiment.rows and row_seed in (None, *seeds):
            values = ((key, float(text)) for key, text in cells.items() if key not in KEY and text)
            scores[cells["row"]][row_seed] = {key: value for key, value in values if not math.isnan(value)}
    data, unique_failures = workspace.dataset, tuple(dict.fromkeys(failures))
    return ExperimentResult(name, experiment, workspace.settings, data, tuple(seeds), dict(scores), unique_failures)


def without(experiment: Experiment, parts: Sequence[str]) -> Experiment:
    """Omit the measurements all of whose rows have one of `parts` in their names.

    Raises:
        SettingsError: one of the texts matches no measurement, or no measurement remains.
    """
    measurements = list(experiment.measurements)
    for part in parts:
        matching = [i for i, measurement in enumerate(measurements) if all(part in row for row in measurement.rows)]
        if not matching:
            raise SettingsError(
                f"--leave-out {part}: no row that is measured on its own has this in its name; the rows are "
                f"{'; '.join(experiment.rows)}"
            )
        for index in matching:
            measurements[index] = measurements[index]._replace(omitted="left out")
    if all(measurement.omitted for measurement in measurements):
        raise SettingsError(f"--leave-out {' '.join(parts)}: no row would be left")
    return replace(experiment, measurements=tuple(measurements))


def _plan(
    workspace: Workspace, experiment: Experiment, path: Path, seeds: Sequence[int], budget: float | None
) -> Settings:
    """Return the settings with the epochs that fit into the budget, which are planned once and stored in a file."""
    if workspace.settings.train.epochs == "auto":
        images = len(training_set(workspace.settings))
        workspace.settings, notes = settle_epochs(workspace.settings, images)
        for note in notes:
            workspace.say(note)
    # The model file of EdgeBoxes may be given later.
    settings = override(workspace.settings, {"data": {"edge_model": None}})
    request = {"settings": dump(settings), "split": workspace.split, "budget": budget}
    if path.exists():
        plan = json.loads(path.read_text(encoding="utf-8"))
        if different := _differences(plan["asked"], request):
            raise SettingsError(
                f"{path} belongs to an experiment with other settings ({', '.join(different)}). Choose another --name, "
                "or move it and the csv beside it away"
            )
        epochs = plan["epochs"]
    else:
        if budget is not None and settings.train.steps:
            raise SettingsError("--budget reduces epochs, and train.steps is set: leave one of them out")
        epochs = settings.train.epoch_count if budget is None else cut_epochs(workspace, experiment, seeds, budget)
        atomic_write(path, json.dumps({"asked": request, "epochs": epochs}, indent=2).encode())
    return override(workspace.settings, {"train": {"epochs": epochs}})


def _differences(first: Any, second: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of the values that differ between two trees."""
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        return [] if first == second else [prefix.removeprefix("settings.")]
    keys = dict.fromkeys((*first, *second))
    below = (_differences(first.get(key), second.get(key), f"{prefix}.{key}".strip(".")) for key in keys)
    return [name for names in below for name in names]
