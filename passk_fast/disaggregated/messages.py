"""Requests of trainer rank 0 and replies of rollout ranks: JSON, with samples as plain bytes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from passk_fast.data.types import Prompt
from passk_fast.errors import (
    ConfigError,
    DataError,
    DiskError,
    DivergedError,
    ExitCode,
    LostRankError,
    NoSignalError,
    PasskError,
)

_HEADER = 8
"""Bytes of the length that stands before a reply's JSON."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """Start the engine on a model folder; its weights will be replaced."""

    model_dir: str


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Work out which weights come from where, and open the parameters for them."""

    spec: str
    """Which of Megatron's layer specs the trainer has."""


@dataclass(frozen=True, kw_only=True)
class TakeWeights:
    """Take the trainer's weights; a collective of the bridge follows."""

    verify: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sample and verify responses to this engine's part of the prompts."""

    prompts: list[Prompt]
    prompt_ids: list[tuple[int, ...]]
    keys: list[int]
    """What the responses' seeds depend on, with `seed`."""
    num_rollouts: int
    seed: int
    zero_advantage_rows: list[bool] | None
    """Stop groups that must end in one of these counts of correct responses."""


@dataclass(frozen=True, kw_only=True)
class End:
    """Leave, with this exit code."""

    code: int


Request = Start | Prepare | TakeWeights | Sample | End
_KINDS: dict[str, type[Request]] = {
    kind.__name__: kind for kind in (Start, Prepare, TakeWeights, Sample, End)
}


def encode_request(request: Request) -> bytes:
    """Example: b'{"kind": "End", "code": 0}'."""
    return json.dumps({"kind": type(request).__name__, **asdict(request)}).encode()


def decode_request(data: bytes) -> Request:
    """The inverse of `encode_request`."""
    values = json.loads(data)
    kind = values.pop("kind")
    if kind == "Sample":
        values["prompts"] = [_prompt(prompt) for prompt in values["prompts"]]
        values["prompt_ids"] = [tuple(ids) for ids in values["prompt_ids"]]
    return _KINDS[kind](**values)


def _prompt(values: dict[str, Any]) -> Prompt:
    """Of a prompt's JSON, which has lists for tuples."""
    for name in ("messages", "token_ids"):
        values[name] = tuple(values[name])
    return Prompt(**values)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one rollout rank replies to a request."""

    error: int = 0
    """Exit code of what went wrong; the rank has left with it."""
    message: str = ""
    stop: bool = False
    """A signal told this rank to stop."""
    engine_s: float = 0.0
    verify_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    samples: bytes = field(default=b"", repr=False)
    """Of the first rank of each engine: `encode_samples`."""

    def check(self) -> None:
        """Raise the error that the rollout rank met."""
        if self.error:
            raise _ERRORS.get(self.error, LostRankError)(self.message)


_ERRORS: dict[int, type[PasskError]] = {
    ExitCode.BAD_CONFIG: ConfigError,
    ExitCode.BAD_DATA: DataError,
    ExitCode.DISK: DiskError,
    ExitCode.DIVERGED: DivergedError,
    ExitCode.NO_SIGNAL: NoSignalError,
}


def encode_reply(reply: Reply) -> bytes:
    """The length of the JSON, the JSON, the samples."""
    values = {name: value for name, value in vars(reply).items() if name != "samples"}
    head = json.dumps(values).encode()
    return len(head).to_bytes(_HEADER, "little") + head + reply.samples


def decode_reply(data: bytes) -> Reply:
    """The inverse of `encode_reply`."""
    end = _HEADER + int.from_bytes(data[:_HEADER], "little")
    return Reply(**json.loads(data[_HEADER:end]), samples=data[end:])
