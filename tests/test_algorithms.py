"""Every piece of the algorithms against a slow float64 transcription of its equation; each test
names its mutation."""

import dataclasses
import math
import random
import statistics
import types
from pathlib import Path

import pytest
import ranks
import torch
from test_scale import Keep, StandIn, arguments, lines

from grpo import (
    Flags,
    advantages,
    check,
    draw_groups,
    grpo_loss,
    parse_flags,
    rewards,
    token_weights,
)
from reward import Verdict
from rollout import Completion
from runtime.batch import Batch

RECIPES = [
    p
    for p in sorted((Path(__file__).parent.parent / "recipes").glob("*.args"))
    if p.stem != "benchmarks"
]


# ---- The loss ------------------------------------------------------------------------------------


def slow_loss(new, b, f, constant):
    """The loss, a token at a time. new: log-probs of every sequence; constant: the log-probs at
    which is taken what has a stopped gradient."""
    loss = 0.0
    for logp, fixed, old, sampler, ref, adv, weight in zip(new, constant, *b, strict=True):
        n = len(logp)
        whole = sum(old[t] - sampler[t] for t in range(n))
        for t in range(n):

            def ratio(x, t=t, n=n, old=old):
                mean = sum(x[j] - old[j] for j in range(n)) / n
                return math.exp(mean if f.ratio == "sequence" else x[t] - old[t])

            low, high = 1 - f.clip_low, 1 + f.clip_high
            if f.surrogate == "cispo":
                term = min(max(ratio(fixed), low), high) * adv * logp[t]
            else:
                term = min(ratio(logp) * adv, min(max(ratio(logp), low), high) * adv)
                if f.dual_clip and adv < 0:
                    term = max(term, f.dual_clip * adv)
            gap = {"none": 0.0, "token": old[t] - sampler[t], "sequence": whole}[f.correct]
            term *= 1.0 if f.correct == "none" else min(math.exp(gap), 2.0)
            if f.kl and f.kl_in == "loss":
                log_r = ref[t] - logp[t]
                kl = log_r**2 / 2 if f.kl_estimator == "k2" else math.exp(log_r) - 1 - log_r
                term -= f.kl * min(kl, 10.0)
            loss -= weight * term
    return loss


PIECES = [
    {},
    {"dual_clip": 0.0},
    {"clip_low": 0.1, "clip_high": 0.4},
    {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.1, "dual_clip": 0.0},
    {"surrogate": "cispo", "dual_clip": 0.0, "clip_low": 0.3, "clip_high": 0.5},
    {"surrogate": "cispo", "dual_clip": 0.0, "ratio": "sequence"},
    {"kl": 0.3},
    {"kl": 0.3, "kl_estimator": "k2"},
    {"kl": 0.3, "kl_estimator": "k1", "kl_in": "reward"},
    {"correct": "token"},
    {"correct": "sequence"},
    {"correct": "sequence", "ratio": "sequence"},
]


@pytest.mark.parametrize("changes", PIECES, ids=str)
def test_loss_and_gradient_are_the_equations(changes):
    # Caught: a sum for the mean in the sequence's ratio or a mean for the sum in its correction; a
    # gradient through CISPO's weight; the dual clip on positive advantages; pi_sampler / pi_old; an
    # uncut weight; the entropy's sign; k3 with d's sign turned; a KL that is in the reward and in
    # the loss.
    f, rng = Flags(**changes), random.Random(0)
    check(f, 1)
    new_B = [1, 2, 5, 9, 14, 3]

    def made(spread=0.5):
        return [[rng.gauss(-1, spread) for _ in range(n)] for n in new_B]

    logp, old, sampler, ref = (made() for _ in range(4))
    adv, weight = [1.3, -0.7, -2.0, 0.4, -0.1, 0.9], [rng.random() for _ in new_B]

    def flat(x):
        return torch.tensor([value for row in x for value in row], dtype=torch.float64)

    b = Batch(
        [],
        *[None] * 2,
        [],
        new_B,
        None,
        None,
        flat(sampler),
        flat(old),
        flat(ref) if f.kl else None,
    )
    b.adv_R, b.weight_R = (b.per_token(torch.tensor(x, dtype=torch.float64)) for x in (adv, weight))
    logp_R = flat(logp).requires_grad_()
    loss, _ = grpo_loss(logp_R, b, f)
    b_slow = (old, sampler, ref, adv, weight)
    assert loss.item() == pytest.approx(slow_loss(logp, b_slow, f, logp), rel=1e-12)
    loss.backward()
    at = 0
    for i, n in enumerate(new_B):
        for t in range(n):
            sides = []
            for change in (1e-6, -1e-6):
                moved = [
                    [v + change * ((j, k) == (i, t)) for k, v in enumerate(row)]
                    for j, row in enumerate(logp)
                ]
                sides.append(slow_loss(moved, b_slow, f, logp))
            assert logp_R.grad[at].item() == pytest.approx(
                (sides[0] - sides[1]) / 2e-6, abs=1e-6
            ), (i, t)
            at += 1


