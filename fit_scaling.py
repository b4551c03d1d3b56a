"""Turns finished runs, or any table of points, into the scaling law of RL post-training: intervals, forecasts, figures.

    log10 L(N, X) = -k(N) log10 X + E(N),    k(N) = K_max / (1 + N0 / N)          (arXiv 2509.25300)

L = 1 - pass@1 on held-out problems; X is data D (prompts) or training compute C (FLOPs, 6 x N x tokens); N and N0 are in
BILLIONS of parameters everywhere in this file and in fit.json (the raw counts of metrics.jsonl are converted when read).

Where we deviate from the paper, and why. It minimises the error of L by an unseeded evolution strategy; we minimise the
same error exactly, by variable projection, so that two people get the same digits. It searches N0 in 0.1B..100B, which
means nothing for models of 10k..1M parameters; we search from a hundredth of the smallest size to a hundred times the
largest (--n0-bounds for another range). It gives no intervals; we do. It refits E on the model it forecasts; we set
beside that a forecast with everything extrapolated. The rival curve, a sigmoid, is ScaleRL's (arXiv 2510.13786).
"""
import argparse
import hashlib
import json
import sys
import warnings
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import t as student_t

import figures
from figures import label, span
from points import curves_from, read_csv, read_runs

LN10 = np.log(10.0)
warn = partial(warnings.warn, stacklevel=2)


# ---------------------------------------------------------------- 1. The law
SHAPES = {  # k(N) = K f(N; theta): every shape leaves one number to search
    "saturating": lambda N, theta: 1 / (1 + np.exp(theta) / N),  # theta = ln N0
    "power": lambda N, theta: N**theta,
    "constant": lambda N, theta: N**theta,  # theta = 0
}


def project(shape, weight_Bn, slope_Bn, N_n, theta_range):
    """Variable projection: min over theta of min over K of sum_n weight_n (K f_n(theta) - slope_n)^2, for B problems.

    The inner minimum is a ratio of sums; the outer a grid of 25 thetas zoomed in twelve times, to 1e-12 of the range, so
    deterministic. 0 <= K (<= 2 for the saturating shape), as in the paper. Returns K_B, theta_B.
    """
    row_B, weight_B1n, slope_B1n = np.arange(len(slope_Bn)), weight_Bn[:, None], slope_Bn[:, None]
    low_B, high_B = (np.full(len(slope_Bn), float(v)) for v in theta_range)
    for _ in range(12):
        theta_BG = np.linspace(low_B, high_B, 25, axis=-1)
        f_BGn = SHAPES[shape](N_n, theta_BG[..., None])
        K_BG = (weight_B1n * slope_B1n * f_BGn).sum(-1) / (weight_B1n * f_BGn**2).sum(-1)
        K_BG = np.clip(K_BG, 0, 2 if shape == "saturating" else None)
        best_B = (weight_B1n * (K_BG[..., None] * f_BGn - slope_B1n) ** 2).sum(-1).argmin(-1)
        low_B, high_B = theta_BG[row_B, np.maximum(best_B - 1, 0)], theta_BG[row_B, np.minimum(best_B + 1, 24)]
    return K_BG[row_B, best_B], theta_BG[row_B, best_B]


