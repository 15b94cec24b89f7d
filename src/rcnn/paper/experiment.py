"""The definition of an experiment: measurements that fill a table's rows, the paper's numbers, and its claims."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from rcnn.paper.workspace import Training, Workspace

Numbers = Mapping[str, float]
"""Name of a quantity -> its value."""

Lookup = Callable[[str, str], float]
"""(row, quantity) -> its value, for one seed or in the paper; raises KeyError if there is none."""


class Measurement(NamedTuple):
    """A part of an experiment that is measured and resumed as a unit.

    Attributes:
        rows: rows of the table that it fills.
        measure: (workspace, seed) -> row -> numbers.
        needs: models that it measures.
        seeded: whether it differs between seeds. If not, it is measured once.
        proposals: source of external proposals for the scored images, in the terms of `train.proposals`. None: the
            measurement reads none.
        omitted: reason why it is left out, which the table shows in place of its numbers. Empty: it is measured.
    """

    rows: tuple[str, ...]
    measure: Callable[[Workspace, int], Mapping[str, Numbers]]
    needs: tuple[Training, ...] = ()
    seeded: bool = True
    proposals: str | None = None
    omitted: str = ""


class Column(NamedTuple):
    """A quantity that the table shows.

    Attributes:
        key: its name.
        heading: heading of its column.
        digits: decimals.
        plotted: whether it has a panel in the figure.
    """

    key: str
    heading: str
    digits: int = 1
    plotted: bool = True


class Claim(NamedTuple):
    """An ordering that the paper reports.

    Attributes:
        text: the ordering in words.
        difference: computed from the values of one seed or of the paper; positive if the ordering holds.
        slack: for two values that are about equal: the claim holds if the difference, of either sign, is smaller.
            None: the claim is an ordering.
        digits: decimals of the difference.
    """

    text: str
    difference: Callable[[Lookup], float]
    slack: float | None = None
    digits: int = 1


def greater(text: str, higher: str, lower: str, key: str = "map50") -> Claim:
    """Return the claim that one row has more of a quantity than another."""
    return Claim(text, lambda look_up: look_up(higher, key) - look_up(lower, key))


def close(text: str, first: str, second: str, slack: float) -> Claim:
    """Return the claim that the mAP of two rows differs by less than `slack`."""
    return greater(text, first, second)._replace(slack=slack)


MAP = Column("map50", "mAP50 %")
SCORES = (MAP, Column("ap", "AP %", plotted=False), Column("ar300", "AR300 %", plotted=False))
"""Scores: VOC's mean AP at IoU 0.5; COCO's AP; mean recall of 300 proposals. The paper reports the first."""


@dataclass(frozen=True)
class Experiment:
    """A table of the paper.

    Attributes:
        title: what is compared.
        source: the place of the paper's numbers, and what they were measured on.
        columns: the quantities shown, the most important first.
        measurements: the parts of the experiment.
        paper: row -> the paper's numbers.
        claims: the paper's orderings.
        notes: further sentences for the reader.
    """

    title: str
    source: str
    columns: tuple[Column, ...]
    measurements: tuple[Measurement, ...]
    paper: Mapping[str, Numbers]
    claims: tuple[Claim, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """Rows of the table, in the order of the measurements."""
        return tuple(row for measurement in self.measurements for row in measurement.rows)

    def paper_number(self, row: str, key: str) -> float:
        """Return the paper's number; NaN if it gives none."""
        return self.paper.get(row, {}).get(key, math.nan)

    def eleven_point(self) -> "Experiment":
        """Return the same experiment with a heading that names VOC 2007's rule of AP, `val.voc_ap=11-point`."""
        heading = f"{MAP.heading}, 11-point"
        columns = (column._replace(heading=heading) if column.key == MAP.key else column for column in self.columns)
        return replace(self, columns=tuple(columns))

    @property
    def measured(self) -> tuple[Measurement, ...]:
        """The measurements that are not omitted."""
        return tuple(measurement for measurement in self.measurements if not measurement.omitted)

    @property
    def omitted(self) -> dict[str, str]:
        """Row that is not measured -> the reason."""
        return {row: part.omitted for part in self.measurements if part.omitted for row in part.rows}

    @property
    def trainings(self) -> list[Training]:
        """The models to train for each seed, without repetition."""
        return list({training.name: training for part in self.measured for training in part.needs}.values())
