"""The scaling law of RL post-training, fitted to finished runs or to any table of points.

    log10 L(N, X) = -k(N) log10 X + E(N),    k(N) = K_max / (1 + N0 / N)       (arXiv 2509.25300)

L is the held-out loss, 1 - pass@1. X is data D (prompts) or training compute C (FLOPs, 6 N x
tokens). N is the model size; k, the learning efficiency, says how many decades L falls for each
decade of X; E is the intercept of a size. N and N0 are in BILLIONS of parameters in this file, in
CSV files and in fit.json (7e-6 is 7,000 parameters); the terminal prints 7B, 84k, 7k.

How a fit works, from the inside out:

1. Lines. In log L every size has a straight line. Weighted least squares gives its slope k and
   how much weight that slope carries; the intercept E drops out (variable projection).
2. Grid search. k(N) = K f(N, theta) is fitted to these slopes. For each theta the best K is a
   ratio of sums, so only theta is searched: on a grid, then on a finer one around its best value.
3. Iteratively reweighted least squares. The paper minimises the error of L, not of log L. Around
   the present fit, L is a straight line in log L, so the error of L is a weighted error of log L:
   fit the lines, renew the weights, until nothing moves. Steps 1 and 2 are exact, so the result
   is a minimum, with the same digits for everybody.
4. Bootstrap. The whole fit is repeated on data sets that might have been measured instead; their
   2.5% and 97.5% percentiles are the intervals (see `redraw`).

Where this deviates from the paper: it searches with an unseeded evolution strategy, and N0 in
0.1B..100B, which means nothing for models of 10k parameters; here N0 lies between a hundredth of
the smallest size and a hundred times the largest (--n0-bounds for another range). The paper gives
no intervals. It refits E on the model that it forecasts; here a blind forecast stands beside that.
"""
import csv
import hashlib
import json
import math
import sys
import warnings
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.optimize import least_squares
from scipy.special import stdtrit

LN10 = np.log(10.0)
TINY = 1e-300  # keeps a division by an exact zero finite
AXIS = {"C": "training compute C (FLOPs)", "D": "data D (prompts)"}
LOSS_LABEL = "held-out loss L = 1 - pass@1"
PAIR = ("#0072B2", "#D55E00")  # blue and orange, told apart by colour-blind eyes
warn = partial(warnings.warn, stacklevel=2)


# ---------------------------------------------------------------- 1. Points
@dataclass(frozen=True)
class Curve:
    """The learning curve of one size against one X: S seeds, measured at the same T steps."""
    model_type: str             # "base" or "instruct"
    x: str                      # "C" or "D"
    N: float                    # billions of parameters
    step_T: np.ndarray
    X_T: np.ndarray             # mean over seeds
    L_ST: np.ndarray
    start: float | None = None  # L before training; X = 0 has no logarithm: for the sigmoid only

    @property
    def L_T(self):
        """Mean over seeds: what is fitted."""
        return self.L_ST.mean(0)

    def keep(self, mask_T):
        return replace(
            self, step_T=self.step_T[mask_T], X_T=self.X_T[mask_T], L_ST=self.L_ST[:, mask_T])

    def line(self, k, loss):
        """L_T of the line of slope k whose E is refitted on this curve, so not a blind forecast."""
        p_T = self.X_T**-k
        if loss == "linear":
            return p_T * (self.L_T @ p_T) / (p_T @ p_T)
        on = self.L_T > 0
        return p_T * 10 ** np.log10(self.L_T[on] / p_T[on]).mean()


def label(N):
    """N in billions as people write it: 72B, 0.5B, 3.2M, 84k."""
    for smallest, unit, letter in ((0.2, 1, "B"), (1e-3, 1e-3, "M"), (1e-6, 1e-6, "k")):
        if N >= smallest:
            return f"{N / unit:.3g}{letter}"
    return f"{N * 1e9:.3g}"


def read_lines(path):
    """The records of a metrics.jsonl. A torn last line (a killed run) is dropped, with a note."""
    records = []
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as e:
            if i < len(lines):
                raise ValueError(f"{path}:{i}: not JSON ({e}); repair or delete it") from None
            warn(f"{path}: the last line is torn (was the run killed?); dropped")
    return records


def read_runs(paths, source=None):
    """Rows (dicts) of the evaluations in metrics.jsonl files: run, N, settings, step, D, C, L.

    reuse, group and the model type come from the flags.json beside each file. source: the
    evaluation set to use, by default the first one met. ValueError names file and line.
    """
    rows = []
    for path in map(Path, paths):
        records = read_lines(path)
        N = next((r["N"] for r in records if "N" in r), None)
        if N is None:
            raise ValueError(f"{path}: no training line gives N, the model's size; leave it out")
        evals = [r for r in records if r.get("kind") == "eval"]
        found = {r.get("source"): None for r in evals}  # in the order of the file
        source = source or next(iter(found), None)
        if found.keys() - {source}:
            others = ", ".join(str(s) for s in found if s != source)
            warn(f"{path}: uses evaluations on {source}, not on {others} (--source chooses)")
        run = {"run": str(path.parent), "N": N / 1e9} | read_settings(path.with_name("flags.json"))
        steps = {}  # a resumed run may repeat a step; its last line is the one it went on from
        for r in evals:
            if r.get("source") == source:
                steps[r.get("step")] = run | measurement(path, r)
        rows += steps.values()
    return rows


def read_settings(path):
    """What tells runs apart, from a run's flags.json."""
    if not path.is_file():
        warn(f"{path} is not there: the run counts as a base model with reuse 1")
    flags = json.loads(path.read_text()) if path.is_file() else {}
    model_type = "instruct" if "instruct" in str(flags.get("model")).lower() else "base"
    return {"reuse": flags.get("reuse", 1), "group": flags.get("group"), "model_type": model_type}


def measurement(path, record):
    loss = "loss" if "test_loss" not in record and "loss" in record else "test_loss"  # older runs
    for name in ("step", "D", "C", loss):
        if name not in record:
            raise ValueError(f"{path}: an evaluation lacks {name!r}; leave this run out")
    return {name: record[name] for name in ("step", "D", "C")} | {"L": record[loss]}


def read_csv(path, need=("N", "L", "C or D or x_kind")):
    """Rows (dicts) of a CSV: N (billions), L, and D, C, or X with x_kind; optional step, run,
    seed, model_type, reuse, group.

    Rows with an empty or NaN number are dropped, with a note. ValueError names a missing column,
    or the line of a word that stands for a number.
    """
    rows, dropped = [], []
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        missing = [c for c in need if not set(c.split(" or ")) & set(columns)]
        if missing:
            found = ", ".join(sorted(columns)) or "nothing"
            raise ValueError(f"{path}: missing column {', '.join(missing)}; found {found}")
        numeric = {"N", "X", "C", "D", "L", "step", "tau", "reuse", "group"} & set(columns)
        for i, row in enumerate(reader, 2):
            row["at"] = f"{path}:{i}"
            try:
                numbers = {c: float(row[c] or "nan") for c in numeric}
            except ValueError as e:
                raise ValueError(f"{row['at']}: {e}") from None
            row |= numbers
            if "X" in row and "x_kind" in row:
                row[row["x_kind"]] = row["X"]
            good = all(map(math.isfinite, numbers.values()))
            (rows if good else dropped).append(row)
    if dropped:
        places = ", ".join(row["at"] for row in dropped[:5])
        warn(f"dropped {len(dropped)} rows with an empty or NaN number, first {places}")
    return rows


