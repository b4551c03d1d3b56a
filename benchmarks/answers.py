"""Grade the answers that are not mathematics: a letter, a table, a program. Mathematics is reward.py's.

A choice (SuperGPQA) is right by its letter. A table (zebra puzzles) is right when all its cells are; `cells` is the share of
right ones, the column Position not counted: it numbers the rows, so it is known. A program (HumanEval) is right when it passes
the tests, in sandbox.py; its text is put behind the code of the question, so a whole function and a continuation both count.
"""

import json
import re
from concurrent.futures import Future, ThreadPoolExecutor

from benchmarks import sandbox
from data import Problem
from reward import Grader, Verdict, extract

LETTER = re.compile(r"(?:(?:option|choice)\s+)?(?:\(([A-Z])\)|([A-Z])(?=[.:)]|$))(?!\s*(?:[,;&/]|and\b|or\b))"
                    r"(?:[.:)]*|[.:)]+.*|\s.*)", re.I | re.S)
BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.S)


def grade_choice(text: str, truth: str) -> Verdict:
    """By letter: "(C)", "C." and "C: 12 m" say C. What is no single letter is wrong; nothing is guessed."""
    if (answer := extract(text)) is None:
        return Verdict(0.0, "no_answer", None, "no final answer found")
    match = LETTER.fullmatch(re.sub(r"\\(?:text|math)?(?:bf|rm|sf|it)?(?![a-z])|[{}$*]", "", answer).strip())
    if not match:
        return Verdict(0.0, "unparsed", answer, "not the letter of a choice")
    letter = (match[1] or match[2]).upper()
    return Verdict(float(letter == truth), "right" if letter == truth else "wrong", letter, "choices by letter")


def read_grid(text: str) -> dict[tuple[str, str], str] | None:
    """A table in JSON (or with single quotes) as {(row's Position, column): value}, None if it is none."""
    for spelling in (text, text.replace("'", '"')):
        try:
            table = json.loads(spelling)
            header, rows = ([str(h).strip().lower() for h in table["header"]], list(map(list, table["rows"])))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        at = header.index("position") if "position" in header else None
        named = [(str(i if at is None or at >= len(row) else row[at]).strip(), row) for i, row in enumerate(rows, 1)]
        return {(place, h): str(x).strip().lower() for place, row in named for h, x in zip(header, row, strict=False)
                if h != "position"}
    return None


def cells(answer: str | None, truth: str) -> float:
    """The share of the truth's cells that the answer has, 0 for an answer that is no table."""
    grid, due = read_grid(answer or ""), read_grid(truth)
    return sum(grid.get(cell) == value for cell, value in due.items()) / len(due) if grid else 0.0


def grade_grid(text: str, truth: str) -> Verdict:
    """The table in the last <answer> </answer>, else in the last box: right if every cell is."""
    tagged = re.findall(r"<answer>(.*?)</answer>", text, re.S)
    if (answer := tagged[-1].strip() if tagged else extract(text)) is None:
        return Verdict(0.0, "no_answer", None, "no final answer found")
    if read_grid(answer) is None:
        return Verdict(0.0, "unparsed", answer, "not a table with header and rows")
    share = cells(answer, truth)
    return Verdict(float(share == 1), "right" if share == 1 else "wrong", answer, f"{share:.1%} of the cells")


def grade_code(text: str, prompt: str, tests: str) -> Verdict:
    """Runs the last block of code that defines the tested function (else the last block, else the whole text)."""
    if not text.strip():
        return Verdict(0.0, "no_answer", None, "no program")
    name = re.search(r"check\((\w+)\)\s*$", tests)
    blocks = BLOCK.findall(text)
    defining = [b for b in blocks if name and re.search(rf"\bdef\s+{name[1]}\b", b)]
    program = (defining or blocks or [text])[-1]
    result = sandbox.run("\n".join([*BLOCK.findall(prompt)[:1], program, tests, ""]))
    verdict = "right" if result.passed else "timeout" if result.reason.startswith("not done") else "wrong"
    return Verdict(float(result.passed), verdict, program, result.reason or "passed the tests")


def submit(grader: Grader, pool: ThreadPoolExecutor, problem: Problem, text: str) -> "Future[Verdict]":
    """The verdict on one completion of a problem of any kind, at once or when a worker has it."""
    if problem.kind == "math":
        return grader.submit(text, problem.answer)
    if problem.kind == "code":
        return pool.submit(grade_code, text, problem.prompt, problem.answer)
    future = Future()
    future.set_result({"choice": grade_choice, "grid": grade_grid}[problem.kind](text, problem.answer))
    return future
