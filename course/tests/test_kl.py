"""kl: an estimate of KL(pi, pi_ref) from every token."""

import torch

from grpo import token_kl


def answer(logp_R, ref_R, estimator):
    return token_kl(torch.tensor(logp_R), torch.tensor(ref_R), estimator).tolist()


def test_kl(check):
    check(answer)
