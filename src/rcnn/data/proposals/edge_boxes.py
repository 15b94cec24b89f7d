"""EdgeBoxes (Zitnick and Dollar, 2014) through OpenCV: boxes ranked by the contours that they enclose whole.

The contours are linked from an edge map. The one used by `edge-boxes` comes from OpenCV's structured forest (Dollar and
Zitnick, 2013), whose model file OpenCV publishes separately: `data.edge_model`.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rcnn.config import Data
from rcnn.data.proposals.given import NOTHING, Given, ranked
from rcnn.data.proposals.opencv import COUNT, opencv
from rcnn.errors import ImageError, SettingsError

ALPHA, BETA = 0.65, 0.75
"""IoU of neighbouring candidates, and of the suppression: EdgeBoxes' setting for IoU 0.7 (paper, section 4.1)."""

SMALLEST, LARGEST = 32, 19_998
"""Pixels: the shorter side of the smallest image (candidates have an area of 1,000 pixels at least, and the patches of
the structured forest a side of 32), and the longest sum of width and height, since OpenCV tabulates 10,000 sizes."""

MODEL = "https://github.com/opencv/opencv_extra/raw/master/testdata/cv/ximgproc/model.yml.gz"
NEEDED = "needs OpenCV's model file: data.edge_model=PATH"

_OPTIONS = ("stride", "shrinkNumber", "patchSize", "patchInnerSize", "numberOfTrees", "numberOfTreesToEvaluate")
_LISTS = ("childs", "featureIds", "thresholds", "edgeBoundaries", "edgeBins")
"""Parts of a model file without which OpenCV would divide by zero or read beyond the end of a list."""


class Edges(NamedTuple):
    """Edges of an image.

    Attributes:
        strength: (H, W) float32, 0 to 1, in lines that are thin.
        direction: (H, W) float32, angle of the normal, 0 to pi.
    """

    strength: np.ndarray
    direction: np.ndarray


EdgeDetector = Callable[[np.ndarray], Edges]
"""(H, W, 3) uint8, red first -> its edges."""


def edge_boxes(image: np.ndarray, detect: EdgeDetector, count: int = COUNT) -> Given:
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
    if height + width > LARGEST:
        raise ImageError(f"EdgeBoxes takes images of up to {LARGEST:,} pixels, width + height; got {width} x {height}")
    if min(height, width) < SMALLEST:
        return NOTHING
    search = opencv("EdgeBoxes").ximgproc.createEdgeBoxes(alpha=ALPHA, beta=BETA, maxBoxes=count)
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
        raise SettingsError(f"edge-boxes {NEEDED}, from {MODEL}")
    path = Path(settings.edge_model).expanduser()
    if not path.is_file():
        raise SettingsError(
            f"data.edge_model={settings.edge_model}: there is no such file; edge-boxes {NEEDED}, from {MODEL}"
        )
    return path


def structured_edges(path: Path) -> tuple[EdgeDetector, str]:
    """Return the edge detector of a model file, and a hash of the file. The last one used stays in memory.

    Raises:
        SettingsError: it is no such model, or can't be read; or OpenCV is not installed.
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
        numbers = [options.getNode(name).real() if options.isMap() else 0 for name in _OPTIONS]
        if min(numbers) < 1 or not all(model.getNode(name).size() for name in _LISTS):
            raise ValueError("it lacks the options or the trees of a structured forest")
        forest = cv2.ximgproc.createStructuredEdgeDetection(str(path))
    except (cv2.error, SystemError, ValueError) as error:  # a SystemError wraps the cv2.error of a constructor
        reason = str(error.__cause__ or error).strip()
        raise SettingsError(f"data.edge_model={path}: not OpenCV's model of edges ({reason}); see {MODEL}") from None

    def detect(image: np.ndarray) -> Edges:
        edges = forest.detectEdges(image.astype(np.float32) / 255)
        direction = forest.computeOrientation(edges)
        return Edges(forest.edgesNms(edges, direction), direction)

    return detect
