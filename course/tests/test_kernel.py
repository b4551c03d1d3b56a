"""kernel: the forward row kernel of logprob, under Triton's interpreter; no GPU is needed."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch

from kernels import logprob


def answer(block_TCs, target_T, temperature, BLOCK):
    """The state of every row after blocks of logits have been folded in, one after the other."""
    logprob.load_triton()
    T = len(target_T)
    target_T = torch.tensor(target_T)
    state_4T = torch.zeros(4, T)
    state_4T[0] = -torch.inf
    first = 0
    for block_TC in block_TCs:
        z_TC = torch.tensor(block_TC)
        C = z_TC.shape[1]
        logprob.forward_kernel[T,](
            z_TC, target_T, state_4T, first, T, C, 1 / temperature, BLOCK=BLOCK, num_warps=1
        )
        first += C
    names = ("maximum", "sum", "weighted sum", "target")
    return dict(zip(names, state_4T.tolist(), strict=True))


def test_kernel(check):
    check(answer)
