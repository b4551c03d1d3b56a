"""plan.py's estimate of a GPU's memory against the measured peak, on random weights of a published shape: no download.

    python -m bench.bench_memory                                      # the shape of Qwen2.5-0.5B
    python -m bench.bench_memory --shape 1.5B --recompute --kl 0.001 --micro-tokens 32768

Three steps of what grpo.py does: sample, one update of train_step with micro-batches as full as they get, copy the weights.
The completions that are trained on are made up and as long as they can be, since random weights end theirs at once. The
peak is the allocator's, of tensors alone; what the process takes beyond it (CUDA, the allocator's gaps) is printed beside
the constant that plan.py assumes. One line is appended to results/memory.jsonl.
"""

import argparse
import contextlib
import dataclasses
import random
import tempfile

import torch
import torch.distributed as dist

from bench.common import SHAPES, random_weights, record, write_config
from grpo import Flags, train_step
from model import Model
from reward import Verdict
from rollout import Completion, Sampler
from runtime import plan
from runtime.parallel import connect, copy_weights, make_mesh, shard


def longest(f: Flags, V: int, seed: int) -> list[Completion]:
    """Completions of the greatest length; half of them are right, so that every group has a gradient."""
    rng, done = random.Random(seed), []
    for i in range(f.prompts * f.group):
        prompt, ids = ([rng.randrange(V) for _ in range(n)] for n in (f.max_prompt, f.max_new))
        done.append(Completion(i // f.group, i % f.group, prompt, ids, [-12.0] * len(ids), True, "",
                               Verdict(float(i % 2), "right", "", "")))
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description="The plan's estimate of memory against the measured peak.")
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument("--layers", type=int, default=0, help="fewer than the shape has, to fit a small GPU")
    parser.add_argument("--micro-tokens", type=int, default=16384)
    parser.add_argument("--kl", type=float, default=0.0)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--kv-gb", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=3)
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("bench/bench_memory.py measures the allocator of a CUDA device, and there is none here")
    f = Flags(micro_tokens=flags.micro_tokens, max_prompt=256, max_new=768, kl=flags.kl, recompute=flags.recompute,
              offload=flags.offload, kv_gb=flags.kv_gb, group=4, lr=1e-6)
    f.prompts = 2 * f.micro_tokens // (f.max_prompt + f.max_new) // f.group  # two micro-batches, filled to the brim
    with tempfile.TemporaryDirectory() as directory:
        write_config(directory, flags.shape, flags.layers)
        device, _, config = connect(directory)
    dtype, mesh, home = torch.bfloat16, make_mesh("cuda"), "cpu" if f.offload else device
    with torch.device("meta"):
        model, frozen, drawn = Model(config, f.recompute), Model(config), Model(config)
    model = random_weights(shard(model, mesh, dtype, f.offload).to_empty(device=home))
    ref = random_weights(shard(frozen.to(dtype), mesh, dtype, f.offload).to_empty(device=home)) if f.kl else None
    sampler = Sampler(drawn.to(dtype).to_empty(device=device), [0], f.slots, f.max_prompt + f.max_new, f.kv_gb)
    copy_weights(model, sampler.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=f.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1.0)

    peaks = {}

    @contextlib.contextmanager
    def phase(name):
        torch.cuda.reset_peak_memory_stats()
        yield
        torch.cuda.synchronize()
        peaks[name] = max(peaks.get(name, 0.0), torch.cuda.max_memory_allocated() / 1e9)

    prompts = [c.prompt for c in longest(f, config.V, 0)][:: f.group]
    for step in range(flags.steps):
        with phase("generation"):
            sampler.generate(prompts, f.group, 64, 1.0, 0, step)
        stats = train_step(model, ref, optimizer, scheduler, longest(f, config.V, step), f, device, phase)
        assert stats["micro_batches"] == 2 and not stats["skipped_updates"], stats
        with phase("copy of weights"):
            copy_weights(model, sampler.model)
    free, size = torch.cuda.mem_get_info()
    beyond = (size - free - torch.cuda.memory_allocated()) / 1e9
    stays, comes = plan.memory(f, config, dist.get_world_size())
    estimate, peak = plan.total(f, config, 1), max(peaks.values())
    for part, gb in (stays | comes).items():
        print(f"  {part:20}{gb:8.2f} GB planned" + (f", at its peak {sum(stays.values()) + gb:.2f}" if part in comes else ""))
    for name, gb in peaks.items():
        print(f"  {name:20}{gb:8.2f} GB measured peak")
    print(f"planned {estimate:.2f} GB, measured {peak:.2f} GB: {estimate / peak - 1:+.1%} (the bar: within 15%); beyond the "
          f"tensors {beyond:.2f} GB at the end, assumed {plan.CONTEXT}")
    row = {"planned_gb": estimate, "measured_gb": peak, "peaks": peaks, "stays": stays, "comes": comes, "beyond_gb": beyond}
    flags.device = "cuda"
    record("memory", flags, [row | {"run": dataclasses.asdict(f)}], {}, ("*.py", "kernels", "bench/bench_memory.py"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
