"""Qwen2.5 (by switches also Qwen3 and Llama 3) on packed tokens, with Hugging Face parameter names.

A batch is T tokens of several sequences laid end to end, without padding. position_T holds the
position of each token in its own sequence. The caller passes attention as a function,

    attend(layer, q_THK, k_TJK, v_TJK) -> o_THK

so that one forward serves packed training (packed_attention below), prefill and paged decode
(rollout.py). runtime/parallel.py makes it run on several devices, from outside.

    x = embed(token)
    for each layer:
        x = x + o(attend(rope(q(norm(x))), rope(k(norm(x))), v(norm(x))))
        x = x + down(silu(gate(norm(x))) * up(norm(x)))
    logits = head(norm(x))

Letters: T packed tokens, B sequences, L tokens of the longest sequence, R rows given to the head,
D width, H query heads, J key-value heads, K head size, F features, V vocabulary.
Norms, angles and log-probabilities are computed in float32 whatever the dtype of the weights.
"""

import inspect
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.logprob import logprob

# model_type -> (q, k and v have a bias, q and k are normalised). config.json says the rest.
FAMILIES = {
    "qwen2": (True, False),
    "qwen3": (False, True),
    "llama": (False, False),
}


def read_json(path: Path) -> dict:
    """The JSON object in a file; ValueError that names the file if there is none in it."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:  # of json and of UTF-8
        raise ValueError(f"{path}: not valid JSON ({error}); download or write it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: a JSON object is expected, found a {type(found).__name__}")
    return found


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
    tied: bool  # the embedding is also the head
    eps: float
    rope_theta: float
    rope_scaling: dict | None  # Llama 3's stretched frequencies, None for plain RoPE
    max_position: int | None  # the longest sequence in pretraining, for a warning alone

    @staticmethod
    def read(directory: str | Path) -> "Config":
        """Reads DIR/config.json.

        FileNotFoundError without one; ValueError for a missing key or a model of another kind.
        """
        path = Path(directory) / "config.json"
        if not path.is_file():
            if any(Path(directory).glob("*.json")):
                raise FileNotFoundError(f"{path}: not found; of a run give RUN/final; a checkpoint "
                                        "becomes a model by python -m runtime.checkpoint RUN OUT")
            raise FileNotFoundError(f"{path}: not found; --model takes a hub name or a directory "
                                    "in Hugging Face layout")
        c = read_json(path)
        family = c.get("model_type")
        if family not in FAMILIES:
            known = ", ".join(FAMILIES)
            raise ValueError(f"{path}: model_type {family!r} is not supported, only {known}; to "
                             "add it, give FAMILIES in model.py its switches and Layer the code "
                             "that differs, then test it")
        bias, _ = FAMILIES[family]
        rope = c.get("rope_parameters") or c.get("rope_scaling") or {}  # transformers 5 and 4
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        unsupported = {
            "use_sliding_window": c.get("use_sliding_window", False),
            "hidden_act other than silu": c.get("hidden_act", "silu") != "silu",
            f"attention_bias other than {bias}": c.get("attention_bias", bias) != bias,
            "mlp_bias": c.get("mlp_bias", False),
            f"rope_type {rope_type!r}": rope_type not in ("default", "llama3"),
        }
        for what, found in unsupported.items():
            if found:
                raise ValueError(f"{path}: {what} is not supported by model.py")
        try:
            return Config(
                family=family,
                layers=c["num_hidden_layers"],
                D=c["hidden_size"],
                F=c["intermediate_size"],
                H=c["num_attention_heads"],
                J=c.get("num_key_value_heads") or c["num_attention_heads"],
                K=c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
                V=c["vocab_size"],
                tied=c.get("tie_word_embeddings", False),
                eps=c["rms_norm_eps"],
                rope_theta=rope.get("rope_theta", c.get("rope_theta", 10000.0)),
                rope_scaling=rope if rope_type == "llama3" else None,
                max_position=c.get("max_position_embeddings"),
            )
        except KeyError as error:
            raise ValueError(f"{path}: the key {error} is missing; download the file again, or add "
                             "the value from the model's card") from error

    @property
    def N(self) -> int:
        """Parameters outside the embedding and the head: the N of C = 6 N x tokens."""
        bias, norm = FAMILIES[self.family]
        qkv = self.H + 2 * self.J  # heads
        attention = (qkv + self.H) * self.K * self.D
        attention += qkv * self.K * bias
        attention += 2 * self.K * norm
        mlp = 3 * self.D * self.F
        norms = 2 * self.D
        return self.layers * (attention + mlp + norms) + self.D

    @property
    def N_total(self) -> int:
        matrices = 1 if self.tied else 2
        return self.N + matrices * self.V * self.D

    def flops(self, tokens: int, pairs: int, rows: int) -> int:
        """FLOPs of a forward pass; a multiply-add counts as two.

        tokens: through the layers. rows: through the head. pairs: of a query and a key, L(L+1)/2
        for a sequence of L tokens. A backward pass costs twice as much, and
        recomputation adds one forward pass.
        """
        layers = 2 * self.N * tokens
        attention = 4 * self.layers * self.H * self.K * pairs
        head = 2 * self.V * self.D * rows
        return layers + attention + head


def rope_frequencies(config: Config, device: torch.device) -> Tensor:
    """Angles per position, theta^(-2i/K) for i < K/2, float32; stretched where Llama 3 asks it."""
    index = torch.arange(0, config.K, 2, dtype=torch.float32, device=device)
    frequency = config.rope_theta ** -(index / config.K)
    s = config.rope_scaling
    if s is None:
        return frequency
    # Long wavelengths are slowed by `factor`, short ones are kept, those between are interpolated.
    turns = s["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = s["low_freq_factor"], s["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / s["factor"])


def rope_tables(config: Config, position_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos_TK and sin_TK for `rotate`, with the first half of sin_TK negated."""
    frequency = rope_frequencies(config, position_T.device)
    angle_TK = torch.outer(position_T, frequency).repeat(1, 2)
    cos_TK = angle_TK.cos()
    sin_TK = angle_TK.sin()
    sin_TK[:, : config.K // 2] *= -1
    return cos_TK.to(dtype), sin_TK.to(dtype)


def rotate(x_THK, cos_TK, sin_TK) -> Tensor:
    """RoPE: turns the pairs (x_i, x_{i + K/2}) by their angles a (arXiv 2104.09864):

    (x_i cos a - x_{i + K/2} sin a,  x_{i + K/2} cos a + x_i sin a),  i < K/2

    cos_TK and sin_TK are those of `rope_tables`, where the first half of sin_TK is negated.
    """
    # <solution id="decode" points="3">
    left, right = x_THK.chunk(2, dim=-1)
    swapped_THK = torch.cat((right, left), dim=-1)
    return torch.addcmul(x_THK * cos_TK[:, None], swapped_THK, sin_TK[:, None])
    # </solution>


class RMSNorm(nn.Module):
    """x / rms(x) times the weight. In bf16 it rounds once, where transformers rounds twice."""

    def __init__(self, D: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(D))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def linear(x_TD, f) -> Tensor:
    """x W^T + b by f.weight and f.bias; without gradients by f.reordered, if the sampler set that.

    f is a Linear, an Embedding that is also the head, or the fused weights of several Linears.
    """
    reordered = getattr(f, "reordered", None)
    bias = getattr(f, "bias", None)
    if reordered is None or torch.is_grad_enabled():
        return F.linear(x_TD, f.weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x_TD, reordered, bias, "none", [], "")


class Linear(nn.Linear):
    reordered = None  # the weight in the layout of oneDNN, while the sampler runs on a CPU

    def forward(self, x_TD) -> Tensor:
        return linear(x_TD, self)


def linears(x_TD, maps: list[Linear], fused) -> Sequence[Tensor]:
    """Each map of x_TD; without gradients as one product, if the sampler fused the weights."""
    if fused is None or torch.is_grad_enabled():
        return [f(x_TD) for f in maps]
    widths = [len(f.weight) for f in maps]
    return linear(x_TD, fused).split(widths, dim=-1)


class Attention(nn.Module):
    fused = None  # q, k and v as one weight, in the sampler's copy of the model

    def __init__(self, c: Config):
        super().__init__()
        bias, norm = FAMILIES[c.family]
        self.K = c.K
        q_size = c.H * c.K
        kv_size = c.J * c.K
        self.q_proj = Linear(c.D, q_size, bias=bias)
        self.k_proj = Linear(c.D, kv_size, bias=bias)
        self.v_proj = Linear(c.D, kv_size, bias=bias)
        self.o_proj = Linear(q_size, c.D, bias=False)
        self.q_norm = RMSNorm(c.K, c.eps) if norm else nn.Identity()
        self.k_norm = RMSNorm(c.K, c.eps) if norm else nn.Identity()

    def forward(self, x_TD, cos_TK, sin_TK) -> tuple[Tensor, Tensor, Tensor]:
        """q_THK, k_TJK, v_TJK; Layer does the rest, since the caller passes the attention."""
        maps = [self.q_proj, self.k_proj, self.v_proj]
        q, k, v = linears(x_TD, maps, self.fused)
        q_THK = q.unflatten(-1, (-1, self.K))
        k_TJK = k.unflatten(-1, (-1, self.K))
        v_TJK = v.unflatten(-1, (-1, self.K))
        q_THK = rotate(self.q_norm(q_THK), cos_TK, sin_TK)
        k_TJK = rotate(self.k_norm(k_TJK), cos_TK, sin_TK)
        return q_THK, k_TJK, v_TJK


class MLP(nn.Module):
    fused = None  # gate and up as one weight, in the sampler's copy of the model

    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = Linear(c.D, c.F, bias=False)
        self.up_proj = Linear(c.D, c.F, bias=False)
        self.down_proj = Linear(c.F, c.D, bias=False)

    def forward(self, x_TD) -> Tensor:
        gate_TF, up_TF = linears(x_TD, [self.gate_proj, self.up_proj], self.fused)
        return self.down_proj(F.silu(gate_TF) * up_TF)


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.D, c.eps)
        self.post_attention_layernorm = RMSNorm(c.D, c.eps)

    def forward(self, x_TD, cos_TK, sin_TK, attend: Callable, layer: int) -> Tensor:
        q_THK, k_TJK, v_TJK = self.self_attn(self.input_layernorm(x_TD), cos_TK, sin_TK)
        o_THK = attend(layer, q_THK, k_TJK, v_TJK)
        x_TD = x_TD + self.self_attn.o_proj(o_THK.flatten(-2))
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))


