"""The server of `rcnn look`: its access control, the requests that it refuses, and its numbers."""

import io
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from rcnn.config import Settings
from rcnn.errors import ImageError
from rcnn.look import api
from rcnn.look.album import Album, Filters
from rcnn.look.guard import Guard
from rcnn.look.server import bind
from rcnn.look.thumbnails import Thumbnails
from rcnn.metrics.types import Prediction
from rcnn.report.gallery import judge
from tests.pages import HOST, Looked, client_of, guarded, png

HEADERS = {"host": HOST}
SAME = {"origin": f"http://{HOST}"}


class Site(NamedTuple):
    """A server, a client with access, and the lines of the log."""

    album: Album
    guard: Guard
    client: TestClient
    log: list[str]


@pytest.fixture
def site(looked: Looked, tmp_path: Path) -> Iterator[Site]:
    log: list[str] = []
    guard = guarded(looked.album, tmp_path, log=log.append)
    before = list(looked.album.pictures)
    with TestClient(guard, base_url=f"http://{HOST}", follow_redirects=False) as client:
        client.get(f"/pictures?token={guard.token}")
        yield Site(looked.album, guard, client, log)
    looked.album.pictures[:] = before
    for index in [index for index in looked.album.judged if index >= len(before)]:
        del looked.album.judged[index]


def test_a_token_admits_one_browser(site: Site) -> None:
    token = site.guard.token
    first, second = (TestClient(site.guard, base_url=f"http://{HOST}", follow_redirects=False) for _ in range(2))
    answer = first.get(f"/pictures/3?token={token}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/pictures/3")
    cookie = answer.headers["set-cookie"].lower()
    assert cookie.startswith("rcnn-8765=")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert second.get(f"/pictures?token={token}").status_code == 403
    assert second.get(site.guard.address).status_code == 303
    for client in (first, second):
        assert client.get("/pictures").status_code == 200
    assert first.get(f"/pictures?token={token}").headers["location"] == "/pictures"  # an old address, reloaded


def test_every_answer_has_the_headers_that_protect(site: Site) -> None:
    stranger = TestClient(site.guard, base_url=f"http://{HOST}")
    for answer in (site.client.get("/pictures"), site.client.get("/api/state"), stranger.get("/"), stranger.get("/x")):
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


def wrong_requests() -> Iterator[tuple[int, str, str, dict[str, str]]]:
    """Yield (status, method, address, headers)."""
    for host in ("evil.example", "127.0.0.1", "127.0.0.1:1", "localhost:8765", "", f"{HOST}.evil.example", f"x@{HOST}"):
        for path in ("/", "/pictures", "/api/state", "/static/look.js"):
            yield 421, "GET", path, {"host": host}
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        for path in ("/", "/api/pictures", "/api/pictures/0"):
            yield 405, method, path, SAME
    for origin in ("null", "http://evil.example", f"https://{HOST}", "http://127.0.0.1:1", ""):
        for path in ("/api/pictures", "/pictures", "/nowhere"):
            yield 403, "POST", path, {"origin": origin}
    for path in ("/pictures", "/api/state", "/api/tiles", "/api/pictures/0", "/static/look.js"):
        yield 405, "POST", path, SAME
    for path in ("/nowhere", "/api/pictures/99999", f"/api/pictures/{'9' * 900}/image", "/api/pictures/-1", "/api"):
        yield 404, "GET", path, {}
    for name in ("look.py", "../server.py", "..%2fserver.py", "%2e%2e/guard.py", "%2fetc/passwd", "....//guard.py"):
        yield 404, "GET", f"/static/{name}", {}
    hostile = "/a%0a%1b[31m /%00 /etc/passwd /api/pictures/..%2f..%2fetc%2fpasswd/image /pictures/a.jpg"
    for path in (*hostile.split(), "/api/pictures/0.png"):
        yield 404, "GET", path, {}
    scores, classes = ("x", "2", "nan", "-1"), ("9", "-1", "x", "1" * 5000)
    queries = [f"score={score}" for score in scores] + [f"class={label}" for label in classes]
    for query in (*queries, "size=huge", "mistake=x", "mistake=<script>"):
        yield 400, "GET", f"/api/pictures?{query}", {}
    for indices in ("x", "-1", "1.5", "99999", "9" * 5000, "0," * 501):
        yield 400, "GET", f"/api/tiles?indices={indices}", {}
    for query in ("nms=2", "nms=x", "nms=inf"):
        yield 400, "GET", f"/api/pictures/0?{query}", {}
    for path in (f"/pictures?{'x' * 20_000}", f"/api/pictures/{'9' * 5000}", f"/{'x' * 5000}"):
        yield 414, "GET", path, {}