def solve(shape, x_nT, Y_BnT, w_nT, N_n, theta_range, loss, L_hat):
    """Least squares of L ("linear", Y = L) or of log10 L ("log", Y = log10 L), for B data sets on one x = log10 X.

    In log L the law is linear but for theta: centring each size eliminates E(N) and leaves a free slope and its weight
    Sxx, and the law is the weighted least-squares curve through these slopes. The error of L is a Gaussian GLM with a
    log link: the same step on the working response log10 L_hat + (L - L_hat) / (L_hat ln 10), with weights L_hat^2, from
    the given L_hat until nothing moves by 1e-7. Returns K_B, theta_B, k_Bn, E_Bn, L_hat_BnT. Shape "free" keeps the slopes.
    """
    last = np.inf
    for _ in range(300):
        y, W = Y_BnT, np.broadcast_to(w_nT, Y_BnT.shape)
        if loss == "linear":
            y, W = np.log10(L_hat) + (Y_BnT - L_hat) / (L_hat * LN10), w_nT * L_hat**2
        x0_Bn, y0_Bn = (W * x_nT).sum(-1) / W.sum(-1), (W * y).sum(-1) / W.sum(-1)
        dx_BnT = x_nT - x0_Bn[..., None]
        Sxx_Bn = (W * dx_BnT**2).sum(-1)
        k_Bn = -(W * dx_BnT * y).sum(-1) / Sxx_Bn
        K_B = theta_B = np.full(len(k_Bn), np.nan)
        if shape != "free":
            K_B, theta_B = project(shape, Sxx_Bn, k_Bn, N_n, theta_range)
            k_Bn = K_B[:, None] * SHAPES[shape](N_n, theta_B[:, None])
        E_Bn = y0_Bn + k_Bn * x0_Bn
        L_hat, now = 10 ** (E_Bn[..., None] - k_Bn[..., None] * x_nT), np.concatenate([k_Bn, E_Bn])
        if loss == "log" or np.abs(now - last).max() < 1e-7:  # theta, a minimum's place, is known to about 1e-8
            break
        last = now
    else:
        warn(f"the {shape} fit still moves after 300 rounds: these points are far from any power law")
    return K_B, theta_B, k_Bn, E_Bn, L_hat


@dataclass(frozen=True)
class Fit:
    """A fitted law. Sizes and N0 in billions; `draws` holds the bootstrap's K, N0 (B,) and k, E (B, n), or is None."""
    model_type: str
    x: str
    protocol: str
    loss: str
    shape: str
    N: np.ndarray
    K: float      # K_max of the saturating shape
    theta: float
    k: np.ndarray
    E: np.ndarray
    r2_log: float
    points: int
    N0_range: tuple
    draws: dict | None = field(default=None, repr=False)

    @property
    def N0(self):
        return float(np.exp(self.theta))

    def of(self, formula):
        """formula(p) of the estimate and, along a first axis, of the draws (None without); p holds K, N0, k (n) and E (n)."""
        return formula({"K": self.K, "N0": self.N0, "k": self.k, "E": self.E}), self.draws and formula(self.draws)

    def slope(self, N):
        """k at sizes N (billions), seen or not; not for a table of free slopes."""
        return self.K * SHAPES[self.shape](np.asarray(N, float), self.theta)

    def predict(self, N, X_T):
        """L_T at a fitted size, and the bootstrap's (B, T) of it (None without)."""
        n, x_T = int(np.flatnonzero(self.N == N)[0]), np.log10(X_T)
        return self.of(lambda p: 10 ** (p["E"][..., n, None] - p["k"][..., n, None] * x_T))

    def ci(self, name):
        """95% interval of K, N0 (2,), k or E (2, n); None without bootstrap."""
        return self.draws and interval(self.draws[name])

    @property
    def pinned(self):
        """Whether the data choose an N0: its interval ends within the search range and spans less than a factor of ten."""
        low, high = interval(self.draws["N0"] if self.draws else [self.N0])
        return bool(self.N0_range[0] * 1.01 < low and high < min(self.N0_range[1] / 1.01, 10 * low) and self.K < 1.99)

    def verdict(self):
        """What may be said of the saturation, in words."""
        low, high = interval(self.draws["N0"] if self.draws else [self.N0])
        if self.pinned:
            return f"K_max {self.K:.4f}{span(self.ci('K'), '{:.4f}'.format)}, N0 {label(self.N0)}{span(self.ci('N0'), label)}"
        if high < 3 * self.N[0]:
            return f"N0 is not pinned: all values below {label(high)} fit; k hardly depends on size, {self.k.mean():.4f}"
        ratio, ratio_B = self.of(lambda p: p["K"] / p["N0"])
        return (f"N0 is not pinned ({label(low)} to {label(high)} fit): no saturation is seen in these sizes. They fix only "
                f"K_max/N0 = {ratio:.3g}{span(self.draws and interval(ratio_B), '{:.3g}'.format)} per billion")

    def to_json(self):
        same = {c: getattr(self, c) for c in ("x", "model_type", "protocol", "loss", "N0", "r2_log", "points", "N0_range")}
        return same | {"K_max": self.K, "K_max_ci": self.ci("K"), "N0_ci": self.ci("N0"), "N0_pinned": self.pinned,
                       "verdict": self.verdict(), "k": by_size(self.N, self.k), "E": by_size(self.N, self.E),
                       "k_ci": self.draws and by_size(self.N, self.ci("k").T)}


