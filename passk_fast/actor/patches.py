"""Where this project changes Megatron or torch outside the CPU shim and the checkpoints.

Specs, hooks and options that Megatron offers for it are no patches. docs/patches.md shows all.
"""

from __future__ import annotations

from passk_fast.patch import Patch

PATCHES = (
    Patch(
        function="passk_fast.actor.head.hidden_output",
        targets=("megatron.core.tensor_parallel.layers.ColumnParallelLinear.forward",),
        scope="the last stage's output layer, for one forward pass; ends with it",
        breaks="GPTModel no longer calls `output_layer`, or wants another result from it.",
        test="tests/actor/test_fused_head.py",
    ),
    Patch(
        function="passk_fast.actor.moe.experts._forget_weights",
        targets=("megatron.core.transformer.moe.token_dispatcher.MoEAlltoAllTokenDispatcher",),
        scope="every MoE layer of the actor, after each forward pass",
        breaks="The dispatcher keeps routing weights under another name than `probs`.",
        test="tests/actor/moe/test_experts.py",
    ),
    Patch(
        function="passk_fast.actor.moe.routing_replay.ReplayRouting",
        targets=("megatron.core.transformer.moe.router_replay.RouterReplay",),
        scope="every router of the actor, with algorithm.routing_replay",
        breaks="Routers ask `router_replay` by another method, or with other arguments.",
        test="tests/actor/moe/test_routing_replay.py",
    ),
    Patch(
        function="passk_fast.plan.experts.balance_experts",
        targets=("megatron.core.transformer.moe.moe_layer.MoELayer.forward",),
        scope="the chunks that a plan builds without memory, never the actor's",
        breaks="The layer's result or the all-to-all dispatcher's traffic changes.",
        test="tests/plan/test_memory.py",
    ),
    Patch(
        function="passk_fast.disaggregated.bridge._bridge_group",
        targets=(
            "torch.distributed.distributed_c10d._new_process_group_helper",
            "torch.distributed.distributed_c10d._world",
        ),
        scope="the run, with rollout.dedicated_ranks",
        breaks="torch makes groups by another function, or looks ranks up elsewhere.",
        test="tests/disaggregated/test_disaggregated.py",
    ),
    Patch(
        function="passk_fast.actor.mesh.drop_mesh",
        targets=("torch.distributed.distributed_c10d._world",),
        scope="when a mesh is dropped; reads torch's table of groups",
        breaks="torch keeps its groups elsewhere.",
        test="tests/actor/test_actor.py",
    ),
)
