"""Compare a detector with the files that it was exported to: time, memory, size, agreement, AP."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

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
from rcnn.runtime.graph import GraphRuntime
from rcnn.runtime.precision import has_bf16
from rcnn.runtime.protocol import Runtime

CPU = torch.device("cpu")
Progress = Callable[[int, int], None]


class Program(NamedTuple):
    """A runtime to compare.

    Attributes:
        name: `eager`, or the name of the file.
        path: the weights or the exported file.
        precision: `float32` or `bf16`.
    """

    name: str
    path: Path
    precision: str


class Cost(NamedTuple):
    """The cost of a batch.

    Attributes:
        batch: images in it.
        seconds: seconds per image.
        cpu: CPU seconds per image, of all threads.
        memory: peak memory of the process of this runtime so far, less its memory before the runtime was loaded, in
            bytes. NaN where the system does not report it.
    """

    batch: int
    seconds: float
    cpu: float
    memory: float


@dataclass(frozen=True)
class RuntimeResult:
    """The measurements of a runtime.

    Attributes:
        name: `eager`, or the name of the file.
        precision: of its convolutions and matrix products, `float32`, `bf16` or `int8`.
        bytes: size of its file, with the weights beside it.
        costs: one per batch size.
        agreed: share of the detections (of the proposals, where there are none) on which it agrees with eager float32
            (see `rcnn.exporting.parity`); NaN if there were none.
        ap: COCO AP on the data; None without data.
        ap50: likewise at IoU 0.5.
    """

    name: str
    precision: str
    bytes: int
    costs: tuple[Cost, ...]
    agreed: float
    ap: float | None
    ap50: float | None


def benchmark(
    detector: Detector,
    files: Sequence[Path],
    pictures: Sequence[np.ndarray],
    size: Size,
    batches: Sequence[int],
    runs: int,
    dataset: Dataset | None,
    progress: Callable[[str], AbstractContextManager[Progress]],
) -> list[RuntimeResult]:
    """Compare a detector in PyTorch with its exported files, on the CPU.

    bfloat16 is compared as well where the CPU has instructions for it: in PyTorch and in OpenVINO.

    Args:
        detector: with its network.
        files: exported from it, .onnx or .xml.
        pictures: (H, W, C) uint8, to measure on.
        size: (height, width) of the batches into which the pictures are fitted, from `size_of`.
        batches: numbers of images in a batch, ascending.
        runs: number of measured runs; the median counts.
        dataset: to compute AP on, if any.
        progress: context that shows a step by its name, and yields a function to call with (done, total).

    Raises:
        WeightsError: a file can't be run.
        SettingsError: the detector is an exported file itself.
        UnavailableError: a WeightsError: what runs a file is not installed.
        DataError: an image of the data set can't be read.
        MemoryError: a process of a runtime was killed.
    """
    preprocessor, largest = Preprocessor(detector.settings.preprocess, size), batches[-1]
    timed = [_batch(preprocessor, [pictures[i % len(pictures)] for i in range(count)]) for count in batches]
    groups = [_batch(preprocessor, pictures[i : i + largest]) for i in range(0, len(pictures), largest)]
    rows = []
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "eager.safetensors"
        detector.save(weights)
        programs = _programs(weights, files)
        with progress("timing") as report:
            costs = measure(programs, timed, runs, report)
        agreed = _agreement(programs, groups, predicts_classes=detector.settings.predicts_classes)
        for program, cost, share in zip(programs, costs, agreed, strict=True):
            exported, ap, ap50 = is_exported(program.path), None, None
            size_of_files = sum(file.stat().st_size for file in (files_of(program.path) if exported else [weights]))
            if dataset is not None:
                source = Detector.load(program.path) if exported else detector
                source = source.with_settings([f"predict.precision={program.precision}"])
                with progress(f"AP: {program.name} {program.precision}") as report:
                    scores = evaluate(source, dataset, losses=False, progress=report)
                ap, ap50 = scores.ap, scores.ap50
            precision = "int8" if exported and _is_int8(program.path) else program.precision
            rows.append(RuntimeResult(program.name, precision, size_of_files, cost, share, ap, ap50))
    return rows


def size_of(detector: Detector, files: Sequence[Path], size: Size | None = None) -> Size:
    """Return the size of the images to compare on, after checking the files.

    Args:
        detector: that the files were exported from.
        files: .onnx or .xml.
        size: (height, width) that the user chose. If None, the one that a file is made for, or else `preprocess.short`
            by `preprocess.long`, rounded up to `preprocess.multiple`.

    Raises:
        WeightsError: a file is not an exported one, or has other classes.
        SettingsError: the size is not a multiple of `preprocess.multiple`, or a file does not take it.
    """
    preprocess, fixed = detector.settings.preprocess, []
    check_size(size, preprocess.multiple)
    for path in files:
        if not is_exported(path):
            raise WeightsError(f"{path}: is not an exported file ({', '.join(RUNTIMES)}); rcnn export writes them")
        metadata = contents(path).metadata
        if metadata.names != detector.names:
            raise WeightsError(
                f"{path}: has other classes ({', '.join(metadata.names)}) than the detector "
                f"({', '.join(detector.names)}); give files that were exported from it"
            )
        fixed += [(path, metadata.size)] if metadata.size else []
    sides = (preprocess.short, preprocess.long)
    height, width = (-(-side // preprocess.multiple) * preprocess.multiple for side in sides)
    chosen = size or (fixed[0][1] if fixed else (height, width))
    for path, other in fixed:
        if other != chosen:
            sizes = f"{other[0]} x {other[1]}, and not of {chosen[0]} x {chosen[1]}"
            raise SettingsError(f"{path}: takes only images of {sizes}")
    return chosen


def _programs(weights: Path, files: Sequence[Path]) -> list[Program]:
    """Return every runtime at every precision that is fast here, eager float32 first; an int8 file only as it is."""
    precisions = ["float32", "bf16"] if has_bf16(CPU) else ["float32"]
    programs = [Program("eager", weights, precision) for precision in precisions]
    return programs + [
        Program(path.name, path, precision)
        for path in files
        for precision in precisions
        if precision == "float32" or (precision in runtime_of(path).precisions and not _is_int8(path))
    ]


def _is_int8(path: Path) -> bool:
    return contents(path).metadata.int8 is not None


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
    """Return the share of boxes on which each runtime agrees with the first."""
    first, shares = _runtime(programs[0]), []
    for program in programs:
        parity = compare(first, _runtime(program), batches)
        agreed, total = parity.agreed, parity.detections
        if not predicts_classes:
            agreed, total = parity.proposals_agreed, parity.proposals
        shares.append(agreed / total if total else float("nan"))
    return shares


def measure(
    programs: Sequence[Program], batches: Sequence[Batch], runs: int, progress: Progress
) -> list[tuple[Cost, ...]]:
    """Time runtimes in turn, so that the load of the machine affects all alike, each in a process with its own memory.

    Args:
        programs: the runtimes.
        batches: in ascending size, since peak memory never falls.
        runs: number of timed runs of each batch.
        progress: called with (done, total).

    Returns:
        For each runtime, the cost of each batch.

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
            times: list[list[tuple[float, float, float]]] = [[] for _ in programs]
            for _ in range(runs):
                for child, times_of_child in zip(children, times, strict=True):
                    times_of_child.append(child.ask(None))
                done += 1
                progress(done, total)
            for cost, times_of_child in zip(costs, times, strict=True):
                seconds, cpu, memory = zip(*times_of_child, strict=True)
                count = len(batch.images)
                cost.append(Cost(count, median(seconds) / count, median(cpu) / count, memory[-1]))
    return [tuple(cost) for cost in costs]


