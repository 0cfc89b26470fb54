"""`passk-fast plan`: a run on paper."""

from __future__ import annotations

import json
from pathlib import Path

from passk_fast.commands.arguments import positive, take
from passk_fast.errors import ConfigError, ExitCode


def command(arguments: list[str]) -> ExitCode:
    """Print the plan; with --json write it too."""
    from passk_fast.config.file import load_config
    from passk_fast.plan.fit import Model
    from passk_fast.plan.hardware import gpu_of
    from passk_fast.plan.plan import make_plan
    from passk_fast.plan.report import as_json, as_text
    from passk_fast.plan.worker import Prober

    gpus, out = take(arguments, "--gpus"), take(arguments, "--json")
    gpu = gpu_of(take(arguments, "--gpu") or "h100")
    if not arguments or arguments[0].startswith("-") or gpus is None:
        raise ConfigError("usage: passk-fast plan CONFIG --gpus N [--gpu h100|h200|b200]")
    count = positive(gpus, "--gpus")
    config = load_config(arguments[0], arguments[1:])
    model = Model.find(config, Path(arguments[0]))
    with Prober() as prober:
        plan = make_plan(config, model, gpu, count, prober)
    print(as_text(plan), end="")
    if out:
        Path(out).write_text(json.dumps(as_json(plan), indent=1) + "\n")
    return ExitCode.DONE
