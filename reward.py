r"""Decide whether a model's final answer equals the reference: the reward of reinforcement learning on mathematics.

    extract (where is the answer) -> parse (what does it say) -> same (does it say what the truth says) -> 1.0 or 0.0

The rules of equality, in plain English:
 1. The answer is what stands in the last box; an empty or unclosed box is no answer, and prose does not fill it.
 2. Spelling does not matter: spaces, dollar signs, \left, \dfrac, doubled backslashes, a closing period, 1,000 for 1000.
 3. Exact numbers must be exactly equal: 1/2 = 0.5 = 50%, but 0.33 is not 1/3 and 857499 is not 857500.
 4. Only a truth that is itself a rounded decimal (three digits or more) can be met by rounding: 1.41 by \sqrt2, or by 1.414.
 5. Expressions are equal when they are equal wherever both are defined; letters are case-sensitive, and by custom
    j, k, l, m, n stand for whole numbers. What divides by 0, or stands at a pole, has no value and equals nothing:
    0/sin π is not 0. A divisor that is only small, as 10^{-60}, is a divisor like any other.
 6. A name in front ("x =", "f(x) =", "a + b =", "x \in"), a unit, a degree, a percent sign or a base may be missing on one
    side. On both sides they must agree: 4% is not 40%, 5 dollars are not 5 cents, x = 2 is not y = 2.
 7. Order counts in tuples, vectors, matrices and ratios (2:4 = 1:2); it does not in sets and lists. A hedge ("540 or 542") is
    a list of two. Brackets count: (0, 1] is not (0, 1), {2, 3} is not (2, 3). A column vector is a tuple.
 8. Equations may differ by a non-zero factor, inequalities by a positive one; linear inequalities equal their intervals.
 9. A choice is its letter: (C), C. and \textbf{(C) } 12 agree. Words are compared without case.
10. Where a text has two readings (1,000 as a number or a list; \log to base e or 10), the one that suits the truth counts.

Where we deviate: expressions become our own small tuples, not sympy objects, and nothing is simplified. A sympy object computes
while it is built (2**10**10 hangs) and its simplifiers have no bound; instead, trees are evaluated at random points (fixed
seed) with mpmath, sympy's arithmetic, at 60 digits and as many more as the sizes of the numbers on the way ask for, so that
whole numbers and fractions are compared exactly. Every size is checked before it is computed; text is never run as code.
"""
import argparse
import itertools
import json
import math
import random
import re
import subprocess
import sys
import threading
import time
import unicodedata
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache

import mpmath

# Bounds, checked before computing. The longest truth of the study has 78 characters; the longest literal has 13 digits.
MAX_CHARS, MAX_TOKENS, MAX_DEPTH, MAX_ITEMS, MAX_NODES = 3000, 1500, 40, 200, 10_000
MAX_BRACES = 10_000    # in a box
MAX_DIGITS = 1000      # of a literal
MAX_BITS = 60_000      # of precision: 2022! has 19,283, 2008^{2006} has 22,008
SECONDS = 1.0          # of this thread's work on one comparison, so that a busy machine changes no reward


class Refused(Exception):
    """(verdict, message): the text is not mathematics that we know (unparsed), or a bound is reached (too_large, timeout)."""


class Undefined(Refused):
    """No value here: 0/0, or not a real number where reals are meant, or not a set of real numbers that we know."""


def fail(message: str, verdict: str = "unparsed"):
    raise (Undefined if verdict == "undefined" else Refused)(verdict, message)


# ---------------------------------------------------------------------------------------------------------- where is it

BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*\{|\s+([^\s{}$\\]+))")
BRACE = re.compile(r"\\.|[{}]", re.S)
HEADS = re.compile("####"), re.compile(r"\banswer\s+is\b:?|\bfinal answer\W{0,4}:", re.I)


def extract(text: str) -> str | None:
    r"""The final answer in `text`, or None: the last balanced \boxed{...} or \fbox{...} after the last </think>, else
    what follows ####, else the last "answer is ..." or "final answer: ...". An empty box, or one that is never closed
    when there is no other, is no answer. Linear in the text's length: five boxes are tried, and MAX_BRACES in each."""
    text = text[text.rfind("</think>") + 8:] if "</think>" in text else text
    boxes = deque(BOX.finditer(text), maxlen=5)
    for box in reversed(boxes):
        if box[1]:
            return box[1]
        depth = 1
        for brace in itertools.islice(BRACE.finditer(text, box.end()), MAX_BRACES):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                return text[box.end():brace.start()].strip() or None
    for head in HEADS if not boxes else ():
        end = max((match.end() for match in head.finditer(text)), default=len(text))
        if found := re.split(r"\.(?:\s|$)|\n", text[end:], maxsplit=1)[0].strip("* \t"):
            return found.strip() or None
    return None


# ------------------------------------------------------------------------------------------------------------- spelling

SIGNS = {  # the one sign that we use: its other spellings
    "-": "− – —", "*": r"× · ∙ ⋅ \cdot \times \ast", "/": r"÷ ⁄ ∕ \div", "^": "**", "±": r"\pm", "∓": r"\mp",
    "=": r"== ∈ \in ≡ \equiv", "<": r"\lt", ">": r"\gt", "≤": r"⩽ <= \le \leq \leqslant", "≥": r"⩾ >= \ge \geq \geqslant",
    "≠": r"!= \ne \neq", "≈": r"\approx \simeq", "∪": r"\cup", "∩": r"\cap",
    "∖": r"\setminus \backslash", "|": r"\| \vert \lvert \rvert \Vert", "∣": r"\mid", ":": r"\colon", r"\{": r"\lbrace",
    r"\}": r"\rbrace", "[": r"\lbrack", "]": r"\rbrack", "(": r"\lparen \langle", ")": r"\rparen \rangle",
    " and ": r"\land \wedge", " or ": r"\lor \vee", "⌊": r"\lfloor", "⌋": r"\rfloor", "⌈": r"\lceil", "⌉": r"\rceil",
    "'": r"′ ’ \prime", "%": r"\% \percent", "…": r"... \ldots \cdots \dots",
    "°": r"º ∘ \circ \degree", "π": r"\pi", "∞": r"\infty", "∅": r"\emptyset \varnothing", "√": r"\sqrt", "ℝ": r"\R",
    "$": r"\$", "€": r"\euro", "£": r"\pound", "¶": r"\\"}
GREEK = dict(zip("""alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi
    omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell""".split(), "αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΠΣΦΨΩℓ", strict=True))
FUNCTIONS = {name: name for name in "sin cos tan cot sec csc sinh cosh tanh coth exp log lg ln max min cis gcd lcm".split()}
FUNCTIONS |= {f"{arc}{name}": f"a{name}" for arc in ("arc", "a") for name in "sin cos tan cot sec csc sinh cosh tanh".split()}
FUNCTIONS |= {"tg": "tan", "ctg": "cot", "arctg": "atan", "cosec": "csc"}
DECORATIONS = """angle triangle overline bar widehat overrightarrow underline measuredangle vec hat tilde mathcal mathbb
    dot""".split()
NAMES = {  # the tokens of commands, and of words outside \text
    **{name: ("fn", function) for name, function in FUNCTIONS.items()}, **{name: ("cmd", name) for name in DECORATIONS},
    **{name: ("sym", letter) for name, letter in GREEK.items() if len(name) > 2},
    "frac": ("cmd", "frac"), "binom": ("cmd", "binom"), "mod": ("mod", None), "pmod": ("mod", None), "bmod": ("mod", None),
    "and": ("and", None), "or": ("or", None), "percent": ("%", None), "degree": ("°", None), "degrees": ("°", None),
    "per": ("/", None), "pi": ("π", None), "sqrt": ("√", None), "infty": ("∞", None), "infinity": ("∞", None)}
STYLE = "text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mathit|mathtt|mbox|hbox|boldsymbol|bm|emph"
SPELLED = {spelling: sign for sign, group in SIGNS.items() for spelling in group.split()}
SPELLED |= {f"\\{name}": letter for name, letter in GREEK.items()}
COMMANDS = {*NAMES, *STYLE.split("|"), *"begin end int sum prod lim".split(), *(s[1:] for s in SPELLED if s[1:].isalpha())}
SPELLING = re.compile(rf"\\\\|\\(?:{'|'.join(sorted(COMMANDS, key=len, reverse=True))})|\\[a-zA-Z]+"     # \pi in \piR, a slip
                      r"|\\[%$|]|<=|>=|!=|==|\*\*|\.\.\.|[^\x00-\x7f]")
