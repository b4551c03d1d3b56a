"""What the benches share: the clock, the machine's ceilings, random models, lines in results/."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy")


class Shape(NamedTuple):
    D: int
    F: int
    layers: int
    H: int
    J: int
    V: int
    tied: bool


SHAPES = {
    "tiny": Shape(48, 128, 3, 3, 3, 45, True),  # models/tiny
    "small": Shape(128, 512, 4, 4, 2, 45, True),
    # The others are those of Qwen2.5.
    "0.5B": Shape(896, 4864, 24, 14, 2, 151936, True),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 151936, True),
    "3B": Shape(2048, 11008, 36, 16, 2, 151936, True),
    "7B": Shape(3584, 18944, 28, 28, 4, 152064, False),
}


def write_config(directory: str | Path, shape: str, layers: int = 0, **more) -> None:
    """Write DIR/config.json of a shape. layers: fewer than the shape has. more: further fields."""
    s = SHAPES[shape]
    config = {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": s.D,
        "intermediate_size": s.F,
        "num_hidden_layers": layers or s.layers,
        "num_attention_heads": s.H,
        "num_key_value_heads": s.J,
        "vocab_size": s.V,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": s.tied,
        **more,
    }
    (Path(directory) / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def random_weights(model):
    """Fill a model as at the start of pre-training: norms with 1, all else N(0, 0.02^2)."""
    for name, p in model.named_parameters():
        if "norm" in name:
            p.fill_(1.0)
        else:
            p.normal_(0, 0.02)
    return model


def synchronise() -> None:
    if GPU:
        torch.cuda.synchronize()


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call, until the device has done its work."""
    synchronise()
    start = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - start


def race(functions: dict[str, Callable], repeat: int) -> dict[str, float]:
    """Name -> median milliseconds of a call. In turns, so that other work slows all of them."""
    times = {name: [] for name in functions}
    for _ in range(repeat):
        for name, function in functions.items():
            times[name].append(1e3 * seconds(function))
    return {name: sorted(ms)[repeat // 2] for name, ms in times.items()}


def copy_rate() -> float:
    """Bytes per second, read plus written, of copying a tensor far larger than the caches."""
    source = torch.empty(2**30 if GPU else 2**26, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    ms = race({"copy": lambda: target.copy_(source)}, 11)["copy"]
    return 2 * source.nbytes / (ms / 1e3)


def matmul() -> tuple[Callable, int]:
    """(a function that multiplies large square matrices, its FLOPs)."""
    # On a GPU several products make a timing: the first after a wait runs at a low clock.
    n, calls = (8192, 20) if GPU else (1024, 1)
    a = torch.randn(n, n, device=DEVICE, dtype=DTYPE)
    b = torch.randn(n, n, device=DEVICE, dtype=DTYPE)

    def multiply():
        for _ in range(calls):
            torch.mm(a, b)

    return multiply, 2 * n**3 * calls


def one_line(error: BaseException) -> str:
    """The type of an error, and the first line of its message."""
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}"


def commit_of(files: Iterable[str]) -> str:
    """The commit, with +changes if any of these files differs from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    if not commit:  # a copied tree has no repository
        return os.environ.get("COMMIT", "unknown")
    return commit + ("+changes" if git("status", "--porcelain", *files) else "")


def versions() -> dict[str, str | None]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def device_name() -> str:
    if GPU:
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = match[1] if match else platform.processor()
    return f"{name}, {torch.get_num_threads()} thread(s)"


def record(
    claim: str,
    flags: dict,
    rows: list[dict],
    ceilings: dict[str, float],
    measured: Iterable[str],
    peer_versions: dict[str, str] | None = None,
) -> None:
    """Append a line to results/CLAIM.jsonl, or to $OUT/CLAIM.jsonl.

    flags: those of the bench; paths of this machine are left out.
    rows: what was measured. ceilings: what the machine could do.
    measured: files whose commit the line names.
    peer_versions: those of a peer that lives in another environment.
    """
    line = {
        "claim": claim,
        "date": date.today().isoformat(),
        "commit": commit_of(measured),
        "device": device_name(),
        "load": round(os.getloadavg()[0], 1),  # whether the machine was busy with other work
        "versions": versions() | (peer_versions or {}),
        "flags": {k: value for k, value in flags.items() if not isinstance(value, Path)},
        "ceilings": ceilings,
        "rows": rows,
    }
    folder = Path(os.environ.get("OUT") or ROOT / "results")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{claim}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"\nappended to {path}")
