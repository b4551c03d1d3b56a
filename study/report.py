"""The report on a study's runs: report.md with its figures, and the same as one report.html, from runs.jsonl alone.

    python -m study.report results/study        # again, from the points that are committed there

For each finding of the paper: its statement, what came out here beside the paper's numbers, and a verdict that a rule
computes from the data. A cell is one arm (a learning-rate schedule) x base or instruct; k of a run is the slope of log10 L
against log10 D by least squares.

1. Larger models learn more: over single runs, k rises with log N, and the loss at the largest D that all runs reach falls
   with log N, and so does the loss at the largest such C; each with its 95% interval (Student's t) on one side of 0. Holds:
   all three in all cells; partly: at least half of them.
2. Power law: in log-log a line describes every size's mean curve over all steps from 1 with R2 of at least 0.95. Holds: for
   all curves of all arms; partly: for half of the curves of one arm.
3. k(N) saturates: on the slopes of single runs K_max / (1 + N0/N) has an AICc lower by 2 than the power law a N^b and than a
   constant, and the 95% interval of N0 (redraws of runs within sizes) spans less than a factor of ten, inside the range
   searched. Holds: in all cells; partly: in at least half.
4. Reuse is nearly free up to tau = 25 (the loss above tau = 1, paired by seed, is at most 0.02) and tau = 100 hurts (it lies
   above 0). Holds: both by the 95% intervals; partly: one of them by the intervals, or the first by its estimates.
5. Larger groups reach a lower loss from the same prompts: the paired difference of the largest and smallest group at equal D
   has a 95% interval below 0. Equal C is shown beside it, without a verdict.
6. Forecast: blind, from the smaller sizes, it misses the largest size's losses by less than both naive rivals do, carrying
   over the losses of the next smaller size and drawing on its line. Holds: in all cells and for C and D; partly:
   in at least half.

Rules 1, 3, 4 and 6 were made stricter on 2026-11-23 after a review, when the runs of four sizes were in: before, 1 judged
slopes alone, 3 mean curves as if bases did not scatter, 4 estimates without their intervals, 6 one rival. Base seeds are the
independent units, three for each size; the arms, C and D, and base and instruct share them, so cells are not independent.
"""

import base64
import csv
import html
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import markdown
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import t as student_t

from figures import AXIS, LOSS, label, palette
from fit_scaling import SHAPES, Fit, extrapolate, fit, interval, loss_at, project, r_squared
from points import Curve, curves_from, read_csv

PAPER = Path(__file__).resolve().parent.parent / "results" / "paper"
MARK = {"holds": "✔ holds", "partly": "◐ holds partly", "not": "✘ not seen here", "missing": "? not enough runs"}
ARM_NAMES = {"constant": "constant learning rate", "inverse": "learning rate / step", "recipe": "the recipe"}
REDRAWS = 1000  # behind the 95% intervals


# ---- From runs to rows --------------------------------------------------------------------------------------------


