"""Log-probability and entropy of chosen tokens from hidden states, without the (T, V) logits.

    z_tv = hidden_t . weight_v / temperature,   lse_t = log sum_v exp z_tv
    logp_t = z_t,target - lse_t,   entropy_t = lse_t - sum_v p_tv z_tv

    d logp_t / d z_tv = [v = target_t] - p_tv,   d entropy_t / d z_tv = -p_tv (log p_tv + entropy_t)

One block of the vocabulary (C columns) at a time, the logits are made, forward and again backward.
Blocks of the vocabulary, not of the tokens: the weight gradient of a block is then one finished
matrix product over all tokens, rounded once. Only the (T, D) gradient of the hidden states is
summed across blocks, in float32. Blocks of tokens would sum the (V, D) gradient of the weight (2 GB
at V = 152,064, D = 3584), read and written once per block.

On a GPU the products are cuBLAS's, and the rest is one kernel per block and direction. By count, at
T = 16,384, D = 3584, V = 152,064: one product is 18 TFLOP, 25 ms at 700 TFLOP/s; writing and
reading the logits of all blocks in float32 is 20 GB, 4 to 6 ms. A kernel that fuses both saves
these, but wins only within 85% of cuBLAS's rate, and in backward it needs three products.
The logits are float32, because bf16 logits of size 20 would be off by up to 0.06.

Letters: T tokens, D width, V vocabulary, C columns of a block.
"""

import functools

import torch
from torch.autograd.function import once_differentiable

from kernels import ceil_div

# Elements of one block of logits. CPU: 8 MiB in float32, which its cache holds; up to twice as fast
# as 64 MiB. GPU: 256 MiB; every block also reads and writes the float32 gradient of the hidden
# states, 0.5 GB at the sizes above, in total 18 GB or 4 to 6 ms for 38 blocks.
BLOCK = {"cpu": 2**21, "cuda": 2**26}


def _blocks(T, V, device):
    """Ranges (first, last) that cut V so that the logits of one have about BLOCK elements."""
    count = max(1, ceil_div(T * V, BLOCK[device.type]))
    columns = ceil_div(V, count)
    size = 128 * ceil_div(columns, 128)  # whole tiles of a matrix product
    return [(first, min(first + size, V)) for first in range(0, V, size)]


def _is_half(x):
    return x.dtype in (torch.bfloat16, torch.float16)


def _operand(x):
    """x for the products below. A CPU's bf16 products round to bf16, so there x is float32."""
    return x if x.is_cuda or x.dtype == torch.float64 else x.float()


def _product(a, b):
    """a @ b, the sums and the result in at least float32."""
    return torch.mm(a, b, out_dtype=torch.float32) if _is_half(a) else a @ b


def _add_product(total, a, b):
    """total += a @ b, in place."""
    if _is_half(a):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a, b)


# ---- In torch -----------------------------------------------------------------------------------


def forward_reference(z_TC, first, target_T, state_4T, inverse_temperature):
    """Fold one block of logits (columns first, first + 1, .. of V) into the state, in place.

    The state of a row is the maximum m, s = sum exp(z - m), w = sum exp(z - m) (z - m), and the
    target's z. Overwrites z_TC.
    """
    m_T, s_T, w_T, z_target_T = state_4T
    z_TC *= inverse_temperature
    new_m_T = torch.maximum(m_T, z_TC.amax(1))
    column_T1, inside_T1 = _target_column(z_TC, first, target_T)
    z_column_T1 = z_TC.gather(1, column_T1)
    z_target_T.copy_(torch.where(inside_T1, z_column_T1, z_target_T[:, None])[:, 0])
    # The sums move to the new maximum. At the first block m is -inf, and the sums are 0 and stay 0.
    shift_T = torch.where(m_T == -torch.inf, 0.0, m_T - new_m_T)
    z_TC -= new_m_T[:, None]
    exp_TC = z_TC.exp()
    w_T.addcmul_(shift_T, s_T).mul_(shift_T.exp())
    s_T.mul_(shift_T.exp()).add_(exp_TC.sum(1))
    w_T.add_(exp_TC.mul_(z_TC).sum(1))
    m_T.copy_(new_m_T)


