"""An exported graph for any runtime: its inputs and outputs, its metadata, and its fixed settings.

B images, C channels, H x W padded sides, D detections, P proposals. The inputs are `images` (B, C, H, W), uint8, or
float32 of 0..255 with `preprocess.resize=interpolate`, and `sizes` (B, 2) float32: (height, width) before padding. The
outputs are `boxes` (B, D, 4), `scores`, `labels` and `valid` (B, D), `finite` (B,), `proposal_boxes` (B, P, 4),
`proposal_scores` and `proposal_valid` (B, P), best first, with boxes in pixels of the resized images. The graph of a
region proposal network alone has no `boxes`, `scores`, `labels` and `valid`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from rcnn.config import MAX_SIDE, NETWORK_SECTIONS, Predict, Section, Settings, changed_keys, override, shorten
from rcnn.config.files import check_regular
from rcnn.errors import SettingsError, WeightsError, plural
from rcnn.images.batch import Size
from rcnn.model.normalise import pixel_dtype
from rcnn.model.structures import AnyBatch, Detections, NormalisedBatch, Pass, Proposals
from rcnn.model.suppress import Suppression
from rcnn.runtime.graph_check import Declared, Ports, check_kinds, check_rows
from rcnn.runtime.own_exports import digest_of, is_own
from rcnn.runtime.precision import chosen_precision
from rcnn.runtime.process import SUPPORTED, GraphProcess, GraphTask, Limits, OutOfMemory
from rcnn.runtime.sessions import SESSIONS, CannotCompile
from rcnn.weights.file import MAX_BYTES, check_same_file, first_line, read_json, reading
from rcnn.weights.metadata import Described, Metadata, entry_of

ENTRY = "rcnn"
"""Name of our metadata entry, which holds JSON."""
DIGEST = "rcnn_weights"
"""Name of the entry with the digest of the weights, which ONNX and OpenVINO do not check."""
INTERFACE = 1
"""Version of the inputs and outputs of the graph."""

_LIMITS = dict(zip(("graph_seconds", "graph_memory"), Limits.of(Predict()), strict=True))
"""Settings that a file can't choose, since they are its own limits."""

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Expected = Mapping[str, tuple[str, int]]
"""Name of an input or output -> the numpy name of its type, and its number of axes."""

PROPOSED: Expected = {
    "finite": ("bool", 1),
    "proposal_boxes": ("float32", 3),
    "proposal_scores": ("float32", 2),
    "proposal_valid": ("bool", 2),
}
_BYTES_PER_DETECTION, _BYTES_PER_PROPOSAL = 16 + 4 + 8 + 1, 16 + 4 + 1
DETECTED: Expected = {"boxes": ("float32", 3), "scores": ("float32", 2), "labels": ("int64", 2), "valid": ("bool", 2)}
NAMES = {"images", "sizes", *PROPOSED, *DETECTED}
"""Names of all inputs and outputs."""


class Quantised(Section):
    """The scores of a detector and of its int8 file.

    Attributes:
        metric: `ap`, or `proposal_ar300` for a region proposal network alone.
        float32, int8: its value on the validation images for the detector and for the file.
        scored: number of validation images.
        calibrated: number of training images from which the ranges of activations were taken.
        in_float: names of the convolutions that were left in float32.
    """

    model_config = ConfigDict(extra="ignore")

    metric: Literal["ap", "proposal_ar300"]
    float32: float
    int8: float
    scored: int
    calibrated: int
    in_float: tuple[str, ...] = ()

    @property
    def drop(self) -> float:
        """How much lower the score of the file is."""
        return self.float32 - self.int8

    def __str__(self) -> str:
        images = plural(self.scored, "validation image")
        return f"{self.metric} is {self.int8:.4f} instead of {self.float32:.4f} on {images}"


