"""The page of runs: it follows files that are being written, compares two runs, and changes nothing."""

import asyncio
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from rcnn.look import runs as runs_page
from rcnn.look.album import Album
from rcnn.look.runs import PICTURES, Runs, events
from rcnn.look.threads import FewThreads
from rcnn.report.charts import shown
from tests.pages import HOST, HOSTILE, Made, Tab, assert_accessible, assert_fits, client_of

from .test_labels import fingerprint
from .test_look_browser import Served, serving, stop, until

NAME = "a<b>&'-2"


@pytest.fixture
def folder(plain: Made, other: Made, tmp_path: Path) -> Path:
    """Two runs that have ended, the later one with a hostile name."""
    runs = tmp_path / "runs"
    for number, (made, name) in enumerate(((plain, "shapes-1"), (other, NAME))):
        run = runs / name
        shutil.copytree(made.folder, run)
        (run / "weights").mkdir()
        (run / "plots").mkdir()
        Image.new("RGB", (400, 300), (90, 120, 40 + number)).save(run / "plots/train-batch-1.jpg")
        os.utime(run / "config.yaml", (1e9 + number, 1e9 + number))
    (runs / "no-run").mkdir()
    return runs


def runs_client(folder: Path | None, home: Path) -> TestClient:
    client = client_of(Album(None, None), home, runs=folder)
    assert client.get("/").url.path == "/runs"
    return client


def row_of(epoch: int) -> str:
    return json.dumps({"epoch": epoch, "train_rpn_box": 0.5, "val_rpn_box": 0.6, "ap": 0.1 * epoch}) + "\n"


def test_the_table_shows_the_content_of_the_files(folder: Path, tmp_path: Path) -> None:
    client = runs_client(folder, tmp_path)
    body = client.get("/api/runs").json()
    assert [one["name"] for one in body["runs"]] == [NAME, "shapes-1"]
    assert body["first"] == body["runs"][0]["run"]
    for one in body["runs"]:
        assert (one["state"], one["epochs"], one["planned"], one["note"]) == ("ended", 2, 2, "")
        assert (one["best"], one["last"]) == (0.6, 0.6)
    assert Runs(folder, folder / "shapes-1").table()["first"] == 1
    assert runs_client(None, tmp_path).get("/api/runs").json() == {"folder": "", "first": None, "runs": []}


def test_incomplete_files_and_unfinished_runs_are_reported(folder: Path, tmp_path: Path) -> None:
    client, run = runs_client(folder, tmp_path), folder / "shapes-1"
    (run / "report.html").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write(row_of(3) + row_of(4)[:20])
    (row,) = (one for one in client.get("/api/runs").json()["runs"] if one["name"] == "shapes-1")
    assert (row["state"], row["epochs"]) == ("training", 3)
    assert "incomplete: lines 4 of metrics.jsonl" in row["note"]
    html = client.get(f"/api/runs/shown?runs={row['run']}").json()["html"]
    assert "incomplete: lines 4" in html
    assert html.count("<svg") > 1
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n{"epoch": "x", "ap": "<b>", "stage": "y", "train_loss": 1e300}\n')
        file.write('{"epoch": 1e308, "stage": -1e308}\n')
    assert client.get("/api/runs").json()["runs"][1]["epochs"] == 5
    assert client.get(f"/api/runs/shown?runs={row['run']}").status_code == 200
    for path in run.iterdir():
        if path.is_file():
            os.utime(path, (1e9, 1e9))
    for part in ("plots", "report/scores.json"):
        os.utime(run / part, (1e9, 1e9))
    assert {one["name"]: one["state"] for one in client.get("/api/runs").json()["runs"]}["shapes-1"] == "silent"
    (run / "config.yaml").write_text("train: [")
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe")
    notes = {one["name"]: one["note"] for one in client.get("/api/runs").json()["runs"]}
    assert "config.yaml" in notes["shapes-1"]
    assert not notes[NAME]
    shutil.rmtree(folder)
    assert client.get("/api/runs").json()["runs"] == []


