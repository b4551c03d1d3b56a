"""Keys and values in pages: write new ones, and attend from one query per sequence over its pages.

    o_h = sum_n softmax_n(q_h . k_n / sqrt(K)) v_n,   n < length,   k_n, v_n at page pages[n // S], offset n % S

The cache of one layer is kv_2NSJK: N pages of S slots (S a power of two), keys first, then values. It must hold finite
numbers everywhere (allocate it with zeros): slots beyond a length are multiplied by a probability of 0. A sequence has
up to M pages and L = M S keys; R = H / J query heads share a key-value head.
"""

import functools

import torch
import torch.nn.functional as F


def write_kv_reference(kv_2NSJK, k_TJK, v_TJK, slot_T):
    """`write_kv` in torch."""
    _, N, S, J, K = kv_2NSJK.shape
    if (slot_T < 0).any():
        keep_T = slot_T >= 0
        k_TJK, v_TJK, slot_T = k_TJK[keep_T], v_TJK[keep_T], slot_T[keep_T]
    for cache_NSJK, new_TJK in zip(kv_2NSJK, (k_TJK, v_TJK), strict=True):
        cache_NSJK.view(N * S, J, K).index_copy_(0, slot_T.long(), new_TJK.to(cache_NSJK.dtype))


def locate_keys(kv_2NSJK, pages_BM, length_B):
    """What `decode` works out of the tables and lengths on a CPU (None on a GPU): done once, it serves all layers of a step."""
    if kv_2NSJK.is_cuda:
        return None
    N, S = kv_2NSJK.shape[1:3]
    pages = pages_BM.flatten().clamp(min=0)  # entries beyond a length may hold anything below N
    hidden_BL = torch.arange(pages_BM.shape[1] * S, device=length_B.device) >= length_B[:, None]
    # Numbers and not booleans, which torch's attention would turn into numbers in every layer.
    mask_BL = torch.zeros(hidden_BL.shape, dtype=kv_2NSJK.dtype, device=length_B.device).masked_fill_(hidden_BL, -torch.inf)
    return torch.cat((pages, pages + N)), mask_BL[:, None, None]


