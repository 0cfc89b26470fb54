"""What a forward and backward pass over meta tensors would allocate, read, write and send.

Nothing is computed: operations run on shapes only, so a 32B model's pass takes a second on a CPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MethodType

import torch
from torch import Tensor, UntypedStorage, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from passk_fast.actor.autograd import Context, call
from passk_fast.actor.layers import RMSNorm

_MATMULS = {"mm", "addmm", "bmm", "matmul", "linear", "baddbmm", "grouped_mm", "_grouped_mm"}
_ATTENTION = ("_varlen_attn", "_flash_attention", "scaled_dot_product", "_efficient_attention")


def _tensors(tree: object) -> list[Tensor]:
    """Tensors of arguments or results; Megatron hands some over in lists."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


class _FusedNorm(torch.autograd.Function):
    """Stands for one kernel each way: same tensors saved, read and written; no values."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1]))
        return x * weight

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return grad * x, torch.empty_like(weight)


def fuse_norms(chunk: nn.Module) -> None:
    """Let the norms of a chunk run as one kernel, as on a GPU; on meta torch runs them in parts."""

    def forward(norm: RMSNorm, x: Tensor) -> Tensor:
        return call(_FusedNorm, x.float(), norm.weight.float()).to(x.dtype)

    for module in chunk.modules():
        if isinstance(module, RMSNorm):
            setattr(module, "forward", MethodType(forward, module))  # noqa: B010


@dataclass
class Traffic:
    """Bytes on one rank."""

    element_bytes: int = 0
    """Read and written by operations that are neither products nor attention."""
    sent: dict[int, int] = field(default_factory=dict)
    """By collectives over a group of this size, what a ring sends from each rank."""

    def add_sent(self, size: int, amount: int) -> None:
        """Count bytes sent by a collective over `size` ranks; one rank alone sends nothing."""
        if size > 1:
            self.sent[size] = self.sent.get(size, 0) + amount


class Ledger(TorchDispatchMode):
    """Counts, while it is entered, storages made inside (live, peak) and the traffic."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.live = 0
        self.peak = 0
        self.traffic = Traffic()
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        inputs = _tensors((args, kwargs or {}))
        known = {t.untyped_storage()._cdata for t in inputs}
        out = func(*args, **(kwargs or {}))
        outputs = _tensors(out)
        for tensor in outputs:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self._own(storage)
        self._count(func, inputs, outputs, known)
        return out

    def _own(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def _count(
        self, func: OpOverload, inputs: list[Tensor], outputs: list[Tensor], known: set[int]
    ) -> None:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "c10d":
            self._count_collective(name, inputs)
            return
        if name.rstrip("_") in _MATMULS or any(part in name for part in _ATTENTION):
            return
        fresh = [t for t in outputs if t.untyped_storage()._cdata not in known]
        if not fresh and not func._schema.is_mutable:
            return  # a view
        if name.startswith(("empty", "new_empty", "detach", "_to_cpu")):
            return
        written = fresh or outputs
        self.traffic.element_bytes += sum(t.nbytes for t in (*inputs, *written))

    def _count_collective(self, name: str, tensors: list[Tensor]) -> None:
        if not tensors:
            return
        sizes = [t.nbytes for t in tensors]
        large, small = max(sizes), min(sizes)
        if name in ("_allgather_base_", "_reduce_scatter_base_"):
            self.traffic.add_sent(large // max(1, small), large - small)
