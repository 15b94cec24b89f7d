"""`rcnn inspect FILE`: describe a weights file or an exported file."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rcnn.cli import arguments, screen
from rcnn.config import Train, dump
from rcnn.errors import cell, plural

if TYPE_CHECKING:
    from torch import Tensor

    from rcnn.weights.metadata import Metadata


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Any weights file, an exported file, or blood-cells.")],
    json: arguments.Json = False,
) -> None:
    """Describe a weights file: classes, architecture, preprocessing, training. Nothing in it is executed.

    Example: rcnn inspect runs/train/exp-1/weights/best.safetensors
    """
    from rcnn.weights.packaged import PACKAGED, packaged_path

    document = examine(packaged_path(file) if file in PACKAGED else Path(file))
    if json:
        screen.emit(document)
    else:
        show(document)


def examine(path: Path) -> dict[str, Any]:
    """Return the document that `--json` prints.

    Raises:
        WeightsError: the file is missing, damaged, or holds no weights.
    """
    import torch

    from rcnn.interop.recognise import kind_of
    from rcnn.runtime.by_suffix import contents, is_exported
    from rcnn.weights.backbone import read_tensors
    from rcnn.weights.caffe import read_arrays
    from rcnn.weights.file import ENTRY, load_weights, read_safetensors, weights_of_run
    from rcnn.weights.metadata import read_detector
    from rcnn.weights.pickles import read_pickle

    path = weights_of_run(path)
    if is_exported(path):
        graph = contents(path)
        metadata = graph.metadata
        document = {"file": path, "bytes": graph.bytes, "tensors": graph.tensors, "parameters": graph.parameters}
        document |= {"types": list(graph.types), **_detector(metadata)}
        exported = {"size": metadata.size, "svd": metadata.settings.predict.svd, "parity": metadata.parity}
        if metadata.int8:
            exported |= {"int8": metadata.int8.model_dump(), "scores": str(metadata.int8)}
        return document | {"exported": exported, "text": f"{document['text']}, exported"}
    if path.suffix in (".pkl", ".pickle"):
        tensors = read_pickle(path)
    elif path.suffix == ".npz":
        tensors = {name: torch.from_numpy(array) for name, array in read_arrays(path).items()}
    elif path.suffix in (".pth", ".pt"):
        tensors = read_tensors(path)
    else:
        tensors, header = read_safetensors(path)
        if ENTRY in header:
            if load_weights(path)[1].get("kind") == "checkpoint":
                advice = f"continue its run: rcnn train --resume {path.absolute().parents[1]}"
                text = "a checkpoint of a training"
                return {**_facts(path, tensors), "kind": "checkpoint", "text": text, "advice": advice}
            return {**_facts(path, tensors), **_detector(read_detector(path)[1])}
    kind = kind_of(tensors)
    advice = kind.advice.replace("FILE", str(path))
    return {**_facts(path, tensors), "kind": kind.name, "text": kind.text, "advice": advice, "names": sorted(tensors)}


def _facts(path: Path, tensors: "dict[str, Tensor]") -> dict[str, Any]:
    """Return the facts that hold for any weights file."""
    counted = [
        tensor
        for name, tensor in tensors.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    return {
        "file": path,
        "bytes": path.stat().st_size,
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in counted),
        "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in counted}),
    }


def _detector(metadata: "Metadata") -> dict[str, Any]:
    """Return the metadata of a detector of rcnn."""
    settings = dump(metadata.settings)
    rows = zip(metadata.names, metadata.category_ids, strict=True)
    return {
        "kind": "detector",
        "text": f"a detector of {plural(len(metadata.names), 'class')}",
        "classes": [{"label": label, "name": name, "id": number} for label, (name, number) in enumerate(rows)],
        "threshold": metadata.threshold,
        "training": {
            "data": settings["data"]["path"],
            **{name: settings["train"][name] for name in ("init", "epochs", "batch", "seed")},
            **({"steps": settings["train"]["steps"]} if settings["train"]["steps"] else {}),
            "summary": metadata.summary,
        },
        "licence": metadata.licence,
        "settings": {name: settings[name] for name in ("preprocess", "anchors", "model", "rpn", "roi")},
    }


def show(document: dict[str, Any]) -> None:
    """Print the document as lines of text and a table of classes."""
    screen.say(f"{document['file']}: {document['text']}", "bold")
    types = ", ".join(document["types"])
    size = f"{document['parameters']:,} parameters, {document['bytes'] / 1e6:,.1f} MB ({types})"
    if document["kind"] != "detector":
        screen.say(f"{plural(document['tensors'], 'tensor')}, {size}")
        screen.say(document["advice"])
        return
    for name, value in {"size": size, **_lines(document)}.items():
        screen.say(f"{name:<14}{value}")
    rows = [[row["name"], row["label"], row["id"]] for row in document["classes"]]
    screen.table("Classes", ["class", "label", "id in the data"], rows)


def _lines(document: dict[str, Any]) -> dict[str, str]:
    """Return a line of text for each subject: architecture, preprocessing, anchors, ..."""
    model, anchors, roi = (document["settings"][name] for name in ("model", "anchors", "roi"))
    neck = f"pyramid levels {_list(model['levels'])} of {model['channels']} channels" if model["neck"] == "fpn" else ""
    picture, training = document["settings"]["preprocess"], document["training"]
    summary = ", ".join(f"{key} {cell(value)}" for key, value in training["summary"].items())
    length = Train(epochs=training["epochs"], steps=training.get("steps", ())).length
    parts = (model["preset"], f"backbone {model['backbone']}", neck, f"head {roi['head']}")
    lines = {
        "architecture": ", ".join(filter(None, parts)),
        "preprocessing": f"short side {picture['short']}, long side at most {picture['long']}, "
        f"{picture['in_channels']} channels, {picture['order']}, mean {_list(picture['mean'])}, "
        f"std {_list(picture['std'])}, {picture['resize']}",
        "anchors": f"sizes {'; '.join(map(_list, anchors['sizes']))}; {anchors['ratio']} {_list(anchors['ratios'])}",
        "threshold": cell(document["threshold"]),
        "training": f"data {training['data'] or 'unknown'}, from {training['init']}, {length}"
        + (f"; these weights: {summary}" if summary else ""),
        "licence": f"of the data: {document['licence'] or 'unknown'}",
    }
    if exported := document.get("exported"):
        shape = "for {} x {} pixels".format(*exported["size"]) if exported["size"] else "for any size"
        ranks = [f"fully connected layers of rank {_list(exported['svd'])}"] if exported["svd"] else []
        parity = (f"{key} {cell(value)}" for key, value in exported["parity"].items())
        int8 = [f"int8: {exported['scores']}"] if "int8" in exported else []
        lines["exported"] = "; ".join([shape, *ranks, *parity, *int8])
    return lines


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
