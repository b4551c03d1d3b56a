"""Which share of the GPU's arithmetic a training micro-batch reaches: forward, loss and backward.

    python -m bench.bench_mfu      # GPU: Qwen2.5-1.5B's shape, 32k packed tokens

    MFU = (6 N T + 6 V D R + 12 layers H K pairs) / (seconds x FLOP/s)

T packed tokens, R completion tokens (rows of the head), pairs of (query, key) under the causal
mask. That is what a step needs, so recomputing layers earns nothing. A second figure leaves out the
head, as the paper's N does. FLOP/s are the measured rate of a large product, and the nominal peak
where runtime/plan.py knows the device. The code is that of grpo.py: float32 parameters in FSDP2,
cast to bf16 for each use, packed attention, fused log-probs, the loss. There is no peer: the
ceiling is the hardware's.
"""

import random
import tempfile
from dataclasses import dataclass

import torch
import torch.distributed as dist
import tyro

import grpo
from bench.common import DTYPE, GPU, matmul, race, random_weights, record, write_config
from model import Config, Model
from reward import Verdict
from rollout import Completion
from runtime import plan
from runtime.batch import Batch, log_probs, make_batch
from runtime.parallel import connect, make_mesh, shard


@dataclass
class Flags:
    shape: str = "1.5B" if GPU else "small"  # of bench/common.py
    tokens: int = 32768 if GPU else 1024  # of the micro-batch
    prompt: int = 256 if GPU else 32  # tokens of each prompt
    new: int = 768 if GPU else 96  # tokens of each completion
    recompute: bool = True  # run each layer again in the backward pass
    repeats: int = 7 if GPU else 3  # the median of so many timings is reported


def random_batch(flags: Flags, V: int, device: torch.device) -> Batch:
    """A micro-batch of sequences of one length, every second of them with a negative advantage."""
    rng = random.Random(0)
    B = flags.tokens // (flags.prompt + flags.new)
    verdict = Verdict(0.0, "wrong", "", "")
    completions = []
    for i in range(B):
        prompt = rng.choices(range(V), k=flags.prompt)
        ids = rng.choices(range(V), k=flags.new)
        logp = [-10.0] * flags.new
        completions.append(Completion(i, 0, prompt, ids, logp, True, "", verdict))
    b = make_batch(completions, list(range(B)), device)
    adv_B = torch.ones(B, device=device)
    adv_B[1::2] = -1
    b.adv_R = b.per_token(adv_B)
    b.weight_R = torch.full_like(b.sampler_R, 1 / len(b.sampler_R))
    return b


def flops(c: Config, flags: Flags) -> dict[str, int]:
    """Of a forward and a backward, which costs twice as much."""
    B = flags.tokens // (flags.prompt + flags.new)
    length = flags.prompt + flags.new
    pairs = B * length * (length + 1) // 2
    return {
        "with the head": 3 * c.flops(B * length, pairs, B * flags.new),
        "without it": 3 * c.flops(B * length, pairs, 0),
    }


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    with tempfile.TemporaryDirectory() as folder:
        write_config(folder, flags.shape)
        device, _, c = connect(folder)
    multiply, multiply_flops = matmul()
    with torch.device("meta"):
        model = Model(c, flags.recompute)
    model = shard(model, make_mesh(device.type), DTYPE).to_empty(device=device)
    random_weights(model)
    b = random_batch(flags, c.V, device)
    f = grpo.Flags()

    def train() -> None:
        logp_R, _ = log_probs(model, b, f.temperature)
        b.old_R = logp_R.detach()
        loss, _ = grpo.grpo_loss(logp_R, b, f)
        loss.backward()
        model.zero_grad(set_to_none=True)

    contenders = {"step": train, "product": multiply}
    race(contenders, 3)  # the warm-up
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    ms = race(contenders, flags.repeats)
    duration = ms["step"] / 1e3
    rates = {"measured": multiply_flops / (ms["product"] / 1e3)}
    if nominal := plan.peak_flops(device):
        rates["nominal"] = nominal
    T = len(b.token_T)
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if GPU else None
    row = {
        "ms": ms["step"],
        "tokens": T,
        "rows": len(b.row_R),
        "tokens_per_second": T / duration,
        "peak_gb": peak_gb,
        "mfu": {},
    }
    recomputation = "on" if flags.recompute else "off"
    print(
        f"{flags.shape}, {T:,} tokens in {len(b.length_B)} sequences, {len(b.row_R):,} in the "
        f"loss, recomputation {recomputation}, {device.type} {DTYPE}\n"
    )
    memory = f", peak {peak_gb:.1f} GB" if GPU else ""
    print(f"{row['ms']:.1f} ms, {row['tokens_per_second']:,.0f} tokens/s{memory}")
    work = flops(c, flags)
    print(f"{'MFU':32}" + "".join(f"{name:>16}" for name in work))
    for name, rate in rates.items():
        shares = {counted: n / duration / rate for counted, n in work.items()}
        row["mfu"][name] = shares
        label = f"of {rate / 1e12:.3g} TFLOP/s {name}"
        print(f"{label:32}" + "".join(f"{share:16.1%}" for share in shares.values()))
    files = ("*.py", "runtime", "kernels", "bench/bench_mfu.py", "bench/common.py")
    record("mfu", vars(flags), [row], rates, files)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
