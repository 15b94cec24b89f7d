"""Every figure that is quoted from the Faster R-CNN paper, with its table or section.

The experiments read the paper's numbers here, docs/paper.md lists them, and `tests/test_quotes.py` finds numbers that
code or documentation attributes to the paper and that are not listed here. Tables and sections are those of arXiv
1506.01497v3; `journal version` is the later text in TPAMI. Where the two implementations that the authors released say
more than the text, the source is `Python code` (py-faster-rcnn) or `MATLAB code` (faster_rcnn). OHEM has its own
code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

MAP = "mAP, %"
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The classes of PASCAL VOC in the order of tables 6 and 7."""


@dataclass(frozen=True)
class Quote:
    """Figures from one place.

    Attributes:
        source: the place: a table or section of the paper, or an implementation.
        what: what the figures are, of which network and data.
        columns: names of the figures of a row, with their units.
        rows: name of a row -> its figures, one per column.
    """

    source: str
    what: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]

    def __getitem__(self, row: str) -> float:
        """Return the figure of a row in the first column."""
        return self.rows[row][0]

    def column(self, name: str | None = None) -> dict[str, float]:
        """Return row -> figure of a column, by default the first."""
        index = 0 if name is None else self.columns.index(name)
        return {row: figures[index] for row, figures in self.rows.items()}

    def row(self, name: str) -> dict[str, float]:
        """Return column -> figure of a row."""
        return dict(zip(self.columns, self.rows[name], strict=True))


def _single(source: str, what: str, column: str, figures: Mapping[str, float]) -> Quote:
    return Quote(source, what, (column,), {row: (figure,) for row, figure in figures.items()})


# --- tables ----------------------------------------------------------------------------------------------------------

TABLE_1 = Quote(
    "table 1",
    "mean size of the proposals learned from each anchor; ZF, shorter side 600",
    ("width, pixels", "height, pixels"),
    {
        "128, 2:1": (188, 111),
        "128, 1:1": (113, 114),
        "128, 1:2": (70, 92),
        "256, 2:1": (416, 229),
        "256, 1:1": (261, 284),
        "256, 1:2": (174, 332),
        "512, 2:1": (768, 437),
        "512, 1:1": (499, 501),
        "512, 1:2": (355, 715),
    },
)
"""Rows are scale and ratio. That 2:1 is the wide anchor, and that the width comes first, follows from the sizes."""

TABLE_2 = _single(
    "table 2",
    "proposals in training -> in test; Fast R-CNN with ZF, VOC 2007 test",
    MAP,
    {
        "SS -> SS 2000": 58.7,
        "EB -> EB 2000": 58.6,
        "RPN shared -> RPN 300": 59.9,
        "RPN unshared -> RPN 300": 58.7,
        "SS -> RPN 100": 55.1,
        "SS -> RPN 300": 56.8,
        "SS -> RPN 1000": 56.3,
        "SS -> RPN 6000, no NMS": 55.2,
        "SS -> RPN 100, no cls": 44.6,
        "SS -> RPN 300, no cls": 51.4,
        "SS -> RPN 1000, no cls": 55.8,
        "SS -> RPN 300, no reg": 52.1,
        "SS -> RPN 1000, no reg": 51.3,
        "SS -> RPN+VGG 300": 59.2,
    },
)
"""SS is Selective Search, EB EdgeBoxes; in training 2000 proposals each."""

TABLE_3 = _single(
    "table 3",
    "detectors with VGG-16 by proposals and training data; VOC 2007 test",
    MAP,
    {
        "SS 2000, 07": 66.9,
        "SS 2000, 07, by this implementation": 68.1,
        "SS 2000, 07+12": 70.0,
        "RPN 300 unshared, 07": 68.5,
        "RPN 300 shared, 07": 69.9,
        "RPN 300 shared, 07+12": 73.2,
        "RPN 300 shared, COCO+07+12": 78.8,
    },
)

TABLE_4 = _single(
    "table 4",
    "detectors with VGG-16 by proposals and training data; VOC 2012 test",
    MAP,
    {
        "SS 2000, 12": 65.7,
        "SS 2000, 07++12": 68.4,
        "RPN 300 shared, 12": 67.0,
        "RPN 300 shared, 07++12": 70.4,
        "RPN 300 shared, COCO+07++12": 75.9,
    },
)

