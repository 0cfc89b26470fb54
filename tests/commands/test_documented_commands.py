"""Every command line in the documentation parses: its command, its options and its values."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from passk_fast.cluster import launch
from passk_fast.cluster.report import parse as parse_preflight
from passk_fast.commands.arguments import take
from passk_fast.commands.main import COMMANDS, main
from passk_fast.config.file import load_config
from passk_fast.errors import ConfigError

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "configs").rglob("*.md"),
        *(ROOT / "configs").rglob("*.toml"),
        *(ROOT / "launch").glob("*"),
    ]
)
STARTS = re.compile(
    r"(?:\S*bin/)?passk-fast (?=[a-z])|python -m passk_fast (?=[a-z])|launch/torchrun\.sh (?=[a-z])"
)
BLOCK_LINE = re.compile(r"^(?:    |\$ |> )?((?:[A-Z]+=\S+ )*(?:\S*bin/)?(?:passk-fast|launch/).*)$")
WITH_CONFIG = ("train", "eval", "bench", "plan")
FLAGS = ("--dry-run", "--help")
"""Own options without a value."""


def command_lines(text: str) -> list[str]:
    """Commands in blocks and in backticks, without the program's name and comments."""
    text = text.replace("\\\n", " ")
    found = [match[1] for line in text.splitlines() if (match := BLOCK_LINE.match(line))]
    found += re.findall(r"`([^`\n]*)`", text)
    commands = []
    for line in found:
        start = STARTS.search(line.split("  #")[0])
        if start:
            command = line.split("  #")[0].split(" # ")[0][start.end() :].strip()
            launched = "torchrun.sh" in start[0]
            prefix = "launch --nodes 1 --nproc 1 --rendezvous localhost:29500 " * launched
            commands.append(prefix + command)
    return commands


LINES = [
    pytest.param(line, id=f"{document.relative_to(ROOT)}: {line}")
    for document in DOCUMENTS
    if document.is_file()
    for line in dict.fromkeys(command_lines(document.read_text()))
]


@pytest.fixture
def own_options(capsys: pytest.CaptureFixture[str]) -> dict[str, set[str]]:
    """Command -> the options that `passk-fast --help` gives it."""
    with pytest.raises(SystemExit):
        main(["--help"])
    out: dict[str, set[str]] = {name: {"--help"} for name in COMMANDS}
    current = ""
    for line in capsys.readouterr().out.splitlines():
        if start := re.match(r"  passk-fast ([a-z-]+)", line):
            current = start[1]
        if current and (line.startswith("  passk-fast") or line.strip().startswith("[")):
            out[current] |= set(re.findall(r"--[a-z-]+", line)) - {"--key"}
    return out


@pytest.mark.parametrize("line", LINES)
def test_it_parses(line: str, own_options: dict[str, set[str]]) -> None:
    command, *words = shlex.split(line)
    assert command in COMMANDS
    if not words:  # the mere name
        return
    if command == "launch":
        if "..." in words or "COMMAND" in words or "HOST:PORT" in words:
            return
        options, rest = launch.parse(words)
        command, words = options.command, rest
    if any(word.startswith("[") or word == "..." for word in words):  # a usage line
        known = own_options[command] | {"--key"}
        assert {word.strip("[]") for word in words if word.strip("[").startswith("--")} <= known
    elif command == "preflight":
        take(words, "--nproc")
        parse_preflight(words)
    elif command in WITH_CONFIG:
        check_config_command(command, words, own_options[command])
    else:
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= own_options[command]


def check_config_command(command: str, words: list[str], own: set[str]) -> None:
    """Options of the command, a file that is there, and overrides that it accepts."""
    rest = [word for word in words if word not in FLAGS]
    for name in own - set(FLAGS):
        take(rest, name)
    if not rest:
        assert words == ["--help"]
        return
    path, *overrides = rest
    stands_for_any = path.isupper() or re.search(r"[A-Z]{3}|rewards|\.\.\.", path)
    file = ROOT / ("configs/maze_cpu.toml" if stands_for_any else path)
    load_config(file, overrides)


def test_there_are_such_lines() -> None:
    lines = [str(param.values[0]) for param in LINES]
    assert len(lines) > 25
    assert {line.split()[0] for line in lines} >= {*WITH_CONFIG, "launch", "curves", "convert"}


@pytest.mark.parametrize(
    "line",
    [
        "train configs/nowhere.toml",
        "train configs/maze_cpu.toml --optim.lrr 1",
        "eval CONFIG --k 2",
    ],
)
def test_a_wrong_line_would_be_found(line: str, own_options: dict[str, set[str]]) -> None:
    with pytest.raises(ConfigError):
        test_it_parses(line, own_options)


def tables_of(text: str) -> list[str]:
    """Fenced blocks of TOML."""
    return re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


TOMLS = [
    pytest.param(block, id=f"{document.relative_to(ROOT)}: {block.splitlines()[0]}")
    for document in DOCUMENTS
    if document.suffix == ".md"
    for block in tables_of(document.read_text())
]


@pytest.mark.parametrize("block", TOMLS)
def test_a_table_in_a_page_is_toml_of_known_keys(block: str, tmp_path: Path) -> None:
    """Only the keys: a rule may need the rest of a configuration."""
    (tmp_path / "page.toml").write_text(block)
    text = refusal(tmp_path / "page.toml")
    assert "unknown key" not in text
    assert ": must be " not in text


def refusal(file: Path) -> str:
    """What is said of a configuration; "" where it is good."""
    try:
        load_config(file)
    except ConfigError as error:
        return str(error)
    return ""
