"""Remember the lists of a data set as they were read, until a file changes on which they may depend."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from rcnn.data.cache import Identity, cache_file, now, settled, store, used
from rcnn.data.dataset import Dataset, Fault
from rcnn.data.saved import load_datasets, save_datasets
from rcnn.images.sources import is_results

MIN_WALKED, MAX_WALKED = 10_000, 20
"""A data set is compared if it has at most `MIN_WALKED` files and folders, plus `MAX_WALKED` for each of its images.

A data set among many other files is read every time, because comparing those would take longer.
"""


class Places(NamedTuple):
    """Where the files are that the lists of a data set depend on.

    Attributes:
        folders: with all that is below them.
        images: folders of images that are not below those, with the files in them alone.
    """

    folders: Sequence[str]
    images: Sequence[str] = ()


def remembered(
    places: Places,
    words: Sequence[object],
    read: Callable[[], list[Dataset]],
    is_same: Callable[[Fault], bool],
    beside: Callable[[str], Iterable[str]],
) -> list[Dataset]:
    """Return the lists of a data set, from the cache or from `read`.

    They are remembered unless an image is left out for a fatal fault: the reason may be a file that is missing from a
    place that is not compared, or an error that does not occur again. Remote files are not compared, and their lists
    not remembered.

    Args:
        places: where the files of the data are.
        words: all other values on which the lists depend.
        read: reads the lists.
        is_same: whether a remembered fault of the kind `damaged` is still there.
        beside: folder of images outside the `places` -> other folders that are read with it.
    """
    if any("://" in folder for folder in places.folders):
        return read()
    file = cache_file("lists", os.getcwd(), places, *words)

    def check(metadata: Mapping[str, Any]) -> None:
        images = [str(folder) for folder in metadata["images"]]
        state = _state(Places(places.folders, images), int(metadata["count"]))
        if state is None or state.digest != metadata["state"]:
            raise ValueError("the data have changed")

    with suppress(Exception):  # they are not remembered, have changed, or the file is damaged
        datasets = load_datasets(file, check)
        if all(is_same(fault) for dataset in datasets for fault in dataset.faults if fault.kind == "damaged"):
            used(file)
            return datasets
    began = now()
    datasets = read()
    if all(fault.kind != "fatal" for dataset in datasets for fault in dataset.faults):
        _remember(file, places, began, datasets, beside)
    return datasets


def _remember(
    file: Path, places: Places, began: int, datasets: Sequence[Dataset], beside: Callable[[str], Iterable[str]]
) -> None:
    """Store lists, if their files can be compared and none has changed since shortly before they were read.

    The files are compared after reading: what changed in between is recent, in its own times or in those of its folder.
    """
    count = MIN_WALKED + MAX_WALKED * sum(len(dataset.records) for dataset in datasets)
    state = _state(places, count)
    if state is None:
        return
    paths = (path for dataset in datasets for path in dataset.records.paths())
    damaged = (fault.where for dataset in datasets for fault in dataset.faults if fault.kind == "damaged")
    folders = dict.fromkeys(os.path.dirname(path) or "." for source in (paths, damaged) for path in source)
    outside = [folder for folder in folders if os.path.abspath(folder) not in state.folders or ".." in folder]
    if outside:
        images = [*dict.fromkeys(other for folder in outside for other in (folder, *beside(folder)))]
        places = Places(places.folders, images)
        state = _state(places, count)
    if state is not None and settled(state.latest, began):
        about = {"state": state.digest, "count": state.count, "images": places.images}
        store(file, lambda file: save_datasets(file, datasets, **about))


class _State(NamedTuple):
    """The files of a data set.

    Attributes:
        digest: of their names and identities.
        latest: time of the last change of one of them, or of a folder, nanoseconds.
        count: number of files and folders.
        folders: absolute paths of the folders that were searched.
    """

    digest: str
    latest: int
    count: int
    folders: set[str]


def _state(places: Places, most: int) -> _State | None:
    """Return the state of the files in some places; None if there are more than `most`, or one can't be reached."""
    digest, latest, count, folders = blake2b(), 0, 0, set[str]()
    try:
        for folder, entries in _folders(places, most):
            folders.add(os.path.abspath(folder))
            digest.update(f"\n{folder}\n".encode(errors="surrogateescape"))
            count += 1
            for name, status in entries:
                if stat.S_ISDIR(status.st_mode):
                    identity = None  # its own entries say what changed in it
                else:
                    identity = Identity.of(status)
                    count += 1
                latest = max(latest, status.st_mtime_ns, status.st_ctime_ns)
                digest.update(f"{name}\0{identity}\n".encode(errors="surrogateescape"))
                if count > most:
                    return None
    except OSError:
        return None
    return _State(digest.hexdigest(), latest, count, folders)


def _folders(places: Places, most: int) -> Iterator[tuple[str, list[tuple[str, os.stat_result]]]]:
    """Yield each folder once, with its own status as `.` and those of its entries, but without folders of results.

    At most `most` entries of a folder are compared, and one more.
    """
    seen = set[tuple[int, int]]()
    waiting = [(folder, False) for folder in reversed(places.images)] + [
        (folder, True) for folder in reversed(places.folders)
    ]
    while waiting:
        folder, is_deep = waiting.pop()
        try:
            status = os.stat(folder)
        except FileNotFoundError:  # it would be read if it were there
            yield folder, []
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        entries, inner = [(".", status)], list[str]()
        with os.scandir(folder) as found:
            for entry in sorted(islice(found, most + 1), key=lambda entry: entry.name):
                try:
                    status = entry.stat()
                except OSError:  # a link that leads nowhere
                    status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    if is_results(Path(entry.path)):
                        continue
                    inner.append(entry.path)
                entries.append((entry.name, status))
        waiting += [(path, True) for path in reversed(inner) if is_deep]
        yield folder, entries
