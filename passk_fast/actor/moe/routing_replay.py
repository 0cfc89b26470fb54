"""Routing replay (R3, arXiv 2510.11370): tokens go to the experts that sampling chose.

Megatron's router asks its `router_replay` for the top k of its scores. Ours answers with the stored
experts' scores, so gate weights, and gradients through them, are the trainer's own. It also counts
where the trainer would have chosen others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int16, Int64
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from passk_fast.actor.attention import ExpertChoices
from passk_fast.actor.mesh import Mesh
from passk_fast.actor.moe.experts import moe_layers
from passk_fast.actor.moe.router import Router
from passk_fast.data.types import PackedBatch
from passk_fast.errors import ConfigError
from passk_fast.model.shape import ModelShape
from passk_fast.weights.megatron import layer_index


class MicroBatchExperts:
    """The experts of one micro-batch's tokens that this rank's routers see, by layer.

    `routed_tMK` int16, on the CPU, -1 where sampling chose none; `layers` are the indices of the M
    layers.
    """

    def __init__(
        self,
        routed_tMK: Int16[Tensor, "t M K"],
        layers: list[int],
        device: torch.device,
        *,
        replay: bool,
    ) -> None:
        moved = routed_tMK.to(device)
        self._routed = {layer: moved[:, i] for i, layer in enumerate(layers)}
        self._replay = replay
        self.differs: dict[int, Tensor] = {}
        """By layer: how many tokens the router would have sent elsewhere."""
        self.known = int((routed_tMK[:, 0, 0] >= 0).sum())
        """Tokens whose experts sampling chose."""

    @classmethod
    def of(
        cls, batch: PackedBatch, layers: list[int], mesh: Mesh, *, replay: bool
    ) -> MicroBatchExperts | None:
        """This rank's part: its layers, and with sequence parallelism one part of the tokens.

        None where the batch has no experts, as in supervised steps.
        """
        if batch.experts_TMK is None:
            return None
        rows = batch.experts_TMK.chunk(mesh.tensor_size)[mesh.tensor_rank]
        return cls(rows[:, layers], layers, mesh.torch_device, replay=replay)

    def choose(
        self, layer: int, scores_tE: Float[Tensor, "t E"], own_tK: Int64[Tensor, "t K"]
    ) -> tuple[Float[Tensor, "t K"], Int64[Tensor, "t K"]]:
        """(scores with gradient, experts) that take the place of `own_tK`.

        Tokens whose stored set is the router's own keep its order, so that replaying a router's own
        choice changes no bit.
        """
        routed_tK = self._routed[layer].long()
        assert len(routed_tK) == len(own_tK), "experts and tokens of another micro-batch"
        same_t = (routed_tK.sort(dim=1).values == own_tK.sort(dim=1).values).all(dim=1)
        other_t = ~same_t & (routed_tK[:, 0] >= 0)
        # Counted once: recomputed layers come here again.
        self.differs.setdefault(layer, other_t.sum())
        chosen = torch.where(other_t[:, None], routed_tK, own_tK) if self._replay else own_tK
        return scores_tE.gather(1, chosen), chosen


class ReplayRouting:
    """Megatron's RouterReplay records and replays its own choices, not those of sampling.

    This stands in its place at one router.
    """

    def __init__(self, router: Router, layer: int) -> None:
        """`router.packed` are the PackedParams of the micro-batch that its layer is computing."""
        self._router, self._layer = router, layer

    def get_replay_topk(
        self,
        scores: Float[Tensor, "t E"],
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Float[Tensor, "t K"], Int64[Tensor, "t K"]]:
        """Megatron's call: (scores, experts) of the K = topk experts of each token."""
        assert default_compute_topk is not None
        router = self._router
        if router.balance_bias is None:
            values, own = default_compute_topk(
                scores, topk, num_groups=num_groups, group_topk=group_topk
            )
        else:
            shares = scores if router.config.moe_router_pre_softmax else scores.softmax(dim=-1)
            own = router.biased_choice(shares)
            values = scores.gather(1, own)
        experts: ExpertChoices | None = router.packed.experts if router.packed else None
        return (values, own) if experts is None else experts.choose(self._layer, scores, own)


class RoutingReplay:
    """algorithm.routing_replay on one rank: its routers, and what each pass is given."""

    def __init__(self, chunks: list[nn.Module], shape: ModelShape, mode: str, mesh: Mesh) -> None:
        """ConfigError for a dense model, or for layers whose recompute would lose the micro-batch.

        Nothing is attached when `mode` is "off".
        """
        shape.check_routing_replay(mode)
        self._mesh, self._replay = mesh, mode == "replay"
        self._layers: list[int] = []
        self._seen: list[tuple[int, dict[int, Tensor]]] = []
        if mode != "off":
            for layer, mixture in (pair for chunk in chunks for pair in moe_layers(chunk)):
                index = layer_index(layer)
                _check(mixture.config)
                mixture.router.router_replay = ReplayRouting(mixture.router, index)
                self._layers.append(index)

    def experts(self, batch: PackedBatch, *, count: bool) -> MicroBatchExperts | None:
        """What the routers need for one micro-batch; `count`: it plays a part in `take_counts`."""
        if not self._layers:
            return None
        experts = MicroBatchExperts.of(batch, self._layers, self._mesh, replay=self._replay)
        if experts is not None and count:
            self._seen.append((experts.known, experts.differs))
        return experts

    def take_counts(self) -> dict[str, float]:
        """Tokens with known experts, and those of them that this rank's routers would have sent
        elsewhere: sums over layers and micro-batches since the last call. Empty without a layer.
        """
        seen, self._seen = self._seen, []
        if not self._layers:
            return {}
        return {
            "routing_known": float(sum(known * len(differs) for known, differs in seen)),
            "routing_differs": float(sum(int(n) for _, differs in seen for n in differs.values())),
        }


def _check(config: TransformerConfig) -> None:
    """ConfigError where Megatron would not ask, or would ask for another micro-batch's experts."""
    if config.moe_router_fusion:
        raise ConfigError("algorithm.routing_replay: a fused router cannot replay.")
    if config.recompute_granularity == "selective" and "moe" in (config.recompute_modules or ()):
        raise ConfigError(
            "algorithm.routing_replay: recomputing only the mixture layers would give them "
            "another micro-batch's experts. Take parallel.recompute = 'full' or 'none'."
        )
