"""Searches for proposals by programs that are not trained here, with the boxes of image files cached on disk.

The boxes are stored in `$XDG_CACHE_HOME/rcnn/proposals` (by default below ~/.cache) under a hash of all that they
depend on: the image file's bytes, how its pixels are read, the search with its mode or model, OpenCV's version. So a
changed image or mode has another file, an interrupted search continues, and lists of images may change. The folder may
be deleted.
"""

import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rcnn.config import Data
from rcnn.config.files import check_regular
from rcnn.data.proposals.edge_boxes import edge_boxes, model_file, structured_edges
from rcnn.data.proposals.given import Given, ranked
from rcnn.data.proposals.opencv import COUNT, opencv
from rcnn.data.proposals.selective_search import Mode, selective_search
from rcnn.errors import ImageError
from rcnn.images.decode import LARGEST_FILE, read_image


class Search(NamedTuple):
    """A search that is ready to run.

    Attributes:
        key: what its boxes depend on besides the image.
        find: (H, W, 3) uint8, red first -> boxes in pixels of the image. Several threads call it at once.
    """

    key: str
    find: Callable[[np.ndarray], Given]


def _selective(mode: Mode, settings: Data) -> Search:
    version = opencv("Selective Search").__version__
    return Search(f"{mode} {COUNT} {version}", lambda image: selective_search(image, mode))


def _edges(settings: Data) -> Search:
    path, version = model_file(settings), opencv("EdgeBoxes").__version__
    detect, digest = structured_edges(path)
    return Search(f"{EDGE_BOXES} {COUNT} {version} {digest}", lambda image: edge_boxes(image, detect))


EDGE_BOXES = "edge-boxes"
SEARCHES: dict[str, Callable[[Data], Search]] = {
    "selective-search": partial(_selective, "fast"),
    "selective-search-quality": partial(_selective, "quality"),
    EDGE_BOXES: _edges,
}
"""Name of a source of proposals -> the search; a SettingsError says what it lacks."""


def search_files(paths: Sequence[Path], name: str, settings: Data) -> Iterator[Given | ImageError]:
    """Yield the boxes of each file in order, best first, from the cache if they are there, using all cores.

    For an image that can't be read, the error is yielded.

    Args:
        paths: image files.
        name: a key of `SEARCHES`.
        settings: `white`, `max_pixels` and, for EdgeBoxes, `edge_model` are read.

    Raises:
        SettingsError: OpenCV, with its contributed modules, is not installed; or EdgeBoxes has no model file.
        OSError: the cache folder can't be written, or the disk is full.
    """
    search, folder = SEARCHES[name](settings), cache_folder()
    folder.mkdir(parents=True, exist_ok=True)

    def of_file(path: Path) -> Given | ImageError:
        try:
            check_regular(path, LARGEST_FILE)
            key = f"{search.key} {settings.white} {blake2b(path.read_bytes()).hexdigest()}"
            file = folder / f"{blake2b(key.encode(), digest_size=20).hexdigest()}.npz"
            boxes = _read(file)
            if boxes is not None:
                return ranked(boxes)
            image = read_image(path, white=settings.white, max_pixels=settings.max_pixels)
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(f"{path}: can't be read: {error.strerror or error}")
        try:
            proposals = search.find(image)
        except ImageError as error:
            return ImageError(f"{path}: {error}")
        _write(file, proposals.boxes)
        return proposals

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV releases Python's lock
        try:
            yield from pool.map(of_file, paths)
        finally:  # after Ctrl-C the rest is not waited for
            pool.shutdown(cancel_futures=True)


def cache_folder() -> Path:
    """Return the folder where boxes are cached."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcnn" / "proposals"


def _read(file: Path) -> np.ndarray | None:
    """Return the boxes in a file; None if it is missing or, after a power failure, incomplete."""
    try:
        with file.open("rb") as content, np.load(content, allow_pickle=False) as archive:
            return archive["boxes"].astype(np.float64)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _write(file: Path, boxes: np.ndarray) -> None:
    """Replace the file atomically; several processes may do so at once."""
    content = io.BytesIO()
    np.savez_compressed(content, boxes=boxes.astype(np.int32))
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_bytes(content.getvalue())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
