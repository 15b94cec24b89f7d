"""Write a detector for OpenVINO in int8: convolutions and matrix products quantised after training, with NNCF."""

import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional

from rcnn.data.dataset import Dataset, Records
from rcnn.data.formats.find import open_several
from rcnn.data.loading.loader import Loader
from rcnn.data.loading.windows import cut_into_views
from rcnn.detector import Detector
from rcnn.errors import DataError, ExportError, SettingsError, check_number, plural
from rcnn.evaluate import evaluate
from rcnn.exporting.export import check_new, export, publish
from rcnn.exporting.graph_files import check_size, save_openvino
from rcnn.images.batch import Size
from rcnn.images.storage import Location
from rcnn.images.stream import read_picture
from rcnn.runtime import packages
from rcnn.runtime.graph import Quantised, entries
from rcnn.runtime.openvino import OpenVinoRuntime

MAX_IMAGES, MIN_IMAGES = 300, 20
"""Maximum and minimum number of training images from which the ranges of the activations are taken."""
MAX_DROP = 0.01
"""Default of the largest accepted loss of AP."""
MIN_SCORE = 0.01
"""A detector with a lower AP is taken as untrained: the loss of AP would say nothing."""
COMPARED = 8
"""Number of images on which the errors of layers are measured."""
SENSITIVE, MIN_SENSITIVE = 0.01, 5
"""The second attempt keeps those convolutions in float32 whose outputs have a larger relative squared error, and at
least so many."""
LAYERS = ("Convolution", "GroupConvolution", "MatMul")
"""Kinds of nodes that are quantised, in OpenVINO's names."""
POOLING = ("ROIAlign", "ROIPooling")
"""Kinds of nodes that read feature maps, their first input, at boxes."""
STATISTICS = 4
"""Time of an image whose ranges are taken, in units of the time of an image that is scored."""

Inputs = dict[str, np.ndarray]
Progress = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]


