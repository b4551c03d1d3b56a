"""The scaling law of RL post-training, fitted to finished runs or to any table of points.

    log10 L(N, X) = -k(N) log10 X + E(N),    k(N) = K_max / (1 + N0 / N)       (arXiv 2509.25300)

L is the held-out loss, 1 - pass@1. X is data D (prompts) or training compute C (FLOPs, 6 N x
tokens). N is the model size, in our runs without embeddings. k, the learning efficiency, says how
many decades L falls for each decade of X. E is the intercept of a size. N and N0 are in BILLIONS of
parameters in this file, in CSV files and in fit.json (7e-6 is 7,000 parameters); the terminal
prints 7B, 84k, 7k.

A fit takes four steps, from the inside out:

1. Lines. In log L every size has a straight line. Weighted least squares gives its slope k and
   the weight of that slope; the intercept E drops out (variable projection).
2. Grid search. k(N) = K f(N, theta) is fitted to these slopes. For each theta the best K is a
   ratio of sums, so only theta is searched: on a grid, then on a finer one around its best value.
3. Iteratively reweighted least squares. The paper minimises the error of L, not of log L. Near
   the losses L_hat of the present fit, log L is linear in L, and an error of log L is L_hat times
   as large in L. So log L is replaced by that linear function, with the weight L_hat^2; steps 1 and
   2 give new losses L_hat; and so on until nothing moves (Gauss-Newton). No step is random, so a
   fit always gives the same digits.
4. Bootstrap. Steps 1 to 3 are repeated on data sets that might have been measured instead. The
   2.5% and 97.5% percentiles of the results are the intervals (see `redraw`).

Deviations from the paper. It searches with an unseeded evolution strategy, and N0 in 0.1B..100B,
which means nothing for models of 10k parameters; here N0 lies between a hundredth of the smallest
size and a hundred times the largest. The paper gives no intervals. It refits E on the model that
it forecasts; here a blind forecast stands beside that. Every size weighs the same here.

Letters: n sizes, T points of a curve, S seeds, B data sets of the bootstrap, b those of them that
still move, G thetas of a grid, q blocks of residuals, t points of a block. `# <solution>` marks
bodies that course/ takes out to make assignments.
"""
import csv
import json
import math
import sys
import warnings
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from textwrap import fill

import numpy as np
from scipy.optimize import least_squares
from scipy.special import stdtrit

TINY = 1e-300  # keeps a division by an exact zero finite
AXIS = {"C": "training compute C (FLOPs)", "D": "data D (prompts)"}
LOSS_LABEL = "held-out loss L = 1 - pass@1"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # told apart by colour-blind eyes
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
    start: float | None = None  # L at X = 0, for the sigmoid alone: no line has a point at log 0

    @property
    def L_T(self):
        """Mean over seeds: what is fitted."""
        return self.L_ST.mean(0)

    def __len__(self):
        return len(self.X_T)

    def keep(self, mask_T):
        """The points of a mask."""
        return replace(self, step_T=self.step_T[mask_T], X_T=self.X_T[mask_T],
                       L_ST=self.L_ST[:, mask_T])

    def line(self, k):
        """L_T of the line of slope k with the best E for this curve, so not a blind forecast."""
        p_T = self.X_T**-k
        return p_T * (self.L_T @ p_T) / (p_T @ p_T)  # 10^E by least squares of L


UNITS = (  # smallest size in billions, unit, letter
    (0.2, 1, "B"),
    (1e-3, 1e-3, "M"),
    (1e-6, 1e-6, "k"),
    (0, 1e-9, ""),
)


def label(N):
    """N in billions as people write it: 72B, 0.5B, 3.2M, 84k."""
    for smallest, unit, letter in UNITS:
        if N >= smallest:
            return f"{N / unit:.3g}{letter}"


def read_runs(paths, source=None):
    """Rows (dicts) of the evaluations of runs: run, N, settings, step, D, C, L.

    paths: the runs' directories, or their metrics.jsonl.
    source: the evaluation set to use, by default the first one met. ValueError names the file.
    """
    rows = []
    for path in map(Path, paths):
        if path.is_dir():
            path = path / "metrics.jsonl"
        try:
            found = read_run(path, source)
        except KeyError as e:
            raise ValueError(
                f"{path}: a line of it, or flags.json beside it, lacks {e}; leave this run out"
            ) from None
        source = found[0]["source"]
        rows += found
    return rows


def read_run(path, source):
    for needed in (path, path.with_name("flags.json")):
        if not needed.is_file():
            raise ValueError(f"{needed}: no such file; give runs/NAME/metrics.jsonl, "
                             "with flags.json beside it")
    flags = read_flags(path.with_name("flags.json"))
    records = read_lines(path)
    trains = [r for r in records if r["kind"] == "train"]
    evals = [r for r in records if r["kind"] == "eval"]
    if not trains or not evals:
        raise ValueError(f"{path}: no training line (for N) or no evaluation (for L); leave it out")
    instruct = "instruct" in str(flags["model"]).lower()
    run = {
        "run": str(path.parent),
        "N": trains[0]["N"] / 1e9,
        "model_type": "instruct" if instruct else "base",
        "reuse": flags["reuse"],
        "group": flags["group"],
        "source": source or evals[0]["source"],
    }
    rows = {}  # by step: a resumed run may evaluate a step again, and the last line counts
    for r in evals:
        if r["source"] == run["source"]:
            point = {"step": r["step"], "D": r["D"], "C": r["C"], "L": r["test_loss"]}
            rows[r["step"]] = run | point
    if not rows:
        names = sorted({r["source"] for r in evals})
        raise ValueError(f"{path}: no evaluation on {source}, but on {names} (--source)")
    return list(rows.values())


def read_flags(path):
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: not JSON ({e}); leave this run out") from None


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


NUMBERS = {"N", "X", "C", "D", "L", "step", "reuse", "group"}


