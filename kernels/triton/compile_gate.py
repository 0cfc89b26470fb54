"""Compiles every kernel and configuration that ships for sm_90a, without a GPU, and checks them.

    python -m passk_fast.kernels.triton.compile_gate [--json FILE]

Prints registers, spills, shared memory and tensor-core and TMA instructions, read from the machine
code, and exits with 1 when a kernel spills, exceeds 227 KiB, or lacks what it is said to use.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from passk_fast.kernels import tiles
from passk_fast.kernels.inputs import LossRows
from passk_fast.kernels.options import PolicyLoss

Constant: TypeAlias = int | float | bool | str
SHARED_LIMIT = 227 * 1024
TARGET = ("cuda", 90, 32)
SOFT_CAP = 30.0
"""Gemma 2's cap of the logits."""
POINTERS = {
    "mask_ptr": "*i1",
    "owned_ptr": "*i1",
    "informative_ptr": "*i1",
    "correct_ptr": "*i1",
    "target_ptr": "*i64",
    "column_ptr": "*i64",
    "source_ptr": "*i32",
    "count_ptr": "*i32",
}
FLOAT64 = ("logp_ptr", "entropy_ptr", "denominator_ptr", "slope_ptr", "partial_ptr", "bonus_ptr")
BFLOAT16 = ("x_ptr", "w_ptr", "e_ptr", "rx_ptr", "logits_ptr")
UNALIGNED = ("num_rows", "num_columns", "first", "vocab", "rollouts", "stride_n")


@dataclass(frozen=True)
class Entry:
    """One kernel with one configuration."""

    name: str
    kernel: Any
    constants: Mapping[str, Constant]
    num_warps: int = 8
    num_stages: int = 3
    absent: tuple[str, ...] = ()
    """Pointers that are None in this configuration."""
    out: str = "*bf16"
    tensor_cores: bool = False
    tma: bool = False


@dataclass(frozen=True)
class Row:
    """What one compilation gave."""

    name: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    hgmma: int
    tma_loads: int
    tma_stores: int
    problem: str


def entries() -> Iterator[Entry]:
    """All that ships: tiles as in tiles.py, loss options from the plainest to all of them."""
    from passk_fast.kernels.triton import groups, head, logits
    from passk_fast.kernels.triton import rows as row_kernels

    for name, kernel, config, more in (
        ("K1 first GEMM", head.first_gemm_kernel, tiles.FIRST, {"STORE": True}),
        ("K3 first GEMM", head.first_gemm_kernel, tiles.FIRST_NO_STORE, {"STORE": False}),
        ("K1 dX", head.input_grad_kernel, tiles.INPUT_GRAD, {}),
        ("K1 dW", head.weight_grad_kernel, tiles.WEIGHT_GRAD, {"REDUCE": True}),
    ):
        yield Entry(
            name,
            kernel,
            {**config.constants(), **more, "PRECISION": "tf32"},
            config.num_warps,
            config.num_stages,
            () if more.get("STORE", True) else ("e_ptr",),
            tensor_cores=True,
            tma=True,
        )
    yield Entry("K1 target logit", head.target_logit_kernel, {"BLOCK": 1024}, 4)
    yield Entry("K1 fill holes", head.fill_holes_kernel, {"BLOCK": 2048}, 4)
    yield Entry("K0 groups", groups.group_kernel, {"BLOCK": 32}, 1, out="*fp32")
    for label, options, absent in _option_sets():
        count, block = len(row_kernels.METRICS), row_kernels.BLOCK_ROWS
        rows = {**options, "METRIC_COUNT": count, "BLOCK": block}
        yield Entry(f"rows, {label}", row_kernels.row_kernel, rows, 4, absent=absent)
    for label, cap in (("", 0.0), (", soft cap", SOFT_CAP)):
        yield from _capped_entries(label, {"SOFT_CAP": cap})
    yield Entry("rescale", logits.rescale_kernel, {"BLOCK": 4096}, 4)


def _capped_entries(label: str, cap: Mapping[str, Constant]) -> Iterator[Entry]:
    """The kernels that know the soft cap of logits, with one value of it; 0 is off."""
    from passk_fast.kernels.triton import head, logits

    for store in (True, False):
        constants = {"STORE": store, "BLOCK": 4096, **cap}
        absent: tuple[str, ...] = () if store else ("e_ptr",)
        name = f"K1 row pass {'with E' if store else 'without E'}{label}"
        yield Entry(name, head.anchored_rows_kernel, constants, absent=absent)
    for options_label, options, missing in _option_sets():
        every = options_label == "all"
        tau = {"PER_ROW_TAU": every, "BLOCK": tiles.ROW_BLOCK}
        skip = missing if every else (*missing, "tau_ptr")
        fused: dict[str, Constant] = {**options, **tau, **cap, "GRADIENT": True}
        name = f"K2 fused, {options_label}{label}"
        yield Entry(name, logits.fused_kernel, fused, absent=skip)
    for bonus in (True, False):
        constants = {"PER_ROW_TAU": True, "HAS_BONUS": bonus, "BLOCK": tiles.ROW_BLOCK, **cap}
        absent = () if bonus else ("bonus_ptr",)
        name = f"K2 gradient{', entropy bonus' if bonus else ''}{label}"
        yield Entry(name, logits.gradient_kernel, constants, absent=absent)
    constants = {"PER_ROW_TAU": True, "BLOCK": tiles.ROW_BLOCK, **cap}
    yield Entry(f"K2 statistics{label}", logits.stats_kernel, constants)


