"""The report on a study's runs: report.md with its figures, and report.html, which can be mailed.

    python -m study.report results/study    # again, from the committed runs.jsonl

For each finding of the paper: its statement, what came out here beside the paper's numbers, and a
verdict that a rule computes from the data. Prose and rules stand in page.md. A cell is one arm (a
learning-rate schedule) x base or instruct; k of a run is the slope of log10 L against log10 D by
least squares.
"""
import base64
import csv
import html
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from datetime import datetime
from functools import cached_property
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import linregress

from fit_scaling import (
    AXIS,
    LOSS_LABEL,
    SERIES,
    Curve,
    Fit,
    N0_range,
    aicc,
    curves_from,
    extrapolate,
    fit,
    fit_slopes,
    interval,
    is_pinned,
    k_panel,
    label,
    log_r_squared,
    loss_panel,
    loss_ticks,
    panels,
    read_lines,
    read_runs,
    save,
    shape_function,
    size_axis,
    student_factor,
)
from runtime.display import printable
from study.sweeps import TAU, Effect, Level, paired, paper_reuse, sweep_panel

HERE = Path(__file__).resolve().parent
MARK = {
    "holds": "✔ holds",
    "partly": "◐ holds partly",
    "not": "✘ not seen here",
    "missing": "? not enough runs",
}
ARM_NAMES = {
    "constant": "constant learning rate",
    "inverse": "learning rate / step",
    "recipe": "the recipe",
}
MISSING = "the finished runs do not answer this ($error)."
REDRAWS = 1000  # behind the 95% intervals


# ---------------------------------------------------------------- From runs to points
def gather(out: Path, runs, commands: list[str]) -> None:
    """Write OUT/runs.jsonl, all that the report needs: where the runs were made, then a line each.

    runs: those of study.grid, each with its command.
    """
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    lines = [{
        "commit": commit or "unknown",
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "device": gpu or "CPU",
        "command": shlex.join(["python", *sys.argv]),
    }]
    for run, command in zip(runs, commands, strict=True):
        found = {} if run.error else read_run(out / run.name)
        lines.append(describe(run) | {"command": command, "error": run.error} | found)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "runs.jsonl").write_text(text)


def describe(run) -> dict:
    return {"name": run.name, "part": run.part, "arm": run.arm, "model": run.model}


def read_run(path: Path) -> dict:
    """What the report needs of a finished run."""
    flags = json.loads((path / "flags.json").read_text())
    records = read_lines(path / "metrics.jsonl")
    points = read_runs([path / "metrics.jsonl"])
    same = {name: points[0][name] for name in ("model_type", "reuse", "group")}
    flops = [sum(record["flops"].values()) for record in records]
    return same | {
        "N": round(points[0]["N"] * 1e9),
        "seed": flags["seed"],
        "hours": records[-1]["gpu_hours"],
        "flops": sum(flops),
        "evals": list(map(measured, points)),
    }


def measured(point: dict) -> dict:
    return {name: point[name] for name in ("step", "D", "C", "L")}


def rows_of(runs: list[dict]) -> list[dict]:
    """The points of runs, as fit_scaling.py takes them: N in billions."""
    rows = []
    for run in runs:
        same = {"run": run["name"], "N": run["N"] / 1e9}
        same |= {name: run[name] for name in ("model_type", "reuse", "group")}
        rows += [same | point for point in run["evals"]]
    return rows


def read_off(at, X, L):
    """L at X = at, between measured points by straight lines in log-log."""
    logs = np.interp(np.log10(at), np.log10(X), np.log10(np.maximum(L, 1e-3)))
    return 10**logs


class Single(NamedTuple):
    """Single runs of a cell: arrays of n runs."""
    N: np.ndarray      # billions
    k: np.ndarray      # slope against D
    skill: np.ndarray  # pass@1 before training
    L_D: np.ndarray    # L at the largest D that all of them reach
    L_C: np.ndarray    # L at the largest such C


class Fitted(NamedTuple):
    """What was fitted to the mean curves of a cell against one x."""
    cell: "Cell"
    own: Fit  # a line for each size, by the error of log L
    law: Fit

    @property
    def name(self) -> str:
        return f"{self.cell.name}, {self.own.x}"

    @property
    def file(self) -> str:
        return f"{self.own.x}_{self.cell.kind}_{self.cell.arm}"


