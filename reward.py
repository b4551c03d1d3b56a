r"""Decide whether a model's final answer equals the reference: the reward of reinforcement learning on mathematics.

    extract (where is the answer) -> parse (what does it say) -> same (does it say what the truth says) -> 1.0 or 0.0

The rules of equality, in plain English:
 1. The answer is what stands in the last box; an empty or unclosed box is no answer, and prose does not fill it.
 2. Spelling does not matter: spaces, dollar signs, \left, \dfrac, doubled backslashes, a closing period, 1,000 for 1000.
 3. Exact numbers must be exactly equal: 1/2 = 0.5 = 50%, but 0.33 is not 1/3 and 857499 is not 857500.
 4. Only a truth that is itself a rounded decimal (three digits or more) can be met by rounding: 1.41 by \sqrt2, or by 1.414.
 5. Expressions are equal when they are equal wherever both are defined; letters are case-sensitive.
 6. A name in front ("x =", "f(x) =", "x \in"), a unit, a degree or a percent sign may be missing on one side. On both
    sides they must agree: 4% is not 40%, 5 dollars are not 5 cents, x = 2 is not y = 2.
 7. Order counts in tuples, vectors, matrices and ratios (2:4 = 1:2); it does not in sets and lists. A hedge ("540 or 542") is
    a list of two. Brackets count: (0, 1] is not (0, 1), and {2, 3} is not (2, 3).
 8. Equations may differ by a non-zero factor, inequalities by a positive one; linear inequalities equal their intervals.
 9. A choice is its letter: (C), C. and \textbf{(C) } 12 agree. Words are compared without case.
10. Where a text has two readings (1,000 as a number or a list; \log to base e or 10), the one that suits the truth counts.

Where we deviate: expressions become our own small tuples, not sympy objects, and nothing is simplified. A sympy object computes
while it is built (2**10**10 hangs) and its simplifiers have no bound; instead, trees are evaluated at random points (fixed
seed), exactly in fractions, or else with mpmath, sympy's arithmetic, at 60 digits and more. That decides the same questions in
well under a millisecond, and every size is checked before anything is computed. Text is never evaluated as code.
"""
import argparse
import itertools
import json
import math
import operator
import queue
import random
import re
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache, reduce

# Bounds, checked before computing. The longest truth of the study has 78 characters; the longest literal has 13 digits.
MAX_CHARS, MAX_TOKENS, MAX_DEPTH, MAX_ITEMS = 3000, 1500, 40, 200
MAX_BITS = 120_000     # of an exact integer: 2008^{2006} has 22,008, 8000! has 91,000
MAX_DIGITS = 1000      # of a literal
SECONDS = 1.0          # for one comparison; reached by nothing known, a second line of defence


class Unreadable(Exception):
    """The text is not mathematics that we know."""


class TooLarge(Exception):
    """Computing this would exceed a bound."""


class Late(Exception):
    """The comparison has used its time."""


class Undefined(ArithmeticError):
    """No value here: 0/0, or not a real number where reals are meant."""


class Inexact(Exception):
    """Not a rational number: evaluate it with mpmath instead."""


# ---------------------------------------------------------------------------------------------------------- where is it

BOX = re.compile(r"\\+(?:boxed|fbox)\s*(\{)|\\+(?:boxed|fbox)\s+([^\s{}$\\]+)|\\.|[{}]", re.S)
HASHES = re.compile(r"####[ \t]*([^\n]+)")
PROSE = re.compile(r"(?:\banswer\s+is\b:?|\bfinal answer\W{0,4}:)[ \t*]*([^\n]+)", re.I)


def extract(text: str) -> str | None:
    r"""The final answer in `text`, or None: the last balanced \boxed{...} or \fbox{...} after the last </think>, else
    what follows ####, else the last "answer is ..." or "final answer: ...". An empty box, or one that is never closed
    when there is no other, is no answer. Linear in the text's length."""
    text = text[text.rfind("</think>") + 8:] if "</think>" in text else text
    stack, last, opened = [], None, False
    for match in BOX.finditer(text):
        if match[1] or match[0] == "{":
            stack.append(match.end() if match[1] else -1)
            opened = opened or bool(match[1])
        elif match[2]:
            last = match[2]
        elif match[0] == "}" and stack and (start := stack.pop()) >= 0:
            last = text[start:match.start()]
    if last is None and not opened:
        last = next((found[-1] for pattern in (HASHES, PROSE) if (found := pattern.findall(text))), None)
    return last.strip() or None if last is not None else None


# ------------------------------------------------------------------------------------------------------------- spelling

