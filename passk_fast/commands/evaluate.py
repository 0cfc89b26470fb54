"""`passk-fast eval`: held-out pass@k of a model, by task, as the papers measure it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from passk_fast.commands.arguments import take, whole
from passk_fast.commands.evaluation_options import check_overrides, given_fields
from passk_fast.commands.evaluation_record import (
    EvaluationRecord,
    Origin,
    as_table,
    task_record,
)
from passk_fast.commands.ranks import (
    code_of_ranks,
    leave_exit_code,
    num_processes,
    start_ranks,
)
from passk_fast.config import DataConfig, ParallelConfig, RunConfig
from passk_fast.data.types import Prompt, SampleRequest
from passk_fast.errors import ConfigError, DataError, ExitCode
from passk_fast.process import own_rank, run_rank
from passk_fast.versions import check_versions

ALL_PROMPTS = sys.maxsize
"""As eval.num_prompts."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the ranks are told: JSON values."""

    config: str
    """The TOML file."""
    overrides: list[str]
    model_dir: str
    """Hugging Face folder to sample from."""
    origin: Origin
    samples: str
    """As `parse_samples` takes it."""
    by: str | None
    """Column whose values are the parts to report, in place of the tasks' own."""
    out: str


def command(arguments: list[str]) -> ExitCode:
    """Find the model, start the ranks, and return the code that they left."""
    from passk_fast.commands.check_run import check_evaluation
    from passk_fast.config.layers import placed

    names = ("model", "samples", "out", "nproc", "by")
    taken = {name: take(arguments, f"--{name}") for name in names}
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(
            "usage: passk-fast eval CONFIG [--model FOLDER] [--samples TASK=N,...] [--by COLUMN]"
        )
    check_versions(warn=False)
    path, *overrides = arguments
    config = evaluation_config(path, overrides)
    samples = taken["samples"] or ""
    parse_samples(samples)
    processes = num_processes(config, taken["nproc"])
    out = Path(taken["out"] or Path(config.output_dir) / "eval.json").resolve()
    if not out.parent.is_dir():
        named = "command line: --out" if taken["out"] else "output_dir"
        raise ConfigError(f"{named}: {out.parent} is not a folder. --out FILE names the result.")
    with tempfile.TemporaryDirectory(prefix="passk-fast-eval-") as scratch:
        model, origin = _find_model(taken["model"] or config.output_dir, Path(scratch) / "model")
        with placed(path, overrides):
            check_evaluation(config, model, processes)
        request = Request(
            config=path,
            overrides=overrides,
            model_dir=str(model),
            origin=origin,
            samples=samples,
            by=taken["by"],
            out=str(out),
        )
        own = [scratch, json.dumps(asdict(request))]
        returned = start_ranks(processes, "passk_fast.commands.evaluate", own)
        message = "A rank ended without saying why (killed, or out of memory)."
        return code_of_ranks(returned, Path(scratch), message)


def evaluation_config(path: str, overrides: Sequence[str]) -> RunConfig:
    """The configuration as an evaluation obeys it.

    eval.num_prompts of the file is that of training: it counts only on the command line, else all
    held-out prompts are taken (ALL_PROMPTS).

    Raises:
        ConfigError: as `load_config` and `check_overrides`.
    """
    from passk_fast.config.file import load_config

    check_overrides(overrides)
    config = load_config(path, overrides)
    settings = config.eval
    if "eval.num_prompts" not in given_fields(overrides):
        settings = replace(settings, num_prompts=ALL_PROMPTS)
    return replace(
        config,
        eval=settings,
        parallel=ParallelConfig(),
        rollout=replace(config.rollout, dedicated_ranks=0),
        # Nothing is trained on what is sampled here.
        algorithm=replace(config.algorithm, routing_replay="off"),
    )


