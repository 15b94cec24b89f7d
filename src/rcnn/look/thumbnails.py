"""Small copies of pictures in a cache folder of limited size."""

import hashlib
import html
import io
import os
import textwrap
import threading
from contextlib import suppress
from pathlib import Path

from rcnn.config import Settings
from rcnn.config.files import MB
from rcnn.draw import as_rgb
from rcnn.images.decode import read_image
from rcnn.weights.file import atomic_write

SIDE = 320
"""Longest side of a thumbnail, px."""

MAX_BYTES = 1000 * MB
"""Size of the cache folder."""

DECODING = threading.BoundedSemaphore(2)
"""Limits the number of pictures that are in memory at full size."""

LARGE_SIDE = 4096
"""Longest side of a large picture, px."""


class Thumbnails:
    """Thumbnails in a folder, each made when it is first requested.

    Without a writable folder they are made at every request.

    Args:
        folder: of the cache.
        max_bytes: size of the folder above which the oldest thumbnails are deleted.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._lock = threading.Lock()
        self._bytes: int | None = None

    def get(self, path: Path, settings: Settings) -> bytes:
        """Return a picture as a small WebP.

        Raises:
            ImageError: it can't be read.
        """
        data = settings.data
        with suppress(OSError):
            facts = path.stat()
            words = (os.path.abspath(path), facts.st_size, facts.st_mtime_ns, data.white, SIDE)
            key = hashlib.sha256(repr(words).encode(errors="surrogateescape")).hexdigest()
            file = self.folder / key[:2] / f"{key[2:]}.webp"
            with suppress(OSError):
                return file.read_bytes()
            content = encoded(path, settings, SIDE, "WEBP", 75)
            with suppress(OSError):
                self._keep(file, content)
            return content
        return encoded(path, settings, SIDE, "WEBP", 75)

    def _keep(self, file: Path, content: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.parent.mkdir(exist_ok=True)
        atomic_write(file, content, shared=True)
        with self._lock:
            if self._bytes is None:
                self._bytes = sum(size for _, size, _ in self._files())
            else:
                self._bytes += len(content)
            if self._bytes > self.max_bytes:
                self._shrink()

    def _files(self) -> list[tuple[int, int, Path]]:
        """Return the time, size and path of every thumbnail."""
        files = []
        for path in self.folder.glob("??/*.webp"):
            with suppress(OSError):
                facts = path.stat()
                files.append((facts.st_mtime_ns, facts.st_size, path))
        return files

    def _shrink(self) -> None:
        """Delete the oldest thumbnails until the folder is below four fifths of its largest size."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self.max_bytes * 0.8:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._bytes = total


def encoded(path: Path, settings: Settings, side: int, kind: str, quality: int) -> bytes:
    """Return a picture, upright and at most `side` pixels wide and high, as the content of a file of this kind.

    Raises:
        ImageError: it can't be read.
    """
    data = settings.data
    with DECODING:
        image = as_rgb(read_image(path, white=data.white, max_pixels=data.max_pixels, in_channels=None))
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return file.getvalue()


def message_image(reason: str) -> bytes:
    """Return an SVG with the reason why a picture can't be read, to be shown in its place."""
    lines = textwrap.wrap(reason, 42)[:7]
    spans = "".join(f'<text x="16" y="{44 + 22 * row}">{html.escape(line)}</text>' for row, line in enumerate(lines))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 240" font-family="sans-serif" font-size="14">'
        f'<rect width="320" height="240" fill="#f5f6f8"/><g fill="#8a1c1c">{spans}</g></svg>'
    ).encode(errors="replace")
