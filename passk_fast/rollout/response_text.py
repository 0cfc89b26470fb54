"""Token ids of a response -> the text that is judged: what is trained, all of it.

Decoding usually drops special tokens, and ids that no token has (a padded vocabulary) always. A
verifier that does not see them rewards responses for tokens that it would have refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ResponseText:
    """Decodes whole responses of one tokenizer.

    Special tokens are written as the tokenizer names them, ids without a token as `unused_text`
    says. Blanks stay as they were sampled.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known = frozenset(tokenizer.get_vocab().values())

    def __call__(self, responses: Sequence[Sequence[int]], ended: Sequence[bool]) -> list[str]:
        """The text of each response [B]; `ended` [B] says whether its last token is its end token.

        Only that one token is left out: one that stands before it is part of the text.
        """
        if not responses:
            return []
        bodies = [ids[:-1] if end else ids for ids, end in zip(responses, ended, strict=True)]
        if self._known.issuperset(chain.from_iterable(bodies)):
            return self._decode(bodies)
        return [self._with_unused(body) for body in bodies]

    def _with_unused(self, ids: Sequence[int]) -> str:
        parts: list[str] = []
        for known, run in groupby(ids, self._known.__contains__):
            tokens = list(run)
            parts += self._decode([tokens]) if known else [unused_text(i) for i in tokens]
        return "".join(parts)

    def _decode(self, bodies: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = self._tokenizer.batch_decode(
            [list(body) for body in bodies],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return texts


def unused_text(token_id: int) -> str:
    """What stands for an id of the vocabulary that no token has. Example: `<|unused 151700|>`."""
    return f"<|unused {token_id}|>"
