"""Read sizes of image files and decode them, once: the outcome is remembered until the file changes."""

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import torch

from rcnn.config import Data
from rcnn.cores import usable_cores
from rcnn.data.cache import Identity, cache_file, now, settled, store, used
from rcnn.errors import ImageError
from rcnn.images.batch import Size
from rcnn.images.decode import Look, image_size, verify_image
from rcnn.images.storage import Location, is_remote, stored
from rcnn.images.storage import identity as identity_of
from rcnn.images.stream import ahead
from rcnn.weights.file import load_weights, save_weights

ProgressCallback = Callable[[int, int], None]
SIZED, DECODED, TRANSPARENT = 1, 2, 4
"""Bits of `_Table.state`."""
READERS = 16
"""Number of threads that read remote files, most of whose time is spent waiting."""
NO_LARGEST, MOST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


class _Table(NamedTuple):
    """What is known of N files.

    Attributes:
        path: (N,) int64, a hash of the path; in a table that is searched, increasing.
        identity: (N, 16) uint8, a hash of the identity.
        size: (N, 2) int32, (height, width), if `SIZED`.
        largest: (N,) int64, `Look.largest` or `NO_LARGEST`, if `DECODED`.
        state: (N,) uint8, the bits of what is known; 0 for a file that can't be read or was changed too recently.
    """

    path: np.ndarray
    identity: np.ndarray
    size: np.ndarray
    largest: np.ndarray
    state: np.ndarray

    def over(self, other: "_Table") -> "_Table":
        """Return the rows of both tables, in the order of their paths. Rows of this one replace those of the other."""
        both = _Table(*map(np.concatenate, zip(self, other, strict=True)))
        return both.take(np.unique(both.path, return_index=True)[1])

    def take(self, rows: np.ndarray) -> "_Table":
        """Return some rows."""
        return _Table(*(column[rows] for column in self))


def _unknown(path: np.ndarray, identity: np.ndarray) -> _Table:
    """Return a table of files of which nothing is known."""
    count = len(path)
    zeros = np.zeros((count, 2), np.int32), np.full(count, NO_LARGEST), np.zeros(count, np.uint8)
    return _Table(path, identity, *zeros)


NOTHING_KNOWN = _unknown(np.zeros(0, np.int64), np.zeros((0, 16), np.uint8))


