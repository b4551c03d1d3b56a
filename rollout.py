"""The batched sampler: pages of keys and values, continuous batching, prompts prefilled once for their G samples.

    next token ~ softmax(logits / temperature), drawn as argmax(logits / temperature + Gumbel noise)

The noise is a hash of (seed, step, problem, sample, position), so a sample does not depend on what else is in the batch,
on the order of the prompts, on the number of ranks, or on having been set back for want of pages. There is no top-k or
top-p: the distribution drawn from is the one the trainer differentiates.

How it runs: a *group* (prompt) is prefilled once, packed with others up to a token budget. Its *sequences* take free
slots, sharing the prompt's full pages by reference count; the last, partly filled page is copied for each, since each
will write its own tokens into it. All slots decode together, a token per step; a finished sequence leaves at the next
look of the host, the last slots move up, and waiting sequences take the free ones. When pages run out, the youngest
sequence is set back: its pages are freed and it waits, with its tokens, to be prefilled again.

A decode step reads and writes tensors that live as long as the sampler, and asks nothing of the host. On a GPU it is a CUDA
graph, captured when its size is first met; the number of sequences and the width of their page tables are rounded up to few
sizes, and the slots beyond the running sequences are dead: marked as done, they write nothing and read no key.

Letters: P prompts, G samples of each, B sequences in slots, T packed tokens, N pages of S tokens, M pages of a sequence.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor

import data
from benchmarks.answers import submit
from kernels.paged import decode, find, write_kv
from kernels.sample import position_key, sample, scales, sequence_key
from model import Linear, Model, packed_attention
from reward import Grader, Verdict


@dataclass
class Sample:
    """One completion: `prompt` is the index in the list given to generate, `ids` the tokens with the end token if it
    came (`finished`), `logp` their natural log-probabilities under the sampler at its temperature."""

    prompt: int
    sample: int
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    finished: bool = False


@dataclass(eq=False)
class Group:
    """Sequences that start from the same tokens: a prompt, or one sequence that was set back."""

    prefix: list[int]
    waiting: deque[Sample]
    pages: list[int] = field(default_factory=list)  # holding the prefix, once prefilled
    logits_V: Tensor | None = None  # after its last token


@dataclass(eq=False)
class Slot:
    """The host's knowledge of a running sequence; `length` bounds its tokens in the cache from above."""

    sample: Sample
    pages: list[int]
    length: int


class Pages:
    """Which pages are free, and by how many sequences each of the others is used."""

    def __init__(self, N: int):
        self.free, self.uses = deque(range(N)), [0] * N

    def take(self, n: int) -> list[int]:
        taken = [self.free.popleft() for _ in range(n)]
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