UNICODE = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "∙": "\\cdot ", "⋅": "\\cdot ", "÷": "\\div ", "±": "\\pm ",
    "∓": "\\mp ", "√": "\\sqrt ", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ",
    "≠": "\\ne ", "≈": "\\approx ", "≡": "\\equiv ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ", "ℝ": "\\R ",
    "°": "^\\circ ", "º": "^\\circ ", "′": "'", "’": "'", "“": '"', "”": '"', "…": "\\ldots ", "⁄": "/", "∕": "/", "∣": "|",
    "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "⟨": "\\langle ", "⟩": "\\rangle ", "∖": "\\setminus ",
    "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}",
    "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "θ": "\\theta ", "λ": "\\lambda ", "φ": "\\phi ", "ω": "\\omega ",
    "€": "\\euro ", "£": "\\pound ", "¥": "\\yen ", "，": ",", "。": ".", "；": ";", "：": ":",
    "\u200b": "", "\ufeff": "", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "∘": "\\circ ",
    **{chr(0xFF01 + i): chr(0x21 + i) for i in range(94) if chr(0x21 + i) not in ",;:"},
    **{c: f"^{{{i}}}" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}, "⁻": "^{-}", "ⁿ": "^{n}",
    **{c: f"_{{{i}}}" for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")}})
STYLE = "text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mathit|mathtt|mbox|hbox|rm|bf|boldsymbol|bm|emph"
WRAP = re.compile(rf"\\(?:{STYLE})\s*\{{([^{{}}]*)\}}")
CLEAN = [(re.compile(pattern), new) for pattern, new in (
    (r"\\\\\s*\[-?[\d.]+\s*(?:pt|em|ex|mm)\]", r"\\\\"),                        # \\[2pt] between rows
    (r"\\(?:boxed|fbox)\s*(?=\{)|\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it)(?![a-zA-Z])", ""),
    (r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|middle)(?![a-zA-Z])\s*\.?", ""),
    (r"(?<!\\)\\[()\[\]]|(?<!\\)\$", " "),                                             # \( \) \[ \] $
    (r"(?<=\d)\s*(?:\{,\}|,\\!|\\!,|\{,\\!\})\s*(?=\d{3})", ""),               # 1{,}000 and 3,\!250
    (r"(?<!\\)\\[!,;:> ]|~|\\q?quad(?![a-zA-Z])|\\[hv]space\*?\{[^{}]*\}|\\(?:thin|med|thick)space|\\phantom\{[^{}]*\}", " "),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"), (r"\\[dt]binom", r"\\binom"),
    (r"\(\s*(?:\\[bp]?mod\b|\\(?:text|mathrm)\{\s*mod\s*\}|mod\b)\s*\{?([^(){}]*)\}?\s*\)", r"\\pmod{\1}"),  # (mod 4)
    (r"([\])}])\s*U\s*(?=[\[(\\])", r"\1\\cup "),                               # (0,1) U (2,3)
    (r"\{([^{}]*)\\over(?![a-z])([^{}]*)\}", r"\\frac{\1}{\2}"), (r"\{([^{}]*)\\choose(?![a-z])([^{}]*)\}", r"\\binom{\1}{\2}"),
    (r"\b([ap])\.\s?m\.?(?![a-z])", r"\1m"), (r"\*\*", "^"))]
EVEN = re.compile(r"(?<!\\)(?:\\\\)+(?!\\)")


@lru_cache(8192)
def clean(text: str) -> str:
    r"""One spelling for what has many: unicode, doubled backslashes, spacing, math delimiters, \left, a closing period."""
    text = text.translate(UNICODE).strip()
    if "\\\\" in text and ("\\begin" not in text or not re.search(r"(?<!\\)\\(?!\\)", text)):
        text = EVEN.sub(lambda run: run[0][::2], text)        # every backslash is doubled, as in about one truth in nine
    for pattern, new in CLEAN:
        text = pattern.sub(new, text)
    return re.sub(r"\s+", " ", re.sub(r"[\s.,;]+$", "", text)).strip()


def key(text: str) -> str:
    """The cleaned text without styles and spaces (but "1 2" is not "12"): equal keys are the same answer."""
    text = WRAP.sub(r"\1", WRAP.sub(r"\1", clean(text)))
    return re.sub(r"[\s.,;]+$", "", re.sub(r"(?<!\d) | (?!\d)", "", re.sub(r"\s+", " ", text))).replace("{}", "")


# ------------------------------------------------------------------------------------------------------------- tokens

FUNCTIONS = {name: name for name in "sin cos tan cot sec csc sinh cosh tanh coth exp log lg ln max min gcd lcm arg Re Im".split()}
FUNCTIONS |= {f"{arc}{name}": f"a{name}" for arc in ("arc", "a") for name in "sin cos tan cot sec csc sinh cosh tanh".split()}
FUNCTIONS |= {"tg": "tan", "ctg": "cot", "arctg": "atan", "cosec": "csc", "cis": "cis", "deg": "deg", "Gamma": "Gamma"}
GREEK = set("""alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi
    varphi chi psi omega Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar aleph R Z N Q C""".split())
OPERATORS = {  # LaTeX command -> the one sign we use
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "pm": "±", "mp": "∓", "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥",
    "geq": "≥", "geqslant": "≥", "lt": "<", "gt": ">", "ne": "≠", "neq": "≠", "approx": "≈", "sim": "~", "simeq": "≈",
    "equiv": "≡", "in": "∈", "cup": "∪", "cap": "∩", "setminus": "∖", "backslash": "∖", "mid": "∣", "vert": "|", "lvert": "|",
    "rvert": "|", "colon": ":", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "land": "and", "wedge": "and",
    "lor": "or", "vee": "or", "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉",
    "prime": "'", "perp": "⊥", "parallel": "∥", "ldots": "…", "cdots": "…", "dots": "…", "circ": "°", "degree": "°",
    "percent": "%", "lparen": "(", "rparen": ")", "Vert": "|", "gets": "=", "to": "→", "rightarrow": "→"}
COMMANDS = set("frac sqrt binom choose pi infty emptyset varnothing begin end overline bar dot pmod bmod mod angle triangle vec hat "
               "mathbb mathcal operatorname widehat overrightarrow tilde euro pound yen underline measuredangle".split())
KNOWN = sorted({*FUNCTIONS, *GREEK, *OPERATORS, *COMMANDS, *STYLE.split("|")}, key=len, reverse=True)
SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
UNITS = {name: group.split()[0] for group in """cm centimeter centimetre|m meter metre|km kilometer kilometre|mm millimeter|in inch
    inches|ft foot feet|yd yard|mi mile|g gram|kg kilogram|mg milligram|lb pound lbs|oz ounce|s sec second|min minute|h hr hour|day|week
    |month|year|dollar usd|cent|mph|kph|L l liter litre|ml mL|gallon|unit|acre|rad radian|N|J|W|V|K|Hz|point|people|person|way|time
    |am|pm|solution|term|digit|sqft|square sq|cubic|integer|prime|side|number""".split("|") for name in group.split()}
UNITS |= {f"{name}s": unit for name, unit in UNITS.items() if len(name) > 2}
NOT_UNITS = set("not no but if unless than more less except without plus minus times over undefined none mod base for where when".split())
NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()

TOKEN = re.compile(r"""
    (?P<num>(?:\d+\.?\d*|\.\d+)(?:(?:\\overline|\\bar|\\dot)\s*(?:\{\d+\}|\d)|(?<=\.)\(\d+\)|(?:\.\.\.|\s?\\[lc]?dots)(?!\s*[+,])
        |[eE][+-]?\d+(?![a-zA-Z\d]))?)
    |\\(?P<cmd>[a-zA-Z]+)|(?P<row>\\\\)|\\(?P<esc>[{}%$|&\#_])|(?P<run>[a-zA-Z]+)|(?P<dots>\.\.\.)
    |(?P<op><=|>=|!=|==|[-+*/^_=<>()\[\]{}|,;:!'%&])|(?P<space>\s+)""", re.X)


def tokens(text: str, words: bool = False, found: list | None = None) -> list[tuple[str, object]]:
    r"""`text` as (kind, value) pairs: num (literal), sym, fn, cmd, word, cur, or the sign itself. In `words` (the inside of
    \text{}) a run of letters is a word; outside it is a product of letters unless it has a name or is a unit."""
    found, at = [] if found is None else found, 0
    while at < len(text):
        if words and text[at] == ".":
            at += 1
            continue
        if not (match := TOKEN.match(text, at)):
            raise Unreadable(f"unknown sign {text[at]!r}")
        at, kind, value = match.end(), match.lastgroup, match[match.lastgroup]
        after_number = bool(found) and (found[-1][0] in ("num", ")", "}", "word", "°", "fact", "cur"))
        if kind == "num":
            found.append(("num", value))
        elif kind == "cmd":
            if value in STYLE.split("|"):
                if inner := re.compile(r"\s*\{([^{}]*)\}").match(text, at):
                    at = inner.end()
                    tokens(inner[1], value not in ("mathbf", "boldsymbol", "bm", "mathit"), found)
                continue
            if value not in KNOWN:      # \piR, \cosx, \leqslantT: a command glued to letters, an old slip in the data
                if not (prefix := next((name for name in KNOWN if len(name) > 1 and value.startswith(name)), None)):
                    raise Unreadable(f"unknown command \\{value}")
                at -= len(value) - len(prefix)
                value = prefix
            if value == "operatorname":
                if not (inner := re.compile(r"\*?\s*\{([a-zA-Z]+)\}").match(text, at)) or inner[1] not in FUNCTIONS:
                    raise Unreadable("unknown operator name")
                at, value = inner.end(), inner[1]
            if value in FUNCTIONS:
                found.append(("fn", FUNCTIONS[value]))
            elif value in GREEK:
                found.append(("sym", value))
            elif value in OPERATORS:
                found.append((OPERATORS[value], None))
            elif value in ("euro", "pound", "yen"):
                found.append(("cur", value))
            else:
                found.append(("cmd", value))
        elif kind == "run":
            found += letters(value, words, after_number, text[match.start() - 1:match.start()] == " ")
        elif kind == "esc":
            found.append({"{": ("\\{", None), "}": ("\\}", None), "$": ("cur", "dollar")}.get(value, (value, None)))
        elif kind == "op":
            found.append(({"<=": "≤", ">=": "≥", "!=": "≠", "==": "="}.get(value, value), None))
        elif kind != "space":
            found.append(({"row": "row", "dots": "…"}[kind], None))
        if len(found) > MAX_TOKENS:
            raise TooLarge(f"more than {MAX_TOKENS} tokens")
    return found


def letters(run: str, words: bool, after_number: bool, spaced: bool) -> list[tuple[str, object]]:
    """The tokens of a run of letters: connectives, functions, scales and units by name; else a word, or a product."""
    low = run.lower()
    if low in ("and", "or"):
        return [(low, None)]
    if low in SCALE and after_number:
        return [("*", None), ("num", str(SCALE[low]))]
    if low in ("percent", "degree", "degrees"):
        return [("%" if low == "percent" else "°", None)]
    if words and low == "per":
        return [("/", None)]
    if run == "mod":
        return [("cmd", "mod")]
    if run in FUNCTIONS and not (after_number and run in UNITS):
        return [("fn", FUNCTIONS[run])]
    if not words or run in ("e", "i", "x", "y"):
        if run in ("pi", "sqrt", "infty", "binom") or low in ("infinity", "inf"):
            return [("cmd", "infty" if low.startswith("inf") else run)]
        if run in GREEK and len(run) > 2:
            return [("sym", run)]
        if (glued := re.match(r"sin|cos|tan|ln|log", run)) and len(run) - glued.end() == 1:
            return [("fn", glued[0]), ("sym", run[-1])]
        if not (after_number and ((len(run) > 1 and run in UNITS) or (spaced and (len(run) > 4 or (len(run) > 1 and low in UNITS))))):
            return [("sym", letter) for letter in run]
    if len(run) == 1 and not (after_number and run in UNITS):
        return [("sym", run)]
    return [("word", run)]


# ------------------------------------------------------------------------------------------------------------- parsing
# A tree is a tuple: ("num", Fraction, decimal places or None), ("sym", name), ("const", pi|e|i|oo), ("+", ...), ("*", ...),
# ("^", base, exponent), ("fn", name, ...), ("pm", x), ("mark", unit, x), ("base", x as read in base 10, value), ("text", words),
# ("seq", open, close, items), ("set", items), ("list", joiner, items), ("rel", signs, sides), ("mod", relation, modulus),
# ("mat", rows), ("ratio", items), ("∪" | "∩" | "∖", a, b), ("R",).

def num(value, places=None):
    return ("num", Fraction(value), places)


MINUS = num(-1)
RELATIONS = set("=≠<≤>≥≈≡∈~∣⊥∥→")
STARTS = {"num", "sym", "fn", "cmd", "(", "[", "{", "\\{", "⟨", "⌊", "⌈", "…", "cur"}
CLOSERS = {"(": ")]", "[": "])", "⟨": "⟩", "{": "}", "\\{": ("\\}",), "⌊": "⌋", "⌈": "⌉"}


def neg(x):
    return ("num", -x[1], x[2]) if x[0] == "num" else ("*", MINUS, x)


def literal(text: str):
    r"""A number as written: 12, .5, 0.\overline{3}, 0.333..., 3.2e5. TooLarge beyond MAX_DIGITS digits."""
    if len(text) > MAX_DIGITS:
        raise TooLarge(f"a number of {len(text)} characters")
    mantissa, _, power = text.lower().partition("e") if "\\" not in text else (text, "", "")
    if abs(int(power or 0)) > MAX_DIGITS:
        raise TooLarge(f"the literal {text}")
    head = re.match(r"(\d*)\.?(\d*)", mantissa)
    whole, part, tail = head[1], head[2], mantissa[head.end():]
    value = Fraction(int(whole + part or "0"), 10 ** len(part)) * Fraction(10) ** int(power or 0)
    period = "".join(re.findall(r"\d", tail))
    if tail and not period and (again := re.search(r"(\d+?)\1{2,}$", part)):
        period = again[1]                                           # 0.333... : the decimals go on as they repeat
        value, part = Fraction(int(whole + part[:again.start()] or "0"), 10 ** again.start()), part[:again.start()]
    if period:
        return num(value + Fraction(int(period), 10 ** len(part) * (10 ** len(period) - 1)))
    return num(value, len(part) if part and not power else None)


class Parser:
    """Recursive descent over the tokens, one method per level of precedence, the loosest first."""

    def __init__(self, text: str):
        self.found, self.at, self.depth, self.bars, self.builder = tokens(text), 0, 0, 0, False

    def peek(self, ahead=0):
        return self.found[self.at + ahead][0] if self.at + ahead < len(self.found) else "end"

    def take(self):
        self.at += 1
        return self.found[self.at - 1][1]

    def need(self, signs):
        if self.peek() not in tuple(signs):
            raise Unreadable(f"expected {' or '.join(signs)}, found {self.peek()}")
        self.at += 1
        return self.found[self.at - 1][0]

    def parse(self):
        tree = self.listing(",;")
        if self.peek() != "end":
            raise Unreadable(f"cannot read on at {self.peek()}")
        return tree

    def listing(self, separators=",;"):
        """a, b and c"""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge(f"nested deeper than {MAX_DEPTH}")
        items, joiner = [self.relation()], ","
        while self.peek() in (*separators, "and", "or"):
            while self.peek() in (*separators, "and", "or"):
                joiner = self.peek() if self.peek() in ("and", "or") else joiner
                self.at += 1
            if self.peek() in ("end", "}", ")", "\\}"):
                break
            items.append(self.relation())
        self.depth -= 1
        if len(items) > MAX_ITEMS:
            raise TooLarge(f"a list of more than {MAX_ITEMS}")
        return items[0] if len(items) == 1 else ("list", joiner, tuple(items))

    def relation(self):
        """a < b = c (mod m)"""
        if self.peek() in ("=", "≈"):       # "= 5"
            self.at += 1
        sides, signs = [self.union()], []
        while self.peek() in RELATIONS and not (self.peek() == "∣" and self.builder):
            signs.append(self.peek())
            self.at += 1
            sides.append(self.union())
        tree = ("rel", tuple(signs), tuple(sides)) if signs else sides[0]
        if self.peek() == "cmd" and self.found[self.at][1] in ("pmod", "mod", "bmod"):
            self.at += 1
            tree = ("mod", tree, self.argument())
        return tree

    def union(self):
        tree = self.ratio()
        while self.peek() in ("∪", "∩", "∖"):
            sign = self.peek()
            self.at += 1
            tree = (sign, tree, self.ratio())
        return tree

    def ratio(self):
        items = [self.sum()]
        while self.peek() == ":" and not self.builder:
            self.at += 1
            items.append(self.sum())
        return items[0] if len(items) == 1 else ("ratio", tuple(items))

    def sum(self):
        terms, sign = [], "+"
        while True:
            while self.peek() in ("+", "-"):
                sign = {"++": "+", "+-": "-", "-+": "-", "--": "+", "±-": "∓", "∓-": "±"}.get(sign + self.peek(), sign)
                self.at += 1
            if self.peek() in ("±", "∓"):
                sign = self.peek() if sign == "+" else {"±": "∓", "∓": "±"}[self.peek()]
                self.at += 1
                continue
            term = self.product()
            terms.append({"+": term, "-": neg(term), "±": ("pm", term), "∓": ("pm", neg(term))}[sign])
            if self.peek() not in ("+", "-", "±", "∓"):
                return terms[0] if len(terms) == 1 else ("+", *terms)
            sign = "+"

    def product(self):
        """Factors joined by signs or nothing, then units. 1/2x is (1/2)x, as in one line of print."""
        factors = [self.power()]
        while True:
            sign = self.peek()
            if sign in ("*", "/"):
                self.at += 1
                minus = False
                while self.peek() in ("-", "+"):
                    minus ^= self.peek() == "-"
                    self.at += 1
                factor = self.power()
                factor = neg(factor) if minus else factor
                factors.append(factor if sign == "*" else ("^", factor, MINUS))
            elif sign == "word" or sign == "cur":
                factors = [self.marked(factors[0] if len(factors) == 1 else multiply(factors))]
            elif (sign in STARTS and not self.stop()) or (sign == "|" and not self.bars):
                left, factor = factors[-1], self.power()
                if left[0] == factor[0] == "num" or ((mixed := mixed_number(left, factor)) and len(factors) == 1):
                    if left[0] == factor[0] == "num":                # 12 3/5
                        if self.peek() != "/" or left[2] is not None or factor[2] is not None or len(factors) > 1:
                            raise Unreadable("two numbers side by side")
                        self.at += 1
                        mixed = mixed_number(left, ("*", factor, ("^", self.power(), MINUS)))
                        if mixed is None:
                            raise Unreadable("two numbers side by side")
                    factors = [mixed]
                else:
                    factors.append(factor)
            else:
                return factors[0] if len(factors) == 1 else multiply(factors)

    def stop(self):
        return self.peek() == "cmd" and self.found[self.at][1] in ("pmod", "mod", "bmod", "end", "choose")

    def marked(self, tree):
        """5 cm^2, 3 feet/s, 12 apples: the words after a quantity are its unit."""
        unit = []
        while self.peek() in ("word", "cur") or (unit and (self.peek() == "^" or (self.peek() in "/*" and self.peek(1) in ("word", "sym")))):
            kind, value = self.found[self.at]
            self.at += 1
            if kind in ("^", "/", "*"):
                tail = self.argument() if kind == "^" else self.found[self.at][1]
                self.at += kind != "^"
                unit.append(f"{kind}{tail[1] if kind == '^' else UNITS.get(tail, tail)}")
            elif value.lower() in NOT_UNITS:
                raise Unreadable(f"the word {value!r} is no unit")
            else:
                unit.append(UNITS.get(value, UNITS.get(value.lower(), value.lower())))
        area = {"square": "^2", "cubic": "^3"}.get(unit[0]) if len(unit) > 1 else None
        return ("mark", " ".join([*unit[1:], area] if area else unit), tree)

    def power(self):
        tree = self.atom()
        while True:
            sign = self.peek()
            if sign == "^":
                self.at += 1
                if self.peek() == "°" or (self.peek() == "{" and self.peek(1) == "°" and self.peek(2) == "}"):
                    self.at += 1 if self.peek() == "°" else 3
                    tree = self.degrees(tree)
                elif self.peek() == "'":
                    continue
                else:
                    tree = ("^", tree, self.argument(whole=True))
            elif sign == "°":
                self.at += 1
                tree = self.degrees(tree)
            elif sign == "%":
                self.at += 1
                tree = ("mark", "%", tree)
            elif sign == "!":
                self.at += 1
                double = self.peek() == "!"
                self.at += double
                tree = ("fn", "fact2" if double else "fact", tree)
            elif sign == "'" and tree[0] == "sym":
                self.at += 1
                tree = ("sym", tree[1] + "'")
            else:
                return tree

    def degrees(self, tree):
        if self.peek() in ("sym", "word") and self.found[self.at][1] in ("C", "F"):     # 77 degrees F
            self.at += 1
            return ("mark", "deg" + self.found[self.at - 1][1], tree)
        return ("mark", "deg", tree)

    def argument(self, whole=False):
        r"""What a command or a sign applies to: a group, or one token. \frac12 takes one digit each; 2^10 takes the number."""
        if self.peek() == "{":
            self.at += 1
            tree = self.listing()
            self.need("}")
            return tree
        if self.peek() == "num" and not whole:
            digits = self.found[self.at][1]
            if len(digits) > 1 and digits.isdigit():
                self.found[self.at] = ("num", digits[1:])
                return literal(digits[0])
        if whole and self.peek() in ("-", "+"):
            sign = self.peek()
            self.at += 1
            return neg(self.atom()) if sign == "-" else self.atom()
        return self.atom()

    def atom(self):
        self.depth += 1
        if self.depth > MAX_DEPTH * 2:
            raise TooLarge(f"nested deeper than {MAX_DEPTH}")
        kind, value = self.found[self.at] if self.at < len(self.found) else ("end", None)
        self.at += 1
        if kind == "num":
            tree = self.number(value)
        elif kind == "sym":
            tree = self.symbol(value)
        elif kind == "word":
            words = [value]
            while self.peek() == "word":
                words.append(self.take())
            tree = ("text", " ".join(words).lower())
        elif kind == "fn":
            tree = self.function(value)
        elif kind == "cmd":
            tree = self.command(value)
        elif kind in ("(", "[", "{", "⟨", "\\{"):
            tree = self.bracket(kind)
        elif kind == "|":
            self.bars += 1
            tree = ("fn", "abs", self.sum())
            self.bars -= 1
            self.need("|")
        elif kind in ("⌊", "⌈"):
            tree = ("fn", "floor" if kind == "⌊" else "ceil", self.sum())
            self.need(CLOSERS[kind])
        elif kind == "cur":
            tree = ("mark", value, self.power())
        elif kind == "…":
            tree = ("sym", "…")
        else:
            raise Unreadable(f"cannot read {kind} here")
        self.depth -= 1
        return tree

    def number(self, text):
        value = literal(text)
        if self.peek() != "_":
            return value
        self.at += 1                                           # 204_5: digits in a base
        base = self.argument(whole=True)
        if base[0] == "text" and base[1].replace("base ", "") in NUMBER_WORDS:
            base = num(NUMBER_WORDS.index(base[1].replace("base ", "")))
        if base[0] != "num" or not text.isdigit() or not int(max(text)) < base[1] <= 36:
            raise Unreadable(f"{text} is no number in that base")
        return ("base", value, num(int(text, int(base[1]))))

    def symbol(self, name):
        constant = {"e": "e", "i": "i"}.get(name)
        if self.peek() == "_":
            self.at += 1
            start = self.at
            self.argument(whole=True)
            name += "_" + "".join(str(v or k) for k, v in self.found[start:self.at] if k not in "{}")
            constant = None
        while self.peek() == "'":
            self.at, name = self.at + 1, name + "'"
        if self.peek() == "(" and ((name[0] in "fghFGH" and not constant) or self.definition()):
            self.at += 1
            inside = self.bracket("(", group=False)
            return ("fn", "call " + name, *inside)
        if name in ("R",) and self.at > 1 and self.found[self.at - 2:self.at - 1] == [("∈", None)]:
            return ("R",)
        return ("const", constant) if constant else ("sym", name)

    def definition(self):
        """Whether P(x) = ... or a(m, n) = ... starts here: a name, letters in brackets, an equals sign."""
        at = 1
        while self.peek(at) == "sym" and self.peek(at + 1) == ",":
            at += 2
        return self.peek(at) == "sym" and self.peek(at + 1) == ")" and self.peek(at + 2) == "="

    def bracket(self, opening, group=True):
        if opening == "\\{" and self.peek() == "\\}":
            self.at += 1
            return ("set", ())
        outside = self.bars, self.builder
        self.builder = opening == "\\{"
        self.bars = int(self.builder)                          # in a set, a bar means "such that"
        tree = self.listing()
        such_that = self.builder and self.peek() in ("|", "∣", ":")
        self.bars, self.builder = outside
        if such_that:
            self.at += 1
            tree = self.listing()
            self.need(CLOSERS[opening])
            return tree                                        # {x | x > 3} is its condition
        closing = self.need(CLOSERS[opening])
        items = tree[2] if tree[0] == "list" else (tree,)
        if opening == "\\{":
            return ("set", items)
        if not group:
            return items
        if opening == "{" or (len(items) == 1 and opening + closing in ("()", "[]")):
            return tree
        if len(items) == 1 and opening != "⟨":
            raise Unreadable("brackets do not match")
        return ("seq", "(" if opening == "⟨" else opening, ")" if closing == "⟩" else closing, items)

    def function(self, name):
        r"""\sin^2 x, \log_2 8, \ln|x|, \sin 2x\cos x: without brackets, the argument is the product up to the next function."""
        power = base = None
        while self.peek() in ("^", "_"):
            self.at += 1
            if self.found[self.at - 1][0] == "^":
                power = self.argument(whole=True)
            else:
                base = self.argument()
        if power == MINUS and "a" + name in FUNCTIONS.values():
            name, power = "a" + name, None
        if self.peek() == "(":
            self.at += 1
            inside = self.bracket("(", group=False)
        elif self.peek() == "{":
            inside = (self.argument(),)
        else:
            factors = [self.power()]
            while (self.peek() in STARTS - {"fn", "cur", "["} and not self.stop()) or (self.peek() == "|" and not self.bars):
                factors.append(self.power())
            inside = (multiply(factors) if len(factors) > 1 else factors[0],)
        if name == "ln" or (name == "log" and base is not None) or name == "lg":
            base = {"ln": ("const", "e"), "lg": num(10)}.get(name, base)
            tree = ("fn", "log", *inside, base)
        else:
            tree = ("fn", name, *inside)
        return ("^", tree, power) if power is not None else tree

    def command(self, name):
        if name == "frac":
            top = self.argument()
            return ("*", top, ("^", self.argument(), MINUS))
        if name == "sqrt":
            index = num(2)
            if self.peek() == "[":
                self.at += 1
                index = self.sum()
                self.need("]")
            return ("fn", "root", self.argument(whole=True), index)
        if name == "binom":
            top = self.argument()
            return ("fn", "binom", top, self.argument())
        if name in ("pi", "infty"):
            return ("const", "pi" if name == "pi" else "oo")
        if name in ("emptyset", "varnothing"):
            return ("set", ())
        if name == "mathbb":
            letter = self.argument()
            return ("R",) if letter == ("sym", "R") else ("sym", f"set {letter[-1]}")
        if name in ("angle", "triangle", "vec", "hat", "overline", "bar", "widehat", "overrightarrow", "mathcal", "tilde",
                    "underline", "measuredangle"):
            inside = self.argument()                            # a decoration: the name is in the letters
            return ("sym", f"{name} {inside[1]}") if name in ("vec", "hat", "mathcal", "tilde") and inside[0] == "sym" else inside
        if name == "begin":
            return self.environment()
        raise Unreadable(f"\\{name} here")

    def environment(self):
        r"""\begin{pmatrix} a & b \\ c & d \end{pmatrix}; the lines of cases and aligned are a list."""
        start = self.at
        name = ""
        self.need("{")
        while self.peek() in ("sym", "word", "*"):
            name += self.found[self.at][1] or ""
            self.at += 1
        self.need("}")
        if name == "array" and self.peek() == "{":
            while self.peek() != "}" and self.peek() != "end":
                self.at += 1
            self.need("}")
        rows = [[]]
        while not (self.peek() == "cmd" and self.found[self.at][1] == "end"):
            if self.peek() == "row":
                self.at += 1
                rows.append([])
            elif self.peek() == "&":
                self.at += 1
            else:
                rows[-1].append(self.listing())
        self.at += 1
        self.argument()
        rows = tuple(tuple(row) for row in rows if row)
        if not rows or (len({len(row) for row in rows}) > 1 and "matrix" in name) or start == self.at:
            raise Unreadable("a matrix with ragged rows")
        if ("matrix" in name and name not in ("vmatrix", "Vmatrix")) or name == "array":
            return ("mat", rows)
        if name in ("cases", "aligned", "gathered", "align"):
            items = tuple(row[0] for row in rows)
            return items[0] if len(items) == 1 else ("list", ",", items)
        raise Unreadable(f"environment {name}")


def mixed_number(left, right):
    r"""7\frac34 is 7 + 3/4 when a whole number meets a proper fraction of whole numbers, else None."""
    if left[0] == "num" and left[2] is None and left[1].denominator == 1 and right[0] == "*" and len(right) == 3 \
            and right[1][0] == "num" and right[2][0] == "^" and right[2][2] == MINUS and right[2][1][0] == "num":
        top, bottom = right[1][1], right[2][1][1]
        if top.denominator == bottom.denominator == 1 and 0 < top < bottom:
            return num(left[1] + top / bottom)
    return None


def multiply(factors):
    """A product; two matrices are multiplied out here, since their product is not a number's."""
    tree = factors[0]
    for factor in factors[1:]:
        if tree[0] == factor[0] == "mat":
            columns = tuple(zip(*factor[1], strict=True))
            if len(tree[1][0]) != len(factor[1]):
                raise Unreadable("matrices that do not fit")
            tree = ("mat", tuple(tuple(("+", *(("*", x, y) for x, y in zip(row, column, strict=True))) for column in columns)
                                 for row in tree[1]))
        elif "mat" in (tree[0], factor[0]):
            scalar, matrix = (factor, tree) if tree[0] == "mat" else (tree, factor)
            tree = ("mat", tuple(tuple(("*", scalar, x) for x in row) for row in matrix[1]))
        else:
            tree = (*tree, factor) if tree[0] == "*" and tree[1] is not MINUS else ("*", tree, factor)
    return tree


@lru_cache(8192)
def parse(text: str, thousands: bool):
    """The tree of a cleaned text. `thousands`: 1,000 (and 1 000) is a number, not a list. Unreadable, TooLarge."""
    if len(text) > MAX_CHARS:
        raise TooLarge(f"{len(text)} characters")
    text = re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])", lambda run: run[0].replace(" ", ""), text)
    if thousands:
        text = THOUSANDS.sub(lambda run: run[0].replace(",", ""), text)
    try:
        return Parser(text).parse()
    except RecursionError:
        raise TooLarge("nested too deep") from None


THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")


# ------------------------------------------------------------------------------------------------------------- values

def leaves(tree, kind: str) -> set[str]:
    """The names of all leaves of one kind: the free letters ("sym"), the constants ("const")."""
    if isinstance(tree, tuple):
        if tree and tree[0] == kind:
            return {tree[1]}
        return set().union(*(leaves(part, kind) for part in tree))
    return set()


def whole_letters(tree, inside=False) -> set[str]:
    """Letters i..n that stand in an exponent, factorial, binomial or floor: by custom they are whole numbers."""
    if not isinstance(tree, tuple) or not tree:
        return set()
    if tree[0] == "sym":
        return {tree[1]} if inside and tree[1][0] in "jklmnpqN" else set()
    if tree[0] == "^":
        return whole_letters(tree[1], inside) | whole_letters(tree[2], True)
    inside = inside or (tree[0] == "fn" and tree[1] in ("fact", "fact2", "binom", "floor", "ceil", "gcd", "lcm"))
    return set().union(*(whole_letters(part, inside) for part in tree))


def bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise TooLarge("an exact number beyond the bound")
    return value


def exact(tree, point: dict) -> Fraction:
    """The value as a fraction, letters taken from `point`. Inexact when it is none, Undefined when there is no value."""
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind == "sym" and tree[1] in point:
        return point[tree[1]]
    if kind == "+":
        return bounded(sum((exact(x, point) for x in tree[1:]), Fraction(0)))
    if kind == "*":
        value = Fraction(1)
        for x in tree[1:]:
            value = bounded(value * exact(x, point))
        return value
    if kind == "^":
        base, power = exact(tree[1], point), exact(tree[2], point)
        if power.denominator != 1:
            raise Inexact
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if size > 1 and size * abs(power.numerator) > MAX_BITS:
            raise TooLarge("a power beyond the bound")
        if base == 0 and power <= 0:
            raise Undefined("0 to the power 0 or less")
        return base ** (power.numerator % 2 if abs(base) == 1 else power.numerator)
    if kind == "base":
        return tree[2][1]
    if kind == "mark":
        return exact(tree[2], point) / 100 if tree[1] == "%" else exact(tree[2], point) if tree[1] != "deg" else inexact()
    if kind == "fn" and tree[1] in EXACT:
        return bounded(Fraction(EXACT[tree[1]](*(exact(x, point) for x in tree[2:]))))
    raise Inexact


