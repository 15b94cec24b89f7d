"""The folder of a shard: finished parts, and a manifest that lists them.

`manifest.jsonl` begins with a line that says what is predicted; one line per finished part follows, and a last one when
the shard is complete. A part is written aside, synced and renamed before its line is appended, so that a part without a
line is a leftover of a killed process. Shards share no file.
"""

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, JsonValue, ValidationError

from rcnn.errors import DataError, SettingsError
from rcnn.images.sources import MARK
from rcnn.shards.names import DIGEST_BYTES, ShardIndex
from rcnn.weights.file import atomic_write

MANIFEST = "manifest.jsonl"
VERSION = 1
_FOLDER = re.compile(r"([1-9]\d{0,8})-of-([1-9]\d{0,8})")
_PART = re.compile(r"\.?part-\d+\..*")
MAX_LINE_BYTES = 1_000_000

Text = Annotated[str, Field(max_length=10_000)]


class Task(BaseModel):
    """What a shard predicts; equal for all shards except for `shard` and `source`.

    Attributes:
        rcnn: version of the format.
        shard: index of the shard.
        of: number of shards.
        format: name of the format of the parts.
        source: the folder of the pictures; empty for a list, whose names are whole paths.
        model: the model, as the user named it.
        digest: of its weights and classes.
        settings: name -> value of all settings and options that can change a result.
    """

    rcnn: int = VERSION
    shard: int
    of: int
    format: Text
    source: Text
    model: Text
    digest: Text
    settings: dict[str, JsonValue]

    def check_same(self, other: Self, folder: Path) -> None:
        """Check that another task, with which a folder was begun, gives the same results.

        Raises:
            SettingsError: it has another model or other settings; the message names both.
        """
        if other.digest != self.digest:
            raise SettingsError(
                f"{folder} was begun with the model {other.model} (digest {other.digest[:12]}), which is not "
                f"{self.model} (digest {self.digest[:12]}); give the first model, or another folder with --out"
            )
        here, there = self._values(), other._values()
        changed = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        if changed:
            old, new = (", ".join(f"{key}={values.get(key)}" for key in changed[:5]) for values in (there, here))
            raise SettingsError(f"{folder} was begun with {old}, not {new}; give the first, or another --out")

    def _values(self) -> dict[str, JsonValue]:
        return {**self.settings, "format": self.format, "source": "a folder" if self.source else "a list"}


class Part(BaseModel):
    """A finished part.

    Attributes:
        part: name of its file.
        size: of the file, bytes.
        pictures: number of its rows.
        errors: number of those that could not be read.
        names: digests of the names, 16 letters of base64 for each.
    """

    part: Annotated[str, Field(pattern=r"^part-\d{1,9}\.[a-z]{1,10}$")]
    size: int
    pictures: int
    errors: int
    names: Annotated[str, Field(pattern=r"^([A-Za-z0-9+/]{16})*$")]

    @classmethod
    def of(cls, file: Path, errors: int, names: Sequence[bytes]) -> Self:
        """Return the entry of a file that was just written."""
        text = base64.b64encode(b"".join(names)).decode()
        return cls(part=file.name, size=file.stat().st_size, pictures=len(names), errors=errors, names=text)

    def digests(self) -> Iterator[bytes]:
        """Yield the digests of the names."""
        packed = base64.b64decode(self.names)
        return (packed[start : start + DIGEST_BYTES] for start in range(0, len(packed), DIGEST_BYTES))

    def check(self, folder: Path) -> Path:
        """Return the path of the file.

        Raises:
            DataError: it is missing, or has another size.
        """
        path = folder / self.part
        found = path.stat().st_size if path.is_file() else None
        if found != self.size:
            what = "is missing" if found is None else f"has {found:,} bytes instead of {self.size:,}"
            raise DataError(f"{path} {what}, but {MANIFEST} lists it; restore the file, or start again in a new folder")
        return path