def test_a_hundred_wrong_requests_get_4xx_and_a_line_each(site: Site) -> None:
    requests = list(wrong_requests())
    assert len(requests) >= 100
    for status, method, path, headers in requests:
        site.log.clear()
        answer = site.client.request(method, path, headers=headers)
        assert (answer.status_code, len(site.log)) == (status, 1), (method, path[:80], headers, answer.text[:200])
        assert site.log[0].startswith(f"{status} {method} /")
        assert len(site.log[0]) < 250
        assert site.log[0].isprintable()


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize("nms", [None, 0.0, 0.3, 0.9])
def test_detections_are_those_of_a_prediction_with_this_nms(site: Site, index: int, nms: float | None) -> None:
    detector, picture = site.album.detector, site.album.pictures[index]
    assert detector is not None
    body = site.client.get(f"/api/pictures/{index}", params={} if nms is None else {"nms": nms}).json()
    other = detector if nms is None else detector.with_settings([f"roi.nms={nms}"])
    (result,) = other.predict(str(picture.path), score=0)
    assert len(result) > 1
    for key, column in {"box": result.boxes, "score": result.scores, "label": result.labels}.items():
        assert [one[key] for one in body["detections"]] == column.tolist()
    assert picture.truth is not None
    prediction = Prediction(result.boxes, result.scores, result.labels)
    for threshold in (0.0, float(np.median(result.scores)), 0.9):
        judged = judge(index, picture.truth, prediction, threshold)
        sure = [one for one in body["detections"] if one["score"] >= np.float32(threshold) and not one["ignored"]]
        assert [one["object"] >= 0 for one in sure] == judged.right.tolist()
        lost = set(range(len(body["truth"]))) - {one["object"] for one in sure}
        assert sorted(row for row in lost if not body["truth"][row]["ignore"]) == judged.lost.tolist()
        assert all(bool(one["kind"]) == (one["object"] < 0) for one in sure)


def test_filters_agree_with_the_library(site: Site) -> None:
    album = site.album
    everything = range(len(album.pictures))
    scores = np.concatenate([found.prediction.scores for found in album.judged.values()])
    for threshold in (0.0, float(np.median(scores)), 1.0):
        query = {"score": threshold}
        judged = [
            judge(index, picture.truth, album.judged[index].prediction, threshold)  # type: ignore[arg-type]
            for index, picture in enumerate(album.pictures)
        ]
        expected = {
            "lost": [one.image for one in judged if len(one.lost)],
            "wrong": [one.image for one in judged if not one.right.all()],
            "any": [one.image for one in judged if one.mistakes],
            "none": [one.image for one in judged if not one.mistakes],
        }
        for mistake, indices in expected.items():
            assert site.client.get("/api/pictures", params={**query, "mistake": mistake}).json()["indices"] == indices
        tiles = site.client.get("/api/tiles", params={**query, "indices": ",".join(map(str, everything))}).json()
        for tile, one in zip(tiles, judged, strict=True):
            counts = [one.right.sum(), (~one.right).sum(), len(one.lost)]
            assert [tile["right"], tile["wrong"], tile["lost"]] == counts
    for label in range(len(album.names)):
        chosen = album.choose(Filters(label=label, score=1.0))
        with_class = [index for index in everything if label in album.pictures[index].truth.labels]  # type: ignore[union-attr]
        assert set(chosen) >= set(with_class)
    lists = [album.choose(Filters(list=name)) for name in ("train", "val")]
    assert sorted(lists[0] + lists[1]) == list(everything)


def test_pictures_and_thumbnails_are_pictures(site: Site, tmp_path: Path) -> None:
    for kind, most in (("thumbnail", 320), ("image", 4096)):
        for _ in range(2):  # the second time from the cache
            answer = site.client.get(f"/api/pictures/0/{kind}")
            assert max(Image.open(io.BytesIO(answer.content)).size) <= most
    assert len(list((tmp_path / "cache").glob("??/*.webp"))) == 1


def test_a_dropped_picture_is_predicted(site: Site) -> None:
    detector, content = site.album.detector, png(seed=5)
    assert detector is not None
    answer = site.client.post("/api/pictures", content=content, headers={**SAME, "x-name": "%3Cb%3Ea%0A.png"})
    assert answer.status_code == 201
    body = site.client.get(f"/api/pictures/{answer.json()['index']}").json()
    assert body["name"].startswith("<b>a")
    (result,) = detector.predict(Image.open(io.BytesIO(content)), score=0)
    assert [one["box"] for one in body["detections"]] == result.boxes.tolist()
    dropped = site.client.get("/api/pictures", params={"list": "dropped"}).json()["indices"]
    assert dropped == [answer.json()["index"]]


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"%PDF-1.4", png()[:200], b"<svg onload=alert(1)>", b"\x93NUMPY\x01\x00"]
)
def test_files_that_are_no_pictures_are_refused_and_deleted(site: Site, tmp_path: Path, content: bytes) -> None:
    answer = site.client.post("/api/pictures", content=content, headers={**SAME, "x-name": "a.png"})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("a.png: ")
    assert str(tmp_path) not in answer.text
    assert not list((tmp_path / "dropped").iterdir())


