r"""An answer without a value earns nothing: \frac{0}{\sin\pi}, 0\tan 90^\circ and their kind.

Numbers with digits see such a divisor as a rounding error, not as 0. A checker that divides by the
rounding error, and takes its error bound from the quotient, accepts the answer for every truth.
A policy trained on such a reward finds it. The tests generate zeros, put them where a zero has no
value, and compare with truths of every kind. They use only the public face of reward.py.
"""
import itertools
import os
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from reward import equal, judge, score

SCALING_DATA = os.environ.get("SCALING_DATA")

# Identities whose value is 0. A, B, K, N are replaced by whole numbers: 2 <= A, B; 2 <= K <= N.
# The letters x, y, n, m stay.
ZEROS = {
    "trigonometry": (
        r"\sin\pi", r"\sin(K\pi)", r"\cos\frac{\pi}{2}", r"\cos 90^\circ", r"\sin 180^\circ",
        r"\tan\pi", r"\sin 30^\circ-\frac12", r"2\cos 60^\circ-1", r"\tan 45^\circ-1",
        r"\tan 60^\circ-\sqrt3", r"\sin^2 A+\cos^2 A-1", r"\sin(2\cdot A)-2\sin(A)\cos(A)",
        r"\cos(A+B)-\cos(A)\cos(B)+\sin(A)\sin(B)", r"\arctan 1-\frac{\pi}{4}",
        r"2\arcsin\frac12-\frac{\pi}{3}", r"\sin 18^\circ-\frac{\sqrt5-1}{4}"),
    "roots": (
        r"\sqrt{A}^2-A", r"\sqrt7^2-7", r"\sqrt[3]{A}^3-A", r"\sqrt{A}\sqrt{B}-\sqrt{A\cdot B}",
        r"(\sqrt{A}+\sqrt{B})(\sqrt{A}-\sqrt{B})-A+B", r"\sqrt{3+2\sqrt2}-1-\sqrt2",
        r"\sqrt{8}-2\sqrt{2}", r"\frac{1}{\sqrt2}-\frac{\sqrt2}{2}", r"A^{1/K}-\sqrt[K]{A}",
        r"10^{20}\sqrt{A}^2-10^{20}\cdot A", r"(10^{20}\sqrt2\sqrt2-2\cdot10^{20})10^{20}"),
    "logarithms": (
        r"\ln A+\ln B-\ln(A\cdot B)", r"\log_{A}(A^K)-K", r"\ln(A^K)-K\ln A", r"\ln(e^A)-A",
        r"\frac{\ln A}{\ln B}-\log_{B}A", r"\log_{A}B\cdot\log_{B}A-1"),
    "exponentials": (
        r"e^{i\pi}+1", r"e^{\ln A}-A", r"A^{\log_{A}B}-B", r"e^A\cdot e^B-e^{A+B}", r"e^{2\pi i}-1",
        r"(e^A)^K-e^{A\cdot K}", r"\frac{e^{1}+e^{-1}}{2}-\cosh 1", r"e^A e^{-A}-1"),
    "binomials": (
        r"\binom{N}{K}-\binom{N}{N-K}", r"\binom{N}{1}-N", r"K!-K\cdot(K-1)!",
        r"\binom{5}{2}-\sqrt{10}^2", r"\binom{N}{2}-\frac{N\cdot(N-1)}{2}"),
    "letters": (
        r"\sin^2 x+\cos^2 x-1", r"\sin(2x)-2\sin(x)\cos(x)", r"(x+y)^2-x^2-2xy-y^2", r"x-x",
        r"e^{x+y}-e^x\cdot e^y", r"\sqrt{x^2}-|x|", r"\sqrt[3]{x}^3-x", r"\ln(x^2)-2\ln|x|",
        r"2^{x+1}-2\cdot2^x", r"\sin(n\pi)", r"\cos(2n\pi)-1", r"\binom{n}{2}-\frac{n(n-1)}{2}",
        r"\cosh^2 y-\sinh^2 y-1", r"\frac{x^2-y^2}{x+y}-x+y", r"e^{\ln(x^2)}-x^2",
        r"\frac{1}{m}-\frac{1}{m+1}-\frac{1}{m(m+1)}"),
}
# A zero stays a zero in these.
SAME = "Z", "Z", "Z", "B(Z)", "-(Z)", r"\frac{Z}{B}", r"\sqrt2(Z)", r"10^{30}(Z)", r"\pi(Z)"

