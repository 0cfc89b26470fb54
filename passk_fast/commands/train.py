"""`passk-fast train`: the command, and the entry of each of its ranks.

torchrun --nproc-per-node 2 -m passk_fast.commands.train configs/maze_cpu.toml --optim.lr 2e-4
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from passk_fast.cluster.exit_code_file import clear_exit_code
from passk_fast.cluster.ledger import Entry, note, read_ledger
from passk_fast.commands.arguments import config_file, take, take_start
from passk_fast.commands.ranks import (
    code_of_ranks,
    leave_exit_code,
    num_processes,
    start_ranks,
)
from passk_fast.commands.restarts import has_begun, max_restarts, restarted
from passk_fast.config import RunConfig
from passk_fast.errors import ExitCode, LostRankError
from passk_fast.process import own_rank, run_rank
from passk_fast.versions import check_versions

if TYPE_CHECKING:
    from passk_fast.run.start import Start

_UNSAID = "A rank ended without saying why (killed, or out of memory)."


def command(arguments: list[str]) -> ExitCode:
    """Check the configuration, start the ranks, and return the code that they left."""
    from passk_fast.commands.check_run import check_run
    from passk_fast.config.file import dump_toml, help_text, load_config
    from passk_fast.config.layers import placed
    from passk_fast.run.lock import is_owned, refuse_if_owned
    from passk_fast.run.prompts import check_prompts

    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text())
        return ExitCode.DONE
    check_versions(warn=False)
    dry_run = "--dry-run" in arguments
    arguments = [a for a in arguments if a != "--dry-run"]
    wanted = take(arguments, "--nproc")
    limit = max_restarts(take(arguments, "--max-restarts"))
    own = list(arguments)
    start = take_start(own)  # the ranks read it from the arguments too
    path, overrides = config_file(own, "train")
    config = load_config(path, overrides)
    processes = num_processes(config, wanted)
    with placed(path, overrides):
        check_run(config, processes)
    folder = Path(config.output_dir)
    refuse_if_owned(folder)
    if dry_run:
        text = dump_toml(config)
        (folder / "resolved.toml").write_text(text, encoding="utf-8")
        print(text)
        _check_start(config, start)
        check_prompts(config, print)
        return ExitCode.DONE

    # A restart goes on from what the first start has left, wherever that was to begin.
    again = own if config.checkpoint.resume else [*own, "--checkpoint.resume"]

    lines = len(read_ledger(folder))

    def start_all(_: int, signals: list[int]) -> int:
        clear_exit_code(folder)
        given = again if has_begun(folder, lines) else arguments
        returned = start_ranks(processes, "passk_fast.commands.train", given, signals)
        # Another run was faster: rank 0 has said so, and left no code there. (For a moment killed
        # ranks hold the lock as well.)
        if returned == ExitCode.BAD_CONFIG and is_owned(folder):
            return ExitCode.BAD_CONFIG
        try:
            return code_of_ranks(returned, folder, _UNSAID)
        except LostRankError as error:
            say(f"error: {error}")
            return error.exit_code

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    code = ExitCode(restarted(start_all, folder, limit, say))
    if code == ExitCode.LOST_RANK:
        say("Run the same command again to resume from the last checkpoint.")
    return code


def _check_start(config: RunConfig, start: Start) -> None:
    """Raise as a run would that finds no checkpoint to begin from, as far as names and sizes of
    files tell; digests are left to the run."""
    from passk_fast.checkpoint.manifest import verify_checkpoint
    from passk_fast.report.records import last_step
    from passk_fast.report.sinks import METRICS_FILE
    from passk_fast.run.start import checkpoint_store, find_start

    recorded = last_step(Path(config.output_dir) / METRICS_FILE)
    check = partial(verify_checkpoint, digests=False)
    find_start(checkpoint_store(config), start.under(config), recorded, check)


def run(config: RunConfig, start: Start) -> ExitCode:
    """Train as `config` says, in this torchrun process. A collective over all ranks."""
    from passk_fast.rollout.vllm.start import prepare_environment

    prepare_environment()
    import torch.distributed as dist

    from passk_fast.actor.mesh import make_mesh
    from passk_fast.process_group import pick_device, start_process_group

    device = pick_device(config.device)
    if config.rollout.dedicated_ranks:
        return _run_disaggregated(config, device, start)
    from passk_fast.run.build import build_run

    if not dist.is_initialized():
        start_process_group(device, config.timeout_s)
    mesh = make_mesh(config.parallel, device)
    return build_run(config, mesh, start=start).train()


def _run_disaggregated(config: RunConfig, device: str, start: Start) -> ExitCode:
    """One rank of either side."""
    from passk_fast.disaggregated.bridge import join

    if os.environ["RANK"] == "0":
        clear_exit_code(Path(config.output_dir))  # rollout ranks will look for this run's
    bridge = join(device, config.timeout_s, config.rollout.dedicated_ranks)
    if bridge.is_rollout:
        from passk_fast.disaggregated.rollout_server import serve
        from passk_fast.run.signals import StopFlag

        stop = StopFlag(config.stop_grace_s)
        stop.install()
        return serve(config, bridge, device, lambda: stop.raised)
    from passk_fast.actor.mesh import make_mesh
    from passk_fast.run.build import build_run

    return build_run(config, make_mesh(config.parallel, device), bridge, start=start).train()


def leave_note(folder: Path, rank: int, code: ExitCode, said: str) -> None:
    """Tell the ledger how a rank ended: rank 0 always does, another one after an error."""
    from passk_fast.report.records import last_step
    from passk_fast.report.sinks import METRICS_FILE

    failed = code not in (ExitCode.DONE, ExitCode.PREEMPTED)
    if rank == 0 or failed:
        entry: Entry = {"rank": rank, "code": int(code)}
        if said:
            entry["message"] = said
        entry["step"] = last_step(folder / METRICS_FILE)
        note(folder, "fault" if failed else "end", entry)


def main(arguments: list[str] | None = None) -> None:
    """One rank: parse `CONFIG --key value ...`, train, and leave."""
    from passk_fast.commands.check_run import check_run
    from passk_fast.config.file import load_config
    from passk_fast.config.layers import placed
    from passk_fast.run.lock import RunLock

    given, rank = list(sys.argv[1:] if arguments is None else arguments), own_rank()
    folder: Path | None = None
    lock: RunLock | None = None

    def work() -> ExitCode:
        nonlocal folder, lock
        start = take_start(given)
        path, overrides = config_file(given, "train")
        check_versions()
        config = load_config(path, overrides)
        with placed(path, overrides):
            check_run(config, int(os.environ.get("WORLD_SIZE", "1")))
        if rank == 0:
            lock = RunLock.take(Path(config.output_dir))
        folder = Path(config.output_dir)
        return run(config, start)

    def before_exit(code: ExitCode, said: str) -> None:
        if folder is not None:
            leave_exit_code(folder, rank, code)
            leave_note(folder, rank, code, said)
        if lock is not None:
            lock.release()

    run_rank(work, before_exit)


if __name__ == "__main__":
    main()
