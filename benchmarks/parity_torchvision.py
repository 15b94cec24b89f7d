"""Check that imported detectors give torchvision's boxes, labels and scores.

    python benchmarks/parity_torchvision.py [--images 50] [--short 320] [--proposals N] [--arch NAME] [--coco]
        [--device cpu]

Pictures of noise with odd sizes are processed by torchvision's detector and by ours, made from it by
`rcnn.from_torchvision`, up to the boxes in the resized image. Weights are random with outputs that spread like trained
ones, and the same perturbed by a tenth; with --coco, torchvision's COCO weights (downloaded), and the same perturbed by
a fiftieth. In float64 both process the same pixels, and torchvision's NMS, which offsets the classes to separate them,
is replaced by its per-class NMS. In float32 each prepares the picture itself, and torchvision runs with its defaults.

Two detections are a pair within 0.01 px and 1e-4 in score (float64: 1e-6 px and 1e-9). A detection without a partner
is traced. If the other library computed the same box and score, it was selected differently, and a tie within rounding
must be the cause: at an IoU threshold, between two scores, at the last rank; or it follows from another such case. If
the other library never computed it, its proposal must be such a tie of the first stage. Detections without such a cause
count as unexplained; those that the other library has within five times the limits, as rounding beyond the limits.

If any is unexplained, the command fails in the end. In float64 no IoU is at a threshold by rounding and nothing is
rounded beyond the limits, so all must be pairs except those of equal scores.
"""

import argparse
import copy
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

import rcnn
from rcnn.interop.torchvision import ARCHITECTURES
from rcnn.model import boxes as box_ops
from rcnn.model.structures import Batch, NormalisedBatch

PAIR = {torch.float32: (0.01, 1e-4), torch.float64: (1e-6, 1e-9)}
TIE_IOU, TIE_SCORE = 1e-3, 1e-4
UNEXPLAINED, ROUNDED = {"UNEXPLAINED"}, {"IoU at the threshold", "rounding beyond the limits"}
"""Causes that must not occur, in any precision and in float64."""
SPREAD = (
    ("rpn.head.cls_logits", 1.5),
    ("rpn.head.bbox_pred", 0.15),
    ("roi_heads.box_predictor.cls_score", 1.5),
    ("roi_heads.box_predictor.bbox_pred", 0.7),
)


class Found(NamedTuple):
    """The results of one library for an image; rows of candidates are (proposal, class).

    Attributes:
        boxes, scores, labels: the detections.
        proposals: (P, 4).
        boxes_all, scores_all: (P * K, 4) and (P * K,), before any selection.
        anchors_all: (A, 4) boxes of all anchors, before any selection.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    proposals: Tensor
    boxes_all: Tensor
    scores_all: Tensor
    anchors_all: Tensor


@torch.no_grad()
def spread(model: Any) -> None:
    """Give norms the statistics of random images, then logits and deltas these standard deviations."""
    images = [torch.rand(3, 257, 321) for _ in range(4)]
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    model.backbone.train()
    model.backbone(torch.randn(2, 3, 256, 320))
    model.eval()
    for name, std in SPREAD:
        outputs: list[Tensor] = []
        layer = model.get_submodule(name)
        hook = layer.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(_rows(output)))
        model(images)
        hook.remove()
        seen = torch.cat(outputs)
        layer.bias -= seen.mean(dim=0)
        scale = std / seen.std(dim=0).mean()
        layer.weight *= scale
        layer.bias *= scale


def _rows(output: Tensor) -> Tensor:
    """(N, C) or (N, C, H, W) -> (rows, C)."""
    return output.movedim(1, -1).flatten(0, -2)


@torch.no_grad()
def perturb(model: nn.Module, share: float) -> None:
    """Change every weight at random by this share of its value."""
    for tensor in model.parameters():
        tensor *= 1 + share * torch.randn_like(tensor).clamp(-3, 3)


@contextmanager
def nms_by_class(wanted: bool) -> Iterator[None]:
    ops = torchvision.ops.boxes
    stock = ops.batched_nms
    ops.batched_nms = ops._batched_nms_vanilla if wanted else stock
    try:
        yield
    finally:
        ops.batched_nms = stock


def theirs(model: Any, images: Tensor, size: tuple[int, int]) -> Found:
    """Return torchvision's results for one image, and the candidates from which they were selected."""
    features, listed = model.backbone(images), ImageList(images, [size])
    logits, deltas = model.rpn.head(list(features.values()))
    flat = torchvision.models.detection.rpn.concat_box_prediction_layers(logits, deltas)[1]
    anchors = model.rpn.anchor_generator(listed, list(features.values()))
    proposals = model.rpn(listed, features)[0]
    heads = model.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, [size])))
    boxes = heads.box_coder.decode(deltas, proposals)[:, 1:].flatten(0, 1)
    result = heads(features, proposals, [size])[0][0]
    clip = torchvision.ops.clip_boxes_to_image
    return Found(
        result["boxes"],
        result["scores"],
        result["labels"] - 1,
        proposals[0],
        clip(boxes, size),
        logits.softmax(dim=-1)[:, 1:].flatten(),
        clip(model.rpn.box_coder.decode(flat, anchors).flatten(0, 1), size),
    )


