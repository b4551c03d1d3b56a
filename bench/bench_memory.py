"""runtime/plan.py's memory of a GPU against the measured peak, on random weights: no download.

    python -m bench.bench_memory                                  # the shape of Qwen2.5-0.5B
    python -m bench.bench_memory --shape 1.5B --recompute --kl 0.001 --micro-tokens 32768

Three steps of what grpo.py does: sample, one update by train_step with full micro-batches, copy the
weights. The completions that are trained on are made up and of the greatest length, since random
weights end theirs at once. The peak is the allocator's, of tensors alone. What the process takes
beyond it (CUDA, the allocator's gaps) is printed beside the constant that the plan assumes.
"""

import random
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
import tyro

import grpo
from bench.common import DTYPE, GPU, random_weights, record, write_config
from model import Config, Model
from reward import Verdict
from rollout import Completion, Sampler
from runtime import plan
from runtime.ledger import Clock, Progress, Signals
from runtime.parallel import connect, copy_weights, make_mesh, shard

NEW = 64  # tokens of the completions that are sampled


@dataclass
class Flags:
    shape: str = "0.5B"  # of bench/common.py
    layers: int = 0  # fewer than the shape has, to fit a small GPU
    micro_tokens: int = 16384
    kl: float = 0.0
    recompute: bool = False
    offload: bool = False
    kv_gb: float = 4.0
    steps: int = 3


class PeakClock(Clock):
    """Measures the peak of each phase: `peaks`, 1e9 bytes."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.peaks = {}

    @contextmanager
    def phase(self, name: str):
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        with super().phase(name):
            yield
        peak = torch.cuda.max_memory_allocated() / 1e9 if GPU else 0.0
        self.peaks[name] = max(peak, self.peaks.get(name, 0.0))


def grpo_flags(flags: Flags, max_prompt: int = 256, max_new: int = 768) -> grpo.Flags:
    """Two full micro-batches of groups of four."""
    sequences = 2 * flags.micro_tokens // (max_prompt + max_new)
    return grpo.Flags(
        micro_tokens=flags.micro_tokens,
        prompts=sequences // 4,
        group=4,
        max_prompt=max_prompt,
        max_new=max_new,
        kl=flags.kl,
        recompute=flags.recompute,
        offload=flags.offload,
        kv_gb=flags.kv_gb,
        lr=1e-6,
    )


def longest_completions(f: grpo.Flags, V: int, seed: int) -> list[Completion]:
    """Half of them are right, so that every group has a gradient."""
    rng = random.Random(seed)
    completions = []
    for p in range(f.prompts):
        prompt = rng.choices(range(V), k=f.max_prompt)
        for g in range(f.group):
            ids = rng.choices(range(V), k=f.max_new)
            logp = [-12.0] * f.max_new
            verdict = Verdict(float(g % 2), "right" if g % 2 else "wrong", "", "")
            completions.append(Completion(p, g, prompt, ids, logp, True, "", verdict))
    return completions


def measure(f: grpo.Flags, config: Config, device: torch.device, steps: int) -> dict:
    """The peak of each phase, 1e9 bytes, over some steps of a run."""
    clock = PeakClock(device, Signals(), f.timeout, Progress())
    mesh = make_mesh(device.type)
    home = "cpu" if f.offload else device
    with torch.device("meta"):
        policy = Model(config, f.recompute)
        reference = Model(config).to(DTYPE)
        sampled = Model(config).to(DTYPE)
    policy = shard(policy, mesh, DTYPE, f.offload).to_empty(device=home)
    random_weights(policy)
    if f.kl:
        reference = shard(reference, mesh, DTYPE, f.offload).to_empty(device=home)
        random_weights(reference)
    else:
        reference = None
    sampled = sampled.to_empty(device=device)
    sampler = Sampler(sampled, [0], f.slots, f.max_prompt + f.max_new, f.kv_gb)
    copy_weights(policy, sampler.model)
    optimizer = torch.optim.AdamW(policy.parameters(), f.lr, fused=True)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    for step in range(steps):
        completions = longest_completions(f, config.V, step)
        prompts = [c.prompt for c in completions[:: f.group]]
        with clock.phase("generation"):
            sampler.generate(prompts, f.group, min(NEW, f.max_new), 1.0, 0, step)
        stats = grpo.train_step(policy, reference, optimizer, scheduler, completions, f, clock)
        if stats["micro_batches"] != 2 or stats["skipped_updates"]:
            raise SystemExit(f"not the step that the plan counts: {stats}")
        with clock.phase("weights"):
            copy_weights(policy, sampler.model)
    sampler.close()
    return clock.peaks


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if not GPU:
        raise SystemExit("bench_memory measures the allocator of a CUDA device: there is none here")
    f = grpo_flags(flags)
    with tempfile.TemporaryDirectory() as folder:
        write_config(folder, flags.shape, flags.layers)
        device, _, config = connect(folder)
        peaks = measure(f, config, device, flags.steps)
    free, installed = torch.cuda.mem_get_info()
    beyond = (installed - free - torch.cuda.memory_allocated()) / 1e9
    job = grpo.plan_job(f)
    lasting = plan.lasting_memory(job, config, 1)
    passing = plan.passing_memory(job, config)
    planned = plan.needed_gb(job, config, 1)
    peak = max(peaks.values())
    for part, size in lasting.items():
        print(f"  {part:20}{size / 1e9:8.2f} GB planned")
    base = sum(lasting.values())
    for moment, size in passing.items():
        whole = (base + size) / 1e9
        print(f"  {moment:20}{size / 1e9:8.2f} GB planned, with the others {whole:.2f}")
    for phase, gb in peaks.items():
        print(f"  {phase:20}{gb:8.2f} GB measured peak")
    print(
        f"planned {planned:.2f} GB, measured {peak:.2f} GB: {planned / peak - 1:+.1%} (the bar: "
        f"within 15%); beyond the tensors {beyond:.2f} GB at the end, assumed {plan.CONTEXT}"
    )
    row = {
        "planned_gb": planned,
        "measured_gb": peak,
        "peaks_gb": peaks,
        "lasting_bytes": lasting,
        "passing_bytes": passing,
        "beyond_gb": beyond,
        "run": asdict(f),
    }
    files = ("*.py", "runtime", "kernels", "bench/bench_memory.py", "bench/common.py")
    record("memory", vars(flags), [row], {}, files)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