def unseen(title: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """Show no progress."""
    return nullcontext(lambda done, total: None)


def export_int8(
    detector: Detector,
    path: str | Path,
    data: str | Location,
    *,
    max_drop: float = MAX_DROP,
    size: Size | None = None,
    tell: Callable[[str], None] = lambda step: None,
    progress: Progress = unseen,
) -> Quantised:
    """Write a detector for OpenVINO (.xml, with its .bin), with convolutions and matrix products in int8.

    The ranges of activations are taken from up to 300 training images. If the score on the validation images falls by
    more than `max_drop`, a second attempt leaves those convolutions in float32 whose outputs had the largest errors.
    Anchors, decoding, suppression and RoI align are always computed in float32.

    Args:
        detector: a detector that has its network, with trained weights.
        path: the new file, .xml. Nothing is written if the score falls by more than `max_drop`.
        data: the data set: folder, COCO json, data.yaml or csv.
        max_drop: largest accepted loss of AP (of AR@300 for a region proposal network alone), 0 to 1.
        size: as for `export`.
        tell: called with a description of each step when it begins.
        progress: called with the title of a long step; returns a context manager of a function that is called with
            (done, total).

    Raises:
        SettingsError, UnavailableError: as for `export`; or the path does not end in .xml, `max_drop` is not a number
            from 0 to 1, or the package nncf is not installed.
        DataError: the data can't be read, contains a class that the detector does not have, or has fewer than 20
            training images.
        ExportError: the score falls by more than `max_drop`, or the detector finds next to nothing.
    """
    path = check_int8(detector, path, max_drop, size)
    with progress("reading images") as advance:
        train, val = open_several(data, ("train", "val"), detector.settings, detector.names, progress=advance)
    check_images(train, val)
    with TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        plain, trial = Path(folder, "float32.xml"), Path(folder, "int8.xml")
        pictures = (read_picture(record.path, detector.settings) for record in train.records)
        export(detector, plain, size=size, pictures=pictures, tell=tell)
        began = time.monotonic()
        before = score(opened(detector, plain), val, "scoring float32", progress)
        seconds = (time.monotonic() - began) / len(val)
        if not before >= MIN_SCORE:  # NaN without objects
            raise ExportError(
                f"{path} was not written: without quantising, the detector has {metric_of(detector)}={before:.3f} on "
                f"the {plural(len(val), 'validation image')} of {data}, too little to measure what int8 loses; give "
                "the data that the detector was trained for"
            )
        calibration = Calibration(opened(detector, plain), train, progress)
        takes = seconds * (STATISTICS * len(calibration) + len(val))
        tell(f"quantising with {plural(len(calibration), 'image')}; each of at most two attempts takes {about(takes)}")
        in_float: tuple[str, ...] = ()
        for attempt in (1, 2):
            save_openvino(quantise(plain, calibration, in_float), trial, entries(detector, size))
            after = score(opened(detector, trial), val, "scoring int8", progress)
            found = Quantised(
                metric=metric_of(detector),
                float32=before,
                int8=after,
                scored=len(val),
                calibrated=len(calibration),
                in_float=in_float,
            )
            if found.drop <= max_drop:
                break
            if attempt == 1:
                tell(f"{found}, which is more than {max_drop:g}: measuring the errors of the layers")
                in_float = sensitive(layer_errors(plain, trial, islice(calibration, COMPARED)))
                tell(f"quantising again, with {plural(len(in_float), 'convolution')} in float32")
        else:
            raise ExportError(
                f"{path} was not written: {found}, also with {plural(len(in_float), 'convolution')} in float32; accept "
                "a larger loss with --max-drop, or leave out --int8 and use predict.precision=bf16 on CPUs that have it"
            )
        final = Path(folder, "final")
        final.mkdir()
        model = packages.openvino_core().read_model(trial)
        save_openvino(model, final / path.name, entries(detector, size, int8=found))
        publish(final, path)
    return found


def check_int8(detector: Detector, path: str | Path, max_drop: float, size: Size | None) -> Path:
    """Return the path of a new int8 file, after checking the arguments of `export_int8`, before long work starts.

    Raises:
        SettingsError, UnavailableError: as for `export_int8`.
    """
    path = Path(path)
    if path.suffix != ".xml":
        raise SettingsError(f"{path}: int8 is for OpenVINO: the name must end in .xml")
    check_number("max_drop", max_drop, 0, 1)
    check_size(size, detector.network.model.settings.preprocess.multiple)
    packages.nncf()
    return check_new(path)


def check_images(train: Dataset, val: Dataset) -> None:
    """Check the number of images.

    Raises:
        DataError: there are fewer than 20 for training, or none for validation.
    """
    if len(train) < MIN_IMAGES:
        raise DataError(
            f"{train.root}: has {plural(len(train), 'training image')}, and int8 takes the ranges of activations from "
            f"at least {MIN_IMAGES}, better {MAX_IMAGES}"
        )
    if not len(val):
        raise DataError(f"{val.root}: has no validation images, on which the loss of AP is measured")


def cpu_remark() -> str | None:
    """Return a sentence about int8 on this CPU, if there is something to know."""
    if torch.cpu._is_amx_tile_supported():
        return "this CPU has AMX: without --int8, predict.precision=bf16 is nearly as fast here, and needs no data"
    if platform.machine().lower() in ("x86_64", "amd64") and not torch.cpu._is_vnni_supported():
        return "this CPU has no instructions for int8 (VNNI): the file runs here, but may not be faster than float32"
    return None


class Calibration(Iterable[Inputs]):
    """The inputs of the graph for training images, evenly spread over the list, read again in every pass.

    Args:
        detector: the exported detector.
        dataset: training images.
        progress: as for `export_int8`.
    """

    def __init__(self, detector: Detector, dataset: Dataset, progress: Progress = unseen) -> None:
        views = cut_into_views(dataset, lambda size: detector.viewer.views(size, detector.settings.predict.scales[:1]))
        chosen = np.unique(np.linspace(0, len(views) - 1, MAX_IMAGES).round().astype(int))
        records = [views.records[index] for index in chosen.tolist()]
        views = replace(views, records=Records(records))
        self.loader = Loader(views, detector.settings, training=False, batch=1, within=detector.runtime.size)
        self.progress = progress

    def __len__(self) -> int:
        return self.loader.steps

    def __iter__(self) -> Iterator[Inputs]:
        with self.progress("reading activations") as advance:
            for done, item in enumerate(self.loader.epoch(0), start=1):
                yield {"images": item.batch.images.numpy(), "sizes": item.batch.sizes.numpy()}
                advance(done, len(self))


def metric_of(detector: Detector) -> Literal["ap", "proposal_ar300"]:
    """Return the metric that decides: AP, or AR@300 for a region proposal network alone."""
    return "ap" if detector.settings.predicts_classes else "proposal_ar300"


def opened(detector: Detector, path: Path) -> Detector:
    """Return the detector with an exported file as its runtime, in this process."""
    runtime = OpenVinoRuntime(path, "float32", own=True)
    return Detector(runtime, detector.settings, detector.names, threshold=detector.threshold, summary=detector.summary)


def score(detector: Detector, dataset: Dataset, title: str, progress: Progress) -> float:
    """Return the value of the metric that decides on a data set."""
    with progress(title) as advance:
        metrics = evaluate(detector, dataset, batch=1, losses=False, progress=advance)
    return metrics.values[metric_of(detector)].overall


def quantise(path: Path, calibration: Iterable[Inputs], in_float: Sequence[str] = ()) -> Any:
    """Return an `openvino.Model` with the layers of the networks in int8.

    Args:
        path: the graph in float32.
        calibration: inputs from which the ranges of activations are taken.
        in_float: names of layers that stay in float32.
    """
    nncf = packages.nncf()
    model = packages.openvino_core().read_model(path)
    quantised = networks(model) - set(in_float)
    others = sorted({node.get_friendly_name() for node in model.get_ops()} - quantised)
    with quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(calibration),
            subset_size=MAX_IMAGES,
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
        )


