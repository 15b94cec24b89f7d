"""Parse XML files into small trees whose nodes know their line numbers."""

from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat


@dataclass(slots=True)
class Node:
    """An XML element: its tag without namespace, the line where it starts, its text and its children."""

    tag: str
    line: int
    text: str = ""
    children: list["Node"] = field(default_factory=list)

    def all(self, tag: str) -> list["Node"]:
        """Return the children with this tag."""
        return [child for child in self.children if child.tag == tag]

    def get(self, tag: str) -> "Node | None":
        """Return the first child with this tag, or None."""
        return next((child for child in self.children if child.tag == tag), None)

    def value(self, tag: str, default: str = "") -> str:
        """Return the stripped text of the first child with this tag, or the default."""
        child = self.get(tag)
        return default if child is None else child.text.strip()


class MalformedXml(Exception):
    """An XML file can't be parsed. The message says why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def parse_xml(path: Path) -> Node:
    """Parse an XML file.

    Raises:
        MalformedXml: the file is not well-formed, or declares entities.
    """
    top = Node("", 0)
    stack = [top]
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
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
        parser.Parse(path.read_bytes(), True)
    except expat.ExpatError as error:
        raise MalformedXml(error.lineno, f"malformed xml: {expat.ErrorString(error.code)}") from None
    except (ValueError, LookupError) as error:  # also encodings that Python doesn't know
        raise MalformedXml(parser.CurrentLineNumber, f"malformed xml: {error}") from None
    return top.children[0]
