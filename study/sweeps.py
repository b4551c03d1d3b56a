"""Sweeps over the reuse factor tau and the group size G: the loss above that of the first level.

    python -m study.sweeps    # the paper's own reuse runs, as we read them: results/paper/reuse.png

report.py compares runs of one seed with each other. The paper publishes one run for each tau, so
its intervals come from the scatter of the points around a line.
"""
import csv
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fit_scaling import SERIES, panels, save, student_factor

PAPER = Path(__file__).resolve().parent.parent / "results" / "paper"
TAU = "reuse factor tau (times each problem is seen)"
Points = list[tuple[float, float]]  # (X, L)


class Effect(NamedTuple):
    """An estimate with the half-width of its 95% interval (nan where it has none)."""
    value: float
    half: float

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    def __str__(self) -> str:
        if np.isnan(self.half):
            return f"{self.value:+.3f}"
        return f"{self.value:+.3f} ± {self.half:.3f}"


def read_at(points: Points, at: float) -> Effect | None:
    """L of one run at X = at: a line in log X through the points within a factor of two.

    None without four points that reach the place from both sides.
    """
    near = [(X, L) for X, L in points if at / 2 <= X <= at * 2]
    if len(dict(near)) < 4:
        return None
    X, L = np.transpose(near)
    x = np.log(X / at)
    if x.min() > 0.1 or x.max() < -0.1:
        return None
    line, covariance = np.polyfit(x, L, 1, cov=True)
    error = np.sqrt(covariance[1, 1])
    freedom = len(x) - 2
    return Effect(line[1], student_factor(freedom) * error)


def paired(runs: list[dict], by: str, x: str, at: float) -> dict[float, Effect]:
    """{level: L above that of the first level} at X = at, paired by seed.

    runs: lines of runs.jsonl. ValueError without the first level.
    """
    L = defaultdict(dict)  # level: {seed: L}
    for run in runs:
        points = [(e[x], e["L"]) for e in run["evals"] if e[x] > 0]
        reading = read_at(points, at)
        if reading:
            level, seed = run[by], run["seed"]
            L[level][seed] = reading.value
    lowest = min(run[by] for run in runs)
    first = L[lowest]
    if not first:
        raise ValueError(f"no run of {by} {lowest} was evaluated four times near {x} = {at:g}")
    found = {}
    for level, own in sorted(L.items()):
        above = [own[seed] - first[seed] for seed in own if seed in first]
        if above:
            found[level] = mean_effect(above)
    return found


def mean_effect(values: list[float]) -> Effect:
    """The mean of independent values, with Student's t."""
    n = len(values)
    mean = np.mean(values)
    if n == 1:
        return Effect(mean, np.nan)
    error = np.std(values, ddof=1) / np.sqrt(n)
    return Effect(mean, student_factor(n - 1) * error)


def sweep_panel(axis, series: dict[str, dict[float, Effect]]) -> None:
    """Loss above that of the first level, with 95% intervals; levels are evenly spaced.

    series: {name: {level: Effect}}, all of the same levels.
    """
    for i, (name, effects) in enumerate(series.items()):
        aside = 0.06 * i  # so that the series do not hide each other
        x = np.arange(len(effects)) + aside
        value, half = np.transpose(list(effects.values()))
        axis.errorbar(x, value, half, marker="osd"[i], ms=6, lw=1.4, capsize=3, color=SERIES[i],
                      label=name)
    first, *_ = series.values()
    levels = [f"{level:g}" for level in first]
    axis.set_xticks(range(len(levels)), levels)
    axis.axhline(0, color="0.4", lw=0.8)
    if len(series) > 1:
        axis.legend(loc="upper left")


# ---------------------------------------------------------------- The paper's reuse runs
def paper_reuse() -> dict[float, Points]:
    """{tau: [(step, L), ...]} of results/paper/reuse.csv, without its smoothed curves."""
    points = defaultdict(list)
    with open(PAPER / "reuse.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["kind"] == "scatter":
                tau = float(row["tau"])
                points[tau].append((float(row["step"]), float(row["L"])))
    return points


def costs(runs: dict[float, Points], step: float) -> dict[float, Effect]:
    """{tau: L above that of tau = 1}; the errors of two runs add up by squares."""
    first = read_at(runs[1], step)
    found = {1: Effect(0.0, 0.0)}
    for tau, points in runs.items():
        if tau > 1:
            here = read_at(points, step)
            half = np.hypot(here.half, first.half)
            found[tau] = Effect(here.value - first.value, half)
    return found


def main() -> None:
    runs = paper_reuse()
    end = min(max(points)[0] for points in runs.values())
    series = {}
    print("Loss of the paper's 7B model above that of tau = 1, with its 95% interval")
    for share in (0.25, 0.5, 1):
        step = round(share * end)
        effects = costs(runs, step)
        series[f"step {step}"] = effects
        for tau, effect in effects.items():
            print(f"  step {step:3}, tau = {tau:3g}: {effect}")
    figure, (axis,) = panels(1)
    sweep_panel(axis, series)
    axis.set(xlabel=TAU, ylabel="L above that of tau = 1", title="the paper: 7B base model")
    save(figure, PAPER / "reuse")


if __name__ == "__main__":
    main()
