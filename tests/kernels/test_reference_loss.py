"""The policy loss against a token-by-token loop in Python floats, and finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from passk_fast.kernels import MAX_METRICS, LossRows, PolicyLoss
from passk_fast.kernels.reference import policy_loss_from_logprob, token_logprob_from_logits

F64 = torch.float64
KEYS = ("logp", "entropy", "old_logp", "rollout_logp", "reference_logp", "advantages")


def tokens(count: int = 40, seed: int = 0) -> dict[str, torch.Tensor]:
    """float64 [count] inputs with ratios on both sides of every clip; some advantages are 0."""
    rng = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> torch.Tensor:
        return scale * torch.randn(count, dtype=F64, generator=rng)

    logp = -normal(2.0).abs()
    data = {
        "logp": logp,
        "entropy": normal(1.0).abs(),
        "old_logp": logp + normal(0.6),
        "rollout_logp": logp + normal(0.5),
        "reference_logp": logp + normal(0.7),
        "advantages": normal(1.0),
    }
    data["advantages"][::7] = 0.0
    data["mask"] = torch.rand(count, generator=rng) < 0.8
    return data


def loss_of(
    data: dict[str, torch.Tensor], loss: PolicyLoss, denominator: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of `tokens`; from log-probs targets are not read."""
    rows = {name: values for name, values in data.items() if name not in ("logp", "entropy")}
    rows["targets"] = torch.zeros(len(data["logp"]), dtype=torch.int64)
    return policy_loss_from_logprob(
        data["logp"], data["entropy"], LossRows(**rows, denominator=denominator), loss
    )


def by_hand(data: dict[str, torch.Tensor], loss: PolicyLoss) -> dict[str, float]:
    """The loss and its metrics token by token, in Python floats; dlogp is the list of slopes."""
    out: dict[str, Any] = dict.fromkeys(
        ("loss_sum", "tokens", "entropy_sum", "clipped_low", "clipped_high", "dual_clipped"), 0.0
    )
    out |= dict.fromkeys(("ratio_sum", "ppo_kl_sum", "kl_sum", "tis_weight_sum"), 0.0)
    out |= dict.fromkeys(("tis_truncated", "logprob_gap_sum", "logprob_gap_max"), 0.0)
    out["importance_masked"] = 0.0
    out["dlogp"] = []
    for index in range(len(data["logp"])):
        if not data["mask"][index]:
            out["dlogp"].append(0.0)
            continue
        logp, entropy, old, rollout, ref, adv = (data[key][index].item() for key in KEYS)
        ratio = math.exp(logp - old)
        clipped = min(max(ratio, 1 - loss.clip_low), 1 + loss.clip_high)
        term, slope = -min(ratio * adv, clipped * adv), -ratio * adv
        if clipped * adv < ratio * adv:
            slope = 0.0
            out["clipped_low" if adv < 0 else "clipped_high"] += 1
        if loss.dual_clip and adv < 0 and term > loss.dual_clip * abs(adv):
            term, slope = loss.dual_clip * abs(adv), 0.0
            out["dual_clipped"] += 1
        weight = 1.0
        if loss.tis_clip:
            raw = math.exp(old - rollout)
            weight = min(raw, loss.tis_clip)
            out["tis_truncated"] += raw > loss.tis_clip
        gap = logp - ref
        kl, kl_slope = {
            "k1": (gap, 1.0),
            "k2": (0.5 * gap * gap, gap),
            "k3": (math.exp(-gap) - 1 + gap, 1 - math.exp(-gap)),
        }[loss.kl_estimator]
        out["loss_sum"] += weight * term + loss.kl_coef * kl - loss.entropy_coef * entropy
        out["dlogp"].append(weight * slope + loss.kl_coef * kl_slope)
        out["tokens"] += 1
        out["entropy_sum"] += entropy
        out["ratio_sum"] += ratio
        out["ppo_kl_sum"] += old - logp
        out["kl_sum"] += kl
        out["tis_weight_sum"] += weight
        out["logprob_gap_sum"] += abs(logp - rollout)
        out["logprob_gap_max"] = max(out["logprob_gap_max"], abs(logp - rollout))
    return out


