"""The data that flows through one step, in the order in which it is made.

Shape suffixes of the whole project: P prompts, N responses per prompt, B sequences, T packed
tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # tasks and verifier processes need neither
    import numpy as np
    import torch
    from jaxtyping import Bool, Float32, Float64, Int16, Int32, Int64, Integer
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One problem. Example: Prompt(id="maze-7-12", text="*******\\n...", answer="RRDD", ...)."""

    id: str
    text: str
    answer: str
    task: str
    columns: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Further columns of the row, by name, for the verifier: values as JSON has them, since a
    prompt travels to verifiers and rollout ranks."""
    messages: tuple[Mapping[str, object], ...] = field(default=(), hash=False)
    """Chat messages (role, content) that the model's chat template renders; `text` is then the last
    one's. Empty for a prompt of plain text."""
    place: str = field(default="", compare=False)
    """Where it was read, such as "train.jsonl:7"."""
    token_ids: tuple[int, ...] = field(default=(), compare=False)
    """As the model reads it; empty until it is encoded."""


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What to sample: N responses to each of P prompts; the same on all ranks.

    Example: SampleRequest(prompts=(maze,), num_rollouts=16, seed=71) asks for 16 answers to one
    maze.
    """

    prompts: SequenceOf[Prompt]
    num_rollouts: int
    seed: int
    first_key: int = 0
    """Prompt p is sampled with key `first_key` + p, so that several requests with one seed
    differ."""
    zero_advantage_rows: Bool[np.ndarray, " counts"] | None = None
    """By the count of correct responses, 0 to N: a group that can only end with zero advantages is
    stopped; the rewards of responses that were left out are NaN."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled response. `len(token_ids) == len(logprobs)`; the end token is part of both."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Log-probability of each token under the sampling policy (temperature applied), in nats."""
    text: str
    """What is judged: all tokens but the end token, special ones and unused ids included
    (`rollout.response_text`)."""
    finished: bool
    """False when the response was cut at the token limit."""
    routed_experts: Integer[np.ndarray, "tokens M K"] | None = field(
        default=None, compare=False, repr=False
    )
    """With algorithm.routing_replay: the K experts per token that sampling chose in each of M
    layers, for all prompt + response - 1 tokens that ran; uint8, or int16 above 256 experts."""


@dataclass(frozen=True, kw_only=True)
class RolloutGroup:
    """The N responses of one prompt with their rewards.

    Example: four responses of which the second is correct have rewards 0, 1, 0, 0.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]
    rewards: Float64[np.ndarray, " N"]
    """Each in [0, 1], or NaN for a response that was not sampled to its end because the group was
    decided; that rollout has no tokens."""

    @property
    def truncated(self) -> tuple[bool, ...]:
        """Which of the N responses were cut at the token limit."""
        return tuple(bool(r.token_ids) and not r.finished for r in self.rollouts)


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Prompt and response tokens of one rollout, ready to train on.

    Example: a prompt of 30 tokens and a response of 10 give 40 `token_ids`; `prompt_length` is 30;
    `rollout_logprobs` has 10 entries; `advantage` is one float for all ten.
    """

    token_ids: tuple[int, ...]
    prompt_length: int
    rollout_logprobs: tuple[float, ...]
    advantage: float
    routed_experts: Integer[np.ndarray, "tokens M K"] | None = field(
        default=None, compare=False, repr=False
    )
    """The rollout's: of every token but the last."""

    @property
    def response_length(self) -> int:
        return len(self.token_ids) - self.prompt_length


@dataclass(frozen=True, kw_only=True)
class ContextPart:
    """What a context-parallel rank's segments see of the whole row of T tokens.

    Rank 0 of 2 with one sequence of 8 tokens holds rows 0, 1 and 6, 7 in two segments: `kv_rows`
    0 1 and 0 1 2 3 4 5 6 7, `cu_seqlens_kv` 0 2 10, `gathered_T` 0 1 4 5 6 7 2 3.
    """

    kv_rows: Int64[Tensor, " Tk"]
    """Row of every key, segment after segment; a segment's own rows come last."""
    cu_seqlens_kv: Int32[Tensor, " borders"]
    """B + 1 borders of the segments in `kv_rows`."""
    max_seqlen_kv: int
    gathered_T: Int64[Tensor, " T"]
    """Where each row stands when the parts of all ranks are concatenated."""


