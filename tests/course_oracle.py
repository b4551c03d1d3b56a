"""The stored cases of the exercises in course/tests, by slow transcriptions in float64.

    python tests/course_oracle.py    # writes course/tests/*.json anew

tests/test_course.py checks that the files hold what this file says. A handout does not contain it.
"""

import cmath
import contextlib
import itertools
import json
import math
import random
import statistics
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "course" / "tests"
sys.path.insert(0, str(ROOT))

from course.tests.compare import difference  # noqa: E402


def case(name, inputs, expected, mistakes=(), hidden=False):
    """mistakes: (hint, what comes of the mistake); left out if that is what is expected."""
    wrong = []
    for hint, came in mistakes:
        if difference(expected, came):
            wrong.append({"hint": hint, "came": came})
    found = {"name": name, "inputs": inputs, "expected": expected, "mistakes": wrong}
    return found | {"hidden": hidden}


def numbers(rng, count, low, high):
    """Numbers that float32 holds exactly, so that the inputs are the same in both precisions."""
    return [round(rng.uniform(low, high) * 1024) / 1024 for _ in range(count)]


# ---- checker -------------------------------------------------------------------------------------


def found_boxes(text, escapes=True, nested=True):
    """Letter by letter. escapes: a brace behind a backslash is none. nested: braces balance."""
    found = []
    for start in [i for i in range(len(text)) if text.startswith(("\\boxed", "\\fbox"), i)]:
        i = start + 1
        while text[i : i + 1].isalpha() and text[start:i] not in ("\\boxed", "\\fbox"):
            i += 1
        behind = i
        while text[i : i + 1].isspace():
            i += 1
        if text[i : i + 1] == "{":
            end, depth, j = None, 1, i + 1
            while j < len(text) and end is None:
                if text[j] == "\\" and escapes:
                    j += 1
                elif text[j] == "{" and nested:
                    depth += 1
                elif text[j] == "}":
                    depth -= 1
                    end = j + 1 if depth == 0 else None
                j += 1
            found.append([start, end, text[i + 1 : end - 1].strip()] if end else None)
        elif i > behind:
            j = i
            while j < len(text) and not text[j].isspace() and text[j] not in "{}$\\":
                j += 1
            if j > i:
                found.append([start, j, text[i:j]])
    return [box for box in found[-5:] if box]


def rounded(pairs, units=0.5, zeros=False):
    """pairs: (answer, its value, truth). units and zeros: mistakes."""
    result = []
    for _, value, truth in pairs:
        whole, _, decimals = truth.partition(".")
        digits = (whole + decimals) if zeros else (whole + decimals).lstrip("-0")
        if not decimals or len(digits) < 3:
            result.append(False)
        else:
            apart = abs(Fraction(value) - Fraction(truth)) * 10 ** len(decimals)
            result.append(bool(apart <= Fraction(units)))
    return result


