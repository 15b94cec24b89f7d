"""Locations of files: local paths, and addresses such as `s3://bucket/a.jpg`, which fsspec opens (extra `remote`).

`location` is the one place where a text becomes a location. The text of a remote location contains no credentials, so
it can be shown, logged and stored: the parameters of a presigned address are kept beside it, and only open it.
"""

import errno
import importlib
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from hashlib import blake2b
from http import HTTPStatus
from io import BufferedReader, BytesIO, RawIOBase, TextIOWrapper
from pathlib import Path
from socket import gaierror
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, NamedTuple, Self, TextIO, TypeVar
from urllib.parse import parse_qsl, quote, unquote

from rcnn.config import files
from rcnn.config.files import MB, UnfitFile
from rcnn.errors import ImageError, SettingsError, StorageError

Answer = TypeVar("Answer")


class Scheme(NamedTuple):
    """How addresses of a scheme are opened.

    Attributes:
        package: the package that opens them, in addition to fsspec; empty if there is none.
        credentials: where it finds credentials, for messages.
    """

    package: str
    credentials: str


_AZURE = Scheme("adlfs", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN")
_WEB = Scheme("aiohttp", "~/.netrc, and from presigned addresses, which expire")
SCHEMES: dict[str, Scheme] = {
    "s3": Scheme("s3fs", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine"),
    "gs": Scheme("gcsfs", "GOOGLE_APPLICATION_CREDENTIALS, or the service account of the machine"),
    "az": _AZURE,
    "abfs": _AZURE,
    "http": _WEB,
    "https": _WEB,
    "hdfs": Scheme("pyarrow", "HADOOP_USER_NAME, or a Kerberos ticket"),
    "memory": Scheme("", "nothing"),
}
"""Scheme of remote addresses -> how they are opened. `file://` stands for a local path."""

EXTRA = ("fsspec", "s3fs", "aiohttp")
"""Packages of the extra `remote`."""

_WEB_SCHEMES = ("http", "https")
_ADDRESS = re.compile(r"(https?|ftps?|rtsp|rtmp|s3|gs|hf|data):|[a-z][a-z0-9+.-]+:(:|//)", re.IGNORECASE)
_REMOTE = re.compile(rf"({'|'.join(SCHEMES)})://", re.IGNORECASE)
_SERVER = re.compile(r"[^:@\s]+(:\d{1,5})?")
_BUCKET = re.compile(r"[^:@\s]+")
_SIGNING = re.compile(
    r"x-(amz|goog)-.*|(aws|google)access(key)?id|(.*[-_])?(token|secret|password)|(.*[-_])?(api|access|auth)[-_]?key"
    r"|sig|signature|expires|policy|key-pair-id",
    re.IGNORECASE,
)
"""Names of parameters with which an address is signed, such as those of S3, Google and CloudFront."""
_AZURE_SIGNING = re.compile(r"s[eioprstv]|spr|sip|srt|sdd|sk(oid|tid|t|e|s|v)|saoid|suoid|scid", re.IGNORECASE)
"""Names of the other parameters of an address that has a signature `sig`, as Azure's have."""


_ANY_SLASHES = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # `Path` shortens `//`


def is_address(text: str) -> bool:
    """Return whether a text is an address of any scheme, such as `rtsp://camera`, rather than a path."""
    return _ADDRESS.match(text) is not None


def is_remote(location: "str | Location") -> bool:
    """Return whether a location, or the text of one, is remote. `file://` is local."""
    return isinstance(location, RemotePath) or (isinstance(location, str) and _REMOTE.match(location) is not None)


def location(text: "str | Location") -> "Location":
    """Return the location of a text: a `Path`, also for `file://`, or a `RemotePath`.

    Raises:
        SettingsError: it is an address that can't be opened: its scheme is unknown, it chains several schemes, or it
            contains a user, a password or a signature that can't be used. The message does not repeat these.
    """
    if not isinstance(text, str):
        return text
    if ":" not in text or not is_address(text):
        return Path(text)
    scheme, slashes, rest = text.partition("://")
    if not slashes or "::" in text or scheme.lower() not in (*SCHEMES, "file"):
        name = re.split("[:/]", text)[0].lower()
        if "::" in text:
            raise SettingsError(f"{name}:...: addresses with `::`, which chain several schemes, are not opened")
        known = ", ".join(f"{known}://" for known in (*SCHEMES, "file"))
        raise SettingsError(f"{name}:...: addresses of this kind are not opened; there are {known}")
    scheme = scheme.lower()
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise SettingsError("file://...: give the whole path of a local file, as in file:///data/a.jpg")
        return Path(unquote(slash + path))
    _check(scheme, rest)
    return _parsed(scheme, rest)


def image_location(text: "str | Location") -> "Location":
    """Return the location of an image, as `location` does.

    Raises:
        ImageError: as `SettingsError` for `location`.
    """
    try:
        return location(text)
    except SettingsError as error:
        raise ImageError(str(error)) from None


def normal(location: "Location") -> "Location":
    """Return a location without `.` and `..`, by its text alone."""
    return location.normal() if isinstance(location, RemotePath) else Path(os.path.normpath(location))


def slashed(text: str) -> str:
    """Return a path that a file contains with forward slashes; files written on Windows have backslashes."""
    return text.replace("\\", "/")


def name_below(text: str, root: "Location") -> str:
    """Return the path that a file of labels means by a text, with forward slashes.

    An address below a remote `root` is a path below it; other addresses are returned as they are.
    """
    if not is_address(text):
        return slashed(text)
    file = stored(text) if isinstance(root, RemotePath) and is_remote(text) else None
    return slashed(file.relative_to(root)) if isinstance(file, RemotePath) and file.is_relative_to(root) else text


def lies_in(location: "Location", folder: "Location") -> bool:
    """Return whether a location is a folder, or lies below it, by their texts alone."""
    if isinstance(location, RemotePath):
        return location.normal().is_relative_to(normal(folder))
    return isinstance(folder, Path) and location.is_relative_to(folder)


def local_path(location: "Location") -> Path:
    """Return a location that is known to be local as a path."""
    assert isinstance(location, Path), location
    return location


def common_folder(folders: "Iterable[Location]") -> "Location | None":
    """Return the absolute folder that all folders lie in; None if they share none, or only some are remote."""
    folders = [*folders]
    remote = [folder for folder in folders if isinstance(folder, RemotePath)]
    if not remote:
        return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders if isinstance(folder, Path)]))
    common = remote[0]
    while not all(folder.is_relative_to(common) for folder in remote):
        if common == common.parent:
            return None
        common = common.parent
    return common if len(remote) == len(folders) else None


