"""The whole configuration of a run: one tree of frozen dataclasses, no torch.

`config_file.py` reads it from TOML and the command line. A rule inside one section lives in its
`__post_init__`; a rule between sections lives in `RunConfig.__post_init__`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from passk_fast.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_positive(section: str, **values: float) -> None:
    """Every value must be above zero; the message names `section.field`."""
    for name, value in values.items():
        require(value > 0, f"{section}.{name} must be positive, got {value}.")


@dataclass(frozen=True, kw_only=True)
class ShapeConfig:
    """Shape of a model made from scratch, used when `model.path` is empty."""

    architecture: Literal["qwen2", "qwen3", "llama"] = "qwen3"
    """Which Hugging Face architecture the model has."""
    num_layers: int = 4
    """Transformer layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    intermediate_size: int = 256
    """Width of the gated MLP."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 2
    """Key and value heads (GQA)."""
    head_dim: int = 32
    """Channels a head."""
    tie_embeddings: bool = True
    """Whether the output layer shares the input embedding."""
    max_positions: int = 1024
    """Longest sequence in tokens."""

    def __post_init__(self) -> None:
        require_positive(
            "model.shape",
            num_layers=self.num_layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_positions=self.max_positions,
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.shape.num_heads ({self.num_heads}) must be a multiple of "
            f"model.shape.num_kv_heads ({self.num_kv_heads}).",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy that is trained."""

    path: str = ""
    """Hugging Face model folder (config.json, safetensors, tokenizer). Empty: a new random model of
    `shape` with a character tokenizer for the task, made in the run folder."""
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    """Shape of the new model when `path` is empty."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameter and activation type; gradients are always accumulated in float32."""


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Supervised steps on solutions before reinforcement learning (tasks that can make them)."""

    steps: int = 0
    """Supervised optimizer steps; 0 turns the warm start off."""
    batch_size: int = 128
    """Problems a step, freshly generated, disjoint from the evaluation split."""
    lr: float = 2e-3
    """Peak learning rate, constant after warm-up."""
    lr_warmup_steps: int = 30
    """Linear warm-up steps."""
    cache_dir: str = "runs/cache"
    """Where warm-started models are kept, keyed by everything that determines them."""

    def __post_init__(self) -> None:
        require(self.steps >= 0, f"warm_start.steps must be 0 or more, got {self.steps}.")
        require_positive("warm_start", batch_size=self.batch_size, lr=self.lr)


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """The trainer's mesh. World size = tensor x pipeline x context x data; data follows."""

    tensor: int = 1
    """Tensor-parallel ranks; above 1 sequence parallelism is on."""
    pipeline: int = 1
    """Pipeline stages."""
    virtual_pipeline: int = 1
    """Model chunks a stage; above 1 the interleaved schedule is used."""
    context: int = 1
    """Context-parallel ranks: each holds a part of every sequence."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activation recompute: selective redoes core attention, full redoes whole layers."""
    distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel ranks."""

    def __post_init__(self) -> None:
        require_positive(
            "parallel",
            tensor=self.tensor,
            pipeline=self.pipeline,
            virtual_pipeline=self.virtual_pipeline,
            context=self.context,
        )
        require(
            self.virtual_pipeline == 1 or self.pipeline > 1,
            f"parallel.virtual_pipeline = {self.virtual_pipeline} needs parallel.pipeline > 1, "
            f"got {self.pipeline}.",
        )

    def data(self, world_size: int) -> int:
        """Data-parallel size of `world_size` ranks; ConfigError when they do not divide."""
        product = self.tensor * self.pipeline * self.context
        require(
            world_size % product == 0,
            f"World size {world_size} is not divisible by parallel.tensor x parallel.pipeline x "
            f"parallel.context = {self.tensor} x {self.pipeline} x {self.context} = {product}.",
        )
        return world_size // product


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How vLLM samples."""

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
    gpu_memory_utilization: float = 0.5
    """GPU only: share of device memory that vLLM may hold."""
    sleep: bool = True
    """GPU only: hand the engine's memory to the trainer between rollouts."""
    enforce_eager: bool = False
    """GPU only: no CUDA graphs."""
    early_stop: bool = False
    """Stop a group's sampling once the estimator gives it no gradient however it ends. Pass@1 in
    training is then known within bounds only."""
    refill: float = 1.0
    """Draw prompts until prompts_per_step groups have a gradient, but at most this many times
    prompts_per_step in a step. 1 draws prompts_per_step, live or not."""
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
        require(self.refill >= 1, f"rollout.refill must be 1 (off) or more, got {self.refill}.")
        require(
            self.verify_processes >= 0,
            f"rollout.verify_processes must be 0 or more, got {self.verify_processes}.",
        )
        require(
            0 < self.gpu_memory_utilization <= 1,
            f"rollout.gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}.",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How estimator and k change during a run, or between the prompts of a step.

    phases: one after the other. linear: k moves evenly. plateau: the next phase begins when a
    metric stalls. adaptive: prompts with the highest entropy take the first estimator.
    by_accuracy: prompts with c / N <= tau take the first. docs/estimators.md has examples.
    """

    kind: Literal["constant", "phases", "linear", "plateau", "adaptive", "by_accuracy"] = "constant"
    """constant: algorithm.estimator and algorithm.k throughout."""
    estimators: tuple[str, ...] = ()
    """One a phase, or the two that are mixed; empty: algorithm.estimator everywhere (adaptive and
    by_accuracy: grpo first)."""
    ks: tuple[int, ...] = ()
    """phases, plateau: one k a phase. linear: the last k, from algorithm.k. Mixing: one k each."""
    steps: tuple[int, ...] = ()
    """phases: steps of each, 0 for the last one: to the end. linear: steps that it takes."""
    repeat: bool = False
    """phases: begin again after the last one."""
    metric: Literal["reward", "pass@1", "pass@k"] = "pass@k"
    """plateau: the training metric that is watched."""
    patience: int = 50
    """plateau: steps without a new best before the next phase begins."""
    min_delta: float = 0.0
    """plateau: a new best must be better by more than this."""
    share: float = 0.5
    """adaptive: share of the batch's prompts, by entropy from above, that take the first."""
    tau: float = 0.5
    """by_accuracy: prompts with c / N <= tau take the first."""
    scale_lr: Literal["off", "peak"] = "off"
    """peak: the learning rate is multiplied by max eta of the first phase / max eta of this one, so
    that a change of k keeps the step size."""

    def __post_init__(self) -> None:
        section = "algorithm.schedule"
        require_positive(section, patience=self.patience)
        require(self.min_delta >= 0, f"{section}.min_delta must be 0 or more.")
        for name in ("share", "tau"):
            value = getattr(self, name)
            require(0 < value < 1, f"{section}.{name} must be between 0 and 1, got {value}.")
        self._check_used(section)
        if self.kind in ("adaptive", "by_accuracy"):
            self._check_mixing(section)
        elif self.kind == "linear":
            require(
                len(self.ks) == 1 and len(self.steps) == 1 and self.steps[0] > 0,
                f"{section}: kind = 'linear' needs one last k in ks and one number of steps above "
                f"0 in steps, got ks = {list(self.ks)}, steps = {list(self.steps)}.",
            )
        elif self.kind in ("phases", "plateau"):
            self._check_phases(section)

    def _check_used(self, section: str) -> None:
        """An option that cannot take effect is an error."""
        users = {
            "estimators": ("phases", "plateau", "adaptive", "by_accuracy"),
            "ks": ("phases", "plateau", "linear", "adaptive", "by_accuracy"),
            "steps": ("phases", "linear"),
            "repeat": ("phases",),
        }
        for name, kinds in users.items():
            require(
                not getattr(self, name) or self.kind in kinds,
                f"{section}.{name} has no effect with kind = {self.kind!r}; it belongs to "
                f"{', '.join(kinds)}.",
            )
        require(
            self.scale_lr == "off" or self.kind in ("phases", "linear", "plateau"),
            f"{section}.scale_lr has no effect with kind = {self.kind!r}, where k stays.",
        )

    def _check_phases(self, section: str) -> None:
        count = len(self.ks)
        require(count >= 2, f"{section}.ks must name two phases or more, got {list(self.ks)}.")
        require(
            len(self.estimators) in (0, count),
            f"{section}.estimators must be empty or have one name for each of the {count} ks, got "
            f"{len(self.estimators)}.",
        )
        if self.kind == "plateau":
            return
        require(
            len(self.steps) == count,
            f"{section}.steps must have one number for each of the {count} ks, got "
            f"{len(self.steps)}.",
        )
        open_end = not self.repeat and self.steps[-1] == 0
        closed = self.steps[:-1] if open_end else self.steps
        require(
            all(s > 0 for s in closed),
            f"{section}.steps must be positive (0 only for a last phase without repeat), got "
            f"{list(self.steps)}: a phase of no steps is never reached.",
        )

    def _check_mixing(self, section: str) -> None:
        require(
            len(self.ks) == 2,
            f"{section}.ks must hold two ks, of the first and the second estimator, got "
            f"{list(self.ks)}.",
        )
        require(
            len(self.estimators) in (0, 2),
            f"{section}.estimators must be empty or hold two names, got {len(self.estimators)}.",
        )

    def check_reached(self, total_steps: int) -> None:
        """ConfigError when a run of `total_steps` ends before the last phase begins."""
        section = "algorithm.schedule"
        if self.kind == "phases":
            start = 0
            for i, length in enumerate(self.steps):
                require(
                    start < total_steps,
                    f"{section}.steps: phase {i + 1} of {len(self.steps)} begins at step {start}, "
                    f"but the run has steps = {total_steps}: it is never reached.",
                )
                start += length
        elif self.kind == "linear":
            require(
                self.steps[0] < total_steps,
                f"{section}.steps: the last k is reached at step {self.steps[0]}, but the run has "
                f"steps = {total_steps}: it is never reached.",
            )
        elif self.kind == "plateau":
            first = self.patience * (len(self.ks) - 1)
            require(
                first < total_steps,
                f"{section}.patience: with {len(self.ks)} phases the last one begins at step "
                f"{first} at the earliest, but the run has steps = {total_steps}: it is never "
                "reached.",
            )


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfig:
    """Advantage and loss. Terms beyond the clipped policy loss are off by default."""

    estimator: str = "passk"
    """The advantage estimator; docs/estimators.md lists them. passk: analytic Pass@k (arXiv
    2508.10751, Eq. 11-15); grpo is its k = 1 case."""
    num_rollouts: int = 16
    """N, responses a prompt."""
    k: int = 8
    """The k of Pass@k."""
    options: dict[str, float] = field(default_factory=dict)
    """Options of the estimator, for example {tau = 0.5}; docs/estimators.md lists them."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How estimator and k change."""
    match_norm: str = ""
    """Control experiments: an estimator whose sum of |advantage| over the batch the advantages are
    scaled to; empty is off."""
    match_norm_k: int = 1
    """The k of match_norm."""
    flip_negatives: float = 0.0
    """Noise baseline: each wrong response is rewarded with this probability; metrics see the true
    rewards."""
    clip_low: float = 0.2
    """Lower clip of the ratio: 1 - clip_low."""
    clip_high: float = 0.28
    """Upper clip of the ratio: 1 + clip_high (clip-higher)."""
    dual_clip: float = 0.0
    """Dual clip: with a negative advantage the loss is at most dual_clip x |A|; 0 is off."""
    importance_cap: float = 0.0
    """Truncated importance sampling: weight min(p_trainer / p_rollout, cap); 0 is off."""
    kl_coef: float = 0.0
    """Coefficient of the KL to the reference model (the policy at the start); 0 is off."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators of KL from samples."""
    entropy_coef: float = 0.0
    """Entropy bonus; 0 is off."""
    loss_denominator: Literal["response_tokens", "live_tokens", "sequences"] = "response_tokens"
    """What the summed token loss of one optimizer step is divided by, fixed before packing."""
    prune: Literal["auto", "on", "off"] = "auto"
    """Leave sequences with zero advantage out of the update; the gradient stays the same. auto:
    unless another term of the loss needs them. Metrics of the update are then over the rest."""
    minibatches: int = 1
    """Optimizer steps a batch of rollouts; 1 is strictly on-policy."""
    max_dead_steps: int = 100
    """Stop after this many steps in a row without one group that has a gradient; 0 never does."""
    max_logprob_gap: float = 0.0
    """First-step bound on max |rollout - trainer log-prob|; 0 takes the default of the dtype and
    device (float32 on CPU 1e-4, float32 on GPU 1e-2, bfloat16 0.5)."""

    def __post_init__(self) -> None:
        n, k = self.num_rollouts, self.k
        require(n >= 2, f"algorithm.num_rollouts (N) must be at least 2, got {n}.")
        require(
            1 <= k <= n, f"algorithm.k must be between 1 and algorithm.num_rollouts = {n}, got {k}."
        )
        require(
            k < n or self.estimator != "passk",
            f"algorithm.k = algorithm.num_rollouts = {n}: every analytic Pass@k advantage is zero "
            "at k = N. Take k < N.",
        )
        require(
            self.estimator != "grpo" or k == 1,
            f"algorithm.estimator = 'grpo' ignores k; set algorithm.k = 1, got {k}.",
        )
        require(
            0 <= self.flip_negatives < 1,
            f"algorithm.flip_negatives must be in [0, 1), got {self.flip_negatives}.",
        )
        require(
            bool(self.match_norm) or self.match_norm_k == 1,
            f"algorithm.match_norm_k = {self.match_norm_k} has no effect without "
            "algorithm.match_norm.",
        )
        require_positive("algorithm", minibatches=self.minibatches)
        require(
            self.max_dead_steps >= 0,
            f"algorithm.max_dead_steps must be 0 or more, got {self.max_dead_steps}.",
        )
        require(
            self.prune != "on" or not self._dead_rows_count,
            "algorithm.prune = 'on' with algorithm.kl_coef or algorithm.entropy_coef above 0: that "
            "term has a gradient on sequences without advantage too. Take prune = 'auto' or 'off'.",
        )
        for name in ("clip_low", "clip_high", "importance_cap", "kl_coef", "entropy_coef"):
            value = getattr(self, name)
            require(value >= 0, f"algorithm.{name} must be 0 or more, got {value}.")
        require(self.clip_low < 1, f"algorithm.clip_low must be below 1, got {self.clip_low}.")
        require(
            self.dual_clip == 0 or self.dual_clip > 1,
            f"algorithm.dual_clip must be 0 (off) or above 1, got {self.dual_clip}.",
        )

    @property
    def _dead_rows_count(self) -> bool:
        """A term of the loss has a gradient where the advantage is zero."""
        return self.kl_coef > 0 or self.entropy_coef > 0

    @property
    def prunes(self) -> bool:
        """Sequences without advantage are dropped before the trainer's forward."""
        return self.prune != "off" and not self._dead_rows_count


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, its schedule, and what to do with bad gradients."""

    lr: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Shape after warm-up."""
    lr_warmup_steps: int = 10
    """Linear warm-up steps."""
    min_lr_ratio: float = 0.0
    """Cosine: final learning rate as a share of `lr`."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    beta1: float = 0.9
    """Adam's first-moment decay."""
    beta2: float = 0.95
    """Adam's second-moment decay."""
    eps: float = 1e-8
    """Adam's epsilon."""
    grad_clip: float = 1.0
    """Global gradient-norm clip; 0 is off."""
    max_bad_steps: int = 3
    """Stop after this many steps in a row with a NaN or inf gradient."""

    def __post_init__(self) -> None:
        require_positive("optim", lr=self.lr, eps=self.eps, max_bad_steps=self.max_bad_steps)
        require(self.lr_warmup_steps >= 0, "optim.lr_warmup_steps must be 0 or more.")
        for name in ("beta1", "beta2", "min_lr_ratio"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"optim.{name} must be in [0, 1], got {value}.")
        require(self.grad_clip >= 0, f"optim.grad_clip must be 0 or more, got {self.grad_clip}.")


@dataclass(frozen=True, kw_only=True)
class MazeConfig:
    """The maze task (arXiv 2508.10751, section 3.1) when prompts are generated."""

    train_sizes: tuple[int, ...] = (9, 11, 13, 15)
    """Odd sizes of training mazes."""
    train_per_size: int = 10_000
    """Training mazes of each size."""
    test_sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    """Odd sizes of held-out mazes."""
    test_per_size: int = 100
    """Held-out mazes of each size (75 where the size is 7 and this is 100, as in the paper)."""
    style: Literal["prose", "compact"] = "prose"
    """prose: instructions and `<answer>` tags, as the paper; compact: grid and moves alone."""
    lenient: bool = False
    """Verify as the paper's released code does (see docs/maze.md)."""

    def __post_init__(self) -> None:
        for name in ("train_sizes", "test_sizes"):
            sizes = getattr(self, name)
            require(len(sizes) > 0, f"data.maze.{name} must name at least one size.")
            for size in sizes:
                require(
                    5 <= size <= 21 and size % 2 == 1,
                    f"data.maze.{name} must hold odd sizes from 5 to 21, got {size}.",
                )
        require_positive(
            "data.maze", train_per_size=self.train_per_size, test_per_size=self.test_per_size
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where prompts come from."""

    train: str = ""
    """JSONL or Parquet file, or a folder saved by `datasets`; empty: mazes made by `maze`."""
    test: str = ""
    """Held-out prompts, same formats; empty with `train` set: no evaluation."""
    maze: MazeConfig = field(default_factory=MazeConfig)
    """The maze generator and verifier."""
    seed: int = 0
    """Seed of generated data and of the order of prompts."""
    prefer_live: float = 0.0
    """In [0, 0.95]: pass over a prompt, until the next epoch, with this chance times the chance
    that its group would be dead, from what was seen of it before. Above 0 it changes the
    distribution of prompts that is trained on."""

    def __post_init__(self) -> None:
        require(
            0 <= self.prefer_live <= 0.95,
            f"data.prefer_live must be in [0, 0.95], got {self.prefer_live}.",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out evaluation: during training a quick look, afterwards by `passk-fast eval`."""

    every: int = 10
    """Steps between evaluations; 0 evaluates only before and after training."""
    num_prompts: int = 64
    """Held-out prompts, the first of the split."""
    num_rollouts: int = 16
    """Responses a prompt; pass@k needs k of them at least."""
    temperature: float = 1.0
    """`passk-fast eval`: sampling temperature; training looks with rollout.temperature."""
    top_p: float = 0.95
    """`passk-fast eval`: nucleus sampling; training looks without it."""

    def __post_init__(self) -> None:
        require(self.every >= 0, f"eval.every must be 0 or more, got {self.every}.")
        require(self.temperature >= 0, f"eval.temperature must be 0 or more: {self.temperature}.")
        require(0 < self.top_p <= 1, f"eval.top_p must be in (0, 1], got {self.top_p}.")
        require_positive("eval", num_prompts=self.num_prompts, num_rollouts=self.num_rollouts)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving and resuming."""

    every: int = 20
    """Steps between checkpoints; the last step is always saved. 0 saves only the last."""
    keep: int = 2
    """How many of the newest checkpoints to keep."""
    resume: bool = True
    """Continue from the newest good checkpoint in the run folder."""

    def __post_init__(self) -> None:
        require(self.every >= 0, f"checkpoint.every must be 0 or more, got {self.every}.")
        require_positive("checkpoint", keep=self.keep)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What `passk-fast bench` runs; training ignores it."""

    task: Literal["synthetic", "data"] = "synthetic"
    """synthetic: random prompts, lengths and verdicts, no data set; data: the run's own."""
    steps: int = 5
    """Steps that are measured."""
    warmup: int = 1
    """Steps before them that are not."""
    accuracy: float = 0.5
    """Chance of a synthetic verdict of 1."""
    prompt_tokens: int = 0
    """Tokens of a synthetic prompt; 0: rollout.max_prompt_tokens."""
    response_mean: float = 0.0
    """Mean of log-normal response lengths in tokens; 0: half of rollout.max_response_tokens."""
    response_sigma: float = 0.6
    """Their spread: deviation of the logarithm."""
    lengths_file: str = ""
    """JSONL with "tokens" a line (a run's samples): lengths are drawn from it instead."""
    decode: bool = True
    """Sample with vLLM; without, random tokens of these lengths, and no engine."""
    random_weights: bool = False
    """Train random weights: model.path need hold config.json alone; needs decode = false."""

    def __post_init__(self) -> None:
        require_positive("bench", steps=self.steps)
        require(self.warmup >= 0, f"bench.warmup must be 0 or more, got {self.warmup}.")
        require(0 <= self.accuracy <= 1, f"bench.accuracy must be in [0, 1], got {self.accuracy}.")
        for name in ("prompt_tokens", "response_mean", "response_sigma"):
            value = getattr(self, name)
            require(value >= 0, f"bench.{name} must be 0 or more, got {value}.")
        require(
            not (self.random_weights and self.decode),
            "bench.random_weights needs bench.decode = false: vLLM reads its weights from a file.",
        )


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
    loss_head: Literal["auto", "fused", "logits"] = "auto"
    """How the last stage gets from hidden states to the loss. fused: response rows with a gradient
    only, no logits of a whole micro-batch, gradients in the forward (docs/kernels.md); logits: all
    rows through the model's output layer. Same loss and gradients up to rounding; metrics of the
    update are over the rows computed. auto: fused on a GPU."""
    loss_head_memory_gib: float = 2.6
    """loss_head = "fused": bound of its temporary memory on a rank."""
    timeout_s: int = 1800
    """Deadline of a collective; a rank that misses it is called lost."""
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
            loss_head_memory_gib=self.loss_head_memory_gib,
            timeout_s=self.timeout_s,
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
            self.algorithm.prunes,
            "rollout.early_stop needs dead groups to play no part in the update: algorithm.prune "
            "not 'off', algorithm.kl_coef and algorithm.entropy_coef 0.",
        )
        require(
            self.algorithm.loss_denominator != "response_tokens",
            "rollout.early_stop with algorithm.loss_denominator = 'response_tokens': the tokens "
            "that are never sampled would change the denominator. Take 'live_tokens' or "
            "'sequences'.",
        )
