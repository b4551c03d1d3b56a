"""GRPO post-training of Qwen2.5: the algorithm and its loop.

    torchrun grpo.py                                        # a tiny model, a laptop, two minutes
    torchrun --nproc_per_node 8 grpo.py @recipes/paper.args --model Qwen/Qwen2.5-7B
    torchrun --nproc_per_node 8 grpo.py --resume runs/NAME  # goes on from the newest checkpoint

GRPO (Shao et al. 2024, arXiv 2402.03300), as in "Scaling Behaviors of LLM Reinforcement Learning
Post-Training" (arXiv 2509.25300). For each of P prompts draw G completions o_i with rewards r_i.
Then ascend J, where i runs over the completions of an update and t over the tokens of o_i:

    J = sum_i w_i sum_t [ min(rho_it A_i, clip(rho_it, 1 - eps_low, 1 + eps_high) A_i)
                          - beta KL_it ]

    A_i    = (r_i - mean r) / (std r + 1e-6)            advantage, against the G of the same prompt
    rho_it = pi(o_it | ..) / pi_old(o_it | ..)          ratio; pi_old is pi before the updates
    KL_it  = exp(d) - d - 1,  d = log pi_ref - log pi   k3 estimator, against the starting model
    w_i    = 1 / sum_j |o_j|                            weight: 1 / completion tokens of the update

The dual clip bounds the min from below for a negative advantage, by dual_clip x A_i. The sum in w_i
runs over all micro-batches and ranks, so the gradient does not depend on how the sequences are
shared out. This w_i is DAPO's; --aggregate sequences is that of the GRPO paper. The completions
are drawn by a copy of pi_old in the sampler. Each algorithm of recipes/ changes some terms: which
prompts in draw_groups(), r in rewards() and trained_rewards(), A in advantages(), w in in_loss()
and token_weights(), KL in token_kl(), the others in grpo_loss().

The path from a problem to its gradient:

    evaluate.load_problems, data.order    the problems, in the order of training
    draw_groups                           sample G completions of each prompt, grade them
    train_step                            all updates on these completions:
        deal_updates, deal                sequences to updates, to ranks and micro-batches
        add_log_probs                     under pi_old and pi_ref, with --updates > 1 or --kl
        trained_rewards, advantages       r_i, A_i
        token_weights                     w_i
        log_probs                         under pi, with gradients
        grpo_loss, backward               -J and its gradient; FSDP2 averages it over the ranks

A difference from the study's code: its token mean is taken per micro-batch, so its gradient depends
on the micro-batches. Among the defaults that are not the study's, for the tiny model: one update
per rollout instead of 4, a learning rate of 5e-4 instead of 1e-6 with a warm-up, beta 0;
recipes/paper.args holds the study's.

Letters: P prompts, G completions of each, B sequences (of a micro-batch, an update or the step: the
docstring says which), T packed tokens, R completion tokens among them. `# <solution>` marks bodies
that course/ takes out to make assignments.
"""

import dataclasses
import math
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean as mean
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import data
from data import PROMPT
from evaluate import EvaluationSet, check_reward, evaluate, load_problems
from model import Config, Model
from reward import Grader
from rollout import Completion, Interrupted, Rollout, Sampler, stop_tokens
from runtime import plan
from runtime.batch import Batch, Share, deal, log_probs
from runtime.checkpoint import Checkpoints, discarded_on_error, open_run, read_flags, restore
from runtime.display import Display, draw_curve, show
from runtime.flags import check_choices, check_numbers, flag_name, from_stored, parse
from runtime.ledger import Clock, Ledger, Progress, Signals, Stopped, explain
from runtime.parallel import (
    agree,
    check_team,
    check_tokenizer,
    connect,
    copy_weights,
    find_weights,
    full,
    load,
    make_mesh,
    read_tokenizer,
    save,
    shard,
    tensor_parallel,
)


