"""`passk-fast eval`: held-out pass@k of a model, by task, as the papers measure it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np

from passk_fast.advantage.metrics import evaluation, powers_of_two, wrong_distinct_share
from passk_fast.commands.arguments import take
from passk_fast.commands.ranks import (
    code_of_ranks,
    leave_exit_code,
    num_processes,
    start_ranks,
)
from passk_fast.config import RunConfig
from passk_fast.data.types import Prompt, RolloutGroup, SampleRequest
from passk_fast.errors import ConfigError, DataError, ExitCode
from passk_fast.process import own_rank, run_rank
from passk_fast.versions import check_versions


class EvaluationRecord(TypedDict):
    """What `passk-fast eval` writes: JSON values."""

    model: str
    temperature: float
    top_p: float
    seed: int
    tasks: dict[str, dict[str, object]]
    """Task -> `task_record`, with the number of "verifier_failures"."""


def command(arguments: list[str]) -> ExitCode:
    """Find the model, start the ranks, and return the code that they left."""
    from passk_fast.commands.check_run import check_evaluation
    from passk_fast.config.file import load_config

    taken = {name: take(arguments, f"--{name}") for name in ("model", "samples", "out", "nproc")}
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("usage: passk-fast eval CONFIG [--model FOLDER] [--samples TASK=N,...]")
    check_versions(warn=False)
    config = load_config(arguments[0], arguments[1:])
    every_rank_samples = replace(config.rollout, dedicated_ranks=0)
    config = replace(config, rollout=every_rank_samples)
    samples = taken["samples"] or ""
    parse_samples(samples)
    processes = num_processes(config, taken["nproc"])
    out = Path(taken["out"] or Path(config.output_dir) / "eval.json").resolve()
    if not out.parent.is_dir():
        raise ConfigError(f"command line: --out: {out.parent} is not a folder.")
    with tempfile.TemporaryDirectory(prefix="passk-fast-eval-") as scratch:
        source = Path(taken["model"] or config.output_dir)
        model = source if (source / "config.json").is_file() else Path(scratch) / "model"
        if model != source:
            _convert_in_subprocess(source, model)
        check_evaluation(config, model, processes)
        own = [arguments[0], str(model), samples, str(out), scratch, *arguments[1:]]
        returned = start_ranks(processes, "passk_fast.commands.evaluate", own)
        message = "A rank ended without saying why (killed, or out of memory)."
        return code_of_ranks(returned, Path(scratch), message)


def _convert_in_subprocess(source: Path, out: Path) -> None:
    """`convert` makes a process group, which this process must not have."""
    convert = [sys.executable, "-m", "passk_fast", "convert", str(source), str(out)]
    done = subprocess.run(convert, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise ConfigError(lines[-1].removeprefix("error: ") if lines else done.stderr[-2000:])


def parse_samples(text: str) -> dict[str, int]:
    """`maze=32,exact=8` -> {"maze": 32, "exact": 8}; "" is {}. ConfigError for anything else."""
    out: dict[str, int] = {}
    for part in text.split(",") if text else ():
        task, _, count = part.partition("=")
        if not task or not count.isdigit() or int(count) < 1 or task in out:
            raise ConfigError(
                f"command line: --samples must be like maze=32,exact=8, each task once and a "
                f"positive number, got {text!r}."
            )
        out[task] = int(count)
    return out


def by_task(
    prompts: Sequence[Prompt], samples: dict[str, int], default: int
) -> dict[str, tuple[list[Prompt], int]]:
    """Task -> (its prompts, responses per prompt), in the order of first appearance.

    Raises:
        DataError: there are no prompts.
        ConfigError: `samples` names a task that no prompt has.
    """
    out: dict[str, tuple[list[Prompt], int]] = {}
    for prompt in prompts:
        out.setdefault(prompt.task, ([], samples.get(prompt.task, default)))[0].append(prompt)
    if not out:
        raise DataError("There are no held-out prompts: set data.test.")
    unknown = [task for task in samples if task not in out]
    if unknown:
        raise ConfigError(
            f"command line: --samples names task {unknown[0]!r}, which no held-out prompt has; "
            f"they have: {', '.join(out)}."
        )
    return out


def task_record(groups: Sequence[RolloutGroup], k: int) -> dict[str, object]:
    """Pass@k of one task with intervals and errors, and how its responses spread.

    Keys: those of `evaluation` (k is lowered to the number of responses where there are fewer),
    "correct_histogram", "wrong_distinct_share" and "truncated_share".
    """
    from passk_fast.tasks import answer_of

    n = len(groups[0].rewards)
    correct_P = np.array([int((group.rewards == 1.0).sum()) for group in groups])
    finished = [rollout.finished for group in groups for rollout in group.rollouts]
    return {
        **evaluation(correct_P, n, min(k, n)),
        "reward": float(np.mean([group.rewards.mean() for group in groups])),
        "correct_histogram": np.bincount(correct_P, minlength=n + 1).tolist(),
        "wrong_distinct_share": wrong_distinct_share(groups, answer_of),
        "truncated_share": 1.0 - float(np.mean(finished)),
    }


def as_table(record: EvaluationRecord) -> str:
    """A table for people: a row per task, pass@k for all powers of two, errors in brackets."""
    lines = [f"{record['model']}: temperature {record['temperature']:g}, top_p {record['top_p']:g}"]
    for task, values in record["tasks"].items():
        num_rollouts = values["rollouts"]
        assert isinstance(num_rollouts, int), "as `task_record` says"
        scores = "  ".join(
            f"pass@{k} {values[f'pass@{k}']:.3f} ({values[f'pass@{k}_se']:.3f})"
            for k in powers_of_two(num_rollouts)
        )
        lines.append(f"{task}, {values['prompts']} prompts x {num_rollouts}: {scores}")
    return "\n".join(lines)


def run(config: RunConfig, model_dir: Path, samples: dict[str, int], out: Path) -> ExitCode:
    """Sample and verify all held-out prompts; rank 0 writes `out`. A collective over all ranks."""
    from passk_fast.rollout.vllm.start import prepare_environment

    prepare_environment()
    import torch.distributed as dist
    from transformers import AutoTokenizer

    from passk_fast.process_group import pick_device, start_process_group
    from passk_fast.rollout.collect import collect_groups
    from passk_fast.rollout.make import make_engine
    from passk_fast.rollout.verifier_pool import VerifierPool
    from passk_fast.run.verifier_failures import VerifierFailures
    from passk_fast.seeding import seed_for
    from passk_fast.tasks import Verifier, test_prompts

    # Nothing is trained on what is sampled here.
    config = replace(config, algorithm=replace(config.algorithm, routing_replay="off"))
    settings = config.eval
    tasks = by_task(test_prompts(config.data), samples, settings.num_rollouts)
    device = pick_device(config.device)
    start_process_group(device, config.timeout_s)
    rank, world = dist.get_rank(), dist.get_world_size()
    engine = make_engine(config, str(model_dir), rank=rank, world_size=world, device=device)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    verifier = Verifier(config.data, always_process=config.rollout.verify_processes > 0)
    limit = config.rollout.max_verifier_failures
    failures = VerifierFailures(limit, prints=rank == 0)
    pool = VerifierPool.of(verifier, config.rollout) if engine.tensor_rank == 0 else None
    records: dict[str, dict[str, object]] = {}
    with pool or nullcontext():
        for task, (prompts, num_rollouts) in tasks.items():
            seed = seed_for(config.seed, f"eval-{task}", 0)
            groups, stats = collect_groups(
                engine,
                SampleRequest(prompts=prompts, num_rollouts=num_rollouts, seed=seed),
                tokenizer,
                verifier,
                temperature=settings.temperature,
                top_p=settings.top_p,
                pool=pool,
            )
            new = failures.check(stats, len(prompts) * num_rollouts)
            records[task] = task_record(groups, config.algorithm.k)
            records[task]["verifier_failures"] = stats.verifier_failures
            if new:
                records[task]["verifier_errors"] = new
    if rank == 0:
        record = EvaluationRecord(
            model=str(model_dir),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=config.seed,
            tasks=records,
        )
        _write(record, out)
    dist.barrier()
    return ExitCode.DONE


def _write(record: EvaluationRecord, out: Path) -> None:
    from passk_fast.report.records import disk_errors, plain

    with disk_errors(out):
        out.write_text(json.dumps(plain(record), indent=1) + "\n")
    print(as_table(record), f"\nWrote {out}", flush=True)


def main() -> None:
    """One rank: `CONFIG MODEL SAMPLES OUT CODE_FOLDER [--key value ...]`, as `command` calls it."""
    from passk_fast.config.file import load_config

    path, model, samples, out, code_folder, *overrides = sys.argv[1:]

    def work() -> ExitCode:
        check_versions()
        config = load_config(path, overrides)
        return run(config, Path(model), parse_samples(samples), Path(out))

    run_rank(work, partial(leave_exit_code, Path(code_folder), own_rank()))


if __name__ == "__main__":
    main()
