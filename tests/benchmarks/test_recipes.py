"""The lists and the comparisons of `benchmarks/recipes.py`."""

from pathlib import Path
from typing import Any

import pytest

from rcnn.config import override
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset
from rcnn.data.synthetic import synthesise
from rcnn.presets import settings_of
from rcnn.training.configure import DEFAULT_MODEL
from tests.benchmarks.test_benchmarks import module

SIZES = {"train": 20, "val": 4, "test": 6}


@pytest.fixture(scope="module")
def script() -> Any:
    return module("recipes")


def lists_of(folder: Path) -> dict[str, Dataset]:
    return {split: open_dataset(folder, split, decode=False) for split in ("train", "val", "test")}  # type: ignore[arg-type]


@pytest.mark.parametrize(("splits", "sizes"), [("train val test", (20, 4, 6)), ("train val", (17, 3, 4))])
def test_no_image_is_in_two_lists_and_a_test_list_is_never_one_for_choices(
    splits: str, sizes: tuple[int, ...], script: Any, tmp_path: Path
) -> None:
    for seed, split in enumerate(splits.split()):
        synthesise(tmp_path / "set", SIZES[split], split=split, size=(48, 64), seed=seed)
    name, folder = script.prepare(f"{tmp_path / 'set'}", tmp_path / "out")
    assert (name, folder) == script.prepare(f"{tmp_path / 'set'}", tmp_path / "out")  # not copied again
    lists = lists_of(folder)
    assert tuple(map(len, lists.values())) == sizes
    assert len({record.path.read_bytes() for dataset in lists.values() for record in dataset.records}) == sum(sizes)
    own = {
        record.path.read_bytes() for record in open_dataset(tmp_path / "set", splits.split()[-1], decode=False).records
    }  # type: ignore[arg-type]
    assert {record.path.read_bytes() for record in lists["test"].records} == own


def test_a_class_alone_has_its_images_and_boxes(script: Any, tmp_path: Path) -> None:
    for seed, split in enumerate(SIZES):
        synthesise(tmp_path / "set", SIZES[split], split=split, size=(48, 64), seed=seed)
    given = open_dataset(tmp_path / "set", "train", decode=False)
    label = given.names.index("disc")
    boxes = sorted(
        record.boxes[record.labels == label].tolist() for record in given.records if (record.labels == label).any()
    )
    lists = lists_of(script.prepare(f"{tmp_path / 'set'}:disc", tmp_path / "out")[1])
    assert lists["train"].names == ("disc",)
    assert sorted(record.boxes.tolist() for record in lists["train"].records) == boxes
    fewer = lists_of(script.prepare(f"{tmp_path / 'set'}:disc:5", tmp_path / "out")[1])
    assert [len(dataset) for dataset in fewer.values()] == [5, len(lists["val"]), len(lists["test"])]


def test_recipes_are_compared_at_equal_time_with_the_same_seeds(script: Any, tmp_path: Path) -> None:
    results = script.Results(tmp_path / "results.jsonl")
    key = {"data": "d", "settings": [], "common": [], "init": "i"}
    scores = dict.fromkeys((f"val_{name}" for name in script.SCORES), 0.5)
    pace = {"predict": 2.0, "default_predict": 1.0, "default_step": 1.0}
    results.add("pace", {**key, "recipe": "default", **pace, "step": 1.0})
    results.add("pace", {**key, "recipe": "slow", **pace, "step": 2.0})
    aps = {("default", 100): (0.5, 0.6, 0.9), ("default", 50): (0.1, 0.1), ("slow", 50): (0.52, 0.61)}
    for (recipe, steps), values in aps.items():
        for seed, ap in enumerate(values):
            results.add("score", {**key, "recipe": recipe, "seed": seed, "steps": steps, **scores, "val_ap": ap})
        results.add("score", {**key, "recipe": recipe, "seed": 0, "steps": steps, **scores, "val_ap": values[0]})
    lines = [line for line in script.report(results) if line.startswith("| slow")]
    assert len(lines) == 1
    assert "| 50 | 2 |" in lines[0]  # a seed that was scored twice counts once
    assert "| 0.565 (0.520 to 0.610) |" in lines[0]
    assert lines[0].endswith("| +1.50 ± 0.50 | 2.00 | 2.00 |")


def test_the_page_has_the_numbers_of_the_results(script: Any) -> None:
    root = Path(script.__file__).parents[1]
    page = (root / "docs/recipes.md").read_text(encoding="utf-8")
    rows = script.Results(root / "benchmarks/results/recipes.jsonl").rows("score")
    assert rows
    for row in rows:
        cells = (f"{row[key]:.3f}" for key in ("val_ap", "val_ap50", "val_ap75"))
        assert f"| {row['steps']} | {' | '.join(cells)} |" in page, row


def test_every_recipe_changes_settings_that_exist(script: Any) -> None:
    default = settings_of(DEFAULT_MODEL)
    for name, changes in script.RECIPES.items():
        assert (override(default, changes) == default) == (name == "default"), name
