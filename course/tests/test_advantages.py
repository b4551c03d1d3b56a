"""advantages: A_i of every completion, from the rewards of P prompts and G completions."""

import torch

from grpo import advantages


def answer(reward_PG, kind):
    return advantages(torch.tensor(reward_PG), kind).tolist()


def test_advantages(check):
    check(answer)
