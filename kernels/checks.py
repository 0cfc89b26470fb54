"""Bad input as Python errors that name the argument, before anything is launched.

Shapes, dtypes, devices and strides are always checked. Values (targets inside the vocabulary) are
read only on the CPU: on a GPU that would wait for the device, so there a target outside gives NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}.")
    return value


def _float_matrix(name: str, value: object, shape: str) -> Tensor:
    matrix = _tensor(name, value)
    if matrix.dim() != 2:
        raise ValueError(f"{name} must be {shape}, got shape {tuple(matrix.shape)}.")
    if matrix.dtype not in FLOATS:
        raise TypeError(f"{name} must be a floating-point tensor, got {matrix.dtype}.")
    if matrix.numel() and matrix.stride(1) != 1:
        raise ValueError(
            f"{name} must have contiguous rows (stride 1 in its last dimension), got strides "
            f"{matrix.stride()}; call .contiguous() first."
        )
    return matrix


def check_group(correct: Tensor, table: Tensor) -> None:
    """Inputs of group_advantage."""
    correct, table = _tensor("correct", correct), _tensor("table", table)
    if correct.dtype != torch.bool:
        raise TypeError(f"correct must be bool, got {correct.dtype}.")
    if correct.dim() != 2 or correct.shape[1] == 0:
        raise ValueError(
            f"correct must be [P, N] with N above zero, got shape {tuple(correct.shape)}."
        )
    if table.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"table must be float32 or float64, got {table.dtype}.")
    if tuple(table.shape) != (correct.shape[1] + 1, 2):
        raise ValueError(
            f"table must be [N + 1, 2] = [{correct.shape[1] + 1}, 2] for correct "
            f"{tuple(correct.shape)}, got {tuple(table.shape)}."
        )
    if table.device != correct.device:
        raise ValueError(f"table is on {table.device}, correct on {correct.device}.")


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Logits [T, V] and targets [T]."""
    _float_matrix("logits", logits, "[T, V]")
    if logits.shape[1] == 0:
        raise ValueError(f"logits must have columns, got shape {tuple(logits.shape)}.")
    _check_targets(targets, logits.shape[0], "logits")


def check_head(hidden: Tensor, weight: Tensor) -> None:
    """Hidden states [T, H] and the output layer's weight [V, H]."""
    _float_matrix("hidden", hidden, "[T, H]")
    _float_matrix("weight", weight, "[V, H]")
    if hidden.shape[1] != weight.shape[1] or 0 in (*weight.shape, hidden.shape[1]):
        raise ValueError(
            f"weight must be [V, H] with hidden's H = {hidden.shape[1]} and not empty, got "
            f"{tuple(weight.shape)}."
        )
    if hidden.dtype != weight.dtype:
        raise TypeError(f"weight must have hidden's dtype {hidden.dtype}, got {weight.dtype}.")
    if hidden.device != weight.device:
        raise ValueError(f"weight is on {weight.device}, hidden on {hidden.device}.")


def check_main_grad(main_grad: Tensor | None, weight: Tensor) -> None:
    """The float32 buffer [V, H] that takes the weight's gradient."""
    if main_grad is None:
        return
    main_grad = _tensor("main_grad", main_grad)
    if main_grad.shape != weight.shape:
        raise ValueError(
            f"main_grad must have weight's shape {tuple(weight.shape)}, got "
            f"{tuple(main_grad.shape)}."
        )
    if main_grad.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"main_grad must be float32 (or float64), got {main_grad.dtype}.")
    if main_grad.device != weight.device:
        raise ValueError(f"main_grad is on {main_grad.device}, weight on {weight.device}.")


def _check_targets(targets: Tensor, rows: int, owner: str) -> None:
    targets = _tensor("targets", targets)
    if targets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"targets must be int64 or int32, got {targets.dtype}.")
    if tuple(targets.shape) != (rows,):
        raise ValueError(
            f"targets must be [T] = [{rows}], the rows of {owner}, got {tuple(targets.shape)}."
        )
    if rows and targets.stride(0) != 1:
        raise ValueError("targets must be contiguous.")


def check_row_index(row_index: Tensor | None, rows: int) -> None:
    """The rows to compute: int64 [L] on the CPU, in 0..rows - 1."""
    if row_index is None:
        return
    index = _tensor("row_index", row_index)
    if index.device.type != "cpu" or index.dtype != torch.int64 or index.dim() != 1:
        raise ValueError(
            f"row_index must be an int64 [L] tensor on the CPU, got {index.dtype} "
            f"{tuple(index.shape)} on {index.device}."
        )
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < rows:
        raise ValueError(
            f"row_index must hold rows in 0..{rows - 1}, got {int(index.min())} to "
            f"{int(index.max())}."
        )


def check_rows(targets: Tensor, vocab: int, *, device: torch.device, **rows: Tensor | None) -> None:
    """Vectors [T] on `device`: `mask` bool, the others floating-point; targets in 0..vocab-1.

    Targets of rows outside `mask` are not looked at.
    """
    _check_targets(targets, targets.shape[0], "the batch")
    for name, value in {"targets": targets, **rows}.items():
        if value is None:
            continue
        value = _tensor(name, value)
        if tuple(value.shape) != tuple(targets.shape):
            raise ValueError(
                f"{name} must be [T] = [{targets.shape[0]}], got {tuple(value.shape)}."
            )
        if value.device != device:
            raise ValueError(f"{name} is on {value.device}, expected {device}.")
        if value.numel() and value.stride(0) != 1:
            raise ValueError(f"{name} must be contiguous, got strides {value.stride()}.")
        if name == "mask" and value.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {value.dtype}.")
        if name == "sequence_index" and value.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"sequence_index must be an integer tensor, got {value.dtype}.")
        if name not in ("mask", "targets", "sequence_index") and value.dtype not in FLOATS:
            raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}.")
    if device.type != "cpu" or not targets.numel():
        return
    outside = (targets < 0) | (targets >= vocab)
    mask = rows.get("mask")
    if mask is not None:
        outside &= mask
    if outside.any():
        worst = int(targets[outside][0])
        raise ValueError(f"targets must be in 0..{vocab - 1} (the vocabulary), got {worst}.")
