"""Results on disk: one JSON file a run, written whole or not at all, so the study can resume."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from benchmarks.experiments.arms import SEEDS, Arm, arms
from passk_fast.config import RunConfig
from passk_fast.config.file import dump_toml
from passk_fast.report.records import plain


def jobs(base: RunConfig) -> list[tuple[Arm, int]]:
    """Every run: all arms of one seed before the next seed, then the extra arms likewise."""
    every = [(arm, seed) for seed in SEEDS for arm in arms(base)]
    return sorted(every, key=lambda job: job[0].extra)


class Store:
    """`OUT/results/ARM-SEED.json` and claims of runs in progress."""

    def __init__(self, out: Path, base: RunConfig | None = None) -> None:
        """With `base`, SystemExit when OUT holds results of another base configuration."""
        if base is not None:
            text, kept = dump_toml(base), out / "base.toml"
            if kept.exists() and kept.read_text() != text:
                raise SystemExit(f"{out} holds runs of another study.toml; take another --out.")
            out.mkdir(parents=True, exist_ok=True)
            kept.write_text(text)
        self.results = out / "results"
        self.claims = out / "claims"
        for folder in (self.results, self.claims):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, seed: int) -> Path:
        """Where a run's result is."""
        return self.results / f"{name}-{seed}.json"

    def claim(self, name: str, seed: int) -> bool:
        """True for the one worker that shall do this run; False when it is done or taken."""
        if self.path(name, seed).exists():
            return False
        try:
            (self.claims / f"{name}-{seed}").mkdir()
        except FileExistsError:
            return False
        return True

    def forget_claims(self) -> None:
        """Of an interrupted study: what was begun and not finished is begun again."""
        shutil.rmtree(self.claims)
        self.claims.mkdir()

    def write(self, name: str, seed: int, result: dict[str, Any]) -> None:
        """Keep a result; the file appears complete."""
        path = self.path(name, seed)
        staging = path.with_suffix(f".{os.getpid()}")
        staging.write_text(json.dumps(plain(result), sort_keys=True))
        staging.rename(path)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Results of an arm, by seed."""
        paths = sorted(self.results.glob(f"{name}-[0-9].json"))
        return [json.loads(path.read_text()) for path in paths]
