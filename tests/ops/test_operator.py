"""Which body runs on a GPU. Without a GPU, the tests call the function that PyTorch would call there."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rcnn.ops import operator
from rcnn.ops.nms import _nms
from tests.ops.test_nms import crowd

CUDA = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Forget the properties of the simulated GPU."""
    yield
    operator.compiles_for.cache_clear()


def gpu(monkeypatch: pytest.MonkeyPatch, *, capability: tuple[int, int] = (9, 0), triton: bool = True) -> None:
    """Simulate a GPU, on which Triton starts if it is installed."""
    operator.compiles_for.cache_clear()
    monkeypatch.setattr(operator, "starts", lambda: True)
    monkeypatch.setattr(operator, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_kernels_serve_where_triton_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, triton, expected in [((7, 5), True, True), ((7, 0), True, False), ((9, 0), False, False)]:
        gpu(monkeypatch, capability=capability, triton=triton)
        assert operator.compiles_for(CUDA) == expected
    gpu(monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", None)  # AMD's GPUs
    assert not operator.compiles_for(CUDA)


@pytest.mark.skipif(not find_spec("triton"), reason="torch comes with Triton on Linux only")
def test_kernels_are_not_used_if_triton_can_not_start_and_a_warning_is_given_once(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def fail() -> None:
        raise RuntimeError("Failed to find C compiler.")

    starts = operator.starts
    gpu(monkeypatch)
    monkeypatch.setattr(operator, "starts", starts)
    monkeypatch.setattr("triton.runtime.driver._active", SimpleNamespace(get_current_target=fail))
    starts.cache_clear()
    assert not any(operator.compiles_for(torch.device("cuda", number)) for number in (0, 1))
    (warning,) = recwarn
    assert "gcc" in str(warning.message)
    assert "Failed to find C compiler" in str(warning.message)
    starts.cache_clear()


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the function that runs as `nms` on a GPU. Its kernel returns wrong numbers, or refuses float16 boxes."""

    def kernel(boxes: Tensor, *_: Any) -> tuple[Tensor, Tensor] | None:
        wrong = torch.full((len(boxes), 4), 99), torch.ones(len(boxes), 4, dtype=torch.bool)
        return None if boxes.dtype == torch.float16 else wrong

    gpu(monkeypatch)
    monkeypatch.setattr(operator, "kernels_of", lambda name: kernel)
    return operator.on_cuda("nms", operator.BODIES["rcnn::nms"])


def test_a_kernel_runs_in_the_place_of_the_body(on_cuda: Callable[..., Any]) -> None:
    index, _ = on_cuda(*crowd(0, count=9), 0.5, 4)
    assert (index == 99).all()


@pytest.mark.parametrize("why", ["no Triton", "an older GPU", "float64", "refused"])
def test_the_body_of_the_cpu_serves_elsewhere(
    why: str, on_cuda: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes, *others = crowd(0, count=9)
    gpu(monkeypatch, triton=why != "no Triton", capability=(7, 0) if why == "an older GPU" else (9, 0))
    boxes = boxes.to({"float64": torch.float64, "refused": torch.float16}.get(why, torch.float32))
    for found, expected in zip(on_cuda(boxes, *others, 0.5, 4), _nms(boxes, *others, 0.5, 4), strict=True):
        assert torch.equal(found, expected)


def test_every_operator_has_a_kernel_for_cuda_and_may_be_traced() -> None:
    for name in operator.BODIES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, torch._C.DispatchKey.CUDA)
        assert torch.Tag.pt2_compliant_tag in getattr(torch.ops.rcnn, name.removeprefix("rcnn::")).default.tags
