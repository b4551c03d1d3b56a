"""Qwen2.5 (and, by switches, Qwen3 and Llama 3) on packed tokens, with Hugging Face parameter names.

A batch is T tokens laid end to end, without padding; `position_T` says where each stands in its own sequence. What a
token may look at is not the model's business: the caller passes `attend(layer, q_THK, k_TJK, v_TJK) -> o_THK`, so that
one forward serves packed training (`packed_attention` below), prefill and paged decode (rollout.py). Nothing about
parallelism stands inside the model: `shard` applies FSDP2 to it from outside, and the sampler's copy gets `tensor_parallel`,
`fuse` and `packed` in the same way, and either may be `compiled`.

    x = embed(token);  for each layer:  x += o(attend(rope(q(norm x)), rope(k(norm x)), v(norm x)));
                                        x += down(silu(gate(norm x)) * up(norm x));   logits = head(norm x)

Letters: T packed tokens, B sequences, R rows asked for, D width, H / J query / key-value heads, K head size,
F feed-forward width, V vocabulary. Norms, rotations' angles and log-probabilities are float32 whatever the compute dtype.
"""

import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.logprob import logprob

FAMILIES = {  # model_type -> (bias on q/k/v, norm on q/k); what else differs stands in config.json
    "qwen2": (True, False),
    "qwen3": (False, True),
    "llama": (False, False),
}


@dataclass(frozen=True)
class Config:
    """The part of a Hugging Face config.json that shapes the computation."""

    family: str
    layers: int
    D: int
    F: int
    H: int
    J: int
    K: int
    V: int
    tied: bool
    eps: float
    rope_theta: float
    rope_scaling: dict | None  # Llama 3's stretched frequencies, None for plain RoPE
    max_position: int

    @staticmethod
    def read(directory: str | Path) -> "Config":
        """Reads DIR/config.json; FileNotFoundError without one, ValueError for what this file does not compute."""
        path = Path(directory) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; --model takes a hub name or a directory in Hugging Face layout")
        c = json.loads(path.read_text())
        family = c.get("model_type")
        if family not in FAMILIES:
            raise ValueError(f"{path}: model_type {family!r} is not supported, only {', '.join(FAMILIES)}; to add it, give "
                             "FAMILIES in model.py its switches and Layer the code that differs, then test it")
        bias, _ = FAMILIES[family]
        rope = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})  # transformers 5 and 4
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        unsupported = [
            (c.get("use_sliding_window", False), "use_sliding_window"),
            (c.get("hidden_act", "silu") != "silu", "hidden_act other than silu"),
            (c.get("attention_bias", bias) != bias, f"attention_bias other than {bias}"),
            (c.get("mlp_bias", False), "mlp_bias"),
            (rope_type not in ("default", "llama3"), f"rope_type {rope_type!r}"),
        ]
        for found, what in unsupported:
            if found:
                raise ValueError(f"{path}: {what} is not supported by model.py")
        return Config(
            family=family, layers=c["num_hidden_layers"], D=c["hidden_size"], F=c["intermediate_size"],
            H=c["num_attention_heads"], J=c.get("num_key_value_heads") or c["num_attention_heads"],
            K=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"], V=c["vocab_size"],
            tied=c.get("tie_word_embeddings", False), eps=c["rms_norm_eps"],
            rope_theta=rope.get("rope_theta", c.get("rope_theta", 10000.0)),
            rope_scaling=rope if rope_type == "llama3" else None,
            max_position=c.get("max_position_embeddings", 1 << 30),
        )

    @property
    def N(self) -> int:
        """Parameters outside the embedding and the head: the N of the paper's C = 6ND."""
        bias, norm = FAMILIES[self.family]
        attention = self.D * self.K * (2 * self.H + 2 * self.J) + bias * self.K * (self.H + 2 * self.J) + norm * 2 * self.K
        return self.layers * (attention + 3 * self.D * self.F + 2 * self.D) + self.D

    @property
    def N_total(self) -> int:
        return self.N + self.V * self.D * (1 if self.tied else 2)

    def flops(self, tokens: int, pairs: int, rows: int) -> int:
        """FLOPs of a forward pass; a multiply-add is two. A backward pass costs twice that, recomputation once more.

        tokens: through the layers; pairs: (query, key) pairs attended to, L(L+1)/2 for a sequence of length L;
        rows: through the head.
        """
        return 2 * self.N * tokens + 4 * self.layers * self.H * self.K * pairs + 2 * self.V * self.D * rows


