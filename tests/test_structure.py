"""The package's shape: who imports whom, no circles, every file alone, plain ASCII, short names and parameter lists.

Run as a script, this file prints the longest files and functions. Length is information, not a limit.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
SCRIPTS = sorted(path for folder in ("benchmarks", "scripts") for path in (SOURCE.parent / folder).glob("*.py"))

TENSORS = {"model", "backbones", "ops", "config"}
DETECTOR = {"detector", "runtime", "draw", "weights", "images", "result", "merge_views", "presets"} | TENSORS
DATA = {"data", "model", "images", "config"}
SCORES = {"evaluate", "metrics"} | DETECTOR | DATA
MAY_IMPORT = {
    "errors": set(),
    "config": set(),
    "ops": set(),
    "metrics": set(),
    "draw": set(),
    "model": {"ops", "config"},
    "teaching": {"model"},
    "backbones": {"model", "ops", "config"},
    "weights": TENSORS,
    "presets": TENSORS,
    "images": {"model", "config"},
    "runtime": {"weights", "images"} | TENSORS,
    "data": DATA,
    "result": {"draw", "data", "images", "config"},
    "merge_views": {"result", "ops", "images", "config"},
    "detector": DETECTOR,
    "interop": DETECTOR,
    "exporting": DETECTOR,
    "open_model": {"interop"} | DETECTOR,
    "plots": {"draw", "metrics"} | DATA,
    "evaluate": {"open_model"} | SCORES,
    "diagnose": {"plots"} | SCORES,
    "report": {"diagnose", "plots"} | SCORES,
    "look": {"report", "diagnose"} | SCORES,
    "training": {"report", "diagnose", "plots", "open_model"} | SCORES,
    "paper": {"training", "report", "plots"} | SCORES,
}
"""Part -> parts of ours that it may import, itself and `errors` always, also inside functions; `cli` may all."""

MOST_PARAMETERS, LONGEST_NAME = 8, 32

IMPORT_EACH_ALONE = """
import gc, sys
import matplotlib, numpy, PIL.Image, pydantic, rich, safetensors.torch, torch, torchvision, typer, yaml
gc.freeze()  # what the libraries hold is not searched again and again
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[1]  # each file is compiled once
failed = []
for module in sys.argv[2:]:
    if "rcnn.ops.operator" in sys.modules:
        sys.modules["rcnn.ops.operator"].LIBRARY._destroy()
    for name in [name for name in sys.modules if name.split(".")[0] == "rcnn" and name.split(".")[1:2] != ["config"]]:
        del sys.modules[name]
    try:
        __import__(module)
    except BaseException as error:
        failed.append(f"{module}: {type(error).__name__}: {error}")
gc.unfreeze()
sys.exit("\\n".join(failed) or 0)
"""
"""With nothing of ours imported but the libraries and settings; a fresh interpreter for each file would take minutes.

What is registered with torch is destroyed in between, and no file of ours asks torch for an operator by its name.
"""


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[tuple[str, int]]:
    """(imported module or name, line), everywhere in the file."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{FILES[module]}:{node.lineno}: write imports in full"
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield (full if full in FILES or node.module == "rcnn" else node.module or ""), node.lineno


def part(module: str) -> str:
    return (module.split(".") + [""])[1]


def test_the_table_has_every_part_and_no_other() -> None:
    assert {part(module) for module in FILES} - {"", "cli", "__main__"} == set(MAY_IMPORT)
    assert set().union(*MAY_IMPORT.values()) <= set(MAY_IMPORT)


@pytest.mark.parametrize("module", [module for module in FILES if part(module) in ("model", "ops", "backbones")])
def test_no_branch_is_named_after_a_library(module: str) -> None:
    """The core compares with nothing that is called after one; what they do differently are settings of other names."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Compare | ast.MatchValue):
            names = {value.value for value in ast.walk(node) if isinstance(value, ast.Constant)}
            found = names & {"torchvision", "detectron2", "py-faster-rcnn", "matlab", "caffe", "mmdetection"}
            assert not found, f"{FILES[module]}:{node.lineno}: a branch is named after {found}"


@pytest.mark.parametrize("name", sorted({part(module) for module in FILES} - {"", "cli", "__main__"}))
def test_imports_point_one_way(name: str) -> None:
    wrong = [
        f"{FILES[module]}:{line}: {name} imports {target}"
        for module in FILES
        if part(module) == name
        for target, line in imports(module)
        if target.startswith("rcnn.") and target != "rcnn.__version__"
        if part(target) not in MAY_IMPORT[name] | {name, "errors"}
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circles() -> None:
    edges = {module: {name for name, _ in imports(module) if name in FILES} - {module, "rcnn"} for module in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in done:
            return
        for target in edges[module]:
            visit(target, (*path, module))
        done.add(module)

    for module in edges:
        visit(module, ())


def test_every_file_imports_alone(tmp_path: Path) -> None:
    # An operator that is looked up while a file is imported might be there from an earlier import.
    assert not any(re.search(r"^\S.*torch\.ops\.rcnn", path.read_text("utf-8"), re.M) for path in FILES.values())
    here = [module for module in FILES if find_spec("triton") or not module.startswith("rcnn.ops.triton.")]
    words = [sys.executable, "-c", IMPORT_EACH_ALONE, str(tmp_path), *here]
    run = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_what_there_is(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("rcnn."):
            there = import_module(str(node.module))
            names = (name.name for name in node.names)
            missing = [name for name in names if not hasattr(there, name) and f"{node.module}.{name}" not in FILES]
            assert not missing, f"{script}:{node.lineno}: {node.module} has no {', '.join(missing)}"


@pytest.mark.parametrize("module", FILES)
def test_source_is_ascii_with_a_docstring_and_a_sorted_all(module: str) -> None:
    assert FILES[module].read_bytes().isascii()
    assert ast.get_docstring(parsed(module)), f"{FILES[module]} has no docstring"
    for node in parsed(module).body:
        names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if isinstance(node, ast.Assign) and names == ["__all__"]:
            exported = ast.literal_eval(node.value)
            assert list(exported) == sorted(exported)


@pytest.mark.parametrize("module", FILES)
def test_names_and_parameter_lists_are_short(module: str) -> None:
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert len(node.name) <= LONGEST_NAME, f"{FILES[module]}:{node.lineno}: {node.name} is a long word"
        if isinstance(node, ast.FunctionDef):
            count = len(node.args.posonlyargs + node.args.args)
            # A command's parameters are its options, a kernel's its pointers, sizes and constants.
            allowed = 20 if part(module) == "cli" or module.startswith("rcnn.ops.triton.") else MOST_PARAMETERS
            assert count <= allowed, f"{FILES[module]}:{node.lineno}: {node.name} takes {count} positional parameters"


def print_longest(count: int = 20) -> None:
    files = {str(path): path.read_text(encoding="utf-8").count("\n") for path in FILES.values()}
    functions = {
        f"{FILES[module]}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for module in FILES
        for node in ast.walk(parsed(module))
        if isinstance(node, ast.FunctionDef)
    }
    for title, lengths in (("files", files), ("functions", functions)):
        print(f"longest {title}, lines:")
        for name, lines in sorted(lengths.items(), key=lambda item: -item[1])[:count]:
            print(f"{lines:6} {name}")


if __name__ == "__main__":
    print_longest()
