"""The pictures of `why`: shares of lost objects by class and size, false alarms, and the worst images."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.diagnose.why.outcomes import ALARMS, FOUND, MISS_REASONS, Why
from rcnn.diagnose.why.tables import CountedByKind, WhyReport, count_by_kind, possible_reasons
from rcnn.draw import PALETTE, text_colour
from rcnn.images.decode import read_image
from rcnn.plots.contact_sheet import Tile, contact_sheet
from rcnn.plots.figure import GREY, INK, new_figure, save, short, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (*MISS_REASONS, *ALARMS)
INKS = dict(zip(KINDS, PALETTE, strict=True))
"""Kind -> colour, the same in both pictures."""

TAGS = {
    "no_anchor": "no anchor",
    "not_in_top_k": "not proposed",
    "no_proposal": "proposal lost",
    "no_box": "no box",
    "other_class": "other class",
    "low_score": "low score",
    "suppressed": "suppressed",
    "duplicate": "duplicate",
    "bad_box": "bad box",
    "wrong_class": "wrong class",
    "background": "background",
    "missing_label": "label missing?",
}
"""Kind -> the tag on its boxes and the heading of its column."""

MAX_IMAGES = 9
"""Number of images drawn, those with the most mistakes."""

MAX_CLASSES = 12
"""Number of classes drawn, those with the most errors."""


def draw_why(report: WhyReport, path: Path) -> None:
    """Draw lost objects and false alarms by kind, class and size, and the AP if each kind were corrected."""
    why = report.why
    counted = count_by_kind(why.outcomes, why.names)
    title = f"Where {len(why.all_lost()):,} of {len(why.outcomes):,} objects are lost at IoU {why.iou:g}"
    title += f" and score {why.score:.2f}" if why.predicts_classes else ""
    reasons = possible_reasons(why)
    panels = [(title, "objects", _drawn(counted, reasons), reasons)]
    if why.predicts_classes:
        detections = [
            alarms._replace(counts=alarms.counts + Counter({FOUND: objects.counts[FOUND]}))
            for alarms, objects in zip(count_by_kind(why.alarms, why.names), counted, strict=True)
        ]
        title = f"What {len(why.alarms):,} of {detections[0].counts.total():,} detections wrongly show"
        panels.append((title, "detections", _drawn(detections, ALARMS), ALARMS))
    heights = [len(drawn) + 3 for _, _, drawn, _ in panels]
    ratios = {"width_ratios": (1.55, 1), "height_ratios": heights}
    figure, grid = new_figure(len(panels), 2, 12.5, 0.36 * sum(heights) + 1.3, **ratios)
    figure.set_dpi(120)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, wspace=0.02, hspace=0.03)
    for (left, right), (title, what, drawn, kinds) in zip(grid, panels, strict=True):
        style(left, title, f"share of the {what}", "")
        _bars(left, drawn, kinds)
        _gains(right, report, kinds, len(drawn))
    text = fill(report.advice.replace("$", r"\$"), 125)
    figure.supxlabel(text, x=0.012, ha="left", fontsize=10.5, color=INK, linespacing=1.4)
    save(figure, path)


def draw_worst(why: Why, dataset: Dataset, settings: Settings, path: Path) -> None:
    """Draw the images with the most mistakes side by side: lost objects in solid lines, false alarms in dashed ones.

    The first images are drawn if there are no mistakes.
    """
    mistakes = Counter(item.image for item in (*why.all_lost(), *why.alarms))
    worst = [image for image, _ in mistakes.most_common(MAX_IMAGES)] or range(min(MAX_IMAGES, len(dataset)))
    names = [f"{name} {TAGS[kind]}" for name in why.names for kind in KINDS]  # so that a kind has one colour
    contact_sheet([_mistakes(why, image, dataset, settings) for image in worst], names, path, columns=3, side=620)


def _mistakes(why: Why, image: int, dataset: Dataset, settings: Settings) -> Tile:
    record, data = dataset.records[image], settings.data
    lost = [outcome for outcome in why.all_lost() if outcome.image == image]
    alarms = [alarm for alarm in why.alarms if alarm.image == image]
    kinds = [(outcome.label, outcome.where) for outcome in lost] + [(alarm.label, alarm.kind) for alarm in alarms]
    rows = np.array([outcome.truth for outcome in lost], np.int64)
    detections = np.array([alarm.detection for alarm in alarms], np.int64)
    ending = "s" * (len(alarms) != 1)
    channels = settings.preprocess.in_channels
    return Tile(
        read_image(record.path, white=data.white, max_pixels=data.max_pixels, in_channels=channels),
        np.concatenate((why.truths[image].boxes[rows], why.predictions[image].boxes[detections])),
        np.array([label * len(KINDS) + KINDS.index(kind) for label, kind in kinds], np.int64),
        f"{record.name}: {len(lost)} of {(~record.ignore).sum()} lost, {len(alarms)} false alarm{ending}",
        ignore=np.arange(len(kinds)) >= len(lost),
    )


def _drawn(counted: Sequence[CountedByKind], kinds: dict[str, str]) -> list[CountedByKind]:
    """Return the groups to draw: all, the classes with the most of these kinds if there are several, and the sizes."""
    classes = [group for group in counted if group.section == "class" and group.counts]
    classes.sort(key=lambda group: -sum(group.counts[kind] for kind in kinds))
    sizes = [group for group in counted if group.section == "size"]
    return [counted[0], *(classes[:MAX_CLASSES] if len(classes) > 1 else ()), *sizes]


def _bars(axes: "Axes", drawn: Sequence[CountedByKind], kinds: dict[str, str]) -> None:
    """Draw one stacked bar of shares per group, divided into kinds, with numbers in the wide parts."""
    totals = [max(1, group.counts.total()) for group in drawn]
    ends = [sum(group.counts[kind] for kind in kinds) / total for group, total in zip(drawn, totals, strict=True)]
    reach = max(ends) * 1.3 or 1.0
    ticks = []
    for number, (group, total, end) in enumerate(zip(drawn, totals, ends, strict=True)):
        sections = len({above.section for above in drawn[: number + 1]})
        height = number + 0.5 * (sections - 1)
        ticks.append(height)
        left = 0.0
        for kind in kinds:
            width = group.counts[kind] / total
            axes.barh(height, width, left=left, height=0.74, color=INKS[kind], edgecolor="white", linewidth=0.6)
            if width > 0.035 * reach:
                ink, middle = text_colour(INKS[kind]), left + width / 2
                axes.text(middle, height, f"{group.counts[kind]:,}", ha="center", va="center", fontsize=8, color=ink)
            left += width
        text = f"{100 * end:.1f}% of {group.counts.total():,}" if group.counts else "none"
        axes.text(end + 0.008 * reach, height, text, va="center", fontsize=8.5, color=INK)
    axes.set_yticks(ticks, [short(group.title) for group in drawn], fontsize=9)
    axes.set(xlim=(0, reach), ylim=(ticks[-1] + 0.6, -0.6))
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%" if share < 1.001 else "")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _gains(axes: "Axes", report: WhyReport, kinds: dict[str, str], rows: int) -> None:
    """Draw one bar per kind: the AP that correcting it would add, or without AP the number of objects.

    The labels serve as legend. Bars are as thick as the `rows` bars next to them.
    """
    if report.why.predicts_classes:
        style(axes, f"What mending adds to AP {report.ap:.3f}", "", "")
        values = {kind: report.gain(kind) for kind in kinds}
        texts = {kind: f"+{value:.3f}" for kind, value in values.items()}
    else:
        style(axes, "Where", "objects", "")
        values = {kind: float(len(report.why.lost(kind))) for kind in kinds}
        texts = {kind: f"{value:.0f}" for kind, value in values.items()}
    gains = [report.gain(kind) for kind in report.mended] or list(values.values())  # both panels on one scale
    reach = float(np.nan_to_num(np.array(gains)).max()) * 1.22 or 1.0
    for row, kind in enumerate(kinds):
        end = float(np.nan_to_num(values[kind]))
        axes.barh(row, end, height=0.74 * min(1.0, len(kinds) / (rows + 1)), color=INKS[kind])
        axes.text(end + 0.012 * reach, row, texts[kind], va="center", fontsize=8.5, color=INK if end else GREY)
        beside = axes.get_yaxis_transform()
        axes.plot(-0.028, row, marker="s", markersize=8, color=INKS[kind], transform=beside, clip_on=False)
    axes.set_yticks(range(len(kinds)), list(kinds.values()), fontsize=9)
    axes.tick_params(axis="y", length=0, pad=15)
    axes.set(xlim=(0, reach), ylim=(len(kinds) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
