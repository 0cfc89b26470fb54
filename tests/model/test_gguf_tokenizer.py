"""Tokenizers of GGUF files against llama.cpp's rules, written here a second time: its patterns, and
merges by rank over each piece."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from passk_fast.errors import ConfigError
from passk_fast.model.gguf.file import GgufFile
from passk_fast.model.gguf.tokenizer import SPLITTINGS, tokenizer_of
from tests.gguf_files import TEMPLATE, tiny_model, vocabulary, write_gguf

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp applies the patterns of a list one after the other, each to the pieces of the last.
PATTERNS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "llama-bpe": [_LLAMA3.replace("DIGITS", r"\p{N}{1,3}")],
    "qwen2": [_LLAMA3.replace("DIGITS", r"\p{N}")],
}
TEXTS = [
    "hello 123 hello",
    "1231234 12 Ⅻ ½ ٣٤",
    "  hello  123\n\n\nx\r\n y\t",
    "it's IT'S we'll 'd",
    "naïve 日本語 🙂 _-=123",
    "",
]


def _bytes_as_characters() -> dict[int, str]:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in kept}
    others = (b for b in range(256) if b not in table)
    return table | {b: chr(256 + i) for i, b in enumerate(others)}


BYTES = _bytes_as_characters()


def _pieces(text: str, patterns: list[str]) -> list[str]:
    pieces = [text]
    for pattern in patterns:
        split = []
        for piece in pieces:
            at = 0
            for match in regex.finditer(pattern, piece):
                split += [piece[at : match.start()], match.group()]
                at = match.end()
            split.append(piece[at:])
        pieces = [piece for piece in split if piece]
    return pieces


def _reference(text: str, pre: str) -> list[int]:
    tokens, _, merges = vocabulary()
    ids = {token: i for i, token in enumerate(tokens)}
    rank = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
    out = []
    for piece in _pieces(text, PATTERNS[pre]):
        word = [BYTES[b] for b in piece.encode()]
        if pre == "llama-bpe" and "".join(word) in ids:
            word = ["".join(word)]
        while True:
            pairs = [(rank[p], i) for i, p in enumerate(pairwise(word)) if p in rank]
            if not pairs:
                break
            _, i = min(pairs)
            word[i : i + 2] = ["".join(word[i : i + 2])]
        out += [ids[part] for part in word]
    return out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GgufFile]:
    folder, model = tmp_path_factory.mktemp("gguf"), tiny_model("llama")
    return {pre: GgufFile(write_gguf(folder / f"{pre}.gguf", model, pre=pre)) for pre in SPLITTINGS}


def test_every_splitting_has_its_pattern_here() -> None:
    assert set(PATTERNS) == set(SPLITTINGS)
    assert sorted(BYTES.values()) == sorted(ByteLevel.alphabet())


@pytest.mark.parametrize("pre", PATTERNS)
def test_text_becomes_the_tokens_of_llama_cpp(pre: str, files: dict[str, GgufFile]) -> None:
    tokenizer = tokenizer_of(files[pre])

    def check(text: str) -> None:
        seen = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert tokenizer.encode(text, add_special_tokens=False) == _reference(seen, pre)

    for text in TEXTS:
        check(text)
    given(st.text() | st.text(alphabet="hello 123's\n\t'.Ⅻ½é"))(check)()


def test_the_splittings_differ_on_digits(files: dict[str, GgufFile]) -> None:
    counts = {pre: len(tokenizer_of(file).encode("123")) for pre, file in files.items()}
    assert counts == {"gpt-2": 1, "smollm": 3, "llama-bpe": 2, "qwen2": 3}  # 2: with begin


def test_special_tokens_and_template_outlive_saving(
    files: dict[str, GgufFile], tmp_path: Path
) -> None:
    made = tokenizer_of(files["smollm"])
    made.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = tokenizer.apply_chat_template([{"content": "hello 12<think>"}], tokenize=False)
    assert text == "<|im_start|>hello 12<think><|im_end|>"
    assert tokenizer.chat_template == TEMPLATE
    ids = tokenizer.encode(text, add_special_tokens=False)
    tokens = vocabulary()[0]
    assert [tokens[i] for i in ids] == [
        *("<|im_start|>", "hello", "Ġ", "1", "2", "<think>", "<|im_end|>")
    ]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello 12<think>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.encode("hello") == [tokens.index("hello")]  # nothing added


@pytest.mark.parametrize(
    ("pre", "says", "begins"),
    [
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
        ("smollm", None, False),
        ("smollm", True, True),
    ],
)
def test_texts_begin_as_the_file_says(
    pre: str, says: bool | None, begins: bool, tmp_path: Path
) -> None:
    fields = {"tokenizer.ggml.add_bos_token": says}
    file = write_gguf(tmp_path / "x.gguf", tiny_model("llama"), pre=pre, fields=fields)
    ids = tokenizer_of(GgufFile(file)).encode("hello")
    assert (ids[0] == 1) == begins


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer.ggml.pre": "falcon"}, "pre = 'falcon' is not known.*gpt-2, smollm"),
        ({"tokenizer.ggml.pre": None}, "pre is missing"),
        ({"tokenizer.ggml.model": "llama"}, "model = 'llama' cannot be imported"),
        ({"tokenizer.ggml.merges": ["h xyz"]}, "holds 'h xyz', whose parts"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "holds a token twice"),
        ({"tokenizer.ggml.token_type": [1, 3]}, "have 2 and 270 entries"),
        ({"tokenizer.ggml.eos_token_id": 999}, "eos_token_id = 999, and there are 270"),
    ],
)
def test_what_cannot_be_read_is_named(
    fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "x.gguf", tiny_model("llama"), fields=fields)
    with pytest.raises(ConfigError, match=message):
        tokenizer_of(GgufFile(file))
