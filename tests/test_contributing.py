"""Check that the tables in CONTRIBUTING.md name existing files, and objects that are in them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLES = [TEXT[TEXT.index(heading) :].split("\n\n")[0] for heading in ("| change | files |", "| from, to | files |")]
ROWS = {row.split("|")[1].strip(): row.split("|")[2] for table in TABLES for row in table.splitlines()[2:]}


def path_of(name: str) -> Path:
    """Return the path of a file or folder in the package or, if it is not there, in the repository root."""
    package = ROOT / "src" / "rcnn" / name
    return package if package.exists() else ROOT / name


@pytest.mark.parametrize("change", ROWS)
def test_files_exist_and_contain_the_names_in_the_row(change: str) -> None:
    named = re.findall(r"`([^`]+)`", ROWS[change])
    paths = [path_of(name) for name in named if "/" in name or name.endswith((".py", ".html", ".js"))]
    assert paths, f"{change}: no file is named"
    missing = [str(path) for path in paths if not path.exists()]
    assert not missing, f"{change}: {', '.join(missing)} does not exist"
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    objects = [name for name in named if re.fullmatch(r"[A-Za-z_]\w*(\(\))?", name)]
    absent = [name for name in objects if not re.search(rf"\b{name.removesuffix('()')}\b", text)]
    assert not absent, f"{change}: {', '.join(absent)} is not in {', '.join(map(str, paths))}"
