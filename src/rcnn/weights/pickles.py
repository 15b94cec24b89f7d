"""Look at the instructions of a pickle before it is read: some ask for more memory or time than any machine has."""

import math
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import IO

MAX_STEPS = 1_000_000
"""Instructions of a pickle; the largest checkpoints have some 100,000."""

MAX_PARTS = 1_000_000
"""Parts of a value, counted as often as they are in it: its hash, or its text, takes as many steps."""

MAX_LETTERS = 100_000_000
"""Letters of a value in a file of `torch.save`, counted likewise; the numbers of its tensors are beside the pickles."""

MAX_DEPTH = 16
"""Tuples inside one another, each of which is a call on the stack when they are hashed."""

MAX_NAME_LETTERS = 1_000
"""Letters of the name of a function or class."""

_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")
_CHANGES = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_NAMES, _CALLS = ("GLOBAL", "STACK_GLOBAL"), ("REDUCE", "NEWOBJ")
_MARK, _PLAIN, _NAMED = -1, 0, 1


class _Values:
    """What a pickle would make: values are numbers here, each with those that it holds."""

    def __init__(self) -> None:
        self.parts: list[list[int]] = [[], []]  # of something plain, and of a function or class that is named
        self.letters, self.tuples = [0, 0], [False, False]

    def add(self, parts: list[int], letters: int, *, is_tuple: bool) -> int:
        self.parts.append(parts)
        self.letters.append(letters)
        self.tuples.append(is_tuple)
        return len(self.parts) - 1

    def measure(self) -> tuple[float, float, float]:
        """Return most parts, letters and tuples inside one another of a value; infinite if one holds itself."""
        known, begun = [(math.inf, math.inf, math.inf)] * len(self.parts), bytearray(len(self.parts))
        waiting = list(range(len(self.parts)))
        while waiting:
            value = waiting.pop()
            if value >= 0 and not begun[value]:
                begun[value] = True
                waiting.append(~value)  # its turn comes after its parts; until then, what holds it holds itself
                waiting += [part for part in self.parts[value] if not begun[part]]
            elif value < 0:
                sizes = [known[part] for part in self.parts[~value]]
                known[~value] = (
                    1.0 + sum(size[0] for size in sizes),  # floats, which have an end
                    self.letters[~value] + sum(size[1] for size in sizes),
                    self.tuples[~value] + max((size[2] for size in sizes), default=0),
                )
        parts, letters, depth = zip(*known, strict=True)
        return max(parts), max(letters), max(depth)


def check_pickle(stream: bytes | IO[bytes], most_letters: float = math.inf) -> None:
    """Refuse a pickle that weights have no use for. Nothing of it is run.

    Args:
        stream: bytes of a pickle, or a file at its first byte, which is left after its last one.
        most_letters: of a value, with those that it holds.

    Raises:
        ValueError: it has too many instructions, remembers things in places far beyond those that it uses, makes values
            that are too large when they are written out, nests tuples too deep, or is damaged.
        pickle.UnpicklingError: it calls what it does not name, or names something at length. `torch.load` would write
            that out in its message, and search the message in quadratic time.
    """
    values, stack = _Values(), list[int]()
    memo: dict[int, int] = {}
    for step, (code, argument, _) in enumerate(pickletools.genops(stream)):
        if step > MAX_STEPS:
            raise ValueError("it has more steps than weights need")
        if code.name in _PUTS:
            place = len(memo) if code.name == "MEMOIZE" else int(argument or 0)
            if place > step:  # the memory for all places before it is taken at once
                raise ValueError("it remembers more than weights need")
            memo[place] = stack[-1] if stack else _PLAIN
            continue
        if code.name in _GETS:
            stack.append(memo.get(int(argument or 0), _PLAIN))
            continue
        if code.name == "DUP":
            stack += stack[-1:]
            continue
        if code.name in _CALLS and stack[-2:-1] != [_NAMED]:
            raise pickle.UnpicklingError("it calls what it does not name")
        letters = len(argument) if isinstance(argument, str | bytes | bytearray) else 0
        if code.name == "GLOBAL" and letters > MAX_NAME_LETTERS:
            raise pickle.UnpicklingError(f"it asks for a function with a name of {letters:,} letters")
        taken: list[int] = []
        if pickletools.markobject in code.stack_before:
            while stack and (value := stack.pop()) != _MARK:
                taken.append(value)
        for kind in code.stack_before:
            if kind not in (pickletools.markobject, pickletools.stackslice) and stack:
                taken.append(stack.pop())
        if code.name in _CHANGES and taken and taken[-1] > _NAMED:
            values.parts[taken[-1]] += taken[:-1]
            made = taken[-1]
        elif code.name in _NAMES:
            made = _NAMED
        elif isinstance(argument, int | float):
            made = _PLAIN
        else:  # also an empty list, which later steps fill
            made = values.add(taken, letters, is_tuple=code.name in _TUPLES)
        stack += [_MARK if kind is pickletools.markobject else made for kind in code.stack_after]
    parts, letters, depth = values.measure()
    if parts > MAX_PARTS or letters > most_letters:
        raise ValueError("it holds the same things more often than weights need")
    if depth > MAX_DEPTH:
        raise ValueError("it nests tuples deeper than weights need")


def check_torch_file(path: Path) -> None:
    """Check the pickles of a file of `torch.save`, of either of its forms.

    Raises:
        ValueError, pickle.UnpicklingError: as `check_pickle`.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(5):  # a magic number, the version, the system, the tensors, and the keys of their storages
                check_pickle(file, MAX_LETTERS)
        return
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                check_pickle(archive.read(name), MAX_LETTERS)