def read_csv(path):
    """Rows (dicts) of a CSV: N (billions), L, and D, C, or X with x_kind "D" or "C". Optional: step
    (without it X stands for the step), run or seed (run, if both), model_type, reuse, group.
    ValueError names the columns or the line."""
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        columns = set(reader.fieldnames or [])
        rows = list(reader)
    has_x = {"C", "D"} & columns or {"X", "x_kind"} <= columns
    if not {"N", "L"} <= columns or not has_x:
        raise ValueError(f"{path}: needs the columns N, L and D or C (or X and x_kind); found "
                         f"{sorted(columns)}")
    for i, row in enumerate(rows, 2):
        row["at"] = f"{path}:{i}"
        for name in columns & NUMBERS:
            row[name] = number(row, name)
        if "x_kind" in row:
            if row["x_kind"] not in AXIS:
                raise ValueError(f"{row['at']}: x_kind is {row['x_kind']!r}; give C or D")
            row[row["x_kind"]] = row["X"]
    return rows


def number(row, name):
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{row['at']}: {name} is {row[name]!r}, not a number; drop or mend it")
    return value


def check_row(row, at):
    """Refuse a row out of range."""
    L, N = row["L"], row["N"]
    if not 0 <= L <= 1:
        raise ValueError(f"{at}: L = {L:g}; 1 - pass@1 lies in 0..1 (from percent, divide by 100)")
    if not 0 < N < 1e5:
        raise ValueError(f"{at}: N = {N:g}; sizes are in billions (7 for 7B, 7e-6 for 7,000)")
    for x in AXIS.keys() & row.keys():
        X = row[x]
        if X < 0 or (X == 0 and row.get("step") != 0):
            raise ValueError(f"{at}: {x} = {X:g}; it must be positive, or 0 at step 0")


def curves_from(rows, steps=(1, math.inf)):
    """Rows to {(model_type, x): [Curve, ... by size]}. Runs of one size are seeds.

    steps: first and last step used. ValueError names the row or the size that cannot be used.
    """
    sizes = defaultdict(lambda: defaultdict(dict))  # (model_type, x, N): run: step: (X, L)
    for row in rows:
        at = row.get("at", row)
        check_row(row, at)
        run = row.get("run", row.get("seed"))
        for x in AXIS.keys() & row.keys():
            measured = sizes[row.get("model_type") or "base", x, row["N"]][run]
            step = row.get("step", row[x])
            if step in measured:
                raise ValueError(f"{at}: this size had step {step:g} before; tell runs apart by a "
                                 "column run or seed")
            measured[step] = row[x], row["L"]
    curves = defaultdict(list)
    for model_type, x, N in sorted(sizes):
        seeds = list(sizes[model_type, x, N].values())
        curves[model_type, x].append(curve_of(model_type, x, N, seeds, steps))
    if not curves:
        raise ValueError("no points: the input holds no evaluation with a loss")
    for (model_type, _), found in curves.items():
        if len(found) < 2:
            only = label(found[0].N)
            raise ValueError(f"{model_type} models: only one size ({only}); k(N) needs two")
    return dict(curves)


def curve_of(model_type, x, N, seeds, steps):
    """One Curve from the seeds of a size, each {step: (X, L)}, at the steps that all share."""
    size = f"size {label(N)}"
    shared = sorted(set.intersection(*map(set, seeds)))
    lost = set.union(*map(set, seeds)).difference(shared)
    if lost:
        warn(f"{size}: {len(lost)} steps are not in all of its {len(seeds)} seeds; dropped")
    X_ST, L_ST = [], []
    for seed in seeds:
        X_ST.append([seed[step][0] for step in shared])
        L_ST.append([seed[step][1] for step in shared])
    step_T = np.array(shared)
    X_T = np.mean(X_ST, axis=0)
    curve = Curve(model_type, x, N, step_T, X_T, np.array(L_ST))
    if 0 in X_T:
        curve = replace(curve, start=float(curve.L_T[0]))
    first, last = steps
    curve = curve.keep((X_T > 0) & (first <= step_T) & (step_T <= last))
    points = len(set(curve.X_T))
    if points < 3:
        raise ValueError(f"{size}: {points} different {x} > 0 are left of the steps of all seeds "
                         "(within --clip-steps); three are needed")
    solved = np.sum(curve.L_T == 0)
    if solved:
        warn(f"{size}: L = 0 (every problem solved) at {solved} points, and log 0 is "
             "infinite: fits of L use these points, fits of log L and r2_log leave them out")
    return curve


# ---------------------------------------------------------------- 2. The law
@dataclass(frozen=True)
class Problem:
    """What a fit minimises: sum over sizes n and points T of w_nT (Y_nT - law)^2."""
    shape: str        # of k(N): saturating, power, constant; free: a k of its own for each size
    loss: str         # "linear": Y = L; "log": Y = log10 L
    N_n: np.ndarray
    x_nT: np.ndarray  # log10 X
    L_nT: np.ndarray
    w_nT: np.ndarray  # every size weighs 1 in all; 0 pads the shorter curves

    def Y(self, L):
        return L if self.loss == "linear" else np.log10(L)


def usable(curves, loss):
    """The Curves, for a fit of log L without their points of L = 0."""
    if loss == "linear":
        return curves
    return [c.keep(c.L_T > 0) for c in curves]


def problem_of(curves, loss, shape):
    """The Problem of fitting a shape to Curves. ValueError if the points are too few."""
    if len(curves) < 2 and shape != "free":
        raise ValueError(f"{len(curves)} sizes; a {shape} fit needs at least two")
    x_nT = np.zeros((len(curves), max(map(len, curves))))
    L_nT = np.ones_like(x_nT)
    w_nT = np.zeros_like(x_nT)
    for n, curve in enumerate(curves):
        T = len(curve)
        if T < 2:
            size = label(curve.N)
            raise ValueError(f"size {size}: {T} usable points, a line needs two; leave it out")
        x_nT[n, :T] = np.log10(curve.X_T)
        L_nT[n, :T] = curve.L_T
        w_nT[n, :T] = 1 / T
    N_n = np.array([c.N for c in curves])
    return Problem(shape, loss, N_n, x_nT, L_nT, w_nT)


def shape_function(shape, N, theta):
    """f of k(N) = K f(N, theta): each shape has one factor K and at most one number to search."""
    if shape == "saturating":
        return 1 / (1 + np.exp(theta) / N)  # theta = ln N0
    return N**theta  # power; the constant has theta = 0


