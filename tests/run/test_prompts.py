"""Prompts of data files as the model reads them: chat templates, lengths, the cache, --dry-run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from passk_fast.config import ChatConfig, DataConfig, ModelConfig, RolloutConfig, RunConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError
from passk_fast.model.tokenizer import Encode, folder_encoder
from passk_fast.rollout.collect import encode_prompts
from passk_fast.run.prompts import PromptEncoder, check_prompts, encode_all, fit, prepare
from passk_fast.tasks import load_prompts
from passk_fast.tasks.order import EndlessPrompts, PromptOrder
from tests.model.test_chat_template import CHATML, INST, make_tokenizer

HELLO = [{"role": "user", "content": "hello"}]
THREE = [
    {"prompt": "four", "answer": 4, "task": "exact", "id": "a"},
    {"prompt": "eleven ch..", "answer": "x", "task": "exact", "id": "b"},
    {"prompt": "two", "answer": "y", "task": "exact", "id": "c"},
]


def write(path: Path, rows: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make(tmp_path: Path, rows: Sequence[object], limit: int = 64, **data: Any) -> RunConfig:
    """A configuration of these rows; its model folder has a tokenizer of bytes."""
    return RunConfig(
        output_dir=str(tmp_path / "run"),
        model=ModelConfig(path=str(tmp_path / "model")),
        rollout=RolloutConfig(max_prompt_tokens=limit),
        data=DataConfig(train=write(tmp_path / "p.jsonl", rows), **data),
    )


def encoder(config: RunConfig, template: str | None = None) -> PromptEncoder:
    folder = Path(config.model.path)
    make_tokenizer(folder, template)
    encode = folder_encoder(folder)
    assert encode is not None
    return PromptEncoder.of(config, folder, encode)


def encoded(config: RunConfig, template: str | None = None) -> list[Prompt]:
    prompts = load_prompts(config.data.train, config.data)
    return encode_all(prompts, encoder(config, template))


def test_text_is_left_as_it_is_and_messages_are_rendered(tmp_path: Path) -> None:
    rows = [THREE[0], {**THREE[1], "prompt": HELLO}]
    config = make(tmp_path, rows)
    prompts = load_prompts(config.data.train, config.data)
    assert prompts[1].text == "hello"
    texts = encoder(config, INST).texts(prompts)
    assert texts == ["four", "<s>[INST] hello [/INST]"]
    first, second = encoded(config, INST)
    assert len(first.token_ids) == 4
    assert len(second.token_ids) == 1 + len("[INST] hello [/INST]"), "one BOS, of the template"


def test_text_is_rendered_where_the_template_is_on(tmp_path: Path) -> None:
    chat = ChatConfig(template="on", system="S", arguments=("enable_thinking=false",))
    config = make(tmp_path, THREE[:1], chat=chat)
    (text,) = encoder(config, CHATML).texts(load_prompts(config.data.train, config.data))
    assert "<|im_start|>system\nS<|im_end|>" in text
    assert text.endswith("<|im_start|>user\nfour<|im_end|>\n<|im_start|>assistant\n<think></think>")


def test_a_rows_own_system_message_stays(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "own"}, *HELLO]
    config = make(tmp_path, [{**THREE[0], "prompt": own}], chat=ChatConfig(system="S"))
    (text,) = encoder(config, CHATML).texts(load_prompts(config.data.train, config.data))
    assert "own" in text
    assert "\nS<" not in text


@pytest.mark.parametrize(
    ("rows", "chat", "template", "error", "words"),
    [
        ([{**THREE[0], "prompt": HELLO}], {}, None, DataError, r"p\.jsonl:1: .* no chat|has none"),
        ([{**THREE[0], "prompt": HELLO}], {"template": "off"}, INST, DataError, "'off' refuses"),
        (
            [{**THREE[0], "prompt": [{"role": "system", "content": "x"}]}],
            {},
            INST,
            DataError,
            r"p\.jsonl:1: the chat template: roles must alternate",
        ),
        (THREE, {"template": "on"}, None, ConfigError, "the model folder has no chat template"),
        (THREE, {"system": "S"}, INST, ConfigError, "have no effect: the prompts are plain"),
        (THREE, {"arguments": ("a=1",)}, INST, ConfigError, "have no effect"),
    ],
)
def test_what_cannot_be_rendered_is_refused(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    chat: dict[str, Any],
    template: str | None,
    error: type[Exception],
    words: str,
) -> None:
    config = make(tmp_path, rows, chat=ChatConfig(**chat))
    with pytest.raises(error, match=words):
        encoded(config, template)


def test_too_long_is_an_error_with_its_place_unless_told_otherwise(tmp_path: Path) -> None:
    config = make(tmp_path, THREE, limit=4)
    with pytest.raises(DataError, match=r"p\.jsonl:2: field 'prompt' has 11 tokens, more than"):
        fit(encoded(config), config)
    config = make(tmp_path, THREE, limit=3)
    with pytest.raises(DataError, match=r"and 1 more prompts are too long \(longest: 11\)"):
        fit(encoded(config), config)


def test_too_long_is_dropped_or_cut_and_counted(tmp_path: Path) -> None:
    config = make(tmp_path, THREE, limit=4, overlong="drop")
    kept, counts = fit(encoded(config), config)
    assert [prompt.id for prompt in kept] == ["a", "c"]
    assert str(counts) == "1 of 3 prompts were too long and left out"
    config = make(tmp_path, THREE, limit=4, overlong="truncate_left")
    cut, counts = fit(encoded(config), config)
    assert [len(prompt.token_ids) for prompt in cut] == [4, 4, 3]
    assert cut[1].token_ids == encoded(config)[1].token_ids[-4:]
    assert str(counts) == "1 of 3 prompts were too long and cut to their last tokens"
    config = make(tmp_path, THREE, limit=1, overlong="drop")
    with pytest.raises(DataError, match=r"all 3 prompts have more than .* leaves none"):
        fit(encoded(config), config)


def _prepare(config: RunConfig, encode: PromptEncoder, rank: int = 0) -> Sequence[Prompt]:
    prompts = load_prompts(config.data.train, config.data)
    model = Path(config.model.path)
    return prepare(prompts, encode, config, model=model, rank=rank, wait=lambda: None)


def test_tokens_are_made_once_for_all_ranks_and_for_a_resumed_run(tmp_path: Path) -> None:
    config = make(tmp_path, THREE)
    asked: list[str] = []
    inner = encoder(config)

    def encode(texts: Sequence[str], names: Sequence[str]) -> list[list[int]]:
        asked.extend(texts)
        return inner.encode(texts, names)

    counting: Encode = encode
    spy = PromptEncoder(encode=counting, template=None, chat=config.data.chat)
    first = _prepare(config, spy)
    assert len(asked) == 3
    for rank in (1, 0):
        assert [p.token_ids for p in _prepare(config, spy, rank)] == [p.token_ids for p in first]
    assert len(asked) == 3
    changed = make(tmp_path, THREE[:2])
    assert len(_prepare(changed, spy)) == 2
    assert len(asked) == 5, "other rows are not taken for these"


def test_engines_get_the_prepared_tokens(tmp_path: Path) -> None:
    config = make(tmp_path, THREE)
    prompts = list(_prepare(config, encoder(config)))
    no_tokenizer: Any = None
    assert encode_prompts(prompts, no_tokenizer, 64) == [p.token_ids for p in prompts]


def test_generated_prompts_stay_as_they_are_unless_rendered(tmp_path: Path) -> None:
    made = EndlessPrompts(lambda i: Prompt(id=str(i), text="ab", answer="x", task="exact"), 3)
    config = make(tmp_path, THREE)
    arguments: dict[str, Any] = {"model": tmp_path, "rank": 0, "wait": lambda: None}
    assert prepare(made, encoder(config), config, **arguments) is made
    config = make(tmp_path, THREE, chat=ChatConfig(template="on"))
    rendered = prepare(made, encoder(config, INST), config, **arguments)
    assert len(rendered[7].token_ids) == 1 + len("[INST] ab [/INST]")
    assert [p.id for p in rendered[:2]] == ["0", "1"]
    order = PromptOrder.of(rendered, 0)
    assert order.take(5) == PromptOrder.of(made, 0).take(5), "endless as before"


def test_dry_run_shows_three_prompts_with_their_tokens(tmp_path: Path) -> None:
    config = make(tmp_path, [*THREE, {**THREE[0], "id": "d", "prompt": HELLO}], limit=32)
    make_tokenizer(Path(config.model.path), INST)
    said: list[str] = []
    check_prompts(config, said.append)
    assert said[0] == "data.train: 4 prompts of 3 to 21 tokens"
    assert said[1].endswith("p.jsonl:1, 4 tokens:\nfour")
    assert len(said) == 4
    generated = RunConfig(output_dir=str(tmp_path))
    said.clear()
    check_prompts(generated, said.append)
    assert said[0].startswith("data.train is empty: 40000 prompts of data.generate")
