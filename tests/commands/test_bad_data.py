"""Data files that cannot be trained on: one paragraph, its place, exit code 10, at --dry-run."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from passk_fast.config import DataConfig, ModelConfig, RolloutConfig, RunConfig
from passk_fast.errors import DataError, ExitCode
from passk_fast.run.prompts import check_prompts
from tests.empty_weights import write_empty_weights
from tests.model.test_chat_template import INST, make_tokenizer

GOOD: Mapping[str, Any] = {"prompt": "1 + 1?", "answer": "2", "task": "exact"}
USER = {"role": "user", "content": "hi"}


def _lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _row(**changes: object) -> bytes:
    """A good line, and a second one with changes; None removes a field."""
    second = {name: v for name, v in {**GOOD, **changes}.items() if v is not None}
    return _lines(GOOD, second)


def _raw(text: str) -> bytes:
    return _lines(GOOD) + text.encode() + b"\n"


def _parquet(**columns: object) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


_LINE = r"a\.jsonl:2: "
_ROW_CASES: dict[str, tuple[bytes, str]] = {
    "no prompt": (_row(prompt=None), "field 'prompt' is missing"),
    "empty prompt": (_row(prompt=""), "field 'prompt' is empty"),
    "prompt of no messages": (_row(prompt=[]), "field 'prompt' is empty"),
    "number as prompt": (_row(prompt=3), "field 'prompt' must be text, got int"),
    "object as prompt": (_row(prompt={"a": 1}), "field 'prompt' must be text, got dict"),
    "true as prompt": (_row(prompt=True), "field 'prompt' must be text, got bool"),
    "message that is text": (_row(prompt=["hi"]), "message 0 has no role"),
    "message without role": (_row(prompt=[{"content": "x"}]), "message 0 has no role"),
    "message without content": (_row(prompt=[{"role": "user"}]), "message 0 has no content"),
    "content of parts": (
        _row(prompt=[{"role": "user", "content": [{"type": "image"}]}]),
        "message 0 has no content that is text",
    ),
    "role that is a number": (_row(prompt=[{"role": 1, "content": "x"}]), "message 0 has no role"),
    "ends with the assistant": (
        _row(prompt=[USER, {"role": "assistant", "content": "x"}]),
        "ends with a message of the assistant",
    ),
    "empty last message": (_row(prompt=[{"role": "user", "content": ""}]), "last message is empty"),
    "refused by the template": (_row(prompt=[USER, USER]), "the chat template: roles must"),
    "no answer": (_row(answer=None), "field 'answer' is missing"),
    "empty answer": (_row(answer=""), "field 'answer' is empty"),
    "list as answer": (_row(answer=["2"]), "field 'answer' must be text, got list"),
    "object as answer": (_row(answer={"a": 1}), "field 'answer' must be text, got dict"),
    "no task": (_row(task=None), "field 'task' is missing; data.task names one"),
    "empty task": (_row(task=""), "field 'task' is empty"),
    "number as task": (_row(task=7), "field 'task' must be text, got int"),
    "unknown task": (_row(task="chess"), "field 'task': task 'chess' is unknown"),
    "module that is missing": (_row(task="no_such:f"), "field 'task': .*no_such"),
    "maze that is none": (_row(task="maze"), "field 'prompt' holds no maze"),
    "true as id": (_row(id=True), "field 'id' must be text or a whole number, got bool"),
    "fraction as id": (_row(id=1.5), "field 'id' must be text or a whole number, got float"),
    "list as id": (_row(id=[1]), "field 'id' must be text or a whole number, got list"),
    "id used before": (
        _lines({**GOOD, "id": "x"}, {**GOOD, "id": "x"}),
        "id 'x' was used before, in .*:1",
    ),
    "id that is another row's number": (_row(id="0"), "id '0' was used before"),
    "too long": (_row(prompt="x" * 65), "field 'prompt' has 65 tokens, more than"),
    "surrogate in the prompt": (
        _raw(json.dumps({**GOOD, "prompt": "\ud800"})),
        "'prompt' holds half",
    ),
    "surrogate in the answer": (
        _raw(json.dumps({**GOOD, "answer": "\udfff"})),
        "'answer' holds half",
    ),
    "surrogate in the id": (_raw(json.dumps({**GOOD, "id": "\ud83d"})), "'id' holds half"),
    "surrogate in a column": (
        _raw(json.dumps({**GOOD, "hint": {"a": ["\ud800"]}})),
        "'hint' holds half",
    ),
    "surrogate in a column's name": (_raw(json.dumps({**GOOD, "\ud800": 1})), "holds half"),
    "surrogate in a message": (
        _raw(json.dumps({**GOOD, "prompt": [{"role": "user", "content": "\ud800"}]})),
        "'prompt' holds half",
    ),
    "integer of 5,000 digits": (
        _raw('{"prompt": "a", "answer": ' + "1" * 5000 + "}"),
        "not JSON that",
    ),
    "nested too deeply": (_raw('{"a": ' * 100_000), "nested too deeply"),
    "NaN": (_raw('{"prompt": "a", "answer": NaN, "task": "exact"}'), "NaN is no number in JSON"),
    "infinity": (_raw('{"prompt": "a", "answer": Infinity}'), "Infinity is no number in JSON"),
    "a number beyond floats": (
        _raw('{"prompt": "a", "answer": 1e999, "task": "exact"}'),
        "must be a finite number",
    ),
    "text cut off": (_raw('{"prompt": "a'), "not JSON: Unterminated string"),
    "single quotes": (_raw("{'prompt': 'a'}"), "not JSON: Expecting property name"),
    "a comma at the end": (_raw('{"prompt": "a",}'), "not JSON"),
    "two objects on a line": (_raw("{} {}"), "not JSON: Extra data"),
    "a raw tab in a string": (_raw('{"prompt": "a\tb"}'), "not JSON: Invalid control character"),
    "a list": (_raw("[1]"), "must be an object"),
    "a number": (_raw("3"), "must be an object"),
    "null": (_raw("null"), "must be an object"),
    "bytes that are not UTF-8": (_lines(GOOD) + b"\xff\xfe\n", "not UTF-8 text"),
    "latin-1": (_lines(GOOD) + '{"prompt": "ü"}'.encode("latin-1"), "not UTF-8 text"),
}
_FILE_CASES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.jsonl", b"", r"a\.jsonl: it holds no prompts"),
    "blank lines": ("a.jsonl", b"\n \r\n", r"a\.jsonl: it holds no prompts"),
    "only a byte-order mark": ("a.jsonl", b"\xef\xbb\xbf", r"a\.jsonl: it holds no prompts"),
    "an empty list": ("a.json", b"[]", r"a\.json: it holds no prompts"),
    "a list cut off": ("a.json", b'[{"prompt": "a"}', r"a\.json: not JSON"),
    "a list of text": ("a.json", b'["a"]', r"a\.json: row 0: must be an object"),
    "another suffix": ("a.txt", _lines(GOOD), r"a\.txt: must be a \.jsonl"),
    "no gzip": ("a.jsonl.gz", _lines(GOOD), r"a\.jsonl\.gz: not a gzip file"),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(_lines(GOOD))[:-4], r"gz: not a gzip file"),
    "gzip of a bad line": ("a.jsonl.gz", gzip.compress(_raw("x")), r"a\.jsonl\.gz:2: not JSON"),
    "CSV with a short row": ("a.csv", b"prompt,answer,task\na,b\n", r"a\.csv:2: a row must have 3"),
    "CSV with a long row": (
        "a.csv",
        b"prompt,answer,task\na,b,c,d\n",
        r"a\.csv:2: a row must have",
    ),
    "CSV with a column twice": (
        "a.csv",
        b"prompt,prompt\na,b\n",
        r"a\.csv:1: a column is named tw",
    ),
    "CSV with an open quote": ("a.csv", b'prompt,answer,task\n"a,b,c\n', r"a\.csv:\d+: not CSV"),
    "CSV after lines in a field": (
        "a.csv",
        b'prompt,answer,task\n"a\n\nb",1,exact\nc,,exact\n',
        r"a\.csv:5: field 'answer' is empty",
    ),
    "no Parquet": ("a.parquet", b"PAR1", r"a\.parquet: not a readable Parquet file"),
    "Parquet with a null": (
        "a.parquet",
        _parquet(prompt=["a", None], answer=["1", "2"], task=["exact"] * 2),
        r"a\.parquet: row 1: field 'prompt' is missing",
    ),
    "Parquet of bytes": (
        "a.parquet",
        _parquet(prompt=[b"a"], answer=["1"], task=["exact"]),
        r"a\.parquet: row 0: field 'prompt' must be text, got bytes",
    ),
    "Parquet without rows": ("a.parquet", _parquet(prompt=[]), r"a\.parquet: it holds no prompts"),
}


def _config(tmp_path: Path, name: str, content: bytes) -> RunConfig:
    (tmp_path / name).write_bytes(content)
    make_tokenizer(tmp_path / "model", INST)
    return RunConfig(
        output_dir=str(tmp_path / "run"),
        model=ModelConfig(path=str(tmp_path / "model")),
        rollout=RolloutConfig(max_prompt_tokens=64),
        data=DataConfig(train=str(tmp_path / name)),
    )


def _message(config: RunConfig) -> str:
    with pytest.raises(DataError) as caught:
        check_prompts(config, lambda text: None)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    text = str(caught.value)
    text.encode()  # it can be printed
    assert "\n" not in text, "one paragraph"
    return text


@pytest.mark.parametrize("case", _ROW_CASES)
def test_a_bad_row_is_named_by_line_and_field(tmp_path: Path, case: str) -> None:
    content, words = _ROW_CASES[case]
    message = _message(_config(tmp_path, "a.jsonl", content))
    assert re.search(f"{_LINE}.*{words}", message), message


@pytest.mark.parametrize("case", _FILE_CASES)
def test_a_bad_file_is_named(tmp_path: Path, case: str) -> None:
    name, content, words = _FILE_CASES[case]
    message = _message(_config(tmp_path, name, content))
    assert re.search(words, message), message


@pytest.mark.parametrize("case", ["too long", "surrogate in the prompt", "nested too deeply"])
def test_the_command_says_so_at_dry_run(tmp_path: Path, case: str) -> None:
    config = _config(tmp_path, "a.jsonl", _ROW_CASES[case][0])
    fields = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "vocab_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 4096,
    }
    folder = Path(config.model.path)
    (folder / "config.json").write_text(json.dumps(fields))
    write_empty_weights(folder)
    (tmp_path / "c.toml").write_text(
        f"output_dir = {json.dumps(config.output_dir)}\n[model]\npath = {json.dumps(str(folder))}\n"
        f"[data]\ntrain = {json.dumps(config.data.train)}\n[rollout]\nmax_prompt_tokens = 64\n"
    )
    command = [sys.executable, "-m", "passk_fast", "train", str(tmp_path / "c.toml"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.BAD_DATA, done.stderr
    assert done.stderr.startswith(f"error: {config.data.train}:2: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr


def test_odd_but_good_files_are_read(tmp_path: Path) -> None:
    odd = {**GOOD, "prompt": "a\u2028b\u0085c \U0001f680", "answer": 1.0, "id": 7}
    content = b"\xef\xbb\xbf" + _lines(GOOD, odd).replace(b"\n", b"\r\n") + b"\r\n"
    said: list[str] = []
    check_prompts(_config(tmp_path, "a.jsonl", content), said.append)
    assert said[0].startswith("data.train: 2 prompts")
    check_prompts(_config(tmp_path, "a.jsonl.gz", gzip.compress(content)), said.append)
    listed = json.dumps([GOOD, odd]).encode()
    check_prompts(_config(tmp_path, "a.json", listed), said.append)
    table = b'prompt,answer,task\n"a ""b""\nc",2,exact\n'
    check_prompts(_config(tmp_path, "a.csv", table), said.append)
    assert said[-1].endswith('a "b"\nc')
