"""How responses are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passk_fast.config.checks import require, require_finite, require_positive


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How vLLM samples."""

    dedicated_ranks: int = 0
    """Number of ranks, the last ones of the job, that only sample while the others only train
    (disaggregated, asynchronous training; docs/disaggregated.md). Needs max_off_policy_steps = 1.
    With 0 every rank does both."""
    tensor: int = 1
    """Tensor-parallel ranks of each vLLM engine; may differ from the trainer's."""
    max_prompt_tokens: int = 512
    """Longest prompt in tokens. A longer one is an error that names the prompt."""
    max_response_tokens: int = 512
    """Longest response in tokens, including the end token. A longer one is cut off."""
    truncated: Literal["judge", "zero", "mask"] = "judge"
    """What becomes of a response that is cut off. "judge": its verifier judges what there is of
    it. "zero": its reward is 0, no verifier sees it. "mask": as "zero" in what is reported, but it
    is not trained on, and the advantages of its group are those of the n' responses that ended;
    where the estimator cannot do with n' (k above n'), the group has none (docs/operations.md)."""
    stop: tuple[str, ...] = ()
    """Strings that end a response, beside end tokens, such as "</answer>". The response includes
    the string: it is judged and trained up to the token that completes it. Sampling with them is
    slower on CPU, where every token must become text (docs/operations.md)."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a response, beside the model's own: the tokenizer's end token and every
    `eos_token_id` of generation_config.json. As end tokens they are trained, but not judged."""
    temperature: float = 1.0
    """Sampling temperature. The trainer's log-probs use the same one."""
    max_num_seqs: int = 256
    """Number of sequences that one engine decodes at the same time."""
    prefix_caching: bool = True
    """Reuses the keys and values of a prompt for its N responses."""
    kv_cache_gib: float = 1.0
    """CPU only: memory for the KV cache in GiB."""
    cpu_fast_path: bool = True
    """CPU only: our seeded sampler, schedulers and fused norms instead of vLLM's own parts, which
    take about twice as long per token. Both sample from the same distribution, but the same seed
    gives other responses, so the setting is part of what a run computes."""
    gpu_memory_utilization: float = 0.5
    """GPU only: the share of device memory that vLLM may hold."""
    sleep: bool = True
    """GPU only: frees the engine's memory for the trainer between rollouts (vLLM's sleep mode)."""
    enforce_eager: bool = False
    """GPU only: runs without CUDA graphs."""
    early_stop: bool = False
    """Stops sampling a group as soon as its advantages will be zero however the remaining responses
    turn out. The training pass@1 is then known only within bounds."""
    dynamic_sampling: float = 1.0
    """Dynamic sampling (DAPO): samples further prompts until prompts_per_step groups are
    informative (have a non-zero advantage), but at most this many times prompts_per_step per step.
    1 turns it off."""
    max_off_policy_steps: int = 0
    """How many updates the sampling weights may be behind. 0 is on-policy: sample, then train. 1 is
    asynchronous: the next batch is sampled with the current weights while this one is trained,
    which needs loss.tis_clip (truncated importance sampling). Nothing is sampled ahead before a
    checkpoint or at the end."""
    verify_processes: int = 0
    """Number of verifier processes per engine, which work while the engine decodes. With 0 only
    verifiers that are not part of passk_fast get a process, one per engine: nothing that they do
    ends the run."""
    verify_timeout_s: float = 30.0
    """Deadline in seconds of one verdict in a verifier process, or of those of a group that are
    given together. After it the responses are sampled again, one per group."""
    verify_memory_mib: int = 1024
    """MiB of private memory that a verifier process, and each process that it forks, may allocate
    besides what it has once the verifier is imported. An allocation beyond that is a MemoryError,
    so a failure of that response. 0 is no limit."""
    max_verifier_failures: float = 0.5
    """Share of a step's responses, in [0, 1], on which the verifier may fail (raise, hang, leave
    its process, give no number in [0, 1]). More end the run with exit code 10; 1 never does."""
    sync_mib: int = 256
    """Size in MiB of each of the two buffers of the weight synchronisation on every rank."""
    verify_weights: Literal["first", "always", "never"] = "first"
    """Whether checksums of every weight shard are compared between trainer and sampler after the
    first weight synchronisation, after each one, or never."""

    def __post_init__(self) -> None:
        require_finite("rollout", self)
        self._check_stop()
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
            f"rollout.dedicated_ranks ({self.dedicated_ranks}) must be a multiple of "
            f"rollout.tensor ({self.tensor}).",
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
            f"rollout.dedicated_ranks = {self.dedicated_ranks} with rollout.max_off_policy_steps "
            "= 0: each side would idle while the other works. Set "
            "rollout.max_off_policy_steps = 1, or rollout.dedicated_ranks = 0 for ranks that do "
            "both.",
        )
        require(
            0 <= self.verify_processes <= 1024,
            f"rollout.verify_processes must be in [0, 1024], got {self.verify_processes}.",
        )
        require(
            0 <= self.verify_memory_mib <= 2**24,
            f"rollout.verify_memory_mib must be in [0, {2**24}], got {self.verify_memory_mib}.",
        )
        require(
            self.verify_timeout_s <= 86_400,
            f"rollout.verify_timeout_s must be at most 86400, a day, got {self.verify_timeout_s}.",
        )
        require(
            0 <= self.max_verifier_failures <= 1,
            f"rollout.max_verifier_failures must be in [0, 1], got {self.max_verifier_failures}.",
        )
        require(
            0 < self.gpu_memory_utilization <= 1,
            f"rollout.gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}.",
        )

    def _check_stop(self) -> None:
        for text in self.stop:
            require(bool(text), "rollout.stop must hold strings of at least one character, got ''.")
        for name in ("stop", "stop_token_ids"):
            given = getattr(self, name)
            twice = next((one for i, one in enumerate(given) if one in given[:i]), None)
            require(twice is None, f"rollout.{name} names {twice!r} twice; leave one out.")
        for token in self.stop_token_ids:
            require(token >= 0, f"rollout.stop_token_ids must be 0 or more, got {token}.")
