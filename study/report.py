"""The report on a study's runs: report.md with its figures, and report.html, which can be mailed.

    python -m study.report results/study    # again, from the committed runs.jsonl

For each finding of the paper: its statement, what came out here beside the paper's numbers, and a
verdict that a rule computes from the data. Prose and rules stand in page.md. A cell is one arm (a
learning-rate schedule) x base or instruct; k of a run is the slope of log10 L against log10 D by
least squares.
"""
import base64
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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
    split,
    student_factor,
)
from runtime.display import printable
from study.sweeps import TAU, Effect, paired, sweep_panel

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
def gather(out: Path, runs) -> None:
    """Write OUT/runs.jsonl: where the runs were made, then a line for each run of study.grid."""
    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [{"commit": commit or "unknown", "torch": torch.__version__, "device": device}]
    for run in runs:
        found = {} if run.error else read_run(out / run.name)
        lines.append(asdict(run) | found)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (out / "runs.jsonl").write_text(text)


def read_run(path: Path) -> dict:
    """What the report needs of a finished run."""
    flags = json.loads((path / "flags.json").read_text())
    points = read_runs([path / "metrics.jsonl"])
    first = points[0]
    return {
        "model_type": first["model_type"],
        "reuse": first["reuse"],
        "group": first["group"],
        "N": round(first["N"] * 1e9),
        "seed": flags["seed"],
        "evals": list(map(measured, points)),
    }


def measured(point: dict) -> dict:
    return {name: point[name] for name in ("step", "D", "C", "L")}


def rows_of(runs: list[dict]) -> list[dict]:
    """The points of runs, as fit_scaling.py takes them: N in billions."""
    rows = []
    for run in runs:
        same = {"run": run["name"], "N": run["N"] / 1e9, "model_type": run["model_type"]}
        rows += [same | point for point in run["evals"]]
    return rows


def shared_end(runs: list[dict], x: str) -> float:
    """The largest X that all runs reach."""
    return min(run["evals"][-1][x] for run in runs)


def read_off(at, X, L):
    """L at X = at, between measured points by straight lines in log-log."""
    logs = np.interp(np.log10(at), np.log10(X), np.log10(np.maximum(L, 1e-3)))
    return 10**logs


class Single(NamedTuple):
    """Single runs of a cell: arrays of n runs."""
    N: np.ndarray    # billions
    k: np.ndarray    # slope against D
    L_D: np.ndarray  # L at the largest D that all runs reach
    L_C: np.ndarray  # L at the largest such C

    def means(self) -> tuple[np.ndarray, list[float]]:
        """The sizes, ascending, and the mean k of each."""
        sizes = np.unique(self.N)
        return sizes, [self.k[self.N == N].mean() for N in sizes]


@dataclass
class Cell:
    """The size runs of one arm and model type."""
    arm: str
    kind: str
    runs: list[dict]

    @property
    def name(self) -> str:
        return f"{self.kind}, {ARM_NAMES[self.arm]}"

    @cached_property
    def single(self) -> Single:
        D_end = shared_end(self.runs, "D")
        C_end = shared_end(self.runs, "C")
        rows = []
        for run in self.runs:
            points = [(e["D"], e["C"], max(e["L"], 1e-3)) for e in run["evals"] if e["step"]]
            D, C, L = np.transpose(points)
            k = -np.polyfit(np.log10(D), np.log10(L), 1)[0]
            rows.append([run["N"] / 1e9, k, read_off(D_end, D, L), read_off(C_end, C, L)])
        return Single(*np.transpose(rows))

    @cached_property
    def curves(self) -> dict[str, list[Curve]]:
        """{x: mean curves by size}. ValueError if the runs are too few."""
        by_key = curves_from(rows_of(self.runs))
        return {x: by_key[self.kind, x] for x in "CD"}

    @cached_property
    def own(self) -> dict[str, Fit]:
        """{x: a line for each size, by the error of log L}."""
        return {x: fit(curves, "log", "free") for x, curves in self.curves.items()}

    def draw(self, out: Path, what: str, panel, *args, **names) -> str:
        """A figure of this cell against D; see `draw`."""
        path = out / f"{what}_D_{self.kind}_{self.arm}"
        return draw(path, panel, *args, title=self.name, **names)


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
    for cell in cells_of([asdict(run) | read_run(out / run.name) for run in runs]):
        try:
            forecasts += [forecast(cell, x, N / 1e9) for x in "CD"]
        except ValueError as error:
            warnings.warn(f"no forecast for {cell.name}: {error}", stacklevel=2)
    if forecasts:
        made = datetime.now().isoformat(timespec="seconds")
        names = [run.name for run in runs]
        frozen = {"made": made, "N": N, "runs_read": names, "forecasts": forecasts}
        path.write_text(json.dumps(frozen, indent=1) + "\n")


