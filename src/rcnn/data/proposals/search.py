"""Searches for proposals by programs that are not trained here, with the boxes of image files cached on disk.

The boxes are stored in `$XDG_CACHE_HOME/rcnn/proposals` (by default below ~/.cache) under a hash of everything that
they depend on: the image file's bytes, how its pixels are read, the search with its mode or model, and OpenCV's
version. So a changed image or mode has another file, an interrupted search continues, and lists of images may change.
The folder may be deleted.
"""

import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rcnn.config import Data
from rcnn.config.files import cache_folder
from rcnn.cores import usable_cores
from rcnn.data.proposals.external import NOTHING, ImageProposals, ranked
from rcnn.errors import ImageError, SettingsError
from rcnn.images.decode import MAX_FILE_BYTES, MAX_WHOLE_BYTES, read_image
from rcnn.images.storage import Location, read_bytes
from rcnn.images.stream import ahead

MAX_SEARCHED_BOXES = 2000
"""Number of boxes kept per image, as many as table 2 of the Faster R-CNN paper uses."""


def opencv(reader: str) -> Any:
    """Return the module of OpenCV. `reader` is the name of the search that needs it, for the message.

    Raises:
        SettingsError: it is not installed, or without its contributed modules.
    """
    try:
        import cv2

        _ = cv2.ximgproc.segmentation
    except (ImportError, AttributeError):
        raise SettingsError(
            f"{reader} needs OpenCV with its contributed modules: pip install 'rcnn[proposals]'"
        ) from None
    cv2.setNumThreads(min(cv2.getNumThreads(), usable_cores()))  # by default one for each core of the machine
    return cv2


Mode = Literal["fast", "quality"]


def selective_search(image: np.ndarray, mode: Mode = "fast", count: int = MAX_SEARCHED_BOXES) -> ImageProposals:
    """Return boxes that may contain an object, found by merging segments of the image; the same ones at every call.

    The boxes are OpenCV's, but not their order, which OpenCV draws from a generator that can't be seeded. Here the
    order is a random permutation with a fixed seed.

    Args:
        image: (H, W, 3) uint8, red first, at the size of its file.
        mode: `fast`: 2 colour spaces, 3 segmentations, 2 similarities; `quality`: 5, 5 and 4, many times slower.
        count: maximum number of boxes.

    Raises:
        SettingsError: OpenCV, with its contributed modules, is not installed.
    """
    search = opencv("Selective Search").ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))  # blue first
    if mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    corners = np.unique(np.asarray(search.process()).reshape(-1, 4), axis=0).astype(np.float64)
    corners[:, 2:] += corners[:, :2]
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(corners))
    return ranked(corners[order[:count]])


EDGE_BOXES_ALPHA, EDGE_BOXES_BETA = 0.65, 0.75
"""IoU of neighbouring candidates, and of the suppression: EdgeBoxes' setting for IoU 0.7 (paper, section 4.1)."""

MIN_EDGE_BOXES_SIDE, MAX_EDGE_BOXES_SIZE = 32, 19_998
"""Pixels: the shorter side of the smallest image (candidates have an area of 1,000 pixels at least, and the patches of
the structured forest a side of 32), and the longest sum of width and height, since OpenCV tabulates 10,000 sizes."""

EDGE_MODEL_ADDRESS = "https://github.com/opencv/opencv_extra/raw/master/testdata/cv/ximgproc/model.yml.gz"
EDGE_MODEL_NEEDED = "needs OpenCV's model file: data.edge_model=PATH"

_FOREST_OPTIONS = ("stride", "shrinkNumber", "patchSize", "patchInnerSize", "numberOfTrees", "numberOfTreesToEvaluate")
_FOREST_LISTS = ("childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins")
"""Parts of a model file. If one is missing, OpenCV divides by zero or reads beyond the end of a list."""


class Edges(NamedTuple):
    """Edges of an image.

    Attributes:
        strength: (H, W) float32, 0 to 1, in thin lines.
        direction: (H, W) float32, angle of the normal, 0 to pi.
    """

    strength: np.ndarray
    direction: np.ndarray


EdgeDetector = Callable[[np.ndarray], Edges]
"""(H, W, 3) uint8, red first -> its edges."""


def edge_boxes(image: np.ndarray, detect: EdgeDetector, count: int = MAX_SEARCHED_BOXES) -> ImageProposals:
    """Return boxes that may contain an object, best first, with scores that express their order alone.

    Args:
        image: (H, W, 3) uint8, red first, at the size of its file. If its shorter side is under 32 pixels, there are
            no boxes.
        detect: finds the edges.
        count: maximum number of boxes.

    Raises:
        ImageError: the image is too large for OpenCV's implementation.
        SettingsError: OpenCV, with its contributed modules, is not installed.
    """
    height, width = image.shape[:2]
    if height + width > MAX_EDGE_BOXES_SIZE:
        raise ImageError(
            f"EdgeBoxes takes images of up to {MAX_EDGE_BOXES_SIZE:,} pixels, width + height; got {width} x {height}"
        )
    if min(height, width) < MIN_EDGE_BOXES_SIDE:
        return NOTHING
    search = opencv("EdgeBoxes").ximgproc.createEdgeBoxes(alpha=EDGE_BOXES_ALPHA, beta=EDGE_BOXES_BETA, maxBoxes=count)
    found, _ = search.getBoundingBoxes(*detect(image))
    boxes = np.asarray(found, dtype=np.float64).reshape(-1, 4)
    # OpenCV gives (x + 1, y + 1, w, h), where the box holds the pixels x to x + w, counted from 0.
    return ranked(np.hstack((boxes[:, :2] - 1, boxes[:, :2] + boxes[:, 2:])))


