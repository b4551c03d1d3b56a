"""What a run will need, before it is begun: memory of a GPU by part, FLOPs, time, and what to change where it does not fit.

    python grpo.py @recipes/paper.args --model Qwen/Qwen2.5-7B --plan --gpus 8xH100

Memory is a count of what the code keeps, in bytes, on the rank with most work; S = ranks / replicas is the size of a shard:

    parameters 4 N/S,  gradients 4 N/S,  AdamW 8 N/S,  reference 2 N/S,  sampler 2 N/t (t = --sampler-tp; the embedding whole),
    pages as rollout.py takes them, cut by t; and the largest of what a phase holds for a time: gathered layers in bf16,
    activations of --micro-tokens tokens, the head's block of logits.

FLOPs are those of model.py's count, and time follows from rates: those measured in the run given by --resume, or else those
stated below, which are assumptions and are printed. Lengths are the longest possible where no run says otherwise.
"""

import json
import os
import re
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from kernels.logprob import BLOCK
from model import Config
from runtime.parallel import check_heads, locate


@dataclass(frozen=True)
class GPU:
    """memory: 1e9 bytes; flops: dense bf16 FLOP/s with float32 sums; bandwidth: bytes/s of its memory. From data sheets."""

    memory: float
    flops: float
    bandwidth: float


# Found by the first name that is part of what CUDA calls the device ("NVIDIA H100 80GB HBM3").
GPUS = {
    "B200": GPU(191, 2250e12, 8.0e12),
    "H200": GPU(141, 989e12, 4.8e12),
    "H100 PCIe": GPU(85, 756e12, 2.0e12),
    "H100": GPU(85, 989e12, 3.35e12),
    "A100-SXM4-40GB": GPU(42, 312e12, 1.55e12),
    "A100": GPU(85, 312e12, 2.0e12),
    "L40S": GPU(48, 362e12, 0.86e12),
    "L4": GPU(24, 121e12, 0.3e12),
    "A10": GPU(24, 125e12, 0.6e12),
    "4090": GPU(25, 165e12, 1.0e12),
    "3090": GPU(25, 71e12, 0.94e12),
    "T4": GPU(16, 65e12, 0.32e12),
}
MFU = {"generation": 0.5, "old": 0.45, "reference": 0.45, "train": 0.4, "evaluation": 0.5}  # assumed; generation: below
BANDWIDTH = 0.6  # assumed share of the memory's bandwidth that a decode step reaches
CONTEXT = 1.5  # GB that CUDA, NCCL and the allocator's gaps take beside the tensors, assumed


