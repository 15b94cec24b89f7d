"""Predict a shard of many pictures in parts, so that a killed process loses only the part that it is computing."""

import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rcnn.config import NETWORK_SECTIONS, dump
from rcnn.detector import Detector
from rcnn.errors import ImageError, SettingsError, check_number
from rcnn.images.sources import NamedImage, mark_results, no_picture, walk
from rcnn.images.storage import Location, RemotePath, check_local, image_location, is_remote, stored
from rcnn.images.stream import Skip
from rcnn.locks import lock
from rcnn.result import Result
from rcnn.runtime.graph import GraphRuntime
from rcnn.shards.manifest import COMPLETE, Manifest, Part, Task, check_folder, drop_unlisted, shard_folders
from rcnn.shards.names import NameSet, ShardIndex, digest
from rcnn.shards.rows import FORMATS, Row, arrow_schema, by_name, row_of, row_of_error
from rcnn.signals import patient
from rcnn.weights.file import atomic_write

MAX_PART_PICTURES = 1000
MAX_PART_SECONDS = 60.0

Predict = Callable[[list[NamedImage], Skip], Iterable[Result]]
"""Function of pictures, and of what is called with the error of each that can't be read, that yields results."""


class ShardProgress(NamedTuple):
    """The state of a shard.

    Attributes:
        folder: of the shard.
        pictures: number of pictures in finished parts.
        errors: number of those that could not be read.
        added: number of pictures that were finished since this start.
        seconds: time since this start.
    """

    folder: Path
    pictures: int
    errors: int
    added: int
    seconds: float


def predict_shard(
    detector: Detector,
    source: str | Location | Iterable[str],
    out: str | Path,
    shard: ShardIndex | str = "1/1",
    *,
    format: str = "jsonl",
    resume: bool = False,
    score: float | None = None,
    classes: Collection[str] | None = None,
    top: int | None = None,
    batch: int = 1,
    model: str = "",
    report: Callable[[ShardProgress], object] = lambda _: None,
) -> ShardProgress:
    """Predict the pictures of one shard, and write their rows to a folder in `out`.

    The digest of a picture's name determines its shard. The name is the path below the folder `source`, or in a list
    the entire path, or the address without a signature. Rows are written in parts of at most `MAX_PART_PICTURES`, and
    a part ends after `MAX_PART_SECONDS`. A picture that can't be read is a row with an `error`. Finished pictures are
    kept whatever ends the function; a kill loses those of the unfinished part. Memory grows by less than 20 bytes per
    picture of the shard; the paths below a remote folder are held in memory as well.

    Args:
        detector: the detector, with its settings.
        source: a folder, which is searched recursively, or its address, or paths and addresses of images, such as those
            of `listed_paths`.
        out: folder of all shards.
        shard: the shard, such as `3/8`, counted from 1.
        format: `jsonl` or `parquet`.
        resume: continue the shard if it was begun before. Pictures that were added in the meantime are predicted too.
        score: as for `Detector.predict`.
        classes: names of the classes to keep. None: all.
        top: maximum number of boxes per picture, best first.
        batch: as for `Detector.predict`.
        model: name of the detector for messages.
        report: called after each part.

    Returns:
        The state at the end.

    Raises:
        SettingsError: an argument is wrong; torchrun started this process; another process predicts this shard; the
            shard exists and `resume` is False; or it was begun with another model, source, number of shards or other
            settings, and the message names both.
        ImageError: there is no image in the source.
        DataError: the manifest or a part of an earlier start is damaged.
        UnavailableError: `format` needs pyarrow, which is not installed.
        OSError: the disk is full, or a file or folder can't be read or written.
        StorageError: a remote location can't be reached, or may not be read. Pictures that do not exist, or are
            damaged, are rows with an `error` instead.
        NonFiniteError: the network's output is not finite.
    """
    shard = ShardIndex.parse(shard) if isinstance(shard, str) else shard.checked()
    check_local(out, "the folder of the shards")
    check_arguments(source, format)
    score = detector.threshold if score is None else score
    if top is not None:
        check_number("top", top, 1, kind=int)
    if unknown := sorted({*(classes or ())} - {*detector.names}):
        raise SettingsError(f"classes: unknown `{unknown[0]}`; there are {', '.join(detector.names)}")

    def predict(images: list[NamedImage], skip: Skip) -> Iterable[Result]:
        results = detector.stream(images, score=score, batch=batch, skip=skip)
        return (result.filter(classes=classes, top=top) for result in results)

    predict([], lambda _: None)  # checks the other arguments
    folder, images = _listing(source)
    chosen = {"score": score, "classes": sorted(classes) if classes is not None else None, "top": top}
    task = Task(
        **{"shard": shard.index, "of": shard.of, "format": format, "source": folder},
        **{"model": model, "digest": weights_digest(detector), "settings": _settings_of(detector) | chosen},
    )
    with _opened(Path(out), shard, task, resume, report) as writer:
        try:
            for chunk in writer.chunks(images):
                for row, image in _rows(chunk, predict):
                    writer.add(row, image)
        except BaseException:
            writer.flush()
            raise
        writer.complete()
        return writer.progress()


