"""Proposals for the images of a command that no detector makes: from a file, a search or sliding windows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rcnn.cli import screen
from rcnn.config import SLIDING_WINDOWS, Settings
from rcnn.data.dataset import Record
from rcnn.data.proposals.external import ImageProposals, SlidingWindows, batch_proposals
from rcnn.data.proposals.read import find_proposals
from rcnn.data.proposals.search import SEARCHES as SEARCHES
from rcnn.data.proposals.search import search_files
from rcnn.detector import Detector, Propose
from rcnn.errors import ImageError
from rcnn.images.decode import image_size
from rcnn.images.sources import NamedImage
from rcnn.images.stream import Skip
from rcnn.model.structures import Batch, Proposals
from rcnn.result import Result


def search(name: str, images: Sequence[NamedImage], settings: Settings, skip: Skip | None) -> Iterator[Result]:
    """Yield the proposals of a search, by its name, for image files."""
    paths = [Path(str(image.image)) for image in images]
    for image, outcome in zip(images, search_files(paths, name, settings.data), strict=True):
        if isinstance(outcome, ImageProposals):
            boxes, scores = (part.astype(np.float32) for part in outcome)
            size = image_size(str(image.image), max_pixels=settings.data.max_pixels)
            yield image_proposals(boxes, scores, image, size, settings)
        elif skip is None:
            raise outcome
        else:
            skip(outcome)


def image_proposals(
    boxes: np.ndarray, scores: np.ndarray, image: NamedImage, size: tuple[int, int], settings: Settings
) -> Result:
    """Return proposals of an image, in pixels of its file, as its result."""
    labels = np.zeros(len(boxes), dtype=np.int64)
    return Result(boxes, scores, labels, ("object",), str(image.image), size, settings=settings, origin=image)


def external(
    source: str, images: Sequence[NamedImage], root: Path, detector: Detector, skip: Skip | None, bar: bool
) -> Propose:
    """Read the proposals of images from a file, or search for them, and return what puts them into batches.

    Args:
        source: a file, or the name of a search or of sliding windows.
        images: the image files.
        root: folder of all images, whose others a file may name too.
        detector: takes the proposals.
        skip: None: an image that a search can't read raises. The detector reports the others.
        bar: show the progress of a search.
    """
    settings = detector.settings
    if source == SLIDING_WINDOWS:
        windows = SlidingWindows.of(detector.model)
        return lambda _, batch: windows.of_batch(batch)
    records, none = dict[str, Record](), np.zeros(0)
    for image in images:
        path = Path(str(image.image))
        try:
            size = image_size(path, max_pixels=settings.data.max_pixels)
        except ImageError:
            continue  # the detector reports it
        no_objects = none.reshape(0, 4), none.astype(np.int64), none.astype(bool)
        records.setdefault(str(path), Record(path, image.name, path.stem, size, *no_objects))
    with screen.progress("proposals", bar) as progress:
        ignore = None if skip is None else lambda error: None
        found = find_proposals(source, [*records.values()], root, settings.data, progress, ignore)
    by_path = dict(zip(records, found, strict=True))

    def propose(paths: Sequence[str | None], batch: Batch) -> Proposals:
        return batch_proposals([by_path[str(path)] for path in paths], batch, settings.rpn.post_test)

    return propose
