"""Draw a token from logits, and its log-probability, with keyed noise instead of a random state.

    token = argmax_v( logits_v / temperature + G_v ),   G_v = -log(-log(1 - u_v)),
    u_v = hash(key, v) in (0, 1)

This is an exact draw from softmax(logits / temperature) (the Gumbel-max trick). u_v is a hash of v
and of the token's key (seed, step, problem, sample, position), where position counts the tokens of
the completion. The noise therefore depends on nothing else: not on the batch, the device, the
number of ranks, or where a run was resumed.

By count, the kernels read the logits once: 2 V bytes per row in bf16, 0.3 MB at V = 151,936. The
torch reference reads and writes arrays of that length about 20 times.

Letters: B rows, V vocabulary, P blocks of the vocabulary.
"""

import functools
import operator

import torch

from kernels import ceil_div

# Odd 64-bit constants, one per field of the key: digits of the square roots of 2, 3, 7 and 11, and
# of the golden ratio. Their products are summed, so two keys collide only where the sums meet
# modulo 2**64.
_FIELDS = (
    0x6A09E667F3BCC909,
    0xBB67AE8584CAA73B,
    0x9E3779B97F4A7C15,
    0xA54FF53A5F1D36F1,
    0x510E527FADE682D1,
)
# Multipliers of the vocabulary hash, as int32: the golden ratio, then those of lowbias32
# (C. Wellons, "Prospecting for hash functions").
_GOLDEN = 0x9E3779B9 - 2**32
_MIX1 = 0x7FEB352D
_MIX2 = 0x846CA68B - 2**32
# Hashes are 31 bits wide. (float32(h) + 0.5) * _UNIT is in [_UNIT / 2, 1 - 2**-24] for every h. No
# compiler can contract an addition followed by a product, so every device gets the same bits.
_UNIT = 2.0**-31 * (1 - 2.0**-24)

# Columns of a block, fixed, so that the order of a row's sums depends on V alone and never on the
# batch. A row at V = 152k is about 40 programs: a batch of four fills a GPU.
_BLOCK = 4096


# ---- Keys and noise -----------------------------------------------------------------------------


def _int64(x):
    """The int64 with the same 64 low bits as the Python integer x."""
    return (x + 2**63) % 2**64 - 2**63


def _wrap(x):
    """x, an int or a tensor, in 64 bits: tensors wrap around by themselves."""
    return x if isinstance(x, torch.Tensor) else _int64(x)


def _times(field, odd):
    """The product of a field, an int or a tensor, and its constant."""
    is_tensor = isinstance(field, torch.Tensor)
    field = field.to(torch.int64) if is_tensor else operator.index(field)
    return _wrap(field * _int64(odd))


def token_key(seed, step, problem_B, sample_B, position_B):
    """Key of the noise of one token: a 64-bit mix of all five fields.

    Each field is an int or an int64 tensor; tensors broadcast. Returns key_B, int64 (0-d when every
    field is an int), on the device of the tensors. The bits are the same on every device.
    """
    return position_key(sequence_key(seed, step, problem_B, sample_B), position_B)


def sequence_key(seed, step, problem_B, sample_B):
    """The part of `token_key` that all tokens of a sequence share: an int, or an int64 tensor."""
    total = 0
    fields = (seed, step, problem_B, sample_B)
    for field, odd in zip(fields, _FIELDS[:4], strict=True):
        total = _wrap(total + _times(field, odd))
    return total


def position_key(sequence_B, position_B):
    """`token_key` from the `sequence_key` and the position."""
    key = torch.as_tensor(_wrap(sequence_B + _times(position_B, _FIELDS[-1])))
    # The finaliser of splitmix64 (Steele et al. 2014). Shifts of int64 copy the sign into the upper
    # bits, and the masks drop the copies.
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        shifted = (key >> shift) & (2 ** (64 - shift) - 1)
        key = (key ^ shifted) * _int64(multiplier)
    return key ^ ((key >> 31) & (2**33 - 1))


def uniform(key_B, V):
    """u_BV, float32: the uniforms of the noise, a hash of (key, vocabulary index); never 0 or 1.

    The shifts are arithmetic, which saves a mask: x ^ (x >> s) sends x and ~x to one value in
    [0, 2**31). So the last shift leaves 31 bits. They are exactly uniform over keys, because the
    upper half of the key is added just before that shift.
    """
    low_B1, high_B1 = key_B.contiguous().view(torch.int32).view(len(key_B), 2, 1).unbind(1)
    index_V = torch.arange(V, dtype=torch.int32, device=key_B.device)
    hash_BV = low_B1 + index_V * _GOLDEN
    hash_BV ^= hash_BV >> 16
    hash_BV *= _MIX1
    hash_BV ^= hash_BV >> 15
    hash_BV *= _MIX2
    hash_BV += high_B1
    hash_BV ^= hash_BV >> 16
    return hash_BV.float().add_(0.5).mul_(_UNIT)


