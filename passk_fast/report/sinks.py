"""Where a run's numbers go: a JSONL file, TensorBoard, sample files, and the console.

The loop hands every step's record to one `Report`; on ranks other than 0 it does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from passk_fast.report.progress import Progress
from passk_fast.report.records import Record, cut_after, disk_errors, plain, to_line

if TYPE_CHECKING:
    from passk_fast.data.types import RolloutGroup

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
SAMPLES_FOLDER = "samples"


class MetricSink(Protocol):
    """Takes one record per step. `Progress`, `JsonlSink` and `TensorBoardSink` are sinks."""

    def write(self, record: Record) -> None:
        """Take the record of one step; `record["step"]` is its number."""

    def close(self) -> None:
        """Flush and release what is held; called once, at the end."""


class JsonlSink:
    """`metrics.jsonl`: one strict JSON object per step, keys sorted, NaN as null.

    Flushed every step, so it survives the process's death. A resumed run goes on after the
    record of `resumed_step`; None starts an empty file.
    """

    def __init__(self, path: Path, resumed_step: int | None = None) -> None:
        self.path = path
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            cut_after(path, resumed_step)
            self._file = path.open("a", encoding="utf-8", newline="\n")

    def write(self, record: Record) -> None:
        """Append one line; DiskError when it cannot be written."""
        line = to_line(record)
        with disk_errors(self.path):
            self._file.write(line)
            self._file.flush()

    def close(self) -> None:
        with disk_errors(self.path):
            self._file.close()


class TensorBoardSink:
    """TensorBoard event files; "eval" and "time" become groups, `pass@k` the tag `pass_at_k`."""

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        first = 0 if resumed_step is None else resumed_step + 1
        with disk_errors(folder):
            # purge_step hides what an interrupted run had written from that step on.
            self._writer = SummaryWriter(log_dir=str(folder), purge_step=first)

    def write(self, record: Record) -> None:
        """Write every number of the record but the step itself."""
        for tag, value in _numbers(record):
            if tag != "step":
                self._writer.add_scalar(tag, value, global_step=record["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _numbers(record: Record, group: str = "") -> Iterator[tuple[str, float]]:
    """(tag, value) of every finite number in the record, nested ones as group/name."""
    for name, value in plain(record).items():
        tag = f"{group}{name.replace('@', '_at_')}"
        if isinstance(value, dict):
            yield from _numbers(value, f"{tag}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield tag, float(value)


class SampleSink:
    """`samples/step_00010.jsonl`: a few prompts with their responses and rewards, for people."""

    def __init__(
        self,
        folder: Path,
        resumed_step: int | None = None,
        num_prompts: int = 4,
        num_rollouts: int = 2,
    ) -> None:
        """`num_prompts` prompts per step, with `num_rollouts` responses each, are written."""
        self.folder = folder
        self.num_prompts = num_prompts
        self.num_rollouts = num_rollouts
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("step_*.jsonl"):
                number = path.stem.removeprefix("step_")
                if number.isdigit() and (resumed_step is None or int(number) > resumed_step):
                    path.unlink()

    def path(self, step: int) -> Path:
        """The file of one step."""
        return self.folder / f"step_{step:05d}.jsonl"

    def write(self, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Write the first responses of the first groups, one JSON object per line."""
        lines = [
            to_line(self._sample(group, index))
            for group in groups[: self.num_prompts]
            for index in range(min(self.num_rollouts, len(group.rollouts)))
            if group.rollouts[index].token_ids  # not aborted
        ]
        with disk_errors(self.path(step)):
            self.path(step).write_text("".join(lines), encoding="utf-8", newline="\n")

    @staticmethod
    def _sample(group: RolloutGroup, index: int) -> dict[str, Any]:
        rollout = group.rollouts[index]
        return {
            "id": group.prompt.id,
            "prompt": group.prompt.text,
            "answer": group.prompt.answer,
            "response": rollout.text,
            "tokens": len(rollout.token_ids),
            "finished": rollout.finished,
            "reward": group.rewards[index],
        }


class Report:
    """Everything that listens to a run. Example: `with Report.open(...) as report: ...`."""

    def __init__(self, sinks: Sequence[MetricSink] = (), samples: SampleSink | None = None) -> None:
        """Without sinks and samples it does nothing: what ranks other than 0 hold."""
        self._sinks = tuple(sinks)
        self._samples = samples

    @classmethod
    def open(
        cls,
        run_folder: Path,
        *,
        rank: int,
        total_steps: int,
        k: int,
        resumed_step: int | None = None,
    ) -> Self:
        """The usual sinks of a run, or none on ranks other than 0.

        Args:
            run_folder: gets metrics.jsonl, tensorboard/ and samples/.
            rank: global rank.
            total_steps: the step the run ends at.
            k: the k of pass@k, for the console.
            resumed_step: the step of the checkpoint that was loaded; whatever was recorded after
                it is dropped. None starts afresh.

        Raises:
            DiskError: the run folder cannot be written.
        """
        if rank != 0:
            return cls()
        sinks: list[MetricSink] = [
            JsonlSink(run_folder / METRICS_FILE, resumed_step),
            TensorBoardSink(run_folder / TENSORBOARD_FOLDER, resumed_step),
            Progress(total_steps, k=k, first_step=resumed_step or 0),
        ]
        return cls(sinks, SampleSink(run_folder / SAMPLES_FOLDER, resumed_step))

    def step(self, record: Record) -> None:
        """Hand one step's record to every sink."""
        for sink in self._sinks:
            sink.write(record)

    def samples(self, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Keep a few of the step's responses."""
        if self._samples is not None:
            self._samples.write(step, groups)

    def close(self) -> None:
        """Close every sink, also where closing one fails."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
