"""Arrays of objects in a json file, each object with the byte that it starts at."""

import codecs
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

_SPACE = re.compile(r"[ \t\r\n]*")


class JsonFault(Exception):
    """A json file can't be read: `where` is `file:byte n`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class Located(NamedTuple):
    """An object of an array."""

    path: Path
    byte: int
    fields: dict[str, Any]

    @property
    def where(self) -> str:
        """`file:byte n`, n from 0."""
        return f"{self.path}:byte {self.byte}"

    def get(self, key: str, default: Any = None) -> Any:
        """A field of the object."""
        return self.fields.get(key, default)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, list[Located]]:
    """The named arrays of the object that a json file holds; everything else in it is parsed and forgotten.

    Raises:
        JsonFault: not UTF-8, not json, or an array is missing or holds something that is no object.
    """
    raw = path.read_bytes()
    mark = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    try:
        text = raw[mark:].decode()
    except UnicodeDecodeError as error:
        raise JsonFault(f"{path}:byte {error.start + mark}", "this is not UTF-8 text") from None
    scanner = _Scanner(path, text, mark)
    try:
        arrays = scanner.top(names)
    except json.JSONDecodeError as error:
        where = f"{path}:byte {len(text[: error.pos].encode()) + mark}"
        raise JsonFault(where, f"malformed json: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise JsonFault(f"{path}:byte {scanner.byte()}", f"malformed json: {error}") from None
    for name in names:
        if name not in arrays:
            raise JsonFault(f"{path}:byte {mark}", f"there is no array `{name}`; is this COCO detection?")
    return arrays


class _Scanner:
    """A place in json text that moves forward; bytes are counted along."""

    def __init__(self, path: Path, text: str, mark: int) -> None:
        self._path, self._text, self._decoder = path, text, json.JSONDecoder()
        self._place = 0
        self._counted, self._bytes = 0, mark

    def byte(self) -> int:
        """Byte of the present place. Counting from the last one keeps the whole file linear."""
        self._bytes += len(self._text[self._counted : self._place].encode())
        self._counted = self._place
        return self._bytes

    def top(self, names: Sequence[str]) -> dict[str, list[Located]]:
        """The named arrays of the object that is the whole text."""
        arrays: dict[str, list[Located]] = {}
        self._expect("{")
        more = not self._take("}")
        while more:
            name = self._value()
            if not isinstance(name, str):
                self._fail("a name in quotes is expected before this")
            self._expect(":")
            if name in names and self._peek() == "[":
                arrays[name] = self._array()
            else:
                self._value()
            more = self._take(",")
            if not more:
                self._expect("}")
        if self._peek():
            self._fail("something follows the end")
        return arrays

    def _array(self) -> list[Located]:
        items: list[Located] = []
        self._expect("[")
        more = not self._take("]")
        while more:
            if self._peek() != "{":
                self._fail("an object is expected here")
            byte = self.byte()
            items.append(Located(self._path, byte, self._value()))
            more = self._take(",")
            if not more:
                self._expect("]")
        return items

    def _peek(self) -> str:
        """The next character that isn't space; empty at the end."""
        match = _SPACE.match(self._text, self._place)
        self._place = match.end() if match else self._place
        return self._text[self._place : self._place + 1]

    def _take(self, character: str) -> bool:
        """Step over a character if it comes next."""
        there = self._peek() == character
        self._place += there
        return there

    def _expect(self, character: str) -> None:
        if not self._take(character):
            self._fail(f"`{character}` is expected here")

    def _value(self) -> Any:
        self._peek()
        value, self._place = self._decoder.raw_decode(self._text, self._place)
        return value

    def _fail(self, reason: str) -> NoReturn:
        raise json.JSONDecodeError(reason, self._text, self._place)
