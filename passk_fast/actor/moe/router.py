"""The router of a mixture of experts: Megatron's top-k in float32, observed and balanced.

Load and balancing loss are sums over whole sequences, so they do not depend on how those are packed
or spread over ranks, which Megatron's own balancing (a mean over each micro-batch) does. A router
is reached as `layer.mlp.router`; `experts.moe_layers` lists them.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int64
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from passk_fast.actor.attention import PackedParams
from passk_fast.actor.mesh import Mesh
from passk_fast.data.types import RoutedRows


class Router(TopKRouter):
    """Top-k of a softmax over experts; passes with gradients are observed."""

    def __init__(
        self, config: TransformerConfig, pg_collection: object = None, **kwargs: object
    ) -> None:
        super().__init__(config=config, pg_collection=pg_collection, **kwargs)
        self.packed: PackedParams | None = None
        """The micro-batch that the layer is computing."""
        self.load_E = torch.zeros(self.num_experts, device=self.weight.device)
        """Tokens that went to each expert from this rank since `reset`, by sequence: a prompt that
        N sequences share counts N times, padding and a sequence's last token never."""
        self.balance_loss = torch.zeros((), device=self.weight.device)
        """This rank's share of the step's balancing loss, without its coefficient."""
        self.balance_coef = 0.0
        self.balance_bias: Tensor | None = None

    def use_bias(self) -> None:
        """Choose experts by score + bias [E] (arXiv 2408.15664), which checkpoints keep."""
        del self.balance_bias
        self.register_buffer("balance_bias", torch.zeros(self.num_experts))

    def reset(self) -> None:
        """Before an optimizer step's first forward pass."""
        self.load_E = torch.zeros(self.num_experts, device=self.weight.device)
        self.balance_loss = torch.zeros((), device=self.weight.device)

    def routing(
        self, logits: Float[Tensor, "t 1 E"], padding_mask: Tensor | None = None
    ) -> tuple[Float[Tensor, "t E"], Bool[Tensor, "t E"]]:
        """Weights and choices of this rank's t = T / tp tokens; 0 where an expert is not chosen."""
        logits = logits.view(-1, 1, self.num_experts)
        if self.balance_bias is not None and self.router_replay is None:
            probs, chosen = self._biased(logits[:, 0])
        else:
            probs, chosen = super().routing(logits)
        routed = self.packed.routed if self.packed else None
        if routed is None or not torch.is_grad_enabled():
            return probs, chosen
        rows = routed.part(self.tp_group.rank(), self.tp_group.size())
        with torch.no_grad():
            self.load_E += (chosen * rows.copies_T[:, None]).sum(dim=0)
        if self.balance_coef > 0:
            loss = balance_loss(logits[:, 0], chosen, rows, self.topk, self.tp_cp_group)
            self.balance_loss += loss.detach()
            # Adds the loss's gradient in the backward pass; Megatron scales it by one here, since
            # our losses are sums (calculate_per_token_loss).
            probs = MoEAuxLossAutoScaler.apply(probs, self.balance_coef * loss)
        return probs, chosen

    def biased_choice(self, scores_tE: Float[Tensor, "t E"]) -> Int64[Tensor, "t K"]:
        """The K experts of each token by shares of the softmax and the bias."""
        assert self.balance_bias is not None
        return (scores_tE + self.balance_bias).topk(self.topk, dim=-1).indices

    def _biased(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The bias decides who is chosen, not with which weight."""
        scores = logits.softmax(dim=-1, dtype=torch.float32)
        index = self.biased_choice(scores)
        if self.config.moe_router_pre_softmax:
            weights = scores.gather(1, index)
        else:
            weights = logits.gather(1, index).softmax(dim=-1, dtype=torch.float32)
        probs = torch.zeros_like(logits).scatter(1, index, weights.type_as(logits))
        chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, index, True)
        return probs, chosen


def balance_loss(
    logits: Float[Tensor, "t E"],
    chosen: Bool[Tensor, "t E"],
    rows: RoutedRows,
    topk: int,
    group: dist.ProcessGroup,
) -> Float[Tensor, ""]:
    """This rank's share of the mean over the step's sequences of (DeepSeek-V3, Eq. 17-20)

        sum_e f_e P_e,  f_e = E / (k T) sum_t [e chosen for t],  P_e = 1 / T sum_t softmax(t)_e

    over the T tokens of a sequence that predict something; 1 where the load is even. `logits` and
    `chosen` [t, E] are this rank's rows; shares add up over `group` (tensor and context ranks,
    which hold parts of one micro-batch), data-parallel ranks and micro-batches.
    """
    experts = logits.shape[1]
    counted = (rows.copies_T > 0).float()[:, None]
    empty = logits.new_zeros(rows.segments + 1, experts, dtype=torch.float32)  # the last stays so
    scores = logits.softmax(dim=-1, dtype=torch.float32) * counted
    mass = empty.index_add(0, rows.segment_T, scores)
    with torch.no_grad():
        counts = empty.index_add(0, rows.segment_T, chosen * counted)
        if group.size() > 1:
            dist.all_reduce(counts, group=group)
        own, prompt = rows.members_S2.unbind(1)
        counts = counts[own] + counts[prompt]
        tokens = (counts.sum(dim=1, keepdim=True) / topk).clamp(min=1.0)
        weight = counts * experts / (topk * tokens**2) / rows.step_sequences
    return (weight * (mass[own] + mass[prompt])).sum()


class RouterWatch:
    """All routers of this rank: what they saw in a step, and the bias that follows from it."""

    def __init__(self, routers: list[Router], bias_rate: float) -> None:
        self.routers = routers
        self._rate = bias_rate

    def reset(self) -> None:
        """Before an optimizer step."""
        for router in self.routers:
            router.reset()

    @torch.no_grad()
    def finish(self, mesh: Mesh, *, applied: bool) -> dict[str, float]:
        """Sums for the step's record, on one rank of each stage; a collective. Moves the bias if
        the step was applied: up by the rate where an expert had less than its share, else down."""
        if not self.routers:
            return {}
        load_LE = torch.stack([router.load_E for router in self.routers])
        loss_L = torch.stack([router.balance_loss for router in self.routers])
        both = torch.cat([load_LE, loss_L[:, None]], dim=1)
        for group in (mesh.tensor_group, mesh.context_group, mesh.data_group):
            if group.size() > 1:
                dist.all_reduce(both, group=group)
        load_LE, loss_L = both[:, :-1], both[:, -1]
        mean_L = load_LE.mean(dim=1)
        if self._rate and applied:
            for router, load_E, mean in zip(self.routers, load_LE, mean_L, strict=True):
                assert router.balance_bias is not None
                router.balance_bias += self._rate * torch.sign(mean - load_E)
        if mesh.tensor_rank or mesh.context_rank or mesh.data_rank:
            return {}
        peak_L = torch.where(mean_L > 0, load_LE.amax(dim=1) / mean_L.clamp(min=1e-9), 1.0)
        return {
            "expert_layers": float(len(self.routers)),
            "expert_peak_sum": float(peak_L.sum()),
            "expert_peak_max": float(peak_L.max()),
            "balance_loss_sum": float(loss_L.sum()),
        }
