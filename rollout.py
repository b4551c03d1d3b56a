"""Rollouts: draw completions from the policy, and have them graded.

    next token ~ softmax(logits / temperature), drawn as argmax(logits / temperature + Gumbel noise)

The noise is a hash of (seed, step, problem, sample, position), where position counts the tokens of
the completion. Up to rounding, a sample therefore does not depend on the rest of the batch, the
number of ranks, or preemption. There is no top-k or top-p: the trainer differentiates the same
distribution that the sampler draws from.

Read in this order:
- `naive_generate` says what is drawn: a forward over the whole sequence for every token.
- `Scheduler` decides on the host, with deques and integers, which sequences run and which pages of
  the key-value cache they use.
- `Runner` computes on the device: prefill, and a decode step whose results all land in preallocated
  tensors and which never synchronises with the host. `StepGraphs` replays such steps as CUDA
  graphs.
- `Sampler` joins the two. It draws what `naive_generate` draws, many times as fast.
- `Rollout` draws with a sampler, has the samples graded and gathers them on every rank.

Letters: P prompts, G samples of each, B slots (a slot holds one running sequence, or is empty),
T packed tokens, R rows of logits, N pages of S tokens, M pages of a sequence, L tokens of a
sequence, H and J query and key-value heads of size K, V vocabulary.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.answers import submit
from data import Problem
from kernels import ceil_div
from kernels.paged import decode, locate_keys, write_kv
from kernels.sample import position_key, sample, scales, sequence_key, token_key
from model import Linear, Model, packed_attention, read_json
from reward import Grader, Verdict


class Interrupted(Exception):
    """The run was asked to end, and the work in progress was given up."""


@dataclass
class Sample:
    """One completion.

    p: index in the list of prompts. g: which of the G completions of the prompt.
    ids: the tokens drawn, with the end token if it came.
    logp: their natural log-probabilities under the sampler at its temperature.
    finished: the end token came; otherwise the completion is truncated.
    """

    p: int
    g: int
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    finished: bool = False


# ---- The naive sampler: what is drawn -----------------------------------------------------------


@torch.inference_mode()
def naive_generate(
    model: Model,
    prompts: list[list[int]],
    G: int,
    max_new: int,
    temperature: float,
    seed: int,
    step: int,
    problems: Sequence[int],
    stop_ids: Sequence[int],
) -> list[Sample]:
    """G completions of every prompt, without batches and without a cache: the oracle of the tests.

    Otherwise like `Sampler.generate`.
    """
    device = model.head.weight.device
    samples = [Sample(p, g) for p in range(len(prompts)) for g in range(G)]
    for s in samples:
        while len(s.ids) < max_new and not s.finished:
            token_T = torch.tensor(prompts[s.p] + s.ids, device=device)
            T = len(token_T)
            position_T = torch.arange(T, device=device)
            logits_TV = model(token_T, position_T, packed_attention([T], device))
            key = token_key(seed, step, problems[s.p], s.g, len(s.ids))
            key_1 = key.view(1).to(device)
            token_1, logp_1 = sample(logits_TV[-1:], temperature, key_1)
            s.ids.append(token_1.item())
            s.logp.append(logp_1.item())
            s.finished = s.ids[-1] in stop_ids
    return samples


# ---- The host: which sequences run, and which pages they use ------------------------------------


@dataclass(eq=False)
class Request:
    """A sample to draw, and what its sequence holds while it runs."""

    sample: Sample
    prompt: list[int]
    limit: int  # most tokens to draw
    key: int  # sequence_key of its noise
    slot: int = -1
    pages: list[int] = field(default_factory=list)
    length: int = 0  # tokens in the cache at the last synchronisation


@dataclass(eq=False)
class Group:
    """Requests that continue one prefix: the samples of a prompt, or one preempted sequence."""

    prefix: list[int]
    requests: deque[Request]  # those that have not started
    pages: list[int] = field(default_factory=list)  # of the prefix, once it is prefilled
    logits_V: Tensor | None = None  # after the last token of the prefix


class Pages:
    """The free pages, and how many sequences use each page: a group shares its full pages."""

    def __init__(self, N: int):
        self.free = deque(range(N))
        self.uses = [0] * N

    def take(self, count: int) -> list[int]:
        taken = [self.free.popleft() for _ in range(count)]
        self.share(taken)
        return taken

    def share(self, pages: list[int]) -> None:
        for page in pages:
            self.uses[page] += 1

    def release(self, pages: list[int]) -> None:
        for page in pages:
            self.uses[page] -= 1
            if self.uses[page] == 0:
                self.free.append(page)


@dataclass(eq=False)
class Scheduler:
    """Continuous batching: requests start in order, ended ones make room for waiting ones."""

    waiting: deque[Group]
    pages: Pages
    S: int  # tokens of a page
    slots: int  # most requests that run together
    sync_every: int  # decode steps between two synchronisations
    prefill_tokens: int  # most tokens of prefixes that are prefilled together
    running: list[Request] = field(default_factory=list)  # the oldest first, in slots 0, 1, 2, ..

    def admit(self) -> tuple[list[Group], list[tuple[Group, Request]]]:
        """Give slots and pages to waiting requests: (groups to prefill, requests to start).

        Nothing starts while fewer slots are free than slots // 8 or the waiting groups, whichever
        is less, and at least 1. Then groups are taken in their order, up to the first one for which

        - no slot is free,
        - fewer pages are free than the pages that its prefix still needs, and two more, or
        - prefill_tokens would be exceeded: by the prefixes to prefill, if it is not the first one.

        A group whose prefix has no pages takes them and is to be prefilled. Then min(its requests,
        free slots, free pages - 1) of its requests start. At the end, groups at the front with no
        request left release their pages and leave the queue.
        """
        # A prefill costs a forward pass, so several slots are filled at a time.
        enough = max(1, min(self.slots // 8, len(self.waiting)))
        if self.slots - len(self.running) < enough:
            return [], []
        if not self.running:
            # Nothing runs, so only waiting prefixes hold pages. Without them the first group fits.
            while self._release_prefix():
                pass
        # <solution id="scheduler" points="7">
        fresh = []
        tokens = 0
        started = []
        for group in self.waiting:
            room = self.slots - len(self.running)
            need = 0 if group.pages else ceil_div(len(group.prefix), self.S)
            # A request takes one page at its start. Another one must be free, or the first request
            # to grow would be preempted at once.
            if room == 0 or len(self.pages.free) < need + 2:
                break
            if not group.pages:
                tokens += len(group.prefix)
                if fresh and tokens > self.prefill_tokens:
                    break
                group.pages = self.pages.take(need)
                fresh.append(group)
            count = min(room, len(group.requests), len(self.pages.free) - 1)  # one stays free
            started += [(group, self._start(group)) for _ in range(count)]
        # The caller fills these pages and copies from them before any page is taken again, so they
        # can be released now.
        while self.waiting and not self.waiting[0].requests:
            self.pages.release(self.waiting.popleft().pages)
        return fresh, started
        # </solution>

    def _start(self, group: Group) -> Request:
        """Start the next request of a group: it shares the full pages, and gets one of its own."""
        request = group.requests.popleft()
        shared = group.pages[: len(group.prefix) // self.S]
        self.pages.share(shared)
        request.pages = shared + self.pages.take(1)
        request.length = len(group.prefix)
        request.slot = len(self.running)
        self.running.append(request)
        return request

    def update(self, length_B: list[int], done_B: list[int]) -> list[Request]:
        """Note what the device reports of each slot; remove and return the requests that ended."""
        ended = []
        for request, length, done in zip(self.running, length_B, done_B, strict=True):
            request.length = length
            if done:
                self.pages.release(request.pages)
                ended.append(request)
        if ended:
            self.running = [request for request in self.running if not done_B[request.slot]]
        return ended

    def grow(self) -> tuple[list[Request], list[Request]]:
        """Allocate the pages that the next decode steps may fill: (grown, preempted requests).

        If pages run out, waiting prefixes lose theirs, one by one; if that is not enough, the
        youngest requests are preempted: they leave `running` and release their pages. Then each
        request gets the pages that it misses. grown: those that got some, the oldest first;
        preempted: the youngest first.
        """
        # <solution id="scheduler" points="5">
        missing = [self._missing(request) for request in self.running]
        preempted = []
        while sum(missing) > len(self.pages.free):
            if self._release_prefix():
                continue
            victim = self.running.pop()
            missing.pop()
            self.pages.release(victim.pages)
            preempted.append(victim)
        grown = []
        for request, count in zip(self.running, missing, strict=True):
            if count > 0:
                request.pages += self.pages.take(count)
                grown.append(request)
        return grown, preempted
        # </solution>

    def _missing(self, request: Request) -> int:
        """Pages that a request needs beyond its own until the next synchronisation."""
        tokens = request.length + self.sync_every - len(request.pages) * self.S
        return ceil_div(tokens, self.S) if tokens > 0 else 0

    def _release_prefix(self) -> bool:
        """Release the pages of the last waiting group that has some; False if there is none."""
        for group in reversed(self.waiting):
            if group.pages:
                self.pages.release(group.pages)
                group.pages = []
                group.logits_V = None
                return True
        return False

    def requeue(self, preempted: list[Request]) -> None:
        """Put preempted requests, which come youngest first, in front of the queue, so that the
        oldest is in front; what they have drawn becomes part of their prefix."""
        for request in preempted:
            prefix = request.prompt + request.sample.ids
            self.waiting.appendleft(Group(prefix, deque([request])))

    def compact(self) -> list[int]:
        """Number the slots without gaps; returns the old slots in the new order."""
        kept = [request.slot for request in self.running]
        for slot, request in enumerate(self.running):
            request.slot = slot
        return kept


# ---- The device: prefill and decode -------------------------------------------------------------


@dataclass
class State:
    """What the device knows of B slots; int64 unless the comment says otherwise."""

    token_B: Tensor  # the token to feed next
    length_B: Tensor  # tokens in the cache
    drawn_B: Tensor  # tokens drawn
    limit_B: Tensor  # most tokens to draw
    key_B: Tensor  # sequence_key of the noise
    done_B: Tensor  # bool: the sequence has ended, or the slot is empty
    page_BM: Tensor  # int32: pages of the sequence
    id_BL: Tensor  # the tokens drawn
    logp_BL: Tensor  # float32: their log-probabilities

    def part(self, rows: slice) -> "State":
        """Views of some slots."""
        return State(*(x[rows] for x in vars(self).values()))


def new_state(B: int, M: int, L: int, device: torch.device) -> State:
    """B empty slots."""
    numbers = [torch.zeros(B, dtype=torch.int64, device=device) for _ in range(5)]
    done_B = torch.ones(B, dtype=torch.bool, device=device)
    page_BM = torch.zeros(B, M, dtype=torch.int32, device=device)
    id_BL = torch.zeros(B, L, dtype=torch.int64, device=device)
    logp_BL = torch.zeros(B, L, device=device)
    return State(*numbers, done_B, page_BM, id_BL, logp_BL)


def new_cache(model: Model, slots: int, M: int, S: int, kv_gb: float) -> Tensor:
    """Zeros (layers, 2, N, S, J, K): pages for slots that use up to M each, within kv_gb GB."""
    c = model.config
    weight = model.model["layers"][0].self_attn.k_proj.weight
    J = len(weight) // c.K  # under tensor parallelism this rank's share
    page_bytes = 2 * c.layers * S * J * c.K * weight.dtype.itemsize
    # Beyond its M pages a sequence uses the last page of its prompt while it starts; `admit` asks
    # for two pages more than the prompt needs.
    N = min(slots * (M + 1) + 2, int(kv_gb * 1e9 / page_bytes))
    if N < M + 2:
        raise ValueError(
            f"a cache of {kv_gb:g} GB holds {N * S:,} tokens, but one sequence needs room for "
            f"{(M + 2) * S:,}, {(M + 2) * page_bytes / 1e9:.2g} GB; raise --kv-gb, or lower "
            "--max-prompt or --max-new"
        )
    return torch.zeros(c.layers, 2, N, S, J, c.K, dtype=weight.dtype, device=weight.device)


class Runner:
    """Computes on the device, in tensors that live as long as the sampler.

    kv: the cache, (layers, 2, N, S, J, K), keys first, then values.
    """

    def __init__(self, model: Model, kv: Tensor, state: State, stop_ids: Sequence[int]):
        V = model.config.V
        self.model = model
        self.device = kv.device
        self.kv = kv
        self.S = kv.shape[3]
        self.state = state
        self.stop_V = torch.zeros(V, dtype=torch.bool, device=self.device)
        self.stop_V[[i for i in stop_ids if i < V]] = True
        self.scales = torch.zeros(2, device=self.device)  # see kernels.sample.scales
        self.temperature: float | Tensor = self.scales

    def begin(self, temperature: float, on_device: bool) -> None:
        """Empty every slot, since an interrupted call may have left sequences there.

        on_device: steps read the temperature from a tensor, as graphs must. With a number, greedy
        decoding makes no noise, which is faster on a CPU.
        """
        self.state.done_B.fill_(True)
        self.scales.copy_(scales(temperature, self.device))
        self.temperature = self.scales if on_device else temperature

    def prefill(self, groups: list[Group]) -> Tensor:
        """Run the prefixes packed, store their keys and values; returns logits_RV after each."""
        tokens = []
        positions = []
        entries = []  # where the keys and values go
        for group in groups:
            length = len(group.prefix)
            tokens += group.prefix
            positions += range(length)
            entries += [group.pages[i // self.S] * self.S + i % self.S for i in range(length)]
        token_T = torch.tensor(tokens, device=self.device)
        position_T = torch.tensor(positions, device=self.device)
        entry_T = torch.tensor(entries, device=self.device)
        length_R = [len(group.prefix) for group in groups]
        last_R = torch.tensor(length_R, device=self.device).cumsum(0) - 1
        causal = packed_attention(length_R, self.device)

        def attend(layer, q_THK, k_TJK, v_TJK):
            write_kv(self.kv[layer], k_TJK, v_TJK, entry_T)
            return causal(layer, q_THK, k_TJK, v_TJK)

        return self.model(token_T, position_T, attend, last_R)

    def start(self, started: list[tuple[Group, Request]]) -> None:
        """Fill the slots of new requests, and draw their next tokens from the groups' logits.

        Keys and values of these tokens enter the cache with the next decode step.
        """
        self._copy_last_pages(started)
        requests = [request for _, request in started]
        first = requests[0].slot
        state = self.state.part(slice(first, first + len(requests)))
        numbers = [(r.length, len(r.sample.ids), r.limit, r.key) for r in requests]
        number_4B = torch.tensor(numbers, device=self.device).T
        fields = (state.length_B, state.drawn_B, state.limit_B, state.key_B)
        for field_B, number_B in zip(fields, number_4B, strict=True):
            field_B.copy_(number_B)
        state.done_B.fill_(False)
        self.write_tables(requests)
        for row, request in enumerate(requests):
            s = request.sample
            if s.ids:  # preempted before: its tokens stay
                state.id_BL[row, : len(s.ids)] = torch.tensor(s.ids, device=self.device)
                state.logp_BL[row, : len(s.ids)] = torch.tensor(s.logp, device=self.device)
        self.draw(state, torch.stack([group.logits_V for group, _ in started]))

    def _copy_last_pages(self, started: list[tuple[Group, Request]]) -> None:
        """Copy the partly filled last page of a prefix, since each sequence writes into its own."""
        pairs = [(g.pages[-1], r.pages[-1]) for g, r in started if len(g.prefix) % self.S]
        if pairs:
            source, target = zip(*pairs, strict=True)
            self.kv[:, :, target] = self.kv[:, :, source]

    def decode_step(self, B: int, M: int) -> None:
        """Draw one token for each live sequence in the first B slots, of at most M pages each.

        A CUDA graph can hold this step: no size and no launch depends on a value, nothing is read
        back, and everything that outlasts the step is written in place.
        """
        state = self.state.part(slice(0, B))
        page_BM = state.page_BM[:, :M]
        column_B1 = (state.length_B // self.S)[:, None]
        # From the whole table, since the old length of a done slot may point beyond column M.
        page_B = state.page_BM.gather(1, column_B1)[:, 0]
        entry_B = page_B * self.S + state.length_B % self.S
        entry_B = entry_B.masked_fill(state.done_B, -1)  # a done slot writes nothing
        seen_B = (state.length_B + 1).masked_fill(state.done_B, 0).int()  # and reads nothing
        # The kernel reads the tables as they are; torch on a CPU needs the pages in a row.
        located = None if self.kv.is_cuda else locate_keys(self.kv[0], page_BM, seen_B)

        def attend(layer, q_BHK, k_BJK, v_BJK):
            write_kv(self.kv[layer], k_BJK, v_BJK, entry_B)
            return decode(q_BHK, self.kv[layer], page_BM, seen_B, located)

        # The position of the token is the number of tokens before it.
        logits_BV = self.model(state.token_B, state.length_B, attend)
        state.length_B.add_(~state.done_B)
        self.draw(state, logits_BV)

    def draw(self, state: State, logits_BV: Tensor) -> None:
        """Draw and record a token for every slot, and mark the sequences that end with it."""
        key_B = position_key(state.key_B, state.drawn_B)
        token_B, logp_B = sample(logits_BV, self.temperature, key_B)
        # A sequence that has ended goes on drawing, into the column behind its own tokens. That
        # column exists, since drawn <= max_len - tokens of the prompt < max_len.
        column_B1 = state.drawn_B[:, None]
        state.id_BL.scatter_(1, column_B1, token_B[:, None])
        state.logp_BL.scatter_(1, column_B1, logp_B[:, None])
        state.token_B.copy_(token_B)
        state.drawn_B.add_(~state.done_B)
        state.done_B |= self.stop_V[token_B] | (state.drawn_B >= state.limit_B)

    def read(self, B: int) -> tuple[list[int], list[int], list[int]]:
        """(length, drawn, done) of the first B slots. Here the host waits for the device."""
        state = self.state
        number_3B = torch.stack((state.length_B, state.drawn_B, state.done_B.long()))
        return number_3B[:, :B].tolist()

    def collect(self, s: Sample, slot: int, drawn: int) -> None:
        """Copy what a slot has drawn into its sample."""
        s.ids = self.state.id_BL[slot, :drawn].tolist()
        s.logp = self.state.logp_BL[slot, :drawn].tolist()

    def compact(self, kept: list[int], B: int) -> None:
        """Move the slots `kept`, of the first B, to the front; empty the slots behind them."""
        kept_B = torch.tensor(kept, dtype=torch.int64, device=self.device)
        for x in vars(self.state).values():
            x[: len(kept)] = x[kept_B]
        self.state.done_B[len(kept) : B] = True

    def write_tables(self, requests: list[Request]) -> None:
        """Copy the page lists of these requests to the device."""
        if not requests:
            return
        width = max(len(request.pages) for request in requests)
        rows = [request.pages + [0] * (width - len(request.pages)) for request in requests]
        slot_B = torch.tensor([request.slot for request in requests], device=self.device)
        page_BM = torch.tensor(rows, dtype=torch.int32, device=self.device)
        self.state.page_BM[slot_B, :width] = page_BM


class StepGraphs:
    """Replays decode steps as CUDA graphs, because launching a step takes longer than the step.

    Sizes are rounded up to a few, each captured when it is first met. The rows beyond the running
    sequences are empty slots. Without CUDA the step of the rounded size runs as it is.
    """

    def __init__(self, runner: Runner):
        self.runner = runner
        self.captured = {}  # (rows, pages): graph
        self.cuda = runner.device.type == "cuda"
        # Graphs run one at a time, so they can share their memory.
        self.pool = torch.cuda.graph_pool_handle() if self.cuda else None

    def decode_step(self, B: int, M: int) -> None:
        B, M = self.rounded(B, M)
        if graph := self.captured.get((B, M)):
            graph.replay()
            return
        # The first step compiles kernels, and cuBLAS and NCCL allocate: a capture forbids both.
        # Capturing only records the step, without running it.
        self.runner.decode_step(B, M)
        if self.cuda:
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may go on using the GPU.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                self.runner.decode_step(B, M)
            self.captured[B, M] = graph

    def rounded(self, B: int, M: int) -> tuple[int, int]:
        """Rows 1, 2, 4, .., 32, 64, 96, ..; pages for 256, 512, 1024, .. tokens."""
        slots, pages = self.runner.state.page_BM.shape
        rows = power_of_two(B) if B <= 32 else 32 * ceil_div(B, 32)
        tokens = max(256, power_of_two(M * self.runner.S))
        return min(rows, slots), min(tokens // self.runner.S, pages)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


# ---- The sampler --------------------------------------------------------------------------------


class Sampler:
    """Draws completions from a model.

    model: an unsharded Model on the device and in the dtype to sample in, or this rank's part of
    one (runtime.parallel.tensor_parallel). Then all ranks of the group call `generate` with the
    same arguments, and get the same samples. copy_weights keeps the model up to date.
    stop_ids: tokens that end a sequence. slots: sequences decoded together.
    max_len: longest prompt + completion, in tokens.
    kv_gb: memory for the cache in 1e9 bytes. No more is taken than `slots` sequences can use.
    page_size: tokens of a page. prefill_tokens: most tokens of prompts prefilled together.
    sync_every: decode steps between two synchronisations with the host (None: 8 on a GPU, else 1).
    graphs: decode steps have rounded sizes, and are CUDA graphs on a GPU. None: only on a GPU.
    ValueError for a cache that cannot hold one sequence.
    """

    def __init__(
        self,
        model: Model,
        stop_ids: Sequence[int],
        slots: int,
        max_len: int,
        kv_gb: float = 4.0,
        page_size: int = 16,
        prefill_tokens: int = 8192,
        sync_every: int | None = None,
        graphs: bool | None = None,
    ):
        weight = model.head.weight
        self.model = fuse(model)
        self.device = weight.device
        self.stop_ids = set(stop_ids)
        self.slots = slots
        self.max_len = max_len
        self.prefill_tokens = prefill_tokens
        # Synchronising waits for the GPU. A sequence that ends in between is decoded for nothing.
        self.sync_every = sync_every or (8 if weight.is_cuda else 1)
        M = ceil_div(max_len + self.sync_every, page_size)
        kv = new_cache(model, slots, M, page_size, kv_gb)
        self.N = kv.shape[2]
        state = new_state(slots, M, max_len, self.device)
        self.runner = Runner(self.model, kv, state, stop_ids)
        with_graphs = weight.is_cuda if graphs is None else graphs
        self.graphs = StepGraphs(self.runner) if with_graphs else None
        self.preempted = 0  # sequences preempted because pages ran out, over the sampler's life

    def close(self) -> None:
        """Free the CUDA graphs: before the process group ends, whose collectives they may hold."""
        if self.graphs:
            self.graphs.captured.clear()

    @torch.inference_mode()
    def generate(
        self,
        prompts: list[list[int]],
        G: int,
        max_new: int | list[int],
        temperature: float,
        seed: int,
        step: int = 0,
        problems: Sequence[int] | None = None,
        on_end: Callable[[Sample], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[Sample]:
        """G completions of every prompt (token ids), in the order of the prompts.

        max_new: most tokens to draw, one limit or one for each prompt. temperature 0 is greedy.
        problems: a number for each prompt that keys its noise (None: its place in the list).
        on_end: called with every sample as soon as it has ended.
        should_stop: asked at every synchronisation; once it is true, Interrupted is raised.
        ValueError for an empty prompt, a limit below 1, or both together over max_len.
        """
        limits = [max_new] * len(prompts) if isinstance(max_new, int) else max_new
        for p, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            if not prompt or limit < 1 or len(prompt) + limit > self.max_len:
                raise ValueError(
                    f"prompt {p} has {len(prompt):,} tokens and may draw {limit:,}: both must be "
                    f"at least 1, and together at most this sampler's {self.max_len:,}"
                )
        problems = range(len(prompts)) if problems is None else problems
        samples = []
        groups = deque()
        for p, prompt in enumerate(prompts):
            group = Group(prompt, deque())
            for g in range(G):
                key = sequence_key(seed, step, problems[p], g)
                group.requests.append(Request(Sample(p, g), prompt, limits[p], key))
            samples += [request.sample for request in group.requests]
            groups.append(group)
        pages = Pages(self.N)
        self.scheduler = Scheduler(
            groups, pages, self.runner.S, self.slots, self.sync_every, self.prefill_tokens
        )
        self.runner.begin(temperature, on_device=self.graphs is not None)
        with reordered(self.model):
            self._run(on_end, should_stop)
        return samples

    def _run(self, on_end, should_stop) -> None:
        """Synchronise, admit, decode, until nothing waits and nothing runs."""
        scheduler = self.scheduler
        stepper = self.graphs or self.runner
        while scheduler.waiting or scheduler.running:
            if should_stop and any_rank(should_stop(), self.model.group, self.device):
                raise Interrupted
            if scheduler.running:
                self._synchronise(on_end)
            if self._admit():
                continue  # synchronise first: new sequences need pages for their next tokens
            assert scheduler.running or not scheduler.waiting, "nothing can start: pages were lost"
            if scheduler.running:
                B = len(scheduler.running)
                M = max(len(request.pages) for request in scheduler.running)
                for _ in range(self.sync_every):
                    stepper.decode_step(B, M)

    def _synchronise(self, on_end) -> None:
        """Remove ended sequences, allocate pages (preempting if needed), compact the slots."""
        scheduler = self.scheduler
        B = len(scheduler.running)
        length_B, drawn_B, done_B = self.runner.read(B)
        ended = scheduler.update(length_B, done_B)
        grown, preempted = scheduler.grow()
        for request in ended + preempted:
            self.runner.collect(request.sample, request.slot, drawn_B[request.slot])
        scheduler.requeue(preempted)
        self.preempted += len(preempted)
        if len(scheduler.running) < B:
            self.runner.compact(scheduler.compact(), B)
        self.runner.write_tables(grown)
        for request in ended:
            s = request.sample
            s.finished = s.ids[-1] in self.stop_ids
            if on_end:
                on_end(s)

    def _admit(self) -> bool:
        """Start the sequences for which there are slots and pages; False if there are none."""
        fresh, started = self.scheduler.admit()
        if fresh:
            logits_RV = self.runner.prefill(fresh)
            for group, logits_V in zip(fresh, logits_RV, strict=True):
                group.logits_V = logits_V
        if started:
            self.runner.start(started)
        return bool(started)


def stop_tokens(directory: str | Path, tokenizer, end_token: int | None = None) -> list[int]:
    """Token ids that end a completion, sorted.

    These are the end-of-text tokens of generation_config.json, config.json and the tokenizer, and
    end_token, with which the chat template ends a turn (Renderer.end_token). Without end_token a
    base model runs on and invents turns. ValueError if there is no such token at all.
    """
    found = {tokenizer.eos_token_id, end_token}
    for name in ("generation_config.json", "config.json"):
        path = Path(directory) / name
        if path.is_file():
            ids = read_json(path).get("eos_token_id")
            found |= set(ids if isinstance(ids, list) else [ids])
    found -= {None}
    if not found:
        raise ValueError(
            f"{directory}: neither its configuration nor its tokenizer names an end-of-text token; "
            "set eos_token_id in generation_config.json"
        )
    return sorted(found)


def any_rank(flag: bool, group, device: torch.device | str) -> bool:
    """Whether the flag is true on any rank of the group (a collective). No group: the flag."""
    if group is None:
        return flag
    flag_1 = torch.tensor([flag], dtype=torch.int32, device=device)
    dist.all_reduce(flag_1, dist.ReduceOp.MAX, group=group)
    return bool(flag_1)


# ---- The sampler's copy of the weights ----------------------------------------------------------


@torch.no_grad()
def fuse(model: Model) -> Model:
    """Lay the weights of q, k, v, and of gate, up, side by side in memory, for one product each.

    The parameters become views, so that copying into them goes on working. This is the last thing
    to do to a model: .to() would separate the weights again.
    """
    for layer in model.model["layers"]:
        attention = layer.self_attn
        mlp = layer.mlp
        attention.fused = side_by_side(attention.q_proj, attention.k_proj, attention.v_proj)
        mlp.fused = side_by_side(mlp.gate_proj, mlp.up_proj)
    return model


def side_by_side(*linears: Linear) -> SimpleNamespace:
    """One weight (and bias, if any), of which the parameters of the linears become views."""
    fused = SimpleNamespace()
    for kind in ("weight", "bias"):
        parts = [getattr(linear, kind) for linear in linears]
        if parts[0] is None:
            continue
        whole = torch.cat([part.data for part in parts])
        sizes = [len(part) for part in parts]
        for part, view in zip(parts, whole.split(sizes), strict=True):
            part.data = view
        setattr(fused, kind, whole)
    return fused


# Elements of a weight. Calling a product with a reordered weight costs 10 us more, which outweighs
# the gain for smaller ones.
REORDERED_FROM = 2**18


@contextmanager
def reordered(model: Model):
    """Keep copies of the large weights in oneDNN's layout, for a fused float32 model on a CPU.

    Decoding consists of products with few rows, which such weights make up to twice as fast.
    It costs a few readings of the weights. Each entry reorders anew, so no copy is out of date.
    """
    weight = model.head.weight
    on_cpu = not weight.is_cuda and torch.backends.mkldnn.is_available()
    linears = [model.head]
    for layer in model.model["layers"]:
        attention = layer.self_attn
        mlp = layer.mlp
        linears += [attention.fused, attention.o_proj, mlp.fused, mlp.down_proj]
    if not on_cpu or weight.dtype != torch.float32:
        linears = []
    linears = [linear for linear in linears if linear.weight.numel() >= REORDERED_FROM]
    try:
        for linear in linears:
            linear.reordered = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        yield
    finally:
        for linear in linears:
            linear.reordered = None


# ---- A rollout: draw and grade ------------------------------------------------------------------


@dataclass(frozen=True)
class Completion:
    """A graded sample: all that a rank needs to know of a sequence that another rank drew."""

    place: int  # of its problem, in the list of problems
    sample: int  # which of the completions of the problem
    prompt: list[int]  # token ids
    ids: list[int]
    logp: list[float]
    finished: bool
    text: str
    verdict: Verdict

    def row(self, problem: Problem, source: str) -> dict:
        """A line of samples.jsonl or of an evaluation's file."""
        return {
            "source": source,
            "problem": problem.index,
            "sample": self.sample,
            "prompt": problem.prompt,
            "text": self.text,
            "answer": self.verdict.answer,
            "truth": problem.answer,
            "score": self.verdict.score,
            "verdict": self.verdict.verdict,
            "rule": self.verdict.rule,
            "length": len(self.ids),
            "finished": self.finished,
        }


