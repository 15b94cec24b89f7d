"""The command line `rcnn`: commands, exit codes, and errors as sentences instead of tracebacks.

Exit codes: 0 success; 1 failure while running; 2 wrong command line or setting; 3 faulty data; 4 unusable weights;
130 interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.
"""

import ctypes
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from rcnn import __version__
from rcnn.cli import (
    anchors,
    audit,
    benchmark,
    data,
    demo,
    explain,
    export,
    import_weights,
    inspect,
    look,
    merge,
    paper,
    predict,
    propose,
    report,
    screen,
    train,
    val,
    why,
)
from rcnn.cli.arguments import SuggestingCommand, SuggestingGroup
from rcnn.errors import Interrupted
from rcnn.signals import termination_interrupts

HELP = "Faster R-CNN from a folder of labelled images to a trained detector."

app = typer.Typer(
    name="rcnn",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    cls=SuggestingGroup,
)
for command in (train.train, val.val, predict.predict, propose.propose, anchors.anchors, explain.explain):
    app.command(cls=SuggestingCommand)(command)
app.command(cls=SuggestingCommand)(merge.merge)
app.command(cls=SuggestingCommand)(inspect.inspect)
app.command("import", cls=SuggestingCommand)(import_weights.import_weights)
for command in (export.export, benchmark.benchmark, why.why, report.report, look.look, paper.paper, demo.demo):
    app.command(cls=SuggestingCommand)(command)
app.add_typer(data.app, name="data")
data.app.command(cls=SuggestingCommand)(audit.audit)


def _version(requested: bool) -> None:
    if requested:
        print(f"rcnn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere in the command line).")
    ] = False,
) -> None:
    """Options of every command; `main` has already removed `--debug`."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    _keep_freed_memory()
    with termination_interrupts():
        try:
            _run([word for word in words if word != "--debug"])
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            code, message = _explain(error)
            console = Console(stderr=True, soft_wrap=True)
            text = Text(screen.lines_for(console, f"error: {message}"))
            text.stylize("bold red", 0, len("error:"))
            console.print(text)
            sys.exit(code)
    sys.exit(0)


def _keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning each to the system, unless the environment tunes it.

    Requesting the same pages again for every operation can take as long as the arithmetic of a network.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
            mallopt(parameter, 1 << 30)


def _run(words: list[str]) -> None:
    """Run the command, with the words as the object of its context.

    Ctrl-C, which typer turns into a silent exit with 130, is raised again.
    """
    try:
        app(words, prog_name="rcnn", obj=words)
    except SystemExit as end:
        if end.code != Interrupted.exit_code:
            raise
        cause: BaseException | None = end
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__ or cause.__context__
        raise cause or KeyboardInterrupt from end.__context__


def _explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and message of an error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        file = f"{error.filename2 or error.filename}: " if error.filename else ""
        return 1, f"{file}{error.strerror}. Free space, then run the command again"
    if isinstance(error, OSError):
        return 1, str(error)
    if isinstance(error, KeyboardInterrupt):
        return getattr(error, "exit_code", Interrupted.exit_code), str(error) or "interrupted"
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return 1, f"there is not enough memory: {reason}. Use smaller images, batches or settings"
    if isinstance(error, RecursionError):
        return 1, f"the input is nested too deep: {error}"
    if (code := getattr(error, "exit_code", None)) is not None:
        return code, str(error)
    if "DataLoader" in str(error):
        from rcnn.data.loading.loader import lost_worker

        if isinstance(error, RuntimeError) and (reason := lost_worker(error)):
            return 1, reason
    return 1, f"{type(error).__name__}: {error} (unexpected; run the command again with --debug to see where)"
