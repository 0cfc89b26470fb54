"""What one rank can say about its host without asking another: a row of the preflight's table."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from passk_fast.versions import TESTED, package_version

PACKAGES = (*TESTED, "transformers", "numpy")
"""Packages whose versions must be the same on all ranks."""
OWN_TO_A_HOST = ("_IFNAME", "_IB_HCA", "_TOPO_FILE", "_DEBUG_FILE")
"""Endings of NCCL_ and GLOO_ variables that may differ between hosts."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One rank's view. `node` is torchrun's number of the host; sizes are GiB."""

    rank: int
    local_rank: int
    node: int
    host: str
    versions: dict[str, str]
    """Python, packages, CUDA, driver, and the commit of the checkout."""
    environment: dict[str, str]
    """NCCL_ and GLOO_ variables that all ranks must share."""
    num_gpus: int = 0
    gpu: str = "-"
    gpu_free_share: float = 1.0
    """Free part of this rank's GPU memory."""
    memory_gib: float = 0.0
    """Available in the host's memory."""
    shm_gib: float = 0.0
    open_files: int = 0
    """The process's limit."""
    locked_memory_limited: bool = False
    """An InfiniBand device is there and `ulimit -l` is not unlimited."""
    measured: dict[str, float] = field(default_factory=dict)
    """Filled by passk_fast.cluster.check: skew_s, send_gb_s, write_mb_s, ..."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; `Facts(**facts.as_dict())` gives the same facts."""
        return asdict(self)


def commit_of(folder: Path) -> str:
    """The commit of a checkout, with "+changes" if it has any; "none" outside of git."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return "none"
    return commit + ("+changes" if git("status", "--porcelain", "-uno") else "")


def driver_version() -> str:
    """NVIDIA's driver, "absent" where nvidia-smi does not run."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "absent"
    found = sorted(set(done.stdout.split())) if done.returncode == 0 else []
    return ", ".join(found) or "absent"


def versions() -> dict[str, str]:
    """Everything that must be the same on all ranks."""
    import torch

    import passk_fast

    found = {name: package_version(name) for name in PACKAGES}
    found["passk_fast"] = passk_fast.__version__
    found["commit"] = commit_of(Path(passk_fast.__file__).parent)
    found["CUDA"] = torch.version.cuda or "none"
    found["driver"] = driver_version()
    return found


def available_memory_gib() -> float:
    """MemAvailable of /proc/meminfo, or the control group's own limit where that is lower."""
    text = Path("/proc/meminfo").read_text()
    line = next(line for line in text.splitlines() if line.startswith("MemAvailable"))
    available = int(line.split()[1]) / 2**20
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
    except OSError:
        return available
    return available if limit == "max" else min(available, (int(limit) - int(used)) / 2**30)


def shared_environment() -> dict[str, str]:
    """NCCL_ and GLOO_ variables that differ between hosts only by mistake."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("NCCL_", "GLOO_")) and not name.endswith(OWN_TO_A_HOST)
    }


def collect() -> Facts:
    """This rank's facts; touches its GPU only to ask for free memory."""
    import torch

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    num_gpus, name, share = torch.cuda.device_count(), "-", 1.0
    if local_rank < num_gpus:
        name = torch.cuda.get_device_name(local_rank)
        free, total = torch.cuda.mem_get_info(local_rank)
        share = free / total
    infiniband = Path("/sys/class/infiniband")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    has_infiniband = infiniband.is_dir() and any(infiniband.iterdir())
    return Facts(
        rank=int(os.environ.get("RANK", "0")),
        local_rank=local_rank,
        node=int(os.environ.get("GROUP_RANK", "0")),
        host=socket.gethostname(),
        versions=versions(),
        environment=shared_environment(),
        num_gpus=num_gpus,
        gpu=name,
        gpu_free_share=share,
        memory_gib=available_memory_gib(),
        shm_gib=shutil.disk_usage("/dev/shm").free / 2**30 if Path("/dev/shm").is_dir() else 0.0,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_memory_limited=has_infiniband and locked != resource.RLIM_INFINITY,
    )
