r"""Decide whether a model's final answer equals the reference: the reward of reinforcement learning on mathematics.

    extract (where is the answer) -> parse (what does it say) -> same (does it say what the truth says) -> 1.0 or 0.0

The rules of equality, in plain English:
 1. The answer is what stands in the last box; an empty or unclosed box is no answer, and prose does not fill it.
 2. Spelling does not matter: spaces, dollar signs, \left, \dfrac, doubled backslashes, a closing period, 1,000 for 1000.
 3. Exact numbers must be exactly equal: 1/2 = 0.5 = 50%, but 0.33 is not 1/3 and 857499 is not 857500.
 4. Only a truth that is itself a rounded decimal (three digits or more) can be met by rounding: 1.41 by \sqrt2, or by 1.414.
 5. Expressions are equal when they are equal wherever both are defined; letters are case-sensitive, and by custom
    j, k, l, m, n stand for whole numbers.
 6. A name in front ("x =", "f(x) =", "a + b =", "x \in"), a unit, a degree, a percent sign or a base may be missing on one
    side. On both sides they must agree: 4% is not 40%, 5 dollars are not 5 cents, x = 2 is not y = 2.
 7. Order counts in tuples, vectors, matrices and ratios (2:4 = 1:2); it does not in sets and lists. A hedge ("540 or 542") is
    a list of two. Brackets count: (0, 1] is not (0, 1), {2, 3} is not (2, 3). A column vector is a tuple.
 8. Equations may differ by a non-zero factor, inequalities by a positive one; linear inequalities equal their intervals.
 9. A choice is its letter: (C), C. and \textbf{(C) } 12 agree. Words are compared without case.
10. Where a text has two readings (1,000 as a number or a list; \log to base e or 10), the one that suits the truth counts.

Where we deviate: expressions become our own small tuples, not sympy objects, and nothing is simplified. A sympy object computes
while it is built (2**10**10 hangs) and its simplifiers have no bound; instead, trees are evaluated at random points (fixed
seed) with mpmath, sympy's arithmetic, at 60 digits and as many more as the sizes of the numbers met on the way ask for, so that
whole numbers and fractions are compared exactly. That decides the same questions in well under a millisecond, and every size is
checked before anything is computed. Text is never evaluated as code.
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
import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache

import mpmath

# Bounds, checked before computing. The longest truth of the study has 78 characters; the longest literal has 13 digits.
MAX_CHARS, MAX_TOKENS, MAX_DEPTH, MAX_ITEMS = 3000, 1500, 40, 200
MAX_BRACES = 10_000    # in a box
MAX_DIGITS = 1000      # of a literal
MAX_BITS = 60_000      # of precision: 2022! has 19,283, 2008^{2006} has 22,008
SECONDS = 1.0          # of this thread's work on one comparison, so that a busy machine changes no reward


class Refused(Exception):
    """(verdict, message): the text is not mathematics that we know (unparsed), or a bound is reached (too_large, timeout)."""


class Undefined(ArithmeticError):
    """No value here: 0/0, or not a real number where reals are meant, or not a set of real numbers that we know."""


def fail(message: str, verdict: str = "unparsed"):
    raise Refused(verdict, message)


# ---------------------------------------------------------------------------------------------------------- where is it

BOX = re.compile(r"\\(?:boxed|fbox)(?:\s*\{|\s+([^\s{}$\\]+))")
BRACE = re.compile(r"\\.|[{}]", re.S)
HEADS = re.compile("####"), re.compile(r"\banswer\s+is\b:?|\bfinal answer\W{0,4}:", re.I)


def extract(text: str) -> str | None:
    r"""The final answer in `text`, or None: the last balanced \boxed{...} or \fbox{...} after the last </think>, else
    what follows ####, else the last "answer is ..." or "final answer: ...". An empty box, or one that is never closed
    when there is no other, is no answer. Linear in the text's length: five boxes are tried, and MAX_BRACES in each."""
    text = text[text.rfind("</think>") + 8:] if "</think>" in text else text
    found, boxes = "", deque(BOX.finditer(text), maxlen=5)
    for box in reversed(boxes):
        if box[1]:
            return box[1]
        depth = 1
        for brace in itertools.islice(BRACE.finditer(text, box.end()), MAX_BRACES):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if not depth:
                return text[box.end():brace.start()].strip() or None
    if not boxes:
        for end in [max((match.end() for match in head.finditer(text)), default=0) for head in HEADS]:
            found = found or (end and re.split(r"\.(?:\s|$)|\n", text[end:], maxsplit=1)[0].strip("* \t"))
    return found.strip() or None if found else None


# ------------------------------------------------------------------------------------------------------------- spelling

SIGNS = {  # the one sign that we use: its other spellings
    "-": "− – —", "*": r"× · ∙ ⋅ \cdot \times \ast", "/": r"÷ ⁄ ∕ \div", "^": "**", "±": r"\pm", "∓": r"\mp", "=": "==",
    "<": r"\lt", ">": r"\gt", "≤": r"⩽ <= \le \leq \leqslant", "≥": r"⩾ >= \ge \geq \geqslant", "≠": r"!= \ne \neq",
    "≈": r"\approx \simeq", "∼": r"\sim", "≡": r"\equiv", "∈": r"\in", "∪": r"\cup", "∩": r"\cap", "∖": r"\setminus \backslash",
    "|": r"\| \vert \lvert \rvert \Vert", "∣": r"\mid", ":": r"\colon", r"\{": r"\lbrace", r"\}": r"\rbrace", "[": r"\lbrack",
    "]": r"\rbrack", " and ": r"\land \wedge", " or ": r"\lor \vee", "⟨": r"\langle", "⟩": r"\rangle", "⌊": r"\lfloor",
    "⌋": r"\rfloor", "⌈": r"\lceil", "⌉": r"\rceil", "'": r"′ ’ \prime", "⊥": r"\perp", "∥": r"\parallel", "%": r"\% \percent",
    "…": r"... \ldots \cdots \dots", "°": r"º ∘ \circ \degree", "π": r"\pi", "∞": r"\infty", "∅": r"\emptyset \varnothing",
    "√": r"\sqrt", "$": r"\$", "€": r"\euro", "£": r"\pound", "¶": "\\\\", r"\alpha ": "α", r"\beta ": "β", r"\gamma ": "γ",
    r"\theta ": "θ", r"\lambda ": "λ", r"\phi ": "φ", r"\omega ": "ω", "(": r"\lparen", ")": r"\rparen"}
