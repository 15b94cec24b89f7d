"""Look at the instructions of a pickle before it is read: some ask for more memory or time than any machine has."""

import pickletools
import zipfile
from pathlib import Path
from typing import IO

MOST_STEPS = 1_000_000
"""Instructions of a pickle; the largest checkpoints have some 100,000."""

DEEPEST = 16
"""Tuples inside one another. Hashing a tuple that holds another one twice takes twice as long, and so on."""

_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_HASHABLE = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_MARK = -1


def check_pickle(stream: bytes | IO[bytes]) -> None:
    """Refuse a pickle that weights have no use for. Nothing of it is run.

    Args:
        stream: bytes of a pickle, or a file at its first byte, which is left after its last one.

    Raises:
        ValueError: it has too many instructions, remembers things in places far beyond those that it uses, nests tuples
            too deep, or is damaged.
    """
    stack: list[int] = []  # how deep the tuples are nested in each value
    memo: dict[int, int] = {}
    for step, (code, argument, _) in enumerate(pickletools.genops(stream)):
        if step > MOST_STEPS:
            raise ValueError("it has more steps than weights need")
        if code.name in _PUTS:
            place = len(memo) if code.name == "MEMOIZE" else int(argument or 0)
            if place > step:  # the memory for all places before it is taken at once
                raise ValueError("it remembers more than weights need")
            memo[place] = stack[-1] if stack else 0
            continue
        if code.name in _GETS:
            stack.append(memo.get(int(argument or 0), 0))
            continue
        depth = 0
        if pickletools.markobject in code.stack_before:
            while stack and (value := stack.pop()) != _MARK:
                depth = max(depth, value)
        for kind in code.stack_before:
            if kind not in (pickletools.markobject, pickletools.stackslice) and stack:
                depth = max(depth, stack.pop())
        depth += code.name in _HASHABLE
        if depth > DEEPEST:
            raise ValueError("it nests tuples deeper than weights need")
        stack += [_MARK if kind is pickletools.markobject else depth for kind in code.stack_after]


def check_torch_file(path: Path) -> None:
    """Check the pickles of a file of `torch.save`, of either of its forms.

    Raises:
        ValueError: as `check_pickle`.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(4):  # a magic number, the version, the system, and the tensors
                check_pickle(file)
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                check_pickle(archive.read(name))