def check_row(row, at):
    """Refuse a row that would make a wrong law."""
    if not 0 <= row["L"] <= 1:
        raise ValueError(f"{at}: L = {row['L']:g}; L = 1 - pass@1 lies in 0..1 "
                         "(from percent, divide by 100)")
    if not 0 < row["N"] < 1e5:
        raise ValueError(f"{at}: N = {row['N']:g}; sizes are in billions of parameters "
                         "(7 for 7B, 7e-6 for 7,000)")
    for x in {"C", "D"} & row.keys():
        if row[x] < 0 or (row[x] == 0 and row.get("step") != 0):
            raise ValueError(f"{at}: {x} = {row[x]:g}; the law takes its logarithm, so after "
                             "step 0 it is positive")


def curves_from(rows, steps=(1, np.inf)):
    """Rows to {(model_type, x): [Curve, ... by size]}. Runs of one size are seeds.

    steps: first and last step used. ValueError names the row or the size that cannot be used.
    """
    runs = defaultdict(dict)  # (model_type, x, N, run): {step: (X, L)}
    for row in rows:
        at = row.get("at") or f"{row['run']}, step {row['step']}"
        check_row(row, at)
        for x in {"C", "D"} & row.keys():
            run = row.get("run", row.get("seed"))
            measured = runs[row.get("model_type") or "base", x, row["N"], run]
            step = row.get("step", row[x])
            if step in measured:
                raise ValueError(f"{at}: step {step:g} of {label(row['N'])} was there before; "
                                 "tell runs apart by a column run or seed")
            measured[step] = row[x], row["L"]
    if not runs:
        raise ValueError("no points: the input holds no evaluation with a loss")
    seeds = defaultdict(list)  # (model_type, x, N): the measurements of each seed
    for (model_type, x, N, _), measured in runs.items():
        seeds[model_type, x, N].append(measured)
    sizes = Counter((model_type, x) for model_type, x, _ in seeds)
    curves = {key: [] for key in sorted(sizes)}
    for model_type, x, N in sorted(seeds):
        if sizes[model_type, x] < 2:
            raise ValueError(f"{model_type} models: only one size ({label(N)}); k(N) needs two")
        curve = curve_of(model_type, x, N, seeds[model_type, x, N], steps)
        curves[model_type, x].append(curve)
    return curves


def curve_of(model_type, x, N, seeds, steps):
    """One Curve from the seeds of a size, each {step: (X, L)}, at the steps that all of them have.
    """
    shared = sorted(set.intersection(*map(set, seeds)))
    lost = len(set.union(*map(set, seeds))) - len(shared)
    if lost:
        warn(f"size {label(N)}: {lost} steps are not in all of its {len(seeds)} seeds; dropped")
    X_ST, L_ST = np.zeros((2, len(seeds), len(shared)))
    for s, t in product(range(len(seeds)), range(len(shared))):
        X_ST[s, t], L_ST[s, t] = seeds[s][shared[t]]
    curve = Curve(model_type, x, N, np.array(shared), X_ST.mean(0), L_ST)
    start = float(curve.L_T[0]) if shared and curve.X_T[0] == 0 else None
    first, last = steps
    used = (curve.X_T > 0) & (curve.step_T >= first) & (curve.step_T <= last)
    curve = replace(curve.keep(used), start=start)
    points = len(set(curve.X_T))
    if points < 3:
        raise ValueError(f"size {label(N)}: {points} points with {x} > 0; three are needed")
    solved = int((curve.L_T == 0).sum())
    if solved:
        warn(f"size {label(N)}: L = 0 (every problem solved) at {solved} points, and log 0 is "
             "infinite: fits of L use these points, fits of log L and R2 leave them out")
    return curve


# ---------------------------------------------------------------- 2. The law
def shape_function(shape, N, theta):
    """f of k(N) = K f(N, theta): each shape has one factor K and at most one number to search."""
    if shape == "saturating":
        return 1 / (1 + np.exp(theta) / N)  # theta = ln N0
    return N**theta  # power; the constant has theta = 0


def default_N0_range(N_n):
    return float(min(N_n) / 100), float(max(N_n) * 100)


def fit_slopes(shape, N_n, k_Bn, weight_Bn=None, N0_range=None):
    """Weighted least squares of k(N) = K f(N, theta) on slopes; B problems at once.

    Grid search: 25 thetas over the range, then 25 between the neighbours of the best, 12 times, to
    1e-12 of the range. 0 <= K, and K <= 2 for the saturating shape (paper). Returns K_B, theta_B.
    """
    ranges = {"saturating": np.log(N0_range or default_N0_range(N_n)), "power": (-1, 4)}
    low, high = ranges.get(shape, (0, 0))
    k_B1n = k_Bn[:, None]
    weight_B1n = np.ones_like(k_B1n) if weight_Bn is None else weight_Bn[:, None]
    row_B = np.arange(len(k_Bn))
    low_B = np.full(len(k_Bn), float(low))
    high_B = np.full(len(k_Bn), float(high))
    for _ in range(12):
        theta_BG = np.linspace(low_B, high_B, 25, axis=-1)
        f_BGn = shape_function(shape, N_n, theta_BG[..., None])
        K_BG = (weight_B1n * k_B1n * f_BGn).sum(-1) / (weight_B1n * f_BGn**2).sum(-1)
        K_BG = np.clip(K_BG, 0, 2 if shape == "saturating" else None)
        error_BGn = K_BG[..., None] * f_BGn - k_B1n
        best_B = (weight_B1n * error_BGn**2).sum(-1).argmin(-1)
        low_B = theta_BG[row_B, np.maximum(best_B - 1, 0)]
        high_B = theta_BG[row_B, np.minimum(best_B + 1, 24)]
    return K_BG[row_B, best_B], theta_BG[row_B, best_B]


@dataclass(frozen=True)
class Parameters:
    """The numbers of a law: of one fit, or of B redraws of the data along a first axis."""
    shape: str
    K: np.ndarray      # () or (B,); K_max of the saturating shape
    theta: np.ndarray  # () or (B,)
    k: np.ndarray      # (n,) or (B, n)
    E: np.ndarray      # (n,) or (B, n)

    @property
    def N0(self):
        return np.exp(self.theta)

    def slope(self, N):
        """k at sizes N (m,), seen or not: (m,) or (B, m). Not for shape "free"."""
        f = shape_function(self.shape, np.asarray(N, float), np.asarray(self.theta)[..., None])
        return np.asarray(self.K)[..., None] * f

    def losses(self, x_nT):
        """L at x = log10 X of every size: (n, T) or (B, n, T)."""
        return 10 ** (self.E[..., None] - self.k[..., None] * x_nT)

    def draw(self, b):
        return Parameters(self.shape, self.K[b], self.theta[b], self.k[b], self.E[b])


