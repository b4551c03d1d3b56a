"""GRPO post-training of Qwen2.5: the loop, and nothing that is not the loop.

    torchrun grpo.py                                            # a tiny model learns arithmetic on a laptop, two minutes
    torchrun --nproc_per_node 8 grpo.py @recipes/paper.args --model Qwen/Qwen2.5-7B
    torchrun --nproc_per_node 8 grpo.py --resume runs/NAME      # goes on from its newest checkpoint

GRPO (Shao et al. 2024, arXiv 2402.03300), as in "Scaling Behaviors of LLM Reinforcement Learning Post-Training"
(arXiv 2509.25300). For each of P prompts draw G completions o_1..o_G with rewards r_1..r_G, then ascend

    J = sum_i w_i sum_t  min( rho_it A_i, clip(rho_it, 1 - eps_low, 1 + eps_high) A_i )  -  beta KL_it
    A_i = (r_i - mean r) / (std r + 1e-6),    rho_it = pi(o_it | ..) / pi_old(o_it | ..),    w_i = 1/T
    KL_it = exp(d) - d - 1,  d = log pi_ref - log pi     (the k3 estimator, within +-10)

with the dual clip: for A < 0 the term is at least c A. T counts the completion tokens of the whole update, over all
micro-batches and ranks, so the gradient does not depend on how the batch is cut. Each algorithm of recipes/ changes some of
these terms: the reward r in rewards(), A in advantages(), w in weights(), the rest in grpo_loss(), one line for each.

Where we deviate from the paper's code, and why:
- Its token mean is taken per micro-batch, so its gradient depends on the cut; ours is global.
- With one update per rollout (the default here, not the paper's 4) the old log-probs are those of the update itself, so
  they are not computed twice.
- KL is 0 and the learning rate 5e-4 by default, for the tiny model; recipes/paper.args holds the paper's.

Letters: P prompts, G samples of each, B sequences, T packed tokens, R completion tokens among them.
"""

import argparse
import dataclasses
import inspect
import math
import os
import re
import shlex
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args, get_origin

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _set_pg_timeout
from tqdm import tqdm
from transformers import AutoTokenizer

import data
from evaluate import evaluate, held_out
from model import Model
from reward import Grader
from rollout import Completion, Sampler, collect, stop_tokens
from runtime import plan
from runtime.batch import Batch, deal, draw, log_probs, mixed
from runtime.checkpoint import Checkpoints, open_run, read_flags, restore
from runtime.ledger import Interrupted, Ledger, Signals, Stopped, draw_curve, explain, show
from runtime.parallel import check_team, connect, copy_weights, full, load, make_mesh, save, shard, tensor_parallel


