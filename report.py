"""The report on a study's runs: report.md with its figures, and the same as one report.html, from runs.jsonl alone.

    python report.py results/study        # again, from the points that are committed there

For each finding of the paper: its statement, what came out here beside the paper's numbers, and a verdict that a rule computes
from the data. The rules, fixed before the runs were made; a cell is one arm x base or instruct x X (C or D):

1. Larger models learn more: the free slopes k rise with log N, with 95% of the redraws above 0. Holds in all cells, partly, or
   in none.
2. Power law: in log-log a line describes every size's mean curve over all steps from 1 with R2 of at least 0.95. Holds if for
   all curves of all arms, partly if for half of the curves of one arm.
3. k(N) saturates: K_max / (1 + N0/N) has an AICc lower by 2 than the power law k = a N^b and than a constant k, and its N0 is
   pinned (fit_scaling.py). Holds in all cells, partly, or in none.
4. Reuse is nearly free up to tau = 25 (the paired loss above tau = 1 is at most 0.02), and tau = 100 hurts (its 95% interval
   lies above 0). Holds if both, partly if one.
5. Larger groups reach a lower loss from the same prompts: the paired difference of the largest and smallest group at equal D
   has a 95% interval below 0. Holds or not. Equal C is shown beside it, without a verdict.
6. Forecast: blind, from the smaller sizes, it misses the largest size's losses by less than carrying over the losses of the
   next smaller size does. Holds in all cells, partly, or in none.

Intervals: 1,000 redraws over base seeds and blocks of steps (fit_scaling.py), or Student's t over seeds for paired differences.
"""

import base64
import csv
import html
import json
import os
import platform
import re
import subprocess
import sys
import warnings
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import markdown
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import t as student_t

from figures import AXIS, LOSS, label, palette, span
from fit_scaling import Fit, alternatives, extrapolate, fit, interval, loss_at, r_squared
from points import Curve, curves_from, read_csv

PAPER = Path(__file__).parent / "results" / "paper"
MARK = {"holds": "✔ holds", "partly": "◐ holds partly", "not": "✘ does not hold", "missing": "? not enough runs"}
ARM_NAMES = {"constant": "constant learning rate", "inverse": "learning rate / step", "recipe": "the recipe"}
FIRST = 0.24  # share of the steps that the table of rivals fits before it predicts the rest, as in the paper: 25 of 105
REDRAWS = 1000  # behind the 95% intervals


# ---- From runs to rows --------------------------------------------------------------------------------------------


