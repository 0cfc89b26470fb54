"""What ranks run to compare the actor with transformers for any config.json."""

from __future__ import annotations

import json
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from passk_fast.data.types import Sequence
from passk_fast.model.shape import ModelShape
from tests.actor.workers import make_sequences, run_config


def make_folder(config: dict[str, Any], folder: Path) -> Any:
    """transformers' model of `config` with random weights, saved beside config.json as it is."""
    from transformers import AutoConfig, AutoModelForCausalLM

    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder),
        attn_implementation="eager",  # the only one that caps scores
    )
    for parameter in model.float().parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    # Whatever the rank: under torch.distributed transformers saves on rank 0 alone.
    from transformers.core_model_loading import revert_weight_conversion

    tensors = revert_weight_conversion(model, model.state_dict())
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model.eval()


def logits_of(model: Any, sequences: list[Sequence]) -> list[torch.Tensor]:
    """transformers' logits [tokens, V] of each sequence."""
    return [model(torch.tensor([s.token_ids])).logits[0] for s in sequences]


def logits_under(config: dict[str, Any], folder: Path, seqs: list[Sequence]) -> list[torch.Tensor]:
    """transformers' logits with the weights of `folder` and another config.json."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with tempfile.TemporaryDirectory() as other, no_init_weights(), torch.no_grad():
        (Path(other) / "config.json").write_text(json.dumps(config))
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=AutoConfig.from_pretrained(other),
            dtype=torch.float32,
            attn_implementation="eager",
        )
        return logits_of(model.eval(), seqs)


def compare(
    config: dict[str, Any],
    other: dict[str, Any] | None,
    parallel: dict[str, Any],
    share_prompts: bool = False,
    **shape: Any,
) -> dict[str, Any]:
    """Largest |actor - transformers| of logits, largest relative one of gradients, and largest
    change of transformers' logits from those under `other`. `shape` replaces fields of the shape.
    """
    from dataclasses import replace

    from passk_fast.actor import loss as losses
    from passk_fast.actor.actor import Actor
    from passk_fast.actor.mesh import drop_mesh, make_mesh
    from passk_fast.weights.megatron import named_parameters

    warnings.simplefilter("ignore")
    vocab = config["vocab_size"]
    sequences = [
        replace(s, token_ids=tuple(t % vocab for t in s.token_ids)) for s in make_sequences(8)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_folder(config, folder)
        changed = float("inf")
        with torch.no_grad():
            reference = logits_of(model, sequences)
        if other is not None:
            before = logits_under(other, folder, sequences)
            pairs = zip(before, reference, strict=True)
            changed = max(float((a - b).abs().max()) for a, b in pairs)
        drop_mesh()
        run = run_config({**parallel, "distributed_optimizer": False}, 4096, share_prompts)
        read = replace(ModelShape.read(folder), **shape)
        actor = Actor(run, read, make_mesh(run.parallel, "cpu"))
        actor.load_folder(folder)
    batches = actor.pack(sequences)
    logits = _logits_gap(actor, batches, reference)
    denominator = 100.0
    make = partial(losses.policy_loss, settings=actor.settings, denominator=denominator)
    actor.backward(batches, make)
    for parameter in named_parameters(actor.chunks).values():
        parameter.data.copy_(parameter.main_grad)  # full_tensors then gathers gradients
    got = {name: tensor.clone() for name, tensor in actor.full_tensors()}
    dist.barrier()
    return {
        "logits": logits,
        "gradients": _gradients_gap(model, got, sequences),
        "changed": changed,
    }


def _logits_gap(actor: Any, batches: Any, reference: list[torch.Tensor]) -> float:
    """0.0 off the last stage. With context parallelism a rank compares its own rows, and shared
    prompts those of responses."""
    captured: list[torch.Tensor] = []

    def capture(batch: Any) -> Any:
        def loss(logits: torch.Tensor) -> Any:
            captured.append(logits[0].detach())
            return logits.sum() * 0, torch.zeros((), dtype=torch.int), {}

        return loss

    with torch.no_grad():
        actor.run_schedule(actor.chunks, batches, capture, forward_only=True)
    gap = 0.0
    for batch, logits in zip(batches, captured, strict=bool(captured)):
        width = logits.shape[1]
        first = actor.mesh.tensor_rank * width
        for i in set(batch.sequence_index_T.tolist()) - {-1}:
            rows = batch.sequence_index_T == i
            wanted = reference[i][batch.positions_T[rows], first : first + width]
            gap = max(gap, float((logits[rows][:, : wanted.shape[1]] - wanted).abs().max()))
    return gap


def _gradients_gap(model: Any, got: dict[str, torch.Tensor], sequences: list[Sequence]) -> float:
    """Of the on-policy loss, relative to each tensor's largest entry; 0.0 off rank 0."""
    if dist.get_rank() != 0:
        return 0.0
    loss = torch.zeros(())
    for s in sequences:
        logprobs = model(torch.tensor([s.token_ids])).logits[0].log_softmax(dim=-1)
        targets = torch.tensor(s.token_ids[1:])
        chosen = logprobs[:-1].gather(1, targets[:, None])[s.prompt_length - 1 :, 0]
        loss = loss - s.advantage * chosen.sum() / 100.0
    loss.backward()
    with tempfile.TemporaryDirectory() as folder:
        for parameter in model.parameters():
            parameter.data.copy_(parameter.grad)
        model.save_pretrained(folder)  # splits what transformers stacks (experts)
        from passk_fast.weights.hf import HFReader

        reader = HFReader(folder)
        wanted = {name: reader.read(name) for name in reader.names()}
    assert got.keys() == wanted.keys()
    return max(
        float((got[name] - want).abs().max() / want.abs().max()) for name, want in wanted.items()
    )