def theta_range(shape, N_n):
    """Where theta is searched."""
    if shape == "saturating":
        return np.log(N0_range(N_n))
    return (-1.0, 4.0) if shape == "power" else (0.0, 0.0)  # the constant: one theta


def N0_range(N_n):
    """Where N0 is searched, billions."""
    return min(N_n) / 100, max(N_n) * 100


@dataclass(frozen=True)
class Parameters:
    """The numbers of a law: of one fit, or of fits to B data sets along a first axis."""
    shape: str
    K: np.ndarray      # () or (B,); K_max of the saturating shape; k at 1 billion of the power
    theta: np.ndarray  # () or (B,)
    k: np.ndarray      # (n,) or (B, n)
    E: np.ndarray      # (n,) or (B, n)

    @property
    def N0(self):
        """Billions; of the saturating shape."""
        return np.exp(self.theta)

    def slope(self, N):
        """k at sizes N (m,), seen or not: (m,) or (B, m). Not for shape "free"."""
        f = shape_function(self.shape, N, self.theta[..., None])
        return self.K[..., None] * f

    def losses(self, x_nT):
        """L at x = log10 X of every size: (n, T) or (B, n, T)."""
        log_L_nT = self.E[..., None] - self.k[..., None] * x_nT
        return 10 ** np.clip(log_L_nT, -6, 6)  # no loss is near these; a wild redraw may be


# Step 1: lines
def fit_lines(problem, y_BnT, w_BnT):
    """Weighted least squares of the law on y, for B data sets. Parameters.

    y: log10 L, or what fit_near puts in its place. w_BnT: (n, T) if all data sets weigh alike.
    For each size, with x0 and y0 the weighted means of x and y, its own slope and its weight are
        k = -sum(w (x - x0) y) / sum(w (x - x0)^2),   weight = sum(w (x - x0)^2)
    fit_slopes then gives K, theta and so k(N), except for the shape "free", which keeps its own
    slopes (K and theta are nan). The best line of slope k passes through (x0, y0), which gives E.
    """
    # <solution id="law" points="6">
    shape, N_n, x_nT = problem.shape, problem.N_n, problem.x_nT
    total_Bn = w_BnT.sum(-1)
    x0_Bn = (w_BnT * x_nT).sum(-1) / total_Bn  # the centre of each line
    y0_Bn = (w_BnT * y_BnT).sum(-1) / total_Bn
    dx_BnT = x_nT - x0_Bn[..., None]
    weighted_BnT = w_BnT * dx_BnT
    weight_Bn = (weighted_BnT * dx_BnT).sum(-1)
    k_Bn = -(weighted_BnT * y_BnT).sum(-1) / weight_Bn
    K_B = theta_B = np.full(len(k_Bn), np.nan)
    if shape != "free":
        K_B, theta_B = fit_slopes(shape, N_n, k_Bn, weight_Bn)
        k_Bn = K_B[:, None] * shape_function(shape, N_n, theta_B[:, None])
    E_Bn = y0_Bn + k_Bn * x0_Bn
    return Parameters(shape, K_B, theta_B, k_Bn, E_Bn)
    # </solution>


# Step 2: grid search
def fit_slopes(shape, N_n, k_Bn, weight_Bn=1.0):
    """Weighted least squares of k(N) = K f(N, theta) on the slopes of B data sets.

    A grid search, zoomed in: 25 thetas over the range, then 25 between the neighbours of the best,
    12 times in all: finer than rounding lets costs differ. 0 <= K, and K <= 2 for the saturating
    shape (paper). Returns K_B, theta_B.

    For one theta, with f of shape_function, the best K is sum(w k f) / sum(w f^2), clipped to its
    range, and its cost is sum(w (K f - k)^2). K_BG and cost_BG hold both for G thetas of each data
    set.
    """
    ends = theta_range(shape, N_n)
    largest_K = 2 if shape == "saturating" else np.inf
    k_B1n = k_Bn[:, None]
    weight_B1n = np.broadcast_to(weight_Bn, k_Bn.shape)[:, None]
    row_B = np.arange(len(k_Bn))
    low_B, high_B = np.tile(ends, (len(k_Bn), 1)).T
    for _ in range(12):
        theta_BG = np.linspace(low_B, high_B, 25, axis=-1)
        # <solution id="law" points="4">
        f_BGn = shape_function(shape, N_n, theta_BG[..., None])
        weighted_BGn = weight_B1n * f_BGn
        kf_BG = (weighted_BGn * k_B1n).sum(-1)
        ff_BG = (weighted_BGn * f_BGn).sum(-1)
        K_BG = np.clip(kf_BG / ff_BG, 0, largest_K)
        error_BGn = K_BG[..., None] * f_BGn - k_B1n
        cost_BG = (weight_B1n * error_BGn**2).sum(-1)
        # </solution>
        best_B = cost_BG.argmin(-1)
        K_B = K_BG[row_B, best_B]
        theta_B = theta_BG[row_B, best_B]
        low_B = theta_BG[row_B, np.maximum(best_B - 1, 0)]
        high_B = theta_BG[row_B, np.minimum(best_B + 1, 24)]
    return K_B, theta_B


# Step 3: iteratively reweighted least squares
ROUNDS = 300


def solve(problem, Y_BnT, L_hat_BnT):
    """Parameters that minimise the problem's error on B data sets Y, starting from L_hat.

    The error of log L takes one fit of lines. The error of L takes a fit near L_hat, then one near
    the losses of that fit, and so on until no loss moves by 1e-7 of itself, or for ROUNDS rounds.
    """
    if problem.loss == "log":
        return fit_lines(problem, Y_BnT, problem.w_nT)
    L_hat_BnT = np.array(L_hat_BnT)
    moving = np.arange(len(Y_BnT))  # data sets that have not settled
    for _ in range(ROUNDS):
        near_bnT = L_hat_BnT[moving]
        L_bnT = fit_near(problem, Y_BnT[moving], near_bnT).losses(problem.x_nT)
        L_hat_BnT[moving] = L_bnT
        moved_b = np.abs(L_bnT / near_bnT - 1).max((1, 2))
        moving = moving[moved_b >= 1e-7]
        if not len(moving):
            break
    if len(moving):
        warn(f"{len(moving)} of {len(Y_BnT)} {problem.shape} fits still move after {ROUNDS} "
             "rounds: such points are far from a power law")
    return fit_near(problem, Y_BnT, L_hat_BnT)


