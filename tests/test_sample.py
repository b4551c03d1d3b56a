"""kernels/sample.py: the noise, bit by bit and in the large; the draws; the kernels interpreted.

Run as a script with TRITON_INTERPRET=1, this file checks the kernel on a CPU. Triton reads that
variable when it is imported, so the test of that name starts a process of its own.
"""


import pytest
import torch
from scipy import stats

from kernels import sample as module
from kernels.sample import (
    position_key,
    sample,
    sample_triton,
    scales,
    sequence_key,
    token_key,
    uniform,
)

N = 2**18
MIXERS = dict(GOLDEN=module._GOLDEN, MIX1=module._MIX1, MIX2=module._MIX2, UNIT=module._UNIT)


def fold(x, shift):
    """x ^ (x >> shift) of an int32, given and returned as the integer of its 32 bits."""
    return (x ^ ((x - 2**32 if x >= 2**31 else x) >> shift)) % 2**32


def unfolded_hash(key, index):
    """The hash of the noise before its last fold, once more, in Python's integers."""
    x = fold((key + index * 0x9E3779B9) % 2**32, 16)
    x = fold(x * 0x7FEB352D % 2**32, 15)
    return (x * 0x846CA68B + (key >> 32)) % 2**32


def key_for(unfolded, index):
    """A key that leads to this value at this index. The upper half of the key is added last, so it
    can be chosen."""
    return module._int64(((unfolded - unfolded_hash(0, index)) % 2**32) << 32)


def chi_square(x, bins):
    """p-value of x being uniform on [0, 1), or of the pairs from a list of two on the square."""
    if isinstance(x, list):
        x = ((x[0] * bins).long() * bins + (x[1] * bins).long()).flatten()
        return stats.chisquare(torch.bincount(x, minlength=bins**2).numpy()).pvalue
    bin_T = (x.flatten() * bins).long()
    return stats.chisquare(torch.bincount(bin_T, minlength=bins).numpy()).pvalue


# A fixed seed makes these tests exact repeats; 1e-4 on either side would be met by chance once in
# 300 new seeds or so.
def passes(p):
    return 1e-4 < p < 1 - 1e-4


def test_key_is_the_same_from_integers_and_tensors():
    values = ([0, 3, -1], [0, 7], [0, 2**40], [0, 5], [1, 2])
    grid = torch.cartesian_prod(*map(torch.tensor, values))
    from_tensors = token_key(*grid.unbind(1))
    from_mixed = torch.stack(
        [token_key(a, b, torch.tensor(c), d, torch.tensor(e)) for a, b, c, d, e in grid.tolist()]
    )
    from_integers = torch.stack([token_key(*row) for row in grid.tolist()])
    assert from_tensors.dtype == torch.int64
    assert torch.equal(from_tensors, from_integers) and torch.equal(from_tensors, from_mixed)
    assert token_key(1, 2, 3, 4, torch.arange(6).view(2, 3)).shape == (2, 3)
    # Split in two, as the sampler uses it: what a sequence keeps is one number of 64 bits, whatever
    # the fields are.
    shared = torch.tensor([sequence_key(*row[:4]) for row in grid.tolist()])
    assert torch.equal(position_key(shared, grid[:, 4]), from_tensors)
    assert sequence_key(2**70 + 5, 1, 2, 3) == sequence_key(5, 1, 2, 3)


def test_key_is_the_mix_in_integers():
    # Fails when a constant, a shift or a round of the key changes: recorded runs could not be
    # repeated.
    odd = (0x6A09E667F3BCC909, 0xBB67AE8584CAA73B, 0x9E3779B97F4A7C15)
    odd += (0xA54FF53A5F1D36F1, 0x510E527FADE682D1)
    cases = [(0, 0, 0, 0, 0), (1, 2, 3, 4, 5), (2**63, 10**6, 53_903, 31, 4095), (-1, 0, 0, 0, 7)]
    for fields in cases:
        x = sum(field * constant for field, constant in zip(fields, odd, strict=True)) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        assert token_key(*fields).item() % 2**64 == x ^ (x >> 31)