def check_arguments(source: str | Location | Iterable[str], format: str) -> None:
    """Check what needs no detector.

    Raises:
        ImageError: the source is a path, but not of a folder.
        SettingsError: the format is unknown, or torchrun started this process.
        UnavailableError: the format needs pyarrow, which is not installed.
    """
    if format not in FORMATS:
        raise SettingsError(f"format: unknown `{format}`; the formats of shards are {', '.join(FORMATS)}")
    if format == "parquet":
        arrow_schema()
    if "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("WORLD_SIZE", "1") != "1":
        raise SettingsError(
            "a shard is predicted by one process, and torchrun starts several that wait for each other: start one "
            "process per shard without torchrun"
        )
    if isinstance(source, str | Location):
        folder = image_location(source)
        if not (folder.is_dir() if isinstance(folder, RemotePath) else os.path.isdir(folder)):
            reason = "not a folder; a shard is of one folder, or of the paths in a list (--list)"
            raise ImageError(f"{folder}: {no_picture(str(source)) or reason}")


def _listing(source: str | Location | Iterable[str]) -> tuple[str, Iterator[tuple[str, str]]]:
    """Return the absolute path or the address of a folder, empty for a list, and the name and path of each image."""
    if not isinstance(source, str | Location):
        return "", ((str(stored(path)) if is_remote(path) else path, path) for path in source)
    source = image_location(source)
    if isinstance(source, RemotePath):
        images = (file for path in walk(source, lazy=True) if isinstance(file := stored(path), RemotePath))
        return str(source), ((file.name_below(source), file.url()) for file in images)
    top = str(Path(source))
    start = 0 if top == os.curdir else len(os.path.join(top, ""))
    return os.path.abspath(top), ((path[start:].replace(os.sep, "/"), path) for path in walk(top, lazy=True))


def _settings_of(detector: Detector) -> dict[str, Any]:
    """Return all settings that can change a result, as `section.key`."""
    tree = dump(detector.settings)
    found = {f"{part}.{key}": value for part in (*NETWORK_SECTIONS, "predict") for key, value in tree[part].items()}
    return found | {f"data.{key}": tree["data"][key] for key in ("white", "max_pixels")}