def checker_cases():
    texts = {
        "one": "so $x = \\boxed{42}$.",
        "two": "\\boxed{1} or rather \\boxed{ 2 }",
        "nested braces": "\\boxed{\\frac{1}{2}} \\fbox{x^{2^{3}}}",
        "braces of a set": "\\boxed{\\{1, 2\\}} and \\boxed{\\{}",
        "never closed": "\\boxed{5} then \\boxed{7 + {2}",
        "a word": "\\boxed 5, \\fbox  abc$ \\boxed",
        "a box in a box": "\\boxed{a \\boxed{b} c}",
        "none": "the answer is {5}",
        "many": "".join(f"\\boxed{{{i}}}" for i in range(8)) + "\\boxed{",
        "mixed": "\\fbox\n{\\left\\{ x \\right\\}} \\boxed{\\text{no \\} here}} \\boxed{{}{}}",
    }
    for name, text in texts.items():
        mistakes = [
            ("braces inside a box are balanced", found_boxes(text, nested=False)),
            ("which braces are only signs of a set?", found_boxes(text, escapes=False)),
        ]
        yield case(
            f"boxes, {name}", {"text": text}, found_boxes(text), mistakes, name in ("many", "mixed")
        )
    values = {
        "roots and fractions": [
            ("\\sqrt{2}", math.sqrt(2), "1.41"),
            ("\\sqrt{2}", math.sqrt(2), "1.42"),
            ("\\frac{283}{200}", Fraction(283, 200), "1.41"),
            ("7/5", Fraction(7, 5), "1.40"),
            ("1/3", Fraction(1, 3), "0.333"),
            ("1/3", Fraction(1, 3), "0.33"),
            ("2/3", Fraction(2, 3), "0.666"),
        ],
        "decimals": [
            ("1.414", Fraction("1.414"), "1.41"),
            ("1.415", Fraction("1.415"), "1.41"),
            ("1.4151", Fraction("1.4151"), "1.41"),
            ("1.4", Fraction("1.4"), "1.41"),
            ("0.0012", Fraction("0.0012"), "0.00123"),
            ("0.00123", Fraction("0.00123"), "0.0012"),
            ("-1.414", Fraction("-1.414"), "-1.41"),
            ("1.414", Fraction("1.414"), "-1.41"),
            ("2.5", Fraction("2.5"), "2.50"),
        ],
        "whole numbers": [
            ("2", 2, "2.00"),
            ("3", 3, "2.99"),
            ("5/2", Fraction(5, 2), "3"),
            ("2", 2, "2"),
        ],
        "others": [
            ("\\pi", math.pi, "3.14"),
            ("\\pi", math.pi, "3.15"),
            ("22/7", Fraction(22, 7), "3.143"),
            ("22/7", Fraction(22, 7), "3.142"),
            ("0.05", Fraction("0.05"), "0.051"),
            ("0.0456", Fraction("0.0456"), "0.046"),
            ("12.345", Fraction("12.345"), "12.34"),
            ("12.346", Fraction("12.346"), "12.34"),
            ("\\sqrt{3}", math.sqrt(3), "1.73"),
            ("\\sqrt{3}", math.sqrt(3), "1.74"),
            ("100", 100, "99.9"),
            ("1/8", Fraction(1, 8), "0.125"),
        ],
    }
    for name, pairs in values.items():
        mistakes = [
            ("how far may a rounded number be from what was rounded?", rounded(pairs, units=1)),
            ("zeros in front are no digits of the truth", rounded(pairs, zeros=True)),
        ]
        asked = [[answer, truth] for answer, _, truth in pairs]
        yield case(f"rounds, {name}", {"pairs": asked}, rounded(pairs), mistakes, name == "others")


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
        (
            "a completion is compared with those of its own prompt, not of the batch",
            {"over_batch": True},
        ),
        ("does the mean of the others hold the completion itself?", {"itself": True}),
    ]
    for kind in ("std", "mean", "loo"):
        for name, reward_PG in inputs.items():
            mistakes = [(hint, advantages(reward_PG, kind, **how)) for hint, how in hints]
            yield case(
                f"{kind}, {name}",
                {"reward_PG": reward_PG, "kind": kind},
                advantages(reward_PG, kind),
                mistakes,
                hidden=name in ("two of a kind", "another group"),
            )


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
                f"{estimator}, {name}",
                dict(zip(("logp_R", "ref_R", "estimator"), arguments, strict=True)),
                kl(*arguments),
                mistakes,
                hidden=name == "other numbers",
            )


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
                (
                    "do sequences that are not in the loss count in the denominator?",
                    weights(*arguments, everyone=True),
                ),
                ("a sequence that is not in the loss has weight 0", ignored),
                (
                    "one weight for each sequence is asked for: what one of its tokens counts",
                    [w * new for w, new in zip(weights(*arguments), new_B, strict=True)],
                ),
            ]
            names = ("new_B", "in_loss_B", "aggregate", "max_new")
            yield case(
                f"{aggregate}, {name}",
                dict(zip(names, arguments, strict=True)),
                weights(*arguments),
                mistakes,
                hidden=name == "long ones",
            )


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
                (
                    "the sign of the log-ratio: which policy is divided by which?",
                    surrogate(inputs, sign=-1),
                ),
                (
                    "a clipped token is only clipped where that makes the gain smaller",
                    surrogate(inputs, only_clipped=True),
                ),
                ("for a negative advantage the gain has a lower bound", surrogate(without_dual)),
                (
                    "the gain is ascended, the loss is descended: grpo_loss turns the sign",
                    {
                        **surrogate(inputs),
                        "loss": -surrogate(inputs)["loss"],
                        "gradient": [-g for g in surrogate(inputs)["gradient"]],
                    },
                ),
            ]
            yield case(
                f"{name}, {'b' if hidden else 'a'}", inputs, surrogate(inputs), mistakes, hidden
            )


