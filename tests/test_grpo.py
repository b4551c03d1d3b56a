"""grpo.py: packing, flags, and runs of the loop; each test names its mutation. The mathematics:
test_algorithms.py."""

import contextlib
import dataclasses
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import ranks
import torch

from data import PROMPT, Problem
from evaluate import EvaluationSet, check_reward, load_problems
from grpo import (
    Flags,
    advantages,
    cannot_learn,
    check,
    is_due,
    lr_factor,
    measure,
    parse_flags,
    warnings_for,
)
from reward import Grader, Verdict
from rollout import Completion
from runtime.batch import pack
from runtime.ledger import Ledger, Progress
from runtime.parallel import full
from runtime.plan import rollout_flops, sequence_flops

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "--prompts",
    "8",
    "--group",
    "4",
    "--eval-problems",
    "20",
    "--max-prompt",
    "32",
    "--max-new",
    "32",
]


def test_advantages_by_hand():
    # Caught: the biased std (divides by G), epsilon inside the root, statistics over the batch
    # instead of the group.
    adv_PG = advantages(torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]))
    expected = [
        [1.5, -0.5, -0.5, -0.5],
        [0.8660254, 0.8660254, -0.8660254, -0.8660254],
        [0.0] * 4,
        [0.0] * 4,
    ]
    torch.testing.assert_close(adv_PG, torch.tensor(expected), atol=1e-5, rtol=0)


def test_learning_rates_and_evaluations_by_hand():
    # Caught: updates counted from 0, a decay that starts during the warm-up, log-spaced steps
    # without 1 or the last.
    rates = {
        decay: [lr_factor(u - 1, Flags(warmup=2, decay=decay)) for u in (1, 2, 3, 4, 100)]
        for decay in ("none", "inverse")
    }
    assert rates == {"none": [0.5, 1, 1, 1, 1], "inverse": [0.5, 1, 1 / 3, 1 / 4, 1 / 100]}
    assert [lr_factor(u - 1, Flags(warmup=0, decay="inverse")) for u in (1, 2)] == [1, 1 / 2]
    spaced, even = Flags(steps=100, eval_every=0), Flags(steps=25, eval_every=10)
    assert [s for s in range(101) if is_due(s, spaced)] == [
        0,
        1,
        2,
        3,
        4,
        6,
        8,
        11,
        16,
        23,
        32,
        45,
        64,
        91,
        100,
    ]
    assert [s for s in range(26) if is_due(s, even)] == [0, 10, 20, 25]


def test_packing_deals_every_sequence_once_and_evenly():
    # Caught: shortest first, an empty micro-batch, ranks with different numbers of micro-batches.
    rng = random.Random(0)
    for world in (1, 2, 3, 8):
        for budget in (100, 333, 5000):
            lengths = [rng.randint(1, 100) for _ in range(64)]
            dealt = pack(lengths, world, budget)
            assert sorted(i for rank in dealt for micro in rank for i in micro) == list(range(64))
            assert len({len(rank) for rank in dealt}) == 1
            loads = [sum(lengths[i] for i in micro) for rank in dealt for micro in rank]
            assert 0 < min(loads) and max(loads) <= budget and max(loads) - min(loads) <= 100
    with pytest.raises(ValueError, match="3 sequences of up to 9 tokens do not fit 4 ranks"):
        pack([9, 1, 1], 4, 10)
    with pytest.raises(
        ValueError, match="up to 11 tokens do not fit 1 ranks with micro-batches of 10"
    ):
        pack([11], 1, 10)
    # Three sequences that each fill a micro-batch leave the second of two ranks one without any.
    with pytest.raises(ValueError, match="3 sequences cannot fill 2 micro-batches on each"):
        pack([10, 9, 9], 2, 10)
    with pytest.raises(ValueError, match="9 sequences, not a multiple of the 2 ranks"):
        check(Flags(prompts=6, updates=2, group=3), world=2)