def test_one_unlikely_token_does_not_make_the_update_infinite():
    # Caught: exp of an unbounded log-ratio or k3 difference: inf times 0, so nan in every weight.
    for changes in (
        {"kl": 0.1},
        {"surrogate": "cispo", "dual_clip": 0.0},
        {"ratio": "sequence"},
        {"correct": "token"},
        {},
    ):
        f = Flags(**changes)
        for far in (-900.0, 900.0):
            logp_R = torch.tensor([-1.0, -1.0 + far], requires_grad=True)
            b = Batch(
                [],
                None,
                None,
                [],
                [2],
                None,
                None,
                torch.tensor([-1.0, -1.0]),
                torch.tensor([-1.0, -1.0]),
                torch.tensor([-1.0, -1.0]) if f.kl else None,
                torch.tensor([0.0, -1.0]),
                torch.tensor([0.5, 0.5]),
            )
            loss, _ = grpo_loss(logp_R, b, f)
            loss.backward()
            assert loss.isfinite() and logp_R.grad.isfinite().all(), (changes, far)


# ---- Rewards, advantages, weights ----------------------------------------------------------------


def test_advantages_are_the_equations():
    # Caught: the std of a population, G for G - 1 in leave-one-out, a mean that holds the sample
    # itself.
    rng = random.Random(1)
    rows = [[rng.random() for _ in range(5)] for _ in range(4)]
    slow = {
        "std": lambda row, i: (row[i] - statistics.mean(row)) / (statistics.stdev(row) + 1e-6),
        "mean": lambda row, i: row[i] - statistics.mean(row),
        "loo": lambda row, i: row[i] - statistics.mean(row[:i] + row[i + 1 :]),
    }
    for kind, equation in slow.items():
        expected = [[equation(row, i) for i in range(5)] for row in rows]
        found = advantages(torch.tensor(rows, dtype=torch.float64), kind)
        torch.testing.assert_close(
            found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0
        )
    # Equal rewards are no signal, to the last bit. Caught: the rounding of a mean over 1e-6, which
    # is a gradient.
    for kind in slow:
        assert advantages(torch.full((3, 7), 0.1), kind).tolist() == [[0.0] * 7] * 3


def completion(i, grade, length, finished=True, sample=0, prompt=None):
    verdict = Verdict(float(grade), "", "", "")
    return Completion(
        i, sample, prompt or [1, 2], [3] * length, [-1.0] * length, finished, "", verdict
    )


def test_the_soft_penalty_is_daposs():
    # Caught: the penalty's sign, its start at max_new, a bonus for what is short, a penalty that
    # --overlong none gives too.
    f = Flags(group=2, max_new=40, overlong="soft")
    done = [completion(0, length % 2, length, length < 40) for length in range(1, 41)]
    for got, c in zip(rewards(done, f).tolist(), done, strict=True):
        y = len(c.ids)
        penalty = 0 if y <= 32 else (32 - y) / 8 if y <= 40 else -1
        assert got == pytest.approx(c.verdict.score + penalty, abs=1e-6)
    assert rewards(done, Flags()).tolist() == [c.verdict.score for c in done]


