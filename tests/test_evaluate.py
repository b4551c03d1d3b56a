"""evaluate.py: estimators against brute force, files that survive a kill, the command."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

import data
from benchmarks import sandbox
from evaluate import (
    EvaluationSet,
    Flags,
    agreement,
    append,
    compare,
    difficulty_bins,
    load_problems,
    main,
    maj_at_k,
    mean_se,
    parse_sets,
    pass_at_k,
    read_rows,
    report,
    resume,
    summarise,
    wilson,
)
from reward import equal
from runtime.flags import parse

ROOT = Path(__file__).parent.parent


class HereGrader:
    """Compares answers in this process."""

    reward = ""

    def equal(self, pairs):
        return [equal(a, b) for a, b in pairs]


same = agreement(HereGrader())


# ---- Estimators ----------------------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    # Caught: 1 - (1 - c/n)^k, which is biased; an off-by-one in the product.
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(
                    sum(map(any, subsets)) / len(subsets), abs=1e-14
                ), (n, c, k)
    assert pass_at_k(10, 0, 10) == 0.0 and pass_at_k(10, 10, 1) == 1.0  # exactly


def test_pass_at_k_is_stable_for_large_n():
    # Caught: factorials or binomials in floating point, which overflow, and a difference of
    # logarithms, which cancels.
    for n, c, k in [(10_000, 3, 5_000), (10_000, 9_000, 100), (4096, 1, 1), (100_000, 1, 3)]:
        exact = 1 - Fraction(comb(n - c, k), comb(n, k))
        assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-9), (n, c, k)


def test_majority_votes_by_the_rules():
    # Caught: votes for None; the last of two equal groups; one block only; 0.5 and 1/2 as two
    # answers.
    assert maj_at_k(["1", "2", "2"], [1, 0, 0], 3, same) == 0
    # the first of a tie
    assert maj_at_k(["1", "2"], [1, 0], 2, same) == 1 and maj_at_k(["2", "1"], [0, 1], 2, same) == 0
    assert (
        maj_at_k([None, None, "1"], [0, 0, 1], 3, same) == 1 and maj_at_k([None], [0], 1, same) == 0
    )
    assert maj_at_k(["2", "0.5", "\\frac{1}{2}"], [0, 1, 1], 3, same) == 1
    # two blocks; the fifth belongs to none
    assert maj_at_k(["1", "1", "2", "2", "1"], [1, 1, 0, 0, 1], 2, same) == 0.5
    assert maj_at_k(["1", "2", "1"], [1, 0, 1], 1, same) == pytest.approx(2 / 3)
    # equal() holds in one direction only
    assert same("1.41", "\\sqrt{2}") is same("\\sqrt{2}", "1.41")


def test_majority_is_unbiased_and_agrees_with_a_simulation():
    # Draws of an answer that is right with 0.5, else one of two wrong ones; maj@3 by counting all
    # 27 outcomes.
    p = {"1": 0.5, "2": 0.3, "3": 0.2}
    exact = 0.0
    for draws in itertools.product(p, repeat=3):
        count = Counter(draws)
        exact += np.prod([p[d] for d in draws]) * (
            max(count, key=lambda d: (count[d], -draws.index(d))) == "1"
        )
    rng = np.random.default_rng(0)
    values = []
    for _ in range(3000):
        draws = rng.choice(list(p), p=list(p.values()), size=7).tolist()
        values.append(maj_at_k(draws, [float(d == "1") for d in draws], 3, same))
    mean, se = mean_se(values)
    assert abs(mean - exact) < 4 * se and se < 0.01


def graded(problems, scores, answers=None):
    return [
        {
            "score": s,
            "verdict": "right" if s else "wrong",
            "answer": a,
            "truth": p.answer,
            "length": 10 + g,
            "finished": s > 0,
        }
        for p, row, named in zip(
            problems, scores, answers or [["1"] * len(r) for r in scores], strict=True
        )
        for g, (s, a) in enumerate(zip(row, named, strict=True))
    ]


def test_summary_by_hand():
    # Caught: a standard error over completions, or the biased one; bins that mix; a loss that is
    # not 1 - pass@1.
    problems = [data.Problem(i, "?", "1", float(1 + i % 2), "s") for i in range(4)]
    scores = [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    result = summarise(
        problems,
        graded(problems, scores, [["1", "1"], ["2", "3"], ["1", "2"], [None, None]]),
        2,
        HereGrader(),
    )
    assert (result["pass1"], result["test_loss"]) == (0.375, 0.625)
    assert result["pass1_se"] == pytest.approx(np.std([1, 0, 0.5, 0], ddof=1) / 2)
    assert (
        result["pass_at_k"]["2"][0] == 0.5
        and result["maj_at_k"]["2"][0] == 0.5
        and result["maj_at_k"]["1"][0] == 0.375
    )
    assert (
        result["truncated"] == 0.625
        and result["length"] == 10.5
        and result["verdicts"] == {"right": 3, "wrong": 5}
    )
    assert {b: (x["problems"], x["pass1"][0]) for b, x in result["difficulty"].items()} == {
        "level 1": (2, 0.75),
        "level 2": (2, 0.0),
    }
    hard = [data.Problem(i, "?", "1", float(d)) for i, d in enumerate((10, 9, 1))]
    assert list(summarise(hard, graded(hard, [[1.0]] * 3), 1, HereGrader())["difficulty"]) == [
        "level 1",
        "level 9",
        "level 10",
    ]
    text = report({"source": "s", "n": 2, "temperature": 0.7} | result)
    assert (
        "pass@1 0.3750 ± 0.2394" in text
        and "maj@2  0.5000" in text
        and "level 2, 2 problems" in text
    )


def test_rewards_of_a_user_are_summarised_as_they_are():
    # Caught: pass@k of a sum of fractions, the square root of a negative number, a vote by a user's
    # function.
    problems = [data.Problem(i, "?", "1") for i in range(4)]
    for rewards in ([[-1.0, -1.0]] * 4, [[0.25, 0.5]] * 4, [[2.0, 3.0]] * 4):
        result = summarise(problems, graded(problems, rewards), 2, HereGrader())
        assert (
            result["pass1"] == np.mean(rewards)
            and "pass_at_k" not in result
            and "maj_at_k" not in result
        )
        low, high = result["pass1_ci"]
        assert low <= result["pass1"] <= high
        assert f"pass@1 {result['pass1']:.4f}" in report(
            {"source": "s", "n": 2, "temperature": 0.7} | result
        )
    grader = HereGrader()
    grader.reward = "mine.py:reward"
    result = summarise(problems, graded(problems, [[1.0, 0.0]] * 4), 2, grader)
    assert "pass_at_k" in result and "maj_at_k" not in result


def test_nothing_right_has_an_interval():
    # Against the published value for 0 of 20. Caught: 0 +- 0, and an interval that leaves 0..1.
    assert wilson(0.0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(1.0, 20) == pytest.approx((0.8389, 1), abs=1e-4)
    problems = [data.Problem(i, "?", "1") for i in range(20)]
    result = summarise(problems, graded(problems, [[0.0]] * 20), 1, HereGrader())
    text = report({"source": "s", "n": 1, "temperature": 0.7} | result)
    assert "pass@1 0.0000, 95% interval [0.000, 0.161]" in text and "±" not in text


def test_bins_of_pass_rates_are_cut_where_the_study_cuts():
    d = [0.0, 0.3, 0.5, 0.7, 0.75, 1.0, None]
    assert difficulty_bins([data.Problem(0, "", "", x) for x in d]) == [
        "pass rate 0.7 to 1",
        "pass rate 0.7 to 1",
        "pass rate 0.3 to 0.7",
        "pass rate 0.3 to 0.7",
        "pass rate below 0.3",
        "pass rate below 0.3",
        "unknown",
    ]


# ---- Sources, files, comparison ------------------------------------------------------------------


def test_evaluation_sets_are_read_from_the_right():
    parse_set = EvaluationSet.parse
    assert parse_set("arithmetic:test:8:0.5") == EvaluationSet("arithmetic:test", 8, 0.5)
    assert parse_set("openai/gsm8k:test") == EvaluationSet("openai/gsm8k:test", 1, 0.7)
    assert parse_set("a.parquet:4") == EvaluationSet("a.parquet", 4, 0.7) and parse_set(
        ":1:1"
    ) == EvaluationSet("", 1, 1.0)
    for text, message in [
        ("a:0", "0 completions of each problem; must be from 1 to 10,000"),
        ("a:99999999", "must be from 1 to 10,000"),
        ("a:1:5000", "temperature 5000; must be 0 or"),
        ("a:4:0", "at temperature 0 all 4 completions are the same"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_set(text)
    with pytest.raises(ValueError, match=r"--k 2 8 .*pass@k needs k from 1 to n.*write a:8"):
        EvaluationSet("a", 4, problems=[data.Problem(0, "", "")]).check([2, 8])
    with pytest.raises(ValueError, match="no problems"):
        EvaluationSet("a", 4).check()
    with pytest.raises(ValueError, match="--eval names a set twice"):
        parse_sets(["a", "a:4"])


def test_programs_are_refused_where_nothing_contains_them(monkeypatch):
    def refuse(limits):
        raise sandbox.Refused("nothing here contains them")

    monkeypatch.setattr(sandbox, "holding", refuse)
    with pytest.raises(sandbox.Refused, match="nothing here contains them"):
        EvaluationSet("a", problems=[data.Problem(0, "", "", kind="code")]).check()


def test_digests_name_what_changed(tmp_path):
    # Caught: an evaluation file that changed under a run and is blamed on --data.
    for name in ("a.jsonl", "b.jsonl"):
        rows = [{"question": f"{i} + {name}?", "answer": i} for i in range(20)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    a, b = (str(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))

    def digests():
        return load_problems(a, [b, ":2"], 5, 0, data.PROMPT).digests

    before = digests()
    assert list(before) == [a, b, f"the held-out part of {a}"] and digests() == before
    (tmp_path / "b.jsonl").write_text((tmp_path / "b.jsonl").read_text().replace("1 +", "2 +"))
    assert [name for name, digest in digests().items() if digest != before[name]] == [b]


def test_a_run_evaluates_every_set_it_is_given(tmp_path):
    # Caught: the default kept beside what was given; problems of a held-out part trained on, or the
    # same text in both.
    from grpo import parse_flags

    assert parse_flags([]).eval == [] and parse_flags(["--eval", "a", "--eval", "b:2"]).eval == [
        "a",
        "b:2",
    ]
    path = tmp_path / "sums.jsonl"
    rows = [{"question": f"{i} + 1?", "answer": i + 1} for i in range(20)] * 2  # every row twice
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = load_problems(str(path), ["arithmetic:test:2:0.5", ":4:1"], 3, 0, data.PROMPT)
    problems, (first, second), notes = sets.training, sets.tests, sets.notes
    assert (first.name, first.n, second.name, second.n) == ("arithmetic:test", 2, "", 4)
    assert len(first.problems) == len(second.problems) == 3 and len(problems) == 17
    assert not {p.prompt for p in problems} & {p.prompt for p in second.problems}
    assert any("20" in note and "repeat" in note for note in notes), notes


def line(problem, sample, score, source="s"):
    return {
        "source": source,
        "problem": problem,
        "sample": sample,
        "truth": "1",
        "prompt": f"p{problem}",
        "score": score,
    }


def test_a_torn_line_is_left_out_and_the_file_goes_on(tmp_path):
    # Caught: gluing the next row to the torn one; overwriting; going on with other settings.
    path = tmp_path / "new" / "eval.jsonl"
    assert resume(path, {"seed": 0}) == {}
    append(path, line(0, 0, 1.0))
    append(path, line(1, 0, 0.0))
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert list(resume(path, {"seed": 0})) == [("s", 0, 0)]
    append(path, line(1, 0, 0.0))
    assert list(read_rows(path)[1]) == [("s", 0, 0), ("s", 1, 0)]
    with pytest.raises(ValueError, match=r"seed is 0 there, 1 here\. Give another --out"):
        resume(path, {"seed": 1})
    (tmp_path / "notes").write_text("mine\n")
    with pytest.raises(ValueError, match="not the file of an evaluation"):
        resume(tmp_path / "notes", {"seed": 0})
    assert (tmp_path / "notes").read_text() == "mine\n"


def test_comparison_by_hand(tmp_path):
    # Caught: an unpaired interval, B and A swapped, problems of one side counted, a two-sided test
    # halved.
    a, b = [1, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 0, 1, 1, 1, 1, 1, 1, 1, 0]
    for name, scores in (("a", a), ("b", b)):
        resume(tmp_path / name, {"model": name})
        for i, s in enumerate(scores):
            append(tmp_path / name, line(i, 0, float(s)))
    append(tmp_path / "a", line(99, 0, 1.0))
    text = compare(tmp_path / "a", tmp_path / "b")
    d = np.array(b) - np.array(a)
    # the 97.5% point of Student's t with 9 degrees of freedom
    half = 2.2621571627 * d.std(ddof=1) / 10**0.5
    assert (
        "10 problems in both, 1 in A alone, 0 in B alone" in text and "model: a (A), b (B)" in text
    )
    assert (
        f"B - A = {d.mean():+.4f}, 95% interval [{d.mean() - half:+.4f}, {d.mean() + half:+.4f}]"
        in text
    )
    assert f"B won 6, lost 1, tied 3; exact sign test p = {2 * (1 + 7) / 2**7:.3g}" in text
    assert "  problems won: 2, 3, 4, 5, 6, 7\n  problems lost: 1" in text
    resume(tmp_path / "c", {})
    append(tmp_path / "c", line(0, 0, 1.0, source="other"))
    with pytest.raises(ValueError, match="no problem in common"):
        compare(tmp_path / "a", tmp_path / "c")


# ---- The command ---------------------------------------------------------------------------------


COMMAND = [sys.executable, "evaluate.py", "--max-prompt", "40", "--max-new", "40"]
OPTIONS = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}


def evaluate(*arguments):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, timeout=600, **OPTIONS
    )


def refused(*arguments) -> str:
    """The message with which the command ends, run in this process."""
    with pytest.raises((ValueError, OSError)) as ended:
        main(parse(Flags, [*map(str, arguments)], ""))
    if dist.is_initialized():
        dist.destroy_process_group()
    return str(ended.value)


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    # Caught: rows written only at the end; noise that depends on which problems are left; work done
    # twice.
    flags = [
        "--eval",
        "arithmetic:test:8:1",
        "--eval",
        "arithmetic-hard:test:4:1",
        "--slots",
        "16",
        "--problems",
        "100",
        "--out",
    ]
    once, killed = tmp_path / "once.jsonl", tmp_path / "killed.jsonl"
    done = evaluate(*flags, once)
    assert done.returncode == 0, done.stderr[-2000:]
    process = subprocess.Popen(
        [*COMMAND, *flags, str(killed)], stdout=subprocess.DEVNULL, **OPTIONS
    )
    while process.poll() is None and (
        not killed.is_file() or killed.read_bytes().count(b"\n") < 200
    ):
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = killed.read_bytes().count(b"\n") - 1
    assert 0 < before < 1200
    again = evaluate(*flags, killed)
    assert again.returncode == 0 and "completions are there already" in again.stdout, again.stderr[
        -2000:
    ]
    (_, rows), (_, rows_killed) = read_rows(once), read_rows(killed)
    assert len(rows) == 1200 and rows == rows_killed
    # whole problems that were there were not drawn again
    assert killed.read_bytes().count(b"\n") < 1200 + 0.9 * before
    assert [x for x in done.stdout.splitlines() if "@" in x] == [
        x for x in again.stdout.splitlines() if "@" in x
    ]
    assert "B won 0, lost 0, tied 100" in compare(once, killed)


def test_two_processes_write_the_file_of_one(torchrun, tmp_path):
    # Caught: rank 0's share alone; lines of two ranks mixed.
    flags = [
        "--eval",
        "arithmetic:test:2:1",
        "--problems",
        41,
        "--max-prompt",
        32,
        "--max-new",
        40,
        "--out",
    ]
    assert torchrun(2, "evaluate.py", *flags, tmp_path / "two").returncode == 0
    assert evaluate(*flags, tmp_path / "one").returncode == 0
    (settings, one), (_, two) = read_rows(tmp_path / "one"), read_rows(tmp_path / "two")
    assert one == two and len(one) == 82 and settings["eval"] == ["arithmetic:test:2:1"]
    assert all(r["prompt"] and r["text"] and r["truth"] and r["verdict"] for r in one.values())


def test_bad_input_ends_with_a_message(tmp_path):
    (tmp_path / "unanswered.jsonl").write_text(
        '{"problem": "1 + 1?", "answer": ""}\n{"problem": "2?", "answer": "2"}\n'
    )
    for flags, message in [
        (["--eval", "arithmetic:test:2", "--k", "4"], "pass@k needs k from 1 to n"),
        (["--eval", "arithmetic:test", "--eval", "arithmetic:test:2"], "names a set twice"),
        (["--eval", "nowhere.parquet"], "nowhere.parquet"),
        (["--compare", "nowhere.jsonl", "nowhere.jsonl"], "No such file"),
        (["--eval", tmp_path / "unanswered.jsonl"], "unanswered"),
    ]:
        assert message in refused(*flags), flags
