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
import random
import re
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache

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


class NoSet(Exception):
    """Not a set of real numbers that we can describe."""


# ---------------------------------------------------------------------------------------------------------- where is it

BOX = re.compile(r"\\{1,4}(?:boxed|fbox)\s*(?:(\{)|(?<=\s)([^\s{}$\\]+))|\\.|[{}]", re.S)
BOX_START = re.compile(r"\\(?:boxed|fbox)")
HEADS = re.compile("####"), re.compile(r"\banswer\s+is\b:?|\bfinal answer\W{0,4}:", re.I)


def extract(text: str) -> str | None:
    r"""The final answer in `text`, or None: the last balanced \boxed{...} or \fbox{...} after the last </think>, else
    what follows ####, else the last "answer is ..." or "final answer: ...". An empty box, or one that is never closed
    when there is no other, is no answer. Linear in the text's length."""
    text = text[text.rfind("</think>") + 8:] if "</think>" in text else text
    stack, last, opened = [], None, False
    start = BOX_START.search(text)
    for match in BOX.finditer(text, start.start() if start else len(text)):
        if match[1] or match[0] == "{":
            stack.append(match.end() if match[1] else -1)
            opened = opened or bool(match[1])
        elif match[2]:
            last = match[2]
        elif match[0] == "}" and stack and (start := stack.pop()) >= 0:
            last = text[start:match.start()]
    if last is None and not opened:
        for end in [max((match.end() for match in head.finditer(text)), default=0) for head in HEADS]:
            last = last or (end and re.split(r"\.(?:\s|$)|\n", text[end:], maxsplit=1)[0].strip("* \t"))
    return last.strip() or None if last else None


# ------------------------------------------------------------------------------------------------------------- spelling