def ours(
    model: rcnn.FasterRCNN, kind: type[Batch] | type[NormalisedBatch], images: Tensor, size: tuple[int, int]
) -> Found:
    """Return our results for one image, and the candidates that they were selected from; `kind` is the batch type."""
    sizes = images.new_tensor([size])
    _, out, proposals, (said,), found = model.execute(kind(images, sizes, torch.ones_like(sizes), sizes))
    kept, real = found.valid[0], proposals.valid[0]
    boxes = model.fast_rcnn.refined([said], sizes)
    anchors = box_ops.decode(torch.cat(out.deltas, dim=1), torch.cat(out.anchors))
    return Found(
        found.boxes[0][kept],
        found.scores[0][kept],
        found.labels[0][kept],
        proposals.boxes[0][real],
        boxes[0][real].flatten(0, 1),
        said.logits.softmax(dim=-1)[0][real][:, :-1].flatten(),
        box_ops.clip(anchors, sizes)[0],
    )


def near(a: Tensor, b: Tensor, limit: float) -> Tensor:
    """(N, 4), (M, 4) -> (N, M): no coordinate differs by more than `limit` pixels."""
    return (a[:, None] - b[None]).abs().amax(dim=-1) <= limit


def partners(a: Found, b: Found) -> Tensor:
    """Return (N,) the index of the detection of `b` that equals each of `a`, or -1."""
    pixels, score = PAIR[a.boxes.dtype]
    same = near(a.boxes, b.boxes, pixels) & (a.labels[:, None] == b.labels)
    same &= (a.scores[:, None] - b.scores).abs() <= score
    return torch.where(same.any(dim=1), same.int().argmax(dim=1), -1) if same.numel() else a.labels * 0 - 1


def reasons(a: Found, b: Found, settings: rcnn.Settings) -> Counter[str]:
    """Return the causes why detections of `a` have no partner in `b`."""
    pixels, score = PAIR[a.boxes.dtype]
    alone_a, alone_b = partners(a, b) < 0, partners(b, a) < 0
    classes = len(a.boxes_all) // max(1, len(a.proposals))
    labels = [torch.arange(len(found.boxes_all), device=a.boxes.device) % classes for found in (a, b)]
    unpaired = torch.cat((a.boxes[alone_a], b.boxes[alone_b])), torch.cat((a.labels[alone_a], b.labels[alone_b]))
    found: Counter[str] = Counter()
    for box, value, label in zip(a.boxes[alone_a], a.scores[alone_a], a.labels[alone_a], strict=True):
        own = labels[1] == label
        there = near(box[None], b.boxes_all[own], pixels)[0] & ((b.scores_all[own] - value).abs() <= score)
        if not there.any():
            row = (near(box[None], a.boxes_all, 0.0)[0] & (labels[0] == label)).int().argmax() // classes
            proposal = a.proposals[row][None]
            first = not near(proposal, b.proposals, pixels).any() and near(proposal, b.anchors_all, pixels).any()
            close = near(box[None], b.boxes_all[own], 5 * pixels)[0] & ((b.scores_all[own] - value).abs() <= 5 * score)
            cause = (
                "tie of the first stage" if first else "rounding beyond the limits" if close.any() else "UNEXPLAINED"
            )
            found[cause] += 1
            continue
        rival = own & (b.scores_all > settings.roi.score)
        overlap, gap = box_iou(box[None], b.boxes_all[rival])[0], b.scores_all[rival] - value
        other = box_iou(box[None], unpaired[0])[0] > settings.roi.nms - TIE_IOU
        full = len(b.boxes) == settings.roi.detections
        if full and value <= b.scores.min() + TIE_SCORE:
            found["last place"] += 1
        elif (((overlap - settings.roi.nms).abs() < TIE_IOU) & (gap > -TIE_SCORE)).any():
            found["IoU at the threshold"] += 1
        elif ((gap.abs() < TIE_SCORE) & (overlap > settings.roi.nms) & (overlap < 1 - 1e-9)).any():
            found["equal scores"] += 1
        elif (other & (unpaired[1] == label)).sum() > 1:
            found["follows from another"] += 1
        else:
            found["UNEXPLAINED"] += 1
    return found


