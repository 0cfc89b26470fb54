"""The trainer's side of the disaggregated layout: `Engines` that live on other ranks.

Trainer rank 0 sends requests and receives replies over the bridge; the replies then go to all
trainer ranks over a group of their own, so that sampling may run in another thread during training.
Weights go straight from every trainer rank to every rollout rank that wants a part of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from passk_fast.actor.actor import Actor
from passk_fast.config import RunConfig
from passk_fast.data.types import RolloutGroup, SampleRequest
from passk_fast.disaggregated.bridge import Bridge
from passk_fast.disaggregated.messages import (
    End,
    Prepare,
    Reply,
    Request,
    Sample,
    Start,
    TakeWeights,
    decode_reply,
    encode_request,
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RemoteEngines:
    """One trainer rank's view of the engines."""

    def __init__(
        self,
        config: RunConfig,
        bridge: Bridge,
        model_dir: str,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        """Tell the rollout ranks to start on `model_dir`; they do so while the trainer goes on."""
        self._config, self._bridge, self._tokenizer = config, bridge, tokenizer
        self.data_size = bridge.num_rollouts // config.rollout.tensor
        self.stop_wanted = False
        self._sync: WeightSync | None = None
        self._group = None
        if bridge.num_trainers > 1:
            self._group = dist.new_group(
                backend="gloo", timeout=timedelta(seconds=config.timeout_s)
            )
        self._send([Start(model_dir=model_dir)] * bridge.num_rollouts)

    def sample(self, request: SampleRequest) -> tuple[list[RolloutGroup], CollectStats]:
        """The groups, on every trainer rank. Seconds are the first engine's, but `engine_s`."""
        tensor = self._config.rollout.tensor
        limit = self._config.rollout.max_prompt_tokens
        prompt_ids = encode_prompts(request.prompts, self._tokenizer, limit)
        ranks = range(self._bridge.num_rollouts)
        self._send([self._part_of(request, prompt_ids, rank // tensor) for rank in ranks])
        heads = self._receive()[::tensor]
        parts = [decode_samples(np.frombuffer(head.samples, np.uint8)) for head in heads]
        groups, stats = make_groups(request, prompt_ids, parts)
        slowest = max(head.engine_s for head in heads)
        return groups, stats + CollectStats(
            verify_s=heads[0].verify_s,
            idle_s=slowest - heads[0].engine_s,
            engine_s=slowest,
            prompt_tokens=heads[0].prompt_tokens,
            cached_tokens=heads[0].cached_tokens,
        )

    def _part_of(
        self, request: SampleRequest, prompt_ids: Sequence[tuple[int, ...]], engine: int
    ) -> Sample:
        """What one of the engines samples."""
        part = split_evenly(range(len(request.prompts)), self.data_size, engine)
        rows = request.zero_advantage_rows
        return Sample(
            prompts=[request.prompts[i] for i in part],
            prompt_ids=[prompt_ids[i] for i in part],
            keys=[request.first_key + i for i in part],
            num_rollouts=request.num_rollouts,
            seed=request.seed,
            zero_advantage_rows=None if rows is None else rows.tolist(),
        )

    def take_weights(self, actor: Actor, *, verify: bool) -> None:
        """Every shard from the trainer ranks to the rollout ranks; returns when all can sample."""
        if self._sync is None:
            self._receive()  # the engines have started
            self._sync = self._prepare(actor)
        self._send([TakeWeights(verify=verify)] * self._bridge.num_rollouts)
        weights = actor.parameters()
        self._sync.run(weights, {})
        if verify:
            with suppress(DivergedError):  # every rank of the bridge raises it: the replies say so
                self._sync.verify(weights, {})
        self._receive()

    def _prepare(self, actor: Actor) -> WeightSync:
        bridge = self._bridge
        spec = Spec.TE if actor.transformer_engine else Spec.LOCAL
        self._send([Prepare(spec=spec.value)] * bridge.num_rollouts)
        self._receive()
        return WeightSync.for_run(
            self._config,
            actor.layout,
            bridge.rollout_mesh(self._config.rollout.tensor),
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
            self._send([End(code=int(code))] * self._bridge.num_rollouts)

    # ---- requests and replies ------------------------------------------------------------------

    def _send(self, requests: Sequence[Request]) -> None:
        """One request to each rollout rank; each but End gets a reply."""
        if self._bridge.rank == 0:
            ranks = self._bridge.rollout_ranks
            encoded = map(encode_request, requests)
            self._bridge.send(dict(zip(ranks, encoded, strict=True)))

    def _receive(self) -> list[Reply]:
        """All rollout ranks' replies, on all trainer ranks; raises what a rollout rank met."""
        data: list[bytes] = []
        if self._bridge.rank == 0:
            data = [self._bridge.receive(rank) for rank in self._bridge.rollout_ranks]
        if self._group is not None:
            data = _share(data, self._bridge.num_rollouts, self._group)
        replies = [decode_reply(one) for one in data]
        for reply in replies:
            reply.check()
        self.stop_wanted |= any(reply.stop for reply in replies)
        return replies


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