SCRIPTS = str.maketrans({"½": "\\frac12", "¼": "\\frac14", "¾": "\\frac34", "⅓": "\\frac13", "⅔": "\\frac23", "ℝ": "\\R ",
                         "⁻": "^{-}", "ⁿ": "^{n}", **{c: f"^{{{i}}}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
                         **{c: f"_{{{i}}}" for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}})
WRAP = re.compile(rf"\\(?:{STYLE})\s*\{{([^{{}}]*)\}}")
BASE = {name: n for n, name in enumerate("two three four five six seven eight nine ten eleven twelve".split(), start=2)}
POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9}
CLEAN = [(re.compile(pattern), new) for pattern, new in (
    (r"\\\\\s*\[-?[\d.]+\s*(?:pt|em|ex|mm)\]", r"\\\\"),                        # \\[2pt] between rows
    (r"\\(?:boxed|fbox)\s*(?=\{)|\\(?:displaystyle|textstyle|[lL]arge|limits|nolimits|rm|bf|it)(?![a-zA-Z])", ""),
    (r"\\(?:begin|end)\s*\{(?:cases|aligned|gathered)\}|&(?=\s*=)", ""),        # lines: a list
    (r"\\(?:left|right|middle|[bB]igg?[lr]?)(?![a-zA-Z])\s*\.?", ""),
    (r"(?<!\\)\\[()\[\]]|(?<!\\)\$", " "),                                      # \( \) \[ \] $
    (r"(?<=\d)\s*(?:\{,\}|,\\!|\\!,|\{,\\!\})\s*(?=\d{3})", ""),                # 1{,}000 and 3,\!250
    (r"(?<!\\)\\[!,;:> ]|~|\\[hv]space\*?\{[^{}]*\}|\\(?:thin|med|thick)space|\\phantom\{[^{}]*\}", " "),
    (r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])", lambda run: run[0].replace(" ", "")), (r"\\q?quad", " "),       # 1 000
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"), (r"\\[dt]binom", r"\\binom"), (r"\\operatorname\*?\s*\{([a-zA-Z]+)\}", r"\\\1 "),
    (r"\\var(?=[a-mo-z])", r"\\"), (r"\\mathbb\s*(?:R|\{R\})", r"\\R "), (r"([\])}])\s*U\s*(?=[\[(\\])", r"\1\\cup "),
    (r"\(\s*(?:\\[bp]?mod\b|\\(?:text|mathrm)\{\s*mod\s*\}|mod\b)\s*\{?([^(){}]*)\}?\s*\)", r"\\pmod{\1}"),     # (mod 4)
    (r"\^\s*(?:\\circ(?![a-zA-Z])|\{\s*\\circ\s*\})", "°"), (r"\^\s*(?:\\prime|\{\s*\\prime\s*\})", "'"),
    (r"° *(?:\\(?:text|mathrm) *\{ *)?([CF])\b *\}?", r" \\text{ degree\1}"),                        # 77° F
    (rf"(?<=\d) *_ *\{{? *(?:\\(?:{STYLE}) *\{{)? *({'|'.join(BASE)}) *\}}{{0,2}}", lambda found: f"_{BASE[found[1]]} "),
    (r"(?<![a-zA-Z\\])([A-Zf-h]) ?\^ ?\{? ?-1 ?\}? ?(?=[(=])", r"\1_{-}"),                    # the inverse f^{-1}(x), A^{-1}
    (rf"(?<=[\d}})]) *(\\(?:{STYLE}) *\{{)? *((?i:hundred|thousand|million|billion))\b",
     lambda found: rf"\cdot 10^{POWERS[found[2].lower()]} {found[1] or ''}"),
    (r"(frac|binom|log_)\s*(\d)(?=\s*[\d{])", r"\1{\2}"), (r"((?:frac|binom)\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),     # \frac12
    (r"(?<=\d) (\d+)/(\d+)", r"\\frac{\1}{\2}"),                       # 1 3/4 as 1\frac34, and that as 1 + 3/4
    (r"(?<![\w^_.)}\]/])(\d+) ?\\frac *\{ *(\d+) *\} *\{ *(\d+) *\}",
     lambda found: "({}+{}/{})".format(*found.groups()) if int(found[2]) < int(found[3]) else found[0]),
    (r"\{([^{}]*)\\(?:over|(choose))(?![a-z])([^{}]*)\}", lambda m: rf"\{'binom' if m[2] else 'frac'}{{{m[1]}}}{{{m[3]}}}"),
    (r"(\.\d{0,9}?)(\d{1,9}?)\2+ ?(?:\.{3}|\\[lc]?dots)(?! *[+,])", r"\1\\overline{\2}"),    # 0.333... goes on
    (r"(?:[,;] *\(?|\() *([j-n]) *\\in *(?:\\mathbb *)?\{?[ZN]\}? *\)?$",
     lambda found: found[0] if found[1] not in found.string[:found.start()] else ""),                       # k \in Z, by custom
    (r"\\(?:text|mbox|mathrm)\s*\{\s*(?:for|where)\b(?=.*(?:\\in\b|integer|all|any|every|some|constant|real))"
     r"(?!.*(?:[,;]|\band\b|\bor\b)).*", ""),
    (r"\b([ap])\.\s?m\.?(?![a-z])", r"\1m"), (r"\b(?:square|sq\.?)\s(\w+)", r"\1^2"), (r"\bcubic\s(\w+)", r"\1^3"))]


@lru_cache(8192)
def clean(text: str) -> str:
    r"""One spelling for what has many: unicode, doubled backslashes, spacing, math delimiters, \left, a closing period."""
    text = unicodedata.normalize("NFKC", text.translate(SCRIPTS)).strip()
    if "\\\\" in text and ("\\begin" not in text or not re.search(r"(?<!\\)\\(?!\\)", text)):
        text = re.sub(r"(?<!\\)(?:\\\\)+(?!\\)", lambda run: run[0][::2], text)     # all are doubled, as in one truth in nine
    for pattern, new in CLEAN:
        text = pattern.sub(new, text)
    text = SPELLING.sub(lambda found: SPELLED.get(found[0]) or found[0] + " " * found[0][-1].isalpha(), text)
    return re.sub(r"\s+", " ", re.sub(r"[\s.,;]+$", "", text)).strip()


def plain(text: str) -> str:
    r"""The cleaned text without \text and other styles."""
    return re.sub(r"[\s.,;]+$", "", WRAP.sub(r"\1", WRAP.sub(r"\1", clean(text))).replace("{}", "")).strip()


# ------------------------------------------------------------------------------------------------------------- tokens

UNITS = {form: group.split()[0] for group in """cm centimeter centimetre|m meter metre|km kilometer kilometre|mm millimeter
    |in inch inche|ft foot feet|yd yard|mi mile|g gram|kg kilogram|mg milligram|lb pound|oz ounce|s sec second|min minute
    |h hr hour|day|week|month|year|$ dollar usd|€ euro|£|cent|mph|kph|l liter litre|ml|gallon|unit|acre|rad radian|hz
    |point|people|person|way|time|am|pm|solution|term|digit|sqft|integer|prime|side|number""".split("|")
         for name in group.split() for form in (name, name + "s")}
NOT_UNITS = """not no but is are was isn wrong incorrect maybe possibly perhaps roughly about approximately if unless than more
    less except excluded without plus minus over undefined none mod base when where with then also through versus at below above
    squared cubed factorial dozen half halves third thirds fourths fifths sixths eighths tenth tenths hundredths trillion
    hundred thousand million billion cannot never guess otherwise doubled remainder out""".split()

TOKEN = re.compile(rf"""
    (?P<num>(?:\d+\.?\d*|\.\d+|\.(?=\\overline))(?:(?:\\overline|\\bar|\\dot)\s*(?:\{{\d+\}}|\d)
        |(?<=\.)\(\d+\)|[eE][+-]?\d+(?![a-zA-Z\d])|\s?_\s?(?:\d+|\{{\d+\}}))?)
    |\\(?P<style>{STYLE})\s*\{{(?P<text>[^{{}}]*)\}}|\\(?P<edge>begin|end)\s*\{{(?P<name>[a-zA-Z]+)\*?\}}(?:\{{[lcr|]*\}})?
    |\\(?P<cmd>[a-zA-Z]+)|(?P<run>[a-zA-Z]+)|(?P<sign>\\[{{}}]|\S)|\s+""", re.X)


