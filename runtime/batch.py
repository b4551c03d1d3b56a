"""What a step trains on: groups drawn, dealt to ranks and micro-batches by tokens, laid end to end, sent through the model.

Nothing here knows the loss. What a loss needs of a sequence (advantage, weight) is one number, which Batch.spread repeats for
each of its tokens; since that number holds the denominator of the whole update, the cut made here cannot change a gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from data import Problem
from model import Model, packed_attention
from rollout import Completion


def mixed(group: list[Completion]) -> bool:
    """Whether the grades differ, before any penalty: a group of equal ones says nothing about which completion is better."""
    return len({c.verdict.score for c in group}) > 1


def draw(answer: Callable, problems: Sequence[Problem], start: int, f) -> tuple[list[Completion], list[Completion]]:
    """-> (the P x G completions of a step, all that were drawn for it); answer(some problems) gives the G of each.

    The curriculum goes on from place `start`. With resample, groups of equal grades give way to those of further prompts, drawn
    in rounds of as many as are missing (DAPO, eq. 11); what is missing after the last round they fill, outside the loss.
    """
    good, equal, drawn = [], [], []
    for _ in range(f.rounds if f.equal_groups == "resample" else 1):
        first = start + len(drawn) // f.group
        new = answer([problems[i % len(problems)] for i in range(first, first + f.prompts - len(good))])
        drawn += new
        for group in (new[i : i + f.group] for i in range(0, len(new), f.group)):
            (good if f.equal_groups != "resample" or mixed(group) else equal).append(group)
        if len(good) == f.prompts:
            break
    return [c for group in [*good, *equal][: f.prompts] for c in group], drawn


def pack(length_B: list[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """Deals sequences to ranks and micro-batches: indices as [rank][micro-batch][...], none with more than `budget` tokens.

    Every rank gets the same number of micro-batches, as few as the budget allows, and no empty one, since each is a
    collective forward. Longest first into the emptiest bin, which leaves the bins within one sequence of each other.
    """
    if max(length_B) > budget or len(length_B) < ranks:
        raise ValueError(f"{len(length_B)} sequences of up to {max(length_B)} tokens do not fit {ranks} ranks with "
                         f"micro-batches of {budget} tokens")
    n = -(-sum(length_B) // (ranks * budget))
    while True:
        bins, load = [[] for _ in range(ranks * n)], [0] * (ranks * n)
        for i in sorted(range(len(length_B)), key=lambda i: (-length_B[i], i)):
            b = load.index(min(load))
            bins[b].append(i)
            load[b] += length_B[i]
        if max(load) <= budget:
            return [bins[r::ranks] for r in range(ranks)]
        n += 1


@dataclass
class Batch:
    """A micro-batch of B sequences. R indexes completion tokens, one sequence after the other; row_R is where each is predicted
    from. The fields without a value here are filled in by train_step as they become known."""

    places: list[int]  # of the sequences, among all of the step
    token_T: Tensor
    position_T: Tensor
    length_B: list[int]  # prompts included
    new_B: list[int]  # tokens of each completion
    row_R: Tensor
    target_R: Tensor
    sampler_R: Tensor  # log-probs under the sampler
    old_R: Tensor | None = None  # under the policy that drew them, by the trainer's own forward
    ref_R: Tensor | None = None  # under the frozen start
    adv_R: Tensor | None = None
    weight_R: Tensor | None = None  # what a token's term counts in the loss

    def spread(self, x_B: Tensor) -> Tensor:
        """x_R: for every token the value of its sequence."""
        return x_B.repeat_interleave(torch.tensor(self.new_B, device=x_B.device), output_size=sum(self.new_B))

    def reduce(self, x_R: Tensor, how) -> Tensor:
        """x_B: torch.sum or torch.mean, over the tokens of every sequence."""
        return torch.stack([how(x_t) for x_t in x_R.split(self.new_B)])


def make_batch(done: list[Completion], places: list[int], device) -> Batch:
    """The micro-batch of the completions at these places."""
    token, position, row, target, logp = [], [], [], [], []
    for c in (done[i] for i in places):
        start = len(token) + len(c.prompt) - 1
        token += c.prompt + c.ids
        position += range(len(c.prompt) + len(c.ids))
        row += range(start, start + len(c.ids))
        target += c.ids
        logp += c.logp
    token_T, position_T, row_R, target_R = (torch.tensor(x, device=device) for x in (token, position, row, target))
    length_B, new_B = [len(done[i].prompt) + len(done[i].ids) for i in places], [len(done[i].ids) for i in places]
    return Batch(places, token_T, position_T, length_B, new_B, row_R, target_R, torch.tensor(logp, device=device))


def deal(done: list[Completion], part: Sequence[int], budget: int, device) -> tuple[list[Batch], list[int]]:
    """-> (this rank's micro-batches of the completions at the places in `part`, the tokens that each rank gets of them)."""
    length_B = [len(done[i].prompt) + len(done[i].ids) for i in part]
    dealt = pack(length_B, dist.get_world_size(), budget)
    mine = [make_batch(done, [part[i] for i in micro], device) for micro in dealt[dist.get_rank()]]
    return mine, [sum(length_B[i] for micro in micros for i in micro) for micros in dealt]


def log_probs(model: Model, b: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """(logp_R, entropy_R), float32, of the batch's completion tokens under the model at the sampling temperature."""
    attend = packed_attention(b.length_B, b.token_T.device)
    return model(b.token_T, b.position_T, attend, b.row_R, b.target_R, temperature)