def interval(draws):
    return np.percentile(draws, (2.5, 97.5), axis=0)


def by_size(N_n, values):
    return {f"{N:g}": value for N, value in zip(N_n, values, strict=True)}


def r_squared(pairs):
    """R2 of [(truth, estimate), ...] about each pair's own mean."""
    return 1 - sum(((y - z) ** 2).sum() for y, z in pairs) / max(sum(((y - y.mean()) ** 2).sum() for y, _ in pairs), 1e-300)


def fit(points, loss="linear", shape="saturating", protocol="all", bootstrap=0, seed=0, n0_bounds=None):
    """Fits log10 L = -k(N) log10 X + E(N) to Curves of one model type and X; every size weighs the same. Returns a Fit.

    loss: "linear" (error of L, the paper's) or "log". shape: "saturating", "power", "constant", "free" (a slope per size).
    n0_bounds: billions. bootstrap: number of redraws. Raises ValueError for fewer than two sizes, or two usable points.
    """
    if len(points) < 1 + (shape != "free"):
        raise ValueError(f"{len(points)} sizes; a {shape} fit needs at least two")
    N_n, linear, size = np.array([c.N for c in points]), loss == "linear", (len(points), max(len(c.X_T) for c in points))
    x_nT, w_nT, L_nT = np.zeros(size), np.zeros(size), np.ones(size)
    for n, c in enumerate(points):
        on = np.flatnonzero((c.L_T > 0) | linear)
        if len(on) < 2:
            raise ValueError(f"size {label(c.N)}: {len(on)} points with L > 0; fit the error of L (--loss linear)")
        x_nT[n, on], w_nT[n, on], L_nT[n, on] = np.log10(c.X_T[on]), 1 / len(on), c.L_T[on]
    Y_nT, start_nT = L_nT if linear else np.log10(L_nT), np.maximum(L_nT, 1e-3)
    N0_range = tuple(map(float, n0_bounds or (N_n[0] / 100, N_n[-1] * 100)))
    theta_range = {"saturating": np.log(N0_range), "power": (-1, 4)}.get(shape, (0, 0))
    K, theta, k_n, E_n, L_hat_nT = (v[0] for v in solve(shape, x_nT, Y_nT[None], w_nT, N_n, theta_range, loss, start_nT[None]))
    seen, draws = (w_nT > 0) & (L_nT > 0), None
    r2 = r_squared([(np.log10(L_nT[seen]), np.log10(L_hat_nT[seen]))])
    if bootstrap:
        rng = np.random.default_rng([seed, zlib.crc32(f"{c.model_type} {c.x} {protocol} {loss}".encode())])
        Y_BnT = redraw(points, x_nT, Y_nT, L_hat_nT if linear else np.log10(L_hat_nT), w_nT, linear, bootstrap, rng)
        many = solve(shape, x_nT, Y_BnT, w_nT, N_n, theta_range, loss, np.broadcast_to(L_hat_nT, Y_BnT.shape))
        draws = {"K": many[0], "N0": np.exp(many[1]), "k": many[2], "E": many[3]}
    return Fit(c.model_type, c.x, protocol, loss, shape, N_n, float(K), float(theta), k_n, E_n, float(r2),
               int((w_nT > 0).sum()), N0_range, draws)


