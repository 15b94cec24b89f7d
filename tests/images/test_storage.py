import importlib
import os
import pickle
import string
from collections import deque
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.config.files import UnfitFile
from rcnn.errors import SettingsError, StorageError
from rcnn.images import storage
from rcnn.images.storage import SCHEMES, RemotePath, identity, is_remote, location, read_bytes, read_start
from tests.remote import SECRET

KEYS = st.text(st.characters(codec="utf-8", exclude_characters="\0?#%"), min_size=1).filter(
    lambda key: "::" not in key and not key.endswith("/") and not key.startswith("/")
)


def test_texts_become_paths_or_remote_paths() -> None:
    assert location("data/a.jpg") == location(Path("data/a.jpg")) == Path("data/a.jpg")
    assert location("file:///data/a%20b.jpg") == location("file://localhost/data/a b.jpg") == Path("/data/a b.jpg")
    for scheme in SCHEMES:
        path = location(f"{scheme.upper()}://name/a/b.tar.gz")
        assert isinstance(path, RemotePath)
        assert is_remote(path)
        assert is_remote(str(path))
        assert str(path) == f"{scheme}://name/a/b.tar.gz"
        assert (path.name, path.stem, path.suffix) == ("b.tar.gz", "b.tar", ".gz")
        assert str(path.parent / "c") == f"{scheme}://name/a/c"
        assert path.relative_to(location(f"{scheme}://name/a")) == "b.tar.gz"
    assert not is_remote("file:///a.jpg")
    assert not is_remote("a.jpg")


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in ("http", "https", "memory")])
@given(key=KEYS)
def test_keys_are_kept_as_they_are(scheme: str, key: str) -> None:
    text = f"{scheme}://name/{key}"
    path = location(text)
    assert str(path) == text
    assert path == location(str(path)) == pickle.loads(pickle.dumps(path))
    assert path.parts == (f"{scheme}://name", *key.split("/"))
    assert path.parent.joinpath(path.name) == path or "" in key.split("/") or "." in key.split("/")
    assert hash(path) == hash(location(text))


def test_two_slashes_are_kept_and_folders_are_sorted_part_by_part() -> None:
    assert str(location("s3://bucket//a///b/")) == "s3://bucket//a///b"
    names = ["a-b/x", "a/x", "a//x", "a/b/x"]
    assert sorted(location(f"s3://b/{name}") for name in names) == [
        location(f"s3://b/{name}") for name in ("a//x", "a/b/x", "a/x", "a-b/x")
    ]


def test_names_on_web_servers_are_percent_encoded() -> None:
    folder = location("https://host:8000/data")
    assert str(folder / "100% a?#.jpg") == "https://host:8000/data/100%25%20a%3F%23.jpg"
    assert (folder / "100% a?#.jpg").name == "100% a?#.jpg"
    assert str(location("https://host/ä b.jpg")) == "https://host/%C3%A4%20b.jpg"
    assert str(location("https://host/%C3%A4%20b.jpg")) == "https://host/%C3%A4%20b.jpg"
    assert location("https://host/%C3%A4%20b.jpg").name == "ä b.jpg"


def test_parents_end_at_the_bucket() -> None:
    bucket = location("s3://bucket/a").parent
    assert str(bucket) == str(bucket.parent) == "s3://bucket"
    assert str((bucket / "a/../../../b/./c").normal()) == "s3://bucket/b/c"
    with pytest.raises(ValueError, match="is not below"):
        location("s3://bucket/ab/c").relative_to(location("s3://bucket/a"))


def test_pickles_are_small() -> None:
    assert len(pickle.dumps(location("s3://bucket/a.jpg"))) < 150


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("simplecache::s3://bucket/a.jpg", "chain several schemes"),
        ("zip://a.jpg::s3://bucket/a.zip", "chain several schemes"),
        ("s3://bucket/a::b", "chain several schemes"),
        *(
            (f"{scheme}://a/b", "of this kind are not opened; there are s3://")
            for scheme in ("ftp", "rtsp", "hf", "zip")
        ),
        ("data:image/png;base64,AAAA", "of this kind are not opened"),
        ("file://server/a.jpg", "the whole path of a local file"),
        ("s3:///a.jpg", "a name is missing, as in s3://NAME/folder"),
        ("https://", "a name is missing"),
    ],
)
def test_other_addresses_are_refused(text: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        location(text)


SECRETS = st.text(string.ascii_letters + string.digits + "+_-", min_size=20, max_size=40)
CARRIERS: dict[str, Callable[[str, str], str]] = {
    "user and password": lambda scheme, secret: f"{scheme}://user:{secret}@name/a.jpg",
    "user": lambda scheme, secret: f"{scheme}://{secret}@name/a.jpg",
    "two at signs": lambda scheme, secret: f"{scheme}://user@x:{secret}@name/a.jpg",
    "without host": lambda scheme, secret: f"{scheme}://user:{secret}",
    "chained": lambda scheme, secret: f"simplecache::{scheme}://user:{secret}@name/a.jpg",
    "other scheme": lambda scheme, secret: f"ftp://user:{secret}@name/a.jpg",
}
PARAMETERS = (
    *("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "AWSAccessKeyId", "Signature", "Expires"),
    *("X-Goog-Signature", "GoogleAccessId", "sig", "token", "access_token", "Policy", "Key-Pair-Id", "api_key"),
)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme != "abfs"])
@given(secret=SECRETS)
def test_users_and_passwords_are_refused_and_not_repeated(scheme: str, carrier: str, secret: str) -> None:
    with pytest.raises(SettingsError, match=r"not read|not opened") as error:
        location(CARRIERS[carrier](scheme, secret))
    assert secret not in str(error.value)


