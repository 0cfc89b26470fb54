"""The command line of `passk-fast`: train, eval, plan, bench and the rest of `_USAGE`."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from passk_fast import __version__
from passk_fast.config import RunConfig, require
from passk_fast.errors import ConfigError, ExitCode, LostRankError, PasskError
from passk_fast.versions import check_versions

_MAX_CPU_RANKS = 4
_USAGE = f"""\
passk-fast {__version__}: train language models with Pass@k advantages

  passk-fast train CONFIG [--nproc N] [--dry-run] [--key value ...]
      Train on this machine. CONFIG is a TOML file; `--optim.lr 2e-4` overrides a field.
      `passk-fast train --help` lists all of them.
  passk-fast eval CONFIG [--model FOLDER] [--samples TASK=N,...] [--out FILE] [--nproc N]
                  [--key value ...]
      Pass@k on all held-out prompts for every power of two, with standard errors; temperature and
      top_p are eval.temperature (1.0) and eval.top_p (0.95). The model is the newest checkpoint of
      the run folder, or FOLDER: a Hugging Face folder, a run or a checkpoint. --samples sets how
      many responses a prompt of a task gets (else eval.num_rollouts).
  passk-fast plan CONFIG --gpus N [--gpu h100|h200|b200] [--json FILE] [--key value ...]
      A run on paper, without a GPU: memory of every rank, time of a step, tokens/s. Refuses what
      does not fit and names the smallest change that does. An estimate (docs/plan.md).
  passk-fast bench CONFIG [--out FILE] [--nproc N] [--key value ...]
      Where the time and the tokens of a step go, on random prompts with lengths and verdicts set by
      --bench.accuracy, --bench.response-mean, ...; no data set. --bench.no-decode: without vLLM.
  passk-fast curves [ESTIMATOR[:K[:OPTION=VALUE,...]] ...] [--num-rollouts N] [--out STEM]
      Draw advantage and eta against the number of correct responses: STEM.csv, .png, .svg.
  passk-fast convert RUN OUT
      Write a run's newest checkpoint (or the checkpoint folder RUN) as a Hugging Face folder.
  passk-fast preflight [--nproc N] [--storage FOLDER] [--max-skew-s S] ...
      Check GPUs, driver, links, clocks, shared storage, versions and limits on all ranks; one
      table, and a line for each thing that is wrong. Over several hosts: `launch ... preflight`.
  passk-fast launch --nodes N --nproc N --rendezvous HOST:PORT train|bench|preflight ...
      One host's part of a run over several; the same command on each of them (docs/cluster.md).
