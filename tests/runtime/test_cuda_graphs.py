from typing import Any, NamedTuple

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rcnn.runtime.cuda_graphs import Captured, CudaGraphs


class Outputs(NamedTuple):
    total: Tensor
    parts: tuple[Tensor, ...]
    nothing: None = None


def program(image: Tensor, size: Tensor) -> Outputs:
    return Outputs(image.sum() * size, (image + 1, size * 2))


class Replayed(CudaGraphs):
    """Replaces a capture by a function that runs the program again on the same memory."""

    captures = 0

    def _capture(self, inputs: Any) -> Captured:
        self.captures += 1
        memory = [part.clone() for part in inputs]
        outputs = self.program(*memory)

        def replay() -> None:
            found = self.program(*memory)
            outputs.total.copy_(found.total)
            for part, new in zip(outputs.parts, found.parts, strict=True):
                part.copy_(new)

        return Captured(memory, outputs, replay)


def arguments(side: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, side, generator=generator), torch.rand(2, generator=generator)


@given(st.lists(st.integers(1, 5), max_size=30), st.integers(1, 4))
def test_results_are_those_of_the_program_and_do_not_change(sides: list[int], max_graphs: int) -> None:
    graphs, found = Replayed(program, max_graphs), []
    for seed, side in enumerate(sides):
        found.append(graphs(*arguments(side, seed)))
        assert len(graphs._known) <= max_graphs
    for seed, (side, (total, parts, nothing)) in enumerate(zip(sides, found, strict=True)):
        expected = program(*arguments(side, seed))
        assert nothing is None
        assert torch.equal(total, expected.total)
        assert all(torch.equal(one, other) for one, other in zip(parts, expected.parts, strict=True))


def test_repeated_shapes_are_captured_and_the_most_recent_are_kept() -> None:
    graphs = Replayed(program, 2)
    captures = []
    for seed, side in enumerate([1, 1, 1, 2, 2, 1, 3, 1, 2, 2]):
        graphs(*arguments(side, seed))
        captures.append(graphs.captures)
    # 3 replaces 2, so the next 2 counts as new, and replaces 3.
    assert captures == [0, 1, 1, 1, 2, 2, 2, 2, 2, 3]


def test_another_type_is_another_program() -> None:
    graphs = Replayed(program, 2)
    image, size = arguments(3, 0)
    for dtype in (torch.float32, torch.float64, torch.float32, torch.float64):
        assert graphs(image.to(dtype), size.to(dtype)).total.dtype == dtype
    assert graphs.captures == 2
