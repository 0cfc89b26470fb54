"""Nothing that one rank sends to another, or a run to a later one, is unpickled."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.guards.test_style import ROOT, SOURCES

_CALLS = {
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
}
_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
_ALLOWED = {
    "passk_fast/cluster/named_rendezvous.py": "torch's handler in this process wants pickles of "
    "what was read as JSON",
    "passk_fast/tasks/sandbox/client.py": "trusted code sends to its own sandbox, which answers "
    "with a byte and a float64",
    "passk_fast/tasks/sandbox/server.py": "the sandbox reads what the trusted owner sent",
}
"""Files that may import pickle, and why. None is between ranks."""


def unpickling(tree: ast.AST) -> list[str]:
    """What in a module pickles or unpickles."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            if name in _CALLS:
                found.append(name)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in _MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            found += [node.module or ""] if node.module in _MODULES else sorted(names & _CALLS)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = any(
                word.arg == "weights_only" and ast.unparse(word.value) == "True"
                for word in node.keywords
            )
            found += [] if safe else ["torch.load"]
    return found


def test_no_rank_unpickles_what_another_sends() -> None:
    found = {
        str(file.relative_to(ROOT)): names
        for file, tree in SOURCES.items()
        if (names := unpickling(tree))
    }
    assert {file: names for file, names in found.items() if file not in _ALLOWED} == {}
    assert set(_ALLOWED) <= set(found), "an exception that is not needed any more"
    assert all(Path(ROOT / file).is_file() for file in _ALLOWED)


@pytest.mark.parametrize(
    "line",
    [
        "dist.all_gather_object(everyone, own)",
        "from torch.distributed import broadcast_object_list",
        "torch.distributed.scatter_object_list(out, into)",
        "import pickle",
        "from pickle import loads",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
    ],
)
def test_the_guard_sees_it(line: str) -> None:
    assert unpickling(ast.parse(line))


def test_the_guard_lets_tensors_pass() -> None:
    assert unpickling(ast.parse("torch.load(file, weights_only=True)\ndist.broadcast(x, 0)")) == []
