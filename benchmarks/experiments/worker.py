"""Runs of the study in one process: one vLLM engine for all, a fresh actor for each run.

A run depends on its configuration alone: the actor is built anew from the warm-started folder, the
engine gets its weights before the first sample, and the engine's samples are functions of weights
and seeds. `tests/benchmarks/test_experiments.py` compares a run after another one with a fresh one.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passk_fast.advantage.metrics import pass_at_powers, sampled_entropy, wrong_distinct_share
from passk_fast.config import RunConfig
from passk_fast.seeding import seed_for

if TYPE_CHECKING:
    from passk_fast.run.loop import Trainer

KEPT = (
    "reward",
    "pass@1",
    "pass@4",
    "pass@16",
    "policy_entropy",
    "zero_advantage_share",
    "effective_batch",
    "wrong_distinct_share",
    "grad_norm",
    "lr",
    "response_length",
    "truncated_share",
    "skipped_steps",
)
"""Of a step's record, what results keep; pass@k above N is not there."""
TOP_P = 0.95
"""Evaluation as the papers do it: temperature 1.0, top_p 0.95."""


def _commit() -> str:
    """Of the checkout that this file stands in."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip()


class Laboratory:
    """What runs share: data, tokenizer, warm-started model, engine."""

    def __init__(self, base: RunConfig) -> None:
        """Builds the warm-started model unless its cache has it; a few minutes the first time."""
        from passk_fast.process import quiet
        from passk_fast.rollout.vllm.start import prepare_environment

        prepare_environment()
        quiet()
        from functools import partial

        from transformers import AutoTokenizer

        from passk_fast.actor.mesh import make_mesh
        from passk_fast.model.shape import ModelShape
        from passk_fast.process_group import start_process_group
        from passk_fast.rollout.vllm.engine import RolloutEngine
        from passk_fast.run.build import model_folder
        from passk_fast.run.warm_start import warm_start
        from passk_fast.tasks import test_prompts, train_prompts, verify

        self.base = base
        self.commit = _commit()
        start_process_group("cpu", base.timeout_s)
        self.mesh = make_mesh(base.parallel, "cpu")
        folder = model_folder(base, self.mesh)
        self.shape = ModelShape.read(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.folder = warm_start(base, self.shape, self.mesh, self.tokenizer, folder, print)
        self.prompts = train_prompts(base.data)
        self.held_out = test_prompts(base.data)[: base.eval.num_prompts]
        self.verify = partial(verify, config=base.data)
        self.engine = RolloutEngine(base, self.folder, rank=0, world_size=1, device="cpu")

    def trainer(self, config: RunConfig) -> Trainer:
        """A fresh trainer: new actor from the warm start, new optimizer, schedule and order."""
        from passk_fast.actor.actor import Actor
        from passk_fast.run.colocated_engines import ColocatedEngines
        from passk_fast.run.parts import make_trainer
        from passk_fast.tasks import PromptOrder

        gc.collect()
        actor = Actor(config, self.shape, self.mesh)
        actor.load_folder(self.folder)
        engines = ColocatedEngines(config, self.engine, self.tokenizer, self.verify)
        order = PromptOrder(len(self.prompts), config.seed)
        return make_trainer(config, actor, engines, self.tokenizer, self.prompts, order)

    def evaluate(self, seed: int) -> dict[str, Any]:
        """Held-out pass@k of what the engine holds, with standard errors over prompts."""
        from passk_fast.data.types import SampleRequest
        from passk_fast.rollout.collect import collect_groups
        from passk_fast.tasks import answer_of

        num = self.base.eval.num_rollouts
        groups, _ = collect_groups(
            self.engine,
            SampleRequest(
                prompts=self.held_out, num_rollouts=num, seed=seed_for(seed, "evaluation", 0)
            ),
            self.tokenizer,
            self.verify,
            temperature=1.0,
            top_p=TOP_P,
        )
        correct_P = np.array([int((group.rewards == 1.0).sum()) for group in groups])
        return {
            **pass_at_powers(correct_P, num),
            "wrong_distinct_share": wrong_distinct_share(groups, answer_of),
            "entropy_top_p": float(sampled_entropy(groups).mean()),
            "correct": correct_P.tolist(),
        }

    def run(self, config: RunConfig) -> dict[str, Any]:
        """Train and evaluate; plain JSON values."""
        from passk_fast.run.parts import Records

        start = time.monotonic()
        report = Records()
        replace(self.trainer(config), report=report).train()
        steps = [
            {name: record[name] for name in KEPT if name in record} for record in report.records[1:]
        ]
        result = {
            "seed": config.seed,
            "algorithm": asdict(config.algorithm),
            "loss": asdict(config.loss),
            "lr": config.optim.lr,
            "commit": self.commit,
            "steps": steps,
            "eval": self.evaluate(config.seed),
        }
        result["wall_s"] = time.monotonic() - start
        return result


def main(out: Path, minutes: float) -> None:
    """Take runs that nobody has taken until none is left, or the next would take as long as the
    last and end too late. One is always taken.

    Called by study.py in a new process. `minutes` counts from now, the engine's start included.
    """
    from benchmarks.experiments.arms import base_config
    from benchmarks.experiments.store import Store, jobs

    deadline = time.monotonic() + 60 * minutes
    base = replace(base_config(), output_dir=str(out / f"worker-{os.getpid()}"))
    store = Store(out)
    laboratory = Laboratory(base)
    if store.claim("warm", 0):
        laboratory.trainer(replace(base, seed=0)).sync()
        store.write("warm", 0, {"seed": 0, "steps": [], "eval": laboratory.evaluate(0)})
    expected_s = 0.0
    for arm, seed in jobs(base):
        if time.monotonic() + expected_s > deadline:
            return
        if not store.claim(arm.name, seed):
            continue
        result = laboratory.run(arm.config(base, seed))
        store.write(arm.name, seed, result)
        final = result["eval"]
        print(
            f"{time.strftime('%H:%M:%S')} {arm.name} seed {seed}: pass@1 {final['pass@1']:.3f} "
            f"pass@16 {final['pass@16']:.3f} in {result['wall_s']:.0f} s",
            flush=True,
        )
        expected_s = result["wall_s"]


def warm(out: Path) -> None:
    """Make the warm-started model and leave."""
    from benchmarks.experiments.arms import base_config

    Laboratory(replace(base_config(), output_dir=str(out / "warm-start")))


if __name__ == "__main__":
    if sys.argv[2] == "warm-start":
        warm(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), float(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # gloo's destructors may hang