def test_keys_differ_and_every_bit_of_every_field_matters():
    # Fails when a field is left out of the sum, when two fields share a constant, or without the
    # finaliser.
    axes = [torch.arange(16)] * 5
    key = token_key(*torch.cartesian_prod(*axes).unbind(1))
    assert len(key.unique()) == 16**5
    base = torch.arange(100, 1100)
    for field in range(5):
        for bit in range(40):
            fields = [7, 11, 13, 17, 19]
            flipped = list(fields)
            fields[field], flipped[field] = base, base ^ (1 << bit)
            changed = token_key(*fields) ^ token_key(*flipped)
            share = sum(((changed >> i) & 1).double().mean() for i in range(64)) / 64
            assert abs(share - 0.5) < 0.02, (field, bit, share)


def test_uniform_is_the_hash_in_integers():
    # Fails when a shift, a multiplier, a half of the key or the order of the steps changes: runs
    # could not be repeated.
    keys = [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF, -987654321987654321]
    indices = [0, 1, 2, 31, 50_000, 151_935]
    u_BV = uniform(torch.tensor(keys), 151_936)[:, indices]
    for b, key in enumerate(keys):
        for i, index in enumerate(indices):
            hashed = torch.tensor(fold(unfolded_hash(key, index), 16), dtype=torch.float32)
            assert u_BV[b, i] == (hashed + 0.5) * (2.0**-31 * (1 - 2.0**-24))


def test_uniform_is_never_0_or_1():
    # Fails without the 0.5 (a draw of probability 0 could win) or with 2**-31 alone (log1p(-1): a
    # token never drawn).
    smallest, largest = 0, 0x7FFF8000  # folded: 0 and 2**31 - 1
    assert (fold(smallest, 16), fold(largest, 16)) == (0, 2**31 - 1)
    for index in (0, 5):
        keys = [key_for(smallest, index), key_for(largest, index)]
        low, high = uniform(torch.tensor(keys), 8)[:, index]
        assert low == module._UNIT / 2 and high == 1 - 2.0**-24
        for key in keys:
            token_B, logp_B = sample(torch.zeros(1, 8), 1.0, torch.tensor([key]))
            assert 0 <= token_B < 8 and logp_B.isfinite().all()


@pytest.mark.parametrize("field", range(5))
def test_noise_is_uniform_and_independent_along_every_field(field):
    # Neighbours in a run are neighbours here. Fails when the uniforms are cut to 16 bits.
    fields = [torch.full((N,), 3) for _ in range(5)]
    fields[field] = torch.arange(N)
    u_B4 = uniform(token_key(*fields), 4)
    for v in (0, 3):
        assert passes(chi_square(u_B4[:, v], 256))
        assert passes(chi_square(u_B4[:, v] * 4096 % 1, 256))  # lower bits
        assert passes(chi_square([u_B4[:-1, v], u_B4[1:, v]], 32))
        assert passes(chi_square([u_B4[:-8, v], u_B4[8:, v]], 32))
    assert passes(chi_square([u_B4[:-1, 0], u_B4[1:, 1]], 32))


def test_noise_is_uniform_and_independent_along_the_vocabulary():
    # Fails without the second multiplication, without the lower half of the key, or with uniforms
    # of 16 bits.
    u_BV = uniform(token_key(0, 0, 0, 0, torch.arange(4)), N)
    for u_V in u_BV:
        assert passes(chi_square(u_V, 256))
        assert passes(chi_square(u_V * 4096 % 1, 256))
        for lag in (1, 2, 3, 16, 1024, 65536):
            assert passes(chi_square([u_V[:-lag], u_V[lag:]], 32)), lag
    assert passes(chi_square([u_BV[0], u_BV[1]], 32))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_tokens_follow_the_softmax(temperature):
    # Fails when the temperature is left out or multiplied, or when the noise is added with the
    # wrong sign.
    logits_V = torch.randn(12, generator=torch.Generator().manual_seed(0)) * 2
    problem_B = torch.arange(400).repeat(500)
    sample_B = torch.arange(500).repeat_interleave(400)
    key_B = token_key(5, 1, problem_B, sample_B, 9)
    token_B, _ = sample(logits_V.expand(len(key_B), -1), temperature, key_B)
    expected_V = (logits_V.double() / temperature).softmax(0) * len(key_B)
    count_V = torch.bincount(token_B, minlength=12)
    assert passes(stats.chisquare(count_V.numpy(), expected_V.numpy()).pvalue)


