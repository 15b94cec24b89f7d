"""`rcnn predict --shard I/N`: predict one shard of many pictures, which another start can continue."""

import errno
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rcnn.cli import arguments, screen
from rcnn.cli.loading import load_detector
from rcnn.cli.stream import parse_list
from rcnn.errors import Interrupted, PredictionError, SettingsError, StorageError, plural
from rcnn.images.sources import listed_paths
from rcnn.images.storage import shown
from rcnn.shards.names import ShardIndex
from rcnn.shards.predict import ShardProgress, check_arguments, predict_shard


def run(
    model: str,
    words: Sequence[str],
    listed: str | None,
    shard: str,
    resume: bool,
    out: Path,
    format: str,
    score: float | None,
    top: int | None,
    classes: str | None,
    batch: int,
    device: str | None,
) -> None:
    """Predict a shard, and print a line per part.

    Raises:
        SettingsError: an option is wrong, or there is not exactly one source.
    """
    index, (sources, changes) = ShardIndex.parse(shard), arguments.split(words)
    if len(sources) + (listed is not None) != 1:
        raise SettingsError("--shard: give one folder of images, or --list FILE with one path per line")
    source = sources[0] if listed is None else listed_paths(listed)
    check_arguments(source, format)
    detector = load_detector(model, changes, device or "auto", device)
    if score is None:
        score = detector.settings.predict.score
    chosen = None if classes is None else parse_list("--classes", classes, detector.names)
    printed = set[str]()

    def report(progress: ShardProgress) -> None:
        remarks = detector.pooler.remarks
        screen.note(*(remarks[kind] for kind in remarks.keys() - printed))
        printed.update(remarks)
        screen.note_threads()
        speed = progress.added / max(progress.seconds, 1e-9)
        screen.note(f"{progress.folder}: {plural(progress.pictures, 'image')}, {speed:.1f} per second")

    options = {"score": score, "top": top, "classes": chosen, "batch": batch, "model": shown(model)}
    done = predict_shard(detector, source, out, index, format=format, resume=resume, **options, report=report)
    unread = f", {done.errors:,} of them unreadable" if done.errors else ""
    screen.say(f"shard {index} is complete: {plural(done.pictures, 'image')}{unread}, in {done.folder}")


@contextmanager
def continued(words: Sequence[str]) -> Iterator[None]:
    """Add the command that continues the shard to the message of an early end.

    Args:
        words: of the command line.

    Raises:
        PredictionError: the disk is full, or remote pictures can't be reached or may not be read.
        Interrupted: a signal ended the block.
    """
    command = shlex.join(["rcnn", *map(shown, words), *["--resume"] * ("--resume" not in words)])
    remedy = f"Finished images are kept. Continue with: {command}"
    try:
        yield
    except KeyboardInterrupt as error:
        code = getattr(error, "exit_code", Interrupted.exit_code)
        raise Interrupted(f"{str(error) or 'interrupted'}. {remedy}", code) from None
    except StorageError as error:
        raise PredictionError(f"{error}. {remedy}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PredictionError(f"{error.filename}: {error.strerror}. Free space first. {remedy}") from None