def tokens(text: str, words: bool = False, found: list | None = None) -> list[tuple[str, object]]:
    r"""`text` as (kind, value) pairs: num (literal), sym, fn, cmd, word, begin, end, or a sign and None. In `words` (the inside
    of \text{}) a run of letters is a word; outside it is a product of letters unless it has a name or is a quantity's unit."""
    found = [] if found is None else found
    for match in TOKEN.finditer(text):
        kind, value = match.lastgroup, match[match.lastgroup or 0]
        if kind == "text":
            tokens(value, match["style"] not in ("mathbf", "boldsymbol", "bm", "mathit"), found)
        elif kind in ("name", "num"):
            found.append((match["edge"] or kind, value))
        elif kind == "cmd" and value not in STYLE.split("|"):
            found.append(NAMES.get(value) or fail(f"unknown command \\{value}"))
        elif kind == "run":
            low, spaced = value.lower(), text[match.start() - 1:match.start()] == " " and len(value) > 4
            quantity = found and found[-1][0] in ("num", ")", "}", "word", "°", "!", *CURRENCY) and (words or len(value) > 1)
            if quantity and (low in UNITS or (spaced and low not in NAMES)):
                found.append(("word", value))
            elif name := NAMES.get(value) or (len(value) > 1 and NAMES.get(low)):
                found.append(name)
            else:
                found += [("word", value)] if words and len(value) > 1 else [("sym", letter) for letter in value]
        elif kind == "sign" and not (words and value == "."):
            found.append(("sym", value) if value in GREEK.values() else (value, None))
        if len(found) > MAX_TOKENS:
            fail(f"more than {MAX_TOKENS} tokens", "too_large")
    return found


# ------------------------------------------------------------------------------------------------------------- parsing
# A tree is a tuple: ("num", Fraction, decimal places or None), ("sym", name), ("const", π|e|i|∞), ("R", "ℝ"), ("text", words),
# ("+" | "*", ...), ("/" | "^", a, b), ("fn", name, ...), ("mark", unit, x), ("∪" | "∩" | "∖", ...), ("=", ...), ("ratio", ...),
# ("<" | "≤" | "∣", a, b), ("mod", relation, modulus), ("&", ...), and three collections, whose items follow what
# joins them: ("seq", brackets, ...), ("set", "{}", ...), ("list", "," | "and" | "or" | "<" | "∪", ...).

def num(value, places=None):
    return ("num", Fraction(value), places)


MINUS, INFINITY, BASES = num(-1), ("const", "∞"), {"ln": ("const", "e"), "lg": num(10)}
JOINERS, RELATIONS, SIGNED, CURRENCY = (",", ";", "¶", "and", "or"), tuple("=≠<≤>≥≈∣"), ("+", "-"), ("$", "€", "£")
RELATED = {">": lambda a, b: ("<", b, a), "≥": lambda a, b: ("≤", b, a),
           "≠": lambda a, b: ("list", "or", ("<", a, b), ("<", b, a))}
LEVELS = {sign: level for level, signs in enumerate(("&", "∪∩∖", ":", SIGNED, "*/"), start=1) for sign in signs}
SUM, PRODUCT, KINDS = LEVELS["+"], LEVELS["*"], {":": "ratio", "-": "+"}
CLOSING = {"(": ")]", "[": "])", "{": "}", "\\{": ("\\}",), "⌊": "⌋", "⌈": "⌉", "|": "|"}
ROUNDING = {"|": "abs", "⌊": "floor", "⌈": "ceil"}
CONSTANTS = {"π": ("const", "π"), "∞": INFINITY, "ℝ": ("R", "ℝ"), "∅": ("set", "{}"), "…": ("sym", "…")}
FACTORS = ("num", "sym", "fn", "cmd", "begin", "(", "[", "{", "\\{", "⌊", "⌈", "√", *CURRENCY, *CONSTANTS)


def over(a, b):
    return num(a[1] / b[1]) if a[0] == b[0] == "num" and b[1] else ("/", a, b)


def seq(items):
    return ("seq", "()", *items)


def bounded(tree):
    """The tree, which holds copies of its parts: nested, they could double at every level."""
    nodes, stack = 0, [tree]
    while stack:
        part = stack.pop()
        stack += part if isinstance(part, tuple) else ()
        nodes += 1
        if nodes > MAX_NODES:
            fail(f"more than {MAX_NODES} parts when written out", "too_large")
    return tree


def conditions(parts):
    """Inequalities that hold together, less those that infinity always meets."""
    parts = [part for part in parts if part[1] != ("*", MINUS, INFINITY) and part[2] != INFINITY]
    return parts[0] if len(parts) == 1 else ("list", "<", *parts)


def multiply(a, b):
    """A product of two trees; vectors and matrices are multiplied out here, since their product is not a number's."""
    if a == MINUS and b[0] == "num":
        return ("num", -b[1], b[2])
    if a[0] != b[0] and "seq" in (a[0], b[0]):
        scalar, vector = (a, b) if b[0] == "seq" else (b, a)
        return (*vector[:2], *(multiply(scalar, x) for x in vector[2:]))
    if a[0] == b[0] == "seq":
        left, right = ([x[2:] if x[0] == "seq" else (x,) for x in matrix[2:]] for matrix in (a, b))
        if any(len(row) != len(right) for row in left):
            fail("matrices that do not fit")
        rows = [[("+", *map(multiply, row, column)) for column in zip(*right, strict=False)] for row in left]
        return bounded(seq(seq(row) if len(row) > 1 else row[0] for row in rows))
    return (*a, b) if a[0] == "*" else ("*", a, b)


def literal(text: str):
    r"""A number as written: 12, .5, 0.\overline{3}, 3.2e5, 204_5. Too large beyond MAX_DIGITS digits."""
    if "_" in text and len(text) <= MAX_DIGITS:
        digits, base = re.findall(r"[\d.]+", text)
        readable = digits.isdigit() and int(max(digits)) < int(base) <= 36
        return ("mark", f"_{base}", literal(digits)) if readable else fail(f"{digits} is no number in that base")
    written, _, period = re.sub(r"(?:\\[a-z]+\s*\{?|\()(\d+).*", r"#\1", text).partition("#")
    if len(text) > MAX_DIGITS or abs(int(written.lower().partition("e")[2] or 0)) > MAX_DIGITS:
        fail(f"the number {text[:20]} has more than {MAX_DIGITS} digits", "too_large")
    value, places = Fraction("0" + written), len(written.partition(".")[2])
    if period:
        return num(value + Fraction(int(period), 10**places * (10 ** len(period) - 1)))
    return num(value, places if places and "e" not in text.lower() else None)


