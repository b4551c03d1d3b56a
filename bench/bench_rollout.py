"""Our sampler against transformers, its `generate` and its continuous batching: same weights, prompts and numbers of tokens.

    python -m bench.bench_rollout                      # on a CPU models/tiny, on a GPU Qwen2.5-1.5B's shape, 64..2048
    python -m bench.bench_rollout --model DIR --samples 32 --short 16 --long 128

Two workloads: completions of one length (long), and lengths spread evenly over short..long in random order, which is what a
rollout looks like. All draw at temperature 1 over the whole vocabulary and are told when each sequence ends, so all do the same
work; `generate` holds a finished row until the whole batch is done. The peer's manager of continuous batching is opened, sized
and warmed before its clock starts, and stays open. Timings are the best of --repeats: on a CPU in turns, so that a busy machine
is busy for all; on a GPU one contender after the other, each with the whole memory. Appends to results/rollout.jsonl.
"""

import argparse
import gc
import random
import tempfile
import time
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import torch
import transformers

from bench.common import SHAPES, record, synchronize, write_config
from model import Config, Model
from rollout import Sampler
from runtime.batch import log_probs, make_batch, pack
from runtime.parallel import load, locate


class Lengths(transformers.StoppingCriteria):
    """Ends row i after limits[i] new tokens."""

    def __init__(self, limits, prompt):
        self.limits, self.prompt = limits, prompt

    def __call__(self, input_ids, scores, **_):
        return input_ids.shape[1] - self.prompt >= self.limits


def settings(limits: list[int]) -> transformers.GenerationConfig:
    # No end token: lengths are given. top_k 0: the whole vocabulary, as ours.
    return transformers.GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max(limits),
                                         eos_token_id=-1, pad_token_id=0, repetition_penalty=1.0)


# Each contender is a context that yields a function of (limits, seed), which returns how many tokens it has drawn.


@contextmanager
def ours(model, peer, prompts, flags):
    sampler = Sampler(model, [], flags.slots or flags.samples, flags.prompt + flags.long, flags.kv_gb)
    yield lambda limits, seed: sum(len(s.ids) for s in sampler.generate(prompts, 1, limits, 1.0, seed))


@contextmanager
def generate(model, peer, prompts, flags):
    ids = torch.tensor(prompts, device=peer.device)

    def run(limits, seed):
        stop = Lengths(torch.tensor(limits, device=peer.device), flags.prompt)
        out = peer.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings(limits),
                            stopping_criteria=[stop])
        return sum(limits) if out.shape[1] == flags.prompt + max(limits) else 0

    yield run


