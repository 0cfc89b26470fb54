"""Which estimator and which k each prompt gets at each step.

A schedule is a function of the step, except `plateau`, which remembers what it has seen; that
memory is saved in checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np

from passk_fast.advantage.registry import Estimator, check, find
from passk_fast.advantage.table import advantages, dead_states, eta, table
from passk_fast.config import AlgorithmConfig, RolloutConfig, ScheduleConfig
from passk_fast.errors import ConfigError
from passk_fast.seeding import seed_for


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One estimator with its k. Example: Stage(estimator="passk", k=8)."""

    estimator: str
    k: int
    options: Mapping[str, float] = field(default_factory=dict)

    def advantages(self, rewards_PN: np.ndarray, seed: int) -> np.ndarray:
        """float64 [P, N]; `seed` is used by sampled estimators only."""
        seeded = {"seed": seed} if "seed" in find(self.estimator).options else {}
        return advantages(self.estimator, rewards_PN, self.k, **self.options, **seeded)

    def zero_advantage_rows(self, n: int) -> np.ndarray:
        """bool [n + 1]: numbers of correct responses at which every advantage is zero."""
        return dead_states(self.estimator, n, self.k, **self.options)

    def peak_eta(self, n: int) -> float:
        """The largest sum of |advantage| over a group, over c."""
        return float(eta(table(self.estimator, n, self.k, **self.options)).max())


class ScheduleState(TypedDict):
    """The memory of a plateau schedule: JSON values."""

    phase: int
    best: float | None
    """The metric's best value in this phase."""
    waited: int
    """Steps since then."""