def test_a_rare_token_is_drawn_as_often_as_it_should():
    # Fails when the uniforms are cut to 16 bits: one in 2**18 draws is then never, or four times
    # too often.
    rare = 2.0**-18
    logits_V = torch.tensor([rare / (1 - rare), 1.0]).log()
    count = 0
    for i in range(32):
        token_B, _ = sample(logits_V.expand(N, 2), 1.0, token_key(1, i, torch.arange(N), 0, 0))
        count += int((token_B == 0).sum())
    assert 1e-3 < stats.binomtest(count, 32 * N, rare).pvalue


def check_against_float64(logits_BV, temperature, key_B, draw):
    """Tokens and log-probs of draw against the definition in float64, with the same uniforms."""
    token_B, logp_B = draw(logits_BV, temperature, key_B)
    z_BV = logits_BV.double() / (temperature or 1.0)
    u_BV = uniform(key_B, logits_BV.shape[1]).double()
    score_BV = z_BV - torch.log(-torch.log1p(-u_BV)) if temperature else z_BV
    assert torch.equal(token_B, score_BV.argmax(1)) and token_B.dtype == torch.int64
    expected_B = z_BV.log_softmax(1).gather(1, token_B[:, None])[:, 0]
    # 8 roundings of numbers of the size of the largest logit
    error = 8 * 2.0**-24 * max(1.0, float(z_BV[z_BV.isfinite()].abs().max()))
    assert logp_B.dtype == torch.float32 and (logp_B - expected_B).abs().max() < error


CASES = [
    (5, 300, torch.float32),
    (3, 9001, torch.bfloat16),
    (2, 4096, torch.float32),
    (40, 32, torch.float32),
]


def check_draw(draw, device):
    for B, V, dtype in CASES:
        generator = torch.Generator().manual_seed(V)
        logits_BV = (torch.randn(B, V, generator=generator) * 4).to(dtype)
        # Whole blocks of -inf, the others far below 0: fails when such a block passes for one with
        # a maximum of 0.
        logits_BV[0] -= 200
        logits_BV[0, : V // 2] = -torch.inf
        for temperature in (1.0, 0.6, 0):
            key_B = token_key(B, V, torch.arange(B), 2, 3)
            check_against_float64(logits_BV.to(device), temperature, key_B.to(device), draw)
            # The temperature read on the device gives the same bits. Fails when greedy keeps the
            # noise there.
            token_B, logp_B = draw(logits_BV.to(device), temperature, key_B.to(device))
            on_device = scales(temperature, torch.device(device))
            other_B, other_logp_B = draw(logits_BV.to(device), on_device, key_B.to(device))
            assert torch.equal(token_B, other_B) and torch.equal(logp_B, other_logp_B)
            wide_BV = torch.cat((logits_BV, torch.full((B, 16), 100.0, dtype=dtype)), 1).to(device)
            # Rows with a stride.
            check_against_float64(wide_BV[:, :V], temperature, key_B.to(device), draw)
    # Of a row of NaN comes a token that there is, and NaN.
    for temperature in (1.0, 0):
        key_B = torch.zeros(1, dtype=torch.int64, device=device)
        token_B, logp_B = draw(torch.full((1, 9000), torch.nan, device=device), temperature, key_B)
        assert 0 <= token_B.item() < 9000 and logp_B.isnan().all()
    # The smallest uniform is a noise of 22, not of infinity. Fails with log(1 - u) for log1p(-u).
    logits_BV = torch.zeros(1, 300, device=device)
    key_B = torch.tensor([key_for(0, 5)], device=device)
    logits_BV[0, 5] = -30
    check_against_float64(logits_BV, 1.0, key_B, draw)
    # Among equals the lowest index, across blocks too. Fails with tie_break_left=False.
    key_B = torch.zeros(2, dtype=torch.int64, device=device)
    token_B, logp_B = draw(torch.zeros(2, 9000, device=device), 0, key_B)
    assert token_B.tolist() == [0, 0] and torch.allclose(logp_B.cpu(), -torch.tensor(9000.0).log())


def test_draws_match_float64():
    # Fails when greedy's log-prob is not at temperature 1, and when a logit beyond the row is read.
    check_draw(sample, "cpu")


def test_a_row_does_not_depend_on_the_others():
    # Fails when the noise is keyed by the row's place in the batch.
    logits_BV = torch.randn(64, 1000, generator=torch.Generator().manual_seed(1))
    key_B = token_key(1, 2, torch.arange(64), 0, 0)
    token_B, logp_B = sample(logits_BV, 1.0, key_B)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(2))[:17]
    token_b, logp_b = sample(logits_BV[order], 1.0, key_B[order])
    assert torch.equal(token_b, token_B[order]) and torch.equal(logp_b, logp_B[order])
    alone = [sample(logits_BV[i : i + 1], 1.0, key_B[i : i + 1])[0].item() for i in range(64)]
    assert alone == token_B.tolist()


