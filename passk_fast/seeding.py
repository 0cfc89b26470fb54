"""Seeds by purpose: every random draw is a function of (run seed, purpose, counters).

So nothing but the step needs to be saved to continue a run exactly.
"""

from __future__ import annotations

import hashlib


def seed_for(seed: int, purpose: str, *counters: int) -> int:
    """A 31-bit seed. Example: seed_for(0, "sampling", 12) for the rollouts of step 12."""
    text = ":".join((str(seed), purpose, *map(str, counters)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
