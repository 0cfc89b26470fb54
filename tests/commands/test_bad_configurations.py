"""Bad configurations of every kind: one paragraph with place, field and remedy, at --dry-run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from passk_fast.commands.main import main
from passk_fast.errors import ExitCode

GOOD = "model.shape.max_positions = 2048\n"
PLACE = re.compile(r"error: ((c|base)\.toml:\d+(:\d+)?|c\.toml|command line): ")

# text of the file below GOOD's line -> words of the message
SYNTAX = {
    'output_dir = "runs': ("c.toml:2:19", "Unterminated string", "Close the quotes"),
    'output_dir = "runs\nsteps = 3': ("c.toml:2:19", "Close the quotes"),
    'output_dir = """runs\n': ("c.toml:2", "Close the quotes"),
    "steps = 1\nsteps = 2": ("c.toml:3", "each key and each table once"),
    "[optim]\nlr = 1.0\n[optim]\neps = 1.0": ("c.toml:4", "each table once"),
    "optim = 3\noptim.lr = 1.0": ("c.toml:3", "each key"),
    "[optim\nlr = 1.0": ("c.toml:2:7", "with ]"),
    "steps =": ("c.toml:2:8", "needs a value"),
    "steps =\nseed = 1": ("c.toml:2:8", "needs a value"),
    "share_prompts = True": ("c.toml:2:17", "true and false in small letters"),
    "output_dir = runs/first": ("c.toml:2:14", "Text stands in quotes"),
    "steps = None": ("c.toml:2:9", "leave the key out"),
    "steps: 3": ("c.toml:2:6", "not `key: value`"),
    '{"steps": 3}': ("c.toml:2:1", "not as JSON"),
    "steps = 3;": ("c.toml:2:10", "`key = value`"),
    "steps = 3 // three": ("c.toml:2:11", "`key = value`"),
    "steps = 1\0": ("c.toml:2:10",),
    "[data.maze]\ntrain_sizes = [7, 9": ("c.toml:3", "Close the list with ]"),
    "= 3": ("c.toml:2:1", "`key = value`"),
    "optim. = 3": ("c.toml:2:8",),
    "steps = " + "9" * 5000: ("c.toml:2", "thousands of digits"),
    "steps = " + "[" * 5000: ("c.toml:2", "nested too deeply"),
}
KEYS = {
    "stepz = 3": ("c.toml:2: stepz: unknown key", "'steps'"),
    "Steps = 3": ("c.toml:2", "'steps'"),
    '"steps " = 3': ("c.toml:2", "'steps'"),
    "prompts-per-step = 3": ("c.toml:2", "'prompts_per_step'"),
    "[optimizer]\nlr = 1.0": ("c.toml:2: optimizer", "'optim'"),
    "[algorithm.schedule]\nkindd = 'x'": ("c.toml:3", "'algorithm.schedule.kind'"),
    "k = 4": ("c.toml:2: k", "'algorithm.k'"),
    "[optim]\nk = 4": ("c.toml:3: optim.k", "'algorithm.k'"),
    "lr = 1.0": ("'optim.lr'", "'warm_start.lr'"),
    "optim_lr = 1.0": ("'optim.lr'",),
    "zzzqqq = 3": ("c.toml:2: zzzqqq", "Known: output_dir"),
    "[foo.bar]\nx = 1": ("c.toml:2: foo", "Known: "),
    "[optim]\nlearning_rate = 1.0": ("c.toml:3: optim.learning_rate", "Known: lr"),
    "[rollout]\nlag = 1": ("c.toml:3", "now called rollout.max_off_policy_steps"),
    "base = 3": ("c.toml:2: base", "path of a TOML file"),
    "base = ['a.toml']": ("c.toml:2: base", "path of a TOML file"),
    "base = ''": ("c.toml:2: base", "path of a TOML file"),
    "base = 'nowhere.toml'": ("c.toml:2: base: nowhere.toml", "no such file"),
    "base = 'folder'": ("c.toml:2: base: folder", "Is a directory"),
    "base = 'c.toml'": ("c.toml", "cannot have a base itself"),
    "base = 'base.toml'": ("base.toml:3: optim.lr: must be a number", "'fast'"),
}
TYPES = {
    "steps = '3'": ("c.toml:2: steps: must be a whole number", "'3'"),
    "steps = 3.0": ("must be a whole number",),
    "steps = true": ("must be a whole number",),
    "steps = 2026-01-01": ("must be a whole number",),
    "steps = 99999999999999999999": ("c.toml:2: steps", "64 bits"),
    "share_prompts = 1": ("c.toml:2: share_prompts: must be one of 'auto', true, false",),
    "share_prompts = 'true'": ("must be one of 'auto', true, false",),
    "[rollout]\nearly_stop = 1": ("c.toml:3: rollout.early_stop: must be true or false",),
    "[rollout]\nearly_stop = 'true'": ("must be true or false",),
    "[optim]\nlr = '1e-6'": ("c.toml:3: optim.lr: must be a number",),
    "optim = 1e-6": ("c.toml:2: optim: must be a table",),
    "optim = []": ("optim: must be a table",),
    "[[optim]]\nlr = 1.0": ("c.toml:2: optim: must be a table",),
    "[algorithm]\noptions = [1]": ("c.toml:3: algorithm.options: must be a table",),
    "[algorithm]\noptions = {tau = 'x'}": ("c.toml:3: algorithm.options.tau: must be a number",),
    "model.dtype = 16": ("c.toml:2: model.dtype: must be one of 'float32', 'bfloat16'",),
    "model.dtype = 'fp16'": ("'bfloat16'", "got 'fp16'"),
    "model.dtype = ['float32']": ("must be one of",),
    "model.dtype = {a = 1}": ("must be one of",),
    "[data.maze]\ntrain_sizes = 7": ("c.toml:3: data.maze.train_sizes: must be a list",),
    "[data.maze]\ntrain_sizes = ['7']": ("data.maze.train_sizes: must be a whole number",),
    "[data]\ntrain = ['a.jsonl']": ("c.toml:3: data.train: must be text",),
    'data.train = "a\\u0000b"': ("c.toml:2: data.train", "NUL"),
    'output_dir = "C:\\new"': ("c.toml:2: output_dir", "path of a folder"),
}
RANGES = {
    "output_dir = ''": ("c.toml:2: output_dir", "path of a folder"),
    "steps = 0": ("c.toml:2: steps must be positive",),
    "prompts_per_step = -1": ("prompts_per_step must be positive",),
    "timeout_s = 99999999999": ("timeout_s must be at most",),
    "stop_grace_s = -1": ("stop_grace_s must be positive",),
    "optim.lr = -1.0": ("optim.lr must be positive",),
    "optim.beta2 = 1.0": ("optim.beta2 must be in [0, 1)",),
    "optim.weight_decay = -0.1": ("optim.weight_decay must be 0 or more",),
    "optim.weight_decay = nan": ("optim.weight_decay must be a finite number",),
    "optim.grad_clip = inf": ("optim.grad_clip must be a finite number",),
    "optim.lr = 1e999": ("optim.lr must be a finite number",),
    "algorithm.k = 17": ("algorithm.k must be between 1 and algorithm.num_rollouts = 16",),
    "algorithm.num_rollouts = 1": ("algorithm.num_rollouts",),
    "algorithm.flip_negatives = 1.0": ("[0, 1)",),
    "algorithm.options.tau = nan": ("algorithm.options.tau must be a finite number",),
    "rollout.temperature = 0.0": ("rollout.temperature must be positive",),
    "rollout.temperature = inf": ("rollout.temperature must be a finite number",),
    "rollout.kv_cache_gib = 1e6": ("rollout.kv_cache_gib must be below this machine's memory",),
    "rollout.gpu_memory_utilization = 1.5": ("(0, 1]",),
    "rollout.verify_processes = 1000000": ("[0, 1024]",),
    "rollout.verify_timeout_s = 1e9": ("at most 86400",),
    "rollout.max_verifier_failures = 2.0": ("[0, 1]",),
    "eval.top_p = 0.0": ("(0, 1]",),
    "eval.temperature = -0.1": ("eval.temperature must be 0 or more",),
    "checkpoint.keep = 0": ("checkpoint.keep must be positive",),
    "data.curriculum = 1.0": ("[0, 0.95]",),
    "data.maze.train_sizes = [8]": ("odd sizes from 5 to 21, got 8",),
    "data.maze.train_sizes = [7, 7]": ("each size once",),
    "data.puzzles.difficulty = 21": ("[0, 20]",),
    "data.puzzles.options = ['x']": ("GENERATOR.SETTING=VALUE",),
    "data.puzzles.generators = ['nonsense']": ("data.puzzles.generators", "categories: crypto"),
    "warm_start.lr_warmup_steps = -1": ("warm_start.lr_warmup_steps must be 0 or more",),
    "model.shape.head_dim = 33": ("model.shape.head_dim must be even",),
    "model.shape.num_heads = 3": ("multiple of model.shape.num_kv_heads",),
    "loss.clip_low = 1.5": ("loss.clip_low must be below 1",),
    "bench.accuracy = 2.0": ("bench.accuracy must be in [0, 1]",),
}
CONTRADICTIONS = {
    "algorithm.estimator = 'grpo'": ("c.toml:2", "set algorithm.k = 1"),
    "algorithm.estimator = 'passkk'": ("c.toml:2: algorithm.estimator", "known: grpo"),
    "algorithm.k = 16": ("Take k < N",),
    "algorithm.options.foo = 1.0": ("c.toml:2: algorithm.options: 'foo'",),
    "algorithm.match_norm_k = 4": ("no effect without algorithm.match_norm",),
    "algorithm.minibatches = 5": ("c.toml:2: prompts_per_step (32)", "multiple"),
    "algorithm.schedule.kind = 'phases'": ("algorithm.schedule.ks must name two phases",),
    "algorithm.schedule.ks = [1]": ("no effect with kind = 'constant'",),
    "algorithm.schedule.patience = 3": ("no effect with kind = 'constant'", "plateau"),
    "algorithm.skip_zero_advantage = 'on'\nloss.kl_coef = 0.1": ("'auto' or 'off'",),
    "algorithm.balance_coef = 0.1": ("c.toml:2", "dense model", "Take 0"),
    "algorithm.routing_replay = 'replay'": ("c.toml:2", "Take 'off'"),
    "optim.min_lr_ratio = 0.5": ("c.toml:2", "it belongs to 'cosine'"),
    "loss.objective = 'cispo'\nloss.dual_clip = 3.0": ("c.toml:3", "set dual_clip to 0"),
    "parallel.context = 2\nloss.ratio = 'sequence'": ("c.toml:3", "Set parallel.context = 1"),
    "parallel.tensor = 3": ("c.toml:2", "not divisible by parallel.tensor = 3"),
    "parallel.virtual_pipeline = 2": ("needs parallel.pipeline > 1",),
    "rollout.early_stop = true": ("Set algorithm.loss_denominator",),
    "rollout.max_off_policy_steps = 1": ("set loss.tis_clip",),
    "rollout.dedicated_ranks = 1": ("Set rollout.max_off_policy_steps = 1",),
    "rollout.max_response_tokens = 4096": ("c.toml:1: model.shape.max_positions (2048)",),
    "micro_batch_tokens = 10": ("c.toml:2: micro_batch_tokens (10)",),
    "eval.num_rollouts = 2": ("at least algorithm.k",),
    "data.verifier = 'x:y'": ("c.toml:2: data.verifier", "set one of them"),
    "bench.random_weights = true": ("needs bench.decode = false",),
    "warm_start.steps = 3\ndata.train = 'rows.jsonl'": ("c.toml:2: warm_start.steps",),
    "data.train = 'rows.jsonl'": ("c.toml:2: data.train needs model.path",),
}
FILES = {
    "model.path = 'nowhere'": (2, "c.toml:2: model.path: nowhere is not a folder", "hf download"),
    "model.path = 'file'": (2, "model.path: file is not a folder"),
    "model.path = 'folder'": (2, "model.path: folder has no config.json"),
    "output_dir = 'file'": (20, "c.toml:2: output_dir: file cannot be made", "another folder"),
    "output_dir = 'file/x'": (20, "output_dir: file/x cannot be made"),
    "output_dir = 'other'": (2, "output_dir: other holds a run of another version"),
    "data.train = 'nowhere.jsonl'": (10, "c.toml:2: nowhere.jsonl", "data.train"),
    "data.test = 'nowhere.jsonl'": (10, "c.toml:2: nowhere.jsonl", "data.test"),
    "data.train = 'rows.jsonl'\ndata.verifier = 'nowhere.py:f'": (2, "c.toml:3: data.verifier"),
    "data.train = 'rows.jsonl'\ndata.verifier = 'nonsense'": (2, "data.verifier: task 'nonsense'"),
    "warm_start.steps = 3\nwarm_start.cache_dir = 'file'": (20, "c.toml:3: warm_start.cache_dir"),
}
FLAGS = {
    "--steps": ("--steps: needs a value: a whole number",),
    "--steps x": ("--steps: must be a whole number, got 'x'",),
    "--steps 1.5": ("must be a whole number",),
    "--steps=": ("must be a whole number",),
    "--steps 0": ("steps must be positive, got 0",),
    "--steps 99999999999999999999": ("64 bits",),
    "--optim.lr nan": ("optim.lr must be a finite number",),
    "--optim.lrr 1": ("Did you mean --optim.lr?",),
    "--optim.LR 1": ("Did you mean --optim.lr?",),
    "--optim-lr 1": ("Did you mean --optim.lr?",),
    "--lr 1": ("--warm-start.lr or --optim.lr",),
    "--optim 1": ("--optim is a section", "--optim.lr"),
    "--dryrun": ("Did you mean --dry-run?",),
    "--rollout.lag 1": ("is now called --rollout.max-off-policy-steps",),
    "optim.lr=1": ("Did you mean --optim.lr?",),
    "again.toml": ("'again.toml' belongs to no option",),
    "-x": ("'-x' belongs to no option",),
    "--nproc": ("--nproc needs a value",),
    "--nproc two": ("--nproc must be a positive number",),
    "--nproc 3 --parallel.tensor 2": ("World size 3 is not divisible",),
    "--no-steps": ("Did you mean --steps?",),
    "--rollout.no-sleep true": ("'true' belongs to no option",),
    "--no-share-prompts=false": ("takes no value",),
    "--share-prompts maybe": ("must be one of 'auto', true, false, got 'maybe'",),
    "--data.maze.train-sizes": ("data.maze.train_sizes must name at least one size",),
    "--data.maze.train-sizes 7 x": ("must be a whole number, got 'x'",),
    "--algorithm.options tau": ("needs pairs of a name and a value",),
    "--algorithm.options tau x": ("must be a number, got 'x'",),
    "--model.dtype fp16": ("must be one of 'float32', 'bfloat16', got 'fp16'",),
    "--algorithm.k 99": ("algorithm.k must be between 1",),
    "--loss.clip-low 1.5": ("loss.clip_low must be below 1",),
    "--data.train": ("needs a value: text",),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file, a folder, rows, a base and another run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.toml").write_text("stepz = 3\n")
    row = {"prompt": "1 + 1?", "answer": "2", "task": "exact"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "base.toml").write_text("steps = 3\n[optim]\nlr = 'fast'\n")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """What the command prints to refuse its arguments: one paragraph."""
    with pytest.raises(SystemExit) as left:
        main([*arguments, *(["--dry-run"] if arguments[:1] == ("train",) else [])])
    out, err = capsys.readouterr()
    assert left.value.code == code, err
    assert not out
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 2500
    return err


@pytest.mark.parametrize("text", [*SYNTAX, *KEYS, *TYPES, *RANGES, *CONTRADICTIONS])
def test_a_bad_file(folder: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    shape = "" if "model.shape" in text and "[" not in text else GOOD
    (folder / "c.toml").write_text(shape + text)
    error = refused(capsys, ExitCode.BAD_CONFIG, "train", "c.toml")
    assert PLACE.match(error), error
    for part in {**SYNTAX, **KEYS, **TYPES, **RANGES, **CONTRADICTIONS}[text]:
        assert part in error


@pytest.mark.parametrize("text", FILES)
def test_a_file_that_is_named(folder: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (folder / "c.toml").write_text(GOOD + text)
    code, *parts = FILES[text]
    error = refused(capsys, int(code), "train", "c.toml")
    assert PLACE.match(error), error
    for part in parts:
        assert str(part) in error


@pytest.mark.parametrize("flags", FLAGS)
def test_a_bad_command_line(folder: Path, capsys: pytest.CaptureFixture[str], flags: str) -> None:
    (folder / "c.toml").write_text(GOOD)
    error = refused(capsys, ExitCode.BAD_CONFIG, "train", "c.toml", *flags.split())
    assert error.startswith("error: command line: ")
    for part in FLAGS[flags]:
        assert part in error


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "no such file; the configuration is a TOML file"),
        (b"output_dir = '\xe9'", "byte 14 is 0xe9. Save the file as UTF-8"),
        (b"\xef\xbb\xbfsteps = 0", "c.toml:1: steps must be positive"),
        (b"steps = 0\r\n", "c.toml:1: steps must be positive"),
        (b"PK\x03\x04\xff", "not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_text(
    folder: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, part: str
) -> None:
    if content is not None:
        (folder / "c.toml").write_bytes(content)
    assert part in refused(capsys, ExitCode.BAD_CONFIG, "train", "c.toml")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("train", "the first argument must be the path of a TOML file"),
        ("train --steps 3", "got '--steps'"),
        ("train folder", "folder: cannot be read: Is a directory"),
        ("trian c.toml", "unknown command 'trian'"),
        ("eval nowhere.toml", "nowhere.toml: no such file"),
        ("eval c.toml --output-dir none", "none is not a folder. --out FILE names the result"),
        ("eval c.toml --model folder --out x.json", "neither a run folder nor a checkpoint"),
        ("convert folder out", "neither a run folder nor a checkpoint"),
        ("plan nowhere.toml --gpus 8 --gpu h999", "--gpu must be one of h100"),
        ("curves passk:99", "k must be between 1 and"),
        ("launch --nodes x --nproc 1 --rendezvous a:1 train c", "--nodes: invalid int value: 'x'"),
        ("launch --nodes 1", "arguments are required: --nproc"),
        ("preflight --foo", "unrecognized arguments: --foo"),
    ],
)
def test_a_bad_command(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, part: str
) -> None:
    (folder / "c.toml").write_text(GOOD)
    assert part in refused(capsys, ExitCode.BAD_CONFIG, *arguments.split())


def test_there_is_more_than_a_hundred_of_them() -> None:
    assert sum(map(len, (SYNTAX, KEYS, TYPES, RANGES, CONTRADICTIONS, FILES, FLAGS))) > 150


HEAVY = """
import sys
from passk_fast.commands.main import main
try:
    main(sys.argv[1:])
finally:
    loaded = {"torch", "vllm", "megatron", "transformers", "datasets"} & set(sys.modules)
    print("loaded:", sorted(loaded))
"""


@pytest.mark.parametrize("text", ["stepz = 3", "model.path = 'nowhere'", "parallel.tensor = 3"])
def test_nothing_heavy_is_loaded_to_refuse(folder: Path, text: str) -> None:
    (folder / "c.toml").write_text(GOOD + text)
    command = [sys.executable, "-c", HEAVY, "train", "c.toml", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.BAD_CONFIG
    assert PLACE.match(done.stderr)
    assert done.stdout == "loaded: []\n"
