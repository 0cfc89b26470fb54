"""The engine's parameters in the layout in which vLLM loads them, to be filled from outside.

Most are vLLM's own tensors. Where vLLM keeps another form of a weight (packed, for every linear
layer on CPU; in a kernel's order, for experts), the layer gets fresh tensors, which `close` turns
into that form by the steps of vLLM's own reloading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from passk_fast.errors import DivergedError

if TYPE_CHECKING:
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.models.interfaces_base import VllmModelForTextGeneration

_PROBE_ROWS = 4


class OpenParameters:
    """vLLM reloads weights from a checkpoint alone; these are filled in place, from anywhere.

    A vLLM model between two uses, with every parameter in load layout: see `targets`.
    """

    def __init__(self, model: VllmModelForTextGeneration, *, on_cpu: bool) -> None:
        """Opens the model: until `close` it must not run."""
        self._model = model
        self._on_cpu = on_cpu
        self._tied = bool(model.config.tie_word_embeddings)
        self._staged: list[tuple[str, LinearBase]] = []
        self.targets: dict[str, Tensor] = {}
        """By vLLM's name. Rows that no weight fills (padding) are zero."""
        for name, module in model.named_modules():
            if module is getattr(model, "lm_head", None) and self._tied:
                continue
            self._open(name, module)

    def _open(self, prefix: str, module: LinearBase) -> None:
        from vllm.model_executor.model_loader.reload import layerwise

        own = dict(module.named_parameters(recurse=False))
        names = [*layerwise.get_layerwise_info(module).restore_metadata[0]]
        late = [name for name in own if name not in names]  # biases: vLLM has no record of them
        if _repacked(module, on_cpu=self._on_cpu):
            layerwise.initialize_layerwise_reload(module)
            layerwise.materialize_layer(module, layerwise.get_layerwise_info(module))
            for name in late:
                like = own[name].data
                fresh = torch.empty_like(like, dtype=getattr(module, names[0]).dtype)
                module.register_parameter(name, nn.Parameter(fresh, requires_grad=False))
            for name in (*names, *late):
                getattr(module, name).data.zero_()
            self._staged.append((prefix, module))
        for name in (*names, *late):
            self.targets[f"{prefix}.{name}" if prefix else name] = getattr(module, name).data

    @torch.no_grad()
    def close(self, *, probe: bool = False) -> None:
        """Give vLLM its own form of every weight.

        `probe` multiplies random rows with each repacked layer and with the weight it was given:
        DivergedError names a layer whose products differ.
        """
        for name, module in self._staged:
            kept = module.weight.data.clone() if probe and hasattr(module, "cpu_linear") else None
            bias = getattr(module, "bias", None)
            bias = bias.data.clone() if kept is not None and bias is not None else None
            _process(module, on_cpu=self._on_cpu)
            if kept is not None:
                _compare(name, module, kept, bias)
        if self._on_cpu and self._tied:
            # A tied output layer has a packed copy of the embedding. Gemma 2 has no other output
            # layer than the embedding, which packs the copy itself.
            embedding = self._model.model.embed_tokens
            head = getattr(self._model, "lm_head", embedding)
            if head is not embedding:
                head.tie_weights(embedding)
            head.quant_method.process_weights_after_loading(head)
        self._staged = []


def _repacked(module: LinearBase, *, on_cpu: bool) -> bool:
    """Whether vLLM keeps another form of the module's weights than it loads."""
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )

    method = getattr(module, "quant_method", None)
    if method is None:
        return False
    if on_cpu:
        return isinstance(module, ParallelLMHead) or not isinstance(module, VocabParallelEmbedding)
    backend = getattr(method, "unquantized_backend", None)
    if backend is not None:
        return str(backend.name) != "TRITON"
    return not type(method).__name__.startswith("Unquantized")


def _process(module: LinearBase, *, on_cpu: bool) -> None:
    """What vLLM does with a layer once all of its weights have been loaded.

    On CPU vLLM packs experts at the first loading alone: its reloading leaves them unpacked, and
    the engine samples noise without an error. Here they are packed every time.
    """
    from vllm.model_executor.model_loader.reload import layerwise

    info = layerwise.get_layerwise_info(module)
    if hasattr(module, "_already_called_process_weights_after_loading"):
        delattr(module, "_already_called_process_weights_after_loading")
    for tensor in layerwise.get_layer_tensors(module).values():
        tensor.weight_loader = layerwise._get_original_loader(tensor)
    module.quant_method.process_weights_after_loading(module)
    experts = getattr(module.quant_method, "moe_kernel", None)
    if on_cpu and experts is not None:
        experts.fused_experts.process_weights_after_loading(module)
    if hasattr(module, "update_param_tp_status"):
        module.update_param_tp_status()
    layerwise._copy_and_restore_kernel_tensors(module, info)
    info.reset()


def _compare(name: str, module: LinearBase, weight: Tensor, bias: Tensor | None) -> None:
    """DivergedError unless a repacked linear layer multiplies like the weight it was made from."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_PROBE_ROWS, weight.shape[1], generator=generator).to(weight.dtype)
    got = module.cpu_linear(x, module.weight, getattr(module, "bias", None)).float()
    shift = None if bias is None else bias.float()
    expected = nn.functional.linear(x.float(), weight.float(), shift)
    scale = expected.abs().max() + 1e-6
    bound = 1e-4 if weight.dtype == torch.float32 else 3e-2
    if not bool((got - expected).abs().max() <= bound * scale):
        raise DivergedError(
            f"{name}: the engine's packed weight does not multiply like the weight it was given."
        )