TABLE_5 = Quote(
    "table 5",
    "milliseconds per image on a K40 GPU, Selective Search on a CPU",
    ("conv", "proposals", "regions", "total", "images per second"),
    {
        "vgg16, SS": (146, 1510, 174, 1830, 0.5),
        "vgg16, RPN": (141, 10, 47, 198, 5),
        "zf, RPN": (31, 3, 25, 59, 17),
    },
)

TABLE_6 = Quote(
    "table 6",
    "AP of each class by proposals and training data; VGG-16, VOC 2007 test",
    ("mAP", *VOC_CLASSES),
    {
        "SS, 07": (
            *(66.9, 74.5, 78.3, 69.2, 53.2, 36.6, 77.3, 78.2, 82.0, 40.7, 72.7),
            *(67.9, 79.6, 79.2, 73.0, 69.0, 30.1, 65.4, 70.2, 75.8, 65.8),
        ),
        "SS, 07+12": (
            *(70.0, 77.0, 78.1, 69.3, 59.4, 38.3, 81.6, 78.6, 86.7, 42.8, 78.8),
            *(68.9, 84.7, 82.0, 76.6, 69.9, 31.8, 70.1, 74.8, 80.4, 70.4),
        ),
        "RPN unshared, 07": (
            *(68.5, 74.1, 77.2, 67.7, 53.9, 51.0, 75.1, 79.2, 78.9, 50.7, 78.0),
            *(61.1, 79.1, 81.9, 72.2, 75.9, 37.2, 71.4, 62.5, 77.4, 66.4),
        ),
        "RPN, 07": (
            *(69.9, 70.0, 80.6, 70.1, 57.3, 49.9, 78.2, 80.4, 82.0, 52.2, 75.3),
            *(67.2, 80.3, 79.8, 75.0, 76.3, 39.1, 68.3, 67.3, 81.1, 67.6),
        ),
        "RPN, 07+12": (
            *(73.2, 76.5, 79.0, 70.9, 65.5, 52.1, 83.1, 84.7, 86.4, 52.0, 81.9),
            *(65.7, 84.8, 84.6, 77.5, 76.7, 38.8, 73.6, 73.9, 83.0, 72.6),
        ),
        "RPN, COCO+07+12": (
            *(78.8, 84.3, 82.0, 77.7, 68.9, 65.7, 88.1, 88.4, 88.9, 63.6, 86.3),
            *(70.8, 85.9, 87.6, 80.1, 82.3, 53.6, 80.4, 75.8, 86.6, 78.9),
        ),
    },
)

TABLE_7 = Quote(
    "table 7",
    "AP of each class by proposals and training data; VGG-16, VOC 2012 test",
    ("mAP", *VOC_CLASSES),
    {
        "SS, 12": (
            *(65.7, 80.3, 74.7, 66.9, 46.9, 37.7, 73.9, 68.6, 87.7, 41.7, 71.1),
            *(51.1, 86.0, 77.8, 79.8, 69.8, 32.1, 65.5, 63.8, 76.4, 61.7),
        ),
        "SS, 07++12": (
            *(68.4, 82.3, 78.4, 70.8, 52.3, 38.7, 77.8, 71.6, 89.3, 44.2, 73.0),
            *(55.0, 87.5, 80.5, 80.8, 72.0, 35.1, 68.3, 65.7, 80.4, 64.2),
        ),
        "RPN, 12": (
            *(67.0, 82.3, 76.4, 71.0, 48.4, 45.2, 72.1, 72.3, 87.3, 42.2, 73.7),
            *(50.0, 86.8, 78.7, 78.4, 77.4, 34.5, 70.1, 57.1, 77.1, 58.9),
        ),
        "RPN, 07++12": (
            *(70.4, 84.9, 79.8, 74.3, 53.9, 49.8, 77.5, 75.9, 88.5, 45.6, 77.1),
            *(55.3, 86.9, 81.7, 80.9, 79.6, 40.1, 72.6, 60.9, 81.2, 61.5),
        ),
        "RPN, COCO+07++12": (
            *(75.9, 87.4, 83.6, 76.8, 62.9, 59.6, 81.9, 82.0, 91.3, 54.9, 82.6),
            *(59.0, 89.0, 85.5, 84.7, 84.1, 52.2, 78.9, 65.5, 85.4, 70.2),
        ),
    },
)

