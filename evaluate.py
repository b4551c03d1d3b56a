"""Measure a model: draw n completions of every problem, grade them, and report pass@1 with its standard error.

    pass@1 = mean over problems of (right completions / n),   se = std over problems of that share / sqrt(problems),
    test loss L = 1 - pass@1

The standard error is over problems: n completions of one problem are not independent, so they are averaged first
(Miller 2024, arXiv 2411.00640). Every evaluation of a run draws with the same noise, so that the difference between two of
them is the model's doing and not the draw's. The study evaluates at temperature 0.7; the temperature here is a flag.

    torchrun evaluate.py --model models/tiny --data arithmetic:test --n 8
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import data
from model import Config, Model, load, locate
from reward import Grader, Verdict
from rollout import Sample, Sampler, stop_tokens

EVALUATION = -1  # the `step` that keys an evaluation's noise


@dataclass(frozen=True)
class Completion:
    """A graded sample: everything a rank needs to know of a sequence that another one drew."""

    problem: int  # place in the list of problems
    sample: int
    prompt: list[int]
    ids: list[int]
    logp: list[float]
    finished: bool
    text: str
    verdict: Verdict


def connect(name: str) -> tuple[torch.device, Path, Config]:
    """Joins the ranks that torchrun started (or makes the only one) -> (this rank's device, the model's files, its config)."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(minutes=30), **alone)
    source = locate(name)
    config = Config.read(source)
    if config.N < 1_000_000:  # a second thread saves less than it waits: with another program on the cores, 30 times slower
        torch.set_num_threads(1)
    return device, source, config


