"""rollout.py: the sampler draws what the naive one draws, whatever the batch, pages and order.

The scheduler alone, on the host; then whole rollouts, graded and interrupted, on one and two ranks.
"""

import copy
import json
import random
import shutil
import tempfile
from collections import deque
from concurrent.futures import Future
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import rollout
from data import Problem
from grpo import Flags, check, plan_job
from kernels import ceil_div
from kernels.sample import sample
from model import Config, Model, packed_attention
from reward import Verdict
from rollout import (
    Group,
    Interrupted,
    Pages,
    Request,
    Rollout,
    Sample,
    Sampler,
    Scheduler,
    naive_generate,
    stop_tokens,
)
from runtime import plan
from runtime.parallel import copy_weights, make_mesh, shard, tensor_parallel

# The second prompt fills its pages exactly.
PROMPTS = [[5, 6, 7], [8] * 16, [9, 10] * 12, [11], [12, 13, 14, 15, 16, 17, 18]]
PAGE_BYTES = 2 * 2 * 8 * 2 * 8 * 4  # of `ours` with pages of 8 tokens
END = 3  # drawn often enough by the random models that some sequences end and others run out


def draw(
    model, prompts=PROMPTS, G=4, max_new=24, temperature=1.0, seed=0, problems=None, **options
):
    options = {"slots": 32, "max_len": 64, "page_size": 8, "sync_every": 1} | options
    sampler = Sampler(model, [END], **options)
    return sampler.generate(prompts, G, max_new, temperature, seed, problems=problems), sampler


def texts(samples):
    return {(s.p, s.g): s.ids for s in samples}


def assert_same(samples, expected, atol=3e-5):
    """The same tokens; log-probs that differ by roundings only."""
    assert texts(samples) == texts(expected)
    for s, e in zip(samples, expected, strict=True):
        assert s.finished == e.finished
        torch.testing.assert_close(torch.tensor(s.logp), torch.tensor(e.logp), atol=atol, rtol=0)


# ---- One process: what is drawn -----------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_it_draws_what_the_naive_sampler_draws(ours, temperature):
    # Caught: any error of pages, batching, prefill or keys that the naive sampler cannot make.
    model = ours()
    keys = [3, 1, 4, 15, 9]
    expected = naive_generate(model, PROMPTS, 3, 24, temperature, 5, 2, keys, [END])
    sampler = Sampler(model, [END], slots=7, max_len=64, page_size=8)
    assert_same(sampler.generate(PROMPTS, 3, 24, temperature, 5, 2, keys), expected)


def test_log_probs_are_the_trainers(ours):
    # Caught: positions off by one in decode, logp of the logits without temperature, keys written
    # to the wrong page.
    model = ours()
    samples, _ = draw(model, temperature=0.8)
    assert {s.finished for s in samples} == {True, False}
    for s in samples:
        assert s.finished == (s.ids[-1] == END) and END not in s.ids[:-1]
        assert s.finished or len(s.ids) == 24
        token_T = torch.tensor(PROMPTS[s.p] + s.ids)
        T = len(token_T)
        row_R = torch.arange(len(PROMPTS[s.p]) - 1, T - 1)
        attend = packed_attention([T], "cpu")
        with torch.no_grad():
            logp_R, _ = model(token_T, torch.arange(T), attend, row_R, token_T[row_R + 1], 0.8)
        torch.testing.assert_close(torch.tensor(s.logp), logp_R, atol=3e-5, rtol=0)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_greedy_tokens_are_those_of_transformers(checkpoint, ours, family):
    samples, _ = draw(ours(family), G=1, temperature=0.0)
    oracle = checkpoint(family)[1]
    for s in samples:
        prompt = torch.tensor([PROMPTS[s.p]])
        expected = oracle.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=END,
            pad_token_id=0,
        )
        assert s.ids == expected[0, prompt.shape[1] :].tolist()


