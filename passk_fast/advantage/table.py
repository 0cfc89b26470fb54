"""The public face of the estimators: tables of binary rewards, advantages of any rewards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64

from passk_fast.advantage.registry import check, find
from passk_fast.advantage.subsets import Floats

Rewards = Sequence[Sequence[float]] | np.ndarray
"""[P, N], as a caller may hold them."""
_LARGEST = 1e300


@lru_cache(maxsize=256, typed=True)
def _table(estimator: str, n: int, k: int, options: tuple[tuple[str, float], ...]) -> Floats:
    found = check(estimator, n, k, dict(options))
    if found.table is None:
        raise ValueError(
            f"estimator {estimator!r} is sampled: its advantages depend on which responses share "
            "a group, so it has no table. Call `advantages`."
        )
    out = found.table(n, int(k), **dict(options))
    out += 0.0  # no negative zeros
    out.setflags(write=False)
    return out


def table(estimator: str, n: int, k: int, **options: float) -> Float64[Floats, "{n+1} 2"]:
    """The estimator's table, float64 [n + 1, 2]: row c correct of n, column 0 wrong, 1 correct.

    A response that cannot exist (a correct one at c = 0, a wrong one at c = n) has 0. Read-only.
    Relative error below 1e-12 to n = 4096, but for values under 2.2e-308, which are held there.
    Estimators without a k (`grpo`, `rloo`, ...) give the same for every k between 1 and n.

    Raises:
        ValueError: unknown estimator or option, n < 2, k outside what the estimator takes, an
            option out of range, or a sampled estimator.
    """
    return _table(estimator, n, k, tuple(sorted(options.items())))


def _checked(rewards_PN: Rewards) -> Float64[Floats, "P N"]:
    """Rewards as finite float64 [P, N]; tensors of any kind and device are taken."""
    if hasattr(rewards_PN, "detach"):
        rewards_PN = rewards_PN.detach().double().cpu().numpy()
    if not isinstance(rewards_PN, np.ndarray):
        sizes = [len(row) if hasattr(row, "__len__") else -1 for row in rewards_PN]
        other = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
        if other is not None:
            raise ValueError(
                f"rewards must be [P, N] with groups of one size: group 0 has {sizes[0]} "
                f"responses, group {other} has {sizes[other]}."
            )
    given = np.asarray(rewards_PN)
    if given.dtype.kind not in "biuf":
        raise ValueError(f"rewards must be real numbers, got {given.dtype}.")
    rewards = given.astype(np.float64)
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [P, N], got shape {rewards.shape}.")
    finite = np.isfinite(rewards)
    if not finite.all():
        p, i = np.argwhere(~finite)[0]
        raise ValueError(
            f"rewards must be finite, got {rewards[p, i]} for prompt {p}, response {i}."
        )
    if rewards.size and np.abs(rewards).max() > _LARGEST:
        p, i = np.unravel_index(np.abs(rewards).argmax(), rewards.shape)
        raise ValueError(
            f"rewards must be within +-{_LARGEST:g}, got {rewards[p, i]:g} for prompt {p}, "
            f"response {i}: sums of larger ones leave float64's range."
        )
    return rewards


def advantages(
    estimator: str,
    rewards_PN: Rewards,
    k: int,
    **options: float,
) -> Float64[Floats, "P N"]:
    """Advantages, float64 [P, N], of rewards [P, N]; binary (0 or 1) ones look up the table.

    Real rewards are taken by every estimator but those whose formula counts correct responses.
    `passk_bootstrap` also takes `seed`.

    Raises:
        ValueError: as `table`; rewards that are not [P, N], no real numbers, not finite or beyond
            1e300; rewards other than 0 and 1 for an estimator of binary rewards.
    """
    rewards = _checked(rewards_PN)
    found = check(estimator, rewards.shape[1], k, options)
    is_binary = (rewards == 0.0) | (rewards == 1.0)
    if found.table is not None and is_binary.all():
        correct = rewards.astype(np.int64)
        lookup = table(estimator, rewards.shape[1], k, **options)
        found_PN: Floats = lookup[correct.sum(axis=1)[:, None], correct]
        return found_PN
    if found.real is None:
        bad = rewards[~is_binary][0]
        raise ValueError(f"estimator {estimator!r} needs rewards of 0 or 1, got {bad}.")
    return found.real(rewards, int(k), **options)


def zero_advantage_rows(
    estimator_table: Float64[Floats, "states 2"],
) -> Bool[npt.NDArray[np.bool_], " states"]:
    """bool [n + 1]: counts c at which no response has a gradient."""
    no_gradient: npt.NDArray[np.bool_] = (estimator_table == 0.0).all(axis=1)
    return no_gradient


def dead_states(
    estimator: str, n: int, k: int, **options: float
) -> Bool[npt.NDArray[np.bool_], " {n+1}"]:
    """bool [n + 1]: counts c at which no response ever has a gradient, sampled estimators included.

    Sampled groups of k are all alike exactly where the analytic estimator has no advantage: c = 0
    or n - c < k.
    """
    if find(estimator).table is None:
        check(estimator, n, k, options)
        return zero_advantage_rows(table("passk", n, k))
    return zero_advantage_rows(table(estimator, n, k, **options))


def eta(estimator_table: Float64[Floats, "states 2"]) -> Float64[Floats, " states"]:
    """Sum of |advantage| over a group, float64 [n + 1] (the paper's eta)."""
    n = len(estimator_table) - 1
    c = np.arange(n + 1)
    size: Floats = np.abs(estimator_table)
    total: Floats = c * size[:, 1] + (n - c) * size[:, 0]
    return total
