"""answers.py: letters, tables and programs; every reference of the study's benchmarks."""

import copy
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

import data
from benchmarks import answers, sandbox
from benchmarks.answers import cells, functions_under_test, grade_choice, grade_code, grade_grid
from reward import Grader

SCALING_DATA = os.environ.get("SCALING_DATA")
needs_data = pytest.mark.skipif(
    not SCALING_DATA, reason="SCALING_DATA names no folder of problem sets"
)


# ---- Letters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box, letter",
    [
        ("C", "C"),
        ("(C)", "C"),
        ("c", "C"),
        ("C.", "C"),
        ("C: 12 m", "C"),
        ("(C): 12", "C"),
        (r"\text{C}", "C"),
        (r"\textbf{(C)} 12", "C"),
        ("Option C", "C"),
        ("I", "I"),
    ],
)
def test_choices_by_letter(box, letter):
    assert grade_choice(f"so \\boxed{{{box}}}.", letter).verdict == "right"
    assert grade_choice(f"so \\boxed{{{box}}}.", "J").verdict == "wrong"


@pytest.mark.parametrize(
    "box",
    ["A, B", "A and B", "(A), (B)", "(A)(B)", "A/B", "A or B", "AB", "I think so", "0.5", "?"],
)
def test_what_is_no_single_letter_is_wrong_and_not_guessed(box):
    # Caught: taking the first letter found, or drawing one.
    for truth in "ABI":
        assert grade_choice(f"\\boxed{{{box}}}", truth).verdict == "unparsed"
    assert grade_choice("It is A.", "A").verdict == "no_answer"


# ---- Tables -------------------------------------------------------------------------------------


def table(header: list, *rows: list) -> str:
    return json.dumps({"header": header, "rows": rows})


TRUTH = table(["Position", "Job", "Pet"], ["1", "cook", "cat"], ["2", "pilot", "dog"])


def test_tables_by_cells():
    # Caught: counting Position, which is known; rows or columns matched by place although named.
    swapped = table(["Pet", "Position", "job"], ["dog", 2, "Pilot "], ["cat", 1, "cook"])
    late = f"<answer>{{}}</answer> no: <answer>{swapped}</answer>"
    assert grade_grid(late, TRUTH).verdict == "right"
    single_quotes = TRUTH.replace('"', "'")
    assert grade_grid(f"\\boxed{{{single_quotes}}}", TRUTH).score == 1
    half = TRUTH.replace("cook", "COOK").replace("pilot", "cook").replace("dog", "fish")
    assert cells(half, TRUTH) == 0.5
    assert grade_grid(f"<answer>{half}</answer>", TRUTH).score == 0
    assert cells(table(["Job", "Pet"], ["cook", "cat"]), TRUTH) == 0.5  # rows are numbered from 1
    assert cells(table(["Position"], ["1"], ["2"]), TRUTH) == 0
    assert cells(None, TRUTH) == 0
    assert grade_grid("I do not know", TRUTH).verdict == "no_answer"


@pytest.mark.parametrize(
    "bad",
    [
        "[]",
        "7",
        "{}",
        '{"header": 1, "rows": 2}',
        '{"header": ["a"], "rows": [1]}',
        '{"header": ["a"], "rows": ["b"]}',
        '{"header": ["a"], "rows": {"b": 1}}',
        "[" * 100_000,
        '{"header": ["a"], "rows": [[' + "9" * 5000 + "]]}",
        "print(1)",
    ],
    ids=lambda bad: bad[:30],
)
def test_what_is_no_table(bad):
    assert grade_grid(f"<answer>{bad}</answer>", TRUTH).verdict == "unparsed"


def test_a_table_may_not_say_two_things_about_a_cell():
    # Caught: the last of two rows that name one position counts, so that an answer may hedge; a
    # reference that loses cells in silence.
    twice = table(["Position", "Job"], [1, "cook"], [1, "pilot"], [2, "cook"])
    columns = table(["Position", "Job", "job"], [1, "pilot", "cook"], [2, "cook", "pilot"])
    truth = table(["Position", "Job"], [1, "cook"], [2, "pilot"])
    for hedged in (twice, columns):
        assert grade_grid(f"<answer>{hedged}</answer>", truth).verdict == "unparsed"
        assert cells(hedged, truth) == 0


@pytest.mark.parametrize(
    "truth",
    [
        table(["Position"], ["1"], ["2"]),
        table([], []),
        table(["Position", "Job"], [1, "cook"], [1, "pilot"]),
        "proof",
    ],
)
def test_a_reference_without_cells_scores_nothing(truth):
    # Caught: a division by zero that ends a run; 0 of 0 cells taken for all of them.
    for answer in (truth, table(["Position"], ["1"])):
        assert cells(answer, truth) == 0
        assert grade_grid(f"<answer>{answer}</answer>", truth).verdict == "unparsed"


