r"""Decide whether a model's final answer equals the reference: a reward for mathematics.

    extract (find it) -> clean (one spelling) -> read (take it apart) -> same (compare) -> 1 or 0

The rules of equality. Each has a block of examples in tests/test_reward.py.
 1. The last box counts, also when it is empty. Boxes joined by "and", "or" or a comma are one
    list. Without a box, what follows ####, "the answer is" or a last line "Answer:" counts. A
    <think> that is never closed has no answer.
 2. Spelling does not matter: spaces, dollar signs, \left, \dfrac, doubled backslashes, a closing
    period, 1,000 for 1000.
 3. Exact numbers must be exactly equal: 1/2 = 0.5 = 50%, but 0.33 is not 1/3 and 857499 is not
    857500. (`Numbers.equal`)
 4. A truth that is a decimal of three digits or more is also met by an exact value, or a longer
    decimal, that rounds to it: 1.41 by \sqrt2. Not money and not times: \$5.004 is not \$5.00.
 5. Expressions are equal when their values agree at random points. An expression without a value
    (a divisor that more digits do not separate from 0) equals nothing. Letters are
    case-sensitive; j, k, l, m, n stand for whole numbers.
 6. A name in front ("x =", "f(x) =", "x \in"), a unit, a degree or percent sign or a base may be
    missing on one side. On both sides they must agree: 4% is not 40%, 5 dollars are not 5 cents,
    x = 2 is not y = 2.
 7. Order counts in tuples, vectors, matrices and ratios (2:4 = 1:2). It does not count in sets
    and lists. A hedge ("540 or 542") is a list of two. Brackets count: (0, 1] is not (0, 1).
    Names give the order: y = 2, x = 1 is (1, 2).
 8. Equations may differ by a non-zero factor, inequalities by a positive one. An inequality in
    one letter is the set of numbers that satisfy it.
 9. A choice is its letter: (C), C. and \textbf{(C) } 12 agree. Words are compared without case
    and letter by letter: CDAB is not ABCD. Two letters, or letters in the order of the alphabet,
    are a product: AB = BA, xyz = zyx.
10. A time is a time: 5:25 is not 10:50. A date is a date: 2/4/2000 is not 1/2/2000.
11. Where a text has two readings (1,000 as a number or a list; \log to base e or 10), the one
    that suits the truth counts.

Text is never run as code. The parser builds sympy expressions with evaluate=False, because a
sympy object otherwise computes while it is built (2**10**10 hangs). The values of expressions
come from `Values`, which walks over them with mpmath and checks sizes before it computes;
sympy's evalf, subs and simplify have no such bounds.
"""

import argparse
import importlib.util
import itertools
import json
import math
import os
import queue
import random
import re
import select
import subprocess
import sys
import threading
import time
import unicodedata
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from typing import NamedTuple

import mpmath
import sympy
from sympy import Add, E, I, Integer, Mul, Pow, Rational, Symbol, Tuple, oo, pi

# Bounds, checked before computing. The longest truth of the study has 78 characters.
MAX_CHARS = 3000
MAX_TOKENS = 1500
MAX_DEPTH = 40  # of brackets
MAX_ITEMS = 200  # of a list
MAX_BRACES = 10_000  # in a box
MAX_DIGITS = 1000  # of a literal
MAX_BITS = 100_000  # of precision; 2022! has 19,283 bits and needs twice as many
SECONDS = 1.0  # of this thread's work on one comparison, so that a busy machine changes no reward


class Local(threading.local):
    """Of a thread: the deadline of its comparison, its steps, its mpmath context."""

    deadline, steps, mp = math.inf, 0, None


LOCAL = Local()


class Refused(Exception):
    """(verdict, message): not mathematics that we know (unparsed), or a bound is reached."""


class Undefined(Refused):
    """There is no value here, or no set of real numbers."""


class NotReal(Undefined):
    """The value is not a real number, where real numbers are meant."""


def fail(message: str, verdict: str = "unparsed"):
    raise Refused(verdict, message)


def undefined(message: str):
    raise Undefined("wrong", message)


def in_time():
    """Raise once this thread has worked on its comparison for SECONDS; called where work grows.

    The clock is read at every 16th call, since reading it is slow on some systems."""
    LOCAL.steps += 1
    if LOCAL.steps % 16 == 0 and time.thread_time() > LOCAL.deadline:
        fail(f"more than {SECONDS} s", "timeout")


# ---- extract ------------------------------------------------------------------------------------

BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*\{|\s+([^\s{}$\\]+))")  # \boxed{5}, \boxed 5
BRACE = re.compile(r"\\.|[{}]", re.S)  # \{ does not count
SPACE = re.compile(r"\\q?quad|\\text|[\s${}~]")  # between two boxes
JOINED = re.compile(r"(,?)(and|or|)(?:[a-zA-Z]=)?")  # \boxed{3} and $x=\boxed{5}$
HEAD = re.compile(
    r"####|\banswer\s+is\b:?|\bfinal\s+answer\W{0,4}:|<answer>"  # "The answer is 42."
    r"|^\W{0,4}answer\W{0,3}:(?=[^\n]*\s*\Z)",  # "Answer: 42", as the last line
    re.I | re.M,
)
STOP = re.compile(r"\.(?:\s|$)|\n|<\||</|<eos>|<end_of_turn>|\s(?:because|since)\s")  # 42</s>


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of the last five boxes, without those that are never closed.

    A box is \boxed or \fbox with braces behind it, or with blanks and a word (see BOX). Braces
    inside are balanced; \{ and \} are no braces. `start` is the place of the backslash, `end` that
    of the closing brace or behind the word. The content has no blanks at its ends. A box may lie
    in another one. What has not closed after MAX_BRACES braces is not closed."""
    # <solution id="checker" points="5">
    found = []
    for box in list(BOX.finditer(text))[-5:]:
        if box[1]:
            found.append((box.start(), box.end(), box[1]))
        depth = 0 if box[1] else 1
        for brace in itertools.islice(BRACE.finditer(text, box.end()), depth * MAX_BRACES):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                content = text[box.end() : brace.start()].strip()
                found.append((box.start(), brace.end(), content))
                break
    return found
    # </solution>


def extract(text: str) -> str | None:
    r"""The final answer in `text`, or None if there is none: rule 1. Linear in the text's length.

    The last \boxed{...} or \fbox{...} after the last </think>, with the boxes that are joined to
    it; else the line after the last head such as ####. A box that is never closed is no box."""
    text = text.rpartition("</think>")[2]
    if "<think>" in text:
        return None
    if found := boxes(text):
        start, _, answer = found.pop()
        while found and answer:
            before, end, content = found.pop()
            joiner = JOINED.fullmatch(SPACE.sub("", text[end : min(start, end + 60)]))
            if not joiner or not (joiner[1] or joiner[2]):
                break
            answer = f"{content} {joiner[2] or ','} {answer}"
            start = before
        return answer or None
    heads = [] if BOX.search(text) else list(HEAD.finditer(text))
    if not heads:
        return None
    line = text[heads[-1].end() :].lstrip(" \t\r\n*:$")
    return STOP.split(line.removeprefix("\\[").lstrip(), maxsplit=1)[0].strip("* \t") or None


# ---- spelling -----------------------------------------------------------------------------------

# The sign that we use, then its other spellings. ⦃⦄ are the braces of a set, ⟦⟧ the edges of a
# matrix, ¶ ends its rows.
SIGNS = r"""
    - − – — ‐ ‑ ‒ ―   * × · ∙ ⋅ \cdot \times \ast   / ÷ ⁄ ∕ \div   ^ **   ± \pm +/-   ∓ \mp
    = == ∈ \in ≡ \equiv ≈ \approx \simeq   < \lt   > \gt   ≤ ⩽ <= \le \leq \leqslant
    ≥ ⩾ >= \ge \geq \geqslant   ≠ != \ne \neq   ∪ \cup   ∩ \cap   ∖ \setminus \backslash   : \colon
    | \| \vert \lvert \rvert \Vert   ∣ \mid   ⦃ \{ \lbrace   ⦄ \} \rbrace   [ \lbrack   ] \rbrack
    ( \lparen \langle   ) \rparen \rangle   ⌊ \lfloor   ⌋ \rfloor   ⌈ \lceil   ⌉ \rceil   ¶ \\
    and \land \wedge ∧   or \lor \vee ∨   ' ′ ’ \prime   % \% \percent   … ... \ldots \cdots \dots
    ° ∘ \circ \degree   π \pi   ∞ \infty \infinity   ∅ \emptyset \varnothing   √ \sqrt   ℝ \R \reals
    ℤ \Z   $ \$ US$ USD Rs Rs. INR ₹   € \euro EUR   £ \pounds \pound GBP   ¥ \yen
    α \alpha   β \beta   γ \gamma   δ \delta   ε \epsilon   ζ \zeta   η \eta   θ \theta   ι \iota
    κ \kappa   λ \lambda   μ \mu   ν \nu   ξ \xi   ρ \rho   σ \sigma   τ \tau   υ \upsilon   φ \phi
    χ \chi   ψ \psi   ω \omega   Γ \Gamma   Δ \Delta   Θ \Theta   Λ \Lambda   Ξ \Xi   Π \Pi
    Σ \Sigma   Φ \Phi   Ψ \Psi   Ω \Omega   ℓ \ell"""
SPELLED = {}
for group in re.split(r"\n? {3,}", SIGNS.strip()):
    sign, *spellings = group.split()
    SPELLED |= dict.fromkeys(spellings, f" {sign} " if sign in ("and", "or") else sign)
FUNCTIONS = """arcsin arccos arctan arccot arcsec arccsc arsinh arcosh artanh sinh cosh tanh coth
    arctg cosec sin cos tan cot sec csc exp log max min cis gcd lcm abs ctg lg ln tg""".split()
DECORATIONS = """angle triangle overline bar widehat overrightarrow underline measuredangle vec
    hat tilde mathcal mathbb dot""".split()
