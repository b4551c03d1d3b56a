"""decode: RoPE, and grouped attention of one query per sequence over a paged cache."""

from types import SimpleNamespace

import torch

from kernels.paged import decode_reference
from model import rope_tables, rotate


def answer(x_THK=None, position_T=None, theta=None, q_BHK=None, kv_2NSJK=None, page_BM=None,
           length_B=None):  # fmt: skip
    if x_THK is not None:
        x_THK = torch.tensor(x_THK)
        config = SimpleNamespace(K=x_THK.shape[2], rope_theta=theta, rope_scaling=None)
        cos_TK, sin_TK = rope_tables(config, torch.tensor(position_T), torch.float32)
        return rotate(x_THK, cos_TK, sin_TK).tolist()
    table_BM = torch.tensor(page_BM, dtype=torch.int32)
    lengths_B = torch.tensor(length_B, dtype=torch.int32)
    q_BHK = torch.tensor(q_BHK)
    return decode_reference(q_BHK, torch.tensor(kv_2NSJK), table_BM, lengths_B).tolist()


def test_decode(check):
    check(answer)