def rope_frequencies(config: Config, device=None) -> Tensor:
    """Angles per position, float32, shape (K/2,): theta^(-2i/K), stretched as in Llama 3.1 if the config says so."""
    freq = config.rope_theta ** -(torch.arange(0, config.K, 2, dtype=torch.float32, device=device) / config.K)
    if (s := config.rope_scaling) is None:
        return freq
    # Wavelengths beyond the old context are slowed by `factor`, short ones kept, those between interpolated.
    turns = s["original_max_position_embeddings"] * freq / (2 * math.pi)
    keep = ((turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])).clamp(0, 1)
    return freq * (keep + (1 - keep) / s["factor"])


def rotate(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """RoPE; sin_TK with its first half negative, so that halves are exchanged and not also negated."""
    left, right = x_THK.chunk(2, dim=-1)
    return torch.addcmul(x_THK * cos_TK[:, None], torch.cat((right, left), dim=-1), sin_TK[:, None])


class RMSNorm(nn.Module):
    """x / rms(x) times the weight, in one pass with float32 inside. In bf16 it rounds once, where transformers rounds twice."""

    def __init__(self, D: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(D)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def product(x_TD: Tensor, f) -> Tensor:
    """x weight^T + bias, by the weight as it was packed for this moment, if it was (packed)."""
    if getattr(f, "packed", None) is None or torch.is_grad_enabled():
        return F.linear(x_TD, f.weight, getattr(f, "bias", None))
    return torch.ops.mkldnn._linear_pointwise(x_TD, f.packed, getattr(f, "bias", None), "none", [], "")


class Linear(nn.Linear):
    packed = None

    def forward(self, x_TD: Tensor) -> Tensor:
        return product(x_TD, self)


def linears(x_TD: Tensor, maps: list[Linear], fused) -> Sequence[Tensor]:
    """Each of the maps of x_TD; in one product where their weights lie side by side (fuse) and no gradient is wanted."""
    if fused is None or torch.is_grad_enabled():  # a gradient of the whole would not reach the parameters, its parts
        return [f(x_TD) for f in maps]
    return product(x_TD, fused).split([len(f.weight) for f in maps], dim=-1)


class Attention(nn.Module):
    fused = None

    def __init__(self, c: Config):
        super().__init__()
        bias, norm = FAMILIES[c.family]
        self.K = c.K
        self.q_proj = Linear(c.D, c.H * c.K, bias=bias)
        self.k_proj = Linear(c.D, c.J * c.K, bias=bias)
        self.v_proj = Linear(c.D, c.J * c.K, bias=bias)
        self.o_proj = Linear(c.H * c.K, c.D, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(c.K, c.eps), RMSNorm(c.K, c.eps)) if norm else (None, None)

    def forward(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q_THK, k_TJK, v_TJK; what follows is the caller's attend, and o_proj of that."""
        qkv = linears(x_TD, [self.q_proj, self.k_proj, self.v_proj], self.fused)
        q_THK, k_TJK, v_TJK = (x.unflatten(-1, (-1, self.K)) for x in qkv)
        if self.q_norm is not None:
            q_THK, k_TJK = self.q_norm(q_THK), self.k_norm(k_TJK)
        return rotate(q_THK, cos_TK, sin_TK), rotate(k_TJK, cos_TK, sin_TK), v_TJK


class MLP(nn.Module):
    fused = None

    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = Linear(c.D, c.F, bias=False)
        self.up_proj = Linear(c.D, c.F, bias=False)
        self.down_proj = Linear(c.F, c.D, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        gate_TF, up_TF = linears(x_TD, [self.gate_proj, self.up_proj], self.fused)
        return self.down_proj(F.silu(gate_TF) * up_TF)


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(c.D, c.eps), RMSNorm(c.D, c.eps)

    def before(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn(self.input_layernorm(x_TD), cos_TK, sin_TK)

    def after(self, x_TD: Tensor, o_THK: Tensor) -> Tensor:
        x_TD = x_TD + self.self_attn.o_proj(o_THK.flatten(-2))
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))

    def forward(self, x_TD: Tensor, cos_TK: Tensor, sin_TK: Tensor, attend, layer: int) -> Tensor:
        return self.after(x_TD, attend(layer, *self.before(x_TD, cos_TK, sin_TK)))


class Model(nn.Module):
    """recompute: keep only each layer's input for the backward pass and run the layer again there."""

    group = None  # the ranks that hold the model together, after tensor_parallel

    def __init__(self, config: Config, recompute: bool = False):
        super().__init__()
        self.config, self.recompute = config, recompute
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(config.V, config.D),
            "layers": nn.ModuleList(Layer(config) for _ in range(config.layers)),
            "norm": RMSNorm(config.D, config.eps),
        })
        if not config.tied:
            self.lm_head = Linear(config.D, config.V, bias=False)

    def forward(self, token_T: Tensor, position_T: Tensor, attend, row_R: Tensor | None = None,
                target_R: Tensor | None = None, temperature: float = 1.0):
        """What follows the tokens at row_R (indices into T; None: all of them).

        token_T, position_T, row_R, target_R: int64. Without target_R: logits_RV in the compute dtype. With it: (logp_R,
        entropy_R), float32, of softmax(logits / temperature), computed inside this forward, where FSDP has gathered the
        head's weight, and without a (T, V) tensor (kernels/logprob.py).
        """
        x_TD = self.model["embed_tokens"](token_T)
        angle_Tk = position_T[:, None] * rope_frequencies(self.config, token_T.device)  # k: half of K
        cos_TK = angle_Tk.cos().repeat(1, 2).to(x_TD.dtype)
        sin_TK = torch.cat((-angle_Tk.sin(), angle_Tk.sin()), dim=-1).to(x_TD.dtype)
        for i, layer in enumerate(self.model["layers"]):
            if self.recompute and torch.is_grad_enabled():
                x_TD = checkpoint(layer, x_TD, cos_TK, sin_TK, attend, i, use_reentrant=False)
            else:
                x_TD = layer(x_TD, cos_TK, sin_TK, attend, i)
        hidden_RD = self.model["norm"](x_TD if row_R is None else x_TD[row_R])
        if target_R is None:
            return product(hidden_RD, self.head)
        return logprob(hidden_RD, self.head.weight, target_R, temperature)

    @property
    def head(self) -> nn.Module:
        """What holds the weight_VD of the logits."""
        return self.model["embed_tokens"] if self.config.tied else self.lm_head


def packed_attention(length_B: list[int], device: torch.device | str):
    """attend() for sequences of the given lengths packed end to end, each causal and blind to the others.

    On CUDA in half precision torch's variable-length flash attention reads the packed rows as they are. Elsewhere the
    rows are spread into a (B, longest) batch, where causality alone hides the padding behind each sequence.
    """
    length_cpu = torch.tensor(length_B)
    longest = max(length_B)
    even = sum(length_B) == len(length_B) * longest  # nothing to spread
    cu_B = F.pad(length_cpu.cumsum(0), (1, 0)).to(device, torch.int32)
    spread_BL = torch.arange(longest) < length_cpu[:, None]
    slot_T = spread_BL.flatten().nonzero().squeeze(1).to(device)

    def attend(layer: int, q_THK: Tensor, k_TJK: Tensor, v_TJK: Tensor) -> Tensor:
        if q_THK.is_cuda and q_THK.dtype in (torch.bfloat16, torch.float16):
            return varlen_attention(q_THK, k_TJK, v_TJK, cu_B, longest)

        def spread(x):  # (T, heads, K) -> (B, heads, longest, K)
            if even:
                return x.view(len(length_B), longest, *x.shape[1:]).transpose(1, 2)
            padded = x.new_zeros(len(length_B) * longest, *x.shape[1:]).index_copy(0, slot_T, x)
            return padded.view(len(length_B), longest, *x.shape[1:]).transpose(1, 2)

        o_BHLK = F.scaled_dot_product_attention(spread(q_THK), spread(k_TJK), spread(v_TJK), is_causal=True,
                                                enable_gqa=q_THK.shape[1] != k_TJK.shape[1])
        o_THK = o_BHLK.transpose(1, 2).reshape(-1, *q_THK.shape[1:])
        return o_THK if even else o_THK[slot_T]

    return attend


def varlen_attention(q_THK: Tensor, k_TJK: Tensor, v_TJK: Tensor, cu_B: Tensor, longest: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # absent from builds without CUDA on some platforms

    grouped = {}
    if q_THK.shape[1] != k_TJK.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            grouped = {"enable_gqa": True}
        else:  # torch 2.11: every query head needs a key head of its own
            k_TJK, v_TJK = (x.repeat_interleave(q_THK.shape[1] // x.shape[1], dim=1) for x in (k_TJK, v_TJK))
    return varlen_attn(q_THK, k_TJK, v_TJK, cu_B, cu_B, longest, longest, window_size=(-1, 0), **grouped)