def networks(model: Any) -> set[str]:
    """Return the names of the nodes to quantise: the layers of the networks but the last ones, and what lies between.

    Images, sizes, boxes and the levels that RoIs are read from are computed by other nodes: 8 bits would move boxes by
    several pixels. The last layers, which predict scores and boxes, take little time, and their errors would be those
    of the results.
    """
    layers = {node for node in model.get_ordered_ops() if node.get_type_name() in LAYERS}
    last = {node for node in layers if not layers & _reached(_readers(node), _readers)}
    return {node.get_friendly_name() for node in _reached(layers, _readers) & _reached(layers, _sources) - last}


def _readers(node: Any) -> list[Any]:
    """Return the nodes that compute with the numbers of a node."""
    ports = (port for output in node.outputs() if _is_real(output) for port in output.get_target_inputs())
    return [
        port.get_node() for port in ports if port.get_index() == 0 or port.get_node().get_type_name() not in POOLING
    ]


def _sources(node: Any) -> list[Any]:
    """Return the nodes with whose numbers a node computes."""
    pooling = node.get_type_name() in POOLING
    ports = (port.get_source_output() for port in node.inputs()[: 1 if pooling else None])
    return [port.get_node() for port in ports if _is_real(port)]


def _is_real(port: Any) -> bool:
    """Whether a port has floating-point numbers: indices only choose numbers."""
    return port.get_element_type().is_real()


def _reached(nodes: Iterable[Any], following: Callable[[Any], list[Any]]) -> set[Any]:
    """Return the nodes, those that follow them, those that follow these, and so on."""
    reached, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += following(node)
    return reached


def layer_errors(plain: Path, quantised: Path, calibration: Iterable[Inputs]) -> dict[str, float]:
    """Return the name of every quantised convolution -> its relative squared error, greatest first.

    The error is that of its own weights and input alone: its output is compared with that of the convolution in float32
    on the same input.

    Args:
        plain: the graph in float32.
        quantised: the same graph in int8.
        calibration: inputs.
    """
    core, opset = packages.openvino_core(), packages.openvino().opset13
    model = core.read_model(quantised)
    floats = {node.get_friendly_name(): node for node in core.read_model(plain).get_ops()}
    layers = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() in LAYERS[:2] and node.input_value(0).get_node().get_type_name() == "FakeQuantize"
    ]
    ports = [port for node in layers for port in (node.input_value(0).get_node().input_value(0), node.output(0))]
    taps = packages.openvino().Model([opset.result(port) for port in ports], model.get_parameters(), "taps")
    compiled = core.compile_model(taps, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    sums = np.zeros((2, len(layers)))
    for inputs in calibration:
        found = compiled(inputs)
        for number, layer in enumerate(layers):
            x, out = (torch.from_numpy(found[2 * number + side]) for side in (0, 1))
            expected = _convolve(floats[layer.get_friendly_name()], x)
            sums[:, number] += [float((out - expected).square().sum()), float(expected.square().sum())]
    errors = sums[0] / np.maximum(sums[1], np.finfo(np.float32).tiny)
    return {layers[number].get_friendly_name(): float(errors[number]) for number in np.argsort(-errors).tolist()}


def sensitive(errors: Mapping[str, float]) -> tuple[str, ...]:
    """Return the names of the convolutions that the second attempt keeps in float32, from all names, worst first."""
    return tuple(
        name for place, (name, error) in enumerate(errors.items()) if place < MIN_SENSITIVE or error > SENSITIVE
    )


def _convolve(node: Any, images: torch.Tensor) -> torch.Tensor:
    """Compute a node of the kind Convolution or GroupConvolution in PyTorch."""
    attributes, weights = node.get_attributes(), torch.from_numpy(node.input_value(1).get_node().data.copy())
    groups = len(weights) if node.get_type_name() == "GroupConvolution" else 1
    (top, left), (bottom, right) = attributes["pads_begin"], attributes["pads_end"]
    padded = functional.pad(images, (left, right, top, bottom))
    if weights.dim() > images.dim():  # of a GroupConvolution: (groups, out, in, height, width)
        weights = weights.flatten(0, 1)
    return functional.conv2d(padded, weights, None, attributes["strides"], 0, attributes["dilations"], groups)


def about(seconds: float) -> str:
    """Return a duration in words."""
    return f"about {plural(round(seconds / 60), 'minute')}" if seconds > 90 else f"about {seconds:.0f} seconds"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence nncf: its log and progress bars, and a warning about a CUDA toolkit that it does not use.

    numpy warns of an overflow where RoI align had no boxes at a level: the maximum of nothing is the lowest float32, of
    which nncf computes a mean. The ranges of all levels are united afterwards, so this one has no effect.
    """
    logs = {logging.getLogger(name): logging.getLogger(name).level for name in ("nncf", "torch.utils.cpp_extension")}
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "overflow encountered in reduce", RuntimeWarning)
            yield
    finally:
        for log, level in logs.items():
            log.setLevel(level)
