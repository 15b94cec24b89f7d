"""Hold images out for validation; images that belong together stay together, as the setting `data.group` says."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence

from rcnn.config import Data
from rcnn.errors import DataError, SettingsError, plural
from rcnn.images.storage import Location


def groups_of(names: Sequence[str], pattern: str | None) -> list[str]:
    """Return the group of each image: what the only or the first group of a regular expression matches in its name.

    Args:
        names: of the images.
        pattern: a regular expression, searched in each name. None: each image is a group.

    Raises:
        SettingsError: it is no regular expression, or has no group.
        DataError: it matches nothing in a name, or the same in all.
    """
    if pattern is None:
        return list(names)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"data.group={pattern}: not a regular expression: {error}") from None
    if not expression.groups:
        raise SettingsError(
            f"data.group={pattern}: has no group; put the part that images of one group share in parentheses, as in "
            r"(patient\d+)_"
        )
    found = [expression.search(name) for name in names]
    without = [name for name, match in zip(names, found, strict=True) if match is None or match[1] is None]
    if without:
        images = plural(len(without), "image")
        raise DataError(f"data.group={pattern} matches nothing in the names of {images}, such as {without[0]}")
    groups = [match[1] for match in found if match is not None]
    if len({*groups}) == 1 < len(names):
        raise DataError(f"data.group={pattern} puts all {len(names)} images into one group, `{groups[0]}`")
    return groups


def hold_out(names: Sequence[str], settings: Data, root: Location) -> set[str]:
    """Return the names of the images that are held out for validation, chosen by a hash of their names or groups.

    Args:
        names: of all images.
        settings: the share of the images that is held out, and how they are grouped.
        root: folder of the data set, for messages.

    Raises:
        DataError: there is only one image, or `settings.group` does not divide them.
        SettingsError: `settings.group` is no regular expression with a group.
    """
    if len(names) < 2:
        raise DataError(f"{root}: there is one image, and no validation list; at least two images are needed")
    groups = dict(zip(names, groups_of(names, settings.group), strict=True))
    sizes, chosen = Counter(groups.values()), set[str]()
    left = min(max(round(len(names) * settings.holdout), 1), len(names) - 1)
    for group in sorted(sizes, key=_hash)[: len(sizes) - 1]:
        if left > 0:
            chosen.add(group)
            left -= sizes[group]
    return {name for name in names if groups[name] in chosen}


def _hash(name: str) -> bytes:
    """Return a hash of the file name alone, so that copies in another layout are split alike."""
    return hashlib.sha256(os.path.splitext(name.rsplit("/", 1)[-1])[0].encode(errors="surrogateescape")).digest()
