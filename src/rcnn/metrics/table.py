"""The scores of a detector as text that fits a screen, and as a table of a notebook."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol

from rcnn.errors import printable, wrapped
from rcnn.metrics.coco import CocoMetrics
from rcnn.metrics.proposal_recall import ProposalMetrics
from rcnn.metrics.voc import NAMES, Name

HEADINGS = {
    "class": "class",
    "boxes": "boxes",
    "ap": "AP",
    "ap50": "AP50",
    **{name.key: name.heading for name in NAMES.values()},
}
"""Scores per class -> headings of the table. Of VOC's, a row has the one whose rule was asked for."""
LISTED = 16
"""Up to this many classes are listed as text; of more, the best and the worst of those with objects."""
LONGEST_NAME, WIDTH = 32, 80
PLURALS = {"image": "images", "box": "boxes", "class": "classes"}


class Scores(Protocol):
    """What is shown of `Metrics`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Class names."""
        ...

    @property
    def coco(self) -> CocoMetrics:
        """AP and AR."""
        ...

    @property
    def proposals(self) -> ProposalMetrics:
        """Recall of the proposals."""
        ...

    @property
    def voc_name(self) -> Name:
        """What VOC's AP is called by its rule."""
        ...

    @property
    def voc_map50(self) -> float:
        """Mean of it over the classes with objects."""
        ...

    @property
    def losses(self) -> dict[str, float]:
        """Mean of each loss."""
        ...

    @property
    def truths(self) -> Sequence[Any]:
        """One per image."""
        ...

    def by_class(self) -> list[dict[str, Any]]:
        """One row per class."""
        ...


def listed(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """Of many classes, those with objects; and what a title says of the others."""
    there = [row for row in rows if row["boxes"] or len(rows) <= LISTED]
    left = f" (without boxes here: {len(rows) - len(there)} of {len(rows)})" if len(there) < len(rows) else ""
    return there, left


def as_text(scores: Scores) -> str:
    """The scores in some twenty lines of at most 80 characters. Of many classes, those without objects are left out."""
    rows = scores.by_class()
    hidden = 0
    if len(rows) > LISTED:
        rows = sorted((row for row in rows if row["boxes"]), key=lambda row: -row["ap"])
        hidden = max(0, len(rows) - LISTED)
    if hidden:
        rows = [*rows[: LISTED // 2], *rows[-(LISTED // 2) :]]
    keys = _keys(scores)
    grid = [[HEADINGS[key] for key in keys], *([_shown(row[key]) for key in keys] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = [
        "  ".join(text.rjust(width) if place else text.ljust(width) for place, (text, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in grid)
    ]
    if hidden:
        lines.insert(1 + LISTED // 2, f"... {hidden} classes in between")
    return "\n".join([*(wrapped(line, WIDTH) for line in _summary(scores)), *lines])


def as_html(scores: Scores) -> str:
    """The scores of all classes as a table, below those of all together. Notebooks differ in how they align cells."""

    def row(tag: str, texts: Sequence[str]) -> str:
        sides = ("left", *["right"] * (len(texts) - 1))
        cells = zip(sides, map(escape, texts), strict=True)
        return "<tr>" + "".join(f'<{tag} style="text-align:{side}">{text}</{tag}>' for side, text in cells) + "</tr>"

    above, keys = "<br>".join(map(escape, _summary(scores))), _keys(scores)
    rows = [row("td", [_shown(entry[key]) for key in keys]) for entry in scores.by_class()]
    return f"<p>{above}</p><table>{row('th', [HEADINGS[key] for key in keys])}{''.join(rows)}</table>"


def _keys(scores: Scores) -> list[str]:
    """The columns of a row per class."""
    return [key for key in HEADINGS if key == scores.voc_name.key or key not in {name.key for name in NAMES.values()}]


def _summary(scores: Scores) -> list[str]:
    """Lines on all classes together; what is unknown is left out."""
    coco, recall = scores.coco, scores.proposals
    sizes = {"image": len(scores.truths), "box": int(coco.counts.sum()), "class": len(scores.names)}
    counts = ", ".join(f"{number:,} {thing if number == 1 else PLURALS[thing]}" for thing, number in sizes.items())
    sides = {name: getattr(coco, f"ap_{name}") for name in ("small", "medium", "large")}
    lines = {
        "": {"AP": coco.ap, "AP50": coco.ap50, "AP75": coco.ap75, scores.voc_name.mean: scores.voc_map50},
        "AP by size: ": sides,
        "proposals: ": {f"AR{top}": float(value) for top, value in zip(recall.tops, recall.ar, strict=True)},
        "losses: ": scores.losses,
    }
    known = {title: _pairs(numbers) for title, numbers in lines.items()}
    return [f"Metrics of {counts}", *(title + text for title, text in known.items() if text)]


def _pairs(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in numbers.items() if value == value)


def _shown(value: object) -> str:
    """A number with three decimals, a dash for NaN; a long name is cut."""
    if isinstance(value, float):
        return f"{value:.3f}" if value == value else "-"
    text = f"{value:,}" if isinstance(value, int) else printable(str(value)).replace("\n", " ")
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 3]}..."
