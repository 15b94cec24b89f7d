"""Mutate files: flip, cut and repeat bytes, insert tokens, and put strange values into trees."""

import copy
import math
from collections.abc import Sequence
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

TOKENS = (
    *(b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n" * 64, b"-1", b"0", b"nan", b"NaN", b"-inf", b"Infinity"),
    *(b"1e999", b"1e-400", b"9" * 400, b"999999999", b"2147483648", b"-9223372036854775809", b"18446744073709551616"),
    *(b"0x10", b"true", b"null", b"~", b"'", b'"', b"\\", b"\\ud800", b"../../etc/passwd", b"/dev/zero", b"/dev/null"),
    *(b"<", b">", b"&a;", b"<!DOCTYPE a [<!ENTITY a 'b'>]>", b"<![CDATA[", b"<!--", b"]]>", b"[" * 2000, b"{" * 2000),
    *(b"*a", b"&a", b"- " * 800, b": ", b"!!python/object:os.system", b"%YAML 9.9", b"\t", b"\x1b]0;title\x07\x1b[2J"),
    *(b"\xe2\x80\xae", b"\xe9", b"\xed\xa0\x80", b"a" * 300, b"," * 50, b"http://127.0.0.1:9/x", b"|", b"$(touch x)"),
)
"""Texts that are hard to parse: huge numbers, other encodings, quotes, markup, references, control sequences."""

WHOLE = (
    *(b"", b"\0" * 4096, b"\n" * 200_000, b" " * 200_000, b"GIF89a", b"PK\x03\x04", b"\x80\x04.", b"%PDF-1.4", b"[]"),
    *(b"{}", b"null", b"0", b"<a/>", b"{" * 100_000, b"[" * 100_000, b"<a>" * 100_000, b"a: " * 1500 + b"b"),
)
"""Contents of entirely different files."""


def choose(options: Sequence[Any], rng: Random) -> Any:
    """Return one of several values, of which the first is harmless."""
    return rng.choice(options)


def mutate(data: bytes, rng: Random) -> bytes:
    """Return `data` after one to four changes, or occasionally another file."""
    if rng.random() < 0.04:
        return rng.choice(WHOLE)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_CHANGES)(data, rng)
    return data


def _flip(data: bytes, rng: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_early(data: bytes, rng: Random) -> bytes:
    """Flip bits at the start of a file, where headers are."""
    head = min(len(data), 256)
    return _flip(data[:head], rng) + data[head:]


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(data: bytes, rng: Random) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: Random) -> bytes:
    start, end = _span(data, rng)
    times = min(rng.choice((2, 3, 50, 20_000)), 2_000_000 // max(1, end - start))
    return data[:start] + data[start:end] * times + data[end:]


def _swap(data: bytes, rng: Random) -> bytes:
    start, end = _span(data, rng)
    place = rng.randrange(len(data) + 1)
    return data[:place] + data[start:end] + data[place:]


def _insert(data: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(TOKENS) + data[place:]


def _replace_word(data: bytes, rng: Random) -> bytes:
    """Replace a run of letters or digits by a token."""
    if not data:
        return data
    start = end = rng.randrange(len(data))
    while start and data[start - 1 : start].isalnum():
        start -= 1
    while end < len(data) and data[end : end + 1].isalnum():
        end += 1
    return data[:start] + rng.choice(TOKENS) + data[end:]


def _recode(data: bytes, rng: Random) -> bytes:
    text = data.decode("utf-8", errors="replace")
    return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "latin-1", "cp037")), errors="replace")


def _size(data: bytes, rng: Random) -> bytes:
    """Replace four or eight bytes by a large or negative number."""
    width = rng.choice((4, 8))
    if len(data) < width:
        return data
    number = rng.choice((0, 1, -1, 2**15, 2**31 - 1, -(2**31), 2**24)) if width == 4 else rng.choice((2**40, 2**63 - 1))
    place = rng.randrange(len(data) - width + 1)
    return data[:place] + number.to_bytes(width, rng.choice(("little", "big")), signed=True) + data[place + width :]


def _span(data: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 4, 16, 256)))


_CHANGES = (
    *(_flip, _flip_early, _cut, _remove, _repeat, _swap, _recode, _size),
    *(_insert, _insert, _replace_word, _replace_word),
)

_STRANGE = (10**400, -1, 2**63, 1e308, math.nan, "nan", "../x", "/dev/zero", "a" * 300, "1e999", "", "\x1b[2J")
_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(_STRANGE)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def strange_values(count: int) -> list[Any]:
    """Return `count` values of any structure, always the same ones."""
    values: list[Any] = []

    checks = [HealthCheck.too_slow, HealthCheck.large_base_example]
    options = {"derandomize": True, "database": None, "phases": [Phase.generate], "suppress_health_check": checks}

    @settings(max_examples=count, **options)
    @given(_VALUES)
    def collect(value: Any) -> None:
        values.append(value)

    collect()
    return values


def mutate_tree(tree: Any, values: Sequence[Any], rng: Random) -> Any:
    """Return a copy of a tree of dictionaries and lists with a value replaced, removed, doubled or added."""
    tree = copy.deepcopy(tree)
    nodes = [node for node in _nodes(tree) if node]
    node = rng.choice(nodes)
    key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
    value, kind = rng.choice(values), rng.random()
    if kind < 0.7:
        node[key] = value
    elif kind < 0.8:
        del node[key]
    elif isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]) if kind < 0.9 else value)
    else:
        node[f"{key}-2" if kind < 0.9 else str(value)[:20]] = value
    return tree


def _nodes(tree: Any) -> list[Any]:
    """Return every dictionary and list of a tree."""
    if not isinstance(tree, dict | list):
        return []
    below = tree.values() if isinstance(tree, dict) else tree
    return [tree, *(node for value in below for node in _nodes(value))]
