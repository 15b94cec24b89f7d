"""Selective Search (Uijlings et al., 2013) through OpenCV, with the boxes of image files cached on disk.

The boxes are stored in `$XDG_CACHE_HOME/rcnn/selective-search` (by default below ~/.cache) under a hash of all that
they depend on: the image file's bytes, the mode, how its pixels are read, OpenCV's version. So a changed image or mode
has another file, an interrupted search continues, and lists of images may change. The folder may be deleted.
"""

import io
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rcnn.config import Data
from rcnn.config.files import check_regular
from rcnn.data.given import Given
from rcnn.errors import ImageError, SettingsError
from rcnn.preprocess.decode import LARGEST_FILE, read_image

Mode = Literal["fast", "quality"]
SEARCHES: dict[str, Mode] = {"selective-search": "fast", "selective-search-quality": "quality"}
"""Name of a source of proposals -> the mode of the search."""

COUNT = 2000
"""Number of boxes kept per image, as many as table 2 of the Faster R-CNN paper uses."""


def selective_search(image: np.ndarray, mode: Mode = "fast", count: int = COUNT) -> Given:
    """Return boxes that may contain an object, found by merging segments of the image; the same ones at every call.

    The boxes are OpenCV's, but not their order, which OpenCV draws with a generator that can't be seeded. Here it is
    a random permutation with a fixed seed.

    Args:
        image: (H, W, 3) uint8, red first, at the size of its file.
        mode: `fast`: 2 colour spaces, 3 segmentations, 2 similarities; `quality`: 5, 5 and 4, many times slower.
        count: maximum number of boxes.

    Raises:
        SettingsError: OpenCV, with its contributed modules, is not installed.
    """
    search = _opencv().ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))  # blue first
    if mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    corners = np.unique(np.asarray(search.process()).reshape(-1, 4), axis=0).astype(np.float64)
    corners[:, 2:] += corners[:, :2]
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(corners))
    return ranked(corners[order[:count]])


def ranked(boxes: np.ndarray) -> Given:
    """Give boxes (n, 4) in the order of their rank scores that fall from 1 towards 0."""
    return Given(boxes, np.linspace(1, 0, len(boxes), endpoint=False))


def search_files(paths: Sequence[Path], mode: Mode, settings: Data) -> Iterator[Given | ImageError]:
    """Yield the `COUNT` best boxes of each file in order, from the cache if they are there, using all cores.

    For an image that can't be read, the error is yielded.

    Args:
        paths: image files.
        mode: as for `selective_search`.
        settings: `white` and `max_pixels` are read.

    Raises:
        SettingsError: OpenCV, with its contributed modules, is not installed.
        OSError: the cache folder can't be written, or the disk is full.
    """
    folder, version = cache_folder(), _opencv().__version__
    folder.mkdir(parents=True, exist_ok=True)

    def search(path: Path) -> Given | ImageError:
        try:
            check_regular(path, LARGEST_FILE)
            key = f"{mode} {COUNT} {settings.white} {version} {blake2b(path.read_bytes()).hexdigest()}"
            file = folder / f"{blake2b(key.encode(), digest_size=20).hexdigest()}.npz"
            boxes = _read(file)
            if boxes is not None:
                return ranked(boxes)
            image = read_image(path, white=settings.white, max_pixels=settings.max_pixels)
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(f"{path}: can't be read: {error.strerror or error}")
        proposals = selective_search(image, mode)
        _write(file, proposals.boxes)
        return proposals

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # OpenCV releases Python's lock
        try:
            yield from pool.map(search, paths)
        finally:  # after Ctrl-C the rest is not waited for
            pool.shutdown(cancel_futures=True)


def cache_folder() -> Path:
    """Return the folder where boxes are cached."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcnn" / "selective-search"


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


def _opencv() -> Any:
    """Import OpenCV with Selective Search.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import cv2

        _ = cv2.ximgproc.segmentation
    except (ImportError, AttributeError):
        raise SettingsError(
            "Selective Search needs OpenCV with its contributed modules: pip install 'rcnn[proposals]'"
        ) from None
    return cv2
