"""surrogate: the gain of every token. Seen from outside: the loss, its gradient, the clipped."""

import torch

from grpo import Flags, grpo_loss
from runtime.batch import Batch


def answer(logp_R, old_R, adv_R, weight_R, new_B, flags):
    logp_R = torch.tensor(logp_R, requires_grad=True)
    none = torch.tensor([])
    b = Batch([], none, none, [], new_B, none, none, none)
    b.old_R = torch.tensor(old_R)
    b.adv_R = torch.tensor(adv_R)
    b.weight_R = torch.tensor(weight_R)
    loss, counts = grpo_loss(logp_R, b, Flags(**flags))
    loss.backward()
    clipped = int(counts["clip_fraction"])
    return {"loss": loss.item(), "gradient": logp_R.grad.tolist(), "clipped": clipped}


def test_surrogate(check):
    check(answer)