def shown(text: str) -> str:
    """Return a text, such as a word of the command line, without the credentials of an address that it may be."""
    name, equals, value = text.partition("=") if not is_address(text) else ("", "", text)
    if not is_address(value):
        return text
    try:
        return f"{name}{equals}{location(value)}"
    except SettingsError:
        return f"{name}{equals}{value.partition(':')[0]}:..."


def absolute(text: "str | Location", what: str) -> str:
    """Return the text under which a later process finds a location: an absolute path, or an address.

    Raises:
        SettingsError: it is an address that can't be opened, or has parameters, which settings must not contain.
    """
    path = location(text)
    if isinstance(path, Path):
        return str(path.expanduser().resolve())
    if path.has_parameters:
        raise SettingsError(f"{what}: {path}: an address in the settings can't have parameters, such as a signature")
    return str(path)


def check_local(path: "str | Location", what: str) -> None:
    """Check that a path to write to is local.

    Raises:
        SettingsError: it is an address, or was one before `Path` took it for a path.
    """
    if isinstance(path, RemotePath) or _ANY_SLASHES.match(str(path)):
        raise SettingsError(f"{what} must be a local path, and an address was given")


def stored(text: str) -> "Location":
    """Return the location whose text is given, without the checks of `location`."""
    if "://" not in text:
        return Path(text)
    scheme, _, rest = text.partition("://")
    return _parsed(scheme.lower(), rest)


def _parsed(scheme: str, rest: str) -> "RemotePath":
    """Return the location of what follows `scheme://`."""
    query = ""
    if scheme in _WEB_SCHEMES:
        rest, _, query = rest.partition("#")[0].partition("?")
        rest, query = _quoted(rest, "%?"), _quoted(query, "%?")
    host, _, key = ("", "", rest.lstrip("/")) if scheme == "memory" else rest.partition("/")
    return RemotePath(scheme, host, key.rstrip("/"), query)


def _quoted(text: str, also_safe: str = "") -> str:
    """Percent-encode what can't be in an address; `%` too, unless it is among the characters that are `also_safe`."""
    return quote(text, safe=f"/:@!$&'()*+,;=~{also_safe}", errors="surrogateescape")


