"""The stored cases of the exercises in course/tests: slow transcriptions in float64, number by number.

    python tests/course_oracle.py    # writes course/tests/*.json anew

tests/test_course.py checks that the files hold what this file says. A handout does not contain it.
"""

import json
import math
import random
import statistics
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "course" / "tests"


def case(name, inputs, expected, mistakes=(), hidden=False):
    """mistakes: (hint, what the mistake leads to). A mistake that changes nothing here is dropped."""
    wrong = [{"hint": hint, "came": came} for hint, came in mistakes if came != expected]
    return {"name": name, "inputs": inputs, "expected": expected, "mistakes": wrong, "hidden": hidden}


def numbers(rng, count, low, high):
    """Numbers that float32 holds exactly, so that the inputs are the same in both precisions."""
    return [round(rng.uniform(low, high) * 1024) / 1024 for _ in range(count)]


# ---- advantages ----------------------------------------------------------------------------------


def advantages(reward_PG, kind, spread=statistics.stdev, over_batch=False, itself=False):
    result = []
    for rewards in reward_PG:
        base = [r for group in reward_PG for r in group] if over_batch else rewards
        row = []
        for i, r in enumerate(rewards):
            others = rewards if itself else rewards[:i] + rewards[i + 1 :]
            if len(set(rewards)) == 1:
                row.append(0.0)
            elif kind == "loo":
                row.append(r - statistics.fmean(others))
            elif kind == "mean":
                row.append(r - statistics.fmean(base))
            else:
                row.append((r - statistics.fmean(base)) / (spread(base) + 1e-6))
        result.append(row)
    return result


def advantages_cases():
    rng = random.Random(1)
    inputs = {
        "right or wrong": [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]],
        "penalties": [numbers(rng, 5, -1, 1) for _ in range(3)],
        "equal rewards": [[0.5, 0.5, 0.5], [0.1, 0.1, 0.1], [0.0, 1.0, 0.0]],
        "two of a kind": [[0.25, 0.75], [3.0, 3.0], [-1.0, 2.0]],
        "another group": [numbers(rng, 7, 0, 1) for _ in range(2)],
    }
    hints = [
        ("which of the two standard deviations is asked for?", {"spread": statistics.pstdev}),
        ("a completion is compared with those of its own prompt, not of the batch",
         {"over_batch": True}),
        ("does the mean of the others hold the completion itself?", {"itself": True}),
    ]  # fmt: skip
    for kind in ("std", "mean", "loo"):
        for name, reward_PG in inputs.items():
            mistakes = [(hint, advantages(reward_PG, kind, **how)) for hint, how in hints]
            yield case(
                f"{kind}, {name}", {"reward_PG": reward_PG, "kind": kind},
                advantages(reward_PG, kind), mistakes, hidden=name in ("two of a kind", "another group"),
            )  # fmt: skip


# ---- kl ------------------------------------------------------------------------------------------


def kl(logp_R, ref_R, estimator, sign=1, bound=10.0):
    result = []
    for logp, ref in zip(logp_R, ref_R, strict=True):
        d = sign * (ref - logp)
        if estimator == "k1":
            value = -d
        elif estimator == "k2":
            value = d * d / 2
        else:
            value = math.exp(max(-20.0, min(20.0, d))) - d - 1
        result.append(max(-bound, min(bound, value)))
    return result


def kl_cases():
    rng = random.Random(2)
    inputs = {
        "near": (numbers(rng, 6, -3, 0), numbers(rng, 6, -3, 0)),
        "the same": ([-0.5, -2.0], [-0.5, -2.0]),
        "far": ([-0.5, -40.0, -1.0, -200.0], [-30.0, -0.25, -150.0, -1.0]),
        "other numbers": (numbers(rng, 5, -2, 0), numbers(rng, 5, -4, 0)),
    }
    for estimator in ("k1", "k2", "k3"):
        for name, (logp_R, ref_R) in inputs.items():
            arguments = (logp_R, ref_R, estimator)
            mistakes = [
                ("the sign of d: which policy is divided by which?", kl(*arguments, sign=-1)),
                ("one unlikely token may not count without bound", kl(*arguments, bound=math.inf)),
            ]
            yield case(
                f"{estimator}, {name}", dict(zip(("logp_R", "ref_R", "estimator"), arguments, strict=True)),
                kl(*arguments), mistakes, hidden=name == "other numbers",
            )  # fmt: skip


# ---- weights -------------------------------------------------------------------------------------


def weights(new_B, in_loss_B, aggregate, max_new, everyone=False):
    """everyone: the mistake of counting sequences that are not in the loss."""
    counted = [new for new, inside in zip(new_B, in_loss_B, strict=True) if inside or everyone]
    result = []
    for new, inside in zip(new_B, in_loss_B, strict=True):
        if not inside:
            result.append(0.0)
        elif aggregate == "tokens":
            result.append(1 / sum(counted))
        elif aggregate == "sequences":
            result.append(1 / (len(counted) * new))
        else:
            result.append(1 / (len(counted) * max_new))
    return result


