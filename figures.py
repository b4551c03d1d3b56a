"""What a reader of the study sees: its figures, as PNG and PDF, and its tables on a terminal.

A panel draws one plot on a matplotlib axis, `draw` sets panels into rows and writes the file. Nothing is computed here: panels
take the Curve of points.py and the Fit of fit_scaling.py as they are (N in billions), and import nothing from them. Sizes, and
levels of a sweep, go from light to dark in steps that a colour-blind eye or a grey printer keeps apart, and carry their names.
"""
from collections import defaultdict

import matplotlib
import numpy as np

matplotlib.use("Agg")  # figures go to files; a login node has no display
import matplotlib.pyplot as plt

plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
                     "axes.titlesize": 10, "savefig.bbox": "tight", "savefig.dpi": 130})
AXIS = {"C": "training compute C (FLOPs)", "D": "data D (prompts)", "step": "step"}
LOSS = "held-out loss L = 1 - pass@1"
TABLES = {  # the lists of fit.json, with title and columns on the terminal
    "fits": ("The law (95% intervals in brackets)", "model_type x protocol loss r2_log verdict"),
    "slopes": ("k: a free slope per size, and the law's (all sizes and steps)", "model_type x N free law"),
    "alternatives": ("Rivals on the same points (smaller AICc is better; held_out: mean |error| of L after the first steps)",
                     "model_type x name parameters r2_log aicc held_out"),
    "forecasts": ("Forecasts of points not seen (R2 within sizes; single sizes' intra-model ones are in fit.json)",
                  "model_type x protocol N variant r2 mae last_L forecast"),
    "reuse": ("Loss against the reuse factor tau", "model_type N x at reuse L above_1 runs"),
    "reuse_limits": ("The largest tau that costs no more than a margin", "model_type N x at margin largest_within surely"),
    "group": ("Loss against group size", "model_type N x at group L runs"),
    "best": ("Each size's loss (outside: how many times beyond its points)", "model_type x X N L best_in outside"),
    "crossings": ("Where two sizes cross", "model_type sizes x X L"),
    "needed": ("What a loss needs (outside: how many times beyond the size's points)", "model_type x L N X outside"),
}


# ---------------------------------------------------------------- Words
def label(N):
    """N in billions as people write it: 72B, 0.5B, 3.2M, 84k."""
    unit, letter = (1, "B") if N >= 0.2 else (1e-3, "M") if N >= 1e-3 else (1e-6, "k") if N >= 1e-6 else (1e-9, "")
    return f"{N / unit:.3g}{letter}"


def span(ci, form="{:.4g}".format):
    """An interval (low, high) as it stands behind its estimate; nothing for None."""
    return "" if ci is None else f" [{form(ci[0])}, {form(ci[1])}]"


def table(title, columns, rows):
    """Text: the rows (dicts) below each other; N and N0 as sizes, the interval under COLUMN_ci in brackets, - for nothing."""
    def cell(row, c):
        v = row.get(c)
        text = "-" if v is None else label(v) if c in ("N", "N0") else v if isinstance(v, str) else f"{v:.4g}"
        return text + span(row.get(c + "_ci"))
    cells = [columns, *([cell(row, c) for c in columns] for row in rows)]
    width = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join([title, *("  " + "  ".join(map(str.ljust, row, width)).rstrip() for row in cells)])


def print_tables(result):
    """Prints the lists of a fit.json that hold something; of the intra-model forecasts only those of all sizes together."""
    for name, (title, columns) in TABLES.items():
        rows = [r for r in result[name] if name != "forecasts" or r["protocol"] == "inter" or r["N"] is None]
        if rows:
            print("\n" + table(title, columns.split(), rows))
    if result["best"] or result["needed"]:
        print("  Assumed: one straight line per size, the same recipe and data, C = 6 N x tokens of training only.")


# ---------------------------------------------------------------- Figures
def palette(levels):
    """{level: colour}, lowest lightest: viridis without its yellow end, which cannot be read on white."""
    levels = sorted(set(levels))
    return dict(zip(levels, plt.get_cmap("viridis")(np.linspace(0.75, 0.0, len(levels))), strict=True))


