"""The fused Pass@k loss under a Hugging Face model, in any training loop.

    python examples/hf_kernel.py [--steps 20] [--model FOLDER_OR_NAME]

Without --model it makes a tiny random Qwen3 and runs on the CPU in seconds. The toy task rewards a
response that holds token 7; the mean reward per step is printed. The kernels need three things of a
model: the hidden states before the output layer, the output layer's weight, and packed tokens.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from passk_fast.advantage.table import table
from passk_fast.kernels import LossRows, OutputHead, group_advantage, linear_policy_loss

PROMPTS, ROLLOUTS, PASS_K, RESPONSE = 4, 16, 4, 8
REWARDED = 7


def tiny_model() -> Any:
    """A two-layer Qwen3 with random weights."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
    )
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def sample(model: Any, prompts: torch.Tensor) -> torch.Tensor:
    """Prompts [B, L] with RESPONSE sampled tokens behind them."""
    tokens = prompts
    for _ in range(RESPONSE):
        logits = model(tokens).logits[:, -1]
        tokens = torch.cat([tokens, torch.multinomial(logits.softmax(dim=-1), 1)], dim=1)
    return tokens


def step(model: Any, optimizer: torch.optim.Optimizer, prompts: torch.Tensor) -> float:
    """Sample, verify, one on-policy update; the mean reward."""
    tokens = sample(model, prompts.repeat_interleave(ROLLOUTS, dim=0))
    start = prompts.shape[1]
    correct = (tokens[:, start:] == REWARDED).any(dim=1).view(PROMPTS, ROLLOUTS)
    lookup = torch.from_numpy(table("passk", ROLLOUTS, PASS_K).copy()).to(tokens.device)
    advantages_PN, _ = group_advantage(correct, lookup)

    # Hidden states of every token, then a packed row: position t predicts token t + 1.
    hidden = model.model(tokens).last_hidden_state[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    mask = torch.zeros_like(tokens[:, 1:], dtype=torch.bool)
    mask[:, start - 1 :] = True
    advantages = advantages_PN.flatten()[:, None].expand(mask.shape).flatten().contiguous()
    rows = LossRows(  # without old log-probs: on-policy, every ratio is 1
        targets=targets,
        advantages=advantages,
        mask=mask.flatten(),
        denominator=float(mask.sum()),
    )
    loss, _ = linear_policy_loss(OutputHead(hidden=hidden, weight=model.lm_head.weight), rows)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(correct.float().mean())


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; the mean reward of every step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps")
    parser.add_argument("--model", default="", help="a transformers model; default: a tiny one")
    options = parser.parse_args(arguments)
    if options.model:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(options.model)
    else:
        model = tiny_model()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3 if not options.model else 1e-6)
    torch.manual_seed(1)
    rewards = []
    for index in range(options.steps):
        prompts = torch.randint(8, 60, (PROMPTS, 4), device=device)
        rewards.append(step(model, optimizer, prompts))
        print(f"step {index:3}  mean reward {rewards[-1]:.3f}", flush=True)
    return rewards


if __name__ == "__main__":
    main()
