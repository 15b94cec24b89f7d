"""Every row's training and test as docs/paper.md has them, and the orderings of the paper's numbers by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

import rcnn.paper.measure as measure_file
import rcnn.paper.proposals as proposals_file
import rcnn.paper.recall as recall_file
import rcnn.paper.schemes as schemes_file
import rcnn.paper.timing as timing_file
import rcnn.paper.workspace as workspace_file
from rcnn.config import Settings, override
from rcnn.errors import SettingsError
from rcnn.paper.by_name import EXPERIMENTS
from rcnn.paper.measure import Change, RPNProposals
from rcnn.paper.proposals import without_boxes, without_scores
from rcnn.paper.results import NumbersBySeed, judge_all
from rcnn.paper.workspace import Training, Workspace
from rcnn.presets import settings_of
from rcnn.training.configure import choose_settings
from rcnn.training.run_folder import RunFolder
from tests.paper.conftest import SMALL
from tests.paper.test_execute import random_proposals


class Loaded(NamedTuple):
    """A detector: its weights, and its settings in test."""

    weights: str
    settings: Settings

    def with_settings(self, changes: dict[str, Any]) -> "Loaded":
        return Loaded(self.weights, override(self.settings, changes))


Scored = tuple[Loaded, RPNProposals | tuple[str, int] | None]
"""A detector, and the proposals that it is scored on; None: its own."""


class Bench(Workspace):
    """A workspace that trains nothing, and notes the settings of the trainings."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        super().__init__(settings, folder, "val", print)
        self.known: dict[str, Settings] = {}

    def train(self, training: Training, seed: int) -> RunFolder:
        name = f"{training.name}-{seed}"
        self.known[name] = self.settings_of(training, seed)
        return RunFolder(name)

    def load(self, training: Training, seed: int) -> Any:
        weights: Any = super().load(training, seed)  # a path, see `scored`
        return Loaded(weights.as_posix(), self.known[f"{training.name}-{seed}"])


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[Scored]:
    """The detectors and proposals that are scored, in order; their scores are made up."""
    tested: list[Scored] = []

    def scores(detector: Loaded, dataset: Any, proposals: Any = None) -> dict[str, float]:
        tested.append((detector, proposals))
        return {"map50": 50.0}

    batch = SimpleNamespace(index=torch.zeros(0), batch=None)
    for file in (measure_file, schemes_file):
        monkeypatch.setattr(file, "scores", scores)
    monkeypatch.setattr(measure_file, "open_proposals", lambda source, *_: source)
    monkeypatch.setattr(measure_file, "ProposalSet", lambda source, count: (source, count))
    monkeypatch.setattr(measure_file, "SlidingWindows", SimpleNamespace(of=lambda model: ("windows", 1)))
    monkeypatch.setattr(recall_file, "Loader", lambda *_, **__: SimpleNamespace(epoch=lambda number: [batch]))
    monkeypatch.setattr(recall_file, "numbers", lambda workspace, proposals: {"ar300": 50.0})
    monkeypatch.setattr(schemes_file, "minutes_of", lambda run: 12.0)
    monkeypatch.setattr(workspace_file, "kept", lambda folder: folder)
    monkeypatch.setattr(workspace_file, "Detector", SimpleNamespace(load=lambda weights, device: weights))
    monkeypatch.setattr(Loaded, "model", None, raising=False)
    monkeypatch.setattr(
        Loaded, "region_proposals", lambda *loaded: tested.append((loaded[0], None)) or [], raising=False
    )
    monkeypatch.setattr(Workspace, "dataset", ())
    return tested


EDGES = "data.edge_model=model.yml.gz"
"""The setting of the model file of EdgeBoxes."""


class Row(NamedTuple):
    """How a row is made.

    Attributes:
        paper: its mAP in the paper; None: it has none.
        weights: of seed 1.
        trained: settings of the training that differ from the preset.
        changes: of settings in test.
        of: external proposals: the weights of an RPN and the part that is removed from it, or a source and a number.
        rpn: settings of that RPN's training.
    """

    paper: float | None
    weights: str
    trained: str
    changes: str = ""
    of: tuple[str, Any] | None = None
    rpn: str = "train.scheme=alternating"


def on_rpn(paper: float, changes: str, left_out: Change | None = None) -> Row:
    """Return a row that is trained on Selective Search and tested on the proposals of stage 1."""
    return Row(paper, "fast-rcnn-1/weights", FAST, changes, ("alternating-1/stages/1", left_out))