@dataclass
class Flags:
    # ---- What is trained, on what

    model: str = "models/tiny"  # hub name, or a directory in Hugging Face layout
    # arithmetic, arithmetic-hard, a .jsonl, .json or .parquet file, or a hub name, to which a split
    # may be added: NAME:split
    data: str = "arithmetic"
    out: str = ""  # directory of the run, new unless the run is resumed; one under runs/ by default
    # run to go on with; auto: the run of --out, or the newest unfinished run with these flags, or
    # else a new run
    resume: str = ""
    # keys the noise of every sampled token and the stream of arithmetic problems; nothing else is
    # random
    seed: int = 0

    # ---- Prompts

    # how a problem is asked, with {problem} in it; prompts that stand in a file, and arithmetic
    # problems, stay as they are
    prompt: str = PROMPT
    # chat template or plain text; auto: chat if the tokenizer has a chat template
    template: Literal["auto", "chat", "plain"] = "auto"
    # NAME=VALUE for the chat template, such as enable_thinking=false; may be repeated
    template_args: list[str] = field(default_factory=list)
    max_prompt: int = 128  # tokens; longer prompts are dropped and counted
    # tokens of a completion; longer completions are truncated and graded as they are
    max_new: int = 64

    # ---- A step

    steps: int = 150  # rollouts to train on
    prompts: int = 32  # P, prompts of a step, over all ranks
    group: int = 8  # G, completions of each prompt
    updates: int = 1  # optimiser steps per rollout, each on its share of the prompts (the paper: 4)
    # 1: all problems, and again from the first when they run out. More is tau: only as many
    # problems as are then seen tau times in these steps
    reuse: int = 1
    temperature: float = 1.0  # of sampling, and of the policy that is trained

    # ---- The reward

    # FILE.py:FUNCTION with (completion, problem) -> number; the answer checker if not given
    reward: str = ""
    # soft: a penalty in the last fifth of max_new; mask: truncated completions leave the loss
    overlong: Literal["none", "soft", "mask"] = "none"

    # ---- The algorithm: each flag changes one part; check() refuses senseless combinations

    # std: (r - mean) / std (GRPO); mean: r - mean (Dr. GRPO); loo: r - mean of the others (RLOO)
    advantage: Literal["std", "mean", "loo"] = "std"
    # token: rho of each token; sequence: their geometric mean over the sequence (GSPO)
    ratio: Literal["token", "sequence"] = "token"
    # clip: PPO's minimum; cispo: the clipped ratio as a constant weight of log pi
    surrogate: Literal["clip", "cispo"] = "clip"
    clip_low: float = 0.2  # eps_low: the ratio is clipped to at least 1 minus this
    clip_high: float = 0.2  # eps_high: the ratio is clipped to at most 1 plus this
    dual_clip: float = 3.0  # for a negative advantage the minimum is at least this x A; 0: off
    # tokens: mean over all tokens; sequences: mean of each one's mean; constant: the sum over all
    # tokens, divided by sequences x max_new
    aggregate: Literal["tokens", "sequences", "constant"] = "tokens"
    kl: float = 0.0  # beta, weight of the KL term; 0 leaves out the reference policy
    # KL of one token, with d = log pi_ref - log pi: k1 -d; k2 d^2 / 2; k3 exp(d) - d - 1
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    # loss: a term of each token; reward: beta times the sequence's KL is subtracted from r
    kl_in: Literal["loss", "reward"] = "loss"
    # importance weight pi_old / pi_sampler, per token or per sequence, at most 2
    correct: Literal["none", "token", "sequence"] = "none"
    # groups of equal rewards: keep them, drop them from the loss, or resample: draw other prompts
    equal_groups: Literal["keep", "drop", "resample"] = "keep"

    # ---- The optimiser

    lr: float = 5e-4  # learning rate of AdamW (the paper: 1e-6)
    warmup: int = 5  # updates over which the learning rate rises linearly
    # after the warm-up: none: constant, as in the paper; inverse: lr / update, counted from the
    # start, so the rate falls at once to lr / (warmup + 1)
    decay: Literal["none", "inverse"] = "none"
    weight_decay: float = 0.1  # of AdamW
    clip_grad: float = 1.0  # the norm of the gradient is clipped to this; 0: off

    # ---- Evaluation

    # NAME[:n[:temperature]], n 1 and temperature 0.7 if left out; may be repeated. Without a NAME,
    # a held-out part of --data; :1:1 without --eval
    eval: list[str] = field(default_factory=list)
    # steps between evaluations; 0: after steps 1, 2, 3, 4, 6, 8, 11, .. 2^(i/2); always before
    # the first step and after the last
    eval_every: int = 10
    eval_problems: int = 500  # problems of each evaluation set, at most

    # ---- Memory and the machine

    micro_tokens: int = 16384  # most tokens of a micro-batch on one rank, prompts included
    slots: int = 256  # sequences decoded together on one rank
    kv_gb: float = 4.0  # most memory of the KV cache on one rank, 1e9 bytes
    sampler_tp: int = 1  # ranks of a node that share one copy of the model for sampling
    recompute: bool = False  # run each layer again in backward instead of keeping activations
    offload: bool = False  # keep parameters and optimiser state in CPU memory
    replicas: int = 1  # copies of the sharded model, usually one per node

    # ---- Keeping the run

    save_every: int = 10  # steps between checkpoints
    # how many recent checkpoints to keep; the best one of an evaluated step is kept too
    keep: int = 2
    # minutes that a phase may last: loading, generation, training, an evaluation
    timeout: float = 60.0
    log: Literal["", "wandb", "tensorboard"] = ""  # also send the metrics there
    plan: str = ""  # such as 8xH100: print what the run would need on these GPUs, and stop


# ---- The mathematics -----------------------------------------------------------------------------


def rewards(completions: list[Completion], f: Flags) -> Tensor:
    """reward_B, float32: the grade, minus the penalty for length if --overlong soft.

    The penalty rises from 0 to 1 over the last fifth of max_new (DAPO, arXiv 2503.14476, eq. 13,
    which has 4096 of 20480 tokens). With --kl-in reward, trained_rewards then subtracts a KL term.
    """
    grade_B = torch.tensor([c.verdict.score for c in completions], dtype=torch.float32)
    if f.overlong != "soft":
        return grade_B
    length_B = torch.tensor([len(c.ids) for c in completions])
    fifth = f.max_new / 5
    penalty_B = ((length_B - 4 * fifth) / fifth).clamp(0, 1)
    return grade_B - penalty_B


def all_equal(reward_PG: Tensor) -> Tensor:
    """equal_P, bool: whether all rewards of a group are the same."""
    return (reward_PG == reward_PG[:, :1]).all(1)


