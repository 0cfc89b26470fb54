"""What the ranks of the actor tests run; every function is called on all ranks of a RankPool."""

from __future__ import annotations

import random
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from passk_fast.config import (
    AlgorithmConfig,
    LogprobGapConfig,
    OptimConfig,
    ParallelConfig,
    PolicyLoss,
    RolloutConfig,
    RunConfig,
)
from passk_fast.data.types import Sequence
from passk_fast.kernels.options import DEFAULT_LOSS
from passk_fast.kernels.soft_cap import soft_capped
from passk_fast.model.shape import ModelShape

DEFAULT_GAP = LogprobGapConfig()
Share = Literal["auto", True, False]
"""Values of `RunConfig.share_prompts`."""
VOCAB = 50  # not a multiple of the padding: phantom columns must stay out of the softmax


def hf_config(kind: str) -> Any:
    """A tiny random transformers config of an architecture."""
    from transformers import (
        Gemma2Config,
        LlamaConfig,
        MixtralConfig,
        Qwen2Config,
        Qwen3Config,
        Qwen3MoeConfig,
    )

    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    if kind == "qwen3":
        return Qwen3Config(**sizes, head_dim=32, tie_word_embeddings=True)
    if kind == "qwen2":
        return Qwen2Config(**sizes, tie_word_embeddings=False)
    if kind == "gemma2":
        # Caps low enough to bend what a tiny model gives; a scale that is not head_dim ** -0.5.
        return Gemma2Config(
            **sizes,
            head_dim=32,
            query_pre_attn_scalar=16,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
            sliding_window=9,
            pad_token_id=None,  # transformers gives the padding token's embedding no gradient
        )
    if kind == "mixtral":
        return MixtralConfig(
            **sizes, tie_word_embeddings=False, num_local_experts=4, num_experts_per_tok=2
        )
    if kind.startswith("qwen3_moe"):
        return Qwen3MoeConfig(
            **sizes,
            head_dim=32,
            tie_word_embeddings=False,
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
            norm_topk_prob=kind == "qwen3_moe",
        )
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    return LlamaConfig(**sizes, tie_word_embeddings=False, rope_parameters=rope)


def model_shape(kind: str) -> ModelShape:
    """`hf_config` as the trainer reads it."""
    return ModelShape.parse(hf_config(kind).to_dict())


def make_folder(kind: str, folder: str) -> None:
    """Write a random model, with biases and norms moved off their initial zeros and ones."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_config(kind), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)


FEW = 14
"""Sequences whose groups by prompt do not divide evenly by two ranks."""


def make_sequences(count: int = 24, seed: int = 0) -> list[Sequence]:
    """Random sequences of 2 to 50 tokens with random advantages; 1 to 5 neighbours a prompt."""
    rng = random.Random(seed)
    out: list[Sequence] = []
    while len(out) < count:
        prompt = tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, 20)))
        for _ in range(min(rng.randint(1, 5), count - len(out))):
            response = rng.randint(1, 30)
            out.append(
                Sequence(
                    token_ids=prompt + tuple(rng.randrange(VOCAB) for _ in range(response)),
                    prompt_length=len(prompt),
                    rollout_logprobs=tuple(-5 * rng.random() for _ in range(response)),
                    advantage=rng.gauss(0, 1),
                )
            )
    return out


def run_config(
    parallel: dict[str, Any],
    micro_batch_tokens: int,
    share_prompts: Share = False,
    loss: PolicyLoss = DEFAULT_LOSS,
    logprob_gap: LogprobGapConfig = DEFAULT_GAP,
    **algorithm: Any,
) -> RunConfig:
    """The configuration of an actor under test."""
    return RunConfig(
        loss=loss,
        logprob_gap=logprob_gap,
        share_prompts=share_prompts,
        parallel=ParallelConfig(**parallel),
        micro_batch_tokens=micro_batch_tokens,
        optim=OptimConfig(lr=1e-3),
        rollout=RolloutConfig(max_prompt_tokens=25, max_response_tokens=31),
        algorithm=AlgorithmConfig(**algorithm),
    )


def build(
    kind: str,
    folder: str,
    parallel: dict[str, Any],
    micro_batch_tokens: int = 4096,
    share_prompts: Share = False,
    **algorithm: Any,
) -> Any:
    """An actor with the folder's weights, on a mesh over all ranks."""
    warnings.simplefilter("ignore")
    from passk_fast.actor.actor import Actor
    from passk_fast.actor.mesh import drop_mesh, make_mesh

    drop_mesh()
    config = run_config(parallel, micro_batch_tokens, share_prompts, **algorithm)
    mesh = make_mesh(config.parallel, "cpu")
    actor = Actor(config, model_shape(kind), mesh)
    actor.load_folder(folder)
    return actor


