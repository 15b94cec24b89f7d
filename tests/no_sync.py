"""A record, made without a GPU, of a program on a GPU: where the host waits for it, and the number of its kernels.

Fake tensors of device "cuda:0" go through the real code, and through what our operators do on a GPU if Triton is
installed; its kernels are counted instead of run. An operation whose result the host needs (a shape, a number) raises
in PyTorch itself, since fake tensors hold no numbers.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rcnn.ops.operator import BODIES, kernels_of

HAS_KERNELS = find_spec("triton") is not None
NO_KERNEL = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view", "promote_types"}


class Record(TorchDispatchMode):
    """Records the operations of a block.

    Args:
        bodies: True to enter our operators, which is not possible on device "meta".

    Attributes:
        waits: operations in which the host waits.
        kernels: operator -> number of its kernels; "" stands for the program outside all operators.
        operators: operator -> number of its calls.
    """

    def __init__(self, *, bodies: bool = True) -> None:
        super().__init__()
        self._bodies = bodies
        self.waits: list[str] = []
        self.kernels: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self._inside = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, (_, name) = kwargs or {}, func._schema.name.split("::")
        if func.namespace == "rcnn":
            self.operators[name] += 1
            if self._bodies and HAS_KERNELS:  # not the fake kernel; below autograd
                self._inside = name
                with self:
                    out = kernels_of(name)(*args, **kwargs)
                    if out is None:
                        out = BODIES[func._schema.name](*args, **kwargs)
                self._inside = ""
                return out
        if func.namespace != "aten":
            return func(*args, **kwargs)
        # In inference mode composite operations arrive whole. Not `decompose`, which knows parts in Python as well:
        # these enlarge a map by eleven kernels, and a GPU by one.
        composite = torch._C.DispatchKey.CompositeImplicitAutograd
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
            with self:
                return func._op_dk(composite, *args, **kwargs)
        out = func(*args, **kwargs)
        if not func.is_view and name not in NO_KERNEL:
            self.kernels[self._inside] += 1
        if waits(name, args, kwargs, out):
            self.waits.append(f"{func} in {self._inside or 'the program'}")
        return out

    def launch(self) -> None:
        """Count a kernel of Triton."""
        self.kernels[self._inside] += 1


def waits(name: str, args: Any, kwargs: Any, out: Any) -> bool:
    """Return True if the host waits for the device in this operation. Operations that need a number raise instead."""
    copies = "copy" in name
    tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
    # A number on the CPU is passed as an argument of the kernel; `where` copies it first.
    devices = {x.device.type for x in tensors if x.dim() or copies or name == "where"}
    if name in ("index_put", "index_put_"):
        masks = any(index is not None and index.dtype == torch.bool for index in args[1])
        return len(devices) > 1 or (masks and args[2].numel() > 1)
    queued = copies and (kwargs.get("non_blocking") or (name == "copy_" and True in args[2:]))
    return len(devices) > 1 and not queued


@contextmanager
def recorded() -> Iterator[Record]:
    """Record a block with fake tensors. A wait for a CUDA stream or event is recorded as "synchronize"."""
    record = Record()
    event = SimpleNamespace(synchronize=lambda: record.waits.append("synchronize"))
    stream = SimpleNamespace(synchronize=event.synchronize, record_event=lambda: event)
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True), record:
        patch.setattr(torch.cuda, "current_stream", lambda device=None: stream)
        if HAS_KERNELS:
            patch.setattr("triton.runtime.JITFunction.run", lambda *_, **__: record.launch())
        yield record


def faked(module: nn.Module, device: str) -> nn.Module:
    """Replace the parameters and buffers of a module with fake tensors (building it with fake tensors fails)."""
    with FakeTensorMode():
        for part in module.modules():
            for store in (part._parameters, part._buffers):
                for name, tensor in store.items():
                    if tensor is not None:
                        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                        trained = isinstance(tensor, nn.Parameter)
                        store[name] = nn.Parameter(fake, tensor.requires_grad) if trained else fake
    return module
