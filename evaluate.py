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
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch.distributed as dist

import data
from benchmarks import sandbox
from benchmarks.answers import cells
from reward import Grader, equal
from rollout import Completion, Sampler, collect, row, stop_tokens
from runtime.ledger import show
from runtime.parallel import connect, read_model

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


# ---- What graded completions say ------------------------------------------------------------------------------------


def mean_se(x_P) -> tuple[float, float | None]:
    """Mean over problems and its standard error, None for a single problem."""
    x_P = np.asarray(x_P, dtype=float)
    return float(x_P.mean()), float(x_P.std(ddof=1) / len(x_P) ** 0.5) if len(x_P) > 1 else None


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k), as a product of k / i: nothing overflows, and 0 and 1 are exact."""
    return 1.0 if n - c < k else 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


@lru_cache(1 << 16)
def same(a: str, b: str) -> bool:
    """Whether each of two answers equals the other as a truth: symmetric, which `equal` is not where truths are rounded."""
    return equal(a, b) and equal(b, a)


def maj_at_k(answers: list[str | None], scores: list[float], k: int) -> float:
    """The share of the blocks of k completions whose most frequent answer is right (rules in the file's docstring)."""
    won = []
    for start in range(0, len(answers) - k + 1, k):
        groups = []  # [places of its completions]
        for i in range(start, start + k):
            if answers[i] is not None:
                home = next((g for g in groups if same(answers[i], answers[g[0]])), None)
                groups.append([i]) if home is None else home.append(i)
        won.append(scores[max(groups, key=len)[0]] if groups else 0.0)
    return sum(won) / len(won)


def difficulty_bins(problems: list[data.Problem]) -> list[str]:
    """The bin of every problem: its level where all are whole, else its pass rate, cut at 0.3, as in the study, and 0.7."""
    known = [p.difficulty for p in problems if p.difficulty is not None]
    levels = all(d >= 1 and d == int(d) for d in known)

    def name(d: float | None) -> str:
        if d is None or levels:
            return "unknown" if d is None else f"level {d:g}"
        return "pass rate " + ("0.7 to 1" if d <= 0.3 else "0.3 to 0.7" if d <= 0.7 else "below 0.3")

    return [name(p.difficulty) for p in problems]


def summarise(problems: list[data.Problem], rows: list[dict], n: int, ks: Iterable[int] = ()) -> dict:
    """The fields of an evaluation, from the rows (see `row`) of n completions of every problem, in the problems' order."""
    score_PG = np.array([r["score"] for r in rows]).reshape(len(problems), n)
    pass1, se = mean_se(score_PG.mean(1))
    verdicts, length = [r["verdict"] for r in rows], [r["length"] for r in rows]
    result = {
        "pass1": pass1, "pass1_se": se, "loss": 1 - pass1, "problems": len(problems), "samples": len(rows),
        "length": float(np.mean(length)),
        "length_percentiles": {str(q): float(np.percentile(length, q)) for q in (10, 50, 90, 99)},
        "truncated": float(np.mean([not r["finished"] for r in rows])), "no_answer": verdicts.count("no_answer") / len(rows),
        "verdicts": {v: verdicts.count(v) for v in sorted(set(verdicts))},
    }
    if n > 1:
        answers = [[r["answer"] for r in rows[i : i + n]] for i in range(0, len(rows), n)]
        voting = all(p.kind in ("math", "choice") for p in problems)  # tables and programs do not vote
        for k in ks or sorted({*(2**i for i in range(n.bit_length())), n}):
            result.setdefault("pass_at_k", {})[str(k)] = mean_se([pass_at_k(n, int(c), k) for c in score_PG.sum(1)])
            if voting:
                majority = [maj_at_k(a, s.tolist(), k) for a, s in zip(answers, score_PG, strict=True)]
                result.setdefault("maj_at_k", {})[str(k)] = mean_se(majority)
    if all(p.kind == "grid" for p in problems):
        share_P = np.array([cells(r["answer"], r["truth"]) for r in rows]).reshape(len(problems), n).mean(1)
        result["cells"], result["cells_se"] = mean_se(share_P)
    bins = defaultdict(list)
    named = zip(problems, difficulty_bins(problems), score_PG.mean(1), strict=True)
    for _, name, share in sorted(named, key=lambda x: np.inf if x[0].difficulty is None else x[0].difficulty):
        bins[name].append(share)
    if len(bins) > 1:
        result["difficulty"] = {name: {"problems": len(x), "pass1": mean_se(x)} for name, x in bins.items()}
    return result


def report(result: dict) -> str:
    """The fields of an evaluation for people; ± are standard errors over problems."""

    def pm(value) -> str:
        return f"{value[0]:.4f}" + ("" if value[1] is None else f" ± {value[1]:.4f}")

    r, at = result, result["length_percentiles"]
    lines = [f"{r['source']}: {r['problems']} problems x {r['n']} at temperature {r['temperature']:g}",
             f"  pass@1 {pm((r['pass1'], r['pass1_se']))}    loss {r['loss']:.4f}"]
    lines += [f"  cells  {pm((r['cells'], r['cells_se']))}"] if "cells" in r else []
    lines += [f"  {f'{name}@{k}':<6} {pm(value)}" for name in ("pass", "maj") for k, value in r.get(f"{name}_at_k", {}).items()
              if k != "1"]
    lines += [f"  pass@1 {pm(x['pass1'])}    {name}, {x['problems']} problems" for name, x in r.get("difficulty", {}).items()]
    lines += [f"  length {r['length']:.1f} tokens on average; " + ", ".join(f"{q}% up to {v:.0f}" for q, v in at.items()),
              f"  truncated {r['truncated']:.1%}, without an answer {r['no_answer']:.1%}; "
              + ", ".join(f"{count} {v}" for v, count in r["verdicts"].items())]
    return "\n".join(lines)


# ---- The file of an evaluation ------------------------------------------------------------------------------------


def read_rows(path: str | Path) -> tuple[dict, dict[tuple, dict]]:
    """-> (the settings, {(source, problem, sample): row}). A line that a kill has torn is left out."""
    with open(path, encoding="utf-8") as lines:
        parsed = []
        for line in lines:
            try:
                parsed.append(json.loads(line))
            except json.JSONDecodeError:
                parsed.append(None)
    if not parsed or not isinstance(parsed[0], dict) or "settings" not in parsed[0]:
        raise ValueError(f"{path} is not the file of an evaluation: its first line does not hold the settings")
    rows = {(r["source"], r["problem"], r["sample"]): r for r in parsed[1:] if r}
    return parsed[0]["settings"], rows


def resume(path: Path, settings: dict) -> dict[tuple, dict]:
    """The rows that an evaluation with these settings has already; begins the file if there is none. ValueError for others."""
    if not path.is_file() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        append(path, {"settings": settings})
        return {}
    stored, rows = read_rows(path)
    if other := [k for k in settings.keys() | stored.keys() if settings.get(k) != stored.get(k)]:
        raise ValueError(f"{path} holds another evaluation, and is not overwritten: " + "; ".join(
            f"{k} is {stored.get(k)} there, {settings.get(k)} here" for k in sorted(other)) + ". Give another --out")
    if not path.read_bytes().endswith(b"\n"):  # the torn line stays, and is never read
        with open(path, "a") as file:
            file.write("\n")
    return rows


def append(path: Path, line: dict) -> None:
    """One write at the end of the file, so that lines of several ranks of a machine do not mix."""
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def compare(a: str, b: str, shown: int = 20) -> str:
    """The report on two files: B less A over the problems of both, paired, with a 95% interval (Student's t) and the exact sign
    test on the problems won and lost (for one completion each, McNemar's exact test)."""
    from scipy.stats import binomtest, t

    (settings_a, rows_a), (settings_b, rows_b) = read_rows(a), read_rows(b)
    lines = [f"{k}: {settings_a.get(k)} (A), {settings_b.get(k)} (B)" for k in ("model", "eval", "max_new", "template", "seed")
             if settings_a.get(k) != settings_b.get(k)]
    shares = []
    for rows in (rows_a, rows_b):
        scores = defaultdict(list)
        for (source, problem, _), r in sorted(rows.items()):
            scores[Path(source).name, problem, r["truth"], r["prompt"]].append(r["score"])
        shares.append({key: np.mean(s) for key, s in scores.items()})
    common = sorted(shares[0].keys() & shares[1].keys())
    if not common:
        raise ValueError(f"{a} and {b} have no problem in common; evaluate both with the same --eval")
    for source in sorted({key[0] for key in common}):
        keys = [key for key in common if key[0] == source]
        A, B = (np.array([side[key] for key in keys]) for side in shares)
        mean, se = mean_se(B - A)
        half = float(t.ppf(0.975, len(keys) - 1)) * se if len(keys) > 1 else float("nan")
        won, lost = ([key[1] for key, d in zip(keys, B - A, strict=True) if sign * d > 0] for sign in (1, -1))
        p = binomtest(len(won), len(won) + len(lost)).pvalue if won or lost else 1.0
        alone = [sum(key[0] == source for key in side) - len(keys) for side in shares]
        lines += [f"{source}: {len(keys)} problems in both, {alone[0]} in A alone, {alone[1]} in B alone",
                  f"  pass@1 {A.mean():.4f} (A), {B.mean():.4f} (B): B - A = {mean:+.4f}, 95% interval "
                  f"[{mean - half:+.4f}, {mean + half:+.4f}]",
                  f"  B won {len(won)}, lost {len(lost)}, tied {len(keys) - len(won) - len(lost)}; exact sign test p = {p:.3g}"]
        for word, which in (("won", won), ("lost", lost)):
            lines += [f"  {word}: {', '.join(map(str, which[:shown]))}{', ...' * (len(which) > shown)}"] if which else []
    return "\n".join(lines)


# ---- Drawing and measuring ----------------------------------------------------------------------------------------


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


def evaluate(sampler: Sampler, tokenizer, grader: Grader, problems: list[data.Problem], source: Source, max_new: int, seed: int,
             template: str = "auto") -> tuple[dict, list[Completion]]:
    """-> (the fields of an evaluation line of metrics.jsonl, the completions). A collective."""
    done = collect(sampler, tokenizer, grader, problems, source.n, max_new, source.temperature, seed, EVALUATION, template)
    name = source.name or problems[0].source
    result = summarise(problems, [row(c, problems[c.problem], name) for c in done], source.n)
    return {"source": name, "n": source.n, "temperature": source.temperature, **result}, done


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
