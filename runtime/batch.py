"""How the completions of a step are dealt to ranks and micro-batches, and packed end to end.

Nothing here knows the loss. The loss needs two numbers of a sequence, its advantage and its weight,
and per_token repeats them for each token. The weight holds the denominator of the whole update, so
a gradient does not depend on how the completions are dealt.

Letters: B sequences of a micro-batch, T packed tokens, R completion tokens among them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from kernels import ceil_div
from model import Model, packed_attention
from rollout import Completion


@dataclass
class Batch:
    """A micro-batch of B sequences. R indexes completion tokens, one sequence after the other.

    grpo.train_step fills in the fields that are None at first, as they become known.
    """

    places: list[int]  # indices of the sequences among all completions of the step
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
    """This rank's micro-batches of an update, and the tokens of all ranks."""

    batches: list[Batch]
    completion_tokens: int  # of all ranks
    load: list[int]  # tokens of each rank

    @property
    def imbalance(self) -> float:
        """How much more than the mean the busiest rank has: 0.1 is 10%."""
        return max(self.load) * len(self.load) / sum(self.load) - 1


def pack(length_B: list[int], ranks: int, budget: int) -> list[list[list[int]]]:
    """Deal sequences to ranks and micro-batches of at most `budget` tokens.

    Returns indices into length_B as [rank][micro-batch][...]. Every rank gets the same number of
    micro-batches, none of them empty, since each is a collective forward.

    A greedy algorithm fills bins, one for each micro-batch: the longest sequence goes first, each
    into the emptiest bin. Of equally long sequences the first in length_B comes first, of equally
    empty bins the first one is taken. If a bin then exceeds the budget, it starts again with one
    more micro-batch on every rank; it begins with the fewest that could hold all tokens. Rank r
    gets the bins r, r + ranks, r + 2 ranks, ..

    ValueError if a sequence exceeds the budget, there are fewer sequences than ranks, or a bin
    would stay empty.
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

    See Batch for its fields. c.prompt, c.ids and c.logp of a completion c are lists. The last token
    of a prompt predicts the first token of its completion.
    """
    # <solution id="packing" points="4">
    token, position, row, target, sampler = [], [], [], [], []
    length_B, new_B = [], []
    for place in places:
        c = completions[place]
        length = len(c.prompt) + len(c.ids)
        # The last prompt token predicts the first completion token.
        first_row = len(token) + len(c.prompt) - 1
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
    """This rank's share of an update on the completions at the places in `part`."""
    trained = [completions[place] for place in part]
    length_B = [len(c.prompt) + len(c.ids) for c in trained]
    dealt = pack(length_B, dist.get_world_size(), budget)
    load = []
    for micro_batches in dealt:
        load.append(sum(length_B[i] for i in chain(*micro_batches)))
    batches = []
    for micro_batch in dealt[dist.get_rank()]:
        places = [part[i] for i in micro_batch]
        batches.append(make_batch(completions, places, device))
    return Share(batches, sum(len(c.ids) for c in trained), load)


def log_probs(model: Model, b: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """-> (logp_R, entropy_R), float32, of the completion tokens under the model.

    temperature: that of sampling.
    """
    attend = packed_attention(b.length_B, b.token_T.device)
    return model(b.token_T, b.position_T, attend, b.row_R, b.target_R, temperature)
