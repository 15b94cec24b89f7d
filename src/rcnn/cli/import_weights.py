"""`rcnn import FILE --arch NAME`: convert a checkpoint of torchvision, detectron2 or Caffe to a detector of rcnn."""

from pathlib import Path
from typing import Annotated

import typer

from rcnn.cli import arguments, screen
from rcnn.errors import SettingsError, plural

File = Annotated[Path | None, typer.Argument(metavar="FILE", help="Checkpoint: .pth, .pt, .pkl, .safetensors, .npz.")]
Arch = Annotated[str | None, typer.Option(metavar="NAME", help="Architecture of the checkpoint; see --list.")]
Names = Annotated[str | None, typer.Option(metavar="a,b,c", help="Class names, in the order of the labels.")]
Out = Annotated[
    Path | None, typer.Option(metavar="FILE.safetensors", help="Default: FILE with this suffix, in the current folder.")
]


def import_weights(
    file: File = None,
    arch: Arch = None,
    names: Names = None,
    out: Out = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the names that --arch accepts.")] = False,
    json: arguments.Json = False,
) -> None:
    """Convert a checkpoint of torchvision, detectron2 or Caffe to a detector of rcnn. Nothing in the file is executed.

    Example: rcnn import fasterrcnn_resnet50_fpn_coco-258fb6c6.pth --arch fasterrcnn_resnet50_fpn
    """
    from rcnn.cli.files import new_file
    from rcnn.interop import detectors

    if list_:
        if json:
            screen.emit({"architectures": detectors.ARCHITECTURES})
        else:
            print(*detectors.ARCHITECTURES, sep="\n")
        return
    if file is None or arch is None:
        raise SettingsError("FILE and --arch NAME are needed: the file does not describe its architecture; see --list")
    target = new_file(out or Path(file.with_suffix(".safetensors").name), (".safetensors",))
    imported = detectors.read(file, arch, None if names is None else [name.strip() for name in names.split(",")])
    detector = detectors.detector_of(imported)
    detector.save(target)
    if json:
        screen.emit({"file": target, "arch": arch, "names": detector.names, "notes": imported.notes})
        return
    screen.say(f"{target}: {arch}, {plural(len(detector.names), 'class')}")
    screen.note(*imported.notes, f"next: rcnn predict {target} IMAGES, or rcnn inspect {target}")
