"""kernels/paged.py against a plain loop in float64; the kernels under triton's interpreter.

Run as a script with TRITON_INTERPRET=1, this file checks the kernels on a CPU. Triton reads that
variable when it is imported, so the test of that name starts a process of its own.
"""


import pytest
import torch

from kernels import ceil_div
from kernels import paged as module
from kernels.paged import decode, decode_triton, write_kv, write_kv_triton


def world(H, J, K, S, lengths, dtype, device="cpu"):
    """Queries, a full cache, page tables with rubbish beyond the lengths, and the lengths."""
    generator = torch.Generator().manual_seed(H * 1000 + K + S)
    B = len(lengths)
    M = ceil_div(max(lengths), S) + 1
    N = B * M + 3
    kv_2NSJK = torch.randn(2, N, S, J, K, generator=generator)
    # Scores that grow along the keys, so that the running maximum keeps moving.
    q_BHK = torch.randn(B, H, K, generator=generator) * 2
    page_BM = torch.randperm(N, generator=generator)[: B * M].view(B, M).to(torch.int32)
    length_B = torch.tensor(lengths, dtype=torch.int32)
    unused_BM = torch.arange(M) * S >= length_B[:, None]
    rubbish = torch.arange(int(unused_BM.sum())) % 2 - 1  # -1, 0, -1, ..
    page_BM[unused_BM] = rubbish.to(torch.int32)
    q_BHK = q_BHK.to(device, dtype)
    return q_BHK, kv_2NSJK.to(device, dtype), page_BM.to(device), length_B.to(device)


