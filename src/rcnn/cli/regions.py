"""Proposals from a file, a search or sliding windows for the images of a command."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from rcnn.cli import screen
from rcnn.config import SLIDING_WINDOWS, Settings
from rcnn.data.dataset import Location, Record
from rcnn.data.proposals.external import ImageProposals, SlidingWindows, batch_proposals
from rcnn.data.proposals.read import find_proposals
from rcnn.data.proposals.search import SEARCHES, search_files
from rcnn.detector import Detector, Propose
from rcnn.errors import ImageError
from rcnn.images.batch import Preprocessor
from rcnn.images.decode import image_size
from rcnn.images.stream import NamedImage, ReadOptions, Skip
from rcnn.model.sliding_windows import sliding_windows
from rcnn.presets import build
from rcnn.result import Result
from rcnn.weights.adapt import shapes_alone


def file_of(image: NamedImage) -> Location:
    """Return the file of an image of a source of files."""
    assert isinstance(image.image, Location)
    return image.image


def search(name: str, images: Sequence[NamedImage], settings: Settings, skip: Skip | None) -> Iterator[Result]:
    """Yield the proposals of the search `name` for image files."""
    for image, outcome in zip(images, search_files([*map(file_of, images)], name, settings.data), strict=True):
        if isinstance(outcome, ImageProposals):
            size = image_size(file_of(image), max_pixels=settings.data.max_pixels)
            yield _result(*outcome, image, size, settings)
        elif skip is None:
            raise outcome
        else:
            skip(outcome)


def dense_windows(images: Sequence[NamedImage], settings: Settings, skip: Skip | None) -> Iterator[Result]:
    """Yield dense sliding windows over image files, of the anchors and image size in the settings."""
    with shapes_alone():
        rpn = build(settings, 1).rpn
    preprocessor = Preprocessor(settings.preprocess)
    for image in images:
        try:
            size = image_size(file_of(image), max_pixels=settings.data.max_pixels)
        except ImageError as error:
            if skip is None:
                raise
            skip(error)
            continue
        resized, original = preprocessor.resized(size), torch.tensor(size, dtype=torch.float32)
        sizes = torch.tensor([resized], dtype=torch.float32)
        windows = sliding_windows(rpn.anchors, rpn.strides, preprocessor.padded(resized), sizes)
        boxes = preprocessor.boxes_back(windows.boxes[windows.valid], sizes[0] / original, original).numpy()
        yield _result(boxes, np.ones(len(boxes)), image, size, settings)


def _result(
    boxes: np.ndarray, scores: np.ndarray, image: NamedImage, size: tuple[int, int], settings: Settings
) -> Result:
    """Return proposals of an image, in pixels of its file, as its result."""
    boxes, scores, labels = boxes.astype(np.float32), scores.astype(np.float32), np.zeros(len(boxes), dtype=np.int64)
    read_options = ReadOptions.of(settings)
    return Result(boxes, scores, labels, ("object",), str(image.image), size, read_options=read_options, origin=image)


WITHOUT_DETECTOR: dict[str, Callable[[Sequence[NamedImage], Settings, Skip | None], Iterator[Result]]] = {
    SLIDING_WINDOWS: dense_windows,
    **{name: partial(search, name) for name in SEARCHES},
}
"""Name of a source of proposals that needs no detector -> what yields them."""


def external(
    source: str, images: Sequence[NamedImage], root: Location | None, detector: Detector, skip: Skip | None, bar: bool
) -> Propose:
    """Read the proposals of images from a file, or search for them, and return what puts them into batches.

    Args:
        source: a file, or the name of a search or of sliding windows.
        images: the image files.
        root: folder of all images, if there is one; a file may name images in it that are not among `images`.
        detector: takes the proposals.
        skip: if None, an image that a search can't read raises; otherwise the detector reports it.
        bar: show the progress of a search.
    """
    settings = detector.settings
    if source == SLIDING_WINDOWS:
        windows = SlidingWindows.of(detector.model)
        return lambda _, batch: windows.of_batch(batch)
    records, none = dict[str, Record](), np.zeros(0)
    no_objects = none.reshape(0, 4), none.astype(np.int64), none.astype(bool)
    for image in images:
        path = file_of(image)
        try:
            size = image_size(path, max_pixels=settings.data.max_pixels)
        except ImageError:
            continue  # the detector reports it
        records.setdefault(str(path), Record(path, image.name, path.stem, size, *no_objects))
    with screen.progress("proposals", bar) as progress:
        ignore = None if skip is None else lambda error: None
        proposals = find_proposals(source, [*records.values()], root, settings.data, progress, ignore)
    by_path = dict(zip(records, proposals, strict=True))
    post = settings.rpn.post_test
    return lambda paths, batch: batch_proposals([by_path[str(path)] for path in paths], batch, post)