# ---- Programs -----------------------------------------------------------------------------------

PROMPT = '''Write it.

```python
from math import prod


def double(x):
    return 2 * x


def area(a, b):
    """ The area.
    """
```'''
CHECKED = "def check(candidate):\n    assert candidate(2, 3) == 6 == double(3)\n\n\ncheck(area)"
PROGRAMS = [
    (
        "right",
        "Here:\n```python\ndef area(a, b):\n    return a * b\n```\n"
        "Use:\n```python\nprint(area(1, 2))\n```",
    ),
    ("right", "```\ndef area(a, b):\n    return prod((a, b))"),  # truncated
    ("right", "    return a * b\n"),  # a continuation
    ("right", "```python\ndef area(a, b):\n    return double(a) * b / 2\n```"),
    ("wrong", "```python\ndef area(a, b):\n    return a + b\n```"),
    ("wrong", "```python\ndef area(a, b):\n    return 0\ndef double(x):\n    return 0\n```"),
    ("wrong", "I do not know."),
    ("wrong", "```python\ndef area(a, b):\n    return a * b\nimport sys; sys.exit(0)\n```"),
    ("no_answer", " "),
]


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


@pytest.mark.parametrize("verdict, text", PROGRAMS)
def test_programs_by_their_tests(contained, verdict, text):
    # Caught: the last block instead of the one that defines the function; the question's code left
    # out, on either side.
    assert grade_code(text, PROMPT, CHECKED).verdict == verdict


def test_a_late_program_is_a_timeout(contained, monkeypatch):
    run = sandbox.run
    limits = sandbox.Limits(seconds=1)
    monkeypatch.setattr(sandbox, "run", lambda *arguments: run(*arguments, limits))
    text = "```python\ndef area(a, b):\n    while True: pass\n```"
    assert grade_code(text, PROMPT, CHECKED).verdict == "timeout"
    said = "```python\ndef area(a, b):\n    raise ValueError('not done in 1 s')\n```"
    assert grade_code(said, PROMPT, CHECKED).verdict == "wrong"


def test_the_functions_under_test():
    # Caught: a helper of the tests taken for a function of the program.
    assert functions_under_test(CHECKED) == ["area"]
    lines = "import math as m\ncases = [1]\ndef same(a, b=2): return abs(a - b)\n"
    assert functions_under_test(f"{lines}assert all(same(f(x), m.pi) for x in cases)") == ["f"]
    assert functions_under_test("assert add(1, 2) == 3\nassert sub(1, 2) == -1") == ["add", "sub"]
    assert functions_under_test("assert (") == []


def test_tests_without_a_check_line(contained):
    right = "```python\ndef add(a, b):\n    return a + b\n```"
    assert grade_code(right, "Add.", "assert add(1, 2) == 3\nassert add(0, 0) == 0").score == 1
    assert grade_code(right, "Add.", "assert add(1, 2) == 4").score == 0
    assert grade_code(right, "Add.", "assert (").score == 0


# ---- Any kind, and the study's files ------------------------------------------------------------


def test_submit_takes_every_kind(contained):
    problems = [
        data.Problem(0, "", "2"),
        data.Problem(1, "", "B", kind="choice"),
        data.Problem(2, "", TRUTH, kind="grid"),
        data.Problem(3, PROMPT, CHECKED, kind="code"),
    ]
    texts = [r"\boxed{2}", r"\boxed{B}", f"<answer>{TRUTH}</answer>", "    return a * b"]
    with Grader() as grader, ThreadPoolExecutor(1) as pool:
        futures = [
            answers.submit(grader, pool, problem, text)
            for problem, text in zip(problems, texts, strict=True)
        ]
        assert [future.result().score for future in futures] == [1, 1, 1, 1]


def test_an_answer_in_several_forms_is_right_in_each():
    # Caught: the first form alone, which made every other way to write the answer wrong.
    problem = data.Problem(0, "", "red", alternatives=("blue", "\\frac{1}{2}"))
    texts = ["\\boxed{blue}", "\\boxed{0.5}", "\\boxed{red}", "\\boxed{green}", "no box"]
    with Grader() as grader, ThreadPoolExecutor(1) as pool:
        futures = [answers.submit(grader, pool, problem, text) for text in texts]
        verdicts = [future.result() for future in futures]
    assert [verdict.score for verdict in verdicts] == [1, 1, 1, 0, 0]
    assert [verdict.verdict for verdict in verdicts[3:]] == ["wrong", "no_answer"]