def test_uploads_have_bounds(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_BYTES", 1000)
    assert site.client.post("/api/pictures", content=b"x" * 1001, headers=SAME).status_code == 413
    monkeypatch.setattr(api, "MAX_BYTES", 10**6)
    monkeypatch.setattr(api, "MAX_DROPPED", 1)
    assert [site.client.post("/api/pictures", content=png(), headers=SAME).status_code for _ in "ab"] == [201, 409]
    few = site.album.settings.data.model_copy(update={"max_pixels": 9})
    small = site.album.settings.model_copy(update={"data": few})
    monkeypatch.setattr(api, "MAX_DROPPED", 9)
    monkeypatch.setattr(site.album.detector, "settings", small)
    assert "pixels" in site.client.post("/api/pictures", content=png(), headers=SAME).json()["error"]


def test_damaged_and_missing_pictures_are_reported(tmp_path: Path, looked: Looked) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(png())
    album = Album(lambda: looked.detector, tmp_path)
    album.open()
    (tmp_path / "a.png").write_bytes(png()[:100])
    (tmp_path / "b.png").unlink()
    client = client_of(album, tmp_path)
    for index, name in enumerate(("a.png", "b.png")):
        for kind in ("thumbnail", "image"):
            answer = client.get(f"/api/pictures/{index}/{kind}")
            assert answer.headers["content-type"] == "image/svg+xml"
            assert name in answer.text
            assert str(tmp_path) not in answer.text
        assert client.get(f"/api/pictures/{index}").json()["fault"].startswith(f"{name}: ")
    assert client.get("/api/pictures/2").json()["fault"] == ""


def test_the_page_opens_before_the_pictures_are_read(tmp_path: Path) -> None:
    album = Album(None, tmp_path / "nowhere")
    client = client_of(album, tmp_path)
    assert client.get("/pictures").status_code == 200
    assert client.get("/api/state").json() == {"ready": False, "failed": "", "read": [0, 0]}
    assert client.get("/api/pictures").status_code == 409
    album.start()
    while not album.failed:
        pass
    assert "nowhere" in client.get("/api/state").json()["failed"]


def test_a_folder_is_shown_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    album = Album(None, tmp_path)
    album.open()
    client = client_of(album, tmp_path)
    assert client.get("/api/state").json()["predicts"] is False
    assert client.get("/api/tiles?indices=0").json() == [{"index": 0, "name": "a.png", "objects": None}]
    assert client.get("/api/pictures/0").json()["detections"] is None
    assert client.post("/api/pictures", content=png(), headers=SAME).status_code == 409


def test_a_taken_port_gives_the_next_one() -> None:
    with bind("127.0.0.1", 20000) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        assert first.proto == socket.IPPROTO_TCP  # otherwise asyncio delays small answers
        assert second.getsockname()[1] > first.getsockname()[1]


def test_the_cache_stays_under_its_size(tmp_path: Path) -> None:
    thumbnails = Thumbnails(tmp_path / "cache", max_bytes=3000)
    for seed in range(8):
        file = tmp_path / f"{seed}.png"
        file.write_bytes(png(seed))
        thumbnails.get(file, Settings())
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("??/*")) <= 3000
    assert list((tmp_path / "cache").glob("??/*"))
    with pytest.raises(ImageError):
        thumbnails.get(tmp_path / "nowhere.png", Settings())
    (tmp_path / "file").touch()
    assert Thumbnails(tmp_path / "file").get(tmp_path / "0.png", Settings())  # no folder, no cache


def test_an_album_counts_the_images_that_it_reads(
    looked: Looked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time, their sizes and labels are in the cache."""
    monkeypatch.setattr("rcnn.data.cache.SETTLING_NS", 0)
    assert looked.album.data is not None
    data = Path(shutil.copytree(looked.album.data, tmp_path / "data"))
    time.sleep(0.05)
    first, second = (Album(lambda: looked.detector, data) for _ in range(2))
    first.open()
    assert first.read == (3, 3)
    second.open()
    assert second.read == (0, 0)
    assert [picture.name for picture in first.pictures] == [picture.name for picture in second.pictures]


def test_prediction_can_be_stopped(looked: Looked) -> None:
    assert looked.album.data is not None
    album = Album(lambda: looked.detector, looked.album.data)
    album.start()
    while not album.judged:
        pass
    album.stop()
    done = len(album.judged)
    assert done < len(album.pictures)
    assert album.predict(len(album.pictures) - 1) is not None
    assert len(album.judged) == done + 1
