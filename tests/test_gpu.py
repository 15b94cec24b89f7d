"""A GPU computes what the CPU does."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import rcnn
from rcnn import ops
from rcnn.config import Predict
from rcnn.data.formats.find import open_dataset
from rcnn.data.loading.loader import Loader
from rcnn.data.loading.upload import uploaded
from rcnn.data.synthetic import synthesise
from rcnn.model.philox import uniform
from rcnn.model.structures import Batch, Keys, Losses, NormalisedBatch, Targets, take, to_device, to_host
from rcnn.ops.operator import compiles_for
from rcnn.presets import settings_of
from rcnn.runtime.eager import Eager
from rcnn.training.distributed import Distributed
from rcnn.training.schemes import StageLoss
from tests.model import tiny
from tests.ops.test_match import scene as match_scene
from tests.ops.test_nms import crowd
from tests.test_graphs import preset
from tests.training.pieces import OPTIONS, assert_equal, shapes

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Compute float32 products in float32, as on the CPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    corners = torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed)) * 80
    sides = 2 + torch.rand(*shape, 2, generator=torch.Generator().manual_seed(seed + 1)) * 40
    return torch.cat((corners, corners + sides), dim=-1)


@pytest.fixture
def kernels() -> None:
    """Skip the test if Triton's kernels can't run on this GPU."""
    if not compiles_for(torch.device(DEVICE, 0)):
        pytest.skip("Triton does not compile for this GPU")


def to_gpu(arguments: Any) -> Any:
    """Return the arguments with their tensors on the GPU."""
    return tree_map(lambda leaf: leaf.to(DEVICE) if isinstance(leaf, Tensor) else leaf, arguments)


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.cpu(), other)


def assert_same_on_gpu(operator: Any, *arguments: Any) -> None:
    assert_same(operator(*to_gpu(arguments)), operator(*arguments))


def test_suppression_and_matching_are_those_of_the_cpu() -> None:
    many, scores, groups = boxes(3, 500), torch.rand(3, 500), torch.randint(0, 4, (3, 500))
    assert_same_on_gpu(ops.nms, many, scores, groups, scores > 0.1, 0.5, 100)
    assert_same_on_gpu(ops.match, many[0], boxes(3, 8, seed=5), torch.rand(3, 8) > 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_suppression_decides_ties_as_the_cpu_does(threshold: float, dtype: torch.dtype) -> None:
    for count, limit in ((1, 3), (300, 40), (3000, 1000)):
        some, scores, groups, valid = crowd(count, batch=3, count=count)
        some, scores = some.to(dtype), scores.to(dtype)
        scores[:, 5::7], scores[:, 1::11], some[:, 2::13, 0] = torch.nan, -0.0, torch.nan
        assert_same_on_gpu(ops.nms, some, scores, groups * 10**12, valid, threshold, limit)


def test_suppression_of_80000_candidates_needs_no_quadratic_memory(kernels: None) -> None:
    some, scores = boxes(1, 80_000), torch.rand(1, 80_000)
    arguments = (some, scores, torch.arange(80_000)[None] % 80, scores > 0.05, 0.5, 100)
    on_gpu = to_gpu(arguments)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = ops.nms(*on_gpu)
    assert torch.cuda.max_memory_allocated() - before < 20e6
    assert_same(found, ops.nms(*arguments))


def test_matching_decides_ties_as_the_cpu_does() -> None:
    for own in (False, True):
        anchors, some, valid = match_scene(3, 2, 5000, 5, own=own)
        allowed = torch.rand(2, 5000, generator=torch.Generator().manual_seed(1)) < 0.5
        assert_same_on_gpu(ops.match, anchors, some, valid, allowed, ~valid)


def pooled(pool: Any, device: str, dtype: torch.dtype, more: tuple[Any, ...]) -> list[Tensor]:
    """Return the output of an operator on two levels, and its gradients of the levels and (if any) of the boxes."""
    generator = torch.Generator().manual_seed(3)
    levels = [torch.rand(2, 5, side, side, generator=generator) for side in (24, 12)]
    levels = [level.to(device, dtype, memory_format=torch.channels_last).requires_grad_() for level in levels]
    moves = pool is not ops.roi_pool and more[0] > 0
    some = boxes(2, 20).to(device).requires_grad_(moves)
    level = torch.arange(40, device=device).view(2, 20) % 2
    out = pool(levels, some, level, (4, 8), 7, *more)
    out.float().square().sum().backward()
    gradients = [part.grad for part in (*levels, *([some] if moves else []))]
    return [tensor.detach().cpu() for tensor in (out, *gradients)]


POOLS = [
    (ops.roi_align, (2, True)), (ops.roi_align, (0, False)), (ops.roi_pool, ()), (ops.roi_warp, (2, True)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("pool", "more"), POOLS)
def test_pooling_and_its_gradient_are_those_of_the_cpu(pool: Any, more: tuple[Any, ...], dtype: torch.dtype) -> None:
    found, expected = (pooled(pool, device, dtype, more) for device in (DEVICE, "cpu"))
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("pool", "more"), [(ops.roi_align, (2, True)), (ops.roi_pool, ())])
def test_gradients_are_the_same_bits_every_time(pool: Any, more: tuple[Any, ...], kernels: None) -> None:
    first = pooled(pool, DEVICE, torch.float32, more)
    for _ in range(5):
        assert_same(pooled(pool, DEVICE, torch.float32, more), first)


def test_operators_are_captured_in_a_graph_and_replayed_on_other_numbers(kernels: None) -> None:
    levels, some = [torch.rand(2, 5, 24, 24, device=DEVICE)], boxes(2, 300).to(DEVICE)
    zeros, scores = torch.zeros(2, 300, dtype=torch.int64, device=DEVICE), torch.rand(2, 300, device=DEVICE)
    truths = boxes(2, 8, seed=5).to(DEVICE)

    def program() -> tuple[Tensor, ...]:
        kept, valid = ops.nms(some, scores, zeros, zeros == 0, 0.5, 50)
        chosen = take(some, kept)
        features = ops.roi_align(levels, chosen, kept * 0, (4,), 7, 2, True)
        return features, valid, *ops.match(chosen, truths, truths[..., 0] > 0)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        program()  # compiles the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = program()
    for seed in (7, 8):
        some.copy_(boxes(2, 300, seed=seed))
        graph.replay()
        assert all(torch.equal(one, other) for one, other in zip(out, program(), strict=True))


@pytest.mark.parametrize("name", ["mobilenet-fpn", "mobilenet-one-stage", "paper-zf"])
def test_losses_and_gradients_are_those_of_the_cpu(name: str) -> None:
    results = []
    for device in ("cpu", DEVICE):
        net = preset(name, *(["roi.hidden=64", "roi.dropout=0"] if name == "paper-zf" else [])).double().to(device)
        batch, targets = tiny.batch(2, 96, 128, dtype=torch.float64)
        batch, targets = (type(part)(*(tensor.to(device) for tensor in part)) for part in (batch, targets))
        assert isinstance(batch, NormalisedBatch)
        assert isinstance(targets, Targets)
        keys = Keys(*(part.to(device) for part in net.keys(batch, targets, torch.tensor([1, 2]))))
        losses = net.loss(batch, targets, keys)
        tiny.total(losses).backward()
        gradients = {path: value.cpu() for path, value in tiny.gradients(net).items()}
        results.append(({path: total.item() for path, (total, _) in losses.items()}, gradients))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-9)


@contextmanager
def no_waits() -> Iterator[None]:
    """Make CUDA raise where the host would wait for it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def sum_of(losses: Losses) -> Tensor:
    return torch.stack([total for total, _ in losses.values()]).sum()


