"""Arguments shared by commands, settings on the command line, and suggestions for the options of other programs."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from rcnn.config import Settings
from rcnn.config.aliases import ALIASES, IMAGE_SIZE, SUGGESTIONS
from rcnn.errors import SettingsError
from rcnn.images.storage import Location, check_local, is_address, location, shown

_ASSIGNMENT = re.compile(r"(\w+)(\.\w+)+=")

Words = Annotated[
    list[str], typer.Argument(metavar="DATA", help="Folder, COCO json, data.yaml or csv; and section.key=value.")
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run folder, a weights file, or a name such as blood-cells.",
        callback=lambda model: model if is_address(model) or Path(model).exists() else model.removeprefix("model="),
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

RUNS = Path("runs/train")
"""Default folder of run folders."""

TRAINING = frozenset(name for name, key in ALIASES.items() if key.startswith("train."))
"""Names of `ALIASES` that only commands that train accept."""

COMMANDS = {
    "fit": "train",
    "finetune": "train",
    "test": "val",
    "eval": "val",
    "evaluate": "val",
    "validate": "val",
    "detect": "predict",
    "infer": "predict",
    "inference": "predict",
    "check": "data check",
    "stats": "data stats",
    "show": "data show",
    "convert": "data convert",
}
"""Command of other programs -> command here."""

OPTIONS = {
    "save_txt": "--format yolo",
    "save_json": "--format json",
    "output": "--out",
    "output_dir": "--out",
    "save_dir": "--out",
    "cfg": "--config",
}
"""Option of other programs -> option here."""

POSITIONAL = {"data": "DATA", "dataset": "DATA", "source": "SOURCE", "input": "SOURCE", "model": "MODEL"}
"""Option of other programs -> positional argument here."""


class SuggestingCommand(TyperCommand):
    """A command that suggests our option for an option of another program."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command.

        Raises:
            SettingsError: one is an option of another program, or empty, which would mean the current folder.
        """
        for word in args:
            if not word or re.fullmatch("--[a-z-]+=", word):
                raise SettingsError(
                    f"{f'`{word}` has no value' if word else 'a word of the command line is empty'}: perhaps a "
                    "variable of the shell is not set; `.` is the current folder"
                )
        known = {option for parameter in self.params for option in parameter.opts}
        for word, following in zip(args, [*args[1:], "-"], strict=False):
            option, equals, value = word.partition("=")
            if option.startswith("--") and option not in known:
                value = value if equals else following
                if suggestion := _suggestion(option, "" if value.startswith("-") else value):
                    raise SettingsError(f"there is no option `{option}` here; {suggestion}")
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            given = ctx.params.get(parameter.name or "")
            for path in given if isinstance(given, list | tuple) else [given]:
                if isinstance(path, Path):
                    check_local(path, "/".join(parameter.opts))
        return rest


class SuggestingGroup(TyperGroup):
    """A group of commands that suggests our command for a command of another program."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name, or None.

        Raises:
            SettingsError: it is a command of another program.
        """
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in COMMANDS:
            raise SettingsError(f"there is no command `{cmd_name}`; did you mean `rcnn {COMMANDS[cmd_name]}`?")
        return command


def _suggestion(option: str, value: str) -> str:
    """Return what to write instead of an option of another program; empty if the option is unknown."""
    name = option[2:].replace("-", "_")
    if name in POSITIONAL:
        return f"give `{value or POSITIONAL[name]}` without it, in the place of {POSITIONAL[name]} (see --help)"
    if name in ALIASES:
        return f"did you mean `{ALIASES[name]}={value or '...'}`?"
    nearest = OPTIONS.get(name) or SUGGESTIONS.get(name)
    return f"did you mean `{nearest}`?" if nearest else ""


def split(words: Sequence[str], accepted: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Split the words of a command line into paths and `section.key=value` settings.

    A word is a setting if its section exists and no file has that name. `imgsz=320` and the names of `ALIASES` are
    settings too; those of `TRAINING` only if they are in `accepted`. `data=DIR` and `source=DIR` are paths.

    Raises:
        SettingsError: a name is a setting of training, or another program's name for a setting.
    """
    paths, settings = [], []
    for word in words:
        name, equals, value = word.partition("=")
        if is_address(word):
            paths.append(word)
            continue
        assigns = bool(equals) and not Path(word).exists()
        if assigns and name in ("data", "source"):
            word = value
        elif assigns and name == "model":
            raise SettingsError(f"`{word}`: to train a model give `--model {value}`; elsewhere it is the first word")
        elif assigns and name in ALIASES:
            if name in TRAINING and name not in accepted:
                raise SettingsError(f"`{word}` is a setting of training, which this command does not read; see --help")
            word = f"{ALIASES[name]}={value}"
        elif assigns and name in SUGGESTIONS:
            raise SettingsError(f"`{word}`: there is no setting `{name}`; did you mean `{SUGGESTIONS[name]}`?")
        assignment = _ASSIGNMENT.match(word)
        is_setting = name == IMAGE_SIZE or (assignment is not None and assignment[1] in Settings.model_fields)
        (settings if is_setting and not Path(word).exists() else paths).append(word)
    return paths, settings


def one_path(
    words: Sequence[str], metavar: str, options: Mapping[str, object] | None = None, accepted: Collection[str] = ()
) -> tuple[Location, list[str]]:
    """Return the only path or address among the words, and the settings: those among the words, then of the options.

    Raises:
        SettingsError: there is no path, called `metavar` in the message, or more than one; or as for `split`.
    """
    path, settings = optional_path(words, metavar, accepted)
    if path is None:
        raise SettingsError(f"{metavar} is missing; see --help")
    return path, [*settings, *assignments(options or {})]


def optional_path(
    words: Sequence[str], metavar: str, accepted: Collection[str] = ()
) -> tuple[Location | None, list[str]]:
    """Return the only path or address among the words, if any, and the settings; `trian.lr=1` is a misspelt setting.

    Raises:
        SettingsError: there is more than one path; or as for `split`.
    """
    words, settings = split(words, accepted)
    misspelt = [word for word in words if _ASSIGNMENT.match(word) and not is_address(word) and not Path(word).exists()]
    paths = [word for word in words if word not in misspelt]
    if len(paths) > 1:
        raise SettingsError(f"one {metavar} is expected, found {len(paths)}: {', '.join(map(shown, paths))}")
    return (location(paths[0]) if paths else None), [*settings, *misspelt]


def sides_of(text: str | None) -> tuple[int, int] | None:
    """Return (height, width) of `--size 480x640`, or None for None.

    Raises:
        SettingsError: the text has a different form.
    """
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text or "")
    if text is not None and match is None:
        raise SettingsError(f"--size {text}: give height and width in pixels, as in --size 480x640")
    return (int(match[1]), int(match[2])) if match else None


def assignments(options: Mapping[str, object]) -> list[str]:
    """Return the options that have a value as `section.key=value`, or as `imgsz=320`."""
    return [f"{key}={value}" for key, value in options.items() if value is not None]


def refuse_addresses(words: Sequence[str], reason: str) -> None:
    """Check that no word is an address.

    Raises:
        SettingsError: one is.
    """
    if remote := next(filter(is_address, words), None):
        raise SettingsError(f"{shown(remote)}: {reason}")
