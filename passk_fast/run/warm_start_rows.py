"""Rows of warm_start.data as tokens: all of them are checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from passk_fast.errors import DataError
from passk_fast.model.tokenizer import encode_checked
from passk_fast.tasks.demonstrations import Demonstration, Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_demonstrations(
    rows: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, longest: int
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, response ids with the end token) of every row.

    Raises:
        DataError: with the row's place: more than `longest` tokens, characters that the tokenizer
            does not know, or messages that its chat template refuses.
    """
    end, out = tokenizer.eos_token_id, []
    if end is None:
        raise DataError("warm_start.data: the model's tokenizer names no end token (eos_token).")
    for row in rows:
        try:
            prompt = encode_checked(tokenizer, _text(row.prompt, tokenizer))
            response = encode_checked(tokenizer, row.response)
        except DataError as error:
            raise DataError(f"{row.place}: {error}") from None
        if response[-1:] != [end]:
            response = [*response, end]
        length = len(prompt) + len(response)
        if length > longest:
            raise DataError(
                f"{row.place}: prompt and response have {length} tokens, and at most {longest} fit "
                "(micro_batch_tokens, and the model's longest sequence)."
            )
        if not prompt:
            raise DataError(f"{row.place}: field 'prompt' becomes no token.")
        out.append((prompt, response))
    return out


def _text(prompt: str | Messages, tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        raise DataError("field 'prompt' holds messages, and the model has no chat template.")
    messages = [{"role": role, "content": content} for role, content in prompt]
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates raise what they like
        raise DataError(f"field 'prompt': the chat template refuses it: {error}.") from None
    return text