@pytest.mark.parametrize("temperature", [-1.0, float("nan")])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*>= 0"):
        sample(torch.zeros(1, 4), temperature, torch.zeros(1, dtype=torch.int64))


def check_bits(device):
    """The kernel's uniforms are those of torch, bit for bit. Fails with a logical shift, or with
    `* UNIT + UNIT / 2`."""
    module.load_triton()
    import triton
    import triton.language as tl

    globals()["tl"] = tl  # where the interpreter looks for it

    @triton.jit
    def write(
        key, out, V,
        GOLDEN: tl.constexpr, MIX1: tl.constexpr, MIX2: tl.constexpr, UNIT: tl.constexpr,
    ):  # fmt: skip
        index = tl.program_id(1) * 1024 + tl.arange(0, 1024)
        u = module.uniform_kernel(tl.load(key + tl.program_id(0)), index, GOLDEN, MIX1, MIX2, UNIT)
        tl.store(out + tl.program_id(0) * V + index, u, mask=index < V)

    V = 20_000
    extremes = torch.tensor([key_for(0, 5), key_for(0x7FFF8000, 5), -1])
    key_B = torch.cat((token_key(0, 0, torch.arange(6), 0, 0), extremes))
    u_BV = torch.empty(len(key_B), V, device=device)
    write[len(key_B), triton.cdiv(V, 1024)](key_B.to(device), u_BV, V, **MIXERS)
    assert torch.equal(u_BV.cpu().view(torch.int32), uniform(key_B, V).view(torch.int32))


def check_exponential(device, fast, error):
    """The relative error of the kernel's -log(1 - u), over all uniforms. Fails with a term of the
    series less."""
    module.load_triton()
    import triton
    import triton.language as tl

    globals()["tl"] = tl

    @triton.jit
    def write(u, out, FAST: tl.constexpr):
        index = tl.program_id(0) * 1024 + tl.arange(0, 1024)
        tl.store(out + index, module.exponential_kernel(tl.load(u + index), FAST))

    from_0 = torch.logspace(-9.6, -0.0001, 15 * 1024)
    to_1 = 1 - torch.logspace(-7.22, -0.3, 1024)
    u = torch.cat((from_0, to_1)).to(device)
    out = torch.empty_like(u)
    write[16,](u, out, fast)
    exact = -torch.log1p(-u.double())
    assert ((out - exact) / exact).abs().max() < error


def test_kernel_in_the_interpreter(interpreted):
    interpreted(__file__)


def test_kernels_compile_ahead_of_time(compiled):
    module.load_triton()
    both = dict(logits="*bf16", token_BP="*i32", stats_3BP="*fp32")
    both |= dict(row_stride="i32", V="i32", scales="*fp32")
    part, join = dict(both, key="*i64"), dict(both, token_B="*i64", logp_B="*fp32", P="i32")
    for kernel, types, constants in (
        (module.part_kernel, part, dict(BLOCK=4096, FAST=True, **MIXERS)),
        (module.join_kernel, join, dict(PARTS=64)),
    ):
        compiled(kernel, types, constants)


@pytest.mark.gpu
def test_kernel_on_a_gpu():
    check_bits("cuda")
    check_exponential("cuda", True, 5e-6)
    check_draw(sample, "cuda")


if __name__ == "__main__":
    check_bits("cpu")
    check_exponential("cpu", False, 6e-7)
    check_draw(sample_triton, "cpu")
