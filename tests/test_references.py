"""docs/references.md maps every section of the five texts to pages, code, tests and commands that exist."""

import re
from pathlib import Path

import pytest
import torch
from torchvision.ops import box_iou

from rcnn.config import keys
from tests.test_docs import blocks
from tests.test_paper_map import check_command, look_up, quoted

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "references.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"^## (\d{3}): [^\n]*\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
ROWS = [
    (text, [cell.strip() for cell in line.split("|")[1:-1]])
    for text, part in PARTS.items()
    for line in part.splitlines()
    if line.count("|") == 7 and not line.startswith(("| section", "|---"))
]
SECTIONS = {
    "000": [
        *("Abstract", "Introduction", "Faster R-CNN", "Region Proposal Network", "Anchors"),
        *("Translation-Invariant Anchors", "Multi-Scale Anchors as Regression References", "Loss Function"),
        *("Training RPNs", "Sharing Features for RPNs and Fast R-CNN", "Implementation Details", "Algorithm"),
    ],
    "001": ["Region Proposal Network", "Architecture and Working", "Training", "Hard Negative Mining"],
    "002": [
        *("How can RPN learn from feature maps?", "How does it generate boxes at image level?", "What are anchors?"),
        *("How does it cover boxes of all shapes?", "Won't there be any missing box?", "How much recall does it have?"),
        *("What if my box is very small?", "Object Detection approach", "Anchor point"),
        *("`rpn_cls_score` and `rpn_bbox_pred`", "Proposal generation"),
    ],
    "003": [
        *("Introduction", "Core Innovation: Anchor", "Overall Architecture"),
        *("Classification Head", "Regression Head", "Procedure"),
    ],
    "004": [
        *("Motivation", "Architecture", "Anchor Generation", "Multi-Scale Anchors with FPN", "Anchor Assignment"),
        *("RPN Loss", "Proposal Filtering", "Summary"),
    ],
}


def slugs(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_section_of_every_text_has_a_row() -> None:
    assert set(PARTS) == set(SECTIONS)
    for text, sections in SECTIONS.items():
        assert list(dict.fromkeys(cells[0] for of, cells in ROWS if of == text)) == sections


@pytest.mark.parametrize(("text", "cells"), ROWS, ids=[f"{text}-{cells[0]}-{cells[1]}" for text, cells in ROWS])
def test_what_a_row_names_exists(text: str, cells: list[str]) -> None:
    _, what, page, functions, tests, commands = cells
    assert what
    assert "](" in page
    assert quoted(functions)
    assert quoted(tests)
    for name in quoted(functions):
        assert name in keys() or look_up(name) is not None
    for test in quoted(tests):
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (DOCS.parent / "tests" / file).read_text(encoding="utf-8"), f"{test} is no test"
    for command in quoted(commands):
        check_command(command)


def test_links_lead_to_headings() -> None:
    for page, fragment in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", TEXT):
        assert fragment in slugs(DOCS / (page or "references.md")), f"{page}#{fragment}"


def test_settings_and_functions_in_the_text_exist() -> None:
    prose = re.sub(r"^```.*?^```", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    named = {name.partition("=")[0] for name in quoted(prose) if re.fullmatch(r"[a-z_]+(\.\w+)+(=\S+)?", name)}
    for name in named:
        assert name in keys() or look_up(name) is not None


def test_the_rpn_that_is_pasted_learns_its_image() -> None:
    names: dict = {"__name__": "example"}
    for info, block in blocks(DOCS / "references.md"):
        if info == "python run":
            exec(compile(block, "references.md", "exec"), names)
    nearest = box_iou(names["objects"][0], names["boxes"][:10]).amax(dim=1)
    assert (nearest > 0.5).all()
    assert torch.equal(names["scores"], names["scores"].sort(descending=True).values)
