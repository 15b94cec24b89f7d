"""Training compared with torchvision's FasterRCNN: seconds per image in turn, in one run, and AP after equal epochs.

    python benchmarks/train_vs_torchvision.py DATA --init WEIGHTS --runs 5
    python benchmarks/train_vs_torchvision.py DATA --init WEIGHTS --runs 0 --epochs 3 --seeds 0 1 2
        [--split test] [--only NAME ...]
    [--batch 8] [--settings section.key=value ...]

All train on the same batches of DATA, start from the same MobileNetV2 weights, and train the same layers with the same
optimiser and schedule, without averaging of weights.
torchvision: its FPN of 256 channels and head of 1024, 2000 proposals, 512 RoIs, float32.
Ours: the same network and numbers; the same network with our numbers (1000 to 500 proposals, 128 RoIs); and the preset
`mobilenet-fpn` as it ships. Each in float32 and in the precision that `train` chooses here.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from rcnn.config import Settings
from rcnn.data.dataset import Dataset
from rcnn.data.formats.find import open_dataset, open_splits
from rcnn.data.loading.loader import Item, Loader
from rcnn.detector import Detector
from rcnn.evaluate import evaluate
from rcnn.metrics.coco import coco_metrics
from rcnn.metrics.types import Prediction, Truth
from rcnn.presets import build, settings_of
from rcnn.training.optim import build_optimizer, learning_rate
from rcnn.training.step import uses_bf16
from rcnn.weights.backbone import load_backbone

NETWORK = ("model.channels=256", "model.levels=[2,3,4,5,6]", "roi.levels=[2,3,4,5]", "roi.hidden=1024")
SIZES = "anchors.sizes=[[32],[64],[128],[256],[512]]"
NUMBERS = ("rpn.pre_train=2000", "rpn.post_train=2000", "rpn.post_test=1000", "roi.samples=512")
OURS = {
    "same network, same numbers": (*NETWORK, SIZES, *NUMBERS),
    "same network, our numbers": (*NETWORK, SIZES),
    "mobilenet-fpn": (),
}


class Ours:
    """One of our models and its training step."""

    def __init__(self, settings: Settings, classes: int, init: Path, bf16: bool) -> None:
        self.model = build(settings, classes)
        load_backbone(self.model.backbone, init)
        self.model = self.model.to(memory_format=torch.channels_last).train()
        self.optimizer = build_optimizer(self.model, settings.train)
        self.bf16 = bf16

    def losses(self, item: Item) -> Tensor:
        keys = self.model.keys(item.batch, item.targets, item.seeds)
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
            losses = self.model.loss(item.batch, item.targets, keys)
        return torch.stack([total / count.clamp(min=1) for total, count in losses.values()]).sum()


class Torchvision:
    """torchvision's detector and its training step."""

    def __init__(self, settings: Settings, classes: int, init: Path) -> None:
        features = mobilenet_v2(weights=None, norm_layer=FrozenBatchNorm2d).features[:18]
        holder = nn.Module()
        holder.add_module("features", features)
        from rcnn.weights.file import read_safetensors

        state = {name: tensor.float() for name, tensor in read_safetensors(init)[0].items()}
        holder.load_state_dict({k: v for k, v in state.items() if k in holder.state_dict()})
        for layer in features[:4]:  # the two stages that `model.frozen_stages=2` freezes
            layer.requires_grad_(False)
        taps = {"3": "0", "6": "1", "13": "2", "17": "3"}
        backbone = BackboneWithFPN(features, taps, [24, 32, 96, 320], 256)
        self.model = FasterRCNN(
            backbone,
            classes + 1,
            min_size=settings.preprocess.short,
            max_size=settings.preprocess.long,
            image_mean=list(settings.preprocess.mean),
            image_std=list(settings.preprocess.std),
            rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5),
            box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        ).train()
        self.optimizer = build_optimizer(self.model, settings.train)

    def losses(self, item: Item) -> Tensor:
        images, targets = self.inputs(item)
        return sum(self.model(images, targets).values(), torch.zeros(()))

    @staticmethod
    def inputs(item: Item) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        images, targets = [], []
        for row, (height, width) in enumerate(item.batch.sizes.int().tolist()):
            if height:
                keep = item.targets.valid[row]
                images.append(item.batch.images[row, :, :height, :width].float() / 255)
                targets.append({"boxes": item.targets.boxes[row][keep], "labels": item.targets.labels[row][keep] + 1})
        return images, targets


def step(program: Ours | Torchvision, item: Item) -> None:
    loss = program.losses(item)
    program.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(program.model.parameters(), 10.0)
    program.optimizer.step()


