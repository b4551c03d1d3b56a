"""Grade a submission: a directory in the layout of the handout.

    python -m course.grade SUBMISSION [--only ID ..] [--json]

Nothing but the marked bodies is taken from a submission. Each exercise is graded by itself: its
bodies go into a fresh copy of the product, where all else is solved, and a sandbox calls them,
which sees neither the network nor this machine's files. The sandbox gets the inputs of the cases
and returns plain values. This process compares them with the stored ones, which the sandbox never
sees. So nothing that a body prints, writes, replaces or exits with can earn a point.
An exercise earns all its points if all its cases are right, and else none.

--uncontained runs the bodies without a sandbox, where they could read and change your files.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

from tyro.conf import Positional

from benchmarks import inside, sandbox
from course import marks
from course.marks import ROOT, Unusable
from course.tests.compare import cases, complaint

LIMITS = sandbox.Limits(seconds=120, memory_mb=8192, processes=32, file_mb=64)
LARGEST = 1 << 20  # bytes of a submitted file
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
answers = os.fdopen(os.dup(1), "wb")
program = "from course.tests.test_{exercise} import answer"
inside.serve_program(program, ["answer"], sys.stdin.buffer, answers)
"""


@dataclass(frozen=True)
class Grade:
    exercise: str
    assignment: str
    points: int
    earned: int
    note: str  # what was wrong


def submitted(submission: Path, path: Path) -> str:
    """The text of a file. Unusable if there is none, or it is not a file of the submission."""
    file = submission / path
    if not file.is_file():
        raise Unusable("the submission has no such file")
    if not file.resolve().is_relative_to(submission.resolve()):
        raise Unusable("a link out of the submission; put the file itself there")
    if file.stat().st_size > LARGEST:
        raise Unusable(f"the file has more than {LARGEST >> 20} MB")
    return file.read_text(errors="replace")


def take_bodies(text: str, exercise: str, known: list) -> list[str]:
    """The bodies of an exercise in a submitted file. known: the marks in the product's file."""
    found = marks.marked(text, exercise)
    if len(found) != len(known):
        raise Unusable(f"{len(found)} marked bodies of {exercise}; the handout has {len(known)}")
    for mark, ours in zip(found, known, strict=True):
        marks.check_body(mark["body"], ours["indent"])
    return [mark["body"] for mark in found]


def put_together(submission: Path, exercise: str, files: marks.Found, tree: Path) -> None:
    """A fresh copy of the product with the submitted bodies of one exercise, and its test file."""
    test = Path(f"course/tests/test_{exercise}.py")
    for path in [*marks.product_files(), Path("course/__init__.py"), test]:
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tree / path)
    for path, known in files.items():
        try:
            bodies = take_bodies(submitted(submission, path), exercise, known)
        except Unusable as error:
            raise Unusable(f"{path}: {error}") from error
        (tree / path).write_text(marks.exchange((ROOT / path).read_text(), exercise, bodies))


def command(tree: Path, exercise: str, way: str, limits: sandbox.Limits) -> list[str]:
    """The command that serves an exercise. way: of sandbox.holding, or "" for limits alone."""
    shown = [str(tree), *(path for path in sys.path if path.endswith("-packages"))]
    python = [sys.executable, "-s", "-S", "-B"]
    if way:
        python = sandbox.command(way, limits)
        end = python.index("--")  # of the directories that the sandbox shows
        python[end : end + 1] = [*shown, "--", "sh", "-c", DEVICES, "sh"]
    return [*python, "-c", PROGRAM.format(paths=shown, limits=astuple(limits), exercise=exercise)]


def answers(command: list[str], inputs: list[dict], seconds: float) -> list:
    """What the process says to being loaded, and to each of the inputs. EOFError if it ends early.

    Requests and answers are files: a file is bounded by the process's limits, a pipe by nothing.
    """
    with TemporaryFile() as requests, TemporaryFile() as replies:
        for arguments in inputs:
            inside.send(requests, ["answer", [], arguments])
        requests.seek(0)
        subprocess.run(
            command, stdin=requests, stdout=replies, stderr=subprocess.DEVNULL, timeout=seconds,
            env=sandbox.ENVIRONMENT, start_new_session=True,
        )  # fmt: skip
        replies.seek(0)
        return [inside.receive(replies) for _ in range(1 + len(inputs))]


def examine(command: list[str], exercise: str, seconds: float) -> str:
    """What is wrong with the bodies of an exercise; "" if nothing is."""
    stored = cases(exercise)
    try:
        loaded, *rest = answers(command, [case["inputs"] for case in stored], seconds)
        if loaded[0] == "failed":
            return str(loaded[1])
        for case, answer in zip(stored, rest, strict=True):
            match answer:
                case ["returned", came]:
                    wrong = complaint(case, came)
                case ["raised", [str(name), *_], str(message)]:
                    wrong = f"{name}: {message}"
                case _:
                    wrong = str(answer[-1])
            if wrong:
                return f"{case['name']}: {wrong}"
    except subprocess.TimeoutExpired:
        return f"not done in {seconds:g} s"
    except EOFError:
        return "the process ended before it had answered"
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        return f"not an answer: {inside.describe(error)}"
    return ""


def grade_one(submission: Path, way: str, limits: sandbox.Limits, exercise: str) -> Grade:
    files = marks.exercises([exercise])[exercise]
    points = sum(int(mark["points"]) for found in files.values() for mark in found)
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # the sandbox has a user of its own
        tree = Path(directory, "tree")
        try:
            put_together(submission, exercise, files, tree)
            wrong = examine(command(tree, exercise, way, limits), exercise, limits.seconds)
        except Unusable as error:
            wrong = str(error)
    note = "".join(c if c.isprintable() else "?" for c in wrong.replace("\n", "; "))
    page, _ = marks.heading(exercise)
    return Grade(exercise, page.removesuffix(".md"), points, 0 if wrong else points, note)


def grade(submission: Path, ids: Iterable[str] = (), contained=True, limits=LIMITS) -> list[Grade]:
    """Grade the exercises of these ids, or all. contained: only in a sandbox.

    ValueError for an unknown id; NotADirectoryError for a submission that is none;
    sandbox.Refused if `contained` and nothing contains programs here.
    """
    found = marks.exercises(ids)
    if not submission.is_dir():
        raise NotADirectoryError(f"{submission}: no such directory")
    way = sandbox.holding(limits) if contained else ""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(partial(grade_one, submission, way, limits), found))


def table(grades: list[Grade]) -> str:
    lines = [f"{'assignment':<12} {'exercise':<10} points earned  note"]
    for g in grades:
        note = g.note if len(g.note) <= 200 else g.note[:200] + " .."
        line = f"{g.assignment:<12} {g.exercise:<10} {g.points:>6} {g.earned:>6}  {note}"
        lines.append(line.rstrip())
    points = sum(g.points for g in grades)
    earned = sum(g.earned for g in grades)
    return "\n".join([*lines, f"{'total':<23} {points:>6} {earned:>6}"])


def main(
    submission: Positional[Path], only: tuple[str, ...] = (), json_=False, uncontained=False
) -> None:
    grades = grade(submission, only, not uncontained)
    print(json.dumps([asdict(g) for g in grades], indent=1) if json_ else table(grades))


if __name__ == "__main__":
    marks.run(main)
