"""Sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passk_fast.config.checks import require, require_positive


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How vLLM samples."""

    dedicated_ranks: int = 0
    """Ranks that sample and do nothing else: the last ones of the job; the others train. 0: every
    rank does both. Needs max_off_policy_steps = 1 (docs/disaggregated.md)."""
    tensor: int = 1
    """vLLM's tensor-parallel ranks; may differ from the trainer's."""
    max_prompt_tokens: int = 512
    """Longest prompt; a longer one is an error that names the prompt."""
    max_response_tokens: int = 512
    """Longest response, end token included."""
    temperature: float = 1.0
    """Sampling temperature; the trainer's log-probs use the same."""
    max_num_seqs: int = 256
    """Sequences decoded together on one engine."""
    prefix_caching: bool = True
    """Reuse the keys and values of a prompt for its N responses."""
    kv_cache_gib: float = 1.0
    """CPU only: memory for keys and values."""
    cpu_fast_path: bool = True
    """CPU only: our seeded sampler, schedulers and fused norms instead of vLLM's own parts, which
    take about twice as long per token. Both sample from the same distribution, but the same seed
    gives other responses, so the setting is part of what a run computes."""
    gpu_memory_utilization: float = 0.5
    """GPU only: share of device memory that vLLM may hold."""
    sleep: bool = True
    """GPU only: hand the engine's memory to the trainer between rollouts."""
    enforce_eager: bool = False
    """GPU only: no CUDA graphs."""
    early_stop: bool = False
    """Stop a group's sampling once the estimator gives it no gradient however it ends. Pass@1 in
    training is then known within bounds only."""
    dynamic_sampling: float = 1.0
    """Sample prompts until prompts_per_step groups have a gradient, but at most this many times
    prompts_per_step in a step. 1 draws prompts_per_step, live or not."""
    max_off_policy_steps: int = 0
    """1: the next batch is sampled, with the weights as they are, while this one is trained; needs
    algorithm.tis_clip. Before a checkpoint and at the end nothing is sampled ahead."""
    verify_processes: int = 0
    """Verifier processes on each engine, whose work overlaps decoding; 0 verifies in the trainer's
    own process, where a verifier that hangs stops the run."""
    verify_timeout_s: float = 30.0
    """Deadline of one verdict in a verifier process; then the response is sampled anew, once."""
    sync_mib: int = 256
    """Weight sync: buffers of this size, in and out, on every rank."""
    verify_weights: Literal["first", "always", "never"] = "first"
    """Compare checksums of every shard after the first weight sync, after each one, or never."""

    def __post_init__(self) -> None:
        require_positive(
            "rollout",
            tensor=self.tensor,
            max_prompt_tokens=self.max_prompt_tokens,
            max_response_tokens=self.max_response_tokens,
            temperature=self.temperature,
            max_num_seqs=self.max_num_seqs,
            kv_cache_gib=self.kv_cache_gib,
            verify_timeout_s=self.verify_timeout_s,
            sync_mib=self.sync_mib,
        )
        require(
            self.dedicated_ranks >= 0,
            f"rollout.dedicated_ranks must be 0 or more, got {self.dedicated_ranks}.",
        )
        require(
            self.dedicated_ranks % self.tensor == 0,
            f"rollout.dedicated_ranks ({self.dedicated_ranks}) must be a multiple of rollout.tensor ({self.tensor}).",
        )
        require(
            self.dynamic_sampling >= 1,
            f"rollout.dynamic_sampling must be 1 (off) or more, got {self.dynamic_sampling}.",
        )
        require(
            self.max_off_policy_steps in (0, 1),
            f"rollout.max_off_policy_steps must be 0 or 1, got {self.max_off_policy_steps}.",
        )
        require(
            not self.dedicated_ranks or self.max_off_policy_steps == 1,
            f"rollout.dedicated_ranks = {self.dedicated_ranks} with rollout.max_off_policy_steps = 0: each side would idle while the "
            "other works. Set rollout.max_off_policy_steps = 1, or rollout.dedicated_ranks = 0 for ranks that do both.",
        )
        require(
            self.verify_processes >= 0,
            f"rollout.verify_processes must be 0 or more, got {self.verify_processes}.",
        )
        require(
            0 < self.gpu_memory_utilization <= 1,
            f"rollout.gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}.",
        )