SPELLED = {spelling: sign for sign, group in SIGNS.items() for spelling in group.split()}
SPELLING = re.compile(r"\\\\|\\[a-zA-Z]+|\\[%$|]|<=|>=|!=|==|\*\*|\.\.\.|[^\x00-\x7f]")
SCRIPTS = str.maketrans({"½": "\\frac12", "¼": "\\frac14", "¾": "\\frac34", "⅓": "\\frac13", "⅔": "\\frac23", "ℝ": "\\R ",
                         "…": "\\ldots ", "⁻": "^{-}", "ⁿ": "^{n}", **{c: f"^{{{i}}}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
                         **{c: f"_{{{i}}}" for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}})
STYLE = "text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mathit|mathtt|mbox|hbox|boldsymbol|bm|emph"
WRAP = re.compile(rf"\\(?:{STYLE})\s*\{{([^{{}}]*)\}}")
CLEAN = [(re.compile(pattern), new) for pattern, new in (
    (r"\\\\\s*\[-?[\d.]+\s*(?:pt|em|ex|mm)\]", r"\\\\"),                        # \\[2pt] between rows
    (r"\\(?:boxed|fbox)\s*(?=\{)|\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it)(?![a-zA-Z])", ""),
    (r"\\(?:left|right|middle|[bB]igg?[lr]?)(?![a-zA-Z])\s*\.?", ""),
    (r"(?<!\\)\\[()\[\]]|(?<!\\)\$", " "),                                      # \( \) \[ \] $
    (r"(?<=\d)\s*(?:\{,\}|,\\!|\\!,|\{,\\!\})\s*(?=\d{3})", ""),                # 1{,}000 and 3,\!250
    (r"(?<!\\)\\[!,;:> ]|~|\\q?quad|\\[hv]space\*?\{[^{}]*\}|\\(?:thin|med|thick)space|\\phantom\{[^{}]*\}", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"), (r"\\[dt]binom", r"\\binom"), (r"\\operatorname\*?\s*\{([a-zA-Z]+)\}", r"\\\1 "),
    (r"\(\s*(?:\\[bp]?mod\b|\\(?:text|mathrm)\{\s*mod\s*\}|mod\b)\s*\{?([^(){}]*)\}?\s*\)", r"\\pmod{\1}"),     # (mod 4)
    (r"\^\s*(?:\\(circ|prime)(?![a-zA-Z])|\{\s*\\(circ|prime)\s*\})", r"\\\1\2 "),                                 # 60^\circ
    (r"\\mathbb\s*(?:R|\{R\})", r"\\R "), (r"([\])}])\s*U\s*(?=[\[(\\])", r"\1\\cup "),                         # (0,1) U (2,3)
    (r"\{([^{}]*)\\(?:over|(choose))(?![a-z])([^{}]*)\}", lambda m: rf"\{'binom' if m[2] else 'frac'}{{{m[1]}}}{{{m[3]}}}"),
    (r"\b([ap])\.\s?m\.?(?![a-z])", r"\1m"))]
EVEN = re.compile(r"(?<!\\)(?:\\\\)+(?!\\)")


def one_sign(match: re.Match) -> str:
    r"""The sign of a spelling. A command glued to letters (\piR, \cosx, an old slip in the data) is cut from them."""
    spelling = match[0]
    if spelling[0] == "\\" and spelling[1:] not in KNOWN and (name := next(filter(spelling[1:].startswith, KNOWN), None)):
        return SPELLED.get("\\" + name, f"\\{name} ") + spelling[1 + len(name):]
    return SPELLED.get(spelling, spelling)


@lru_cache(8192)
def clean(text: str) -> str:
    r"""One spelling for what has many: unicode, doubled backslashes, spacing, math delimiters, \left, a closing period."""
    text = unicodedata.normalize("NFKC", text.translate(SCRIPTS)).strip()
    if "\\\\" in text and ("\\begin" not in text or not re.search(r"(?<!\\)\\(?!\\)", text)):
        text = EVEN.sub(lambda run: run[0][::2], text)        # every backslash is doubled, as in about one truth in nine
    for pattern, new in CLEAN:
        text = pattern.sub(new, text)
    return re.sub(r"\s+", " ", re.sub(r"[\s.,;]+$", "", SPELLING.sub(one_sign, text))).strip()


def key(text: str) -> str:
    """The cleaned text without styles and spaces (but "1 2" is not "12"): equal keys are the same answer."""
    text = WRAP.sub(r"\1", WRAP.sub(r"\1", clean(text)))
    return re.sub(r"[\s.,;]+$", "", re.sub(r"(?<!\d) | (?!\d)", "", re.sub(r"\s+", " ", text))).replace("{}", "")


# ------------------------------------------------------------------------------------------------------------- tokens

FUNCTIONS = {name: name for name in
             "sin cos tan cot sec csc sinh cosh tanh coth exp log lg ln max min gcd lcm cis Gamma".split()}
FUNCTIONS |= {f"{arc}{name}": f"a{name}" for arc in ("arc", "a") for name in "sin cos tan cot sec csc sinh cosh tanh".split()}
FUNCTIONS |= {"tg": "tan", "ctg": "cot", "arctg": "atan", "cosec": "csc"}
GREEK = """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon
    phi varphi chi psi omega Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar aleph""".split()
DECORATIONS = """angle triangle overline bar widehat overrightarrow underline measuredangle vec hat tilde mathcal mathbb
    dot""".split()
COMMANDS = ["frac", "binom", "pmod", "bmod", "mod", "R", *DECORATIONS]
KNOWN = dict.fromkeys(sorted([*FUNCTIONS, *GREEK, *COMMANDS, *STYLE.split("|"), "begin", "end", "int", "sum", "prod", "lim",
                              *(name[1:] for name in SPELLED if name[1:].isalpha())], key=len, reverse=True))
NAMES = {"and": ("and", None), "or": ("or", None), "percent": ("%", None), "degree": ("°", None), "degrees": ("°", None),
         "per": ("/", None), "pi": ("π", None), "sqrt": ("√", None), "infty": ("∞", None), "infinity": ("∞", None),
         "inf": ("∞", None), "binom": ("cmd", "binom"), "mod": ("cmd", "mod")}
NAMES |= {name: ("fn", function) for name, function in FUNCTIONS.items()}
NAMES |= {name: ("sym", name) for name in GREEK if len(name) > 2}
SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
UNITS = {name: group.split()[0] for group in """cm centimeter centimetre|m meter metre|km kilometer kilometre|mm millimeter
    |in inch inches|ft foot feet|yd yard|mi mile|g gram|kg kilogram|mg milligram|lb pound|oz ounce|s sec second|min minute
    |h hr hour|day|week|month|year|$ dollar usd|€ euro|£|cent|mph|kph|L l liter litre|ml mL|gallon|unit|acre|rad radian|N|J|W|V
    |K|Hz|point|people|person|way|time|am|pm|solution|term|digit|sqft|square sq|cubic|integer|prime|side|number""".split("|")
         for name in group.split()}
NOT_UNITS = """not no but is are was isn wrong incorrect maybe possibly about approximately if unless than more less except
    without plus minus times over undefined none mod base when""".split()
NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()

TOKEN = re.compile(rf"""
    (?P<num>\d*\.\d+\s?…(?!\s*[+,])|(?:\d+\.?\d*|\.\d+|\.(?=\\overline))(?:(?:\\overline|\\bar|\\dot)\s*(?:\{{\d+\}}|\d)
        |(?<=\.)\(\d+\)|[eE][+-]?\d+(?![a-zA-Z\d]))?)
    |\\(?P<style>{STYLE})\s*\{{(?P<text>[^{{}}]*)\}}|\\(?P<edge>begin|end)\s*\{{(?P<name>[a-zA-Z]+)\*?\}}(?:\{{[lcr|]*\}})?
    |\\(?P<cmd>[a-zA-Z]+)|(?P<run>[a-zA-Z]+)|(?P<sign>\\[{{}}]|\S)|\s+""", re.X)


def tokens(text: str, words: bool = False, found: list | None = None) -> list[tuple[str, object]]:
    r"""`text` as (kind, value) pairs: num (literal), sym, fn, cmd, word, begin, end, or a sign and None. In `words` (the inside
    of \text{}) a run of letters is a word; outside it is a product of letters unless it has a name or is a unit."""
    found = [] if found is None else found
    for match in TOKEN.finditer(text):
        kind = match.lastgroup
        value = match[kind] if kind else ""
        if kind == "text":
            tokens(value, match["style"] not in ("mathbf", "boldsymbol", "bm", "mathit"), found)
        elif kind == "name":
            found.append((match["edge"], value))
        elif kind == "cmd" and value not in STYLE.split("|"):
            group = "fn" if value in FUNCTIONS else "sym" if value in GREEK else "cmd" if value in COMMANDS else None
            found.append((group or fail(f"unknown command \\{value}"), FUNCTIONS.get(value, value)))
        elif kind == "run":
            quantity = bool(found) and found[-1][0] in ("num", ")", "}", "word", "°", "!", *CURRENCY)
            found += letters(value, words, quantity, text[match.start() - 1:match.start()] == " ")
        elif kind == "num":
            found.append((kind, value))
        elif kind == "sign" and not (words and value == "."):
            found.append((value, None))
        if len(found) > MAX_TOKENS:
            fail(f"more than {MAX_TOKENS} tokens", "too_large")
    return found


def letters(run: str, words: bool, quantity: bool, spaced: bool) -> list[tuple[str, object]]:
    """The tokens of a run of letters: by name, a unit or scale if a `quantity` stands before it, a word, or a product."""
    low = run.lower()
    if quantity and low in SCALE:
        return [("*", None), ("num", str(SCALE[low]))]
    if quantity and (unit(run) or (spaced and len(run) > 4 and low not in NAMES)) and (words or len(run) > 1):
        return [("word", run)]
    if name := NAMES.get(run) or (len(run) > 1 and NAMES.get(low)):
        return [name]
    if words and len(run) > 1:
        return [("word", run)]
    if (glued := re.match(r"sin|cos|tan|ln|log", run)) and len(run) - glued.end() == 1:
        return [("fn", glued[0]), ("sym", run[-1])]
    return [("sym", letter) for letter in run]


def unit(word: str) -> str | None:
    """The unit that a word names, in one spelling: feet and ft are ft."""
    return UNITS.get(word) or UNITS.get(word.lower()) or UNITS.get(word.lower().removesuffix("s"))


# ------------------------------------------------------------------------------------------------------------- parsing
# A tree is a tuple: ("num", Fraction, decimal places or None), ("sym", name), ("const", π|e|i|∞), ("+", ...), ("*", ...),
# ("/", a, b), ("^", base, exponent), ("fn", name, ...), ("±", x), ("mark", unit, x), ("text", words), ("R",),
# ("seq", open, close, items), ("set", items), ("list", joiner, items), ("ratio", items),
# ("rel", signs, sides), ("mod", relation, modulus), ("∪" | "∩" | "∖", a, b).

JOINERS, RELATIONS, CURRENCY, MODS = (",", ";", "and", "or"), tuple("=≠<≤>≥≈≡∈∼∣⊥∥"), ("$", "€", "£"), ("pmod", "bmod", "mod")
FACTORS = ("num", "sym", "fn", "cmd", "begin", "(", "[", "{", "\\{", "⟨", "⌊", "⌈", "…", "π", "∞", "∅", "√", *CURRENCY)
CLOSING = {"(": (")", "]"), "[": ("]", ")"), "⟨": ("⟩",), "{": ("}",), "\\{": ("\\}",), "⌊": ("⌋",),
           "⌈": ("⌉",), "|": ("|",)}
CLAUSES = ("for", "where", "with")


def num(value, places=None):
    return ("num", Fraction(value), places)


MINUS = num(-1)


def neg(x):
    return ("num", -x[1], x[2]) if x[0] == "num" else ("*", MINUS, x)


def over(a, b):
    return num(a[1] / b[1]) if a[0] == b[0] == "num" and b[1] else ("/", a, b)


def seq(items):
    return ("seq", "(", ")", tuple(items))


def multiply(a, b):
    """A product of two trees; vectors and matrices are multiplied out here, since their product is not a number's."""
    if a[0] != b[0] and "seq" in (a[0], b[0]):
        scalar, vector = (a, b) if b[0] == "seq" else (b, a)
        return (*vector[:3], tuple(multiply(scalar, x) for x in vector[3]))
    if a[0] == b[0] == "seq":
        columns = [[x] if x[0] != "seq" else x[3] for x in b[3]]
        if any(row[0] != "seq" or len(row[3]) != len(columns) for row in a[3]):
            fail("matrices that do not fit")
        rows = [[("+", *(("*", x, y) for x, y in zip(row[3], column, strict=True)))
                 for column in zip(*columns, strict=False)] for row in a[3]]
        return seq(row[0] if b[3][0][0] != "seq" else seq(row) for row in rows)
    return ("*", a, b) if a[0] != "*" else (*a, b)


def literal(text: str):
    r"""A number as written: 12, .5, 0.\overline{3}, 0.333…, 3.2e5. Too large beyond MAX_DIGITS digits."""
    mantissa, _, power = text.lower().partition("e") if "\\" not in text else (text, "", "")
    if len(text) > MAX_DIGITS or abs(int(power or 0)) > MAX_DIGITS:
        fail(f"the number {text[:20]} has more than {MAX_DIGITS} digits", "too_large")
    whole, part, tail = re.match(r"(\d*)\.?(\d*)(.*)", mantissa).groups()
    period = "".join(re.findall(r"\d", tail))
    if tail and not period and (again := re.search(r"(\d+?)\1{2,}$", part)):
        part, period = part[:again.start()], again[1]               # 0.333… goes on as it repeats
    value = Fraction(int(whole + part or "0"), 10 ** len(part)) * Fraction(10) ** int(power or 0)
    if period:
        return num(value + Fraction(int(period), 10 ** len(part) * (10 ** len(period) - 1)))
    return num(value, len(part) if part and not power else None)


class Parser:
    """Recursive descent over the tokens, one method per level of precedence, the loosest first."""

    def __init__(self, text: str):
        self.found, self.at, self.depth, self.bars = tokens(text), 0, 0, 0

    def peek(self, ahead=0):
        return self.found[self.at + ahead][0] if self.at + ahead < len(self.found) else "the end"

    def word(self, *kinds):
        """The value of the next token if it is of one of these kinds, else None."""
        return self.found[self.at][1] if self.peek() in kinds else None

    def eat(self, *kinds):
        """The next token's kind, and step over it, if it is one of `kinds`; else None."""
        if (kind := self.peek()) in kinds:
            self.at += 1
            return kind
        return None

    def need(self, *kinds):
        return self.eat(*kinds) or fail(f"expected {' or '.join(kinds)}, found {self.peek()}")

    def nested(self, read):
        """What `read` reads one level deeper."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            fail(f"nested deeper than {MAX_DEPTH}", "too_large")
        tree = read()
        self.depth -= 1
        return tree

    def parse(self):
        tree = self.listing()
        clause = self.word("word") in CLAUSES                         # "2^k for k in Z": a condition is not compared,
        if self.peek() != "the end" and (not clause or {kind for kind, _ in self.found[self.at:]} & {*JOINERS}):
            fail(f"cannot read on at {self.peek()}")                  # unless it is one of several
        return tree

    def listing(self):
        """a, b and c"""
        items, joiner = [self.relation()], ","
        while sign := self.eat(*JOINERS):
            joiner = sign if len(sign) > 1 else joiner
            if self.peek() not in ("the end", "}", ")", "\\}", *JOINERS):
                items.append(self.relation())
        if len(items) > MAX_ITEMS:
            fail(f"a list of more than {MAX_ITEMS}", "too_large")
        return items[0] if len(items) == 1 else ("list", joiner, tuple(items))

    def relation(self):
        """a < b = c (mod m)"""
        self.eat("=", "≈")                                            # "= 5"
        sides, signs = [self.sets()], []
        while sign := self.eat(*RELATIONS):
            signs.append(sign)
            sides.append(self.sets())
        tree = ("rel", tuple(signs), tuple(sides)) if signs else sides[0]
        if self.word("cmd") in MODS:
            self.at += 1
            return ("mod", tree, self.argument())
        return tree

    def sets(self):
        """A ∪ B"""
        tree = self.ratio()
        while sign := self.eat("∪", "∩", "∖"):
            tree = (sign, tree, self.ratio())
        return tree

    def ratio(self):
        """a : b : c, also a time with its a.m."""
        items = [self.sum()]
        while self.eat(":"):
            items.append(self.sum())
        if len(items) > 1 and (last := items[-1])[0] == "mark":
            return ("mark", last[1], ("ratio", (*items[:-1], last[2])))
        return items[0] if len(items) == 1 else ("ratio", tuple(items))

    def signed(self, read):
        """What `read` reads, after any signs before it."""
        minus, either = False, False
        while sign := self.eat("+", "-", "±", "∓"):
            minus ^= sign in "-∓"
            either = either or sign in "±∓"
        tree = read()
        tree = neg(tree) if minus else tree
        return ("±", tree) if either else tree

    def sum(self):
        """a + b ± c"""
        terms = [self.signed(self.product)]
        while self.peek() in ("+", "-", "±", "∓"):
            terms.append(self.signed(self.product))
        return terms[0] if len(terms) == 1 else ("+", *terms)

    def product(self):
        """Factors joined by a sign or by nothing, then units. 1/2x is (1/2)x, as in one line of print."""
        tree = self.power()
        while True:
            before, kind = self.found[self.at - 1][0], self.peek()
            if sign := self.eat("*", "/"):
                factor = self.signed(self.power)
                tree = multiply(tree, factor) if sign == "*" else over(tree, factor)
            elif kind in CURRENCY or (kind == "word" and self.word("word") not in CLAUSES):
                tree = self.unit(tree)
            elif not self.factor():
                return tree
            else:
                factor, fraction = self.power(), kind == "cmd"
                if before == kind == "num" and self.eat("/"):
                    factor, fraction = over(factor, self.power()), True
                whole = before == "num" and tree[0] == factor[0] == "num" and tree[1].denominator == 1
                if whole and fraction and 0 < factor[1] < 1:          # 2\frac34 or 2 3/4, but not 2(3/4)
                    tree = num(tree[1] + factor[1])
                elif before == kind == "num":
                    fail("two numbers side by side")
                else:
                    tree = multiply(tree, factor)

    def factor(self):
        """Whether a factor may begin here."""
        return (self.peek() in FACTORS and self.word("cmd") not in MODS) or (self.peek() == "|" and not self.bars)

    def unit(self, tree):
        """5 cm^2, 3 feet/s, 12 apples: the words after a quantity are its unit."""
        found = []
        while self.peek() in ("word", *CURRENCY) or (found and (
                self.peek() == "^" or (self.peek() in "/*" and self.peek(1) in ("word", "sym")))):
            if self.eat("^"):
                found.append(f"^{self.argument()[1]}")
                continue
            sign = self.eat("/", "*") or ""
            name = self.found[self.at][1] or self.peek()
            self.at += 1
            if name.lower() in NOT_UNITS:
                fail(f"the word {name!r} is no unit")
            found.append(sign + (unit(name) or name.lower().removesuffix("s")))
        if len(found) > 1 and found[0] in ("square", "cubic"):
            found = [*found[1:], "^2" if found[0] == "square" else "^3"]
        return ("mark", " ".join(found), tree)

    def power(self):
        """x^2, 5!, 60°, 50%, f'"""
        tree = self.nested(self.atom)
        while True:
            if self.eat("°"):
                scale = self.word("sym") if self.word("sym") in ("C", "F") else ""             # 77° F
                self.at += bool(scale)
                tree = ("mark", "°" + scale, tree)
            elif self.eat("^"):
                tree = ("^", tree, self.argument(whole=True))
            elif self.eat("%"):
                tree = ("mark", "%", tree)
            elif self.eat("!"):
                tree = ("fn", "fac2" if self.eat("!") else "factorial", tree)
            elif tree[0] == "sym" and self.eat("'"):
                tree = ("sym", tree[1] + "'")
            else:
                return tree

    def argument(self, whole=False):
        r"""What a command or sign applies to: a group or one token. \frac12 takes digits; 2^10 and \sqrt10 the number."""
        if self.eat("{"):
            tree = self.nested(self.listing)
            self.need("}")
            return tree
        if not whole and (digits := self.word("num")) and len(digits) > 1 and digits.isdigit():
            self.found[self.at] = ("num", digits[1:])
            return literal(digits[0])
        return self.signed(lambda: self.nested(self.atom))

    def atom(self):
        """A number, a name, or something in brackets."""
        kind, value = self.found[self.at] if self.at < len(self.found) else ("the end", None)
        self.at += 1
        if kind in ("num", "sym", "fn", "cmd", "begin"):
            return {"num": self.number, "sym": self.symbol, "fn": self.function, "cmd": self.command,
                    "begin": self.environment}[kind](value)
        if kind == "word":
            while more := self.word("word"):
                value += " " + more
                self.at += 1
            return ("text", value.lower())
        if kind in ("(", "[", "{", "⟨", "\\{"):
            return self.bracket(kind)
        if kind in ("|", "⌊", "⌈"):
            self.bars += kind == "|"
            tree = ("fn", {"|": "abs", "⌊": "floor", "⌈": "ceil"}[kind], self.sum())
            self.bars -= kind == "|"
            self.need(*CLOSING[kind])
            return tree
        if kind == "√":
            index = num(2)
            if self.eat("["):
                index = self.sum()
                self.need("]")
            return ("^", self.argument(whole=True), over(num(1), index))
        if kind in CURRENCY:
            return ("mark", kind, self.power())
        return {"π": ("const", "π"), "∞": ("const", "∞"), "∅": ("set", ()), "…": ("sym", "…")}.get(kind) or fail(
            f"cannot read {kind} here")

    def number(self, text):
        """12.5, or 204_5: digits in a base"""
        if not self.eat("_"):
            return literal(text)
        base = self.argument(whole=True)
        if base[0] == "text" and (word := base[1].removeprefix("base ")) in NUMBER_WORDS:
            base = num(NUMBER_WORDS.index(word))
        if base[0] != "num" or not text.isdigit() or not int(max(text)) < base[1] <= 36:
            fail(f"{text} is no number in that base")
        return ("mark", f"_{base[1]}", literal(text))

    def symbol(self, name):
        """x, x_1, f'(x), and the constants e and i"""
        constant = name in ("e", "i")
        if self.eat("_"):
            start, constant = self.at, False
            self.argument(whole=True)
            name += "_" + "".join(str(value or kind) for kind, value in self.found[start:self.at] if kind not in "{}")
        while self.eat("'"):
            name += "'"
        ahead = "".join(kind for kind, _ in self.found[self.at:self.at + 8])
        if (ahead[:1] == "(" and name[0] in "fghFGH" and not constant) or re.match(r"\((sym,)*sym\)=", ahead):     # P(x) = ...
            self.at += 1
            return ("fn", "call " + name, *self.inside())
        return ("const" if constant else "sym", name)

    def inside(self):
        """The items in a round bracket that is open already."""
        tree = self.nested(lambda: self.bracket("("))
        return tree[3] if tree[0] == "seq" else (tree,)

    def bracket(self, opening):
        """(a, b], {a, b}, <a, b>, or a group."""
        if opening == "\\{" and self.eat("\\}"):
            return ("set", ())
        bars, self.bars = self.bars, 0
        tree = self.listing()
        self.bars, closing = bars, self.need(*CLOSING[opening])
        items = tree[2] if tree[0] == "list" else (tree,)
        if opening == "\\{":
            return ("set", items)
        if opening == "{" or (len(items) == 1 and opening + closing in ("()", "[]")):
            return tree
        if len(items) == 1 and opening != "⟨":
            fail("brackets do not match")
        return ("seq", "(" if opening == "⟨" else opening, ")" if closing == "⟩" else closing, items)

    def function(self, name):
        r"""\sin^2 x, \log_2 8, \ln|x|, \sin 2x\cos x: without brackets, the argument is the product up to the next function."""
        power = base = None
        while sign := self.eat("^", "_"):
            power, base = (self.argument(whole=True), base) if sign == "^" else (power, self.argument())
        if power == MINUS and "a" + name in FUNCTIONS.values():
            name, power = "a" + name, None
        if self.eat("("):
            values = self.inside()
        elif self.peek() == "{":
            values = (self.argument(),)
        else:
            tree = self.power()
            while self.factor() and self.peek() not in ("fn", "[", *CURRENCY):
                tree = multiply(tree, self.power())
            values = (tree,)
        base = {"ln": ("const", "e"), "lg": num(10)}.get(name, base)
        tree = ("fn", "log", *values, base) if base is not None else ("fn", name, *values)
        return ("^", tree, power) if power is not None else tree

    def command(self, name):
        if name == "frac":
            return over(self.argument(), self.argument())
        if name == "binom":
            return ("fn", "binomial", self.argument(), self.argument())
        if name == "R":
            return ("R",)
        if name not in DECORATIONS:
            fail(f"\\{name} here")
        tree = self.argument()                                        # \vec{a} is not a, but \overline{AB} is AB
        return ("sym", f"{name} {tree[1]}") if tree[0] == "sym" and name != "vec" else tree

    def environment(self, name):
        r"""\begin{pmatrix} a & b \\ c & d \end{pmatrix} is a tuple of rows, a column a tuple; cases and aligned are lists."""
        matrix, rows = name.endswith("matrix") or name == "array", [[]]
        if not matrix:
            self.found = [token for token in self.found if token[0] != "&"]
        while not self.eat("end"):
            if self.eat("¶"):
                rows.append([])
            elif not self.eat("&"):
                rows[-1].append(self.nested(self.listing))
        rows = tuple(tuple(row) for row in rows if row)
        if len({len(row) for row in rows}) != 1 or (not matrix and len(rows[0]) != 1):
            fail(f"ragged rows in {name}")
        if matrix:
            return seq(row[0] if len(row) == 1 else seq(row) for row in rows)
        return rows[0][0] if len(rows) == 1 else ("list", ",", tuple(row[0] for row in rows))


@lru_cache(8192)
def parse(text: str, thousands: bool):
    """The tree of a cleaned text. `thousands`: 1,000 is a number, not a list. Raises Refused."""
    text = re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])", lambda run: run[0].replace(" ", ""), text)       # 1 000
    text = BUILDER.sub(r"{\1}", text)
    if thousands:
        text = THOUSANDS.sub(lambda run: run[0].replace(",", ""), text)
    return Parser(text).parse()


THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
BUILDER = re.compile(r"\\\{\s*\w(?:\s*∈[^{}|∣:]*)?\s*[|∣:]((?:[^{}]|\{[^{}]*\})*)\\\}")        # {x | x > 3} is read as x > 3


# ------------------------------------------------------------------------------------------------------------- values

def leaves(tree, kind: str) -> set[str]:
    """The names of all leaves of one kind: the free letters ("sym"), the constants ("const")."""
    if not isinstance(tree, tuple) or not tree:
        return set()
    return {tree[1]} if tree[0] == kind else set().union(*(leaves(part, kind) for part in tree))


def whole_numbers(function):
    """A function of whole numbers as one of mpmath's."""
    return lambda mp, *xs: mp.mpf(function(*(int(x) if mp.isint(x) else undefined("not whole") for x in xs)))


def undefined(message: str):
    raise Undefined(message)


CALLS = {  # functions that mpmath has not, or not as we mean them; a rounding error must not decide a floor
    "abs": lambda mp, x: abs(x), "max": lambda mp, *xs: max(xs), "min": lambda mp, *xs: min(xs),
    "cis": lambda mp, x: mp.expj(x), "Gamma": lambda mp, x: mp.gamma(x), "log": lambda mp, x, base: mp.log(x) / mp.log(base),
    "floor": lambda mp, x: mp.floor(x + mp.mpf(2) ** -100), "ceil": lambda mp, x: mp.ceil(x - mp.mpf(2) ** -100),
    "gcd": whole_numbers(math.gcd), "lcm": whole_numbers(math.lcm)}