@contextmanager
def continuous(model, peer, prompts, flags):
    config = transformers.generation.ContinuousBatchingConfig()
    if peer.device.type == "cpu":  # where it takes most of the machine's memory for pages, unless told
        pages = flags.samples * -(-(flags.prompt + flags.long) // 32) + 8
        config = transformers.generation.ContinuousBatchingConfig(page_size=32, num_blocks=pages, max_batch_tokens=1024)
    with peer.continuous_batching_context_manager(settings([flags.long]), continuous_batching_config=config) as manager:

        def run(limits, seed):
            for prompt, limit in zip(prompts, limits, strict=True):
                manager.add_request(prompt, max_new_tokens=limit, eos_token_id=-1)
            drawn, done = 0, 0
            while done < len(limits):
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    raise RuntimeError("its generation thread has ended")
                if result is not None and result.is_finished():
                    drawn, done = drawn + len(result.generated_tokens), done + 1
            return drawn

        yield run


CONTENDERS = {"ours": ours, "generate": generate, "continuous batching": continuous}


def seconds(run, limits, seed, device) -> float:
    synchronize(device)
    start = time.perf_counter()
    drawn = run(limits, seed)
    synchronize(device)
    if drawn != sum(limits):
        raise RuntimeError(f"drew {drawn:,} tokens, not the {sum(limits):,} asked for")
    return time.perf_counter() - start


def gap(model, prompts, limits, flags) -> tuple[float, float]:
    """Mean and largest |log-prob of the sampler - the trainer's| over the tokens of one more draw, of 256 each at most."""
    limits = [min(n, 256) for n in limits]
    sampler = Sampler(model, [], flags.slots or flags.samples, flags.prompt + max(limits), flags.kv_gb)
    done = [SimpleNamespace(prompt=prompts[s.prompt], ids=s.ids, logp=s.logp)
            for s in sampler.generate(prompts, 1, limits, 1.0, 0)]
    gaps = []
    for places in pack([len(c.prompt) + len(c.ids) for c in done], 1, 16384)[0]:
        batch = make_batch(done, places, sampler.device)
        logp_R, _ = log_probs(model, batch, 1.0)  # with gradients on, the products are the trainer's own
        gaps.append((logp_R.detach() - batch.sampler_R).abs())
    gap_R = torch.cat(gaps)
    return gap_R.mean().item(), gap_R.max().item()


def models(flags, device, dtype):
    """-> (our model, the peer's): the same weights, of a checkpoint or random ones of a shape."""
    with nullcontext(locate(flags.model)) if flags.model else tempfile.TemporaryDirectory() as source:
        if not flags.model:
            write_config(source, flags.shape)
        with torch.device("meta"):
            model = Model(Config.read(source)).to(dtype)
        model = model.to_empty(device=device)
        if flags.model:
            peer = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype).to(device)
            load(model, source)
        else:
            with torch.device(device):
                config = transformers.AutoConfig.from_pretrained(source)
                peer = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
            weights = peer.state_dict()
            model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model, peer.eval().requires_grad_(False)


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="" if gpu else "models/tiny", help="a checkpoint; empty: random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="1.5B")
    parser.add_argument("--samples", type=int, default=512 if gpu else 256, help="sequences, all with different prompts")
    parser.add_argument("--prompt", type=int, default=128 if gpu else 24, help="tokens of every prompt")
    parser.add_argument("--short", type=int, default=64 if gpu else 4, help="tokens of the shortest completion")
    parser.add_argument("--long", type=int, default=2048 if gpu else 48, help="tokens of the longest completion")
    parser.add_argument("--slots", type=int, default=0, help="sequences we decode together, 0 for all (as the peer)")
    parser.add_argument("--kv-gb", type=float, default=40.0 if gpu else 4.0, help="memory for our cache")
    parser.add_argument("--workloads", nargs="+", choices=("equal", "spread"), default=["equal", "spread"][gpu:])
    parser.add_argument("--repeats", type=int, default=1 if gpu else 3)
    flags = parser.parse_args()
    transformers.logging.set_verbosity_error()  # it warns at every call that there is no end token
    device = torch.device("cuda" if gpu else "cpu")
    dtype = torch.bfloat16 if gpu else torch.float32
    model, peer = models(flags, device, dtype)
    rng = random.Random(0)
    prompts = [[rng.randrange(model.config.V) for _ in range(flags.prompt)] for _ in range(flags.samples)]
    spread = [flags.short + i * (flags.long - flags.short) // (flags.samples - 1) for i in range(flags.samples)]
    rng.shuffle(spread)
    limits = {"equal": [flags.long] * flags.samples, "spread": spread}
    best, failed, names = {}, {}, list(CONTENDERS)
    for together in [[name] for name in names] if gpu else [names]:
        with ExitStack() as stack:
            runs = {}
            for name in together:
                try:
                    run = runs[name] = stack.enter_context(CONTENDERS[name](model, peer, prompts, flags))
                    for workload in flags.workloads:  # a 16th of every length is the warm-up, so that all batch sizes are met
                        seconds(run, [max(1, n // 16) for n in limits[workload]], 0, device)
                except Exception as reason:
                    if name == "ours":
                        raise
                    failed[name] = f"{type(reason).__name__}: {(str(reason).strip().splitlines() or [''])[0]}"
                    runs.pop(name, None)
            for seed in range(1, flags.repeats + 1):
                for workload in flags.workloads:
                    for name, run in runs.items():
                        took = seconds(run, limits[workload], seed, device)
                        best[workload, name] = min(took, best.get((workload, name), took))
        run = runs = None  # what they hold of the GPU's memory is the next one's
        gc.collect()
        torch.cuda.empty_cache()
    mean, most = gap(model, prompts, limits[flags.workloads[-1]], flags)
    print(f"{Path(flags.model).name or flags.shape}, {flags.samples} samples of {flags.short}..{flags.long} tokens after "
          f"{flags.prompt}, {flags.slots or flags.samples} slots, {device} {dtype}")
    print(f"\n{'tokens per second':24}" + "".join(f"{name:>22}" for name in flags.workloads) + "    ours over it")
    rows = [{"name": "ours, log-probs", "gap": {"mean": mean, "max": most}}]
    rows += [{"name": name, "not_run": reason} for name, reason in failed.items()]
    for name in (name for name in names if name not in failed):
        row = {"name": name, **{w: sum(limits[w]) / best[w, name] for w in flags.workloads}}
        row["ratio"] = {w: best[w, name] / best[w, "ours"] for w in flags.workloads}
        rows.append(row)
        print(f"{name:24}" + "".join(f"{row[w]:22,.0f}" for w in flags.workloads) + "    "
              + ", ".join(f"{ratio:.2f}" for ratio in row["ratio"].values()))
    for name, reason in failed.items():
        print(f"{name:24}not run: {reason[:110]}")
    print(f"log-probs of our sampler and of our trainer differ by {mean:.1e} on average, {most:.1e} at most")
    flags.device, flags.model = device.type, Path(flags.model).name
    record("rollout", flags, rows, {},
           ("kernels", "model.py", "rollout.py", "runtime/batch.py", "bench/bench_rollout.py", "bench/common.py"))


if __name__ == "__main__":
    main()