@torch.no_grad()
def compare(model: Any, options: argparse.Namespace, dtype: torch.dtype) -> tuple[str, bool]:
    """Return one line of the report, and whether the claim holds."""
    detector = rcnn.from_torchvision(model)
    exact = dtype == torch.float64
    a = copy.deepcopy(model).to(options.device, dtype).eval()
    b = copy.deepcopy(detector.model).to(options.device, dtype).eval()
    rng = np.random.default_rng(0)
    total = paired = proposals = same_proposals = 0
    worst_px = worst_score = 0.0
    why: Counter[str] = Counter()
    for _ in range(options.images):
        size = [int(side) | 1 for side in rng.integers(options.short // 2, options.short * 2, 2)]
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        listed, _ = a.transform([torch.from_numpy(pixels).permute(2, 0, 1).to(options.device, dtype) / 255])
        mine = detector.preprocessor.collate([detector.preprocessor.resize(pixels)], [(size[0], size[1])])
        assert tuple(mine.images.shape) == tuple(listed.tensors.shape)
        kind, images = (NormalisedBatch, listed.tensors) if exact else (Batch, mine.images.to(options.device))
        with nms_by_class(exact):
            first, second = (
                theirs(a, listed.tensors, listed.image_sizes[0]),
                ours(b, kind, images, listed.image_sizes[0]),
            )
        index = partners(first, second)
        kept = index >= 0
        total, paired = total + len(kept), paired + int(kept.sum())
        if kept.any():
            worst_px = max(worst_px, float((first.boxes[kept] - second.boxes[index[kept]]).abs().max()))
            worst_score = max(worst_score, float((first.scores[kept] - second.scores[index[kept]]).abs().max()))
        proposals += len(first.proposals)
        same_proposals += int(near(first.proposals, second.proposals, PAIR[dtype][0]).any(dim=1).sum())
        why += reasons(first, second, detector.settings) + reasons(second, first, detector.settings)
    causes = ", ".join(f"{cause} {count}" for cause, count in sorted(why.items())) or "none alone"
    wrong = UNEXPLAINED | (ROUNDED if exact else set())
    line = (
        f"{str(dtype).removeprefix('torch.'):8} {paired}/{total} = {100 * paired / max(1, total):.3f}% paired, "
        f"at most {worst_px:.1e} px and {worst_score:.1e}; proposals {same_proposals}/{proposals}; {causes}"
    )
    return line, paired > 0 and not wrong & why.keys()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--short", type=int, default=320, help="shorter side; torchvision's own is 800 (or 320)")
    parser.add_argument("--proposals", type=int, help="an image; by default torchvision's own, 1000 or 150")
    parser.add_argument("--arch", choices=list(ARCHITECTURES), help="one of them; by default all four")
    parser.add_argument("--coco", action="store_true", help="torchvision's COCO weights instead of random ones")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, {options.device}, {options.images} images"
    )
    wrong: list[str] = []
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in [options.arch] if options.arch else ARCHITECTURES:
        torch.manual_seed(0)
        weights: dict[str, Any] = {"weights": "COCO_V1"}
        if not options.coco:
            weights = {"weights": None, "weights_backbone": None, "num_classes": 21}
        sizes = {"min_size": options.short, "max_size": options.short * 5 // 3}
        if options.proposals:
            sizes["rpn_post_nms_top_n_test"] = options.proposals
        model = get_model(name, **weights, **sizes).eval()
        if not options.coco:
            spread(model)
        for kind in ("coco" if options.coco else "random", "perturbed"):
            if kind == "perturbed":
                perturb(model, 0.02 if options.coco else 0.1)
                if not options.coco:
                    spread(model)  # else the statistics of its norms no longer fit, and rounding errors grow
            for dtype in (torch.float64, torch.float32):
                line, holds = compare(model, options, dtype)
                print(f"{name:38} {kind:10} {line}", flush=True)
                wrong += [] if holds else [f"{name} with {kind} weights in {dtype}"]
    if wrong:
        sys.exit(f"Detections differ from torchvision's, or there are none: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