def peak_flops(device: torch.device) -> float:
    """Dense bf16 FLOP/s of the device, 0 if it is not in the table: --peak-tflops says it then."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((gpu.flops for known, gpu in GPUS.items() if known in name), 0.0)


def read_gpus(text: str, peak_tflops: float = 0.0) -> tuple[int, str, GPU]:
    """32xH100 or 8x48GB -> (how many, name, what each has); "" is what is here, or 8xH100 if that is nothing."""
    here = torch.cuda.is_available()
    if not text:
        name = torch.cuda.get_device_name() if here else "H100"
        known = next((k for k in GPUS if k in name), None)
        gb = torch.cuda.get_device_properties(0).total_memory / 1e9 if here else 0
        text = f"{os.environ.get('WORLD_SIZE') or (torch.cuda.device_count() if here else 8)}x{known or f'{gb:.0f}GB'}"
    match = re.fullmatch(r"(\d+)x(.+)", text)
    size = match and re.fullmatch(r"(\d+)GB", match[2])
    if not match or not int(match[1]) or not (size or match[2] in GPUS):
        raise ValueError(f"--gpus {text}: a number, x, and one of {', '.join(GPUS)}, or a memory such as 48GB")
    if size and not peak_tflops:
        raise ValueError(f"--gpus {text}: a GPU that is not in the table needs --peak-tflops (its memory is taken to be as "
                         "fast as an A100's)")
    gpu = GPUS["A100"] if size else GPUS[match[2]]
    memory = float(size[1]) if size else gpu.memory
    return int(match[1]), match[2], GPU(memory, peak_tflops * 1e12 or gpu.flops, gpu.bandwidth)


def activations(c: Config, recompute: bool) -> tuple[int, int]:
    """Bytes per token that a forward in bf16 keeps for its backward: (of one layer, of all layers together).

    A layer keeps, for each norm, its input, a float32 statistic, and the result; for attention rotated q and k, v, o and a
    float32 per head; for the MLP gate, silu(gate), up and their product.
    """
    layer = 2 * (2 * c.D + 4 + 2 * c.D) + 2 * c.K * (2 * c.H + 2 * c.J) + 4 * c.H + 2 * 4 * c.F
    return layer, layer + 2 * c.D * c.layers if recompute else layer * c.layers


def memory(f, c: Config, world: int) -> tuple[dict[str, float], dict[str, float]]:
    """1e9 bytes on one GPU: (what stays, by part; what comes and goes, by moment, of which the largest counts)."""
    N, S, T = c.N_total, world // f.replicas, f.micro_tokens
    here = 0 if f.offload else 1
    t, whole = f.sampler_tp, c.V * c.D * (1 if c.tied or c.V % f.sampler_tp == 0 else 2)  # what each of t ranks has all of
    page = c.layers * 2 * 16 * c.J * c.K * 2 // t
    pages = min(f.slots * (-(-(f.max_prompt + f.max_new + 8) // 16) + 1) + 2, int(f.kv_gb * 1e9 / page)) * page
    stays = {"parameters": 4 * N / S * here, "gradients": 4 * N / S * here, "optimiser": 8 * N / S * here,
             "reference": 2 * N / S * here if f.kl else 0, "sampler's copy": 2 * ((N - whole) / t + whole),
             "pages": pages}
    layer, head = (c.N - c.D) // c.layers, c.V * c.D
    root = head if c.tied else 2 * head
    rows = T * f.max_new // (f.max_prompt + f.max_new)  # completion tokens among them
    gathered = 2 * root + 2 * 2 * layer  # in bf16; the next layer is gathered during this one
    kept = activations(c, f.recompute)[1] * T + 8 * c.D * rows
    block = 4 * min(BLOCK["cuda"], rows * c.V)  # of float32 logits, beside its gradient in float32 and in bf16
    comes = {
        "head, backward": gathered + kept + (2 + 4) * c.D * rows + 2.5 * block + 2 * head,
        "layers, backward": gathered + kept + 2 * head + (2 + 4) * layer + (2 * 2 * c.F + 2 * c.D) * T,
        "end of backward": gathered + (2 + 4) * root,
        "generation": 8192 * ((2 * (c.H + 2 * c.J) * c.K + 2 * 3 * c.F) // t + 12 * c.D) + 12 * f.slots * c.V,
        "copy of weights": 2 * 2 * (root + layer),  # as gathered, and as parameters of their own
    }
    return {k: v / 1e9 for k, v in stays.items()}, {k: v / 1e9 for k, v in comes.items()}


def total(f, c: Config, world: int) -> float:
    stays, comes = memory(f, c, world)
    return sum(stays.values()) + max(comes.values())


def eval_n(f) -> int:
    """Completions of a problem over all --eval."""
    from evaluate import Source

    return sum(Source.read(text).n for text in f.eval)


def step_flops(f, c: Config, prompt: int, new: int) -> dict[str, float]:
    """FLOPs of a step on all GPUs by phase, evaluation as its share of a step."""
    B, L = f.prompts * f.group, prompt + new
    forward = B * c.flops(L, L * (L + 1) // 2, new)

    def sampling(prompts, group):
        return prompts * (c.flops(prompt, prompt * (prompt + 1) // 2, 1) + group * c.flops(
            new, (L * (L + 1) - prompt * (prompt + 1)) // 2, new))

    old = f.updates > 1 or f.kl_in == "reward"
    return {"generation": sampling(f.prompts, f.group), "old": forward * old, "reference": forward * (f.kl > 0),
            "train": forward * (4 if f.recompute else 3), "evaluation": sampling(f.eval_problems, eval_n(f)) / f.eval_every}


def step_seconds(f, c: Config, world: int, gpu: GPU, flops: dict, prompt: int, new: int) -> dict[str, float]:
    """Seconds of a step by phase. Decoding reads all weights and the cache once for every token of the longest sequence."""
    seconds = {p: n / (world * gpu.flops * MFU[p]) for p, n in flops.items()}
    for phase, sequences in (("generation", f.prompts * f.group), ("evaluation", f.eval_problems * eval_n(f))):
        mine = -(-sequences // (world // f.sampler_tp))
        together = min(mine, f.slots)
        cache = together * (prompt + new / 2) * c.layers * 2 * c.J * c.K * 2
        reads = new * -(-mine // together) * (2 * c.N_total + cache) / (f.sampler_tp * gpu.bandwidth * BANDWIDTH)
        seconds[phase] = max(seconds[phase], reads / (f.eval_every if phase == "evaluation" else 1))
    return seconds


def measured(run: str) -> tuple[dict, int, int] | None:
    """(seconds of a step by phase, prompt and completion tokens) over the second half of a run, if there is one."""
    path = Path(run) / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if run not in ("", "auto") and path.is_file() else []
    train = [r for r in rows if r["kind"] == "train"]
    if not train:
        return None
    train, flags = train[len(train) // 2 :], json.loads((path.parent / "flags.json").read_text())
    new = sum(r["length"] for r in train) / len(train)
    total = sum(r["tokens"] for r in train) / len(train) / (flags["prompts"] * flags["group"])
    seconds = {p: sum(r["seconds"].get(p, 0) for r in train) / len(train) for p in train[0]["seconds"]}
    evaluations = [r for r in rows if r["kind"] == "eval"]
    last = sum(r["seconds"]["evaluation"] for r in evaluations if r["step"] == evaluations[-1]["step"])
    return seconds | {"evaluation": last / flags["eval_every"]}, round(total - new), round(new)


def most_tp(c: Config, world: int) -> int:
    """The most ranks of a node of 8 that can share a sampler's copy."""
    return next(t for t in (8, 4, 2, 1) if not any(n % t for n in (world, c.H, c.J, c.F)))


