from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rcnn.config import override, read
from rcnn.data.formats.find import open_dataset, open_splits
from rcnn.data.loading.loader import Loader
from rcnn.data.proposals.external import ImageProposals, ProposalSet
from rcnn.detector import Detector
from rcnn.errors import SettingsError
from rcnn.presets import build, settings_of
from rcnn.training.checkpoint import read_stage
from rcnn.training.configure import choose_settings
from rcnn.training.distributed import seed_generators
from rcnn.training.init import initialise, stage_start
from rcnn.training.proposals import load_proposals, save_proposals, stage_proposals, write_proposals
from rcnn.training.run import Run
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import SCHEMES, stages_of
from rcnn.training.stages import freeze_untrained
from rcnn.training.train import train
from rcnn.training.trainer import Trainer
from rcnn.weights.file import load_weights
from rcnn.weights.metadata import read_detector
from tests.training.pieces import ALONE, OPTIONS, SMALL, Killed, assert_equal, assert_same, killed

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")
OVERRIDES = [
    *(*SMALL, "roi.levels=[2,3,4,5]", "roi.canonical_size=12", "roi.dropout=0.2", "rpn.post_train=60"),
    *("rpn.post_test=40", "augment.crop=0.5", "train.scheme=alternating", "train.ema=null"),
]
STEPS = 3
"""Steps per epoch."""
SHARED, RPN, SECOND = "backbone.", "rpn.", "fast_rcnn."


@pytest.fixture(scope="module")
def starts() -> list[dict[str, Tensor]]:
    """The weights that each stage started from."""
    return []


