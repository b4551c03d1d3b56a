"""Learning curves from finished runs, or from any table: what fit_scaling.py fits.

A row is an evaluation: N (billions of parameters), L = 1 - pass@1, and X, which is D (prompts) or C (FLOPs); runs of one size
are seeds. Rows that would make a wrong law are refused by name; rows that can be dropped are dropped, counted and named.
"""
import csv
import json
import warnings
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from figures import label

warn = partial(warnings.warn, stacklevel=2)


@dataclass(frozen=True)
class Curve:
    """One size's learning curve against one X: S seeds measured at the same T steps; a fit sees their mean L_T."""
    model_type: str
    x: str                      # "C" or "D"
    N: float                    # billions of parameters
    step_T: np.ndarray
    X_T: np.ndarray             # mean over seeds
    L_ST: np.ndarray
    start: float | None = None  # L before training; X = 0 has no logarithm, so only the sigmoid can use it

    @property
    def L_T(self):
        return self.L_ST.mean(0)

    def keep(self, mask_T):
        return replace(self, step_T=self.step_T[mask_T], X_T=self.X_T[mask_T], L_ST=self.L_ST[:, mask_T])

    def line(self, k, loss):
        """L_T of a line of slope k whose E is fitted on this very curve, as the paper forecasts a new size: not blind."""
        p_T, on = self.X_T**-k, self.L_T > 0
        return p_T * (self.L_T @ p_T / (p_T @ p_T) if loss == "linear" else 10 ** np.log10(self.L_T[on] / p_T[on]).mean())