def test_weights_are_the_denominators():
    # Caught: denominators that count what left the loss, or the length of another sequence.
    rng = random.Random(2)
    length = [rng.randint(1, 12) for _ in range(12)]
    inside = [rng.random() < 0.6 for _ in range(12)]
    assert 0 < sum(inside) < 12
    for aggregate in ("tokens", "sequences", "constant"):
        found = token_weights(torch.tensor(length), torch.tensor(inside), aggregate, 12)
        for got, L, is_in in zip(found.tolist(), length, inside, strict=True):
            denominator = {
                "tokens": sum(n for n, k in zip(length, inside, strict=True) if k),
                "sequences": sum(inside) * L,
                "constant": sum(inside) * 12,
            }[aggregate]
            assert got == pytest.approx(is_in / denominator, rel=1e-6)
        nothing = token_weights(torch.tensor([4, 4]), torch.tensor([False, False]), aggregate, 12)
        assert nothing.tolist() == [0.0, 0.0]  # and not 0 / 0


# ---- Micro-batches -------------------------------------------------------------------------------

PARTS = [
    {"aggregate": a, "overlong": o, "equal_groups": e}
    for a, o, e in (
        ("tokens", "none", "drop"),
        ("sequences", "none", "keep"),
        ("constant", "mask", "drop"),
    )
]
PARTS += [
    {
        "advantage": "loo",
        "kl": 0.1,
        "kl_in": "reward",
        "kl_estimator": "k1",
        "aggregate": "sequences",
        "ratio": "sequence",
        "correct": "sequence",
    }
]


def gradients(source, budgets):
    """(gradient, statistics) of one update of train_step, for every algorithm of PARTS and every
    budget."""
    import grpo
    from model import Config, Model
    from runtime.parallel import load, make_mesh, shard

    rng = random.Random(0)
    done = []
    for i in range(24):
        prompt, ids = ([rng.randrange(1, 97) for _ in range(rng.randint(1, 30))] for _ in range(2))
        done.append(
            Completion(
                i // 4,
                i % 4,
                prompt,
                ids,
                [rng.gauss(-4, 1) for _ in ids],
                i % 5 > 0,
                "",
                Verdict(float(i % 3 == 0 and i > 3), "", "", ""),
            )
        )
    with torch.device("meta"):
        models = [Model(Config.read(source)) for _ in range(2)]
    model, ref = (
        load(shard(m, make_mesh("cpu", 1), torch.float32).to_empty(device="cpu"), source)
        for m in models
    )
    with torch.no_grad():
        for p in ref.parameters():
            p.mul_(1.1)
    found = []
    for changes in PARTS:
        for budget in budgets:
            f = grpo.Flags(
                prompts=6,
                group=4,
                micro_tokens=budget,
                clip_grad=1e9,
                max_prompt=32,
                max_new=32,
                **changes,
            )
            keep = Keep(model)
            stats = grpo.train_step(model, ref if f.kl else None, keep, keep, done, f, StandIn())
            found.append((keep.gradients, stats))
    return found


def test_no_gradient_depends_on_the_cut(checkpoint):
    # Caught: S or T of a micro-batch or of a rank, advantages or KL of the sequences that another
    # rank has, in the wrong place. In float32, relative to the largest entry of the gradient.
    source, budgets = checkpoint("qwen2", True)[0], (100, 200, 2000)
    one, two = (ranks.run(n, gradients, source, budgets)[0] for n in (1, 2))
    seen = set()
    for i in range(len(PARTS)):
        expected, first = one[3 * i + 2]
        largest = max(g.abs().max() for g in expected.values())
        assert largest > 1e-4 and first["in_loss"] == pytest.approx(
            [20 / 24, 1, 16 / 24, 1][i], abs=1e-6
        )
        for found, stats in one[3 * i : 3 * i + 3] + two[3 * i : 3 * i + 3]:
            difference = max(
                (g - expected[name]).abs().max() / largest for name, g in found.items()
            )
            assert difference < 2e-6, (PARTS[i], stats["micro_batches"], difference)
            assert stats["loss"] == pytest.approx(first["loss"], abs=1e-6)
            assert stats["kl"] == pytest.approx(first["kl"], abs=1e-5)
            seen.add(stats["micro_batches"])
    assert len(seen) > 3


