"""Parts of a page besides scores: losses of objects as `why` finds them, and an experiment of the paper."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rcnn.report.scores import Count, Number, Plain
from rcnn.weights.file import atomic_write

PARTS = "report"
"""Folder, in a folder of results, of the files that its page is made from."""

PAGE = "report.html"


class Loss(Plain):
    """Objects lost at one place, or false alarms of one kind.

    Attributes:
        count: their number.
        by_class, by_size: the same, divided.
        ap_if_mended: the AP without them; None if unknown.
    """

    count: Count
    by_class: dict[str, Count]
    by_size: dict[str, Count]
    ap_if_mended: Number


class WhyPart(Plain):
    """What a page shows of `why.json`; the attributes are those of `diagnose.why.tables.document`."""

    split: str
    images: Count
    iou: float
    score: Number
    objects: Count
    found: Count
    ap: Number
    advice: str
    lost: dict[str, Loss]
    false_alarms: dict[str, Loss]


class Table(Plain):
    """A table of texts.

    Attributes:
        title: above it.
        headings: of its columns; the first column names the rows.
        rows: as long as the headings.
        note: below it.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


class ExperimentPart(Plain):
    """An experiment of the paper.

    Attributes:
        title: of the experiment.
        sentences: what the numbers are of.
        tables: results and orderings.
        picture: file of its plot beside it, a WebP; None for none.
    """

    title: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    picture: Annotated[str, Field(pattern=r"^[\w-]+\.webp$")] | None = None


def save_part(path: Path, part: Plain) -> None:
    """Write a part of a page as JSON."""
    atomic_write(path, part.model_dump_json().encode())