class FileMetadata(Metadata):
    """Our entry in an exported file: the metadata of the detector and of the export.

    Attributes:
        size: (height, width) of all images, padding included; None: any multiples of `preprocess.multiple`.
        parity: result of the comparison with the original detector.
        int8: scores of the original detector and of this file; None if it is not in int8.
    """

    format_error: ClassVar[str] = "holds a graph, but not a detector of this version of rcnn"

    size: tuple[Side, Side] | None = None
    parity: dict[str, Any] = Field(default_factory=dict)
    int8: Quantised | None = None

    @model_validator(mode="after")
    def _size_fits(self) -> Self:
        multiple = self.settings.preprocess.multiple
        if self.size is not None and any(side % multiple for side in self.size):
            raise ValueError(f"size: the sides are multiples of {multiple} (got {self.size[0]} x {self.size[1]})")
        return self


def entries(
    detector: Described,
    size: Size | None = None,
    parity: Mapping[str, Any] | None = None,
    int8: Quantised | None = None,
) -> dict[str, str]:
    """Return the metadata entries that an export writes, as name -> text.

    Args:
        detector: the exported detector.
        size: (height, width) that the graph is fixed to; None if it takes any size.
        parity: result of the comparison with the detector.
        int8: scores of the detector and of the file, if it is in int8.

    Returns:
        Ours under `ENTRY`; for other programs `names` (JSON, index -> name), `imgsz` (JSON, [height, width], or for a
        graph of any size the shorter side and the longer at most), `stride` (sides are multiples of it) and `task`.
    """
    preprocess = detector.settings.preprocess
    ours = {**entry_of(detector), "interface": INTERFACE, "size": size, "parity": parity or {}}
    ours |= {"int8": int8.model_dump()} if int8 else {}
    return {
        ENTRY: json.dumps(ours, sort_keys=True, allow_nan=False),
        "names": json.dumps(dict(enumerate(detector.names))),
        "imgsz": json.dumps(size or (preprocess.short, preprocess.long)),
        "stride": str(preprocess.multiple),
        "task": "detect",
    }


def digest(parts: Iterable[bytes]) -> str:
    """Return the value of the entry `DIGEST`: BLAKE2b of the weights, in the order of the file."""
    checksum = blake2b(digest_size=16)
    for part in parts:
        checksum.update(part)
    return checksum.hexdigest()


def check_digest(found: Mapping[str, str], parts: Iterable[bytes], path: str | Path) -> None:
    """Compare weights with the digest in the file's metadata, if there is one.

    Raises:
        WeightsError: they differ.
    """
    if DIGEST in found and found[DIGEST] != digest(parts):
        raise WeightsError(f"{path} is damaged: its weights are not those that were written; export the detector again")