def test_samples_depend_on_nothing_but_their_key(ours):
    # Caught: noise from the slot's number instead of the problem's, a shared last page, a slot's
    # table not moved with it.
    model = ours()
    expected, _ = draw(model)
    variants = [("slots", 1), ("slots", 3), ("page_size", 4), ("page_size", 64)]
    variants += [("sync_every", 5), ("prefill_tokens", 1)]
    for name, value in variants:
        assert texts(draw(model, **{name: value})[0]) == texts(expected), (name, value)
    order = [4, 2, 0, 1, 3]
    shuffled, _ = draw(model, [PROMPTS[p] for p in order], problems=order)
    assert {(order[p], g): ids for (p, g), ids in texts(shuffled).items()} == texts(expected)
    assert texts(draw(model, seed=1)[0]) != texts(expected)
    # The G samples of a prompt differ.
    assert len({tuple(s.ids) for s in expected}) == len(expected)


def test_steps_of_rounded_sizes_draw_the_same(ours):
    # Seven slots are rounded up from five running ones, 256 keys from 64. Caught: slots left alive
    # from which sequences moved or were preempted; empty slots that write into pages of others; the
    # temperature or seed of the call before.
    model = ours()
    few = {"kv_gb": 20 * PAGE_BYTES / 1e9, "max_len": 48}  # 20 pages
    for options in ({}, {"slots": 7}, {"slots": 7} | few, {"slots": 7, "sync_every": 5}):
        rounded, sampler = draw(model, graphs=True, **options)
        expected, _ = draw(model, **options)
        assert_same(rounded, expected)
    for temperature, seed in ((0.0, 0), (0.7, 3), (1.0, 0)):
        again = sampler.generate(PROMPTS, 4, 24, temperature, seed)
        assert texts(again) == texts(draw(model, temperature=temperature, seed=seed)[0])
    assert [sampler.graphs.rounded(B, 1)[0] for B in (1, 2, 3, 5, 7)] == [1, 2, 4, 7, 7]
    big = Sampler(model, [END], 80, 4000, page_size=16, sync_every=1, graphs=True)
    sizes = [(9, 1), (32, 16), (33, 17), (65, 40), (80, 200)]
    rounded = [(16, 16), (32, 16), (64, 32), (80, 64), (80, 251)]
    assert [big.graphs.rounded(B, M) for B, M in sizes] == rounded


def test_a_step_waits_for_nothing_and_depends_on_no_value(ours, monkeypatch):
    # What a CUDA graph holds must not read a value back, and must do the same for all values.
    # Write, attention and draw are kernels on a GPU, so they are replaced here. Caught: torch.isin,
    # `if done_B.any()`, lengths that choose a width.
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            shapes = [x.shape for x in args if isinstance(x, torch.Tensor)]
            seen.append((function.overloadpacket.__name__, *shapes))
            return function(*args, **(kwargs or {}))

    def draw_anything(logits_BV, scales, key_B):
        return key_B % 97, logits_BV.sum(1) * scales[0]

    monkeypatch.setattr(rollout, "locate_keys", lambda *_: None)
    monkeypatch.setattr(rollout, "decode", lambda q_BHK, *_: q_BHK + 0)
    monkeypatch.setattr(rollout, "write_kv", lambda *_: None)
    monkeypatch.setattr(rollout, "sample", draw_anything)
    sampler = Sampler(ours(), range(90), slots=8, max_len=64, page_size=8, graphs=True)
    runner = sampler.runner
    runner.begin(1.0, on_device=True)
    steps = []
    for done in (False, True):
        runner.state.length_B.fill_(9 * done)
        runner.state.done_B.fill_(done)
        seen = []
        with torch.no_grad(), Watch():
            runner.decode_step(8, 4)
        steps.append(seen)
    assert len(steps[0]) > 50 and steps[0] == steps[1]
    waits = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"}
    waits |= {"_unique2", "unique_dim"}
    assert not waits & {name for name, *_ in steps[0]}


# ---- Ranks that hold a model together -----------------------------------------------------------