def gather(out: Path, runs, commands: list[str]) -> None:
    """Writes OUT/runs.jsonl, all that the report needs: where it was made, then a line for each run of study.py's grid."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    lines = [{"commit": commit, "torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count(),
              "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"}]
    for run, command in zip(runs, commands, strict=True):
        line = {"name": run.name, "part": run.part, "arm": run.arm, "model": run.model, "command": command, "error": run.error}
        if not run.error:
            line |= read_run(out / run.name)
        lines.append(line)
    (out / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_run(path: Path) -> dict:
    flags = json.loads((path / "flags.json").read_text())
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    train = [r for r in records if r["kind"] == "train"]
    evals = [r for r in records if r["kind"] == "eval" and r["source"] == records[0]["source"]]
    samples = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    shown = [s for s in samples if s["step"] in (0, flags["steps"]) and s["sample"] == 0 and s["source"] == evals[0]["source"]]
    return {
        "model_type": "instruct" if "instruct" in flags["model"].lower() else "base", "N": train[0]["N"], "seed": flags["seed"],
        "reuse": flags["reuse"], "group": flags["group"], "hours": records[-1]["gpu_hours"],
        "flops": sum(sum(r["flops"].values()) for r in records),
        "evals": [{"step": r["step"], "D": r["D"], "C": r["C"], "L": r["loss"],
                   "levels": {k: v["pass1"][0] for k, v in r.get("difficulty", {}).items()}} for r in evals],
        "samples": [{k: s[k] for k in ("step", "problem", "prompt", "text", "truth", "score")} for s in shown],
    }


def rows_of(runs: list[dict]) -> list[dict]:
    """The points of runs, as fit_scaling.py takes them: N in billions."""
    return [{"run": r["name"], "N": r["N"] / 1e9, "model_type": r["model_type"], "reuse": r["reuse"], "group": r["group"],
             **{k: e[k] for k in ("step", "D", "C", "L")}} for r in runs for e in r["evals"]]


@dataclass
class Cell:
    """The mean curves of one arm, model type and X, with a free slope for each size and the law fitted to them."""

    arm: str
    kind: str
    x: str
    curves: list[Curve]
    own: Fit  # free slopes, error of L
    law: Fit
    r2: list[float]  # of a line in log-log, by size
    rivals: dict[str, dict]

    @property
    def name(self) -> str:
        return f"{self.kind}, {ARM_NAMES[self.arm]}, {self.x}"


def cells_of(runs: list[dict]) -> list[Cell]:
    cells = []
    for arm in dict.fromkeys(r["arm"] for r in runs if r["part"] == "sizes"):
        mine = [r for r in runs if r["part"] == "sizes" and r["arm"] == arm]
        for (kind, x), curves in curves_from(rows_of(mine)).items():
            straight = fit(curves, "log", "free")
            r2 = [r_squared([np.log10((c.L_T, straight.predict(c.N, c.X_T)[0]))[:, c.L_T > 0]]) for c in curves]
            own, law = (fit(curves, "linear", shape, bootstrap=REDRAWS) for shape in ("free", "saturating"))
            rivals = {r["name"]: r for r in alternatives(curves, "linear", FIRST)}
            cells.append(Cell(arm, kind, x, curves, own, law, r2, rivals))
    return cells


# ---- The forecast game --------------------------------------------------------------------------------------------


def freeze(out: Path, runs, N: int) -> None:
    """Writes OUT/forecast.json: L of a model of N parameters, from the runs given, which are of smaller ones. Never twice."""
    path = out / "forecast.json"
    if path.exists():
        return
    small = [{"name": r.name, "part": r.part, "arm": r.arm} | read_run(out / r.name) for r in runs]
    forecasts = []
    for arm in dict.fromkeys(r["arm"] for r in small):
        for (kind, x), curves in curves_from(rows_of([r for r in small if r["arm"] == arm])).items():
            law, big = fit(curves, protocol="inter", bootstrap=REDRAWS), curves[-1]
            X_T = big.X_T * (N / 1e9 / big.N if x == "C" else 1)  # as many tokens a step as the next smaller size
            L_T, L_BT = extrapolate(law, curves, N / 1e9, X_T)
            forecasts.append({"arm": arm, "model_type": kind, "x": x, "k": float(law.slope(N / 1e9)), "X": X_T.tolist(),
                              "L": L_T.tolist(), "L_ci": interval(L_BT).tolist(),
                              "naive": np.interp(*map(np.log10, (X_T, big.X_T)), big.L_T).tolist()})
    head = {"made": datetime.now().isoformat(timespec="seconds"), "N": N, "runs_read": [r.name for r in runs]}
    path.write_text(json.dumps(head | {"forecasts": forecasts}, indent=1) + "\n")


# ---- Figures: one panel each, so that a page can lay them side by side or below each other ------------------------


def plot(path: Path, panel, *args) -> None:
    figure, axis = plt.subplots(figsize=(5.2, 4.1), layout="constrained")
    panel(axis, *args)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curve_panel(axis, curves: list[Curve], title: str) -> None:
    """Loss against X, log-log: the mean over seeds, their range, and a line for each size."""
    bottom, spread = -np.inf, np.ptp(np.log10(np.concatenate([c.L_T for c in curves])))
    line = fit(curves, "log", "free")
    colours = palette([c.N for c in curves])
    for n, c in reversed(list(enumerate(curves))):
        colour = colours[c.N]
        axis.plot(c.X_T, c.L_T, "o", ms=3.5, color=colour, mew=0)
        axis.fill_between(c.X_T, c.L_ST.min(0), c.L_ST.max(0), color=colour, alpha=0.13, lw=0)
        L_T = line.predict(c.N, c.X_T)[0]
        axis.plot(c.X_T, L_T, color=colour, lw=1.4)
        bottom = max(np.log10(L_T[-1]), bottom + 0.05 * spread)
        axis.text(c.X_T[-1] * 1.15, 10**bottom, f"{label(c.N)}  k {line.k[n]:.3f}", color=colour, fontsize=9, va="center")
    axis.set(xscale="log", yscale="log", xlabel=AXIS[curves[0].x], ylabel=LOSS, title=title)
    axis.set_xlim(right=axis.get_xlim()[1] * (axis.get_xlim()[1] / axis.get_xlim()[0]) ** 0.3)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(lambda v, _: f"{v:.1g}" if spread < 0.8 or f"{v:.0e}"[0] in "25" else "")


def slope_panel(axis, cells: list[Cell]) -> None:
    """The free slope of every size, with 95% intervals, one series for each arm and model type."""
    styles = [("#0072B2", "o-"), ("#D55E00", "s-"), ("#56B4E9", "o--"), ("#E69F00", "s--")]
    for i, (c, (colour, style)) in enumerate(zip(cells, styles, strict=False)):
        low, high = c.own.ci("k")
        axis.errorbar(c.own.N * 1.04**i, c.own.k, [c.own.k - low, high - c.own.k], fmt=style, color=colour, ms=5, lw=1.2,
                      capsize=2, label=f"{c.kind}, {ARM_NAMES[c.arm]}")
    axis.set(xscale="log", ylim=(0, None), xlabel="model size N (parameters)", ylabel="k, decades of L per decade of X",
             title=f"here: slope against {AXIS[cells[0].x]}")
    axis.set_xticks(cells[0].own.N, map(label, cells[0].own.N))
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False)


def paper_slope_panel(axis) -> None:
    for x, colour in (("D", "#0072B2"), ("C", "#D55E00")):
        with open(PAPER / "k_points.csv", newline="") as file:
            rows = [r for r in csv.DictReader(file) if r["x_kind"] == x and r["protocol"] == "inter"]
        N, k = np.array([(float(r["N"]), float(r["k"])) for r in rows]).T
        axis.plot(N, k, "o-", ms=5, lw=1.2, color=colour, label=f"against {AXIS[x]}")
    axis.set(xscale="log", ylim=(0, None), xlabel="model size N (parameters)", ylabel="k, decades of L per decade of X",
             title="the paper: k(N) of Qwen2.5 base models")
    axis.set_xticks(N, map(label, N))
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False)


def skill_panel(axis, points: list[tuple], r2: tuple[float, float]) -> None:
    """The slope of single runs against the pass rate they started from, coloured by size."""
    sizes = sorted({N for N, *_ in points})
    for N, colour in palette(sizes).items():
        for kind, marker in (("base", "o"), ("instruct", "^")):
            skill, k = np.array([(s, k) for n, s, k, m in points if n == N and m == kind]).reshape(-1, 2).T
            axis.plot(skill, k, marker, color=colour, ms=6, mew=0, label=label(N) if kind == "base" else None)
    axis.set(xlabel="pass@1 before training", ylabel="k of the run, against D",
             title=f"base models: R2 of k on log N {r2[0]:.2f}, on this {r2[1]:.2f}")
    axis.legend(fontsize=8, frameon=False, title="circles base, triangles instruct", title_fontsize=8)


def reach_panel(axis, runs: list[dict], title: str) -> None:
    """pass@1 by level before (dashed) and after training (solid), mean over seeds."""
    sizes = sorted({r["N"] for r in runs})
    for N, colour in palette(sizes).items():
        mine = [r for r in runs if r["N"] == N]
        for place, style in ((0, "--"), (-1, "-")):
            share = np.mean([list(r["evals"][place]["levels"].values()) for r in mine], 0)
            axis.plot(range(1, len(share) + 1), share, style, color=colour, lw=1.4, label=label(N / 1e9) if place else None)
    axis.set(xlabel="level (steps of the problem)", ylabel="pass@1", ylim=(0, 1), title=title)
    axis.legend(fontsize=8, frameon=False, title="dashed: before", title_fontsize=8)


def sweep_panel(axis, series: dict[str, list[tuple]], xlabel: str, ylabel: str, title: str) -> None:
    """Loss above that of the first level, paired by seed; series: name: [(level, difference, half-width or None)]."""
    levels = sorted({p[0] for points in series.values() for p in points})
    for (name, points), colour, mark in zip(series.items(), ("#0072B2", "#D55E00"), "os", strict=False):
        place = [levels.index(p[0]) for p in points]
        axis.errorbar(place, [p[1] for p in points], [p[2] or 0 for p in points], fmt=f"{mark}-", ms=5, lw=1.3, capsize=2,
                      color=colour, label=name)
    axis.axhline(0, color="0.4", lw=0.8)
    axis.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axis.set_xticks(range(len(levels)), [f"{v:g}" for v in levels])
    axis.legend(fontsize=8, frameon=False)


def forecast_panel(axis, f: dict, curve: Curve) -> None:
    axis.fill_between(f["X"], *f["L_ci"], color="#D55E00", alpha=0.15, lw=0)
    axis.plot(f["X"], f["L"], color="#D55E00", lw=1.6, label="forecast, with 95% interval")
    axis.plot(f["X"], f["naive"], ":", color="0.4", lw=1.6, label="losses of the next smaller size")
    axis.plot(curve.X_T, curve.L_T, "o", color="black", ms=4, label=f"{label(curve.N)}, as it came out")
    axis.set(xscale="log", yscale="log", xlabel=AXIS[f["x"]], ylabel=LOSS, title=f"{f['model_type']}, {ARM_NAMES[f['arm']]}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:.1g}")
    axis.legend(fontsize=8, frameon=False, loc="lower left")


# ---- The findings: each returns (verdict, one sentence, the rest of its section) ----------------------------------


def table(head: str, rows: list[list]) -> str:
    cells = [[c if isinstance(c, str) else f"{c:.3g}" for c in row] for row in rows]
    return "\n".join([f"| {' | '.join(head.split(', '))} |", "|" + "---|" * len(head.split(", ")),
                      *(f"| {' | '.join(row)} |" for row in cells)])


def judged(good: int, all_: int) -> str:
    return "holds" if good == all_ else "partly" if good else "not"


def larger_learn_more(cells: list[Cell], figures: Path):
    rows, good = [], 0
    for c in cells:
        u_n = np.log10(c.own.N) - np.log10(c.own.N).mean()
        rise, rise_B = c.own.of(lambda p, u_n=u_n: p["k"] @ u_n / (u_n @ u_n))
        low, high = interval(rise_B)
        good += low > 0
        rows.append([c.name, *(f"{k:.3f}" for k in c.own.k), f"{rise:.3f}" + span((low, high), "{:.3f}".format)])
    for x in "DC":
        plot(figures / f"slopes_{x}.png", slope_panel, [c for c in cells if c.x == x])
    plot(figures / "paper_slopes.png", paper_slope_panel)
    N, (first, last) = cells[0].own.N, (np.mean([c.own.k[n] for c in cells]) for n in (0, -1))
    sentence = (f"k rises with size, its 95% interval above 0, in {good} of {len(cells)} cells; from {label(N[0])} to "
                f"{label(N[-1])} it goes from {first:.3f} to {last:.3f} in the mean of the cells.")
    return judged(good, len(cells)), sentence, "\n\n".join([
        table(", ".join(["cell", *(f"k {label(N)}" for N in cells[0].own.N), "rise of k per decade of N"]), rows),
        images("slopes_D", "Slope k against D, by size", "slopes_C", "Slope k against C, by size",
               "paper_slopes", "The paper's k(N)")])


def power_law(cells: list[Cell], figures: Path):
    rows, arms = [], defaultdict(list)
    for c in cells:
        half = len(c.curves[0].X_T) // 2
        halves = ([o.keep(np.arange(len(o.X_T)) // half == part) for o in c.curves] for part in (0, 1))
        early, late = (fit(curves, "log", "free").k for curves in halves)
        arms[c.arm] += c.r2
        rows.append([c.name, *(f"{r:.3f}" for r in c.r2), f"{np.median(early):.3f}, {np.median(late):.3f}"])
        plot(figures / f"loss_{c.x}_{c.kind}_{c.arm}.png", curve_panel, c.curves, f"here: {c.kind}, {ARM_NAMES[c.arm]}")
    paper = curves_from(read_csv(PAPER / "points.csv"))
    for x in "DC":
        plot(figures / f"paper_{x}.png", curve_panel, paper["base", x], "the paper: Qwen2.5 base models")
    share = {arm: np.mean(np.array(r2) >= 0.95) for arm, r2 in arms.items()}
    verdict = "holds" if min(share.values()) == 1 else "partly" if max(share.values()) >= 0.5 else "not"
    sentence = "; ".join(f"{ARM_NAMES[arm]}: {share[arm]:.0%} of the curves have R2 of at least 0.95 (lowest {min(r2):.2f}, "
                         f"median {np.median(r2):.2f})" for arm, r2 in arms.items()) + "."
    names = [name for x in "DC" for name in [*((f"loss_{x}_{c.kind}_{c.arm}", f"Loss: {c.name}") for c in cells if c.x == x),
                                             (f"paper_{x}", f"The paper, against {x}")]]
    note = ("The last column is the median slope over the first and over the second half of the points: those of a power law "
            "are equal. Dots are means over seeds, bands their range, lines least squares of log L.")
    return verdict, sentence, "\n\n".join([
        table(", ".join(["R2 of cell", *(label(N) for N in cells[0].own.N), "k early and late"]), rows), note,
        images(*(part for name in names for part in name))])


def saturates(cells: list[Cell], runs: list[dict], figures: Path):
    rows, good, rejected, singles = [], 0, 0, []
    for c in cells:
        a = {name: c.rivals[name]["aicc"] for name in ("saturating", "power", "constant", "free", "sigmoid")}
        known = None not in a.values()
        won = known and c.law.pinned and a["saturating"] + 2 <= min(a["power"], a["constant"])
        good, rejected = good + won, rejected + (known and a["constant"] > min(a["power"], a["saturating"]) + 2)
        above = [f"{a[n] - a['saturating']:+.1f}" if known else "-" for n in ("power", "constant", "free", "sigmoid")]
        rows.append([c.name, *above, c.law.verdict()])
    for r in (r for r in runs if r["part"] == "sizes"):
        x, y = np.log10([(e["D"], max(e["L"], 1e-3)) for e in r["evals"] if e["step"]]).T
        singles.append((r["arm"], r["N"] / 1e9, 1 - r["evals"][0]["L"], -np.polyfit(x, y, 1)[0], r["model_type"]))
    lines = []
    for arm in dict.fromkeys(s[0] for s in singles):
        mine = [s[1:] for s in singles if s[0] == arm]
        N, skill, k = np.array([s[:3] for s in mine if s[3] == "base"]).T
        r2 = tuple(np.corrcoef(z, k)[0, 1] ** 2 for z in (np.log10(N), skill))
        lines.append(f"{ARM_NAMES[arm]}: R2 {r2[0]:.2f} on log N, {r2[1]:.2f} on the base's pass@1")
        plot(figures / f"skill_{arm}.png", skill_panel, mine, r2)
        base = [r for r in runs if r["part"] == "sizes" and r["arm"] == arm and r["model_type"] == "base"]
        if base[0]["evals"][0]["levels"]:
            plot(figures / f"reach_{arm}.png", reach_panel, base, f"base, {ARM_NAMES[arm]}")
    sentence = (f"the saturating form wins, with N0 pinned, in {good} of {len(cells)} cells; a constant k is rejected in "
                f"{rejected}. Slopes of single base runs ({'; '.join(lines)}).")
    drawn = [(f"{name}_{arm}", said) for arm in dict.fromkeys(c.arm for c in cells)
             for name, said in (("skill", "Slope against skill"), ("reach", "pass@1 by level"))]
    return judged(good, len(cells)), sentence, "\n\n".join([
        "AICc above that of the saturating form (positive: worse), and what may be said of K_max and N0 (95% intervals):",
        table("cell, k = a N^b, constant k, free slopes, sigmoids, saturating form", rows),
        images(*(part for d in drawn if (figures / f"{d[0]}.png").exists() for part in d))])


def paired(runs: list[dict], by: str, x: str, at: float) -> dict[float, tuple[float, float, float, int]]:
    """level: (mean L, paired difference from the first level, half-width of its 95% interval, seeds) at X = at."""
    L = defaultdict(dict)
    for r in runs:
        points = [(e[x], e["L"]) for e in r["evals"] if e[x] > 0]
        if found := loss_at({r["name"]: points}, at):
            L[r[by]][r["seed"]] = found[0]
    first, out = L[min(L)] if L else {}, {}
    for level, own in sorted(L.items()):
        d = np.array([own[s] - first[s] for s in own if s in first])
        half = student_t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else float("nan")
        out[level] = (float(np.mean(list(own.values()))), float(d.mean()) if len(d) else float("nan"), float(half), len(d))
    return out


def reuse_is_free(runs: list[dict], figures: Path):
    runs = [r for r in runs if r["part"] == "reuse"]
    at = min(r["evals"][-1]["step"] for r in runs)
    found = paired(runs, "reuse", "step", at)
    top = max(found)
    free = all(d <= 0.02 for tau, (_, d, _, _) in found.items() if tau <= 25)
    hurts = top == 100 and found[top][1] - found[top][2] > 0
    with open(PAPER / "reuse.csv", newline="") as file:
        points = [r for r in csv.DictReader(file) if r["kind"] == "curve" and float(r["step"]) == 100]
    paper = {float(r["tau"]): float(r["L"]) for r in points}
    series = {f"here: {label(runs[0]['N'] / 1e9)}, step {at}": [(t, d, h) for t, (_, d, h, _) in found.items()],
              "the paper: 7B, step 100": [(t, L - paper[1.0], None) for t, L in sorted(paper.items())]}
    plot(figures / "reuse.png", sweep_panel, series, "reuse factor tau (times each problem is seen)", "L above that of tau = 1",
         "at a fixed number of steps")
    rows = [[f"{tau:g}", f"{L:.3f}", "-" if tau == 1 else f"{d:+.3f} ± {h:.3f}", f"{n}",
             f"{paper[tau] - paper[1.0]:+.3f}" if tau in paper else "-"] for tau, (L, d, h, n) in found.items()]
    worst = max(d for tau, (_, d, _, _) in found.items() if tau <= 25)
    tail = f"tau = {top:g} costs {found[top][1]:+.3f} ± {found[top][2]:.3f}"
    return judged(free + hurts, 2), f"up to tau = 25 reuse costs at most {worst:+.3f} of loss; {tail}.", "\n\n".join([
        table("tau, L, L above tau = 1 (paired; 95%), seeds, the paper's at step 100", rows),
        images("reuse", "Loss against reuse")])


def groups(runs: list[dict], figures: Path):
    runs, rows, ends = [r for r in runs if r["part"] == "group"], [], {}
    for x in "DC":
        ends[x] = min(r["evals"][-1][x] for r in runs)
        found = paired(runs, "group", x, ends[x])
        series = {f"{label(runs[0]['N'] / 1e9)}, at {x} = {ends[x]:.3g}": [(g, d, h) for g, (_, d, h, _) in found.items()]}
        plot(figures / f"group_{x}.png", sweep_panel, series, "group size G (responses per prompt)",
             f"L above that of G = {min(found)}", f"at equal {AXIS[x]}")
        rows += [[f"{x} = {ends[x]:.3g}", f"{g:g}", f"{L:.3f}", f"{d:+.3f} ± {h:.3f}" if g > min(found) else "-", f"{n}"]
                 for g, (L, d, h, n) in found.items()]
        ends[x] = (max(found), *found[max(found)][1:3])
    (g, d, h), (g_C, d_C, h_C) = ends["D"], ends["C"]
    sentence = (f"from the same prompts a group of {g} ends {d:+.3f} ± {h:.3f} of loss away from the smallest; at equal "
                f"compute a group of {g_C} ends {d_C:+.3f} ± {h_C:.3f} away.")
    return ("holds" if d + h < 0 else "not"), sentence, "\n\n".join([
        table("at, G, L, L above the smallest G (paired; 95%), seeds", rows),
        images("group_D", "Loss against group size at equal D", "group_C", "Loss against group size at equal C")])


def forecasts(cells: list[Cell], frozen: dict, figures: Path):
    rows, good, scored = [], 0, 0
    for f in frozen["forecasts"]:
        cell = next((c for c in cells if (c.arm, c.kind, c.x) == (f["arm"], f["model_type"], f["x"])), None)
        if not cell or abs(cell.curves[-1].N * 1e9 / frozen["N"] - 1) > 1e-6:
            continue
        c, scored = cell.curves[-1], scored + 1
        L_hat, low, high, naive = (10 ** np.interp(np.log10(c.X_T), np.log10(f["X"]), np.log10(y))
                                   for y in (f["L"], *f["L_ci"], f["naive"]))
        miss, other = np.abs(L_hat - c.L_T).mean(), np.abs(naive - c.L_T).mean()
        refitted = np.abs(c.line(f["k"], "linear") - c.L_T).mean()
        inside = np.mean((low <= c.L_T) & (c.L_T <= high))
        good += miss < other
        rows.append([cell.name, *(f"{v:.3f}" for v in (miss, other, refitted, f["k"], cell.own.k[-1])), f"{inside:.0%}"])
        plot(figures / f"forecast_{f['x']}_{f['model_type']}_{f['arm']}.png", forecast_panel, f, c)
    if not scored:
        raise ValueError("no frozen forecast of the largest size")
    sentence = (f"the blind forecast of {label(frozen['N'] / 1e9)} beats the losses of the next smaller size in {good} of "
                f"{scored} cells.")
    names = [(f"forecast_{f['x']}_{f['model_type']}_{f['arm']}", f"Forecast: {f['model_type']}, {ARM_NAMES[f['arm']]}")
             for f in frozen["forecasts"] if f["x"] == "D"]
    note = (f"Frozen {frozen['made']}, from {len(frozen['runs_read'])} runs of smaller sizes, before a run of the largest was "
            "read. Mean absolute errors of L: blind (K_max, N0 and the trend of E(N) extrapolated), carrying over the losses "
            "of the next smaller size at equal X, and the paper's way, which fits E on the target itself and so is not blind.")
    return judged(good, scored), sentence, "\n\n".join([
        note, table("cell, blind, carried over, E refitted, k forecast, k found, points within 95%", rows),
        images(*(part for n in names for part in n))])


def images(*pairs: str) -> str:
    return "\n".join(f"![{alt}]({name}.png)" for name, alt in zip(pairs[::2], pairs[1::2], strict=True))


# ---- The page -----------------------------------------------------------------------------------------------------

STATEMENTS = {
    "Larger models learn more per sample and per FLOP":
        "Larger models achieve more for the same compute and the same data.",
    "Loss follows a power law of compute and of data":
        "log10 L = -k(N) log10 X + E(N), for compute C and data D, on base and on instruct models.",
    "Learning efficiency saturates":
        "k(N) = K_max / (1 + N0/N): on D, K_max 0.163 and N0 17B (sizes 0.5B to 32B).",
    "Reuse is nearly free":
        "With the number of steps fixed, loss depends little on the reuse factor up to about 25; tau = 100 overfits.",
    "Group size":
        "Groups of 4 to 32 were compared at 7B against data and against compute.",
    "The forecast of the largest size":
        "Fitted on the smaller sizes, the law predicts the losses of the largest (72B, E refitted on it).",
}


def write(out: Path) -> None:
    """Writes OUT/report.md, OUT/report.html, their figures and points_ARM.csv, which
    fit_scaling.py reads, from OUT/runs.jsonl and OUT/forecast.json."""
    head, *lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    runs, failed = [r for r in lines if not r["error"]], [r for r in lines if r["error"]]
    frozen = json.loads((out / "forecast.json").read_text()) if (out / "forecast.json").is_file() else {"forecasts": []}
    plt.rcParams["axes.titlesize"] = 10
    try:
        cells, lacking = cells_of(runs), ""
    except ValueError as error:  # a size without a run
        cells, lacking = [], str(error)
    findings = []
    for (title, said), rule, make in zip(STATEMENTS.items(), rules(), (
            lambda: larger_learn_more(cells, out), lambda: power_law(cells, out), lambda: saturates(cells, runs, out),
            lambda: reuse_is_free(runs, out), lambda: groups(runs, out), lambda: forecasts(cells, frozen, out)), strict=True):
        try:
            findings.append((title, said, rule, *make()))
        except (ValueError, IndexError, KeyError) as error:
            why = f"the runs that are there do not answer it ({lacking or error})."
            findings.append((title, said, rule, "missing", why, ""))
    text = page(head, runs, failed, findings)
    (out / "report.md").write_text(text)
    (out / "report.html").write_text(to_html(text, out))
    for arm in dict.fromkeys(r["arm"] for r in runs):
        with open(out / f"points_{arm}.csv", "w", newline="") as file:
            rows = rows_of([r for r in runs if r["part"] == "sizes" and r["arm"] == arm])
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    print("\n".join(f"{MARK[verdict]:>18}  {title}: {sentence}" for title, _, _, verdict, sentence, _ in findings))
    print(f"\n{out / 'report.html'}" + (f"; {len(failed)} runs failed, named there" if failed else ""))


def rules() -> list[str]:
    """The numbered rules of this file's docstring, each on one line."""
    return [" ".join(rule.split()) for rule in re.findall(r"^\d\. (.*?)(?=^\d\. |\n\n)", __doc__, re.M | re.S)]