def test_flops_are_counted_as_the_work_is_done(ours):
    # One prompt of 5, two samples of 3 and 2 tokens, counted by hand: the prompt is prefilled once,
    # last tokens never fed.
    config = ours().config
    done = [
        Completion(0, g, [1] * 5, [2] * n, [0.0] * n, True, "", None) for g, n in enumerate((3, 2))
    ]
    pairs = 15 + (6 + 7) + 6
    assert rollout_flops(config, done) == config.flops(5 + 2 + 1, pairs, 5)
    assert sequence_flops(config, done) == config.flops(8 + 7, 36 + 28, 5)


def test_flags_come_from_files_and_are_checked(tmp_path, capsys):
    (tmp_path / "a.args").write_text(
        "# a comment\n--steps 7 --lr 1e-3  # two on a line\n--recompute\n"
    )
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


@pytest.mark.parametrize(
    "recipe",
    sorted((Path(__file__).parent.parent / "recipes").glob("*.args")),
    ids=lambda p: p.stem,
)
def test_recipes_are_read_and_valid(recipe):
    check(parse_flags([f"@{recipe}"]), world=4)


def test_paper_recipe_holds_the_papers_numbers():
    f = parse_flags(["@" + str(Path(__file__).parent.parent / "recipes" / "paper.args")])
    assert (f.prompts, f.group, f.updates, f.lr, f.kl, f.weight_decay, f.warmup) == (
        512,
        8,
        4,
        1e-6,
        0.001,
        0.1,
        0,
    )
    assert (f.max_prompt, f.max_new, f.eval_every, f.steps) == (2048, 4096, 1, 105)
    assert f.eval == ["Artemis0430/GURU-MATH-CL:test:1:0.7"]


# ---- What a run says at its start, and when nothing can be learned ------------------------------


def write_problems(path, prompt=None, count=40):
    """A file of sums; prompt: how each row asks, None for bare questions that --prompt wraps."""
    lines = []
    for i in range(count):
        asked = (
            {"question": f"{i} + {i}?"} if prompt is None else {"prompt": f"{i} + {i}? {prompt}"}
        )
        lines.append(json.dumps(asked | {"answer": str(2 * i)}) + "\n")
    path.write_text("".join(lines))
    return str(path)


CONFIG = SimpleNamespace(max_position=2048)


@pytest.mark.parametrize("prompt, warned", [
    (None, False), ("Put the answer within \\boxed{}.", False),
    ("End with 'Answer: $Answer'.", False),
    ("Write the result into a table.", True), ("", True),
])  # fmt: skip
def test_a_format_that_the_grader_does_not_read_is_warned_of(tmp_path, prompt, warned):
    # Caught: silence, which gives every right answer 0; an alarm at the default prompt.
    sets = load_problems(write_problems(tmp_path / "sums.jsonl", prompt), [], 5, 0, PROMPT)
    said = warnings_for(Flags(prompts=4), sets.training, CONFIG)
    assert any("no form of answer that the grader reads" in text for text in said) == warned
    assert len(said) == warned
    own_reward = Flags(prompts=4, reward="mine.py:reward")
    assert warnings_for(own_reward, sets.training, CONFIG) == []


@pytest.mark.parametrize("changes, words", [
    ({}, None), ({"updates": 4, "ratio": "sequence", "clip_high": 0.3}, None),
    ({"ratio": "sequence"}, "--ratio: without effect with --updates 1"),
    ({"clip_high": 0.28, "surrogate": "cispo", "dual_clip": 0.0}, "--surrogate, --clip-high: "
        "without"),
    ({"kl_estimator": "k2"}, "--kl-estimator k2: without effect with --kl 0"),
    ({"kl_estimator": "k2", "kl": 0.1}, None),
    ({"max_prompt": 2000}, "--max-prompt 2000 + --max-new 64 exceed the 2048 positions"),
])  # fmt: skip
def test_flags_that_cannot_act_are_named(changes, words):
    said = warnings_for(Flags(**changes), arithmetic(), CONFIG)
    assert (words is None and said == []) or (len(said) == 1 and words in said[0]), said


