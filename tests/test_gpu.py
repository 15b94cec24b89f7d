"""A GPU computes what the CPU does."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rcnn
from rcnn import ops
from rcnn.data.find import open_dataset
from rcnn.data.loader import Loader
from rcnn.data.synthetic import synthesise
from rcnn.data.upload import uploaded
from rcnn.model.philox import uniform
from rcnn.model.structures import Batch, Keys, Losses, Targets, to_device, to_host
from rcnn.presets import settings_of
from tests.model import tiny
from tests.test_graphs import preset

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Products of float32 are computed in float32, as on the CPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    corners = torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed)) * 80
    sides = 2 + torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed + 1)) * 40
    return torch.cat((corners, corners + sides), dim=-1)


def test_suppression_and_matching_are_those_of_the_cpu() -> None:
    many, scores, groups = boxes(3, 500), torch.rand(3, 500), torch.randint(0, 4, (3, 500))
    arguments = (many, scores, groups, scores > 0.1)
    for found, expected in zip(
        ops.nms(*(tensor.to(DEVICE) for tensor in arguments), 0.5, 100), ops.nms(*arguments, 0.5, 100), strict=True
    ):
        assert torch.equal(found.cpu(), expected)
    arguments = (many[0], boxes(3, 8, seed=5), torch.rand(3, 8) > 0.2)
    for found, expected in zip(
        ops.match(*(tensor.to(DEVICE) for tensor in arguments)), ops.match(*arguments), strict=True
    ):
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("pool", [ops.roi_align, ops.roi_pool, ops.roi_warp])
def test_pooling_and_its_gradient_are_those_of_the_cpu(pool) -> None:
    results = []
    for device in ("cpu", DEVICE):
        generator = torch.Generator().manual_seed(3)
        levels = [torch.rand(2, 5, side, side, generator=generator) for side in (24, 12)]
        levels = [level.to(device).requires_grad_() for level in levels]
        level = torch.arange(40, device=device).view(2, 20) % 2
        more = () if pool is ops.roi_pool else (2, True)
        pooled = pool(levels, boxes(2, 20).to(device), level, (4, 8), 7, *more)
        pooled.square().sum().backward()
        results.append([tensor.detach().cpu() for tensor in (pooled, *(level.grad for level in levels))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mobilenet-fpn", "mobilenet-one-stage", "paper-zf"])
def test_losses_and_gradients_are_those_of_the_cpu(name: str) -> None:
    results = []
    for device in ("cpu", DEVICE):
        net = preset(name, *(["roi.hidden=64", "roi.dropout=0"] if name == "paper-zf" else [])).double().to(device)
        batch, targets = tiny.batch(2, 96, 128, dtype=torch.float64)
        batch, targets = (type(part)(*(tensor.to(device) for tensor in part)) for part in (batch, targets))
        assert isinstance(batch, Batch)
        assert isinstance(targets, Targets)
        keys = Keys(*(part.to(device) for part in net.keys(batch, targets, torch.tensor([1, 2]))))
        losses = net.loss(batch, targets, keys)
        tiny.total(losses).backward()
        gradients = {path: value.cpu() for path, value in tiny.gradients(net).items()}
        results.append(({path: total.item() for path, (total, _) in losses.items()}, gradients))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


@contextmanager
def no_waits() -> Iterator[None]:
    """CUDA raises wherever the host would wait for it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def sum_of(losses: Losses) -> Tensor:
    return torch.stack([total for total, _ in losses.values()]).sum()


