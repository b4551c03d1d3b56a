"""One GRPO step, ours against TRL's GRPOTrainer: the same weights, prompts, lengths and loss.

    python -m venv trl && trl/bin/pip install torch trl        # TRL has an environment of its own
    python -m bench.bench_step --peer-python trl/bin/python    # CPU: models/tiny's shape; GPU: 0.5B

A step generates, grades, computes log-probs, updates the weights and gives them to the sampler.
Each side runs in its own process, as its user would run it, in turns for --rounds: ours is
grpo.py, theirs is bench/step_trl.py, which says how TRL is set up. With --ranks on a CPU, ours and
the tuned TRL are that many processes by torchrun; "as it comes" is one, with all their threads.

The weights are random. The end token has an id that the model has no row for, so that every
completion is exactly --max-new tokens long. The first step of a process is left out. There is no
result unless both sides count the same tokens.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

import torch
import tyro
from safetensors.torch import save_file

import data
from bench.common import DEVICE, GPU, ROOT, SHAPES, random_weights, record, write_config
from model import Config, Model

TINY = ROOT / "models" / "tiny"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
AS_IT_COMES = "as it comes"
Way = Literal["as it comes", "generate", "continuous batching", "vllm"]
WAYS = ("generate", "continuous batching", "vllm" if GPU else AS_IT_COMES)


@dataclass
class Flags:
    peer_python: Path = Path(sys.executable)  # Python of an environment with TRL
    shape: str = "0.5B" if GPU else "tiny"  # of bench/common.py
    prompts: int = 64 if GPU else 32
    group: int = 8
    max_new: int = 512 if GPU else 32  # tokens of every completion
    steps: int = 2 if GPU else 5  # measured steps of a process
    rounds: int = 1 if GPU else 2  # processes of each side, in turns
    ranks: int = 1  # processes of a side on a CPU
    threads: int = 1  # of each process on the CPU
    clock: Literal["wall", "cpu"] = "wall"  # cpu: CPU time of the process, on a busy machine
    peer_batch: int = 0  # TRL's sequences of a micro-batch; 0: all, or 32 on a GPU
    peers: tuple[Way, ...] = field(default=WAYS)  # ways to run TRL
    limit: int = 150 if GPU else 600  # seconds of a process, its start included
    ours: str = "--kv-gb 8" if GPU else ""  # more flags of grpo.py


@dataclass
class Measured:
    """Steps of one process. seconds, tokens, completion (mean tokens of one): of each step."""

    seconds: list[float]
    tokens: list[int]
    completion: list[float]
    device: str
    phases: dict[str, float] = field(default_factory=dict)  # median seconds
    versions: dict[str, str] = field(default_factory=dict)


def make_checkpoint(folder: Path, flags: Flags) -> None:
    """Random weights, a tokenizer, and the prompts that grpo.py will draw, in its order."""
    V = SHAPES[flags.shape].V
    write_config(folder, flags.shape, eos_token_id=V, pad_token_id=0)
    tokenizer, settings = (json.loads((TINY / name).read_text()) for name in TOKENIZER)
    vocabulary = tokenizer["model"]["vocab"]
    for token in tokenizer["added_tokens"]:
        vocabulary[token["content"]] = token["id"]
    # A full vocabulary without an end token, so that the end token that TRL needs gets the id V.
    for i in range(len(vocabulary), V):
        vocabulary[f"<{i}>"] = i
    settings["eos_token"] = None
    for name, content in zip(TOKENIZER, (tokenizer, settings), strict=True):
        (folder / name).write_text(json.dumps(content))
    torch.manual_seed(0)
    model = random_weights(Model(Config.read(folder)))
    weights = {name: p.contiguous() for name, p in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    problems, _ = data.load("arithmetic", seed=0)
    chosen = data.order(problems)[: flags.prompts * (flags.steps + 1)]
    rows = [{"prompt": p.prompt, "answer": p.answer} for p in chosen]
    (folder / "problems.json").write_text(json.dumps(rows))


# ---- The two sides ------------------------------------------------------------------------------

ON_CPU_TIME = """
import runpy, time
time.perf_counter = time.process_time
runpy.run_path("grpo.py", run_name="__main__")
"""


def ours(folder: Path, flags: Flags) -> Measured:
    script = ["-c", ON_CPU_TIME] if flags.clock == "cpu" else ["grpo.py"]
    with tempfile.TemporaryDirectory() as parent:
        out = Path(parent, "run")
        settings = {
            "model": folder,
            "out": out,
            "steps": flags.steps + 1,
            "prompts": flags.prompts,
            "group": flags.group,
            "max-prompt": 64,
            "max-new": flags.max_new,
            "slots": flags.prompts * flags.group // flags.ranks,
            "lr": 1e-6,
            "warmup": 0,
            "eval-every": 10**6,
            "eval-problems": 1,
            "save-every": 10**6,
        }
        words = [f"--{name}={value}" for name, value in settings.items()]
        command = [sys.executable, *torchrun(flags.ranks), *script, *words, *flags.ours.split()]
        run(command, flags, flags.threads)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    # From the end of a step to the end of the next, with all that is done between.
    ends = [3600 * line["gpu_hours"] / flags.ranks for line in train]
    measured = train[1:]
    phases = {}
    for name in measured[0]["seconds"]:
        phases[name] = round(median(line["seconds"][name] for line in measured), 4)
    return Measured(
        seconds=[end - start for start, end in pairwise(ends)],
        tokens=[line["tokens"] for line in measured],
        completion=[line["length"] for line in measured],
        device=DEVICE.type,
        phases=phases,
    )


def theirs(folder: Path, way: str, flags: Flags) -> Measured:
    ranks = 1 if way == AS_IT_COMES else flags.ranks
    threads = flags.threads * flags.ranks // ranks
    python = str(flags.peer_python.absolute())
    command = [python, *torchrun(ranks), "-m", "bench.step_trl", str(folder), way]
    output = run(command, flags, threads)
    return Measured(**json.loads(output.splitlines()[-1]))


def torchrun(ranks: int) -> list[str]:
    if ranks == 1:
        return []
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]


def run(command: list[str], flags: Flags, threads: int) -> str:
    """The output of a process; RuntimeError if it fails or takes too long."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=flags.limit
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done within --limit {flags.limit} seconds") from None
    if done.returncode:
        said = (done.stderr or done.stdout)[-1500:]
        raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}:\n{said}")
    return done.stdout


