"""What `predict` and `propose` share: read images, write results as they come, and print totals at the end."""

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

from rcnn.cli import arguments, screen
from rcnn.cli.files import fresh_folder
from rcnn.cli.loading import load_detector, sharing
from rcnn.cli.writers import FORMATS, Target, merge_parts, shared_stems
from rcnn.config import Data, Settings, override
from rcnn.config.files import read_text
from rcnn.data.dataset import Record
from rcnn.data.formats.coco import MAX_JSON_BYTES
from rcnn.data.formats.find import Split, open_dataset
from rcnn.data.proposals.external import ImageProposals, SlidingWindows, batch_proposals
from rcnn.data.proposals.read import find_proposals
from rcnn.data.proposals.search import search_files
from rcnn.detector import Detector, Propose
from rcnn.errors import DataError, ImageError, SettingsError
from rcnn.images.batch import Preprocessor
from rcnn.images.decode import image_size
from rcnn.images.sources import base_of, files
from rcnn.model.sliding_windows import SLIDING_WINDOWS, sliding_windows
from rcnn.model.structures import Batch, Proposals
from rcnn.presets import build
from rcnn.result import Result
from rcnn.weights.adapt import shapes_alone

LISTS = {".json", ".yaml", ".yml", ".csv"}
"""Suffixes of files that may list images."""
MAX_PRINTED_IMAGES = 5
"""Number of images whose counts are printed one by one."""


