"""`passk-fast convert`: a folder that other programs load as it is, with the trained logits."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from passk_fast.checkpoint.store import CorruptCheckpointError
from passk_fast.commands.convert import command, convert
from passk_fast.errors import ConfigError
from tests.actor.workers import make_folder
from tests.ranks import RankPool

pytestmark = pytest.mark.megatron

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    """A float32 run from a folder that says bfloat16 and is its owner's alone; its weights."""
    root = tmp_path_factory.mktemp("convert")
    make_folder("qwen3", str(root / "model"))
    file = root / "model" / "config.json"
    fields = json.loads(file.read_text())
    fields.pop("torch_dtype", None)
    file.write_text(json.dumps(fields | {"dtype": "bfloat16"}))
    for path in (root / "model").iterdir():
        path.chmod(0o600)
    make_run = "tests.commands.convert_workers:make_run"
    with RankPool(1) as pool:
        weights = pool.run(make_run, str(root / "model"), str(root / "run"), "float32")[0]
    return root / "run", weights


def _convert(run: Path, out: Path, *options: str) -> None:
    command = [sys.executable, "-m", "passk_fast", "convert", str(run), str(out), *options]
    umask = os.umask(0o022)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        os.umask(umask)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Wrote {out}\n"


def _logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = torch.arange(1, 30)[None]
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits.float()
    return logits


@pytest.fixture(scope="module")
def converted(made: tuple[Path, Weights], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder as converted without options."""
    out = tmp_path_factory.mktemp("converted") / "out"
    _convert(made[0], out)
    return out


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_the_folder_loads_as_it_is_with_the_trained_logits(
    made: tuple[Path, Weights], converted: Path, tmp_path: Path, name: str
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    run, weights = made
    out = converted
    if name != "float32":
        out = tmp_path / "out"
        _convert(run, out, "--dtype", name)
    dtype = getattr(torch, name)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == dtype
    assert AutoConfig.from_pretrained(out).dtype == dtype
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {dtype}
    trained = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out), dtype=dtype)
    trained.load_state_dict({key: value.to(dtype) for key, value in weights.items()}, strict=False)
    trained.tie_weights()
    assert torch.equal(_logits(loaded), _logits(trained))
    assert {stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()} == {0o644}


def test_the_model_card_holds_the_configuration_of_the_run(
    made: tuple[Path, Weights], converted: Path
) -> None:
    run, _ = made
    card = (converted / "README.md").read_text()
    head, _, body = card.removeprefix("---\n").partition("---\n")
    assert "library_name: transformers\n" in head
    assert "Weights after step 1, trained with passk_fast" in body
    shown = body.partition("```toml\n")[2].partition("```")[0]
    assert tomllib.loads(shown) == tomllib.loads((run / "config.toml").read_text())


_VLLM = """
import json, sys
from vllm import LLM, SamplingParams

tokens = list(range(1, 30))
llm = LLM(sys.argv[1], dtype="float32", skip_tokenizer_init=True, max_model_len=64)
asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
(done,) = llm.generate({"prompt_token_ids": tokens}, asked, use_tqdm=False)
found = [by_id[token].logprob for token, by_id in zip(tokens[1:], done.prompt_logprobs[1:])]
print("logprobs", json.dumps(found))
"""


@pytest.mark.slow
def test_vllm_loads_the_folder_with_the_trained_logits(converted: Path) -> None:
    from transformers import AutoModelForCausalLM

    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _VLLM, str(converted)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ) | environment,
    )
    assert "logprobs [" in done.stdout, done.stderr
    found = torch.tensor(json.loads(done.stdout.rpartition("logprobs ")[2]))
    logits = _logits(AutoModelForCausalLM.from_pretrained(converted))[0, :-1]
    expected = logits.log_softmax(-1).gather(1, torch.arange(2, 30)[:, None])[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_what_cannot_be_converted_is_named(made: tuple[Path, Weights], tmp_path: Path) -> None:
    run, _ = made
    with pytest.raises(ConfigError, match="--dtype must be one of float32, bfloat16, float16"):
        convert(str(run), str(tmp_path / "out"), "int8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="exists and is not an empty folder"):
        convert(str(run), str(tmp_path / "full"))
    with pytest.raises(ConfigError, match="is neither a run folder nor a checkpoint of one"):
        convert(str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="--dtype needs a value"):
        command(["convert", str(run), "a", "--dtype"])
    assert not (tmp_path / "out").exists()
    damaged = next((run / "checkpoints" / "step_00000001").glob("*.distcp"))
    content = damaged.read_bytes()
    try:
        damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CorruptCheckpointError, match="does not match its SHA-256"):
            convert(str(run / "checkpoints" / "step_00000001"), str(tmp_path / "out"))
    finally:
        damaged.write_bytes(content)
