"""Cut the images of a data set into windows, each of which is a record with its share of the objects."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from rcnn.config import Settings, override
from rcnn.data.dataset import Dataset, Record, Records
from rcnn.data.loading.augment import MIN_VISIBLE_SHARE
from rcnn.data.loading.loader import stable_seed
from rcnn.images.batch import Preprocessor, Size
from rcnn.images.views import View, Viewer


def cut_into_views(dataset: Dataset, views: Callable[[Size], Sequence[View]]) -> Dataset:
    """Return a data set with one record per view, in the order of the images and of their views.

    The boxes of a window are in its own pixels and clipped to it. Boxes of which less than `MIN_VISIBLE_SHARE` is left
    are ignored, and those without area are dropped. An image with a single view of all of it keeps its name.

    Args:
        dataset: images and objects.
        views: (height, width) of an image -> its views.
    """
    records = Records(_seen(record, view) for record in dataset.records for view in views(record.size))
    return replace(dataset, records=records)


def _seen(record: Record, view: View) -> Record:
    """Return the part of an image that lies in a window."""
    if view.size == record.size:
        return replace(record, view=view, file_size=record.size)
    boxes = view.from_file(record.boxes)
    areas, left = ((sides[:, 2:] - sides[:, :2]).prod(axis=1) for sides in (record.boxes, boxes))
    visible = left > 0
    return replace(
        record,
        name=f"{record.name}@{view.left},{view.top}",
        size=view.size,
        boxes=boxes[visible],
        labels=record.labels[visible],
        ignore=(record.ignore | (left < MIN_VISIBLE_SHARE * areas))[visible],
        view=view,
        file_size=record.size,
    )


def training_windows(dataset: Dataset, settings: Settings) -> Dataset:
    """Return the records that training uses: with `train.tile` windows at the scale of the file, else the images.

    Windows without objects make up the share `train.tile_empty` of all; the seed determines which are taken. An image
    that is no larger than a window is used as one window, with or without objects.
    """
    side = settings.train.tile
    if side is None:
        return dataset
    viewer = Viewer(Preprocessor(settings.preprocess), override(settings, {"predict": {"tile": "auto"}}), 1.0)
    every = cut_into_views(dataset, viewer.views).records
    names = {*dataset.records.names()}  # images that are not cut keep these
    taken = [record for record in every if record.name in names or not record.ignore.all()]
    empty = [record for record in every if record.name not in names and record.ignore.all()]
    empty.sort(key=lambda record: stable_seed(settings.train.seed, 0, record.name))
    share = settings.train.tile_empty
    chosen = (*taken, *empty[: round(len(taken) * share / (1 - share))])
    note = f"train.tile={side}: {len(chosen):,} windows of {len(dataset):,} images are trained on"
    if not (dataset.records.sizes > side).any():
        note = f"train.tile={side}: no image is larger, so none is cut"
    return replace(dataset, records=Records(chosen), notes=(*dataset.notes, note))


def scale_of(dataset: Dataset, settings: Settings) -> float:
    """Return the factor by which training resizes: the median over the images of a data set; 1 for windows."""
    if settings.train.tile is not None:
        return 1.0
    preprocessor = Preprocessor(settings.preprocess)
    return round(median(min(preprocessor.resized(record.size)) / min(record.size) for record in dataset.records), 6)
