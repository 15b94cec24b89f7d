"""Merge the parts of all shards into one file, in order of names."""

import heapq
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from rcnn.errors import PredictionError, SettingsError
from rcnn.locks import lock
from rcnn.shards.manifest import Manifest, shard_folders
from rcnn.shards.names import ShardIndex
from rcnn.shards.rows import FORMATS, RowFormat, by_name
from rcnn.weights.file import atomic_write

FAN_IN = 64
"""Maximum number of files that are merged at the same time."""
MAX_NAMED_SHARDS = 20
_TEMPORARY = ".merge"


class Merged(NamedTuple):
    """A merged file.

    Attributes:
        file: its path.
        pictures: number of its rows.
        errors: number of pictures that could not be read.
        missing: shards that were not started or are not complete.
    """

    file: Path
    pictures: int
    errors: int
    missing: tuple[ShardIndex, ...]


def merge_shards(folder: str | Path, out: str | Path | None = None, *, partial: bool = False) -> Merged:
    """Merge the parts of all shards in a folder into one file with the rows in order of names.

    Parts are sorted. At most `FAN_IN` are merged at the same time, and intermediate files are written below `folder`,
    so memory does not depend on the number of rows.

    Args:
        folder: folder of the shards.
        out: the file, with the suffix of the parts. None: `results.jsonl` or `results.parquet` in `folder`.
        partial: merge what is there, although shards are missing.

    Raises:
        SettingsError: there are no shards, they are of different numbers, models or settings, or the file exists or has
            another suffix.
        PredictionError: shards are missing or not complete; the message names them.
        DataError: a manifest or part is damaged.
        OSError: the disk is full, or a file can't be read or written.
    """
    folder = Path(folder)
    shards = shard_folders(folder) if folder.is_dir() else {}
    numbers = sorted({shard.of for shard in shards})
    if len(numbers) != 1:
        found = f"shards of {' and of '.join(map(str, numbers))}" if numbers else "no shards"
        raise SettingsError(f"{folder}: holds {found}; give the folder that --out of predict --shard named")
    manifests = {shard: Manifest(path) for shard, path in shards.items() if Manifest(path).path.exists()}
    tasks = [manifest.task() for manifest in manifests.values()]
    for task in tasks:
        task.check_same(tasks[0], folder)
    parts, pictures, errors, missing = list[Path](), 0, 0, list[ShardIndex]()
    for shard in (ShardIndex(index, numbers[0]) for index in range(1, numbers[0] + 1)):
        manifest = manifests.get(shard)
        for part in manifest.parts() if manifest else ():
            parts.append(part.check(shards[shard]))
            pictures, errors = pictures + part.pictures, errors + part.errors
        if manifest is None or not manifest.complete:
            missing.append(shard)
    if missing and (not partial or not tasks):
        raise PredictionError(
            f"{folder}: {len(missing):,} of {numbers[0]:,} shards are missing or not complete: "
            f"{named_shards(missing)}. Run them with --resume, or merge what is there with --partial"
        )
    form = FORMATS[tasks[0].format]
    out = folder / f"results{form.suffix}" if out is None else Path(out)
    if out.suffix != form.suffix:
        raise SettingsError(f"--out {out}: the name must end in {form.suffix}, like the parts")
    if out.exists():
        raise SettingsError(f"{out} already exists; move it away or give another name with --out")
    with lock(folder, "merged"):
        temporary = folder / _TEMPORARY
        shutil.rmtree(temporary, ignore_errors=True)  # of a killed merge
        temporary.mkdir()
        try:
            _merge_files(parts, out, form, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Merged(out, pictures, errors, tuple(missing))


def named_shards(shards: Sequence[ShardIndex]) -> str:
    """Return the names of the first `MAX_NAMED_SHARDS` shards, and the number of the others."""
    named = ", ".join(map(str, shards[:MAX_NAMED_SHARDS]))
    return f"{named} and {len(shards) - MAX_NAMED_SHARDS:,} more" if len(shards) > MAX_NAMED_SHARDS else named


def _merge_files(files: list[Path], out: Path, form: RowFormat, temporary: Path) -> None:
    """Merge sorted files into one, in several passes if there are more than `FAN_IN`."""
    number = 0
    while len(files) > FAN_IN:
        merged = list[Path]()
        for start in range(0, len(files), FAN_IN):
            number += 1
            merged.append(temporary / f"{number}{form.suffix}")
            group = files[start : start + FAN_IN]
            _write_merged(group, merged[-1], form)
            for file in group:
                if file.parent == temporary:
                    file.unlink()
        files = merged
    _write_merged(files, out, form)


def _write_merged(files: list[Path], out: Path, form: RowFormat) -> None:
    with ExitStack() as stack:
        rows = [stack.enter_context(closing(form.decode(file))) for file in files]
        atomic_write(out, form.encode(heapq.merge(*rows, key=by_name)))
