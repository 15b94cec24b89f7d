"""Selective Search (Uijlings et al., 2013) through OpenCV."""

from typing import Literal

import numpy as np

from rcnn.data.proposals.given import Given, ranked
from rcnn.data.proposals.opencv import COUNT, opencv

Mode = Literal["fast", "quality"]


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
