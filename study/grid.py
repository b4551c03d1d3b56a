"""The paper's findings, remade on a laptop: a grid of runs, and a report on them.

    python -m study.grid            # models/ladder: 90 minutes on two cores
    python -m study.grid --quick    # a smaller grid, in under 15 minutes
    python -m study.grid --out runs/full --models Qwen/Qwen2.5-{0.5B,1.5B,3B} \\
        --recipe recipes/paper.args --torchrun='--nproc_per_node 8'

The grid is a plain list of runs, each a `torchrun grpo.py` command; --list prints them. Finished
runs are skipped and interrupted runs are resumed, so Ctrl-C loses nothing: give the same command
again.

Fixed beforehand. There are two arms: `constant`, the paper's constant learning rate, and
`inverse`, lr / update, because a steady descent in steps is concave in log-log, which no power law
is. Each size has three bases; the number of a base also keys the noise of its run. Evaluations are
made at steps 1, 2, 3, 4, 6, 8, 11, .. 2^(i/2). The runs of the largest size start after their
forecast is written to forecast.json.

Deviations from the paper: its models differ in size and in pretraining data, ours see the same
tokens; its group and reuse runs are of a 7B model, ours of the middle size.
"""
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tyro
from tqdm import tqdm

from grpo import FREE, check, parse_flags
from model import Config
from runtime.checkpoint import differing, say_differing
from runtime.parallel import locate
from study import report
from study.ladder import LADDER, RUNGS, SEEDS

GRPO = Path(__file__).resolve().parent.parent / "grpo.py"
WORLD = ("--data arithmetic-hard --max-prompt 40 --max-new 88 "
         "--prompts 32 --group 8 --eval-problems 400")
ARMS = {"constant": "--lr 5e-4 --warmup 1", "inverse": "--lr 4e-3 --warmup 1 --decay inverse"}
TAUS = (1, 2, 5, 10, 25, 50, 100)
# Group size: steps between evaluations. The groups are compared at equal C, so a group of twice
# the size is evaluated twice as often.
GROUPS = {4: 8, 8: 8, 16: 4, 32: 2}


@dataclass
class Flags:
    quick: bool = False  # a smaller grid, in under 15 minutes on two cores
    models: tuple[str, ...] = ()  # models instead of the ladder, the smallest first
    recipe: str = ""  # with --models: the file of flags of every run
    seeds: int = SEEDS  # with --models: runs of each model
    torchrun: str = "--standalone"  # flags of torchrun, as in --torchrun='--nproc_per_node 8'
    jobs: int = 0  # runs at a time; 0: one for each core, and one with --models
    out: str = ""  # directory of the runs; runs/study or runs/study-quick if not given
    list: bool = False  # only print the commands


# ---------------------------------------------------------------- The list of runs
@dataclass
class Run:
    """One run of the grid."""
    name: str   # of its directory
    part: str   # the question that it serves: sizes, reuse, group
    arm: str
    model: str
    flags: str  # of grpo.py
    error: str = ""

    def argv(self, out: Path) -> list[str]:
        where = str(out / self.name)
        return [*shlex.split(self.flags), "--model", self.model, "--out", where]