class Parser:
    """Precedence climbing over the tokens: `expression` reads the signs of LEVELS, and `atom` what stands between them."""

    def __init__(self, text: str):
        self.found, self.at, self.depth, self.bars = [*tokens(text), ("the end", None), ("the end", None)], -1, 0, False
        self.step()

    def step(self):
        """Step over the next token: `kind` and `value` become those of the one after it."""
        self.at += 1
        self.kind, self.value = self.found[self.at]

    def eat(self, *kinds):
        """The next token's kind, and step over it, if it is one of `kinds`; else None."""
        if (kind := self.kind) not in kinds:
            return None
        self.step()
        return kind

    def need(self, *kinds):
        return self.eat(*kinds) or fail(f"expected {' or '.join(kinds)}, found {self.kind}")

    def listing(self):
        """a, b and c; a separator may be doubled or the last."""
        items, joiner = [self.relation()], ","
        while sign := self.eat(*JOINERS):
            joiner = sign if len(sign) > 1 else joiner
            if len(sign) > 1 or self.kind not in ("the end", "end", "}", ")", "\\}", *JOINERS):
                items.append(self.relation())
        if len(items) > MAX_ITEMS:
            fail(f"a list of more than {MAX_ITEMS}", "too_large")
        return items[0] if len(items) == 1 else ("list", joiner, *items)

    def relation(self):
        r"""a = b = c, or a < b ≤ c (mod m) as pairs, the smaller side first. "= 5" is 5, and \sqrt2 ≈ 1.41 is \sqrt2."""
        self.eat("=", "≈")
        sides, signs = [self.expression()], []
        while sign := self.eat(*RELATIONS):
            side = self.expression()
            if sign != "≈" or named(sides[-1]):
                sides, signs = [*sides, side], [*signs, sign.replace("≈", "=")]
        modulus = self.argument() if self.eat("mod") else None
        if modulus and sides[-1][0] == modulus[0] == "num" and modulus[1]:
            sides[-1] = num(sides[-1][1] % modulus[1])                # p = 5 (mod 4) is p = 1 (mod 4)
        tree = ("=", *sides) if signs else sides[0]
        if {*signs} - {"="}:
            tree = bounded(conditions([RELATED[s](a, b) if s in RELATED else (s, a, b)
                                       for s, a, b in zip(signs, sides, sides[1:], strict=False)]))
        return ("mod", tree, modulus) if modulus else tree

    def expression(self, level=0):
        """What binds tighter than `level`, after any signs before it. 1/2x is (1/2)x, as in one line of print."""
        signs = ""
        while sign := self.eat(*SIGNED):
            signs += sign
        tree = self.expression(max(level, SUM)) if signs else self.power()
        tree = multiply(MINUS, tree) if signs.count("-") % 2 else tree
        while True:
            sign = self.kind
            if LEVELS.get(sign, 0) > level:
                if sign not in SIGNED:                                # a term is read with its sign
                    self.step()
                term, kind = self.expression(LEVELS[sign]), KINDS.get(sign, sign)
                if sign in "*/":
                    tree = multiply(tree, term) if sign == "*" else over(tree, term)
                else:
                    tree = (*tree, term) if tree[0] == kind else (kind, tree, term)
            elif level < SUM - 1 and sign in ("word", *CURRENCY):     # 11:47 a.m.
                tree = self.unit(tree)
            elif level < PRODUCT and self.factor():
                if tree[0] == "mark" and tree[1][0].isalpha():        # 2 ft 6 in, 3 to 1, 5 of 7
                    fail("a number behind a unit")
                tree = multiply(tree, self.power())
            else:
                return tree

    def factor(self):
        """Whether a factor may begin here; two numbers side by side are no product."""
        beside = self.kind == "num" and self.found[self.at - 1][0] == "num"
        return (self.kind in FACTORS and not beside) or (self.kind == "|" and not self.bars)

    def unit(self, tree):
        """5 cm^2, 3 feet/s, 12 apples: the words after a quantity are its unit."""
        found = []
        while self.kind in ("word", *CURRENCY) or (found and (
                self.kind == "^" or (self.kind in "/*" and self.found[self.at + 1][0] in ("word", "sym")))):
            sign = self.eat("^", "/", "*") or ""
            name = str(self.argument()[1] if sign == "^" else self.value or self.kind).lower()
            if sign != "^":
                self.step()
            if name in NOT_UNITS:
                fail(f"the word {name!r} is no unit")
            found.append(sign + UNITS.get(name, name.removesuffix("s")))
        return ("mark", " ".join(found), tree)

    def power(self):
        """x^2, 5!, 60°, 50%"""
        tree = self.atom()
        while sign := self.eat("°", "^", "%", "!"):
            if sign == "^":
                tree = ("^", tree, self.argument())
            elif sign == "!":
                tree = ("fn", "fac2" if self.eat("!") else "factorial", tree)
            else:
                tree = ("mark", sign, tree)
        return tree

    def argument(self):
        """What a command or sign applies to: a group or one token."""
        return self.expression(PRODUCT) if self.kind in SIGNED else self.atom()

    def atom(self):
        """A number, a name, or something in brackets."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            fail(f"nested deeper than {MAX_DEPTH}", "too_large")
        kind, value = self.kind, self.value
        self.step()
        if kind in CLOSING:
            tree = self.bracket(kind)
        elif kind in CURRENCY:
            tree = ("mark", kind, self.power())
        elif kind == "word":
            while self.kind == "word":
                value = f"{value} {self.value}"
                self.step()
            tree = ("text", value.lower())
        elif kind == "√":
            index = self.atom() if self.kind == "[" else num(2)
            tree = ("^", self.argument(), over(num(1), index))
        else:
            read = {"num": literal, "sym": self.symbol, "fn": self.function, "cmd": self.command,
                    "begin": self.matrix}.get(kind)
            tree = read(value) if read else CONSTANTS.get(kind) or fail(f"cannot read {kind} here")
        self.depth -= 1
        return tree

    def symbol(self, name):
        """x, x_1, f(x), and the constants e and i. What f does is not known: f(x) is a name like any other."""
        start = self.at
        if self.eat("_"):
            self.skip()
        while self.eat("'"):
            pass
        ahead = "".join(kind for kind, _ in self.found[self.at:self.at + 8])
        if (ahead[:1] == "(" and name in "fghFGH") or re.match(r"\((sym,)*sym\)=", ahead):     # P(x) = ...
            self.atom()
        name += "".join(str(value or kind) for kind, value in self.found[start:self.at] if kind not in "{}")
        return ("const" if name in ("e", "i") else "sym", name)

    def skip(self):
        """Step over a token or a group, whatever is in it: x_{\\max}."""
        depth = int(self.kind == "{")
        self.step() if self.kind != "the end" else fail("nothing behind _")
        while depth and self.kind != "the end":
            depth += {"{": 1, "}": -1}.get(self.kind, 0)
            self.step()

    def bracket(self, opening):
        """(a, b], {a, b}, |a|, or a group."""
        if opening == "\\{" and self.eat("\\}"):
            return ("set", "{}")
        outer, self.bars = self.bars, opening == "|"
        tree = self.listing()
        self.bars, closing = outer, self.need(*CLOSING[opening])
        if opening in ROUNDING:
            return ("fn", ROUNDING[opening], tree)
        items = tree[2:] if tree[0] == "list" and tree[1] != "<" else (tree,)
        if opening == "\\{":
            return ("set", "{}", *items)
        if opening == "{" or (len(items) == 1 and opening + closing in ("()", "[]")):
            return tree
        return ("seq", opening + closing, *items) if len(items) > 1 else fail("brackets do not match")

    def function(self, name):
        r"""\sin^2 x, \log_2 8, \ln|x|, \sin 2x\cos x: without brackets, the argument is the product up to the next function."""
        scripts = {}
        while sign := self.eat("^", "_"):
            scripts[sign] = self.argument()
        power, base = scripts.get("^"), scripts.get("_") or BASES.get(name)
        if power == MINUS and "a" + name in FUNCTIONS.values():
            name, power = "a" + name, None
        if self.kind in ("(", "{"):
            tree = self.atom()
        else:
            tree = self.power()
            while self.factor() and self.kind not in ("fn", "[", *CURRENCY):
                tree = multiply(tree, self.power())
        tree = ("fn", "log", tree, base) if base else ("fn", name, *(tree[2:] if tree[0] == "seq" else (tree,)))
        return ("^", tree, power) if power else tree

    def command(self, name):
        tree = self.argument()
        if name in ("frac", "binom"):
            return over(tree, self.argument()) if name == "frac" else ("fn", "binomial", tree, self.argument())
        return ("sym", f"{name} {tree[1]}") if tree[0] == "sym" and name != "vec" else tree     # \overline{AB} is AB

    def matrix(self, name):
        r"""\begin{pmatrix} a & b \\ c & d \end{pmatrix} is a tuple of rows, a column a tuple."""
        rows = self.listing()
        self.need("end")
        rows = [row[1:] if row[0] == "&" else (row,) for row in (rows[2:] if rows[0] == "list" else (rows,))]
        if len({len(row) for row in rows}) != 1:
            fail(f"ragged rows in {name}")
        return seq(seq(row) if len(row) > 1 else row[0] for row in rows)


PLUS_MINUS = str.maketrans("±∓", "+-"), str.maketrans("±∓", "-+")
BUILDER = re.compile(r"\\\{\s*\w(?:\s*=\s*ℝ)?\s*[|∣:]((?:[^{}]|\{[^{}]*\})*)\\\}")        # {x | x > 3} is read as x > 3


def either(plus, minus):
    """Two values, x = two values, or a set in which some items have two."""
    if plus[0] == "=" and plus[:-1] == minus[:-1]:
        return (*plus[:-1], either(plus[-1], minus[-1]))
    if plus[0] == minus[0] and plus[0] in ("list", "set") and plus[1] != "<":
        return tuple(dict.fromkeys((*plus, *minus[2:])))
    return ("list", "or", plus, minus)


@lru_cache(8192)
def parse(text: str):
    """The tree of a cleaned text. Raises Refused."""
    if "±" in text or "∓" in text:
        both = [parse(text.translate(signs)) for signs in PLUS_MINUS]
        return ("list", "and", *both) if "≠" in text or "∖" in text else either(*both)         # x ≠ ±1 is neither
    parser = Parser(BUILDER.sub(r"{\1}", text))
    tree = parser.listing()
    parser.need("the end")
    return tree


# ------------------------------------------------------------------------------------------------------------- comparing

def leaves(tree, kind: str) -> set[str]:
    """The names of all leaves of one kind: the free letters ("sym"), the constants ("const")."""
    if not isinstance(tree, tuple) or not tree:
        return set()
    return {tree[1]} if tree[0] == kind else set().union(*(leaves(part, kind) for part in tree))


def whole(mp, xs):
    return [int(x) if mp.isint(x) else fail("not whole", "undefined") for x in xs]


CALLS = {  # functions that mpmath has not, or not as we mean them; a rounding error must not decide a floor
    "abs": lambda mp, x: abs(x), "max": lambda mp, *xs: max(xs), "min": lambda mp, *xs: min(xs),
    "gcd": lambda mp, *xs: mp.mpf(math.gcd(*whole(mp, xs))), "lcm": lambda mp, *xs: mp.mpf(math.lcm(*whole(mp, xs))),
    "cis": lambda mp, x: mp.expj(x), "log": lambda mp, x, base: mp.log(x) / mp.log(base),
    "floor": lambda mp, x: mp.floor(x + mp.mpf(2) ** -100), "ceil": lambda mp, x: mp.ceil(x - mp.mpf(2) ** -100)}
LOCAL = threading.local()      # an mpmath context holds its precision: one for each thread
COLLECTIONS = ("seq", "set", "list")
SIMPLE = ("sym", "text", "fn", "seq")          # a side of an equation that can only be a name, unlike a + b


def named(tree) -> bool:
    """Whether a tree is a name rather than a value, with letters and no numbers: x, AB, f(2), |AB|, AB/CD, (x, y), sin A."""
    return bool(leaves(tree, "sym") | leaves(tree, "text")) and not leaves(tree, "num")


def interval(tree) -> bool:
    """Whether a tree is a set of real numbers in more than a list of them."""
    return tree[0] in ("R", "<", "≤", "∖", "∩") or (tree[0] == "list" and (tree[1] in "∪<" or any(map(interval, tree[2:]))))


def stated(tree) -> tuple:
    """The name, or None, and what is said of it: x and 3 in "x = 3" and "3 = x", x and 6/2 and 3 in "x = 6/2 = 3"."""
    sides = tree[1:] if tree[0] == "=" else (tree,)
    if len(sides) == 2 and named(sides[1]) and not leaves(sides[0], "sym"):
        sides = sides[::-1]
    if len(sides) > 1 and named(sides[0]) and (sides[0][0] in SIMPLE or not leaves(sides[-1], "sym")):
        return sides[0], sides[1:]                                    # ab = 6, but not ab = cd
    return None, () if len(sides) > 1 and leaves(sides[0], "sym") else sides


@lru_cache(8192)
def gathered(tree):
    """Equations that name several values as one: x = 1, x = 2 and x_1 = 1, x_2 = 2 and x = 1, 2 say that x is a list;
    x = 1, y = 2 and (y, x) = (2, 1) say what the pair (x, y) is, and so does x = y = 3."""
    if tree[0] == "∪":
        return ("list", *tree)
    names, values = [], []
    if tree[0] == "list" and len(tree) > 2:
        names = [x[1] if x[0] == "=" and len(x) == 3 and named(x[1]) and x[1][0] in SIMPLE else None for x in tree[2:]]
        values = [x[-1] if name else x for x, name in zip(tree[2:], names, strict=True)]
        names = names if any(names[1:]) else names[:1] * len(names)                    # x = 1, 2
        bases = {("sym", name[1].split("_")[0]) if name and name[0] == "sym" and name[1][0] in "rstxyz" else name
                 for name in names}
        if len(bases) == 1 and None not in bases:
            return ("=", *bases, ("list", tree[1], *values))
    elif tree[0] == "=" and len(tree) == 3 and tree[1][0] == tree[2][0] == "seq" and len(tree[1]) == len(tree[2]):
        names, values = tree[1][2:], tree[2][2:]
    elif tree[0] == "=" and len(tree) > 3 and all(x[0] == "sym" for x in tree[1:-1]):
        names, values = tree[1:-1], tree[-1:] * (len(tree) - 2)
    if not names or None in names or len({*names}) < len(names) or tree[1] == "or":
        return tree
    return ("=", *map(seq, zip(*sorted(zip(names, values, strict=True), key=repr), strict=True)))


class Comparer:
    """One comparison under one reading. `rule` is the last rule that was tried: the one that decided."""

    def __init__(self, deadline: float):
        if not hasattr(LOCAL, "mp"):
            LOCAL.mp = mpmath.MPContext()
        self.mp, self.deadline, self.rule = LOCAL.mp, deadline, ""

    def same(self, a, t) -> bool:
        """Whether two trees say the same: first what can be seen, then what needs values."""
        self.in_time()
        a, t = gathered(a), gathered(t)
        kinds, (left, right) = {a[0], t[0]}, (x[2:] if x[0] in COLLECTIONS else (x,) for x in (a, t))
        if a == t:
            self.rule = "the same reading"
            return True
        if "=" in kinds:
            return self.equations(a, t)
        if "mark" in kinds and not kinds & {"list", "set"}:
            return self.marked(a, t)
        if "ratio" in kinds:
            return self.ratios(a, t)
        if (interval(a) or interval(t)) and len(leaves(a, "sym") | leaves(t, "sym")) < 2:
            try:
                return self.same_set(a, t)
            except Undefined:
                pass
        if a[0] == t[0] and (a[0] == "mod" or a[0] in "∣∩∖"):
            self.rule = "side by side"
            return self.in_order(a[1:], t[1:])
        if kinds == {"seq"}:
            self.rule = "in order, with brackets"
            point = len(right) > 2 and {a[1], t[1]} == {"()", "[]"}   # three numbers are no interval
            return (a[1] == t[1] or point) and self.in_order(left, right)
        if kinds == {"seq", "list"} and "()" in (a[1], t[1]) and "or" not in (a[1], t[1]) and self.in_order(left, right):
            return True
        if kinds & {"set", "list"} and "seq" not in kinds and (len(left) == len(right) > 0 or kinds == {"set"}):
            self.rule = "without order"
            joiners = {a[1], t[1]}                                    # x > 1 and x < 2 is not x > 1 or x < 2
            crossed = joiners & {"<", "and"} and joiners & {"or", "∪"} and {"<", "≤"} & {x[0] for x in (*left, *right)}
            crossed = crossed or (kinds == {"set", "list"} and "∪" in joiners)
            if not crossed and self.without_order(left, right, "set" in kinds):
                return True
        if a[0] == t[0] and a[0] in "<≤":
            self.rule = "inequalities up to a factor"
            return self.factor(a[1:], t[1:]) > 0
        try:
            return self.equal(a, t) or self.rounds(a, t)
        except Undefined:
            return False

    def same_set(self, a, t) -> bool:
        """Sets of real numbers: the same members among all their ends, between them and beyond."""
        self.rule = "the same set of real numbers"
        (ends, one), (more, other) = self.region(a), self.region(t)
        return all(one(x) == other(x) for x in self.probes(ends + more))

    def probes(self, ends: list) -> list:
        ends = sorted(x for x in ends if self.mp.isfinite(x)) or [self.mp.mpf(0)]
        return [ends[0] - 1, *ends, ends[-1] + 1, *((x + y) / 2 for x, y in itertools.pairwise(ends) if not self.close(x, y))]

    def close(self, x, y) -> bool:
        self.in_time()
        return x == y or (self.mp.isfinite(y) and abs(x - y) <= (1 + abs(x) + abs(y)) * self.mp.mpf(2) ** -120)

    def region(self, tree):
        """The ends at which membership may change, and whether a number is a member. Undefined for what is no such set."""
        kind, parts = tree[0], tree[2:] if tree[0] in COLLECTIONS else tree[1:]
        if kind == "R":
            return [], lambda x: True
        if kind == "set":
            ends = [self.at(x, real=True)[0] for x in parts]
            return ends, lambda x: any(self.close(x, end) for end in ends)
        if kind == "seq" and len(parts) == 2:
            low, high = self.at(*parts, real=True)
            return ([low, high] if low < high else fail("no interval", "undefined"),
                    lambda x: (tree[1][0] == "[" if self.close(x, low) else tree[1][1] == "]" if self.close(x, high)
                               else low < x < high))
        if kind == "=" and len(parts) == 2 and parts[0][0] == "sym" and (parts[1][0] in ("seq", "set") or interval(parts[1])):
            return self.region(parts[1])                              # x in (0, 5)
        if kind in "<≤=" and len(parts) == 2 and len(names := leaves(tree, "sym")) == 1:
            first, second, far = (self.at(("+", parts[0], ("*", MINUS, parts[1])), real=True,
                                          point=dict.fromkeys(names, num(x)))[0] for x in (0, 10**8, -73 * 10**7))
            slope = (second - first) / 10**8                          # far apart, since |x - 5| bends
            if not slope or not self.close(far - first, slope * (-73 * 10**7)):
                fail("not linear", "undefined")
            return [-first / slope], lambda x: kind in "≤=" if self.close(x, -first / slope) else kind != "=" and (
                slope * x + first < 0)
        joiner = tree[1] if kind == "list" else kind
        if joiner not in ("∪", "∩", "∖", "<", ",", "and", "or") or (            # (1,4), (2,3) are points
                joiner not in "∪∩∖" and "seq" in {x[0] for x in parts} and not any(map(interval, parts))):
            fail("no set", "undefined")
        ends, members = zip(*map(self.region, parts), strict=True) if parts else ((), ())
        ends = [x for some in ends for x in some]
        if joiner == "∖":
            return ends, lambda x: members[0](x) and not members[1](x)
        both = joiner in ("∩", "<", "and") or (joiner == "," and any(all(m(x) for m in members) for x in self.probes(ends)))
        return ends, lambda x: (all if both else any)(member(x) for member in members)     # x < 1, x > 3 cannot both hold

    def in_order(self, a, t) -> bool:
        return len(a) == len(t) and all(self.same(x, y) for x, y in zip(a, t, strict=True))

    def without_order(self, a, t, repeated) -> bool:
        """Each has its like on the other side; one for each, if an item `repeated` is not the item once."""
        rest = list(t)
        for x in a:
            like = next((y for y in (t if repeated else rest) if self.same(x, y)), None)
            if like is None:
                return False
            if like in rest:
                rest.remove(like)
        return not rest or (repeated and all(any(self.same(x, y) for x in a) for y in rest))

    def equations(self, a, t) -> bool:
        """Where a side is an equation: both are, up to a factor; or they say the same of a name, missing on one side or not."""
        self.rule = "equations up to a factor"
        if a[0] == t[0] and len(a) == len(t) == 3 and self.factor(a[1:], t[1:]):
            return True
        (name, values), (due, others) = stated(a), stated(t)
        applied = ("sym", "y") in (name, due) and any(x and x[0] == "sym" and x[1].endswith(")") for x in (name, due))
        if not (name is None or due is None or applied or self.same(name, due)):        # applied: y = x^2, f(x) = x^2
            return False
        return values != () != others and all(self.same(x, y) for x in values for y in others)

    def marked(self, a, t) -> bool:
        """Rule 6: a percent, degree, unit or base may be missing on one side; on both sides they must agree."""
        self.rule = "the units"
        units, bare = zip(*(x[1:] if x[0] == "mark" else ("", x) for x in (a, t)), strict=True)
        if all(unit in ("", "%", "°") or unit[0] == "_" for unit in units) and self.equal(a, t):
            return True                                               # they say what the number is
        return (units[0] == units[1] or not all(units)) and self.same(*bare)

    def ratios(self, a, t) -> bool:
        self.rule = "ratios up to a factor"
        if a[0] == t[0]:
            return len(a) == len(t) and all(self.equal(over(x, a[1]), over(y, t[1])) for x, y in zip(a[2:], t[2:], strict=True))
        ratio, other = (a, t) if a[0] == "ratio" else (t, a)          # 3:2 is 3/2, written as a fraction
        fraction = other[0] == "/" or (other[0] == "num" and not other[2])
        return fraction and len(ratio) == 3 and self.equal(over(*ratio[1:]), other)

    # --- the values of trees at a point, precise enough to be compared: `error` bounds what rounding has done to them

    def at(self, *trees, point=None, real=False) -> list:
        """With letters from `point`, if `real` in real numbers throughout. Raises Undefined, Refused.

        60 digits decide most questions. Where they show no difference and the numbers met on the way are of very different
        sizes, as in 2^{2007} sqrt 3 - 1, all their bits are needed: those above the point once, those below it twice, since
        fractions p/q and r/s can be 1/qs apart.

        Then everything is computed once more with 100 bits more. A number that exists hardly changes. What is computed from
        a divisor or a pole that is 0 but for rounding, as 0/sin π and 0 tan 90°, changes entirely: it has no value."""
        self.point, self.real, bits = point or {}, real, 200
        values = self.computed(trees, bits)
        needed = bits + self.high - 2 * self.low
        if needed >= 250:
            near = self.near(values[0], values[-1])
            if near and needed >= MAX_BITS:
                fail("numbers too far apart to compare", "too_large")
            bits = needed if near else min(needed, 4000)              # all bits could only show what is seen: they differ
            self.computed(trees, bits)
        before = self.met
        values = self.computed(trees, bits + 100)
        if len(before) != len(self.met) or not all(map(self.steady, before, self.met)):
            fail("no value that more digits confirm", "undefined")
        return values

    def computed(self, trees, bits: int) -> list:
        """The values of the trees at `bits` of precision. All numbers on the way are kept in `met`, to 100 bits."""
        self.mp.prec, self.high, self.low, self.met = bits, 0, 0, []
        try:
            values = [self.value(tree) for tree in trees]
        except (ZeroDivisionError, ValueError, TypeError) as error:
            raise Undefined(str(error)) from None
        self.error = self.mp.mpf(2) ** (self.high + 40 - bits)
        return values

    def steady(self, before, value) -> bool:
        """Whether 100 bits more left a number on the way as it was: to 2^-60 of it, or of 1 if it is smaller.
        What is not a number (nan) never is: it equals nothing, and no bound holds for it."""
        self.in_time()
        return before == value or abs(before - value) <= (1 + abs(value)) * self.mp.mpf(2) ** -60

    def in_time(self):
        if time.thread_time() > self.deadline:
            fail(f"more than {SECONDS} s", "timeout")

    def near(self, a, b) -> bool:
        """Equality up to rounding errors."""
        return a == b or (self.mp.isfinite(a) and self.mp.isfinite(b) and abs(a - b) <= self.error)

    def value(self, tree):
        mp, kind = self.mp, tree[0]
        self.in_time()
        if kind == "num":
            self.low = min(self.low, -tree[1].denominator.bit_length())
            return self.noted(mp.mpf(tree[1].numerator) / tree[1].denominator)
        if kind == "sym":
            return self.value(self.point.get(tree[1]) or fail(f"no value for {tree[1]}", "undefined"))
        if kind == "const":
            return self.noted({"π": +mp.pi, "e": +mp.e, "i": mp.j, "∞": mp.inf}[tree[1]])
        if kind == "mark":
            if tree[1][0] == "_":
                return mp.mpf(int(str(tree[2][1]), int(tree[1][1:])))
            return self.value(tree[2]) * {"°": mp.pi / 180, "%": mp.mpf(1) / 100}.get(tree[1], 1)
        if kind not in ("+", "*", "/", "^", "fn"):
            fail(f"{kind} has no value", "undefined")
        parts = [self.value(x) for x in tree[1 + (kind == "fn"):]]
        if kind == "*" and any(map(mp.isinf, parts)):
            for part in parts:
                self.noted(1 / part)                                  # 0 times infinity has no value
        if kind in "+*":
            return self.noted(sum(parts) if kind == "+" else math.prod(parts))
        if kind == "/":
            self.noted(1 / parts[1])
            return self.noted(parts[0] / parts[1])
        return self.noted(self.power(*parts, tree[2]) if kind == "^" else self.call(tree[1], *parts))

    def noted(self, value):
        """The value, a real one if it is real, kept in `met`, with its size noted."""
        if self.mp.im(value) == 0:
            value = self.mp.re(value)
        elif self.real:
            fail("not real", "undefined")
        self.met.append(self.mp.fadd(value, 0, prec=100))
        if value and self.mp.isfinite(value):
            size = int(self.mp.mag(value))
            self.high, self.low = max(self.high, size), min(self.low, size)
        return value

    def power(self, base, power, tree):
        mp = self.mp
        if mp.isinf(base) or mp.isinf(power):
            fail("an infinite power", "undefined")
        if mp.re(power) <= mp.mpf(2) ** -60:
            self.noted(1 / base)                                      # 0 to the power 0 or less has no value
        if base and max(mp.mag(power), 0) + max(mp.mag(mp.mag(base) or 1), 0) > 60:
            fail("a power beyond the bound", "too_large")
        if not mp.im(base) and base < 0 and tree[0] == "num" and tree[1].denominator % 2:
            return (-1) ** (tree[1].numerator % 2) * mp.power(-base, power)      # (-8)^{1/3} = -2: the real root
        return mp.power(base, power)

    def call(self, name, *values):
        mp = self.mp
        gamma = name in ("factorial", "fac2", "binomial")
        large = any(mp.isfinite(v) and mp.mag(v) > (50 if gamma else 5000) for v in values)
        if (large and name not in ("log", "abs")) or (gamma and mp.prec > 1000 and not all(map(mp.isint, values))):
            fail(f"{name} of a number beyond the bound", "too_large")
        if name == "log":
            self.noted(1 / mp.log(values[1]))                         # 1 is no base, and 0 is none
        return CALLS[name](mp, *values) if name in CALLS else getattr(mp, name)(*values)        # a name of our tables

    # --- numbers and expressions

    def at_points(self, a, t):
        """The pairs of values at the fixed random points where both are defined: fractions, whole numbers for the letters that
        stand for them; all positive, all negative, then each of any sign, since |xy| is xy wherever xy > 0."""
        names, rng = sorted(leaves(a, "sym") | leaves(t, "sym")), random.Random(20)
        real = bool(names) and "i" not in leaves(a, "const") | leaves(t, "const")
        steps = {"floor", "ceil", "min", "max"} & (leaves(a, "fn") | leaves(t, "fn"))        # these show at whole numbers
        for trial in range(8 if names else 1):
            low, high, bottom = ((10, 400, 20), (10, 90, 147))[trial % 2]
            point = {}
            for i, name in enumerate(names):
                size = rng.randint(2, 30) if name[0] in "jklmn" else Fraction(2 * rng.randint(low, high) + 1, bottom)
                point[name] = num(size * ((1, 1, -1, -1)[trial] if trial < 4 else rng.choice((1, -1))))
                if steps and trial % 2:
                    point[name] = num((1000, 60, 64, 12)[(trial // 2 + i) % 4])
            try:
                yield self.at(a, t, point=point, real=real)
            except Undefined:
                continue

    def equal(self, a, t) -> bool:
        """Two expressions: as fractions if they are, else at all points where both are defined."""
        if a[0] == t[0] == "num":
            self.rule = "exact values"
            return a[1] == t[1]
        self.rule = "60 digits and more" + (" at random points" if leaves(a, "sym") | leaves(t, "sym") else "")
        points = self.at_points(a, t)
        first = next(points, None)
        return first is not None and all(self.near(*values) for values in itertools.chain([first], points))

    def rounds(self, a, t) -> bool:
        """Rule 4: the truth is a decimal of three digits or more, and the value, exact or a decimal of no fewer places, rounds
        to it: within half a unit of its last place."""
        if t[0] != "num" or not t[2] or abs(t[1]) * 10 ** t[2] < 100 or (a[0] == "num" and a[2] is not None and a[2] < t[2]):
            return False
        self.rule = "rounds to the truth's decimals"
        value, due = self.at(a, t, real=True)
        return abs(value - due) * 2 * 10 ** t[2] <= 1 + self.mp.mpf(2) ** -100

    def factor(self, a, t) -> int:
        """The sign of the constant by which the difference of the sides of `a` is that of `t` at all points, or 0."""
        ratios = []
        for left, right in self.at_points(*(("+", x, ("*", MINUS, y)) for x, y in (a, t))):
            if not self.near(left, 0) and not self.near(right, 0):
                ratios.append(left / right)
            elif not self.near(left, right):
                return 0
        constant = len(ratios) > 1 and all(abs(x - ratios[0]) <= abs(ratios[0]) * self.mp.mpf(2) ** -120 for x in ratios)
        return int(self.mp.sign(self.mp.re(ratios[0]))) if constant and not self.mp.im(ratios[0]) else 0


# ------------------------------------------------------------------------------------------------------------- deciding

@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one answer: `score` 1.0 or 0.0; `verdict` one of right, wrong, no_answer, unparsed, too_large,
    timeout, crashed; `answer` the extracted text or None; `rule` the rule that decided, for people."""
    score: float
    verdict: str
    answer: str | None
    rule: str


