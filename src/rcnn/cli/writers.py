"""Results written as they come, one writer a format; memory does not grow with the number of images."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rcnn.data.yolo_yaml import yaml_text
from rcnn.result import Result

DRAWABLE = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
"""Suffixes that drawn images keep; others become PNG."""


@dataclass(frozen=True)
class Target:
    """Where results go.

    Attributes:
        folder: of all formats.
        names: class names.
        image_id: gives an image its COCO id.
        part: number of this process; each writes its part of the files that hold many images.
        shared: names without suffix that are no image's own, see `shared_stems`.
    """

    folder: Path
    names: tuple[str, ...]
    image_id: Callable[[Result], int | str]
    part: int = 0
    shared: Collection[Path] = ()


class Writer(Protocol):
    """Takes the results one by one, in order."""

    def write(self, result: Result, name: Path) -> None:
        """Write one image's result; `name` is the image's path below the output folder."""
        ...

    def close(self) -> None:
        """Finish the files; also called when the command is interrupted."""
        ...


class JsonList:
    """A JSON list written row by row, one a line; `merge_parts` gives it its name."""

    def __init__(self, path: Path, rows: Callable[[Result], list[dict[str, Any]]]) -> None:
        self._rows = rows
        self._file = path.open("w", encoding="utf-8")

    def write(self, result: Result, name: Path) -> None:
        """Add the rows of one image."""
        self._file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows(result))

    def close(self) -> None:
        """End the file."""
        self._file.close()


def merge_parts(folder: Path, world: int) -> None:
    """One JSON list of the rows that each process wrote."""
    for name in ("results", "coco"):
        parts = [path for rank in range(world) if (path := _part(folder, name, rank)).exists()]
        if parts:
            temporary = folder / f".{name}.json"
            with temporary.open("w", encoding="utf-8") as file:
                between = "[\n"
                for part in parts:
                    with part.open(encoding="utf-8") as rows:
                        for row in rows:
                            file.write(between + row.rstrip("\n"))
                            between = ",\n"
                file.write("\n]\n" if between == ",\n" else "[]\n")
            temporary.replace(folder / f"{name}.json")
        for part in parts:
            part.unlink()


def _part(folder: Path, name: str, rank: int) -> Path:
    return folder / f".{name}-{rank}.jsonl"


class Drawn:
    """One picture an image, its boxes drawn."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, result: Result, name: Path) -> None:
        """Draw one image."""
        path = name if name.suffix.lower() in DRAWABLE else name.with_name(name.name + ".png")
        result.draw().convert("RGB").save(_parent_made(self._folder / path))

    def close(self) -> None:
        """Nothing is open."""


class Voc:
    """One VOC xml an image."""

    def __init__(self, folder: Path, shared: Collection[Path]) -> None:
        self._folder, self._shared = folder, shared

    def write(self, result: Result, name: Path) -> None:
        """Write one annotation file."""
        path = self._folder / label_name(name, ".xml", self._shared)
        _parent_made(path).write_text(result.to_voc(), encoding="utf-8")

    def close(self) -> None:
        """Nothing is open."""


class Yolo:
    """One YOLO text file an image, and a `data.yaml` with the names of the classes."""

    def __init__(self, folder: Path, names: tuple[str, ...], shared: Collection[Path]) -> None:
        self._folder, self._shared = folder / "labels", shared
        text = yaml_text({"path": ".", "train": "images"}, names)
        _parent_made(folder / "data.yaml").write_text(text, encoding="utf-8")

    def write(self, result: Result, name: Path) -> None:
        """Write one label file."""
        path = self._folder / label_name(name, ".txt", self._shared)
        _parent_made(path).write_text(result.to_yolo(), encoding="utf-8")

    def close(self) -> None:
        """Nothing is open."""


FORMATS: Mapping[str, Callable[[Target], Writer]] = {
    "drawn": lambda target: Drawn(target.folder / "drawn"),
    "json": lambda target: JsonList(_part(target.folder, "results", target.part), lambda result: [result.to_json()]),
    "coco": lambda target: JsonList(
        _part(target.folder, "coco", target.part), lambda result: result.to_coco(target.image_id(result))
    ),
    "voc": lambda target: Voc(target.folder / "voc", target.shared),
    "yolo": lambda target: Yolo(target.folder / "yolo", target.names, target.shared),
}
"""Name of a format -> what writes it."""


def _parent_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def shared_stems(images: Iterable[Path]) -> set[Path]:
    """Names without suffix that several images have, as `a.jpg` and `a.png`, or that are another image's whole name.

    They follow from the list of all images, so that processes that share the work agree on every name.
    """
    names = set(images)
    count = Counter(name.with_suffix("") for name in names)
    return {stem for stem, images in count.items() if images > 1 or stem in names}


def label_name(image: Path, suffix: str, shared: Collection[Path]) -> Path:
    """The name of an image's labels: its own with another suffix, or that behind the whole name if stems are shared."""
    return image.with_name(image.name + suffix) if image.with_suffix("") in shared else image.with_suffix(suffix)