class Model(nn.Module):
    """recompute: keep only the inputs of the layers, and run each again in the backward pass."""

    group = None  # the ranks that each hold a part of the model, after tensor_parallel

    def __init__(self, config: Config, recompute: bool = False):
        super().__init__()
        self.config = config
        self.recompute = recompute
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(config.V, config.D),
            "layers": nn.ModuleList(Layer(config) for _ in range(config.layers)),
            "norm": RMSNorm(config.D, config.eps),
        })
        if not config.tied:
            self.lm_head = Linear(config.D, config.V, bias=False)

    @property
    def head(self) -> nn.Module:
        """The module that holds weight_VD of the logits."""
        return self.model["embed_tokens"] if self.config.tied else self.lm_head

    def forward(
        self,
        token_T: Tensor,
        position_T: Tensor,
        attend: Callable,
        row_R: Tensor | None = None,
        target_R: Tensor | None = None,
        temperature: float = 1.0,
    ):
        """The distributions of the tokens that follow the rows row_R of the batch (None: all T).

        token_T, position_T, row_R, target_R: int64.
        Without target_R: logits_RV in the dtype of the weights.
        With target_R: (logp_R, entropy_R), float32, of softmax(logits / temperature). They are
        computed here, where FSDP has gathered the head, and without logits_RV (kernels/logprob.py).
        """
        x_TD = self.model["embed_tokens"](token_T)
        cos_TK, sin_TK = rope_tables(self.config, position_T, x_TD.dtype)
        for i, layer in enumerate(self.model["layers"]):
            inputs = (x_TD, cos_TK, sin_TK, attend, i)
            if self.recompute and torch.is_grad_enabled():
                x_TD = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x_TD = layer(*inputs)
        x_RD = x_TD if row_R is None else x_TD[row_R]
        hidden_RD = self.model["norm"](x_RD)
        if target_R is None:
            return linear(hidden_RD, self.head)
        return logprob(hidden_RD, self.head.weight, target_R, temperature)


