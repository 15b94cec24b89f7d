"""What the commands' arguments have in common: settings among the words, options of several commands."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from rcnn.config import Settings
from rcnn.errors import SettingsError

_ASSIGNMENT = re.compile(r"(\w+)(\.\w+)+=")

Words = Annotated[
    list[str], typer.Argument(metavar="DATA", help="Folder, COCO json or data.yaml; and section.key=value.")
]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A weights file (.safetensors), or a name such as blood-cells.")
]
Out = Annotated[Path, typer.Option(help="Folder of the results; -2, -3, ... is added where it is taken.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else goes to stderr.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... By default CUDA if there, else cpu.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images computed together.")]
OnFault = Annotated[
    str | None,
    typer.Option(
        metavar="stop|skip", help="A fatal fault of the data stops, which is the default, or leaves its image out."
    ),
]
Proposals = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|selective-search", help="Proposals from a .json, .npz or .mat, or searched for; not the RPN's."
    ),
]


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths and `section.key=value` settings among the words of a command line.

    A word is a setting when its section exists and no file bears its name.
    """
    paths, settings = [], []
    for word in words:
        assignment = _ASSIGNMENT.match(word)
        is_setting = assignment is not None and assignment[1] in Settings.model_fields and not Path(word).exists()
        (settings if is_setting else paths).append(word)
    return paths, settings


def one_path(words: Sequence[str], what: str, options: Mapping[str, object] | None = None) -> tuple[Path, list[str]]:
    """The only path among the words, and the settings: those among the words, then the options that have a value.

    Raises:
        SettingsError: no path or more than one; the message says that `what` is expected.
    """
    path, settings = optional_path(words, what)
    if path is None:
        raise SettingsError(f"{what} is missing; see --help")
    return path, [*settings, *given(options or {})]


def optional_path(words: Sequence[str], what: str) -> tuple[Path | None, list[str]]:
    """The only path among the words, if any, and the settings; `trian.lr=1` is taken for a misspelt one.

    Raises:
        SettingsError: more than one path.
    """
    words, settings = split(words)
    misspelt = [word for word in words if _ASSIGNMENT.match(word) and not Path(word).exists()]
    paths = [word for word in words if word not in misspelt]
    if len(paths) > 1:
        raise SettingsError(f"one {what} is expected, found {len(paths)}: {', '.join(paths)}")
    return (Path(paths[0]) if paths else None), [*settings, *misspelt]


def given(options: Mapping[str, object]) -> list[str]:
    """The options that have a value, as `section.key=value`."""
    return [f"{key}={value}" for key, value in options.items() if value is not None]