@dataclass
class Flags:
    # what is trained, on what
    model: str = "models/tiny"  # hub name, or directory in Hugging Face layout
    data: str = "arithmetic"  # arithmetic, a .jsonl/.json/.parquet file, or a hub name with an optional :split
    out: str = ""  # the run's directory, which must not exist; "" makes one under runs/
    template: Literal["auto", "chat", "plain"] = "auto"  # prompts as; auto: chat if the tokenizer has a template
    seed: int = 0  # keys the noise of every sampled token, and the stream of arithmetic problems
    # a step
    steps: int = 150  # rollouts to train on
    prompts: int = 32  # P, prompts of a step, over all ranks
    group: int = 8  # G, completions of each prompt
    updates: int = 1  # optimiser steps per rollout, each on its share of the prompts (the paper's 512 / 128 = 4)
    reuse: int = 1  # tau: a subset of the problems seen this many times, at the same number of steps
    max_prompt: int = 256  # tokens; longer prompts are dropped, and counted
    max_new: int = 64  # tokens of a completion; longer ones are cut, and get what the grader gives them
    temperature: float = 1.0  # of sampling, and of the policy that is trained
    # the algorithm: each line changes one term of the mathematics, whatever the others are (recipes/ names sets of them)
    advantage: Literal["std", "mean", "loo"] = "std"  # reward - mean, / std (GRPO); without / std; - mean of others (RLOO)
    ratio: Literal["token", "sequence"] = "token"  # rho of each token, or their geometric mean over the sequence (GSPO)
    surrogate: Literal["clip", "cispo"] = "clip"  # PPO's minimum; or the clipped ratio weighs log pi, as a constant
    clip_low: float = 0.2  # the ratio is clipped to 1 - this at least
    clip_high: float = 0.2  # and to 1 + this at most
    dual_clip: float = 3.0  # c: with a negative advantage a token's term is at least c times it; 0 turns it off
    aggregate: Literal["tokens", "sequences", "constant"] = "tokens"  # mean over tokens; of means; of sums / max_new
    kl: float = 0.0  # beta, the weight of the KL term against the frozen start; 0 leaves out the reference model
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"  # of a token's KL, with d = log pi_ref - log pi: -d; d^2 / 2; exp(d) - d - 1
    kl_in: Literal["loss", "reward"] = "loss"  # reward: the sum over a sequence's tokens is taken off its reward (RLOO)
    entropy: float = 0.0  # weight of a bonus for the entropy of every token's distribution
    equal_groups: Literal["keep", "drop", "resample"] = "keep"  # of equal grades; drop: not in the loss; resample: others drawn
    rounds: int = 3  # of drawing prompts for one step, at most, with resample
    overlong: Literal["none", "soft", "mask"] = "none"  # soft: a penalty up to 1 at max_new; mask: cut ones not in the loss
    overlong_cache: int = 16  # tokens below max_new from which on the soft penalty grows
    correct: Literal["none", "token", "sequence"] = "none"  # weighs the term by pi_old / pi_sampler of this
    correct_cap: float = 2.0  # that weight is cut at this
    # the optimiser
    lr: float = 5e-4  # AdamW (the paper: 1e-6)
    warmup: int = 5  # updates over which the learning rate rises linearly
    decay: Literal["none", "inverse"] = "none"  # after the warm-up: constant, as in the paper; or lr / update
    weight_decay: float = 0.1  # AdamW's
    clip_grad: float = 1.0  # the gradient's norm is clipped to this
    # evaluation
    eval: list[str] = dataclasses.field(default_factory=[":1:1"].copy)  # NAME:n:temperature, repeated; no NAME: part of --data
    eval_every: int = 10  # steps between evaluations, 0: at 1, 2, 3, 4, 6, 8, 11, 16, .. 2^(i/2); step 0 and the last always
    eval_problems: int = 500  # at most so many problems of each --eval
    # the machine, and how the run is kept: from here on a flag may change when a run is resumed
    micro_tokens: int = 16384  # tokens of a micro-batch on one rank, prompts included
    slots: int = 256  # sequences decoded together on one rank
    kv_gb: float = 4.0  # memory for keys and values on one rank, 1e9 bytes
    sampler_tp: int = 1  # ranks of a node that hold one copy of the model to sample from, each a part of every layer
    recompute: bool = False  # run each layer again in the backward pass instead of keeping its activations
    offload: bool = False  # keep parameters and optimiser state in CPU memory
    replicas: int = 1  # copies of the sharded model, one per node: shards stay within a copy, gradients cross between them
    graders: int = 1  # processes on one rank that check answers needing algebra
    grade_seconds: float = 5.0  # time limit of one answer
    resume: str = ""  # a run to go on with, flags and all; auto: that of --out, or the unfinished one with these flags, if any
    save_every: int = 10  # steps between checkpoints
    keep: int = 2  # checkpoints kept: the last so many, and that with the best held-out pass@1
    timeout: float = 60.0  # minutes that a phase of a step may last
    wandb: str = ""  # project on Weights & Biases that gets the metrics too
    peak_tflops: float = 0.0  # of one GPU, for MFU; 0 looks it up (plan.py)
    plan: bool = False  # only print what the run will need
    gpus: str = ""  # for --plan, such as 32xH100 or 8x48GB; "" is what is here


FREE = {"out", *list(Flags.__annotations__)[list(Flags.__annotations__).index("micro_tokens") :]}  # may change on resuming


@cache  # and safe in threads once it has been called: CPython 3.11's parser, which getsource calls, is not
def comments() -> dict[str, str]:
    """name: what stands behind it in Flags."""
    return dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(Flags), re.M))