def model_file(settings: Data) -> Path:
    """Return the path of `data.edge_model`.

    Raises:
        SettingsError: it is not set, or there is no such file.
    """
    if settings.edge_model is None:
        raise SettingsError(f"edge-boxes {EDGE_MODEL_NEEDED}, from {EDGE_MODEL_ADDRESS}")
    path = Path(settings.edge_model).expanduser()
    if not path.is_file():
        raise SettingsError(
            f"data.edge_model={settings.edge_model}: there is no such file; edge-boxes {EDGE_MODEL_NEEDED}, "
            f"from {EDGE_MODEL_ADDRESS}"
        )
    return path


def structured_edges(path: Path) -> tuple[EdgeDetector, str]:
    """Return the edge detector of a model file, and a hash of the file. The last one used stays in memory.

    Raises:
        SettingsError: the file is not such a model or can't be read, or OpenCV is not installed.
    """
    try:
        digest = blake2b(path.read_bytes()).hexdigest()
    except OSError as error:
        raise SettingsError(f"data.edge_model={path}: can't be read: {error.strerror or error}") from None
    return _load(path, digest), digest


@lru_cache(maxsize=1)
def _load(path: Path, digest: str) -> EdgeDetector:
    cv2 = opencv("EdgeBoxes")
    try:
        model = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)
        options = model.getNode("options")
        numbers = [options.getNode(name).real() if options.isMap() else 0 for name in _FOREST_OPTIONS]
        if min(numbers) < 1 or not all(model.getNode(name).size() for name in _FOREST_LISTS):
            raise ValueError("it lacks the options or the trees of a structured forest")
        forest = cv2.ximgproc.createStructuredEdgeDetection(str(path))
    except (cv2.error, SystemError, ValueError) as error:  # a SystemError wraps the cv2.error of a constructor
        reason = str(error.__cause__ or error).strip()
        raise SettingsError(
            f"data.edge_model={path}: not OpenCV's model of edges ({reason}); see {EDGE_MODEL_ADDRESS}"
        ) from None

    def detect(image: np.ndarray) -> Edges:
        edges = forest.detectEdges(image.astype(np.float32) / 255)
        direction = forest.computeOrientation(edges)
        return Edges(forest.edgesNms(edges, direction), direction)

    return detect


class Search(NamedTuple):
    """A search that is ready to run.

    Attributes:
        key: what its boxes depend on besides the image.
        find: (H, W, 3) uint8, red first -> boxes in pixels of the image. Several threads call it concurrently.
    """

    key: str
    find: Callable[[np.ndarray], ImageProposals]


def _selective(mode: Mode, settings: Data) -> Search:
    version = opencv("Selective Search").__version__
    return Search(f"{mode} {MAX_SEARCHED_BOXES} {version}", lambda image: selective_search(image, mode))


def _edges(settings: Data) -> Search:
    path, version = model_file(settings), opencv("EdgeBoxes").__version__
    detect, digest = structured_edges(path)
    return Search(f"{EDGE_BOXES} {MAX_SEARCHED_BOXES} {version} {digest}", lambda image: edge_boxes(image, detect))


EDGE_BOXES = "edge-boxes"
SEARCHES: dict[str, Callable[[Data], Search]] = {
    "selective-search": partial(_selective, "fast"),
    "selective-search-quality": partial(_selective, "quality"),
    EDGE_BOXES: _edges,
}
"""Name of a source of proposals -> the search. A SettingsError names a missing package or file."""


def search_files(paths: Sequence[Location], name: str, settings: Data) -> Iterator[ImageProposals | ImageError]:
    """Yield the boxes of each file in order, best first, using all cores. Cached boxes are not searched again.

    If an image can't be read, its error is yielded.

    Args:
        paths: image files.
        name: a key of `SEARCHES`.
        settings: `white`, `max_pixels` and, for EdgeBoxes, `edge_model` are read.

    Raises:
        SettingsError: OpenCV, with its contributed modules, is not installed; or EdgeBoxes has no model file.
        OSError: the cache folder can't be written, or the disk is full.
        StorageError: as for `read_image`.
    """
    search, folder = SEARCHES[name](settings), cache_folder("proposals")
    folder.mkdir(parents=True, exist_ok=True)

    def of_file(path: Location) -> ImageProposals | ImageError:
        try:
            content = read_bytes(path, MAX_FILE_BYTES if isinstance(path, Path) else MAX_WHOLE_BYTES)
            key = f"{search.key} {settings.white} {blake2b(content).hexdigest()}"
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

    yield from ahead(of_file, paths, usable_cores())  # OpenCV releases Python's lock


def _read(file: Path) -> np.ndarray | None:
    """Return the boxes in a file; None if it is missing or, after a power failure, incomplete."""
    try:
        with file.open("rb") as content, np.load(content, allow_pickle=False) as archive:
            return archive["boxes"].astype(np.float64)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _write(file: Path, boxes: np.ndarray) -> None:
    """Replace the file atomically. Several processes may do so concurrently."""
    content = io.BytesIO()
    np.savez_compressed(content, boxes=boxes.astype(np.int32))
    temporary = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_bytes(content.getvalue())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