def _check_temperature(temperature):
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}: give a number >= 0 (0 is greedy)")


@functools.lru_cache
def scales(temperature, device):
    """A temperature to read on the device: float32 (1 / temperature, weight of the noise)."""
    _check_temperature(temperature)
    pair = [1 / temperature, 1.0] if temperature else [1.0, 0.0]
    return torch.tensor(pair, device=device)


# ---- In torch -----------------------------------------------------------------------------------


def sample_reference(logits_BV, temperature, key_B):
    """`sample` in torch. The noise comes from `uniform`, the equation stands at the top.

    temperature: a number, or (1 / temperature, weight of the noise) from `scales`. At 0 the weight
    is 0 and the other number 1.
    """
    # <solution id="gumbel" points="8">
    if isinstance(temperature, torch.Tensor):
        inverse, weight = temperature
    else:
        inverse = 1 / temperature if temperature else 1.0
        weight = 1.0 if temperature else None  # greedy: no noise
    z_BV = logits_BV.float() * inverse
    score_BV = z_BV
    if weight is not None:
        # log1p keeps all 31 bits of the small uniforms, which are the ones that win.
        log_E_BV = uniform(key_B, z_BV.shape[1]).neg_().log1p_().neg_().log_()  # -G
        if isinstance(weight, torch.Tensor):
            log_E_BV *= weight
        score_BV = z_BV - log_E_BV
    token_B = score_BV.argmax(1)
    logp_B = z_BV.gather(1, token_B[:, None])[:, 0] - z_BV.logsumexp(1)
    return token_B, logp_B
    # </solution>


# ---- In Triton ----------------------------------------------------------------------------------


@functools.cache
def load_triton():
    """Define the kernels as globals: Triton is imported only where they run, and its interpreter
    finds `tl`."""
    global triton, tl, libdevice, uniform_kernel, exponential_kernel, part_kernel, join_kernel
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    @triton.jit
    def uniform_kernel(
        key, index,
        GOLDEN: tl.constexpr, MIX1: tl.constexpr, MIX2: tl.constexpr, UNIT: tl.constexpr,
    ):  # fmt: skip
        """`uniform`, bit for bit."""
        hashed = key.to(tl.int32) + index * GOLDEN
        hashed ^= hashed >> 16
        hashed *= MIX1
        hashed ^= hashed >> 15
        hashed = hashed * MIX2 + (key >> 32).to(tl.int32)
        hashed ^= hashed >> 16
        return (hashed.to(tl.float32) + 0.5) * UNIT

    @triton.jit
    def exponential_kernel(u, FAST: tl.constexpr):
        """E = -log(1 - u); -log E is the Gumbel noise.

        Winners have a small u. There a series keeps all bits.
        """
        series = u * (1.0 + u * (0.5 + u * (0.33333334 + u * (0.25 + u * 0.2))))
        w = 1.0 - u
        log2 = libdevice.fast_log2f(w) if FAST else tl.log2(w)
        return tl.where(u < 0.0625, series, log2 * -0.6931472)  # ln 2

    @triton.jit
    def part_kernel(
        logits, key, token_BP, stats_3BP, row_stride, V, scales,
        BLOCK: tl.constexpr, FAST: tl.constexpr,
        GOLDEN: tl.constexpr, MIX1: tl.constexpr, MIX2: tl.constexpr, UNIT: tl.constexpr,
    ):  # fmt: skip
        """One block of one row: its winner (index, score) and its part (maximum, sum) of the LSE.

        The winner has the largest z - log E. That is the smallest exp(top - z) E, the winner of a
        race between exponential times, which saves the logarithm of E. A token 89 below the top has
        an infinite time and never wins. The greedy winner has the smallest top - z.
        """
        row = tl.program_id(0)
        part = tl.program_id(1)
        index = part * BLOCK + tl.arange(0, BLOCK)
        inside = index < V
        logits += row.to(tl.int64) * row_stride
        z = tl.load(logits + index, mask=inside, other=float("-inf"))
        z = z.to(tl.float32) * tl.load(scales)
        top = tl.max(z, 0)
        # In a block of -inf, exp(-inf - 0) is 0, where exp(-inf + inf) would be NaN.
        base = tl.where(top == float("-inf"), 0.0, top)
        below = (base - z) * 1.442695  # log2(e)
        noisy = tl.load(scales + 1) > 0
        time = below
        if noisy:
            u = uniform_kernel(tl.load(key + row), index, GOLDEN, MIX1, MIX2, UNIT)
            time = tl.exp2(below) * exponential_kernel(u, FAST)
        first = tl.min(time, 0)
        # Among equals the lowest index wins.
        best = tl.min(tl.where(time == first, index, 2147483647), 0)
        score = tl.where(noisy, top - tl.log(first), top)
        at = row * tl.num_programs(1) + part
        stride = tl.num_programs(0) * tl.num_programs(1)
        tl.store(token_BP + at, best)
        tl.store(stats_3BP + at, score)
        tl.store(stats_3BP + stride + at, top)
        tl.store(stats_3BP + 2 * stride + at, tl.sum(tl.exp2(-below), 0))

    @triton.jit
    def join_kernel(
        logits, token_BP, stats_3BP, token_B, logp_B, row_stride, V, scales, P, PARTS: tl.constexpr
    ):
        """The winner among the blocks of one row, and its log-probability."""
        row = tl.program_id(0)
        part = tl.arange(0, PARTS)
        at = row * P + part
        stride = tl.num_programs(0) * P
        score = tl.load(stats_3BP + at, mask=part < P, other=float("-inf"))
        top = tl.load(stats_3BP + stride + at, mask=part < P, other=float("-inf"))
        total = tl.load(stats_3BP + 2 * stride + at, mask=part < P, other=0.0)
        winner = part == tl.argmax(score, 0)  # the lowest block among equals
        token = tl.sum(tl.where(winner, tl.load(token_BP + at, mask=part < P, other=0), 0), 0)
        # A row of NaN has no winner. Its logp is NaN, but its token must have an embedding.
        token = tl.minimum(token, V - 1)
        highest = tl.max(top, 0)
        lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
        z = tl.load(logits + row.to(tl.int64) * row_stride + token).to(tl.float32)
        z *= tl.load(scales)
        tl.store(token_B + row, token.to(tl.int64))
        tl.store(logp_B + row, z - lse)


