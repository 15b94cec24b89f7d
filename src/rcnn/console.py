"""Tables on a console, for commands and training logs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rcnn.errors import printable

if TYPE_CHECKING:
    from rich.console import Console

FILE_WIDTH = 1000
"""Characters per line of a table that is written to a file; on a terminal the terminal's width is used."""


def print_table(console: "Console", title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print an empty line, the title and the table. The first column is text, the others are numbers.

    In a narrow terminal, headings and the first column are wrapped, but numbers and words of headings are never cut.
    """
    from rich.table import Table
    from rich.text import Text

    headings, *cells = [[printable(text) for text in row] for row in (columns, *rows)]
    width = console.width if console.is_terminal else FILE_WIDTH
    longest = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    narrow = sum(longest) + 2 * (len(longest) - 1) > width
    grid = Table(box=None, pad_edge=False)
    for index, heading in enumerate(headings):
        least = max(len(text) for text in [*heading.split(), *(row[index] for row in cells), ""])
        justify = "right" if index else "left"
        grid.add_column(heading, justify=justify, overflow="fold", width=least if index and narrow else None)
    for row in cells:
        grid.add_row(*map(Text, row))
    console.print(Text(f"\n{printable(title)}", "bold"), soft_wrap=True)
    console.print(grid, crop=False, width=width)