"""


def _take(arguments: list[str], name: str) -> str | None:
    """Remove `name VALUE` or `name=VALUE` from the arguments and return the value."""
    for i, argument in enumerate(arguments):
        if argument == name:
            if i + 1 == len(arguments):
                raise ConfigError(f"command line: {name} needs a value.")
            del arguments[i]
            return arguments.pop(i)
        if argument.startswith(name + "="):
            return arguments.pop(i).partition("=")[2]
    return None


def _num_gpus() -> int:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return listed.stdout.count("GPU ") if listed.returncode == 0 else 0


def _num_processes(config: RunConfig, wanted: str | None) -> int:
    """Processes to start: as asked, else one a GPU, else one a CPU core.

    On a CPU two ranks of one thread beat one of two: half of decoding a small model is Python.
    Each has an engine's memory, hence at most _MAX_CPU_RANKS.
    """
    if wanted is not None:
        if not wanted.isdigit() or int(wanted) < 1:
            raise ConfigError(f"command line: --nproc must be a positive number, got {wanted!r}.")
        return int(wanted)
    parallel, apart = config.parallel, config.rollout.dedicated_ranks
    product = parallel.tensor * parallel.pipeline * parallel.context
    gpus = 0 if config.device == "cpu" else _num_gpus()
    if gpus:
        return max(product, (gpus - apart) // product * product) + apart
    smallest = product if apart else math.lcm(product, config.rollout.tensor)
    most = min(len(os.sched_getaffinity(0)), _MAX_CPU_RANKS) - apart
    return max(smallest, most // smallest * smallest) + apart


def _train(arguments: list[str]) -> ExitCode:
    from passk_fast.cluster.exit_code_file import clear_exit_code, read_exit_code
    from passk_fast.commands.check_run import check_run
    from passk_fast.config.file import dump_toml, help_text, load_config

    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return ExitCode.DONE
    check_versions(warn=False)
    dry_run = "--dry-run" in arguments
    arguments = [a for a in arguments if a != "--dry-run"]
    wanted = _take(arguments, "--nproc")
    config = load_config(arguments[0], arguments[1:])
    processes = _num_processes(config, wanted)
    check_run(config, processes)
    if dry_run:
        text = dump_toml(config)
        (Path(config.output_dir) / "resolved.toml").write_text(text)
        print(text, end="")
        return ExitCode.DONE
    clear_exit_code(Path(config.output_dir))
    returned = _launch(processes, "passk_fast.commands.train", arguments)
    code = read_exit_code(Path(config.output_dir))
    if returned != 0 and code in (None, ExitCode.DONE):
        raise LostRankError(
            "A rank ended without saying why (killed, or out of memory). Run the same command "
            "again to resume from the last checkpoint."
        )
    return ExitCode.DONE if code is None else code


def _launch(processes: int, module: str, arguments: list[str]) -> int:
    """Run torchrun's launcher and hand it the signals that this process gets."""
    cores = len(os.sched_getaffinity(0))
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores // processes)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "PYTHONWARNINGS": "ignore",
    } | dict(os.environ)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        module,
        *arguments,
    ]
    # Workers report for themselves; torchrun's own account of a failure is noise on top.
    environment.setdefault("TORCHELASTIC_ERROR_FILE", os.devnull)
    environment.setdefault("LOGLEVEL", "CRITICAL")
    with subprocess.Popen(command, env=environment, start_new_session=True) as child:

        def forward(number: int, frame: object) -> None:
            child.send_signal(number)

        previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            return child.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _eval(arguments: list[str]) -> ExitCode:
    from passk_fast.cluster.exit_code_file import read_exit_code
    from passk_fast.commands.check_run import check_evaluation
    from passk_fast.commands.evaluate import parse_samples
    from passk_fast.config.file import load_config

    taken = {name: _take(arguments, f"--{name}") for name in ("model", "samples", "out", "nproc")}
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("usage: passk-fast eval CONFIG [--model FOLDER] [--samples TASK=N,...]")
    check_versions(warn=False)
    config = load_config(arguments[0], arguments[1:])
    config = replace(
        config, rollout=replace(config.rollout, dedicated_ranks=0)
    )  # every rank samples
    samples = taken["samples"] or ""
    parse_samples(samples)
    processes = _num_processes(config, taken["nproc"])
    out = Path(taken["out"] or Path(config.output_dir) / "eval.json").resolve()
    if not out.parent.is_dir():
        raise ConfigError(f"command line: --out: {out.parent} is not a folder.")
    with tempfile.TemporaryDirectory(prefix="passk-fast-eval-") as scratch:
        source = Path(taken["model"] or config.output_dir)
        model = source if (source / "config.json").is_file() else Path(scratch) / "model"
        if model != source:
            _convert_apart(source, model)
        check_evaluation(config, model, processes)
        own = [arguments[0], str(model), samples, str(out), scratch, *arguments[1:]]
        returned = _launch(processes, "passk_fast.commands.evaluate", own)
        code = read_exit_code(Path(scratch))
    if returned != 0 and code in (None, ExitCode.DONE):
        raise LostRankError("A rank ended without saying why (killed, or out of memory).")
    return ExitCode.DONE if code is None else code


