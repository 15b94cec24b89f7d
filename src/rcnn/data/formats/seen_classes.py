"""Number the classes of objects that are read one by one, in formats that have no list of their classes."""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from rcnn.data.formats.draft import Draft, Reading, unknown_class


class SeenClasses:
    """The classes of objects that are read one by one, before all classes are known.

    Args:
        known: the classes that there may be; None: any.
    """

    def __init__(self, known: Sequence[str] | None) -> None:
        self._known = known
        self._is_known = None if known is None else frozenset(known)
        self.numbers: dict[str, int] = {}

    def number(self, name: str, draft: Draft, where: str) -> int:
        """Return the number of a class until `settle` replaces it; the draft gets a fault if it is not known."""
        if self._known is not None and self._is_known is not None and name not in self._is_known:
            draft.fault(where, unknown_class(name, self._known, draft))
        return self.numbers.setdefault(name, len(self.numbers))

    def settle(
        self, reading: Reading, drafts: Iterable[Draft], own: Iterable[str], names: Sequence[str] | None
    ) -> None:
        """Set the classes of a reading to `names`, or else to its `own`, and the labels of drafts to theirs."""
        labels = reading.label_classes(own, names)
        table = np.array([*(labels.get(name, -1) for name in self.numbers), -1], np.int64)  # -1: a class at fault
        for draft in drafts:
            if draft.labels:
                draft.labels = array("q", table[np.frombuffer(draft.labels, np.int64)].tobytes())
