"""The estimators by name. A new one takes a function and a line in `_ESTIMATORS`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from passk_fast.advantage import binary, pkpo, real, sampled
from passk_fast.advantage.gaps import GapWeights, advantages_of, table_of
from passk_fast.advantage.subsets import Floats


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """How one estimator is computed: by gap weights alone, or by a table and a function of real
    rewards (either may be missing). `describe` is the function that holds the documentation."""

    describe: Callable[..., Floats | GapWeights]
    table: Callable[..., Floats] | None = None
    """(n, k, **options) -> float64 [n + 1, 2]; None: the estimator is sampled."""
    real: Callable[..., Floats] | None = None
    """(rewards [P, N], k, **options) -> float64 [P, N]; None: binary rewards only."""
    uses_k: bool = True
    """False: the estimator has no k; any k between 1 and n gives the same."""

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options that a caller may set."""
        given = inspect.signature(self.describe).parameters.values()
        return tuple(p.name for p in given if p.kind is p.KEYWORD_ONLY)


def _by_gaps(make: Callable[..., GapWeights], *, uses_k: bool = True) -> Estimator:
    def gap_table(n: int, k: int, **options: float) -> Floats:
        return table_of(make(n, k, **options))

    def gap_advantages(rewards_PN: Floats, k: int, **options: float) -> Floats:
        return advantages_of(make(rewards_PN.shape[1], k, **options), rewards_PN)

    return Estimator(describe=make, table=gap_table, real=gap_advantages, uses_k=uses_k)


def _by_table(
    make: Callable[..., Floats],
    real_rewards: Callable[..., Floats] | None = None,
    *,
    uses_k: bool = True,
) -> Estimator:
    return Estimator(describe=make, table=make, real=real_rewards, uses_k=uses_k)


def _by_sampling(draw: Callable[..., Floats]) -> Estimator:
    return Estimator(describe=draw, real=draw)


_ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "grpo": _by_table(binary.grpo, real.grpo, uses_k=False),
        "dr_grpo": _by_gaps(real.dr_grpo_weights, uses_k=False),
        "rloo": _by_gaps(real.rloo_weights, uses_k=False),
        "passk_full": _by_sampling(sampled.full),
        "passk_bootstrap": _by_sampling(sampled.bootstrap),
        "passk": _by_table(binary.passk, real.passk),
        "passk_exceeding": _by_table(binary.exceeding),
        "passk_combination": _by_table(binary.combination),
        "pass1_no_easy": _by_table(binary.pass1_no_easy, uses_k=False),
        "passk_piecewise": _by_table(binary.piecewise),
        "pkpo_s": _by_gaps(pkpo.s),
        "pkpo_sloo": _by_gaps(pkpo.sloo),
        "pkpo_sloo_minus_one": _by_gaps(pkpo.sloo_minus_one),
        "pkpo_centred": _by_gaps(pkpo.centred),
        "maxrl": _by_table(binary.maxrl, uses_k=False),
        "tailrl": _by_gaps(real.tailrl_weights, uses_k=False),
        "rs_grpo": _by_table(binary.rs_grpo, real.rs_grpo, uses_k=False),
        "f_grpo": _by_table(binary.f_grpo, uses_k=False),
        "best_minus_second": _by_gaps(real.best_minus_second_weights, uses_k=False),
    }
)


def estimators() -> tuple[str, ...]:
    """Names of all estimators."""
    return tuple(_ESTIMATORS)


def find(name: str) -> Estimator:
    """The estimator of a name. ValueError with the nearest known name."""
    if name not in _ESTIMATORS:
        near = difflib.get_close_matches(name, _ESTIMATORS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"estimator {name!r} is unknown; known: {', '.join(_ESTIMATORS)}.{hint}")
    return _ESTIMATORS[name]


def check(name: str, n: int, k: int, options: Mapping[str, float]) -> Estimator:
    """The estimator, after checking what holds for all of them.

    Raises:
        ValueError: unknown estimator or option, n below 2, or k outside 1..n.
    """
    found = find(name)
    for letter, value in (("n", n), ("k", k)):
        if not _is_whole(value):
            raise ValueError(f"{letter} must be a whole number, got {value!r}.")
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}.")
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and n = {n}, got {k}.")
    for option in options:
        if option not in found.options:
            known = ", ".join(found.options) or "none"
            raise ValueError(
                f"option {option!r} is not one of estimator {name!r}; its options: {known}."
            )
    return found


def _is_whole(value: object) -> bool:
    """A Python or NumPy integer, not a bool and not 8.0."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
