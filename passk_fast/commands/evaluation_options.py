"""Which options of a run `passk-fast eval` takes on its command line, and which it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from passk_fast.config.fields import field_types, parse_overrides
from passk_fast.errors import ConfigError

OBEYED = frozenset(
    {
        "output_dir",
        "seed",
        "timeout_s",
        "device",
        "model.dtype",
        "algorithm.k",
        "eval.num_prompts",
        "eval.num_rollouts",
        "eval.temperature",
        "eval.top_p",
        "data.test",
        "data.columns.prompt",
        "data.columns.answer",
        "data.columns.task",
        "data.columns.id",
        "data.chat.template",
        "data.chat.system",
        "data.chat.arguments",
        "data.task",
        "data.overlong",
        "data.verifier",
        "data.generate",
        "data.seed",
        "data.maze.test_sizes",
        "data.maze.test_per_size",
        "data.maze.style",
        "data.maze.lenient",
        "data.puzzles.generators",
        "data.puzzles.test_per_generator",
        "data.puzzles.difficulty",
        "data.puzzles.options",
        "data.puzzles.partial_credit",
        "rollout.tensor",
        "rollout.max_prompt_tokens",
        "rollout.max_response_tokens",
        "rollout.stop",
        "rollout.stop_token_ids",
        "rollout.truncated",
        "rollout.max_num_seqs",
        "rollout.prefix_caching",
        "rollout.kv_cache_gib",
        "rollout.cpu_fast_path",
        "rollout.gpu_memory_utilization",
        "rollout.enforce_eager",
        "rollout.verify_processes",
        "rollout.verify_timeout_s",
        "rollout.verify_memory_mib",
        "rollout.max_verifier_failures",
    }
)
"""Fields that change what an evaluation does."""

REFUSED = {
    "algorithm.": "it trains nothing",
    "bench.": "only `passk-fast bench` reads it",
    "checkpoint.": "it saves nothing",
    "data.curriculum": "it takes every held-out prompt once",
    "data.maze.fresh": "it makes no training prompts",
    "data.maze.train": "it makes no training prompts",
    "data.puzzles.train": "it makes no training prompts",
    "data.train": "it reads data.test alone",
    "eval.every": "it evaluates once",
    "lm_head_loss": "it trains nothing",
    "logprob_gap.": "it trains nothing",
    "loss.": "it trains nothing",
    "micro_batch_tokens": "it trains nothing",
    "model.": "the model is that of the run folder, or --model FOLDER",
    "optim.": "it trains nothing",
    "parallel.": "the model is split as rollout.tensor says",
    "prompts_per_step": "--eval.num-prompts sets how many prompts it takes",
    "rollout.dedicated_ranks": "every rank samples",
    "rollout.dynamic_sampling": "it takes every held-out prompt once",
    "rollout.early_stop": "it samples every response to its end",
    "rollout.max_off_policy_steps": "the weights do not change",
    "rollout.sleep": "nothing else needs the memory",
    "rollout.sync_mib": "the weights do not change",
    "rollout.temperature": "--eval.temperature sets it",
    "rollout.verify_weights": "the weights do not change",
    "share_prompts": "it trains nothing",
    "steps": "it takes no steps",
    "stop_grace_s": "it saves nothing",
    "warm_start.": "it trains nothing",
}
"""Beginning of a field's name -> why it can change nothing; the longest that fits counts."""


def refusal(field: str) -> str | None:
    """Why a field has no effect on an evaluation; None for one that is obeyed."""
    if field in OBEYED:
        return None
    fits = [start for start in REFUSED if field.startswith(start)]
    return REFUSED[max(fits, key=len)] if fits else None


def given_fields(overrides: Sequence[str]) -> list[str]:
    """All fields that `--key value` arguments set; ConfigError for a bad argument."""
    return list(_fields_in(parse_overrides(overrides), ""))


def _fields_in(table: Mapping[str, object], prefix: str) -> Iterator[str]:
    for key, value in table.items():
        name = prefix + key
        if name not in field_types() and isinstance(value, dict):
            yield from _fields_in(value, name + ".")
        else:
            yield name


def flag_of(field: str) -> str:
    """How the command line names a field."""
    return "--" + field.replace("_", "-")


def check_overrides(overrides: Sequence[str]) -> None:
    """ConfigError for an option on the command line that could change nothing."""
    for field in given_fields(overrides):
        why = refusal(field)
        if why is not None:
            flag = flag_of(field)
            raise ConfigError(
                f"command line: {flag} has no effect on `passk-fast eval`: {why}. Leave it out."
            )
