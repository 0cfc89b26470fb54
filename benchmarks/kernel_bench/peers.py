"""What is measured: our kernels, plain torch, and the peers, each behind one call.

A `Provider` is made by a function that imports what it needs; when that fails the peer is absent
and the failure is its reason. Peers come from installed packages or from a folder of wheels.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.kernel_bench.problems import (
    CLIP_HIGH,
    CLIP_LOW,
    LOSS,
    Problem,
    policy_from_logp,
)
from passk_fast import kernels

Logp = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, "Tensor | None"]]
"""(hidden, weight, targets) -> (logp [n], entropy [n] or None), differentiable."""


@dataclass(frozen=True)
class Result:
    """What one call gives besides gradients."""

    loss: Tensor | None = None
    logp: Tensor | None = None
    entropy: Tensor | None = None
    backend: str = ""


Run = Callable[[Problem, dict[str, Tensor]], Result]
"""(problem, leaves) -> Result; leaves: "hidden" and "weight", or "logits"."""


@dataclass(frozen=True)
class Provider:
    """One thing to measure. `make` raises when it is absent."""

    name: str
    make: Callable[[], Run]
    regimes: tuple[str, ...] = ("dense", "rl", "on-policy")
    cross_entropy: bool = False
    """Computes mean cross-entropy, not the policy loss: times alone are comparable."""


def add_wheels(folder: Path | None) -> list[str]:
    """Unpack the wheels of a folder behind everything importable; their names."""
    if folder is None:
        return []
    target = tempfile.mkdtemp(prefix="wheels-")
    names = sorted(path.name for path in folder.glob("*.whl"))
    for name in names:
        with zipfile.ZipFile(folder / name) as archive:
            archive.extractall(target)
    sys.path.append(target)
    return names


# ---- from hidden states ----------------------------------------------------------------------


def _ours(first_gemm: Literal["fused", "blas"]) -> Callable[[], Run]:
    def make() -> Run:
        def run(problem: Problem, leaves: dict[str, Tensor]) -> Result:
            head = kernels.OutputHead(
                hidden=leaves["hidden"], weight=leaves["weight"], first_gemm=first_gemm
            )
            loss, report = kernels.linear_policy_loss(head, problem.rows(), LOSS, keep_rows=True)
            return Result(loss, report.logp, report.entropy, report.backend)

        return run

    return make


def _by_logp(load: Callable[[], Logp], compact: bool) -> Callable[[], Run]:
    """The policy loss on a peer's log-probs, of all rows or of those with a gradient."""

    def make() -> Run:
        function = load()

        def run(problem: Problem, leaves: dict[str, Tensor]) -> Result:
            rows = problem.index_device if compact else None
            x, targets = leaves["hidden"], problem.targets
            if rows is not None:
                x, targets = x[rows], targets[rows]
            logp, entropy = function(x, leaves["weight"], targets)
            loss = policy_from_logp(logp, problem, rows)
            if rows is None:
                return Result(loss, logp.detach(), None if entropy is None else entropy.detach())
            full = torch.full((len(problem.targets),), torch.nan, device=x.device)
            return Result(loss, full.index_copy(0, rows, logp.detach().float()), None)

        return run

    return make