def advantages(reward_PG: Tensor, kind: str = "std") -> Tensor:
    """adv_PG, the dtype of reward_PG: A_i, from the mean and std of the G rewards of its prompt.

    Exactly 0 where all rewards of a group are equal. kind:
    std   (r - mean) / (std + 1e-6), with the unbiased std: GRPO (arXiv 2402.03300)
    mean  r - mean: Dr. GRPO (arXiv 2503.20783)
    loo   r - mean of the other G - 1, which is (r - mean) G / (G - 1): RLOO (arXiv 2402.14740)
    """
    # <solution id="advantages" points="10">
    G = reward_PG.shape[1]
    adv_PG = reward_PG - reward_PG.mean(1, keepdim=True)
    if kind == "std":
        adv_PG = adv_PG / (reward_PG.std(1, keepdim=True) + 1e-6)
    if kind == "loo":
        adv_PG = adv_PG * G / (G - 1)
    return adv_PG.masked_fill(all_equal(reward_PG)[:, None], 0.0)
    # </solution>


def token_weights(new_B: Tensor, in_loss_B: Tensor, aggregate: str, max_new: int) -> Tensor:
    """weight_B, float32: w_i, the weight of every token of sequence i in the loss of an update.

    new_B, int64: completion tokens |o_i| of every sequence of the update, over all ranks.
    in_loss_B, bool: which sequences are in the loss. With S such sequences, their weights are
    tokens     1 / sum_j |o_j|    over the S sequences (DAPO, eq. 8; the default)
    sequences  1 / (S |o_i|)      (GRPO, eq. 3)
    constant   1 / (S max_new)    (Dr. GRPO)
    The others weigh 0. If S is 0, all do.
    """
    # <solution id="weights" points="6">
    new_B = new_B.double()
    S = in_loss_B.sum().clamp(min=1)
    if aggregate == "tokens":
        denominator_B = (in_loss_B * new_B).sum().clamp(min=1)
    elif aggregate == "sequences":
        denominator_B = S * new_B
    else:
        denominator_B = S * max_new
    return (in_loss_B / denominator_B).float()
    # </solution>


def token_kl(logp_R: Tensor, ref_R: Tensor, estimator: str) -> Tensor:
    """kl_R: KL(pi, pi_ref) estimated from one token each, with d = ref_R - logp_R:

    k1  -d
    k2  d^2 / 2
    k3  exp(d) - d - 1

    from Schulman 2020, "Approximating KL divergence". As in verl for k3, bounded_exp bounds d to
    +-20, and the result is bounded to +-10, so that no unlikely token makes the update infinite.
    Beyond these bounds the gradient is 0.
    """
    # <solution id="kl" points="4">
    d_R = ref_R - logp_R
    if estimator == "k1":
        kl_R = -d_R
    elif estimator == "k2":
        kl_R = d_R.square() / 2
    else:
        kl_R = bounded_exp(d_R) - d_R - 1
    return kl_R.clamp(-10, 10)
    # </solution>


def bounded_exp(log_R: Tensor) -> Tensor:
    """exp of a log-ratio, which is bounded to +-20 first: exp(20) is 5e8, far beyond any clip."""
    return log_R.clamp(-20, 20).exp()


def grpo_loss(logp_R: Tensor, b: Batch, f: Flags) -> tuple[Tensor, dict[str, Tensor]]:
    """-> (loss, counts): this micro-batch's part of -J, and sums over its tokens for the log.

    logp_R, float32, carries gradients; b and counts carry none. With rho = ratio_R, which is
    bounded_exp(log_ratio_R), c = rho clipped to [1 - clip_low, 1 + clip_high], and A = b.adv_R:

              gain of a token                             a token counts as clipped if
    clip      min(rho A, c A); for A < 0 at least         c A < rho A, whatever the dual clip does
              dual_clip A, unless dual_clip is 0
    cispo     c A logp_R, no gradient through c           c != rho

    The gain times the importance weight (--correct), minus beta KL, is summed with the weights w.

    Sources: clip is PPO's surrogate (arXiv 1707.06347, eq. 7), with the dual clip of arXiv
    1912.09729, eq. 5; CISPO arXiv 2506.13585, eq. 4; the ratio of a sequence GSPO (arXiv
    2507.18071, eq. 7); the importance weight for the gap of sampler and trainer TIS (Yao et al.
    2025).
    """
    log_ratio_R = logp_R - b.old_R
    if f.ratio == "sequence":
        log_ratio_R = b.per_token(b.mean_tokens(log_ratio_R))
    # <solution id="surrogate" points="10">
    ratio_R = bounded_exp(log_ratio_R)  # rho_it
    clipped_R = ratio_R.clamp(1 - f.clip_low, 1 + f.clip_high)

    if f.surrogate == "cispo":
        gain_R = clipped_R.detach() * b.adv_R * logp_R
        was_clipped_R = clipped_R != ratio_R
    else:
        gain_R = torch.minimum(ratio_R * b.adv_R, clipped_R * b.adv_R)
        was_clipped_R = clipped_R * b.adv_R < ratio_R * b.adv_R
        if f.dual_clip:
            lowest_R = torch.where(b.adv_R < 0, f.dual_clip * b.adv_R, -torch.inf)
            gain_R = torch.maximum(gain_R, lowest_R)
    # </solution>

    if f.correct != "none":
        log_gap_R = b.old_R - b.sampler_R
        if f.correct == "sequence":  # a product over the sequence: the importance of the whole draw
            log_gap_R = b.per_token(b.sum_tokens(log_gap_R))
        gain_R = gain_R * bounded_exp(log_gap_R).clamp(max=2.0)

    loss_R = -gain_R
    kl_R = torch.zeros_like(logp_R)
    if b.ref_R is not None:
        kl_R = token_kl(logp_R, b.ref_R, f.kl_estimator)  # KL_it
        if f.kl_in == "loss":
            loss_R = loss_R + f.kl * kl_R
    loss = (b.weight_R * loss_R).sum()  # w_i, which holds the global denominator
    # Sums; add_gradients divides them by the tokens of the update.
    return loss, {"clip_fraction": was_clipped_R.sum(), "kl": kl_R.detach().sum()}