@dataclass(frozen=True)
class Problem:
    """What a fit minimises: sum over sizes n and points T of w_nT (Y_nT - law)^2."""
    shape: str
    loss: str         # "linear": Y = L; "log": Y = log10 L
    N_n: np.ndarray
    x_nT: np.ndarray  # log10 X
    L_nT: np.ndarray
    w_nT: np.ndarray  # every size weighs 1 in all; 0 pads the shorter curves
    N0_range: tuple

    def Y(self, L):
        return L if self.loss == "linear" else np.log10(L)


def problem_of(curves, loss, shape, N0_range=None):
    """The Problem of fitting a shape to Curves. ValueError if the points are too few."""
    if len(curves) < 1 + (shape != "free"):
        raise ValueError(f"{len(curves)} sizes; a {shape} fit needs at least two")
    size = len(curves), max(len(c.X_T) for c in curves)
    x_nT, w_nT, L_nT = np.zeros(size), np.zeros(size), np.ones(size)
    for n, curve in enumerate(curves):
        on = np.flatnonzero((curve.L_T > 0) | (loss == "linear"))
        if len(on) < 2:
            raise ValueError(f"size {label(curve.N)}: {len(on)} points with L > 0; fit the error "
                             "of L (--loss linear)")
        x_nT[n, on] = np.log10(curve.X_T[on])
        L_nT[n, on] = curve.L_T[on]
        w_nT[n, on] = 1 / len(on)
    N_n = np.array([c.N for c in curves])
    N0_range = tuple(map(float, N0_range or default_N0_range(N_n)))
    return Problem(shape, loss, N_n, x_nT, L_nT, w_nT, N0_range)


def fit_lines(problem, y_BnT, w_BnT):
    """Exact weighted least squares of the law on y = log10 L, for B data sets. Parameters."""
    total_Bn = w_BnT.sum(-1)
    x0_Bn = (w_BnT * problem.x_nT).sum(-1) / total_Bn  # the centre of each line
    y0_Bn = (w_BnT * y_BnT).sum(-1) / total_Bn
    dx_BnT = problem.x_nT - x0_Bn[..., None]
    weight_Bn = (w_BnT * dx_BnT**2).sum(-1)
    k_Bn = -(w_BnT * dx_BnT * y_BnT).sum(-1) / weight_Bn
    K_B = theta_B = np.full(len(k_Bn), np.nan)
    if problem.shape != "free":
        K_B, theta_B = fit_slopes(problem.shape, problem.N_n, k_Bn, weight_Bn, problem.N0_range)
        k_Bn = K_B[:, None] * shape_function(problem.shape, problem.N_n, theta_B[:, None])
    return Parameters(problem.shape, K_B, theta_B, k_Bn, y0_Bn + k_Bn * x0_Bn)


def solve(problem, Y_BnT, L_hat_BnT):
    """Parameters that minimise the problem's error on B data sets Y, starting from L_hat.

    For L: iteratively reweighted least squares. Near L_hat, log10 L is log10 L_hat +
    (L - L_hat) / (L_hat ln 10); an error of log L there counts L_hat^2 times in L.
    """
    if problem.loss == "log":
        return fit_lines(problem, Y_BnT, np.broadcast_to(problem.w_nT, Y_BnT.shape))
    last = np.inf
    for _ in range(300):
        y_BnT = np.log10(L_hat_BnT) + (Y_BnT - L_hat_BnT) / (L_hat_BnT * LN10)
        found = fit_lines(problem, y_BnT, problem.w_nT * L_hat_BnT**2)
        L_hat_BnT = found.losses(problem.x_nT)
        now = np.concatenate([found.k, found.E])
        if np.abs(now - last).max() < 1e-7:  # the place of a minimum is known to about 1e-8
            return found
        last = now
    warn(f"the {problem.shape} fit still moves after 300 rounds: these points are no power law")
    return found


@dataclass(frozen=True)
class Fit:
    """A fitted law. Sizes and N0 in billions. `redraws`: the bootstrap's Parameters, or None."""
    model_type: str
    x: str
    protocol: str
    loss: str
    shape: str
    N: np.ndarray
    best: Parameters
    redraws: Parameters | None
    N0_range: tuple
    r2_log: float
    points: int

    @property
    def K(self):
        return float(self.best.K)

    @property
    def theta(self):
        return float(self.best.theta)

    @property
    def N0(self):
        return float(self.best.N0)

    @property
    def k(self):
        return self.best.k

    @property
    def E(self):
        return self.best.E

    def slope(self, N):
        """k at sizes N (billions), seen or not; not for shape "free"."""
        k = self.best.slope(np.atleast_1d(N))
        return k if np.ndim(N) else float(k[0])

    def predict(self, N, X_T):
        """L_T of a fitted size."""
        return self.predict_all(self.best, N, X_T)

    def predict_redraws(self, N, X_T):
        """L_BT of a fitted size; None without bootstrap."""
        return self.redraws and self.predict_all(self.redraws, N, X_T)

    def predict_all(self, parameters, N, X_T):
        n = int(np.flatnonzero(self.N == N)[0])
        return parameters.losses(np.log10(X_T))[..., n, :]

    def interval(self, name):
        """95% interval (low, high) of "K", "N0", "k" or "E"; None without bootstrap."""
        return self.redraws and interval(getattr(self.redraws, name))

    def values(self):
        """What k(N) is made of, by name."""
        if self.shape == "saturating":
            return {"K_max": self.K, "N0": self.N0}
        if self.shape == "power":
            return {"a": self.K, "b": self.theta}
        return {"k": self.K} if self.shape == "constant" else by_size(self.N, self.k)

    @property
    def parameters(self):
        """How many numbers were fitted: an E for each size, and those of k(N)."""
        return len(self.N) + len(self.values())

    @property
    def N0_interval(self):
        return (self.N0, self.N0) if self.redraws is None else self.interval("N0")

    @property
    def pinned(self):
        """Whether the data choose an N0, and a K_max below the limit of its range."""
        return is_pinned(self.N0_interval, self.N0_range) and self.K < 1.99

    def verdict(self):
        """What may be said about saturation, in words."""
        low, high = self.N0_interval
        least, most = self.N0_range
        if self.pinned:
            K_max = f"{self.K:.4f}{span(self.interval('K'), '{:.4f}'.format)}"
            return f"K_max {K_max}, N0 {label(self.N0)}{span(self.interval('N0'), label)}"
        if high < 3 * self.N[0]:
            return (f"N0 is not pinned: all values below {label(high)} fit; k hardly depends on "
                    f"size, {self.k.mean():.4f}")
        reach = f"N0 is not pinned ({label(low)} to {label(high)} fit)"
        if low < least * 1.01:
            return (f"{reach} and reaches the lower edge of its range: the sizes cannot tell a k "
                    "that grows with size from a constant one")
        if high * 1.01 < most and self.K < 1.99:
            return f"{reach}: k bends, but where it levels off is known only roughly"
        ratio = self.K / self.N0 * self.N[0]
        ends = self.redraws and interval(self.redraws.K / self.redraws.N0 * self.N[0])
        return (f"{reach}: no saturation is seen in these sizes. They fix only K_max/N0 = "
                f"{ratio:.3g}{span(ends, '{:.3g}'.format)} per {label(self.N[0])} parameters")

    def to_json(self):
        k_ci = None if self.redraws is None else by_size(self.N, self.interval("k").T)
        names = ("x", "model_type", "protocol", "loss", "N0", "r2_log", "points", "N0_range")
        return {name: getattr(self, name) for name in names} | {
            "K_max": self.K, "K_max_ci": self.interval("K"), "N0_ci": self.interval("N0"),
            "N0_pinned": self.pinned, "verdict": self.verdict(), "k": by_size(self.N, self.k),
            "E": by_size(self.N, self.E), "k_ci": k_ci}


