"""`rcnn export MODEL --format ...`: write a detector as a file for another runtime or library."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rcnn.cli import arguments, screen
from rcnn.errors import SettingsError, plural

if TYPE_CHECKING:
    from rcnn.detector import Detector

Format = Annotated[
    Literal["onnx", "openvino", "torchvision", "caffe"] | None,
    typer.Option(
        help="onnx, openvino: the entire detector, for programs without PyTorch. torchvision, caffe: its weights under "
        "the names of that library. Default: what --out ends in, else onnx."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="onnx: .onnx; openvino: .xml, with a .bin beside it; torchvision: .pth or .safetensors; caffe: .npz. "
        "Default: named after MODEL, in this folder.",
    ),
]
SUFFIXES: dict[str, tuple[str, ...]] = {
    "onnx": (".onnx",),
    "openvino": (".xml",),
    "torchvision": (".pth", ".safetensors"),
    "caffe": (".npz",),
}
"""Suffixes of each format's files, the default first."""


def export(
    words: Annotated[list[str], typer.Argument(metavar="MODEL", help="Weights file or name; and section.key=value.")],
    format: Format = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Fix the size of the images, padding included. Default: any size."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="IMAGES", help="Images to compare file and detector on. Default: synthetic ones."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="openvino: 8-bit convolutions and matrix products; needs --data.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Data set for --int8: up to 300 training images, and the validation list."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="AP", help="Largest loss of AP with --int8, above which nothing is written. Default: 0.01."
        ),
    ] = None,
    out: Out = None,
    json: arguments.Json = False,
) -> None:
    """Write a detector for another runtime (ONNX, OpenVINO) or another library.

    An ONNX or OpenVINO file contains the entire detector: predict, val, propose and inspect need no other file.

    Example: rcnn export best.safetensors --format onnx
    """
    from rcnn.cli.files import new_file
    from rcnn.cli.loading import load_detector

    path, changes = arguments.one_path(words, "MODEL")
    default = "openvino" if int8 else "onnx"
    library = format or next((name for name, endings in SUFFIXES.items() if out and out.suffix in endings), default)
    suffixes, plain = SUFFIXES[library], library in ("torchvision", "caffe")
    if plain and (size or images):
        raise SettingsError("--size and --images are for --format onnx and openvino")
    sides = arguments.sides_of(size)
    if int8 and library != "openvino":
        raise SettingsError(f"--int8 is for --format openvino, not {library}")
    if int8 and (data is None or images):
        reason = "--images has no effect: the training images are compared" if images else "--data is missing"
        raise SettingsError(f"--int8 takes a labelled data set, --data path/to/data; {reason}")
    if not int8 and (data is not None or max_drop is not None):
        raise SettingsError("--data and --max-drop are for --int8")
    accepted = suffixes
    if out and not format and out.suffix not in suffixes:  # maybe a format that has no name here
        from rcnn.runtime.by_suffix import RUNTIMES

        accepted = tuple(RUNTIMES)
    target = new_file(
        out or Path(f"{path.stem}-{library}{suffixes[0]}" if plain else path.stem + suffixes[0]), accepted
    )
    if library == "openvino":
        new_file(target.with_suffix(".bin"), (".bin",))
    detector = load_detector(str(path) if isinstance(path, Path) else path.url(), changes, "cpu")
    if plain and detector.settings.predict.svd:
        raise SettingsError(
            f"predict.svd is for --format onnx and openvino; {library} has no names for factored layers: "
            "set predict.svd=[]"
        )
    with screen.json_document(json) as output:
        if data is not None:
            output |= _int8(detector, target, sides, data, max_drop)
        else:
            output |= _weights(detector, target, library) if plain else _graph(detector, target, sides, images)


def _graph(detector: "Detector", target: Path, size: tuple[int, int] | None, images: str | None) -> dict[str, Any]:
    """Write the entire detector, and report how the file compares with it."""
    from dataclasses import asdict

    from rcnn.exporting.export import export
    from rcnn.exporting.parity import PIXELS, SCORE
    from rcnn.images.sources import files
    from rcnn.images.stream import read_picture

    pictures = (read_picture(path, detector.settings) for path in (files(images) if images else ()))
    parity = export(detector, target, size=size, pictures=pictures, tell=screen.note)
    total = _say_written(detector, target, size)
    screen.say(
        f"agrees with the detector on {plural(parity.images, 'image')}: {parity.agreed:,} of "
        f"{plural(parity.detections, 'detection')} and {parity.proposals_agreed:,} of "
        f"{plural(parity.proposals, 'proposal')} within {PIXELS} px and {SCORE}"
    )
    if not parity.detections and not images:
        screen.note("nothing was detected in the synthetic images; use --images to compare on your own")
    screen.say(f"next: rcnn predict {shlex.quote(str(target))} IMAGE...")
    return {"file": target, "bytes": total, "size": size, **asdict(parity)}


def _int8(
    detector: "Detector", target: Path, size: tuple[int, int] | None, data: str, max_drop: float | None
) -> dict[str, Any]:
    """Write the entire detector in int8, and report its AP before and after."""
    from rcnn.exporting.int8 import MAX_DROP, cpu_remark, export_int8

    screen.note(*filter(None, [cpu_remark()]))
    limit = MAX_DROP if max_drop is None else max_drop
    found = export_int8(detector, target, data, max_drop=limit, size=size, tell=screen.note, progress=screen.progress)
    total = _say_written(detector, target, size)
    screen.say(str(found))
    if found.in_float:
        screen.say(f"{plural(len(found.in_float), 'convolution')} left in float32: {', '.join(found.in_float)}")
    screen.say(f"next: rcnn predict {shlex.quote(str(target))} IMAGE...")
    return {"file": target, "bytes": total, "size": size, **found.model_dump()}


def _say_written(detector: "Detector", target: Path, size: tuple[int, int] | None) -> int:
    """Print the names of the files of an export and what they accept; return their bytes."""
    from rcnn.runtime.by_suffix import files_of

    written = files_of(target)
    total = sum(file.stat().st_size for file in written)
    takes = f"{size[0]} x {size[1]}" if size else f"any size in multiples of {detector.settings.preprocess.multiple}"
    screen.say(f"{' and '.join(map(str, written))}: {total / 1e6:.1f} MB, images of {takes}, in batches of any number")
    return total


def _weights(detector: "Detector", target: Path, format: str) -> dict[str, Any]:
    """Write the weights under the names of another library; for torchvision, print a program that loads them."""
    from rcnn.interop.detectors import to_caffe, to_torchvision
    from rcnn.interop.torchvision_export import program, write
    from rcnn.weights.caffe_detector import write_arrays

    names = ["__background__", *detector.names]
    document: dict[str, Any] = {"file": target, "names": names}
    if format == "torchvision":
        tensors: Any = to_torchvision(detector)
        document["program"] = program(detector.settings, len(detector.names))
        write(target, tensors)
        file = repr(str(target))
        loading = f"import torch\n\nmodel.load_state_dict(torch.load({file}, weights_only=True))"
        if target.suffix == ".safetensors":
            loading = f"from safetensors.torch import load_file\n\nmodel.load_state_dict(load_file({file}))"
        print(f"{document['program']}\n{loading}\nmodel.eval()\n")
    else:
        tensors = to_caffe(detector)
        write_arrays(target, tensors)
    screen.note(f"# {target}: {plural(len(tensors), 'tensor')}; labels: {', '.join(names)}")
    return document
