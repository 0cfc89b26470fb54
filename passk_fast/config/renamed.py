"""Configuration keys that were renamed: the old one is an error that names the new one."""

RENAMED = {
    "loss_head": "lm_head_loss",
    "loss_head_memory_gib": "lm_head_loss_memory_gib",
    "rollout.ranks": "rollout.dedicated_ranks",
    "rollout.lag": "rollout.max_off_policy_steps",
    "rollout.refill": "rollout.dynamic_sampling",
    "data.prefer_live": "data.curriculum",
    "algorithm.prune": "algorithm.skip_zero_advantage",
    "algorithm.max_dead_steps": "algorithm.max_zero_advantage_steps",
    "algorithm.max_logprob_gap": "logprob_gap.max",
    "algorithm.importance_cap": "loss.tis_clip",
    "algorithm.clip_low": "loss.clip_low",
    "algorithm.clip_high": "loss.clip_high",
    "algorithm.dual_clip": "loss.dual_clip",
    "algorithm.tis_clip": "loss.tis_clip",
    "algorithm.kl_coef": "loss.kl_coef",
    "algorithm.kl_estimator": "loss.kl_estimator",
    "algorithm.entropy_coef": "loss.entropy_coef",
}