def packed_attention(length_B: list[int], device: torch.device | str) -> Callable:
    """attend() for B sequences packed end to end, each causal and blind to the others.

    On CUDA in half precision the packed rows are attended to as they are. Elsewhere they are spread
    into a batch (B, L), where causality alone hides the padding behind each sequence.
    """
    B = len(length_B)
    L = max(length_B)
    lengths = torch.tensor(length_B)
    # Where the sequences start, then T: E is B + 1.
    start_E = F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    inside_BL = torch.arange(L) < lengths[:, None]
    place_T = inside_BL.flatten().nonzero()[:, 0].to(device)  # of each token in the flat batch

    def spread(x: Tensor) -> Tensor:
        """(T, heads, K) -> (B, heads, L, K)"""
        padded = x.new_zeros(B * L, *x.shape[1:])
        padded = padded.index_copy(0, place_T, x)
        return padded.unflatten(0, (B, L)).transpose(1, 2)

    def attend(layer: int, q_THK, k_TJK, v_TJK) -> Tensor:
        if q_THK.is_cuda and q_THK.dtype in (torch.bfloat16, torch.float16):
            return varlen_attention(q_THK, k_TJK, v_TJK, start_E, L)
        q_BHLK, k_BJLK, v_BJLK = (spread(x) for x in (q_THK, k_TJK, v_TJK))
        grouped = q_THK.shape[1] != k_TJK.shape[1]
        o_BHLK = F.scaled_dot_product_attention(
            q_BHLK, k_BJLK, v_BJLK, is_causal=True, enable_gqa=grouped
        )
        return o_BHLK.transpose(1, 2).flatten(0, 1)[place_T]

    return attend


def varlen_attention(q_THK, k_TJK, v_TJK, start_E, L: int) -> Tensor:
    """Flash attention on packed rows. start_E, int32: where sequences start, then T."""
    from torch.nn.attention.varlen import varlen_attn  # some builds without CUDA lack it

    options = {"window_size": (-1, 0)}  # causal
    groups = q_THK.shape[1] // k_TJK.shape[1]
    if groups > 1 and "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    elif groups > 1:  # torch 2.11: every query head needs a key head of its own
        k_TJK = k_TJK.repeat_interleave(groups, dim=1)
        v_TJK = v_TJK.repeat_interleave(groups, dim=1)
    return varlen_attn(q_THK, k_TJK, v_TJK, start_E, start_E, L, L, **options)
