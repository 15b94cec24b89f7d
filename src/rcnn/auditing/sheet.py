"""A picture of the first suggestions of an audit."""

from pathlib import Path

import numpy as np

from rcnn.auditing.audit import Audit
from rcnn.diagnose.label_errors import Suggestion, question
from rcnn.images.stream import read_picture
from rcnn.plots.contact_sheet import Tile, contact_sheet

SHOWN = 24
"""Number of suggestions in the picture."""

MARGIN, MIN_SIDE = 1.0, 96.0
"""Space around the boxes of a suggestion, as a multiple of their longer side, and the smallest side, pixels."""


def draw_audit(audit: Audit, path: Path) -> None:
    """Draw the first suggestions: parts of the images with their labels, and dashed the box in question."""
    tiles = [_tile(audit, suggestion) for suggestion in audit.suggestions[:SHOWN]]
    contact_sheet(tiles, audit.dataset.names, path)


def _tile(audit: Audit, suggestion: Suggestion) -> Tile:
    record, truth = audit.dataset.records[suggestion.image], audit.truth(suggestion.image)
    image = read_picture(record.path, audit.settings)
    boxes, labels = truth.boxes, truth.labels
    about = boxes[suggestion.truth][None] if suggestion.truth >= 0 else suggestion.box[None]
    both = np.concatenate((about, suggestion.box[None]))
    low, high = both[:, :2].min(axis=0), both[:, 2:].max(axis=0)
    reach = max((high - low).max(), MIN_SIDE / (1 + 2 * MARGIN)) * (0.5 + MARGIN)
    limits = np.array(record.size[::-1], np.float64)
    left, top = np.maximum((low + high) / 2 - reach, 0).astype(np.int64).tolist()
    right, bottom = np.ceil(np.minimum((low + high) / 2 + reach, limits)).astype(np.int64).tolist()
    seen = np.flatnonzero((boxes[:, :2] < (right, bottom)).all(axis=1) & (boxes[:, 2:] > (left, top)).all(axis=1))
    if suggestion.detection < 0:  # the label itself is drawn dashed
        seen = seen[seen != suggestion.truth]
    corner = np.array([left, top, left, top])
    return Tile(
        image[top:bottom, left:right],
        np.concatenate((boxes[seen], suggestion.box[None])) - corner,
        np.append(labels[seen], suggestion.label),
        f"{question(suggestion, truth, audit.dataset.names)} {record.name}",
        ignore=np.append(np.zeros(len(seen), bool), True),
    )
