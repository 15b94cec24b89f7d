"""Compare training recipes at equal CPU time on several data sets, with paired seeds.

    python benchmarks/recipes.py DATA... --recipes default cascade --seeds 0 1 2 --epochs 10 [--init FILE]
        [--test] [--jobs 2] [--set section.key=value ...] [--out runs/recipes] [--results FILE]
    python benchmarks/recipes.py --report [--results FILE]

DATA is a data set, DATA:CLASS the images of one class and its boxes alone, DATA:CLASS:N with N training images.
`--epochs` (or `--minutes`, of CPU time) is the length of the trainings of `default`. The others get as many steps as
take the same CPU time. The time of a step is measured before, for each recipe in turn with `default`, and is kept in
the results, so that all seeds get the same number of steps on all machines.

Nothing is chosen on a test list: every data set is copied to OUT with lists of its own. If a data set has no test list,
its validation list is used as one. If it then has no other validation list, 15% of its training images are held out.
All trainings end with their last weights (averaged, `train.keep=last`), which are scored on the validation list, and
with `--test` on the test list as well.

Each training runs on one thread. Its result becomes a line of the results file, and a training whose line exists is not
repeated; one that was interrupted is resumed from its run folder.
"""

import argparse
import fcntl
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

import rcnn
from rcnn.config import override
from rcnn.data.convert import convert
from rcnn.data.dataset import Dataset, Record, Records
from rcnn.data.formats.find import find_layout, open_dataset
from rcnn.errors import DataError, SettingsError, TrainingError
from rcnn.presets import settings_of
from rcnn.training.configure import DEFAULT_MODEL
from rcnn.training.recorders import Recorder, Row
from rcnn.training.run_folder import RunFolder
from rcnn.training.stages import steps_per_epoch

RECIPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "cascade": ("roi.stages=3",),
    "cascade-2": ("roi.stages=2",),
    "roi-giou": ("roi.box_loss=giou", "roi.box_weight=5"),
    "roi-ciou": ("roi.box_loss=ciou", "roi.box_weight=5"),
    "rpn-giou": ("rpn.box_loss=giou", "rpn.lambda=5"),
    "roi-l1": ("roi.beta=0",),
    "wide-scales": ("augment.scale=[0.6,1.67]",),
    "more-rois": ("roi.samples=256",),
    "batch-2": ("train.batch=2",),
    "lr-4e-3": ("train.lr=0.004",),
    "box-weight-2": ("roi.box_weight=2",),
    "iou-0.6": ("roi.positive_iou=0.6", "roi.negative_iou=[0,0.6]"),
    "cascade-giou": ("roi.stages=3", "roi.box_loss=giou", "roi.box_weight=5"),
    "cascade-lr-4e-3": ("roi.stages=3", "train.lr=0.004"),
    "cascade-batch-2": ("roi.stages=3", "train.batch=2"),
}
"""Name -> changes of the default settings."""
HELD_OUT = 0.15
"""Share of the training images that is held out where a data set has no list for it."""
ROUNDS, STEPS, WARM_UP = 3, 20, 4
"""Measurements of the time of a step: turns of each recipe, steps in a turn, and steps that are not counted."""
FEW = "-few"
"""End of the name of a copy with two validation images, on which the time of a step is measured."""
PREDICTED = 12
"""Images whose predictions are timed in a turn."""
IDENTITY = ("data", "recipe", "settings", "common", "init")
"""Columns that identify a recipe in the results."""
SCORES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
}


class Pace(NamedTuple):
    """CPU seconds of a training step and of a prediction of one image."""

    step: float
    predict: float


class Recipe(NamedTuple):
    """A recipe for one data set.

    Attributes:
        data: name of the data set.
        folder: its copy.
        name: key of `RECIPES`.
        common: settings that `default` has as well.
        init: weights to start from.
    """

    data: str
    folder: Path
    name: str
    common: tuple[str, ...]
    init: str

    @property
    def settings(self) -> tuple[str, ...]:
        """All changes of the default settings."""
        return (*self.common, *RECIPES[self.name], f"train.init={self.init}")

    @property
    def key(self) -> dict[str, Any]:
        """What identifies its lines in the results."""
        own = {"recipe": self.name, "settings": list(RECIPES[self.name])}
        return {"data": self.data, **own, "common": list(self.common), "init": Path(self.init).name}


