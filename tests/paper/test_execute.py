"""Experiments from end to end on four pictures, one epoch each: rows, resumption, budget, failures."""

import csv
import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

import rcnn
import rcnn.paper.budget as budget_file
import rcnn.paper.measure as measure_file
import rcnn.paper.recall as recall_file
import rcnn.paper.timing as timing_file
import rcnn.paper.workspace as workspace_file
import rcnn.training.train as train_file
from rcnn.cli import paper as command
from rcnn.cli.app import main
from rcnn.config import Settings, override
from rcnn.data.proposals.external import ImageProposals
from rcnn.errors import Interrupted, SettingsError, TrainingError
from rcnn.evaluate import Shard, loaders_of
from rcnn.paper.budget import cut_epochs, fitting
from rcnn.paper.by_name import EXPERIMENTS
from rcnn.paper.execute import execute
from rcnn.paper.figures import plot
from rcnn.paper.quoted import VOC_CLASSES
from rcnn.paper.results import ExperimentResult, write_markdown, write_report_part
from rcnn.paper.workspace import Workspace
from rcnn.presets import settings_of
from rcnn.training.configure import choose_settings
from tests.data.proposals.edges import write_edge_model
from tests.paper.conftest import SMALL

SCALES = ("1 scale", "5 scales")


def random_proposals(image: np.ndarray, mode: str = "fast", count: int = 50) -> ImageProposals:
    """Return random boxes in place of a search."""
    corners = np.random.default_rng(0).random((count, 2, 2)) * image.shape[1::-1]
    return ImageProposals(
        np.concatenate((corners.min(1), corners.max(1) + 1), axis=1).clip(0, 64), np.linspace(1, 0, count)
    )


@pytest.fixture
def settings(shapes: Path) -> Settings:
    return choose_settings(shapes, None, "tiny-fpn", SMALL, {})


@pytest.fixture
def boxes(shapes: Path, tmp_path: Path) -> Path:
    """Proposals of all images in a file."""
    picture = np.zeros((64, 96, 3), np.uint8)
    boxes_by_name = {path.name: random_proposals(picture).boxes.tolist() for path in (shapes / "images").rglob("*.jpg")}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes_by_name))
    return tmp_path / "boxes.json"