class Manifest:
    """The manifest of a shard, which is read line by line.

    Args:
        folder: of the shard.

    Attributes:
        path: the file.
        complete: whether the last line, after `parts` was read, says that the shard is complete.
        size: bytes of the lines that are complete; a killed process or a full disk may leave half a line after them.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.complete, self.size = folder / MANIFEST, False, 0

    @classmethod
    def create(cls, folder: Path, task: Task) -> Self:
        """Write the manifest of a shard without parts."""
        manifest = cls(folder)
        atomic_write(manifest.path, task.model_dump_json().encode() + b"\n")
        manifest.size = manifest.path.stat().st_size
        return manifest

    def task(self) -> Task:
        """Return what the shard predicts.

        Raises:
            DataError: the manifest is damaged.
        """
        for _, line in self._lines():
            if isinstance(line, dict) and line.get("rcnn", VERSION) != VERSION:
                raise DataError(f"{self.path} was written by another version of rcnn; use that one, or another folder")
            return self._checked(Task, line, 1)
        raise DataError(f"{self.path} is empty; delete the folder, and start the shard again")

    def parts(self) -> Iterator[Part]:
        """Yield the finished parts.

        Raises:
            DataError: the manifest is damaged.
        """
        self.complete = False
        for number, line in self._lines():
            self.complete = line == COMPLETE
            if number > 1 and not self.complete:
                yield self._checked(Part, line, number)

    def append(self, entry: Part | Mapping[str, Any]) -> None:
        """Append a line. If the disk is full, the manifest is left as it was."""
        text = entry.model_dump_json() if isinstance(entry, Part) else json.dumps(entry)
        line = text.encode() + b"\n"
        with self.path.open("r+b", buffering=0) as file:
            file.truncate(self.size)
            file.seek(self.size)
            try:
                if file.write(line) != len(line):
                    file.write(line)  # raises the reason
                    raise OSError(f"{self.path}: the line was not written")
                os.fsync(file.fileno())
            except OSError as error:
                file.truncate(self.size)
                error.filename = error.filename or str(self.path)
                raise
        self.size += len(line)

    def _lines(self) -> Iterator[tuple[int, Any]]:
        self.size = 0
        with self.path.open("rb") as lines:
            number = 0
            while (line := lines.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                number += 1
                try:
                    parsed = json.loads(line)
                except (ValueError, RecursionError):
                    raise self._damaged(number) from None
                self.size += len(line)
                yield number, parsed
            if len(line) == MAX_LINE_BYTES:
                raise self._damaged(number + 1)

    def _checked(self, kind: type[Any], line: Any, number: int) -> Any:
        try:
            return kind.model_validate(line)
        except ValidationError:
            raise self._damaged(number) from None

    def _damaged(self, number: int) -> DataError:
        return DataError(f"{self.path}, line {number}: damaged; restore the file, or start again in a new folder")


COMPLETE: dict[str, Any] = {"complete": True}
"""The last line of the manifest of a complete shard."""


def shard_folders(out: Path) -> dict[ShardIndex, Path]:
    """Return the shards that have a folder, in order."""
    matches = [(match, path) for path in out.iterdir() if (match := _FOLDER.fullmatch(path.name)) and path.is_dir()]
    return dict(sorted((ShardIndex(int(match[1]), int(match[2])), path) for match, path in matches))


def check_folder(out: Path, shard: ShardIndex) -> None:
    """Check that a folder can hold a shard: that it is new, empty, or holds shards of the same number.

    Raises:
        SettingsError: it does not.
    """
    if not out.exists():
        return
    others = shard_folders(out) if out.is_dir() else {}
    if not others and not (out.is_dir() and all(entry.name == MARK for entry in out.iterdir())):
        raise SettingsError(f"--out {out}: holds something other than shards; give a new or empty folder")
    for other in others:
        if other.of != shard.of:
            raise SettingsError(
                f"{out} holds shards of {other.of}, such as {other}, and this is {shard}: give --shard I/{other.of}, "
                "or another folder with --out"
            )


def drop_unlisted(folder: Path, listed: Iterable[str]) -> None:
    """Delete the parts that a killed process left without listing them."""
    listed = set(listed)
    for entry in folder.iterdir():
        if _PART.fullmatch(entry.name) and entry.name not in listed:
            entry.unlink()