def test_two_runs_are_compared_and_their_names_are_text(folder: Path, tmp_path: Path) -> None:
    html = runs_client(folder, tmp_path).get("/api/runs/shown?runs=0,1").json()["html"]
    assert "Compared" in html
    assert "train.lr" in html
    assert NAME not in html
    assert HOSTILE[0] not in html
    assert "a&lt;b&gt;" in html


def test_only_listed_pictures_are_sent_and_nothing_is_changed(folder: Path, tmp_path: Path) -> None:
    client, before = runs_client(folder, tmp_path), fingerprint(folder)
    answer = client.get("/api/runs/0/pictures/0")
    assert answer.content == (folder / NAME / "plots/train-batch-1.jpg").read_bytes()
    assert answer.headers["content-type"] == "image/jpeg"
    for path in ("0/pictures/1", "0/pictures/99", "9/pictures/0", "0/pictures/config.yaml", "0"):
        assert client.get(f"/api/runs/{path}").status_code == 404
    for words, status in (("x", 400), ("", 400), ("0,1,0", 400), ("-1", 400), ("7", 404)):
        assert client.get(f"/api/runs/shown?runs={words}").status_code == status
    for method in ("POST", "DELETE", "PUT"):
        for path in ("/api/runs", "/api/runs/0", "/runs", "/api/runs/0/pictures/0"):
            answer = client.request(method, path, headers={"origin": f"http://{HOST}"})
            assert answer.status_code in (404, 405)
    assert fingerprint(folder) == before
    (folder / NAME / "plots" / next(iter(PICTURES))).write_bytes(b"<script>")
    assert client.get("/api/runs/0/pictures/0").status_code == 404


def test_events_follow_changes_until_the_server_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_page, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(runs_page, "CHECKS_PER_BEAT", 3)
    ending = threading.Event()

    async def follow() -> list[str]:
        stream = events(Runs(folder), ending, FewThreads(1))
        received = [await anext(stream), await anext(stream)]
        with (folder / "shapes-1/metrics.jsonl").open("a") as file:
            file.write(row_of(3))
        while not received[-1].startswith("data"):
            received.append(await anext(stream))
        ending.set()
        return [*received, *[event async for event in stream]]

    with ThreadPoolExecutor(1) as thread:  # since the browser runs an event loop in this thread
        first, beat, *_, last = thread.submit(asyncio.run, asyncio.wait_for(follow(), 10)).result()
    assert beat == ":\n\n"
    before, after = (json.loads(event.removeprefix("data: "))["runs"] for event in (first, last))
    assert [one["epochs"] for one in before] == [2, 2]
    assert sorted(one["epochs"] for one in after) == [2, 3]


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> Iterator[Served]:
    yield from serving(Album(None, None), tmp_path, folder)


def test_the_page_follows_a_run_until_the_server_ends(served: Served, tab: Tab, folder: Path) -> None:
    page = tab.open(served.guard.address, "#shown section")
    boxes = page.locator("#runs input")
    assert page.locator("#runs tbody th").all_inner_texts() == [NAME, "shapes-1"]
    assert [box.is_checked() for box in boxes.all()] == [True, False]
    boxes.nth(1).check()
    until(page.locator("h3.run")).to_have_count(10)
    assert page.url.endswith("?runs=0,1")
    page.go_back()
    until(page.locator("h3.run")).to_have_count(0)
    page.locator(".batches img").scroll_into_view_if_needed()
    assert page.locator(".batches img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 400
    with (folder / NAME / "metrics.jsonl").open("a") as file:
        file.write(row_of(7))
    until(page.locator("#runs tbody tr").first).to_contain_text("training")
    until(page.locator("#runs tbody tr").first).to_contain_text(shown(0.7))
    until(page.locator("#shown tbody th", has_text="7")).to_have_count(1)
    assert not tab.said
    stop(served)
    page.wait_for_selector("#gone:not([hidden])")
    tab.said.clear()  # the browser reports the refused connection


def test_nothing_overlaps_and_the_page_is_accessible(served: Served, tab_without_policy: Tab) -> None:
    for width, scheme in ((1280, "light"), (1280, "dark"), (2560, "light")):
        page = tab_without_policy.enter(served, "/runs?runs=0,1", "h3.run", width=width, scheme=scheme)
        assert_fits(page, width)
        if width == 1280:
            assert_accessible(page, scheme)