class Job:
    """One call of `predict` or `propose`: its images, and where and in which formats results are written.

    Attributes:
        skip: called for images that can't be read; None: the first one raises.

    Args:
        words: sources and `section.key=value` settings.
        out: folder for the results, numbered if it is taken.
        formats: comma-separated names of formats.
        images: COCO json with the ids of the images.
        as_json: also print the results as one JSON document.
        on_fault: `stop`: the first image that can't be read raises; otherwise, of several, it is reported and left out.
        split: the sources are data sets, whose images in this list are taken. None: a json, yaml or csv stands for
            all images that it lists, and a folder for all images in it.

    Raises:
        SettingsError: a format or choice is unknown, or there is no source.
        ImageError: a source doesn't exist.
        DataError: a data set can't be read, or has no such list.
    """

    def __init__(
        self,
        words: Sequence[str],
        out: Path,
        formats: str,
        images: Path | None,
        as_json: bool,
        on_fault: str | None,
        split: Split | None = None,
    ) -> None:
        if on_fault not in (None, "damaged", "stop", "skip"):
            raise SettingsError(f"--on-fault: unknown `{on_fault}`; there are damaged, stop, skip")
        sources, self._changes = arguments.split(words)
        if not sources:
            raise SettingsError("SOURCE is missing: give images, folders or globs")
        self._formats = parse_list("--format", formats, FORMATS)
        if as_json and "json" not in self._formats:
            self._formats.append("json")
        self._as_json, self._out = as_json, out
        settings = override(Settings(), [word for word in self._changes if word.startswith("data.")]).data
        found = [find_images(source, split, settings) for source in sources]
        self._base = Path(os.path.commonpath([base for base, _, _ in found]))
        self._files = [file for _, listed, _ in found for file in listed]
        own = {str(file): number for _, _, ids in found for file, number in ids.items()}
        self._ids = listed_ids(images) if images else own_ids(own, named_ids(self._files, self._base))
        self._unread = 0
        alone = len(self._files) == 1 and on_fault != "skip"
        self._must_read = on_fault != "skip"
        self.skip = None if alone or on_fault == "stop" else self._leave_out

    @contextmanager
    def detector(self, model: str, device: str | None) -> Iterator[Detector]:
        """Load the detector with this job's settings. Under torchrun each process takes its share of the images."""
        with sharing(device) as (self._distributed, _):
            yield load_detector(model, self._changes, str(self._distributed.device), device)

    @contextmanager
    def search(self, name: str) -> Iterator[Iterator[Result]]:
        """Run a search for proposals, by its name, on the images instead of a detector."""
        with sharing("cpu") as (self._distributed, _):
            yield self._searched(name, override(Settings(), self._changes))

    @contextmanager
    def windows(self) -> Iterator[Iterator[Result]]:
        """Lay dense sliding windows over the images, of the anchors and image size in this job's settings."""
        with sharing("cpu") as (self._distributed, _):
            yield self._windows(override(Settings(), self._changes))

    def _windows(self, settings: Settings) -> Iterator[Result]:
        with shapes_alone():
            rpn = build(settings, 1).rpn
        preprocessor = Preprocessor(settings.preprocess)
        for path in self.files():
            try:
                size = image_size(path, max_pixels=settings.data.max_pixels)
            except ImageError as error:
                if self.skip is None:
                    raise
                self.skip(error)
                continue
            resized, original = preprocessor.resized(size), torch.tensor(size, dtype=torch.float32)
            sizes = torch.tensor([resized], dtype=torch.float32)
            windows = sliding_windows(rpn.anchors, rpn.strides, preprocessor.padded(resized), sizes)
            boxes = preprocessor.boxes_back(windows.boxes[windows.valid], sizes[0] / original, original).numpy()
            scores, labels = np.ones(len(boxes), dtype=np.float32), np.zeros(len(boxes), dtype=np.int64)
            yield Result(boxes, scores, labels, ("object",), str(path), size, settings=settings)

    def _searched(self, name: str, settings: Settings) -> Iterator[Result]:
        paths = self.files()
        for path, outcome in zip(paths, search_files(paths, name, settings.data), strict=True):
            if isinstance(outcome, ImageProposals):
                boxes, scores = (part.astype(np.float32) for part in outcome)
                labels = np.zeros(len(boxes), dtype=np.int64)
                size = image_size(path, max_pixels=settings.data.max_pixels)
                yield Result(boxes, scores, labels, ("object",), str(path), size, settings=settings)
            elif self.skip is None:
                raise outcome
            else:
                self.skip(outcome)

    def proposals(self, source: str, detector: Detector) -> Propose:
        """Read this process's proposals from a file, or search for them, and return what puts them into batches."""
        settings = detector.settings
        if source == SLIDING_WINDOWS:
            windows = SlidingWindows.of(detector.model)
            return lambda _, batch: windows.of_batch(batch)
        records = [*self._records(settings.data)]
        told = None if self.skip is None else lambda error: None  # the detector will report the same images
        with screen.progress("proposals", self._distributed.writer) as progress:
            given = find_proposals(source, records, self._base, settings.data, progress, told)
        by_path = {str(record.path): proposals for record, proposals in zip(records, given, strict=True)}

        def propose(paths: Sequence[str | None], batch: Batch) -> Proposals:
            return batch_proposals([by_path[str(path)] for path in paths], batch, settings.rpn.post_test)

        return propose

    def _records(self, settings: Data) -> Iterator[Record]:
        """Yield the images as records without objects, except those whose size can't be read."""
        none = np.zeros(0)
        for path in dict.fromkeys(self.files()):
            try:
                size = image_size(path, max_pixels=settings.max_pixels)
            except ImageError:
                continue
            name = self._name(path).as_posix()
            yield Record(path, name, path.stem, size, none.reshape(0, 4), none.astype(np.int64), none.astype(bool))

    def _name(self, path: str | Path) -> Path:
        """Return an image's path relative to the folder that all sources share."""
        return Path(os.path.relpath(path, self._base))

    def _leave_out(self, error: ImageError) -> None:
        self._unread += 1
        screen.note(f"left out: {error}")

    def files(self) -> list[Path]:
        """Return the images of this process: consecutive ones, so that the joined parts are in input order."""
        first, last = (
            len(self._files) * rank // self._distributed.world
            for rank in (self._distributed.rank, self._distributed.rank + 1)
        )
        return self._files[first:last]

    def run(self, results: Iterable[Result], names: tuple[str, ...], remarks: Mapping[str, str]) -> None:
        """Write every result in every format as it comes, and print what was found, and remarks as they are made.

        Results from before an error or Ctrl-C in any process are still merged.
        """
        self._out = self._distributed.gather(fresh_folder(self._out) if self._distributed.writer else self._out)[0]
        shared = shared_stems(map(self._name, self._files))
        target = Target(self._out, names, self._ids, part=self._distributed.rank, shared=shared)
        totals, count, begun, end = Counter[str](), 0, time.perf_counter(), None
        told = set[str]()
        try:
            with ExitStack() as stack:
                writers = [stack.enter_context(FORMATS[name](target)) for name in self._formats]
                for count, result in enumerate(results, 1):
                    name = self._name(result.path or "")
                    for write in writers:
                        write(result, name)
                    totals.update(result.counts())
                    screen.note(*(f"{name}: {remarks[kind]}" for kind in remarks.keys() - told))
                    told |= remarks.keys()
                    if self._distributed.writer and len(self._files) > 1:
                        tell(name, result.counts(), count, len(self.files()) - self._unread, begun)
        except (Exception, KeyboardInterrupt) as error:
            end = error
        every = self._distributed.gather((count, totals, self._unread, end is not None))
        if self._distributed.writer:
            merge_parts(self._out, self._distributed.world)
            self._report(names, *every)
        if end is not None:
            raise end
        if self._must_read and self._files and not sum(part[0] for part in every):
            raise ImageError(f"none of the {len(self._files)} images can be read; they are named above")

    def emit(self) -> None:
        """Print the JSON document if it was asked for."""
        if self._as_json and self._distributed.writer:
            with (self._out / "results.json").open(encoding="utf-8") as file:
                shutil.copyfileobj(file, sys.stdout)

    def _report(self, names: Sequence[str], *parts: tuple[int, Counter[str], int, bool]) -> None:
        """Print what all processes found, class by class, and where it was written."""
        counts, totals, unread, stopped = zip(*parts, strict=True)
        images = screen.several(sum(counts), "image")
        if any(stopped):
            screen.note(f"stopped; results of {images} are in {self._out}")
            return
        total = sum(totals, Counter[str]())
        title = f"{images}, {screen.several(total.total(), 'box')}"
        if sum(counts) > 1 and total:
            rows = [[name, number, number / sum(counts)] for name, number in total.most_common()]
            screen.table(title, ["class", "boxes", "per image"], rows)
        else:
            each = ", ".join(f"{number:,} {name}" for name, number in total.most_common())
            screen.say(f"{title}: {each}" if each and len(names) > 1 else title)
        screen.say(f"\nwritten to {self._out}: {', '.join(self._formats)}")
        if any(unread):
            screen.say(f"left out as unreadable: {screen.several(sum(unread), 'image')}, named above")


