"""`resnet50-fpn` on a GPU against torchvision's, in turn and in one run: prediction, a training step, memory, files.

    python benchmarks/gpu_vs_torchvision.py [--size 800 1344] [--batches 1 4 16] [--train-batch 16] [--runs 20]
        [--files 256] [--proposals 1000] [--no-tf32] [--device cuda]

All programs have the same random weights, 91 classes, 100 detections and the same pixels. There are four:
torchvision with its defaults (float32, eager); torchvision tuned (bfloat16 by autocast, channels last, batch norm
folded for prediction); ours in float32; ours in bfloat16. On a GPU two more predict in bfloat16: with CUDA graphs, and
also compiled. TF32 is allowed in all or none of them.

predict: uint8 images that are already on the device -> boxes on the host. train: such images and 8 objects each ->
losses, gradients and a step of SGD. files: JPEG files -> boxes; torchvision's are decoded by a DataLoader.
Times are medians; memory is the peak of what was allocated besides weights and inputs. Without a GPU nothing is
measured; `--device cpu` runs the same programs at small sizes as a check.
"""

import argparse
import copy
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.transforms.v2.functional import pil_to_tensor

from rcnn.backbones.norm import fold_batch_norm
from rcnn.data.synthetic import synthesise
from rcnn.detector import Detector
from rcnn.interop.detectors import from_torchvision
from rcnn.model.structures import Batch, Targets, to_host

OBJECTS = 8
WARM_UP = 3
Program = Callable[[], Any]