MPMATH = {*FUNCTIONS.values(), "factorial", "fac2", "binomial"} - {*CALLS}


LOCAL = threading.local()      # an mpmath context holds its precision: one for each thread


class Values:
    """The values of trees at a point, precise enough to be compared: `error` bounds what rounding has done to them."""

    def __init__(self, deadline: float, log_base: int):
        if not hasattr(LOCAL, "mp"):
            LOCAL.mp = mpmath.MPContext()
        self.mp, self.deadline, self.log_base = LOCAL.mp, deadline, ("const", "e") if log_base == 1 else num(log_base)

    def at(self, *trees, point=None, real=False) -> list:
        """With letters from `point`, if `real` in real numbers throughout. Raises Undefined, Refused.

        60 digits decide most questions. Where they show no difference and the numbers met on the way are of very different
        sizes, as in 2^{2007} sqrt 3 - 1, all their bits are needed: those above the point once, those below it twice, since
        fractions p/q and r/s can be 1/qs apart."""
        self.point, self.real, bits = point or {}, real, 200
        while True:
            self.mp.prec, self.high, self.low = bits, 0, 0
            try:
                values = [self.value(tree) for tree in trees]
            except (ZeroDivisionError, ValueError, TypeError) as error:
                raise Undefined(str(error)) from None
            if any(map(self.mp.isnan, values)):
                undefined("not a number")
            self.error = self.mp.mpf(2) ** (self.high + 40 - bits)
            needed = 200 + self.high - 2 * self.low
            if bits > 200 or needed < 250 or not self.near(values[0], values[-1]):
                return values
            bits = needed if needed < MAX_BITS else fail("numbers too far apart to compare", "too_large")

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
            return self.value(self.point.get(tree[1]) or undefined(f"no value for {tree[1]}"))
        if kind == "const":
            return {"π": +mp.pi, "e": +mp.e, "i": mp.j, "∞": mp.inf}[tree[1]]
        if kind == "mark":
            if tree[1][0] == "_":
                return mp.mpf(int(str(tree[2][1]), int(tree[1][1:])))
            return self.value(tree[2]) * (mp.pi / 180 if tree[1] == "°" else mp.mpf(1) / 100 if tree[1] == "%" else 1)
        if kind not in ("+", "*", "/", "^", "fn"):
            undefined(f"{kind} has no value")
        if kind == "fn" and tree[1] == "log" and len(tree) == 3:
            tree = (*tree, self.log_base)
        parts = [self.value(x) for x in tree[1 + (kind == "fn"):]]
        if kind == "/":
            self.noted(1 / parts[1])
        return self.noted(sum(parts) if kind == "+" else math.prod(parts) if kind == "*" else parts[0] / parts[1] if kind == "/"
                          else self.power(*parts, tree[2]) if kind == "^" else self.call(tree[1], *parts))

    def noted(self, value):
        """The value, with its size noted."""
        if value and self.mp.isfinite(value):
            size = int(self.mp.mag(value))
            self.high, self.low = max(self.high, size), min(self.low, size)
            if self.mp.im(value) == 0:
                return self.mp.re(value)
            if self.real:
                undefined("not real")
        return value

    def power(self, base, power, tree):
        mp = self.mp
        if (base == 0 and mp.re(power) <= 0) or mp.isinf(base) or mp.isinf(power):
            undefined("0 to the power 0 or less, or an infinite power")
        if base and max(mp.mag(power), 0) + max(mp.mag(mp.mag(base) or 1), 0) > 60:
            fail("a power beyond the bound", "too_large")
        if not mp.im(base) and base < 0 and tree[0] == "num" and tree[1].denominator % 2:
            return (-1) ** (tree[1].numerator % 2) * mp.power(-base, power)      # (-8)^{1/3} = -2: the real root
        return mp.power(base, power)

    def call(self, name, *values):
        mp = self.mp
        gamma = name in ("factorial", "fac2", "Gamma", "binomial")
        large = any(mp.isfinite(v) and mp.mag(v) > (50 if gamma else 5000) for v in values)
        if (large and name not in ("log", "abs")) or (gamma and mp.prec > 1000 and not all(map(mp.isint, values))):
            fail(f"{name} of a number beyond the bound", "too_large")
        if name.startswith("call "):       # an unknown function: one fixed function per name, unlike any other
            seed = mp.mpf(zlib.crc32(name.encode())) / 2**32 + 1
            return sum(mp.sin(seed * (k + 2) * v + k) + v * seed for k, v in enumerate(values))
        return getattr(mp, name)(*values) if name in MPMATH else CALLS[name](mp, *values)


