"""How close a decode step of the sampler comes to the time in which the memory can be read at all.

    python -m bench.bench_decode                       # Qwen2.5-1.5B and 7B shapes, batch 256, 1k of context on a GPU

    floor = (bytes of weights + bytes of keys and values) / measured rate of a copy

The weights are those that every step reads (an embedding of its own is not: a step reads a row of it per sequence). The step is
that of Sampler.generate, host, sampling and all: the time of a run less that of one which ends --steps tokens earlier, over
--steps, so that prefills and start drop out; the context is the mean over those steps. No prompts are alike, so that no page is
read twice from a cache. On a CPU the
multiplications weigh more than the reading, and the larger of the two is the floor.
"""

import argparse
import gc
import tempfile
import time

import torch

from bench.common import SHAPES, copy_rate, matmul, race, random_weights, record, synchronize, write_config
from model import Config, Model
from rollout import Sampler

FIRST = 8  # tokens of the shorter run


def seconds(run, device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def measure(shape: str, flags, dtype, ceilings: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        write_config(folder, shape)
        c = Config.read(folder)
    with torch.device("meta"):
        model = Model(c).to(dtype)
    model = random_weights(model.to_empty(device=flags.device))
    B, prompt = flags.batch, flags.context - FIRST - flags.steps // 2
    token_bytes = c.layers * 2 * c.J * c.K * dtype.itemsize
    longest = prompt + FIRST + flags.steps
    sampler = Sampler(model, [], B, longest, kv_gb=1.1 * B * (longest + 64) * token_bytes / 1e9)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(c.V, (B, prompt), generator=generator).tolist()
    best = {}
    for repeat in range(flags.repeats + 1):
        for new in (FIRST, FIRST + flags.steps):
            took = seconds(lambda new=new, seed=repeat: sampler.generate(prompts, 1, new, 1.0, seed), flags.device)
            best[new] = min(best.get(new, took), took) if repeat else float("inf")  # the first round is the warm-up
    assert not sampler.preempted, "the cache was too small, so steps were done twice"
    step = (best[FIRST + flags.steps] - best[FIRST]) / flags.steps
    weight_bytes = (c.N_total - (0 if c.tied else c.V * c.D)) * dtype.itemsize
    cache_bytes = B * flags.context * token_bytes
    read = (weight_bytes + cache_bytes) / ceilings["copy_bytes_per_s"]
    multiply = c.flops(B, B * flags.context, B) / ceilings["matmul_flops_per_s"]
    return {"ms": 1e3 * step, "weight_gb": weight_bytes / 1e9, "cache_gb": cache_bytes / 1e9, "read_ms": 1e3 * read,
            "multiply_ms": 1e3 * multiply, "of_floor": max(read, multiply) / step, "tokens_per_second": B / step,
            "attention": sampler.attend.__name__}


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1.5B", "7B"] if gpu else ["tiny", "small"])
    parser.add_argument("--batch", type=int, default=256 if gpu else 16)
    parser.add_argument("--context", type=int, default=1024 if gpu else 128, help="mean tokens that a step attends to")
    parser.add_argument("--steps", type=int, default=512 if gpu else 64)
    parser.add_argument("--repeats", type=int, default=2 if gpu else 3, help="the least time of so many runs is taken")
    flags = parser.parse_args()
    if flags.context <= FIRST + flags.steps // 2:
        parser.error(f"--context {flags.context}: must be over {FIRST} + half of --steps {flags.steps}, to leave a prompt")
    flags.device = "cuda" if gpu else "cpu"
    dtype = torch.bfloat16 if gpu else torch.float32
    multiply, flops = matmul(flags.device, dtype)
    multiply_ms = race({"multiply": multiply}, flags.device, 5)["multiply"]
    ceilings = {"copy_bytes_per_s": copy_rate(flags.device), "matmul_flops_per_s": 1e3 * flops / multiply_ms}
    copied, multiplied = (value / unit for value, unit in zip(ceilings.values(), (1e9, 1e12), strict=True))
    print(f"batch {flags.batch}, {flags.context} tokens of context, {flags.device} {dtype}; a copy moves {copied:.0f} GB/s, a "
          f"product makes {multiplied:.3g} TFLOP/s\n")
    print(f"{'shape':16}{'ms a step':>10}{'to read':>10}{'to multiply':>13}{'of floor':>10}{'tokens/s':>12}  GB weights, cache")
    rows = []
    for shape in flags.shapes:
        r = {"shape": shape} | measure(shape, flags, dtype, ceilings)
        rows.append(r)
        gc.collect()  # the model and its cache, before the next one comes
        torch.cuda.empty_cache()
        print(f"{shape:16}{r['ms']:10.3f}{r['read_ms']:10.3f}{r['multiply_ms']:13.3f}{r['of_floor']:10.0%}"
              f"{r['tokens_per_second']:12,.0f}      {r['weight_gb']:.3g}, {r['cache_gb']:.3g}", flush=True)
    measured = ("model.py", "rollout.py", "kernels", "bench/bench_decode.py", "bench/common.py")
    record("decode", flags, rows, ceilings, measured)


if __name__ == "__main__":
    main()
