"""Prediction of `resnet50-fpn` with torchvision's weights layout, against torchvision, in turn and in one run.

    python benchmarks/infer_vs_torchvision.py [--runs 7] [--threads 2]

Both get the same random weights and one 800 x 1088 image on the CPU, 1000 proposals and 100 detections. Three programs:
torchvision as it comes, torchvision with its batch norm folded and channels last, and ours as `predict` runs it.
"""

import argparse
import statistics
import time

import torch
import torchvision
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from rcnn.backbones.norm import fold_batch_norm
from rcnn.detector import Detector
from rcnn.exchange.detectors import from_torchvision
from rcnn.model.structures import Batch

SHAPE = (800, 1088)


def torchvision_detector() -> nn.Module:
    torch.manual_seed(0)
    net = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).eval()
    nn.init.normal_(net.rpn.head.cls_logits.weight, std=0.02)
    nn.init.normal_(net.roi_heads.box_predictor.cls_score.weight, std=0.02)
    nn.init.normal_(net.roi_heads.box_predictor.bbox_pred.weight, std=0.005)
    return net


def torchvision_forward(net: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Its detector without its resizing, so that both see the same pixels."""
    features = net.backbone(images)
    proposals, _ = net.rpn(ImageList(images, [SHAPE]), features)
    return net.roi_heads(features, proposals, [SHAPE])[0][0]


def paired(a: torch.Tensor, b: torch.Tensor) -> float:
    """Share of boxes `a` that have a box of `b` within 0.05 px."""
    return ((a[:, None] - b[None]).abs().amax(dim=-1).amin(dim=1) <= 0.05).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    stock, treated = torchvision_detector(), torchvision_detector()
    imported = from_torchvision(stock)
    ours = Detector(imported.model, imported.settings, imported.names, device="cpu").runner
    fold_batch_norm(treated)
    treated = treated.to(memory_format=torch.channels_last)

    image = torch.randn(1, 3, *SHAPE)
    last = image.contiguous(memory_format=torch.channels_last)
    size = torch.tensor([SHAPE], dtype=torch.float32)
    batch = Batch(last, size, torch.ones(1, 2), size)
    programs = {
        "torchvision": lambda: torchvision_forward(stock, image),
        "torchvision, folded, channels last": lambda: torchvision_forward(treated, last),
        "rcnn": lambda: ours(batch),
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    with torch.inference_mode():
        expected, found = programs["torchvision"](), programs["rcnn"]()
        programs["torchvision, folded, channels last"]()
        for _ in range(options.runs):
            for name, program in programs.items():
                start = time.perf_counter()
                program()
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {options.threads} threads")
    for name, seconds in median.items():
        print(f"{name:38} {seconds:6.3f} s   rcnn / this {median['rcnn'] / seconds:.3f}")
    boxes = found.boxes[0][found.valid[0]]
    print(f"boxes paired within 0.05 px: {paired(expected['boxes'], boxes):.4f} of {len(expected['boxes'])}")


if __name__ == "__main__":
    main()