class Cell:
    """The size runs of one arm and model type."""

    def __init__(self, arm: str, kind: str, runs: list[dict]):
        self.arm = arm
        self.kind = kind
        self.runs = runs
        self.name = f"{kind}, {ARM_NAMES[arm]}"

    @cached_property
    def single(self) -> Single:
        D_end = min(run["evals"][-1]["D"] for run in self.runs)
        C_end = min(run["evals"][-1]["C"] for run in self.runs)
        k, L_D, L_C = [], [], []
        for run in self.runs:
            points = [(e["D"], e["C"], max(e["L"], 1e-3)) for e in run["evals"] if e["step"]]
            D, C, L = np.transpose(points)
            k.append(-np.polyfit(np.log10(D), np.log10(L), 1)[0])
            L_D.append(read_off(D_end, D, L))
            L_C.append(read_off(C_end, C, L))
        N = [run["N"] / 1e9 for run in self.runs]
        skill = [1 - run["evals"][0]["L"] for run in self.runs]
        return Single(*map(np.array, (N, k, skill, L_D, L_C)))

    def curves(self) -> dict[str, list[Curve]]:
        """{x: mean curves by size}. ValueError if the runs are too few."""
        by_key = curves_from(rows_of(self.runs))
        return {x: by_key[self.kind, x] for x in "CD"}


def cells_of(runs: list[dict]) -> list[Cell]:
    by_key = {}
    for run in runs:
        if run["part"] == "sizes":
            by_key.setdefault((run["arm"], run["model_type"]), []).append(run)
    return [Cell(*key, mine) for key, mine in by_key.items()]


class Study:
    """What a report is made of: OUT/runs.jsonl and OUT/forecast.json."""

    def __init__(self, out: Path):
        self.out = out
        self.head, *lines = read_lines(out / "runs.jsonl")
        self.runs = [line for line in lines if not line["error"]]
        self.failed = [line for line in lines if line["error"]]
        frozen = out / "forecast.json"
        self.frozen = json.loads(frozen.read_text()) if frozen.is_file() else {"forecasts": []}

    @cached_property
    def cells(self) -> list[Cell]:
        cells = cells_of(self.runs)
        if not cells:
            raise ValueError("no run of the sizes")
        return cells

    @cached_property
    def fitted(self) -> list[Fitted]:
        found = []
        for cell in self.cells:
            for curves in cell.curves().values():
                own = fit(curves, "log", "free")
                found.append(Fitted(cell, own, fit(curves, bootstrap=REDRAWS)))
        return found


# ---------------------------------------------------------------- The forecast game
def freeze(out: Path, runs, N: int) -> None:
    """Write OUT/forecast.json, once: L of a model of N parameters, from runs of smaller ones."""
    path = out / "forecast.json"
    if path.exists():
        old = json.loads(path.read_text())["N"]
        if old != N:
            raise ValueError(f"{path} forecasts {old:,} parameters, not {N:,}: give another --out")
        return
    forecasts = []
    for cell in cells_of([describe(run) | read_run(out / run.name) for run in runs]):
        try:
            curves = cell.curves()
        except ValueError as error:
            warnings.warn(f"no forecast for {cell.name}: {error}", stacklevel=2)
            continue
        forecasts += [forecast(cell, x, curves[x], N / 1e9) for x in curves]
    made = datetime.now().isoformat(timespec="seconds")
    names = [run.name for run in runs]
    head = {"made": made, "N": N, "runs_read": names}
    if forecasts:
        path.write_text(json.dumps(head | {"forecasts": forecasts}, indent=1) + "\n")


def forecast(cell: Cell, x: str, curves: list[Curve], N: float) -> dict:
    """The blind forecast of a size N (billions), at as many tokens a step as the size below it."""
    law = fit(curves, protocol="inter", bootstrap=REDRAWS)
    below = curves[-1]
    X_T = below.X_T * (N / below.N) if x == "C" else below.X_T
    L_T, L_BT = extrapolate(law, N, X_T)
    return {"arm": cell.arm, "model_type": cell.kind, "x": x, "k": float(law.slope([N])[0]),
            "X": X_T.tolist(), "L": L_T.tolist(), "L_ci": np.array(interval(L_BT)).tolist()}


# ---------------------------------------------------------------- Tables and figures
class Finding(NamedTuple):
    """What fills a section of page.md."""
    verdict: str
    names: dict


def judged(good: int, count: int) -> str:
    """The verdict on a statement that is true in `good` of `count` cells."""
    return "holds" if good == count else "partly" if 2 * good >= count else "not"