def fit_near(problem, L_BnT, L_hat_BnT):
    """One step from the losses L_hat towards the law of the least error of L. Parameters.

    Near L_hat, log10 L is log10 L_hat + (L - L_hat) / (L_hat ln 10). An error of log10 L is
    L_hat ln 10 times as large in L, so its square gets the weight L_hat^2: ln 10 is the same
    everywhere.
    """
    apart_BnT = L_BnT / L_hat_BnT - 1
    y_BnT = np.log10(L_hat_BnT) + apart_BnT / np.log(10)
    return fit_lines(problem, y_BnT, problem.w_nT * L_hat_BnT**2)


@dataclass(frozen=True)
class Fit(Parameters):
    """A law fitted to Curves. Sizes and N0 in billions."""
    curves: list
    loss: str
    protocol: str
    redraws: Parameters  # of the bootstrap; without one, the fit itself with B = 1

    @property
    def N(self):
        return np.array([c.N for c in self.curves])

    @property
    def model_type(self):
        return self.curves[0].model_type

    @property
    def x(self):
        return self.curves[0].x

    def predict(self, N, X_T):
        """L_T of a fitted size."""
        n = list(self.N).index(N)
        return self.losses(np.log10(X_T))[n]

    def extend(self, curve):
        """k and L_T on a Curve; a size that was not fitted gets the law's k and an E of its own."""
        if curve.N in self.N:
            (k,) = self.k[self.N == curve.N]
            return k, self.predict(curve.N, curve.X_T)
        (k,) = self.slope([curve.N])
        return k, curve.line(k)

    def interval(self, name):
        """95% interval (low, high) of "K", "N0", "k" or "E"."""
        return interval(getattr(self.redraws, name))

    @property
    def pinned(self):
        """Whether the redraws agree on an N0, and K_max is below the limit of its range."""
        return is_pinned(self.interval("N0"), N0_range(self.N)) and self.K < 1.99

    def verdict(self):
        """What may be said about saturation, in words."""
        low, high = self.interval("N0")
        least, most = N0_range(self.N)
        if self.pinned:
            K_max = bracketed(self.K, self.interval("K"))
            N0 = bracketed(self.N0, (low, high), label)
            return f"K_max {K_max}, N0 {N0}"
        reach = f"N0 is not pinned ({label(low)} to {label(high)})"
        if low < least * 1.01:
            return (f"{reach} and reaches the lower edge of its range: a k that does not grow with "
                    f"size, {self.k.mean():.4f}, is not ruled out")
        if self.K > 1.99:
            return f"K_max is at its limit, {self.K:.3g}: no saturation is seen in these sizes"
        if high > most / 1.01:
            return (f"{reach} and reaches the upper edge of its range: a k that grows like N, "
                    "without saturation, is not ruled out")
        return f"{reach}: k bends, but where it levels off is open"

    def to_json(self):
        pairs = [(c.L_T, self.predict(c.N, c.X_T)) for c in self.curves]
        return {
            "protocol": self.protocol,
            "loss": self.loss,
            "N0": self.N0,
            "N0_ci": self.interval("N0"),
            "K_max": self.K,
            "K_max_ci": self.interval("K"),
            "verdict": self.verdict(),
            "r2_log": log_r_squared(pairs),
            "points": sum(map(len, usable(self.curves, self.loss))),
            "N": self.N,
            "k": self.k,
            "k_ci": self.interval("k"),
            "E": self.E,
        }


def fit(curves, loss="linear", shape="saturating", *, protocol="all", bootstrap=0, seed=0):
    """Fit log10 L = -k(N) log10 X + E(N) to Curves of one model type and X. Returns a Fit.

    loss: "linear" (error of L, the paper's) or "log". shape: "saturating", "power", "constant",
    "free" (a slope for each size). bootstrap: number of redraws; with 0 every interval is the
    estimate alone. ValueError for fewer than two sizes (free: one), or a size without two usable
    points.
    """
    used = usable(curves, loss)
    problem = problem_of(used, loss, shape)
    Y_nT = problem.Y(problem.L_nT)
    start_nT = np.maximum(problem.L_nT, 1e-3)  # the data, but log 0 is infinite
    redraws = found = solve(problem, Y_nT[None], start_nT[None])
    best = Parameters(shape, found.K[0], found.theta[0], found.k[0], found.E[0])
    if bootstrap:
        # Noise of its own for each protocol and loss; shapes share it.
        key = f"{curves[0].model_type} {curves[0].x} {protocol} {loss}"
        rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        L_hat_nT = best.losses(problem.x_nT)
        Y_BnT = redraw(problem, used, problem.Y(L_hat_nT), bootstrap, rng)
        redraws = solve(problem, Y_BnT, np.broadcast_to(L_hat_nT, Y_BnT.shape))
    return Fit(**vars(best), curves=curves, loss=loss, protocol=protocol, redraws=redraws)