@needs_data
@pytest.mark.parametrize(
    "name, kind, other",
    [
        ("stem__supergpqa_200", "choice", "Z"),
        ("logic__zebra_puzzle_dataset_200", "grid", table(["Position", "Job"], ["1", "none"])),
    ],
)
def test_references_score_one_and_others_zero(name, kind, other):
    problems, _ = data.load(f"{SCALING_DATA}/data/eval/{name}.parquet")
    assert len(problems) == 200
    grade = {"choice": grade_choice, "grid": grade_grid}[kind]
    for problem in problems:
        assert problem.kind == kind
        assert grade(f"So \\boxed{{{problem.answer}}}.", problem.answer).score == 1, problem
        assert grade(f"So \\boxed{{{other}}}.", problem.answer).score == 0, problem


class Recorder:
    """The result of a call in a test. It notes what the test compares it with, and equals that."""

    def __init__(self, arguments: list, log: list):
        self.arguments = arguments
        self.log = log

    def note(self, expected) -> None:
        self.log.append((self.arguments, expected))

    def __eq__(self, other):
        self.note(other)
        return True

    def __sub__(self, other):  # abs(candidate(x) - 0.33) < 1e-6
        self.note(other)
        return 0.0

    def __bool__(self):
        self.note(True)
        return True

    def __len__(self):
        return 1


def program_from_tests(problem: data.Problem) -> str:
    """A program that looks up what the tests of a problem expect."""
    (name,) = functions_under_test(problem.answer)
    log = []
    question = answers.BLOCK.findall(problem.prompt)[0]
    namespace = {}
    exec(question, namespace)
    namespace[name] = lambda *arguments: Recorder(copy.deepcopy(list(arguments)), log)
    exec(problem.answer, namespace)
    return f"""def {name}(*arguments):
    for known, value in {log!r}:
        if repr(known) == repr(list(arguments)):
            return value
"""


SOLUTIONS = {  # by their number in the file: tests that draw at random, or do more than to compare
    0: """def has_close_elements(numbers, threshold):
    s = sorted(numbers)
    return any(b - a < threshold for a, b in zip(s, s[1:]))""",
    3: """def below_zero(operations):
    from itertools import accumulate
    return any(x < 0 for x in accumulate(operations))""",
    32: """def find_zero(xs):
    low, high = -1.0, 1.0
    while poly(xs, low) * poly(xs, high) > 0:
        low, high = 2 * low, 2 * high
    for _ in range(200):
        mid = (low + high) / 2
        low, high = (mid, high) if poly(xs, low) * poly(xs, mid) > 0 else (low, mid)
    return low""",  # uses a function of the question
    33: """def sort_third(l):
    l = list(l)
    l[::3] = sorted(l[::3])
    return l""",
    37: """def sort_even(l):
    l = list(l)
    l[::2] = sorted(l[::2])
    return l""",
    38: """def decode_cyclic(s):
    groups = [s[i : i + 3] for i in range(0, len(s), 3)]
    return "".join(g[-1] + g[:-1] if len(g) == 3 else g for g in groups)""",
    50: "def decode_shift(s): return ''.join(chr((ord(c) - 5 - 97) % 26 + 97) for c in s)",
    52: "def below_threshold(l, t): return all(x < t for x in l)",
    53: "def add(x, y): return x + y",
    56: """def correct_bracketing(brackets):
    depth = 0
    for b in brackets:
        depth += 1 if b == "<" else -1
        if depth < 0:
            return False
    return depth == 0""",
    61: """def correct_bracketing(brackets):
    while "()" in brackets:
        brackets = brackets.replace("()", "")
    return not brackets""",
    72: "def will_it_fly(q, w): return q == q[::-1] and sum(q) <= w",
    162: """def string_to_md5(text):
    import hashlib
    return hashlib.md5(text.encode()).hexdigest() if text else None""",
}


@needs_data
def test_every_program_of_humaneval_can_be_judged(contained):
    # Caught: tests whose arguments or expected values cannot cross; helpers of a question that the
    # tests do not find.
    problems, _ = data.load(f"{SCALING_DATA}/data/eval/codegen__humaneval_164.parquet")
    assert len(problems) == 164 and {p.kind for p in problems} == {"code"}

    def judge(problem: data.Problem) -> str:
        program = SOLUTIONS.get(problem.index) or program_from_tests(problem)
        return grade_code(f"```python\n{program}\n```", problem.prompt, problem.answer).verdict

    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(judge, problems))
    assert {i: v for i, v in enumerate(verdicts) if v != "right"} == {}
    for problem in problems[::16]:
        (name,) = functions_under_test(problem.answer)
        wrong = f"```python\ndef {name}(*a):\n    return 'no'\n```"
        assert grade_code(wrong, problem.prompt, problem.answer).verdict == "wrong", problem.index
