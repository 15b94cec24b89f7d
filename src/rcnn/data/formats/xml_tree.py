"""Parse XML files into small trees whose nodes know their line numbers."""

from dataclasses import dataclass, field
from xml.parsers import expat

from rcnn.config.files import MB
from rcnn.images.storage import Location, read_bytes

MAX_DEPTH = 100
"""Maximum depth of nested elements."""

MAX_XML_BYTES = 16 * MB
"""Maximum size of the annotation of an image, bytes."""


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


def parse_xml(path: Location) -> Node:
    """Parse an XML file.

    Raises:
        MalformedXml: the file is not well-formed, declares entities, is too large or can't be read.
    """
    top = Node("", 0)
    stack = [top]
    parser = expat.ParserCreate()
    parser.buffer_text, parser.buffer_size = True, 1 << 16  # text in few pieces: each is added to a growing string

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(stack) > MAX_DEPTH:
            raise ValueError(f"its elements are nested more than {MAX_DEPTH} deep")
        node = Node(tag.rpartition(":")[2], parser.CurrentLineNumber)
        stack[-1].children.append(node)
        stack.append(node)

    def text(data: str) -> None:
        stack[-1].text += data

    def entity(*_: object) -> None:
        raise ValueError("it declares entities, which an annotation has no use for")

    parser.StartElementHandler, parser.EndElementHandler = start, lambda _: stack.pop()
    parser.CharacterDataHandler, parser.EntityDeclHandler = text, entity
    try:
        parser.Parse(read_bytes(path, MAX_XML_BYTES), True)
    except expat.ExpatError as error:
        raise MalformedXml(error.lineno, f"malformed xml: {expat.ErrorString(error.code)}") from None
    except OSError as error:
        raise MalformedXml(1, str(error)) from None
    except (ValueError, LookupError) as error:  # also encodings that Python doesn't know
        raise MalformedXml(parser.CurrentLineNumber, f"malformed xml: {error}") from None
    return top.children[0]