FAST = "train.scheme=fast-rcnn train.proposals=selective-search rpn.post_train=2000 rpn.post_test=2000"
ALTERNATING = "train.scheme=alternating"
JOINT = "train.scheme=joint"
ALIGN = "roi.pool=align roi.sampling_ratio=2"
FIVE = f"predict.scales=[0.8,{576 / 600},{688 / 600},{864 / 600},2]"
UNRANKED = "rpn.nms=1 rpn.pre_test=1000000"
VGG = f"{JOINT} roi.head=none model.backbone=vgg16 model.frozen_stages=2"

PROPOSALS = {
    "SS -> SS 2000": Row(58.7, "fast-rcnn-1/weights", FAST, of=("selective-search", 2000)),
    "EB -> EB 2000": Row(
        58.6,
        "edge-boxes-1/weights",
        f"{FAST.replace('selective-search', 'edge-boxes')} {EDGES}",
        of=("edge-boxes", 2000),
    ),
    "RPN shared -> RPN 300": Row(59.9, "alternating-1/weights", ALTERNATING, "rpn.post_test=300"),
    "RPN unshared -> RPN 300": Row(
        58.7, "alternating-1/stages/2", ALTERNATING, "rpn.post_test=300", ("alternating-1/stages/1", None)
    ),
    "SS -> RPN 100": on_rpn(55.1, "rpn.post_test=100"),
    "SS -> RPN 300": on_rpn(56.8, "rpn.post_test=300"),
    "SS -> RPN 1000": on_rpn(56.3, "rpn.post_test=1000"),
    "SS -> RPN 6000, no NMS": on_rpn(55.2, "rpn.post_test=6000 rpn.nms=1"),
    "SS -> RPN 100, no cls": on_rpn(44.6, f"rpn.post_test=100 {UNRANKED}", without_scores),
    "SS -> RPN 300, no cls": on_rpn(51.4, f"rpn.post_test=300 {UNRANKED}", without_scores),
    "SS -> RPN 1000, no cls": on_rpn(55.8, f"rpn.post_test=1000 {UNRANKED}", without_scores),
    "SS -> RPN 300, no reg": on_rpn(52.1, "rpn.post_test=300", without_boxes),
    "SS -> RPN 1000, no reg": on_rpn(51.3, "rpn.post_test=1000", without_boxes),
    "SS -> RPN+VGG 300": Row(
        59.2, "fast-rcnn-1/weights", FAST, "rpn.post_test=300", ("rpn-vgg16-1/weights", None), VGG
    ),
}
ANCHORS = {
    "1 scale, 1 ratio: small": Row(65.8, "anchors-0-1x1-1/weights", "anchors.sizes=[[128]] anchors.ratios=[1]"),
    "1 scale, 1 ratio: medium": Row(66.7, "anchors-1-2x1-1/weights", "anchors.sizes=[[256]] anchors.ratios=[1]"),
    "1 scale, 3 ratios: small": Row(68.8, "anchors-0-1x3-1/weights", "anchors.sizes=[[128]]"),
    "1 scale, 3 ratios: medium": Row(67.9, "anchors-1-2x3-1/weights", "anchors.sizes=[[256]]"),
    "3 scales, 1 ratio": Row(69.8, "anchors-0-3x1-1/weights", "anchors.ratios=[1]"),
    "3 scales, 3 ratios": Row(69.9, "anchors-0-3x3-1/weights", ""),
}
LAMBDA = {
    text: Row(paper, f"lambda-{text}-1/weights", f"rpn.normaliser=paper rpn.lambda={text}")
    for text, paper in {"0.1": 67.2, "1": 68.9, "10": 69.9, "100": 69.1}.items()
}
TOP_N = {
    f"{count} proposals": Row(paper, "joint-1/weights", JOINT, f"rpn.post_test={count}")
    for count, paper in ((50, 66.3), (100, 68.9), (150, 69.5), (200, 69.8), (300, 69.9), (500, 69.8), (1000, 69.8))
}
RECALL = {"SS": None, "RPN": Row(None, "rpn-1/weights", f"{JOINT} roi.head=none", "rpn.post_test=2000")}


