"""Parts of an experiment: measurements that fill a table's rows, the paper's numbers and the orderings it reports."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from rcnn.paper.lab import Lab, Training

Numbers = Mapping[str, float]
"""Name of a quantity -> its value."""

Look = Callable[[str, str], float]
"""(row, quantity) -> its value, of one seed or of the paper; a KeyError where there is none."""


class Measurement(NamedTuple):
    """A part of an experiment that is done, and resumed, as a whole.

    Attributes:
        rows: rows of the table that it fills.
        measure: (lab, seed) -> row -> numbers.
        needs: models that it measures.
        seeded: whether it differs between seeds. If not, it is done once.
        given: where it reads proposals for the images that are scored, as `train.proposals` names it. None: nowhere.
        lacks: why it is not done, which the table says in place of its numbers. Empty: it is done.
    """

    rows: tuple[str, ...]
    measure: Callable[[Lab, int], Mapping[str, Numbers]]
    needs: tuple[Training, ...] = ()
    seeded: bool = True
    given: str | None = None
    lacks: str = ""


class Column(NamedTuple):
    """A quantity that is shown.

    Attributes:
        key: its name.
        heading: heading of its column.
        digits: decimals.
        plotted: whether it has a panel in the picture.
    """

    key: str
    heading: str
    digits: int = 1
    plotted: bool = True


class Claim(NamedTuple):
    """An ordering that the paper reports.

    Attributes:
        text: the ordering in words.
        difference: of one seed's values, or of the paper's; positive where the ordering holds.
        slack: for `about equal`: the ordering holds where the difference, of either sign, is smaller. None: an order.
        digits: decimals of the difference.
    """

    text: str
    difference: Callable[[Look], float]
    slack: float | None = None
    digits: int = 1


def more(text: str, higher: str, lower: str, key: str = "map50", digits: int = 1) -> Claim:
    """The claim that one row has more of a quantity than another."""
    return Claim(text, lambda look: look(higher, key) - look(lower, key), digits=digits)


def close(text: str, first: str, second: str, slack: float, key: str = "map50") -> Claim:
    """The claim that two rows differ by less than `slack`."""
    return Claim(text, lambda look: look(first, key) - look(second, key), slack)


MAP = Column("map50", "mAP50 %")
ELEVEN_POINT = "mAP50 %, 11-point"
"""Heading of `MAP` with `val.voc_ap=11-point`."""
SCORES = (MAP, Column("ap", "AP %", plotted=False), Column("ar300", "AR300 %", plotted=False))
"""Of detectors: VOC's mean AP at IoU 0.5; COCO's; mean recall of 300 proposals. The first is the paper's measure."""


@dataclass(frozen=True)
class Experiment:
    """A table of the paper.

    Attributes:
        title: what is compared.
        source: where the paper's numbers are from, and what they were measured on.
        columns: what is shown, the most important first.
        runs: what is done.
        paper: row -> the paper's numbers.
        claims: the paper's orderings.
        notes: what else is worth saying.
    """

    title: str
    source: str
    columns: tuple[Column, ...]
    runs: tuple[Measurement, ...]
    paper: Mapping[str, Numbers]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """Rows of the table, in the order of the runs."""
        return tuple(row for run in self.runs for row in run.rows)

    def given(self, row: str, key: str) -> float:
        """The paper's number; NaN where it gives none."""
        return self.paper.get(row, {}).get(key, math.nan)

    def eleven_point(self) -> "Experiment":
        """The same experiment, whose mAP50 is said to be VOC 2007's."""
        columns = (
            column._replace(heading=ELEVEN_POINT) if column.key == MAP.key else column for column in self.columns
        )
        return replace(self, columns=tuple(columns))

    @property
    def done(self) -> tuple[Measurement, ...]:
        """The runs that lack nothing."""
        return tuple(run for run in self.runs if not run.lacks)

    @property
    def lacking(self) -> dict[str, str]:
        """Row that is not measured -> why."""
        return {row: run.lacks for run in self.runs if run.lacks for row in run.rows}

    @property
    def trainings(self) -> list[Training]:
        """What is trained for each seed, each once."""
        return list({training.name: training for run in self.done for training in run.needs}.values())