def ladder_grid(quick: bool) -> list[Run]:
    """The runs on models/ladder: sizes ascending, then the sweeps on the middle size."""
    steps, seeds, kinds = (32, 2, [""]) if quick else (100, SEEDS, ["", "-instruct"])
    rungs = [name for name in RUNGS if name != "tiny"]
    runs = []

    def add(part: str, arm: str, rung: str, kind: str, suffix: str, flags: str) -> None:
        for seed in range(seeds):
            base = f"{rung}-{seed}{kind}"
            all_flags = f"{WORLD} {ARMS[arm]} {flags} --seed {seed}"
            runs.append(Run(f"{base}-{suffix}", part, arm, f"{LADDER}/{base}", all_flags))

    for rung in rungs:
        for kind in kinds:
            for arm in ARMS:
                add("sizes", arm, rung, kind, arm, f"--steps {steps} --eval-every 0 --eval :2:1")
    middle = rungs[len(rungs) // 2]
    for tau in (1, 5, 25) if quick else TAUS:
        flags = f"--steps {steps} --reuse {tau} --eval-every {steps // 10} --eval :1:1"
        add("reuse", "constant", middle, "", f"tau{tau}", flags)
    steps, groups = (32, (4, 16)) if quick else (64, GROUPS)
    for group in groups:
        every = GROUPS[group] // 2 if quick else GROUPS[group]
        flags = f"--group {group} --eval-every {every} --eval :1:1 --steps {steps}"
        add("group", "constant", middle, "", f"group{group}", flags)
    return runs


def real_grid(models: tuple[str, ...], recipe: str, seeds: int) -> list[Run]:
    """The same questions on given models, smallest first, in one arm: a recipe's flags.

    The size runs of the middle model also serve the sweeps, as the level that the recipe has.
    """
    recipe_flags = parse_flags([f"@{recipe}"])
    runs = []

    def add(part: str, model: str, suffix: str, flags: str) -> None:
        for seed in range(seeds):
            name = f"{Path(model).name}-{seed}{suffix}"
            runs.append(Run(name, part, "recipe", model, f"@{recipe} {flags} --seed {seed}"))

    for model in models:
        add("sizes", model, "", "")
    middle = models[len(models) // 2]
    for part, levels in {"reuse": TAUS, "group": GROUPS}.items():
        for level in levels:
            if level != getattr(recipe_flags, part):
                add(part, middle, f"-{part}{level}", f"--{part} {level}")
    return runs


@cache
def size(model: str) -> int:
    """Parameters without embeddings."""
    return Config.read(locate(model)).N


def check_models(f: Flags) -> None:
    """ValueError unless --models, --recipe and --quick make a grid."""
    if bool(f.models) != bool(f.recipe) or (f.models and f.quick):
        raise ValueError("--models and --recipe go together, and without --quick")
    if f.list:  # needs no size, which may be on the hub
        return
    by_kind = {"base": [], "instruct": []}
    for model in f.models:
        kind = "instruct" if "instruct" in model.lower() else "base"
        by_kind[kind].append(size(model))
    for kind, sizes in by_kind.items():
        if sizes and (len(set(sizes)) < 3 or sizes != sorted(sizes)):
            raise ValueError(
                f"--models: {len(set(sizes))} sizes of {kind} models, {sizes}; "
                "the law and a forecast of the largest size need at least three, smallest first")


# ---------------------------------------------------------------- Running them
def whole(run: Run, out: Path) -> bool:
    """Whether the run's model is written, which is the last thing that a run does."""
    return (out / run.name / "final" / "config.json").is_file()


def finished(run: Run, out: Path) -> bool:
    """Whether the run is there already. ValueError if its directory holds a run of other flags."""
    flags = parse_flags(run.argv(out))
    check(flags, 1)
    there = out / run.name
    if not (there / "flags.json").is_file():
        return False
    changed = differing(dataclasses.asdict(flags), there, FREE)
    if changed:
        raise ValueError(f"{there} was made with other flags: {say_differing(changed)}; "
                         "give another --out, or remove it")
    return whole(run, out)


class Grid:
    """Runs commands, `jobs` at a time, and stops them all when asked.

    threads: of each process; None leaves that to torchrun.
    """

    def __init__(self, out: Path, jobs: int, torchrun: str, threads: int | None = None):
        self.out = out
        self.jobs = jobs
        self.torchrun = shlex.split(torchrun)
        if not re.search("--(standalone|nnodes|rdzv|master)", torchrun):
            self.torchrun.append("--standalone")  # else two runs would meet at one port
        self.environment = dict(os.environ)
        if threads:
            self.environment["OMP_NUM_THREADS"] = str(threads)
        self.stopping = False
        self.children = {}

    def arguments(self, run: Run) -> list[str]:
        return [*self.torchrun, os.path.relpath(GRPO), *run.argv(self.out), "--resume", "auto"]

    def command(self, run: Run) -> list[str]:
        return [sys.executable, "-m", "torch.distributed.run", *self.arguments(run)]

    def execute(self, run: Run) -> None:
        """Run it to its end; run.error says why it failed."""
        if self.stopping or whole(run, self.out):
            return
        log = self.out / f"{run.name}.log"
        with open(log, "a") as file:
            start = file.tell()
            # In a session of its own, so that Ctrl-C reaches it through stop() alone.
            child = subprocess.Popen(
                self.command(run), stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True, env=self.environment)
            self.children[run.name] = child
            if self.stopping:  # stop() was called in between
                child.terminate()
            code = child.wait()
        del self.children[run.name]
        if not self.stopping and (code or not whole(run, self.out)):
            said = log.read_bytes()[start:].decode(errors="replace")
            run.error = f"exit code {code}:\n{last_words(said)}"

    def stop(self) -> None:
        """SIGTERM, which torchrun passes on: a run ends with a checkpoint."""
        self.stopping = True
        for child in list(self.children.values()):
            child.terminate()

    def all(self, runs: list[Run], bar: tqdm) -> None:
        """Execute a list; the bar counts runs."""
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self.execute, run) for run in runs]
            waiting = set(futures)
            try:
                while waiting:
                    done, waiting = wait(waiting, timeout=1)
                    bar.set_postfix_str(" ".join(self.children), refresh=False)
                    bar.update(len(done))
                    bar.refresh()
            except KeyboardInterrupt:
                self.stop()
                tqdm.write("stopping after a checkpoint of each run; "
                           "the same command goes on from there")
        for future in futures:
            future.result()  # raises what went wrong in a thread