def _check(scheme: str, rest: str) -> None:
    """Check what follows `scheme://`.

    Raises:
        SettingsError: there is no name, or there is a user, a password or a signature that can't be used.
    """
    host, query = rest.partition("/")[0], ""
    if scheme in _WEB_SCHEMES:
        host = re.split("[/?#]", rest)[0]
    else:
        query = rest.partition("?")[2]
    if scheme == "abfs":  # container@account
        container, _, account = host.rpartition("@")
        hosts = [account, container or account]
    else:
        hosts = [host]
    if not host and scheme not in ("memory", "hdfs"):
        raise SettingsError(f"{scheme}://: a name is missing, as in {scheme}://NAME/folder")
    fits = (_SERVER if scheme in (*_WEB_SCHEMES, "hdfs") else _BUCKET).fullmatch
    if (host and not all(map(fits, hosts))) or any(_SIGNING.fullmatch(name) for name, _ in parse_qsl(query)):
        raise SettingsError(
            f"{scheme}://...: this address contains a user, a password or a signature, which are not read from it; "
            f"remove them. Credentials for {scheme}:// are read from {SCHEMES[scheme].credentials}"
        )


class RemotePath:
    """The location of a remote file or folder, with the methods of `Path` that readers use.

    Its text keeps `//` in keys, and shows no parameters of an address: those that sign it are left out, and a digest
    stands for the others, so that two pictures of one server have two names.

    Args:
        scheme: one of `SCHEMES`.
        host: bucket, container or server.
        key: what follows `/`; percent-encoded for `http` and `https`, like in the address.
        query: parameters of the address, which only opening it needs.
    """

    __slots__ = ("_query", "host", "key", "scheme")

    def __init__(self, scheme: str, host: str, key: str, query: str = "") -> None:
        self.scheme, self.host, self.key, self._query = scheme, host, key, query

    def __str__(self) -> str:
        return f"{self._address()}{self._shown_query()}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __lt__(self, other: Self) -> bool:
        return (self.scheme, self.host, self.key.split("/")) < (other.scheme, other.host, other.key.split("/"))

    def __reduce__(self) -> tuple[type[Self], tuple[str, str, str, str]]:
        return type(self), self._all()

    def __truediv__(self, name: "str | os.PathLike[str]") -> Self:
        return self.joinpath(name)

    def joinpath(self, *names: "str | os.PathLike[str]") -> Self:
        """Return the location of a name below this folder. `..` is not resolved (see `normal`)."""
        added = [self._quoted(os.fspath(name)) for name in names]
        return self._at("/".join(part for part in (self.key, *added) if part not in ("", ".")))

    @property
    def parts(self) -> tuple[str, ...]:
        """The scheme with the host, and the parts of the key."""
        return (f"{self.scheme}://{self.host}", *(map(self.unquoted, self.key.split("/")) if self.key else ()))

    @property
    def name(self) -> str:
        """The last part of the key; empty for a bucket."""
        return self.unquoted(self.key.rpartition("/")[2])

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        """The suffix of the name."""
        return Path(self.name).suffix

    @property
    def parent(self) -> Self:
        """The folder; a bucket is its own."""
        return self._at(self.key.rpartition("/")[0])

    def with_name(self, name: str) -> Self:
        """Return the location of another name in the same folder."""
        above, slash, _ = self.key.rpartition("/")
        return self._at(above + slash + self._quoted(name))

    def normal(self) -> Self:
        """Return the location without `.` and `..`, which do not lead above the bucket."""
        parts = list[str]()
        for part in self.key.split("/"):
            if self.unquoted(part) == "..":
                parts = parts[:-1]
            elif part != ".":
                parts.append(part)
        return self._at("/".join(parts))

    def name_below(self, folder: "Location | None") -> str:
        """Return the path below a folder, with what stands for the parameters of the address, or the whole text."""
        if folder is None or not self.is_relative_to(folder) or self == folder:
            return str(self)
        return self.relative_to(folder) + self._shown_query()

    def relative_to(self, folder: "Location") -> str:
        """Return the path below a folder, with slashes.

        Raises:
            ValueError: it is not below this folder.
        """
        if not (isinstance(folder, RemotePath) and self.is_relative_to(folder)):
            raise ValueError(f"{self} is not below {folder}")
        below = self.key[len(folder.key) :]
        return self.unquoted(below[1:] if folder.key else below)

    def is_relative_to(self, folder: "Location") -> bool:
        """Return whether this is a folder, or lies below it."""
        if not isinstance(folder, RemotePath):
            return False
        same = (self.scheme, self.host) == (folder.scheme, folder.host)
        return same and (self.key == folder.key or not folder.key or self.key.startswith(f"{folder.key}/"))

    def _at(self, key: str) -> Self:
        return type(self)(self.scheme, self.host, key)

    def _all(self) -> tuple[str, str, str, str]:
        return self.scheme, self.host, self.key, self._query

    def glob(self, pattern: str) -> "Iterator[RemotePath]":
        """Yield the entries of this folder whose names match; none if there is no such folder."""
        with suppress(FileNotFoundError), scan(self) as entries:
            yield from (self / entry.name for entry in entries if fnmatchcase(entry.name, pattern))

    def exists(self) -> bool:
        """Return whether there is a file or folder. This and the following methods raise `StorageError`."""
        return self._kind() is not None

    def is_dir(self) -> bool:
        """Return whether there is a folder: a key that other keys continue after a slash, or a page of a web server."""
        return self._kind() == "directory"

    def is_file(self) -> bool:
        """Return whether there is a file."""
        return self._kind() == "file"

    def stat(self) -> os.stat_result:
        """Return the type and size, the only facts about a remote file that are filled in.

        Raises:
            FileNotFoundError: there is no such file or folder.
        """
        info = _info(self)
        mode = stat.S_IFDIR if info["type"] == "directory" else stat.S_IFREG
        return os.stat_result((mode, 0, 0, 1, 0, 0, info.get("size") or 0, 0, 0, 0))

    def _kind(self) -> str | None:
        try:
            return _info(self)["type"]
        except FileNotFoundError:
            return None

    @property
    def has_parameters(self) -> bool:
        """Whether the address that opens it has parameters, such as a signature, which its text does not show."""
        return bool(self._query)

    def is_web(self) -> bool:
        """Return whether a web server is asked."""
        return self.scheme in _WEB_SCHEMES

    def _quoted(self, name: str) -> str:
        return _quoted(name) if self.is_web() else name

    def unquoted(self, part: str) -> str:
        """Return a part of an address as a name."""
        return unquote(part, errors="surrogateescape") if self.is_web() else part

    def url(self) -> str:
        """Return the address that opens it, which may contain a signature: it must not be shown, stored or logged."""
        return f"{self._address()}?{self._query}" if self._query else self._address()

    def _address(self) -> str:
        slash = "/" if self.key and self.host else ""
        return f"{self.scheme}://{self.host}{slash}{self.key}"

    def _shown_query(self) -> str:
        pairs = parse_qsl(self._query, True)
        azure = any(name.lower() == "sig" for name, _ in pairs)
        own = [
            f"{name}={value}"
            for name, value in pairs
            if not _SIGNING.fullmatch(name) and not (azure and _AZURE_SIGNING.fullmatch(name))
        ]
        return f"?{blake2b('&'.join(own).encode(errors='surrogateescape'), digest_size=8).hexdigest()}" if own else ""


