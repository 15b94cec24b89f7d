"""Write results as they arrive, one writer per format. Memory does not grow with the number of images."""

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fileinput import FileInput
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rcnn.cli import screen
from rcnn.config.files import MAX_NAME_BYTES
from rcnn.data.formats.folders import write_text
from rcnn.data.formats.yolo import yaml_text
from rcnn.draw import as_rgb, save_picture
from rcnn.errors import ImageError
from rcnn.images.storage import Location, copy_file, stored
from rcnn.result import Result

DRAWABLE = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
"""Suffixes that drawn images keep; other images are written as PNG."""


@dataclass(frozen=True)
class Target:
    """Where results are written.

    Attributes:
        folder: folder of all formats.
        names: class names.
        image_id: returns the COCO id of a result's image.
        part: rank of this process, which writes its own part of files that hold many images.
        shared: names without suffix that are ambiguous, see `shared_stems`.
    """

    folder: Path
    names: tuple[str, ...]
    image_id: Callable[[Result], int | str]
    part: int = 0
    shared: Collection[Path] = ()


Write = Callable[[Result, Path], None]
"""Writes the result of one image, whose path below the output folder is the second argument."""


@contextmanager
def _json_lines(target: Target, name: str, rows: Callable[[Result], list[dict[str, Any]]]) -> Iterator[Write]:
    """Write this process's rows of a JSON list, one per line; `merge_parts` turns them into the list."""
    path = target.folder / f"{name}.json"
    file = _part(target.folder, name, target.part).open("w", encoding="utf-8")

    def write(result: Result, _: Path) -> None:
        with _naming(path):
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(result))

    try:
        yield write
    finally:
        with _naming(path):
            file.close()


def merge_parts(folder: Path, world: int) -> None:
    """Merge the rows that the processes wrote into one JSON list per format. If the disk is full, the rows stay."""
    for name in ("results", "coco"):
        parts = [path for rank in range(world) if (path := _part(folder, name, rank)).exists()]
        if not parts:
            continue
        temporary = folder / f".{name}.json"
        try:
            with (
                _naming(folder / f"{name}.json"),
                temporary.open("w", encoding="utf-8") as file,
                FileInput(parts, encoding="utf-8") as rows,
            ):
                separator = "[\n"
                for row in filter(lambda row: row.endswith("\n"), rows):  # a full disk cuts the last one
                    file.write(separator + row.rstrip("\n"))
                    separator = ",\n"
                file.write("\n]\n" if separator == ",\n" else "[]\n")
        except OSError:
            temporary.unlink()
            raise
        temporary.replace(folder / f"{name}.json")
        for part in parts:
            part.unlink()


def _part(folder: Path, name: str, rank: int) -> Path:
    return folder / f".{name}-{rank}.jsonl"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors of the operating system that name none, as those of `write` and `close`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """Yield a temporary path whose file replaces `path` at the end, unless the block raises, as on a full disk.

    Raises:
        OSError: of the block, naming `path` if it names no other file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".part-{os.getpid()}{path.suffix}")
    try:
        with _naming(path):
            yield temporary
        temporary.replace(path)
    except BaseException as error:  # also Ctrl-C
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(temporary) in (error.filename, error.filename2):
            error.filename, error.filename2 = str(path), None
        raise


def _file_per_image(
    folder: Path, named: Callable[[Path], Path], save: Callable[[Result, Path], object]
) -> AbstractContextManager[Write]:
    def write(result: Result, image: Path) -> None:
        save(result, folder / named(image))

    return nullcontext(write)


def _drawn(target: Target) -> AbstractContextManager[Write]:
    """Write images with their boxes drawn, except those that were read window by window."""

    def save(result: Result, path: Path) -> None:
        height, width = result.size
        if height * width > result.read_options.max_pixels:
            screen.note(f"{result.name}: not drawn, since {width}x{height} is more than data.max_pixels")
        else:
            with _complete(path) as file:
                save_picture(result.draw(), file)

    return _file_per_image(
        target.folder / "drawn",
        lambda image: image if image.suffix.lower() in DRAWABLE else longer(image, ".png"),
        save,
    )


def _voc(target: Target) -> AbstractContextManager[Write]:
    """Write VOC xml files, each beside a copy of its image."""
    folder = target.folder / "voc"
    return _labelled(folder, folder, partial(label_name, suffix=".xml", shared=target.shared), Result.to_voc)


def _yolo(target: Target) -> AbstractContextManager[Write]:
    """Write YOLO text files, copies of the images, and a `data.yaml` with the class names."""
    folder = target.folder / "yolo"
    with _complete(folder / "data.yaml") as file:
        write_text(file, yaml_text({"path": ".", "train": "images"}, target.names))
    named = partial(label_name, suffix=".txt", shared=target.shared)
    return _labelled(folder / "labels", folder / "images", named, Result.to_yolo)


def _labelled(
    labels: Path, images: Path, named: Callable[[Path], Path], text: Callable[[Result], str]
) -> AbstractContextManager[Write]:
    """Write labels, and copy each image file under the stem of its labels, so that both together are a data set.

    An image without a file is written as PNG.
    """

    def copy(result: Result, path: Path) -> None:
        image = images / path.relative_to(labels).with_suffix(Path(result.path).suffix if result.path else ".png")
        with _complete(path) as label_file, _complete(image) as image_file:
            label_file.write_text(text(result), encoding="utf-8")
            if result.path is not None:
                _copy(stored(result.path), image_file)
            elif isinstance(result.origin.image, np.ndarray):
                save_picture(as_rgb(result.origin.image), image_file)

    return _file_per_image(labels, named, copy)


def _copy(source: Location, copy: Path) -> None:
    """Copy an image.

    Raises:
        ImageError: the image has disappeared since it was read, or is a folder now.
    """
    try:
        copy_file(source, copy)
    except OSError as error:
        if error.filename != str(source) or error.filename2 is not None:  # the copy can't be written
            raise
        raise ImageError(f"{source}: the image can't be copied: {error.strerror}") from None


FORMATS: Mapping[str, Callable[[Target], AbstractContextManager[Write]]] = {
    "drawn": _drawn,
    "json": lambda target: _json_lines(target, "results", lambda result: [result.to_json()]),
    "coco": lambda target: _json_lines(target, "coco", lambda result: result.to_coco(target.image_id(result))),
    "voc": _voc,
    "yolo": _yolo,
}
"""Name of a format -> context manager that provides its writer."""


LISTS = ("json", "coco")
"""Formats whose file holds the results of many images."""


def shared_stems(images: Iterable[Path]) -> set[Path]:
    """Return names without suffix that several images share, like `a.jpg` and `a.png`, or that are another image's.

    They depend only on the list of all images, so that processes that share the work agree on every name.
    """
    names = set(images)
    count = Counter(name.with_suffix("") for name in names)
    return {stem for stem, images in count.items() if images > 1 or stem in names}


def label_name(image: Path, suffix: str, shared: Collection[Path]) -> Path:
    """Return the name of an image's labels: `suffix` replaces the image's, or follows it if the stem is shared."""
    return longer(image, suffix) if image.with_suffix("") in shared else image.with_suffix(suffix)


def longer(image: Path, suffix: str) -> Path:
    """Return the name with a second suffix. If it would be too long, the stem is shortened."""
    stem = image.stem
    while len(os.fsencode(f"{stem}{image.suffix}{suffix}")) > MAX_NAME_BYTES:
        stem = stem[:-1]
    return image.with_name(f"{stem}{image.suffix}{suffix}")