def last_words(text: str) -> str:
    """The end of a failed run's output, without the box that torchrun prints below it."""
    own = re.split(r"^[EW]\d{4} .*(?:elastic|torch)", text, flags=re.M)[0]
    lines = (own.strip() or text).splitlines()
    return "\n".join(lines[-12:])


# ---------------------------------------------------------------- The command
def execute_all(grid: Grid, runs: list[Run]) -> None:
    """All runs; those of the largest size only after their forecast is frozen."""
    out = grid.out
    there = [run for run in runs if finished(run, out)]  # refuses other runs before any starts
    out.mkdir(parents=True, exist_ok=True)
    print(f"{out}: {len(runs)} runs, {len(there)} of them finished, {grid.jobs} at a time")
    largest = max(size(run.model) for run in runs)
    smaller = [run for run in runs if run.part == "sizes" and size(run.model) < largest]
    others = [run for run in runs if run not in smaller]
    # smoothing=0: the time left follows from the mean over all runs so far.
    with tqdm(total=len(runs), initial=len(there), unit="run", smoothing=0) as bar:
        grid.all([run for run in smaller if run not in there], bar)
        if grid.stopping:
            return
        report.freeze(out, [run for run in smaller if not run.error], largest)
        grid.all([run for run in others if run not in there], bar)


def main(argv: list[str] | None = None) -> None:
    usage = __doc__[:__doc__.index("The grid is")]
    f = tyro.cli(Flags, prog="python -m study.grid", args=argv, description=usage)
    check_models(f)
    runs = real_grid(f.models, f.recipe, f.seeds) if f.models else ladder_grid(f.quick)
    cores = os.cpu_count() or 1
    jobs = f.jobs or (1 if f.models else cores)
    threads = None if f.models else max(1, cores // jobs)
    out = Path(f.out or ("runs/study-quick" if f.quick else "runs/study"))
    grid = Grid(out, jobs, f.torchrun, threads)
    if f.list:
        for run in runs:
            print(shlex.join(["torchrun", *grid.arguments(run)]))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job queue's Ctrl-C
    execute_all(grid, runs)
    if grid.stopping:
        sys.exit(130)
    report.gather(out, runs)
    report.write(out)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"study.grid: {error}")
