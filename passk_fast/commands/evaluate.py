"""`passk-fast eval`: held-out pass@k of a model, by task, as the papers measure it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from passk_fast.advantage.metrics import evaluation, powers_of_two, wrong_distinct_share
from passk_fast.config import RunConfig
from passk_fast.data.types import Prompt, RolloutGroup, SampleRequest
from passk_fast.errors import ConfigError, DataError, ExitCode


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
    """Task -> (its prompts, responses a prompt), in the order of first appearance.

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


def task_record(groups: Sequence[RolloutGroup], k: int) -> dict[str, Any]:
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


def as_table(record: dict[str, Any]) -> str:
    """A table for people: a row a task, pass@k for all powers of two, errors in brackets."""
    lines = [f"{record['model']}: temperature {record['temperature']:g}, top_p {record['top_p']:g}"]
    for task, values in record["tasks"].items():
        scores = "  ".join(
            f"pass@{k} {values[f'pass@{k}']:.3f} ({values[f'pass@{k}_se']:.3f})"
            for k in powers_of_two(int(values["rollouts"]))
        )
        lines.append(f"{task}, {values['prompts']} prompts x {values['rollouts']}: {scores}")
    return "\n".join(lines)


def run(config: RunConfig, model_dir: Path, samples: dict[str, int], out: Path) -> dict[str, Any]:
    """Sample and verify all held-out prompts; rank 0 writes `out`. A collective over all ranks."""
    from functools import partial

    from passk_fast.rollout.vllm.engine import RolloutEngine
    from passk_fast.rollout.vllm.start import prepare_environment

    prepare_environment()
    import torch.distributed as dist

    from passk_fast.process_group import pick_device, start_process_group
    from passk_fast.rollout.collect import collect_groups
    from passk_fast.seeding import seed_for
    from passk_fast.tasks import test_prompts, verify

    # Nothing is trained on what is sampled here.
    config = replace(config, algorithm=replace(config.algorithm, routing_replay="off"))
    settings = config.eval
    tasks = by_task(test_prompts(config.data), samples, settings.num_rollouts)
    device = pick_device(config.device)
    start_process_group(device, config.timeout_s)
    rank, world = dist.get_rank(), dist.get_world_size()
    engine = RolloutEngine(config, str(model_dir), rank=rank, world_size=world, device=device)
    record: dict[str, Any] = {
        "model": str(model_dir),
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": config.seed,
        "tasks": {},
    }
    for task, (prompts, num_rollouts) in tasks.items():
        groups, stats = collect_groups(
            engine,
            SampleRequest(
                prompts=prompts,
                num_rollouts=num_rollouts,
                seed=seed_for(config.seed, f"eval-{task}", 0),
            ),
            engine.tokenizer,
            partial(verify, config=config.data),
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        record["tasks"][task] = task_record(groups, config.algorithm.k)
        record["tasks"][task]["verifier_failures"] = stats.verifier_failures
    if rank == 0:
        _write(record, out)
    dist.barrier()
    return record


def _write(record: dict[str, Any], out: Path) -> None:
    from passk_fast.report.records import disk_errors, plain

    with disk_errors(out):
        out.write_text(json.dumps(plain(record), indent=1) + "\n")
    print(as_table(record), f"\nWrote {out}", flush=True)


def main() -> None:
    """`CONFIG MODEL SAMPLES OUT CODE_FOLDER [--key value ...]`, as the command line calls it."""
    from passk_fast.cluster.exit_code_file import write_exit_code
    from passk_fast.config.file import load_config
    from passk_fast.process import quiet, report_error
    from passk_fast.versions import check_versions

    quiet()
    path, model, samples, out, code_folder, *overrides = sys.argv[1:]
    rank, code = int(os.environ.get("RANK", "0")), ExitCode.DONE
    try:
        check_versions()
        config = load_config(path, overrides)
        run(config, Path(model), parse_samples(samples), Path(out))
    except BaseException as error:
        code = report_error(error, rank)
    if rank == 0 or code != ExitCode.DONE:
        write_exit_code(Path(code_folder), code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))  # gloo's destructors may hang once a peer has left


if __name__ == "__main__":
    main()
