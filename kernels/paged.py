"""Keys and values in pages: write new ones, and attend from one query per sequence over its pages.

    o_h = sum_n softmax_n(q_h . k_n / sqrt(K)) v_n,   n < length,   k_n, v_n at page pages[n // S], offset n % S

The cache of one layer is kv_2NSJK: N pages of S slots (S a power of two), keys first, then values. It must hold finite
numbers everywhere (allocate it with zeros): slots beyond a length are multiplied by a probability of 0.
"""

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


def write_kv(kv_2NSJK, k_TJK, v_TJK, slot_T):
    """Write row t of k and v at flat slot page * S + offset = slot_T[t] (int32 or int64), in place.

    Slot -1 skips the row (padding rows of a CUDA graph). Slots must differ from each other.
    """
    write_kv_reference(kv_2NSJK, k_TJK, v_TJK, slot_T)


def decode_reference(q_BHK, kv_2NSJK, pages_BM, length_B):
    """`decode` in torch: the pages are gathered once, query heads of one group are rows of one attention."""
    B, H, K = q_BHK.shape
    _, N, S, J, _ = kv_2NSJK.shape
    page_X = pages_BM.reshape(-1).clamp(min=0)  # entries beyond a length may hold anything below N
    both_2X = torch.cat((page_X, page_X + N))
    kv_2BLJK = kv_2NSJK.view(2 * N, S * J * K).index_select(0, both_2X).view(2, B, -1, J, K)
    k_BJLK, v_BJLK = kv_2BLJK.transpose(2, 3)
    # A length of 0 attends to slot 0 instead, for a softmax without NaN, and is set to zero below.
    mask_BL = torch.arange(k_BJLK.shape[2], device=length_B.device) < length_B.clamp(min=1)[:, None]
    q_BJRK = q_BHK.reshape(B, J, H // J, K)
    o_BJRK = F.scaled_dot_product_attention(q_BJRK, k_BJLK, v_BJLK, attn_mask=mask_BL[:, None, None])
    return o_BJRK.reshape(B, H, K) * (length_B > 0)[:, None, None]


def decode(q_BHK, kv_2NSJK, pages_BM, length_B):
    """o_BHK: one query per sequence over its first length_B keys, found through pages_BM (both int32).

    Heads are grouped: H is a multiple of J, query head h reads key-value head h // (H / J). Softmax in float32, o in
    the dtype of q. A length of 0 gives zeros. Entries of pages_BM beyond a length do not matter (any value below N).
    """
    return decode_reference(q_BHK, kv_2NSJK, pages_BM, length_B)
