"""Log-probability and entropy of chosen tokens straight from hidden states, without the (T, V) logits.

    z_tv = hidden_t . weight_v / temperature,   lse_t = log sum_v exp z_tv
    logp_t = z_t,target - lse_t,   entropy_t = lse_t - sum_v p_tv z_tv

    d logp_t / d z_tv = [v = target_t] - p_tv,   d entropy_t / d z_tv = -p_tv (log p_tv + entropy_t)

The logits are made for one block of the vocabulary at a time, forward and again backward. Blocks of the vocabulary,
not of the tokens: each block's weight gradient is then one finished matrix product over all tokens, rounded once, and
the only sum carried across blocks is the (T, D) gradient of the hidden states, in float32; with blocks of tokens it
would be the (V, D) gradient of the weight (2 GB at V = 152064, D = 3584), read and written once per block.
"""

import torch

# Elements of one block of logits. 64 MiB in float32 on a CPU; on a GPU four times that, since smaller blocks pay for
# reading and writing the float32 sum of the hidden gradient.
BLOCK = {"cpu": 2**24, "cuda": 2**26}


def _blocks(T, V, device):
    """Ranges [first, last) that cut V so that a (T, last - first) block stays near the budget."""
    count = -(-T * V // BLOCK[device.type])
    size = -(-V // max(count, 1) // 128) * 128  # multiples of 128: whole tiles of a matrix product
    return [(first, min(first + size, V)) for first in range(0, V, size)]


def _wide(x):
    """Float32, or float64 if it is: what sums are kept in."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def block_forward_reference(z_TC, first, target_T, state_4T):
    """Fold one block of logits into the running state of every row.

    state: the maximum m, s = sum exp(z - m), w = sum exp(z - m) (z - m), and the target's logit.
    """
    m_T, s_T, w_T, z_target_T = state_4T
    new_m_T = torch.maximum(m_T, z_TC.amax(1))
    # The old sums move to the new maximum; at the first block m is -inf, and its sums are 0 and stay so.
    shift_T = torch.where(m_T == -torch.inf, 0.0, m_T - new_m_T)
    scale_T = shift_T.exp()
    w_T.add_(shift_T * s_T).mul_(scale_T)
    s_T.mul_(scale_T)
    column_T1 = (target_T - first)[:, None]
    inside_T = ((column_T1 >= 0) & (column_T1 < z_TC.shape[1]))[:, 0]
    found_T = z_TC.gather(1, column_T1.clamp(0, z_TC.shape[1] - 1))[:, 0]
    z_target_T.copy_(torch.where(inside_T, found_T, z_target_T))
    z_TC -= new_m_T[:, None]
    exp_TC = z_TC.exp()
    s_T += exp_TC.sum(1)
    w_T += exp_TC.mul_(z_TC).sum(1)
    m_T.copy_(new_m_T)


def block_backward_reference(z_TC, first, target_T, lse_T, entropy_T, d_logp_T, d_entropy_T):
    """Gradient of one block of logits, in place: d_logp ([v = target] - p) - d_entropy p (log p + entropy)."""
    logp_TC = z_TC.sub_(lse_T[:, None])
    grad_TC = logp_TC.exp()
    if d_entropy_T is None:
        grad_TC *= -d_logp_T[:, None]
    else:
        bias_T = -d_logp_T - d_entropy_T * entropy_T
        grad_TC *= logp_TC.mul_(-d_entropy_T[:, None]).add_(bias_T[:, None])
    column_T1 = (target_T - first)[:, None]
    inside_T1 = (column_T1 >= 0) & (column_T1 < z_TC.shape[1])
    grad_TC.scatter_add_(1, column_T1.clamp(0, z_TC.shape[1] - 1), d_logp_T[:, None] * inside_T1)
    return grad_TC


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TD, weight_VD, target_T, temperature):
        T, V = len(hidden_TD), len(weight_VD)
        wide_TD = _wide(hidden_TD)
        state_4T = wide_TD.new_zeros(4, T)
        state_4T[0] = -torch.inf
        state_4T[3] = torch.nan  # what a target outside the vocabulary leaves
        for first, last in _blocks(T, V, hidden_TD.device):
            z_TC = wide_TD @ _wide(weight_VD[first:last]).T
            block_forward_reference(z_TC.div_(temperature), first, target_T, state_4T)
        m_T, s_T, w_T, z_target_T = state_4T
        log_s_T = s_T.log()
        logp_T, entropy_T = z_target_T - m_T - log_s_T, log_s_T - w_T / s_T
        ctx.save_for_backward(hidden_TD, weight_VD, target_T, m_T + log_s_T, entropy_T)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logp_T, entropy_T

    @staticmethod
    def backward(ctx, d_logp_T, d_entropy_T):
        hidden_TD, weight_VD, target_T, lse_T, entropy_T = ctx.saved_tensors
        T, V = len(hidden_TD), len(weight_VD)
        wide_TD = _wide(hidden_TD)
        d_logp_T = torch.zeros_like(lse_T) if d_logp_T is None else d_logp_T
        d_hidden_TD = torch.zeros_like(wide_TD) if ctx.needs_input_grad[0] else None
        d_weight_VD = torch.empty_like(weight_VD) if ctx.needs_input_grad[1] else None
        for first, last in _blocks(T, V, hidden_TD.device):
            wide_CD = _wide(weight_VD[first:last])
            z_TC = (wide_TD @ wide_CD.T).div_(ctx.temperature)
            grad_TC = block_backward_reference(z_TC, first, target_T, lse_T, entropy_T, d_logp_T, d_entropy_T)
            grad_TC.div_(ctx.temperature)
            if d_hidden_TD is not None:
                d_hidden_TD.addmm_(grad_TC, wide_CD)
            if d_weight_VD is not None:
                d_weight_VD[first:last] = grad_TC.T @ wide_TD
        return None if d_hidden_TD is None else d_hidden_TD.to(hidden_TD.dtype), d_weight_VD, None, None


def logprob(hidden_TD, weight_VD, target_T, temperature=1.0):
    """(logp_T, entropy_T), float32: log-softmax(hidden @ weight.T / temperature) at the targets; its entropy in nats.

    hidden_TD and weight_VD in one float dtype, target_T int64 in [0, V), temperature > 0. Differentiable in hidden and
    weight for both outputs. Extra memory: one block of logits (see BLOCK) and the gradients. float64 in, float64 out.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: give a number > 0 (log-probs of greedy tokens use 1)")
    return _LogProb.apply(hidden_TD, weight_VD, target_T, temperature)