class Task(NamedTuple):
    """One training."""

    recipe: Recipe
    seed: int
    steps: int

    @property
    def key(self) -> dict[str, Any]:
        """What identifies its line in the results."""
        return self.recipe.key | {"seed": self.seed, "steps": self.steps}


class Results:
    """The lines of the results file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """Return the rows of a kind, `pace` or `score`."""
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        return [row for row in map(json.loads, lines) if row["kind"] == kind]

    def find(self, kind: str, key: dict[str, Any]) -> dict[str, Any] | None:
        """Return the first row of a kind with these values."""
        return next((row for row in self.rows(kind) if key.items() <= row.items()), None)

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Append a row; several processes may do so at the same time."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps({"kind": kind, **row}) + "\n")


def prepare(source: str, out: Path) -> tuple[str, Path]:
    """Copy a data set with lists of its own to a folder in `out`; return its name and that folder."""
    path, *part = source.split(":")
    name = "-".join([Path(path).name, *part])
    folder = out / "data" / name
    if folder.exists():
        return name, folder
    layout = find_layout(path)
    there = {*layout.lists} | ({"train", "val"} if "train" not in layout.lists else set())  # cut from `trainval`
    lists = {split: open_dataset(path, split) for split in ("train", "val", "test") if split in there}
    if "test" in lists and {*lists["test"].records.names()} == {*lists.get("val", lists["test"]).records.names()}:
        lists.pop("val", None)
    elif "test" not in lists and "val" in lists:
        lists["test"] = replace(lists.pop("val"), split="test")
    if part:
        lists = {split: of_class(dataset, part[0]) for split, dataset in lists.items()}
    train = lists["train"]
    ordered = sorted(train.records, key=lambda record: blake2b(record.name.encode()).digest())
    if "val" not in lists:
        held_out = max(1, round(HELD_OUT * len(ordered)))
        lists["val"] = replace(train, split="val", records=Records(ordered[:held_out]))
        ordered = ordered[held_out:]
    if len(part) > 1:
        ordered = ordered[: int(part[1])]
    lists["train"] = replace(train, records=Records(ordered))
    datasets = [replace(dataset, names=train.names) for dataset in lists.values()]
    few = [replace(dataset, records=dataset.records[:2]) if dataset.split == "val" else dataset for dataset in datasets]
    folder.parent.mkdir(parents=True, exist_ok=True)
    for content, copy in ((few, folder.with_name(f"{name}{FEW}")), (datasets, folder)):
        if not copy.exists():  # the first copy may be there from a start that was killed
            with TemporaryDirectory(dir=folder.parent) as aside:
                convert(content, "coco", Path(aside, "copy"))
                Path(aside, "copy").rename(copy)
    return name, folder


def of_class(dataset: Dataset, name: str) -> Dataset:
    """Return the images with an object of a class, and only the boxes of this class."""
    if name not in dataset.names:
        raise SettingsError(f"{dataset.root} has no class `{name}`")
    label, records = dataset.names.index(name), list[Record]()
    for record in dataset.records:
        kept = record.labels == label
        if kept.any():
            boxes, ignore = record.boxes[kept], record.ignore[kept]
            records.append(replace(record, boxes=boxes, labels=np.zeros(len(boxes), np.int64), ignore=ignore))
    category = (dataset.category_ids[label],)
    return replace(dataset, names=(name,), category_ids=category, records=Records(records))


class StepTimes(Recorder):
    """The CPU time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def step(self, numbers: Row) -> None:
        """Called after each step."""
        self.ends.append(time.process_time())


def pace_of(recipe: Recipe) -> Pace:
    """Train a few steps and predict a few images."""
    times = StepTimes()
    with TemporaryDirectory() as runs:
        few = recipe._replace(folder=recipe.folder.with_name(recipe.folder.name + FEW))
        detector = train(few, Path(runs), "pace", WARM_UP + STEPS, 0, [times]).detector
    records = open_dataset(recipe.folder, "val", decode=False).records[:PREDICTED]
    images = [np.asarray(Image.open(str(record.path)).convert("RGB")) for record in records]
    detector.predict(images[0])
    began = time.process_time()
    for image in images:
        detector.predict(image)
    predict = (time.process_time() - began) / len(images)
    return Pace((times.ends[-1] - times.ends[WARM_UP - 1]) / STEPS, predict)


