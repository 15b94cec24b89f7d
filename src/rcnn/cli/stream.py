"""Common to `predict` and `propose`: open sources, write results as they arrive, and print totals at the end."""

import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

from rcnn.cli import arguments, screen
from rcnn.cli.files import fresh_folder
from rcnn.cli.loading import load_detector
from rcnn.cli.writers import FORMATS, LISTS, Target, merge_parts, shared_stems
from rcnn.config import Data, Settings, override
from rcnn.data.formats.coco import image_ids
from rcnn.data.formats.find import Split, open_dataset
from rcnn.detector import Detector
from rcnn.errors import DataError, ImageError, SettingsError, plural
from rcnn.images.sources import FileList, ImageSource, NamedImage, base_of, listed_paths, open_source
from rcnn.images.storage import Location, RemotePath, common_folder, image_location, is_remote, stored
from rcnn.result import Result
from rcnn.training.distributed import join_processes

LIST_SUFFIXES = {".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv"}
"""Suffixes of files that may list images."""
MAX_PRINTED_IMAGES = 5
"""Number of images whose counts are printed one by one."""


class Job:
    """One call of `predict` or `propose`: its images, and where and in which formats results are written.

    Attributes:
        base: the folder that all files share; None if some are remote, and they share none.
        distributed: the processes that share the images.
        skip: called for each image that can't be read; if None, the first one raises.

    Args:
        words: sources and `section.key=value` settings.
        out: folder for the results, numbered if it is taken.
        formats: comma-separated names of formats.
        images: COCO json with the ids of the images.
        as_json: also print the results as one JSON document.
        on_fault: with `stop`, the first image that can't be read raises; otherwise it is reported and left out, unless
            it is the only one.
        split: the sources are data sets, and only their images in this list are taken. If None, a json, yaml or csv
            stands for all images that it lists, and a folder for all images in it.
        listed: a file with the paths of the images, instead of sources.

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
        listed: str | None = None,
    ) -> None:
        if on_fault not in (None, "damaged", "stop", "skip"):
            raise SettingsError(f"--on-fault: unknown `{on_fault}`; there are damaged, stop, skip")
        sources, self._changes = arguments.split(words)
        if not sources and listed is None:
            raise SettingsError("SOURCE is missing: give images, folders or globs, or --list FILE")
        if listed is not None and (sources or split is not None):
            raise SettingsError("--list: give either a list of images or SOURCE")
        self._formats = parse_list("--format", formats, FORMATS)
        if as_json and "json" not in self._formats:
            self._formats.append("json")
        self._as_json, self._out = as_json, out
        data = override(Settings(), [word for word in self._changes if word.startswith("data.")]).data
        self._images, self.base, ids = open_sources(sources, split, data) if listed is None else open_list(listed)
        if (
            {"voc", "yolo"} & {*self._formats}
            and isinstance(self._images, FileList)
            and any(isinstance(file := stored(path), RemotePath) and file.has_parameters for path in self._images.paths)
        ):
            raise SettingsError(
                "--format voc and yolo copy the pictures, for which addresses must have no parameters; leave them out"
            )
        self._number = len(self._images) if isinstance(self._images, Sized) else None
        files = self._images if isinstance(self._images, FileList) else FileList([])
        self._shared = shared_stems(map(file_name, files.names())) if {"voc", "yolo"} & {*self._formats} else set()
        self._image_id = listed_ids(images) if images else named_ids(ids, files if "coco" in self._formats else ())
        self._unread, self._must_read = 0, on_fault != "skip"
        raises = on_fault == "stop" or (self._number == 1 and on_fault != "skip")
        self.skip = None if raises else self._leave_out

    @contextmanager
    def detector(self, model: str, device: str | None) -> Iterator[Detector]:
        """Load the detector with this job's settings, in this process and any others that torchrun started."""
        with join_processes(device or "auto") as self.distributed:
            yield load_detector(model, self._changes, str(self.distributed.device), device)

    @contextmanager
    def without_detector(self) -> Iterator[Settings]:
        """Provide this job's settings, for proposals that need no detector."""
        with join_processes("cpu") as self.distributed:
            yield override(Settings(), self._changes)

    def _leave_out(self, error: ImageError) -> None:
        self._unread += 1
        screen.note(f"left out: {error}")

    @property
    def draws(self) -> bool:
        """Whether results are drawn on their images, or are the only copy of them."""
        return "drawn" in self._formats or not isinstance(self._images, Sequence)

    def images(self) -> ImageSource:
        """Return the images of this process: consecutive ones, so that the merged parts keep the order of the input.

        Raises:
            SettingsError: several processes can't share the source, since it is not a list of files.
        """
        rank, world = self.distributed.rank, self.distributed.world
        if world == 1:
            return self._images
        if not isinstance(self._images, Sequence):
            raise SettingsError("only image files can be shared by several processes; run this without torchrun")
        return self._images[len(self._images) * rank // world : len(self._images) * (rank + 1) // world]

    def files(self) -> list[NamedImage]:
        """Return the images of this process, all of which are files.

        Raises:
            SettingsError: a source is not a list of files.
        """
        images = self.images()
        if not isinstance(images, Sequence) or not all(isinstance(image.image, Location) for image in images):
            raise SettingsError("proposals from a file, a search or sliding windows are for image files only")
        return list(images)

    def run(self, results: Iterable[Result], names: tuple[str, ...], remarks: Mapping[str, str]) -> None:
        """Write every result in every format as it arrives, and print counts, and remarks as they are made.

        After an error or Ctrl-C in any process, the results so far are still merged.
        """
        self._out = self.distributed.gather(fresh_folder(self._out) if self.distributed.writer else self._out)[0]
        target = Target(self._out, names, self._image_id, part=self.distributed.rank, shared=self._shared)
        totals, count, begun, end = Counter[str](), 0, time.perf_counter(), None
        printed_remarks = set[str]()
        images = self.images()
        own = len(images) if isinstance(images, Sized) else None
        try:
            with ExitStack() as stack:
                # Files that hold many images come last: an image that can't be copied is left out of them.
                formats = sorted(self._formats, key=lambda name: name in LISTS)
                writers = [stack.enter_context(FORMATS[name](target)) for name in formats]
                for result in results:
                    name = result.origin.name
                    try:
                        for write in writers:
                            write(result, file_name(name))
                    except ImageError as error:  # its file has disappeared since it was read
                        if self.skip is None:
                            raise
                        self.skip(error)
                        continue
                    count += 1
                    totals.update(result.counts())
                    screen.note(*(f"{name}: {remarks[kind]}" for kind in remarks.keys() - printed_remarks))
                    printed_remarks |= remarks.keys()
                    screen.note_threads()
                    if self.distributed.writer and self._number != 1:
                        print_counts(name, result.counts(), count, own and own - self._unread, begun)
        except (Exception, KeyboardInterrupt) as error:
            end = error
        parts = self.distributed.gather((count, totals, self._unread, end is not None))
        if any(stopped for *_, stopped in parts):
            self.distributed.part()  # those that raise their error now are not lost
        if self.distributed.writer:
            merge_parts(self._out, self.distributed.world)
            self._report(names, *parts)
        if end is not None:
            raise end
        if self._must_read and self._number and not sum(part[0] for part in parts):
            raise ImageError(f"none of the {self._number} images can be read; they are named above")

    def emit(self) -> None:
        """Print the JSON document if the user requested it."""
        if self._as_json and self.distributed.writer:
            with (self._out / "results.json").open(encoding="utf-8") as file:
                shutil.copyfileobj(file, sys.stdout)

    def _report(self, names: Sequence[str], *parts: tuple[int, Counter[str], int, bool]) -> None:
        """Print the totals of all processes, class by class, and where the results were written."""
        counts, totals, unread, stopped = zip(*parts, strict=True)
        images = plural(sum(counts), "image")
        if any(stopped):
            screen.note(f"stopped; results of {images} are in {self._out}")
            return
        total = sum(totals, Counter[str]())
        title = f"{images}, {plural(total.total(), 'box')}"
        if sum(counts) > 1 and total:
            rows = [[name, number, number / sum(counts)] for name, number in total.most_common()]
            screen.table(title, ["class", "boxes", "per image"], rows)
        else:
            each = ", ".join(f"{number:,} {name}" for name, number in total.most_common())
            screen.say(f"{title}: {each}" if each and len(names) > 1 else title)
        screen.say(f"\nwritten to {self._out}: {', '.join(self._formats)}")
        if any(unread):
            screen.say(f"left out as unreadable: {plural(sum(unread), 'image')}, named above")


def file_name(name: str) -> Path:
    """Return the path below the folder of results for an image, which lies in it whatever the image is called.

    The names of remote images may begin with a scheme, and have parts that a path can't have.
    """
    if ".." not in name and "//" not in name and not name.startswith("/"):
        return Path(name)
    replaced = {"": "_", ".": "_", "..": "__"}
    return Path(*(replaced.get(part, part) for part in name.replace("://", "/").split("/")))


def open_sources(
    sources: Sequence[str], split: Split | None, settings: Data
) -> tuple[ImageSource, Location | None, dict[str, int | str]]:
    """Open the sources as one; files are named by their paths below the folder that they share.

    Returns:
        The images, as a `FileList` if all sources list files; the shared folder; and the ids in COCO jsons, by path.

    Raises:
        ImageError: a source is missing, or holds no images.
        DataError: as for `open_dataset`.
    """
    opened, bases, ids = list[ImageSource](), list[Location](), dict[str, int | str]()
    for source in sources:
        if split is None and not _is_list(source):
            opened.append(open_source(source))
            bases += [base_of(source)] * isinstance(opened[-1], FileList)
            continue
        lenient = settings.model_copy(update={"on_fault": "skip", "classes": None})  # labels are not needed here
        dataset = open_dataset(source, split or "all", lenient, decode=False)
        screen.note(*dataset.notes)
        if dataset.format == "coco":
            ids |= {str(record.path): record.id for record in dataset.records}
        opened.append(FileList([str(record.path) for record in dataset.records]))
        bases.append(common_folder([record.path.parent for record in dataset.records]) or dataset.root)
    base = common_folder(bases) if bases else Path()
    lists = [source.below(base) if isinstance(source, FileList) else source for source in opened]
    if len(lists) == 1:
        return lists[0], base, ids
    if len(bases) == len(sources):
        paths = (source.paths for source in opened if isinstance(source, FileList))
        return FileList([*chain.from_iterable(paths)], base), base, ids
    return chain.from_iterable(lists), base, ids


def _is_list(source: str) -> bool:
    """Return whether a source is a file that may list images."""
    file = image_location(source)
    if file.suffix.lower() not in LIST_SUFFIXES:
        return False
    return file.is_file() if isinstance(file, RemotePath) else os.path.isfile(file)


def open_list(file: str) -> tuple[FileList, Location | None, dict[str, int | str]]:
    """Open the images in a list, in its order, as `open_sources` opens others.

    Raises:
        ImageError: the list can't be read, or is empty.
    """
    paths = [*listed_paths(file)]
    if not paths:
        raise ImageError(f"{file}: the list of images is empty")
    folders = {str(stored(path).parent) if is_remote(path) else os.path.dirname(path) for path in paths}
    base = common_folder(map(stored, folders))
    return FileList(paths, base), base, {}


def print_counts(name: str, counts: Mapping[str, int], count: int, images: int | None, begun: float) -> None:
    """Print a line for each of the first images, the number of the others, if known, and then a line per hundred."""
    if count <= MAX_PRINTED_IMAGES:
        boxes = ", ".join(f"{number} {label}" for label, number in counts.items())
        screen.say(f"{name}: {boxes or 'nothing'}")
    elif count == MAX_PRINTED_IMAGES + 1 and images is not None:
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


def named_ids(ids: Mapping[str, int | str], images: Iterable[NamedImage]) -> Callable[[Result], int | str]:
    """Return a function that returns a result's COCO image id: from `ids`, else its file name, or path if ambiguous."""
    count = Counter(Path(image.name).name for image in images)

    def find(result: Result) -> int | str:
        if result.path in ids:
            return ids[result.path]
        file = Path(result.origin.name)
        return file.name if count[file.name] == 1 else file.as_posix()

    return find


def listed_ids(file: Path) -> Callable[[Result], int | str]:
    """Return a function that returns a result's image id as listed in the COCO json `file`.

    Raises:
        DataError: the file can't be read; when called, the image is not listed.
    """
    listed = image_ids(file)

    def find(result: Result) -> int | str:
        path = Path(result.name)
        for start in range(len(path.parts)):
            name = "/".join(path.parts[start:])
            if name in listed:
                return listed[name]
        raise DataError(f"{result.name}: not among the images of {file}; leave out --images, or give the right file")

    return find
