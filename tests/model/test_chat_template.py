"""Chat templates: the text and the tokens that transformers makes, without importing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from passk_fast.errors import ConfigError
from passk_fast.model.chat_template import ChatTemplate
from passk_fast.model.tokenizer import encoder_of, folder_encoder

CHATML = (
    "{%- if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n"
    "{%- endif %}\n{%- for m in messages %}\n"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)
HEADERS = (
    "{{- bos_token }}\n{%- if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}\n"
    "{% for m in messages %}"
    "<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if loop.index > 8 %}{% break %}{% endif %}\n"
    "  {% generation %}<start>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end>\n{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}{{ messages | tojson }}"
)
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "inst": INST, "turns": TURNS}
TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "1 + 1?"}],
    [
        {"role": "user", "content": " <b>ü</b> \u2028 日本\n"},
        {"role": "assistant", "content": "“Ja”"},
        {"role": "user", "content": "<|im_end|> twice"},
    ],
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start>", "<end>", "<|start|>", "<|end|>"]


def make_tokenizer(folder: Path, template: str | None) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and a few special ones; saved with its template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *SPECIAL])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("talk", TALKS, ids=["question", "talk"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_tokens_are_those_of_transformers(
    tmp_path: Path, name: str, talk: list[dict[str, Any]]
) -> None:
    make_tokenizer(tmp_path, TEMPLATES[name])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    arguments = ["enable_thinking=false"] if name == "chatml" else []
    template = ChatTemplate.read(tmp_path, arguments)
    assert template is not None
    asked: dict[str, Any] = {"add_generation_prompt": True}
    if name == "chatml":
        asked["enable_thinking"] = False
    text = template.renderer()(talk)
    assert text == tokenizer.apply_chat_template(talk, tokenize=False, **asked)
    ids = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False, **asked)
    light = folder_encoder(tmp_path)
    assert light is not None
    assert encoder_of(tokenizer)([text], ["a"]) == light([text], ["a"]) == [ids]


def test_a_template_refuses_messages_in_its_own_words(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, INST)
    template = ChatTemplate.read(tmp_path)
    assert template is not None
    with pytest.raises(ValueError, match="roles must alternate"):
        template.renderer()([{"role": "system", "content": "x"}])


@pytest.mark.parametrize("form", ["file", "config", "named", "none"])
def test_where_a_template_is_found(tmp_path: Path, form: str) -> None:
    fields: dict[str, object] = {"bos_token": {"content": "<s>"}, "eos_token": None}
    if form == "config":
        fields["chat_template"] = "a{{ bos_token }}"
    elif form == "named":
        named = {"tools": "b", "default": "a{{ bos_token }}"}
        fields["chat_template"] = [{"name": n, "template": t} for n, t in named.items()]
    elif form == "file":
        fields["chat_template"] = "older"
        (tmp_path / "chat_template.jinja").write_text("a{{ bos_token }}")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    template = ChatTemplate.read(tmp_path)
    if form == "none":
        assert template is None
        return
    assert template is not None
    assert template.renderer()([]) == "a<s>"


def test_what_is_no_template_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ConfigError, match=r"the chat template of .*: Expected an expression"):
        ChatTemplate.read(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        ChatTemplate.read(tmp_path)


def test_a_template_cannot_reach_outside(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    template = ChatTemplate.read(tmp_path)
    assert template is not None
    with pytest.raises(ValueError, match="unsafe"):
        template.renderer()([])
