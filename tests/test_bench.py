"""What the comparison of whole steps rests on: both sides start alike, and no completion can end early."""

import argparse
import json

import pytest
from transformers import AutoTokenizer

import data
from bench import bench_step, common
from model import Config, Model
from rollout import stop_tokens
from runtime.parallel import load


@pytest.fixture
def benches():
    return common, bench_step


@pytest.mark.parametrize("V", [45, 300], ids=["the tiny tokenizer's", "filled up"])
def test_the_end_token_has_no_row(tmp_path, monkeypatch, benches, V):
    """Caught: an end token added at the first free id, which a model with more rows than tokens would draw now and then, so
    that completions of the two sides differ in length. Shown by leaving out the filling of the vocabulary: 45 < 300."""
    common, step = benches
    monkeypatch.setitem(common.SHAPES, "tiny", (*common.SHAPES["tiny"][:5], V, True))
    step.make(tmp_path, argparse.Namespace(shape="tiny", prompts=4, steps=1))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert stop_tokens(tmp_path, tokenizer) == [V] == [Config.read(tmp_path).V]
    model = load(Model(Config.read(tmp_path)), tmp_path)
    assert model.model["embed_tokens"].weight.shape[0] == V
    assert (model.model["layers"][0].self_attn.q_proj.weight.std() - 0.02).abs() < 0.002  # initialised, and not as norms are

    # The prompts are those that grpo.py draws with its defaults, the same in text for TRL and in tokens for us.
    problems = data.order(data.load("arithmetic", seed=0))
    rows = json.loads((tmp_path / "problems.json").read_text())
    assert [row["prompt"] for row in rows] == [p.prompt for p in problems[:8]]
    prompts = [data.render(p, tokenizer) for p in problems[:8]]
    assert [tokenizer(row["prompt"])["input_ids"] for row in rows] == prompts and max(map(max, prompts)) < 45


def test_a_result_goes_where_it_is_told(tmp_path, monkeypatch, benches):
    """Caught: a line that leaves out where it was measured, or a path of this machine in it."""
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    flags = argparse.Namespace(device="cpu", repeat=3, folder=tmp_path)
    benches[0].record("claim", flags, [{"name": "ours", "ms": 1.0}], {"copy": 2.0}, ("bench/common.py",), {"peer's trl": "1"})
    line = json.loads((tmp_path / "out" / "claim.jsonl").read_text())
    assert line["flags"] == {"device": "cpu", "repeat": 3} and line["versions"]["peer's trl"] == "1"
    assert line["commit"] and "thread" in line["device"] and line["rows"] == [{"name": "ours", "ms": 1.0}]