class ImageChecks:
    """Sizes of images and outcomes of decoding them, of one data set. Files that can't be read are tried every time.

    Used as a context, which stores at its end what was found out.

    Args:
        root: folder of the data set.
        settings: `max_pixels` is read.
        anew: read every file again, as in a check of the data, and replace what was remembered.
    """

    def __init__(self, root: str | Location, settings: Data, *, anew: bool = False) -> None:
        self._max_pixels, self._anew, self._began = settings.max_pixels, anew, now()
        place = str(root) if is_remote(root) else os.path.abspath(str(root))
        self._file = cache_file("images", place, settings.max_pixels)
        self._known: _Table | None = NOTHING_KNOWN if anew else None
        self._changed = anew
        self._remote_identities = dict[str, tuple[int | str, ...] | None]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._known is not None and len(self._known.path) and self._changed:
            table = self._known.over(_read(self._file))  # which another process may have written meanwhile
            table = table.take(np.flatnonzero(table.state))
            tensors = {name: torch.from_numpy(column) for name, column in table._asdict().items()}
            store(self._file, lambda file: save_weights(file, tensors, {"kind": "images"}, shared=True))

    def sizes(self, paths: Sequence[str], progress: ProgressCallback | None = None) -> list[Size | ImageError]:
        """Return (height, width) of each file after EXIF rotation, or the reason why its header can't be read.

        Args:
            paths: image files.
            progress: called with (files read, files to read), without those that are remembered.
        """
        table, unsettled = self._recall(paths)
        before = table.state.copy()
        sizes: list[Size | ImageError] = [(height, width) for height, width in table.size.tolist()]
        todo = np.flatnonzero(table.state & SIZED == 0).tolist()

        def read(row: int) -> Size | ImageError:
            try:
                return image_size(paths[row], max_pixels=self._max_pixels)
            except ImageError as error:
                return error

        threads = READERS if any(is_remote(paths[row]) for row in todo) else 0
        with closing(ahead(read, todo, threads)) as found:
            for done, (row, size) in enumerate(zip(todo, found, strict=True), start=1):
                sizes[row] = size
                if not isinstance(size, ImageError):
                    table.size[row] = size
                    table.state[row] |= SIZED
                if progress is not None:
                    progress(done, len(todo))
        self._add(table, unsettled, before)
        return sizes

    def looks(self, paths: Sequence[str], progress: ProgressCallback | None = None) -> list[Look | ImageError]:
        """Decode each file on all cores; return what that shows, or the reason why it can't be decoded.

        Arguments are as for `sizes`.
        """
        table, unsettled = self._recall(paths)
        before = table.state.copy()
        largest = (None if number == NO_LARGEST else number for number in table.largest.tolist())
        transparent = (table.state & TRANSPARENT > 0).tolist()
        looks: list[Look | ImageError] = [*map(Look, largest, transparent)]
        todo = np.flatnonzero(table.state & DECODED == 0).tolist()

        def look(path: str) -> Look | ImageError:
            try:
                return verify_image(path, max_pixels=self._max_pixels)
            except ImageError as error:
                return error

        # Decoding releases Python's lock. The threads silence Pillow's warnings, which changes state that they share.
        # It is restored here.
        threads = max(usable_cores(), READERS if any(is_remote(paths[row]) for row in todo) else 0)
        with warnings.catch_warnings(), closing(ahead(look, (paths[row] for row in todo), threads)) as outcomes:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            try:
                for done, (row, outcome) in enumerate(zip(todo, outcomes, strict=True), start=1):
                    looks[row] = outcome
                    if isinstance(outcome, Look):
                        table.largest[row] = NO_LARGEST if outcome.largest is None else min(outcome.largest, MOST)
                        table.state[row] |= DECODED | TRANSPARENT * outcome.transparent
                    if progress is not None:
                        progress(done, len(todo))
            finally:  # also if the user interrupts it
                self._add(table, unsettled, before)
        return looks

    def _recall(self, paths: Sequence[str]) -> tuple[_Table, np.ndarray]:
        """Return what is known of some files, and (N,) bool, whether they are too recent to be remembered."""
        if self._known is None:
            self._known = _read(self._file)
            used(self._file)
        keys, identities, unsettled = bytearray(), bytearray(), np.zeros(len(paths), bool)
        here = os.getcwd()
        unasked = [path for path in dict.fromkeys(paths) if "://" in path and path not in self._remote_identities]
        with closing(
            ahead(lambda path: identity_of(stored(path)), unasked, READERS if unasked else 0)
        ) as identities_of:
            self._remote_identities.update(zip(unasked, identities_of, strict=True))
        for row, path in enumerate(paths):
            remote = "://" in path
            identity = self._remote_identities[path] if remote else _local_identity(path)
            whole = (path if remote else os.path.join(here, path)).encode(errors="surrogatepass")
            keys += blake2b(whole, digest_size=8).digest()
            identities += blake2b(repr(identity).encode(), digest_size=16).digest()
            recent = isinstance(identity, Identity) and not settled(identity.latest, self._began)
            unsettled[row] = identity is None or recent
        table = _unknown(np.frombuffer(keys, np.int64), np.frombuffer(identities, np.uint8).reshape(-1, 16))
        if len(self._known.path):
            places = np.searchsorted(self._known.path, table.path).clip(max=len(self._known.path) - 1)
            found = self._known.take(places)
            same = (found.path == table.path) & (found.identity == table.identity).all(axis=1)
            for column, known in zip(table[2:], found[2:], strict=True):
                column[same] = known[same]
        return table, unsettled

    def _add(self, table: _Table, unsettled: np.ndarray, before: np.ndarray) -> None:
        """Remember what was found out about some files, of which `before` was known."""
        assert self._known is not None
        table.state[unsettled] = 0
        if self._anew or not np.array_equal(table.state, before):
            self._changed = True
            self._known = table.over(self._known)


def _local_identity(path: str) -> Identity | None:
    """Return the identity of a local file; None if there is none. A `Path` would take longer than the rest."""
    try:
        return Identity.of(os.stat(path))
    except (OSError, ValueError):
        return None


def _read(file: Path) -> _Table:
    """Return the table in a file of the cache, which is empty if the file is missing or damaged."""
    with suppress(Exception):
        tensors, metadata = load_weights(file)
        table = _Table(*(tensors[name].numpy() for name in _Table._fields))
        sound = (
            metadata["kind"] == "images"
            and all(
                column.dtype == empty.dtype and column.shape == (len(table.path), *empty.shape[1:])
                for column, empty in zip(table, NOTHING_KNOWN, strict=True)
            )
            and (table.path[1:] > table.path[:-1]).all()
            and (table.size[table.state & SIZED > 0] > 0).all()
        )
        if sound:
            return table
    return NOTHING_KNOWN
