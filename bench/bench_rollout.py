"""Our sampler against transformers' `generate` and its continuous batching, on the same work.

    python -m bench.bench_rollout            # CPU: models/tiny; GPU: Qwen2.5-1.5B's shape, 64..2048
    python -m bench.bench_rollout --model DIR --samples 32 --short 16 --long 128

Two workloads: completions of one length (long), and lengths spread evenly over short..long in
random order, as in a rollout. All contenders have the same weights and prompts, draw at temperature
1 over the whole vocabulary and are told when each sequence ends; `generate` holds a finished row
until the whole batch is done. The peer's continuous batching is opened, sized and warmed up before
its clock starts, and stays open. Timings are the best of --repeats: on a CPU in turns, so that
other work slows all contenders; on a GPU one contender after the other, each with all the memory.
"""

import gc
import random
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
import tyro
from transformers.generation import ContinuousBatchingConfig

from bench.common import DEVICE, DTYPE, GPU, one_line, record, seconds, write_config
from kernels import ceil_div
from model import Config, Model
from reward import Verdict
from rollout import Completion, Sampler
from runtime.batch import log_probs, make_batch, pack
from runtime.parallel import load, locate

Workload = Literal["equal", "spread"]


@dataclass
class Flags:
    model: str = "" if GPU else "models/tiny"  # a checkpoint; empty: random weights of --shape
    shape: str = "1.5B"  # of bench/common.py
    samples: int = 512 if GPU else 256  # sequences, all with different prompts
    prompt: int = 128 if GPU else 24  # tokens of every prompt
    short: int = 64 if GPU else 4  # tokens of the shortest completion
    long: int = 2048 if GPU else 48  # tokens of the longest completion
    slots: int = 0  # sequences we decode together, 0 for all (as the peer)
    kv_gb: float = 40.0 if GPU else 4.0  # memory for our cache
    workloads: tuple[Workload, ...] = ("spread",) if GPU else ("equal", "spread")
    repeats: int = 1 if GPU else 3


# ---- The contenders -----------------------------------------------------------------------------
# Each is a context that yields a function of (limits, seed), which returns how many tokens it drew.


def new_sampler(model: Model, flags: Flags) -> Sampler:
    slots = flags.slots or flags.samples
    return Sampler(model, [], slots, flags.prompt + flags.long, flags.kv_gb)


@contextmanager
def ours(model, peer, prompts, flags):
    sampler = new_sampler(model, flags)

    def run(limits: list[int], seed: int) -> int:
        samples = sampler.generate(prompts, 1, limits, 1.0, seed)
        return sum(len(s.ids) for s in samples)

    yield run
    sampler.close()


def settings(longest: int) -> transformers.GenerationConfig:
    """No end token, since lengths are given, and the whole vocabulary, as ours."""
    return transformers.GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=longest,
        eos_token_id=-1,
        pad_token_id=0,
        repetition_penalty=1.0,
    )


class Lengths(transformers.StoppingCriteria):
    """Ends row i after limits[i] new tokens."""

    def __init__(self, limits: list[int], prompt: int):
        self.end_B = torch.tensor(limits, device=DEVICE) + prompt

    def __call__(self, input_ids, scores, **_):
        return input_ids.shape[1] >= self.end_B


@contextmanager
def generate(model, peer, prompts, flags):
    ids = torch.tensor(prompts, device=DEVICE)
    mask = torch.ones_like(ids)

    def run(limits: list[int], seed: int) -> int:
        longest = max(limits)
        out = peer.generate(
            ids,
            attention_mask=mask,
            generation_config=settings(longest),
            stopping_criteria=[Lengths(limits, flags.prompt)],
        )
        # Its rows are padded, so that the longest one is all that can be checked.
        return sum(limits) if out.shape[1] == flags.prompt + longest else 0

    yield run


@contextmanager
def continuous_batching(model, peer, prompts, flags):
    config = ContinuousBatchingConfig()
    if not GPU:  # unless told, it takes most of a machine's memory for its pages
        pages = flags.samples * ceil_div(flags.prompt + flags.long, 32) + 8
        config = ContinuousBatchingConfig(page_size=32, num_blocks=pages, max_batch_tokens=1024)
    with peer.continuous_batching_context_manager(
        settings(flags.long), continuous_batching_config=config
    ) as manager:

        def run(limits: list[int], seed: int) -> int:
            for prompt, limit in zip(prompts, limits, strict=True):
                manager.add_request(prompt, max_new_tokens=limit, eos_token_id=-1)
            drawn = 0
            missing = len(limits)
            while missing:
                result = manager.get_result(timeout=1)
                if result is None and not manager.is_running():
                    raise RuntimeError("its generation thread has ended")
                if result is not None and result.is_finished():
                    drawn += len(result.generated_tokens)
                    missing -= 1
            return drawn

        yield run


CONTENDERS = {"ours": ours, "generate": generate, "continuous batching": continuous_batching}


# ---- Measuring ----------------------------------------------------------------------------------


def time_of(run: Callable, limits: list[int], seed: int) -> float:
    drawn = []
    duration = seconds(lambda: drawn.append(run(limits, seed)))
    if drawn != [sum(limits)]:
        raise RuntimeError(f"drew {drawn[0]:,} tokens, not the {sum(limits):,} asked for")
    return duration