def backward_reference(
    z_TC, first, target_T, lse_T, entropy_T, d_logp_T, d_entropy_T, inverse_temperature, dtype
):
    """Gradient of one block of hidden @ weight.T, in dtype. Overwrites z_TC.

    d_entropy_T None: the entropy has no gradient.
    """
    logp_TC = z_TC.mul_(inverse_temperature).sub_(lse_T[:, None])
    grad_TC = logp_TC.exp()
    if d_entropy_T is None:
        grad_TC *= -d_logp_T[:, None]
    else:
        bias_T = -d_logp_T - d_entropy_T * entropy_T
        grad_TC *= logp_TC.mul_(-d_entropy_T[:, None]).add_(bias_T[:, None])
    column_T1, inside_T1 = _target_column(z_TC, first, target_T)
    grad_TC.scatter_add_(1, column_T1, d_logp_T[:, None] * inside_T1)
    return grad_TC.mul_(inverse_temperature).to(dtype)


def _target_column(z_TC, first, target_T):
    """(column of each target in this block, whether the target lies in this block)."""
    C = z_TC.shape[1]
    column_T1 = (target_T - first)[:, None]
    inside_T1 = (column_T1 >= 0) & (column_T1 < C)
    return column_T1.clamp_(0, C - 1), inside_T1


# ---- In Triton ----------------------------------------------------------------------------------


