"""gumbel: a token drawn with keyed noise, and its log-probability."""

import torch

from kernels.sample import sample_reference, scales


def answer(logits_BV, temperature, key_B, on_device):
    """on_device: the temperature is read from a tensor, as in a CUDA graph."""
    if on_device:
        temperature = scales(temperature, torch.device("cpu"))
    key_B = torch.tensor(key_B, dtype=torch.int64)
    token_B, logp_B = sample_reference(torch.tensor(logits_BV), temperature, key_B)
    return {"token_B": token_B.tolist(), "logp_B": logp_B.tolist()}


def test_gumbel(check):
    check(answer)