@lru_cache(8192)
def structure(tree):
    """The tree with sums and products flattened and in one order, and 2.0 as 2."""
    if not isinstance(tree, tuple) or not tree:
        return tree
    if tree[0] == "num":
        return tree[:2]
    parts = [structure(part) for part in tree]
    if tree[0] in ("+", "*"):
        flat = [x for part in parts[1:] for x in (part[1:] if part[0] == tree[0] else (part,))]
        return (tree[0], *sorted(flat, key=repr))
    return tuple(parts)


# ------------------------------------------------------------------------------------------------------------- comparing

class Comparer:
    """One comparison under one reading. `rule` is the last rule that was tried: the one that decided."""

    def __init__(self, log_base: int, deadline: float):
        self.values, self.rule = Values(deadline, log_base), ""

    def same(self, a, t) -> bool:
        """Whether two trees say the same."""
        self.values.in_time()
        a, t = unfold(a), unfold(t)
        kinds = {a[0], t[0]}
        if structure(a) == structure(t):
            self.rule = "the same structure"
            return True
        if kinds == {"mod"}:
            self.rule = "the same residue"
            return self.same(a[2], t[2]) and (self.same(a[1], t[1]) or self.residues(a, t))
        if "rel" in kinds and "list" not in kinds:
            return self.relations(a, t)
        if "mark" in kinds and not kinds & {"list", "set"}:
            return self.marked(a, t)
        if kinds & {*COLLECTIONS, "∪", "∩", "∖", "R"}:
            return self.collections(a, t)
        if kinds & {"text", "mod"}:
            self.rule = "words"
            return False
        return self.equal(a, t) or self.rounds(a, t)

    def in_order(self, a, t) -> bool:
        return len(a) == len(t) and all(self.same(x, y) for x, y in zip(a, t, strict=True))

    def without_order(self, a, t, same=None) -> bool:
        same = same or self.same
        return all(any(same(x, y) for y in t) for x in a) and all(any(same(x, y) for x in a) for y in t)

    # --- numbers and expressions

    def at_points(self, a, t):
        """The pairs of values at the fixed random points where both are defined: fractions, half of them positive only;
        whole numbers for the letters that stand for them."""
        names, rng = sorted(leaves(a, "sym") | leaves(t, "sym")), random.Random(20)
        real = bool(names) and "i" not in leaves(a, "const") | leaves(t, "const")
        for trial in range(8 if names else 1):
            low, high, bottom = ((10, 400, 20), (10, 90, 147), (-400, 400, 23), (-90, 90, 203))[trial % 4]
            point = {name: num(rng.randint(2, 30) * (1 if low > 0 else -1) if name.split("_")[0] in WHOLE else
                               Fraction(2 * rng.randint(low, high) + 1, bottom)) for name in names}
            try:
                yield self.values.at(a, t, point=point, real=real)
            except Undefined:
                continue

    def equal(self, a, t) -> bool:
        """Two expressions: as fractions if they are, else at up to five points where both are defined."""
        if a[0] == t[0] == "num":
            self.rule = "exact values"
            return a[1] == t[1]
        self.rule = "60 digits and more" + (" at random points" if leaves(a, "sym") | leaves(t, "sym") else "")
        agreed = 0
        for left, right in itertools.islice(self.at_points(a, t), 5):
            if not self.values.near(left, right):
                return False
            agreed += 1
        return agreed > 0

    def rounds(self, a, t) -> bool:
        if t[0] != "num" or not t[2] or leaves(a, "sym"):
            return False
        self.rule = "rounds to the truth's decimals"
        try:
            return rounds(self.values.at(a, real=True)[0], a[2] if a[0] == "num" else None, *t[1:])
        except Undefined:
            return False

    def marked(self, a, t) -> bool:
        """Rule 6: a percent, degree, unit or base may be missing on one side; on both sides they must agree."""
        self.rule = "the units"
        units, bare = zip(*(x[1:] if x[0] == "mark" else ("", x) for x in (a, t)), strict=True)
        if all(unit in ("", "%", "°") or unit[0] == "_" for unit in units):            # they say what the number is
            return self.equal(a, t) or ((units[0] == units[1] or not all(units)) and self.same(*bare))
        return (units[0] == units[1] or not all(units)) and self.same(*bare)

    # --- names and relations

    def relations(self, a, t) -> bool:
        """Where at least one side is an equation, an inequality or another relation."""
        signs = [{*x[1]} if x[0] == "rel" else {} for x in (a, t)]
        if signs == [{"="}, {"="}]:
            return self.equations(a[2], t[2])
        if signs == [{"="}, {}]:
            return worth(a) != () and all(self.same(side, t) for side in worth(a))
        if signs == [{}, {"="}]:
            return worth(t) != () and all(self.same(a, side) for side in worth(t))
        if not all(signs):
            return self.same_set(a, t)
        return leaves(a, "sym") == leaves(t, "sym") and (
            self.same_set(a, t) or self.without_order(pairs(a), pairs(t), self.same_pair))

    def equations(self, left, right) -> bool:
        self.rule = "equations up to a factor"
        if len(left) == len(right) == 2 and self.factor(difference(*left), difference(*right)):
            return True
        applied = any(x[0] == "fn" and x[1].startswith("call") for x in (left[0], right[0]))
        alike = named(left[0]) and structure(left[0]) == structure(right[0])
        if alike or (applied and ("sym", "y") in (left[0], right[0])):                  # y = x^2, f(x) = x^2
            return self.same(left[-1], right[-1]) and all(self.same(x, left[-1]) for x in left[1:-1])
        return False

    def factor(self, a, t) -> int:
        """The sign of the constant c with a = c t at all points, or 0: equations and inequalities up to a factor."""
        ratio, seen = None, 0
        for left, right in self.at_points(a, t):
            if self.values.near(left, 0) or self.values.near(right, 0):
                if not self.values.near(left, right):
                    return 0
                continue
            if ratio is not None and not self.close(left / right, ratio):
                return 0
            ratio, seen = left / right, seen + 1
        return 0 if seen < 2 or self.values.mp.im(ratio) else 1 if ratio > 0 else -1

    def close(self, x, y) -> bool:
        finite = self.values.mp.isfinite
        return x == y or (finite(x) and finite(y) and abs(x - y) <= (1 + abs(x) + abs(y)) * self.values.mp.mpf(2) ** -120)

    def same_pair(self, a, t) -> bool:
        """a < b against c < d: the differences agree up to a positive factor (any factor for = and ≠)."""
        self.rule = "relations up to a factor"
        if a[0] != t[0] or a[0] not in "<≤=≠":
            return a[0] == t[0] and self.same(a[1], t[1]) and self.same(a[2], t[2])
        sign = self.factor(difference(*a[1:]), difference(*t[1:]))
        return sign > 0 if a[0] in "<≤" else sign != 0

    def residues(self, a, t) -> bool:
        """p = 5 (mod 4) is p = 1 (mod 4)."""
        sides = [x[1][2] if x[1][0] == "rel" else (x[1],) for x in (a, t)]
        if min(map(len, sides)) > 1 and not self.same(sides[0][0], sides[1][0]):
            return False
        try:
            left, right, modulus = self.values.at(sides[0][-1], sides[1][-1], t[2])
            return bool(modulus) and self.values.mp.isint((left - right) / modulus)
        except Undefined:
            return False

    # --- sets of real numbers: equal when they have the same members among all their ends, between them and beyond

    def same_set(self, a, t) -> bool:
        self.rule = "the same set of real numbers"
        try:
            (ends, one), (more, other) = self.region(a), self.region(t)
        except Undefined:
            return False
        return all(one(x) == other(x) for x in self.probes(ends + more))

    def probes(self, ends: list) -> list:
        """All ends, the middles between them, and a number beyond them on each side."""
        ends = sorted(x for x in ends if self.values.mp.isfinite(x)) or [self.values.mp.mpf(0)]
        return [ends[0] - 1, *ends, ends[-1] + 1, *((x + y) / 2 for x, y in itertools.pairwise(ends) if not self.close(x, y))]

    def region(self, tree):
        """The ends at which membership may change, and whether a number is a member. Undefined if this is no set."""
        kind = tree[0]
        if kind == "R":
            return [], lambda x: True
        if kind in ("set", "seq"):
            ends = [self.values.at(x, real=True)[0] for x in tree[-1]]
            if kind == "set":
                return ends, lambda x: any(self.close(x, end) for end in ends)
            if tree[1] not in "([" or len(ends) != 2 or not ends[0] < ends[1]:
                undefined("no interval")
            return ends, lambda x: (tree[1] == "[" if self.close(x, ends[0]) else tree[2] == "]" if self.close(x, ends[1])
                                    else ends[0] < x < ends[1])
        if kind == "rel":
            parts, kind = [self.half_line(*pair) for pair in pairs(tree)], "∩"
        elif kind in ("∪", "∩", "∖") or (kind == "list" and len(leaves(tree, "sym")) < 2):
            parts = [self.region(x) for x in (tree[2] if kind == "list" else tree[1:])]
        else:
            undefined("no set")
        ends, members = [x for part in parts for x in part[0]], [part[1] for part in parts]
        if kind == "∖":
            return ends, lambda x: members[0](x) and not members[1](x)
        both = kind == "∩" or (kind == "list" and tree[1] != "or" and
                               any(all(member(x) for member in members) for x in self.probes(ends)))
        return ends, lambda x: (all if both else any)(member(x) for member in members)     # "x < 1, x > 3" cannot both hold

    def half_line(self, sign, left, right):
        """The region of a linear inequality or equation in one letter."""
        tree = difference(left, right)
        if len(names := leaves(tree, "sym")) != 1 or sign not in "<≤=≠":
            undefined("no set")
        first, second, far = (self.values.at(tree, point={name: num(Fraction(x, 10)) for name in names}, real=True)[0]
                              for x in (0, 10, -73))
        if self.values.mp.isinf(first):
            return [], lambda x: sign == "≠" or (sign != "=" and first < 0)
        slope = second - first
        if not slope or not self.close((far - first) * 10, slope * -73):
            undefined("not linear")
        root = -first / slope
        return [root], lambda x: (sign in "≤=" if self.close(x, root) else
                                  sign == "≠" or (sign != "=" and (x - root) * slope < 0))

    # --- collections

    def collections(self, a, t) -> bool:
        """Tuples (also vectors and matrices), intervals, sets, lists and ratios."""
        kinds = (a[0], t[0])
        items = [list(x[-1]) if x[0] in COLLECTIONS else [x] for x in (a, t)]
        brackets = [x[1] + x[2] if x[0] == "seq" else "()" for x in (a, t)]
        if kinds == ("seq", "seq"):
            self.rule = "in order, with brackets"
            point = len(t[3]) > 2 and {*brackets} <= {"()", "[]"}     # three numbers are no interval
            return (brackets[0] == brackets[1] or point) and self.in_order(*items)
        if kinds == ("set", "set"):
            self.rule = "sets without order"
            return self.without_order(*items)
        if "ratio" in kinds:
            self.rule = "ratios up to a factor"
            first, due = items[0][0], items[1][0]
            if kinds == ("ratio", "ratio"):
                return len(a[1]) == len(t[1]) and all(self.equal(("*", x, due), ("*", y, first))
                                                      for x, y in zip(*items, strict=True))
            ratio, other = (items[0], t) if a[0] == "ratio" else (items[1], a)         # 3:2 is 3/2, written as a fraction
            fraction = other[0] == "/" or (other[0] == "num" and not other[2])
            return fraction and len(ratio) == 2 and self.equal(over(*ratio), other)
        if {*kinds} == {"seq", "list"}:
            self.rule = "in order, brackets on one side"
            which = kinds.index("list")                               # x = 1, y = 2 is (1, 2): letters in their order
            if all(x[0] == "rel" for x in items[which]):
                items[which] = [x[2][-1] for x in sorted(items[which], key=lambda x: repr(x[2][0]))]
            ordered = {*brackets} == {"()"} and (a, t)[which][1] != "or"
            return (ordered and self.in_order(*items)) or self.same_set(a, t)
        if "seq" not in kinds and {*kinds} & {"list", "set"} and len(items[0]) == len(items[1]):
            self.rule = "without order"
            if self.without_order(*items) or self.without_order(*map(unnamed, items)):
                return True
        return self.same_set(a, t)