OTHER = (r"(?-i:.*(?<![a-zA-Z])\([A-J]\)|[^(]*[\s,][A-J][).](?!\S)"                 # (A) 12 or (B) 13 is no choice
         r"|(?!.*(?i:both|none|neither)).*(?:\bor|\band|,) [A-J]\s*$)")
CHOICE = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?(\()?([A-J])(?(1)\)|(?:[).]|:(?=\s)|$))"
                    r"(?![-(])(?!\s*(?:[,;&^_+*/=!<>]|and\b|or\b))\s*((?!" + OTHER + r").*)",
                    re.I | re.S)      # not (a)(b), (a)^2, A:B
THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
LOG = re.compile(r"log(?! ?_)")
WORDS = re.compile(r"(?=.*[a-zA-Z]{2})[a-zA-Z][a-zA-Z\s.,;'\"()-]*")


def quick(answer: str | None, truth: str) -> Verdict | None:
    """The verdict when it needs no algebra (no answer; the same string; two short integers), else None. Microseconds."""
    if answer is None:
        return Verdict(0.0, "no_answer", None, "no final answer found")
    a, t = (re.sub(r"(?<!\.)\. *$", "", text.strip("$ \n")) for text in (answer, truth))        # but 0.3... is not 0.3
    if a == t and (a or answer == truth):
        return Verdict(1.0, "right", answer, "the same string")
    if not all(re.fullmatch(r"-?\d{1,30}", text) for text in (a, t)):
        return None
    return Verdict(float(int(a) == int(t)), "right" if int(a) == int(t) else "wrong", answer, "two whole numbers")