# Step 4: bootstrap
def redraw(problem, curves, Y_hat_nT, B, rng):
    """B data sets (B, n, T) that might have been measured, if the fitted law is true.

    A wild block bootstrap. Noise is put on the fitted values Y_hat in two parts; each multiplies
    what was seen by standard normal numbers, so that no noise appears where none was seen.

    Seeds. Each seed's distance from the mean of its size is one draw of the noise of a whole run;
    a random combination of them has the variance of the mean over S seeds. Few seeds tell that
    variance badly, so this noise is multiplied by t / 1.96, where Student's t has the degrees of
    freedom of all sizes together, sum (S - 1), since K and N0 rest on the noise of all sizes.

    Blocks. The residuals are scaled down until their squares sum to what the seeds have not given
    yet (with one seed they stay), and cut into blocks of a tenth of a curve. Each block is
    multiplied by one number, so that neighbouring steps stay correlated. A line passes too near to
    the points of most leverage, here the first steps: few points, but half of the range of log X.
    So the residuals there are too small. `unshrink` undoes that; without it 95% intervals held the
    truth in 87% of synthetic data sets.
    """
    freedom = sum(len(c.L_ST) - 1 for c in curves)
    stretch = student_factor(freedom) / student_factor(np.inf)
    Y_BnT = np.repeat(Y_hat_nT[None], B, axis=0)
    residual_nT = problem.Y(problem.L_nT) - Y_hat_nT
    for n, curve in enumerate(curves):
        S, T = curve.L_ST.shape
        residual_T = residual_nT[n, :T]
        if S > 1:
            apart_ST = seeds_apart(curve, problem.loss)
            normal_BS = rng.standard_normal((B, S))
            Y_BnT[:, n, :T] += stretch * normal_BS @ apart_ST
            explained = (apart_ST**2).sum() / max((residual_T**2).sum(), TINY)
            residual_T = residual_T * np.sqrt(max(0.0, 1 - explained))
        design_T2 = np.vander(problem.x_nT[n, :T], 2)  # columns x and 1
        if problem.loss == "linear":
            design_T2 = design_T2 * Y_hat_nT[n, :T, None]  # dL is L times d log L
        Y_BnT[:, n, :T] += wild_blocks(residual_T, design_T2, B, rng)
    return Y_BnT


def seeds_apart(curve, loss):
    """Distances (S, T) of the seeds from their mean, in L or log10 L, scaled so that their squares
    sum to the variance of the mean."""
    apart_ST = curve.L_ST - curve.L_T
    if loss == "log":
        apart_ST = apart_ST / (np.log(10) * curve.L_T)
    S = len(apart_ST)
    return apart_ST / np.sqrt(S * (S - 1))


def wild_blocks(residual_T, design_T2, B, rng):
    """Noise (B, T): blocks of a tenth of the curve, each unshrunk, then times a standard normal."""
    T = len(residual_T)
    size = max(1, round(T / 10))
    Q_T2, _ = np.linalg.qr(design_T2)
    noise_T = np.zeros(T)
    for start in range(0, T, size):
        block = slice(start, start + size)
        noise_T[block] = unshrink(residual_T[block], Q_T2[block])
    normal_Bq = rng.standard_normal((B, math.ceil(T / size)))
    return noise_T * np.repeat(normal_Bq, size, axis=1)[:, :T]


def unshrink(residual_t, Q_t2):
    """(I - H)^(-1/2) times the residuals of a block; H = Q Q' is its part of the hat matrix.

    Residuals of least squares have the covariance (I - H) s^2, not I s^2 (CR2; Bell and McCaffrey
    2002). H is that of a line through this size alone; the law bends less, so this is
    approximate. Eigenvalues below 0.02 count as 0.02: a block that alone determines the line has
    almost no residual, and what it has is rounding.
    """
    shrink_tt = np.eye(len(Q_t2)) - Q_t2 @ Q_t2.T
    values_t, vectors_tt = np.linalg.eigh(shrink_tt)
    factor_t = np.sqrt(np.maximum(values_t, 0.02))
    return vectors_tt @ (vectors_tt.T @ residual_t / factor_t)


# ---------------------------------------------------------------- 3. Small statistics
def interval(draws):
    """95% interval (low, high) of bootstrap draws, along their first axis."""
    return np.percentile(draws, (2.5, 97.5), axis=0)


def student_factor(freedom):
    """Half-width of a 95% interval in standard errors: 1.96, more for few degrees of freedom."""
    return float(stdtrit(freedom, 0.975)) if freedom else np.inf


def is_pinned(N0_ends, searched):
    """Whether N0 is known: its interval ends inside what was searched, within a factor of 10."""
    low, high = N0_ends
    least, most = searched
    inside = least * 1.01 < low and high < most / 1.01
    return bool(inside and high < 10 * low)


def r_squared(pairs):
    """R2 of [(truth, estimate), ...], each about its own mean."""
    missed = total = 0.0
    for truth, estimate in pairs:
        missed += ((truth - estimate) ** 2).sum()
        total += ((truth - truth.mean()) ** 2).sum()
    return float(1 - missed / max(total, TINY))


def log_r_squared(pairs):
    """R2 of log10 L over all sizes together, without the points L = 0."""
    both = np.concatenate(pairs, axis=1)
    positive = both[:, both[0] > 0]
    return r_squared([np.log10(positive)])


def aicc(n, mean_square, parameters):
    """Akaike's criterion for n independent points, corrected for small n; smaller is better. The
    scatter counts as one more parameter. None where n is too small or the fit is exact."""
    p = parameters + 1
    if n <= p + 1 or not mean_square > 0:
        return None
    penalty = 2 * p * n / (n - p - 1)  # 2 p of AIC, and what small n adds
    return float(n * np.log(mean_square) + penalty)


def effective_points(residuals):
    """How many independent points correlated ones are worth: n (1 - rho) / (1 + rho), with rho
    the correlation of neighbouring residuals; residuals: an array for each size."""
    squares = neighbours = count = 0
    for e in residuals:
        squares += e @ e
        neighbours += e[1:] @ e[:-1]
        count += len(e)
    rho = max(0.0, neighbours / max(squares, TINY))
    return float(count * (1 - rho) / (1 + rho))


# ---------------------------------------------------------------- 4. Rivals and forecasts
# The law and its rivals: how many numbers are fitted for each size, and for all sizes together.
RIVALS = {
    "free": (2, 0),
    "saturating": (1, 2),
    "power": (1, 2),
    "constant": (1, 1),
    "sigmoid": (3, 0),
}


def select(curves, protocol, first=0.24, upto=None):
    """The part of the Curves that a protocol fits.

    all: everything. inter: sizes up to `upto` billions (by default all but the largest). intra:
    the steps up to `first` of every size; below 1, `first` is a share of the longest curve's last
    step (0.24: the paper's 25 of 105).
    """
    if protocol == "all":
        return curves
    if protocol == "inter":
        return [c for c in curves if c.N <= (upto or curves[-2].N)]
    return split(curves, first)[0]