COMMANDS = [*FUNCTIONS, *DECORATIONS, "frac", "binom", *(name[1:] for name in SPELLED)]
COMMANDS = sorted(filter(str.isalpha, COMMANDS), key=len, reverse=True)
SPELLING = re.compile(
    rf"\\\\|\\(?:{'|'.join(COMMANDS)})|\\[a-zA-Z]+|\\[{{}}%$|]"  # \pi in \piR, a slip
    r"|\+/-|<=|>=|!=|==|\*\*|\.\.\.|\b(?:US\$|USD\b|EUR\b|GBP\b|INR\b|Rs\b\.?)|[^\x00-\x7f]"
)
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty""".split()
NUMBERS = {name: value for value, name in enumerate(NUMBERS)}
# Characters that are not seen: controls, zero-width characters, marks of direction.
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]"
)
LOOKALIKES = str.maketrans({"˚": "°", "º": "°", "。": ".", "ℝ": "\\R ", "ℤ": "\\Z "})
SCRIPTS = re.compile("([¼-¾⅐-⅞])|([⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ]{1,99})|([₀-₉]{1,99})")  # ½, x², x₁


def script(found) -> str:
    r"""2⅕ as 2\frac{1}{5}, x² as x^{2}: the normal form alone would read 21/5 and x2."""
    text = unicodedata.normalize("NFKC", found[0])
    if found[1]:
        return rf"\frac{{{text.replace('⁄', '}{')}}}"
    return ("^" if found[2] else "_") + f"{{{text}}}"


def mixed(found) -> str:
    r"""1\frac34 as (1+3/4), if the fraction is below one."""
    whole, above, below = found.groups()
    return f"({whole}+{above}/{below})" if int(above) < int(below) else found[0]


def custom(found) -> str:
    r"""Drop ", k \in Z" where k stands in the rest: by custom, k is a whole number."""
    return "" if found[1] in found.string[: found.start()] else found[0]


def quoted(found) -> str:
    r"""\text{ cm and } as " cm" and, \text{5 apples} as 5" apples", \text{5} as 5."""
    number, words = re.fullmatch(r"( ?[\d./]+(?= |$))?(.*)", found[1]).groups()
    pieces = [number or ""]
    for piece in re.split(r"(,|\b(?:and|or|AND|OR)\b)", words):
        joiner = piece.lower() in (",", "and", "or")
        pieces.append(f" {piece.lower()} " if joiner else f'"{piece}"' if piece.strip() else " ")
    return "".join(pieces)


def unit_vector(found) -> str:
    r"""\mathbf{j} as (0,1), or as (0,1,0) where there is a \mathbf{k}."""
    spatial = re.search(r"\{ ?k ?\}|\\hat ?k", found.string)
    return str(tuple(int(letter == found[1]) for letter in ("ijk" if spatial else "ij")))


def base(found) -> str:
    return f"_{NUMBERS[found[1]]} "


def unspaced(found) -> str:
    return found[0].replace(" ", "")


NAME = r"[a-zA-Z]{1,12}\*?"
TEXT_STYLES = r"text(?:bf|it|rm|sf|tt|normal|up|sc|md)?|math(?:rm|sf|tt|normal)|mbox|hbox|emph"
SQUARE = r"\^ ?(?:2|\{ ?2 ?\})"
MATH_STYLES = r"math(?:bf|it|ord)|boldsymbol|bm|pmb|ensuremath"
# Applied in this order to a text whose spaces are single, so that every pattern is linear.
CLEAN = (
    (r"\\\\ ?\[-?[\d.]{1,9} ?(?:pt|em|ex|mm)\]", r"\\\\"),  # \\[2pt] between rows
    (r"\\(?:textcolor|color) ?\{\w*\}", ""),  # {\color{red}5}
    (r"\\(?:left|right|middle)(?![a-zA-Z]) ?\.?|\\[bB]igg?[lrm]?(?![a-zA-Z])", ""),  # \left(
    # \displaystyle 5
    (r"\\(?:displaystyle|textstyle|[lL]arge|limits|nolimits|rm|bf|it)(?![a-zA-Z])", ""),
    # \boxed{\boxed{5}}, \begin{cases}
    (r"\\(?:boxed|fbox) ?(?=\{)|\\(?:begin|end) ?\{(?:cases|align(?:ed|\*)?|gathered)\}", ""),
    (r"& ?(?==)", ""),  # x &= 1
    (rf"\\begin ?\{{{NAME}\}}(?:\{{[lcr|]{{1,20}}\}})?", "⟦"),  # \begin{array}{cc}
    (rf"(?:\\\\)? ?\\end ?\{{{NAME}\}}", "⟧"),  # \\ \end{pmatrix}
    (r"(?<!\\)\\[()\[\]]|(?<!\\)(?<!US)\$|\"", " "),  # \( \) \[ \] $
    (r"(?<=\d) ?(?:\{,\}|,\\!|\\!,|\{,\\!\}|\\,) ?(?=\d{3})", ""),  # 1{,}000, 3,\!250, 1\,000
    (r"(?<!\\)\\[!,;:> ]|~|\\(?:thin|med|thick)space", " "),  # 5\,000, a~b
    (r"\\[hv]space\*? ?\{[^{}]*\}|\\phantom ?\{[^{}]*\}", " "),  # \hspace{1cm}
    (r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])", unspaced),  # 1 000
    (r"\\q?quad", " "),  # x \quad y
    (r"\\(?:[dtcs]frac|nicefrac)(?![a-zA-Z])", r"\\frac "),  # \dfrac, \nicefrac
    (r"\\[dt]binom", r"\\binom "),  # \dbinom
    (r"\\var(?=[a-mo-z])", r"\\"),  # \varphi
    (r"\\operatorname\*? ?\{([a-zA-Z]+)\}", r"\\\1 "),  # \operatorname{lcm}
    (r"\\(?:mathbb|mathbf|Bbb) ?\{? ?([RZ])(?![a-zA-Z]) ?\}?", r"\\\1 "),  # \mathbf{R}
    (r"\\mathbf ?\{(\w)\} ?(?:\\times)? ?\\mathbf ?\{(\w)\}", r"V_{\1\2}"),  # AB is not BA
    # 2\mathbf{i}+3\hat{j}
    (r"\\(?:mathbf|hat|vec|boldsymbol) ?\{? ?\\?([ijk])(?:math)?(?![a-zA-Z]) ?\}?", unit_vector),
    (rf"\\(?:{MATH_STYLES}) ?\{{([^{{}}]*)\}}", r" \1 "),  # \mathbf{x}
    (rf"\\(?:{TEXT_STYLES}) ?\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}", quoted),  # \text{ cm}
    (rf'" ?(?!min)({"|".join(FUNCTIONS)}) ?"', r"\\\1 "),  # \text{cis}
    (r"([\])}]) ?U ?(?=[\[(\\])", r"\1\\cup "),  # (0,1)U(2,3)
    (r'& ?"? ?(?:if|for|when)\b ?"?', "& "),  # x & \text{if } x > 0
    (r'\( ?(?:\\[bp]?mod\b|"? ?mod\b ?"?)([^()]*)\)', r" mod \1"),  # (mod 4)
    (r'\\[pb]?mod(?![a-z])|" ?mod ?"', " mod "),  # \pmod{4}
    (r"\^ ?\\circ(?![a-zA-Z])|\^ ?\{ ?\\circ ?\}", "°"),  # 60^\circ
    (r"\^ ?\\prime|\^ ?\{ ?\\prime ?\}", "'"),  # f^{\prime}
    (r'° ?"? ?([CF])\b ?"?', r' "degree\1"'),  # 77° F
    (rf'(?<=[\d)]) ?_ ?[{{" ]{{0,3}}({"|".join(NUMBERS)})\b[}}" ]{{0,3}}', base),  # 204_{five}
    (r'[("]? ?\b(?:in )?base ?(\d{1,2})\b ?[)"]?', r"_{\1}"),  # 204 (base 5)
    (r'" ?([0-9A-F]{2,40}) ?" ?_', r"\1_"),  # \mathrm{FF}_{16}
    (r"(?<![a-zA-Z\\])([A-Zf-h]) ?\^ ?\{? ?-1 ?\}? ?(?=[(=])", r"\1_{-}"),  # f^{-1}(x), A^{-1} =
    (r"\\frac ?\{ ?(?:d|\\partial) ?(\w) ?\} ?\{ ?(?:d|\\partial) ?\w ?\}", r"\1'"),  # dy/dx
    (r"(frac|binom|log_) ?(\d)(?= ?[\d{])", r"\1{\2}"),  # \frac12
    (r"((?:frac|binom) ?\{[^{}]*\}) ?(\d)", r"\1{\2}"),  # \frac{1}2
    (r"(?<=\d) (\d{1,9})/(\d{1,9})", r"\\frac{\1}{\2}"),  # 1 3/4
    # 1\frac{3}{4}
    (r"(?<![\w^_.)}\]/])(\d{1,99}) ?\\frac ?\{ ?(\d{1,99}) ?\} ?\{ ?(\d{1,99}) ?\}", mixed),
    (r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}"),  # {1 \over 2}
    (r"\{([^{}]*)\\choose(?![a-z])([^{}]*)\}", r"\\binom{\1}{\2}"),  # {5 \choose 2}
    # 0.333\ldots goes on
    (r"(\.\d{0,9}?)(\d{1,9}?)\2{1,99} ?(?:\.{3}|\\[lc]?dots)(?! ?[+,])", r"\1\\overline{\2}"),
    # \frac{\pi}{4}+k\pi, k \in \mathbb{Z}
    (r"(?:[,;] ?\(?|\() ?([j-n]) ?\\in ?(?:\\mathbb)? ?\\?[{]?[ZN][}]? ?\)?$", custom),
    # cx \text{ for some constant } c
    (r'" ?(?:for|where)\b(?=.*(?:\\in\b|integer|all|any|every|some|constant|real))[^,;]*$', ""),
    (r'(?i)^"? ?(?:the )?(?:final )?answer(?: is)?:? ?"? ?(?=[\d$\\(-])', ""),  # "The answer is" 5
    (r'(?i)"? ?\ball (?:real numbers|reals)\b ?"?', r" \\R "),  # \text{all real numbers}
    # \mathbb{R} \text{ except } 3
    (r'\\R[ "]*(?:except|without)[ "]*(?:x ?= ?)?([^"\\]+)$', r"\\R \\setminus\\{\1\\}"),
    # \text{no solution}
    (r'(?i)^"? ?(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)\.? ?"?$', r"\\emptyset"),
    (r"(\d+) ?° ?(\d+) ?'", r"(\1+\2/60)°"),  # 30°30'
    (r"^\|([^|]+)\| ?(<|\\leq?|≤) ?([\d./]+)$", r"-\3 \2 \1 \2 \3"),  # |x| < 2
    (r"^\|([^|]+)\| ?(>|\\geq?|≥) ?([\d./]+)$", r"\1 \2 \3 or -(\1) \2 \3"),  # |x| > 2
    (rf"^(\w) ?{SQUARE} ?(<|\\leq?|≤) ?([\d./]+)$", r"-\\sqrt{\3} \2 \1 \2 \\sqrt{\3}"),  # x^2 < 4
    # x^2 > 4
    (rf"^(\w) ?{SQUARE} ?(>|\\geq?|≥) ?([\d./]+)$", r"\1 \2 \\sqrt{\3} or -\1 \2 \\sqrt{\3}"),
    (r'"? ?\b(hours?|h|feet|ft)[ ",]*(?:and)? *(?=\d)', r" \1 "),  # 2 hours and 13 minutes
    (r"([\d}]|\\pi) ?(?:≈|\\approx).*$", r"\1"),  # \frac13 \approx 0.33
    (r"(?i)\b([ap])\. ?m\b\.?", r"\1m"),  # 6:30 p.m.
    (r"\b(?:square|sq\.?) (\w{1,20})", r"\1^2"),  # 5 square feet
    (r"\bcubic (\w{1,20})", r"\1^3"),  # 5 cubic feet
    (r"\bper cent\b", "percent"),  # 5 per cent
    (r"(?<=\d) ?x ?(?=10\^)", "*"),  # 1.5x10^3
    (r"(?<=\d) to (?=\d{1,9}$)", ":"),  # 3 to 2
    (r"(?<![a-zA-Z\\])(sqrt|infinity|pi)(?![a-z])", r"\\\1 "),  # sqrt(2)
    (r"(?<![a-zA-Z\\])a(sin|cos|tan)(?= ?\()", r"\\arc\1"),  # asin(x)
    (r" \([a-z]{3,20}\)$", ""),  # 42 (apples)
)
CLEAN = [(re.compile(pattern), new) for pattern, new in CLEAN]


def spell(found) -> str:
    """The sign for one of its spellings; an unknown command keeps its name and gets a space."""
    text = found[0]
    return SPELLED.get(text) or (f"{text} " if text[-1].isalpha() and text.isascii() else text)


@lru_cache(2048)
def clean(text: str) -> str:
    r"""One spelling for what has many: rule 2."""
    text = INVISIBLE.sub("", text).translate(LOOKALIKES)
    text = unicodedata.normalize("NFKC", SCRIPTS.sub(script, text))
    if "\\\\" in text and ("\\begin" not in text or not re.search(r"(?<!\\)\\(?!\\)", text)):
        # All backslashes are doubled, as in one truth in nine.
        text = re.sub(r"(?<!\\)(?:\\\\)+(?!\\)", lambda run: run[0][::2], text)
    text = " ".join(text.split())
    for pattern, new in CLEAN:
        text = pattern.sub(new, text)
    return " ".join(SPELLING.sub(spell, text).split()).strip(" ,;").rstrip(" .,;")


# ---- reading: an answer is taken apart as text --------------------------------------------------


class Form(NamedTuple):
    """What an answer says; `parts` are Forms, but for the first three kinds.

    value  one sympy expression; sign is the text of a decimal, whose places count in rule 4
    words  a word or a date
    time   minutes after 12; sign is a, p or nothing
    unit   the bare value, and the number that it is with the unit; sign is the unit
    seq    a tuple, vector or interval; sign is its brackets
    list   sign is what joins the items: , or and or ±
    =      the sides of an equation; sign is the name, if the first side is one
    <      the sides of inequalities; sign has one sign for each pair of sides
    set, reals, :, mod, &, ∪, ∩, ∖"""

    kind: str
    parts: tuple
    sign: str = ""


OPENING, CLOSING = "([{⦃⌊⌈⟦", ")]}⦄⌋⌉⟧"
SIGNED = str.maketrans("±∓⨦", "+-±"), str.maketrans("±∓⨦", "-+±")  # ⨦ is a second, independent ±
MIRRORED = str.maketrans(">≥", "<≤")
BUILDER = re.compile(r"\w(?: ?= ?ℝ)? ?[|∣:](?!=)(.*)")  # in {x | x > 3}, which is read as x > 3
CLOCK = re.compile(r'"?(\d{1,2})(?::([0-5]\d))?(?:[ "]{0,3}([ap])m ?"?)?', re.I)  # 5:25, 3 pm
DATE = re.compile(r"\d{1,2}/\d{1,2}/\d{2,4}")  # 2/4/2000
DECIMAL = re.compile(r"-?\d*\.\d+")  # -1.41
WORD = re.compile(r"[A-Za-z][A-Za-z .'-]+")  # even, Bob
NO_WORD = re.compile(rf"[a-z]?(?:{'|'.join(FUNCTIONS)})[a-z]?")  # sinx, xlnx


def split(text: str, separators: str) -> tuple[list[str], list[str]]:
    """The parts of `text` between the `separators` outside all brackets and quotes, and these."""
    in_time()
    parts, signs, depth, start = [], [], 0, 0
    for found in re.finditer(rf'"[^"]*"|[(\[{{⦃⌊⌈⟦]|[)\]}}⦄⌋⌉⟧]|({separators})', text):
        depth += (found[0] in OPENING) - (found[0] in CLOSING)
        if depth < 0:
            fail("a bracket that was not opened")
        if depth > MAX_DEPTH or len(parts) > MAX_ITEMS:
            fail("too many brackets or items", "too_large")
        if found[1] and not depth:
            parts.append(text[start : found.start()].strip())
            signs.append(found[1])
            start = found.end()
    return [*parts, text[start:].strip()], signs


@lru_cache(2048)
def read(text: str) -> Form:
    """The Form of a cleaned text, split at what binds least. Raises Refused."""
    text = text.strip(" ,;¶").rstrip(" .")
    if found := moment(text):
        return found
    for separators, build in LEVELS:
        parts, signs = split(text, separators)
        if signs:
            return build(parts, signs)
    if ("±" in text or "∓" in text) and text[:1] not in ("{", "⦃"):
        return Form("list", flat(read(text.translate(pair)) for pair in SIGNED), "±")
    return bracketed(text) or unit(text) or word(text) or form_of(Parser(text).whole(), text)


def flat(forms, signs: str = "±") -> tuple:
    """The forms, with the items of a list that is joined by one of `signs` in place of the list."""
    items = []
    for form in forms:
        items += form.parts if form.kind == "list" and form.sign in signs else [form]
    return tuple(items)


def listed(parts: list[str], signs: list[str]) -> Form:
    """a, b or c. Rows of several items are tuples: 1,2;3,4 is (1,2), (3,4)."""
    items = [read(part) for part in parts if part]
    if signs[0] != "," and all(item.kind == "list" and item.sign == "," for item in items):
        items = [Form("seq", item.parts, "()") for item in items]
    joiner = signs[0] if signs[0] in ("and", "or") else ","
    items = flat(items, "±,")
    return Form("list", items, joiner) if len(items) > 1 else items[0] if items else fail("no item")


def joined(parts: list[str], signs: list[str]) -> Form:
    """A ∪ B ∪ C, 1:2:3, or a line x & x > 0 of a case distinction."""
    return Form(signs[0], tuple(map(read, parts)))


def congruence(parts: list[str], signs: list[str]) -> Form:
    """p = 5 mod 4, which is p = 1 mod 4."""
    if len(parts) > 2:
        fail("several moduli")
    number, modulus = (part.strip("{} ") for part in parts)
    if modulus.isdigit() and int(modulus):
        number = re.sub(r"\d{1,30}$", lambda found: str(int(found[0]) % int(modulus)), number)
    return Form("mod", (read(number), read(modulus)))


def related(parts: list[str], signs: list[str]) -> Form:
    """a = b = c, or a < b ≤ c with the smaller side first; "= 5" is 5."""
    if not parts[0] and signs[0] == "=":
        parts, signs = parts[1:], signs[1:]
    sides = tuple(map(read, parts))
    if not {*signs} - {*">≥"} and signs:
        return Form("<", sides[::-1], "".join(signs[::-1]).translate(MIRRORED))
    if {*signs} != {"="}:
        return Form("<", sides, "".join(signs)) if signs else sides[0]
    if len(sides) == 2 and named(sides[1]) and not letters(sides[0]):
        sides, parts = sides[::-1], parts[::-1]  # 3 = x
    simple = sides[0].kind != "value" or not isinstance(sides[0].parts[0], Add | Mul | Pow)
    name = named(sides[0]) and (simple or not letters(sides[-1]))  # ab = 6, but not ab = cd
    return Form("=", sides, re.sub(r'[{}" ]', "", parts[0]) if name else "")


@lru_cache(2048)
def letters(form) -> frozenset:
    """The letters of a form or an expression, as sympy symbols."""
    if isinstance(form, Form):
        return frozenset().union(*map(letters, form.parts))
    return form.free_symbols if isinstance(form, sympy.Basic) else frozenset()


def named(form: Form) -> bool:
    """Whether a form is a name, not a value: x, AB, f(2), |AB|, AB/CD, (x, y), sin A, length."""
    if form.kind != "value":
        return form.kind == "words" or (form.kind in ("seq", ":") and all(map(named, form.parts)))
    expr = form.parts[0]
    return expr.is_Symbol or (bool(letters(form)) and expr.atoms(sympy.Number) <= {MINUS})


LEVELS = (
    ("[;¶]", listed), (r"\bor\b", listed), (r"\band\b", listed), (",", listed), ("&", joined),
    (r"\bmod\b", congruence), ("[=≠<≤>≥∣]", related), ("∖", joined), ("∪", joined), ("∩", joined),
    (":", joined),
)  # fmt: skip


def bracketed(text: str) -> Form | None:
    """(a, b], {a, b}, a set like ℝ, or a group; None if no pair of brackets holds all."""
    if text in ("ℝ", "∅"):
        return Form("reals" if text == "ℝ" else "set", ())
    if text[:1] not in ("(", "[", "{", "⦃") or text[-1] not in CLOSING:
        return None
    brackets, inner = text[0] + text[-1], text[1:-1]
    if brackets == "⦃⦄" and (found := BUILDER.fullmatch(inner.strip())):
        return read(found[1])
    try:
        parts, _ = split(inner, r"[,;¶]|\band\b")
    except Refused:  # (a)(b)
        return None
    items = [read(part) for part in parts if part]
    if brackets == "⦃⦄" or (brackets == "{}" and len(items) > 1):
        return Form("set", flat(items))
    if len(items) > 1:
        return Form("seq", tuple(items), brackets)
    return items[0] if items and brackets in "()[]{}" else fail("brackets do not match")


def form_of(expr, text: str = "") -> Form:
    """A value, or the tuple that a vector or a matrix is."""
    if vector(expr):
        return Form("seq", tuple(map(form_of, expr)), "()")
    return Form("value", (expr,), text if DECIMAL.fullmatch(text) else "")


# ---- reading: words, times, units ---------------------------------------------------------------


def moment(text: str) -> Form | None:
    """A time of the day or a date (rule 10). 2:4 is a ratio."""
    found = CLOCK.fullmatch(text)
    if not found or not (found[2] or found[3]):
        return Form("words", (text,)) if DATE.fullmatch(text) else None
    hour, half = int(found[1]), (found[3] or "").lower()
    return Form("time", (hour % 12 * 60 + int(found[2] or 0),), "p" if hour > 12 else half)


def is_product(run: str) -> bool:
    """Whether letters side by side are a product rather than a word (rule 9).

    AB, xyz, ABC are products; VI, HTH, CDAB, Ann, cat and act are words."""
    if re.fullmatch("[IVX]+|[A-Z][a-z]{2,}|[A-Z]{4,}", run) or len({*run}) < len(run) > 2:
        return False
    if run.isupper() or len(run) < 3:
        return True
    return not re.search("[eiou]|a.*t", run) and sorted(run) in ([*run], [*run][::-1])


def word(text: str) -> Form | None:
    """Words, or a number in words; None for what may be an expression."""
    bare = " ".join(text.replace('"', " ").split())
    lower = bare.lower()
    if lower in NUMBERS:
        return form_of(Integer(NUMBERS[lower]))
    if not WORD.fullmatch(bare) or not ('"' in text or bare.isalpha()):
        return None
    if bare.isalpha() and lower != "no" and (is_product(bare) or NO_WORD.fullmatch(bare)):
        return None
    return Form("words", (re.sub(r"^(?:the|a|an) |(?<=\w{3})s\b|[^a-z]", "", lower),))


# One name for each unit; any other word of three letters and more is its own name.
UNITS = """cm centimeter centimetre|m meter metre|km kilometer kilometre|mm millimeter millimetre
    |in inch inche|ft foot feet|yd yard|mi mile|g gram|kg kilogram|mg milligram|lb pound|oz ounce
    |s sec second|min minute|h hr hour|day|week|month|yr year|$ dollar usd|€ euro|£|¥ yuan yen
    |cent|mi/h mph|/ per|l liter litre|ml|gallon|unit|% percent percentage pct|° degree
    |people person|point|way|hz|kn|rad radian"""
UNITS = {name: group.split()[0] for group in UNITS.split("|") for name in group.split()}
UNITS |= {f"{name}s": first for name, first in UNITS.items()}
MULTIPLES = """dozen 12 doz 12 hundred 100 thousand 1000 lakh 100000 million 1000000 crore 10000000
    billion 1000000000""".split()
MULTIPLES = dict(zip(MULTIPLES[::2], map(int, MULTIPLES[1::2]), strict=True))
# Words that make another number of the number before them, or a doubtful one.
NO_UNITS = """not no but is are was isn wrong incorrect maybe possibly perhaps roughly about
    approximately if unless than more less except excluded without plus minus over undefined none
    mod modulo base when where with then also through versus at below above squared cubed
    factorial cannot never guess otherwise doubled remainder out infinity by root point mille ncr
    npr divided and or either both neither half halve third quarter fourth fifth sixth seventh
    eighth ninth tenth eleventh twelfth twentieth hundredth thousandth millionth score ten trillion
    quadrillion almost nearly likely unknown false double triple twice power raised under percentile
    π""".split()
NO_UNITS = {*NO_UNITS, *NUMBERS, *MULTIPLES}
KNOWN = "|".join(name for name in UNITS if len(name) > 1 and name.isalpha())
TAIL = re.compile(
    r'(?<=[\d)}\]⟧°!π\w])(?<![a-zA-Z]{2})((?: ?[/*]? ?(?:"[^"]*"'  # " square feet"
    rf"|\b(?:{KNOWN})\b|(?<=/)\b[msgh]\b|\b[msgh]\b(?=/)"  # cm, m/s
    r"|(?<= )(?-i:[a-z]{3,})|[%$€£¥°])(?: ?\^ ?\{? ?-?\d ?\}?)?)+)$",  # eggs, %, cm^2
    re.I,
)
NAMES = re.compile(r"[a-zA-Z]+|\^ ?\{? ?-?\d|[^\s\"{}.,-]")  # m, /, s, ^2 in m/s^2
TRIGONOMETRY = re.compile("sin|cos|tan|cot|sec|csc|cis")  # \sin 30°
CURRENCY = re.compile(r'(-?) ?"? ?([$€£¥]) ?"?(.+)')  # -$5
BASED = re.compile(r"\(?([0-9A-Z]+)(?:\.(\d+))?\)? ?_ ?[{(]{0,2}(\d{1,2})[})]{0,2}")  # (204)_{5}


def unit(text: str) -> Form | None:
    """5 cm^2, $5, 50%, 5 million people, 204_5; None for a text without a unit."""
    if (found := BASED.fullmatch(text)) and (found[1][0].isdigit() or found[3] == "16"):
        return based(found[1], found[2] or "", int(found[3]))
    if found := CURRENCY.fullmatch(text):
        bare = read(found[1] + found[3])
        return bare if bare.kind == "unit" else with_unit(bare, found[2])
    found = TAIL.search(text, max(0, len(text) - 80))
    if not found or ("°" in found[1] and TRIGONOMETRY.search(text)):
        return None
    names, scale = [], 1
    for written in NAMES.findall(found[1]):
        name = written.lower()
        single = name.removesuffix("s") or name
        letter = len(name) == 1 and name.isalpha() and written not in "NJVWACKL"
        if (letter or (len(name) > 2 and is_product(name))) and written not in UNITS:
            return None  # 5x, 5 abc
        if not names and single in MULTIPLES:
            scale *= MULTIPLES[single]
        elif {name, single} & NO_UNITS or not (name.isalpha() or name[0] in "*/^%$€£¥°"):
            fail(f"{name!r} is no unit")
        else:
            names.append(UNITS.get(name, single))
    bare = read(text[: found.start()])
    if scale != 1 and bare.kind == "value":
        bare = form_of(product([Integer(scale), *bare.parts]))
    return with_unit(bare, "".join(names)) if names else bare


def with_unit(bare: Form, name: str) -> Form:
    """The bare value, and the number that it is if the unit is one: 50% is 1/2."""
    scale = {"%": Rational(1, 100), "°": pi / 180}.get(name)
    number = form_of(product([scale, *bare.parts])) if scale and bare.kind == "value" else bare
    if name in "$€£¥" and bare.kind == "value":
        bare = bare._replace(sign="")  # money is not rounded
    return Form("unit", (bare, number), name)


def based(digits: str, places: str, base: int) -> Form:
    """204_5 is 54, and may be met by 204."""
    written = digits + places
    digits_fit = len(written) <= MAX_DIGITS and all(int(digit, 36) < base for digit in written)
    if not 1 < base <= 36 or not digits_fit:
        fail(f"{written[:20]} is no number in base {base}")
    number = form_of(Rational(int(written, base), base ** len(places)))
    return Form("unit", (read(written) if written.isdigit() else number, number), f"base {base}")


# ---- parsing: one expression to sympy -----------------------------------------------------------

SUBSCRIPT = r"(?:_\ ?(?:\w|\{[^{}]*\}))?'*"
TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+|\.(?=\\overline))"  # 12, .5
    r"(?:(?:\\(?:overline|bar|dot)\ ?(?:\{\d+\}|\d))+|(?<=\.)\(\d+\)"  # 0.\overline{3}, 0.(3)
    r"|[eE][+-]?\d+(?![a-zA-Z\d]))?)"  # 3.2e5
    rf'|\\?(?P<function>{"|".join(FUNCTIONS)})|\\(?P<command>[a-zA-Z]+)|"(?P<word>[^"]*)"'
    rf"|(?P<letter>(?:[PE]|[fghFGH]{SUBSCRIPT})\ ?\([^()]*\)|[^\W\d_π]{SUBSCRIPT})"  # f(x), x_1'
    r"|(?P<sign>\S)|\s+"
)
MINUS = Integer(-1)
ATOMS = {"π": pi, "∞": oo, "…": Symbol("…")}
LETTERS = {"e": E, "i": I}
FACTORS = ("letter", "word", "function", "command", *"([{⌊⌈√⟦π∞…")
SYMPY = """tg tan ctg cot arctg atan cosec csc max Max min Min abs Abs arsinh asinh arcosh acosh
    artanh atanh""".split()  # their names in sympy
SYMPY = dict(zip(SYMPY[::2], SYMPY[1::2], strict=True))
ROUNDING = {"⌊": "floor", "⌈": "ceiling", "|": "Abs"}
GCD = {"gcd": sympy.Function("gcd"), "lcm": sympy.Function("lcm")}


def vector(expr) -> bool:
    return isinstance(expr, Tuple)


def power(base, exponent):
    if vector(base) or vector(exponent):
        fail("a power of a vector")
    if base.is_Rational and base and exponent is MINUS:
        return 1 / base
    return Pow(base, exponent, evaluate=False)


def total(terms: list):
    """A sum that is not computed; vectors are added item by item."""
    if any(map(vector, terms)):
        if not all(vector(term) and len(term) == len(terms[0]) for term in terms):
            fail("a sum of unlike vectors")
        return Tuple(*(total(list(items)) for items in zip(*terms, strict=True)))
    return Add(*terms, evaluate=False) if len(terms) > 1 else terms[0]


def product(factors: list):
    """A product that is not computed; one with vectors or matrices is multiplied out."""
    if len(factors) < 4 and all(factor.is_Rational for factor in factors):
        return math.prod(factors)
    if not any(map(vector, factors)):
        return Mul(*factors, evaluate=False) if len(factors) > 1 else factors[0]
    scalars = [factor for factor in factors if not vector(factor)]
    result, *others = filter(vector, factors)
    for other in others:
        in_time()
        result = Tuple(*(row_product(row, other) for row in result))
        if len(list(sympy.preorder_traversal(result))) > MAX_CHARS:
            fail("a product of matrices too long to write", "too_large")
    return Tuple(*(product([*scalars, item]) for item in result)) if scalars else result


def row_product(row, matrix: Tuple):
    """A row times a matrix; a column vector is a tuple, and a row of one number is this number."""
    row, rows = (row if vector(row) else (row,)), [r if vector(r) else (r,) for r in matrix]
    if len(row) != len(rows):
        fail("matrices that do not fit")
    sums = []
    for column in zip(*rows, strict=True):
        sums.append(total([product(pair) for pair in zip(row, column, strict=True)]))
    return Tuple(*sums) if len(sums) > 1 else sums[0]


def literal(text: str) -> Rational:
    r"""A number as written: 12, .5, 0.\overline{3}, 0.(3), 3.2e5."""
    written, *period = re.findall(r"[\d.]+(?:[eE][+-]?\d+)?", text)
    if len(text) > MAX_DIGITS or abs(int(written.lower().partition("e")[2] or 0)) > MAX_DIGITS:
        fail(f"the number {text[:20]} has more than {MAX_DIGITS} digits", "too_large")
    value = Rational(f"0{written}".removesuffix("."))
    if period:
        places = len(written.partition(".")[2])
        value += Rational(int("".join(period)), 10**places * (10 ** len("".join(period)) - 1))
    return value


class Parser:
    """Recursive descent over the tokens of one expression. As in print, 1/2x is (1/2)x."""

    def __init__(self, text: str):
        self.tokens, self.at, self.bars = [("start", "")], 1, False
        for found in TOKEN.finditer(text):
            kind = found.lastgroup
            if kind:
                self.tokens.append((found[0] if kind == "sign" else kind, found[kind]))
        if len(self.tokens) > MAX_TOKENS:
            fail(f"more than {MAX_TOKENS} tokens", "too_large")
        self.tokens.append(("the end", ""))

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0]

    def take(self) -> str:
        """The value of the next token, and step over it."""
        self.at += 1
        return self.tokens[self.at - 1][1]

    def eat(self, kind: str) -> bool:
        """Whether the next token is of this kind; if so, step over it."""
        return self.kind == kind and bool(self.take())

    def need(self, kind: str):
        if self.kind != kind:
            fail(f"expected {kind}, found {self.kind}")
        self.at += 1

    def whole(self):
        value = self.sum()
        self.need("the end")
        return value

    def sum(self):
        terms = [self.term()]
        while self.kind in "+-":
            terms.append(self.term())
        return total(terms)

    def minus(self) -> list:
        """Step over signs: [-1] if they make a minus, else []."""
        negative = False
        while self.kind in "+-":
            negative ^= self.take() == "-"
        return [MINUS] * negative

    def term(self):
        """A product with the signs before it: 2x, -2x, 3*-1/4."""
        factors = [*self.minus(), self.power()]
        while self.kind in "*/" or self.factor():
            divided = self.kind == "/"
            if self.kind in "*/":
                self.take()
            factors += self.minus()
            factor = self.power()
            factors.append(power(factor, MINUS) if divided else factor)
        return product(factors)

    def factor(self) -> bool:
        """Whether a factor may begin here; two numbers side by side are no product."""
        if self.kind == "number":
            return self.tokens[self.at - 1][0] != "number"
        return self.kind in FACTORS or (self.kind == "|" and not self.bars)

    def power(self):
        """x^2, 5!, 5!!, 60°, 50%"""
        value = self.atom()
        while self.kind in ("°", "^", "%", "!"):
            sign = self.take()
            if sign == "^":
                value = power(value, self.argument())
            elif sign == "!":
                value = call("factorial2" if self.eat("!") else "factorial", value)
            else:
                value = product([value, pi / 180 if sign == "°" else Rational(1, 100)])
        return value

    def argument(self):
        """What a sign or command applies to: a group or one token, with its sign."""
        return product([*self.minus(), self.atom()])

    def atom(self):
        """A number, a name, or something in brackets."""
        kind, value = self.kind, self.take()
        if kind == "number":
            return literal(value)
        if kind in ("letter", "word", "function", "command"):
            return getattr(self, kind)(value)
        if kind == "√":
            index = self.atom() if self.kind == "[" else Integer(2)
            return power(self.argument(), power(index, MINUS))
        if kind == "⟦":
            return self.matrix()
        if kind in ATOMS:
            return ATOMS[kind]
        if kind not in "([{⌊⌈|":
            fail(f"cannot read {kind} here")
        outer, self.bars = self.bars, kind == "|"
        items = [self.sum()]
        while self.eat(","):
            items.append(self.sum())
        self.need("|" if kind == "|" else CLOSING[OPENING.index(kind)])
        self.bars = outer
        value = Tuple(*items) if len(items) > 1 else items[0]
        return call(ROUNDING[kind], value) if kind in ROUNDING else value

    def letter(self, name: str):
        """x, x_1, f(x), and the constants e and i. f(x) is a name, since f is not known."""
        name = re.sub(r'[{}" ]', "", name)
        return LETTERS.get(name) or Symbol(name or fail("an empty name"))

    word = letter

    def matrix(self):
        """The rows of a matrix; a column vector is the tuple of its entries."""
        rows = [[self.sum()]]
        while not self.eat("⟧"):
            if self.eat("¶"):
                rows.append([])
            else:
                self.need("&")
            rows[-1].append(self.sum())
        if len({*map(len, rows)}) > 1:
            fail("rows of different lengths")
        return Tuple(*(Tuple(*row) if len(row) > 1 else row[0] for row in rows))

    def function(self, name: str):
        r"""\sin^2 x, \log_2 8, \ln|x|, \sin 2x\cos x: an argument without brackets is a product."""
        scripts = {}
        while self.kind in "^_":
            sign = self.take()
            scripts[sign] = self.argument()
        if self.kind in "({":
            argument = self.atom()
        else:
            factors = [*self.minus(), self.power()]
            while self.factor() and self.kind not in ("function", "["):
                factors.append(self.power())
            argument = product(factors)
        name = SYMPY.get(name, name.replace("arc", "a"))
        exponent = scripts.get("^")
        if exponent == -1 and f"a{name}" in dir(sympy):
            return call(f"a{name}", argument)
        if name in ("ln", "lg", "log"):
            base = Integer(10) if name == "lg" else scripts.get("_", E)
            value = product([call("log", argument), power(call("log", base), MINUS)])
        else:
            value = call(name, argument)
        return power(value, exponent) if exponent else value

    def command(self, name: str):
        if name not in ("frac", "binom", *DECORATIONS):
            fail(f"unknown command \\{name}")
        value = self.argument()
        if name == "frac":
            return product([value, power(self.argument(), MINUS)])
        if name == "binom":
            return call("binomial", Tuple(value, self.argument()))
        named = value.is_Symbol and name not in ("vec", "underline")
        return Symbol(f"{name} {value}") if named else value  # \overline{AB} is AB


def call(name: str, argument):
    """A function of sympy, not evaluated."""
    arguments = argument if vector(argument) else [argument]
    several = name in ("Max", "Min", "binomial", *GCD)
    if any(map(vector, arguments)) or (len(arguments) > 1 and not several):
        fail(f"{name} of a vector")
    if name in ("exp", "cis"):
        return power(E, argument if name == "exp" else product([I, argument]))
    if name in GCD:
        return GCD[name](*arguments)
    return getattr(sympy, name)(*arguments, evaluate=False)


# ---- comparing: the values of expressions -------------------------------------------------------

STEPS = {"floor": math.floor, "ceiling": math.ceil, "gcd": math.gcd, "lcm": math.lcm}
QUOTIENTS = {"tan": "sin cos", "cot": "cos sin", "sec": "cos", "csc": "sin"}
MPMATH = {"factorial2": "fac2", "Abs": "fabs"}
BUILTIN = {"Max": max, "Min": min}
CONSTANTS = {pi: "pi", E: "e", I: "j"}


class Values:
    r"""The values of sympy expressions at a point.

    With p bits, a value within 2^(-p/2) of a whole number is taken as this number: a sum that
    cancels to rounding noise is 0, and so is \sin\pi. A division by noise is then one by 0, which
    has no value. 256 bits decide most questions. Where they show no difference and the numbers
    met on the way are large or small, twice their bits are added, so that 1 - 2^{-300} is not 1."""

    def __init__(self):
        LOCAL.mp = LOCAL.mp or mpmath.MPContext()
        self.mp = LOCAL.mp

    def at(self, *exprs, point=None, real=False) -> list:
        """The values where the letters have the values `point`. Raises Undefined where one has no
        value, or must be `real` and is not; Refused beyond the bounds."""
        self.point, self.real, bits = point or {}, real, 256
        while True:
            self.mp.prec, self.high, self.low = bits, 0, 0
            self.noise = self.mp.ldexp(1, -bits // 2)
            problem = found = None
            try:
                found = [self.value(expr) for expr in exprs]
            except Undefined as error:
                problem = error
            except (ZeroDivisionError, ValueError, TypeError) as error:
                problem = Undefined("wrong", f"no value: {error}")
            needed = 256 + 2 * (self.high - self.low)
            differ = found and abs(found[0] - found[-1]) > self.mp.ldexp(1, self.high - 100)
            if bits > 256 or needed < 356 or differ:
                break
            bits = needed if needed < MAX_BITS else fail("numbers too large or small", "too_large")
        if problem:
            raise problem
        return found

    def near(self, x, y) -> bool:
        return abs(x - y) <= self.noise

    def value(self, expr):
        if expr.is_Rational:
            self.high = max(self.high, expr.p.bit_length())
            self.low = min(self.low, -expr.q.bit_length())
            return self.mp.mpf(expr.p) / expr.q
        if not expr.args:
            if expr in CONSTANTS:
                return self.noted(+getattr(self.mp, CONSTANTS[expr]))
            if expr not in self.point:
                undefined(f"{expr} has no value")
            return self.value(self.point[expr])
        in_time()
        parts = [self.value(part) for part in expr.args]
        if expr.is_Add:
            return self.noted(sum(parts))
        if expr.is_Mul:
            return self.noted(math.prod(parts))
        if expr.is_Pow:
            return self.noted(self.power(*parts, expr.exp))
        return self.noted(self.call(expr.func.__name__, parts))

    def noted(self, x):
        """The value, as a real number if it is one, without its noise."""
        if not self.mp.isfinite(x):
            undefined("an infinite value")
        imaginary = self.mp.im(x) and self.whole(self.mp.im(x))
        if imaginary and self.real:
            raise NotReal("wrong", "not a real number")
        real = self.whole(self.mp.re(x))
        return self.mp.mpc(real, imaginary) if imaginary else real

    def whole(self, x):
        """The whole number that a real value is, up to noise, or the value. Its size is noted."""
        if not x:
            return x
        size = int(self.mp.mag(x))
        self.high, self.low = max(self.high, size), min(self.low, size)
        nearest = self.mp.nint(x)
        return nearest if self.near(x, nearest) else x

    def power(self, base, exponent, written):
        mp = self.mp
        if not base:
            return base if mp.re(exponent) > 0 else undefined("0 to the power 0 or less")
        if max(mp.mag(exponent or 1), 0) + max(mp.mag(mp.mag(base) or 1), 0) > 60:
            fail("a power beyond the bound", "too_large")
        if not mp.im(base) and base < 0 and written.is_Rational and written.q % 2:
            return (-1) ** (written.p % 2) * mp.power(-base, exponent)  # (-8)^{1/3} = -2
        return mp.power(base, exponent)

    def call(self, name: str, xs: list):
        mp, growing = self.mp, name in ("factorial", "factorial2", "binomial")
        slow = growing and mp.prec > 2000 and not all(map(mp.isint, xs))
        large = any(mp.mag(x or 1) > (50 if growing else 5000) for x in xs)
        if slow or (large and name not in ("log", "Abs")):
            fail(f"{name} of a number beyond the bound", "too_large")
        if name in QUOTIENTS:  # of values without noise, so that a pole is a division by 0
            *above, below = (self.noted(getattr(mp, f)(*xs)) for f in QUOTIENTS[name].split())
            return math.prod(above) / below
        if name in STEPS:
            return mp.mpf(STEPS[name](*(int(x) if mp.isint(x) else x for x in xs)))
        return BUILTIN[name](xs) if name in BUILTIN else getattr(mp, MPMATH.get(name, name))(*xs)


NATURAL = "jklmn"  # letters that stand for whole numbers
WHOLE = 100, 7, 61, 12, 37, 72, 22, 9  # where floors and signs of whole numbers show


# ---- comparing: the rules -----------------------------------------------------------------------


def stated(form: Form) -> tuple[str, tuple]:
    """The name or "", and what is said of it."""
    if form.kind != "=":
        return "", (form,)
    unnamed = () if letters(form.parts[0]) else form.parts
    return form.sign, form.parts[1:] if form.sign else unnamed


def seq(values) -> Form:
    return Form("seq", tuple(values), "()")


def tuples(names, values) -> Form:
    """x = 1, y = 2 as an equation: by name, and as the tuple that may stand without names. This is
    sorted if the names are neighbours in the alphabet; m = 3, b = 2 is (3, 2), as it is written."""
    pairs = sorted(zip(names, values, strict=True), key=lambda pair: (len(pair[0]), pair[0]))
    by_name = [value for _, value in pairs]
    firsts = {ord(name[0]) for name in names}
    neighbours = max(firsts) - min(firsts) < len(firsts)
    names = ",".join(name for name, _ in pairs)
    return Form("=", (seq(by_name), seq(by_name if neighbours else values)), names)


@lru_cache(2048)
def gathered(form: Form) -> Form:
    """Equations of several names as one: x = 1, x = 2 says that x is a list; x = 1, y = 2, and
    (y, x) = (2, 1), and x = y = 3 say what (x, y) is; p = 5, q = 2; p = 7, q = 2 lists tuples."""
    name, said = stated(form)
    if name and len(said) > 1 and all(map(named, said[:-1])):
        return tuples([name, *(str(*part.parts) for part in said[:-1])], said[-1:] * len(said))
    inner = name.strip("()").split(",")
    if name[:1] == "(" and said[0].kind == "seq" and len(inner) == len(said[0].parts):
        return tuples(inner, said[0].parts)
    if form.kind != "list" or any(map(set_like, form.parts)):
        return form
    rows = (item.parts if item.kind == "seq" else (item,) for item in form.parts)
    pairs = [stated(item) for item in itertools.chain(*rows)]
    names = [name for name, _ in pairs if name]
    values = [said[0] for _, said in pairs if said]
    if not pairs[0][0] or len(names) not in (1, len(pairs)) or len(values) < len(pairs):
        return form
    bases = {re.sub(r"^([rstxyz])_.+", r"\1", name) for name in names}
    if len(bases) == 1:  # x_1 = 1, x_2 = 2, or x = 1, 2
        items = Form("list", flat(values, "±,"), form.sign if len({*names}) > 1 else "or")
        return Form("=", (form_of(Symbol(names[0])), items), bases.pop())
    period = len({*names})
    if names != names[:period] * (len(names) // period):
        return form
    starts = range(0, len(names), period)
    rows = [tuples(names[:period], values[i : i + period]) for i in starts]
    if len(rows) == 1 and form.sign == "or":
        return form
    return rows[0] if len(rows) == 1 else Form("list", tuple(row.parts[1] for row in rows), "or")


# ---- comparing: expressions ---------------------------------------------------------------------


class Numbers:
    """Comparisons of expressions by their values. `rule` is the last rule that was tried."""

    def __init__(self):
        self.values, self.rule = Values(), ""
        self.renamed: dict[Symbol, Symbol] = {}  # bound letters of the answer: f(t) for f(x)

    def at_points(self, a, t):
        """The pairs of values at fixed random points where `t` has one, None where only `a` has
        none. Letters are fractions and whole numbers in turn, positive, negative, then of any
        sign, since |xy| is xy wherever xy > 0; j, k, l, m, n are whole numbers."""
        names, rng = sorted(letters(a) | letters(t), key=str), random.Random(20)
        real = bool(names) and not (a.has(I) or t.has(I))
        for trial in range(8 if names else 1):
            point = {}
            for name in names:
                size = Rational(2 * rng.randint(10, 400) + 1, rng.choice((20, 147)))
                if trial % 2 or str(name)[0] in NATURAL:
                    size = Integer(WHOLE[(trial + len(point)) % len(WHOLE)])
                point[name] = size * ((1, 1, -1, -1)[trial] if trial < 4 else rng.choice((1, -1)))
            point |= {name: point[due] for name, due in self.renamed.items() if due in point}
            try:
                yield self.values.at(a, t, point=point, real=real)
            except NotReal:
                continue
            except Undefined:
                if self.has_value(t, point, real):
                    yield None

    def has_value(self, expr, point: dict, real: bool) -> bool:
        try:
            return bool(self.values.at(expr, point=point, real=real))
        except Undefined:
            return False

    def equal(self, a, t) -> bool:
        """Rules 3 and 5: fractions exactly (1/2 = 0.5), other expressions at all points."""
        if a.is_Rational and t.is_Rational:
            self.rule = "exact values"
            return a == t
        self.rule = "values at random points" if letters(a) | letters(t) else "values to 60 digits"
        whole = {Symbol(name) for name in NATURAL}
        bound, due = whole & letters(a), whole & letters(t)
        if len(bound) == len(due) == 1 and a.has(pi) and t.has(pi):  # 2n pi is 2k pi
            self.renamed = dict(zip(bound, due, strict=True))
        points = 0
        for pair in self.at_points(a, t):
            if not pair or not self.values.near(*pair):
                return False
            points += 1
        return points > 0

    def rounds(self, a: Form, t: Form) -> bool:
        """Rule 4: within half a unit of the last place of the truth; a decimal is no shorter.

        The text of a decimal is the `sign` of its Form, its expression parts[0]. The truth must be
        a decimal of three digits or more, without zeros in front. The answer may be neither a whole
        number (is_Integer) nor a decimal with fewer places. Then self.rule is "rounds to the
        truth's decimals", and the values (self.values.at) differ by at most half a unit, give or
        take self.values.noise.
        """
        # <solution id="checker" points="3">
        digits, places = re.sub(r"^-?0*\.?0*|\.", "", t.sign), len(t.sign.partition(".")[2])
        shorter = a.sign and len(a.sign.partition(".")[2]) < places
        if len(digits) < 3 or shorter or a.parts[0].is_Integer:
            return False
        self.rule = "rounds to the truth's decimals"
        value, due = self.values.at(*a.parts, *t.parts, real=True)
        return abs(value - due) * 2 * 10**places <= 1 + self.values.noise
        # </solution>

    def factor(self, a: Form, t: Form) -> int:
        """The sign of the constant by which left - right of `a` is that of `t`, or 0 if none is."""
        kinds = {part.kind for part in (*a.parts, *t.parts)}
        if {len(a.parts), len(t.parts)} != {2} or kinds != {"value"}:
            return 0
        points = self.at_points(difference(*a.parts), difference(*t.parts))
        pairs = [pair or (1, 0) for pair in points]
        ratios = [x / y for x, y in pairs if y]
        if len(ratios) < 2 or any(x and not y for x, y in pairs) or self.values.mp.im(ratios[0]):
            return 0
        if any(abs(ratio - ratios[0]) > abs(ratios[0]) / 2**90 for ratio in ratios):
            return 0
        return 1 if ratios[0] > 0 else -1 if ratios[0] < 0 else 0

    def about(self, form: Form) -> str:
        """A few digits of a number, by which the like is tried first in a long list."""
        if form.kind != "value" or letters(form):
            return str(form)
        try:
            return self.values.mp.nstr(self.values.at(*form.parts)[0], 9)
        except (Undefined, ValueError):  # no value, or one of more than 4300 digits
            return ""


def difference(left: Form, right: Form):
    return total([*left.parts, product([MINUS, *right.parts])])


# ---- comparing: sets of real numbers, as those of sympy -----------------------------------------

OPERATIONS = {"∪": sympy.Union, "∩": sympy.Intersection, "∖": sympy.Complement}


def set_like(form: Form) -> bool:
    """Whether a form is a set of real numbers in more than a list of them."""
    listed = form.kind == "list" and any(map(set_like, form.parts))
    return listed or form.kind in ("reals", "<", *OPERATIONS)


class Sets:
    """Forms as sympy's sets. Their ends are made fractions, which sympy need not simplify."""

    def __init__(self, numbers: Numbers):
        self.numbers = numbers

    def of(self, form: Form):
        """The set. Raises Undefined for what is no set of real numbers that we know."""
        parts, sign = form.parts, form.sign
        if len(parts) > 16:
            undefined("so many parts take sympy too long")
        match form.kind:
            case "reals":
                return sympy.S.Reals
            case "set":
                return sympy.FiniteSet(*map(self.end, parts))
            case "seq" if len(parts) == 2 and self.end(parts[0]) < self.end(parts[1]):
                return sympy.Interval(*map(self.end, parts), sign[0] == "(", sign[1] == ")")
            case "∪" | "∩" | "∖":
                return OPERATIONS[form.kind](*map(self.of, parts))
            case "list" if set_like(form):
                sets = list(map(self.of, parts))
                both = sympy.Intersection(*sets)
                union = sign == "or" or (sign == "," and both == sympy.S.EmptySet)  # x < 1, x > 3
                return sympy.Union(*sets) if union else both
            case "=" if parts[-1].kind != "value":
                return self.of(parts[-1])  # x in (0, 5)
            case "<":
                return sympy.Intersection(*map(self.half_line, parts, sign, parts[1:]))
        return undefined("no set of real numbers")

    def end(self, form: Form):
        """An end as a fraction: rounded to 100 binary places, so that equal ends are the same."""
        if form.kind != "value" or letters(form):
            undefined("no number")
        expr = form.parts[0]
        if expr.has(oo):
            return oo if expr == oo else -oo
        return self.fraction(self.numbers.values.at(expr, real=True)[0])

    def fraction(self, value):
        return Rational(int(self.numbers.values.mp.nint(value * 2**100)), 2**100)

    def half_line(self, left: Form, sign: str, right: Form):
        """The numbers that satisfy a linear inequality in one letter, or differ from some."""
        if sign == "≠":
            excluded = sympy.FiniteSet(*map(self.end, flat([right])))
            return sympy.Complement(sympy.S.Reals, excluded)
        names = letters(left) | letters(right)
        if len(names) != 1 or {left.kind, right.kind} != {"value"} or sign == "∣":
            undefined("no inequality of numbers")
        line, (name,) = difference(left, right), names
        if line.has(oo):
            return sympy.S.Reals
        at = self.numbers.values.at
        zero, one = (at(line, point={name: Integer(x)}, real=True)[0] for x in (0, 1))
        end = self.fraction(zero / (zero - one)) if zero != one else undefined("no slope")
        straight = Form("<", (form_of(name), form_of(end)))
        direction = self.numbers.factor(Form("<", (left, right)), straight)
        if not direction:
            undefined("not linear")
        ends = (-oo, end, True, sign == "<") if direction > 0 else (end, oo, sign == "<", True)
        return sympy.Interval(*ends)


