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
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from kernels import ceil_div
from kernels.logprob import BLOCK
from model import Config
from rollout import Completion
from runtime.flags import flag_name
from runtime.parallel import check_heads, locate

# ---- FLOPs ---------------------------------------------------------------------------------------


def pairs(length: int) -> int:
    """Pairs of a query and a key in causal attention over one sequence."""
    return length * (length + 1) // 2


def forward_flops(config: Config, prompt: int, new: int) -> int:
    """One forward over a sequence of `prompt` + `new` tokens, the head on the new ones."""
    length = prompt + new
    return config.flops(length, pairs(length), new)


def prefill_flops(config: Config, prompt: int) -> int:
    """The prompt of a sequence, without the head."""
    return config.flops(prompt, pairs(prompt), 0)


def decode_flops(config: Config, prompt: int, new: int) -> int:
    """Sampling `new` tokens after a prompt: every token but the last is fed back."""
    fed = prompt + new - 1
    return config.flops(new - 1, pairs(fed) - pairs(prompt), new)


def sequence_flops(config: Config, completions: list[Completion]) -> int:
    """One forward over all completions with their prompts."""
    return sum(forward_flops(config, len(c.prompt), len(c.ids)) for c in completions)


def rollout_flops(config: Config, completions: list[Completion]) -> int:
    """Sampling the completions; a prompt is prefilled once, for sample 0."""
    total = 0
    for c in completions:
        prompt = len(c.prompt)
        if c.sample == 0:
            total += prefill_flops(config, prompt)
        total += decode_flops(config, prompt, len(c.ids))
    return total


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
}
# Assumed: the share of peak FLOP/s that a phase reaches.
MFU = {"generation": 0.5, "old": 0.45, "reference": 0.45, "train": 0.4, "evaluation": 0.5}
# Assumed: the share of the memory's bandwidth that a decode step reaches.
BANDWIDTH = 0.6
# Assumed: 1e9 bytes that CUDA, NCCL and the allocator's gaps take beside the tensors.
CONTEXT = 1.5
PAGE = 16  # tokens of a page of the KV cache
PREFILL = 8192  # tokens of a prefill