@pytest.mark.parametrize("parameter", PARAMETERS)
@given(secret=SECRETS, scheme=st.sampled_from(sorted(SCHEMES)))
def test_signatures_are_kept_out_of_texts(parameter: str, secret: str, scheme: str) -> None:
    text = f"{scheme}://name/a.jpg?x=1&{parameter}={secret}"
    if scheme not in ("http", "https"):
        with pytest.raises(SettingsError, match="a signature") as error:
            location(text)
        assert secret not in str(error.value)
        return
    path = location(text)
    assert isinstance(path, RemotePath)
    for shown in (str(path), repr(path), f"{path}", str(path.parent), str(path / "b"), path.name, *path.parts):
        assert secret not in shown
    assert secret in path.url()
    assert str(path) == str(location(text.replace(secret, "other")))  # signed again, it has the same name


@given(secret=SECRETS)
def test_other_parameters_are_shown_as_a_digest(secret: str) -> None:
    one, other = (location(f"https://host/a.jpg?id={text}&Expires=1") for text in (secret, secret[::-1] + "x"))
    assert secret not in str(one)
    assert str(one).startswith("https://host/a.jpg?")
    assert str(one) != str(other)
    assert secret not in str(location(f"https://host/a.jpg#{secret}"))


@pytest.mark.parametrize("name", ["id", "sku", "skip", "sdk", "key", "file_key", "sp", "si", "se", "page"])
def test_addresses_that_differ_in_what_does_not_sign_them_have_different_names(name: str) -> None:
    assert len({str(location(f"https://host/a.jpg?{name}={number}")) for number in range(3)}) == 3


def test_the_parameters_of_azures_signatures_have_no_part_in_a_name() -> None:
    signed = "sp=r&st=2026-11-25T09:00:00Z&se=2026-11-26&spr=https&sv=2024-11-04&sr=b&sig=abc&skoid=1&sktid=2&skv=3"
    assert str(location(f"https://account.blob.core.windows.net/c/a.jpg?{signed}")).endswith("/c/a.jpg")
    other = location(f"https://account.blob.core.windows.net/c/a.jpg?{signed}&snapshot=5")
    assert str(other) != str(location("https://account.blob.core.windows.net/c/a.jpg"))


def test_the_ends_of_a_file_of_just_that_size_are_read(memory: Any) -> None:
    memory.pipe("/bucket/a", b"12345678")
    path = location("memory://bucket/a")
    assert [storage.read_ends(path, count) for count in (3, 8, 9)] == [b"123678", b"12345678", b"12345678"]


