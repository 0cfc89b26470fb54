"""A character tokenizer and a random model of a given shape, for runs that start from nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from passk_fast.config import ShapeConfig
from passk_fast.errors import ConfigError, DataError
from passk_fast.model.shape import new_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

Encode = Callable[[Sequence[str], Sequence[str]], list[list[int]]]
"""(texts, their names) -> token ids of each, no special tokens added; DataError, beginning with the
name, for a text that the tokenizer does not know."""

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
_VOCAB_MULTIPLE = 8


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One token per character of `alphabet` (sorted, repeats ignored), after pad, eos and unknown.

    ConfigError for an empty alphabet. Encode with `encode_checked`, which refuses characters
    outside the alphabet. Example: "ab" makes ids <pad> 0, <eos> 1, <unk> 2, a 3, b 4.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if not alphabet:
        raise ConfigError("A character tokenizer needs at least one character.")
    tokens = [PAD, EOS, UNKNOWN, *sorted(set(alphabet))]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def encode_checked(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` without special tokens added; DataError where one is unknown."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in ids or tokenizer.unk_token in text:
        return ids
    for position, character in enumerate(text):
        if unknown in tokenizer.encode(character, add_special_tokens=False):
            raise DataError(
                f"Character {character!r} at position {position} of the text "
                f"{_shorten(text)!r} is not in the tokenizer's vocabulary."
            )
    raise DataError(f"The text {_shorten(text)!r} holds tokens that the tokenizer does not know.")


def make_tiny_model(
    shape: ShapeConfig, tokenizer: PreTrainedTokenizerBase, seed: int, out_dir: str | Path
) -> Path:
    """Write a Hugging Face folder with random float32 weights of `shape`; returns the folder.

    The vocabulary is len(tokenizer) rounded up to a multiple of 8. Equal arguments give equal
    files. ConfigError where the architecture cannot have the shape.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    out = Path(out_dir)
    config = _model_config(shape, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
    )
    with _without_progress_bars():
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _model_config(shape: ShapeConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    from transformers import AutoConfig

    vocab = -(-len(tokenizer) // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    begin = tokenizer.bos_token_id
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id if begin is None else begin,
    }
    return AutoConfig.for_model(**new_config(shape, vocab), **special)


def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Many texts at once, as `encode_checked` encodes one."""

    def encode(texts: Sequence[str], names: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        unknown = tokenizer.unk_token_id
        for text, ids, name in zip(texts, found, names, strict=True):
            if unknown is not None and unknown in ids:
                try:
                    encode_checked(tokenizer, text)
                except DataError as error:
                    raise DataError(f"{name}: {error}") from None
        return found

    return encode


def folder_encoder(folder: Path) -> Encode | None:
    """As `encoder_of` the folder's tokenizer, read from tokenizer.json in a fraction of the time;
    unknown characters are not looked for. None where there is no such file.

    Raises:
        ConfigError: the file is no tokenizer.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"model.path: {file} is no tokenizer: {error}.") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: Sequence[str], names: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return encode


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