def arithmetic():
    return load_problems("arithmetic", [], 5, 0, PROMPT).training


def test_recipes_for_several_updates_have_them():
    # Caught: one update per rollout, where the ratio is 1 and clipping cannot act.
    for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "paper"):
        f = parse_flags([f"@{ROOT}/recipes/{name}.args"])
        assert f.updates == 4 and not [
            w for w in warnings_for(f, arithmetic(), CONFIG) if "effect" in w
        ]


@pytest.mark.parametrize("stats, words", [
    ({"truncated": 1, "no_answer": 1}, "every completion was truncated at --max-new 64; raise it"),
    ({"truncated": 0.5, "no_answer": 1}, r"no completion held an answer such as \boxed{..} within"),
    ({"truncated": 0.5, "no_answer": 0.2}, "the mean reward is 0"),
    ({"truncated": 0.5, "no_answer": 0.2, "reward": 1}, "groups had equal rewards"),
])  # fmt: skip
def test_a_run_that_cannot_learn_says_so_once(stats, words):
    stats = {"reward": 0.0} | stats
    said = [cannot_learn(Progress(idle_steps=idle), stats, Flags()) for idle in range(8)]
    assert [i for i, text in enumerate(said) if text] == [5] and words in said[5]


def test_five_steps_without_a_signal_are_counted(tmp_path):
    # Caught: a step counted whose groups differ, or one missed in which all sequences are masked.
    ledger = SimpleNamespace(progress=Progress())
    for equal, in_loss, expected in [(1, 1, 1), (1, 0, 2), (0.9, 0, 3), (0.9, 0.5, 0), (1, 1, 1)]:
        Ledger.count_idle(ledger, {"equal_groups": equal, "in_loss": in_loss})
        assert ledger.progress.idle_steps == expected


def test_a_stored_reward_function_is_not_run_unless_the_user_names_it(tmp_path):
    # Caught: code of whoever made the run, which --resume would execute.
    flags = dataclasses.asdict(Flags(reward="theirs.py:reward", lr=0.5))
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    for more in ([], ["--reward", "other.py:reward"]):
        with pytest.raises(ValueError, match=r"was made with --reward theirs\.py:reward, whose"):
            parse_flags(["--resume", str(tmp_path), *more])
    f = parse_flags(["--resume", str(tmp_path), "--reward", "theirs.py:reward"])
    assert (f.reward, f.lr) == ("theirs.py:reward", 0.5)


@pytest.mark.parametrize("changes, words", [
    ({"steps": "5"}, "steps is '5', where a int is expected"),
    ({"prompts": None}, "prompts is None"), ({"seed": [1]}, r"seed is \[1\]"),
    ({"recompute": 1}, "recompute is 1, where a bool"), ({"eval": [1]}, "eval is"),
])  # fmt: skip
def test_stored_flags_of_another_type_are_refused(tmp_path, changes, words):
    # Caught: a traceback from the middle of the run for a flags.json that was edited.
    flags = dataclasses.asdict(Flags(lr=0.5)) | {"lr": 1, "world": 4, "gone": 3}
    (tmp_path / "flags.json").write_text(json.dumps(flags))
    assert parse_flags(["--resume", str(tmp_path)]).lr == 1.0
    (tmp_path / "flags.json").write_text(json.dumps(flags | changes))
    with pytest.raises(ValueError, match=words):
        parse_flags(["--resume", str(tmp_path)])


