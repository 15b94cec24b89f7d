"""`rcnn export MODEL --format torchvision`: a detector as a state dictionary that another library loads."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rcnn.cli import arguments, screen

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A weights file (.safetensors), or a known name.")]
Format = Annotated[Literal["torchvision"], typer.Option(help="The library that is to load it.")]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE", help=".pth or .safetensors. By default MODEL-torchvision.pth here.")
]


def export(
    model: Model,
    format: Format = "torchvision",
    out: Out = None,
    json: arguments.Json = False,
) -> None:
    """Write a detector's weights in torchvision's names, and print the program that builds the model for them.

    Example: rcnn export best.safetensors --format torchvision --out best.pth
    """
    import rcnn
    from rcnn import exchange
    from rcnn.config import SettingsError
    from rcnn.weights.file import WeightsError
    from rcnn.weights.torchvision_export import program, write

    target = out or Path(f"{Path(model).stem}-{format}.pth")
    if target.suffix not in (".pth", ".safetensors"):
        raise SettingsError(f"--out {target}: the name must end in .pth or .safetensors")
    if target.exists():
        raise WeightsError(f"{target} is there already; move it away or give another name with --out")
    detector = rcnn.load(model, device="cpu")
    state, code = exchange.to_torchvision(detector), program(detector.settings, len(detector.names))
    write(target, state)
    names = ["__background__", *detector.names]
    if json:
        screen.emit({"file": target, "program": code, "names": names})
        return
    print(code + _loading(target))
    screen.note(f"# {target}: {screen.several(len(state), 'tensor')}; labels: {', '.join(names)}")


def _loading(target: Path) -> str:
    """The last lines of the program."""
    file = repr(str(target))
    loading = f"import torch\n\nmodel.load_state_dict(torch.load({file}, weights_only=True))"
    if target.suffix == ".safetensors":
        loading = f"from safetensors.torch import load_file\n\nmodel.load_state_dict(load_file({file}))"
    return f"\n{loading}\nmodel.eval()\n"
