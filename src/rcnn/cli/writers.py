"""Results written as they come, one writer a format; memory does not grow with the number of images."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
        stem: an image's path below `folder` -> that of its labels, without suffix; no two images have the same.
        part: number of this process; each writes its part of the files that hold many images.
    """

    folder: Path
    names: tuple[str, ...]
    image_id: Callable[[Result], int | str]
    stem: Callable[[Path], Path]
    part: int = 0


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

    def __init__(self, folder: Path, stem: Callable[[Path], Path]) -> None:
        self._folder, self._stem = folder, stem

    def write(self, result: Result, name: Path) -> None:
        """Write one annotation file."""
        path = self._folder / f"{self._stem(name)}.xml"
        _parent_made(path).write_text(result.to_voc(), encoding="utf-8")

    def close(self) -> None:
        """Nothing is open."""


class Yolo:
    """One YOLO text file an image, and a `data.yaml` with the names of the classes."""

    def __init__(self, folder: Path, names: tuple[str, ...], stem: Callable[[Path], Path]) -> None:
        self._folder, self._stem = folder / "labels", stem
        listed = "".join(f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in enumerate(names))
        _parent_made(folder / "data.yaml").write_text(f"path: .\ntrain: images\nnames:\n{listed}", encoding="utf-8")

    def write(self, result: Result, name: Path) -> None:
        """Write one label file."""
        path = self._folder / f"{self._stem(name)}.txt"
        _parent_made(path).write_text(result.to_yolo(), encoding="utf-8")

    def close(self) -> None:
        """Nothing is open."""


FORMATS: Mapping[str, Callable[[Target], Writer]] = {
    "drawn": lambda target: Drawn(target.folder / "drawn"),
    "json": lambda target: JsonList(_part(target.folder, "results", target.part), lambda result: [result.to_json()]),
    "coco": lambda target: JsonList(
        _part(target.folder, "coco", target.part), lambda result: result.to_coco(target.image_id(result))
    ),
    "voc": lambda target: Voc(target.folder / "voc", target.stem),
    "yolo": lambda target: Yolo(target.folder / "yolo", target.names, target.stem),
}
"""Name of a format -> what writes it."""


def _parent_made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
