"""Schedules in steps: steps, milestones and batch of each stage, and more than one round of alternation."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn.config import Settings, override
from rcnn.errors import SettingsError
from rcnn.presets import settings_of
from rcnn.report.subject import read_subject
from rcnn.report.view import facts
from rcnn.training.configure import choose_settings
from rcnn.training.optim import learning_rate
from rcnn.training.run import Run
from rcnn.training.schemes import schedule_of, stages_of
from rcnn.training.train import train
from rcnn.training.trainer import Trainer
from rcnn.weights.metadata import read_detector
from tests.training.pieces import Keeper, assert_same, killed
from tests.training.test_alternating import OVERRIDES

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
STEPS, MILESTONES, BATCHES, ROUNDS = (4, 2, 3, 2), ((2,), (1,), (2,), (1,)), (1, 2, 2, 1), 2
SCHEDULE = [
    *("train.schedule=step", "train.warmup=0", "train.lr=0.01", f"train.rounds={ROUNDS}", "train.init=none"),
    *("train.steps=[4,2,3,2]", "train.step_milestones=[[2],[1],[2],[1]]", "train.batches=[1,2,2,1]"),
]


@pytest.fixture(scope="module")
def keeper() -> Keeper:
    return Keeper()


@pytest.fixture(scope="module")
def batches() -> list[int]:
    """Images of each batch."""
    return []


@pytest.fixture(scope="module")
def whole(data: Path, keeper: Keeper, batches: list[int], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two rounds that was not interrupted."""
    step = Trainer.step

    def watched(trainer: Trainer, items: Any, *more: Any) -> Any:
        batches.extend(len(item.index) for item in items)
        return step(trainer, items, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        options: dict[str, Any] = {"model": "tiny-fpn", "device": "cpu", "quiet": True, "recorders": [keeper]}
        return train(data, overrides=[*OVERRIDES, *SCHEDULE], runs=tmp_path_factory.mktemp("whole"), **options)


def test_each_stage_has_its_steps_milestones_and_batch(whole: Run, keeper: Keeper, batches: list[int]) -> None:
    stages = list(zip(STEPS, MILESTONES, BATCHES, strict=True)) * ROUNDS
    expected = [
        (stage, step, pytest.approx(0.01 if step <= milestone else 0.001))
        for stage, (count, (milestone,), _) in enumerate(stages, 1)
        for step in range(1, count + 1)
    ]
    assert [(numbers["stage"], numbers["step"], numbers["lr"]) for numbers in keeper.of("step")] == expected
    assert batches == [batch for count, _, batch in stages for _ in range(count)]
    # Six images: with batch 1 an epoch has six steps, with batch 2 three, and every stage ends in its first epoch.
    assert [(row["epoch"], row["stage"], row["step"]) for row in whole.rows] == [
        (stage, stage, count) for stage, (count, _, _) in enumerate(stages, 1)
    ]
    log = (whole.folder / "log.txt").read_text()
    assert "stage 5 of 8: RPN (round 2)" in log


def test_the_second_round_starts_from_the_weights_of_the_first(whole: Run) -> None:
    stages = stages_of(settings_of("tiny-fpn", ["train.scheme=alternating", "train.rounds=2"]))
    assert [stage.proposals for stage in stages] == [None, 1, None, 3, None, 5, None, 7]
    assert [dict(stage.start) for stage in stages[4:]] == [
        {"backbone": 4, "rpn": 4},
        {"backbone": 4, "fast_rcnn": 4},
        {"backbone": 6},
        {"backbone": 6, "fast_rcnn": 6, "rpn": 7},
    ]
    fourth, fifth = (read_detector(whole.folder / f"stages/{number}/last.safetensors")[0] for number in (4, 5))
    assert not torch.equal(fourth["rpn.head.conv.weight"], fifth["rpn.head.conv.weight"])
    last, seventh = read_detector(whole.last)[0], read_detector(whole.folder / "stages/7/best.safetensors")[0]
    assert all(torch.equal(tensor, last[name]) for name, tensor in seventh.items())


def test_the_report_gives_the_length_in_steps(whole: Run) -> None:
    assert dict(facts(read_subject(whole.folder)))["Epochs"].startswith("8 in 8 stages (4, 2, 3, 2 steps)")


@pytest.mark.parametrize(("stage", "step"), [(0, 2), (6, 1)])
def test_a_run_killed_in_a_stage_resumes_to_the_bit(
    whole: Run, data: Path, tmp_path: Path, stage: int, step: int
) -> None:
    with killed(step + 1, step + 1, stage):
        train(data, overrides=[*OVERRIDES, *SCHEDULE], runs=tmp_path, model="tiny-fpn", device="cpu", quiet=True)
    with pytest.raises(SettingsError, match=r"--epochs 9: .* is a run of \[4, 2, 3, 2\] steps"):
        train(resume=tmp_path / "shapes-1", epochs=9)
    assert_same(train(resume=tmp_path / "shapes-1", quiet=True), whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.steps=9", "train.epochs=2"], r"train\.epochs has no effect with train\.steps=\[9\]"),
        (["train.batches=[2]", "train.batch=2"], r"train\.batch has no effect with train\.batches=\[2\]"),
        (["train.steps=[9,9]"], r"train\.steps has 2 values, and train\.scheme=joint has 1 stage"),
        (["train.batches=[1,2]", "train.scheme=alternating"], r"has 2 values, and train\.scheme=alternating has 4"),
        (["train.rounds=2"], r"train\.rounds=2 repeats the stages of a scheme, and train\.scheme=joint has one"),
        (["train.step_milestones=[5]", "train.schedule=step"], r"step_milestones need train\.steps and"),
        (["train.step_milestones=[5]", "train.steps=9"], r"step_milestones need train\.steps and train\.schedule=step"),
        (["train.step_milestones=[9]", "train.steps=9", "train.schedule=step"], "must ascend and lie below the steps"),
        (
            ["train.step_milestones=[5,3]", "train.steps=9", "train.schedule=step"],
            "must ascend and lie below the steps",
        ),
    ],
)
def test_contradicting_schedules_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        choose_settings("x", overrides=changes)