def split(curves, first):
    """The Curves up to step `first`, and after it."""
    if first < 1:
        first = first * max(c.step_T[-1] for c in curves)
    early = [c.keep(c.step_T <= first) for c in curves]
    later = [c.keep(c.step_T > first) for c in curves]
    return early, later


def sigmoid(p, x_T, start):
    """ScaleRL's pass rate R0 + (A - R0) / (1 + (X_mid / X)^B), as a loss (arXiv 2510.13786)."""
    A, B, x_mid = p
    rise_T = 1 / (1 + 10 ** (B * (x_mid - x_T)))
    return start - (A - 1 + start) * rise_T


def predict_sigmoid(train, target):
    """L_T of the Curve `target` by the sigmoid fitted to the Curve `train`.

    A lies between the pass rate before training (or the first one, if that is missing) and 1, B
    between 0.05 and 10, X_mid from two decades before the first X to six behind the last.
    """
    x_T, L_T = np.log10(train.X_T), train.L_T
    start = L_T[0] if train.start is None else train.start
    low = [1 - start, 0.05, x_T[0] - 2]
    high = [1 + 1e-9, 10, x_T[-1] + 6]  # 1e-9: above the lowest A also if start is 0
    guess = np.clip([1 - L_T[-1] / 2, 1.5, x_T.mean()], low, high)

    def errors(p):
        return sigmoid(p, x_T, start) - L_T

    best = least_squares(errors, guess, bounds=(low, high), x_scale=(0.1, 1, 1))
    return sigmoid(best.x, np.log10(target.X_T), start)


def predict_rival(name, train, target):
    """[(L_T, L_hat_T), ...] of the Curves `target`, by a curve fitted to the Curves `train`."""
    if name == "sigmoid":
        return [(c.L_T, predict_sigmoid(t, c)) for t, c in zip(train, target, strict=True)]
    law = fit(train, shape=name)
    return [(c.L_T, law.predict(c.N, c.X_T)) for c in target]


def alternatives(curves):
    """The law and its rivals on the same points: rows (dicts) with AICc and R2."""
    n_eff = effective_points([L - L_hat for L, L_hat in predict_rival("free", curves, curves)])
    rows = []
    for name, (each, shared) in RIVALS.items():
        pairs = predict_rival(name, curves, curves)
        residuals = [L - L_hat for L, L_hat in pairs]
        mean_square = np.mean([(e**2).mean() for e in residuals])
        parameters = each * len(curves) + shared
        rows.append({
            "name": name,
            "parameters": parameters,
            "n_eff": n_eff,
            "aicc": aicc(n_eff, mean_square, parameters),
            "r2_log": log_r_squared(pairs),
        })
    return rows


def score(pairs):
    """R2 within sizes and mean absolute error of forecasts [(L, L_hat), ...]."""
    missed = np.concatenate([L - L_hat for L, L_hat in pairs])
    return {"r2": r_squared(pairs), "mae": float(np.abs(missed).mean())}


def extrapolate(law, N, X_T):
    """L_T of an unseen size, and L_BT of the redraws. Blind: reads no loss of that size. Its X are
    given: D is known before a run, C roughly (it counts completion tokens)."""
    first_x_n = np.log10([c.X_T[0] for c in law.curves])
    x_T = np.log10(X_T)
    return tuple(extrapolate_one(p, first_x_n, N, x_T) for p in (law, law.redraws))


def extrapolate_one(p, first_x_n, N, x_T):
    """k(N) is the law's. For E(N), which the paper does not say: over the fitted sizes, log10 L of
    the law at the first step is regressed on k, and the line is read off at k(N)."""
    k = p.slope([N])
    y_n = p.E - p.k * first_x_n
    mean_k = p.k.mean(-1, keepdims=True)
    dk_n = p.k - mean_k
    covariance = (dk_n * y_n).mean(-1, keepdims=True)
    variance = (dk_n**2).mean(-1, keepdims=True)
    trend = covariance / np.maximum(variance, TINY)
    first_y = y_n.mean(-1, keepdims=True) + trend * (k - mean_k)
    log_L = first_y - k * (x_T - x_T[0])
    return 10**log_L


def forecast_size(law, target):
    """Inter-model: a size that was not fitted, beside naive rivals. Rows (dicts).

    The blind variants read no loss of the target; the others refit E on it, as the paper does.
    The naive rivals are the line and the slope of the largest fitted size.
    """
    big = law.curves[-1]
    own = fit([big], shape="free")
    power = fit(law.curves, shape="power")
    N, X_T = target.N, target.X_T
    blind_T, blind_BT = extrapolate(law, N, X_T)
    name = label(big.N)
    variants = {
        "law, blind": blind_T,
        f"{name} line, blind": own.predict(big.N, X_T),
        "law k, E refit": target.line(law.slope([N])),
        "a N^b, E refit": target.line(power.slope([N])),
        f"{name} k, E refit": target.line(own.k),
    }
    rows = []
    for variant, L_hat_T in variants.items():
        row = {"protocol": "inter", "N": N, "variant": variant}
        row |= score([(target.L_T, L_hat_T)])
        rows.append(row | {"last_L": target.L_T[-1], "forecast": L_hat_T[-1]})
    rows[0]["forecast_ci"] = interval(blind_BT[:, -1])
    return rows


def forecast_steps(early, later):
    """Intra-model: the later steps of all sizes from their first ones, by the law and its rivals.
    Rows (dicts)."""
    variants = {name: predict_rival(name, early, later) for name in RIVALS}
    last = [(c.L_T, np.full(len(c), e.L_T[-1])) for e, c in zip(early, later, strict=True)]
    variants["last value kept"] = last
    rows = []
    for variant, pairs in variants.items():
        rows.append({"protocol": "intra", "variant": variant} | score(pairs))
    return rows


# ---------------------------------------------------------------- 5. Figures
def pyplot():
    """matplotlib.pyplot, imported only when something is drawn, and set up for files."""
    import matplotlib
    matplotlib.use("Agg")  # a login node has no display
    import matplotlib.pyplot as plt
    plt.rcParams.update({
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "errorbar.capsize": 2,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.6,
        "savefig.dpi": 160,
    })
    return plt


