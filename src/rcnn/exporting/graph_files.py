"""Trace a network, translate it to ONNX, and write it in each format of exported files."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rcnn.errors import SettingsError
from rcnn.exporting.translate import table
from rcnn.images.batch import Size
from rcnn.model.faster_rcnn import FasterRCNN
from rcnn.model.normalise import pixel_dtype
from rcnn.model.structures import Batch
from rcnn.runtime import packages
from rcnn.runtime.folded import folded
from rcnn.runtime.graph import DIGEST, digest
from rcnn.runtime.openvino import add_entries, pieces

OPSET = 18


class Graph(nn.Module):
    """A detector as one function of tensors, which `rcnn.runtime.graph` describes.

    It includes normalisation, the mask of the padding, the network and suppression; batch norm is folded.

    Args:
        model: the network; it is copied.
    """

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self.net = folded(model).cpu()
        for layer in self.net.modules():
            if isinstance(layer, nn.ReLU | nn.ReLU6):
                layer.inplace = False  # tracing in-place layers takes half the time of an export

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs of `forward`. An RPN alone has no detections."""
        detections = ("boxes", "scores", "labels", "valid") if self.net.settings.predicts_classes else ()
        return (*detections, "finite", "proposal_boxes", "proposal_scores", "proposal_valid")

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Run the network.

        Args:
            images: (B, C, H, W) as in `Batch`.
            sizes: (B, 2) float32, (height, width) of each image without its padding.
        """
        ones = torch.ones_like(sizes)  # in place of `scales`, which the network does not use
        pass_ = self.net.execute(Batch(images, sizes, ones, sizes), fields=("proposals", "detections"))
        found, proposals = pass_.detections, pass_.proposals
        assert found is not None
        assert proposals is not None
        detections = (
            (found.boxes, found.scores, found.labels, found.valid) if self.net.settings.predicts_classes else ()
        )
        return (*detections, found.finite, proposals.boxes, proposals.scores, proposals.valid)


def check_size(size: Size | None, multiple: int) -> None:
    """Check that a graph can be fixed to a size.

    Raises:
        SettingsError: a side is not a multiple of `preprocess.multiple`.
    """
    if size is not None and any(side % multiple or side <= 0 for side in size):
        near = "x".join(str(max(1, round(side / multiple)) * multiple) for side in size)
        raise SettingsError(
            f"--size {size[0]}x{size[1]}: both sides must be multiples of {multiple} (preprocess.multiple), "
            f"as in {near}"
        )


def trace(graph: Graph, size: Size | None = None) -> ExportedProgram:
    """Trace the graph with a free batch size, and with free height and width unless `size` fixes them.

    Raises:
        SettingsError: as for `check_size`.
    """
    preprocess = graph.net.settings.preprocess
    multiple = preprocess.multiple
    check_size(size, multiple)
    height, width = size or (4 * multiple, 5 * multiple)
    images = torch.zeros(2, preprocess.in_channels, height, width, dtype=pixel_dtype(preprocess))
    sizes = torch.tensor([[height - 1.0, width - 2.0], [height, width]])
    free = {0: Dim("batch", min=1)}
    sides = {} if size else {2: multiple * Dim("rows", min=1), 3: multiple * Dim("columns", min=1)}
    return torch.export.export(graph, (images, sizes), dynamic_shapes=({**free, **sides}, free), strict=False)


def to_onnx(model: FasterRCNN, size: Size | None = None) -> Any:
    """Translate a network into a `torch.onnx.ONNXProgram`.

    Args:
        model: the network; it is not changed.
        size: (height, width) of every batch; None: any multiples of `preprocess.multiple`.

    Raises:
        SettingsError: as for `check_size`.
        UnavailableError: onnxscript is not installed.
    """
    onnxscript = packages.onnxscript()
    graph = Graph(model)
    with warnings.catch_warnings():  # about the way in which one package uses another
        warnings.simplefilter("ignore")
        # The traced program is not saved and loaded, which would lose the relations of its sizes.
        program: Any = torch.onnx.export(
            trace(graph, size),
            (),
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=table(),
            input_names=["images", "sizes"],
            output_names=list(graph.outputs),
            verbose=False,
            optimize=False,
        )
        # A second round, the default, takes as long as the first and removes only a few nodes that cost no time.
        onnxscript.optimizer.optimize(program.model, num_iterations=1)
        return program


def save_onnx(program: Any, path: Path, entries: Mapping[str, str]) -> None:
    """Write a `torch.onnx.ONNXProgram` with metadata as an .onnx file."""
    proto = program.model_proto
    for name, text in {**entries, DIGEST: digest(tensor.raw_data for tensor in proto.graph.initializer)}.items():
        proto.metadata_props.add(key=name, value=text)
    path.write_bytes(proto.SerializeToString())


def to_openvino(path: Path) -> Any:
    """Read an .onnx file as an `openvino.Model`.

    Raises:
        UnavailableError: openvino is not installed.
    """
    return packages.openvino().convert_model(path)


def save_openvino(model: Any, path: Path, entries: Mapping[str, str]) -> None:
    """Write an `openvino.Model` with metadata as an .xml file, in float32, and its weights as a .bin file beside it."""
    add_entries(model, entries)
    save = partial(packages.openvino().save_model, model, path, compress_to_fp16=False)
    save()
    add_entries(model, {DIGEST: digest(pieces(path.with_suffix(".bin")))})
    save()


Save = Callable[[Path, Mapping[str, str]], None]
"""Writes a graph to a file, with metadata entries as name -> text."""

FORMATS: dict[str, Callable[[Any, Path], Save]] = {
    ".onnx": lambda program, onnx: partial(save_onnx, program),
    ".xml": lambda program, onnx: partial(save_openvino, to_openvino(onnx)),
}
"""Suffix -> function that makes a `Save` of a `torch.onnx.ONNXProgram` and of the .onnx file that it was saved as.

To add a format, add it here, and its runtime to `rcnn.runtime.by_suffix.RUNTIMES`, since every exported file is run and
compared with its detector.
"""
