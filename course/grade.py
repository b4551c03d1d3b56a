"""Grade a submission: a directory in the layout of the handout.

    python -m course.grade SUBMISSION [--only ID ..] [--json]

Nothing but the marked bodies is taken from a submission. Each exercise is graded by itself: its
bodies go into a fresh copy of the product, where all else is solved, and a sandbox without network
and without sight of this machine's files calls them. The sandbox gets the inputs of a case and
returns plain values. This process compares them with the stored ones, of which the sandbox sees
none. So nothing that a body prints, writes, replaces or exits with can earn a point.
An exercise earns all its points if all its cases are right, and else none.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path

from benchmarks import inside, sandbox
from course.check import cases, complaint
from course.marks import ROOT, Unusable, bodies, check_body, chosen, exchange, product_files

LIMITS = sandbox.Limits(seconds=60, memory_mb=8192, processes=32, file_mb=64)
LARGEST = 1 << 20  # bytes of a submitted file
# Imports of torch read a seed and open /dev/null. The seed is the same each time.
PREPARE = 'mkdir /dev && umask 0 && : > /dev/null && echo 00000000 > /dev/urandom && exec "$@"'
PROGRAM = """
import os, sys
os.environ.update(HOME="/tmp", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
sys.path[:0] = {paths}
from course.tests.test_{exercise} import answer
"""


@dataclass(frozen=True)
class Grade:
    exercise: str
    points: int
    earned: int
    note: str  # what was wrong


class Student(sandbox.Sandbox):
    """A sandbox that sees some directories more, read-only. way "": limits alone, no containment."""

    def __init__(self, way: str, limits: sandbox.Limits, pipes: tuple[int, int], shown: list[str]):
        python = [sys.executable, "-s", "-S", "-B"]
        if way:
            python = sandbox.command(way, limits)
            end = python.index("--")  # of the directories to show
            python[end : end + 1] = [*shown, "--", "sh", "-c", PREPARE, "sh"]
        arguments = ["-c", sandbox.SOURCE, "program", *map(str, astuple(limits))]
        self.pipes = pipes
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [*python, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=sandbox.ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            pass_fds=pipes,
        )


# ---- The bodies of a submission ----------------------------------------------------------------


def read_submitted(submission: Path, path: Path) -> str:
    """The text of a file. Unusable if there is none, or it is not a file of the submission."""
    file = submission / path
    if not file.is_file():
        raise Unusable(f"{path}: the submission has no such file")
    if not file.resolve().is_relative_to(submission.resolve()):
        raise Unusable(f"{path}: a link out of the submission; put the file itself there")
    if file.stat().st_size > LARGEST:
        raise Unusable(f"{path}: more than {LARGEST >> 20} MB")
    return file.read_text(errors="replace")


def copy_with(submission: Path, exercise: str, tree: Path) -> None:
    """A fresh copy of the product with the submitted bodies of one exercise, and its test file."""
    for path in [*product_files(ROOT), Path("course/__init__.py")]:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tree / path)
    test = Path("course/tests") / f"test_{exercise}.py"
    (tree / test).parent.mkdir()
    shutil.copy(ROOT / test, tree / test)
    for path, found in chosen([exercise])[exercise].items():
        try:
            new = bodies(read_submitted(submission, path), exercise)
            if len(new) != len(found):
                raise Unusable(f"{len(found)} bodies are marked in the handout, {len(new)} here")
            for body, mark in zip(new, found, strict=True):
                check_body(body, mark.indent)
        except Unusable as error:
            raise Unusable(f"{path}: {error}") from error
        (tree / path).write_text(exchange((ROOT / path).read_text(), exercise, new))


# ---- One exercise ------------------------------------------------------------------------------


def ask(student: Student, exercise: str, reader, writer, program: str) -> str:
    """What is wrong with the answers of a sandbox; "" if all are right."""
    student.give(pipes=student.pipes, program=program, names=["answer"])
    kind, *rest = inside.receive(reader)  # the program is loaded
    for case in cases(exercise):
        if kind != "returned":
            break
        inside.send(writer, ["answer", [], case["inputs"]])
        kind, *rest = inside.receive(reader)
        if kind == "returned" and (text := complaint(case, *rest)):
            return f"{case['name']}: {text}"
    if kind == "returned":
        return ""
    return f"{rest[0][0]}: {rest[1]}" if kind == "raised" else str(rest[0])


def examine(tree: Path, exercise: str, way: str, limits: sandbox.Limits) -> str:
    """Run one exercise in a sandbox. What is wrong with it; "" if nothing is."""
    packages = [path for path in sys.path if path.endswith("-packages")]
    program = PROGRAM.format(paths=[str(tree), *packages], exercise=exercise)
    requests = os.pipe()
    answers = os.pipe()
    with ExitStack() as stack:
        try:
            shown = [str(tree), *packages]
            student = Student(way, limits, (requests[0], answers[1]), shown)
            stack.enter_context(student)
        finally:
            os.close(requests[0])
            os.close(answers[1])
        reader = stack.enter_context(os.fdopen(answers[0], "rb"))
        writer = stack.enter_context(os.fdopen(requests[1], "wb", buffering=0))
        with sandbox.alarm(sandbox.PATIENCE[-1], student):
            student.wait_ready()
        try:
            with sandbox.alarm(limits.seconds, student):
                return ask(student, exercise, reader, writer, program)
        except TimeoutError as error:
            return str(error)
        except EOFError:
            return "the process ended before it answered"
        except (ValueError, TypeError, IndexError, OverflowError, RecursionError, OSError) as error:
            return f"no plain values came back: {inside.describe(error)}"


def grade_exercise(submission: Path, way: str, limits: sandbox.Limits, exercise: str) -> Grade:
    files = chosen([exercise])[exercise]
    points = sum(mark.points for found in files.values() for mark in found)
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # the sandbox has a user of its own
        tree = Path(directory, "tree")
        try:
            copy_with(submission, exercise, tree)
            wrong = examine(tree, exercise, way, limits)
        except Unusable as error:
            wrong = str(error)
    printable = "".join(c if c.isprintable() or c == "\n" else "?" for c in wrong)
    return Grade(exercise, points, 0 if wrong else points, printable)


def grade(
    submission: Path,
    ids: Iterable[str] = (),
    contained: bool = True,
    limits: sandbox.Limits = LIMITS,
) -> list[Grade]:
    """Grade the exercises of these ids, or all of them.

    ValueError for an unknown id, NotADirectoryError for a submission that is none, and
    sandbox.Refused if nothing contains programs here, unless `contained` is False.
    """
    found = chosen(ids)
    if not submission.is_dir():
        raise NotADirectoryError(f"{submission}: no such directory")
    way = sandbox.holding(limits) if contained else ""
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2 + 1)) as pool:
        return list(pool.map(partial(grade_exercise, submission, way, limits), found))


def table(grades: list[Grade]) -> str:
    """The grades for people; of each note the first lines."""
    lines = [f"{'exercise':<12} {'points':>6} {'earned':>6}  note"]
    for g in grades:
        note = "; ".join(g.note.split("\n"))
        note = note if len(note) <= 160 else note[:160] + " .."
        lines.append(f"{g.exercise:<12} {g.points:>6} {g.earned:>6}  {note}".rstrip())
    points = sum(g.points for g in grades)
    earned = sum(g.earned for g in grades)
    lines.append(f"{'total':<12} {points:>6} {earned:>6}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("submission", type=Path)
    parser.add_argument("--only", nargs="+", default=[], metavar="ID", help="exercises to grade")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--uncontained", action="store_true", help="run bodies without a sandbox: "
                        "only if you trust them, since they could read and change your files")
    flags = parser.parse_args()
    grades = grade(flags.submission, flags.only, not flags.uncontained)
    print(json.dumps([asdict(g) for g in grades], indent=1) if flags.json else table(grades))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"grade: {error}")