OPTIONS = [
    PolicyLoss(),
    PolicyLoss(clip_low=0.1, clip_high=0.4),
    PolicyLoss(dual_clip=1.3),
    PolicyLoss(tis_clip=1.2),
    PolicyLoss(kl_coef=0.3, kl_estimator="k1"),
    PolicyLoss(kl_coef=0.3, kl_estimator="k2"),
    PolicyLoss(kl_coef=0.3, kl_estimator="k3"),
    PolicyLoss(entropy_coef=0.01),
    PolicyLoss(
        clip_low=0.3,
        clip_high=0.5,
        dual_clip=2.0,
        tis_clip=0.9,
        kl_coef=0.1,
        kl_estimator="k2",
        entropy_coef=0.02,
    ),
]


@pytest.mark.parametrize("loss", OPTIONS)
def test_policy_loss_matches_the_loop(loss: PolicyLoss) -> None:
    data = tokens()
    data["logp"].requires_grad_()
    data["entropy"].requires_grad_()
    value, metrics = loss_of(data, loss, 17.0)
    want = by_hand(data, loss)
    slopes = want.pop("dlogp")
    assert value.item() == pytest.approx(want["loss_sum"] / 17, rel=1e-12)
    assert {key: float(metric) for key, metric in metrics.items()} == pytest.approx(want, rel=1e-12)
    grads = torch.autograd.grad(value, [data["logp"], data["entropy"]], allow_unused=True)
    torch.testing.assert_close(grads[0], torch.tensor(slopes, dtype=F64) / 17)
    if loss.entropy_coef:
        want_entropy = -loss.entropy_coef / 17 * data["mask"].double()
        torch.testing.assert_close(grads[1], want_entropy)
    else:
        assert grads[1] is None


@pytest.mark.parametrize("loss", OPTIONS)
def test_gradient_through_logits_by_finite_differences(loss: PolicyLoss) -> None:
    data = tokens(8, seed=3)
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(8, 5, dtype=F64, generator=rng).requires_grad_()
    targets = torch.randint(0, 5, (8,), generator=rng)
    with torch.no_grad():
        logp = token_logprob_from_logits(logits, targets)[0]
        for key in ("old_logp", "rollout_logp", "reference_logp"):
            data[key] = logp + (data[key] - data["logp"])

    def total(z: torch.Tensor) -> torch.Tensor:
        inputs = dict(zip(("logp", "entropy"), token_logprob_from_logits(z, targets), strict=True))
        return loss_of(data | inputs, loss, 3.0)[0]

    assert torch.autograd.gradcheck(total, (logits,), atol=1e-7)


def test_every_clip_is_exercised_by_the_data() -> None:
    want = by_hand(tokens(), PolicyLoss(dual_clip=1.3, tis_clip=1.2))
    for key in ("clipped_low", "clipped_high", "dual_clipped", "tis_truncated"):
        assert want[key] >= 2


@pytest.mark.parametrize("loss", OPTIONS)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_rows_outside_the_mask_add_exactly_nothing(loss: PolicyLoss, junk: float) -> None:
    clean, dirty = tokens(), tokens()
    for key in KEYS:
        dirty[key][~dirty["mask"]] = junk
    for data in (clean, dirty):
        data["logp"].requires_grad_()
    value, metrics = loss_of(clean, loss, 5.0)
    other, other_metrics = loss_of(dirty, loss, 5.0)
    assert torch.equal(value, other)
    assert metrics == other_metrics
    grads = [torch.autograd.grad(v, d["logp"])[0] for v, d in [(value, clean), (other, dirty)]]
    assert torch.equal(*grads)
    assert not grads[1][~dirty["mask"]].any()


def test_nan_in_a_masked_row_is_not_hidden() -> None:
    data = tokens()
    data["mask"][3] = True
    data["logp"][3] = math.nan
    assert loss_of(data, PolicyLoss(), 1.0)[0].isnan()


