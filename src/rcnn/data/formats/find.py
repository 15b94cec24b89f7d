"""Open data sets: recognise the format at a path, find its lists, and read the images of a split."""

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from rcnn.config import Data, Settings
from rcnn.config.files import check_given, unfit_name
from rcnn.data.classes import check_choice, choose_classes
from rcnn.data.dataset import Dataset, Fault
from rcnn.data.formats.draft import Layout, Reading, finish, listed
from rcnn.data.formats.registry import FORMATS, LABELS_BESIDE, TABLES, recognise
from rcnn.data.formats.remarks import remarks
from rcnn.data.formats.unrecognised import explain
from rcnn.data.groups import hold_out
from rcnn.data.image_checks import ImageChecks, ProgressCallback
from rcnn.data.list_cache import Places, remembered
from rcnn.data.pixels import decode_images
from rcnn.errors import DataError, ImageError, SettingsError, plural
from rcnn.images.storage import Location, RemotePath, check_regular, identity, location

Split = Literal["train", "val", "test", "all"]
_MAX_NAMED_IMAGES = 3
"""Maximum number of damaged images that a note names; `data check` lists all."""


def open_dataset(
    path: str | Location,
    split: Split,
    settings: Data | Settings | None = None,
    names: Sequence[str] | None = None,
    *,
    decode: bool = True,
    progress: ProgressCallback | None = None,
) -> Dataset:
    """Open one split of the data set at a path, which may have any format.

    If the data has no validation list, `val` is the share (`settings.holdout`) that is held out of training.

    Args:
        path: folder, or file that lists images with their labels, or the address of one.
        split: train, val, test, or all.
        settings: how faults are treated, and what share is held out. None: the defaults.
        names: classes that labels index; other classes are fatal faults. None: those of the data.
        decode: decode every image, so that damage anywhere in a file is a fault too; otherwise only headers are read.
        progress: called with (images done, images in total) while images are decoded, or else while headers are read.

    Raises:
        DataError: there is no data set, it is empty, or it has a fault that stops by `settings.on_fault`.
        SettingsError: the split is unknown, or the address can't be opened.
        StorageError: a remote location can't be reached, or may not be read, or a package that opens it is missing.
    """
    if split not in get_args(Split):
        raise SettingsError(f"unknown split `{split}`; there are {', '.join(get_args(Split))}")
    return open_several(path, [split], settings, names, decode=decode, progress=progress)[0]


def open_several(
    path: str | Location,
    splits: Sequence[Split],
    settings: Data | Settings | None = None,
    names: Sequence[str] | None = None,
    *,
    decode: bool = True,
    progress: ProgressCallback | None = None,
) -> list[Dataset]:
    """Open several splits of the data set at a path. Without `names`, the classes are those of the first.

    Arguments and errors are as for `open_dataset`.
    """
    if not isinstance(settings, Data):
        settings = (settings or Settings()).data
    layout = find_layout(path)
    with ImageChecks(layout.root, settings) as checks:
        datasets = _Lists(path, layout, settings, checks).open(splits, names, None if decode else progress)
        datasets = decode_images(datasets, settings, checks, progress) if decode else datasets
    return stop_on_faults(datasets, settings)


def open_splits(
    path: str | Location, settings: Data, progress: ProgressCallback | None = None
) -> tuple[Dataset, Dataset]:
    """Open the lists that `settings` names for training and validation, and decode every image.

    The classes are those of the training list.

    Raises:
        DataError: as for `open_dataset`, with the faults of both lists.
    """
    layout = find_layout(path)
    with ImageChecks(layout.root, settings) as checks:
        datasets = _Lists(path, layout, settings, checks).open([settings.train, settings.val])
        train, val = decode_images(datasets, settings, checks, progress)
    notes = [*val.notes]
    shared = {*train.records.names()} & {*val.records.names()}
    if shared:
        notes.append(f"{len(shared)} images are in both the training and the validation list, such as {min(shared)}")
    trained, validated = ({*np.unique(dataset.records.labels).tolist()} for dataset in (train, val))
    untrained = [train.names[label] for label in sorted(validated - trained)]
    if untrained:
        notes.append(f"classes with boxes in validation and none in training: {', '.join(untrained)}")
    train, val = stop_on_faults([train, replace(val, notes=tuple(notes))], settings)
    return train, val


def open_lists(path: str | Location, settings: Data, *, decode: bool = True) -> list[Dataset]:
    """Open every list of the data (train, val, trainval without train, test, or all), with the classes of the first.

    `decode` is as in `open_dataset`.

    Raises:
        DataError: as for `open_dataset`, with the faults of all lists.
    """
    layout = find_layout(path)
    with ImageChecks(layout.root, settings) as checks:
        datasets = _Lists(path, layout, settings, checks).open(distinct_lists(layout), whole=True)
        datasets = decode_images(datasets, settings, checks) if decode else datasets
    return stop_on_faults(datasets, settings)


