"""The actor: a Megatron model with its optimizer, updated on packed sequences.

Losses and gradients are plain sums over tokens divided by one global denominator, so they do not
depend on how sequences are split over ranks, micro-batches, pipeline stages or packs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from passk_fast.actor import loss as losses
from passk_fast.actor.attention import packed_params
from passk_fast.actor.batches import moved_to, with_step_size
from passk_fast.actor.cpu.megatron_shim import megatron_scope
from passk_fast.actor.gradients import GradientWatch
from passk_fast.actor.head import hidden_output, uses_fused_head
from passk_fast.actor.logprob_gap import GAP_PARTS, LogprobGap
from passk_fast.actor.mesh import Mesh
from passk_fast.actor.model import build_chunks, uses_transformer_engine
from passk_fast.actor.moe.experts import routers_of
from passk_fast.actor.moe.router import RouterWatch
from passk_fast.actor.moe.routing_replay import RoutingReplay
from passk_fast.actor.optimizer import make_optimizer, take_step, wrap
from passk_fast.actor.replicas import check_replicas
from passk_fast.config import OptimConfig, RunConfig
from passk_fast.data import packing
from passk_fast.data.context_parallel import context_part
from passk_fast.data.types import PackedBatch, Sequence
from passk_fast.model.flops import ModelFlops
from passk_fast.model.shape import ModelShape
from passk_fast.process_group import gather_json
from passk_fast.weights.hf import HFReader
from passk_fast.weights.layout import Spec
from passk_fast.weights.megatron import Layout, full_tensors, load, named_parameters
from passk_fast.weights.mesh import TrainerMesh

LossBuilder = Callable[..., losses.LossFunction]
"""(batch, weight=...) -> loss function; `weight` is passed with the fused head only."""
LossMetrics = dict[str, Tensor]
"""Sums over the tokens of a micro-batch, by name, and what `measure_gap` says of it."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step reports, equal on all ranks."""

    sums: dict[str, float]
    """Sums over all response tokens of the step (loss_sum, tokens, entropy_sum, ...)."""
    grad_norm: float
    """Norm before clipping; NaN or inf when the step was skipped."""
    applied: bool
    """False when a gradient was not finite, or the norm too large: weights and optimizer are
    unchanged."""
    gap: LogprobGap | None
    """Of the policy loss; None where no token counted, and for cross-entropy."""
    micro_batches: int
    bad_gradient: str = ""
    """Parameter and rank whose gradient is not finite, in words; empty where all are finite."""


