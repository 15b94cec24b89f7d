"""What the page "Inside the RPN" shows of one picture, as JSON: everything that `rcnn explain` follows, and NMS."""

import base64
import gzip
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

from rcnn.config import RPN
from rcnn.diagnose.explain.follow import Fate, Labels, Walkthrough, counts
from rcnn.diagnose.explain.suppression import survivors, thresholds
from rcnn.diagnose.explain.ways import ways
from rcnn.diagnose.why.outcomes import LOSSES
from rcnn.model.boxes import pairwise_iou
from rcnn.report.templating import environment, named_by_hash, static
from rcnn.weights.file import atomic_write

HERE = Path(__file__).parent
SIXTEEN = 65535
"""Boxes are told in shares of the longest side, and probabilities in shares of 1, of 16 bits."""

SCRIPTS = ("dom", "tips", "stage", "sketch", "insides", "panels", "inside", "inside-file")
"""Modules of static/ that the file holds, each after those that it imports."""


def inside(walk: Walkthrough, settings: RPN) -> dict[str, Any]:
    """What every stage makes of a picture.

    Boxes are in pixels of the resized picture, "width" x "height". "arrays" are gzip in base64, one behind the other
    as "layout" says: the anchors that enter NMS, best first ("before"); per anchor its box after the RPN's deltas
    ("moved"), objectness, IoU with the best object and label; and which boxes are left at each threshold ("kept").

    Args:
        walk: of the picture.
        settings: with which it was followed.
    """
    height, width = walk.image.shape[:2]
    layout, arrays = _packed(walk, survivors(walk, settings))
    return {
        "width": width,
        "height": height,
        "levels": _levels(walk),
        "thresholds": thresholds(settings.nms),
        "nms": settings.nms,
        "counts": counts(walk),
        "proposals": walk.proposals.anchor.tolist(),
        "detections": _detections(walk),
        "objects": None if walk.truth is None else _objects(walk, walk.truth),
        "layout": layout,
        "arrays": arrays,
    }


def write_inside(walk: Walkthrough, settings: RPN, file: Path, name: str, model: str) -> Path:
    """Write the page as one file that needs no server and asks for nothing.

    Args:
        walk: of the picture.
        settings: with which it was followed.
        file: to be written.
        name: of the picture.
        model: that looked at it.
    """
    style = static("report.css") + static("look.css", HERE) + static("inside.css", HERE)
    script = "".join(_joinable(static(f"{part}.js", HERE)) for part in SCRIPTS)
    told = {"name": name, "picture": _address(walk.image), "inside": inside(walk, settings)}
    page = (
        environment(HERE)
        .get_template("explain.html")
        .render(
            name=name,
            model=model,
            told=told,
            style=Markup(style),
            script=Markup(script),
            style_hash=named_by_hash(style),
            script_hash=named_by_hash(script),
        )
    )
    atomic_write(file, page.encode())
    return file


def _joinable(module: str) -> str:
    """A module as part of a single script."""
    return re.sub(r"^export |^import .*\n", "", module, flags=re.MULTILINE)


def _address(image: np.ndarray) -> str:
    """A picture (h, w, 3) uint8 as an address that holds it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _levels(walk: Walkthrough) -> list[dict[str, Any]]:
    """Per level its stride and grid, the anchors of its first cell, and the steps from a cell to the next."""
    told, start = [], 0
    for level, (stride, (rows, columns)) in enumerate(zip(walk.strides, walk.grids, strict=True)):
        first = walk.anchors[walk.of_cell(level, 0, 0)].double()
        right, below = (
            walk.anchors[walk.of_cell(level, *cell)[0]].double()
            for cell in ((0, min(1, columns - 1)), (min(1, rows - 1), 0))
        )
        steps = [float(right[0] - first[0, 0]) or stride, float(below[1] - first[0, 1]) or stride]
        told.append(
            {"stride": stride, "rows": rows, "columns": columns, "start": start, "cell": first.tolist(), "steps": steps}
        )
        start += rows * columns * walk.per_cell
    return told


def _packed(walk: Walkthrough, kept: np.ndarray) -> tuple[list[tuple[str, str, int]], str]:
    """Names, types and lengths of the arrays, and their bytes."""
    unit = SIXTEEN / max(walk.image.shape[:2])
    arrays = {
        "before": walk.before.anchor.numpy().astype("<i4"),
        "moved": (walk.trace.decoded * unit).round().clip(0, SIXTEEN).astype("<u2"),
        "objectness": (walk.objectness.double().numpy() * SIXTEEN).round().astype("<u2"),
    }
    if walk.truth is not None:
        best = np.zeros(len(walk.anchors))
        for box in walk.truth.boxes:  # one at a time: the matrix of all may be large
            best = np.maximum(best, pairwise_iou(walk.anchors, box[None].to(walk.anchors.dtype))[:, 0].numpy())
        arrays["iou"] = (best * SIXTEEN).round().astype("<u2")
        arrays["label"] = walk.truth.label.numpy().astype("i1")
    arrays["kept"] = kept.astype("u1")
    layout = [(name, array.dtype.name, array.size) for name, array in arrays.items()]
    content = gzip.compress(b"".join(array.tobytes() for array in arrays.values()), 5, mtime=0)
    return layout, base64.b64encode(content).decode()


def _detections(walk: Walkthrough) -> list[dict[str, Any]] | None:
    """The final boxes, best first, with their proposals; None without a second stage."""
    if walk.detections is None:
        return None
    labels, proposals = walk.detections.classes.tolist(), walk.detections.proposal.tolist()
    return [
        {
            "name": way.name,
            "label": label,
            "score": way.score,
            "box": way.boxes[2].tolist(),
            "proposal": proposal,
            "anchor": int(walk.proposals.anchor[proposal]),
            "iou": way.truth,
        }
        for way, label, proposal in zip(ways(walk), labels, proposals, strict=True)
    ]


def _objects(walk: Walkthrough, truth: Labels) -> list[dict[str, Any]]:
    """The labelled objects, what became of them, and the anchors that come nearest to them."""
    fates = {fate.outcome.truth: fate for fate in walk.fates}
    decoded = torch.from_numpy(walk.trace.decoded)
    return [
        {
            "name": walk.names[label],
            "label": label,
            "box": box.tolist(),
            **_nearest(walk, decoded, box),
            **(_fate(fates[index], walk.names) if index in fates else {"where": "ignored"}),
        }
        for index, (box, label) in enumerate(zip(truth.boxes, truth.classes.tolist(), strict=True))
    ]


def _nearest(walk: Walkthrough, decoded: torch.Tensor, box: torch.Tensor) -> dict[str, Any]:
    """The anchor, and the moved box, with the best IoU with an object."""
    own, moved = (pairwise_iou(boxes, box[None].to(boxes.dtype))[:, 0] for boxes in (walk.anchors, decoded))
    return {
        "anchor": int(own.argmax()),
        "anchor_iou": float(own.max()),
        "nearest": int(moved.argmax()),
        "nearest_iou": float(moved.max()),
    }


def _fate(fate: Fate, names: tuple[str, ...]) -> dict[str, Any]:
    outcome, mended = fate
    told: dict[str, Any] = {
        "where": outcome.where,
        "stage": LOSSES.get(outcome.where, ""),
        "score": None if math.isnan(outcome.score) else outcome.score,
        "taken_for": names[outcome.taken_for] if outcome.taken_for >= 0 else "",
    }
    if mended is not None:
        value = None if math.isnan(mended.value) else mended.value
        told["remedy"] = {"setting": mended.setting, "value": value, "text": mended.text}
    return told