# Where Z = 0 has no value, and the value where Z = 1.
POLES = {
    r"\frac{0}{Z}": "0", r"\frac{Z}{Z}": "1", r"\frac{7}{Z}": "7", r"0(Z)^{-1}": "0",
    r"\frac{0}{(Z)^2}": "0", r"\frac{0}{(Z)(Z)}": "0", r"0\cdot\frac{5}{Z}": "0",
    r"\frac{1}{Z}-\frac{1}{Z}": "0", r"3+\frac{0}{Z}": "3", r"\frac{1}{\frac{1}{Z}}": "1",
    r"\frac{|Z|}{Z}": "1", r"\frac{0}{|Z|^{1/100}}": "0", r"\frac{0}{\sin(Z)}": "0",
    r"\frac{0}{\ln(1+Z)}": "0", r"\frac{0}{e^{Z}-1}": "0", r"\frac{0}{1-\cos(Z)}": "0",
    r"\ln(Z)": "0", r"0\ln(Z)": "0", r"0\cdot\log_2(Z)": "0", r"\log_{1+Z}1": "0",
    r"\frac{\ln(Z)}{10^{40}}": "0", r"0\tan(90^\circ+Z)": "0", r"0\sec(\frac{\pi}{2}+Z)": "0",
    r"0\cot(Z)": "0", r"0\csc(Z)": "0", r"0\cdot(Z-1)!": "0", r"(Z)^0": "1",
    r"0^{Z}": "0", r"(Z)^{Z}": "1",
    r"\frac{0}{Z}\cdot\frac{0}{Z}": "0", r"\arctan(\frac{1}{Z})": r"\frac{\pi}{4}",
    r"2^{\frac{0}{Z}}": "1", r"\sqrt{\frac{0}{Z}}": "0", r"|\frac{0}{Z}|": "0",
    r"\cos(\frac{0}{Z})": "1",
}
PLAIN = r"0\tan 90^\circ", r"0\sec 90^\circ", r"\tan\frac{\pi}{2}", r"0\cot\pi", r"\frac00"

# What may stand around an answer without a value.
AROUND = (
    "F", "F", "F", "(F,F)", "(1,F)", "(F,F,F)", r"\{F\}", r"\{1,F\}", "F,F", "1,F", "x=F", "F=x",
    "x=F, y=F", "y=x+F", "F=F", "x<F", r"x\le F", r"x\in(F,\infty)", "[F,F]", r"(-\infty,F]",
    r"(0,1)\cup(F,F)", r"\pm F", "F:1", "1:F", r"F\%", r"F\text{ cm}", r"F^\circ", r"\$F",
    r"\begin{pmatrix}F\\F\end{pmatrix}", r"\begin{pmatrix}1&F\\F&1\end{pmatrix}", "x+F", "F+x",
    r"F\text{ or }F", r"F\cdot x", r"\lfloor F\rfloor", r"F\pmod 4", "f(x)=F", r"F\cdot(1,2)")

TRUTHS = {
    "integers": ("0", "1", "-1", "A", "-A", "1{,}234", "10^{A}", "A!"),
    "fractions": (r"\frac{A}{B}", r"-\frac{1}{A}", "A/B", "0.5", "1.41", r"0.\overline{3}"),
    "roots": (r"\sqrt{A}", r"A\sqrt{B}", r"\frac{1+\sqrt{A}}{2}", r"\sqrt[3]{A}", r"\pi",
              r"\frac{\pi}{A}", r"1\pm\sqrt{A}", "e^A", r"\ln A", "A+Bi", r"\infty"),
    "symbolic": ("x", "Ax+B", "x^2-y^2", r"\frac{x}{y}", r"\sin x", "n(n+1)", r"2\pi r^2", "a_n"),
    "tuples": ("(A,B)", "(0,0)", "(1,A)", "(A,B,1)", r"(\frac12,\sqrt3)", "(x,y)", "A:B", "2:1",
               r"\begin{pmatrix}A\\B\end{pmatrix}", r"\begin{pmatrix}1&A\\B&1\end{pmatrix}"),
    "sets": (r"\{A,B\}", r"\{1,A\}", r"\{0\}", "A,B", "1,A", r"A\text{ and }B", r"\emptyset"),
    "intervals": (r"(A,\infty)", r"[-A,B]", r"(-\infty,0]", r"(0,1)\cup(A,\infty)", r"\mathbb{R}",
                  "x>A", r"A\le x<100", r"x\ne A"),
    "equations": ("x=A", "y=Ax+B", "y=x", "x^2+y^2=A", "x=A,y=B", "f(x)=x^2", r"x\equiv A\pmod 4"),
    "text": (r"\text{even}", r"\text{Monday}", "yes", r"\text{(C)}", "D", r"\text{undefined}",
             r"\text{no solution}", r"A\text{ cm}", r"A\%", r"A^\circ", r"\$A"),
}