def test_an_error_of_the_local_disk_is_not_the_servers(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/bucket/a.bin", bytes(100_000))
    path = location("memory://bucket/a.bin")
    with pytest.raises(FileNotFoundError) as missing:
        storage.copy_file(path, tmp_path / "nowhere/a.bin")
    assert missing.value.filename == str(tmp_path / "nowhere/a.bin")
    full = Path("/dev/full")
    if full.exists():
        with pytest.raises(OSError, match="No space left on device"):
            storage.copy_file(path, full)


@pytest.mark.parametrize("name", ["..%2F..%2Fx.safetensors", "a%2Fb.safetensors", "x" * 200 + ".safetensors"])
def test_a_download_stays_in_its_folder(
    name: str, serve: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "copy_file", lambda _, copy: copy.write_bytes(b"weights"))
    path = location(f"{serve(tmp_path)}/{name}")
    assert isinstance(path, RemotePath)
    monkeypatch.setattr(storage, "identity", lambda _: (7, "tag"))
    copy = storage.downloaded(path)
    assert copy.suffix == ".safetensors"
    assert copy.read_bytes() == b"weights"
    assert copy.parent.parent == tmp_path / "cache/rcnn/remote"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [copy]


def test_containers_of_azure_may_name_their_account() -> None:
    text = "abfs://container@account.dfs.core.windows.net/a.jpg"
    assert str(location(text)) == text
    with pytest.raises(SettingsError, match="a password") as error:
        location(f"abfs://container:{SECRET}@account/a.jpg")
    assert SECRET not in str(error.value)


def test_local_files_are_identified_by_their_status(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    assert identity(file) is None
    file.write_bytes(b"1")
    before = identity(file)
    assert before == identity(file)
    file.write_bytes(b"22")
    assert identity(file) != before
    assert identity(Path("a\0b")) is None


def test_files_in_memory_are_identified_and_read(memory: Any) -> None:
    path = location("memory://a/b.bin")
    assert not path.exists()
    assert identity(path) is None
    memory.pipe("/a/b.bin", b"12345")
    before = identity(path)
    assert before is not None
    assert before == identity(path)
    assert (path.is_file(), path.is_dir(), path.parent.is_dir(), path.stat().st_size) == (True, False, True, 5)
    assert read_bytes(path, 5) == b"12345"
    assert read_start(path, 2) == b"12"
    with pytest.raises(UnfitFile, match="too many"):
        read_bytes(path, 4)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_bytes(path.with_name("c"), 4)
    memory.pipe("/a/b.bin", b"12345")
    assert identity(path) != before


def test_objects_of_s3_are_identified_and_read(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="a//b.bin", Body=b"12345")
    s3.put_object(Bucket="bucket", Key="a/empty", Body=b"")
    path = location("s3://bucket/a//b.bin")
    before = identity(path)
    assert before is not None
    assert before == identity(path)
    assert (path.is_file(), path.is_dir(), location("s3://bucket/a").is_dir(), path.stat().st_size) == (
        True,
        False,
        True,
        5,
    )
    assert read_bytes(path, 5) == b"12345"
    assert read_bytes(location("s3://bucket/a/empty"), 5) == b""
    assert read_start(path, 2) == b"12"
    with pytest.raises(UnfitFile, match="too many"):
        read_bytes(path, 4)
    for gone in ("s3://bucket/a/b.bin", "s3://no-bucket/a"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_bytes(location(gone), 5)
        assert identity(location(gone)) is None
    s3.put_object(Bucket="bucket", Key="a//b.bin", Body=b"54321")
    assert identity(path) != before


def test_a_forked_process_reads_from_s3(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="a", Body=b"12345")
    path = location("s3://bucket/a")
    assert read_bytes(path, 5) == b"12345"
    child = os.fork()
    if not child:
        os._exit(0 if read_bytes(path, 5) == b"12345" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_server_that_can_not_be_reached_is_named(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSE_SECONDS", 0)
    with pytest.raises(
        StorageError, match=r"^http://127\.0\.0\.1:9/a\.jpg: can't be reached \(Connection refused\)"
    ) as error:
        read_bytes(location(f"http://127.0.0.1:9/a.jpg?sig={SECRET}"), 5)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_missing_packages_are_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, whole = SCHEMES[scheme].package, importlib.import_module

    def without(name: str) -> Callable[[str], Any]:
        def load(module: str) -> Any:
            if module.partition(".")[0] == name:
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)
            return whole(module)

        return load

    monkeypatch.setattr(storage, "_filesystems", {})
    monkeypatch.setattr(importlib, "import_module", without("fsspec"))
    with pytest.raises(StorageError, match=rf"{scheme}:// needs the package fsspec, .* pip install 'rcnn\[remote\]'"):
        read_bytes(location(f"{scheme}://name/a.jpg"), 5)
    if package:
        monkeypatch.setattr(importlib, "import_module", without(package))
        install = r"'rcnn\[remote\]'" if package in storage.EXTRA else package
        with pytest.raises(StorageError, match=rf"needs the package {package}, .* pip install {install}$"):
            read_bytes(location(f"{scheme}://name/a.jpg"), 5)


@pytest.mark.parametrize("text", ["", "a,ü\r\n\nb\rc", "\ufeffx;y\n" + "line of a long table\n" * 200_000])
def test_a_text_is_read_line_by_line_wherever_it_is(text: str, tmp_path: Path, place: Callable[[Path], str]) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    size = (tmp_path / "t.csv").stat().st_size
    for file in (tmp_path / "t.csv", location(f"{place(tmp_path)}/t.csv")):
        with storage.open_text(file, size) as lines:
            assert "".join(lines) == text.removeprefix("\ufeff")
        if size:
            with pytest.raises(UnfitFile, match="too many"), storage.open_text(file, size - 1) as lines:
                deque(lines, maxlen=0)
    with pytest.raises(FileNotFoundError), storage.open_text(location(f"{place(tmp_path)}/none.csv"), 9):
        pass


def test_a_text_that_is_cut_off_by_the_server_is_not_taken_for_all_of_it(
    serve: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text("line\n" * 1_000_000)

    def send_half(_: object, source: Any, target: Any) -> None:
        target.write(source.read(2_500_000))

    monkeypatch.setattr(SimpleHTTPRequestHandler, "copyfile", send_half)
    file = location(f"{serve(tmp_path)}/t.csv")
    with pytest.raises(StorageError, match=r"t\.csv: can't be reached"), storage.open_text(file, 10**7) as lines:
        deque(lines, maxlen=0)