def _convert_apart(source: Path, out: Path) -> None:
    """`convert` in a process of its own: it makes a process group, which this one must not have."""
    command = [sys.executable, "-m", "passk_fast", "convert", str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise ConfigError(lines[-1].removeprefix("error: ") if lines else done.stderr[-2000:])


def _curves(arguments: list[str]) -> ExitCode:
    from passk_fast.report.estimator_curves import FIGURE_9, write_curves

    count = _take(arguments, "--num-rollouts") or "32"
    out = Path(_take(arguments, "--out") or "curves")
    if not count.isdigit():
        raise ConfigError(f"command line: --num-rollouts must be a whole number, got {count!r}.")
    stray = next((a for a in arguments if a.startswith("-")), None)
    if stray:
        raise ConfigError(f"command line: passk-fast curves has no option {stray!r}.")
    curves, paths = write_curves(arguments or FIGURE_9, int(count), out)
    for curve in curves:
        print(curve.summary())
    print(f"Wrote {', '.join(map(str, paths))}")
    return ExitCode.DONE


def _convert(arguments: list[str]) -> ExitCode:
    if len(arguments) != 2:
        raise ConfigError("usage: passk-fast convert RUN_OR_CHECKPOINT OUT")
    from passk_fast.process import quiet

    quiet()
    from passk_fast.commands.convert import convert

    print(f"Wrote {convert(arguments[0], arguments[1])}")
    return ExitCode.DONE


def _plan(arguments: list[str]) -> ExitCode:
    import json

    from passk_fast.config.file import load_config
    from passk_fast.plan.fit import Model
    from passk_fast.plan.hardware import gpu_of
    from passk_fast.plan.plan import make_plan
    from passk_fast.plan.report import as_json, as_text
    from passk_fast.plan.worker import Prober

    gpus, out = _take(arguments, "--gpus"), _take(arguments, "--json")
    gpu = gpu_of(_take(arguments, "--gpu") or "h100")
    if not arguments or arguments[0].startswith("-") or gpus is None:
        raise ConfigError("usage: passk-fast plan CONFIG --gpus N [--gpu h100|h200|b200]")
    if not gpus.isdigit() or int(gpus) < 1:
        raise ConfigError(f"command line: --gpus must be a positive number, got {gpus!r}.")
    config = load_config(arguments[0], arguments[1:])
    model = Model.find(config, Path(arguments[0]))
    with Prober() as prober:
        plan = make_plan(config, model, gpu, int(gpus), prober)
    print(as_text(plan), end="")
    if out:
        Path(out).write_text(json.dumps(as_json(plan), indent=1) + "\n")
    return ExitCode.DONE


def _bench(arguments: list[str]) -> ExitCode:
    from passk_fast.commands.check_run import check_run
    from passk_fast.config.file import load_config

    out, wanted = _take(arguments, "--out"), _take(arguments, "--nproc")
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("usage: passk-fast bench CONFIG [--out FILE] [--nproc N] [--key value]")
    check_versions(warn=False)
    config = load_config(arguments[0], arguments[1:])
    require(
        not config.rollout.dedicated_ranks,
        "passk-fast bench times the phases of ranks that both train and sample, one after the "
        "other: set rollout.dedicated_ranks = 0.",
    )
    processes = _num_processes(config, wanted)
    if config.bench.random_weights:
        config.parallel.data(processes)
    else:
        with tempfile.TemporaryDirectory() as folder:
            check_run(replace(config, output_dir=str(Path(folder) / "run")), processes)
    if out:
        os.environ["PASSK_BENCH_OUT"] = str(Path(out).resolve())
    returned = _launch(processes, "passk_fast.commands.bench", arguments)
    return ExitCode.DONE if returned == 0 else ExitCode.LOST_RANK


def _preflight(arguments: list[str]) -> ExitCode:
    from passk_fast.cluster.report import parse

    wanted = _take(arguments, "--nproc")
    options, _ = parse(arguments)  # --help and mistakes before any process starts
    if "RANK" in os.environ:  # torchrun started this process
        from passk_fast.cluster.check import main as check_machines

        check_machines(arguments)
    default = max(1, 0 if options.device == "cpu" else _num_gpus())
    if wanted is not None and (not wanted.isdigit() or int(wanted) < 1):
        raise ConfigError(f"command line: --nproc must be a positive number, got {wanted!r}.")
    processes = default if wanted is None else int(wanted)
    returned = _launch(processes, "passk_fast.cluster.check", arguments)
    return ExitCode.DONE if returned == 0 else ExitCode.BAD_CONFIG


def _launch_on_this_host(arguments: list[str]) -> ExitCode:
    from passk_fast.cluster.launch import launch

    code = launch(arguments)
    sys.stdout.flush()
    sys.exit(code)


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; a user's error is one paragraph on stderr."""
    commands: dict[str, Callable[[list[str]], ExitCode]] = {
        "train": _train,
        "eval": _eval,
        "plan": _plan,
        "bench": _bench,
        "curves": _curves,
        "convert": _convert,
        "preflight": _preflight,
        "launch": _launch_on_this_host,
    }
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        sys.exit(0)
    try:
        if arguments[0] not in commands:
            raise ConfigError(f"unknown command {arguments[0]!r}; known: {', '.join(commands)}.")
        code = commands[arguments[0]](arguments[1:])
    except PasskError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    sys.stdout.flush()
    sys.exit(int(code))