def _torch_logp() -> Logp:
    def logp(x: Tensor, w: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        log_prob = (x @ w.T).float().log_softmax(dim=1)
        return log_prob.gather(1, targets[:, None])[:, 0], None

    return logp


def _torch_chunks() -> Logp:
    """verl's chunked torch function."""
    _verl_stand_in()
    module = importlib.import_module("verl.utils.experimental.torch_functional")
    function = module.FusedLinearForPPOFunction
    return lambda x, w, targets: function.apply(x, w, targets, 1.0, 512)


def _verl_stand_in() -> None:
    """verl's package imports ray and more; its kernels need a device module only."""
    spec = importlib.util.find_spec("verl") if "verl" not in sys.modules else None
    if spec is None:
        if "verl" not in sys.modules:
            raise ImportError("verl is not installed")
        return
    root = Path((spec.submodule_search_locations or [""])[0])
    for name in ("verl", "verl.utils", "verl.utils.experimental"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    device: Any = types.ModuleType("verl.utils.device")
    device.is_cuda_available = torch.cuda.is_available()
    device.get_device_capability = torch.cuda.get_device_capability
    device.get_device_name = lambda: "cuda"
    device.get_torch_device = lambda: torch.cuda
    sys.modules["verl.utils.device"] = device


def _needs_gpu() -> None:
    if not torch.cuda.is_available():
        raise RuntimeError("needs a CUDA GPU")


def _verl_triton() -> Logp:
    _needs_gpu()
    _verl_stand_in()
    function = importlib.import_module(
        "verl.utils.kernel.linear_cross_entropy"
    ).linear_cross_entropy
    return lambda x, w, targets: function(x, w, targets, 1.0, "none", None)


def _liger_scaled() -> Logp:
    """On Hopper its CuTe kernel, else its chunked torch; both called through its front end."""
    module = importlib.import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    if torch.cuda.is_available():
        module._resolve_implementation(torch.device("cuda"))  # imports nvidia-cutlass-dsl
    function = module.LigerFusedLinearScaledCrossEntropyFunction

    def logp(x: Tensor, w: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        nll, entropy = function.apply(x, w, targets, 1.0, -100, 1, True)
        return -nll, entropy

    return logp


def _liger_native() -> Logp:
    """Its CUTLASS and NVSHMEM kernel on a group of one rank."""
    _needs_gpu()
    module = importlib.import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    if module._load_native_tp_function() is None:
        raise ImportError("liger-cute-kernels is not installed")
    group = _one_rank()
    importlib.import_module("liger_cute_kernels.nvshmem").resolve_team(group, create=True)
    function = module.LigerFusedLinearScaledCrossEntropyTPFunction

    def logp(x: Tensor, w: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        nll, entropy = function.apply(x, w, targets, group, 1.0, -100, 1, True)
        return -nll, entropy

    return logp


def _cut_cross_entropy(filter_eps: str | None) -> Callable[[], Logp]:
    def load() -> Logp:
        module = importlib.import_module("cut_cross_entropy")
        kind: dict[str, str | None] = {"impl": "torch_compile"}
        if torch.cuda.is_available():
            kind = {"filter_eps": filter_eps}

        def logp(x: Tensor, w: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
            return -module.linear_cross_entropy(x, w, targets, reduction="none", **kind), None

        return logp

    return load


def _liger_ppo(compact: bool) -> Callable[[], Run]:
    """Every row as a sequence of one token, which keeps an advantage a row; 1,024 rows a chunk."""

    def make() -> Run:
        losses = importlib.import_module("liger_kernel.chunked_loss")
        function = losses.LigerFusedLinearGRPOLoss(
            beta=0.0, compiled=torch.cuda.is_available(), use_ref_model=False, chunk_size=1024,
            epsilon_low=CLIP_LOW, epsilon_high=CLIP_HIGH, loss_type="bnpo",
        )  # fmt: skip

        def run(problem: Problem, leaves: dict[str, Tensor]) -> Result:
            rows = problem.index_device if compact else slice(None)
            mask = problem.mask[rows]
            old = None if problem.old_logp is None else problem.old_logp[rows, None]
            loss = function(
                leaves["hidden"][rows][:, None], leaves["weight"], problem.targets[rows][:, None],
                mask[:, None].float(), problem.advantages[rows], old_per_token_logps=old,
            )[0]  # fmt: skip
            # Its own denominator is the number of masked rows it was given.
            rows_given = len(problem.index) if compact else problem.denominator
            return Result(loss * (rows_given / problem.denominator))

        return run

    return make


def _quack() -> Run:
    _needs_gpu()
    module = importlib.import_module("quack.linear_cross_entropy")

    def run(problem: Problem, leaves: dict[str, Tensor]) -> Result:
        return Result(
            module.chunked_linear_cross_entropy(
                leaves["hidden"], leaves["weight"], problem.targets, reduction="mean"
            )
        )

    return run


_LOGP: tuple[tuple[str, Callable[[], Logp]], ...] = (
    ("torch, whole logits", _torch_logp),
    ("Liger scaled CE, native", _liger_native),
    ("Liger scaled CE", _liger_scaled),
    ("verl Triton", _verl_triton),
    ("verl torch chunks", _torch_chunks),
    ("cut-cross-entropy, no filter", _cut_cross_entropy(None)),
    ("cut-cross-entropy, filtered", _cut_cross_entropy("high")),
)


def head_providers() -> list[Provider]:
    """Loss and gradients from hidden states."""
    found = [Provider("ours, fused", _ours("fused")), Provider("ours, blas", _ours("blas"))]
    rl = ("rl", "on-policy")
    for name, load in _LOGP:
        found.append(Provider(name, _by_logp(load, False)))
        found.append(Provider(f"{name}, informative rows", _by_logp(load, True), rl))
    found.append(Provider("Liger fused_linear_ppo", _liger_ppo(False)))
    found.append(Provider("Liger fused_linear_ppo, informative rows", _liger_ppo(True), rl))
    found.append(Provider("QuACK linear CE", lambda: _quack(), ("dense",), cross_entropy=True))
    return found


# ---- log-probs alone ---------------------------------------------------------------------------


def _ours_logprob(first_gemm: Literal["fused", "blas"]) -> Callable[[], Run]:
    def make() -> Run:
        def run(problem: Problem, leaves: dict[str, Tensor]) -> Result:
            head = kernels.OutputHead(
                hidden=leaves["hidden"], weight=leaves["weight"], first_gemm=first_gemm
            )
            logp, entropy = kernels.token_logprob(head, problem.targets)
            return Result(logp=logp, entropy=entropy)

        return run

    return make


def _peer_logprob(load: Callable[[], Logp]) -> Callable[[], Run]:
    def make() -> Run:
        function = load()

        def run(problem: Problem, leaves: dict[str, Tensor]) -> Result:
            with torch.no_grad():
                logp, entropy = function(leaves["hidden"], leaves["weight"], problem.targets)
            return Result(logp=logp, entropy=entropy)

        return run

    return make


def logprob_providers() -> list[Provider]:
    """Log-prob (and entropy where a peer has it) from hidden states, without gradient."""
    dense = ("dense",)
    found = [
        Provider("ours, fused", _ours_logprob("fused"), dense),
        Provider("ours, blas", _ours_logprob("blas"), dense),
    ]
    return found + [Provider(name, _peer_logprob(load), dense) for name, load in _LOGP]


# ---- from logits -------------------------------------------------------------------------------


def _ours_logits() -> Run:
    def run(problem: Problem, leaves: dict[str, Tensor]) -> Result:
        logits = kernels.OutputLogits(logits=leaves["logits"])
        loss, report = kernels.policy_loss(logits, problem.rows(), LOSS, inplace=True)
        return Result(loss, backend=report.backend)

    return run


def _nll_logits(load: Callable[[], Callable[[Tensor, Tensor], Tensor]]) -> Callable[[], Run]:
    def make() -> Run:
        function = load()

        def run(problem: Problem, leaves: dict[str, Tensor]) -> Result:
            logp = -function(leaves["logits"], problem.targets)
            return Result(policy_from_logp(logp, problem), logp.detach())

        return run

    return make


def _torch_nll() -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, t: torch.nn.functional.cross_entropy(z.float(), t, reduction="none")


def _megatron_nll() -> Callable[[Tensor, Tensor], Tensor]:
    module = importlib.import_module("megatron.core.fusions.fused_cross_entropy")
    group = _one_rank()
    return lambda z, t: module.fused_vocab_parallel_cross_entropy(z[:, None], t[:, None], group)[
        :, 0
    ]


def _engine_nll() -> Callable[[Tensor, Tensor], Tensor]:
    module = importlib.import_module("transformer_engine.pytorch.cross_entropy")
    return lambda z, t: module.parallel_cross_entropy(z[None], t[None])[0]


def _liger_grpo() -> Run:
    """Its layout is [B, L + 1, V] with equal sequences, so it gets logits with a spare row each."""
    _needs_gpu()
    function = importlib.import_module("liger_kernel.transformers.grpo_loss").triton_grpo_loss

    def run(problem: Problem, leaves: dict[str, Tensor]) -> Result:
        length = problem.sequence_length
        padded = leaves["padded"]  # [B, L + 1, V]
        shape = (padded.shape[0], length)
        assert problem.old_logp is not None
        loss, _ = function(
            padded, problem.old_logp.view(shape), None, problem.targets.view(shape),
            problem.advantages.view(shape)[:, 0].contiguous(),
            completion_mask=problem.mask.view(shape).int(), temperature=1.0, beta=0.0,
            eps_low=CLIP_LOW, eps_high=CLIP_HIGH, inplace=True, loss_type="bnpo", reduce=True,
        )  # fmt: skip
        return Result(loss)

    return run


def logits_providers() -> list[Provider]:
    """Loss and gradient from logits."""
    return [
        Provider("ours", lambda: _ours_logits()),
        Provider("torch cross_entropy", _nll_logits(_torch_nll)),
        Provider("Liger grpo_loss", lambda: _liger_grpo(), ("dense",)),
        Provider("Megatron-core fused CE", _nll_logits(_megatron_nll)),
        Provider("Transformer Engine parallel CE", _nll_logits(_engine_nll)),
    ]


def _one_rank() -> Any:
    """A process group of this process alone."""
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        store = dist.FileStore(tempfile.mktemp(), 1)
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    return dist.group.WORLD