def decode_reference(q_BHK, kv_2NSJK, pages_BM, length_B, located=None):
    """`decode` in torch: the pages are gathered once, query heads of one group are rows of one attention."""
    B, H, K = q_BHK.shape
    N, J = kv_2NSJK.shape[1], kv_2NSJK.shape[3]
    place_BM2, mask_B11L = located or locate_keys(kv_2NSJK, pages_BM, length_B)
    k_BJLK, v_BJLK = kv_2NSJK.view(2 * N, -1).index_select(0, place_BM2).view(2, B, -1, J, K).transpose(2, 3)
    q_BJRK = q_BHK.reshape(B, J, H // J, K)
    # torch's attention gives zeros, not NaN, for a row whose keys are all masked: a length of 0.
    return F.scaled_dot_product_attention(q_BJRK, k_BJLK, v_BJLK, attn_mask=mask_B11L).reshape(B, H, K)


@functools.cache
def load_triton():
    """Define the kernels, as globals: triton is then imported only where they run, and its interpreter finds `tl`."""
    global triton, tl, write_kernel, attend_kernel, join_kernel
    import triton
    import triton.language as tl

    @triton.jit
    def write_kernel(kv, k, v, slot_T, kv_stride, k_stride, v_stride, JK: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        slot = tl.load(slot_T + row).to(tl.int64)
        x = tl.arange(0, BLOCK)
        inside = (x < JK) & (slot >= 0)
        tl.store(kv + slot * JK + x, tl.load(k + row * k_stride + x, mask=inside), mask=inside)
        tl.store(kv + kv_stride + slot * JK + x, tl.load(v + row * v_stride + x, mask=inside), mask=inside)

    @triton.jit
    def attend_kernel(
        q, kv, pages_BM, length_B, o_BJPRK, stats_2BJPR, q_stride, kv_stride, pages_stride, scale,
        S: tl.constexpr, J: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
        ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
    ):  # fmt: skip
        """One chunk of the keys of one group: its unnormalised output, maximum (base 2) and sum."""
        b, j, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        length = tl.load(length_B + b)
        chunk = tl.maximum(CHUNK, tl.cdiv(tl.cdiv(length, PARTS), BLOCK) * BLOCK)
        start = part * chunk
        stop = tl.minimum(start + chunk, length)
        if start < stop:
            r, d = tl.arange(0, ROWS), tl.arange(0, K)
            q_at = b.to(tl.int64) * q_stride + (j * R + r[:, None]) * K + d[None, :]
            q_RK = tl.load(q + q_at, mask=r[:, None] < R, other=0.0).to(kv.dtype.element_ty)
            top = tl.full([ROWS], float("-inf"), tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            o_RK = tl.zeros([ROWS, K], tl.float32)
            for first in range(start, stop, BLOCK):
                n = first + tl.arange(0, BLOCK)
                inside = n < stop
                page = tl.load(pages_BM + b.to(tl.int64) * pages_stride + n // S, mask=inside, other=0).to(tl.int64)
                at = (((page * S + n % S) * J + j) * K)[:, None] + d[None, :]
                k_LK = tl.load(kv + at, mask=inside[:, None], other=0.0)
                z_RL = tl.dot(q_RK, tl.trans(k_LK), input_precision="ieee") * scale
                z_RL = tl.where(inside[None, :], z_RL, float("-inf"))
                new_top = tl.maximum(top, tl.max(z_RL, 1))
                p_RL = tl.exp2(z_RL - new_top[:, None])
                shrink = tl.exp2(top - new_top)
                v_LK = tl.load(kv + kv_stride + at, mask=inside[:, None], other=0.0)
                o_RK = o_RK * shrink[:, None] + tl.dot(p_RL.to(v_LK.dtype), v_LK, input_precision="ieee")
                total = total * shrink + tl.sum(p_RL, 1)
                top = new_top
            rows = ((b.to(tl.int64) * J + j) * tl.num_programs(2) + part) * R + r
            stride = tl.num_programs(0).to(tl.int64) * J * tl.num_programs(2) * R
            tl.store(stats_2BJPR + rows, top, mask=r < R)
            tl.store(stats_2BJPR + stride + rows, total, mask=r < R)
            tl.store(o_BJPRK + rows[:, None] * K + d[None, :], o_RK, mask=r[:, None] < R)

    @triton.jit
    def join_kernel(
        o_BJPRK, stats_2BJPR, length_B, o_BHK, P,
        J: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
        BLOCK: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr,
    ):  # fmt: skip
        """Join the chunks of one query head; chunks beyond the length were never written and are not read."""
        b, j, r = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
        length = tl.load(length_B + b)
        chunk = tl.maximum(CHUNK, tl.cdiv(tl.cdiv(length, PARTS), BLOCK) * BLOCK)
        part, d = tl.arange(0, PARTS), tl.arange(0, K)
        used = part * chunk < length
        rows = ((b * J + j) * P + part) * R + r
        stride = tl.num_programs(0).to(tl.int64) * J * P * R
        top = tl.load(stats_2BJPR + rows, mask=used, other=float("-inf"))
        total = tl.load(stats_2BJPR + stride + rows, mask=used, other=0.0)
        # Without any key: weights 0, and 0 / 1 below.
        weight = tl.where(used, tl.exp2(top - tl.max(top, 0)), 0.0)
        o_PK = tl.load(o_BJPRK + rows[:, None] * K + d[None, :], mask=used[:, None], other=0.0)
        o_K = tl.sum(o_PK * weight[:, None], 0) / tl.where(length > 0, tl.sum(total * weight, 0), 1.0)
        tl.store(o_BHK + ((b * J + j) * R + r) * K + d, o_K)


# A sequence is cut into chunks of 256 keys, and into 16 longer ones from 4096 keys on: enough programs to fill a GPU
# with few sequences, and a cut (hence an order of sums) that depends on the sequence's length and never on the batch.
_CHUNK, _PARTS = 256, 16


def _rows_contiguous(x):
    """x with its last two of three dimensions contiguous, as in slices of a fused q/k/v projection."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def write_kv_triton(kv_2NSJK, k_TJK, v_TJK, slot_T):
    """`write_kv` on a GPU: one program per row."""
    load_triton()
    k_TJK, v_TJK = _rows_contiguous(k_TJK), _rows_contiguous(v_TJK)
    JK = k_TJK.shape[1] * k_TJK.shape[2]
    write_kernel[len(slot_T),](
        kv_2NSJK, k_TJK, v_TJK, slot_T, kv_2NSJK.stride(0), k_TJK.stride(0), v_TJK.stride(0),
        JK=JK, BLOCK=triton.next_power_of_2(JK), num_warps=1,
    )  # fmt: skip


def decode_triton(q_BHK, kv_2NSJK, pages_BM, length_B):
    """`decode` on a GPU: split over the keys, one program per group and chunk, then one per query head to join them."""
    load_triton()
    B, H, K = q_BHK.shape
    _, _, S, J, _ = kv_2NSJK.shape
    if K not in (16, 32, 64, 128) or S & (S - 1):
        raise ValueError(f"head size {K}, page size {S}: the kernel takes 16, 32, 64 or 128, and a power of two")
    R = H // J
    q_BHK = _rows_contiguous(q_BHK)
    pages_BM = pages_BM if pages_BM.stride(1) == 1 else pages_BM.contiguous()
    # By the table's width, not by the lengths: those are on the GPU, and change while a CUDA graph goes on launching this.
    P = min(_PARTS, triton.cdiv(pages_BM.shape[1] * S, _CHUNK))
    o_BJPRK = torch.empty(B, J, P, R, K, dtype=torch.float32, device=q_BHK.device)
    stats_2BJPR = torch.empty(2, B, J, P, R, dtype=torch.float32, device=q_BHK.device)
    o_BHK = torch.empty(B, H, K, dtype=q_BHK.dtype, device=q_BHK.device)
    # Blocks of 64 keys in bf16, 32 in float32: 16 KiB each of keys and of values at K = 128, three stages fit any GPU.
    shape = dict(J=J, K=K, R=R, BLOCK=128 // kv_2NSJK.element_size(), CHUNK=_CHUNK, PARTS=_PARTS)
    attend_kernel[B, J, P](
        q_BHK, kv_2NSJK, pages_BM, length_B, o_BJPRK, stats_2BJPR, q_BHK.stride(0), kv_2NSJK.stride(0),
        pages_BM.stride(0),
        K**-0.5 * 1.4426950408889634,  # log2(e): the softmax is taken in base 2
        S=S, ROWS=max(16, triton.next_power_of_2(R)), **shape, num_warps=4, num_stages=3,
    )  # fmt: skip
    join_kernel[B, J, R](o_BJPRK, stats_2BJPR, length_B, o_BHK, P, **shape, num_warps=1)
    return o_BHK


def write_kv(kv_2NSJK, k_TJK, v_TJK, slot_T):
    """Write row t of k and v at flat slot page * S + offset = slot_T[t] (int32 or int64), in place.

    Slot -1 skips the row (padding rows of a CUDA graph). Slots must differ from each other.
    """
    (write_kv_triton if kv_2NSJK.is_cuda else write_kv_reference)(kv_2NSJK, k_TJK, v_TJK, slot_T)


def decode(q_BHK, kv_2NSJK, pages_BM, length_B, located=None):
    """o_BHK: one query per sequence over its first length_B keys, found through pages_BM (both int32).

    Heads are grouped: H is a multiple of J, query head h reads key-value head h // (H / J). Softmax in float32, o in
    the dtype of q. A length of 0 gives zeros. Entries of pages_BM beyond a length do not matter (any value below N);
    but a CPU gathers them: keep the table as narrow as the longest length allows. located: what `locate_keys` gave for these.
    """
    if q_BHK.shape[1] % kv_2NSJK.shape[3]:
        raise ValueError(f"{q_BHK.shape[1]} query heads on {kv_2NSJK.shape[3]} key-value heads: give a multiple")
    if kv_2NSJK.is_cuda:
        return decode_triton(q_BHK, kv_2NSJK, pages_BM, length_B)
    return decode_reference(q_BHK, kv_2NSJK, pages_BM, length_B, located)