COLLECTIONS, WHOLE = ("seq", "set", "list", "ratio"), ("j", "k", "l", "m", "n")


def unfold(tree):
    r"""What a tree stands for: 1 \pm x is two values, (x, y) = (1, 2) and x = y = 2 are two equations, x \in S is S."""
    kind = tree[0]
    if kind == "list":
        items = [unfold(item) for item in tree[2]]
        return ("list", tree[1], tuple(x for item in items for x in (item[2] if item[0] == "list" else (item,))))
    if kind == "rel" and tree[1][-1] == "≈":                          # \sqrt2 \approx 1.41 is \sqrt2, x \approx 1.41 is 1.41
        exact = len(tree[2]) == 2 and not named(tree[2][0])
        return unfold(tree[2][0] if exact else ("rel", (*tree[1][:-1], "="), tree[2]))
    if kind == "rel" and {*tree[1]} == {"="}:
        first, last = tree[2][0], tree[2][-1]
        if first[0] == last[0] == "seq" and len(first[3]) == len(last[3]) and all(x[0] == "sym" for x in first[3]):
            return ("list", "and", tuple(("rel", ("=",), pair) for pair in zip(first[3], last[3], strict=True)))
        if len(tree[2]) > 2 and all(x[0] == "sym" for x in tree[2][:-1]):
            return ("list", "and", tuple(("rel", ("=",), (x, last)) for x in tree[2][:-1]))
    if kind == "rel" and tree[1] == ("∈",) and named(tree[2][0]):
        return tree[2][1]
    if (plus := branch(tree, 1)) != tree:
        return ("list", "or", (plus, branch(tree, -1)))
    return tree


