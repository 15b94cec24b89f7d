"""Check the documentation against the code: settings, links, commands and examples.

`python tests/test_docs.py` prints the tables of docs/settings.md.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import typer
import yaml

import rcnn
from rcnn import errors, ops
from rcnn.cli.app import app
from rcnn.config import Settings, keys
from rcnn.config.aliases import ALIASES, SUGGESTIONS
from rcnn.images.decode import IMAGE_SUFFIXES
from rcnn.presets import PRESETS

ROOT = Path(__file__).parents[1]
PUBLIC_MODULES = {
    "rcnn.config": "the sections of settings, and `override`",
    "rcnn.data.synthetic": "data to try things out without a download",
    "rcnn.images.batch": "`Preprocessor`, for custom training loops",
    "rcnn.interop.torchvision": "`UserHead` and `as_backbone`, for custom modules",
    "rcnn.model.assign": "tensor functions that a user may call or replace",
    "rcnn.model.boxes": "the same",
    "rcnn.model.structures": "the tuples that custom modules take and return",
    "rcnn.model.suppress": "`NMS`, and the interface of custom suppressors",
    "rcnn.ops": "operators for PyTorch programs of any kind",
    "rcnn.teaching": "functions for exercises",
    "rcnn.training.recorders": "`Recorder`, the base class of custom loggers",
}
"""Purpose of each module that documentation and examples may import from, besides `rcnn`."""

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the info string and the text of each fenced block."""
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        yield match[1].strip(), match[2]


def settings_tables() -> str:
    """Return the tables of docs/settings.md, one per section."""
    schema = Settings.model_json_schema()
    tables = []
    for name, entry in schema["properties"].items():
        section = schema["$defs"][entry["$ref"].rsplit("/", 1)[1]]
        rows = [
            f"| `{name}.{key}` | `{shown(field['default'])}` | {allowed(field)} | {cell(field['description'])} |"
            for key, field in section["properties"].items()
        ]
        heading = f"## {name}\n\n{section['description'].splitlines()[0]}\n\n"
        tables.append(heading + "| setting | default | values | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(tables)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def shown(value: object) -> str:
    """Return a default value as it is written on the command line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("\n...")


def allowed(field: dict[str, Any]) -> str:
    """Return the allowed values of a setting."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(allowed(choice) for choice in field["anyOf"]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        return f"{len(field['prefixItems'])} numbers" if "prefixItems" in field else "list"
    plain = {"string": "text", "boolean": "`true`, `false`", "null": "`null`", "integer": "integer", "number": "number"}
    plain |= {"object": "mapping"}
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]}" for key, sign in signs.items() if key in field]
    return " ".join([plain[field["type"]], ", ".join(limits)]).strip()


def test_settings_tables_match_the_code() -> None:
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    lines, expected = text.splitlines(), settings_tables().splitlines()
    stale = [line for line in expected if line not in lines]
    assert not stale, "docs/settings.md is stale; `python tests/test_docs.py` prints:\n" + "\n".join(stale)
    start = lines.index(expected[0])
    assert lines[start : start + len(expected)] == expected  # each in its section, in the order of the code
    listed = set(re.findall(r"^\| `(\w+\.\w+)` \|", text, re.MULTILINE))
    assert listed == set(keys())


def test_the_documented_operators_match_the_code() -> None:
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"^`rcnn\.ops` has (.*)\.$", text, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", sentence)) == sorted(ops.__all__)


def test_every_alias_is_documented() -> None:
    rows = [line.split(" | ") for line in (ROOT / "docs/migrating.md").read_text(encoding="utf-8").splitlines()]
    pairs = {(name, here.strip("` |")) for elsewhere, *ours in rows for here in ours for name in named(elsewhere)}
    assert not {*ALIASES.items(), *SUGGESTIONS.items()} - pairs