def parse_flags(argv: list[str]) -> Flags:
    """Flags from the command line and from @files (any number of flags per line, # begins a comment)."""
    for name in (a for a in argv if a.startswith("@") and not Path(a[1:]).is_file()):
        there = ", ".join(sorted(f"@{os.path.relpath(path)}" for path in Path(__file__).parent.glob("recipes/*.args")))
        raise ValueError(f"{name}: no such file; the recipes are {there}")
    parser = argparse.ArgumentParser(description="GRPO post-training.", fromfile_prefix_chars="@",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.convert_arg_line_to_args = lambda line: shlex.split(line, comments=True)
    notes = comments()
    for field in dataclasses.fields(Flags):
        kind = {"action": argparse.BooleanOptionalAction} if field.type is bool else {"type": field.type}
        if get_origin(field.type) is Literal:
            kind = {"choices": get_args(field.type)}
        kind["default"] = field.default
        if field.type == list[str]:  # left out, it has the default of Flags; given, it replaces that; given again, it adds
            kind = {"action": "append", "default": argparse.SUPPRESS}
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=notes[field.name], **kind)
    f = parser.parse_args(argv)
    if f.resume not in ("", "auto"):
        parser.set_defaults(**{k: v for k, v in read_flags(f.resume).items() if k in notes})
        f = parser.parse_args([*argv, "--out", f.resume])
    return Flags(**vars(f))


