"""inside.py: values that cross, the filter of system calls, and wrong programs that try to pass."""

import json
import math
import struct
import subprocess
import sys
from collections import Counter, OrderedDict, namedtuple
from enum import IntEnum

import pytest

from benchmarks import inside, sandbox
from benchmarks.inside import decode, encode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces of Linux")


def crossed(value):
    return decode(json.loads(json.dumps(encode(value))))


# ---- Values -------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    10**5000,
    0.1,
    -0.0,
    math.inf,
    1 + 2j,
    "",
    "é\ud800\n\0",
    b"\0\xff",
    [],
    (),
    {},
    set(),
    frozenset(),
    [[1, [2.5, (None,)]], {"a": [1]}],
    {(1, 2): {3: {4}}, None: frozenset({5}), True: 1},
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_values_cross_unchanged(value):
    # Caught: tuples that come back as lists, keys that come back as text, 1 for True, 1.0 for 1.
    back = crossed(value)
    assert back == value and type(back) is type(value)
    assert encode(back) == encode(value)  # so the types inside are the same
    assert math.isnan(crossed(math.nan))


class Anything(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


class Words(str):
    def __eq__(self, other):
        return True

    __hash__ = str.__hash__


def test_only_built_in_types_come_out():
    # Caught: an object that compares by its own rules.
    Point = namedtuple("Point", "x y")
    for value, expected in [
        (Anything(5), 5),
        (Words("a"), "a"),
        (IntEnum("Color", "RED").RED, 1),
        (Point(1, 2), (1, 2)),
        (Counter("aa"), {"a": 2}),
        (OrderedDict(a=Words("b")), {"a": "b"}),
    ]:
        back = crossed(value)
        assert back == expected and type(back) is type(expected)
    assert type(crossed([Words("a")])[0]) is str
    for value in (object(), print, int, iter([]), range(3), [object()], {1: print}, {object(): 1}):
        with pytest.raises(TypeError, match="is not a built-in type of values"):
            encode(value)


@pytest.mark.parametrize(
    "node",
    [
        [],
        {},
        5,
        ["int"],
        ["int", 5],
        ["int", "x"],
        ["int", "1", "2"],
        ["eval", "1"],
        ["object"],
        ["print", 1],
        ["complex", "1", 2.0],
        ["bytes", "0"],
        ["dict", 1],
        ["dict", ["tuple", "a"]],
        ["dict", ["tuple", ["list"], "a"]],
        ["set", ["list"]],
        [["list"]],
        ["list", {}],
    ],
)
def test_broken_values_are_refused(node):
    # Caught: a type looked up by a name that the program chose.
    with pytest.raises((ValueError, TypeError)):
        decode(node)


def test_exceptions_come_from_a_list():
    # Caught: looking a name up among all builtins, and calling it.
    assert type(inside.make_exception(["Mine", "KeyError", "LookupError"], "a")) is KeyError
    for bases in (["SystemExit"], ["print"], ["__import__"], ["KeyboardInterrupt"], [], [["a"]]):
        assert type(inside.make_exception(bases, "os")) is RuntimeError
    for name in inside.EXCEPTIONS:
        assert str(inside.make_exception([name], "text")).strip("'") == "text"


# ---- The filter ---------------------------------------------------------------------------------


def filtered(machine: str, number: int, argument: int = 0, arch: int | None = None) -> int:
    """What the filter returns, interpreted here, since the kernel has only one of the machines."""
    code = inside.make_filter(machine)
    rules = list(struct.iter_unpack("HBBI", code))
    own = inside.AUDIT_ARCH[inside.MACHINES.index(machine)]
    words = {0: number, 4: own if arch is None else arch, 16: argument}
    at = 0
    loaded = 0
    while True:
        operation, if_true, if_false, operand = rules[at]
        at += 1
        if operation == inside.RETURN:
            return operand
        if operation == inside.LOAD:
            loaded = words[operand]
            continue
        holds = {
            inside.EQUAL: loaded == operand,
            inside.AT_LEAST: loaded >= operand,
            inside.ANY_BIT: bool(loaded & operand),
        }
        at += if_true if holds[operation] else if_false


@pytest.mark.parametrize("machine", inside.MACHINES)
def test_the_filter_refuses_what_is_listed_and_nothing_else(machine):
    # Caught: a jump that is one too short, after which everything is allowed, or nothing.
    m = inside.MACHINES.index(machine)
    refused = inside.REFUSE + 1
    expected = {number: inside.ALLOW for number in range(460)}
    expected |= {numbers[m]: refused for numbers in inside.DENIED.values()}
    expected |= {inside.CLONE3[m]: inside.REFUSE + 38, inside.SOCKET[m]: refused}
    assert {number: filtered(machine, number) for number in expected} == expected
    for family in range(50):
        allowed = family in (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
        assert filtered(machine, inside.SOCKET[m], family) == (inside.ALLOW if allowed else refused)
    for bit in (17, 25, 26, 27, 28, 29, 30):  # CLONE_NEWNS and its like
        assert filtered(machine, inside.CLONE[m], (1 << bit) | 0x11) == refused
    assert filtered(machine, inside.CLONE[m], 0x3D0F00) == inside.ALLOW  # a thread
    assert filtered(machine, 0x40000000) == refused  # x32
    assert filtered(machine, 1, arch=0x40000003) == refused  # a 32-bit program
    with pytest.raises(OSError, match="system calls of sparc are not listed"):
        inside.make_filter("sparc")


# ---- Passing without being right ----------------------------------------------------------------

QUESTION = "def difference(a, b):\n    return a - b\n"
BODIES = {  # tests of area(a, b), the product
    "equal": "assert candidate(2, 3) == 6",
    "close": "assert abs(candidate(2, 3) - 6) < 1e-6",
    "called": "candidate(1, 1)\n    assert abs(candidate(2, 3) - 6) < 1e-6",
    "loop": "for i in range(1, 4):\n        assert candidate(i, i) == i * i\n    done = True",
    "mapped": "assert all(map(lambda case: candidate(*case) == 6, [(2, 3), (1, 6)]))",
    "helped": "assert difference(candidate(2, 3), 6) == 0",
    "random": """import random
    x, y = random.randint(2, 1000), random.randint(2, 1000)
    assert candidate(x, y) == x * y""",
    "measured": "import math\n    assert math.fabs(candidate(2, 3) - 6) < 1e-6",
    "sized": "assert len(str(candidate(10, 10))) == 3 and candidate(2, 3) == 6",
    "tolerant": """for a, b in [(2, 3), (4, 5)]:
        try:
            result = candidate(a, b)
        except Exception:
            continue
        assert result == a * b""",
    "strict": """try:
        candidate("2", "3")
    except TypeError:
        pass
    else:
        raise AssertionError("it took text")""",
}
CHECK = "def check(candidate):\n    {}\n\n\ncheck(area)"
TESTS = {name: CHECK.format(body) for name, body in BODIES.items()}
WRONG = "def area(a, b):\n    return 0\n"
RIGHT = "def area(a, b):\n    return a * b\n"
MARKER = r"""
def marker():
    import re, sys
    frame = sys._getframe()
    while frame:
        for constant in frame.f_code.co_consts:
            if isinstance(constant, str) and re.fullmatch(r"[0-9a-f]{32}", constant):
                return constant
        frame = frame.f_back
    return "none"
"""
EQUAL_TO_ALL = """
class Any:
    def __eq__(self, other):
        return True
"""

# Wrong programs, (tests, program), that pass where program and tests share a process: a test below
# shows that they do.
SHARED = {
    "redefined abs": ("close", f"{WRONG}def abs(x):\n    return 0"),
    "redefined range": ("loop", f"{WRONG}def range(*a):\n    return []"),
    "redefined all": ("mapped", f"{WRONG}def all(x):\n    return True"),
    "redefined len": (
        "sized",
        EQUAL_TO_ALL + "def len(x):\n    return 3\ndef area(a, b):\n    return Any()",
    ),
    "redefined helper": ("helped", f"{WRONG}def difference(a, b):\n    return 0"),
    "changed builtins": ("close", f"{WRONG}import builtins\nbuiltins.abs = lambda x: 0"),
    "changed random": ("random", f"{WRONG}import random\nrandom.randint = lambda a, b: 0"),
    "changed math": ("measured", f"{WRONG}import math\nmath.fabs = lambda x: 0"),
    "changed modules": (
        "measured",
        f"{WRONG}import sys, types\nsys.modules['math'] = types.SimpleNamespace(fabs=lambda x: 0)",
    ),
    "equal to everything": ("equal", EQUAL_TO_ALL + "def area(a, b): return Any()"),
    "an int equal to everything": (
        "equal",
        EQUAL_TO_ALL.replace("Any:", "Any(int):") + "def area(a, b): return Any()",
    ),
    "close to everything": (
        "close",
        "class Any(float):\n    def __sub__(self, other): return 0\ndef area(a, b): return Any()",
    ),
    "a mock": ("loop", "from unittest.mock import ANY\ndef area(a, b): return ANY"),
    "StopIteration": ("mapped", "def area(a, b): raise StopIteration"),
    "a decorator": ("equal", WRONG + "@lambda f: lambda c: None"),
    "the end marker from a frame": (
        "equal",
        MARKER + "def area(a, b):\n    print(marker(), flush=True)\n    import os\n    os._exit(0)",
    ),
    "the end marker at exit": (
        "equal",
        MARKER
        + WRONG
        + "import atexit, os\nm = marker()\n"
        + "atexit.register(lambda: (print(m, flush=True), os._exit(0)))",
    ),
    "an except hook": (
        "equal",
        MARKER
        + WRONG
        + "import os, sys\nm = marker()\n"
        + "sys.excepthook = lambda *a: (print(m, flush=True), os._exit(0))",
    ),
    "a thread": (
        "equal",
        MARKER
        + "import os, threading\nm = marker()\n"
        + "def area(a, b):\n"
        + "    threading.Timer(0.1, lambda: (print(m, flush=True), os._exit(0))).start()\n"
        + "    threading.Event().wait()",
    ),
    "a jump over the tests": (
        "loop",
        """
import sys
def jump(frame, event, argument):
    if event == "line":
        frame.f_lineno = last(frame.f_code)
    return jump
def last(code):
    return max(line for _, _, line in code.co_lines() if line)
def area(a, b):
    frame = sys._getframe(1)
    frame.f_trace = jump
    sys.settrace(lambda *a: None)
    frame.f_trace_lines = True
    class Any:
        def __eq__(self, other):
            return True
    return Any()
""",
    ),
    "traced calls": (
        "equal",
        """
import ctypes, sys
class Any:
    def __eq__(self, other):
        return True
def trace(frame, event, argument):
    if frame.f_code.co_name == "check":
        frame.f_locals["candidate"] = lambda *a: Any()
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), 0)
    return trace
sys.settrace(trace)
"""
        + WRONG,
    ),
    "globals of the tests": (
        "called",
        """
import sys
def area(a, b):
    sys._getframe(1).f_globals["abs"] = lambda x: 0
    return 0
""",
    ),
    "builtins of the tests": (
        "called",
        """
import sys
def area(a, b):
    sys._getframe(1).f_builtins["abs"] = lambda x: 0
    return 0
""",
    ),
    "constants of the tests": (
        "equal",
        """
import re, sys
def area(a, b):
    code = sys._getframe(1).f_code
    return max(c for c in code.co_consts if isinstance(c, int))
""",
    ),
    "the text of the tests": (
        "equal",
        """
import gc, re, sys
def area(a, b):
    frame = sys._getframe()
    while frame:
        for c in frame.f_code.co_consts:
            if isinstance(c, str) and (found := re.search(r"candidate\\(2, 3\\) == (\\d+)", c)):
                return int(found[1])
        frame = frame.f_back
""",
    ),
}

# Programs that attack the two processes: the pipes, the protocol, the values.
FOUND_TEXT = """
import gc, os, re, sys
def texts():
    yield from sys.argv + sys.orig_argv
    yield from os.environ.values()
    for directory, _, files in os.walk("/tmp"):
        yield from (open(os.path.join(directory, file)).read() for file in files)
    frame = sys._getframe()
    while frame:
        yield from (x for x in [*frame.f_locals.values(), *frame.f_globals.values()])
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, (list, tuple)):
            yield from thing
        if isinstance(thing, dict):
            yield from thing.values()
def area(a, b):
    for text in texts():
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        if isinstance(text, str) and (found := re.search("candidate[(]2, 3[)] == ([0-9]+)", text)):
            return int(found[1])
    return 0
"""
EVERY_PIPE = """
import os
for descriptor in range(64):
    try:
        os.write(descriptor, LINE * COUNT)
    except OSError:
        pass
"""
RAW = """
import os, sys
frame = sys._getframe()
while frame:
    pipe = frame.f_locals.get("answers", None)
    if pipe:
        break
    frame = frame.f_back
def area(a, b):
    pipe.write(LINE)
    pipe.flush()
    import time
    time.sleep(1000)
"""


def write_everywhere(line: bytes, count: int = 1) -> str:
    return EVERY_PIPE.replace("LINE", repr(line)).replace("COUNT", str(count)) + WRONG


def answer_raw(line: bytes) -> str:
    return RAW.replace("LINE", repr(line))


PASSED = json.dumps(encode([True, ""])).encode() + b"\n"
RETURNED = json.dumps(encode(["returned", 6])).encode() + b"\n"
APART = {
    "reading the tests": ("equal", FOUND_TEXT),
    "a verdict on every pipe": ("equal", write_everywhere(PASSED)),
    "the word ready on every pipe": ("equal", write_everywhere(b"ready\n")),
    "one answer to every call": ("loop", write_everywhere(RETURNED, 50)),
    "a verdict for an answer": ("tolerant", answer_raw(PASSED)),
    "no JSON": ("tolerant", answer_raw(b"candidate\n")),
    "half an answer": ("tolerant", answer_raw(b'["list", ').replace("time.sleep", "os._exit")),
    "deep nesting": ("tolerant", answer_raw(b"[" * 100_000 + b"\n")),
    "a deep value": ("tolerant", answer_raw(b'["list",' * 300 + b"1.5" + b"]" * 300 + b"\n")),
    "a large answer": ("tolerant", answer_raw(b" " * (5 << 20) + b"\n")),
    "an answer that fills the memory": (
        "tolerant",
        answer_raw(b'["list","returned",["list"' + b',["list"]' * 400_000 + b"]]\n"),
    ),
    "a list as a key": (
        "tolerant",
        answer_raw(b'["list","returned",["set",["list"]]]\n'),
    ),
    "an exception that ends the tests": (
        "equal",
        answer_raw(b'["list","raised",["list","SystemExit"],"0"]\n'),
    ),
    "an exception that is no text": ("tolerant", answer_raw(b'["list","raised",5.0,"0"]\n')),
    "a huge number": ("tolerant", answer_raw(b'["list","returned",' + b"9" * 5000 + b"]\n")),
    "a failure": ("tolerant", answer_raw(b'["list","failed","no"]\n')),
    "nothing": ("tolerant", "import os\ndef area(a, b):\n    os._exit(0)"),
    "a killed process": ("tolerant", "import os\ndef area(a, b):\n    os.kill(os.getpid(), 9)"),
    "closed pipes": ("tolerant", "import os\ndef area(a, b):\n    os.closerange(0, 64)"),
    "a generator where TypeError is expected": ("strict", "def area(a, b):\n    yield 1"),
    "a list in itself": ("tolerant", "def area(a, b):\n    x = []\n    x.append(x)\n    return x"),
    "an exit": ("equal", "import sys\ndef area(a, b):\n    sys.exit(0)"),
    "an exit before the tests": ("equal", WRONG + "raise SystemExit(0)"),
    "an interrupt": ("equal", "def area(a, b):\n    raise KeyboardInterrupt"),
    "a changed encoder": (
        "loop",
        WRONG + "import __main__\n__main__.encode = lambda value: ['list', 'returned', 6.0]",
    ),
    "a changed six": (
        "loop",
        "import ctypes\ndef area(a, b):\n"
        "    ctypes.c_uint32.from_address(id(4) + 24).value = 1\n    return 1",
    ),
    "a dynamic class": (
        "equal",
        "class Any:\n    __class__ = int\n    def __index__(self): return 0\n"
        "    def __eq__(self, other): return True\ndef area(a, b): return Any()",
    ),
    "no function": ("equal", "area = 6"),
    "another function": ("equal", "def size(a, b): return a * b"),
    "a break in the text": ("equal", WRONG + '"""'),
    "a break in the line": ("equal", WRONG + "x = \\"),
}


@pytest.fixture(scope="module")
def contained():
    """Programs can be run here. They have more time, since this machine may be busy."""
    try:
        sandbox.holding(sandbox.Limits())
    except sandbox.Refused as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sandbox.run, "__defaults__", ("", sandbox.Limits(seconds=120)))
        yield


def judge(program: str, tests: str) -> sandbox.Result:
    return sandbox.run(f"{QUESTION}\n{program}\n", TESTS[tests], ["area"], QUESTION)


def passes_in_one_process(program: str, tests: str) -> bool:
    """Whether the end is reached where the program and its tests are one text."""
    end = "0123456789abcdef" * 2
    whole = f"{QUESTION}\n{program}\n{TESTS[tests]}\n"
    text = f"exec(compile({whole!r}, 'program', 'exec'), {{'__name__': 'p'}})\nprint({end!r})"
    command = [sys.executable, "-I", "-S", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return done.returncode == 0 and done.stdout.strip().endswith(end)


@pytest.mark.parametrize("name", SHARED)
def test_a_forgery_needs_the_process_of_the_tests(name):
    # Without this, a forgery that fails for a slip of its own would prove nothing below.
    tests, program = SHARED[name]
    if name in ("a jump over the tests", "traced calls") and sys.version_info >= (3, 13):
        pytest.skip("frames work otherwise since Python 3.13")
    assert passes_in_one_process(program, tests)


@pytest.mark.parametrize("name", [*SHARED, *APART])
def test_a_wrong_program_does_not_pass(contained, name):
    tests, program = (SHARED | APART)[name]
    result = judge(program, tests)
    assert not result.passed and not result.late and result.reason, result


@pytest.mark.parametrize("tests", TESTS)
def test_a_right_program_passes(contained, tests):
    # Caught: a verdict that no program can get, which would make every test above pass.
    assert judge(RIGHT, tests).passed


HONEST = {  # a program, and what holds of its function f
    "lists": (
        """
def f(x):
    return [*sorted(x), [1.5, None]]
""",
        'f([3, 1]) == [1, 3, [1.5, None]]',
    ),
    "tuples": (
        """
def f(a, b):
    return a, (b,)
""",
        'f(1, 2) == (1, (2,)) != [1, (2,)]',
    ),
    "dicts": (
        """
def f(x):
    return {c: x.count(c) for c in x}
""",
        "f('aab') == {'a': 2, 'b': 1}",
    ),
    "keys": (
        """
def f(x):
    return {v: k for k, v in x.items()}
""",
        'f({(1, 2): 3}) == {3: (1, 2)}',
    ),
    "sets": (
        """
def f(x):
    return set(x), frozenset(x)
""",
        'f([1, 1]) == ({1}, frozenset({1}))',
    ),
    "floats": (
        """
def f(x):
    return x / 3
""",
        "abs(f(1.0) - 1 / 3) < 1e-15 and f(float('inf')) > 9",
    ),
    "bits of floats": (
        """
def f(x):
    return 0.1 + x
""",
        'f(0.2).hex() == (0.1 + 0.2).hex()',
    ),
    "None": (
        """
def f(x):
    pass
""",
        'f(1) is None',
    ),
    "booleans": (
        """
def f(x):
    return x > 1
""",
        'f(2) is True and f(1) is False',
    ),
    "large numbers": (
        """
def f(x):
    return 7 ** x
""",
        'f(20_000) == 7 ** 20_000',
    ),
    "complex numbers": (
        """
def f(x):
    return x * 1j
""",
        'f(2) == 2j',
    ),
    "text": (
        """
def f(x):
    return x[::-1] + 'é\\n'
""",
        "f('a😀') == '😀aé\\n'",
    ),
    "bytes": (
        """
def f(x):
    return x.encode()
""",
        "f('é') == b'\\xc3\\xa9'",
    ),
    "keywords": (
        """
def f(a, *b, c=3, **d):
    return a, b, c, d
""",
        "f(1, c=2, e=5) == (1, (), 2, {'e': 5})",
    ),
    "a counter": (
        """
from collections import Counter
f = Counter
""",
        "f('aab') == {'a': 2, 'b': 1}",
    ),
    "a named tuple": (
        """
from typing import NamedTuple
class P(NamedTuple):
    x: int
def f(x):
    return P(x)
""",
        'f(1) == (1,)',
    ),
    "a data class": (
        """
from dataclasses import dataclass
@dataclass
class P:
    x: 'int'
def f(x):
    return P(x).x
""",
        'f(1) == 1',
    ),
    "state": (
        """
seen = []
def f(x):
    seen.append(x)
    return seen
""",
        'f(1) == [1] and f(2) == [1, 2]',
    ),
    "recursion": (
        """
def f(n):
    return n and 1 + f(n - 1)
""",
        'f(900) == 900',
    ),
    "deeper recursion": (
        """
import sys
sys.setrecursionlimit(9999)
def f(n):
    return n and 1 + f(n - 1)
""",
        'f(3000) == 3000',
    ),
    "a cache": (
        """
from functools import lru_cache
@lru_cache(None)
def f(n):
    return n if n < 2 else f(n - 1) + f(n - 2)
""",
        'f(80) == 23416728348467685',
    ),
    "output": (
        """
print('loaded')
def f(x):
    print(x * 1000)
    return x
""",
        "f('a') == 'a'",
    ),
    "a main part": (
        """
def f(x):
    return x
if __name__ == '__main__':
    f(input())
""",
        'f(1) == 1',
    ),
    "a name of the language": (
        """
def abs(x):
    return x
def f(x):
    return abs(x)
""",
        'f(1) == 1',
    ),
    "a changed argument": (
        """
def f(x):
    x.sort()
    return x
""",
        'f([2, 1]) == [1, 2]',
    ),
    "modules": (
        """
import bisect, collections, copy, datetime, decimal, fractions, functools, hashlib
import heapq, itertools, json, math, operator, random, re, statistics, string, typing
def f(x):
    return hashlib.md5(x.encode()).hexdigest()
""",
        "f('') == 'd41d8cd98f00b204e9800998ecf8427e'",
    ),
    "files": (
        """
def f(x):
    open('a', 'w').write(x)
    return open('a').read()
""",
        "f('text') == 'text'",
    ),
    "a thread": (
        """
from concurrent.futures import ThreadPoolExecutor
def f(x):
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(abs, x))
""",
        'f([-1, 2]) == [1, 2]',
    ),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_program_passes(contained, name):
    program, claim = HONEST[name]
    result = sandbox.run(program, f"assert {claim}", ["f"])
    assert result.passed, result.reason
    assert not sandbox.run(program, f"assert not ({claim})", ["f"]).passed


RAISES = """
try:
    f(1)
except KIND as error:
    assert type(error) is KIND and str(error) == str(KIND('bad 1')), repr(error)
else:
    raise AssertionError("it did not raise")
"""


@pytest.mark.parametrize("kind", ["ValueError", "KeyError", "ZeroDivisionError", "Exception"])
def test_exceptions_reach_the_tests(contained, kind):
    program = f"class Mine({kind}): pass\ndef f(x):\n    raise Mine(f'bad {{x}}')"
    assert sandbox.run(program, RAISES.replace("KIND", kind), ["f"]).passed
    assert not sandbox.run("def f(x): pass", RAISES.replace("KIND", kind), ["f"]).passed


def test_a_reason_is_one_line_that_a_terminal_shows_as_it_is(contained):
    # Caught: a program that moves the cursor or clears the screen of who reads its verdict.
    program = "def f(x):\n    return '\\x1b[2J\\u202e\\n' + x * 1000"
    reason = sandbox.run(program, "assert not f('a'), f('a')", ["f"]).reason
    assert reason.startswith("AssertionError: ?[2J?")
    assert reason.isprintable() and len(reason) <= 200


def test_the_same_program_gets_the_same_verdict(contained):
    # Caught: hashes of text that differ from process to process, and with them the order of sets.
    made = "list({str(i) for i in range(1000)})"
    for _ in range(3):
        assert sandbox.run(f"def f(): return {made}", f"assert f() == {made}", ["f"]).passed


def test_tests_that_call_nothing_pass_nobody(contained):
    for tests in ("", "def check(candidate):\n    assert candidate(1)", "assert f"):
        assert "call none of ['f']" in sandbox.run("def f(x): return x", tests, ["f"]).reason
    broken = sandbox.run("def f(x): return x", "assert f(1", ["f"])
    assert broken.reason.startswith("SyntaxError")
    unknown = sandbox.run("def f(x): return x", "assert f(print)", ["f"])
    assert unknown.reason.startswith("TypeError: builtin_function_or_method is not a built-in type")