def random_model(tied):
    """A model whose dimensions two ranks can share, the same on every rank."""
    config = {
        "model_type": "qwen2",
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 512,
    }
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config))
        model = Model(Config.read(directory))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.3, generator=generator).add_(1.0 if "norm" in name else 0.0)
    return model


def shared_draw(tied, graphs):
    """On each of two ranks that hold a copy of an FSDP model together: (the samples, this rank's
    key-value heads, its parameters)."""
    model = random_model(tied)
    config = model.config
    source = shard(model, make_mesh("cpu"), torch.float32)
    with torch.device("meta"):
        model = tensor_parallel(Model(config), dist.new_subgroups(2)[0])
    model = model.to_empty(device="cpu")
    sampler = Sampler(model, [END], slots=32, max_len=64, page_size=8, graphs=graphs)
    samples = []
    addresses = [p.data_ptr() for p in model.parameters()]
    copy_weights(source, model)
    assert addresses == [p.data_ptr() for p in model.parameters()]
    for temperature in (0.0, 1.0):
        samples += sampler.generate(PROMPTS, 2, 24, temperature, 0)
    drawn = [(s.p, s.g, s.ids, s.logp) for s in samples]
    return drawn, sampler.runner.kv.shape[4], sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("tied,graphs", [(False, True), (True, False)])