def forecast(cell: Cell, x: str, N: float) -> dict:
    """The blind forecast of a size N (billions), at as many tokens a step as the size below it."""
    curves = cell.curves[x]
    law = fit(curves, protocol="inter", bootstrap=REDRAWS)
    below = curves[-1]
    X_T = below.X_T * (N / below.N) if x == "C" else below.X_T
    L_T, L_BT = extrapolate(law, N, X_T)
    return {
        "arm": cell.arm,
        "model_type": cell.kind,
        "x": x,
        "k": float(law.slope([N])[0]),
        "X": X_T.tolist(),
        "L": L_T.tolist(),
        "L_ci": interval(L_BT).tolist(),
    }


# ---------------------------------------------------------------- Tables and figures
class Finding(NamedTuple):
    """What fills a section of page.md."""
    verdict: str
    names: dict
    rows: Iterable[list] = ()  # of its table
    figures: str = ""


def judged(good: int, count: int) -> str:
    """The verdict on a statement that is true in `good` of `count` cells."""
    if good == count:
        return "holds"
    return "partly" if 2 * good >= count else "not"


def table_rows(rows: Iterable[list]) -> str:
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
    save(figure, path)
    return f"![{names['title']}]({path.name}.png)\n"


def listed(values) -> str:
    """The values of all sizes in one cell of a table, the smallest size first."""
    return ", ".join(f"{value:.3f}" for value in values)


# ---------------------------------------------------------------- 1. Larger models learn more
def trend(N: np.ndarray, y: np.ndarray) -> Effect:
    """Slope of y against log10 N over runs."""
    n = len(N)
    if len(set(N)) < 2 or n < 4:
        raise ValueError(f"{n} runs of {len(set(N))} sizes; a trend over sizes needs four runs")
    line = linregress(np.log10(N), y)
    return Effect(line.slope, student_factor(n - 2) * line.stderr)


def larger_learn_more(study: Study) -> Finding:
    rows = []
    rises = falls_D = falls_C = 0
    for cell in study.cells:
        runs = cell.single
        k, L_D, L_C = (trend(runs.N, y) for y in (runs.k, runs.L_D, runs.L_C))
        rises += k.low > 0
        falls_D += L_D.high < 0
        falls_C += L_C.high < 0
        _, means = runs.means()
        rows.append([cell.name, listed(means), k, L_D, L_C])
    figure = draw(study.out / "slopes", slope_panel, study.cells,
                  title="k of every run (small) and the mean of each size",
                  ylabel="k, decades of L per decade of D")
    count = len(study.cells)
    names = {"cells": count, "rises": rises, "falls_D": falls_D, "falls_C": falls_C}
    return Finding(judged(rises + falls_D + falls_C, 3 * count), names, rows, figure)


def slope_panel(axis, cells: list[Cell]) -> None:
    """k of single runs and the mean of each size, a series for each cell."""
    sizes = set()
    for i, cell in enumerate(cells):
        runs = cell.single
        N, means = runs.means()
        sizes.update(N)
        aside = 1.05**i  # so that the series do not hide each other
        style = {"color": SERIES[i], "marker": "os^v"[i], "mew": 0}
        axis.plot(runs.N * aside, runs.k, ls="", ms=4, alpha=0.5, **style)
        axis.plot(N * aside, means, ms=7, lw=1.4, label=cell.name, **style)
    axis.axhline(0, color="0.4", lw=0.8)
    size_axis(axis, sorted(sizes))
    axis.legend(loc="upper left")


