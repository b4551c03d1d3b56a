"""Measure a model: draw n completions of every problem, grade them, and report pass@1 with its
standard error.

    python evaluate.py --model models/tiny --eval arithmetic:test:8:0.7 --out tiny.jsonl
    torchrun --nproc_per_node 8 evaluate.py @recipes/benchmarks.args --model Qwen/Qwen2.5-7B
    python evaluate.py --compare a.jsonl b.jsonl

    pass@1 = mean over problems of c / n, where c of n completions are right
    L      = 1 - pass@1, the test loss
    pass@k = mean over problems of 1 - C(n - c, k) / C(n, k), unbiased (Chen et al. 2021,
             arXiv 2107.03374, eq. 1)
    maj@k  = mean over problems, and blocks of k completions, of whether the most frequent answer
             of the block is right

Standard errors are over problems: the n completions of one problem are not independent, so they are
averaged first (Miller 2024, arXiv 2411.00640), and two models are compared problem by problem. All
evaluations draw with the same noise, so that the difference between two of them comes from the
models, not from sampling noise. The default is the study's: temperature 0.7, one completion of each
problem.

maj@k takes the n // k disjoint blocks of k completions in their order: an unbiased mean in which no
completion is used twice. Two answers agree when each equals the other as a truth; an answer joins
the first group whose first answer it agrees with. Among equally large groups the first begun
wins. A completion without an answer does not vote; a block without a vote is wrong.

--out holds the settings in its first line, then one line for each completion as soon as it is
graded. The same command draws only problems that miss some. All ranks append to the file, so
several machines need a file system with atomic appends."""

import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np
import torch.distributed as dist

import data
from benchmarks import sandbox
from benchmarks.answers import cells
from data import PROMPT
from reward import Grader
from rollout import Completion, Rollout, Sampler, stop_tokens
from runtime.display import printable, show
from runtime.flags import check_numbers, parse
from runtime.ledger import explain
from runtime.parallel import (
    check_tokenizer,
    connect,
    find_weights,
    read_model,
    read_tokenizer,
)

EVALUATION = -1  # the `step` that keys the noise of an evaluation
MOST_COMPLETIONS = 10_000  # of one problem


# ---- What graded completions say -----------------------------------------------------------------


