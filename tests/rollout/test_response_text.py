"""The judged text is what was sampled, special tokens and unused ids too, but the end token."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from passk_fast.model.tokenizer import character_tokenizer
from passk_fast.rollout.response_text import ResponseText, unused_text

PAD, EOS, UNKNOWN, A, B = range(5)
FIRST_UNUSED = 5


@pytest.fixture(scope="module")
def text() -> ResponseText:
    return ResponseText(character_tokenizer("ab"))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, tags as special tokens, a hole in its ids, blanks cleaned up by default."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    out = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=True)
    out.add_special_tokens({"eos_token": "<|end|>"})
    out.add_special_tokens({"additional_special_tokens": ["<answer>", "</answer>"]})
    return out


@pytest.mark.parametrize(
    ("ids", "ended", "expected"),
    [
        ([A, B, EOS], True, "ab"),
        ([A, B], False, "ab"),
        ([A, UNKNOWN, B, PAD, EOS], True, "a<unk>b<pad>"),
        ([PAD, PAD], False, "<pad><pad>"),
        ([A, EOS, B, EOS, EOS], True, "a<eos>b<eos>"),
        ([A, EOS], False, "a<eos>"),
        ([A, FIRST_UNUSED, B, 7, EOS], True, f"a{unused_text(5)}b{unused_text(7)}"),
        ([7, 7], False, unused_text(7) * 2),
        ([EOS], True, ""),
        ([], False, ""),
    ],
)
def test_only_the_final_end_token_is_left_out(
    text: ResponseText, ids: list[int], ended: bool, expected: str
) -> None:
    assert text([ids], [ended]) == [expected]
    assert text([[A, EOS], ids], [True, ended]) == ["a", expected]


def test_no_response_gives_no_text(text: ResponseText) -> None:
    assert text([], []) == []


def test_tags_that_are_special_tokens_are_seen_and_blanks_stay() -> None:
    tokenizer = byte_tokenizer()
    written = "so , it 's\n <answer> 4 </answer> é"
    ids = tokenizer.encode(written, add_special_tokens=False)
    assert len({tokenizer.convert_tokens_to_ids(tag) for tag in ("<answer>", "</answer>")}) == 2
    text = ResponseText(tokenizer)
    assert text([[*ids, tokenizer.eos_token_id]], [True]) == [written]
    unused = len(tokenizer) + 3
    assert text([[unused, *ids]], [False]) == [unused_text(unused) + written]


def test_every_id_of_a_vocabulary_is_seen() -> None:
    """No id that a model with a padded vocabulary can sample decodes to nothing."""
    tokenizer = byte_tokenizer()
    ids = range(len(tokenizer) + 8)
    texts = ResponseText(tokenizer)([[i] for i in ids], [False] * len(ids))
    assert all(texts)
