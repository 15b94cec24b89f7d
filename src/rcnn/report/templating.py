"""Templates, styles and scripts of the pages: `report.html`, and those that `rcnn look` and `rcnn explain` show."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from rcnn.report import charts, svg

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


@cache
def environment(*folders: Path) -> "Environment":
    """Return the templates of `folders` and of the report, which escape all text. They are compiled once."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([folder / "templates" for folder in (*folders, HERE)])
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.filters |= {"number": charts.shown, "short": svg.short}
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    return templates


def static(name: str, folder: Path = HERE) -> str:
    """Return the text of a style sheet or script in `static` of the report, or of another folder of pages."""
    return (folder / "static" / name).read_text(encoding="utf-8")


def named_by_hash(text: str) -> str:
    """Return the hash by which a content policy allows an inline style sheet or script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
