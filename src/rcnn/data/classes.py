"""Select, rename and merge the classes of a data set, as the setting `data.classes` says."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import count

from rcnn.config.class_names import OTHERS
from rcnn.data.formats.draft import MAX_COMPARED_CLASSES, MAX_HINTS, Draft, Reading, listed, unknown_class
from rcnn.errors import DataError

Choice = Sequence[str] | Mapping[str, str | None]
"""Classes to read, or new names of classes, of which None leaves a class out; see `rcnn.config.class_names`."""


def new_names(own: Sequence[str], choice: Choice) -> dict[str, str | None]:
    """Return the new name of each class of the data, None for those that are left out."""
    if not isinstance(choice, Mapping):
        return {name: name if name in choice else None for name in own}
    return {name: choice.get(name, None if OTHERS in choice else name) for name in own}


def check_choice(own: Sequence[str], choice: Choice, where: str) -> None:
    """Check that the data at `where` has the chosen classes.

    Raises:
        DataError: it lacks one, or all its classes are left out.
    """
    unknown = [name for name in choice if name not in own and name != OTHERS]
    if unknown:
        hints = [get_close_matches(name, own[:MAX_COMPARED_CLASSES], n=1, cutoff=0.6) for name in unknown[:MAX_HINTS]]
        near = [f"`{name}`" for found in hints for name in found]
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        names = ", ".join(f"`{name}`" for name in unknown[:MAX_HINTS])
        raise DataError(f"{where}: data.classes names {names}, but the classes are {listed(own)}{hint}")
    if not any(name is not None for name in new_names(own, choice).values()):
        raise DataError(f"{where}: data.classes leaves out all classes: {listed(own)}")


def choose_classes(reading: Reading, choice: Choice, names: Sequence[str] | None) -> Reading:
    """Return a reading with the chosen classes under their new names. Objects of the others are left out.

    Args:
        reading: with its own classes.
        choice: as the setting says.
        names: classes that labels index; objects of others are faults. None: the new names, in the order of a chosen
            list, or else in that of the data.
    """
    new = new_names(reading.own, choice)
    kept = [name for name in new.values() if name is not None]
    if names is None:
        names = [name for name in choice if name in kept] if not isinstance(choice, Mapping) else [*dict.fromkeys(kept)]
    number_of = dict(zip(reading.own, reading.category_ids, strict=True))
    ids: dict[str, int] = {}
    for old, name in new.items():
        if name is not None:
            ids.setdefault(name, number_of.get(name, number_of[old]))
    free = (number for number in count(1) if number not in ids.values())
    labels = {name: label for label, name in enumerate(names)}
    return replace(
        reading,
        names=tuple(names),
        own=tuple(dict.fromkeys(kept)),
        category_ids=tuple(ids[name] if name in ids else next(free) for name in names),
        drafts=[_relabelled(draft, [*new.values()], labels) for draft in reading.drafts],
    )


def _relabelled(draft: Draft, new: Sequence[str | None], labels: Mapping[str, int]) -> Draft:
    """Return a copy of an image with new labels: `new` has the name of each old label, None for those left out."""
    empty = {"where": [], "labels": array("q"), "numbers": array("d"), "ignore": bytearray()}
    copy = replace(draft, **empty, faults=[*draft.faults], more=Counter(draft.more))
    for row, (where, old) in enumerate(zip(draft.where, draft.labels, strict=True)):
        name = new[old] if old >= 0 else ""  # -1 is a class at fault
        if name is None:
            continue
        label = labels.get(name)
        if label is None and name:
            copy.fault(where, unknown_class(name, list(labels), copy))
        copy.add(where, label, draft.numbers[4 * row : 4 * row + 4], bool(draft.ignore[row]))
    return copy