def fit(curves, loss="linear", shape="saturating", *, protocol="all", bootstrap=0, seed=0,
        N0_range=None):
    """Fit log10 L = -k(N) log10 X + E(N) to Curves of one model type and X. Returns a Fit.

    loss: "linear" (error of L, the paper's) or "log". shape: "saturating", "power", "constant",
    "free" (a slope for each size). N0_range: billions. bootstrap: number of redraws. Every size
    weighs the same. ValueError for fewer than two sizes, or a size without two usable points.
    """
    problem = problem_of(curves, loss, shape, N0_range)
    Y_nT = problem.Y(problem.L_nT)
    start_nT = np.maximum(problem.L_nT, 1e-3)
    best = solve(problem, Y_nT[None], start_nT[None]).draw(0)
    L_hat_nT = best.losses(problem.x_nT)
    redraws = None
    kind = f"{curves[0].model_type} {curves[0].x} {protocol} {loss}"
    if bootstrap:
        rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
        Y_BnT = redraw(problem, curves, problem.Y(L_hat_nT), bootstrap, rng)
        redraws = solve(problem, Y_BnT, np.broadcast_to(L_hat_nT, Y_BnT.shape))
    used = problem.w_nT > 0
    seen = used & (problem.L_nT > 0)
    r2_log = r_squared([(np.log10(problem.L_nT[seen]), np.log10(L_hat_nT[seen]))])
    return Fit(*kind.split(), shape, problem.N_n, best, redraws, problem.N0_range, r2_log,
               int(used.sum()))


def redraw(problem, curves, Y_hat_nT, B, rng):
    """Bootstrap: B data sets (B, n, T) that might have been measured, if the fitted law is true.

    Noise is put on the fitted values Y_hat in two parts; both multiply what was seen by a standard
    normal number (a "wild" bootstrap, which invents no noise where none was seen).

    Seeds. Each seed's distance from the mean of its size is one draw of the noise of a whole run;
    a random combination of them has the variance of the mean over S seeds. Few seeds know that
    variance badly, so it is stretched as Student's t stretches a normal interval, with the degrees
    of freedom of all sizes together, sum (S - 1).

    Blocks. What the seeds leave unexplained of the residuals (all of it with one seed) is cut into
    blocks of a tenth of a curve, and each block is multiplied by one number, so that neighbouring
    steps stay correlated. A line passes too near to the points that it leans on most, here the
    first steps (half of log X); the residuals there are too small. `unshrink` undoes that; without
    it 95% intervals held the truth in 87% of synthetic data sets.
    """
    freedom = sum(len(c.L_ST) - 1 for c in curves)
    stretch = student_factor(freedom) / student_factor(np.inf) if freedom else 1.0
    Y_BnT = np.repeat(Y_hat_nT[None], B, axis=0)
    Y_nT = problem.Y(problem.L_nT)
    for n, curve in enumerate(curves):
        on = np.flatnonzero(problem.w_nT[n])
        residual_T = Y_nT[n, on] - Y_hat_nT[n, on]
        S = len(curve.L_ST)
        if S > 1:
            apart_ST = (curve.L_ST - curve.L_T)[:, on]
            if problem.loss == "log":
                apart_ST = apart_ST / (LN10 * curve.L_T[on])
            apart_ST = apart_ST / np.sqrt(S * (S - 1))  # squares sum to the variance of the mean
            Y_BnT[:, n, on] += stretch * rng.standard_normal((B, S)) @ apart_ST
            explained = (apart_ST**2).sum(0).mean() / max((residual_T**2).mean(), TINY)
            residual_T = residual_T * np.sqrt(max(0.0, 1 - explained))
        design_T2 = np.stack([np.ones(len(on)), problem.x_nT[n, on]], axis=1)
        if problem.loss == "linear":
            design_T2 = design_T2 * Y_hat_nT[n, on, None]  # dL is L times d log L
        Y_BnT[:, n, on] += wild_blocks(residual_T, design_T2, B, rng)
    return Y_BnT


def wild_blocks(residual_T, design_T2, B, rng):
    """Noise (B, T): residuals in blocks of a tenth of the curve, each times a standard normal."""
    T = len(residual_T)
    size = max(1, round(T / 10))
    q_T2, _ = np.linalg.qr(design_T2)
    residual_T = residual_T.copy()
    for start in range(0, T, size):
        block = slice(start, start + size)
        residual_T[block] = unshrink(residual_T[block], q_T2[block])
    normal_Bb = rng.standard_normal((B, math.ceil(T / size)))
    return residual_T * np.repeat(normal_Bb, size, axis=1)[:, :T]


def unshrink(residual_b, q_b2):
    """(I - H)^(-1/2) times the residuals of a block; H = q q' is its part of the hat matrix.

    Residuals of least squares have the covariance (I - H) s^2, not s^2 (CR2; Bell and McCaffrey
    2002). Eigenvalues below 0.02 count as 0.02: a block that fixes the line has no residual left.
    """
    values_b, vectors_bb = np.linalg.eigh(np.eye(len(q_b2)) - q_b2 @ q_b2.T)
    scaled_b = vectors_bb.T @ residual_b / np.sqrt(np.maximum(values_b, 0.02))
    return vectors_bb @ scaled_b


# ---------------------------------------------------------------- 3. Small statistics
def interval(draws):
    """95% interval (low, high) of bootstrap draws, along their first axis."""
    return np.percentile(draws, (2.5, 97.5), axis=0)


def student_factor(freedom):
    """Half-width of a 95% interval in standard errors: 1.96, and more for few degrees of freedom.
    """
    return float(stdtrit(freedom, 0.975)) if freedom else np.inf


def is_pinned(N0_interval, N0_range):
    """Whether N0 is known: the interval ends inside its range and spans less than a factor of ten.
    """
    low, high = N0_interval
    least, most = N0_range
    return bool(least * 1.01 < low and high < min(most / 1.01, 10 * low))


def by_size(N_n, values):
    return {f"{N:g}": value for N, value in zip(N_n, values, strict=True)}


def r_squared(pairs):
    """R2 of [(truth, estimate), ...], each about its own mean."""
    missed = sum(((y - z) ** 2).sum() for y, z in pairs)
    total = sum(((y - y.mean()) ** 2).sum() for y, _ in pairs)
    return float(1 - missed / max(total, TINY))


def aicc(n, mean_square, parameters):
    """Akaike's criterion for n independent points, corrected for small n; smaller is better. The
    scatter counts as one more parameter. None where n is too small or the fit is exact."""
    p = parameters + 1
    if n <= p + 1 or not mean_square > 0:
        return None
    return float(n * np.log(mean_square) + 2 * p + 2 * p * (p + 1) / (n - p - 1))