def page(head: dict, runs: list[dict], failed: list[dict], findings: list[tuple]) -> str:
    hours, sizes = sum(r["hours"] for r in runs), sorted({r["N"] for r in runs})
    parts = [
        "# The paper's findings, on small models",
        "What is claimed: four findings of *Scaling Behaviors of LLM Reinforcement Learning Post-Training* (arXiv 2509.25300), "
        f"on Qwen2.5 from 0.5B to 72B. What was done: GRPO with the same code on {len(sizes)} sizes of Qwen2.5-architecture "
        f"models, {', '.join(label(N / 1e9) for N in sizes)} parameters without embeddings, in {len(runs)} runs. L "
        "is 1 - pass@1 on held-out problems; D counts prompts, C is 6 x N x tokens of training.",
        table("finding, verdict, what came out", [[f"{i}. {title}", MARK[verdict], sentence]
                                                  for i, (title, _, _, verdict, sentence, _) in enumerate(findings, 1)]),
    ]
    if failed:
        parts += ["## What is missing", f"{len(failed)} runs failed, and nothing below knows of them:"]
        parts += [f"`{r['name']}`\n\n```\n{r['error']}\n```" for r in failed]
    for i, (title, said, rule, verdict, sentence, body) in enumerate(findings, 1):
        parts += [f"## {i}. {title}: {MARK[verdict]}", f"> The paper: {said}", f"Rule: {rule}", f"Here: {sentence}", body]
    arms = dict.fromkeys(r["arm"] for r in runs)
    shown = [r for r in runs if r["part"] == "sizes" and r["arm"] == list(arms)[-1]]
    parts += ["## Before and after", *transcripts([shown[0], shown[-1]])]
    parts += ["## What was done, and how to redo it",
              f"{len(runs)} runs, {hours:.2f} device hours, {sum(r['flops'] for r in runs):.3g} FLOPs in all phases, on "
              f"{head['cores']} cores, {head['device']}, torch {head['torch']}, commit {head['commit']}. The "
              "models: `models/ladder/README.md`, if no others were given. `python study.py` makes the runs and this page; "
              "`python report.py DIR` makes the page again from `runs.jsonl`. Each run, by its command:",
              "```\n" + "\n".join(r["command"] for r in [*runs, *failed]) + "\n```"]
    return "\n\n".join(parts) + "\n"