def decide(answer: str, truth: str, choices: bool = True) -> tuple[str, str]:
    """(verdict, rule) for a bare answer. `choices`: a letter in front may be that of a choice."""
    if len(answer) > MAX_CHARS or len(truth) > MAX_CHARS:
        return "too_large", f"more than {MAX_CHARS} characters"
    left, right = plain(answer), plain(truth)
    if not re.search(r"[^\W_]|\\|[^ -~]", left):
        return "no_answer", "nothing in the box"
    a, t = (re.sub(r"(?<!\d) | (?!\d)", "", text) for text in (left, right))       # "1 2" is not "12"
    if a == t:
        return "right", "the same string after cleaning"
    chosen, due = CHOICE.fullmatch(left), None if re.fullmatch("[a-z]", right) else CHOICE.fullmatch(right)
    if not choices:
        chosen = due = None
    if due and chosen:
        return ("right" if chosen[2].upper() == due[2].upper() else "wrong"), "choices by letter"
    if (due or chosen) and (due or chosen)[3]:
        return decide(answer, due[3], False) if due else decide(chosen[3], truth, False)
    worded = [bool(re.search(r"\\(?:text|mbox|mathrm)", text)) for text in (answer, truth)]
    bare = (len(right) > 4 or right.lower() in ("yes", "no", "true", "even", "odd", "none")
            or (len(right) > 2 and left.isupper() == right.isupper()))        # abc is not ABC
    bare = bare and not re.search(r"[^a-zA-Z ]", left + right)
    if (any(worded) or bare) and WORDS.fullmatch(right) and WORDS.fullmatch(left):
        dropped = r"^(?:the|a|an)(?=\W)|s\b|[^a-z]" if any(worded) else " "
        a, t = (re.sub(dropped, "", text.lower()) for text in (left, right))
        if a == t or worded[1]:
            return "right" if a == t else "wrong", "words"
    return algebra(clean(answer), clean(truth))