def logits_gap(kind: str, folder: str, parallel: dict[str, Any]) -> float:
    """max |actor - transformers| of the logits of packed sequences; 0.0 off the last stage."""
    from transformers import AutoModelForCausalLM

    actor = build(kind, folder, parallel)
    sequences = make_sequences(6)
    batches = actor.pack(sequences)
    captured: list[torch.Tensor] = []

    def capture(batch: Any) -> Any:
        def loss(logits: torch.Tensor) -> Any:
            # The output layer's own; the loss caps them.
            captured.append(soft_capped(logits[0].detach(), actor.settings.soft_cap))
            return logits.sum() * 0, torch.zeros((), dtype=torch.int), {}

        return loss

    with torch.no_grad():
        actor.run_schedule(actor.chunks, batches, capture, forward_only=True)
    if not captured:
        return 0.0
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    width = captured[0].shape[1]
    first = actor.mesh.tensor_rank * width
    gap = 0.0
    for batch, logits in zip(batches, captured, strict=True):
        for i in set(batch.sequence_index_T.tolist()) - {-1}:
            with torch.no_grad():
                reference = model(torch.tensor([sequences[i].token_ids])).logits[0]
            real = logits[batch.sequence_index_T == i][:, : max(0, min(width, VOCAB - first))]
            gap = max(gap, float((real - reference[:, first : first + width]).abs().max()))
    return gap


def gradients(
    kind: str,
    folder: str,
    parallel: dict[str, Any],
    micro_batch_tokens: int,
    share_prompts: Share = False,
    dead: str = "",
    **algorithm: Any,
) -> tuple[float, dict[str, torch.Tensor]]:
    """(loss, gradient of every parameter under its Hugging Face name), on rank 0; off it, empty.

    `dead`: "kept" takes the advantage from two sequences in three, "all" from every one, "pruned"
    leaves those out; "first" leaves out all but the first FEW.
    """
    from passk_fast.actor import loss as losses
    from passk_fast.weights.megatron import named_parameters

    parallel = {**parallel, "distributed_optimizer": False}
    actor = build(kind, folder, parallel, micro_batch_tokens, share_prompts, **algorithm)
    sequences = make_sequences()
    denominator = float(sum(s.response_length for s in sequences))
    from dataclasses import replace

    if dead in ("kept", "pruned", "all"):
        sequences = [
            replace(s, advantage=s.advantage * (i % 3 == 0 and dead != "all"))
            for i, s in enumerate(sequences)
        ]
    if dead == "first":
        sequences = sequences[:FEW]
    elif dead == "pruned":
        sequences = [s for s in sequences if s.advantage != 0.0]
    batches = [
        replace(b, old_logprobs_T=b.rollout_logprobs_T) for b in actor.pack(sequences)
    ]  # off-policy, so that the loss is not a constant and clipping is at work
    make = partial(losses.policy_loss, settings=actor.settings, denominator=denominator)
    results = actor.backward(batches, make)
    sums, _ = actor.reduce_metrics(results)
    for parameter in named_parameters(actor.chunks).values():
        parameter.data.copy_(parameter.main_grad)  # full_tensors then gathers gradients
    full = {name: tensor.clone() for name, tensor in actor.full_tensors()}
    dist.barrier()
    return sums["loss_sum"] / denominator, full if dist.get_rank() == 0 else {}


def shares(folder: str, share_prompts: Share, **algorithm: Any) -> list[bool]:
    """Whether prompts are shared: of neighbours with one prompt, of one response to each prompt,
    and of nothing; and whether the first batch packed is."""
    kind = "qwen3_moe" if algorithm else "qwen3"
    actor = build(kind, folder, {}, 4096, share_prompts, **algorithm)
    sequences = make_sequences()
    alone = list({s.token_ids[: s.prompt_length]: s for s in sequences}.values())
    packed = actor.pack(sequences)[0].prefix_B is not None
    return [*map(actor.shares_prompts, (sequences, alone, [])), packed]