def weights_digest(detector: Detector) -> str:
    """Return the SHA-256 of a detector's classes and of its tensors, or of its exported files."""
    found = hashlib.sha256("\0".join(detector.names).encode())
    runtime = detector.runtime
    if isinstance(runtime, GraphRuntime):
        found.update(runtime.digest.encode())
        return found.hexdigest()
    for name, tensor in sorted(detector.model.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _rows(images: list[NamedImage], predict: Predict) -> Iterator[tuple[Row, NamedImage]]:
    """Yield the row of each picture. Those without a result are tried again alone, which assigns the errors to them."""
    found = set[int]()
    with suppress(ImageError):  # damage inside a tile of a large picture ends the stream
        for result in predict(images, lambda _: None):
            found.add(result.origin.frame)
            yield row_of(result), images[result.origin.frame]
    for image in images:
        if image.frame in found:
            continue
        errors = list[ImageError]()
        try:
            results = [*predict([image], errors.append)]
        except ImageError as error:
            results, errors = [], [error]
        yield (row_of(results[0]) if results else row_of_error(image, errors[0])), image


@contextmanager
def _opened(
    out: Path, shard: ShardIndex, task: Task, resume: bool, report: Callable[[ShardProgress], object]
) -> Iterator["_ShardWriter"]:
    """Own the folder of a shard, which is created if it does not exist, in the block.

    Raises:
        SettingsError, DataError: as for `predict_shard`.
    """
    check_folder(out, shard)
    folder = out / shard.folder
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        mark_results(out, "x")
    with lock(folder, "predicted"):
        others = (Manifest(path) for path in shard_folders(out).values() if path != folder)
        for other in islice((other for other in others if other.path.exists()), 1):
            task.check_same(other.task(), out)
        yield _ShardWriter(folder, shard, task, resume, report)


class _ShardWriter:
    """Writes the rows of a shard in parts, and knows which pictures are done.

    Raises:
        SettingsError, DataError: as for `predict_shard`.
    """

    def __init__(
        self, folder: Path, shard: ShardIndex, task: Task, resume: bool, report: Callable[[ShardProgress], object]
    ) -> None:
        self._folder, self._shard, self._format, self._report = folder, shard, FORMATS[task.format], report
        self._done, self._listed = NameSet(), False
        self._rows, self._names, self._begun = list[Row](), list[bytes](), 0.0
        self._pictures = self._errors = self._added = self._number = 0
        self._start = time.monotonic()
        self._manifest = Manifest(folder)
        if not self._manifest.path.exists():
            drop_unlisted(folder, ())
            self._manifest = Manifest.create(folder, task)
            return
        if not resume:
            raise SettingsError(
                f"{folder} holds this shard already: add --resume (resume=True) to continue it, or give another folder"
            )
        old = self._manifest.task()
        task.check_same(old, folder)
        if old.source != task.source:
            there, here = (source or "a list of paths" for source in (old.source, task.source))
            raise SettingsError(f"{folder} was begun with the pictures of {there}, not {here}; give another --out")
        parts = list[str]()
        for part in self._manifest.parts():
            part.check(folder)
            for name in part.digests():
                self._done.add(name)
            parts.append(part.part)
            self._count(part)
        drop_unlisted(folder, parts)
        self._number = max((int(name[len("part-") :].partition(".")[0]) for name in parts), default=0)

    def chunks(self, images: Iterable[tuple[str, str]]) -> Iterator[list[NamedImage]]:
        """Yield the pictures of this shard that are not done, given names and paths; `frame` counts them per chunk."""
        own = self._own(images)
        while chunk := [image._replace(frame=number) for number, image in enumerate(islice(own, MAX_PART_PICTURES))]:
            yield chunk

    def _own(self, images: Iterable[tuple[str, str]]) -> Iterator[NamedImage]:
        for name, path in images:
            self._listed, key = True, digest(name)
            if self._shard.holds(key) and self._done.add(key):
                yield NamedImage(stored(path), name)

    def add(self, row: Row, image: NamedImage) -> None:
        """Add the row of a picture, and finish the part if it is full or old."""
        self._begun = self._begun if self._rows else time.monotonic()
        self._rows.append(row)
        self._names.append(digest(image.name))
        if len(self._rows) >= MAX_PART_PICTURES or time.monotonic() - self._begun >= MAX_PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows as a part, and list it. A signal takes effect afterwards."""
        if not self._rows:
            return
        with patient() as request:
            rows, names, self._rows, self._names = sorted(self._rows, key=by_name), self._names, [], []
            self._number += 1
            path = self._folder / f"part-{self._number:06}{self._format.suffix}"
            atomic_write(path, self._format.encode(rows))
            part = Part.of(path, sum(row["error"] is not None for row in rows), names)
            self._manifest.append(part)
            self._count(part)
            self._added += part.pictures
        self._report(self.progress())
        if request.is_set():
            raise request.error()

    def complete(self) -> None:
        """Finish the shard.

        Raises:
            ImageError: its source, of all shards, lists no image.
        """
        self.flush()
        if not self._listed:
            raise ImageError("the folder or list has no image")
        self._manifest.append(COMPLETE)

    def progress(self) -> ShardProgress:
        """Return the state of the shard."""
        seconds = time.monotonic() - self._start
        return ShardProgress(self._folder, self._pictures, self._errors, self._added, seconds)

    def _count(self, part: Part) -> None:
        self._pictures += part.pictures
        self._errors += part.errors