TABLE_8 = _single(
    "table 8",
    "scales and ratios of the anchors, scales in pixels; VGG-16, VOC 2007 test",
    MAP,
    {
        "1 scale (128), 1 ratio": 65.8,
        "1 scale (256), 1 ratio": 66.7,
        "1 scale (128), 3 ratios": 68.8,
        "1 scale (256), 3 ratios": 67.9,
        "3 scales, 1 ratio": 69.8,
        "3 scales, 3 ratios": 69.9,
    },
)

TABLE_9 = _single(
    "table 9",
    "lambda, the weight of the RPN's box loss; VGG-16, VOC 2007 test",
    MAP,
    {"0.1": 67.2, "1": 68.9, "10": 69.9, "100": 69.1},
)

TABLE_10 = _single(
    "table 10",
    "two stages (300 proposals) against one (20000 dense boxes); ZF, VOC 2007 test",
    MAP,
    {"two stages (unshared)": 58.7, "one stage, 1 scale": 53.8, "one stage, 5 scales": 53.9},
)

TABLE_11 = Quote(
    "table 11",
    "COCO with VGG-16: detector, trained on, scored on",
    ("AP50, %", "AP, %"),
    {
        "Fast R-CNN as published, train, test-dev": (35.9, 19.7),
        "Fast R-CNN of this implementation, train, val": (38.6, 18.9),
        "Fast R-CNN of this implementation, train, test-dev": (39.3, 19.3),
        "Faster R-CNN, train, val": (41.5, 21.2),
        "Faster R-CNN, train, test-dev": (42.1, 21.5),
        "Faster R-CNN, trainval, test-dev": (42.7, 21.9),
    },
)

TABLE_12 = Quote(
    "table 12",
    "training data of the detector; VGG-16",
    ("VOC 2007 test: mAP, %", "VOC 2012 test: mAP, %"),
    {
        "VOC of the same year": (69.9, 67.0),
        "VOC 07+12": (73.2, math.nan),
        "VOC 07++12": (math.nan, 70.4),
        "COCO, no VOC": (76.1, 73.0),
        "COCO+VOC": (78.8, 75.9),
    },
)

JOURNAL_TABLE_10 = _single(
    "table 10 of the journal version",
    "proposals in test; VGG-16, VOC 2007 test",
    MAP,
    {"50": 66.3, "100": 68.9, "150": 69.5, "200": 69.8, "300": 69.9, "500": 69.8, "1000": 69.8},
)

FIGURE_4 = _single(
    "figure 4",
    "recall by IoU, drawn as curves without numbers; VOC 2007 test",
    "",
    {"proposals, at least": 300, "then": 1000, "at most": 2000},
)

# --- sections --------------------------------------------------------------------------------------------------------

