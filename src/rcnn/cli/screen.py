"""Print tables for people, and one JSON document for programs."""

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from rcnn.config import Preprocess
from rcnn.console import print_table
from rcnn.cores import METER
from rcnn.errors import UNPRINTABLE, cell, plural, printable, wrapped
from rcnn.images.storage import Location

if TYPE_CHECKING:
    from rcnn.data.dataset import Dataset


def stdout_for_json(as_json: bool) -> AbstractContextManager[object]:
    """Redirect everything printed to stderr if stdout is for a JSON document."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


@contextmanager
def json_document(as_json: bool) -> Iterator[dict[str, Any]]:
    """Yield a document to fill in. With `as_json` it is printed at the end, and everything before it goes to stderr."""
    document: dict[str, Any] = {}
    with stdout_for_json(as_json):
        yield document
    if as_json:
        emit(document)


def emit(document: Any) -> None:
    """Print one JSON document; NaN becomes null. Only the first of several processes prints."""
    if is_first():
        text = json.dumps(jsonable(document), indent=2, ensure_ascii=False)
        print(UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def jsonable(value: Any) -> Any:
    """Convert arrays, paths, tuples and non-finite numbers to JSON values."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(below) for key, below in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Location):
        return str(value)
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return [jsonable(item) for item in value]


@contextmanager
def progress(title: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr if that is a terminal; yield a function to call with (done, total)."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda done, total: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def sides(preprocess: Preprocess) -> str:
    """Describe the size to which images are resized."""
    return (
        f"images are resized to a shorter side of {preprocess.short} pixels (preprocess.short), "
        f"the longer at most {preprocess.long} (preprocess.long)"
    )


def dataset_line(dataset: "Dataset") -> None:
    """Print what was read: images, boxes, classes, faults, and the reader's notes."""
    boxes = sum(len(record.boxes) for record in dataset.records)
    size = f"{plural(len(dataset), 'image')}, {plural(boxes, 'box')}, {plural(len(dataset.names), 'class')}"
    say(f"{dataset.root} ({dataset.format}), {dataset.split}: {size}: {', '.join(dataset.names)}")
    note(*dataset.notes)
    if dataset.faults:
        faults, them = plural(len(dataset.faults), "fault"), "them" if len(dataset.faults) > 1 else "it"
        note(f"{faults} mended or left out; `rcnn data check {shlex.quote(str(dataset.root))}` lists {them}")


def say(text: str, style: str = "") -> None:
    """Print a text without interpreting brackets as markup. In a terminal it wraps between words."""
    console = Console(soft_wrap=True)
    console.print(Text(lines_for(console, text), style))


def lines_for(console: Console, text: str) -> str:
    """Wrap a text to the width of a terminal; elsewhere its lines are unchanged."""
    return wrapped(printable(text), console.width) if console.is_terminal else printable(text)


def lines(texts: Iterable[str]) -> None:
    """Print many lines as `say` does, but faster: one console wraps all of them."""
    console = Console()
    sys.stdout.writelines(f"{lines_for(console, text)}\n" for text in texts)


def note(*texts: str) -> None:
    """Print dim lines, for information that needs no action."""
    for text in texts:
        say(text, "dim")


def note_threads() -> None:
    """Print once, if the threads of this process do not get the CPU time that they ask for, how many to use."""
    import torch  # slow, and loaded by now

    note(*METER.remarks(torch.get_num_threads()))


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], max_rows: int | None = None, rest: str = ""
) -> None:
    """Print a table; see `rcnn.console.print_table`. If rows are left out, the title says where all are: in `rest`."""
    if max_rows is not None and len(rows) > max_rows:
        title += f" (the first {max_rows} of {len(rows):,}; all: {rest})"
    print_table(Console(), title, columns, [[cell(value) for value in row] for row in rows[:max_rows]])
