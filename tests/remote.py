"""A local S3 server, and the file system in memory of fsspec, for tests of remote data."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
"""The secret key of the tests, which nothing may show."""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Yield the address of an S3 server on this machine."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a client of a server with an empty bucket named `bucket`, which the environment gives access to."""
    import boto3

    from rcnn.images import storage

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(storage, "_filesystems", {})
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket"):
        for entry in page.get("Contents", ()):
            client.delete_object(Bucket="bucket", Key=entry["Key"])
    client.delete_bucket(Bucket="bucket")
    client.close()


@pytest.fixture
def memory() -> Iterator[Any]:
    """Yield the file system in memory of fsspec, empty."""
    filesystem = pytest.importorskip("fsspec").filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Yield a function that serves a folder on the web, and returns its address."""
    from rcnn.images import storage

    monkeypatch.setattr(storage, "_filesystems", {})
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with ExitStack() as stack:

        def start(folder: Path) -> str:
            handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


@pytest.fixture(params=["s3", "memory", "http"])
def place(request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """Return a function that puts a folder into one of several places, and returns its address."""

    def put(folder: Path) -> str:
        if request.param == "http":
            return str(request.getfixturevalue("serve")(folder))
        if request.param == "s3":
            upload(request.getfixturevalue("s3"), folder, "set/")
            return "s3://bucket/set"
        memory = request.getfixturevalue("memory")
        for name, content in files_below(folder).items():
            memory.pipe(f"/bucket/set/{name}", content)
        return "memory://bucket/set"

    return put


def files_below(folder: Path) -> Mapping[str, bytes]:
    """Return the content of all files below a folder by their paths below it."""
    files = (Path(name, file) for name, _, inner in os.walk(folder) for file in inner)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def upload(client: Any, folder: Path, prefix: str = "") -> None:
    """Copy a folder into the bucket."""
    for name, content in files_below(folder).items():
        client.put_object(Bucket="bucket", Key=f"{prefix}{name}", Body=content)