def distinct_lists(layout: Layout) -> list[str]:
    """Return the names of the lists, without `trainval` if there is `train`, and without second names of one list."""
    names = [name for name in layout.lists if name != "trainval" or "train" not in layout.lists]
    if layout.parts is not None:
        return names
    return list({layout.lists[name]: name for name in reversed(names)}.values())[::-1]


def read_lists(
    path: str | Location, layout: Layout, settings: Data, checks: ImageChecks
) -> tuple[list[Dataset], list[Fault]]:
    """Read every list, without raising for its faults, with the classes of the first.

    Returns:
        The lists, and a fault for each list that can't be read at all, or is empty.
    """
    readings: dict[str, Reading] = {}
    faults: list[Fault] = []
    for name in distinct_lists(layout):
        try:
            classes = next(iter(readings.values())).names if readings else None
            readings[name] = _read(layout, [name], settings, classes)
        except DataError as error:
            where = str(layout.lists[name][0])
            faults += error.faults or [Fault(where, str(error).removeprefix(f"{where}: "), "fatal")]
    notes = remarks(_expanded(path), layout, readings, own_names=True)
    datasets = [finish(reading, layout, name, settings, checks) for name, reading in readings.items()]
    return [_with_notes(dataset, notes) for dataset in datasets[:1]] + datasets[1:], faults


def _with_notes(dataset: Dataset, notes: Sequence[str]) -> Dataset:
    """Return the data set with more notes."""
    return replace(dataset, notes=(*dataset.notes, *notes))


def stop_on_faults(datasets: Sequence[Dataset], settings: Data) -> list[Dataset]:
    """Return the data sets with a note that names the damaged images, or raise for faults that stop.

    Raises:
        DataError: there is a fault that stops by `settings.on_fault`, or a split without a usable image. The message
            lists all fatal and damaged faults, one per line.
    """
    faults = list(dict.fromkeys(fault for dataset in datasets for fault in dataset.faults))
    left_out = [fault for fault in faults if fault.kind != "mendable"]
    stops = {"stop": ("fatal", "damaged"), "damaged": ("fatal",), "skip": ()}[settings.on_fault]
    lines = "".join(f"\n{fault}" for fault in left_out)
    if any(fault.kind in stops for fault in left_out):
        many = f"{len(left_out)} faults" if len(left_out) > 1 else "a fault"
        raise DataError(f"{many} in the data (to leave these images out: --on-fault skip):{lines}", faults)
    for dataset in datasets:
        if not dataset.records:
            raise DataError(f"{dataset.root}: no usable image is left in `{dataset.split}`{lines}", faults)
    return [_with_damaged(dataset) for dataset in datasets]


def _with_damaged(dataset: Dataset) -> Dataset:
    """Return the data set with a note that counts its damaged images and names the first ones."""
    damaged = [fault for fault in dict.fromkeys(dataset.faults) if fault.kind == "damaged"]
    if not damaged:
        return dataset
    named = "; ".join(map(str, damaged[:_MAX_NAMED_IMAGES])) + ("; ..." if len(damaged) > _MAX_NAMED_IMAGES else "")
    note = f"{plural(len(damaged), 'damaged image')} of `{dataset.split}` left out (--on-fault stop stops instead)"
    return _with_notes(dataset, [f"{note}: {named}"])


def find_layout(path: str | Location) -> Layout:
    """Return the data set that a reader recognises at a path.

    Raises:
        DataError: no reader recognises one, or more than one does.
        SettingsError: the path is empty, or an address that can't be opened.
        StorageError: as for `open_dataset`.
    """
    check_given(path, "the data")
    path = _expanded(path)
    if isinstance(path, RemotePath) and path.has_parameters:
        raise SettingsError(f"{path}: the address of a data set can't have parameters, such as a signature")
    layout = layout_at(path)
    if layout is None:
        raise DataError(explain(path, _recognises))
    return layout


def _expanded(path: str | Location) -> Location:
    """Return the location that a user named; `~` is the home folder."""
    path = location(path)
    return path.expanduser() if isinstance(path, Path) else path


