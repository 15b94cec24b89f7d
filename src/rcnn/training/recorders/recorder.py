"""The interface of recorders."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Row = Mapping[str, float | None]
"""Name -> number; None if it could not be measured, such as the AP of images without objects."""


class About(NamedTuple):
    """A run and its progress when the recorders start.

    Attributes:
        folder: the run folder.
        settings: section -> key -> plain value.
        names: class names.
        images: number of training images, and of validation images.
        best: for every stage of the scheme, the column of a row whose highest value marks the best epoch.
        epochs: number of epochs of the current stage.
        steps: number of steps of the current stage.
        stage: the current stage, 1, 2, ....
        step: number of completed steps of this stage; 0 in a new run.
        rows: rows of the completed epochs; empty in a new run.
        lengths: (epochs, steps) of each stage.
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
    lengths: tuple[tuple[int, int], ...]


class Recorder:
    """A destination for the numbers of a run: inherit from this class and write the methods that you need.

    Only the first of several processes has recorders. A resumed run repeats the steps and epochs after its checkpoint:
    those in `About.rows` and `About.step` are not repeated.
    """

    def start(self, about: About) -> None:
        """Called before the first step of a new or resumed run."""

    def step(self, numbers: Row) -> None:
        """Called after each step: `epoch`, `step`, `lr`, losses (`train_...`: means of the epoch), speed, memory."""

    def epoch(self, row: Row) -> None:
        """Called after each epoch and its validation with the row of metrics.jsonl."""

    def end(self, scores: Row) -> None:
        """Called at the end with the scores of the kept weights, named as in a row; empty if the run ended early."""


class Recorders:
    """The recorders of a run. One that raises is reported once and then dropped; the run continues.

    Args:
        recorders: recorders in the order in which they are called.
        report: function that reports a sentence about a recorder that failed.
    """

    def __init__(self, recorders: Iterable[Recorder], report: Callable[[str], None]) -> None:
        self._recorders, self._report = list(recorders), report

    @contextmanager
    def running(self, about: About) -> Iterator[dict[str, float | None]]:
        """Call `start` of each, and `end`, even after an error, with the scores that the block has filled in."""
        self._call("start", lambda recorder: recorder.start(about))
        scores: dict[str, float | None] = {}
        try:
            yield scores
        finally:
            self._call("end", lambda recorder: recorder.end(dict(scores)))

    def step(self, numbers: Row) -> None:
        """Call `step` of each."""
        self._call("step", lambda recorder: recorder.step(dict(numbers)))

    def epoch(self, row: Row) -> None:
        """Call `epoch` of each."""
        self._call("epoch", lambda recorder: recorder.epoch(dict(row)))

    def _call(self, name: str, method: Callable[[Recorder], None]) -> None:
        for recorder in tuple(self._recorders):
            try:
                method(recorder)
            except Exception as error:
                self._recorders = [other for other in self._recorders if other is not recorder]
                self._report(
                    f"the recorder {type(recorder).__name__} failed in `{name}` and is not called again: "
                    f"{type(error).__name__}: {error}"
                )
