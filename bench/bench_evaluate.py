"""How much of an evaluation's time is spent outside the model: reading, templates, the sampler's host, grading, statistics.

    python -m bench.bench_evaluate --model Qwen/Qwen2.5-0.5B-Instruct --eval openai/gsm8k:test

The model stops at once, since every token is made an end token: the model's part is then as small as it can be, one prefill of
each prompt, and the share outside as large. The bar is 10%. Start-up (imports, reading weights) is not counted.
"""

import argparse
import json
import subprocess
import time
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent

import data
from evaluate import Source, evaluate
from model import Model
from reward import Grader
from rollout import Sampler
from runtime.parallel import connect, load

BAR = 0.10


def main() -> None:
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description="The share of an evaluation's time that is spent outside the model.")
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--eval", default="openai/gsm8k:test")
    parser.add_argument("--problems", type=int, default=1319, help="only the first so many")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "evaluate.jsonl", help="a line is appended to it")
    flags = parser.parse_args()
    describe = ["git", "describe", "--always", "--dirty"]  # before the run, of the code that it loads
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    device, directory, config = connect(flags.model)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = Model(config).to(torch.bfloat16 if device.type == "cuda" else torch.float32).to(device)
    sampler = Sampler(load(model, directory), range(len(tokenizer)), slots=128, max_len=2048 + 512)
    forward, inside = model.forward, [0.0]

    def timed(*arguments, **options):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = forward(*arguments, **options)
        if device.type == "cuda":
            torch.cuda.synchronize()
        inside[0] += time.perf_counter() - start
        return result

    model.forward = timed
    start = time.perf_counter()
    problems = data.load(flags.eval, split="test")[: flags.problems]
    problems, _ = data.drop_long(problems, tokenizer, 2048)
    with Grader() as grader:
        result, done = evaluate(sampler, tokenizer, grader, problems, Source(flags.eval), 512, 0)
    total = time.perf_counter() - start
    assert max(len(c.ids) for c in done) == 1, "the model did not stop at once"
    share = 1 - inside[0] / total
    prompt_tokens = sum(len(c.prompt) for c in done)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    line = {"claim": "evaluation outside the model", "model": Path(flags.model).name, "parameters": config.N_total,
            "eval": Path(flags.eval).name,
            "problems": result["problems"], "prompt_tokens": prompt_tokens, "seconds": round(total, 2),
            "outside_seconds": round(total - inside[0], 2), "share": round(share, 4), "bar": BAR, "device": name,
            "torch": torch.__version__, "commit": commit, "date": str(date.today())}
    print(f"{result['problems']} problems, {prompt_tokens:,} tokens: {total:.1f} s, {inside[0]:.1f} s in the model, "
          f"{share:.1%} outside it ({'under' if share < BAR else 'NOT under'} {BAR:.0%})")
    flags.results.parent.mkdir(exist_ok=True)
    with open(flags.results, "a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