# ---------------------------------------------------------------- 4. Rivals and forecasts
def select(curves, protocol, first=0.24, upto=None):
    """The part of the Curves that a protocol fits.

    all: everything. inter: sizes up to `upto` billions (by default all but the largest). intra:
    the first steps of every size: a number, or below 1 a share of the longest curve (0.24: the
    paper's 25 of 105).
    """
    if protocol == "inter":
        return [c for c in curves if c.N <= (upto or curves[-2].N)]
    if protocol == "all":
        return curves
    last = first if first >= 1 else first * max(c.step_T[-1] for c in curves)
    return [c.keep(c.step_T <= last) for c in curves]


@dataclass(frozen=True)
class Sigmoids:
    """ScaleRL's pass rate R0 + (A - R0) / (1 + (X_mid / X)^B) for each size (arXiv 2510.13786)."""
    N: np.ndarray
    start_n: np.ndarray  # L before training, 1 - R0
    p_n3: np.ndarray     # A, B, log10 X_mid

    def predict(self, N, X_T):
        n = int(np.flatnonzero(self.N == N)[0])
        return sigmoid(self.p_n3[n], np.log10(X_T), self.start_n[n])

    def values(self):
        names = ("A", "B", "log10_X_mid")
        return by_size(self.N, [dict(zip(names, p.tolist(), strict=True)) for p in self.p_n3])

    @property
    def parameters(self):
        return self.p_n3.size


def sigmoid(p, x_T, start):
    A, B, x_mid = p
    return start - (A - 1 + start) / (1 + 10 ** (B * (x_mid - x_T)))


def sigmoid_errors(p, x_T, L_T, start, loss):
    L_hat_T = sigmoid(p, x_T, start)
    return L_hat_T - L_T if loss == "linear" else np.log10(np.maximum(L_hat_T, 1e-6) / L_T)


def fit_sigmoids(curves, loss):
    """Least squares for each size, best of four starts. A lies between the start and 1; the start
    is step 0, or the first point where step 0 is missing."""
    starts, found = [], []
    for curve in curves:
        curve = curve.keep((curve.L_T > 0) | (loss == "linear"))
        x_T, L_T = np.log10(curve.X_T), curve.L_T
        start = L_T[0] if curve.start is None else curve.start
        low = [1 - start, 0.05, x_T[0] - 2]
        high = [1 + 1e-9, 10, x_T[-1] + 6]
        tries = []
        for B, x_mid in product((0.5, 1.5), (x_T.mean(), x_T[-1])):
            guess = np.clip([1 - L_T[-1] / 2, B, x_mid], low, high)
            tries.append(least_squares(sigmoid_errors, guess, bounds=(low, high),
                                       x_scale=(0.1, 1, 1), args=(x_T, L_T, start, loss)))
        starts.append(start)
        found.append(min(tries, key=lambda r: r.cost).x)
    return Sigmoids(np.array([c.N for c in curves]), np.array(starts), np.array(found))


def fit_rival(name, curves, loss):
    return fit_sigmoids(curves, loss) if name == "sigmoid" else fit(curves, loss, name)


def measured_and_fitted(model, curves):
    """[(L, L_hat), ...] by size, at points with L > 0."""
    pairs = []
    for c in curves:
        on = c.L_T > 0
        pairs.append((c.L_T[on], model.predict(c.N, c.X_T[on])))
    return pairs


def residuals(pairs, loss):
    return [L - L_hat if loss == "linear" else np.log10(L / L_hat) for L, L_hat in pairs]


def effective_points(residuals_n):
    """How many independent points as many correlated ones are worth: n (1 - rho) / (1 + rho), with
    rho the correlation of neighbouring residuals."""
    neighbours = sum(e[1:] @ e[:-1] for e in residuals_n)
    rho = max(0.0, neighbours / max(sum(e @ e for e in residuals_n), TINY))
    return float(sum(map(len, residuals_n)) * (1 - rho) / (1 + rho))


def alternatives(curves, loss, first=0.24):
    """The law and its rivals on the same points: rows (dicts) with AICc and R2.

    held_out: mean absolute error of L after the first steps, for the curve fitted to these.
    """
    early = select(curves, "intra", first)
    later = later_points(curves, early)
    free = fit(curves, loss, "free")
    n_eff = effective_points(residuals(measured_and_fitted(free, curves), loss))
    rows = []
    for name in ("free", "saturating", "power", "constant", "sigmoid"):
        model = fit_rival(name, curves, loss)
        pairs = measured_and_fitted(model, curves)
        mean_square = np.mean([(e**2).mean() for e in residuals(pairs, loss)])
        row = {"loss": loss, "name": name, "parameters": model.parameters,
               "aicc": aicc(n_eff, mean_square, model.parameters), "n_eff": n_eff,
               "r2_log": r_squared([np.log10(np.concatenate(pairs, axis=1))]),
               "values": model.values()}
        if min(len(e.X_T) for e in early) >= 3 and min(len(c.X_T) for c in later) >= 1:
            ahead = fit_rival(name, early, loss)
            row["held_out"] = score([(c.L_T, ahead.predict(c.N, c.X_T)) for c in later])["mae"]
        rows.append(row)
    return rows


def later_points(curves, early):
    """What the shortened Curves `early` leave out of each size."""
    return [c.keep(c.step_T > e.step_T.max(initial=0)) for c, e in zip(curves, early, strict=True)]


def score(pairs):
    """R2 within sizes and mean absolute error of forecasts [(L, L_hat), ...]."""
    errors = np.concatenate([L - L_hat for L, L_hat in pairs])
    mae = float(np.abs(errors).mean())
    return {"points": len(errors), "r2": r_squared(pairs), "mae": mae}


def extrapolate(law, curves, N, X_T):
    """L_T of an unseen size (and L_BT of the redraws, or None) by a law fitted to other Curves.

    Blind: reads no loss of that size. The X of a run are known before it is made.
    """
    first_x_n = np.log10([c.X_T[0] for c in curves])
    L_T = extrapolate_one(law.best, first_x_n, N, np.log10(X_T))
    return L_T, law.redraws and extrapolate_one(law.redraws, first_x_n, N, np.log10(X_T))


def extrapolate_one(p, first_x_n, N, x_T):
    """k(N) is the law's. For E(N): log10 L at the first step is a straight line in k."""
    k = p.slope([N])[..., 0]
    first_y_n = p.E - p.k * first_x_n
    dk_n = p.k - p.k.mean(-1, keepdims=True)
    trend = (dk_n * first_y_n).sum(-1) / (dk_n**2).sum(-1)
    first_y = first_y_n.mean(-1) + trend * (k - p.k.mean(-1))
    return 10 ** (first_y[..., None] - k[..., None] * (x_T - x_T[0]))