def _find_model(source: str, scratch: Path) -> tuple[Path, Origin]:
    """The Hugging Face folder to sample from, made in `scratch` where `source` is none."""
    from passk_fast.checkpoint.manifest import step_of
    from passk_fast.commands.convert import locate

    if (Path(source) / "config.json").is_file():
        return Path(source), Origin(model=source, checkpoint=None, step=None)
    run, checkpoint = locate(Path(source))
    _convert_in_subprocess(checkpoint, scratch)
    return scratch, Origin(model=str(run), checkpoint=str(checkpoint), step=step_of(checkpoint))


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
        if not task or not whole(count) or task in out:
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


def run(config: RunConfig, request: Request) -> ExitCode:
    """Sample and verify the held-out prompts; rank 0 writes the record. A collective."""
    from passk_fast.rollout.vllm.start import prepare_environment

    prepare_environment()
    import torch.distributed as dist
    from transformers import AutoTokenizer

    from passk_fast.model.tokenizer import encoder_of
    from passk_fast.process_group import pick_device, start_process_group
    from passk_fast.rollout.collect import collect_groups
    from passk_fast.rollout.make import make_engine
    from passk_fast.rollout.verifier_pool import VerifierPool
    from passk_fast.run.prompts import PromptEncoder, encode_all, fit
    from passk_fast.run.verifier_failures import VerifierFailures
    from passk_fast.seeding import seed_for
    from passk_fast.tasks import Verifier, test_prompts

    settings, held_out = config.eval, test_prompts(config.data)
    tokenizer = AutoTokenizer.from_pretrained(request.model_dir)
    encoder = PromptEncoder.of(config, Path(request.model_dir), encoder_of(tokenizer))
    taken, _ = fit(encode_all(held_out[: settings.num_prompts], encoder), config)
    if request.by is not None and not any(request.by in prompt.columns for prompt in taken):
        raise ConfigError(f"command line: --by: no held-out prompt has a column {request.by!r}.")
    tasks = by_task(taken, parse_samples(request.samples), settings.num_rollouts)
    part_of = partial(_part_of, config.data, request.by)
    device = pick_device(config.device)
    start_process_group(device, config.timeout_s)
    rank, world = dist.get_rank(), dist.get_world_size()
    engine = make_engine(config, request.model_dir, rank=rank, world_size=world, device=device)
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
                judge_truncated=config.rollout.truncated == "judge",
            )
            new = failures.check(stats, len(prompts) * num_rollouts)
            records[task] = task_record(groups, config.algorithm.k, part_of)
            records[task]["verifier_failures"] = stats.verifier_failures
            if new:
                records[task]["verifier_errors"] = new
    if rank == 0:
        _write(_record(config, request, len(held_out), records), Path(request.out))
    dist.barrier()
    return ExitCode.DONE


def _part_of(config: DataConfig, by: str | None, prompt: Prompt) -> str:
    from passk_fast.tasks import part_of

    if by is None:
        return part_of(prompt, config)
    value = prompt.columns.get(by, "")
    return value if isinstance(value, str) else json.dumps(value)


def _record(
    config: RunConfig, request: Request, held_out: int, tasks: dict[str, dict[str, object]]
) -> EvaluationRecord:
    return EvaluationRecord(
        **request.origin,
        config=request.config,
        temperature=config.eval.temperature,
        top_p=config.eval.top_p,
        seed=config.seed,
        truncated=config.rollout.truncated,
        held_out_prompts=held_out,
        tasks=tasks,
    )


def _write(record: EvaluationRecord, out: Path) -> None:
    from passk_fast.report.records import disk_errors, plain

    with disk_errors(out):
        out.write_text(json.dumps(plain(record), indent=1) + "\n")
    print(as_table(record), f"\nWrote {out}", flush=True)


def main() -> None:
    """One rank: `CODE_FOLDER REQUEST`, the second as JSON, as `command` calls it."""
    code_folder, text = sys.argv[1:]
    request = Request(**json.loads(text))

    def work() -> ExitCode:
        check_versions()
        return run(evaluation_config(request.config, request.overrides), request)

    rank = own_rank()
    run_rank(work, lambda code, said: leave_exit_code(Path(code_folder), rank, code))


if __name__ == "__main__":
    main()