DENSE = "train.scheme=fast-rcnn train.proposals=sliding-windows"
ONE_STAGE = {
    "two stages (unshared)": PROPOSALS["RPN unshared -> RPN 300"],
    "one stage, 1 scale": Row(53.8, "sliding-windows-1/weights", DENSE, of=("windows", 1)),
    "one stage, 5 scales": Row(53.9, "sliding-windows-1/weights", DENSE, FIVE, of=("windows", 1)),
}


def schemes(roi: str) -> dict[str, Row]:
    full = f"train.scheme=joint-full {roi}"
    return {
        "joint": Row(None, "joint-1/weights", f"{JOINT} {roi}"),
        "joint-full": Row(None, "joint-full-1/weights", full),
        "joint-full, targets too": Row(None, "joint-full-targets-1/weights", f"{full} train.target_gradient=true"),
        "alternating": Row(None, "alternating-1/weights", f"{ALTERNATING} {roi}"),
    }


TABLES: list[tuple[str, str, dict[str, Any]]] = [
    ("proposals", "mobilenet-fpn", PROPOSALS),
    ("proposals", "paper-zf", PROPOSALS),
    ("top-n", "paper-zf", TOP_N),
    ("top-n", "mobilenet-fpn", TOP_N),
    ("anchors", "paper-zf", ANCHORS),
    ("lambda", "paper-zf", LAMBDA),
    ("lambda", "mobilenet-fpn", LAMBDA),
    ("one-stage", "paper-zf", ONE_STAGE),
    ("one-stage", "mobilenet-fpn", ONE_STAGE),
    ("recall", "mobilenet-fpn", RECALL),
    ("schemes", "paper-zf", schemes(ALIGN)),
    ("schemes", "mobilenet-fpn", schemes("")),
]


READERS = {"SS -> SS 2000": "selective-search", "SS": "selective-search", "EB -> EB 2000": "edge-boxes"}
"""Row -> where it reads proposals of the scored images."""