def table_rows(rows: list[list]) -> str:
    """Markdown; fractions with three decimals. The heads of the tables stand in page.md."""
    lines = []
    for row in rows:
        cells = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, panel, *args, **names) -> str:
    """A figure of one panel, so that a page sets them side by side or below each other.

    names: title and labels of the axes. Returns the Markdown that shows the figure.
    """
    figure, (axis,) = panels(1, (5.2, 4.2))
    panel(axis, *args)
    axis.set(**names)
    save(figure, path, ["png"])
    return f"![{names['title']}]({path.name}.png)\n"


# ---------------------------------------------------------------- 1. Larger models learn more
def trend(N: np.ndarray, y: np.ndarray) -> Effect:
    """Slope of y against log10 N over runs."""
    n = len(N)
    if len(set(N)) < 2 or n < 4:
        raise ValueError(f"{n} runs of {len(set(N))} sizes; a trend over sizes needs four runs")
    line = linregress(np.log10(N), y)
    return Effect(line.slope, student_factor(n - 2) * line.stderr)


def larger_learn_more(study: Study) -> Finding:
    sizes = sorted({run["N"] / 1e9 for cell in study.cells for run in cell.runs})
    rows = []
    rises = falls_D = falls_C = 0
    for cell in study.cells:
        runs = cell.single
        k, L_D, L_C = (trend(runs.N, y) for y in (runs.k, runs.L_D, runs.L_C))
        rises += k.low > 0
        falls_D += L_D.high < 0
        falls_C += L_C.high < 0
        means = [np.mean(runs.k[runs.N == N]) if N in runs.N else "-" for N in sizes]
        rows.append([cell.name, *means, k, L_D, L_C])
    count = len(study.cells)
    return Finding(judged(rises + falls_D + falls_C, 3 * count), {
        "cells": count, "rises": rises, "falls_D": falls_D, "falls_C": falls_C,
        "sizes": " | ".join(f"k {label(N)}" for N in sizes), "dashes": "---|" * len(sizes),
        "rows": table_rows(rows),
        "figures": draw(study.out / "slopes", slope_panel, study.cells, sizes,
                        title="k of every run (small) and the mean of each size",
                        ylabel="k, decades of L per decade of D")})


def slope_panel(axis, cells: list[Cell], sizes: list[float]) -> None:
    """k of single runs and the mean of each size, a series for each cell."""
    for i, cell in enumerate(cells):
        runs = cell.single
        aside = 1.05**i  # so that the series do not hide each other
        style = {"color": SERIES[i % 4], "marker": "os^v"[i % 4], "mew": 0}
        N = np.unique(runs.N)
        means = [runs.k[runs.N == size].mean() for size in N]
        axis.plot(runs.N * aside, runs.k, ls="", ms=4, alpha=0.5, **style)
        axis.plot(N * aside, means, ms=7, lw=1.4, label=cell.name, **style)
    axis.axhline(0, color="0.4", lw=0.8)
    size_axis(axis, sizes)
    axis.legend(loc="upper left")


# ---------------------------------------------------------------- 2. The power law
def power_law(study: Study) -> Finding:
    sizes = sorted({curve.N for found in study.fitted for curve in found.own.curves})
    rows, r2_of_arm = [], {}
    figures = {"C": "", "D": ""}
    for found in study.fitted:
        own = found.own
        r2 = {c.N: log_r_squared([(c.L_T, own.predict(c.N, c.X_T))]) for c in own.curves}
        r2_of_arm.setdefault(found.cell.arm, []).extend(r2.values())
        shown = [r2.get(N, "-") for N in sizes]
        early, late = half_slopes(own.curves)
        rows.append([found.name, *shown, f"{early:.3f} then {late:.3f}"])
        figures[own.x] += draw(study.out / f"loss_{found.file}", loss_panel, own.curves, own,
                               title=found.cell.name, ylabel=LOSS_LABEL)
    shares, sentences = [], []
    for arm, r2 in r2_of_arm.items():
        share = np.mean(np.array(r2) >= 0.95)
        shares.append(share)
        sentences.append(f"with {ARM_NAMES[arm]}, {share:.0%} of the curves have an R2 of at least "
                         f"0.95 (lowest {min(r2):.2f}, median {np.median(r2):.2f})")
    verdict = "partly" if max(shares) >= 0.5 else "not"
    if min(shares) == 1:
        verdict = "holds"
    return Finding(verdict, {
        "arms": "; ".join(sentences), "sizes": " | ".join(map(label, sizes)),
        "dashes": "---|" * len(sizes), "rows": table_rows(rows),
        "figures_D": figures["D"], "figures_C": figures["C"]})


