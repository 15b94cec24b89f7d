"""Every figure that is attributed to the paper stands in `rcnn.paper.quoted` under the source that is named beside it.

`python tests/test_quotes.py` prints the table for docs/paper.md.

The tests read the pages, and the strings and comments of the source. A passage is a sentence or a cell of a table. It
quotes the paper if it contains the word, or if it is a cell whose heading or introduction contains it. Its numbers must
be figures of the sources that are named in it or near it: in the same paragraph, in the heading of the column, or in
the text above the table up to the last heading or the last paragraph that starts in bold.
"""

import ast
import io
import math
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from rcnn.paper.by_name import EXPERIMENTS
from rcnn.paper.quoted import QUOTES, TABLE_3, TABLE_4, TABLE_6, TABLE_7, TABLES, Quote
from rcnn.paper.results import judge_all
from rcnn.presets import settings_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
SOURCES = sorted(path for kind in ("py", "js", "html") for path in (ROOT / "src").rglob(f"*.{kind}"))

NUMBER = re.compile(r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?!\w|,\d)|(?<![\w.^])\d+(?:\.\d+)?k?(?![\w^]|\.\d)")
PLACE = re.compile(
    r"(?:tables?|sections?|figures?|equations?) \d[\d.]*(?:(?:,| and| to|, and) \d[\d.]*)*(?: of the journal version)?"
    r"|(?:Python|MATLAB|OHEM) code",
    re.IGNORECASE,
)
NAMES = re.compile(
    r"VOC(?:'s)? 20\d\d(?: and 20\d\d)?|VGG-16|ResNet-\d+|MobileNetV2|arXiv [\d.v]+|Philox4x32-10|reference-004|K40"
    r"|[Ss]tages? \d(?:(?:,| and) \d)*|[Ss]tep \d|(?<![\w,])00[0-4]\b"
)
"""Digits that are no figures."""

OURS: dict[tuple[str, str], set[float]] = {
    # A number of the tutorial, which the sentence contrasts with the paper.
    ("docs/references.md", "2,000 boxes before NMS, no clipping"): {2000},
    # `paper` is one of the divisors that the sentence lists; this is of another.
    ("src/rcnn/model/losses.py", "mean: N_reg = 4 x positives"): {4},
}
"""(file, part of the passage) -> numbers of our own in a passage that names the paper as well."""


class Passage(NamedTuple):
    """A passage, and the text around it in which sources may be named."""

    text: str
    near: str
    quotes: bool


def plain(text: str) -> str:
    """Without code, addresses of links and formatting."""
    text = re.sub(r"`[^`]*`", " ", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\brcnn paper\b|\bpaper(?:\.md|-\w+)", " ", text)
    return text.replace("**", "").replace("*", "")


def names_paper(text: str) -> bool:
    return bool(re.search(r"\bpaper\b", plain(text), re.IGNORECASE))


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+(?=[^a-z])|\n\n+", text)


def passages(page: str) -> Iterator[Passage]:
    """Passages of a page of Markdown."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    section, last = "", ""
    for block in re.split(r"\n\s*\n", page):
        lines = block.strip().splitlines()
        if not lines:
            continue
        if len(lines) > 1 and set(lines[1]) <= set("|-: "):
            yield from cells(lines, section, last)
            continue
        if block.startswith(("#", "**")):
            section = ""
        section, last = f"{section}\n{block}", block
        for item in re.split(r"\n(?=\s*(?:[-*]|\d+\.) )", block):
            yield from (Passage(text, item, names_paper(text)) for text in sentences(item))


def split_rows(lines: list[str]) -> list[list[str]]:
    """Headings and rows of a table of Markdown."""
    cut = (re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|")) for line in lines)
    rows = [[cell.strip() for cell in row] for row in cut]
    return [rows[0], *rows[2:]]


def cells(lines: list[str], above: str, introduction: str) -> Iterator[Passage]:
    headings, *rows = split_rows(lines)
    if headings[:2] in (["", "runs"], ["", "ordering"]):
        return  # printed by `rcnn paper`, and compared with it below
    introduced = introduction.rstrip().endswith(":") and names_paper(sentences(introduction)[-1])
    for row in rows:
        for heading, cell in zip(headings, row, strict=False):
            near = f"{cell}\n{heading}\n{above}"
            quotes = introduced or names_paper(heading)
            yield from (Passage(text, near, quotes or names_paper(text)) for text in sentences(cell))


def strings(path: Path) -> Iterator[Passage]:
    """Passages of a file of source: its strings, and in Python its comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        found = text.splitlines()
    else:
        found = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant | ast.Expr)]
        found = [value for value in found if isinstance(value, str)]
        marks = tokenize.generate_tokens(io.StringIO(text).readline)
        found += [mark.string for mark in marks if mark.type == tokenize.COMMENT]
    for one in found:
        yield from (Passage(part, one, names_paper(part)) for part in sentences(re.sub(r"\n(?=[^\n])", " ", one)))


