"""Whether a configuration fits: its model, the mesh that divides it, and the memory it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from passk_fast.config import RunConfig, require
from passk_fast.errors import ConfigError
from passk_fast.model.divisibility import check_engine_ranks, check_fits
from passk_fast.model.shape import ModelShape
from passk_fast.plan.facts import Facts
from passk_fast.plan.hardware import Gpu, sides
from passk_fast.plan.memory import Memory, memory_of
from passk_fast.plan.work import Workload
from passk_fast.plan.worker import Prober
from passk_fast.weights.placement import Tensors


@dataclass(frozen=True)
class Model:
    """A model's shape and the folder with its config.json."""

    folder: Path
    shape: ModelShape

    @classmethod
    def find(cls, config: RunConfig, beside: Path) -> Model:
        """`model.path`, or the folder of that name in models/ beside the configuration file.

        ConfigError when neither has a config.json, or when the model is not supported.
        """
        require(bool(config.model.path), "passk-fast plan needs model.path: a folder's name.")
        wanted = Path(config.model.path)
        places = [wanted, beside.parent / "models" / wanted.name]
        for folder in places:
            if (folder / "config.json").is_file():
                return cls(folder.resolve(), ModelShape.read(folder))
        raise ConfigError(f"model.path: no config.json in {' or '.join(map(str, places))}.")


def check_mesh(config: RunConfig, shape: ModelShape, gpus: int) -> None:
    """ConfigError for GPUs that do not make up the meshes, or meshes that do not fit the model."""
    rollout = config.rollout
    trainers, engines = sides(gpus, rollout.dedicated_ranks)
    require(
        trainers > 0,
        f"rollout.dedicated_ranks = {rollout.dedicated_ranks} of {gpus} GPUs leaves none to train.",
    )
    config.parallel.data(trainers)
    check_engine_ranks(engines, rollout.tensor, "GPUs")
    check_fits(shape, config)


def memory_on(
    config: RunConfig, model: Model, gpu: Gpu, gpus: int, prober: Prober
) -> tuple[Memory, Facts, Tensors]:
    """Memory of a configuration; ConfigError as for `check_mesh`, or when Megatron refuses it."""
    check_mesh(config, model.shape, gpus)
    tensors = Tensors.of(model.shape)
    trainers, _ = sides(gpus, config.rollout.dedicated_ranks)
    unfused = config.lm_head_loss == "unfused"
    facts = prober.facts(config, model.folder, trainers, logits=unfused)
    micro = Workload.of(config).micro_batches(config, trainers)
    return memory_of(config, facts, tensors, gpu, micro), facts, tensors
