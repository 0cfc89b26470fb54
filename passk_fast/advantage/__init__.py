"""Advantage estimators, schedules over them, and pass@k metrics; NumPy only."""

from passk_fast.advantage.metrics import evaluation, pass_at_k, wilson
from passk_fast.advantage.registry import estimators
from passk_fast.advantage.table import advantages, dead_states, eta, table, zero_advantage_rows

__all__ = [
    "advantages",
    "dead_states",
    "estimators",
    "eta",
    "evaluation",
    "pass_at_k",
    "table",
    "wilson",
    "zero_advantage_rows",
]
