"""A metric is one row of `METRICS`, from which every output takes its columns."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rcnn.cli.val import show, summary
from rcnn.look.runs import Runs
from rcnn.metrics import table
from rcnn.metrics.table import METRICS, Metric, Metrics, MetricValue, mean_over_classes
from rcnn.metrics.voc import voc_ap
from rcnn.report.page import keep_scores, read_subjects, render
from rcnn.report.scores import ScoredDetector, Scores, read_plain
from rcnn.training.log import Log
from rcnn.training.recorders.console import ConsoleTable
from rcnn.training.recorders.recorder import About
from rcnn.training.recorders.standard import CsvTable, JsonLines
from tests.pages import PLAIN, Made, made


def ap_at_70(metrics: Metrics) -> MetricValue:
    return mean_over_classes(voc_ap(metrics.truths, metrics.predictions, len(metrics.names), iou=0.7))


NEW = Metric(
    "ap70", "mean AP70", ap_at_70, per_class="AP70 of it", digits=2, live="AP70", tile=("AP70 tile", "at IoU .70")
)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Made, Made]:
    """Two runs that are scored by one more metric, and nothing else."""
    monkeypatch.setattr(table, "METRICS", (*METRICS, NEW))
    return made(tmp_path / "runs/shapes-1", PLAIN), made(tmp_path / "runs/shapes-2", PLAIN, seed=1)


def test_a_metric_of_one_row_is_in_all_outputs_of_a_training(pair: tuple[Made, Made], tmp_path: Path) -> None:
    metrics = pair[0].metrics
    value = float(np.nanmean(voc_ap(metrics.truths, metrics.predictions, 3, iou=0.7)))
    text = io.StringIO()
    console = ConsoleTable(Log(None, Console(file=text)))
    recorders = [console, CsvTable(tmp_path / "results.csv"), JsonLines(tmp_path / "metrics.jsonl")]
    row = {"epoch": 1, "step": 4, "images_per_second": 1.0, **metrics.to_row()}
    for recorder in recorders:
        recorder.start(About(tmp_path, {}, PLAIN, (1, 1), ("ap",), 2, 8, 1, 0, (), ((2, 8),)))
        recorder.epoch(row)
    heading, line = text.getvalue().splitlines()
    assert heading.split()[-4:] == ["AP", "AP50", "AP70", "ETA"]
    assert line.split()[-2] == f"{value:.3f}"  # one decimal more than elsewhere
    columns, cells = (tmp_path / "results.csv").read_text().splitlines()
    assert dict(zip(columns.split(","), cells.split(","), strict=True))["ap70"] == str(value)
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["ap70"] == value


def test_a_metric_of_one_row_is_in_val_in_reports_and_in_comparisons(
    pair: tuple[Made, Made], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (run.metrics.values["ap70"].overall for run in pair)
    metrics = pair[0].metrics
    show(metrics)
    shown = capsys.readouterr().out
    assert "AP70 of it" in shown
    assert "mean AP70" in shown
    assert f"mean AP70 {first:.2f}" in str(metrics)
    assert "AP70 of it" in metrics._repr_html_()
    document = summary(metrics)
    assert document["ap70"] == first
    assert all(0 <= row["ap70"] <= 1 for row in document["classes"])

    scores = read_plain(pair[0].folder / "report/scores.json", Scores)
    assert scores.summary["ap70"] == first
    assert [row.value(NEW) for row in scores.classes] == [
        metrics.by_class()[row.label]["ap70"] for row in scores.classes
    ]
    for run in pair:
        with (run.folder / "metrics.jsonl").open("a") as file:
            known = {key: value for key, value in run.metrics.to_row().items() if value == value}
            file.write(json.dumps({"epoch": 3, **known}) + "\n")
        (run.folder / "weights").mkdir()
    page = render(read_subjects([run.folder for run in pair]))
    assert f'"what">AP70 tile</span> <strong>{first:.2f}</strong> <span class="of">at IoU .70<' in page
    assert '<th scope="col">AP70 of it</th>' in page
    row = f">mean AP70</th><td>{first:.2f}</td><td>{second:.2f}</td><td>{second - first:+.2f}</td>"
    assert row in page
    runs = Runs(pair[0].folder.parent)
    numbers = {entry["name"]: entry["run"] for entry in runs.table()["runs"]}
    live = runs.shown([numbers["shapes-1"], numbers["shapes-2"]])
    assert row in live
    assert f"<td>{first:.2f}</td>" in live.partition("The last epochs")[2]


def test_scores_of_before_a_metric_was_added_are_shown_without_it(plain: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "METRICS", (*METRICS, NEW))
    page = render(read_subjects([plain.folder]))
    assert "AP70" not in page
    assert '<th scope="col">AP50</th>' in page


def test_a_model_that_only_proposes_has_no_new_metric_either(plain: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "METRICS", (*METRICS, NEW))
    metrics = replace(plain.metrics, predicts_classes=False)
    row = metrics.to_row()
    assert np.isnan(row["ap70"])
    assert row["proposal_ar300"] >= 0


def test_keys_are_unique_and_the_kept_scores_hold_them_all(plain: Made, tmp_path: Path) -> None:
    assert len({metric.key for metric in METRICS}) == len(METRICS)
    keep_scores(tmp_path, plain.dataset, plain.metrics, ScoredDetector.of(plain.detector))
    kept = json.loads((tmp_path / "report/scores.json").read_text())
    assert list(kept["summary"]) == [metric.key for metric in METRICS if metric.key != "voc07_ap50"]
