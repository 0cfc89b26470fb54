"""What Megatron-core needs to run on CPU tensors over gloo: the one file of the CPU shim.

Megatron asks for device "cuda", CUDA streams and CUDA random states in places that no option turns
off. In a thread inside `megatron_scope("cpu")` the CPU answers those requests (with "meta": tensors
without memory do). Every other thread, vLLM's above all, sees torch and Megatron as they are, and
so does everyone once the last scope has ended. On a GPU the scope does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import FunctionType, ModuleType
from typing import ParamSpec, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from passk_fast.patch import Patch

P = ParamSpec("P")
R = TypeVar("R")
TensorFunction = Callable[..., torch.Tensor]


class _Thread(threading.local):
    """The devices of the scopes that the current thread has entered, innermost last."""

    def __init__(self) -> None:
        self.devices: list[str] = []


_THREAD = _Thread()


class CudaToCpu(TorchFunctionMode):
    """Megatron creates tensors on "cuda", moves them there and compares their type's name.

    Rewrites device="cuda"; `Tensor.cuda()` returns the tensor; `Tensor.type()` names a CUDA type.
    torch keeps the mode per thread.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        options = dict(kwargs or {})
        if "cuda" in str(options.get("device")):
            options["device"] = self._device
        if func is torch.Tensor.cuda:
            return args[0]
        result = func(*args, **options)
        if func is torch.Tensor.type and isinstance(result, str):
            # The optimizer and gradient clipping compare this string with torch.cuda.FloatTensor.
            return "torch.cuda." + result.rpartition(".")[2]
        return result


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

