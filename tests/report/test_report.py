"""The content of a page, with complete, missing, incomplete and damaged files."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rcnn.errors import SettingsError
from rcnn.metrics.curves import THRESHOLDS, precision_recall, tally
from rcnn.metrics.types import Prediction, Truth
from rcnn.report import page as report_file
from rcnn.report.charts import counts
from rcnn.report.gallery import MAX_BYTES, SIDE, as_webp, judge
from rcnn.report.page import keep_scores, read_subjects, render, write_report
from rcnn.report.scores import ScoredDetector, Scores, count, read_plain
from rcnn.report.subject import read_subject
from rcnn.report.svg import ticks
from rcnn.training.recorders.report_page import ReportPage
from tests.pages import HOSTILE, PLAIN, THRESHOLD, Made, made


def page_of(made: Made) -> str:
    return (made.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def folder(plain: Made, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(plain.folder, tmp_path / "run"))


@pytest.mark.parametrize("kind", ["plain", "hostile"])
def test_the_page_is_self_contained(kind: str, request: pytest.FixtureRequest) -> None:
    page = page_of(request.getfixturevalue(kind))
    assert len(page.encode()) < 2_000_000
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/webp;base64,[^\"]*", "", page))
    assert set(re.findall(r'\b(?:src|href)="([^"]{0,5})', page)) == {"data:", *re.findall(r'href="(#[^"]{0,4})', page)}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy[1]
    assert "unsafe" not in page
    assert not re.search(r"<[^>]* style=", page)
    assert '<html lang="en">' in page
    assert all(re.search(r' alt="[^"]', image) for image in re.findall(r"<img src[^>]*>", page))


def test_names_are_text(plain: Made, hostile: Made) -> None:
    pages = [page_of(plain), page_of(hostile)]
    for tag in ("<script", "<img", "<svg", "</script"):
        assert len({page.count(tag) for page in pages}) == 1
    assert not [name for name in HOSTILE if name in pages[1]]
    assert "&lt;img src=x onerror=alert(2)&gt;" in pages[1]
    assert "49" not in re.findall(r"onload=alert\(3\)&gt;(.{4})", pages[1])[0]


def test_folders_of_this_machine_are_only_in_the_command(plain: Made) -> None:
    assert "/home/me" not in page_of(plain)


def test_the_counts_are_those_of_the_library(plain: Made) -> None:
    """The bins give the curves at every threshold, and the table gives the counts by image at that of the detector."""
    scores = read_plain(plain.folder / "report/scores.json", Scores)
    metrics = plain.metrics
    curves, counted = precision_recall(metrics.truths, metrics.predictions, len(PLAIN)), count(scores.classes)
    order = [row.label for row in scores.classes]
    for name in ("precision", "recall", "f1"):
        np.testing.assert_array_equal(getattr(counted, name)[:-1], getattr(curves, name)[order])
        np.testing.assert_allclose(getattr(counted, name)[-1], getattr(curves, name).mean(axis=0))
    judged = [
        judge(i, *pair, THRESHOLD) for i, pair in enumerate(zip(metrics.truths, metrics.predictions, strict=True))
    ]
    everything = counts(scores, THRESHOLD)[-1]
    assert everything.right == sum(one.right.sum() for one in judged)
    assert everything.wrong == sum((~one.right).sum() for one in judged)
    assert everything.lost == sum(len(one.lost) for one in judged)
    shown = {picture.name: picture for picture in scores.pictures}
    for one in judged:
        if picture := shown.get(plain.dataset.records[one.image].name):
            assert (picture.right, picture.wrong, picture.lost) == (one.right.sum(), (~one.right).sum(), len(one.lost))


@given(st.data())
def test_the_counts_at_a_threshold_are_sums_of_bins(data: st.DataObject) -> None:
    """Matching all detections and then removing low scores equals matching only the others."""
    seed, index = data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, len(THRESHOLDS) - 1))
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 12, (8, 2))
    boxes = np.concatenate((corners, corners + rng.integers(4, 9, (8, 2))), axis=1).astype(float)
    truth = Truth(boxes[:4], rng.integers(0, 2, 4), rng.random(4) < 0.2)
    prediction = Prediction(boxes[4:] + rng.integers(-1, 2, (4, 4)), rng.random(4).round(1), rng.integers(0, 2, 4))
    counted, one = tally([truth], [prediction], 2), judge(0, truth, prediction, float(THRESHOLDS[index]))
    assert counted.right[:, index:].sum() == one.right.sum()
    assert counted.wrong[:, index:].sum() == (~one.right).sum()
    assert counted.counts.sum() - counted.right[:, index:].sum() == len(one.lost)


def test_pictures_of_noise_are_small(plain: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 1500, 3), dtype=np.uint8))
    content = as_webp(noise)
    assert len(content) <= MAX_BYTES
    (tmp_path / "a.webp").write_bytes(content)
    with Image.open(tmp_path / "a.webp") as picture:
        assert max(picture.size) <= SIDE
    held = sum(map(len, read_subject(plain.folder).pictures.values()))
    monkeypatch.setattr(report_file, "MAX_BYTES", len(page_of(plain)) - held // 2)
    page = render([read_subject(plain.folder)])
    assert 0 < page.count("data:image/webp") < page_of(plain).count("data:image/webp")


@pytest.mark.parametrize(
    ("file", "text", "note"),
    [
        ("metrics.jsonl", '{"epoch": 1, "ap": 0.25}\n{"epoch": 2, "a', "lines 2 of metrics.jsonl"),
        ("metrics.jsonl", '{"epoch": -1e308, "ap": -5}\n{"epoch": 1e300, "ap": 1e300}\n', "No epoch has finished yet"),
        ("report/scores.json", "{", "scores.json"),
        ("why.json", '{"lost": 3}', "why.json"),
        ("environment.json", "[]", "environment.json"),
        ("config.yaml", "a: [", "config.yaml:"),
    ],
)
def test_a_damaged_file_affects_only_its_own_part(folder: Path, file: str, text: str, note: str) -> None:
    (folder / file).write_text(text)
    page = write_report(folder).read_text(encoding="utf-8")
    assert re.search(rf'role="note">[^<]*{re.escape(note)}', page)
    assert page.count("<section") >= 4


def test_invalid_pictures_and_those_outside_the_folder_are_left_out(folder: Path) -> None:
    (folder / "report/worst-1.webp").write_bytes(b"<script>")
    assert "worst-1.webp" not in read_subject(folder).pictures
    tree = json.loads((folder / "report/scores.json").read_text())
    tree["pictures"][0]["file"] = "../../secret.webp"
    (folder / "report/scores.json").write_text(json.dumps(tree))
    assert "scores" in read_subject(folder).notes


def test_folders_without_results_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"(?s)empty: nothing to report.*gone: there is no such folder"):
        read_subjects([tmp_path / "empty", tmp_path / "gone"])


def test_an_interrupted_run_has_a_page(plain: Made, folder: Path) -> None:
    """It has the scores of the best epoch, if there was a validation."""
    shutil.rmtree(folder / "report")
    page = ReportPage(folder, plain.dataset)
    page.end({})
    assert "No scores yet" in (folder / "report.html").read_text(encoding="utf-8")
    page.scored(plain.detector, plain.metrics, 1)
    page.end({})
    assert "weights of epoch 1" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_model_that_only_proposes_has_recall(plain: Made, folder: Path) -> None:
    shutil.rmtree(folder / "report")
    scored = ScoredDetector.of(plain.detector)._replace(predicts_classes=False)
    keep_scores(folder, plain.dataset, plain.metrics, scored)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "of 300 proposals, mean over IoU" in page
    assert "data:image/webp" not in page
    assert 'id="threshold"' not in page


def test_the_page_shows_some_of_many_classes(tmp_path: Path) -> None:
    """Those with most objects are shown one by one, with the most frequent confusions."""
    names = tuple(f"class {number}" for number in range(150))
    made(tmp_path / "many", names, images=40)
    page = (tmp_path / "many/report.html").read_text(encoding="utf-8")
    assert "100 of 150, those with most objects" in page
    assert "these 100 of 150 classes" in page
    assert any(f" {confused}: " in page for confused in ("missed", "where nothing is"))
    assert "taken for missed" not in page


def test_two_runs_of_eighty_classes_and_of_many_images_are_small(plain: Made) -> None:
    """With detections at every score, large pictures and long names."""
    subject = read_subject(plain.folder)
    assert subject.scores
    bins = tuple((index, 12, 345) for index in range(len(THRESHOLDS)))
    one = subject.scores.classes[0].model_copy(update={"bins": bins, "objects": 20_000, "name": "x" * 200})
    subject.scores = subject.scores.model_copy(update={"classes": (one,) * 80, "num_classes": 80})
    subject.pictures = dict.fromkeys(subject.pictures, b"0" * MAX_BYTES)
    one_run, two_runs = render([subject]), render([subject] * 2)
    assert max(len(page.encode()) for page in (one_run, two_runs)) < 2_000_000
    assert one_run.count("data:image/webp") >= 5
    assert "no room for pictures" in two_runs


def test_two_runs_are_compared_and_why_is_added_to_its_run(plain: Made, other: Made, tmp_path: Path) -> None:
    why = tmp_path / "why"
    why.mkdir()
    tree = json.loads((plain.folder / "why.json").read_text())
    (why / "why.json").write_text(json.dumps({**tree, "advice": "Another advice."}))
    model = other.folder / "weights/best.safetensors"
    (why / "environment.json").write_text(json.dumps({"model": str(model)}))
    subjects = read_subjects([plain.folder, other.folder, why])
    assert [subject.name for subject in subjects] == ["shapes-1", "shapes-2"]
    page = render(subjects)
    assert page.count("Another advice.") == 1
    assert re.search(r"<code>train\.lr</code></th><td>[\d.]+</td><td>0\.5</td>", page)
    difference = other.metrics.ap - plain.metrics.ap
    assert f"<td>{plain.metrics.ap:.3f}</td><td>{other.metrics.ap:.3f}</td><td>{difference:+.3f}</td>" in page


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_on_the_axis(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 8
    assert all(low - width * 1e-3 <= tick <= low + width * 1.001 for tick in found)
