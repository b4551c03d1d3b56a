"""Exercises: marked bodies of the product, which are taken out, put back, or exchanged.

    # <solution id="advantages" points="10">
    ...
    # </solution>

An exercise may have several bodies, in several files. Its points are the sum over them.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "runtime", "benchmarks")  # with marked files, beside those at the top
OPEN = re.compile(r'( *)# <solution id="(\w+)" points="(\d+)">')
CLOSE = "# </solution>"


class Unusable(ValueError):
    """A body that cannot be graded. The message says why."""


class Mark:
    """The place of one marked body in the lines of a file."""

    def __init__(self, lines: list[str], place: int, indent: str, exercise: str, points: str):
        self.exercise = exercise
        self.points = int(points)
        self.indent = len(indent)
        self.first = place + 1
        self.end = self.first  # the line after the body
        while self.end < len(lines) and not re.match(r" *# </?solution", lines[self.end]):
            self.end += 1
        self.closed = self.end < len(lines) and lines[self.end] == indent + CLOSE


def marks(text: str) -> Iterator[Mark]:
    """The marked bodies of a file, the first one first."""
    lines = text.split("\n")
    for place, line in enumerate(lines):
        if opened := OPEN.fullmatch(line):
            yield Mark(lines, place, *opened.groups())


def product_files(root: Path) -> list[Path]:
    """The Python files of the product that may hold exercises, relative to the root."""
    found = list(root.glob("*.py"))
    for folder in FOLDERS:
        found += (root / folder).glob("*.py")
    return sorted(path.relative_to(root) for path in found)


def exercises() -> dict[str, dict[Path, list[Mark]]]:
    """{exercise: {file: its marked bodies there}}. ValueError for a marker that does not close."""
    found = {}
    for path in product_files(ROOT):
        for mark in marks((ROOT / path).read_text()):
            if not mark.closed:
                raise ValueError(f"{path}: the marker of {mark.exercise} does not close")
            found.setdefault(mark.exercise, {}).setdefault(path, []).append(mark)
    return found


def chosen(ids: Iterable[str]) -> dict[str, dict[Path, list[Mark]]]:
    """The exercises of these ids, or all of them without ids. ValueError for an unknown id."""
    known = exercises()
    for exercise in ids:
        if exercise not in known:
            raise ValueError(f"{exercise}: no such exercise; there are {', '.join(sorted(known))}")
    return {exercise: known[exercise] for exercise in ids or known}


def bodies(text: str, exercise: str) -> list[str]:
    """The marked bodies of an exercise in a file. Unusable for a marker that does not close."""
    lines = text.split("\n")
    found = []
    for mark in marks(text):
        if mark.exercise != exercise:
            continue
        if not mark.closed:
            raise Unusable(f"the marker {exercise} does not close before the next marker")
        found.append("\n".join(lines[mark.first : mark.end]))
    return found


def exchange(text: str, exercise: str, new: list[str]) -> str:
    """The file with other bodies for an exercise."""
    lines = text.split("\n")
    found = [mark for mark in marks(text) if mark.exercise == exercise]
    for mark, body in reversed(list(zip(found, new, strict=True))):
        lines[mark.first : mark.end] = body.split("\n")
    return "\n".join(lines)


def check_body(body: str, indent: int) -> None:
    """Unusable for a body that is not Python, or that ends its function and goes on behind it."""
    try:
        parsed = ast.parse(f"def marked():\n{body}\n").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unusable(f"not Python: {error}") from error
    if len(parsed) > 1 or parsed[0].body[0].col_offset != indent:
        raise Unusable(f"the body leaves its function: indent all of it by {indent} spaces or more")