@pytest.fixture(scope="module")
def whole(data: Path, starts: list[dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was not interrupted."""
    run_stage = Trainer.run_stage

    def watched(trainer: Trainer) -> None:
        starts.append({name: tensor.clone() for name, tensor in trainer.state.model.state_dict().items()})
        run_stage(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run_stage", watched)
        return train(data, overrides=OVERRIDES, runs=tmp_path_factory.mktemp("whole"), **OPTIONS)


def weights(run: Run, stage: int, name: str = "last") -> dict[str, Tensor]:
    folder = run.folder / "weights" if stage == 4 else run.folder / "stages" / str(stage)
    return read_detector(folder / f"{name}.safetensors")[0]


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("stage", "parts", "trained"),
    [
        (1, (SHARED, RPN), (SHARED, RPN)),
        (2, (SHARED, RPN, SECOND), (SHARED, SECOND)),
        (3, (SHARED, RPN), (RPN,)),
        (4, (SHARED, RPN, SECOND), (SECOND,)),
    ],
)
def test_a_stage_changes_only_the_parameters_that_it_trains(
    whole: Run, starts: list[dict[str, Tensor]], stage: int, parts: tuple[str, ...], trained: tuple[str, ...]
) -> None:
    before, after = starts[stage - 1], weights(whole, stage)
    assert before.keys() == after.keys()
    assert {name.split(".")[0] + "." for name in after} == set(parts)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in after if name.startswith(trained)}


def test_each_stage_starts_from_the_right_weights(whole: Run, starts: list[dict[str, Tensor]]) -> None:
    assert_equal(part(starts[2], SHARED), part(weights(whole, 2, "best"), SHARED))
    assert not torch.equal(starts[2]["rpn.head.conv.weight"], weights(whole, 1)["rpn.head.conv.weight"])
    assert starts[2]["rpn.head.conv.weight"].std().item() == pytest.approx(0.01, rel=0.1)
    assert_equal(part(starts[3], SECOND), part(weights(whole, 2, "best"), SECOND))
    assert_equal(part(starts[3], RPN), part(weights(whole, 3, "best"), RPN))
    assert_equal(part(starts[3], SHARED), part(weights(whole, 2, "best"), SHARED))
    settings, names = read(whole.folder / "config.yaml"), whole.detector.names
    seed_generators(settings.train.seed, 1)
    assert_equal(starts[1], initialise(settings, names).model.state_dict())


def test_stage_2_starts_from_the_initial_weights_of_the_run(whole: Run) -> None:
    """In the paper, these are ImageNet's weights again, not those of stage 1."""
    settings = override(read(whole.folder / "config.yaml"), {"train": {"init": str(whole.best)}})
    stage = stages_of(settings)[1]
    start = stage_start(stage, 2, settings, whole.detector.names, RunFolder(whole.folder))
    expected = weights(whole, 4, "best")
    assert all(torch.equal(parameter, expected[name]) for name, parameter in start.model.named_parameters())


@pytest.mark.parametrize("stage", [2, 4])
def test_a_stage_is_trained_on_the_proposals_of_the_previous_one(
    whole: Run, data: Path, tmp_path: Path, stage: int
) -> None:
    settings = read(whole.folder / "config.yaml")
    splits, rpn, file = open_splits(data, settings.data), settings.rpn, tmp_path / "train.safetensors"
    proposer = Detector.load(whole.folder / "stages" / str(stage - 1) / "best.safetensors", "cpu")
    description = stages_of(settings)[stage - 1]
    start = stage_start(description, stage, settings, splits[0].names, RunFolder(whole.folder))
    stored, _ = stage_proposals(description, start, splits, RunFolder(whole.folder), ALONE, print)
    write_proposals(file, proposer, splits[0], ALONE, (rpn.pre_train, rpn.post_train), print)
    expected = ProposalSet(load_proposals(file), rpn.post_train)
    assert stored is not None
    loaders = (Loader(splits[0], settings, training=True, batch=2, seed=0, proposals=p) for p in (stored, expected))
    for item, expected_item in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert torch.equal(item.proposals.boxes, expected_item.proposals.boxes)
        assert item.proposals.valid.any()


@pytest.mark.parametrize(("stage", "score"), [(1, "proposal_ar300"), (2, "ap"), (3, "proposal_ar300"), (4, "ap")])
def test_best_is_the_first_epoch_of_the_highest_recall_or_ap(whole: Run, stage: int, score: str) -> None:
    scores = [row[score] for row in whole.rows if row["stage"] == stage]
    folder = whole.folder / ("weights" if stage == 4 else f"stages/{stage}")
    summary = load_weights(folder / "best.safetensors")[1]["summary"]
    assert summary["epoch"] == 1 + scores.index(max(scores))


def test_the_result_is_one_detector_and_every_stage_is_logged(whole: Run, data: Path) -> None:
    assert [(row["epoch"], row["stage"]) for row in whole.rows] == [(i + 1, 1 + i // 2) for i in range(8)]
    assert [row["ap"] is None for row in whole.rows] == [True, True, False, False] * 2
    assert all(row["proposal_ar300"] is not None for row in whole.rows)
    assert {"train_rpn_box", "val_rpn_box"} <= whole.rows[0].keys()
    assert "train_roi_box" not in whole.rows[0]
    assert "train_rpn_box" not in whole.rows[2]
    log = (whole.folder / "log.txt").read_text()
    assert [f"stage {number} of 4: " in log for number in (1, 2, 3, 4)] == [True] * 4
    assert whole.metrics.ap == max(row["ap"] for row in whole.rows[6:])
    assert whole.detector.settings.roi.head == "fc"
    stages = whole.folder / "stages"
    image = next((data / "images" / "val").iterdir())
    detectors = (Detector.load(path, "cpu") for path in (whole.last, stages / "3" / "best.safetensors"))
    ours, theirs = (detector.propose(str(image))[0].boxes for detector in detectors)
    assert np.array_equal(ours, theirs)
    assert {folder.name: {file.stem for file in folder.iterdir()} for folder in stages.iterdir()} == {
        "1": {"best", "last", "train", "val"},
        "2": {"best", "last"},
        "3": {"best", "last", "train"},  # stage 4 has this RPN to validate with
    }


def test_a_run_killed_in_stages_2_and_3_resumes_to_the_bit(
    whole: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object) -> None:
        raise Killed

    def state() -> tuple[int, str]:
        (path,) = (tmp_path / "shapes-1" / "checkpoints").iterdir()
        return read_stage(path, 4) + 1, path.stem

    with killed(step=5, saved=4, stage=1):
        train(data, overrides=OVERRIDES, runs=tmp_path, **OPTIONS)
    assert state() == (2, "step-4")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "next_stage", end)
        with pytest.raises(Killed):  # between two stages
            train(resume=tmp_path / "shapes-1", quiet=True)
    assert state() == (2, f"step-{2 * STEPS}")
    with killed(step=2, stage=2):  # before it could be saved
        train(resume=tmp_path / "shapes-1", quiet=True)
    assert state() == (3, "step-0")
    with (tmp_path / "shapes-1" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "half": true}\n')
    run = train(resume=tmp_path / "shapes-1", quiet=True)
    assert_same(run, whole)
    for path in (whole.folder / "stages").glob("*/*"):
        assert_equal(load_weights(run.folder / path.relative_to(whole.folder))[0], load_weights(path)[0])


@pytest.mark.parametrize("training", [True, False])
def test_proposals_change_nothing_else_in_a_batch(data: Path, training: bool) -> None:
    """Images, objects and seeds are equal to the bit with and without proposals, in loader processes too."""
    settings = settings_of("tiny-fpn", OVERRIDES)
    dataset = open_dataset(data, "train", settings.data)
    stored = ProposalSet([ImageProposals(record.boxes, np.ones(len(record.boxes))) for record in dataset.records], 9)
    pairs = [
        Loader(dataset, settings, training=training, batch=4, seed=3, workers=workers, proposals=proposals).epoch(1)
        for workers, proposals in ((0, None), (0, stored), (2, stored))
    ]
    for without, own, theirs in zip(*pairs, strict=True):
        assert without.proposals is None
        for item in (own, theirs):
            assert all(torch.equal(a, b) for a, b in zip(without.batch, item.batch, strict=True))
            assert all(torch.equal(a, b) for a, b in zip(without.targets, item.targets, strict=True))
            assert torch.equal(without.seeds, item.seeds)
            assert all(torch.equal(a, b) for a, b in zip(own.proposals, item.proposals, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_stored_proposals_lie_where_the_images_objects_lie(data: Path, tmp_path: Path, training: bool) -> None:
    """If the objects are the proposals, the batches hold the same boxes for both."""
    settings = override(settings_of("tiny-fpn", OVERRIDES), {"augment": {"vertical_flip": 0.5, "transpose": 0.5}})
    dataset = open_dataset(data, "train", settings.data)
    objects = [ImageProposals(record.boxes, np.linspace(1, 0.5, len(record.boxes))) for record in dataset.records]
    save_proposals(tmp_path / "train.safetensors", objects)
    stored = ProposalSet(load_proposals(tmp_path / "train.safetensors"), 9)
    loader = Loader(dataset, settings, training=training, batch=4, seed=3, proposals=stored)  # the last is filled up
    seen = 0
    for item in loader.epoch(2):
        found = item.proposals
        assert found is not None
        assert found.boxes.shape == (4, 9, 4)
        for row in range(4):
            expected = item.targets.boxes[row][item.targets.valid[row]].float()
            torch.testing.assert_close(found.boxes[row][found.valid[row]], expected, rtol=1e-5, atol=1e-4)
            seen += len(expected)
    assert seen > 8


def test_stored_proposals_are_scaled_to_the_images_of_validation(data: Path) -> None:
    """A loader may show the images at another scale than the settings', as a pyramid does."""
    settings = settings_of("tiny-fpn", OVERRIDES)
    dataset = open_dataset(data, "val", settings.data)
    objects = [ImageProposals(record.boxes, np.ones(len(record.boxes))) for record in dataset.records]
    smaller = override(settings, {"preprocess": {"short": 32}})
    (item,) = Loader(dataset, smaller, training=False, batch=2, seed=0, proposals=ProposalSet(objects, 9)).epoch(0)
    found = item.proposals
    assert found is not None
    for row in range(2):
        torch.testing.assert_close(
            found.boxes[row][found.valid[row]], item.targets.boxes[row][item.targets.valid[row]].float()
        )


def test_the_first_proposals_are_taken_if_there_are_too_many(data: Path) -> None:
    settings = settings_of("tiny-fpn", OVERRIDES)
    dataset = open_dataset(data, "val", settings.data)
    boxes = np.concatenate((np.zeros((14, 2)), 10 + np.random.default_rng(0).random((14, 2))), axis=1)
    scores = np.linspace(1, 0.5, 14)
    stored = ProposalSet([ImageProposals(boxes[:12], scores[:12]), ImageProposals(boxes[12:], scores[12:])], 5)
    (item,) = Loader(dataset, settings, training=False, batch=2, seed=0, proposals=stored).epoch(0)
    found = item.proposals
    assert found is not None
    assert found.valid.sum(dim=1).tolist() == [5, 2]
    torch.testing.assert_close(found.boxes[0], torch.from_numpy(boxes[:5]).float())
    torch.testing.assert_close(found.scores[1, :2], torch.from_numpy(scores[12:]).float())


def test_a_scheme_of_two_stages_needs_a_second_stage() -> None:
    with pytest.raises(SettingsError, match=r"train\.scheme=alternating needs a second stage"):
        choose_settings("x", None, "tiny-fpn", ["train.scheme=alternating", "roi.head=none"], {})


@pytest.mark.parametrize(("levels", "scheme"), [("[3]", "fast-rcnn"), ("[2,3,4,5]", "fast-rcnn"), ("[3]", "joint")])
def test_only_levels_that_the_loss_reads_are_trained(levels: str, scheme: str) -> None:
    overrides = ["roi.hidden=8", "roi.canonical_level=3", f"roi.levels={levels}"]
    model = build(settings_of("tiny-fpn", overrides), 3)
    freeze_untrained(model, SCHEMES[scheme][0])
    fixed = {name for name, parameter in model.backbone.named_parameters() if not parameter.requires_grad}
    layers = {name.removeprefix("neck.").rpartition(".")[0] for name in fixed}
    unread = {"lateral.p2", "output.p2", "output.p4", "output.p5"}  # p4 and p5 reach p3 through their laterals
    assert layers == (unread if (levels, scheme) == ("[3]", "fast-rcnn") else set())