def find_images(source: str, split: Split | None, settings: Data) -> tuple[Path, list[Path], dict[Path, int | str]]:
    """Return the folder that the images of a source share, the images, and the ids that a COCO json gives them.

    Raises:
        ImageError: the source is missing, or holds no images.
        DataError: as for `open_dataset`.
    """
    if split is None and not (Path(source).suffix.lower() in LISTS and os.path.isfile(source)):
        return base_of(source), files(source), {}
    lenient = settings.model_copy(update={"on_fault": "skip"})  # labels are not needed here
    dataset = open_dataset(source, split or "all", lenient, decode=False)
    screen.note(*dataset.notes)
    paths = [record.path for record in dataset.records]
    ids = {record.path: record.id for record in dataset.records} if dataset.format == "coco" else {}
    return Path(os.path.abspath(os.path.commonpath([path.parent for path in paths]))), paths, ids


def tell(name: Path, counts: Mapping[str, int], count: int, images: int, begun: float) -> None:
    """Print a line for each of the first images, how many there are more, then a line per hundred."""
    if count <= MAX_PRINTED_IMAGES:
        boxes = ", ".join(f"{number} {label}" for label, number in counts.items())
        screen.say(f"{name}: {boxes or 'nothing'}")
    elif count == MAX_PRINTED_IMAGES + 1:
        screen.note(f"... and {images - MAX_PRINTED_IMAGES:,} more")
    elif count % 100 == 0:
        screen.note(f"{count:,} images, {count / (time.perf_counter() - begun):.1f} per second")


def parse_list(option: str, text: str, known: Collection[str]) -> list[str]:
    """Return the names in the comma-separated text of an option.

    Raises:
        SettingsError: a name is not known.
    """
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SettingsError(f"{option}: unknown `{unknown[0]}`; there are {', '.join(known)}")
    return names


def named_ids(images: Sequence[Path], base: Path) -> Callable[[Result], int | str]:
    """Return a function that gives a result's COCO image id: its file name or, if ambiguous, its path below `base`."""
    count = Counter(file.name for file in images)

    def find(result: Result) -> str:
        file = Path(result.path or "")
        return file.name if count[file.name] == 1 else Path(os.path.relpath(file, base)).as_posix()

    return find


def own_ids(own: Mapping[str, int | str], others: Callable[[Result], int | str]) -> Callable[[Result], int | str]:
    """Return a function that gives a result's image id in its data set, or the one of `others` if it has none."""
    return lambda result: own[path] if (path := result.path) is not None and path in own else others(result)


def listed_ids(file: Path) -> Callable[[Result], int | str]:
    """Return a function that gives a result's image id as listed in the COCO json `file`.

    Raises:
        DataError: the file can't be read; when called, the image is not listed.
    """
    try:
        listed = {entry["file_name"]: entry["id"] for entry in json.loads(read_text(file, MAX_JSON_BYTES))["images"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise DataError(f"{file}: can't be read as a COCO json with `images`: {error!r}") from None

    def find(result: Result) -> int | str:
        parts = Path(result.path or "").parts
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in listed:
                return listed[name]
        raise DataError(f"{result.path}: not among the images of {file}; leave --images out, or give the right file")

    return find
