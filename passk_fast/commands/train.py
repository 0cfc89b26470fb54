"""torchrun's entry: builds the parts, runs the loop, exits with a meaning.

torchrun --nproc-per-node 2 -m passk_fast.commands.train configs/maze_cpu.toml --optim.lr 2e-4
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from passk_fast.config import RunConfig
from passk_fast.errors import ExitCode, PasskError
from passk_fast.process import quiet, report_error
from passk_fast.versions import check_versions


def run(config: RunConfig) -> ExitCode:
    """Train as `config` says, in this torchrun process. A collective over all ranks."""
    from passk_fast.rollout.vllm.start import prepare_environment

    prepare_environment()
    import torch.distributed as dist

    from passk_fast.actor.mesh import make_mesh
    from passk_fast.process_group import pick_device, start_process_group

    device = pick_device(config.device)
    if config.rollout.dedicated_ranks:
        return _run_apart(config, device)
    from passk_fast.run.build import build_run

    if not dist.is_initialized():
        start_process_group(device, config.timeout_s)
    mesh = make_mesh(config.parallel, device)
    return build_run(config, mesh).train()


def _run_apart(config: RunConfig, device: str) -> ExitCode:
    """One rank of either side of the disaggregated layout."""
    from passk_fast.cluster.exit_code_file import clear_exit_code
    from passk_fast.disaggregated.bridge import join

    if os.environ["RANK"] == "0":
        clear_exit_code(Path(config.output_dir))  # rollout ranks will look for this run's
    bridge = join(device, config.timeout_s, config.rollout.dedicated_ranks)
    if bridge.is_rollout:
        from passk_fast.disaggregated.rollout_server import serve
        from passk_fast.run.signals import StopFlag

        stop = StopFlag(config.stop_grace_s)
        stop.install()
        return serve(config, bridge, device, stop)
    from passk_fast.actor.mesh import make_mesh
    from passk_fast.run.build import build_run

    return build_run(config, make_mesh(config.parallel, device), bridge).train()


def main(arguments: list[str] | None = None) -> None:
    """Parse `CONFIG --key value ...`, train, and leave without waiting for other threads."""
    from passk_fast.cluster.exit_code_file import write_exit_code
    from passk_fast.commands.check_run import check_run
    from passk_fast.config.file import load_config

    quiet()
    arguments = sys.argv[1:] if arguments is None else arguments
    rank = int(os.environ.get("RANK", "0"))
    output_dir: Path | None = None
    try:
        if not arguments:
            raise PasskError(
                "usage: torchrun ... -m passk_fast.commands.train CONFIG [--key value ...]"
            )
        check_versions()
        config = load_config(arguments[0], arguments[1:])
        check_run(config, int(os.environ.get("WORLD_SIZE", "1")))
        output_dir = Path(config.output_dir)
        code = run(config)
    except BaseException as error:
        code = report_error(error, rank)
    if output_dir is not None and (rank == 0 or code not in (ExitCode.DONE, ExitCode.PREEMPTED)):
        write_exit_code(output_dir, code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))  # gloo's destructors may hang once a peer has left


if __name__ == "__main__":
    main()