# ---- Dynamic sampling ----------------------------------------------------------------------------


def test_equal_groups_are_replaced_by_further_prompts_in_the_curriculums_order():
    # Caught: rounds of P whatever is missing, a place that forgets the extra prompts, an equal
    # group before a mixed one, a last round that is not filled up, resampling that --equal-groups
    # keep does too.
    asked, hard = [], {1, 2, 6, 7, 9}  # the problems whose samples are all wrong

    def answer(problems, group, temperature, step, progress):
        asked.append(problems)
        return [
            completion(p, int(g == 0 and p not in hard), 2, sample=g, prompt=[p])
            for p in problems
            for g in range(3)
        ]

    def used(f, start):
        asked.clear()
        done, drawn = draw_groups(
            types.SimpleNamespace(draw=answer), list(range(10)), start, 1, f, None
        )
        assert [c.sample for c in done] == [0, 1, 2] * f.prompts
        return (
            [c.prompt[0] for c in done[::3]],
            [c.prompt[0] for c in drawn[::3]],
            [list(a) for a in asked],
        )

    f = Flags(prompts=4, group=3, equal_groups="resample")
    assert used(f, 0) == ([0, 3, 4, 5], [0, 1, 2, 3, 4, 5], [[0, 1, 2, 3], [4, 5]])
    assert used(f, 6) == (
        [8, 0, 3, 4],
        [6, 7, 8, 9, 0, 1, 2, 3, 4],
        [[6, 7, 8, 9], [0, 1, 2], [3, 4]],
    )
    for equal in ("keep", "drop"):
        assert used(dataclasses.replace(f, equal_groups=equal), 6) == (
            [6, 7, 8, 9],
            [6, 7, 8, 9],
            [[6, 7, 8, 9]],
        )


def test_a_resumed_run_draws_what_the_whole_one_draws(tmp_path):
    # DAPO's flags, on one rank; then two steps on one, and the rest on two, some of which have no
    # prompt in a later round. Caught: a place in the curriculum by the step's number, extra samples
    # missing in D or C.
    dapo = ["@recipes/dapo.args", "--micro-tokens", "300"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for n, argv in (
        (1, [*arguments(whole, "--steps", 4), *dapo]),
        (1, [*arguments(cut, "--steps", 2), *dapo]),
        (2, ["--resume", str(cut), "--steps", "4"]),
    ):
        output = tmp_path / "output"
        assert ranks.wait(ranks.start(n, ranks.train, argv, output=output)) == [0] * n, (
            output.read_text()[-3000:]
        )
    one, two = ([r for r in lines(run) if r["kind"] == "train"] for run in (whole, cut))
    assert [r["D"] for r in one] == [r["D"] for r in two] and len(one) == 4
    assert 4 * 8 < one[-1]["D"] <= 4 * 8 * 3
    assert one[-1]["C"] == 6 * one[-1]["N"] * sum(r["tokens"] for r in one)
    for name in ("reward", "tokens", "verdicts", "truncated"):
        assert [r[name] for r in one] == [r[name] for r in two], name
    for name in ("loss", "grad_norm", "entropy"):
        assert [r[name] for r in one] == pytest.approx([r[name] for r in two], abs=1e-5), name


# ---- Flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"advantage": "median"}, "--advantage median: must be one of std, mean, loo"),
        ({"clip_low": 1.5}, "--clip-low 1.5: must be a finite number, from 0 to 1"),
        ({"kl": -0.1}, "--kl -0.1: must be a finite number, at least 0"),
        ({"surrogate": "cispo"}, "add --dual-clip 0"),
        ({"ratio": "sequence", "correct": "token"}, "take --correct sequence"),
        ({"kl": 0.1, "kl_estimator": "k1"}, "take --kl-in reward, or k2 or k3"),
        ({"kl_in": "reward"}, "give --kl, or leave --kl-in out"),
        ({"equal_groups": "resample", "reuse": 2}, "take drop, or no --reuse"),
        ({"equal_groups": "resample", "group": 1}, "--group 1: must be"),
        ({"lr": -1.0}, "--lr -1: must be a finite number, at least 0"),
        ({"lr": math.inf}, "--lr inf"),
        ({"kl": math.nan}, "--kl nan"),
        ({"clip_grad": -1.0}, "--clip-grad -1"),
        ({"kv_gb": 0.0}, "--kv-gb 0"),
        ({"timeout": 0.0}, "--timeout 0"),
        ({"prompt": "Solve this."}, "must contain {problem}"),
    ],
)
def test_contradictions_are_refused_with_what_to_change(changes, message):
    with pytest.raises(ValueError, match=message):
        check(Flags(**changes), 1)


