"""AP of a detector with other ways to suppress its final boxes: NMS at several thresholds, and Gaussian Soft-NMS.

    python benchmarks/suppression.py MODEL DATA [--split val] [--nms 0.4 0.5 0.6 0.7] [--sigma 0.3 0.5 0.7]

`per class` gives every class the threshold with its highest AP. It is chosen on these very images, so no other way to
choose thresholds per class can be better on them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import rcnn
from rcnn.evaluate import evaluate
from rcnn.metrics.table import Metrics

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from soft_nms import SoftNMS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--split", default="val")
    parser.add_argument("--nms", nargs="+", type=float, default=[0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--sigma", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    options = parser.parse_args()
    detector = rcnn.load(options.model)
    dataset = rcnn.open_dataset(options.data, options.split, detector.settings, detector.names)

    def scored(name: str, variant: rcnn.Detector) -> Metrics:
        metrics = evaluate(variant, dataset, losses=False)
        print(
            f"{name:14} AP {metrics.ap:.4f}  AP50 {metrics.ap50:.4f}  AP75 {metrics.to_row()['ap75']:.4f}", flush=True
        )
        return metrics

    by_class = [
        scored(f"NMS {iou:g}", detector.with_settings([f"roi.nms={iou}"])).coco.per_class_ap for iou in options.nms
    ]
    print(f"{'per class':14} AP {np.nanmean(np.nanmax(by_class, axis=0)):.4f}")
    for sigma in options.sigma:
        scored(f"Soft-NMS {sigma:g}", detector.with_suppression(detections=SoftNMS(sigma)))


if __name__ == "__main__":
    main()