def forecast_size(law, train, target):
    """Inter-model: the largest size from the others, beside naive rivals. Rows (dicts).

    The first three variants are blind; the others refit E on the target, as the paper does.
    """
    loss, big = law.loss, train[-1]
    own = fit([big], loss, "free")
    power = fit(train, loss, "power")
    blind_T, blind_BT = extrapolate(law, train, target.N, target.X_T)
    carried_T = np.interp(np.log10(target.X_T), np.log10(big.X_T), big.L_T)
    name, refitted = label(big.N), "(E refitted on the target)"
    guesses = {
        "law, everything extrapolated": blind_T,
        f"naive: losses of {name} carried over": carried_T,
        f"naive: line of {name}": own.predict(big.N, target.X_T),
        f"law, slope only {refitted}": target.line(law.slope(target.N), loss),
        f"k = a N^b, slope only {refitted}": target.line(power.slope(target.N), loss),
        f"naive: slope of {name} {refitted}": target.line(own.k[0], loss)}
    rows = []
    for variant, L_hat_T in guesses.items():
        rows.append({"protocol": "inter", "loss": loss, "N": target.N, "variant": variant}
                    | score([(target.L_T, L_hat_T)])
                    | {"last_L": target.L_T[-1], "forecast": L_hat_T[-1], "forecast_ci": None})
    if blind_BT is not None:
        rows[0]["forecast_ci"] = interval(blind_BT[:, -1])
    return rows


def forecast_steps(law, early, later):
    """Intra-model: the later steps of every size from its first ones, beside naive rivals.

    Rows (dicts) of each size, and with N None of all sizes together.
    """
    free = fit(early, law.loss, "free")
    rows = []
    for variant in ("law", "naive: a line per size", "naive: last value carried forward"):
        head = {"protocol": "intra", "loss": law.loss, "variant": variant}
        pairs = []
        for e, c in zip(early, later, strict=True):
            L_hat_T = np.full(len(c.X_T), e.L_T[-1])
            if variant != "naive: last value carried forward":
                L_hat_T = (law if variant == "law" else free).predict(c.N, c.X_T)
            pairs.append((c.L_T, L_hat_T))
            row = head | {"N": c.N} | score(pairs[-1:])
            row |= {"last_L": c.L_T[-1], "forecast": L_hat_T[-1], "forecast_ci": None}
            if variant == "law" and law.redraws:
                row["forecast_ci"] = interval(law.predict_redraws(c.N, c.X_T)[:, -1])
            rows.append(row)
        rows.append(head | {"N": None} | score(pairs))
    return rows


# ---------------------------------------------------------------- 5. The planner's questions
def outside(curve, X, factor):
    """How many times X lies beyond the points of a size, if more than `factor` times; else None."""
    ratio = max(X / curve.X_T[-1], curve.X_T[0] / X)
    return float(ratio) if ratio > factor else None


def best_size(law, curves, X, factor=3.0):
    """Which size has the lowest loss at X? Rows (dicts): L, and in what share of the redraws a
    size is the best of those measured near X. ValueError if none was."""
    far_n = [outside(c, X, factor) for c in curves]
    if all(far_n):
        raise ValueError(f"{law.x} = {X:g} lies {min(far_n):.3g} times outside the points of the "
                         f"nearest size; {factor:g} is allowed (--factor; it is a guess out there)")
    L_n = law.best.losses(np.log10([X]))[:, 0]
    L_Bn = law.redraws.losses(np.log10([X]))[..., 0]
    near_n = np.array([far is None for far in far_n])
    best_B = np.where(near_n, L_Bn, np.inf).argmin(1)
    rows = []
    for n, N in enumerate(law.N):
        share = float((best_B == n).mean()) if near_n[n] else None
        rows.append({"X": X, "N": N, "L": L_n[n], "L_ci": interval(L_Bn[:, n]),
                     "outside": far_n[n], "best_in": share})
    return rows


def needed(law, curves, L, factor=3.0):
    """Which X does each size need for the loss L? Rows (dicts), without X where it lies too far
    outside the points of the size."""
    rows = []
    for n, curve in enumerate(curves):
        X = needed_X(law.best, n, L)
        row = {"L": L, "N": curve.N, "outside": outside(curve, X, factor)}
        if row["outside"] is None:
            row |= {"X": X, "X_ci": interval(needed_X(law.redraws, n, L))}
        rows.append(row)
    return rows


def needed_X(p, n, L):
    decades = (p.E[..., n] - np.log10(L)) / np.maximum(p.k[..., n], 1e-9)
    return 10 ** np.clip(decades, -99, 99)


# ---------------------------------------------------------------- 6. Figures
def pyplot():
    """matplotlib.pyplot, imported only when something is drawn, and set up for files."""
    import matplotlib
    matplotlib.use("Agg")  # a login node has no display
    import matplotlib.pyplot as plt
    plt.rcParams.update({
        "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False,
        "axes.spines.right": False, "axes.titlesize": 10, "savefig.dpi": 130,
        "legend.frameon": False, "legend.fontsize": 9})
    return plt


def palette(levels):
    """{level: colour}, the lowest lightest: viridis without yellow, which white paper swallows."""
    levels = sorted(set(levels))
    colours = pyplot().get_cmap("viridis")(np.linspace(0.75, 0.0, len(levels)))
    return dict(zip(levels, colours, strict=True))


def panels(rows, columns, size=(5.6, 4.4), sharey=True):
    """A figure and its axes (rows, columns); size: inches of one panel."""
    whole = size[0] * columns, size[1] * rows
    return pyplot().subplots(
        rows, columns, figsize=whole, sharey=sharey, squeeze=False, layout="constrained")


def save(figure, path, kinds=("png", "pdf")):
    """Write PATH.png and PATH.pdf (the same points give the same bytes) and close the figure."""
    for kind in kinds:
        metadata = {"CreationDate": None} if kind == "pdf" else None
        figure.savefig(f"{path}.{kind}", metadata=metadata)
    pyplot().close(figure)


def size_axis(axis, sizes):
    axis.set(xscale="log", xlabel="model size N (parameters)")
    axis.set_xticks(sizes, map(label, sizes))
    axis.minorticks_off()


def loss_ticks(axis):
    """Plain numbers on a log axis of losses; in between where they fit."""
    low, high = np.log10(axis.get_ylim())
    digits = "123456789" if high - low < 0.8 else "25"
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(lambda v, _: f"{v:.1g}" if f"{v:.0e}"[0] in digits else "")


def loss_panel(axis, curves, law=None, fitted=None, title=""):
    """Loss against X, log-log: dots (mean of the seeds), a band (their range), the law's line.

    fitted: the Curves that `law` was fitted to; lines are dashed where they forecast. A size that
    was not fitted gets the law's slope and an E of its own. Without `law`: dots alone.
    """
    colours = palette(c.N for c in curves)
    points = {c.N: len(c.X_T) for c in (curves if fitted is None else fitted)}
    lowest = min(c.L_T[c.L_T > 0].min() for c in curves)
    highest = max(c.L_T.max() for c in curves)
    gap = (highest / lowest) ** 0.04
    text_L = 0.0
    for c in reversed(curves):
        colour, text = colours[c.N], label(c.N)
        line_T = np.maximum(c.L_T, lowest)
        axis.plot(c.X_T, line_T, "o", ms=3.6, alpha=0.45, color=colour, mew=0)
        if len(c.L_ST) > 1:
            bottom_T = np.maximum(c.L_ST.min(0), lowest)
            axis.fill_between(c.X_T, bottom_T, c.L_ST.max(0), color=colour, alpha=0.1, lw=0)
        if law:
            k = law.k[list(law.N).index(c.N)] if c.N in points else law.slope(c.N)
            line_T = law.predict(c.N, c.X_T) if c.N in points else c.line(k, law.loss)
            text = f"{text}  {k:.3f}"
            n = points.get(c.N, 1)
            axis.plot(c.X_T[:n], line_T[:n], color=colour, lw=1.7)
            axis.plot(c.X_T[n - 1:], line_T[n - 1:], "--", color=colour, lw=1.7)
        text_L = max(line_T[-1], text_L * gap)  # labels keep their distance, upwards
        axis.annotate(text, (c.X_T[-1], text_L), (10, 0), textcoords="offset points", va="center",
                      color=colour, fontsize=9, fontweight="bold", annotation_clip=False)
    axis.set(xscale="log", yscale="log", xlabel=AXIS[curves[0].x], title=title)
    left, right = axis.get_xlim()
    axis.set_xlim(left, right * (right / left) ** 0.22)  # room for the labels
    loss_ticks(axis)


