"""The tokenizer inside a GGUF file as a Hugging Face one, splitting text as llama.cpp does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passk_fast.errors import ConfigError
from passk_fast.model.gguf.file import GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

_CONTROL, _USER_DEFINED = 3, 4
"""Values of tokenizer.ggml.token_type whose tokens are found in a text before it is split."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The pattern of Llama 3 ({DIGITS} = {1,3}) and of Qwen2 (one digit)."""


@dataclass(frozen=True)
class Splitting:
    """What the field tokenizer.ggml.pre stands for."""

    make: Callable[[], PreTokenizer]
    whole_words: bool = False
    """A word that is a token itself is taken before merges are tried."""
    begins: bool = False
    """Texts begin with the begin token where the file does not say."""
    composed: bool = False
    """Text is brought into Unicode's form NFC, as the model's own tokenizer does."""


def _gpt2(*, single_digits: bool) -> PreTokenizer:
    from tokenizers import pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if not single_digits:
        return words
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])


def _by_pattern(pattern: str) -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


SPLITTINGS: Mapping[str, Splitting] = {
    "gpt-2": Splitting(lambda: _gpt2(single_digits=False)),
    "smollm": Splitting(lambda: _gpt2(single_digits=True)),
    "llama-bpe": Splitting(
        lambda: _by_pattern(_WORDS.replace("{DIGITS}", "{1,3}")), whole_words=True, begins=True
    ),
    "qwen2": Splitting(lambda: _by_pattern(_WORDS.replace("{DIGITS}", "")), composed=True),
}
"""By tokenizer.ggml.pre."""


def tokenizer_of(file: GgufFile) -> PreTrainedTokenizerFast:
    """The tokenizer with its special tokens and chat template.

    Raises:
        ConfigError: no byte-level BPE, a splitting that is not known, or fields that disagree.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    splitting, tokens = _splitting(file), _tokens(file)
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(file, vocab), ignore_merges=splitting.whole_words)
    )
    if splitting.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = splitting.make()
    tokenizer.decoder = decoders.ByteLevel()
    special = _special_tokens(file, tokens)
    begins = file.get("tokenizer.ggml.add_bos_token")
    begin = special.get("bos_token")
    if begin is not None and (splitting.begins if begins is None else begins):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, vocab[begin])]
        )
    _add_whole_tokens(file, tokens, tokenizer)
    template = file.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        chat_template=template if isinstance(template, str) else None,
        **special,
    )


def _splitting(file: GgufFile) -> Splitting:
    model = file.text("tokenizer.ggml.model")
    if model != "gpt2":
        raise ConfigError(
            f"{file.path}: field tokenizer.ggml.model = {model!r} cannot be imported; can be: "
            "'gpt2' (byte-level BPE). Take the model's Hugging Face folder instead."
        )
    name = file.text("tokenizer.ggml.pre")
    if name not in SPLITTINGS:
        raise ConfigError(
            f"{file.path}: field tokenizer.ggml.pre = {name!r} is not known, so text would be "
            f"split into other tokens than the model saw; known: {', '.join(SPLITTINGS)}."
        )
    return SPLITTINGS[name]


def _tokens(file: GgufFile) -> list[str]:
    tokens = file.texts("tokenizer.ggml.tokens")
    if len(set(tokens)) < len(tokens):
        raise ConfigError(f"{file.path}: field tokenizer.ggml.tokens holds a token twice.")
    return tokens


def _merges(file: GgufFile, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for merge in file.texts("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ConfigError(
                f"{file.path}: field tokenizer.ggml.merges holds {merge!r}, whose parts or whole "
                "are no tokens."
            )
        merges.append((left, right))
    return merges


def _special_tokens(file: GgufFile, tokens: list[str]) -> dict[str, str]:
    special = {}
    for name, field in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        full = f"tokenizer.ggml.{field}_token_id"
        if file.get(full) is None:
            continue
        index = file.count(full)
        if index >= len(tokens):
            raise ConfigError(
                f"{file.path}: field {full} = {index}, and there are {len(tokens)} tokens."
            )
        special[f"{name}_token"] = tokens[index]
    return special


def _add_whole_tokens(file: GgufFile, tokens: list[str], tokenizer: Tokenizer) -> None:
    """Mark the tokens that stand in a text as they are written."""
    from tokenizers import AddedToken

    kinds = file.counts("tokenizer.ggml.token_type")
    if len(kinds) != len(tokens):
        raise ConfigError(
            f"{file.path}: fields tokenizer.ggml.token_type and tokenizer.ggml.tokens have "
            f"{len(kinds)} and {len(tokens)} entries."
        )
    for kind, token in zip(kinds, tokens, strict=True):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, special=False, normalized=False)])