# ---- comparing: forms ---------------------------------------------------------------------------

CALL = re.compile(r"(\w)\((\w)\)")  # f(x)


class Comparer:
    """One comparison under one reading."""

    def __init__(self):
        self.numbers = Numbers()

    def same(self, a: Form, t: Form) -> bool:
        """Whether an answer and a truth say the same. `numbers.rule` is the rule that decided."""
        in_time()
        a, t = gathered(a), gathered(t)
        kinds = {a.kind, t.kind}
        self.numbers.rule = "the same reading"
        try:
            if a == t:
                return True
            if "=" in kinds:
                return self.equations(a, t)
            if "unit" in kinds and not kinds & {"list", "set"}:
                return self.units(a, t)
            if ":" in kinds:
                return self.ratios(a, t)
            if set_like(a) or set_like(t):
                return self.sets(a, t)
            if kinds == {"value"}:
                return self.numbers.equal(*a.parts, *t.parts) or self.numbers.rounds(a, t)
            return self.items(a, t)
        except Undefined:
            return False

    def items(self, a: Form, t: Form) -> bool:
        """Rule 7: tuples in order, sets and lists in any order; a list may be meant as a tuple."""
        self.numbers.rule = "item by item"
        match a.kind, t.kind:
            case "seq", "seq":
                point = len(t.parts) > 2 and {a.sign, t.sign} == {"()", "[]"}  # no interval
                return (a.sign == t.sign or point) and self.in_order(a.parts, t.parts)
            case ("seq", "list") | ("list", "seq"):
                tuple_like = "()" in (a.sign, t.sign) and "or" not in (a.sign, t.sign)
                return tuple_like and self.in_order(a.parts, t.parts)
            case ("set" | "list", "set" | "list"):
                as_set = "set" in (a.kind, t.kind) or len(a.parts) > len(t.parts)
                return self.without_order(a.parts, t.parts, as_set)
            case "time", "time":
                return a.parts == t.parts and (a.sign == t.sign or not (a.sign and t.sign))
        return a.kind == t.kind and a.kind in "mod&" and self.in_order(a.parts, t.parts)

    def in_order(self, a: tuple, t: tuple) -> bool:
        return len(a) == len(t) and all(map(self.same, a, t))

    def without_order(self, a: tuple, t: tuple, as_set: bool) -> bool:
        """Each item has its like on the other side; only one of its own, unless they are sets."""
        if len(a) != len(t) and not as_set:
            return False
        rest, about = list(t), self.numbers.about
        digits = {y: about(y) for y in t} if len(t) > 4 else {}
        for x in a:
            here = digits and about(x)
            others = sorted(t if as_set else rest, key=lambda y: digits.get(y) != here)
            like = next((y for y in others if self.same(x, y)), None)
            if like is None:
                return False
            if like in rest:
                rest.remove(like)
        return all(True in map(self.same, a, itertools.repeat(y)) for y in rest)

    def equations(self, a: Form, t: Form) -> bool:
        """Equations up to a factor; or they say the same of a name that one may leave out."""
        self.numbers.rule = "equations up to a factor"
        if a.kind == t.kind and self.numbers.factor(a, t):
            return True
        (name, values), (due, others) = stated(a), stated(t)
        if "," in name and name == due:
            return self.same(a.parts[0], t.parts[0])
        calls = [found for found in map(CALL.fullmatch, (name, due)) if found]
        if len(calls) == 2 and calls[0][1] == calls[1][1]:  # f(t) = t^2 is f(x) = x^2
            letter, other = calls[0][2], calls[1][2]
            if (letter in NATURAL) != (other in NATURAL):
                return False
            self.numbers.renamed = {Symbol(letter): Symbol(other)}
        elif name and due and name != due and not (calls and "y" in (name, due)):
            return False  # but y = x^2 is f(x) = x^2
        pairs = itertools.product(values, others)
        return bool(values and others) and all(self.same(x, y) for x, y in pairs)

    def units(self, a: Form, t: Form) -> bool:
        """Rule 6: a unit may be missing on one side; on both sides they must agree."""
        self.numbers.rule = "the units"
        units = {form.sign for form in (a, t) if form.kind == "unit"}
        a, t = (form.parts if form.kind == "unit" else (form, form) for form in (a, t))
        numeric = all(unit in ("%", "°", "rad") or "base" in unit for unit in units)
        if numeric and self.same(a[1], t[1]):
            return True  # 50% is 1/2
        return len(units) == 1 and self.same(a[0], t[0])

    def ratios(self, a: Form, t: Form) -> bool:
        """Rule 7: 4:6 is 2:3, and 2/3."""
        self.numbers.rule = "ratios up to a factor"
        one, equal = form_of(Integer(1)), self.numbers.equal
        a, t = (form.parts if form.kind == ":" else (form, one) for form in (a, t))
        if len(a) != len(t) or {part.kind for part in (*a, *t)} != {"value"}:
            return False
        crossed = all(
            equal(product([*x.parts, *t[0].parts]), product([*y.parts, *a[0].parts]))
            for x, y in zip(a, t, strict=True)
        )
        return crossed and not equal(*a[0].parts, Integer(0))

    def sets(self, a: Form, t: Form) -> bool:
        """Rule 8: the same joined in the same way, or the same set of real numbers."""
        self.numbers.rule = "inequalities up to a factor"
        if a.kind == t.kind == "<" and a.sign == t.sign:
            if self.numbers.factor(a, t) > 0 or self.in_order(a.parts, t.parts):
                return True
        elif a.kind == t.kind != "<" and {a.sign, t.sign} != {"and", "or"}:
            if self.without_order(a.parts, t.parts, as_set=False):
                return True
        self.numbers.rule = "the same set of real numbers"
        sets = Sets(self.numbers)
        return len(letters(a) | letters(t)) < 2 and sets.of(a) == sets.of(t)


