"""Check the structure of the package: imports, cycles, unique names, plain ASCII, short parameter lists.

Run as a script, this file prints the longest files and functions, the classes and files that share a name, and the
files with the most imports. Their length is not limited.
"""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import rcnn

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
    "signals": set(),
    "locks": set(),
    "console": set(),
    "cores": set(),
    "config": set(),
    "ops": set(),
    "metrics": set(),
    "draw": set(),
    "model": {"ops", "config"},
    "teaching": {"model"},
    "backbones": {"model", "ops", "config"},
    "weights": TENSORS,
    "presets": TENSORS,
    "images": {"cores", "model", "config"},
    "runtime": {"cores", "weights", "images", "presets"} | TENSORS,
    "data": {"cores", "signals", "weights"} | DATA,
    "result": {"draw", "data", "images", "config"},
    "merge_views": {"result", "model", "images", "config"},
    "detector": DETECTOR,
    "shards": {"signals", "locks"} | DETECTOR,
    "interop": DETECTOR,
    "open_model": {"interop"} | DETECTOR,
    "batch_predictor": {"open_model", "detector", "images"},
    "plots": {"draw", "metrics"} | DATA,
    "evaluate": {"cores", "open_model"} | SCORES,
    "exporting": SCORES,
    "diagnose": {"plots", "open_model"} | SCORES,
    "report": {"diagnose", "plots"} | SCORES,
    "look": {"signals", "report", "diagnose"} | SCORES,
    "training": {"signals", "locks", "console", "cores", "report", "diagnose", "plots", "open_model"} | SCORES,
    "paper": {"training", "report", "plots"} | SCORES,
    "auditing": {"training", "diagnose", "plots", "open_model"} | SCORES,
}
"""Parts that each part may import, also inside functions. It may always import itself and `errors`; `cli` may all."""

MAX_PARAMETERS, MAX_NAME_LENGTH, MAX_SHARED_FILE_NAMES, MAX_IMPORTED_MODULES = 8, 32, 8, 15

IMPORT_EACH_ALONE = """
import gc, sys
import matplotlib, numpy, PIL.Image, pydantic, rich, safetensors.torch, torch, torchvision, typer, yaml
gc.freeze()  # do not search the libraries' objects repeatedly
sys.dont_write_bytecode, sys.pycache_prefix = False, sys.argv[1]  # compile each file once
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
"""Import each module with only libraries and settings imported. A new interpreter for each would take minutes.

Operators registered with torch are destroyed in between, and no module looks up an operator in torch by name.
"""


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Yield (imported module or name, line) for all imports in the file."""
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{FILES[module]}:{node.lineno}: use absolute imports"
            for name in node.names:
                full = f"{node.module}.{name.name}"
                yield (full if full in FILES or node.module == "rcnn" else node.module or ""), node.lineno


def part(module: str) -> str:
    return (module.split(".") + [""])[1]


def test_the_import_table_lists_every_part() -> None:
    assert {part(module) for module in FILES} - {"", "cli", "__main__"} == set(MAY_IMPORT)
    assert set().union(*MAY_IMPORT.values()) <= set(MAY_IMPORT)


@pytest.mark.parametrize("module", [module for module in FILES if part(module) in ("model", "ops", "backbones")])
def test_no_branch_is_named_after_a_library(module: str) -> None:
    """The core has no comparison with a library's name; settings with other names control the differences."""
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


def test_no_import_circles() -> None:
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