# ---- The comparison -----------------------------------------------------------------------------


def measure(folder: Path, flags: Flags) -> tuple[dict[str, list[Measured]], dict[str, str]]:
    """-> (the processes of each side, why a way to run TRL has none)."""
    found = {name: [] for name in ("ours", *flags.peers)}
    failed = {}
    python = flags.peer_python
    if subprocess.run([python, "-c", "import trl"], capture_output=True).returncode:
        failed = dict.fromkeys(flags.peers, f"{python.name} cannot import trl, see --help")
    for _ in range(flags.rounds):
        for name, processes in found.items():
            if name == "ours":
                processes.append(ours(folder, flags))
            elif name not in failed:
                try:
                    processes.append(theirs(folder, name, flags))
                except RuntimeError as reason:
                    failed[name] = str(reason).strip().splitlines()[-1]
    return {name: processes for name, processes in found.items() if name not in failed}, failed


def check_same_work(name: str, found: Measured, own: Measured, flags: Flags) -> None:
    same = found.tokens == own.tokens and found.device == own.device
    if not same or set(found.completion) != {flags.max_new}:
        raise SystemExit(
            f"not the same work: {name} counts {found.tokens} tokens and completions of "
            f"{found.completion} on {found.device}, ours {own.tokens} and {own.completion} on "
            f"{own.device}"
        )


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    torch.set_num_threads(flags.threads)
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), flags)
        (Path(folder) / "flags.json").write_text(json.dumps(asdict(flags), default=str))
        found, failed = measure(Path(folder), flags)

    own = found["ours"][-1]
    work = sum(own.tokens) / len(own.tokens)
    print(
        f"{flags.shape}: {flags.prompts} prompts x {flags.group} samples x {flags.max_new} tokens, "
        f"{DEVICE.type}, {flags.ranks} x {flags.threads} thread(s), {flags.clock} time; with "
        f"prompts {work:,.0f} tokens a step, on all\n"
    )
    print(f"{'seconds of a step':28}{'median':>10}{'least':>10}{'times ours':>12}{'of leasts':>11}")
    rows = []
    peer_versions = {}
    for name, processes in found.items():
        for process in processes:
            check_same_work(name, process, own, flags)
        last = processes[-1]
        peer_versions |= last.versions
        seconds = [s for process in processes for s in process.seconds]
        row = {"name": name, "seconds": seconds, "tokens": last.tokens, "phases": last.phases}
        row |= {"median": median(seconds), "least": min(seconds)}
        rows.append(row)
        row["ratio"] = row["median"] / rows[0]["median"]
        row["ratio_of_leasts"] = row["least"] / rows[0]["least"]
        label = name if name == "ours" else f"TRL, {name}"
        print(
            f"{label:28}{row['median']:10.3f}{row['least']:10.3f}{row['ratio']:12.2f}"
            f"{row['ratio_of_leasts']:11.2f}"
        )
    for name, reason in failed.items():
        rows.append({"name": name, "not_run": reason})
        print(f"{name:28}not run: {reason[:120]}")
    phases = [f"{name} {duration:.3f}" for name, duration in own.phases.items()]
    print(f"ours by phase: {', '.join(phases)}")
    files = ("*.py", "runtime", "kernels", "bench/*step*.py", "bench/common.py")
    record("step", vars(flags), rows, {}, files, peer_versions)


if __name__ == "__main__":
    main()
