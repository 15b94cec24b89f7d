"""Proposals for all images of a data set, from an earlier stage or external, stored in files."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from rcnn.config import SLIDING_WINDOWS, Settings
from rcnn.data.dataset import Dataset, Records
from rcnn.data.image_checks import ProgressCallback
from rcnn.data.loading.loader import FILLER, Loader
from rcnn.data.proposals.external import External, ImageProposals, ProposalSet, SlidingWindows
from rcnn.data.proposals.read import open_proposals
from rcnn.data.proposals.search import SEARCHES
from rcnn.detector import Detector
from rcnn.training.distributed import Distributed
from rcnn.training.init import Start
from rcnn.training.log import shown_progress
from rcnn.training.run_folder import RunFolder
from rcnn.training.schemes import EXTERNAL, Stage
from rcnn.weights.file import MAX_BYTES, kept, load_weights, reading, save_weights


def stage_proposals(
    stage: Stage,
    start: Start,
    splits: tuple[Dataset, Dataset],
    folder: RunFolder,
    distributed: Distributed,
    say: Callable[[str], None],
) -> tuple[External | None, External | None]:
    """Return the proposals for training a stage and those for validating it; None: the model's own.

    Proposals of an earlier stage are computed if their file does not exist yet. `start` is the start of this stage.
    """
    if stage.proposals is None:
        return None, None
    if stage.proposals == EXTERNAL and start.settings.train.proposals == SLIDING_WINDOWS:
        windows = SlidingWindows.of(start.model)
        return windows, windows
    rpn, sets = start.settings.rpn, list[ProposalSet]()
    source = folder.proposals if stage.proposals == EXTERNAL else folder.stage(stage.proposals)
    limits = ((rpn.pre_train, rpn.post_train), (rpn.pre_test, rpn.post_test))
    lists = 1 if stage.own_rpn else 2  # with its own RPN, a stage needs no proposals for validation
    for dataset, path, counts in list(zip(splits, proposal_files(source), limits, strict=True))[:lists]:
        if stage.proposals != EXTERNAL and not any(distributed.gather(path.exists())):
            proposer = Detector.load(kept(source), distributed.device)
            write_proposals(path, proposer, dataset, distributed, counts, say)
        sets.append(ProposalSet(load_proposals(path), counts[1]))
    return sets[0], None if stage.own_rpn else sets[1]


def proposal_files(folder: Path) -> list[Path]:
    """Return the paths of the proposals for training and for validation in a folder."""
    return [folder / "train.safetensors", folder / "val.safetensors"]


def write_proposals(
    path: Path,
    detector: Detector,
    dataset: Dataset,
    distributed: Distributed,
    counts: tuple[int, int],
    say: Callable[[str], None],
) -> None:
    """Save a detector's proposals for every image of a data set, best first, in pixels of the image files.

    Args:
        path: file to write; it is written atomically.
        detector: detector that makes the proposals.
        dataset: images, which are not augmented.
        distributed: processes that share the images; all of them must call this function.
        counts: boxes per level before NMS, and proposals per image.
        say: function that shows a sentence about the progress.
    """
    settings = detector.settings
    detector = detector.with_settings({"rpn": {"pre_test": counts[0], "post_test": counts[1]}})
    batch, device = settings.val.batch, detector.device
    loader = Loader(
        dataset, settings, training=False, batch=batch, device=device, rank=distributed.rank, world=distributed.world
    )
    own: dict[int, ImageProposals] = {}
    for step, item in enumerate(loader.epoch(0)):
        results = detector.region_proposals(item.batch)
        own |= {
            i: ImageProposals(r.boxes, r.scores)
            for i, r in zip(item.index.tolist(), results, strict=True)
            if i != FILLER
        }
        say(f"proposals: batch {step + 1} of {loader.steps}")
    all_proposals = {index: proposals for part in distributed.gather(own) for index, proposals in part.items()}
    if distributed.writer:
        save_proposals(path, [all_proposals[index] for index in range(len(dataset))])
    distributed.meet()  # wait until the writer has written the file


def save_proposals(path: Path, proposals: Sequence[ImageProposals]) -> None:
    """Write the proposals of every image of a data set, atomically."""
    tensors = {
        "boxes": torch.from_numpy(np.concatenate([boxes for boxes, _ in proposals])).float(),
        "scores": torch.from_numpy(np.concatenate([scores for _, scores in proposals])).float(),
        "counts": torch.tensor([len(boxes) for boxes, _ in proposals]),
    }
    save_weights(path, tensors, {"kind": "proposals"})


def load_proposals(path: Path) -> list[ImageProposals]:
    """Read a file that `save_proposals` has written.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    with reading(path, MAX_BYTES):
        tensors, _ = load_weights(path)
        ends = tensors["counts"].cumsum(0)[:-1].numpy()
        boxes, scores = (np.split(tensors[name].double().numpy(), ends) for name in ("boxes", "scores"))
        return [ImageProposals(*pair) for pair in zip(boxes, scores, strict=True)]


def shared_proposals(
    source: str,
    dataset: Dataset,
    settings: Settings,
    distributed: Distributed,
    progress: ProgressCallback | None = None,
) -> list[ImageProposals]:
    """Return the same as `open_proposals`, with a search shared among the processes."""
    if source in SEARCHES and distributed.world > 1:
        share = replace(dataset, records=dataset.records[distributed.rank :: distributed.world])
        open_proposals(source, share, settings, progress)
        distributed.meet()  # wait until all results are in the cache
    return open_proposals(source, dataset, settings, progress)


def external_proposals(
    settings: Settings, splits: tuple[Dataset, Dataset], distributed: Distributed, console: Console | None
) -> list[list[ImageProposals]] | None:
    """Return the proposals of `train.proposals` for both lists: `rpn.post_train` and `rpn.post_test` per image.

    None if it is not set, or if it is `sliding-windows`, which are not stored.

    Raises:
        DataError: as in `open_proposals`, with the faults of both lists.
    """
    if settings.train.proposals in (None, SLIDING_WINDOWS):
        return None
    dataset, source = together(splits), settings.train.proposals
    with shown_progress(console, "reading proposals", "searched") as progress:
        found = shared_proposals(source, dataset, settings, distributed, progress)
    of_image = {record.path: proposals for record, proposals in zip(dataset.records, found, strict=True)}
    counts = (settings.rpn.post_train, settings.rpn.post_test)
    return [
        [ImageProposals(*(part[:count] for part in of_image[record.path])) for record in split.records]
        for split, count in zip(splits, counts, strict=True)
    ]


def together(splits: Sequence[Dataset]) -> Dataset:
    """Return a data set of the images of several lists, without duplicates."""
    records = {record.path: record for dataset in splits for record in dataset.records}
    return replace(splits[0], records=Records(records.values()))
