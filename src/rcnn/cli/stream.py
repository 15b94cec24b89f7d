"""What `predict` and `propose` share: images in, results written as they come, totals at the end."""

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from rcnn.cli import arguments, screen
from rcnn.cli.files import fresh_folder
from rcnn.cli.loading import load_detector, sharing
from rcnn.cli.writers import FORMATS, Target, merge_parts
from rcnn.config import SettingsError
from rcnn.data.dataset import DataError
from rcnn.detector import Detector, files
from rcnn.preprocess.decode import ImageError
from rcnn.result import Result

SHOWN = 5
"""Images whose counts are printed one by one."""


class Job:
    """One call of `predict` or `propose`: its images, where results go and in which formats.

    Args:
        words: sources and `section.key=value` settings.
        out: the folder of the results, numbered where it is taken.
        formats: comma-separated.
        images: COCO json that gives images their ids.
        as_json: also print the results as one JSON document.
        on_fault: `skip` names images that can't be read and goes on; else the first one stops.

    Raises:
        SettingsError: an unknown format or choice, or no source.
        ImageError: a source that is not there.
    """

    def __init__(
        self, words: Sequence[str], out: Path, formats: str, images: Path | None, as_json: bool, on_fault: str | None
    ) -> None:
        if on_fault not in (None, "stop", "skip"):
            raise SettingsError(f"--on-fault: unknown `{on_fault}`; there are stop, skip")
        sources, self._changes = arguments.split(words)
        if not sources:
            raise SettingsError("SOURCE is missing: give images, folders or globs")
        self._formats = parse_formats(formats)
        if as_json and "json" not in self._formats:
            self._formats.append("json")
        self._ids, self._as_json, self._out = image_ids(images), as_json, out
        self._files = [file for source in sources for file in files(source)]
        self._base = base_of(sources)
        self._unread = 0
        self.skip = self._leave_out if on_fault == "skip" else None

    @contextmanager
    def detector(self, model: str, device: str | None) -> Iterator[Detector]:
        """The detector, with this job's settings; under torchrun each process takes its share of the images."""
        with sharing(device) as (self._team, _):
            detector = load_detector(model, self._changes, str(self._team.device))
            self._out = self._team.gather(fresh_folder(self._out) if self._team.writer else self._out)[0]
            yield detector

    def _leave_out(self, error: ImageError) -> None:
        self._unread += 1
        screen.note(f"left out: {error}")

    def files(self) -> list[Path]:
        """The images of this process."""
        return self._files[self._team.rank :: self._team.world]

    def run(self, results: Iterable[Result], names: tuple[str, ...]) -> None:
        """Write every result in every format while it comes, and say what was found."""
        target = Target(self._out, names, self._ids, part=self._team.rank)
        totals, count, begun = Counter[str](), 0, time.perf_counter()
        with ExitStack() as stack:
            stack.push(lambda kind, *_: self._tell_kept(count) if kind else None)
            if self._team.world == 1:  # also when interrupted: what was found is kept
                stack.callback(merge_parts, self._out, 1)
            writers = [stack.enter_context(closing(FORMATS[name](target))) for name in self._formats]
            for count, result in enumerate(results, 1):
                name = Path(os.path.relpath(result.path or "", self._base))
                for writer in writers:
                    writer.write(result, name)
                totals.update(result.counts())
                if self._team.writer:
                    tell(name, result.counts(), count, begun)
        every = self._team.gather((count, totals, self._unread))
        if self._team.writer:
            if self._team.world > 1:
                merge_parts(self._out, self._team.world)
            self._report(sum(row[0] for row in every), sum((row[1] for row in every), Counter[str]()))
            if unread := sum(row[2] for row in every):
                screen.say(f"left out as unreadable: {screen.several(unread, 'image')}, named above")

    def _tell_kept(self, count: int) -> None:
        """What an early end leaves."""
        screen.note(f"stopped; results of {screen.several(count, 'image')} are in {self._out}")

    def emit(self) -> None:
        """Print the JSON document that was asked for, piece by piece."""
        if self._as_json and self._team.writer:
            with (self._out / "results.json").open(encoding="utf-8") as file:
                for piece in iter(lambda: file.read(1 << 16), ""):
                    print(piece, end="")

    def _report(self, count: int, totals: Counter[str]) -> None:
        """What was found, and where it lies."""
        rows = [[name, number] for name, number in totals.most_common()]
        found = f"{screen.several(count, 'image')}, {screen.several(totals.total(), 'box')}"
        screen.table(found, ["class", "boxes"], rows)
        screen.say(f"\nwritten to {self._out}: {', '.join(self._formats)}")


def tell(name: Path, found: Mapping[str, int], count: int, begun: float) -> None:
    """A line for each of the first images, then one for every hundred."""
    if count <= SHOWN:
        counts = ", ".join(f"{number} {label}" for label, number in found.items())
        screen.say(f"{name}: {counts or 'nothing'}")
    elif count % 100 == 0:
        screen.note(f"{count:,} images, {count / (time.perf_counter() - begun):.1f} a second")


def parse_formats(text: str) -> list[str]:
    """Names of formats in a comma-separated list.

    Raises:
        SettingsError: an unknown format.
    """
    formats = [name.strip() for name in text.split(",")]
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise SettingsError(f"--format: unknown `{unknown[0]}`; there are {', '.join(FORMATS)}")
    return formats


def parse_classes(text: str | None, names: Sequence[str]) -> list[str] | None:
    """Class names in a comma-separated list; None: all.

    Raises:
        SettingsError: a class that the detector does not know.
    """
    if text is None:
        return None
    classes = [name.strip() for name in text.split(",")]
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise SettingsError(f"--classes: the detector knows no `{unknown[0]}`; it knows {', '.join(names)}")
    return classes


def base_of(sources: Sequence[str]) -> Path:
    """The folder that output names are relative to: what all sources share, without wildcards and file names."""
    folders = []
    for source in sources:
        plain = Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), Path(source).parts))
        folders.append(os.path.abspath(plain if plain.is_dir() else plain.parent))
    return Path(os.path.commonpath(folders))


def image_ids(file: Path | None) -> Callable[[Result], int | str]:
    """What gives a result its COCO image id: the COCO json `file`, else the image's file name.

    Raises:
        DataError: the file can't be read; later, an image that it does not list.
    """
    if file is None:
        return lambda result: Path(result.path or "").name
    try:
        listed = {entry["file_name"]: entry["id"] for entry in json.loads(file.read_bytes())["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: can't be read as a COCO json with `images`: {error!r}") from None

    def find(result: Result) -> int | str:
        parts = Path(result.path or "").parts
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in listed:
                return listed[name]
        raise DataError(f"{result.path}: not among the images of {file}; leave --images out, or give the right file")

    return find