@pytest.mark.parametrize("name", ["mobilenet-fpn", "mobilenet-one-stage", "paper-zf"])
def test_cuda_never_waits_between_batch_and_losses(name: str, kernels: None) -> None:
    net = preset(name, *(["roi.hidden=64"] if name == "paper-zf" else [])).to(DEVICE)
    batch, targets = (to_device(part, torch.device(DEVICE)) for part in tiny.batch(2, 96, 128))
    seeds = torch.tensor([1, 2]).pin_memory()
    for context in (nullcontext(), no_waits()):  # the first step compiles, and fills caches such as cuDNN's
        with context:
            sum_of(net.loss(batch, targets, net.keys(batch, targets, seeds))).backward()
            with torch.no_grad():
                net(batch)


def test_results_of_a_batch_are_downloaded_together(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_packaged_detector_finds_the_same_boxes(tmp_path: Path) -> None:
    synthesise(tmp_path, 3, size=(240, 320))
    images = sorted(tmp_path.rglob("*.jpg"))
    found, expected = (rcnn.load("blood-cells", device=name).predict(images, score=0.0) for name in (DEVICE, "cpu"))
    for one, other in zip(found, expected, strict=True):
        best = min(5, len(other))
        torch.testing.assert_close(one.scores[:best], other.scores[:best], rtol=1e-3, atol=1e-3)


PAIRED = ("mobilenet-fpn", "mobilenet-one-stage", "resnet18-fpn", "paper-zf")


def pictures(count: int, size: tuple[int, int], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([size] * count, dtype=torch.float32)
    return Batch(images, sizes, torch.ones_like(sizes), sizes)


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("name", PAIRED)
def test_predictions_match_those_of_the_cpu(name: str, count: int) -> None:
    net, batch = preset(name, "rpn.post_test=100").eval(), pictures(count, (96, 128))
    found, expected = (Eager(net, torch.device(device)).execute(batch).detections for device in (DEVICE, "cpu"))
    assert found is not None
    assert expected is not None
    found = to_device(found, torch.device("cpu"))
    paired, total = 0, 0
    for row in range(count):
        for index in expected.valid[row].nonzero().flatten().tolist():
            near = (found.boxes[row] - expected.boxes[row, index]).abs().amax(dim=1) <= 0.05
            alike = (found.scores[row] - expected.scores[row, index]).abs() <= 1e-3
            right = found.labels[row] == expected.labels[row, index]
            paired, total = paired + bool((near & alike & right & found.valid[row]).any()), total + 1
    assert total > 0
    assert paired >= 0.99 * total


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("name", PAIRED)
def test_a_replayed_graph_gives_the_same_bits_as_its_program(name: str, precision: str, kernels: None) -> None:
    """With two alternating shapes, on pictures with many objects and with none."""
    net = preset(name, "rpn.post_test=100").eval()
    plain, graphs = (
        Eager(net, torch.device(DEVICE), Predict.model_validate({"precision": precision, "graphs": most}))
        for most in (0, 2)
    )
    for seed in range(3):
        for count, size in ((1, (96, 128)), (4, (128, 96))):
            batch = pictures(count, size, seed)
            if seed == 2:
                batch.images[:] = 0
            for fields in (("detections",), ("proposals",), ("proposals", "detections")):
                one, other = (runtime.execute(batch, fields=fields) for runtime in (graphs, plain))
                for field in fields:
                    pairs = zip(getattr(one, field), getattr(other, field), strict=True)
                    assert all(torch.equal(*pair) for pair in pairs)
                assert torch.equal(one.finite, other.finite)


def test_memory_does_not_grow_with_the_number_of_shapes(kernels: None) -> None:
    runtime = Eager(preset("tiny-fpn").eval(), torch.device(DEVICE), Predict(graphs=4))

    def taken(shapes: range) -> int:
        for side in shapes:
            for seed in range(2):
                runtime.execute(pictures(1, (96, 128 + 32 * (side % 100)), seed))
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    assert taken(range(100, 500)) <= 1.05 * taken(range(100))


def test_gradients_through_nccl_equal_those_without_it(tmp_path: Path) -> None:
    """With a group of one process, wrapped as if there were two."""
    found = []
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        for world in (1, 2):
            net = preset("tiny-fpn").to(DEVICE)
            loss = Distributed(torch.device(DEVICE, 0), 0, world).wrap(StageLoss(net))
            batch, targets = (to_device(part, torch.device(DEVICE)) for part in tiny.batch(2, 96, 128))
            sum_of(loss(batch, targets, net.keys(batch, targets, torch.tensor([1, 2])))).backward()
            found.append(tiny.gradients(net))
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def trained(data: Path, runs: Path) -> rcnn.Run:
    overrides = ["preprocess.short=96", "preprocess.long=128"]
    return rcnn.train(data, overrides=overrides, runs=runs, **{**OPTIONS, "epochs": 1, "batch": 4, "device": DEVICE})


def test_a_training_gives_the_same_bits_again_and_after_an_interruption(
    tmp_path: Path, kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(run: rcnn.Run) -> dict[str, Tensor]:
        return rcnn.load(run.last, device="cpu").model.state_dict()

    data = shapes(tmp_path, 12, 2)
    first = trained(data, tmp_path / "runs")
    assert_equal(weights(first), weights(trained(data, tmp_path / "runs")))

    def press(one: Any) -> bool:
        if one.state.progress.step == 0:
            signal.raise_signal(signal.SIGINT)
        return False

    with monkeypatch.context() as patch:
        patch.setattr("rcnn.training.trainer.Trainer.is_late", press)
        with pytest.raises(rcnn.Interrupted):
            trained(data, tmp_path / "stopped")
    (folder,) = (tmp_path / "stopped").iterdir()
    assert_equal(weights(rcnn.train(resume=folder, quiet=True)), weights(first))


def test_a_training_on_the_gpu_gives_a_detector_for_the_cpu(tmp_path: Path) -> None:
    data = shapes(tmp_path, 8, 2)
    run = trained(data, tmp_path / "runs")
    assert rcnn.load(run.best, device="cpu").predict(data / "images" / "val") is not None


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