@dataclass(frozen=True, kw_only=True)
class RoutedRows:
    """Which sequences the rows of a micro-batch belong to, for counting the load of experts.

    Two responses of 3 and 2 tokens to a shared prompt of 4: `copies_T` 2 2 2 1 1 1 1 1, `segment_T`
    0 0 0 1 1 1 2 2, `members_S2` (1, 0), (2, 0).
    """

    copies_T: Float32[Tensor, " T"]
    """Sequences in which the token predicts something: 0 for padding and for the last token of a
    sequence, N for a prompt that N responses share."""
    segment_T: Int64[Tensor, " T"]
    """Segment of the whole micro-batch."""
    segments: int
    members_S2: Int64[Tensor, "S 2"]
    """Segment of each sequence, and of its shared prompt or -1."""
    step_sequences: int = 1
    """Sequences of the optimizer step, over all micro-batches and ranks."""

    def rows(self, index: torch.Tensor | slice) -> RoutedRows:
        """Some of the rows; sequences stay all."""
        return replace(self, copies_T=self.copies_T[index], segment_T=self.segment_T[index])

    def part(self, rank: int, size: int) -> RoutedRows:
        """The rows of one of `size` ranks that hold equal, consecutive parts."""
        each = len(self.copies_T) // size
        return self.rows(slice(rank * each, (rank + 1) * each))


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """One packed (THD) micro-batch of T tokens, padded to a multiple that the mesh needs.

    Position t predicts `targets_T[t]` (the next token of the same sequence). `mask_T` is 1 where
    that target is a response token. Padding comes last, in segments of its own, masked out.

    A segment is a whole sequence, or with shared prompts either the prompt of a group without its
    last token, or one response: from the prompt's last token to the last but one of the response.
    """

    tokens_T: Int64[Tensor, " T"]
    positions_T: Int64[Tensor, " T"]
    """Place in the sequence, prompt included."""
    targets_T: Int64[Tensor, " T"]
    mask_T: Bool[Tensor, " T"]
    advantages_T: Float32[Tensor, " T"]
    rollout_logprobs_T: Float32[Tensor, " T"]
    """In nats; 0 outside of the mask."""
    cu_seqlens: Int32[Tensor, " borders"]
    """B + 1 borders of the segments: the first is 0, the last is T."""
    max_seqlen: int
    """Tokens of the longest segment."""
    sequence_index_T: Int64[Tensor, " T"]
    """Which of the step's sequences a token belongs to; -1 for padding and shared prompts."""
    real_tokens: int = 0
    """Tokens that are not padding."""
    prefix_B: tuple[int, ...] | None = None
    """Segment whose keys and values a segment sees before its own, or -1; None: nothing shared."""
    context: ContextPart | None = None
    """Set on a context-parallel rank's part; the tensors above then hold only its rows."""
    routed: RoutedRows | None = None
    """Set by packing; the actor of a dense model drops it."""
    row_index_L: Int64[Tensor, " L"] | None = None
    """The rows whose loss has a gradient, always on the CPU; None: not counted."""
    old_logprobs_T: Float32[Tensor, " T"] | None = None
    """The trainer's own log-probs before the update; None when strictly on-policy."""
    reference_logprobs_T: Float32[Tensor, " T"] | None = None
    """The reference model's log-probs; None without a KL term."""
    experts_TMK: Int16[Tensor, "T M K"] | None = None
    """The K experts that sampling chose in each of M layers, always on the CPU; -1 where it chose
    none (padding, the last token of a sequence); None: they are not replayed."""
