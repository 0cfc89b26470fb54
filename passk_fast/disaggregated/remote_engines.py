"""The trainer's side: `Engines` that live on other ranks.

Rank 0 gives orders and hears answers over the bridge; the answers then go to all trainer ranks over
a group of their own, so that sampling may run in a thread beside training. Weights go straight from
every trainer rank to every rollout rank that wants a part of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from passk_fast.actor.actor import Actor
from passk_fast.config import RunConfig
from passk_fast.data.types import RolloutGroup, SampleRequest
from passk_fast.disaggregated.bridge import Bridge
from passk_fast.disaggregated.messages import (
    Answer,
    End,
    Order,
    Prepare,
    Sample,
    Start,
    TakeWeights,
    decode_answer,
    encode_order,
)
from passk_fast.errors import DivergedError, ExitCode
from passk_fast.rollout.collect import (
    CollectStats,
    encode_prompts,
    make_groups,
    split_evenly,
)
from passk_fast.rollout.wire import decode_samples
from passk_fast.weights.layout import Spec
from passk_fast.weights.sync import WeightSync


class Remote:
    """One trainer rank's view of the engines."""

    def __init__(self, config: RunConfig, bridge: Bridge, model_dir: str, tokenizer: Any) -> None:
        """Tell the rollout ranks to start on `model_dir`; they do so while the trainer goes on."""
        self.config, self.bridge, self.tokenizer = config, bridge, tokenizer
        self.data_size = bridge.num_rollouts // config.rollout.tensor
        self.stop_wanted = False
        self._sync: WeightSync | None = None
        self._group = None
        if bridge.num_trainers > 1:
            self._group = dist.new_group(
                backend="gloo", timeout=timedelta(seconds=config.timeout_s)
            )
        self._send([Start(model_dir=model_dir)] * bridge.num_rollouts)

    def sample(self, draw: SampleRequest) -> tuple[list[RolloutGroup], CollectStats]:
        """The groups, on every trainer rank. Seconds are the first engine's, but `engine_s`."""
        prompt_ids = encode_prompts(
            draw.prompts, self.tokenizer, self.config.rollout.max_prompt_tokens
        )
        orders: list[Order] = []
        for place in range(self.bridge.num_rollouts):
            engine = place // self.config.rollout.tensor
            part = split_evenly(range(len(draw.prompts)), self.data_size, engine)
            orders.append(
                Sample(
                    prompts=[draw.prompts[i] for i in part],
                    prompt_ids=[prompt_ids[i] for i in part],
                    keys=[draw.first_key + i for i in part],
                    num_rollouts=draw.num_rollouts,
                    seed=draw.seed,
                    zero_advantage_rows=None
                    if draw.zero_advantage_rows is None
                    else draw.zero_advantage_rows.tolist(),
                )
            )
        self._send(orders)
        heads = self._receive()[:: self.config.rollout.tensor]
        parts = [decode_samples(np.frombuffer(head.samples, np.uint8)) for head in heads]
        groups, stats = make_groups(draw, prompt_ids, parts)
        slowest = max(head.engine_s for head in heads)
        return groups, stats + CollectStats(
            verify_s=heads[0].verify_s,
            idle_s=slowest - heads[0].engine_s,
            engine_s=slowest,
            prompt_tokens=heads[0].prompt_tokens,
            cached_tokens=heads[0].cached_tokens,
        )

    def take_weights(self, actor: Actor, *, verify: bool) -> None:
        """Every shard from the trainer ranks to the rollout ranks; returns when all can sample."""
        if self._sync is None:
            self._receive()  # the engines have started
            self._sync = self._prepare(actor)
        self._send([TakeWeights(verify=verify)] * self.bridge.num_rollouts)
        weights = actor.parameters()
        self._sync.run(weights, {})
        if verify:
            with suppress(DivergedError):  # every rank of the bridge raises it: the answers say so
                self._sync.verify(weights, {})
        self._receive()

    def _prepare(self, actor: Actor) -> WeightSync:
        bridge = self.bridge
        spec = Spec.TE if actor.transformer_engine else Spec.LOCAL
        order = Prepare(spec=spec.value)
        self._send([order] * bridge.num_rollouts)
        self._receive()
        return WeightSync.for_run(
            self.config,
            actor.layout,
            bridge.rollout_mesh(self.config.rollout.tensor),
            actor.mesh.torch_device,
            bridge.group,
        )

    def sleep(self) -> None:
        """Nothing is shared."""

    def wake_up(self) -> None:
        """Nothing is shared."""

    def leave(self, code: ExitCode | None) -> None:
        """Let the rollout ranks leave with the same code. After an error they may be in the middle
        of something: they find this side's connections closed, and its exit code in the folder."""
        if code is not None:
            self._send([End(code=int(code))] * self.bridge.num_rollouts)

    # ---- orders and answers --------------------------------------------------------------------

    def _send(self, orders: Sequence[Order]) -> None:
        """One order to each rollout rank; every one but End will be answered."""
        if self.bridge.rank == 0:
            ranks = self.bridge.rollout_ranks
            self.bridge.send(
                {r: encode_order(order) for r, order in zip(ranks, orders, strict=True)}
            )

    def _receive(self) -> list[Answer]:
        """All rollout ranks' answers, on all trainer ranks; raises what a rollout rank met."""
        data: list[bytes] = []
        if self.bridge.rank == 0:
            data = [self.bridge.receive(rank) for rank in self.bridge.rollout_ranks]
        if self._group is not None:
            data = _share(data, self.bridge.num_rollouts, self._group)
        answers = [decode_answer(one) for one in data]
        for answer in answers:
            answer.check()
        self.stop_wanted |= any(answer.stop for answer in answers)
        return answers


def _share(data: list[bytes], count: int, group: dist.ProcessGroup) -> list[bytes]:
    """`count` messages of rank 0, on every rank of the group."""
    sizes = torch.zeros(count, dtype=torch.int64)
    if data:
        sizes = torch.tensor([len(one) for one in data])
    dist.broadcast(sizes, group=group, group_src=0)
    body = torch.empty(int(sizes.sum()), dtype=torch.uint8)
    if data:
        body = torch.from_numpy(np.frombuffer(b"".join(data), np.uint8).copy())
    dist.broadcast(body, group=group, group_src=0)
    parts = torch.split(body, sizes.tolist())
    return [part.numpy().tobytes() for part in parts]