def gather(out: Path, runs, commands: list[str]) -> None:
    """Writes OUT/runs.jsonl, all that the report needs: where it was made, then a line for each run of study.py's grid."""
    git = ["git", "-C", str(Path(__file__).resolve().parent.parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    lines = [{"commit": commit, "torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count(),
              "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
              "command": shlex.join(["python", *sys.argv])}]
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
    own: Fit  # a line for each size, error of log L
    law: Fit
    r2: list[float]  # of those lines, by size

    @property
    def name(self) -> str:
        return f"{self.kind}, {ARM_NAMES[self.arm]}, {self.x}"


def cells_of(runs: list[dict]) -> list[Cell]:
    cells = []
    for arm in dict.fromkeys(r["arm"] for r in runs if r["part"] == "sizes"):
        mine = [r for r in runs if r["part"] == "sizes" and r["arm"] == arm]
        for (kind, x), curves in curves_from(rows_of(mine)).items():
            own, law = fit(curves, "log", "free"), fit(curves, bootstrap=REDRAWS)
            r2 = [r_squared([np.log10((c.L_T, own.predict(c.N, c.X_T)[0]))[:, c.L_T > 0]]) for c in curves]
            cells.append(Cell(arm, kind, x, curves, own, law, r2))
    return cells


def singles(runs: list[dict], arm: str, kind: str) -> dict[str, np.ndarray]:
    """Of each run of the sizes in a cell: N in billions, k against D, pass@1 before training, and L at the largest D and the
    largest C that all of them reach, read off its curve in log-log."""
    mine = [r for r in runs if (r["part"], r["arm"], r["model_type"]) == ("sizes", arm, kind)]
    after = [[e for e in r["evals"] if e["step"]] for r in mine]
    ends = {x: min(evals[-1][x] for evals in after) for x in "DC"}
    log_L = [np.log10([max(e["L"], 1e-3) for e in evals]) for evals in after]
    found = {"N": np.array([r["N"] / 1e9 for r in mine]), "skill": np.array([1 - r["evals"][0]["L"] for r in mine])}
    log_X = {x: [np.log10([e[x] for e in evals]) for evals in after] for x in ends}
    found["k"] = np.array([-np.polyfit(log_D, y, 1)[0] for log_D, y in zip(log_X["D"], log_L, strict=True)])
    for x, end in ends.items():
        found[f"L_{x}"] = np.array([10 ** np.interp(np.log10(end), u, y) for u, y in zip(log_X[x], log_L, strict=True)])
    return found


def trend(N: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of y against log10 N over runs, and the half-width of its 95% interval (Student's t)."""
    if len(set(N)) < 2 or len(N) < 4:
        raise ValueError(f"{len(N)} runs of {len(set(N))} sizes; a trend over sizes needs four runs")
    u = np.log10(N) - np.log10(N).mean()
    slope = u @ y / (u @ u)
    rest = y - y.mean() - slope * u
    return slope, student_t.ppf(0.975, len(N) - 2) * np.sqrt(rest @ rest / (len(N) - 2) / (u @ u))


def forms(N: np.ndarray, k: np.ndarray) -> tuple[dict[str, float], np.ndarray, tuple[float, float]]:
    """Forms of k(N) over the slopes of single runs: AICc of each above the saturating one's, the 95% interval of N0 from
    redraws of runs within sizes, and the range searched for it; N and N0 in billions."""
    n, reach = len(k), (N.min() / 100, N.max() * 100)
    if n < 6:
        raise ValueError(f"{n} runs of the sizes; AICc of three parameters needs six")
    rng, same = np.random.default_rng(0), [np.flatnonzero(N == size) for size in sorted(set(N))]
    draw_Bn = np.concatenate([rng.choice(group, (REDRAWS, len(group))) for group in same], 1)
    aicc, ranges = {}, {"saturating": np.log(reach), "power": (-1, 4), "constant": (0, 0)}
    for shape, theta_range in ranges.items():
        K, theta = (v[0] for v in project(shape, np.ones((1, n)), k[None], N, theta_range))
        p, left = 2 + (shape != "constant"), k - K * SHAPES[shape](N, theta)  # the scatter counts as a parameter
        aicc[shape] = n * np.log(left @ left / n) + 2 * p + 2 * p * (p + 1) / (n - p - 1)
    _, theta_B = project("saturating", np.ones((REDRAWS, n)), k[draw_Bn], N[np.concatenate(same)], ranges["saturating"])
    return {shape: a - aicc["saturating"] for shape, a in aicc.items()}, interval(np.exp(theta_B)), reach


# ---- The forecast game --------------------------------------------------------------------------------------------


def freeze(out: Path, runs, N: int, begun: list[str]) -> None:
    """Writes OUT/forecast.json: L of a model of N parameters, from the runs given, which are of smaller ones. Never twice.

    begun: the runs of the largest size that exist already, which is then said on the page.
    """
    path = out / "forecast.json"
    if path.exists():
        if (old := json.loads(path.read_text()))["N"] != N:
            raise ValueError(f"{path} forecasts {old['N']:,} parameters, not {N:,}: give another --out")
        return
    small, forecasts = [{"name": r.name, "part": r.part, "arm": r.arm} | read_run(out / r.name) for r in runs], []
    for arm, kind in dict.fromkeys((r["arm"], r["model_type"]) for r in small):
        try:
            found = curves_from(rows_of([r for r in small if (r["arm"], r["model_type"]) == (arm, kind)]))
        except ValueError as error:
            warnings.warn(f"no forecast for {kind}, {ARM_NAMES[arm]}: {error}", stacklevel=2)
            continue
        for (_, x), curves in found.items():
            law, big = fit(curves, protocol="inter", bootstrap=REDRAWS), curves[-1]
            X_T = big.X_T * (N / 1e9 / big.N if x == "C" else 1)  # as many tokens a step as the next smaller size
            L_T, L_BT = extrapolate(law, curves, N / 1e9, X_T)
            forecasts.append({"arm": arm, "model_type": kind, "x": x, "k": float(law.slope(N / 1e9)), "X": X_T.tolist(),
                              "L": L_T.tolist(), "L_ci": interval(L_BT).tolist()})
    head = {"made": datetime.now().isoformat(timespec="seconds"), "N": N, "runs_read": [r.name for r in runs], "begun": begun}
    if forecasts:
        path.write_text(json.dumps(head | {"forecasts": forecasts}, indent=1) + "\n")


# ---- Figures: one panel each, so that a page can lay them side by side or below each other ------------------------


def plot(path: Path, panel, *args) -> None:
    figure, axis = plt.subplots(figsize=(5.2, 4.1), layout="constrained")
    panel(axis, *args)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curve_panel(axis, curves: list[Curve], line: Fit, title: str) -> None:
    """Loss against X, log-log: the mean over seeds, their range, and a line for each size."""
    bottom, spread = -np.inf, np.ptp(np.log10(np.concatenate([c.L_T for c in curves])))
    colours = palette([c.N for c in curves])
    for n, c in reversed(list(enumerate(curves))):
        colour = colours[c.N]
        axis.plot(c.X_T, c.L_T, "o", ms=3.5, color=colour, mew=0)
        axis.fill_between(c.X_T, c.L_ST.min(0), c.L_ST.max(0), color=colour, alpha=0.08, lw=0)
        L_T = line.predict(c.N, c.X_T)[0]
        axis.plot(c.X_T, L_T, color=colour, lw=1.4)
        bottom = max(np.log10(L_T[-1]), bottom + 0.05 * spread)
        axis.text(c.X_T[-1] * 1.15, 10**bottom, f"{label(c.N)}  {line.k[n]:.3f}", color=colour, fontsize=9, va="center")
    axis.set(xscale="log", yscale="log", xlabel=AXIS[curves[0].x], ylabel=LOSS, title=title)
    axis.set_xlim(right=axis.get_xlim()[1] * (axis.get_xlim()[1] / axis.get_xlim()[0]) ** 0.3)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(lambda v, _: f"{v:.1g}" if spread < 0.8 or f"{v:.0e}"[0] in "25" else "")


def slope_panel(axis, cells: dict[str, dict]) -> None:
    """k of single runs against size, and the mean of each size, one series for each cell."""
    for i, (name, c) in enumerate(cells.items()):
        colour, mark = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")[i % 4], "os^v"[i % 4]
        sizes = sorted(set(c["N"]))
        axis.plot(c["N"] * 1.05**i, c["k"], mark, color=colour, ms=3, alpha=0.5, mew=0)
        means = [c["k"][c["N"] == N].mean() for N in sizes]
        axis.plot(np.array(sizes) * 1.05**i, means, f"{mark}-", color=colour, ms=6, lw=1.3, mew=0, label=name)
    axis.axhline(0, color="0.4", lw=0.8)
    axis.set(xscale="log", xlabel="model size N (parameters)", ylabel="k, decades of L per decade of D",
             title="here: slope of every run (small) and their means")
    axis.set_xticks(sizes, map(label, sizes))
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


def skill_panel(axis, c: dict, title: str) -> None:
    """The slope of single runs against the pass rate they started from, coloured by size."""
    for N, colour in palette(c["N"]).items():
        axis.plot(c["skill"][c["N"] == N], c["k"][c["N"] == N], "o", color=colour, ms=6, mew=0, label=label(N))
    axis.set(xlabel="pass@1 before training", ylabel="k of the run, against D", title=title)
    axis.legend(fontsize=8, frameon=False)


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
    axis.plot(f["X"], f["L"], color="#D55E00", lw=1.6, label="forecast, with the law's 95% band")
    axis.plot(curve.X_T, curve.L_T, "o", color="black", ms=4, label=f"{label(curve.N)}, as it came out")
    axis.set(xscale="log", yscale="log", xlabel=AXIS[f["x"]], ylabel=LOSS, title=f"{f['model_type']}, {ARM_NAMES[f['arm']]}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(lambda v, _: f"{v:.1g}" if f"{v:.0e}"[0] in "25" else "")
    axis.legend(fontsize=8, frameon=False, loc="lower left")


# ---- The findings: each returns (verdict, one sentence, the rest of its section) ----------------------------------


def table(head: str, rows: list[list]) -> str:
    names = head.split(", ")
    return "\n".join([f"| {' | '.join(names)} |", "|" + "---|" * len(names), *(f"| {' | '.join(row)} |" for row in rows)])


def pm(value: float, half: float) -> str:
    return f"{value:+.3f} ± {half:.3f}"


def judged(good: int, all_: int) -> str:
    if not all_:
        raise ValueError("no cell has the runs for it")
    return "holds" if good == all_ else "partly" if 2 * good >= all_ else "not"  # by chance one in forty passes


def by_cell(runs: list[dict]) -> dict[str, dict]:
    """name of a cell: its single runs (see singles)."""
    found = dict.fromkeys((r["model_type"], r["arm"]) for r in runs if r["part"] == "sizes")
    if not found:
        raise ValueError("no run of the sizes")
    return {f"{kind}, {ARM_NAMES[arm]}": singles(runs, arm, kind) for kind, arm in found}


def larger_learn_more(runs: list[dict], figures: Path):
    rows, good, cells = [], Counter(), by_cell(runs)
    sizes = sorted({N for c in cells.values() for N in c["N"]})
    for name, c in cells.items():
        trends = {what: trend(c["N"], sign * c[what]) for what, sign in (("k", 1), ("L_D", -1), ("L_C", -1))}
        good += Counter({what: int(slope > half) for what, (slope, half) in trends.items()})
        means = [f"{c['k'][c['N'] == N].mean():.3f}" if N in c["N"] else "-" for N in sizes]
        rows.append([name, *means, pm(*trends["k"]), *(pm(-trends[w][0], trends[w][1]) for w in ("L_D", "L_C"))])
    plot(figures / "slopes.png", slope_panel, cells)
    plot(figures / "paper_slopes.png", paper_slope_panel)
    sentence = (f"with 95% confidence, of {len(cells)} cells k rises with size in {good['k']}, the loss after equal data "
                f"falls with size in {good['L_D']}, and after equal compute in {good['L_C']}.")
    note = ("k: means over seeds. The last three columns are changes per decade of N, with 95% intervals; equal D and equal "
            "C are the largest that every run of the cell reaches, and at the compute at which the smallest size ends the "
            "largest has only made its first few steps.")
    return judged(good.total(), 3 * len(cells)), sentence, "\n\n".join([
        table(", ".join(["cell", *(f"k {label(N)}" for N in sizes), "k", "L at equal D", "L at equal C"]), rows), note,
        images("slopes", "Slope of every run, by size", "paper_slopes", "The paper's k(N)")])


def power_law(cells: list[Cell], figures: Path):
    if not cells:
        raise ValueError("no cell has the runs for it")
    rows, arms, sizes = [], defaultdict(list), sorted({N for c in cells for N in c.own.N})
    for c in cells:
        halves = ([o.keep(part) for o, part in zip(c.curves, parts, strict=True)] for parts in zip(*(
            np.array_split(np.arange(len(o.X_T)), 2) for o in c.curves), strict=True))
        early, late = (np.median(fit(curves, "log", "free").k) for curves in halves)
        arms[c.arm] += c.r2
        r2 = dict(zip(c.own.N, c.r2, strict=True))
        rows.append([c.name, *(f"{r2[N]:.3f}" if N in r2 else "-" for N in sizes), f"{early:.3f} then {late:.3f}"])
        plot(figures / f"loss_{c.x}_{c.kind}_{c.arm}.png", curve_panel, c.curves, c.own, f"here: {c.kind}, {ARM_NAMES[c.arm]}")
    paper = curves_from(read_csv(PAPER / "points.csv"))
    for x in "DC":
        curves = paper["base", x]
        plot(figures / f"paper_{x}.png", curve_panel, curves, fit(curves, "log", "free"), "the paper: Qwen2.5 base models")
    share = {arm: np.mean(np.array(r2) >= 0.95) for arm, r2 in arms.items()}
    verdict = "holds" if min(share.values()) == 1 else "partly" if max(share.values()) >= 0.5 else "not"
    sentence = "; ".join(f"{ARM_NAMES[arm]}: R2 of at least 0.95 for {share[arm]:.0%} of the curves (lowest {min(r2):.2f}, "
                         f"median {np.median(r2):.2f})" for arm, r2 in arms.items()) + "."
    names = [name for x in "DC" for name in [*((f"loss_{x}_{c.kind}_{c.arm}", f"Loss: {c.name}") for c in cells if c.x == x),
                                             (f"paper_{x}", f"The paper, against {x}")]]
    note = ("The last column is the median slope k over the first and over the second half of the points: a power law has "
            "the same in both, and R2 alone does not see it. Dots are means over seeds, bands their range, lines least "
            "squares of log L, and the numbers beside them size and k.")
    return verdict, sentence, "\n\n".join([table(", ".join(["R2 of cell", *map(label, sizes), "k early and late"]), rows), note,
                                           images(*(part for name in names for part in name))])


def saturates(cells: list[Cell], runs: list[dict], figures: Path):
    rows, lines, good, rejected, singly = [], [], 0, 0, by_cell(runs)
    for i, (name, c) in enumerate(singly.items()):
        above, (low, high), (least, most) = forms(c["N"], c["k"])
        pinned = least * 1.01 < low and high < min(most / 1.01, 10 * low)
        good, rejected = good + (pinned and min(above["power"], above["constant"]) >= 2), rejected + (above["constant"] >= 2)
        r2 = [np.corrcoef(z, c["k"])[0, 1] ** 2 for z in (np.log10(c["N"]), c["skill"])]
        rows.append([name, f"{above['power']:+.1f}", f"{above['constant']:+.1f}",
                     f"{label(low)} to {label(high)}" + ("" if pinned else ", not pinned"), *(f"{r:.2f}" for r in r2)])
        if name.startswith("base"):
            lines.append(f"{r2[0]:.2f} of the scatter of k with log N and {r2[1]:.2f} with skill ({name})")
        plot(figures / f"skill_{i}.png", skill_panel, c, name)
    drawn = [part for i, name in enumerate(singly) for part in (f"skill_{i}", f"Slope against skill: {name}")]
    for arm in dict.fromkeys(r["arm"] for r in runs if r["part"] == "sizes"):
        base = [r for r in runs if (r["part"], r["arm"], r["model_type"]) == ("sizes", arm, "base")]
        if base and base[0]["evals"][0]["levels"]:
            plot(figures / f"reach_{arm}.png", reach_panel, base, f"base, {ARM_NAMES[arm]}")
            drawn += [f"reach_{arm}", f"pass@1 by difficulty: base, {ARM_NAMES[arm]}"]
    laws = [[c.name, c.law.verdict()] for c in cells]
    sentence = (f"the saturating form wins in {good} of {len(singly)} cells, and a constant k is rejected in {rejected}. "
                f"Skill, which is pass@1 before training, tells k beside size: {'; '.join(lines)}.")
    return judged(good, len(singly)), sentence, "\n\n".join([
        "On the slopes of single runs: AICc above that of the saturating form (positive: a worse form), the 95% interval of "
        "N0, and the share of the variance of k that size or skill alone accounts for.",
        table("cell, a N^b, constant, N0, R2 on log N, R2 on skill", rows),
        "The paper's way, on mean curves, where three bases a size count as if they did not scatter (an interval here is too "
        "narrow):",
        table("cell, the fitted law", laws), images(*drawn)])


def paired(runs: list[dict], by: str, x: str, at: float) -> dict[float, tuple[float, float, float, int]]:
    """level: (mean L, difference from the first level paired by seed, half-width of its 95% interval, seeds) at X = at, where
    L is read off a line through the points within a factor of two. ValueError without the first level."""
    L = {level: {} for level in sorted({r[by] for r in runs})}
    for r in runs:
        if found := loss_at({r["name"]: [(e[x], e["L"]) for e in r["evals"] if e[x] > 0]}, at):
            L[r[by]][r["seed"]] = found[0]
    first, out = L[min(L)], {}
    for level, own in L.items():
        d = np.array([own[s] - first[s] for s in own if s in first])
        if level == min(L) and not len(d):
            raise ValueError(f"no run of {by} {level} was evaluated four times near {x} = {at:g}")
        if len(d):
            half = student_t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.nan
            out[level] = float(np.mean([*own.values()])), float(d.mean()), float(half), len(d)
    return out


def sweep_of(runs: list[dict], by: str) -> list[dict]:
    """The runs of a sweep, with those of the sizes that are its level without a change, where the sweep leaves that out."""
    mine = [r for r in runs if r["part"] == by]
    if not mine:
        raise ValueError(f"no run of {by}")
    rest = [r for r in runs if r["part"] == "sizes" and (r["model"], r["arm"]) in {(m["model"], m["arm"]) for m in mine}
            and r[by] not in {m[by] for m in mine}]
    return mine + rest


def reuse_is_free(runs: list[dict], figures: Path):
    runs = sweep_of(runs, "reuse")
    at = min(r["evals"][-1]["step"] for r in runs)
    found = paired(runs, "reuse", "step", at)
    with open(PAPER / "reuse.csv", newline="") as file:
        points = [r for r in csv.DictReader(file) if r["kind"] == "curve" and float(r["step"]) == 100]
    paper = {float(r["tau"]): float(r["L"]) for r in points}
    series = {f"here: {label(runs[0]['N'] / 1e9)}, step {at}": [(t, d, h) for t, (_, d, h, _) in found.items()],
              "the paper: 7B, step 100": [(t, L - paper[1.0], None) for t, L in sorted(paper.items())]}
    plot(figures / "reuse.png", sweep_panel, series, "reuse factor tau (times each problem is seen)", "L above that of tau = 1",
         "at a fixed number of steps")
    rows = [[f"{tau:g}", f"{L:.3f}", pm(d, h) if tau > 1 else "-", f"{n}",
             f"{paper[tau] - paper[1.0]:+.3f}" if tau in paper else "-"] for tau, (L, d, h, n) in found.items()]
    low = {tau: (d, h) for tau, (_, d, h, _) in found.items() if 1 < tau <= 25}
    if not low:
        raise ValueError("no run with tau from 2 to 25")
    top, (_, d, h, _) = max(found.items())
    free, seems = all(d + h <= 0.02 for d, h in low.values()), all(d <= 0.02 for d, _ in low.values())
    hurts = top == 100 and d - h > 0
    verdict = "holds" if free and hurts else "partly" if free or hurts or seems else "not"
    worst = max(low, key=lambda tau: low[tau][0])
    sentence = (f"up to tau = 25 reuse costs at most {pm(*low[worst])} of loss (tau = {worst:g}); tau = {top:g} costs "
                f"{pm(d, h)}.")
    return verdict, sentence, "\n\n".join([table("tau, L, L above tau = 1 (paired; 95%), seeds, the paper's at step 100", rows),
                                           images("reuse", "Loss against reuse")])


def groups(runs: list[dict], figures: Path):
    runs, rows, last = sweep_of(runs, "group"), [], {}
    for x in "DC":
        end = min(r["evals"][-1][x] for r in runs)
        found = paired(runs, "group", x, end)
        series = {f"{label(runs[0]['N'] / 1e9)}, at {x} = {end:.3g}": [(g, d, h) for g, (_, d, h, _) in found.items()]}
        plot(figures / f"group_{x}.png", sweep_panel, series, "group size G (responses per prompt)",
             f"L above that of G = {min(found)}", f"at equal {AXIS[x]}")
        rows += [[f"{x} = {end:.3g}", f"{g:g}", f"{L:.3f}", pm(d, h) if g > min(found) else "-", f"{n}"]
                 for g, (L, d, h, n) in found.items()]
        last[x] = (max(found), *found[max(found)][1:3])
    (g, d, h), (g_C, d_C, h_C) = last["D"], last["C"]
    sentence = (f"against the smallest group, one of {g} ends {pm(d, h)} of loss away from the same prompts, and one of {g_C} "
                f"{pm(d_C, h_C)} away at equal compute.")
    return ("holds" if d + h < 0 else "not"), sentence, "\n\n".join([
        table("at, G, L, L above the smallest G (paired; 95%), seeds", rows),
        images("group_D", "Loss against group size at equal D", "group_C", "Loss against group size at equal C")])


def forecasts(cells: list[Cell], frozen: dict, figures: Path):
    rows, good, names = [], 0, []
    for f in frozen["forecasts"]:
        cell = next((c for c in cells if (c.arm, c.kind, c.x) == (f["arm"], f["model_type"], f["x"])), None)
        if not cell or abs(cell.curves[-1].N * 1e9 / frozen["N"] - 1) > 1e-6:
            continue
        big, c = cell.curves[-2:]
        L_hat, low, high = (10 ** np.interp(np.log10(c.X_T), np.log10(f["X"]), np.log10(y)) for y in (f["L"], *f["L_ci"]))
        carried = 10 ** np.interp(np.log10(c.X_T), np.log10(big.X_T), np.log10(big.L_T))
        line, refitted = cell.own.predict(big.N, c.X_T)[0], c.line(f["k"], "linear")
        misses = [np.abs(y - c.L_T).mean() for y in (L_hat, carried, line, refitted)]
        good += misses[0] < min(misses[1:3])
        inside = np.mean((low <= c.L_T) & (c.L_T <= high))
        rows.append([cell.name, *(f"{v:.3f}" for v in (*misses, f["k"], cell.own.k[-1])), f"{inside:.0%}"])
        names += [f"forecast_{f['x']}_{f['model_type']}_{f['arm']}", f"Forecast: {cell.name}"]
        plot(figures / f"{names[-2]}.png", forecast_panel, f, c)
    if not rows:
        raise ValueError("no frozen forecast of the largest size, or no run of it")
    sentence = (f"the blind forecast of {label(frozen['N'] / 1e9)} beats both rivals, the losses and the line of the next "
                f"smaller size, in {good} of {len(rows)} cells.")
    begun = frozen.get("begun") or []
    note = (f"Frozen {frozen['made']}, from {len(frozen['runs_read'])} runs of smaller sizes, "
            + (f"when {len(begun)} runs of the largest existed already, unread" if begun else "before a run of the largest "
                                                                                              "was begun")
            + ". Mean absolute errors of L: blind (K_max, N0 and the trend of E(N) extrapolated), the two rivals at equal X, "
              "and the "
            "paper's way, which fits E on the target itself and so is not blind. The band is the law's, without the scatter "
            "of the target's own bases.")
    return judged(good, len(rows)), sentence, "\n\n".join([note, table(
        "cell, blind, carried over, its line, E refitted, k forecast, k found, points within the band", rows), images(*names)])


def images(*pairs: str) -> str:
    return "\n".join(f"![{alt}]({name}.png)" for name, alt in zip(pairs[::2], pairs[1::2], strict=True))


# ---- The page -----------------------------------------------------------------------------------------------------

STATEMENTS = {
    "Larger models learn more per sample and per FLOP":
        "Larger models achieve more for the same compute and the same data; k on D rises from 0.005 at 0.5B to 0.132 at 72B.",
    "Loss follows a power law of compute and of data":
        "log10 L = -k(N) log10 X + E(N), for compute C and data D, on base and on instruct models.",
    "Learning efficiency saturates":
        "k(N) = K_max / (1 + N0/N); fitted to 0.5B-32B, on D, K_max is 0.163 and N0 is 17B.",
    "Reuse is nearly free":
        "With the number of steps fixed, loss depends little on the reuse factor up to about 25; tau = 100 overfits.",
    "Larger groups learn more from the same prompts":
        "Groups of 4, 8, 16 and 32 were compared at 7B against data and against compute. The rule is ours.",
    "The law forecasts the largest size":
        "Fitted on the sizes up to 32B, it predicts the losses of 72B (R2 within the curve 0.92, mean error 0.011, on D with E "
        "refitted; 0.77 and 0.023 blind).",
}
TASK = """
A problem is a chain of 1 to 10 additions and subtractions (its level), such as `a6b-4c+1?`, and the answer the last two
running values, so that a guess is right once in a hundred. All sizes see the same documents, with {seeds} pretraining seeds;
a base is accepted by a rule on its skill, and `models/ladder/README.md` names those refused. Two learning rates were fixed
beforehand: constant, as in the paper, and falling as 1 / step, since a steady descent in steps is not straight in
log-log. Losses are measured at steps 1, 2, 3, 4, 6, 8, 11, 16, .. on 400 held-out problems, two samples each, at
temperature 1."""
AMENDED = """
The rules of findings 1, 3, 4 and 6 were made stricter on 2026-11-23, when four sizes of the study in `results/study` were
in (`report.py` says how and why); its runs, arms and seeds were fixed before any was made."""
WORDS = """
- *k*: how many decades the loss L falls for each decade of X, which is data D (prompts) or compute C (6 N x tokens, FLOPs).
- *Run*: one training; *seed*: one pretrained base and one stream of noise; *size* N: parameters without the embedding.
- *Base* models imitate a corpus of mixed quality; *instruct* models are those after brief tuning on careful solutions.
- *Cell*: one learning-rate arm x base or instruct (x D or C). Cells share seeds, so they are not independent.
- *AICc*: misfit with a penalty for parameters, smaller is better; a difference of 2 is little, of 10 much.
- *Pinned*: the interval of N0 spans less than a factor of ten and ends inside the range searched.
- *tau*: how often each problem is seen, at a fixed number of steps; *paired*: compared run by run with the same seed.
"""


def write(out: Path) -> None:
    """Writes OUT/report.md, OUT/report.html, their figures and points_ARM.csv, which
    fit_scaling.py reads, from OUT/runs.jsonl and OUT/forecast.json."""
    head, *lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    runs, failed = [r for r in lines if not r["error"]], [r for r in lines if r["error"]]
    frozen = json.loads((out / "forecast.json").read_text()) if (out / "forecast.json").is_file() else {"forecasts": []}
    try:
        cells, lacking = cells_of(runs), ""
    except ValueError as error:  # too few runs of a size
        cells, lacking = [], f"{error}; "
    findings = []
    for (title, said), rule, make in zip(STATEMENTS.items(), rules(), (
            lambda: larger_learn_more(runs, out), lambda: power_law(cells, out), lambda: saturates(cells, runs, out),
            lambda: reuse_is_free(runs, out), lambda: groups(runs, out), lambda: forecasts(cells, frozen, out)), strict=True):
        try:
            findings.append((title, said, rule, *make()))
        except ValueError as error:
            why = f"the runs that are there do not answer it ({lacking}{error})."
            findings.append((title, said, rule, "missing", why, ""))
    text = page(head, runs, failed, findings)
    (out / "report.md").write_text(text)
    (out / "report.html").write_text(to_html(text, out))
    for arm in dict.fromkeys(r["arm"] for r in runs if r["part"] == "sizes"):
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
    ours = {r["arm"] for r in runs} <= {"constant", "inverse"}
    parts = [
        "# The paper's findings, on small models" if ours else "# The paper's findings, once more",
        "**What is claimed**: the findings of *Scaling Behaviors of LLM Reinforcement Learning Post-Training* (arXiv "
        f"2509.25300), on Qwen2.5 from 0.5B to 72B. **What was done**: GRPO on {len(sizes)} sizes of the same architecture, "
        f"{', '.join(label(N / 1e9) for N in sizes)} parameters without embeddings, in {len(runs)} runs. The loss L is 1 - "
        "pass@1 on held-out problems. " + (TASK.strip().format(seeds=len({r["seed"] for r in runs})) if ours else ""),
        "**What came out**, each verdict by a rule that stands with its section:",
        table("finding, verdict, here", [[f"{i}. {title}", MARK[verdict], sentence]
                                         for i, (title, _, _, verdict, sentence, _) in enumerate(findings, 1)]),
        "<details><summary>Words</summary>\n" + markdown.markdown(WORDS) + "\n</details>",
        AMENDED.strip() if ours else "",
    ]
    if failed:
        parts += ["## What is missing", f"{len(failed)} runs failed, and nothing below knows of them:"]
        parts += [f"`{r['name']}`\n\n```\n{r['error']}\n```" for r in failed]
    for i, (title, said, rule, verdict, sentence, body) in enumerate(findings, 1):
        parts += [f"## {i}. {title}: {MARK[verdict]}", f"> The paper: {said}", f"Rule: {rule}", f"Here: {sentence}", body]
    shown = sorted((r for r in runs if r["part"] == "sizes" and r["model_type"] == "base"), key=lambda r: r["N"])
    if shown:
        parts += ["## Before and after", *transcripts([shown[0], shown[-1]])]
    parts += ["## What was done, and how to redo it",
              f"{len(runs)} runs, {hours:.2f} device hours, {sum(r['flops'] for r in runs):.3g} FLOPs in all phases, on "
              f"{head['cores']} cores ({head['device']}), torch {head['torch']}, commit {head['commit']}. "
              + ("How the models were made, and which bases were refused, says `models/ladder/README.md`. " if ours else "")
              + f"`{head.get('command', 'python -m study.grid')}` makes the runs and this page; `python -m study.report DIR` makes the "
                f"page "
              "again, from `runs.jsonl`. Each run, by its command:",
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
            f"<title>{html.escape(text.splitlines()[0].strip('# '))}</title><style>{STYLE}</style><body>{body}</body></html>\n")


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    if len(sys.argv) != 2 or not Path(sys.argv[1], "runs.jsonl").is_file():
        sys.exit("study.report: give the directory of a study, which holds runs.jsonl")
    write(Path(sys.argv[1]))
