"""Builds the parts of a run from its configuration, and drives the loop from start to summary."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from passk_fast.actor.actor import Actor
from passk_fast.actor.mesh import Mesh
from passk_fast.actor.moe.grouped import grouped_path
from passk_fast.checkpoint import megatron as checkpoint
from passk_fast.checkpoint.store import CheckpointStore
from passk_fast.config import RunConfig
from passk_fast.disaggregated.bridge import Bridge
from passk_fast.disaggregated.remote_engines import Remote
from passk_fast.errors import ConfigError, ExitCode
from passk_fast.model.shape import ModelShape
from passk_fast.model.tokenizer import character_tokenizer, make_tiny_model
from passk_fast.report.curve import plot_learning_curve
from passk_fast.report.records import read_records
from passk_fast.report.sinks import Report
from passk_fast.report.summary import print_summary
from passk_fast.rollout.verifier_pool import VerifierPool
from passk_fast.rollout.vllm.engine import RolloutEngine
from passk_fast.run.clock import Clock
from passk_fast.run.engines import Colocated
from passk_fast.run.loop import Progress, Trainer
from passk_fast.run.signals import StopFlag
from passk_fast.run.warm_start import warm_start
from passk_fast.tasks import PromptOrder, alphabet, test_prompts, train_prompts, verify

_BYTES_PER_PARAMETER = 16
"""Of a checkpoint: weights, main weights and two Adam moments in float32."""


@dataclass
class Run:
    """A run in progress: the trainer with its checkpoints, reports and stop signal."""

    trainer: Trainer
    mesh: Mesh
    store: CheckpointStore
    resumed_step: int | None

    @property
    def config(self) -> RunConfig:
        return self.trainer.config

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)

    def train(self) -> ExitCode:
        """All remaining steps; returns DONE, or PREEMPTED after a signal and a checkpoint."""
        code: ExitCode | None = None
        try:
            code = self._train()
        finally:
            self.trainer.engines.leave(code)
        return code

    def _train(self) -> ExitCode:
        trainer, config = self.trainer, self.config
        stop = StopFlag(config.stop_grace_s)
        stop.install()
        trainer.sync_weights()
        with Report.open(
            self.folder,
            rank=self.mesh.rank,
            total_steps=config.steps,
            k=config.algorithm.k,
            resumed_step=self.resumed_step,
        ) as report:
            clock = Clock()
            if self.resumed_step is None:
                self._report_start(report, clock)
            while trainer.progress.step < config.steps:
                self._one_step(report, clock)
                if stop.agreed(self.mesh.torch_device, also=trainer.engines.stop_wanted):
                    self._save()
                    self._mark_preempted()
                    return ExitCode.PREEMPTED
        self._finish()
        return ExitCode.DONE

    def _report_start(self, report: Report, clock: Clock) -> None:
        with clock.span("eval"):
            evaluation = self.trainer.evaluate()
        record: dict[str, Any] = {"step": 0, "time": clock.take()}
        if evaluation:
            record["eval"] = evaluation
        report.step(record)

    def _one_step(self, report: Report, clock: Clock) -> None:
        trainer, config = self.trainer, self.config
        record, groups = trainer.step(clock, ahead=self._samples_ahead(trainer.progress.step + 1))
        step = trainer.progress.step
        every = config.eval.every
        if step == config.steps or (every and step % every == 0):
            with clock.span("eval"):
                evaluation = trainer.evaluate()
            if evaluation:
                record["eval"] = evaluation
            report.samples(step, groups)
        every = config.checkpoint.every
        if step == config.steps or (every and step % every == 0):
            with clock.span("checkpoint"):
                self._save()
        record["time"] = clock.take()
        report.step(record)

    def _samples_ahead(self, step: int) -> bool:
        """Not where the engine is wanted for evaluation, nor across a checkpoint or the end."""
        config = self.config
        every = (config.eval.every, config.checkpoint.every)
        stops = step == config.steps or any(n and step % n == 0 for n in every)
        return bool(config.rollout.max_off_policy_steps) and not stops

    def _save(self) -> None:
        step = self.trainer.progress.step
        if self.store.path(step).exists():
            return
        names: list[Any] = [None]
        if self.mesh.rank == 0:
            self.store.check_space(self.trainer.actor.num_weights * _BYTES_PER_PARAMETER)
            names = [str(self.store.begin(step))]
        dist.broadcast_object_list(names, src=0)
        checkpoint.write(self.trainer.actor, Path(names[0]), asdict(self.trainer.progress))
        if self.mesh.rank == 0:
            self.store.commit(step)
        dist.barrier()

    def _mark_preempted(self) -> None:
        if self.mesh.rank == 0:
            (self.folder / "PREEMPTED").write_text(f"step {self.trainer.progress.step}\n")

    def _finish(self) -> None:
        if self.mesh.rank != 0:
            return
        (self.folder / "PREEMPTED").unlink(missing_ok=True)
        metrics = self.folder / "metrics.jsonl"
        evaluated = [r["eval"] for r in read_records(metrics) if r.get("eval")]
        paths = {
            "config": self.folder / "config.toml",
            "metrics": metrics,
            "tensorboard": self.folder / "tensorboard",
            "samples": self.folder / "samples",
            "checkpoints": self.folder / "checkpoints",
        }
        if evaluated:
            paths["curve"] = plot_learning_curve(metrics, self.folder / "curve.png")[0]
        first, last = (evaluated[0], evaluated[-1]) if evaluated else (None, None)
        print_summary(first, last, paths)


def build_run(config: RunConfig, mesh: Mesh, bridge: Bridge | None = None) -> Run:
    """All parts of a run: data, model (warm-started if asked), engines, resumed checkpoint.

    `bridge` leads to the rollout ranks where they are apart.
    """
    from transformers import AutoTokenizer

    folder = Path(config.output_dir)
    say = _printer(mesh.rank)
    prompts = train_prompts(config.data)
    held_out = test_prompts(config.data)
    model_dir = model_folder(config, mesh)
    shape = ModelShape.read(model_dir)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    remote = Remote(config, bridge, model_dir, tokenizer) if bridge else None
    if config.warm_start.steps:
        model_dir = warm_start(config, shape, mesh, tokenizer, model_dir, say)
    store = CheckpointStore(folder / "checkpoints", config.checkpoint.keep)
    newest = _newest(store, mesh) if config.checkpoint.resume else None
    actor = Actor(config, shape, mesh)
    actor.load_folder(model_dir)
    if shape.num_experts:
        te = actor.transformer_engine
        path = grouped_path(mesh.device, config.model.dtype, transformer_engine=te)
        say(f"Experts: {shape.num_experts} per layer, computed by {path}")
    progress = Progress()
    if newest:
        progress = Progress(**checkpoint.read(actor, Path(newest[1])))
        say(f"Resuming from step {progress.step} ({newest[1]})")
    if config.loss.kl_coef > 0:
        actor.load_reference(model_dir)
    order = PromptOrder(len(prompts), config.data.seed)
    if progress.order:
        order.load_state_dict(progress.order)
    trainer = Trainer(
        config=config,
        actor=actor,
        engines=remote or _colocated(config, mesh, model_dir, tokenizer),
        tokenizer=tokenizer,
        prompts=prompts,
        test_prompts=held_out,
        order=order,
        progress=progress,
    )
    if mesh.rank == 0:
        _write_config(config, folder, Path(model_dir))
    dist.barrier()
    return Run(trainer, mesh, store, resumed_step=progress.step if newest else None)


def _colocated(config: RunConfig, mesh: Mesh, model_dir: str, tokenizer: Any) -> Colocated:
    """An engine over the trainer's own ranks."""
    engine = RolloutEngine(
        config, model_dir, rank=mesh.rank, world_size=mesh.world_size, device=mesh.device
    )
    settings = config.rollout
    verifier = partial(verify, config=config.data)
    pool = None
    if settings.verify_processes and engine.tensor_rank == 0:
        pool = VerifierPool(verifier, settings.verify_processes, settings.verify_timeout_s)
    timeout = timedelta(seconds=config.timeout_s)
    group = (
        dist.new_group(backend="gloo", timeout=timeout) if settings.max_off_policy_steps else None
    )
    return Colocated(config, engine, tokenizer, verifier, pool=pool, group=group)


def _printer(rank: int) -> Callable[[str], None]:
    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    return say


def model_folder(config: RunConfig, mesh: Mesh) -> str:
    """The folder to start from: `model.path`, or a new random model in the run folder."""
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


def _newest(store: CheckpointStore, mesh: Mesh) -> tuple[int, str] | None:
    """Rank 0 verifies; everyone gets the same answer."""
    found: list[Any] = [None]
    if mesh.rank == 0:
        newest = store.newest_good()
        found = [(newest[0], str(newest[1])) if newest else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _write_config(config: RunConfig, folder: Path, model_dir: Path) -> None:
    """The resolved configuration, and what `passk-fast convert` needs beside the checkpoints."""
    import shutil

    from passk_fast.config.file import dump_toml

    (folder / "config.toml").write_text(dump_toml(config))
    kept = folder / "model"
    kept.mkdir(exist_ok=True)
    for file in model_dir.iterdir():
        if file.suffix in (".json", ".txt", ".model", ".jinja") and "index" not in file.name:
            shutil.copy2(file, kept / file.name)