# ---------------------------------------------------------------- 2. The power law
def power_law(study: Study) -> Finding:
    rows, figures = [], ""
    r2_of_arm = {}
    for cell in study.cells:
        for x, own in cell.own.items():
            r2 = [log_r_squared([(c.L_T, own.predict(c.N, c.X_T))]) for c in own.curves]
            r2_of_arm.setdefault(cell.arm, []).extend(r2)
            # R2 does not see a bend; the slopes of the two halves do.
            early, late = split(own.curves, np.median(own.curves[0].step_T))
            rows.append([f"{cell.name}, {x}", listed(r2), median_slope(early), median_slope(late)])
        own = cell.own["D"]
        figures += cell.draw(study.out, "loss", loss_panel, own.curves, own, ylabel=LOSS_LABEL)
    shares, sentences = [], []
    for arm, r2 in r2_of_arm.items():
        share = np.mean(np.array(r2) >= 0.95)
        shares.append(share)
        sentences.append(f"with {ARM_NAMES[arm]}, {share:.0%} of the curves have an R2 of at least "
                         f"0.95 (lowest {min(r2):.2f}, median {np.median(r2):.2f})")
    verdict = "partly" if max(shares) >= 0.5 else "not"
    if min(shares) == 1:
        verdict = "holds"
    return Finding(verdict, {"arms": "; ".join(sentences)}, rows, figures)


def median_slope(curves: list[Curve]) -> float:
    return np.median(fit(curves, "log", "free").k)


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
    rows, figures = [], ""
    wins = rejected = 0
    for cell in study.cells:
        runs = cell.single
        found = forms(runs.N, runs.k)
        wins += found.pinned and min(found.power, found.constant) >= 2
        rejected += found.constant >= 2
        N0 = " to ".join(map(label, found.N0_ends)) + ("" if found.pinned else ", not pinned")
        rows.append([cell.name, f"{found.power:+.1f}", f"{found.constant:+.1f}", N0])
        law = fit(cell.curves["D"], bootstrap=REDRAWS)
        figures += cell.draw(study.out, "k", k_panel, cell.own["D"], [law],
                             ylabel="k of the mean curve, against D")
    count = len(study.cells)
    names = {"cells": count, "wins": wins, "rejected": rejected}
    return Finding(judged(wins, count), names, rows, figures)


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


def reuse_is_free(study: Study) -> Finding:
    runs = sweep_of(study.runs, "reuse")
    above = paired(runs, "reuse", "step", shared_end(runs, "step"))
    low = {tau: effect for tau, effect in above.items() if 1 < tau <= 25}
    if not low:
        raise ValueError("no run with tau from 2 to 25")
    worst, top = max(low, key=low.get), max(above)
    free = all(effect.high <= 0.02 for effect in low.values())
    hurts = 100 in above and above[100].low > 0
    verdict = "partly" if hurts or low[worst].value <= 0.02 else "not"
    if free and hurts:
        verdict = "holds"
    size = label(runs[0]["N"] / 1e9)
    figure = draw(study.out / "reuse", sweep_panel, {size: above}, xlabel=TAU,
                  ylabel="L above that of tau = 1", title=f"{size}, at equal steps")
    names = {"worst": worst, "most": low[worst], "top": top, "at_top": above[top]}
    return Finding(verdict, names, above.items(), figure)


def groups(study: Study) -> Finding:
    runs = sweep_of(study.runs, "group")
    size = label(runs[0]["N"] / 1e9)
    above, above_C = (paired(runs, "group", x, shared_end(runs, x)) for x in "DC")
    smallest = min(above)
    largest = max(above.keys() & above_C.keys())
    equal_D = above[largest]
    figure = draw(study.out / "group_D", sweep_panel, {size: above},
                  xlabel="group size G (completions per prompt)",
                  ylabel=f"L above that of G = {smallest}",
                  title=f"{size}, at equal {AXIS['D']}")
    names = {"G": largest, "smallest": smallest,
             "equal_D": equal_D, "equal_C": above_C[largest]}
    return Finding("holds" if equal_D.high < 0 else "not", names, above.items(), figure)


