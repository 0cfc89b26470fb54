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
    """What each computes, for which requests"""
    hits: list[int] = field(default_factory=list)
    """prefix-cache hits, a request, as they end"""
    preempted: int = 0
    short: int = 0
    """tokens that took the short way"""
    result: Any = None

    @property
    def computed(self) -> int:
        """Tokens that went through the model."""
        return sum(step[3] for step in self.steps)


def watched(
    name: str, *args: Any, short_way: bool = True, tails: bool = False, **options: Any
) -> Scheduling:
    """A function of `workers` from an empty prefix cache; without `short_way` vLLM's own way.

    `tails`: responses copy the begun block of their prompt, as they do outside of tests.
    """
    engine = workers._RUNNING["engine"]
    scheduler = engine.llm.llm_engine.engine_core.engine_core.scheduler
    seen, names = Scheduling(), dict[str, int]()

    def schedule(inner: Any, *inner_args: Any) -> Any:
        scheduled = inner(*inner_args)
        seen.steps.append(_plain(scheduled, names))
        return scheduled

    def add(inner: Any, scheduled: Any, short: list[Any]) -> None:
        seen.short += len(short)
        inner(scheduled, short)

    def preempt(inner: Any, *inner_args: Any, **rest: Any) -> None:
        seen.preempted += 1
        inner(*inner_args, **rest)

    def rollouts(inner: Any, outputs: list[Any], *rest: Any) -> Any:
        seen.hits += [output.num_cached_tokens for output in outputs]
        return inner(outputs, *rest)

    engine.llm.reset_prefix_cache()
    assert scheduler._has_short_way
    scheduler._has_short_way = short_way
    find = scheduler._tail
    scheduler._tail = find if tails else lambda request: None
    try:
        with (
            _replaced(scheduler, "schedule", schedule),
            _replaced(scheduler, "_add", add),
            _replaced(scheduler, "_preempt_request", preempt),
            _replaced(engine, "_rollouts", rollouts),
        ):
            seen.result = getattr(workers, name)(*args, **options)
    finally:
        scheduler._has_short_way = True
        del scheduler._tail
    left = [*scheduler._decoding, *scheduler._prompts, *scheduler._by_prompt]
    assert not left, "all have ended"
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