def filled(template: str, rng: random.Random) -> str:
    """The template with whole numbers for A, B, K, N."""
    total = rng.randint(2, 12)
    numbers = {"A": rng.randint(2, 99), "B": rng.randint(2, 99), "N": total,
               "K": rng.randint(2, total)}
    for name, number in numbers.items():
        template = template.replace(name, str(number))
    return template


def zero(rng: random.Random) -> str:
    """An expression whose value is 0 wherever it has one."""
    identity = rng.choice(ZEROS[rng.choice(sorted(ZEROS))])
    return filled(rng.choice(SAME), rng).replace("Z", filled(identity, rng))


def nothing(rng: random.Random) -> str:
    """An expression without a value."""
    if rng.random() < 0.05:
        return rng.choice(PLAIN)
    return rng.choice(sorted(POLES)).replace("Z", zero(rng))


def forgery(rng: random.Random) -> str:
    """An answer, of any kind, in which an expression has no value."""
    around, expression = rng.choice(AROUND), nothing(rng)
    bare = around in ("F", r"\{F\}", "F,F", "(F,F)")
    return around.replace("F", expression if bare else f"({expression})")


def truth_of_any_kind(rng: random.Random) -> str:
    return filled(rng.choice(TRUTHS[rng.choice(sorted(TRUTHS))]), rng)


def check(answer: str, truth: str):
    """The answer scores 0, and the checker did not crash on it."""
    verdict = judge(f"so $\\boxed{{{answer}}}$", truth)
    assert (verdict.score, verdict.verdict == "crashed") == (0.0, False), (answer, truth, verdict)


@pytest.mark.parametrize("answer", [
    r"\frac{0}{\sin\pi}", r"0\tan 90^\circ", r"\frac{\sin\pi}{\sin\pi}", r"\frac{0}{\sqrt7^2-7}",
    r"\frac{0}{e^{i\pi}+1}", r"(\frac{0}{\sin\pi},\frac{0}{\sin\pi})", r"x=\frac{0}{\sin\pi}",
    r"\{\frac{0}{\sin\pi}\}",
    r"\frac{0}{(\sqrt7^2-7)^{1/100}}", r"(\sqrt7^2-7)^{\sin\pi}", r"0^{\sin\pi}"])
def test_the_found_forgeries(answer):
    """Each was right, or could be, for every truth or for 0, 1, 3 and infinity."""
    rng = random.Random(0)
    truths = ["0", "1", "3", r"\infty", "(0,0)", r"\{0\}", "x=0"]
    for truth in truths + [truth_of_any_kind(rng) for _ in range(40)]:
        check(answer, truth)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_no_forgery_equals_a_truth(rng):
    answer, truth = forgery(rng), truth_of_any_kind(rng)
    note(f"answer {answer}, truth {truth}")
    check(answer, truth)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_a_part_without_a_value_is_not_ignored(rng):
    """The truth itself, with a part that has no value: added, as a factor, or as one item more."""
    kind = rng.choice(("integers", "fractions", "roots", "symbolic"))
    truth = filled(rng.choice(TRUTHS[kind]), rng)
    wrapped = rng.choice((r"T+(F)", r"(T)(1+F)", r"(T)\cdot2^{F}", r"T, F", r"\{T,F\}", r"(T,F)",
                          r"T=F", r"x=T+(F)", r"\max(T,F)"))
    pole = rng.choice((r"\frac{0}{Z}", r"0\ln(Z)", r"0\cot(Z)", r"0\cdot(Z-1)!", r"0(Z)^{-2}"))
    answer = wrapped.replace("T", truth).replace("F", pole.replace("Z", zero(rng)))
    note(f"answer {answer}, truth {truth}")
    check(answer, truth)
    check(answer, f"x={truth}")


@pytest.mark.parametrize("pole", [*sorted(POLES), r"(Z)\infty", r"(1+Z)^{\infty}"])
def test_a_pole_has_not_the_value_beside_it(pole):
    """The truth that a checker which cancels the zero, or drops the part, would find."""
    rng, due = random.Random(2), POLES.get(pole, r"\infty")
    for identity in itertools.chain.from_iterable(ZEROS.values()):
        answer = pole.replace("Z", filled(identity, rng))
        check(answer, due)


