"""The paper's four findings, remade on a laptop: the grid of runs, and the report on them (report.py).

    python study.py                   # the full grid on models/ladder, about an hour and a half on two cores
    python study.py --quick           # a smaller one, in under 15 minutes
    python study.py --models Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-1.5B Qwen/Qwen2.5-3B --recipe recipes/paper.args \\
        --torchrun '--nproc_per_node 8' --jobs 1 --out runs/full          # the same on real models

The grid is a plain list of runs, each a `torchrun grpo.py` command, printed by --list. Finished runs are skipped and
interrupted ones go on where they were, so Ctrl-C loses nothing: give the same command again.

What is fixed beforehand. Two arms: `constant`, the paper's constant learning rate, and `inverse`, lr / update, because a steady
descent in steps is concave in log-log, which no power law is. Three base seeds for each size, which also key the run's noise.
Evaluations at steps 1, 2, 3, 4, 6, 8, 11, .. 2^(i/2). The runs of the largest size come after the forecast of them is written
to forecast.json.

Where we deviate from the paper, and why: its models differ in size by pretraining data too, ours see the same tokens; its
group and reuse runs are of 7B, ours of the rung in the middle.
"""

import argparse
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import report
from checkpoint import differing
from grpo import FREE, check, parse_flags
from ladder import LADDER, RUNGS, SEEDS
from model import Config, locate

WORLD = "--data arithmetic-hard --max-prompt 40 --max-new 88 --prompts 32 --group 8 --eval-problems 400"
ARMS = {"constant": "--lr 5e-4 --warmup 1", "inverse": "--lr 4e-3 --warmup 1 --decay inverse"}
TAUS = (1, 2, 5, 10, 25, 50, 100)
GROUPS = {4: 8, 8: 8, 16: 4, 32: 2}  # and the steps between the evaluations of each, which must meet at equal C


@dataclass
class Run:
    """One run of the grid: its directory's name, the question it serves (sizes, reuse, group), its arm, and grpo.py's flags."""

    name: str
    part: str
    arm: str
    model: str
    flags: str
    error: str = ""

    def argv(self, out: Path) -> list[str]:
        return [*shlex.split(self.flags), "--model", self.model, "--out", str(out / self.name)]


