"""kernels/sample.py and kernels/paged.py against what a user could take instead, in microseconds of one call.

    python -m bench.bench_kernels                        # the shapes of Qwen2.5-1.5B and 7B on a GPU, small ones on a CPU

Sampling: a token and its log-probability from logits, against softmax and torch.multinomial. Decode: one query per
sequence over its pages, against torch's varlen_attn (GPU, torch 2.13), and against gathering the pages and repeating
the key-value heads. On a GPU our torch versions run too, and calls are queued, so that a launch costs only what it
delays the next. The floor: the bytes that must be read over the measured rate of a copy. One line is appended to
results/kernels.jsonl.
"""

import argparse

import torch
import torch.nn.functional as F

from bench.common import copy_rate, race, record
from kernels.paged import decode, decode_reference
from kernels.sample import sample, sample_reference, token_key


def multinomial(logits_BV):
    logp_BV = logits_BV.float().log_softmax(1)
    token_B1 = torch.multinomial(logp_BV.exp(), 1)
    return token_B1[:, 0], logp_BV.gather(1, token_B1)[:, 0]


def samplers(B, V, dtype, device):
    logits_BV = torch.randn(B, V, device=device, dtype=dtype)
    key_B = token_key(0, 0, torch.arange(B, device=device), 0, 0)
    contenders = {
        "ours": lambda: sample(logits_BV, 1.0, key_B),
        "softmax + multinomial": lambda: multinomial(logits_BV),
    }
    if device == "cuda":
        contenders["ours in torch"] = lambda: sample_reference(logits_BV, 1.0, key_B)
    return contenders, logits_BV.nbytes


def gather_and_repeat(q_BHK, kv_2NSJK, pages_BM, length_B):
    """The plain way: every sequence's keys and values contiguous, once per query head."""
    k_BHLK, v_BHLK = (
        cache_NSJK[pages_BM].flatten(1, 2).transpose(1, 2).repeat_interleave(q_BHK.shape[1] // cache_NSJK.shape[2], 1)
        for cache_NSJK in kv_2NSJK
    )
    mask_BL = torch.arange(k_BHLK.shape[2], device=q_BHK.device) < length_B[:, None]
    return F.scaled_dot_product_attention(q_BHK[:, :, None], k_BHLK, v_BHLK, attn_mask=mask_BL[:, None, None])[:, :, 0]


def decoders(B, H, J, K, length, S, dtype, device):
    M = -(-length // S)
    N = B * M
    kv_2NSJK = torch.randn(2, N, S, J, K, device=device, dtype=dtype)
    pages_BM = torch.randperm(N, device=device).view(B, M).to(torch.int32)
    length_B = torch.full((B,), length, device=device, dtype=torch.int32)
    q_BHK = torch.randn(B, H, K, device=device, dtype=dtype)
    inputs = (q_BHK, kv_2NSJK, pages_BM, length_B)
    contenders = {"ours": lambda: decode(*inputs), "gather and repeat": lambda: gather_and_repeat(*inputs)}
    if device == "cuda":
        contenders["ours in torch"] = lambda: decode_reference(*inputs)
        try:
            from torch.nn.attention.varlen import varlen_attn

            start_B = torch.arange(B + 1, device=device, dtype=torch.int32)
            contenders["torch varlen_attn"] = lambda: varlen_attn(
                q_BHK, kv_2NSJK[0], kv_2NSJK[1], start_B, None, 1, M * S,
                enable_gqa=True, seqused_k=length_B, block_table=pages_BM,
            )  # fmt: skip
        except ImportError:  # torch before varlen_attn
            pass
    return contenders, 2 * B * length * J * K * kv_2NSJK.element_size()


def main():
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--repeat", type=int, default=51, help="the median of so many calls is reported")
    arguments = parser.parse_args()
    device = arguments.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    rate = copy_rate(device) / 1e9
    print(f"a copy moves {rate:.0f} GB/s, read and written\n")

    if device == "cuda":
        cases = {f"sample B={B}, V=151936": samplers(B, 151936, dtype, device) for B in (1, 16, 256)}
        for model, H, J in (("1.5B", 12, 2), ("7B", 28, 4)):
            for B, length in ((256, 1024), (8, 4096)):
                name = f"decode {model}, B={B}, {length} keys"
                cases[name] = decoders(B, H, J, 128, length, 16, dtype, device)
    else:
        cases = {f"sample B={B}, V={V}": samplers(B, V, dtype, device) for B, V in ((256, 32), (32, 49152))}
        for B, H, J, K, length in ((256, 3, 3, 16, 48), (32, 9, 3, 64, 300)):
            name = f"decode B={B}, H={H}, J={J}, K={K}, {length} keys"
            cases[name] = decoders(B, H, J, K, length, 16, dtype, device)

    rows, queued = [], 20 if device == "cuda" else 1
    print(f"{'':40}{'':24}{'us':>10}{'times ours':>12}{'of floor':>10}")
    for case, (contenders, floor_bytes) in cases.items():
        for name, function in list(contenders.items()):
            try:
                function()
            except Exception as reason:
                first_line = (str(reason).strip().splitlines() or [""])[0]
                rows.append(dict(case=case, name=name, not_run=f"{type(reason).__name__}: {first_line}"))
                print(f"{case:40}{name:24}not run: {rows[-1]['not_run'][:110]}")
                del contenders[name]
        rounds = {name: lambda f=f: [f() for _ in range(queued)] for name, f in contenders.items()}
        race(rounds, device, 3)
        ms = {name: round_ms / queued for name, round_ms in race(rounds, device, arguments.repeat).items()}
        floor_us = floor_bytes / rate / 1e3
        for name, time_ms in ms.items():
            row = dict(
                case=case, name=name, us=time_ms * 1e3, ratio=time_ms / ms["ours"], of_floor=floor_us / time_ms / 1e3
            )
            rows.append(row)
            print(f"{case:40}{name:24}{row['us']:10.1f}{row['ratio']:12.2f}{row['of_floor']:10.0%}")
    record("kernels", arguments, rows, dict(copy_gb_per_s=rate), ("kernels", "bench/bench_kernels.py", "bench/common.py"))


if __name__ == "__main__":
    main()
