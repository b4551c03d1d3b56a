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
        return f"{self.value:+.3f}" + ("" if np.isnan(self.half) else f" ± {self.half:.3f}")


def read_at(points: Points, at: float) -> Effect | None:
    """L of one run at X = at: a line in log X through the points within a factor of two.

    None without four points that reach the place from both sides.
    """
    near = [(np.log(X / at), L) for X, L in points if at / 2 <= X <= at * 2]
    x, L = np.array(near).reshape(-1, 2).T
    if len(set(x)) < 4 or x.min() > 0.1 or x.max() < -0.1:
        return None
    line, covariance = np.polyfit(x, L, 1, cov=True)
    error = np.sqrt(covariance[1, 1])
    return Effect(line[1], student_factor(len(x) - 2) * error)


class Level(NamedTuple):
    """One level of a sweep at one place."""
    L: float       # mean over runs
    above: Effect  # L above the first level, paired by seed
    seeds: int     # that have both levels


def paired(runs: list[dict], by: str, x: str, at: float) -> dict[float, Level]:
    """{level: Level} of runs (lines of runs.jsonl) at X = at. ValueError without the first level.
    """
    L = defaultdict(dict)  # level: {seed: L}
    for run in runs:
        points = [(e[x], e["L"]) for e in run["evals"] if e[x] > 0]
        reading = read_at(points, at)
        if reading:
            L[run[by]][run["seed"]] = reading.value
    lowest = min(run[by] for run in runs)
    first = L[lowest]
    if not first:
        raise ValueError(f"no run of {by} {lowest} was evaluated four times near {x} = {at:g}")
    found = {}
    for level, own in sorted(L.items()):
        above = [own[seed] - first[seed] for seed in own if seed in first]
        if above:
            found[level] = Level(np.mean([*own.values()]), mean_effect(above), len(above))
    return found


def mean_effect(values: list[float]) -> Effect:
    """The mean of independent values, with Student's t."""
    n = len(values)
    half = student_factor(n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return Effect(np.mean(values), half)


def sweep_panel(axis, series: dict[str, dict[float, Effect]]) -> None:
    """Loss above that of the first level, with 95% intervals; series: {name: {level: Effect}}.

    Levels are evenly spaced.
    """
    levels = sorted(set().union(*series.values()))
    for i, (name, effects) in enumerate(series.items()):
        x = [levels.index(level) + 0.06 * i for level in effects]
        value, half = zip(*effects.values(), strict=True)
        axis.errorbar(x, value, np.nan_to_num(half), fmt="osd^"[i] + "-", ms=6, lw=1.4,
                      capsize=3, color=SERIES[i], label=name)
    axis.axhline(0, color="0.4", lw=0.8)
    axis.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    if len(series) > 1:
        axis.legend(loc="upper left")


# ---------------------------------------------------------------- The paper's reuse runs
def paper_reuse(kind: str) -> dict[float, Points]:
    """{tau: [(step, L), ...]} of results/paper/reuse.csv. kind: scatter, or curve (smoothed)."""
    points = defaultdict(list)
    with open(PAPER / "reuse.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["kind"] == kind:
                points[float(row["tau"])].append((float(row["step"]), float(row["L"])))
    return dict(sorted(points.items()))


def main() -> None:
    runs = paper_reuse("scatter")
    end = min(max(points)[0] for points in runs.values())
    series = {}
    print("Loss of the paper's 7B model above that of tau = 1, with its 95% interval")
    for step in (round(end / 4), round(end / 2), round(end)):
        first = read_at(runs[1], step)
        effects = series[f"step {step}"] = {}
        for tau, points in runs.items():
            here = read_at(points, step)
            half = np.hypot(here.half, first.half) if tau > 1 else 0.0
            effects[tau] = Effect(here.value - first.value, half)
            print(f"  step {step:3}, tau = {tau:3g}: {effects[tau]}")
    figure, (axis,) = panels(1)
    sweep_panel(axis, series)
    axis.set(xlabel=TAU, ylabel="L above that of tau = 1", title="the paper: 7B base model")
    save(figure, PAPER / "reuse")


if __name__ == "__main__":
    main()