# ---- pass_at_k -----------------------------------------------------------------------------------


def pass_cases():
    draws = {
        "small": [[4, 2, 1], [4, 2, 2], [4, 1, 3], [5, 0, 2], [5, 5, 1], [4, 3, 2]],
        "large": [[1000, 3, 100], [10000, 1, 5000], [4000, 200, 50]],
        "other": [[16, 5, 8], [64, 1, 32], [7, 6, 2], [200, 10, 100]],
    }
    for name, found in draws.items():
        expected = []
        biased = []
        for n, c, k in found:
            # The share of the k-subsets that hold a right one, in whole numbers.
            expected.append(float(1 - Fraction(math.comb(n - c, k), math.comb(n, k))))
            biased.append(1 - (1 - c / n) ** k)
        hint = "the k completions are drawn without putting any back"
        yield case(f"pass@k, {name}", {"draws": found}, expected, [(hint, biased)], name == "other")
    rng = random.Random(4)
    values = {
        "shares": [0.5, 0.25, 1.0, 0.0, 0.75],
        "one problem": [0.5],
        "other": numbers(rng, 9, 0, 1),
    }
    for name, x_P in values.items():
        mean = statistics.fmean(x_P)
        alone = len(x_P) < 2
        mistakes = []
        if not alone:
            hint = "the variance between problems is estimated from P problems: biased or not?"
            mistakes.append((hint, [mean, statistics.pstdev(x_P) / math.sqrt(len(x_P))]))
            mistakes.append(
                ("this is the spread of single problems", [mean, statistics.stdev(x_P)])
            )
        se = None if alone else statistics.stdev(x_P) / math.sqrt(len(x_P))
        yield case(f"standard error, {name}", {"x_P": x_P}, [mean, se], mistakes, name == "other")


# ---- packing -------------------------------------------------------------------------------------


def deal(length_B, ranks, budget):
    """By counting up the number of micro-batches until the longest-first rule fits."""
    order = sorted((-length, i) for i, length in enumerate(length_B))
    for per_rank in range(1, len(length_B) + 1):
        loads = [(0, place) for place in range(ranks * per_rank)]
        bins = {place: [] for _, place in loads}
        for negative, i in order:
            load, place = min(loads)
            loads.remove((load, place))
            loads.append((load - negative, place))
            bins[place].append(i)
        enough = ranks * per_rank * budget >= sum(length_B)
        if enough and max(loads)[0] <= budget:
            return [[bins[m * ranks + rank] for m in range(per_rank)] for rank in range(ranks)]


def packed(completions, places, shift=0, running=False):
    """shift: of the rows, by mistake. running: positions that go on through the batch."""
    flat = []  # (place, index in its sequence, token, logp or None)
    for place in places:
        prompt, ids, logp = completions[place]
        for i, token in enumerate(prompt + ids):
            flat.append((place, i, token, logp[i - len(prompt)] if i >= len(prompt) else None))
    drawn = [t for t, (_, _, _, logp) in enumerate(flat) if logp is not None]
    return {
        "token_T": [token for _, _, token, _ in flat],
        "position_T": list(range(len(flat))) if running else [i for _, i, _, _ in flat],
        "row_R": [t - 1 + shift for t in drawn],
        "target_R": [flat[t][2] for t in drawn],
        "sampler_R": [flat[t][3] for t in drawn],
        "length_B": [sum(f[0] == place for f in flat) for place in places],
        "new_B": [sum(f[0] == place and f[3] is not None for f in flat) for place in places],
    }


