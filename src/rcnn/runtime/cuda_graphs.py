"""CUDA graphs: one launch replays all kernels of a batch, which the host would otherwise launch one by one."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Program = Callable[..., Any]
"""A function from tensors to tuples of tensors of fixed shapes that never waits for the device."""


@dataclass(frozen=True)
class Captured:
    """The graph of a program, with the memory that it reads and writes."""

    inputs: Sequence[Tensor]
    outputs: Any
    replay: Callable[[], None]


class CudaGraphs:
    """A program with one graph per shape of its inputs. Threads may share it.

    The first call with a shape runs without a graph. It compiles kernels and makes anchors, which must not happen
    during a capture, and shapes that occur only once need no graph.

    Args:
        program: the program.
        max_graphs: number of shapes whose graphs are kept, the most recently used ones.
    """

    def __init__(self, program: Program, max_graphs: int) -> None:
        self.program, self.max_graphs = program, max_graphs
        self._known: OrderedDict[Any, Captured | None] = OrderedDict()
        self._pool: Any = None
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the program. Later calls do not write to the returned tensors."""
        key = tuple((part.shape, part.dtype) for part in inputs)
        with self._lock:
            if key not in self._known:
                self._known[key] = None
                if len(self._known) > self.max_graphs:
                    self._known.popitem(last=False)
                return self.program(*inputs)
            self._known.move_to_end(key)
            captured = self._known[key]
            if captured is None:
                captured = self._known[key] = self._capture(inputs)
            for memory, part in zip(captured.inputs, inputs, strict=True):
                memory.copy_(part)
            captured.replay()
            return tree_map_only(Tensor, torch.clone, captured.outputs)

    def _capture(self, inputs: Sequence[Tensor]) -> Captured:
        """Capture the program. All graphs share one pool of memory, since they run one after the other."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        memory, graph = [part.clone() for part in inputs], torch.cuda.CUDAGraph()
        # Other threads continue to read pictures into pinned memory.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self.program(*memory)
        return Captured(memory, outputs, graph.replay)