def k_panel(axis, own, laws):
    """k(N) of up to two laws with 95% bands, beside the slope that each size has on its own.

    own: a Fit of shape "free"; laws: Fits of the saturating shape.
    """
    N = np.geomspace(own.N[0] / 1.6, own.N[-1] * 6, 200)
    bars = None if own.redraws is None else np.abs(own.interval("k") - own.k)
    axis.errorbar(own.N, own.k, bars, fmt="o", ms=5, color="black", lw=1.1, capsize=2,
                  label="slope of each size alone", zorder=3)
    for law, colour, style in zip(laws, PAIR, ("-", "--"), strict=False):
        K_max = f"{law.K:.3f}" if law.pinned else "not pinned"
        text = f"law of {label(law.N[0])} to {label(law.N[-1])}, $K_{{max}}$ {K_max}"
        axis.plot(N, law.slope(N), style, color=colour, lw=1.8, label=text)
        if law.redraws:
            low, high = interval(law.redraws.slope(N))
            axis.fill_between(N, low, high, color=colour, alpha=0.15, lw=0)
        if law.pinned:
            axis.axhline(law.K, color=colour, lw=0.9, ls=":")
    size_axis(axis, own.N)
    axis.set_title(f"slope against {AXIS[own.x]}, {own.model_type}")


def residual_panel(axis, law, curve, colour):
    """L minus the law, step by step, of one size: what a line does not describe."""
    axis.axhline(0, color="0.6", lw=0.8)
    rest_T = curve.L_T - law.predict(curve.N, curve.X_T)
    axis.plot(curve.step_T, rest_T, ".-", ms=3, color=colour, lw=0.8, alpha=0.8,
              label=f"against {curve.x}")
    axis.set(title=label(curve.N), xlabel="step")


def draw_laws(out, studies):
    """Write the figures loss_C, loss_D, k and residuals into the directory `out`."""
    several = len({s.own.model_type for s in studies}) > 1
    for s in studies:
        suffix = f"_{s.own.model_type}" if several else ""
        shown = [p for p in ("inter", "intra") if p in s.laws] or ["all"]
        figure, axes = panels(1, len(shown), (5.8, 4.8))
        for axis, protocol in zip(axes[0], shown, strict=True):
            part = s.parts[protocol]
            title = {"all": "fit to all points",
                     "inter": f"fit to {label(part[0].N)} to {label(part[-1].N)}; "
                              "dashed: a size not fitted (its E is)",
                     "intra": f"fit to the first {max(len(c.X_T) for c in part)} points; "
                              "dashed: later ones"}[protocol]
            loss_panel(axis, s.curves, s.laws[protocol][0], part, title)
        axes[0, 0].set_ylabel(LOSS_LABEL)
        save(figure, out / f"loss_{s.own.x}{suffix}")
    draw_k(out / "k", studies)
    for model_type in {s.own.model_type for s in studies}:
        mine = [s for s in studies if s.own.model_type == model_type]
        draw_residuals(out / ("residuals" + (f"_{model_type}" if several else "")), mine)


def draw_k(path, studies):
    columns = min(2, len(studies))
    figure, axes = panels(math.ceil(len(studies) / columns), columns)
    for axis, s in zip(axes.flat, studies, strict=False):
        k_panel(axis, s.own, [s.laws[p][0] for p in ("all", "inter") if p in s.laws])
    for axis in axes.flat[len(studies):]:
        axis.set_axis_off()
    axes[0, 0].set_ylim(0, 1.35 * axes[0, 0].get_ylim()[1])  # room for the legends
    for axis in axes.flat[:len(studies)]:
        axis.legend(loc="upper left")
    for axis in axes[:, 0]:
        axis.set_ylabel("k(N), decades of L per decade of X")
    save(figure, path)


def draw_residuals(path, studies):
    """A panel for each size; C and D in one panel."""
    count = len(studies[0].curves)
    columns = min(4, count)
    figure, axes = panels(math.ceil(count / columns), columns, (2.9, 2.3))
    for s, colour in zip(studies, PAIR, strict=False):
        for axis, curve in zip(axes.flat, s.curves, strict=False):
            residual_panel(axis, s.laws["all"][0], curve, colour)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("L minus law")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    save(figure, path)


# ---------------------------------------------------------------- 7. The command
TABLES = {  # the lists of fit.json: title and columns on the terminal
    "fits": ("The law (95% intervals in brackets)",
             "model_type x protocol loss r2_log verdict"),
    "slopes": ("k of each size: its own slope (free), and the law's",
               "model_type x N free law"),
    "alternatives": ("Rivals on the same points (aicc: smaller is better; held_out: mean |error| "
                     "of L after the first steps)",
                     "model_type x name parameters r2_log aicc held_out"),
    "forecasts": ("Forecasts of points not seen (r2 within sizes; the later steps of single sizes "
                  "are in fit.json)",
                  "model_type x protocol N variant r2 mae last_L forecast"),
    "best": ("Loss of each size (best_in: share of redraws; outside: times beyond its points)",
             "model_type x X N L best_in outside"),
    "needed": ("What a loss needs (outside: times beyond the points of the size)",
               "model_type x L N X outside"),
}


def span(ends, form="{:.4g}".format):
    """An interval as it stands behind its estimate; nothing for None."""
    return "" if ends is None else f" [{form(ends[0])}, {form(ends[1])}]"


def cell(row, column):
    value = row.get(column)
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    text = label(value) if column == "N" else f"{value:.4g}"
    return text + span(row.get(f"{column}_ci"))


def table(title, columns, rows):
    """Text for a terminal. Rows are dicts; an interval COLUMN_ci stands behind its number."""
    cells = [columns]
    for row in rows:
        cells.append([cell(row, column) for column in columns])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [title]
    for row in cells:
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        lines.append("  " + "  ".join(padded).rstrip())
    return "\n".join(lines)


def print_tables(result, studies):
    print("k, decades of L per decade of X; each size on its own:")
    for s in studies:
        sizes = ", ".join(f"{label(N)} {k:.4f}" for N, k in zip(s.own.N, s.own.k, strict=True))
        print(f"  {s.own.model_type}, against {s.own.x}: {sizes}")
    for name, (title, columns) in TABLES.items():
        rows = result[name]
        if name == "forecasts":
            rows = [r for r in rows if r["protocol"] == "inter" or r["N"] is None]
        if rows:
            print("\n" + table(title, columns.split(), rows))
    if result["best"] or result["needed"]:
        print("  Assumed: a straight line per size, the same recipe and data, and C = 6 N x tokens "
              "of training only.")


