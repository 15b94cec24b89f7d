"""`report.html`: one self-contained file on one run, or on several side by side.

Pictures, style and script are inside; the content policy allows nothing else, and names the style and the script by
their hashes. All text is escaped, also in the JSON for the script.
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

LARGEST = 1_900_000
"""Bytes of a page that pictures fill up at most."""


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
"""Part of the page, a macro of templates/parts.html -> its title."""


def keep_scores(folder: Path, dataset: Dataset, metrics: Metrics, scored: ScoredDetector) -> None:
    """Write what the page of a folder shows of scores into its folder `report`: numbers, worst and best pictures.

    Args:
        folder: of results.
        dataset: that was scored on.
        metrics: the scores.
        scored: the detector.
    """
    parts = folder / PARTS
    parts.mkdir(exist_ok=True)
    pictures = save_pictures(parts, dataset, metrics, scored) if scored.predicts_classes else ()
    scores = scores_of(metrics, dataset, scored)
    save_part(parts / "scores.json", scores.model_copy(update={"pictures": pictures}))


def write_report(folder: Path) -> Path:
    """Write `report.html` into a folder of results, from the files in it, and return its path.

    Raises:
        SettingsError: there is nothing in the folder that a page is made from.
    """
    page = folder / PAGE
    atomic_write(page, render([read_subject(folder)]).encode())
    return page


def read_subjects(folders: Sequence[Path]) -> list[Subject]:
    """The folders of a page. One of `why` is shown with the run that its weights come from, if that is given as well.

    Raises:
        SettingsError: a folder can't be reported of; all such folders are named.
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
        home = [run for run in runs if model and Path(model).is_relative_to(run.folder.resolve())]
        if home and subject.why and not subject.trained:
            home[0].add(subject)
        else:
            alone.append(subject)
    return alone


def render(subjects: Sequence[Subject], title: str | None = None) -> str:
    """The page as text, with as many pictures as there is room for."""
    bare = len(_page(subjects, title, 0).encode())
    return _page(subjects, title, max(0, LARGEST - bare) * 3 // 4)  # four letters stand for three bytes


def _page(subjects: Sequence[Subject], title: str | None, budget: int) -> str:
    """Return the page as text; its pictures have at most `budget` bytes."""
    style, script = (static(f"report.{ending}") for ending in ("css", "js"))
    names = [subject.title for subject in subjects]
    runs = [values(subject, place, budget // len(subjects)) for place, subject in enumerate(subjects)]
    return (
        environment()
        .get_template("report.html")
        .render(
            title=title or " and ".join(names),
            names=names,
            runs=runs,
            sections=[
                {"id": name, "title": text}
                for name, text in SECTIONS.items()
                if any(run["there"][name] for run in runs)
            ],
            compared=compared(subjects) if len(subjects) > 1 else None,
            style=Markup(style),
            script=Markup(script),
            style_hash=named_by_hash(style),
            script_hash=named_by_hash(script),
        )
    )


def values(subject: Subject, place: int, budget: int) -> dict[str, Any]:
    """What the template shows of one subject."""
    scores = subject.scores
    curves = [(subject.name, subject.rows)]
    predicts_classes = scores is not None and scores.detects
    return {
        "name": subject.title,
        "id": f"run-{place + 1}",
        "trained": subject.trained,
        "facts": view.facts(subject),
        "tiles": view.tiles(subject),
        "scores": scores,
        "by_class": view.by_class(scores) if scores and predicts_classes else None,
        "by_size": view.by_size(scores) if scores else [],
        "curves": [chart for chart in (charts.score_chart(curves), *charts.loss_charts(curves)) if chart],
        "f1": charts.f1_chart(scores) if scores and predicts_classes else None,
        "precision_recall": charts.precision_recall_chart(scores) if scores and predicts_classes else None,
        "counts": charts.counts(scores, scores.threshold) if scores and predicts_classes else [],
        "slider": charts.slider_data(scores) if scores and predicts_classes else None,
        "confusion": view.confusion(scores) if scores and predicts_classes else None,
        "why": view.why(subject.why) if subject.why else None,
        "experiments": [
            (part, view.address(subject.pictures[part.picture]) if part.picture in subject.pictures else None)
            for part in subject.experiments.values()
        ],
        "pictures": view.pictures(subject, budget),
        "has_pictures": bool(subject.pictures),
        "changes": changes(subject.settings) if subject.settings else None,
        "notes": subject.notes,
        "there": {
            **dict.fromkeys(("threshold", "confusion", "pictures"), predicts_classes),
            "about": True,
            "scores": scores is not None,
            "curves": subject.trained,
            "why": bool(subject.why) or "why" in subject.notes,
            "paper": bool(subject.experiments) or "paper" in subject.notes,
            "settings": bool(subject.settings) or "settings" in subject.notes,
        },
    }


def compared(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Numbers, settings and curves of several subjects next to each other."""
    known = [subject.scores.summary if subject.scores else {} for subject in subjects]
    numbers = []
    for key, heading, digits in compared_columns():
        values = [summary.get(key) for summary in known]
        if any(value is not None for value in values):
            both = [value for value in values if value is not None] if len(values) == 2 else []
            difference = f"{both[1] - both[0]:+.{digits}f}" if len(both) == 2 else ""
            numbers.append((heading, [charts.shown(value, digits) for value in values], difference))
    trees = [flat(subject.settings) if subject.settings else {} for subject in subjects]
    keys = dict.fromkeys(key for tree in trees for key in tree)
    settings = [(key, [tree.get(key) for tree in trees]) for key in keys]
    runs = [(f"{place + 1}: {subject.title}", subject.rows) for place, subject in enumerate(subjects) if subject.rows]
    drawn = [charts.score_chart(runs), *charts.loss_charts(runs)] if len(runs) > 1 else []
    return {
        "numbers": numbers,
        "settings": [(key, values) for key, values in settings if len(set(values)) > 1],
        "charts": [chart for chart in drawn if chart],
    }
