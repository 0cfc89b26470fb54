"""The chat template of a model folder, rendered as transformers does, without importing it.

Templates are Jinja programs of the folder's author; they run in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from passk_fast.errors import ConfigError
from passk_fast.model.config_json import read_json

Message = Mapping[str, object]
_SPECIAL_TOKENS = (
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """Messages -> the text that the model is trained to continue."""

    source: str
    """Jinja, as in the model folder."""
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """What the template knows as `bos_token` and so on."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Further variables of the template, such as `enable_thinking`."""

    @classmethod
    def read(cls, folder: Path, arguments: Sequence[str] = ()) -> ChatTemplate | None:
        """The folder's template: chat_template.jinja, else the (default) one of
        tokenizer_config.json; None without one. `arguments` are NAME=VALUE, values as JSON.

        Raises:
            ConfigError: it cannot be read, or is no Jinja template.
        """
        file, fields = folder / "chat_template.jinja", {}
        if (folder / "tokenizer_config.json").is_file():
            fields = read_json(folder / "tokenizer_config.json", "model.path")
        source: object = fields.get("chat_template")
        if file.is_file():
            try:
                source = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"model.path: {file} cannot be read: {error}.") from None
        if isinstance(source, list):  # several by name
            source = {entry.get("name"): entry.get("template") for entry in source}.get("default")
        if not isinstance(source, str):
            return None
        named = (argument.partition("=")[::2] for argument in arguments)
        template = cls(
            source=source,
            special_tokens=_special_tokens(folder, fields),
            arguments={name: json.loads(value) for name, value in named},
        )
        try:
            template.compiled()
        except jinja2.TemplateError as error:
            raise ConfigError(f"model.path: the chat template of {folder}: {error}.") from None
        return template

    def compiled(self) -> Callable[..., str]:
        """The program, to be called with the template's variables."""
        return _environment().from_string(self.source).render

    def renderer(self) -> Callable[[Sequence[Message]], str]:
        """A function from messages to text that ends where the model's answer begins.

        The function raises ValueError with the template's own words where it refuses messages.
        """
        render = self.compiled()

        def of(messages: Sequence[Message]) -> str:
            try:
                return render(
                    **{**self.special_tokens, **self.arguments},
                    messages=[dict(message) for message in messages],
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                )
            except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
                raise ValueError(str(error) or type(error).__name__) from None

        return of


def _special_tokens(folder: Path, fields: Mapping[str, object]) -> dict[str, str]:
    """By name; tokenizer_config.json says more than the older special_tokens_map.json."""
    file = folder / "special_tokens_map.json"
    known = {**(read_json(file, "model.path") if file.is_file() else {}), **fields}
    found = {}
    for name in _SPECIAL_TOKENS:
        value = known.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's part for training: its content alone."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own way

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The statements inside of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes for HTML of Jinja's own filter."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