class Schedule:
    """The estimator's part of a run, step after step; `step` counts batches from 0."""

    def __init__(self, algorithm: AlgorithmConfig, seed: int) -> None:
        """ConfigError, naming the field, for stages that their estimators refuse."""
        self._algorithm = algorithm
        self._config = algorithm.schedule
        self._seed = seed
        self._stages = _stages(algorithm)
        self._phase = 0
        self._best: float | None = None
        self._waited = 0

    # ---- which ---------------------------------------------------------------------------------

    def phase(self, step: int) -> int:
        """Index of the current phase; of mixing kinds and a constant one always 0."""
        if self._config.kind == "plateau":
            return self._phase
        if self._config.kind != "phases":
            return 0
        if self._config.repeat:
            step %= sum(self._config.steps)
        ends = np.cumsum(self._config.steps)
        ends[-1] = max(ends[-1], step + 1)  # the last phase goes on
        return int((step >= ends).sum())

    def stages(self, step: int) -> tuple[Stage, ...]:
        """The stages in use at a step: one, or the two that are mixed."""
        kind = self._config.kind
        if kind in ("adaptive", "by_accuracy"):
            return self._stages
        if kind == "linear":
            return (self._stages[linear_k(self._algorithm, step) - self._lowest_k],)
        return (self._stages[self.phase(step)],)

    @property
    def _lowest_k(self) -> int:
        return min(stage.k for stage in self._stages)

    # ---- what it does --------------------------------------------------------------------------

    def advantages(
        self, step: int, rewards_PN: np.ndarray, entropy_P: np.ndarray | None = None
    ) -> np.ndarray:
        """Advantages of one batch, float64 [P, N].

        `entropy_P` is the mean token entropy of each prompt's responses; only `adaptive` asks.
        """
        seed = seed_for(self._seed, "estimator", step)
        stages = self.stages(step)
        out = stages[0].advantages(rewards_PN, seed)
        if len(stages) == 2:
            first = self._takes_first(rewards_PN, entropy_P)
            out = np.where(first[:, None], out, stages[1].advantages(rewards_PN, seed))
        if self._algorithm.match_norm:
            out = self._matched(out, rewards_PN, seed)
        return out

    def _takes_first(self, rewards_PN: np.ndarray, entropy_P: np.ndarray | None) -> np.ndarray:
        """bool [P]: which prompts take the first of two stages."""
        num_prompts, num = rewards_PN.shape
        if self._config.kind == "by_accuracy":
            correct_P: np.ndarray = (rewards_PN == 1.0).sum(axis=1)
            takes_first_P: np.ndarray = correct_P <= math.floor(self._config.tau * num + 1e-9)
            return takes_first_P
        assert entropy_P is not None, "an adaptive schedule needs the prompts' entropies"
        return highest(entropy_P, math.ceil(self._config.share * num_prompts - 1e-9))

    def accepts(self, step: int, n: int) -> bool:
        """Whether the estimators of a step can do with groups of n responses."""
        try:
            for stage in self.stages(step):
                stage.zero_advantage_rows(n)
        except ValueError:
            return False
        return True

    def _matched(self, own_PN: np.ndarray, rewards_PN: np.ndarray, seed: int) -> np.ndarray:
        """Scaled to the batch's sum of |A| under another estimator (the norm-matched control)."""
        algorithm = self._algorithm
        other = Stage(estimator=algorithm.match_norm, k=algorithm.match_norm_k)
        size = np.abs(own_PN).sum()
        wanted = np.abs(other.advantages(rewards_PN, seed)).sum()
        return own_PN * (wanted / size) if size > 0 else own_PN

    def zero_advantage_rows(self, step: int) -> np.ndarray:
        """bool [N + 1]: numbers of correct responses whose group has zero advantage at a step.

        Asked of true rewards: with noise rewards no number is sure to give zero.
        """
        n = self._algorithm.num_rollouts
        zero = [stage.zero_advantage_rows(n) for stage in self.stages(step)]
        if self._algorithm.flip_negatives > 0:
            return np.zeros(n + 1, dtype=bool)
        if self._config.kind == "by_accuracy":
            low = np.arange(n + 1) <= math.floor(self._config.tau * n + 1e-9)
            return np.where(low, zero[0], zero[1])
        everywhere: np.ndarray = np.all(zero, axis=0)
        return everywhere

    def check_rollout(self, rollout: RolloutConfig) -> None:
        """ConfigError where early stop, dynamic sampling or masks do not go with the schedule."""
        if rollout.early_stop:
            self.check_early_stop()
        if rollout.dynamic_sampling > 1:
            self.check_separate_groups("rollout.dynamic_sampling")
        if rollout.truncated == "mask":
            self.check_separate_groups("rollout.truncated = 'mask'")

    def check_early_stop(self) -> None:
        """ConfigError unless a group's own count alone says when its sampling may stop."""
        algorithm, kind = self._algorithm, self._config.kind
        name, why = "", ""
        if algorithm.flip_negatives > 0:
            name, why = "flip_negatives", "a noise reward may give any group a gradient"
        elif algorithm.match_norm:
            name, why = "match_norm", "the norm counts the groups that would be stopped"
        elif kind == "adaptive":
            name, why = (
                "schedule.kind = 'adaptive'",
                "the entropy needs all responses of all groups",
            )
        elif kind == "plateau":
            name, why = "schedule.kind = 'plateau'", "its metric is not known of stopped groups"
        if name:
            raise ConfigError(f"rollout.early_stop does not go with algorithm.{name}: {why}.")
        n = algorithm.num_rollouts
        rows = [stage.zero_advantage_rows(n) for stage in self._stages]
        if not any((zero[:-1] & zero[1:]).any() for zero in rows):
            names = ", ".join(sorted({repr(stage.estimator) for stage in self._stages}))
            raise ConfigError(
                f"rollout.early_stop has no effect with estimator {names}: a group of {n} may have "
                "a gradient until its last response is known."
            )

    def check_separate_groups(self, setting: str) -> None:
        """ConfigError, naming the setting, unless a group's advantages depend on it alone."""
        algorithm, why = self._algorithm, ""
        if algorithm.flip_negatives > 0:
            why = "algorithm.flip_negatives: noise is sampled for the batch as a whole"
        elif algorithm.match_norm:
            why = "algorithm.match_norm: the norm is that of the batch as a whole"
        elif self._config.kind == "adaptive":
            why = "algorithm.schedule.kind = 'adaptive': the ranking is over the batch as a whole"
        elif any("seed" in find(stage.estimator).options for stage in self._stages):
            why = "a bootstrap estimator: its random groups depend on the place in the batch"
        if why:
            raise ConfigError(f"{setting} does not go with {why}.")

    def lr_scale(self, step: int) -> float:
        """Factor of the learning rate at a step; 1 unless scale_lr is on."""
        if self._config.scale_lr == "off":
            return 1.0
        n = self._algorithm.num_rollouts
        first = self._first_stage()
        return first.peak_eta(n) / self.stages(step)[0].peak_eta(n)

    def _first_stage(self) -> Stage:
        if self._config.kind == "linear":
            return self._stages[self._algorithm.k - self._lowest_k]
        return self._stages[0]

    # ---- memory --------------------------------------------------------------------------------

    def observe(self, record: Mapping[str, object]) -> None:
        """Take one step's metrics; `plateau` goes to the next phase when its metric stalls."""
        config = self._config
        if config.kind != "plateau" or self._phase == len(self._stages) - 1:
            return
        entry = record[config.metric]
        assert isinstance(entry, float | int), f"{config.metric} is not a number: {entry!r}"
        value = float(entry)
        if self._best is None or value > self._best + config.min_delta:
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= config.patience:
            self._phase, self._best, self._waited = self._phase + 1, None, 0

    def state_dict(self) -> ScheduleState:
        """What a checkpoint must keep."""
        return {"phase": self._phase, "best": self._best, "waited": self._waited}

    def load_state_dict(self, state: ScheduleState) -> None:
        """Continue from `state_dict`."""
        self._phase, self._best = state["phase"], state["best"]
        self._waited = state["waited"]