def test_ranks_that_share_a_model_draw_what_one_draws(tied, graphs):
    # Caught: rows of o instead of columns, its sum over ranks left out, logits gathered in another
    # order, a bias split twice.
    model = random_model(tied)
    sampler = Sampler(copy.deepcopy(model), [END], slots=32, max_len=64, page_size=8)
    expected = []
    for temperature in (0.0, 1.0):
        expected += sampler.generate(PROMPTS, 2, 24, temperature, 0)
    V, D = 96, 32
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    whole = sum(p.numel() for p in model.parameters()) - norms - V * D
    first, second = ranks.run(2, shared_draw, tied, graphs)
    assert first == second and first[1:] == (1, whole // 2 + norms + V * D)
    one = plan.lasting_memory(plan_job(Flags(sampler_tp=1)), model.config, 2)
    two = plan.lasting_memory(plan_job(Flags(sampler_tp=2)), model.config, 2)
    # The plan splits the norms, too.
    assert two["sampler's copy"] == pytest.approx(2 * first[2], rel=0.01)
    assert two["pages"] == one["pages"] / 2
    for (*key, ids, logp), e in zip(first[0], expected, strict=True):
        assert (*key, ids) == (e.p, e.g, e.ids)
        torch.testing.assert_close(torch.tensor(logp), torch.tensor(e.logp), atol=3e-5, rtol=0)


@pytest.fixture
def four_heads(tmp_path):
    """The tiny model with a fourth head that does nothing, so that two ranks can share it."""
    tiny = Path(rollout.__file__).parent / "models" / "tiny"
    directory = tmp_path / "four"
    shutil.copytree(tiny, directory)
    c = json.loads((tiny / "config.json").read_text())
    tensors = load_file(tiny / "model.safetensors")
    K = c["hidden_size"] // c["num_attention_heads"]
    for name, w in tensors.items():
        if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj"):
            tensors[name] = torch.cat((w, torch.zeros_like(w[:K])))
        if "o_proj" in name:
            tensors[name] = torch.cat((w, torch.zeros_like(w[:, :K])), 1).contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    c |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": K}
    (directory / "config.json").write_text(json.dumps(c))
    return directory


def test_a_run_with_a_shared_sampler_is_the_run_without(four_heads, tmp_path):
    # Caught: samples gathered once from each rank of a pair, prompts dealt to ranks and not to
    # pairs, stale weights.
    rows = []
    for t in (1, 2):
        run = tmp_path / f"run{t}"
        argv = ["--model", four_heads, "--steps", 3, "--prompts", 6, "--group", 4]
        argv += ["--eval-problems", 7, "--max-prompt", 32, "--max-new", 24, "--eval-every", 3]
        argv += ["--micro-tokens", 300, "--out", run, "--sampler-tp", t]
        started = ranks.start(2, ranks.train, [str(a) for a in argv], output=tmp_path / "output")
        assert ranks.wait(started) == [0, 0], (tmp_path / "output").read_text()[-3000:]
        rows.append([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
    assert [r["kind"] for r in rows[0]] == ["eval", "train", "train", "train", "eval"]
    for one, two in zip(*rows, strict=True):
        for name in ("reward", "length", "tokens", "pass1", "samples", "D"):
            assert one.get(name) == two.get(name), name
        for name in ("loss", "entropy", "grad_norm", "sampler_gap"):
            assert one.get(name) == pytest.approx(two.get(name), abs=1e-5), name


def test_an_evaluation_with_a_shared_sampler_is_the_one_without(four_heads, torchrun, tmp_path):
    # Caught: the weights of one rank's shard alone, an answer graded or written by both ranks.
    flags = ["--model", four_heads, "--eval", "arithmetic:test:2:1", "--problems", 21]
    flags += ["--max-prompt", 32, "--max-new", 24]
    files = []
    for t in (1, 2):
        done = torchrun(2, "evaluate.py", *flags, "--sampler-tp", t, "--out", tmp_path / str(t))
        assert done.returncode == 0, done.stderr[-2000:]
        settings, *lines = (tmp_path / str(t)).read_text().splitlines()
        files.append([settings, *sorted(lines)])
    assert files[0] == files[1] and len(files[0]) == 1 + 42
    done = torchrun(2, "evaluate.py", *flags, "--sampler-tp", 3)
    assert done.returncode
    assert "--sampler-tp 3 does not divide the ranks of a node, 2 of 2" in done.stderr


def test_a_model_that_cannot_be_shared_is_refused():
    class Three:  # ranks
        size = staticmethod(lambda: 3)

    heads = "3 ranks cannot share a model with 4 query heads, 2 key-value heads and 48 features"
    with pytest.raises(ValueError, match=heads):
        tensor_parallel(random_model(True), Three)
    with pytest.raises(ValueError, match="--sampler-tp 2 does not divide the ranks of a node, 3"):
        check(Flags(sampler_tp=2), world=3)
    check(Flags(sampler_tp=2, prompts=3), world=6)  # one prompt for each copy
    with pytest.raises(ValueError, match="--prompts 4 is not a multiple of the 3 ranks"):
        check(Flags(sampler_tp=2, prompts=4), world=6)


def test_preempted_sequences_lose_nothing(ours):
    # 10 pages of 8 for sequences of up to 48 tokens. Caught: tokens drawn before the preemption
    # forgotten or drawn twice, a page that is lost.
    model = ours()
    samples, sampler = draw(model, kv_gb=10 * PAGE_BYTES / 1e9, max_len=48)
    assert sampler.N == 10 and sampler.preempted > 0
    expected, roomy = draw(model, max_len=48)
    assert roomy.preempted == 0
    assert_same(samples, expected)
    assert sorted(sampler.scheduler.pages.free) == list(range(10))


def test_finished_samples_are_handed_out_once_and_complete(ours):
    handed = []
    sampler = Sampler(ours(), [END], slots=2, max_len=64, page_size=8)
    samples = sampler.generate(PROMPTS, 3, 24, 1.0, 0, on_end=lambda s: handed.append(
        (s.p, s.g, len(s.ids), s.finished)))
    assert sorted(handed) == [(s.p, s.g, len(s.ids), s.finished) for s in samples]


def test_pages_are_counted():
    pages = Pages(3)
    a = pages.take(2)
    pages.share(a[:1])
    pages.release(a)
    assert len(pages.free) == 2  # a[0] is still used
    pages.release(a[:1])
    assert sorted(pages.free) == [0, 1, 2]


def play(scheduler, final):
    """Run the scheduler against a device that only counts, up to final[prompt] tokens; returns the
    requests in the order in which they finish."""
    finished = []
    for _ in range(10_000):
        B = len(scheduler.running)
        final_B = [final[request.sample.p] for request in scheduler.running]
        length_B = [request.length + scheduler.sync_every for request in scheduler.running]
        length_B = [min(pair) for pair in zip(length_B, final_B, strict=True)]
        done_B = [length == end for length, end in zip(length_B, final_B, strict=True)]
        ended = scheduler.update(length_B, done_B)
        assert len(ended) + len(scheduler.running) == B
        finished += ended
        before = list(scheduler.running)
        _, preempted = scheduler.grow()
        assert before == scheduler.running + preempted[::-1]  # the youngest go first
        for request in preempted:
            request.sample.ids = [1] * (request.length - len(request.prompt))
        scheduler.requeue(preempted)
        scheduler.compact()
        fresh, started = scheduler.admit()
        assert all(group.pages for group in fresh)
        assert [r.slot for r in scheduler.running] == list(range(len(scheduler.running)))
        assert len(scheduler.running) <= scheduler.slots
        check_pages(scheduler)
        if not started and not scheduler.running:
            assert not scheduler.waiting
            return finished
    raise AssertionError("the scheduler does not come to an end")


def check_pages(scheduler):
    """Counts are true; a page that two sequences share is full and belongs to one prompt."""
    holders = [g.pages for g in scheduler.waiting] + [r.pages for r in scheduler.running]
    uses = [0] * len(scheduler.pages.uses)
    for pages in holders:
        assert len(set(pages)) == len(pages)
        for page in pages:
            uses[page] += 1
    assert uses == scheduler.pages.uses
    assert sorted(scheduler.pages.free) == [n for n, count in enumerate(uses) if count == 0]
    last = {}  # a page that a sequence still writes into: its owner
    for request in scheduler.running:
        assert len(request.pages) * scheduler.S >= request.length
        for page in request.pages[request.length // scheduler.S :]:
            assert last.setdefault(page, request) is request


@pytest.mark.parametrize("seed", range(40))
def test_the_scheduler_finishes_everything_and_never_shares_a_page_in_use(seed):
    # Caught: a page lost or released twice, a slot given twice, starvation, a preempted request
    # that is forgotten, the oldest preempted instead of the youngest.
    rng = random.Random(seed)
    S = rng.choice([1, 4, 8])
    G = rng.randint(1, 5)
    sync_every = rng.choice([1, 3, 8])
    lengths = [rng.randint(1, 30) for _ in range(rng.randint(1, 8))]
    final = [length + rng.randint(1, 40) for length in lengths]
    most = ceil_div(max(final) + sync_every, S)
    groups = []
    for p, length in enumerate(lengths):
        prompt = [0] * length
        requests = [Request(Sample(p, g), prompt, final[p] - length, 0) for g in range(G)]
        groups.append(Group(prompt, deque(requests)))
    everything = [request for group in groups for request in group.requests]
    N = most + 2 + rng.choice([0, 3, 20, 500])
    slots = rng.choice([1, 3, 9, 40])
    prefill_tokens = rng.choice([1, 40, 8192])
    scheduler = Scheduler(deque(groups), Pages(N), S, slots, sync_every, prefill_tokens)
    finished = play(scheduler, final)
    assert len(finished) == len(everything) and set(finished) == set(everything)
    assert sorted(scheduler.pages.free) == list(range(N))
    if N > len(everything) * most:  # nobody waits for pages: requests start in order
        assert slots > 1 or finished == everything


def test_a_group_shares_its_full_pages_and_is_prefilled_once():
    # Caught: a page of their own for every sample, the partly filled page shared.
    prompt = [0] * 10
    requests = [Request(Sample(0, g), prompt, 5, 0) for g in range(4)]
    scheduler = Scheduler(deque([Group(prompt, deque(requests))]), Pages(20), 4, 8, 1, 8192)
    fresh, started = scheduler.admit()
    assert len(fresh) == 1 and [r for _, r in started] == requests
    shared = {tuple(r.pages[:2]) for r in requests}
    assert len(shared) == 1 and len({r.pages[2] for r in requests}) == 4
    assert [scheduler.pages.uses[page] for page in shared.pop()] == [4, 4]
    assert len(scheduler.pages.free) == 20 - 2 - 4  # the prompt's own last page is free again
    assert scheduler.admit() == ([], [])


def test_slots_are_filled_several_at_a_time():
    prompts = [[0]] * 16
    groups = [Group(p, deque([Request(Sample(i, 0), p, 5, 0)])) for i, p in enumerate(prompts)]
    scheduler = Scheduler(deque(groups), Pages(100), 4, 16, 1, 8192)
    groups = [Group([0], deque([Request(Sample(i, 0), [0], 5, 0)])) for i in range(16, 20)]
    assert len(scheduler.admit()[1]) == 16
    scheduler.waiting.extend(groups)
    scheduler.update([1] * 16, [True] + [False] * 15)
    scheduler.compact()
    assert scheduler.admit() == ([], [])  # one free slot of 16 is not worth a prefill
    scheduler.update([1] * 15, [True] + [False] * 14)
    scheduler.compact()
    assert len(scheduler.admit()[1]) == 2


def copied(tied, dtype):
    """On each of two ranks: (weights copied from shards, whether all stayed where they were)."""
    source = shard(random_model(tied), make_mesh("cpu"), dtype)
    before = [p.to_local().clone() for p in source.parameters()]
    target = random_model(tied).to(dtype)
    for p in target.parameters():
        p.data.zero_()
    addresses = [p.data_ptr() for p in target.parameters()]
    copy_weights(source, target)
    pairs = zip(source.parameters(), before, strict=True)
    unchanged = all(torch.equal(p.to_local(), q) for p, q in pairs)
    in_place = addresses == [p.data_ptr() for p in target.parameters()]
    return target.state_dict(), unchanged and in_place


@pytest.mark.parametrize("tied,dtype", [(True, torch.float32), (False, torch.bfloat16)])
def test_weights_are_copied_in_place(tied, dtype):
    # Caught: the root's own parameters forgotten, a unit's name without its prefix, parameters
    # replaced instead of filled.
    expected = random_model(tied).to(dtype).state_dict()
    for weights, kept in ranks.run(2, copied, tied, dtype):
        assert kept and weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


# ---- The sampler's copy of the weights ----------------------------------------------------------


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("family,tied", [("qwen2", True), ("llama", False)])
def test_weights_are_packed_while_a_cpu_samples(ours, family, tied, monkeypatch):
    # Caught: a bias or a part of q/k/v left out, old packs used after the weights have changed,
    # packs that outlive the call.
    model = ours(family, tied)
    plain = ours(family, tied)
    sampler = Sampler(model, [END], slots=32, max_len=64, page_size=8)
    linears = [model.head]
    for layer in model.model["layers"]:
        linears += [layer.self_attn.fused, layer.self_attn.o_proj]
        linears += [layer.mlp.fused, layer.mlp.down_proj]
    seen = []

    def packs():
        return [getattr(linear, "reordered", None) is not None for linear in linears]

    def watched(*arguments):
        seen.append(packs())
        return sample(*arguments)

    monkeypatch.setattr(rollout, "REORDERED_FROM", 1)
    monkeypatch.setattr(rollout, "sample", watched)
    for scale in (1.0, 1.1):
        for p in (*model.parameters(), *plain.parameters()):
            p.data.mul_(scale)
        seen.clear()
        packed = sampler.generate(PROMPTS, 4, 24, 1.0, 0)
        assert seen and all(map(all, seen)) and not any(packs())
        with monkeypatch.context() as patch:
            patch.setattr(rollout, "REORDERED_FROM", 2**30)
            expected, _ = draw(plain)
        assert_same(packed, expected, atol=1e-4)

    def leave(sample):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.generate(PROMPTS, 4, 24, 1.0, 0, on_end=leave)
    assert not any(packs())


@pytest.mark.gpu
def test_cuda_graphs_draw_what_steps_draw(ours):
    # Caught: a graph that holds a value of its capture (temperature, seed, weights, tables), an
    # empty row that writes, a graph of one size replayed for another.
    model = ours("qwen3").cuda()
    graphs = Sampler(model, [END], 24, 64, page_size=16, graphs=True)
    steps = Sampler(model, [END], 24, 64, page_size=16, graphs=False)
    for scale, temperature, seed in ((1.0, 1.0, 0), (1.0, 0.7, 1), (1.1, 1.0, 2), (1.0, 0.0, 0)):
        for p in model.parameters():
            p.data.mul_(scale)
        replayed = graphs.generate(PROMPTS, 6, 24, temperature, seed)
        expected = steps.generate(PROMPTS, 6, 24, temperature, seed)
        assert_same(replayed, expected, atol=1e-4)
    assert len(graphs.graphs.captured) > 2 and steps.graphs is None
    graphs.close()
    assert not graphs.graphs.captured


def test_what_cannot_fit_is_refused_with_the_sizes(ours, tmp_path):
    with pytest.raises(ValueError, match=r"holds 32 tokens, but one .* 88, .*; raise --kv-gb"):
        draw(ours(), kv_gb=1e-5)
    with pytest.raises(ValueError, match=r"1 has 50 tokens and may draw 24: .* at most .* 64"):
        draw(ours(), [[1], [2] * 50])
    with pytest.raises(ValueError, match="prompt 1 has 0 tokens"):
        draw(ours(), [[1], []])


def test_every_prompt_can_have_its_own_limit(ours):
    # Caught: the largest limit used for all; a longer limit must only add tokens.
    model = ours()
    limited, _ = draw(model, max_new=[1, 5, 24, 9, 3])
    for s, full in zip(limited, draw(model)[0], strict=True):
        assert s.ids == full.ids[: [1, 5, 24, 9, 3][s.p]] and s.finished == (s.ids[-1] == END)


def test_stop_tokens_come_from_every_source(tmp_path):
    # Caught: the end of the template's turn left out, with which a base model runs on.
    class Tokenizer:
        eos_token_id = 7

    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    assert stop_tokens(tmp_path, Tokenizer) == [1, 2, 7]
    assert stop_tokens(tmp_path, Tokenizer, end_token=5) == [1, 2, 5, 7]
    Tokenizer.eos_token_id = None
    assert stop_tokens(tmp_path, Tokenizer) == [1, 2]
    with pytest.raises(ValueError, match="end-of-text"):
        stop_tokens(tmp_path / "nothing", Tokenizer)
    assert stop_tokens(tmp_path / "nothing", Tokenizer, end_token=5) == [5]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1,')
    with pytest.raises(ValueError, match=r"generation_config.json: not valid JSON"):
        stop_tokens(tmp_path, Tokenizer)


# ---- Ending early -------------------------------------------------------------------------------


def test_generate_ends_when_asked_and_can_be_called_again(ours):
    # Caught: a question asked once per call, sequences left alive in their slots: of the three
    # sequences drawn afterwards a step is rounded up to four, and the fourth would write.
    sampler = Sampler(ours(), [END], slots=4, max_len=64, page_size=8, graphs=True)
    expected = sampler.generate(PROMPTS[2:3], 3, 24, 1.0, 0)
    asked, ended = [], []

    def should_stop():
        asked.append(len(ended))
        return len(asked) == 40

    with pytest.raises(Interrupted):
        sampler.generate(PROMPTS, 4, 24, 1.0, 0, on_end=ended.append, should_stop=should_stop)
    assert len(asked) == 40 and 0 < len(ended) < 20
    again = sampler.generate(PROMPTS[2:3], 3, 24, 1.0, 0, should_stop=lambda: False)
    assert_same(again, expected)


class Renderer:
    """Stands in for data.Renderer: the prompt is a list of token ids, written with spaces."""

    def render_all(self, problems):
        return [[int(token) for token in problem.prompt.split()] for problem in problems]

    def text(self, ids):
        return " ".join(map(str, ids))


class InstantGrader:
    """Stands in for reward.Grader: right if the last token is the answer."""

    reward = ""  # no function of a user's

    def submit(self, text, truth):
        answer = text.split()[-1]
        future = Future()
        future.set_result(Verdict(float(answer == truth), "right", answer, "last token"))
        return future


class SleepingGrader(InstantGrader):
    """Never comes to a verdict."""

    def submit(self, text, truth):
        return Future()


PROBLEMS = [Problem(10 * i, " ".join(map(str, p)), str(END)) for i, p in enumerate(PROMPTS)]


def small_rollout(model, grader=None, should_stop=None):
    sampler = Sampler(model, [END], slots=8, max_len=64, page_size=8)
    return Rollout(sampler, Renderer(), grader or InstantGrader(), 24, 3, should_stop)


def test_a_rollout_is_drawn_and_graded(ours):
    # Caught: the place of a problem for its number as the key, on_graded called twice or never.
    model, graded, counts = ours(), [], []
    completions = small_rollout(model).draw(PROBLEMS, 3, 0.8, 4, graded.append, counts.append)
    keys = [problem.index for problem in PROBLEMS]
    expected = naive_generate(model, PROMPTS, 3, 24, 0.8, 3, 4, keys, [END])
    order = [(p, g) for p in range(5) for g in range(3)]
    assert [(c.place, c.sample) for c in completions] == order
    assert counts == list(range(1, 16))
    assert sorted(graded, key=lambda c: (c.place, c.sample)) == completions
    for c, e in zip(completions, expected, strict=True):
        assert (c.prompt, c.ids, c.finished) == (PROMPTS[e.p], e.ids, e.finished)
        assert c.text == " ".join(map(str, e.ids)) and c.verdict.score == e.finished
    row = completions[4].row(PROBLEMS[1], "five")
    assert (row["source"], row["problem"], row["sample"]) == ("five", 10, 1)
    assert row["truth"] == str(END) and row["length"] == len(completions[4].ids)


def test_a_rollout_does_not_wait_for_verdicts_when_asked_to_end(ours):
    # Caught: a run that ends only after the last verdict.
    counts = []
    rollout = small_rollout(ours(), SleepingGrader(), lambda: len(counts) == 15)
    with pytest.raises(Interrupted):
        rollout.draw(PROBLEMS, 3, 0.8, 4, progress=counts.append)


def rollouts_on_ranks(together, stop_rank):
    """On each of two ranks: the completions and those it graded; or that it was interrupted."""
    model, rank = random_model(True), dist.get_rank()
    if together:
        with torch.device("meta"):
            team = tensor_parallel(Model(model.config), dist.new_subgroups(2)[0])
        team = team.to_empty(device="cpu")
        copy_weights(shard(model, make_mesh("cpu"), torch.float32), team)
        model = team
    asked, graded = [], []

    def should_stop():
        asked.append(rank)
        return rank == stop_rank and len(asked) > 5

    rollout = small_rollout(model, should_stop=should_stop)
    try:
        return rollout.draw(PROBLEMS, 3, 0.8, 4, graded.append), graded
    except Interrupted:
        return "interrupted", len(asked)


@pytest.mark.parametrize("together", [False, True])
def test_ranks_share_a_rollout(together):
    # Caught: a sample graded by both ranks of a team, completions of one rank only.
    alone = small_rollout(random_model(True)).draw(PROBLEMS, 3, 0.8, 4)
    (first, graded), (second, rest) = ranks.run(2, rollouts_on_ranks, together, None)
    assert first == second and len(graded) + len(rest) == 15 and graded and rest
    for c, expected in zip(first, alone, strict=True):
        assert (c.place, c.sample, c.ids) == (expected.place, expected.sample, expected.ids)


@pytest.mark.parametrize("together", [False, True])
def test_all_ranks_end_when_one_is_asked(together):
    # Caught: a rank left alone in a collective (the test would run into its time limit). Ranks that
    # hold a model together give up at the same synchronisation.
    (first, asked), (second, asked_too) = ranks.run(2, rollouts_on_ranks, together, 1)
    assert first == second == "interrupted"
    assert asked_too == 6 and (asked == 6) == together
