"""Messages between the sides come back as they were."""

from __future__ import annotations

import pytest

from passk_fast.data.types import Prompt
from passk_fast.disaggregated.messages import (
    Answer,
    End,
    Order,
    Prepare,
    Sample,
    Start,
    TakeWeights,
    decode_answer,
    decode_order,
    encode_answer,
    encode_order,
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
ORDERS = [
    Start(model_dir="runs/a b/initial_model"),
    Prepare(spec="te"),
    TakeWeights(verify=True),
    Sample(
        prompts=[PROMPT],
        prompt_ids=[(1, 2, 3)],
        keys=[17],
        num_rollouts=4,
        seed=2**63 - 1,
        zero_advantage_rows=[True, False, False, False, True],
    ),
    Sample(prompts=[], prompt_ids=[], keys=[], num_rollouts=1, seed=0, zero_advantage_rows=None),
    End(code=16),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_orders_come_back(order: Order) -> None:
    assert decode_order(encode_order(order)) == order


@pytest.mark.parametrize("samples", [b"", bytes(range(256))])
def test_answers_come_back(samples: bytes) -> None:
    answer = Answer(
        stop=True, engine_s=1.5, verify_s=0.25, prompt_tokens=7, cached_tokens=3, samples=samples
    )
    assert decode_answer(encode_answer(answer)) == answer
    answer.check()


@pytest.mark.parametrize(
    "error",
    [ConfigError, DataError, DiskError, DivergedError, NoSignalError, LostRankError],
)
def test_an_error_is_raised_as_what_it_was(error: type[PasskError]) -> None:
    answer = Answer(error=int(error.exit_code), message="what happened")
    with pytest.raises(error, match="what happened"):
        decode_answer(encode_answer(answer)).check()
