"""Parse XML files, whole or element by element, with line numbers."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from xml.parsers import expat

from rcnn.config.files import MB, check_regular
from rcnn.images.storage import Location, open_binary, read_bytes, read_start

MAX_DEPTH = 100
"""Maximum depth of nested elements."""

MAX_XML_BYTES = 16 * MB
"""Maximum size of the annotation of an image, bytes."""

_HEAD_BYTES = 4096
_PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class Node:
    """An XML element: its tag without namespace, the line where it starts, its text and its children."""

    tag: str
    line: int
    text: str = ""
    children: list["Node"] = field(default_factory=list)

    def get(self, tag: str) -> "Node | None":
        """Return the first child with this tag, or None."""
        return next((child for child in self.children if child.tag == tag), None)

    def value(self, tag: str, default: str = "") -> str:
        """Return the stripped text of the first child with this tag, or the default."""
        child = self.get(tag)
        return default if child is None else child.text.strip()


class MalformedXml(Exception):
    """An XML file can't be parsed. The message gives the reason."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


class XmlHandler(Protocol):
    """Receives the elements of a file one by one. A `ValueError` that it raises ends the parsing."""

    def start(self, tag: str, attributes: dict[str, str], line: int) -> None:
        """Take the beginning of an element: its tag without namespace, its attributes and its line."""

    def text(self, data: str) -> None:
        """Take a piece of text."""

    def end(self) -> None:
        """Take the end of the element that began last."""


def parse_xml(path: Location) -> Node:
    """Parse an XML file.

    Raises:
        MalformedXml: the file is not well-formed, declares entities, is too large or can't be read.
    """
    tree = _Tree()
    parser = _parser(tree)
    with _malformed(parser):
        parser.Parse(read_bytes(path, MAX_XML_BYTES), True)
    return tree.top.children[0]


class _Tree:
    """Builds a tree of nodes; `top` has the element of the document as its only child."""

    def __init__(self) -> None:
        self.top = Node("", 0)
        self._stack = [self.top]

    def start(self, tag: str, attributes: dict[str, str], line: int) -> None:
        node = Node(tag, line)
        self._stack[-1].children.append(node)
        self._stack.append(node)

    def text(self, data: str) -> None:
        self._stack[-1].text += data

    def end(self) -> None:
        self._stack.pop()


def stream_xml(path: Location, handler: XmlHandler, max_bytes: int) -> None:
    """Pass the elements of an XML file to a handler, without holding a local file in memory.

    Raises:
        MalformedXml: as for `parse_xml`, for a file of more than `max_bytes` bytes, or from a `ValueError`.
    """
    parser = _parser(handler)
    with _malformed(parser):
        if isinstance(path, Path):
            check_regular(path, max_bytes)
        with open_binary(path, max_bytes) as file:
            while data := file.read(_PIECE_BYTES):
                parser.Parse(data, False)
        parser.Parse(b"", True)


def is_cvat(path: Location) -> bool:
    """Return whether an XML file is an export of CVAT for images or for video, by its first two elements.

    A file that can't be read is not.
    """
    found = _First()
    parser = _parser(found)
    with suppress(OSError, expat.ExpatError, ValueError, LookupError):
        parser.Parse(read_start(path, _HEAD_BYTES), False)
    return found.tags[:1] == ["annotations"] and found.tags[1:2] in (["version"], ["meta"], ["image"], ["track"])


class _First:
    """Collects tags."""

    def __init__(self) -> None:
        self.tags: list[str] = []

    def start(self, tag: str, attributes: dict[str, str], line: int) -> None:
        self.tags.append(tag)

    def text(self, data: str) -> None:
        """Take no text."""

    def end(self) -> None:
        """Take no ends."""


@contextmanager
def _malformed(parser: expat.XMLParserType) -> Iterator[None]:
    """Raise `MalformedXml` for errors of a file that is parsed within the context."""
    try:
        yield
    except expat.ExpatError as error:
        raise MalformedXml(error.lineno, f"malformed xml: {expat.ErrorString(error.code)}") from None
    except OSError as error:
        raise MalformedXml(1, str(error)) from None
    except (ValueError, LookupError) as error:  # also encodings that Python doesn't know
        raise MalformedXml(parser.CurrentLineNumber, f"malformed xml: {error}") from None


def _parser(handler: XmlHandler) -> expat.XMLParserType:
    """Return a parser that refuses entities and deeply nested elements."""
    parser = expat.ParserCreate()
    parser.buffer_text, parser.buffer_size = True, 1 << 16  # text in few pieces: each is added to a growing string
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"its elements are nested more than {MAX_DEPTH} deep")
        handler.start(tag.rpartition(":")[2], attributes, parser.CurrentLineNumber)

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1
        handler.end()

    def entity(*_: object) -> None:
        raise ValueError("it declares entities, which an annotation has no use for")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = handler.text, entity
    return parser
