"""Measure a model: draw n completions of every problem, grade them, and report pass@1 with its standard error.

    pass@1 = mean over problems of c / n, c of n completions being right;   test loss L = 1 - pass@1

    torchrun evaluate.py --model models/tiny --eval arithmetic:test:8:0.7 --out tiny.jsonl
    torchrun evaluate.py --model Qwen/Qwen2.5-7B --eval gsm8k.parquet --eval math500.parquet:16:0.7
    torchrun --nproc_per_node 8 evaluate.py --model Qwen/Qwen2.5-72B --sampler-tp 8 --eval math500.parquet
    python evaluate.py --compare a.jsonl b.jsonl

Standard errors are over problems: n completions of one problem are not independent, so they are averaged first (Miller 2024,
arXiv 2411.00640). Every evaluation of a run draws with the same noise, so that the difference between two of them is the
model's doing and not the draw's. The study evaluates at temperature 0.7, one completion each, and that is the default here.

--out holds the settings in its first line, then a line for each completion as soon as it is graded, so that the same command
draws only what is missing. All ranks append to it: on several machines that needs a file system on which appends are atomic.
"""

import argparse
import json
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import data
import sandbox
from kinds import submit
from measures import append, compare, report, resume, summarise
from model import Config, Model, load, locate, make_mesh, shard, tensor_parallel
from reward import Grader, Verdict
from rollout import Sample, Sampler, copy_weights, stop_tokens

EVALUATION = -1  # the `step` that keys an evaluation's noise


@dataclass(frozen=True)
class Source:
    """What `--eval NAME[:n[:temperature]]` asks for: n completions of every problem of NAME."""

    name: str
    n: int = 1
    temperature: float = 0.7  # the study's

    @classmethod
    def read(cls, text: str) -> "Source":
        name, n, temperature = re.fullmatch(r"(.*?)(?::(\d+)(?::(\d+\.?\d*|\.\d+))?)?", text, re.S).groups()
        source = cls(name, int(n or 1), cls.temperature if temperature is None else float(temperature))
        if source.n < 1 or (source.n > 1 and source.temperature == 0):
            raise ValueError(f"--eval {text}: " + ("at least one completion of each problem is needed" if source.n < 1 else
                             f"at temperature 0 all {n} completions are the same; take 1, or a temperature above 0"))
        return source


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


def check_team(t: int, world: int) -> None:
    """ValueError unless the ranks of every node can be cut into teams of t that each hold a copy of the model."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if t < 1 or here % t or world % t:
        raise ValueError(f"--sampler-tp {t} does not divide the ranks of a node, {here} of {world}; give a number that does")


# ---- Drawing and measuring ----------------------------------------------------------------------------------------


def collect(sampler: Sampler, tokenizer, grader: Grader, problems: list[data.Problem], G: int, max_new: int,
            temperature: float, seed: int, step: int, template: str = "auto",
            keep: Callable[[Completion], None] | None = None) -> list[Completion]:
    """G graded completions of every problem, in the order of the problems, known to every rank (a collective).

    Each rank draws for its share of the problems, or the ranks that hold a sampler together for theirs, and then each grades
    its share of what they draw; an answer goes to the grader as soon as its sequence ends, and `keep` is called with every
    completion that this rank grades, once it is graded.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    t = dist.get_world_size(sampler.model.group) if sampler.model.group else 1
    mine = range(rank // t, len(problems), world // t)
    prompts = [data.render(problems[i], tokenizer, template) for i in mine]
    waiting, done = deque(), []

    def settle(wait: bool) -> None:
        while waiting and (wait or waiting[0][2].done()):
            s, text, verdict = waiting.popleft()
            done.append(Completion(mine[s.prompt], s.sample, prompts[s.prompt], s.ids, s.logp, s.finished, text,
                                   verdict.result()))
            if keep:
                keep(done[-1])

    def grade(s: Sample) -> None:
        if (s.prompt * G + s.sample) % t != rank % t:
            return  # another rank has it too
        text = tokenizer.decode(s.ids, skip_special_tokens=True)
        waiting.append((s, text, submit(grader, pool, problems[mine[s.prompt]], text)))
        settle(wait=False)

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // (2 * world))) as pool:  # for programs, which have little time
        sampler.generate(prompts, G, max_new, temperature, seed, step, [problems[i].index for i in mine], grade)
        settle(wait=True)
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, done)
        done = [c for part in parts for c in part]
    return sorted(done, key=lambda c: (c.problem, c.sample))


