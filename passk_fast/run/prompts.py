"""Prompts as the model reads them: rendered by its chat template, tokenised, checked for length.

All rows of data files are encoded before the first step, once: rank 0 keeps the tokens in the run
folder, where the other ranks and a resumed run find them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np

from passk_fast.config import ChatConfig, RunConfig
from passk_fast.data.types import Prompt
from passk_fast.errors import ConfigError, DataError
from passk_fast.model.chat_template import ChatTemplate
from passk_fast.model.tokenizer import Encode, encoder_of, folder_encoder
from passk_fast.tasks import test_prompts, train_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 1000
_SHOW_PROGRESS_FROM = 20_000
_FOLDER = "prepared"
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class PromptEncoder:
    """Prompt -> the same with `token_ids`."""

    encode: Encode
    template: ChatTemplate | None
    """Of the model folder; None without one."""
    chat: ChatConfig

    @classmethod
    def of(cls, config: RunConfig, model: Path, encode: Encode) -> PromptEncoder:
        """For a run that starts from the folder `model`; ConfigError as `ChatTemplate.read`."""
        chat = config.data.chat
        return cls(encode=encode, template=ChatTemplate.read(model, chat.arguments), chat=chat)

    def texts(self, prompts: Sequence[Prompt]) -> list[str]:
        """What is tokenised of each prompt.

        Raises:
            DataError: chat messages without a template, or that the template refuses; begins with
                the prompt's place.
        """
        render = self.template.renderer() if self.template else None
        found = []
        for prompt in prompts:
            messages = self._messages(prompt)
            if not messages:
                found.append(prompt.text)
                continue
            if render is None:
                raise DataError(
                    f"{_name(prompt)}: a prompt of chat messages needs a chat template, and the "
                    "model folder has none (chat_template.jinja, or tokenizer_config.json)."
                )
            try:
                found.append(render(messages))
            except ValueError as error:
                raise DataError(f"{_name(prompt)}: the chat template: {error}.") from None
        return found

    def _messages(self, prompt: Prompt) -> list[dict[str, object]]:
        messages = [dict(message) for message in prompt.messages]
        if messages and self.chat.template == "off":
            raise DataError(
                f"{_name(prompt)}: the prompt is a list of chat messages, which "
                "data.chat.template = 'off' refuses."
            )
        if not messages and self.chat.template == "on":
            messages = [{"role": "user", "content": prompt.text}]
        if messages and self.chat.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.chat.system})
        return messages

    def check_settings(self, prompts: Sequence[Prompt]) -> None:
        """ConfigError where data.chat asks for what none of these prompts gets."""
        if self.chat.template == "on" and self.template is None:
            raise ConfigError(
                "data.chat.template = 'on', but the model folder has no chat template "
                "(chat_template.jinja, or tokenizer_config.json)."
            )
        used = self.chat.template == "on" or any(prompt.messages for prompt in prompts)
        if (self.chat.system or self.chat.arguments) and not used:
            raise ConfigError(
                "data.chat.system and data.chat.arguments have no effect: the prompts are plain "
                "text. Set data.chat.template = 'on' to render them as messages of the user."
            )


@dataclass(frozen=True)
class Counts:
    """What became of a file's prompts."""

    all: int
    too_long: int
    action: str

    def __str__(self) -> str:
        done = {"drop": "left out", "truncate_left": "cut to their last tokens"}
        return f"{self.too_long} of {self.all} prompts were too long and {done[self.action]}"


def encode_all(
    prompts: Sequence[Prompt], encoder: PromptEncoder, *, bar: bool = False
) -> list[Prompt]:
    """All prompts with their tokens; `bar` shows progress where there are many.

    Raises:
        ConfigError: see `PromptEncoder.check_settings`.
        DataError: a prompt cannot be rendered or encoded; begins with its place.
    """
    encoder.check_settings(prompts)
    found: list[Prompt] = []
    for begin in _batches(len(prompts), bar=bar):
        part = prompts[begin : begin + _BATCH]
        ids = encoder.encode(encoder.texts(part), [_name(prompt) for prompt in part])
        found += [replace(p, token_ids=tuple(i)) for p, i in zip(part, ids, strict=True)]
    return found


def fit(prompts: list[Prompt], config: RunConfig) -> tuple[list[Prompt], Counts]:
    """Encoded prompts, those of more than rollout.max_prompt_tokens as data.overlong says.

    Raises:
        DataError: a prompt has no tokens or, with data.overlong = "error", too many; begins with
            its place. Also where "drop" leaves none.
    """
    limit, action = config.rollout.max_prompt_tokens, config.data.overlong
    for prompt in prompts:
        if not prompt.token_ids:
            raise DataError(f"{_name(prompt)}: field 'prompt' has no tokens.")
    long = [prompt for prompt in prompts if len(prompt.token_ids) > limit]
    counts = Counts(len(prompts), len(long), action)
    if not long:
        return prompts, counts
    if action == "error":
        more = f", and {len(long) - 1} more prompts are too long" if len(long) > 1 else ""
        raise DataError(
            f"{_name(long[0])}: field 'prompt' has {len(long[0].token_ids)} tokens, more than "
            f"rollout.max_prompt_tokens = {limit}{more} (longest: "
            f"{max(len(p.token_ids) for p in long)}). Raise the limit, or set data.overlong to "
            "'drop' or 'truncate_left'."
        )
    if action == "truncate_left":
        return [replace(p, token_ids=p.token_ids[-limit:]) for p in prompts], counts
    kept = [prompt for prompt in prompts if len(prompt.token_ids) <= limit]
    if not kept:
        raise DataError(
            f"{_name(long[0])}: all {len(long)} prompts have more than rollout.max_prompt_tokens = "
            f"{limit} tokens, and data.overlong = 'drop' leaves none."
        )
    return kept, counts