def bfloat16_step(kind: str, folder: str, parallel: dict[str, Any]) -> dict[str, float]:
    """A bfloat16 policy step: types, distance of its gradients to float32, what the step moved."""
    from dataclasses import replace

    from passk_fast.actor import loss as losses
    from passk_fast.actor.actor import Actor
    from passk_fast.actor.mesh import drop_mesh, make_mesh
    from passk_fast.config import ModelConfig
    from passk_fast.weights.megatron import named_parameters

    sequences = make_sequences()
    denominator = float(sum(s.response_length for s in sequences))
    norms: dict[str, list[torch.Tensor]] = {}
    for dtype in ("float32", "bfloat16"):
        drop_mesh()
        config = replace(run_config(parallel, 4096), model=ModelConfig(dtype=dtype))
        actor = Actor(config, model_shape(kind), make_mesh(config.parallel, "cpu"))
        actor.load_folder(folder)
        make = partial(losses.policy_loss, settings=actor.settings, denominator=denominator)
        actor.backward(actor.pack(sequences), make)  # on-policy: no clip edge to fall off
        parameters = named_parameters(actor.chunks)
        for name, parameter in parameters.items():
            assert parameter.main_grad.dtype == torch.float32
            assert parameter.dtype == getattr(torch, dtype)
            norms.setdefault(name, []).append(parameter.main_grad.clone())
    errors = [float((b - a).norm() / a.norm()) for a, b in norms.values()]
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    result = actor.policy_step(actor.pack(sequences), denominator=denominator, lr=1e-2)
    assert result.applied
    moved = [float((p.detach() - before[name]).abs().max()) for name, p in parameters.items()]
    return {"worst_error": max(errors), "least_move": min(moved)}


def train_steps(
    kind: str,
    folder: str,
    parallel: dict[str, Any],
    steps: int,
    load: str = "",
    save: str = "",
    **algorithm: Any,
) -> dict[str, torch.Tensor]:
    """Weights after some policy steps, from a checkpoint and into one if asked; on rank 0."""
    from passk_fast.checkpoint import megatron as checkpoint

    actor = build(kind, folder, parallel, **algorithm)
    start = checkpoint.read(actor, Path(load))["step"] if load else 0
    for step in range(start, start + steps):
        sequences = make_sequences(seed=step)
        denominator = float(sum(s.response_length for s in sequences))
        result = actor.policy_step(actor.pack(sequences), denominator=denominator, lr=1e-2)
        assert result.applied
        assert result.sums["ppo_kl_sum"] == 0.0  # strictly on-policy
    if save:
        checkpoint.write(actor, Path(save), {"step": start + steps})
    full = {name: tensor.clone() for name, tensor in actor.full_tensors()}
    dist.barrier()
    return full if dist.get_rank() == 0 else {}


def grad_norms(kind: str, folder: str, parallel: dict[str, Any], steps: int) -> list[float]:
    """Norms of the gradients of some policy steps, before clipping."""
    actor = build(kind, folder, parallel)
    norms = []
    for step in range(steps):
        batches = actor.pack(make_sequences(seed=step))
        norms.append(actor.policy_step(batches, denominator=100.0, lr=1e-2).grad_norm)
    return norms


def non_finite_step(kind: str, folder: str, bad_rank: int) -> tuple[bool, float]:
    """(applied, largest change of a weight) of a step in which one rank has a NaN advantage."""
    actor = build(kind, folder, {})
    before = {name: tensor.clone() for name, tensor in actor.full_tensors()}
    batches = actor.pack(make_sequences())
    if dist.get_rank() == bad_rank:
        batches[0].advantages_T[batches[0].mask_T] = float("nan")
    result = actor.policy_step(batches, denominator=100.0, lr=1e-2)
    change = max(
        float((tensor - before[name]).abs().max()) for name, tensor in actor.full_tensors()
    )
    return result.applied, change


def same_logprobs(kind: str, folder: str, parallel: dict[str, Any]) -> float:
    """Largest difference between `logprobs` (no gradient) and the training pass's log-probs."""
    from passk_fast.actor import loss as losses

    actor = build(kind, folder, parallel, 256)
    batches = actor.prepare(actor.pack(make_sequences()), old_logprobs=True)
    make = partial(losses.policy_loss, settings=actor.settings, denominator=100.0)
    sums, _ = actor.reduce_metrics(actor.backward(batches, make))
    return abs(sums["ppo_kl_sum"])


def reference_kl(kind: str, folder: str) -> tuple[float, float]:
    """KL to the reference before and after a step: zero first, positive then."""
    warnings.simplefilter("ignore")
    from passk_fast.actor.actor import Actor
    from passk_fast.actor.mesh import drop_mesh, make_mesh

    drop_mesh()
    config = run_config({}, 4096, loss=PolicyLoss(kl_coef=0.1, kl_estimator="k3"))
    actor = Actor(config, model_shape(kind), make_mesh(config.parallel, "cpu"))
    actor.load_folder(folder)
    actor.load_reference(folder)
    values = []
    for _ in range(2):
        batches = actor.prepare(actor.pack(make_sequences()))
        result = actor.policy_step(batches, denominator=100.0, lr=1e-2)
        values.append(result.sums["kl_sum"])
    return values[0], values[1]
