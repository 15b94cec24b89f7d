"""Download weights once, completely and with a check, into the cache that torchvision also uses."""

import errno
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch.hub

from rcnn.config.files import one_process_at_a_time
from rcnn.errors import UnavailableError, WeightsError
from rcnn.weights.file import atomic_write, file_digest

TRIES = 3
PAUSE_S = 1.0
TIMEOUT_S = 10.0
"""Limit for connecting to an address, and for waiting for the next bytes."""

_CHUNK = 1 << 18


class _TryAgainError(Exception):
    """The connection or the server failed; received bytes are kept, and another try may receive the rest."""


def is_offline() -> bool:
    """Return whether the environment variable RCNN_OFFLINE forbids downloads."""
    return os.environ.get("RCNN_OFFLINE", "") not in ("", "0")


def fetch(url: str) -> Path:
    """Return the file at `url` from torch's cache, `$TORCH_HOME/hub/checkpoints`, downloading it if needed.

    An interrupted download resumes where it stopped, in this call or a later one. The file's SHA-256 is compared with
    the published digits and recorded in NAME.sha256; every later call compares it with the record. With the environment
    variable RCNN_OFFLINE=1, files are not downloaded.

    Args:
        url: the last part of its path is the file's name, which may hold the published first hexadecimal digits of the
            SHA-256, as in `resnet18-f37072fd.pth`.

    Raises:
        UnavailableError: there is no network, RCNN_OFFLINE is set, the server refuses, or the cache can't be written.
        WeightsError: the downloaded or cached file differs from the published or recorded one.
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
            with one_process_at_a_time(path):
                if not path.exists():
                    _download(url, path, published)
        except OSError as error:  # of the disk; errors of the network have been translated
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UnavailableError(
                f"{name} can't be written to {path.parent}: {error.strerror}; set TORCH_HOME to another folder"
            ) from None
    _check(path, published)
    return path


def _download(url: str, path: Path, published: str) -> None:
    """Download to NAME.part, check it, then rename it."""
    part = path.with_name(f"{path.name}.part")
    is_old = part.exists()
    _receive_all(url, part, path)
    if is_old and not file_digest(part).startswith(published):  # the old part may be damaged or of another file
        part.unlink()
        _receive_all(url, part, path)
    digest = file_digest(part)
    if not digest.startswith(published):
        part.unlink()
        raise WeightsError(
            f"{url} sent a file with the SHA-256 {digest}, published is {published}...: it was not kept. A proxy may "
            f"have changed it. {_by_hand('it', path)}"
        )
    part.replace(path)


def _receive_all(url: str, part: Path, path: Path) -> None:
    """Receive until the file is complete, in at most TRIES attempts."""
    failure = ""
    for attempt in range(TRIES):
        try:
            return _receive(url, part)
        except _TryAgainError as error:
            failure = str(error)
        except urllib.error.URLError as error:
            failure = f"no connection: {error.reason}"
            if not attempt:  # without a network, one try is enough; a connection that was lost may come back
                break
        if attempt + 1 < TRIES:
            time.sleep(PAUSE_S * 2**attempt)
    rest = f". {part.stat().st_size:,} bytes are kept, and the next call resumes there" if part.exists() else ""
    raise UnavailableError(f"{url} can't be downloaded: {failure}{rest}. {_by_hand('it', path)}")


def _receive(url: str, part: Path) -> None:
    """Append the missing bytes to `part`, or replace it if the server ignores the requested range.

    Raises:
        URLError: there is no connection, or the server will never send the file.
        _TryAgainError: the connection was lost, or the server failed.
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
        raise _TryAgainError(f"the connection was lost after {done:,} of {total:,} bytes")


def _open(url: str, have: int) -> Any:
    """Request the file from byte `have` on; None if there are no more bytes."""
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
        raise _TryAgainError(f"the connection was lost: {error!r}") from None


def _chunks(response: Any) -> Iterator[bytes]:
    """Yield the body until it ends or the connection is lost."""
    try:
        while chunk := response.read1(_CHUNK):  # not `read`, which drops received bytes when the connection is lost
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(f"the connection was lost: {error!r}") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow https to https only, since eight published digits alone don't protect against a forged file."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.startswith("https:"):
            raise urllib.error.URLError(f"it redirects to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _bar(name: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar if stderr is a terminal; yields a function that takes the number of new bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, completed=done, total=total)
        yield lambda count: progress.advance(task, count)


def _check(path: Path, published: str) -> None:
    """Compare the file with the published digits and with the recorded digest, which is written if there is none."""
    digest, record = file_digest(path), path.with_name(f"{path.name}.sha256")
    recorded = record.read_text(encoding="ascii", errors="replace")[:64] if record.exists() else None
    if not digest.startswith(published):
        expected, files = f"published is {published}...", path.name
    elif recorded is not None and digest != recorded:
        expected, files = f"{record.name} says {recorded}, since its first use", f"both {path.name} and {record.name}"
    else:
        if recorded is None:
            with suppress(OSError):  # a shared cache may be read-only
                atomic_write(record, f"{digest}  {path.name}\n".encode(), shared=True)
        return
    raise WeightsError(
        f"{path} has the SHA-256 {digest}, {expected}: it is damaged or another file, and is not used. "
        f"Delete or move {files}, and it is downloaded again"
    )


def _by_hand(what: str, path: Path) -> str:
    """Return what to do without a network."""
    return f"Get {what} on another machine and put it into {path.parent} as {path.name}"