def packing_cases():
    rng = random.Random(5)
    deals = {
        "one rank": [[5, 3, 8, 2], 1, 10],
        "two ranks": [[4, 4, 4, 4, 4, 4, 1], 2, 9],
        "room for all": [[3, 1, 2], 2, 100],
        "many": [[rng.randint(1, 40) for _ in range(25)], 3, 64],
    }
    for name, arguments in deals.items():
        yield case(f"pack, {name}", {"deal": arguments}, deal(*arguments), hidden=name == "many")
    for name, count, hidden in (("two", 2, False), ("other", 4, True)):
        completions = []
        for _ in range(count + 1):
            new = rng.randint(1, 5)
            prompt = [rng.randint(0, 99) for _ in range(rng.randint(1, 4))]
            ids = [rng.randint(0, 99) for _ in range(new)]
            completions.append([prompt, ids, numbers(rng, new, -3, 0)])
        places = rng.sample(range(count + 1), count)
        mistakes = [
            ("which row predicts the first token of a completion?", packed(completions, places, 1)),
            ("every sequence starts at position 0", packed(completions, places, running=True)),
        ]
        inputs = {"completions": completions, "places": places}
        yield case(f"make_batch, {name}", inputs, packed(completions, places), mistakes, hidden)


# ---- gumbel --------------------------------------------------------------------------------------


def hashed(key, v):
    """u of `uniform`, in Python's integers."""
    word = 2**32

    def shift(x, s):  # arithmetic, of an int32; x ^ (x >> s)
        signed = x - word if x >= word // 2 else x
        return (signed ^ (signed >> s)) % word

    h = (key % word + v * 0x9E3779B9) % word
    h = shift(h, 16) * 0x7FEB352D % word
    h = shift(h, 15) * 0x846CA68B % word
    h = (h + (key >> 32)) % word
    return (shift(h, 16) + 0.5) / 2**31


def drawn(logits_BV, temperature, key_B, sign=1, before=False, raw=False):
    """sign: of the noise. before: it is added before dividing. raw: logp at temperature 1."""
    tokens, logps, gaps = [], [], []
    for logits, key in zip(logits_BV, key_B, strict=True):
        z = [x / temperature for x in logits] if temperature else logits
        score = list(z)
        if temperature:
            for v in range(len(z)):
                noise = -math.log(-math.log1p(-hashed(key, v)))
                score[v] += sign * noise / (temperature if before else 1)
        token = max(range(len(z)), key=lambda v: score[v])
        shown = logits if raw else z
        top = max(shown)
        logps.append(shown[token] - top - math.log(sum(math.exp(x - top) for x in shown)))
        tokens.append(token)
        ordered = sorted(score)
        gaps.append(ordered[-1] - ordered[-2])
    return {"token_B": tokens, "logp_B": logps}, min(gaps)


def gumbel_cases():
    rng = random.Random(6)
    variants = [
        ("temperature 1", 1.0, False),
        ("temperature 0.5", 0.5, False),
        ("greedy", 0.0, False),
        ("from a tensor", 0.7, True),
        ("greedy, from a tensor", 0.0, True),
    ]
    for name, temperature, on_device in variants:
        for hidden in (False, True):
            gap = 0
            while gap < 1e-2:  # in float32 the same token wins
                logits_BV = [numbers(rng, 12, -2, 2) for _ in range(6)]
                key_B = [rng.randrange(-(2**63), 2**63) for _ in range(6)]
                arguments = (logits_BV, temperature, key_B)
                expected, gap = drawn(*arguments)
            hints = {
                "the sign of the noise": {"sign": -1},
                "is the noise divided by the temperature too?": {"before": True},
                "the log-probability is that of the distribution drawn from": {"raw": True},
            }
            mistakes = [(hint, drawn(*arguments, **how)[0]) for hint, how in hints.items()]
            inputs = {"logits_BV": logits_BV, "temperature": temperature, "key_B": key_B}
            inputs["on_device"] = on_device
            yield case(f"{name}, {'b' if hidden else 'a'}", inputs, expected, mistakes, hidden)