class Scene(NamedTuple):
    """A batch on the device.

    Attributes:
        images: (B, 3, H, W) uint8.
        boxes: (B, OBJECTS, 4).
        labels: (B, OBJECTS) int64, 0..89.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor


def scene(count: int, size: tuple[int, int], device: torch.device) -> Scene:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    low = torch.rand(count, OBJECTS, 2, generator=generator) * 0.6
    side = 0.1 + torch.rand(count, OBJECTS, 2, generator=generator) * 0.3
    boxes = torch.cat((low, low + side), dim=-1) * torch.tensor([size[1], size[0]]).repeat(2)
    labels = torch.randint(0, 90, (count, OBJECTS), generator=generator)
    return Scene(images.to(device), boxes.to(device), labels.to(device))


def torchvision_detector(size: tuple[int, int], proposals: int, *, training: bool) -> nn.Module:
    """Return torchvision's detector with scores that differ from box to box, so that suppression has work to do.

    For training it is set up as with ImageNet weights: batch norm is frozen, and three stages of the trunk are trained.
    """
    torch.manual_seed(0)
    count = {f"rpn_{when}_nms_top_n_{what}": proposals for when in ("pre", "post") for what in ("train", "test")}
    sides = {"min_size": min(size), "max_size": max(size)}
    if training:
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
        net = FasterRCNN(backbone, 91, **count, **sides)
    else:
        net = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91, **count, **sides)
    nn.init.normal_(net.rpn.head.cls_logits.weight, std=0.02)
    nn.init.normal_(net.roi_heads.box_predictor.cls_score.weight, std=0.02)
    nn.init.normal_(net.roi_heads.box_predictor.bbox_pred.weight, std=0.005)
    return net.eval()


class Torchvision:
    """torchvision's detector, tuned as described above if `best`."""

    def __init__(self, net: nn.Module, device: torch.device, *, best: bool) -> None:
        self.device, self.best = device, best
        self.net = net.to(device)
        if best:
            self.net = self.net.to(memory_format=torch.channels_last)
        self.mean = torch.tensor(net.transform.image_mean, device=device)[:, None, None]
        self.std = torch.tensor(net.transform.image_std, device=device)[:, None, None]

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.best else nullcontext()

    def normalised(self, images: Tensor) -> Tensor:
        images = images.float().div(255).sub(self.mean).div(self.std)
        return images.contiguous(memory_format=torch.channels_last) if self.best else images

    def predict(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Predict without torchvision's resizing, so that all programs process the same pixels."""
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        with torch.inference_mode(), self.autocast():
            pixels = self.normalised(images)
            features = self.net.backbone(pixels)
            proposals, _ = self.net.rpn(ImageList(pixels, sizes), features)
            found = self.net.roi_heads(features, proposals, sizes)[0]
        return [{name: part.cpu() for name, part in one.items()} for one in found]

    def step(self, some: Scene, optimizer: torch.optim.Optimizer) -> None:
        sizes = [(some.images.shape[2], some.images.shape[3])] * len(some.images)
        pairs = zip(some.boxes, some.labels, strict=True)
        targets = [{"boxes": boxes, "labels": labels + 1} for boxes, labels in pairs]
        with self.autocast():
            pixels = self.normalised(some.images)
            features = self.net.backbone(pixels)
            proposals, first = self.net.rpn(ImageList(pixels, sizes), features, targets)
            _, second = self.net.roi_heads(features, proposals, sizes, targets)
        descend(torch.stack([*first.values(), *second.values()]).sum(), optimizer)

    def predict_files(self, paths: Sequence[Path], batch: int) -> None:
        """Predict like torchvision's own scripts: images of any size, resized on the device."""
        with torch.inference_mode(), self.autocast():
            for images in DataLoader(
                Decoded(paths), batch, num_workers=workers(self.device), collate_fn=list, pin_memory=on_gpu(self.device)
            ):
                there = [image.to(self.device, non_blocking=True).float() / 255 for image in images]
                for one in self.net(there):
                    one["boxes"].cpu()


class Decoded(Dataset[Tensor]):
    """Pictures of files as (3, H, W) uint8."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return pil_to_tensor(image.convert("RGB"))


class Ours:
    """A copy of the network as one of our detectors."""

    def __init__(self, net: nn.Module, device: torch.device, *settings: str) -> None:
        made = from_torchvision(net).with_settings(settings)
        model = made.network.model.to(device, memory_format=torch.channels_last)
        self.detector = Detector(model, made.settings, made.names, device=device)
        self.model, self.network = model, self.detector.network

    def batch(self, images: Tensor) -> Batch:
        sizes = torch.tensor([images.shape[2:]] * len(images), dtype=torch.float32).to(images.device)
        return Batch(images, sizes, torch.ones_like(sizes), sizes)

    def predict(self, images: Tensor) -> list[Tensor]:
        detections = self.network.execute(self.batch(images), fields=("detections",)).detections
        assert detections is not None
        return to_host(detections)

    def step(self, some: Scene, optimizer: torch.optim.Optimizer) -> None:
        valid = torch.ones_like(some.labels, dtype=torch.bool)
        targets = Targets(some.boxes, some.labels, valid, ~valid)
        batch = self.batch(some.images)
        with self.network.autocast:
            keys = self.model.keys(batch, targets, torch.arange(len(some.images)))
            losses = self.model.loss(batch, targets, keys)
        descend(torch.stack([total / count.clamp(min=1) for total, count in losses.values()]).sum(), optimizer)

    def predict_files(self, paths: Sequence[Path], batch: int) -> None:
        for _ in self.detector.stream([str(path) for path in paths], batch=batch):
            pass


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def workers(device: torch.device) -> int:
    return min(16, os.cpu_count() or 1) if on_gpu(device) else 0


def wait(device: torch.device) -> None:
    if on_gpu(device):
        torch.cuda.synchronize(device)


def compare(title: str, programs: dict[str, Program], images: int, runs: int, device: torch.device) -> None:
    """Print median time, images per second and memory of each program, measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    memory = dict.fromkeys(programs, 0.0)
    for number in range(-min(WARM_UP, runs - 1), runs):
        for name, program in programs.items():
            wait(device)
            before = 0
            if on_gpu(device):
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            begun = time.perf_counter()
            program()
            wait(device)
            if number >= 0:
                times[name].append(time.perf_counter() - begun)
                if on_gpu(device):
                    taken = torch.cuda.max_memory_allocated(device) - before
                    memory[name] = max(memory[name], taken / 2**30)
    reference = statistics.median(times["torchvision"])
    print(f"{title}\n{'':26} {'ms':>9} {'images/s':>9} {'GiB':>6} {'time of torchvision as it comes':>32}")
    for name, values in times.items():
        median = statistics.median(values)
        line = f"{name:26} {median * 1e3:9.2f} {images / median:9.1f} {memory[name]:6.2f} {median / reference:32.3f}"
        print(line, flush=True)


def programs_of(options: argparse.Namespace, device: torch.device, *, training: bool) -> dict[str, Torchvision | Ours]:
    net = torchvision_detector(tuple(options.size), options.proposals, training=training)
    best, ours = copy.deepcopy(net), {}
    if not training:
        fold_batch_norm(best)
    if not training and on_gpu(device):
        graphs = ("predict.precision=bf16", "predict.graphs=8")
        ours["rcnn, bf16, graphs"] = Ours(net, device, *graphs)
        ours["rcnn, bf16, compiled"] = Ours(net, device, *graphs, "predict.compile=true")
    return {
        "rcnn, float32": Ours(net, device),
        "rcnn, bf16": Ours(net, device, "predict.precision=bf16"),
        **ours,
        "torchvision": Torchvision(net, device, best=False),
        "torchvision at its best": Torchvision(best, device, best=True),
    }


def compare_predictions(options: argparse.Namespace, device: torch.device) -> None:
    programs = programs_of(options, device, training=False)
    for batch in options.batches:
        images = scene(batch, tuple(options.size), device).images
        each: dict[str, Program] = {
            name: lambda one=one, images=images: one.predict(images) for name, one in programs.items()
        }
        compare(f"\npredict, batch {batch}", each, batch, options.runs, device)
    if options.files:
        with TemporaryDirectory() as folder:
            synthesise(Path(folder), options.files, split="val", size=tuple(options.size))
            paths, batch = sorted(Path(folder).rglob("*.jpg")), options.batches[-1]
            each = {name: lambda one=one: one.predict_files(paths, batch) for name, one in programs.items()}
            title = f"\nfiles, batch {batch}, {os.cpu_count()} cores"
            compare(title, each, len(paths), max(1, options.runs // 5), device)


def compare_steps(options: argparse.Namespace, device: torch.device) -> None:
    some = scene(options.train_batch, tuple(options.size), device)
    programs: dict[str, Program] = {}
    trained = []
    for name, one in programs_of(options, device, training=True).items():
        net = one.net if isinstance(one, Torchvision) else one.model
        parameters = [part for part in net.train().parameters() if part.requires_grad]
        trained.append(sum(part.numel() for part in parameters))
        optimizer = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9)
        programs[name] = lambda one=one, optimizer=optimizer: one.step(some, optimizer)
    title = f"\ntrain, batch {options.train_batch}, {OBJECTS} objects, {' '.join(map(str, trained))} trained numbers"
    compare(title, programs, options.train_batch, options.runs, device)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4, 16), help="of predictions")
    parser.add_argument("--train-batch", type=int, default=16, help="0: no training")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--files", type=int, default=256, help="0: none")
    parser.add_argument("--proposals", type=int, default=1000, help="per level before suppression, per image after it")
    parser.add_argument("--tf32", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if on_gpu(device) and not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured; `--device cpu` runs the programs at small sizes.")
        return 0
    precision = "high" if options.tf32 else "highest"
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = options.tf32
    name = torch.cuda.get_device_name(device) if on_gpu(device) else "CPU"
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, CUDA {torch.version.cuda}"
    print(f"{name}, {versions}\n{options.size[0]} x {options.size[1]} pixels, TF32 {'on' if options.tf32 else 'off'}")
    compare_predictions(options, device)
    gc.collect()
    if options.train_batch:
        compare_steps(options, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
