"""What a run will need, before it begins: memory of a GPU by part, FLOPs, time, and what each flag
would change.

    python grpo.py @recipes/paper.args --model Qwen/Qwen2.5-7B --plan 8xH100

Memory is a count of what the code keeps, in bytes, on the rank with the most work. With S = ranks /
replicas shards:

    parameters 4 N/S,  gradients 4 N/S,  AdamW 8 N/S,  reference 2 N/S,
    sampler 2 N/t with t = --sampler-tp (the embedding is whole),
    pages of the KV cache as rollout.py takes them, divided by t,
    and the largest of what a phase holds for a while: gathered layers in bf16, activations of
    --micro-tokens tokens, the head's block of logits.

FLOPs are counted by Config.flops. Time follows from rates: those measured in the run given by
--resume, else the assumed ones below, which are printed. Lengths are the longest possible where no
run says otherwise."""

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kernels import ceil_div
from kernels.logprob import BLOCK
from model import Config
from rollout import Completion
from runtime.parallel import check_heads, locate

# ---- FLOPs ---------------------------------------------------------------------------------------


def forward_flops(config: Config, prompt: int, new: int) -> int:
    """One forward over a sequence of `prompt` + `new` tokens, the head on the new ones."""
    length = prompt + new
    return config.flops(length, length * (length + 1) // 2, new)


def sampling_flops(config: Config, prompt: int, new: Iterable[int]) -> int:
    """Sampling completions of `new` tokens each from one prompt: the prompt is prefilled once, and
    every token but the last of a completion is fed back."""
    prompt_pairs = prompt * (prompt + 1) // 2
    total = config.flops(prompt, prompt_pairs, 0)
    for n in new:
        fed = prompt + n - 1
        total += config.flops(n - 1, fed * (fed + 1) // 2 - prompt_pairs, n)
    return total


def sequence_flops(config: Config, completions: list[Completion]) -> int:
    """One forward over all completions with their prompts."""
    return sum(forward_flops(config, len(c.prompt), len(c.ids)) for c in completions)


def rollout_flops(config: Config, completions: list[Completion]) -> int:
    """Sampling the completions, which stand in the order of their prompts, sample 0 of each
    first."""
    groups = []
    for c in completions:
        if c.sample == 0:
            groups.append((len(c.prompt), []))
        groups[-1][1].append(len(c.ids))
    return sum(sampling_flops(config, prompt, new) for prompt, new in groups)


# ---- GPUs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GPU:
    """memory: 1e9 bytes; flops: dense bf16 FLOP/s with float32 sums; bandwidth: bytes/s of its
    memory. From data sheets."""

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
MFU = {
    "generation": 0.5,
    "old": 0.45,
    "reference": 0.45,
    "train": 0.4,
    "evaluation": 0.5,
}  # assumed
BANDWIDTH = 0.6  # share of the memory's bandwidth that a decode step reaches, assumed
CONTEXT = 1.5  # 1e9 bytes that CUDA, NCCL and the allocator's gaps take beside the tensors, assumed
PAGE = 16  # tokens of a page of the KV cache
PREFILL = 8192  # tokens of a prefill


def peak_flops(device: torch.device) -> float:
    """Dense bf16 FLOP/s of the device, 0 if it is not in the table."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((gpu.flops for known, gpu in GPUS.items() if known in name), 0.0)


def read_gpus(text: str) -> tuple[int, str, GPU]:
    """32xH100, or 8x48GB@150TF for a GPU that is not in the table -> (how many, name, what each
    has)."""
    match = re.fullmatch(r"(\d+)x(.+)", text)
    other = match and re.fullmatch(r"(\d+)GB@(\d+)TF", match[2])
    if not match or int(match[1]) == 0 or not (other or match[2] in GPUS):
        raise ValueError(
            f"--plan {text}: write a number, x, and one of {', '.join(GPUS)}, or memory and peak "
            "of another GPU "
            "such as 8x48GB@150TF"
        )
    if other:
        gpu = GPU(float(other[1]), float(other[2]) * 1e12, GPUS["A100"].bandwidth)
    else:
        gpu = GPUS[match[2]]
    return int(match[1]), match[2], gpu


# ---- The plan ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What of a run's flags its size depends on; the fields have the flags' names and units."""

    steps: int
    prompts: int
    group: int
    updates: int
    max_prompt: int
    max_new: int
    kl: float
    kl_in: str
    eval_every: int
    eval_problems: int
    eval_n: int  # completions of a problem, over all evaluation sets
    micro_tokens: int
    slots: int
    kv_gb: float
    sampler_tp: int
    recompute: bool
    offload: bool
    replicas: int
    keep: int


def activations(c: Config, recompute: bool) -> int:
    """Bytes per token that a forward in bf16 keeps for its backward, over all layers.

    A layer keeps, for each norm, its input, a float32 statistic, and the result; for attention
    rotated q and k, v, o and a float32 per head; for the MLP gate, silu(gate), up and their
    product. With recomputation only one layer at a time does."""
    norms = 2 * (2 * c.D + 4 + 2 * c.D)
    attention = 2 * c.K * (2 * c.H + 2 * c.J) + 4 * c.H
    mlp = 2 * 4 * c.F
    layer = norms + attention + mlp
    return layer + 2 * c.D * c.layers if recompute else layer * c.layers


def lasting_memory(job: Job, c: Config, world: int) -> dict[str, float]:
    """Bytes on one GPU that stay for the whole run, by part."""
    N = c.N_total
    shards = world // job.replicas
    on_gpu = 0 if job.offload else 1
    t = job.sampler_tp
    heads = 1 if c.tied or c.V % t == 0 else 2
    whole = c.V * c.D * heads  # each of the t ranks holds all of it
    page_bytes = c.layers * 2 * PAGE * c.J * c.K * 2 // t
    pages_wanted = job.slots * (ceil_div(job.max_prompt + job.max_new + 8, PAGE) + 1) + 2
    pages = min(pages_wanted, int(job.kv_gb * 1e9 / page_bytes))
    return {
        "parameters": 4 * N / shards * on_gpu,
        "gradients": 4 * N / shards * on_gpu,
        "optimiser": 8 * N / shards * on_gpu,
        "reference": 2 * N / shards * on_gpu if job.kl else 0,
        "sampler's copy": 2 * ((N - whole) / t + whole),
        "pages": pages * page_bytes,
    }


def passing_memory(job: Job, c: Config) -> dict[str, float]:
    """Bytes on one GPU that a phase holds for a while, by moment; the largest counts."""
    T = job.micro_tokens
    t = job.sampler_tp
    layer = (c.N - c.D) // c.layers
    head = c.V * c.D
    root = head if c.tied else 2 * head
    rows = T * job.max_new // (job.max_prompt + job.max_new)  # completion tokens among them
    gathered = 2 * root + 2 * 2 * layer  # in bf16; the next layer is gathered during this one
    kept = activations(c, job.recompute) * T + 8 * c.D * rows
    block = 4 * min(
        BLOCK["cuda"], rows * c.V
    )  # float32 logits, beside their gradient in float32 and in bf16
    prefill_widths = (2 * (c.H + 2 * c.J) * c.K + 2 * 3 * c.F) // t + 12 * c.D
    return {
        "head, backward": gathered + kept + (2 + 4) * c.D * rows + 2.5 * block + 2 * head,
        "layers, backward": gathered
        + kept
        + 2 * head
        + (2 + 4) * layer
        + (2 * 2 * c.F + 2 * c.D) * T,
        "end of backward": gathered + (2 + 4) * root,
        "generation": PREFILL * prefill_widths + 12 * job.slots * c.V,
        "copy of weights": 2 * 2 * (root + layer),  # as gathered, and as parameters of their own
    }


def needed_gb(job: Job, c: Config, world: int) -> float:
    """1e9 bytes of each GPU."""
    return (
        sum(lasting_memory(job, c, world).values()) + max(passing_memory(job, c).values())
    ) / 1e9


def step_flops(job: Job, c: Config, prompt: int, new: int) -> dict[str, float]:
    """FLOPs of a step on all GPUs by phase, evaluation as its share of a step."""
    forward = job.prompts * job.group * forward_flops(c, prompt, new)
    needs_old = job.updates > 1 or job.kl_in == "reward"
    evaluation = job.eval_problems * sampling_flops(c, prompt, [new] * job.eval_n)
    return {
        "generation": job.prompts * sampling_flops(c, prompt, [new] * job.group),
        "old": forward if needs_old else 0,
        "reference": forward if job.kl else 0,
        "train": forward * (4 if job.recompute else 3),
        "evaluation": evaluation / max(1, job.eval_every),
    }


def step_seconds(
    job: Job, c: Config, world: int, gpu: GPU, flops: dict, prompt: int, new: int
) -> dict[str, float]:
    """Seconds of a step by phase. Decoding reads all weights and the cache once for every token of
    the longest sequence."""
    seconds = {name: n / (world * gpu.flops * MFU[name]) for name, n in flops.items()}
    sampled = {"generation": job.prompts * job.group, "evaluation": job.eval_problems * job.eval_n}
    for name, sequences in sampled.items():
        mine = ceil_div(sequences, world // job.sampler_tp)
        together = min(mine, job.slots)
        cache_bytes = together * (prompt + new / 2) * c.layers * 2 * c.J * c.K * 2
        decode_steps = new * ceil_div(mine, max(1, together))
        bytes_read = decode_steps * (2 * c.N_total + cache_bytes) / job.sampler_tp
        decoding = bytes_read / (gpu.bandwidth * BANDWIDTH)
        if name == "evaluation":
            decoding /= max(1, job.eval_every)
        seconds[name] = max(seconds[name], decoding)
    return seconds


@dataclass(frozen=True)
class Measured:
    """What the second half of a run measured: seconds of a step by phase, mean tokens of prompts
    and of completions."""

    seconds: dict[str, float]
    prompt: int
    new: int


def measured(run: str) -> Measured | None:
    """The rates of a run, None if there is no run or none of its steps is logged."""
    path = Path(run) / "metrics.jsonl"
    if run in ("", "auto") or not path.is_file():
        return None
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    if not train:
        return None
    flags = json.loads((path.parent / "flags.json").read_text())
    train = train[len(train) // 2 :]
    new = sum(row["length"] for row in train) / len(train)
    length = sum(row["tokens"] for row in train) / len(train) / (flags["prompts"] * flags["group"])
    seconds = {}
    for name in train[0]["seconds"]:
        seconds[name] = sum(row["seconds"].get(name, 0) for row in train) / len(train)
    evaluations = [row for row in rows if row["kind"] == "eval"]
    if evaluations:
        last = [row for row in evaluations if row["step"] == evaluations[-1]["step"]]
        total = sum(row["seconds"]["evaluation"] for row in last)
        seconds["evaluation"] = total / max(1, flags["eval_every"])
    return Measured(seconds, round(length - new), round(new))


def read_config(name: str) -> Config:
    """A model's shape, without its weights."""
    is_hub_name = (
        not Path(name).is_dir() and name.count("/") == 1 and not name.startswith("models/")
    )
    if not is_hub_name:
        return Config.read(locate(name))
    from huggingface_hub import hf_hub_download

    try:
        return Config.read(Path(hf_hub_download(name, "config.json")).parent)
    except Exception as error:  # the hub client raises a family of its own
        raise FileNotFoundError(
            f"--model {name}: no such directory here, and the hub did not give its config.json "
            f"({type(error).__name__}); --model DIR needs no more than that file"
        ) from error


def changes(job: Job, c: Config, world: int) -> dict[str, Job]:
    """The jobs that need less memory, by the flag that makes each."""
    shared = math.gcd(8, world, c.H, c.J, c.F)  # most ranks of a node that can share a copy
    longest = job.max_prompt + job.max_new
    jobs = {
        "--recompute": replace(job, recompute=True),
        f"--micro-tokens {longest}": replace(job, micro_tokens=longest),
        f"--kv-gb {job.kv_gb / 4:g}": replace(job, kv_gb=job.kv_gb / 4),
        f"--sampler-tp {shared}": replace(job, sampler_tp=shared),
        "--replicas 1": replace(job, replicas=1),
        "--offload": replace(job, offload=True),
    }
    return {flag: changed for flag, changed in jobs.items() if changed != job}


def memory_lines(job: Job, c: Config, world: int, gpu: GPU) -> list[str]:
    """What a GPU must hold, and whether it can."""
    lines = [f"memory of a GPU{'GB':>21}"]
    for part, size in lasting_memory(job, c, world).items():
        lines.append(f"  {part:24}{size / 1e9:10.2f}")
    passing = passing_memory(job, c)
    largest = max(passing, key=passing.get)
    size = passing[largest] / 1e9
    lines.append(f"  {largest:24}{size:10.2f}   the largest of {len(passing)} moments")
    need = needed_gb(job, c, world)
    fits = "fits" if need <= gpu.memory - CONTEXT else "does not fit"
    room = f"of {gpu.memory:g}, less {CONTEXT:g} for CUDA and NCCL: {fits}"
    lines.append(f"  {'together':24}{need:10.2f}   {room}")
    return lines


def remedy_lines(job: Job, c: Config, world: int, gpu: GPU) -> list[str]:
    """What a GPU must hold with each flag that saves memory, and with all of them."""
    jobs = changes(job, c, world)
    everything = job
    for changed in jobs.values():
        differing = {k: v for k, v in vars(changed).items() if v != getattr(job, k)}
        everything = replace(everything, **differing)
    lines = [f"with this flag alone{'GB':>16}"]
    for flag, changed in {**jobs, "all of them": everything}.items():
        size = needed_gb(changed, c, world)
        fits = "   fits" if size <= gpu.memory - CONTEXT else ""
        lines.append(f"  {flag:24}{size:10.2f}{fits}")
    return lines


def step_lines(job: Job, c: Config, world: int, gpu: GPU, seen: Measured | None) -> list[str]:
    """FLOPs and seconds of a step by phase, and of the whole run."""
    prompt, new = (seen.prompt, seen.new) if seen else (job.max_prompt, job.max_new)
    flops = step_flops(job, c, prompt, new)
    seconds = seen.seconds if seen else step_seconds(job, c, world, gpu, flops, prompt, new)
    lengths = "as measured" if seen else "the longest possible"
    lines = [
        f"a step of {job.prompts} x {job.group} sequences of {prompt} + {new} tokens, {lengths}",
        f"{'FLOP':>36}{'seconds':>12}",
    ]
    for phase, duration in seconds.items():
        if duration >= 0.05 or flops.get(phase):
            lines.append(f"  {phase:24}{flops.get(phase, 0):10.2e}{duration:12.1f}")
    flops_of_step = sum(flops.values())
    step = sum(seconds.values())
    hours = job.steps * step / 3600
    C = 6 * c.N * job.prompts * job.group * (prompt + new) * job.steps
    lines += [
        f"  {'together':24}{flops_of_step:10.2e}{step:12.1f}",
        f"{job.steps} steps: {hours:.3g} hours, {hours * world:.3g} GPU-hours, "
        f"{job.steps * flops_of_step:.3g} FLOPs, of which C = 6ND counts {C:.3g}",
    ]
    if not seen:
        lines += [
            f"rates assumed: {gpu.flops / 1e12:g} TFLOP/s a GPU, of which training gets "
            f"{MFU['train']:.0%} and other forwards {MFU['old']:.0%};",
            f"decoding gets {BANDWIDTH:.0%} of {gpu.bandwidth / 1e12:g} TB/s. "
            "--plan with --resume RUN takes the rates of a run.",
        ]
    return lines


def table(
    model: str, job: Job, c: Config, world: int, name: str, gpu: GPU, seen: Measured | None
) -> str:
    """The plan as text."""
    shards = world // job.replicas
    offloaded = ", offloaded" if job.offload else ""
    lines = [
        f"{model}: {c.N:,} parameters and {c.N_total - c.N:,} in embeddings, on {world} x {name}",
        f"copies of the model: {job.replicas}, each in {shards} shards{offloaded}",
        "",
        *memory_lines(job, c, world, gpu),
    ]
    if needed_gb(job, c, world) > gpu.memory - CONTEXT:
        lines += remedy_lines(job, c, world, gpu)
    checkpoint = 12 * c.N_total / 1e9
    lines += [
        f"  disk: {checkpoint:.3g} GB a checkpoint, up to {job.keep + 2} of them; host memory of a "
        f"rank while one is written: {checkpoint / shards:.2f} GB",
        "",
        *step_lines(job, c, world, gpu, seen),
    ]
    return "\n".join(lines)


def show(model: str, gpus: str, job: Job, run: str) -> None:
    """Print the plan, once; ValueError for flags that make no run on so many GPUs. run: --resume,
    whose rates are taken."""
    if int(os.environ.get("RANK", 0)) != 0:
        return
    world, name, gpu = read_gpus(gpus)
    if world % job.replicas:
        raise ValueError(
            f"--replicas {job.replicas} does not divide {world} GPUs; give a number that does"
        )
    if world % job.sampler_tp:
        raise ValueError(
            f"--sampler-tp {job.sampler_tp} does not divide {world} GPUs; give a number that does"
        )
    config = read_config(model)
    check_heads(config, job.sampler_tp)
    print(table(model, job, config, world, name, gpu, measured(run)))