def places(text: str) -> set[str]:
    """Sources named in a text, as `table 9`."""
    found = set()
    for match in PLACE.findall(plain(text)):
        if match.lower().endswith(" code"):
            found.add(match)
            continue
        kind, *numbers = re.findall(r"[A-Za-z]+|\d+(?:\.\d+)*", match.removesuffix(" of the journal version"))
        journal = " of the journal version" if match.endswith("journal version") else ""
        found |= {f"{kind.lower().rstrip('s')} {number}{journal}" for number in numbers if number[0].isdigit()}
    return found


def numbers(text: str) -> set[float]:
    """Figures in a text; 60k is 60000."""
    text = NAMES.sub(" ", PLACE.sub(" ", plain(text)))
    found = (number.replace(",", "") for number in NUMBER.findall(text))
    return {float(number.rstrip("k")) * (1000 if number.endswith("k") else 1) for number in found}


def figures(quote: Quote) -> set[float]:
    """All figures of a quote, and the numbers that its rows are called by."""
    values = {value for row in quote.rows.values() for value in row if not math.isnan(value)}
    return values | set().union(*(numbers(name) for name in (quote.what, *quote.rows)))


FIGURES: dict[str, set[float]] = {}
for quoted in QUOTES:
    FIGURES[quoted.source] = FIGURES.get(quoted.source, set()) | figures(quoted)


