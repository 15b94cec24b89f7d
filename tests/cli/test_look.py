"""`rcnn look`: what it opens, what it says, and where it listens."""

import re
import shutil
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from rcnn.look import server
from rcnn.look.album import Album
from rcnn.look.finder import judge_detections
from rcnn.look.guard import Guard
from rcnn.metrics.types import Prediction

from .conftest import SMALL, Outcome

Run = Callable[..., Outcome]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The addresses that the browser was sent to, by servers that end as soon as they have opened everything."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setattr("rcnn.look.album.Album.start", lambda album: album.open())

    def serve(guard: Guard, _: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "serve", serve)
    return addresses


def test_the_browser_is_sent_to_the_address_that_is_printed(
    run: Run, opened: list[str], weights: Path, data: Path
) -> None:
    for words in ((weights, data), (data,), (weights,), (data / "JPEGImages",)):
        outcome = run("look", *words, "--port=23000")
        assert outcome.code == 0, outcome.err
        (address,) = re.findall(r"^http://127\.0\.0\.1:23\d{3}/pictures\?token=[\w-]{32}$", outcome.out, re.MULTILINE)
        assert opened.pop() == address
    run("look", data, "--no-open")
    assert not opened


def test_a_run_brings_its_weights_and_its_data(
    run: Run, opened: list[str], weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "run", []
    (folder / "weights").mkdir(parents=True)
    shutil.copy(weights, folder / "weights/best.safetensors")
    (folder / "config.yaml").write_text(f"data:\n  path: {data}\n")
    monkeypatch.setattr(server, "serve", lambda guard, _: None)
    monkeypatch.setattr("rcnn.look.album.Album.start", lambda album: (album.open(), seen.append(len(album.pictures))))
    assert run("look", folder).code == 0
    (folder / "config.yaml").write_text("data:\n  path: nowhere\n")
    outcome = run("look", folder)
    assert outcome.code == 0
    assert "nowhere" in outcome.out
    assert seen == [6, 0]


def test_who_comes_by_ssh_is_told_how_to_get_the_page(
    run: Run, opened: list[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    outcome = run("look", data)
    port = re.findall(r"http://127\.0\.0\.1:(\d+)/", outcome.out)[0]
    assert f"ssh -L {port}:127.0.0.1:{port} " in outcome.out
    assert not opened


def test_other_machines_are_warned_of(run: Run, opened: list[str], data: Path) -> None:
    outcome = run("look", data, "--host=0.0.0.0", "--no-open")
    assert outcome.code == 0
    assert "other machines can reach" in outcome.out
    assert run("look", data, "--host=203.0.113.1").code == 2


def test_a_missing_package_is_named_with_its_extra(
    run: Run, opened: list[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("rcnn.look.server")
    monkeypatch.setitem(sys.modules, "rcnn.look.server", None)
    outcome = run("look", data)
    assert outcome.code == 4
    assert "pip install 'rcnn[look]'" in outcome.err


def test_a_copy_with_corrected_labels_is_data_to_train_on(
    run: Run, opened: list[str], weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(album: Album) -> None:
        album.open()
        boxes = np.array([[52, 42, 76, 58], [10, 10, 50, 40]], np.float32)
        seen = Prediction(boxes, np.array([0.9, 0.5], np.float32), np.array([0, 0]))
        album.judged[0] = judge_detections(seen, album.pictures[0].truth)

    def serve(guard: Guard, _: object) -> None:
        client = TestClient(guard, base_url=f"http://{guard.host}")
        client.get(guard.address)
        suggestion = client.get("/api/labels").json()["suggestions"][0]
        body = {"picture": suggestion["picture"], "detection": suggestion["detection"], "verdict": "right"}
        answer = client.post("/api/labels", json=body, headers={"origin": f"http://{guard.host}"})
        assert answer.json()["folder"] == "runs/look/shapes"

    monkeypatch.setattr(Album, "start", start)
    monkeypatch.setattr(server, "serve", serve)
    assert run("look", weights, data).code == 0
    checked = run("data", "check", "runs/look/shapes", "--json").json()
    assert checked["faults"] == []
    (annotations,) = Path("runs/look/shapes/annotations").glob("train.json")
    assert annotations.read_text().count('"bbox"') == 5
    outcome = run("train", "runs/look/shapes", "--model=tiny-fpn", "--epochs=1", *SMALL)
    assert outcome.code == 0, outcome.err
    assert "4 images to train on, 2 to validate" in outcome.out
