"""What a recorder is told, and the calls that tell it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Row = Mapping[str, float | None]
"""Name -> number; None for what could not be measured, as the AP of images without objects."""


class About(NamedTuple):
    """What is run, and where it stands when the recorders start.

    Attributes:
        folder: the run folder.
        settings: section -> key -> value, all plain.
        names: of the classes.
        images: how many are trained on, and how many validated on.
        best: of every stage of the scheme, the column of a row whose highest value makes an epoch the best one.
        epochs: of each stage.
        steps: of each stage.
        stage: the running stage, 1, 2, ....
        step: steps of the running stage that were done before; 0 in a new run.
        rows: of the epochs that were done before; empty in a new run.
    """

    folder: Path
    settings: Mapping[str, Any]
    names: tuple[str, ...]
    images: tuple[int, int]
    best: tuple[str, ...]
    epochs: int
    steps: int
    stage: int
    step: int
    rows: tuple[Row, ...]


class Recorder(Protocol):
    """A destination for the numbers of a run. A class that inherits from this one may leave calls out.

    Only the first of several processes has recorders. Of a resumed run it may hear steps and epochs once more that
    came after the checkpoint: `About.rows` and `About.step` say what counts.
    """

    def start(self, about: About) -> None:
        """A run begins, or goes on; the first step is near."""

    def step(self, numbers: Row) -> None:
        """After each step: `epoch`, `step`, `lr`, losses (`train_...`: means of the epoch so far), speed, memory."""

    def epoch(self, row: Row) -> None:
        """After each epoch and its validation: the row of metrics.jsonl."""

    def end(self, scores: Row) -> None:
        """No more steps: scores of the best weights, named as in a row; empty where the run was broken off."""


class Recorders:
    """The recorders of a run. One that raises is reported once and left out from there on; the run goes on.

    Args:
        recorders: in the order in which they are told.
        report: told in a sentence of one that failed.
    """

    def __init__(self, recorders: Iterable[Recorder], report: Callable[[str], None]) -> None:
        self._recorders, self._report = list(recorders), report

    @contextmanager
    def running(self, about: About) -> Iterator[dict[str, float | None]]:
        """Tell each of the start, and at the end, however it comes, of the scores that the block has put in."""
        self._tell("start", lambda recorder: recorder.start(about))
        scores: dict[str, float | None] = {}
        try:
            yield scores
        finally:
            self._tell("end", lambda recorder: recorder.end(dict(scores)))

    def step(self, numbers: Row) -> None:
        """As `Recorder.step`, to each."""
        self._tell("step", lambda recorder: recorder.step(dict(numbers)))

    def epoch(self, row: Row) -> None:
        """As `Recorder.epoch`, to each."""
        self._tell("epoch", lambda recorder: recorder.epoch(dict(row)))

    def _tell(self, name: str, call: Callable[[Recorder], None]) -> None:
        for recorder in tuple(self._recorders):
            try:
                call(recorder)
            except Exception as error:
                self._recorders = [other for other in self._recorders if other is not recorder]
                self._report(
                    f"the recorder {type(recorder).__name__} failed in `{name}` and is left out from here on: "
                    f"{type(error).__name__}: {error}"
                )
