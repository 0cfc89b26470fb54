"""What the ranks of the Gemma-2 tests run besides `workers`."""

from __future__ import annotations

from dataclasses import replace

import torch

from passk_fast.model.shape import ModelShape
from tests.actor import workers


def embedding_gap(hidden: int) -> float:
    """max |actor - transformers| of a Gemma-2 model's embeddings in bfloat16."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Model

    from passk_fast.actor.mesh import drop_mesh, make_mesh
    from passk_fast.actor.model import build_chunks
    from passk_fast.config import ModelConfig

    drop_mesh()
    config = replace(workers.run_config({}, 4096), model=ModelConfig(dtype="bfloat16"))
    hf = workers.hf_config("gemma2")
    hf.hidden_size = hidden
    (chunk,) = build_chunks(
        ModelShape.parse(hf.to_dict()), config, make_mesh(config.parallel, "cpu")
    )
    tokens = torch.arange(workers.VOCAB)[None]
    model = Gemma2Model(hf).to(torch.bfloat16)
    weight = chunk.embedding.word_embeddings.weight
    model.embed_tokens.weight.data.copy_(weight.data[: workers.VOCAB])
    with torch.no_grad():
        got, want = chunk.embedding(tokens, None)[:, 0], model.embed_tokens(tokens)[0]
    assert float((want / weight[: workers.VOCAB]).float().nanmean()) != 1.0
    return float((got - want).abs().max())