def sample_triton(logits_BV, temperature, key_B):
    """`sample` on a GPU: one program per row and block, then one per row to join its blocks."""
    load_triton()
    B, V = logits_BV.shape
    device = logits_BV.device
    logits_BV = logits_BV if logits_BV.stride(1) == 1 else logits_BV.contiguous()
    P = ceil_div(V, _BLOCK)
    token_BP = torch.empty(B, P, dtype=torch.int32, device=device)
    stats_3BP = torch.empty(3, B, P, dtype=torch.float32, device=device)
    token_B = torch.empty(B, dtype=torch.int64, device=device)
    logp_B = torch.empty(B, dtype=torch.float32, device=device)
    if not isinstance(temperature, torch.Tensor):
        temperature = scales(temperature, device)
    part_kernel[B, P](
        logits_BV, key_B.contiguous(), token_BP, stats_3BP, logits_BV.stride(0), V, temperature,
        BLOCK=_BLOCK,
        FAST=logits_BV.is_cuda,  # the GPU's own logarithm, unknown to the interpreter: error 2**-22
        GOLDEN=_GOLDEN, MIX1=_MIX1, MIX2=_MIX2, UNIT=_UNIT, num_warps=8,
    )  # fmt: skip
    join_kernel[B,](
        logits_BV, token_BP, stats_3BP, token_B, logp_B, logits_BV.stride(0), V, temperature, P,
        PARTS=triton.next_power_of_2(P), num_warps=1,
    )  # fmt: skip
    return token_B, logp_B


# ---- By device ----------------------------------------------------------------------------------


def sample(logits_BV, temperature, key_B):
    """One token per row: (token_B int64, logp_B float32).

    logits_BV: any float dtype. key_B: int64, see `token_key`.
    temperature: a number >= 0, or a tensor that `scales` made from one.
    logp is the float32 log-softmax of logits / temperature at the token. Temperature 0 is greedy
    (the lowest index among equals), with the log-probability at temperature 1.
    ValueError for a temperature below 0 or NaN.
    """
    if not isinstance(temperature, torch.Tensor):
        _check_temperature(temperature)
    draw = sample_triton if logits_BV.is_cuda else sample_reference
    return draw(logits_BV, temperature, key_B)