@dataclass
class Flags:
    """Fit the scaling law of RL post-training to finished runs, or to a table of points."""
    runs: tuple[Path, ...]  # metrics.jsonl files of finished runs
    points: Path | None = None
    """instead of runs, a CSV: N (billions: 7e-6 is 7,000 parameters), L, and C, D, or X with
    x_kind; optional step, run, seed, model_type"""
    out: Path = Path("fit")  # directory for fit.json and the figures
    source: str | None = None  # evaluation set of the runs (default: the first one met)
    loss: Literal["linear", "log", "both"] = "both"
    """error to minimise, of L or of log L; with both, everything but the fits uses that of L"""
    first: float = 0.24  # steps that intra fits; below 1 a share (the paper: 25 of 105)
    upto: float | None = None  # largest size that inter fits, billions (default: all but one)
    clip_steps: tuple[float, float] = (1, math.inf)  # first and last step used
    n0_bounds: tuple[float, float] | None = None
    """range of N0, billions (the paper: 0.1 100; default: by the sizes)"""
    bootstrap: int = 1000  # redraws behind the 95% intervals, 0 for none
    seed: int = 0  # of the redraws
    compute: float | None = None  # question: which size is best with this C (FLOPs)?
    data: float | None = None  # question: which size is best with this D (prompts)?
    target: float | None = None  # question: what C and D does each size need for this loss?
    factor: float = 3.0  # how many times beyond the points of a size questions are answered


def check(f):
    """ValueError for flags that make no sense."""
    asked = [v for v in (f.compute, f.data, f.target) if v is not None]
    rules = (
        (bool(f.runs) != bool(f.points), "give metrics.jsonl files, or --points FILE"),
        (f.bootstrap >= 0, f"--bootstrap {f.bootstrap}: 0 or more"),
        (f.bootstrap > 0 or not asked, "--bootstrap 0: the questions need the intervals"),
        (0 < f.first < math.inf, f"--first {f.first}: a number of steps, or a share below 1"),
        (f.upto is None or f.upto > 0, f"--upto {f.upto}: a size in billions of parameters"),
        (f.clip_steps[0] <= f.clip_steps[1], "--clip-steps: the first step, then the last"),
        (f.n0_bounds is None or 0 < f.n0_bounds[0] < f.n0_bounds[1] < math.inf,
         "--n0-bounds: two sizes in billions, the smaller first"),
        (all(0 < v < math.inf for v in asked), "--compute, --data, --target: above 0"),
        (f.target is None or f.target < 1, f"--target {f.target}: a loss below 1, such as 0.4"),
        (1 <= f.factor < math.inf, f"--factor {f.factor}: 1 or more"))
    for good, message in rules:
        if not good:
            raise ValueError(message)


def one_setting(rows):
    """The rows of one reuse factor and group size: the lowest reuse, then the commonest group."""
    counts = Counter((r.get("reuse", 1), r.get("group")) for r in rows)
    if len(counts) < 2:
        return rows
    reuse, group = min(counts, key=lambda setting: (setting[0], -counts[setting]))
    kept = [r for r in rows if (r.get("reuse", 1), r.get("group")) == (reuse, group)]
    warn(f"the law is fitted to the runs with reuse {reuse:g} and group {group}; "
         f"{len(rows) - len(kept)} evaluations with other settings are left out")
    return kept


@dataclass(frozen=True)
class Study:
    """What was fitted to the Curves of one model type and one X."""
    curves: list
    own: Fit     # a free slope for each size
    laws: dict   # "all" and, where possible, "inter" and "intra": a Fit for each loss
    parts: dict  # the Curves behind each protocol


def study(curves, f, bar):
    """Every fit of one model type and X."""
    losses = ["linear", "log"] if f.loss == "both" else [f.loss]
    options = {"bootstrap": f.bootstrap, "seed": f.seed, "N0_range": f.n0_bounds}
    laws, parts = {}, {}
    for protocol in ("all", "inter", "intra"):
        bar.set_description(f"{curves[0].model_type}, {curves[0].x}, {protocol}")
        part = select(curves, protocol, f.first, f.upto)
        if len(part) < 2 or min(len(c.X_T) for c in part) < 3:
            warn(f"{curves[0].x}, {protocol}: no fit without two sizes of three points "
                 "(--first, --upto)")
        else:
            parts[protocol] = part
            laws[protocol] = [fit(part, loss, protocol=protocol, **options) for loss in losses]
        bar.update()
    return Study(curves, fit(curves, losses[0], "free", **options), laws, parts)


def rows_of(s, f):
    """The rows of one Study for each list of fit.json."""
    law = s.laws["all"][0]
    rows = {"fits": [fitted.to_json() for fits in s.laws.values() for fitted in fits],
            "slopes": slope_rows(law, s.own),
            "alternatives": alternatives(s.curves, law.loss, f.first), "forecasts": []}
    if "inter" in s.laws and len(s.parts["inter"]) < len(s.curves):
        rows["forecasts"] += forecast_size(s.laws["inter"][0], s.parts["inter"], s.curves[-1])
    if "intra" in s.laws:
        later = later_points(s.curves, s.parts["intra"])
        if min(len(c.X_T) for c in later) >= 2:
            rows["forecasts"] += forecast_steps(s.laws["intra"][0], s.parts["intra"], later)
    asked = f.compute if law.x == "C" else f.data
    if asked:
        rows["best"] = best_size(law, s.curves, asked, f.factor)
    if f.target:
        rows["needed"] = needed(law, s.curves, f.target, f.factor)
    return rows


def slope_rows(law, own):
    rows = []
    for n, N in enumerate(law.N):
        row = {"N": N, "free": own.k[n], "free_ci": None, "law": law.k[n], "law_ci": None}
        if law.redraws:
            row |= {"free_ci": own.interval("k")[:, n], "law_ci": law.interval("k")[:, n]}
        rows.append(row)
    return rows


def main(argv=None):
    import tyro  # here, so that a program which only imports the law needs neither
    from tqdm import tqdm

    f = tyro.cli(Flags, args=argv, config=(tyro.conf.PositionalRequiredArgs,))
    check(f)
    rows = read_csv(f.points) if f.points else read_runs(f.runs, f.source)
    sets = curves_from(one_setting(rows), f.clip_steps)
    with tqdm(total=3 * len(sets), disable=None, leave=False) as bar:  # silent in a file
        studies = [study(curves, f, bar) for curves in sets.values()]
    result = {name: [] for name in TABLES}
    for s in studies:
        kind = {"x": s.own.x, "model_type": s.own.model_type}
        for name, found in rows_of(s, f).items():
            result[name] += [kind | row for row in found]

    f.out.mkdir(parents=True, exist_ok=True)
    paths = [f.points] if f.points else f.runs
    inputs = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    head = {"version": 2, "seed": f.seed, "bootstrap": f.bootstrap,
            "unit_of_N": "1e9 parameters", "inputs": inputs}
    text = json.dumps(head | result, indent=1, default=lambda v: v.tolist())
    (f.out / "fit.json").write_text(text + "\n")
    draw_laws(f.out, studies)
    print_tables(result, studies)
    print(f"\nwrote {f.out}/fit.json and the figures beside it")


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"fit_scaling: {e}")