def collect(sampler: Sampler, tokenizer, grader: Grader, problems: list[data.Problem], G: int, max_new: int,
            temperature: float, seed: int, step: int, template: str = "auto") -> list[Completion]:
    """G graded completions of every problem, in the order of the problems, known to every rank (a collective).

    Each rank draws for its share of the problems; an answer goes to the grader as soon as its sequence ends.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = range(rank, len(problems), world)
    prompts = [data.render(problems[i], tokenizer, template) for i in mine]
    text, verdict = {}, {}

    def grade(s: Sample) -> None:
        key = s.prompt, s.sample
        text[key] = tokenizer.decode(s.ids, skip_special_tokens=True)
        verdict[key] = grader.submit(text[key], problems[mine[s.prompt]].answer)

    samples = sampler.generate(prompts, G, max_new, temperature, seed, step, [problems[i].index for i in mine], grade)
    done = [Completion(mine[s.prompt], s.sample, prompts[s.prompt], s.ids, s.logp, s.finished,
                       text[s.prompt, s.sample], verdict[s.prompt, s.sample].result()) for s in samples]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, done)
        done = sorted((c for part in parts for c in part), key=lambda c: (c.problem, c.sample))
    return done


def evaluate(sampler: Sampler, tokenizer, grader: Grader, problems: list[data.Problem], n: int, max_new: int,
             temperature: float, seed: int, template: str = "auto") -> tuple[dict, list[Completion]]:
    """-> (the fields of an evaluation line of metrics.jsonl, the completions)."""
    done = collect(sampler, tokenizer, grader, problems, n, max_new, temperature, seed, EVALUATION, template)
    share_P = np.array([c.verdict.score for c in done]).reshape(len(problems), n).mean(1)
    pass1 = float(share_P.mean())
    se = float(share_P.std(ddof=1) / len(share_P) ** 0.5) if len(share_P) > 1 else None
    verdicts = [c.verdict.verdict for c in done]
    return {
        "source": problems[0].source, "pass1": pass1, "pass1_se": se, "loss": 1 - pass1, "problems": len(problems),
        "samples": len(done), "length": float(np.mean([len(c.ids) for c in done])),
        "truncated": float(np.mean([not c.finished for c in done])),
        "verdicts": {v: verdicts.count(v) for v in sorted(set(verdicts))},
    }, done


def show(completions: list[Completion], tokenizer) -> str:
    """A few completions for people: prompt, text, and whether it was right."""
    lines = []
    for c in completions:
        prompt = " ".join(tokenizer.decode(c.prompt, skip_special_tokens=True).split())
        prompt = prompt if len(prompt) <= 300 else f"{prompt[:200]} ... {prompt[-90:]}"
        mark = "✓" if c.verdict.score else "✗"
        lines.append(f"  {mark} {prompt}\n      {c.text.strip()}" + ("" if c.finished else " [cut]"))
    return "\n".join(lines)


def draw_curve(run: str | Path) -> Path:
    """Draws RUN/curve.png from RUN/metrics.jsonl: pass@1 and reward against steps, response length below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    train, held_out = ([r for r in rows if r["kind"] == kind] for kind in ("train", "eval"))
    blue, orange = "#0072B2", "#D55E00"  # Okabe and Ito's, told apart by the colour-blind
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=[2, 1], layout="constrained")
    step, pass1 = [r["step"] for r in held_out], np.array([r["pass1"] for r in held_out])
    spread = 1.96 * np.array([r["pass1_se"] or 0.0 for r in held_out])
    top.plot([r["step"] for r in train], [r["reward"] for r in train], color=orange, lw=1, alpha=0.7,
             label="reward, training batch")
    top.plot(step, pass1, color=blue, lw=2, marker="o", ms=3,
             label=f"pass@1, {held_out[0]['problems']} held-out problems, 95% interval")
    top.fill_between(step, pass1 - spread, pass1 + spread, color=blue, alpha=0.2, lw=0)
    top.set(ylabel="share of right answers", ylim=(0, 1.02), title=f"{Path(run).name}: {held_out[0]['source']}")
    top.legend(loc="lower right", frameon=False)
    bottom.plot([r["step"] for r in train], [r["length"] for r in train], color=orange, lw=1, alpha=0.7)
    bottom.plot(step, [r["length"] for r in held_out], color=blue, lw=2)
    bottom.set(ylabel="response length, tokens", xlabel="step", ylim=(0, None))
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path := Path(run) / "curve.png", dpi=150)
    plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a model: pass@1 with its standard error.")
    parser.add_argument("--model", default="models/tiny", help="hub name or directory in Hugging Face layout")
    parser.add_argument("--data", default="arithmetic:test", help="arithmetic:test, a file, or a hub name with :split")
    parser.add_argument("--n", type=int, default=1, help="completions of each problem")
    parser.add_argument("--problems", type=int, default=0, help="only the first so many, 0 for all")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 is greedy; 0.7 is the study's")
    parser.add_argument("--max-prompt", type=int, default=1024, help="longer prompts are dropped, and counted")
    parser.add_argument("--max-new", type=int, default=512, help="tokens of a completion at most")
    parser.add_argument("--template", choices=["auto", "chat", "plain"], default="auto")
    parser.add_argument("--slots", type=int, default=128, help="sequences decoded together")
    parser.add_argument("--kv-gb", type=float, default=4.0, help="memory for keys and values, 1e9 bytes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a file for the completions, one JSON object a line; never overwritten")
    parser.add_argument("--show", type=int, default=3, help="completions to print")
    flags = parser.parse_args()
    if flags.n < 1:
        parser.error(f"--n {flags.n}: at least one completion of each problem is needed")
    from transformers import AutoTokenizer

    try:
        device, source, config = connect(flags.model)
        tokenizer = AutoTokenizer.from_pretrained(source)
        problems = data.load(flags.data, split="test")
        problems = problems[: flags.problems or (500 if isinstance(problems, data.Arithmetic) else None)]
        problems, dropped = data.drop_long(problems, tokenizer, flags.max_prompt, flags.template)
        with torch.device("meta"):
            model = Model(config)
        model = load(model.to(torch.bfloat16 if device.type == "cuda" else torch.float32).to_empty(device=device), source)
        sampler = Sampler(model, stop_tokens(source, tokenizer), flags.slots, flags.max_prompt + flags.max_new, flags.kv_gb)
        out = open(flags.out, "x") if flags.out else None
    except (FileNotFoundError, FileExistsError, ValueError, ConnectionError, ImportError) as error:
        raise SystemExit(f"evaluate.py: {error}") from error
    start = time.perf_counter()
    with Grader(workers=max(1, (os.cpu_count() or 2) // 2)) as grader:
        result, done = evaluate(sampler, tokenizer, grader, problems, flags.n, flags.max_new, flags.temperature,
                                flags.seed, flags.template)
    seconds = time.perf_counter() - start
    rank = dist.get_rank()
    dist.destroy_process_group()
    if rank:
        return
    print(show(done[: flags.show * flags.n : flags.n], tokenizer))
    print(f"{flags.model} on {flags.data}: pass@1 {result['pass1']:.4f} +- {result['pass1_se'] or 0:.4f} (standard error over "
          f"{result['problems']} problems, {flags.n} completions each, temperature {flags.temperature:g})")
    print(f"length {result['length']:.1f} tokens, {result['truncated']:.1%} truncated, {dropped} prompts dropped as too long; "
          f"verdicts {result['verdicts']}; {sum(len(c.ids) for c in done) / seconds:,.0f} tokens/s")
    if out:
        with out:
            for c in done:
                row = {"problem": problems[c.problem].index, "sample": c.sample, "text": c.text, "answer": c.verdict.answer,
                       "truth": problems[c.problem].answer, "verdict": c.verdict.verdict, "length": len(c.ids)}
                out.write(json.dumps(row) + "\n")
        print(f"completions: {flags.out}")


if __name__ == "__main__":
    main()