def ladder_grid(quick: bool) -> list[Run]:
    """The runs on models/ladder: sizes ascending, then the sweeps."""
    steps, seeds, kinds = (32, 2, ("",)) if quick else (100, SEEDS, ("", "-instruct"))
    runs, rungs = [], [name for name in RUNGS if name != "tiny"]
    for rung in rungs:
        for kind in kinds:
            for arm in ARMS:
                flags = f"{WORLD} {ARMS[arm]} --steps {steps} --eval-every 0 --eval :2:1"
                runs += [Run(f"{rung}-{seed}{kind}-{arm}", "sizes", arm, f"{LADDER}/{rung}-{seed}{kind}",
                             f"{flags} --seed {seed}") for seed in range(seeds)]
    middle, steps = rungs[len(rungs) // 2], 32 if quick else 100
    for tau in (1, 5, 25) if quick else TAUS:
        flags = f"{WORLD} {ARMS['constant']} --steps {steps} --reuse {tau} --eval-every {steps // 10} --eval :1:1"
        runs += [Run(f"{middle}-{seed}-tau{tau}", "reuse", "constant", f"{LADDER}/{middle}-{seed}", f"{flags} --seed {seed}")
                 for seed in range(seeds)]
    for group in (4, 16) if quick else GROUPS:
        flags = f"{WORLD} {ARMS['constant']} --group {group} --eval-every {GROUPS[group]} --eval :1:1"
        runs += [Run(f"{middle}-{seed}-group{group}", "group", "constant", f"{LADDER}/{middle}-{seed}",
                     f"{flags} --steps {32 if quick else 64} --seed {seed}") for seed in range(seeds)]
    return runs


def real_grid(models: list[str], recipe: str, seeds: int) -> list[Run]:
    """The same questions on given models, smallest first, with a recipe's flags: one arm, the recipe's own."""
    runs, flags = [], f"@{recipe}"
    for model in models:
        runs += [Run(f"{Path(model).name}-{seed}", "sizes", "recipe", model, f"{flags} --seed {seed}") for seed in range(seeds)]
    middle = models[len(models) // 2]
    for name, values in {"reuse": TAUS, "group": GROUPS}.items():
        runs += [Run(f"{Path(middle).name}-{seed}-{name}{v}", name, "recipe", middle, f"{flags} --{name} {v} --seed {seed}")
                 for v in values for seed in range(seeds)]
    return runs


def finished(run: Run, out: Path) -> bool:
    """Whether the run is there already. ValueError if a run of other flags is in its place."""
    flags, there = parse_flags(run.argv(out)), out / run.name
    check(flags, 1)
    if not (there / "flags.json").is_file():
        return False
    if changed := differing(dataclasses.asdict(flags), there, FREE):
        said = ", ".join(f"--{k.replace('_', '-')} {here} (there {old})" for k, (here, old) in changed.items())
        raise ValueError(f"{there} was made with other flags: {said}; give another --out, or remove it")
    return (there / "final" / "config.json").is_file()


def cost(run: Run, out: Path) -> float:
    """A guess at a run's work, for the bar: a model of few parameters costs as much as one of 40,000."""
    flags = parse_flags(run.argv(out))
    return flags.steps * flags.prompts * flags.group * (Config.read(locate(run.model)).N + 4e4)


def steps_done(run: Run, out: Path) -> int:
    path = out / run.name / "metrics.jsonl"
    return path.read_text().count('"kind": "train"') if path.is_file() else 0


class Grid:
    """Runs commands, `jobs` at a time, and stops them all when asked."""

    def __init__(self, out: Path, jobs: int, torchrun: str):
        self.out, self.jobs, self.torchrun, self.stopping = out, jobs, torchrun, False
        self.children: dict[str, subprocess.Popen] = {}

    def command(self, run: Run) -> list[str]:
        script = Path(__file__).with_name("grpo.py")
        return ["torchrun", *shlex.split(self.torchrun), os.path.relpath(script), *run.argv(self.out), "--resume", "auto"]

    def execute(self, run: Run) -> None:
        if self.stopping or finished(run, self.out):
            return
        log = self.out / f"{run.name}.log"
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs))} | os.environ
        with open(log, "a") as file:  # a session of its own, so that Ctrl-C reaches the runs through stop() alone
            child = subprocess.Popen(self.command(run), stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                                     env=threads)
            self.children[run.name] = child
            code = child.wait()
        del self.children[run.name]
        if code and not self.stopping:
            run.error = f"exit code {code}:\n" + "\n".join(log.read_text().splitlines()[-12:])

    def stop(self) -> None:
        """SIGTERM: a run ends with its phase and a checkpoint."""
        self.stopping = True
        for child in list(self.children.values()):
            child.terminate()  # torchrun passes it on

    def all(self, runs: list[Run], bar: tqdm) -> None:
        """Runs a list; the bar counts work, from the training lines that are written."""
        work = {run.name: cost(run, self.out) for run in runs}
        steps = {run.name: parse_flags(run.argv(self.out)).steps for run in runs}
        base = bar.n
        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = [pool.submit(self.execute, run) for run in runs]
            try:
                while not all(w.done() for w in waiting):
                    time.sleep(1)
                    done = sum(work[r.name] * min(1, steps_done(r, self.out) / steps[r.name]) for r in runs)
                    bar.update(base + done - bar.n)
                    bar.set_postfix_str(" ".join(self.children), refresh=False)
            except KeyboardInterrupt:
                self.stop()
                tqdm.write("stopping: each run writes a checkpoint first; the same command goes on from there")
        for w in waiting:
            w.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs, in under 15 minutes on two cores")
    parser.add_argument("--models", nargs="+", help="models instead of the ladder, by size, the smallest first")
    parser.add_argument("--recipe", help="with --models: the file of flags of every run")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="with --models: runs of each")
    parser.add_argument("--torchrun", default="--standalone", help="torchrun's own flags (default: --standalone)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (default: one for each core)")
    parser.add_argument("--out", type=Path, help="directory of the runs (default: runs/study, or runs/study-quick)")
    parser.add_argument("--list", action="store_true", help="only print the commands")
    a = parser.parse_args()
    if bool(a.models) != bool(a.recipe) or (a.models and a.quick):
        raise ValueError("--models and --recipe go together, and without --quick")
    if a.models and len(a.models) < 3:
        raise ValueError(f"--models {' '.join(a.models)}: a law of sizes, and a forecast of the largest, need at least three")
    out = a.out or Path("runs", "study-quick" if a.quick else "study")
    runs = real_grid(a.models, a.recipe, a.seeds) if a.models else ladder_grid(a.quick)
    grid = Grid(out, a.jobs, a.torchrun)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job queue's way of asking, treated like Ctrl-C
    if a.list:
        return print("\n".join(shlex.join(grid.command(run)) for run in runs))
    there = sum(finished(run, out) for run in runs)  # and refuses a directory of other runs before it starts any
    out.mkdir(parents=True, exist_ok=True)
    print(f"{out}: {len(runs)} runs, {there} of them finished, {a.jobs} at a time")

    largest = max((run.model for run in runs), key=lambda model: Config.read(locate(model)).N)
    N = Config.read(locate(largest)).N
    last = [run for run in runs if run.part == "sizes" and Config.read(locate(run.model)).N == N]
    first = [run for run in runs if run.part == "sizes" and run not in last]
    rest = sorted((run for run in runs if run.part != "sizes"), key=lambda run: -cost(run, out))
    unit = {"unit": "", "bar_format": "{percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left{postfix}"}
    with tqdm(total=sum(cost(run, out) for run in runs), dynamic_ncols=True, **unit) as bar:
        grid.all(first, bar)
        if not grid.stopping:
            report.freeze(out, [run for run in first if not run.error], N)  # before any run of the largest is read
            grid.all([*last, *rest], bar)
    if grid.stopping:
        sys.exit(130)
    report.gather(out, runs, [shlex.join(grid.command(run)) for run in runs])
    report.write(out)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"study.py: {error}")