def read_entries(found: Mapping[str, str], path: str | Path, program: str = "") -> FileMetadata:
    """Parse our entry among the metadata entries of a file.

    Args:
        found: name -> text.
        path: the file, for messages.
        program: name of the program that wrote the file, if the file says so.

    Raises:
        WeightsError: the entry is missing, damaged, of another version, or not that of a valid detector.
    """
    if ENTRY not in found:
        by = f" (written by {shorten(program)})" if program else ""
        raise WeightsError(
            f"{path}: is a file of another program{by}: it has no `{ENTRY}` entry. Only files that rcnn exported can "
            "be run: rcnn export MODEL --format onnx|openvino"
        )
    try:
        entry = read_json(found[ENTRY])
        version = entry["interface"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise WeightsError(f"{path} is damaged: its `{ENTRY}` entry is not the JSON that was written") from None
    if version != INTERFACE:
        raise WeightsError(
            f"{path}: its graph has inputs and outputs of version {shorten(str(version))}, this version of rcnn runs "
            f"{INTERFACE}; export the detector again, or use the version of rcnn that exported it"
        )
    metadata = FileMetadata.parse(entry, path)
    return metadata.model_copy(update={"settings": override(metadata.settings, {"predict": _LIMITS})})


def size_beside(path: Path, weights: Path) -> int:
    """Return the bytes of the file with the weights of an exported file.

    Raises:
        WeightsError: it is missing or not a regular file.
    """
    try:
        return check_regular(weights, MAX_BYTES).st_size
    except OSError as error:
        raise WeightsError(
            f"{path}: its weights are in {weights}, which can't be read ({error.strerror or error}); copy both files"
        ) from None


class Contents(NamedTuple):
    """Facts about an exported file.

    Attributes:
        metadata: our entry.
        bytes: size of the file, and of the one beside it that holds its weights.
        tensors: number of constants in the graph.
        parameters: number of floating-point and 8-bit numbers in them.
        types: types of these, such as `float32`.
    """

    metadata: FileMetadata
    bytes: int
    tensors: int
    parameters: int
    types: tuple[str, ...]


class GraphRuntime(ABC):
    """A `Runtime` for an exported file, on the CPU, with as many threads as PyTorch uses.

    A file that this user exported runs in this process. The graph of any other file is checked, and runs in a child
    process with limits, where one can be started.

    Args:
        path: the file.
        precision: as `predict.precision`; None: the precision that the file was exported with.
        own: whether this user exported the file; None: if it is in the list of own exports.

    Attributes:
        session: name of what runs the files, in `rcnn.runtime.sessions.SESSIONS`.
        precisions: precisions that the runtime can compute in.
        companions: suffixes of the files that belong to an exported file.
        kinds: kinds of nodes that exported files may have.
        max_bytes: maximum size of a file, without the files that belong to it.
        format: what a file is not if it can't be read.
        limits: of time and memory.
        digest: of the file and of those that belong to it.

    Raises:
        WeightsError: the file is missing, damaged, of another program or version, or its graph can't be run.
        UnavailableError: a WeightsError: the runtime's package is not installed.
        SettingsError: the runtime does not have this precision.
    """

    name: str
    session: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    companions: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[frozenset[str]]
    max_bytes: ClassVar[int]
    format: ClassVar[str]

    def __init__(self, path: str | Path, precision: str | None = None, *, own: bool | None = None) -> None:
        self.path = Path(path)
        contents, self.digest, self.own = self.checked(self.path, own)
        self.metadata = contents.metadata
        self.classes = len(self.metadata.names)
        self.device, self.size = torch.device("cpu"), self.metadata.size
        self.precision = self.check_precision(precision or self.metadata.settings.predict.precision)
        self.limits = Limits.of(self.metadata.settings.predict)
        self.outputs = _outputs(self.metadata.settings)
        self.running = self._open(self.digest)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle the path and the digest of the file, and the settings that may change."""
        return _reopen, (type(self), self.path.absolute(), self.digest, self.precision, self.limits)

    @staticmethod
    @abstractmethod
    def package() -> Any:
        """Import the package that runs the files.

        Raises:
            UnavailableError: it is not installed.
        """

    @classmethod
    @abstractmethod
    def read(cls, path: Path) -> tuple[Contents, Declared]:
        """Return facts about a file, and what its graph declares. Nothing is run.

        Raises:
            WeightsError: the file is missing, damaged, or of another program or version.
            UnavailableError: a WeightsError: the package that reads it is not installed.
        """

    @classmethod
    def check_precision(cls, precision: str) -> str:
        """Return the precision that `predict.precision` means on a CPU.

        Raises:
            SettingsError: the runtime does not have it.
        """
        precision = chosen_precision(precision, torch.device("cpu"))
        if precision not in cls.precisions:
            other = ", or export the detector for OpenVINO, which has bf16" if precision == "bf16" else ""
            raise SettingsError(
                f"predict.precision={precision}: {cls.name} computes in {' or '.join(cls.precisions)}; set "
                f"predict.precision=float32{other}"
            )
        return precision

    @property
    def suppression(self) -> Suppression:
        """The suppression in the graph."""
        return Suppression.of(self.metadata.settings)

    @classmethod
    def checked(cls, path: Path, own: bool | None = None) -> tuple[Contents, str, bool]:
        """Check a file without running it.

        Args:
            path: the file.
            own: as for the class.

        Returns:
            Facts about it, its digest, and whether this user exported it.

        Raises:
            WeightsError, UnavailableError: as for `read`; or its graph is not that of an exported detector.
        """
        contents, graph = cls.read(path)
        digest = digest_of([path, *map(path.with_suffix, cls.companions)])
        own = is_own(digest) if own is None else own
        if not own:
            check_kinds(graph.kinds, cls.kinds, path)
        _check_ports(contents.metadata, graph.inputs, graph.outputs, path)
        check_rows(graph.outputs, contents.metadata.settings, path)
        return contents, digest, own

    def _open(self, digest: str) -> Any:
        """Compile the graph, in this process or in a child."""
        roi, rpn = self.metadata.settings.roi, self.metadata.settings.rpn
        room = 1 + roi.detections * _BYTES_PER_DETECTION + rpn.post_test * _BYTES_PER_PROPOSAL
        files, threads = [self.path, *map(self.path.with_suffix, self.companions)], torch.get_num_threads()
        try:
            with reading(self.path, self.max_bytes, self.format):
                if self.own or not SUPPORTED:
                    self.package()
                    return SESSIONS[self.session](str(self.path), list(self.outputs), threads, self.precision)
                return GraphProcess(GraphTask(files, digest, self.session, self.outputs, threads, self.precision, room))
        except CannotCompile as error:
            raise WeightsError(
                f"{self.path}: OpenVINO can't compile it for this CPU: {first_line(error)}. If the file has not been "
                "changed since the export, use the .onnx or .safetensors file on this machine; otherwise export the "
                "detector again"
            ) from None

    def usage_of_child(self) -> tuple[float, float]:
        """Return the CPU seconds and the peak memory in bytes of the child process so far; zeros if there is none."""
        return (self.running.cpu, self.running.peak) if isinstance(self.running, GraphProcess) else (0.0, 0.0)

    def infer(self, images: np.ndarray, sizes: np.ndarray) -> Mapping[str, np.ndarray]:
        """Run the graph and return its outputs by name."""
        if isinstance(self.running, GraphProcess):
            return self.running.run(images, sizes, self.limits)
        return self.running(images, sizes)

    def with_settings(self, settings: Settings) -> Self:
        """As `Runtime.with_settings`.

        Raises:
            SettingsError: a setting is fixed in the graph.
        """
        changed = changed_keys(self.metadata.settings, settings, (*NETWORK_SECTIONS, "predict"))
        free = () if self.size else ("preprocess.short", "preprocess.long")
        in_graph = ("predict.svd", "predict.scales") if self.size else ("predict.svd",)
        fixed = [key for key in changed if (key in in_graph if key.startswith("predict.") else key not in free)]
        if fixed:
            raise SettingsError(
                f"{', '.join(fixed)}: fixed in the exported file {self.path}; export the detector again with this "
                "setting" + (", and without a size" if self.size else "")
            )
        precision, limits = self.check_precision(settings.predict.precision), Limits.of(settings.predict)
        if precision == self.precision and limits == self.limits:
            return self
        if precision != self.precision:
            other = type(self)(self.path, precision, own=self.own)
        else:
            other = object.__new__(type(self))  # a copy that shares the compiled graph
            other.__dict__.update(self.__dict__)
        other.limits = limits
        return other

    def execute(
        self,
        batch: AnyBatch,
        proposals: Proposals | None = None,
        *,
        fields: Collection[str] = ("proposals", "detections"),
    ) -> Pass:
        """As `Runtime.execute`, always with proposals and detections. Indices that the graph lacks are -1.

        Raises:
            SettingsError: there are external proposals, or the images are normalised or have a size or type that the
                file does not allow.
            WeightsError: the graph fails, or its outputs are not those of a detector.
            MemoryError: there is not enough memory.
        """
        if proposals is not None:
            self.check_takes_proposals()
        self._check_images(batch)
        shape = tuple(batch.images.shape)
        try:
            arrays = self.infer(batch.images.cpu().numpy(), batch.sizes.cpu().numpy())
        except WeightsError:
            raise
        except OutOfMemory as error:
            raise MemoryError(f"{self.path}, images of {shape}: {first_line(error)}; {error.hint}") from None
        except Exception as error:  # a foreign graph may fail anywhere, and the runtimes raise errors of any type
            if "alloc" in str(error):
                raise MemoryError(f"{self.path}, images of {shape}: {first_line(error)}") from None
            raise WeightsError(f"{self.path}: fails on images of {shape}: {first_line(error)}") from None
        return self._pass(
            {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in self.outputs}, len(batch.images)
        )

    def check_takes_proposals(self) -> None:
        """Raise the error for external proposals."""
        raise SettingsError(
            f"{self.path}: an exported file uses only its own proposals; for others use the .safetensors file that it "
            "was exported from"
        )

    def _check_images(self, batch: AnyBatch) -> None:
        preprocess = self.metadata.settings.preprocess
        expected, found = pixel_dtype(preprocess), batch.images.dtype
        if isinstance(batch, NormalisedBatch):
            raise SettingsError(
                f"{self.path}: normalises images itself, but was given a NormalisedBatch; give it a Batch of pixels of "
                f"0..255, {expected}, or use the .safetensors file that it was exported from, which accepts both"
            )
        if found != expected:
            raise SettingsError(
                f"{self.path}: takes pixels of 0..255 as {expected}, but these are {found}; prepare images with the "
                "`preprocessor` of its detector"
            )
        height, width = sides = tuple(batch.images.shape[2:])
        if self.size and sides != self.size:
            raise SettingsError(
                f"{self.path}: exported for images of {self.size[0]} x {self.size[1]}, got {height} x {width}"
            )
        multiple = preprocess.multiple
        if height % multiple or width % multiple:
            raise SettingsError(
                f"{self.path}: takes images whose sides are multiples of {multiple}, got {height} x {width}"
            )

    def _pass(self, found: Mapping[str, Tensor], images: int) -> Pass:
        """Return the outputs as a `Pass`, after checking their shapes and that labels are valid indices of names."""
        finite = found["finite"]
        none = torch.zeros(len(finite), 0)
        boxes, scores = found.get("boxes", none[..., None].expand(-1, -1, 4)), found.get("scores", none)
        labels, valid = found.get("labels", none.long()), found.get("valid", none.bool())
        proposals, objectness, real = (found[f"proposal_{name}"] for name in ("boxes", "scores", "valid"))
        agree = len(finite) == images and all(
            len(corners) == len(finite)
            and corners.shape == (*mask.shape, 4)
            and all(values.shape == mask.shape for values in rows)
            for corners, mask, rows in ((boxes, valid, (scores, labels)), (proposals, real, (objectness,)))
        )
        if not agree or bool(((labels < 0) | (labels >= len(self.metadata.names)))[valid].any()):
            raise _foreign(self.path, "its outputs don't belong together")
        for part in (boxes, scores, proposals, objectness):
            finite = finite & part.isfinite().flatten(1).all(dim=1)
        unknown = torch.full(real.shape, -1)
        return Pass(
            levels=(),
            rpn=None,
            proposals=Proposals(proposals, objectness, real, unknown, unknown),
            rois=(),
            detections=Detections(boxes, scores, labels, valid, torch.full_like(labels, -1), finite),
        )


def _outputs(settings: Settings) -> Expected:
    """Return the outputs of a detector's graph."""
    return {**DETECTED, **PROPOSED} if settings.predicts_classes else PROPOSED


def _check_ports(metadata: FileMetadata, inputs: Ports, outputs: Ports, path: Path) -> None:
    image = str(pixel_dtype(metadata.settings.preprocess)).removeprefix("torch.")
    takes: Expected = {"images": (image, 4), "sizes": ("float32", 2)}
    for kind, expected, found in (("input", takes, inputs), ("output", _outputs(metadata.settings), outputs)):
        for name, (dtype, axes) in expected.items():
            has, shape = found.get(name, ("", ()))
            if (has, len(shape)) != (dtype, axes):
                raise _foreign(path, f"its graph has no {kind} `{name}` of {dtype} with {axes} axes")
    if extra := set(inputs) - set(takes):
        raise _foreign(path, f"its graph requires an input `{min(extra)}`")


def _foreign(path: Path, reason: str) -> WeightsError:
    return WeightsError(f"{path}: {FileMetadata.format_error}: {reason}")


def _reopen(kind: type[GraphRuntime], path: Path, digest: str, precision: str, limits: Limits) -> GraphRuntime:
    """Return the runtime that was pickled.

    Raises:
        WeightsError, UnavailableError: as for `GraphRuntime`; or the file has another content.
    """
    check_same_file(path, digest, lambda path: digest_of([path, *map(path.with_suffix, kind.companions)]))
    runtime = kind(path, precision)
    runtime.limits = limits
    return runtime