@pytest.mark.parametrize("log_ratio", [100.0, -100.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_extreme_ratio(log_ratio: float, advantage: float) -> None:
    logp = torch.tensor([-1.0], requires_grad=True)
    rows = LossRows(
        targets=torch.tensor([0]),
        old_logp=torch.tensor([-1.0 - log_ratio]),
        advantages=torch.tensor([advantage]),
        mask=torch.tensor([True]),
        denominator=1.0,
    )
    loss = PolicyLoss(clip_high=0.2, dual_clip=3.0)
    value, _ = policy_loss_from_logprob(logp, torch.zeros(1), rows, loss)
    (grad,) = torch.autograd.grad(value, logp)
    high = log_ratio > 0
    # (A, r) -> loss: A > 0 is clipped above and vanishes below; A < 0 the other way, at c and 0.8.
    expected = {1.0: -1.2 if high else 0.0, -1.0: 3.0 if high else 0.8, 0.0: 0.0}[advantage]
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-40)
    assert float(grad) == pytest.approx(0.0, abs=1e-40)


def test_extreme_ratio_without_dual_clip_overflows_openly_and_alone() -> None:
    """r = e^100 with A < 0 has no bound: in float64 the loss is that number, not NaN."""
    data = tokens(2)
    data |= {
        "advantages": torch.tensor([-1.0, 1.0], dtype=F64),
        "old_logp": data["logp"] - torch.tensor([100.0, 100.0], dtype=F64),
        "mask": torch.tensor([True, True]),
    }
    value, _ = loss_of(data, PolicyLoss(), 1.0)
    assert value.item() == pytest.approx(math.exp(100), rel=1e-10)


def test_on_policy_is_reinforce_with_exact_ratio_one() -> None:
    data = {key: value.float() for key, value in tokens().items() if key != "mask"}
    data["mask"] = tokens()["mask"]
    data["logp"].requires_grad_()
    data["old_logp"] = data["logp"].detach()
    value, metrics = loss_of(data, PolicyLoss(), 4.0)
    assert value.dtype == torch.float32
    assert float(metrics["ppo_kl_sum"]) == 0.0
    assert metrics["ratio_sum"] == metrics["tokens"] == data["mask"].sum()
    (grad,) = torch.autograd.grad(value, data["logp"])
    assert torch.equal(grad, torch.where(data["mask"], -data["advantages"] / 4, 0.0))


@pytest.mark.parametrize("cut", [1, 13, 39])
def test_metrics_and_loss_add_over_micro_batches(cut: int) -> None:
    data, loss = tokens(), OPTIONS[-1]
    whole, metrics = loss_of(data, loss, 9.0)
    parts = [
        loss_of({key: value[rows] for key, value in data.items()}, loss, 9.0)
        for rows in (slice(0, cut), slice(cut, None))
    ]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    for key, metric in metrics.items():
        values = [part[1][key] for part in parts]
        both = max(values) if key in MAX_METRICS else sum(values)
        torch.testing.assert_close(both, metric)


def test_empty_and_all_masked_batches() -> None:
    for data in (tokens(0), tokens(4) | {"mask": torch.zeros(4, dtype=torch.bool)}):
        data["logp"].requires_grad_()
        value, metrics = loss_of(data, OPTIONS[-1], 1.0)
        assert value.item() == 0.0
        assert not any(float(metric) for metric in metrics.values())
        value.backward()
        assert not data["logp"].grad.any()


def test_option_without_its_input_is_refused() -> None:
    data = {n: v for n, v in tokens().items() if n not in ("rollout_logp", "reference_logp")}
    for name in ("tis_clip", "importance_min", "importance_max"):
        with pytest.raises(ValueError, match=f"{name} needs rollout_logp"):
            loss_of(data, PolicyLoss(**{name: 2.0}), 1.0)
    with pytest.raises(ValueError, match="reference_logp"):
        loss_of(data, PolicyLoss(kl_coef=0.1), 1.0)
    with pytest.raises(ValueError, match="sequence_index"):
        loss_of(data, PolicyLoss(ratio="sequence"), 1.0)
    with pytest.raises(ValueError, match="denominator"):
        loss_of(data, PolicyLoss(), 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_low": 1.0},
        {"clip_high": -0.1},
        {"dual_clip": 0.5},
        {"dual_clip": math.nan},
        {"kl_estimator": "k4"},
        {"objective": "ppo"},
        {"ratio": "group"},
        {"importance_max": 0.5, "importance_min": 0.6},
        {"dual_clip": 3.0, "objective": "cispo"},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PolicyLoss(**options)