def loop_in_float64(q_BHK, kv_2NSJK, page_BM, length_B):
    """The definition: one sequence, one head, one key at a time."""
    q_BHK, kv_2NSJK = q_BHK.double().cpu(), kv_2NSJK.double().cpu()
    o_BHK = torch.zeros_like(q_BHK)
    B, H, K = q_BHK.shape
    S, J = kv_2NSJK.shape[2:4]
    for b in range(B):
        entries = [(int(page_BM[b, n // S]), n % S) for n in range(int(length_B[b]))]
        for h in range(H if entries else 0):
            j = h // (H // J)
            k_LK = torch.stack([kv_2NSJK[0, page, s, j] for page, s in entries])
            v_LK = torch.stack([kv_2NSJK[1, page, s, j] for page, s in entries])
            o_BHK[b, h] = (k_LK @ q_BHK[b, h] * K**-0.5).softmax(0) @ v_LK
    return o_BHK


# Every head size; groups of 1, 2, 3, 5 and 7; pages of 1 to 64; lengths of 0, of one key, on and
# beside the ends of pages (16), of blocks (32, 64) and of chunks (256), and one with more than 16
# chunks' worth of keys.
CASES = [
    (3, 3, 16, 16, [0, 1, 15, 16, 17, 48]),
    (9, 3, 64, 16, [300, 31, 33, 63, 65]),
    (4, 2, 128, 64, [255, 256, 257, 0]),
    (7, 1, 32, 1, [5, 40]),
    (5, 1, 16, 32, [4500, 4096, 700]),
]


def check_decode(attend, device, dtypes=(torch.float32, torch.bfloat16)):
    for H, J, K, S, lengths in CASES:
        for dtype in dtypes:
            inputs = world(H, J, K, S, lengths, dtype, device)
            o_BHK = attend(*inputs)
            assert o_BHK.shape == (len(lengths), H, K) and o_BHK.dtype == dtype
            # bf16: the probabilities are rounded, then the output: 2 half-ulps of values up to 4 or
            # so.
            bound = 2e-5 if dtype == torch.float32 else 2 * 2.0**-9 * 4
            error = (o_BHK.double().cpu() - loop_in_float64(*inputs)).abs().max().item()
            assert error < bound, (H, J, K, S, dtype, error)
            if 0 in lengths:
                assert (o_BHK[lengths.index(0)] == 0).all()
    # Queries as slices of a wider projection.
    q_BHK, *rest = world(*CASES[0], dtypes[0], device)
    wide_BHK = torch.cat((q_BHK, q_BHK + 1), 1)
    assert torch.equal(attend(wide_BHK[:, : q_BHK.shape[1]], *rest), attend(q_BHK, *rest))


def check_write(write, device):
    for dtype in (torch.float32, torch.bfloat16):
        for entry_dtype in (torch.int32, torch.int64):
            before_2NSJK = torch.randn(2, 5, 4, 3, 16).to(dtype)
            qkv_TJK = torch.randn(6, 9, 16).to(dtype)
            entries = [7, -1, 0, 19, -1, 8]
            expected_2NSJK = before_2NSJK.clone()
            for t, entry in enumerate(entries):
                if entry >= 0:
                    expected_2NSJK[0, entry // 4, entry % 4] = qkv_TJK[t, 3:6]
                    expected_2NSJK[1, entry // 4, entry % 4] = qkv_TJK[t, 6:]
            kv_2NSJK, qkv_TJK = before_2NSJK.to(device), qkv_TJK.to(device)
            entry_T = torch.tensor(entries, dtype=entry_dtype, device=device)
            assert write(kv_2NSJK, qkv_TJK[:, 3:6], qkv_TJK[:, 6:], entry_T) is None
            assert torch.equal(kv_2NSJK.cpu(), expected_2NSJK)
            nothing_T = torch.full_like(entry_T, -1)
            write(kv_2NSJK, qkv_TJK[:, 3:6], qkv_TJK[:, 6:], nothing_T)
            assert torch.equal(kv_2NSJK.cpu(), expected_2NSJK)


def check_rows_are_independent(attend, device):
    # Fails when the cut of a sequence into chunks depends on the longest sequence of the batch:
    # bits would change.
    q_BHK, kv_2NSJK, page_BM, length_B = world(*CASES[4], torch.float32, device)
    o_BHK = attend(q_BHK, kv_2NSJK, page_BM, length_B)
    pages = ceil_div(700, 32)
    alone_BHK = attend(q_BHK[2:], kv_2NSJK, page_BM[2:, :pages].contiguous(), length_B[2:])
    assert torch.equal(alone_BHK, o_BHK[2:])


def test_decode():
    # Fails without the mask, with the wrong head of a group, or when keys and values change places.
    check_decode(decode, "cpu")


def test_write():
    # Fails when entry -1 is written, or when keys and values change places.
    check_write(write_kv, "cpu")


def test_rows_are_independent():
    # In torch to rounding only: its products over more keys may add in another order.
    q_BHK, kv_2NSJK, page_BM, length_B = world(*CASES[1], torch.float32)
    o_BHK = decode(q_BHK, kv_2NSJK, page_BM, length_B)
    for b in range(len(o_BHK)):
        alone_BHK = decode(q_BHK[b : b + 1], kv_2NSJK, page_BM[b : b + 1], length_B[b : b + 1])
        torch.testing.assert_close(alone_BHK, o_BHK[b : b + 1], rtol=1e-6, atol=1e-6)


def test_what_is_written_is_read():
    # Fails when write_kv and decode disagree on where an entry is.
    kv_2NSJK = torch.zeros(2, 6, 4, 2, 16)
    k_TJK, v_TJK = torch.randn(2, 7, 2, 16)
    page_BM = torch.tensor([[4, 1]], dtype=torch.int32)
    n_T = torch.arange(7)
    write_kv(kv_2NSJK, k_TJK, v_TJK, page_BM[0, n_T // 4] * 4 + n_T % 4)
    q_BHK = torch.randn(1, 4, 16)
    o_BHK = decode(q_BHK, kv_2NSJK, page_BM, torch.tensor([7], dtype=torch.int32))
    k_HTK, v_HTK = (x_TJK.transpose(0, 1).repeat_interleave(2, 0) for x_TJK in (k_TJK, v_TJK))
    expected_HK = (torch.einsum("hk,htk->ht", q_BHK[0], k_HTK) / 4).softmax(1)[:, None] @ v_HTK
    torch.testing.assert_close(o_BHK[0], expected_HK[:, 0], rtol=1e-5, atol=1e-5)


def test_errors():
    q_BHK, kv_2NSJK, page_BM, length_B = world(*CASES[1], torch.float32)
    with pytest.raises(ValueError, match="8 query heads on 3"):
        decode(q_BHK[:, :8], kv_2NSJK, page_BM, length_B)
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="head size 48"):
        decode_triton(q_BHK[..., :48], kv_2NSJK[..., :48], page_BM, length_B)


def check_kernels(device):
    check_write(write_kv_triton, device)
    check_decode(decode_triton, device)
    check_rows_are_independent(decode_triton, device)


def let_the_interpreter_multiply_bf16():
    """Widen operands: the interpreter keeps bf16 as the integers of its bits, and its dot forgets
    that."""
    import numpy
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def widen(x):
        if x.dtype.scalar != module.tl.bfloat16:
            return x
        bits = x.data.astype(numpy.uint32) << 16
        return interpreter.TensorHandle(bits.view(numpy.float32), module.tl.float32)

    def wide_dot(self, a, b, *rest):
        return dot(self, widen(a), widen(b), *rest)

    interpreter.InterpreterBuilder.create_dot = wide_dot


def test_kernels_in_the_interpreter(interpreted):
    interpreted(__file__)


def test_kernels_compile_ahead_of_time(compiled):
    module.load_triton()
    work = dict(length_B="*i32", o_BJPRK="*fp32", stats_2BJPR="*fp32", P="i32", scale="fp32")
    work |= dict(page_stride="i32", q_stride="i32", stats_stride="i32")
    shape = dict(J=2, R=6, CHUNK=module._CHUNK, PARTS=module._PARTS)
    cases = []
    for dtype, K in (("bf16", 128), ("bf16", 64), ("fp32", 64), ("fp32", 16)):
        block = 64 if dtype == "bf16" else 32
        types = dict(work, q=f"*{dtype}", kv=f"*{dtype}", o_BHK=f"*{dtype}")
        types |= dict(page_BM="*i32", kv_stride="i64")
        cases.append((module.attend_kernel, types, dict(shape, K=K, BLOCK=block, S=16, ROWS=16)))
    cases.append((module.join_kernel, types, dict(shape, K=128, BLOCK=64)))
    strides = dict(kv_stride="i64", k_stride="i32", v_stride="i32")
    types = dict(kv="*bf16", k="*bf16", v="*bf16", entry_T="*i64", **strides)
    cases.append((module.write_kernel, types, dict(JK=384, BLOCK=512)))
    for kernel, types, constants in cases:
        compiled(kernel, types, constants)


@pytest.mark.gpu
def test_kernels_on_a_gpu():
    check_kernels("cuda")


if __name__ == "__main__":
    module.load_triton()
    let_the_interpreter_multiply_bf16()
    check_kernels("cpu")