@pytest.mark.parametrize(("name", "preset", "rows"), TABLES, ids=[f"{name}-{preset}" for name, preset, _ in TABLES])
def test_a_row_is_trained_and_tested_as_the_page_describes(
    name: str,
    preset: str,
    rows: dict[str, Row | None],
    scored: list[Scored],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.yml.gz").touch()
    base = settings_of(preset, ["train.seed=1"])
    experiment = EXPERIMENTS[name](override(base, [EDGES]))
    assert experiment.rows == tuple(rows)
    assert not experiment.omitted
    assert experiment.paper == {row: {"map50": made.paper} for row, made in rows.items() if made and made.paper}
    for run in experiment.measurements:
        (row,), bench = run.rows, Bench(override(base, [EDGES]), tmp_path)
        assert run.proposals == READERS.get(row)
        if (made := rows[row]) is None:
            continue
        numbers = run.measure(bench, 1)
        assert numbers[row].get("minutes") == (12.0 if name == "schemes" else None)
        assert set(bench.known) == {f"{training.name}-1" for training in run.needs}, (
            "--budget needs to know the trainings"
        )
        settings = override(base, f"{made.trained} {made.changes}".split())
        proposals: Any = made.of
        if made.of is not None and not isinstance(made.of[1], int):
            rpn: Any = Loaded(made.of[0], override(base, f"{made.rpn} {made.changes}".split()))
            proposals = RPNProposals(rpn, made.of[1])
        assert scored.pop() == (Loaded(made.weights, settings), proposals), row


def test_without_the_model_file_only_the_row_of_edge_boxes_is_omitted() -> None:
    experiment = EXPERIMENTS["proposals"](settings_of("paper-zf"))
    assert experiment.rows == tuple(PROPOSALS)
    assert experiment.omitted == {"EB -> EB 2000": "needs OpenCV's model file: data.edge_model=PATH"}
    assert [training.name for training in experiment.trainings] == ["fast-rcnn", "alternating", "rpn-vgg16"]
    with pytest.raises(SettingsError, match="there is no such file"):
        EXPERIMENTS["proposals"](settings_of("paper-zf", ["data.edge_model=nowhere.yml.gz"]))


def test_the_rpn_alone_has_no_setting_of_a_second_stage(tmp_path: Path) -> None:
    bench = Bench(settings_of("paper-zf", ["val.voc_ap=11-point", "predict.svd=[1024,256]"]), tmp_path)
    settings = bench.settings_of(proposals_file.vgg_rpn(bench.settings), 0)
    assert (settings.roi.head, settings.val.voc_ap, settings.predict.svd) == ("none", "area", ())


@pytest.mark.parametrize("init", ["none", "imagenet", "start.pth", "blood-cells"])
def test_vgg_never_starts_from_weights_of_another_backbone(init: str, tmp_path: Path) -> None:
    bench = Bench(settings_of("mobilenet-fpn", [f"train.init={init}"]), tmp_path)
    assert bench.settings_of(proposals_file.vgg_rpn(bench.settings), 0).train.init == (
        "none" if init == "none" else "imagenet"
    )


def test_a_model_file_changes_no_training_but_that_on_edge_boxes(tmp_path: Path) -> None:
    """So that it may be given later without training other rows again."""
    bench = Bench(settings_of("paper-zf", [EDGES]), tmp_path)
    bare = Bench(settings_of("paper-zf"), tmp_path)
    for training in EXPERIMENTS["proposals"](override(bench.settings, ["data.edge_model=null"])).trainings:
        assert bench.settings_of(training, 0) == bare.settings_of(training, 0)
    edges = proposals_file.fast_rcnn("edge-boxes", "edge-boxes")
    assert bench.settings_of(edges, 0) != bare.settings_of(edges, 0)


def test_a_setting_replaces_selective_search(scored: list[Scored], tmp_path: Path) -> None:
    base = settings_of("mobilenet-fpn", ["train.proposals=selective-search-quality"])
    bench = Bench(base, tmp_path)
    (run, *_) = EXPERIMENTS["proposals"](base).measurements
    run.measure(bench, 0)
    assert scored.pop()[1] == ("selective-search-quality", 2000)
    assert bench.known["fast-rcnn-0"].train.proposals == "selective-search-quality"


# --- orderings -------------------------------------------------------------------------------------------------------

UNKNOWN = math.nan
ORDERINGS = {
    "mean-proposals": {
        "side: 256, 1:1 >= 128, 1:1": math.sqrt(261 * 284) - math.sqrt(113 * 114),
        "side: 512, 1:1 >= 256, 1:1": math.sqrt(499 * 501) - math.sqrt(261 * 284),
        "width / height: 128, 2:1 >= 128, 1:2": 188 / 111 - 70 / 92,
        "width / height: 256, 2:1 >= 256, 1:2": 416 / 229 - 174 / 332,
        "width / height: 512, 2:1 >= 512, 1:2": 768 / 437 - 355 / 715,
        "the widest exceed the receptive field, 171 px": 768 - 171,
    },
    "per-class": {},
    "proposals": {
        "shared >= unshared features": 59.9 - 58.7,
        "RPN 300 (shared) >= SS 2000": 59.9 - 58.7,
        "RPN 300 (shared) >= EB 2000": 59.9 - 58.6,
        "tested on RPN: 300 >= 100": 56.8 - 55.1,
        "NMS does no harm: 300 >= 6000": 56.8 - 55.2,
        "scores rank: 300 >= 300, no cls": 56.8 - 51.4,
        "boxes fit: 300 >= 300, no reg": 56.8 - 52.1,
        "a better RPN: RPN+VGG 300 >= RPN 300": 59.2 - 56.8,
    },
    "top-n": {
        "300 >= 50": 69.9 - 66.3,
        "100 within 1.5 of 300": 68.9 - 69.9,
        "1000 within 1.5 of 300": 69.8 - 69.9,
    },
    "anchors": {
        "3 scales, 3 ratios >= 1 scale, 1 ratio: small": 69.9 - 65.8,
        "3 scales, 3 ratios >= 1 scale, 1 ratio: medium": 69.9 - 66.7,
    },
    "lambda": {"lambda 1 within 1.5 of lambda 10": 69.9 - 68.9, "lambda 100 within 1.5 of lambda 10": 69.9 - 69.1},
    "one-stage": {"two stages > one stage, 1 scale": 58.7 - 53.8, "two stages > one stage, 5 scales": 58.7 - 53.9},
    "recall": {"RPN loses less than SS, 1000 -> 300": UNKNOWN, "RPN loses less than SS, 2000 -> 300": UNKNOWN},
    "time": {"RPN proposals faster than SS fast": 1510.0 - 3, "with them all of an image faster": 1830.0 - 59},
    "schemes": {
        "joint within 1 of alternating, mAP50": UNKNOWN,
        "joint saves time, % of alternating's": UNKNOWN,
        "joint-full >= joint, AP (not in paper)": UNKNOWN,
        "joint-full >= joint, AR300 (not in paper)": UNKNOWN,
        "joint-full, targets too >= joint, AP (not in paper)": UNKNOWN,
        "joint-full, targets too >= joint-full, AP (not in paper)": UNKNOWN,
    },
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_differences_of_the_papers_numbers(name: str) -> None:
    judged = judge_all(EXPERIMENTS[name](settings_of("paper-zf")), {}, [])
    assert {one.claim.text: one.paper for one in judged} == pytest.approx(ORDERINGS[name], nan_ok=True)
    within = {"lambda 1 ": 1.5, "lambda 100 ": 1.5, "100 within ": 1.5, "1000 within ": 1.5, "joint within 1 ": 1.0}
    assert [one.claim.slack for one in judged] == [
        next((slack for start, slack in within.items() if one.claim.text.startswith(start)), None) for one in judged
    ]


@pytest.mark.parametrize(
    ("name", "rows", "differences"),
    [
        (
            "recall",
            {
                "SS": {"ar300": 30.0, "ar1000": 45.0, "ar2000": 50.0},  # loses 15 and 20
                "RPN": {"ar300": 50.0, "ar1000": 54.0, "ar2000": 60.0},  # loses 4 and 10
            },
            [11.0, 10.0],
        ),
        (
            "schemes",
            {
                "joint": {"map50": 70.0, "ap": 40.0, "ar300": 60.0, "minutes": 6.0},
                "joint-full": {"map50": 10.0, "ap": 43.0, "ar300": 58.0, "minutes": 7.0},
                "joint-full, targets too": {"map50": 15.0, "ap": 47.0, "ar300": 50.0, "minutes": 7.5},
                "alternating": {"map50": 69.5, "ap": 20.0, "ar300": 20.0, "minutes": 10.0},
            },
            [0.5, 40.0, 3.0, -2.0, 7.0, 4.0],
        ),
    ],
)
def test_differences_that_the_paper_has_no_numbers_for(
    name: str, rows: dict[str, dict[str, float]], differences: list[float]
) -> None:
    scores: NumbersBySeed = {row: {0: numbers} for row, numbers in rows.items()}
    judged = judge_all(EXPERIMENTS[name](settings_of("paper-zf")), scores, [0])
    assert [one.difference for one in judged] == pytest.approx(differences)


# --- time ------------------------------------------------------------------------------------------------------------


def test_times_are_medians_of_the_parts(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four images, after one for the warm-up; the clock advances in the timed parts only."""
    now = [0.0]
    conv = iter([900, 10, 70, 20, 30])

    def takes(work: Callable[..., Any], milliseconds: Callable[..., float]) -> Callable[..., Any]:
        def slow(*words: Any) -> Any:
            now[0] += milliseconds(*words) / 1000
            return work(*words)

        return slow

    def make(settings: Settings, classes: int) -> Any:
        model = build(settings, classes)
        model.backbone.forward = takes(model.backbone.forward, lambda images: next(conv))
        return model

    build, second = timing_file.build, timing_file._detect
    monkeypatch.setattr(timing_file, "build", make)
    monkeypatch.setattr(timing_file, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(timing_file, "_propose", takes(timing_file._propose, lambda *_: 4))
    monkeypatch.setattr(timing_file, "_detect", takes(second, lambda *words: words[3].boxes.shape[1] / 20))
    searched = takes(random_proposals, lambda image, mode, count: {"fast": 1000, "quality": 3000}[mode])
    monkeypatch.setattr(timing_file, "selective_search", searched)

    settings = choose_settings(shapes, None, "tiny-fpn", SMALL, {})
    (run,) = EXPERIMENTS["time"](settings).measurements
    times = run.measure(Workspace(settings, tmp_path, "train", print), 0)
    assert times == {
        "SS fast": pytest.approx({"conv": 25, "proposals": 1000, "regions": 100, "total": 1125, "ratio": 250}),
        "SS quality": pytest.approx({"conv": 25, "proposals": 3000, "regions": 100, "total": 3125, "ratio": 750}),
        "RPN": pytest.approx({"conv": 25, "proposals": 4, "regions": 2, "total": 31, "ratio": 1}),
    }