class Actor:
    """Model, optimizer and everything that happens to them. All methods are collectives."""

    def __init__(
        self,
        config: RunConfig,
        shape: ModelShape,
        mesh: Mesh,
        *,
        optim: OptimConfig | None = None,
    ) -> None:
        """Random weights until `load_folder`; ConfigError when the mesh does not divide `shape`."""
        self.config = config
        self.mesh = mesh
        self.shape = shape
        self.optim = optim or config.optim
        self.transformer_engine = uses_transformer_engine(config, shape, mesh.device)
        self.layout = Layout.of(
            shape,
            TrainerMesh.of(config.parallel, mesh.world_size),
            mesh.rank,
            Spec.TE if self.transformer_engine else Spec.LOCAL,
        )
        self._pads = mesh.device == "cpu" or config.model.dtype == "float32"
        self.settings = losses.LossSettings(
            loss=config.loss,
            temperature=config.rollout.temperature,
            vocab=shape.vocab,
            tensor_group=mesh.tensor_group,
            memory_gib=config.lm_head_loss_memory_gib,
            soft_cap=shape.logit_soft_cap,
        )
        self.fused_head = uses_fused_head(config, mesh.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chunks, self._gradients = build_chunks(shape, config, mesh), GradientWatch()
            self.chunks = wrap(chunks, config, mesh.device, self._gradients.look)
            self.optimizer = make_optimizer(self.chunks, config, self.optim, mesh.device)
        routers = [router for chunk in self.chunks for router in routers_of(chunk)]
        self.routers = RouterWatch(routers, config.algorithm.balance_bias_rate)
        self.routing = RoutingReplay(self.chunks, shape, config.algorithm.routing_replay, mesh)
        self.reference: list[GPTModel] | None = None

    def load_folder(self, folder: str) -> None:
        """Load weights from a Hugging Face folder into the model and the optimizer's main copy."""
        with megatron_scope(self.mesh.device):
            load(self.chunks, HFReader(folder), self.layout)
            self.optimizer.reload_model_params()

    def load_reference(self, folder: str) -> None:
        """A frozen second model for the KL term, from a Hugging Face folder."""
        config = self.config
        self.reference = build_chunks(self.shape, config, self.mesh)
        load(self.reference, HFReader(folder), self.layout)
        for chunk in self.reference:
            chunk.requires_grad_(False)

    def full_tensors(self, ranks: Iterable[int] | None = None) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, full tensor) of the current weights, on `ranks` (default: all)."""
        return full_tensors(self.chunks, self.layout, ranks)

    def parameters(self) -> dict[str, Tensor]:
        """This rank's current weights by Megatron name with global layer indices."""
        return dict(named_parameters(self.chunks))

    def check_replicas(self) -> None:
        """See `passk_fast.actor.replicas.check_replicas`."""
        check_replicas(self.parameters(), self.mesh)

    @property
    def num_weights(self) -> int:
        """Weights of the whole model, if every stage were as large as this rank's."""
        parallel, mesh = self.config.parallel, self.mesh
        total = 0
        for parameter in self.parameters().values():
            expert = not getattr(parameter, "allreduce", True)
            cut = parallel.expert * parallel.expert_tensor if expert else mesh.tensor_size
            total += parameter.numel() * cut * mesh.pipeline_size
        return total

    # ---- packing -------------------------------------------------------------------------------

    def pack(self, sequences: SequenceOf[Sequence]) -> list[PackedBatch]:
        """This data-parallel rank's micro-batches of `sequences` (the same list on all ranks)."""
        mesh = self.mesh
        interleaved = mesh.virtual_pipeline_size > 1
        limit = self.config.micro_batch_tokens
        divisor = mesh.pipeline_size if interleaved else 1
        # Megatron's interleaved schedule exchanges tensors of one fixed length.
        multiple = self._even_length() if interleaved else self._row_multiple
        linear, quadratic = ModelFlops.of(self.shape).balance_coefficients()
        if self.shares_prompts(sequences):
            units, plan = packing.plan_units(
                sequences, mesh.data_size, limit, divisor, linear=linear, quadratic=quadratic
            )
            batches = [
                packing.pack_shared(sequences, [units[u] for u in us], multiple=multiple, pad_id=0)
                for us in plan[mesh.data_rank]
            ]
        else:
            plan = packing.plan(
                [len(s.token_ids) for s in sequences],
                mesh.data_size,
                limit,
                divisor,
                linear=linear,
                quadratic=quadratic,
            )
            batches = [
                packing.pack(sequences, i, multiple=multiple, pad_id=0)
                for i in plan[mesh.data_rank]
            ]
        if mesh.context_size > 1:
            batches = [context_part(b, mesh.context_rank, mesh.context_size) for b in batches]
        counted = len(sequences) if self.shape.num_experts else None
        batches = [with_step_size(batch, counted) for batch in batches]
        if self.fused_head:
            # Counted here, on the host: counting on the device would wait for it in mid-step.
            batches = [
                replace(b, row_index_L=losses.rows_to_compute(b, self.settings)) for b in batches
            ]
        return [moved_to(batch, mesh.torch_device) for batch in batches]

    def shares_prompts(self, sequences: SequenceOf[Sequence]) -> bool:
        """Whether a step of these sequences computes a prompt once for its responses."""
        wanted = self.config.share_prompts
        if wanted != "auto":
            return wanted
        replays = self.config.algorithm.routing_replay != "off"
        if self.transformer_engine or replays:
            return False
        return packing.sharing_saves(sequences)

    @property
    def _row_multiple(self) -> int:
        """Tokens of a micro-batch are a multiple of this, so that ranks get equal parts."""
        context = self.mesh.context_size
        return self.mesh.tensor_size * (2 * context if context > 1 else 1)

    def _even_length(self) -> int:
        """Micro-batch tokens, rounded up to a multiple of `_row_multiple`."""
        size = self._row_multiple
        return -(-self.config.micro_batch_tokens // size) * size

    # ---- forward and backward ------------------------------------------------------------------

    def run_schedule(
        self,
        chunks: SequenceOf[nn.Module],
        batches: list[PackedBatch],
        make_loss: LossBuilder,
        *,
        forward_only: bool,
    ) -> list[object]:
        """Megatron's pipeline schedule of `chunks` over the micro-batches, forward and backward.

        A list with one result of the loss per micro-batch; empty on all stages but the last.
        """

        def forward_step(
            iterator: Iterator[PackedBatch], model: nn.Module
        ) -> tuple[Tensor, losses.LossFunction]:
            batch = next(iterator)
            params = packed_params(
                batch,
                thd=self.transformer_engine,
                padded=self._pads,
                context_group=self.mesh.context_group,
            )
            if chunks is self.chunks:  # a reference model chooses for itself
                params.experts = self.routing.experts(batch, count=not forward_only)
            inputs = (batch.tokens_T[None], batch.positions_T[None], None)
            if not self.fused_head:
                return model(*inputs, packed_seq_params=params), make_loss(batch)
            with hidden_output(model) as weight:
                out = model(*inputs, packed_seq_params=params)
            return out, make_loss(batch, weight=weight)

        iterators = [iter(batches) for _ in chunks]
        with megatron_scope(self.mesh.device):
            results: list[object] = get_forward_backward_func()(
                forward_step_func=forward_step,
                data_iterator=iterators if len(chunks) > 1 else iterators[0],
                model=chunks if len(chunks) > 1 else chunks[0],
                num_microbatches=len(batches),
                seq_length=self._even_length(),
                micro_batch_size=1,
                forward_only=forward_only,
            )
        return results

    @torch.no_grad()
    def logprobs(self, batches: list[PackedBatch], *, reference: bool = False) -> list[Tensor]:
        """Log-probs [T] of every micro-batch under the current (or the reference) weights.

        Every pipeline stage gets them.
        """
        chunks = self.reference if reference else self.chunks
        assert chunks is not None, "load_reference has not been called"
        results = self.run_schedule(
            chunks,
            batches,
            partial(losses.logprob_collector, settings=self.settings),
            forward_only=True,
        )
        out = []
        source = dist.get_process_group_ranks(self.mesh.pipeline_group)[-1]
        for i, batch in enumerate(batches):
            if results:
                result = results[i]
                assert isinstance(result, losses.TokenLogprobs)
                logp = result.logprobs_T.float()
            else:
                logp = torch.empty_like(batch.rollout_logprobs_T)
            if self.mesh.pipeline_size > 1:
                dist.broadcast(logp, source, group=self.mesh.pipeline_group)
            out.append(logp)
        return out

    def prepare(
        self, batches: list[PackedBatch], *, old_logprobs: bool = False
    ) -> list[PackedBatch]:
        """Add the trainer's own log-probs (`old_logprobs`) and the reference's (KL term)."""
        if old_logprobs:
            values = self.logprobs(batches)
            batches = [replace(b, old_logprobs_T=v) for b, v in zip(batches, values, strict=True)]
        if self.settings.loss.kl_coef > 0:
            values = self.logprobs(batches, reference=True)
            batches = [
                replace(b, reference_logprobs_T=v) for b, v in zip(batches, values, strict=True)
            ]
        return batches

    def policy_step(
        self,
        batches: list[PackedBatch],
        *,
        denominator: float,
        lr: float,
        largest_norm: float = math.inf,
    ) -> StepResult:
        """One optimizer step of the clipped policy loss; none where the gradient's norm is above
        `largest_norm`."""
        make = partial(losses.policy_loss, settings=self.settings, denominator=denominator)
        return self._step(batches, make, lr, largest_norm)

    def supervised_step(
        self, batches: list[PackedBatch], *, denominator: float, lr: float
    ) -> StepResult:
        """One optimizer step of cross-entropy on response tokens."""
        settings = replace(self.settings, temperature=1.0)
        make = partial(losses.cross_entropy, settings=settings, denominator=denominator)
        return self._step(batches, make, lr)

    def backward(self, batches: list[PackedBatch], make_loss: LossBuilder) -> list[LossMetrics]:
        """Gradients of the summed loss, reduced over data-parallel ranks, in the gradient buffers.

        Returns the loss's metrics per micro-batch, on the last pipeline stage.
        """
        self.routers.reset()
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        with megatron_scope(self.mesh.device):
            self.optimizer.zero_grad()
        results = self.run_schedule(self.chunks, batches, make_loss, forward_only=False)
        return cast(list[LossMetrics], results)

    def _step(
        self,
        batches: list[PackedBatch],
        make_loss: LossBuilder,
        lr: float,
        largest_norm: float = math.inf,
    ) -> StepResult:
        results = self.backward(batches, make_loss)
        bad, grad_norm, applied = self._gradients.place(self.chunks), math.nan, False
        if not bad:
            with megatron_scope(self.mesh.device):
                grad_norm, applied = take_step(self.optimizer, lr, largest_norm)
        seen = self.routers.finish(self.mesh, applied=applied) | self.routing.take_counts()
        sums, gap = self.reduce_metrics(results, seen)
        return StepResult(
            sums=sums,
            grad_norm=grad_norm,
            applied=applied,
            gap=gap,
            micro_batches=len(batches),
            bad_gradient=bad,
        )

    def reduce_metrics(
        self, results: list[LossMetrics], more: dict[str, float] | None = None
    ) -> tuple[dict[str, float], LogprobGap | None]:
        """Sum the last stage's metrics over micro-batches and data-parallel ranks, everywhere.

        `more` are sums of this rank's that count too.
        """
        mesh = self.mesh
        speaks = mesh.is_last_stage and mesh.tensor_rank == 0
        mine: dict[str, float] = dict(more or {})
        spoken = results if speaks else []
        for result in spoken:
            for name, value in result.items():
                if name in GAP_PARTS:
                    continue
                if name in losses.MAXIMA:
                    mine[name] = max(mine.get(name, 0.0), float(value))
                else:
                    mine[name] = mine.get(name, 0.0) + float(value)
        gap = LogprobGap.merge([LogprobGap.of(r) for r in spoken])
        gathered = gather_json((mine, gap and gap.as_json()))
        sums: dict[str, float] = {}
        for other, _ in gathered:
            for name, amount in other.items():
                both = (sums.get(name, 0.0), amount)
                sums[name] = max(both) if name in losses.MAXIMA else sum(both)
        gaps = [LogprobGap.from_json(told) for _, told in gathered if told]
        return sums, LogprobGap.merge(gaps)
