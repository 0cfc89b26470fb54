"""Messages between the sides come back as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest

from passk_fast.data.types import Prompt
from passk_fast.disaggregated.messages import (
    End,
    Prepare,
    Reply,
    Request,
    Sample,
    Start,
    TakeWeights,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)
from passk_fast.errors import (
    ConfigError,
    DataError,
    DiskError,
    DivergedError,
    LostRankError,
    NoSignalError,
    PasskError,
)

PROMPT = Prompt(id="p", text='a "quoted"\nü\ud800', answer="", task="t")
REQUESTS = [
    Start(model_dir="runs/a b/initial_model"),
    Prepare(spec="te"),
    TakeWeights(verify=True),
    Sample(
        prompts=[
            PROMPT,
            replace(PROMPT, columns={"ü": [1, 2.5, None, {"deep": ["\ud800"]}]}),
            replace(PROMPT, messages=({"role": "user", "content": "1 + 1?"},), token_ids=(1, 2)),
        ],
        prompt_ids=[(1, 2, 3), (4,)],
        keys=[17, 18],
        num_rollouts=4,
        seed=2**63 - 1,
        zero_advantage_rows=[True, False, False, False, True],
    ),
    Sample(prompts=[], prompt_ids=[], keys=[], num_rollouts=1, seed=0, zero_advantage_rows=None),
    End(code=16),
]


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: type(message).__name__)
def test_requests_come_back(message: Request) -> None:
    assert decode_request(encode_request(message)) == message


@pytest.mark.parametrize("samples", [b"", bytes(range(256))])
def test_replies_come_back(samples: bytes) -> None:
    reply = Reply(
        stop=True, engine_s=1.5, verify_s=0.25, prompt_tokens=7, cached_tokens=3, samples=samples
    )
    assert decode_reply(encode_reply(reply)) == reply
    reply.check()


@pytest.mark.parametrize(
    "error",
    [ConfigError, DataError, DiskError, DivergedError, NoSignalError, LostRankError],
)
def test_an_error_is_raised_as_what_it_was(error: type[PasskError]) -> None:
    reply = Reply(error=int(error.exit_code), message="what happened")
    with pytest.raises(error, match="what happened"):
        decode_reply(encode_reply(reply)).check()
