"""One run: all sections, and the rules between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from passk_fast.config.algorithm import AlgorithmConfig, OptimConfig
from passk_fast.config.checks import require, require_finite, require_positive
from passk_fast.config.data import BenchConfig, CheckpointConfig, DataConfig, EvalConfig
from passk_fast.config.logprob_gap import LogprobGapConfig
from passk_fast.config.model import ModelConfig, ParallelConfig, WarmStartConfig
from passk_fast.config.rollout import RolloutConfig
from passk_fast.kernels.options import PolicyLoss


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run."""

    output_dir: str = "runs/default"
    """The run folder. It holds the resolved configuration, metrics, TensorBoard files, samples and
    checkpoints."""
    seed: int = 0
    """Seed of the model's initialisation and of sampling."""
    steps: int = 100
    """Number of batches of rollouts to train on."""
    prompts_per_step: int = 32
    """P, the number of prompts per step over all ranks; each gets algorithm.num_rollouts
    responses."""
    micro_batch_tokens: int = 8192
    """Number of tokens in one packed micro-batch on one rank. It must hold the longest sequence."""
    share_prompts: Literal["auto", True, False] = "auto"
    """Computes a prompt's tokens once for its N responses when training (shared-prefix attention).
    The gradients are the same up to rounding. "auto" does so in the optimizer steps in which it
    leaves out a tenth of the tokens at least, except with Transformer Engine's layers, whose
    attention cannot, and with algorithm.routing_replay, where each response replays its own prompt.
    true always does."""
    lm_head_loss: Literal["auto", "fused", "unfused"] = "auto"
    """How the last pipeline stage gets from hidden states to the loss. "fused" computes only the
    response tokens that have a gradient, never holds the logits of a whole micro-batch, and makes
    gradients in the forward pass (docs/kernels.md). "unfused" sends all tokens through the model's
    output layer. Loss and gradients are the same up to rounding; the metrics of an update are over
    the tokens computed. "auto" is fused on a GPU, unfused on a CPU."""
    lm_head_loss_memory_gib: float = 2.6
    """Bound on the temporary memory of lm_head_loss = "fused" on one rank, in GiB."""
    timeout_s: int = 1800
    """Deadline of a collective operation in seconds. A rank that misses it counts as lost."""
    stop_grace_s: int = 60
    """Seconds from SIGTERM to a hard exit with code 17. Choose it longer than one step plus one
    checkpoint, and shorter than the time after which the scheduler kills the job."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the run computes; "auto" takes CUDA where there is a GPU."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy model that is trained."""
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    """Supervised warm start before reinforcement learning."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the trainer is split over ranks."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """How responses are sampled."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    """The advantage, and how a batch becomes optimizer steps."""
    loss: PolicyLoss = field(default_factory=PolicyLoss)
    """The token-level policy loss (docs/kernels.md): PPO clipping and clip-higher (DAPO), dual
    clip, CISPO, GSPO, REINFORCE, truncated importance sampling (TIS), KL and entropy terms."""
    logprob_gap: LogprobGapConfig = field(default_factory=LogprobGapConfig)
    """How far sampler and trainer may disagree."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where prompts come from."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation on held-out prompts."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and resuming."""
    bench: BenchConfig = field(default_factory=BenchConfig)
    """What `passk-fast bench` runs."""

    def __post_init__(self) -> None:
        require_finite("", self)
        require_positive(
            "",
            steps=self.steps,
            prompts_per_step=self.prompts_per_step,
            micro_batch_tokens=self.micro_batch_tokens,
            lm_head_loss_memory_gib=self.lm_head_loss_memory_gib,
            timeout_s=self.timeout_s,
            stop_grace_s=self.stop_grace_s,
        )
        for name in ("timeout_s", "stop_grace_s"):
            value = getattr(self, name)
            require(value <= 10**7, f"{name} must be at most 10000000 (116 days), got {value}.")
        require(
            bool(self.output_dir) and self.output_dir.isprintable(),
            f"output_dir must be the path of a folder, got {self.output_dir!r}.",
        )
        require(
            self.prompts_per_step % self.algorithm.minibatches == 0,
            f"prompts_per_step ({self.prompts_per_step}) must be a multiple of "
            f"algorithm.minibatches ({self.algorithm.minibatches}).",
        )
        self.algorithm.schedule.check_reached(self.steps)
        longest = self.rollout.max_prompt_tokens + self.rollout.max_response_tokens
        require(
            self.micro_batch_tokens >= longest,
            f"micro_batch_tokens ({self.micro_batch_tokens}) must hold the longest sequence: "
            f"rollout.max_prompt_tokens + rollout.max_response_tokens = {longest}.",
        )
        self._check_loss()
        self._check_early_stop()
        self._check_off_policy()
        require(
            not self.rollout.stop or self.algorithm.routing_replay == "off",
            f"rollout.stop with algorithm.routing_replay = {self.algorithm.routing_replay!r}: vLLM "
            "returns no experts of a response that a string ended. End responses by tokens "
            "(rollout.stop_token_ids), or set algorithm.routing_replay = 'off'.",
        )
        require(
            self.bench.decode or self.algorithm.routing_replay == "off",
            f"algorithm.routing_replay = {self.algorithm.routing_replay!r} with bench.decode = "
            "false: random tokens have no experts. Set algorithm.routing_replay = 'off'.",
        )
        if not self.model.path:
            require(
                self.model.shape.max_positions >= longest,
                f"model.shape.max_positions ({self.model.shape.max_positions}) must hold the "
                f"longest sequence: max_prompt_tokens + max_response_tokens = {longest}.",
            )
        require(
            self.eval.num_rollouts >= self.algorithm.k,
            f"eval.num_rollouts ({self.eval.num_rollouts}) must be at least algorithm.k "
            f"({self.algorithm.k}) to estimate pass@k.",
        )

    @property
    def trains_zero_advantage(self) -> bool:
        """Whether a term of the update depends on sequences whose advantage is zero."""
        return self.loss.every_masked_row or self.algorithm.balances_experts

    @property
    def skips_zero_advantage(self) -> bool:
        """Whether zero-advantage sequences are dropped before the trainer's forward pass."""
        return self.algorithm.skip_zero_advantage != "off" and not self.trains_zero_advantage

    def _check_loss(self) -> None:
        require(
            self.algorithm.skip_zero_advantage != "on" or not self.trains_zero_advantage,
            "algorithm.skip_zero_advantage = 'on' with loss.kl_coef, loss.entropy_coef, "
            "algorithm.balance_coef or algorithm.balance_bias_rate above 0: that term depends on "
            "sequences with zero advantage too. Set algorithm.skip_zero_advantage = 'auto' or "
            "'off'.",
        )
        require(
            self.algorithm.balance_bias_rate == 0
            or (self.loss.tis_clip > 0 and self.logprob_gap != LogprobGapConfig()),
            "algorithm.balance_bias_rate: the sampler does not know the router bias, so it routes "
            "tokens differently from the trainer. Set loss.tis_clip (2 is usual), which weights "
            "tokens for it, and the gap that you accept: logprob_gap.max in float32, "
            "logprob_gap.mean and at_quantile in bfloat16.",
        )
        require(
            self.loss.ratio == "token" or self.parallel.context == 1,
            f"loss.ratio = 'sequence' with parallel.context = {self.parallel.context}: context "
            "parallelism splits a response over ranks, and its ratio needs all of its tokens on "
            "one rank. Set parallel.context = 1 or loss.ratio = 'token'.",
        )

    def _check_early_stop(self) -> None:
        if not self.rollout.early_stop:
            return
        require(
            self.rollout.truncated != "mask",
            "rollout.early_stop with rollout.truncated = 'mask': how many responses of a group "
            "count is known when all have ended, so none can be stopped. Set rollout.early_stop = "
            "false, or rollout.truncated = 'zero' or 'judge'.",
        )
        require(
            self.skips_zero_advantage,
            "rollout.early_stop needs an update that zero-advantage groups play no part in: set "
            "algorithm.skip_zero_advantage to 'auto' or 'on', and loss.kl_coef, loss.entropy_coef, "
            "algorithm.balance_coef and algorithm.balance_bias_rate to 0.",
        )
        require(
            self.algorithm.loss_denominator != "response_tokens",
            "rollout.early_stop with algorithm.loss_denominator = 'response_tokens': the tokens "
            "that are never sampled would change the denominator. Set "
            "algorithm.loss_denominator = 'informative_tokens' or 'sequences'.",
        )

    def _check_off_policy(self) -> None:
        if not self.rollout.max_off_policy_steps:
            return
        require(
            self.loss.tis_clip > 0,
            "rollout.max_off_policy_steps = 1 samples with weights that are one update old: set "
            "loss.tis_clip (2 is usual), which weights tokens for it.",
        )
        require(
            not self.rollout.sleep or self.device == "cpu",
            "rollout.max_off_policy_steps = 1 samples while it trains, so the engine cannot sleep "
            "meanwhile: set rollout.sleep = false.",
        )
