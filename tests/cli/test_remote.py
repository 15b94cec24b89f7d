"""Commands on remote data: the results are those on a local copy, and nothing shows credentials."""

import io
import json
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rcnn.errors import StorageError
from rcnn.images import storage
from rcnn.images.decode import image_size, read_image
from rcnn.images.sources import MARK, files
from rcnn.images.storage import location
from tests.remote import SECRET, files_below, upload

from .conftest import Run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder of pictures in several formats, one of which is damaged."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    for number, name in enumerate(("a/1.jpg", "a/2 ü#%.png", "b/3.tif", "4.bmp")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 255, (70 + number, 90, 3), np.uint8)
        Image.fromarray(noise).save(folder / name)
    np.save(folder / "b/5.npy", rng.integers(0, 255, (70, 90, 3), np.uint8))
    (folder / "bad.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.fixture
def web(pictures: Path, serve: Callable[[Path], str]) -> str:
    """Return the address of a web server of the pictures."""
    return serve(pictures)


@pytest.fixture
def remote(pictures: Path, place: Callable[[Path], str]) -> str:
    """Return the address of the pictures in one of several places."""
    return place(pictures)


def test_pictures_are_found_and_read_like_local_ones(remote: str, pictures: Path) -> None:
    local, found = files(pictures), files(remote)
    assert [path.relative_to(location(remote)) for path in found] == [
        path.relative_to(pictures).as_posix() for path in local
    ]
    for here, there in zip(local, found, strict=True):
        if here.name != "bad.jpg":
            assert (read_image(here) == read_image(there)).all()
            assert image_size(here) == image_size(there)


def test_predictions_are_those_of_local_pictures(run: Run, weights: Path, remote: str, pictures: Path) -> None:
    rows = {}
    for name, source in (("here", pictures), ("there", remote)):
        run("predict", weights, source, "--out", name, "--format", "json,drawn,yolo", "--score", "0")
        text = Path(name, "results.json").read_text(encoding="utf-8")
        rows[name] = [row | {"path": location(row["path"]).name} for row in json.loads(text)]
    assert rows["here"] == rows["there"]
    assert len(rows["here"]) == 5
    here, there = files_below(Path("here")), files_below(Path("there"))
    assert {name: content for name, content in here.items() if name.startswith(("drawn", "yolo"))} == {
        name: content for name, content in there.items() if name.startswith(("drawn", "yolo"))
    }


def test_shards_of_a_remote_folder_are_those_of_a_local_one(
    run: Run, weights: Path, remote: str, pictures: Path
) -> None:
    rows = {}
    for name, source in (("here", pictures), ("there", remote)):
        for shard in ("1/2", "2/2"):
            run("predict", weights, source, "--shard", shard, "--out", name)
        run("merge", name)
        lines = Path(name, "results.jsonl").read_text(encoding="utf-8").splitlines()
        rows[name] = [json.loads(line) | {"path": None} for line in lines]
        for row in rows[name]:
            row["error"] = row["error"] and row["error"].rpartition(": ")[2]
    assert rows["here"] == rows["there"]
    assert [row["name"] for row in rows["there"] if row["error"]] == ["bad.jpg"]
    outcome = run("predict", weights, remote, "--shard", "1/2", "--out", "there", "--resume")
    assert "shard 1/2 is complete" in outcome.out


def test_results_in_a_bucket_are_not_read(s3: Any) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (20, 20)).save(picture, "PNG")
    for key in ("a/1.png", "a//2.png", "runs/drawn/1.png", f"runs/{MARK}", "a/notes.txt", "a/"):
        s3.put_object(Bucket="bucket", Key=key, Body=picture.getvalue())
    assert list(map(str, files("s3://bucket"))) == ["s3://bucket/a//2.png", "s3://bucket/a/1.png"]
    assert [path.name for path in files("s3://bucket/runs")] == ["1.png"]


