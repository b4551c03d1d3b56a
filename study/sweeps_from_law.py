"""Sweeps over the reuse factor and the group size: the loss at a fixed place, with intervals.

    python -m study.sweeps_from_law results/paper/reuse.csv results/paper     # tau of the paper, 7B
"""
import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fit_scaling import AXIS, LOSS_LABEL, label, palette, panels, save, student_factor, table

PLACES = AXIS | {"step": "step"}
LEVELS = {
    "reuse": "reuse factor tau (times each problem is seen)",
    "group": "group size G (responses per prompt)",
}


class Reading(NamedTuple):
    """The loss at a place."""
    L: float     # mean over runs
    half: float  # half-width of its 95% interval
    runs: int


def line_at(points, at):
    """L of one run at X = at by a line in log X through its points [(X, L), ...] within a factor of
    two. Returns L, its standard error and degrees of freedom; None without four points around."""
    near = [(np.log(X / at), L) for X, L in points if at / 2 <= X <= at * 2]
    x, L = np.array(near).reshape(-1, 2).T
    if len(set(x)) < 4 or x.min() > 0.1 or x.max() < -0.1:
        return None
    design = np.stack([np.ones_like(x), x], axis=1)
    line, *_ = np.linalg.lstsq(design, L, rcond=None)
    freedom = len(x) - 2
    variance = ((L - design @ line) ** 2).sum() / freedom
    covariance = variance * np.linalg.inv(design.T @ design)
    return line[0], np.sqrt(covariance[0, 0]), freedom


def loss_at(runs, at):
    """Reading at X = at of {run: [(X, L), ...]}; None if no run was measured there.

    The interval is that of the mean over runs, or of the line of a single run (Student's t).
    """
    lines = [line for points in runs.values() if (line := line_at(points, at))]
    if not lines:
        return None
    L = [line[0] for line in lines]
    _, error, freedom = lines[0]
    if len(L) > 1:
        freedom = len(L) - 1
        error = np.std(L, ddof=1) / np.sqrt(len(L))
    return Reading(float(np.mean(L)), float(student_factor(freedom) * error), len(L))


def sweep(rows, by, x):
    """Loss against `by` ("reuse" or "group") at a quarter, half and all of the range of x ("step",
    "D", "C") that every level reaches. Rows (dicts), one for each size, place and level; `above_1`
    is the loss above that of level 1 there."""
    sizes = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for r in rows:
        if r.get(x, 0) > 0 and r.get(by) is not None:
            levels = sizes[r.get("model_type") or "base", r.get("N")]
            levels[r[by]][r.get("run", r.get("seed"))].append((r[x], r["L"]))
    found = []
    for (model_type, N), levels in sizes.items():
        if len(levels) > 1:
            end = min(last_X(runs) for runs in levels.values())
            for share in (0.25, 0.5, 1):
                at = round(share * end) if x == "step" else share * end
                head = {"model_type": model_type, "N": N, "x": x, "at": at}
                found += [head | row for row in sweep_at(levels, by, at)]
    return found


def last_X(runs):
    return max(X for points in runs.values() for X, _ in points)


def sweep_at(levels, by, at):
    rows = []
    first = loss_at(levels[1], at) if 1 in levels else None
    for level in sorted(levels):
        here = loss_at(levels[level], at)
        if here is None:
            continue
        row = {by: level, "runs": here.runs, "L": here.L}
        row["L_ci"] = [here.L - here.half, here.L + here.half]
        if first and level != 1:
            above = here.L - first.L
            half = np.hypot(here.half, first.half)
            row |= {"above_1": above, "above_1_ci": [above - half, above + half]}
        rows.append(row)
    return rows


def limits(rows, margin):
    """Of a reuse sweep: the largest tau whose loss is within `margin` of tau = 1 at each place, by
    the estimate and surely (by the upper end of its 95% interval)."""
    found = []
    for r in rows:  # at each place the levels follow each other, upwards
        if r["reuse"] == 1:
            head = {name: r[name] for name in ("model_type", "N", "x", "at")}
            found.append(head | {"margin": margin, "largest_within": 1, "surely": 1})
        elif "above_1" in r:
            if r["above_1"] <= margin:
                found[-1]["largest_within"] = r["reuse"]
            if r["above_1_ci"][1] <= margin:
                found[-1]["surely"] = r["reuse"]
    return found


def sweep_panel(axis, rows, by):
    """Loss against `by` with 95% intervals: rows of `sweep`, of one size and one kind of X."""
    levels = sorted({r[by] for r in rows})
    places = palette(r["at"] for r in rows)
    for i, (at, colour) in enumerate(places.items()):
        line = [r for r in rows if r["at"] == at]
        shift = 0.06 * (i - 1)  # bars stand beside each other
        x = [levels.index(r[by]) + shift for r in line]
        L = [r["L"] for r in line]
        half = [r["L_ci"][1] - r["L"] for r in line]
        axis.errorbar(x, L, half, fmt="o-", ms=5, lw=1.3, capsize=2, color=colour)
        axis.annotate(f"{rows[0]['x']} {at:.3g}", (x[-1], L[-1]), (10, 0), color=colour,
                      textcoords="offset points", va="center")
    first = rows[0]
    size = "" if first["N"] is None else f" {label(first['N'])}"
    axis.set(xlabel=LEVELS[by], xlim=(-0.3, len(levels)),
             title=f"at fixed {PLACES[first['x']]}, {first['model_type']}{size}")
    axis.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])


def draw_sweeps(out, sweeps):
    """Write OUT/reuse and OUT/group, a panel for each size and X; sweeps: {"reuse": rows, ...}."""
    for by, rows in sweeps.items():
        groups = defaultdict(list)
        for r in rows:
            groups[r["model_type"], r["N"], r["x"]].append(r)
        if groups:
            figure, axes = panels(1, len(groups), (5.4, 4.2), LOSS_LABEL)
            for axis, group in zip(axes[0], groups.values(), strict=True):
                sweep_panel(axis, group, by)
            save(figure, Path(out) / by)


def read_reuse(path):
    """Rows of a CSV with tau, step, L and kind; points of a smoothed curve have no scatter."""
    rows = []
    with open(path, newline="") as file:
        for r in csv.DictReader(file):
            if r["kind"] != "curve":
                rows.append({"model_type": r["model_type"], "reuse": float(r["tau"]),
                             "step": float(r["step"]), "L": float(r["L"])})
    return rows


def main(path, out):
    rows = sweep(read_reuse(path), "reuse", "step")
    draw_sweeps(out, {"reuse": rows})
    print(table("Loss against the reuse factor tau",
                ["model_type", "at", "reuse", "L", "above_1", "runs"], rows))
    print()
    print(table("The largest tau that costs no more than a margin",
                ["model_type", "at", "margin", "largest_within", "surely"], limits(rows, 0.01)))


if __name__ == "__main__":
    main(*sys.argv[1:])