def redraw(points, x_nT, Y_nT, Y_hat_nT, w_nT, linear, B, rng):
    """B data sets (B, n, T) as they might have been: the fitted law + resampled seeds + blocks of residuals, scaled.

    A tenth of a curve is a block: neighbouring steps keep their correlation and misfit stays where it is; each block of each
    size is multiplied by a standard normal (a wild bootstrap). A fit leans on points of high leverage (the first steps are
    half of log X), which makes their residuals too small; (I - H)^(-1/2) in each block undoes it (CR2, Bell and McCaffrey
    2002): without it 95% intervals held the truth in 87% of synthetic draws. Of S > 1 seeds whole curves are resampled,
    widened by sqrt(S / (S - 1)) for what so few hide, and the blocks carry what the seeds' scatter leaves unexplained.
    """
    Y_BnT = np.repeat(Y_hat_nT[None], B, 0)
    for n, c in enumerate(points):
        on = np.flatnonzero(w_nT[n])
        T, S, e_T = len(on), len(c.L_ST), (Y_nT - Y_hat_nT)[n, on]
        if S > 1:
            apart_ST = (c.L_ST - c.L_T)[:, on] / (1 if linear else LN10 * c.L_T[on])
            Y_BnT[:, n, on] += rng.multinomial(S, np.full(S, 1 / S), B) @ apart_ST / np.sqrt(S * (S - 1))
            explained = (apart_ST**2).sum(0).mean() / (S * (S - 1)) / max((e_T**2).mean(), 1e-300)
            e_T = e_T * np.sqrt(max(0.0, 1 - explained))
        q_T2 = np.linalg.qr(np.stack([np.ones(T), x_nT[n, on]], 1) * (Y_hat_nT[n, on, None] if linear else 1))[0]
        block = max(1, round(T / 10))
        for b in (slice(s, s + block) for s in range(0, T, block)):
            U, s, _ = np.linalg.svd(q_T2[b], full_matrices=False)
            e_T[b] += U @ ((np.maximum(1 - s**2, 0.02) ** -0.5 - 1) * (U.T @ e_T[b]))
        Y_BnT[:, n, on] += e_T * np.repeat(rng.standard_normal((B, -(-T // block))), block, 1)[:, :T]
    return Y_BnT


# ---------------------------------------------------------------- 2. Rivals, and forecasts that are scored
def select(curves, protocol, first=0.24, upto=None):
    """The Curves a protocol fits. inter: sizes up to `upto` billions (all but the largest); intra: the first steps of each.

    first: a number of steps, or below 1 a share of the longest curve (0.24: the paper's 25 of 105). all: everything.
    """
    if protocol == "inter":
        return [c for c in curves if c.N <= (upto or curves[-2].N)]
    last = np.inf if protocol == "all" else first if first >= 1 else first * max(c.step_T[-1] for c in curves)
    return [c.keep(c.step_T <= last) for c in curves]


RIVALS = {  # other curves for one size, L_T of (p, x_T = log10 X, L at the start), and the names of p
    "floor": (lambda p, x_T, start: p[0] + 10 ** (p[1] - p[2] * x_T), ("L_inf", "E", "k")),
    # ScaleRL's pass rate R0 + (A - R0) / (1 + (X_mid / X)^B), as a loss
    "sigmoid": (lambda p, x_T, start: start - (p[0] - (1 - start)) / (1 + 10 ** (p[1] * (p[2] - x_T))),
                ("A", "B", "log10_X_mid")),
}


def learn(name, curves, loss):
    """One model of the table of alternatives: predict(n, X_T) -> L_T, its number of free parameters, their values."""
    if name not in RIVALS:
        f = fit(curves, loss, name)
        values = {"saturating": {"K_max": f.K, "N0": f.N0}, "power": {"a": f.K, "b": f.theta}, "constant": {"k": f.K}}
        values = values.get(name) or by_size(f.N, f.k)
        return lambda n, X_T: f.predict(f.N[n], X_T)[0], len(f.N) + len(values), values
    (curve, names), found = RIVALS[name], []
    for c in (c.keep((c.L_T > 0) | (loss == "linear")) for c in curves):
        x, L, start = np.log10(c.X_T), c.L_T, c.L_T[0] if c.start is None else c.start
        if name == "sigmoid":  # A between the measured start and 1
            low, high = [1 - start, 0.05, x[0] - 2], [1 + 1e-9, 10, x[-1] + 6]
            guesses = [[1 - L[-1] / 2, b, m] for b in (0.5, 1.5) for m in (x.mean(), x[-1])]
        else:
            low, high = [0, -99, 0], [L.min() + 1e-9, 99, 5]
            guesses = [[part * L.min(), np.log10(L[0]) + k * x[0], k] for part in (0.1, 0.9) for k in (0.1, 0.5)]

        def errors(p, x=x, L=L, start=start):
            L_hat = curve(p, x, start)
            return L_hat - L if loss == "linear" else np.log10(np.maximum(L_hat, 1e-6) / L)
        tries = [least_squares(errors, np.clip(g, low, high), bounds=(low, high), x_scale=(0.1, 1, 1)) for g in guesses]
        found.append((min(tries, key=lambda r: r.cost).x, start))
    values = by_size([c.N for c in curves], [dict(zip(names, map(float, p), strict=True)) for p, _ in found])
    return lambda n, X_T: curve(found[n][0], np.log10(X_T), found[n][1]), 3 * len(curves), values


def alternatives(curves, loss, first):
    """The law and its rivals on the same points (dicts). The sigmoid starts at step 0, or at the first point without one.

    aicc: neighbouring steps are not independent; n points count as n_eff = n (1 - rho) / (1 + rho), rho being the lag-1
    correlation of the free slopes' residuals. held_out: mean absolute error of L after the first steps.
    """
    early, rows = select(curves, "intra", first), []
    for name in ("free", *SHAPES, *RIVALS):
        predict, count, values = learn(name, curves, loss)
        pairs = [(c.L_T[c.L_T > 0], predict(n, c.X_T)[c.L_T > 0]) for n, c in enumerate(curves)]
        errors = [np.log10(L / h) if loss == "log" else L - h for L, h in pairs]
        if name == "free":
            rho = max(0.0, sum(e[1:] @ e[:-1] for e in errors) / max(sum(e @ e for e in errors), 1e-300))
            n_eff = sum(map(len, errors)) * (1 - rho) / (1 + rho)
        p, mse = count + 1, np.mean([(e**2).mean() for e in errors])
        aicc = n_eff * np.log(mse) + 2 * p + 2 * p * (p + 1) / (n_eff - p - 1) if n_eff > p + 1 and mse > 0 else None
        rows.append({"loss": loss, "name": name, "parameters": count, "aicc": aicc, "n_eff": n_eff,
                     "r2_log": r_squared([np.log10(np.concatenate(pairs, 1))]), "values": values})
        if all(3 <= len(e.X_T) < len(c.X_T) for e, c in zip(early, curves, strict=True)):
            ahead = learn(name, early, loss)[0]
            rows[-1]["held_out"] = np.concatenate([np.abs(ahead(n, c.X_T) - c.L_T)[len(early[n].X_T):]
                                                   for n, c in enumerate(curves)]).mean()
    return rows


def extrapolate(f, train, N, X_T):
    """L_T (and draws (B, T) or None) of an unseen size by the law f of the others; reads no loss of it, so nothing can leak.

    k(N) is the law's. E(N) follows a trend, that the loss at a size's first step falls linearly with its slope:
    E = a + b k + k log10 X_first. The X of a run are known before it is made (512 prompts a step, 6 N tokens).
    """
    x1_n, x_T = np.log10([c.X_T[0] for c in train]), np.log10(X_T)

    def line(p):
        k = p["K"] / (1 + p["N0"] / N)
        u_n, dk_n = p["E"] - p["k"] * x1_n, p["k"] - p["k"].mean(-1, keepdims=True)
        first = u_n.mean(-1) + (dk_n * u_n).sum(-1) / (dk_n**2).sum(-1) * (k - p["k"].mean(-1))
        return 10 ** (first[..., None] - np.multiply.outer(k, x_T - x_T[0]))
    return f.of(line)


def forecast(curves, loss, first=0.24, upto=None, **options):
    """Inter- and intra-model forecasts beside naive rivals: dicts with R2 (within sizes) and mean absolute error of L on
    points not seen, and the last of them with the forecast line's 95% interval. N is None where sizes are pooled."""
    rows, train, target = [], select(curves, "inter", upto=upto), curves[-1]

    def score(protocol, variant, guesses):  # of one size or several: its curve, the forecast L_T, draws (B, T) of it or None
        pairs = [(c.L_T, L_T) for c, L_T, _ in guesses]
        errors = np.concatenate([L - L_hat for L, L_hat in pairs])
        rows.append({"protocol": protocol, "loss": loss, "N": None, "variant": variant, "points": len(errors),
                     "r2": r_squared(pairs), "mae": np.abs(errors).mean()})
        if len(guesses) == 1:
            (c, L_T, L_BT), = guesses
            rows[-1] |= {"N": c.N, "last_L": c.L_T[-1], "forecast": L_T[-1],
                         "forecast_ci": None if L_BT is None else interval(L_BT[:, -1])}
    if 1 < len(train) < len(curves):
        f, power, big = fit(train, loss, protocol="inter", **options), fit(train, loss, "power"), train[-1]
        name, own = label(big.N), fit([big], loss, "free")
        for variant, L_T, L_BT in (
                ("law, everything extrapolated", *extrapolate(f, train, target.N, target.X_T)),
                (f"naive: losses of {name} carried over", np.interp(*map(np.log10, (target.X_T, big.X_T)), big.L_T), None),
                (f"naive: line of {name}", *own.predict(big.N, target.X_T)),
                ("law, slope only (E refitted on the target)", target.line(f.slope(target.N), loss), None),
                ("k = a N^b, slope only (E refitted on the target)", target.line(power.slope(target.N), loss), None),
                (f"naive: slope of {name} (E refitted on the target)", target.line(own.k[0], loss), None)):
            score("inter", variant, [(target, L_T, L_BT)])
    early = select(curves, "intra", first)
    rest = [c.keep(c.step_T > e.step_T.max(initial=0)) for c, e in zip(curves, early, strict=True)]
    if min(len(e.X_T) for e in early) >= 3 and min(len(r.X_T) for r in rest) >= 2:
        f, free, last = fit(early, loss, protocol="intra", **options), fit(early, loss, "free"), {e.N: e.L_T[-1] for e in early}
        for variant, predict in (("law", f.predict), ("naive: a line per size", free.predict), (
                "naive: last value carried forward", lambda N, X_T: (np.full(len(X_T), last[N]), None))):
            guesses = [(r, *predict(r.N, r.X_T)) for r in rest]
            for some in (guesses, *([g] for g in guesses)):
                score("intra", variant, some)
    return rows


# ---------------------------------------------------------------- 3. Reuse and group size
def loss_at(runs, at):
    """L at X = at of {run: [(X, L), ...]}, its 95% half-width and the number of runs; None without four points near.

    Each run's line in log X through its points within a factor of two, read at `at`; a t interval of the runs' mean, or of
    the line when there is one run.
    """
    means, se, dof = [], np.nan, 1
    for points in runs.values():
        x, L = np.array([(np.log(X / at), L) for X, L in points if at / 2 <= X <= at * 2]).reshape(-1, 2).T
        if len(set(x)) >= 4 and x.min() < 0.1 and x.max() > -0.1:
            A = np.stack([np.ones_like(x), x], 1)
            p, dof = np.linalg.lstsq(A, L, rcond=None)[0], len(x) - 2
            se = np.sqrt(((L - A @ p) ** 2).sum() / dof * np.linalg.inv(A.T @ A)[0, 0])
            means.append(p[0])
    if len(means) > 1:
        se, dof = np.std(means, ddof=1) / np.sqrt(len(means)), len(means) - 1
    return (np.mean(means), student_t.ppf(0.975, dof) * se, len(means)) if means else None


def sweep(rows, by, x):
    """Loss against `by` ("reuse" or "group") at a quarter, half and all of the shared range of x ("step", "D", "C"), per size.

    Returns dicts, one per size, place and level; `above_1` is the loss above that of level 1 there.
    """
    table, out = defaultdict(lambda: defaultdict(lambda: defaultdict(list))), []
    for r in rows:
        if r.get(x, 0) > 0 and r.get(by) is not None and r.get("kind") != "curve":  # a smoothed curve has no scatter
            table[r.get("model_type") or "base", r.get("N")][r[by]][r.get("run", r.get("seed"))].append((r[x], r["L"]))
    for (kind, N), levels in table.items():
        end = min(max(X for run in runs.values() for X, _ in run) for runs in levels.values())
        for at in (end / 4, end / 2, end) if len(levels) > 1 else ():
            at = round(at) if x == "step" else at
            found = {level: got for level in sorted(levels) if (got := loss_at(levels[level], at))}
            for level, (L, half, runs) in found.items():
                out.append({"model_type": kind, "N": N, "x": x, "at": at, by: level, "runs": runs, "L": L,
                            "L_ci": [L - half, L + half]})
                if 1 in found and level != 1:
                    d, h = L - found[1][0], np.hypot(half, found[1][1])
                    out[-1] |= {"above_1": d, "above_1_ci": [d - h, d + h]}
    return out


def limits(rows, margin):
    """Of a reuse sweep: the largest tau whose loss is within `margin` of tau = 1, by estimate and surely (95% upper end)."""
    out = []
    for r in rows:  # of each place the levels follow each other, upwards
        if r["reuse"] == 1:
            out.append({c: r[c] for c in ("model_type", "N", "x", "at")} | {"largest_within": 1, "surely": 1, "margin": margin})
        elif "above_1" in r:
            if r["above_1"] <= margin:
                out[-1]["largest_within"] = r["reuse"]
            if r["above_1_ci"][1] <= margin:
                out[-1]["surely"] = r["reuse"]
    return out


# ---------------------------------------------------------------- 4. The planner's questions
def outside(curve, X, factor):
    """By how much X lies outside a size's points, where that is more than the factor allowed; else None."""
    ratio = max(X / curve.X_T[-1], curve.X_T[0] / X)
    return float(ratio) if ratio > factor else None


def best_size(f, curves, X, factor=3.0):
    """L of each size at X and in which share of the draws it is the lowest, of those seen near X. ValueError if none was."""
    L_n, L_Bn = f.of(lambda p: 10 ** (p["E"] - p["k"] * np.log10(X)))
    far_n = [outside(c, X, factor) for c in curves]
    if all(far_n):
        raise ValueError(f"{f.x} = {X:g} lies {min(far_n):.3g} times outside the nearest size's points; {factor:g} is allowed "
                         "(--factor; the law is a guess out there)")
    best_B = np.where([far is None for far in far_n], L_Bn, np.inf).argmin(1)
    return [{"X": X, "N": N, "L": L_n[n], "L_ci": interval(L_Bn[:, n]), "outside": far_n[n],
             "best_in": None if far_n[n] else (best_B == n).mean()} for n, N in enumerate(f.N)]


def crossings(f, curves, factor=3.0):
    """Where two sizes' lines meet, within the allowed factor of both sizes' points."""
    out = []
    for i, j in combinations(range(len(curves)), 2):
        x, x_B = f.of(lambda p, i=i, j=j: np.clip(  # the law's k grows with N; nearly parallel lines cross far away
            (p["E"][..., j] - p["E"][..., i]) / np.maximum(p["k"][..., j] - p["k"][..., i], 1e-12), -99, 99))
        if not (outside(curves[i], 10**x, factor) or outside(curves[j], 10**x, factor)):
            out.append({"sizes": f"{label(f.N[i])} and {label(f.N[j])}", "X": 10**x, "X_ci": 10 ** interval(x_B),
                        "L": 10 ** (f.E[i] - f.k[i] * x)})
    return out


def needed(f, curves, L, factor=3.0):
    """The X at which each fitted size reaches loss L; none is given where it lies too far outside the size's points."""
    X_n, X_Bn = f.of(lambda p: 10 ** np.clip((p["E"] - np.log10(L)) / np.maximum(p["k"], 1e-9), -99, 99))
    far_n = [outside(c, X, factor) for c, X in zip(curves, X_n, strict=True)]
    return [{"L": L, "N": N, "outside": far_n[n]} | (
        {} if far_n[n] else {"X": X_n[n], "X_ci": interval(X_Bn[:, n])}) for n, N in enumerate(f.N)]


# ---------------------------------------------------------------- The command
def flags(argv):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    flag = p.add_argument
    flag("runs", nargs="*", help="metrics.jsonl files of finished runs")
    flag("--points", help="a CSV: N (billions), L, and C, D or X with x_kind; optional step, run, seed, model_type, ...")
    flag("--reuse-points", help="a CSV of a reuse sweep: tau, step, L; optional N, run, model_type")
    flag("--out", type=Path, required=True, help="directory for fit.json and the figures")
    flag("--source", help="which evaluation set of the runs (default: the first seen)")
    flag("--loss", choices=["linear", "log"], help="error to fit, of L or log L (default: both; the rest uses that of L)")
    flag("--first", type=float, default=0.24, help="steps intra fits; below 1 a share (default 0.24: 25 of 105)")
    flag("--upto", type=float, help="largest size inter fits, billions (default: all but the largest)")
    flag("--clip-steps", type=between, default="1:", metavar="A:B", help="use steps A to B only")
    flag("--n0-bounds", type=between, metavar="A:B", help="range of N0, billions (paper: 0.1:100; default: by the sizes)")
    flag("--bootstrap", type=int, default=1000, help="redraws behind the 95%% intervals, 0 for none (default: 1000)")
    flag("--seed", type=int, default=0, help="of the redraws")
    flag("--margin", type=float, default=0.01, help="loss that reuse may cost (default: 0.01)")
    flag("--budget", "--data", "--target", dest="asked", type=amount, action="append", default=[], metavar="C=1e20|D=5e4|L=0.4",
         help="which size is best with this compute or data; what compute and data each size needs for this loss")
    flag("--factor", type=float, default=3.0, help="times outside a size's points that the planner answers (default: 3)")
    a = p.parse_args(argv)
    if bool(a.runs) == bool(a.points):
        p.error("give metrics.jsonl files or --points FILE")
    if a.asked and not a.bootstrap:
        p.error("the planner needs the intervals: drop --bootstrap 0")
    return a


def amount(text):
    name, _, value = text.partition("=")
    if name not in ("C", "D", "L") or not float(value) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} was given where C=1e20, D=5e4 or L=0.4 was expected")
    return name, float(value)


def between(text):
    low, _, high = text.partition(":")
    return float(low or 0), float(high or "inf")


def main(argv=None):
    a = flags(argv)
    losses, asked = [a.loss] if a.loss else ["linear", "log"], dict(a.asked)
    options = {"n0_bounds": a.n0_bounds, "bootstrap": a.bootstrap, "seed": a.seed}
    rows = read_csv(a.points) if a.points else read_runs(a.runs, a.source)
    settings = Counter((r.get("reuse", 1), r.get("group")) for r in rows)
    reuse, group = study = min(settings, key=lambda s: (s[0], -settings[s]), default=(1, None))
    if len(settings) > 1:
        warn(f"the law is fitted to the runs with reuse {reuse:g} and group {group}; the others serve the sweeps only")
    sets = curves_from([r for r in rows if (r.get("reuse", 1), r.get("group")) == study], a.clip_steps)
    result, studies = {name: [] for name in figures.TABLES}, []
    for (kind, x), curves in sets.items():
        laws = {}
        for protocol in ("all", "inter", "intra"):
            part = select(curves, protocol, a.first, a.upto)
            if len(part) < 2 or min(len(c.X_T) for c in part) < 3:
                warn(f"{x}, {protocol}: no fit, for want of two sizes of three points each (--first, --upto)")
                continue
            both = [fit(part, loss, protocol=protocol, **options) for loss in losses]
            laws[protocol] = both[0], part
            result["fits"] += [f.to_json() for f in both]
        law, own = laws["all"][0], fit(curves, losses[0], "free", **options)
        studies.append((curves, own, laws))
        for name, found in {
                "slopes": [{"N": N, "free": own.k[n], "free_ci": own.draws and own.ci("k")[:, n], "law": law.k[n],
                            "law_ci": law.draws and law.ci("k")[:, n]} for n, N in enumerate(law.N)],
                "alternatives": alternatives(curves, losses[0], a.first),
                "forecasts": forecast(curves, losses[0], a.first, a.upto, **options),
                "best": best_size(law, curves, asked[x], a.factor) if x in asked else [],
                "crossings": crossings(law, curves, a.factor) if x in asked else [],
                "needed": needed(law, curves, asked["L"], a.factor) if "L" in asked else []}.items():
            result[name] += [{"x": x, "model_type": kind} | row for row in found]
    tau = [r for r in rows if r.get("group") == group]
    if a.reuse_points:
        tau = [r | {"reuse": r["tau"]} for r in read_csv(a.reuse_points, ("tau", "step", "L"))]
    result["reuse"] = sweep(tau, "reuse", "step")
    result["reuse_limits"] = limits(result["reuse"], a.margin)
    result["group"] = [e for x in "DC" for e in sweep([r for r in rows if r.get("reuse") == reuse], "group", x)]
    a.out.mkdir(parents=True, exist_ok=True)
    inputs = {str(p): hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in (*a.runs, a.points, a.reuse_points) if p}
    head = {"version": 1, "seed": a.seed, "bootstrap": a.bootstrap, "unit_of_N": "1e9 parameters", "inputs": inputs}
    (a.out / "fit.json").write_text(json.dumps(head | result, indent=1, default=lambda v: v.tolist()) + "\n")
    figures.draw_laws(a.out, studies)
    figures.draw_sweeps(a.out, {name: result[name] for name in ("reuse", "group")})
    figures.print_tables(result)
    print(f"\nwrote {a.out}/fit.json and the figures beside it")


if __name__ == "__main__":
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"fit_scaling: {e}")