def without_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suppression and pooling, which still wait inside, give zeros of the right shapes."""

    def suppress(boxes: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        index = torch.zeros(len(boxes), arguments[-1], dtype=torch.int64, device=boxes.device)
        return index, torch.ones_like(index, dtype=torch.bool)

    def pool(levels: Sequence[Tensor], boxes: Tensor, level: Tensor, strides: Any, size: int, *_: Any) -> Tensor:
        mean = torch.stack([part.mean(dim=(2, 3)) for part in levels]).sum(dim=0)  # (B, C)
        return mean[:, None, :, None, None].expand(-1, boxes.shape[1], -1, size, size)

    monkeypatch.setattr(ops, "nms", suppress)
    for name in ("roi_align", "roi_pool"):
        monkeypatch.setattr(ops, name, pool)


@pytest.mark.parametrize("name", ["mobilenet-fpn", "mobilenet-one-stage", "paper-zf"])
def test_cuda_never_waits_between_batch_and_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_bodies(monkeypatch)
    net = preset(name, *(["roi.hidden=64"] if name == "paper-zf" else [])).to(DEVICE)
    batch, targets = (to_device(part, torch.device(DEVICE)) for part in tiny.batch(2, 96, 128))
    seeds = torch.tensor([1, 2]).pin_memory()
    for context in (nullcontext(), no_waits()):  # the first step fills caches, such as cuDNN's
        with context:
            sum_of(net.loss(batch, targets, net.keys(batch, targets, seeds))).backward()
            with torch.no_grad():
                net(batch)


def test_results_of_a_batch_are_downloaded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without_bodies(monkeypatch)
    net = preset("mobilenet-fpn").eval().to(DEVICE)
    batch, _ = tiny.batch(4, 96, 128)
    with torch.inference_mode():
        found = net(to_device(batch, torch.device(DEVICE)))
    expected = [part.cpu() for part in found]
    synchronised: list[int] = []
    real = torch.cuda.Stream.synchronize

    def counted(stream: torch.cuda.Stream) -> None:
        synchronised.append(1)
        torch.cuda.set_sync_debug_mode("default")
        real(stream)
        torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(torch.cuda.Stream, "synchronize", counted)
    with no_waits():
        here = to_host(found)
    assert len(synchronised) == 1
    assert all(torch.equal(one, other) for one, other in zip(here, expected, strict=True))


def test_keys_are_those_of_the_cpu() -> None:
    seeds = torch.tensor([0, 1, 2**63 - 1])
    assert torch.equal(uniform(seeds.to(DEVICE), 100_001).cpu(), uniform(seeds, 100_001))


def test_the_packaged_detector_finds_the_same(tmp_path: Path) -> None:
    synthesise(tmp_path, 3, size=(240, 320))
    images = sorted(tmp_path.rglob("*.jpg"))
    found, expected = (rcnn.load("blood-cells", device=name).predict(images, score=0.0) for name in (DEVICE, "cpu"))
    for one, other in zip(found, expected, strict=True):
        best = min(5, len(other))
        torch.testing.assert_close(one.scores[:best], other.scores[:best], rtol=1e-3, atol=1e-3)


def test_a_training_on_the_gpu_gives_a_detector_for_the_cpu(tmp_path: Path) -> None:
    for split, images in (("train", 8), ("val", 2)):
        synthesise(tmp_path / "shapes", images, split=split, size=(96, 96))
    run = rcnn.train(
        tmp_path / "shapes",
        model="tiny-fpn",
        overrides=["preprocess.short=96", "preprocess.long=128"],
        epochs=1,
        batch=4,
        device=DEVICE,
        runs=tmp_path / "runs",
        quiet=True,
    )
    assert rcnn.load(run.best, device="cpu").predict(tmp_path / "shapes" / "images" / "val") is not None


def test_batches_are_uploaded_unchanged_and_in_order(tmp_path: Path) -> None:
    synthesise(tmp_path / "data", 9, split="train", size=(64, 96), seed=1)
    settings = settings_of("tiny-fpn", ["preprocess.short=64", "preprocess.long=96"])
    loader = Loader(open_dataset(tmp_path / "data", "train", settings.data), settings, training=True, batch=2)
    expected = list(loader.epoch(0))
    found = list(uploaded(loader.epoch(0), torch.device(DEVICE)))
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert one.batch.images.is_cuda
        assert not one.index.is_cuda
        parts = zip((*one.batch, *one.targets, one.seeds), (*other.batch, *other.targets, other.seeds), strict=True)
        assert all(torch.equal(part.cpu(), wanted) for part, wanted in parts)
