"""How close a decode step of the sampler comes to the time in which its memory can be read.

    python -m bench.bench_decode      # GPU: shapes of Qwen2.5-1.5B and 7B, batch 256, 1k of context

    floor = (bytes of weights + bytes of keys and values) / measured rate of a copy

An embedding of its own is not counted, since a step reads one row of it per sequence. The step is
that of Sampler.generate, with the host and the sampling: the time of a run minus that of a run
which ends --steps tokens earlier, over --steps. Prefill and start thus drop out. The context is the
mean over those steps. No prompts are alike, so that no page is read twice from a cache. On a CPU
the multiplications can take longer than the reading; the larger of the two is the floor.
"""

import gc
import tempfile
from dataclasses import dataclass

import torch
import tyro

from bench.common import (
    DEVICE,
    DTYPE,
    GPU,
    copy_rate,
    matmul,
    race,
    random_weights,
    record,
    seconds,
    write_config,
)
from model import Config, Model
from rollout import Sampler

FIRST = 8  # tokens of the shorter run


@dataclass
class Flags:
    shapes: tuple[str, ...] = ("1.5B", "7B") if GPU else ("tiny", "small")  # of bench/common.py
    batch: int = 256 if GPU else 16
    context: int = 1024 if GPU else 128  # mean tokens that a step attends to
    steps: int = 512 if GPU else 64
    repeats: int = 2 if GPU else 3  # the least time of so many runs is taken


def measure(shape: str, flags: Flags, ceilings: dict[str, float]) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        write_config(folder, shape)
        c = Config.read(folder)
    with torch.device("meta"):
        model = Model(c).to(DTYPE)
    model = random_weights(model.to_empty(device=DEVICE))
    B = flags.batch
    prompt = flags.context - FIRST - flags.steps // 2
    longest = prompt + FIRST + flags.steps
    token_bytes = 2 * c.layers * c.J * c.K * DTYPE.itemsize  # of keys and values
    cache_gb = B * (longest + 64) * token_bytes / 1e9
    sampler = Sampler(model, [], B, longest, kv_gb=1.1 * cache_gb)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(c.V, (B, prompt), generator=generator).tolist()

    def run(new: int, seed: int) -> float:
        return seconds(lambda: sampler.generate(prompts, 1, new, 1.0, seed))

    run(FIRST, 0)  # the warm-up
    run(FIRST + flags.steps, 0)
    short = []
    long = []
    for repeat in range(1, flags.repeats + 1):
        short.append(run(FIRST, repeat))
        long.append(run(FIRST + flags.steps, repeat))
    sampler.close()
    if sampler.preempted:
        raise SystemExit(f"{shape}: {sampler.preempted} sequences were preempted and decoded twice")
    step = (min(long) - min(short)) / flags.steps

    weights = c.N_total if c.tied else c.N_total - c.V * c.D
    weight_bytes = weights * DTYPE.itemsize
    cache_bytes = B * flags.context * token_bytes
    read = (weight_bytes + cache_bytes) / ceilings["copy_bytes_per_s"]
    multiply = c.flops(B, B * flags.context, B) / ceilings["matmul_flops_per_s"]
    return {
        "shape": shape,
        "ms": 1e3 * step,
        "weight_gb": weight_bytes / 1e9,
        "cache_gb": cache_bytes / 1e9,
        "read_ms": 1e3 * read,
        "multiply_ms": 1e3 * multiply,
        "of_floor": max(read, multiply) / step,
        "tokens_per_second": B / step,
    }


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if flags.context <= FIRST + flags.steps // 2:
        raise SystemExit(
            f"--context {flags.context}: must be over {FIRST} + half of --steps {flags.steps}, to "
            "leave a prompt"
        )
    multiply, flops = matmul()
    multiply_ms = race({"multiply": multiply}, 5)["multiply"]
    ceilings = {"copy_bytes_per_s": copy_rate(), "matmul_flops_per_s": 1e3 * flops / multiply_ms}
    print(
        f"batch {flags.batch}, {flags.context} tokens of context, {DEVICE.type} {DTYPE}; a copy "
        f"moves {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s, a product makes "
        f"{ceilings['matmul_flops_per_s'] / 1e12:.3g} TFLOP/s\n"
    )
    print(f"{'shape':16}{'ms a step':>10}{'to read':>10}{'to multiply':>13}{'of floor':>10}"
          f"{'tokens/s':>12}{'GB weights':>12}{'cache':>8}")  # fmt: skip
    rows = []
    for shape in flags.shapes:
        row = measure(shape, flags, ceilings)
        rows.append(row)
        gc.collect()  # the model and its cache, before the next one comes
        torch.cuda.empty_cache()
        print(
            f"{shape:16}{row['ms']:10.3f}{row['read_ms']:10.3f}{row['multiply_ms']:13.3f}"
            f"{row['of_floor']:10.0%}{row['tokens_per_second']:12,.0f}{row['weight_gb']:12.3g}"
            f"{row['cache_gb']:8.3g}",
            flush=True,
        )
    files = ("model.py", "rollout.py", "kernels", "bench/bench_decode.py", "bench/common.py")
    record("decode", vars(flags), rows, ceilings, files)


if __name__ == "__main__":
    main()