def branch(tree, sign: int):
    """The tree with its plus-minus signs read as plus (1) or as minus (-1)."""
    if not isinstance(tree, tuple) or not tree:
        return tree
    if tree[0] == "±":
        return branch(tree[1], sign) if sign > 0 else neg(branch(tree[1], sign))
    return tuple(branch(part, sign) for part in tree)


def named(tree) -> bool:
    """Whether a tree is a name rather than a value, with letters and no numbers: x, AB, f(2), |AB|, AB/CD, (x, y), sin A."""
    call = tree[0] == "fn" and tree[1].startswith("call")
    return call or (bool(leaves(tree, "sym") or leaves(tree, "text")) and not leaves(tree, "num"))


def worth(tree) -> tuple:
    """What an equation says that something named is: 3 in "x = 3" and "3 = x", 6/2 and 3 in "x = 6/2 = 3"; () if nothing."""
    sides = tree[2]
    if len(sides) == 2 and named(sides[1]) and not leaves(sides[0], "sym"):
        sides = sides[::-1]
    whole = sides[0][0] in ("sym", "fn", "seq", "text") or not leaves(sides[-1], "sym")        # ab = 6, but not ab = cd
    return sides[1:] if named(sides[0]) and whole else () if leaves(sides[0], "sym") else sides


def unnamed(items: list) -> list:
    """x = 1, x = 2 (or x_1, x_2, or only the first named) as the values 1, 2; equations of different names stay as they are."""
    names = [x[2][0] for x in items if x[0] == "rel" and x[1] == ("=",) and named(x[2][0])]
    if len({str(name[1]).split("_")[0] for name in names}) == 1 and len(names) in (1, len(items)) and items[0][0] == "rel":
        return [x[2][-1] if x[0] == "rel" else x for x in items]
    return items


def pairs(tree) -> list:
    """a < b <= c as pairs (sign, left, right), with > turned into <."""
    turned = {">": "<", "≥": "≤"}
    return [(turned[sign], right, left) if sign in turned else (sign, left, right)
            for sign, left, right in zip(tree[1], tree[2], tree[2][1:], strict=False)]


def difference(left, right):
    return ("+", left, ("*", MINUS, right))


# ------------------------------------------------------------------------------------------------------------- deciding

