"""Write a detector as a file that runs without PyTorch, and compare both."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rcnn.detector import Detector
from rcnn.errors import ExportError, SettingsError
from rcnn.exporting import graph_files
from rcnn.exporting.parity import PIXELS, SCORE, Parity, compare
from rcnn.images.batch import Preprocessor, Size
from rcnn.model.structures import Batch
from rcnn.runtime import packages
from rcnn.runtime.by_suffix import files_of, runtime_of
from rcnn.runtime.eager import Eager
from rcnn.runtime.graph import entries
from rcnn.runtime.own_exports import remember

MAX_PICTURES = 3
"""Number of pictures on which file and detector are compared."""


def export(
    detector: Detector,
    path: str | Path,
    *,
    size: Size | None = None,
    pictures: Iterable[np.ndarray] = (),
    tell: Callable[[str], None] = lambda step: None,
) -> Parity:
    """Write a detector as ONNX (.onnx) or for OpenVINO (.xml, with its .bin), and compare the file with the detector.

    Both process three pictures, each alone and in a batch of two. The result of the comparison is returned, and stored
    in the file.

    Args:
        detector: a detector that has its network.
        path: the new file. Nothing is written if the two disagree.
        size: (height, width), padding included, that the file is fixed to. None: it takes any size.
        pictures: (H, W, C) uint8 images, of which the first three are compared. None: generated ones.
        tell: called with a description of each step when it begins.

    Raises:
        SettingsError: the path has another suffix or exists, the size is not of multiples of `preprocess.multiple`, the
            detector is an exported file itself, or the runtime of the file does not have `predict.precision`.
        UnavailableError: a package is not installed.
        ExportError: file and detector disagree.
    """
    path = check_new(Path(path))
    runtime_of(path).check_precision(detector.settings.predict.precision)
    reference = Eager(detector.model, detector.device)
    graph_files.check_size(size, detector.settings.preprocess.multiple)
    for package in (packages.onnx, packages.onnxscript, runtime_of(path).package):
        package()  # raise before long work starts
    with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        onnx = Path(folder, "trial.onnx")
        tell("tracing the network and translating it to ONNX")
        program = graph_files.to_onnx(detector.model, size)
        graph_files.save_onnx(program, onnx, entries(detector, size))
        trial = onnx.with_suffix(path.suffix)
        if trial != onnx:
            tell(f"converting it to {path.suffix}")
        save = graph_files.FORMATS[path.suffix](program, onnx)
        if trial != onnx:
            save(trial, entries(detector, size))
        tell("comparing the file with the detector")
        exported = runtime_of(trial)(trial, "float32", own=True)
        preprocessor = Preprocessor(detector.settings.preprocess, exported.size)
        shown = list(islice(pictures, MAX_PICTURES)) or made_up(preprocessor)
        parity = compare(reference, exported, batches(preprocessor, shown))
        if not parity.holds:
            raise ExportError(
                f"{path} was not written: of {parity.detections:,} detections {parity.agreed:,} agree with those of "
                f"the detector, of {parity.proposals:,} proposals {parity.proposals_agreed:,} (within {PIXELS} px and "
                f"{SCORE}). This is a bug in rcnn: please report it, with the output of rcnn inspect"
            )
        final = Path(folder, "final")  # the trial's weights may still be mapped into memory
        final.mkdir()
        save(final / path.name, entries(detector, size, asdict(parity)))
        publish(final, path)
    return parity


def publish(folder: Path, path: Path) -> None:
    """Move the complete files of an export from a temporary folder to their place, and list them as own exports."""
    for part in sorted(folder.iterdir()):  # the .bin before the .xml
        os.replace(part, path.parent / part.name)
    remember(files_of(path))


def check_new(path: Path) -> Path:
    """Return the path of a new exported file, after checking it.

    Raises:
        SettingsError: it has none of the suffixes of `graph_files.FORMATS`, or one of its files exists already.
    """
    if path.suffix not in graph_files.FORMATS:
        raise SettingsError(f"{path}: the name must end in {' or '.join(graph_files.FORMATS)}")
    for file in files_of(path):
        if os.path.lexists(file):
            raise SettingsError(f"{file} already exists; move it away or give another name")
    return path


def batches(preprocessor: Preprocessor, pictures: Iterable[np.ndarray]) -> Iterator[Batch]:
    """Yield each picture alone, and in a batch with its mirror image."""
    for picture in pictures:
        pair = [preprocessor.resize(picture), preprocessor.resize(np.ascontiguousarray(picture[:, ::-1]))]
        for images in (pair[:1], pair):
            yield preprocessor.collate(images, [(picture.shape[0], picture.shape[1])] * len(images))


def made_up(preprocessor: Preprocessor) -> Iterator[np.ndarray]:
    """Yield three pictures of coloured boxes on noise: portrait, landscape and square."""
    rng = np.random.default_rng(0)
    short = preprocessor.settings.short
    for sides in ((short * 4 // 3, short), (short, short * 4 // 3), (short, short)):
        picture = rng.integers(0, 64, (*sides, preprocessor.settings.in_channels), dtype=np.uint8)
        for _ in range(20):
            top, left = (int(rng.integers(0, side * 3 // 4)) for side in sides)
            height, width = rng.integers(short // 16, short // 3, 2)
            picture[top : top + height, left : left + width] += rng.integers(0, 192, picture.shape[2], dtype=np.uint8)
        yield picture