def algebra(answer: str, truth: str) -> tuple[str, str]:
    """Parse and compare under each reading that the truth allows (rule 10)."""
    deadline, verdict, rule = time.thread_time() + SECONDS, "wrong", ""
    grouped, pair = [bool(THOUSANDS.search(text)) for text in (truth, answer)], re.match(r"\\?[\[({]", truth)
    commas = ["", ","] if any(grouped) else [","]
    if grouped[0] and (grouped[1] or pair):
        commas = [","] if pair else [""]                              # (1,234) is a pair; 1,000 and 1,001 are two numbers
    for comma, log in itertools.product(commas, ["ln", "lg"] if LOG.search(answer + truth) else [""]):
        a, t = LOG.sub(log, answer), LOG.sub(log, truth)
        if not comma:
            a, t = (THOUSANDS.sub(lambda run: run[0].replace(",", ""), text) for text in (a, t))
        try:
            verdict, rule = "unparsed", "the truth cannot be read"
            due, rule = parse(t), "the answer cannot be read"
            found, comparer, rule = parse(a), Comparer(deadline), "not compared"
            verdict, rule = "right" if comparer.same(found, due) else "wrong", comparer.rule
        except Refused as refused:
            verdict, rule = refused.args[0], f"{rule}: {refused.args[1]}"
        except (MemoryError, OverflowError, RecursionError) as error:
            verdict, rule = "too_large", str(error) or type(error).__name__
        if verdict == "right":
            break
    return verdict, rule


