"""Every recipe on the tiny model, over several seeds: pass@1 during the run and at its end.

    python -m bench.bench_algorithms --seeds 5 --steps 40 --jobs 2

Each run is the command that a user types. The flags in SHARED come first, so that a recipe which
fixes one of them wins: those that are REINFORCE by definition make one update of a rollout, the
others four, without which no ratio would differ from 1. Finished runs are in points.jsonl and are
not repeated, so the command can be ended and given again. Draws algorithms.png.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from scipy.stats import t as student

from bench.common import ROOT, commit_of

EVAL_PROBLEMS = 200
SHARED = f"--updates 4 --eval-every 10 --eval-problems {EVAL_PROBLEMS} --save-every 100000"
RUNS = {  # name in the figure: flags. The study's loss alone: its recipe is for large models.
    "paper's loss": "--kl 0.001",
    "GRPO": "@recipes/grpo.args",
    "Dr. GRPO": "@recipes/dr_grpo.args",
    "DAPO": "@recipes/dapo.args",
    "GSPO": "@recipes/gspo.args",
    "CISPO": "@recipes/cispo.args",
    "RLOO": "@recipes/rloo.args",
    "nano": "@recipes/nano.args",
}
# Colours that the colour-blind can tell apart (Okabe and Ito 2008), and a grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
AVERAGED = ("clip_fraction", "equal_groups", "in_loss", "length")  # over the steps of a run


@dataclass
class Flags:
    seeds: int = 5  # runs of each recipe, at least 2
    steps: int = 40
    jobs: int = 2  # runs at a time, each on one core
    out: Path = ROOT / "results" / "algorithms"


@dataclass
class Recipe:
    """The finished runs of a recipe. points_RE: pass@1 of R runs at E evaluations."""

    name: str
    color: str
    runs: list[dict]
    steps_E: list[int]
    points_RE: np.ndarray

    @property
    def last_R(self) -> np.ndarray:
        return self.points_RE[:, -1]

    def mean(self, field: str) -> float:
        return float(np.mean([run[field] for run in self.runs]))


def run(name: str, seed: int, steps: int, commit: str) -> dict:
    """A line of points.jsonl: the evaluations of one run, and means over its steps."""
    words = f"{SHARED} --steps {steps} {RUNS[name]} --seed {seed}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        command = [*torchrun, "grpo.py", *words.split(), "--out", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            message = f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
            raise SystemExit(message)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    points = [[row["step"], row["pass1"]] for row in rows if row["kind"] == "eval"]
    print(f"{name}, seed {seed}: pass@1 {points[0][1]:.3f} -> {points[-1][1]:.3f}", flush=True)
    line = {"name": name, "seed": seed, "steps": steps, "points": points}
    line |= {"D": train[-1]["D"], "C": train[-1]["C"]}
    for field in AVERAGED:
        line[field] = sum(row[field] for row in train) / len(train)
    today = date.today().isoformat()
    return line | {"flags": words, "device": "cpu", "date": today, "commit": commit}


def make_missing(flags: Flags) -> list[dict]:
    """Make the runs that points.jsonl does not hold; the lines of all runs asked for."""
    path = flags.out / "points.jsonl"
    lines = []
    if path.exists():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    finished = {(line["name"], line["seed"], line["steps"]) for line in lines}
    missing = []
    for seed in range(flags.seeds):
        for name in RUNS:
            if (name, seed, flags.steps) not in finished:
                missing.append((name, seed))
    # Before the runs: of the code that they load.
    commit = commit_of(("*.py", "runtime", "kernels", "recipes"))
    with ThreadPoolExecutor(flags.jobs) as pool:
        begin = partial(run, steps=flags.steps, commit=commit)
        for line in pool.map(begin, *zip(*missing, strict=True)) if missing else ():
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            lines.append(line)
    asked = [line for line in lines if line["steps"] == flags.steps]
    return [line for line in asked if line["seed"] < flags.seeds]


def by_recipe(lines: list[dict]) -> list[Recipe]:
    recipes = []
    for name, color in zip(RUNS, COLORS, strict=True):
        runs = [line for line in lines if line["name"] == name]
        points_RE2 = np.array([line["points"] for line in runs])
        steps_E = points_RE2[0, :, 0].astype(int).tolist()
        recipes.append(Recipe(name, color, runs, steps_E, points_RE2[:, :, 1]))
    return recipes


def interval(points_RE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the runs, and half the width of its 95% interval (Student's t)."""
    R = len(points_RE)
    se_E = points_RE.std(0, ddof=1) / R**0.5
    return points_RE.mean(0), student.ppf(0.975, R - 1) * se_E


def draw(recipes: Iterable[Recipe], path: Path) -> None:
    """Left: the mean curves with their intervals. Right: every run at its end, the worst below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = {"figsize": (11, 4.6), "width_ratios": [1.15, 1], "layout": "constrained"}
    figure, (left, right) = plt.subplots(1, 2, **size)
    ranked = sorted(recipes, key=lambda recipe: recipe.last_R.mean())
    for recipe in recipes:
        y = ranked.index(recipe)
        color = recipe.color
        mean_E, half_E = interval(recipe.points_RE)
        low_E = mean_E - half_E
        high_E = mean_E + half_E
        left.plot(recipe.steps_E, mean_E, color=color, lw=2, marker="o", ms=3, label=recipe.name)
        left.fill_between(recipe.steps_E, low_E, high_E, color=color, alpha=0.12, lw=0)
        below = [y - 0.25] * len(recipe.runs)  # not hidden by the bar of the interval
        right.plot(recipe.last_R, below, "o", color=color, ms=5, alpha=0.6, mec="none")
        right.errorbar(mean_E[-1], y, xerr=half_E[-1], fmt="D", color=color, ms=6, capsize=4, lw=2)
    seeds = len(ranked[0].runs)
    left.set_title(f"{seeds} seeds: mean, 95% interval")
    left.set_xlabel("step")
    left.set_ylabel(f"pass@1, {EVAL_PROBLEMS} held-out problems")
    left.legend(frameon=False, ncols=2, loc="lower right")
    labels = [f"{recipe.name}\n{recipe.mean('D'):,.0f} prompts" for recipe in ranked]
    right.set_yticks(range(len(ranked)), labels)
    right.set_title("every seed; mean, 95% interval")
    right.set_xlabel("pass@1 after the last step")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=150)


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    if flags.seeds < 2:
        raise SystemExit(f"--seeds {flags.seeds}: an interval over seeds needs at least 2")
    flags.out.mkdir(parents=True, exist_ok=True)
    recipes = by_recipe(make_missing(flags))
    draw(recipes, flags.out / "algorithms.png")
    columns = f"{'pass@1':>8}{'95%':>8}{'prompts':>9}{'clipped':>9}{'equal':>7}{'length':>8}"
    print(f"\n{'recipe':14}{columns}")
    for recipe in recipes:
        mean_E, half_E = interval(recipe.points_RE)
        print(
            f"{recipe.name:14}{mean_E[-1]:8.3f}{half_E[-1]:8.3f}{recipe.mean('D'):9,.0f}"
            f"{recipe.mean('clip_fraction'):9.1%}{recipe.mean('equal_groups'):7.1%}"
            f"{recipe.mean('length'):8.1f}"
        )
    print(flags.out / "algorithms.png")


if __name__ == "__main__":
    main()
