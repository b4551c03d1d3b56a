"""The paper's findings, remade on a laptop: the grid of runs, and the report on them (report.py).

    python -m study.grid                   # the full grid on models/ladder, about an hour and a half on two cores
    python -m study.grid --quick           # a smaller one, in under 15 minutes
    python -m study.grid --models Qwen/Qwen2.5-0.5B Qwen/Qwen2.5-1.5B Qwen/Qwen2.5-3B --recipe recipes/paper.args \\
        --torchrun '--nproc_per_node 8' --out runs/full                   # the same on real models

The grid is a plain list of runs, each a `torchrun grpo.py` command, printed by --list. Finished runs are skipped and
interrupted ones go on where they were, so Ctrl-C loses nothing: give the same command again.

What is fixed beforehand. Two arms: `constant`, the paper's constant learning rate, and `inverse`, lr / update, because a steady
descent in steps is concave in log-log, which no power law is. Three bases for each size, whose number also keys a run's noise.
Evaluations at steps 1, 2, 3, 4, 6, 8, 11, .. 2^(i/2). The runs of the largest size come after the forecast of them is written
to forecast.json.

Where we deviate from the paper, and why: its models differ in size by pretraining data too, ours see the same tokens; its
group and reuse runs are of 7B, ours of the rung in the middle.
"""

import argparse
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tqdm import tqdm

from grpo import FREE, check, parse_flags
from model import Config
from runtime.checkpoint import differing
from runtime.parallel import locate
from study import report
from study.ladder import LADDER, RUNGS, SEEDS

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
        flags = f"{WORLD} {ARMS['constant']} --group {group} --eval-every {GROUPS[group] // (1 + quick)} --eval :1:1"
        runs += [Run(f"{middle}-{seed}-group{group}", "group", "constant", f"{LADDER}/{middle}-{seed}",
                     f"{flags} --steps {32 if quick else 64} --seed {seed}") for seed in range(seeds)]
    return runs