def highest(values_P: np.ndarray, count: int) -> np.ndarray:
    """bool [P]: the `count` largest values; of equal ones the earlier first (stable)."""
    out = np.zeros(len(values_P), dtype=bool)
    out[np.argsort(-np.asarray(values_P), kind="stable")[:count]] = True
    return out


def linear_k(algorithm: AlgorithmConfig, step: int) -> int:
    """k of a linear schedule: from algorithm.k to ks[0] in equal parts of steps[0] steps."""
    config = algorithm.schedule
    done = min(1.0, step / config.steps[0])
    return round(algorithm.k + (config.ks[0] - algorithm.k) * done)


def _stages(algorithm: AlgorithmConfig) -> tuple[Stage, ...]:
    """All stages of a run, checked. Of a linear schedule one for each k on the way, ascending."""
    config = algorithm.schedule
    names, ks = _names_and_ks(algorithm, config)
    unused = set(algorithm.options)
    stages = []
    for i, (name, k) in enumerate(zip(names, ks, strict=True)):
        known = _find(name, i, config)
        options = {key: v for key, v in algorithm.options.items() if key in known.options}
        unused -= set(options)
        stages.append(_checked(Stage(estimator=name, k=k, options=options), i, algorithm))
    if unused:
        given = ", ".join(f"{n!r} ({', '.join(find(n).options) or 'none'})" for n in set(names))
        raise ConfigError(
            f"algorithm.options: {sorted(unused)[0]!r} is an option of none of the estimators in "
            f"use; theirs are: {given}."
        )
    if algorithm.match_norm:
        try:
            check(algorithm.match_norm, algorithm.num_rollouts, algorithm.match_norm_k, {})
        except ValueError as error:
            raise ConfigError(f"algorithm.match_norm: {error}") from None
    return tuple(stages)


def _names_and_ks(
    algorithm: AlgorithmConfig, config: ScheduleConfig
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if config.kind == "constant":
        return (algorithm.estimator,), (algorithm.k,)
    if config.kind == "linear":
        low, high = sorted((algorithm.k, config.ks[0]))
        ks = tuple(range(low, high + 1))
        return (algorithm.estimator,) * len(ks), ks
    if config.estimators:
        return config.estimators, config.ks
    if config.kind in ("adaptive", "by_accuracy"):
        return ("grpo", algorithm.estimator), config.ks
    return (algorithm.estimator,) * len(config.ks), config.ks


def _find(name: str, index: int, config: ScheduleConfig) -> Estimator:
    try:
        return find(name)
    except ValueError as error:
        raise ConfigError(f"{_field(config, 'estimators', 'estimator', index)}: {error}") from None


def _field(config: ScheduleConfig, plural: str, single: str, index: int) -> str:
    """The field that a stage came from. Example: "algorithm.schedule.ks[1]"."""
    own = getattr(config, plural)
    if own and config.kind != "linear":
        return f"algorithm.schedule.{plural}[{index}]"
    return f"algorithm.{single}"


def _checked(stage: Stage, index: int, algorithm: AlgorithmConfig) -> Stage:
    config, n = algorithm.schedule, algorithm.num_rollouts
    where = _field(config, "ks", "k", index)
    if config.kind == "linear" and stage.k != algorithm.k:
        where = "algorithm.schedule.ks"
    try:
        zero_advantage = stage.zero_advantage_rows(n)
        if config.scale_lr != "off":
            stage.peak_eta(n)
    except ValueError as error:
        text = str(error)
        option = next((key for key in stage.options if text.startswith(key)), None)
        where = "algorithm.options" if option else where
        raise ConfigError(f"{where}: {text}") from None
    if zero_advantage.all():
        raise ConfigError(
            f"{where}: estimator {stage.estimator!r} with k = {stage.k} gives no gradient for any "
            f"group of {n} rollouts. Take k < {n}."
        )
    if not find(stage.estimator).uses_k and stage.k != 1:
        raise ConfigError(
            f"{where}: estimator {stage.estimator!r} has no k; set it to 1, got {stage.k}."
        )
    return stage