def shared(names: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the modules of each name that occurs with more than one module."""
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for name, module in names:
        by_name[name].append(module)
    return {name: modules for name, modules in by_name.items() if len(modules) > 1}


def shared_file_names() -> dict[str, list[str]]:
    """Return the file names that several modules share, except for commands and Triton kernels."""
    exempt = ("rcnn.cli.", "rcnn.ops.triton.")
    files = ((path.name, module) for module, path in FILES.items() if not module.startswith(exempt))
    return shared((name, module) for name, module in files if not name.startswith("__"))


def shared_class_names() -> dict[str, list[str]]:
    """Return the class names that several modules share."""
    nodes = ((node, module) for module in FILES for node in ast.walk(parsed(module)))
    return shared((node.name, module) for node, module in nodes if isinstance(node, ast.ClassDef))


@cache
def home(module: str, name: str) -> str:
    """Return the module that defines a name, following imports in `__init__` files."""
    if f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    if FILES[module].name == "__init__.py":
        for node in ast.walk(parsed(module)):
            if isinstance(node, ast.ImportFrom) and node.module in FILES:
                for imported in node.names:
                    if name == (imported.asname or imported.name):
                        return home(node.module, imported.name)
    return module


def imported_modules(module: str) -> set[str]:
    """Return our modules that a file imports from, with names from an `__init__` counted where they are defined."""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name in FILES}
        elif isinstance(node, ast.ImportFrom) and node.module in FILES:
            found |= {home(node.module, name.name) for name in node.names}
    return found - {module}


def test_few_files_share_a_name() -> None:
    shared = shared_file_names()
    assert len(shared) <= MAX_SHARED_FILE_NAMES, "\n".join(f"{name}: {modules}" for name, modules in shared.items())


def test_files_import_few_modules() -> None:
    """The exceptions are the list of commands, and the public interface, which imports each name on first use."""
    counts = {module: len(imported_modules(module)) for module in FILES if module not in ("rcnn", "rcnn.cli.app")}
    assert not {module: count for module, count in counts.items() if count > MAX_IMPORTED_MODULES}


def test_no_two_classes_share_a_name() -> None:
    assert not shared_class_names()


def test_public_names_stay_when_every_module_is_imported() -> None:
    """A module directly under `rcnn` with the name of a public function would replace the function when imported."""
    for module in FILES:
        if "__main__" not in module and (find_spec("triton") or not module.startswith("rcnn.ops.triton.")):
            import_module(module)
    for name in rcnn.__all__:
        first, second = getattr(rcnn, name), getattr(rcnn, name)
        assert first is second
        assert getattr(first, "__name__", name) == name
        assert f"rcnn.{name}" not in FILES


def test_every_file_imports_alone(tmp_path: Path) -> None:
    # An operator that is looked up during an import might exist only because of an earlier import.
    assert not any(re.search(r"^\S.*torch\.ops\.rcnn", path.read_text("utf-8"), re.M) for path in FILES.values())
    here = [module for module in FILES if find_spec("triton") or not module.startswith("rcnn.ops.triton.")]
    words = [sys.executable, "-c", IMPORT_EACH_ALONE, str(tmp_path), *here]
    run = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_existing_names(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("rcnn."):
            imported = import_module(str(node.module))
            names = (name.name for name in node.names)
            missing = [name for name in names if not hasattr(imported, name) and f"{node.module}.{name}" not in FILES]
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
            assert len(node.name) <= MAX_NAME_LENGTH, f"{FILES[module]}:{node.lineno}: the name {node.name} is too long"
        if isinstance(node, ast.FunctionDef):
            count = len(node.args.posonlyargs + node.args.args)
            # The parameters of commands are options; those of kernels are pointers, sizes and constants.
            allowed = 20 if part(module) == "cli" or module.startswith("rcnn.ops.triton.") else MAX_PARAMETERS
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


def print_shared_names() -> None:
    for what, shared in (("file", shared_file_names()), ("class", shared_class_names())):
        for name, modules in sorted(shared.items()):
            print(f"{what} name used {len(modules)} times: {name}: {', '.join(modules)}")


def print_most_imports(count: int = 20) -> None:
    print("most imports of our own modules:")
    for module in sorted(FILES, key=lambda module: -len(imported_modules(module)))[:count]:
        print(f"{len(imported_modules(module)):6} {module}")


if __name__ == "__main__":
    print_longest()
    print_shared_names()
    print_most_imports()