Location = Path | RemotePath
"""Where a file or folder is."""


class RemoteEntry(NamedTuple):
    """An entry of a remote folder, with the methods of `os.DirEntry` that readers use."""

    name: str
    path: RemotePath
    folder: bool

    def is_dir(self) -> bool:
        """Return whether it is a folder."""
        return self.folder

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return not self.folder


TRIES, PAUSE_SECONDS = 3, 0.5
"""Number of times that a web server is asked, and the time in between. Other packages ask again themselves."""
MAX_REDIRECTS = 5
"""Maximum number of redirects of a web address that are followed."""
CONNECT_SECONDS, READ_SECONDS = 10, 60
"""Limits for connecting to a web server, and for waiting for its next bytes."""
MAX_FOLDERS = 10_000
"""Maximum number of folders of a web server, or of HDFS, that are searched."""
LISTING_SECONDS = 60
"""Time for which the list of a folder answers questions about its files."""

_filesystems: dict[tuple[int, str, str], Any] = {}
_TAGS = (
    "ETag",
    "etag",
    "generation",
    "VersionId",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "mtime",
    "modified",
)
"""Facts about a remote file, each of which tells whether its content has changed; the best comes first."""
_DENIED = re.compile("AccessDenied|Forbidden|Expired|Invalid(Access|Token|Client)|Signature|Credential|Auth|Permission")
"""Parts of codes and names of errors that only other credentials or rights can mend."""