def check(f: Flags, world: int) -> None:
    """ValueError for flags that cannot make a run, saying what to change."""
    for name in ("steps", "prompts", "group", "updates", "reuse", "max_prompt", "max_new", "eval_problems", "rounds",
                 "micro_tokens", "slots", "sampler_tp", "graders", "replicas", "save_every", "keep"):
        if getattr(f, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(f, name)}: must be at least 1")
    if f.eval_every < 0:
        raise ValueError(f"--eval-every {f.eval_every}: steps, or 0 for evaluations at powers of the square root of 2")
    if f.group < 2:
        raise ValueError(f"--group {f.group}: an advantage compares the samples of one prompt; at least 2 are needed")
    if f.temperature <= 0:
        raise ValueError(f"--temperature {f.temperature}: training samples from the policy, so it must be above 0")
    if f.prompts % f.updates or (f.prompts // f.updates) * f.group < world:
        raise ValueError(f"--prompts {f.prompts} cannot be cut into --updates {f.updates} equal parts that each give all "
                         f"{world} ranks a sequence; make prompts a multiple of updates")
    check_team(f.sampler_tp, world)
    if f.prompts % (world // f.sampler_tp):
        raise ValueError(f"--prompts {f.prompts} is not a multiple of the {world // f.sampler_tp} ranks"
                         + (" that each stand for a copy of --sampler-tp" if f.sampler_tp > 1 else "")
                         + "; change it or --nproc_per_node")
    if f.max_prompt + f.max_new > f.micro_tokens:
        raise ValueError(f"--micro-tokens {f.micro_tokens} is less than the longest sequence, --max-prompt {f.max_prompt} + "
                         f"--max-new {f.max_new}; raise it")
    for field in dataclasses.fields(f):
        value, known = getattr(f, field.name), get_args(field.type)
        if get_origin(field.type) is Literal and value not in known:
            raise ValueError(f"--{field.name.replace('_', '-')} {value}: {', '.join(known[:-1])} or {known[-1]}")
    for wrong, message in (
        (not 0 <= f.clip_low <= 1, f"--clip-low {f.clip_low}: must be from 0 to 1, since no ratio is below 0"),
        (min(f.clip_high, f.dual_clip, f.kl, f.entropy) < 0, "--clip-high, --dual-clip, --kl, --entropy: none may be below 0"),
        (f.surrogate == "cispo" and f.dual_clip, "--surrogate cispo has no minimum for a dual clip to bound: --dual-clip 0"),
        (f.ratio == "sequence" and f.correct == "token",
         "--ratio sequence with --correct token: such a ratio weighs a sequence as a whole; take --correct sequence"),
        (f.kl and f.kl_in == "loss" and f.kl_estimator == "k1",
         "--kl-estimator k1 in the loss has a gradient of zero on average; take --kl-in reward, or k2 or k3"),
        (f.kl_in == "reward" and not f.kl, "--kl-in reward takes nothing off with --kl 0; give --kl, or leave --kl-in out"),
        (f.equal_groups == "resample" and f.reuse > 1,
         f"--reuse {f.reuse} says how often a problem is seen, and so does --equal-groups resample; take drop, or no --reuse"),
        (f.overlong == "soft" and not 0 < f.overlong_cache <= f.max_new,
         f"--overlong-cache {f.overlong_cache}: must be from 1 to --max-new {f.max_new}"),
        (f.correct_cap <= 0, f"--correct-cap {f.correct_cap}: cuts a weight, so it must be above 0"),
    ):
        if wrong:
            raise ValueError(message)
    if world % f.replicas:
        raise ValueError(f"--replicas {f.replicas} does not divide the {world} ranks; give the number of nodes, or 1")
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # Restarted workers would find the addresses of the dead ones in torchrun's store (pytorch issue 135712), and hang.
        raise ValueError("--max-restarts needs a fresh store for every start: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun "
                         "--standalone ..., or --rdzv_backend c10d in place of --standalone")
    if f.timeout <= 0:
        raise ValueError(f"--timeout {f.timeout}: minutes, more than 0")
    if f.wandb and find_spec("wandb") is None:
        raise ValueError(f"--wandb {f.wandb}: the package is not installed; pip install wandb, or leave the flag out")


def rewards(done: list[Completion], f: Flags) -> Tensor:
    """reward_B, float32: the grade, less a penalty for length; L tokens cost (L - max_new + cache) / cache between 0 and 1
    (DAPO, arXiv 2503.14476, eq. 13). A KL term in the reward is taken off where it is known, in train_step."""
    grade_B, over_B = torch.tensor([(c.verdict.score, len(c.ids) - f.max_new + f.overlong_cache) for c in done]).T
    return grade_B - (over_B / f.overlong_cache).clamp(0, 1) if f.overlong == "soft" else grade_B


def advantages(reward_PG: Tensor, kind: str = "std") -> Tensor:
    """adv_PG, float32, each group against itself. std, unbiased: GRPO, eq. 3; mean: Dr. GRPO (arXiv 2503.20783);
    loo, against the mean of the others, which is r - mean times G / (G - 1): RLOO (arXiv 2402.14740)."""
    adv_PG, G = reward_PG - reward_PG.mean(1, keepdim=True), reward_PG.shape[1]
    if kind == "std":
        adv_PG = adv_PG / (reward_PG.std(1, keepdim=True) + 1e-6)
    if kind == "loo":
        adv_PG = adv_PG * G / (G - 1)
    return adv_PG


def weights(done: list[Completion], f: Flags) -> Tensor:
    """weight_B, float32: what each token of a sequence counts in the loss of the one update that `done` is for, whole groups.

    tokens 1 / sum |o| (DAPO, eq. 8), sequences 1 / (S |o_i|) (GRPO, eq. 3), constant 1 / (S max_new) (Dr. GRPO), of the S
    sequences that are in the loss; 0 for one that is not: of a group of equal grades, if those are dropped, or, if masked, cut.
    """
    G, new_B = f.group, torch.tensor([len(c.ids) for c in done], dtype=torch.float64)
    in_B = torch.tensor([(f.equal_groups == "keep" or mixed(done[i - i % G : i - i % G + G]))
                         and (f.overlong != "mask" or c.finished) for i, c in enumerate(done)]).double()
    S = in_B.sum().clamp(min=1)
    if f.aggregate == "tokens":
        return (in_B / (in_B * new_B).sum().clamp(min=1)).float()
    return (in_B / (S * (new_B if f.aggregate == "sequences" else f.max_new))).float()


def token_kl(logp_R: Tensor, ref_R: Tensor, estimator: str) -> Tensor:
    """kl_R within +-10: an estimate of KL(pi, pi_ref) from one token each (Schulman 2020, "Approximating KL divergence")."""
    d_R = ref_R - logp_R
    return {"k1": -d_R, "k2": d_R.square() / 2, "k3": d_R.exp() - d_R - 1}[estimator].clamp(-10, 10)


def grpo_loss(logp_R: Tensor, entropy_R: Tensor, b: Batch, f: Flags) -> tuple[Tensor, Tensor, Tensor]:
    """-> (this batch's part of the loss, how many tokens were clipped, their KL summed; the latter two without gradients).

    logp_R and entropy_R, float32, carry gradients; the rest is constant. PPO's clipped surrogate (arXiv 1707.06347, eq. 7) with
    the dual clip (arXiv 1912.09729, eq. 5), or CISPO's weighted log pi (arXiv 2506.13585); ratio of the sequence: GSPO
    (arXiv 2507.18071); weights for what the sampler computed otherwise, cut at a cap: TIS (Yao et al. 2025).
    """
    log_ratio_R, log_gap_R = logp_R - b.old_R, b.old_R - b.sampler_R
    if f.ratio == "sequence":
        log_ratio_R = b.spread(b.reduce(log_ratio_R, torch.mean))
    ratio_R = log_ratio_R.exp()
    clipped_R = ratio_R.clamp(1 - f.clip_low, 1 + f.clip_high)
    if f.surrogate == "cispo":
        gain_R = clipped_R.detach() * b.adv_R * logp_R
        was_clipped_R = clipped_R != ratio_R
    else:
        gain_R = torch.minimum(ratio_R * b.adv_R, clipped_R * b.adv_R)
        was_clipped_R = clipped_R * b.adv_R < ratio_R * b.adv_R
        if f.dual_clip:
            gain_R = torch.maximum(gain_R, torch.where(b.adv_R < 0, f.dual_clip * b.adv_R, -torch.inf))
    if f.correct == "sequence":  # a product over the sequence, no mean: the importance of the whole draw
        log_gap_R = b.spread(b.reduce(log_gap_R, torch.sum))
    if f.correct != "none":
        gain_R = gain_R * log_gap_R.exp().clamp(max=f.correct_cap)
    loss_R, kl_R = -gain_R, torch.zeros_like(logp_R)
    if f.entropy:
        loss_R = loss_R - f.entropy * entropy_R
    if b.ref_R is not None:
        kl_R = token_kl(logp_R, b.ref_R, f.kl_estimator)
        if f.kl_in == "loss":
            loss_R = loss_R + f.kl * kl_R
    return (b.weight_R * loss_R).sum(), was_clipped_R.sum(), kl_R.detach().sum()


def train_step(model: Model, ref: Model | None, optimizer, scheduler, done: list[Completion], f: Flags, device, phase) -> dict:
    """All updates on one rollout; the step's statistics, already reduced over ranks (a collective)."""
    share, world = len(done) // f.updates, dist.get_world_size()
    parts = [range(u * share, (u + 1) * share) for u in range(f.updates)]
    updates, loads = zip(*(deal(done, part, f.micro_tokens, device) for part in parts), strict=True)
    mine = [b for batches in updates for b in batches]
    # Both are of the weights that drew the samples, so they come before the first update changes any.
    with torch.no_grad():
        if f.updates > 1 or f.kl_in == "reward":
            with phase("old"):
                for b in mine:
                    b.old_R = log_probs(model, b, f.temperature)[0]
        if ref is not None:
            with phase("reference"):
                for b in mine:
                    b.ref_R = log_probs(ref, b, f.temperature)[0]
    reward_B = rewards(done, f).to(device)
    if f.kl_in == "reward":
        kl_B = torch.zeros_like(reward_B)
        for b in mine:
            kl_B[b.places] = b.reduce(token_kl(b.old_R, b.ref_R, f.kl_estimator), torch.sum)
        dist.all_reduce(kl_B)  # each sequence was on one rank
        reward_B = reward_B - f.kl * kl_B
    adv_B = advantages(reward_B.view(f.prompts, f.group), f.advantage).flatten()
    weight_B = torch.cat([weights([done[i] for i in part], f) for part in parts]).to(device)
    for b in mine:
        b.adv_R, b.weight_R = b.spread(adv_B[b.places]), b.spread(weight_B[b.places])
    total = torch.zeros(6, dtype=torch.float64, device=device)  # loss, clipped, kl, entropy, gap, skipped updates
    norms = []
    with phase("train"):
        for u, batches in enumerate(updates):
            tokens = sum(len(done[i].ids) for i in parts[u])  # of all ranks
            for i, b in enumerate(batches):
                # Within a copy of the model gradients are summed at once, since whole ones do not fit; between copies last.
                model.set_requires_all_reduce(i == len(batches) - 1)
                logp_R, entropy_R = log_probs(model, b, f.temperature)
                b.old_R = logp_R.detach() if b.old_R is None else b.old_R
                loss, clipped, kl = grpo_loss(logp_R, entropy_R, b, f)
                (loss * world).backward()  # FSDP averages over ranks; the sum is wanted
                gap = (b.sampler_R - b.old_R).abs().sum()
                total[0] += loss.detach()
                total[1:5] += torch.stack((clipped, kl, entropy_R.detach().sum(), gap)).double() / tokens
            norm = full(torch.nn.utils.clip_grad_norm_(model.parameters(), f.clip_grad))
            norms.append(norm.item())
            if math.isfinite(norms[-1]):
                optimizer.step()
            else:
                total[5] += 1 / world
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
    dist.all_reduce(total)
    loss, clipped, kl, entropy, gap, skipped = total.tolist()
    finite = [n for n in norms if math.isfinite(n)]
    return {
        "reward": sum(c.verdict.score for c in done) / len(done),
        "loss": loss / f.updates, "kl": kl / f.updates, "entropy": entropy / f.updates,
        "clip_fraction": clipped / f.updates, "grad_norm": sum(finite) / len(finite) if finite else None,
        "skipped_updates": round(skipped), "lr": scheduler.get_last_lr()[0],
        "length": sum(len(c.ids) for c in done) / len(done), "truncated": sum(not c.finished for c in done) / len(done),
        "zero_variance": sum(not mixed(done[i : i + f.group]) for i in range(0, len(done), f.group)) / f.prompts,
        "in_loss": (weight_B > 0).float().mean().item(), "sampler_gap": gap / f.updates,
        "micro_batches": sum(map(len, updates)), "imbalance": max(max(load) * world / sum(load) for load in loads) - 1,
    }


def schedule(update: int, f: Flags) -> float:
    """What the learning rate is multiplied by at an update, counted from 1."""
    if update <= f.warmup:
        return update / f.warmup
    return 1.0 if f.decay == "none" else 1 / update


def due(step: int, f: Flags) -> bool:
    """Whether there is an evaluation after this step."""
    every = step % f.eval_every == 0 if f.eval_every else step in {round(2 ** (i / 2)) for i in range(64)}
    return every or step in (0, f.steps)


def main(f: Flags) -> None:
    if f.plan:
        return plan.show(f)
    device, source, config = connect(f.model)
    _set_pg_timeout(timedelta(minutes=f.timeout + 5))  # later than a phase's own limit, which says more
    rank, world = dist.get_rank(), dist.get_world_size()
    speak = (lambda text: print(text, flush=True)) if rank == 0 else lambda _: None
    check(f, world)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    # Problems, and the run's directory: new, or as it was at its newest checkpoint.
    tokenizer = AutoTokenizer.from_pretrained(source)
    problems, tests = held_out(f)
    problems, dropped = data.drop_long(problems, tokenizer, f.max_prompt, f.template)
    tests = [(source, *data.drop_long(test, tokenizer, f.max_prompt, f.template)) for source, test in tests]
    held, dropped_test = sum(len(test) for _, test, _ in tests), sum(n for _, _, n in tests)
    problems = data.order(problems, f.reuse, f.steps * f.prompts)
    if (most := f.prompts * (f.rounds if f.equal_groups == "resample" else 1)) > len(problems):
        raise ValueError(f"a step may draw {most} prompts, and there are {len(problems)}; lower --prompts or --rounds")
    free = FREE | ({"steps"} if f.reuse == 1 else set())
    fresh = Path("runs", f"{Path(f.data).stem.replace('/', '-')}-seed{f.seed}-{datetime.now():%m%d-%H%M%S}")
    out, newest, _lock = open_run(dataclasses.asdict(f), free, fresh)
    speak(f"{f.model}: {config.N:,} parameters and {config.N_total - config.N:,} in embeddings; {f.data}: "
          f"{'endless' if isinstance(problems, data.Arithmetic) else f'{len(problems):,}'} problems, {held} held out"
          + (f"; {dropped} + {dropped_test} prompts over {f.max_prompt} tokens dropped" if dropped + dropped_test else ""))
    speak(f"{out}: {f.steps} steps of {f.prompts} prompts x {f.group} samples, on {world} x {device.type} in {dtype}"
          + (f", from {newest.name}" if newest else ""))

    with Signals() as signals, Grader(workers=f.graders, timeout_s=f.grade_seconds) as grader:
        ledger = Ledger(out, config, device, f, signals)
        checkpoints, phase = Checkpoints(out, f.keep, ledger), ledger.phase
        # The trained model in float32, sharded; the frozen start, if the loss needs it; the sampler's copy, or a part of it.
        with phase("loading"):
            mesh, home = make_mesh(device.type, f.replicas), "cpu" if f.offload else device
            with torch.device("meta"):
                model, frozen, drawn = Model(config, f.recompute), Model(config), Model(config)
            if f.sampler_tp > 1:
                team, _ = dist.new_subgroups(f.sampler_tp, timeout=timedelta(minutes=f.timeout + 5))
                tensor_parallel(drawn, team)
            model = shard(model, mesh, dtype, f.offload).to_empty(device=home)
            ref = load(shard(frozen.to(dtype), mesh, dtype, f.offload).to_empty(device=home), source) if f.kl else None
            optimizer = torch.optim.AdamW(model.parameters(), f.lr, (0.9, 0.999), weight_decay=f.weight_decay, fused=True)
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: schedule(update + 1, f))
            if newest:
                restore(newest, model, optimizer, scheduler, ledger)
            else:
                load(model, source)
            sampler = Sampler(drawn.to(dtype).to_empty(device=device), stop_tokens(source, tokenizer), f.slots,
                              f.max_prompt + f.max_new, f.kv_gb)
            copy_weights(model, sampler.model)

        def measure() -> list[Completion]:
            """Evaluates on every source, and returns three completions of the first."""
            samples = []
            for source, test, _ in tests:
                with phase("evaluation"):
                    result, done = evaluate(sampler, tokenizer, grader, test, source, f.max_new, f.seed, f.template)
                ledger.evaluated(result, done, test, sampler.set_back)
                samples = samples or done[: 3 * source.n : source.n]
            return samples

        shown = {}  # step: some completions of its evaluation
        try:
            if due(ledger.step, f) and ledger.measured != ledger.step:  # the first, or one that a signal put off
                shown[ledger.step] = measure()
                first = tests[0][1]
                speak(f"step {ledger.step}: pass@1 {ledger.pass1:.3f} on {len(first)} problems of {first[0].source}")
            bar = tqdm(range(ledger.step + 1, f.steps + 1), initial=ledger.step, total=f.steps, unit="step", dynamic_ncols=True,
                       disable=rank > 0 or not sys.stderr.isatty())
            for step in bar:
                if ledger.stop:
                    break
                with phase("generation"):
                    done, drawn = draw(lambda batch, step=step: collect(sampler, tokenizer, grader, batch, f.group, f.max_new,
                                       f.temperature, f.seed, step, f.template), problems, ledger.D, f)
                stats = train_step(model, ref, optimizer, scheduler, done, f, device, phase)
                with phase("weights"):
                    copy_weights(model, sampler.model)
                line = ledger.trained(step, done, drawn, stats, sampler.set_back)
                if ledger.failed == 3:
                    raise Stopped(f"no finite gradient in three steps in a row, at step {step}; try a lower --lr; see {out}")
                if due(step, f) and not ledger.stop:
                    shown[step] = measure()
                if step % f.save_every == 0 or step == f.steps:
                    checkpoints.save(model, optimizer, scheduler)
                if bar.disable:
                    speak(ledger.row(line))
                bar.set_postfix(ledger.columns(line))
        except Interrupted:
            pass  # in the middle of a step that had changed nothing yet
        finally:  # graphs that hold collectives go before the process group, which would wait for them (pytorch issue 115388)
            sampler.captured.clear()
        checkpoints.close(model, optimizer, scheduler)

    again = f"torchrun --nproc_per_node {os.environ.get('LOCAL_WORLD_SIZE', 1)} grpo.py --resume {shlex.quote(str(out))}"
    if ledger.stop == "checkpoint":
        raise Stopped(f"{ledger.error}; earlier checkpoints are whole. To go on from there: {again}")
    if ledger.stop:
        return speak(f"ended after step {ledger.step} of {f.steps}, as asked; to go on: {again}")
    save(model, source, out / "final", dtype)
    if rank == 0:
        curve = draw_curve(out)
        for when, step in {"before": 0, "after": f.steps}.items():
            if step in shown:  # else an earlier start of this run has shown it
                print(f"\n{when}:\n{show(shown[step], tokenizer)}")
        print(f"\ncurve: {curve}")
        load_it = f"from transformers import AutoModelForCausalLM as M; m = M.from_pretrained({str(out / 'final')!r})"
        print(f'model: python -c "{load_it}; print(m)"')


if __name__ == "__main__":
    explain(lambda: main(parse_flags(sys.argv[1:])))
