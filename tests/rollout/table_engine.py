"""A sampler without vLLM: a bigram table, sampled in pure Python, behind the `Engine` protocol."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from passk_fast.data.types import Rollout
from passk_fast.rollout.engine_protocol import Engine, OpenWeights, check_prompt
from passk_fast.rollout.groups import GroupTracker, Key
from passk_fast.rollout.response_text import ResponseText
from passk_fast.seeding import seed_for


class TableWeights:
    """The logits of the next token by the token before, float32 [V, V]."""

    def __init__(self, logits_VV: Tensor) -> None:
        self.logits_VV = logits_VV

    @property
    def targets(self) -> Mapping[str, Tensor]:
        return {"logits": self.logits_VV}


class TableEngine(Engine):
    """Samples token after token of one response after another, `width` of them side by side."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        logits_VV: Tensor,
        *,
        max_prompt_tokens: int = 8,
        max_response_tokens: int = 12,
        width: int = 3,
    ) -> None:
        self.data_rank, self.data_size, self.tensor_rank, self.tensor_size = 0, 1, 0, 1
        self.max_prompt_tokens = max_prompt_tokens
        self._limit, self._width = max_response_tokens, width
        self._tokenizer, self._text = tokenizer, ResponseText(tokenizer)
        self._weights = TableWeights(logits_VV.clone())
        self._usable = True

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        tracker: GroupTracker,
        *,
        seed: int,
        prompt_keys: Sequence[int],
        temperature: float | None = None,
        top_p: float = 1.0,
    ) -> None:
        assert self._usable, "weights are open, or have not come since wake_up"
        assert top_p == 1.0, "the table is sampled whole"
        for key, prompt in zip(prompt_keys, prompts, strict=True):
            check_prompt(len(prompt), f"number {key}", self.max_prompt_tokens)
        scaled_VV = self._weights.logits_VV / (temperature or 1.0)
        logprobs_VV = scaled_VV.log_softmax(-1).tolist()
        queue = [(p, n) for n in range(tracker.num_rollouts) for p in range(len(prompts))]
        running: dict[Key, _Response] = {}
        waiting = False
        while queue or running or waiting:
            for key in queue[: self._width - len(running)]:
                rng = random.Random(seed_for(seed, "table", prompt_keys[key[0]], key[1]))
                running[key] = _Response(prompts[key[0]][-1], rng)
            queue = [key for key in queue if key not in running]
            for response in running.values():
                response.append(logprobs_VV)
            ended = [(key, self._rollout(r)) for key, r in running.items() if self._ends(r)]
            for key, _ in ended:
                del running[key]
                tracker.prompt_tokens += len(prompts[key[0]])
            actions = tracker.step(ended)
            for key in actions.abort:
                running.pop(key, None)
            queue = [key for key in [*queue, *actions.add] if key not in actions.abort]
            waiting = actions.waiting

    def _ends(self, response: _Response) -> bool:
        return response.tokens[-1] == self._tokenizer.eos_token_id or (
            len(response.tokens) == self._limit
        )

    def _rollout(self, response: _Response) -> Rollout:
        finished = response.tokens[-1] == self._tokenizer.eos_token_id
        (text,) = self._text([response.tokens], [finished])
        return Rollout(
            token_ids=tuple(response.tokens),
            logprobs=tuple(response.logprobs),
            text=text,
            finished=finished,
        )

    def open_parameters(self) -> TableWeights:
        self._usable = False
        return self._weights

    def close_parameters(self, opened: OpenWeights, *, probe: bool = False) -> None:
        assert opened is self._weights
        assert not probe or not bool(self._weights.logits_VV.isnan().any())
        self._usable = True

    def sleep(self) -> None:
        self._usable = False
        self._weights = TableWeights(torch.empty(0, 0))

    def wake_up(self) -> None:
        size = len(self._tokenizer)
        self._weights = TableWeights(torch.zeros(size, size))

    def close(self) -> None:
        self._usable = False


class _Response:
    """One that is being sampled."""

    def __init__(self, last: int, rng: random.Random) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self._last, self._rng = last, rng

    def append(self, logprobs_VV: list[list[float]]) -> None:
        row = logprobs_VV[self._last]
        (token,) = self._rng.choices(range(len(row)), weights=[math.exp(x) for x in row])
        self.tokens.append(token)
        self.logprobs.append(row[token])
        self._last = token