def read_runs(paths, source=None):
    """Rows (dicts) of the eval lines of metrics.jsonl files, with reuse, group and model from the flags.json beside each.

    source: the evaluation set to use, by default the first one met. Raises ValueError naming file and line for broken input;
    a torn last line (a killed run) is dropped with a warning.
    """
    rows = []
    for path in map(Path, paths):
        settings, lines, records = path.with_name("flags.json"), path.read_text().splitlines(), []
        flags = json.loads(settings.read_text()) if settings.is_file() else {}
        if not flags:
            warn(f"{path}: no flags.json there, so reuse 1")
        for i, line in enumerate(lines, 1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as e:
                if i < len(lines):
                    raise ValueError(f"{path}:{i}: not JSON ({e}); repair or delete that line") from None
                warn(f"{path}: the last line is torn (was the run killed?); dropped")
        N = next((r["N"] for r in records if "N" in r), None)
        if N is None:
            raise ValueError(f"{path}: no training line gives N, so the model's size is unknown; leave this run out")
        evals = [r for r in records if r.get("kind") == "eval"]
        source = source or next((r.get("source") for r in evals), None)
        if others := {str(r.get("source")) for r in evals} - {str(source)}:
            warn(f"{path}: using evaluations on {source}, not on {sorted(others)} (choose with --source)")
        run = {"run": str(path.parent), "N": N / 1e9, "reuse": flags.get("reuse", 1), "group": flags.get("group"),
               "model_type": "instruct" if "instruct" in str(flags.get("model")).lower() else "base"}
        try:  # by step, as a resumed run may repeat one; the last line is the one it went on from
            rows += {r["step"]: run | {c: r[c] for c in ("step", "D", "C")} | {"L": r["loss"]}
                     for r in evals if r.get("source") == source}.values()
        except KeyError as e:
            raise ValueError(f"{path}: an eval line lacks {e}") from None
    return rows


def read_csv(path, need=("N", "L", "C or D or x_kind")):
    """Rows (dicts) of a CSV: N in billions, L, and D, C, or X with x_kind; optional step, run, seed, model_type, reuse, group.

    Rows with an empty or NaN number are dropped and counted; ValueError for a missing column or a word for a number.
    """
    rows, dropped = [], []
    with open(path, newline="") as f:
        reader = csv.DictReader(f)
        found = reader.fieldnames or []
        if missing := [c for c in need if not {*found} & {*c.split(" or ")}]:
            raise ValueError(f"{path}: missing column {', '.join(missing)}; found {', '.join(sorted(found)) or 'nothing'}")
        numbers = [c for c in found if c in ("N", "X", "C", "D", "L", "step", "tau", "reuse", "group")]
        for i, r in enumerate(reader, 2):
            try:
                row = r | {c: float(r[c] or "nan") for c in numbers} | {"at": f"{path}:{i}"}
            except ValueError as e:
                raise ValueError(f"{path}:{i}: {e}") from None
            if {"X", "x_kind"} <= row.keys():
                row[row["x_kind"]] = row["X"]
            (rows if np.isfinite([row[c] for c in numbers]).all() else dropped).append(row)
    if dropped:
        warn(f"dropped {len(dropped)} rows with an empty or NaN number, first {', '.join(r['at'] for r in dropped[:5])}")
    return rows


def curves_from(rows, clip=(1, np.inf)):
    """Rows to {(model_type, x): [Curve, ...] by size}. Runs of one size are seeds, averaged at the steps all of them have.

    clip: first and last step used. Raises ValueError naming the row (L outside 0..1; N, or X after step 0, not positive; a
    step twice in one run) or the size (too few points).
    """
    seeds = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))  # (model_type, x), N, run: {step: (X, L)}
    for r in rows:
        at, N, L = r.get("at") or f"{r['run']}, step {r['step']}", r["N"], r["L"]
        if not 0 <= L <= 1:
            raise ValueError(f"{at}: L = {L:g}; L = 1 - pass@1 lies in 0..1 (from percent, divide by 100)")
        if not 0 < N < 1e5:
            raise ValueError(f"{at}: N = {N:g}; sizes are in billions of parameters (7 for 7B)")
        for x in {"C", "D"} & r.keys():
            if r[x] < 0 or (r[x] == 0 and r.get("step") != 0):
                raise ValueError(f"{at}: {x} = {r[x]:g}; the law takes its logarithm, so after step 0 it is positive")
            points = seeds[r.get("model_type") or "base", x][N][r.get("run", r.get("seed"))]
            if (step := r.get("step", r[x])) in points:
                raise ValueError(f"{at}: step {step:g} of {label(N)} was there before; tell runs apart by a column run or seed")
            points[step] = r[x], L
    if not seeds:
        raise ValueError("no points: the input holds no evaluation with a loss")
    for (kind, _), sizes in seeds.items():
        if len(sizes) < 2:
            raise ValueError(f"{kind} models: only one size ({label(*sizes)}); k(N) needs at least two")
    return {key: [curve_of(*key, N, [*seeds[key][N].values()], clip) for N in sorted(seeds[key])] for key in sorted(seeds)}


def curve_of(kind, x, N, seeds, clip):
    """One Curve from the seeds {step: (X, L)} of a size."""
    shared = sorted(set.intersection(*map(set, seeds)))
    if lost := len(set.union(*map(set, seeds))) - len(shared):
        warn(f"size {label(N)}: {lost} steps are not in all of its {len(seeds)} seeds; dropped")
    X_ST, L_ST = np.array([[s[t] for t in shared] for s in seeds]).reshape(len(seeds), -1, 2).transpose(2, 0, 1)
    c = Curve(kind, x, N, np.array(shared), X_ST.mean(0), L_ST)
    start = float(c.L_T[0]) if len(shared) and c.X_T[0] == 0 else None
    c = replace(c.keep((c.X_T > 0) & (c.step_T >= clip[0]) & (c.step_T <= clip[1])), start=start)
    if len(set(c.X_T)) < 3:
        raise ValueError(f"size {label(N)}: {len(set(c.X_T))} points with {x} > 0; at least three are needed")
    if solved := int((c.L_T == 0).sum()):
        warn(f"size {label(N)}: L = 0 (all problems solved) at {solved} points. log 0 is infinite: fits of the error of L use "
             "these points, fits of log L and R2 leave them out")
    return c
