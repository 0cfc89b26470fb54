"""`passk-fast import-gguf`: a GGUF file of llama.cpp -> a Hugging Face folder."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from passk_fast.commands.arguments import take
from passk_fast.errors import ConfigError, ExitCode
from passk_fast.process import quiet

_USAGE = "usage: passk-fast import-gguf FILE OUT [--dtype float32|bfloat16|float16]"


def command(arguments: list[str]) -> ExitCode:
    """`FILE OUT [--dtype ...]`."""
    arguments = list(arguments)
    dtype = take(arguments, "--dtype") or "float32"
    if len(arguments) != 2:
        raise ConfigError(_USAGE)
    quiet()
    print(f"Wrote {import_gguf(arguments[0], arguments[1], dtype)}")
    return ExitCode.DONE


def import_gguf(source: str | Path, out: str | Path, dtype: str = "float32") -> Path:
    """Write the model and the tokenizer of a GGUF file as a folder; it appears whole or not at all.

    float32 holds every value exactly as the file's quantisation means it.

    Raises:
        ConfigError: the file is no GGUF, cannot be imported exactly, or `out` is not empty.
        DiskError: `out` cannot be written.
    """
    from passk_fast.model.gguf.config import config_json, generation_config_json
    from passk_fast.model.gguf.file import GgufFile
    from passk_fast.model.gguf.tokenizer import tokenizer_of
    from passk_fast.model.shape import ModelShape
    from passk_fast.weights.gguf import tensors
    from passk_fast.weights.hf import check_new, dtype_of, whole_or_absent, write_folder

    kind = dtype_of(dtype)
    target = Path(out)
    check_new(target)
    file = GgufFile(source)
    config = {**config_json(file), "dtype": dtype}
    shape = ModelShape.parse(config, str(source))
    tokenizer = tokenizer_of(file)
    with whole_or_absent(target) as staging, tempfile.TemporaryDirectory() as scratch:
        described = Path(scratch)
        tokenizer.save_pretrained(described)
        _write_json(described / "config.json", config)
        _write_json(described / "generation_config.json", generation_config_json(file))
        write_folder(tensors(file, shape), staging, like=described, dtype=kind)
    return target


def _write_json(file: Path, fields: dict[str, object]) -> None:
    file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
