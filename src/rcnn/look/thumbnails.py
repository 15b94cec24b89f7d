"""Small copies of pictures in a cache folder, which is kept under a size."""

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

LARGEST = 1000 * MB
"""Bytes of the cache folder."""

DECODING = threading.BoundedSemaphore(2)
"""So many pictures are in memory in their full size at a time."""

LARGE = 4096
"""Longest side of a picture that is looked at alone, px."""


def cache_folder(name: str) -> Path:
    """`$XDG_CACHE_HOME/rcnn/NAME`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rcnn" / name


class Thumbnails:
    """Thumbnails in a folder; one is made when it is first asked for.

    A folder that can't be written to costs the cache alone.

    Args:
        folder: of the cache.
        largest: bytes; beyond, the oldest thumbnails are deleted.
    """

    def __init__(self, folder: Path, largest: int = LARGEST) -> None:
        self.folder, self.largest = folder, largest
        self._lock = threading.Lock()
        self._bytes: int | None = None

    def get(self, path: Path, settings: Settings) -> bytes:
        """The WebP of a picture.

        Raises:
            ImageError: it can't be read.
        """
        data = settings.data
        with suppress(OSError):
            facts = path.stat()
            words = (os.path.abspath(path), facts.st_size, facts.st_mtime_ns, data.white, SIDE)
            key = hashlib.sha256(repr(words).encode(errors="surrogateescape")).hexdigest()
            kept = self.folder / key[:2] / f"{key[2:]}.webp"
            with suppress(OSError):
                return kept.read_bytes()
            content = encoded(path, settings, SIDE, "WEBP", 75)
            with suppress(OSError):
                self._keep(kept, content)
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
            if self._bytes > self.largest:
                self._shrink()

    def _files(self) -> list[tuple[int, int, Path]]:
        """Time, size and path of every thumbnail."""
        files = []
        for path in self.folder.glob("??/*.webp"):
            with suppress(OSError):
                facts = path.stat()
                files.append((facts.st_mtime_ns, facts.st_size, path))
        return files

    def _shrink(self) -> None:
        """Delete the oldest ones until four fifths are left."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self.largest * 0.8:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._bytes = total


def encoded(path: Path, settings: Settings, side: int, kind: str, quality: int) -> bytes:
    """A picture turned upright, at most so many pixels wide and high, as a file of this kind.

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


def sign(reason: str) -> bytes:
    """An SVG that stands for a picture that can't be read, and says why."""
    lines = textwrap.wrap(reason, 42)[:7]
    spans = "".join(
        f'<text x="16" y="{44 + 22 * place}">{html.escape(line)}</text>' for place, line in enumerate(lines)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 240" font-family="sans-serif" font-size="14">'
        f'<rect width="320" height="240" fill="#f5f6f8"/><g fill="#8a1c1c">{spans}</g></svg>'
    ).encode(errors="replace")