def measure(names: list[str], models, prompts, limits: dict, flags: Flags) -> tuple[dict, dict]:
    """Contenders in turns -> ({(workload, name): least seconds}, {name: why it did not run})."""
    best = {}
    failed = {}
    with ExitStack() as stack:
        runs = {}
        for name in names:
            try:
                runs[name] = stack.enter_context(CONTENDERS[name](*models, prompts, flags))
                for workload in flags.workloads:
                    # A 16th of every length is the warm-up: it meets all sizes of a batch.
                    short = [max(1, n // 16) for n in limits[workload]]
                    time_of(runs[name], short, seed=0)
            except Exception as error:
                if name == "ours":
                    raise
                failed[name] = one_line(error)
                runs.pop(name, None)
        for seed in range(1, flags.repeats + 1):
            for workload in flags.workloads:
                for name, run in runs.items():
                    duration = time_of(run, limits[workload], seed)
                    key = (workload, name)
                    best[key] = min(duration, best.get(key, duration))
    return best, failed


def gap(model: Model, prompts, limits: list[int], flags: Flags) -> tuple[float, float]:
    """|log-prob of the sampler - of the trainer| over one more draw: (mean, largest)."""
    limits = [min(n, 256) for n in limits]
    verdict = Verdict(0.0, "no_answer", None, "")
    completions = []
    for s in new_sampler(model, flags).generate(prompts, 1, limits, 1.0, seed=0):
        prompt = prompts[s.p]
        completion = Completion(s.p, 0, prompt, s.ids, s.logp, s.finished, "", verdict)
        completions.append(completion)
    lengths = [len(c.prompt) + len(c.ids) for c in completions]
    (micro_batches,) = pack(lengths, ranks=1, budget=16384)
    gaps = []
    for places in micro_batches:
        b = make_batch(completions, places, DEVICE)
        logp_R, _ = log_probs(model, b, 1.0)  # with gradients on, as the trainer computes them
        gaps.append((logp_R.detach() - b.sampler_R).abs())
    gap_R = torch.cat(gaps)
    return gap_R.mean().item(), gap_R.max().item()


def load_models(flags: Flags) -> tuple[Model, torch.nn.Module]:
    """(our model, the peer's) with the same weights: of a checkpoint, or random ones of a shape."""
    source = nullcontext(locate(flags.model)) if flags.model else tempfile.TemporaryDirectory()
    with source as directory:
        if not flags.model:
            write_config(directory, flags.shape)
        with torch.device("meta"):
            model = Model(Config.read(directory)).to(DTYPE)
        model = model.to_empty(device=DEVICE)
        if flags.model:
            peer = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=DTYPE)
            load(model, directory)
        else:
            config = transformers.AutoConfig.from_pretrained(directory)
            with torch.device(DEVICE):
                peer = transformers.AutoModelForCausalLM.from_config(config, dtype=DTYPE)
            weights = peer.state_dict()
            model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model, peer.to(DEVICE).eval().requires_grad_(False)


def main() -> None:
    flags = tyro.cli(Flags, description=__doc__)
    transformers.logging.set_verbosity_error()  # it warns at every call that there is no end token
    models = load_models(flags)
    model = models[0]
    rng = random.Random(0)
    V = model.config.V
    prompts = [rng.choices(range(V), k=flags.prompt) for _ in range(flags.samples)]
    width = flags.long - flags.short
    spread = [flags.short + i * width // (flags.samples - 1) for i in range(flags.samples)]
    rng.shuffle(spread)
    limits = {"equal": [flags.long] * flags.samples, "spread": spread}

    best = {}
    failed = {}
    for names in [[name] for name in CONTENDERS] if GPU else [list(CONTENDERS)]:
        found, reasons = measure(names, models, prompts, limits, flags)
        best |= found
        failed |= reasons
        gc.collect()  # the next contender has the whole memory
        torch.cuda.empty_cache()
    mean, largest = gap(model, prompts, limits[flags.workloads[-1]], flags)

    print(
        f"{Path(flags.model).name or flags.shape}, {flags.samples} samples of "
        f"{flags.short}..{flags.long} tokens after {flags.prompt}, "
        f"{flags.slots or flags.samples} slots, {DEVICE.type} {DTYPE}\n"
    )
    header = "".join(f"{workload:>22}" for workload in flags.workloads)
    print(f"{'tokens per second':24}{header}    ours over it")
    rows = [{"name": "ours, log-probs", "gap": {"mean": mean, "max": largest}}]
    for name in CONTENDERS:
        if name in failed:
            rows.append({"name": name, "not_run": failed[name]})
            print(f"{name:24}not run: {failed[name][:110]}")
            continue
        speed = {w: sum(limits[w]) / best[w, name] for w in flags.workloads}
        ratio = {w: best[w, name] / best[w, "ours"] for w in flags.workloads}
        rows.append({"name": name, **speed, "ratio": ratio})
        speeds = "".join(f"{speed[w]:22,.0f}" for w in flags.workloads)
        ratios = ", ".join(f"{x:.2f}" for x in ratio.values())
        print(f"{name:24}{speeds}    {ratios}")
    print(f"log-probs of our sampler and trainer differ by {mean:.1e}, {largest:.1e} at most")
    files = ("kernels", "model.py", "rollout.py", "runtime/batch.py", "bench/bench_rollout.py",
             "bench/common.py")
    record("rollout", vars(flags) | {"model": Path(flags.model).name}, rows, {}, files)


if __name__ == "__main__":
    main()