def half_slopes(curves: list[Curve]) -> tuple[float, float]:
    """Median over sizes of k, over the first and over the second half of the points."""
    early, late = [], []
    for curve in curves:
        first, second = np.array_split(np.arange(len(curve.X_T)), 2)
        early.append(curve.keep(first))
        late.append(curve.keep(second))
    return np.median(fit(early, "log", "free").k), np.median(fit(late, "log", "free").k)


# ---------------------------------------------------------------- 3. Saturation
class Forms(NamedTuple):
    """How forms of k(N) fit the slopes of single runs."""
    power: float     # AICc above that of the saturating form
    constant: float  # the same
    N0_ends: tuple   # 95% interval, billions
    pinned: bool


def forms(N: np.ndarray, k: np.ndarray) -> Forms:
    """N in billions. The interval of N0 comes from redraws of runs within sizes."""
    n = len(k)
    if n < 6:
        raise ValueError(f"{n} runs of the sizes; AICc of three parameters needs six")
    misfit = {}
    for shape, parameters in {"saturating": 2, "power": 2, "constant": 1}.items():
        K, theta = fit_slopes(shape, N, k[None])
        error = k - K * shape_function(shape, N, theta)
        misfit[shape] = aicc(n, np.mean(error**2), parameters)
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(N == size) for size in np.unique(N)]
    draws = [rng.choice(group, (REDRAWS, len(group))) for group in groups]
    k_Bn = k[np.concatenate(draws, axis=1)]
    _, theta_B = fit_slopes("saturating", N[np.concatenate(groups)], k_Bn)
    ends = interval(np.exp(theta_B))
    best = misfit["saturating"]
    return Forms(misfit["power"] - best, misfit["constant"] - best, ends,
                 is_pinned(ends, N0_range(N)))


def saturates(study: Study) -> Finding:
    rows = []
    wins = rejected = 0
    for cell in study.cells:
        runs = cell.single
        found = forms(runs.N, runs.k)
        wins += found.pinned and min(found.power, found.constant) >= 2
        rejected += found.constant >= 2
        by_size = np.corrcoef(np.log10(runs.N), runs.k)[0, 1] ** 2
        by_skill = np.corrcoef(runs.skill, runs.k)[0, 1] ** 2
        N0 = " to ".join(map(label, found.N0_ends)) + ("" if found.pinned else ", not pinned")
        rivals = f"{found.power:+.1f}", f"{found.constant:+.1f}"
        rows.append([cell.name, *rivals, N0, by_size, by_skill])
    laws, figures = [], ""
    for found in study.fitted:
        laws.append([found.name, found.law.verdict()])
        if found.own.x == "D":
            figures += draw(study.out / f"k_{found.file}", k_panel, found.own, [found.law],
                            title=found.cell.name, ylabel="k of the mean curve, against D")
    count = len(study.cells)
    return Finding(judged(wins, count), {
        "cells": count, "wins": wins, "rejected": rejected, "rows": table_rows(rows),
        "laws": table_rows(laws), "figures": figures})


# ---------------------------------------------------------------- 4. Reuse, 5. Groups
def sweep_of(runs: list[dict], by: str) -> list[dict]:
    """The runs of a sweep.

    The size runs of the same model and arm stand for a level that the sweep leaves out.
    """
    mine = [run for run in runs if run["part"] == by]
    if not mine:
        raise ValueError(f"no run of {by}")
    levels = {run[by] for run in mine}
    settings = {(run["model"], run["arm"]) for run in mine}
    for run in runs:
        same = (run["model"], run["arm"]) in settings
        if run["part"] == "sizes" and same and run[by] not in levels:
            mine.append(run)
    return mine


def level_rows(found: dict[float, Level]) -> list[list]:
    """Level, L, L above the first level, and seeds."""
    rows = []
    for level, there in found.items():
        above = there.above if rows else "-"
        rows.append([f"{level:g}", there.L, above, there.seeds])
    return rows


def reuse_verdict(above: dict[float, Effect]) -> str:
    low = [effect for tau, effect in above.items() if 1 < tau <= 25]
    hurts = 100 in above and above[100].low > 0
    free = all(effect.high <= 0.02 for effect in low)
    seems_free = all(effect.value <= 0.02 for effect in low)
    if free and hurts:
        return "holds"
    return "partly" if hurts or seems_free else "not"