SECTION_3_1 = _single(
    "section 3.1",
    "the RPN's head",
    "",
    {
        "side of the sliding window, cells": 3,
        "side of the windows of its two siblings, cells": 1,
        "scores of an anchor": 2,
        "coordinates of an anchor": 4,
        "receptive field with ZF, pixels": 171,
        "receptive field with VGG-16, pixels": 228,
        "features of a cell with ZF": 256,
        "features of a cell with VGG-16": 512,
    },
)
SECTION_3_1_1 = _single(
    "section 3.1.1",
    "anchors",
    "",
    {
        "scales": 3,
        "ratios": 3,
        "anchors of a cell": 9,
        "cells of a map, about": 2400,
        "filters of earlier detectors, one side, cells": 5,
        "the other": 7,
    },
)
SECTION_3_1_2 = _single(
    "section 3.1.2",
    "labels and loss",
    "",
    {
        "a positive anchor's IoU is above": 0.7,
        "a negative anchor's IoU is below": 0.3,
        "N_cls": 256,
        "N_reg, about": 2400,
        "lambda": 10,
        "sigma of smooth L1": 1,
    },
)
SECTION_3_1_3 = _single(
    "section 3.1.3",
    "training the RPN, on VOC",
    "",
    {
        "anchors sampled of an image": 256,
        "of these positive, at most": 128,
        "positive for each negative, at most": 1,
        "standard deviation of new weights": 0.01,
        "learning rate": 0.001,
        "steps with it": 60000,
        "learning rate afterwards": 0.0001,
        "steps with that": 20000,
        "momentum": 0.9,
        "weight decay": 0.0005,
    },
)
SECTION_3_2 = _single(
    "section 3.2",
    "training schemes; of accuracy it says that the results of joint training are close",
    "",
    {
        "steps of alternating training": 4,
        "time that joint training saves of alternating, %, at least": 25,
        "at most": 50,
    },
)
SECTION_3_3 = _single(
    "section 3.3",
    "implementation",
    "",
    {
        "shorter side of an image": 600,
        "longer side of a typical image": 1000,
        "stride of the last map": 16,
        "scales of anchors, pixels, smallest": 128,
        "middle": 256,
        "largest": 512,
        "their ratios: 2:1, 1:1 and 1:2": 3,
        "anchors of an image of 1000 x 600, about": 20000,
        "of these inside the image, about": 6000,
        "IoU threshold of NMS": 0.7,
        "proposals of an image after it, about": 2000,
        "proposals in training": 2000,
    },
)
SECTION_4_1 = _single(
    "section 4.1",
    "experiments on VOC",
    "",
    {
        "proposals in test, at most": 300,
        "proposals of Selective Search": 2000,
        "EdgeBoxes are those for an IoU of": 0.7,
    },
)
SECTION_4_2 = _single(
    "section 4.2",
    "negatives of the second stage have an IoU of",
    "",
    {"from, on VOC": 0.1, "from, on COCO": 0, "to": 0.5},
)

# --- implementations -------------------------------------------------------------------------------------------------

PYTHON_CODE = _single(
    "Python code",
    "settings that the text does not give",
    "",
    {
        "longest side of an image": 1000,
        "lowest value of a pixel": 0,
        "highest value of a pixel": 255,
        "base box of the anchors, pixels": 16,
        "centre of the first cell, pixels": 8,
        "boxes before NMS, joint training": 12000,
        "boxes before NMS, test": 6000,
        "proposals in training": 2000,
        "proposals in test": 300,
        "smallest side of a proposal, pixels": 16,
        "images of a step, joint training": 2,
        "of these at once": 1,
        "steps, joint training": 70000,
        "steps until the learning rate is divided": 50000,
        "RoIs of an image, joint training": 128,
        "images of a step, second stage of alternating training": 2,
        "RoIs of an image, alternating training": 64,
        "lowest IoU of a negative RoI": 0,
        "coordinates of the background class": 4,
        "mean of normalised box targets, joint training": 0,
        "their deviation, centre": 0.1,
        "their deviation, size": 0.2,
        "points of VOC 2007's AP": 11,
        "lowest score of a detection": 0.05,
        "detections of an image, at most": 100,
        "last NMS": 0.3,
        "side of a pooled RoI, VGG-16": 7,
        "width of the second stage's head": 4096,
        "dropout": 0.5,
        "sigma of smooth L1, second stage": 1,
    },
)
MATLAB_CODE = _single(
    "MATLAB code",
    "settings that the text does not give",
    "",
    {
        "boxes before NMS, test": 6000,
        "images of a step, second stage": 2,
        "RoIs of an image": 64,
        "detections of an image and class, at most": 100,
        "sigma of smooth L1": 1,
        "steps of the second stage": 30000,
        "steps with a tenth of the learning rate": 10000,
        "points of VOC 2007's AP": 11,
    },
)
OHEM_CODE = _single(
    "OHEM code",
    "online hard example mining by Shrivastava and others",
    "",
    {"RoIs of an image": 64},
)

TABLES = (
    *(TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5, TABLE_6, TABLE_7, TABLE_8, TABLE_9, TABLE_10, TABLE_11, TABLE_12),
    JOURNAL_TABLE_10,
)
QUOTES = (
    *TABLES,
    FIGURE_4,
    *(SECTION_3_1, SECTION_3_1_1, SECTION_3_1_2, SECTION_3_1_3, SECTION_3_2, SECTION_3_3, SECTION_4_1, SECTION_4_2),
    *(PYTHON_CODE, MATLAB_CODE, OHEM_CODE),
)
"""All quotes, in the order of docs/paper.md."""
