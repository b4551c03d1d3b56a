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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
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
MOST_NAMED = 20  # problems that a comparison names as won, or as lost

Rows = dict[tuple, dict]  # (source, problem, sample): row
Agreement = Callable[[str, str], bool]  # whether two answers agree


# ---- What graded completions say -----------------------------------------------------------------


def mean_se(x_P) -> tuple[float, float | None]:
    """The mean over problems and its standard error, None for a single problem.

    x_P: a value for each problem. The standard error is s / sqrt(P), with s^2 the unbiased
    estimate of the variance between problems.
    """
    # <solution id="pass_at_k" points="2">
    x_P = np.asarray(x_P, dtype=float)
    mean = float(x_P.mean())
    if len(x_P) < 2:
        return mean, None
    s = x_P.std(ddof=1)
    return mean, float(s / len(x_P) ** 0.5)
    # </solution>


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of `count` independent outcomes (Wilson 1927), which has a width
    at 0 and at 1 too."""
    z2 = 1.96**2
    widening = 1 + z2 / count
    centre = (share + z2 / (2 * count)) / widening
    variance = share * (1 - share) / count + z2 / (4 * count**2)
    half_width = (z2 * variance) ** 0.5 / widening
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
    left = np.arange(n - c + 1, n + 1)
    return 1.0 - float(np.prod(1.0 - k / left))
    # </solution>


def majority(answers: Sequence, scores: Sequence[float], same: Agreement) -> float:
    """The score of the most frequent answer of a block; 0 if none of its completions votes."""
    votes = Counter()  # place of the first answer of a group: its size
    for place, answer in enumerate(answers):
        if answer is not None:
            agreeing = (first for first in votes if same(answer, answers[first]))
            votes[next(agreeing, place)] += 1
    if not votes:
        return 0.0
    # Among equally large groups this is the first that was begun.
    ((winner, _),) = votes.most_common(1)
    return scores[winner]


def maj_at_k(answers: Sequence, scores: Sequence[float], k: int, same: Agreement) -> float:
    """The share of the blocks of k completions whose most frequent answer is right.

    answers: texts, None where a completion has no answer. The rules are in the file's docstring.
    """
    won = []
    for start in range(0, len(answers) - k + 1, k):
        block = slice(start, start + k)
        won.append(majority(answers[block], scores[block], same))
    return sum(won) / len(won)


def agreement(grader: Grader) -> Agreement:
    """Agreement by the grader's workers: symmetric, which equality is not where a truth may be
    rounded."""

    @lru_cache(1 << 16)
    def same(a: str, b: str) -> bool:
        if a == b:
            return True
        return all(grader.equal([(a, b), (b, a)]))

    return same


def difficulty_bins(problems: list[data.Problem]) -> list[str]:
    """The bin of every problem: its level if all are whole numbers, else its pass rate, divided at
    0.3 (the study's) and 0.7."""
    known = [p.difficulty for p in problems if p.difficulty is not None]
    levels = all(d >= 1 and d.is_integer() for d in known)
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
    names = difficulty_bins(problems)
    for problem, name, pass1 in zip(problems, names, pass1_P, strict=True):
        bins[name].append(pass1)
        hardness[name] = data.hardness(problem)
    if len(bins) < 2:
        return {}
    result = {}
    for name in sorted(bins, key=hardness.get):
        pass1s = bins[name]
        result[name] = {"problems": len(pass1s), "pass1": mean_se(pass1s)}
    return result


def pass_by_k(score_PG, ks: Iterable[int]) -> dict[str, tuple]:
    """{k: pass@k and its standard error}"""
    _, n = score_PG.shape
    found = {}
    for k in ks:
        pass_P = [pass_at_k(n, int(right), k) for right in score_PG.sum(1)]
        found[str(k)] = mean_se(pass_P)
    return found


def maj_by_k(answer_PG, score_PG, ks: Iterable[int], same: Agreement) -> dict[str, tuple]:
    """{k: maj@k and its standard error}"""
    found = {}
    for k in ks:
        pairs = zip(answer_PG, score_PG, strict=True)
        maj_P = [maj_at_k(answer_G, score_G, k, same) for answer_G, score_G in pairs]
        found[str(k)] = mean_se(maj_P)
    return found


def summarise(
    problems: list[data.Problem], rows: list[dict], n: int, grader: Grader, ks: Iterable[int] = ()
) -> dict:
    """The fields of an evaluation, from the rows (Completion.row) of n completions of every
    problem, in order.

    ks: the k of pass@k and maj@k; powers of 2 and n if not given.
    """
    P = len(problems)

    def column(name: str) -> list:
        return [row[name] for row in rows]

    score_PG = np.reshape(column("score"), (P, n))
    pass1_P = score_PG.mean(1)
    pass1, se = mean_se(pass1_P)
    lengths = column("length")
    percentiles = {str(q): float(np.percentile(lengths, q)) for q in (10, 50, 90, 99)}
    verdicts = Counter(column("verdict"))
    result = {
        "pass1": pass1,
        "pass1_se": se,
        "pass1_ci": interval(pass1, se, P),
        "test_loss": 1 - pass1,
        "problems": P,
        "samples": len(rows),
        "length": float(np.mean(lengths)),
        "length_percentiles": percentiles,
        "truncated": column("finished").count(False) / len(rows),
        "no_answer": verdicts["no_answer"] / len(rows),
        "verdicts": dict(sorted(verdicts.items())),
    }
    kinds = {problem.kind for problem in problems}
    # A user's reward may have other values, of which there is no share.
    if n > 1 and set(score_PG.flat) <= {0.0, 1.0}:
        powers = [2**i for i in range(n.bit_length())]
        ks = ks or sorted({*powers, n})
        result["pass_at_k"] = pass_by_k(score_PG, ks)
        # Tables and programs do not vote, nor do completions that a user's function grades.
        if kinds <= {"math", "choice"} and not grader.reward:
            answers = np.array(column("answer"), object)
            answer_PG = answers.reshape(P, n)
            result["maj_at_k"] = maj_by_k(answer_PG, score_PG, ks, agreement(grader))
    if kinds == {"grid"}:
        shares = list(map(cells, column("answer"), column("truth")))
        share_PG = np.reshape(shares, (P, n))
        result["cells"], result["cells_se"] = mean_se(share_PG.mean(1))
    if difficulty := by_difficulty(problems, pass1_P):
        result["difficulty"] = difficulty
    return result


def estimate(name: str, mean: float, se: float | None, count: int) -> str:
    """A mean with its standard error; with Wilson's interval where all outcomes are the same."""
    low, high = interval(mean, se, count)
    spread = f" ± {se:.4f}" if se else f", 95% interval [{low:.3f}, {high:.3f}]"
    return f"  {name:<6} {mean:.4f}{spread}"


def report(r: dict) -> str:
    """The fields of an evaluation for people; ± are standard errors over problems."""
    P = r["problems"]
    lines = [
        f"{r['source']}: {P} problems x {r['n']} at temperature {r['temperature']:g}",
        estimate("pass@1", r["pass1"], r["pass1_se"], P),
    ]
    if "cells" in r:
        lines.append(estimate("cells", r["cells"], r["cells_se"], P))
    for name in ("pass", "maj"):
        for k, (mean, se) in r.get(f"{name}_at_k", {}).items():
            if k != "1":
                lines.append(estimate(f"{name}@{k}", mean, se, P))
    for name, found in r.get("difficulty", {}).items():
        count = found["problems"]
        pass1 = estimate("pass@1", *found["pass1"], count)
        lines.append(f"{pass1}    {name}, {count} problems")
    percentiles = [f"{q}% up to {v:.0f}" for q, v in r["length_percentiles"].items()]
    verdicts = [f"{count} {verdict}" for verdict, count in r["verdicts"].items()]
    lines += [
        f"  length {r['length']:.1f} tokens; {', '.join(percentiles)}",
        f"  truncated {r['truncated']:.1%}; {', '.join(verdicts)}",
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
        # NAME may hold colons itself, so the numbers are taken from the end: gsm8k:test:8:0.7
        match = re.fullmatch(r"(.*?)(?::(\d+)(?::(\d+\.?\d*|\.\d+))?)?", text, re.S)
        name, n, temperature = match.groups()
        if re.search(r":-?[\d.]+$", name):
            raise ValueError(
                f"--eval {text}: of NAME:n:temperature, n must be a whole number and temperature a "
                "number that is at least 0"
            )
        n = int(n or cls.n)
        temperature = float(temperature or cls.temperature)
        if not 1 <= n <= MOST_COMPLETIONS:
            raise ValueError(
                f"--eval {text}: {n} completions of each problem; must be from 1 to "
                f"{MOST_COMPLETIONS:,}"
            )
        if temperature and not 1e-3 <= temperature <= 100:
            raise ValueError(
                f"--eval {text}: temperature {temperature:g}; must be 0 or from 0.001 to 100"
            )
        if n > 1 and not temperature:
            raise ValueError(
                f"--eval {text}: at temperature 0 all {n} completions are the same; take 1 "
                "completion, or a temperature above 0"
            )
        return cls(name, n, temperature)

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
                f"completions of each problem; write {self.name}:{max(ks)}, or another --k"
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
    if ":" not in reward:
        raise ValueError(f"--reward {reward}: names no function; give {reward}:FUNCTION")
    with Grader(reward=reward) as grader:
        verdict = grader.submit("", problem).result()
    if "did not start" in verdict.rule:
        raise ValueError(f"--reward {reward}: the file cannot be loaded, as said above; mend it")
    if verdict.verdict in ("crashed", "timeout"):
        raise ValueError(
            f"--reward {reward}: fails on an empty completion ({verdict.rule}); it must return a "
            "number for any (completion, problem), where problem is a dict such as "
            "{'answer': '42', ..}"
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
            name = test.name or f"the held-out part of {self.name}"
            found[name] = data.digest(test.problems)
        return found

    def describe_first(self) -> str:
        first = self.tests[0]
        count = len(first.problems)
        return f"{count} problems of {first.label}, at temperature {first.temperature:g}"


def load_problems(
    name: str, evals: list[str], eval_problems: int, seed: int, prompt: str
) -> ProblemSets:
    """The training problems and the evaluation sets with their problems.

    evals: the --eval flags. Without any, and for an --eval without a NAME, the set is held out from
    the training data: the test split of the tiny world, or evenly spaced problems of a file, which
    then are not trained on.
    """
    problems, notes = data.load(name, seed=seed, prompt=prompt)
    tests = parse_sets(evals or [":1:1"])
    for test in tests:
        if test.name:
            found, more = data.load(test.name, split="test", seed=seed, prompt=prompt)
            test.problems = list(found[:eval_problems])
            notes += more
        else:
            problems, test.problems = data.split_held_out(problems, eval_problems)
            if not isinstance(problems, data.Arithmetic):
                sizes = f"{len(problems):,} problems to train on, {len(test.problems)} held out"
                notes.append(f"{name}: {sizes}")
        test.check()
    return ProblemSets(name, problems, tests, notes)


def evaluate(
    rollout: Rollout,
    test: EvaluationSet,
    ks: Iterable[int] = (),
    known: Rows | None = None,
    on_row: Callable[[dict], None] | None = None,
) -> tuple[dict, list[dict], list[Completion]]:
    """-> (the fields of an evaluation, the rows of all completions in order, the completions drawn
    now) (a collective).

    known: rows of an earlier start; problems that miss one are drawn. on_row: called with the row
    of every completion that this rank grades, once it is graded.
    """
    rows = {}
    for (source, index, g), row in (known or {}).items():
        if source == test.label:
            rows[index, g] = row
    keys = [(problem.index, g) for problem in test.problems for g in range(test.n)]
    incomplete = {index for index, _ in set(keys) - rows.keys()}
    missing = [problem for problem in test.problems if problem.index in incomplete]

    def row_of(completion: Completion) -> dict:
        return completion.row(missing[completion.place], test.label)

    def graded(completion: Completion) -> None:
        if on_row:
            on_row(row_of(completion))

    completions = rollout.draw(missing, test.n, test.temperature, EVALUATION, on_graded=graded)
    for row in map(row_of, completions):
        rows[row["problem"], row["sample"]] = row
    in_order = [rows[key] for key in keys]
    result = {"source": test.label, "n": test.n, "temperature": test.temperature}
    result |= summarise(test.problems, in_order, test.n, rollout.grader, ks)
    return result, in_order, completions


# ---- The file of an evaluation -------------------------------------------------------------------


def read_rows(path: str | Path) -> tuple[dict, Rows]:
    """-> (the settings, the rows). A line that a kill has torn is left out."""
    lines = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    match lines:
        case [{"settings": settings}, *found]:
            rows = {}
            for row in found:
                rows[row["source"], row["problem"], row["sample"]] = row
            return settings, rows
    raise ValueError(
        f"{path} is not the file of an evaluation: its first line does not hold the settings"
    )


def resume(path: Path, settings: dict) -> Rows:
    """The rows that an evaluation with these settings has already; begins the file if there is
    none.

    ValueError if the file holds an evaluation with other settings.
    """
    content = path.read_bytes() if path.is_file() else b""
    if not content:
        path.parent.mkdir(parents=True, exist_ok=True)
        append(path, {"settings": settings})
        return {}
    stored, rows = read_rows(path)
    differences = []
    for name in sorted(settings.keys() | stored.keys()):
        there, here = stored.get(name), settings.get(name)
        if there != here:
            differences.append(f"{name} is {there} there, {here} here")
    if differences:
        raise ValueError(
            f"{path} holds another evaluation, and is not overwritten: {'; '.join(differences)}. "
            "Give another --out"
        )
    if not content.endswith(b"\n"):  # the torn line stays, and is never read
        with open(path, "a") as file:
            file.write("\n")
    return rows


def append(path: Path, line: dict) -> None:
    """One write at the end of the file, so that lines of several ranks of a machine do not mix."""
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


Scores = dict[tuple, list[float]]  # (place, truth, prompt) of a problem: of its completions


def scores_by_set(rows: Rows) -> dict[str, Scores]:
    scores = defaultdict(dict)
    for (source, place, _), row in sorted(rows.items()):
        problem = place, row["truth"], row["prompt"]
        scores[Path(source).name].setdefault(problem, []).append(row["score"])
    return scores


def compare(path_a: str, path_b: str) -> str:
    """The report on two files: B minus A over the problems of both, paired."""
    settings_a, rows_a = read_rows(path_a)
    settings_b, rows_b = read_rows(path_b)
    lines = []
    for name in ("model", "eval", "max_new", "template", "seed"):
        a, b = settings_a.get(name), settings_b.get(name)
        if a != b:
            lines.append(f"{name}: {a} (A), {b} (B)")
    scores_a, scores_b = scores_by_set(rows_a), scores_by_set(rows_b)
    compared = []
    for source in sorted(scores_a.keys() & scores_b.keys()):
        compared += compare_set(source, scores_a[source], scores_b[source])
    if not compared:
        raise ValueError(
            f"{path_a} and {path_b} have no problem in common; evaluate both with the same --eval"
        )
    return "\n".join(lines + compared)


def compare_set(source: str, scores_a: Scores, scores_b: Scores) -> list[str]:
    """The lines about one set; none if no problem is in both.

    They give a 95% interval (Student's t) and the exact sign test on the problems won and lost
    (McNemar's exact test where each problem has one completion)."""
    from scipy.stats import binomtest, t

    common = sorted(scores_a.keys() & scores_b.keys())
    P = len(common)
    if not P:
        return []
    a_P = np.array([np.mean(scores_a[problem]) for problem in common])
    b_P = np.array([np.mean(scores_b[problem]) for problem in common])
    gain_P = b_P - a_P
    mean, se = mean_se(gain_P)
    half_width = t.ppf(0.975, P - 1) * (se or 0)  # nan for a single problem
    low = mean - half_width
    high = mean + half_width
    place_P = np.array([place for place, _, _ in common])
    won = place_P[gain_P > 0]
    lost = place_P[gain_P < 0]
    decided = len(won) + len(lost)
    tied = P - decided
    p = binomtest(len(won), decided).pvalue if decided else 1.0
    alone_a = len(scores_a) - P
    alone_b = len(scores_b) - P
    lines = [
        f"{source}: {P} problems in both, {alone_a} in A alone, {alone_b} in B alone",
        f"  pass@1 {a_P.mean():.4f} (A), {b_P.mean():.4f} (B)",
        f"  B - A = {mean:+.4f}, 95% interval [{low:+.4f}, {high:+.4f}]",
        f"  B won {len(won)}, lost {len(lost)}, tied {tied}; exact sign test p = {p:.3g}",
    ]
    for word, places in (("problems won", won), ("problems lost", lost)):
        if len(places):
            named = ", ".join(map(str, places[:MOST_NAMED]))
            more = ", ..." if len(places) > MOST_NAMED else ""
            lines.append(f"  {word}: {named}{more}")
    return lines


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
    "problems": (0, ANY),
    "max_prompt": (1, ANY),
    "max_new": (1, ANY),
    "slots": (1, ANY),
    "kv_gb": (1e-6, ANY),
    "sampler_tp": (1, ANY),
    "seed": (-(2**63), 2**63 - 1),
    "show": (0, ANY),
}


def digest_weights(directory: Path) -> str:
    """A short digest of names, sizes and times of the weight files."""
    files = sorted(directory.glob("*.safetensors"))
    stats = []
    for file in files:
        stat = file.stat()
        stats.append((file.name, stat.st_size, stat.st_mtime_ns))
    return blake2b(repr(stats).encode(), digest_size=8).hexdigest()


def read_problems(test: EvaluationSet, flags: Flags, renderer: data.Renderer) -> list[str]:
    """Give a set its problems; returns what is to be said of them."""
    problems, notes = data.load(test.name, split="test", prompt=flags.prompt)
    whole = 500 if isinstance(problems, data.Arithmetic) else None  # of the endless stream
    problems = problems[: flags.problems or whole]
    limit = flags.max_prompt
    test.problems, dropped = data.drop_long(problems, renderer, limit)
    test.check(flags.k)
    if dropped:
        notes.append(f"{test.label}: {dropped} prompts over --max-prompt {limit} tokens dropped")
    return notes


def settings_of(flags: Flags, sets: list[EvaluationSet], directory: Path) -> dict:
    """What the completions in a file depend on."""
    return {
        "model": flags.model,
        "weights": digest_weights(directory),
        "eval": [f"{test.name}:{test.n}:{test.temperature:g}" for test in sets],
        "problems": [data.digest(test.problems) for test in sets],
        "seed": flags.seed,
        "max_new": flags.max_new,
        "template": flags.template,
        "template_args": flags.template_args,
        "reward": flags.reward,
    }


def main(flags: Flags) -> None:
    if flags.compare:
        return print(printable(compare(*flags.compare)))
    check_numbers(flags, RANGES)
    sets = parse_sets(flags.eval or ["arithmetic:test"])
    device, directory, config = connect(flags.model)
    rank, world = dist.get_rank(), dist.get_world_size()
    say = print if rank == 0 else lambda *_: None
    tokenizer = read_tokenizer(directory)
    check_tokenizer(tokenizer, config)
    find_weights(directory, config)

    # The problems, and how they are asked.
    renderer = data.Renderer(tokenizer, flags.template, flags.template_args)
    for test in sets:
        for note in read_problems(test, flags, renderer):
            say(note)
    check_reward(flags.reward, sets[0].problems[0])
    say(renderer.describe())

    # The completions of an earlier start.
    path = Path(flags.out)
    known = {}
    if flags.out:
        found = [None]
        if rank == 0:
            found = [resume(path, settings_of(flags, sets, directory))]
        dist.broadcast_object_list(found)
        (known,) = found
    if known:
        say(f"{path}: {len(known)} completions are there already")

    # Draw what is missing, and measure.
    model = read_model(directory, config, device, flags.sampler_tp)
    stop_ids = stop_tokens(directory, tokenizer, renderer.end_token)
    longest = flags.max_prompt + flags.max_new
    sampler = Sampler(model, stop_ids, flags.slots, longest, flags.kv_gb)
    keep = partial(append, path) if flags.out else None
    processors = os.cpu_count() or 2
    graders = max(1, processors // (2 * world))
    with Grader(graders, reward=flags.reward) as grader:
        rollout = Rollout(sampler, renderer, grader, flags.max_new, flags.seed)
        for test in sets:
            result, _, completions = evaluate(rollout, test, flags.k, known, keep)
            first = [c for c in completions if c.sample == 0]
            say(show(first[: flags.show], tokenizer))
            say(report(result))


if __name__ == "__main__":
    description = "Evaluate a model, or compare two evaluations."
    explain(lambda: main(parse(Flags, sys.argv[1:], description)))
