"""One run: all sections, and the rules between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from passk_fast.config.algorithm import AlgorithmConfig, OptimConfig
from passk_fast.config.checks import require, require_positive
from passk_fast.config.data import BenchConfig, CheckpointConfig, DataConfig, EvalConfig
from passk_fast.config.model import ModelConfig, ParallelConfig, WarmStartConfig
from passk_fast.config.rollout import RolloutConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run."""

    output_dir: str = "runs/default"
    """The run folder: resolved config, metrics, TensorBoard, samples, checkpoints."""
    seed: int = 0
    """Seed of model initialisation and sampling."""
    steps: int = 100
    """Batches of rollouts to train on."""
    prompts_per_step: int = 32
    """P, prompts a step over all ranks."""
    micro_batch_tokens: int = 8192
    """Tokens of one packed micro-batch on one rank."""
    share_prompts: bool = False
    """Train a prompt's tokens once for its N responses; same gradients up to rounding."""
    lm_head_loss: Literal["auto", "fused", "unfused"] = "auto"
    """How the last stage gets from hidden states to the loss. fused: response rows with a gradient
    only, no logits of a whole micro-batch, gradients in the forward (docs/kernels.md); unfused: all
    rows through the model's output layer. Same loss and gradients up to rounding; metrics of the
    update are over the rows computed. auto: fused on a GPU."""
    lm_head_loss_memory_gib: float = 2.6
    """lm_head_loss = "fused": bound of its temporary memory on a rank."""
    timeout_s: int = 1800
    """Deadline of a collective; a rank that misses it is called lost."""
    stop_grace_s: int = 60
    """After SIGTERM: a step that has not ended and been saved by then is given up, with exit code
    17. Longer than a step and a checkpoint take, shorter than the scheduler's own patience."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a GPU."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The policy."""
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    """Supervised warm start."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """The trainer's mesh."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """Sampling."""
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    """Advantage and loss."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""
    data: DataConfig = field(default_factory=DataConfig)
    """Prompts."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    bench: BenchConfig = field(default_factory=BenchConfig)
    """Benchmarks."""

    def __post_init__(self) -> None:
        require_positive(
            "run",
            steps=self.steps,
            prompts_per_step=self.prompts_per_step,
            micro_batch_tokens=self.micro_batch_tokens,
            lm_head_loss_memory_gib=self.lm_head_loss_memory_gib,
            timeout_s=self.timeout_s,
            stop_grace_s=self.stop_grace_s,
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
        self._check_early_stop()
        require(
            self.bench.decode or self.algorithm.routing_replay == "off",
            f"algorithm.routing_replay = {self.algorithm.routing_replay!r} with bench.decode = "
            "false: random tokens have no experts. Take 'off'.",
        )
        require(
            not self.rollout.max_off_policy_steps or self.algorithm.tis_clip > 0,
            "rollout.max_off_policy_steps = 1 samples with the weights of one update before: set "
            "algorithm.tis_clip (2 is usual), which weighs tokens for it.",
        )
        require(
            not (self.rollout.max_off_policy_steps and self.rollout.sleep) or self.device == "cpu",
            "rollout.max_off_policy_steps = 1 samples while it trains, so the engine cannot sleep meanwhile: set "
            "rollout.sleep = false.",
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

    def _check_early_stop(self) -> None:
        if not self.rollout.early_stop:
            return
        require(
            self.algorithm.skips_zero_advantage,
            "rollout.early_stop needs dead groups to play no part in the update: algorithm.skip_zero_advantage "
            "not 'off', and algorithm.kl_coef, entropy_coef, balance_coef and balance_bias_rate 0.",
        )
        require(
            self.algorithm.loss_denominator != "response_tokens",
            "rollout.early_stop with algorithm.loss_denominator = 'response_tokens': the tokens "
            "that are never sampled would change the denominator. Take 'informative_tokens' or "
            "'sequences'.",
        )