def mean_se(x_P) -> tuple[float, float | None]:
    """The mean over problems and its standard error, None for a single problem.

    x_P: a value for each problem. The standard error is s / sqrt(P), with s^2 the unbiased
    estimate of the variance between problems.
    """
    # <solution id="pass_at_k" points="2">
    x_P = np.asarray(x_P, dtype=float)
    if len(x_P) < 2:
        return float(x_P.mean()), None
    return float(x_P.mean()), float(x_P.std(ddof=1) / len(x_P) ** 0.5)
    # </solution>


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of `count` independent outcomes (Wilson 1927), which has a width
    at 0 and at 1 too."""
    z2 = 1.96**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half_width = (z2 * (share * (1 - share) / count + z2 / (4 * count**2))) ** 0.5 / (
        1 + z2 / count
    )
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def interval(mean: float, se: float | None, count: int) -> tuple[float, float]:
    """The 95% interval of a mean over problems; Wilson's where se is 0 or unknown."""
    if se:
        return mean - 1.96 * se, mean + 1.96 * se
    if not 0 <= mean <= 1:  # a user's reward, the same everywhere, is no share
        return mean, mean
    return wilson(mean, count)


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) as a product, in which nothing overflows and 0 and 1 are exact.

    c of n completions are right, 1 <= k <= n. The chance that k of the n, drawn without putting
    any back, hold a right one.
    """
    # <solution id="pass_at_k" points="4">
    if n - c < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))
    # </solution>


def maj_at_k(
    answers: list[str | None], scores: list[float], k: int, same: Callable[[str, str], bool]
) -> float:
    """The share of the blocks of k completions whose most frequent answer is right (rules in the
    file's docstring).

    same(a, b): whether two answers agree.
    """
    won = []
    for start in range(0, len(answers) - k + 1, k):
        groups = []  # lists of the places of equal answers
        for place in range(start, start + k):
            if answers[place] is None:
                continue
            for group in groups:
                if same(answers[place], answers[group[0]]):
                    group.append(place)
                    break
            else:
                groups.append([place])
        largest = max(groups, key=len, default=None)
        won.append(scores[largest[0]] if largest else 0.0)
    return sum(won) / len(won)


def agreement(grader: Grader) -> Callable[[str, str], bool]:
    """same(a, b) by the grader's workers: symmetric, which equality is not where a truth may be
    rounded."""

    @lru_cache(1 << 16)
    def same(a: str, b: str) -> bool:
        return a == b or all(grader.equal([(a, b), (b, a)]))

    return same


def difficulty_bins(problems: list[data.Problem]) -> list[str]:
    """The bin of every problem: its level if all are whole numbers, else its pass rate, divided at
    0.3 (the study's) and 0.7."""
    known = [p.difficulty for p in problems if p.difficulty is not None]
    levels = all(d >= 1 and d == int(d) for d in known)
    names = []
    for problem in problems:
        d = problem.difficulty
        if d is None:
            names.append("unknown")
        elif levels:
            names.append(f"level {d:g}")
        elif d <= 0.3:
            names.append("pass rate 0.7 to 1")
        elif d <= 0.7:
            names.append("pass rate 0.3 to 0.7")
        else:
            names.append("pass rate below 0.3")
    return names


def by_difficulty(problems: list[data.Problem], pass1_P) -> dict:
    """pass@1 of every bin of difficulty, easiest first; empty if all problems are in one bin."""
    bins = defaultdict(list)
    hardness = {}
    for problem, name, pass1 in zip(problems, difficulty_bins(problems), pass1_P, strict=True):
        bins[name].append(pass1)
        hardness[name] = np.inf if problem.difficulty is None else problem.difficulty
    if len(bins) < 2:
        return {}
    return {
        name: {"problems": len(bins[name]), "pass1": mean_se(bins[name])}
        for name in sorted(bins, key=hardness.get)
    }


def summarise(
    problems: list[data.Problem], rows: list[dict], n: int, grader: Grader, ks: Iterable[int] = ()
) -> dict:
    """The fields of an evaluation, from the rows (Completion.row) of n completions of every
    problem, in order.

    ks: the k of pass@k and maj@k; powers of 2 and n if not given.
    """
    score_PG = np.array([row["score"] for row in rows]).reshape(len(problems), n)
    pass1, se = mean_se(score_PG.mean(1))
    verdicts = [row["verdict"] for row in rows]
    length = [row["length"] for row in rows]
    result = {
        "pass1": pass1,
        "pass1_se": se,
        "pass1_ci": list(interval(pass1, se, len(problems))),
        "test_loss": 1 - pass1,
        "problems": len(problems),
        "samples": len(rows),
        "length": float(np.mean(length)),
        "length_percentiles": {str(q): float(np.percentile(length, q)) for q in (10, 50, 90, 99)},
        "truncated": float(np.mean([not row["finished"] for row in rows])),
        "no_answer": verdicts.count("no_answer") / len(rows),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
    }
    kinds = {problem.kind for problem in problems}
    if n > 1 and set(score_PG.flat) <= {0.0, 1.0}:  # a user's reward may have other values
        ks = ks or sorted({*(2**i for i in range(n.bit_length())), n})
        right_P = score_PG.sum(1)
        result["pass_at_k"] = {}
        for k in ks:
            share_P = [pass_at_k(n, int(c), k) for c in right_P]
            result["pass_at_k"][str(k)] = mean_se(share_P)
        # Tables and programs do not vote, nor do completions that a user's function grades.
        if kinds <= {"math", "choice"} and not grader.reward:
            same = agreement(grader)
            answers = [row["answer"] for row in rows]
            result["maj_at_k"] = {}
            for k in ks:
                majority_P = []
                for p in range(len(problems)):
                    majority_P.append(
                        maj_at_k(answers[p * n : (p + 1) * n], score_PG[p].tolist(), k, same)
                    )
                result["maj_at_k"][str(k)] = mean_se(majority_P)
    if kinds == {"grid"}:
        share_PG = np.array([cells(row["answer"], row["truth"]) for row in rows]).reshape(
            len(problems), n
        )
        result["cells"], result["cells_se"] = mean_se(share_PG.mean(1))
    if difficulty := by_difficulty(problems, score_PG.mean(1)):
        result["difficulty"] = difficulty
    return result


def plus_minus(mean: float, se: float | None, count: int) -> str:
    """A mean with its standard error; with Wilson's interval where all outcomes are the same."""
    if se:
        return f"{mean:.4f} ± {se:.4f}"
    low, high = interval(mean, se, count)
    return f"{mean:.4f}, 95% interval [{low:.3f}, {high:.3f}]"


def report(r: dict) -> str:
    """The fields of an evaluation for people; ± are standard errors over problems."""
    count = r["problems"]
    lines = [
        f"{r['source']}: {count} problems x {r['n']} at temperature {r['temperature']:g}",
        f"  pass@1 {plus_minus(r['pass1'], r['pass1_se'], count)}    test loss "
        f"{r['test_loss']:.4f}",
    ]
    if "cells" in r:
        lines.append(f"  cells  {plus_minus(r['cells'], r['cells_se'], count)}")
    for name in ("pass", "maj"):
        for k, (mean, se) in r.get(f"{name}_at_k", {}).items():
            if k != "1":
                lines.append(f"  {f'{name}@{k}':<6} {plus_minus(mean, se, count)}")
    for name, x in r.get("difficulty", {}).items():
        lines.append(
            f"  pass@1 {plus_minus(*x['pass1'], x['problems'])}    {name}, {x['problems']} problems"
        )
    percentiles = ", ".join(f"{q}% up to {v:.0f}" for q, v in r["length_percentiles"].items())
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in r["verdicts"].items())
    lines += [
        f"  length {r['length']:.1f} tokens on average; {percentiles}",
        f"  truncated {r['truncated']:.1%}, without an answer {r['no_answer']:.1%}; {verdicts}",
    ]
    return "\n".join(lines)


# ---- Drawing and measuring -----------------------------------------------------------------------


@dataclass
class EvaluationSet:
    """What --eval NAME[:n[:temperature]] asks for: n completions of every problem of NAME."""

    name: str
    n: int = 1
    temperature: float = 0.7
    problems: list[data.Problem] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> "EvaluationSet":
        # NAME may hold colons itself (gsm8k:test), so numbers are taken from the end:
        # gsm8k:test:8:0.7
        name, n, temperature = re.fullmatch(
            r"(.*?)(?::(\d+)(?::(\d+\.?\d*|\.\d+))?)?", text, re.S
        ).groups()
        found = cls(
            name, int(n or 1), cls.temperature if temperature is None else float(temperature)
        )
        if not 1 <= found.n <= MOST_COMPLETIONS:
            raise ValueError(
                f"--eval {text}: {found.n} completions of each problem; must be from 1 to "
                f"{MOST_COMPLETIONS:,}"
            )
        if found.temperature and not 1e-3 <= found.temperature <= 100:
            raise ValueError(
                f"--eval {text}: temperature {found.temperature:g}; must be 0 or from 0.001 to 100"
            )
        if found.n > 1 and found.temperature == 0:
            raise ValueError(
                f"--eval {text}: at temperature 0 all {found.n} completions are the same; take 1 "
                "completion, or a "
                "temperature above 0"
            )
        return found

    @property
    def label(self) -> str:
        return self.name or self.problems[0].source

    def check(self, ks: Iterable[int] = ()) -> None:
        """ValueError or sandbox.Refused for an evaluation that cannot be made, before anything is
        drawn."""
        if not self.problems:
            raise ValueError(f"--eval {self.name}: it has no problems")
        if any(not 1 <= k <= self.n for k in ks):
            asked = " ".join(map(str, ks))
            raise ValueError(
                f"--k {asked} with --eval {self.name}:{self.n}: pass@k needs k from 1 to n, the "
                "completions of each "
                f"problem; write {self.name}:{max(ks)}, or another --k"
            )
        if any(problem.kind == "code" for problem in self.problems):
            sandbox.holding(sandbox.Limits())


def check_reward(reward: str, problem: data.Problem) -> None:
    """ValueError if a user's reward function, FILE.py:FUNCTION, fails on an empty completion.

    Later failures count as 0 and are logged as `crashed`; a function that is wrong altogether
    would otherwise look like a model that learns nothing.
    """
    if not reward:
        return
    with Grader(reward=reward) as grader:
        verdict = grader.submit("", problem).result()
    if verdict.verdict in ("crashed", "timeout"):
        raise ValueError(
            f"--reward {reward}: fails on an empty completion ({verdict.rule}); it must return a "
            "number for any (completion, problem), where problem is a dict such as "
            f"{{'answer': {problem.answer[:20]!r}, ..}}"
        )


def parse_sets(texts: list[str]) -> list[EvaluationSet]:
    """The evaluation sets of several --eval; ValueError if one is named twice."""
    sets = [EvaluationSet.parse(text) for text in texts]
    if len({test.name for test in sets}) < len(sets):
        raise ValueError(
            f"--eval names a set twice: {' '.join(texts)}; give each once, with its largest n"
        )
    return sets


@dataclass
class ProblemSets:
    """The problems that a run trains on, and those that it is evaluated on."""

    name: str  # of the training problems: --data
    training: Sequence[data.Problem]
    tests: list[EvaluationSet]
    notes: list[str]  # for the first lines of a run

    def drop_long(self, renderer: data.Renderer, limit: int) -> None:
        """Drop problems whose prompts have more than `limit` tokens, and note how many."""
        self.training, dropped = data.drop_long(self.training, renderer, limit)
        for test in self.tests:
            test.problems, more = data.drop_long(test.problems, renderer, limit)
            dropped += more
        if dropped:
            self.notes.append(f"{dropped:,} prompts over --max-prompt {limit} tokens dropped")

    @property
    def digests(self) -> dict[str, str]:
        """name: digest, of all that a resumed run must find again."""
        found = {self.name: data.digest(self.training)}
        for test in self.tests:
            found[test.name or f"the held-out part of {self.name}"] = data.digest(test.problems)
        return found

    def describe_first(self) -> str:
        return f"{len(self.tests[0].problems)} problems of {self.tests[0].label}"


def load_problems(
    name: str, evals: list[str], eval_problems: int, seed: int, prompt: str
) -> ProblemSets:
    """The training problems and the evaluation sets with their problems.

    evals: the --eval flags. Without any, and for an --eval without a NAME, the set is held out from
    the training data: the test split of the tiny world, or evenly spaced problems of a file, which
    then are not trained on.
    """
    problems, notes = data.load(name, seed=seed, prompt=prompt)
    notes = list(notes)
    tests = parse_sets(evals or [":1:1"])
    for test in tests:
        if test.name or isinstance(problems, data.Arithmetic):
            found, more = data.load(test.name or name, split="test", seed=seed, prompt=prompt)
            test.problems = list(found[:eval_problems])
            notes += more
        else:
            count = max(1, min(eval_problems, len(problems) // 5))
            problems, test.problems = data.split_held_out(problems, count)
            notes.append(f"{name}: {len(problems):,} problems to train on, {count} held out")
        test.check()
    return ProblemSets(name, problems, tests, notes)


def evaluate(
    rollout: Rollout,
    test: EvaluationSet,
    ks: Iterable[int] = (),
    rows: dict | None = None,
    on_graded: Callable[[Completion, data.Problem], None] | None = None,
):
    """-> (the fields of an evaluation, the rows of all completions in order, the completions drawn
    now) (a collective).

    rows: those of an earlier start, by (problem index, sample); problems that miss one are drawn.
    on_graded is called with every completion that this rank grades, as soon as it is graded."""
    rows = dict(rows or {})

    def is_missing(problem: data.Problem) -> bool:
        return any((problem.index, g) not in rows for g in range(test.n))

    missing = [problem for problem in test.problems if is_missing(problem)]

    def graded(completion: Completion) -> None:
        if on_graded:
            on_graded(completion, missing[completion.problem])

    completions = (
        rollout.draw(missing, test.n, test.temperature, EVALUATION, on_graded=graded)
        if missing
        else []
    )
    for completion in completions:
        problem = missing[completion.problem]
        rows[problem.index, completion.sample] = completion.row(problem, test.label)
    in_order = [rows[problem.index, g] for problem in test.problems for g in range(test.n)]
    result = {"source": test.label, "n": test.n, "temperature": test.temperature}
    result |= summarise(test.problems, in_order, test.n, rollout.grader, ks)
    return result, in_order, completions


# ---- The file of an evaluation -------------------------------------------------------------------


def read_rows(path: str | Path) -> tuple[dict, dict[tuple, dict]]:
    """-> (the settings, {(source, problem, sample): row}). A line that a kill has torn is left
    out."""
    parsed = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                parsed.append(json.loads(line))
            except json.JSONDecodeError:
                parsed.append(None)
    if not parsed or not isinstance(parsed[0], dict) or "settings" not in parsed[0]:
        raise ValueError(
            f"{path} is not the file of an evaluation: its first line does not hold the settings"
        )
    rows = {(row["source"], row["problem"], row["sample"]): row for row in parsed[1:] if row}
    return parsed[0]["settings"], rows


def resume(path: Path, settings: dict) -> dict[tuple, dict]:
    """The rows that an evaluation with these settings has already; begins the file if there is
    none.

    ValueError if the file holds an evaluation with other settings.
    """
    if not path.is_file() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        append(path, {"settings": settings})
        return {}
    stored, rows = read_rows(path)
    differences = []
    for name in sorted(settings.keys() | stored.keys()):
        if settings.get(name) != stored.get(name):
            differences.append(f"{name} is {stored.get(name)} there, {settings.get(name)} here")
    if differences:
        raise ValueError(
            f"{path} holds another evaluation, and is not overwritten: {'; '.join(differences)}. "
            "Give another --out"
        )
    if not path.read_bytes().endswith(b"\n"):  # the torn line stays, and is never read
        with open(path, "a") as file:
            file.write("\n")
    return rows


def append(path: Path, line: dict) -> None:
    """One write at the end of the file, so that lines of several ranks of a machine do not mix."""
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def shares(rows: dict[tuple, dict]) -> dict[tuple, float]:
    """The share of right completions of every problem, by (set, place, truth, prompt)."""
    scores = defaultdict(list)
    for (source, problem, _), row in sorted(rows.items()):
        scores[Path(source).name, problem, row["truth"], row["prompt"]].append(row["score"])
    return {key: float(np.mean(values)) for key, values in scores.items()}


def compare(path_a: str, path_b: str, shown: int = 20) -> str:
    """The report on two files: B minus A over the problems of both, paired.

    Gives a 95% interval (Student's t) and the exact sign test on the problems won and lost
    (McNemar's exact test where each problem has one completion)."""
    from scipy.stats import binomtest, t

    settings_a, rows_a = read_rows(path_a)
    settings_b, rows_b = read_rows(path_b)
    lines = []
    for name in ("model", "eval", "max_new", "template", "seed"):
        if settings_a.get(name) != settings_b.get(name):
            lines.append(f"{name}: {settings_a.get(name)} (A), {settings_b.get(name)} (B)")
    share_a, share_b = shares(rows_a), shares(rows_b)
    common = sorted(share_a.keys() & share_b.keys())
    if not common:
        raise ValueError(
            f"{path_a} and {path_b} have no problem in common; evaluate both with the same --eval"
        )
    for source in sorted({key[0] for key in common}):
        keys = [key for key in common if key[0] == source]
        A = np.array([share_a[key] for key in keys])
        B = np.array([share_b[key] for key in keys])
        mean, se = mean_se(B - A)
        half_width = float(t.ppf(0.975, len(keys) - 1)) * se if len(keys) > 1 else float("nan")
        won = [key[1] for key, d in zip(keys, B - A, strict=True) if d > 0]
        lost = [key[1] for key, d in zip(keys, B - A, strict=True) if d < 0]
        p = binomtest(len(won), len(won) + len(lost)).pvalue if won or lost else 1.0
        alone_a = sum(key[0] == source for key in share_a) - len(keys)
        alone_b = sum(key[0] == source for key in share_b) - len(keys)
        lines += [
            f"{source}: {len(keys)} problems in both, {alone_a} in A alone, {alone_b} in B alone",
            f"  pass@1 {A.mean():.4f} (A), {B.mean():.4f} (B)",
            f"  B - A = {mean:+.4f}, 95% interval [{mean - half_width:+.4f}, "
            f"{mean + half_width:+.4f}]",
            f"  B won {len(won)}, lost {len(lost)}, tied {len(keys) - len(won) - len(lost)}; exact "
            f"sign test p = {p:.3g}",
        ]
        for word, places in (("won", won), ("lost", lost)):
            if places:
                ending = ", ..." if len(places) > shown else ""
                lines.append(f"  {word}: {', '.join(map(str, places[:shown]))}{ending}")
    return "\n".join(lines)


# ---- The command ---------------------------------------------------------------------------------


@dataclass
class Flags:
    model: str = "models/tiny"  # hub name, or a directory in Hugging Face layout
    # NAME[:n[:temperature]] (1, 0.7; 0 is greedy), may be repeated; arithmetic:test if not given
    eval: list[str] = field(default_factory=list)
    problems: int = 0  # only the first so many of each set; 0: all
    k: tuple[int, ...] = ()  # the k of pass@k and maj@k; powers of 2, and n, if not given
    prompt: str = PROMPT  # how a problem is asked, with {problem} in it
    # chat template or plain text; auto: chat if the tokenizer has a chat template
    template: Literal["auto", "chat", "plain"] = "auto"
    template_args: list[str] = field(default_factory=list)  # NAME=VALUE for the chat template
    max_prompt: int = 2048  # tokens; longer prompts are dropped and counted
    max_new: int = 512  # tokens of a completion
    # FILE.py:FUNCTION with (completion, problem) -> number; the answer checker if not given
    reward: str = ""
    slots: int = 128  # sequences decoded together on one rank
    kv_gb: float = 4.0  # memory of the KV cache on one rank, 1e9 bytes
    sampler_tp: int = 1  # ranks of a node that share one copy of the model
    seed: int = 0  # keys the noise
    out: str = ""  # file for the completions, .jsonl; only problems that miss some are drawn
    show: int = 3  # completions of each set to print
    compare: tuple[str, str] | None = None  # two files of --out: compare them, and do nothing else


ANY = float("inf")
RANGES = {  # lowest and highest value of every number
    "problems": (0, ANY), "max_prompt": (1, ANY), "max_new": (1, ANY), "slots": (1, ANY),
    "kv_gb": (1e-6, ANY), "sampler_tp": (1, ANY), "seed": (-(2**63), 2**63 - 1), "show": (0, ANY),
}  # fmt: skip


def digest_weights(directory: Path) -> str:
    """A short digest of names, sizes and times of the weight files."""
    files = sorted(directory.glob("*.safetensors"))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return blake2b(repr(stats).encode(), digest_size=8).hexdigest()


def main(flags: Flags) -> None:
    if flags.compare:
        return print(printable(compare(*flags.compare)))
    check_numbers(flags, RANGES)
    sets = parse_sets(flags.eval or ["arithmetic:test"])
    device, directory, config = connect(flags.model)
    rank, world = dist.get_rank(), dist.get_world_size()
    tokenizer = read_tokenizer(directory)
    check_tokenizer(tokenizer, config)
    find_weights(directory, config)
    renderer = data.Renderer(tokenizer, flags.template, flags.template_args)
    for test in sets:
        problems, notes = data.load(test.name, split="test", prompt=flags.prompt)
        endless = isinstance(problems, data.Arithmetic)
        problems = problems[: flags.problems or (500 if endless else None)]
        test.problems, dropped = data.drop_long(problems, renderer, flags.max_prompt)
        test.check(flags.k)
        if dropped:
            notes = [
                *notes,
                f"{test.label}: {dropped} prompts over --max-prompt {flags.max_prompt} tokens "
                "dropped",
            ]
        if rank == 0 and notes:
            print("\n".join(notes))
    check_reward(flags.reward, sets[0].problems[0])
    if rank == 0:
        print(renderer.describe())

    rows = {}
    path = Path(flags.out)
    if flags.out:
        settings = {
            "model": flags.model,
            "weights": digest_weights(directory),
            "eval": [f"{test.name}:{test.n}:{test.temperature:g}" for test in sets],
            "problems": [data.digest(test.problems) for test in sets],
            "seed": flags.seed,
        }
        for name in ("max_new", "template", "template_args", "reward"):
            settings[name] = getattr(flags, name)
        found = [resume(path, settings) if rank == 0 else None]
        dist.broadcast_object_list(found)
        rows = found[0]
        if rows and rank == 0:
            print(f"{path}: {len(rows)} completions are there already")

    model = read_model(directory, config, device, flags.sampler_tp)
    stop_ids = stop_tokens(directory, tokenizer, renderer.end_token)
    sampler = Sampler(model, stop_ids, flags.slots, flags.max_prompt + flags.max_new, flags.kv_gb)
    graders = max(1, (os.cpu_count() or 2) // (2 * world))
    with Grader(graders, reward=flags.reward) as grader:
        rollout = Rollout(sampler, renderer, grader, flags.max_new, flags.seed)
        for test in sets:
            known = {
                (problem, sample): row
                for (source, problem, sample), row in rows.items()
                if source == test.label
            }

            def keep(
                completion: Completion, problem: data.Problem, label: str = test.label
            ) -> None:
                if flags.out:
                    append(path, completion.row(problem, label))

            start = time.perf_counter()
            result, _, completions = evaluate(rollout, test, flags.k, known, keep)
            seconds = time.perf_counter() - start
            if rank == 0:
                print(show(completions[: flags.show * test.n : test.n], tokenizer))
                print(report(result))
                new = sum(len(c.ids) for c in completions)
                print(f"  {new / seconds:,.0f} tokens/s" + (f"; {path}" if flags.out else ""))


if __name__ == "__main__":
    explain(
        lambda: main(parse(Flags, sys.argv[1:], "Evaluate a model, or compare two evaluations."))
    )