# ---------------------------------------------------------------- 6. The forecast
def forecasts(study: Study) -> Finding:
    frozen = study.frozen
    by_key = {(made["arm"], made["model_type"], made["x"]): made for made in frozen["forecasts"]}
    rows, figures = [], ""
    good = 0
    for cell in study.cells:
        largest = max(run["N"] for run in cell.runs)
        for x, own in cell.own.items():
            made = by_key.get((cell.arm, cell.kind, x))
            if not made or largest != frozen["N"]:
                continue
            blind, carried, line = misses(made, own)
            good += blind < min(carried, line)
            rows.append([f"{cell.name}, {x}", blind, carried, line, made["k"], own.k[-1]])
            if x == "D":
                figures += cell.draw(study.out, "forecast", forecast_panel, made, own.curves[-1],
                                     xlabel=AXIS["D"], ylabel=LOSS_LABEL)
    if not rows:
        raise ValueError("no frozen forecast of the largest size, or no run of it")
    names = {
        "size": label(frozen["N"] / 1e9),
        "good": good,
        "cells": len(rows),
        "made": frozen["made"],
    }
    return Finding(judged(good, len(rows)), names, rows, figures)


def misses(made: dict, own: Fit) -> np.ndarray:
    """Mean absolute errors of L of the largest size, by the forecast and by its two rivals."""
    below, target = own.curves[-2:]
    X_T = target.X_T
    blind_T = read_off(X_T, made["X"], made["L"])
    carried_T = read_off(X_T, below.X_T, below.L_T)
    line_T = own.predict(below.N, X_T)
    return np.abs([blind_T, carried_T, line_T] - target.L_T).mean(1)


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
    """Write OUT/report.md, report.html and their figures."""
    study = Study(out)
    text = page(study)
    (out / "report.md").write_text(text)
    (out / "report.html").write_text(to_html(text, out))
    print(f"\n{out / 'report.html'}; failed runs: {len(study.failed)}")


def page(study: Study) -> str:
    """page.md with its names filled in: the head, a section for each finding, the end."""
    text = (HERE / "page.md").read_text()
    if any(run["arm"] == "recipe" for run in study.runs):  # other models than the ladder
        text = re.sub(r"<!-- ladder -->\n.*?<!-- end -->\n", "", text, flags=re.S)
    text = re.sub(r"<!-- (ladder|end) -->\n", "", text)
    head, *sections, end = re.split(r"^(?=## )", text, flags=re.M)
    filled, overview = [], []
    for section, make in zip(sections, FINDINGS, strict=True):
        try:
            finding = make(study)
        except ValueError as error:
            finding = Finding("missing", {"error": error})
            section = re.sub(r"^Here: .*", f"Here: {MISSING}\n\n", section, flags=re.M | re.S)
        verdict = MARK[finding.verdict]
        filled.append(Template(section).substitute(
            finding.names, verdict=verdict, rows=table_rows(finding.rows),
            figures=finding.figures))
        title, here = re.match(r"## (.*?): .*?^Here: (.*?)\n\n", filled[-1], re.M | re.S).groups()
        here = " ".join(here.split())
        overview.append([title, verdict, here])
        print(f"{verdict:>18}  {title}: {here}")
    names = study.head | about(study) | {"overview": table_rows(overview)}
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
    }


def to_html(text: str, out: Path) -> str:
    """The page with its figures inside."""
    import markdown

    body = markdown.markdown(text, extensions=["tables", "fenced_code", "md_in_html"])

    def inside(match):
        data = (out / match[1]).read_bytes()
        return f'src="data:image/png;base64,{base64.b64encode(data).decode()}"'

    body = re.sub(r'src="([^"]+\.png)"', inside, body)
    return Template((HERE / "page.html").read_text()).substitute(body=body)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1], "runs.jsonl").is_file():
        sys.exit("study.report: give the directory of a study, which holds runs.jsonl")
    write(Path(sys.argv[1]))
