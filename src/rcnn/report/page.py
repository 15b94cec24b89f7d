"""`report.html`: one self-contained file on one run, or on several side by side.

The file holds its pictures, style sheet and script. Its content policy allows nothing else, and style sheet and script
only by their hashes. All text is escaped, including that in the JSON for the script.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from rcnn.data.dataset import Dataset
from rcnn.errors import SettingsError
from rcnn.metrics.table import Metrics, compared_columns
from rcnn.report import charts, view
from rcnn.report.gallery import save_pictures
from rcnn.report.parts import PAGE, PARTS, save_part
from rcnn.report.scores import ScoredDetector, scores_of
from rcnn.report.subject import Subject, changes, flat, read_subject
from rcnn.report.templating import environment, named_by_hash, static
from rcnn.weights.file import atomic_write

MAX_BYTES = 1_900_000
"""Size of a page beyond which no pictures are added."""

SECTIONS = {
    "about": "What was done",
    "scores": "Scores",
    "threshold": "Right, wrong and lost",
    "curves": "Losses and AP",
    "confusion": "Confusion",
    "why": "Where objects are lost",
    "paper": "The paper's experiments",
    "pictures": "Pictures",
    "settings": "Settings",
}
"""Part of the page, which is a macro of templates/parts.html -> its title."""


def keep_scores(folder: Path, dataset: Dataset, metrics: Metrics, scored: ScoredDetector) -> None:
    """Write the scores and the worst and best pictures that the page of a folder shows into its folder `report`.

    Args:
        folder: of results.
        dataset: the scored images.
        metrics: the scores.
        scored: the detector.
    """
    parts = folder / PARTS
    parts.mkdir(exist_ok=True)
    pictures = save_pictures(parts, dataset, metrics, scored) if scored.predicts_classes else ()
    scores = scores_of(metrics, dataset, scored)
    save_part(parts / "scores.json", scores.model_copy(update={"pictures": pictures}))


def write_report(folder: Path) -> Path:
    """Write `report.html` into a folder of results, and return its path.

    Raises:
        SettingsError: the folder has no files that a page is made from.
    """
    page = folder / PAGE
    atomic_write(page, render([read_subject(folder)]).encode())
    return page


def read_subjects(folders: Sequence[Path]) -> list[Subject]:
    """Read the folders of a page. Results of `why` are added to the run of their weights, if it is among the folders.

    Raises:
        SettingsError: there is no report of a folder; all such folders are named.
    """
    subjects, faults = [], []
    for folder in folders:
        try:
            subjects.append(read_subject(folder))
        except SettingsError as error:
            faults.append(str(error))
    if faults:
        raise SettingsError("\n".join(faults))
    runs = [subject for subject in subjects if subject.trained]
    alone = []
    for subject in subjects:
        model = subject.environment.model if subject.environment else None
        of_weights = [run for run in runs if model and Path(model).is_relative_to(run.folder.resolve())]
        if of_weights and subject.why and not subject.trained:
            of_weights[0].add(subject)
        else:
            alone.append(subject)
    return alone


def render(subjects: Sequence[Subject], title: str | None = None) -> str:
    """Return the page as text, with as many pictures as `MAX_BYTES` allows."""
    bare = len(_page(subjects, title, 0).encode())
    return _page(subjects, title, max(0, MAX_BYTES - bare) * 3 // 4)  # base64 has four letters for three bytes


def _page(subjects: Sequence[Subject], title: str | None, budget: int) -> str:
    """Return the page as text, with pictures of at most `budget` bytes."""
    style, script = (static(f"report.{ending}") for ending in ("css", "js"))
    names = [subject.title for subject in subjects]
    runs = [values(subject, index, budget // len(subjects)) for index, subject in enumerate(subjects)]
    template = environment().get_template("report.html")
    return template.render(
        title=title or " and ".join(names),
        names=names,
        runs=runs,
        sections=[
            {"id": name, "title": text} for name, text in SECTIONS.items() if any(run["has"][name] for run in runs)
        ],
        compared=compared(subjects) if len(subjects) > 1 else None,
        style=Markup(style),
        script=Markup(script),
        style_hash=named_by_hash(style),
        script_hash=named_by_hash(script),
    )


def values(subject: Subject, index: int, budget: int) -> dict[str, Any]:
    """Return the values that the template shows of one subject, with pictures of at most `budget` bytes."""
    scores = subject.scores
    detections = scores if scores and scores.detects else None
    curves = [(subject.name, subject.rows)]
    return {
        "name": subject.title,
        "id": f"run-{index + 1}",
        "trained": subject.trained,
        "facts": view.facts(subject),
        "tiles": view.tiles(subject),
        "scores": scores,
        "by_class": view.by_class(detections) if detections else None,
        "by_size": view.by_size(scores) if scores else [],
        "curves": [chart for chart in (charts.score_chart(curves), *charts.loss_charts(curves)) if chart],
        "f1": charts.f1_chart(detections) if detections else None,
        "precision_recall": charts.precision_recall_chart(detections) if detections else None,
        "counts": charts.counts(detections, detections.threshold) if detections else [],
        "slider": charts.slider_data(detections) if detections else None,
        "confusion": view.confusion(detections) if detections else None,
        "why": view.why(subject.why) if subject.why else None,
        "experiments": [
            (part, view.address(subject.pictures[part.picture]) if part.picture in subject.pictures else None)
            for part in subject.experiments.values()
        ],
        "pictures": view.pictures(subject, budget),
        "has_pictures": bool(subject.pictures),
        "changes": changes(subject.settings) if subject.settings else None,
        "notes": subject.notes,
        "has": {
            **dict.fromkeys(("threshold", "confusion", "pictures"), detections is not None),
            "about": True,
            "scores": scores is not None,
            "curves": subject.trained,
            "why": bool(subject.why) or "why" in subject.notes,
            "paper": bool(subject.experiments) or "paper" in subject.notes,
            "settings": bool(subject.settings) or "settings" in subject.notes,
        },
    }


def compared(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Return the numbers, settings and curves of several subjects side by side."""
    summaries = [subject.scores.summary if subject.scores else {} for subject in subjects]
    numbers = []
    for key, heading, digits in compared_columns():
        values = [summary.get(key) for summary in summaries]
        known = [value for value in values if value is not None]
        if known:
            difference = f"{known[1] - known[0]:+.{digits}f}" if len(values) == len(known) == 2 else ""
            numbers.append((heading, [charts.shown(value, digits) for value in values], difference))
    trees = [flat(subject.settings) if subject.settings else {} for subject in subjects]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    settings = [(key, [tree.get(key) for tree in trees]) for key in keys]
    runs = [(f"{number}: {subject.title}", subject.rows) for number, subject in enumerate(subjects, 1) if subject.rows]
    drawn = [charts.score_chart(runs), *charts.loss_charts(runs)] if len(runs) > 1 else []
    return {
        "numbers": numbers,
        "settings": [(key, values) for key, values in settings if len(set(values)) > 1],
        "charts": [chart for chart in drawn if chart],
    }
