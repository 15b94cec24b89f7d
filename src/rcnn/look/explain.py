"""The page "Explain": the steps of the network for one picture as JSON, with NMS at many thresholds."""

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
from rcnn.diagnose.explain.follow import AnchorLabels, Explanation, thresholds
from rcnn.diagnose.why.outcomes import MISS_REASONS, Outcome
from rcnn.diagnose.why.remedy import Remedy
from rcnn.model.boxes import pairwise_iou
from rcnn.report.templating import environment, named_by_hash, static
from rcnn.weights.file import atomic_write

HERE = Path(__file__).parent
UINT16_MAX = 65535
"""Boxes are sent as 16-bit shares of the longest side, and probabilities as 16-bit shares of 1."""

SCRIPTS = ("dom", "tips", "stage", "sketch", "explanation", "panels", "explain", "explain-file")
"""Modules of static/ in the file, each after those that it imports."""


def to_json(explanation: Explanation, settings: RPN) -> dict[str, Any]:
    """Return the results of every step for a picture.

    Boxes are in pixels of the resized picture, "width" x "height". "arrays" holds the arrays of "layout" in this order,
    compressed with gzip, in base64: the anchors that enter NMS, best first ("before"); per anchor its box after the
    RPN's deltas ("moved"), objectness, IoU with the best object and label; and which boxes survive at each threshold
    ("kept").

    Args:
        explanation: of the picture.
        settings: with which it was made.
    """
    height, width = explanation.image.shape[:2]
    labels, final = explanation.truth, explanation.detections
    moved = (explanation.steps.decoded * (UINT16_MAX / max(height, width))).round()
    arrays = {
        "before": explanation.before.anchor.numpy().astype("<i4"),
        "moved": moved.clip(0, UINT16_MAX).astype("<u2"),
        "objectness": (explanation.objectness.double().numpy() * UINT16_MAX).round().astype("<u2"),
    }
    if labels is not None:
        best = np.zeros(len(explanation.anchors))
        for box in labels.boxes:  # one at a time, since the matrix of all may be large
            iou = pairwise_iou(explanation.anchors, box[None].to(explanation.anchors.dtype))
            best = np.maximum(best, iou[:, 0].numpy())
        arrays["iou"] = (best * UINT16_MAX).round().astype("<u2")
        arrays["label"] = labels.label.numpy().astype("i1")
    arrays["kept"] = explanation.survivors(settings).astype("u1")
    content = gzip.compress(b"".join(array.tobytes() for array in arrays.values()), 5, mtime=0)
    detections = None
    if final is not None:
        columns = zip(explanation.origins(), final.classes.tolist(), final.proposal.tolist(), strict=True)
        detections = [
            {
                "name": origin.name,
                "label": label,
                "score": origin.score,
                "box": origin.boxes[-1].tolist(),
                "stages": origin.boxes[2:-1].tolist(),
                "proposal": proposal,
                "anchor": int(explanation.proposals.anchor[proposal]),
                "iou": origin.ious,
            }
            for origin, label, proposal in columns
        ]
    return {
        "width": width,
        "height": height,
        "levels": _levels(explanation),
        "thresholds": thresholds(settings.nms),
        "nms": settings.nms,
        "counts": explanation.counts(),
        "proposals": explanation.proposals.anchor.tolist(),
        "detections": detections,
        "objects": None if labels is None else _objects(explanation, labels),
        "layout": [(name, array.dtype.name, array.size) for name, array in arrays.items()],
        "arrays": base64.b64encode(content).decode(),
    }


def write_page(explanation: Explanation, settings: RPN, file: Path, name: str, model: str) -> Path:
    """Write the page as one file that needs no server and makes no requests, and return the file.

    Args:
        explanation: of the picture.
        settings: with which it was made.
        file: the new file.
        name: of the picture.
        model: name of the detector.
    """
    style = static("report.css") + static("look.css", HERE) + static("explain.css", HERE)
    modules = "".join(static(f"{part}.js", HERE) for part in SCRIPTS)
    script = re.sub(r"^export |^import .*\n", "", modules, flags=re.MULTILINE)
    image = io.BytesIO()
    Image.fromarray(explanation.image).save(image, "WEBP", quality=85)
    address = f"data:image/webp;base64,{base64.b64encode(image.getvalue()).decode()}"
    page = environment(HERE).get_template("explain-file.html")
    text = page.render(
        name=name,
        model=model,
        content={"name": name, "picture": address, "explanation": to_json(explanation, settings)},
        style=Markup(style),
        script=Markup(script),
        style_hash=named_by_hash(style),
        script_hash=named_by_hash(script),
    )
    atomic_write(file, text.encode())
    return file


def _levels(explanation: Explanation) -> list[dict[str, Any]]:
    """Return for each level its stride and grid, the anchors of its first cell, and the steps between cells."""
    levels, start = [], 0
    for level, (stride, (rows, columns)) in enumerate(zip(explanation.strides, explanation.grids, strict=True)):
        first = explanation.anchors[explanation.anchors_of(level, 0, 0)].double()
        right, below = (
            explanation.anchors[explanation.anchors_of(level, *cell)[0]].double()
            for cell in ((0, min(1, columns - 1)), (min(1, rows - 1), 0))
        )
        steps = [float(right[0] - first[0, 0]) or stride, float(below[1] - first[0, 1]) or stride]
        levels.append(
            {"stride": stride, "rows": rows, "columns": columns, "start": start, "cell": first.tolist(), "steps": steps}
        )
        start += rows * columns * explanation.per_cell
    return levels


def _objects(explanation: Explanation, labels: AnchorLabels) -> list[dict[str, Any]]:
    """Return the labelled objects, their outcomes, and the anchor and the moved box with the best IoU with each."""
    outcomes = {outcome.truth: (outcome, remedy) for outcome, remedy in explanation.outcomes}
    decoded = torch.from_numpy(explanation.steps.decoded)
    objects = []
    for index, (box, label) in enumerate(zip(labels.boxes, labels.classes.tolist(), strict=True)):
        own, moved = (pairwise_iou(boxes, box[None].to(boxes.dtype))[:, 0] for boxes in (explanation.anchors, decoded))
        objects.append(
            {
                "name": explanation.names[label],
                "label": label,
                "box": box.tolist(),
                "anchor": int(own.argmax()),
                "anchor_iou": float(own.max()),
                "nearest": int(moved.argmax()),
                "nearest_iou": float(moved.max()),
                **(_outcome(*outcomes[index], explanation.names) if index in outcomes else {"where": "ignored"}),
            }
        )
    return objects


def _outcome(outcome: Outcome, remedy: Remedy | None, names: tuple[str, ...]) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "where": outcome.where,
        "reason": MISS_REASONS.get(outcome.where, ""),
        "score": None if math.isnan(outcome.score) else outcome.score,
        "taken_for": names[outcome.taken_for] if outcome.taken_for >= 0 else "",
    }
    if remedy is not None:
        tree["remedy"] = {**remedy._asdict(), "value": None if math.isnan(remedy.value) else remedy.value}
    return tree