_CUDA: dict[str, object] = {
    "current_device": lambda: torch.device(_THREAD.devices[-1]),
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


class CudaModule(ModuleType):
    """Megatron asks torch.cuda for streams, random states and the current device.

    torch.cuda has this type while a scope is open: inside one an attribute of `_CUDA` is answered
    from there. The module's own attributes are never changed.
    """

    def __getattribute__(self, name: str) -> object:
        if name in _CUDA and _THREAD.devices:
            return _CUDA[name]
        return super().__getattribute__(name)


def split_sizes_as_array(
    tensor: object, as_numpy: bool = False, record_stream: bool = False
) -> object:
    """Megatron leaves the split sizes of an all-to-all as tensors where they are on a CPU already.

    The collective takes an array, as it gets on a GPU. Stands for `maybe_move_tensor_to_cpu`.
    """
    if as_numpy and isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
        array: np.ndarray = tensor.numpy()
        return array
    return tensor


def gather_uneven(original: TensorFunction) -> TensorFunction:
    """gloo cannot all-gather parts of different sizes along dimension 0, as experts' tokens are."""

    def gather(
        x: torch.Tensor,
        group: dist.ProcessGroup,
        sizes: Sequence[int] | None = None,
        *more: object,
    ) -> torch.Tensor:
        if sizes is None or group.size() == 1:
            return original(x, group, sizes, *more)
        out = x.new_zeros(sum(sizes), *x.shape[1:])
        out.split(list(sizes))[group.rank()].copy_(x)
        dist.all_reduce(out, group=group)
        return out

    return gather


def reduce_scatter_uneven(original: TensorFunction) -> TensorFunction:
    """gloo cannot reduce-scatter parts of different sizes: the reverse of `gather_uneven`."""

    def reduce_scatter(
        x: torch.Tensor,
        group: dist.ProcessGroup,
        sizes: Sequence[int] | None = None,
        *more: object,
    ) -> torch.Tensor:
        if sizes is None or group.size() == 1:
            return original(x, group, sizes, *more)
        out = x.clone()
        dist.all_reduce(out, group=group)
        parts: Sequence[torch.Tensor] = out.split(list(sizes))
        return parts[group.rank()].clone()

    return reduce_scatter


def set_cpu_random_state(state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
    """Megatron's random states for dropout are CUDA's; on a CPU they are the CPU generator's."""
    torch.set_rng_state(state)


def get_cpu_random_state(
    device: str = "cuda", clone: bool = False, graph_safe: bool = False
) -> torch.Tensor:
    """The state that `set_cpu_random_state` sets: the CPU generator's, in place of CUDA's."""
    return torch.get_rng_state()


def gate_without_transformer_engine(moe_utils: ModuleType) -> TensorFunction:
    """Without Transformer Engine the router of Megatron-core 0.16.1 reads an undefined name.

    This is its own `router_gating_linear`, compiled code and all, with that name defined as None,
    which is what later versions do.
    """
    inner = moe_utils.RouterGatingLinearFunction
    names = {**vars(moe_utils), "te_general_gemm": None}

    class Gate(torch.autograd.Function):
        """RouterGatingLinearFunction."""

        forward = staticmethod(FunctionType(inner.forward.__code__, names))
        backward = staticmethod(FunctionType(inner.backward.__code__, names))

    apply: TensorFunction = Gate.apply
    return apply


def _inside(original: Callable[P, R], replacement: Callable[..., R]) -> Callable[P, R]:
    """The replacement in a thread inside a scope, the original in every other."""

    @functools.wraps(original)
    def dispatch(*args: P.args, **kwargs: P.kwargs) -> R:
        return (replacement if _THREAD.devices else original)(*args, **kwargs)

    return dispatch


def _megatron_functions() -> list[tuple[ModuleType, str, Callable[..., object]]]:
    """(module, attribute, what answers inside a scope), all of them looked up by Megatron alone."""
    import megatron.core.tensor_parallel.mappings as mappings
    import megatron.core.tensor_parallel.random as random_module
    import megatron.core.transformer.moe.moe_utils as moe_utils
    import megatron.core.transformer.moe.router as router
    import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

    gather = gather_uneven(mappings._gather_along_first_dim)
    reduce_scatter = reduce_scatter_uneven(mappings._reduce_scatter_along_first_dim)
    found: list[tuple[ModuleType, str, Callable[..., object]]] = [
        (random_module, "_set_cuda_rng_state", set_cpu_random_state),
        (random_module, "_get_cuda_rng_state", get_cpu_random_state),
        (token_dispatcher, "maybe_move_tensor_to_cpu", split_sizes_as_array),
        (mappings, "_gather_along_first_dim", gather),
        (mappings, "_reduce_scatter_along_first_dim", reduce_scatter),
    ]
    if not hasattr(moe_utils, "te_general_gemm"):
        gate = gate_without_transformer_engine(moe_utils)
        found.append((router, "router_gating_linear", gate))
    return found


class _Dispatchers:
    """Puts the dispatchers in place with the first open scope and takes them out with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scopes = 0
        self._undo = contextlib.ExitStack()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        with self._lock:
            if not self._scopes:
                self._install()
            self._scopes += 1
        try:
            yield
        finally:
            with self._lock:
                self._scopes -= 1
                if not self._scopes:
                    self._undo.close()

    def _install(self) -> None:
        with contextlib.ExitStack() as undo:
            for module, name, replacement in _megatron_functions():
                original = getattr(module, name)
                undo.callback(setattr, module, name, original)
                setattr(module, name, _inside(original, replacement))
            undo.callback(setattr, torch.cuda, "__class__", type(torch.cuda))
            setattr(torch.cuda, "__class__", CudaModule)  # noqa: B010  mypy knows it as read-only
            self._undo = undo.pop_all()


_DISPATCHERS = _Dispatchers()


@contextlib.contextmanager
def _cpu_scope(device: str) -> Iterator[None]:
    with _DISPATCHERS.installed():
        _THREAD.devices.append(device)
        try:
            with CudaToCpu(device):
                yield
        finally:
            _THREAD.devices.pop()


def megatron_scope(device: str) -> AbstractContextManager[None]:
    """The context of every call into Megatron; `device` is "cpu", "meta" or "cuda".

    Scopes nest, and threads may hold them side by side. Autograd runs the backward pass of CPU
    tensors in the thread that asks for it, so one scope around it is enough.
    """
    return contextlib.nullcontext() if device == "cuda" else _cpu_scope(device)


_HERE = "passk_fast.actor.cpu.megatron_shim."
_SCOPE = "threads inside `megatron_scope`, on a CPU or for a plan; ends with it"
_TEST = "tests/actor/cpu/test_megatron_shim.py"
_MOE_TEST = "tests/actor/moe/test_experts.py"

PATCHES = (
    Patch(
        function=_HERE + "CudaToCpu",
        targets=("torch.overrides.TorchFunctionMode",),
        scope=_SCOPE,
        breaks="Megatron names a device in another way than `device=` or `.cuda()`.",
        test=_TEST,
    ),
    Patch(
        function=_HERE + "CudaModule",
        targets=tuple(f"torch.cuda.{name}" for name in _CUDA),
        scope=_SCOPE,
        breaks="Megatron asks torch.cuda for something else, or torch gives it a type of its own.",
        test=_TEST,
    ),
    Patch(
        function=_HERE + "set_cpu_random_state",
        targets=("megatron.core.tensor_parallel.random._set_cuda_rng_state",),
        scope=_SCOPE,
        breaks="Megatron renames it or gives it other arguments.",
        test=_TEST,
    ),
    Patch(
        function=_HERE + "get_cpu_random_state",
        targets=("megatron.core.tensor_parallel.random._get_cuda_rng_state",),
        scope=_SCOPE,
        breaks="Megatron renames it or gives it other arguments.",
        test=_TEST,
    ),
    Patch(
        function=_HERE + "split_sizes_as_array",
        targets=("megatron.core.transformer.moe.token_dispatcher.maybe_move_tensor_to_cpu",),
        scope=_SCOPE,
        breaks="The all-to-all dispatcher fetches its split sizes by another function.",
        test=_MOE_TEST,
    ),
    Patch(
        function=_HERE + "gather_uneven",
        targets=("megatron.core.tensor_parallel.mappings._gather_along_first_dim",),
        scope=_SCOPE,
        breaks="The third argument is no longer the list of sizes.",
        test=_MOE_TEST,
    ),
    Patch(
        function=_HERE + "reduce_scatter_uneven",
        targets=("megatron.core.tensor_parallel.mappings._reduce_scatter_along_first_dim",),
        scope=_SCOPE,
        breaks="The third argument is no longer the list of sizes.",
        test=_MOE_TEST,
    ),
    Patch(
        function=_HERE + "gate_without_transformer_engine",
        targets=("megatron.core.transformer.moe.router.router_gating_linear",),
        scope=_SCOPE + "; Megatron-core 0.16 without Transformer Engine alone",
        breaks="Nothing: a version that defines `te_general_gemm` is left as it is.",
        test=_MOE_TEST,
    ),
)
