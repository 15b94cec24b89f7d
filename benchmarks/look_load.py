"""`rcnn look` under load: the longest wait of a good client, and the memory of the server.

    python benchmarks/look_load.py [--model blood-cells] [--half-open 1100] [--uploads 24] [--megabytes 60]
        [--computing 200] [--pictures 40] [--seconds 20]

Another process opens connections with incomplete headers, again a second after the server has closed them, uploads
pictures, and opens and explains pictures without a pause, all at the same time. Meanwhile a client requests a page, its
script, the state of the pictures and the table of runs, in new connections and in one that stays open, and follows the
events of the runs.
"""

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image

SIZE = (480, 640)
FILES = 4000
"""Number of files that the process of the bad clients may open."""

PATHS = ("/pictures", "/static/look.js", "/api/state", "/api/runs")
HALVES = (b"", b"G", b"GET /pictures HTTP/1.1\r\nHost: localhost\r\nX: ")
LOADED = """
import sys, rcnn
detector = rcnn.load(sys.argv[1])
detector.predict(sys.argv[2])
print([line for line in open("/proc/self/status") if line.startswith("VmRSS")][0].split()[1])
"""
"""Prints the memory of a process that has loaded a detector and predicted a picture, in KiB."""


class Site(NamedTuple):
    """Address and cookie of a server."""

    port: int
    cookie: str

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request with access."""
        return {"Cookie": self.cookie, "Origin": f"http://127.0.0.1:{self.port}"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="blood-cells")
    parser.add_argument("--half-open", type=int, default=1100)
    parser.add_argument("--uploads", type=int, default=24)
    parser.add_argument("--megabytes", type=float, default=60)
    parser.add_argument("--computing", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--bad", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bad:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most if most < FILES else FILES, most))
        asyncio.run(attack(Site(int(options.bad[0]), options.bad[1]), options))
    else:
        run(options)


def run(options: argparse.Namespace) -> None:
    """Start a server, and print the waits of a good client and the memory of the server."""
    with TemporaryDirectory() as temporary:
        top = Path(temporary)
        make(top / "images", options.pictures)
        with server(top, options.model, str(top / "images")) as (process, site):
            figures = measure(process.pid, site, options)
        command = [sys.executable, "-c", LOADED, options.model, str(top / "images/0.jpg")]
        bare = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    told = ", ".join(f"{name} {(figure - bare) / 1024:.0f} MiB more" for name, figure in figures.items())
    print(f"memory of a loaded detector: {bare / 1024:.0f} MiB; of the server {told}")


def measure(process: int, site: Site, options: argparse.Namespace) -> dict[str, int]:
    """Print the waits of a good client before, during and after the load; return the memory of the server in KiB."""
    ending, streamed = threading.Event(), list[float]()
    events = HTTPConnection("127.0.0.1", site.port, timeout=300)
    events.request("GET", "/api/runs/events", headers=site.headers)
    threading.Thread(target=follow, args=(events, ending, streamed), daemon=True).start()
    report("alone", *wait(site, 20))
    figures = {"before": memory(process, "VmRSS")}
    words = ("--half-open", "--uploads", "--megabytes", "--computing", "--pictures", "--seconds")
    numbers = [str(getattr(options, word[2:].replace("-", "_"))) for word in words]
    arguments = [word for pair in zip(words, numbers, strict=True) for word in pair]
    command = [sys.executable, __file__, *arguments, "--bad", str(site.port), site.cookie]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bad:
        longest, count = {}, 0
        while bad.poll() is None:
            waits, done = wait(site, 1)
            longest = {path: max(seconds, longest.get(path, 0.0)) for path, seconds in waits.items()}
            count += done
        assert bad.stdout is not None
        told = json.loads(bad.stdout.read())
    report("under load", longest, count)
    print(f"    of bad clients: {', '.join(f'{number} {name}' for name, number in told.items())}")
    time.sleep(5)
    report("afterwards", *wait(site, 20))
    ending.set()
    print(f"    the events of the runs: {'still connected' if streamed and not streamed[-1] else 'closed'}")
    return figures | {"at the peak": memory(process, "VmHWM"), "afterwards": memory(process, "VmRSS")}


def report(name: str, longest: dict[str, float], count: int) -> None:
    """Print the longest waits."""
    waits = ", ".join(f"{path} {seconds:.3f} s" for path, seconds in longest.items())
    print(f"{name}: the longest of {count} waits {max(longest.values()):.3f} s ({waits})", flush=True)


def wait(site: Site, turns: int) -> tuple[dict[str, float], int]:
    """Return the longest wait for each path, and the number of requests."""
    longest = dict.fromkeys(PATHS, 0.0)
    kept = HTTPConnection("127.0.0.1", site.port, timeout=300)
    for turn in range(2 * turns):
        for path in PATHS:
            connection = kept if turn % 2 else HTTPConnection("127.0.0.1", site.port, timeout=300)
            start = time.perf_counter()
            connection.request("GET", path, headers=site.headers)
            answer = connection.getresponse()
            answer.read()
            longest[path] = max(longest[path], time.perf_counter() - start)
            assert answer.status == 200, (path, answer.status)
            if connection is not kept:
                connection.close()
        time.sleep(0.02)
    kept.close()
    return longest, 2 * turns * len(PATHS)


def follow(events: HTTPConnection, ending: threading.Event, streamed: list[float]) -> None:
    """Read the events of the runs, and append 0 for each line and 1 at the end."""
    with suppress(OSError):
        for _ in events.getresponse():
            streamed.append(0)
            if ending.is_set():
                return
    streamed.append(1)


async def attack(site: Site, options: argparse.Namespace) -> None:
    """Act as all bad clients at once, and print what they did as JSON."""
    end = time.monotonic() + options.seconds
    counts = dict.fromkeys(("connections closed", "pictures taken", "uploads refused", "computations answered"), 0)
    side = int((options.megabytes * 1e6 / 3) ** 0.5)
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8).tobytes()
    picture = f"P6 {side} {side} 255\n".encode() + pixels
    common = "".join(f"{name}: {value}\r\n" for name, value in site.headers.items())
    start = f"HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\n{common}"

    async def half_open(number: int) -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
                writer.write(HALVES[number % len(HALVES)])
                while await reader.read(1000):
                    pass
                writer.close()
            counts["connections closed"] += 1
            await asyncio.sleep(1)

    async def send(header: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect and send a header at once, since this process is busy with its other connections."""
        connection = socket.create_connection(("127.0.0.1", site.port))
        connection.sendall(header.encode())
        return await asyncio.open_connection(sock=connection)

    async def upload(_: int) -> None:
        reader, writer = await send(f"POST /api/pictures {start}Content-Length: {len(picture)}\r\n\r\n")
        with suppress(OSError):
            for place in range(0, len(picture), 100_000):
                writer.write(picture[place : place + 100_000])
                await writer.drain()
        with suppress(OSError):
            counts["pictures taken" if b" 201 " in await reader.readline() else "uploads refused"] += 1
        writer.close()

    async def compute(number: int) -> None:
        while True:
            what = ("/explain", "/image", "", "?nms=0.4")[number % 4]
            with suppress(OSError):
                path = f"/api/pictures/{number % options.pictures}{what}"
                reader, writer = await send(f"GET {path} {start}Connection: close\r\n\r\n")
                counts["computations answered"] += b" 200 " in await reader.readline()
                while await reader.read(100_000):
                    pass
                writer.close()

    clients = ((half_open, options.half_open), (upload, options.uploads), (compute, options.computing))
    tasks = [asyncio.create_task(client(index)) for client, number in clients for index in range(number)]
    uploads = tasks[options.half_open : options.half_open + options.uploads]
    await asyncio.wait(uploads, timeout=10 * options.seconds)
    await asyncio.sleep(max(0, end - time.monotonic()))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    print(json.dumps(counts))


