"""`rcnn export MODEL --format torchvision|caffe`: a detector as a file that another library loads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rcnn.cli import arguments, screen

if TYPE_CHECKING:
    from rcnn.detector import Detector

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A weights file (.safetensors), or a known name.")]
Format = Annotated[
    Literal["torchvision", "caffe"],
    typer.Option(help="The library that is to load it; caffe: arrays in the layer names of the paper's networks."),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=".pth or .safetensors, caffe: .npz. By default MODEL-torchvision.pth or MODEL-caffe.npz here.",
    ),
]
SUFFIXES = {"torchvision": (".pth", ".safetensors"), "caffe": (".npz",)}
"""Of each format's files, the usual one first."""


def export(
    model: Model,
    format: Format = "torchvision",
    out: Out = None,
    json: arguments.Json = False,
) -> None:
    """Write a detector's weights in another library's names.

    For torchvision the program that builds the model for them is printed.

    Example: rcnn export best.safetensors --format torchvision --out best.pth
    """
    import rcnn
    from rcnn.errors import SettingsError

    target = out or Path(f"{Path(model).stem}-{format}{SUFFIXES[format][0]}")
    if target.suffix not in SUFFIXES[format]:
        raise SettingsError(f"--out {target}: the name must end in {' or '.join(SUFFIXES[format])}")
    if target.exists():
        raise SettingsError(f"{target} is there already; move it away or give another name with --out")
    detector = rcnn.load(model, device="cpu")
    names = ["__background__", *detector.names]
    code, count = (_torchvision if format == "torchvision" else _caffe)(detector, target)
    if json:
        screen.emit({"file": target, "names": names} | ({"program": code} if code else {}))
        return
    if code:
        print(code + _loading(target))
    screen.note(f"# {target}: {screen.several(count, 'tensor')}; labels: {', '.join(names)}")


def _torchvision(detector: "Detector", target: Path) -> tuple[str, int]:
    """Writes the state dictionary; the program that builds its model, and how many tensors there are."""
    from rcnn.exchange.detectors import to_torchvision
    from rcnn.exchange.torchvision_export import program, write

    state, code = to_torchvision(detector), program(detector.settings, len(detector.names))
    write(target, state)
    return code, len(state)


def _caffe(detector: "Detector", target: Path) -> tuple[str, int]:
    """Writes the arrays; no program, and how many there are."""
    from rcnn.exchange.caffe import write_arrays
    from rcnn.exchange.detectors import to_caffe

    arrays = to_caffe(detector)
    write_arrays(target, arrays)
    return "", len(arrays)


def _loading(target: Path) -> str:
    """The last lines of the program."""
    file = repr(str(target))
    loading = f"import torch\n\nmodel.load_state_dict(torch.load({file}, weights_only=True))"
    if target.suffix == ".safetensors":
        loading = f"from safetensors.torch import load_file\n\nmodel.load_state_dict(load_file({file}))"
    return f"\n{loading}\nmodel.eval()\n"