def inexact():
    raise Inexact


def natural(*values: Fraction) -> list[int]:
    if any(x.denominator != 1 for x in values):
        raise Inexact
    if any(x < 0 or x > 8000 for x in values):
        raise TooLarge("a factorial or binomial beyond 8000")
    return [int(x) for x in values]


EXACT = {
    "fact": lambda x: math.factorial(*natural(x)), "binom": lambda n, k: math.comb(*natural(n, k)),
    "fact2": lambda x: math.prod(range(*natural(x), 0, -2)), "abs": abs, "floor": math.floor, "ceil": math.ceil,
    "max": max, "min": min, "gcd": lambda *xs: math.gcd(*natural(*xs)), "lcm": lambda *xs: math.lcm(*natural(*xs))}


LOCAL = threading.local()      # an mpmath context holds its precision: one for each thread


class Approximate:
    """Evaluation with mpmath to `bits`, remembering the sizes met on the way: they say how far to trust the result."""

    def __init__(self, deadline: float, log_base: int):
        if not hasattr(LOCAL, "mp"):                 # 40 ms, once, and only where a number is not rational
            import mpmath
            LOCAL.mp = mpmath.MPContext()
        self.mp, self.deadline, self.log_base = LOCAL.mp, deadline, log_base
        self.functions = {name: getattr(self.mp, name) for name in
                          "sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh coth asinh acosh atanh exp floor ceil "
                          "re im arg gamma".split() if hasattr(self.mp, name)}

    def at(self, tree, point, bits, real):
        """(value, span): the value at `bits`, and the bits between the largest and the smallest number met."""
        self.mp.prec, self.high, self.low, self.real = bits, 0, 0, real
        self.point = point
        value = self.value(tree)
        if self.mp.isnan(value):
            raise Undefined("not a number")
        return value, self.high - self.low

    def value(self, tree):
        if time.monotonic() > self.deadline:
            raise Late
        try:
            value = self.step(tree)
        except (ZeroDivisionError, ValueError) as error:
            raise Undefined(str(error)) from None
        if value and self.mp.isfinite(value):
            size = int(self.mp.mag(value))
            self.high, self.low = max(self.high, size), min(self.low, size)
            if self.real and self.mp.im(value) != 0:
                raise Undefined("not real")
        return value

    def step(self, tree):
        mp, kind = self.mp, tree[0]
        if kind == "num":
            return mp.mpf(tree[1].numerator) / tree[1].denominator
        if kind == "sym":
            if tree[1] not in self.point:
                raise Undefined(f"no value for {tree[1]}")
            x = self.point[tree[1]]
            return mp.mpf(x.numerator) / x.denominator
        if kind == "const":
            return {"pi": mp.pi, "e": mp.e, "i": mp.j, "oo": mp.inf}[tree[1]] * 1
        if kind == "base":
            return self.value(tree[2])
        if kind == "mark":
            return self.value(tree[2]) * {"%": mp.mpf(1) / 100, "deg": mp.pi / 180}.get(tree[1], 1)
        if kind not in ("+", "*", "^", "fn"):
            raise Undefined(f"{kind} has no value")
        values = [self.value(x) for x in tree[1 + (kind == "fn"):]]
        if kind == "+":
            return mp.fsum(values)
        if kind == "*":
            return mp.fprod(values)
        if kind == "^":
            return self.raised(*values, tree[2])
        return self.call(tree[1], *values)

    def raised(self, base, power, tree):
        mp = self.mp
        if not base and mp.re(power) <= 0:
            raise Undefined("0 to the power 0 or less")
        if mp.isinf(base) or mp.isinf(power):
            raise Undefined("infinite power")
        if base and max(mp.mag(power), 0) + max(mp.mag(mp.mag(base) or 1), 0) > 60:
            raise TooLarge("a power beyond the bound")
        if not mp.im(base) and base < 0 and tree[0] == "*":        # (-8)^{1/3} = -2: the real root when it is odd
            try:
                ratio = exact(tree, {})
            except (Inexact, Undefined):
                ratio = Fraction(1)
            if ratio.denominator % 2 and ratio.denominator > 1:
                return (-1) ** ratio.numerator * mp.power(-base, power)
        return mp.power(base, power)

    def call(self, name, *values):
        mp, x = self.mp, values[0]
        if any(mp.isfinite(v) and v and abs(mp.mag(v)) > 5000 and name not in ("root", "log", "abs") for v in values):
            raise TooLarge(f"{name} of a number beyond the bound")
        if name == "root":
            if mp.im(x) == 0 and x < 0 and values[1] % 2 == 1:
                return -mp.power(-x, 1 / values[1])
            return mp.sqrt(x) if values[1] == 2 else mp.power(x, 1 / values[1])
        if name == "log":
            base = values[1] if len(values) > 1 else mp.mpf(10) if self.log_base == 10 else mp.e
            return mp.log(x) / mp.log(base)
        if name == "abs":
            return abs(x)
        if name in ("max", "min"):
            return {"max": max, "min": min}[name](values)
        if name == "cis":
            return mp.expj(x)
        if name in ("fact", "Gamma"):
            return mp.gamma(x + 1 if name == "fact" else x) if abs(x) < 10**15 else too_large(name)
        if name == "binom":
            n, k = values
            return mp.binomial(n, k) if abs(n) < 10**15 and abs(k) < 10**15 else too_large(name)
        if name.startswith("call "):       # an unknown function: one fixed function per name, unlike any other
            seed = mp.mpf(zlib.crc32(name.encode())) / 2**32 + 1
            return mp.fsum(mp.sin(seed * (k + 2) * v + k) + v * seed for k, v in enumerate(values))
        if name in self.functions:
            return self.functions[name](*values)
        raise Undefined(f"{name} is not evaluated")