class _Child:
    """A process that runs one runtime."""

    def __init__(self, program: Program) -> None:
        context = get_context("spawn")
        self._name = f"{program.name} {program.precision}"
        self._pipe, pipe_of_child = context.Pipe()
        arguments = pipe_of_child, program, torch.get_num_threads()
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        pipe_of_child.close()

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def ask(self, images: list[np.ndarray] | None) -> tuple[float, float, float]:
        """Return seconds, CPU seconds and peak memory so far of a run on the arrays of a batch; None: the same again.

        Raises:
            MemoryError: the process was killed.
        """
        try:
            self._pipe.send(images)
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            ended = f"was killed (exit code {self._process.exitcode})"
            raise MemoryError(f"the process of {self._name} {ended}") from None
        if isinstance(answer, BaseException):
            raise answer
        return answer


def _serve(pipe: Connection, program: Program, threads: int) -> None:
    """Run a runtime, in the child process, whenever a batch arrives, until it is killed or its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and kills this process
    memory_before = _memory("VmRSS")
    try:
        torch.set_num_threads(threads)
        runtime, batch = _runtime(program), None
        while True:
            arrays = pipe.recv()
            if arrays is not None:
                batch = Batch(*map(torch.from_numpy, arrays))
                runtime.execute(batch)  # warm-up, not counted
            assert batch is not None
            wall, cpu = time.perf_counter(), time.process_time() + _usage_of_child(runtime)[0]
            runtime.execute(batch)
            cpu_of_child, peak_of_child = _usage_of_child(runtime)
            times = time.perf_counter() - wall, time.process_time() + cpu_of_child - cpu
            pipe.send((*times, _memory("VmHWM") - memory_before + peak_of_child))
    except EOFError:
        return
    except Exception as error:
        pipe.send(error)


def _usage_of_child(runtime: Runtime) -> tuple[float, float]:
    """Return CPU seconds and peak memory of the process in which an exported file runs, if that is another one."""
    return runtime.usage_of_child() if isinstance(runtime, GraphRuntime) else (0.0, 0.0)


def _memory(entry: str) -> float:
    """Return bytes of resident memory of this process: now (`VmRSS`) or at its peak (`VmHWM`); NaN if not on Linux."""
    try:
        status = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return 1024.0 * next(int(line.split()[1]) for line in status if line.startswith(entry))
