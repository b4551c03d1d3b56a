"""weights: what each token of a sequence counts in the loss of an update."""

import torch

from grpo import token_weights


def answer(new_B, in_loss_B, aggregate, max_new):
    new_B = torch.tensor(new_B)
    in_loss_B = torch.tensor(in_loss_B)
    return token_weights(new_B, in_loss_B, aggregate, max_new).tolist()


def test_weights(check):
    check(answer)
