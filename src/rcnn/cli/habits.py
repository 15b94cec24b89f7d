"""Suggest our option or command when a user types that of another program."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

from rcnn.config.elsewhere import NEAR, SAME
from rcnn.errors import SettingsError

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
"""Command elsewhere -> command here."""

OPTIONS = {
    "save_txt": "--format yolo",
    "save_json": "--format json",
    "output": "--out",
    "output_dir": "--out",
    "save_dir": "--out",
    "cfg": "--config",
}
"""Option elsewhere -> option here."""

POSITIONAL = {"data": "DATA", "dataset": "DATA", "source": "SOURCE", "input": "SOURCE", "model": "MODEL"}
"""Option elsewhere -> positional argument here."""


class Command(TyperCommand):
    """A command that suggests our option for the name of another program's option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of the command.

        Raises:
            SettingsError: one is an option of other programs.
        """
        known = {option for parameter in self.params for option in parameter.opts}
        for word, following in zip(args, [*args[1:], "-"], strict=False):
            option, equals, value = word.partition("=")
            if option.startswith("--") and option not in known:
                value = value if equals else following
                if meant := _meant(option, "" if value.startswith("-") else value):
                    raise SettingsError(f"there is no option `{option}` here; {meant}")
        return super().parse_args(ctx, args)


class CommandGroup(TyperGroup):
    """A group of commands that suggests ours for the name of another program's command."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of this name, None if there is none.

        Raises:
            SettingsError: it is a command of other programs.
        """
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in COMMANDS:
            raise SettingsError(f"there is no command `{cmd_name}`; did you mean `rcnn {COMMANDS[cmd_name]}`?")
        return command


def _meant(option: str, value: str) -> str:
    """Return a suggestion for an option of another program, with its value if it has one; empty if it is unknown."""
    name = option[2:].replace("-", "_")
    if name in POSITIONAL:
        return f"give `{value or POSITIONAL[name]}` without it, in the place of {POSITIONAL[name]} (see --help)"
    if name in SAME:
        return f"did you mean `{SAME[name]}={value or '...'}`?"
    meant = OPTIONS.get(name) or NEAR.get(name)
    return f"did you mean `{meant}`?" if meant else ""
