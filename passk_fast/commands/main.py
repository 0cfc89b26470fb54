"""The command line of `passk-fast`: finds the command and reports a user's error."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from passk_fast import __version__
from passk_fast.errors import ConfigError, ExitCode, PasskError, shown

COMMANDS = {
    "train": "passk_fast.commands.train",
    "eval": "passk_fast.commands.evaluate",
    "plan": "passk_fast.commands.plan",
    "bench": "passk_fast.commands.bench",
    "curves": "passk_fast.commands.curves",
    "convert": "passk_fast.commands.convert",
    "import-gguf": "passk_fast.commands.import_gguf",
    "data": "passk_fast.commands.data",
    "check-reward": "passk_fast.commands.check_reward",
    "preflight": "passk_fast.commands.preflight",
    "launch": "passk_fast.commands.launch",
    "doctor": "passk_fast.commands.doctor",
}
"""Command -> module with its `command(arguments)`; only the module that is asked for is loaded."""
_USAGE = f"""\
passk-fast {__version__}: train language models with Pass@k advantages

  passk-fast train CONFIG [--nproc N] [--dry-run] [--resume STEP | --fresh] [--max-restarts N]
                   [--key value ...]
      Train on this machine. CONFIG is a TOML file; `--optim.lr 2e-4` overrides a field.
      `passk-fast train --help` lists all of them. A run goes on from its newest checkpoint, with
      --resume from that of STEP, and --fresh moves its records aside and starts at step 0. After a
      lost rank it goes on by itself, --max-restarts (3) times in a row at most.
  passk-fast eval CONFIG [--model FOLDER] [--samples TASK=N,...] [--out FILE] [--nproc N]
                  [--by COLUMN] [--key value ...]
      Pass@k on all held-out prompts for every power of two, with standard errors, by task and by
      part of a task (the size of mazes, the category of puzzles, or the values of a COLUMN). The
      model is the newest checkpoint of the run folder, or FOLDER: a Hugging Face folder, a run or a
      checkpoint. --samples sets the responses per prompt of a task (else eval.num_rollouts).
      Options that would change nothing are refused (docs/evaluation.md).
  passk-fast plan CONFIG --gpus N [--gpu h100|h200|b200] [--json FILE] [--key value ...]
      A run on paper, without a GPU: memory of every rank, time of a step, tokens/s. Refuses what
      does not fit and names the smallest change that does. An estimate (docs/plan.md).
  passk-fast bench CONFIG [--out FILE] [--nproc N] [--key value ...]
      Where the time and the tokens of a step go, on random prompts with lengths and rewards set by
      --bench.accuracy, --bench.response-mean, ...; no data set. --bench.no-decode: without vLLM.
  passk-fast curves [ESTIMATOR[:K[:OPTION=VALUE,...]] ...] [--num-rollouts N] [--out STEM]
      Plot advantage and eta against the number of correct responses: STEM.csv, .png, .svg.
  passk-fast convert RUN OUT [--dtype float32|bfloat16|float16]
      Write a run's newest checkpoint (or the checkpoint folder RUN) as a Hugging Face folder with a
      model card; --dtype is that of the weights (else the run's).
  passk-fast import-gguf FILE OUT [--dtype float32|bfloat16|float16]
      Write a GGUF file (llama.cpp) as a Hugging Face folder, for model.path (docs/real_model.md).
  passk-fast data SET FOLDER [--key value ...] [--train FILE,...] [--test FILE,...]
      The prompts of a published set-up (maze, maxrl_maze, enigmata, maths, math) as JSONL files for
      data.train and data.test.
  passk-fast check-reward FILE:FUNCTION [--data ROWS.jsonl]
      Try a reward function of your own on ordinary and hostile outputs: what raised, was no reward,
      took long, was executed, or was rewarded wrongly (docs/rewards.md).
  passk-fast preflight [--nproc N] [--storage FOLDER] [--max-skew-s S] ...
      Check GPUs, driver, links, clocks, shared storage, versions and limits on all ranks; one
      table, and a line for each thing that is wrong. Over several hosts: `launch ... preflight`.
  passk-fast doctor RUN
      What happened to a run and what to do: starts, faults, restarts, whether its checkpoints are
      intact, how it ended. Changes nothing.
  passk-fast launch --nodes N --nproc N --rendezvous HOST:PORT train|bench|preflight ...
      One host's part of a run over several; the same command on each of them (docs/cluster.md).
"""


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; a user's error is one paragraph on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        sys.exit(0)
    try:
        code = _find(arguments[0])(arguments[1:])
    except PasskError as error:
        print(f"error: {error}", file=sys.stderr)
        code = int(error.exit_code)
    except OSError as error:  # a path that cannot be: too long, a file where a folder should be
        if error.filename is None:
            raise
        print(f"error: {shown(str(error.filename))}: {error.strerror}.", file=sys.stderr)
        code = int(ExitCode.BAD_CONFIG)
    sys.stdout.flush()
    sys.exit(int(code))


def _find(name: str) -> Callable[[list[str]], int]:
    if name not in COMMANDS:
        raise ConfigError(f"unknown command {name!r}; known: {', '.join(COMMANDS)}.")
    command: Callable[[list[str]], int] = importlib.import_module(COMMANDS[name]).command
    return command