def check_source(source: Source, problems: list[data.Problem], ks: Iterable[int] = ()) -> None:
    """ValueError or sandbox.Refused for an evaluation that cannot be made, before anything is drawn."""
    if not problems:
        raise ValueError(f"--eval {source.name}: it has no problems")
    if any(not 1 <= k <= source.n for k in ks):
        raise ValueError(f"--k {' '.join(map(str, ks))} with --eval {source.name}:{source.n}: pass@k needs k from 1 to n, the "
                         f"completions of each problem; write {source.name}:{max(ks)}, or another --k")
    if any(p.kind == "code" for p in problems):
        sandbox.holding(sandbox.Limits())


def held_out(f) -> tuple[Sequence[data.Problem], list[tuple[Source, list[data.Problem]]]]:
    """-> (training problems in their order, the problems of each --eval). One without a NAME takes the test split of the tiny
    world, and of a file every n-th problem, which then is not trained on. f: grpo.py's Flags."""
    problems, tests = data.load(f.data, seed=f.seed), []
    for source in map(Source.read, f.eval):
        if source.name or isinstance(problems, data.Arithmetic):
            test = data.load(source.name or f.data, split="test", seed=f.seed)[: f.eval_problems]
        else:
            n = max(1, min(f.eval_problems, len(problems) // 5))
            chosen = {(2 * i + 1) * len(problems) // (2 * n) for i in range(n)}
            test = [problems[i] for i in sorted(chosen)]
            problems = [p for i, p in enumerate(problems) if i not in chosen]
        check_source(source, test)
        tests.append((source, test))
    if len({source.name for source, _ in tests}) < len(tests):
        raise ValueError(f"--eval names a source twice: {' '.join(f.eval)}; give each once, with its largest n")
    return problems, tests


def row(c: Completion, problem: data.Problem, source: str) -> dict:
    """A line of an evaluation's file: the problem, the text, the answer found in it, and the verdict with its reason."""
    return {"source": source, "problem": problem.index, "sample": c.sample, "prompt": problem.prompt, "text": c.text,
            "answer": c.verdict.answer, "truth": problem.answer, "score": c.verdict.score, "verdict": c.verdict.verdict,
            "rule": c.verdict.rule, "length": len(c.ids), "finished": c.finished}


def evaluate(sampler: Sampler, tokenizer, grader: Grader, problems: list[data.Problem], source: Source, max_new: int, seed: int,
             template: str = "auto") -> tuple[dict, list[Completion]]:
    """-> (the fields of an evaluation line of metrics.jsonl, the completions). A collective."""
    done = collect(sampler, tokenizer, grader, problems, source.n, max_new, source.temperature, seed, EVALUATION, template)
    name = source.name or problems[0].source
    result = summarise(problems, [row(c, problems[c.problem], name) for c in done], source.n)
    return {"source": name, "n": source.n, "temperature": source.temperature, **result}, done


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
    # Okabe and Ito's, told apart by the colour-blind
    colors, orange = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"), "#D55E00"
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=[2, 1], layout="constrained")
    top.plot([r["step"] for r in train], [r["reward"] for r in train], color=orange, lw=1, alpha=0.7,
             label="reward, training batch")
    bottom.plot([r["step"] for r in train], [r["length"] for r in train], color=orange, lw=1, alpha=0.7)
    sources = list(dict.fromkeys(r["source"] for r in held_out))
    for i, source in enumerate(sources):
        rows = [r for r in held_out if r["source"] == source]
        step, pass1, color = [r["step"] for r in rows], np.array([r["pass1"] for r in rows]), colors[i % len(colors)]
        spread = 1.96 * np.array([r["pass1_se"] or 0.0 for r in rows])
        top.plot(step, pass1, color=color, lw=2, marker="o", ms=3,
                 label=f"pass@1, {Path(source).stem}, {rows[0]['problems']} problems, 95% interval")
        top.fill_between(step, pass1 - spread, pass1 + spread, color=color, alpha=0.2, lw=0)
        bottom.plot(step, [r["length"] for r in rows], color=color, lw=2)
    top.set(ylabel="share of right answers", ylim=(0, 1.02), title=Path(run).name)
    top.legend(loc="best", frameon=False)
    bottom.set(ylabel="response length, tokens", xlabel="step", ylim=(0, None))
    for axis in (top, bottom):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path := Path(run) / "curve.png", dpi=150)
    plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a model, or compare two evaluations.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="models/tiny", help="hub name or directory in Hugging Face layout")
    parser.add_argument("--eval", action="append", metavar="NAME[:n[:temperature]]",
                        help="arithmetic:test, a file, or a hub name with :split; completions of each problem (1); temperature "
                             "(0.7, the study's; 0 is greedy). May be repeated. If not given, arithmetic:test")
    parser.add_argument("--problems", type=int, default=0, help="only the first so many of each, 0 for all")
    parser.add_argument("--k", type=int, nargs="+", default=[], help="the k of pass@k and maj@k; powers of 2 if not given")
    parser.add_argument("--max-prompt", type=int, default=2048, help="tokens; longer prompts are dropped, and counted")
    parser.add_argument("--max-new", type=int, default=512, help="tokens of a completion at most")
    parser.add_argument("--template", choices=["auto", "chat", "plain"], default="auto")
    parser.add_argument("--slots", type=int, default=128, help="sequences decoded together")
    parser.add_argument("--kv-gb", type=float, default=4.0, help="memory for keys and values, 1e9 bytes")
    parser.add_argument("--sampler-tp", type=int, default=1, help="ranks of a node that hold one copy of the model together")
    parser.add_argument("--seed", type=int, default=0, help="keys the noise")
    parser.add_argument("--out", type=Path, help="file for the completions, .jsonl; if it has some already, the rest is drawn")
    parser.add_argument("--show", type=int, default=3, help="completions of each to print")
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="report on two --out files, and do nothing else")
    flags = parser.parse_args()
    try:
        if flags.compare:
            return print(compare(*flags.compare))
        run(flags)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"evaluate.py: {error}") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def read_model(directory: Path, config: Config, device: torch.device, t: int) -> Model:
    """The model to sample from, whole, or a part of it on each of t ranks; no rank ever holds more than its share of both."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    check_team(t, dist.get_world_size())
    with torch.device("meta"):
        model, whole = Model(config).to(dtype), Model(config).to(dtype)
    if t == 1:
        return load(model.to_empty(device=device), directory)
    tensor_parallel(model, dist.new_subgroups(t)[0])
    whole = load(shard(whole, make_mesh(device.type), dtype).to_empty(device=device), directory)
    copy_weights(whole, model.to_empty(device=device))
    return model


def run(flags: argparse.Namespace) -> None:
    """The evaluation that the flags ask for: load, resume, draw, print."""
    from transformers import AutoTokenizer

    sources = [Source.read(text) for text in flags.eval or ["arithmetic:test"]]
    if len({s.name for s in sources}) < len(sources):
        raise ValueError("--eval names a source twice; give each once, with its largest n")
    device, directory, config = connect(flags.model)
    rank, world = dist.get_rank(), dist.get_world_size()
    tokenizer, asked = AutoTokenizer.from_pretrained(directory), []
    for source in sources:
        problems = data.load(source.name, split="test")
        endless = isinstance(problems, data.Arithmetic)
        problems = problems[: flags.problems or (500 if endless else None)]
        check_source(source, problems, flags.k)
        asked.append((source, *data.drop_long(problems, tokenizer, flags.max_prompt, flags.template)))
    rows, path = {}, flags.out
    if path:
        digest = blake2b(repr([(s, problems) for s, problems, _ in asked]).encode(), digest_size=8).hexdigest()
        weights = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(directory.glob("*.safetensors"))]
        settings = {"model": flags.model, "weights": blake2b(repr(weights).encode(), digest_size=8).hexdigest(),
                    "eval": [f"{s.name}:{s.n}:{s.temperature:g}" for s in sources], "problems": digest,
                    "max_new": flags.max_new, "template": flags.template, "seed": flags.seed}
        found = [resume(path, settings) if rank == 0 else None]
        dist.broadcast_object_list(found)
        rows = found[0]
        if rows and rank == 0:
            print(f"{path}: {len(rows)} completions are there already")
    model = read_model(directory, config, device, flags.sampler_tp)
    sampler = Sampler(model, stop_tokens(directory, tokenizer), flags.slots, flags.max_prompt + flags.max_new, flags.kv_gb)
    with Grader(workers=max(1, (os.cpu_count() or 2) // (2 * world))) as grader:
        for source, problems, dropped in asked:
            todo = [p for p in problems if not all((source.name, p.index, g) in rows for g in range(source.n))]
            keep = (lambda c, todo=todo, name=source.name: append(path, row(c, todo[c.problem], name))) if path else None
            start = time.perf_counter()
            done = collect(sampler, tokenizer, grader, todo, source.n, flags.max_new, source.temperature, flags.seed,
                           EVALUATION, flags.template, keep)
            seconds = time.perf_counter() - start
            rows |= {(source.name, todo[c.problem].index, c.sample): row(c, todo[c.problem], source.name) for c in done}
            in_order = [rows[source.name, p.index, g] for p in problems for g in range(source.n)]
            if rank == 0:
                result = {"source": source.name, "n": source.n, "temperature": source.temperature}
                print(show(done[: flags.show * source.n : source.n], tokenizer))
                print(report(result | summarise(problems, in_order, source.n, flags.k)))
                print(f"  {dropped} prompts dropped as too long; {sum(len(c.ids) for c in done) / seconds:,.0f} tokens/s"
                      + (f"; {path}" if path else ""))


if __name__ == "__main__":
    main()