# ---- verdicts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one answer.

    score    1.0 or 0.0; any finite number from a user's reward
    verdict  right, wrong, no_answer, unparsed, too_large, timeout, crashed, or graded (by a user)
    answer   the extracted text, or None
    rule     the rule that decided, for people"""

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
SECOND = re.compile("(?<=±)(.*?)±")  # in \\pm\\sqrt3\\pm1
SHORT = re.compile(r"-?\d{1,30}")  # -42


def bare(text: str) -> str:
    """Without dollar signs around it and the closing period; 0.3... is not 0.3."""
    return re.sub(r"(?<!\.)\. ?$", "", text.strip("$ \n"))


def quick(answer: str | None, truth: str) -> Verdict | None:
    """The verdict where no algebra is needed, in microseconds, else None."""
    if answer is None:
        return Verdict(0.0, "no_answer", None, "no final answer found")
    a, t = bare(answer), bare(truth)
    if a == t and (a or answer == truth):
        return Verdict(1.0, "right", answer, "the same string")
    if not SHORT.fullmatch(a) or not SHORT.fullmatch(t):
        return None
    same = int(a) == int(t)
    return Verdict(float(same), "right" if same else "wrong", answer, "two whole numbers")


def decide(answer: str, truth: str, choices: bool = True) -> tuple[str, str, tuple]:
    """(verdict, rule, the two Forms that decided if any) for a bare answer. `choices`: a letter in
    front may be that of a choice (rule 9)."""
    if max(len(answer), len(truth)) > MAX_CHARS:
        return "too_large", f"more than {MAX_CHARS} characters", ()
    left, right = (clean(text).replace('"', " ").strip(" .,;") for text in (answer, truth))
    if not re.search(r"[^\W_]|\\|[^ -~]", left):
        return "no_answer", "nothing in the box", ()
    a, t = (re.sub(r"(?<!\w) | (?!\w)", "", text) for text in (left, right))  # "1 2" is not "12"
    if a == t:
        return "right", "the same string after cleaning", ()
    chosen = CHOICE.fullmatch(left) if choices else None
    due = CHOICE.fullmatch(right) if choices and not re.fullmatch("[a-z]", right) else None
    if due and chosen:
        same = due[2].upper() == chosen[2].upper()
        return "right" if same else "wrong", "choices by letter", ()
    if due and due[3]:
        return decide(answer, due[3], choices=False)
    if chosen and chosen[3]:
        return decide(chosen[3], truth, choices=False)
    return algebra(clean(answer), clean(truth))


def ungrouped(text: str) -> str:
    """1,000 as 1000."""
    return THOUSANDS.sub(lambda run: run[0].replace(",", ""), text)


def readings(answer: str, truth: str) -> list[tuple[str, str]]:
    """The pairs of texts that the two may mean (rule 11)."""
    pairs, both = [(answer, truth)], answer + " " + truth
    if THOUSANDS.search(both) and truth[:1] not in OPENING:  # (1,234) is a pair
        lists = [] if THOUSANDS.search(answer) and THOUSANDS.search(truth) else pairs
        pairs = [(ungrouped(answer), ungrouped(truth)), *lists]
    if LOG.search(both):
        pairs = [(LOG.sub(log, a), LOG.sub(log, t)) for a, t in pairs for log in ("ln", "lg")]
    if both.count("±") > 1:  # with signs that are independent of the first
        pairs += [(SECOND.sub(r"\1⨦", a), SECOND.sub(r"\1⨦", t)) for a, t in pairs]
    return pairs


def compared(answer: str, truth: str) -> tuple[str, str, tuple]:
    """(verdict, rule, forms) of two cleaned texts under one reading."""
    rule, forms, comparer = "the truth cannot be read", (), Comparer()
    try:
        due = read(truth)
        rule = "the answer cannot be read"
        forms = (read(answer), due)
        rule = "not compared"
        verdict = "right" if comparer.same(*forms) else "wrong"
        return verdict, comparer.numbers.rule, forms
    except Refused as refused:
        return refused.args[0], f"{rule}: {refused.args[1]}", forms
    except (MemoryError, OverflowError, RecursionError) as error:
        return "too_large", f"{rule}: {type(error).__name__}", forms


def algebra(answer: str, truth: str) -> tuple[str, str, tuple]:
    """The first reading that is right, else the first."""
    LOCAL.deadline = time.thread_time() + SECONDS
    first = None
    for a, t in readings(answer, truth):
        found = compared(a, t)
        if found[0] == "right":
            return found
        first = first or found
    return first


def judge_answer(answer: str | None, truth: str) -> Verdict:
    """The verdict on a bare answer, or on None. Never raises; bounded in time and memory."""
    if verdict := quick(answer, truth):
        return verdict
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


class Worker:
    """This file run by a fresh interpreter, with lines of JSON on its pipes.

    It is not a multiprocessing child: those import the caller's main script again, and torch."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        os.set_blocking(self.process.stdin.fileno(), False)
        try:
            self.receive(time.monotonic() + START_S)  # ready: the first answer waits for no start
        except OSError as error:
            self.end()
            raise ConnectionError(f"a worker did not start: {error!r}") from None

    def wait(self, pipe, event: int, deadline: float) -> int:
        """The number of a pipe that is ready. TimeoutError at the deadline."""
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1e3):
            raise TimeoutError
        return pipe.fileno()

    def receive(self, deadline: float) -> bytes:
        """One line. ConnectionError if the worker ends."""
        line = b""
        while not line.endswith(b"\n"):
            part = os.read(self.wait(self.process.stdout, select.POLLIN, deadline), 65536)
            if not part:
                raise ConnectionError("the worker ended")
            line += part
        return line

    def ask(self, request: list, seconds: float) -> dict:
        """The reply to a request. TimeoutError after `seconds`; BrokenPipeError if the worker had
        ended before; ConnectionError if it ends."""
        deadline = time.monotonic() + seconds
        data = json.dumps(request).encode() + b"\n"
        while data:
            pipe = self.wait(self.process.stdin, select.POLLOUT, deadline)
            data = data[os.write(pipe, data[:65536]) :]
        return json.loads(self.receive(deadline))

    def end(self, seconds: float = 0.0):
        """Close the pipes; kill the process if it does not end in `seconds`; reap it."""
        self.process.stdin.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Grader(AbstractContextManager):
    """Grade in worker processes that can be killed: an answer has `timeout_s` seconds and a worker
    `memory_gb` GB.

    `reward` is None for this file's rules, or "FILE.py:function" for a user's function
    (completion, problem) -> float, which runs in the workers; `problem` is then a dict. A worker
    starts with the first answer that needs it, and ends with this process. Any thread may submit.
    `close`, or leaving the `with` block, finishes what was submitted and ends the workers;
    `submit` after that raises RuntimeError."""

    def __init__(self, workers=1, timeout_s=5.0, memory_gb=1.0, reward: str | None = None):
        sizes = {"workers": workers, "timeout_s": timeout_s, "memory_gb": memory_gb}
        if min(sizes.values()) <= 0:
            raise ValueError(f"{sizes}: all must be positive")
        if reward and not os.path.isfile(reward.rpartition(":")[0]):
            raise ValueError(f"reward {reward!r}: there is no such file; give FILE.py:function")
        self.timeout_s, self.reward = timeout_s, reward
        self.command = [sys.executable, __file__, "--worker", str(memory_gb)]
        self.command += ["--reward", reward] if reward else []
        self.threads, self.own = ThreadPoolExecutor(workers), threading.local()
        self.workers: set[Worker] = set()

    def __exit__(self, *_):
        self.close()

    def submit(self, text: str, truth) -> "Future[Verdict]":
        """A future of the verdict on one completion. `truth` is the reference answer; with a
        user's reward it is the problem, a dict or a dataclass."""
        return self.threads.submit(self._judge, text, truth)

    def grade(self, texts: list[str], truths: list) -> list[Verdict]:
        """The verdicts on a batch, in its order. ValueError if the two lists differ in length."""
        futures = [self.submit(text, truth) for text, truth in zip(texts, truths, strict=True)]
        return [future.result() for future in futures]

    def equal(self, pairs: list[tuple[str, str]]) -> list[bool]:
        """Whether each answer equals the answer beside it, for majority votes."""
        futures = [self.threads.submit(self._compare, *pair) for pair in pairs]
        return [future.result().score == 1.0 for future in futures]

    def close(self):
        """Finish what was submitted, then end the workers."""
        self.threads.shutdown()
        for worker in list(self.workers):
            worker.end(seconds=2.0)
        self.workers.clear()

    def _judge(self, text: str, truth) -> Verdict:
        if self.reward:
            problem = asdict(truth) if is_dataclass(truth) else truth
            return self._ask([text, problem], text)
        return self._compare(extract(text), truth)

    def _compare(self, answer: str | None, truth: str) -> Verdict:
        """At once if no algebra is needed, else by a worker."""
        return quick(answer, truth) or self._ask([answer, truth], answer)

    def _ask(self, request: list, answer: str) -> Verdict:
        """Ask this thread's own worker; once more where it had ended before it was asked."""
        for last in (False, True):
            worker = getattr(self.own, "worker", None)
            try:
                if not worker:
                    worker = self.own.worker = Worker(self.command)
                    self.workers.add(worker)
                return Verdict(**worker.ask(request, self.timeout_s))
            except (OSError, ValueError) as error:
                self._lose(worker)
                if last or not isinstance(error, BrokenPipeError):
                    verdict = "timeout" if isinstance(error, TimeoutError) else "crashed"
                    return Verdict(0.0, verdict, answer, f"the worker was lost: {error!r}")

    def _lose(self, worker: Worker | None):
        self.own.worker = None
        if worker:
            self.workers.discard(worker)
            worker.end()