@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one answer: `score` 1.0 or 0.0; `verdict` one of right, wrong, no_answer, unparsed, too_large,
    timeout, crashed; `answer` the extracted text or None; `rule` the rule that decided, for people."""
    score: float
    verdict: str
    answer: str | None
    rule: str


NUMBER = re.compile(r"([+-]?)(?:(\d{1,3}(?:,\d{3})+|\d+)(?:\.(\d*))?|\.(\d+))\.?")
CHOICE = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?(?:\(([A-J])\)|([A-J])(?:[).]|:(?=\s)|$))"
                    r"(?![-(])(?!\s*(?:[,;&^_+*/=!<>]|and\b|or\b))\s*(.*)", re.I | re.S)      # not (a)(b), (a)^2, A:B
WORDS = re.compile(r"(?=.*[a-zA-Z]{2})[a-zA-Z][a-zA-Z\s.,;'\"()-]*")


def number(text: str) -> tuple[Fraction, int] | None:
    """The value and the decimal places of a short plain integer or decimal, else None."""
    if len(text) > 30 or not (match := NUMBER.fullmatch(text)):
        return None
    whole, part = (match[2] or "0").replace(",", ""), match[3] or match[4] or ""
    return Fraction(int(match[1] + whole + part), 10 ** len(part)), len(part)


def rounds(value, places: int | None, truth: Fraction, due: int | None) -> bool:
    """Rule 4: the truth is a decimal (`due` places) of three digits or more, and the value, exact (`places` None) or of no
    fewer places, rounds to it: within half a unit of its last place."""
    if not due or abs(truth) * 10 ** due < 100 or (places is not None and places < due):
        return False
    return abs(value - truth) * 2 * 10 ** due <= 1


def quick(answer: str | None, truth: str) -> Verdict | None:
    """The verdict when it needs no algebra (no answer; the same string; two short numbers), else None. Microseconds."""
    if answer is None:
        return Verdict(0.0, "no_answer", None, "no final answer found")
    a, t = (text.strip("$ \n").rstrip(". ") for text in (answer, truth))
    if a == t and (a or answer == truth):
        return Verdict(1.0, "right", answer, "the same string")
    if (left := number(a)) and (right := number(t)):
        fits = left[0] == right[0] or rounds(*left, *right)
        return Verdict(float(fits), "right" if fits else "wrong", answer, "two plain numbers")
    return None


def choice(text: str) -> tuple[str, str] | None:
    """The letter and the rest of "(C)", "C.", "(B) 12"; None if the text is no choice."""
    match = CHOICE.fullmatch(text)
    return ((match[1] or match[2]).upper(), match[3]) if match else None


def decide(answer: str, truth: str) -> tuple[str, str]:
    """(verdict, rule) for a bare answer."""
    if len(answer) > MAX_CHARS or len(truth) > MAX_CHARS:
        return "too_large", f"more than {MAX_CHARS} characters"
    a, t = key(answer), key(truth)
    if not a or not re.search(r"[^\W_]|\\|[^ -~]", a):
        return "no_answer", "nothing in the box"
    if a == t:
        return "right", "the same string after cleaning"
    left, right = (WRAP.sub(r"\1", clean(text)).strip() for text in (answer, truth))
    chosen, due = choice(left), None if right.islower() and len(right) == 1 else choice(right)     # the truth "a" is a letter
    if due and chosen:
        return ("right" if chosen[0] == due[0] else "wrong"), "choices by letter"
    if due and due[1]:
        return decide(answer, due[1])
    if chosen and chosen[1] and not due:
        return decide(chosen[1], truth)
    worded = [bool(re.search(r"\\(?:text|mbox|mathrm)", text)) for text in (answer, truth)]
    words = len(right) > 3 or (len(right) == 3 and left.isupper() == right.isupper())     # Yes = yes, but abc is not ABC
    if WORDS.fullmatch(right) and WORDS.fullmatch(left) and (any(worded) or words):
        plain = [re.sub(r"^(?:the|a|an)(?=\W)|s\b|[^a-z]", "", text.lower()) for text in (left, right)]
        if plain[0] == plain[1]:
            return "right", "the same words"
        if worded[1]:
            return "wrong", "words"
    return algebra(clean(answer), clean(truth))


def algebra(answer: str, truth: str) -> tuple[str, str]:
    """Parse and compare under each reading that the truth allows."""
    deadline, verdict, rule = time.thread_time() + SECONDS, "wrong", ""
    grouped = THOUSANDS.search(answer) or THOUSANDS.search(truth)
    readings = [True, False] if grouped else [False]
    if THOUSANDS.search(truth) and re.match(r"\\?[\[({]", truth):
        readings = [False]                                          # (1,234) is a pair
    logs = [1, 10] if re.search(r"\\?log(?!_)", answer + truth) else [1]
    for thousands, log_base in itertools.product(readings, logs):
        try:
            t = parse(truth, thousands)
        except Refused as refused:
            verdict, rule = "unparsed", f"the truth cannot be read: {refused.args[1]}"
            continue
        try:
            a = parse(answer, thousands)
            comparer = Comparer(log_base, deadline)
            if comparer.same(a, t):
                return "right", comparer.rule
            verdict, rule = "wrong", comparer.rule
        except Refused as refused:
            verdict, rule = refused.args
        except (MemoryError, OverflowError, RecursionError) as error:
            verdict, rule = "too_large", str(error) or type(error).__name__
    return verdict, rule


def judge(text: str, truth: str) -> Verdict:
    """Extract, parse and compare. Never raises; bounded in time and memory by itself, so that it can be called directly."""
    return judge_answer(extract(text), truth)


def judge_answer(answer: str | None, truth: str) -> Verdict:
    """The verdict on a bare answer, None if there is none."""
    if verdict := quick(answer, truth):
        return verdict
    try:
        verdict, rule = decide(answer, truth)
    except Exception as error:      # a fault of ours must not stop a run: it scores 0, under a verdict that is counted
        verdict, rule = "crashed", f"please report this: {type(error).__name__}: {error}"
    return Verdict(float(verdict == "right"), verdict, answer, rule)


def equal(answer: str, truth: str) -> bool:
    """Whether the bare `answer` (no box around it) equals `truth`. Never raises."""
    return judge_answer(answer, truth).score == 1.0


def score(text: str, truth: str) -> float:
    """1.0 if the final answer in `text` equals `truth`, else 0.0. Never raises."""
    return judge(text, truth).score


# ------------------------------------------------------------------------------------------------------------- workers

class Grader:
    """Grade in worker processes that can be killed: each answer has `timeout_s` seconds and each worker `memory_gb` GB.

    A worker is this file run by a fresh interpreter, with lines of JSON on its pipes. It is not a multiprocessing child:
    those import the caller's main script again, and with it torch. Answers that need no algebra are decided at once in the
    caller; the first that does starts a worker. Any thread may submit; `close`, or leaving the `with` block, ends the
    workers when they have done what was submitted. `submit` after that raises RuntimeError.
    """

    def __init__(self, workers: int = 1, timeout_s: float = 5.0, memory_gb: float = 1.0):
        if workers < 1 or timeout_s <= 0 or memory_gb <= 0:
            raise ValueError(f"workers {workers}, timeout_s {timeout_s}, memory_gb {memory_gb}: all must be positive")
        self.timeout_s, self.command = timeout_s, [sys.executable, __file__, "--worker", str(memory_gb)]
        self.own, self.started, self.closed = threading.local(), [], False
        self.threads = ThreadPoolExecutor(workers, initializer=lambda: setattr(self.own, "worker", None))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def submit(self, text: str, truth: str) -> "Future[Verdict]":
        """A future of the verdict on one completion; already done when no algebra is needed."""
        if self.closed:
            raise RuntimeError("this Grader is closed: make a new one, or submit before leaving its `with` block")
        answer = extract(text)
        if not (verdict := quick(answer, truth)):
            return self.threads.submit(self._ask, answer, truth)
        future = Future()
        future.set_result(verdict)
        return future

    def grade(self, texts: list[str], truths: list[str]) -> list[Verdict]:
        """The verdicts on a batch, in its order. ValueError if the two lists differ in length."""
        futures = [self.submit(text, truth) for text, truth in zip(texts, truths, strict=True)]
        return [future.result() for future in futures]

    def close(self):
        """Finish what was submitted, then end the workers."""
        self.closed = True
        self.threads.shutdown()
        for worker in self.started:
            worker.communicate()

    def _ask(self, answer: str, truth: str) -> Verdict:
        """The verdict of this thread's own worker, which is started first if there is none or it is dead."""
        worker, late = self.own.worker, threading.Event()
        alarm = threading.Timer(self.timeout_s, lambda: (late.set(), worker.kill()))
        try:
            if worker is None or worker.poll() is not None:
                worker = self.own.worker = self._start()
            alarm.start()
            worker.stdin.write(json.dumps([answer, truth]) + "\n")
            worker.stdin.flush()
            return Verdict(**json.loads(worker.stdout.readline()))
        except (OSError, ValueError) as error:                          # its pipe closed: it was killed, or died
            self.own.worker = None
            return Verdict(0.0, "timeout" if late.is_set() else "crashed", answer, f"the worker was lost: {error!r}")
        finally:
            alarm.cancel()

    def _start(self) -> subprocess.Popen:
        worker = subprocess.Popen(self.command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.started.append(worker)
        worker.stdout.readline()        # ready: its start does not count against the first answer
        return worker


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
            cases = [json.loads(line) for line in file if line.strip()]
        wrong = 0
        for case in cases:
            verdict = judge(case["completion"], case["gold"])
            if case["expected"] is not None and verdict.score != case["expected"]:
                wrong += 1
                print(f"{case.get('kind', '')}: answer {verdict.answer!r}, truth {case['gold']!r}, "
                      f"expected {case['expected']}, found {verdict.verdict} by {verdict.rule!r}")
        return print(f"{len(cases) - wrong} of {len(cases)} agree ({(len(cases) - wrong) / max(len(cases), 1):.1%})")
    if args.answer is None or args.truth is None:
        parser.error("give --answer and --truth, or --file")
    began = time.perf_counter()
    answer = extract(args.answer) or args.answer
    verdict = judge_answer(answer, args.truth)
    took = time.perf_counter() - began
    for name, text in (("answer", answer), ("truth", args.truth)):
        print(f"{name:9}{text}")
        try:
            print(f"{'read as':9}{parse(clean(text), True)}")
        except Refused as refused:
            print(f"{'read as':9}{': '.join(refused.args)}")
    print(f"{'verdict':9}{verdict.verdict}\n{'rule':9}{verdict.rule}\n{'time':9}{took * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
