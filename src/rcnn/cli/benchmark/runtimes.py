"""A detector beside the files that it was exported to: time, memory, size, agreement, AP."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

from rcnn.config import Predict
from rcnn.data.dataset import Dataset
from rcnn.detector import Detector
from rcnn.errors import SettingsError, WeightsError
from rcnn.evaluate import evaluate
from rcnn.exporting.graph_files import check_size
from rcnn.exporting.parity import compare
from rcnn.images.batch import Preprocessor, Size
from rcnn.model.structures import Batch
from rcnn.runtime.by_suffix import RUNTIMES, contents, files_of, is_exported, runtime_of
from rcnn.runtime.eager import Eager
from rcnn.runtime.precision import has_bf16
from rcnn.runtime.protocol import Runtime

CPU = torch.device("cpu")
Progress = Callable[[int, int], None]


class Program(NamedTuple):
    """A runtime to compare.

    Attributes:
        name: `eager`, or that of the file.
        path: the weights or the exported file.
        precision: `float32` or `bf16`.
    """

    name: str
    path: Path
    precision: str


class Cost(NamedTuple):
    """What a batch costs.

    Attributes:
        batch: images in it.
        seconds: per image.
        cpu: CPU time per image, seconds, of all threads.
        memory: bytes; the most that a process of this runtime held so far, less what it held before it had the runtime.
            NaN where the system does not tell.
    """

    batch: int
    seconds: float
    cpu: float
    memory: float


@dataclass(frozen=True)
class RuntimeResult:
    """What was measured of a runtime.

    Attributes:
        name: `eager`, or that of the file.
        precision: of its convolutions and matrix products.
        bytes: size of its file, with the weights beside it.
        costs: one per batch size.
        agreed: share of the detections (of the proposals, where there are none) on which it agrees with eager float32
            (see `rcnn.exporting.parity`); NaN if there were none.
        ap: COCO AP on the data. None: there is none.
        ap50: likewise at IoU 0.5.
    """

    name: str
    precision: str
    bytes: int
    costs: tuple[Cost, ...]
    agreed: float
    ap: float | None = None
    ap50: float | None = None


def benchmark(
    detector: Detector,
    files: Sequence[Path],
    pictures: Sequence[np.ndarray],
    *,
    size: Size | None = None,
    batches: Sequence[int] = (1, 8),
    runs: int = 7,
    dataset: Dataset | None = None,
    progress: Callable[[str], Any] = lambda what: _silent(),
) -> list[RuntimeResult]:
    """Compare a detector in PyTorch with its exported files, on the CPU.

    bfloat16 is compared as well where the CPU has instructions for it: in PyTorch and in OpenVINO.

    Args:
        detector: with its network.
        files: exported from it, .onnx or .xml.
        pictures: (H, W, C) uint8, to measure on.
        size: (height, width) of the batches, in which the pictures are fitted; None: see `size_of`.
        batches: numbers of images in a batch.
        runs: measured ones; the median counts.
        dataset: to compute AP on.
        progress: context that shows a step by its name, and gives a function to call with (done, total).

    Raises:
        WeightsError: a file is not an exported one, of other classes, or can't be run.
        SettingsError: the detector is an exported file itself, or a file does not take this size.
        UnavailableError: a WeightsError: what runs a file is not installed.
        DataError: an image of the data set can't be read.
        MemoryError: a process of a runtime was killed.
    """
    preprocessor = Preprocessor(detector.settings.preprocess, size_of(detector, files, size))
    sizes = sorted(set(batches))
    shown = {count: _batch(preprocessor, [pictures[i % len(pictures)] for i in range(count)]) for count in sizes}
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "eager.safetensors"
        detector.save(weights)
        programs = _programs(weights, files)
        with progress("timing") as told:
            costs = measure(programs, list(shown.values()), runs, told)
        groups = [_batch(preprocessor, pictures[i : i + sizes[-1]]) for i in range(0, len(pictures), sizes[-1])]
        agreed = _agreement(programs, groups, predicts_classes=detector.settings.predicts_classes)
        rows = []
        for program, cost, share in zip(programs, costs, agreed, strict=True):
            files_of_program = files_of(program.path) if is_exported(program.path) else [program.path]
            size_of_files = sum(file.stat().st_size for file in files_of_program)
            rows.append(RuntimeResult(program.name, program.precision, size_of_files, cost, share))
    if dataset is None:
        return rows
    return [_scored(row, detector, program, dataset, progress) for row, program in zip(rows, programs, strict=True)]


def size_of(detector: Detector, files: Sequence[Path], size: Size | None = None) -> Size:
    """The size of the images to compare on, and a check of the files.

    Args:
        detector: that the files were exported from.
        files: .onnx or .xml.
        size: (height, width) that is asked for. None: the one that a file is made for, or else `preprocess.short` by
            `preprocess.long`, rounded up to `preprocess.multiple`.

    Raises:
        WeightsError: a file is not an exported one, or of other classes.
        SettingsError: the size is not of multiples, or a file does not take it.
    """
    preprocess, fixed = detector.settings.preprocess, []
    check_size(size, preprocess.multiple)
    for path in files:
        if not is_exported(path):
            raise WeightsError(f"{path}: is no exported file ({', '.join(RUNTIMES)}); rcnn export writes them")
        metadata = contents(path).metadata
        if metadata.names != detector.names:
            raise WeightsError(
                f"{path}: is of other classes ({', '.join(metadata.names)}) than the detector "
                f"({', '.join(detector.names)}); give files that were exported from it"
            )
        fixed += [(path, metadata.size)] if metadata.size else []
    rows, columns = (-(-side // preprocess.multiple) for side in (preprocess.short, preprocess.long))
    plain = rows * preprocess.multiple, columns * preprocess.multiple
    chosen = size or (fixed[0][1] if fixed else plain)
    for path, other in fixed:
        if other != chosen:
            raise SettingsError(
                f"{path}: takes images of {other[0]} x {other[1]} alone, and not of {chosen[0]} x {chosen[1]}"
            )
    return chosen


def _programs(weights: Path, files: Sequence[Path]) -> list[Program]:
    """Every runtime at every precision that is fast here, eager float32 first."""
    precisions = ["float32", "bf16"] if has_bf16(CPU) else ["float32"]
    programs = [Program("eager", weights, precision) for precision in precisions]
    for path in files:
        known = [precision for precision in precisions if precision in runtime_of(path).precisions]
        programs += [Program(path.name, path, precision) for precision in known]
    return programs


def _runtime(program: Program) -> Runtime:
    """Load a runtime."""
    if not is_exported(program.path):
        predict = Predict.model_validate({"precision": program.precision})
        return Eager(Detector.load(program.path, CPU).model, CPU, predict)
    return runtime_of(program.path)(program.path, program.precision)


def _batch(preprocessor: Preprocessor, pictures: Sequence[np.ndarray]) -> Batch:
    return preprocessor.collate(
        [preprocessor.resize(picture) for picture in pictures], [picture.shape[:2] for picture in pictures]
    )


def _agreement(programs: Sequence[Program], batches: Sequence[Batch], *, predicts_classes: bool) -> list[float]:
    """The share of boxes on which each agrees with the first."""
    first, shares = _runtime(programs[0]), []
    for program in programs:
        parity = compare(first, _runtime(program), batches)
        agreed, total = parity.agreed, parity.detections
        if not predicts_classes:
            agreed, total = parity.proposals_agreed, parity.proposals
        shares.append(agreed / total if total else float("nan"))
    return shares


def _scored(
    row: RuntimeResult, detector: Detector, program: Program, dataset: Dataset, progress: Callable[[str], Any]
) -> RuntimeResult:
    """The row with AP."""
    source = Detector.load(program.path) if is_exported(program.path) else detector
    with progress(f"AP: {program.name} {program.precision}") as told:
        scores = evaluate(
            source.with_settings([f"predict.precision={program.precision}"]), dataset, losses=False, progress=told
        )
    return replace(row, ap=scores.ap, ap50=scores.ap50)


@contextmanager
def _silent() -> Iterator[Progress]:
    yield lambda done, total: None


def measure(programs: Sequence[Program], batches: Sequence[Batch], runs: int, told: Progress) -> list[tuple[Cost, ...]]:
    """Time runtimes in turn, each in a process of its own, so that the memory is its own and the weather that of all.

    Args:
        programs: the runtimes.
        batches: the smaller ones first, as the peak of the memory does not fall.
        runs: timed ones of each batch.
        told: called with (done, total).

    Returns:
        What each batch costs each runtime.

    Raises:
        MemoryError: a process was killed.
    """
    costs: list[list[Cost]] = [[] for _ in programs]
    done, total = 0, len(batches) * runs
    with ExitStack() as stack:
        children = [stack.enter_context(_Child(program)) for program in programs]
        for batch in batches:
            for child in children:
                child.ask([part.numpy() for part in batch])
            times: list[list[_Run]] = [[] for _ in programs]
            for _ in range(runs):
                for child, taken in zip(children, times, strict=True):
                    taken.append(child.ask(None))
                done += 1
                told(done, total)
            for cost, taken in zip(costs, times, strict=True):
                count = len(batch.images)
                seconds, cpu = (median(column) / count for column in list(zip(*taken, strict=True))[:2])
                cost.append(Cost(count, seconds, cpu, taken[-1].memory))
    return [tuple(cost) for cost in costs]


class _Run(NamedTuple):
    """Seconds and CPU seconds of a run, and the most memory so far."""

    seconds: float
    cpu: float
    memory: float


class _Child:
    """A process that runs one runtime."""

    def __init__(self, program: Program) -> None:
        context = get_context("spawn")
        self._name = f"{program.name} {program.precision}"
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, program, torch.get_num_threads()), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def ask(self, images: list[np.ndarray] | None) -> _Run:
        """Run the runtime on the arrays of a batch, or on the same ones again.

        Raises:
            MemoryError: the process was killed.
        """
        try:
            self._pipe.send(images)
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            raise MemoryError(f"the process of {self._name} was killed (exit code {code})") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _serve(pipe: Connection, program: Program, threads: int) -> None:
    """The child: run a runtime whenever a batch comes, until it is killed or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which kills it
    held = _memory("VmRSS")
    try:
        torch.set_num_threads(threads)
        runtime, batch = _runtime(program), None
        while True:
            arrays = pipe.recv()
            if arrays is not None:
                batch = Batch(*map(torch.from_numpy, arrays))
                runtime.execute(batch)  # chooses kernels and takes memory: not counted
            assert batch is not None
            wall, cpu = time.perf_counter(), time.process_time()
            runtime.execute(batch)
            taken = time.perf_counter() - wall, time.process_time() - cpu
            pipe.send(_Run(*taken, _memory("VmHWM") - held))
    except EOFError:
        return
    except Exception as error:
        pipe.send(error)


def _memory(entry: str) -> float:
    """Bytes of resident memory of this process: now (`VmRSS`) or the most so far (`VmHWM`); NaN if not on Linux."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return 1024.0 * next(int(line.split()[1]) for line in status if line.startswith(entry))
