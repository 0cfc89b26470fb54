"""Pass@k policy loss kernels, callable from any trainer: torch always, Triton where installed.

    K0 group_advantage        verdicts and an estimator's table -> advantages
    K1 linear_policy_loss     hidden states and output weight -> loss, with gradients, three GEMMs
    K2 policy_loss            logits -> loss, with gradient
    K3 token_logprob          hidden states -> log-prob and entropy, one GEMM
`reference` holds the same names in plain float64 torch.
"""

from passk_fast.kernels import reference
from passk_fast.kernels.from_hidden import linear_policy_loss, token_logprob
from passk_fast.kernels.from_logits import policy_loss
from passk_fast.kernels.groups import group_advantage
from passk_fast.kernels.options import MAX_METRICS, PolicyLoss
from passk_fast.kernels.row_plan import live_rows

__all__ = [
    "MAX_METRICS",
    "PolicyLoss",
    "group_advantage",
    "linear_policy_loss",
    "live_rows",
    "policy_loss",
    "reference",
    "token_logprob",
]