# ---- One step ------------------------------------------------------------------------------------


def draw_groups(
    rollout: Rollout, problems: Sequence[data.Problem], start: int, step: int, f: Flags, progress
):
    """-> (the P x G completions of a step, all completions that were drawn for it).

    start: the place in `problems` of the step's first prompt, which is how many were drawn so far.
    With --equal-groups resample, groups of equal rewards are replaced by groups of further prompts,
    twice at most, each time of as many prompts as are missing (DAPO, eq. 11). What is missing then
    is filled with groups of equal rewards, which in_loss() leaves out.
    """
    good, equal, drawn = [], [], []
    for _ in range(3):
        place = start + len(drawn) // f.group
        missing = f.prompts - len(good)
        chosen = [problems[i % len(problems)] for i in range(place, place + missing)]
        new = rollout.draw(chosen, f.group, f.temperature, step, progress=progress)
        drawn += new
        equal_P = all_equal(rewards(new, f).view(missing, f.group))
        for p in range(missing):
            group = new[p * f.group : (p + 1) * f.group]
            if equal_P[p] and f.equal_groups == "resample":
                equal.append(group)
            else:
                good.append(group)
        if len(good) == f.prompts:  # after one round, unless it is resample
            break
    groups = (good + equal)[: f.prompts]
    return [c for group in groups for c in group], drawn


def train_step(
    policy: Model,
    reference: Model | None,
    optimizer,
    scheduler,
    completions: list[Completion],
    f: Flags,
    clock: Clock,
    display: Display | None = None,
) -> dict:
    """All updates on one rollout -> statistics, the same on all ranks (a collective).

    completions: all P x G of the step, the G of a prompt together, the same on all ranks.
    A signal before the first update raises Interrupted, since nothing has changed yet. After a
    later signal the step is finished.
    """
    shares = deal_updates(completions, f, clock.device)
    batches = [b for share in shares for b in share.batches]

    # Log-probs under pi_old and the reference come before the first update changes pi.
    add_log_probs(policy, reference, batches, f, clock)

    reward_B = trained_rewards(completions, batches, f, clock.device)  # r_i
    reward_PG = reward_B.view(f.prompts, f.group)
    adv_B = advantages(reward_PG, f.advantage).flatten()  # A_i
    equal_B = all_equal(reward_PG).repeat_interleave(f.group)
    in_loss_B = in_loss(completions, equal_B, f)
    weight_B = weights_of_updates(completions, in_loss_B, f)  # w_i
    for b in batches:
        b.adv_R = b.per_token(adv_B[b.places])
        b.weight_R = b.per_token(weight_B[b.places])

    sums = defaultdict(float)  # of tensors on the device: adding needs no synchronisation
    norms = []
    with clock.phase("train"):
        for share in shares:
            add_gradients(policy, share, sums, f, clock, display)
            # The norm of the whole gradient: it is a DTensor, sharded over the ranks.
            norm = full(clip_grad_norm_(policy.parameters(), f.clip_grad or math.inf)).item()
            # The last chance to give the step up: from here on it changes the weights.
            clock.give_up_if_asked()
            clock.commit()
            lr = optimizer.param_groups[0]["lr"]
            if math.isfinite(norm):
                optimizer.step()
                norms.append(norm)
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)

    return {
        "reward": reward_B.mean().item(),
        **completion_statistics(completions),
        **over_updates(sums, f.updates),
        "grad_norm": mean(norms) if norms else None,
        "skipped_updates": f.updates - len(norms),
        "lr": lr,
        "equal_groups": equal_B.float().mean().item(),
        "in_loss": in_loss_B.float().mean().item(),
        "micro_batches": len(batches),
        "imbalance": max(share.imbalance for share in shares),
    }


def deal_updates(completions: list[Completion], f: Flags, device) -> list[Share]:
    """This rank's share of each update, which trains on an equal part of the prompts."""
    size = len(completions) // f.updates
    starts = range(0, len(completions), size)
    parts = [range(start, start + size) for start in starts]
    return [deal(completions, part, f.micro_tokens, device) for part in parts]


def weights_of_updates(completions: list[Completion], in_loss_B: Tensor, f: Flags) -> Tensor:
    """weight_B, float32, of all completions of the step; denominators are those of its update."""
    size = len(completions) // f.updates
    new_B = torch.tensor([len(c.ids) for c in completions], device=in_loss_B.device)
    updates = zip(new_B.split(size), in_loss_B.split(size), strict=True)
    weights = [token_weights(new, inside, f.aggregate, f.max_new) for new, inside in updates]
    return torch.cat(weights)


