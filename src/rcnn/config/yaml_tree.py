"""Read untrusted YAML with limits on nesting and on the size of expanded aliases, and without repeated keys."""

from typing import Any

import yaml
from yaml.composer import Composer

MAX_CHARACTERS = 1_000_000
"""Maximum length of a text."""

MAX_WRITTEN_NODES = 100_000
"""Maximum number of keys and values written in a text."""

MAX_NODES = 1_000_000
"""Maximum number of keys and values once aliases are expanded."""

MAX_DEPTH = 100
"""Maximum nesting of lists and mappings."""

MAX_DIGITS = 400
"""Maximum length of a number."""


class MalformedYaml(ValueError):
    """A text is not YAML, or too large. The message gives the reason; `line` counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def load(text: str, *, as_text: bool = False, repeated: list[str] | None = None) -> Any:
    """Return the value that a YAML text describes.

    Args:
        text: one document.
        as_text: leave every scalar as text, so that `no`, `12` and `1e3` stay names.
        repeated: list that receives a sentence for each key that occurs twice with equal values.

    Raises:
        MalformedYaml: the text is not YAML; it is too long, too deep or too large once aliases are expanded; a key
            occurs twice with different values; or a number, date or tag is invalid.
    """
    if len(text) > MAX_CHARACTERS:
        raise MalformedYaml(1, f"{len(text):,} characters are more than {MAX_CHARACTERS:,}")
    try:
        loader = (_TextLoader if as_text else _ValueLoader)(text)
        tree = loader.get_single_data()
    except MalformedYaml:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise MalformedYaml(mark.line + 1 if mark else 1, reason) from None
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError) as error:  # a date such as 2001-99-99
        raise MalformedYaml(1, f"a value has no meaning: {error}") from None
    if repeated is not None:
        repeated += loader.repeated
    return tree


class _Bounded(Composer):
    """Limits the number of nodes, in which every use of an anchor counts."""

    def __init__(self, text: str) -> None:
        super().__init__(text)  # type: ignore[call-arg]  # that of the loader
        self.repeated: list[str] = []
        self._count = self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[attr-defined]
        line, before = event.start_mark.line + 1, self._count
        if self._depth > MAX_DEPTH:
            raise MalformedYaml(line, f"lists and mappings are nested more than {MAX_DEPTH} deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise MalformedYaml(line, f"`*{event.anchor}` contains itself")
            self._count += self._sizes[id(node)]
        else:
            self._count += 1
            self._sizes[id(node)] = self._count - before
        if len(self._sizes) > MAX_WRITTEN_NODES:
            raise MalformedYaml(line, f"there are more than {MAX_WRITTEN_NODES:,} values")
        if self._count > MAX_NODES:
            raise MalformedYaml(line, f"there are more than {MAX_NODES:,} values once aliases are expanded")
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
            raise MalformedYaml(node.start_mark.line + 1, f"a number has more than {MAX_DIGITS} digits")
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            before = first.setdefault((key.tag, key.value), (key, value))
            if before[0] is not key:
                line, earlier = key.start_mark.line + 1, before[0].start_mark.line + 1
                message = f"the key `{key.value}` occurs twice, first on line {earlier}"
                if not _same(before[1], value):
                    raise MalformedYaml(line, f"{message}, with different values; keep one of the two")
                self.repeated.append(f"{message}, with the same value")
        return node


class _TextLoader(_Bounded, yaml.BaseLoader):
    """Scalars are text."""


class _ValueLoader(_Bounded, yaml.SafeLoader):
    """Scalars have YAML's types."""


def _same(one: yaml.Node, other: yaml.Node) -> bool:
    """Return True if two nodes have the same tags and values."""
    if one is other:
        return True
    if one.tag != other.tag or isinstance(one, yaml.ScalarNode):
        return (one.tag, one.value) == (other.tag, other.value)
    if len(one.value) != len(other.value):
        return False
    pairs = zip(one.value, other.value, strict=True)
    if isinstance(one, yaml.SequenceNode):
        return all(_same(a, b) for a, b in pairs)
    return all(_same(a, c) and _same(b, d) for (a, b), (c, d) in pairs)