def real_grid(models: list[str], recipe: str, seeds: int) -> list[Run]:
    """The same questions on given models, smallest first, with a recipe's flags: one arm, the recipe's own. Where a sweep would
    repeat the size runs of the middle model, those serve."""
    runs, flags, own = [], f"@{recipe}", parse_flags([f"@{recipe}"])
    for model in models:
        runs += [Run(f"{Path(model).name}-{seed}", "sizes", "recipe", model, f"{flags} --seed {seed}") for seed in range(seeds)]
    middle = models[len(models) // 2]
    for name, values in {"reuse": TAUS, "group": GROUPS}.items():
        runs += [Run(f"{Path(middle).name}-{seed}-{name}{v}", name, "recipe", middle, f"{flags} --{name} {v} --seed {seed}")
                 for v in values if v != getattr(own, name) for seed in range(seeds)]
    return runs


@cache
def size(model: str) -> int:
    """Parameters without embeddings."""
    return Config.read(locate(model)).N


def finished(run: Run, out: Path) -> bool:
    """Whether the run is there already. ValueError if a run of other flags is in its place."""
    flags, there = parse_flags(run.argv(out)), out / run.name
    check(flags, 1)
    if not (there / "flags.json").is_file():
        return False
    if changed := differing(dataclasses.asdict(flags), there, FREE):
        said = ", ".join(f"--{k.replace('_', '-')} {here} (there {old})" for k, (here, old) in changed.items())
        raise ValueError(f"{there} was made with other flags: {said}; give another --out, or remove it")
    return whole(run, out)


def whole(run: Run, out: Path) -> bool:
    """Whether its model is written, which is the last thing a run does."""
    return (out / run.name / "final" / "config.json").is_file()


def cost(run: Run, out: Path) -> float:
    """A guess at a run's work, for the bar: a model of few parameters costs as much as one of 40,000."""
    flags = parse_flags(run.argv(out))
    return flags.steps * flags.prompts * flags.group * (size(run.model) + 4e4)


class Grid:
    """Runs commands, `jobs` at a time, and stops them all when asked. threads: of each process; None leaves that to
    torchrun."""

    def __init__(self, out: Path, jobs: int, torchrun: str, threads: int | None = None):
        self.out, self.jobs, self.stopping, self.children = out, jobs, False, {}
        self.torchrun = shlex.split(torchrun)
        if not re.search("--(standalone|nnodes|rdzv|master)", torchrun):
            self.torchrun.append("--standalone")  # else two runs would meet at one port
        self.environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})

    def arguments(self, run: Run) -> list[str]:
        script = Path(__file__).resolve().parent.parent / "grpo.py"
        return [*self.torchrun, os.path.relpath(script), *run.argv(self.out), "--resume", "auto"]

    def command(self, run: Run) -> list[str]:
        return [sys.executable, "-m", "torch.distributed.run", *self.arguments(run)]

    def execute(self, run: Run) -> None:
        if self.stopping or whole(run, self.out):
            return
        log = self.out / f"{run.name}.log"
        with open(log, "a") as file:  # a session of its own, so that Ctrl-C reaches the runs through stop() alone
            start = file.tell()
            child = subprocess.Popen(self.command(run), stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                                     env=self.environment)
            self.children[run.name] = child
            if self.stopping:  # asked in between
                child.terminate()
            code = child.wait()
        del self.children[run.name]
        if not self.stopping and (code or not whole(run, self.out)):
            said = log.read_bytes()[start:].decode(errors="replace")
            said = re.split(r"^[EW]\d{4} .*(?:elastic|torch)", said, flags=re.M)[0].strip() or said  # torchrun's box says less
            run.error = f"exit code {code}:\n" + "\n".join(said.splitlines()[-12:])

    def stop(self) -> None:
        """SIGTERM, which torchrun passes on: a run ends with its phase and a checkpoint."""
        self.stopping = True
        for child in list(self.children.values()):
            child.terminate()

    def all(self, runs: list[Run], bar: tqdm) -> None:
        """Runs a list; the bar counts work, from the training lines that are written."""
        work = {run.name: cost(run, self.out) for run in runs}
        steps = {run.name: parse_flags(run.argv(self.out)).steps for run in runs}
        base = bar.n

        def done(run: Run) -> float:
            path = self.out / run.name / "metrics.jsonl"
            lines = path.read_text().count('"kind": "train"') if path.is_file() and run.name in self.children else 0
            return work[run.name] * min(1.0, lines / steps[run.name])

        with ThreadPoolExecutor(self.jobs) as pool:
            waiting = {run.name: pool.submit(self.execute, run) for run in runs}
            try:
                while not all(w.done() for w in waiting.values()):
                    time.sleep(1)
                    bar.update(base + sum(work[r.name] if waiting[r.name].done() else done(r) for r in runs) - bar.n)
                    bar.set_postfix_str(" ".join(self.children), refresh=False)
            except KeyboardInterrupt:
                self.stop()
                tqdm.write("stopping: each run writes a checkpoint first; the same command goes on from there")
        for w in waiting.values():
            w.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs, in under 15 minutes on two cores")
    parser.add_argument("--models", nargs="+", help="models instead of the ladder, by size, the smallest first")
    parser.add_argument("--recipe", help="with --models: the file of flags of every run")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="with --models: runs of each")
    parser.add_argument("--torchrun", default="--standalone", help="torchrun's own flags (default: --standalone)")
    parser.add_argument("--jobs", type=int, help="runs at a time (default: one for each core; with --models one)")
    parser.add_argument("--out", type=Path, help="directory of the runs (default: runs/study, or runs/study-quick)")
    parser.add_argument("--list", action="store_true", help="only print the commands")
    a = parser.parse_args()
    if bool(a.models) != bool(a.recipe) or (a.models and a.quick):
        raise ValueError("--models and --recipe go together, and without --quick")
    for kind in ("base", "instruct") if a.models else ():
        N = [size(model) for model in a.models if ("instruct" in model.lower()) == (kind == "instruct")]
        if N and (len(set(N)) < 3 or N != sorted(N)):
            raise ValueError(f"--models: {len(set(N))} sizes of {kind} models, {N}; a law of sizes, and a forecast of the "
                             "largest, need at least three, the smallest first")
    out = a.out or Path("runs", "study-quick" if a.quick else "study")
    runs = real_grid(a.models, a.recipe, a.seeds) if a.models else ladder_grid(a.quick)
    jobs = a.jobs or (1 if a.models else os.cpu_count() or 1)
    grid = Grid(out, jobs, a.torchrun, None if a.models else max(1, (os.cpu_count() or 1) // jobs))
    commands = [shlex.join(["torchrun", *grid.arguments(run)]) for run in runs]
    if a.list:
        return print("\n".join(commands))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job queue's way of asking, treated like Ctrl-C
    there = [run for run in runs if finished(run, out)]  # and refuses a directory of other runs before it starts any
    out.mkdir(parents=True, exist_ok=True)
    print(f"{out}: {len(runs)} runs, {len(there)} of them finished, {jobs} at a time")

    N = max(size(run.model) for run in runs)
    last = [run for run in runs if run.part == "sizes" and size(run.model) == N]
    first = [run for run in runs if run.part == "sizes" and size(run.model) < N]
    rest = sorted((run for run in runs if run.part != "sizes"), key=lambda run: -cost(run, out))
    unit = {"unit": "", "bar_format": "{percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left{postfix}"}
    gone = sum(cost(run, out) for run in there)
    with tqdm(total=sum(cost(run, out) for run in runs), initial=gone, dynamic_ncols=True, **unit) as bar:
        grid.all([run for run in first if run not in there], bar)
        if not grid.stopping:  # before any run of the largest is read
            begun = [run.name for run in last if (out / run.name / "metrics.jsonl").is_file()]
            report.freeze(out, [run for run in first if not run.error], N, begun)
            grid.all([run for run in [*last, *rest] if run not in there], bar)
    if grid.stopping:
        sys.exit(130)
    report.gather(out, runs, commands)
    report.write(out)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"study.grid: {error}")
