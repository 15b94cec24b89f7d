"""`rcnn look`: the pages that it opens, its messages, and its address."""

import re
import shutil
import sys
import webbrowser
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from starlette.testclient import TestClient

from rcnn.look import server
from rcnn.look.album import Album
from rcnn.look.finder import judge_detections
from rcnn.look.guard import Guard
from rcnn.metrics.types import Prediction

from .conftest import SMALL, Run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The addresses that were opened in the browser; each server ends once the album is open."""
    addresses: list[str] = []
    monkeypatch.setattr(webbrowser, "open", addresses.append)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setattr(Album, "start", Album.open)
    monkeypatch.setattr(server, "serve", Mock(side_effect=KeyboardInterrupt))
    return addresses


def test_the_browser_opens_the_address_that_is_printed(run: Run, opened: list[str], weights: Path, data: Path) -> None:
    for words in ((weights, data), (data,), (weights,), (data / "JPEGImages",)):
        outcome = run.ok("look", *words, "--port=23000")
        (address,) = re.findall(r"^http://127\.0\.0\.1:23\d{3}/pictures\?token=[\w-]{32}$", outcome.out, re.MULTILINE)
        assert opened.pop() == address
    run("look", data, "--no-open")
    assert not opened


def test_a_run_is_shown_with_its_weights_and_its_data(
    run: Run, opened: list[str], weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, counts = tmp_path / "run", []
    (folder / "weights").mkdir(parents=True)
    shutil.copy(weights, folder / "weights/best.safetensors")
    (folder / "config.yaml").write_text(f"data:\n  path: {data}\n")
    monkeypatch.setattr(server, "serve", lambda guard, _: None)
    monkeypatch.setattr(Album, "start", lambda album: (album.open(), counts.append(len(album.pictures))))
    run.ok("look", folder)
    (folder / "config.yaml").write_text("data:\n  path: nowhere\n")
    assert "nowhere" in run.ok("look", folder).out
    assert counts == [6, 0]


def test_a_user_connected_by_ssh_gets_the_command_for_a_tunnel(
    run: Run, opened: list[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    output = run("look", data).out
    port = re.findall(r"http://127\.0\.0\.1:(\d+)/", output)[0]
    assert f"ssh -L {port}:127.0.0.1:{port} " in output
    assert not opened


def test_a_warning_is_printed_if_other_machines_can_connect(run: Run, opened: list[str], data: Path) -> None:
    outcome = run.ok("look", data, "--host=0.0.0.0", "--no-open")
    assert "other machines can reach" in outcome.out
    assert run("look", data, "--host=203.0.113.1").code == 2


def test_a_missing_package_is_named_with_its_extra(
    run: Run, opened: list[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("rcnn.look.server")
    monkeypatch.setitem(sys.modules, "rcnn.look.server", None)
    run.fails(4, "pip install 'rcnn[look]'", "look", data)


def test_a_copy_with_corrected_labels_is_data_to_train_on(
    run: Run, opened: list[str], weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(album: Album) -> None:
        album.open()
        boxes = np.array([[52, 42, 76, 58], [10, 10, 50, 40]], np.float32)
        found = Prediction(boxes, np.array([0.9, 0.5], np.float32), np.array([0, 0]))
        album.judged[0] = judge_detections(found, album.pictures[0].truth)

    def serve(guard: Guard, _: object) -> None:
        client = TestClient(guard, base_url=f"http://{guard.host}")
        client.get(guard.address)
        found = client.get("/api/labels").json()["suggestions"]
        suggestion = next(one for one in found if one["kind"] == "missing_label")
        body = {"keys": [[suggestion[word] for word in ("picture", "detection", "object")]], "verdict": "change"}
        answer = client.post("/api/labels", json=body, headers={"origin": f"http://{guard.host}"})
        assert answer.json()["folder"] == "runs/look/shapes"

    monkeypatch.setattr(Album, "start", start)
    monkeypatch.setattr(server, "serve", serve)
    run.ok("look", weights, data)
    assert run.json("data", "check", "runs/look/shapes")["faults"] == []
    assert Path("runs/look/shapes/annotations/train.json").read_text().count('"bbox"') == 5
    outcome = run.ok("train", "runs/look/shapes", "--model=tiny-fpn", "--epochs=1", *SMALL)
    assert "4 images to train on, 2 to validate" in outcome.out


def test_an_audit_is_shown_without_a_model(
    run: Run, opened: list[str], weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Album] = []
    monkeypatch.setattr(server, "serve", lambda guard, _: None)
    monkeypatch.setattr(Album, "start", lambda album: (album.open(), shown.append(album)))
    run.ok("data", "audit", data, "--model", weights, "--out=a")
    run.ok("look", "a")
    run.ok("look", "a", data)
    for album in shown:
        assert (album.detector, len(album.pictures), sorted(album.judged), album.faults) == (None, 6, [*range(6)], {})
    run.fails(2, "leave out", "look", "a", "roi.nms=0.3")
    run.fails(3, "nowhere", "look", "a", "nowhere")
    Path("a/predictions/1.json").unlink()
    run.fails(2, "this audit is not finished: 0 of 1 folds", "look", "a")
    plan = Path("a/audit.yaml")
    plan.write_text(plan.read_text().replace(str(data), "moved"))
    Path("a/predictions/1.json").write_text("[]")
    run.fails(3, "its data (moved) does not exist here", "look", "a")