def draw(path, rows, panel, ylabels, size, bottom=None):
    """Writes path.png and path.pdf: panel(axis, *item) for every item of each row, all on one y axis.

    rows: lists of argument tuples; ylabels: one per row; size: width and height of a panel in inches; bottom: where y begins.
    """
    wide = max(map(len, rows))
    figure, axes = plt.subplots(len(rows), wide, figsize=(size[0] * wide, size[1] * len(rows)), sharey=True, squeeze=False,
                                layout="constrained")
    for row, items, ylabel in zip(axes, rows, ylabels, strict=True):
        row[0].set_ylabel(ylabel)
        for axis, item in zip(row, items, strict=False):
            panel(axis, *item)
        for axis in row[len(items):]:
            axis.set_axis_off()
    axes[0][0].set_ylim(bottom)
    figure.savefig(f"{path}.png")
    figure.savefig(f"{path}.pdf", metadata={"CreationDate": None})  # same points, same file
    plt.close(figure)


def loss_panel(axis, curves, law=None, fitted=()):
    """Loss against X, log-log, a curve per size: points, and the law's line, solid through the points it was fitted to.

    law: a Fit of the shortened or left-out curves `fitted`, dashed where it forecasts; None draws points alone.
    """
    log_L, colours, last = np.log10(np.concatenate([c.L_T[c.L_T > 0] for c in curves])), palette(c.N for c in curves), -np.inf
    seen = {c.N: len(c.X_T) for c in fitted}
    for c in reversed(curves):
        colour, n = colours[c.N], seen.get(c.N, 1)
        axis.plot(c.X_T, c.L_T, ".", ms=4, alpha=0.4, color=colour, mew=0)
        line = np.maximum(c.L_T, 10 ** log_L.min())
        if law:
            line = law.predict(c.N, c.X_T)[0] if c.N in seen else c.line(law.slope(c.N), law.loss)
            axis.plot(c.X_T[:n], line[:n], color=colour, lw=1.7)
            axis.plot(c.X_T[n - 1:], line[n - 1:], "--", color=colour, lw=1.7)
        last = max(np.log10(line[-1]), last + 0.04 * np.ptp(log_L))  # labels keep their distance, upwards
        axis.text(c.X_T[-1] * 1.2, 10**last, label(c.N), color=colour, fontsize=9, va="center", fontweight="bold")
    axis.set(xscale="log", yscale="log", xlabel=AXIS[curves[0].x], xmargin=0.1)
    if law:
        axis.set_title(f"fit to the first {max(seen.values())} points; dashed: later ones" if law.protocol == "intra" else
                       f"fit to {label(min(seen))}-{label(max(seen))}; dashed: a size not fitted (its E refitted)")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(lambda v, _: f"{v:.1g}" if log_L.min() > -0.8 or f"{v:.0e}"[0] in "25" else "")


def k_panel(axis, own, laws):
    """k(N) of up to two laws (to all sizes; without the largest) with 95% bands and K_max, beside each size's own slope.

    own: a Fit of shape "free"; laws: Fits of the saturating shape. Bands and bars need fits with a bootstrap.
    """
    N = np.geomspace(own.N[0] / 1.6, own.N[-1] * 6, 200)
    for f, colour, dash in zip(laws, ("#0072B2", "#D55E00"), ("-", "--"), strict=False):
        k_N, k_BN = f.of(lambda p: np.asarray(p["K"])[..., None] / (1 + np.asarray(p["N0"])[..., None] / N))
        axis.plot(N, k_N, dash, color=colour, lw=1.8)
        if k_BN is not None:
            axis.fill_between(N, *np.percentile(k_BN, (2.5, 97.5), axis=0), color=colour, alpha=0.15, lw=0)
        if f.pinned:
            axis.axhline(f.K, color=colour, lw=0.9, ls=":")
        text = f"{label(f.N[0])}-{label(f.N[-1])}: $K_{{max}}$ " + (f"= {f.K:.3f}" if f.pinned else "not pinned")
        above = f.K == max(g.K for g in laws)
        axis.annotate(text, (N[0], f.K if f.pinned else k_N[-1]), (0, 3 if above else -3), color=colour, fontsize=9,
                      textcoords="offset points", va="bottom" if above else "top")
    axis.errorbar(own.N, own.k, own.draws and np.abs(own.ci("k") - own.k), fmt="o", ms=5, color="black", lw=1.1, capsize=2)
    axis.set(xscale="log", xlabel="model size N (parameters)", title=f"slope against {AXIS[own.x]}, {own.model_type}")
    axis.set_xticks(own.N, map(label, own.N))
    axis.minorticks_off()
    axis.text(0.98, 0.04, "dots: a free slope per size\nlines: the law\nboth with 95% intervals", ha="right", fontsize=9,
              transform=axis.transAxes, color="0.3")


