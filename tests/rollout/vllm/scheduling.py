"""What vLLM's scheduler did while an engine of `workers` sampled; a pool's ranks run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.rollout.vllm import workers


@dataclass(kw_only=True)
class Scheduling:
    """Of one call."""

    steps: list[tuple[Any, ...]] = field(default_factory=list)
    """What each step computes, for which requests."""
    fast: int = 0
    """Tokens that took the fast path."""
    result: Any = None

    @property
    def hits(self) -> list[int]:
        """Prompt tokens found in the cache, per request, as they start."""
        return [computed for step in self.steps for _, computed, _ in step[1]]

    @property
    def preempted(self) -> int:
        return sum(len(step[6]) for step in self.steps)

    @property
    def computed(self) -> int:
        """Tokens that went through the model."""
        return sum(step[3] for step in self.steps)


def watched(
    name: str, *args: Any, fast_path: bool = True, share: bool = False, **options: Any
) -> Scheduling:
    """A function of `workers` from an empty prefix cache; without `fast_path` vLLM's own way.

    `share`: responses copy the partially filled block of their prompt, as they do outside of tests.
    """
    engine = workers.engine()
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    seen, names = Scheduling(), dict[str, int]()

    def schedule(inner: Any, *inner_args: Any) -> Any:
        scheduled = inner(*inner_args)
        seen.steps.append(_plain(scheduled, names))
        return scheduled

    engine.llm.reset_prefix_cache()
    assert scheduler.fast_path
    assert scheduler.share_partial_blocks
    before = scheduler.fast_path_tokens
    scheduler.fast_path, scheduler.share_partial_blocks = fast_path, share
    try:
        with _replaced(scheduler, "schedule", schedule):
            seen.result = getattr(workers, name)(*args, **options)
    finally:
        scheduler.fast_path = scheduler.share_partial_blocks = True
    seen.fast = scheduler.fast_path_tokens - before
    assert scheduler.num_remembered == 0, "all have ended"
    return seen


@contextmanager
def _replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    inner = getattr(owner, name)
    setattr(owner, name, lambda *args, **options: by(inner, *args, **options))
    try:
        yield
    finally:
        delattr(owner, name)


def _plain(scheduled: Any, names: dict[str, int]) -> tuple[Any, ...]:
    """What a step computes; requests are numbered as they begin, blocks only counted."""
    data, new = scheduled.scheduled_cached_reqs, scheduled.scheduled_new_reqs
    for request in new:
        names.setdefault(request.req_id, len(names))
    cached = zip(
        map(names.get, data.req_ids),
        data.num_computed_tokens,
        data.num_output_tokens,
        [None if ids is None else [len(part) for part in ids] for ids in data.new_block_ids],
        strict=True,
    )
    return (
        sorted(cached),
        sorted((names[r.req_id], r.num_computed_tokens, len(r.block_ids[0])) for r in new),
        sorted((names[key], count) for key, count in scheduled.num_scheduled_tokens.items()),
        scheduled.total_num_scheduled_tokens,
        sorted(names[key] for key in data.resumed_req_ids),
        sorted((names[key], len(ids)) for key, ids in data.all_token_ids.items()),
        sorted(names[key] for key in scheduled.preempted_req_ids or ()),
        sorted(names[key] for key in scheduled.finished_req_ids if key in names),
    )
