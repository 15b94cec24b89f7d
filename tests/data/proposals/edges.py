"""A model of edges in OpenCV's format, small enough to write by hand."""

import gzip
from pathlib import Path

FOREST = """%YAML:1.0
---
options:
   stride: 2
   shrinkNumber: 2
   patchSize: 8
   patchInnerSize: 4
   numberOfGradientOrientations: 4
   gradientSmoothingRadius: 0
   regFeatureSmoothingRadius: 2
   ssFeatureSmoothingRadius: 8
   gradientNormalizationRadius: 4
   selfsimilarityGridSize: 2
   numberOfTrees: 1
   numberOfTreesToEvaluate: 1
childs:
   - [ 2, 0, 0 ]
featureIds:
   - [ {feature}, 0, 0 ]
thresholds:
   - [ {threshold}, 0., 0. ]
edgeBoundaries:
   - [ 0, 0, 0, 4 ]
edgeBins:
   - [ 5, 6, 9, 10 ]
"""
"""One tree of one question and two answers: no edge, or one at the 2 x 2 pixels in the middle."""


def write_edge_model(path: Path, threshold: float = 0.5) -> Path:
    """Write a forest that sees an edge where the gradient in the middle of a patch is at least the threshold."""
    cells = (8 // 2) ** 2  # of a patch; the channels are 3 colours, then the gradient's magnitude
    text = FOREST.format(feature=3 * cells + 5, threshold=threshold)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path