def too_large(name):
    raise TooLarge(f"{name} of a number beyond the bound")


def structure(tree):
    """The tree with the terms of sums and the factors of products flattened and in one order, and 2.0 as 2."""
    if not isinstance(tree, tuple) or not tree:
        return tree
    if tree[0] == "num":
        return ("num", tree[1])
    parts = [structure(part) for part in tree]
    if tree[0] in ("+", "*"):
        flat = [x for part in parts[1:] for x in (part[1:] if part[0] == tree[0] else (part,))]
        return (tree[0], *sorted(flat, key=repr))
    return tuple(parts)


# ------------------------------------------------------------------------------------------------------------- comparing

class Comparer:
    """One comparison under one reading. `rule` is the last rule that was tried: the one that decided."""

    def __init__(self, log_base: int, deadline: float):
        self.numbers, self.deadline, self.rule = Approximate(deadline, log_base), deadline, ""

    # --- numbers and expressions

    def points(self, *trees):
        """The fixed random points of a comparison: fractions, half of them positive only; whole numbers where due."""
        names = sorted(set().union(*(leaves(tree, "sym") for tree in trees)))
        whole = set().union(*(whole_letters(tree) for tree in trees))
        rng = random.Random(20)
        for trial in range(8 if names else 1):
            span = ((1, 40), (1, 9), (-40, 40), (-9, 9))[trial % 4]
            yield {name: Fraction(rng.randint(2, 30) + trial % 2) if name in whole else
                   Fraction(rng.randint(span[0] * 10, span[1] * 10) * 2 + 1, rng.choice((20, 21, 23, 29)) * (1 + 7 * (trial % 2)))
                   for name in names}

    def at(self, trees, point):
        """The values of all trees at a point: exact fractions if all are, else mpmath numbers precise enough to compare."""
        try:
            return [exact(tree, point) for tree in trees]
        except (Inexact, TooLarge):
            pass
        real = bool(point) and not any("i" in leaves(tree, "const") for tree in trees)
        found = [self.numbers.at(tree, point, 200, real) for tree in trees]
        if (span := max(span for _, span in found)) > 50 and self.near(*(value for value, _ in found[:2]), 2**-20):
            if span > 20_000:
                raise TooLarge("numbers too far apart to compare")
            found = [self.numbers.at(tree, point, 200 + 2 * span, real) for tree in trees]
        return [value for value, _ in found]

    def near(self, a, b, tolerance=None):
        if isinstance(a, Fraction):
            return a == b
        mp = self.numbers.mp
        if mp.isinf(a) or mp.isinf(b):
            return a == b
        return abs(a - b) <= max(abs(a), abs(b), mp.mpf(2) ** (-mp.prec // 2)) * (tolerance or mp.mpf(2) ** (40 - mp.prec))

    def value_equal(self, a, t) -> bool:
        """Two expressions without marks: by structure, else at points where both are defined."""
        if structure(a) == structure(t):
            self.rule = "the same structure"
            return True
        agreed = 0
        for point in self.points(a, t):
            try:
                left, right = self.at((a, t), point)
            except Undefined:
                continue
            self.rule = ("exact values" if isinstance(left, Fraction) else "values to 60 digits") + (" at points" if point else "")
            if not self.near(left, right):
                return False
            agreed += 1
            if agreed == 5:
                break
        self.rule = self.rule if agreed else "no common value"
        return agreed > 0

    def rounds_to(self, a, t) -> bool:
        """Rule 4: t is a decimal of three digits or more; a, exact or with more decimals, rounds to it."""
        if t[0] == "*" and len(t) == 3 and t[1] is MINUS:
            return self.rounds_to(neg(a), t[2])
        if t[0] != "num" or not t[2] or len(str(abs(t[1].numerator * 10 ** t[2] // t[1].denominator))) < 3:
            return False
        if leaves(a, "sym") or (a[0] == "num" and a[2] is not None and a[2] < t[2]):
            return False
        try:
            (value,) = self.at((a,), {})
        except Undefined:
            return False
        mp = self.numbers.mp
        value = value if isinstance(value, Fraction) else value
        half = Fraction(1, 2 * 10 ** t[2])
        self.rule = "rounds to the truth's decimals"
        if isinstance(value, Fraction):
            return abs(value - t[1]) <= half
        return not mp.im(value) and abs(value - mp.mpf(t[1].numerator) / t[1].denominator) <= mp.mpf(1) * half.numerator / half.denominator

    def expressions(self, a, t) -> bool:
        """Marks (percent, degree, unit, base) may be missing on one side; on both they must agree."""
        marks = [x[1] if x[0] == "mark" else "base" if x[0] == "base" else "" for x in (a, t)]
        bare = [x[2] if x[0] == "mark" else x[1] if x[0] == "base" else x for x in (a, t)]
        plain = {"%", "deg", "base", ""}
        if marks[0] and marks[1] and not set(marks) <= plain:
            self.rule = "the units"
            return marks[0].removesuffix("s") == marks[1].removesuffix("s") and self.expressions(*bare)
        if self.value_equal(a, t) or self.rounds_to(a, t):
            return True
        if (marks[0] == "") != (marks[1] == "") or marks[0] == marks[1] != "":
            if marks[0] == marks[1] or self.value_equal(*bare) or self.rounds_to(*bare):
                self.rule += f", {marks[0] or marks[1]} on one side" if marks[0] != marks[1] else ""
                return marks[0] != marks[1] or self.rounds_to(*bare)
        return False

    # --- names and relations

    def unfold(self, tree):
        r"""What a tree stands for: 1 \pm x is two values, (x, y) = (1, 2) and x = y = 2 are two equations, x in S is S."""
        kind = tree[0]
        if kind == "list":
            items = []
            for item in (self.unfold(item) for item in tree[2]):
                items += item[2] if item[0] == "list" else (item,)
            return ("list", tree[1], tuple(items))
        if kind == "rel" and tree[1] == ("=",) and tree[2][0][0] == "seq" and tree[2][1][0] == "seq":
            names, values = tree[2][0][3], tree[2][1][3]
            if len(names) == len(values) and all(name[0] == "sym" for name in names):
                return ("list", "and", tuple(("rel", ("=",), pair) for pair in zip(names, values, strict=True)))
        if kind == "rel" and len(tree[1]) > 1 and set(tree[1]) == {"="} and all(x[0] == "sym" for x in tree[2][:-1]):
            return ("list", "and", tuple(("rel", ("=",), (name, tree[2][-1])) for name in tree[2][:-1]))
        if kind == "rel" and tree[1] == ("∈",) and named(tree[2][0]):
            return tree[2][1]
        if kind == "rel" and tree[1] == ("=",) and tree[2][1][0] == "list":
            return ("list", ",", tuple(("rel", ("=",), (tree[2][0], x)) for x in tree[2][1][2]))
        if (split := branch(tree, 1)) != tree:
            return ("list", "or", (split, branch(tree, -1)))
        return tree

    def worth(self, tree, t, strict: bool) -> bool:
        """Whether the equation `tree` says that something named is `t` ("x = 3", "5 = x", "2 + 1 = 3", "x = 6/2 = 3")."""
        sides = list(tree[2])
        if named(sides[-1]) and not leaves(sides[0], "sym") and len(sides) == 2:
            sides.reverse()
        first = sides[0]
        if leaves(first, "sym") or first[0] in ("text", "seq", "R"):
            if not (named(first) if strict else not leaves(first, "num") or named(first)):
                self.rule = "an equation is not a value"
                return False
            sides = sides[1:]
        if "≈" in tree[1]:
            return any(self.same(side, t) if not strict else self.same(t, side) for side in sides) and self.close(sides)
        return all(self.same(side, t) if not strict else self.same(t, side) for side in sides)

    def close(self, sides) -> bool:
        """x = \\sqrt2 \\approx 1.41 : what is called nearly equal is."""
        try:
            values = [self.numbers.at(side, {}, 100, True)[0] for side in sides]
        except (Undefined, TooLarge):
            return False
        return all(abs(v - values[0]) <= abs(values[0]) / 50 for v in values)

    def factor(self, a, t) -> int:
        """The sign of the constant c with a = c t at all points, or 0: equations and inequalities up to a factor."""
        ratio, seen = None, 0
        for point in self.points(a, t):
            try:
                left, right = self.at((a, t), point)
            except Undefined:
                continue
            if not left or not right:
                if self.near(left, right):
                    continue
                return 0
            if ratio is not None and not self.near(left / right, ratio):
                return 0
            ratio, seen = left / right, seen + 1
            if seen == 4:
                break
        if seen < 2 or (not isinstance(ratio, Fraction) and self.numbers.mp.im(ratio)):
            return 0
        return 1 if ratio > 0 else -1

    def relations(self, a, t) -> bool:
        equation = [x[0] == "rel" and set(x[1]) <= {"=", "≈"} for x in (a, t)]
        if all(equation):
            return self.equations(a, t)
        if equation[0] and t[0] != "rel":
            return self.worth(a, t, strict=False)
        if equation[1] and a[0] != "rel":
            return self.worth(t, a, strict=True)
        if a[0] == t[0] == "rel":
            if leaves(a, "sym") == leaves(t, "sym") and self.same_reals(a, t):
                return True
            left, right = pairs(a), pairs(t)
            self.rule = "relations up to a factor"
            return len(left) == len(right) and self.matched(left, right, self.pair_equal)
        return self.same_reals(a, t)

    def pair_equal(self, a, t) -> bool:
        if a[0] != t[0]:
            return False
        if a[0] in "<≤=≠":
            sign = self.factor(difference(a), difference(t))
            return sign > 0 if a[0] in "<≤" else sign != 0
        return self.same(a[1], t[1]) and self.same(a[2], t[2])

    def equations(self, a, t) -> bool:
        left, right = a[2], t[2]
        if len(left) == len(right) == 2:
            self.rule = "equations up to a factor"
            if structure(a) == structure(t) or self.factor(difference(("=", *left)), difference(("=", *right))):
                return True
        if functional(left[0]) and functional(right[0]) and "y" in (left[0][1], right[0][1]):     # y = x^2 and f(x) = x^2
            return self.same(left[-1], right[-1])
        if named(left[0]) and structure(left[0]) == structure(right[0]):
            return self.same(left[-1], right[-1]) and all(self.same(x, left[-1]) for x in left[1:-1])
        return False

    # --- sets of real numbers

    def reals(self, tree):
        """The set as sorted disjoint [(low, closed, high, closed)], or None if it is no set of numbers we know."""
        kind = tree[0]
        if kind == "R":
            return [(-self.numbers.mp.inf, False, self.numbers.mp.inf, False)]
        if kind == "seq" and len(tree[3]) == 2 and tree[1] in "([":
            ends = [self.real(x) for x in tree[3]]
            return None if None in ends or ends[0] >= ends[1] else [(ends[0], tree[1] == "[", ends[1], tree[2] == "]")]
        if kind == "set":
            ends = [self.real(x) for x in tree[1]]
            return None if None in ends else merged([(x, True, x, True) for x in ends])
        if kind == "list" and len(leaves(tree, "sym")) > 1:
            return None
        if kind in ("∪", "∩", "∖") or kind == "list":
            parts = [self.reals(x) for x in (tree[1:] if kind != "list" else tree[2])]
            if None in parts:
                return None
            if kind == "∪" or (kind == "list" and tree[1] == "or"):
                return merged(reduce(operator.iadd, parts, []))
            if kind == "∖":
                return meet(parts[0], self.complement(parts[1]))
            both = parts[0]
            for part in parts[1:]:
                both = meet(both, part)
            return both if both or kind == "∩" or tree[1] == "and" else merged(reduce(operator.iadd, parts, []))      # x < 1, x > 3
        if kind == "rel" and tree[1] == ("∈",):
            return self.reals(tree[2][1])
        if kind == "rel" and len(names := leaves(tree, "sym")) == 1:
            both = self.reals(("R",))
            for pair in pairs(tree):
                if (part := self.linear(pair, *names)) is None:
                    return None
                both = meet(both, part)
            return both
        return None

    def real(self, tree):
        try:
            value, _ = self.numbers.at(tree, {}, 200, False)
            return None if self.numbers.mp.im(value) else self.numbers.mp.re(value)
        except Undefined:
            return None

    def linear(self, pair, name):
        """Where a relation linear in its one letter holds."""
        tree, inf, everywhere = difference(pair), self.numbers.mp.inf, self.reals(("R",))
        try:
            low, high, far = (self.numbers.at(tree, {name: Fraction(x)}, 200, True)[0] for x in (0, 1, 7))
        except Undefined:
            return None
        if self.numbers.mp.isinf(low):
            return everywhere if low < 0 and pair[0] in "<≤" else None
        slope = high - low
        if pair[0] not in "<≤=≠" or not slope or not self.near(far - low, 7 * slope):
            return None
        root = -low / slope
        point = [(root, True, root, True)]
        if pair[0] in "=≠":
            return point if pair[0] == "=" else self.complement(point)
        closed = pair[0] == "≤"
        return [(-inf, False, root, closed)] if slope > 0 else [(root, closed, inf, False)]

    def complement(self, parts):
        rest = self.reals(("R",))
        for low, low_in, high, high_in in parts:
            inf = self.numbers.mp.inf
            rest = meet(rest, [(-inf, False, low, not low_in), (high, not high_in, inf, False)])
        return rest

    def same_reals(self, a, t) -> bool:
        left, right = self.reals(a), self.reals(t)
        if left is None or right is None:
            return False
        self.rule = "the same set of real numbers"
        return len(left) == len(right) and all(x[1] == y[1] and x[3] == y[3] and self.near(x[0], y[0]) and self.near(x[2], y[2])
                                               for x, y in zip(left, right, strict=True))

    # --- collections

    def matched(self, a, t, same) -> bool:
        """Whether the items pair off, in any order."""
        rest = list(t)
        for x in a:
            for i, y in enumerate(rest):
                if same(x, y):
                    del rest[i]
                    break
            else:
                return False
        return not rest

    def in_order(self, a, t) -> bool:
        return len(a) == len(t) and all(self.same(x, y) for x, y in zip(a, t, strict=True))

    def collections(self, a, t) -> bool:
        kinds = (a[0], t[0])
        if a[0] == t[0] == "mat":
            self.rule = "matrices entry by entry"
            return len(a[1]) == len(t[1]) and all(self.in_order(x, y) for x, y in zip(a[1], t[1], strict=True))
        if "mat" in kinds:                                        # a column, or a row, is also a tuple
            matrix, other = (a, t) if a[0] == "mat" else (t, a)
            if other[0] != "seq" or min(len(matrix[1]), len(matrix[1][0])) > 1 or other[1] + other[2] not in ("()", "⟨⟩", "[]"):
                return False
            entries = tuple(x for row in matrix[1] for x in row)
            return self.in_order(entries, other[3]) if a[0] == "mat" else self.in_order(other[3], entries)
        if kinds == ("seq", "seq"):
            self.rule = "in order, with brackets"
            brackets = [x[1] + x[2] for x in (a, t)]
            return (brackets[0] == brackets[1] or (len(t[3]) > 2 and "(]" not in brackets)) and self.in_order(a[3], t[3])
        if kinds == ("set", "set"):
            self.rule = "sets without order"
            return (all(any(self.same(x, y) for y in t[1]) for x in a[1]) and all(any(self.same(x, y) for x in a[1]) for y in t[1]))
        if kinds == ("ratio", "ratio"):
            self.rule = "ratios up to a factor"
            return len(a[1]) == len(t[1]) and all(self.value_equal(("*", x, t[1][0]), ("*", y, a[1][0]))
                                                  for x, y in zip(a[1], t[1], strict=True))
        if "ratio" in kinds:                                      # 3:2 is 3/2, written as a fraction
            ratio, other = (a, t) if a[0] == "ratio" else (t, a)
            return other[0] == "*" and len(ratio[1]) == 2 and self.value_equal(("*", ratio[1][0], ("^", ratio[1][1], MINUS)), other)
        items = [x[2] if x[0] == "list" else x[1] if x[0] == "set" else x[3] if x[0] == "seq" else (x,) for x in (a, t)]
        if "seq" in kinds and "list" in kinds:
            self.rule = "in order, brackets on one side"
            seq = a if a[0] == "seq" else t
            named_items = sorted((x for x in items[a[0] == "seq"] if x[0] == "rel"), key=lambda x: repr(x[2][0]))
            if len(named_items) == len(items[0]):
                items[a[0] == "seq"] = tuple(x[2][-1] for x in named_items)
            return seq[1] + seq[2] in ("()", "⟨⟩") and self.in_order(*items)
        if "seq" in kinds:
            return self.same_reals(a, t)
        if not set(kinds) & {"list", "set"} or len(items[0]) != len(items[1]):
            return self.same_reals(a, t)
        self.rule = "without order"
        return self.matched(*items, self.same) or self.matched(*map(bare_items, items), self.same) or self.same_reals(a, t)

    def same(self, a, t) -> bool:
        """Whether two trees say the same."""
        if time.monotonic() > self.deadline:
            raise Late
        a, t = self.unfold(a), self.unfold(t)
        if structure(a) == structure(t):
            self.rule = "the same structure"
            return True
        if a[0] == t[0] == "mod":
            self.rule = "the same residue"
            return self.same(a[2], t[2]) and (self.same(a[1], t[1]) or self.residues(a, t))
        if "rel" in (a[0], t[0]) and not {a[0], t[0]} & {"list"}:
            return self.relations(a, t)
        if {a[0], t[0]} & {"seq", "set", "list", "mat", "ratio", "∪", "∩", "∖", "R"}:
            return self.collections(a, t)
        if {a[0], t[0]} & {"text", "mod"}:
            self.rule = "words"
            return False
        return self.expressions(a, t)

    def residues(self, a, t) -> bool:
        """p = 5 (mod 4) is p = 1 (mod 4)."""
        sides = [x[1][2] if x[1][0] == "rel" else (x[1],) for x in (a, t)]
        if min(map(len, sides)) > 1 and not self.same(sides[0][0], sides[1][0]):
            return False
        try:
            left, right, modulus = (exact(x, {}) for x in (sides[0][-1], sides[1][-1], t[2]))
            return modulus > 0 and (left - right) % modulus == 0
        except (Inexact, Undefined):
            return False


def named(tree) -> bool:
    """Whether a tree is a name rather than a value: x, AB, f(x), |AB|, a_n, AB/CD, (x, y), words."""
    kind = tree[0]
    if kind in ("sym", "text") or (kind == "fn" and tree[1].startswith("call")):
        return True
    if kind == "*" and len(tree) == 3 and tree[2][0] == "^" and tree[2][2] == MINUS:
        return named(tree[1]) and named(tree[2][1])
    if kind == "*":
        return all(x[0] == "sym" and x[1][0].isupper() for x in tree[1:]) or (tree[1][0] == "sym" and tree[1][1].isupper() and len(tree) == 3)
    if kind == "fn":
        return tree[1] == "abs" and named(tree[2])
    return kind in ("seq", "ratio") and all(named(x) for x in tree[-1])


def functional(tree) -> bool:
    return tree == ("sym", "y") or (tree[0] == "fn" and tree[1].startswith("call"))


def branch(tree, sign: int):
    """The tree with its plus-minus signs read as plus (1) or minus (-1)."""
    if not isinstance(tree, tuple) or not tree:
        return tree
    if tree[0] == "pm":
        return branch(tree[1], sign) if sign > 0 else neg(branch(tree[1], sign))
    return tuple(branch(part, sign) for part in tree)


def pairs(tree):
    """a < b <= c as pairs, > turned into <."""
    if tree[0] != "rel":
        return []
    turned = {">": "<", "≥": "≤"}
    return [(turned[sign], right, left) if sign in turned else (sign, left, right)
            for sign, left, right in zip(tree[1], tree[2], tree[2][1:], strict=False)]


def difference(pair):
    return ("+", pair[1], ("*", MINUS, pair[2]))


def bare_items(items):
    """x = 1, x = 2 (or x_1, x_2, or only the first named) as the values 1, 2; different names stay, in alphabetical order."""
    names = [x[2][0] for x in items if x[0] == "rel" and x[1] == ("=",) and named(x[2][0])]
    stems = {str(name[1]).split("_")[0] for name in names}
    if len(stems) == 1 and (len(names) == len(items) or (len(names) == 1 and items[0][0] == "rel")):
        return tuple(x[2][-1] if x[0] == "rel" else x for x in items)
    return tuple(items)


def merged(parts):
    """A union of intervals, sorted, with what touches joined."""
    out = []
    for part in sorted(parts, key=lambda x: (x[0], not x[1])):
        if out and (part[0] < out[-1][2] or (part[0] == out[-1][2] and (part[1] or out[-1][3]))):
            low, low_in, high, high_in = out.pop()
            end = max((high, high_in), (part[2], part[3]))
            out.append((low, low_in, *end))
        else:
            out.append(part)
    return out


def meet(a, b):
    """The intersection of two unions of intervals."""
    out = []
    for x, y in itertools.product(a, b):
        low, high = max((x[0], not x[1]), (y[0], not y[1])), min((x[2], x[3]), (y[2], y[3]))
        if low[0] < high[0] or (low[0] == high[0] and not low[1] and high[1]):
            out.append((low[0], not low[1], *high))
    return merged(out)


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
CHOICE = re.compile(r"(?:(?:option|choice|answer)\s*:?\s*)?(?:\(([A-Ja-j])\)|([A-J])(?:[).:]|$)|([a-j])(?:\)|$))\s*(?![,;&]|and\b|or\b)(.*)", re.I | re.S)
WORDS = re.compile(r"(?=.*[a-zA-Z]{2})[a-zA-Z][a-zA-Z\s.,;'\"()-]*")


def number(text: str) -> Fraction | None:
    """The value of a short plain integer or decimal, else None."""
    if len(text) > 30 or not (match := NUMBER.fullmatch(text)):
        return None
    whole, part = (match[2] or "0").replace(",", ""), match[3] or match[4] or ""
    return Fraction(int(match[1] + whole + part), 10 ** len(part))


def quick(answer: str | None, truth: str) -> Verdict | None:
    """The verdict when it needs no algebra (no answer; the same string; two short numbers), else None. Microseconds."""
    if answer is None:
        return Verdict(0.0, "no_answer", None, "no final answer found")
    if answer == truth:
        return Verdict(1.0, "right", answer, "the same string")
    a, t = number(answer), number(truth)
    if a is not None and t is not None and not ("." in truth and a != t):
        return Verdict(float(a == t), "right" if a == t else "wrong", answer, "two plain numbers")
    if answer.strip("$ .") == truth.strip("$ .") != "":
        return Verdict(1.0, "right", answer, "the same string")
    return None


def choice(text: str) -> tuple[str, str] | None:
    """The letter and the rest of "(C)", "C.", "(B) 12"; None if the text is no choice."""
    match = CHOICE.fullmatch(text)
    return ((match[1] or match[2] or match[3]).upper(), match[4]) if match else None


def decide(answer: str, truth: str) -> tuple[str, str]:
    """(verdict, rule) for a bare answer."""
    a, t = key(answer), key(truth)
    if not a or not re.search(r"[^\W_]|\\", a):
        return "no_answer", "nothing in the box"
    if a == t:
        return "right", "the same string after cleaning"
    if len(answer) > MAX_CHARS or len(truth) > MAX_CHARS:
        return "too_large", f"more than {MAX_CHARS} characters"
    left, right = (WRAP.sub(r"\1", clean(text)).strip() for text in (answer, truth))
    chosen, due = choice(left), choice(right)
    if due and chosen:
        return ("right" if chosen[0] == due[0] else "wrong"), "choices by letter"
    if due and due[1]:
        return decide(answer, due[1])
    if chosen and chosen[1] and not due:
        return decide(chosen[1], truth)
    wrapped = "\\text" in truth or "\\mbox" in truth or "\\mathrm" in truth
    if WORDS.fullmatch(right) and WORDS.fullmatch(left) and (wrapped or len(right) > 2):
        plain = [re.sub(r"^(?:the|a|an)(?=\W)|s\b|[^a-z]", "", text.lower()) for text in (left, right)]
        if plain[0] == plain[1]:
            return "right", "the same words"
        if wrapped:
            return "wrong", "words"
    return algebra(clean(answer), clean(truth))


def algebra(answer: str, truth: str) -> tuple[str, str]:
    """Parse and compare under each reading that the truth allows."""
    deadline, verdict, rule = time.monotonic() + SECONDS, "wrong", ""
    grouped = THOUSANDS.search(answer) or THOUSANDS.search(truth)
    readings = [True, False] if grouped else [False]
    if THOUSANDS.search(truth) and re.match(r"\\?[\[({]", truth):
        readings = [False]                                          # (1,234) is a pair
    logs = [1, 10] if re.search(r"\\?log(?!_)", answer + truth) else [1]
    for thousands, log_base in itertools.product(readings, logs):
        try:
            t = parse(truth, thousands)
        except (Unreadable, TooLarge) as error:
            verdict, rule = "unparsed", f"the truth cannot be read: {error}"
            continue
        try:
            a = parse(answer, thousands)
            comparer = Comparer(log_base, deadline)
            if comparer.same(a, t):
                return "right", comparer.rule
            verdict, rule = "wrong", comparer.rule
        except Unreadable as error:
            verdict, rule = "unparsed", str(error)
        except (TooLarge, MemoryError, OverflowError, RecursionError) as error:
            verdict, rule = "too_large", str(error) or type(error).__name__
        except Late:
            return "timeout", f"more than {SECONDS} s"
    return verdict, rule


def judge(text: str, truth: str) -> Verdict:
    """Extract, parse and compare. Never raises; bounded in time and memory by itself, so that it can be called directly."""
    return judge_answer(extract(text), truth)


def judge_answer(answer: str | None, truth: str) -> Verdict:
    if verdict := quick(answer, truth):
        return verdict
    verdict, rule = decide(answer, truth)
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
        self.workers, self.timeout_s, self.memory_gb = workers, timeout_s, memory_gb
        self.tasks, self.threads, self.lock, self.closed = queue.SimpleQueue(), [], threading.Lock(), False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def submit(self, text: str, truth: str) -> "Future[Verdict]":
        """A future of the verdict on one completion; already done when no algebra is needed."""
        if self.closed:
            raise RuntimeError("this Grader is closed: make a new one, or submit before leaving its `with` block")
        future, answer = Future(), extract(text)
        if verdict := quick(answer, truth):
            future.set_result(verdict)
            return future
        with self.lock:
            if len(self.threads) < self.workers:
                self.threads.append(threading.Thread(target=self._serve, daemon=True))
                self.threads[-1].start()
            self.tasks.put((future, answer, truth))
        return future

    def grade(self, texts: list[str], truths: list[str]) -> list[Verdict]:
        """The verdicts on a batch, in its order. ValueError if the two lists differ in length."""
        futures = [self.submit(text, truth) for text, truth in zip(texts, truths, strict=True)]
        return [future.result() for future in futures]

    def close(self):
        """Finish what was submitted, then end the workers."""
        with self.lock:
            self.closed = True
            for _ in self.threads:
                self.tasks.put(None)
        for thread in self.threads:
            thread.join()

    def _serve(self):
        worker = None
        while (task := self.tasks.get()) is not None:
            future, answer, truth = task
            began, limit = time.monotonic(), self.timeout_s
            try:
                if worker is None or worker.poll() is not None:
                    worker, limit = self._start(), self.timeout_s
                    began = time.monotonic()
                alarm = threading.Timer(limit, worker.kill)
                alarm.start()
                worker.stdin.write(json.dumps([answer, truth]) + "\n")
                worker.stdin.flush()
                verdict = Verdict(**json.loads(worker.stdout.readline()))
            except (OSError, ValueError) as error:
                late = time.monotonic() - began >= limit
                verdict = Verdict(0.0, "timeout" if late else "crashed", answer, f"the worker was lost: {error!r}")
                if worker is not None:
                    worker.kill()
                    worker.wait()
                    worker = None
            alarm.cancel()
            future.set_result(verdict)
        if worker is not None:
            worker.stdin.close()
            worker.wait()

    def _start(self) -> subprocess.Popen:
        worker = subprocess.Popen([sys.executable, __file__, "--worker", str(self.memory_gb)], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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

def show(text: str) -> str:
    """How a bare text was read, for people."""
    try:
        return str(parse(clean(text), True))
    except (Unreadable, TooLarge) as error:
        return f"{type(error).__name__}: {error}"


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
                print(f"{case.get('kind', '')}: answer {verdict.answer!r}, truth {case['gold']!r}, expected {case['expected']}, "
                      f"found {verdict.verdict} by {verdict.rule!r}")
        return print(f"{len(cases) - wrong} of {len(cases)} agree ({(len(cases) - wrong) / max(len(cases), 1):.1%})")
    if args.answer is None or args.truth is None:
        parser.error("give --answer and --truth, or --file")
    began = time.perf_counter()
    answer = extract(args.answer) or args.answer
    verdict = judge_answer(answer, args.truth)
    took = time.perf_counter() - began
    for name, value in (("answer", answer), ("truth", args.truth), ("read as", show(answer)), ("truth as", show(args.truth)),
                        ("verdict", verdict.verdict), ("rule", verdict.rule), ("time", f"{took * 1e3:.2f} ms")):
        print(f"{name:9}{value}")


if __name__ == "__main__":
    main()
