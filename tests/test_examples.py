"""The scripts of examples/ run, learn, and are short enough to read."""

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_an_rpn_on_a_network_of_timm_learns_to_propose() -> None:
    pytest.importorskip("timm")
    before, after = script("rpn_on_timm")["main"](steps=60, batch=4, side=96)
    assert 0 <= before < after <= 1


def test_an_rpn_in_a_model_of_ones_own_learns_with_its_second_part() -> None:
    main = script("rpn_in_your_model")["main"]
    untrained, trained = main(steps=0), main(steps=120)
    assert trained[0] < untrained[0]
    assert trained[1] < untrained[1]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.*")), ids=lambda path: path.name)
def test_every_example_is_short_and_has_a_page_that_links_to_it(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
    pages = (EXAMPLES.parent / "docs").glob("*.md")
    assert any(f"../examples/{path.name}" in page.read_text(encoding="utf-8") for page in pages)
