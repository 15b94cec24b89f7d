"""Prediction of `resnet50-fpn` with torchvision's weights layout, against torchvision, in turn and in one run.

    python benchmarks/infer_vs_torchvision.py [--runs 7] [--threads 2] [--size 800 1088] [--proposals 1000]

All programs have the same random weights and the same image from 0 to 255, float32 on the CPU, which each normalises
itself, 1000 proposals and 100 detections. There are three: torchvision with its defaults, torchvision with its batch
norm folded and channels last, and ours as `predict` runs it. None of them resizes.

The detections of all three must agree, or the command fails: at least 0.99 of them must be pairs of one label within
0.05 px and 0.001 in score. The rest allows for ties, which the two resolve differently in float32.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from rcnn.backbones.norm import fold_batch_norm
from rcnn.detector import Detector
from rcnn.interop.detectors import from_torchvision
from rcnn.model.structures import Batch

SHAPE = (800, 1088)
PIXELS, SCORE, SHARE = 0.05, 1e-3, 0.99
"""Limits of a pair, and the smallest accepted share of detections in pairs."""
Found = dict[str, Tensor]
"""`boxes` (n, 4), `scores` (n,) and `labels` (n,), from 1, of an image."""


def torchvision_detector(size: tuple[int, int] = SHAPE, proposals: int = 1000) -> nn.Module:
    """Return torchvision's detector with random weights whose scores differ, so that suppression has work to do."""
    torch.manual_seed(0)
    net = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=91,
        min_size=min(size),
        max_size=max(size),
        rpn_pre_nms_top_n_test=proposals,
        rpn_post_nms_top_n_test=proposals,
    ).eval()
    nn.init.normal_(net.rpn.head.cls_logits.weight, std=0.02)
    nn.init.normal_(net.roi_heads.box_predictor.cls_score.weight, std=0.02)
    nn.init.normal_(net.roi_heads.box_predictor.bbox_pred.weight, std=0.005)
    return net


def torchvision_forward(net: nn.Module, pixels: Tensor, memory_format: torch.memory_format) -> Found:
    """Run torchvision's detector without its resizing, on (1, 3, H, W) pixels from 0 to 255."""
    images = net.transform.normalize(pixels[0] / 255)[None].contiguous(memory_format=memory_format)
    sizes = [(pixels.shape[2], pixels.shape[3])]
    features = net.backbone(images)
    proposals, _ = net.rpn(ImageList(images, sizes), features)
    return net.roi_heads(features, proposals, sizes)[0][0]


def ours_forward(detector: Detector, batch: Batch) -> Found:
    pass_ = detector.runtime.execute(batch, fields=("detections",))
    assert pass_.detections is not None
    boxes, scores, labels, valid = (part[0] for part in pass_.detections[:4])
    return {"boxes": boxes[valid], "scores": scores[valid], "labels": labels[valid] + 1}


def paired(a: Found, b: Found) -> float:
    """Return the number of common detections over the larger number of detections; 0 if there are none."""
    near = (a["boxes"][:, None] - b["boxes"]).abs().amax(dim=-1) <= PIXELS  # (n, m)
    near &= (a["scores"][:, None] - b["scores"]).abs() <= SCORE
    near &= a["labels"][:, None] == b["labels"]
    if not near.numel():
        return 0.0
    return min(int(near.any(dim=1).sum()), int(near.any(dim=0).sum())) / max(near.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=SHAPE, metavar=("HEIGHT", "WIDTH"), help="multiples of 32")
    parser.add_argument("--proposals", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.size[0], options.size[1])

    stock, treated = (torchvision_detector(size, options.proposals) for _ in range(2))
    imported = from_torchvision(stock)
    ours = Detector(imported.model, imported.settings, imported.names, device="cpu")
    fold_batch_norm(treated)
    treated = treated.to(memory_format=torch.channels_last)

    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8).permute(1, 2, 0).numpy()
    preprocessor = ours.preprocessor
    batch = preprocessor.collate([preprocessor.resize(image, size)], [size])
    pixels = batch.images
    plain, last = torch.contiguous_format, torch.channels_last
    programs: dict[str, Callable[[], Found]] = {
        "torchvision": lambda: torchvision_forward(stock, pixels, plain),
        "torchvision, folded, channels last": lambda: torchvision_forward(treated, pixels, last),
        "rcnn": lambda: ours_forward(ours, batch),
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    with torch.inference_mode():
        found = {name: program() for name, program in programs.items()}
        for _ in range(options.runs):
            for name, program in programs.items():
                start = time.perf_counter()
                program()
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    height, width = size
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {options.threads} threads")
    print(f"{height} x {width} pixels, at most {options.proposals} proposals")
    shares = {name: paired(found["rcnn"], one) for name, one in found.items()}
    for name, seconds in median.items():
        ratio = f"rcnn / this {median['rcnn'] / seconds:.3f}"
        print(
            f"{name:38} {seconds:6.3f} s   {ratio}   {len(found[name]['boxes'])} detections, agree {shares[name]:.4f}"
        )
    worst = min(shares, key=lambda name: shares[name])
    if shares[worst] < SHARE:
        sys.exit(
            f"Only {shares[worst]:.4f} of the detections of rcnn and of `{worst}` agree (within {PIXELS} px and "
            f"{SCORE}), at least {SHARE} must: the two do not compute the same, so the times can't be compared."
        )


if __name__ == "__main__":
    main()