@pytest.mark.parametrize("pole", sorted(POLES))
def test_a_zero_over_a_zero(pole):
    """A second zero stands where the form has the number 0, also as the exponent."""
    rng = random.Random(3)
    for _ in range(10):
        parts = re.split(r"(?<!\d)0", pole)
        answer = f"({zero(rng)})".join(parts).replace("Z", zero(rng))
        check(answer, POLES[pole])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False))
def test_a_forgery_is_not_a_forgery(rng):
    """A truth without a value equals no other expression without a value."""
    answer, truth = nothing(rng), nothing(rng)
    note(f"answer {answer}, truth {truth}")
    if answer != truth:
        check(answer, truth)


@pytest.mark.parametrize("family", sorted(ZEROS))
def test_zeros_are_zero(family):
    """A checker that reads no identity would pass the tests above: zeros equal 0 and not 1."""
    rng = random.Random(1)
    for identity in ZEROS[family]:
        answer = filled(identity, rng)
        assert equal(answer, "0"), answer
        assert score(f"\\boxed{{1+{answer}}}", "1") == 1.0, answer
        assert not equal(answer, "1"), answer
        assert not equal(answer, "10^{-20}"), answer


@pytest.mark.parametrize("pole", sorted(POLES))
@pytest.mark.parametrize("one", ["1", r"\sqrt7^2-6", r"\sin^2 x+\cos^2 x"])
def test_the_same_forms_have_a_value_elsewhere(pole, one):
    """The form is readable, and refused for its pole alone. Two forms are plain 0 at Z = 1."""
    answer, due = pole.replace("Z", one), POLES[pole]
    assert equal(answer, due), answer
    assert not equal(answer, "5"), answer


@pytest.mark.parametrize("answer, truth", [
    (r"\frac{1}{10^{-60}}", "10^{60}"), (r"\frac{1}{10^{-300}}", "10^{300}"),
    (r"\frac{0}{\sqrt7^2-7+10^{-80}}", "0"), (r"\frac{10^{-80}}{\sqrt7^2-7+10^{-80}}", "1"),
    (r"\frac{\sin(10^{-40})}{\sin(10^{-40})}", "1"), (r"\ln(10^{-90})", r"-90\ln 10"),
    (r"\frac{\sqrt2-1.414213562373}{\sqrt2-1.414213562373}", "1"),
    (r"0\tan(89.999999^\circ)", "0"), (r"\frac{x^2-1}{x-1}", "x+1"), (r"\frac{x}{x}", "1"),
    (r"\tan x\cot x", "1"), (r"\frac{\sin\pi}{7}", "0"),
    (r"\frac{1}{\tan 89^\circ}", r"\tan 1^\circ"), (r"\frac{2^{2007}\sqrt3}{2^{2007}}", r"\sqrt3")])
def test_small_is_not_zero(answer, truth):
    """A divisor that more digits separate from 0 is a divisor like any other."""
    assert equal(answer, truth)


def study_truths() -> list[str]:
    """The distinct truths of the study's training and test files."""
    if not SCALING_DATA:
        pytest.skip("SCALING_DATA is not set")
    parquet = pytest.importorskip("pyarrow.parquet")
    truths = set()
    for path in sorted(Path(SCALING_DATA, "data", "guru").glob("*.parquet")):
        column = parquet.read_table(path, columns=["reward_model"]).column("reward_model")
        truths |= {row["ground_truth"] for row in column.to_pylist()}
    assert len(truths) > 1000
    return sorted(truths)


def rewards(count: int, seed: int) -> dict:
    """The forgeries of `count` that earn anything over the study's truths, with their truths."""
    rng, truths, earned = random.Random(seed), study_truths(), {}
    for _ in range(count):
        answer, truth = forgery(rng), rng.choice(truths)
        if reward := score(f"so $\\boxed{{{answer}}}$", truth):
            earned[answer, truth] = reward
    return earned


def test_the_mean_reward_over_the_study_is_zero():
    """No exception is made: no truth of the study is itself an expression without a value."""
    assert not rewards(2000, seed=0)


@pytest.mark.slow
def test_the_mean_reward_over_the_study_is_zero_for_many():
    assert not rewards(30_000, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("answer", [r"\frac{0}{\sin\pi}", r"0\tan 90^\circ", r"\frac00"])
def test_the_found_forgeries_over_all_truths_of_the_study(answer):
    for truth in study_truths():
        check(answer, truth)
