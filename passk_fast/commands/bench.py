"""`passk-fast bench`: a few steps of a configuration, and where their time and tokens went.

torchrun --nproc-per-node 2 -m passk_fast.commands.bench CONFIG --bench.accuracy 0.7
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from passk_fast.commands.arguments import config_file, take
from passk_fast.commands.ranks import num_processes, start_ranks
from passk_fast.config import RunConfig, require
from passk_fast.errors import ExitCode
from passk_fast.process import own_rank, run_rank
from passk_fast.versions import check_versions

_OUT = "PASSK_BENCH_OUT"
"""Environment variable: the file that rank 0 writes the result to, as JSON."""


def command(arguments: list[str]) -> ExitCode:
    """Check the configuration and start the ranks."""
    from passk_fast.commands.check_run import check_run
    from passk_fast.config.file import load_config
    from passk_fast.config.layers import placed

    out, wanted = take(arguments, "--out"), take(arguments, "--nproc")
    path, overrides = config_file(arguments, "bench")
    check_versions(warn=False)
    config = load_config(path, overrides)
    require(
        not config.rollout.dedicated_ranks,
        "passk-fast bench times the phases of ranks that both train and sample, one after the "
        "other: set rollout.dedicated_ranks = 0.",
    )
    processes = num_processes(config, wanted)
    if config.bench.random_weights:
        config.parallel.data(processes)
    else:
        with tempfile.TemporaryDirectory() as folder, placed(path, overrides):
            check_run(replace(config, output_dir=str(Path(folder) / "run")), processes)
    if out:
        os.environ[_OUT] = str(Path(out).resolve())
    returned = start_ranks(processes, "passk_fast.commands.bench", arguments)
    return ExitCode(returned) if returned in set(ExitCode) else ExitCode.LOST_RANK


def run(config: RunConfig) -> ExitCode:
    """Measure in this torchrun process; rank 0 prints the result. A collective over all ranks."""
    if config.bench.decode:
        from passk_fast.rollout.vllm.start import prepare_environment

        prepare_environment()

    from passk_fast.actor.mesh import make_mesh
    from passk_fast.commands.bench_steps import as_text, measure
    from passk_fast.process_group import from_rank_0, pick_device, start_process_group
    from passk_fast.report.records import plain

    device, rank = pick_device(config.device), own_rank()
    start_process_group(device, config.timeout_s)
    folder = from_rank_0(lambda: tempfile.mkdtemp(prefix="passk_bench_"))
    config = replace(config, output_dir=folder)
    result = measure(config, make_mesh(config.parallel, device))
    if rank == 0:
        shutil.rmtree(config.output_dir)
        print(as_text(result), flush=True)
        if out := os.environ.get(_OUT):
            Path(out).write_text(json.dumps(plain(result), indent=1, allow_nan=False) + "\n")
    return ExitCode.DONE


def main(arguments: list[str] | None = None) -> None:
    """One rank: `CONFIG [--key value ...]`."""
    from passk_fast.config.file import load_config

    given = sys.argv[1:] if arguments is None else arguments

    def work() -> ExitCode:
        check_versions()
        return run(load_config(given[0], given[1:]))

    run_rank(work)


if __name__ == "__main__":
    main()