def remedy(f, c: Config, world: int, room: float) -> str:
    """The fewest flags that make the run fit into `room` (1e9 bytes of each GPU), or what else would."""
    longest = f.max_prompt + f.max_new
    ways = {"--recompute": {"recompute": True}, f"--micro-tokens {longest}": {"micro_tokens": longest},
            f"--kv-gb {f.kv_gb / 4:g}": {"kv_gb": f.kv_gb / 4}, "--replicas 1": {"replicas": 1},
            f"--sampler-tp {(t := max(f.sampler_tp, most_tp(c, world)))}": {"sampler_tp": t}, "--offload": {"offload": True}}
    ways = {flag: change for flag, change in ways.items() if any(getattr(f, name) != v for name, v in change.items())}
    for count in range(1, len(ways) + 1):
        for flags in combinations(ways, count):
            changes = {name: v for flag in flags for name, v in ways[flag].items()}
            if total(replace(f, **changes), c, world) <= room:
                return f"it would with {' '.join(flags)}"
    for n in (world * 2**i for i in range(1, 6)):
        for t in sorted({f.sampler_tp, most_tp(c, n)}):
            if total(replace(f, sampler_tp=t), c, n) <= room:
                return f"no flag helps; {n} such GPUs would" + (f", with --sampler-tp {t}" if t > f.sampler_tp else "")
    return "no flag helps; take larger GPUs or a smaller --model"


