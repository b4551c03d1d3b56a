r"""Decide whether a model's final answer equals the reference: a reward for mathematics.

    extract (find it) -> clean (one spelling) -> read (take it apart) -> same (compare) -> 1 or 0

The rules of equality. Each has a block of examples in tests/test_reward.py.
 1. The last box counts, also when it is empty; of the last five boxes, those joined to it by
    "and", "or" or a comma are one list with it. Without a box, what follows the last ####,
    <answer>, "answer is" or "final answer:", or a last line "Answer:", counts. A <think> that is
    never closed has no answer.
 2. Spelling does not matter: spaces, dollar signs, \left, \dfrac, doubled backslashes, a closing
    period, 1,000 for 1000.
 3. Exact numbers must be exactly equal: 1/2 = 0.5 = 50%, but 0.33 is not 1/3 and 857499 is not
    857500. (`Numbers.equal`)
 4. A truth that is a decimal of three digits or more is also met by an exact value, or a longer
    decimal, that rounds to it: 1.41 by \sqrt2. Not where the truth is money: \$5.004 is not \$5.00.
 5. Expressions are equal when their values agree at those of eight points where both are real. An
    expression without a value (a divisor that hundreds of digits do not separate from 0) equals
    nothing. Letters are case-sensitive; j, k, l, m, n stand for whole numbers.
 6. A name in front ("x =", "f(x) =", "x \in"), a unit, a degree or percent sign or a base may be
    missing on one side. On both sides they must agree: 4% is not 40%, 5 dollars are not 5 cents,
    x = 2 is not y = 2. But y = x^2 is f(x) = x^2.
 7. Order counts in tuples, vectors, matrices and ratios (2:4 = 1:2). It does not count in sets
    and lists. A hedge ("540 or 542") is a list of two. The brackets of a pair count: (0, 1] is not
    (0, 1). Names that are neighbours in the alphabet give the order: y = 2, x = 1 is (1, 2).
 8. Equations may differ by a non-zero factor, inequalities by a positive one. An inequality that
    is solved for its letter is a set of numbers: x > 3 is (3, \infty).
 9. A choice is its letter: (C), C. and \textbf{(C) } 12 agree. Two letters, three different
    capitals, and small letters that are neighbours in the alphabet are a product: AB = BA, ABC =
    CAB, wxyz = zyxw. Other words are compared without case: CDAB is not ABCD.
10. Two digits below 60 behind a colon make a time: 5:25 is not 10:50, and 3:10 no ratio. A date is
    a date: 2/4/2000 is not 1/2/2000.
11. Where a text has two readings (1,000 as a number or a list; \log to base e or 10), the one
    that suits the truth counts.

Text is never run as code. The parser builds sympy expressions that are not evaluated, because
sympy otherwise computes while it builds (2**10**10 hangs). `Numbers` walks over them with mpmath
and checks sizes before it computes; sympy's evalf, subs and simplify have no such bounds.
"""

import argparse
import itertools
import json
import math
import operator
import os
import queue
import re
import resource
import runpy
import select
import string
import subprocess
import sys
import threading
import time
import unicodedata
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache, lru_cache
from typing import NamedTuple

import mpmath
import sympy
from sympy import Add, E, I, Integer, Mul, Pow, Rational, Symbol, oo, pi

# Bounds, checked before computing.
MAX_CHARS = 3000
MAX_DEPTH = 40  # of brackets
MAX_ITEMS = 200  # of a list
MAX_BRACES = 10_000  # in a box
PRECISIONS = 2000, 70_000  # in bits; 2022! has 19,300 bits and needs twice as many
SECONDS = 1.0  # of a thread's work on one comparison; a busy machine does not shorten it

# One comparison at a time: the deadline and the precision of `mp` belong to it.
LOCK = threading.Lock()
mp = mpmath.MPContext()
deadline = math.inf


class Refused(Exception):
    """Raised with (message, verdict): unparsed; too_large or timeout where a bound is reached."""


class Undefined(Exception):
    """There is no value here, or no set of real numbers."""


class NotReal(Undefined):
    """The value is not a real number, where real numbers are meant."""


def fail(message: str, verdict: str = "unparsed"):
    raise Refused(message, verdict)


def undefined(message: str):
    raise Undefined(message)


def in_time():
    """Raise once a comparison has taken SECONDS; called where work grows."""
    if time.thread_time() > deadline:
        fail(f"more than {SECONDS} s", "timeout")


# ---- extract ------------------------------------------------------------------------------------

BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*\{|\s+([^\s{}$\\]+))")  # \boxed{5}, \boxed 5
BRACE = re.compile(r"\\.|[{}]", re.S)  # \{ does not count
SPACE = re.compile(r"\\q?quad|\\text|[\s${}~]")  # between two boxes
JOINER = re.compile(r"(,|,?and|,?or)(?:[a-zA-Z]=)?")  # \boxed{3} and $x=\boxed{5}$
HEAD = re.compile(
    r"(?:####|\banswer\s+is\b:?|\bfinal\s+answer\W{0,4}:|<answer>"  # "The answer is 42."
    r"|^\W{0,4}answer\W{0,3}:(?=[^\n]*\s*\Z))[\s*:$]*(?:\\\[\s*)?",  # "Answer: 42", the last line
    re.I | re.M,
)
STOP = re.compile(r"\.(?:\s|$)|\n|<\||</|<eos>|<end_of_turn>|\s(?:because|since)\s")  # 42</s>


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of each box among the last five matches of BOX, in their order.

    A box is \boxed or \fbox with braces behind it, or with blanks and a word (see BOX). Braces
    inside are balanced; \{ and \} are no braces. text[start:end] is the whole box: `end` is the
    place behind its closing brace or its word. The content has no blanks at its ends, and may be
    empty. A box may lie in another one. A match whose brace is not closed by one of the MAX_BRACES
    braces behind it is no box and is left out: of five matches fewer boxes may remain.
    """
    # <solution id="checker" points="5">
    found = []
    for box in list(BOX.finditer(text))[-5:]:
        if box[1]:
            found.append((box.start(), box.end(), box[1]))
            continue
        depth = 1
        for brace in itertools.islice(BRACE.finditer(text, box.end()), MAX_BRACES):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                content = text[box.end() : brace.start()].strip()
                found.append((box.start(), brace.end(), content))
                break
    return found
    # </solution>


def extract(text: str) -> str | None:
    r"""The final answer in `text`, or None if there is none: rule 1. Linear in the text's length.

    The last \boxed{...} or \fbox{...} after the last </think>, with the boxes that are joined to
    it; else the line after the last head such as ####. A box that is never closed is no answer,
    and no head counts beside it."""
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    answer, end = None, 0
    for start, stop, content in boxes(text):
        joiner = JOINER.fullmatch(SPACE.sub("", text[end:start][:60]))
        answer = f"{answer} {joiner[1]} {content}" if answer and joiner else content
        end = stop
    heads = list(HEAD.finditer(text))
    if heads and not BOX.search(text):
        answer = STOP.split(text[heads[-1].end() :], maxsplit=1)[0].strip("* \t")
    return answer or None


# ---- spelling -----------------------------------------------------------------------------------

# The sign that we use, then its other spellings. ⦃⦄ are the braces of a set, ⟦⟧ the edges of a
# matrix, ¶ ends its rows. Quotes stand around what was written in \text{}.
SIGNS = r"""
    - − – — ‐ ‒ ―   * × · ∙ ⋅ \cdot \times \ast   / ÷ ⁄ ∕ \div   ^ **   ± \pm +/-   ∓ \mp
    = == ∈ \in ≡ \equiv ≈ \approx \simeq   < \lt   > \gt   ≤ ⩽ <= \le \leq \leqslant
    ≥ ⩾ >= \ge \geq \geqslant   ≠ != \ne \neq   ∪ \cup   ∩ \cap   ∖ \setminus \backslash   : \colon
    | \| \vert \lvert \rvert \Vert   ∣ \mid   ⦃ \{ \lbrace   ⦄ \} \rbrace   [ \lbrack   ] \rbrack
    ( \lparen \langle   ) \rparen \rangle \rfloor ⌋ \rceil ⌉   ⌊( ⌊ \lfloor   ⌈( ⌈ \lceil
    ¶ \\   ' ′ ’ \prime   % \% \percent   … ... \ldots \cdots \dots   √ \sqrt   π \pi
    ° ∘ \circ \degree   ∞ \infty \infinity   (-∞,∞) \R \reals   ⦃⦄ ∅ \emptyset \varnothing   ℤ \Z
    $ \$ US$ USD Rs Rs. INR ₹   € \euro EUR   £ \pounds \pound GBP   ¥ \yen
    α \alpha   β \beta   γ \gamma   δ \delta   ε \epsilon \varepsilon   ζ \zeta   η \eta
    θ \theta \vartheta   ι \iota   κ \kappa   λ \lambda   μ \mu   ν \nu   ξ \xi
    ρ \rho \varrho   σ \sigma   τ \tau   υ \upsilon   φ \phi \varphi   χ \chi   ψ \psi
    ω \omega   Γ \Gamma   Δ \Delta   Θ \Theta   Λ \Lambda   Ξ \Xi   Π \Pi   Σ \Sigma   Φ \Phi
    Ψ \Psi   Ω \Omega   l \ell"""
SPELLED = {}
for group in re.split(r"\n? {3,}", SIGNS.strip()):
    sign, *spellings = group.split()
    SPELLED |= dict.fromkeys(spellings, sign)
SPELLING = re.compile(
    r"\\\\|\\(?:pi(?=[A-Z])|[a-zA-Z]+|[{}%$|])"  # \pi in \piR, a slip
    r"|\+/-|<=|>=|!=|==|\*\*|\.\.\.|\b(?:US\$|USD\b|EUR\b|GBP\b|INR\b|Rs\b\.?)|[^\x00-\x7f]"
)
# Characters that are not seen: controls, zero-width characters, marks of direction.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]"
)
# Rules "pattern → replacement   # example" in the order of their application. An example too long
# for the line stands above its rule; it is raw text, which the rules before have changed already.
# ␣ is a space; QUOTED and BOTH_SIGNS are the functions below. The first rules are for characters.
UNICODE = r"""
    [˚º] → °
    。 → .
    ℝ → \\R␣
    ℤ → \\Z␣
    [¼-¾⅐-⅞] → ␣\g<0>   # 2½
    [⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]{1,99} → ^{\g<0>}   # x²
"""
# For commands, in a text whose spaces are single, so that every pattern is linear.
COMMANDS = r"""
    (\d+)⁄(\d+) → \\frac{\1}{\2}   # ½
    # \\[2pt] between rows
    \\\\ ?\[-?[\d.]{1,9} ?(?:pt|em|ex|mm)\] → \\\\
    \\(?:textcolor|color) ?\{\w*\} →   # {\color{red}5}
    \\(?:left|right|middle)(?![a-zA-Z]) ?\.?|\\[bB]igg?[lrm]?(?![a-zA-Z]) →   # \left(
    # \displaystyle 5
    \\(?:displaystyle|textstyle|[lL]arge|limits|nolimits|rm|bf|it)(?![a-zA-Z]) →
    # \boxed{\boxed{5}}, \begin{cases}
    \\(?:boxed|fbox) ?(?=\{)|\\(?:begin|end) ?\{(?:cases|align(?:ed|\*)?|gathered)\} →
    & ?(?==) →   # x &= 1
    \\begin ?\{[a-zA-Z]{1,12}\*?\}(?:\{[lcr|]{1,20}\})? → ⟦   # \begin{array}{cc}
    (?:\\\\)? ?\\end ?\{[a-zA-Z]{1,12}\*?\} → ⟧   # \\ \end{pmatrix}
    (?<!\\)\\[()\[\]]|(?<!\\)(?<!US)\$|" → ␣   # \( \) \[ \] $
    (?<=\d) ?(?:\{,\}|,\\!|\\!,|\{,\\!\}|\\,) ?(?=\d{3}) →   # 1{,}000, 3,\!250, 1\,000
    (?<!\\)\\[!,;:> ]|~|\\(?:thin|med|thick)space → ␣   # 5\,cm, a~b
    (?<![\d.,])(\d{1,3}) (\d{3})(?: (\d{3}))?(?![\d/]) → \1\2\3   # 1 000
    \\q?quad → ␣   # x \quad y
    \\(?:land|wedge)(?![a-z])|∧ → ␣and␣   # x>0 \land x<5
    \\(?:lor|vee)(?![a-z])|∨ → ␣or␣   # x<0 \lor x>5
    \\(?:[dtcs]|nice)(frac|binom)(?![a-zA-Z]) ? → \\\1␣   # \dfrac, \nicefrac, \dbinom
    \\operatorname\*? ?\{([a-zA-Z]+)\} → \\\1␣   # \operatorname{sech}
    \\(?:mathbb|mathbf|Bbb) ?\{? ?([RZ])(?![a-zA-Z]) ?\}? → \\\1␣   # \mathbf{R}
    # \mathbf{A}\mathbf{B} is not \mathbf{B}\mathbf{A}
    \\mathbf ?\{(\w)\} ?(?:\\times)? ?\\mathbf ?\{(\w)\} → V_{\1\2}
    # \mathbf{x}
    \\(?:math(?:bf|it|ord)|boldsymbol|bm|pmb|ensuremath) ?\{([^{}]*)\} → ␣\1␣
    \\(?:text[a-z]{2,6}|math(?:rm|sf|tt|normal)|[mh]box|emph) ?\{ → \\text{   # \mathrm{cm}
    \\text ?\{((?:[^{}]|\{[^{}]*\})*)\} → QUOTED   # \text{ cm}
    " ?((?:a?r?c?(?:sin|cos|tan|cot|sec|csc)h?|arctg|cis|log|ln|lg|exp)) ?" → \\\1␣   # \text{cis}
    ([\])}]) ?U ?(?=[\[(\\]) → \1\\cup␣   # (0,1)U(2,3)
    & ?"? ?(?:if|for|when)\b ?"? → &␣   # x & \text{if } x > 0
    \( ?(?:\\[bp]?mod\b|"? ?mod\b ?"?)([^()]*)\) → ␣mod \1   # (mod 4)
    \\[pb]?mod(?![a-z])|" ?mod ?" → ␣mod␣   # \pmod{4}
    \^ ?\\circ(?![a-zA-Z])|\^ ?\{ ?\\circ ?\} → °   # 60^\circ
    \^ ?\\prime|\^ ?\{ ?\\prime ?\} → '   # f^{\prime}
    ° ?"? ?([CF])\b ?"? → ␣"degree\1"   # 77° F
    [("]? ?\b(?:in )?base ?(\d{1,2})\b ?[)"]? → _{\1}   # 204 (base 5)
    " ?([0-9A-F]{2,40}) ?" ?_ → \1_   # \mathrm{FF}_{16}
    # f^{-1}(x), A^{-1} =
    (?<![a-zA-Z\\])([A-Zf-h]) ?\^ ?\{? ?-1 ?\}? ?(?=[(=]) → \1_{-}
    \\frac ?\{ ?(?:d|\\partial) ?(\w) ?\} ?\{ ?(?:d|\\partial) ?\w ?\} → \1'   # \frac{dy}{dx}
    (frac|binom|log_) ?(\d)(?= ?[\d{]) → \1{\2}   # \frac12
    ((?:frac|binom) ?\{[^{}]*\}) ?(\d) → \1{\2}   # \frac{1}2
    (?<=\d) (\d{1,9})/(\d{1,9}) → \\frac{\1}{\2}   # 1 3/4
    # 1\frac{3}{4}
    (?<![\w^_.)}\]/])(\d{1,99}) ?\\frac ?\{ ?(\d{1,99}) ?\} ?\{ ?(\d{1,99}) ?\} → (\1+\2/\3)
    \{([^{}]*)\\over(?![a-z])([^{}]*)\} → \\frac{\1}{\2}   # {1 \over 2}
    \{([^{}]*)\\choose(?![a-z])([^{}]*)\} → \\binom{\1}{\2}   # {5 \choose 2}
    # 0.333\ldots, 0.\overline{3}, 0.\dot{1}\dot{2} are 0.[3], 0.[12]
    (\.\d{0,9}?)(\d{1,9}?)\2{1,99} ?(?:\.{3}|\\[lc]?dots)(?! ?[+,]) → \1[\2]
    (\.\d*) ?\\(?:overline|bar|dot) ?\{?(\d+)\}?(?: ?\\dot ?\{?(\d)\}?)? → \1[\2\3]
    (\.)\((\d+)\) → \1[\2]   # 0.(3)
    (\d)[eE]([+-]?\d{1,9})(?![\w]) → \1*10^{\2}   # 3.2e5
    # \vec{a}, \angle ABC
    \\(?:(?:over|under)line|bar|(?:wide)?hat|vec|tilde|dot|overrightarrow|mathcal)(?![a-zA-Z]) →
    \\(?:measured)?angle|\\triangle →
    # \frac{\pi}{4}+k\pi, k \in \mathbb{Z}
    ^(.*?([j-n]).*?)[,;(] ?\(? ?\2 ?\\in ?(?:\\mathbb)? ?\\?\{?[ZN]\}? ?\)?$ → \1
    # cx \text{ for some constant } c
    " ?(?:for|where)\b(?=.*(?:\\in\b|integer|all|any|every|some|constant|real))[^,;]*$ →
    # \text{The answer is } 5
    (?i)^"? ?(?:the )?(?:final )?answer(?: is)?:? ?"? ?(?=[\d$\\(-]) →
    (?i)"? ?\ball (?:real numbers|reals)\b ?"? → ␣\\R␣   # \text{all real numbers}
    # \mathbb{R} \text{ except } 3
    \\R[ "]*(?:except|without)[ "]*(?:x ?= ?)?([^"\\]+)$ → \\R \\setminus\\{\1\\}
    # \text{no solution}
    (?i)^[" ]*(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)[". ]*$ → \\emptyset
    (\d+) ?° ?(\d+) ?' → (\1+\2/60)°   # 30°30'
    ^\|([^|]+)\| ?(<|\\leq?|≤) ?([\d./]+)$ → -\3 \2 \1 \2 \3   # |x| < 2
    # x^2 < 4
    ^(\w) ?\^ ?\{? ?2 ?\}? ?(<|\\leq?|≤) ?([\d./]+)$ → -\\sqrt{\3} \2 \1 \2 \\sqrt{\3}
    "? ?\b(hours?|h|feet|ft)[ ",]*(?:and)? *(?=\d) → ␣\1␣   # 2 hours and 13 minutes
    ([\d}]|\\pi) ?(?:≈|\\approx).*$ → \1   # \frac13 \approx 0.33
    (?i)\b([ap])\. ?m\b\.? → \1m   # 6:30 p.m.
    \b(?:square|sq\.?) (\w{1,20}) → \1^2   # 5 square feet
    \bper cent\b → percent   # 5 per cent
    (?<=\d)( ?"? ?)dozens?\b → *12\1   # 2 dozen eggs
    (?<=\d)( ?"? ?)thousands?\b → *10^3\1   # 5 thousand
    (?i)(?<=\d)( ?"? ?)millions?\b → *10^6\1   # 5 million
    ^(?:=|\\approx|≈) ? →   # = 5
    (?<=\d) ?x ?(?=10\^) → *   # 1.5x10^3
    (?<=\d) to (?=\d{1,9}$) → :   # 3 to 2
    (?<![a-zA-Z\\])(sqrt|infinity|pi)(?![a-z]) → \\\1␣   # sqrt(2)
    ␣\([a-z]{3,20}\)$ →   # 42 (apples)
"""
# The same for a text in our signs.
NOTATION = r"""
    # 1±√5 as 1+√5,1-√5, in a set or a list; (±1,2) as (+1,2),(-1,2)
    ^\(.*[±∓].*\)$|(?<![^,;=≠⦃⦄])[^,;=≠⦃⦄]*[±∓](?:(?!"? ?(?:or|and)\b)[^,;⦄])* → BOTH_SIGNS
    # ⦃x | x > 3⦄
    ^(?:\w ?= ?)?⦃ ?\w(?: ?= ?\(-∞,∞\))? ?[|∣:](?!=)([^⦃⦄]*)⦄$ → \1
    ^\{([^{}]*,[^{}]*)\}$ → ⦃\1⦄   # {1,2}
    \|([^|=]+)\| → ␣abs(\1)   # |x|
    \|([^|=]+)\| → ␣abs(\1)   # ||x|-1|
    # $5 as 5$
    (?<![\d}])(?<![\d}] )"? ?([$€£¥]) ?"? ?(-?(?:\\frac )?[\d.{√](?:[^$€£¥;", ]|,(?=\d))*) → \2\1
    \b([rstxyz])_ ?\{?\d\}?(?= ?=) → \1   # x_1 = 1, x_2 = 2
    ^[a-zA-Z] ?≠([^=<>≤≥≠]*,[^=<>≤≥≠]*)$ → (-∞,∞)∖⦃\1⦄   # x ≠ 1, 2
    # x = 1, 2 as x = ⦃1, 2⦄
    ^([a-zA-Z] ?=)(?!.*\d,\d{3}\b)([^=<>≤≥≠([⦃]*,[^=<>≤≥≠]*)$ → \1⦃\2⦄
"""


def quoted(found) -> str:
    r"""\text{ cm and } as " cm " and, \text{5 apples} as 5 " apples", \text{5} as 5."""
    pieces = re.sub(r"(?i)(^ ?[\d./:]+(?= |$)|,|\b(?:and|or)\b)", r'" \1 "', found[1])
    return re.sub('" *"', " ", f'"{pieces}"')


SIGNED = str.maketrans("±∓", "+-"), str.maketrans("±∓", "-+")


def both_signs(found) -> str:
    return ",".join(found[0].translate(signs) for signs in SIGNED)


@cache
def rules(table: str) -> list:
    found = []
    for pattern, new in re.findall(r"(?m)^ *(?!#)(\S.*?) →(?: (\S.*?))?(?: {3}# .*)?$", table):
        new = {"QUOTED": quoted, "BOTH_SIGNS": both_signs}.get(new) or new.replace("␣", " ")
        found.append((re.compile(pattern.replace("␣", " ")), new))
    return found


def rewrite(text: str, table: str) -> str:
    for pattern, new in rules(table):
        text = pattern.sub(new, text)
    return text


def spell(found) -> str:
    """The sign for one of its spellings; an unknown command keeps its name and gets a space."""
    text = found[0]
    return SPELLED.get(text) or (f"{text} " if text[-1].isalpha() and text.isascii() else text)


@lru_cache(2048)
def clean(text: str) -> str:
    r"""One spelling for what has many: rule 2."""
    text = unicodedata.normalize("NFKC", rewrite(INVISIBLE.sub("", text), UNICODE))
    if "\\\\" in text and ("\\begin" not in text or not re.search(r"(?<!\\)\\(?!\\)", text)):
        text = text.replace("\\\\", "\\")  # all are doubled, as in one truth in nine
    text = SPELLING.sub(spell, rewrite(" ".join(text.split()), COMMANDS))
    return rewrite(" ".join(text.split()), NOTATION).strip(" ,;").rstrip(" .,;")


# ---- reading: an answer is taken apart as text --------------------------------------------------


class Form(NamedTuple):
    """What an answer says; `parts` are Forms, but for the first two kinds.

    value  one sympy expression; sign is the text of a decimal, whose places count in rule 4
    words  a word, a date or a time
    unit   the bare value, and for 50% or 60° the number that it is; sign is the unit
    seq    a pair or interval, with its brackets as sign; a longer tuple, vector or matrix, with
           "()"; a ratio of three numbers or more, with "::"
    list   sign is what joins the items: "," "and" "or"
    names  equations of several names: x = 1, y = 2
    =      the sides of an equation; sign is the name, if the first side is one
    <      the sides of inequalities; sign has one sign for each pair of sides
    &      the entries of a row, or a line of a case distinction
    set, mod, ∪, ∩, ∖"""

    kind: str
    parts: tuple
    sign: str = ""


OPENING, CLOSING = "([{⦃⟦", ")]}⦄⟧"
MINUS, PERCENT, DEGREE = Integer(-1), Rational(1, 100), pi / 180
MIRRORED = str.maketrans(">≥", "<≤")
# What may stand as a name, without digits but in indices and arguments: x_1, AB, f(2), |AB|, AB/CD,
# (x, y), sin A, length; not x+1, x^2
NAME = re.compile(r"(?:[fghFGHPE](?:_ ?\{[^{}]*\})?'* ?\([^()]*\)|_ ?(?:\w|\{[^{}]*\})|\D)++")
DECIMAL = re.compile(r"-?\d*\.\d+")  # -1.41


def split(text: str, separators: str) -> tuple[list[str], list[str]]:
    """-> (the parts of `text`, the separators between them that no brackets or quotes enclose)"""
    in_time()
    parts, signs, depth, start = [], [], 0, 0
    for found in re.finditer(rf'"[^"]*"|[(\[{{⦃⟦]|[)\]}}⦄⟧]|({separators})', text):
        depth += (found[0] in OPENING) - (found[0] in CLOSING)
        if depth < 0:
            fail("a bracket that was not opened")
        if depth > MAX_DEPTH or len(parts) > MAX_ITEMS:
            fail("too many brackets or items", "too_large")
        if found[1] and not depth:
            parts.append(text[start : found.start()].strip())
            signs.append(found[1].lower())
            start = found.end()
    return [*parts, text[start:].strip()], signs


@lru_cache(2048)
def read(text: str) -> Form:
    """The Form of a cleaned text, split at what binds least. Raises Refused."""
    text = text.strip(" ,;¶").rstrip(" .")
    for separators, build in LEVELS:
        parts, signs = split(text, separators)
        if signs:
            return build(parts, signs)
    return bracketed(text) or unit(text) or word(text) or number(text)


def flat(forms) -> tuple:
    """The forms, with the items of a list in place of the list."""
    items = []
    for form in forms:
        items += form.parts if form.kind == "list" else [form]
    return tuple(items)


def listed(parts: list[str], signs: list[str]) -> Form:
    """A list (a, b or c), or equations of different names (x = 1, y = 2 says what (x, y) is).

    Equations are sorted if their names are neighbours in the alphabet: y = 2, x = 1 is (1, 2).
    Other names keep their order: m = 3, b = 2 is (3, 2)."""
    items = flat(read(part) for part in parts if part)
    if len(items) < 2:
        return items[0] if items else fail("no item")
    names = sorted({item.sign for item in items if item.kind == "="} - {""})
    if len(names) < len(items) or signs[0] == "or":
        return Form("list", items, signs[0] if signs[0] in ("and", "or") else ",")
    if "".join(names) in string.ascii_letters:
        items = tuple(sorted(items, key=lambda item: item.sign))
    return Form("names", items)


def joined(parts: list[str], signs: list[str]) -> Form:
    """A ∪ B ∪ C, 5 mod 4, a row 1 & 2 of a matrix, or a line x & x > 0 of a case distinction."""
    return Form(signs[0], tuple(map(read, parts)))


def related(parts: list[str], signs: list[str]) -> Form:
    """a = b = c, or a < b ≤ c with the smaller side first."""
    sides, signs = tuple(map(read, parts)), "".join(signs)
    if {*signs} <= {*">≥"}:
        return Form("<", sides[::-1], signs[::-1].translate(MIRRORED))
    if {*signs} != {"="}:
        return Form("<", sides, signs)
    first, last = sides[0], sides[-1]
    named = NAME.fullmatch(parts[0]) and (letters(first) or first.kind == "words")
    named = named and (is_letter(first) or not letters(last))  # ab = cd says nothing of ab
    return Form("=", sides, shown(first) if named else "")


@lru_cache(2048)
def letters(form) -> frozenset:
    """The letters of a form or an expression, as sympy symbols."""
    if isinstance(form, Form):
        return frozenset().union(*map(letters, form.parts))
    return form.free_symbols if isinstance(form, sympy.Basic) else frozenset()


def is_letter(form: Form) -> bool:
    return form.kind == "value" and form.parts[0].is_Symbol


LEVELS = (
    ("[;¶]", listed), (r"(?i:\bor\b)", listed), (r"(?i:\band\b)", listed), (",", listed),
    ("&", joined), (r"\bmod\b", joined), ("[=≠<≤>≥∣]", related), ("∖", joined), ("∪", joined),
    ("∩", joined),
)  # fmt: skip


def bracketed(text: str) -> Form | None:
    """(a, b], {a, b}, a matrix, or a group; None if no pair of brackets holds all."""
    brackets = text[:1] + text[-1:]
    if brackets[:1] not in OPENING or brackets[1:] not in CLOSING:
        return None
    try:
        parts, _ = split(text[1:-1], "¶" if brackets == "⟦⟧" else r"[,;¶]|\band\b")
    except Refused:  # (a)(b)
        return None
    items = flat(read(part) for part in parts if part)
    if brackets == "⦃⦄":
        return Form("set", items)
    if brackets == "⟦⟧" or len(items) > 2:  # rows of a matrix; what is no interval
        return Form("seq", items, "()")
    if len(items) == 2:
        return Form("seq", items, brackets)
    return items[0] if items and brackets in "()[]{}" else fail("empty, or brackets differ")


def number(text: str) -> Form:
    """A value, or a ratio: 2:4 is 1/2, and 1:2:4 is (1/4, 2/4)."""
    parts, _ = split(text, ":")
    *others, last = [Parser(part).whole() for part in parts]
    quotients = [value(quotient(side, last)) for side in others]
    if len(quotients) > 1:
        return Form("seq", tuple(quotients), "::")
    return quotients[0] if quotients else value(last, text)


def value(expr, text: str = "") -> Form:
    return Form("value", (expr,), text if DECIMAL.fullmatch(text) else "")


# ---- reading: words and units -------------------------------------------------------------------

# The names of functions, with mpmath's name behind the colon where it is another one.
# Where one name begins another, the longer one comes first.
FUNCTIONS = """arcsinh:asinh arccosh:acosh arctanh:atanh arsinh:asinh arcosh:acosh artanh:atanh
    arcsin:asin arccos:acos arctan:atan arccot:acot arcsec:asec arccsc:acsc arctg:atan
    sinh cosh tanh coth sech csch cosec:csc sin cos tan cot sec csc exp log cis:expj abs:fabs
    ctg:cot lg:log10 ln:log tg:tan ⌊:floor ⌈:ceil"""
FUNCTIONS = {name.split(":")[0]: name.split(":")[-1] for name in FUNCTIONS.split()}
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty""".split()
# Letters side by side that are a product, not a word (rule 9): AB, xy, ABC, sinx, xlnx.
ALPHABET = f"{string.ascii_lowercase} {string.ascii_lowercase[::-1]}"
LETTERS = re.compile(
    r"(?![nN][oO]$|[IVX]+$)(?:[a-zA-Z]{1,2}|(?!.?(.).?\1)[A-Z]{3})"
    rf"|[a-z]?(?:{'|'.join(FUNCTIONS)})[a-z]?"
)
WORD = re.compile(r"[A-Za-z][A-Za-z .'-]+|\d{1,2}:[0-5]\d|\d{1,2}/\d{1,2}/\d{2,4}")  # Bob, 5:25
# One name for each unit. Another word is its own name, outside \text{} if it has three letters.
UNITS = """cm centimeter centimetre|m meter metre|km kilometer kilometre|mm millimeter millimetre
    |in inch inche|ft foot feet|yd yard|mi mile|g gram|kg kilogram|mg milligram|lb pound|oz ounce
    |s sec second|min minute|h hr hour|day|week|month|yr year|$ dollar usd|€ euro|£|¥ yuan yen
    |cent|mi/h mph|/ per|l liter litre|ml|gallon|unit|% percent percentage pct|° degree
    |people person|point|way|hz|kn|rad radian|am|pm"""
UNITS = {name: group.split()[0] for group in UNITS.split("|") for name in group.split()}
UNITS |= {f"{name}s": first for name, first in UNITS.items()}
# No units: words that change the number before them (squared), doubt it (about) or go on (and).
NO_UNITS = """not no but is are was isn wrong incorrect maybe possibly perhaps roughly about
    approximately if unless than more less except excluded without plus minus over undefined none
    mod modulo base when where with then also through versus at below above squared cubed
    factorial cannot never guess otherwise doubled remainder out infinity by root mille ncr
    npr divided and or either both neither half halve third quarter fourth fifth sixth seventh
    eighth ninth tenth eleventh twelfth twentieth hundredth thousandth millionth score trillion
    quadrillion doz dozen hundred thousand lakh million crore billion almost nearly likely unknown
    false double triple twice power raised under percentile""".split()
NO_UNIT = "|".join(word.removesuffix("s") for word in [*NO_UNITS, *NUMBERS])
NO_UNIT = re.compile(rf"{NO_UNIT}|[bdefiopqrtuxyz]|[^a-z*/^%$€£¥°].*")  # 5x
KNOWN = "|".join(name for name in UNITS if len(name) > 1 and name.isalpha())
TAIL = re.compile(
    r'(?<=[\d)}\]⟧°!π\w])(?<![a-zA-Z]{2})((?: ?[/*]? ?(?:"[^"]*"'  # " square feet"
    rf"|\b(?:{KNOWN})\b|(?<=/)\b[msgh]\b|\b[msgh]\b(?=/)"  # cm, m/s
    r"|(?<= )(?-i:[a-z]{3,})|[%$€£¥°])(?: ?\^ ?\{? ?-?\d ?\}?)?)+)$",  # eggs, %, cm^2
    re.I,
)
NAMES = re.compile(r"[a-z]+|\^ ?\{? ?-?\d|[^\s\"{}.,-]")  # m, /, s, ^2 in m/s^2
TRIGONOMETRY = re.compile("sin|cos|tan|cot|sec|csc|cis")  # \sin 30°
BASED = re.compile(  # (204)_{5}, FF_{16}, 110.01_2
    r"\(?(\d[0-9A-Z]*|[0-9A-F]+(?=\)? ?_ ?[{(]{0,2}16))\.?(\d*)\)? ?_ ?[{(]{0,2}(\d{1,2})[})]{0,2}"
)


def is_product(run: str) -> bool:
    return bool(LETTERS.fullmatch(run)) or (len(run) > 2 and run in ALPHABET)


def word(text: str) -> Form | None:
    """Words, or a number in words; None for what may be an expression."""
    bare = " ".join(text.replace('"', " ").split())
    lower = bare.lower()
    if lower in NUMBERS:
        return value(Integer(NUMBERS.index(lower)))
    certain = '"' in text or bare.isalpha() or bare[:1].isdigit()  # AB-CD is no word
    if not certain or not WORD.fullmatch(bare) or is_product(bare):
        return None
    return Form("words", (re.sub(r"^(?:the|a|an) |^0|(?<=\w{3})s\b|[^\w:/]", "", lower),))


def unit(text: str) -> Form | None:
    """5 cm^2, 5$, 50%, 5 eggs, 204_5; None for a text without a unit."""
    if found := BASED.fullmatch(text):
        return based(*found.groups())
    found = TAIL.search(text, max(0, len(text) - 80))  # in linear time: a unit is short
    if not found or ("°" in found[1] and TRIGONOMETRY.search(text)):
        return None
    names = [UNITS.get(name, name.removesuffix("s")) for name in NAMES.findall(found[1].lower())]
    if any(map(NO_UNIT.fullmatch, names)):
        return None
    bare, name = read(text[: found.start()]), "".join(names)
    if name in "$€£¥":
        bare = bare._replace(sign="")  # money is not rounded
    if bare.kind == "value" and name in ("%", "°"):  # it may be met by the number that it is
        return Form("unit", (bare, value(times(CONSTANTS[name], *bare.parts))), name)
    return Form("unit", (bare,), name)


def based(digits: str, places: str, base: str) -> Form:
    """204_5 is 54, and may be met by 204."""
    written = f"{digits}.{places}".removesuffix(".")
    try:
        number = value(Rational(int(digits + places, int(base)), int(base) ** len(places)))
    except ValueError:
        fail(f"{written[:20]} is no number in base {base}")
    bare = read(written) if digits.isdigit() else number
    return Form("unit", (bare, number), f"base {base}")


# ---- parsing: one expression to sympy -----------------------------------------------------------

SUBSCRIPT = r"(?:_ ?(?:\w|\{[^{}]*\}))?'*"
TOKEN = re.compile(
    r"(?P<number>\d*\.\d*\[\d+\]|\d+\.?\d*|\.\d+)"  # .5, 0.[3]
    rf'|\\?(?P<function>{"|".join(FUNCTIONS)})|\\(?P<command>[a-zA-Z]+)|(?P<word>"[^"]*")'
    rf"|(?P<letter>(?:[PE]|[fghFGH]{SUBSCRIPT}) ?\([^()]*\)|[^\W\d_π]{SUBSCRIPT})"  # f(x), x_1'
    r"|!!|\S"
)
CONSTANTS = {"π": pi, "∞": oo, "…": Symbol("…"), "e": E, "i": I, "%": PERCENT, "°": DEGREE}
FACTORS = ("number", "letter", "word", "function", "command", *"([{√π∞…%°")
POSTFIX = {"!": "factorial", "!!": "fac2"}
SUM, PRODUCT, JUXTAPOSED, POWER, ATOM = range(5)
call = lru_cache(sympy.Function)  # a function that sympy does not know, and never evaluates


def power(base, exponent):
    if base.is_Rational and base and exponent is MINUS:
        return 1 / base
    return Pow(base, exponent, evaluate=False)


def times(left, right):
    """A product, computed only for fractions."""
    in_time()
    if left.is_Rational and right.is_Rational:
        return left * right
    return Mul(left, right, evaluate=False)


def quotient(above, below):
    return times(above, power(below, MINUS))


def literal(text: str) -> Rational:
    """A number as written: 12, .5, 0.[3]."""
    written, _, period = text.rstrip("]").partition("[")
    number = Rational(f"0{written}".removesuffix("."))
    if period:
        places = len(written.partition(".")[2])
        number += Rational(int(period), 10**places * (10 ** len(period) - 1))
    return number


JOIN = {"*": times, "/": quotient, "frac": quotient, "binom": call("binomial")}


class Parser:
    """Precedence climbing over the tokens of one expression. 1/2x is (1/2)x.

    tokens: (kind, text) of what is left, the next one last. last: the kind of the one before it."""

    def __init__(self, text: str):
        self.tokens = [("the end", "")]
        for token in reversed(list(TOKEN.finditer(text))):
            self.tokens.append((token.lastgroup or token[0], token[0].strip('\\"')))

    @property
    def kind(self) -> str:
        """The kind of the next token; of a sign, the sign."""
        return self.tokens[-1][0]

    def take(self) -> str:
        """The text of the next token, and step over it."""
        self.last, text = self.tokens.pop()
        return text

    def whole(self):
        value = self.parse(SUM)
        return value if self.kind == "the end" else fail(f"expected the end, found {self.kind}")

    def parse(self, level: int):
        """What binds at least as strongly as the level, with a sign in front.

        SUM reads 2x+1, PRODUCT 2*x, JUXTAPOSED 2x, POWER x^2, ATOM x."""
        if self.kind in "+-":
            sign = self.take()
            value = self.parse(max(level, PRODUCT))
            value = times(MINUS, value) if sign == "-" else value
        else:
            value = self.atom()
        while level < ATOM:
            kind = self.kind
            if kind == "^":
                self.take()
                value = power(value, self.parse(ATOM))
            elif kind in POSTFIX:
                value = call(POSTFIX[self.take()])(value)
            elif kind in "+-" and level == SUM:
                value = Add(value, self.parse(PRODUCT), evaluate=False)
            elif kind in "*/" and level <= PRODUCT:
                value = JOIN[self.take()](value, self.parse(POWER))
            elif level > (PRODUCT if kind == "function" else JUXTAPOSED) or kind not in FACTORS:
                break
            elif kind == self.last == "number":
                fail("two numbers side by side")
            else:
                value = times(value, self.parse(POWER))
        return value

    def atom(self):
        """A number, a name, something in brackets, a root, or a function with its argument."""
        kind, text = self.kind, self.take()
        if kind in "([{":
            value = self.parse(SUM)
            closing = CLOSING[OPENING.index(kind)]
            return value if self.take() == closing else fail(f"expected {closing}")
        if kind == "number":
            return literal(text)
        if kind == "function":
            return self.function(text)
        if kind == "√":
            index = self.atom() if self.kind == "[" else Integer(2)
            return power(self.parse(ATOM), power(index, MINUS))
        if kind == "command" and text in JOIN:
            return JOIN[text](self.parse(ATOM), self.parse(ATOM))
        if kind not in ("letter", "word") and text not in CONSTANTS:
            fail(f"cannot read {text or kind} here")
        name = re.sub('[{}" ]', "", text)  # f(x) is a name, since f is not known
        return CONSTANTS.get(name) or Symbol(name or fail("an empty name"))

    def function(self, name: str):
        r"""\sin^2 x, \log_2 8, \ln|x|, \sin 2x\cos x: an argument without brackets is a product."""
        scripts = {}
        while self.kind in "^_":
            sign = self.take()
            scripts[sign] = self.parse(ATOM)
        argument = self.parse(ATOM if self.kind in "({" else JUXTAPOSED)
        if scripts.get("^") == MINUS and f"arc{name}" in FUNCTIONS:
            name = f"arc{name}"  # \sin^{-1}
            del scripts["^"]
        value = power(E, argument) if name == "exp" else call(FUNCTIONS[name])(argument)
        if "_" in scripts:
            value = quotient(value, call("log")(scripts["_"]))
        return power(value, scripts["^"]) if "^" in scripts else value


# ---- comparing ----------------------------------------------------------------------------------

COUNTING = "factorial", "fac2", "binomial"
VALUES = {pi: mp.pi, E: mp.e, I: mp.j}
WHOLE = 100, 7, 61, 12, 37, 72, 22, 9  # of many residues, so that floors and (-1)^n differ
LETTER_SIGNS = 1, 1, -1, -1, 0, 0, 0, 0  # of all letters at a point; 0: both signs in turn


class Numbers:
    r"""The values of expressions, and comparisons by them. `rule` is the last rule that was tried.

    With p bits, a value within 2^(-p/2) of a whole number is taken as this number: a sum that
    cancels to rounding noise is 0, and so is \sin\pi. A division by noise is then one by 0, which
    has no value; nor has \tan 90^\circ. Where a number is met that is larger than 2^(p/2), or
    smaller than its inverse and no noise, all is computed again with more bits: 1 - 2^{-2000} is
    not 1. A product or power of real numbers is never noise; a sum or a function may be."""

    rule = ""

    def at(self, *exprs, point=None, real=False) -> list:
        """The values where the letters have the values `point`. Raises Undefined where one has no
        value, or must be `real` and is not; Refused beyond the bounds."""
        in_time()
        self.point, self.real = point or {}, real
        for bits in PRECISIONS:
            mp.prec, self.noise, self.size = bits, mp.ldexp(1, -bits // 2), 0
            try:
                found = [self.value(expr) for expr in exprs]
            except (ZeroDivisionError, ValueError, TypeError):
                found = None
            if self.size < bits // 2:
                return found or undefined("no value")
            if self.size > PRECISIONS[-1]:
                break
        undefined("no value, or one too large or small")

    def near(self, x, y) -> bool:
        return abs(x - y) <= self.noise

    def value(self, expr):
        """The value, as a real number if it is one, without its noise."""
        expr = self.point.get(expr, expr)
        if expr.is_Rational:
            self.size = max(self.size, expr.p.bit_length(), expr.q.bit_length())
            return mp.mpf(expr.p) / expr.q
        in_time()
        if expr in VALUES:
            x = +VALUES[expr]
        elif expr.args:
            x = self.operation(expr, *map(self.value, expr.args))
        else:
            undefined(f"{expr} has no value")
        exact = (expr.is_Mul or expr.is_Pow) and not isinstance(x, mp.mpc)
        real, imaginary = self.whole(mp.re(x), exact), self.whole(mp.im(x))
        if imaginary and self.real:
            raise NotReal("not a real number")
        return mp.mpc(real, imaginary) if imaginary else real

    def whole(self, x, exact=False):
        """A real value, rounded if it is a whole number up to noise. Raises self.size to the bits
        of its magnitude, unless it may be noise: it is tiny and not `exact`."""
        if not x:
            return x
        if not mp.isfinite(x):
            raise ZeroDivisionError
        magnitude = int(mp.mag(x))
        if exact or magnitude > self.size - mp.prec + 50:
            self.size = max(self.size, abs(magnitude))
        nearest = mp.nint(x)
        return nearest if self.near(x, nearest) else x

    def operation(self, expr, x, y=None):
        if expr.is_Add:
            return x + y
        if expr.is_Mul:
            return x * y
        if expr.is_Pow:
            return self.power(x, y, expr.exp)
        name, xs = expr.func.__name__, (x,) if y is None else (x, y)
        slow = name in COUNTING and mp.prec > PRECISIONS[0] and not all(map(mp.isint, xs))
        if slow or max(map(mp.mag, xs)) > (50 if name in COUNTING else PRECISIONS[0]):
            fail(f"{name} of a number beyond the bound", "too_large")
        result = getattr(mp, name)(*xs)
        if name in ("tan", "cot", "sec", "csc") and abs(result) * self.noise > 1:
            raise ZeroDivisionError  # at a pole
        return result

    def power(self, x, y, written):
        if not x:
            return x if mp.re(y) > 0 else 1 / x  # no value, as 1/0
        if max(mp.mag(y), 0) + max(mp.mag(mp.mag(x)), 0) > 60:
            fail("a power beyond the bound", "too_large")
        if mp.im(x) == 0 and x < 0 and written.is_Rational and written.q % 2:
            return (-1) ** (written.p % 2) * mp.power(-x, y)  # (-8)^{1/3} = -2
        return mp.power(x, y)

    def at_points(self, a, t):
        """The pairs of values at eight points, or at one if there are no letters; None where `t`
        has a value and `a` has none. Points where one of them is not real are left out. Letters are
        whole numbers and fractions in turn, positive, negative, then of both signs, since |xy| is
        xy wherever xy > 0; j, k, l, m, n are whole numbers."""
        names = sorted(letters(a) | letters(t), key=str)
        real = bool(names) and not (a.has(I) or t.has(I))
        for trial in range(8 if names else 1):
            point = {}
            for i, name in enumerate(names):
                size = Rational(WHOLE[(trial + i) % 8])
                if trial % 2 and str(name)[0] not in "jklmn":
                    size += Rational(7 * trial + 3 * i + 1, 147)
                point[name] = size * (LETTER_SIGNS[trial] or (-1) ** (trial // 2 + i))
            try:
                yield self.at(a, t, point=point, real=real)
            except NotReal:
                continue
            except Undefined:
                with suppress(Undefined):
                    self.at(t, point=point, real=real)
                    yield None

    def equal(self, a: Form, t: Form) -> bool:
        """Rules 3 to 5: fractions exactly (1/2 = 0.5), other expressions at all points."""
        x, y = *a.parts, *t.parts
        if x.is_Rational and y.is_Rational:
            self.rule = "exact values"
            return x == y or self.rounds(a, t)
        self.rule = "values to 300 digits"
        agree = (pair is not None and self.near(*pair) for pair in self.at_points(x, y))
        return (next(agree, False) and all(agree)) or self.rounds(a, t)

    def rounds(self, a: Form, t: Form) -> bool:
        """Rule 4: within half a unit of the last place of the truth.

        The `sign` of a Form is its text if it is a decimal, with a minus if it has one, and empty
        otherwise; its expression is parts[0]. The truth must be a decimal of three digits or more;
        leading zeros do not count, so 0.0012 has two. If so, self.rule becomes "rounds to the
        truth's decimals" and the values are compared: the two numbers of self.at(answer, truth,
        real=True) differ by at most half a unit, give or take self.noise. Errors of self.at are the
        caller's. A whole number or a shorter decimal is a multiple of the unit, so it differs by
        more, or is equal.
        """
        # <solution id="checker" points="3">
        places = len(t.sign.partition(".")[2])
        if len(t.sign.replace(".", "").lstrip("-0")) < 3:
            return False
        self.rule = "rounds to the truth's decimals"
        value, due = self.at(*a.parts, *t.parts, real=True)
        return abs(value - due) * 2 * 10**places <= 1 + self.noise
        # </solution>

    def factor(self, a: Form, t: Form) -> int:
        """If left - right of `a` is a constant times that of `t`, the constant's sign; else 0."""
        sides = (*a.parts, *t.parts)
        if len(sides) != 4 or {side.kind for side in sides} != {"value"}:
            return 0
        ratios = []
        for pair in self.at_points(difference(*a.parts), difference(*t.parts)):
            if pair is None or (pair[0] and not pair[1]):
                return 0
            ratios += [pair[0] / pair[1]] if pair[1] else []
        if len(ratios) < 2 or not all(self.near(ratio, ratios[0]) for ratio in ratios):
            return 0
        return 0 if mp.im(ratios[0]) else int(mp.sign(ratios[0]))


def difference(left: Form, right: Form):
    return Add(*left.parts, times(MINUS, *right.parts), evaluate=False)


def both_or_either(*sets: set) -> set:
    """x > -1, x ≠ 0 means both; x < 1, x > 3 either."""
    return set.intersection(*sets) or set.union(*sets)


HOLDS = {"<": operator.lt, "≤": operator.le, "≠": operator.ne}
EDGES = str.maketrans("([)]", "<≤<≤")
JOINED = {"∪": set.union, "or": set.union, "∩": set.intersection, "and": set.intersection}
JOINED |= {"∖": set.difference, ",": both_or_either}


def set_like(form: Form) -> bool:
    """Whether a form is an inequality or joined by ∪, ∩, ∖, or a list with such an item."""
    if form.kind == "list":
        return any(map(set_like, form.parts))
    return form.kind in "<∪∩∖"


def stated(form: Form) -> tuple:
    """The sides that a bare answer may stand for: of x = 5, 5; of 2 + 3 = 5, both; of an equation
    whose left side has letters and is no name, none."""
    if form.kind != "=":
        return (form,)
    if form.sign:
        return form.parts[1:]
    return () if letters(form.parts[0]) else form.parts


class Comparer(Numbers):
    """One reading of a comparison."""

    def same(self, a: Form, t: Form) -> bool:
        """Whether an answer and a truth say the same."""
        in_time()
        kinds = {a.kind, t.kind}
        self.rule = "the same reading"
        try:
            if a == t:
                return True
            if "=" in kinds:
                return self.equations(a, t)
            if "unit" in kinds and not kinds & {"list", "set"}:
                return self.units(a, t)
            if set_like(a) or set_like(t):
                return self.sets(a, t)
            if "words" in kinds:
                self.rule = "words"
                return False
            return self.equal(a, t) if kinds == {"value"} else self.items(a, t)
        except Undefined:
            return False

    def items(self, a: Form, t: Form) -> bool:
        """Rule 7: tuples in order, sets and lists in any order; a list may be meant as a tuple."""
        self.rule = "item by item"
        kinds, signs = {a.kind, t.kind}, {a.sign, t.sign}
        if kinds == {"names"} or kinds <= {"set", "list"}:
            return self.in_any_order(a, t)
        as_tuple = kinds <= {"seq", "list", "names"} and signs <= {"()", ",", "and", ""}
        return (as_tuple or (len(kinds) == len(signs) == 1)) and self.in_order(a, t)

    def in_order(self, a: Form, t: Form) -> bool:
        return len(a.parts) == len(t.parts) and all(map(self.same, a.parts, t.parts))

    def in_any_order(self, a: Form, t: Form) -> bool:
        """Each item of `a` equals another item of `t`, and all are met; `a` may repeat some."""
        rest = list(t.parts)
        for x in a.parts:
            rest.sort(key=x.__ne__)  # the same item first
            like = next((y for y in rest if self.same(x, y)), None)
            if like is not None:
                rest.remove(like)
            elif len(a.parts) <= len(t.parts) or not any(self.same(x, y) for y in t.parts):
                return False
        return not rest

    def equations(self, a: Form, t: Form) -> bool:
        """Equations up to a factor; or they say the same of a name that one may leave out."""
        self.rule = "equations up to a factor"
        if a.kind == t.kind and self.factor(a, t):
            return True
        name, due = (form.sign if form.kind == "=" else "" for form in (a, t))
        # y = x^2 is f(x) = x^2.
        if name and due and name != due and not ("y" in (name, due) and "(" in name + due):
            return False
        values, others = stated(a), stated(t)
        return bool(values and others) and all(self.same(x, y) for x in values for y in others)

    def units(self, a: Form, t: Form) -> bool:
        """Rule 6: a unit may be missing on one side; on both sides they must agree."""
        self.rule = "the units"
        if a.kind == t.kind:
            return a.sign == t.sign and self.same(a.parts[0], t.parts[0])
        values, others = (form.parts if form.kind == "unit" else (form,) for form in (a, t))
        return any(self.same(x, y) for x in values for y in others)  # 50% is 50 or 1/2

    def sets(self, a: Form, t: Form) -> bool:
        """Rule 8: inequalities up to a positive factor; else, with several letters, the same parts
        joined alike; with one letter, sets that hold the same of these points: the ends of both,
        and the numbers 2^-100 beside them."""
        self.rule = "inequalities up to a factor"
        if a.kind == t.kind == "<" and a.sign == t.sign and self.factor(a, t) > 0:
            return True
        if len(letters(a) | letters(t)) > 1:
            alike = a.kind == t.kind != "<" and {a.sign, t.sign} != {"and", "or"}
            return alike and self.in_any_order(a, t)  # x > 1 and y < 2
        self.rule = "the same set of real numbers"
        ends = {0} | self.ends(a) | self.ends(t)
        points = {end + beside for end in ends for beside in (-1, 0, 1)} - {math.inf, -math.inf}
        return self.members(a, points) == self.members(t, points)

    def ends(self, form: Form) -> set:
        """The numbers in a form, with 2^-100 as the unit."""
        if form.kind in ("value", "words"):
            return set() if is_letter(form) else {self.end(form)}
        return set().union(*map(self.ends, form.parts))

    def end(self, form: Form) -> int | float:
        if form.kind != "value":
            undefined("no number")
        expr = form.parts[0]
        if expr.has(oo):
            return math.inf if expr == oo else -math.inf
        return int(mp.nint(self.at(expr, real=True)[0] * 2**100))

    def members(self, form: Form, points: set) -> set:
        """The points in a set of real numbers. Raises Undefined for what is none."""
        in_time()
        kind, parts, sign = form
        if kind == "=":
            return self.members(parts[-1], points)  # x in (0, 5)
        if kind == "set":
            return points & set(map(self.end, parts))
        if kind == "<":
            return self.solutions(parts, sign, points)
        if kind == "seq" and len(parts) == 2 and self.end(parts[0]) < self.end(parts[1]):
            sides = parts[0], Form("value", (Symbol("x"),)), parts[1]
            return self.solutions(sides, sign.translate(EDGES), points)
        join = JOINED.get(sign or kind) or undefined("no set of real numbers")
        return join(*(self.members(part, points) for part in parts))

    def solutions(self, sides, signs: str, points: set) -> set:
        """The points that a chain of inequalities allows for the letter in it."""
        for left, sign, right in zip(sides, signs, sides[1:], strict=False):
            holds = HOLDS.get(sign) or undefined("no inequality")
            if is_letter(left):
                end = self.end(right)
                points = {x for x in points if holds(x, end)}
            elif is_letter(right):
                end = self.end(left)
                points = {x for x in points if holds(end, x)}
            else:
                undefined("no inequality that is solved for its letter")
        return points


# ---- verdicts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one answer.

    score    1.0 or 0.0; any finite number from a user's reward
    verdict  right, wrong, no_answer, unparsed, too_large, timeout, crashed, or graded (by a user)
    answer   the extracted text, or None; for a user's reward the whole completion
    rule     the rule that was tried last, for people; or the name of the user's function"""

    score: float
    verdict: str
    answer: str | None
    rule: str


# What follows the letter of a choice, unless it names another choice as in (A) 12 or (B) 13.
REST = (
    r"((?!(?-i:.*(?<![a-zA-Z])\([A-J]\)|[^(]*[\s,][A-J][).](?!\S)"  # ... (B) 13, ... B. 13
    r"|(?!.*(?i:both|none|neither)).*(?:\bor|\band|,) [A-J]\s*$)).*)"  # ... or B
)
CHOICE = re.compile(
    r"(?:(?:option|choice|answer)\s*:?\s*)?(\()?([A-J])(?(1)\)|(?:[).]|:(?=\s)|$))"
    r"(?![-(])(?!\s*(?:[,;&^_+*/=!<>]|and\b|or\b))\s*" + REST,
    re.I | re.S,
)  # (C), C., C: the cat; not (a)(b), (a)^2, A:B
THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")  # 1,000
LOG = re.compile(r"(?<![a-zA-Z]{2})log(?![a-z]{2}| ?_)")  # log x, but not log_2 x


def decide(answer: str, truth: str) -> tuple[str, str, tuple]:
    """(verdict, rule, the Forms of both sides, or () if they were not read) for a bare answer."""
    if answer == truth:
        return "right", "the same text", ()
    if max(len(answer), len(truth)) > MAX_CHARS:
        return "too_large", f"more than {MAX_CHARS} characters", ()
    left, right = (clean(text).replace('"', " ").strip(" .,;") for text in (answer, truth))
    if not re.search(r"[^\W_]|\\|[^ -~]", left):
        return "no_answer", "nothing in the answer", ()
    if left == right:
        return "right", "the same text after cleaning", ()
    chosen = CHOICE.fullmatch(left)
    due = None if re.fullmatch("[a-z]", right) else CHOICE.fullmatch(right)
    if due and chosen:
        same = due[2].upper() == chosen[2].upper()
        return "right" if same else "wrong", "choices by letter", ()
    # If one side is a choice, what stands behind its letter is compared.
    answer, truth = (chosen and chosen[3]) or answer, (due and due[3]) or truth
    return algebra(clean(answer), clean(truth))


def readings(answer: str, truth: str) -> list[tuple[str, str]]:
    """The pairs of texts that the two may mean (rule 11)."""
    pairs = [(answer, truth)]
    plain = tuple(THOUSANDS.sub(lambda run: run[0].replace(",", ""), text) for text in pairs[0])
    if truth[:1] not in OPENING:  # a truth in brackets: (1,234) is a pair
        both = answer != plain[0] and truth != plain[1]
        pairs = [plain] if both else [plain, (answer, truth)]
    pairs = [(LOG.sub(log, a), LOG.sub(log, t)) for a, t in pairs for log in ("ln", "lg")]
    return list(dict.fromkeys(pairs))


def compared(answer: str, truth: str) -> tuple[str, str, tuple]:
    """(verdict, rule, forms) of two cleaned texts under one reading."""
    comparer, forms = Comparer(), ()
    try:
        comparer.rule = "the truth cannot be read"
        due = read(truth)
        comparer.rule = "the answer cannot be read"
        forms = (read(answer), due)
        verdict = "right" if comparer.same(*forms) else "wrong"
        return verdict, comparer.rule, forms
    except Refused as refused:
        message, verdict = refused.args
        return verdict, f"{comparer.rule}: {message}", forms
    except (MemoryError, OverflowError, RecursionError) as error:
        return "too_large", f"{comparer.rule}: {type(error).__name__}", forms


def algebra(answer: str, truth: str) -> tuple[str, str, tuple]:
    """The first reading that is right, else the first."""
    global deadline
    with LOCK:
        deadline = time.thread_time() + SECONDS
        try:
            found = [compared(*pair) for pair in readings(answer, truth)]
        finally:
            deadline = math.inf
    return next((one for one in found if one[0] == "right"), found[0])


def judge_answer(answer: str | None, truth: str) -> Verdict:
    """The verdict on a bare answer, or on None. Never raises; bounded in time and memory."""
    if answer is None:
        return Verdict(0.0, "no_answer", None, "no final answer found")
    try:
        verdict, rule, _ = decide(answer, truth)
    except Exception as error:  # a fault of ours must not stop a run; the verdict is counted
        verdict, rule = "crashed", f"please report this: {type(error).__name__}: {error}"
    return Verdict(float(verdict == "right"), verdict, answer, rule)


def judge(text: str, truth: str) -> Verdict:
    """Extract, read and compare: the verdict on a completion."""
    return judge_answer(extract(text), truth)


def equal(answer: str, truth: str) -> bool:
    """Whether the bare `answer` (no box around it) equals `truth`."""
    return judge_answer(answer, truth).score == 1.0


def score(text: str, truth: str) -> float:
    """1.0 if the final answer in `text` equals `truth`, else 0.0."""
    return judge(text, truth).score


# ---- workers ------------------------------------------------------------------------------------

START_S = 60.0  # for a worker's start, on a machine that is busy


def exchange(worker: subprocess.Popen, request: str, seconds: float) -> str:
    """A worker's reply. TimeoutError after `seconds`, and the worker is killed; ConnectionError if
    the worker has ended."""
    late = time.monotonic() + seconds

    def wait(pipe, event: int):
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(1000 * max(0.0, late - time.monotonic())):
            worker.kill()
            raise TimeoutError

    data = request.encode()
    for start in range(0, len(data), select.PIPE_BUF):  # so much a waiting pipe takes at once
        wait(worker.stdin, select.POLLOUT)
        os.write(worker.stdin.fileno(), data[start : start + select.PIPE_BUF])
    wait(worker.stdout, select.POLLIN)
    reply = worker.stdout.readline()
    if not reply:
        raise ConnectionError("the worker ended")
    return reply


class Grader(AbstractContextManager):
    """Grade in worker processes that can be killed: an answer has `timeout_s` seconds and a worker
    `memory_gb` GB.

    `reward` is None for this file's rules, or "FILE.py:function" for a user's function
    (completion, problem) -> float, which runs in the workers; `problem` is then a dict. A worker
    is this file, run by a fresh interpreter with lines of JSON on its pipes (a multiprocessing
    child would import the caller's script again, and torch). It starts with the first answer that
    needs it, and ends with this process. Any thread may submit. `close`, or leaving the `with`
    block, finishes what was submitted and ends the workers; `submit` then raises RuntimeError."""

    def __init__(self, workers=1, timeout_s=5.0, memory_gb=1.0, reward: str | None = None):
        if min(workers, timeout_s, memory_gb) <= 0:
            given = f"workers {workers}, timeout_s {timeout_s}, memory_gb {memory_gb}"
            raise ValueError(f"{given}: all must be positive")
        if reward and not os.path.isfile(reward.rpartition(":")[0]):
            raise ValueError(f"reward {reward!r}: no such file or function; give FILE.py:FUNCTION")
        self.timeout_s, self.reward = timeout_s, reward
        self.command = [sys.executable, __file__, "--worker", str(memory_gb)]
        self.command += ["--reward", reward] if reward else []
        self.threads = ThreadPoolExecutor(workers)
        self.workers, self.idle = set(), []

    def __exit__(self, *_):
        self.close()

    def submit(self, text: str, truth) -> "Future[Verdict]":
        """A future of the verdict on one completion. `truth` is the reference answer; with a
        user's reward it is the problem, a dict or a dataclass."""
        if self.reward:
            problem = asdict(truth) if is_dataclass(truth) else truth
            return self.threads.submit(self._ask, text, problem)
        return self.threads.submit(self._ask, extract(text), truth)  # extract is linear

    def grade(self, texts: list[str], truths: list) -> list[Verdict]:
        """The verdicts on a batch, in its order. ValueError if the two lists differ in length."""
        futures = [self.submit(text, truth) for text, truth in zip(texts, truths, strict=True)]
        return [future.result() for future in futures]

    def equal(self, pairs: list[tuple[str, str]]) -> list[bool]:
        """Whether each answer equals the one beside it, by the rules of this file."""
        futures = [self.threads.submit(self._ask, *pair) for pair in pairs]
        return [future.result().score == 1.0 for future in futures]

    def close(self):
        """Finish what was submitted, then end the workers."""
        self.threads.shutdown()
        for worker in list(self.workers):
            self._end(worker, seconds=2.0)

    def _ask(self, answer: str | None, truth) -> Verdict:
        """Ask a worker that waits, or a new one."""
        if answer is None:
            return judge_answer(None, truth)
        worker = None
        try:
            worker = self._worker()
            reply = exchange(worker, json.dumps([answer, truth]) + "\n", self.timeout_s)
            verdict = Verdict(**json.loads(reply))
            self.idle.append(worker)
            return verdict
        except (OSError, ValueError) as error:
            if worker:
                self._end(worker)
            verdict = "timeout" if isinstance(error, TimeoutError) else "crashed"
            return Verdict(0.0, verdict, answer, f"the worker was lost: {error!r}")

    def _worker(self) -> subprocess.Popen:
        """One that waits; else a new one, when it is ready: an answer's time begins then."""
        while self.idle:
            worker = self.idle.pop()
            if worker.poll() is None:
                return worker
            self._end(worker)
        pipe = subprocess.PIPE
        worker = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, text=True)
        self.workers.add(worker)
        try:
            exchange(worker, "", START_S)
        except OSError as error:
            self._end(worker)
            raise ConnectionError(f"a worker did not start: {error!r}") from None
        return worker

    def _end(self, worker: subprocess.Popen, seconds: float = 0.0):
        """Close the pipes; kill the process if it does not end in `seconds`; reap it."""
        self.workers.discard(worker)
        with suppress(OSError):
            worker.stdin.close()
        try:
            worker.wait(seconds)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        worker.stdout.close()


def user_reward(name: str):
    """The function of "FILE.py:function", as a judge of completions."""
    file, _, function = name.rpartition(":")
    module = runpy.run_path(file)

    def judged(text: str, problem) -> Verdict:
        try:
            value = float(module[function](text, problem))
            if not math.isfinite(value):
                raise ValueError(f"returned {value}")
            return Verdict(value, "graded", text, function)
        except Exception as error:
            return Verdict(0.0, "crashed", text, f"{function}: {type(error).__name__}: {error}")

    return judged


def serve(memory_gb: float, reward: str | None = None):
    """What a worker does: a line in, a verdict out, until its input closes, as it does when the
    parent ends. What a user's reward prints goes to stderr. Out of memory, the answer is too_large
    or crashed, or the worker dies."""
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 2**30),) * 2)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen():
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)  # also while an answer is being graded

    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    judged = user_reward(reward) if reward else judge_answer
    print("ready", file=output)
    threading.Thread(target=listen, daemon=True).start()
    while True:
        print(json.dumps(asdict(judged(*json.loads(lines.get())))), file=output)


# ---- the command --------------------------------------------------------------------------------


def shown(form) -> str:
    """A form as text, for people and as the name of an equation."""
    if not isinstance(form, Form):
        return str(form)
    parts = list(map(shown, form.parts))
    if form.kind == "unit":
        return f"{parts[0]} {form.sign}"
    if form.sign == "::":
        return " : ".join([*parts, "1"])
    if form.kind == "seq":
        return f"{form.sign[0]}{', '.join(parts)}{form.sign[1]}"
    if form.kind == "set":
        return f"{{{', '.join(parts)}}}"
    if form.kind == "<":
        signs = [f" {sign} " for sign in form.sign]
        return "".join(itertools.chain(*zip(parts, [*signs, ""], strict=True)))
    joiner = form.sign if form.kind == "list" else form.kind.replace("names", ",")
    return f" {joiner} ".join(parts)


def main():
    """Explain one comparison."""
    parser = argparse.ArgumentParser(description="Does this answer equal this truth, and why?")
    parser.add_argument("--answer", help="a completion, or a bare answer without a box")
    parser.add_argument("--truth", help="the reference answer")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--reward", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return serve(args.worker, args.reward)
    if args.answer is None or args.truth is None:
        parser.error("give --answer and --truth")
    found = extract(args.answer)
    bare = "" if found else "   (all of it: no box, and no head such as ####)"
    answer = found or args.answer
    verdict, rule, forms = decide(answer, args.truth)
    read_as = "   and   ".join(map(shown, forms)) or "-"
    text = f"answer   {answer}{bare}\ntruth    {args.truth}\nread as  {read_as}\n"
    text += f"verdict  {verdict}\nrule     {rule}"
    print(INVISIBLE.sub("?", text))  # control characters could change the terminal


if __name__ == "__main__":
    main()