def weights_cases():
    inputs = {
        "all in the loss": ([3, 1, 4, 2], [True] * 4, 8),
        "some masked": ([3, 1, 4, 2], [True, False, True, False], 8),
        "none in the loss": ([3, 1], [False, False], 8),
        "long ones": ([700, 1024, 3], [True, False, True], 1024),
    }
    for aggregate in ("tokens", "sequences", "constant"):
        for name, (new_B, in_loss_B, max_new) in inputs.items():
            arguments = (new_B, in_loss_B, aggregate, max_new)
            ignored = [1 / sum(new_B)] * len(new_B)
            mistakes = [
                ("do sequences that are not in the loss count in the denominator?",
                 weights(*arguments, everyone=True)),
                ("a sequence that is not in the loss has weight 0", ignored),
                ("one weight for each sequence is asked for: what one of its tokens counts",
                 [w * new for w, new in zip(weights(*arguments), new_B, strict=True)]),
            ]  # fmt: skip
            names = ("new_B", "in_loss_B", "aggregate", "max_new")
            yield case(
                f"{aggregate}, {name}", dict(zip(names, arguments, strict=True)),
                weights(*arguments), mistakes, hidden=name == "long ones",
            )  # fmt: skip


# ---- surrogate -----------------------------------------------------------------------------------


def gain(rho, A, logp, f, only_clipped=False):
    """(gain, its slope against log rho, clipped) of one token, case by case.

    only_clipped: the mistake of clipping without the minimum.
    """
    low, high = 1 - f["clip_low"], 1 + f["clip_high"]
    bounded = max(low, min(high, rho))
    if f["surrogate"] == "cispo":
        return bounded * A * logp, bounded * A, bounded != rho
    if only_clipped:
        return bounded * A, rho * A if bounded == rho else 0.0, bounded != rho
    if A > 0 and rho > high:
        return high * A, 0.0, True
    if A < 0 and rho < low:
        return low * A, 0.0, True
    if A < 0 and f["dual_clip"] and rho > f["dual_clip"]:
        return f["dual_clip"] * A, 0.0, False
    return rho * A, rho * A, False


def surrogate(inputs, sign=1, **how):
    f = {"ratio": "token", "surrogate": "clip", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
    f |= inputs["flags"]
    loss = 0.0
    clipped = 0
    gradient = []
    start = 0
    for new in inputs["new_B"]:
        own = range(start, start + new)
        start += new
        log_ratio = {t: sign * (inputs["logp_R"][t] - inputs["old_R"][t]) for t in own}
        if f["ratio"] == "sequence":
            mean = sum(log_ratio.values()) / new
            log_ratio = dict.fromkeys(own, mean)
        slopes = {}
        for t in own:
            w = inputs["weight_R"][t]
            value, slope, was = gain(
                math.exp(log_ratio[t]), inputs["adv_R"][t], inputs["logp_R"][t], f, **how
            )
            loss -= w * value
            slopes[t] = -w * slope * (sign if f["surrogate"] == "clip" else 1)
            clipped += was
        if f["ratio"] == "sequence" and f["surrogate"] == "clip":
            slopes = dict.fromkeys(own, sum(slopes.values()) / new)
        gradient += slopes.values()
    return {"loss": loss, "gradient": gradient, "clipped": clipped}


def surrogate_cases():
    rng = random.Random(3)
    variants = {
        "clip": {},
        "asymmetric clip": {"clip_low": 0.1, "clip_high": 0.5},
        "no dual clip": {"dual_clip": 0.0},
        "ratio of a sequence": {"ratio": "sequence", "clip_low": 0.05, "clip_high": 0.05},
        "cispo": {"surrogate": "cispo", "dual_clip": 0.0, "clip_high": 0.3},
    }
    for name, flags in variants.items():
        for hidden in (False, True):
            new_B = [5, 3, 4]
            old_R = numbers(rng, 12, -3, -1)
            apart_R = numbers(rng, 12, -0.6, 0.6)
            apart_R[5] = 1.5  # beyond the dual clip
            apart_R[0] = 0.0
            adv = numbers(rng, 3, 0.2, 1)
            adv[1] = -adv[1]
            inputs = {
                "logp_R": [old + apart for old, apart in zip(old_R, apart_R, strict=True)],
                "old_R": old_R,
                "adv_R": [adv[i] for i, new in enumerate(new_B) for _ in range(new)],
                "weight_R": numbers(rng, 12, 0.01, 0.2),
                "new_B": new_B,
                "flags": flags,
            }
            without_dual = inputs | {"flags": flags | {"dual_clip": 0.0}}
            mistakes = [
                ("the sign of the log-ratio: which policy is divided by which?", surrogate(inputs, sign=-1)),
                ("a clipped token is only clipped where that makes the gain smaller",
                 surrogate(inputs, only_clipped=True)),
                ("for a negative advantage the gain has a lower bound", surrogate(without_dual)),
                ("the gain is ascended, the loss is descended: grpo_loss turns the sign",
                 {**surrogate(inputs), "loss": -surrogate(inputs)["loss"],
                  "gradient": [-g for g in surrogate(inputs)["gradient"]]}),
            ]  # fmt: skip
            yield case(f"{name}, {'b' if hidden else 'a'}", inputs, surrogate(inputs), mistakes, hidden)


# ---- The files -----------------------------------------------------------------------------------

EXERCISES = {
    "advantages": advantages_cases,
    "kl": kl_cases,
    "weights": weights_cases,
    "surrogate": surrogate_cases,
}


def text(exercise):
    """The file of an exercise: a case on a line."""
    lines = [json.dumps(found) for found in EXERCISES[exercise]()]
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    for exercise in EXERCISES:
        (OUT / f"{exercise}.json").write_text(text(exercise))
