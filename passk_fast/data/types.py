"""The data that flows through one step, in the order in which it is made.

Shape suffixes of the whole project: P prompts, N rollouts a prompt, B sequences, T packed tokens,
V vocabulary, D hidden size. A worked example stands under every class.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One problem. Example: Prompt(id="maze-7-12", text="*******\\n...", answer="RRDD", ...)."""

    id: str
    text: str
    answer: str
    task: str


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What to sample: N responses to each of P prompts; the same on all ranks.

    Example: SampleRequest(prompts=(maze,), num_rollouts=16, seed=71) asks for 16 answers to a maze.
    """

    prompts: SequenceOf[Prompt]
    num_rollouts: int
    seed: int
    first_key: int = 0
    """Prompt p draws its samples with key `first_key` + p, so that several draws with one seed
    differ."""
    zero_advantage_rows: np.ndarray | None = None
    """bool [N + 1] by the count of correct responses: a group that can only end in a dead row is
    stopped; the rewards of what was left out are NaN."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled response. `len(token_ids) == len(logprobs)`; the end token is part of both."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token under the sampling policy (temperature applied), in nats."""
    text: str
    finished: bool
    """False when the response was cut at the token limit."""
    routed_experts: np.ndarray | None = field(default=None, compare=False, repr=False)
    """With algorithm.routing_replay: the experts that sampling chose, uint8 (int16 above 256
    experts) [prompt + response - 1, M, K], M layers, K experts a token."""


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """The N responses of one prompt with their rewards.

    `rewards` is float64 [N], each in [0, 1], or NaN for a response that was not sampled to its end
    because the group was decided; that rollout has no tokens.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    rewards: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Prompt and response tokens of one rollout, ready to train on.

    Example: a prompt of 30 tokens and a response of 10 give 40 `token_ids`; `prompt_length` is 30;
    `old_logprobs` has 10 entries; `advantage` is one float for all ten.
    """

    token_ids: tuple[int, ...]
    prompt_length: int
    rollout_logprobs: tuple[float, ...]
    advantage: float
    routed_experts: np.ndarray | None = field(default=None, compare=False, repr=False)
    """The rollout's: of every token but the last."""

    @property
    def response_length(self) -> int:
        return len(self.token_ids) - self.prompt_length


@dataclass(frozen=True, kw_only=True)
class ContextPart:
    """What a context-parallel rank's segments see of the whole row of T tokens."""

    kv_rows: torch.Tensor
    """int64 [Tk]: row of every key, segment after segment; a segment's own rows come last"""
    cu_seqlens_kv: torch.Tensor
    """int32 [B + 1]: borders of the segments in `kv_rows`"""
    max_seqlen_kv: int
    gathered_T: torch.Tensor
    """int64 [T]: where each row stands when the parts of all ranks are put one after another"""


@dataclass(frozen=True, kw_only=True)
class RoutedRows:
    """Which sequences the rows of a micro-batch belong to, for counting the load of experts.

    Two responses of 3 and 2 tokens to a shared prompt of 4: `copies_T` 2 2 2 1 1 1 1 1, `segment_T`
    0 0 0 1 1 1 2 2, `members_S2` (1, 0), (2, 0).
    """

    copies_T: torch.Tensor
    """float32 [T]: sequences in which the token predicts something: 0 for padding and the last
    token of a sequence, N for a prompt that N share"""
    segment_T: torch.Tensor
    """int64 [T]: segment of the whole micro-batch"""
    segments: int
    members_S2: torch.Tensor
    """int64 [S, 2]: segment of each sequence and of its shared prompt, or -1"""
    step_sequences: int = 1
    """Sequences of the optimizer step, over all micro-batches and ranks."""

    def rows(self, index: torch.Tensor | slice) -> RoutedRows:
        """Some of the rows; sequences stay all."""
        return replace(self, copies_T=self.copies_T[index], segment_T=self.segment_T[index])

    def part(self, rank: int, size: int) -> RoutedRows:
        """The rows of rank `rank` of `size` that hold consecutive equal parts."""
        each = len(self.copies_T) // size
        return self.rows(slice(rank * each, (rank + 1) * each))


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One packed (THD) micro-batch of T tokens, padded to a multiple the mesh asks for.

    Position t predicts `targets_T[t]` (the next token of the same sequence). `mask_T` is 1 where
    that target is a response token. Padding comes last, in segments of its own, masked out.

    A segment is a whole sequence, or with shared prompts either the prompt of a group without its
    last token, or one response: from the prompt's last token to the last but one of the response.
    """

    tokens_T: torch.Tensor
    """int64 [T]"""
    positions_T: torch.Tensor
    """int64 [T]: place in the sequence, prompt included"""
    targets_T: torch.Tensor
    """int64 [T]"""
    mask_T: torch.Tensor
    """bool [T]"""
    advantages_T: torch.Tensor
    """float32 [T]"""
    rollout_logprobs_T: torch.Tensor
    """float32 [T], 0 outside the mask"""
    cu_seqlens: torch.Tensor
    """int32 [B + 1]: borders of the segments, first entry 0, last entry T"""
    max_seqlen: int
    """Tokens of the longest segment."""
    sequence_index_T: torch.Tensor
    """int64 [T]: which of the step's sequences a token belongs to; -1 for padding and shared
    prompts"""
    real_tokens: int = 0
    """Tokens that are not padding."""
    prefix_B: tuple[int, ...] | None = None
    """Segment whose keys and values a segment sees before its own, or -1; None: nothing shared."""
    context: ContextPart | None = None
    """Set on a context-parallel rank's part; the tensors above then hold its rows alone."""
    routed: RoutedRows | None = None
    """Set by packing; the actor of a dense model drops it."""
    live_L: torch.Tensor | None = None
    """int64 [L], on the CPU always: the rows whose loss has a gradient; None: not counted"""
    old_logprobs_T: torch.Tensor | None = None
    """float32 [T]: the trainer's own log-probs before the update; None when strictly on-policy"""
    reference_logprobs_T: torch.Tensor | None = None
    """float32 [T]: the reference model's log-probs; None without a KL term"""
    experts_TMK: torch.Tensor | None = None
    """int16 [T, M, K], on the CPU always: the experts that sampling chose in M layers, -1
    where it chose none (padding, the last token of a sequence); None: they are not replayed"""
