"""The table of metrics, from which every output takes its columns, and the metrics of a detector on a data set.

The console of a training, results.csv, metrics.jsonl, `rcnn val`, report.html, the runs of `rcnn look` and the
comparison of runs all read `METRICS`: a metric is added with a function and a row of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from rcnn.errors import cell, plural, printable, wrapped
from rcnn.metrics.coco import CocoMetrics, coco_metrics
from rcnn.metrics.proposal_recall import TOPS, ProposalMetrics, proposal_recall
from rcnn.metrics.types import Prediction, Truth
from rcnn.metrics.voc import Rule, voc_ap

MAX_CLASSES = 16
"""Number of classes up to which text lists all; beyond, it lists the best and the worst classes with objects."""

MAX_NAME, WIDTH = 32, 80


class MetricValue(NamedTuple):
    """The value of a metric.

    Attributes:
        overall: over all classes; NaN without ground truth that counts.
        by_class: (K,) of each class, NaN for a class without objects; None if the metric has no values by class.
    """

    overall: float
    by_class: np.ndarray | None = None


class Metric(NamedTuple):
    """A metric and how it is shown.

    Attributes:
        key: its name in rows of epochs, csv and JSON.
        heading: its name in tables of all classes and in comparisons.
        compute: returns its value; None if `val.voc_ap` selects another metric in its place.
        per_class: heading of its column in tables of classes; empty if it has no values by class.
        digits: decimals in tables and reports. The console of a training shows one more.
        group: its kind; groups have a line each in `print(metrics)`, and are compared in this order.
        live: heading of its column on the console of a training; empty if it is not shown there.
        tile: heading and caption of its tile in a report; None for no tile.
    """

    key: str
    heading: str
    compute: Callable[["Metrics"], MetricValue | None]
    per_class: str = ""
    digits: int = 3
    group: Literal["overall", "voc", "size", "recall", "proposals"] = "overall"
    live: str = ""
    tile: tuple[str, str] | None = None


@dataclass(frozen=True)
class Metrics:
    """Scores of a detector on a data set. `print` shows the most important ones, a notebook a table of all classes.

    Attributes:
        names: class names.
        coco: AP and AR as defined by COCO; NaN if the model only proposes.
        voc: (K,) AP at IoU 0.5 as defined by VOC, by `voc_rule`; NaN for a class without objects.
        proposals: class-agnostic recall of the proposals, at the first of `predict.scales`.
        losses: mean of each loss, at that scale; empty if not asked for.
        truths: one per image, in the order of the data set. Empty in all processes but the first of several.
        predictions: likewise.
        voc_rule: `val.voc_ap`: the area under the curve, as in VOC since 2010, or the 11 points of VOC 2007.
        predicts_classes: as `Settings.predicts_classes`; if False, all metrics but those of proposals are NaN.
    """

    names: tuple[str, ...]
    coco: CocoMetrics
    voc: np.ndarray
    proposals: ProposalMetrics
    losses: dict[str, float]
    truths: Sequence[Truth]
    predictions: Sequence[Prediction]
    voc_rule: Rule = "area"
    predicts_classes: bool = True

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        truths: Sequence[Truth],
        predictions: Sequence[Prediction],
        proposals: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        max_detections: int,
        losses: dict[str, float],
        voc_rule: Rule,
        predicts_classes: bool,
    ) -> Self:
        """Compute the metrics.

        Args:
            names: class names.
            truths: one per image.
            predictions: likewise.
            proposals: likewise, (N, 4) boxes and (N,) scores.
            max_detections: detections per image that count for COCO's AP.
            losses: as the attribute.
            voc_rule: as the attribute.
            predicts_classes: as the attribute.
        """
        # If the model only proposes, AP is unknown, not 0: no truth counts for it.
        counted = (
            truths if predicts_classes else [truth._replace(ignore=np.ones_like(truth.ignore)) for truth in truths]
        )
        return cls(
            names=tuple(names),
            coco=coco_metrics(counted, predictions, len(names), max_detections),
            voc=voc_ap(counted, predictions, len(names), eleven_point=voc_rule == "11-point"),
            proposals=proposal_recall(truths, proposals),
            losses=losses,
            truths=truths,
            predictions=predictions,
            voc_rule=voc_rule,
            predicts_classes=predicts_classes,
        )

    @cached_property
    def values(self) -> dict[str, MetricValue]:
        """Key -> value, of each of `METRICS` that applies."""
        unknown = MetricValue(float("nan"), np.full(len(self.names), np.nan))
        return {
            metric.key: value if self.predicts_classes or metric.group == "proposals" else unknown
            for metric in METRICS
            if (value := metric.compute(self)) is not None
        }

    @property
    def ap(self) -> float:
        """COCO AP, mean over IoU 0.50:0.95."""
        return self.coco.ap

    @property
    def ap50(self) -> float:
        """COCO AP at IoU 0.5."""
        return self.coco.ap50

    @property
    def voc_map50(self) -> float:
        """VOC's mean AP at IoU 0.5 over the classes with objects, by `voc_rule`; NaN without any."""
        return mean_over_classes(self.voc).overall

    def to_row(self) -> dict[str, float]:
        """Return name -> number, as in the rows of a run."""
        losses = {f"val_{name}": value for name, value in self.losses.items()}
        return losses | {key: value.overall for key, value in self.values.items()}

    def by_class(self) -> list[dict[str, Any]]:
        """Return one row per class: name, boxes, and the metrics by class, named as in rows."""
        columns = {metric.key: self.values[metric.key].by_class for metric in self.per_class}
        return [
            {"class": name, "boxes": int(count)}
            | {key: float(values[label]) for key, values in columns.items() if values is not None}
            for label, (name, count) in enumerate(zip(self.names, self.coco.counts, strict=True))
        ]

    @property
    def per_class(self) -> list[Metric]:
        """The metrics that have values by class."""
        return [metric for metric in METRICS if metric.per_class and metric.key in self.values]

    @property
    def class_headings(self) -> list[str]:
        """The headings of the rows that `by_class` returns."""
        return ["class", "boxes", *(metric.per_class for metric in self.per_class)]

    def table(self, digits: int = 0) -> tuple[list[list[str]], str]:
        """Return rows of texts under `class_headings`, and a note on classes that a long table omits.

        Args:
            digits: decimals in addition to those of the metrics.
        """
        rows = self.by_class()
        shown = [row for row in rows if row["boxes"] or len(rows) <= MAX_CLASSES]
        note = f" (without boxes here: {len(rows) - len(shown)} of {len(rows)})" if len(shown) < len(rows) else ""
        return [self._cells(row, digits) for row in shown], note

    def _cells(self, row: Mapping[str, Any], digits: int = 0) -> list[str]:
        numbers = (cell(row[metric.key], metric.digits + digits) for metric in self.per_class)
        return [str(row["class"]), cell(row["boxes"]), *numbers]

    def __repr__(self) -> str:
        """Return about twenty lines of at most 80 characters. If there are many classes, some are left out."""
        rows, hidden = self.by_class(), 0
        if len(rows) > MAX_CLASSES:
            rows = sorted((row for row in rows if row["boxes"]), key=lambda row: -row["ap"])
            hidden = max(0, len(rows) - MAX_CLASSES)
        if hidden:
            rows = [*rows[: MAX_CLASSES // 2], *rows[-(MAX_CLASSES // 2) :]]
        grid = [self.class_headings, *([_short(name), *cells] for name, *cells in map(self._cells, rows))]
        widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
        lines = ["  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in grid]
        if hidden:
            lines.insert(1 + MAX_CLASSES // 2, f"... {hidden} classes in between")
        return "\n".join([*(wrapped(line, WIDTH) for line in self._summary()), *lines])

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows. Notebooks differ in how they align cells."""

        def row(tag: str, name: str, *cells: str) -> str:
            sides = (("left", name), *(("right", content) for content in cells))
            texts = (f'<{tag} style="text-align:{side}">{escape(content)}</{tag}>' for side, content in sides)
            return f"<tr>{''.join(texts)}</tr>"

        rows = (row("td", _short(name), *cells) for name, *cells in map(self._cells, self.by_class()))
        summary = "<br>".join(map(escape, self._summary()))
        return f"<p>{summary}</p><table>{row('th', *self.class_headings)}{''.join(rows)}</table>"

    def _summary(self) -> list[str]:
        """Return lines on all classes together, without unknown numbers."""
        counts = {"image": len(self.truths), "box": int(self.coco.counts.sum()), "class": len(self.names)}
        recall = self.proposals
        lines = {
            "": self._numbers("overall", "voc"),
            "AP by size: ": {name.removeprefix("AP "): shown for name, shown in self._numbers("size").items()},
            "proposals: ": {f"AR{top}": cell(float(ar)) for top, ar in zip(recall.tops, recall.ar, strict=True)},
            "losses: ": {name: cell(loss) for name, loss in self.losses.items()},
        }
        known = {
            title: ", ".join(f"{name} {shown}" for name, shown in numbers.items() if shown != "-")
            for title, numbers in lines.items()
        }
        sizes = ", ".join(plural(count, noun) for noun, count in counts.items())
        return [f"Metrics of {sizes}", *(title + numbers for title, numbers in known.items() if numbers)]

    def _numbers(self, *groups: str) -> dict[str, str]:
        """Return heading -> number of the metrics of some groups."""
        return {
            metric.heading: cell(self.values[metric.key].overall, metric.digits)
            for metric in compared()
            if metric.group in groups and metric.key in self.values
        }


def mean_over_classes(values: np.ndarray) -> MetricValue:
    """Return a metric from its values by class (K,), NaN where unknown; overall it is their mean."""
    known = ~np.isnan(values)
    return MetricValue(float(values[known].mean()) if known.any() else float("nan"), values)


def _voc(rule: Rule, metrics: Metrics) -> MetricValue | None:
    return mean_over_classes(metrics.voc) if metrics.voc_rule == rule else None


def _proposal_recall(top: int, metrics: Metrics) -> MetricValue | None:
    recall = dict(zip(metrics.proposals.tops, metrics.proposals.ar.tolist(), strict=True))
    return MetricValue(recall[top]) if top in recall else None


def _coco(key: str, heading: str, **looks: Any) -> Metric:
    """Return the metric of a field of `CocoMetrics`, with its values by class where there are some."""

    def compute(metrics: Metrics) -> MetricValue:
        return MetricValue(getattr(metrics.coco, key), getattr(metrics.coco, f"per_class_{key}", None))

    return Metric(key, heading, compute, **looks)


METRICS: tuple[Metric, ...] = (
    _coco("ap", "AP", per_class="AP", live="AP", tile=("AP", "mean over IoU .50:.95")),
    _coco("ap50", "AP50", per_class="AP50", live="AP50", tile=("AP50", "at IoU .50")),
    _coco("ap75", "AP75"),
    _coco("ap_small", "AP small", group="size"),
    _coco("ap_medium", "AP medium", group="size"),
    _coco("ap_large", "AP large", group="size"),
    _coco("ar100", "AR100", group="recall"),
    *(
        Metric(
            key,
            f"{voc} mAP50 ({rule})",
            partial(_voc, rule),
            per_class=f"{voc} AP50 ({rule})",
            group="voc",
            tile=("mAP50", f"{voc} ({rule})"),
        )
        for key, voc, rule in (("voc_ap50", "VOC", "area"), ("voc07_ap50", "VOC07", "11-point"))
    ),
    *(
        Metric(
            f"proposal_ar{top}",
            f"recall of {top} proposals",
            partial(_proposal_recall, top),
            group="proposals",
            live="AR300" if top == 300 else "",
            tile=("recall", "of 300 proposals, mean over IoU .50:.95") if top == 300 else None,
        )
        for top in TOPS
    ),
)
"""All metrics, in the order of the columns of rows, csv and JSON. VOC's two rules have names of their own, so that
their numbers are never compared by mistake."""


def compared() -> list[Metric]:
    """Return the metrics by which detectors are compared, by group; metrics of proposals only if they have a tile."""
    groups = ("overall", "voc", "size", "recall", "proposals")
    shown = (metric for metric in METRICS if metric.group != "proposals" or metric.tile)
    return sorted(shown, key=lambda metric: groups.index(metric.group))


def compared_columns() -> list[tuple[str, str, int]]:
    """Return key, heading and decimals of the numbers of a row by which runs are compared."""
    return [*((metric.key, metric.heading, metric.digits) for metric in compared()), ("val_loss", "validation loss", 3)]


def live_metrics(best: str) -> list[Metric]:
    """Return the metrics on the console of a training whose best epoch has the highest `best`, a key of `METRICS`."""
    group = {metric.key: metric.group for metric in METRICS}[best]
    return [metric for metric in METRICS if metric.live and (metric.group == "proposals") == (group == "proposals")]


def _short(name: str) -> str:
    """Return a class name that fits into a column."""
    name = printable(name).replace("\n", " ")
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."