def measure(recipe: Recipe, results: Results) -> None:
    """Add the pace of a recipe, measured in turn with that of `default`, to the results, unless it is there."""
    if results.find("pace", recipe.key):
        return
    own, default = list[Pace](), list[Pace]()
    for _ in range(ROUNDS):
        default.append(pace_of(recipe._replace(name="default")))
        own.append(pace_of(recipe) if recipe.name != "default" else default[-1])
    row = {}
    for prefix, paces in (("", own), ("default_", default)):
        row[f"{prefix}step"] = round(statistics.median(pace.step for pace in paces), 4)
        row[f"{prefix}predict"] = round(statistics.median(pace.predict for pace in paces), 4)
    results.add("pace", recipe.key | row | machine())
    ratio = row["step"] / row["default_step"]
    print(f"{recipe.data}  {recipe.name}: {row['step']:.2f} s per step, {ratio:.2f} of the default", flush=True)


def steps_of(recipe: Recipe, results: Results, epochs: float, minutes: float | None) -> int:
    """Return the number of steps that take as much CPU time as the training of `default`."""
    pace = results.find("pace", recipe.key)
    first = results.find("pace", recipe._replace(name="default").key)
    assert pace is not None
    assert first is not None
    if minutes:
        default = minutes * 60 / first["default_step"]
    else:
        settings = override(settings_of(DEFAULT_MODEL), recipe.common)
        default = epochs * steps_per_epoch(settings, open_dataset(recipe.folder, "train", decode=False), 0)
    return max(1, round(default * pace["default_step"] / pace["step"]))


