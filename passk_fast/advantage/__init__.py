"""Advantage estimators, schedules over them, and pass@k metrics; NumPy only."""

from passk_fast.advantage.metrics import evaluation, pass_at_k, wilson
from passk_fast.advantage.registry import estimators
from passk_fast.advantage.table import advantages, dead_rows, dead_states, eta, table

__all__ = [
    "advantages",
    "dead_rows",
    "dead_states",
    "estimators",
    "eta",
    "evaluation",
    "pass_at_k",
    "table",
    "wilson",
]