def palette(levels):
    """{level: colour}, the lowest lightest: viridis without yellow, which white paper swallows."""
    levels = sorted(set(levels))
    colours = pyplot().get_cmap("viridis")(np.linspace(0.75, 0.0, len(levels)))
    return dict(zip(levels, colours, strict=True))


def panels(count, size=(4.6, 3.8), ylabel=""):
    """A figure of panels side by side, and its axes; size: inches of one panel."""
    width, height = size
    figure, axes = pyplot().subplots(1, count, figsize=(width * count, height), sharey=True,
                                     squeeze=False, layout="constrained")
    figure.supylabel(ylabel, fontsize=10)
    return figure, axes[0]


def save(figure, path):
    """Write PATH.png and close the figure."""
    figure.savefig(f"{path}.png")
    pyplot().close(figure)


def size_axis(axis, sizes):
    axis.set(xscale="log", xlabel="model size N (parameters)")
    axis.set_xticks(sizes, map(label, sizes))
    axis.minorticks_off()


def loss_ticks(axis):
    """Plain numbers on a log axis of losses; between decades at 2 and 5 alone if it is long."""
    from matplotlib.ticker import LogLocator
    low, high = axis.get_ylim()
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:.1g}")
    if high > 6 * low:
        axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))


def loss_panel(axis, curves, law, title=""):
    """Loss against X, log-log: dots (mean of the seeds), a band (their range), the law's line.

    Lines are dashed beyond the points that the law was fitted to. A size that was not fitted gets
    the law's slope and an E of its own. Numbers at the lines: size and k.
    """
    colours = palette(c.N for c in curves)
    fitted = {c.N: len(c) for c in law.curves}
    labels = []
    for c in reversed(curves):
        colour = colours[c.N]
        k, line_T = law.extend(c)
        seen = slice(fitted.get(c.N, 0))
        axis.plot(c.X_T, c.L_T, "o", ms=3.6, alpha=0.5, mew=0, color=colour)
        axis.fill_between(c.X_T, c.L_ST.min(0), c.L_ST.max(0), alpha=0.08, lw=0, color=colour)
        axis.plot(c.X_T, line_T, "--", color=colour)
        axis.plot(c.X_T[seen], line_T[seen], color=colour)
        labels.append((line_T[-1], f"{label(c.N)}  {k:.3f}", colour))
    axis.set(xscale="log", yscale="log", xlabel=AXIS[law.x], title=title)
    write_beside(axis, labels)
    loss_ticks(axis)


def write_beside(axis, labels):
    """Labels [(L, text, colour), ...] right of the panel and apart from each other."""
    low, high = axis.get_ylim()
    gap = (high / low) ** 0.05
    place = 0.0
    for L, text, colour in sorted(labels, key=itemgetter(0)):
        place = max(L, place * gap)
        axis.text(1.01, place, text, transform=axis.get_yaxis_transform(), va="center",
                  fontsize=9, fontweight="bold", color=colour)


def k_panel(axis, own, laws):
    """k(N) of up to two laws with 95% bands, beside the slope that each size has on its own.

    own: a Fit of shape "free"; laws: Fits of the saturating shape.
    """
    bars = np.abs(own.interval("k") - own.k)
    axis.errorbar(own.N, own.k, bars if bars.any() else None, fmt="ko", ms=5, lw=1.1,
                  label="slope of each size alone")
    N = np.geomspace(own.N[0] / 1.6, own.N[-1] * 6, 200)
    for law, colour, dashes in zip(laws, SERIES, ("-", "--"), strict=False):
        K_max = f"{law.K:.3f}" if law.pinned else "not pinned"
        text = f"law of {label(law.N[0])} to {label(law.N[-1])}, $K_{{max}}$ {K_max}"
        axis.plot(N, law.slope(N), dashes, color=colour, label=text)
        if law.pinned:
            axis.axhline(law.K, color=colour, lw=0.9, ls=":")
    size_axis(axis, own.N)
    axis.set_title(f"slope against {AXIS[own.x]}, {own.model_type}")
    axis.set_ylim(0, 1.5 * axis.dataLim.ymax)  # room for the legend
    axis.legend(loc="upper left")
    for law, colour in zip(laws, SERIES, strict=False):  # a wide band may leave the panel
        low, high = interval(law.redraws.slope(N))
        axis.fill_between(N, low, high, color=colour, alpha=0.15, lw=0)


def draw_laws(out, model_type, studies):
    """Write the figures k, loss_C and loss_D of one model type into `out`."""
    suffix = "" if model_type == "base" else f"_{model_type}"
    figure, axes = panels(len(studies), ylabel="k(N), decades of L per decade of X")
    for s, axis in zip(studies, axes, strict=True):
        k_panel(axis, s.own, s.laws("all", "inter"))
    save(figure, out / f"k{suffix}")

    for s in studies:
        laws = s.laws("inter", "intra") or s.laws("all")
        figure, axes = panels(len(laws), (4.8, 4.2), LOSS_LABEL)
        for law, axis in zip(laws, axes, strict=True):
            loss_panel(axis, s.curves, law, TITLES[law.protocol])
        save(figure, out / f"loss_{s.own.x}{suffix}")


TITLES = {
    "all": "fit to all points",
    "inter": "fit to the smaller sizes; dashed: larger, with an E of its own",
    "intra": "fit to the first steps; dashed: later ones",
}


# ---------------------------------------------------------------- 6. The command
TABLES = {  # the lists of fit.json: title and columns on the terminal
    "slopes": (
        "k of each size, decades of L per decade of X: free and by the law",
        "N free law"),
    "fits": (
        "The law, with 95% intervals in brackets",
        "protocol loss r2_log verdict"),
    "alternatives": (
        "Rivals on the same points; the smaller aicc is the better",
        "name parameters r2_log aicc"),
    "forecasts": (
        "Forecasts of new points: r2 within sizes, mae = mean |error| of L; at the last "
        "step L measured and forecast, in brackets without the noise of that one point",
        "protocol variant r2 mae last_L forecast"),
}


def bracketed(value, ends, form="{:.4g}".format):
    """A number with its interval behind it, if there is one: 0.5 [0.4, 0.61]."""
    text = form(value)
    if ends is None:
        return text
    low, high = map(form, ends)
    return f"{text} [{low}, {high}]"