def test_an_unknown_recipe_and_an_unknown_piece_name_the_known_ones(capsys):
    with pytest.raises(
        ValueError,
        match=r"@recipes/gpro.args: no such file; the recipes are .*@.*recipes/grpo.args",
    ):
        parse_flags(["@recipes/gpro.args"])
    with pytest.raises(SystemExit):
        parse_flags(["--ratio", "word"])
    said = capsys.readouterr()
    assert "word" in said.err + said.out


def test_recipes_hold_an_algorithm_and_nothing_else():
    # So that they go on top of any other flags. Caught: a learning rate or a size in a recipe, two
    # recipes that are the same.
    names = [field.name for field in dataclasses.fields(Flags)]
    algorithm = {*names[names.index("overlong") : names.index("lr")], "updates"}
    found = [
        dataclasses.asdict(parse_flags([f"@{path}"])) for path in RECIPES if path.stem != "paper"
    ]
    for flags in found:
        assert {k for k, v in flags.items() if v != dataclasses.asdict(Flags())[k]} <= algorithm
    assert len({str(flags) for flags in found}) == len(found) == 7


def last_update(source, first, updates):
    """The gradient of the last update of a step on the prompts from the first one on, for every
    aggregate."""
    import grpo
    from model import Config, Model
    from runtime.parallel import load, make_mesh, shard

    done = []
    for i, n in enumerate([9, 8, 2, 3]):
        verdict = Verdict(float(i % 2), "", "", "")
        done.append(Completion(i // 2, i % 2, [1, 2], [3 + i] * n, [-1.0] * n, True, "", verdict))
    done = done[2 * first :]
    sizes = dict(prompts=len(done) // 2, group=2, updates=updates, max_prompt=8, max_new=10)
    with torch.device("meta"):
        model = Model(Config.read(source))
    model = shard(model, make_mesh("cpu"), torch.float32).to_empty(device="cpu")
    load(model, source)
    found = []
    for aggregate in ("tokens", "sequences", "constant"):
        f = grpo.Flags(aggregate=aggregate, clip_grad=1e9, **sizes)
        keep = Keep(model)
        grpo.train_step(model, None, keep, keep, done, f, StandIn())
        found.append(torch.cat([g.flatten() for g in keep.gradients.values()]))
    return found


def test_an_update_weighs_what_it_trains_on(checkpoint):
    # With weights that do not move, the second of two updates is that of a step on its prompts
    # alone. Caught: the sum of w_i over the whole rollout, or over the other update's part.
    source = checkpoint("qwen2", True)[0]
    (both,) = ranks.run(1, last_update, source, 0, 2)
    (alone,) = ranks.run(1, last_update, source, 1, 1)
    for a, b in zip(both, alone, strict=True):
        assert a.norm() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_reward_loses_the_kl_to_the_reference(checkpoint):
    # Caught: the policy in the reference's place, beta times KL added to the reward.
    (found,) = ranks.run(1, gradients, checkpoint("qwen2", True)[0], (2000,))
    for changes, (_, stats) in zip(PARTS, found, strict=True):
        assert (abs(stats["kl"]) > 1e-2) == ("kl" in changes)
        lost = changes.get("kl", 0) * stats["kl"] * stats["length"]  # of a sequence, on average
        assert stats["reward"] == pytest.approx(stats["accuracy"] - lost, abs=1e-4)