def layout_at(path: Location) -> Layout | None:
    """Return the data set that a reader recognises at a path, or None, for example for a folder of images alone.

    Raises:
        DataError: the path does not exist or can't be read, or more than one reader recognises a data set.
    """
    if reason := next(filter(None, map(unfit_name, path.parts)), None):
        raise DataError(f"{path}: this path {reason}; rename it")
    try:
        if not path.exists():
            raise DataError(_missing(path))
        if not path.is_dir():
            check_regular(path)
        layouts = recognise(path)
        tables, unclear = _tables(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error}") from None
    if len(layouts) == 1:
        notes = [f"{table.evidence}: not read, since there is {layouts[0].evidence}" for table in tables]
        notes += [f"tables: not read, since there is {layouts[0].evidence}"] if unclear else []
        notes = [f"{note}; give the table itself to read it" for note in notes]
        return replace(layouts[0], notes=(*layouts[0].notes, *notes))
    if not layouts and unclear is not None:
        raise unclear
    layouts = layouts or tables
    if not layouts:
        return None
    if len(layouts) > 1:
        formats = "; ".join(f"{layout.format.upper()} ({layout.evidence})" for layout in layouts)
        raise DataError(
            f"{path}: more than one data set is here: {formats}. "
            "Give the json, xml, table or data.yaml, or the folder of annotations of one of them itself, "
            "or move the other labels elsewhere"
        )
    return layouts[0]


def _tables(path: Location) -> tuple[list[Layout], DataError | None]:
    """Return the data sets of tables at a path, and the error if it is unclear which tables are its lists."""
    layouts, unclear = list[Layout](), None
    for name in TABLES:
        try:
            layout = FORMATS[name].find(path)
        except DataError as error:
            unclear = error
        else:
            layouts += [layout] if layout else []
    return layouts, unclear


def _missing(path: Location) -> str:
    """Return the message for a path that doesn't exist, with similar names."""
    if isinstance(path, RemotePath):
        return f"{path}: there is no such file or folder"
    parent = next(folder for folder in path.absolute().parents if folder.is_dir())
    near = get_close_matches(path.name, sorted(os.listdir(parent)), n=3, cutoff=0.6)
    hint = f"; similar names in {parent}: {', '.join(near)}" if near else ""
    looked = "" if path.is_absolute() else f" (looked for {path.absolute()})"
    return f"{path}: there is no such file or folder{looked}{hint}"


def _recognises(path: Location) -> bool:
    """Return whether one data set is recognised at a path."""
    try:
        return layout_at(path) is not None
    except DataError:
        return False


@dataclass
class _Lists:
    """Opens lists of a data set, each of which is read once.

    Attributes:
        path: of the data set, as given.
        layout: what was recognised there.
        settings: how the data are read.
        checks: reads the sizes of images.
    """

    path: str | Location
    layout: Layout
    settings: Data
    checks: ImageChecks
    _readings: dict[tuple[object, ...], Reading] = field(default_factory=dict)
    _by_list: dict[str, Reading] = field(default_factory=dict)

    def open(
        self,
        splits: Sequence[str],
        names: Sequence[str] | None = None,
        progress: ProgressCallback | None = None,
        *,
        whole: bool = False,
    ) -> list[Dataset]:
        """Return splits with all their faults, without raising for them, from the cache or from the files.

        Args:
            splits: their names.
            names: classes that labels index. None: those of the first split.
            progress: called with (headers read, headers to read).
            whole: read lists as they are, so that `train` includes the images of `val` if it does so in the data.

        Raises:
            DataError: the data has no such split, or a list can't be read at all or is empty.
        """

        def read() -> list[Dataset]:
            datasets: list[Dataset] = []
            for split in splits:
                classes = datasets[0].names if names is None and datasets else names
                reading = self._part(self._read([split], classes)) if whole else self._split(split, classes)
                datasets.append(finish(reading, self.layout, split, self.settings, self.checks, progress))
            notes = remarks(_expanded(self.path), self.layout, self._by_list, own_names=names is None)
            return [_with_notes(dataset, notes) for dataset in datasets[:1]] + datasets[1:]

        def is_same(fault: Fault) -> bool:
            (error,) = self.checks.sizes([fault.where])
            return isinstance(error, ImageError) and str(error) == f"{fault.where}: {fault.reason}"

        layout, relevant = self.layout, self.settings.model_dump(exclude=_NOT_READ)
        sources = dict.fromkeys(source for name in layout.lists.values() for source in name)
        folders = [layout.root, layout.home, layout.annotations]
        folders += [source if source.is_dir() else source.parent for source in sources]
        if layout.format in LABELS_BESIDE:
            folders += [LABELS_BESIDE[layout.format](folder) for folder in folders if folder is not None]
        places = Places([*dict.fromkeys(str(folder) for folder in folders if folder is not None)])
        classes = [identity(file) for file in layout.classes]
        words = (str(self.path), layout, tuple(splits), names and tuple(names), whole, relevant, classes)
        return remembered(places, words, read, is_same, self._beside)

    def _beside(self, folder: str) -> list[str]:
        """Return the folders that are read together with a folder of images outside the data set."""
        labels = LABELS_BESIDE[self.layout.format](Path(folder)) if self.layout.format in LABELS_BESIDE else None
        return [str(labels)] if labels is not None else []

    def _split(self, split: str, names: Sequence[str] | None) -> Reading:
        """Return the images of a split.

        Raises:
            DataError: the data has no such split.
        """
        lists = self.layout.lists
        training_list = next((name for name in ("train", "trainval", "all") if name in lists), None)
        if split == "all":
            return self._part(self._read([*lists], names))
        if split in lists and (split != "train" or "val" in lists):
            return self._part(self._read([split], names))
        if split not in ("train", "val") or training_list is None:
            raise DataError(f"{self.layout.root}: there is no `{split}` list; found {', '.join(lists)}")
        reading = self._read([training_list], names)
        if "val" in lists:
            return self._part(reading, without={draft.name for draft in self._read(["val"], reading.names).drafts})
        held = hold_out([draft.name for draft in reading.drafts], self.settings, self.layout.root)
        part = self._part(reading, only=held) if split == "val" else self._part(reading, without=held)
        part.notes.append(
            f"no validation list: {len(held)} of {len(reading.drafts)} images, by a hash of their names, are held out"
        )
        return part

    def _read(self, lists: Sequence[str], names: Sequence[str] | None) -> Reading:
        """Read some lists, once."""
        key = (*lists, names and tuple(names))
        if key not in self._readings:
            reading = _read(self.layout, lists, self.settings, names)
            self._readings[key] = self._readings[*lists, reading.names] = reading
            self._by_list |= dict.fromkeys(lists, reading)
        return self._readings[key]

    def _part(self, reading: Reading, without: Collection[str] = (), only: Collection[str] | None = None) -> Reading:
        """Return some images of a reading, of which `finish` may change copies."""
        chosen = (draft for draft in reading.drafts if draft.name not in without and (not only or draft.name in only))
        drafts = [replace(draft, faults=[*draft.faults], more=Counter(draft.more)) for draft in chosen]
        return replace(reading, drafts=drafts, faults=[*reading.faults], notes=[*reading.notes])