@pytest.fixture
def on_boxes(settings: Settings, boxes: Path) -> Settings:
    """Settings with these proposals in place of Selective Search."""
    return override(settings, {"train": {"proposals": str(boxes)}})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the trainings that are run, in order."""
    names: list[str] = []
    train = workspace_file.train

    def watched(*arguments: Any, **options: Any) -> Any:
        folder = options["resume"].name if "resume" in options else f"{options['name']}-1"
        names.append(folder.rsplit("-", 2)[0])
        return train(*arguments, **options)

    monkeypatch.setattr(workspace_file, "train", watched)
    return names


@pytest.mark.parametrize("name", ["recall", "time", "mean-proposals"])
def test_eleven_points_are_refused_where_no_ap_is_measured(name: str, settings: Settings, tmp_path: Path) -> None:
    eleven = override(settings, ["val.voc_ap=11-point"])
    with pytest.raises(SettingsError, match=f"`{name}` measures no AP"):
        quietly(name, eleven, tmp_path / "paper")
    assert not (tmp_path / "paper").exists()


@pytest.mark.parametrize("name", ["proposals", "anchors", "lambda", "one-stage", "schemes"])
def test_the_heading_names_the_rule_of_eleven_points(name: str, settings: Settings) -> None:
    headings = [column.heading for column in EXPERIMENTS[name](settings).eleven_point().columns]
    assert headings.count("mAP50 %, 11-point") == 1
    assert "mAP50 %" not in headings


def quietly(name: str, settings: Settings, folder: Path, **options: Any) -> ExperimentResult:
    return execute(name, settings, folder, **{"say": lambda text: None, "quiet": True, **options})


def page_of(result: ExperimentResult, folder: Path) -> str:
    """Write the page and the picture of a result; return the page."""
    write_markdown(result, folder)
    plot(result, folder / f"{result.name}.png")
    return (folder / f"{result.name}.md").read_text()


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def check(result: ExperimentResult, folder: Path) -> None:
    """Check that rows have finite numbers, orderings have verdicts, and the page and the picture are complete."""
    for row in result.experiment.rows:
        for numbers in result.scores[row].values():
            assert all(math.isfinite(numbers[column.key]) for column in result.experiment.columns), row
    assert result.experiment.claims
    assert {judged.verdict for judged in result.judgements} == {"one run"}
    page = page_of(result, folder)
    assert all(f"| {row} |" in page for row in result.experiment.rows)
    assert (folder / f"{result.name}.png").stat().st_size > 10_000
    assert len(table(folder / f"{result.name}.csv")) == len(result.experiment.rows)


@pytest.mark.parametrize(
    ("name", "trainings"),
    [
        ("anchors", ["0-1x1", "1-2x1", "0-1x3", "1-2x3", "0-3x1", "0-3x3"]),
        ("lambda", ["0.1", "1", "10", "100"]),
    ],
)
def test_a_finished_experiment_is_not_trained_again(
    name: str, trainings: list[str], settings: Settings, trained: list[str], tmp_path: Path
) -> None:
    result = quietly(name, settings, tmp_path)
    check(result, tmp_path)
    assert trained == [f"{name}-{which}-0" for which in trainings]
    again = quietly(name, settings, tmp_path)
    assert len(trained) == len(trainings)
    assert again.scores == result.scores


def test_experiments_share_trainings_of_equal_settings(settings: Settings, trained: list[str], tmp_path: Path) -> None:
    for name in ("schemes", "one-stage", "top-n"):
        check(quietly(name, settings, tmp_path), tmp_path)
    assert trained == ["joint-0", "joint-full-0", "joint-full-targets-0", "alternating-0", "sliding-windows-0"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file for EdgeBoxes, whose boxes are cached in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_edge_model(tmp_path / "model.yml")


@pytest.mark.slow
def test_table_2_trains_four_models_for_its_fourteen_rows(
    on_boxes: Settings, model: Path, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    evaluate = measure_file.evaluate

    def watched(detector: Any, dataset: Any, *, loaders: Any = None, proposals: Any = None, **options: Any) -> Any:
        (source,) = loaders or loaders_of(detector, dataset, 8, Shard(), proposals)
        counts.extend(item.proposals.boxes.shape[1] for item in source.epoch(0) if item.proposals is not None)
        return evaluate(detector, dataset, loaders=loaders, proposals=proposals, **options)

    monkeypatch.setattr(measure_file, "evaluate", watched)
    result = quietly("proposals", override(on_boxes, {"data": {"edge_model": str(model)}}), tmp_path)
    check(result, tmp_path)
    assert trained == ["fast-rcnn-0", "edge-boxes-0", "alternating-0", "rpn-vgg16-0"]
    assert len(result.experiment.rows) == 14
    assert counts == [2000, 2000, 300, 100, 300, 1000, 6000, 100, 300, 1000, 300, 1000, 300]
    (vgg,) = (tmp_path / "runs").glob("rpn-vgg16-*/")
    assert "backbone: vgg16" in (vgg / "config.yaml").read_text()


def test_a_row_that_is_not_measured_shows_the_reason_and_may_be_measured_later(
    on_boxes: Settings, model: Path, trained: list[str], tmp_path: Path
) -> None:
    messages: list[str] = []
    result = quietly("proposals", on_boxes, tmp_path, leave_out=["SS ->"], say=messages.append)
    assert trained == ["alternating-0"]
    assert not result.failures
    assert set(result.scores) == {"RPN shared -> RPN 300", "RPN unshared -> RPN 300"}
    needs, page = "needs OpenCV's model file: data.edge_model=PATH", page_of(result, tmp_path)
    assert f"| EB -> EB 2000 | 0 | {needs} | 58.6 | - | - |" in page
    assert "| SS -> RPN+VGG 300 | 0 | left out | 59.2 | - | - |" in page
    assert f"not measured: EB -> EB 2000: {needs}" in messages
    assert command.document(result)["not_measured"]["EB -> EB 2000"] == needs
    verdicts = {judged.claim.text: judged.verdict for judged in result.judgements}
    assert verdicts["RPN 300 (shared) >= EB 2000"] == "not measured"

    with_model = override(on_boxes, {"data": {"edge_model": str(model)}})
    result = quietly("proposals", with_model, tmp_path, leave_out=["SS ->"])
    assert trained == ["alternating-0", "edge-boxes-0"]
    assert result.scores["EB -> EB 2000"][0]["map50"] >= 0


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("proposals", ["SS -> SS", "VGG16"], r"--leave-out VGG16: no row .* the rows are .*; SS -> RPN\+VGG 300"),
        ("time", ["SS quality"], "no row that is measured on its own"),
        ("one-stage", ["two", "one"], "--leave-out two one: no row would be left"),
    ],
)
def test_leave_out_must_match_some_rows_but_not_all(
    name: str, parts: list[str], message: str, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        quietly(name, settings, tmp_path, leave_out=parts)


def test_figure_4_measures_selective_search_once(
    on_boxes: Settings, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read = recall_file.open_proposals
    monkeypatch.setattr(recall_file, "open_proposals", lambda *words: opened.append(words[0]) or read(*words))
    result = quietly("recall", on_boxes, tmp_path, seeds=(0, 1))
    assert (len(opened), trained) == (1, ["rpn-0", "rpn-1"])
    assert [list(result.scores[row]) for row in ("SS", "RPN")] == [[None], [0, 1]]
    for row in ("SS", "RPN"):
        (numbers, *_) = result.scores[row].values()
        curve = [numbers[f"recall300@{iou / 100:.2f}"] for iou in range(50, 100, 5)]
        assert np.mean(curve) == pytest.approx(numbers["ar300"])
        assert curve == sorted(curve, reverse=True)
        assert numbers["ar300"] <= numbers["ar1000"] <= numbers["ar2000"]
    assert {judged.runs for judged in result.judgements} == {2}


def test_table_1_measures_the_rpn_of_figure_4(on_boxes: Settings, trained: list[str], tmp_path: Path) -> None:
    small = {"sizes": [[8], [12], [16], [24]]}  # the larger ones of the preset leave hardly a box after NMS
    settings = override(on_boxes, {"roi": {"head": "none"}, "anchors": small})
    quietly("recall", settings, tmp_path)
    result = quietly("mean-proposals", settings, tmp_path)
    check(result, tmp_path)
    assert trained == ["rpn-0"]
    assert result.experiment.rows[:3] == ("8, 2:1", "8, 1:1", "8, 1:2")
    numbers = [by_seed[0] for by_seed in result.scores.values()]
    assert sum(row["share"] for row in numbers) == pytest.approx(100)
    assert all(0 < row["width"] <= 96 and 0 < row["height"] <= 64 for row in numbers)


@pytest.mark.parametrize(("rule", "key"), [("area", "voc"), ("11-point", "voc07")])
def test_table_6_has_the_aps_that_val_prints(
    rule: str, key: str, settings: Settings, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = quietly("per-class", override(settings, [f"val.voc_ap={rule}"]), tmp_path)
    assert trained == ["alternating-0"]
    (folder,) = (tmp_path / "runs").glob("alternating-0-*/")
    metrics = rcnn.val(folder, str(settings.data.path), losses=False)
    assert result.experiment.rows == (*metrics.names, "all classes")
    assert not result.experiment.paper
    assert "others" in result.experiment.source
    measured = {row: by_seed[0].get(key) for row, by_seed in result.scores.items()}
    known = {name: 100 * ap for name, ap in zip(metrics.names, metrics.voc, strict=True) if not math.isnan(ap)}
    assert {row: ap for row, ap in measured.items() if ap is not None} == {
        **known,
        "all classes": pytest.approx(np.mean([*known.values()])),
    }
    assert "orderings" not in page_of(result, tmp_path)
    command.show(result)
    write_report_part(result, tmp_path)
    (part,) = (tmp_path / "report").glob("paper-per-class.json")
    assert [table["title"] for table in json.loads(part.read_text())["tables"]] == ["Measured"]
    assert "orderings" not in "".join(capsys.readouterr())


def test_classes_of_voc_are_in_the_papers_order_beside_its_numbers(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    classes = sorted(VOC_CLASSES, reverse=True)
    objects = "".join(f"{file}.png,64,48,{name},4,4,40,40\n" for file in "ab" for name in classes)
    (tmp_path / "labels.csv").write_text(f"filename,width,height,class,xmin,ymin,xmax,ymax\n{objects}")
    settings = override(settings_of("paper-zf"), {"data": {"path": str(tmp_path / "labels.csv")}})
    experiment = EXPERIMENTS["per-class"](settings)
    assert experiment.rows == (*VOC_CLASSES, "all classes")
    assert experiment.paper["aeroplane"] == {"voc07": 70.0, "voc": 82.3}
    assert experiment.paper["tvmonitor"] == {"voc07": 67.6, "voc": 58.9}
    assert experiment.paper["all classes"] == {"voc07": 69.9, "voc": 67.0}
    assert experiment == EXPERIMENTS["per-class"](settings_of("paper-zf"))


def test_table_5_times_all_rows_in_turn(
    settings: Settings, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[tuple[str, int]] = []

    def search(image: np.ndarray, mode: str, count: int) -> ImageProposals:
        searches.append((mode, count))
        return random_proposals(image, mode)

    monkeypatch.setattr(timing_file, "selective_search", search)
    result = quietly("time", settings, tmp_path)
    check(result, tmp_path)
    assert searches == [("fast", 2000), ("quality", 2000)] * 2  # two images
    assert not trained
    for numbers in (by_seed[0] for by_seed in result.scores.values()):
        assert numbers["total"] == pytest.approx(numbers["conv"] + numbers["proposals"] + numbers["regions"])
    assert result.scores["RPN"][0]["ratio"] == 1


def test_an_interrupted_training_is_resumed_and_finished_runs_are_kept(
    settings: Settings, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = iter([train_file.announce_end, interrupt])
    with monkeypatch.context() as patch:
        patch.setattr(train_file, "announce_end", lambda *ended: next(ends)(*ended))
        with pytest.raises(Interrupted, match="run the same command again to continue"):
            quietly("one-stage", settings, tmp_path)
    assert trained == ["alternating-0", "sliding-windows-0"]
    before = (tmp_path / "one-stage.csv").read_text()
    assert [row["row"] for row in table(tmp_path / "one-stage.csv")] == ["two stages (unshared)"]
    check(quietly("one-stage", settings, tmp_path), tmp_path)
    assert trained == ["alternating-0", "sliding-windows-0", "sliding-windows-0"]
    assert (tmp_path / "one-stage.csv").read_text().startswith(before)
    (folder,) = (tmp_path / "runs").glob("sliding-windows-*/")
    assert "resuming" in (folder / "log.txt").read_text()
    assert not list((folder / "checkpoints").iterdir())


def interrupt(*_: object) -> Any:
    raise KeyboardInterrupt


def fail(*_: object, **__: object) -> Any:
    raise TrainingError("the loss is not finite")


def test_a_training_that_fails_leaves_a_gap_and_is_tried_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = workspace_file.train
    with monkeypatch.context() as patch:
        patch.setattr(workspace_file, "train", lambda **words: (fail if "sliding" in words["name"] else train)(**words))
        result = quietly("one-stage", settings, tmp_path)
    assert [text.partition(":")[0] for text in result.failures] == [f"one stage, {n}, seed 0" for n in SCALES]
    assert set(result.scores) == {"two stages (unshared)"}
    assert {judged.verdict for judged in result.judgements} == {"not measured"}
    assert "- one stage, 1 scale, seed 0: the loss is not finite" in page_of(result, tmp_path)
    check(quietly("one-stage", settings, tmp_path), tmp_path)


def test_other_settings_in_the_same_folder_are_refused(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace_file, "train", fail)
    quietly("one-stage", settings, tmp_path)
    other = override(settings, ["rpn.nms=0.6", "train.lr=0.001"])
    with pytest.raises(SettingsError, match=r"one-stage\.json .*\(rpn\.nms, train\.lr, split\).*--name"):
        quietly("one-stage", other, tmp_path, split="test")


def test_experiments_on_detectors_need_a_second_stage(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has none"):
        quietly("lambda", override(settings, ["roi.head=none"]), tmp_path)


@pytest.mark.parametrize(
    ("seconds", "epochs"),
    [(10_000, 16), (1000, 9), (190, 1), (0, 1)],  # 100 s are for other things, an epoch of all takes 100 s
)
def test_epochs_that_fit(seconds: float, epochs: int) -> None:
    assert fitting(16, epoch=100.0, other=100.0, seconds=seconds) == epochs


def test_a_budget_reduces_the_epochs_once_and_reports_it(
    settings: Settings, trained: list[str], tmp_path: Path
) -> None:
    settings, messages = override(settings, ["train.epochs=500"]), []
    result = quietly("one-stage", settings, tmp_path, budget=0.05, say=messages.append)
    assert 1 <= result.settings.train.epochs < 100
    (line,) = [text for text in messages if "an epoch takes" in text]
    assert "5 stages of 500 epochs would take" in line
    assert f"Cut to {result.settings.train.epochs} each" in line
    assert trained[:2] == ["alternating-0", "sliding-windows-0"]
    assert " on sliding windows " in line  # whose validation has more to do
    count = len(trained)
    again = quietly("one-stage", settings, tmp_path, budget=0.05)
    assert (again.settings.train.epochs, len(trained)) == (result.settings.train.epochs, count)


def test_epochs_that_are_auto_become_a_number_before_a_budget_reduces_them(
    settings: Settings, trained: list[str], tmp_path: Path
) -> None:
    settings, messages = override(settings, ["train.epochs=auto"]), []
    result = quietly("one-stage", settings, tmp_path, budget=0.05, say=messages.append)
    assert any(text.startswith("train.epochs=auto: 100 epochs for 4 images") for text in messages)
    assert 1 <= result.settings.train.epochs < 100
    assert any("5 stages of 100 epochs would take" in text for text in messages)
    count = len(trained)
    again = quietly("one-stage", settings, tmp_path, budget=0.05)
    assert (again.settings.train.epochs, len(trained)) == (result.settings.train.epochs, count)


def test_a_budget_counts_the_search_for_proposals(
    on_boxes: Settings, boxes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(budget_file, "open_proposals", lambda source, *_: messages.append(source))
    quietly("recall", on_boxes, tmp_path / "recall", budget=60, say=messages.append)
    assert messages.index(str(boxes)) < messages.index("timing one epoch for --budget")


@pytest.mark.slow
def test_a_budget_times_an_epoch_of_each_backbone(on_boxes: Settings, trained: list[str], tmp_path: Path) -> None:
    """Detectors with their own proposals come first; VGG-16 takes longer than the preset's backbone."""
    settings, messages = override(on_boxes, ["train.epochs=2"]), []
    options = {"budget": 0.001, "say": messages.append}
    result = quietly("proposals", settings, tmp_path, leave_out=["SS -> SS", "100", "6000", "no ", "shared"], **options)
    assert trained == ["alternating-0", "rpn-vgg16-0", "fast-rcnn-0"]
    assert result.settings.train.epochs == 1
    (line,) = [text for text in messages if "an epoch takes" in text]
    assert ", one of vgg16 " in line
    assert "; 6 stages of 2 epochs would take " in line
    assert line.endswith(", still over the budget")
    trained.clear()
    quietly("proposals", settings, tmp_path / "fast", leave_out=["RPN"], **options)
    assert trained == ["fast-rcnn-0"]


