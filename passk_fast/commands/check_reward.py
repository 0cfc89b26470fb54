"""`passk-fast check-reward FILE:FUNCTION`: a reward function against hostile and ordinary outputs.

Each output is judged by the verifier process of a run. The table says what raised, what was no
reward, what took long, what was executed, and which hostile outputs earned something.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from passk_fast.commands.arguments import take
from passk_fast.config import DataConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError, ExitCode
from passk_fast.rollout.verdict import VerifierError
from passk_fast.rollout.verifier_pool import VerifierPool
from passk_fast.tasks.hostile import HostileOutput, hostile_outputs
from passk_fast.tasks.registry import Verifier
from passk_fast.tasks.reward_function import NO_REWARD, RewardFunction
from passk_fast.tasks.user_code import load_object

TIMEOUT_S = 5.0
_ROWS = 3
_SHOWN = 12
_SAMPLES = (
    Prompt(id="sample-0", text="What is 20 + 22?", answer="42", task="check"),
    Prompt(id="sample-1", text="Name the capital of France.", answer="Paris", task="check"),
)
_USAGE = """\
passk-fast check-reward FILE:FUNCTION [--data ROWS.jsonl]

  FILE is a Python file or the dotted name of a module; FUNCTION takes (prompt, response, answer,
  **columns), or lists of them, and returns rewards in [0, 1]. ROWS.jsonl has `prompt`, `answer` and
  the columns that the function needs; its first rows are used.
  Exit code: 0 if every output got a reward and nothing was executed, else 10."""


@dataclass
class _Findings:
    """Outputs by what went wrong with them."""

    judged: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    failed: dict[str, list[str]] = field(default_factory=dict)
    """By the text of the exception."""
    not_rewards: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    rewarded: list[str] = field(default_factory=list)
    right_rewarded: int = 0
    right: int = 0


def command(arguments: list[str]) -> ExitCode:
    """Print the table; returns DONE or BAD_DATA."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(_USAGE)
        return ExitCode.DONE
    data = take(arguments, "--data")
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ConfigError("usage: passk-fast check-reward FILE:FUNCTION [--data ROWS.jsonl]")
    place = arguments[0]
    prompts: Sequence[Prompt] = _SAMPLES if data is None else _rows(Path(data))
    task = _task(place)
    for prompt in prompts:
        try:
            task.check_prompt(prompt)
        except ValueError as error:
            raise DataError(f"{prompt.id}: {error}; give rows with --data.") from None
    with tempfile.TemporaryDirectory() as folder:
        findings = _check(place, prompts, Path(folder) / "executed")
    print(_table(place, findings))
    bad = findings.failed or findings.not_rewards or findings.late or findings.executed
    return ExitCode.BAD_DATA if bad else ExitCode.DONE


def _task(place: str) -> RewardFunction:
    found = load_object(place)
    if not callable(found):
        raise ConfigError(f"{place!r} is no function.")
    return RewardFunction(place, found)


def _rows(path: Path) -> list[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None
    prompts: list[Prompt] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or len(prompts) == _ROWS:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}.") from None
        if not isinstance(row, dict) or "prompt" not in row or "answer" not in row:
            raise DataError(f"{path}:{number}: must be an object with prompt and answer.")
        columns = {k: v for k, v in row.items() if k not in ("id", "prompt", "answer", "task")}
        prompts.append(
            Prompt(
                id=f"{path}:{number}",
                text=str(row["prompt"]),
                answer=str(row["answer"]),
                task="check",
                columns=columns,
            )
        )
    if not prompts:
        raise DataError(f"{path}: it holds no rows.")
    return prompts


def _ordinary(prompt: Prompt) -> Iterator[HostileOutput]:
    """Right answers in the usual forms."""
    for form in ("{}", "<answer>{}</answer>", "\\boxed{{{}}}", "The answer is {}."):
        yield HostileOutput("right", form.format(prompt.answer))


def _check(place: str, prompts: Sequence[Prompt], marker: Path) -> _Findings:
    findings = _Findings()
    verifier = Verifier(DataConfig(train="rows", verifier=place), always_process=True)
    with VerifierPool(verifier, processes=1, timeout_s=TIMEOUT_S) as pool:
        with suppress(VerifierError):  # starting and importing is not the first output's time
            pool.submit(prompts[0], [""]).result()
        for prompt in (replace(prompt, task=place) for prompt in prompts):
            for output in (*_ordinary(prompt), *hostile_outputs(marker)):
                start = time.perf_counter()
                try:
                    _note(findings, output, pool.submit(prompt, [output.text]).result()[0])
                except VerifierError as error:
                    _note_failure(findings, output, error)
                taken = time.perf_counter() - start
                findings.judged += 1
                findings.seconds += taken
                findings.slowest = max(findings.slowest, taken)
                if marker.exists():
                    findings.executed.append(_label(output))
                    marker.unlink()
    return findings


def _note_failure(findings: _Findings, output: HostileOutput, error: VerifierError) -> None:
    if error.kind in ("TimeoutError", "ProcessEnded") and not error.where:
        findings.late.append(_label(output))
    elif error.kind == "ValueError" and NO_REWARD in error.text:
        findings.not_rewards.append(f"{_label(output)} gave {error.text.partition(' gave ')[2]}")
    else:
        findings.failed.setdefault(f"{error.words()[:80]}", []).append(_label(output))


def _note(findings: _Findings, output: HostileOutput, value: float) -> None:
    if output.kind == "right":
        findings.right += 1
        findings.right_rewarded += value > 0
    elif value > 0:
        findings.rewarded.append(f"{_label(output)} earned {value:g}")


def _label(output: HostileOutput) -> str:
    text = repr(output.text)
    return f"[{output.kind}] {text if len(text) <= 60 else text[:57] + '...'}"


def _table(place: str, findings: _Findings) -> str:
    failed = [f"{kind}: {label}" for kind, some in findings.failed.items() for label in some[:3]]
    rows = [
        ("raised an exception", sum(map(len, findings.failed.values())), failed),
        ("gave no number in [0, 1]", len(findings.not_rewards), findings.not_rewards),
        (f"took over {TIMEOUT_S:g} s, or left", len(findings.late), findings.late),
        ("EXECUTED the output", len(findings.executed), findings.executed),
        ("hostile, but rewarded", len(findings.rewarded), findings.rewarded),
    ]
    mean_ms = findings.seconds / max(1, findings.judged) * 1e3
    lines = [
        f"{place}: {findings.judged} outputs, {mean_ms:.1f} ms each, the slowest "
        f"{findings.slowest:.2f} s",
        f"  {'right answers rewarded':28s}{findings.right_rewarded} of {findings.right}",
    ]
    for name, count, examples in rows:
        lines.append(f"  {name:28s}{count}")
        lines += [f"      {example}" for example in examples[:_SHOWN]]
        if count > len(examples[:_SHOWN]):
            lines.append(f"      ... and {count - len(examples[:_SHOWN])} more")
    return "\n".join(lines)
