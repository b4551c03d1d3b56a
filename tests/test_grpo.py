"""grpo.py: packing, flags, and runs of the loop; each test names its mutation. The mathematics: test_algorithms.py."""

import json
import random
from pathlib import Path

import pytest
import torch

from grpo import Flags, advantages, check, is_due, lr_factor, parse_flags
from rollout import Completion
from runtime.batch import pack
from runtime.plan import rollout_flops, sequence_flops

TINY = ["--prompts", "8", "--group", "4", "--eval-problems", "20", "--max-prompt", "32", "--max-new", "32"]


def test_advantages_by_hand():
    # Caught: the biased std (divides by G), epsilon inside the root, statistics over the batch instead of the group.
    adv_PG = advantages(torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]))
    expected = [[1.5, -0.5, -0.5, -0.5], [0.8660254, 0.8660254, -0.8660254, -0.8660254], [0.0] * 4, [0.0] * 4]
    torch.testing.assert_close(adv_PG, torch.tensor(expected), atol=1e-5, rtol=0)


def test_learning_rates_and_evaluations_by_hand():
    # Caught: updates counted from 0, a decay that starts during the warm-up, log-spaced steps without 1 or the last.
    rates = {decay: [lr_factor(u - 1, Flags(warmup=2, decay=decay)) for u in (1, 2, 3, 4, 100)] for decay in ("none", "inverse")}
    assert rates == {"none": [0.5, 1, 1, 1, 1], "inverse": [0.5, 1, 1 / 3, 1 / 4, 1 / 100]}
    assert [lr_factor(u - 1, Flags(warmup=0, decay="inverse")) for u in (1, 2)] == [1, 1 / 2]
    spaced, even = Flags(steps=100, eval_every=0), Flags(steps=25, eval_every=10)
    assert [s for s in range(101) if is_due(s, spaced)] == [0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 100]
    assert [s for s in range(26) if is_due(s, even)] == [0, 10, 20, 25]


def test_packing_deals_every_sequence_once_and_evenly():
    # Caught: shortest first, an empty micro-batch, ranks with different numbers of micro-batches.
    rng = random.Random(0)
    for ranks in (1, 2, 3, 8):
        for budget in (100, 333, 5000):
            lengths = [rng.randint(1, 100) for _ in range(64)]
            dealt = pack(lengths, ranks, budget)
            assert sorted(i for rank in dealt for micro in rank for i in micro) == list(range(64))
            assert len({len(rank) for rank in dealt}) == 1
            loads = [sum(lengths[i] for i in micro) for rank in dealt for micro in rank]
            assert 0 < min(loads) and max(loads) <= budget and max(loads) - min(loads) <= 100
    with pytest.raises(ValueError, match="3 sequences of up to 9 tokens do not fit 4 ranks"):
        pack([9, 1, 1], 4, 10)
    with pytest.raises(ValueError, match="up to 11 tokens do not fit 1 ranks with micro-batches of 10"):
        pack([11], 1, 10)


def test_flops_are_counted_as_the_work_is_done(ours):
    # One prompt of 5, two samples of 3 and 2 tokens, counted by hand: the prompt is prefilled once, last tokens never fed.
    config = ours().config
    done = [Completion(0, g, [1] * 5, [2] * n, [0.0] * n, True, "", None) for g, n in enumerate((3, 2))]
    pairs = 15 + (6 + 7) + 6
    assert rollout_flops(config, done) == config.flops(5 + 2 + 1, pairs, 5)
    assert sequence_flops(config, done) == config.flops(8 + 7, 36 + 28, 5)


