"""CUDA graphs: the kernels of a batch, which the host would launch one after the other, are replayed by one launch."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Program = Callable[..., Any]
"""Tensors -> tuples of tensors of fixed shapes, without a wait for the device."""


@dataclass(frozen=True)
class Captured:
    """A program as a graph, with the memory that it reads and writes."""

    inputs: Sequence[Tensor]
    outputs: Any
    replay: Callable[[], None]


class CudaGraphs:
    """A program whose graphs are kept by the shapes of its inputs. Threads may share it.

    Shapes that are seen for the first time run without a graph: kernels are compiled and anchors are made then, which
    must not happen during a capture, and pictures of many shapes pay for no graph that would be used once.

    Args:
        program: what is run.
        most: shapes that are kept, the last ones used.
    """

    def __init__(self, program: Program, most: int) -> None:
        self.program, self.most = program, most
        self._known: OrderedDict[Any, Captured | None] = OrderedDict()
        self._pool: Any = None
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the program. What it returns is the caller's: the next call does not write to it."""
        key = tuple((part.shape, part.dtype) for part in inputs)
        with self._lock:
            if key not in self._known:
                self._known[key] = None
                if len(self._known) > self.most:
                    self._known.popitem(last=False)
                return self.program(*inputs)
            self._known.move_to_end(key)
            captured = self._known[key]
            if captured is None:
                captured = self._known[key] = self._capture(inputs)
            for kept, part in zip(captured.inputs, inputs, strict=True):
                kept.copy_(part)
            captured.replay()
            return tree_map_only(Tensor, torch.clone, captured.outputs)

    def _capture(self, inputs: Sequence[Tensor]) -> Captured:
        """All graphs share one pool of memory, since they run one after the other."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        kept, graph = [part.clone() for part in inputs], torch.cuda.CUDAGraph()
        # Other threads go on reading pictures into pinned memory meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = self.program(*kept)
        return Captured(kept, outputs, graph.replay)
