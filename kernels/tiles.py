"""Tiles of the Triton kernels as they ship: launched on a GPU, compiled by the compile gate."""

from __future__ import annotations

from dataclasses import dataclass

ROW_BLOCK = 2048
"""Columns of a row that a program reads at a time on a GPU; 4096 makes the fused kernel spill."""


@dataclass(frozen=True)
class GemmConfig:
    """Tiles of one persistent GEMM kernel."""

    block_m: int = 128
    block_n: int = 256
    block_k: int = 64
    group: int = 8
    num_stages: int = 3
    num_warps: int = 4
    warp_specialize: bool = True

    def constants(self) -> dict[str, int | bool]:
        """The kernel's compile-time constants."""
        return {
            "BM": self.block_m,
            "BN": self.block_n,
            "BK": self.block_k,
            "GROUP": self.group,
            "WARP_SPECIALIZE": self.warp_specialize,
        }


FIRST = GemmConfig()
FIRST_NO_STORE = GemmConfig(num_stages=4)
INPUT_GRAD = GemmConfig()
# Splitting its accumulator for the reduction defeats the warp-specialisation pass.
WEIGHT_GRAD = GemmConfig(num_warps=8, warp_specialize=False)
SMALL = GemmConfig(16, 16, 16, 2, 1, 4, False)
"""The interpreter's tiles."""