def readme_reward(tmp_path):
    """The reward function of README's Countdown, as --reward takes it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "countdown.py" in block]
    (tmp_path / "countdown.py").write_text(code)
    row = json.loads(re.search(r"# a row of countdown.jsonl: (.*)", code)[1])
    (tmp_path / "countdown.jsonl").write_text(12 * (json.dumps(row) + "\n"))
    return f"{tmp_path / 'countdown.py'}:reward", row


def test_the_countdown_of_the_readme_works(tmp_path):
    # Caught: a problem that the function cannot read; a forged expression that counts.
    reward, row = readme_reward(tmp_path)
    problem = Problem(0, row["question"], row["answer"])
    check_reward(reward, problem)
    texts = ["\\boxed{(8 - 4) * 6}", "\\boxed{4 * 6}", "\\boxed{4 * 6 * (8 - 8 + 1)}"]
    texts += ["\\boxed{24}", "24", "\\boxed{__import__('os')}", "\\boxed{6 / 0}", "\\boxed{)}"]
    with Grader(1, 20.0, reward=reward) as grader:
        verdicts = grader.grade(texts, [problem] * len(texts))
    assert [v.score for v in verdicts] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert {v.verdict for v in verdicts} == {"graded"}


@pytest.mark.parametrize("body", ["return problem.answer", "return 'x'", "return float('nan')"])
def test_a_reward_function_that_fails_is_refused_at_the_start(tmp_path, body):
    # Caught: a run of nothing but zeros, which looks like a model that cannot learn.
    (tmp_path / "mine.py").write_text(f"def reward(completion, problem):\n    {body}\n")
    with pytest.raises(ValueError, match=r"mine.py:reward: fails on an empty completion \(reward"):
        check_reward(f"{tmp_path / 'mine.py'}:reward", Problem(0, "1 + 1?", "2"))
    with pytest.raises(ValueError, match="no such file"):
        check_reward(f"{tmp_path / 'nowhere.py'}:reward", Problem(0, "1 + 1?", "2"))
    with pytest.raises(ValueError, match="names no function"):
        check_reward(str(tmp_path / "mine.py"), Problem(0, "1 + 1?", "2"))
    (tmp_path / "broken.py").write_text("import no_such_module")
    with pytest.raises(ValueError, match="cannot be loaded"):
        check_reward(f"{tmp_path / 'broken.py'}:reward", Problem(0, "1 + 1?", "2"))


@pytest.mark.parametrize("text", ["arithmetic:test:1:-1", "arithmetic:0.5", "gsm8k:test:-1"])
def test_numbers_of_an_evaluation_that_are_none_are_named(text):
    with pytest.raises(ValueError, match="must be a whole number"):
        EvaluationSet.parse(text)


# ---- The statistics of a step -------------------------------------------------------------------


def a_step(source, cases):
    """The statistics of one step for each case, and how far the weights moved."""
    from test_scale import StandIn

    import grpo
    from model import Config, Model
    from runtime.parallel import load, make_mesh, shard

    found = []
    for changes, completions in cases:
        f = grpo.Flags(prompts=2, group=2, max_prompt=8, max_new=10, warmup=4, lr=0.01, **changes)
        with torch.device("meta"):
            policy = Model(Config.read(source))
        policy = shard(policy, make_mesh("cpu"), torch.float32).to_empty(device="cpu")
        load(policy, source)
        before = [full(p).clone() for p in policy.parameters()]
        optimizer, scheduler = grpo.make_optimizer(f, policy)
        stats = grpo.train_step(policy, None, optimizer, scheduler, completions, f, StandIn())
        after = [full(p) for p in policy.parameters()]
        moved = max((a - b).abs().max().item() for a, b in zip(after, before, strict=True))
        found.append((stats, moved))
    return found


def graded(grades, lengths):
    made = []
    for i, (grade, length) in enumerate(zip(grades, lengths, strict=True)):
        verdict = Verdict(float(grade), "graded", "1", "")
        ids = [3 + i] * length
        made.append(Completion(i // 2, i % 2, [1, 2], ids, [-1.0] * length, True, "", verdict))
    return made


def test_a_step_logs_what_it_trained_on(checkpoint):
    # Caught: the grade for the reward, the rate of the next update, a loss that is not the
    # surrogate, a clip at 0 that lets nothing move, fractional groups of equal rewards that train.
    soft = graded([1, 0, 1, 0], [10, 4, 9, 4])  # the penalty: 1 and 0.5
    equal = graded([0.1] * 4, [3, 4, 5, 6])
    cases = [
        ({"overlong": "soft", "updates": 2}, soft),
        ({"clip_grad": 0.0}, graded([1, 0, 1, 0], [3] * 4)),
        ({"clip_grad": 1.0}, graded([1, 0, 1, 0], [3] * 4)),
        ({"weight_decay": 0.0}, equal),
    ]
    (found,) = ranks.run(1, a_step, checkpoint("qwen2", True)[0], cases)
    (first, _), (off, moved), (_, clipped), (idle, still) = found
    assert first["reward"] == pytest.approx((2 - 1 - 0.5) / 4) and first["accuracy"] == 0.5
    assert first["lr"] == pytest.approx(0.01 * 2 / 4)  # of the second update, the last one
    assert off["grad_norm"] > 0 and moved == pytest.approx(clipped, rel=0.2) and moved > 1e-4
    assert (idle["equal_groups"], idle["loss"], idle["grad_norm"], still) == (1, 0, 0, 0)
    assert "test_loss" not in first and "loss" in first


def rows(directory, kind):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One short run of the default model with several updates and a KL term, by the command a user
    types."""
    import subprocess
    import sys

    out = tmp_path_factory.mktemp("run") / "one"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "grpo.py",
        "--steps",
        "5",
        "--updates",
        "2",
        "--kl",
        "0.01",
        "--eval-every",
        "5",
        "--micro-tokens",
        "300",
        "--out",
        str(out),
        *TINY,
    ]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out, done.stdout