def reuse_is_free(study: Study) -> Finding:
    runs = sweep_of(study.runs, "reuse")
    step = min(run["evals"][-1]["step"] for run in runs)
    found = paired(runs, "reuse", "step", step)
    above = {tau: level.above for tau, level in found.items()}
    low = [tau for tau in above if 1 < tau <= 25]
    if not low:
        raise ValueError("no run with tau from 2 to 25")
    paper = {tau: dict(points)[100] for tau, points in paper_reuse("curve").items()}
    theirs = {tau: Effect(L - paper[1], np.nan) for tau, L in paper.items()}
    rows = [[*row, theirs.get(tau, "-")] for tau, row in zip(found, level_rows(found), strict=True)]
    series = {f"here: {label(runs[0]['N'] / 1e9)}, step {step}": above,
              "the paper: 7B, step 100": theirs}
    worst, top = max(low, key=above.get), max(above)
    return Finding(reuse_verdict(above), {
        "worst": f"{worst:g}", "most": above[worst], "top": f"{top:g}", "at_top": above[top],
        "rows": table_rows(rows),
        "figures": draw(study.out / "reuse", sweep_panel, series, xlabel=TAU,
                        ylabel="L above that of tau = 1", title="at a fixed number of steps")})


def groups(study: Study) -> Finding:
    runs = sweep_of(study.runs, "group")
    size = label(runs[0]["N"] / 1e9)
    rows, figures, largest = [], "", {}
    for x in "DC":
        end = min(run["evals"][-1][x] for run in runs)
        found = paired(runs, "group", x, end)
        smallest = min(found)
        above = {group: level.above for group, level in found.items()}
        rows += [[f"{x} = {end:.4g}", *row] for row in level_rows(found)]
        figures += draw(study.out / f"group_{x}", sweep_panel, {size: above},
                        xlabel="group size G (completions per prompt)",
                        ylabel=f"L above that of G = {smallest}",
                        title=f"{size}, at equal {AXIS[x]}: {end:.4g}")
        largest[x] = above[max(above)]
    return Finding("holds" if largest["D"].high < 0 else "not", {
        "G": max(found), "smallest": smallest, "equal_D": apart(largest["D"]),
        "equal_C": apart(largest["C"]), "rows": table_rows(rows), "figures": figures})


def apart(effect: Effect) -> str:
    """A difference of losses, in words."""
    where = "lower" if effect.value < 0 else "higher"
    return f"{abs(effect.value):.3f} ± {effect.half:.3f} {where}"


# ---------------------------------------------------------------- 6. The forecast
class Misses(NamedTuple):
    """Mean absolute errors of L of the largest size."""
    blind: float
    carried: float   # the losses of the next smaller size
    line: float      # the line of the next smaller size
    refitted: float  # the law's slope, E fitted on the target itself
    inside: float    # share of points within the forecast's band


def misses(made: dict, found: Fitted) -> Misses:
    below, target = found.own.curves[-2:]

    X_T = target.X_T
    guesses = [
        read_off(X_T, made["X"], made["L"]),
        read_off(X_T, below.X_T, below.L_T),
        found.own.predict(below.N, X_T),
        target.line(made["k"]),
    ]
    low, high = (read_off(X_T, made["X"], end) for end in made["L_ci"])
    inside = np.mean((low <= target.L_T) & (target.L_T <= high))
    return Misses(*np.abs(guesses - target.L_T).mean(1), inside)


def forecasts(study: Study) -> Finding:
    frozen = study.frozen
    rows, figures = [], ""
    good = 0
    by_key = {(f.cell.arm, f.cell.kind, f.own.x): f for f in study.fitted}
    for made in frozen["forecasts"]:
        found = by_key.get((made["arm"], made["model_type"], made["x"]))
        if not found or round(found.own.N[-1] * 1e9) != frozen["N"]:
            continue
        missed = misses(made, found)
        good += missed.blind < min(missed.carried, missed.line)
        rows.append([found.name, *missed[:4], made["k"], found.own.k[-1], f"{missed.inside:.0%}"])
        figures += draw(study.out / f"forecast_{found.file}", forecast_panel, made,
                        found.own.curves[-1], title=found.cell.name, xlabel=AXIS[made["x"]],
                        ylabel=LOSS_LABEL)
    if not rows:
        raise ValueError("no frozen forecast of the largest size, or no run of it")
    return Finding(judged(good, len(rows)), {
        "size": label(frozen["N"] / 1e9), "good": good, "cells": len(rows),
        "made": frozen["made"], "read": len(frozen["runs_read"]),
        "rows": table_rows(rows), "figures": figures})