# ---- decode --------------------------------------------------------------------------------------


def turned(x_THK, position_T, theta, sign=1, neighbours=False):
    """Pairs as complex numbers. neighbours: pairs (x_2i, x_2i+1), by mistake."""
    result = []
    for x_HK, position in zip(x_THK, position_T, strict=True):
        rows = []
        for x_K in x_HK:
            half = len(x_K) // 2
            row = [0.0] * len(x_K)
            for i in range(half):
                a, b = (2 * i, 2 * i + 1) if neighbours else (i, i + half)
                angle = sign * position * theta ** (-2 * i / len(x_K))
                z = complex(x_K[a], x_K[b]) * cmath.exp(1j * angle)
                row[a], row[b] = z.real, z.imag
            rows.append(row)
        result.append(rows)
    return result


def attended(q_BHK, kv_2NSJK, page_BM, length_B, group=lambda h, R, J: h // R, power=-0.5):
    """Key by key. group: which key-value head a query head reads. power: of K, in the scale."""
    keys, values = kv_2NSJK
    S, J = len(keys[0]), len(keys[0][0])
    result = []
    for q_HK, pages, length in zip(q_BHK, page_BM, length_B, strict=True):
        rows = []
        for h, q in enumerate(q_HK):
            j = group(h, len(q_HK) // J, J)
            places = [(pages[n // S], n % S) for n in range(length)]
            scores = [
                math.fsum(a * b for a, b in zip(q, keys[p][s][j], strict=True)) for p, s in places
            ]
            powers = [math.exp(score * len(q) ** power) for score in scores]
            row = []
            for d in range(len(q)):
                weighted = [
                    e * values[p][s][j][d] for e, (p, s) in zip(powers, places, strict=True)
                ]
                row.append(math.fsum(weighted) / sum(powers) if length else 0.0)
            rows.append(row)
        result.append(rows)
    return result


def decode_cases():
    rng = random.Random(7)
    for name, positions, hidden in (("near", [0, 1, 2], False), ("far", [7, 1000, 31, 2], True)):
        x_THK = [[numbers(rng, 6, -1, 1) for _ in range(2)] for _ in positions]
        arguments = (x_THK, positions, 10000.0)
        mistakes = [
            ("the sense of the rotation", turned(*arguments, sign=-1)),
            ("which two features make a pair?", turned(*arguments, neighbours=True)),
        ]
        inputs = dict(zip(("x_THK", "position_T", "theta"), arguments, strict=True))
        yield case(f"rotate, {name}", inputs, turned(*arguments), mistakes, hidden)
    variants = [
        ("one head each", 2, 2, [1, 3], False),
        ("grouped heads", 6, 2, [5, 8, 3], False),
        ("an empty slot", 2, 1, [4, 0], False),
        ("other lengths", 4, 2, [7, 1, 0, 8], True),
    ]
    for name, H, J, length_B, hidden in variants:
        N, S, K, M = 9, 4, 4, 2
        cache = [
            [[[numbers(rng, K, -1, 1) for _ in range(J)] for _ in range(S)] for _ in range(N)]
            for _ in range(2)
        ]
        free = rng.sample(range(N), N)
        page_BM = [[free.pop(), free.pop()] for _ in length_B]
        q_BHK = [[numbers(rng, K, -2, 2) for _ in range(H)] for _ in length_B]
        arguments = (q_BHK, cache, page_BM, length_B)
        everything = attended(q_BHK, cache, page_BM, [M * S] * len(length_B))
        mistakes = [
            (
                "which query heads share a key-value head?",
                attended(*arguments, group=lambda h, R, J: h % J),
            ),
            ("the scale of the scores", attended(*arguments, power=0)),
            ("what lies beyond the length of a sequence does not count", everything),
        ]
        inputs = dict(zip(("q_BHK", "kv_2NSJK", "page_BM", "length_B"), arguments, strict=True))
        yield case(f"decode, {name}", inputs, attended(*arguments), mistakes, hidden)


# ---- scheduler -----------------------------------------------------------------------------------


def play(
    prefixes,
    G,
    limit,
    N,
    S,
    slots,
    sync_every,
    prefill_tokens,
    spare=2,
    oldest=False,
    greedy_prefill=False,
):
    """The scheduler with sets of named pages in place of lists and counts of uses.

    Mistakes: spare pages for a start; the oldest preempted; prefill_tokens not heeded.
    """
    queue = []  # [prefix length, [names that wait], pages of the prefix or None, tag]
    drawn = {}
    for p, length in enumerate(prefixes):
        queue.append([length, [(p, g) for g in range(G)], None, f"group {p}"])
        drawn |= {(p, g): 0 for g in range(G)}
    running = {}  # name: [tokens in the cache, pages]; the oldest first
    tags = itertools.count()
    events = []

    def free():
        held = [pages for _, pages in running.values()] + [group[2] or set() for group in queue]
        return N - len(set().union(*held))

    def lose_prefix():
        for group in reversed(queue):
            if group[2]:
                group[2] = None
                return True
        return False

    def missing(entry):
        return max(0, math.ceil((entry[0] + sync_every) / S) - len(entry[1]))

    def label(names):
        return [f"{p}.{g}" for p, g in names]

    while queue or running:
        for name in list(running):
            new = min(sync_every, limit[name[0]][name[1]] - drawn[name])
            drawn[name] += new
            running[name][0] += new
            if drawn[name] == limit[name[0]][name[1]]:
                del running[name]
        preempted = []
        while sum(missing(entry) for entry in running.values()) > free():
            if not lose_prefix():
                name = list(running)[0 if oldest else -1]
                del running[name]
                preempted.append(name)
        grown = []
        for name, entry in running.items():
            count = missing(entry)
            entry[1] |= {("own", next(tags)) for _ in range(count)}
            if count:
                grown.append(f"{label([name])[0]}: {len(entry[1])} pages")
        for name in preempted:
            queue.insert(0, [prefixes[name[0]] + drawn[name], [name], None, f"again {next(tags)}"])
        events.append(f"grow {grown} preempt {label(preempted)} free {free()}")

        fresh, started = [], []
        if slots - len(running) >= max(1, min(slots // 8, len(queue))):
            while not running and lose_prefix():
                pass
            for group in queue:
                length, names, pages, tag = group
                need = 0 if pages else math.ceil(length / S)
                if len(running) == slots or free() < need + spare:
                    break
                if not pages:
                    if fresh and sum(fresh) + length > prefill_tokens and not greedy_prefill:
                        break
                    fresh.append(length)
                    group[2] = {(tag, i) for i in range(need)}
                count = min(slots - len(running), len(names), free() - 1)
                shared = {(tag, i) for i in range(length // S)}
                for _ in range(count):
                    name = names.pop(0)
                    running[name] = [length, shared | {("own", next(tags))}]
                    drawn[name] += 1
                    started.append(name)
            while queue and not queue[0][1]:
                queue.pop(0)
        events.append(f"prefill {fresh} start {label(started)} free {free()}")
    return events


def scheduler_cases():
    rng = random.Random(8)
    small = dict(prefixes=[5, 3], G=2, N=12, S=4, slots=4, sync_every=1, prefill_tokens=100)
    variants = [
        ("room for all", small, False),
        ("slots run out", small | dict(prefixes=[5, 3, 9], slots=2, N=20), False),
        (
            "a prefill at a time",
            small | dict(prefixes=[6, 6, 6], slots=6, N=40, prefill_tokens=12),
            False,
        ),
        ("pages run out", small | dict(prefixes=[7, 6, 5], G=3, N=13, slots=9), False),
        (
            "several steps at once",
            small | dict(prefixes=[4, 8], G=3, N=14, slots=6, sync_every=4),
            True,
        ),
        ("many", small | dict(prefixes=[9, 2, 4, 6, 5], G=4, N=17, slots=10, sync_every=2), True),
    ]
    hints = {
        "a request needs a page to start and soon another one": {"spare": 1},
        "which request is preempted first?": {"oldest": True},
        "how many tokens may be prefilled together?": {"greedy_prefill": True},
    }
    for name, inputs, hidden in variants:
        limit = [[rng.randint(2, 12) for _ in range(inputs["G"])] for _ in inputs["prefixes"]]
        inputs = inputs | {"limit": limit}
        mistakes = []
        for hint, how in hints.items():
            with contextlib.suppress(IndexError):  # such a scheduler gets stuck
                mistakes.append((hint, play(**inputs, **how)))
        yield case(name, inputs, play(**inputs), mistakes, hidden)


# ---- kernel --------------------------------------------------------------------------------------


def state(block_TCs, target_T, temperature, hot=False):
    """hot: the mistake of leaving out the temperature."""
    rows = [[x for block in block_TCs for x in block[t]] for t in range(len(target_T))]
    result = {"maximum": [], "sum": [], "weighted sum": [], "target": []}
    for row, target in zip(rows, target_T, strict=True):
        z = [x if hot else x / temperature for x in row]
        top = max(z)
        result["maximum"].append(top)
        result["sum"].append(math.fsum(math.exp(x - top) for x in z))
        result["weighted sum"].append(math.fsum(math.exp(x - top) * (x - top) for x in z))
        result["target"].append(z[target])
    return result


def kernel_cases():
    rng = random.Random(9)
    variants = [
        ("one block", [16], 16, 1.0, False),
        ("columns beyond the row", [11], 16, 0.5, False),
        ("two blocks", [8, 8], 8, 1.0, False),
        ("rows longer than BLOCK", [20, 20, 3], 8, 0.7, True),
    ]
    for name, widths, BLOCK, temperature, hidden in variants:
        T = 3
        block_TCs = [[numbers(rng, C, -4, 4) for _ in range(T)] for C in widths]
        V = sum(widths)
        target_T = [0, V - 1, rng.randrange(V)]
        arguments = (block_TCs, target_T, temperature)
        expected = state(*arguments)
        last = state(block_TCs[-1:], [min(t, widths[-1] - 1) for t in target_T], temperature)
        mistakes = [
            ("the logits are divided by the temperature", state(*arguments, hot=True)),
            ("the state goes on from the blocks before", expected | {"sum": last["sum"]}),
        ]
        inputs = dict(zip(("block_TCs", "target_T", "temperature"), arguments, strict=True))
        yield case(name, inputs | {"BLOCK": BLOCK}, expected, mistakes, hidden)


# ---- law -----------------------------------------------------------------------------------------


def law(shape, N_n, x_nT, w_nT, y_nT):
    """A dense least-squares problem in (K, E_1, ..), or (k_n, E_n) for each size; N0 by scipy."""
    n_sizes = len(N_n)
    flat = [
        (n, x, w, y)
        for n in range(n_sizes)
        for x, w, y in zip(x_nT[n], w_nT[n], y_nT[n], strict=True)
    ]
    root = np.sqrt([w for _, _, w, _ in flat])
    y = np.array([y for *_, y in flat])

    def solve(slope_columns):
        design = np.zeros((len(flat), slope_columns.shape[1] + n_sizes))
        design[:, : slope_columns.shape[1]] = slope_columns
        for i, (n, *_) in enumerate(flat):
            design[i, slope_columns.shape[1] + n] = 1
        found, *_ = np.linalg.lstsq(design * root[:, None], y * root, rcond=None)
        return found, float((((design @ found - y) * root) ** 2).sum())

    def column(f_n):
        return np.array([[-f_n[n] * x] for n, x, _, _ in flat])

    if shape == "free":
        columns = np.zeros((len(flat), n_sizes))
        for i, (n, x, _, _) in enumerate(flat):
            columns[i, n] = -x
        found, _ = solve(columns)
        return {"k": found[:n_sizes].tolist(), "E": found[n_sizes:].tolist()}
    extra = {}
    f_n = [1.0] * n_sizes
    if shape == "saturating":
        N_n = np.array(N_n)
        ends = (math.log(min(N_n) / 100), math.log(max(N_n) * 100))
        cost = lambda theta: solve(column(1 / (1 + math.exp(theta) / N_n)))[1]  # noqa: E731
        best = minimize_scalar(cost, bounds=ends, method="bounded", options={"xatol": 1e-10})
        extra = {"ln N0": float(best.x)}
        f_n = 1 / (1 + math.exp(best.x) / N_n)
    found, _ = solve(column(f_n))
    return {
        "k": [float(found[0] * f) for f in f_n],
        "E": found[1:].tolist(),
        "K": float(found[0]),
    } | extra


def law_cases():
    rng = random.Random(10)
    N_n = [0.5, 1.5, 7.0, 32.0]
    for name, noise, hidden in (
        ("noiseless", 0.0, False),
        ("noisy", 0.02, False),
        ("other", 0.03, True),
    ):
        K, N0 = (0.12, 2.0) if name != "other" else (0.3, 6.0)
        E_n = numbers(rng, 4, 0.1, 0.6)
        x_nT = [numbers(rng, 6, 2, 5) for _ in N_n]
        w_nT = [numbers(rng, 6, 0.2, 1) for _ in N_n]
        for row in w_nT:
            row[-1] = 0.0  # padding: it counts for nothing, and holds anything
        y_nT = []
        for N, E, x_T in zip(N_n, E_n, x_nT, strict=True):
            y_nT.append([E - K / (1 + N0 / N) * x + rng.gauss(0, noise) for x in x_T])
            y_nT[-1][-1] = 3.0
        even = [[1.0 if w else 0.0 for w in row] for row in w_nT]
        for shape in ("free", "constant", "saturating"):
            arguments = (shape, N_n, x_nT, w_nT, y_nT)
            expected = law(*arguments)
            turned_round = expected | {"k": [-k for k in expected["k"]]}
            padded = [[w or 1.0 for w in row] for row in w_nT]
            mistakes = [
                ("the points of a size have weights", law(shape, N_n, x_nT, even, y_nT)),
                ("padding counts for nothing", law(shape, N_n, x_nT, padded, y_nT)),
                ("the sign of k: the loss falls", turned_round),
            ]
            inputs = dict(zip(("shape", "N_n", "x_nT", "w_nT", "y_nT"), arguments, strict=True))
            yield case(f"{shape}, {name}", inputs, expected, mistakes, hidden)


# ---- The files -----------------------------------------------------------------------------------

EXERCISES = {
    "advantages": advantages_cases,
    "kl": kl_cases,
    "weights": weights_cases,
    "surrogate": surrogate_cases,
    "pass_at_k": pass_cases,
    "checker": checker_cases,
    "packing": packing_cases,
    "gumbel": gumbel_cases,
    "decode": decode_cases,
    "scheduler": scheduler_cases,
    "kernel": kernel_cases,
    "law": law_cases,
}


def text(exercise):
    """The file of an exercise: a case on a line."""
    lines = [json.dumps(found) for found in EXERCISES[exercise]()]
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    for exercise in EXERCISES:
        (OUT / f"{exercise}.json").write_text(text(exercise))