def train(recipe: Recipe, runs: Path, name: str, steps: int, seed: int, recorders: Sequence[Recorder] = ()) -> rcnn.Run:
    """Train for so many steps, or resume the last training of this name."""
    torch.set_num_threads(1)
    started = sorted(runs.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    if started and any(RunFolder(started[-1]).checkpoints.glob("*")):
        try:
            return rcnn.train(resume=started[-1], quiet=True, recorders=recorders)
        except SettingsError as error:
            print(f"{name} starts again: {error}", flush=True)
    length = (f"train.steps={steps}", "train.keep=last", "val.every=10000")
    fixed = ("train.device=cpu", f"train.seed={seed}", "data.workers=0")
    changes = (*length, *fixed, *recipe.settings)
    return rcnn.train(recipe.folder, overrides=changes, name=name, runs=runs, quiet=True, recorders=recorders)


def perform(task: Task, out: Path, test: bool) -> tuple[Task, dict[str, Any]]:
    """Train and score one task."""
    began, recipe = time.process_time(), task.recipe
    words = blake2b(json.dumps(recipe.key).encode(), digest_size=4).hexdigest()
    name = f"{recipe.data}-{recipe.name}-{words}-{task.steps}-seed{task.seed}"
    run = train(recipe, out / "runs", name, task.steps, task.seed)
    row = {f"val_{key}": known(run.metrics.to_row()[key]) for key in SCORES}
    if test:
        scores = rcnn.val(run.best, recipe.folder, split="test").to_row()
        row |= {f"test_{key}": known(scores[key]) for key in SCORES}
    return task, {**row, "cpu_seconds": round(time.process_time() - began), **machine()}


def known(score: float) -> float | None:
    """Return a score for JSON, or None where there are no such objects."""
    return round(score, 5) if math.isfinite(score) else None


def machine() -> dict[str, str]:
    """Return the commit and the CPU of a measurement."""
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {"commit": commit, "cpu": models[0] if models else platform.machine()}


def report(results: Results) -> Iterator[str]:
    """Yield the tables of all results as Markdown: for each data set, mean, range and paired difference of recipes."""
    rows, paces = results.rows("score"), results.rows("pace")
    for data in dict.fromkeys(row["data"] for row in rows):
        for split in ("val", "test"):
            of_data = [row for row in rows if row["data"] == data and f"{split}_ap" in row]
            if of_data:
                yield f"\n**{data}**, {'held-out images' if split == 'val' else 'test list'}\n"
                yield "| recipe | steps | seeds | " + " | ".join(SCORES.values()) + " | AP - default | step | predict |"
                yield "|" + "---|" * (len(SCORES) + 6)
                yield from table(of_data, split, [pace for pace in paces if pace["data"] == data])


def table(rows: Sequence[dict[str, Any]], split: str, paces: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each recipe and length."""
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:  # a seed that was scored again, with the test list, replaces its first row
        groups.setdefault(json.dumps([*(row[key] for key in IDENTITY), row["steps"]]), {})[row["seed"]] = row
    for group in (list(by_seed.values()) for by_seed in groups.values()):
        first = group[0]
        pace = next(pace for pace in paces if all(pace[key] == first[key] for key in IDENTITY))
        cells = [" ".join([first["recipe"], *first["common"]]), str(first["steps"]), str(len(group))]
        for key in SCORES:
            values = [row[f"{split}_{key}"] for row in group if row[f"{split}_{key}"] is not None]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if key == "ap" and len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}" if values else "-")
        cells.append(difference(group, rows, f"{split}_ap", pace["step"] / pace["default_step"]))
        cells += [f"{pace[key] / pace[f'default_{key}']:.2f}" for key in ("step", "predict")]
        yield "| " + " | ".join(cells) + " |"


def difference(group: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], key: str, ratio: float) -> str:
    """Return the mean difference of AP from `default` with the same seeds at equal CPU time, in points."""
    first = group[0]
    default = {
        row["seed"]: row[key]
        for row in rows
        if row["recipe"] == "default"
        and (row["common"], row["init"]) == (first["common"], first["init"])
        and abs(row["steps"] - first["steps"] * ratio) <= 1 + ratio
    }
    points = [100 * (row[key] - default[row["seed"]]) for row in group if row["seed"] in default]
    if not points or first["recipe"] == "default":
        return ""
    error = f" ± {statistics.stdev(points) / len(points) ** 0.5:.2f}" if len(points) > 1 else ""
    return f"{statistics.mean(points):+.2f}{error}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", metavar="DATA")
    parser.add_argument("--recipes", nargs="+", default=["default"], metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=float, default=10)
    length.add_argument("--minutes", type=float)
    parser.add_argument("--set", nargs="+", default=[], dest="settings", metavar="section.key=value")
    parser.add_argument("--init", default="imagenet", metavar="FILE", help="weights to start from")
    parser.add_argument("--test", action="store_true", help="score the test lists as well")
    parser.add_argument("--report", action="store_true", help="only print the tables of the results")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "recipes.jsonl")
    options = parser.parse_args(words)
    results = Results(options.results)
    if unknown := [name for name in options.recipes if name not in RECIPES]:
        parser.error(f"unknown recipe {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    if not options.report:
        try:
            recipes = plan(options, results)
            tasks = [
                Task(recipe, seed, steps_of(recipe, results, options.epochs, options.minutes))
                for seed in options.seeds
                for recipe in recipes
            ]
        except (DataError, SettingsError) as error:
            parser.error(str(error))
        failures = list[str]()
        missing = [task for task in tasks if not done(results, task, options.test)]
        os.environ["OMP_NUM_THREADS"] = "1"
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            for future in as_completed(pool.submit(perform, task, options.out, options.test) for task in missing):
                try:
                    task, row = future.result()
                except TrainingError as error:
                    failures.append(str(error))
                    continue
                results.add("score", task.key | row)
                recipe = task.recipe
                print(f"{recipe.data}  {recipe.name}  seed {task.seed}: AP {row['val_ap']:.3f}", flush=True)
        if failures:
            sys.exit("\n".join(failures))
    print("\n".join(report(results)))
    return 0


def plan(options: argparse.Namespace, results: Results) -> list[Recipe]:
    """Check the recipes, copy the data, measure the recipes that were not measured, and return them."""
    for name in options.recipes:
        override(settings_of(DEFAULT_MODEL), (*options.settings, *RECIPES[name]))
    sets = dict(prepare(source, options.out) for source in options.data)
    if len(sets) < len(options.data):
        raise SettingsError(f"two of the data sets have the same name: {' '.join(options.data)}; rename a folder")
    recipes = [
        Recipe(data, folder, name, tuple(options.settings), options.init)
        for data, folder in sets.items()
        for name in dict.fromkeys(["default", *options.recipes])
    ]
    for recipe in recipes:
        measure(recipe, results)
    return [recipe for recipe in recipes if recipe.name in options.recipes]


def done(results: Results, task: Task, test: bool) -> bool:
    """Return True if a training has its line."""
    rows = [row for row in results.rows("score") if task.key.items() <= row.items()]
    return any(not test or "test_ap" in row for row in rows)


if __name__ == "__main__":
    sys.exit(main())
