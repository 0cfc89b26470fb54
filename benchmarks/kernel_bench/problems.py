"""Problems of the kernel benchmark: language-model-like rows, in three regimes.

dense       every row has a gradient, equal sequences
rl          15 % of each sequence masked, groups of 32 with accuracies Beta(.6, 1.4) under Pass@8,
            log-normal lengths, old_logp = logp + N(0, .05)
on-policy   as rl, without old log-probs: every ratio is 1
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from passk_fast.advantage.table import table
from passk_fast.kernels import LossRows, PolicyLoss, informative_rows

REGIMES = ("dense", "rl", "on-policy")
ROLLOUTS, PASS_K = 32, 8
LOGIT_SCALE = 4.0
"""Standard deviation of the logits: an entropy of 3 to 4 nats at V = 151,936."""
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
LOSS = PolicyLoss(clip_low=CLIP_LOW, clip_high=CLIP_HIGH)
CHUNK = 1024


@dataclass(frozen=True)
class Shape:
    """T rows, hidden size H, vocabulary V."""

    rows: int
    hidden: int
    vocab: int


@dataclass(frozen=True)
class Problem:
    """Inputs of one policy loss, on the device; `index` (rows with a gradient) on the host too."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    old_logp: Tensor | None
    advantages: Tensor
    mask: Tensor
    denominator: float
    index: Tensor
    index_device: Tensor
    sequence_length: int
    """Rows of a sequence where all are equally long (dense), else 0."""

    @property
    def informative_fraction(self) -> float:
        return len(self.index) / len(self.targets)

    def rows(self) -> LossRows:
        """The rows of the loss, as the kernels take them."""
        return LossRows(
            targets=self.targets,
            advantages=self.advantages,
            mask=self.mask,
            denominator=self.denominator,
            old_logp=self.old_logp,
            row_index=self.index,
        )


def make_problem(
    shape: Shape, regime: str, device: str, dtype: torch.dtype, seed: int = 0
) -> Problem:
    """Random hidden states and weight; targets drawn from the softmax of their product."""
    torch.manual_seed(seed)
    hidden = torch.randn(shape.rows, shape.hidden, device=device).to(dtype)
    scale = LOGIT_SCALE / shape.hidden**0.5
    weight = torch.empty(shape.vocab, shape.hidden, device=device, dtype=dtype)
    for at in range(0, shape.vocab, 16 * CHUNK):  # no float32 copy of the whole weight
        part = weight[at : at + 16 * CHUNK]
        part.copy_(scale * torch.randn(part.shape, device=device))
    targets = torch.empty(shape.rows, dtype=torch.int64, device=device)
    logp = torch.empty(shape.rows, device=device)
    for at in range(0, shape.rows, CHUNK):
        rows = slice(at, at + CHUNK)
        log_prob = (hidden[rows].float() @ weight.float().T).log_softmax(dim=1)
        targets[rows] = torch.multinomial(log_prob.exp(), 1)[:, 0]
        logp[rows] = log_prob.gather(1, targets[rows, None])[:, 0]
    advantages, mask, length = _rows(shape.rows, regime)
    index = informative_rows(mask, advantages)
    old = None if regime == "on-policy" else logp + 0.05 * torch.randn(shape.rows, device=device)
    return Problem(
        hidden=hidden,
        weight=weight,
        targets=targets,
        old_logp=old,
        advantages=advantages.to(device),
        mask=mask.to(device),
        denominator=float(mask.sum()),
        index=index,
        index_device=index.to(device),
        sequence_length=length,
    )


def _rows(rows: int, regime: str) -> tuple[Tensor, Tensor, int]:
    """(advantages float32 [T], mask [T], sequence length or 0), on the host."""
    if regime == "dense":
        length = min(1024, rows)
        per_sequence = torch.randn(-(-rows // length)).repeat_interleave(length)[:rows]
        return per_sequence, torch.ones(rows, dtype=torch.bool), length
    lookup = torch.from_numpy(table("passk", ROLLOUTS, PASS_K).copy()).float()
    beta = torch.distributions.Beta(torch.tensor(0.6), torch.tensor(1.4))
    lengths = torch.distributions.LogNormal(torch.tensor(max(16.0, rows / 256)).log(), 0.6)
    advantages = torch.zeros(rows)
    mask = torch.ones(rows, dtype=torch.bool)
    at = 0
    while at < rows:
        correct = torch.rand(ROLLOUTS) < beta.sample()
        for answer in correct.tolist():
            end = min(rows, at + max(2, int(lengths.sample())))
            advantages[at:end] = lookup[int(correct.sum()), int(answer)]
            mask[at : at + int(0.15 * (end - at) + 0.5)] = False
            at = end
    return advantages, mask, 0


def policy_from_logp(logp: Tensor, problem: Problem, rows: Tensor | None = None) -> Tensor:
    """The clipped policy loss in float32 torch, for peers that give log-probs of `rows`."""

    def take(values: Tensor) -> Tensor:
        return values if rows is None else values[rows]

    logp = logp.float()
    old = logp.detach() if problem.old_logp is None else take(problem.old_logp)
    advantages = take(problem.advantages)
    ratio = (logp - old).exp()
    clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
    term = -torch.minimum(ratio * advantages, clipped * advantages)
    return term.masked_fill(~take(problem.mask), 0.0).sum() / problem.denominator


def rows_only(shape: Shape, regime: str, device: str, seed: int = 0) -> Problem:
    """A problem whose logits are given (`logits_of`): no hidden states, random targets.

    old_logp is near ln(1 / V) + N(0, .05) shifted by the logits' spread, so that ratios are near 1.
    """
    torch.manual_seed(seed)
    targets = torch.randint(0, shape.vocab, (shape.rows,), device=device)
    advantages, mask, length = _rows(shape.rows, regime)
    index = informative_rows(mask, advantages)
    expected = TARGET_LOGIT - _log_sum(shape.vocab)
    old = expected + 0.05 * torch.randn(shape.rows, device=device)
    empty = torch.empty(0, device=device)
    return Problem(
        hidden=empty,
        weight=empty,
        targets=targets,
        old_logp=None if regime == "on-policy" else old,
        advantages=advantages.to(device),
        mask=mask.to(device),
        denominator=float(mask.sum()),
        index=index,
        index_device=index.to(device),
        sequence_length=length,
    )


TARGET_LOGIT = 8.0
"""The target's logit in `logits_of`."""


def _log_sum(vocab: int) -> float:
    """ln of the sum of exp over `vocab` logits N(0, 2^2) and one TARGET_LOGIT, in expectation."""
    return math.log(vocab * math.exp(2.0) + math.exp(TARGET_LOGIT))


def logits_of(problem: Problem, shape: Shape, dtype: torch.dtype) -> Tensor:
    """Logits N(0, 2^2) with TARGET_LOGIT at the target, made by chunks of rows."""
    device = problem.targets.device
    logits = torch.empty(shape.rows, shape.vocab, device=device, dtype=dtype)
    for at in range(0, shape.rows, CHUNK):
        part = logits[at : at + CHUNK]
        part.copy_(2.0 * torch.randn(part.shape, device=device))
    return logits.scatter_(1, problem.targets[:, None], TARGET_LOGIT)
