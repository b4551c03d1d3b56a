"""Which share of the GPU's arithmetic a training micro-batch gets: forward, loss and backward, layers recomputed.

    python -m bench.bench_mfu                          # Qwen2.5-1.5B's shape, 32k packed tokens on a GPU

    MFU = (6 N T + 6 V D R + 12 layers H K pairs) / (seconds x FLOP/s)

T packed tokens, R completion tokens (rows of the head), pairs of (query, key) under the causal mask: what a step needs, so
recomputing earns nothing. The second figure leaves the head out, as a count of 6 N T and attention does with the paper's N.
FLOP/s are the measured rate of a large product, and the nominal peak where plan.py knows the device. It is the path of grpo.py:
float32 parameters in FSDP2, which casts them to bf16 for each use, packed attention, the fused log-probs, its own loss. A peer has no place here: the ceiling is the hardware's.
"""

import argparse
import random
import tempfile

import torch
import torch.distributed as dist

from bench.common import SHAPES, matmul, race, random_weights, record, write_config
from grpo import Flags, grpo_loss
from model import Model
from reward import Verdict
from rollout import Completion
from runtime import plan
from runtime.batch import log_probs, make_batch
from runtime.parallel import connect, make_mesh, shard


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.5B" if gpu else "small")
    parser.add_argument("--tokens", type=int, default=32768 if gpu else 1024, help="of the micro-batch")
    parser.add_argument("--prompt", type=int, default=256 if gpu else 32, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=768 if gpu else 96, help="tokens of each completion")
    parser.add_argument("--recompute", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--repeats", type=int, default=7 if gpu else 3)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_config(folder, flags.shape)
        device, _, c = connect(folder)
    flags.device = device.type
    dtype = torch.bfloat16 if gpu else torch.float32
    product, product_flops = matmul(device, dtype)
    with torch.device("meta"):
        model = Model(c, flags.recompute)
    model = random_weights(shard(model, make_mesh(device.type), dtype).to_empty(device=device))
    rng, B = random.Random(0), flags.tokens // (flags.prompt + flags.new)
    done = [Completion(i, 0, [rng.randrange(c.V) for _ in range(flags.prompt)], [rng.randrange(c.V) for _ in range(flags.new)],
                       [-10.0] * flags.new, True, "", Verdict(0.0, "wrong", "", "")) for i in range(B)]
    b, f = make_batch(done, list(range(B)), device), Flags()
    sign_B = torch.tensor([1.0, -1.0], device=device).repeat(B)[:B]
    b.adv_R, b.weight_R = b.spread(sign_B), torch.full_like(b.sampler_R, 1 / b.sampler_R.numel())

    def train() -> None:
        logp_R, entropy_R = log_probs(model, b, f.temperature)
        b.old_R = logp_R.detach()
        grpo_loss(logp_R, entropy_R, b, f)[0].backward()
        model.zero_grad(set_to_none=True)

    length = flags.prompt + flags.new
    T, R, pairs = B * length, B * flags.new, B * length * (length + 1) // 2
    work = {"with the head": 3 * c.flops(T, pairs, R), "without it": 3 * c.flops(T, pairs, 0)}
    nominal = plan.peak_flops(device)
    print(f"{flags.shape}, {T:,} tokens in {B} sequences, {R:,} in the loss, recomputation "
          f"{'on' if flags.recompute else 'off'}, {device.type} {dtype}")
    for _ in range(3):
        product(), train()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    ms = race({"step": train, "product": product}, device, flags.repeats)
    seconds, rate = ms["step"] / 1e3, 1e3 * product_flops / ms["product"]
    peak_gb = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
    row = {"ms": ms["step"], "tokens": T, "rows": R, "tokens_per_second": T / seconds, "peak_gb": peak_gb,
            "mfu": {name: flops / seconds / rate for name, flops in work.items()},
            "mfu_nominal": {name: flops / seconds / nominal for name, flops in work.items()} if nominal else None}
    print(f"\n{row['ms']:.1f} ms, {row['tokens_per_second']:,.0f} tokens/s"
          + (f", peak {peak_gb:.1f} GB" if gpu else ""))
    print(f"{'MFU':28}" + "".join(f"{name:>16}" for name in work))
    print(f"{f'of {rate / 1e12:.3g} TFLOP/s measured':28}" + "".join(f"{share:16.1%}" for share in row["mfu"].values()))
    if nominal:
        shares = "".join(f"{share:16.1%}" for share in row["mfu_nominal"].values())
        print(f"{f'of {nominal / 1e12:.3g} TFLOP/s nominal':28}{shares}", flush=True)
    record("mfu", flags, [row], {"matmul_flops_per_s": rate, "nominal_flops_per_s": nominal},
           ("*.py", "kernels", "bench/bench_mfu.py", "bench/common.py"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