def foreign(file: str, found: Iterator[Passage]) -> list[str]:
    """Passages that quote the paper with numbers that the sources named do not have."""
    wrong = []
    for passage in found:
        if not passage.quotes:
            continue
        known = set().union(*(FIGURES.get(place, set()) for place in places(passage.near)))
        for (name, part), ours in OURS.items():
            if name == file and part in passage.text:
                known |= ours
        if unknown := numbers(passage.text) - known:
            wrong.append(f"{file}: {sorted(unknown)} in: {passage.text.strip()}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_quotes_no_other_figures(page: Path) -> None:
    wrong = foreign(page.relative_to(ROOT).as_posix(), passages(page.read_text(encoding="utf-8")))
    assert not wrong, "\n".join(wrong)


def test_the_source_quotes_no_other_figures() -> None:
    paths = (path for path in SOURCES if path.name != "quoted.py")
    wrong = [text for path in paths for text in foreign(path.relative_to(ROOT).as_posix(), strings(path))]
    assert not wrong, "\n".join(wrong)


PLANTED = """The paper (section 3.2) needs {} steps, a quarter of {}.

The paper has 9 anchors (section 3.1.1). We have 3.

| | the paper | here |
|---|---|---|
| scheme (table 9) | {} (section 3.2) | 90.1 |

**Table.** The paper measures (table 9):

| lambda | mAP |
|---|---|
| 10 | {} |
"""


@pytest.mark.parametrize(
    ("inserted", "found"),
    [
        ((4, 4, 4, 69.9), []),
        ((4, 16, 4, 69.9), [[16.0]]),
        ((4, 4, 70.0, 69.9), [[70.0]]),  # it stands in table 3, and not in section 3.2
        ((4, 4, 4, 70.0), [[70.0]]),
        (("69.9", "4", "4", "69.8"), [[69.9], [69.8]]),
        (("20,000", "60k", 4, 69.9), [[20000.0, 60000.0]]),
    ],
)
def test_a_planted_figure_is_found(inserted: tuple[object, ...], found: list[list[float]]) -> None:
    wrong = foreign("page.md", passages(PLANTED.format(*inserted)))
    assert [ast.literal_eval(text.removeprefix("page.md: ").partition(" in: ")[0]) for text in wrong] == found


def test_a_planted_figure_is_found_in_the_source(tmp_path: Path) -> None:
    path = tmp_path / "planted.py"
    path.write_text(
        '"""Table 9: the paper has 69.9.\n\nIn the paper\n70.0 (table 9)."""\n# the paper (table 9): 68.9, and 12.5\n',
    )
    wrong = foreign("planted.py", strings(path))
    assert [text.partition(" in: ")[0] for text in wrong] == ["planted.py: [70.0]", "planted.py: [12.5]"]


def test_sources_are_named_in_many_ways() -> None:
    text = "Table 9, sections 3.1.1 and 3.3, tables 6, 7 and 8, table 10 of the journal version; Python code"
    assert places(text) == {
        *("table 9", "section 3.1.1", "section 3.3", "table 6", "table 7", "table 8"),
        *("table 10 of the journal version", "Python code"),
    }
    assert numbers("VOC 2007 with 2,400 cells, 60k steps, 25-50%, 9.5. See [table 9](page.md#a-1), `x=3`.") == {
        *(2400, 60_000, 25, 50, 9.5)
    }


def test_means_of_the_classes_are_the_means() -> None:
    """A check of 220 typed numbers: the paper's mAP is the mean over the classes, to the last digit."""
    for quote in (TABLE_6, TABLE_7):
        for name, (mean, *classes) in quote.rows.items():
            assert len(classes) == 20
            assert sum(classes) / 20 == pytest.approx(mean, abs=0.051), f"{quote.source}, {name}"


def test_figures_of_several_tables_agree() -> None:
    three, six = TABLE_3.column(), TABLE_6.column("mAP")
    assert [three[name] for name in three if "this implementation" not in name] == list(six.values())
    assert list(TABLE_4.column().values()) == list(TABLE_7.column("mAP").values())


# --- experiments -----------------------------------------------------------------------------------------------------

PAPER_PAGE = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
SETTINGS = settings_of("paper-zf")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_the_figures_of_its_source(name: str) -> None:
    experiment = EXPERIMENTS[name](SETTINGS)
    known = set().union(*(FIGURES.get(place, set()) for place in places(experiment.source)))
    assert {number for row in experiment.paper.values() for key, number in row.items() if key != "ratio"} <= known


def test_experiments_write_no_figure_themselves() -> None:
    """Floats in their files that are figures of a table would not be checked with it."""
    measured = {value for quote in TABLES for row in quote.rows.values() for value in row if isinstance(value, float)}
    for make in EXPERIMENTS.values():
        path = Path(make.__code__.co_filename)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        floats = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not {value for value in floats if isinstance(value, float)} & measured, path


def test_results_on_the_page_stand_beside_the_papers() -> None:
    """In the tables that `rcnn paper` printed."""
    experiments = [make(SETTINGS) for make in EXPERIMENTS.values()]
    blocks = (block.strip().splitlines() for block in re.split(r"\n\s*\n", PAPER_PAGE))
    tables = [split_rows(lines) for lines in blocks if len(lines) > 2 and lines[0].startswith("|")]
    for headings, *rows in (table for table in tables if table[0][:2] == ["", "runs"]):
        names = {row[0] for row in rows if row[0] != "paper"}
        (experiment,) = [experiment for experiment in experiments if names <= set(experiment.rows)]
        keys = {column.heading: column.key for column in experiment.columns}
        for above, row in zip([[""], *rows], rows, strict=False):
            if row[0] == "paper":
                assert row[2:] == [shown(experiment.paper_number(above[0], keys[heading])) for heading in headings[2:]]
            elif "paper" in headings:
                assert row[headings.index("paper")] == shown(experiment.paper_number(row[0], "map50")), row
            else:
                assert not experiment.paper.get(row[0]) or rows[rows.index(row) + 1][0] == "paper", row


def shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.{0 if value >= 100 else 1}f}"


def test_orderings_on_the_page_have_the_papers_differences() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| ([-.\d]+) \| -?\d+\.\d \|", PAPER_PAGE, re.MULTILINE)
    assert len(rows) > 15
    for name, ordering, difference in rows:
        judged = judge_all(EXPERIMENTS[name](SETTINGS), {}, [])
        (paper,) = [one.paper for one in judged if one.claim.text == ordering]
        assert difference == shown(paper), ordering


# --- the table of the page ------------------------------------------------------------------------------------------


def table_of_quotes() -> str:
    """The table of docs/paper.md."""
    lines = ["| source | what | figures |", "|---|---|---|"]
    for quote in QUOTES:
        columns = f" ({'; '.join(quote.columns)})" if len(quote.columns) > 1 else ""
        unit = f"; {quote.columns[0]}" if len(quote.columns) == 1 and quote.columns[0] else ""
        rows = "; ".join(f"{name}: {', '.join(map(written, row))}" for name, row in quote.rows.items())
        lines.append(f"| {quote.source} | {quote.what}{unit}{columns} | {rows} |")
    return "\n".join(lines)


def written(figure: float) -> str:
    return "-" if math.isnan(figure) else str(figure)


def test_the_page_has_every_quoted_figure() -> None:
    assert table_of_quotes() in PAPER_PAGE, "docs/paper.md is stale: `python tests/test_quotes.py` prints its table"


if __name__ == "__main__":
    print(table_of_quotes())