def test_a_list_may_hold_addresses_and_paths(
    run: Run, weights: Path, s3: Any, web: str, pictures: Path, tmp_path: Path
) -> None:
    upload(s3, pictures, "set/")
    signed = f"{web}/4.bmp?X-Amz-Signature={SECRET}&X-Amz-Expires=9"
    addresses = ["s3://bucket/set/a/1.jpg", signed, str(pictures / "b/3.tif"), f"{web}/gone.png?sig={SECRET}"]
    Path("list").write_text("\n".join(addresses))
    outcome = run("predict", weights, "--list", "list", "--out", "out", "--format", "json,drawn")
    rows = json.loads(Path("out/results.json").read_text())
    assert [row["path"] for row in rows] == ["s3://bucket/set/a/1.jpg", f"{web}/4.bmp", str(pictures / "b/3.tif")]
    assert f"left out: {web}/gone.png: there is no such file" in outcome.out
    assert (Path("out/drawn") / web.replace("://", "/") / "4.bmp").is_file()
    run("predict", weights, "--list", "list", "--out", "shards", "--shard", "1/1")
    shown = outcome.out + outcome.err + "".join(map(str, files_below(Path("out"))))
    contents = [*files_below(Path("out")).values(), *files_below(Path("shards")).values()]
    assert SECRET not in shown
    assert not any(SECRET.encode() in content for content in contents)
    run.fails(2, "addresses must have no parameters", "predict", weights, "--list", "list", "--format", "voc")


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("s3://no-bucket/a", 3, "s3://no-bucket/a: there is no such file or folder"),
        ("s3://bucket/gone.jpg", 3, "s3://bucket/gone.jpg: there is no such file or folder"),
        ("s3://bucket/*.jpg", 3, "wildcards in addresses are not resolved"),
        ("s3://bucket", 3, "s3://bucket: no image in this folder"),
        (f"s3://key:{SECRET}@bucket/a.jpg", 3, "a user, a password or a signature"),
        (f"s3://bucket/a.jpg?X-Amz-Signature={SECRET}", 3, "a user, a password or a signature"),
    ],
)
def test_a_wrong_address_is_named_without_its_credentials(
    run: Run, weights: Path, s3: Any, source: str, code: int, message: str
) -> None:
    outcome = run.fails(code, message, "predict", weights, source)
    assert SECRET not in outcome.err + outcome.out


def test_lost_access_stops_a_shard_with_the_command_to_continue(
    run: Run, weights: Path, s3: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures that may not be read are not rows of damaged pictures."""
    upload(s3, pictures)
    whole, reads = storage._read, []

    def expiring(path: storage.RemotePath, count: int) -> bytes:
        reads.append(path)
        if len(reads) > 2:
            raise StorageError(f"{path}: access was denied (ExpiredToken). Credentials ...")
        return whole(path, count)

    monkeypatch.setattr(storage, "_read", expiring)
    words = ("predict", weights, "s3://bucket", "--shard", "1/1", "--out", "out")
    outcome = run.fails(1, "access was denied (ExpiredToken)", *words)
    assert "Finished images are kept. Continue with: rcnn predict" in outcome.err
    assert "--resume" in outcome.err
    monkeypatch.setattr(storage, "_read", whole)
    assert "shard 1/1 is complete: 6 images, 1 of them unreadable" in run(*words, "--resume").out


def test_denied_access_is_told_from_missing_files(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    answers = {"AccessDenied": 403, "ExpiredToken": 400, "InvalidAccessKeyId": 403, "SignatureDoesNotMatch": 403}
    for code, status in answers.items():
        response: Any = {"Error": {"Code": code, "Message": SECRET}, "ResponseMetadata": {"HTTPStatusCode": status}}
        failure, again = storage._translated(location("s3://bucket/a"), ClientError(response, "GetObject"))
        assert isinstance(failure, StorageError)
        assert str(failure).startswith(f"s3://bucket/a: access was denied ({code})")
        assert "AWS_ACCESS_KEY_ID" in str(failure)
        assert not again


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda web: f"{web}/4.bmp", None),
        (lambda _: "ftp://127.0.0.1/a.jpg", "redirects elsewhere; at most 5 redirects"),
        (lambda _: "file:///etc/passwd", "redirects elsewhere; at most 5 redirects"),
        (lambda web: f"{web}/again", "redirects elsewhere; at most 5 redirects"),
    ],
)
def test_redirects_are_followed_within_the_web_only(
    web: str, monkeypatch: pytest.MonkeyPatch, target: Callable[[str], str], message: str | None, pictures: Path
) -> None:
    plain = SimpleHTTPRequestHandler.do_GET

    def do_get(self: SimpleHTTPRequestHandler) -> None:
        if self.path != "/again":
            return plain(self)
        self.send_response(302)
        self.send_header("Location", target(web))
        self.send_header("Content-Length", "0")
        return self.end_headers()

    monkeypatch.setattr(SimpleHTTPRequestHandler, "do_GET", do_get)
    if message is None:
        assert (read_image(f"{web}/again") == read_image(pictures / "4.bmp")).all()
        return
    with pytest.raises(StorageError, match=message):
        read_image(f"{web}/again")


@pytest.mark.parametrize(
    "words", [("predict", "{weights}", "{pictures}"), ("data", "convert", "{pictures}", "--to", "coco")]
)
def test_results_are_written_to_local_folders(run: Run, weights: Path, pictures: Path, words: tuple[str, ...]) -> None:
    filled = [word.format(weights=weights, pictures=pictures) for word in words]
    run.fails(2, "--out must be a local path, and an address was given", *filled, "--out", "s3://bucket/out")