def test_flags_come_from_files_and_are_checked(tmp_path, capsys):
    (tmp_path / "a.args").write_text("# a comment\n--steps 7 --lr 1e-3  # two on a line\n--recompute\n")
    f = parse_flags([f"@{tmp_path / 'a.args'}", "--steps", "9"])
    assert (f.steps, f.lr, f.recompute) == (9, 1e-3, True)  # the command line comes later and wins
    with pytest.raises(SystemExit):
        parse_flags(["--stepz", "9"])
    said = capsys.readouterr()
    assert "--stepz" in said.err + said.out
    for changes, message in [
        ({"group": 1}, "--group 1: must be a finite number, at least 2"),
        ({"prompts": 9}, "--prompts 9 is not a multiple of the 2 ranks"),
        ({"updates": 5}, "cannot be divided into --updates 5"),
        ({"temperature": 0.0}, "--temperature 0: must be"),
        ({"steps": 0}, "--steps 0: must be a finite number, at least 1"),
        ({"max_new": 20000}, "--micro-tokens 16384 is less than the longest sequence"),
        ({"template": "jinja"}, "--template jinja: must be one of auto, chat, plain"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(Flags(**changes), world=2)


@pytest.mark.parametrize("recipe", sorted((Path(__file__).parent.parent / "recipes").glob("*.args")), ids=lambda p: p.stem)
def test_recipes_are_read_and_valid(recipe):
    check(parse_flags([f"@{recipe}"]), world=4)


def test_paper_recipe_holds_the_papers_numbers():
    f = parse_flags(["@" + str(Path(__file__).parent.parent / "recipes" / "paper.args")])
    assert (f.prompts, f.group, f.updates, f.lr, f.kl, f.weight_decay, f.warmup) == (512, 8, 4, 1e-6, 0.001, 0.1, 0)
    assert (f.max_prompt, f.max_new, f.eval_every, f.steps) == (2048, 4096, 1, 105)
    assert f.eval == ["Artemis0430/GURU-MATH-CL:test:1:0.7"]


def rows(directory, kind):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One short run of the default model with several updates and a KL term, by the command a user types."""
    import subprocess
    import sys

    out = tmp_path_factory.mktemp("run") / "one"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "grpo.py", "--steps", "5", "--updates", "2",
               "--kl", "0.01", "--eval-every", "5", "--micro-tokens", "300", "--out", str(out), *TINY]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return out, done.stdout


def test_two_processes_give_the_run_of_one(run, torchrun, tmp_path):
    # Caught: noise keyed by the place on a rank, a local denominator, gradients averaged instead of summed.
    done = torchrun(2, "grpo.py", "--steps", 5, "--updates", 2, "--kl", 0.01, "--eval-every", 5, "--micro-tokens", 300, "--out",
                    tmp_path / "two", *TINY)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = rows(run[0], "train"), rows(tmp_path / "two", "train")
    assert [r["reward"] for r in one] == [r["reward"] for r in two] and len(one) == 5
    for name in ("loss", "kl", "entropy", "grad_norm", "sampler_gap", "clip_fraction"):
        assert [r[name] for r in one] == pytest.approx([r[name] for r in two], abs=1e-5), name
    assert [r["pass1"] for r in rows(run[0], "eval")] == [r["pass1"] for r in rows(tmp_path / "two", "eval")]


def test_metrics_hold_the_schema_and_add_up(run):
    out, printed = run
    flags = json.loads((out / "flags.json").read_text())
    train, evaluations = rows(out, "train"), rows(out, "eval")
    assert [r["step"] for r in train] == [1, 2, 3, 4, 5] and [r["step"] for r in evaluations] == [0, 5]
    assert {"step", "D", "C", "N", "N_total", "reward", "loss", "kl", "entropy", "clip_fraction", "grad_norm", "length",
            "truncated", "equal_groups", "accuracy", "sampler_gap", "flops", "seconds", "tokens"} <= set(train[0])
    assert {"step", "D", "C", "source", "pass1", "pass1_se", "pass1_ci", "test_loss", "problems", "samples", "length",
            "truncated"} <= set(evaluations[0])
    assert [r["D"] for r in train] == [flags["prompts"] * s for s in range(1, 6)]
    assert train[-1]["C"] == 6 * train[0]["N"] * sum(r["tokens"] for r in train)
    assert all(r["sampler_gap"] < 1e-5 and r["kl"] > -1e-9 and r["skipped_updates"] == 0 for r in train)
    assert train[0]["kl"] < train[-1]["kl"] and train[0]["micro_batches"] > 2
    assert all(e["test_loss"] == 1 - e["pass1"] for e in evaluations)
    assert (out / "curve.png").stat().st_size > 10_000 and (out / "samples.jsonl").is_file()
    assert "before:" in printed and "after:" in printed and str(out / "curve.png") in printed


def test_the_command_it_prints_loads_the_model(run):
    # Caught: tokenizer files left behind, weights of the sampler before the last update.
    from transformers import AutoTokenizer

    out, printed = run
    import shlex
    import subprocess
    import sys

    command = shlex.split(next(line for line in printed.splitlines() if line.startswith("model: "))[len("model: ") :])
    loaded = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, timeout=120)
    assert loaded.returncode == 0 and "Qwen2ForCausalLM" in loaded.stdout, loaded.stderr[-2000:]
    tokenizer = AutoTokenizer.from_pretrained(out / "final")
    assert tokenizer.decode(tokenizer.encode("a6b-4c+1?\\boxed{3}")) == "a6b-4c+1?\\boxed{3}"


def test_bad_input_ends_with_a_message_and_nothing_is_lost(torchrun, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    done = torchrun(1, "grpo.py", "--out", tmp_path / "taken", *TINY)
    assert done.returncode != 0 and "exists already and is not overwritten" in done.stderr
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["notes.txt"]
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("torch/distributed/elastic")[0]


def test_steps_without_a_finite_gradient_are_skipped_and_the_third_stops_the_run(tmp_path):
    # A huge learning rate breaks the weights at the first update; every later gradient is NaN.
    import subprocess
    import sys

    command = [sys.executable, "grpo.py", "--lr", "1e30", "--warmup", "0", "--out", str(tmp_path / "nan"), *TINY]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and "no finite gradient in three steps in a row" in done.stderr, done.stderr[-2000:]
    assert [r["skipped_updates"] for r in rows(tmp_path / "nan", "train")][-3:] == [1, 1, 1]
