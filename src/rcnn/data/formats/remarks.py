"""Remarks on all lists of a data set together: images that none of them names, and classes that look like mistakes."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from rcnn.config.files import MB, unfit_name
from rcnn.data.formats.draft import Draft, Layout, Reading, relative_name
from rcnn.data.formats.folders import Folder, read_lines
from rcnn.errors import plural
from rcnn.images.sources import is_image
from rcnn.images.storage import Location, lies_in

NAME_FILES = re.compile(r".*\.names|classes.*\.txt|_darknet\.labels", re.IGNORECASE)
"""Names of files that list class names, one per line."""

MAX_SETTING = 300
"""Maximum length of a setting that a remark proposes."""

_MAX_NAME_FILES, _MAX_NAME_BYTES = 20, MB


def remarks(given: Location, layout: Layout, readings: Mapping[str, Reading], *, own_names: bool) -> list[str]:
    """Return remarks on the lists that were read.

    Args:
        given: the folder or file that the user named.
        layout: what was recognised there.
        readings: by the names of their lists.
        own_names: whether the classes are those of the data.
    """
    every = {id(reading): reading for reading in readings.values()}.values()
    found = list(_unlisted(given, layout, readings, [draft for reading in every for draft in reading.drafts]))
    if own_names and every:
        found += _unused_groups([*every])
        found += _numbers(layout, next(iter(every)).names)
    return found


def _unlisted(
    given: Location, layout: Layout, readings: Mapping[str, Reading], drafts: Iterable[Draft]
) -> Iterator[str]:
    """Yield a remark on the images that no list names, in the folders of those that are named.

    An image may be in a list that was not read: one of another split, or one beside the file that the user named. Then
    only folders are searched that lie in that of a list and in none of the other lists'.
    """
    listed: dict[Location, tuple[Folder, set[str]]] = {}
    for draft in drafts:
        if draft.folder is not None:
            listed.setdefault(draft.folder.path, (draft.folder, set()))[1].add(os.path.basename(draft.name))
    read = {source for name in readings for source in layout.lists[name]}
    others = {source for sources in layout.lists.values() for source in sources} - read
    if listed and given.is_file():
        names = Folder(given.parent).names
        others |= {given.parent / name for name in names if name.lower().endswith(given.suffix.lower())} - read
    images: list[str] = []
    folders: list[Location] = []
    for folder, names in listed.values():
        lists, unread = ([lies_in(folder.path, source.parent) for source in sources] for sources in (read, others))
        unnamed = sorted(name for name in folder.names if name not in names and is_image(name))
        if unnamed and not any(unread) and (any(lists) or not others):
            folders.append(folder.path)
            images += (relative_name(folder.path / name, layout.root) for name in unnamed)
    if images:
        where = _shown(folders[0], layout) if len(folders) == 1 else plural(len(folders), "folder")
        yield (
            f"{plural(len(images), 'image')} in {where} {'is' if len(images) == 1 else 'are'} not in any list of "
            f"labels, such as {images[0]}; left out (listed without objects, an image serves as background)"
        )


def _shown(folder: Location, layout: Layout) -> str:
    name = relative_name(folder, layout.root)
    return f"{folder}" if name == "." else f"{name}/"


def _unused_groups(readings: Sequence[Reading]) -> Iterator[str]:
    """Yield a remark on each class that has no boxes and is the group of others, as Roboflow writes it."""
    names = readings[0].names
    groups = [name for name in names if any(name in reading.groups for reading in readings)]
    used = {label for reading in readings for draft in reading.drafts for label in draft.labels} if groups else set()
    for label, name in enumerate(names):
        if name in groups and label not in used and len(names) > 1:
            setting = shlex.quote(f"data.classes={_flow({name: None})}")
            yield (
                f"class {label} `{name}` has no boxes and is the supercategory of other classes, as Roboflow writes "
                f"it; to leave it out: `{setting}`"
            )


def _numbers(layout: Layout, names: Sequence[str]) -> Iterator[str]:
    """Yield a remark if all class names are numbers, and a file beside or above the data has a name for each."""
    if not all(name.isascii() and name.isdecimal() and len(name) < 7 for name in names):
        return
    numbers = sorted(map(int, names))
    if numbers[-1] - numbers[0] != len(names) - 1 or numbers[0] > 1:
        return
    for file in _name_files(layout):
        try:
            lines = [text for _, text in read_lines(file, _MAX_NAME_BYTES)]
        except (OSError, UnicodeDecodeError):
            continue
        distinct = len(set(lines)) == len(lines) == len(names)
        if distinct and not any(line.isdecimal() or unfit_name(line) for line in lines):
            setting = f"data.classes={_flow(dict(zip(numbers, lines, strict=True)))}"
            if len(setting) > MAX_SETTING:
                setting = f"data.classes={{{numbers[0]}: {lines[0]}, {numbers[1]}: {lines[1]}, ...}}"
            yield (
                f"the classes are called by their numbers, and {file} has {plural(len(names), 'name')}; to use them: "
                f"`{shlex.quote(setting)}`"
            )
            return


def _name_files(layout: Layout) -> Iterator[Location]:
    """Yield files that may list class names, in the folders of the lists and those above, up to that of the data.

    Of local data, the folder above that is searched too.
    """
    home = layout.home or layout.root
    folders = dict.fromkeys((home, layout.root))
    for source in (source for sources in layout.lists.values() for source in sources):
        folder = source if source.is_dir() else source.parent
        while lies_in(folder, home) and folder not in folders:
            folders[folder] = None
            folder = folder.parent
    if isinstance(home, Path):
        folders[home.parent] = None
    for folder in folders:
        try:
            names = [name for name in Folder(folder).names if NAME_FILES.fullmatch(name)]
        except OSError:
            continue
        yield from (folder / name for name in names[:_MAX_NAME_FILES])


def _flow(mapping: Mapping[str, None] | Mapping[int, str]) -> str:
    """Return a mapping in YAML on one line."""
    text = yaml.safe_dump(dict(mapping), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.strip()