UNICODE = str.maketrans({
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "∙": "\\cdot ", "⋅": "\\cdot ", "÷": "\\div ", "±": "\\pm ",
    "∓": "\\mp ", "√": "\\sqrt ", "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ",
    "≠": "\\ne ", "≈": "\\approx ", "≡": "\\equiv ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "∅": "\\emptyset ",
    "°": "^\\circ ", "º": "^\\circ ", "′": "'", "’": "'", "“": '"', "”": '"', "…": "\\ldots ", "⁄": "/", "∕": "/", "∣": "|",
    "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "⟨": "\\langle ", "⟩": "\\rangle ",
    "ℝ": "\\mathbb{R} ", "∖": "\\setminus ",
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
    (r"(?<!\\)\\[!,;:> ]|~|\\q?quad|\\[hv]space\*?\{[^{}]*\}|\\(?:thin|med|thick)space|\\phantom\{[^{}]*\}", " "),
    (r"\.\.\.", r"\\ldots "), (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"), (r"\\[dt]binom", r"\\binom"),
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

FUNCTIONS = {name: name for name in "sin cos tan cot sec csc sinh cosh tanh coth exp log lg ln max min gcd lcm".split()}
FUNCTIONS |= {f"{arc}{name}": f"a{name}" for arc in ("arc", "a") for name in "sin cos tan cot sec csc sinh cosh tanh".split()}
FUNCTIONS |= {"tg": "tan", "ctg": "cot", "arctg": "atan", "cosec": "csc", "cis": "cis", "Gamma": "Gamma"}
GREEK = set("""alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau
    upsilon phi varphi chi psi omega Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar aleph R Z N Q C""".split())
OPERATORS = {  # LaTeX command -> the one sign we use
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "pm": "±", "mp": "∓", "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥",
    "geq": "≥", "geqslant": "≥", "lt": "<", "gt": ">", "ne": "≠", "neq": "≠", "approx": "≈", "sim": "~", "simeq": "≈",
    "equiv": "≡", "in": "∈", "cup": "∪", "cap": "∩", "setminus": "∖", "backslash": "∖", "mid": "∣", "vert": "|", "lvert": "|",
    "rvert": "|", "colon": ":", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "land": "and", "wedge": "and",
    "lor": "or", "vee": "or", "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉",
    "prime": "'", "perp": "⊥", "parallel": "∥", "ldots": "…", "cdots": "…", "dots": "…", "circ": "°", "degree": "°",
    "percent": "%", "lparen": "(", "rparen": ")", "Vert": "|", "gets": "=", "to": "→", "rightarrow": "→"}
DECORATIONS = dict.fromkeys("angle triangle overline bar widehat overrightarrow underline measuredangle".split(), False)
DECORATIONS |= dict.fromkeys("vec hat tilde mathcal".split(), True)        # True: they make another name of a letter
COMMANDS = """frac sqrt binom pi infty emptyset varnothing begin end dot pmod bmod mod int sum prod lim partial mathbb
    operatorname euro pound yen""".split()
KNOWN = sorted({*FUNCTIONS, *GREEK, *OPERATORS, *COMMANDS, *DECORATIONS, *STYLE.split("|")}, key=len, reverse=True)
SCALE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
UNITS = {name: group.split()[0] for group in """cm centimeter centimetre|m meter metre|km kilometer kilometre|mm millimeter
    |in inch inches|ft foot feet|yd yard|mi mile|g gram|kg kilogram|mg milligram|lb pound lbs|oz ounce|s sec second|min minute
    |h hr hour|day|week|month|year|dollar usd|cent|mph|kph|L l liter litre|ml mL|gallon|unit|acre|rad radian|N|J|W|V|K|Hz|point
    |people|person|way|time|am|pm|solution|term|digit|sqft|square sq|cubic|integer|prime|side|number""".split("|")
         for name in group.split()}
UNITS |= {f"{name}s": unit for name, unit in UNITS.items() if len(name) > 2}
NOT_UNITS = set("""not no but is are was isn wrong incorrect maybe possibly about approximately if unless than more less except
    without plus minus times over undefined none mod base when""".split())
NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()

TOKEN = re.compile(r"""
    (?P<num>\d*\.\d+\s?\\[lc]?dots(?!\s*[+,])|(?:\d+\.?\d*|\.\d+|\.(?=\\overline))(?:(?:\\overline|\\bar|\\dot)\s*(?:\{\d+\}|\d)|(?<=\.)\(\d+\)
        |[eE][+-]?\d+(?![a-zA-Z\d]))?)
    |\\(?P<cmd>[a-zA-Z]+)|(?P<row>\\\\)|\\(?P<esc>[{}%$|&\#_])|(?P<run>[a-zA-Z]+)
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
            found.append(("row", None))
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
        unit = (len(run) > 1 and run in UNITS) or (spaced and (len(run) > 4 or (len(run) > 1 and low in UNITS)))
        if not (after_number and unit):
            return [("sym", letter) for letter in run]
    if len(run) == 1 and not (after_number and run in UNITS):
        return [("sym", run)]
    return [("word", run)]


# ------------------------------------------------------------------------------------------------------------- parsing
# A tree is a tuple: ("num", Fraction, decimal places or None), ("sym", name), ("const", pi|e|i|oo), ("+", ...), ("*", ...),
# ("^", base, exponent), ("fn", name, ...), ("±", x), ("mark", unit, x), ("base", digits, value), ("text", words),
# ("seq", open, close, items), ("set", items), ("list", joiner, items), ("rel", signs, sides), ("mod", relation, modulus),
# ("mat", rows), ("ratio", items), ("∪" | "∩" | "∖", a, b), ("R",).

RELATIONS = tuple("=≠<≤>≥≈≡∈~∣⊥∥→")
FACTORS = ("num", "sym", "fn", "cmd", "(", "[", "{", "\\{", "⟨", "⌊", "⌈", "…", "cur")      # what may begin a factor
CLOSING = {"(": (")", "]"), "[": ("]", ")"), "⟨": ("⟩",), "{": ("}",), "\\{": ("\\}",), "⌊": ("⌋",), "⌈": ("⌉",)}
CLAUSES = ("for", "where", "with")


def num(value, places=None):
    return ("num", Fraction(value), places)


MINUS = num(-1)


def neg(x):
    return ("num", -x[1], x[2]) if x[0] == "num" else ("*", MINUS, x)


def over(a, b):
    return ("*", a, ("^", b, MINUS))


def literal(text: str):
    r"""A number as written: 12, .5, 0.\overline{3}, 0.333\ldots, 3.2e5. TooLarge beyond MAX_DIGITS digits."""
    mantissa, _, power = text.lower().partition("e") if "\\" not in text else (text, "", "")
    if len(text) > MAX_DIGITS or abs(int(power or 0)) > MAX_DIGITS:
        raise TooLarge(f"the number {text[:20]} has more than {MAX_DIGITS} digits")
    whole, part, tail = re.match(r"(\d*)\.?(\d*)(.*)", mantissa).groups()
    period = "".join(re.findall(r"\d", tail))
    if tail and not period and (again := re.search(r"(\d+?)\1{2,}$", part)):
        part, period = part[:again.start()], again[1]               # 0.333\ldots goes on as it repeats
    value = Fraction(int(whole + part or "0"), 10 ** len(part)) * Fraction(10) ** int(power or 0)
    if period:
        return num(value + Fraction(int(period), 10 ** len(part) * (10 ** len(period) - 1)))
    return num(value, len(part) if part and not power else None)


class Parser:
    """Recursive descent over the tokens, one method per level of precedence, the loosest first."""

    def __init__(self, text: str):
        self.found, self.at, self.depth, self.bars, self.builder = tokens(text), 0, 0, 0, False

    def peek(self, ahead=0):
        return self.found[self.at + ahead][0] if self.at + ahead < len(self.found) else "end"

    def word(self):
        """The value of the next token: a name, a word, digits."""
        return self.found[self.at][1] if self.at < len(self.found) else None

    def eat(self, *kinds):
        """The next token's kind, and step over it, if it is one of `kinds`; else None."""
        if (kind := self.peek()) in kinds:
            self.at += 1
            return kind
        return None

    def need(self, *kinds):
        return self.eat(*kinds) or fail(f"expected {' or '.join(kinds)}, found {self.peek()}")

    def parse(self):
        tree = self.listing()
        clause = self.peek() == "word" and self.word() in CLAUSES     # "2^k for k in Z": a condition is not compared,
        if self.peek() != "end" and (not clause or {",", ";", "and", "or"} & {kind for kind, _ in self.found[self.at:]}):
            fail(f"cannot read on at {self.peek()}")                  # unless it is one of several
        return tree

    def listing(self):
        """a, b and c"""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge(f"nested deeper than {MAX_DEPTH}")
        items, joiner = [self.relation()], ","
        while sign := self.eat(",", ";", "and", "or"):
            joiner = sign if sign in ("and", "or") else joiner
            while sign := self.eat(",", ";", "and", "or"):
                joiner = sign if sign in ("and", "or") else joiner
            if self.peek() not in ("end", "}", ")", "\\}"):
                items.append(self.relation())
        self.depth -= 1
        if len(items) > MAX_ITEMS:
            raise TooLarge(f"a list of more than {MAX_ITEMS}")
        return items[0] if len(items) == 1 else ("list", joiner, tuple(items))

    def relation(self):
        """a < b = c (mod m)"""
        self.eat("=", "≈")                                            # "= 5"
        sides, signs = [self.sets()], []
        while not (self.builder and self.peek() == "∣") and (sign := self.eat(*RELATIONS)):
            signs.append(sign)
            sides.append(self.sets())
        tree = ("rel", tuple(signs), tuple(sides)) if signs else sides[0]
        if self.is_command("pmod", "mod", "bmod"):
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
        while not self.builder and self.eat(":"):
            items.append(self.sum())
        if len(items) > 1 and (last := items[-1])[0] == "mark" and last[1] not in ("%", "deg"):
            return ("mark", last[1], ("ratio", (*items[:-1], last[2])))
        return items[0] if len(items) == 1 else ("ratio", tuple(items))

    def sum(self):
        """a + b ± c"""
        terms = []
        while True:
            minus, either = False, False
            while sign := self.eat("+", "-", "±", "∓"):
                minus ^= sign in "-∓"
                either = either or sign in "±∓"
            term = self.product()
            term = neg(term) if minus else term
            terms.append(("±", term) if either else term)
            if self.peek() not in ("+", "-", "±", "∓"):
                return terms[0] if len(terms) == 1 else ("+", *terms)

    def product(self):
        """Factors joined by a sign or by nothing, then units. 1/2x is (1/2)x, as in one line of print."""
        tree = self.power()
        while True:
            if sign := self.eat("*", "/"):
                minus = False
                while again := self.eat("+", "-"):
                    minus ^= again == "-"
                factor = self.power()
                factor = neg(factor) if minus else factor
                tree = multiply(tree, factor) if sign == "*" else over(tree, factor)
            elif self.peek() == "cur" or (self.peek() == "word" and self.word() not in CLAUSES):
                tree = self.unit(tree)
            elif (self.peek() in FACTORS and not self.stop()) or (self.peek() == "|" and not self.bars):
                glued, begins = self.found[self.at - 1][0] == "num", self.peek()
                factor = self.power()
                if glued and begins == "num":                         # 12 3/5
                    tree = mixed(tree, over(factor, self.power())) if self.eat("/") else None
                    tree = tree or fail("two numbers side by side")
                else:                                                 # 2\frac34, but not 2(3/4)
                    tree = (glued and begins == "cmd" and mixed(tree, factor)) or multiply(tree, factor)
            else:
                return tree

    def is_command(self, *names):
        return self.peek() == "cmd" and self.word() in names

    def stop(self):
        return self.is_command("pmod", "mod", "bmod", "end")

    def unit(self, tree):
        """5 cm^2, 3 feet/s, 12 apples: the words after a quantity are its unit."""
        unit = []
        while self.peek() in ("word", "cur") or (unit and (self.peek() == "^" or (
                self.peek() in "/*" and self.peek(1) in ("word", "sym")))):
            if self.eat("^"):
                unit.append(f"^{self.argument()[1]}")
                continue
            sign = self.eat("/", "*") or ""
            name = self.word()
            self.at += 1
            if name.lower() in NOT_UNITS:
                fail(f"the word {name!r} is no unit")
            unit.append(sign + UNITS.get(name, UNITS.get(name.lower(), name.lower())))
        if len(unit) > 1 and unit[0] in ("square", "cubic"):
            unit = [*unit[1:], "^2" if unit[0] == "square" else "^3"]
        return ("mark", " ".join(unit), tree)

    def power(self):
        """x^2, 5!, 60°, 50%, f'"""
        tree = self.atom()
        while True:
            if self.eat("^"):
                group = (self.peek(), self.peek(1), self.peek(2)) == ("{", "°", "}")
                self.at += 3 if group else 0
                if group or self.eat("°"):
                    tree = self.degrees(tree)
                elif self.peek() != "'":
                    tree = ("^", tree, self.argument(whole=True))
            elif self.eat("°"):
                tree = self.degrees(tree)
            elif self.eat("%"):
                tree = ("mark", "%", tree)
            elif self.eat("!"):
                tree = ("fn", "fact2" if self.eat("!") else "fact", tree)
            elif tree[0] == "sym" and self.eat("'"):
                tree = ("sym", tree[1] + "'")
            else:
                return tree

    def degrees(self, tree):
        scale = self.word() if self.peek() in ("sym", "word") and self.word() in ("C", "F") else ""     # 77° F
        self.at += bool(scale)
        return ("mark", "deg" + scale, tree)

    def argument(self, whole=False):
        r"""What a command or sign applies to: a group or one token. \frac12 takes digits; 2^10 and \sqrt10 the number."""
        if self.eat("{"):
            tree = self.listing()
            self.need("}")
            return tree
        if self.peek() == "num" and not whole and self.word().isdigit() and len(self.word()) > 1:
            digits = self.word()
            self.found[self.at] = ("num", digits[1:])
            return literal(digits[0])
        if whole and (sign := self.eat("-", "+")):
            return neg(self.atom()) if sign == "-" else self.atom()
        return self.atom()

    def atom(self):
        """A number, a name, or something in brackets."""
        self.depth += 1
        if self.depth > 2 * MAX_DEPTH:
            raise TooLarge(f"nested deeper than {MAX_DEPTH}")
        kind, value = self.found[self.at] if self.at < len(self.found) else ("end", None)
        self.at += 1
        if kind in ("num", "sym", "fn", "cmd"):
            tree = {"num": self.number, "sym": self.symbol, "fn": self.function, "cmd": self.command}[kind](value)
        elif kind == "word":
            words = [value]
            while self.peek() == "word":
                words.append(self.word())
                self.at += 1
            tree = ("text", " ".join(words).lower())
        elif kind in ("(", "[", "{", "⟨", "\\{"):
            tree = self.bracket(kind)
        elif kind == "|":
            self.bars += 1
            tree = ("fn", "abs", self.sum())
            self.bars -= 1
            self.need("|")
        elif kind in ("⌊", "⌈"):
            tree = ("fn", "floor" if kind == "⌊" else "ceil", self.sum())
            self.need(*CLOSING[kind])
        elif kind == "cur":
            tree = ("mark", value, self.power())
        else:
            tree = ("sym", "…") if kind == "…" else fail(f"cannot read {kind} here")
        self.depth -= 1
        return tree

    def number(self, text):
        """12.5, or 204_5: digits in a base"""
        if not self.eat("_"):
            return literal(text)
        base = self.argument(whole=True)
        if base[0] == "text" and (word := base[1].removeprefix("base ")) in NUMBER_WORDS:
            base = num(NUMBER_WORDS.index(word))
        if base[0] != "num" or not text.isdigit() or not int(max(text)) < base[1] <= 36:
            fail(f"{text} is no number in that base")
        return ("base", literal(text), num(int(text, int(base[1]))))

    def symbol(self, name):
        """x, x_1, f'(x), and the constants e and i"""
        constant = name in ("e", "i")
        if self.eat("_"):
            start, constant = self.at, False
            self.argument(whole=True)
            name += "_" + "".join(str(value or kind) for kind, value in self.found[start:self.at] if kind not in "{}")
        while self.eat("'"):
            name += "'"
        if self.peek() == "(" and ((name[0] in "fghFGH" and not constant) or self.definition()):
            self.at += 1
            return ("fn", "call " + name, *self.inside())
        if name == "R" and self.found[self.at - 2:self.at - 1] == [("∈", None)]:
            return ("R",)
        return ("const" if constant else "sym", name)

    def definition(self):
        """Whether P(x) = ... or a(m, n) = ... starts here: letters in brackets, then an equals sign."""
        at = 1
        while self.peek(at) == "sym" and self.peek(at + 1) == ",":
            at += 2
        return (self.peek(at), self.peek(at + 1), self.peek(at + 2)) == ("sym", ")", "=")

    def inside(self):
        """The items in a round bracket that is open already."""
        tree = self.bracket("(")
        return tree[3] if tree[0] == "seq" else (tree,)

    def bracket(self, opening):
        """(a, b], {a, b}, {x | x > 3} (read as its condition), <a, b>, or a group."""
        if opening == "\\{" and self.eat("\\}"):
            return ("set", ())
        outside, self.builder = (self.bars, self.builder), opening == "\\{"
        self.bars = int(self.builder)                                 # inside a set, a bar means "such that"
        tree = self.listing()
        condition = self.builder and self.eat("|", "∣", ":")
        self.bars, self.builder = outside
        if condition:
            tree = self.listing()
        closing = self.need(*CLOSING[opening])
        items = tree[2] if tree[0] == "list" else (tree,)
        if opening == "\\{":
            return tree if condition else ("set", items)
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
            while (self.peek() in FACTORS and self.peek() not in ("fn", "cur", "[") and not self.stop()) or (
                    self.peek() == "|" and not self.bars):
                tree = multiply(tree, self.power())
            values = (tree,)
        base = {"ln": ("const", "e"), "lg": num(10)}.get(name, base)
        tree = ("fn", "log", *values, base) if base is not None else ("fn", name, *values)
        return ("^", tree, power) if power is not None else tree

    def command(self, name):
        if name in ("frac", "binom"):
            top = self.argument()
            return over(top, self.argument()) if name == "frac" else ("fn", "binom", top, self.argument())
        if name == "sqrt":
            index = num(2)
            if self.eat("["):
                index = self.sum()
                self.need("]")
            return ("fn", "root", self.argument(whole=True), index)
        if name in ("pi", "infty"):
            return ("const", "pi" if name == "pi" else "oo")
        if name in ("emptyset", "varnothing"):
            return ("set", ())
        if name == "mathbb":
            letter = self.argument()
            return ("R",) if letter == ("sym", "R") else ("sym", f"set {letter[-1]}")
        if name in DECORATIONS:
            tree = self.argument()
            return ("sym", f"{name} {tree[1]}") if DECORATIONS[name] and tree[0] == "sym" else tree
        return self.environment() if name == "begin" else fail(f"\\{name} here")

    def environment(self):
        r"""\begin{pmatrix} a & b \\ c & d \end{pmatrix}; the lines of cases and aligned are a list."""
        name, rows = "", [[]]
        self.need("{")
        while not self.eat("}"):
            name += self.word() or ""
            self.need("sym", "word", "*")
        if name == "array" and self.eat("{"):
            while not self.eat("}"):
                self.need("sym", "|")
        if name in ("aligned", "gathered", "align"):
            self.found = [token for token in self.found if token[0] != "&"]
        while not self.is_command("end"):
            if self.eat("row"):
                rows.append([])
            elif not self.eat("&"):
                rows[-1].append(self.listing())
        self.at += 1
        self.argument()
        rows = tuple(tuple(row) for row in rows if row)
        if name in ("matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"):
            return ("mat", rows) if len({len(row) for row in rows}) == 1 else fail("a matrix with ragged rows")
        if name not in ("cases", "aligned", "gathered", "align") or {len(row) for row in rows} != {1}:
            fail(f"environment {name}")
        return rows[0][0] if len(rows) == 1 else ("list", ",", tuple(row[0] for row in rows))


def fail(message):
    raise Unreadable(message)


def mixed(left, right):
    r"""7\frac34 is 7 + 3/4 when a whole number meets a proper fraction of whole numbers, else None."""
    if left[0] == "num" and left[2] is None and right[0] == "*" and len(right) == 3 and right[1][0] == "num" \
            and right[2][0] == "^" and right[2][2] == MINUS and right[2][1][0] == "num":
        top, bottom = right[1][1], right[2][1][1]
        if top.denominator == bottom.denominator == 1 and 0 < top < bottom:
            return num(left[1] + top / bottom)
    return None


def multiply(a, b):
    """A product of two trees; matrices are multiplied out here, since their product is not a number's."""
    if a[0] == b[0] == "mat":
        if len(a[1][0]) != len(b[1]):
            fail("matrices that do not fit")
        return ("mat", tuple(tuple(("+", *(("*", x, y) for x, y in zip(row, column, strict=True)))
                                   for column in zip(*b[1], strict=True)) for row in a[1]))
    if "mat" in (a[0], b[0]):
        scalar, matrix = (a, b) if b[0] == "mat" else (b, a)
        return ("mat", tuple(tuple(("*", scalar, x) for x in row) for row in matrix[1]))
    return ("*", a, b) if a[0] != "*" else (*a, b)


@lru_cache(8192)
def parse(text: str, thousands: bool):
    """The tree of a cleaned text. `thousands`: 1,000 is a number, not a list. Raises Unreadable, TooLarge."""
    text = re.sub(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])", lambda run: run[0].replace(" ", ""), text)       # 1 000
    if thousands:
        text = THOUSANDS.sub(lambda run: run[0].replace(",", ""), text)
    return Parser(text).parse()


THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")


# ------------------------------------------------------------------------------------------------------------- values

def leaves(tree, kind: str) -> set[str]:
    """The names of all leaves of one kind: the free letters ("sym"), the constants ("const")."""
    if not isinstance(tree, tuple) or not tree:
        return set()
    return {tree[1]} if tree[0] == kind else set().union(*(leaves(part, kind) for part in tree))


def whole_letters(tree, inside=False) -> set[str]:
    """Letters j..n, p, q, N in an exponent, factorial, binomial or floor: by custom they are whole numbers."""
    if not isinstance(tree, tuple) or not tree:
        return set()
    if tree[0] == "sym":
        return {tree[1]} if inside and tree[1][0] in "jklmnpqN" else set()
    if tree[0] == "^":
        return whole_letters(tree[1], inside) | whole_letters(tree[2], True)
    inside = inside or (tree[0] == "fn" and tree[1] in ("fact", "fact2", "binom", "floor", "ceil", "gcd", "lcm"))
    return set().union(*(whole_letters(part, inside) for part in tree))


def natural(*values) -> list[int]:
    """Arguments of a factorial and its kin. TooLarge beyond 8000, whose factorial has 91,000 bits."""
    if any(x.denominator != 1 for x in values):
        raise Inexact
    if any(x < 0 or x > 8000 for x in values):
        raise TooLarge("a factorial or binomial beyond 8000")
    return [int(x) for x in values]


EXACT = {  # functions of fractions whose values are fractions
    "fact": lambda x: math.factorial(*natural(x)), "binom": lambda n, k: math.comb(*natural(n, k)), "abs": abs, "max": max,
    "fact2": lambda x: math.prod(range(*natural(x), 0, -2)), "min": min, "floor": math.floor, "ceil": math.ceil,
    "gcd": lambda *xs: math.gcd(*natural(*xs)), "lcm": lambda *xs: math.lcm(*natural(*xs))}
REAL = {  # functions of mpmath's numbers that it does not have under our name
    "abs": lambda mp, x: abs(x), "max": lambda mp, *xs: max(xs), "min": lambda mp, *xs: min(xs),
    "cis": lambda mp, x: mp.expj(x),
    "fact": lambda mp, x: mp.gamma(x + 1), "Gamma": lambda mp, x: mp.gamma(x), "binom": lambda mp, n, k: mp.binomial(n, k),
    "root": lambda mp, x, n: -mp.root(-x, n) if not mp.im(x) and x < 0 and n % 2 == 1 else mp.power(x, 1 / n),
    "log": lambda mp, x, base: mp.log(x) / mp.log(base)}
REAL |= {name: lambda mp, x, name=name: getattr(mp, name)(x) for name in
         """sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh coth asinh acosh atanh exp floor
         ceil""".split()}
LOCAL = threading.local()      # an mpmath context holds its precision: one for each thread


class Values:
    """Evaluation of a tree at a point, in fractions (bits = 0) or with mpmath at `bits` of precision."""

    def __init__(self, deadline: float, log_base: int):
        if not hasattr(LOCAL, "mp"):
            import mpmath
            LOCAL.mp = mpmath.MPContext()
        self.mp, self.deadline, self.log_base = LOCAL.mp, deadline, ("const", "e") if log_base == 1 else num(log_base)

    def at(self, tree, point: dict, bits=0, real=False):
        """The value, with letters from `point`. Raises Inexact (no fraction), Undefined (no value, or not real where `real`),
        TooLarge, Late. Afterwards `self.span` is the bits between the largest and the smallest number met on the way."""
        self.point, self.bits, self.real, self.high, self.low = point, bits, real, 0, 0
        self.mp.prec = bits or 53
        try:
            value = self.value(tree)
        except (ZeroDivisionError, ValueError, TypeError) as error:
            raise Undefined(str(error)) from None
        if bits and self.mp.isnan(value):
            raise Undefined("not a number")
        self.span = self.high - self.low
        return value

    def number(self, x):
        return self.mp.mpf(x.numerator) / x.denominator if self.bits and isinstance(x, Fraction) else x

    def value(self, tree):
        kind = tree[0]
        if kind == "num":
            return self.number(tree[1])
        if time.monotonic() > self.deadline:
            raise Late
        if kind == "sym":
            return self.number(self.point[tree[1]]) if tree[1] in self.point else undefined(f"no value for {tree[1]}")
        if kind == "const" and self.bits:
            return {"pi": +self.mp.pi, "e": +self.mp.e, "i": self.mp.j, "oo": self.mp.inf}[tree[1]]
        if kind == "base":
            return self.value(tree[2])
        if kind == "mark" and (self.bits or tree[1] != "deg"):
            scale = self.mp.pi / 180 if tree[1] == "deg" else Fraction(1, 100) if tree[1] == "%" else Fraction(1)
            return self.value(tree[2]) * (self.number(scale) if isinstance(scale, Fraction) else scale)
        if kind not in ("+", "*", "^", "fn"):
            raise Inexact if not self.bits else Undefined(f"{kind} has no value")
        if kind == "fn" and tree[1] == "log" and len(tree) == 3:
            tree = (*tree, self.log_base)
        parts = [self.value(x) for x in tree[1 + (kind == "fn"):]]
        if kind == "^":
            return self.checked(self.power(*parts, tree[2]))
        return self.checked(sum(parts) if kind == "+" else math.prod(parts) if kind == "*" else self.call(tree[1], *parts))

    def checked(self, value):
        """Bounds on a value just computed, and its size noted."""
        if not self.bits:
            if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
                raise TooLarge("an exact number beyond the bound")
            return value
        if isinstance(value, self.mp.mpc) and value.imag == 0:
            value = value.real
        if value and self.mp.isfinite(value):
            size = int(self.mp.mag(value))
            self.high, self.low = max(self.high, size), min(self.low, size)
            if self.real and self.mp.im(value) != 0:
                undefined("not real")
        return value

    def power(self, base, power, tree):
        mp = self.mp
        if base == 0 and mp.re(power) <= 0:
            undefined("0 to the power 0 or less")
        if not self.bits:
            if power.denominator != 1:
                raise Inexact
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if size > 1 and size * abs(power.numerator) > MAX_BITS:
                raise TooLarge("a power beyond the bound")
            return base ** (power.numerator % 2 if abs(base) == 1 else power.numerator)
        if mp.isinf(base) or mp.isinf(power):
            undefined("infinite power")
        if base and max(mp.mag(power), 0) + max(mp.mag(mp.mag(base) or 1), 0) > 60:
            raise TooLarge("a power beyond the bound")
        if not mp.im(base) and base < 0 and tree[0] == "*" and len(tree) == 3 and tree[1][0] == tree[2][1][0] == "num":
            top, bottom = tree[1][1], tree[2][1][1]                  # (-8)^{1/3} = -2: the real root where there is one
            if top.denominator == bottom.denominator == 1 and bottom % 2 == 1:
                return (-1) ** (int(top) % 2) * mp.power(-base, power)
        return mp.power(base, power)

    def call(self, name, *values):
        if not self.bits:
            return Fraction(EXACT[name](*values)) if name in EXACT else inexact()
        mp = self.mp
        bound = 10**15 if name in ("fact", "Gamma", "binom") else mp.mpf(2) ** 5000
        if name not in ("root", "log", "abs") and any(mp.isfinite(v) and abs(v) > bound for v in values):
            raise TooLarge(f"{name} of a number beyond the bound")
        if name.startswith("call "):       # an unknown function: one fixed function per name, unlike any other
            seed = mp.mpf(zlib.crc32(name.encode())) / 2**32 + 1
            return sum(mp.sin(seed * (k + 2) * v + k) + v * seed for k, v in enumerate(values))
        return REAL[name](mp, *values) if name in REAL else undefined(f"{name} is not evaluated")


def undefined(message):
    raise Undefined(message)


def inexact():
    raise Inexact


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
        self.values, self.deadline, self.rule = Values(deadline, log_base), deadline, ""

    def same(self, a, t) -> bool:
        """Whether two trees say the same."""
        if time.monotonic() > self.deadline:
            raise Late
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
        if kinds & {"mark", "base"} and not kinds & {"rel", "list", "set"}:
            return self.marked(a, t)
        if kinds & {"seq", "set", "list", "mat", "ratio", "∪", "∩", "∖", "R"}:
            return self.collections(a, t)
        if kinds & {"text", "mod"}:
            self.rule = "words"
            return False
        return self.equal(a, t) or self.rounds(a, t)

    # --- numbers and expressions

    def points(self, *trees):
        """The fixed random points of a comparison: fractions, half of them positive only; whole numbers where due."""
        names = sorted(set().union(*(leaves(tree, "sym") for tree in trees)))
        whole = set().union(*(whole_letters(tree) for tree in trees))
        rng = random.Random(20)
        for trial in range(8 if names else 1):
            low, high = ((10, 400), (10, 90), (-400, 400), (-90, 90))[trial % 4]
            bottom = (20, 147, 23, 203)[trial % 4]
            yield {name: Fraction(rng.randint(2, 30) + trial % 2) if name in whole else
                   Fraction(2 * rng.randint(low, high) + 1, bottom) for name in names}

    def at(self, trees, point):
        """The values of the trees at a point: fractions if all are, else mpmath numbers precise enough to be compared."""
        try:
            return [self.values.at(tree, point) for tree in trees]
        except (Inexact, TooLarge):
            pass
        real = bool(point) and not any("i" in leaves(tree, "const") for tree in trees)
        found, spans = [], []
        for tree in trees:
            found.append(self.values.at(tree, point, 200, real))
            spans.append(self.values.span)
        if max(spans) > 50 and self.near(*found, 2**-20):             # 2^{2007}\sqrt3 - 1: the 1 needs 2007 bits more
            if max(spans) > 20_000:
                raise TooLarge("numbers too far apart to compare")
            found = [self.values.at(tree, point, 200 + 2 * max(spans), real) for tree in trees]
        return found

    def near(self, a, b, tolerance=None):
        """Equality: of fractions exact, of mpmath numbers up to rounding errors."""
        mp = self.values.mp
        if isinstance(a, Fraction) or mp.isinf(a) or mp.isinf(b):
            return a == b
        return abs(a - b) <= max(abs(a), abs(b), mp.mpf(2) ** (-mp.prec // 2)) * (tolerance or mp.mpf(2) ** (40 - mp.prec))

    def equal(self, a, t) -> bool:
        """Two expressions: by structure, else at up to five points where both are defined."""
        agreed, self.rule = 0, "no common value"
        if structure(a) == structure(t):
            self.rule = "the same structure"
            return True
        for point in self.points(a, t):
            try:
                left, right = self.at((a, t), point)
            except Undefined:
                continue
            self.rule = ("exact values" if isinstance(left, Fraction) else "60 digits") + (" at random points" if point else "")
            agreed += 1
            if not self.near(left, right) or agreed == 5:
                return self.near(left, right)
        return agreed > 0

    def rounds(self, a, t) -> bool:
        if t[0] != "num" or not t[2] or leaves(a, "sym"):
            return False
        self.rule = "rounds to the truth's decimals"
        try:
            value = self.values.at(a, {}, 200, real=True)
        except Undefined:
            return False
        return rounds(value, a[2] if a[0] == "num" else None, self.values.number(t[1]), t[2])

    def marked(self, a, t) -> bool:
        """Rule 6: a percent, degree, unit or base may be missing on one side; on both sides they must agree."""
        marks = [x[1] if x[0] == "mark" else "base" if x[0] == "base" else "" for x in (a, t)]
        bare = [x[2] if x[0] == "mark" else x[1] if x[0] == "base" else x for x in (a, t)]
        plain = [mark in ("%", "deg", "base", "") for mark in marks]
        if all(marks) and not all(plain):
            self.rule = "the units"
            return marks[0].removesuffix("s") == marks[1].removesuffix("s") and self.same(*bare)
        if all(plain) and not {bare[0][0], bare[1][0]} & {"rel", "list", "set", "seq", "mat", "ratio"} and self.equal(a, t):
            return True
        if marks[0] == marks[1]:
            return marks[0] != "base" and self.rounds(*bare)
        return not all(marks) and self.same(*bare)

    # --- names and relations

    def relations(self, a, t) -> bool:
        """Where at least one side is an equation, an inequality or another relation."""
        equation = [x[0] == "rel" and set(x[1]) <= {"=", "≈"} for x in (a, t)]
        if all(equation):
            return self.equations(a, t)
        if equation[0] and t[0] != "rel":
            return self.worth(a, lambda side: self.same(side, t), strict=False)
        if equation[1] and a[0] != "rel":
            return self.worth(t, lambda side: self.same(a, side), strict=True)
        if a[0] != t[0] or leaves(a, "sym") != leaves(t, "sym"):
            return a[0] != t[0] and self.same_set(a, t)
        return self.same_set(a, t) or self.matched(pairs(a), pairs(t), self.same_pair)

    def worth(self, tree, fits, strict: bool) -> bool:
        """Whether an equation gives something named a value that fits: "x = 3", "5 = x", "2 + 1 = 3", "x = 6/2 = 3".
        `strict`: it is the truth, and "x^2 + y^2 = 4" is not met by 4."""
        sides = list(tree[2])
        if len(sides) == 2 and named(sides[1]) and not leaves(sides[0], "sym"):
            sides.reverse()
        if leaves(sides[0], "sym") or sides[0][0] == "seq" or named(sides[0]):
            if not named(sides[0]) and (strict or leaves(sides[0], "num")):
                self.rule = "an equation is not a value"
                return False
            sides = sides[1:]
        if "≈" not in tree[1]:
            return all(fits(side) for side in sides)
        try:                                                          # \sqrt2 \approx 1.41: what is called near must be
            values = [self.values.at(side, {}, 100, True) for side in sides]
        except Undefined:
            return False
        return all(abs(value - values[0]) <= abs(values[0]) / 50 for value in values) and any(fits(side) for side in sides)

    def equations(self, a, t) -> bool:
        left, right = a[2], t[2]
        self.rule = "equations up to a factor"
        if len(left) == len(right) == 2 and self.factor(difference("=", *left), difference("=", *right)):
            return True
        applied = [x[0][0] == "fn" and x[0][1].startswith("call") for x in (left, right)]
        alike = named(left[0]) and structure(left[0]) == structure(right[0])
        if alike or (("sym", "y") in (left[0], right[0]) and any(applied)):
            return self.same(left[-1], right[-1]) and all(self.same(x, left[-1]) for x in left[1:-1])   # y = x^2, f(x) = x^2
        return False

    def factor(self, a, t) -> int:
        """The sign of the constant c with a = c t at all points, or 0: equations and inequalities up to a factor."""
        ratio, seen = None, 0
        for point in self.points(a, t):
            try:
                left, right = self.at((a, t), point)
            except Undefined:
                continue
            if not left or not right:
                if left or right:
                    return 0
                continue
            if ratio is not None and not self.near(left / right / ratio, ratio / ratio):
                return 0
            ratio, seen = left / right, seen + 1
        if seen < 2 or (not isinstance(ratio, Fraction) and self.values.mp.im(ratio)):
            return 0
        return 1 if ratio > 0 else -1

    def same_pair(self, a, t) -> bool:
        """a < b against c < d: the differences agree up to a positive factor (any factor for = and ≠)."""
        self.rule = "relations up to a factor"
        if a[0] != t[0] or a[0] not in "<≤=≠":
            return a[0] == t[0] and self.same(a[1], t[1]) and self.same(a[2], t[2])
        sign = self.factor(difference(*a), difference(*t))
        return sign > 0 if a[0] in "<≤" else sign != 0

    def residues(self, a, t) -> bool:
        """p = 5 (mod 4) is p = 1 (mod 4)."""
        sides = [x[1][2] if x[1][0] == "rel" else (x[1],) for x in (a, t)]
        if min(map(len, sides)) > 1 and not self.same(sides[0][0], sides[1][0]):
            return False
        try:
            left, right, modulus = (self.values.at(x, {}) for x in (sides[0][-1], sides[1][-1], t[2]))
            return modulus > 0 and (left - right) % modulus == 0
        except (Inexact, Undefined):
            return False

    # --- sets of real numbers: equal when they have the same members among all their ends, between them and beyond

    def same_set(self, a, t) -> bool:
        try:
            ends = sorted(x for tree in (a, t) for x in self.ends(tree) if self.values.mp.isfinite(x))
            tests = [self.values.mp.mpf(0)] if not ends else [ends[0] - 1, *ends, ends[-1] + 1]
            tests += [(x + y) / 2 for x, y in itertools.pairwise(ends) if not self.near(x, y)]
            self.rule = "the same set of real numbers"
            return self.members(a, tests) == self.members(t, tests)
        except (NoSet, Undefined):
            return False

    def real(self, tree, point):
        return self.values.at(tree, point, 200, real=True)

    def ends(self, tree) -> list:
        """The numbers at which membership can change. NoSet if this is not a set of numbers that we know."""
        kind = tree[0]
        if kind == "R":
            return []
        if kind in ("set", "seq"):
            ends = [self.real(x, {}) for x in tree[-1]]
            if kind == "seq" and (tree[1] not in "([" or len(ends) != 2 or not ends[0] < ends[1]):
                raise NoSet
            return ends
        if kind in ("∪", "∩", "∖"):
            return self.ends(tree[1]) + self.ends(tree[2])
        if kind == "list" and len(leaves(tree, "sym")) < 2:
            return [x for item in tree[2] for x in self.ends(item)]
        if kind != "rel" or len(names := leaves(tree, "sym")) != 1 or not set(tree[1]) <= set("<≤>≥=≠"):
            raise NoSet
        roots = []
        for sign, left, right in pairs(tree):
            low, high, far = (self.real(difference(sign, left, right), {name: x for name in names})
                              for x in (Fraction(0), Fraction(1), Fraction(-73, 10)))
            if self.values.mp.isfinite(low):
                if low == high or not self.near(far - low, (high - low) * self.values.number(Fraction(-73, 10))):
                    raise NoSet                                       # not linear
                roots.append(low / (low - high))
        return roots

    def members(self, tree, tests) -> list[bool]:
        kind = tree[0]
        if kind == "R":
            return [True for _ in tests]
        if kind == "set":
            ends = [self.real(x, {}) for x in tree[1]]
            return [any(self.near(x, end) for end in ends) for x in tests]
        if kind == "seq":
            low, high = (self.real(x, {}) for x in tree[3])
            return [tree[1] == "[" if self.near(x, low) else tree[2] == "]" if self.near(x, high) else low < x < high
                    for x in tests]
        if kind == "rel":
            holds = {"<": lambda d, zero: not zero and d < 0, "≤": lambda d, zero: zero or d < 0,
                     "=": lambda d, zero: zero, "≠": lambda d, zero: not zero}
            name, inside = leaves(tree, "sym").pop(), [True for _ in tests]
            for sign, left, right in pairs(tree):
                for i, x in enumerate(tests):
                    lo, hi = self.real(left, {name: x}), self.real(right, {name: x})
                    inside[i] &= bool(holds[sign](lo - hi, self.near(lo, hi)))
            return inside
        parts = [self.members(x, tests) for x in (tree[2] if kind == "list" else tree[1:])]
        both = [all(column) for column in zip(*parts, strict=True)]
        if kind == "∖":
            return [x and not y for x, y in zip(*parts, strict=True)]
        if kind == "∩" or (kind == "list" and tree[1] != "or" and any(both)):
            return both
        return [any(column) for column in zip(*parts, strict=True)]   # also "x < 1, x > 3", which cannot both hold

    # --- collections

    def matched(self, a, t, same) -> bool:
        """Whether the items pair off, in any order."""
        rest = list(t)
        for x in a:
            if (i := next((i for i, y in enumerate(rest) if same(x, y)), None)) is None:
                return False
            del rest[i]
        return not rest

    def in_order(self, a, t) -> bool:
        return len(a) == len(t) and all(self.same(x, y) for x, y in zip(a, t, strict=True))

    def collections(self, a, t) -> bool:
        """Tuples, intervals, sets, lists, matrices and ratios."""
        kinds = (a[0], t[0])
        items = [x[-1] if x[0] in ("list", "set", "seq", "ratio") else (x,) for x in (a, t)]
        brackets = [x[1] + x[2] if x[0] == "seq" else "()" for x in (a, t)]
        if "mat" in kinds:
            self.rule = "entry by entry"
            if kinds == ("mat", "mat"):
                return len(a[1]) == len(t[1]) and all(self.in_order(x, y) for x, y in zip(a[1], t[1], strict=True))
            flat = [tuple(e for row in x[1] for e in row) if x[0] == "mat" and min(len(x[1]), len(x[1][0])) == 1 else items[i]
                    for i, x in enumerate((a, t))]                    # a column, or a row, is also a tuple
            return "seq" in kinds and set(brackets) <= {"()", "[]"} and self.in_order(*flat)
        if kinds == ("seq", "seq"):
            self.rule = "in order, with brackets"
            point = len(t[3]) > 2 and set(brackets) <= {"()", "[]"}   # three numbers are no interval
            return (brackets[0] == brackets[1] or point) and self.in_order(*items)
        if kinds == ("set", "set"):
            self.rule = "sets without order"
            return all(any(self.same(x, y) for y in t[1]) for x in a[1]) and all(
                any(self.same(x, y) for x in a[1]) for y in t[1])
        if kinds == ("ratio", "ratio"):
            self.rule = "ratios up to a factor"
            first, due = a[1][0], t[1][0]
            return len(a[1]) == len(t[1]) and all(self.equal(("*", x, due), ("*", y, first))
                                                  for x, y in zip(*items, strict=True))
        if "ratio" in kinds:                                          # 3:2 is 3/2, written as a fraction
            ratio, other = (a, t) if a[0] == "ratio" else (t, a)
            return other[0] == "*" and len(ratio[1]) == 2 and self.equal(over(*ratio[1]), other)
        if set(kinds) == {"seq", "list"}:
            self.rule = "in order, brackets on one side"
            which = kinds.index("list")                               # x = 1, y = 2 is (1, 2): letters in their order
            if all(x[0] == "rel" for x in items[which]):
                items[which] = tuple(x[2][-1] for x in sorted(items[which], key=lambda x: repr(x[2][0])))
            return (set(brackets) == {"()"} and self.in_order(*items)) or self.same_set(a, t)
        if "seq" in kinds or not set(kinds) & {"list", "set"} or len(items[0]) != len(items[1]):
            return self.same_set(a, t)
        self.rule = "without order"
        return self.matched(*items, self.same) or self.matched(*map(unnamed, items), self.same) or self.same_set(a, t)


def unfold(tree):
    r"""What a tree stands for: 1 \pm x is two values, (x, y) = (1, 2) and x = y = 2 are two equations, x \in S is S."""
    kind = tree[0]
    if kind == "list":
        items = [unfold(item) for item in tree[2]]
        return ("list", tree[1], tuple(x for item in items for x in (item[2] if item[0] == "list" else (item,))))
    if kind == "rel" and set(tree[1]) == {"="}:
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
    """Whether a tree is a name rather than a value: x, AB, f(x), |AB|, P(A), AB/CD, (x, y), sin A, words."""
    kind = tree[0]
    if kind in ("sym", "text") or (kind == "fn" and tree[1].startswith("call")):
        return True
    if kind == "*" and len(tree) == 3 and tree[2][0] == "^" and tree[2][2] == MINUS:
        return named(tree[1]) and named(tree[2][1])
    if kind == "*":
        return tree[1][0] == "sym" and tree[1][1][0].isupper() and all(x[0] == "sym" for x in tree[1:])
    return (kind == "fn" and tree[1] == "abs" and named(tree[2])) or (kind in ("seq", "ratio") and all(map(named, tree[-1])))


def unnamed(items):
    """x = 1, x = 2 (or x_1, x_2, or only the first named) as the values 1, 2; equations of different names stay as they are."""
    names = [x[2][0] for x in items if x[0] == "rel" and x[1] == ("=",) and named(x[2][0])]
    if len({str(name[1]).split("_")[0] for name in names}) == 1 and len(names) in (1, len(items)) and items[0][0] == "rel":
        return tuple(x[2][-1] if x[0] == "rel" else x for x in items)
    return tuple(items)


def pairs(tree) -> list:
    """a < b <= c as pairs (sign, left, right), with > turned into <."""
    turned = {">": "<", "≥": "≤"}
    return [(turned[sign], right, left) if sign in turned else (sign, left, right)
            for sign, left, right in zip(tree[1], tree[2], tree[2][1:], strict=False)]


def difference(sign, left, right):
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
    if not a or not re.search(r"[^\W_]|\\", a):
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
    try:
        verdict, rule = decide(answer, truth)
    except RecursionError:
        verdict, rule = "too_large", "nested too deep"
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
        self.threads, self.own, self.started, self.closed = ThreadPoolExecutor(workers), threading.local(), [], False

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
        began, alarm = time.monotonic(), None
        try:
            if getattr(self.own, "worker", None) is None or self.own.worker.poll() is not None:
                self.own.worker = self._start()
                began = time.monotonic()
            alarm = threading.Timer(self.timeout_s, self.own.worker.kill)
            alarm.start()
            self.own.worker.stdin.write(json.dumps([answer, truth]) + "\n")
            self.own.worker.stdin.flush()
            return Verdict(**json.loads(self.own.worker.stdout.readline()))
        except (OSError, ValueError) as error:                          # its pipe closed: it was killed, or died
            late = alarm is not None and time.monotonic() - began >= self.timeout_s
            if alarm is not None:
                self.own.worker.kill()
                self.own.worker.wait()
            return Verdict(0.0, "timeout" if late else "crashed", answer, f"the worker was lost: {error!r}")
        finally:
            if alarm is not None:
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
                print(f"{case.get('kind', '')}: answer {verdict.answer!r}, truth {case['gold']!r}, "
                      f"expected {case['expected']}, found {verdict.verdict} by {verdict.rule!r}")
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
