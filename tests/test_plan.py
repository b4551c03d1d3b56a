"""plan.py: its counts against tensors and against a run, and what it says about runs that do not
fit."""

import contextlib
import dataclasses
import json
import re
import types
from pathlib import Path

import pytest
import torch

from grpo import Flags, main, parse_flags, plan_job
from model import Config, Model
from rollout import Completion
from runtime import plan
from runtime.plan import rollout_flops, sequence_flops

PAPER = "@" + str(Path(__file__).parent.parent / "recipes" / "paper.args")
# Qwen2.5-7B
SEVEN = Config("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, False, 1e-6, 1e6, None, 32768)
SEVENTY = dataclasses.replace(SEVEN, layers=80, D=8192, F=29568, H=64, J=8)  # Qwen2.5-72B


class Attention(torch.autograd.Function):
    """Keeps what flash attention keeps: q, k, v, o and a float32 for every head and token."""

    @staticmethod
    def forward(ctx, q_THK, k_TJK, v_TJK):
        o_THK = q_THK * 1.0
        ctx.save_for_backward(q_THK, k_TJK, v_TJK, o_THK, torch.zeros(q_THK.shape[:2]))
        return o_THK


class Norm(torch.autograd.Function):
    """Keeps what torch's norm for CUDA keeps (the CPU's is made of several operations): its input,
    and a float32 per row."""

    @staticmethod
    def forward(ctx, x_TD):
        ctx.save_for_backward(x_TD, torch.zeros(len(x_TD)))
        return x_TD * 1.0


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_those_that_autograd_keeps(recompute, monkeypatch):
    # Caught: the statistic of a norm left out, or an MLP of three tensors instead of four. The
    # count is exact.
    monkeypatch.setattr(
        torch.nn.functional, "rms_norm", lambda x, shape, weight, eps: Norm.apply(x)
    )
    config = Config("qwen2", 3, 64, 160, 4, 2, 16, 97, True, 1e-6, 1e4, None, 512)
    model, T, kept = Model(config, recompute).to(torch.bfloat16), 50, {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(x):
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x  # kept alive, so that no address is used twice
        return x

    x_TD = torch.randn(T, 64, dtype=torch.bfloat16)
    x_TD.requires_grad_()
    angle_TK = torch.randn(T, 16, dtype=torch.bfloat16)
    own |= {angle_TK.untyped_storage().data_ptr()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        for i, layer in enumerate(model.model["layers"]):
            step = contextlib.nullcontext() if not recompute else None
            arguments = (x_TD, angle_TK, angle_TK, lambda _, q, k, v: Attention.apply(q, k, v), i)
            if step is None:
                x_TD = torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x_TD = layer(*arguments)
    counted = sum(x.untyped_storage().nbytes() for x in kept.values())
    one_layer = plan.activations(dataclasses.replace(config, layers=1), False)
    assert counted == T * (plan.activations(config, recompute) - (one_layer if recompute else 0))


def test_static_memory_is_what_the_tensors_take(ours):
    # Parameters and AdamW's state of a real optimizer. Caught: moments in bf16, a shard that
    # replicas cut once more.
    model = ours()
    c, f = model.config, plan_job(Flags())
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values() if t.dim())
    weights = sum(p.nbytes for p in model.parameters())
    stays = plan.lasting_memory(f, c, 1)
    sizes = [stays[part] for part in ("parameters", "gradients", "optimiser")]
    assert sizes == pytest.approx([weights, weights, state])
    assert stays["reference"] == 0 and plan.lasting_memory(plan_job(Flags(kl=0.1)), c, 1)[
        "reference"
    ] == pytest.approx(weights / 2)
    eight, hybrid = (
        plan.lasting_memory(f, c, 8),
        plan.lasting_memory(plan_job(Flags(replicas=2)), c, 8),
    )
    assert eight["optimiser"] == pytest.approx(state / 8) and hybrid["optimiser"] == pytest.approx(
        state / 4
    )
    assert (
        eight["sampler's copy"]
        == hybrid["sampler's copy"]
        == stays["sampler's copy"]
        == pytest.approx(weights / 2)
    )
    assert plan.lasting_memory(plan_job(Flags(offload=True)), c, 8)["parameters"] == 0


def test_pages_are_those_that_the_sampler_takes(ours):
    from rollout import Sampler

    f, model = Flags(slots=5, max_prompt=40, max_new=24), ours()
    # as on a GPU
    pages = Sampler(model, [0], f.slots, f.max_prompt + f.max_new, f.kv_gb, sync_every=8).runner.kv
    assert plan.lasting_memory(plan_job(f), model.config, 1)["pages"] == pytest.approx(
        pages.numel() * 2
    )
    f.kv_gb = 1e-4
    pages = Sampler(
        model.to(torch.bfloat16), [0], f.slots, f.max_prompt + f.max_new, f.kv_gb
    ).runner.kv
    assert plan.lasting_memory(plan_job(f), model.config, 1)["pages"] == pytest.approx(
        pages.numel() * 2
    )


def test_flops_are_those_that_the_ledger_counts():
    # Against the ledger's own count of a step whose sequences have the planned lengths.
    f = Flags(
        prompts=4,
        group=3,
        updates=2,
        kl=0.1,
        recompute=True,
        eval_problems=6,
        eval=[":2:1"],
        eval_every=5,
    )
    done = [
        Completion(p, g, [1] * 70, [2] * 50, [0.0] * 50, True, "", None)
        for p in range(4)
        for g in range(3)
    ]
    test = [
        Completion(p, g, [1] * 70, [2] * 50, [0.0] * 50, True, "", None)
        for p in range(6)
        for g in range(2)
    ]
    forward = sequence_flops(SEVEN, done)
    planned = plan.step_flops(plan_job(f), SEVEN, 70, 50)
    assert (planned["old"], planned["reference"], planned["train"]) == (
        forward,
        forward,
        4 * forward,
    )
    assert planned["generation"] == pytest.approx(rollout_flops(SEVEN, done), rel=0.02)
    assert planned["evaluation"] == pytest.approx(rollout_flops(SEVEN, test) / 5, rel=0.02)


def planned(c, gpus, *flags):
    f = parse_flags([PAPER, *flags])
    world, name, gpu = plan.read_gpus(gpus)
    return plan.table(f.model, plan_job(f), c, world, name, gpu, None)


def test_a_plan_says_what_does_not_fit_and_what_each_flag_would_change():
    # A flag in the table is tried: with it the plan must give the table's number. Caught: a flag
    # that is set already.
    fits = planned(SEVEN, "8xH100", "--kv-gb", "20")
    assert ": fits" in fits and "does not" not in fits and "with this flag alone" not in fits
    for gpus, *flags in (
        ("8xH100", "--micro-tokens", "32768"),
        ("4xA100",),
        ("32xH100",),
        ("16x48GB@300TF", "--kv-gb", "4", "--micro-tokens", "32768"),
    ):
        c = SEVENTY if gpus == "32xH100" else SEVEN
        text = planned(c, gpus, *flags)
        assert ": does not fit" in text, text
        table = text.split("with this flag alone")[1].split("  disk:")[0].splitlines()[1:]
        for line in table[:-1]:
            flag, size = re.fullmatch(r"  (--.*?)\s+([\d.]+)(?:   fits)?", line).groups()
            alone = planned(c, gpus, *flags, *flag.split())
            together = re.search(r"  together +([\d.]+)", alone)[1]
            assert together == size and (": fits" in alone) == line.endswith("fits"), line
        assert table[-1].startswith("  all of them")
    for gpus, message in (
        ("8xZ9", "one of B200"),
        ("H100", "write for example 8xH100"),
        ("0xH100", "write for example 8xH100"),
        ("8x48GB", "150TF"),
    ):
        with pytest.raises(ValueError, match=message):
            planned(SEVEN, gpus)
    for changes in ({"replicas": 3}, {"sampler_tp": 3}):
        with pytest.raises(ValueError, match=r"--(replicas|sampler-tp) 3 does not divide 8 GPUs"):
            main(Flags(**changes, plan="8xH100"))
    with pytest.raises(
        ValueError,
        match="2 ranks cannot share a model with 3 query heads, 3 key-value heads and 128 features",
    ):
        main(Flags(sampler_tp=2, plan="8xH100"))


def test_the_command_prints_a_plan_and_makes_nothing(tmp_path, capsys):
    main(parse_flags(["--plan", "2xH100", "--out", str(tmp_path / "run")]))
    printed = capsys.readouterr().out
    assert (
        "models/tiny: 83,712 parameters" in printed
        and ": fits" in printed
        and "of 989 TFLOP/s a GPU" in printed
    )
    assert not (tmp_path / "run").exists()


def test_time_comes_from_a_run_where_there_is_one(tmp_path):
    # Two steps are left of which the second half is the last: 3 + 1 seconds, and 8 seconds of
    # evaluation every 4 steps.
    rows = [{"kind": "eval", "step": 0, "seconds": {"evaluation": 8.0}}]
    rows += [
        {
            "kind": "train",
            "length": 30.0,
            "tokens": 8 * 4 * 50,
            "seconds": {"generation": g, "train": 1.0},
        }
        for g in (99.0, 3.0)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "flags.json").write_text(
        json.dumps(dataclasses.asdict(Flags(prompts=8, group=4, eval_every=4)))
    )
    seen = plan.measured(str(tmp_path))
    assert seen == plan.Measured({"generation": 3.0, "train": 1.0, "evaluation": 2.0}, 20, 30)
    f = parse_flags(["--resume", str(tmp_path), "--steps", "600"])
    text = plan.table(f.model, plan_job(f), SEVEN, 2, "H100", plan.GPUS["H100"], seen)
    assert (
        "of 20 + 30 tokens, as measured" in text
        and "600 steps: 1 hours, 2 GPU-hours" in text
        and "assumed:" not in text
    )


def test_peak_rates_are_found_by_the_devices_name(monkeypatch):
    for name, expected in (
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L40S", 362e12),
        ("Something New", 0.0),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None, name=name: name)
        assert plan.peak_flops(types.SimpleNamespace(type="cuda")) == expected
    assert plan.peak_flops(torch.device("cpu")) == 0
