"""The CPU shim patches nothing outside its scope, in another thread, or after an error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import pytest
import torch
from megatron.core.transformer.moe import moe_utils

from passk_fast.actor.cpu.megatron_shim import PATCHES, megatron_scope

pytestmark = pytest.mark.megatron

# Versions after 0.16 define the name that this one is replaced for.
NOT_REPLACED = {"torch.overrides.TorchFunctionMode"} | (
    {"megatron.core.transformer.moe.router.router_gating_linear"}
    if hasattr(moe_utils, "te_general_gemm")
    else set()
)
TARGETS = [target for patch in PATCHES for target in patch.targets if target not in NOT_REPLACED]


def attributes() -> dict[str, object]:
    """What the current thread sees of everything that the shim replaces."""
    found: dict[str, object] = {"type of torch.cuda": type(torch.cuda)}
    for target in TARGETS:
        module, _, name = target.rpartition(".")
        found[target] = getattr(import_module(module), name)
    return found


def changed(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return [name for name in before if after[name] is not before[name]]


def in_another_thread(function: Callable[[], object]) -> object:
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    (result,) = results
    return result


def is_patched() -> bool:
    """Whether the current thread's requests for "cuda" are answered on the CPU."""
    return (
        torch.cuda.current_stream().query() and torch.zeros(1, device="cuda").device.type == "cpu"
    )


def test_inside_every_target_is_another() -> None:
    before = attributes()
    with megatron_scope("cpu"):
        inside = attributes()
    assert changed(before, inside) == list(before)


def test_after_the_scope_every_attribute_is_the_original() -> None:
    before = attributes()
    with megatron_scope("cpu"):
        assert is_patched()
    assert changed(before, attributes()) == []
    assert type(torch.cuda) is ModuleType


def test_an_error_restores_everything() -> None:
    before = attributes()
    with pytest.raises(KeyError), megatron_scope("cpu"), megatron_scope("meta"):
        raise KeyError
    assert changed(before, attributes()) == []


def test_scopes_nest() -> None:
    before = attributes()
    with megatron_scope("meta"):
        assert torch.cuda.current_device() == torch.device("meta")
        with megatron_scope("cpu"):
            assert torch.cuda.current_device() == torch.device("cpu")
            assert torch.zeros(1, device="cuda").device.type == "cpu"
        assert torch.cuda.current_device() == torch.device("meta")
        assert torch.zeros(1, device="cuda").device.type == "meta"
    assert changed(before, attributes()) == []


def test_another_thread_sees_torch_cuda_itself() -> None:
    before = {name: value for name, value in attributes().items() if "torch.cuda." in name}

    def seen() -> dict[str, object]:
        return {name: value for name, value in attributes().items() if "torch.cuda." in name}

    assert len(before) == 12
    with megatron_scope("cpu"):
        there = in_another_thread(seen)
        assert isinstance(there, dict)
        assert changed(before, there) == []


def test_another_thread_runs_megatrons_own_functions() -> None:
    from megatron.core.tensor_parallel import random as random_module
    from megatron.core.transformer.moe import token_dispatcher

    sizes = torch.tensor([1, 2])

    def split_sizes() -> object:
        return token_dispatcher.maybe_move_tensor_to_cpu(sizes, as_numpy=True)

    def random_state() -> object:
        try:
            return random_module._get_cuda_rng_state()
        except (AssertionError, RuntimeError):
            return "no CUDA"

    outside = random_state()
    with megatron_scope("cpu"):
        assert split_sizes() is not sizes
        assert torch.equal(random_state(), torch.get_rng_state())
        assert in_another_thread(split_sizes) is sizes
        assert in_another_thread(random_state) == outside == "no CUDA"
    assert split_sizes() is sizes


def test_another_thread_creates_no_tensor_on_the_cpu_for_cuda() -> None:
    def create() -> str:
        try:
            return torch.zeros(1, device="cuda").device.type
        except (AssertionError, RuntimeError):
            return "refused"

    outside = create()
    with megatron_scope("cpu"):
        assert create() == "cpu"
        assert in_another_thread(create) == outside


def test_a_thread_that_leaves_first_takes_nothing_from_the_others() -> None:
    before = attributes()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with megatron_scope("cpu"):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with megatron_scope("cpu"):
        assert is_patched()
        leave.set()
        thread.join()
        assert is_patched()
    assert changed(before, attributes()) == []


def test_backward_runs_in_the_thread_that_asks_for_it() -> None:
    """The scope is a thread's, so Megatron's backward passes must not run in another."""
    seen: list[int] = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            seen.append(threading.get_ident())
            return grad

    for device in ("cpu", "meta"):
        x = torch.ones(3, device=device, requires_grad=True)
        Probe.apply(x).sum().backward()
    assert seen == [threading.get_ident()] * 2


def test_on_a_gpu_the_scope_does_nothing() -> None:
    before = attributes()
    with megatron_scope("cuda"):
        inside = attributes()
    assert changed(before, inside) == []