def forecast_panel(axis, made: dict, curve: Curve) -> None:
    axis.fill_between(made["X"], *made["L_ci"], color=SERIES[1], alpha=0.15, lw=0)
    axis.plot(made["X"], made["L"], color=SERIES[1], lw=1.8,
              label="forecast, with the law's 95% band")
    axis.plot(curve.X_T, curve.L_T, "o", color="black", ms=6, mew=0,
              label=f"{label(curve.N)}, measured")
    axis.set(xscale="log", yscale="log")
    loss_ticks(axis)
    axis.legend(loc="lower left")


# ---------------------------------------------------------------- The page
FINDINGS = (larger_learn_more, power_law, saturates, reuse_is_free, groups, forecasts)


def write(out: Path) -> None:
    """Write OUT/report.md, report.html, their figures, and points_ARM.csv for fit_scaling.py."""
    study = Study(out)
    findings = []
    for make in FINDINGS:
        try:
            findings.append(make(study))
        except ValueError as error:
            findings.append(Finding("missing", {"error": error}))
    text = page(study, findings)
    (out / "report.md").write_text(text)
    (out / "report.html").write_text(to_html(text, out))
    sizes = [run for run in study.runs if run["part"] == "sizes"]
    for arm in {run["arm"] for run in sizes}:
        rows = rows_of([run for run in sizes if run["arm"] == arm])
        with open(out / f"points_{arm}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    print(f"\n{out / 'report.html'}; failed runs: {len(study.failed)}")


def page(study: Study, findings: list[Finding]) -> str:
    """page.md with its names filled in: the head, a section for each finding, the end."""
    text = (HERE / "page.md").read_text()
    if any(run["arm"] == "recipe" for run in study.runs):  # other models than the ladder
        text = re.sub(r"<!-- ladder -->\n.*?<!-- end -->\n", "", text, flags=re.S)
    text = re.sub(r"<!-- (ladder|end) -->\n", "", text)
    head, *sections, end = re.split(r"^(?=## )", text, flags=re.M)
    filled, overview = [], []
    for section, finding in zip(sections, findings, strict=True):
        if finding.verdict == "missing":
            section = re.sub(r"^Here: .*", f"Here: {MISSING}\n\n", section, flags=re.M | re.S)
        verdict = MARK[finding.verdict]
        filled.append(Template(section).substitute(finding.names, verdict=verdict))
        title, here = re.match(r"## (.*?): .*?^Here: (.*?)\n\n", filled[-1], re.M | re.S).groups()
        overview.append([title, verdict, " ".join(here.split())])
        print(f"{verdict:>18}  {title}: {overview[-1][2]}")
    names = {"command": "python -m study.grid"} | study.head | about(study)
    names["overview"] = table_rows(overview)
    return Template(head).substitute(names) + "".join(filled) + Template(end).substitute(names)


def about(study: Study) -> dict:
    """What page.md says of all runs together."""
    failures = ""
    for run in study.failed:
        # The end of a log may hold text of a model: no control characters, no end of the block.
        error = printable(run["error"]).replace("```", "'''")
        failures += f"`{run['name']}`\n\n```\n{error}\n```\n\n"
    if failures:
        failures = f"## What is missing\n\nThese runs failed and count nowhere:\n\n{failures}"
    sizes = sorted({run["N"] for run in study.runs})
    return {
        "failures": failures,
        "sizes": ", ".join(label(N / 1e9) for N in sizes),
        "count": len(study.runs),
        "seeds": len({run["seed"] for run in study.runs}),
        "hours": f"{sum(run['hours'] for run in study.runs):.2f}",
        "flops": f"{sum(run['flops'] for run in study.runs):.3g}",
    }


def to_html(text: str, out: Path) -> str:
    """The page with its figures inside."""
    import markdown

    body = markdown.markdown(text, extensions=["tables", "fenced_code", "md_in_html"])
    body = re.sub(r"<p>(?=<img)", '<p class="figures">', body)

    def inside(match):
        data = (out / match[1]).read_bytes()
        return f'src="data:image/png;base64,{base64.b64encode(data).decode()}"'

    body = re.sub(r'src="([^"]+\.png)"', inside, body)
    title = html.escape(text.partition("\n")[0].removeprefix("# "))
    return Template((HERE / "page.html").read_text()).substitute(title=title, body=body)


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    if len(sys.argv) != 2 or not Path(sys.argv[1], "runs.jsonl").is_file():
        sys.exit("study.report: give the directory of a study, which holds runs.jsonl")
    write(Path(sys.argv[1]))