def transcripts(runs: list[dict]) -> list[str]:
    """Three problems before and after training."""
    parts = []
    for r in runs:
        first, last = ([s for s in r["samples"] if (s["step"] == 0) == before] for before in (True, False))
        rows = [[a["prompt"][-200:], a["text"][:300], "✘✔"[int(a["score"])], b["text"][:300], "✘✔"[int(b["score"])], a["truth"]]
                for a, b in zip(first[1:4], last[1:4], strict=False)]
        rows = [[c if c in "✘✔" else "`" + re.sub(r"[|`\s]+", " ", c) + "`" for c in row] for row in rows]
        parts += [f"`{r['name']}` ({label(r['N'] / 1e9)}):", table("problem, before, right, after, right, truth", rows)]
    return parts


STYLE = """
body{font:16px/1.55 system-ui,sans-serif;color:#1b1b1b;background:#fff;max-width:1100px;margin:0 auto;padding:1rem}
h1{font-size:1.7rem;line-height:1.2}h2{font-size:1.25rem;margin-top:2.2rem;border-top:1px solid #ddd;padding-top:1rem}
p,blockquote{max-width:46rem}blockquote{margin:.5rem 0;padding:.1rem .9rem;border-left:4px solid #0072B2;background:#f4f7fa}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem}
td,th{border:1px solid #ddd;padding:.3rem .55rem;text-align:left;vertical-align:top}th{background:#f4f4f4}
pre{overflow-x:auto;background:#f7f7f7;padding:.7rem;font-size:.75rem;max-height:22rem}
code{font-size:.85em;overflow-wrap:anywhere}pre code{overflow-wrap:normal}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:.6rem;max-width:none}
.figures img{width:100%;height:auto}
"""


def to_html(text: str, out: Path) -> str:
    """The page with its figures inside, so that it can be mailed."""
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    body = re.sub(r"<p>(?=<img)", '<p class="figures">', body)
    body = re.sub(r'src="([^"]+\.png)"', lambda m: "src=\"data:image/png;base64,"
                  f"{base64.b64encode((out / html.unescape(m[1])).read_bytes()).decode()}\"", body)
    return ('<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>The paper's findings, on small models</title><style>{STYLE}</style><body>{body}</body></html>\n")


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    if len(sys.argv) != 2 or not Path(sys.argv[1], "runs.jsonl").is_file():
        sys.exit("report.py: give the directory of a study, which holds runs.jsonl")
    write(Path(sys.argv[1]))