class Rollout:
    """Draws completions of problems and has them graded.

    renderer: a data.Renderer. max_new: most tokens of a completion. seed: of the noise.
    should_stop: asked while a rollout runs; once it is true on a rank, `draw` raises Interrupted
    on all ranks.
    """

    def __init__(
        self,
        sampler: Sampler,
        renderer,
        grader: Grader,
        max_new: int,
        seed: int,
        should_stop: Callable[[], bool] | None = None,
    ):
        self.sampler = sampler
        self.renderer = renderer
        self.grader = grader
        self.max_new = max_new
        self.seed = seed
        self.should_stop = should_stop

    def draw(
        self,
        problems: Sequence[Problem],
        G: int,
        temperature: float,
        step: int,
        on_graded: Callable[[Completion], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """G graded completions of every problem, sorted by problem and sample (a collective).

        Each rank draws for its share of the problems, and every rank gets all completions. Ranks
        that hold a model together draw together, and each grades its share.
        on_graded: called with every completion that this rank grades, once it is graded.
        progress: called with the number of sequences that ended on all ranks, if all are as far
        as this one.
        """
        grading = Grading(self, problems, G, on_graded, progress)
        interrupted = False
        try:
            self.sampler.generate(
                grading.prompts,
                G,
                self.max_new,
                temperature,
                self.seed,
                step,
                problems=[problem.index for problem in grading.problems],
                on_end=grading.end,
                should_stop=self.should_stop,
            )
            grading.settle()
        except Interrupted:
            interrupted = True
        finally:
            grading.close()
        everyone = dist.group.WORLD if dist.is_initialized() else None
        if any_rank(interrupted, everyone, self.sampler.device):
            raise Interrupted
        completions = gather(grading.graded)
        return sorted(completions, key=lambda c: (c.place, c.sample))


class Grading:
    """The share of a rollout that this rank draws, and the verdicts on those that it grades."""

    def __init__(self, rollout: Rollout, problems: Sequence[Problem], G: int, on_graded, progress):
        rank = dist.get_rank() if dist.is_initialized() else 0
        world = dist.get_world_size() if dist.is_initialized() else 1
        group = rollout.sampler.model.group
        self.team = dist.get_world_size(group) if group else 1  # ranks that hold a model together
        self.member = rank % self.team
        self.places = range(rank // self.team, len(problems), world // self.team)
        self.total = len(problems)
        self.problems = [problems[i] for i in self.places]
        self.prompts = rollout.renderer.render_all(self.problems)
        self.rollout = rollout
        self.G = G
        self.on_graded = on_graded
        self.progress = progress
        self.ended = 0
        self.pending: deque[tuple[Sample, str, Future[Verdict]]] = deque()
        self.graded: list[Completion] = []
        # Threads wait for the processes that run programs; these get half of the processors.
        self.pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // (2 * world)))

    def end(self, s: Sample) -> None:
        """Have a sample that has ended graded, unless another member of the team does that."""
        self.ended += 1
        if self.progress:
            self.progress(self.ended * self.total // len(self.places))
        if (s.p * self.G + s.g) % self.team == self.member:
            text = self.rollout.renderer.text(s.ids)
            problem = self.problems[s.p]
            verdict = submit(self.rollout.grader, self.pool, problem, text)
            self.pending.append((s, text, verdict))
        while self.pending and self.pending[0][2].done():
            self._complete()

    def settle(self) -> None:
        """Wait for the verdicts that are missing. Interrupted if the run is asked to end."""
        should_stop = self.rollout.should_stop
        while self.pending:
            _, _, verdict = self.pending[0]
            wait([verdict], timeout=0.5)
            if should_stop and should_stop():
                raise Interrupted
            if verdict.done():
                self._complete()

    def _complete(self) -> None:
        s, text, verdict = self.pending.popleft()
        completion = Completion(
            self.places[s.p],
            s.g,
            self.prompts[s.p],
            s.ids,
            s.logp,
            s.finished,
            text,
            verdict.result(),
        )
        self.graded.append(completion)
        if self.on_graded:
            self.on_graded(completion)

    def close(self) -> None:
        """Start no more programs. Those that run end by their own limits."""
        self.pool.shutdown(wait=False, cancel_futures=True)


def gather(completions: list[Completion]) -> list[Completion]:
    """The completions of all ranks (a collective)."""
    if not dist.is_initialized():
        return completions
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, completions)
    return [completion for part in parts for completion in part]
