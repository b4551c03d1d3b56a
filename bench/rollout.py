"""Our sampler against `generate` of transformers: the same weights, prompts and numbers of tokens, in one process.

    python bench/rollout.py
    python bench/rollout.py --model DIR --samples 32 --short 16 --long 128

Two workloads: all completions of one length (long), and lengths spread evenly over short..long in random order, which is
what a rollout looks like. Both samplers draw at temperature 1 over the whole vocabulary and are told when each sequence
ends, so both do the same work; transformers holds a finished row until the whole batch is done. Timings are the best of
--repeats, the two alternating. Appends the figures to results/rollout.jsonl.
"""

import argparse
import random
import time

import torch
import transformers
from logprob import record  # which puts the root of the project on the path

import data
from model import Config, Model, load, locate
from rollout import Sampler


class Lengths(transformers.StoppingCriteria):
    """Ends row i after limits[i] new tokens."""

    def __init__(self, limits, prompt):
        self.limits, self.prompt = limits, prompt

    def __call__(self, input_ids, scores, **_):
        return input_ids.shape[1] - self.prompt >= self.limits


def theirs(model, tokenizer, prompts, limits) -> None:
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    stop = Lengths(torch.tensor(limits, device=model.device), width)
    # No end token: lengths are given. top_k 0: the whole vocabulary, as ours.
    out = model.generate(ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=None,
                         pad_token_id=pad, max_new_tokens=max(limits), stopping_criteria=[stop], use_cache=True)
    assert out.shape[1] == width + max(limits)


def seconds(run, device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/tiny")
    parser.add_argument("--samples", type=int, default=256, help="sequences, all with different prompts")
    parser.add_argument("--short", type=int, default=4, help="tokens of the shortest completion")
    parser.add_argument("--long", type=int, default=48, help="tokens of the longest completion")
    parser.add_argument("--slots", type=int, default=0, help="sequences we decode together, 0 for all (as the peer)")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = locate(flags.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    peer = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype).to(device).eval()
    with torch.device("meta"):
        model = Model(Config.read(source)).to(dtype)
    model = load(model.to_empty(device=device), source)
    prompts = [data.render(p, tokenizer) for p in data.load("arithmetic")[: flags.samples]]
    rng = random.Random(0)
    spread = [flags.short + i * (flags.long - flags.short) // (flags.samples - 1) for i in range(flags.samples)]
    rng.shuffle(spread)
    slots = flags.slots or flags.samples
    sampler = Sampler(model, [], slots, max(map(len, prompts)) + flags.long)
    rows = []
    for name, limits in (("equal lengths", [flags.long] * flags.samples), ("spread lengths", spread)):
        runs = {
            "ours": lambda limits=limits: sampler.generate(prompts, 1, limits, 1.0, 0),
            "transformers": lambda limits=limits: theirs(peer, tokenizer, prompts, limits),
        }
        best = dict.fromkeys(runs, float("inf"))
        for repeat in range(flags.repeats + 1):
            for who, run in runs.items():
                took = seconds(run, device)
                best[who] = min(best[who], took) if repeat else best[who]  # the first is the warm-up
        rate = {who: sum(limits) / took for who, took in best.items()}
        rows.append({"workload": name, "ours": round(rate["ours"], 1), "transformers": round(rate["transformers"], 1),
                     "ratio": round(rate["ours"] / rate["transformers"], 2)})
    print(f"{flags.model}, {flags.samples} samples of {flags.short}..{flags.long} tokens, {slots} slots, {device} {dtype}")
    print(f"{'tokens per second':16} {'ours':>10} {'transformers':>13} {'ratio':>6}")
    for row in rows:
        print(f"{row['workload']:17} {row['ours']:10,.0f} {row['transformers']:13,.0f} {row['ratio']:6.2f}")
    flags.device = device.type
    record("rollout", flags, rows, {}, ("kernels", "model.py", "rollout.py", "bench/rollout.py"))


if __name__ == "__main__":
    main()
