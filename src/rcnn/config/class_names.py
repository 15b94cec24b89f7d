"""The setting `data.classes`: which classes of a data set are read, and under which names."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field

from rcnn.config.files import unfit_name

OTHERS = "*"
"""Key of a mapping that stands for all classes that are not among its other keys."""


def checked_classes(value: object) -> object:
    """Return a list of classes, or a mapping of classes to new names, with numbers as texts.

    Raises:
        ValueError: a name is no text, is empty or occurs twice; a class gets several names; or the new name of a class
            is one that gets another name itself.
    """
    if isinstance(value, Mapping):
        return _checked_mapping(value)
    if isinstance(value, list | tuple):
        names = [_name(name) for name in value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"`{twice}` occurs twice")
        return names
    if value is None:
        return None
    raise ValueError("give a list such as [cat, dog], or a mapping such as {kitten: cat, bird: null}")


def _checked_mapping(mapping: Mapping[object, object]) -> dict[str, str | None]:
    """Return a mapping of classes to new names, or to None. Raises as `checked_classes` does."""
    names: dict[str, str | None] = {}
    for key, value in mapping.items():
        if isinstance(value, list | tuple | Mapping):
            raise ValueError(f"`{key}` is given several names, {', '.join(map(str, value))}; give one")
        if key == OTHERS and value is not None:
            raise ValueError(f"`{OTHERS}` stands for all other classes, and its value can only be null")
        names[_name(key)] = None if value is None else _name(value)
    for old in names:
        path, new = [old], names[old]
        while new in names and new != path[-1]:
            if new in path:
                raise ValueError(f"a class can't get its own name back: {' -> '.join([*path, new])}")
            path.append(new)
            new = names[new]
        if len(path) > 1:
            what, value = ("is left out", "null") if new is None else (f"is renamed to `{new}`", new)
            raise ValueError(f"`{old}` is renamed to `{path[1]}`, which {what} itself; write {{{old}: {value}}}")
    return names


def _name(value: object) -> str:
    """Return the name of a class; a whole number becomes a text.

    Raises:
        ValueError: it is of another type, is empty, or can't be written into files of labels.
    """
    if isinstance(value, bool):
        raise ValueError(f"YAML reads a name as {value}, since yes, no, on and off are truth values: quote it")
    if not isinstance(value, str | int) or not str(value):
        raise ValueError(f"{value!r:.80} is not the name of a class")
    if reason := unfit_name(str(value)):
        raise ValueError(f"the name `{value!s:.80}` {reason}")
    return str(value)


Classes = Annotated[
    Annotated[tuple[str, ...], Field(min_length=1, max_length=100_000)]
    | Annotated[dict[str, str | None], Field(min_length=1, max_length=100_000)],
    BeforeValidator(checked_classes),
]
"""A list of the classes to read, or a mapping of classes to their new names, where None leaves a class out."""
