"""What the benches share: the clock, the machine's ceilings, random models of published shapes, and the line in results/."""

import json
import os
import platform
import re
import subprocess
import time
from datetime import date
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent

SHAPES = {  # width, feed-forward, layers, heads, key-value heads, vocabulary, tied
    "tiny": (48, 128, 3, 3, 3, 45, True),  # models/tiny
    "small": (128, 512, 4, 4, 2, 45, True),
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),  # from here on the config.json of Qwen2.5
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
}
PACKAGES = ("torch", "triton", "transformers", "liger-kernel", "cut-cross-entropy")


def write_config(directory: str | Path, shape: str, layers: int = 0, **more) -> None:
    """DIR/config.json of the shape, with fewer layers if asked for; `more` goes into it as it is."""
    D, F, L, H, J, V, tied = SHAPES[shape]
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": D, "intermediate_size": F,
              "num_hidden_layers": layers or L, "num_attention_heads": H, "num_key_value_heads": J, "vocab_size": V,
              "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": tied}
    (Path(directory) / "config.json").write_text(json.dumps(config | more, indent=2) + "\n")


@torch.no_grad()
def random_weights(model):
    """The model with norms of 1 and all else normal with deviation 0.02, which is what training starts from."""
    for name, p in model.named_parameters():
        p.fill_(1.0) if "norm" in name else p.normal_(0, 0.02)
    return model


def synchronize(device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def race(functions, device, repeat):
    """Name -> median milliseconds of a call. In turns, so that a busy machine is busy for all of them."""
    times = {name: [] for name in functions}
    for _ in range(repeat):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: sorted(ms)[repeat // 2] for name, ms in times.items()}


def copy_rate(device) -> float:
    """Bytes per second, read and written, of copying a tensor far larger than the caches."""
    source = torch.empty(2**30 if torch.device(device).type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2e3 * source.nbytes / race({"copy": lambda: target.copy_(source)}, device, 11)["copy"]


def matmul(device, dtype):
    """-> (a function that multiplies square matrices of the size at which a GPU's rate has levelled off, its FLOPs)."""
    gpu = torch.device(device).type == "cuda"
    n, calls = (8192, 20) if gpu else (1024, 1)  # several to a timing: the first after a wait finds the clock low
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return lambda: [torch.mm(a, b) for _ in range(calls)], 2 * n**3 * calls


def record(claim, arguments, rows, ceilings, measured, versions=None):
    """Append one line to results/CLAIM.jsonl, or to $OUT/CLAIM.jsonl: what was measured (files), of which commit, where, with
    which versions. `versions` are those of a peer that lives in another environment."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") or os.environ.get("COMMIT", "unknown")  # a copied tree has no repository
    if git("status", "--porcelain", *measured):
        commit += "+changes"
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if torch.device(arguments.device).type == "cuda":
        device = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        name = re.search(r"model name\s*: (.*)", cpuinfo)
        device = f"{name[1] if name else platform.processor()}, {torch.get_num_threads()} thread(s)"
    # Of hidden flags and of places on this machine nothing is kept; the load says whether the machine was busy with other work.
    flags = {name: value for name, value in vars(arguments).items() if not isinstance(value, Path)}
    line = {"claim": claim, "date": date.today().isoformat(), "commit": commit, "device": device,
            "load": round(os.getloadavg()[0], 1), "versions": found | (versions or {}), "flags": flags,
            "ceilings": ceilings, "rows": rows}
    path = Path(os.environ.get("OUT") or ROOT / "results") / f"{claim}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"\nappended to {path}")