def train(program: Ours | Torchvision, loader: Loader, settings: Settings) -> float:
    """Return the minutes of `train.epochs` epochs, with the schedule of `rcnn train` and without validation."""
    begun, number, total = time.perf_counter(), 0, settings.train.epochs * loader.steps
    for epoch in range(settings.train.epochs):
        for item in loader.epoch(epoch):
            rate = learning_rate(number, total, settings.train)
            for group in program.optimizer.param_groups:
                group["lr"] = rate
            step(program, item)
            number += 1
    return (time.perf_counter() - begun) / 60


def torchvision_ap(program: Torchvision, test_set: Dataset, settings: Settings) -> float:
    program.model.eval()
    found: dict[int, Prediction] = {}
    with torch.inference_mode():
        for item in Loader(test_set, settings, training=False, batch=8, seed=0).epoch(0):
            images, _ = program.inputs(item)
            rows = [row for row, index in enumerate(item.index.tolist()) if index >= 0]
            for row, output in zip(rows, program.model(images), strict=True):
                back = (output["boxes"] / item.batch.scales[row].flip(0).repeat(2)).numpy()
                found[int(item.index[row])] = Prediction(back, output["scores"].numpy(), output["labels"].numpy() - 1)
    truths = [Truth(record.boxes, record.labels, record.ignore) for record in test_set.records]
    return coco_metrics(truths, [found[i] for i in range(len(truths))], len(test_set.names)).ap


def compare_times(programs: dict[str, Callable[[], Ours | Torchvision]], item: Item, runs: int) -> None:
    """Print the median seconds per image of one step of each program, measured in turn."""
    made, times = {name: make() for name, make in programs.items()}, {name: [] for name in programs}
    for number in range(runs + 1):
        for name, program in made.items():
            begun = time.perf_counter()
            step(program, item)
            if number:
                times[name].append((time.perf_counter() - begun) / len(item.index))
    reference = statistics.median(times["torchvision"])
    shape = tuple(item.batch.images.shape[2:])
    print(f"seconds an image of {shape}, batch {len(item.index)}, {torch.get_num_threads()} threads")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:40} {median:.3f}   of torchvision's {median / reference:.3f}", flush=True)


def score(
    make: Callable[[], Ours | Torchvision], name: str, settings: Settings, sets: tuple[Dataset, Dataset], seed: int
) -> float:
    """Print and return AP on the second data set after a training on the first."""
    train_set, test_set = sets
    torch.manual_seed(seed)
    program = make()
    minutes = train(
        program, Loader(train_set, settings, training=True, batch=settings.train.batch, seed=seed), settings
    )
    if isinstance(program, Torchvision):
        ap = torchvision_ap(program, test_set, settings)
    else:
        ap = evaluate(Detector(program.model, settings, train_set.names), test_set, losses=False).ap
    print(f"{name}, seed {seed}: AP {ap:.4f} after {settings.train.epochs} epochs, {minutes:.1f} min", flush=True)
    return ap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--split", default="val", choices=["val", "test"], help="where AP is measured")
    parser.add_argument("--only", nargs="*", help="names as the timing prints them; default: all")
    parser.add_argument("--batch", type=int, default=8, help="of the steps that are timed")
    parser.add_argument("--settings", nargs="*", default=[], metavar="section.key=value", help="of all programs")
    options = parser.parse_args()
    chosen = {name: settings_of("mobilenet-fpn", [*changes, *options.settings]) for name, changes in OURS.items()}
    base = chosen["same network, same numbers"]
    train_set, test_set = open_splits(options.data, base.data)
    if options.split == "test":
        test_set = open_dataset(options.data, "test", base.data, train_set.names)
    classes = len(train_set.names)
    programs: dict[str, Callable[[], Ours | Torchvision]] = {
        "torchvision": lambda: Torchvision(base, classes, options.init)
    }
    for name, settings in chosen.items():
        programs[f"{name}, float32"] = lambda s=settings: Ours(s, classes, options.init, bf16=False)
        if uses_bf16(settings.train, torch.device("cpu")):
            programs[f"{name}, bf16"] = lambda s=settings: Ours(s, classes, options.init, bf16=True)
    if options.runs:
        item = next(Loader(train_set, base, training=True, batch=options.batch, seed=0).epoch(0))
        compare_times(programs, item, options.runs)
    if options.epochs:
        for name in options.only or programs:
            changes = OURS.get(name.rsplit(",", 1)[0], ())
            settings = settings_of("mobilenet-fpn", [*changes, *options.settings, f"train.epochs={options.epochs}"])
            scores = [score(programs[name], name, settings, (train_set, test_set), seed) for seed in options.seeds]
            error = np.std(scores, ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
            print(f"{name}: mean AP {np.mean(scores):.4f}, standard error {error:.4f}", flush=True)


if __name__ == "__main__":
    main()