def prepare(
    prompts: Sequence[Prompt],
    encoder: PromptEncoder,
    config: RunConfig,
    *,
    model: Path,
    rank: int,
    wait: Callable[[], None],
) -> Sequence[Prompt]:
    """Prompts of a file with their tokens, within the limit; generated ones with theirs when they
    are asked for, if the chat template renders them, else as they are. All ranks call it; `wait` is
    a barrier.

    Raises:
        ConfigError: see `PromptEncoder.check_settings`.
        DataError: see `encode_all` and `fit`.
    """
    if not prompts or not prompts[0].place:
        encoder.check_settings(prompts[:1])
        rendered = config.data.chat.template == "on"
        return EncodedWhenAsked(prompts, encoder) if rendered else prompts
    file = _tokens_file(Path(config.output_dir), prompts, encoder, model)
    if rank == 0 and not file.is_file():
        _save_tokens(encode_all(prompts, encoder, bar=True), file)
    wait()
    fitting, counts = fit(_load_tokens(prompts, file), config)
    if rank == 0 and counts.too_long:
        print(f"{prompts[0].place.rpartition(':')[0]}: {counts}.", flush=True)
    return fitting


def check_prompts(config: RunConfig, say: Callable[[str], None]) -> None:
    """Read, render and tokenise all prompts of data files without a model, and show three of each.

    Token ids come from tokenizer.json alone, which takes a fraction of the start of a run.

    Raises:
        ConfigError: see `PromptEncoder.check_settings`.
        DataError: as a run would raise before its first step.
    """
    model = Path(config.model.path)
    encode = folder_encoder(model) if config.model.path else _characters
    if encode is None:
        encode = encoder_of(_slow_tokenizer(model))
    encoder = PromptEncoder.of(config, model, encode)
    for name, prompts in (
        ("train", train_prompts(config.data)),
        ("test", test_prompts(config.data)),
    ):
        found = [prompts[i] for i in range(min(_SHOWN, len(prompts)))]
        if found and found[0].place:
            encoded, counts = fit(encode_all(prompts, encoder), config)
            lengths = [len(prompt.token_ids) for prompt in encoded]
            say(f"data.{name}: {len(encoded)} prompts of {min(lengths)} to {max(lengths)} tokens")
            if counts.too_long:
                say(f"data.{name}: {counts}")
            found = encoded[:_SHOWN]
        elif found:
            found, _ = fit(encode_all(found, encoder), config)
            say(f"data.{name} is empty: {len(prompts)} prompts of data.generate")
        for prompt, text in zip(found, encoder.texts(found), strict=True):
            say(f"--- {_name(prompt)}, {len(prompt.token_ids)} tokens:\n{text}")


def _characters(texts: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """A model from scratch has one token per character."""
    return [list(map(ord, text)) for text in texts]


def _slow_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    return tokenizer


class EncodedWhenAsked(Sequence[Prompt]):
    """Generated prompts, each rendered and encoded when it is asked for."""

    def __init__(self, prompts: Sequence[Prompt], encoder: PromptEncoder) -> None:
        self._prompts, self._encoder = prompts, encoder
        self.endless: bool = getattr(prompts, "endless", False)

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        prompt = self._prompts[index]
        (ids,) = self._encoder.encode(self._encoder.texts([prompt]), [_name(prompt)])
        return replace(prompt, token_ids=tuple(ids))


def _save_tokens(prompts: Sequence[Prompt], file: Path) -> None:
    """Keep the tokens of encoded prompts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lengths = np.array([len(prompt.token_ids) for prompt in prompts], np.int64)
    tokens = np.concatenate([np.array(prompt.token_ids, np.int32) for prompt in prompts])
    fresh = file.with_suffix(".new.npz")
    np.savez(fresh, lengths=lengths, tokens=tokens)
    fresh.replace(file)


def _load_tokens(prompts: Sequence[Prompt], file: Path) -> list[Prompt]:
    """The prompts with the tokens that `_save_tokens` kept for them."""
    with np.load(file) as kept:
        ends, tokens = np.cumsum(kept["lengths"]), kept["tokens"]
    parts = np.split(tokens, ends[:-1])
    return [
        replace(prompt, token_ids=tuple(part.tolist()))
        for prompt, part in zip(prompts, parts, strict=True)
    ]


def _tokens_file(
    folder: Path, prompts: Sequence[Prompt], encoder: PromptEncoder, model: Path
) -> Path:
    """Where the tokens of these prompts are kept: a name that another content changes."""
    digest = hashlib.sha256()
    tokenizer = model / "tokenizer.json"
    digest.update(tokenizer.read_bytes() if tokenizer.is_file() else str(model).encode())
    digest.update(repr((encoder.template, encoder.chat)).encode())
    for prompt in prompts:
        digest.update(json.dumps([prompt.text, *prompt.messages]).encode())
    return folder / _FOLDER / f"{digest.hexdigest()[:32]}.npz"


def _name(prompt: Prompt) -> str:
    return prompt.place or f"prompt {prompt.id!r}"


def _batches(count: int, *, bar: bool) -> Iterator[int]:
    from tqdm import tqdm

    shown = bar and count >= _SHOW_PROGRESS_FROM
    yield from tqdm(range(0, count, _BATCH), desc="Tokenising prompts", unit="k", disable=not shown)