class Sampler:
    """Draws completions from a model.

    model: an unsharded Model on the device and in the dtype to sample in, or a rank's part of one (model.tensor_parallel), and
    then all its ranks call generate with the same arguments and get the same samples; copy_weights keeps it up to date.
    stop_ids: tokens that end a sequence. slots: sequences decoded together. max_len: longest prompt + completion.
    kv_gb: memory for the cache in 1e9 bytes; no more is taken than `slots` sequences of max_len can use.
    prefill_tokens: prompts are packed up to this many tokens. look_every: decode steps between two looks of the host.
    graphs: whether decode steps have rounded sizes, and are CUDA graphs where there is CUDA (None: there, and only there).
    """

    def __init__(self, model: Model, stop_ids: Sequence[int], slots: int, max_len: int, kv_gb: float = 4.0, page: int = 16,
                 prefill_tokens: int = 8192, look_every: int | None = None, graphs: bool | None = None):
        c, weight = model.config, next(model.parameters())
        self.model, self.device, self.S = fuse(model), weight.device, page
        self.slots, self.max_len, self.prefill_tokens = slots, max_len, prefill_tokens
        self.graphs, self.captured = weight.is_cuda if graphs is None else graphs, {}
        self.pool = torch.cuda.graph_pool_handle() if weight.is_cuda else None  # graphs run one at a time: one memory for all
        J = len(model.model["layers"][0].self_attn.k_proj.weight) // c.K  # those that this rank holds
        # A look costs a wait for the GPU; steps that a finished sequence stays too long cost decoding for nothing.
        self.look_every = look_every or (8 if weight.is_cuda else 1)
        self.M = -(-(max_len + self.look_every) // page)
        page_bytes = c.layers * 2 * page * J * c.K * weight.dtype.itemsize
        # Beyond its own pages a sequence needs its prompt's last page while it starts, and one to grow into.
        self.N = min(slots * (self.M + 1) + 2, int(kv_gb * 1e9 / page_bytes))
        if self.N < self.M + 2:
            raise ValueError(f"a cache of {kv_gb:g} GB holds {self.N * page:,} tokens, but one sequence of {max_len:,} needs "
                             f"{(self.M + 2) * page_bytes / 1e9:.2g} GB; raise --kv-gb, or lower --max-prompt or --max-new")
        self.kv = torch.zeros(c.layers, 2, self.N, page, J, c.K, dtype=weight.dtype, device=self.device)
        self.stop_ids, self.stop_V = set(stop_ids), torch.zeros(c.V, dtype=torch.int64, device=self.device)
        self.stop_V[[i for i in self.stop_ids if i < c.V]] = 1
        # Per slot: the token to feed, tokens in the cache, tokens drawn, most of them, what its noise is keyed by, done.
        self.state = torch.zeros(6, slots, dtype=torch.int64, device=self.device)
        self.table_SM = torch.zeros(slots, self.M, dtype=torch.int32, device=self.device)
        # What was drawn; a sequence has a prompt, so there is a column behind its last token.
        self.id_SL = torch.zeros(slots, max_len, dtype=torch.int64, device=self.device)
        self.logp_SL = torch.zeros(slots, max_len, device=self.device)
        self.scales = torch.zeros(2, device=self.device)
        self.set_back = 0  # sequences set back for want of pages, over the sampler's life

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], G: int, max_new: int | list[int], temperature: float, seed: int, step: int = 0,
                 problems: Sequence[int] | None = None, on_finish: Callable[[Sample], None] | None = None) -> list[Sample]:
        """G completions of every prompt (token ids), of at most max_new tokens (one limit, or one for each prompt), in
        the order of the prompts.

        problems: the number of each prompt that keys its noise (its place in the list if not given). temperature 0 is
        greedy. on_finish is called with every sample as soon as it is complete. ValueError for a prompt that is empty
        or too long for the cache.
        """
        limits = [max_new] * len(prompts) if isinstance(max_new, int) else max_new
        for p, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            if not prompt or limit < 1 or len(prompt) + limit > self.max_len:
                raise ValueError(f"prompt {p} has {len(prompt):,} tokens and may draw {limit:,}: both must be at least 1, and "
                                 f"together at most this sampler's {self.max_len:,}")
        self.pages, self.running = Pages(self.N), []
        self.state[-1] = 1  # an interrupted call may have left sequences there
        self.scales.copy_(scales(temperature, self.device))
        self.temperature = self.scales if self.graphs or self.device.type == "cuda" else temperature
        self.seed, self.step, self.limits, self.longest = seed, step, limits, max(limits, default=0)
        self.prompts, self.problems = prompts, problems if problems is not None else range(len(prompts))
        samples = [[Sample(p, g) for g in range(G)] for p in range(len(prompts))]
        self.waiting = deque(Group(prompts[p], deque(group)) for p, group in enumerate(samples))
        with packed(self.model):
            while self.waiting or self.running:
                self._look(on_finish)
                # A prefill costs a forward pass, so slots are filled several at a time.
                enough = max(1, min(self.slots // 8, len(self.waiting)))
                if self.waiting and self.slots - len(self.running) >= enough and self._admit():
                    continue  # look again: the new sequences need pages to grow into
                for _ in range(self.look_every if self.running else 0):
                    self._decode()
        return [s for group in samples for s in group]

    def _look(self, on_finish) -> None:
        """Takes finished sequences out, gives pages to the others or sets the youngest back, and closes the ranks."""
        if not self.running:
            return
        B = len(self.running)
        _, length_B, drawn_B, _, _, done_B = self.state[:, :B].tolist()
        keep = []
        for b, slot in enumerate(self.running):
            slot.length = length_B[b]
            if done_B[b]:
                self._collect(slot.sample, b, drawn_B[b])
                slot.sample.finished = slot.sample.ids[-1] in self.stop_ids
                self.pages.release(slot.pages)
                if on_finish:
                    on_finish(slot.sample)
            else:
                keep.append(b)
        grown = []
        for i, b in enumerate(keep):  # oldest first
            slot = self.running[b]
            missing = -(-(slot.length + self.look_every) // self.S) - len(slot.pages)
            while missing > len(self.pages.free) and len(keep) > i:
                self._free_some(keep, drawn_B)
            if len(keep) <= i:
                break  # it was the youngest itself
            if missing > 0:
                slot.pages += self.pages.take(missing)
                grown.append(i)
        if len(keep) < B:
            n, keep_B = len(keep), torch.tensor(keep, dtype=torch.int64, device=self.device)
            for rows in (self.state.T, self.table_SM, self.id_SL[:, : self.longest], self.logp_SL[:, : self.longest]):
                rows[:n] = rows[keep_B]
            self.state[-1, n:B] = 1
            self.running = [self.running[b] for b in keep]
        self._write_tables(grown)

    def _free_some(self, keep: list[int], drawn_B: list[int]) -> None:
        """Gives up the pages of a prefilled prompt that still waits, else of the youngest running sequence."""
        for group in reversed(self.waiting):
            if group.pages:
                self.pages.release(group.pages)
                group.pages, group.logits_V = [], None
                return
        b = keep.pop()
        s = self.running[b].sample
        self._collect(s, b, drawn_B[b])
        self.pages.release(self.running[b].pages)
        self.waiting.appendleft(Group(self.prompts[s.prompt] + s.ids, deque([s])))
        self.set_back += 1

    def _collect(self, s: Sample, b: int, drawn: int) -> None:
        s.ids = self.id_SL[b, :drawn].tolist()
        s.logp = self.logp_SL[b, :drawn].tolist()

    def _admit(self) -> bool:
        """Prefills waiting groups up to the token budget and starts as many sequences as slots and pages allow; any at all?"""
        fresh, tokens, started = [], 0, []
        if not self.running:  # then only prompts that were prefilled but not started hold pages: they can begin anew
            for group in self.waiting:
                self.pages.release(group.pages)
                group.pages = []
        for group in self.waiting:
            need = -(-len(group.prefix) // self.S)
            room = self.slots - len(self.running) - len(started)
            # Each sequence to start needs a page of its own, and one to grow into; with less, running ones go on first.
            if room <= 0 or len(self.pages.free) < (0 if group.pages else need) + 2:
                break
            if not group.pages:
                if fresh and tokens + len(group.prefix) > self.prefill_tokens:
                    break
                group.pages = self.pages.take(need)
                fresh.append(group)
                tokens += len(group.prefix)
            n = min(room, len(group.waiting), len(self.pages.free) - 1)
            started += [(group, group.waiting.popleft(), self.pages.take(1)[0]) for _ in range(n)]
        if fresh:
            for group, logits_V in zip(fresh, self._prefill(fresh), strict=True):
                group.logits_V = logits_V
        if started:
            self._start(started)
        while self.waiting and not self.waiting[0].waiting:
            self.pages.release(self.waiting.popleft().pages)
        return bool(started)

    def _prefill(self, groups: list[Group]) -> Tensor:
        """Runs the prefixes packed, stores their keys and values; returns the logits after each, (groups, V)."""
        length_B = [len(g.prefix) for g in groups]
        token_T = torch.tensor([t for g in groups for t in g.prefix], device=self.device)
        position_T = torch.cat([torch.arange(n) for n in length_B]).to(self.device)
        slot_T = torch.cat([(torch.tensor(g.pages)[:, None] * self.S + torch.arange(self.S)).flatten()[: len(g.prefix)]
                            for g in groups]).to(self.device)
        causal = packed_attention(length_B, self.device)

        def attend(layer, q_THK, k_TJK, v_TJK):
            write_kv(self.kv[layer], k_TJK, v_TJK, slot_T)
            return causal(layer, q_THK, k_TJK, v_TJK)

        last_R = torch.tensor(length_B, device=self.device).cumsum(0) - 1
        return self.model(token_T, position_T, attend, last_R)

    def _start(self, started: list[tuple[Group, Sample, int]]) -> None:
        """Gives every (group, sample, own page) a slot, and draws its first token from its group's logits."""
        first, rows = len(self.running), []
        source, target = [], []
        for group, s, page in started:
            shared = group.pages[: len(group.prefix) // self.S]
            if len(group.prefix) % self.S:  # its tokens will go into the last page: a page of its own
                source.append(group.pages[-1])
                target.append(page)
            self.pages.share(shared)
            self.running.append(Slot(s, [*shared, page], len(group.prefix)))
            noise = sequence_key(self.seed, self.step, self.problems[s.prompt], s.sample)
            rows.append([0, len(group.prefix), len(s.ids), self.limits[s.prompt], noise, 0])
        if source:
            self.kv[:, :, target] = self.kv[:, :, source]
        b = slice(first, len(self.running))
        self.state[:, b] = torch.tensor(rows, device=self.device).T
        self._write_tables(range(first, len(self.running)))
        for i, (_, s, _) in enumerate(started, first):
            if s.ids:  # set back earlier: its tokens stay
                self.id_SL[i, : len(s.ids)] = torch.tensor(s.ids, device=self.device)
                self.logp_SL[i, : len(s.ids)] = torch.tensor(s.logp, device=self.device)
        self._draw(b, torch.stack([group.logits_V for group, _, _ in started]))

    def _decode(self) -> None:
        """One token for every running sequence."""
        B, M = len(self.running), max(len(slot.pages) for slot in self.running)
        if not self.graphs:
            return self._step(B, M)
        B, M = self._rounded(B, M)
        if graph := self.captured.get((B, M)):
            return graph.replay()
        # This step does what a capture must not: it compiles kernels, lets cuBLAS take its memory and NCCL open its channels.
        self._step(B, M)
        if self.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # other threads may use the GPU
                self._step(B, M)
            self.captured[B, M] = graph

    def _rounded(self, B: int, M: int) -> tuple[int, int]:
        """The next larger size for which there is a graph: rows 1, 2, 4, .. 32, 64, 96, ..; keys a power of two from 256 on."""
        rows = 1 << (B - 1).bit_length() if B <= 32 else -(-B // 32) * 32
        keys = max(256, 1 << (M * self.S - 1).bit_length())
        return min(rows, self.slots), min(keys // self.S, self.M)

    def _step(self, B: int, M: int) -> None:
        """One token for the live among the first B slots, of up to M pages. What a graph holds: no size and no launch depends
        on a value, nothing is read back, and all that outlasts the step is written in place."""
        token_B, length_B, _, _, _, done_B = self.state[:, :B]
        dead_B = done_B != 0
        page_B = self.table_SM[:B].gather(1, (length_B // self.S)[:, None]).squeeze(1)
        slot_B = (page_B * self.S + length_B % self.S).masked_fill(dead_B, -1)
        pages_BM, seen_B = self.table_SM[:B, :M], (length_B + 1).masked_fill(dead_B, 0).int()
        found = find(self.kv[0], pages_BM, seen_B)

        def attend(layer, q_BHK, k_BJK, v_BJK):
            write_kv(self.kv[layer], k_BJK, v_BJK, slot_B)
            return decode(q_BHK, self.kv[layer], pages_BM, seen_B, found)

        logits_BV = self.model(token_B, length_B, attend)
        length_B += ~dead_B
        self._draw(slice(0, B), logits_BV)

    def _draw(self, b: slice, logits_BV: Tensor) -> None:
        """Draws a token for every live row of the slots b, records it, and marks the rows that end with it."""
        token_B, _, drawn_B, limit_B, noise_B, done_B = self.state[:, b]
        drawn, logp_B = sample(logits_BV, self.temperature, position_key(noise_B, drawn_B))
        # A row that is done goes on drawing, and records it behind its own tokens, where nobody reads.
        self.id_SL[b].scatter_(1, drawn_B[:, None], drawn[:, None])
        self.logp_SL[b].scatter_(1, drawn_B[:, None], logp_B[:, None])
        token_B.copy_(drawn)
        drawn_B += 1 - done_B
        done_B |= self.stop_V[drawn] | (drawn_B >= limit_B)

    def _write_tables(self, slots) -> None:
        """Copies the page lists of the given slots to the device."""
        if slots:
            width = max(len(self.running[i].pages) for i in slots)
            rows = [self.running[i].pages + [0] * (width - len(self.running[i].pages)) for i in slots]
            self.table_SM[torch.tensor(list(slots), device=self.device), :width] = torch.tensor(
                rows, dtype=torch.int32, device=self.device)


def stop_tokens(directory, tokenizer) -> list[int]:
    """The tokens that end a turn: generation_config.json's, config.json's and the tokenizer's end-of-text tokens."""
    found = {tokenizer.eos_token_id}
    for name in ("generation_config.json", "config.json"):
        path = Path(directory) / name
        ids = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        found |= set(ids if isinstance(ids, list) else [ids])
    found -= {None}
    if not found:
        raise ValueError(f"{directory}: neither its configuration nor its tokenizer names an end-of-text token (eos_token_id)")
    return sorted(found)


@torch.no_grad()
def fuse(model: Model) -> Model:
    """Lays the weights of q, k, v, and of gate, up, side by side in memory, for one product each; the parameters become views,
    so that copying into them goes on working. The last thing to do to a model: .to() would part them again."""

    def side_by_side(*maps: Linear) -> SimpleNamespace:
        fused = SimpleNamespace()
        for kind in ("weight", "bias") if maps[0].bias is not None else ("weight",):
            parts = [getattr(f, kind) for f in maps]
            setattr(fused, kind, torch.cat([p.data for p in parts]))
            for p, view in zip(parts, getattr(fused, kind).split([len(p) for p in parts]), strict=True):
                p.data = view
        return fused

    for layer in model.model["layers"]:
        a, m = layer.self_attn, layer.mlp
        a.fused, m.fused = side_by_side(a.q_proj, a.k_proj, a.v_proj), side_by_side(m.gate_proj, m.up_proj)
    return model


PACKED_FROM = 2**18  # elements of a weight; below, such a call's own cost of 10 microseconds is more than it saves


@contextmanager
def packed(model: Model):
    """Within it a fused float32 model on a CPU has its large weights a second time, as oneDNN lays them out: products with few
    rows, which decoding is made of, are up to twice as fast as by F.linear. Packing costs a few readings of the weights, and
    each time it is done anew, so the copies are never old. For any other model nothing is done."""
    maps = [f for layer in model.model["layers"] for a, m in [(layer.self_attn, layer.mlp)]
            for f in (a.fused, a.o_proj, m.fused, m.down_proj)] + [model.head]
    weight = model.head.weight
    if weight.is_cuda or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        maps = []
    try:
        for f in maps:
            if f.weight.numel() >= PACKED_FROM:
                f.packed = torch.ops.mkldnn._reorder_linear_weight(f.weight.detach())
        yield
    finally:
        for f in maps:
            f.packed = None


@dataclass(frozen=True)
class Completion:
    """A graded sample: everything a rank needs to know of a sequence that another one drew."""

    problem: int  # place in the list of problems
    sample: int
    prompt: list[int]
    ids: list[int]
    logp: list[float]
    finished: bool
    text: str
    verdict: Verdict


def collect(sampler: Sampler, tokenizer, grader: Grader, problems: list[data.Problem], G: int, max_new: int,
            temperature: float, seed: int, step: int, template: str = "auto",
            keep: Callable[[Completion], None] | None = None) -> list[Completion]:
    """G graded completions of every problem, in the order of the problems, known to every rank (a collective).

    Each rank draws for its share of the problems, or the ranks that hold a sampler together for theirs, and then each grades
    its share of what they draw; an answer goes to the grader as soon as its sequence ends, and `keep` is called with every
    completion that this rank grades, once it is graded.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    t = dist.get_world_size(sampler.model.group) if sampler.model.group else 1
    mine = range(rank // t, len(problems), world // t)
    prompts = [data.render(problems[i], tokenizer, template) for i in mine]
    waiting, done = deque(), []

    def settle(wait: bool) -> None:
        while waiting and (wait or waiting[0][2].done()):
            s, text, verdict = waiting.popleft()
            done.append(Completion(mine[s.prompt], s.sample, prompts[s.prompt], s.ids, s.logp, s.finished, text,
                                   verdict.result()))
            if keep:
                keep(done[-1])

    def grade(s: Sample) -> None:
        if (s.prompt * G + s.sample) % t != rank % t:
            return  # another rank has it too
        text = tokenizer.decode(s.ids, skip_special_tokens=True)
        waiting.append((s, text, submit(grader, pool, problems[mine[s.prompt]], text)))
        settle(wait=False)

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // (2 * world))) as pool:  # for programs, which have little time
        sampler.generate(prompts, G, max_new, temperature, seed, step, [problems[i].index for i in mine], grade)
        settle(wait=True)
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, done)
        done = [c for part in parts for c in part]
    return sorted(done, key=lambda c: (c.problem, c.sample))


def row(c: Completion, problem: data.Problem, source: str) -> dict:
    """A line of an evaluation's file: the problem, the text, the answer found in it, and the verdict with its reason."""
    return {"source": source, "problem": problem.index, "sample": c.sample, "prompt": problem.prompt, "text": c.text,
            "answer": c.verdict.answer, "truth": problem.answer, "score": c.verdict.score, "verdict": c.verdict.verdict,
            "rule": c.verdict.rule, "length": len(c.ids), "finished": c.finished}
