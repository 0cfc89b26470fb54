"""Options of the step that do not go together."""

from __future__ import annotations

from typing import Any

import pytest

from passk_fast.config import AlgorithmConfig, ModelConfig, PolicyLoss, RolloutConfig, RunConfig
from passk_fast.errors import ConfigError


def test_early_stop_is_refused_where_it_is_not_exact() -> None:
    def config(loss: PolicyLoss | None = None, **algorithm: Any) -> RunConfig:
        return RunConfig(
            model=ModelConfig(path="x"),
            rollout=RolloutConfig(early_stop=True),
            loss=loss or PolicyLoss(),
            algorithm=AlgorithmConfig(**algorithm),
        )

    config(loss_denominator="informative_tokens")
    config(loss_denominator="sequences")
    with pytest.raises(ConfigError, match="would change the denominator"):
        config()
    with pytest.raises(ConfigError, match="kl_coef"):
        config(PolicyLoss(kl_coef=0.1), loss_denominator="sequences")


def test_sampling_ahead_needs_the_importance_correction_and_an_awake_engine() -> None:
    def config(device: str = "cpu", sleep: bool = True, tis_clip: float = 0.0) -> RunConfig:
        return RunConfig(
            device=device,  # type: ignore[arg-type]
            model=ModelConfig(path="x"),
            rollout=RolloutConfig(max_off_policy_steps=1, sleep=sleep),
            loss=PolicyLoss(tis_clip=tis_clip),
        )

    config(tis_clip=2.0)
    config("cuda", sleep=False, tis_clip=2.0)
    with pytest.raises(ConfigError, match=r"loss\.tis_clip"):
        config()
    with pytest.raises(ConfigError, match=r"rollout.sleep = false"):
        config("cuda", tis_clip=2.0)
