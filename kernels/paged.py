"""Paged KV cache: write keys and values, and attention with one query per sequence.

    o_h = sum_n softmax_n(q_h . k_n / sqrt(K)) v_n,   n < length

The cache of one layer is kv_2NSJK: keys, then values, in N pages of S tokens, S a power of two.
Token n of a sequence lies in page page_M[n // S] at n % S; this place is the flat *entry*
page * S + n % S. The cache must hold finite numbers everywhere, so allocate it with zeros: what
lies beyond a length is multiplied by a probability of 0.

By count, `decode` reads each key and value once: 2 J K length numbers per sequence (8 MB in bf16
for 4096 tokens of Qwen2.5-7B, one layer), which is all that matters next to q, o and the table.

Letters: B sequences, T new tokens, M pages of a sequence, L = M S tokens, H query heads,
J key-value heads, each read by R = H / J query heads, K head size. The letters of the kernels'
blocks are local.
"""

import functools

import torch
import torch.nn.functional as F

from kernels import ceil_div

# A sequence is cut into chunks of 256 keys, and beyond 4096 keys into at most 16 longer ones. These
# are enough programs to fill a GPU with few sequences. The cut, hence the order of the sums,
# depends on the length of the sequence and never on the batch.
_CHUNK = 256
_PARTS = 16

LOG2_E = 1.4426950408889634


# ---- In torch -----------------------------------------------------------------------------------


def write_kv_reference(kv_2NSJK, k_TJK, v_TJK, entry_T):
    """`write_kv` in torch."""
    _, N, S, J, K = kv_2NSJK.shape
    if (entry_T < 0).any():
        keep_T = entry_T >= 0
        k_TJK = k_TJK[keep_T]
        v_TJK = v_TJK[keep_T]
        entry_T = entry_T[keep_T]
    for cache_NSJK, new_TJK in zip(kv_2NSJK, (k_TJK, v_TJK), strict=True):
        cache = cache_NSJK.view(N * S, J, K)
        cache.index_copy_(0, entry_T.long(), new_TJK.to(cache.dtype))


def locate_keys(kv_2NSJK, page_BM, length_B):
    """What `decode_reference` gathers: (pages of keys, then of values; mask_B11L).

    It is the same for all layers of a step, so it is worked out once.
    """
    _, N, S, _, _ = kv_2NSJK.shape
    _, M = page_BM.shape
    page = page_BM.flatten().clamp(min=0)  # pages beyond a length may be any number below N
    n_L = torch.arange(M * S, device=length_B.device)
    beyond_BL = n_L >= length_B[:, None]
    # Numbers: torch's attention would turn booleans into numbers in every layer.
    mask_BL = torch.zeros(beyond_BL.shape, dtype=kv_2NSJK.dtype, device=length_B.device)
    mask_BL.masked_fill_(beyond_BL, -torch.inf)
    # In the cache as 2 N pages, the values of page p are page N + p.
    return torch.cat((page, page + N)), mask_BL[:, None, None]