def test_epochs_are_refused_with_a_preset_in_steps_until_its_steps_are_removed() -> None:
    with pytest.raises(SettingsError, match=r"\(train\.steps=\[\] turns the second off\)"):
        choose_settings("x", model="paper-zf-alternating", options={"epochs": 2})
    changes = ["train.steps=[]", "train.step_milestones=[]"]
    assert choose_settings("x", None, "paper-zf-alternating", changes, {"epochs": 2}).train.epochs == 2


VOC = [(80_000, 60_000, 1), (40_000, 30_000, 2)] * 2
COCO = [(320_000, 240_000, 8), (320_000, 240_000, 16)] * 2


@pytest.mark.parametrize(
    ("preset", "base", "numbers", "lr"),
    [
        ("paper-vgg16-alternating", "paper-vgg16", VOC, 1e-3),
        ("paper-zf-alternating", "paper-zf", VOC, 1e-3),
        ("paper-vgg16-coco", "paper-vgg16", COCO, 3e-3),
    ],
)
def test_the_presets_have_the_papers_schedules(
    preset: str, base: str, numbers: list[tuple[int, int, int]], lr: float
) -> None:
    settings = settings_of(preset)
    assert len(stages_of(settings)) == len(numbers)
    for stage, (steps, milestone, batch) in enumerate(numbers):
        schedule = schedule_of(settings.train, stage)
        assert (schedule.steps, schedule.batch) == ((steps,), batch)
        rates = [learning_rate(step, steps, schedule) for step in (0, milestone - 1, milestone, steps - 1)]
        assert rates == pytest.approx([lr, lr, lr / 10, lr / 10])
    coco = preset.endswith("coco")
    assert settings.anchors.sizes == (((64, 128, 256, 512) if coco else (128, 256, 512)),)
    assert settings.roi.negative_iou == ((0.0, 0.5) if coco else (0.1, 0.5))
    sections = [name for name in Settings.model_fields if name not in ("train", "model", "anchors", "roi")]
    assert all(getattr(settings, name) == getattr(settings_of(base), name) for name in sections)
    assert override(settings, {"model": {"preset": base}}).model == settings_of(base).model


def test_a_warm_up_and_a_cosine_follow_the_steps() -> None:
    train_settings = settings_of("tiny-fpn", ["train.steps=10", "train.warmup=0"]).train
    rates = [learning_rate(step, 10, schedule_of(train_settings, 0)) for step in range(10)]
    assert all(later < earlier for earlier, later in pairwise(rates))