def user_reward(name: str):
    """The function of "FILE.py:function", as a judge of completions."""
    file, _, function = name.rpartition(":")
    spec = importlib.util.spec_from_file_location("user_reward", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def judged(text: str, problem) -> Verdict:
        try:
            value = float(getattr(module, function)(text, problem))
            if math.isfinite(value):
                return Verdict(value, "graded", text, function)
            return Verdict(0.0, "crashed", text, f"{function} returned {value}")
        except Exception as error:
            return Verdict(0.0, "crashed", text, f"{function}: {type(error).__name__}: {error}")

    return judged


def serve(memory_gb: float, reward: str | None = None):
    """What a worker does: a line in, a verdict out, until its input closes, as it does when the
    parent ends. What a user's reward prints goes to stderr. Out of memory, the worker dies."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 2**30),) * 2)
    except ImportError:  # no such limit on Windows
        pass
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


def shown(form: Form) -> str:
    """A form for people; expressions as sympy prints them."""
    parts = [shown(part) if isinstance(part, Form) else str(part) for part in form.parts]
    match form.kind:
        case "unit":
            return f"{parts[0]} {form.sign}"
        case "seq":
            return f"{form.sign[0]}{', '.join(parts)}{form.sign[1]}"
        case "=" | ":" | "∪" | "∩" | "∖" | "mod":
            return f" {form.kind} ".join(parts)
        case "<":
            chain = itertools.zip_longest(parts, form.sign, fillvalue="")
            return " ".join(itertools.chain(*chain)).strip()
        case "list" | "value" | "words" | "time":
            return f" {form.sign} ".replace(" ,", ",").join(parts)
    return f"{form.kind}({', '.join(parts)})"


def main():
    """Explain one comparison."""
    parser = argparse.ArgumentParser(description="Does this answer equal this truth, and why?")
    parser.add_argument("--answer", help="a completion, or a bare answer without a box")
    parser.add_argument("--truth")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--reward", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return serve(args.worker, args.reward)
    if args.answer is None or args.truth is None:
        parser.error("give --answer and --truth")
    answer = extract(args.answer) or args.answer
    verdict = judge_answer(answer, args.truth)
    read_as = map(shown, decide(answer, args.truth)[2])
    rows = {"answer": answer, "truth": args.truth, "read as": "   and   ".join(read_as)}
    rows |= {"verdict": verdict.verdict, "rule": verdict.rule}
    for name, text in rows.items():
        # A control character could change the terminal.
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        print(f"{name:8} {text}")


if __name__ == "__main__":
    main()
