"""What Megatron-core needs to run on CPU tensors over gloo: the one file of the CPU shim.

Megatron asks for device "cuda", CUDA streams and CUDA random states in places that no option turns
off. Inside `megatron_scope("cpu")` those requests are answered on the CPU (with "meta": by tensors
without memory); outside it nothing is patched, so other libraries in the process (vLLM above all)
never see it. On a GPU the scope does nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode


class _CudaToCpu(TorchFunctionMode):
    """Rewrites device="cuda" and lets `Tensor.cuda()` and `Tensor.type()` play along."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is not None and "cuda" in str(device):
            kwargs["device"] = self._device
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # The optimizer and gradient clipping compare this string with torch.cuda.FloatTensor.
            return "torch.cuda." + func(*args).rpartition(".")[2]
        return func(*args, **kwargs)


class _InertStream:
    """Stands for a CUDA stream or event where everything is synchronous anyway."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def _nothing(self, *args: object, **kwargs: object) -> None:
        return None

    wait_stream = wait_event = synchronize = wait = record = _nothing

    def record_event(self, event: object = None) -> _InertStream:
        return self

    def query(self) -> bool:
        return True


_STREAM = _InertStream()


def _cuda_patches(device: str) -> dict[str, Any]:
    return {
        "current_device": lambda: torch.device(device),
        "synchronize": lambda *args, **kwargs: None,
        "empty_cache": lambda: None,
        "Stream": _InertStream,
        "Event": _InertStream,
        "current_stream": lambda *args: _STREAM,
        "default_stream": lambda *args: _STREAM,
        "stream": lambda stream: contextlib.nullcontext(),
        "manual_seed": torch.manual_seed,
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
        "device_count": lambda: 0,
    }


def _on_host(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Stands for `maybe_move_tensor_to_cpu`, which leaves the split sizes of an all-to-all tensors
    where they are on the CPU already: the collective takes an array, as it gets on a GPU."""
    is_cpu = isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu"
    return tensor.numpy() if as_numpy and is_cpu else tensor


def _gather(whole: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Megatron's all-gather along dimension 0, and over gloo for parts of different sizes too."""

    def gather(x: torch.Tensor, group: Any, sizes: Any = None, *more: Any) -> torch.Tensor:
        if sizes is None or group.size() == 1:
            return whole(x, group, sizes, *more)
        out = x.new_zeros(sum(sizes), *x.shape[1:])
        out.split(list(sizes))[group.rank()].copy_(x)
        dist.all_reduce(out, group=group)
        return out

    return gather


def _reduce_scatter(whole: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The reverse of `_gather`."""

    def reduce_scatter(x: torch.Tensor, group: Any, sizes: Any = None, *more: Any) -> torch.Tensor:
        if sizes is None or group.size() == 1:
            return whole(x, group, sizes, *more)
        out = x.clone()
        dist.all_reduce(out, group=group)
        return out.split(list(sizes))[group.rank()].clone()

    return reduce_scatter


def _patch_megatron() -> None:
    """Module attributes of Megatron; safe to leave in place, since only Megatron reads them."""
    import megatron.core.tensor_parallel.mappings as mappings
    import megatron.core.tensor_parallel.random as random_module
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

    def set_state(state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(state)

    def get_state(
        device: str = "cuda", clone: bool = False, graph_safe: bool = False
    ) -> torch.Tensor:
        return torch.get_rng_state()

    random_module._set_cuda_rng_state = set_state
    random_module._get_cuda_rng_state = get_state
    if token_dispatcher.maybe_move_tensor_to_cpu is not _on_host:
        token_dispatcher.maybe_move_tensor_to_cpu = _on_host
        for name, made in (("_gather", _gather), ("_reduce_scatter", _reduce_scatter)):
            name += "_along_first_dim"
            setattr(mappings, name, made(getattr(mappings, name)))
    if not hasattr(moe_utils, "te_general_gemm"):  # 0.16.1 leaves the name undefined without TE
        moe_utils.te_general_gemm = None


@contextlib.contextmanager
def _cpu_scope(device: str) -> Iterator[None]:
    patches = _cuda_patches(device)
    saved = {name: getattr(torch.cuda, name) for name in patches}
    for name, value in patches.items():
        setattr(torch.cuda, name, value)
    try:
        with _CudaToCpu(device):
            _patch_megatron()
            yield
    finally:
        for name, value in saved.items():
            setattr(torch.cuda, name, value)


def megatron_scope(device: str) -> AbstractContextManager[None]:
    """The context of every call into Megatron; `device` is "cpu", "meta" or "cuda"."""
    return contextlib.nullcontext() if device == "cuda" else _cpu_scope(device)
