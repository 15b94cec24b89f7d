"""Parts of a page other than scores: the lost objects and false alarms of `why`, and experiments of the paper."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rcnn.report.scores import Count, Number, Plain
from rcnn.weights.file import atomic_write

PARTS = "report"
"""Name of the folder, in a folder of results, with the files that its page is made from."""

PAGE = "report.html"


class Loss(Plain):
    """Objects lost for one reason, or false alarms of one kind.

    Attributes:
        count: their number.
        by_class, by_size: their number by class and by size.
        ap_if_mended: AP without them; None if unknown.
    """

    count: Count
    by_class: dict[str, Count]
    by_size: dict[str, Count]
    ap_if_mended: Number


class WhyPart(Plain):
    """The part of `why.json` that a page shows; the attributes are those of `diagnose.why.tables.document`."""

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
    """A table of text.

    Attributes:
        title: above it.
        headings: of its columns; the first column has the names of the rows.
        rows: each as long as the headings.
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
        sentences: about the origin of the numbers.
        tables: results and orderings.
        picture: name of the WebP file of its plot, in the same folder; None if there is none.
    """

    title: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    picture: Annotated[str, Field(pattern=r"^[\w-]+\.webp$")] | None = None


def save_part(path: Path, part: Plain) -> None:
    """Write a part of a page as JSON."""
    atomic_write(path, part.model_dump_json().encode())