def test_two_processes_give_the_run_of_one(run, torchrun, tmp_path):
    # Caught: noise keyed by the place on a rank, a local denominator, gradients averaged instead of
    # summed.
    done = torchrun(
        2,
        "grpo.py",
        "--steps",
        5,
        "--updates",
        2,
        "--kl",
        0.01,
        "--eval-every",
        5,
        "--micro-tokens",
        300,
        "--out",
        tmp_path / "two",
        *TINY,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = rows(run[0], "train"), rows(tmp_path / "two", "train")
    assert [r["reward"] for r in one] == [r["reward"] for r in two] and len(one) == 5
    for name in ("loss", "kl", "entropy", "grad_norm", "sampler_gap", "clip_fraction"):
        assert [r[name] for r in one] == pytest.approx([r[name] for r in two], abs=1e-5), name
    assert [r["pass1"] for r in rows(run[0], "eval")] == [
        r["pass1"] for r in rows(tmp_path / "two", "eval")
    ]


def test_metrics_hold_the_schema_and_add_up(run):
    out, printed = run
    flags = json.loads((out / "flags.json").read_text())
    train, evaluations = rows(out, "train"), rows(out, "eval")
    assert [r["step"] for r in train] == [1, 2, 3, 4, 5] and [r["step"] for r in evaluations] == [
        0,
        5,
    ]
    assert {
        "step",
        "D",
        "C",
        "N",
        "N_total",
        "reward",
        "loss",
        "kl",
        "entropy",
        "clip_fraction",
        "grad_norm",
        "length",
        "truncated",
        "equal_groups",
        "accuracy",
        "sampler_gap",
        "flops",
        "seconds",
        "tokens",
    } <= set(train[0])
    assert {
        "step",
        "D",
        "C",
        "source",
        "pass1",
        "pass1_se",
        "pass1_ci",
        "test_loss",
        "problems",
        "samples",
        "length",
        "truncated",
    } <= set(evaluations[0])
    assert [r["D"] for r in train] == [flags["prompts"] * s for s in range(1, 6)]
    assert train[-1]["C"] == 6 * train[0]["N"] * sum(r["tokens"] for r in train)
    assert all(
        r["sampler_gap"] < 1e-5 and r["kl"] > -1e-9 and r["skipped_updates"] == 0 for r in train
    )
    assert train[0]["kl"] < train[-1]["kl"] and train[0]["micro_batches"] > 2
    assert all(e["test_loss"] == 1 - e["pass1"] for e in evaluations)
    assert (out / "curve.png").stat().st_size > 10_000 and (out / "samples.jsonl").is_file()
    assert "before:" in printed and "after:" in printed and str(out / "curve.png") in printed


def test_transformers_loads_the_model_that_it_names(run):
    # Caught: tokenizer files left behind, weights of the sampler before the last update.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, printed = run
    assert f"model: {out / 'final'}" in printed
    model = AutoModelForCausalLM.from_pretrained(out / "final")
    assert type(model).__name__ == "Qwen2ForCausalLM"
    tokenizer = AutoTokenizer.from_pretrained(out / "final")
    assert tokenizer.decode(tokenizer.encode("a6b-4c+1?\\boxed{3}")) == "a6b-4c+1?\\boxed{3}"


def test_bad_input_ends_with_a_message_and_nothing_is_lost(torchrun, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    done = torchrun(1, "grpo.py", "--out", tmp_path / "taken", *TINY)
    assert done.returncode != 0 and "exists already and is not overwritten" in done.stderr
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["notes.txt"]
    before_torchrun = done.stderr.split("ChildFailedError")[0].split("torch/distributed/elastic")[0]
    assert "Traceback" not in before_torchrun
    # Caught: a message that only stands far above torchrun's own report.
    last = "\n".join(done.stderr.strip().splitlines()[-3:])
    assert "exists already and is not overwritten" in last


def test_steps_without_a_finite_gradient_are_skipped_and_the_third_stops_the_run(tmp_path):
    # A huge learning rate breaks the weights at the first update; every later gradient is NaN.
    import subprocess
    import sys

    command = [
        sys.executable,
        "grpo.py",
        "--lr",
        "1e30",
        "--warmup",
        "0",
        "--out",
        str(tmp_path / "nan"),
        *TINY,
    ]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2 and "no finite gradient in three steps in a row" in done.stderr, (
        done.stderr[-2000:]
    )
    assert [r["skipped_updates"] for r in rows(tmp_path / "nan", "train")][-3:] == [1, 1, 1]


def test_the_trainers_log_probs_are_at_the_temperature(checkpoint):
    # Caught: temperature 1 in the forward of pi (one update), or in that of pi_old (two).
    source, oracle = checkpoint("qwen2", True)
    done = []
    for i, ids in enumerate([[9, 8, 7], [6, 5], [4, 3, 2, 1], [11]]):
        logits_TV = oracle(torch.tensor([[1, 2, *ids]])).logits[0, 1:-1].detach()
        logp_TV = (logits_TV / 0.5).log_softmax(-1)
        logp = [row[token].item() for row, token in zip(logp_TV, ids, strict=True)]
        verdict = Verdict(float(i % 2), "", "1", "")
        done.append(Completion(i // 2, i % 2, [1, 2], ids, logp, True, "", verdict))
    cases = [({"temperature": 0.5, "updates": updates}, done) for updates in (1, 2)]
    (found,) = ranks.run(1, a_step, source, cases)
    assert all(stats["sampler_gap"] < 1e-5 for stats, _ in found)


def test_every_evaluation_of_a_run_draws_with_the_same_noise():
    # Caught: noise keyed by the training step, which blurs the difference of two evaluations.
    asked = []

    def draw(problems, n, temperature, step, on_graded):
        asked.append(step)
        return []

    sampler = SimpleNamespace(preempted=0)
    rollout = SimpleNamespace(draw=draw, sampler=sampler, grader=None)
    test = EvaluationSet("", 1, 1.0, [SimpleNamespace(index=0)])
    for step in (0, 10):
        clock = SimpleNamespace(
            begin=lambda text: None,
            phase=lambda name: contextlib.nullcontext(),
        )
        ledger = SimpleNamespace(progress=SimpleNamespace(step=step), clock=clock)
        with pytest.raises(KeyError):  # the stand-in drew nothing, so there is nothing to count
            measure(rollout, [test], ledger)
    assert asked == [-1, -1]