@functools.cache
def load_triton():
    """Define the kernels as globals: Triton is imported only where they run, and its interpreter
    finds `tl`."""
    global triton, tl, forward_kernel, backward_kernel
    import triton
    import triton.language as tl

    @triton.jit
    def forward_kernel(
        z_TC, target_T, state_4T, first, T, C, inverse_temperature, BLOCK: tl.constexpr
    ):
        """Fold one row of a block, C logits, into the row's state, as `forward_reference` does.

        Pointers: z_TC, float32, contiguous, and only read; target_T, int64; state_4T, float32.
        C may exceed BLOCK, a power of two: the row is read in parts. Its target lies in this block
        if its column, less `first`, is one of the C; only then is its z stored.
        exp(x) is 2**(x log2 e), because a power of 2 is one instruction.
        """
        # <solution id="kernel" points="10">
        row = tl.program_id(0)
        z_C = z_TC + row.to(tl.int64) * C
        at = state_4T + row
        m = tl.load(at)
        s = tl.load(at + T)
        w = tl.load(at + 2 * T)
        for start in range(0, C, BLOCK):
            column = start + tl.arange(0, BLOCK)
            # Beyond the row: so small that its power is 0, yet finite, since 0 * inf is NaN.
            z = tl.load(z_C + column, mask=column < C, other=-1e30) * inverse_temperature
            new_m = tl.maximum(m, tl.max(z, 0))
            shift = tl.where(m == float("-inf"), 0.0, m - new_m)
            exp = tl.exp2((z - new_m) * 1.442695)  # log2(e)
            w = (w + shift * s) * tl.exp(shift) + tl.sum(exp * (z - new_m), 0)
            s = s * tl.exp(shift) + tl.sum(exp, 0)
            m = new_m
        tl.store(at, m)
        tl.store(at + T, s)
        tl.store(at + 2 * T, w)
        target = tl.load(target_T + row) - first
        inside = (target >= 0) & (target < C)
        z_target = tl.load(z_C + target, mask=inside, other=0.0)
        tl.store(at + 3 * T, z_target * inverse_temperature, mask=inside)
        # </solution>

    @triton.jit
    def backward_kernel(
        z_TC, grad_TC, target_T, lse_T, entropy_T, d_logp_T, d_entropy_T, first, C,
        inverse_temperature, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """BLOCK columns of one row."""
        row = tl.program_id(0)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        at = row.to(tl.int64) * C + column
        z = tl.load(z_TC + at, mask=column < C, other=0.0) * inverse_temperature
        logp = z - tl.load(lse_T + row)
        d_logp = tl.load(d_logp_T + row)
        slope = d_logp
        if ENTROPY:
            slope += tl.load(d_entropy_T + row) * (logp + tl.load(entropy_T + row))
        chosen = tl.where(first + column == tl.load(target_T + row), d_logp, 0.0)
        grad = (chosen - tl.exp2(logp * 1.442695) * slope) * inverse_temperature  # log2(e)
        tl.store(grad_TC + at, grad.to(grad_TC.dtype.element_ty), mask=column < C)


def forward_triton(z_TC, first, target_T, state_4T, inverse_temperature):
    """`forward_reference` on a GPU: one program per row."""
    load_triton()
    T, C = z_TC.shape
    block = min(4096, triton.next_power_of_2(C))
    forward_kernel[T,](
        z_TC, target_T, state_4T, first, T, C, inverse_temperature, BLOCK=block, num_warps=8
    )


def backward_triton(
    z_TC, first, target_T, lse_T, entropy_T, d_logp_T, d_entropy_T, inverse_temperature, dtype
):
    """`backward_reference` on a GPU: one program per row and 2048 columns."""
    load_triton()
    T, C = z_TC.shape
    in_place = dtype == z_TC.dtype
    grad_TC = z_TC if in_place else torch.empty(T, C, dtype=dtype, device=z_TC.device)
    block = min(2048, triton.next_power_of_2(C))
    backward_kernel[T, ceil_div(C, block)](
        z_TC, grad_TC, target_T, lse_T, entropy_T, d_logp_T, d_entropy_T, first, C,
        inverse_temperature, ENTROPY=d_entropy_T is not None, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return grad_TC


# ---- The function -------------------------------------------------------------------------------


def _rows(x):
    """(forward, backward) of the rows, for the device of x."""
    if x.is_cuda:
        return forward_triton, backward_triton
    return forward_reference, backward_reference


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TD, weight_VD, target_T, temperature):
        operand_TD = _operand(hidden_TD)
        target_T = target_T.contiguous()
        T = len(hidden_TD)
        V = len(weight_VD)
        dtype = torch.promote_types(operand_TD.dtype, torch.float32)
        state_4T = torch.zeros(4, T, dtype=dtype, device=hidden_TD.device)
        state_4T[0] = -torch.inf
        state_4T[3] = torch.nan  # and so it stays for a target outside the vocabulary
        for first, last in _blocks(T, V, hidden_TD.device):
            z_TC = _product(operand_TD, _operand(weight_VD[first:last]).T)
            fold, _ = _rows(z_TC)
            fold(z_TC, first, target_T, state_4T, 1 / temperature)
        m_T, s_T, w_T, z_target_T = state_4T
        log_s_T = s_T.log()
        logp_T = z_target_T - m_T - log_s_T
        entropy_T = log_s_T - w_T / s_T
        ctx.save_for_backward(hidden_TD, weight_VD, target_T, m_T + log_s_T, entropy_T)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logp_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx, d_logp_T, d_entropy_T):
        hidden_TD, weight_VD, target_T, lse_T, entropy_T = ctx.saved_tensors
        wants_hidden, wants_weight, _, _ = ctx.needs_input_grad
        operand_TD = _operand(hidden_TD)
        d_logp_T = torch.zeros_like(lse_T) if d_logp_T is None else d_logp_T.contiguous()
        d_entropy_T = None if d_entropy_T is None else d_entropy_T.contiguous()
        d_hidden_TD = torch.zeros_like(operand_TD, dtype=lse_T.dtype) if wants_hidden else None
        d_weight_VD = torch.empty_like(weight_VD) if wants_weight else None
        for first, last in _blocks(len(hidden_TD), len(weight_VD), hidden_TD.device):
            operand_CD = _operand(weight_VD[first:last])
            z_TC = _product(operand_TD, operand_CD.T)
            _, differentiate = _rows(z_TC)
            grad_TC = differentiate(
                z_TC,
                first,
                target_T,
                lse_T,
                entropy_T,
                d_logp_T,
                d_entropy_T,
                1 / ctx.temperature,
                operand_TD.dtype,
            )
            if wants_hidden:
                _add_product(d_hidden_TD, grad_TC, operand_CD)
            if wants_weight:
                d_weight_VD[first:last] = _product(grad_TC.T, operand_TD)
        if wants_hidden:
            d_hidden_TD = d_hidden_TD.to(hidden_TD.dtype)
        return d_hidden_TD, d_weight_VD, None, None


def logprob(hidden_TD, weight_VD, target_T, temperature=1.0):
    """(logp_T, entropy_T), float32: log-softmax(hidden @ weight.T / temperature) at the targets,
    and the entropy of that softmax in nats.

    hidden_TD, weight_VD: one float dtype. target_T: int64 in [0, V); logp is NaN for others.
    temperature > 0. Both outputs are differentiable, once, in hidden and weight. float64 in gives
    float64 out (on a CPU). Extra memory: one block of logits (see BLOCK), a few of them on a CPU,
    and the gradients. ValueError for another temperature or two dtypes.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature}: give a number > 0 (log-probs of greedy tokens use 1)"
        )
    if hidden_TD.dtype != weight_VD.dtype:
        raise ValueError(
            f"hidden is {hidden_TD.dtype}, weight {weight_VD.dtype}: cast one to the other's dtype"
        )
    return _LogProb.apply(hidden_TD, weight_VD, target_T, temperature)
