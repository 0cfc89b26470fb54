"""Supervised steps on responses before reinforcement learning; the result is cached.

Responses are rows of a file (warm_start.data) or solutions of generated tasks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from passk_fast import __version__
from passk_fast.actor.actor import Actor
from passk_fast.actor.lr_schedule import learning_rate
from passk_fast.actor.mesh import Mesh
from passk_fast.actor.model import DTYPES
from passk_fast.config import OptimConfig, RunConfig
from passk_fast.data.types import Sequence
from passk_fast.errors import DivergedError
from passk_fast.model.shape import ModelShape
from passk_fast.model.tokenizer import encode_checked
from passk_fast.process_group import broadcast_json
from passk_fast.run.warm_start_rows import encode_demonstrations
from passk_fast.seeding import seed_for
from passk_fast.tasks import fresh_solutions
from passk_fast.tasks.demonstrations import content_digest, load_demonstrations
from passk_fast.weights.hf import write_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG_EVERY = 20


def cache_folder(config: RunConfig) -> Path:
    """Where the warm-started model of this configuration is kept."""
    key = {
        "version": __version__,
        "model": dataclasses.asdict(config.model),
        "warm_start": {**dataclasses.asdict(config.warm_start), "cache_dir": ""},
        "data": dataclasses.asdict(config.data),
        "seed": config.seed,
        "rows": content_digest(config.warm_start.data) if config.warm_start.data else "",
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return Path(config.warm_start.cache_dir) / f"warm-{digest}"


def warm_start(
    config: RunConfig,
    shape: ModelShape,
    mesh: Mesh,
    tokenizer: PreTrainedTokenizerBase,
    folder: str,
    say: Callable[[str], None],
) -> str:
    """Train `folder`'s model on responses and return the folder of the result.

    A cached result is used when there is one. A collective.

    Raises:
        DataError: a row of warm_start.data cannot be written as tokens, or is too long.
        DivergedError: a gradient was not finite.
    """
    target = cache_folder(config)
    if broadcast_json(target.is_dir()):
        say(f"Warm start: using the cached model in {target}")
        return str(target)
    settings = config.warm_start
    optim = OptimConfig(
        lr=settings.lr, lr_warmup_steps=settings.lr_warmup_steps, beta2=0.95, grad_clip=1.0
    )
    actor = Actor(config, shape, mesh, optim=optim)
    actor.load_folder(folder)
    start = time.monotonic()
    for step, sequences in enumerate(_batches(config, tokenizer, shape.max_positions)):
        batches = actor.pack(sequences)
        denominator = float(sum(s.response_length for s in sequences))
        lr = learning_rate(optim, step, settings.steps)
        result = actor.supervised_step(batches, denominator=denominator, lr=lr)
        if not result.applied:
            raise DivergedError(
                f"Warm start: the gradient of step {step + 1} is not finite; lower warm_start.lr."
            )
        if (step + 1) % _LOG_EVERY == 0 or step + 1 == settings.steps:
            loss = result.sums["loss_sum"] / denominator
            spent = time.monotonic() - start
            left = spent / (step + 1) * (settings.steps - step - 1)
            say(f"Warm start: step {step + 1}/{settings.steps}, loss {loss:.3f}, {left:.0f} s left")
    _keep(actor, target, Path(folder), config)
    return str(target)


def _batches(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, max_positions: int
) -> Iterator[list[Sequence]]:
    """As many batches as there are steps: of the file's rows, or of fresh problems."""
    if config.warm_start.data:
        longest = min(config.micro_batch_tokens, max_positions)
        rows = encode_demonstrations(
            load_demonstrations(config.warm_start.data), tokenizer, longest
        )
        order = _epochs(len(rows), config.seed)
        examples = (rows[i] for i in order)
    else:
        end = tokenizer.eos_token_id
        examples = (
            (encode_checked(tokenizer, prompt), [*encode_checked(tokenizer, solution), end])
            for prompt, solution in fresh_solutions(config.data, config.seed)
        )
    for _ in range(config.warm_start.steps):
        yield [
            Sequence(
                token_ids=(*prompt_ids, *response_ids),
                prompt_length=len(prompt_ids),
                rollout_logprobs=(0.0,) * len(response_ids),
                advantage=1.0,
            )
            for prompt_ids, response_ids in islice(examples, config.warm_start.batch_size)
        ]


def _epochs(num_rows: int, seed: int) -> Iterator[int]:
    """Indices of all rows in another order every epoch, without end."""
    for epoch in count():
        order = list(range(num_rows))
        random.Random(seed_for(seed, "warm-start-order", epoch)).shuffle(order)
        yield from order


def _keep(actor: Actor, target: Path, like: Path, config: RunConfig) -> None:
    """Write the model where the next run finds it; the folder appears complete or not at all."""
    tensors = actor.full_tensors(ranks=[0])
    if actor.mesh.rank == 0:
        staging = target.with_name(f".{target.name}-{os.getpid()}")
        write_folder(tensors, staging, like=like, dtype=DTYPES[config.model.dtype])
        if target.exists():  # another run finished the same warm start meanwhile
            shutil.rmtree(staging)
        else:
            staging.rename(target)
    else:
        for _ in tensors:
            pass
    dist.barrier()
