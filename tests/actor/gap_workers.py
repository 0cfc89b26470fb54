"""What ranks of tests of the log-prob gap run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tests.actor.workers import Share, build, make_sequences


def logprob_gap(
    folder: str,
    parallel: dict[str, Any],
    micro_batch_tokens: int,
    share_prompts: Share,
    old: bool,
) -> dict[str, Any]:
    """What a policy step says of the gap, and every token's gap on the first rank of the last
    stage. `old`: the log-probs before the update are known, and say more than the forward pass."""
    actor = build("qwen3", folder, parallel, micro_batch_tokens, share_prompts)
    batches = actor.pack(make_sequences())
    trainer = actor.logprobs(batches)
    if old:
        trainer = [logp - 0.25 for logp in trainer]
        batches = [
            replace(b, old_logprobs_T=logp) for b, logp in zip(batches, trainer, strict=True)
        ]
    own = [
        (logp - b.rollout_logprobs_T).abs()[b.mask_T]
        for b, logp in zip(batches, trainer, strict=True)
    ]
    gap = actor.policy_step(batches, denominator=100.0, lr=0.0).gap
    return {"gap": gap, "tokens": torch.cat(own).double().numpy()}
