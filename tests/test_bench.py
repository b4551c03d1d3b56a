"""The benches: both sides of a comparison start alike, and what is counted is what was done."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import AutoTokenizer

import data
from bench import bench_algorithms, bench_memory, bench_mfu, bench_step, common
from model import Config, Model
from rollout import stop_tokens
from runtime.parallel import check_tokenizer, connect, load


@pytest.mark.parametrize("V", [45, 300], ids=["tiny tokenizer", "filled up"])
def test_the_end_token_has_no_row(tmp_path, monkeypatch, V):
    """Caught: an end token at the first free id, which a model with more rows than tokens draws now
    and then, so that completions of the two sides differ in length. Shown by leaving out the
    filling of the vocabulary: 45 < 300."""
    monkeypatch.setitem(common.SHAPES, "tiny", common.SHAPES["tiny"]._replace(V=V))
    flags = bench_step.Flags(shape="tiny", prompts=4, steps=1)
    bench_step.make_checkpoint(tmp_path, flags)
    config = Config.read(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert config.V == V
    assert stop_tokens(tmp_path, tokenizer) == [V]
    check_tokenizer(tokenizer, config)  # grpo.py refuses a token without a row
    tokenizer.add_special_tokens({"eos_token": "<never>"})  # as bench/step_trl.py does
    assert tokenizer.eos_token_id == V
    model = load(Model(config), tmp_path)
    assert len(model.head.weight) == V
    std = model.model["layers"][0].self_attn.q_proj.weight.std()
    assert abs(std - 0.02) < 0.002  # initialised, and not as norms are

    # The prompts are those that grpo.py draws: as text for TRL, as tokens for us.
    problems, _ = data.load("arithmetic", seed=0)
    problems = data.order(problems)[:8]
    rows = json.loads((tmp_path / "problems.json").read_text())
    assert [row["prompt"] for row in rows] == [p.prompt for p in problems]
    prompts = data.Renderer(tokenizer).render_all(problems)
    assert [tokenizer(row["prompt"])["input_ids"] for row in rows] == prompts
    assert max(map(max, prompts)) < 45


def test_a_side_with_other_work_gives_no_result():
    """Caught: ratios of sides that drew a different number of tokens."""
    flags = bench_step.Flags(max_new=32)
    own = bench_step.Measured([1.0], [100], [32], "cpu")
    bench_step.check_same_work("generate", own, own, flags)
    for other in (
        bench_step.Measured([1.0], [99], [32], "cpu"),
        bench_step.Measured([1.0], [100], [31.5], "cpu"),
        bench_step.Measured([1.0], [100], [32], "cuda"),
    ):
        with pytest.raises(SystemExit, match="not the same work: generate counts"):
            bench_step.check_same_work("generate", other, own, flags)


def test_a_result_goes_where_it_is_told(tmp_path, monkeypatch):
    """Caught: a line that leaves out where it was measured, or holds a path of this machine."""
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    flags = {"repeat": 3, "folder": tmp_path}
    rows = [{"name": "ours", "ms": 1.0}]
    common.record("claim", flags, rows, {"copy": 2.0}, ("bench/common.py",), {"peer's trl": "1"})
    line = json.loads((tmp_path / "out" / "claim.jsonl").read_text())
    assert line["flags"] == {"repeat": 3}
    assert line["versions"]["peer's trl"] == "1"
    assert line["commit"]
    assert line["device"] == common.device_name()
    assert line["rows"] == rows


@pytest.fixture
def tiny(tmp_path):
    """(folder, device, config) of the tiny shape, with a process group of one."""
    common.write_config(tmp_path, "tiny")
    device, folder, config = connect(str(tmp_path))
    yield Path(folder), device, config
    dist.destroy_process_group()


@pytest.mark.skipif(common.GPU, reason="on a GPU the bench itself is run")
def test_the_measured_run_is_the_planned_one(tiny):
    """Caught: a phase that is not measured, micro-batches that are not full. The bench itself stops
    unless a step has two of them and changes the weights."""
    _, device, config = tiny
    flags = bench_memory.Flags(shape="tiny", micro_tokens=256, kl=0.001, kv_gb=0.01)
    f = bench_memory.grpo_flags(flags, max_prompt=16, max_new=48)
    completions = bench_memory.longest_completions(f, config.V, seed=0)
    assert sum(len(c.prompt) + len(c.ids) for c in completions) == 2 * f.micro_tokens
    peaks = bench_memory.measure(f, config, device, steps=1)
    assert set(peaks) == {"generation", "reference", "train", "weights"}


@pytest.mark.skipif(common.GPU, reason="on a GPU the bench itself is run")
def test_mfu_counts_the_tokens_of_its_batch(tiny):
    """Caught: FLOPs of another number of sequences than the batch has, or head rows for prompts."""
    _, device, config = tiny
    flags = bench_mfu.Flags(tokens=200, prompt=20, new=30)
    b = bench_mfu.random_batch(flags, config.V, device)
    pairs = sum(L * (L + 1) // 2 for L in b.length_B)
    assert b.length_B == [50] * 4
    assert bench_mfu.flops(config, flags) == {
        "with the head": 3 * config.flops(len(b.token_T), pairs, len(b.row_R)),
        "without it": 3 * config.flops(len(b.token_T), pairs, 0),
    }
    assert set(b.adv_R.tolist()) == {1.0, -1.0}


def test_the_interval_over_seeds_by_hand():
    """Caught: the biased std, the normal quantile (1.96) for Student's t, statistics over the wrong
    axis. Three runs of 1, 2, 3: t = 4.3027 at 2 degrees of freedom, std 1, so 4.3027 / sqrt(3)."""
    points_RE = torch.tensor([[1.0, 5], [2, 5], [3, 5]]).numpy()
    mean_E, half_E = bench_algorithms.interval(points_RE)
    assert mean_E.tolist() == [2, 5]
    assert half_E.tolist() == pytest.approx([4.30265 / 3**0.5, 0], abs=1e-4)
