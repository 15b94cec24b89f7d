"""Downloads from a local server that fails as servers and connections do."""

import hashlib
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rcnn.errors import UnavailableError, WeightsError
from rcnn.weights import hub
from rcnn.weights.hub import fetch

BODY = bytes(range(256)) * 4096  # 1 MiB: several reads
DIGEST = hashlib.sha256(BODY).hexdigest()
NAME = f"net-{DIGEST[:8]}.pth"
CUT = 300_000


class Server(ThreadingHTTPServer):
    """Serves BODY at any path; each request uses one of `faults`.

    Faults: an integer is a status; `cut` closes the line after CUT bytes; `slow` stops there without closing it;
    `chunked` sends chunks and closes the line before the last; `hang-up` answers nothing at all.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.honours_range = BODY, True
        self.faults: list[Any] = []
        self.ranges: list[str | None] = []

    def url(self, name: str = NAME) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "hang-up":
            return
        if isinstance(fault, int):
            self.send_error(fault)
            return
        body = self.server.body
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.honours_range else 0
        if asked and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if fault == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % CUT + body[:CUT] + b"\r\n")
            return
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : start + CUT] if fault in ("cut", "slow") else body[start:])
        if fault == "slow":
            self.wfile.flush()
            time.sleep(1)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("RCNN_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "PAUSE_S", 0.0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "checkpoints"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def put(folder: Path, name: str, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)


def test_a_file_is_downloaded_once_into_torchs_cache_and_its_digest_recorded(server: Server, folder: Path):
    path = fetch(server.url())
    assert path == folder / NAME
    assert path.read_bytes() == BODY
    assert (folder / f"{NAME}.sha256").read_text() == f"{DIGEST}  {NAME}\n"
    assert files(folder) == {NAME, f"{NAME}.sha256"}
    assert fetch(server.url()) == path
    assert len(server.ranges) == 1


@pytest.mark.parametrize("fault", ["cut", "slow", "chunked"])
def test_a_download_resumes_where_the_connection_was_lost(fault: str, server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.3)
    server.faults = [fault]
    assert fetch(server.url()).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={CUT}-"]


def test_a_download_resumes_after_two_cuts_and_in_the_next_call_after_a_third(server: Server, folder: Path):
    server.faults = ["cut"] * 3
    with pytest.raises(UnavailableError, match=r"was lost after 900,000 of .* 900,000 bytes are kept") as error:
        fetch(server.url())
    assert f"Get it on another machine and put it into {folder} as {NAME}" in str(error.value)
    assert not (folder / NAME).exists()
    assert fetch(server.url()).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-", f"bytes={3 * CUT}-"]


def test_a_server_that_ignores_ranges_sends_all_again(server: Server):
    server.faults, server.honours_range = ["cut"], False
    assert fetch(server.url()).read_bytes() == BODY


def test_a_complete_part_of_an_earlier_call_is_only_checked(server: Server, folder: Path):
    put(folder, f"{NAME}.part", BODY)
    assert fetch(server.url()).read_bytes() == BODY
    assert server.ranges == [f"bytes={len(BODY)}-"]


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(BODY), b"x" * (len(BODY) + 1)])
def test_a_part_of_another_file_is_not_kept(left: bytes, server: Server, folder: Path):
    put(folder, f"{NAME}.part", left)
    assert fetch(server.url()).read_bytes() == BODY
    assert server.ranges == [f"bytes={len(left)}-", None]


@pytest.mark.parametrize("body", [b"x" * 1000, BODY[:-1], b""])
def test_wrong_bytes_are_named_and_not_kept(body: bytes, server: Server, folder: Path):
    server.body = body
    with pytest.raises(WeightsError, match=rf"SHA-256 {hashlib.sha256(body).hexdigest()}, published is {DIGEST[:8]}"):
        fetch(server.url())
    assert not {NAME, f"{NAME}.part"} & files(folder)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_reported_without_another_attempt(status: int, server: Server):
    server.faults = [status]
    with pytest.raises(UnavailableError, match=rf"{NAME} can't be downloaded: the server answers {status} \w+"):
        fetch(server.url())
    assert len(server.ranges) == 1


@pytest.mark.parametrize("fault", [500, 503, 429, "hang-up"])
def test_server_errors_are_retried_and_then_reported(fault: int | str, server: Server):
    server.faults = [fault, fault]
    assert fetch(server.url()).read_bytes() == BODY
    server.faults = [fault] * 3
    with pytest.raises(UnavailableError, match=f"server answers {fault}" if isinstance(fault, int) else "was lost"):
        fetch(server.url("other.pth"))
    assert len(server.ranges) == 6


def test_a_server_that_is_down_is_tried_once(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "PAUSE_S", 60.0)
    with socket.socket() as closed:  # bound but not listening
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/models/{NAME}"
    with pytest.raises(UnavailableError, match=r"^http.*/net-.* no connection: .*refused.* Get it") as error:
        fetch(url)
    assert str(folder) in str(error.value)


def test_offline_mode_uses_cached_files_and_explains_where_to_put_missing_ones(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RCNN_OFFLINE", "1")
    with pytest.raises(UnavailableError, match=rf"RCNN_OFFLINE is set. Get {server.url()} .* into {folder} as {NAME}"):
        fetch(server.url())
    put(folder, NAME, BODY)
    assert fetch(server.url()).read_bytes() == BODY
    assert server.ranges == []


def test_a_file_that_torch_downloaded_is_checked_and_recorded(server: Server, folder: Path):
    put(folder, NAME, BODY)
    fetch(server.url())
    assert (folder / f"{NAME}.sha256").read_text().startswith(DIGEST)
    assert server.ranges == []


def test_a_damaged_file_is_named_and_left_in_place(server: Server, folder: Path):
    put(folder, NAME, b"mine")
    with pytest.raises(WeightsError, match=rf"{NAME} has the SHA-256 .*, published is {DIGEST[:8]}.* Delete or move"):
        fetch(server.url())
    assert files(folder) == {NAME}
    assert (folder / NAME).read_bytes() == b"mine"


def test_a_change_that_the_published_digits_do_not_show_is_seen_by_the_record(server: Server):
    """Without digits in the name, only the record can detect it."""
    path = fetch(server.url("net.pth"))
    path.write_bytes(BODY[:-1] + b"x")
    with pytest.raises(WeightsError, match=rf"net\.pth\.sha256 says {DIGEST}.* Delete or move both"):
        fetch(server.url("net.pth"))


def test_concurrent_calls_download_a_file_once(server: Server):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(fetch, [server.url()] * 4))
    assert {path.read_bytes() for path in paths} == {BODY}
    assert len(server.ranges) == 1


def test_a_cache_that_cannot_be_written_is_reported(server: Server, tmp_path: Path):
    (tmp_path / "hub").write_bytes(b"a file")
    with pytest.raises(UnavailableError, match=rf"{NAME} can't be written to .*; set TORCH_HOME to another folder"):
        fetch(server.url())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_reported_as_an_os_error(server: Server, folder: Path):
    folder.mkdir(parents=True)
    (folder / f"{NAME}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=os.strerror(28)):
        fetch(server.url())


def test_https_does_not_lead_to_http():
    request = urllib.request.Request("https://a.example/net.pth")
    with pytest.raises(urllib.error.URLError, match="not encrypted"):
        hub._Redirects().redirect_request(request, None, 302, "Found", {}, "http://b.example/net.pth")