def judge_answer(answer: str | None, truth: str) -> Verdict:
    """The verdict on a bare answer, None if there is none. Never raises; bounded in time and memory by itself."""
    if verdict := quick(answer, truth):
        return verdict
    try:
        verdict, rule = decide(answer, truth)
    except Exception as error:      # a fault of ours must not stop a run: it scores 0, under a verdict that is counted
        verdict, rule = "crashed", f"please report this: {type(error).__name__}: {error}"
    return Verdict(float(verdict == "right"), verdict, answer, rule)


def judge(text: str, truth: str) -> Verdict:
    """Extract, parse and compare: the verdict on a completion."""
    return judge_answer(extract(text), truth)


def equal(answer: str, truth: str) -> bool:
    """Whether the bare `answer` (no box around it) equals `truth`."""
    return judge_answer(answer, truth).score == 1.0


def score(text: str, truth: str) -> float:
    """1.0 if the final answer in `text` equals `truth`, else 0.0."""
    return judge(text, truth).score


# ------------------------------------------------------------------------------------------------------------- workers

class Grader(AbstractContextManager):
    """Grade in worker processes that can be killed: each answer has `timeout_s` seconds and each worker `memory_gb` GB.

    A worker is this file run by a fresh interpreter, with lines of JSON on its pipes. It is not a multiprocessing child:
    those import the caller's main script again, and with it torch. It starts with the first answer that needs algebra. Any
    thread may submit; `close`, or leaving the `with` block, ends the workers when they have done what was submitted, and
    `submit` after that raises RuntimeError."""

    def __init__(self, workers: int = 1, timeout_s: float = 5.0, memory_gb: float = 1.0):
        if workers < 1 or timeout_s <= 0 or memory_gb <= 0:
            raise ValueError(f"workers {workers}, timeout_s {timeout_s}, memory_gb {memory_gb}: all must be positive")
        self.timeout_s, self.command = timeout_s, [sys.executable, __file__, "--worker", str(memory_gb)]
        self.threads, self.own, self.started = ThreadPoolExecutor(workers), threading.local(), []

    def __exit__(self, *_):
        self.close()

    def submit(self, text: str, truth: str) -> "Future[Verdict]":
        """A future of the verdict on one completion."""
        return self.threads.submit(self._judge, text, truth)

    def grade(self, texts: list[str], truths: list[str]) -> list[Verdict]:
        """The verdicts on a batch, in its order. ValueError if the two lists differ in length."""
        futures = [self.submit(text, truth) for text, truth in zip(texts, truths, strict=True)]
        return [future.result() for future in futures]

    def close(self):
        """Finish what was submitted, then end the workers."""
        self.threads.shutdown()
        for worker in self.started:
            worker.communicate()

    def _judge(self, text: str, truth: str) -> Verdict:
        """At once if no algebra is needed, else by this thread's own worker, started if there is none or it is dead."""
        answer, late, worker = extract(text), threading.Event(), getattr(self.own, "worker", None)
        if verdict := quick(answer, truth):
            return verdict
        alarm = threading.Timer(self.timeout_s, lambda: (late.set(), worker.kill()))
        try:
            if worker is None or worker.poll() is not None:
                worker = subprocess.Popen(self.command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self.own.worker = worker
                self.started.append(worker)
                worker.stdout.readline()        # ready: its start does not count against the first answer
            alarm.start()
            worker.stdin.write(json.dumps([answer, truth]) + "\n")
            worker.stdin.flush()
            return Verdict(**json.loads(worker.stdout.readline()))
        except (OSError, ValueError) as error:  # its pipe closed: it was killed, or died
            self.own.worker = None
            return Verdict(0.0, "timeout" if late.is_set() else "crashed", answer, f"the worker was lost: {error!r}")
        finally:
            alarm.cancel()


def serve(memory_gb: float):
    """What a worker does: a line in, a verdict out, until its input closes. Out of memory it dies and is replaced."""
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 2**30),) * 2)
    except ImportError:                 # no such limit on Windows
        pass
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(asdict(judge_answer(*json.loads(line)))), flush=True)


# ------------------------------------------------------------------------------------------------------- command line

def shown(tree) -> str:
    """A tree for people: *(2, x)."""
    if tree[0] in ("num", "sym", "const"):
        return str(tree[1])
    return f"{tree[0]}({', '.join(part if isinstance(part, str) else shown(part) for part in tree[1:])})"


def main():
    """Explain one comparison, or report on a file of labelled cases (completion, gold, expected)."""
    parser = argparse.ArgumentParser(description="Does this answer equal this truth, and by which rule?")
    parser.add_argument("--answer", help="a completion, or a bare answer without a box")
    parser.add_argument("--truth")
    parser.add_argument("--file", help="JSON lines with completion, gold, expected (1 or 0), and kind if there is one")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        return serve(args.worker)
    if args.file:
        with open(args.file, encoding="utf-8") as file:
            cases = [case for case in map(json.loads, filter(str.strip, file)) if case["expected"] is not None]
        found = [(case, judge(case["completion"], case["gold"])) for case in cases]
        wrong = [(case, verdict) for case, verdict in found if verdict.score != case["expected"]]
        for case, verdict in wrong:
            print(f"{case.get('kind', '')}: answer {verdict.answer!r}, truth {case['gold']!r}, expected {case['expected']}, "
                  f"found {verdict.verdict} by {verdict.rule!r}")
        return print(f"{len(cases) - len(wrong)} of {len(cases)} agree ({1 - len(wrong) / max(len(cases), 1):.1%})")
    if args.answer is None or args.truth is None:
        parser.error("give --answer and --truth, or --file")
    began = time.perf_counter()
    verdict = judge_answer(extract(args.answer) or args.answer, args.truth)
    took = (time.perf_counter() - began) * 1e3
    for name, text in (("answer", verdict.answer), ("truth", args.truth)):
        try:
            read = shown(parse(clean(text)))
        except Refused as refused:
            read = ": ".join(refused.args)
        print(f"{name:9}{text}\n{'read as':9}{read}")
    print(f"{'verdict':9}{verdict.verdict}\n{'rule':9}{verdict.rule}\n{'time':9}{took:.2f} ms")


if __name__ == "__main__":
    main()
