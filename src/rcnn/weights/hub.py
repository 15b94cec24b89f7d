"""Download weights once, whole and checked, into the cache that torchvision uses too."""

import errno
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.hub

from rcnn.errors import UnavailableError, WeightsError
from rcnn.weights.file import atomic_write

TRIES = 3
PAUSE_S = 1.0
TIMEOUT_S = 10.0
"""Of connecting to one address, and of waiting for the next bytes."""

_CHUNK = 1 << 18


class _TryAgainError(Exception):
    """The connection or the server failed; what was received is kept, and another try may get the rest."""


def is_offline() -> bool:
    """Whether the environment variable RCNN_OFFLINE forbids downloads."""
    return os.environ.get("RCNN_OFFLINE", "") not in ("", "0")


def fetch(url: str) -> Path:
    """Return the file at `url` from torch's cache, `$TORCH_HOME/hub/checkpoints`, downloading it if needed.

    An interrupted download resumes where it stopped, in this call or a later one. The file's SHA-256 is compared with
    the published digits and written to NAME.sha256; every later call compares it with that. With the environment
    variable RCNN_OFFLINE=1 nothing is downloaded.

    Args:
        url: the last part of its path is the file's name, which may hold the published first hexadecimal digits of the
            SHA-256, as in `resnet18-f37072fd.pth`.

    Raises:
        UnavailableError: no network, RCNN_OFFLINE, the server refuses, or the cache can't be written.
        WeightsError: the file, new or old, is not the one that was published or recorded.
        OSError: the disk is full.
    """
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    in_name = re.search(r"-([0-9a-f]{8,64})\.", name)
    published = in_name[1] if in_name else ""
    if not path.exists():
        if is_offline():
            raise UnavailableError(f"{path} is missing, and RCNN_OFFLINE is set. {_by_hand(url, path)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _one_process_at_a_time(path):
                if not path.exists():
                    _download(url, path, published)
        except OSError as error:  # of the disk: those of the network have become sentences
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UnavailableError(
                f"{name} can't be written to {path.parent}: {error.strerror}; set TORCH_HOME to another folder"
            ) from None
    _check(path, published)
    return path


@contextmanager
def _one_process_at_a_time(path: Path) -> Iterator[None]:
    """The others wait, then find the file there."""
    if sys.platform == "win32":  # has no flock; what two writers spoil, the checksum finds
        yield
        return
    import fcntl

    lock = path.with_name(f".{path.name}.lock")
    with lock.open("a") as file:
        with suppress(OSError):  # some network file systems can't lock: as above
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink(missing_ok=True)  # the file is there now, so whoever makes a new lock has nothing to download


def _download(url: str, path: Path, published: str) -> None:
    """Download to NAME.part, check it, then rename it."""
    part = path.with_name(f"{path.name}.part")
    is_old = part.exists()
    _receive_all(url, part, path)
    if is_old and not _sha256(part).startswith(published):  # its beginning may be of another file, or damaged
        part.unlink()
        _receive_all(url, part, path)
    digest = _sha256(part)
    if not digest.startswith(published):
        part.unlink()
        raise WeightsError(
            f"{url} sent a file with the SHA-256 {digest}, published is {published}...: it was not kept. A proxy may "
            f"have changed it. {_by_hand('it', path)}"
        )
    part.replace(path)


def _receive_all(url: str, part: Path, path: Path) -> None:
    """Receive until the file is whole, at most TRIES times."""
    failure = ""
    for attempt in range(TRIES):
        try:
            return _receive(url, part)
        except _TryAgainError as error:
            failure = str(error)
        except urllib.error.URLError as error:
            failure = f"no connection: {error.reason}"
            if not attempt:  # without a network one try is enough; a line that was just cut may come back
                break
        if attempt + 1 < TRIES:
            time.sleep(PAUSE_S * 2**attempt)
    kept = f". {part.stat().st_size:,} bytes are kept, the next call goes on from there" if part.exists() else ""
    raise UnavailableError(f"{url} can't be downloaded: {failure}{kept}. {_by_hand('it', path)}")


def _receive(url: str, part: Path) -> None:
    """Add what is missing to `part`; all of it where the server sends all, as some do when asked for the rest.

    Raises:
        URLError: no connection, or the server will never send the file.
        _TryAgainError: the line was cut, or the server has trouble.
    """
    have = part.stat().st_size if part.exists() else 0
    response = _open(url, have)
    if response is None:
        return
    with response:
        done = have if response.status == http.client.PARTIAL_CONTENT else 0
        length = response.headers["Content-Length"]
        total = None if length is None else done + int(length)
        with part.open("ab" if done else "wb") as file, _bar(part.stem, done, total) as advance:
            for chunk in _chunks(response):
                file.write(chunk)
                done += len(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise _TryAgainError(f"the line was cut after {done:,} of {total:,} bytes")


def _open(url: str, have: int) -> Any:
    """Request everything from byte `have` on; None if there is no more."""
    headers = {"User-Agent": "rcnn"} | ({"Range": f"bytes={have}-"} if have else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                return None
            answer = f"the server answers {error.code} {error.reason}"
        if error.code >= http.client.INTERNAL_SERVER_ERROR or error.code == http.client.TOO_MANY_REQUESTS:
            raise _TryAgainError(answer) from None
        raise UnavailableError(f"{url} can't be downloaded: {answer}; it may have moved, update rcnn") from None
    except urllib.error.URLError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(f"the line was cut: {error!r}") from None


def _chunks(response: Any) -> Iterator[bytes]:
    """The body, up to its end or to where the line breaks."""
    try:
        while chunk := response.read1(_CHUNK):  # not `read`, which drops what it has when the line breaks
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(f"the line was cut: {error!r}") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """From https only to https: where eight digits are published, the encryption is what keeps a forger out."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _bar(name: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr if it is a terminal; yields a function that takes the number of new bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, completed=done, total=total)
        yield lambda count: progress.advance(task, count)


def _check(path: Path, published: str) -> None:
    """Compare the file with the published digits and with the recorded digest; record it where none is."""
    digest, record = _sha256(path), path.with_name(f"{path.name}.sha256")
    recorded = record.read_text(encoding="ascii", errors="replace")[:64] if record.exists() else None
    if not digest.startswith(published):
        expected, files = f"published is {published}...", path.name
    elif recorded is not None and digest != recorded:
        expected, files = f"{record.name} says {recorded}, since its first use", f"both {path.name} and {record.name}"
    else:
        if recorded is None:
            with suppress(OSError):  # a cache that many share may be read-only
                atomic_write(record, f"{digest}  {path.name}\n".encode(), shared=True)
        return
    raise WeightsError(
        f"{path} has the SHA-256 {digest}, {expected}: it is damaged or another file, and is not used. "
        f"Delete or move {files}, then it is downloaded anew"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _by_hand(what: str, path: Path) -> str:
    """What to do without a network."""
    return f"Get {what} on another machine and put it as {path.name} into {path.parent}"
