"""Grade answers that are not mathematics: a letter, a table, a program. reward.py does mathematics.

choice (SuperGPQA)    right if it is the letter of the reference
grid (zebra puzzles)  right if every cell is; `cells` is the share of right cells
code (HumanEval)      right if the program passes the tests in sandbox.py
"""

import ast
import builtins
import json
import re
from concurrent.futures import Future, ThreadPoolExecutor

from benchmarks import sandbox
from data import Problem
from reward import Grader, Verdict, extract


def no_answer(what: str) -> Verdict:
    return Verdict(0.0, "no_answer", None, what)


def compared(right: bool, answer: str, rule: str) -> Verdict:
    return Verdict(float(right), "right" if right else "wrong", answer, rule)


# ---- Letters ----------------------------------------------------------------------------------

MARKUP = re.compile(
    r"\\(?:text|math)?(?:bf|rm|sf|it)?(?![a-z])"  # \text \textbf \mathrm \bf, not \texture
    r"|[{}$*]"
)
LETTER = re.compile(
    r"""
    (?: (?:option|choice) \s+ )?
    (?: \( ([A-Z]) \)                       # (C)
      | ([A-Z]) (?= [.:)] | $ )             # C   C.   C:   C)
    )
    (?! \s* (?: [,;&/] | and\b | or\b ) )   # not the first of several: A, B   A or B
    (?: [.:)]* | [.:)]+ .* | \s .* )        # then nothing, or the text of the choice: C: 12 m
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


def grade_choice(text: str, truth: str) -> Verdict:
    """By letter: "(C)", "C." and "C: 12 m" say C. An answer without one clear letter is wrong."""
    answer = extract(text)
    if answer is None:
        return no_answer("no final answer found")
    match = LETTER.fullmatch(MARKUP.sub("", answer).strip())
    if not match:
        return Verdict(0.0, "unparsed", answer, "not the letter of a choice")
    letter = (match[1] or match[2]).upper()
    return compared(letter == truth, letter, "choices by letter")


# ---- Tables -----------------------------------------------------------------------------------

Table = dict[tuple[str, str], str]  # (row, column) -> cell
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def read_json(text: str):
    """JSON, also with single quotes. None if it is neither."""
    for spelling in (text, text.replace("'", '"')):
        try:
            return json.loads(spelling)
        except (ValueError, RecursionError):
            continue
    return None


def plain(cell) -> str:
    return str(cell).strip().lower()


def read_grid(text: str) -> Table | None:
    """The cells of {"header": [...], "rows": [[...], ...]}; None if the text is no such table.

    A row is named by its cell in the column Position, else by its number. That column holds no
    answer, so it gives no cells. A table that names a row or a column twice is none: it could say
    two things about one cell.
    """
    table = read_json(text)
    if not isinstance(table, dict):
        return None
    header, rows = table.get("header"), table.get("rows")
    if not isinstance(header, list) or not isinstance(rows, list):
        return None
    columns = [plain(name) for name in header]
    if len(set(columns)) < len(columns):
        return None
    cells: Table = {}
    names = set()
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list):
            return None
        named = {c: plain(cell) for c, cell in zip(columns, row, strict=False)}
        name = named.pop("position", str(number))
        if name in names:
            return None
        names.add(name)
        cells |= {(name, column): cell for column, cell in named.items()}
    return cells


def cells(answer: str | None, truth: str) -> float:
    """The share of the reference's cells that the answer has. 0 if either has no cells."""
    found = read_grid(answer or "") or {}
    expected = read_grid(truth) or {}
    right = sum(found.get(place) == cell for place, cell in expected.items())
    return right / max(1, len(expected))


def grade_grid(text: str, truth: str) -> Verdict:
    """The table in the last <answer> </answer>, else in the last box: right if every cell is."""
    tagged = TAGGED.findall(text)
    answer = tagged[-1].strip() if tagged else extract(text)
    if answer is None:
        return no_answer("no final answer found")
    if read_grid(answer) is None:
        return Verdict(0.0, "unparsed", answer, "not a table with a header and rows")
    if not read_grid(truth):
        return Verdict(0.0, "unparsed", answer, "the reference has no cells to compare")
    share = cells(answer, truth)
    return compared(share == 1, answer, f"{share:.1%} of the cells")


# ---- Programs ---------------------------------------------------------------------------------

BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)  # ```python ... ```
CHECK = re.compile(r"^check\((\w+)\)\s*\Z", re.MULTILINE)  # check(area), the last line of the tests


def functions_under_test(tests: str) -> list[str]:
    """The functions under test: NAME if the last line is check(NAME), else what is not defined."""
    check = CHECK.search(tests)
    if check:
        return [check[1]]
    try:
        nodes = list(ast.walk(ast.parse(tests)))
    except SyntaxError:
        return []  # running the tests will say so
    names = [node for node in nodes if isinstance(node, ast.Name)]
    loaded = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    defined = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    defined |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return sorted(loaded - defined - set(dir(builtins)))


def choose_block(text: str, names: list[str]) -> str:
    """The last block of code that defines a tested function, else the last block, else the text."""
    blocks = BLOCK.findall(text) or [text]
    if names:
        defines = re.compile(rf"\bdef\s+(?:{'|'.join(names)})\b")
        blocks = list(filter(defines.search, blocks)) or blocks
    return blocks[-1]


def grade_code(text: str, prompt: str, tests: str) -> Verdict:
    """Run the program in a completion against its tests.

    The program is put behind the code of the question, so that a whole function and a continuation
    both count. Tests call functions with plain values; tests of a class pass no program.
    sandbox.Refused if nothing contains the program.
    """
    if not text.strip():
        return no_answer("no program")
    names = functions_under_test(tests)
    question = "\n".join(BLOCK.findall(prompt)[:1])
    program = choose_block(text, names)
    result = sandbox.run(f"{question}\n{program}\n", tests, names, question)
    if result.passed:
        return Verdict(1.0, "right", program, "passed the tests")
    verdict = "timeout" if result.late else "wrong"
    return Verdict(0.0, verdict, program, result.reason)


def first_right(verdicts: "list[Future[Verdict]]") -> Verdict:
    """The first verdict that is right, else the first one: a reference may have several forms."""
    found = [verdict.result() for verdict in verdicts]
    return next((verdict for verdict in found if verdict.score), found[0])


# ---- Any kind ---------------------------------------------------------------------------------


def submit(
    grader: Grader, pool: ThreadPoolExecutor, problem: Problem, text: str
) -> "Future[Verdict]":
    """The verdict on a completion of a problem of any kind. The pool runs programs.

    A user's reward function, if the grader has one, judges problems of every kind.
    """
    if grader.reward:
        return grader.submit(text, problem)
    if problem.kind == "math":
        forms = (problem.answer, *problem.alternatives)
        verdicts = [grader.submit(text, form) for form in forms]
        return verdicts[0] if len(verdicts) == 1 else pool.submit(first_right, verdicts)
    if problem.kind == "code":
        return pool.submit(grade_code, text, problem.prompt, problem.answer)
    grade = {"choice": grade_choice, "grid": grade_grid}[problem.kind]
    future = Future()
    future.set_result(grade(text, problem.answer))
    return future