def named(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_the_design_page_lists_all_commands() -> None:
    text = (ROOT / "docs/DESIGN.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"^`rcnn train`.*?\.", text, re.MULTILINE)
    listed = {name.removeprefix("rcnn ") for name in re.findall(r"`([^`]+)`", sentence)}
    commands: Any = typer.main.get_command(app)
    groups = {name: command for name, command in commands.commands.items() if hasattr(command, "commands")}
    assert listed == {
        *(name for name in commands.commands if name not in groups),
        *(f"{name} {'|'.join(group.commands)}" for name, group in groups.items()),
    }


def test_the_design_page_lists_all_exit_codes() -> None:
    text = (ROOT / "docs/DESIGN.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \| ", text[text.index("| exit code |") :], re.MULTILINE)
    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    assert set(map(int, listed)) == {0, *codes}


def test_the_layout_lists_every_package_and_module() -> None:
    layout = next(block for _, block in blocks(ROOT / "docs/DESIGN.md") if block.startswith("src/rcnn/"))
    inside = layout[: layout.index("\ntests/")]
    missing = []
    for path in sorted((ROOT / "src/rcnn").iterdir()):
        name = f"{path.name}/" if path.is_dir() else path.name
        if not name.startswith("__") and path.name != "py.typed" and name not in re.findall(r"[\w/.]+", inside):
            missing.append(name)
    assert not missing, f"docs/DESIGN.md, Layout: {', '.join(missing)}"
    named = set(re.findall(r"^  (\w+(?:/|\.py)) ", inside, re.MULTILINE))
    assert all((ROOT / "src/rcnn" / name).exists() for name in named)


def test_the_documented_image_suffixes_match_the_code() -> None:
    (line,) = [line for line in (ROOT / "docs/data.md").read_text(encoding="utf-8").splitlines() if "`.jpeg`" in line]
    assert re.findall(r"`(\.\w+)`", line) == list(IMAGE_SUFFIXES)


def test_every_preset_is_documented() -> None:
    text = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert not [name for name in PRESETS if f"`{name}`" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_link_targets_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_and_options_in_the_text_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w.])(\w+)\.(\w+)=", text)
    unknown = [f"{a}.{b}" for a, b in named if a in Settings.model_fields and f"{a}.{b}" not in set(keys())]
    assert not unknown
    shell = [block.replace("\\\n", " ") for info, block in blocks(page) if info in ("", "sh")]
    lines = [line for block in shell for line in block.splitlines()]
    wrong = [line for line in lines if re.search(r"(^|\s)rcnn ", line) and not is_command(line)]
    assert not wrong, f"{page.name}: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_names_in_the_text_exist(page: Path) -> None:
    named = set(re.findall(r"(?<![\w./-])rcnn(?:\.[A-Za-z_]\w*)+", page.read_text(encoding="utf-8")))
    for name in list(named):
        with suppress(ImportError, AttributeError):
            resolve_name(name)
            named.remove(name)
    assert not named


def test_the_tests_named_on_pages_exist() -> None:
    """`tests/FILE.py` and `tests/FILE.py::test_name`."""
    for page in PAGES:
        for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
            assert (ROOT / file).is_file(), f"{page.name}: {file}"
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") or not name, f"{page.name}: {name}"


def test_documentation_imports_public_names_only() -> None:
    sources = [(page.name, block) for page in PAGES for info, block in blocks(page) if info.startswith("python")]
    sources += [(path.name, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "examples").rglob("*.py"))]
    used = {(source, name) for source, code in sources for name in names_of_ours(ast.parse(code))}
    public = {f"rcnn.{name}" for name in rcnn.__all__} | {"rcnn", "rcnn.__version__"}
    private = {(source, name) for source, name in used if name not in public | PUBLIC_MODULES.keys()}
    assert not private
    assert {name for _, name in used} >= PUBLIC_MODULES.keys()


def names_of_ours(tree: ast.AST) -> Iterator[str]:
    """Yield modules of `rcnn` that code imports or imports names from, and names used as `rcnn.NAME`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "rcnn")
        elif isinstance(node, ast.ImportFrom) and node.module == "rcnn":
            yield from (f"rcnn.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rcnn."):
            yield str(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rcnn":
            yield f"rcnn.{node.attr}"


def is_command(line: str) -> bool:
    """Return whether a shell line calls an existing command with existing options."""
    words = shlex.split(line, comments=True)
    if "rcnn" not in words:
        return True  # only mentioned in a comment
    words = words[words.index("rcnn") + 1 :]
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "--debug"}
    return not hasattr(command, "commands") and {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("blank_figures")
def test_python_examples_compile_and_those_marked_run_are_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # examples write files
    names: dict[str, Any] = {"__name__": "example"}
    for info, block in blocks(page):
        if info.startswith("python"):
            code = compile(block, page.name, "exec")
            if info == "python run":
                exec(code, names)


if __name__ == "__main__":
    print(settings_tables())
