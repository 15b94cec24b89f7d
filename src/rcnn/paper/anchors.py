"""Table 8: how many scales and ratios the anchors of a cell have."""

from rcnn.config import Settings
from rcnn.paper.experiment import SCORES, Experiment, greater
from rcnn.paper.measure import trained
from rcnn.paper.quoted import TABLE_8
from rcnn.paper.workspace import Training

ROWS = {
    "1 scale, 1 ratio: small": ("1 scale (128), 1 ratio", slice(0, 1), 1),
    "1 scale, 1 ratio: medium": ("1 scale (256), 1 ratio", slice(1, 2), 1),
    "1 scale, 3 ratios: small": ("1 scale (128), 3 ratios", slice(0, 1), 3),
    "1 scale, 3 ratios: medium": ("1 scale (256), 3 ratios", slice(1, 2), 3),
    "3 scales, 1 ratio": ("3 scales, 1 ratio", slice(0, 3), 1),
    "3 scales, 3 ratios": ("3 scales, 3 ratios", slice(0, 3), 3),
}
"""Row -> its name in table 8, the scales used, the number of ratios."""


def experiment(settings: Settings) -> Experiment:
    """Return an experiment of six trainings, on subsets of the settings' anchors."""
    three = three_scales(settings.anchors.sizes)
    measurements = []
    for row, (_, scales, count) in ROWS.items():
        sizes = tuple(level[scales] for level in three)
        ratios = settings.anchors.ratios if count == 3 else (1.0,)
        name = f"anchors-{scales.start}-{scales.stop}x{count}"
        measurements.append(trained(row, Training(name, {"anchors": {"sizes": sizes, "ratios": ratios}})))
    full = "3 scales, 3 ratios"
    pixels = "; ".join(", ".join(f"{size:.0f}" for size in level) for level in three)
    return Experiment(
        title="scales and ratios of the anchors",
        source="table 8; VGG-16, VOC 2007 test",
        columns=SCORES,
        measurements=tuple(measurements),
        paper={row: {"map50": TABLE_8[quoted]} for row, (quoted, _, _) in ROWS.items()},
        claims=tuple(greater(f"{full} >= {row}", full, row) for row in ROWS if row.startswith("1 scale, 1 ratio")),
        notes=(f"scales of a cell, pixels: {pixels}",),
    )


def three_scales(sizes: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    """Reduce each level to its first three sizes, or if it has fewer to the smallest and 1/3 and 2/3 octaves above."""
    octave = tuple(2 ** (third / 3) for third in range(3))
    return tuple(level[:3] if len(level) >= 3 else tuple(min(level) * step for step in octave) for level in sizes)