def residual_panel(axis, law, curve, colour):
    """L minus the law, step by step, of one size: what a line per size does not describe."""
    axis.axhline(0, color="0.6", lw=0.8)
    axis.plot(curve.step_T, curve.L_T - law.predict(curve.N, curve.X_T)[0], color=colour, lw=1)
    axis.set_title(label(curve.N), color=colour, fontweight="bold")
    axis.set_xlabel("step")


def sweep_panel(axis, rows, name):
    """Loss against name ("reuse" or "group") with 95% intervals: rows (dicts) of `sweep`, of one size and one kind of X."""
    levels, (kind, N, x) = sorted({r[name] for r in rows}), (rows[0][c] for c in ("model_type", "N", "x"))
    for i, (at, colour) in enumerate(palette(r["at"] for r in rows).items()):
        line = [r for r in rows if r["at"] == at]  # levels evenly spaced on the axis: 20 and 25 must both be legible
        place, L = [levels.index(r[name]) + 0.06 * (i - 1) for r in line], [r["L"] for r in line]
        axis.errorbar(place, L, [r["L_ci"][1] - r["L"] for r in line], fmt="o-", ms=4, lw=1.3, capsize=2, color=colour)
        axis.text(place[-1] + 0.2, L[-1], f"{x} {at:.3g}", color=colour, va="center")
    axis.set(xlim=(-0.3, len(levels) + 0.1), title=f"at fixed {AXIS[x]}, {kind}" + (f" {label(N)}" if N else ""), xlabel={
        "reuse": "reuse factor tau (times each problem is seen)", "group": "group size G (responses per prompt)"}[name])
    axis.set_xticks(range(len(levels)), [f"{v:g}" for v in levels])


def draw_sweeps(out, sweeps):
    """reuse and group figures under the directory `out`, a panel per size and X; sweeps: {"reuse": rows, "group": rows}."""
    for name, rows in sweeps.items():
        panels = defaultdict(list)
        for r in rows:
            panels[r["model_type"], r["N"], r["x"]].append(r)
        if panels:
            draw(out / name, [[(some, name) for some in panels.values()]], sweep_panel, [LOSS], (5.4, 4.2))


def draw_laws(out, studies):
    """The figures loss_C, loss_D, k and residuals under the directory `out`.

    studies: a list of (curves, own, laws), one per model type and X: all Curves, the Fit of shape "free", and laws by protocol,
    {"all" and, where they could be fitted, "inter", "intra": (Fit, the Curves it was fitted to)}.
    """
    for curves, own, laws in studies:
        name = f"loss_{own.x}" + (f"_{own.model_type}" if len({s[1].model_type for s in studies}) > 1 else "")
        shown = [laws[p] for p in ("inter", "intra") if p in laws] or [laws["all"]]
        draw(out / name, [[(curves, *fit_and_part) for fit_and_part in shown]], loss_panel, [LOSS], (5.6, 4.8))
    draw(out / "k", [[(own, [laws[p][0] for p in ("all", "inter") if p in laws]) for _, own, laws in studies]], k_panel,
         ["k(N), decades of L per decade of X"], (5.6, 4.4), bottom=0)
    draw(out / "residuals", [[(laws["all"][0], c, colour) for c, colour in
                              zip(curves, palette(c.N for c in curves).values(), strict=True)] for curves, _, laws in studies],
         residual_panel, [f"L minus law in {own.x}" for _, own, _ in studies], (1.6, 1.9))