def identity(location: Location) -> tuple[int | str, ...] | None:
    """Return what tells whether the content of a file has changed; None if that is not known, or there is no such file.

    Returns:
        Of a local file, its size, the times of the last changes of its content and status, ns, its device and inode; of
        a remote one, its size, and its entity tag, version or time of change.

    Raises:
        StorageError: as for `read_bytes`.
    """
    try:
        if isinstance(location, Path):
            facts = location.stat()
            return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_dev, facts.st_ino
        info = _info(location)
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    tag = next((str(info[name]) for name in _TAGS if info.get(name)), None)
    return None if tag is None or info.get("size") is None else (info["size"], tag.strip('"'))


def read_bytes(location: Location, max_bytes: int) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: there is no such file.
        UnfitFile: it is not a regular file, or has more than `max_bytes` bytes. The message does not name it.
        StorageError: a remote location can't be reached, or may not be read, or a package that opens it is missing.
    """
    if isinstance(location, Path):
        files.check_regular(location, max_bytes)
        return location.read_bytes()
    data = _read(location, max_bytes + 1)
    if len(data) > max_bytes:
        raise UnfitFile(f"it has more than {max_bytes // MB:,} MB, which are too many for such a file")
    return data


def read_text(location: Location, max_bytes: int) -> str:
    """Return the text of a UTF-8 file. A byte order mark is left out.

    Raises:
        OSError, UnfitFile, StorageError: as for `read_bytes`.
        UnicodeDecodeError: it is not UTF-8.
    """
    if isinstance(location, Path):
        return files.read_text(location, max_bytes)
    with TextIOWrapper(BytesIO(read_bytes(location, max_bytes)), encoding="utf-8-sig") as text:
        return text.read()


@contextmanager
def open_text(location: Location, max_bytes: int) -> Iterator[TextIO]:
    """Open a UTF-8 file that is too large for the memory, to read it line by line.

    A byte order mark is left out, and the ends of the lines are kept as they are. A remote file is received while it is
    read; a web server that fails in between is not asked again.

    Raises:
        OSError, UnfitFile, StorageError: as for `read_bytes`, also while the file is read.
        UnicodeDecodeError: while the file is read: it is not UTF-8.
    """
    if isinstance(location, Path):
        files.check_regular(location, max_bytes)
        with location.open(encoding="utf-8-sig", newline="") as file:
            yield file
        return
    filesystem = _filesystem(location)
    with (
        _asked(location, lambda: _stream(filesystem, location)) as source,
        BufferedReader(_Received(location, source, max_bytes), MB) as content,
        TextIOWrapper(content, encoding="utf-8-sig", newline="") as file,
    ):
        yield file


class _Received(RawIOBase):
    """The content of a remote file, of at most `max_bytes` bytes, as it is received. Errors are those of `_asked`."""

    def __init__(self, path: "RemotePath", source: Any, max_bytes: int) -> None:
        self._path, self._source, self._left, self._most = path, source, max_bytes, max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece: bytes = _asked(self._path, lambda: self._source.read(len(buffer)), tries=1)
        except _EmptyFile:
            return 0
        self._left -= len(piece)
        if self._left < 0:
            raise UnfitFile(f"it has more than {self._most // MB:,} MB, which are too many for such a file")
        buffer[: len(piece)] = piece
        return len(piece)


def check_regular(location: Location) -> None:
    """Check that a location may be opened as a file.

    Raises:
        OSError, UnfitFile: as for `rcnn.config.files.check_regular`.
        StorageError: as for `read_bytes`.
    """
    if isinstance(location, Path):
        files.check_regular(location)
    elif location.is_dir():
        raise UnfitFile("this is a folder, where a file is expected")


def read_ends(location: Location, count: int) -> bytes:
    """Return the first and the last bytes of a file, at most `count` each; of a web server, the first ones.

    Raises:
        OSError, UnfitFile, StorageError: as for `read_bytes`.
    """
    head = read_start(location, count)
    if len(head) < count or (isinstance(location, RemotePath) and location.is_web()):
        return head
    size = location.stat().st_size
    start = max(count, size - count)
    if start >= size:  # a server may refuse to send nothing
        return head
    if isinstance(location, RemotePath):
        filesystem = _filesystem(location)
        return head + _asked(location, lambda: filesystem.cat_file(location.url(), start=start, end=start + count))
    with location.open("rb") as file:
        file.seek(start)
        return head + file.read()


def read_start(location: Location, count: int) -> bytes:
    """Return the first bytes of a file, at most `count`.

    Raises:
        OSError, UnfitFile, StorageError: as for `read_bytes`.
    """
    if isinstance(location, RemotePath):
        return _read(location, count)
    files.check_regular(location)
    with location.open("rb") as file:
        return file.read(count)


@contextmanager
def local_copy(location: Location, max_bytes: int) -> Iterator[Path]:
    """Yield the path of a local file with the content of a file: of itself, or of a temporary copy with its suffix.

    Raises:
        OSError, UnfitFile, StorageError: as for `read_bytes`, for a remote file.
    """
    if isinstance(location, Path):
        yield location
        return
    with NamedTemporaryFile(suffix=location.suffix) as file:
        file.write(read_bytes(location, max_bytes))
        file.flush()
        yield Path(file.name)


def downloaded(path: RemotePath) -> Path:
    """Return a copy of a remote file in the user's cache. It is downloaded again if the remote file has changed.

    Raises:
        OSError, StorageError: as for `read_bytes`; or the cache can't be written.
    """
    facts = identity(path)
    key = blake2b(repr((str(path), facts)).encode(errors="surrogateescape"), digest_size=16).hexdigest()
    folder = files.cache_folder("remote") / key
    # A name may hold anything, `..` and slashes too. Messages about the copy show what is left of it.
    copy = folder / f"file-{re.sub(r'[^a-zA-Z0-9_.-]', '_', path.name)[-100:]}"
    if facts is not None and copy.exists():
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    with files.one_process_at_a_time(copy):
        if facts is not None and copy.exists():  # another process has just downloaded it
            return copy
        temporary = folder / f".{os.getpid()}-{threading.get_ident()}"
        try:
            copy_file(path, temporary)
            temporary.replace(copy)
        finally:
            temporary.unlink(missing_ok=True)
    return copy


def copy_file(location: Location, copy: Path) -> None:
    """Copy a file to a local one.

    Raises:
        OSError, StorageError: as for `read_bytes`.
    """
    if isinstance(location, Path):
        shutil.copyfile(str(location), copy)
        return
    filesystem = _filesystem(location)
    with copy.open("wb") as file:

        def receive() -> OSError | None:
            if file.tell():  # an earlier try has received a part
                file.seek(0)
                file.truncate()
            with _stream(filesystem, location) as source:
                while content := source.read(MB):
                    try:
                        file.write(content)
                    except OSError as error:  # of the local disk: raised here, it would seem to be the server's
                        return error
            return None

        with suppress(_EmptyFile):
            if (failure := _asked(location, receive)) is not None:
                raise failure


def _stream(filesystem: Any, path: RemotePath) -> Any:
    """Open a file to be read from its beginning to its end; a web server is not asked for the size first."""
    return filesystem.open(path.url(), "rb", **({"block_size": 0, "size": 1} if path.is_web() else {}))


def open_binary(location: Location, max_bytes: int) -> BinaryIO:
    """Open a file for reading; a remote one is read into memory, and has at most `max_bytes` bytes.

    Raises:
        OSError, UnfitFile, StorageError: as for `read_bytes`.
    """
    return location.open("rb") if isinstance(location, Path) else BytesIO(read_bytes(location, max_bytes))


def files_below(folder: RemotePath) -> Iterator[str]:
    """Yield the paths of all files below a folder, with slashes, in no particular order.

    A bucket is asked for all keys that begin with the folder, a thousand per request, so that keys with `//` are found.
    Their list is held in memory. Folders of a web server are read page by page.

    Raises:
        FileNotFoundError: there is no such folder.
        StorageError: as for `read_bytes`.
    """
    if folder.scheme in (*_WEB_SCHEMES, "hdfs"):
        folders = [(folder, "")]
        for _ in range(MAX_FOLDERS):
            if not folders:
                return
            top, below = folders.pop()
            with scan(top) as entries:
                for entry in entries:
                    name = f"{below}{entry.name}"
                    if entry.is_dir():
                        folders.append((top / entry.name, f"{name}/"))
                    else:
                        yield name
        raise StorageError(f"{folder}: there are more than {MAX_FOLDERS:,} folders here; give one of them")
    filesystem = _filesystem(folder)
    if folder.scheme == "s3":
        yield from _keys_below(filesystem, folder)
        return
    base = f"{filesystem._strip_protocol(folder.url())}/"
    names = _asked(folder, lambda: filesystem.find(folder.url()))
    filesystem.invalidate_cache()
    yield from (name.removeprefix(base) for name in names if name.startswith(base))


def _keys_below(filesystem: Any, folder: RemotePath) -> Iterator[str]:
    """Yield the keys below a folder of S3 without its own, page by page; s3fs would hold a dictionary of each."""
    start = f"{folder.key}/" if folder.key else ""
    page = {"NextContinuationToken": None}
    while page:
        token = page["NextContinuationToken"]
        words = {"Bucket": folder.host, "Prefix": start} | ({"ContinuationToken": token} if token else {})
        page = _asked(folder, lambda words=words: filesystem.call_s3("list_objects_v2", **words))
        keys = (entry["Key"] for entry in page.get("Contents", ()))
        yield from (key[len(start) :] for key in keys if not key.endswith("/"))  # which marks a folder
        page = page if page.get("IsTruncated") else {}


def walk_folders(top: Location) -> Iterator[tuple[Location, list[str]]]:
    """Yield a folder and those below it with the names of their folders, as `os.walk` does.

    Names that the caller removes from a list are not searched.

    Raises:
        StorageError: as for `read_bytes`.
    """
    if isinstance(top, Path):
        yield from ((Path(name), below) for name, below, _ in os.walk(top))
        return
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        with scan(folder) as entries:
            below = [entry.name for entry in entries if entry.is_dir()]
        yield folder, below
        waiting += [folder / name for name in reversed(below)]


@contextmanager
def scan(folder: Location) -> "Iterator[Iterator[os.DirEntry[str] | RemoteEntry]]":
    """Open the entries of a folder, as `os.scandir` does.

    Raises:
        OSError: there is no such folder.
        StorageError: as for `read_bytes`.
    """
    if isinstance(folder, Path):
        with os.scandir(folder) as entries:
            yield entries
        return
    filesystem = _filesystem(folder)
    slash = "/" if folder.is_web() else ""
    base = f"{filesystem._strip_protocol(folder.url())}/"
    refresh = {} if folder.is_web() else {"refresh": True}  # it answers later questions about its files, but is new
    found = dict[str, RemoteEntry]()
    for info in _asked(folder, lambda: filesystem.ls(folder.url() + slash, detail=True, **refresh)):
        text = info["name"].rstrip("/").removeprefix(base)
        name = folder.unquoted(text)
        if info["name"].startswith(base) and name and "/" not in name and not (folder.is_web() and set(text) & {*"?#"}):
            found[name] = RemoteEntry(name, folder / name, info["type"] == "directory")
    yield iter(found.values())


def _read(path: RemotePath, count: int) -> bytes:
    """Return at most `count` bytes. Only so many are requested, or received from a web server that sends more."""
    filesystem = _filesystem(path)

    def read() -> bytes:
        if not path.is_web():
            return filesystem.cat_file(path.url(), start=0, end=count)
        pieces, left = list[bytes](), count
        with _stream(filesystem, path) as file:
            while left and (piece := file.read(min(left, MB))):
                pieces.append(piece)
                left -= len(piece)
        return b"".join(pieces)

    try:
        return _asked(path, read)
    except _EmptyFile:
        return b""


def _info(path: RemotePath) -> dict[str, Any]:
    """Return what fsspec tells about a file or folder.

    Raises:
        FileNotFoundError: there is none.
        StorageError: as for `read_bytes`.
    """
    filesystem = _filesystem(path)
    info: dict[str, Any] = dict(_asked(path, lambda: filesystem.info(path.url())))
    if path.is_web():  # a page is an index of a folder, if it is asked for files
        info["type"] = "directory" if info.get("mimetype") == "text/html" else "file"
    elif path.scheme == "memory" and info["type"] == "file":
        info["modified"] = filesystem.modified(path.url())
    return info


def _filesystem(path: RemotePath) -> Any:
    """Return the fsspec file system of a location, one for each process, since a fork ends the threads of fsspec.

    Raises:
        StorageError: fsspec, or the package that opens such locations, is missing.
    """
    key = os.getpid(), path.scheme, path.host
    if key not in _filesystems:
        package = SCHEMES[path.scheme].package
        # Without its cache of instances: one that others made may have old lists of folders.
        options: dict[str, Any] = {"skip_instance_cache": True}
        if path.is_web():
            options |= {"simple_links": False, "encoded": True, "get_client": _web_client}
            options["max_redirects"] = MAX_REDIRECTS
        try:
            core = importlib.import_module("fsspec.core")
            if package:
                importlib.import_module(package)
        except ImportError as error:
            missing = error.name if error.name in EXTRA else package or "fsspec"
            install = "'rcnn[remote]'" if missing in EXTRA else missing
            raise StorageError(
                f"{path}: {path.scheme}:// needs the package {missing}, which can't be imported ({error}); install it "
                f"with: pip install {install}"
            ) from None
        made = _asked(path, lambda: core.url_to_fs(f"{path.scheme}://{path.host}/", **options))
        made[0].dircache.listings_expiry_time = LISTING_SECONDS
        _filesystems[key] = made[0]
    return _filesystems[key]


async def _web_client(**arguments: Any) -> Any:
    """Return a session for web addresses, which uses the proxies of the environment and checks redirects."""
    aiohttp = importlib.import_module("aiohttp")

    async def check(_session: Any, _context: Any, request: Any) -> None:
        target = request.response.headers.get("Location", "")
        if request.url.scheme == "https" and target.lower().startswith("http:"):
            raise _RedirectError("redirects to an address that is not encrypted")

    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(check)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    return aiohttp.ClientSession(trust_env=True, timeout=timeout, trace_configs=[tracing], **arguments)


class _RedirectError(Exception):
    """A web server redirects to an address that is not followed."""


class _EmptyFile(Exception):
    """A part of an empty file was requested, which some servers refuse."""


def _asked(path: RemotePath, request: Callable[[], Answer], tries: int = TRIES) -> Answer:
    """Return the answer to a request, or raise an error that names the location and has no credentials.

    The errors of the packages are not shown, since they may contain addresses with signatures.

    Raises:
        FileNotFoundError, IsADirectoryError: as usual.
        StorageError: as for `read_bytes`.
    """
    for attempt in range(1, tries + 1):
        try:
            return request()
        except Exception as error:
            failure, again = _translated(path, error)
            if not again or attempt == tries:
                raise failure from None
        time.sleep(PAUSE_SECONDS * attempt)
    raise AssertionError("unreachable: the last try returns or raises")


def _translated(path: RemotePath, error: Exception) -> tuple[Exception, bool]:
    """Return the error to raise in place of an error of a package, and whether to ask again."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    kinds = [type(link).__name__ for link in chain]
    status = next(filter(None, map(_status, chain)), None)
    code = next(filter(None, map(_code, chain)), "")
    causes = (link for link in reversed(chain) if isinstance(link, OSError) and link.errno)
    texts = (str(link.strerror) if isinstance(link, gaierror) else os.strerror(link.errno or 0) for link in causes)
    reason = code or (f"HTTP {status}" if status else next(texts, kinds[-1]))
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return _EmptyFile(), False
    if any("Redirect" in kind for kind in kinds):
        followed = f"at most {MAX_REDIRECTS} redirects are followed, to http and https, and from https to https only"
        return StorageError(f"{path}: redirects elsewhere; {followed}"), False
    denied = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    if denied or any(map(_DENIED.search, (code, *kinds))) or (path.scheme in ("az", "abfs") and "ValueError" in kinds):
        where = f"Credentials for {path.scheme}:// are read from {SCHEMES[path.scheme].credentials}"
        return StorageError(f"{path}: access was denied ({reason}). {where}"), False
    missing = isinstance(error, FileNotFoundError) and not (path.is_web() and status is None and len(chain) > 1)
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE) or (missing and status is None):
        return FileNotFoundError(errno.ENOENT, "there is no such file or folder", str(path)), False
    if isinstance(error, IsADirectoryError):
        return IsADirectoryError(errno.EISDIR, "this is a folder, where a file is expected", str(path)), False
    failed = path.is_web() and (status is None or status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500)
    return StorageError(f"{path}: can't be reached ({reason}); try again later"), failed


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an error of a package, if there is one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    numbers = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    return next((number for number in numbers if isinstance(number, int)), None)


def _code(error: BaseException) -> str:
    """Return the code of a service in an error of a package, such as `ExpiredToken`; empty if there is none."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else getattr(error, "error_code", None)
    return code if isinstance(code, str) and code.isalpha() else ""
