"""Every recipe on the tiny model, over several seeds: pass@1 during the run and at its end, in one figure.

    python -m bench.bench_algorithms --seeds 5 --steps 40 --jobs 2

Each run is the command that a user types. The flags in SHARED come first, so that a recipe which fixes one of them wins: those
that are REINFORCE by definition make one update of a rollout, the others four, without which no ratio would differ from 1.
Finished runs are in points.jsonl and are not repeated, so the command can be ended and given again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
from scipy.stats import t as student

ROOT = Path(__file__).resolve().parent.parent
SHARED = ["--updates", "4", "--eval-every", "10", "--eval-problems", "200", "--save-every", "100000"]
RUNS = {  # name in the figure: flags; the study's loss is its recipe's, whose data and sizes are not a laptop's
    "paper's loss": ["--kl", "0.001"],
    "GRPO": ["@recipes/grpo.args"],
    "Dr. GRPO": ["@recipes/dr_grpo.args"],
    "DAPO": ["@recipes/dapo.args"],
    "GSPO": ["@recipes/gspo.args"],
    "CISPO": ["@recipes/cispo.args"],
    "RLOO": ["@recipes/rloo.args"],
    "nano": ["@recipes/nano.args"],
}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")  # Okabe and Ito's, and a grey


def run(name: str, seed: int, steps: int, commit: str) -> dict:
    """A line of points.jsonl: the evaluations of one run, and what it drew."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        flags = [*SHARED, "--steps", str(steps), *RUNS[name], "--seed", str(seed)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "grpo.py", *flags, "--out", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluations, train = ([r for r in rows if r["kind"] == kind] for kind in ("eval", "train"))
    points = [[r["step"], r["pass1"]] for r in evaluations]
    mean = {key: sum(r[key] for r in train) / len(train) for key in ("clip_fraction", "zero_variance", "in_loss", "length")}
    print(f"{name}, seed {seed}: pass@1 {points[0][1]:.3f} -> {points[-1][1]:.3f}", flush=True)
    return {"name": name, "seed": seed, "steps": steps, "points": points, "D": train[-1]["D"], "C": train[-1]["C"], **mean,
            "flags": " ".join(flags), "device": "cpu", "date": date.today().isoformat(), "commit": commit}


def interval(values_SR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the runs (last axis) and half the width of its 95% interval, Student's t."""
    n = values_SR.shape[-1]
    return values_SR.mean(-1), student.ppf(0.975, n - 1) * values_SR.std(-1, ddof=1) / n**0.5


def draw(lines: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), width_ratios=[1.15, 1], layout="constrained")
    groups = {name: [r for r in lines if r["name"] == name] for name in RUNS}
    order = sorted((n for n in RUNS if groups[n]), key=lambda n: np.mean([r["points"][-1][1] for r in groups[n]]))
    for name, color in zip(RUNS, COLORS, strict=True):
        if not groups[name]:
            continue
        step, y = order.index(name), np.array([r["points"][-1][1] for r in groups[name]])
        mean, half = interval(np.array([[p for _, p in r["points"]] for r in groups[name]]).T)
        steps = [s for s, _ in groups[name][0]["points"]]
        left.plot(steps, mean, color=color, lw=2, marker="o", ms=3, label=name)
        left.fill_between(steps, mean - half, mean + half, color=color, alpha=0.12, lw=0)
        right.plot(y, [step] * len(y), "o", color=color, ms=4, alpha=0.45, mec="none")
        right.errorbar(mean[-1], step, xerr=half[-1], fmt="D", color=color, ms=6, capsize=4, lw=2)
    left.set(xlabel="step", ylabel="pass@1, 200 held-out problems", title=f"{len(groups[order[0]])} seeds: mean, 95% interval")
    left.legend(frameon=False, ncols=2, loc="lower right")
    labels = [f"{n}\n{np.mean([r['D'] for r in groups[n]]):,.0f} prompts" for n in order]
    right.set(yticks=range(len(order)), yticklabels=labels, title="every seed; mean, 95% interval",
              xlabel="pass@1 after the last step")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Every recipe on the tiny model.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each recipe, at least 2")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "algorithms")
    flags = parser.parse_args()
    if flags.seeds < 2:
        parser.error(f"--seeds {flags.seeds}: an interval over seeds needs at least 2")
    flags.out.mkdir(parents=True, exist_ok=True)
    path = flags.out / "points.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    finished = {(r["name"], r["seed"], r["steps"]) for r in lines}
    todo = [(name, seed) for seed in range(flags.seeds) for name in RUNS if (name, seed, flags.steps) not in finished]
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]  # before the runs, of the code that they load
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    with ThreadPoolExecutor(flags.jobs) as pool:
        for line in pool.map(lambda each: run(*each, flags.steps, commit), todo):
            with open(path, "a") as file:
                file.write(json.dumps(line) + "\n")
            lines.append(line)
    lines = [r for r in lines if r["steps"] == flags.steps and r["seed"] < flags.seeds]
    draw(lines, flags.out / "algorithms.png")
    print(f"\n{'recipe':14}{'pass@1':>8}{'95%':>8}{'prompts':>9}{'clipped':>9}{'equal':>7}{'length':>8}")
    for name in RUNS:
        rows = [r for r in lines if r["name"] == name]
        mean, half = interval(np.array([r["points"][-1][1] for r in rows]))
        D, clipped, equal, length = (np.mean([r[k] for r in rows]) for k in ("D", "clip_fraction", "zero_variance", "length"))
        print(f"{name:14}{mean:8.3f}{half:8.3f}{D:9,.0f}{clipped:9.1%}{equal:7.1%}{length:8.1f}")
    print(f"{flags.out / 'algorithms.png'}")


if __name__ == "__main__":
    main()
