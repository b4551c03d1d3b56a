"""Grade a submission: a directory in the layout of the handout.

    python -m course.grade SUBMISSION [--only ID ..] [--json]

Nothing but the marked bodies is taken from a submission. Each exercise is graded by itself: its
bodies go into a fresh copy of the product, where all else is solved, and run in a sandbox without
network and without sight of this machine's files. The sandbox gets inputs and returns plain
values. This process compares them with the expected ones, which never enter the sandbox. So
nothing that a body prints, writes, replaces or exits with can earn a point.
An exercise earns all its points if all its cases are right, and else none.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import partial
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import NamedTuple

from tyro.conf import Positional

from benchmarks import inside, sandbox
from course import marks
from course.tests.compare import cases, complaint

LIMITS = sandbox.Limits(seconds=120, memory_mb=8192, processes=32, file_mb=64)
LOADED = {"name": "import", "expected": None, "mistakes": []}  # a first case: no answer yet
# Imports of torch read a seed and open /dev/null. With a file the seed is the same each time.
DEVICES = 'mkdir /dev && umask 0 && : > /dev/null && echo 00000000 > /dev/urandom && exec "$@"'
PROGRAM = """
import os, sys
os.environ.update(HOME="/tmp", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path[:0] = {paths}
from benchmarks import inside
inside.set_limits(*{limits})
inside.deny_system_calls()
os.chdir("/tmp")
program = "from course.tests.test_{exercise} import answer"
inside.serve_program(program, ["answer"], sys.stdin.buffer, os.fdopen(os.dup(1), "wb"))
"""


class Grade(NamedTuple):
    exercise: str
    assignment: str
    points: int
    earned: int
    note: str  # what was wrong


def put_together(submission: Path, exercise: str, files: dict, tree: Path) -> None:
    """A fresh copy of the product with the submitted bodies of one exercise, and its test file.
    files: {file: the marks in the product's}. ValueError for bodies that cannot be graded."""
    test = Path(f"course/tests/test_{exercise}.py")
    for path in [*marks.product_files(), Path("course/__init__.py"), test]:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(marks.ROOT / path, tree / path)
    for path, known in files.items():
        file = (submission / path).resolve()
        if not file.is_file() or not file.is_relative_to(submission.resolve()):
            raise ValueError(f"{path}: no such file, or a link that leads out of the submission")
        if file.stat().st_size > 1 << 20:
            raise ValueError(f"{path}: more than 1 MB")
        found = marks.marked(path, file.read_text(errors="replace"), exercise)
        if len(found) != len(known):
            raise ValueError(f"{path}: {len(found)} bodies of {exercise}, not {len(known)}")
        for mark, ours in zip(found, known, strict=True):
            marks.check_body(path, mark["body"], ours["indent"])
        marks.exchange(tree / path, exercise, [mark["body"] for mark in found])


def command(tree: Path, exercise: str, way: str, limits: sandbox.Limits) -> list[str]:
    """The command that serves an exercise in a sandbox that also sees torch and the tree."""
    shown = [str(tree), *(path for path in sys.path if path.endswith("-packages"))]
    python = sandbox.command(way, limits)
    end = python.index("--")  # of the directories to show
    python[end : end + 1] = [*shown, "--", "sh", "-c", DEVICES, "sh"]
    return [*python, "-c", PROGRAM.format(paths=shown, limits=astuple(limits), exercise=exercise)]


def examine(command: list[str], exercise: str, seconds: float) -> str:
    """What is wrong with the bodies of an exercise; "" if nothing is.

    Requests and answers are files: a file is bounded by the process's limits, a pipe by nothing.
    """
    with TemporaryFile() as requests, TemporaryFile() as replies:
        stored = cases(exercise)
        for case in stored:
            inside.send(requests, ["answer", [], case["inputs"]])
        requests.seek(0)
        files = {"stdin": requests, "stdout": replies, "stderr": subprocess.DEVNULL}
        try:
            subprocess.run(command, timeout=seconds, env=sandbox.ENVIRONMENT, **files)
            replies.seek(0)
            for stored_case in [LOADED, *stored]:
                match inside.receive(replies):
                    case ["returned", came]:
                        wrong = complaint(stored_case, came)
                    case ["raised", [str(name), *_], str(message)]:
                        wrong = f"{name}: {message}"
                    case other:
                        wrong = f"no value: {other}"
                if wrong:
                    return f"{stored_case['name']}: {wrong}"
        except subprocess.TimeoutExpired:
            return f"not done in {seconds:g} s"
        except EOFError:
            return "the process ended before it had answered"
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            return f"not an answer: {inside.describe(error)}"
    return ""


def grade_one(submission: Path, way: str, limits: sandbox.Limits, item: tuple) -> Grade:
    exercise, files = item
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # the sandbox has a user of its own
        tree = Path(directory, "tree")
        try:
            put_together(submission, exercise, files, tree)
            wrong = examine(command(tree, exercise, way, limits), exercise, limits.seconds)
        except ValueError as error:
            wrong = str(error)
    points = sum(int(mark["points"]) for found in files.values() for mark in found)
    note = "".join(c if c.isprintable() else "?" for c in wrong.replace("\n", "; "))
    return Grade(exercise, marks.heading(exercise)[0], points, 0 if wrong else points, note)


def grade(submission: Path, ids: Iterable[str] = (), limits=LIMITS) -> list[Grade]:
    """Grade the exercises of these ids, or all. ValueError for an unknown id, NotADirectoryError
    for a submission that is none, sandbox.Refused if nothing contains programs here."""
    found = marks.exercises(ids)
    if not submission.is_dir():
        raise NotADirectoryError(f"{submission}: no such directory")
    way = sandbox.holding(limits)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(grade_one, submission, way, limits), found.items()))


def table(grades: list[Grade]) -> str:
    lines = [f"{'assignment':<12} {'exercise':<10} points earned  note"]
    for g in grades:
        note = g.note if len(g.note) <= 200 else g.note[:200] + " .."
        lines.append(f"{g.assignment:<12} {g.exercise:<10} {g.points:>6} {g.earned:>6}  {note}")
    points = sum(g.points for g in grades)
    earned = sum(g.earned for g in grades)
    return "\n".join([*lines, f"{'total':<23} {points:>6} {earned:>6}"])


def main(submission: Positional[Path], only: tuple[str, ...] = (), json: bool = False) -> None:
    grades = grade(submission, only)
    print(dumps([g._asdict() for g in grades], indent=1) if json else table(grades))


if __name__ == "__main__":
    marks.run(main)
