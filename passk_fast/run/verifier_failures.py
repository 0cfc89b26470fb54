"""Verifiers that fail: each kind of exception is shown once, and too many of them end a run."""

from __future__ import annotations

import sys

from passk_fast.errors import DataError
from passk_fast.rollout.collect import CollectStats


class VerifierFailures:
    """Counts what went wrong while verifying. All ranks see the same numbers."""

    def __init__(self, limit: float, *, prints: bool) -> None:
        """`limit`: rollout.max_verifier_failures; `prints`: whether this rank tells the user."""
        self._limit, self._prints = limit, prints
        self._seen: set[str] = set()

    def check(self, stats: CollectStats, num_responses: int) -> list[str]:
        """The first failure of each kind that no earlier call has returned, in words.

        Raises:
            DataError: failures are more than `limit` of `num_responses` responses.
        """
        new = [words for kind, words in stats.failure_kinds.items() if kind not in self._seen]
        self._seen.update(stats.failure_kinds)
        if self._prints:
            for words in new:
                print(f"verifier failed on {words}", file=sys.stderr, flush=True)
        share = min(1.0, stats.verifier_failures / max(1, num_responses))
        if share > self._limit:
            first = "; ".join(stats.failure_kinds.values())
            raise DataError(
                f"The verifier failed on {share:.0%} of the responses of a step, more than "
                f"rollout.max_verifier_failures = {self._limit:g}. First of each kind: {first}. "
                "Mend the verifier (`passk-fast check-reward` tries it), or raise the limit."
            )
        return new