def cell(row, column):
    value = row.get(column)
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if column == "N":
        return label(value)
    return bracketed(value, row.get(f"{column}_ci"))


def table(title, columns, rows):
    """Text in 80 columns. Rows are dicts; an interval COLUMN_ci stands behind its number."""
    cells = [columns]
    for row in rows:
        cells.append([cell(row, column) for column in columns])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    before_last = " " * sum(width + 2 for width in widths[:-1])
    lines = [fill(title, 80)]
    for row in cells:
        line = "  ".join(map(str.ljust, row, widths))
        lines.append(fill(line, 80, subsequent_indent=before_last))
    return "\n".join(lines)


@dataclass
class Flags:
    """Fit the scaling law of RL post-training to finished runs, or to given points."""
    runs: tuple[Path, ...]  # directories of finished runs, or their metrics.jsonl
    points: Path | None = None
    """instead of runs, a CSV: N (billions; 7e-6 is 7,000 parameters), L, and C or D (or X and
    x_kind); optional step, run, seed, model_type, reuse, group"""
    out: Path = Path("fit")  # directory for fit.json and the figures
    source: str | None = None  # evaluation set of the runs; None is the first one met
    # last step that intra fits; below 1 a share of the longest curve (the paper: 25 of 105)
    first: float = 0.24
    upto: float | None = None  # largest size that inter fits, billions; None is all but the largest
    clip_steps: tuple[float, float] = (1, math.inf)  # first and last step used
    bootstrap: int = 1000  # redraws behind the 95% intervals


PROTOCOLS = ("all", "inter", "intra")
RANGES = {
    "first": (1e-3, 1e9),
    "upto": (1e-9, 1e5),
    "bootstrap": (2, 20000),  # of seven sizes with 105 steps a gigabyte
}


def check(flags):
    """ValueError for flags that make no sense."""
    if bool(flags.runs) == bool(flags.points):
        raise ValueError("give directories of runs, or --points FILE, and not both")
    if flags.points and not flags.points.exists():
        raise ValueError(f"--points {flags.points}: no such file; give a CSV of points")
    for name, (low, high) in RANGES.items():
        value = getattr(flags, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name} {value}: give a number from {low:g} to {high:g}")


def one_setting(rows):
    """The rows with the commonest reuse factor and group size: other runs are no seeds of these."""
    settings = [(row.get("reuse"), row.get("group")) for row in rows]
    common = Counter(settings).most_common()
    if len(common) < 2:
        return rows
    chosen, count = common[0]
    reuse, group = chosen
    warn(f"the law is fitted to the runs with reuse {reuse} and group {group}; "
         f"{len(rows) - count} evaluations with other settings are left out")
    return [row for row, setting in zip(rows, settings, strict=True) if setting == chosen]


@dataclass(frozen=True)
class Study:
    """What was fitted to the Curves of one model type and one X."""
    curves: list
    own: Fit    # a free slope for each size
    fits: list  # the law by every protocol and loss

    def laws(self, *protocols):
        """The fits of L by these protocols: what is drawn and forecast."""
        return [f for f in self.fits if f.loss == "linear" and f.protocol in protocols]


def study(curves, flags):
    """Every fit of one model type and X."""
    fits = []
    for protocol in PROTOCOLS:
        part = select(curves, protocol, flags.first, flags.upto)
        if len(part) < 2 or min(map(len, part)) < 3:
            warn(f"{curves[0].x}, {protocol}: no fit without two sizes of three points "
                 "(--first, --upto)")
            continue
        for loss in ("linear", "log"):
            fits.append(fit(part, loss, protocol=protocol, bootstrap=flags.bootstrap))
    own = fit(curves, shape="free", bootstrap=flags.bootstrap)
    return Study(curves, own, fits)


def tables_of(s, flags):
    """The rows of one Study for each list of fit.json."""
    (law,) = s.laws("all")
    free_ci, law_ci = s.own.interval("k").T, law.interval("k").T
    slopes = []
    for n, N in enumerate(law.N):
        row = {"N": N, "free": s.own.k[n], "law": law.k[n]}
        slopes.append(row | {"free_ci": free_ci[n], "law_ci": law_ci[n]})
    forecasts = []
    for inter in s.laws("inter"):  # the largest size alone is forecast
        if len(inter.curves) < len(s.curves):
            forecasts += forecast_size(inter, s.curves[-1])
    early, later = split(s.curves, flags.first)
    if s.laws("intra") and min(map(len, later)) > 1:
        forecasts += forecast_steps(early, later)
    return {
        "slopes": slopes,
        "fits": [fitted.to_json() for fitted in s.fits],
        "alternatives": alternatives(s.curves),
        "forecasts": forecasts,
    }


def main(argv=None):
    import tyro  # here, so that a program which only imports the law does not need it

    flags = tyro.cli(Flags, args=argv, config=(tyro.conf.PositionalRequiredArgs,))
    check(flags)
    rows = read_csv(flags.points) if flags.points else read_runs(flags.runs, flags.source)
    sets = curves_from(one_setting(rows), flags.clip_steps)
    inputs = flags.runs or [flags.points]
    result = {"inputs": list(map(str, inputs)), "bootstrap": flags.bootstrap}
    result |= {name: [] for name in TABLES}
    studies = defaultdict(list)  # by model type
    tables = {}
    for (model_type, x), curves in sets.items():
        s = study(curves, flags)
        studies[model_type].append(s)
        tables[model_type, x] = tables_of(s, flags)
        for name, rows in tables[model_type, x].items():
            result[name] += [{"x": x, "model_type": model_type} | row for row in rows]

    flags.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, default=lambda array: array.tolist())
    (flags.out / "fit.json").write_text(text + "\n")
    for model_type, found in studies.items():
        draw_laws(flags.out, model_type, found)
    for name, (title, columns) in TABLES.items():
        for (model_type, x), found in tables.items():
            if found[name]:
                print(table(f"{title} ({model_type}, {x})", columns.split(), found[name]))
                print()
    print(f"wrote {flags.out}/fit.json and the figures beside it")


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"fit_scaling: {e}")