def read_config(name: str) -> Config:
    """A model's shape without its weights."""
    if not Path(name).is_dir() and name.count("/") == 1 and not name.startswith("models/"):
        from huggingface_hub import hf_hub_download

        try:
            return Config.read(Path(hf_hub_download(name, "config.json")).parent)
        except Exception as error:  # the hub client raises a family of its own
            raise FileNotFoundError(f"--model {name}: no such directory here, and the hub did not give its config.json "
                                    f"({type(error).__name__}); --model DIR needs no more than that file") from error
    return Config.read(locate(name))


def table(f, c: Config, world: int, name: str, gpu: GPU) -> str:
    """The plan as text."""
    stays, comes = memory(f, c, world)
    moment = max(comes, key=comes.get)
    need, room = total(f, c, world), gpu.memory - CONTEXT
    rows = [f"{f.model}: {c.N:,} parameters and {c.N_total - c.N:,} in embeddings, on {world} x {name}; copies of the model: "
            f"{f.replicas}, each in {world // f.replicas} shards" + (", offloaded" if f.offload else ""), "",
            f"memory of a GPU{'GB':>21}"]
    rows += [f"  {part:24}{size:10.2f}" for part, size in stays.items()]
    rows += [f"  {moment:24}{comes[moment]:10.2f}   the largest of: " + ", ".join(f"{k} {v:.2f}" for k, v in comes.items())]
    fits = "fits" if need <= room else "does not fit; " + remedy(f, c, world, room)
    rows += [f"  {'together':24}{need:10.2f}   of {gpu.memory:g}, less {CONTEXT:g} for CUDA and NCCL: {fits}"]
    rows += [f"  host memory of a rank, while a checkpoint is written: {12 * c.N_total / (world // f.replicas) / 1e9:.2f} GB"
             + (", and as much for what is offloaded" if f.offload else "")]
    rows += [f"  disk: {12 * c.N_total / 1e9:.3g} GB a checkpoint, up to {f.keep + 2} of them"]
    seen = measured(f.resume)
    prompt, new = seen[1:] if seen else (f.max_prompt, f.max_new)
    flops = step_flops(f, c, prompt, new)
    seconds = seen[0] if seen else step_seconds(f, c, world, gpu, flops, prompt, new)
    rows += ["", f"a step of {f.prompts} x {f.group} sequences of {prompt} + {new} tokens"
             + (f", as measured in {f.resume}" if seen else ", the longest possible"), f"{'FLOP':>36}{'seconds':>12}"]
    rows += [f"  {p:24}{flops.get(p, 0):10.2e}{seconds[p]:12.1f}" for p in seconds if seconds[p] >= 0.05 or flops.get(p)]
    step = sum(seconds.values())
    C = 6 * c.N * f.prompts * f.group * (prompt + new)
    rows += [f"  {'together':24}{sum(flops.values()):10.2e}{step:12.1f}",
             f"{f.steps} steps: {f.steps * step / 3600:.3g} hours, {f.steps * step / 3600 * world:.3g} GPU-hours, "
             f"{f.steps * sum(flops.values()):.3g} FLOPs, of which C = 6ND counts {f.steps * C:.3g}"]
    if not seen:
        rows += [f"rates assumed: {gpu.flops / 1e12:g} TFLOP/s a GPU, of which training gets {MFU['train']:.0%} and other "
                 f"forwards {MFU['old']:.0%}; decoding {BANDWIDTH:.0%} of {gpu.bandwidth / 1e12:g} TB/s.",
                 "--plan --resume RUN takes those of a run."]
    return "\n".join(rows)


def show(f) -> None:
    """Prints the plan, once; ValueError for flags that make no run on so many GPUs."""
    if int(os.environ.get("RANK", 0)) == 0:
        world, name, gpu = read_gpus(f.gpus, f.peak_tflops)
        if world % f.replicas:
            raise ValueError(f"--replicas {f.replicas} does not divide {world} GPUs")
        if world % f.sampler_tp:
            raise ValueError(f"--sampler-tp {f.sampler_tp} does not divide {world} GPUs")
        check_heads(config := read_config(f.model), f.sampler_tp)
        print(table(f, config, world, name, gpu))