def decode_reference(q_BHK, kv_2NSJK, page_BM, length_B, located=None):
    """`decode` in torch: gather the pages; query heads of a group are the rows of one attention."""
    # <solution id="decode" points="5">
    B, H, K = q_BHK.shape
    _, N, _, J, _ = kv_2NSJK.shape
    page, mask_B11L = located or locate_keys(kv_2NSJK, page_BM, length_B)
    kv = kv_2NSJK.view(2 * N, -1).index_select(0, page)
    k_BJLK, v_BJLK = kv.view(2, B, -1, J, K).transpose(2, 3)
    q_BJRK = q_BHK.reshape(B, J, H // J, K)
    # A length of 0 masks all keys of a row: torch's attention then gives zeros, not NaN.
    o_BJRK = F.scaled_dot_product_attention(q_BJRK, k_BJLK, v_BJLK, attn_mask=mask_B11L)
    return o_BJRK.reshape(B, H, K)
    # </solution>


# ---- In Triton ----------------------------------------------------------------------------------


@functools.cache
def load_triton():
    """Define the kernels as globals: Triton is imported only where they run, and its interpreter
    finds `tl`."""
    global triton, tl, write_kernel, chunk_size, attend_kernel, join_kernel
    import triton
    import triton.language as tl

    @triton.jit
    def write_kernel(
        kv, k, v, entry_T, kv_stride, k_stride, v_stride, JK: tl.constexpr, BLOCK: tl.constexpr
    ):
        """One row of k and v."""
        row = tl.program_id(0).to(tl.int64)
        entry = tl.load(entry_T + row).to(tl.int64)
        x = tl.arange(0, BLOCK)
        inside = (x < JK) & (entry >= 0)
        k_x = tl.load(k + row * k_stride + x, mask=inside)
        v_x = tl.load(v + row * v_stride + x, mask=inside)
        k_to = kv + entry * JK + x
        v_to = k_to + kv_stride
        tl.store(k_to, k_x, mask=inside)
        tl.store(v_to, v_x, mask=inside)

    @triton.jit
    def chunk_size(length, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr):
        """Keys of a chunk: CHUNK, or so many blocks that PARTS chunks hold the whole sequence."""
        share = tl.cdiv(length, PARTS)
        return tl.maximum(CHUNK, tl.cdiv(share, BLOCK) * BLOCK)

    @triton.jit
    def attend_kernel(
        q, kv, page_BM, length_B, o_BJPRK, stats_2BJPR,
        q_stride, kv_stride, page_stride, stats_stride, scale,
        S: tl.constexpr, J: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
        ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
    ):  # fmt: skip
        """One chunk of the keys of one group: unnormalised output, maximum (base 2) and sum."""
        b = tl.program_id(0).to(tl.int64)
        j = tl.program_id(1)
        part = tl.program_id(2)
        P = tl.num_programs(2)
        length = tl.load(length_B + b)
        chunk = chunk_size(length, BLOCK, CHUNK, PARTS)
        start = part * chunk
        stop = tl.minimum(start + chunk, length)
        if start < stop:
            r = tl.arange(0, ROWS)
            is_head = r < R
            is_head_R1 = is_head[:, None]
            d_1K = tl.arange(0, K)[None, :]
            head = j * R + r
            q_at = q + b * q_stride + head[:, None] * K + d_1K
            q_RK = tl.load(q_at, mask=is_head_R1, other=0.0).to(kv.dtype.element_ty)
            page_M = page_BM + b * page_stride
            top = tl.full([ROWS], float("-inf"), tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            o_RK = tl.zeros([ROWS, K], tl.float32)
            for first in range(start, stop, BLOCK):
                n = first + tl.arange(0, BLOCK)
                inside = n < stop
                inside_L1 = inside[:, None]
                page = tl.load(page_M + n // S, mask=inside, other=0).to(tl.int64)
                entry = page * S + n % S
                key = entry * J + j
                k_at = kv + key[:, None] * K + d_1K
                v_at = k_at + kv_stride
                k_LK = tl.load(k_at, mask=inside_L1, other=0.0)
                z_RL = tl.dot(q_RK, tl.trans(k_LK), input_precision="ieee") * scale
                z_RL = tl.where(inside[None, :], z_RL, float("-inf"))
                new_top = tl.maximum(top, tl.max(z_RL, 1))
                p_RL = tl.exp2(z_RL - new_top[:, None])
                shrink = tl.exp2(top - new_top)
                v_LK = tl.load(v_at, mask=inside_L1, other=0.0)
                o_RK = o_RK * shrink[:, None]
                o_RK += tl.dot(p_RL.to(v_LK.dtype), v_LK, input_precision="ieee")
                total = total * shrink + tl.sum(p_RL, 1)
                top = new_top
            group = b * J + j
            row = (group * P + part) * R + r
            o_at = o_BJPRK + row[:, None] * K + d_1K
            top_at = stats_2BJPR + row
            tl.store(top_at, top, mask=is_head)
            tl.store(top_at + stats_stride, total, mask=is_head)
            tl.store(o_at, o_RK, mask=is_head_R1)

    @triton.jit
    def join_kernel(
        o_BJPRK, stats_2BJPR, length_B, o_BHK, stats_stride, P,
        J: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
        BLOCK: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
    ):  # fmt: skip
        """Join the chunks of one query head. Chunks beyond the length were never written."""
        b = tl.program_id(0).to(tl.int64)
        j = tl.program_id(1)
        r = tl.program_id(2)
        length = tl.load(length_B + b)
        chunk = chunk_size(length, BLOCK, CHUNK, PARTS)
        part = tl.arange(0, PARTS)
        d = tl.arange(0, K)
        used = part * chunk < length
        group = b * J + j
        row = (group * P + part) * R + r
        top_at = stats_2BJPR + row
        top = tl.load(top_at, mask=used, other=float("-inf"))
        total = tl.load(top_at + stats_stride, mask=used, other=0.0)
        # Without any key the weights are 0, and the division below is 0 / 1.
        weight = tl.where(used, tl.exp2(top - tl.max(top, 0)), 0.0)
        part_at = o_BJPRK + row[:, None] * K + d[None, :]
        o_PK = tl.load(part_at, mask=used[:, None], other=0.0)
        o_K = tl.sum(o_PK * weight[:, None], 0)
        o_K /= tl.where(length > 0, tl.sum(total * weight, 0), 1.0)
        head = group * R + r
        tl.store(o_BHK + head * K + d, o_K)


def _rows_contiguous(x_BHK):
    """Make the last two dimensions contiguous, as they are in slices of a fused projection."""
    _, _, K = x_BHK.shape
    if x_BHK.stride()[1:] == (K, 1):
        return x_BHK
    return x_BHK.contiguous()


def write_kv_triton(kv_2NSJK, k_TJK, v_TJK, entry_T):
    """`write_kv` on a GPU: one program per row."""
    load_triton()
    k_TJK = _rows_contiguous(k_TJK)
    v_TJK = _rows_contiguous(v_TJK)
    T, J, K = k_TJK.shape
    JK = J * K
    write_kernel[T,](
        kv_2NSJK, k_TJK, v_TJK, entry_T, kv_2NSJK.stride(0), k_TJK.stride(0), v_TJK.stride(0),
        JK=JK, BLOCK=triton.next_power_of_2(JK), num_warps=1,
    )  # fmt: skip


def decode_triton(q_BHK, kv_2NSJK, page_BM, length_B):
    """`decode` on a GPU: one program per group and chunk of keys, then one per query head."""
    load_triton()
    B, H, K = q_BHK.shape
    _, _, S, J, _ = kv_2NSJK.shape
    if K not in (16, 32, 64, 128) or S & (S - 1):
        raise ValueError(
            f"head size {K}, page size {S}: the kernel takes 16, 32, 64 or 128, and a power of two"
        )
    R = H // J
    q_BHK = _rows_contiguous(q_BHK)
    page_BM = page_BM if page_BM.stride(1) == 1 else page_BM.contiguous()
    # The table's width decides, because the lengths are on the GPU and a CUDA graph that launches
    # this outlives them.
    P = min(_PARTS, ceil_div(page_BM.shape[1] * S, _CHUNK))
    work = dict(dtype=torch.float32, device=q_BHK.device)
    o_BJPRK = torch.empty(B, J, P, R, K, **work)
    stats_2BJPR = torch.empty(2, B, J, P, R, **work)
    o_BHK = torch.empty(B, H, K, dtype=q_BHK.dtype, device=q_BHK.device)
    # Blocks of 64 keys in bf16 and 32 in float32: 16 KiB of keys and of values each at K = 128, so
    # that three stages fit any GPU.
    block = 128 // kv_2NSJK.element_size()
    shape = dict(J=J, K=K, R=R, BLOCK=block, CHUNK=_CHUNK, PARTS=_PARTS)
    scale = K**-0.5 * LOG2_E  # the softmax is taken in base 2
    attend_kernel[B, J, P](
        q_BHK, kv_2NSJK, page_BM, length_B, o_BJPRK, stats_2BJPR,
        q_BHK.stride(0), kv_2NSJK.stride(0), page_BM.stride(0), stats_2BJPR.stride(0), scale,
        S=S, ROWS=max(16, triton.next_power_of_2(R)), **shape, num_warps=4, num_stages=3,
    )  # fmt: skip
    join_kernel[B, J, R](
        o_BJPRK, stats_2BJPR, length_B, o_BHK, stats_2BJPR.stride(0), P, **shape, num_warps=1
    )
    return o_BHK


# ---- By device ----------------------------------------------------------------------------------


def write_kv(kv_2NSJK, k_TJK, v_TJK, entry_T):
    """Write row t of k and v at entry_T[t] (int32 or int64), in place.

    Entry -1 skips the row (an empty slot of a decode step). Entries must differ from each other.
    """
    write = write_kv_triton if kv_2NSJK.is_cuda else write_kv_reference
    write(kv_2NSJK, k_TJK, v_TJK, entry_T)


def decode(q_BHK, kv_2NSJK, page_BM, length_B, located=None):
    """o_BHK, in the dtype of q: attention of one query per sequence over its first length_B keys.

    page_BM, length_B: int32. H is a multiple of J; query head h reads key-value head h // (H / J).
    The softmax is float32. A length of 0 gives zeros. Pages of page_BM beyond a length do not
    matter (any number below N), but a CPU gathers them: keep the table narrow.
    located: the result of `locate_keys` for the same tables and lengths, if it is there already.
    ValueError if H is not a multiple of J, or on a GPU for sizes that the kernel does not take.
    """
    H = q_BHK.shape[1]
    J = kv_2NSJK.shape[3]
    if H % J:
        raise ValueError(f"{H} query heads on {J} key-value heads: give a multiple")
    if kv_2NSJK.is_cuda:
        return decode_triton(q_BHK, kv_2NSJK, page_BM, length_B)
    return decode_reference(q_BHK, kv_2NSJK, page_BM, length_B, located)
