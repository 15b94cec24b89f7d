"""Arguments that several commands share, and settings among the words of a command line."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from rcnn.config import Settings
from rcnn.config.elsewhere import IMAGE_SIZE, NEAR, SAME
from rcnn.errors import SettingsError

_ASSIGNMENT = re.compile(r"(\w+)(\.\w+)+=")

Words = Annotated[
    list[str], typer.Argument(metavar="DATA", help="Folder, COCO json, data.yaml or csv; and section.key=value.")
]


def _without_name(model: str) -> str:
    """`model=NAME`, as other programs have it, is NAME."""
    return model if Path(model).exists() else model.removeprefix("model=")


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run folder, a weights file, or a name such as blood-cells.",
        callback=_without_name,
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the results; -2, -3, ... is appended if it is taken.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and everything else on stderr.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: CUDA if available, else cpu.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of all random numbers.")]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--imgsz", min=1, help="Shorter side of resized images, pixels (preprocess.short); the longer one scales along."
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch.")]
OnFault = Annotated[
    str | None,
    typer.Option(
        metavar="damaged|stop|skip",
        help="Images to leave out: damaged ones (the default), none, or all that have a fatal fault.",
    ),
]
Proposals = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|selective-search|edge-boxes|sliding-windows",
        help="Instead of the RPN's proposals, those of a .json, .npz or .mat file or of a search, or dense windows.",
    ),
]


TRAINING = frozenset(name for name, key in SAME.items() if key.startswith("train."))
"""Names of `SAME` that a command takes only if it trains."""


def split(words: Sequence[str], takes: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Split the words of a command line into paths and `section.key=value` settings.

    A word is a setting if its section exists and no file has that name. `imgsz=320` and the names of `SAME` are
    settings too, of those of `TRAINING` the ones that the command `takes`; and `data=DIR` or `source=DIR` is the path.

    Raises:
        SettingsError: a name belongs to training, or is another program's for a setting that is called otherwise.
    """
    paths, settings = [], []
    for word in words:
        name, equals, value = word.partition("=")
        there = not equals or Path(word).exists()
        if not there and name in ("data", "source"):
            word = value
        elif not there and name == "model":
            raise SettingsError(f"`{word}`: to train a model give `--model {value}`; elsewhere it is the first word")
        elif not there and name in SAME:
            if name in TRAINING and name not in takes:
                raise SettingsError(f"`{word}` is a setting of training, which this command does not read; see --help")
            word = f"{SAME[name]}={value}"
        elif not there and name in NEAR:
            raise SettingsError(f"`{word}`: there is no setting `{name}`; did you mean `{NEAR[name]}`?")
        assignment = _ASSIGNMENT.match(word)
        is_setting = name == IMAGE_SIZE or (assignment is not None and assignment[1] in Settings.model_fields)
        (settings if is_setting and not Path(word).exists() else paths).append(word)
    return paths, settings


def one_path(
    words: Sequence[str], what: str, options: Mapping[str, object] | None = None, takes: Collection[str] = ()
) -> tuple[Path, list[str]]:
    """Return the only path among the words, and the settings: those among the words, then options that have a value.

    Raises:
        SettingsError: there is no path or more than one; the message calls it `what`. Or as for `split`.
    """
    path, settings = optional_path(words, what, takes)
    if path is None:
        raise SettingsError(f"{what} is missing; see --help")
    return path, [*settings, *given(options or {})]


def optional_path(words: Sequence[str], what: str, takes: Collection[str] = ()) -> tuple[Path | None, list[str]]:
    """Return the only path among the words, if any, and the settings. `trian.lr=1` counts as a misspelt setting.

    Raises:
        SettingsError: there is more than one path. Or as for `split`.
    """
    words, settings = split(words, takes)
    misspelt = [word for word in words if _ASSIGNMENT.match(word) and not Path(word).exists()]
    paths = [word for word in words if word not in misspelt]
    if len(paths) > 1:
        raise SettingsError(f"one {what} is expected, found {len(paths)}: {', '.join(paths)}")
    return (Path(paths[0]) if paths else None), [*settings, *misspelt]


def sides_of(text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of `--size 480x640`; None stays None.

    Raises:
        SettingsError: the text is something else.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text or "")
    if text is not None and match is None:
        raise SettingsError(f"--size {text}: give height and width in pixels, as in --size 480x640")
    return (int(match[1]), int(match[2])) if match else None


def given(options: Mapping[str, object]) -> list[str]:
    """Return the options that have a value as `section.key=value`, or as `imgsz=320`."""
    return [f"{key}={value}" for key, value in options.items() if value is not None]