def _option_sets() -> Iterator[tuple[str, Mapping[str, Constant], tuple[str, ...]]]:
    import torch

    from passk_fast.kernels.triton.rows import option_constants

    some = torch.zeros(1)

    def given(old: bool = True, rollout: bool = False, reference: bool = False) -> LossRows:
        """Rows that have these vectors."""
        return LossRows(
            targets=some.long(),
            advantages=some,
            mask=some.bool(),
            denominator=1.0,
            old_logp=some if old else None,
            rollout_logp=some if rollout else None,
            reference_logp=some if reference else None,
        )

    every = PolicyLoss(
        dual_clip=3.0, tis_clip=2.0, importance_min=0.1, kl_coef=0.1, entropy_coef=0.01
    )
    plain = ("rollout_ptr", "reference_ptr")
    yield "clip", option_constants(PolicyLoss(), given()), plain
    yield "on-policy", option_constants(PolicyLoss(), given(old=False)), ("old_ptr", *plain)
    cispo = option_constants(PolicyLoss(objective="cispo"), given(rollout=True))
    yield "cispo", cispo, ("reference_ptr",)
    yield "all", option_constants(every, given(rollout=True, reference=True)), ()


def _type(name: str, entry: Entry) -> str:
    if name in POINTERS:
        return POINTERS[name]
    if name == "out_ptr":
        wide = entry.name == "K1 target logit"
        return "*fp32" if wide else entry.out
    if name in FLOAT64:
        return "*fp64"
    if name in BFLOAT16:
        return "*bf16"
    if name.endswith("_ptr"):
        return "*fp32"
    return "fp32" if name == "tau" else "i32"


def compile_entry(entry: Entry) -> Row:
    """Compile one entry and read its machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {**entry.constants, **dict.fromkeys(entry.absent)}
    signature, attributes = {}, {}
    for at, name in enumerate(entry.kernel.arg_names):
        signature[name] = "constexpr" if name in constants else _type(name, entry)
        kind = signature[name]
        if kind.startswith("*") or (kind == "i32" and name not in UNALIGNED):
            attributes[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(entry.kernel, signature, constants, attributes)
    options = {"num_warps": entry.num_warps, "num_stages": entry.num_stages}
    made = triton.compile(source, target=GPUTarget(*TARGET), options=options)
    usage, code = _disassemble(made.asm["cubin"], Path(triton.__file__).parent)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    row = Row(
        name=entry.name,
        registers=int(found[1]),
        spill_bytes=int(found[2]),
        shared_bytes=made.metadata.shared,
        warps=made.metadata.num_warps,
        hgmma=code.count("HGMMA"),
        tma_loads=code.count("UTMALDG"),
        tma_stores=code.count("UTMASTG") + code.count("UTMAREDG"),
        problem="",
    )
    return Row(**{**asdict(row), "problem": _problem(entry, row)})


def _disassemble(cubin: bytes, triton_folder: Path) -> tuple[str, str]:
    """(resource usage, machine code) by the cuobjdump of the Triton wheel."""
    tool = triton_folder / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return tuple(
            subprocess.run(
                [str(tool), flag, file.name], capture_output=True, text=True, check=True
            ).stdout
            for flag in ("-res-usage", "-sass")
        )  # type: ignore[return-value]


def _problem(entry: Entry, row: Row) -> str:
    if row.spill_bytes:
        return f"spills {row.spill_bytes} bytes"
    if row.shared_bytes > SHARED_LIMIT:
        return f"{row.shared_bytes} bytes of shared memory exceed {SHARED_LIMIT}"
    if entry.tensor_cores and not row.hgmma:
        return "no HGMMA"
    if entry.tma and not row.tma_loads:
        return "no TMA load"
    if entry.constants.get("WARP_SPECIALIZE") and row.warps <= entry.num_warps:
        return "not warp-specialised"
    return ""


def table(rows: list[Row]) -> str:
    """The rows as text."""
    head = f"{'kernel':36} regs spill  shared warps HGMMA TMA-ld TMA-st"
    lines = [
        f"{r.name:36} {r.registers:4} {r.spill_bytes:5} {r.shared_bytes:7} {r.warps:5} "
        f"{r.hgmma:5} {r.tma_loads:6} {r.tma_stores:6} {r.problem}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    import triton

    rows = [compile_entry(entry) for entry in entries()]
    print(f"Triton {triton.__version__}, sm_90a\n{table(rows)}")
    if arguments.json:
        report = {"triton": triton.__version__, "target": "sm_90a", "kernels": [*map(asdict, rows)]}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(row.problem for row in rows))


if __name__ == "__main__":
    sys.exit(main())