def completion_statistics(completions: list[Completion]) -> dict[str, float]:
    return {
        "accuracy": mean(c.verdict.score for c in completions),
        "length": mean(len(c.ids) for c in completions),
        "truncated": mean(not c.finished for c in completions),
        "no_answer": mean(c.verdict.verdict == "no_answer" for c in completions),
    }


def in_loss(completions: list[Completion], equal_B: Tensor, f: Flags) -> Tensor:
    """in_loss_B, bool: which sequences are in the loss. equal_B: whose group has equal rewards."""
    in_loss_B = torch.ones_like(equal_B)
    if f.equal_groups != "keep":
        in_loss_B &= ~equal_B
    if f.overlong == "mask":
        in_loss_B &= torch.tensor([c.finished for c in completions], device=equal_B.device)
    return in_loss_B


def add_log_probs(
    policy: Model, reference: Model | None, batches: list[Batch], f: Flags, clock: Clock
) -> None:
    """Fill in ref_R if there is a reference, and old_R with several updates or --kl-in reward.

    Otherwise pi is pi_old, and add_gradients takes the log-probs that it computes as old_R.
    """
    with torch.no_grad():
        if f.updates > 1 or f.kl_in == "reward":
            with clock.phase("old"):
                for b in batches:
                    clock.give_up_if_asked()
                    b.old_R, _ = log_probs(policy, b, f.temperature)
        if reference is not None:
            with clock.phase("reference"):
                for b in batches:
                    clock.give_up_if_asked()
                    b.ref_R, _ = log_probs(reference, b, f.temperature)


def trained_rewards(
    completions: list[Completion], batches: list[Batch], f: Flags, device
) -> Tensor:
    """reward_B, float32, of all completions of the step (a collective).

    That is rewards(), minus beta times the KL of the sequence if --kl-in reward.
    """
    reward_B = rewards(completions, f).to(device)
    if f.kl_in == "reward":
        kl_B = torch.zeros_like(reward_B)
        for b in batches:
            kl_B[b.places] = b.sum_tokens(token_kl(b.old_R, b.ref_R, f.kl_estimator))
        dist.all_reduce(kl_B)  # each sequence is on one rank
        reward_B = reward_B - f.kl * kl_B
    return reward_B


def add_gradients(
    policy: Model, share: Share, sums: dict, f: Flags, clock: Clock, display: Display | None
) -> None:
    """Forward and backward of all micro-batches of an update; adds to sums, by name."""
    for done, b in enumerate(share.batches, 1):
        clock.give_up_if_asked()
        # Every backward reduces gradients among shards; among --replicas the last one alone does.
        policy.set_requires_all_reduce(done == len(share.batches))
        logp_R, entropy_R = log_probs(policy, b, f.temperature)
        if b.old_R is None:  # pi is pi_old: the value of rho is 1, its gradient is not 0
            b.old_R = logp_R.detach()
        loss, counts = grpo_loss(logp_R, b, f)
        (loss * dist.get_world_size()).backward()  # FSDP averages over ranks, and the sum is wanted
        sums["loss"] += loss.detach().double()
        counts["entropy"] = entropy_R.detach().sum()
        counts["sampler_gap"] = (b.sampler_R - b.old_R).abs().sum()
        # The log's means are over all completion tokens of the update, also those out of the loss.
        for name, count in counts.items():
            sums[name] += (count / share.completion_tokens).double()
        if display:
            display.micro_batches(done, len(share.batches))


def over_updates(sums: dict[str, Tensor], updates: int) -> dict[str, float]:
    """The sums over all ranks, divided by the number of updates (a collective)."""
    total = torch.stack(list(sums.values()))
    dist.all_reduce(total)
    return dict(zip(sums, (total / updates).tolist(), strict=True))


def lr_factor(done: int, f: Flags) -> float:
    """What the learning rate is multiplied by at the update after `done` others."""
    update = done + 1
    if update <= f.warmup:
        return update / f.warmup
    return 1.0 if f.decay == "none" else 1 / update


def is_due(step: int, f: Flags) -> bool:
    """Whether there is an evaluation after this step."""
    if step in (0, f.steps):
        return True
    if f.eval_every:
        return step % f.eval_every == 0
    return step in {round(2 ** (i / 2)) for i in range(64)}


# ---- The run -------------------------------------------------------------------------------------


