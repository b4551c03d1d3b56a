"""How the completions of a step are shared out: dealt to ranks and micro-batches by tokens, and
packed end to end.

Nothing here knows the loss. What the loss needs of a sequence (its advantage, its weight) is one
number, which per_token repeats for each of its tokens. The weight holds the denominator of the
whole update, so the shares cannot change a gradient.

Letters: B sequences of a micro-batch, T packed tokens, R completion tokens among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from kernels import ceil_div
from model import Model, packed_attention
from rollout import Completion


@dataclass
class Batch:
    """A micro-batch of B sequences. R indexes completion tokens, one sequence after the other.

    The fields that are None at first are filled in by grpo.train_step as they become known.
    """

    places: list[int]  # of the sequences, among all completions of the step
    token_T: Tensor  # int64, prompts and completions end to end
    position_T: Tensor  # int64, of each token in its own sequence
    length_B: list[int]  # tokens of each sequence, prompt included
    new_B: list[int]  # tokens of each completion
    row_R: Tensor  # int64, index into T of the token that each completion token is predicted from
    target_R: Tensor  # int64, the completion tokens
    sampler_R: Tensor  # float32, log-probs under the sampler
    old_R: Tensor | None = None  # log-probs under pi_old, by the trainer's own forward
    ref_R: Tensor | None = None  # log-probs under the reference policy
    adv_R: Tensor | None = None  # A_i
    weight_R: Tensor | None = None  # w_i

    def per_token(self, x_B: Tensor) -> Tensor:
        """x_R: for every token the value of its sequence."""
        new_B = torch.tensor(self.new_B, device=x_B.device)
        return x_B.repeat_interleave(new_B, output_size=sum(self.new_B))

    def sum_tokens(self, x_R: Tensor) -> Tensor:
        """x_B: the sum over the tokens of every sequence."""
        return torch.stack([x_t.sum() for x_t in x_R.split(self.new_B)])

    def mean_tokens(self, x_R: Tensor) -> Tensor:
        """x_B: the mean over the tokens of every sequence."""
        return torch.stack([x_t.mean() for x_t in x_R.split(self.new_B)])


@dataclass
class Share:
    """What one update trains on: this rank's micro-batches, and what all ranks have together."""

    batches: list[Batch]
    completion_tokens: int  # of all ranks
    load: list[int]  # tokens of each rank

    @property
    def imbalance(self) -> float:
        """How much more than the mean the busiest rank has: 0.1 is 10%."""
        return max(self.load) * len(self.load) / sum(self.load) - 1


def pack(length_B: list[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """Deal sequences to ranks and micro-batches of at most `budget` tokens: indices as
    [rank][micro-batch][...].

    Every rank gets the same number of micro-batches, none of them empty, since each is a collective
    forward. Starting from the fewest that could hold all tokens, their number grows until this
    greedy way fits: the longest sequence goes first, each into the emptiest bin. Of equally long
    sequences the first in length_B comes first, of equally empty bins the first one is taken; rank
    r gets the bins r, r + ranks, r + 2 ranks, .. ValueError if a sequence exceeds the budget, there
    are fewer sequences than ranks, or a bin would stay empty.
    """
    if max(length_B) > budget or len(length_B) < ranks:
        raise ValueError(
            f"{len(length_B)} sequences of up to {max(length_B)} tokens do not fit {ranks} ranks "
            f"with micro-batches of {budget} tokens"
        )
    # <solution id="packing" points="4">
    longest_first = sorted(range(len(length_B)), key=lambda i: -length_B[i])
    per_rank = ceil_div(sum(length_B), ranks * budget)
    while True:
        if ranks * per_rank > len(length_B):
            raise ValueError(
                f"{len(length_B)} sequences cannot fill {per_rank} micro-batches on each of "
                f"{ranks} ranks; raise --micro-tokens, {budget}"
            )
        bins = [[] for _ in range(ranks * per_rank)]
        load = [0] * len(bins)
        for i in longest_first:
            emptiest = load.index(min(load))
            bins[emptiest].append(i)
            load[emptiest] += length_B[i]
        if max(load) <= budget:
            return [bins[rank::ranks] for rank in range(ranks)]
        per_rank += 1
    # </solution>


def make_batch(completions: list[Completion], places: list[int], device) -> Batch:
    """The micro-batch of the completions at these places, packed end to end in this order.

    See Batch for its fields; of a completion c, c.prompt, c.ids and c.logp are lists. The last
    token of a prompt predicts the first one of its completion.
    """
    # <solution id="packing" points="4">
    token, position, row, target, sampler = [], [], [], [], []
    length_B, new_B = [], []
    for place in places:
        c = completions[place]
        length = len(c.prompt) + len(c.ids)
        first_row = (
            len(token) + len(c.prompt) - 1
        )  # the last prompt token predicts the first completion token
        token += c.prompt + c.ids
        position += range(length)
        row += range(first_row, first_row + len(c.ids))
        target += c.ids
        sampler += c.logp
        length_B.append(length)
        new_B.append(len(c.ids))
    return Batch(
        places=places,
        token_T=torch.tensor(token, device=device),
        position_T=torch.tensor(position, device=device),
        length_B=length_B,
        new_B=new_B,
        row_R=torch.tensor(row, device=device),
        target_R=torch.tensor(target, device=device),
        sampler_R=torch.tensor(sampler, device=device),
    )
    # </solution>


def deal(completions: list[Completion], part: Sequence[int], budget: int, device) -> Share:
    """This rank's share of the completions at the places in `part`, which one update trains on."""
    length_B = [len(completions[place].prompt) + len(completions[place].ids) for place in part]
    dealt = pack(length_B, dist.get_world_size(), budget)
    load = []
    for micro_batches in dealt:
        load.append(sum(length_B[i] for micro_batch in micro_batches for i in micro_batch))
    mine = []
    for micro_batch in dealt[dist.get_rank()]:
        mine.append(make_batch(completions, [part[i] for i in micro_batch], device))
    return Share(mine, sum(len(completions[place].ids) for place in part), load)


def log_probs(model: Model, b: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """(logp_R, entropy_R), float32, of the completion tokens under the model at the sampling
    temperature."""
    attend = packed_attention(b.length_B, b.token_T.device)
    return model(b.token_T, b.position_T, attend, b.row_R, b.target_R, temperature)
