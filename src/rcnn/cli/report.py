"""`rcnn report RUN...`: write the page of one or several runs; and the pages that other commands write."""

import json as json_format
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from rcnn.cli import arguments, screen
from rcnn.config import Settings, to_yaml
from rcnn.images.storage import is_address, shown


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of train, val, why or paper.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page. Default: report.html, in the folder if it is one, else here."),
    ] = None,
    json: arguments.Json = False,
) -> None:
    """Write the page of a run, or one page with several runs side by side, as one self-contained file.

    Example: rcnn report runs/train/exp-1 runs/train/exp-2 --out both.html
    """
    from rcnn.cli.files import new_file
    from rcnn.report.page import read_subjects, render, write_report
    from rcnn.weights.file import atomic_write

    with screen.json_document(json) as output:
        if out is None and len(runs) == 1:
            page = write_report(runs[0])
        else:
            page = new_file(out or Path("report.html"), (".html",))
            atomic_write(page, render(read_subjects(runs)).encode())
        screen.say(f"{page}: open it in a browser")
        output["report"] = page


def describe(folder: Path, model: str, settings: Settings) -> None:
    """Write settings, command, versions and model of a folder of results, for its page."""
    from rcnn.training.run_folder import environment
    from rcnn.weights.file import atomic_write

    local = not is_address(model) and Path(model).exists()
    facts = {**environment(), "model": str(Path(model).resolve()) if local else shown(model)}
    atomic_write(folder / "config.yaml", to_yaml(settings).encode())
    atomic_write(folder / "environment.json", (json_format.dumps(facts, indent=2) + "\n").encode())


@contextmanager
def page_of(folder: Path) -> Iterator[None]:
    """Write the page of a folder of results after the block that writes them; print a message if a write fails."""
    from rcnn.report.page import write_report

    try:
        yield
        screen.say(f"{write_report(folder)}: open it in a browser")
    except OSError as error:
        screen.say(f"{folder}: the page could not be written: {error}. The results above are complete")
