"""`rcnn export MODEL --format torchvision|caffe`: a detector as a file that another library loads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rcnn.cli import arguments, screen

Format = Annotated[
    Literal["torchvision", "caffe"],
    typer.Option(help="Library to load it with; caffe: arrays under the layer names of the paper's networks."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=".pth or .safetensors; caffe: .npz. Default: MODEL-torchvision.pth or MODEL-caffe.npz here.",
    ),
]
SUFFIXES = {"torchvision": (".pth", ".safetensors"), "caffe": (".npz",)}
"""Suffixes of each format's files, the default first."""


def export(
    model: arguments.Model,
    format: Format = "torchvision",
    out: Out = None,
    json: arguments.Json = False,
) -> None:
    """Write a detector's weights under the names of another library.

    For torchvision, a program that builds the model for them is printed.

    Example: rcnn export best.safetensors --format torchvision --out best.pth
    """
    import rcnn
    from rcnn.cli.files import new_file
    from rcnn.exchange.caffe import write_arrays
    from rcnn.exchange.detectors import to_caffe, to_torchvision
    from rcnn.exchange.torchvision_export import program, write

    target = new_file(out or Path(f"{Path(model).stem}-{format}{SUFFIXES[format][0]}"), SUFFIXES[format])
    detector = rcnn.load(model, device="cpu")
    names = ["__background__", *detector.names]
    if format == "torchvision":
        tensors, code = to_torchvision(detector), program(detector.settings, len(detector.names))
        write(target, tensors)
    else:
        tensors, code = to_caffe(detector), ""
        write_arrays(target, tensors)
    if json:
        screen.emit({"file": target, "names": names} | ({"program": code} if code else {}))
        return
    if code:
        print(code + _loading(target))
    screen.note(f"# {target}: {screen.several(len(tensors), 'tensor')}; labels: {', '.join(names)}")


def _loading(target: Path) -> str:
    """Return the last lines of the program, which load the file."""
    file = repr(str(target))
    loading = f"import torch\n\nmodel.load_state_dict(torch.load({file}, weights_only=True))"
    if target.suffix == ".safetensors":
        loading = f"from safetensors.torch import load_file\n\nmodel.load_state_dict(load_file({file}))"
    return f"\n{loading}\nmodel.eval()\n"
