"""kernels/sample.py and kernels/paged.py against the usual ways, in microseconds of one call.

    python -m bench.bench_kernels      # GPU: shapes of Qwen2.5-1.5B and 7B; CPU: small ones

Sampling: a token and its log-probability from logits, against softmax and torch.multinomial.
Decode: one query per sequence over its pages, against torch's varlen_attn (GPU, torch 2.13), and
against gathering the pages and repeating the key-value heads. On a GPU our torch references run
too, and 20 calls are queued, so that a launch costs only what it delays the next. The floor: the
bytes that must be read over the measured rate of a copy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import tyro

from bench.common import DEVICE, DTYPE, GPU, copy_rate, one_line, race, record
from kernels import ceil_div
from kernels.paged import decode, decode_reference
from kernels.sample import sample, sample_reference, token_key

QUEUED = 20 if GPU else 1  # calls of one timing
PAGE = 16  # tokens of a page


@dataclass
class Flags:
    repeat: int = 51  # the median of so many timings is reported


@dataclass
class Case:
    name: str
    contenders: dict[str, Callable]
    bytes_read: int  # at least


def multinomial(logits_BV):
    """(token_B, logp_B) by torch's own draw."""
    logp_BV = logits_BV.float().log_softmax(1)
    token_B1 = torch.multinomial(logp_BV.exp(), 1)
    return token_B1[:, 0], logp_BV.gather(1, token_B1)[:, 0]


def sampling(B: int, V: int) -> Case:
    logits_BV = torch.randn(B, V, device=DEVICE, dtype=DTYPE)
    key_B = token_key(0, 0, torch.arange(B, device=DEVICE), 0, 0)
    contenders = {
        "ours": partial(sample, logits_BV, 1.0, key_B),
        "softmax + multinomial": partial(multinomial, logits_BV),
    }
    if GPU:
        contenders["ours in torch"] = partial(sample_reference, logits_BV, 1.0, key_B)
    return Case(f"sample B={B}, V={V}", contenders, logits_BV.nbytes)


def gather_and_repeat(q_BHK, kv_2NSJK, pages_BM, length_B):
    """o_BHK with every sequence's keys and values made contiguous, once per query head."""
    repeats = q_BHK.shape[1] // kv_2NSJK.shape[3]

    def gather(cache_NSJK):
        x_BLJK = cache_NSJK[pages_BM].flatten(1, 2)
        return x_BLJK.transpose(1, 2).repeat_interleave(repeats, 1)

    k_BHLK = gather(kv_2NSJK[0])
    v_BHLK = gather(kv_2NSJK[1])
    L = k_BHLK.shape[2]
    mask_BL = torch.arange(L, device=DEVICE) < length_B[:, None]
    mask_B11L = mask_BL[:, None, None]
    q_BH1K = q_BHK[:, :, None]
    o_BH1K = F.scaled_dot_product_attention(q_BH1K, k_BHLK, v_BHLK, attn_mask=mask_B11L)
    return o_BH1K[:, :, 0]


def varlen(q_BHK, kv_2NSJK, pages_BM, length_B, start_B):
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(
        q_BHK,
        kv_2NSJK[0],
        kv_2NSJK[1],
        start_B,
        None,
        1,
        pages_BM.shape[1] * PAGE,
        enable_gqa=True,
        seqused_k=length_B,
        block_table=pages_BM,
    )


def decoding(B: int, H: int, J: int, K: int, length: int) -> Case:
    M = ceil_div(length, PAGE)
    N = B * M
    kv_2NSJK = torch.randn(2, N, PAGE, J, K, device=DEVICE, dtype=DTYPE)
    pages_BM = torch.randperm(N, device=DEVICE).view(B, M).int()
    length_B = torch.full((B,), length, device=DEVICE, dtype=torch.int32)
    q_BHK = torch.randn(B, H, K, device=DEVICE, dtype=DTYPE)
    inputs = (q_BHK, kv_2NSJK, pages_BM, length_B)
    contenders = {
        "ours": partial(decode, *inputs),
        "gather and repeat": partial(gather_and_repeat, *inputs),
    }
    if GPU:
        start_B = torch.arange(B + 1, device=DEVICE, dtype=torch.int32)
        contenders["ours in torch"] = partial(decode_reference, *inputs)
        contenders["torch varlen_attn"] = partial(varlen, *inputs, start_B)
    name = f"decode B={B}, H={H}, J={J}, K={K}, {length} keys"
    return Case(name, contenders, 2 * B * length * J * K * DTYPE.itemsize)


def cases() -> list[Case]:
    if not GPU:
        return [
            sampling(256, 32),
            sampling(32, 49152),
            decoding(256, 3, 3, 16, 48),
            decoding(32, 9, 3, 64, 300),
        ]
    found = [sampling(B, 151936) for B in (1, 16, 256)]
    for H, J in ((12, 2), (28, 4)):  # 1.5B, 7B
        found.append(decoding(256, H, J, 128, 1024))
        found.append(decoding(8, H, J, 128, 4096))
    return found


def queued(function: Callable) -> None:
    for _ in range(QUEUED):
        function()


def measure(case: Case, repeat: int, bytes_per_s: float) -> list[dict]:
    rows = []
    rounds = {}
    for name, function in case.contenders.items():
        try:
            function()
            rounds[name] = partial(queued, function)
        except Exception as error:
            if name == "ours":
                raise
            rows.append({"case": case.name, "name": name, "not_run": one_line(error)})
    race(rounds, 3)  # the warm-up
    us = {name: 1e3 * ms / QUEUED for name, ms in race(rounds, repeat).items()}
    floor_us = 1e6 * case.bytes_read / bytes_per_s
    for name, duration in us.items():
        row = {"case": case.name, "name": name, "us": duration}
        row["ratio"] = duration / us["ours"]
        row["of_floor"] = floor_us / duration
        rows.append(row)
    return rows


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    rate = copy_rate()
    print(f"a copy moves {rate / 1e9:.0f} GB/s, read and written\n")
    print(f"{'':40}{'':24}{'us':>10}{'times ours':>12}{'of floor':>10}")
    rows = []
    for case in cases():
        for row in measure(case, flags.repeat, rate):
            rows.append(row)
            start = f"{row['case']:40}{row['name']:24}"
            if "not_run" in row:
                print(f"{start}not run: {row['not_run'][:110]}")
            else:
                print(f"{start}{row['us']:10.1f}{row['ratio']:12.2f}{row['of_floor']:10.0%}")
    files = ("kernels", "bench/bench_kernels.py", "bench/common.py")
    record("kernels", vars(flags), rows, {"copy_gb_per_s": rate / 1e9}, files)


if __name__ == "__main__":
    main()
