"""import-linter refuses what it is there to refuse: wrong imports that are put in on purpose."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_logo=True))"

WRONG = {
    # (importing module, the line, the contract that refuses it)
    "actor -> advantage": ("actor/loss.py", "import passk_fast.advantage.table", "trainer"),
    "actor -> rollout": ("actor/actor.py", "import passk_fast.rollout.collect", "trainer"),
    "actor -> tasks": ("actor/loss.py", "from passk_fast.tasks import maze", "trainer"),
    "actor -> run": ("actor/optimizer.py", "import passk_fast.run.clock", "layers"),
    "actor -> checkpoint": ("actor/actor.py", "import passk_fast.checkpoint.store", "layers"),
    "rollout -> actor": ("rollout/collect.py", "import passk_fast.actor.model", "layers"),
    "rollout -> run": ("rollout/groups.py", "import passk_fast.run.clock", "layers"),
    "rollout -> tasks": ("rollout/groups.py", "from passk_fast.tasks import maze", "sampler"),
    "rollout -> advantage": ("rollout/groups.py", "import passk_fast.advantage.table", "sampler"),
    "rollout -> weights": ("rollout/collect.py", "import passk_fast.weights.sync", "sampler"),
    "kernels -> errors": ("kernels/checks.py", "import passk_fast.errors", "layers"),
    "kernels -> config": ("kernels/options.py", "import passk_fast.config", "layers"),
    "advantage -> kernels": ("advantage/table.py", "import passk_fast.kernels", "kernels"),
    "weights -> kernels": ("weights/sync.py", "import passk_fast.kernels", "kernels"),
    "config -> run": ("config/run.py", "import passk_fast.run.clock", "layers"),
    "config -> model": ("config/model.py", "import passk_fast.model.flops", "layers"),
    "config -> torch": ("config/checks.py", "import torch", "torch"),
    "weights -> tasks": ("weights/mesh.py", "from passk_fast.tasks import maze", "trainer"),
    "weights -> actor": ("weights/sync.py", "import passk_fast.actor.model", "layers"),
    "weights -> packing": ("weights/sync.py", "import passk_fast.data.packing", "layers"),
    "model -> weights": ("model/flops.py", "import passk_fast.weights.layout", "layers"),
    "tasks -> advantage": ("tasks/maze.py", "import passk_fast.advantage.table", "layers"),
    "advantage -> tasks": ("advantage/metrics.py", "import passk_fast.tasks.maze", "layers"),
    "packing -> tasks": ("data/packing.py", "import passk_fast.tasks.maze", "trainer"),
    "types -> packing": ("data/types.py", "import passk_fast.data.packing", "layers"),
    "types -> kernels": ("data/types.py", "import passk_fast.kernels", "leaves"),
    "errors -> seeding": ("errors.py", "import passk_fast.seeding", "layers"),
    "seeding -> kernels": ("seeding.py", "import passk_fast.kernels", "leaves"),
    "process_group -> actor": ("process_group.py", "import passk_fast.actor.model", "layers"),
    "cluster -> commands": ("cluster/check.py", "import passk_fast.commands.train", "layers"),
    "run -> commands": ("run/build.py", "import passk_fast.commands.train", "layers"),
    "loop -> report": ("run/loop.py", "import passk_fast.report.sinks", "report"),
    "loop -> plan": ("run/loop.py", "import passk_fast.plan.hardware", "plan"),
    "report -> plan": ("report/curve.py", "import passk_fast.plan.hardware", "plan"),
    "disaggregated -> run": ("disaggregated/bridge.py", "import passk_fast.run.clock", "layers"),
    "server -> actor": ("disaggregated/rollout_server.py", "import passk_fast.actor", "Megatron"),
    "loop -> vllm": ("run/loop.py", "import vllm", "vLLM"),
    "root -> config": ("__init__.py", "import passk_fast.config", "root"),
    "a circle of siblings": ("advantage/subsets.py", "import passk_fast.advantage.pkpo", "circles"),
    "a package without a place": ("novelty/__init__.py", "", "layers"),
    "an import inside a function": (
        "actor/loss.py",
        "def later():\n    import passk_fast.advantage.table",
        "trainer",
    ),
    "an import for type checkers alone": (
        "actor/loss.py",
        "import typing\nif typing.TYPE_CHECKING:\n    import passk_fast.advantage.table",
        "trainer",
    ),
}


def lint(house: Path) -> tuple[int, dict[str, bool]]:
    """import-linter's exit code in `house`, and by its first word whether a contract is kept."""
    done = subprocess.run(
        [sys.executable, "-c", LINT],
        cwd=house,
        env={"PYTHONPATH": str(house), "COLUMNS": "200", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    verdicts = {
        line.partition(":")[0]: line.endswith(" KEPT")
        for line in done.stdout.splitlines()
        if line.endswith((" KEPT", " BROKEN")) and ":" in line
    }
    assert verdicts, done.stdout + done.stderr
    return done.returncode, verdicts


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and of the contracts."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(
        ROOT / "passk_fast",
        folder / "passk_fast",
        ignore=shutil.ignore_patterns("__pycache__", "*.so"),
    )
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@contextmanager
def appended(file: Path, text: str) -> Iterator[None]:
    """`text` at the end of a file, which may be new, with its folder, for a while."""
    before = file.read_text() if file.exists() else None
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{before or ''}\n{text}\n")
    try:
        yield
    finally:
        if before is None:
            shutil.rmtree(file.parent)
        else:
            file.write_text(before)


def test_the_tree_keeps_every_contract(house: Path) -> None:
    code, verdicts = lint(house)
    assert code == 0, verdicts
    assert all(verdicts.values())
    assert set(verdicts) == {contract for _, _, contract in WRONG.values()}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_import_is_refused(house: Path, mistake: str) -> None:
    file, line, contract = WRONG[mistake]
    with appended(house / "passk_fast" / file, line):
        code, verdicts = lint(house)
    assert code == 1
    assert not verdicts[contract], verdicts