_NOT_READ = {
    *("path", "on_fault", "train", "val", "white", "max_pixels_per_byte", "edge_model", "licence", "workers"),
    *("cache", "cache_gb"),
}
"""Settings on which lists do not depend."""


def _read(layout: Layout, lists: Sequence[str], settings: Data, names: Sequence[str] | None) -> Reading:
    """Read some lists with the reader of their format.

    Raises:
        DataError: a list can't be read, is empty, or shares no class with `names`.
    """
    sources = list(dict.fromkeys(source for name in lists for source in layout.lists[name]))
    layout = layout if layout.parts is None else replace(layout, parts=tuple(lists))
    where = ", ".join(map(str, sources))
    own = names if settings.classes is None else None
    try:
        reading: Reading = FORMATS[layout.format].read(layout, sources, own, settings)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: can't be read: {error}") from None
    if not reading.drafts:
        lines = "".join(f"\n{fault}" for fault in reading.faults)
        raise DataError(f"{where}: it contains no images{lines}", reading.faults)
    if not reading.names:
        all_faults = chain(reading.faults, chain.from_iterable(draft.all_faults() for draft in reading.drafts))
        faults = [fault for fault in all_faults if fault.kind == "fatal"]  # of which this may be a consequence
        lines = "".join(f"\n{fault}" for fault in faults)
        raise DataError(f"{where}: it contains no objects, so there are no classes{lines}", faults)
    for name in reading.names:
        if reason := unfit_name(name):
            raise DataError(f"{where}: the name of a class, `{name:.300}`, {reason}; rename it")
    if settings.classes is not None:
        if names is None:
            check_choice(reading.own, settings.classes, where)
        reading = choose_classes(reading, settings.classes, names)
    if names is None and reading.category_ids != tuple(range(1, len(reading.names) + 1)):
        ids = ", ".join(f"{number} {name}" for number, name in zip(reading.category_ids, reading.names, strict=True))
        reading.notes.append(f"category ids become labels 0 to {len(reading.names) - 1} in this order: {ids}")
    if names is not None and reading.own and not set(names) & set(reading.own):
        raise DataError(
            f"{where}: its classes are {listed(reading.own)}, but those of the model or of the first list are "
            f"{listed(names)}; data.classes renames classes"
        )
    reading.notes[:0] = layout.notes
    reading.faults[:0] = layout.faults
    return reading