@pytest.mark.parametrize("name", ["proposals", "recall"])
def test_windows_without_a_ranking_are_refused_where_the_best_ones_are_needed(
    name: str, settings: Settings, trained: list[str], tmp_path: Path
) -> None:
    settings = override(settings, {"train": {"proposals": "sliding-windows"}})
    with pytest.raises(SettingsError, match=r"sliding-windows have no ranking.*`rcnn paper one-stage`"):
        quietly(name, settings, tmp_path)
    assert not trained


def test_a_budget_without_trainings_has_no_effect(settings: Settings, tmp_path: Path) -> None:
    messages: list[str] = []
    workspace = Workspace(settings, tmp_path, "val", messages.append, quiet=True)
    assert cut_epochs(workspace, EXPERIMENTS["time"](settings), (0,), 1) == settings.train.epochs
    assert messages == ["--budget has no effect, since this experiment trains no model"]


def test_the_command_knows_every_experiment() -> None:
    assert set(get_args(command.Name)) == set(EXPERIMENTS)


def test_the_command(
    shapes: Path, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        shown = capsys.readouterr()
        return stop.value.code, shown.out, shown.err

    monkeypatch.setenv("COLUMNS", "100")
    options = ("--preset", "tiny-fpn", "--proposals", boxes, "--out", tmp_path, "--split", "test", "--json", *SMALL)
    code, out, err = run("paper", "recall", shapes, "--seeds", 0, 1, *options)
    assert code == 0, err
    document = json.loads(out)
    assert [(row["row"], row["seed"]) for row in document["rows"]] == [("SS", None), ("RPN", 0), ("RPN", 1)]
    assert {ordering["runs"] for ordering in document["orderings"]} == {2}
    assert "images of test: 2" in err
    files = {path.name for path in (tmp_path / "shapes").glob("recall.*")}
    assert files == {f"recall.{kind}" for kind in ("csv", "json", "md", "png")}
    page = (tmp_path / "shapes/report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 1
    assert all(ordering["ordering"].replace(">", "&gt;") in page for ordering in document["orderings"])
    code, _, err = run("paper", "lambda", shapes, "--seeds", 0, 1, 0)
    assert code == 2
    assert "names a seed twice: 0 1 0" in err
