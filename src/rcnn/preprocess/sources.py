"""Find the image files of a path, folder or glob, except our own results among them."""

import os
from glob import glob
from itertools import takewhile
from pathlib import Path

from rcnn.errors import ImageError
from rcnn.preprocess.decode import IMAGE_SUFFIXES

MARK = ".rcnn"
"""Name of the file that marks a folder of results, which may lie among the user's images."""


def mark_results(folder: Path) -> None:
    """Mark the files in a folder as results, which are left out when a folder above it is searched."""
    (folder / MARK).write_text("Written by rcnn. Images and labels below are results, not data.\n", encoding="utf-8")


def is_results(folder: Path) -> bool:
    """Whether a folder was marked by `mark_results`."""
    return (folder / MARK).is_file()


def is_image(name: str) -> bool:
    """Whether a file name has an image suffix."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def files(source: str | Path) -> list[Path]:
    """Return the image files of a path, folder or glob, sorted. Our own results below a folder are left out.

    Raises:
        ImageError: there is nothing, or nothing but results.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    base = base_of(source)
    named = [path] if path.is_dir() else sorted(Path(name) for name in glob(str(source), recursive=True))
    if not named:
        raise ImageError(f"{source}: no such file, folder or glob")
    inside = [inner for file in named for inner in (sorted(file.rglob("*")) if file.is_dir() else [file])]
    images = [file for file in inside if is_image(file.name) and file.is_file()]
    if not images:
        raise ImageError(f"{source}: no image in this folder (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    results = {folder for folder in {file.parent for file in images} if is_below_results(folder, base)}
    kept = [file for file in images if file.parent not in results]
    if not kept:
        raise ImageError(f"{source}: nothing but results of rcnn is here; to use these, name their folder")
    return kept


def base_of(source: str | Path) -> Path:
    """Return the absolute folder where the search of a source starts: without wildcards and file names."""
    plain = Path(*takewhile(lambda part: not set(part) & set("*?["), Path(source).parts))
    return Path(os.path.abspath(plain if plain.is_dir() else plain.parent))


def is_below_results(folder: Path, base: Path) -> bool:
    """Whether a folder is, or lies in, a folder of results below `base`."""
    parts = Path(os.path.relpath(folder, base)).parts
    return any(is_results(base.joinpath(*parts[:depth])) for depth in range(1, len(parts) + 1))