def peak_flops(device: torch.device) -> float:
    """Dense bf16 FLOP/s of the device, 0 if it is not in the table."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    for known, gpu in GPUS.items():
        if known in name:
            return gpu.flops
    return 0.0


def read_gpus(text: str) -> tuple[int, str, GPU]:
    """32xH100 -> (32, "H100", its row of the table). 8x48GB@150TF is for a GPU without a row."""
    count, _, name = text.partition("x")
    unlisted = re.fullmatch(r"(\d+)GB@(\d+)TF", name)
    if unlisted:
        memory, teraflops = map(float, unlisted.groups())
        gpu = GPU(memory, teraflops * 1e12, GPUS["A100"].bandwidth)
    else:
        gpu = GPUS.get(name)
    if not gpu or not re.fullmatch(r"[1-9]\d*", count):
        raise ValueError(
            f"--plan {text}: write for example 8xH100, with one of {', '.join(GPUS)}, "
            "or memory and peak of another GPU: 8x48GB@150TF"
        )
    return int(count), name, gpu


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


def cached_bytes(c: Config) -> int:
    """Keys and values of one token, in bf16."""
    return 2 * 2 * c.layers * c.J * c.K


def lasting_memory(job: Job, c: Config, world: int) -> dict[str, float]:
    """Bytes on one GPU that stay for the whole run, by part."""
    N = c.N_total
    t = job.sampler_tp
    here = 0 if job.offload else N * job.replicas / world  # parameters in this GPU's shard
    # The embedding, and a head that t does not divide, are whole on each of the t ranks.
    head_is_split = c.tied or c.V % t == 0
    whole = c.V * c.D * (1 if head_is_split else 2)
    longest = job.max_prompt + job.max_new + 8
    pages_wanted = job.slots * (ceil_div(longest, PAGE) + 1) + 2
    page_bytes = PAGE * cached_bytes(c) // t
    pages = min(pages_wanted, int(job.kv_gb * 1e9 / page_bytes))
    return {
        "parameters": 4 * here,
        "gradients": 4 * here,
        "optimiser": 8 * here,
        "reference": 2 * here if job.kl else 0,
        "sampler's copy": 2 * ((N - whole) / t + whole),
        "pages": pages * page_bytes,
    }


def passing_memory(job: Job, c: Config) -> dict[str, float]:
    """Bytes on one GPU that a phase holds for a while, by moment; the largest counts."""
    D, F, V = c.D, c.F, c.V
    T = job.micro_tokens
    R = T * job.max_new // (job.max_prompt + job.max_new)  # completion tokens among them
    layer = (c.N - D) // c.layers
    head = V * D
    root = head if c.tied else 2 * head
    # In bf16; the next layer is gathered during this one.
    gathered = 2 * root + 2 * 2 * layer
    kept = activations(c, job.recompute) * T + 8 * D * R
    in_backward = gathered + kept + 2 * head
    # Float32 logits, beside their gradient in float32 and in bf16.
    logits = 4 * min(BLOCK["cuda"], R * V) * 2.5
    gradient = 2 + 4  # bytes of a value, in bf16 and in float32
    layer_inputs = (2 * 2 * F + 2 * D) * T
    qkv = (c.H + 2 * c.J) * c.K
    prefill_widths = (2 * qkv + 2 * 3 * F) // job.sampler_tp + 12 * D
    return {
        "head, backward": in_backward + gradient * D * R + logits,
        "layers, backward": in_backward + gradient * layer + layer_inputs,
        "end of backward": gathered + gradient * root,
        "generation": PREFILL * prefill_widths + 12 * job.slots * V,
        "copy of weights": 2 * 2 * (root + layer),  # as gathered, and as parameters of their own
    }


def needed_gb(job: Job, c: Config, world: int) -> float:
    """1e9 bytes of each GPU."""
    lasting = lasting_memory(job, c, world).values()
    passing = passing_memory(job, c).values()
    return (sum(lasting) + max(passing)) / 1e9


def step_flops(job: Job, c: Config, prompt: int, new: int) -> dict[str, float]:
    """FLOPs of a step on all GPUs by phase, evaluation as its share of a step."""
    forward = job.prompts * job.group * forward_flops(c, prompt, new)
    needs_old = job.updates > 1 or job.kl_in == "reward"
    prefill = prefill_flops(c, prompt)
    decode = decode_flops(c, prompt, new)
    evaluation = job.eval_problems * (prefill + job.eval_n * decode)
    return {
        "generation": job.prompts * (prefill + job.group * decode),
        "old": forward if needs_old else 0,
        "reference": forward if job.kl else 0,
        "train": forward * (4 if job.recompute else 3),
        "evaluation": evaluation / max(1, job.eval_every),
    }


def decode_seconds(
    job: Job, c: Config, world: int, gpu: GPU, sequences: int, prompt: int, new: int
) -> float:
    """What reading takes: all weights and the cache, for every token of the longest sequence."""
    mine = ceil_div(sequences, world // job.sampler_tp)
    together = min(mine, job.slots)
    cache_bytes = together * (prompt + new / 2) * cached_bytes(c)
    steps = new * ceil_div(mine, max(1, together))
    bytes_read = steps * (2 * c.N_total + cache_bytes) / job.sampler_tp
    return bytes_read / (gpu.bandwidth * BANDWIDTH)


def step_seconds(
    job: Job, c: Config, world: int, gpu: GPU, flops: dict, prompt: int, new: int
) -> dict[str, float]:
    """Seconds of a step by phase: as long as it computes, or as decoding reads."""
    peak = world * gpu.flops
    seconds = {name: n / (peak * MFU[name]) for name, n in flops.items()}
    sequences = job.prompts * job.group
    generation = decode_seconds(job, c, world, gpu, sequences, prompt, new)
    sequences = job.eval_problems * job.eval_n
    evaluation = decode_seconds(job, c, world, gpu, sequences, prompt, new)
    evaluation /= max(1, job.eval_every)
    seconds["generation"] = max(seconds["generation"], generation)
    seconds["evaluation"] = max(seconds["evaluation"], evaluation)
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
    seconds = {}
    for name in train[0]["seconds"]:
        seconds[name] = fmean(row["seconds"].get(name, 0) for row in train)
    evaluations = [row for row in rows if row["kind"] == "eval"]
    if evaluations:
        newest = evaluations[-1]["step"]
        last = [row["seconds"]["evaluation"] for row in evaluations if row["step"] == newest]
        seconds["evaluation"] = sum(last) / max(1, flags["eval_every"])
    sequences = flags["prompts"] * flags["group"]
    new = fmean(row["length"] for row in train)
    length = fmean(row["tokens"] for row in train) / sequences
    return Measured(seconds, round(length - new), round(new))


# ---- As text -------------------------------------------------------------------------------------


def saving_flags(job: Job, c: Config, world: int) -> dict:
    """The values of flags with which a run needs less memory."""
    values = {
        "recompute": True,
        "micro_tokens": job.max_prompt + job.max_new,
        "kv_gb": job.kv_gb / 4,
        # The most ranks of a node that can share a copy.
        "sampler_tp": math.gcd(8, world, c.H, c.J, c.F),
        "replicas": 1,
        "offload": True,
    }
    return {name: value for name, value in values.items() if value != getattr(job, name)}


def size_line(name: str, gb: float, note: str = "") -> str:
    return f"  {name:24}{gb:10.2f}{note}"


def memory_lines(job: Job, c: Config, world: int, gpu: GPU) -> list[str]:
    """What a GPU must hold, and whether it can."""
    lines = [f"memory of a GPU{'GB':>21}"]
    for part, size in lasting_memory(job, c, world).items():
        lines.append(size_line(part, size / 1e9))
    passing = passing_memory(job, c)
    largest = max(passing, key=passing.get)
    moments = f"   the largest of {len(passing)} moments"
    lines.append(size_line(largest, passing[largest] / 1e9, moments))
    need = needed_gb(job, c, world)
    fits = "fits" if need <= gpu.memory - CONTEXT else "does not fit"
    room = f"   of {gpu.memory:g}, less {CONTEXT:g} for CUDA and NCCL: {fits}"
    lines.append(size_line("together", need, room))
    return lines


def remedy_lines(job: Job, c: Config, world: int, gpu: GPU) -> list[str]:
    """What a GPU must hold with each flag that saves memory, and with all of them."""
    lines = [f"with this flag alone{'GB':>16}"]
    saving = saving_flags(job, c, world)
    jobs = {}
    for name, value in saving.items():
        given = "" if value is True else f" {value:.9g}"
        jobs[flag_name(name) + given] = replace(job, **{name: value})
    jobs["all of them"] = replace(job, **saving)
    for flag, changed in jobs.items():
        need = needed_gb(changed, c, world)
        fits = "   fits" if need <= gpu.memory - CONTEXT else ""
        lines.append(size_line(flag, need, fits))
    return lines


def step_lines(job: Job, c: Config, world: int, gpu: GPU, seen: Measured | None) -> list[str]:
    """FLOPs and seconds of a step by phase, and of the whole run."""
    prompt, new = job.max_prompt, job.max_new
    lengths = "the longest possible"
    if seen:
        prompt, new = seen.prompt, seen.new
        lengths = "as measured"
    flops = step_flops(job, c, prompt, new)
    seconds = seen.seconds if seen else step_seconds(job, c, world, gpu, flops, prompt, new)
    flops["together"] = sum(flops.values())
    seconds = {**seconds, "together": sum(seconds.values())}
    lines = [
        f"a step of {job.prompts} x {job.group} sequences of {prompt} + {new} tokens, {lengths}",
        f"{'FLOP':>36}{'seconds':>12}",
    ]
    for phase, duration in seconds.items():
        flop = flops.get(phase, 0)
        if flop or duration >= 0.05:
            lines.append(f"  {phase:24}{flop:10.2e}{duration:12.1f}")
    hours = job.steps * seconds["together"] / 3600
    total = job.steps * flops["together"]
    tokens = job.prompts * job.group * (prompt + new)
    C = 6 * c.N * tokens * job.steps
    lines += [
        f"{job.steps} steps: {hours:.3g} hours, {hours * world:.3g} GPU-hours, {total:.3g} FLOPs,",
        f"of which C = 6ND counts {C:.3g}",
    ]
    if seen:
        return lines
    return [
        *lines,
        f"assumed: training gets {MFU['train']:.0%} and other forwards {MFU['old']:.0%} of "
        f"{gpu.flops / 1e12:g} TFLOP/s a GPU,",
        f"decoding {BANDWIDTH:.0%} of {gpu.bandwidth / 1e12:g} TB/s. "
        "--plan with --resume RUN takes the rates of a run.",
    ]


def table(
    model: str, job: Job, c: Config, world: int, name: str, gpu: GPU, seen: Measured | None
) -> str:
    """The plan as text."""
    lines = [
        f"{model}: {c.N:,} parameters and {c.N_total - c.N:,} in embeddings, on {world} x {name}",
        "",
        *memory_lines(job, c, world, gpu),
    ]
    if needed_gb(job, c, world) > gpu.memory - CONTEXT:
        lines += remedy_lines(job, c, world, gpu)
    checkpoint = 12 * c.N_total / 1e9
    written = checkpoint * job.replicas / world
    lines += [
        f"  disk: {checkpoint:.3g} GB a checkpoint, up to {job.keep + 2} of them",
        f"  host memory of a rank while a checkpoint is written: {written:.2f} GB",
        "",
        *step_lines(job, c, world, gpu, seen),
    ]
    return "\n".join(lines)


def show(model: str, gpus: str, job: Job, run: str) -> None:
    """Print the plan, once; ValueError for flags that make no run on so many GPUs.

    run: --resume, the run whose rates are taken.
    """
    if int(os.environ.get("RANK", 0)) != 0:
        return
    world, name, gpu = read_gpus(gpus)
    for flag in ("replicas", "sampler_tp"):
        number = getattr(job, flag)
        if world % number:
            raise ValueError(
                f"{flag_name(flag)} {number} does not divide {world} GPUs; give a number that does"
            )
    config = Config.read(locate(model, ["config.json"]))
    check_heads(config, job.sampler_tp)
    print(table(model, job, config, world, name, gpu, measured(run)))
