"""The probe in a process of its own: `python -m passk_fast.plan.worker`, JSON lines in and out.

A process has one default process group, and the probe's fake one must not replace the caller's.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from passk_fast.config import ModelConfig, OptimConfig, ParallelConfig, RunConfig
from passk_fast.errors import ConfigError
from passk_fast.model.shape import ModelShape
from passk_fast.plan.facts import RECOMPUTE, Costs, Facts, StageBytes, with_recompute


class Prober:
    """Answers `facts` from one worker process; a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None
        self._known: dict[str, Facts] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
        if self._errors is not None:
            self._errors.close()

    def facts(self, config: RunConfig, folder: Path, gpus: int, *, logits: bool) -> Facts:
        """What Megatron allocates and computes for `folder`/config.json on this mesh.

        `logits`: the loss is computed from logits. ConfigError when Megatron refuses the mesh.
        """
        request = {
            "folder": str(folder),
            "gpus": gpus,
            "parallel": {**asdict(config.parallel), "recompute": "none"},
            "optim": asdict(config.optim),
            "dtype": config.model.dtype,
            "tokens": config.micro_batch_tokens,
            "logits": logits,
        }
        line = json.dumps(request, sort_keys=True)
        if line not in self._known:
            answer = self._ask(line)
            if "refused" in answer:
                raise ConfigError(f"Megatron refuses this mesh: {answer['refused']}")
            self._known[line] = Facts.from_json(answer["facts"])
        return self._known[line]

    def _ask(self, line: str) -> dict[str, str]:
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            assert self._errors is not None
            self._errors.seek(0)
            raise RuntimeError("the plan's worker ended:\n" + self._errors.read()[-4000:])
        return dict(json.loads(answer))

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in __exit__
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "passk_fast.plan.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )


def _answer(request: Mapping[str, Any]) -> Facts:
    from passk_fast.plan import probe

    gc.freeze()  # the probe collects garbage often: not among all that was imported
    shape = ModelShape.read(request["folder"])
    config = replace(
        RunConfig(),
        model=ModelConfig(dtype=request["dtype"]),
        parallel=ParallelConfig(**request["parallel"]),
        optim=OptimConfig(**request["optim"]),
    )
    gpus, tokens = request["gpus"], request["tokens"]
    stages = config.parallel.pipeline
    kinds = sorted({0, min(1, stages - 1), stages - 1})
    held: list[StageBytes] = []
    costs: dict[str, dict[str, Costs]] = {}
    head = 0
    for stage in kinds:
        with probe.fake_world(config, gpus, stage * (gpus // stages)) as mesh:
            held.append(probe.stage_bytes(shape, config, mesh))
            if stage != kinds[0]:
                continue
            for mode in RECOMPUTE:
                again = with_recompute(config, mode)
                costs[mode] = probe.layer_costs(shape, again, mesh, tokens)
            if request["logits"]:
                head = probe.logits_head(shape, config, mesh, tokens)
    return Facts(stages=tuple(held), costs=costs, logits_head=head)


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        try:
            answer = {"facts": _answer(json.loads(line)).to_json()}
        except (AssertionError, ValueError, ConfigError) as error:
            if os.environ.get("PASSK_PLAN_TRACE"):
                raise
            answer = {"refused": str(error) or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