def make(folder: Path, number: int) -> None:
    """Write pictures of random blocks."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(number):
        blocks = rng.integers(0, 255, (SIZE[0] // 20, SIZE[1] // 20, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(20, axis=0).repeat(20, axis=1)).save(folder / f"{index}.jpg")


@contextmanager
def server(top: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], Site]]:
    """Start `rcnn look`, and yield its process when its pictures are open."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(top / "cache"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "rcnn", "look", *words, "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=top) as process:
        assert process.stdout is not None
        try:
            address = next(line.strip() for line in process.stdout if line.startswith("http"))
            threading.Thread(target=process.stdout.read, daemon=True).start()
            port = int(address.split(":")[2].partition("/")[0])
            connection = HTTPConnection("127.0.0.1", port)
            connection.request("GET", "/pictures" + address.partition("/pictures")[2])
            site = Site(port, connection.getresponse().headers["set-cookie"].partition(";")[0])
            while not state(site)["ready"]:
                time.sleep(0.1)
            yield process, site
        finally:
            process.terminate()


def state(site: Site) -> dict[str, object]:
    """Return the state of the pictures."""
    connection = HTTPConnection("127.0.0.1", site.port)
    connection.request("GET", "/api/state", headers=site.headers)
    return json.loads(connection.getresponse().read())


def memory(process: int, name: str) -> int:
    """Return a figure of the memory of a process in KiB."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


if __name__ == "__main__":
    main()
