"""Write a detector as a file that runs without PyTorch, and compare the two."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from rcnn.detector import Detector
from rcnn.errors import ExportError, SettingsError
from rcnn.exporting import graph_files
from rcnn.exporting.parity import PIXELS, SCORE, Parity, compare
from rcnn.images.batch import Preprocessor, Size
from rcnn.model.structures import Batch
from rcnn.runtime import packages
from rcnn.runtime.eager import Eager
from rcnn.runtime.graph_metadata import entries
from rcnn.runtime.precision import chosen_precision

SHOWN = 3
"""Pictures that file and detector are compared on."""


def write(
    detector: Detector,
    path: Path,
    *,
    size: Size | None = None,
    pictures: Iterable[np.ndarray] = (),
    tell: Callable[[str], None] = lambda step: None,
) -> Parity:
    """Write a detector as ONNX (.onnx) or for OpenVINO (.xml, with its .bin), and compare the file with the detector.

    Both see three pictures, each alone and in a batch of two. The outcome is written into the file as well.

    Args:
        detector: with its network.
        path: the file; it is written only if the two agree.
        size: (height, width), padding included, that the file is to be fixed to. None: it takes any size.
        pictures: (H, W, C) uint8, the first three of which are shown. None: made-up ones.
        tell: called with what is done next.

    Raises:
        SettingsError: the size does not fit, the detector is an exported file itself, or it is set to a precision that
            the file can't have.
        UnavailableError: a package is not installed.
        ExportError: file and detector disagree.
    """
    openvino = path.suffix == ".xml"
    precision = chosen_precision(detector.settings.predict.precision, torch.device("cpu"))
    if precision == "fp16" or (precision == "bf16" and not openvino):
        what = "OpenVINO computes in float32 or bf16" if openvino else "onnxruntime computes in float32"
        other = "" if openvino else ", or export in bf16 for OpenVINO"
        raise SettingsError(f"predict.precision={precision}: {what}; add predict.precision=float32{other}")
    reference = Eager(detector.model, detector.device)
    for package in (packages.onnx, packages.onnxscript, packages.openvino if openvino else packages.onnxruntime):
        package()  # what is missing is told before long work starts
    with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        onnx = Path(folder, "trial.onnx")
        tell("tracing the network and translating it to ONNX")
        program = graph_files.to_onnx(detector.model, size)
        graph_files.save_onnx(program, onnx, entries(detector, size))
        save, trial = partial(graph_files.save_onnx, program), onnx
        if openvino:
            tell("converting it for OpenVINO")
            save, trial = partial(graph_files.save_openvino, graph_files.to_openvino(onnx)), Path(folder, "trial.xml")
            save(trial, entries(detector, size))
        tell("comparing the file with the detector")
        exported = Detector.load(trial).with_settings(["predict.precision=float32"])
        preprocessor = exported.preprocessor
        parity = compare(
            reference, exported.runtime, batches(preprocessor, list(islice(pictures, SHOWN)) or made_up(preprocessor))
        )
        if not parity.holds:
            raise ExportError(
                f"{path} was not written: of {parity.detections:,} detections {parity.agreed:,} agree with those of "
                f"the detector, of {parity.proposals:,} proposals {parity.proposals_agreed:,} (within {PIXELS} px and "
                f"{SCORE}). This is a fault of the program: please report it, with the output of rcnn inspect"
            )
        final = Path(folder, "final")  # the trial's weights may still be mapped into memory
        final.mkdir()
        save(final / path.name, entries(detector, size, asdict(parity)))
        for part in sorted(final.iterdir()):  # the .bin before the .xml
            os.replace(part, path.parent / part.name)
    return parity


def batches(preprocessor: Preprocessor, pictures: Iterable[np.ndarray]) -> Iterator[Batch]:
    """Each picture alone, and in a batch with its mirror image."""
    for picture in pictures:
        pair = [preprocessor.resize(picture), preprocessor.resize(np.ascontiguousarray(picture[:, ::-1]))]
        for images in (pair[:1], pair):
            yield preprocessor.collate(images, [(picture.shape[0], picture.shape[1])] * len(images))


def made_up(preprocessor: Preprocessor) -> Iterator[np.ndarray]:
    """Yield three pictures of coloured boxes on noise: upright, lying, and square."""
    rng = np.random.default_rng(0)
    short = preprocessor.settings.short
    for sides in ((short * 4 // 3, short), (short, short * 4 // 3), (short, short)):
        picture = rng.integers(0, 64, (*sides, preprocessor.settings.in_channels), dtype=np.uint8)
        for _ in range(20):
            top, left = (int(rng.integers(0, side * 3 // 4)) for side in sides)
            height, width = rng.integers(short // 16, short // 3, 2)
            picture[top : top + height, left : left + width] += rng.integers(0, 192, picture.shape[2], dtype=np.uint8)
        yield picture
