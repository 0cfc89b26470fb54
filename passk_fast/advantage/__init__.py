"""Advantage estimators and pass@k metrics; NumPy only."""

from passk_fast.advantage.metrics import evaluation, pass_at_k, wilson
from passk_fast.advantage.table import ESTIMATORS, advantages, dead_rows, eta, table

__all__ = [
    "ESTIMATORS",
    "advantages",
    "dead_rows",
    "eta",
    "evaluation",
    "pass_at_k",
    "table",
    "wilson",
]
