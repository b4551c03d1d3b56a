"""What graded completions say: pass@1, pass@k, maj@k with standard errors; and the file that keeps them, resumed and compared.

    pass@1 = mean over problems of c / n, c of n completions being right;   test loss L = 1 - pass@1
    pass@k = mean over problems of 1 - C(n - c, k) / C(n, k)      (unbiased: Chen et al. 2021, arXiv 2107.03374, eq. 1)
    maj@k  = mean over problems, and blocks of k completions, of whether the block's most frequent answer is right

Standard errors are over problems: n completions of one problem are not independent, so they are averaged first (Miller 2024,
arXiv 2411.00640), and two models are compared problem by problem.

maj@k takes the n // k disjoint blocks of k completions in their order: an unbiased mean, in which no draw is used twice.
Answers are one when each equals the other as a truth; an answer joins the first group whose first answer it equals. Of groups
of one size the one that began first wins. A completion without an answer does not vote; without a vote the block is wrong.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from data import Problem
from kinds import cells
from reward import equal


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


def difficulty_bins(problems: list[Problem]) -> list[str]:
    """The bin of every problem: its level where all are whole, else its pass rate, cut at 0.3, as in the study, and 0.7."""
    known = [p.difficulty for p in problems if p.difficulty is not None]
    levels = all(d >= 1 and d == int(d) for d in known)

    def name(d: float | None) -> str:
        if d is None or levels:
            return "unknown" if d is None else f"level {d:g}"
        return "pass rate " + ("0.7 to 1" if d <= 0.3 else "0.3 to 0.7" if d <= 0.7 else "below 0.3")

    return [name(p.difficulty) for p in problems]


def summarise(problems: list[Problem], rows: list[dict], n: int, ks: Iterable[int] = ()) -> dict:
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