def main(f: Flags) -> None:
    if f.plan:
        return plan.show(f.model, f.plan, plan_job(f), f.resume)
    world = int(os.environ.get("WORLD_SIZE", 1))
    check(f, world)
    # The limit of a phase, whose message says more, comes before that of a collective.
    patience = timedelta(minutes=f.timeout + 5)
    device, directory, config = connect(f.model, patience)
    rank = dist.get_rank()
    say = partial(print, flush=True) if rank == 0 else lambda *_: None
    say(f"{f.model}: {config.N:,} parameters and {config.N_total - config.N:,} in embeddings")
    tokenizer = read_tokenizer(directory)
    check_tokenizer(tokenizer, config)
    find_weights(directory, config)

    # The problems to train on and those held out, and how they are asked.
    renderer = data.Renderer(tokenizer, f.template, f.template_args)
    sets = load_problems(f.data, f.eval, f.eval_problems, f.seed, f.prompt)
    sets.drop_long(renderer, f.max_prompt)
    problems = data.order(sets.training, f.reuse, f.steps * f.prompts)
    check_reward(f.reward, problems[0])
    for note in [renderer.describe(), *sets.notes, *warnings_for(f, problems, config)]:
        say(note)

    # The directory of the run: a new one, or one as it was at its newest checkpoint.
    name = f"{Path(f.data).stem}-seed{f.seed}-{datetime.now():%m%d-%H%M%S}"
    flags = dataclasses.asdict(f)
    free = FREE | {"steps"} if f.reuse == 1 else FREE
    opened = open_run(flags, free, Path("runs", name), sets.digests)
    out = opened.run
    for note in opened.notes:
        say(note)
    say(f"{out}: steps {f.steps}, prompts {f.prompts}, group {f.group}; {world} x {device.type}")
    if opened.checkpoint:
        say(f"going on from {opened.checkpoint.name}")

    # The policy and its optimiser, the sampler with its own copy of the weights, and the graders.
    graders = max(1, (os.cpu_count() or 2) // (2 * world))
    with Signals() as signals, Grader(graders, reward=f.reward) as grader:
        progress = Progress()
        clock = Clock(device, signals, f.timeout, progress)
        ledger = Ledger(out, config, clock, flags)
        with clock.phase("loading"), discarded_on_error(opened):
            policy, reference = make_models(f, config, directory, device)
            optimizer, scheduler = make_optimizer(f, policy)
            if opened.checkpoint:
                restore(opened.checkpoint, policy, optimizer, scheduler, progress)
            else:
                load(policy, directory)
            stop_ids = stop_tokens(directory, tokenizer, renderer.end_token)
            sampler = make_sampler(f, config, device, stop_ids, patience)
            copy_weights(policy, sampler.model)
        checkpoints = Checkpoints(out, f.keep, ledger, sets.digests)
        rollout = Rollout(sampler, renderer, grader, f.max_new, f.seed, signals.is_requested)
        display = Display(f.steps, progress.step, f.prompts * f.group, say)
        if progress.step > f.steps:
            say(f"--steps {f.steps}: the run is at step {progress.step} already; nothing is left")

        shown = {}  # step: a few completions of its evaluation
        # Interrupted: a step that had changed nothing, or an evaluation, was given up.
        with closing(sampler), closing(display), suppress(Interrupted):
            # The first evaluation, or one that a signal interrupted or prevented.
            if is_due(progress.step, f) and progress.evaluated_step != progress.step:
                shown[progress.step] = measure(rollout, sets.tests, ledger)
                start = f"step {progress.step}: pass@1 {progress.pass1:.3f}"
                display.print(f"{start} on {sets.describe_first()}")

            while progress.step < f.steps and not clock.stop:
                step = progress.step + 1
                display.begin(step)
                clock.begin(f"step {step}")

                # The prompts of the step; G completions of each, graded.
                with clock.phase("generation"):
                    completions, drawn = draw_groups(
                        rollout, problems, progress.D, step, f, display.completions
                    )

                # Sequences go to ranks and micro-batches, rewards become advantages, and each
                # update ascends J.
                stats = train_step(
                    policy, reference, optimizer, scheduler, completions, f, clock, display
                )

                with clock.phase("weights"):
                    copy_weights(policy, sampler.model)

                # Counts the step (progress.step, progress.D) and writes its line.
                line = ledger.trained(completions, drawn, stats, sampler.preempted)
                if progress.failed_steps == 3:
                    raise Stopped(
                        f"no finite gradient in three steps in a row, at step {step}: "
                        f"try a lower --lr; see {out}"
                    )
                if is_due(step, f) and not clock.stop:
                    shown[step] = measure(rollout, sets.tests, ledger)
                display.row(line, progress.pass1)
                if warning := cannot_learn(progress, stats, f):
                    display.print(warning)
                if step % f.save_every == 0 or step == f.steps:
                    checkpoints.save(policy, optimizer, scheduler)
        # Save the last whole step, if there is one, and wait until it is on disk.
        if progress.step:
            checkpoints.close(policy, optimizer, scheduler)

    again = resume_command(out, f)
    if clock.stop == "disk":
        error = agree(clock.error)
        raise Stopped(f"{error}; earlier checkpoints are whole. To go on from there: {again}")
    if clock.stop:
        return say(f"ended after step {progress.step} of {f.steps}, as asked; to go on:\n{again}")
    try:
        save(policy, directory, out / "final", compute_dtype(device))
    except OSError as error:
        raise Stopped(
            f"{error}; the checkpoints are whole. To go on from there: {again}"
        ) from error
    if rank == 0:
        show_result(out, progress, {"before": shown.get(0), "after": shown.get(f.steps)}, tokenizer)


def resume_command(out: Path, f: Flags) -> str:
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    several = os.environ.get("WORLD_SIZE", "1") != ranks
    nodes = " --nnodes .. --rdzv_endpoint .." if several else ""
    command = f"torchrun{nodes} --nproc_per_node {ranks} grpo.py --resume {shlex.quote(str(out))}"
    # The code of a reward function is run only if the user names it again.
    return command + (f" --reward {shlex.quote(f.reward)}" if f.reward else "")


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU, float32 on a CPU; parameters of the trained policy are float32 everywhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def make_models(f: Flags, config: Config, directory: Path, device) -> tuple[Model, Model | None]:
    """-> (the policy, sharded and not filled yet, the frozen reference or None)."""
    dtype = compute_dtype(device)
    mesh = make_mesh(device.type, f.replicas)
    home = "cpu" if f.offload else device
    with torch.device("meta"):
        policy = Model(config, f.recompute)
    policy = shard(policy, mesh, dtype, f.offload).to_empty(device=home)
    if not f.kl:
        return policy, None
    with torch.device("meta"):
        reference = Model(config).to(dtype)
    reference = shard(reference, mesh, dtype, f.offload).to_empty(device=home)
    return policy, load(reference, directory)


def make_optimizer(f: Flags, policy: Model):
    """-> (AdamW, the schedule of its learning rate)."""
    optimizer = torch.optim.AdamW(
        policy.parameters(), f.lr, betas=(0.9, 0.999), weight_decay=f.weight_decay, fused=True
    )
    factor = partial(lr_factor, f=f)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def make_sampler(
    f: Flags, config: Config, device, stop_ids: list[int], patience: timedelta
) -> Sampler:
    """The sampler and its model, a whole copy or this rank's part of one. No weights yet.

    patience: the time limit of a collective of the ranks that share a copy.
    """
    with torch.device("meta"):
        model = Model(config)
    if f.sampler_tp > 1:
        team, _ = dist.new_subgroups(f.sampler_tp, timeout=patience)
        tensor_parallel(model, team)
    model = model.to(compute_dtype(device)).to_empty(device=device)
    return Sampler(model, stop_ids, f.slots, f.max_prompt + f.max_new, f.kv_gb)


def measure(rollout: Rollout, tests: list[EvaluationSet], ledger: Ledger) -> list[Completion]:
    """Evaluate on every set and write the lines; returns a few completions of the first set."""
    samples = []
    clock = ledger.clock
    clock.begin(f"the evaluation after step {ledger.progress.step}")
    for test in tests:
        with clock.phase("evaluation"):
            result, rows, completions = evaluate(rollout, test)
        ledger.evaluated(result, rows, completions, rollout.sampler.preempted)
        samples = samples or completions[: 3 * test.n : test.n]
    return samples


def show_result(out: Path, p: Progress, shown: dict, tokenizer) -> None:
    """Print some completions, the result, and where to find the curve and the model."""
    for when, completions in shown.items():
        if completions:  # none in a resumed run whose earlier start has shown them
            print(f"\n{when}:\n{show(completions, tokenizer)}")
    before = "" if p.first_pass1 is None else f" (from {p.first_pass1:.3f})"
    print(f"\nstep {p.step}: pass@1 {p.pass1:.3f}{before}")
    print(f"curve: {draw_curve(out)}")
    print(f"model: {out / 'final'}")


# ---- Flags: ranges, rules, warnings --------------------------------------------------------------

# Flags that may change when a run is resumed: they change rounding at most.
FREE = {
    "out", "resume", "micro_tokens", "slots", "kv_gb", "sampler_tp", "recompute", "offload",
    "replicas", "save_every", "keep", "timeout", "log", "plan",
}  # fmt: skip
ANY = math.inf
RANGES = {  # lowest and highest value of every number
    "seed": (-(2**63), 2**63 - 1), "max_prompt": (1, ANY), "max_new": (1, ANY),
    "steps": (1, ANY), "prompts": (1, ANY), "group": (2, ANY), "updates": (1, ANY),
    "reuse": (1, ANY), "temperature": (1e-3, 100),
    "clip_low": (0, 1), "clip_high": (0, ANY), "dual_clip": (0, ANY), "kl": (0, ANY),
    "lr": (0, ANY), "warmup": (0, ANY), "weight_decay": (0, ANY), "clip_grad": (0, ANY),
    "eval_every": (0, ANY), "eval_problems": (1, ANY),
    "micro_tokens": (2, ANY), "slots": (1, ANY), "kv_gb": (1e-6, ANY), "sampler_tp": (1, ANY),
    "replicas": (1, ANY), "save_every": (1, ANY), "keep": (1, ANY), "timeout": (1e-3, 1e6),
}  # fmt: skip


def parse_flags(argv: list[str]) -> Flags:
    """Flags from the command line, from @files, and from the run that --resume names."""
    about = "GRPO post-training of Qwen2.5. Flags can be read from files: @recipes/paper.args"
    f = parse(Flags, argv, about)
    if f.resume in ("", "auto"):
        return f
    stored = from_stored(Flags, read_flags(f.resume), Path(f.resume, "flags.json"))
    if stored.reward not in ("", f.reward):  # a run may come from somebody else: this is code
        raise ValueError(
            f"{f.resume} was made with --reward {stored.reward}, whose code a resumed run executes;"
            f" if you trust it, repeat the flag: --resume {f.resume} --reward {stored.reward}"
        )
    for name in ("eval", "template_args"):  # tyro adds to lists, and new values shall replace them
        if getattr(f, name):
            setattr(stored, name, [])
    return parse(Flags, [*argv, "--out", f.resume], about, default=stored)


def check(f: Flags, world: int) -> None:
    """ValueError for flags that make no run on `world` ranks, or a senseless one."""
    check_numbers(f, RANGES)
    check_choices(f)
    check_team(f.sampler_tp, world)
    teams = world // f.sampler_tp
    longest = f.max_prompt + f.max_new
    sequences = f.prompts // f.updates * f.group
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    shared_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    rules = [
        (f.prompts % f.updates,
         f"--prompts {f.prompts} cannot be divided into --updates {f.updates} equal parts; "
         "make prompts a multiple of updates"),
        (f.prompts % teams,
         f"--prompts {f.prompts} is not a multiple of the {teams} ranks "
         "or teams of --sampler-tp ranks that draw; change it or --nproc_per_node"),
        (sequences % world,
         f"an update has --prompts / --updates x --group = {sequences} sequences, "
         f"not a multiple of the {world} ranks; change one of them"),
        (longest > f.micro_tokens,
         f"--micro-tokens {f.micro_tokens} is less than the longest sequence, "
         f"--max-prompt {f.max_prompt} + --max-new {f.max_new}; raise it"),
        (world % f.replicas,
         f"--replicas {f.replicas} does not divide the {world} ranks; "
         "give the number of nodes, or 1"),
        (f.surrogate == "cispo" and f.dual_clip,
         "--surrogate cispo has no minimum that a dual clip could bound: add --dual-clip 0"),
        (f.ratio == "sequence" and f.correct == "token",
         "--ratio sequence with --correct token: such a ratio weighs a sequence as a whole; "
         "take --correct sequence"),
        (f.kl and f.kl_in == "loss" and f.kl_estimator == "k1",
         "--kl-estimator k1 in the loss has a gradient of zero on average; "
         "take --kl-in reward, or k2 or k3"),
        (f.kl_in == "reward" and not f.kl,
         "--kl-in reward subtracts nothing with --kl 0; give --kl, or leave --kl-in out"),
        (f.equal_groups == "resample" and f.reuse > 1,
         f"--equal-groups resample draws more prompts than --reuse {f.reuse} counts with; "
         "take drop, or no --reuse"),
        (f.equal_groups == "resample" and f.kl_in == "reward",
         "--equal-groups resample compares rewards before --kl-in reward changes them; "
         "take --kl-in loss, or keep"),
        (f.prompt != PROMPT and "{problem}" not in f.prompt,
         f"--prompt {f.prompt!r}: must contain {{problem}}, where the problem is put"),
        (f.log and find_spec(f.log) is None,
         f"--log {f.log}: the package is not installed; "
         f"pip install {f.log}, or leave the flag out"),
        # Restarted workers would find the addresses of dead ones (pytorch issue 135712).
        (restarts and shared_store,
         "--max-restarts needs a fresh store for every start: "
         "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, "
         "with --standalone or --rdzv_backend c10d"),
    ]  # fmt: skip
    for wrong, message in rules:
        if wrong:
            raise ValueError(message)


def warnings_for(f: Flags, problems: Sequence[data.Problem], config: Config) -> list[str]:
    """Sentences about flags and data that make a run, but perhaps not the one that is meant.

    ValueError if there are fewer problems than a step may draw.
    """
    most = f.prompts * (3 if f.equal_groups == "resample" else 1)
    if most > len(problems):
        raise ValueError(
            f"--prompts {f.prompts}: a step may draw {most} prompts, "
            f"and there are {len(problems)}; lower it"
        )
    of_ratio = ("ratio", "surrogate", "clip_low", "clip_high")
    changed = [flag_name(name) for name in of_ratio if getattr(f, name) != getattr(Flags, name)]
    rules = [
        (f.updates == 1 and changed,
         f"{', '.join(changed)}: without effect with --updates 1, where the ratio is always 1; "
         "try --updates 4"),
        (not f.kl and f.kl_estimator != Flags.kl_estimator,
         f"--kl-estimator {f.kl_estimator}: without effect with --kl 0"),
        (f.equal_groups == "drop" and f.kl_in == "reward",
         "--equal-groups drop: hardly any effect with --kl-in reward, since rewards differ then"),
        (config.max_position and f.max_prompt + f.max_new > config.max_position,
         f"--max-prompt {f.max_prompt} + --max-new {f.max_new} exceed the {config.max_position} "
         f"positions that {f.model} was made for"),
    ]  # fmt: skip
    found = [message for applies, message in rules if applies]
    unread = data.unread_format(problems)
    if unread and not f.reward:
        found.append(unread)
    return [f"warning: {message}" for message in found]


def cannot_learn(p: Progress, stats: dict, f: Flags) -> str:
    """A sentence at the fifth step in a row that gave nothing to learn from, else ""."""
    if p.idle_steps != 5:
        return ""
    if stats["truncated"] == 1:
        reason = f"every completion was truncated at --max-new {f.max_new}; raise it"
    elif stats["no_answer"] == 1:
        reason = (
            f"no completion held an answer such as \\boxed{{..}} within --max-new {f.max_new}; "
            "look into samples.jsonl"
        )
    elif stats["reward"] == 0:
        reason = "the mean reward is 0; take easier problems, or a model that solves some of them"
    else:
        reason = f"groups had equal rewards or were masked; mean reward {stats['reward']:.3f}"
    return f"warning: nothing was learned in the last five steps: {reason}"


def plan_job(f: Flags) -> plan.Job:
    """The flags that the planner counts with."""
    eval_n = sum(EvaluationSet.parse(text).n for text in f.eval or [":1:1"])
    flags = dataclasses.asdict(f)
    names = [known.name for known in dataclasses.fields(plan.Job) if known.name in flags]
    return plan.Job(**{name: flags[name] for name in names}, eval_n=eval_n)


if __name__ == "__main__":
    explain(lambda: main(parse_flags(sys.argv[1:])))
