"""Pass@k policy loss kernels, callable from any trainer: torch always, Triton where installed.

K0 `group_advantage`, K1 `linear_policy_loss`, K2 `policy_loss` and K3 `token_logprob`; `reference`
has the same names in plain float64 torch. A name is imported when it is first used.
"""

# K0 group_advantage        verdicts and an estimator's table -> advantages
# K1 linear_policy_loss     hidden states and output weight -> loss and gradients, three GEMMs
# K2 policy_loss            logits -> loss and gradient
# K3 token_logprob          hidden states -> log-prob and entropy, one GEMM

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passk_fast.kernels import reference
    from passk_fast.kernels.from_hidden import linear_policy_loss, token_logprob
    from passk_fast.kernels.from_logits import policy_loss
    from passk_fast.kernels.groups import group_advantage
    from passk_fast.kernels.inputs import LossReport, LossRows, OutputHead, OutputLogits
    from passk_fast.kernels.metrics import MAX_METRICS, TOKEN_METRICS
    from passk_fast.kernels.options import PolicyLoss
    from passk_fast.kernels.row_plan import informative_rows
else:
    _HOMES = {
        "MAX_METRICS": "metrics",
        "TOKEN_METRICS": "metrics",
        "LossReport": "inputs",
        "LossRows": "inputs",
        "OutputHead": "inputs",
        "OutputLogits": "inputs",
        "PolicyLoss": "options",
        "group_advantage": "groups",
        "informative_rows": "row_plan",
        "linear_policy_loss": "from_hidden",
        "policy_loss": "from_logits",
        "reference": "",
        "token_logprob": "from_hidden",
    }

    def __getattr__(name):
        """Import a public name from its module when it is first asked for (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOMES[name]
        if not home:
            return import_module(f"{__name__}.{name}")
        value = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


__all__ = [
    "MAX_METRICS",
    "TOKEN_METRICS",
    "LossReport",
    "LossRows",
    "OutputHead",
    "OutputLogits",
    "PolicyLoss",
    "group_advantage",
    "informative_rows",
    "linear_policy_loss",
    "policy_loss",
    "reference",
    "token_logprob",
]
