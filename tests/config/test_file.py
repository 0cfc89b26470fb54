"""Reading configurations: everything wrong is one clear ConfigError."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from passk_fast.config import ChatConfig, DataConfig, RunConfig
from passk_fast.config.fields import field_types, parse_overrides
from passk_fast.config.file import (
    differing_fields,
    dump_toml,
    flatten,
    help_text,
    load_config,
)
from passk_fast.config.renamed import RENAMED
from passk_fast.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))

BAD_FILES = {
    "steps = \nseed = 1": ("bad.toml:1", "not valid TOML"),
    "stepz = 3": ("bad.toml:1: stepz: unknown key", "'steps'"),
    "[optim]\nlearning_rate = 1.0": ("bad.toml:2: optim.learning_rate: unknown key", "Known:"),
    "[optim]\nlrr = 1.0": ("bad.toml:2", "'optim.lr'"),
    "optim.lrr = 1.0": ("bad.toml:1", "'optim.lr'"),
    "[opttim]\nlr = 1.0": ("bad.toml:1: opttim: unknown key", "'optim'"),
    'steps = "3"': ("bad.toml:1: steps: must be a whole number", "'3'"),
    "steps = 3.5": ("steps: must be a whole number", "float"),
    "steps = true": ("steps: must be a whole number", "bool"),
    "[optim]\nlr = true": ("optim.lr: must be a number", "bool"),
    '[optim]\nlr = "x"': ("optim.lr: must be a number", "str"),
    "optim = 3": ("optim: must be a table", "3"),
    "output_dir = 3": ("output_dir: must be text", "3"),
    '[optim]\nschedule = "linear"': ("optim.schedule: must be one of", "'cosine'"),
    '[model]\ndtype = "fp16"': ("model.dtype: must be one of", "'bfloat16'"),
    "[data.maze]\ntrain_sizes = 7": ("data.maze.train_sizes: must be a list", "7"),
    '[data.maze]\ntrain_sizes = ["7"]': ("data.maze.train_sizes: must be a whole number", "'7'"),
    "[data.maze]\ntrain_sizes = []": ("bad.toml:2", "at least one size"),
    "[data.maze]\ntrain_sizes = [8]": ("bad.toml:2", "odd sizes from 5 to 21, got 8"),
    "[data.maze]\ntest_sizes = [23]": ("bad.toml:2", "got 23"),
    "steps = 0": ("bad.toml:1", "must be positive, got 0"),
    "[algorithm]\nk = 17\nnum_rollouts = 16": ("bad.toml:2", "between 1 and"),
    "[algorithm]\nk = 16\nnum_rollouts = 16": ("bad.toml:2", "every analytic Pass@k advantage is"),
    "[algorithm]\nk = 0": ("bad.toml:2", "got 0"),
    "[algorithm]\nnum_rollouts = 1": ("bad.toml:2", "at least 2"),
    '[algorithm]\nestimator = "grpo"\nk = 4': ("bad.toml:2", "ignores k"),
    "[loss]\nclip_low = 1.5": ("bad.toml:2: loss.clip_low", "below 1"),
    "[loss]\nclip_high = -0.1": ("bad.toml:2: loss.clip_high", "0 or more"),
    "[loss]\ndual_clip = 0.5": ("bad.toml:2: loss.dual_clip", "above 1"),
    '[loss]\nobjective = "cispo"\ndual_clip = 3.0': ("bad.toml:3: loss.dual_clip", "no effect"),
    '[loss]\nobjective = "ppo"': ("bad.toml:2: loss.objective", "'cispo'"),
    "[loss]\nclip_hihg = 0.1": ("bad.toml:2: loss.clip_hihg", "'loss.clip_high'"),
    '[loss]\nratio = "sequence"\n[parallel]\ncontext = 2': (
        "bad.toml:2: loss.ratio",
        "Set parallel.context = 1",
    ),
    "[algorithm]\nminibatches = 5": ("minibatches", "multiple"),
    "[optim]\nbeta2 = 1.5": ("bad.toml:2", "[0, 1)"),
    "[optim]\nlr = 0": ("bad.toml:2", "must be positive"),
    "[parallel]\nvirtual_pipeline = 2": ("bad.toml:2", "needs parallel.pipeline > 1"),
    "[parallel]\ntensor = 0": ("bad.toml:2", "positive"),
    "[model.shape]\nnum_heads = 3": ("bad.toml:2", "multiple of"),
    "[model.shape]\nnum_experts = 4": ("bad.toml:2", "no effect with architecture = 'qwen3'"),
    '[model.shape]\narchitecture = "qwen3_moe"': ("bad.toml", "experts_per_token (0)"),
    '[model.shape]\narchitecture = "qwen3_moe"\nnum_experts = 4\nexperts_per_token = 5': (
        "bad.toml:4",
        "between 1 and",
    ),
    "[algorithm]\nbalance_coef = -1": ("bad.toml:2", "0 or more"),
    '[algorithm]\nbalance_coef = 0.1\nskip_zero_advantage = "on"': (
        "bad.toml:3",
        "zero advantage too",
    ),
    "[algorithm]\nbalance_bias_rate = 0.1": ("bad.toml:2", "does not know the router bias"),
    "[loss]\ntis_clip = 2.0\n[logprob_gap]\nmax = 1.0\n[algorithm]\nbalance_bias_rate = 0.1\n"
    "routing_replay = 'replay'": ("bad.toml", "does not leave to the trainer"),
    "[rollout]\nearly_stop = true\n[algorithm]\nbalance_coef = 0.1": ("early_stop", "balance_coef"),
    "[bench]\ndecode = false\n[algorithm]\nrouting_replay = 'measure'": ("random tokens have no",),
    "[rollout]\ngpu_memory_utilization = 1.5": ("bad.toml:2", "(0, 1]"),
    "micro_batch_tokens = 10": ("bad.toml:1", "must hold the longest sequence"),
    "[eval]\nnum_rollouts = 2": ("bad.toml:2", "at least algorithm.k"),
    "[checkpoint]\nkeep = 0": ("bad.toml:2", "positive"),
    'base = "missing.toml"': ("missing.toml", "no such file"),
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    for part in BAD_FILES[text]:
        assert part in str(caught.value)


BAD_FLAGS = {
    ("--optim.lrr", "1"): "Did you mean --optim.lr?",
    ("--stepz", "1"): "Did you mean --steps?",
    ("--optim.lr", "fast"): "fast",
    ("--algorithm.k", "99"): "between 1 and",
    ("--steps",): "steps",
    ("--loss.clip-low", "1.5"): "loss.clip_low must be below 1",
    ("--loss.dual-clip", "3", "--loss.objective", "cispo"): "loss.dual_clip has no effect",
    ("--optim.schedule", "linear"): "cosine",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags_are_named(tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / "c.toml").write_text("model.shape.max_positions = 2048\n")
    with pytest.raises(ConfigError, match="command line") as caught:
        load_config(tmp_path / "c.toml", flags)
    assert BAD_FLAGS[flags] in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config("nowhere.toml")


def test_flags_go_on_top_of_the_file_and_the_file_on_top_of_its_base(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        "steps = 3\n[optim]\nlr = 1.0\nbeta1 = 0.5\n[model.shape]\nmax_positions = 2048\n"
    )
    (tmp_path / "top.toml").write_text('base = "base.toml"\n[optim]\nlr = 2.0\n')
    config = load_config(tmp_path / "top.toml", ["--optim.eps", "1e-6"])
    assert (config.steps, config.optim.lr, config.optim.beta1) == (3, 2.0, 0.5)
    assert config.optim.eps == 1e-6


def test_switches_can_be_turned_off(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("share_prompts = true\n[model.shape]\nmax_positions = 2048\n")
    config = load_config(tmp_path / "c.toml", ["--no-share-prompts", "--rollout.no-sleep"])
    assert not config.share_prompts
    assert not config.rollout.sleep


@pytest.mark.parametrize("value", ["auto", True, False])
def test_a_switch_may_be_left_to_the_run(tmp_path: Path, value: str | bool) -> None:
    text = "true" if value is True else "false" if value is False else '"auto"'
    (tmp_path / "c.toml").write_text(
        f"share_prompts = {text}\n[model.shape]\nmax_positions = 2048\n"
    )
    config = load_config(tmp_path / "c.toml")
    assert config.share_prompts is value or config.share_prompts == value == "auto"
    (tmp_path / "again.toml").write_text(dump_toml(config))
    assert load_config(tmp_path / "again.toml") == config
    (tmp_path / "other.toml").write_text("[model.shape]\nmax_positions = 2048\n")
    assert load_config(tmp_path / "other.toml", [f"--share-prompts={value}"]) == config
    assert load_config(tmp_path / "other.toml", ["--share-prompts"]).share_prompts is True
    with pytest.raises(ConfigError, match="must be one of 'auto', true, false, got 'on'"):
        load_config(tmp_path / "other.toml", ["--share-prompts", "on"])


def test_a_base_of_a_base_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    (tmp_path / "b.toml").write_text('base = "a.toml"')
    (tmp_path / "c.toml").write_text('base = "b.toml"')
    with pytest.raises(ConfigError, match="cannot have a base itself"):
        load_config(tmp_path / "c.toml")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.name)
def test_shipped_configs_load_and_round_trip(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    (tmp_path / "again.toml").write_text(dump_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "again.toml") == config


def test_a_run_is_the_same_wherever_it_goes_and_however_it_is_split() -> None:
    def config(**changes: object) -> RunConfig:
        flags = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
        return load_config(CONFIGS[0], flags)

    a = config()
    same = config(**{"output-dir": "x", "steps": 7, "parallel.tensor": 2, "eval.every": 3})
    other = config(**{"optim.lr": 0.5})
    assert differing_fields(a, same) == []
    assert differing_fields(a, other) == ["optim.lr"]
    moved = config(**{"model.path": "x", "data.test": "y"})
    assert differing_fields(a, moved) == ["model.path", "data.test"]
    assert differing_fields(a, moved, by_content=True) == []


def test_every_option_of_the_loss_reaches_a_run(tmp_path: Path) -> None:
    options = {
        "clip_low": 0.1,
        "clip_high": 0.3,
        "dual_clip": 3.0,
        "tis_clip": 2.0,
        "kl_coef": 0.1,
        "kl_estimator": "k2",
        "entropy_coef": 0.01,
        "objective": "clip",
        "ratio": "sequence",
        "importance_min": 0.5,
        "importance_max": 4.0,
    }
    (tmp_path / "c.toml").write_text(
        "model.shape.max_positions = 2048\n[loss]\n"
        + "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    )
    assert dataclasses.asdict(load_config(tmp_path / "c.toml").loss) == options


def test_one_option_of_the_loss_leaves_the_others_at_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("model.shape.max_positions = 2048\nloss.clip_low = 0.1\n")
    loss = load_config(tmp_path / "c.toml", ["--loss.tis-clip", "2"]).loss
    assert (loss.clip_low, loss.clip_high, loss.tis_clip) == (0.1, 0.28, 2.0)


def test_help_documents_every_section() -> None:
    text = help_text()
    for name in (
        "--optim.lr",
        "--algorithm.k",
        "--loss.importance-max",
        "--data.maze.style",
        "--parallel.tensor",
    ):
        assert name in text


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_names_the_new_one(tmp_path: Path, old: str, new: str) -> None:
    section, _, key = old.rpartition(".")
    file = tmp_path / "old.toml"
    file.write_text(f"[{section}]\n{key} = 1\n" if section else f"{key} = 1\n")
    with pytest.raises(ConfigError, match=rf"old\.toml:\d: .*is now called {new}\."):
        load_config(file)
    with pytest.raises(ConfigError, match=f"is now called --{new.replace('_', '-')}"):
        load_config(CONFIGS[0], [f"--{old.replace('_', '-')}", "1"])
    assert new in dict(flatten(RunConfig()))


@pytest.mark.parametrize("width", [60, 100])
def test_help_texts_are_whole_paragraphs(width: int) -> None:
    """A line ends only where the next word would not have fitted."""
    lines = help_text(width).splitlines()
    pairs = [pair for pair in pairwise(lines) if all(line.startswith(" " * 8) for line in pair)]
    assert len(pairs) > 50
    for line, following in pairs:
        assert len(line) + 1 + len(following.split()[0]) > width, line
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_number_of_a_configuration_is_infinite_or_none(value: str) -> None:
    fields = [name for name, hint in field_types().items() if hint is float]
    assert len(fields) > 30
    for field in fields:
        with pytest.raises(ConfigError, match=re.escape(field)):
            load_config(CONFIGS[0], [f"--{field}={value}"])


def test_the_command_line_takes_every_type_of_value() -> None:
    given = (
        "--steps 7 --optim.lr=1e-4 --rollout.no-sleep --share-prompts true --device cpu "
        "--data.maze.train_sizes 7 9 --algorithm.schedule.kind phases --algorithm.k 2 "
        "--algorithm.schedule.ks 4 2 --algorithm.schedule.steps 3 0 --optim.weight-decay 0.1"
    )
    assert parse_overrides(given.split()) == {
        "steps": 7,
        "optim": {"lr": 1e-4, "weight_decay": 0.1},
        "rollout": {"sleep": False},
        "share_prompts": True,
        "device": "cpu",
        "data": {"maze": {"train_sizes": [7, 9]}},
        "algorithm": {"schedule": {"kind": "phases", "ks": [4, 2], "steps": [3, 0]}, "k": 2},
    }
    assert parse_overrides(["--algorithm.options", "tau", "0.5", "--no-share-prompts"]) == {
        "algorithm": {"options": {"tau": 0.5}},
        "share_prompts": False,
    }
    assert parse_overrides(["--optim.lr", "1", "--optim.lr", "2", "--optim.grad-clip", "-1"]) == {
        "optim": {"lr": 2.0, "grad_clip": -1.0}
    }


def test_the_place_of_a_rule_is_where_the_field_was_written(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("[algorithm]\n# of the base\nk = 12\n")
    (tmp_path / "top.toml").write_text('base = "base.toml"\nsteps = 4\n')
    with pytest.raises(
        ConfigError, match=r"base\.toml:3: algorithm\.k must be between 1 and .* = 8, got 12"
    ):
        load_config(tmp_path / "top.toml", ["--algorithm.num-rollouts", "8"])
    with pytest.raises(ConfigError, match=r"^command line: algorithm\.k must be"):
        load_config(tmp_path / "top.toml", ["--algorithm.k", "0"])
    good = ["--algorithm.num-rollouts", "32", "--eval.num-rollouts", "16"]
    config = load_config(tmp_path / "top.toml", [*good, "--model.shape.max-positions", "2048"])
    assert (config.algorithm.k, config.steps) == (12, 4)


@pytest.mark.parametrize(
    "text",
    [
        "größe",
        "模型",
        "\U0001f680",
        "\U0001d53c",
        'a"b',
        "a\\b",
        "a\tb",
        "a\x7fb",
        "a\nb",
        "a\u2028b",
    ],
)
def test_a_written_configuration_reads_back_whatever_characters_it_holds(
    tmp_path: Path, text: str
) -> None:
    config = RunConfig(data=DataConfig(chat=ChatConfig(system=text)))
    (tmp_path / "config.toml").write_text(dump_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.toml") == config


def test_text_that_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    with pytest.raises(ConfigError, match=r"output_dir: must be text that UTF-8 can hold"):
        load_config(tmp_path / "a.toml", ["--output-dir", "a\udcff"])
